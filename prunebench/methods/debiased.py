"""Debiasing with any pruner, `PRUNER+DEBIASER`: the pruner works on a debiased network, with the debiaser's weights.

The pruner runs as it is, but for two things: its dense model is the debiased one, and where it trains with the plain
loss, samples weigh as the debiaser found (`lff`, `disent`, `pw-loss`, `groupdro`, `modad` and `ceag`: in the loss,
`jtt`, `dcwp`, `groupdro`, `modad` and `larreg`: in how often they are drawn). A loss or weights of the pruner's own
stay. Scores that need gradients take those of the plain loss. The debiaser's stage is that of its own method, and
computed once for all pruners. `dfr` alone comes after: it learns the head of the pruned network anew.

A loss that changes as it is used (`groupdro`, `modad`) goes on from training to training of a run; in stages that runs
share, as `imp` has them, it begins as it was found, and leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from prunebench.errors import UsageError, unknown
from prunebench.methods.api import SUPERVISION, Method
from prunebench.methods.ceag import ConstrainedGaps, ceag, lagrangian
from prunebench.methods.dcwp import DebiasedPruning, dcwp
from prunebench.methods.dfr import FeatureReweighting, dfr
from prunebench.methods.disent import Disentangled, disent
from prunebench.methods.experiment import Experiment, ExperimentView, Pruned
from prunebench.methods.groupdro import GroupDRO, groupdro
from prunebench.methods.jtt import JustTrainTwice, find_errors, jtt, retrain, sample_weight
from prunebench.methods.larreg import LowRankDebiasing, larreg
from prunebench.methods.lff import LearningFromFailure, lff
from prunebench.methods.modad import AnomalyDebiasing, drawn_alike, modad
from prunebench.methods.pw_loss import PerformanceWeighted, pw_loss
from prunebench.models import Classifier
from prunebench.pruning.masks import Masks
from prunebench.training.loop import Objective, remembered
from prunebench.training.losses import cross_entropy, weighted_cross_entropy

UPWEIGHT = 50.0
"""Of DCWP's mined samples; published for 1 % of conflicting images, and where nothing is known of their share."""
VERSION = 1


@dataclass(frozen=True)
class Weighting:
    """What a debiaser found: a network's weights (None: the plain dense model), and how samples weigh, `[N]`.

    An `objective` stands in place of the plain loss.
    """

    state: dict[str, Tensor] | None
    in_loss: Tensor | None = None
    in_drawing: Tensor | None = None
    mined: Tensor | None = None
    objective: Objective | None = None
    networks: int = 1
    """What a step with the objective costs, in steps."""


@dataclass(frozen=True)
class Debiaser:
    """A debiasing method as others are composed with it: with its settings, and what it needs to know here.

    `find` runs its stages; `after` is what is done to the pruned network.
    """

    method: Method
    find: Callable[[Experiment, Mapping[str, Any]], Weighting]
    after: Callable[[Experiment, Pruned, Mapping[str, Any]], Pruned] | None = None


def find_weighting(experiment: Experiment, debiaser: str, settings: Mapping[str, Any]) -> Weighting:
    """Run a debiaser's own stages, found under its own name and settings."""
    return DEBIASERS[debiaser].find(experiment, settings)


class StageExperiment(ExperimentView):
    """The same experiment under another method's name: its stages are found there; its cost is this one's."""

    def __init__(self, experiment: Experiment, method: Method, settings: Mapping[str, Any]) -> None:
        params = tuple(sorted(method.with_params(settings).params.items()))
        self.spec = replace(experiment.spec, method=method.name, method_version=method.version, params=params)


def _lff(experiment: Experiment, settings: Mapping[str, Any]) -> Weighting:
    stage = StageExperiment(experiment, lff, settings)
    found = stage.shared("debiased", lambda: LearningFromFailure().debias(stage), owner="lff")
    return Weighting(found, in_loss=found.pop("sample_weights"))


def _jtt(experiment: Experiment, settings: Mapping[str, Any]) -> Weighting:
    chosen = JustTrainTwice(**settings)
    stage = StageExperiment(experiment, jtt, settings)
    wrong = stage.shared("errors", lambda: find_errors(stage, chosen.identify), owner="jtt")["wrong"]
    weight = sample_weight(wrong, chosen.upweight)
    state = stage.shared("retrained", lambda: retrain(stage, weight), owner="jtt")
    return Weighting(state, in_drawing=weight, mined=wrong.bool())


def _dcwp(experiment: Experiment, settings: Mapping[str, Any]) -> Weighting:
    mining = {key: value for key, value in settings.items() if key != "upweight"}
    stage = StageExperiment(experiment, dcwp, mining)
    mined = stage.shared("mined", lambda: DebiasedPruning(**mining).mine(stage), owner="dcwp")["wrong"].bool()
    return Weighting(None, in_drawing=1 + (settings["upweight"] - 1) * mined.float(), mined=mined)


def _pw_loss(experiment: Experiment, settings: Mapping[str, Any]) -> Weighting:
    return Weighting(None, objective=PerformanceWeighted(**settings).objective(experiment))


def _groupdro(experiment: Experiment, settings: Mapping[str, Any]) -> Weighting:
    chosen = GroupDRO(**settings)
    state, robust = chosen.trained(StageExperiment(experiment, groupdro, settings))
    return Weighting(state, in_drawing=chosen.drawing(robust), objective=chosen.objective(robust))


def _modad(experiment: Experiment, settings: Mapping[str, Any]) -> Weighting:
    chosen = AnomalyDebiasing(**settings)
    mined = chosen.mined(StageExperiment(experiment, modad, settings))
    objective = chosen.objective(experiment, mined)
    return Weighting(
        None, in_drawing=drawn_alike(mined), mined=mined, objective=objective, networks=chosen.step_cost
    )


def _disent(experiment: Experiment, settings: Mapping[str, Any]) -> Weighting:
    state = Disentangled(**settings).debiased(StageExperiment(experiment, disent, settings))
    return Weighting(state, in_loss=state.pop("sample_weights"))


def _larreg(experiment: Experiment, settings: Mapping[str, Any]) -> Weighting:
    chosen = LowRankDebiasing(**settings)
    state, mined = chosen.debiased(StageExperiment(experiment, larreg, settings))
    return Weighting(state, in_drawing=chosen.drawing(mined), mined=mined)


def _ceag(experiment: Experiment, settings: Mapping[str, Any]) -> Weighting:
    return Weighting(None, objective=lagrangian(ConstrainedGaps(**settings).constraints(experiment)))


def _constraints_alone() -> Method:
    """CEAG without its own pruning."""
    own = {key: value for key, value in ceag.settings.items() if key not in ("pruning", "events")}
    return replace(ceag, settings=own)


def _mining_alone() -> Method:
    """DCWP's mining with an upweight of its own: the share of conflicting images need not be known."""
    own = {key: value for key, value in dcwp.settings.items() if key.startswith("mining")}
    return replace(
        dcwp,
        supervision="none",
        settings={**own, "upweight": UPWEIGHT},
        build=lambda upweight, **mining: DebiasedPruning(**mining),
    )


DEBIASERS: Mapping[str, Debiaser] = {
    "lff": Debiaser(lff, _lff),
    "jtt": Debiaser(jtt, _jtt),
    "dcwp": Debiaser(_mining_alone(), _dcwp),
    "pw-loss": Debiaser(pw_loss, _pw_loss),
    "dfr": Debiaser(
        dfr,
        lambda experiment, settings: Weighting(None),
        lambda experiment, pruned, settings: FeatureReweighting(**settings).reweighted(experiment, pruned),
    ),
    "groupdro": Debiaser(groupdro, _groupdro),
    "modad": Debiaser(modad, _modad),
    "disent": Debiaser(disent, _disent),
    "larreg": Debiaser(larreg, _larreg),
    "ceag": Debiaser(_constraints_alone(), _ceag),
}


class DebiasedExperiment(ExperimentView):
    """An experiment whose dense model is debiased, and whose samples weigh as a debiaser found.

    Args:
        experiment: that of the composition.
        weighting: what the debiaser found.
        key: its name and settings: what the pruner shares between runs is theirs alone.
    """

    def __init__(self, experiment: Experiment, weighting: Weighting, key: Mapping[str, Any]) -> None:
        self._weighting, self._key = weighting, key
        self._as_found = remembered(weighting.objective)

    def shared(
        self,
        name: str,
        compute: Callable[[], dict[str, Tensor]],
        *,
        owner: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        own = dict(self.spec.params if params is None else params)

        def as_found() -> dict[str, Tensor]:
            """Whether a stage runs or was kept, a loss that changes as it is used is the same in and after it."""
            as_before = remembered(self._weighting.objective)
            self._as_found()
            tensors = compute()
            as_before()
            return tensors

        return super().shared(name, as_found, owner=owner, params={**own, "debiaser": self._key})

    def dense_model(self) -> Classifier:
        state = self._weighting.state
        return super().dense_model() if state is None else self.model_from(state)

    def train(self, model: nn.Module, *, name: str, **settings: Any) -> Masks:  # type: ignore[override]
        plain = settings.get("objective", cross_entropy) is cross_entropy
        if plain and settings.get("sample_weight") is None:
            settings["sample_weight"] = self._weighting.in_drawing
            if self._weighting.objective is not None:
                settings["objective"] = self._weighting.objective
                settings["networks"] = self._weighting.networks
            elif self._weighting.in_loss is not None:
                settings["objective"] = weighted_cross_entropy(self._weighting.in_loss)
        return super().train(model, name=name, **settings)


@dataclass(frozen=True)
class Debiased:
    """Runs `base` on a debiased network."""

    base: Method
    debiaser: str
    settings: Mapping[str, Any]

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        weighting = find_weighting(experiment, self.debiaser, self.settings)
        if weighting.mined is not None:
            experiment.report_mining(weighting.mined)
        inner = DebiasedExperiment(experiment, weighting, {"name": self.debiaser, **self.settings})
        pruned = self.base.build(**self.base.params).fit(inner, sparsity)
        after = DEBIASERS[self.debiaser].after
        return pruned if after is None else after(experiment, pruned, self.settings)


def debiased(base: Method, debiaser: str) -> Method:
    """`base` after a debiaser. Its settings are those of both, the debiaser's behind its name: `jtt_upweight`.

    Raises UsageError for an unknown debiaser, and for a base that prunes nothing or debiases itself.
    """
    if debiaser not in DEBIASERS:
        raise unknown("debiaser", debiaser, DEBIASERS)
    if base.dense or base.unpruned or base.name in DEBIASERS or base.name == "jtt-tuned" or "+" in base.name:
        raise UsageError(f"{base.name}+{debiaser}: {base.name} is no pruner to debias beforehand")
    other = DEBIASERS[debiaser].method
    defaults = {f"{debiaser}_{key}": value for key, value in other.settings.items()}

    def split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        own = {key: value for key, value in settings.items() if key not in defaults}
        return own, {key.removeprefix(f"{debiaser}_"): settings.get(key, defaults[key]) for key in defaults}

    def build(**params: Any) -> Debiased:
        own, chosen = split(params)
        pruner = base.with_params(own)
        pruner.build(**pruner.params)  # a wrong setting is found before anything is trained
        other.build(**chosen)
        return Debiased(pruner, debiaser, chosen)

    def relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
        own, chosen = split(settings)
        return {**base.relevant(own), **{f"{debiaser}_{key}": value for key, value in chosen.items()}}

    return replace(
        base,
        name=f"{base.name}+{debiaser}",
        cite=f"{base.cite}; before it: {other.cite.partition(';')[0]}"[:300],
        supervision=max(base.supervision, other.supervision, key=SUPERVISION.index),
        version=f"{base.version}-{other.version}-{VERSION}",
        build=build,
        relevant=relevant,
        settings={**base.settings, **defaults},
        choices={},
        multi_label=False,
    )
