"""What the page of a task says and in which order: titles, words and tables, for Markdown and HTML alike."""

from __future__ import annotations

from dataclasses import dataclass

from prunebench.analysis import foretelling_sheets, sheets
from prunebench.analysis.looks import methods_of
from prunebench.analysis.values import Claim, TaskAnalysis
from prunebench.leaderboard.layout import Sheet

TITLE = "Bias under pruning"
LEAD = (
    "What pruning did to bias, uncertainty and dependence, and whether the dense model foretold it: the three "
    "claims of Iofinova, Peste and Alistarh (2023), with every number for and against them on this data."
)
SOURCE = (
    "E. Iofinova, A. Peste, D. Alistarh: Bias in Pruned Vision Models: In-Depth Analysis and Countermeasures, "
    "CVPR 2023."
)
PLUS_MINUS = (
    "Mean ± half-width of the 95 % Student t-interval over seeds: it speaks of other seeds of the same "
    "experiment, and one seed gives none (en dash)."
)
CHANGE_WORDS = (
    "Pruned minus the dense model of the same seed, so that what a seed does to both cancels; mean ± half-width of "
    "the 95 % t-interval over seeds."
)
SAMPLED_WORDS = (
    "In brackets the 95 % bootstrap interval over seeds and test samples: it speaks of other seeds and of other "
    "images alike."
)
ATTRIBUTE_WORDS = "Means over seeds, one table a measure; a column an attribute."
CLASS_WORDS = "Means over seeds, one table a measure; a column a class, judged one against the rest."
GROUP_WORDS = (
    "A group is all test images of one label and one bias. Looked at are the groups of each cell that lost or gained "
    "most accuracy: dense against pruned seeds by Welch's t-test, p corrected by Holm's method over all groups of the "
    "cell; a group has changed where corrected p < 0.05."
)
EXEMPLAR_WORDS = (
    "A compression-identified exemplar is a test sample whose most frequent label over dense seeds differs from that "
    "over pruned seeds. Other seeds alone change some too: the control compares dense with other dense models in "
    "populations of the same size, and what pruning adds is the difference."
)
SPLIT_WORDS = (
    "The squared loss of the probabilities is bias squared (what the mean over seeds gets wrong) plus variance "
    "(how far the seeds scatter about their mean)."
)
CORRELATION_WORDS = (
    "Spearman's rank correlation over the runs of a seed, of sparsity, uncertainty, dependence and bias: mean over "
    "seeds, in brackets the 95 % t-interval over seeds; none where a seed has fewer than five runs. Working runs are "
    "those that keep most of the dense accuracy, because a network at chance treats all groups alike. Within methods, "
    "a run's rank is that among the runs of its own method, without the dense ones: what differs between methods is "
    "left out."
)
SAMPLE_WORDS = (
    "Samples (with several attributes: outputs, of a sample and an attribute) are ranked by the dense models' "
    "uncertainty, and asked is whether those that changed stand on top: modal "
    "exemplars, flips (the label of the dense model of the same seed changed) and new errors (a right one became "
    "wrong). AUROC is the chance that a changed sample ranks above an unchanged one; 0.5 is guessing. Its 95 % "
    "interval is a bootstrap over samples for modal exemplars and a t-interval over seeds for flips and new errors."
)
ATTRIBUTE_FORETELLING_WORDS = (
    "Do {names} that look risky in the dense models gain the most bias? Spearman's rank correlation over {names}, with "
    "its 95 % bootstrap interval in brackets. The criteria amplification and combined hold the dense bias, from which "
    "the gain is measured: noise in it alone pulls them below 0, so the claims leave them out."
)
SUSCEPTIBLE_WORDS = (
    "The test samples of which the dense models are least sure. Under each: its true label; then what the dense "
    "models say and what the pruned ones say."
)
SUSCEPTIBLE_TITLE = "The most susceptible samples"
CLAIM_TITLES = {
    "a": "A tenth of the weights or fewer, without loss of accuracy or more bias",
    "b": "Uncertainty and dependence rise with sparsity, and bias with them",
    "c": "The dense model alone foretells what pruning will change",
}
UNDEFINED = "A value that is undefined, or that a missing run leaves open, is an em dash, never 0."

HOW_TO_READ = (
    ("Mean ± half-width", PLUS_MINUS),
    (
        "In brackets",
        "Of what is not a mean over seeds, the ends of the 95 % interval; each table says over what.",
    ),
    (
        "Changes",
        "Pruned minus the dense model of the same seed, in percentage points where shares are compared.",
    ),
    (
        "Sparsity",
        "The share of zeros asked for among the weights that may be pruned. Native: the method chose it; stars in the "
        "figures, at the sparsity achieved.",
    ),
    ("Missing", UNDEFINED),
    (
        "Verdicts",
        "A line of evidence is for or against a claim only where its whole 95 % interval is; otherwise it is "
        "undecided. The intervals are not corrected for the number of lines.",
    ),
)


@dataclass(frozen=True)
class Table:
    """A table with its heading and words; `long` ones are folded."""

    title: str
    words: str
    sheet: Sheet
    long: bool = True

    @property
    def rows(self) -> int:
        return len(self.sheet.rows)


@dataclass(frozen=True)
class Part:
    """A heading, words, and tables; figures belong to it by `anchor`."""

    anchor: str
    title: str
    words: str
    tables: tuple[Table, ...]


def coverage(analysis: TaskAnalysis) -> str:
    """What the page rests on, in one sentence."""
    methods = len(methods_of(analysis))
    seeds = ", ".join(map(str, analysis.seeds)) or "none"
    left = f"; {len(analysis.left_out)} left out" if analysis.left_out else ""
    return (
        f"{analysis.runs} run{'s' * (analysis.runs != 1)} of {methods} pruning method{'s' * (methods != 1)} and the "
        f"dense model, seed{'s' * (len(analysis.seeds) != 1)} {seeds}; {analysis.samples} test images{left}."
    )


def setting(analysis: TaskAnalysis) -> str:
    """Model, budget, what is predicted and what the bias is."""
    recipe = analysis.recipe
    budget = ", ".join(f"{name.replace('_', ' ')} {recipe[name]}" for name in sorted(recipe))
    kind = "attributes" if analysis.multi_label else "classes"
    identities = f"; identity attributes: {', '.join(analysis.identities)}" if analysis.identities else ""
    return (
        f"Model {analysis.model}; {len(analysis.outputs)} {kind}{identities}; bias: {analysis.bias_name}. "
        f"Training: {budget or 'not recorded'}. Data: {analysis.source}."
    )


def origin(analysis: TaskAnalysis) -> str:
    """Which code computed the numbers."""
    commit = str(analysis.code.get("commit") or "unknown commit")[:12]
    changed = " with uncommitted changes" if analysis.code.get("dirty") else ""
    return (
        f"Computed by prunebench {analysis.code.get('version') or 'of unknown version'}, {commit}{changed}."
    )


def verdicts(claim: Claim) -> str:
    """`2 for, 1 against, 3 undecided`."""
    return ", ".join(f"{claim.count(verdict)} {verdict}" for verdict in ("for", "against", "undecided"))


def parts_of(analysis: TaskAnalysis) -> list[Part]:
    """Everything below the claims; tables without rows are dropped, parts without anything too."""
    parts = [_curves(analysis), _together(analysis), _attributes(analysis), _groups(analysis)]
    parts += [_exemplars(analysis), _foretelling(analysis), _splits(analysis)]
    kept = []
    for part in parts:
        tables = tuple(table for table in part.tables if table.rows)
        if tables:
            kept.append(Part(part.anchor, part.title, part.words, tables))
    return kept


def _curves(analysis: TaskAnalysis) -> Part:
    tables = (
        Table("All measures", PLUS_MINUS, sheets.measures_sheet(analysis)),
        Table("Changes from the dense model", CHANGE_WORDS, sheets.changes_sheet(analysis)),
        Table("Over other images too", SAMPLED_WORDS, sheets.sampled_sheet(analysis)),
    )
    return Part("sparsity", "Against sparsity", PLUS_MINUS, tables)


def _together(analysis: TaskAnalysis) -> Part:
    table = Table("Rank correlations", CORRELATION_WORDS, foretelling_sheets.correlation_sheet(analysis))
    return Part("together", "What goes with bias", CORRELATION_WORDS, (table,))


def _attributes(analysis: TaskAnalysis) -> Part:
    tables = tuple(
        Table(measure.title, sentence(measure.help), sheets.attribute_sheet(analysis, measure))
        for measure in analysis.attribute_measures
    )
    if analysis.multi_label:
        return Part("attributes", "By attribute", ATTRIBUTE_WORDS, tables)
    return Part("attributes", "By class", CLASS_WORDS, tables)


def _groups(analysis: TaskAnalysis) -> Part:
    changed, unlisted = sheets.changed_groups_sheet(analysis)
    more = f" {unlisted} more are in the JSON." if unlisted else ""
    tables = (
        Table("Largest changes, by cell", "", sheets.group_summary_sheet(analysis)),
        Table("Groups whose accuracy changed", f"Those with corrected p < 0.05.{more}", changed),
    )
    return Part("groups", "By group", GROUP_WORDS, tables)


def _exemplars(analysis: TaskAnalysis) -> Part:
    table = Table("Exemplars and their control", EXEMPLAR_WORDS, foretelling_sheets.exemplar_sheet(analysis))
    return Part("exemplars", "Exemplars", EXEMPLAR_WORDS, (table,))


def _foretelling(analysis: TaskAnalysis) -> Part:
    names = "attributes" if analysis.multi_label else "classes"
    words = ATTRIBUTE_FORETELLING_WORDS.format(names=names)
    attributes = foretelling_sheets.attribute_foretelling_sheet(analysis)
    tables = (
        Table(
            "Samples, by the dense model's uncertainty",
            "",
            foretelling_sheets.sample_foretelling_sheet(analysis),
        ),
        Table(f"{names.capitalize()}, by criteria of the dense model", words, attributes),
        Table(SUSCEPTIBLE_TITLE, SUSCEPTIBLE_WORDS, foretelling_sheets.susceptible_sheet(analysis)),
    )
    return Part("foretelling", "What the dense model foretold", SAMPLE_WORDS, tables)


def _splits(analysis: TaskAnalysis) -> Part:
    table = Table("Bias and variance of the loss", SPLIT_WORDS, foretelling_sheets.split_sheet(analysis))
    return Part("splits", "Bias and variance over seeds", SPLIT_WORDS, (table,))


def sentence(text: str) -> str:
    """With a full stop at its end."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def answer_parts(claim: Claim) -> tuple[str, str]:
    """The first sentence of the answer, and the rest."""
    first, mark, rest = claim.answer.partition(". ")
    return (f"{first}.", rest) if mark else (claim.answer, "")


def claim_title(claim: Claim) -> str:
    """A few words for a claim."""
    return CLAIM_TITLES.get(claim.key, claim.statement)
