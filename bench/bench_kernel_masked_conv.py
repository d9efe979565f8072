"""Training through a masked convolution, forward and all gradients, against autograd on conv2d(x, weight * mask).

On a CPU the layers of the small network, two threads; on a GPU those of ResNet-18 at 32 x 32, synchronised.
Compare times of one run only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from cases import CONVNET, RESNET18_32, ConvCase
from prunebench_kernels.masked_conv import masked_conv2d
from prunebench_kernels.measured import torch_threads
from pytest_benchmark.fixture import BenchmarkFixture
from timing import Call, compiled, synchronised, time_calls
from torch import Tensor
from torch.nn import functional

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = RESNET18_32[128] if DEVICE.type == "cuda" else CONVNET[256]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Operation = Callable[[ConvCase, Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    with torch_threads(2):
        yield


def ours(case: ConvCase, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return masked_conv2d(x, weight, mask, None, case.stride, case.padding, case.dilation, case.groups)


def eager(case: ConvCase, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return functional.conv2d(x, weight * mask, None, case.stride, case.padding, case.dilation, case.groups)


OPERATIONS: dict[str, Operation] = {"ours": ours, "eager": eager}
if DEVICE.type == "cuda":  # a CPU would time its C++ compiler
    OPERATIONS["torch.compile"] = compiled(eager)  # type: ignore[assignment]


def training_step(case: ConvCase, operation: Operation, precision: str) -> Call:
    """Forward and the gradients of x, weight and mask; float32 weights, channels_last, autocast for bf16."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, device=DEVICE)
        return values.to(memory_format=torch.channels_last)

    x, weight = (leaf(*shape).requires_grad_() for shape in (case.x_shape, case.weight_shape))
    mask = (leaf(*case.weight_shape) > 0).float().requires_grad_()
    gradient = leaf(*case.y_shape).to(DTYPES[precision])

    def step() -> tuple[Tensor, ...]:
        with torch.autocast(DEVICE.type, DTYPES[precision], enabled=precision != "fp32"):
            y = operation(case, x, weight, mask)
        return torch.autograd.grad(y, (x, weight, mask), gradient)

    return step


@pytest.mark.parametrize("who", OPERATIONS)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_step(case: ConvCase, precision: str, who: str, benchmark: BenchmarkFixture) -> None:
    benchmark.group = f"masked_conv2d, {case.name}, {precision}"
    step = synchronised(training_step(case, OPERATIONS[who], precision), DEVICE)
    benchmark.pedantic(step, rounds=5, warmup_rounds=2)


@pytest.mark.parametrize("precision", DTYPES)
def test_not_slower_than_the_materialised_mask(precision: str, benchmark: BenchmarkFixture) -> None:
    """All layers in turns; the bound leaves room for the noise of a shared machine."""
    total = dict.fromkeys(("ours", "eager"), 0.0)

    def run() -> None:
        for case in CASES:
            calls = {who: training_step(case, OPERATIONS[who], precision) for who in total}
            for who, timing in time_calls(calls, DEVICE, seconds=2.0).items():
                total[who] += timing.p50_ms

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update({f"{who}_ms": round(time, 3) for who, time in total.items()})
    assert total["ours"] < 1.1 * total["eager"], total
