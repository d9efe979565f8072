"""Convolution layers of a model: each shape once, with its weights and their masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from prunebench_kernels.layouts import Geometry
from torch import Tensor, nn

from prunebench.errors import PruneBenchError, UsageError
from prunebench.profile.results import STORED
from prunebench.pruning.structure import structured_mask


@dataclass(frozen=True)
class ConvShape:
    """A convolution's geometry with the size of its input."""

    geometry: Geometry
    height: int
    width: int

    @property
    def output_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.geometry.output_size(self.height, self.width)

    @property
    def touched_inputs(self) -> int:
        """Input positions (row, column) that any output reads: a strided 1 x 1 convolution skips the others."""
        one, count = self.geometry, 1
        for axis, (size, outputs) in enumerate(zip((self.height, self.width), self.output_size)):
            starts = (one.stride[axis] * output - one.padding[axis] for output in range(outputs))
            seen = {start + one.dilation[axis] * tap for start in starts for tap in range(one.kernel[axis])}
            count *= len(seen & set(range(size)))
        return count

    @property
    def words(self) -> str:
        """`3x3 64->128 /2 @32`: kernel, channels, stride, input size."""
        one = self.geometry
        stride = f" /{one.stride[0]}" if one.stride[0] > 1 else ""
        grouped = f" groups {one.groups}" if one.groups > 1 else ""
        channels = f"{one.in_channels}->{one.out_channels}"
        return f"{one.kernel[0]}x{one.kernel[1]} {channels}{stride}{grouped} @{self.height}"


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
    shapes: dict[str, ConvShape] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(module: nn.Conv2d, inputs: tuple[Tensor, ...], name: str = name) -> None:
                shapes[name] = ConvShape(Geometry.of(module), *inputs[0].shape[2:])

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
    for name, shape in shapes.items():
        if not wanted or any(part in name for part in wanted):
            groups.setdefault(shape, []).append(name)
    if not groups:
        raise UsageError(f"--layer {' '.join(wanted)}: no such convolution; there are {', '.join(shapes)}")
    return [
        ConvLayer(
            tuple(map(short_name, names)), shape, model.get_parameter(f"{names[0]}.weight").detach().clone()
        )
        for shape, names in groups.items()
    ]


def short_name(name: str) -> str:
    """A layer's name without `body.`, unless only a number would be left."""
    short = name.removeprefix("body.")
    return name if short.isdigit() else short


def make_mask(weight: Tensor, pattern: str, sparsity: float | None) -> Tensor | str:
    """The mask of a weight by its magnitudes, bool; or why this layer cannot have that pattern."""
    if pattern == STORED:
        return weight != 0
    assert sparsity is not None
    try:
        return structured_mask(pattern, weight.abs(), sparsity)
    except PruneBenchError as error:
        return str(error)
