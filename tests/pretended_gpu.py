"""A GPU that is pretended: tensors compute on the CPU and know which device they would lie on.

What torch refuses on a GPU raises `MixedDevices` here: operations on tensors of two devices, numpy's view of one on the
GPU, and, while `capturing`, whatever waits for the GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ACROSS = {"copy_", "index", "index_put_", "index_put", "_index_put_impl_", "set_"}
"""Operations that take tensors of two devices; of indices those on the CPU alone."""
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero", "bincount",
    "repeat_interleave",
}  # fmt: skip
"""Operations whose result, or its shape, the host waits for."""


class MixedDevices(RuntimeError):
    """What a GPU would refuse."""


class Tags:
    """The device of each storage, by its address; None: whatever the others are on."""

    def __init__(self) -> None:
        self.of_storage: dict[int, tuple[torch.device | None, StorageWeakRef]] = {}
        self.capturing = False

    def get(self, tensor: Tensor) -> torch.device | None:
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return self.of_storage.get(tensor.untyped_storage()._cdata, (None, None))[0]

    def put(self, value: Any, device: torch.device | None) -> Any:
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                storage = tensor.untyped_storage()
                held = StorageWeakRef(storage)  # keeps the address taken
                self.of_storage[storage._cdata] = device, held
        return value


class _Operations(TorchDispatchMode):
    def __init__(self, tags: Tags, asked: list[torch.device | None]) -> None:
        super().__init__()
        self.tags, self.asked = tags, asked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._opname, kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        where = {each: self.tags.get(each) for each in given}
        known = [where[each] for each in given if where[each] is not None]
        outside = [
            each for each in given if where[each] == CPU and (each.ndim or name.startswith("_foreach"))
        ]
        if GPU in known and outside:
            indexed = name.startswith(("index", "_index")) and where[given[0]] == CPU
            if name not in ACROSS or indexed:
                raise MixedDevices(f"{name}: {[(tuple(each.shape), where[each]) for each in given]}")
            if self.tags.capturing:
                raise MixedDevices(f"{name} copies between devices in a step that is captured")
        if self.tags.capturing and GPU in known:
            bools = [each for each in given[1:] if each.dtype == torch.bool]
            if name in WAITING or (name in ("index", "index_put_") and bools):
                raise MixedDevices(f"{name} waits for the GPU in a step that is captured")
        before = {each.untyped_storage()._cdata for each in given}
        out = func(*args, **kwargs)
        device = self.asked[-1] if not given else GPU if GPU in known else CPU if known else None
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in before:
                self.tags.put(each, device)
        return out


def _device_of(value: Any, tags: Tags) -> torch.device | None:
    if isinstance(value, Tensor):
        return tags.get(value)
    if isinstance(value, torch.device | str):
        return GPU if torch.device(value).type == "cuda" else CPU
    return None


class _Calls(TorchFunctionMode):
    def __init__(self, tags: Tags, asked: list[torch.device | None]) -> None:
        super().__init__()
        self.tags, self.asked = tags, asked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return self.tags.get(args[0]) or CPU
        if func == Tensor.is_cuda.__get__:
            return self.tags.get(args[0]) == GPU
        if func is Tensor.numpy and self.tags.get(args[0]) == GPU:
            raise MixedDevices("numpy of a tensor on the GPU")
        if func in (Tensor.to, Tensor.cpu):
            return self._moved(func, *args, **kwargs)
        device = _device_of(kwargs.get("device"), self.tags)
        if "device" in kwargs:
            kwargs["device"] = CPU
        makes = not any(isinstance(each, Tensor) for each in tree_leaves((args, kwargs)))
        self.asked.append(device or (CPU if makes else None))
        try:
            out = func(*args, **kwargs)
        finally:
            self.asked.pop()
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy) or device is not None:
            self.tags.put(out, device or CPU)
        if func is Tensor.__deepcopy__:
            self.tags.put(out, self.tags.get(args[0]))
        return out

    def _moved(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = CPU if func is Tensor.cpu else _device_of(kwargs.pop("device", None), self.tags)
        rest: list[Any] = []
        for each in args:
            if isinstance(each, torch.device | str | Tensor):
                target = _device_of(each, self.tags)
                if isinstance(each, Tensor):
                    rest.append(each.dtype)
            elif each is not None:
                rest.append(each)
        kwargs = {key: value for key, value in kwargs.items() if key != "non_blocking"}
        rest = [each for each in rest if not isinstance(each, bool)]
        same = target is None or target == self.tags.get(tensor)
        if not same and self.tags.capturing:
            raise MixedDevices("a copy between devices in a step that is captured")
        out = tensor if same else tensor.clone()
        if not same:
            self.tags.put(out, target)
        return out.to(*rest, **kwargs) if rest or kwargs else out


@contextlib.contextmanager
def pretended_gpu(tags: Tags | None = None) -> Iterator[Tags]:
    """Inside, `cuda` is a device."""
    tags, asked = tags or Tags(), [None]
    with _Operations(tags, asked), _Calls(tags, asked):
        yield tags
