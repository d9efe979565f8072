"""Tests by sample where samples come in clusters: one image in ten colours, or under three seeds, is one cluster.

Ten colours of a digit are not ten independent digits. Within a cluster the differences are added up; what is then
flipped, or has a standard error, is the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunebench.errors import MetricError
from prunebench.stats.tests import pooled_mcnemar_p_value

Numbers = Sequence[float] | NDArray[Any]


def cluster_sums(differences: Numbers, clusters: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
    """Sum of the differences `[N]` within each cluster: `[G]`, whole numbers where the differences are.

    Args:
        differences: by sample, summed over seeds or stacked with the clusters repeated.
        clusters: by sample, a number that its cluster alone has.

    Raises:
        MetricError: lengths that disagree, or no sample.
    """
    values, names = np.asarray(differences), np.asarray(clusters)
    if values.ndim != 1 or values.shape != names.shape or not len(values):
        raise MetricError(
            f"clusters: want one a sample, [N], none empty, got {names.shape} for {values.shape}"
        )
    _, place = np.unique(names, return_inverse=True)
    sums = np.zeros(int(place.max()) + 1, dtype=np.result_type(values.dtype, np.int64))
    np.add.at(sums, place, values)
    return sums


def clustered_mcnemar_p_value(
    net: Sequence[int] | NDArray[Any], clusters: Sequence[int] | NDArray[Any]
) -> float:
    """Two-sided p of a sign-flip test over clusters, exact: `pooled_mcnemar_p_value` of the clusters' sums.

    net: by sample, in how many pairs of runs only the first was right, minus in how many only the second was. With
    every sample a cluster of its own and one pair of runs it is McNemar's exact test.
    """
    return pooled_mcnemar_p_value(cluster_sums(np.asarray(net, dtype=np.int64), clusters).tolist())


def clustered_t(differences: Numbers, clusters: Sequence[int] | NDArray[Any]) -> tuple[float, float, float]:
    """Mean of the differences over samples, the half-width of its 95 % interval, and the two-sided p of 0.

    The standard error is that of a ratio, sum over samples by their number: sqrt(G / (G - 1) sum (S_g - n_g m)^2) / N,
    with G - 1 degrees of freedom. Half-width and p are nan with one cluster. Where all clusters agree p is 1 for a mean
    of 0, and else nan: without a spread there is nothing to weigh it by. Of equal clusters it is the t-test of their
    means. Source: Liang & Zeger, 1986, with the correction for G.
    """
    from scipy.special import stdtr, stdtrit

    sums = cluster_sums(differences, clusters).astype(np.float64)
    sizes = cluster_sums(np.ones(len(differences), dtype=np.int64), clusters)
    groups, samples = len(sums), int(sizes.sum())
    mean = float(sums.sum()) / samples
    if groups < 2 or not math.isfinite(mean):
        return mean, math.nan, math.nan
    spread = float(((sums - sizes * mean) ** 2).sum()) * groups / (groups - 1)
    error = math.sqrt(spread) / samples
    half = float(stdtrit(groups - 1, 0.975)) * error
    if error == 0:
        return mean, half, 1.0 if mean == 0 else math.nan
    return mean, half, 2 * float(stdtr(groups - 1, -abs(mean) / error))
