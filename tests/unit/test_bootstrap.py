"""Bootstrap intervals of a board: against a slow direct computation, simulated data, and what must not matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.groups import group_accuracy
from prunebench.stats import bootstrap
from prunebench.stats.bootstrap import METRICS, Resampling, bootstrap_cells

FEW = Resampling(draws=60)


def example(
    cells: int = 2, seeds: int = 3, samples: int = 40, *, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hits, groups and aligned pairs of 2 labels x 2 biases, one group of them without samples."""
    generator = torch.Generator().manual_seed(seed)
    hits = torch.rand(cells, seeds, samples, generator=generator) < 0.7
    group = torch.tensor([0, 1, 3])[torch.randint(3, (samples,), generator=generator)]
    return hits, group, torch.tensor([True, False, False, True])


def same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=0, atol=1e-12, equal_nan=True)


def accuracies(hits: Tensor, group: Tensor, aligned: Tensor) -> list[float]:
    """METRICS of one run by the group table: a miss predicts another label."""
    label, bias = group // 2, group % 2
    prediction = torch.where(hits, label, 1 - label)
    table = group_accuracy(prediction, label, bias, aligned_pair=aligned.view(2, 2))
    return [table.summary()[name] for name in METRICS]


def directly(hits: Tensor, group: Tensor, aligned: Tensor, how: Resampling) -> np.ndarray:
    """Draws `[D, K, 6]`: resampled one sample and one seed at a time, from the same random streams."""
    cells, seeds, _ = hits.shape
    streams = np.random.SeedSequence(how.seed).spawn(len(aligned) + 1)
    over_seeds, *by_group = (np.random.default_rng(stream) for stream in streams)
    picks = []
    for index in sorted(set(group.tolist())):
        members = torch.nonzero(group == index).flatten().numpy()
        picks.append(members[by_group[index].integers(0, len(members), size=(how.draws, len(members)))])
    times = over_seeds.multinomial(seeds, [1 / seeds] * seeds, size=how.draws)
    factor = math.sqrt(seeds / (seeds - 1)) * t.ppf(0.975, seeds - 1) / norm.ppf(0.975) if how.widen else 1.0
    found = np.empty((how.draws, cells, len(METRICS)))
    for draw in range(how.draws):
        drawn = torch.from_numpy(np.concatenate([part[draw] for part in picks]))
        for cell in range(cells):
            runs = np.array(
                [accuracies(hits[cell, seed][drawn], group[drawn], aligned) for seed in range(seeds)]
            )
            resampled = np.repeat(runs, times[draw], axis=0).mean(0)
            found[draw, cell] = runs.mean(0) + factor * (resampled - runs.mean(0))
    return found


@pytest.mark.parametrize("widen", [True, False])
def test_equal_to_resampling_one_by_one(widen: bool) -> None:
    how = Resampling(draws=60, seed=5, widen=widen)
    found = bootstrap_cells(*example(), reference=1, how=how)
    draws = directly(*example(), how)
    lowest = np.where(np.array(METRICS) == "bias_gap", -1, 0)
    low, high = np.clip(np.quantile(draws, [0.025, 0.975], axis=0), lowest, 1)
    assert np.allclose(found.values.low, low, atol=1e-12)
    assert np.allclose(found.values.high, high, atol=1e-12)
    low, high = np.clip(np.quantile(draws - draws[:, 1:2], [0.025, 0.975], axis=0), -1, 1)
    assert found.differences is not None
    assert np.allclose(found.differences.low, low, atol=1e-12)
    assert np.allclose(found.differences.high, high, atol=1e-12)
    assert (low[0] < high[0]).all()


def test_estimates_are_means_over_seeds() -> None:
    hits, group, aligned = example()
    found = bootstrap_cells(hits, group, aligned, reference=0, how=FEW)
    wanted = [np.mean([accuracies(run, group, aligned) for run in cell], axis=0) for cell in hits]
    assert np.allclose(found.values.estimate, wanted, atol=1e-12)
    assert found.differences is not None
    assert np.allclose(found.differences.estimate, np.array(wanted) - wanted[0], atol=1e-12)


# Coverage


def covered(seeds: int, widen: bool, generator: np.random.Generator, *, repeats: int = 250) -> float:
    """Share of 95 % intervals of the unbiased accuracy that hold the truth, with noise from seeds and samples.

    A sample of difficulty b is right with a seed of skill a if a > b, so that seeds and samples matter apart.
    """
    group = torch.arange(2).repeat_interleave(100)
    aligned, held = torch.tensor([True, False]), 0
    truth = (norm.cdf(1.0 / math.hypot(1, 0.3)) + norm.cdf(0.2 / math.hypot(1, 0.3))) / 2
    for repeat in range(repeats):
        skill = generator.normal(0, 0.3, (1, seeds, 1)) + np.repeat([1.0, 0.2], 100)
        hits = torch.from_numpy(skill > generator.normal(size=200))
        how = Resampling(draws=300, seed=repeat, widen=widen)
        values = bootstrap_cells(hits, group, aligned, how=how).values
        unbiased = METRICS.index("unbiased")
        held += bool(values.low[0, unbiased] <= truth <= values.high[0, unbiased])
    return held / repeats


def test_widened_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    assert all(0.91 <= covered(seeds, True, generator) <= 0.985 for seeds in (3, 5))


def test_plain_percentile_intervals_of_three_seeds_are_too_narrow() -> None:
    assert covered(3, False, np.random.default_rng(2)) < 0.89


def test_one_seed_leaves_the_samples() -> None:
    """Of one group of n samples the plain accuracy is then a binomial share."""
    hits = torch.arange(400).view(1, 1, 400) < 300
    found = bootstrap_cells(hits, torch.zeros(400, dtype=torch.int64), torch.tensor([True]))
    half = norm.ppf(0.975) * math.sqrt(0.75 * 0.25 / 400)
    assert float(found.values.low[0, 0]) == pytest.approx(0.75 - half, abs=0.006)
    assert float(found.values.high[0, 0]) == pytest.approx(0.75 + half, abs=0.006)


def test_differences_are_paired() -> None:
    """A cell that errs on one sample more than another does so in every draw: far surer than the cells apart."""
    hits, group, aligned = example(samples=400)
    hits = hits[:1].repeat(2, 1, 1)
    hits[1, :, :8] = False
    found = bootstrap_cells(hits, group, aligned, reference=0, how=FEW)
    assert found.differences is not None
    apart = (found.values.high - found.values.low)[1, 0]
    paired = (found.differences.high - found.differences.low)[1, 0]
    assert 0 < paired < apart / 2


# What must not matter


boards = st.builds(
    example,
    cells=st.integers(1, 4),
    seeds=st.integers(1, 4),
    samples=st.integers(20, 60),
    seed=st.integers(0, 1000),
)


@given(boards, st.randoms(use_true_random=False))
def test_a_cell_does_not_depend_on_the_others(board: tuple[Tensor, Tensor, Tensor], random: Any) -> None:
    hits, group, aligned = board
    order = random.sample(range(len(hits)), random.randint(1, len(hits)))
    whole = bootstrap_cells(hits, group, aligned, how=FEW).values
    part = bootstrap_cells(hits[order], group, aligned, how=FEW).values
    assert same(part.low, whole.low[order])
    assert same(part.high, whole.high[order])


@given(boards)
def test_misses_mirror_hits(board: tuple[Tensor, Tensor, Tensor]) -> None:
    hits, group, aligned = board
    right = bootstrap_cells(hits, group, aligned, how=FEW).values
    wrong = bootstrap_cells(~hits, group, aligned, how=FEW).values
    shares = [METRICS.index(name) for name in ("plain", "unbiased", "aligned", "conflicting")]
    assert same(wrong.low[:, shares], 1 - right.high[:, shares])
    assert same(wrong.low[:, -1], -right.high[:, -1])


@given(boards)
def test_aligned_and_conflicting_change_places(board: tuple[Tensor, Tensor, Tensor]) -> None:
    hits, group, aligned = board
    one = bootstrap_cells(hits, group, aligned, how=FEW).values
    other = bootstrap_cells(hits, group, ~aligned, how=FEW).values
    assert same(one.low[:, 2], other.low[:, 3])
    assert same(one.low[:, 5], -other.high[:, 5])
    assert same(one.low[:, [0, 1, 4]], other.low[:, [0, 1, 4]])


@given(boards)
def test_intervals_are_in_order(board: tuple[Tensor, Tensor, Tensor]) -> None:
    found = bootstrap_cells(*board, reference=0, how=FEW)
    assert found.differences is not None
    for intervals in (found.values, found.differences):
        undefined = intervals.low.isnan()
        assert torch.equal(undefined, intervals.estimate.isnan())
        assert (undefined | (intervals.low <= intervals.high)).all()
    for edge in (found.differences.low, found.differences.high):
        assert (edge[0].nan_to_num() == 0).all()


def test_how_many_draws_are_made_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_cells(*example(), how=FEW).values
    monkeypatch.setattr(bootstrap, "ELEMENTS_AT_A_TIME", 7 * 40)
    again = bootstrap_cells(*example(), how=FEW).values
    assert torch.equal(whole.low, again.low)
    assert torch.equal(whole.high, again.high)


def test_the_seed_matters_and_repeats() -> None:
    first, again, other = (
        bootstrap_cells(*example(), how=Resampling(draws=60, seed=seed)).values.low for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_never_varies_has_no_width() -> None:
    hits, group, aligned = example()
    found = bootstrap_cells(torch.ones_like(hits), group, aligned, how=FEW).values
    wanted = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64).expand(2, 6)
    assert same(found.low, wanted)
    assert same(found.high, wanted)


def test_without_conflicting_groups_they_are_undefined() -> None:
    hits, group, _ = example()
    found = bootstrap_cells(hits, group, torch.ones(4, dtype=torch.bool), how=FEW).values
    assert found.low[:, [3, 5]].isnan().all()
    assert same(found.low[:, 1], found.low[:, 2])


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    bootstrap_cells(*example(), how=FEW)
    assert torch.get_num_threads() == before


# What is refused


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hits": torch.ones(2, 3, 40)}, "hits: want bool"),
        ({"hits": torch.ones(3, 40, dtype=torch.bool)}, "hits: want bool"),
        ({"hits": torch.ones(2, 0, 40, dtype=torch.bool)}, "none empty"),
        ({"group": torch.zeros(39, dtype=torch.int64)}, "group: want integers"),
        ({"group": torch.zeros(40)}, "group: want integers"),
        ({"group": torch.full((40,), 4)}, "group: values outside 0..3"),
        ({"group": torch.full((40,), -1)}, "group: values outside 0..3"),
        ({"aligned": torch.ones(4)}, "aligned: want bool"),
        ({"reference": 2}, "reference: want a cell 0..1, got 2"),
        ({"reference": -1}, "reference: want a cell 0..1, got -1"),
    ],
)
def test_refused(changes: dict[str, Any], why: str) -> None:
    values: dict[str, Any] = (
        dict(zip(("hits", "group", "aligned"), example())) | {"reference": None} | changes
    )
    with pytest.raises(MetricError, match=why):
        bootstrap_cells(
            values["hits"], values["group"], values["aligned"], reference=values["reference"], how=FEW
        )


@pytest.mark.parametrize("bad", [{"draws": 0}, {"confidence": 0.0}, {"confidence": 1.0}])
def test_refused_ways_to_resample(bad: dict[str, Any]) -> None:
    with pytest.raises(MetricError, match=next(iter(bad))):
        Resampling(**bad)


def test_widened_intervals_stay_where_values_can_be() -> None:
    """Two seeds far apart, near the upper end: widening alone would leave 0..1."""
    hits = torch.zeros(2, 2, 40, dtype=torch.bool)
    hits[:, 0] = True
    hits[:, 1, :30] = True
    group = torch.arange(40) % 4
    found = bootstrap_cells(hits, group, torch.tensor([True, False, False, True]), reference=0)
    assert found.differences is not None
    for intervals, lowest in ((found.values, 0), (found.differences, -1)):
        assert float(intervals.high.max()) <= 1
        gap = METRICS.index("bias_gap")
        others = [column for column in range(len(METRICS)) if column != gap]
        assert float(intervals.low[:, others].min()) >= lowest
        assert float(intervals.low[:, gap].min()) >= -1
    assert float(found.values.high[0, 0]) == 1
