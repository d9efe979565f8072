"""Analyses as Markdown, for a repository's pages: an index, and one page a task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from prunebench.analysis import sections, sheets
from prunebench.analysis.looks import page_name
from prunebench.analysis.sections import Part, Table
from prunebench.analysis.stills import stills_of
from prunebench.analysis.values import Claim, TaskAnalysis
from prunebench.leaderboard.markdown import escape, table
from prunebench.leaderboard.words import MISSING

SHORT = 12
"""Tables of at most so many rows are not folded."""


def index_markdown(analyses: Sequence[TaskAnalysis]) -> str:
    """`README.md`: a row a task with what the evidence says of each claim, then the answers."""
    parts = [f"# {sections.TITLE}", sections.LEAD]
    if not analyses:
        return _join([*parts, "There are no analyses yet: run `prunebench analyze RESULTS`."])
    parts += _claims_table(analyses)
    for analysis in analyses:
        parts.append(f"## [{escape(page_name(analysis))}]({analysis.slug}.md)")
        parts.append(escape(sections.coverage(analysis)))
        parts.append(_bullets(f"**({escape(c.key)})** {escape(c.answer)}" for c in analysis.claims))
    parts.append(sections.SOURCE)
    return _join(parts)


def claims_excerpt(analyses: Sequence[TaskAnalysis], folder: str = "leaderboard/analysis") -> str:
    """What the index says of the claims, for a page from which the analyses lie in `folder`; empty for none."""
    parts = _claims_table(sorted(analyses, key=lambda analysis: analysis.slug), f"{folder}/")
    return "".join(f"{part}\n\n" for part in parts)


def _claims_table(analyses: Sequence[TaskAnalysis], folder: str = "") -> list[str]:
    """The claims, and a row a task with what the evidence says of each; nothing for no analyses."""
    titles = {claim.key: sections.claim_title(claim) for analysis in analyses for claim in analysis.claims}
    keys = sorted(titles)
    if not keys:
        return []
    named = (f"**Claim ({escape(key)}).** {escape(sections.sentence(titles[key]))}" for key in keys)
    rows = []
    for analysis in analyses:
        claims = {claim.key: claim for claim in analysis.claims}
        name = f"[{escape(page_name(analysis))}]({folder}{analysis.slug}.md)"
        rows.append([name, *(sections.verdicts(claims[key]) if key in claims else MISSING for key in keys)])
    return [
        _bullets(named),
        _pipes(["Task", *(f"Claim ({escape(key)})" for key in keys)], rows),
        "Lines of evidence for and against each claim, and those that the data leave undecided.",
    ]


def task_markdown(analysis: TaskAnalysis, *, grid: bool) -> str:
    """`<slug>.md`; figures are in `figures/` (`grid`: the samples' too), the interactive page in `../site/`."""
    slug = analysis.slug
    parts = [f"# {sections.TITLE}: {escape(page_name(analysis))}", sections.LEAD]
    parts.append(
        f"{escape(sections.coverage(analysis))} Interactive figures and sortable tables: "
        f"[{slug}-analysis.html](../site/{slug}-analysis.html). [All tasks](README.md). [Board](../README.md)."
    )
    parts.append(escape(f"{sections.sentence(analysis.title)} {sections.setting(analysis)}"))
    parts.append(_bullets(f"**{term}.** {text}" for term, text in sections.HOW_TO_READ))
    if analysis.left_out:
        lines = _bullets(map(escape, analysis.left_out))
        parts.append(_folded(f"Runs left out ({len(analysis.left_out)})", lines))
    parts.append("## The claims")
    for claim in analysis.claims:
        parts += _claim(claim)
    for part in sections.parts_of(analysis):
        parts += _part(analysis, part, grid)
    parts += [
        "## What the measures mean",
        _measures(analysis),
        sections.SOURCE,
        escape(sections.origin(analysis)),
    ]
    return _join(parts)


def _claim(claim: Claim) -> list[str]:
    evidence = compact(table(sheets.claim_sheet(claim))) if claim.evidence else ""
    relations = sheets.relations_sheet(claim)
    first, rest = sections.answer_parts(claim)
    summary = f"Evidence: {sections.verdicts(claim)}"
    return [
        f"### ({escape(claim.key)}) {escape(sections.claim_title(claim))}",
        f"*{escape(sections.sentence(claim.statement))}*",
        f"**{escape(first)}** {escape(rest)}".rstrip(),
        "" if relations is None else compact(table(relations)),
        _folded(summary, evidence) if len(claim.evidence) > SHORT else evidence,
    ]


def _part(analysis: TaskAnalysis, part: Part, grid: bool) -> list[str]:
    parts = [f"## {part.title}", escape(part.words)]
    for still in stills_of(analysis):
        if still.part == part.anchor:
            picture = f"figures/{analysis.slug}-{still.name}.png"
            parts += [f"![{escape(still.caption.split('. ')[0])}]({picture})", f"*{escape(still.caption)}*"]
    for entry in part.tables:
        parts += _table(part, entry)
        if grid and entry.title == sections.SUSCEPTIBLE_TITLE:
            parts.append(f"![{escape(sections.SUSCEPTIBLE_TITLE)}](figures/{analysis.grid_name})")
    return parts


def _table(part: Part, entry: Table) -> list[str]:
    words = "" if entry.words == part.words else escape(entry.words)
    text = compact(table(entry.sheet))
    if entry.rows > SHORT:
        body = f"{words}\n\n{text}" if words else text
        return [_folded(f"{entry.title} ({entry.rows} rows)", body)]
    return [f"### {entry.title}", words, text]


def _measures(analysis: TaskAnalysis) -> str:
    known = dict(sheets.measure_words((*analysis.measures, *analysis.attribute_measures)))
    return _bullets(
        f"**{escape(title)}.** {escape(sections.sentence(text))}" for title, text in known.items()
    )


def _pipes(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def _folded(summary: str, body: str) -> str:
    return f"<details>\n<summary>{escape(summary)}</summary>\n\n{body}\n\n</details>"


def compact(table_text: str) -> str:
    """A table without the spaces that line its columns up: a third of the bytes of a long one."""
    return re.sub(r"-{3,}", "---", re.sub(r" {2,}", " ", table_text))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _join(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
