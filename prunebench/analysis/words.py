"""Words of the analysis' pages: what its parts mean, and sentences made from structured values."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prunebench.analysis.hypotheses import ACCURACY_TOLERANCE, BIAS_TOLERANCE, USEFUL_AREA
from prunebench.analysis.values import (
    VERDICTS,
    WORKING_SHARE,
    Condition,
    Estimate,
    Evidence,
    Hypothesis,
    Measure,
    Scope,
    TaskAnalysis,
)
from prunebench.report import format as fmt

TITLE = "Bias under pruning"
LEAD = (
    "What pruning did to bias, uncertainty and dependence, and whether the dense model told it before: the three "
    "hypotheses of Iofinova, Peste and Alistarh (2023), with every number for and against them on this data."
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
    "Pruned minus the dense model of the same seed, so that what a seed does to both cancels; mean ± half-width of "
    "the 95 % t-interval over seeds."
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
    "A compression-identified exemplar (CIE) is a test sample whose most frequent label over dense seeds differs from "
    "that over pruned seeds. Other seeds alone change some too: the control compares dense with other dense models in "
    "populations of the same size, and what pruning adds is the difference."
)
SPLITS = (
    "The squared loss of the probabilities is bias squared (what the mean over seeds gets wrong) plus variance "
    "(how far the seeds scatter about their mean)."
)
CORRELATIONS = (
    "Spearman's rank correlation over the runs of a seed, of sparsity, uncertainty, dependence and bias: mean over "
    "seeds, in brackets the 95 % t-interval over seeds; none where a seed has fewer than five runs. Working runs are "
    "those that keep most of the dense accuracy, because a network at chance treats all groups alike. Within methods, "
    "a run's rank is that among the runs of its own method, without the dense ones: what differs between methods is "
    "left out."
)
SAMPLES = (
    "Samples (with several attributes: outputs, of a sample and an attribute) are ranked by the dense models' "
    "uncertainty, and asked is whether those that changed stand on top: modal "
    "exemplars, flips (the label of the dense model of the same seed changed) and new errors (a right one became "
    "wrong). AUROC is the chance that a changed sample ranks above an unchanged one; 0.5 is guessing. Its 95 % "
    "interval is a bootstrap over samples for modal exemplars and a t-interval over seeds for flips and new errors."
)
OUTPUTS = (
    "Do {names} that look risky in the dense models gain the most bias? Spearman's rank correlation over {names}, with "
    "its 95 % bootstrap interval in brackets. The criteria amplification and combined hold the dense bias, from which "
    "the gain is measured: noise in it alone pulls them below 0, so the hypotheses leave them out."
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
        "Pruned minus the dense model of the same seed, in percentage points where shares are compared."
    ),
    "Sparsity": (
        "The share of zeros asked for among the weights that may be pruned. Native: the method chose it; stars in the "
        "plots, at the sparsity achieved."
    ),
    "Missing": "A value that is undefined, or that a missing run leaves open, is an em dash, never 0.",
    "Verdicts": (
        "A test supports or contradicts a hypothesis only where its whole 95 % interval does; otherwise it is "
        "undecided. The intervals are not corrected for the number of tests."
    ),
}
HYPOTHESES = {
    "a": "A tenth of the weights or fewer, without loss of accuracy or more bias",
    "b": "Uncertainty and dependence rise with sparsity, and bias with them",
    "c": "The dense model alone predicts what pruning will change",
}
MARKS = {"supported": "for", "contradicted": "against", "undecided": "undecided"}
"""Verdicts where there is room for a word alone."""
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


# Hypotheses


def statement(analysis: TaskAnalysis, hypothesis: Hypothesis) -> str:
    """What it says, and what counts for and against it."""
    names = analysis.output_noun
    tolerance = 100 * BIAS_TOLERANCE[analysis.bias_key]
    return {
        "a": "Pruning to a tenth of the weights or fewer is possible without loss of accuracy or substantially more "
        f"bias (tolerances: {100 * ACCURACY_TOLERANCE:g} point of accuracy, {tolerance:g} of bias; a condition "
        "supports this if the whole intervals lie within them, and contradicts it if one lies wholly outside).",
        "b": "Uncertainty and dependence between outputs rise with sparsity, and bias rises with them (rank "
        "correlations over the runs of a seed, mean over seeds; working runs have at least "
        f"{100 * WORKING_SHARE:g} % of the dense accuracy).",
        "c": "The dense model alone predicts which samples pruning will change (area under the ROC curve of its "
        f"uncertainty at least {USEFUL_AREA}) and which {names} it will bias (positive rank correlation).",
    }[hypothesis.key]


def answer(analysis: TaskAnalysis, hypothesis: Hypothesis) -> str:
    """What the evidence says of a hypothesis: how much is for and against it, and what that is."""
    return " ".join(filter(None, (verdict(hypothesis), details(analysis, hypothesis))))


def verdict(hypothesis: Hypothesis) -> str:
    """`Of 12 tests 0 support it, 9 contradict it and 3 are undecided.`"""
    evidence = hypothesis.evidence
    if not evidence:
        return "Nothing to judge it by."
    pro, contra, between = (sum(entry.verdict == kind for entry in evidence) for kind in VERDICTS)
    return (
        f"Of {fmt.plural(len(evidence), 'test')} {pro} support{'s' * (pro == 1)} it, {contra} "
        f"contradict{'s' * (contra == 1)} it and {between} {'is' if between == 1 else 'are'} undecided."
    )


def details(analysis: TaskAnalysis, hypothesis: Hypothesis) -> str:
    """Which evidence is for it, by what it looks at; empty without any."""
    evidence = hypothesis.evidence
    if not evidence:
        return ""
    if hypothesis.key == "a":
        found = [
            f"{entry.method} at {100 * (density(entry) or 0):.3g} % of weights"
            for entry in evidence
            if entry.verdict == "supported"
        ]
        return f"Harmless: {'; '.join(found) or 'none shown to be'}."
    named: dict[str, list[Evidence]] = {}
    for entry in evidence:
        if hypothesis.key == "b" and entry.scope in ("all methods", "within methods"):
            named.setdefault(entry.scope, []).append(entry)
        elif hypothesis.key == "c":
            named.setdefault(subject(analysis, entry), []).append(entry)
    told = "; ".join(f"{name}: {tally(entries)}" for name, entries in named.items())
    return f"{told[:1].upper()}{told[1:]}." if told else ""


def tally(evidence: Iterable[Evidence]) -> str:
    """`0 for, 9 against, 3 undecided`."""
    verdicts = [entry.verdict for entry in evidence]
    return ", ".join(f"{verdicts.count(kind)} {MARKS[kind]}" for kind in VERDICTS)


def subject(analysis: TaskAnalysis, evidence: Evidence) -> str:
    """What evidence looks at."""
    if evidence.kind == "harmless pruning":
        return "accuracy kept, bias not raised"
    if evidence.kind == "rank correlation":
        first, second = (
            "uncertainty" if key == "uncertain_share" else "dependence between outputs"
            for key in evidence.subject
        )
        if evidence.subject[0] == "sparsity":
            return f"{second} rises with sparsity"
        return f"bias rises with {first}" + ", working runs" * evidence.working
    (name,) = evidence.subject
    if evidence.kind == "changed samples":
        return f"samples, {name}"
    return f"{analysis.output_noun}, by {name.replace('_', ' ')}"


def density(evidence: Evidence) -> float | None:
    """The share of weights that are left."""
    return None if evidence.achieved is None else 1 - evidence.achieved


def verdict_and_rho(evidence: Evidence) -> str:
    """`supported: 0.50 [0.25, 0.75], 3 seeds`, of a rank correlation."""
    (test,) = evidence.tests
    return f"{evidence.verdict}: {with_ends(test.estimate)}, {fmt.plural(test.estimate.n, 'seed')}"


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
    """`all runs 0.20 [0.05, 0.35]`, `working runs ...` of two measures; empty where not computed."""
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
    """`sparsity 0.9`, `sparsity native, 0.424`, or `dense`."""
    return "dense" if row.dense else f"sparsity {fmt.sparsity(row.sparsity, row.achieved)}"
