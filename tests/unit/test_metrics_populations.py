"""Exemplars, recall changes, dense-only criteria and the bias-variance split: by hand and against libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from prunebench.errors import MetricError
from prunebench.metrics import populations
from prunebench.metrics.populations import (
    bias_variance,
    compression_identified_exemplars,
    expected_disagreement,
    holm,
    recall_change,
)
from prunebench.metrics.predictability import (
    bootstrap_area,
    evaluate_predictability,
    margin_uncertainty,
    rank_correlation,
    spearman,
)


def test_exemplars_by_hand() -> None:
    """Sample 0 keeps its mode, 1 flips it, 2 ties (0, 1) in the sparse models and goes to 0, 3 spreads out."""
    dense = torch.tensor([[0, 1, 0, 2], [0, 1, 0, 2], [1, 1, 0, 2]])
    sparse = torch.tensor([[0, 0, 0, 2], [0, 0, 1, 1], [0, 0, 0, 2], [0, 1, 1, 0]])
    result = compression_identified_exemplars(dense, sparse)
    assert result.modal.tolist() == [False, True, False, False]
    assert result.share == 0.25
    assert result.l1_distance.tolist() == pytest.approx([2 / 3, 1.5, 1.0, 1.0])


def test_disagreement_by_hand() -> None:
    """Seed 2 differs in half of the samples, dense; all sparse models say 9 of the last one."""
    dense = np.array([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 3, 2]])
    sparse = dense.copy()
    sparse[:, 3] = 9
    found = expected_disagreement(dense, sparse)
    assert found.control == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert found.sparse == pytest.approx((0.25 + 0.5 + 0.5) / 3)
    assert found.difference == pytest.approx(0.25 / 3)
    without = np.array([0.0, 0.0, 0.25])  # of pairs without seed 0, 1, 2
    half = stats.t.ppf(0.975, 2) * math.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))
    assert found.seeds == 3


@pytest.mark.parametrize("models", [2, 5])
def test_pruning_that_changes_nothing_adds_nothing_to_what_seeds_change(models: int) -> None:
    """Sparse models that are the dense ones, seed by seed: only those of other seeds are compared."""
    noise = np.random.default_rng(0).integers(0, 3, (models, 500))
    found = expected_disagreement(noise, noise)
    assert found.sparse == found.control > 0.3
    assert found.difference == 0


def test_disagreement_is_covered_by_its_interval() -> None:
    """Models that redraw some labels at random, pruned ones more: five seeds tell how much more."""
    generator = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        base = generator.integers(0, 10, 300)
        own = 0.05 + 0.1 * generator.random((2, 5, 1))  # how often a model errs, dense and sparse
        own[1] += 0.2
        drawn = np.where(generator.random((2, 5, 300)) < own, generator.integers(0, 10, (2, 5, 300)), base)
        found = expected_disagreement(drawn[0], drawn[1])
        shift = np.array([0.1, 0.3])  # mean rates; labels that are drawn are the same in one of ten
        wanted = [0.9 * (a + b - a * b) for a, b in ((shift[0], shift[1]), (shift[0], shift[0]))]
        covered += found.low <= wanted[0] - wanted[1] <= found.high
    assert covered >= 180


def test_one_seed_has_no_disagreement() -> None:
    found = expected_disagreement(np.zeros((1, 3), dtype=int), np.ones((1, 3), dtype=int))
    assert math.isnan(found.sparse)
    assert math.isnan(found.difference)
    with pytest.raises(MetricError, match=r"^sparse_prediction: is \[1, 3\], dense_prediction \[2, 3\]"):
        expected_disagreement(np.zeros((2, 3), dtype=int), np.zeros((1, 3), dtype=int))


def test_exemplars_name_wrong_arguments() -> None:
    with pytest.raises(MetricError, match=r"^sparse_prediction: has 2 samples"):
        compression_identified_exemplars(np.zeros((2, 3), dtype=int), np.zeros((2, 2), dtype=int))
    with pytest.raises(MetricError, match=r"^dense_prediction: want indices from 0, as integers"):
        compression_identified_exemplars(np.zeros((2, 3)), np.zeros((2, 3), dtype=int))


def test_exemplars_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    dense, sparse = generator.integers(0, 5, (4, 50)), generator.integers(0, 5, (3, 50))
    whole = compression_identified_exemplars(dense, sparse)
    monkeypatch.setattr(populations, "COUNTS_AT_A_TIME", 35)
    pieces = compression_identified_exemplars(dense, sparse)
    assert np.array_equal(pieces.modal, whole.modal)
    assert np.array_equal(pieces.l1_distance, whole.l1_distance)
    shares = [(values[..., None] == np.arange(5)).mean(0) for values in (dense, sparse)]
    assert whole.modal.tolist() == (shares[0].argmax(1) != shares[1].argmax(1)).tolist()
    np.testing.assert_allclose(whole.l1_distance, np.abs(shares[0] - shares[1]).sum(1), atol=1e-15)


@given(seed=st.integers(0, 10_000))
def test_relabelling_classes_changes_no_distance(seed: int) -> None:
    generator = np.random.default_rng(seed)
    dense, sparse = generator.integers(0, 4, (4, 40)), generator.integers(0, 4, (3, 40))
    new = generator.permutation(4)
    before = compression_identified_exemplars(dense, sparse)
    after = compression_identified_exemplars(new[dense], new[sparse])
    torch.testing.assert_close(before.l1_distance, after.l1_distance)


def test_recall_change_against_scipy() -> None:
    generator = np.random.default_rng(1)
    label = generator.integers(0, 3, 300)
    dense = np.where(generator.random((5, 300)) < 0.9, label, (label + 1) % 3)
    keep = np.where(label == 2, 0.5, 0.9)
    sparse = np.where(generator.random((4, 300)) < keep, label, (label + 1) % 3)
    result = recall_change(dense, sparse, label, relative=False)
    expected = []
    for c in range(3):
        a, b = (dense[:, label == c] == c).mean(1), (sparse[:, label == c] == c).mean(1)
        assert float(result.change[c]) == pytest.approx(b.mean() - a.mean())
        expected.append(stats.ttest_ind(b, a, equal_var=False).pvalue)
    assert result.p_value.tolist() == pytest.approx(expected)
    assert float(result.corrected_p[2]) == pytest.approx(3 * expected[2])
    relative = recall_change(dense, sparse, label)
    shift = (sparse == label).mean() - (dense == label).mean()
    assert (result.change - relative.change).tolist() == pytest.approx([shift] * 3)


def test_recalls_that_differ_by_rounding_are_equal() -> None:
    """Recall of class 0 less accuracy is (a - b) / 20 with a and b hits in the classes: 0.1 for all of them."""
    label = np.array([0] * 10 + [1] * 10)

    def model(hits: int) -> np.ndarray:
        return np.array([0] * (hits + 2) + [1] * (8 - hits) + [1] * hits + [0] * (10 - hits))

    dense, sparse = (np.stack([model(hits) for hits in counts]) for counts in ((3, 5, 6), (1, 4, 7)))
    result = recall_change(dense, sparse, label)
    assert abs(result.change).max() < 1e-15
    assert result.p_value.tolist() == [1, 1]


def test_recall_that_does_not_vary_on_one_side() -> None:
    label = np.zeros(10, dtype=int)
    dense = np.zeros((3, 10), dtype=int)
    sparse = dense.copy()
    sparse[0, :2], sparse[1, :5] = 1, 1
    result = recall_change(dense, sparse, label, relative=False)
    statistic = (1 - 2.3 / 3) / math.sqrt(np.var([0.8, 0.5, 1.0], ddof=1) / 3)
    assert float(result.p_value[0]) == pytest.approx(2 * stats.t.sf(statistic, 2))


def test_labels_that_are_no_indices_are_named() -> None:
    two = np.zeros((2, 3), dtype=int)
    with pytest.raises(MetricError, match=r"^label: want indices from 0"):
        recall_change(two, two, np.array([0.0, 0.5, 1.0]))
    with pytest.raises(MetricError, match=r"^label: want indices from 0"):
        recall_change(two, two, np.array([0, -1, 1]))
    with pytest.raises(MetricError, match=r"^group: want indices from 0"):
        recall_change(two, two, two[0], np.array([0, -1, 1]))
    with pytest.raises(MetricError, match=r"^label: want indices from 0"):
        bias_variance(np.zeros((2, 3, 2)), np.array([0.0, 0.5, 1.0]))


def test_recall_by_group_with_an_empty_group() -> None:
    label = np.array([0, 0, 1, 1])
    group = np.array([0, 0, 2, 2])
    dense = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    sparse = np.array([[0, 0, 0, 0], [0, 0, 0, 0]])
    result = recall_change(dense, sparse, label, group, relative=False)
    assert result.change.tolist()[::2] == [0, -1]
    assert math.isnan(result.change[1])
    assert result.p_value.tolist()[::2] == [1, 0]
    assert math.isnan(result.corrected_p[1])


def test_a_single_model_is_refused() -> None:
    one = np.zeros((1, 4), dtype=int)
    with pytest.raises(MetricError, match=r"^sparse_prediction: want at least two models"):
        recall_change(np.zeros((2, 4), dtype=int), one, np.zeros(4, dtype=int))


def test_holm_by_hand() -> None:
    corrected = holm(torch.tensor([0.01, 0.04, math.nan, 0.03], dtype=torch.float64))
    assert corrected[[0, 1, 3]].tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(corrected[2])


def test_susceptibility_by_hand_and_binary() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64))
    assert margin_uncertainty(logits).tolist() == pytest.approx([0.5, 1.0])
    binary = torch.tensor([0.0, 3.0, -3.0], dtype=torch.float64)
    two = torch.stack([torch.zeros(3, dtype=torch.float64), binary], dim=1)
    torch.testing.assert_close(margin_uncertainty(binary), margin_uncertainty(two))


def test_foretelling_against_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    score = generator.random(400)
    happened = (generator.random(400) < score / 2).astype(int)
    result = evaluate_predictability(score, happened)
    assert result.event_rate == happened.mean()
    assert result.area_under_curve == pytest.approx(roc_auc_score(happened, score))
    assert result.average_precision == pytest.approx(average_precision_score(happened, score))
    top = np.argsort(-score)[:20]
    assert result.recall_at_5_percent == pytest.approx(happened[top].sum() / happened.sum())
    nothing = evaluate_predictability(score, np.zeros(400, dtype=int))
    assert math.isnan(nothing.area_under_curve)
    flat = evaluate_predictability(np.ones(400), happened)
    assert flat.recall_at_5_percent == pytest.approx(0.05)


def test_rank_correlation_against_scipy() -> None:
    generator = np.random.default_rng(3)
    first = generator.integers(0, 20, 40).astype(float)
    second = first + 8 * generator.standard_normal(40)
    result = rank_correlation(first, second)
    assert result.rho == pytest.approx(stats.spearmanr(first, second).statistic)
    assert result.low < result.rho < result.high
    assert result == rank_correlation(first, second)
    holes = rank_correlation(np.append(first, math.nan), np.append(second, 1))
    assert (holes.pairs, holes.rho) == (40, result.rho)
    assert math.isnan(rank_correlation([1.0, 2.0], [1.0, 2.0]).rho)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5)).rho)


def test_bias_and_variance_add_up_by_hand() -> None:
    """Two seeds give (1, 0) and (0, 1) where (1, 0) is right: a loss of 0 and 2, all of it told by the variance.

    The variance of 1 and 0 is 1/2, of both classes 1.
    """
    split = bias_variance(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), np.array([0]))
    assert (split.bias_squared, split.variance, split.loss) == (0.0, 1.0, 1.0)
    probabilities = torch.softmax(torch.randn(5, 30, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    label = torch.arange(30) % 4
    result = bias_variance(probabilities, label)
    target = torch.nn.functional.one_hot(label, 4)
    brier = ((probabilities.double() - target) ** 2).sum(2).mean()
    assert result.loss == pytest.approx(float(brier))
    variance = np.var(probabilities.double().numpy(), axis=0, ddof=1).sum(1).mean()
    assert result.variance == pytest.approx(float(variance))
    assert result.bias_squared == pytest.approx(result.loss - result.variance)
    with pytest.raises(MetricError, match=r"^probabilities: want at least two seeds"):
        bias_variance(probabilities[:1], label)
    with pytest.raises(MetricError, match=r"^label: values outside"):
        bias_variance(probabilities, label + 1)


def test_spearman_matches_scipy() -> None:
    generator = np.random.default_rng(0)
    first, second = np.round(generator.normal(size=(2, 40)), 1)
    rows = np.stack([first, second]), np.stack([second, np.zeros(40)])
    found = spearman(*rows)
    assert found[0] == pytest.approx(stats.spearmanr(first, second).statistic)
    assert np.isnan(found[1])


def test_bootstrap_of_the_area_matches_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    score = np.round(generator.normal(size=300), 1)
    happened = generator.random(300) < 1 / (1 + np.exp(-score))
    low, high = bootstrap_area(score, happened, draws=300)
    again = np.random.default_rng(0)
    areas = [
        roc_auc_score(happened[index], score[index])
        for index in (again.integers(0, 300, 300) for _ in range(300))
    ]
    assert (low, high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=1e-12)


def test_bootstrap_of_the_area_draws_the_outputs_of_a_sample_together() -> None:
    generator = np.random.default_rng(0)
    score = np.repeat(generator.normal(size=100), 6)
    happened = np.repeat(generator.random(100) < 0.4, 6)
    assert bootstrap_area(score, happened, columns=6) == pytest.approx(
        bootstrap_area(score[::6], happened[::6])
    )
    assert np.isnan(bootstrap_area(score, np.zeros(600, bool))).all()
    assert np.isnan(bootstrap_area([0.1, 0.2], [1, 0], draws=1)).all(), "the draw holds one sample twice"
    with pytest.raises(MetricError, match="rows of 7"):
        bootstrap_area(score, happened, columns=7)
    with pytest.raises(MetricError, match="draws: want at least one, got 0"):
        bootstrap_area(score, happened, draws=0)
    with pytest.raises(MetricError, match="score 600"):
        bootstrap_area(score, happened[:6])
