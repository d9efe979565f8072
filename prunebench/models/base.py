"""The contract of a network: penultimate features and logits; and the memory format that it trains in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A body that ends in pooled features `[N, F]`, and a linear head `[N, C]`."""

    def __init__(self, body: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features `[N, F]` of images `[N, 3, H, W]`."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def scaled(channels: int, width: float) -> int:
    """Channels times a width multiplier, at least one; halves are rounded up."""
    return max(int(channels * width + 0.5), 1)


def contiguous(net: Classifier) -> Classifier:
    """The network with weights that lie as their shape says, in place."""
    for value in [*net.parameters(), *net.buffers()]:
        value.data = value.data.contiguous()
    return net


@contextlib.contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """The model's 4-D weights that train in channels_last, and afterwards as they were; frozen ones may be cached."""
    values = [value for value in model.parameters() if value.ndim == 4 and value.requires_grad]
    moved = [value for value in values if not value.is_contiguous(memory_format=torch.channels_last)]
    for value in moved:
        value.data = value.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for value in moved:
            value.data = value.data.contiguous()
