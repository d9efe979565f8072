"""The stored outputs of one section of the board, by method, sparsity and seed, and the truth they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunebench.deferral import TEST_NOTE
from prunebench.errors import PruneBenchError, StoreError
from prunebench.leaderboard.rows import is_dense, variant_labels, variant_of
from prunebench.record import RunRecord
from prunebench.scoring import NOT_STORED, SPLITS, check_draw, has_logits, read_logits
from prunebench.store import Store
from prunebench.tasks import Split, Task, resolve_task, splits_hash

DENSE = "dense"


@dataclass(frozen=True)
class Truth:
    """Labels of one seed's splits: y as in `tasks.Split`, bias `[N]`, and which (label, bias) pairs are aligned."""

    task: Task
    y: dict[str, Tensor]
    bias: dict[str, Tensor]
    aligned_pair: Tensor

    @property
    def multi_label(self) -> bool:
        return self.task.attributes is not None

    def aligned(self, split: str) -> Tensor:
        """Which samples are bias-aligned, bool `[N]`."""
        return self.aligned_pair[self.task.group_label(self.y[split]), self.bias[split]]


@dataclass(frozen=True)
class Run:
    """One finished run: what it is, and its logits `[N, C]` float32 of val and test.

    `deferred`: the dense model answered for some test samples, so its weights are needed too, whatever was pruned.
    """

    method: str
    sparsity: float | None
    dense: bool
    achieved: float
    seed: int
    logits: dict[str, Tensor]
    deferred: bool = False


@dataclass(frozen=True)
class Outputs:
    """What an analysis starts from. `images` uint8 `[N, C, H, W]` are those of the test split, one for all seeds."""

    slug: str
    task: Task
    spec: dict[str, object]
    runs: tuple[Run, ...]
    truths: dict[int, Truth]
    images: Tensor
    left_out: tuple[str, ...]

    @property
    def test_y(self) -> Tensor:
        """Labels of the test split, the same for all seeds."""
        return next(iter(self.truths.values())).y["test"]

    @property
    def cells(self) -> dict[tuple[str, float | None], list[Run]]:
        """Runs by method and sparsity, dense first, by seed."""
        found: dict[tuple[str, float | None], list[Run]] = {}
        for run in sorted(
            self.runs, key=lambda run: (not run.dense, run.method, run.sparsity or 2.0, run.seed)
        ):
            found.setdefault((run.method, run.sparsity), []).append(run)
        return found


def read_outputs(slug: str, records: Sequence[RunRecord], store: Store, data_root: Path | None) -> Outputs:
    """Load one section. Raises StoreError where no dense run has its logits, DataError where the data are missing.

    Runs that failed, without logits, with logits that do not match their hash, or of other data are left out with
    the reason.
    """
    task = resolve_task(records[0].spec["task"], data_root)
    labels = variant_labels(records)
    truths: dict[int, Truth] = {}
    hashes: dict[int, str] = {}
    test: Split | None = None
    runs: list[Run] = []
    left_out: list[str] = []
    for record in sorted(records, key=lambda record: (record.spec["seed"], record.run_id)):
        seed = record.spec["seed"]
        try:
            if record.status != "ok":
                raise StoreError(f"{record.status}: {record.reason or 'no reason recorded'}")
            if not has_logits(store, record.run_id):
                raise StoreError(NOT_STORED)
            if seed not in truths:
                truth, drawn_hash, shown = _read_truth(task, data_root, seed)
                test = test or shown
                if not _same_samples(shown, test):
                    raise StoreError("its seed has a test split of its own: samples cannot be compared")
                truths[seed], hashes[seed] = truth, drawn_hash
            check_draw(record, task, hashes[seed])
            samples = {name: len(truths[seed].y[name]) for name in SPLITS}
            logits = read_logits(record, store, samples, task.num_outputs)
            if not all(values.isfinite().all() for values in logits.values()):
                raise StoreError("its logits are not finite")
            if is_dense(record) and any(run.dense and run.seed == seed for run in runs):
                raise StoreError("there is another dense run of this seed")
        except PruneBenchError as error:
            left_out.append(f"{record.run_spec.label}: {error}")
            continue
        dense, asked = is_dense(record), record.spec["sparsity"]
        assert record.sparsity is not None
        name = DENSE if dense else labels[variant_of(record)]
        deferred = bool(record.notes.get(TEST_NOTE))
        runs.append(
            Run(name, 0.0 if dense else asked, dense, record.sparsity.achieved, seed, logits, deferred)
        )
    if test is None or not any(run.dense for run in runs):
        why = f"; {left_out[0]}" if left_out else ""
        raise StoreError(f"{slug}: no dense run with stored logits to compare with{why}")
    return Outputs(slug, task, records[0].spec, tuple(runs), truths, test.x, tuple(left_out))


def _same_samples(first: Split, second: Split) -> bool:
    """Whether two test splits hold the same images and labels; images that are mapped are told by their digest."""
    if not torch.equal(first.y, second.y) or not torch.equal(first.bias, second.bias):
        return False
    if first.digest is not None or second.digest is not None:
        return first.digest == second.digest
    return torch.equal(first.x, second.x)


def _read_truth(task: Task, data_root: Path | None, seed: int) -> tuple[Truth, str, Split]:
    splits = task.splits(data_root, seed)
    shape = (task.num_classes, task.num_biases)
    label, bias = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    named = {name: getattr(splits, name) for name in ("train", "val", "test")}
    truth = Truth(
        task,
        {name: split.y for name, split in named.items()},
        {name: split.bias for name, split in named.items()},
        task.aligned(label, bias),
    )
    return truth, splits_hash(splits), splits.test
