"""The three claims of Iofinova et al. (2023), and what the runs say for and against each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from prunebench.analysis.cells import FEWEST_PAIRS, Cells, estimate
from prunebench.analysis.measures import Measured
from prunebench.analysis.values import (
    ALL_METHODS,
    WITHIN,
    WORKING,
    AttributeForetelling,
    Cell,
    Claim,
    Correlation,
    Estimate,
    Evidence,
    SampleForetelling,
    Verdict,
)
from prunebench.metrics.criteria import spearman

HIGH_SPARSITY = 0.9
"""From here on a tenth of the weights or fewer are left."""
ACCURACY_TOLERANCE = 0.01
BIAS_TOLERANCE = {"bias_gap": 0.02, "bias_amplification": 0.01}
"""Rises of the bias up to this are not substantial."""
USEFUL_AREA = 0.7
"""Area under the ROC curve from which a ranking counts as foretelling."""
FEWEST_POINTS = 3
"""Of two points every correlation is 1 or -1."""
CRITERIA = ("uncertainty", "identity_imbalance")
"""Dense criteria that claim (c) rests on: without the dense bias, from which the change of the bias is measured, so
that noise in it alone gives a negative correlation."""
WORKING_SHARE = 0.9
"""A run works if it has at least this share of its dense model's accuracy on data as in training."""


def correlate(cells: Cells, pairs: Sequence[tuple[str, str]], accuracy: str) -> list[Correlation]:
    """Spearman's rho of pairs of measures over the runs of each method with the dense one, and over all methods.

    One rho for each seed, over its runs at all sparsities; then mean and t interval over seeds, which are what was
    repeated: runs of one seed share its data and its dense model. `within methods` correlates the ranks that values
    have among the seed's runs of their own method, of all methods together: what differs between methods, debiasing
    ones among them, is left out, and so are the dense runs, as part of every method. A second set, named
    `(working)`, keeps the runs with at least 90 % of the dense accuracy: a network at chance treats all groups
    alike. `sparsity` is the achieved one.
    """
    runs = [run for group in cells.values() for run in group]
    dense = {run.run.seed: run for run in runs if run.run.dense}
    working = [
        run
        for run in runs
        if run.run.seed in dense
        and run.values[accuracy] >= WORKING_SHARE * dense[run.run.seed].values[accuracy]
    ]
    methods = sorted({run.run.method for run in runs if not run.run.dense})
    found = []
    for (first, second), (suffix, chosen) in itertools.product(pairs, (("", runs), (WORKING, working))):
        points = {
            seed: [run for run in chosen if run.run.seed == seed]
            for seed in sorted({run.run.seed for run in chosen})
        }
        for method in (None, WITHIN, *methods):
            rhos = [_points(members, method, (first, second)) for members in points.values()]
            found.append(Correlation(method, first, second + suffix, _over_seeds(rhos)))
    return found


def _points(runs: Sequence[Measured], method: str | None, keys: tuple[str, str]) -> NDArray[np.float64]:
    """What is correlated of a seed's runs: two rows `[2, n]`, one a measure."""
    if method == WITHIN:
        by_method: dict[str, list[Measured]] = {}
        for run in runs:
            if not run.run.dense:
                by_method.setdefault(run.run.method, []).append(run)
        own = [_ranks(_values(members, keys)) for members in by_method.values() if len(members) > 2]
        return np.concatenate(own, axis=1) if own else np.zeros((2, 0))
    return _values([run for run in runs if run.run.dense or method in (None, run.run.method)], keys)


def _values(runs: Sequence[Measured], keys: tuple[str, str]) -> NDArray[np.float64]:
    """Two rows, without the runs in which either measure is undefined."""
    values = np.array([[_value(run, key) for run in runs] for key in keys]).reshape(2, -1)
    return values[:, np.isfinite(values).all(0)]


def _over_seeds(points: Sequence[NDArray[np.float64]]) -> Estimate:
    """Mean and t interval of the seeds' rhos, within -1..1; none where a seed has too few points to mean anything."""
    rhos = [
        float(spearman(*rows[:, None])[0]) if rows.shape[1] >= FEWEST_POINTS else math.nan for rows in points
    ]
    found = estimate(rhos)
    if any(rows.shape[1] < FEWEST_PAIRS for rows in points):
        return Estimate(found.mean, None, None, found.n)
    if found.low is None or found.high is None:
        return found
    return Estimate(found.mean, max(found.low, -1.0), min(found.high, 1.0), found.n)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row's ranks as shares of its length."""
    from scipy.stats import rankdata

    return rankdata(values, axis=1) / max(values.shape[1], 1)


def _value(run: Measured, key: str) -> float:
    return run.run.achieved if key == "sparsity" else run.values[key]


def claim_of_harmless_pruning(cells: Sequence[Cell], accuracy: str, bias: str) -> Claim:
    """(a): with fewer than a tenth of the weights, accuracy and bias can stay."""
    tolerance = BIAS_TOLERANCE[bias]
    lines = []
    for cell in cells:
        if cell.dense or cell.achieved < HIGH_SPARSITY - 1e-3:
            continue
        lost, risen = cell.changes.get(accuracy), cell.changes.get(bias)
        if lost is None or risen is None:
            continue
        kept = _at_least(lost, -ACCURACY_TOLERANCE)
        calm = _at_most(risen, tolerance)
        verdict: Verdict = "for" if kept == calm == "for" else "undecided"
        if "against" in (kept, calm):
            verdict = "against"
        numbers = f"accuracy {points(lost)}, bias {points(risen)}"
        lines.append(Evidence(f"{cell.method} at {_percent(1 - cell.achieved)} of weights", numbers, verdict))
    harmless = [line.what for line in lines if line.verdict == "for"]
    answer = f"{_counts(lines)} Harmless: {'; '.join(harmless) if harmless else 'none shown to be'}."
    return Claim(
        "a",
        "Pruning to a tenth of the weights or fewer is possible without loss of accuracy or substantially more bias "
        f"(tolerances: {100 * ACCURACY_TOLERANCE:g} point of accuracy, {100 * tolerance:g} of bias; a cell counts "
        "for the claim if the whole intervals lie within them, against it if one lies wholly outside)",
        answer,
        tuple(lines),
    )


def claim_of_uncertainty(correlations: Iterable[Correlation], bias: str, dependence: str) -> Claim:
    """(b): uncertainty and dependence rise with sparsity and go with the bias."""
    words = {
        ("sparsity", "uncertain_share"): "uncertainty rises with sparsity",
        ("sparsity", dependence): "dependence between outputs rises with sparsity",
        ("uncertain_share", bias): "bias goes with uncertainty",
        ("uncertain_share", bias + WORKING): "bias goes with uncertainty, working runs",
        (dependence, bias): "bias goes with dependence",
        (dependence, bias + WORKING): "bias goes with dependence, working runs",
    }
    lines = []
    for entry in correlations:
        text = words.get((entry.first, entry.second))
        if text is not None and entry.rho.mean is not None:
            who = entry.method or ALL_METHODS
            numbers = f"rho {interval(entry.rho, 2)}, {entry.rho.n} seeds"
            lines.append(Evidence(f"{text}: {who}", numbers, _sign(entry.rho)))
    told = [
        f"{where}: {_tally([line for line in lines if line.what.endswith(f': {where}')])}"
        for where in (ALL_METHODS, WITHIN)
        if any(line.what.endswith(f": {where}") for line in lines)
    ]
    return Claim(
        "b",
        "Uncertainty and dependence between outputs rise with sparsity, and bias rises with them (rank correlations "
        "over the runs of a seed, mean over seeds; working runs have at least "
        f"{100 * WORKING_SHARE:g} % of the dense accuracy)",
        f"{_counts(lines)} {'; '.join(told).capitalize()}{'.' if told else ''}".strip(),
        tuple(lines),
    )


def claim_of_foretelling(
    samples: Iterable[SampleForetelling], attributes: Iterable[AttributeForetelling], names: str
) -> Claim:
    """(c): the dense model alone tells which samples and attributes pruning will change."""
    lines = []
    for row in samples:
        if row.area_under_curve.mean is None:
            continue
        area = row.area_under_curve
        verdict: Verdict = "undecided"
        if area.low is not None and area.high is not None:
            verdict = (
                "for" if area.low >= USEFUL_AREA else "against" if area.high < USEFUL_AREA else "undecided"
            )
        what = f"samples, {row.event}: {_cell(row.method, row.sparsity)}"
        lines.append(Evidence(what, f"area under the curve {interval(area, 2)}", verdict))
    for entry in attributes:
        if entry.criterion in CRITERIA and entry.rho.mean is not None:
            what = f"{names} by {entry.criterion.replace('_', ' ')}: {_cell(entry.method, entry.sparsity)}"
            numbers = f"rho {interval(entry.rho, 2)}, {entry.rho.n} {names}"
            lines.append(Evidence(what, numbers, _sign(entry.rho)))
    parts = []
    kinds = [f"{names} by {criterion.replace('_', ' ')}" for criterion in CRITERIA]
    for kind in ("samples, modal exemplar", "samples, flip", "samples, new error", *kinds):
        chosen = [line for line in lines if line.what.startswith(kind)]
        if chosen:
            parts.append(f"{kind}: {sum(line.verdict == 'for' for line in chosen)} of {len(chosen)} for")
    return Claim(
        "c",
        "The dense model alone foretells which samples pruning will change (area under the ROC curve of its "
        f"uncertainty at least {USEFUL_AREA}) and which {names} it will bias (positive rank correlation)",
        f"{_counts(lines)} {'; '.join(parts)}{'.' if parts else ''}".strip(),
        tuple(lines),
    )


def _at_least(change: Estimate, bound: float) -> Verdict:
    if change.low is None or change.high is None:
        return "undecided"
    return "for" if change.low >= bound else "against" if change.high < bound else "undecided"


def _at_most(change: Estimate, bound: float) -> Verdict:
    if change.low is None or change.high is None:
        return "undecided"
    return "for" if change.high <= bound else "against" if change.low > bound else "undecided"


def _sign(rho: Estimate) -> Verdict:
    if rho.low is None or rho.high is None:
        return "undecided"
    return "for" if rho.low > 0 else "against" if rho.high < 0 else "undecided"


def _counts(lines: Sequence[Evidence]) -> str:
    if not lines:
        return "Nothing to judge it by."
    return f"Of {len(lines)} lines {_tally(lines)}."


def _tally(lines: Sequence[Evidence]) -> str:
    """`2 for, 0 against and 1 undecided`."""
    pro, contra, open_ones = (
        sum(line.verdict == kind for line in lines) for kind in ("for", "against", "undecided")
    )
    return f"{pro} for, {contra} against and {open_ones} undecided"


def _cell(method: str, sparsity: float | None) -> str:
    return f"{method} at {'native sparsity' if sparsity is None else f'sparsity {sparsity:g}'}"


def points(change: Estimate) -> str:
    """A difference of shares in percentage points, with its interval."""
    if change.mean is None:
        return "undefined"
    if change.low is None or change.high is None:
        return f"{100 * change.mean:+.1f} points (no interval)"
    return f"{100 * change.mean:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"


def interval(value: Estimate, decimals: int) -> str:
    """A value with its interval."""
    if value.mean is None:
        return "undefined"
    if value.low is None or value.high is None:
        return f"{value.mean:.{decimals}f} (no interval)"
    return f"{value.mean:.{decimals}f} ({value.low:.{decimals}f} to {value.high:.{decimals}f})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
