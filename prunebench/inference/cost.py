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


def narrowed_to(name: str, share: float, num_classes: int, size: tuple[int, int]) -> str:
    """The name of the model whose multiply-accumulates are nearest to a share of those of `name`, by its width.

    Widths are thousandths (`resnet8@0.316`): a dense network that costs what a pruned one would.

    Args:
        name: a model that can be widened (see `models.widened`).
        share: of the multiply-accumulates, in (0, 1].
        num_classes: outputs.
        size: height and width of the images.
    """
    from prunebench.models import build_model, widened

    x = torch.zeros(1, 3, *size)

    def macs_at(thousandths: int) -> int:
        return count_macs(build_model(widened(name, thousandths / 1000), num_classes, seed=0), x)[0]

    wanted, low, high = share * macs_at(1000), 10, 1000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if macs_at(middle) <= wanted else (low, middle)
    return widened(name, min((low, high), key=lambda each: abs(macs_at(each) - wanted)) / 1000)
