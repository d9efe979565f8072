"""Stored networks of runs: built again from record and weights, and exported with their outputs compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prunebench.errors import MaskError, PruneBenchError, StoreError
from prunebench.inference.cascade import THRESHOLD_NOTE
from prunebench.inference.export import (
    FORMS,
    check_form,
    largest_difference,
    opset_of,
    read_network,
    write_network,
)
from prunebench.inference.latency import PARITY
from prunebench.methods.discovery import resolve_method
from prunebench.models import Classifier, build_model, narrowed
from prunebench.pruning.masks import prunable
from prunebench.pruning.pattern import largest_masks
from prunebench.pruning.structure import TWO_FOUR
from prunebench.results.committed import safe_name
from prunebench.results.record import REMOVED_NOTE, RunRecord
from prunebench.results.spec import number_text
from prunebench.results.store import Store, writing
from prunebench.runner.evaluate import TaskData
from prunebench.runner.execute import one_thread
from prunebench.tasks import resolve_task

CPU = torch.device("cpu")
IMAGES = 256
"""Validation images that outputs are compared on, unless fewer are there."""


def stored_network(record: RunRecord, store: Store, outputs: int, data_root: Path | None) -> Classifier:
    """The network of a run with its stored weights, in evaluation mode, on the CPU.

    Of a structured result with the channels that are left. Raises StoreError where the weights are not stored, or not
    those of the model.
    """
    check_stored(record, store)
    net = build_model(record.run_spec.model, outputs, seed=record.run_spec.seed, data_root=data_root)
    load_stored(net, record, store)
    return net.eval()  # type: ignore[return-value]


def load_stored(net: Classifier, record: RunRecord, store: Store) -> None:
    """Put a run's stored weights into a network of its model, which loses the channels that the run removed.

    Raises StoreError for weights that are not those of the model.
    """
    state = store.read_tensors(record.run_id, "model")
    try:
        if REMOVED_NOTE in record.notes:
            narrowed(net, state)
        net.load_state_dict(state)
    except (MaskError, RuntimeError) as error:
        raise StoreError(f"its weights are not those of {record.run_spec.model}: {error}") from error


def check_stored(record: RunRecord, store: Store) -> None:
    """Raise StoreError where a run's weights are neither in its folder nor in the cache."""
    if store.find_tensors(record, "model") is None:
        raise StoreError("its model is not stored (run with --keep-models, or `prunebench artifacts pull`)")


class Draws:
    """The data of tasks' draws, the last one kept: runs that are in order of task and seed load each once."""

    def __init__(self, data_root: Path | None, device: torch.device = CPU) -> None:
        self._root, self._device = data_root, device
        self._draw: tuple[str, int] | None = None
        self._data: TaskData | None = None

    def draw(self, task: str, seed: int) -> TaskData:
        """The draw of a task by its name."""
        if self._data is None or (task, seed) != self._draw:
            self._data = TaskData(resolve_task(task, self._root), self._root, seed, self._device)
            self._draw = (task, seed)
        return self._data

    def of(self, record: RunRecord) -> TaskData:
        """The draw of a run. Raises StoreError where the task draws others here."""
        data = self.draw(record.run_spec.task, record.run_spec.seed)
        data.labels.check(record)
        return data


def dense_of(store: Store, record: RunRecord) -> RunRecord | None:
    """The record of the dense model of this task and seed in the same folder, if it is there."""
    dense = resolve_method("dense")
    spec = replace(record.run_spec, method="dense", method_version=dense.version, params=(), sparsity=0.0)
    if spec.run_id == record.run_id:
        return None
    try:
        return store.read(spec.run_id)
    except PruneBenchError:
        return None


@dataclass(frozen=True)
class ExportedNetwork:
    """One run's network in a file, or why there is none.

    `structure`: `dense`, `channels removed`, else the pattern of its zeros. `weights` are those of convolutions and
    linear layers, as they were stored.
    `difference` is the largest |difference| of the file's outputs from torch's on so many validation `images`, where
    torch's largest |output| is `largest_output`; `opset` is that of ONNX.
    """

    run_id: str
    task: str
    model: str
    method: str
    sparsity: float | None
    seed: int
    form: str
    structure: str = ""
    file: str = ""
    bytes: int = 0
    sha256: str = ""
    weights: int = 0
    nonzero_weights: int = 0
    removed_macs: float | None = None
    opset: int | None = None
    difference: float | None = None
    largest_output: float | None = None
    images: int = 0
    problem: str | None = None


def structure_of(record: RunRecord, net: Classifier) -> str:
    """The structure of a run's zeros in a word: as it was asked for; 2:4 of a method that has it by itself is seen."""
    if REMOVED_NOTE in record.notes:
        return "channels removed"
    weights = {name: weight.detach() for name, weight in prunable(net).items()}
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    if not zeros:
        return "dense"
    asked = dict(record.run_spec.params).get("structure")
    if asked is not None:
        return str(asked)
    allowed = largest_masks(TWO_FOUR, {name: weight.abs() for name, weight in weights.items()})
    fits = all(bool((weight == 0)[~allowed[name]].all()) for name, weight in weights.items())
    half = 2 * zeros <= sum(weight.numel() for weight in weights.values())
    return TWO_FOUR if fits and half else "unstructured"


def in_order(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs by task, seed, model, method and sparsity, the dense ones first."""
    return sorted(
        records,
        key=lambda run: (
            run.run_spec.task, run.run_spec.seed, run.run_spec.model, run.run_spec.method != "dense",
            run.run_spec.method, run.run_spec.sparsity or 0.0, run.run_id,
        ),
    )  # fmt: skip


def export_runs(
    store: Store,
    records: Sequence[RunRecord],
    out: Path,
    *,
    form: str = "onnx",
    data_root: Path | None = None,
    images: int = IMAGES,
) -> Iterator[ExportedNetwork]:
    """Export the stored networks of runs into a folder, and compare outputs on validation images of their task.

    A file that cannot be read, or whose outputs differ by more than rounding (`latency.PARITY`), is removed, and the
    entry says so; so do those of runs that cannot be exported. Raises UsageError for an unknown form or one that lacks
    its packages.
    """
    check_form(form)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    draws = Draws(data_root)
    for record in in_order(records):
        spec = record.run_spec
        entry = {
            "run_id": record.run_id, "task": spec.task, "model": spec.model, "method": spec.method,
            "sparsity": spec.sparsity, "seed": spec.seed, "form": form,
        }  # fmt: skip
        try:
            if record.status != "ok":
                raise StoreError(f"the run {record.status}")
            if THRESHOLD_NOTE in record.notes:
                raise StoreError("it hands images to a dense network, which one file cannot: export that too")
            data = draws.of(record)
            net = stored_network(record, store, data.task.num_outputs, data_root)
            with one_thread(data.device):
                made = _exported(record, net, data, out, form, images)
        except Exception as error:  # one run's trouble must not stop the others
            known = isinstance(error, PruneBenchError)
            made = {"problem": str(error) if known else f"{type(error).__name__}: {str(error)[:300]}"}
        yield ExportedNetwork(**{**entry, **made})  # type: ignore[arg-type]


def _exported(
    record: RunRecord, net: Classifier, data: TaskData, out: Path, form: str, images: int
) -> dict[str, object]:
    """The file of one network, and how far its outputs are from torch's."""
    spec, task = record.run_spec, data.task
    sparsity = "native" if spec.sparsity is None else number_text(spec.sparsity)
    path = out / f"{safe_name(f'{spec.method}-{sparsity}')}-{record.run_id}{FORMS[form]}"
    shown = data.images["val"]
    count = min(images, len(shown))
    facts = {
        "task": spec.task, "model": spec.model, "method": spec.method, "sparsity": sparsity, "run": record.run_id,
        "mean": " ".join(map(str, task.mean)), "std": " ".join(map(str, task.std)),
        "outputs": str(task.num_outputs),
    }  # fmt: skip
    batches = (
        shown.batch(slice(at, min(at + shown.evaluation_batch, count)))
        for at in range(0, count, shown.evaluation_batch)
    )
    try:
        with writing(path):
            write_network(net, shown.batch(slice(0, count)), path, form, facts)
        apart, largest, compared = largest_difference(read_network(path, form, net), net, batches)
        if not apart <= PARITY["cpu"] * max(largest, 1e-30):
            raise StoreError(
                f"outputs of the exported file differ from torch's by up to {apart:.2g} (largest output "
                f"{largest:.3g}): removed"
            )
    except BaseException:  # no file stays that was not compared
        path.unlink(missing_ok=True)
        raise
    weights = prunable(net).values()
    written = path.read_bytes()
    return {
        "structure": structure_of(record, net),
        "file": path.name,
        "bytes": len(written),
        "sha256": hashlib.sha256(written).hexdigest(),
        "weights": sum(weight.numel() for weight in weights),
        "nonzero_weights": sum(int(torch.count_nonzero(weight)) for weight in weights),
        "removed_macs": record.notes.get(REMOVED_NOTE),
        "opset": opset_of(path) if form == "onnx" else None,
        "difference": apart,
        "largest_output": largest,
        "images": compared,
    }
