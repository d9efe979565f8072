"""Convolution layers of a model: each shape once, with its weights and their masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.errors import PruneBenchError, UsageError
from prunebench.profile.results import STORED
from prunebench.pruning.structure import structured_mask

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvShape:
    """A convolution with the size of its input, in the terms of `torch.nn.Conv2d`."""

    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    height: int
    width: int

    @property
    def output_size(self) -> Pair:
        """Rows and columns of the output."""
        sizes = []
        for axis, size in enumerate((self.height, self.width)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            sizes.append((size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1)
        return sizes[0], sizes[1]

    @property
    def touched_inputs(self) -> int:
        """Input positions (row, column) that any output reads: a strided 1 x 1 convolution skips the others."""
        counts = []
        for axis, size in enumerate((self.height, self.width)):
            starts = range(0, self.output_size[axis] * self.stride[axis], self.stride[axis])
            taps = range(0, self.dilation[axis] * self.kernel[axis], self.dilation[axis])
            seen = {start + tap - self.padding[axis] for start in starts for tap in taps}
            counts.append(sum(0 <= position < size for position in seen))
        return counts[0] * counts[1]

    @property
    def words(self) -> str:
        """`3x3 64->128 /2 @32`: kernel, channels, stride, input size."""
        stride = f" /{self.stride[0]}" if self.stride[0] > 1 else ""
        grouped = f" groups {self.groups}" if self.groups > 1 else ""
        kernel = f"{self.kernel[0]}x{self.kernel[1]}"
        return f"{kernel} {self.in_channels}->{self.out_channels}{stride}{grouped} @{self.height}"


@dataclass(frozen=True)
class ConvLayer:
    """A convolution of a model; `names` are all layers of the same shape, `weight` is that of the first."""

    names: tuple[str, ...]
    shape: ConvShape
    weight: Tensor

    @property
    def name(self) -> str:
        return self.names[0]


@torch.inference_mode()
def conv_layers(model: nn.Module, image: int, wanted: tuple[str, ...] = ()) -> list[ConvLayer]:
    """Every different convolution of the model for images `[3, image, image]`, in the order of the pass.

    `wanted` keeps layers whose name contains one of these parts. Raises UsageError if none does.
    """
    sizes: dict[str, Pair] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                sizes[name] = (inputs[0].shape[2], inputs[0].shape[3])

            handles.append(module.register_forward_pre_hook(note))
    try:
        parameter = next(model.parameters())
        model.eval()(torch.zeros(1, 3, image, image, dtype=parameter.dtype, device=parameter.device))
    except RuntimeError as error:
        raise UsageError(f"--image {image}: the model cannot take it ({error})") from error
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[ConvShape, list[str]] = {}
    modules = dict(model.named_modules())
    for name, size in sizes.items():
        if not wanted or any(part in name for part in wanted):
            groups.setdefault(_shape(modules[name], size), []).append(name)
    if not groups:
        raise UsageError(f"--layer {' '.join(wanted)}: no such convolution; there are {', '.join(sizes)}")
    layers = []
    for shape, names in groups.items():
        weight = modules[names[0]].weight
        assert isinstance(weight, Tensor)
        layers.append(ConvLayer(tuple(map(short_name, names)), shape, weight.detach().clone()))
    return layers


def short_name(name: str) -> str:
    """A layer's name without `body.`, unless only a number would be left."""
    short = name.removeprefix("body.")
    return name if short.isdigit() else short


def _shape(module: nn.Module, size: Pair) -> ConvShape:
    assert isinstance(module, nn.Conv2d)
    if isinstance(module.padding, str):
        raise UsageError(f"padding {module.padding!r}: profile takes convolutions with padding in numbers")
    return ConvShape(
        module.in_channels, module.out_channels, _pair(module.kernel_size), _pair(module.stride),
        _pair(module.padding), _pair(module.dilation), module.groups, *size,
    )  # fmt: skip


def _pair(values: tuple[int, ...]) -> Pair:
    return values[0], values[1]


def make_mask(weight: Tensor, pattern: str, sparsity: float | None) -> Tensor | str:
    """The mask of a weight by its magnitudes, bool; or why this layer cannot have that pattern."""
    if pattern == STORED:
        return weight != 0
    assert sparsity is not None
    try:
        return structured_mask(pattern, weight.abs(), sparsity)
    except PruneBenchError as error:
        return str(error)
