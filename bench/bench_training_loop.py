"""What the training loop costs beyond its arithmetic: against a bare loop, in turns, in one run.

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
from prunebench.models import build_model
from prunebench.pruning.masks import prunable
from prunebench.training import LoopSettings, resolve_precision, train
from prunebench.training.losses import cross_entropy

STEPS, ROUNDS = 12, 7
CASES = {"convnet-small": (16, 128), "convnet": (28, 256)}
"""Image size and batch of each net's task."""


def make_case(name: str) -> tuple[torch.nn.Module, Images, torch.Tensor, torch.Tensor, LoopSettings]:
    size, batch = CASES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (4096, 3, size, size), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (4096,), generator=generator)
    images = Images(x, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu"))
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
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_loop_is_within_ten_percent_of_a_bare_loop(name: str, masked: bool) -> None:
    torch.set_num_threads(1)
    model, images, y, batches, settings = make_case(name)
    masks = {key: torch.rand(w.shape) < 0.1 for key, w in prunable(model).items()} if masked else None
    x0, y0 = images.batch(batches[0]), y[batches[0]]

    def ours() -> None:
        train(model, images, y, batches, objective=cross_entropy, settings=settings, masks=masks)

    def bare() -> None:
        bare_loop(model, x0, y0, STEPS, settings)

    ours(), bare()
    ratios = [seconds(ours) / seconds(bare) for _ in range(ROUNDS)]
    ratio = statistics.median(ratios)
    print(
        f"\n{name}, {'masked' if masked else 'dense'}: loop / bare = {ratio:.3f} (median of {ROUNDS} pairs)"
    )
    assert ratio < 1.10
