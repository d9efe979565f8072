"""The training loop against a bare one, in turns, in one run; and both against the machine's own matrix rate.

Times are those of the thread that trains, so that a neighbour on the machine disturbs them little.

uv run pytest bench/bench_training_loop.py -s
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from prunebench.data.images import Images, draw_batches
from prunebench.inference.cost import count_macs
from prunebench.models import build_model
from prunebench.pruning.masks import prunable
from prunebench.results.spec import View
from prunebench.training import LoopSettings, resolve_precision, train
from prunebench.training.losses import cross_entropy

STEPS, ROUNDS = 12, 7
CASES = {"convnet-small": (16, 128), "convnet": (28, 256), "resnet8": (32, 128)}
"""Image size and batch of each net's task."""
MIRRORED = ("resnet8",)
"""Nets whose tasks mirror images in training; the bare loop does not."""
PASSES = 3
"""Forward, and backward to the activations and to the weights: as many multiplications in each."""


def make_case(name: str) -> tuple[torch.nn.Module, Images, torch.Tensor, torch.Tensor, LoopSettings]:
    size, batch = CASES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (4096, 3, size, size), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (4096,), generator=generator)
    view = View(size, size) if name in MIRRORED else None
    images = Images(x, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu"), view=view)
    batches = draw_batches(len(y), steps=STEPS, batch_size=batch, generator=generator)
    bf16 = resolve_precision("auto", torch.device("cpu")) == "bf16"
    settings = LoopSettings("adam", 1e-3, STEPS, bf16=bf16)
    return build_model(name, 10, seed=0), images, y, batches, settings


def bare_loop(
    model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, settings: LoopSettings
) -> None:
    """Forward, backward, step on one ready batch: nothing else."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    model.train()
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            loss = functional.cross_entropy(model(x).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def seconds(work: Callable[[], None]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def matrix_rate(bf16: bool, side: int = 1024, repeats: int = 10) -> float:
    """Multiply-accumulates a second of a product of square matrices, the fastest that this thread does."""
    a = torch.randn(side, side).to(torch.bfloat16 if bf16 else torch.float32)
    return side**3 / min(seconds(lambda: a @ a) for _ in range(repeats))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_loop_is_within_ten_percent_of_a_bare_loop(name: str, masked: bool) -> None:
    torch.set_num_threads(1)
    model, images, y, batches, settings = make_case(name)
    masks = {key: torch.rand(w.shape) < 0.1 for key, w in prunable(model).items()} if masked else None
    x0, y0 = images.batch(batches[0]), y[batches[0]]
    macs = count_macs(model, x0[:1])[0]
    crops = images.draw_crops(batches.shape, torch.Generator().manual_seed(0))

    def ours() -> None:
        train(model, images, y, batches, objective=cross_entropy, settings=settings, masks=masks, crops=crops)

    def bare() -> None:
        bare_loop(model, x0, y0, STEPS, settings)

    ours(), bare()
    pairs = [(seconds(ours), seconds(bare)) for _ in range(ROUNDS)]
    ratio = statistics.median(one / other for one, other in pairs)
    rates = [batches.numel() / statistics.median(times) for times in zip(*pairs)]
    share = rates[0] * PASSES * macs / matrix_rate(settings.bf16)
    print(
        f"\n{name}, {'masked' if masked else 'dense'}: {rates[0]:,.0f} images/s, bare loop {rates[1]:,.0f}; "
        f"loop / bare = {ratio:.3f} (median of {ROUNDS} pairs); {share:.0%} of the matrix rate"
    )
    assert ratio < 1.10
