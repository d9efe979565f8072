"""Cards of a board: the preregistered hypotheses of every track, from records and from numbers of stored outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunebench.analysis.preregistered import (
    FrozenHypotheses,
    HypothesisCard,
    PairedValues,
    agreement_card,
    association_card,
    frozen_hypotheses,
    harmless_card,
    prediction_card,
)
from prunebench.analysis.seed_numbers import SeedNumbers
from prunebench.report import format as fmt
from prunebench.report.table import Column, Table, simple_table, text_column
from prunebench.results.record import RunRecord
from prunebench.results.tracks import split_tracks, variant_labels, variant_of

Floats = NDArray[np.float64]
ANOTHER_SEED = "another seed"
NO_OUTPUTS = "no stored outputs were analysed"
CLAIMS = {
    "a": "(a) Pruning can do no harm",
    "b": "(b) Bias goes with uncertainty",
    "c": "(c) Uncertainty predicts what pruning changes",
    "tasks": "The tasks agree about the order of methods",
}


@dataclass(frozen=True)
class HypothesisCards:
    """Three cards of each track, by slug, the board's own, and each track's task."""

    tracks: dict[str, tuple[HypothesisCard, ...]]
    board: HypothesisCard
    tasks: dict[str, str]

    @property
    def titles(self) -> dict[str, str]:
        """By slug, the task; with the slug where a task has several tracks."""
        names = list(self.tasks.values())
        return {
            slug: task if names.count(task) == 1 else f"{task} ({slug})" for slug, task in self.tasks.items()
        }


@dataclass(frozen=True)
class CountedRuns:
    """Finished runs of one track, of seeds that count: by method as the board names it, sparsity and seed."""

    task: str
    multi_label: bool
    runs: Mapping[tuple[str, float | None], Mapping[int, RunRecord]]

    @property
    def seeds(self) -> tuple[int, ...]:
        """All that count."""
        return tuple(sorted({seed for by_seed in self.runs.values() for seed in by_seed}))

    def values(self, method: str, sparsity: float, quantity: str) -> dict[int, float]:
        """A quantity of a row by seed; nan where it is undefined. `in_distribution` is that of the validation split."""
        found = {}
        for seed, run in self.runs.get((method, sparsity), {}).items():
            value = (
                run.validation.get("plain") if quantity == "in_distribution" else run.metrics.get(quantity)
            )
            found[seed] = math.nan if value is None else value
        return found


def cards_of(
    records: Iterable[RunRecord],
    numbers: Mapping[str, SeedNumbers],
    rules: FrozenHypotheses | None = None,
) -> HypothesisCards:
    """All cards of these records.

    A method's row is the one that bears its bare name on the board: of a method with several settings there is none.

    Args:
        records: of any number of tracks; of versions that the board lists.
        numbers: by the track's slug; without them (c), and (b) of attributes, are not testable.
        rules: those of the package.
    """
    rules = rules or frozen_hypotheses()
    tracks = {slug: _counted_runs(runs, rules) for slug, runs in split_tracks(records).items()}
    return HypothesisCards(
        {
            slug: (
                harmless_card_of(track, rules),
                association_card_of(track, numbers.get(slug), rules),
                prediction_card_of(numbers.get(slug), rules),
            )
            for slug, track in tracks.items()
        },
        agreement_card_of(tracks.values(), rules),
        {slug: track.task for slug, track in tracks.items()},
    )


def _counted_runs(runs: Sequence[RunRecord], rules: FrozenHypotheses) -> CountedRuns:
    task, labels = runs[0].spec["task"], variant_labels(runs)
    found: dict[tuple[str, float | None], dict[int, RunRecord]] = {}
    for run in runs:
        if run.status == "ok" and rules.counts(task, run.spec["seed"]):
            row = labels[variant_of(run)], run.spec["sparsity"]
            found.setdefault(row, {})[run.spec["seed"]] = run
    return CountedRuns(task, any("attribute_accuracy" in run.metrics for run in runs), found)


def harmless_card_of(track: CountedRuns, rules: FrozenHypotheses) -> HypothesisCard:
    """Card (a): the arms that the track has a row of, against their references at sparsity 0."""
    margins = rules.harmless.attributes if track.multi_label else rules.harmless.classes
    pairs = [
        PairedValues(
            arm.method,
            arm.reference,
            quantity,
            track.values(arm.method, rules.harmless.sparsity, quantity),
            track.values(arm.reference, 0.0, quantity),
        )
        for arm in rules.harmless.arms
        for quantity in margins
    ]
    return harmless_card(pairs, margins, rules)


def association_card_of(
    track: CountedRuns, numbers: SeedNumbers | None, rules: FrozenHypotheses
) -> HypothesisCard:
    """Card (b): over methods from records; over attributes from stored outputs."""
    if track.multi_label:
        if numbers is None:
            return HypothesisCard("b", "not testable", NO_OUTPUTS, unit="attributes")
        return association_card(*_attribute_table(numbers, rules), "attributes", rules, track.seeds)
    rule = rules.association
    first, second = (
        np.array(
            [[_mean(track.values(name, s, measure), rules) for s in rule.sparsities] for name in rule.methods]
        )
        for measure in rule.classes
    )
    seen = np.isfinite(first).any(0)  # sparsities that the track has
    return association_card(first[:, seen], second[:, seen], "methods", rules, track.seeds)


def _mean(by_seed: Mapping[int, float], rules: FrozenHypotheses) -> float:
    """nan with too few seeds."""
    return math.fsum(by_seed.values()) / len(by_seed) if len(by_seed) >= rules.fewest_seeds else math.nan


def _attribute_table(numbers: SeedNumbers, rules: FrozenHypotheses) -> tuple[Floats, Floats]:
    """Both measures `[K, S]` of each attribute in each row with enough seeds, mean over the seeds."""
    rows: dict[tuple[str, float | None], list[tuple[tuple[float | None, ...], tuple[float | None, ...]]]] = {}
    for row in numbers.rows:
        if row.uncertain_share:
            rows.setdefault((row.method, row.sparsity), []).append(
                (row.uncertain_share, row.bias_amplification)
            )
    tables = [
        np.array(both, dtype=np.float64).mean(0) for both in rows.values() if len(both) >= rules.fewest_seeds
    ]
    if not tables:
        return np.zeros((0, 0)), np.zeros((0, 0))
    first, second = np.stack(tables, axis=2)
    return first, second


def prediction_card_of(numbers: SeedNumbers | None, rules: FrozenHypotheses) -> HypothesisCard:
    """Card (c): areas of the named methods, mean by seed over all of them, and of the controls."""
    if numbers is None:
        return HypothesisCard("c", "not testable", NO_OUTPUTS)
    by_method: dict[str, dict[int, float]] = {}
    for row in numbers.rows:
        if row.flip_area is not None:
            by_method.setdefault(row.method, {})[row.seed] = row.flip_area
    others = {seed: area for seed, area in numbers.other_seeds.items() if area is not None}
    named = [by_method.get(name, {}) for name in rules.prediction.methods]
    for name, areas in zip(rules.prediction.methods, named):
        if not areas:
            return HypothesisCard("c", "not testable", f"no rows of {name} with seeds that count")
    seeds = set.intersection(*(set(areas) for areas in named))
    mean = {seed: math.fsum(areas[seed] for areas in named) / len(named) for seed in sorted(seeds)}
    return prediction_card(mean, {**by_method, ANOTHER_SEED: others}, rules)


def agreement_card_of(tracks: Iterable[CountedRuns], rules: FrozenHypotheses) -> HypothesisCard:
    """The board's card; of a task with several tracks (models, budgets) the one with most runs that count."""
    rule = rules.agreement
    best: dict[str, tuple[int, dict[str, dict[int, float]]]] = {}
    for track in tracks:
        values = {name: track.values(name, rule.sparsity, rule.metric) for name in rule.methods}
        values = {name: by_seed for name, by_seed in values.items() if by_seed}
        size = sum(map(len, values.values()))
        if size > best.get(track.task, (0, {}))[0]:
            best[track.task] = size, values
    return agreement_card({task: values for task, (_, values) in best.items()}, rules)


# Display


def cards_table(cards: Iterable[HypothesisCard], title: str = "") -> Table[HypothesisCard]:
    """A card a row: claim, outcome, effect with interval, what n counts, p, control, and the reason."""
    return simple_table(CARD_COLUMNS, cards, title)


def _effect(card: HypothesisCard) -> str | None:
    return (
        None
        if card.effect.mean is None
        else fmt.with_ends(card.effect.mean, card.effect.low, card.effect.high, 3)
    )


def _control(card: HypothesisCard) -> str | None:
    return None if card.control is None else f"{fmt.number(card.control, 3)} ({card.control_name})"


def _seeds(card: HypothesisCard) -> str | None:
    """`5-9`, or `3, 5, 8`."""
    first, last = (card.seeds[0], card.seeds[-1]) if card.seeds else (0, -1)
    if last - first + 1 == len(card.seeds) > 2:
        return f"{first}-{last}"
    return ", ".join(map(str, card.seeds)) or None


CARD_COLUMNS: tuple[Column[HypothesisCard], ...] = (
    text_column("key", "Hypothesis", value=lambda card: CLAIMS[card.key], lead=True),
    text_column("outcome", "Outcome", "Supported, not supported, or not testable with the runs at hand"),
    text_column("quantity", "Quantity", "What the effect is of", value=lambda card: card.quantity or None),
    Column("effect", "Effect", "With the interval that the test goes with", _effect),
    Column("p_value", "p", "Corrected where one of several tests is enough", format=fmt.p_value),
    Column(
        "n",
        "n",
        "What the test counts",
        lambda card: None if card.p_value is None else f"{card.effect.n} {card.unit}",
    ),
    text_column("control", "Control", "The same quantity where the hypothesis has no part", value=_control),
    text_column("seeds", "Seeds", "That count", value=_seeds),
    text_column("reason", "Why", "What decided, or what is missing"),
)
