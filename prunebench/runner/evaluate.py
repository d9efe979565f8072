"""The evaluation of a finished model: logits, groups, mining, cost. Methods never see this side."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from prunebench.data.images import Images, StreamedImages
from prunebench.data.transforms import ImageTransform
from prunebench.errors import MaskError
from prunebench.inference.cascade import TEST_NOTE, THRESHOLD_NOTE, VALIDATION_NOTE, Cascade
from prunebench.inference.cost import count_macs, count_parameters
from prunebench.inference.latency import (
    AGAIN,
    Inference,
    peak_memory_mb,
    quietest_latency,
    ready_for_inference,
)
from prunebench.methods.experiment import VisibleSplit
from prunebench.metrics.groups import GroupTable
from prunebench.pruning.masks import MaskReport, prunable
from prunebench.results.record import (
    FITTED_NOTE,
    PLAIN_PATH,
    REMOVED_NOTE,
    CostReport,
    GroupRow,
    Mining,
    removal_problem,
)
from prunebench.runner.ground_truth import SPLITS, STORED, GroundTruth
from prunebench.tasks import Split, Splits, Task
from prunebench.tasks.balanced import balanced_validation, groups_of, missing_groups
from prunebench.training.loop import evaluate

LATENCY_BATCH = 64
GRANTED = {"val-groups": ("val",), "train-groups": ("train", "val")}
"""By supervision, the splits whose bias labels a method sees."""


class TaskData:
    """One data draw: images once as bytes, on the device or in a mapped file; labels and bias on the CPU.

    `splits` is the draw itself where it was made elsewhere: nothing is then read below `data_root`.
    """

    def __init__(
        self,
        task: Task,
        data_root: Path | None,
        seed: int,
        device: torch.device,
        *,
        splits: Splits | None = None,
    ) -> None:
        start = time.perf_counter()
        splits = splits or task.splits(data_root, seed)
        self.task, self.seed, self.device = task, seed, device
        self.labels = GroundTruth.of(task, splits)
        self.images: dict[str, Images] = {}
        self._written: dict[str, int] = {}
        self.overlays: dict[str, ImageTransform | None] = {}
        for name in SPLITS:
            self._hold(name, getattr(splits, name))
        self._make_balanced = balanced_validation(task, splits, seed)
        self.seconds = round(time.perf_counter() - start, 3)

    def _hold(self, name: str, split: Split) -> None:
        kind, task = Images if split.digest is None else StreamedImages, self.task
        self.overlays[name] = split.overlay
        self.images[name] = kind(
            split.x, mean=task.mean, std=task.std, device=self.device, view=task.view, overlay=split.overlay
        )
        self._written[name] = self.images[name]._bytes._version

    def _writes(self) -> dict[str, int]:
        """How often torch has written into the images of each split."""
        return {name: images._bytes._version for name, images in self.images.items()}

    @property
    def intact(self) -> bool:
        """Whether no method has written into the images, which the next run would train on."""
        return self._writes() == self._written

    def visible(self, name: str, supervision: str) -> VisibleSplit:
        """The split as a method with this supervision sees it."""
        bias = self.labels.bias[name].clone() if name in GRANTED.get(supervision, ()) else None
        needs = "train-groups" if name == "train" else "val-groups"
        return VisibleSplit(self.images[name], self.labels.y[name].clone(), bias, name=name, needs=needs)

    def visible_balanced(self, supervision: str) -> VisibleSplit | None:
        """Group-balanced validation with its bias labels, for a method that may know them; None for others."""
        if "val" not in GRANTED.get(supervision, ()):
            return None
        y, bias, _, missing = self._balanced
        name, needs = "val_balanced", "val-groups"
        return VisibleSplit(
            self.images[name], y.clone(), bias.clone(), name=name, needs=needs, missing_groups=missing
        )

    def balanced_images(self) -> Tensor:
        """The source image of each sample of group-balanced validation, int64 `[N]`."""
        return self._balanced[2]

    @functools.cached_property
    def _balanced(self) -> tuple[Tensor, Tensor, Tensor, tuple[tuple[int, int], ...]]:
        """Of group-balanced validation: label, bias and source image of each sample, and the groups that it lacks."""
        part = self._make_balanced()
        self._hold("val_balanced", part)
        elsewhere = torch.cat([self.labels.group("train"), self.labels.group("test")])
        missing = missing_groups(self.task, elsewhere, groups_of(self.task, part))
        return part.y, part.bias, part.images(), missing

    def conflicting_share(self, supervision: str) -> float | None:
        """The nominal share of conflicting training images, if this supervision may know it."""
        return None if supervision == "none" else self.task.conflicting_share


Summary = dict[str, float | None]


def measure_outputs(
    model: nn.Module, data: TaskData
) -> tuple[dict[str, Tensor], list[GroupRow], Summary, Summary]:
    """Logits of val and test (float16), the test group table, and summaries of test and val.

    Metrics come from the stored float16 logits, so recomputing them from disk gives the same numbers.
    """
    outputs = {f"{name}_logits": evaluate(model, data.images[name]).half() for name in STORED}
    summaries: dict[str, Summary] = {}
    for name in STORED:
        logits, validation = outputs[f"{name}_logits"].float(), outputs["val_logits"].float()
        table, metrics = data.labels.summary(logits, name, validation)
        summaries[name] = {**metrics}
    return outputs, group_rows(table), summaries["test"], summaries["val"]


def group_rows(table: GroupTable) -> list[GroupRow]:
    """The groups that have samples, as rows of a record."""
    rows = []
    for label, bias in torch.nonzero(table.count).tolist():
        aligned = bool(table.aligned_pair[label, bias])
        count, correct = int(table.count[label, bias]), int(table.correct[label, bias])
        rows.append(GroupRow(label, bias, aligned, count, correct))
    return rows


def measure_mining(mined: Tensor | None, data: TaskData) -> Mining | None:
    """Precision and recall of the mined samples against the withheld bias labels."""
    if mined is None:
        return None
    truth = ~data.task.aligned(data.labels.label("train"), data.labels.bias["train"])
    hits, found, total = int((mined & truth).sum()), int(mined.sum()), int(truth.sum())
    return Mining(found, total, hits / found if found else math.nan, hits / total if total else math.nan)


def measure_fit(model: nn.Module, data: TaskData) -> dict[str, float]:
    """The note of how far a network has fitted its conflicting training images; none where there are none."""
    label = data.labels.label("train")
    index = torch.nonzero(~data.task.aligned(label, data.labels.bias["train"])).squeeze(1)
    if len(index) == 0:
        return {}
    images = data.images["train"]
    model.eval()
    with contextlib.closing(images.feed(index.split(images.evaluation_batch))) as feed:
        predicted = torch.cat([data.task.group_prediction(model(x).float()) for x in feed]).cpu()
    return {FITTED_NOTE: float((predicted == label[index]).double().mean())}


def measure_deferral(stages: Cascade, data: TaskData) -> dict[str, float]:
    """The notes of a deferring model: its threshold, and the shares of val and test that it defers."""
    shares = {}
    for note, name in ((VALIDATION_NOTE, "val"), (TEST_NOTE, "test")):
        unsure = stages.unsure(evaluate(stages.pruned, data.images[name]))
        shares[note] = int(unsure.sum()) / len(unsure)
    return {THRESHOLD_NOTE: stages.deferral.threshold, **shares}


def measure_removal(
    dense: nn.Module, model: nn.Module, report: MaskReport, asked: float | None, data: TaskData
) -> tuple[MaskReport, dict[str, float]]:
    """Sparsity and note of a structured result: shares of the dense network's weights, and of its products.

    Raises MaskError where the layers do not fit each other, or where the multiply-accumulates left are further from
    those asked for than whole channels allow (`removal_problem`).
    """
    x = data.images["test"].batch(slice(0, 1))
    try:
        left = count_macs(model, x)[1]
    except RuntimeError as error:
        raise MaskError(
            f"the channels of the returned network's layers do not fit each other: {error}"
        ) from error
    removed = 1 - left / count_macs(dense, x)[0]
    problem = removal_problem(asked, removed)
    if problem is not None:
        raise MaskError(problem)
    sizes = {name: weight.numel() for name, weight in prunable(dense).items()}
    narrow = {name: weight.numel() for name, weight in prunable(model).items()}
    kept = {name: round((1 - share) * narrow[name]) for name, share in report.by_layer.items()}
    by_layer = {name: 1 - count / sizes[name] for name, count in kept.items()}
    return MaskReport(asked, 1 - sum(kept.values()) / sum(sizes.values()), by_layer), {REMOVED_NOTE: removed}


def measure_cost(
    dense: nn.Module,
    pruned: nn.Module,
    data: TaskData,
    training_steps: int,
    dense_training_steps: int,
    *,
    deferred_share: float = 0.0,
    latency_skipped: str | None = None,
) -> CostReport:
    """Parameters, MACs, interleaved latency of both models on this machine, peak memory of the run so far.

    A deferring model (`Cascade`) stores the non-zero weights of both networks and spends the pruned one's non-zero
    MACs on every image, the dense one's on `deferred_share` of them. Its `parameters` and `macs` are those of the
    one dense network that it is compared with. Where `latency_skipped` says why latencies would mean little, both
    networks are timed plain, and the path says why.
    """
    x = data.images["test"].batch(slice(0, LATENCY_BATCH))
    memory = round(peak_memory_mb(data.device), 1)
    parameters, nonzero = count_parameters(dense)[0], count_parameters(pruned)[1]
    network = pruned.pruned if isinstance(pruned, Cascade) else pruned
    macs, nonzero_macs = count_macs(dense, x[:1])[0], count_macs(network, x[:1])[1]
    if isinstance(pruned, Cascade):
        nonzero_macs += round(deferred_share * count_macs(pruned.dense, x[:1])[1])
    if latency_skipped is not None:
        ready = Inference(dense, pruned, f"{PLAIN_PATH} ({latency_skipped})")
    elif isinstance(pruned, Cascade):
        ready = pruned.ready_for_inference(x)
    else:
        ready = ready_for_inference(dense, pruned, x)
    latency = quietest_latency(ready.dense, ready.pruned, x)
    return CostReport(
        parameters=parameters,
        nonzero_parameters=nonzero,
        macs=macs,
        nonzero_macs=nonzero_macs,
        latency_batch=len(x),
        latency_dense_ms=latency.times["dense"],
        latency_pruned_ms=latency.times["pruned"],
        peak_memory_mb=memory,
        training_steps=training_steps,
        dense_training_steps=dense_training_steps,
        latency_path=ready.path,
        latency_layouts=ready.layouts,
        removed_channels=ready.removed_channels,
        latency_again_ms=latency.times[AGAIN],
        latency_clock=latency.clock,
        latency_wall_spread=round(latency.wall_spread, 4),
    )
