"""How an analysis is shown: its methods' looks, the order of its cells, the axis of sparsity, and written numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunebench.analysis.values import WITHIN, WORKING, Cell, Estimate, Measure, TaskAnalysis
from prunebench.leaderboard.figures import DODGE, Style, position, styles_of
from prunebench.leaderboard.words import MISSING, UNKNOWN, number, sparsity_words

UNCERTAINTY_KEYS = ("uncertain_share", "entropy")
DEPENDENCE_KEYS = ("interdependence", "logit_correlation")
CALIBRATION_KEYS = ("calibration_error",)
LONGEST_TITLE = 24
HEAT_COLOURS = ("#08306b", "#6baed6", "#eeeeee", "#f4a582", "#8c2d04")
"""From a fall over no change to a rise: told apart with any colour vision."""
UNITS = {"percent": "%", "points": "percentage points", "number": ""}


def analysis_styles(analyses: Iterable[TaskAnalysis], board_methods: Sequence[str] = ()) -> dict[str, Style]:
    """The board's look of each method; methods that the board does not know follow, by name."""
    found = {method for analysis in analyses for method in methods_of(analysis)}
    return styles_of([*board_methods, *sorted(found - set(board_methods))])


def methods_of(analysis: TaskAnalysis) -> list[str]:
    """The pruned methods, each once, by name."""
    return sorted({cell.method for cell in analysis.cells if not cell.dense})


def cells_of(analysis: TaskAnalysis, method: str) -> list[Cell]:
    """A method's pruned cells, by sparsity; native sparsity last."""
    return sorted(
        (cell for cell in analysis.cells if cell.method == method and not cell.dense),
        key=lambda cell: math.inf if cell.sparsity is None else cell.sparsity,
    )


def dense_cells(analysis: TaskAnalysis) -> list[Cell]:
    """The dense models' cells: what the others are compared with."""
    return [cell for cell in analysis.cells if cell.dense]


def sparsities_of(analysis: TaskAnalysis) -> list[float]:
    """The sparsities that were asked for, dense aside."""
    return sorted({cell.sparsity for cell in analysis.cells if not cell.dense and cell.sparsity is not None})


def lead_measures(analysis: TaskAnalysis) -> list[Measure]:
    """What the claims speak of: accuracy, bias, uncertainty, dependence and calibration, where measured."""
    by_key = {measure.key: measure for measure in analysis.measures}
    choices = (
        (analysis.accuracy_key,),
        (analysis.bias_key,),
        UNCERTAINTY_KEYS,
        DEPENDENCE_KEYS,
        CALIBRATION_KEYS,
    )
    keys = [next((key for key in choice if key in by_key), None) for choice in choices]
    return [by_key[key] for key in dict.fromkeys(keys) if key is not None]


def heat_measure(analysis: TaskAnalysis) -> Measure | None:
    """What the map of attributes shows first: the bias where attributes have one, else their first measure."""
    by_key = {measure.key: measure for measure in analysis.attribute_measures}
    for key in (analysis.bias_key, "bias_amplification"):
        if key in by_key:
            return by_key[key]
    return next(iter(analysis.attribute_measures), None)


@dataclass(frozen=True)
class SparsityAxis:
    """Decades of density below 1: where ticks stand, and the ends of the axis."""

    ticks: tuple[tuple[float, str], ...]
    start: float
    end: float


def sparsity_axis(analysis: TaskAnalysis) -> SparsityAxis:
    """Ticks at the sparsities asked for, and at native ones where there is room."""
    ticks = [(position(sparsity), f"{sparsity:g}") for sparsity in sparsities_of(analysis)]
    for cell in analysis.cells:
        if not cell.dense and cell.sparsity is None:
            place = position(cell.achieved)
            if all(abs(place - other) > DODGE for other, _ in ticks):
                ticks.append((place, number(cell.achieved, 2)))
    places = [place for place, _ in ticks] or [0.0]
    return SparsityAxis(tuple(sorted(ticks)), min(places) - DODGE, max(places) + DODGE)


def place_of(cell: Cell) -> float:
    """Where a cell stands on the axis of sparsity: as asked for, else as achieved."""
    return position(cell.achieved if cell.sparsity is None else cell.sparsity)


def place_text(cell: Cell) -> str:
    """`0.9`, or `native, 0.424` with what was achieved."""
    return f"{cell.sparsity:g}" if cell.sparsity is not None else f"native, {number(cell.achieved, 3)}"


def dodges_of(analysis: TaskAnalysis) -> dict[str, float]:
    """How far each method's points are shifted along the axis where many methods share a figure."""
    methods = sorted({c.method for c in analysis.cells if not c.dense and c.sparsity is not None})
    return {method: DODGE * ((index + 0.5) / len(methods) - 0.5) for index, method in enumerate(methods)}


def scale_of(measure: Measure) -> float:
    return 1.0 if measure.unit == "number" else 100.0


def decimals_of(measure: Measure) -> int:
    return 3 if measure.unit == "number" else 1


def axis_title(measure: Measure) -> str:
    """`Bias gap, percentage points`; of a long title, which the figure's heading has, the unit alone."""
    unit = UNITS[measure.unit]
    if not unit:
        return measure.title
    return f"{measure.title}, {unit}" if len(measure.title) <= LONGEST_TITLE else unit.capitalize()


def written(value: float | None, scale: float, decimals: int) -> str:
    """A scaled value; an em dash where it is undefined."""
    return MISSING if value is None else number(scale * value, decimals)


def in_percent(value: float | None) -> str:
    return written(value, 100, 1)


def with_half_width(estimate: Estimate | None, scale: float, decimals: int) -> str:
    """`37.9 ± 1.2` of a symmetric interval; an en dash for an unknown half-width."""
    if estimate is None or estimate.mean is None:
        return MISSING
    known = estimate.low is not None and estimate.high is not None
    half = written((estimate.high - estimate.low) / 2, scale, decimals) if known else UNKNOWN  # type: ignore[operator]
    return f"{written(estimate.mean, scale, decimals)} ± {half}"


def with_interval(estimate: Estimate | None, scale: float = 1, decimals: int = 2) -> str:
    """`0.62 [0.41, 0.80]`; an en dash for unknown ends."""
    if estimate is None or estimate.mean is None:
        return MISSING
    low, high = (
        UNKNOWN if end is None else written(end, scale, decimals) for end in (estimate.low, estimate.high)
    )
    return f"{written(estimate.mean, scale, decimals)} [{low}, {high}]"


def cell_name(method: str, sparsity: float | None) -> str:
    """`dcwp at 0.9`; `dcwp-native, native sparsity`."""
    return f"{method}, native sparsity" if sparsity is None else f"{method} at {sparsity_words(sparsity)}"


def p_value(value: float | None) -> str:
    """Three decimals; below that, `< 0.001`."""
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else number(value, 3)


def measure_title(analysis: TaskAnalysis, key: str) -> str:
    """The title of a measure, of sparsity, or of either over working runs alone."""
    titles = {measure.key: measure.title for measure in analysis.measures} | {"sparsity": "Sparsity"}
    plain = key.removesuffix(WORKING)
    title = titles.get(plain, plain)
    return title if plain == key else f"{title}, working runs"


def rho_words(analysis: TaskAnalysis, first: str, second: str) -> str:
    """`all runs 0.20 [0.05, 0.35]; working runs 0.40 [0.25, 0.55]`, of two measures; empty where not computed."""
    found = {(c.method, c.first, c.second): c.rho for c in analysis.correlations}
    told = [
        f"{name} {with_interval(rho)}"
        for name, method, mark in (
            ("all runs", None, ""),
            ("working runs", None, WORKING),
            ("working runs within methods", WITHIN, WORKING),
        )
        if (rho := found.get((method, first, second + mark))) is not None
    ]
    return "; ".join(told)


def page_name(analysis: TaskAnalysis) -> str:
    """The task, with the slug where other settings of the same task have pages too."""
    plain = re.sub(r"[^a-z0-9]+", "-", analysis.task.lower()).strip("-") or "task"
    return analysis.task if plain == analysis.slug else f"{analysis.task} ({analysis.slug})"


def scaled(estimate: Estimate | None, scale: float) -> Estimate:
    """The same times `scale`; undefined for none."""
    if estimate is None:
        return Estimate(None, None, None, 0)
    mean, low, high = (
        None if value is None else scale * value for value in (estimate.mean, estimate.low, estimate.high)
    )
    return Estimate(mean, low, high, estimate.n)


def alone(value: float | None) -> Estimate:
    """A value without an interval."""
    return Estimate(value, None, None, int(value is not None))
