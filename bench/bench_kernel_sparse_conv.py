"""Sparse convolution over ResNet-18's layers: every layout against the library's dense convolution.

    python bench/bench_kernel_sparse_conv.py --threads 1 --rounds 5 [--batch 8] [--cpu-time]

prints medians side by side, timed in turns; under pytest-benchmark each is a row. Each layout reads the format that
it prefers; `eager` is conv2d, bias, residual and ReLU on channels_last tensors. A GPU computes in bfloat16 at
batch 128, a CPU in float32 at batch 8. Compare times of one run only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import RESNET18_32, ConvCase
from prunebench_kernels.layouts import PackedWeight, arrange, format_of, pack
from prunebench_kernels.sparse_conv import sparse_conv2d
from pytest_benchmark.fixture import BenchmarkFixture
from timing import chosen_clock, command_line, synchronised, time_calls
from torch import Tensor
from torch.nn import functional

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
BATCH = 128 if DEVICE.type == "cuda" else 8
LAYOUTS = ("dense", "block", "direct")
MASKS = (
    ("block", 0.5),
    ("block", 0.9),
    ("unstructured", 0.9),
    ("unstructured", 0.98),
    ("unstructured", 0.99),
)


def masked_weight(case: ConvCase, pattern: str, sparsity: float) -> Tensor:
    """A random weight with an exact share of zeros, in blocks of 64 x 64 per tap or one by one."""
    generator = torch.Generator().manual_seed(0)
    side = 64 if pattern == "block" else 1
    out_channels, in_channels, height, width = case.weight_shape
    places = torch.rand(-(-out_channels // side), -(-in_channels // side), height, width, generator=generator)
    keep = places.flatten().argsort()[round(sparsity * places.numel()) :]
    mask = torch.zeros_like(places).flatten().index_fill_(0, keep, 1.0).view_as(places)
    mask = mask.repeat_interleave(side, 0).repeat_interleave(side, 1)[:out_channels, :in_channels]
    return (torch.randn(case.weight_shape, generator=generator) * mask).to(DEVICE, DTYPE)


def eager(x: Tensor, case: ConvCase, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    y = functional.conv2d(x, weight, bias, case.stride, case.padding, case.dilation, case.groups)
    return y.add_(residual).relu_()


def calls_of(case: ConvCase, pattern: str, sparsity: float) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Name and call of each candidate; layouts that hold every weight one by one only for unstructured masks."""
    weight = masked_weight(case, pattern, sparsity)
    x = torch.randn(case.x_shape, device=DEVICE).to(DTYPE)
    bias = torch.randn(case.out_channels, device=DEVICE).to(DTYPE)
    residual = torch.randn(case.y_shape, device=DEVICE).to(DTYPE)
    last = [tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight, residual)]
    yield "eager", lambda: eager(last[0], case, last[1], bias, last[2])
    for layout in LAYOUTS:
        if layout == "block" and pattern != "block":
            continue
        packed = pack(weight, layout, geometry=case.geometry)
        mine = (arrange(x, format_of(layout)), arrange(residual, format_of(layout)))
        yield layout, lambda p=packed, t=mine: _run(p, t, bias)  # type: ignore[misc]


def _run(packed: PackedWeight, tensors: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
    return sparse_conv2d(tensors[0], packed, bias, residual=tensors[1], relu=True)


def layers(batch: int = BATCH) -> tuple[ConvCase, ...]:
    return tuple(dataclasses.replace(case, batch=batch) for case in RESNET18_32[128])


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("who", ["eager", *LAYOUTS])
@pytest.mark.parametrize("case", layers(), ids=lambda case: case.name)
def test_sparse_conv(case: ConvCase, who: str, mask: tuple[str, float], benchmark: BenchmarkFixture) -> None:
    calls = dict(calls_of(case, *mask))
    if who not in calls:
        pytest.skip("blocks of an unstructured mask are all used")
    benchmark.pedantic(synchronised(calls[who], DEVICE), rounds=3, warmup_rounds=1)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kind, clock = chosen_clock(options)
    print(f"{DEVICE}, {DTYPE}, batch {options.batch}, {options.threads} threads, {kind} time, medians in ms")
    for case in layers(options.batch):
        for pattern, sparsity in MASKS:
            calls = dict(calls_of(case, pattern, sparsity))
            timed = time_calls(calls, DEVICE, rounds=options.rounds, clock=clock)
            base = timed["eager"].p50_ms
            texts = [f"{name} {t.p50_ms:.2f} ({base / t.p50_ms:.2f}x)" for name, t in timed.items()]
            print(f"{case.name:12} {pattern} {sparsity}: {', '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
