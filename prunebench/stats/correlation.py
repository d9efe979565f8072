"""Rank correlation: given a third variable, and of units that are seen several times."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunebench.errors import MetricError

Floats = NDArray[np.float64]
MOST_ORDERS = 5040
"""Units up to 7 are put in all orders; of more, as many orders as asked for are drawn."""


@dataclass(frozen=True)
class CorrelationInterval:
    """A correlation, its confidence interval and the points behind it; nan where undefined."""

    rho: float
    low: float
    high: float
    n: int


def row_spearman(first: Floats, second: Floats) -> Floats:
    """Spearman's rank correlation of each row of `[D, n]` and `[D, n]`, n > 0: `[D]`; nan where a side is constant."""
    ranks = [_centred_ranks(values) for values in (first, second)]
    spread = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    with np.errstate(invalid="ignore"):
        return (ranks[0] * ranks[1]).sum(1) / spread


def _centred_ranks(values: Floats) -> Floats:
    """Mid-ranks within each row of `[D, n]`, minus their mean."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=1)
    return ranks - ranks.mean(1, keepdims=True)


def rank_p_value(rho: float | None, n: int) -> float:
    """Two-sided p of a rank correlation of 0 over n points, by Student's t of n - 2; nan for fewer than five.

    t = rho sqrt((n - 2) / (1 - rho^2)). Source: Kendall & Stuart, The advanced theory of statistics, vol. 2.
    """
    from scipy.special import stdtr

    if rho is None or n < 5 or not math.isfinite(rho):
        return math.nan
    if abs(rho) >= 1:
        return 0.0
    return 2 * float(stdtr(n - 2, -abs(rho) * math.sqrt((n - 2) / (1 - rho**2))))


def partial_spearman(
    first: Floats, second: Floats, given: Floats, confidence: float = 0.95
) -> CorrelationInterval:
    """Spearman's correlation of `[n]` and `[n]` with a third `[n]` held: of the ranks, less what its ranks tell.

    r = (r12 - r13 r23) / sqrt((1 - r13^2)(1 - r23^2)); tanh(artanh r +- z / sqrt(n - 1 - 3)), n - 3 less one for the
    held variable. Points are taken as independent: where one method stands behind several, use `UnitCorrelation`.
    Points with an undefined value are left out. No interval with four points or fewer; all is nan with fewer than four,
    with a constant side, and where the third tells one of them completely. Source: Fisher, 1924 (degrees of freedom).
    """
    from scipy.special import ndtri

    table = np.array([first, second, given], dtype=np.float64)
    table = table[:, np.isfinite(table).all(0)]
    n = table.shape[1]
    if n < 4:
        return CorrelationInterval(math.nan, math.nan, math.nan, n)
    r12, r13, r23 = (float(row_spearman(table[[i]], table[[j]])[0]) for i, j in ((0, 1), (0, 2), (1, 2)))
    left = (1 - r13**2) * (1 - r23**2)
    if not left > 1e-12:
        return CorrelationInterval(math.nan, math.nan, math.nan, n)
    rho = min(1.0, max(-1.0, (r12 - r13 * r23) / math.sqrt(left)))
    if n < 5:
        return CorrelationInterval(rho, math.nan, math.nan, n)
    if abs(rho) == 1:
        return CorrelationInterval(rho, rho, rho, n)
    half = float(ndtri(1 - (1 - confidence) / 2)) / math.sqrt(n - 4)
    return CorrelationInterval(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), n)


@dataclass(frozen=True)
class UnitCorrelation:
    """Mean over columns of Spearman's correlation over units, and the one-sided p of its being this high by chance."""

    rho: float
    low: float
    high: float
    p_value: float
    units: int


def correlate_units(first: Floats, second: Floats, *, draws: int = 9999, seed: int = 0) -> UnitCorrelation:
    """Rank correlation of two measures over units (methods, attributes) within each column (sparsity, model).

    Ranks are taken within each column, so that what all units share there, as the rise of both measures with sparsity,
    is held exactly. A unit's columns resemble each other and count as one cluster: p is the share of all orders of
    the units, the same for every column, that give a correlation as high. The interval is a percentile bootstrap over
    units; the decision is that of p, which needs no approximation.

    Args:
        first: `[U, S]`; units with an undefined value are left out.
        second: `[U, S]`.
        draws: orders drawn where there are more than 5,040, and draws of the bootstrap.
        seed: of the draws.

    Raises:
        MetricError: shapes that disagree.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise MetricError(f"second: want the shape of first, [U, S], got {second.shape} and {first.shape}")
    whole = (np.isfinite(first) & np.isfinite(second)).all(1)
    one, two = first[whole].T, second[whole].T
    units = one.shape[1]
    nothing = UnitCorrelation(math.nan, math.nan, math.nan, math.nan, units)
    if units < 3 or not one.size:
        return nothing
    scaled = [_scaled(_centred_ranks(values)) for values in (one, two)]
    agree = np.einsum("su,sv->uv", *scaled) / len(one)
    rho = float(np.trace(agree))
    if not math.isfinite(rho):
        return nothing
    generator = np.random.default_rng(seed)
    orders, exact = unit_orders(units, draws, generator)
    reached = int((agree[orders, np.arange(units)].sum(1) >= rho - 1e-10).sum())
    p_value = reached / len(orders) if exact else (1 + reached) / (1 + len(orders))
    low, high = _bootstrap(one, two, draws, generator)
    return UnitCorrelation(rho, low, high, p_value, units)


def _scaled(ranks: Floats) -> Floats:
    """Rows of length 1; nan for constant ones."""
    with np.errstate(invalid="ignore"):
        return ranks / np.sqrt((ranks**2).sum(1, keepdims=True))


def unit_orders(units: int, draws: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], bool]:
    """Orders of the units `[D, U]`: all of them where they are few (then True), else drawn ones."""
    if math.factorial(units) <= MOST_ORDERS:
        return _all_orders(units), True
    return generator.permuted(np.tile(np.arange(units), (draws, 1)), axis=1), False


@functools.cache
def _all_orders(units: int) -> NDArray[np.int64]:
    orders = np.array(list(itertools.permutations(range(units))))
    orders.flags.writeable = False
    return orders


def _bootstrap(one: Floats, two: Floats, draws: int, generator: np.random.Generator) -> tuple[float, float]:
    """Percentile interval `[S, U]` and `[S, U]` over units; draws with a constant column are left out."""
    index = generator.integers(0, one.shape[1], (draws, one.shape[1]))
    drawn = [side[:, index].reshape(-1, one.shape[1]) for side in (one, two)]
    rhos = row_spearman(*drawn).reshape(len(one), draws).mean(0)
    rhos = rhos[np.isfinite(rhos)]
    if not len(rhos):
        return math.nan, math.nan
    low, high = np.quantile(rhos, [0.025, 0.975])
    return float(low), float(high)
