"""Masks of whole networks from their logits, against eager torch layer by layer and on one flat buffer.

    uv run pytest bench/bench_kernel_mask_sampling.py

On a CPU with one thread (both draw their random numbers on one), on a GPU synchronised. Eager torch draws other
random numbers (torch.rand); the masks have the same distribution. Compare times of one run only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import pytest
import torch
from cases import MASK_LAYERS
from prunebench_kernels.mask_sampling import sample_masks
from prunebench_kernels.measured import torch_threads
from pytest_benchmark.fixture import BenchmarkFixture
from timing import compiled, synchronised
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Sampler = Callable[[Tensor, Tensor | None], object]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


def formula(logits: Tensor, weights: Tensor | None) -> Tensor:
    """Straight-through masks, or masked weights in bfloat16, of one tensor."""
    noise = torch.logit(torch.rand_like(logits), eps=1e-7)
    soft = torch.sigmoid(torch.sigmoid(logits) + noise)
    hard = ((soft > 0.5).to(soft.dtype) - soft).detach() + soft
    return hard if weights is None else (weights * hard).to(torch.bfloat16)


def by_layer(sizes: Sequence[int]) -> Sampler:
    """As released code does it: every operation once a layer."""

    def sample(logits: Tensor, weights: Tensor | None) -> Tensor:
        pieces = logits.split(sizes)
        matching = [None] * len(sizes) if weights is None else weights.split(sizes)
        return torch.cat([formula(piece, weight) for piece, weight in zip(pieces, matching)])

    return sample


def ours() -> Sampler:
    draws = count()

    def sample(logits: Tensor, weights: Tensor | None) -> Tensor:
        dtype = None if weights is None else torch.bfloat16
        return sample_masks(logits, seed=0, offset=next(draws), weights=weights, weight_dtype=dtype)

    return sample


def samplers(network: str) -> dict[str, Sampler]:
    sizes = [torch.Size(shape).numel() for shape in MASK_LAYERS[network]]
    made: dict[str, Sampler] = {
        "ours": ours(),
        "eager, by layer": by_layer(sizes),
        "eager, one buffer": formula,
    }
    if DEVICE.type == "cuda":  # a CPU would time its C++ compiler
        made["torch.compile"] = compiled(formula)
    return made


@pytest.mark.parametrize("who", ["ours", "eager, by layer", "eager, one buffer", "torch.compile"])
@pytest.mark.parametrize("passes", ["forward", "both ways"])
@pytest.mark.parametrize("output", ["masks", "masked weights"])
@pytest.mark.parametrize("network", MASK_LAYERS)
def test_sample_masks(network: str, output: str, passes: str, who: str, benchmark: BenchmarkFixture) -> None:
    candidates = samplers(network)
    if who not in candidates:
        pytest.skip("compiled on a GPU only")
    elements = sum(torch.Size(shape).numel() for shape in MASK_LAYERS[network])
    logits = torch.full((elements,), 1.5, device=DEVICE, requires_grad=passes == "both ways")
    weights = torch.randn(elements, device=DEVICE) if output == "masked weights" else None
    dtype = torch.float32 if weights is None else torch.bfloat16
    gradient = torch.randn(elements, device=DEVICE, dtype=dtype)

    def call() -> object:
        made = candidates[who](logits, weights)
        return torch.autograd.grad(made, logits, gradient) if logits.requires_grad else made

    benchmark.group = f"{network}, {output}, {passes}"
    benchmark.extra_info["elements"] = elements
    benchmark.pedantic(synchronised(call, DEVICE), warmup_rounds=2, rounds=15)
