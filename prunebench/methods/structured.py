"""Removal of coupled channels: the procedure behind every structured method, which leaves a narrower dense network.

The sparsity asked for is the share of multiply-accumulates to remove; units of coupled channels go in the order of
their worth until the network's multiply-accumulates are nearest to what is asked. One unit of each group stays. The
record has the asked share, the removed one (`removed_macs`) and the share of weights that is gone. Methods differ in
`worth`; their papers leave the channels of residual sums alone (`coupled=False` does), which bounds what can be
removed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunebench.errors import MaskError
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.models import Classifier
from prunebench.pruning.coupling import Coupling, coupled_channels, slice_state
from prunebench.pruning.masks import Masks, whole_masks
from prunebench.results.record import removal_problem


@dataclass(frozen=True)
class RemoveChannels(ABC):
    """`distribution`: as large a share of every group's units (`uniform`), or the least worth of all (`global`)."""

    distribution: Literal["uniform", "global"] = "uniform"
    coupled: bool = True
    """Whether channels that are added to others go too, together with those."""
    recalibrate: int = 0
    """Training batches from which BatchNorm's statistics are taken anew at the end."""

    @abstractmethod
    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        """What each unit is worth, `[units]`; the least worth go first."""

    def start(self, experiment: Experiment) -> Classifier:
        """The trained network that channels are removed from."""
        return experiment.dense_model()

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = self.start(experiment)
        coupling = coupled_channels(model)
        order = self._order(coupling, self.worth(experiment, model, coupling))
        x = experiment.train_split.images.batch(slice(0, 1))
        kept = nearest(model, coupling, order, sparsity, x)
        narrow = experiment.model_from(slice_state(state_of(model), coupling, kept))
        masks = whole_masks(narrow)
        self.heal(experiment, narrow, masks)
        if self.recalibrate:
            experiment.recalibrate(narrow, batches=self.recalibrate)
        return Pruned(narrow, masks, structured=True)

    def heal(self, experiment: Experiment, narrow: Classifier, masks: Masks) -> None:
        """Fine-tune what is left, in place."""
        experiment.finetune(narrow, masks)

    def _order(self, coupling: Coupling, worth: Tensor) -> Tensor:
        return removal_order(coupling, worth, uniform=self.distribution == "uniform", coupled=self.coupled)


def removal_order(coupling: Coupling, worth: Tensor, *, uniform: bool, coupled: bool = True) -> Tensor:
    """The numbers of the units in the order in which they go; the best one of each group is not among them."""
    if worth.shape != (coupling.count,) or torch.isnan(worth).any():
        raise MaskError(f"worth of channels: want {coupling.count} numbers, got {tuple(worth.shape)} or nan")
    allowed = torch.ones(coupling.count, dtype=torch.bool) if coupled else ~coupling.added
    key = worth.double().cpu().clone()
    for group in coupling.groups.unique():
        members = torch.nonzero((coupling.groups == group) & allowed).flatten()
        ranked = members[key[members].argsort(stable=True)]
        if uniform:
            key[ranked] = torch.arange(1, len(ranked) + 1, dtype=torch.float64) / max(len(ranked), 1)
        allowed[ranked[-1:]] = False
    units = torch.nonzero(allowed).flatten()
    return units[key[units].argsort(stable=True)]


def nearest(model: nn.Module, coupling: Coupling, order: Tensor, sparsity: float, x: Tensor) -> Tensor:
    """The units that stay, bool `[units]`, so that the multiply-accumulates left are nearest to those asked for.

    Args:
        model: the whole network.
        coupling: its units.
        order: in which they go.
        sparsity: the share of multiply-accumulates to remove.
        x: one image `[1, C, H, W]`.

    Raises:
        MaskError: where the nearest is too far, by the harness's rule.
    """
    positions = output_positions(model, x)
    whole = torch.ones(coupling.count, dtype=torch.bool)
    dense = macs_left(model, coupling, positions, whole)

    def without(count: int) -> Tensor:
        kept = whole.clone()
        kept[order[:count]] = False
        return kept

    def left(count: int) -> int:
        return macs_left(model, coupling, positions, without(count))

    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(middle) > (1 - sparsity) * dense else (low, middle)
    count = min((low, high), key=lambda each: abs(left(each) - (1 - sparsity) * dense))
    problem = removal_problem(sparsity, 1 - left(count) / dense)
    if problem is not None:
        raise MaskError(problem)
    return without(count)


@torch.no_grad()
def output_positions(model: nn.Module, x: Tensor) -> dict[str, int]:
    """How often each convolution's and linear layer's weights are used for one image, by the layer's name."""
    found: dict[str, int] = {}
    layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}

    def watch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def look(_: nn.Module, __: object, output: Tensor) -> None:
            found[name] = found.get(name, 0) + output.numel() // layers[name].weight.shape[0]

        return look

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    training = model.training
    model.eval()(x)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return found


def macs_left(model: nn.Module, coupling: Coupling, positions: dict[str, int], kept: Tensor) -> int:
    """Multiply-accumulates of one image with the units that stay."""
    total = 0
    for name, times in positions.items():
        out, inner, *taps = model.get_parameter(f"{name}.weight").shape
        rows, columns = coupling.rows(name, kept), coupling.columns(name, kept)
        high = out if rows is None else int(rows.sum())
        wide = inner if columns is None else int(columns.sum())
        total += times * high * wide * torch.Size(taps).numel()
    return total
