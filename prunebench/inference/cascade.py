"""A cascade (learning to defer): the pruned network hands the samples it is unsure of to the dense one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunebench.errors import UsageError
from prunebench.inference.latency import Inference, ready_for_inference

THRESHOLD_NOTE = "deferral_threshold"
VALIDATION_NOTE = "deferred_share_validation"
TEST_NOTE = "deferred_share_test"
NOTES = (THRESHOLD_NOTE, VALIDATION_NOTE, TEST_NOTE)
"""What a record says of deferral; only the harness writes these."""


def confidence_margin(logits: Tensor, *, multi_label: bool) -> Tensor:
    """How sure a network is of a sample, `[N]` in 0..1, float64; 0 is undecided.

    Class logits `[N, C]`: the margin p_(1) - p_(2) of the two likeliest classes, p = softmax(z). Attributes `[N, K]`:
    the mean over them of |2 p - 1|, p = sigmoid(z). With calibrated p an attribute is wrong with probability
    (1 - |2 p - 1|) / 2, so this orders samples by how many wrong attributes are to be expected; the least sure of
    many attributes would say little, for one of them is nearly always undecided.
    """
    values = logits.double()
    if multi_label:
        return torch.tanh(values.abs() / 2).mean(1)
    first, second = values.softmax(1).topk(2, dim=1).values.unbind(1)
    return first - second


@dataclass(frozen=True)
class Deferral:
    """Samples whose confidence margin is at most `threshold` get the dense model's outputs: -1 defers none, 1 all."""

    threshold: float

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise UsageError(f"deferral: want a threshold from -1 (none) to 1 (all), got {self.threshold}")

    @classmethod
    def of_share(cls, sure: Tensor, share: float) -> Deferral:
        """Defers round(share N) (halves up) of the samples with these margins `[N]`, the least confident ones.

        The threshold lies half-way between the last one deferred and the next. Samples that tie across that border
        are all deferred. Raises UsageError on a share outside 0..1 and without samples.
        """
        check_share(share)
        if len(sure) == 0:
            raise UsageError("deferral: want at least one validation sample to set the threshold on")
        ordered = sure.detach().double().cpu().sort().values
        count = math.floor(share * len(ordered) + 0.5)
        if count in (0, len(ordered)):
            return cls(-1.0 if count == 0 else 1.0)
        last, following = ordered[count - 1].item(), ordered[count].item()
        middle = last + (following - last) / 2
        return cls(middle if middle < following else last)


def check_share(share: float) -> None:
    """Raise UsageError unless the share of deferred samples is in 0..1."""
    if not 0 <= share <= 1:
        raise UsageError(f"share: want the share of deferred samples from 0 to 1, got {share}")


class Cascade(nn.Module):
    """The pruned network on all images, and the dense one on those gathered that the pruned one is unsure of."""

    def __init__(self, pruned: nn.Module, dense: nn.Module, deferral: Deferral, *, multi_label: bool) -> None:
        super().__init__()
        self.pruned, self.dense = pruned, dense
        self.deferral, self.multi_label = deferral, multi_label

    def unsure(self, logits: Tensor) -> Tensor:
        """Which samples are deferred, bool `[N]`, given the pruned network's logits; logits that are nan are."""
        return ~(confidence_margin(logits, multi_label=self.multi_label) > self.deferral.threshold)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.pruned(x)
        rows = self.unsure(logits).nonzero().squeeze(1)
        if len(rows) == 0:
            return logits
        if len(rows) == len(x):
            return self.dense(x)
        gathered = x[rows].contiguous(memory_format=torch.channels_last)
        return logits.index_copy(0, rows, self.dense(gathered).to(logits.dtype))

    @torch.inference_mode()
    def ready_for_inference(self, x: Tensor) -> Inference:
        """Both networks as one would run them on x (see `latency.ready_for_inference`), the second stage included.

        How many of x are gathered depends on the outputs, so on a GPU the composite cannot be replayed as a CUDA
        graph, as the dense network is, and is timed as it would be called. The path says how many of x were deferred.
        """
        ready = ready_for_inference(self.dense, self.pruned, x)
        stages = Cascade(ready.pruned, ready.dense, self.deferral, multi_label=self.multi_label).eval()
        deferred = int(stages.unsure(ready.pruned(x)).sum())
        path = f"{ready.path}; then the dense network on {deferred} of {len(x)}"
        return replace(ready, pruned=stages, path=path)
