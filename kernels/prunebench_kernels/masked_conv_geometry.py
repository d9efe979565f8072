"""Shapes of a masked convolution, tiles of its kernels, and the name of a call in the tuned tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

PARTS = ("forward", "dgrad", "wgrad")


@dataclass(frozen=True)
class Geometry:
    """Shapes of one convolution: x `[batch, in_channels, height, width]`, weight `[out_channels, ..., *kernel]`."""

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    channels_last: bool

    @classmethod
    def of(
        cls,
        x: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Geometry:
        batch, channels, height, width = x.shape
        return cls(
            batch,
            channels,
            height,
            width,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            (stride[0], stride[1]),
            (padding[0], padding[1]),
            (dilation[0], dilation[1]),
            groups,
            memory_format(x) == torch.channels_last,
        )

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of y."""
        spans = [step * (size - 1) for step, size in zip(self.dilation, self.kernel)]
        extents = (self.height, self.width)
        rows, columns = (
            (extent + 2 * pad - span - 1) // step + 1
            for extent, pad, span, step in zip(extents, self.padding, spans, self.stride)
        )
        return rows, columns

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.out_channels, *self.output)

    @property
    def group_shape(self) -> tuple[int, int]:
        """Output and input channels of one group."""
        return self.out_channels // self.groups, self.in_channels // self.groups


@dataclass(frozen=True)
class Configuration:
    """Tile of a Triton kernel: `rows` x `columns` outputs, `depth` terms a step.

    rows are channels (of y, dx, or the first axis of G), columns are pixels (forward, dgrad) or channels (wgrad).
    `fuse_mask`: the forward and dgrad kernels multiply weight by mask as they load them, else a product in the
    compute dtype is made first. `splits`: parts that the wgrad's sum over pixels is cut into.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int = 4
    num_stages: int = 3
    fuse_mask: bool = False
    splits: int = 1

    @property
    def tile(self) -> Configuration:
        """The configuration as the machine code sees it: without the number of splits."""
        return replace(self, splits=1)

    @property
    def label(self) -> str:
        """A short name, e.g. `64x128x64-4w3s-fused`."""
        end = "-fused" if self.fuse_mask else ""
        return f"{self.rows}x{self.columns}x{self.depth}-{self.num_warps}w{self.num_stages}s{end}"

    def as_entry(self) -> dict[str, Any]:
        """The configuration as a tuned table's entry."""
        return {"implementation": "triton", **asdict(self)}


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last if x's strides say so, else contiguous. One channel, or one pixel, decides by its strides."""
    _, channels, height, width = x.shape
    strides = x.stride()[1:]
    is_last = strides == (1, width * channels, channels) and strides != (height * width, width, 1)
    return torch.channels_last if is_last else torch.contiguous_format


def tf32_allowed() -> bool:
    """Whether torch lets convolutions of float32 multiply in TF32 on a GPU."""
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for tensors on `device`; torch refuses the question for meta tensors."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def compute_name(dtype: torch.dtype) -> str:
    """`float16`, `bfloat16`, `float32` or `tf32`: what the multiplications see."""
    return "tf32" if dtype == torch.float32 and tf32_allowed() else str(dtype).removeprefix("torch.")


def key(geometry: Geometry, dtype: torch.dtype) -> str:
    """A tuned table's key of one part of this convolution."""
    g = geometry
    pairs = "x".join
    return (
        f"{compute_name(dtype)} {'nhwc' if g.channels_last else 'nchw'} {g.batch},{g.in_channels},{g.height},{g.width}"
        f" k{g.out_channels} {pairs(map(str, g.kernel))} s{pairs(map(str, g.stride))} p{pairs(map(str, g.padding))}"
        f" d{pairs(map(str, g.dilation))} g{g.groups}"
    )


def refusal(geometry: Geometry, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels do not take the call, or None."""
    if dtype == torch.float64:
        return "the kernels accumulate in float32; float64 runs in torch"
    rows, columns = geometry.output
    if geometry.batch * max(geometry.height * geometry.width, rows * columns) >= 2**31 - 2**16:
        return "the kernels number pixels in 32 bits"
    taps = geometry.kernel[0] * geometry.kernel[1]
    if geometry.out_channels * geometry.group_shape[1] * taps >= 2**31 - 2**16:
        return "the kernels number the weight's elements in 32 bits"
    if (
        max(geometry.in_channels * geometry.height * geometry.width, geometry.out_channels * rows * columns)
        >= 2**31
    ):
        return "the kernels number the elements of one sample in 32 bits"
    if max(geometry.groups, geometry.stride[0] * geometry.stride[1]) > 65535:
        return "groups and stride are grid dimensions of the kernels, at most 65535"
    return None
