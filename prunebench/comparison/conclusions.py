"""The conclusions of a comparison in words: significant differences, insignificant ones, and what cannot be told."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from prunebench.comparison.tests import Comparison, SampleTest, SeedTest
from prunebench.stats.tests import SIGNIFICANCE, least_sign_flip_p_value

NAMED = 3
"""At most so many groups are named in a sentence."""
WIDE = ("all samples", "bias-aligned", "bias-conflicting")


@dataclass(frozen=True)
class Conclusions:
    """Sentences: `significant` (corrected p at most 0.05) or not, and `undecided`: what these runs cannot tell."""

    significant: tuple[str, ...]
    not_significant: tuple[str, ...]
    undecided: tuple[str, ...]


def is_significant(test: SeedTest | SampleTest) -> bool:
    """By seed, whether the board's test decides it; by sample, whether the corrected p is below 0.05."""
    return test.decided if isinstance(test, SeedTest) else test.corrected_p < SIGNIFICANCE


def p_text(value: float) -> str:
    """A p as people write it."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.2g}" if value > 1e-300 else "below 1e-300"


def _equals(test: SeedTest | SampleTest) -> str:
    text = p_text(test.corrected_p)
    return text if text.startswith("below") else f"= {text}"


def conclude(found: Comparison) -> Conclusions:
    """The conclusions of both tables."""
    parts = [_by_seed(found), _by_sample(found), _by_group(found)]
    return Conclusions(*(tuple(itertools.chain.from_iterable(lines)) for lines in zip(*parts)))


Lines = tuple[list[str], list[str], list[str]]


def _by_seed(found: Comparison) -> Lines:
    def undefined(test: SeedTest) -> bool:
        return math.isnan(test.difference.mean)

    undecided = [
        f"By seed, {test.metric.in_words}: undefined in one of the runs."
        for test in found.by_seed
        if undefined(test)
    ]
    if len(found.pairs) == 1:
        return (
            [],
            [],
            [*undecided, "By seed: one pair of runs says nothing of other seeds; run more of them."],
        )
    if found.untested:
        return [], [], [*undecided, f"By seed: not tested ({found.untested})."]
    defined = [test for test in found.by_seed if not undefined(test)]
    undecided += [
        f"By seed, {test.metric.in_words}: not tested, for the difference is the same on every seed."
        for test in defined
        if math.isnan(test.corrected_p)
    ]
    significant = [
        f"By seed, {test.metric.in_words}: {found.second} is {_metric_apart(test)} than {found.first} "
        f"(corrected p {_equals(test)})."
        for test in defined
        if is_significant(test)
    ]
    rest = [
        test.metric.in_words
        for test in defined
        if not is_significant(test) and not math.isnan(test.corrected_p)
    ]
    return significant, [f"By seed: {', '.join(rest)}."] if rest else [], undecided


def _apart(difference: float) -> str:
    """`3.2 points lower`; shares are differences of accuracies."""
    return f"{abs(difference) * 100:.1f} points {'higher' if difference > 0 else 'lower'}"


def _metric_apart(test: SeedTest) -> str:
    """`3.2 points lower`, or `0.120 nats lower`, in the metric's unit."""
    difference, metric = test.difference.mean, test.metric
    if metric.scale == 100:
        return _apart(difference)
    size = f"{abs(difference):.{metric.decimals}f}"
    return f"{size}{metric.unit and ' '}{metric.unit} {'higher' if difference > 0 else 'lower'}"


def _by_sample(found: Comparison) -> Lines:
    significant, not_significant, undecided = [], [], []
    for test in found.pooled:
        if test.scope not in WIDE:
            continue
        if is_significant(test):
            apart = _apart(test.second_right - test.first_right)
            significant.append(
                f"By sample, {test.scope}: {found.second} is {apart} than {found.first} "
                f"(corrected p {_equals(test)})."
            )
        elif test.first_only == test.second_only == 0:
            not_significant.append(
                f"By sample, {test.scope}: both are right on the same of all {test.samples}."
            )
        elif test.differing == 0:
            not_significant.append(
                f"By sample, {test.scope}: on each of {test.images} images, both are right as often."
            )
        elif _too_few_differ(test):
            undecided.append(
                f"By sample, {test.scope}: the two differ on {test.differing} of {test.images} images only."
            )
        else:
            not_significant.append(f"By sample, {test.scope} (corrected p {_equals(test)}).")
    if not found.pooled:
        undecided.append("By sample: no pair of runs has its logits and labels at hand.")
    return significant, not_significant, undecided


def _too_few_differ(test: SampleTest) -> bool:
    """Whether p would not be below 0.05 even with all the differing samples on one side."""
    return least_sign_flip_p_value(test.differing) >= SIGNIFICANCE


def _by_group(found: Comparison) -> Lines:
    """Groups together, in a sentence each."""
    groups = [test for test in found.pooled if test.scope not in WIDE]
    lines: Lines = ([], [], [])
    for higher in (True, False):
        chosen = [
            test
            for test in groups
            if is_significant(test) and (test.second_right > test.first_right) == higher
        ]
        if chosen:
            most = sorted(chosen, key=lambda test: -abs(test.second_right - test.first_right))[:NAMED]
            told = "; ".join(f"{test.scope} by {_points(test)}" for test in most)
            told = f"most of all {told}" if len(chosen) > NAMED else told
            way = "higher" if higher else "lower"
            lines[0].append(
                f"By sample, {len(chosen)} of {len(groups)} groups: {found.second} is {way} than {found.first}: {told}."
            )
    rest = [test for test in groups if not is_significant(test)]
    few = sum(map(_too_few_differ, rest))
    if len(rest) > few:
        lines[1].append(f"By sample, {len(rest) - few} of {len(groups)} groups.")
    if few:
        lines[2].append(
            f"By sample, {few} of {len(groups)} groups: at most 5 of their images differ, too few for any p below "
            f"{SIGNIFICANCE:g}."
        )
    return lines


def _points(test: SampleTest) -> str:
    return f"{abs(test.second_right - test.first_right) * 100:.1f} points"
