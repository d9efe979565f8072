"""Equivalence, multiplicity, rank correlation and clustered tests, against hand-worked numbers and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunebench.errors import MetricError
from prunebench.stats.clusters import cluster_sums, clustered_mcnemar_p_value, clustered_t
from prunebench.stats.correlation import correlate_units, partial_spearman, rank_p_value, row_spearman
from prunebench.stats.equivalence import equivalence_test, seeds_needed
from prunebench.stats.intervals import Interval, mean_interval, share_bounds
from prunebench.stats.multiplicity import (
    RankInterval,
    benjamini_hochberg,
    holm_adjusted,
    paired_verdicts,
)
from prunebench.stats.tests import interval_p_value, mean_p_value, paired_p_value

# Equivalence


def test_equivalence_of_two_differences_by_hand() -> None:
    """Mean 0, error 0.01; t = 2 with one degree of freedom: p = 1/2 - arctan(2) / pi; t(0.95) = tan(0.45 pi)."""
    found = equivalence_test([-0.01, 0.01], (-0.02, 0.02))
    assert found.p_below == pytest.approx(0.5 - math.atan(2) / math.pi)
    assert found.p_value == pytest.approx(found.p_above)
    assert found.high == pytest.approx(0.01 * math.tan(0.45 * math.pi))
    assert (found.mean, found.low, found.n) == (0.0, pytest.approx(-found.high), 2)


@given(st.lists(st.floats(-0.1, 0.1), min_size=3, max_size=9), st.floats(0.01, 0.2))
def test_equivalence_agrees_with_scipy_s_one_sided_tests(values: list[float], margin: float) -> None:
    if np.std(values) < 1e-6:
        return
    found = equivalence_test(values, (-margin, 2 * margin))
    below = stats.ttest_1samp(values, -margin, alternative="greater")
    above = stats.ttest_1samp(values, 2 * margin, alternative="less")
    assert found.p_below == pytest.approx(below.pvalue, abs=1e-12)
    assert found.p_above == pytest.approx(above.pvalue, abs=1e-12)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


@given(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=6), st.floats(0.005, 0.2))
def test_equivalent_means_that_the_interval_lies_within(values: list[float], margin: float) -> None:
    found = equivalence_test(values, (-margin, margin))
    if min(abs(found.low + margin), abs(found.high - margin)) > 1e-9:
        assert (found.p_value < 0.05) == (-margin < found.low and found.high < margin)


def test_equivalence_at_its_edges() -> None:
    assert equivalence_test([0.01] * 3, (-0.02, 0.02)).p_value == 0
    assert equivalence_test([0.02] * 3, (-0.02, 0.02)).p_value == 1
    for undefined in ([], [0.0], [0.0, None], [0.0, math.nan, 0.0]):
        found = equivalence_test(undefined, (-0.02, 0.02))
        assert math.isnan(found.p_value)
        assert (math.isnan(found.mean), found.n) == (True, len(undefined))
    with pytest.raises(MetricError, match="margins"):
        equivalence_test([0.0, 0.0], (0.01, 0.02))


def test_a_gain_is_no_equivalence_but_passes_the_test_of_no_loss() -> None:
    gain = [0.05, 0.06, 0.055]
    assert equivalence_test(gain, (-0.02, 0.02)).p_value > 0.9
    assert equivalence_test(gain, (-0.02, math.inf)).p_value < 0.01


def test_seeds_needed_by_hand() -> None:
    """s = 0.01: t(0.95, 4) 0.01 / sqrt(5) = 0.0095 is below 0.01; with four seeds, 0.0118, it is not."""
    differences = [0.01 * x for x in (-1.0, 0.0, 1.0)]
    assert seeds_needed(differences, 0.01) == 5
    assert seeds_needed(differences, 1e-6) is None
    assert seeds_needed([0.0], 0.01) is None


# Multiplicity


def test_q_values_by_hand() -> None:
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert holm_adjusted([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_q_values_agree_with_scipy(p_values: list[float]) -> None:
    assert benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values).tolist())


def test_undefined_p_values_stay_so_and_are_no_part_of_the_family() -> None:
    for correct in (benjamini_hochberg, holm_adjusted):
        assert correct([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
        assert correct([]) == []


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_rank_intervals_by_hand() -> None:
    """`good` beats both others at every seed by about 0.3; those two cannot be told apart."""
    values = {
        "good": seeds(0.90, 0.91, 0.92),
        "odd": seeds(0.61, 0.59, 0.62),
        "even": seeds(0.60, 0.61, 0.61),
        "single": {0: 1.0},
        "undefined": seeds(0.9, math.nan, math.nan),
    }
    found = paired_verdicts(values)
    assert found.ranks == {
        "good": RankInterval(1, 1), "odd": RankInterval(2, 3), "even": RankInterval(2, 3), "single": None,
        "undefined": None,
    }  # fmt: skip
    assert found.decided("odd", "good")
    assert not found.decided("odd", "even")
    assert math.isnan(found.q("good", "single"))
    assert [str(RankInterval(1, 1)), str(RankInterval(2, 3))] == ["1", "2-3"]
    assert paired_verdicts({}).ranks == {}


def test_a_row_with_other_seeds_takes_no_rank_from_others() -> None:
    values = {
        "a": seeds(0.90, 0.91, 0.92),
        "b": seeds(0.61, 0.59, 0.62),
        "elsewhere": {7: 0.1, 8: 0.2, 9: 0.1},
    }
    ranks = paired_verdicts(values).ranks
    assert ranks == {"a": RankInterval(1, 2), "b": RankInterval(2, 3), "elsewhere": RankInterval(1, 3)}
    assert paired_verdicts(values, fewest=4).ranks == dict.fromkeys(values)


def test_the_reference_is_in_the_family_and_has_no_rank() -> None:
    values = {"ref": seeds(0.90, 0.91, 0.92), "a": seeds(0.61, 0.59, 0.62), "control": seeds(0.3, 0.32, 0.31)}
    found = paired_verdicts(values, ranked=["a"], reference="ref")
    assert found.ranks == {"ref": None, "a": RankInterval(1, 1), "control": None}
    assert found.beats == {("ref", "a"), ("ref", "control")}
    assert found.q_values.keys() == {("a", "ref"), ("control", "ref")}
    assert "ref" not in paired_verdicts(values, ranked=["a"]).q_values


def test_ranks_are_corrected_for_the_number_of_pairs() -> None:
    """Differences whose p is just below 0.05 decide a pair alone, and not among many pairs of equals."""
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, 5)
    first, second = seeds(*(0.5 + noise)), seeds(*(0.5 + noise + [0.002, 0.011, 0.002, 0.009, 0.003]))
    assert 0.02 < paired_p_value(second, first) < 0.05
    assert paired_verdicts({"first": first, "second": second}).beats == {("second", "first")}
    rest = {f"m{k}": seeds(*(0.5 + generator.normal(0, 0.01, 5))) for k in range(5)}
    assert not paired_verdicts({"first": first, "second": second, **rest}).decided("first", "second")


def test_equal_methods_are_told_apart_no_more_often_than_promised() -> None:
    """Of equals, any decision is false: the false discovery rate is then the share of families with one."""
    generator = np.random.default_rng(7)
    families = 600
    shared, own = generator.normal(0, 0.02, (families, 1, 5)), generator.normal(0, 0.01, (families, 6, 5))
    wrong = 0
    for family in 0.5 + shared + own:
        values = {f"m{k}": seeds(*row) for k, row in enumerate(family)}
        wrong += bool(paired_verdicts(values, reference="m0", fewest=5).beats)
    assert wrong <= stats.binom.ppf(0.999, families, 0.05)


def test_equal_differences_are_no_evidence() -> None:
    """The same difference on every seed has no spread: it is neither certain nor tested."""
    found = paired_verdicts(
        {"a": seeds(0.5, 0.6, 0.7), "b": seeds(0.4, 0.5, 0.6), "same": seeds(0.4, 0.5, 0.6)}
    )
    assert math.isnan(found.q("a", "b"))
    assert found.q("b", "same") == 1
    assert found.beats == set()


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6))
def test_rank_intervals_agree_with_the_decisions(table: list[list[float]]) -> None:
    values = {f"m{k}": seeds(*row) for k, row in enumerate(table)}
    found = paired_verdicts(values)
    for name, rank in found.ranks.items():
        assert rank is not None
        assert rank.best == 1 + sum(loser == name for _, loser in found.beats)
        assert 1 <= rank.best <= rank.worst <= len(values)
    if not found.beats:
        assert all(rank == RankInterval(1, len(values)) for rank in found.ranks.values())


# Rank correlation


def test_partial_correlation_agrees_with_regressed_ranks() -> None:
    generator = np.random.default_rng(1)
    third = generator.normal(size=40)
    first, second = third + generator.normal(size=40), third + generator.normal(size=40)
    found = partial_spearman(first, second, third)
    ranks = [stats.rankdata(values) for values in (first, second, third)]
    rest = [values - np.polyval(np.polyfit(ranks[2], values, 1), ranks[2]) for values in ranks[:2]]
    assert found.rho == pytest.approx(stats.pearsonr(*rest).statistic)
    half = 1.959964 / math.sqrt(40 - 3 - 1)
    assert math.atanh(found.high) - math.atanh(found.low) == pytest.approx(2 * half, rel=1e-5)
    assert found.n == 40
    with_hole = np.append(first, math.nan)
    assert partial_spearman(with_hole, np.append(second, 1.0), np.append(third, 1.0)) == found


def test_a_common_cause_correlates_and_is_held() -> None:
    cause = np.arange(200.0)
    generator = np.random.default_rng(2)
    first, second = (cause + generator.normal(0, 20, 200) for _ in range(2))
    assert row_spearman(first[None], second[None])[0] > 0.8
    found = partial_spearman(first, second, cause)
    assert found.low < 0 < found.high


def test_partial_correlation_where_it_is_undefined() -> None:
    few = np.array([1.0, 2.0, 3.0])
    assert math.isnan(partial_spearman(few, few, few[::-1]).rho)
    five = np.array([1.0, 3.0, 2.0, 5.0, 4.0])
    assert math.isnan(partial_spearman(five, five[::-1], five).rho)
    assert math.isnan(partial_spearman(np.ones(5), five, five[::-1]).rho)
    four = partial_spearman(five[:4], five[3::-1], np.array([2.0, 1.0, 4.0, 3.0]))
    assert math.isfinite(four.rho)
    assert math.isnan(four.low)


def test_units_in_all_orders_by_hand() -> None:
    """Of the 24 orders of four units only the given one puts both columns in full agreement."""
    first = np.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]])
    found = correlate_units(first, 10 * first)
    assert (found.rho, found.p_value, found.units) == (pytest.approx(1), pytest.approx(1 / 24), 4)
    assert correlate_units(first, -first).p_value == 1
    for undefined in (correlate_units(first[:2], first[:2]), correlate_units(np.ones((4, 2)), first)):
        assert math.isnan(undefined.p_value)
    with pytest.raises(MetricError, match="second"):
        correlate_units(first, first[:, :1])


def test_units_agree_with_scipy_s_permutation_test() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=(2, 6))

    def statistic(values: np.ndarray) -> float:
        return float(stats.spearmanr(values, second).statistic)

    theirs = stats.permutation_test(
        (first,), statistic, permutation_type="pairings", alternative="greater", n_resamples=10**6
    )
    found = correlate_units(first[:, None], second[:, None])
    assert found.rho == pytest.approx(theirs.statistic)
    assert found.p_value == pytest.approx(theirs.pvalue)


def test_what_all_units_share_is_held() -> None:
    """Both measures rise with the column; within the columns they are unrelated or opposed."""
    rise = 100 * np.arange(4.0)
    own = np.array([3.0, 1.0, 4.0, 0.0, 5.0])[:, None]
    found = correlate_units(rise + own, rise - own)
    assert found.rho == pytest.approx(-1)
    assert row_spearman((rise + own).reshape(1, -1), (rise - own).reshape(1, -1))[0] > 0.8


def test_drawn_orders_come_close_to_all_orders() -> None:
    generator = np.random.default_rng(4)
    first = generator.normal(size=(8, 1))
    second = first + generator.normal(size=(8, 1))
    drawn = correlate_units(first, second, draws=4000).p_value
    theirs = stats.spearmanr(first[:, 0], second[:, 0])
    ranks = stats.rankdata(second[:, 0])
    orders = np.array(list(itertools.permutations(range(8))))
    rhos = (ranks[orders] - 4.5) @ (stats.rankdata(first[:, 0]) - 4.5) / 42
    assert drawn == pytest.approx(float((rhos >= theirs.statistic - 1e-9).mean()), abs=0.02)


# Clusters


def test_samples_of_their_own_are_mcnemar_s_test() -> None:
    net = [1] * 9 + [-1] * 2 + [0] * 20
    assert clustered_mcnemar_p_value(net, range(31)) == pytest.approx(stats.binomtest(9, 11).pvalue)


def test_ten_colours_of_an_image_are_one_image() -> None:
    """Three images, right in all ten colours by the first alone: p is that of three coins, 2 / 2^3."""
    net, clusters = [1] * 30, [image for image in range(3) for _ in range(10)]
    assert clustered_mcnemar_p_value(net, clusters) == pytest.approx(0.25)
    assert stats.binomtest(30, 30).pvalue < 1e-8
    assert cluster_sums(net, clusters).tolist() == [10, 10, 10]


def test_clustered_t_of_equal_clusters_is_the_t_test_of_their_means() -> None:
    generator = np.random.default_rng(5)
    values = generator.normal(0.3, 1, size=(12, 4))
    mean, half, p = clustered_t(values.ravel(), np.repeat(np.arange(12), 4))
    theirs = stats.ttest_1samp(values.mean(1), 0)
    assert (mean, p) == (pytest.approx(values.mean()), pytest.approx(theirs.pvalue))
    assert 2 * half == pytest.approx(np.ptp(list(theirs.confidence_interval())))


def test_clustered_t_of_unequal_clusters_by_hand() -> None:
    """Sums 2 of two samples and 0 of three: m = 2/5, residuals 2 - 2m = 6/5 and 0 - 3m = -6/5, error 2.4 / 5."""
    mean, half, p = clustered_t([1, 1, 1, -1, 0], [7, 7, 9, 9, 9])
    assert mean == pytest.approx(0.4)
    assert half == pytest.approx(math.tan(0.475 * math.pi) * math.sqrt(2 * 2 * 1.2**2) / 5)
    assert p == pytest.approx(2 * (0.5 - math.atan(0.4 * 5 / 2.4) / math.pi))


def test_clusters_at_their_edges() -> None:
    assert math.isnan(clustered_t([0.5, 0.5], [0, 1])[2])
    assert clustered_t([0, 0], [0, 1])[2] == 1
    assert math.isnan(clustered_t([1, 1], [0, 0])[2])
    with pytest.raises(MetricError, match="clusters"):
        cluster_sums([1, 2], [1])


def test_clustered_tests_hold_their_level_where_plain_ones_do_not() -> None:
    """1,000 draws of 30 images in ten colours each, neither model better: an image is won or lost in all colours."""
    generator = np.random.default_rng(6)
    images = np.repeat(np.arange(30), 10)
    found = {"mcnemar": 0, "t": 0, "plain": 0}
    for _ in range(1000):
        net = generator.choice([-1, 0, 1], 30).repeat(10)
        found["mcnemar"] += clustered_mcnemar_p_value(net, images) < 0.05
        found["t"] += clustered_t(net, images)[2] < 0.05
        found["plain"] += stats.binomtest(int((net > 0).sum()), int((net != 0).sum())).pvalue < 0.05
    low, high = stats.binom.interval(0.999, 1000, 0.05)
    assert found["mcnemar"] <= high
    assert low <= found["t"] <= high
    assert found["plain"] > 400


# Shares


def test_intervals_of_shares_end_where_shares_do() -> None:
    assert share_bounds(Interval(0.95, 0.1, 5)) == (pytest.approx(0.85), 1.0)
    assert share_bounds(Interval(0.02, 0.1, 5)) == (0.0, pytest.approx(0.12))
    assert share_bounds(Interval(0.0, 0.5, 3), lowest=-1.0) == (-0.5, 0.5)
    assert all(map(math.isnan, share_bounds(Interval(0.5, math.nan, 1))))


def test_cutting_loses_no_coverage() -> None:
    generator = np.random.default_rng(7)
    held, cut = 0, 0
    for _ in range(400):
        interval = mean_interval((generator.binomial(40, 0.97, 5) / 40).tolist())
        low, high = share_bounds(interval)
        held += abs(interval.mean - 0.97) <= interval.half_width
        cut += low <= 0.97 <= high
    assert cut == held


def test_p_of_an_interval_is_that_of_the_values_it_is_made_of() -> None:
    values = [0.02, 0.01, 0.05, -0.01]
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).pvalue
    assert interval_p_value(found.mean, found.half_width, found.n) == pytest.approx(expected)
    assert mean_p_value(values) == pytest.approx(expected)
    assert math.isnan(interval_p_value(0.1, 0.0, 3))
    assert interval_p_value(0.0, 0.0, 3) == 1
    assert math.isnan(interval_p_value(0.1, 0.1, 1))


def test_p_of_a_rank_correlation_is_scipys() -> None:
    generator = np.random.default_rng(2)
    first = generator.normal(size=30)
    second = first + generator.normal(size=30)
    rho, expected = stats.spearmanr(first, second)
    assert rank_p_value(float(rho), 30) == pytest.approx(expected)
    assert rank_p_value(1.0, 30) == 0
    assert math.isnan(rank_p_value(0.5, 4))
    assert math.isnan(rank_p_value(None, 30))
