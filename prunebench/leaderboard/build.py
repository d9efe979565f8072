"""Leaderboard files: records in, Markdown, figures, the site and a manifest out, byte for byte the same."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prunebench.errors import StoreError
from prunebench.leaderboard import columns
from prunebench.leaderboard.aggregate import build_board, without_collection
from prunebench.leaderboard.answers import answer_of, answers_of, shown_sparsity
from prunebench.leaderboard.diff import BoardChanges, changes_data, changes_markdown
from prunebench.leaderboard.plots import method_styles, still_title, track_grid
from prunebench.leaderboard.site import site_files
from prunebench.leaderboard.values import Leaderboard, Track
from prunebench.report import format as fmt
from prunebench.report.format import listed, plural
from prunebench.report.html import plotly_script
from prunebench.report.markdown import bullets, escape, link, markdown_table, page, picture, pipe_table
from prunebench.report.svg import svg
from prunebench.report.table import Table
from prunebench.results.ranking import FEWEST_SEEDS
from prunebench.results.record import RunRecord
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.standing import NOTHING, Standing
from prunebench.results.store import write_atomically
from prunebench.results.tracks import REFERENCE

MANIFEST = "MANIFEST.sha256"
PLOTLY = "site/plotly.min.js"
PLACES = ("CHANGES.md", "methods.md", "tasks", "figures", "site", "analysis")
"""Where files of a board may have become stale; README.md is written always."""
ANALYSIS = "Bias under pruning"
ANALYSIS_PAGE = "-analysis.html"

INTRODUCTION = (
    "What pruning costs the minorities of a vision model, and what it really gains in speed. Every number "
    "here is computed from the stored records of runs."
)
ACCURACY_WORDS = (
    "Accuracy in %, mean over seeds ± half-width of its 95 % t-interval, or [its ends] where it is cut at 0 or 100. "
    "Rank: the places within the sparsity that paired t-tests over the shared seeds allow, with the false discovery "
    f"rate held at 5 % (Benjamini and Hochberg). Change: the mean difference from {REFERENCE}, paired by seed; * where "
    f"the same tests tell them apart. Training: steps as a multiple of those of {REFERENCE}."
)
MASK_WORDS = (
    "What a mask adds to bias-conflicting accuracy: the method minus the same method with its masks shuffled within "
    "each layer, and minus its unpruned form (the debiased net where it debiases, else the reference), percentage "
    "points, paired by seed ± half-width of the 95 % t-interval; * where the difference holds at a false discovery "
    "rate of 5 % within the sparsity."
)
ATTRIBUTE_WORDS = (
    "The task predicts several attributes of an image; the groups above are of its target attribute. Here are "
    "means over all attributes, mean over seeds ± half-width of its 95 % t-interval; shares in %, bias amplification "
    "and calibration error in percentage points."
)
COST_WORDS = (
    "Means over seeds. MACs are multiply-accumulates of one image; non-zero MACs are what is left if "
    "every zero were skipped. Latency is the median over runs of each run's median; measured speed-up is "
    "dense / pruned latency, the geometric mean over runs of the ratio within one run ± the longer side of its 95 % "
    "bootstrap interval; n.s.: the interval holds 1, no measurable difference; busy: other work disturbed a run, "
    f"and the speed says little. Training is a multiple of the training steps of {REFERENCE}."
)
MINING_WORDS = (
    "Methods that look for bias-conflicting training images without being told: the share of mined images "
    "that truly conflict (precision) and of conflicting ones that were mined (recall), in %, mean over "
    "seeds ± half-width of its 95 % t-interval."
)
ANSWER_WORDS = (
    "Accuracy of the minorities (bias-conflicting groups; of tasks without them, over all groups) in %, mean over "
    "seeds ± half-width of its 95 % interval, of the best method and of an unpruned network with the same steps. "
    "Behind each task: all its tables."
)
SITE_WORDS = (
    "Interactive figures and sortable tables: `prunebench leaderboard` writes `site/index.html`, which opens from disk "
    "and needs no network."
)
SUPERVISION_WORDS = (
    "Supervision is what a method may know of the bias: nothing, the share of bias-conflicting training images "
    "(bias-rate), the bias labels of the validation split (val-groups), or those of the training split too "
    "(train-groups)."
)
HISTORY_WORDS = "Versions that are no longer listed; their records stay in the results."
EMPTY_WORDS = "There are no records yet. Run a suite with `prunebench run`, then write the board again."

HOW_TO_READ = {
    "Groups": (
        "A group is all test images with one label and one bias attribute (a digit and its colour). In "
        "training nearly all images of a label share one attribute: those groups are bias-aligned. The "
        "few that break the rule are bias-conflicting: the minorities."
    ),
    "Metrics": "",
    "Mean ± half-width": (
        "The mean over seeds and the half-width of its 95 % Student t-interval (n - 1 degrees of "
        "freedom). It speaks of other seeds of the same experiment, not of other data; with few seeds it "
        "is wide. Where it would reach below 0 or above 100 % it is cut there and written with its ends. One seed "
        "gives no half-width (en dash)."
    ),
    "Reference": (
        f"{REFERENCE} is the unpruned network with the training steps of a pruned one. Changes, and training as a "
        "multiple, refer to it alone: more steps change the minorities by themselves. Where a task has no run of it, "
        "there is a dash, and a sentence says so."
    ),
    "Ranks": (
        "Within a sparsity every pair of ranked rows, and every row with the reference, is tested by a two-sided "
        f"paired t-test over the shared seeds, {FEWEST_SEEDS} at least. Benjamini and Hochberg's correction over all "
        "these tests holds the expected share of false differences at 5 %. A rank is the range of places that agrees "
        "with the decided pairs: 1 + how many beat the row, to the number of rows minus how many it beats. Ranges "
        "overlap where the data decide nothing; rows are in order of the mean. `prunebench compare` gives the same "
        f"verdict on the same pair. No rank: fewer than {FEWEST_SEEDS} seeds, a failed run, collapsed networks, "
        "references, methods that need the dense network to answer or choose their sparsity; each row says why. A "
        "difference that is the same on every seed has no spread and is not tested."
    ),
    "Collapsed": (
        "A row (‡) whose networks, at least half of them, are near chance on validation images, biased like those of "
        "training: mean accuracy over classes below 1/C + 0.1 (1 - 1/C) of C classes (19 % of ten, 55 % of two)."
    ),
    "Sparsity": (
        "The share of zeros among the weights that may be pruned: asked for, and achieved, counted after "
        "fine-tuning. The native block holds methods that choose their sparsity themselves."
    ),
    "Speed": (
        "The non-zero MACs say what sparsity could save at best, the latencies what it did save. Sparse "
        "inference folds BatchNorm, removes channels that pruning emptied, and takes for every convolution "
        "the layout that was measured to be the fastest, dense among them; the dense reference is folded "
        "and fused too. Dense kernels with zeros is the plain network, whose kernels multiply zeros like any "
        "other number. Dense and pruned model are timed in turns within one run, on a GPU as CUDA "
        "graphs (the GPU's work without its launching), and latencies of different machines or kinds are "
        "never mixed."
    ),
    "Coverage": (
        "Seeds 5/10 means that five of ten planned seeds finished; the mean is over these, and the missing ones are "
        "named below the table. With a failed run the row has no mean (em dash), for the failure may come of what is "
        "measured. Seeds beyond the planned ones are named and stand in no mean."
    ),
}
"""Terms and what they mean; of the metrics, what the registry says."""


@dataclass(frozen=True)
class AnalysisLink:
    """An analysis of a track: `analysis/<slug>.md` and `site/<slug>-analysis.html` beside the board."""

    slug: str
    task: str
    name: str

    @property
    def page(self) -> str:
        """Its file in `site`."""
        return f"{self.slug}{ANALYSIS_PAGE}"


Links = Sequence[AnalysisLink]
NO_CARDS: Mapping[str, Any] = MappingProxyType({})


def write_board(
    records: list[RunRecord], out: Path, analyses: Links = (), standing: Standing = NOTHING
) -> Leaderboard:
    """Write the board's files under `out`; returns what they show. Raises StoreError where it cannot be written."""
    board = build_board(records, standing)
    write_pages(out, board_files(board, analyses))
    return board


@without_collection()
def board_files(
    board: Leaderboard,
    analyses: Links = (),
    changes: BoardChanges | None = None,
    hypotheses: Mapping[str, Any] = NO_CARDS,
) -> dict[str, bytes]:
    """README.md, methods.md, `tasks/*.md`, `figures/*.svg` and `site/`, by name; CHANGES.md with `changes`.

    `hypotheses`: by slug, the cards that the site shows; under "" those of the whole board.
    """
    styles = method_styles(board)
    texts = {"README.md": board_markdown(board, analyses)}
    if changes is not None:
        texts["CHANGES.md"] = changes_markdown(changes)
    if board.tracks:
        texts["methods.md"] = methods_markdown(board)
    for track in board.tracks:
        texts[f"tasks/{track.slug}.md"] = task_markdown(track, link_of(track, analyses))
        if track.finished:
            texts[f"figures/{track.slug}.svg"] = svg(track_grid(track, styles))
    words = {
        "introduction": INTRODUCTION,
        "facts": facts_line(board) if board.tracks else EMPTY_WORDS,
        "reading": [*how_to_read().items(), ("Supervision", SUPERVISION_WORDS), ("Cost", COST_WORDS)],
    }
    pages = {found.slug: found.page for track in board.tracks if (found := link_of(track, analyses))}
    shown = None if changes is None else changes_data(changes)
    return {name: text.encode() for name, text in texts.items()} | site_files(
        board, words, pages, hypotheses, shown
    )


def write_pages(out: Path, files: Mapping[str, bytes], *, whole: bool = False) -> None:
    """Write files below a folder, by name, with MANIFEST.sha256, for `sha256sum --check`.

    Beside pages of analyses lies plotly's script; not in the manifest, for it is that of the installed package.

    whole: these are all files of the board; what the former manifest lists besides is removed, unless it was changed.

    Raises StoreError where they cannot be written.
    """
    every = dict(files)
    if any(name.endswith(ANALYSIS_PAGE) for name in files):
        every[PLOTLY] = plotly_script().encode()
    digests = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    every[MANIFEST] = "".join(digests).encode()  # the last: until it is there, the former one counts
    if whole:
        _remove_stale(out, files)
    for name, content in every.items():
        path = out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"cannot write {path}: {reason}; choose another folder for the board") from error
        write_atomically(path, content)


def _remove_stale(out: Path, files: Mapping[str, bytes]) -> None:
    """Remove the files of an earlier board that are none of this one, as they were written and where boards write."""
    manifest = out / MANIFEST
    text = manifest.read_text(encoding="utf-8", errors="replace") if manifest.is_file() else ""
    for digest, _, name in (line.partition("  ") for line in text.splitlines()):
        path, parts = out / name, Path(name).parts
        if name in files or ".." in parts or not parts or parts[0] not in PLACES:
            continue
        with contextlib.suppress(OSError):
            if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                path.unlink()


def link_of(track: Track, links: Links) -> AnalysisLink | None:
    """The analysis of a track, if there is one."""
    return next((found for found in links if (found.slug, found.task) == (track.slug, track.task)), None)


# Sentences


def facts_line(board: Leaderboard) -> str:
    """How much the board rests on, in one or two sentences."""
    line = (
        f"{board.ok} of {board.runs} recorded runs finished; {plural(len(board.labels), 'pruning method')}, "
        f"{listed('seed', board.seeds)}."
    )
    if board.duplicates:
        line += f" {board.duplicates} further records of the same runs were left out: the latest finished one counts."
    if board.tuning:
        line += f" {board.tuning} runs of seeds from {TUNE_SEEDS} were left out: such seeds are for choosing budgets."
    return line


def track_lines(track: Track) -> list[str]:
    """What sets a track apart; task version, data, model and training budget; and what to know before comparing."""
    recipe = dict(track.recipe)
    settings = ", ".join(
        f"{name.replace('_', ' ')} {recipe[name]}"
        for name in sorted(recipe)
        if name not in ("steps", "finetune_steps")
    )
    apart = f"Not averaged with the other tracks of {track.task}: here {track.differs}."
    return [
        *([apart] if track.differs is not None else []),
        f"Model {track.model}; {recipe.get('steps')} training steps and {recipe.get('finetune_steps')} of fine-tuning "
        f"for every method ({settings}). Task version {track.task_version}, data {track.data_fingerprint}.",
        *track.notes,
    ]


def how_to_read() -> dict[str, str]:
    """Terms and what they mean, in Markdown; users' metrics among them say it in plain text."""
    return HOW_TO_READ | {"Metrics": escape(columns.metric_words(attributes=False))}


@dataclass(frozen=True)
class BoardPart:
    """A heading below a track, its words, and a table; `lead` is a sentence in bold."""

    title: str
    words: str
    table: Table[Any]
    lead: str | None = None


def parts_of(track: Track) -> list[BoardPart]:
    """The tables of a track, for Markdown and the page alike."""
    machines = (
        f" Latencies: {'; '.join(machine.label for machine in track.machines)}." if track.machines else ""
    )
    attributes, mining = columns.attributes_table(track), columns.mining_table(track)
    attribute_words = f"{ATTRIBUTE_WORDS} {columns.metric_words(attributes=True)}"
    cost_words = f"{COST_WORDS}{machines}"
    found = [BoardPart("Accuracy", ACCURACY_WORDS, columns.accuracy_table(track))]
    found += [BoardPart("Attributes", attribute_words, attributes)] if attributes is not None else []
    masks = columns.masks_table(track)
    found += [BoardPart("What the mask adds", MASK_WORDS, masks)] if masks is not None else []
    found.append(BoardPart("Cost", cost_words, columns.cost_table(track), columns.speed_summary(track)))
    return found + ([BoardPart("Mining", MINING_WORDS, mining)] if mining is not None else [])


# Markdown


def board_markdown(board: Leaderboard, analyses: Links = ()) -> str:
    """The front page: the answer for each task, and how to read it; the tables are in files of their own."""
    parts = ["# PruneBench leaderboard", INTRODUCTION]
    if not board.tracks:
        return page([*parts, EMPTY_WORDS])
    parts.append(f"{facts_line(board)} {SITE_WORDS}")
    parts += ["## The best of each task", ANSWER_WORDS, answers_table(board)]
    if analyses:
        names = ", ".join(link(one.name, f"analysis/{one.slug}.md") for one in analyses)
        parts.append(f"[{ANALYSIS}](analysis/README.md): {names}.")
    parts.append("[Methods, machines and code](methods.md).")
    parts += ["## How to read this", bullets(f"**{term}.** {text}" for term, text in how_to_read().items())]
    return page(parts)


def answers_table(board: Leaderboard) -> str:
    """A line a task: the best method at the sparsity that is shown first, and where the rest is."""
    heads = [
        "Task",
        "Sparsity",
        "Best method",
        "Rank",
        "Accuracy ±",
        "Unpruned",
        "Bias gap",
        "Speed-up ±",
        "Training",
    ]
    rows = []
    for track in board.tracks:
        shown = shown_sparsity(track)
        answer = None if shown is None else answer_of(track, shown)
        cells = (
            ["no ranked method with all its seeds", *[fmt.MISSING] * 7] if answer is None else answer.cells
        )
        rows.append([link(track.title, f"tasks/{track.slug}.md"), *map(escape, cells)])
    return pipe_table(heads, rows)


def task_markdown(track: Track, analysis: AnalysisLink | None) -> str:
    """`tasks/<slug>.md`: all tables of a track; its figure is in `../figures/<slug>.svg`."""
    parts = [f"# {escape(track.title)}", "[Leaderboard](../README.md).", *map(escape, track_lines(track))]
    parts.append(bullets(escape(answer.words) for answer in answers_of(track)))
    if analysis is not None:
        parts.append(link(f"{ANALYSIS}: the analysis of this task", f"../analysis/{analysis.slug}.md"))
    parts.append(picture(still_title(track), f"../figures/{track.slug}.svg") if track.finished else "")
    for part in parts_of(track):
        lead = f"**{part.lead}**" if part.lead else ""
        parts += [f"## {part.title}", escape(part.words), lead, markdown_table(part.table)]
        if part.title == "Accuracy":
            parts += [bullets(map(escape, track.remarks))] if track.remarks else []
        if part.title == "Accuracy" and track.problems:
            parts += ["Missing or failed runs:", bullets(map(escape, track.problems))]
    return page(parts)


def methods_markdown(board: Leaderboard) -> str:
    """`methods.md`: methods with their sources, versions that are gone, machines and code."""
    parts = [
        "# Methods",
        "[Leaderboard](README.md).",
        SUPERVISION_WORDS,
        markdown_table(columns.methods_table(board)),
    ]
    if board.history:
        parts += ["## History", HISTORY_WORDS, bullets(map(escape, board.history))]
    return page([*parts, "## Provenance", *map(markdown_table, columns.origin_tables(board))])
