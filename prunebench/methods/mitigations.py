"""Mitigations of the bias of a pruned network, applied after it: calibrate its outputs, or ask the dense one.

Both start from the network that their base method returns with the same settings, bit for bit, so that a row is to be
compared with the base's; and both use validation images and labels only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunebench.inference.cascade import Deferral, check_share, confidence_margin
from prunebench.methods.api import Method, Procedure
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.methods.magnitude import gmp_pt, magnitude
from prunebench.methods.prune import prune_by
from prunebench.metrics.calibration import calibrated_thresholds, class_offsets

IOFINOVA = "Iofinova et al., 2023 (Bias in pruned vision models, countermeasures)"
VERSION = 2
"""Of the countermeasures; a method's version is that of its base followed by these two digits."""
MASK = "mask/"


@dataclass(frozen=True)
class Calibrated:
    """Shifts the head's bias so that the network predicts each answer as often on validation as it is true.

    Attributes: the calibrated threshold t_j becomes 0 (bias_j - t_j); an attribute that is always or never positive
    in validation is left alone. Classes: `class_offsets` are added. Weights, masks and cost stay the base's. Logged:
    how many validation predictions the shift changed (`calibration_changed`), how many would still have to change
    for the frequencies to be the labels' (`calibration_off`; 0 but for ties and rounding; the stored float16 logits of
    classes can round across a border), and how many attributes or classes validation says nothing of
    (`calibration_left_alone`).
    """

    base: Method

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        pruned = _prune(experiment, self.base, sparsity)
        head, y = pruned.model.head, experiment.val_split.y.cpu()
        before = experiment.predict_validation(pruned.model).cpu()
        shift, possible = _shift(before, y)
        with torch.no_grad():
            head.bias.copy_((head.bias.double() + shift.to(head.bias.device)).to(head.bias.dtype))
        after = experiment.predict_validation(pruned.model).cpu()
        multi_label = y.ndim == 2
        experiment.log(
            calibration_changed=int((_answers(before, multi_label) != _answers(after, multi_label)).sum()),
            calibration_off=_misplaced(after, y, possible),
            calibration_left_alone=int((~possible).sum()),
        )
        return pruned


def _shift(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What to add to the logits `[N, outputs]`, float64 `[outputs]`, and which outputs it calibrates, bool."""
    if y.ndim == 2:
        thresholds = calibrated_thresholds(logits, y)
        possible = torch.isfinite(thresholds) & (y != y[:1]).any(0)
        return torch.where(possible, -thresholds, 0.0), possible
    return class_offsets(logits, y), torch.bincount(y, minlength=logits.shape[1]) > 0


def _answers(logits: Tensor, multi_label: bool) -> Tensor:
    """Predictions: which attributes are positive, bool `[N, K]`, or the likeliest class, int64 `[N]`."""
    return logits > 0 if multi_label else logits.argmax(1)


def _misplaced(logits: Tensor, y: Tensor, possible: Tensor) -> int:
    """Predictions that would have to change for the frequencies of the calibrated outputs to be the labels'."""
    if y.ndim == 2:
        return int((_answers(logits, True).sum(0) - y.long().sum(0))[possible].abs().sum())
    predicted, wanted = (
        torch.bincount(values, minlength=logits.shape[1]) for values in (_answers(logits, False), y)
    )
    return int((predicted - wanted).abs().sum()) // 2


@dataclass(frozen=True)
class Deferred:
    """Lets the dense model answer for the samples on which the pruned one is least sure.

    `share` of the validation samples are deferred; the threshold of `cascade.confidence_margin` that does so holds for
    test samples too, whatever share of them it defers (`deferred_share_test` of the record). It needs the dense model
    to answer, so it is not ranked with what was pruned.
    """

    base: Method
    share: float = 0.1

    def __post_init__(self) -> None:
        check_share(self.share)

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        pruned = _prune(experiment, self.base, sparsity)
        multi_label = experiment.val_split.y.ndim == 2
        sure = confidence_margin(experiment.predict_validation(pruned.model), multi_label=multi_label)
        return Pruned(pruned.model, pruned.masks, Deferral.of_share(sure, self.share))


def _prune(experiment: Experiment, base: Method, sparsity: float) -> Pruned:
    """What the base method returns: computed once for all countermeasures, and charged to each."""

    def prune() -> dict[str, Tensor]:
        made = base.build(**base.params).fit(experiment, sparsity)
        return state_of(made.model) | {MASK + name: mask for name, mask in made.masks.items()}

    stage = f"pruned to {sparsity!r}"
    tensors = experiment.shared(stage, prune, owner=f"{base.name} {base.version}", params=base.params)
    masks = {name.removeprefix(MASK): mask for name, mask in tensors.items() if name.startswith(MASK)}
    weights = {name: value for name, value in tensors.items() if not name.startswith(MASK)}
    return Pruned(experiment.model_from(weights), masks)


def mitigation(
    name: str,
    base: Method,
    procedure: Callable[..., Procedure],
    settings: Mapping[str, Any],
    *,
    ranked: bool = True,
) -> Method:
    """The method that applies `procedure(base, **settings)`; the base's settings are settings of it too."""

    def build(**params: Any) -> Procedure:
        own = {key: params.pop(key) for key in settings}
        chosen = base.with_params(params)
        chosen.build(**chosen.params)  # a wrong setting is found before anything is trained
        return procedure(chosen, **own)

    def relevant(chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        of_base = {key: value for key, value in chosen.items() if key not in settings}
        return {**base.relevant(of_base), **{key: chosen[key] for key in settings}}

    return Method(
        name,
        f"suggested by {IOFINOVA}; pruning: {base.cite}",
        base.supervision,
        f"{base.version}{VERSION:02}",
        build,
        {**base.settings, **settings},
        relevant=relevant,
        multi_label=base.multi_label,
        ranked=ranked,
    )


magnitude_calibrated = mitigation("magnitude-calibrated", prune_by(magnitude), Calibrated, {})
gmp_pt_calibrated = mitigation("gmp-pt-calibrated", gmp_pt, Calibrated, {})
magnitude_deferred = mitigation(
    "magnitude-deferred", prune_by(magnitude), Deferred, {"share": 0.1}, ranked=False
)
gmp_pt_deferred = mitigation("gmp-pt-deferred", gmp_pt, Deferred, {"share": 0.1}, ranked=False)
