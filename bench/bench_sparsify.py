"""Whole networks: latency of `sparsify` against the plain network, the folded dense one and torch.compile.

    uv run pytest bench/bench_sparsify.py --benchmark-only         one row a variant, grouped by network and sparsity
    uv run python bench/bench_sparsify.py [--compile] [--threads N]    a table timed in turns: medians and ratios

Random weights with masks: unstructured (global) or whole filters. BatchNorm shifts as initialised (zero), so that a
pruned filter's channel is zero, as after training with weight decay it nearly is.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest
import torch
from prunebench_kernels.measured import Choices, Measuring
from prunebench_kernels.sparsify import SparseNetwork, fold_dense, sparsify
from torch import Tensor, nn

from prunebench.inference.latency import interleaved_latency
from prunebench.models import build_model
from prunebench.pruning.masks import apply_masks, prunable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """A network on `[batch, 3, size, size]`, pruned to `sparsity` unstructured or by whole filters."""

    model: str
    size: int
    batch: int
    pattern: str
    sparsity: float

    def __str__(self) -> str:
        return f"{self.model} {self.size}x{self.size} b{self.batch} {self.pattern} {self.sparsity:g}"


PATTERNS = (("unstructured", (0.9, 0.98, 0.99, 0.995)), ("filter", (0.5, 0.9)))
NETWORKS = (
    (("convnet", 28, 256), ("resnet18", 32, 128), ("mobilenet", 32, 128))
    if DEVICE.type == "cuda"
    else (("convnet", 28, 64), ("resnet18", 32, 8))
)
CASES = [
    Case(*network, pattern, sparsity)
    for network in NETWORKS
    for pattern, sparsities in PATTERNS
    for sparsity in sparsities
]


def make_mask(weight: Tensor, pattern: str, sparsity: float) -> Tensor:
    """Random mask; `filter` leaves the linear head dense."""
    if pattern == "unstructured":
        return torch.rand_like(weight) >= sparsity
    mask = torch.ones_like(weight, dtype=torch.bool)
    if weight.ndim == 4:
        mask[torch.randperm(len(weight))[: round(sparsity * len(weight))]] = False
    return mask


def make_network(case: Case) -> tuple[nn.Module, Tensor]:
    """The pruned network and its input, channels_last."""
    torch.manual_seed(0)
    model = build_model(case.model, 10, seed=0).eval()
    apply_masks(
        model, {name: make_mask(w, case.pattern, case.sparsity) for name, w in prunable(model).items()}
    )
    x = torch.randn(case.batch, 3, case.size, case.size, device=DEVICE)
    return model.to(DEVICE), x.contiguous(memory_format=torch.channels_last)


def make_variants(model: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """The plain network, the folded dense one, and the sparse one with layouts measured now."""
    measuring = Measuring(choices=Choices.in_memory())
    return {
        "plain": model,
        "folded dense": fold_dense(model, x),
        "sparsify": sparsify(model, example=x, measuring=measuring),
    }


@pytest.mark.parametrize("variant", ["plain", "folded dense", "sparsify"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_network(benchmark, case: Case, variant: str) -> None:
    """One forward pass."""
    model, x = make_network(case)
    network = make_variants(model, x)[variant]
    benchmark.group = str(case)

    def run() -> None:
        network(x)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        benchmark(run)


def table(cases: list[Case], *, compiled: bool, repeats: int) -> None:
    """Print medians of variants timed in turns, and ratios to the folded dense network."""
    print(f"{DEVICE}, {torch.get_num_threads()} threads; medians in ms; x: times as fast as folded dense")
    for case in cases:
        model, x = make_network(case)
        variants = make_variants(model, x)
        if compiled:
            variants["torch.compile"] = torch.compile(fold_dense(model, x), dynamic=False)  # type: ignore[assignment]
        times = {name: marks.p50 for name, marks in interleaved_latency(variants, x, repeats=repeats).items()}
        dense = times["folded dense"]
        shown = "  ".join(f"{name} {ms:.2f} ({dense / ms:.2f}x)" for name, ms in times.items())
        network = variants["sparsify"]
        assert isinstance(network, SparseNetwork)
        report = network.report
        print(
            f"{case}: {shown}; {report.layouts}, {report.removed_channels:.0%} of channels removed",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile of the folded dense network"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = [case for case in CASES if options.only in str(case)]
    table(chosen, compiled=options.compile, repeats=options.repeats)
