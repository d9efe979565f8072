"""The merge of stores: runs of one, with their logits and weights, brought into another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prunebench.errors import StoreError
from prunebench.results.committed import is_committed
from prunebench.results.convert import Converted
from prunebench.results.objects import sha256_of
from prunebench.results.record import RunRecord
from prunebench.results.store import CorruptRecord, Document, Store, narrowed, write_run


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, and no results in the committed form."""
    return (folder / "runs").is_dir() and not is_committed(folder)


def merge_stores(
    source: Path, destination: Path, tasks: Sequence[str] = (), methods: Sequence[str] = ()
) -> Converted:
    """Bring the runs of a store, or those of some tasks and methods, into another: tensors first, each record last.

    A run that is finished there is kept as it is, and named if its logits are others; one that failed there gives way
    to one that is finished. Records that cannot be read, or whose tensors are not what they say, are left out, with
    the reason. Raises StoreError where nothing can be written.
    """
    store, here = Store(destination), Store(source)
    store.prepare()
    entries = list(here.documents())
    left_out = [entry for entry in entries if isinstance(entry, CorruptRecord)]
    documents = [entry for entry in entries if isinstance(entry, Document)]
    chosen = {record.run_id for record in narrowed([d.record for d in documents], tasks, methods)}
    new, replaced, same, kept, files = 0, 0, 0, [], []
    for document in documents:
        record = document.record
        if record.run_id not in chosen:
            continue
        with store.lock(record.run_id):
            before = store.status(record.run_id)
            if before is not None and (before == "ok" or record.status != "ok"):
                if store.read(record.run_id).outputs_sha256 == record.outputs_sha256:
                    same += 1
                else:
                    kept.append(record.run_id)
                continue
            try:
                tensors = list(_sound_tensors(here, record))
            except StoreError as error:
                left_out.append(CorruptRecord(document.path, str(error)))
                continue
            files.append(_bring(document, tensors, store))
        new, replaced = new + (before is None), replaced + (before is not None)
    return Converted(new, replaced, same, kept=tuple(kept), left_out=tuple(left_out), files=tuple(files))


def _sound_tensors(store: Store, record: RunRecord) -> Iterator[Path]:
    """The files of a run's logits and weights, as far as they are there. Raises StoreError for a damaged one."""
    for name, said in (("outputs", record.outputs_sha256), ("model", record.model_sha256)):
        path = store.folder(record.run_id) / f"{name}.safetensors"
        if path.is_file():
            if said not in (None, sha256_of(path)):
                raise StoreError(f"{path}: is not what its record says")
            yield path


def _bring(document: Document, tensors: Sequence[Path], store: Store) -> Path:
    path = store.where(document.record)
    files = {file.name: file.read_bytes() for file in tensors}
    write_run(path.parent, {**files, path.name: document.path.read_bytes()})
    return path
