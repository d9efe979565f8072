"""The unpruned references: the dense network with the steps of a pruned one, with those of the dearest, and narrow.

A pruned network is trained longer than the dense model that it begins from, and more steps alone change what a network
says of its minorities. So a pruned network is compared with an unpruned one of as many steps, or of as many products.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunebench.inference.cost import narrowed_to
from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.methods.imp import IterativeMagnitude
from prunebench.methods.magnitude import magnitude
from prunebench.methods.prune import prune_by
from prunebench.models import build_model
from prunebench.pruning.masks import whole_masks

dense_finetuned = prune_by(
    magnitude,
    "dense-finetuned",
    cite="reference: the steps of a pruned network, nothing pruned",
    unpruned=True,
)
dense_from_init = prune_by(
    magnitude,
    "dense-from-init",
    cite="reference: the steps of a network pruned at or from initialisation, nothing pruned",
    unpruned=True,
    start="init",
)


@method(
    "dense-long",
    cite="reference: one schedule as long as iterative magnitude pruning takes, nothing pruned",
    multi_label=True,
    unpruned=True,
    ranked=False,
)
@dataclass(frozen=True)
class DenseLong:
    """From initialisation, in one schedule, as many steps as `imp` takes in all to reach a sparsity.

    `imp` is the dearest of the methods here but for a search (`jtt-tuned`), and what it takes is known beforehand
    (`IterativeMagnitude.training_steps`). Where a suite has `imp` prune more in a round, `imp_rate` says so.
    """

    as_imp_at: float = 0.9
    imp_rate: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.as_imp_at < 1:
            raise ValueError(f"as_imp_at: want a sparsity in [0, 1), got {self.as_imp_at:g}")
        if not 0 < self.imp_rate < 1:
            raise ValueError(f"imp_rate: want a share between 0 and 1, got {self.imp_rate:g}")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = experiment.new_model()
        steps = IterativeMagnitude(self.imp_rate).training_steps(experiment.recipe, self.as_imp_at)
        experiment.train(model, steps=steps, name="dense")
        return Pruned(model, whole_masks(model))


@method(
    "dense-small",
    cite="reference: a network as narrow as costs what is asked for, trained from scratch",
    multi_label=True,
    ranked=False,
)
class DenseSmall:
    """All layers narrowed alike, so that the multiply-accumulates are those that the asked sparsity would leave.

    From initialisation, with the steps of training and fine-tuning together.
    """

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        height, width = experiment.train_split.images.batch(slice(0, 1)).shape[2:]
        name = narrowed_to(experiment.spec.model, 1 - sparsity, experiment.num_classes, (height, width))
        drawn = build_model(name, experiment.num_classes, seed=experiment.seed)
        model = experiment.model_from(state_of(drawn))
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps
        experiment.train(model, steps=steps, name="dense")
        return Pruned(model, whole_masks(model), structured=True)
