"""The ground truth of one data draw: labels and bias of its splits, and the metrics of logits against them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunebench.errors import StoreError, UsageError
from prunebench.metrics.attributes import AttributeTable, attribute_table
from prunebench.metrics.calibration import calibrated_thresholds
from prunebench.metrics.evaluated import (
    EvaluatedSplit,
    compute_metrics,
    evaluate_attributes,
    evaluate_classes,
)
from prunebench.metrics.groups import GroupTable
from prunebench.results.record import RunRecord
from prunebench.tasks import Splits, Task, split_hash, splits_hash

SPLITS = ("train", "val", "test")
STORED = ("val", "test")
"""The splits whose logits a run stores."""


@dataclass(frozen=True)
class GroundTruth:
    """By split: y as in `tasks.Split`, bias `[N]`. `splits_hash` names the draw, `test_hash` its test split alone.

    `image`, int64 `[N]` by split, numbers the source image that a sample shows. Samples of one image are one cluster in
    tests by sample (`stats.clusters`): the same digit in ten colours, or the same test image under several seeds.
    """

    task: Task
    y: dict[str, Tensor]
    bias: dict[str, Tensor]
    splits_hash: str
    test_hash: str
    image: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, bias in self.bias.items():
            self.image.setdefault(name, torch.arange(len(bias)))

    @classmethod
    def of(cls, task: Task, splits: Splits) -> GroundTruth:
        """The labels of a draw, without its images."""
        named = {name: getattr(splits, name) for name in SPLITS}
        y, bias = ({name: getattr(split, field) for name, split in named.items()} for field in ("y", "bias"))
        image = {name: split.images() for name, split in named.items()}
        return cls(task, y, bias, splits_hash(splits), split_hash(splits.test), image)

    def check(self, record: RunRecord) -> None:
        """Raise StoreError unless the record is of these data."""
        if record.splits_hash != self.splits_hash:
            made, here = record.run_spec.task_version, self.task.version
            versions = "" if made == here else f": it was made with version {made}, this is version {here}"
            raise StoreError(f"its data are not those that the task draws here{versions}")

    def label(self, name: str) -> Tensor:
        """The label of the group table, int64 `[N]`."""
        return self.task.group_label(self.y[name])

    def group(self, name: str) -> Tensor:
        """The group of each sample, label x biases + bias: int64 `[N]`."""
        return self.label(name) * self.task.num_biases + self.bias[name]

    @functools.cached_property
    def aligned_pair(self) -> Tensor:
        """Which (label, bias) pairs are aligned, bool `[C, B]`."""
        shape = (self.task.num_classes, self.task.num_biases)
        label, bias = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
        return self.task.aligned(label, bias)

    @functools.cached_property
    def train_count(self) -> Tensor:
        """Training samples by (label, bias): int64 `[C, B]`."""
        pairs = self.aligned_pair
        return torch.bincount(self.group("train"), minlength=pairs.numel()).view_as(pairs)

    def attribute_table(self, logits: Tensor, name: str, validation: Tensor) -> AttributeTable:
        """Metrics by attribute of logits `[N, K]` on a split; thresholds from validation logits `[N', K]`."""
        assert self.task.attributes is not None
        return attribute_table(
            logits,
            self.y[name],
            train_label=self.y["train"],
            identities=self.task.attributes.identity_indices,
            thresholds=calibrated_thresholds(validation, self.y["val"]),
        )

    def evaluated(
        self, logits: Tensor, name: str, validation: Tensor | None, attributes: AttributeTable | None = None
    ) -> EvaluatedSplit:
        """Logits `[N, outputs]` on a split, with what metrics need; `attributes`: their table, if it is known.

        Without validation logits a multi-class task lacks the metrics that need them; of attributes they are needed.
        """
        y, bias, pairs = self.y[name], self.bias[name], self.aligned_pair
        known = {"train_count": self.train_count, "train_y": self.y["train"]}
        if validation is not None:
            known |= {"validation_logits": validation, "validation_y": self.y["val"]}
        if self.task.attributes is None:
            return evaluate_classes(logits.unsqueeze(0), y, bias, pairs, known)[0]
        if validation is None:
            raise UsageError(
                f"{self.task.name}: thresholds of attributes come from validation logits: give both"
            )
        table = attributes or self.attribute_table(logits, name, validation)
        target = self.task.attributes.target_index
        return evaluate_attributes(logits, y, bias, pairs, target=target, attributes=table, known=known)

    def summary(
        self, logits: Tensor, name: str, validation: Tensor | None, attributes: AttributeTable | None = None
    ) -> tuple[GroupTable, dict[str, float]]:
        """Group table and metrics of logits `[N, outputs]` on a split; thresholds come from validation logits.

        Args:
            attributes: the attribute table of the same logits, if it is known.
        """
        split = self.evaluated(logits, name, validation, attributes)
        return split.groups, compute_metrics(split)
