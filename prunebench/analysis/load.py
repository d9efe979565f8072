"""Stored outputs of one track of the leaderboard, by method, sparsity and seed, and the ground truth for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from prunebench.errors import PruneBenchError, StoreError
from prunebench.inference.cascade import TEST_NOTE
from prunebench.leaderboard.aggregate import is_dense, variant_labels, variant_of
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.runner.ground_truth import GroundTruth
from prunebench.runner.rescore import NOT_STORED, has_logits, read_logits
from prunebench.tasks import Task, resolve_task

DENSE = "dense"


@dataclass(frozen=True)
class StoredRun:
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
    """What an analysis starts from. `truths` by seed; the test split is one for all seeds."""

    slug: str
    task: Task
    spec: dict[str, object]
    runs: tuple[StoredRun, ...]
    truths: dict[int, GroundTruth]
    left_out: tuple[str, ...]

    @property
    def truth(self) -> GroundTruth:
        """The labels of the first seed: those of its test split are the same for all."""
        return self.truths[min(self.truths)]

    @property
    def test_y(self) -> Tensor:
        """Labels of the test split."""
        return self.truth.y["test"]

    @property
    def conditions(self) -> dict[tuple[str, float | None], list[StoredRun]]:
        """Runs by method and sparsity, dense first, by seed."""
        found: dict[tuple[str, float | None], list[StoredRun]] = {}
        for run in sorted(
            self.runs, key=lambda run: (not run.dense, run.method, run.sparsity or 2.0, run.seed)
        ):
            found.setdefault((run.method, run.sparsity), []).append(run)
        return found


def read_outputs(slug: str, records: Sequence[RunRecord], store: Store, data_root: Path | None) -> Outputs:
    """Load one track. Raises StoreError where no dense run has its logits, DataError where the data are missing.

    Runs that failed, without logits, with logits that do not match their hash, or of other data are left out with
    the reason.
    """
    task = resolve_task(records[0].spec["task"], data_root)
    labels = variant_labels(records)
    truths: dict[int, GroundTruth] = {}
    runs: list[StoredRun] = []
    left_out: list[str] = []
    for record in sorted(records, key=lambda record: (record.spec["seed"], record.run_id)):
        seed = record.spec["seed"]
        try:
            if record.status != "ok":
                raise StoreError(f"{record.status}: {record.reason or 'no reason recorded'}")
            if not has_logits(store, record):
                raise StoreError(NOT_STORED)
            if seed not in truths:
                truth = GroundTruth.of(task, task.splits(data_root, seed))
                if any(other.test_hash != truth.test_hash for other in truths.values()):
                    raise StoreError("its seed has a test split of its own: samples cannot be compared")
                truths[seed] = truth
            logits = read_logits(record, store, truths[seed])
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
            StoredRun(name, 0.0 if dense else asked, dense, record.sparsity.achieved, seed, logits, deferred)
        )
    if not any(run.dense for run in runs):
        why = f"; {left_out[0]}" if left_out else ""
        raise StoreError(f"{slug}: no dense run with stored logits to compare with{why}")
    return Outputs(slug, task, records[0].spec, tuple(runs), truths, tuple(left_out))
