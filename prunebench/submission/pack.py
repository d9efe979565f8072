"""Packing of a submission: a method's runs, its source, its card, and hashes of logits and weights, in one folder."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from prunebench.errors import StoreError, UsageError, unknown
from prunebench.methods.discovery import digest_of, source_files
from prunebench.results.artifacts import Manifest as Objects
from prunebench.results.artifacts import Stored, manifest_text
from prunebench.results.committed import encode_task, safe_name
from prunebench.results.objects import sha256_of
from prunebench.results.record import PREDICTIONS_NOTE, RunRecord
from prunebench.results.store import Document, Store, open_results, write_atomically, writing
from prunebench.results.tracks import is_reference_of
from prunebench.runner.described import find_method, source_of
from prunebench.runner.environment import describe_environment
from prunebench.submission.card import CARD, read_card, write_template
from prunebench.submission.folder import (
    ARTIFACTS,
    FORMAT,
    METHOD,
    RESULTS,
    Manifest,
    Submission,
    manifest_json,
    read_submission,
)
from prunebench.submission.predictions import VERSION as PREDICTED
from prunebench.submission.predictions import store_predictions


@dataclass(frozen=True)
class Chosen:
    """What is packed: name and version of a method, its source if it is a user's, its runs and references."""

    name: str
    version: str
    source: Path | None
    documents: tuple[Document, ...]

    @property
    def records(self) -> list[RunRecord]:
        """The records of all runs."""
        return [document.record for document in self.documents]

    @property
    def own(self) -> list[RunRecord]:
        """The method's own runs."""
        return [record for record in self.records if record.spec["method"] == self.name]


def pack(
    results: Path, method: str, out: Path, card: Path | None = None, tasks: Sequence[str] = ()
) -> Submission:
    """Write the submission of a method (a name, or its file or package) into a folder that does not exist yet.

    Raises UsageError or StoreError with the next command where runs, source, card, logits or weights are missing.
    """
    if out.exists():
        raise UsageError(f"{out} is there already: remove it, or name another folder with --out")
    store = open_results(results)
    chosen = choose_runs(store, results, method, tasks)
    read = ready_card(card or Path(CARD), chosen)
    predictions = all(record.notes.get(PREDICTIONS_NOTE) for record in chosen.own)
    objects = _objects(store, results, chosen, predictions=predictions)
    manifest = Manifest(
        format=FORMAT,
        method=chosen.name,
        version=chosen.version,
        kind="predictions" if predictions else "weights",
        source=None if chosen.source is None else chosen.source.name,
    )
    try:
        _write(out / "submission.json", manifest_json(manifest))
        _write(out / CARD, read.read_text(encoding="utf-8"))
        _write(out / ARTIFACTS, manifest_text(objects))
        _write_results(out / RESULTS, chosen.documents)
        if chosen.source is not None:
            _copy_source(chosen.source, out / METHOD)
        return read_submission(out)
    except Exception:
        shutil.rmtree(out, ignore_errors=True)
        raise


def pack_predictions(
    files: Sequence[Path], results: Path, method: str, out: Path, card: Path, data_root: Path | None
) -> Submission:
    """Make runs of files of logits in the folder `results`, then pack them. Raises UsageError or StoreError."""
    if out.exists():
        raise UsageError(f"{out} is there already: remove it, or name another folder with --out")
    if not card.is_file():
        _new_card(card, "none")
    store_predictions(files, method, read_card(card), results, data_root)
    return pack(results, method, out, card)


def choose_runs(store: Store, results: Path, method: str, tasks: Sequence[str] = ()) -> Chosen:
    """The runs of a method's version as its source is now. Raises UsageError with the command that makes them."""
    source = source_of(method)
    documents = [entry for entry in store.documents() if isinstance(entry, Document)]
    name = find_method(method).name if source else method
    found = Counter(document.record.spec["method"] for document in documents)
    if name not in found or name == "dense":
        raise (
            unknown("method", name, [known for known in found if known != "dense"])
            if found
            else UsageError(
                f"{results}: no runs; `prunebench run SUITE --method {method} --out {results}` makes them"
            )
        )
    versions = {d.record.spec["method_version"] for d in documents if d.record.spec["method"] == name}
    if source is None and any(version.startswith("file-") for version in versions):
        raise UsageError(
            f"{name} is a method of yours: name its file, `--method my_method.py`, so that it is packed"
        )
    predicted = versions == {PREDICTED}
    version = PREDICTED if predicted else find_method(method).version
    if version not in versions:
        raise UsageError(
            f"the runs of {name} in {results} are of version {', '.join(sorted(versions))}, it is {version} now: "
            f"run it again, `prunebench run SUITE --method {method} --out {results}`"
        )
    own = [
        d for d in documents if (d.record.spec["method"], d.record.spec["method_version"]) == (name, version)
    ]
    own = [d for d in own if not tasks or d.record.spec["task"] in tasks]
    for task in tasks:
        if task not in {d.record.spec["task"] for d in own}:
            raise unknown("task", task, {d.record.spec["task"] for d in documents})
    bad = [d.record for d in own if d.record.status != "ok"]
    if bad:
        raise UsageError(
            f"{len(bad)} runs of {name} did not finish ({bad[0].run_spec.label}: {bad[0].reason}); the same "
            "`prunebench run` tries them again"
        )
    needed = {_without_method(d.record) for d in own}
    references = [
        d
        for d in documents
        if is_reference_of(d.record, name) and _without_method(d.record) in needed and d.record.status == "ok"
    ]
    return Chosen(name, version, source, (*references, *own))


def _without_method(record: RunRecord) -> str:
    return str(record.run_spec.without_method())


def ready_card(path: Path, chosen: Chosen) -> Path:
    """The card's file, if it is filled in. Raises UsageError where it is not, and writes a template where none is."""
    if not path.is_file():
        _new_card(path, chosen.own[0].method.get("supervision", "none"))
    card = read_card(path)
    said = {record.method.get("supervision") for record in chosen.own}
    if said != {card.supervision}:
        raise UsageError(f"{path}: supervision: the runs declare {', '.join(sorted(map(str, said)))}")
    return path


def _new_card(path: Path, supervision: str) -> NoReturn:
    write_template(path, supervision, str(describe_environment("cpu").get("cpu")))
    raise UsageError(f"{path} was written: fill it in, then the same command again")


def _objects(store: Store, results: Path, chosen: Chosen, *, predictions: bool) -> Objects:
    """Hashes and sizes of logits and weights. Raises StoreError with the command that makes what is missing."""
    found: Objects = {}
    for record in chosen.records:
        entry = {}
        for kind, said in (("outputs", record.outputs_sha256), ("model", record.model_sha256)):
            path = store.find_tensors(record, kind)
            if path is None and (kind == "outputs" or not predictions):
                what = "logits" if kind == "outputs" else "weights"
                raise StoreError(
                    f"the {what} of {record.run_spec.label} are not stored: remove "
                    f"{store.where(record).parent} and run it again with --keep-models"
                )
            if path is not None:
                digest = sha256_of(path)
                if digest != said:
                    raise StoreError(f"{path}: does not match the hash in its record: run it again")
                entry[kind] = Stored(digest, path.stat().st_size)
        found[record.run_id] = entry
    return found


def _write_results(folder: Path, documents: Sequence[Document]) -> None:
    tasks: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        tasks.setdefault(document.record.spec["task"], []).append(document.values)
    for task, values in sorted(tasks.items()):
        for name, text in encode_task(task, values).items():
            _write(folder / safe_name(task) / name, text)


def _write(path: Path, text: str) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _copy_source(source: Path, folder: Path) -> None:
    """The method's file or package with the helpers beside it. Raises StoreError if the copy is another version."""
    for file in source_files(source):
        target = folder / file.relative_to(source.parent)
        with writing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, file.read_bytes())
    if digest_of(folder / source.name) != digest_of(source):
        raise StoreError(
            f"{source}: its copy has another version: keep what it needs in its folder, without links"
        )
