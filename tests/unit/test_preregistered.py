"""Cards of the preregistered hypotheses: all outcomes of each, and how often a false hypothesis is supported."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from false_positive_rates import (
    DRAWS,
    MARGINS,
    NULLS,
    PAGE,
    RULES,
    arm,
    by_seed,
    count_false_positives,
    rates_markdown,
)
from scipy import stats

from prunebench.analysis.preregistered import (
    FILE,
    agreement_card,
    association_card,
    card_sentence,
    frozen_hypotheses,
    harmless_card,
    prediction_card,
)
from prunebench.errors import StoreError
from prunebench.suites import load_suite, suite_names
from prunebench.tasks import resolve_task

# The file


def test_the_file_is_as_it_was_frozen() -> None:
    """Who edits it gives it a new date, moves `seeds_from` past all seeds that exist, and tells the changelog."""
    pinned = "ab96d0f19586e262532bd27f90383fa63185709614ad9f62e11acfb944aa979b"
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == pinned


def test_seeds_that_existed_do_not_count() -> None:
    assert [seed for seed in range(12) if RULES.counts("colored-digits@2pct", seed)] == list(range(5, 12))
    assert RULES.counts("a task without runs", 0)
    assert not RULES.counts("a task without runs", RULES.seeds_below)


def test_tasks_whose_seeds_existed_go_by_the_names_that_records_have() -> None:
    assert len(RULES.seeds_from) == 5
    for name in RULES.seeds_from:
        assert resolve_task(name).name == name


def test_a_board_suite_has_enough_seeds_that_count() -> None:
    for name in suite_names():
        suite = load_suite(name)
        for task in suite.tasks if suite.board else ():
            counted = [seed for seed in suite.seeds if RULES.counts(task, seed)]
            assert len(counted) >= min(RULES.fewest_seeds, len(suite.seeds)), (name, task)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    text = FILE.read_text(encoding="utf-8")
    for wrong, message in (
        (text.replace("fewest_seeds = 5", 'fewest_seeds = "some"'), "fewest_seeds"),
        (text + "\nfurther = 1\n", "further"),
        ("[", "no file of hypotheses"),
    ):
        path = tmp_path / f"{len(wrong)}.toml"
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(StoreError, match=message):
            frozen_hypotheses(path)


# (a)


SMALL = [-0.001, 0.001, 0.0, 0.0005, -0.0005]


def test_a_method_within_both_margins_supports_harmless_pruning() -> None:
    card = harmless_card(
        arm(SMALL, SMALL) + arm(SMALL, [0.1, 0.12, 0.11, 0.1, 0.12], "other"), MARGINS, RULES
    )
    assert (card.outcome, card.subject, card.effect.n) == ("supported", "magnitude", 5)
    assert card.control_name == "magnitude unpruned"
    assert len(card.tests) == 4
    assert card.p_value is not None
    assert card.p_value == pytest.approx(2 * max(_tost(SMALL, MARGINS[name]) for name in MARGINS))
    assert "within the margin of 0.01" in card_sentence(card)


def _tost(values: list[float], margin: float) -> float:
    below = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    return max(below, stats.ttest_1samp(values, margin, alternative="less").pvalue)


@pytest.mark.parametrize(
    ("accuracy", "bias", "words"),
    [
        (SMALL, [0.1, 0.12, 0.11, 0.1, 0.12], "bias_gap lies beyond the margin of 0.02"),
        ([-0.1, -0.12, -0.11, -0.1, -0.12], SMALL, "in_distribution lies beyond"),
        (SMALL, [0.1, -0.1, 0.0, 0.05, -0.05], "uncertain by more than the margin"),
        (SMALL, [0.016, 0.02, 0.018, 0.021, 0.012], "bias_gap may be beyond"),
    ],
)
def test_a_method_that_may_do_harm_does_not(accuracy: list[float], bias: list[float], words: str) -> None:
    card = harmless_card(arm(accuracy, bias), MARGINS, RULES)
    assert card.outcome == "not supported"
    assert words in card.reason


def test_where_harm_cannot_be_tested() -> None:
    few = [replace(pair, values={seed: pair.values[seed] for seed in range(3)}) for pair in arm(SMALL, SMALL)]
    without = [replace(pair, reference="dense-finetuned", reference_values={}) for pair in few]
    broken = arm(SMALL, SMALL, level=0.2)
    for pairs, words in (
        ([], "no rows"),
        (few, "3 seeds that count, 5 needed"),
        (without, "no rows with seeds that count of dense-finetuned"),
        (broken, "does not work"),
        (arm([math.nan] * 5, SMALL), "undefined"),
    ):
        card = harmless_card(pairs, MARGINS, RULES)
        assert card.outcome == "not testable"
        assert words in card.reason
        assert card_sentence(card) == f"not testable: {card.reason}"


# (b)


def test_measures_that_go_together_within_each_sparsity() -> None:
    first = np.arange(7.0)[:, None] + 10 * np.arange(4.0)
    card = association_card(first, 2 * first + 0.1 * (first % 2), "methods", RULES)
    assert (card.outcome, card.effect.n, card.unit) == ("supported", 7, "methods")
    assert card.p_value == pytest.approx(1 / math.factorial(7))


def test_a_common_rise_with_sparsity_is_no_support() -> None:
    rise, own = 10 * np.arange(4.0), np.arange(7.0)[:, None]
    card = association_card(rise + own, rise - own, "methods", RULES)
    assert card.outcome == "not supported"
    assert card.effect.mean == pytest.approx(-1)
    assert card.control is not None
    assert card.control > 0.8


def test_where_association_cannot_be_tested() -> None:
    first = np.arange(28.0).reshape(7, 4)
    holes = first.copy()
    holes[:3, 1] = math.nan
    for one, words in (
        (first[:4], "4 methods with all"),
        (holes, "4 methods with all"),
        (first[:, :0], "0 methods"),
        (0 * first, "the same for all"),
    ):
        card = association_card(one, one, "methods", RULES)
        assert card.outcome == "not testable"
        assert words in card.reason


# (c)


def test_pruning_that_is_foretold_better_than_both_controls() -> None:
    areas = by_seed([0.91, 0.92, 0.90, 0.91, 0.93])
    controls = {
        "dense-finetuned": by_seed([0.88, 0.90, 0.87, 0.89, 0.90]),
        "another seed": by_seed([0.78] * 5),
    }
    card = prediction_card(areas, controls, RULES)
    assert (card.outcome, card.control_name, card.effect.n) == ("supported", "dense-finetuned", 5)
    assert card.effect.mean == pytest.approx(0.026)
    assert card.control == pytest.approx(0.888)
    differences = [0.03, 0.02, 0.03, 0.02, 0.03]
    assert card.p_value == pytest.approx(stats.ttest_1samp(differences, 0, alternative="greater").pvalue)


def test_beating_one_control_is_not_enough() -> None:
    areas = by_seed([0.91, 0.92, 0.90, 0.91, 0.93])
    controls = {
        "dense-finetuned": by_seed([0.92, 0.91, 0.90, 0.92, 0.92]),
        "another seed": by_seed([0.78] * 5),
    }
    card = prediction_card(areas, controls, RULES)
    assert (card.outcome, card.control_name) == ("not supported", "dense-finetuned")
    assert len(card.tests) == 2


def test_where_prediction_cannot_be_tested() -> None:
    whole = by_seed([0.9] * 5)
    for areas, controls, words in (
        (whole, {"another seed": whole}, "no rows of dense-finetuned"),
        ({0: 0.9}, {"dense-finetuned": whole, "another seed": whole}, "1 seed that count"),
        (whole, {"dense-finetuned": by_seed([math.nan] * 5), "another seed": whole}, "no label changes"),
    ):
        card = prediction_card(areas, controls, RULES)
        assert card.outcome == "not testable"
        assert words in card.reason


# Tasks


def tasks_of(*orders: object, noise: float = 0.1) -> dict[str, dict[str, dict[int, float]]]:
    generator = np.random.default_rng(0)
    return {
        f"task {k}": {
            f"m{j}": by_seed(value + noise * generator.normal(size=5))
            for j, value in enumerate(np.asarray(order))
        }
        for k, order in enumerate(orders)
    }


def test_tasks_that_rank_alike_agree() -> None:
    card = agreement_card(tasks_of(range(8), range(8), range(8)), RULES)
    assert (card.outcome, card.effect.n, len(card.tests)) == ("supported", 3, 3)
    assert card.effect.low is not None
    assert card.effect.low > 0.8
    assert card.control == pytest.approx(1)


def test_tasks_that_rank_otherwise_do_not() -> None:
    card = agreement_card(tasks_of(range(8), range(8)[::-1]), RULES)
    assert card.outcome == "not supported"
    assert card.effect.mean == pytest.approx(-1)


def test_where_agreement_cannot_be_tested() -> None:
    one = tasks_of(range(8))
    renamed = {"task 1": {f"other {name}": values for name, values in one["task 0"].items()}}
    few = {"task 1": {name: {0: 0.5} for name in one["task 0"]}}
    alike = {name: {method: by_seed([0.5] * 5) for method in one["task 0"]} for name in ("task 1", "task 2")}
    for values, words in (
        (one, "1 task at hand"),
        (one | renamed, "two tasks needed"),
        (one | few, "two tasks needed"),
        (alike, "all methods are alike"),
        ({}, "0 tasks"),
    ):
        card = agreement_card(values, RULES)
        assert card.outcome == "not testable"
        assert words in card.reason


# How often a false hypothesis is supported


def test_rates_are_of_the_frozen_significance() -> None:
    assert frozen_hypotheses().significance == 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", NULLS)
def test_a_false_hypothesis_is_supported_in_one_experiment_of_twenty(name: str) -> None:
    found = count_false_positives(name, NULLS[name])
    assert found.tested == DRAWS == 1000
    low, high = stats.binom.interval(0.99, DRAWS, RULES.significance)
    assert low <= found.supported <= high, found.supported


@pytest.mark.slow
def test_the_page_shows_the_rates_that_the_command_gives() -> None:
    assert rates_markdown() in PAGE.read_text(encoding="utf-8")
