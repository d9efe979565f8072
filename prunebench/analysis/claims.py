"""The three claims of Iofinova et al. (2023), and what the runs say for and against each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from prunebench.analysis.cells import Cells, defined
from prunebench.analysis.measures import Measured
from prunebench.analysis.values import (
    AttributeForetelling,
    Cell,
    Claim,
    Correlation,
    Estimate,
    Evidence,
    SampleForetelling,
    Verdict,
)
from prunebench.metrics.criteria import rank_correlation

HIGH_SPARSITY = 0.9
"""From here on a tenth of the weights or fewer are left."""
ACCURACY_TOLERANCE = 0.01
BIAS_TOLERANCE = {"bias_gap": 0.02, "bias_amplification": 0.01}
"""Rises of the bias up to this are not substantial."""
USEFUL_AREA = 0.7
"""Area under the ROC curve from which a ranking counts as foretelling."""
FEWEST_PAIRS = 5
"""Of four pairs even the most extreme order has p = 2 / 4! > 0.05: their correlation decides nothing."""
WITHIN = "within methods"
WORKING = 0.9
"""A run works if it has at least this share of its dense model's accuracy on data as in training."""


def correlate(cells: Cells, pairs: Sequence[tuple[str, str]], accuracy: str) -> list[Correlation]:
    """Spearman's rho of pairs of measures over the runs of each method with the dense ones, and over all methods.

    `within methods` correlates the ranks that values have among the runs of their own method, of all methods
    together: what differs between methods, debiasing ones among them, is left out. So are the dense runs: as part
    of every method they would count as often as there are methods. `sparsity` is the achieved one.
    A second set, named `(working)`, keeps the runs with at least 90 % of the dense accuracy: a network at chance
    treats all groups alike. Intervals: bootstrap over runs, which share seeds.
    """
    runs = [run for group in cells.values() for run in group]
    dense = {run.run.seed: run for run in runs if run.run.dense}
    working = [
        run
        for run in runs
        if run.run.seed in dense and run.values[accuracy] >= WORKING * dense[run.run.seed].values[accuracy]
    ]
    methods = sorted({run.run.method for run in runs if not run.run.dense})
    found = []
    for (first, second), (suffix, chosen) in itertools.product(pairs, (("", runs), (" (working)", working))):
        named = second + suffix
        values = np.array([[_value(run, key) for run in chosen] for key in (first, second)]).reshape(2, -1)
        groups = {
            method: np.array([run.run.dense or run.run.method == method for run in chosen], dtype=bool)
            for method in methods
        }
        found.append(Correlation(None, first, named, _rho(values)))
        pruned = np.array([not run.run.dense for run in chosen], dtype=bool)
        own = [members & pruned for members in groups.values()]
        inside = [_ranks(values[:, members]) for members in own if members.sum() > 2]
        if inside:
            found.append(Correlation(WITHIN, first, named, _rho(np.concatenate(inside, axis=1))))
        found += [
            Correlation(method, first, named, _rho(values[:, members])) for method, members in groups.items()
        ]
    return found


def _rho(values: NDArray[np.float64]) -> Estimate:
    """Of two rows `[2, n]`, one of each measure."""
    if values.shape[1] < 3:
        return Estimate(None, None, None, values.shape[1])
    found = rank_correlation(*values)
    return Estimate(defined(found.rho), defined(found.low), defined(found.high), found.pairs)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row's ranks as shares of its length; undefined values stay so."""
    from scipy.stats import rankdata

    return rankdata(values, axis=1, nan_policy="omit") / values.shape[1]


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
        ("uncertain_share", f"{bias} (working)"): "bias goes with uncertainty, working runs",
        (dependence, bias): "bias goes with dependence",
        (dependence, f"{bias} (working)"): "bias goes with dependence, working runs",
    }
    lines = []
    for entry in correlations:
        text = words.get((entry.first, entry.second))
        if text is not None and entry.rho.mean is not None:
            who = entry.method or "all methods"
            lines.append(Evidence(f"{text}: {who}", correlation(entry.rho), _sign(entry.rho)))
    told = " ".join(
        f"{where.capitalize()}: "
        + "; ".join(
            f"{line.what.removesuffix(f': {where}')}: {line.numbers} ({line.verdict})"
            for line in lines
            if line.what.endswith(f": {where}")
        )
        + "."
        for where in ("all methods", WITHIN)
        if any(line.what.endswith(f": {where}") for line in lines)
    )
    return Claim(
        "b",
        "Uncertainty and dependence between outputs rise with sparsity, and bias rises with them (rank correlations "
        f"over runs; working runs have at least {100 * WORKING:g} % of the dense accuracy)",
        f"{_counts(lines)} {told}".strip(),
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
        if entry.criterion == "combined" and entry.rho.mean is not None:
            what = f"{names}, combined criterion: {_cell(entry.method, entry.sparsity)}"
            lines.append(Evidence(what, correlation(entry.rho), _sign(entry.rho)))
    parts = []
    for kind in ("samples, modal exemplar", "samples, flip", "samples, new error", f"{names}, combined"):
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
    if rho.low is None or rho.high is None or rho.n < FEWEST_PAIRS:
        return "undecided"
    return "for" if rho.low > 0 else "against" if rho.high < 0 else "undecided"


def _counts(lines: Sequence[Evidence]) -> str:
    if not lines:
        return "Nothing to judge it by."
    numbers = [f"{sum(line.verdict == kind for line in lines)} {kind}" for kind in ("for", "against")]
    undecided = sum(line.verdict == "undecided" for line in lines)
    return f"Of {len(lines)} lines {', '.join(numbers)} and {undecided} undecided."


def _cell(method: str, sparsity: float | None) -> str:
    return f"{method} at {'native sparsity' if sparsity is None else f'sparsity {sparsity:g}'}"


def points(change: Estimate) -> str:
    """A difference of shares in percentage points, with its interval."""
    if change.mean is None:
        return "undefined"
    if change.low is None or change.high is None:
        return f"{100 * change.mean:+.1f} points (no interval)"
    return f"{100 * change.mean:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"


def correlation(rho: Estimate) -> str:
    """A rank correlation in words."""
    return f"rho {interval(rho, 2)}, n = {rho.n}"


def interval(value: Estimate, decimals: int) -> str:
    """A value with its interval."""
    if value.mean is None:
        return "undefined"
    if value.low is None or value.high is None:
        return f"{value.mean:.{decimals}f} (no interval)"
    return f"{value.mean:.{decimals}f} ({value.low:.{decimals}f} to {value.high:.{decimals}f})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
