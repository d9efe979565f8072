"""Magnitude pruning: small weights go. One-shot under three allocations, and gradually."""

from __future__ import annotations

from torch import Tensor

from prunebench.methods.criteria import ScoringContext, criterion
from prunebench.methods.prune import prune_by

ZHU_GUPTA = "Zhu & Gupta, 2017 (To prune, or not to prune)"


@criterion("magnitude", cite="Han et al., 2015 (Learning both weights and connections)")
def magnitude(weight: Tensor, context: ScoringContext) -> Tensor:
    return weight.abs()


magnitude_uniform = prune_by(magnitude, "magnitude-uniform", allocation="uniform")
magnitude_erk = prune_by(
    magnitude, "magnitude-erk", allocation="erk", cite="Han et al., 2015; ERK: Evci et al., 2020 (RigL)"
)
gmp_ri = prune_by(magnitude, "gmp-ri", cite=ZHU_GUPTA, schedule="cubic", start="init")
gmp_pt = prune_by(magnitude, "gmp-pt", cite=ZHU_GUPTA, schedule="cubic", start="dense")
