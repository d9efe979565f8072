"""The page of `prunebench compare`: the verdict, what stands behind it, then the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from prunebench.cli.console import Field, console, fitting_table
from prunebench.comparison.conclusions import WIDE, conclude, is_significant, p_text
from prunebench.comparison.tests import Comparison, SampleTest
from prunebench.stats.intervals import Interval

FEW_GROUPS, MOST_NOTES = 10, 3
"""At most so many groups are all shown; of more, so many with a significant difference, the lowest p first."""
HEADLINE = ("conflicting", "unbiased", "attribute_accuracy", "plain")
"""The verdict speaks of the first of these metrics that both have."""


def print_found(found: Comparison, *, every_table: bool = False) -> None:
    """Print a comparison; by sample for each pair of runs only where every table is wanted."""
    console.print(
        f"A = {found.first}, B = {found.second}; {found.task}, {', '.join(found.pairs)}", soft_wrap=True
    )
    _print_verdict(found)
    _print_conclusions(found, every_table=every_table)
    _print_seeds(found)
    _print_samples(found.pooled, "By sample: sign flips of source images, all pairs of runs together")
    if every_table:
        _print_samples(found.by_pair, "By sample, each pair of runs")
    elif found.by_pair:
        console.print("each pair of runs by sample: --all", style="dim")


def _print_verdict(found: Comparison) -> None:
    """Who is better at the task's first metric by this much, and whether that would hold for other seeds."""
    tests = {test.metric.name: test for test in found.by_seed if not math.isnan(test.difference.mean)}
    name = next((name for name in HEADLINE if name in tests), None)
    if name is None:
        return
    test = tests[name]
    metric, difference = test.metric, test.difference.mean
    if difference == 0:
        console.print(f"Verdict: {metric.in_words} of both is the same.", style="bold", soft_wrap=True)
        return
    winner, loser = (found.second, found.first) if difference > 0 else (found.first, found.second)
    size = f"{abs(difference) * metric.scale:.{metric.decimals}f}"
    unit = " points" if metric.scale == 100 else f" {metric.unit}".rstrip()
    shown = f"{metric.in_words} is {size}{unit} higher than of {loser}"
    if is_significant(test):
        told = f"with other seeds too (corrected p {p_text(test.corrected_p)})"
    elif len(found.pairs) == 1:
        told = "in this one pair of runs; other seeds may differ"
    else:
        told = f"in these {len(found.pairs)} pairs; not shown for other seeds"
        told += "" if math.isnan(test.corrected_p) else f" (corrected p {p_text(test.corrected_p)})"
    console.print(f"Verdict: {winner} is ahead: its {shown}, {told}.", style="bold", soft_wrap=True)


def _print_seeds(found: Comparison) -> None:
    tests = found.by_seed
    if not tests:
        return
    fields = (
        Field("metric", whole=False), Field("A", right=True), Field("B", right=True), Field("A - B", right=True),
        Field("p", drop=1, right=True), Field("corrected p", right=True),
    )  # fmt: skip
    rows = []
    for test in tests:
        metric = test.metric
        scale, places, sign = metric.scale, metric.decimals, "%" if metric.scale == 100 else ""
        rows.append(
            (
                metric.title, f"{test.first * scale:.{places}f}{sign}", f"{test.second * scale:.{places}f}{sign}",
                _difference(test.difference, scale, places), p_text(test.p_value), p_text(test.corrected_p),
            )
        )  # fmt: skip
    family = max(test.family for test in tests)
    of = f"{family} tests of this sparsity on the board" if found.board else "this pair alone"
    console.print(
        f"\nBy seed: paired t-test, 95 % t interval of A - B; corrected (Benjamini-Hochberg) over {of}",
        soft_wrap=True,
    )
    console.print(fitting_table(fields, rows)[0])


def _difference(difference: Interval, scale: float, places: int) -> str:
    """A - B from the interval of B - A: `+3.1 +- 0.4`."""
    width = "" if math.isnan(difference.half_width) else f" +- {difference.half_width * scale:.{places}f}"
    return f"{0.0 - difference.mean * scale:+.{places}f}{width}"


def _print_samples(tests: Sequence[SampleTest], title: str) -> None:
    if not tests:
        return
    groups = [test for test in tests if test.scope not in WIDE]
    if len({test.scope for test in groups}) > FEW_GROUPS:
        groups = sorted(filter(is_significant, groups), key=lambda test: test.p_value)[:FEW_GROUPS]
    shown = [*(test for test in tests if test.scope in WIDE), *groups]
    fields = (
        Field("samples", whole=False, least=17), Field("pair", drop=6), Field("number", drop=4, right=True),
        Field("images", drop=3, right=True), Field("A right", right=True), Field("B right", right=True),
        Field("A - B", drop=2, right=True), Field("p", drop=5, right=True), Field("corrected p", right=True),
    )  # fmt: skip
    if any(test.pair for test in shown):
        fields = (fields[0], replace(fields[1], drop=0), *fields[2:])
    rows = [
        (
            test.scope, test.pair or "all", str(test.samples), str(test.images), f"{test.first_right:.1%}",
            f"{test.second_right:.1%}", _difference(test.difference, 100.0, 1), p_text(test.p_value),
            p_text(test.corrected_p),
        )
        for test in shown
    ]  # fmt: skip
    console.print(f"\n{title}", soft_wrap=True)
    console.print(fitting_table(fields, rows)[0])
    hidden = len(tests) - len(shown)
    line = f"corrected for all {len(tests)} tests"
    console.print(f"{line}; {hidden} of them, of groups, are not shown" if hidden else line, soft_wrap=True)


def _print_conclusions(found: Comparison, *, every_table: bool) -> None:
    said, notes = conclude(found), list(found.notes)
    if len(notes) > MOST_NOTES and not every_table:
        notes[MOST_NOTES - 1 :] = [f"and {len(notes) - MOST_NOTES + 1} more (--all)"]
    for heading, lines, none in (
        ("Significant (corrected p at most 0.05):", said.significant, "nothing"),
        ("Not significant:", said.not_significant, ""),
        ("Undecided by these runs:", said.undecided, ""),
        ("Notes:", notes, ""),
    ):
        if lines or none:
            console.print(heading, style="bold")
        for line in lines or [none] * bool(none):
            console.print(f"  {line}", soft_wrap=True)
    console.print(
        "By seed says whether the methods differ when trained again; by sample, whether these very models do, if "
        "images are independent.",
        soft_wrap=True,
    )
