"""Masks of a given structure: hand-computed arrays, exact counts, ties, edges, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from prunebench.errors import MaskError, UsageError
from prunebench.pruning.masks import keep_count
from prunebench.pruning.structure import STRUCTURES, block, filters, n_of_m, structured_mask, unstructured

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9)) | st.tuples(
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)
)
SPARSITY = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 0.5, 0.9])


def scores_of(shape: tuple[int, ...], seed: int, levels: int) -> Tensor:
    """Scores on few levels, so that ties abound."""
    return torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(seed)).float()


def test_unstructured_keeps_the_highest_with_ties_to_the_lower_index() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0], [2.0, 0.0, 5.0, 2.0]])
    want = [[False, True, True, True], [False, False, True, False]]
    assert unstructured(scores, 0.5).tolist() == want


def test_two_of_four_along_input_channels() -> None:
    scores = torch.tensor([[4.0, 1, 3, 2, 0, 0, 0, 0], [1, 1, 1, 2, 9, -1, -2, 8]])
    want = [[1, 0, 1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 1, 0, 0, 1]]
    assert n_of_m(scores).int().tolist() == want


def test_n_of_m_groups_stay_within_a_tap() -> None:
    scores = torch.zeros(1, 4, 1, 2)
    scores[0, :, 0, 0] = torch.tensor([1.0, 2, 3, 4])
    scores[0, :, 0, 1] = torch.tensor([40.0, 30, 20, 10])
    mask = n_of_m(scores)
    assert mask[0, :, 0, 0].int().tolist() == [0, 0, 1, 1]
    assert mask[0, :, 0, 1].int().tolist() == [1, 1, 0, 0]


def test_n_of_m_refuses_channels_that_are_no_multiple() -> None:
    with pytest.raises(MaskError, match="3 input channels are no multiple of 4"):
        n_of_m(torch.ones(8, 3, 3, 3))
    with pytest.raises(UsageError, match="0 < n <= m"):
        n_of_m(torch.ones(8, 4), 5, 4)


def test_blocks_with_ragged_edges_by_hand() -> None:
    # Blocks of 2 x 2 over 3 x 3: sums 4+..: [[10, 6], [5, 7]]; two of the four stay.
    scores = torch.tensor([[1.0, 2, 4], [3, 4, 2], [2, 3, 7]])
    want = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert block(scores, 0.5, (2, 2)).int().tolist() == want


def test_blocks_are_taken_per_tap() -> None:
    scores = torch.ones(2, 2, 1, 2)
    scores[..., 1] = 3
    mask = block(scores, 0.5, (2, 2))
    assert not mask[..., 0].any()
    assert mask[..., 1].all()


def test_equal_blocks_go_to_the_lower_index() -> None:
    mask = block(torch.ones(4, 4), 0.75, (2, 2))
    assert torch.nonzero(mask).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_filters_by_hand() -> None:
    scores = torch.tensor([[1.0, 1], [5, 0], [2, 2], [4, 1]])
    assert filters(scores, 0.5).int().tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]


@given(SHAPES, SPARSITY, st.integers(0, 99), st.integers(1, 5))
def test_unstructured_counts(shape: tuple[int, ...], sparsity: float, seed: int, levels: int) -> None:
    scores = scores_of(shape, seed, levels)
    keep = keep_count(scores.numel(), sparsity)
    assume(keep > 0)
    mask = unstructured(scores, sparsity)
    order = sorted(range(scores.numel()), key=lambda i: (-scores.flatten()[i].item(), i))
    assert sorted(order[:keep]) == torch.nonzero(mask.flatten()).flatten().tolist()


@given(SHAPES, st.integers(0, 99), st.integers(1, 5), st.sampled_from([(1, 2), (2, 4), (1, 1), (3, 3)]))
def test_n_of_m_keeps_the_best_of_every_group(
    shape: tuple[int, ...], seed: int, levels: int, nm: tuple[int, int]
) -> None:
    n, m = nm
    shape = (shape[0], shape[1] * m, *shape[2:])
    scores = scores_of(shape, seed, levels)
    mask = n_of_m(scores, n, m)
    assert mask.shape == scores.shape
    for out, *tap in itertools.product(range(shape[0]), *map(range, shape[2:])):
        for start in range(0, shape[1], m):
            group = [scores[(out, start + i, *tap)].item() for i in range(m)]
            kept = [i for i in range(m) if mask[(out, start + i, *tap)]]
            assert kept == sorted(sorted(range(m), key=lambda i: (-group[i], i))[:n])


@given(
    SHAPES, SPARSITY, st.integers(0, 99), st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(1, 4))
)
def test_blocks_are_whole_and_counted(
    shape: tuple[int, ...], sparsity: float, seed: int, levels: int, size: tuple[int, int]
) -> None:
    scores = scores_of(shape, seed, levels)
    starts = list(
        itertools.product(range(0, shape[0], size[0]), range(0, shape[1], size[1]), *map(range, shape[2:]))
    )
    keep = keep_count(len(starts), sparsity)
    assume(keep > 0)
    mask = block(scores, sparsity, size)

    def part(values: Tensor, row: int, column: int, *tap: int) -> Tensor:
        return values[(slice(row, row + size[0]), slice(column, column + size[1]), *tap)]

    sums = [part(scores, *start).sum().item() for start in starts]
    best = set(sorted(range(len(starts)), key=lambda i: (-sums[i], i))[:keep])
    for index, start in enumerate(starts):
        assert part(mask, *start).all() if index in best else not part(mask, *start).any()


@given(SHAPES, SPARSITY, st.integers(0, 99), st.integers(1, 5))
def test_filters_are_whole_and_counted(
    shape: tuple[int, ...], sparsity: float, seed: int, levels: int
) -> None:
    scores = scores_of(shape, seed, levels)
    keep = keep_count(shape[0], sparsity)
    assume(keep > 0)
    rows = filters(scores, sparsity).flatten(1)
    sums = scores.flatten(1).sum(1).tolist()
    best = sorted(sorted(range(shape[0]), key=lambda i: (-sums[i], i))[:keep])
    assert [i for i in range(shape[0]) if rows[i].all()] == best
    assert int(rows.sum()) == keep * rows.shape[1]


@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_nothing_left_and_nan_are_errors(structure: str) -> None:
    with pytest.raises(UsageError, match="it would empty the layer"):
        structured_mask(structure, torch.ones(1, 1), 0.99)
    with pytest.raises(MaskError, match="contains nan"):
        structured_mask(structure, torch.full((2, 2), torch.nan), 0.5)


def test_structures_by_name() -> None:
    scores = scores_of((4, 8), 0, 9)
    assert torch.equal(structured_mask("2:4", scores, 0.5), n_of_m(scores))
    assert torch.equal(structured_mask("filter", scores, 0.5), filters(scores, 0.5))
    with pytest.raises(UsageError, match=r"2:4 has sparsity 0\.5, not 0\.9"):
        structured_mask("2:4", scores, 0.9)
    with pytest.raises(UsageError, match="unknown structure 'blok': did you mean block"):
        structured_mask("blok", scores, 0.5)
    with pytest.raises(UsageError, match="two positive sizes"):
        block(scores, 0.5, (0, 4))


def test_a_scalar_shape_is_refused() -> None:
    with pytest.raises(MaskError, match="want"):
        filters(torch.ones(3), 0.5)
