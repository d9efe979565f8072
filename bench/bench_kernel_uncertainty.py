"""`uncertainty` over the shared shapes, against the formulas in eager torch and under torch.compile.

    python bench/bench_kernel_uncertainty.py --threads 1 --rounds 5 [--whole] [--cpu-time] [--skip-compile]

prints medians side by side, timed in turns; under pytest-benchmark each is a row. On a CPU the samples (and models)
are cut to a tenth unless `--whole`. Compare times of one run only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import LOGITS, LogitsCase
from prunebench_kernels.uncertainty import uncertainty
from pytest_benchmark.fixture import BenchmarkFixture
from timing import chosen_clock, command_line, compiled, synchronised, time_calls
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Function = Callable[..., Any]


def formula_chain(logits: Tensor, labels: Tensor, band: float = 0.4) -> tuple[Tensor, ...]:
    """The values of `uncertainty` with labels as one writes them in torch; arguments are not checked."""
    logits = logits.float()
    log_probability = torch.log_softmax(logits, -1)
    probability = log_probability.exp()
    top = probability.topk(2, -1).values
    entropy = -(probability * log_probability).sum(-1)
    loss = -log_probability.gather(-1, labels.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    in_band = ((logits.sigmoid() - 0.5).abs() < band).float().mean(-1)
    mean = probability.mean(0)
    predictive = torch.special.entr(mean).sum(-1)
    choice = logits.argmax(-1).t()
    votes = torch.zeros_like(mean).scatter_add_(1, choice, torch.ones_like(choice, dtype=mean.dtype))
    return (
        *(top[..., 0], top[..., 0] - top[..., 1], entropy, loss, in_band, mean, predictive),
        (predictive - entropy.mean(0)).clamp(min=0),
        *(votes.argmax(-1), votes.amax(-1) / len(logits)),
    )


def ours(logits: Tensor, labels: Tensor) -> object:
    return uncertainty(logits, labels=labels)


def reduced(case: LogitsCase) -> LogitsCase:
    """A tenth of the samples, or of many models; CelebA's as it is."""
    if case.models > 10:
        return LogitsCase(case.name, case.models // 10, case.samples, case.classes)
    samples = case.samples if case.classes < 100 else case.samples // 10
    return LogitsCase(case.name, case.models, samples, case.classes)


def inputs(case: LogitsCase, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    logits = torch.randn(case.shape, generator=generator, device=DEVICE).mul_(3).to(dtype)
    return logits, torch.randint(case.classes, (case.samples,), generator=generator, device=DEVICE)


CASES = LOGITS if DEVICE.type == "cuda" else tuple(reduced(case) for case in LOGITS)
FUNCTIONS: dict[str, Function] = {
    "ours": ours,
    "eager": formula_chain,
    "torch.compile": compiled(formula_chain),
}


@pytest.mark.parametrize("who", FUNCTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_uncertainty(case: LogitsCase, who: str, benchmark: BenchmarkFixture) -> None:
    arguments, function = inputs(case), FUNCTIONS[who]
    call = synchronised(lambda: function(*arguments), DEVICE)
    benchmark.pedantic(call, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_half_precision(case: LogitsCase, dtype: torch.dtype, benchmark: BenchmarkFixture) -> None:
    arguments = inputs(case, dtype)
    benchmark.pedantic(synchronised(lambda: ours(*arguments), DEVICE), rounds=5, warmup_rounds=1)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--whole", action="store_true", help="the shapes of the shared table as they are")
    parser.add_argument("--skip-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    functions = {
        name: f for name, f in FUNCTIONS.items() if name != "torch.compile" or not options.skip_compile
    }
    kind, clock = chosen_clock(options)
    print(f"{DEVICE}, {options.threads} threads, {kind} time, medians")
    for case in LOGITS if options.whole else CASES:
        arguments = inputs(case)
        calls = {name: functools.partial(function, *arguments) for name, function in functions.items()}
        timed = time_calls(calls, DEVICE, rounds=options.rounds, clock=clock)
        fastest = timed["ours"].p50_ms
        texts = [f"{name} {t.p50_ms:.1f} ms ({t.p50_ms / fastest:.2f}x)" for name, t in timed.items()]
        print(f"{list(case.shape)}: {', '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
