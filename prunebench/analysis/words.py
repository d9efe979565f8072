"""Words of the analysis' pages: what its parts mean, and sentences made from structured values."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prunebench.analysis.exploratory import (
    AREA,
    FALSE_DISCOVERY_RATE,
    OVER_OUTPUTS,
    RANK_CORRELATION,
    ExploratoryLine,
)
from prunebench.analysis.values import Condition, Estimate, Measure, Scope, TaskAnalysis
from prunebench.report import format as fmt

TITLE = "Bias under pruning"
LEAD = (
    "What pruning did to bias, uncertainty and dependence, and whether the dense model told it before. It repeats the "
    "questions of Iofinova, Peste and Alistarh (2023), not their experiment."
)
SOURCE = (
    "E. Iofinova, A. Peste, D. Alistarh: Bias in Pruned Vision Models: In-Depth Analysis and Countermeasures, "
    "CVPR 2023."
)
PLUS_MINUS = (
    "Mean ± half-width of the 95 % Student t-interval over seeds: it speaks of other seeds of the same "
    "experiment, and one seed gives none (en dash)."
)
CHANGES = (
    "Minus the reference of the same seed, so that what a seed does to both cancels; mean ± half-width of the 95 % "
    "t-interval over seeds. The reference is unpruned and has as many steps as a pruned network (`dense-finetuned`); "
    "where a track has no run of it, the dense model, and a change may then come from more steps alone."
)
CARDS = (
    "Each hypothesis has one test that was fixed before the runs that it counts existed, a control, and one of three "
    "outcomes. Not supported is not refuted; not testable says what is missing."
)
NO_CARDS = "The cards are made from records, with the leaderboard."
EXPLORATORY = (
    "All other effects that were tested, in one family: changes of accuracy and bias from the reference; the area "
    "under the curve beyond that of the control; rank correlations, of bias with uncertainty and with dependence "
    "given sparsity. p is two-sided over seeds, q is Benjamini and Hochberg's over all lines: of the lines with q up "
    f"to {FALSE_DISCOVERY_RATE:g}, that share is expected to be false."
)
SAMPLED = (
    "In brackets the 95 % bootstrap interval over seeds and test samples: it speaks of other seeds and of other "
    "images alike."
)
ATTRIBUTES = "Means over seeds, one table a measure; a column an attribute."
CLASSES = "Means over seeds, one table a measure; a column a class, judged one against the rest."
GROUPS = (
    "A group is all test images of one label and one bias. Looked at are the groups of each condition that lost or "
    "gained most accuracy: dense against pruned seeds by Welch's t-test, p corrected by Holm's method over all groups "
    "of the condition; a change is significant where corrected p < 0.05."
)
EXEMPLARS = (
    "Disagreement is the chance that a pruned model and an unpruned one of another seed give a sample different "
    "labels. Other seeds alone change some: the control is the same for two unpruned ones, and what pruning adds is "
    "the difference. A compression-identified exemplar (CIE) is a sample whose most frequent label over all seeds "
    "differs."
)
SPLITS = (
    "The squared loss of the probabilities is bias squared (what the mean over seeds gets wrong) plus variance "
    "(how far the seeds scatter about their mean)."
)
CORRELATIONS = (
    "Spearman's rank correlation over the runs of a seed, of sparsity, uncertainty, dependence and bias; of bias with "
    "the others given sparsity, which all of them follow. Mean over seeds, in brackets the 95 % t-interval over "
    "seeds; none where a seed has fewer than five runs. Working runs are those that keep most of the dense accuracy, "
    "because a network at chance treats all groups alike. Within methods, a run's rank is that among the runs of its "
    "own method, without the dense ones: what differs between methods is left out."
)
SAMPLES = (
    "Samples (with several attributes: outputs, of a sample and an attribute) are ranked by the dense models' "
    "uncertainty, and asked is whether those that changed stand on top: modal exemplars, flips (the label of the "
    "dense model of the same seed changed) and new errors (a right one became wrong). AUROC is the chance that a "
    "changed sample ranks above an unchanged one; 0.5 is guessing. Its 95 % interval is a bootstrap over samples for "
    "modal exemplars and a t-interval over seeds for flips and new errors. Labels change without pruning too, and the "
    "dense model tells of those as well: the control is what the reference changed (without one, the next seed's "
    "dense model)."
)
OUTPUTS = (
    "Do {names} that look risky in the dense models gain the most bias? Spearman's rank correlation over {names}, with "
    "its 95 % bootstrap interval in brackets. The criteria amplification and combined hold the dense bias, from which "
    "the gain is measured: noise in it alone pulls them below 0."
)
SUSCEPTIBLE = (
    "The test samples of which the dense models are least sure. Under each: its true label; then what the dense "
    "models say and what the pruned ones say."
)
HOW_TO_READ = {
    "Mean ± half-width": PLUS_MINUS,
    "In brackets": (
        "Of what is not a mean over seeds, the ends of the 95 % interval; each table says over what."
    ),
    "Condition": "One method at one sparsity, over its seeds.",
    "Changes": (
        "Minus the unpruned reference of the same seed, in percentage points where shares are compared."
    ),
    "Sparsity": (
        "The share of zeros asked for among the weights that may be pruned. Native: the method chose it; stars in the "
        "plots, at the sparsity achieved."
    ),
    "Missing": "A value that is undefined, or that a missing run leaves open, is an em dash, never 0.",
}
UNITS = {"percent": "%", "points": "percentage points", "number": ""}
LONGEST_TITLE = 24


def coverage(analysis: TaskAnalysis) -> str:
    """What the page rests on, in one sentence."""
    seeds = fmt.listed("seed", analysis.seeds or ("none",))
    left = f"; {len(analysis.left_out)} left out" if analysis.left_out else ""
    runs, methods = fmt.plural(analysis.runs, "run"), fmt.plural(len(analysis.methods), "pruning method")
    return f"{runs} of {methods} and the dense model, {seeds}; {analysis.samples} test images{left}."


def setting(analysis: TaskAnalysis) -> str:
    """Model, budget, what is predicted and what the bias is."""
    recipe = analysis.recipe
    budget = ", ".join(f"{name.replace('_', ' ')} {recipe[name]}" for name in sorted(recipe))
    identities = f"; identity attributes: {', '.join(analysis.identities)}" if analysis.identities else ""
    return (
        f"Model {analysis.model}; {len(analysis.outputs)} {analysis.output_noun}{identities}; bias: "
        f"{analysis.bias_name}. Training: {budget or 'not recorded'}. Data: {analysis.source}."
    )


def origin(analysis: TaskAnalysis) -> str:
    """Which code computed the numbers."""
    commit = str(analysis.code.get("commit") or "unknown commit")[:12]
    changed = " with uncommitted changes" if analysis.code.get("dirty") else ""
    return (
        f"Computed by prunebench {analysis.code.get('version') or 'of unknown version'}, {commit}{changed}."
    )


def page_name(analysis: TaskAnalysis) -> str:
    """The task, with the slug where other settings of the same task have pages too."""
    plain = re.sub(r"[^a-z0-9]+", "-", analysis.task.lower()).strip("-") or "task"
    return analysis.task if plain == analysis.slug else f"{analysis.task} ({analysis.slug})"


def sentence(text: str) -> str:
    """With a full stop at its end."""
    return text if text[-1:] in (".", "!", "?") else f"{text}."


# Exploratory lines


def effect_name(analysis: TaskAnalysis, line: ExploratoryLine) -> str:
    """What an effect is of, as a reader is told it."""
    if line.quantity == AREA:
        return f"AUROC of {line.subject[0]}s beyond the control's"
    if line.quantity not in (RANK_CORRELATION, OVER_OUTPUTS):
        return f"change of {measure_title(analysis, line.quantity).lower()}"
    first, second = (measure_title(analysis, key).lower() for key in line.subject)
    if line.quantity == OVER_OUTPUTS:
        over, first = f" over {analysis.output_noun}", f"dense {first.replace('_', ' ')}"
        return f"rank correlation{over} of {first} and change of {second}"
    held = "" if line.given is None else f", given {measure_title(analysis, line.given).lower()}"
    return f"rank correlation of {first} and {second}{held}" + ", working runs" * line.working


def effect(analysis: TaskAnalysis, line: ExploratoryLine) -> str:
    """The estimate with its ends, in points where shares are compared."""
    shares = {m.key: m for m in analysis.measures if m.unit != "number"}
    measure = shares.get(line.quantity)
    return (
        with_ends(line.effect, 3)
        if measure is None
        else with_ends(line.effect, measure.decimals, measure.scale)
    )


def found_lines(lines: Sequence[ExploratoryLine]) -> str:
    """`12 of 340 lines have q up to 0.05.`"""
    small = sum(line.q_value <= FALSE_DISCOVERY_RATE for line in lines)
    verb = "has" if small == 1 else "have"
    return f"{small} of {fmt.plural(len(lines), 'line')} {verb} q up to {FALSE_DISCOVERY_RATE:g}."


# Numbers


def with_half_width(estimate: Estimate | None, measure: Measure) -> str:
    """`37.9 ± 1.2`, as a measure is shown."""
    return fmt.MISSING if estimate is None else fmt.with_half_width(estimate, measure.decimals, measure.scale)


def with_ends(estimate: Estimate, decimals: int = 2, scale: float = 1) -> str:
    """`0.62 [0.41, 0.80]`."""
    return fmt.with_ends(estimate.mean, estimate.low, estimate.high, decimals, scale)


def titled(measure: Measure, *, change: bool = False) -> str:
    """A measure's title with its unit, or that of its change, for a column."""
    share = ", points" if change else ", %"
    return measure.title + {"percent": share, "points": ", points", "number": ""}[measure.unit]


def axis_title(measure: Measure) -> str:
    """`Bias gap, percentage points`; of a long title, which the plot's heading has, the unit alone."""
    unit = UNITS[measure.unit]
    if not unit:
        return measure.title
    return f"{measure.title}, {unit}" if len(measure.title) <= LONGEST_TITLE else unit.capitalize()


def measure_title(analysis: TaskAnalysis, key: str, *, working: bool = False) -> str:
    """The title of a measure or of sparsity, and whether over working runs alone."""
    titles = {measure.key: measure.title for measure in analysis.measures} | {"sparsity": "Sparsity"}
    return titles.get(key, key) + ", working runs" * working


def rho_lines(analysis: TaskAnalysis, first: str, second: str) -> list[str]:
    """`all runs 0.20 [0.05, 0.35]`, `working runs ...` of two measures, given sparsity; empty where not computed."""
    found = {(c.scope, c.first, c.second, c.working): c.rho for c in analysis.correlations}
    choices: tuple[tuple[str, Scope, bool], ...] = (
        ("all runs", "all methods", False),
        ("working runs", "all methods", True),
        ("working runs within methods", "within methods", True),
    )
    return [
        f"{name} {with_ends(rho)}"
        for name, scope, working in choices
        if (rho := found.get((scope, first, second, working))) is not None
    ]


def measure_terms(analysis: TaskAnalysis) -> dict[str, str]:
    """Each measure's title and what it means."""
    return {m.title: sentence(m.help) for m in (*analysis.measures, *analysis.attribute_measures)}


def place_hint(row: Condition) -> str:
    """`sparsity 0.9`, `sparsity native, 0.424`, or the unpruned model's name."""
    return row.method if row.sparsity == 0 else f"sparsity {fmt.sparsity(row.sparsity, row.achieved)}"
