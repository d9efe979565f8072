"""Exploratory lines of an analysis: every effect with its p over seeds and its q over all lines of the task.

What was asked beforehand stands on the cards. All else that is tested is here, in one family: who picks a line knows of
how many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from prunebench.analysis.values import Estimate, TaskAnalysis
from prunebench.stats.correlation import rank_p_value
from prunebench.stats.multiplicity import benjamini_hochberg
from prunebench.stats.tests import interval_p_value

FALSE_DISCOVERY_RATE = 0.05
AREA, RANK_CORRELATION, OVER_OUTPUTS = (
    "area under the curve",
    "rank correlation",
    "rank correlation over outputs",
)


@dataclass(frozen=True)
class ExploratoryLine:
    """One effect: what it is of, where, and how likely its distance from 0 is by seeds alone.

    Args:
        quantity: a measure whose change it is, `area under the curve` (minus the control's), `rank correlation` (over
            runs), or `rank correlation over outputs` (of a dense criterion with the change of the bias).
        subject: of the latter three, the event, or the two that are correlated.
        method: whose condition it is, or the scope of a correlation.
        given: the measure that is held; `working`: over runs that keep most of the dense accuracy alone.
        effect: its `n` counts seeds, or outputs.
        p_value: two-sided, over seeds or outputs; `q_value` after Benjamini and Hochberg, over all lines with a p.
    """

    quantity: str
    subject: tuple[str, ...]
    method: str
    sparsity: float | None
    effect: Estimate
    p_value: float
    given: str | None = None
    working: bool = False
    q_value: float = math.nan


def exploratory_lines(analysis: TaskAnalysis) -> tuple[ExploratoryLine, ...]:
    """All lines with a p, the smallest first: a pure function of the analysis' rows."""
    found = [line for line in _lines(analysis) if math.isfinite(line.p_value)]
    q_values = benjamini_hochberg([line.p_value for line in found])
    lines = (replace(line, q_value=q) for line, q in zip(found, q_values))
    return tuple(sorted(lines, key=lambda line: (line.p_value, line.quantity, line.subject, line.method)))


def _lines(analysis: TaskAnalysis) -> Iterator[ExploratoryLine]:
    for row in analysis.conditions:
        for key in (analysis.accuracy_key, analysis.bias_key):
            change = row.changes.get(key)
            if change is not None and not row.deferred:
                yield ExploratoryLine(key, (), row.method, row.sparsity, change, _p_value(change))
    for told in analysis.sample_predictability:
        beyond = told.beyond_control
        if beyond is not None:
            yield ExploratoryLine(AREA, (told.event,), told.method, told.sparsity, beyond, _p_value(beyond))
    for guess in analysis.attribute_predictability:
        p_value = rank_p_value(guess.rho.mean, guess.rho.n) if guess.rho.low is not None else math.nan
        both = guess.criterion, analysis.bias_key
        yield ExploratoryLine(OVER_OUTPUTS, both, guess.method, guess.sparsity, guess.rho, p_value)
    for entry in analysis.correlations:
        if entry.p_value is not None:
            both, runs = (entry.first, entry.second), entry.method or entry.scope
            line = ExploratoryLine(RANK_CORRELATION, both, runs, None, entry.rho, entry.p_value)
            yield replace(line, given=entry.given, working=entry.working)


def _p_value(estimate: Estimate) -> float:
    """Of a mean whose t interval was not cut."""
    half = estimate.half_width
    if estimate.mean is None or half is None:
        return math.nan
    return interval_p_value(estimate.mean, half, estimate.n)
