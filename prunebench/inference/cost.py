"""Parameters and multiply-accumulates of a network, counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.inference_mode()
def count_macs(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-accumulates of one image through convolutions and linear layers: all, and of non-zero weights.

    x: one image `[1, C, H, W]`.
    """
    totals = [0, 0]

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        positions = output.shape[2:].numel() if isinstance(module, nn.Conv2d) else 1
        totals[0] += positions * module.weight.numel()
        totals[1] += positions * int(torch.count_nonzero(module.weight))

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model.eval()
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return totals[0], totals[1]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those that are not zero (pruned weights are; BatchNorm and biases count as they are)."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    zeros = sum(layer.weight.numel() - int(torch.count_nonzero(layer.weight)) for layer in layers)
    total = sum(values.numel() for values in model.parameters())
    return total, total - zeros
