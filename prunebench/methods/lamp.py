"""LAMP: the smallest magnitudes of each layer, with the layers' shares by globally compared LAMP scores.

A weight's score is w^2 over the sum of the squares that are at least as large in its layer
(`pruning.distribution.lamp_scores`); it keeps the order of magnitudes within the layer.
"""

from __future__ import annotations

from prunebench.methods.magnitude import magnitude
from prunebench.methods.prune import prune_by

LEE = "Lee et al., 2021 (Layer-adaptive sparsity for the magnitude-based pruning)"
lamp = prune_by(magnitude, "lamp", cite=LEE, allocation="lamp")
