"""The board as Markdown, for a repository's pages."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from prunebench.leaderboard import words
from prunebench.leaderboard.board import Board, Section
from prunebench.leaderboard.layout import (
    Sheet,
    accuracy_sheet,
    attributes_sheet,
    cost_sheet,
    methods_sheet,
    mining_sheet,
    origin_sheets,
    speed_summary,
)
from prunebench.leaderboard.links import WORDS, AnalysisLink, link_of


def board_markdown(board: Board, analyses: Sequence[AnalysisLink] = ()) -> str:
    """The whole board. The figures are beside it, in `figures/<slug>.svg`; the site is in `site/`."""
    parts = ["# PruneBench leaderboard", words.INTRODUCTION]
    if not board.sections:
        return _join([*parts, words.EMPTY_WORDS])
    parts.append(
        f"{facts_line(board)} Interactive figures and sortable tables: open "
        "[site/index.html](site/index.html) in a browser; it needs no network."
    )
    parts.append(_bullets(f"[{escape(section.title)}](#{section.slug})" for section in board.sections))
    if analyses:
        names = ", ".join(f"[{escape(link.name)}](analysis/{link.slug}.md)" for link in analyses)
        parts.append(f"[{WORDS}](analysis/README.md): {names}.")
    parts += ["## How to read this", _bullets(f"**{term}.** {text}" for term, text in words.HOW_TO_READ)]
    for section in board.sections:
        parts += _section(section, link_of(section, analyses))
    parts += [
        "## Methods",
        words.SUPERVISION_WORDS,
        table(methods_sheet(board)),
        "## Where the numbers were made",
    ]
    parts += map(table, origin_sheets(board))
    return _join(parts)


def facts_line(board: Board) -> str:
    """How much the board rests on, in one or two sentences."""
    seeds = ", ".join(map(str, board.seeds))
    methods = len(board.labels)
    line = (
        f"{board.ok} of {board.runs} recorded runs finished; {methods} pruning method{'s' * (methods != 1)}, "
        f"seed{'s' * (len(board.seeds) > 1)} {seeds}."
    )
    if board.duplicates:
        line += (
            f" {board.duplicates} further records of the same runs were left out: "
            "the latest finished one counts."
        )
    return line


def describe_section(section: Section) -> str:
    """Task version, data, model and training budget of a section."""
    recipe = dict(section.recipe)
    settings = ", ".join(
        f"{name.replace('_', ' ')} {recipe[name]}"
        for name in sorted(recipe)
        if name not in ("steps", "finetune_steps")
    )
    return (
        f"Model {section.model}; {recipe.get('steps')} training steps and {recipe.get('finetune_steps')} of "
        f"fine-tuning for every method ({settings}). Task version {section.task_version}, "
        f"data {section.data_fingerprint}."
    )


def machine_line(section: Section) -> str:
    """Where the latencies of a section were taken."""
    return f"Latencies: {'; '.join(machine.label for machine in section.machines)}."


def difference_line(section: Section) -> str | None:
    """Why this section is not averaged with others of its task."""
    if section.differs is None:
        return None
    return f"Not averaged with the other sections of {section.task}: here {section.differs}."


def _section(section: Section, analysis: AnalysisLink | None) -> list[str]:
    parts = [f'<a id="{section.slug}"></a>', f"## {escape(section.title)}"]
    lines = [difference_line(section), describe_section(section), *section.notes]
    parts += [escape(line) for line in lines if line]
    if analysis is not None:
        parts.append(f"[{WORDS}: the analysis of this task](analysis/{analysis.slug}.md)")
    alt = f"Unbiased and conflicting accuracy over sparsity, {section.title}"
    parts.append(f"![{escape(alt)}](figures/{section.slug}.svg)" if section.finished else "")
    parts += ["### Accuracy", words.ACCURACY_WORDS, table(accuracy_sheet(section))]
    if section.problems:
        parts += ["Missing or failed runs:", _bullets(map(escape, section.problems))]
    attributes = attributes_sheet(section)
    if attributes is not None:
        parts += ["### Attributes", words.ATTRIBUTE_WORDS, table(attributes)]
    parts += ["### Cost", words.COST_WORDS, escape(machine_line(section)) if section.machines else ""]
    summary = speed_summary(section)
    parts += [f"**{summary}**" if summary else "", table(cost_sheet(section))]
    mining = mining_sheet(section)
    if mining is not None:
        parts += ["### Mining", words.MINING_WORDS, table(mining)]
    return parts


def table(sheet: Sheet) -> str:
    """A sheet as a Markdown table; a block's heading is a row of its own."""
    rows = []
    for block in sheet.blocks:
        if block.heading:
            rows.append(["", f"*{block.heading}*", *[""] * (len(sheet.columns) - 2)])
        rows += [[escape(cell.text) for cell in row] for row in block.rows]
    return tabulate(
        rows,
        headers=[column.title for column in sheet.columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if column.numeric else "left" for column in sheet.columns],
    )


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", plain)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _join(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
