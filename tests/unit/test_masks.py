"""Masks: exact counts, ties, nesting, layers that survive, and what `verify` catches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunebench.errors import MaskError, UsageError
from prunebench.models import build_model
from prunebench.pruning.distribution import ALLOCATIONS, allocate, global_counts, layer_counts
from prunebench.pruning.masks import (
    Masks,
    apply_masks,
    check_feasible,
    keep_count,
    make_masks,
    masks_from_counts,
    prunable,
    top_k,
    verify,
)
from prunebench.pruning.schedule import cubic_sparsity, pruning_steps

LINEAR = st.tuples(st.integers(1, 12), st.integers(1, 12))
CONVOLUTION = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
SHAPES = st.lists(LINEAR | CONVOLUTION, min_size=1, max_size=4)
SPARSITY = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 0.98])
KINDS = ("distinct", "ties", "equal", "zero", "with -inf")


def scores_of(shapes: list[tuple[int, ...]], kind: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for position, shape in enumerate(shapes):
        values = torch.rand(shape, generator=generator)
        if kind == "ties":
            values = (values * 3).floor()
        elif kind == "equal":
            values = torch.full(shape, 0.25)
        elif kind == "zero":
            values = torch.zeros(shape)
        elif kind == "with -inf":
            values[values < 0.5] = -math.inf
        scores[f"layer{position}"] = values
    return scores


NETWORKS = st.builds(scores_of, SHAPES, st.sampled_from(KINDS), st.integers(0, 1000))


def noise_like(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(values.shape, generator=generator) for name, values in tensors.items()}


def total_of(scores: Mapping[str, Tensor]) -> int:
    return sum(values.numel() for values in scores.values())


def best_indices(values: list[float], k: int) -> list[int]:
    """The k highest, ties to the lower index, in plain Python."""
    return sorted(range(len(values)), key=lambda index: (-values[index], index))[:k]


@given(NETWORKS, SPARSITY, st.sampled_from(ALLOCATIONS))
def test_exact_count_and_no_empty_layer(scores: dict[str, Tensor], sparsity: float, allocation: str) -> None:
    keep = keep_count(total_of(scores), sparsity)
    assume(keep >= len(scores))
    masks = make_masks(scores, sparsity, allocation=allocation, weights=scores)
    assert list(masks) == list(scores)
    assert sum(int(mask.sum()) for mask in masks.values()) == keep
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == scores[name].shape
        assert mask.any()


@given(NETWORKS, SPARSITY, st.sampled_from(ALLOCATIONS))
def test_a_layer_keeps_its_best_and_ties_go_to_the_lower_index(
    scores: dict[str, Tensor], sparsity: float, allocation: str
) -> None:
    assume(keep_count(total_of(scores), sparsity) >= len(scores))
    for name, mask in make_masks(scores, sparsity, allocation=allocation, weights=scores).items():
        kept = torch.nonzero(mask.reshape(-1)).flatten().tolist()
        assert kept == sorted(best_indices(scores[name].reshape(-1).tolist(), len(kept)))


@given(NETWORKS, SPARSITY)
def test_global_fills_up_by_score_after_the_best_of_each_layer(
    scores: dict[str, Tensor], sparsity: float
) -> None:
    keep = keep_count(total_of(scores), sparsity)
    assume(keep >= len(scores))
    entries = []
    for position, values in enumerate(scores.values()):
        flat = values.reshape(-1).tolist()
        best = best_indices(flat, 1)[0]
        entries += [(index != best, -value, position, index) for index, value in enumerate(flat)]
    expected = dict.fromkeys(scores, 0)
    for _, _, position, _ in sorted(entries)[:keep]:
        expected[list(scores)[position]] += 1
    assert global_counts(scores, keep) == expected


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@given(scores=NETWORKS, one=SPARSITY, other=SPARSITY)
def test_nested_over_sparsity(scores: dict[str, Tensor], one: float, other: float, allocation: str) -> None:
    low, high = sorted((one, other))
    assume(keep_count(total_of(scores), high) >= len(scores))
    weights = noise_like(scores)
    denser = make_masks(scores, low, allocation=allocation, weights=weights)
    sparser = make_masks(scores, high, allocation=allocation, weights=weights)
    for name in scores:
        revived = int((sparser[name] & ~denser[name]).sum())
        assert not revived, f"{name}: {revived} weights come back as sparsity rises from {low} to {high}"


@pytest.mark.parametrize(
    ("allocation", "shapes"),
    [
        ("uniform", {"a": (6,), "b": (6,), "c": (2,)}),
        ("erk", {"a": (6, 6), "b": (6, 6), "c": (2, 2)}),
    ],
)
def test_a_layer_never_shrinks_when_more_weights_are_kept(
    allocation: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Both share in 6 : 6 : 2. Largest remainders give 4, 4, 2 of ten, but 5, 5, 1 of eleven."""
    ten, eleven = (layer_counts(allocation, shapes, keep) for keep in (10, 11))
    assert all(ten[name] <= eleven[name] for name in shapes), (ten, eleven)


@given(SHAPES, SPARSITY, st.sampled_from(["uniform", "erk"]))
def test_layer_counts_sum_exactly_and_stay_within_the_layers(
    shapes: list[tuple[int, ...]], sparsity: float, allocation: str
) -> None:
    named = {str(position): shape for position, shape in enumerate(shapes)}
    sizes = {name: math.prod(shape) for name, shape in named.items()}
    keep = keep_count(sum(sizes.values()), sparsity)
    assume(keep >= len(sizes))
    counts = layer_counts(allocation, named, keep)
    assert sum(counts.values()) == keep
    assert all(1 <= counts[name] <= sizes[name] for name in sizes)


@given(NETWORKS, SPARSITY)
def test_like_magnitude_takes_the_counts_of_the_weights_whatever_the_scores(
    weights: dict[str, Tensor], sparsity: float
) -> None:
    keep = keep_count(total_of(weights), sparsity)
    assume(keep >= len(weights))
    scores = noise_like(weights)
    magnitude = {name: values.abs() for name, values in weights.items()}
    assert allocate("like-magnitude", scores, weights, keep) == global_counts(magnitude, keep)


def test_like_magnitude_differs_from_global_on_the_scores() -> None:
    scores = {"a": torch.arange(4.0), "b": torch.arange(4.0) + 10}
    weights = {"a": torch.tensor([9.0, -8.0, 7.0, -6.0]), "b": torch.arange(4.0)}
    assert allocate("global", scores, weights, 5) == {"a": 1, "b": 4}
    assert allocate("like-magnitude", scores, weights, 5) == {"a": 4, "b": 1}


@pytest.mark.parametrize(
    ("total", "sparsity", "kept"),
    [
        (10, 0.0, 10),
        (10, 0.5, 5),
        (3, 0.5, 1),  # 1.5 pruned: a half rounds up, two go
        (1, 0.5, 0),
        (5, 0.9, 0),  # 4.5 pruned
        (7, 0.25, 5),  # 1.75 pruned
        (5, 0.25, 4),  # 1.25 pruned
        (100, 0.98, 2),
        (1000, 0.9, 100),
        (166_624, 0.9, 16_662),  # 149 961.6 pruned
    ],
)
def test_keep_count(total: int, sparsity: float, kept: int) -> None:
    assert keep_count(total, sparsity) == kept


@given(st.integers(1, 10**7), SPARSITY, SPARSITY)
def test_keep_count_is_within_a_half_and_falls_with_sparsity(total: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert abs(keep_count(total, low) - total * (1 - low)) <= 0.5 + 1e-9 * total
    assert keep_count(total, high) <= keep_count(total, low)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, 90, math.nan, math.inf])
def test_sparsity_outside_its_range(sparsity: float) -> None:
    with pytest.raises(UsageError, match=r"sparsity must be in \[0, 1\)"):
        keep_count(100, sparsity)
    with pytest.raises(UsageError, match=r"sparsity must be in \[0, 1\)"):
        check_feasible({"a": 100}, sparsity)


def test_check_feasible() -> None:
    sizes = {"a": 100, "b": 10}
    check_feasible(sizes, 0.98)  # 107.8 pruned, 2 kept: one a layer
    with pytest.raises(UsageError, match="keeps 1 of 110 weights, fewer than the 2 layers"):
        check_feasible(sizes, 0.99)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_masks_that_must_empty_a_layer_are_refused(allocation: str) -> None:
    scores = {"a": torch.rand(10, 10), "b": torch.rand(10)}
    with pytest.raises(UsageError, match="empty one of 2 layers"):
        make_masks(scores, 0.99, allocation=allocation, weights=scores)


def test_uniform_by_hand() -> None:
    shapes = {"a": (10, 10), "b": (5, 10), "c": (2, 5)}
    assert layer_counts("uniform", shapes, 16) == {"a": 10, "b": 5, "c": 1}
    assert layer_counts("uniform", {"a": (50,), "b": (30,), "c": (20,)}, 11) == {"a": 6, "b": 3, "c": 2}
    assert layer_counts("uniform", {"c": (20,), "b": (30,), "a": (50,)}, 11) == {"a": 6, "b": 3, "c": 2}
    assert layer_counts("uniform", {"a": (96,), "b": (4,)}, 10) == {"a": 9, "b": 1}  # 9.6 and 0.4: never none


def test_erk_by_hand() -> None:
    shapes = {"conv": (4, 2, 3, 3), "linear": (10, 4), "head": (2, 3)}  # sizes 72, 40, 6; sums 12, 14, 5
    assert layer_counts("erk", shapes, 31) == {"conv": 12, "linear": 14, "head": 5}  # epsilon = 31 / 31


def test_erk_layer_that_saturates_stays_dense() -> None:
    shapes = {"conv": (4, 2, 3, 3), "linear": (10, 4), "head": (2, 3)}
    # epsilon = 40 / 31 would give the head 6.45 of 6; dense, it leaves 34 / 26: 15.69 and 18.31.
    assert layer_counts("erk", shapes, 40) == {"conv": 16, "linear": 18, "head": 6}


def test_erk_shares_what_a_dense_layer_cannot_take_in_proportion() -> None:
    # Sizes 7200, 100, 8; sums 66, 20, 9.
    shapes = {"conv": (40, 20, 3, 3), "linear": (10, 10), "head": (1, 8)}
    # 190 / 95: head 18 of 8. Then 182 / 86: 139.67 and 42.33.
    assert layer_counts("erk", shapes, 190) == {"conv": 140, "linear": 42, "head": 8}


def test_erk_saturation_that_saturates_the_next() -> None:
    shapes = {"conv": (4, 2, 3, 3), "small": (3, 2), "square": (3, 3)}  # sizes 72, 6, 9; sums 12, 5, 6
    # 34 / 23: small 7.39 of 6, square 8.87 of 9. Then 28 / 18: square 9.33 of 9. The rest, 19, is the conv's.
    assert layer_counts("erk", shapes, 34) == {"conv": 19, "small": 6, "square": 9}


def test_erk_at_no_sparsity_is_dense() -> None:
    shapes = {"conv": (4, 2, 3, 3), "linear": (10, 4)}
    assert layer_counts("erk", shapes, 112) == {"conv": 72, "linear": 40}


def test_unknown_allocation() -> None:
    scores = {"a": torch.rand(4)}
    with pytest.raises(UsageError, match="unknown allocation 'unifrom': did you mean uniform"):
        make_masks(scores, 0.5, allocation="unifrom")


def test_global_by_hand() -> None:
    scores = {"a": torch.tensor([9.0, 1.0, 8.0, 7.0]), "b": torch.tensor([[0.5, 0.25], [0.0, 6.0]])}
    masks = make_masks(scores, 0.5)
    assert masks["a"].tolist() == [True, False, True, True]
    assert masks["b"].tolist() == [[False, False], [False, True]]
    masks = make_masks(scores, 0.75)  # two of eight: the best of each layer, although a's second is higher
    assert masks["a"].tolist() == [True, False, False, False]
    assert masks["b"].tolist() == [[False, False], [False, True]]


def test_top_k_ties_and_signed_zeros() -> None:
    assert top_k(torch.zeros(5), 2).tolist() == [True, True, False, False, False]
    assert top_k(torch.tensor([0.0, -0.0, 0.0, -0.0]), 2).tolist() == [True, True, False, False]
    assert top_k(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2).tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_top_k_of_many_equal_scores_is_exact(dtype: torch.dtype) -> None:
    mask = top_k(torch.full((100, 101), 0.125, dtype=dtype), 1234)
    assert torch.nonzero(mask.reshape(-1)).flatten().tolist() == list(range(1234))


def test_top_k_follows_values_not_strides() -> None:
    scores = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    strided = scores.to(memory_format=torch.channels_last)
    assert torch.equal(top_k(strided, 100), top_k(scores, 100))


def test_infinite_scores_are_allowed() -> None:
    low, high = -math.inf, math.inf
    assert top_k(torch.tensor([low, 1.0, low, high]), 3).tolist() == [True, True, False, True]
    masks = make_masks({"a": torch.full((4,), low), "b": torch.tensor([1.0, low])}, 0.5)
    assert masks["a"].tolist() == [True, True, False, False]  # the earlier of the layers that tie at -inf
    assert masks["b"].tolist() == [True, False]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_nan_scores_are_refused(allocation: str) -> None:
    scores = {"a": torch.tensor([1.0, math.nan, 2.0, 3.0]), "b": torch.rand(4)}
    with pytest.raises(MaskError, match="nan"):
        make_masks(scores, 0.5, allocation=allocation, weights=noise_like(scores))
    with pytest.raises(MaskError, match="nan"):
        top_k(scores["a"], 1)


@pytest.mark.parametrize("k", [-1, 5])
def test_top_k_out_of_range(k: int) -> None:
    with pytest.raises(MaskError, match=f"cannot keep {k} of 4"):
        top_k(torch.rand(4), k)


def test_masks_from_counts() -> None:
    scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([3.0, 2.0, 1.0])}
    masks = masks_from_counts(scores, {"a": 1, "b": 2})
    assert masks["a"].tolist() == [False, False, True]
    assert masks["b"].tolist() == [True, True, False]


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def pruned_net() -> tuple[nn.Sequential, Masks]:
    net = small_net()
    masks = make_masks({name: weight.abs() for name, weight in prunable(net).items()}, 0.5)
    apply_masks(net, masks)
    return net, masks


def test_verify_reports_what_was_achieved() -> None:
    net, masks = pruned_net()
    report = verify(net, masks, 0.5)
    assert (report.asked, report.achieved) == (0.5, 0.5)
    assert report.by_layer == {
        name: 1 - int((weight != 0).sum()) / weight.numel() for name, weight in prunable(net).items()
    }
    assert verify(net, masks, None).asked is None


def test_verify_accepts_a_weight_that_is_zero_by_chance() -> None:
    net, masks = pruned_net()
    with torch.no_grad():
        net[3].weight.zero_()
    assert verify(net, masks, 0.5).achieved == 0.5


def forget_layer(net: nn.Sequential, masks: Masks) -> None:
    del masks["3.weight"]


def add_layer(net: nn.Sequential, masks: Masks) -> None:
    masks["1.weight"] = torch.ones(4, dtype=torch.bool)


def make_float(net: nn.Sequential, masks: Masks) -> None:
    masks["0.weight"] = masks["0.weight"].float()


def reshape(net: nn.Sequential, masks: Masks) -> None:
    masks["3.weight"] = masks["3.weight"].T


def keep_one_more(net: nn.Sequential, masks: Masks) -> None:
    masks["0.weight"].view(-1)[torch.nonzero(~masks["0.weight"].view(-1))[0]] = True


def revive_weight(net: nn.Sequential, masks: Masks) -> None:
    with torch.no_grad():
        net[0].weight[~masks["0.weight"]] += 1e-30


def empty_layer(net: nn.Sequential, masks: Masks) -> None:
    masks["3.weight"].zero_()


def break_kept_weight(net: nn.Sequential, masks: Masks) -> None:
    with torch.no_grad():
        net[3].weight[masks["3.weight"]] = math.nan


def break_pruned_weight(net: nn.Sequential, masks: Masks) -> None:
    with torch.no_grad():
        net[3].weight[~masks["3.weight"]] = math.nan


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (forget_layer, "see 3.weight"),
        (add_layer, "see 1.weight"),
        (make_float, "0.weight: want a bool mask"),
        (reshape, "3.weight: want a bool mask"),
        (keep_one_more, "46 of 92 weights, but 47 are kept"),
        (revive_weight, "0.weight: the mask did not hold"),
        (empty_layer, "3.weight: the mask empties the layer"),
        (break_kept_weight, "3.weight: weights are not finite"),
        (break_pruned_weight, "3.weight: the mask did not hold"),
    ],
)
def test_verify_catches(damage: Callable[[nn.Sequential, Masks], None], message: str) -> None:
    net, masks = pruned_net()
    damage(net, masks)
    with pytest.raises(MaskError, match=message):
        verify(net, masks, 0.5)


def test_verify_holds_the_method_to_the_asked_sparsity_alone() -> None:
    net, masks = pruned_net()
    with pytest.raises(MaskError, match=r"asked for sparsity 0\.6: 37 of 92 weights, but 46 are kept"):
        verify(net, masks, 0.6)


def test_apply_masks_zeroes_the_masked_and_nothing_else() -> None:
    net, before = small_net(), small_net()
    masks = {name: torch.rand(weight.shape) < 0.5 for name, weight in prunable(net).items()}
    apply_masks(net, masks)
    for name, values in net.named_parameters():
        expected = before.get_parameter(name) * masks[name] if name in masks else before.get_parameter(name)
        assert torch.equal(values, expected)


def test_prunable_convnet() -> None:
    net = build_model("convnet", 10, seed=0)
    assert list(prunable(net)) == ["body.0.weight", "body.3.weight", "body.6.weight", "head.weight"]
    assert prunable(net)["body.0.weight"] is net.get_parameter("body.0.weight")


def test_prunable_resnet18() -> None:
    names = list(prunable(build_model("resnet18", 10, seed=0)))
    assert (names[0], names[-1]) == ("body.conv1.weight", "head.weight")
    assert len(names) == 21  # 17 on the way, 3 on shortcuts, the head
    assert "body.layer4.0.downsample.0.weight" in names
    assert not [name for name in names if "bn" in name or "downsample.1" in name or name.endswith("bias")]


def test_prunable_single_layer() -> None:
    assert list(prunable(nn.Linear(2, 3))) == ["weight"]


def test_cubic_sparsity_of_the_celeba_protocol() -> None:
    reached = [
        round(cubic_sparsity(epoch, begin=10, end=81, final=0.95, initial=0.05), 3)
        for epoch in range(10, 90, 10)
    ]
    assert reached == [0.05, 0.379, 0.616, 0.777, 0.875, 0.927, 0.947, 0.950]


def test_cubic_sparsity_by_hand_and_at_its_ends() -> None:
    assert cubic_sparsity(5, begin=0, end=10, final=0.8) == pytest.approx(0.7)  # 0.8 - 0.8 / 8
    assert cubic_sparsity(-3, begin=0, end=10, final=0.8, initial=0.1) == pytest.approx(0.1)
    assert cubic_sparsity(10, begin=0, end=10, final=0.8) == 0.8
    assert cubic_sparsity(99, begin=0, end=10, final=0.8) == 0.8
    assert cubic_sparsity(4, begin=4, end=4, final=0.8) == 0.8


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 0.5), st.floats(0.5, 0.99))
def test_cubic_sparsity_never_falls(one: float, other: float, initial: float, final: float) -> None:
    before, after = (
        cubic_sparsity(step, begin=10, end=81, final=final, initial=initial) for step in sorted((one, other))
    )
    assert initial - 1e-12 <= before <= after + 1e-12 <= final + 2e-12


def test_pruning_steps() -> None:
    assert pruning_steps(100, begin=0.1, end=0.8, events=8) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert pruning_steps(100, begin=0.1, end=0.8, events=1) == [80]
    assert pruning_steps(100, begin=0.5, end=0.5, events=4) == [50]
    assert pruning_steps(10, begin=0.0, end=1.0, events=3) == [1, 5, 10]


@given(st.integers(1, 2000), st.floats(0, 0.5), st.floats(0.5, 1), st.integers(1, 20))
def test_pruning_steps_are_steps_of_the_run(total: int, begin: float, end: float, events: int) -> None:
    steps = pruning_steps(total, begin=begin, end=end, events=events)
    assert steps == sorted(set(steps))
    assert 1 <= len(steps) <= events
    assert steps[0] >= 1
    assert steps[-1] == max(round(end * total), 1)
