"""What DCWP's shortened pipeline takes, against the work that the authors' released code does. One run, in turns.

    uv run pytest bench/bench_dcwp_pipeline.py -s

The released code trains two networks in float32 (NCHW) while mining and while pretraining, holds a full-size
logit tensor for every weight of both, and applies masks layer by layer in the mask and fine-tuning phases. Its
arithmetic is rebuilt here step by step; its data loading (an iterator rebuilt every step) is not, so the ratio
is a lower bound. The pipeline here trains only what the result depends on, in one network at a time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.data.images import Images, draw_batches
from prunebench.models import Classifier, build_model
from prunebench.pruning.learned import LearnedMasks
from prunebench.pruning.masks import prunable
from prunebench.training import Batch, LoopSettings, evaluate, resolve_precision, train
from prunebench.training.losses import contrastive_loss, cross_entropy, gce_objective

BATCH, IMAGES, ROUNDS, STEPS = 256, 55_000, 5, 4
SCHEDULE = {"mining": 400, "pretraining": 600, "mask": 400, "fine-tuning": 200}


class ReleasedWork:
    """One step of each phase as the released code computes it."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x.contiguous(), y
        self.nets = [
            build_model("convnet", 10, seed=seed).to(memory_format=torch.contiguous_format) for seed in (0, 1)
        ]
        self.optimizers = [
            torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99)) for net in self.nets
        ]
        self.logits = {
            name: torch.full_like(w, 1.5, requires_grad=True) for name, w in prunable(self.nets[0]).items()
        }
        self.mask_optimizer = torch.optim.Adam(list(self.logits.values()), lr=1e-2, betas=(0.9, 0.99))
        self.conflicting = torch.arange(len(y)) % 2 == 0

    def two_networks(self) -> None:
        for net, optimizer in zip(self.nets, self.optimizers):
            optimizer.zero_grad()
            functional.cross_entropy(net(self.x), self.y).backward()
            optimizer.step()

    def _loss(self, weights: dict[str, Tensor]) -> Tensor:
        net = self.nets[0]
        features = torch.func.functional_call(
            net.body, {k[5:]: w for k, w in weights.items() if k[0] == "b"}, self.x
        )
        logits = functional.linear(features, weights["head.weight"], net.head.bias)
        contrast = contrastive_loss(features, self.y, self.conflicting)
        return functional.cross_entropy(logits, self.y) + 0.05 * contrast

    def mask(self) -> None:
        weights = {}
        for name, pi in self.logits.items():
            u0, u1 = torch.rand_like(pi), torch.rand_like(pi)
            noise = -torch.log(torch.log(u1 + 1e-10) / torch.log(u0 + 1e-10) + 1e-10)
            soft = torch.sigmoid(torch.sigmoid(pi) + noise)
            hard = ((soft > 0.5).float() - soft).detach() + soft
            weights[name] = prunable(self.nets[0])[name] * hard
        self.mask_optimizer.zero_grad()
        self.optimizers[0].zero_grad()
        (self._loss(weights) + 1e-8 * sum(pi.sum() for pi in self.logits.values())).backward()
        self.mask_optimizer.step()

    def finetune(self) -> None:
        weights = {name: w * (self.logits[name] >= 0).float() for name, w in prunable(self.nets[0]).items()}
        self.optimizers[0].zero_grad()
        self._loss(weights).backward()
        self.optimizers[0].step()


class OurWork:
    """A few steps of each phase through the project's own loop."""

    def __init__(self, images: Images, y: Tensor) -> None:
        self.images, self.y = images, y
        bf16 = resolve_precision("auto", torch.device("cpu")) == "bf16"
        self.settings = LoopSettings("adam", 1e-3, STEPS, bf16=bf16)
        generator = torch.Generator().manual_seed(0)
        self.batches = draw_batches(len(y), steps=STEPS, batch_size=BATCH, generator=generator)
        self.net = build_model("convnet", 10, seed=0)
        self.learner = LearnedMasks(build_model("convnet", 10, seed=0), seed=0)
        self.masks = {name: torch.rand(w.shape) < 0.7 for name, w in prunable(self.net).items()}
        self.conflicting = torch.arange(len(y)) % 2 == 0

    def _train(
        self, model: nn.Module, objective: Callable[[nn.Module, Batch], Tensor], **more: object
    ) -> None:
        train(model, self.images, self.y, self.batches, objective=objective, settings=self.settings, **more)  # type: ignore[arg-type]

    def mining(self) -> None:
        self._train(self.net, gce_objective)

    def pretraining(self) -> None:
        self._train(self.net, cross_entropy)

    def _loss(self, features: Tensor, logits: Tensor, batch: Batch) -> Tensor:
        contrast = contrastive_loss(features, batch.y, self.conflicting[batch.index])
        return functional.cross_entropy(logits.float(), batch.y) + 0.05 * contrast

    def mask(self) -> None:
        def objective(model: nn.Module, batch: Batch) -> Tensor:
            return self._loss(*self.learner.features_and_logits(batch.x), batch)

        self._train(self.learner, objective, parameters=[self.learner.logits])

    def finetune(self) -> None:
        def objective(model: nn.Module, batch: Batch) -> Tensor:
            assert isinstance(model, Classifier)
            features = model.features(batch.x)
            return self._loss(features, model.head(features), batch)

        self._train(self.net, objective, masks=self.masks)


def seconds(work: Callable[[], object], steps: int = 1) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / steps


def test_pipeline_is_twice_as_fast_as_the_released_arithmetic_alone() -> None:
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2048, 3, 28, 28), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (2048,), generator=generator)
    images = Images(x, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu"))
    released, ours = ReleasedWork(images.batch(slice(0, BATCH)), y[:BATCH]), OurWork(images, y)
    theirs = {"mining": released.two_networks, "pretraining": released.two_networks,
              "mask": released.mask, "fine-tuning": released.finetune}  # fmt: skip
    mine = {
        "mining": ours.mining,
        "pretraining": ours.pretraining,
        "mask": ours.mask,
        "fine-tuning": ours.finetune,
    }
    for work in (*theirs.values(), *mine.values()):
        work()
    table: dict[str, tuple[float, float]] = {}
    for phase in SCHEDULE:
        pairs = [(seconds(theirs[phase]), seconds(mine[phase], STEPS)) for _ in range(ROUNDS)]
        table[phase] = (statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs))
    one_pass = seconds(lambda: evaluate(ours.net, images)) * IMAGES / len(y)
    print(f"\n{threads} threads; seconds a step, released work / here; one evaluation pass {one_pass:.1f} s")
    for phase, (before, after) in table.items():
        print(f"  {phase:12s} {before:.3f} / {after:.3f} x {SCHEDULE[phase]} steps")
    totals = [
        sum(table[phase][side] * steps for phase, steps in SCHEDULE.items()) + one_pass for side in (0, 1)
    ]
    print(f"  pipeline     {totals[0]:.0f} s / {totals[1]:.0f} s = {totals[0] / totals[1]:.1f}x")
    assert totals[0] / totals[1] > 2
