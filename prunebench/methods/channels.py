"""Removal of channels: a narrower network without those that score least."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunebench.errors import MaskError
from prunebench.inference.cost import count_macs
from prunebench.methods.experiment import Experiment
from prunebench.models import Classifier
from prunebench.pruning.channels import FreeChannels, free_channels
from prunebench.pruning.wrapped import state_of


def without_channels(
    experiment: Experiment, model: Classifier, kept: Mapping[FreeChannels, Tensor]
) -> Classifier:
    """The network without channels, its outputs those of one in which they are zero.

    Args:
        experiment: builds the narrower network.
        model: of the task.
        kept: bool `[channels]` of each layer whose channels go.
    """
    state = state_of(model)
    for free, mask in kept.items():
        rows, channels = mask.cpu(), len(mask)
        for name in (free.layer, *free.beside):
            for field in ("weight", "bias", "running_mean", "running_var"):
                key = f"{name}.{field}"
                if key in state:
                    state[key] = state[key][rows]
        for name in free.readers:
            weight = state[f"{name}.weight"]
            positions = weight.shape[1] // channels  # of a flattened map, one after another
            state[f"{name}.weight"] = weight[:, rows.repeat_interleave(positions)]
    return experiment.model_from(state)


def remove_channels(
    experiment: Experiment,
    model: Classifier,
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    uniform: bool = False,
) -> Classifier:
    """The network without the channels that score least, so that the asked share of multiply-accumulates is gone.

    Args:
        experiment: builds the narrower network.
        model: of the task.
        scores: of every weight, by name; a channel is worth the mean of its filter's.
        sparsity: the share of multiply-accumulates to remove.
        uniform: as large a share of every layer's channels, rather than the least of all.

    Returns:
        A network whose multiply-accumulates are the nearest from below that whole channels allow.

    Raises:
        MaskError: where no such network exists: one channel of each layer stays.
    """
    groups = free_channels(model)
    worth = {free: scores[f"{free.layer}.weight"].double().flatten(1).mean(1).cpu() for free in groups}
    order: list[tuple[float, int, int]] = []
    for at, free in enumerate(groups):
        rank = worth[free].argsort(stable=True)[:-1].tolist()  # the best one stays
        order += [
            ((place + 1) / len(worth[free]) if uniform else float(worth[free][channel]), at, channel)
            for place, channel in enumerate(rank)
        ]
    order.sort()
    x = experiment.train_split.images.batch(slice(0, 1))
    wanted = (1 - sparsity) * count_macs(experiment.model_from(state_of(model)), x)[0]

    def narrower(count: int) -> Classifier:
        kept = {free: torch.ones(len(values), dtype=torch.bool) for free, values in worth.items()}
        for _, at, channel in order[:count]:
            kept[groups[at]][channel] = False
        return without_channels(experiment, model, kept)

    low, high = 0, len(order)
    if not order or count_macs(narrower(high), x)[0] > wanted:
        raise MaskError(
            f"removing channels cannot remove {sparsity:g} of this network's multiply-accumulates"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count_macs(narrower(middle), x)[0] <= wanted else (middle + 1, high)
    return narrower(high)
