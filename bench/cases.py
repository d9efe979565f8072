"""The shapes that tests and benchmarks share.

Small, odd ones prove correctness (in Triton's interpreter); large ones are timed. Nothing here needs a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from prunebench_kernels.layouts import Geometry

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
PATTERNS = ("unstructured", "block", "2:4", "filter")


@dataclass(frozen=True)
class ConvCase:
    """One convolution: input `[batch, in_channels, height, width]`, weight `[out_channels, in / groups, *kernel]`."""

    name: str
    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.in_channels, self.height, self.width)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        size = [
            (extent + 2 * self.padding[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i, extent in enumerate((self.height, self.width))
        ]
        return (self.batch, self.out_channels, size[0], size[1])

    @property
    def arguments(self) -> dict[str, Any]:
        """Stride, padding, dilation and groups, as keyword arguments of a convolution."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def geometry(self) -> Geometry:
        """The case as the sparse layouts' Geometry."""
        return Geometry(self.in_channels, self.out_channels, self.kernel, **self.arguments)

    @property
    def flop(self) -> int:
        """Floating-point operations of the dense convolution, a multiply-add counted as two."""
        pixels = self.y_shape[0] * self.y_shape[2] * self.y_shape[3]
        return 2 * pixels * torch.Size(self.weight_shape).numel()


ODD_CONVS = (
    ConvCase("pointwise", 2, 5, 4, 6, 7, kernel=(1, 1), padding=(0, 0)),
    ConvCase("same 3x3", 2, 17, 5, 7, 19),
    ConvCase("no padding", 1, 3, 8, 5, 4, padding=(0, 0)),
    ConvCase("stride 2", 3, 8, 9, 7, 6, stride=(2, 2)),
    ConvCase("stride 2, 4x4", 2, 3, 8, 8, 16, kernel=(4, 4), stride=(2, 2)),
    ConvCase("stride 2x1, kernel 3x2", 2, 4, 7, 9, 5, kernel=(3, 2), stride=(2, 1), padding=(1, 0)),
    ConvCase("stride 3", 1, 6, 10, 11, 4, kernel=(5, 5), stride=(3, 3), padding=(2, 2)),
    ConvCase("pointwise, stride 2", 2, 9, 7, 7, 11, kernel=(1, 1), stride=(2, 2), padding=(0, 0)),
    ConvCase("dilation 2", 2, 4, 9, 9, 5, padding=(2, 2), dilation=(2, 2)),
    ConvCase("dilation 3x1, stride 2", 1, 4, 12, 8, 5, stride=(2, 2), padding=(3, 1), dilation=(3, 1)),
    ConvCase("two groups", 2, 8, 6, 6, 10, groups=2),
    ConvCase("depthwise", 2, 6, 7, 7, 6, groups=6),
    ConvCase("depthwise, multiplier 2, stride 2", 1, 5, 7, 8, 10, stride=(2, 2), groups=5),
    ConvCase("one pixel", 1, 4, 1, 1, 3),
    ConvCase("kernel larger than the image", 1, 2, 3, 3, 2, kernel=(5, 5), padding=(2, 2)),
    ConvCase("stem 7x7", 1, 3, 16, 16, 8, kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
)
"""Every stride, padding, dilation and group rule, with sizes that fit no tile."""


def _resnet18(batch: int) -> tuple[ConvCase, ...]:
    """The CIFAR form, on 32 x 32 pixels."""
    cases, extent, width = [ConvCase("stem", batch, 3, 32, 32, 64)], 32, 64
    cases.append(ConvCase("layer1", batch, 64, extent, extent, 64))
    for index in (2, 3, 4):
        cases += [
            ConvCase(f"layer{index}.0", batch, width, extent, extent, 2 * width, stride=(2, 2)),
            ConvCase(f"layer{index}.down", batch, width, extent, extent, 2 * width, (1, 1), (2, 2), (0, 0)),
        ]
        extent, width = extent // 2, 2 * width
        cases.append(ConvCase(f"layer{index}", batch, width, extent, extent, width))
    return tuple(cases)


RESNET18_32 = {batch: _resnet18(batch) for batch in (128, 256)}
LAYER_REPEATS = {"layer1": 4, "layer2": 3, "layer3": 3, "layer4": 3}
"""How often a named layer stands in ResNet-18; the others stand once."""

CONVNET = {
    batch: (
        ConvCase("conv1", batch, 3, 28, 28, 64, (4, 4), (2, 2)),
        ConvCase("conv2", batch, 64, 14, 14, 128, (4, 4), (2, 2)),
        ConvCase("conv3", batch, 128, 7, 7, 256, (4, 4), (2, 2)),
    )
    for batch in (64, 256)
}
"""DCWP's net for Colored MNIST."""


@dataclass(frozen=True)
class LogitsCase:
    """Outputs of `models` models (0: a plain `[samples, classes]`) on `samples` samples."""

    name: str
    models: int
    samples: int
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.models, self.samples, self.classes)[self.models == 0 :]


ODD_LOGITS = (
    LogitsCase("two classes", 0, 5, 2),
    LogitsCase("ten classes", 0, 33, 10),
    LogitsCase("one sample", 3, 1, 7),
    LogitsCase("one model", 1, 9, 40),
    LogitsCase("not a multiple of 16", 2, 17, 101),
    LogitsCase("eight models", 8, 6, 16),
    LogitsCase("a thousand classes", 2, 3, 1000),
)
LOGITS = (
    LogitsCase("imagenet", 2, 50_000, 1000),
    LogitsCase("celeba", 2, 19_962, 40),
    LogitsCase("runs of ten classes", 1000, 10_000, 10),
)
ODD_OUTPUTS = (
    LogitsCase("two columns", 0, 7, 2),
    LogitsCase("three models", 3, 65, 5),
    LogitsCase("seventeen columns", 2, 300, 17),
    LogitsCase("forty columns", 1, 129, 40),
    LogitsCase("more columns than a tile", 1, 50, 130),
)
OUTPUTS = (
    LogitsCase("celeba", 1, 19_962, 40),
    LogitsCase("imagenet subset", 2, 50_000, 64),
    LogitsCase("runs of ten classes", 1000, 10_000, 10),
)

MASK_LAYERS = {
    "resnet18": (
        *(case.weight_shape for case in RESNET18_32[128] for _ in range(LAYER_REPEATS.get(case.name, 1))),
        (10, 512),
    ),
    "convnet": (*(case.weight_shape for case in CONVNET[64]), (10, 256)),
}
"""Weight shapes of whole networks, for mask sampling."""
ODD_MASK_LAYERS = ((1,), (3, 5), (7, 3, 2, 2), (4096,), (5, 17, 3, 3), (1,))
