"""Just Train Twice, then magnitude pruning with the upweighted loss.

An early-stopped net marks the training samples that it gets wrong; a second net trains from scratch with
those upweighted, is pruned by magnitude and fine-tuned with the same weights. The released code appends the marked
samples `upweight` times to the data, so each of them weighs 1 + `upweight`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.models import Classifier

LIU = "Liu et al., 2021 (Just Train Twice)"


@dataclass(frozen=True)
class JustTrainTwice:
    """The paper tunes both settings on validation images of known groups; here they are fixed."""

    identify: float = 0.25
    """Share of the training steps after which the first net marks its errors."""
    upweight: float = 20.0

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        wrong = experiment.shared("errors", lambda: find_errors(experiment, self.identify), owner="jtt")[
            "wrong"
        ]
        weight = sample_weight(wrong, self.upweight)
        state = experiment.shared("retrained", lambda: retrain(experiment, weight), owner="jtt")
        return _prune(experiment, sparsity, state, wrong, self.upweight)


@dataclass(frozen=True)
class TunedJustTrainTwice:
    """Both settings from a grid, by the worst group of balanced validation and then by the mean of its groups."""

    identify: Sequence[float] = (0.125, 0.25, 0.5)
    upweight: Sequence[float] = (5.0, 20.0, 50.0)

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        found = experiment.shared("tuned", lambda: self._tune(experiment))
        identify, upweight = found.pop("chosen").tolist()
        experiment.log(identify=identify, upweight=upweight)
        return _prune(experiment, sparsity, found, found.pop("wrong"), upweight)

    def _tune(self, experiment: Experiment) -> dict[str, Tensor]:
        best: tuple[tuple[float, float], dict[str, Tensor]] | None = None
        for identify in self.identify:
            wrong = find_errors(experiment, identify)["wrong"]
            for upweight in self.upweight:
                state = retrain(experiment, sample_weight(wrong, upweight))
                merit = _worst_and_mean_group(experiment, experiment.model_from(state))
                if best is None or merit > best[0]:
                    chosen = torch.tensor([identify, upweight], dtype=torch.float64)
                    best = merit, {**state, "wrong": wrong, "chosen": chosen}
        if best is None:
            raise ValueError("identify and upweight: want at least one value each")
        return best[1]


def sample_weight(wrong: Tensor, upweight: float) -> Tensor:
    """How often a sample counts, `[N]`: once, and `upweight` times more where it was marked (bool or uint8 `[N]`)."""
    return 1 + upweight * wrong.float()


def find_errors(experiment: Experiment, identify: float) -> dict[str, Tensor]:
    """Which samples a net stopped early gets wrong: uint8 `[N]` as `wrong`."""
    model, steps = experiment.new_model(), experiment.recipe.steps
    experiment.train(model, steps=steps, name="dense", stop_after=max(round(identify * steps), 1))
    wrong = experiment.predict(model).argmax(1) != experiment.train_split.y
    return {"wrong": wrong.byte()}


def retrain(experiment: Experiment, weight: Tensor) -> dict[str, Tensor]:
    """The weights of a net trained from scratch on samples drawn in proportion to `weight` `[N]`."""
    model = experiment.new_model()
    experiment.train(model, steps=experiment.recipe.steps, name="upweighted", sample_weight=weight)
    return state_of(model)


def _prune(
    experiment: Experiment, sparsity: float, state: dict[str, Tensor], wrong: Tensor, upweight: float
) -> Pruned:
    experiment.report_mining(wrong.bool())
    model = experiment.model_from(state)
    masks = experiment.prune(model, sparsity)
    return experiment.finetune(model, masks, sample_weight=sample_weight(wrong, upweight))


def _worst_and_mean_group(experiment: Experiment, model: Classifier) -> tuple[float, float]:
    """Accuracy of the worst (label, bias) group of balanced validation, and the mean over its groups."""
    split = experiment.val_balanced
    right = (experiment.predict_balanced(model).argmax(1) == split.y).double()
    _, group = torch.unique(torch.stack([split.y, split.bias], dim=1), dim=0, return_inverse=True)
    accuracy = torch.zeros(int(group.max()) + 1, dtype=torch.float64, device=group.device)
    accuracy = accuracy.index_add(0, group, right) / torch.bincount(group)
    return float(accuracy.min()), float(accuracy.mean())


UNTUNED = f"{LIU}, its settings T and lambda untuned"
jtt = method("jtt", cite=f"{UNTUNED}; pruned by magnitude", version=2)(JustTrainTwice)
jtt_dense = method("jtt-dense", cite=f"{UNTUNED}; not pruned", version=2, unpruned=True)(JustTrainTwice)
jtt_tuned = method(
    "jtt-tuned",
    cite=f"{LIU}, T and lambda tuned on validation images of known groups; pruned by magnitude",
    version=2,
    supervision="val-groups",
)(TunedJustTrainTwice)
