"""ResNet-18 for the benchmarks, and a convolution that makes its masked weight as one does without a kernel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + shortcut)


def resnet18(classes: int, width: int = 64) -> nn.Sequential:
    """ResNet-18 with the CIFAR stem, from a fixed seed; with `width` 64 the shapes of `cases.RESNET18_32`.

    Written out here so that the GPU machine needs torch alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks: list[nn.Module] = []
        inputs = width
        for stage, outputs in enumerate((width, 2 * width, 4 * width, 8 * width)):
            for index in range(2):
                blocks.append(BasicBlock(inputs, outputs, 2 if stage and not index else 1))
                inputs = outputs
        stem = (nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        return nn.Sequential(
            *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
        )


def conv_names(net: nn.Module) -> dict[str, Tensor]:
    """The convolutions' weights by parameter name, in the order of the network."""
    return {
        f"{name}.weight": module.weight
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d)
    }


class MaterialisedConv2d(nn.Conv2d):
    """The baseline: weight * mask is made anew, in full precision, at every call."""

    mask: Tensor

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> MaterialisedConv2d:
        """A masked layer that shares `conv`'s parameters."""
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            bias=False,
        )
        made.weight = conv.weight
        made.register_buffer("mask", torch.ones_like(conv.weight.detach()))
        return made

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * self.mask, None, self.stride, self.padding)


def replace_convolutions(net: nn.Module, kind: type, masks: Mapping[str, Tensor]) -> nn.Module:
    """The network with every convolution turned into `kind` (by its `from_conv`), masks set; changed in place."""
    for name, conv in [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]:
        made = kind.from_conv(conv)  # type: ignore[attr-defined]
        made.mask = masks[f"{name}.weight"].to(conv.weight.device)
        owner, _, last = name.rpartition(".")
        setattr(net.get_submodule(owner), last, made)
    return net
