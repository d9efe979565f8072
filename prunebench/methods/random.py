"""Random pruning, the control: does it matter *which* weights stay? One-shot, and from initialisation."""

from __future__ import annotations

from torch import Tensor

from prunebench.methods.criteria import ScoringContext, criterion
from prunebench.methods.prune import prune_by


@criterion("random", cite="control; see Gale et al., 2019 and Su et al., 2020 (sanity checks)")
def random(weight: Tensor, context: ScoringContext) -> Tensor:
    return context.random(weight)


random_layerwise = prune_by(random, "random-layerwise", allocation="like-magnitude")
random_erk = prune_by(
    random,
    "random-erk",
    cite="Liu et al., 2022 (The unreasonable effectiveness of random pruning); ERK: Evci et al., 2020",
    allocation="erk",
    start="init",
)
