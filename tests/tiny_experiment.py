"""A made-up experiment: a narrow network, 48 images of 8 x 8 pixels and three classes; no data is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prunebench.data.images import Images
from prunebench.methods.discovery import builtin_methods
from prunebench.methods.experiment import Experiment, ExperimentContext, Pruned, VisibleSplit, state_of
from prunebench.pruning.masks import keep_count, prunable, verify
from prunebench.results.spec import Recipe, RunSpec

MODEL = "convnet-small@0.2"
DEVICE = torch.device("cpu")


class InMemory:
    """Stages that are kept for one experiment."""

    def shared(self, stage_id: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return compute()


def split(count: int = 48, seed: int = 0, *, groups: bool = False) -> VisibleSplit:
    """Images of three classes; with `groups` also two biases, every (label, bias) group as frequent."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = torch.randint(0, 100, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    x[torch.arange(count), y] += 100
    images = Images(x, mean=(0.4,) * 3, std=(0.25,) * 3, device=DEVICE)
    bias = torch.arange(count) // 3 % 2 if groups else None
    return VisibleSplit(images, y, bias, name="train", needs="train-groups")


def tiny_experiment(name: str, sparsity: float | None = 0.8, **recipe: Any) -> Experiment:
    """Of a built-in method with its own settings."""
    found = builtin_methods()[name]
    budget = {"steps": 30, "finetune_steps": 10, "batch_size": 16, "lr": 2e-3, "finetune_lr": 2e-3}
    spec = RunSpec(
        task="made-up",
        task_version=1,
        data_fingerprint="0",
        model=MODEL,
        method=name,
        method_version=found.version,
        params=tuple(sorted(found.params.items())),
        sparsity=sparsity,
        seed=0,
        recipe=Recipe(**{**budget, "precision": "fp32", **recipe}),
    )

    def dense() -> Mapping[str, Tensor]:
        net, before = experiment.new_model(), experiment.cost.own_steps
        experiment.train(net, steps=spec.recipe.steps, name="dense")
        experiment.cost.own_steps = before
        return state_of(net)

    context = ExperimentContext(InMemory(), dense)  # type: ignore[arg-type]
    train, val = found.supervision == "train-groups", found.supervision in ("val-groups", "train-groups")
    experiment = Experiment(
        spec,
        3,
        split(groups=train),
        split(24, 1, groups=val),
        context,
        supervision=found.supervision,
        val_balanced=split(24, 1, groups=True) if val else None,
    )
    return experiment


def fitted(name: str, sparsity: float | None = 0.8, **settings: Any) -> tuple[Experiment, Pruned]:
    """A built-in method run on the made-up experiment, its masks verified as the harness does."""
    experiment = tiny_experiment(name, sparsity)
    chosen = builtin_methods()[name].with_params(settings)
    pruned = chosen.fit(experiment, 0.0 if sparsity is None else sparsity)
    verify(pruned.model, pruned.masks, sparsity)
    if sparsity is not None:
        weights = prunable(pruned.model).values()
        alive = sum(int((weight != 0).sum()) for weight in weights)
        assert alive == keep_count(sum(weight.numel() for weight in weights), sparsity)
    return experiment, pruned
