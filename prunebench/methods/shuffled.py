"""The control of a mask: the same method with its final masks shuffled within each layer.

What a method learned is *which* weights stay, if it beats as many weights of every layer at random places. The base
method runs as it is; its final masks are shuffled; and the network that it returned is made again from what it was
before the first mask was held in it (the dense model, the initial or the rewound weights, a debiased net), trained by
the very calls that trained it under masks (steps, order of samples, loss, weights of samples, learning rate), the
shuffled masks held from the first of them to the last. A gradual schedule so becomes one shot with as many steps, and a
method that looks for its masks several times is asked for the last ones alone. The cost is that of both trainings.

After Frankle et al. (2021) and Su et al. (2020), who shuffle the masks of pruning at initialisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prunebench.errors import UsageError
from prunebench.methods.api import Method, Procedure
from prunebench.methods.dcwp import dcwp
from prunebench.methods.experiment import Experiment, ExperimentView, Pruned, state_of
from prunebench.models import Classifier
from prunebench.pruning.masks import Masks, apply_masks, shuffled
from prunebench.pruning.wrapped import bare_network
from prunebench.training.loop import remembered

VERSION = 1


@dataclass(frozen=True)
class Shuffled:
    """Runs `base`, and then the network that it returned again under its masks, shuffled."""

    base: Method

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        watched = WatchedExperiment(experiment, self.base)
        pruned = self.base.build(**self.base.params).fit(watched, sparsity)
        experiment.mined = watched.mined
        if pruned.deferral is not None or pruned.structured:
            raise UsageError(
                f"shuffled:{self.base.name}: masks of a deferring or structured result say too little"
            )
        start, trainings = watched.history(pruned.model)
        gone = torch.cat([start[name][~mask.cpu()] for name, mask in pruned.masks.items()])
        if len(gone) and not gone.any():
            raise UsageError(
                f"shuffled:{self.base.name}: the weights that it begins from are pruned already, so what they were "
                "before is not known"
            )
        model, masks = experiment.model_from(start), shuffled(pruned.masks, experiment.rng("shuffle"))
        apply_masks(model, masks)
        for train in trainings:
            train(experiment, model, masks)
        return Pruned(model, masks)


Replay = Callable[[Experiment, Classifier, Mapping[str, Tensor]], None]


class WatchedExperiment(ExperimentView):
    """An experiment of the base method that remembers how each network came to be.

    Stages are found under the base method's name, so that both share them.
    """

    def __init__(self, experiment: Experiment, base: Method) -> None:
        params = tuple(sorted(base.params.items()))
        self.spec = replace(experiment.spec, method=base.name, method_version=base.version, params=params)
        self._base = base.name
        self._starts: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()
        self._replays: WeakKeyDictionary[nn.Module, list[Replay]] = WeakKeyDictionary()

    def new_model(self, purpose: str | None = None) -> Classifier:
        return self._begun(super().new_model(purpose))

    def model_from(self, state: Mapping[str, Tensor]) -> Classifier:
        return self._begun(super().model_from(state))

    def _begun(self, net: Classifier) -> Classifier:
        """Remember the weights of a network as they are before any mask."""
        self._starts[net] = {name: value.clone() for name, value in state_of(net).items()}
        self._replays[net] = []
        return net

    def train(self, model: nn.Module, *, name: str, **settings: Any) -> Masks:  # type: ignore[override]
        restore = remembered(settings.get("objective"))
        final = super().train(model, name=name, **settings)
        net = bare_network(model)
        held = settings.pop("masks", None), settings.pop("after_step", None)
        if net in self._starts and held == (None, None):
            self._begun(net)  # type: ignore[arg-type]
            return final
        stream = self.last_stream(net, name)

        def replay(experiment: Experiment, again: Classifier, masks: Mapping[str, Tensor]) -> None:
            restore()
            experiment.train(again, name=stream, masks=masks, **settings)

        for part in net.modules():
            if part in self._starts:
                self._replays[part].append(replay if part is net else self._refuse)
        return final

    def _refuse(self, *_: object) -> None:
        raise UsageError(f"shuffled:{self._base}: it trains its network inside of another module")

    def history(self, model: nn.Module) -> tuple[dict[str, Tensor], list[Replay]]:
        """The weights of a returned network before it had masks, and its trainings under them.

        Raises UsageError for a network that did not come from the experiment, so that nothing is known of it.
        """
        net = bare_network(model)
        if net not in self._starts:
            raise UsageError(
                f"shuffled:{self._base}: the network that it returns is not from new_model, dense_model or model_from "
                "of the experiment (but a copy?), so what it was before its masks is not known"
            )
        return self._starts[net], self._replays[net]


def shuffled_mask(base: Method, name: str) -> Method:
    """The control of `base`, with its settings and what it declares, called `name`."""
    if base.dense or base.unpruned or isinstance(base.build(**base.params), Shuffled):
        raise UsageError(f"shuffled:{base.name}: {base.name} has no masks of its own to shuffle")
    if base.name.rpartition("+")[2] == "dfr":
        raise UsageError(f"shuffled:{base.name}: its head is learned after the trainings that are run again")

    def build(**params: Any) -> Procedure:
        chosen = base.with_params(params)
        chosen.build(**chosen.params)  # a wrong setting is found before anything is trained
        return Shuffled(chosen)

    version = (
        f"{base.version}{VERSION:02}" if base.version.isdigit() else f"{base.version}-shuffled-{VERSION}"
    )
    return replace(
        base,
        name=name,
        cite=f"control of {base.name}, masks shuffled within layers; after Frankle et al., 2021 (Missing the mark)",
        version=version,
        build=build,
    )


dcwp_shuffled_mask = shuffled_mask(dcwp, "dcwp-shuffled-mask")
