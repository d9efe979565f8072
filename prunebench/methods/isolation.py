"""The state of torch and of random numbers that every method in a process shares: saved, restored and verified."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunebench.errors import PruneBenchError


@dataclass(frozen=True)
class TorchSetting:
    """One piece of state: how it is read and how it is set."""

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], Any]


def _attribute(owner: Any, field: str, name: str) -> TorchSetting:
    return TorchSetting(name, lambda: getattr(owner, field), lambda value: setattr(owner, field, value))


def _denormals_flushed() -> bool:
    """Whether float32 arithmetic on this thread rounds the smallest numbers to zero; torch has no getter."""
    return float(torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1.0) == 0


def _autocast(device: str) -> list[TorchSetting]:
    return [
        TorchSetting(
            f"autocast on {device}",
            lambda: torch.is_autocast_enabled(device),
            lambda on: torch.set_autocast_enabled(device, on),
        ),
        TorchSetting(
            f"type of autocast on {device}",
            lambda: torch.get_autocast_dtype(device),
            lambda kind: torch.set_autocast_dtype(device, kind),
        ),
    ]


def _set_device(device: torch.device) -> None:
    """None where it is the CPU: torch then has no mode that looks at every call."""
    torch.set_default_device(None if device.type == "cpu" else device)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_buffer_registration_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)


def _global_hooks(name: str) -> TorchSetting:
    held = getattr(torch.nn.modules.module, name)

    def restore(saved: dict[int, Any]) -> None:
        held.clear()
        held.update(saved)

    return TorchSetting(f"hooks of every module ({name})", lambda: dict(held), restore)


def switches() -> list[TorchSetting]:
    """All that is saved; the default device comes before what is told by computing."""
    found = [
        TorchSetting("number of threads", torch.get_num_threads, torch.set_num_threads),
        TorchSetting("default device", torch.get_default_device, _set_device),
        TorchSetting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
        TorchSetting("grad mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
        TorchSetting("anomaly detection", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        TorchSetting("flushing of denormals", _denormals_flushed, torch.set_flush_denormal),
        TorchSetting(
            "float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        ),
        TorchSetting(
            "deterministic algorithms",
            _deterministic,
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        ),
        _attribute(torch.backends.mkldnn, "enabled", "mkldnn.enabled"),
        _attribute(torch.backends.mkldnn, "deterministic", "mkldnn.deterministic"),
        *_autocast("cpu"),
        *map(_global_hooks, HOOKS),
        TorchSetting("seeds of Python", random.getstate, random.setstate),
    ]
    if torch.cuda.is_available():
        found += _autocast("cuda")
        found += [
            _attribute(torch.backends.cudnn, field, f"cudnn.{field}")
            for field in ("enabled", "benchmark", "deterministic", "allow_tf32")
        ]
        found.append(_attribute(torch.backends.cuda.matmul, "allow_tf32", "matmul.allow_tf32"))
    return found


@contextlib.contextmanager
def kept(seed: int) -> Iterator[None]:
    """Run a method's code, seeded, and leave torch's global state as it was, whatever the code sets or raises.

    Raises PruneBenchError that names the state which cannot be restored: the next method's numbers would not be its
    own.
    """
    every = switches()
    saved = [switch.get() for switch in every]
    numbers = np.random.get_state()  # noqa: NPY002
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for switch, value in zip(every, saved):
            if not _same(switch.get(), value):
                switch.set(value)
        np.random.set_state(numbers)  # noqa: NPY002
        broken = [switch.name for switch, value in zip(every, saved) if not _same(switch.get(), value)]
        if broken:
            raise PruneBenchError(
                f"the method changed torch's global state for good ({', '.join(broken)}); "
                "set it inside a `with` block that restores it"
            )


def _same(one: Any, other: Any) -> bool:
    return bool(one == other)
