"""Packed weights of sparse convolutions: four layouts, each in its own module, and their exact inverse."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from prunebench_kernels.checks import check_finite, check_floating, check_tensor
from prunebench_kernels.errors import ArgumentError, LayoutError
from prunebench_kernels.sparse import block, compact, dense, direct
from prunebench_kernels.sparse.geometry import Geometry

__all__ = ["LAYOUTS", "Geometry", "PackedWeight", "layout_module", "pack", "preferred_format"]

LAYOUTS = ("dense", "block", "direct", "compact")
_MODULES: dict[str, ModuleType] = {"dense": dense, "block": block, "direct": direct, "compact": compact}


def layout_module(layout: str) -> ModuleType:
    """The module of a layout: TENSORS, SETTINGS, refuse, pack, unpack, convolve. Raises ArgumentError."""
    if layout not in _MODULES:
        raise ArgumentError(f"layout: want one of {', '.join(LAYOUTS)}, got {layout!r}")
    return _MODULES[layout]


def preferred_format(layout: str) -> torch.memory_format:
    """The memory format that a layout reads without a copy and writes: channels_last for `dense` and `block`,
    contiguous (NCHW) for `direct` and `compact`. Other input is copied into it first.

    With the setting `batch_innermost` the latter two use an order that torch has no name for: `formats.arrange`
    makes it.
    """
    layout_module(layout)
    return torch.channels_last if layout in ("dense", "block") else torch.contiguous_format


@dataclass(frozen=True)
class PackedWeight:
    """A masked weight in a layout. `tensors` are contiguous and `settings` integers: both go into safetensors."""

    layout: str
    geometry: Geometry
    tensors: dict[str, Tensor]
    settings: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module = layout_module(self.layout)
        if set(self.tensors) != set(module.TENSORS):
            raise ArgumentError(
                f"tensors: layout {self.layout} has {module.TENSORS}, got {tuple(self.tensors)}"
            )
        if set(self.settings) != set(module.SETTINGS):
            names = tuple(module.SETTINGS)
            raise ArgumentError(f"settings: layout {self.layout} has {names}, got {tuple(self.settings)}")

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return PackedWeight(self.layout, self.geometry, moved, dict(self.settings))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which the convolution computes."""
        return self.tensors[layout_module(self.layout).TENSORS[0]].dtype

    @property
    def device(self) -> torch.device:
        return self.tensors[layout_module(self.layout).TENSORS[0]].device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, indices included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def unpack(self) -> Tensor:
        """The dense masked weight `[K, C / groups, R, S]`, bit for bit (a negative zero becomes zero)."""
        weight: Tensor = layout_module(self.layout).unpack(self.tensors, self.geometry, self.settings)
        return weight


def pack(weight: Tensor, layout: str, *, geometry: Geometry, **settings: int) -> PackedWeight:
    """Pack `weight` `[K, C / groups, R, S]`, masked already (zeros are pruned), in the dtype to compute in.

    `settings` override the layout's own, e.g. `block_out=32`. Raises LayoutError, a sentence, where the layout
    does not take the convolution, and ArgumentError on wrong arguments.
    """
    module = layout_module(layout)
    check_floating("weight", check_tensor("weight", weight))
    if tuple(weight.shape) != geometry.weight_shape:
        raise ArgumentError(f"weight: want shape {geometry.weight_shape}, got {tuple(weight.shape)}")
    if weight.numel() >= 2**31:
        raise ArgumentError(f"weight: want fewer than 2^31 elements, got {weight.numel()}")
    check_finite("weight", weight)
    unknown = set(settings) - set(module.SETTINGS)
    if unknown:
        known = ", ".join(module.SETTINGS) or "none"
        raise ArgumentError(f"settings: layout {layout} has {known}; got {', '.join(sorted(unknown))}")
    chosen = {**module.SETTINGS, **settings}
    refusal = module.refuse(geometry, chosen)
    if refusal is not None:
        raise LayoutError(f"layout: {layout} {refusal}")
    tensors = module.pack(weight.detach(), geometry, chosen)
    return PackedWeight(layout, geometry, tensors, chosen)
