"""The numbers of a convolution: channels, kernel, stride, padding, dilation, groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from prunebench_kernels.errors import ArgumentError, LayoutError


@dataclass(frozen=True)
class Geometry:
    """A 2-d convolution without its weight. Pairs are (height, width). Raises ArgumentError on impossible values."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "groups"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}: want at least 1, got {getattr(self, name)}")
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) < least:
                raise ArgumentError(f"{name}: want two integers of at least {least}, got {pair}")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ArgumentError(f"groups: {self.groups} does not divide {name}, {getattr(self, name)}")

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Geometry:
        """The geometry of a module. Raises LayoutError for a padding that is not symmetric zeros."""
        kernel, dilation = _pair(conv.kernel_size), _pair(conv.dilation)
        if conv.padding_mode != "zeros":
            raise LayoutError(f"conv: padding mode {conv.padding_mode} is not packed, only zeros")
        if conv.padding == "same":
            total = (dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1))
            if total[0] % 2 or total[1] % 2:
                raise LayoutError("conv: padding 'same' of an even kernel is not symmetric")
            padding = (total[0] // 2, total[1] // 2)
        else:
            padding = (0, 0) if isinstance(conv.padding, str) else _pair(conv.padding)
        return cls(
            conv.in_channels, conv.out_channels, kernel, _pair(conv.stride), padding, dilation, conv.groups
        )

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> Geometry:
        """The inverse of `numbers`."""
        if len(numbers) != 11:
            raise ArgumentError(f"geometry: want 11 numbers, got {len(numbers)}")
        pairs = [(numbers[i], numbers[i + 1]) for i in (2, 4, 6, 8)]
        return cls(numbers[0], numbers[1], pairs[0], pairs[1], pairs[2], pairs[3], numbers[10])

    @property
    def numbers(self) -> tuple[int, ...]:
        """All fields as one flat tuple of 11 integers, for operators and files."""
        channels = (self.in_channels, self.out_channels)
        return (*channels, *self.kernel, *self.stride, *self.padding, *self.dilation, self.groups)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def taps(self) -> int:
        """Positions of the kernel, R * S."""
        return self.kernel[0] * self.kernel[1]

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a plain matrix product over channels: 1x1, stride 1, no padding."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output. Raises ArgumentError where the kernel does not fit the padded input."""
        size = [
            (extent + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for extent, pad, dilation, kernel, stride in zip(
                (height, width), self.padding, self.dilation, self.kernel, self.stride
            )
        ]
        if min(size) < 1:
            raise ArgumentError(f"x: {height} x {width} pixels are fewer than kernel {self.kernel} reaches")
        return (size[0], size[1])


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
