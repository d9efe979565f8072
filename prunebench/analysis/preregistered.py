"""Preregistered hypotheses: rules frozen in `hypotheses.toml`, and the cards that say what became of them.

A card is a pure function of plain values by method and seed. Each has one test, named before the seeds that it counts
existed, an effect with its interval, a control, and one of three outcomes. A false hypothesis is `supported` in at most
the share of experiments that `significance` says (`tests/unit/test_preregistered.py` draws a thousand of each); `not
supported` is not its opposite; `not testable` says what is missing.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prunebench.analysis.values import Estimate, defined
from prunebench.errors import StoreError
from prunebench.report.format import plural
from prunebench.stats.correlation import correlate_units, row_spearman
from prunebench.stats.equivalence import Equivalence, equivalence_test, seeds_needed
from prunebench.stats.intervals import mean_interval
from prunebench.stats.multiplicity import holm_adjusted
from prunebench.stats.tests import greater_p_value

FILE = Path(__file__).with_name("hypotheses.toml")
CardOutcome = Literal["supported", "not supported", "not testable"]
BySeed = Mapping[int, float]
NO_ROWS = "no rows"
Floats = NDArray[np.float64]

# Rules


@dataclass(frozen=True)
class Arm:
    """A method, and the same method without pruning, with as many steps."""

    method: str
    reference: str


@dataclass(frozen=True)
class HarmlessRule:
    """Hypothesis (a): margins by quantity, of tasks of classes and of attributes."""

    sparsity: float
    least_accuracy: float
    classes: dict[str, float]
    attributes: dict[str, float]
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class AssociationRule:
    """Hypothesis (b): the two measures, of tasks of classes and of attributes."""

    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    fewest_units: int
    classes: tuple[str, str]
    attributes: tuple[str, str]


@dataclass(frozen=True)
class PredictionRule:
    """Hypothesis (c)."""

    methods: tuple[str, ...]
    sparsity: float
    controls: tuple[str, ...]


@dataclass(frozen=True)
class AgreementRule:
    """Of all tasks: whether they rank the methods alike."""

    metric: str
    sparsity: float
    fewest_methods: int
    methods: tuple[str, ...]


@dataclass(frozen=True)
class FrozenHypotheses:
    """The whole file. Seeds count from `seeds_from` of their task (0 if it is not named) to below `seeds_below`."""

    frozen: datetime.date
    significance: float
    fewest_seeds: int
    draws: int
    seeds_below: int
    seeds_from: dict[str, int]
    harmless: HarmlessRule
    association: AssociationRule
    prediction: PredictionRule
    agreement: AgreementRule

    def counts(self, task: str, seed: int) -> bool:
        """Whether a seed of a task did not exist when the file was frozen, and is none for choosing budgets."""
        return self.seeds_from.get(task, 0) <= seed < self.seeds_below


@functools.cache
def frozen_hypotheses(path: Path = FILE) -> FrozenHypotheses:
    """The rules of a file. Raises StoreError where it is none."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    adapter: Any = TypeAdapter(with_config(ConfigDict(extra="forbid"))(FrozenHypotheses))
    try:
        return adapter.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StoreError(f"{path}: no file of hypotheses: {error}") from error


# Cards


@dataclass(frozen=True)
class CardTest:
    """One of the tests that a card rests on; `p_value` corrected where one of several is enough."""

    name: str
    quantity: str
    effect: Estimate
    p_value: float | None


@dataclass(frozen=True)
class HypothesisCard:
    """What became of a hypothesis in one track (or, `tasks`, on the whole board).

    Args:
        quantity: what the effect is of: a measure, `rank correlation`, or `area under the curve`.
        effect: with its interval, of 1 - 2 significance for (a) and of 95 % else; `n` counts `unit`.
        control: the same quantity where the hypothesis has no part, and `control_name` which that is.
        reason: why the outcome is no other, in words.
        tests: all that were made.
        seeds: that the card counts.
    """

    key: Literal["a", "b", "c", "tasks"]
    outcome: CardOutcome
    reason: str
    quantity: str = ""
    subject: str = ""
    effect: Estimate = field(default_factory=lambda: Estimate(None, None, None, 0))
    unit: Literal["seeds", "methods", "attributes", "tasks"] = "seeds"
    p_value: float | None = None
    control: float | None = None
    control_name: str = ""
    tests: tuple[CardTest, ...] = ()
    seeds: tuple[int, ...] = ()


def outcome_of(p_value: float, significance: float) -> CardOutcome:
    """Supported where p is at most the significance."""
    return "supported" if p_value <= significance else "not supported"


@dataclass(frozen=True)
class PairedValues:
    """A quantity of a method and of its reference, by seed."""

    method: str
    reference: str
    quantity: str
    values: BySeed
    reference_values: BySeed

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that both have."""
        return tuple(sorted(self.values.keys() & self.reference_values.keys()))

    @property
    def differences(self) -> list[float]:
        """Method minus reference, by seed."""
        return [self.values[seed] - self.reference_values[seed] for seed in self.seeds]


def harmless_card(
    pairs: Sequence[PairedValues], margins: Mapping[str, float], rules: FrozenHypotheses
) -> HypothesisCard:
    """HypothesisCard (a): whether some method is equivalent in every quantity to itself unpruned.

    Of a method both quantities must pass (the larger p); of the methods one is enough (Holm). A method without the
    rows, the seeds or a working reference is no part of the family; with none left the card is not testable.

    Args:
        pairs: one a method and quantity; the first quantity of the margins is the accuracy.
        margins: by quantity, how far the means may be apart.
        rules: the frozen ones.
    """
    arms: dict[str, list[PairedValues]] = {}
    for pair in pairs:
        arms.setdefault(pair.method, []).append(pair)
    problems = {name: _arm_problem(members, margins, rules) for name, members in arms.items()}
    found = {
        name: [(pair, _test_pair(pair, margins, rules)) for pair in members]
        for name, members in arms.items()
        if problems[name] is None
    }
    if not found:
        missing = dict.fromkeys(name for members in arms.values() for name in _without_rows(members))
        no_rows = [f"no rows with seeds that count of {', '.join(missing)}"] if missing else []
        others = [problem for problem in dict.fromkeys(problems.values()) if problem not in (None, NO_ROWS)]
        return HypothesisCard("a", "not testable", "; ".join([*no_rows, *map(str, others)]) or NO_ROWS)
    p_values = holm_adjusted([max(test.p_value for _, test in tests) for tests in found.values()])
    adjusted = dict(zip(found, p_values))
    best = min(adjusted, key=lambda name: adjusted[name])
    pair, test = max(found[best], key=lambda item: item[1].p_value)
    outcome = outcome_of(adjusted[best], rules.significance)
    return HypothesisCard(
        "a",
        outcome,
        _harmless_reason(pair, test, margins[pair.quantity], outcome, rules),
        pair.quantity,
        best,
        _equivalence_estimate(test),
        "seeds",
        adjusted[best],
        math.fsum(pair.reference_values.values()) / len(pair.reference_values),
        pair.reference,
        tuple(
            CardTest(name, member.quantity, _equivalence_estimate(one), adjusted[name])
            for name, tests in found.items()
            for member, one in tests
        ),
        pair.seeds,
    )


def _test_pair(pair: PairedValues, margins: Mapping[str, float], rules: FrozenHypotheses) -> Equivalence:
    margin = margins[pair.quantity]
    return equivalence_test(pair.differences, (-margin, margin), rules.significance)


def _equivalence_estimate(test: Equivalence) -> Estimate:
    return Estimate(test.mean, test.low, test.high, test.n)


def _arm_problem(
    pairs: Sequence[PairedValues], margins: Mapping[str, float], rules: FrozenHypotheses
) -> str | None:
    """Why a method cannot be tested, if it cannot."""
    accuracy = next(iter(margins))
    if _without_rows(pairs):
        return NO_ROWS
    for pair in pairs:
        shared = len(pair.differences)
        if shared < rules.fewest_seeds:
            return f"{pair.method}: {plural(shared, 'seed')} that count, {rules.fewest_seeds} needed"
        if not all(map(math.isfinite, pair.differences)):
            return f"{pair.method}: {pair.quantity} is undefined"
        level = math.fsum(pair.reference_values.values()) / len(pair.reference_values)
        if pair.quantity == accuracy and level < rules.harmless.least_accuracy:
            return f"{pair.reference} does not work: {pair.quantity} {level:.3f}"
    return None


def _without_rows(pairs: Sequence[PairedValues]) -> list[str]:
    """Which of the method and its reference have no seed that counts."""
    sides = ((pair.reference, pair.reference_values) for pair in pairs)
    return list(
        dict.fromkeys(name for name, values in (*sides, *((p.method, p.values) for p in pairs)) if not values)
    )


def _harmless_reason(
    pair: PairedValues, test: Equivalence, margin: float, outcome: CardOutcome, rules: FrozenHypotheses
) -> str:
    """The quantity that decided, in words."""
    where = f"{pair.method} against {pair.reference}: the change of {pair.quantity}"
    if outcome == "supported":
        return f"{where} lies within the margin of {margin:g}"
    if test.low > margin or test.high < -margin:
        return f"{where} lies beyond the margin of {margin:g}"
    needed = seeds_needed(pair.differences, margin, rules.significance)
    if (test.high - test.low) / 2 >= margin:
        seeds = "more than a thousand" if needed is None else str(needed)
        return f"{where} is uncertain by more than the margin of {margin:g}: {seeds} seeds would be needed"
    if test.p_value <= rules.significance:
        return f"{where} lies within the margin of {margin:g}, but not after correction for the number of methods"
    return f"{where} may be beyond the margin of {margin:g}"


def association_card(
    first: Floats,
    second: Floats,
    unit: Literal["methods", "attributes"],
    rules: FrozenHypotheses,
    seeds: Sequence[int] = (),
) -> HypothesisCard:
    """HypothesisCard (b): whether two measures `[U, S]` go together over the units within each column.

    Control: their correlation over all points at once, with what all units share in a column left in. `seeds`: those
    that stand behind the points.
    """
    found = correlate_units(first, second, draws=rules.draws)
    fewest = rules.association.fewest_units
    units = found.units if first.shape[1] else 0
    if units < fewest:
        return HypothesisCard(
            "b",
            "not testable",
            f"{plural(units, unit[:-1])} with all their values, {fewest} needed",
            unit=unit,
        )
    if math.isnan(found.p_value):
        return HypothesisCard("b", "not testable", f"a measure is the same for all {unit}", unit=unit)
    whole = (np.isfinite(first) & np.isfinite(second)).all(1)
    pooled = float(row_spearman(first[whole].reshape(1, -1), second[whole].reshape(1, -1))[0])
    outcome = outcome_of(found.p_value, rules.significance)
    held = "each sparsity" if unit == "methods" else "each model"
    word = "go" if outcome == "supported" else "are not shown to go"
    return HypothesisCard(
        "b",
        outcome,
        f"the measures {word} together over {unit} within {held}",
        "rank correlation",
        "",
        Estimate(found.rho, defined(found.low), defined(found.high), found.units),
        unit,
        found.p_value,
        defined(pooled),
        "over all points at once",
        seeds=tuple(seeds),
    )


def prediction_card(areas: BySeed, controls: Mapping[str, BySeed], rules: FrozenHypotheses) -> HypothesisCard:
    """HypothesisCard (c): whether the area under the curve is above that of every control, paired by seed.

    Both one-sided t-tests must pass: the card's effect is the difference from the control that is harder to beat.

    Args:
        areas: of pruning, mean over the named methods, by seed.
        controls: by name, the same where nothing was pruned.
        rules: the frozen ones.
    """
    tests = {}
    for name in rules.prediction.controls:
        values = controls.get(name, {})
        if not values:
            return HypothesisCard("c", "not testable", f"no rows of {name} with seeds that count")
        shared = sorted(areas.keys() & values.keys())
        if len(shared) < rules.fewest_seeds:
            return HypothesisCard(
                "c",
                "not testable",
                f"{plural(len(shared), 'seed')} that count, {rules.fewest_seeds} needed",
            )
        differences = [areas[seed] - values[seed] for seed in shared]
        if not all(map(math.isfinite, differences)):
            return HypothesisCard("c", "not testable", f"no label changes, or all do, in a seed of {name}")
        total = math.fsum(values[seed] for seed in shared)
        tests[name] = (differences, greater_p_value(differences), total, tuple(shared))
    hardest = max(tests, key=lambda name: tests[name][1])
    differences, p_value, total, seeds = tests[hardest]
    outcome = outcome_of(p_value, rules.significance)
    word = "above" if outcome == "supported" else "not shown to be above"
    return HypothesisCard(
        "c",
        outcome,
        f"the area under the curve is {word} that of {hardest}",
        "area under the curve",
        ", ".join(rules.prediction.methods),
        _mean_estimate(differences),
        "seeds",
        p_value,
        total / len(differences),
        hardest,
        tuple(
            CardTest(name, "area under the curve", _mean_estimate(values), p)
            for name, (values, p, _, _) in tests.items()
        ),
        seeds,
    )


def _mean_estimate(values: Sequence[float]) -> Estimate:
    found = mean_interval(values)
    return Estimate(found.mean, found.mean - found.half_width, found.mean + found.half_width, found.n)


def agreement_card(values: Mapping[str, Mapping[str, BySeed]], rules: FrozenHypotheses) -> HypothesisCard:
    """The board's card: whether tasks rank the methods alike.

    Effect: Spearman's correlation of the methods' means, mean over pairs of tasks; p: the share of random orders of the
    methods, in each task apart, that agree as well; interval: a bootstrap over the seeds of each task. Control: the
    same between two halves of the seeds of one task, as high as agreement can be expected to get.

    Args:
        values: by task, method and seed.
        rules: the frozen ones.
    """
    fewest = rules.agreement.fewest_methods
    tables = {task: _task_table(by_method, rules) for task, by_method in values.items()}
    tables = {task: table for task, table in tables.items() if len(table[0]) >= fewest}
    pairs = [
        (one, other, shared)
        for one, other in itertools.combinations(tables, 2)
        if len(shared := [name for name in tables[one][0] if name in tables[other][0]]) >= fewest
    ]
    if not pairs:
        missing = (
            f"two tasks needed that share {fewest} of the methods, with {rules.fewest_seeds} seeds that count"
        )
        at_hand = plural(len(tables), "task")
        return HypothesisCard("tasks", "not testable", f"{missing}; {at_hand} at hand", unit="tasks")
    generator = np.random.default_rng(0)
    means = {task: table.mean(1)[None] for task, (_, table) in tables.items()}
    rhos = _pair_correlations(tables, pairs, means)
    rho = float(rhos.mean())
    if math.isnan(rho):
        return HypothesisCard("tasks", "not testable", "in a task all methods are alike", unit="tasks")
    shuffled = {
        task: generator.permuted(np.repeat(mean, rules.draws, 0), axis=1) for task, mean in means.items()
    }
    chance = _pair_correlations(tables, pairs, shuffled).mean(0)
    p_value = float((1 + (chance >= rho - 1e-10).sum()) / (1 + rules.draws))
    drawn = {
        task: table[:, generator.integers(0, table.shape[1], (rules.draws, table.shape[1]))].mean(2).T
        for task, (_, table) in tables.items()
    }
    low, high = np.nanquantile(_pair_correlations(tables, pairs, drawn).mean(0), [0.025, 0.975])
    outcome = outcome_of(p_value, rules.significance)
    halves = [
        float(row_spearman(table[:, ::2].mean(1)[None], table[:, 1::2].mean(1)[None])[0])
        for _, table in tables.values()
    ]
    return HypothesisCard(
        "tasks",
        outcome,
        f"the tasks {'agree' if outcome == 'supported' else 'are not shown to agree'} about the order of the methods",
        "rank correlation",
        rules.agreement.metric,
        Estimate(rho, defined(float(low)), defined(float(high)), len(tables)),
        "tasks",
        p_value,
        defined(math.fsum(halves) / len(halves)),
        "between halves of one task's seeds",
        tuple(
            CardTest(
                f"{one}, {other}", "rank correlation", Estimate(float(found), None, None, len(shared)), None
            )
            for (one, other, shared), found in zip(pairs, rhos[:, 0])
        ),
        tuple(
            sorted(
                {seed for by_method in values.values() for by_seed in by_method.values() for seed in by_seed}
            )
        ),
    )


def _task_table(by_method: Mapping[str, BySeed], rules: FrozenHypotheses) -> tuple[list[str], Floats]:
    """The methods with enough seeds, and their values `[M, S]` over the seeds that all of them have."""
    whole = {
        name: by_seed
        for name, by_seed in by_method.items()
        if len(by_seed) >= rules.fewest_seeds and all(map(math.isfinite, by_seed.values()))
    }
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in whole.values()))) if whole else []
    if len(seeds) < rules.fewest_seeds:
        return [], np.zeros((0, 0))
    return list(whole), np.array([[by_seed[seed] for seed in seeds] for by_seed in whole.values()])


def _pair_correlations(
    tables: Mapping[str, tuple[list[str], Floats]],
    pairs: Sequence[tuple[str, str, list[str]]],
    means: Mapping[str, Floats],
) -> Floats:
    """Spearman's correlation `[P, D]` of each pair of tasks over their shared methods, of means `[D, M]` by task."""

    def shared_columns(task: str, shared: list[str]) -> Floats:
        return means[task][:, [tables[task][0].index(name) for name in shared]]

    rows: list[Floats] = [
        row_spearman(shared_columns(one, shared), shared_columns(other, shared))
        for one, other, shared in pairs
    ]
    return np.array(rows)


# Words


def card_sentence(card: HypothesisCard, title: Callable[[str], str] = str) -> str:
    """A card in one sentence: outcome, reason, effect with its interval, p, n and control.

    title: of a measure's key, as a table heads it.
    """
    if card.effect.mean is None:
        return f"{card.outcome}: {card.reason}"
    interval = "" if card.effect.low is None else f" [{card.effect.low:+.3f}, {card.effect.high:+.3f}]"
    control = "" if card.control is None else f"; control {card.control_name}: {card.control:.3f}"
    p_value = "" if card.p_value is None else f", p {card.p_value:.2g}"
    effect = f"{title(card.quantity)} {card.effect.mean:+.3f}{interval}{p_value}, {card.effect.n} {card.unit}"
    return f"{card.outcome}: {card.reason}; {effect}{control}"
