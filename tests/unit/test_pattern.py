"""Patterns over a network and dynamic masks: exact counts, whole groups, and the distributions that look at weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_experiment import tiny_experiment
from torch import Tensor, nn

from prunebench.errors import UsageError
from prunebench.methods.magnitude import magnitude
from prunebench.methods.prune import prune_by
from prunebench.pruning.distribution import ALLOCATIONS, allocate, lamp_scores, within
from prunebench.pruning.dynamic import cosine_share, drop_and_grow
from prunebench.pruning.masks import keep_count, make_masks, masks_of, verify
from prunebench.pruning.pattern import check_structure, groups_of
from prunebench.pruning.schedule import exponential_targets
from prunebench.pruning.wrapped import make_plain

SHAPES = {"first": (8, 3, 3, 3), "middle": (16, 8, 3, 3), "head": (5, 16)}


def scores_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def kept(masks: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


TOTAL = sum(torch.Size(shape).numel() for shape in SHAPES.values())


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 5),
    st.sampled_from(["filter", "block", "block:4x2", "2:4", "1:4", "4:8"]),
    st.sampled_from(ALLOCATIONS),
    st.floats(0.78, 0.97),
)
def test_every_structure_meets_the_count_under_every_distribution(
    seed: int, structure: str, allocation: str, sparsity: float
) -> None:
    scores = scores_of(seed)
    masks = make_masks(scores, sparsity, allocation=allocation, structure=structure, weights=scores)
    assert kept(masks) == keep_count(TOTAL, sparsity)
    assert all(mask.any() and mask.shape == SHAPES[name] for name, mask in masks.items())


def test_filters_and_blocks_go_as_a_whole_but_for_one_a_layer() -> None:
    scores = {name: values.abs() for name, values in scores_of(0).items()}
    for structure in ("filter", "block:4x4"):
        masks = make_masks(scores, 0.8, structure=structure, weights=scores)
        for name, mask in masks.items():
            groups = groups_of(structure, mask.shape).flatten()
            shares = [mask.flatten()[groups == group].float().mean() for group in groups.unique()]
            assert sum(0 < share < 1 for share in shares) <= 1, name


def test_the_best_filters_stay() -> None:
    layer = torch.tensor([1.0, 4.0, 2.0, 3.0]).view(4, 1).expand(4, 6).contiguous()
    masks = make_masks({"only": layer}, 0.5, structure="filter", weights={})
    assert masks["only"].any(1).tolist() == [False, True, False, True]


def test_n_of_m_prunes_no_group_below_it_and_says_what_it_cannot() -> None:
    scores = scores_of(1)
    masks = make_masks(scores, 0.6, structure="2:4", weights=scores)
    for name in ("middle", "head"):
        groups = masks[name].movedim(1, -1).reshape(-1, 4).sum(1)
        assert int(groups.max()) <= 2
    with pytest.raises(
        UsageError, match=r"2:4 keeps at most 832 of 1448 weights: ask for .* at least 0\.4254"
    ):
        make_masks(scores, 0.4, structure="2:4", weights=scores)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("blok", "unknown structure 'blok': did you mean block"),
        ("5:4", "want N <= M"),
        ("block:0x4", "unknown"),
    ],
)
def test_unknown_structures_are_named(structure: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_structure(structure)


def test_lamp_by_hand() -> None:
    """Lee et al., 2021, equation 4: squares 1, 4, 9 give 1/14, 4/13, 9/9."""
    assert torch.allclose(
        lamp_scores(torch.tensor([-2.0, 1.0, 3.0])).float(), torch.tensor([4 / 13, 1 / 14, 1.0])
    )
    weights = {"a": torch.tensor([[3.0, 1.0, 2.0]]), "b": torch.tensor([[30.0, 20.0, 10.0]])}
    assert allocate("lamp", weights, weights, 4) == {"a": 2, "b": 2}
    assert allocate("global", weights, weights, 4) == {"a": 1, "b": 3}


def test_a_distribution_of_one_s_own_is_held_to_its_sum() -> None:
    scores = scores_of(0)

    def first_dense(scores: dict[str, Tensor], weights: dict[str, Tensor], keep: int) -> dict[str, int]:
        return {"first": 216, "middle": keep - 226, "head": 10}

    masks = make_masks(scores, 0.7, allocation=first_dense, weights=scores)  # type: ignore[arg-type]
    assert masks["first"].all()
    assert kept(masks) == keep_count(TOTAL, 0.7)
    with pytest.raises(UsageError, match="sum to 434, got 3 that sum to 3"):
        allocate(lambda *_: dict.fromkeys(SHAPES, 1), scores, scores, 434)
    with pytest.raises(UsageError, match="first has 216 weights, 217 are to be kept"):
        allocate(lambda *_: {"first": 217, "middle": 1, "head": 1}, scores, scores, 219)


def test_what_has_no_room_moves() -> None:
    assert within({"a": 5, "b": 1}, {"a": 3, "b": 4}) == {"a": 3, "b": 3}
    with pytest.raises(UsageError, match="1 weights have no room"):
        within({"a": 5, "b": 1}, {"a": 3, "b": 2})


def test_drop_and_grow_by_hand() -> None:
    masks = {"w": torch.tensor([True, True, True, True, False, False])}
    weights = {"w": torch.tensor([4.0, -1.0, 3.0, 2.0, 0.0, 0.0])}
    growth = {"w": torch.tensor([9.0, 0.5, 9.0, 0.1, 0.2, -0.7])}
    after = drop_and_grow(masks, weights, growth, 0.5)
    assert after["w"].tolist() == [True, True, True, False, False, True], "what was dropped may grow again"
    assert drop_and_grow(masks, weights, growth, 0.2)["w"].tolist() == masks["w"].tolist()
    assert cosine_share(0, initial=0.3, end=100) == pytest.approx(0.3)
    assert cosine_share(50, initial=0.3, end=100) == pytest.approx(0.15)
    assert cosine_share(100, initial=0.3, end=100) == 0


def test_exponential_rounds_end_at_what_was_asked() -> None:
    assert exponential_targets(3, 0.992) == [pytest.approx(0.8), pytest.approx(0.96), 0.992]


def test_masks_of_a_network_pruned_by_torch() -> None:
    from torch.nn.utils import prune

    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    prune.l1_unstructured(net[0], "weight", 5)
    masks = masks_of(net)
    assert [int(mask.sum()) for mask in masks.values()] == [7, 6]
    make_plain(net)
    assert not prune.is_pruned(net)
    assert [name for name, _ in net.named_parameters()] == ["0.bias", "0.weight", "1.weight", "1.bias"]
    assert torch.equal(net[0].weight != 0, masks["0.weight"])


@pytest.mark.parametrize("schedule", ["cubic", "exponential"])
def test_a_schedule_begins_with_what_a_pattern_takes_at_once(schedule: str) -> None:
    """1:2 has no masks below half: the first events and rounds ask for less, and get the half."""
    made_up = tiny_experiment("magnitude", 0.8)
    late = prune_by(magnitude, "late", cite="me", schedule=schedule, structure="1:2")
    pruned = late.fit(made_up, 0.8)
    verify(pruned.model, pruned.masks, 0.8)
