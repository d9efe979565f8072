"""Parameters and multiply-accumulates of a network, counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_macs(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-accumulates of one image through every product of the network: all, and of non-zero weights.

    Counted by torch's own formulas (`torch.utils.flop_counter`): convolutions of any kind, linear layers over all
    their positions, attention with its projections. Products of activations with each other have no weights that
    could be zero: they count in both.

    Args:
        model: the network; it is put into evaluation mode.
        x: one image `[1, C, H, W]`.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    counter = _ProductCounter(weights)
    model.eval()
    with torch.enable_grad(), counter:  # the fused attention of inference is opaque to a count
        model(x.detach().requires_grad_() * 1)
    return counter.macs, counter.nonzero_macs


class _ProductCounter(TorchDispatchMode):
    """Adds up the multiply-accumulates of every operation; `weights` are the storages of the parameters."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self._weights = weights
        self.macs, self.nonzero_macs = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            macs = formula(*args, **(kwargs or {}), out_val=output) // 2
            self.macs += macs
            self.nonzero_macs += round(macs * self._density(args))
        return output

    def _density(self, operands: Any) -> float:
        """The share of non-zero entries of the operand that is a weight; 1 where none is."""
        for operand in operands:
            if isinstance(operand, Tensor) and self._is_weight(operand):
                return int(torch.count_nonzero(operand)) / operand.numel()
        return 1.0

    def _is_weight(self, operand: Tensor) -> bool:
        return operand.ndim > 1 and operand.untyped_storage().data_ptr() in self._weights


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those that are not zero (zeros of weights count; BatchNorm and biases stand as they are)."""
    parameters = list(model.parameters())
    zeros = sum(weight.numel() - int(torch.count_nonzero(weight)) for weight in parameters if weight.ndim > 1)
    total = sum(values.numel() for values in parameters)
    return total, total - zeros
