"""The store: one folder a run while runs are made, `record.json` written last; or the committed form of it.

runs/<run_id>/outputs.safetensors   logits of val and test, float16
runs/<run_id>/model.safetensors     weights
runs/<run_id>/record.json           the commit point: temp files, fsync, renames, this the last
runs/.waiting/                      those temp files
shared/<stage_id>.safetensors       stages shared between runs, written the same way
locks/                              one lock a run or stage; released by the system when a process dies
index/                              what records said, for a scan that opens none (`results.index`); may be deleted
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prunebench.errors import NewerSchemaError, StoreError, unknown
from prunebench.results.committed import (
    CONTEXT,
    Entries,
    Entry,
    encode_context,
    encode_method,
    is_committed,
    parse_context,
    read_committed,
    read_context,
    read_method,
    read_tasks,
    safe_name,
)
from prunebench.results.index import (
    FOLDER,
    NAME,
    WORTHWHILE,
    Stamps,
    index_text,
    note,
    read_index,
    stamp_of,
    stamps_in,
)
from prunebench.results.objects import cached, check_object, weights_of
from prunebench.results.record import RunRecord, from_json, from_values, to_json, values_of

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")
R = TypeVar("R")
RUNS, WAITING = "runs", ".waiting"
"""The folder of all runs, and in it that of files on their way into a run's."""
LARGEST_RECORD = 1 << 21
WRITERS = 8
LEFTOVER_SECONDS = 3600
"""Temporary files of killed processes are removed after this time."""


@dataclass(frozen=True)
class CorruptRecord:
    """A record that could not be read: where, and why."""

    path: Path
    reason: str
    newer: bool = False


@dataclass(frozen=True)
class Document:
    """A record, and the JSON values that it was read from: as they were written, of whatever schema.

    `text` is what stands in a record's own file; in the committed form it has none.
    """

    record: RunRecord
    values: dict[str, Any]
    path: Path
    text: str | None = None


class Store:
    """The results under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run_id: str) -> Path:
        return self.root / RUNS / run_id

    def prepare(self) -> None:
        """Make the folders and try a write. Raises StoreError where that fails."""
        if is_committed(self.root):
            raise StoreError(
                f"{self.root} holds results in the committed form: run into another folder, then "
                f"`prunebench results export` that one into {self.root}"
            )
        for name in ("runs", "shared", "locks"):
            with writing(self.root / name):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        for leftover in _leftovers(self.root):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    leftover.unlink()
        probe = self.root / "locks" / f"probe-{os.getpid()}"
        write_atomically(probe, b"")
        probe.unlink(missing_ok=True)

    def status(self, run_id: str) -> str | None:
        """`ok`, `failed` or `skipped`; None where there is no valid record of this run."""
        record = self.find(run_id)
        return None if record is None else record.status

    def find(self, run_id: str) -> RunRecord | None:
        """The validated record of a run; None where there is none."""
        try:
            record = self.read(run_id)
        except StoreError:
            return None
        return record if record.run_id == run_id else None

    def has_model(self, run_id: str) -> bool:
        """Whether the weights of a run are there and whole, by the head of their file and its length."""
        from safetensors import SafetensorError, safe_open

        try:
            path = self.folder(run_id) / "model.safetensors"
            if not path.is_file():
                return bool(self.read_tensors(run_id, "model"))
            with safe_open(path, framework="pt") as tensors:
                return bool(tensors.keys())
        except (StoreError, OSError, SafetensorError):
            return False

    def read(self, run_id: str) -> RunRecord:
        """The validated record of a run. Raises StoreError if there is none or it is damaged."""
        return read_record(self.folder(run_id) / "record.json")

    def records(self) -> tuple[list[RunRecord], list[CorruptRecord]]:
        """All readable records, in order of run_id, and what could not be read."""
        found: list[RunRecord] = []
        damaged: list[CorruptRecord] = []
        for entry in self.documents():
            if isinstance(entry, Document):
                found.append(entry.record)
            else:
                damaged.append(entry)
        return found, damaged

    def statuses(self) -> tuple[dict[str, str], list[CorruptRecord]]:
        """The status of every run, and what could not be read: only records that the index does not hold are opened.

        An index that has fallen far behind is written anew, if the folder can be written to.
        """
        stamps, known = self.sources(), read_index(self.root)
        found = {
            run: known[run][1] for run, stamp in stamps.items() if run in known and known[run][0] == stamp
        }
        anew, fresh, damaged = [run for run in stamps if run not in found], len(found), []
        for entry in self.documents(anew):
            if isinstance(entry, Document):
                found[entry.record.run_id] = entry.record.status
            else:
                damaged.append(entry)
        if len(anew) - len(damaged) >= WORTHWHILE or len(known) - fresh >= WORTHWHILE:
            with contextlib.suppress(OSError):
                (self.root / FOLDER).mkdir(exist_ok=True)
                replace_file(self.root / FOLDER / NAME, index_text(stamps, found).encode())
        return found, damaged

    def sources(self) -> Stamps:
        """What the records are in, in order, each with a stamp that changes when it does (`results.index`)."""
        return stamps_in(self.root / "runs")

    def documents(self, sources: Collection[str] | None = None) -> Iterator[Document | CorruptRecord]:
        """Every record with its values, in order of run_id; those that cannot be read as such.

        Of some `sources` alone where these are given.
        """
        runs = self.root / "runs"
        for path in self._paths() if sources is None else (runs / run / "record.json" for run in sources):
            try:
                text = _text(path)
                values = values_of(text, str(path))
                record = from_values(values, str(path), text)
                if record.run_id != path.parent.name:
                    raise StoreError(f"{path}: holds run {record.run_id}; remove the folder or name it so")
                yield Document(record, values, path, text)
            except StoreError as error:
                yield CorruptRecord(path, str(error), isinstance(error, NewerSchemaError))

    def glances(self) -> Iterator[tuple[str, Any]]:
        """The id of every run and the values of its record, not validated; None where they cannot be read."""
        for path in self._paths():
            try:
                yield path.parent.name, values_of(_text(path), str(path))
            except StoreError:
                yield path.parent.name, None

    def _paths(self) -> list[Path]:
        return [self.folder(run_id) / "record.json" for run_id in self.sources()]

    def where(self, record: RunRecord) -> Path:
        """The file that holds a record."""
        return self.folder(record.run_id) / "record.json"

    def write(
        self,
        record: RunRecord,
        outputs: Mapping[str, Tensor] | None = None,
        *,
        model: Mapping[str, Tensor] | None = None,
    ) -> RunRecord:
        """Write a run; the record last. Returns it with the hashes of its outputs and model."""
        import dataclasses

        files: dict[str, bytes] = {}
        hashes: dict[str, Any] = {}
        for name, tensors in (("model", model), ("outputs", outputs)):
            if tensors is not None:
                data = files[f"{name}.safetensors"] = tensor_bytes(tensors)
                hashes[f"{name}_sha256"] = hashlib.sha256(data).hexdigest()
        record = dataclasses.replace(record, **hashes)
        write_run(self.folder(record.run_id), {**files, "record.json": to_json(record).encode()})
        note(self.root, record.run_id, record.status)
        return record

    def update(self, record: RunRecord, **fields: Any) -> RunRecord:
        """Write some fields of a record that was read before into it as it is now, under the run's lock; returns it.

        Raises StoreError where another process is at work on the run or has run it again since, and where the record
        cannot be read.
        """
        import dataclasses

        with self.lock(record.run_id, wait=False) as mine:
            if not mine:
                raise StoreError("another process is at work on this run")
            current = self.read(record.run_id)
            if current.outputs_sha256 != record.outputs_sha256:
                raise StoreError("it was run again meanwhile")
            return self.write(dataclasses.replace(current, **fields))

    def find_tensors(self, record: RunRecord, name: str) -> Path | None:
        """The file of `outputs` or `model` of a run: in its folder, else in the cache of pulled objects, else None."""
        path = self.folder(record.run_id) / f"{name}.safetensors"
        if path.is_file():
            return path
        if name == "outputs":
            return cached(record.outputs_sha256)
        return cached(record.model_sha256 or weights_of(record.outputs_sha256))

    def read_tensors(self, run_id: str, name: str) -> dict[str, Tensor]:
        """`outputs` or `model` of a run. Raises StoreError if absent or damaged."""
        path = self.folder(run_id) / f"{name}.safetensors"
        if not path.is_file() and self.status(run_id) is not None:
            pulled = self.find_tensors(self.read(run_id), name)
            if pulled is not None:
                check_object(pulled)
                return read_tensors(pulled)
        return read_tensors(path)

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock `name`; gives False, without waiting, if another process holds it."""
        from filelock import FileLock, Timeout

        guard = FileLock(self.root / "locks" / f"{name}.lock")
        try:
            guard.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise StoreError(f"cannot lock in {self.root / 'locks'}: {error.strerror}") from error
        try:
            yield True
        finally:
            guard.release()

    def shared(self, stage_id: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a stage: read if they are there, else computed once, kept, and read back."""
        with self.lock(f"stage-{stage_id}"):
            found = self.find_stage(stage_id)
            return self.keep_stage(stage_id, compute()) if found is None else found

    def find_stage(self, stage_id: str) -> dict[str, Tensor] | None:
        """The tensors of a stage that was kept; to be called under its lock, `stage-ID`."""
        path = self.root / "shared" / f"{stage_id}.safetensors"
        if path.is_file():
            with contextlib.suppress(StoreError):
                return read_tensors(path)
        return None

    def keep_stage(self, stage_id: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep the tensors of a stage and read them back; to be called under its lock."""
        path = self.root / "shared" / f"{stage_id}.safetensors"
        write_tensors(path, tensors)
        return read_tensors(path)


class CommittedStore(Store):
    """Results in the committed form: they are read as those of a store, and no run is made into them.

    Logits and weights are those that `artifacts pull` put into the cache.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._known: dict[str, Entry] | None = None

    def records(self) -> tuple[list[RunRecord], list[CorruptRecord]]:
        found, damaged = super().records()
        return sorted(found, key=lambda record: record.run_id), damaged

    def statuses(self) -> tuple[dict[str, str], list[CorruptRecord]]:
        found, damaged = self.records()
        return {record.run_id: record.status for record in found}, damaged

    def sources(self) -> Stamps:
        """A file a method of each task, stamped together with what it refers to."""
        files = sorted(self.root.glob("*/*.jsonl"))
        return {
            str(path.relative_to(self.root)): f"{stamp_of(path)} {stamp_of(path.with_name(CONTEXT))}"
            for path in files
        }

    def documents(self, sources: Collection[str] | None = None) -> Iterator[Document | CorruptRecord]:
        """Every record with its values, in order of task, method and their place there; one task is held at a time."""
        wanted = None if sources is None else {self.root / name for name in sources}
        for entries, problems in read_tasks(self.root, wanted):
            for entry in entries:
                try:
                    yield Document(from_values(entry.values, entry.source), entry.values, entry.path)
                except StoreError as error:
                    yield CorruptRecord(entry.path, str(error), isinstance(error, NewerSchemaError))
            yield from (CorruptRecord(problem.path, str(problem)) for problem in problems)

    def glances(self) -> Iterator[tuple[str, Any]]:
        for run_id, entry in self._entries().items():
            yield run_id, entry.values

    def read(self, run_id: str) -> RunRecord:
        entry = self._entries().get(run_id)
        if entry is None:
            raise StoreError(f"{self.root}: no run {run_id}")
        return from_values(entry.values, entry.source)

    def where(self, record: RunRecord) -> Path:
        spec = record.run_spec
        return self.root / safe_name(spec.task) / f"{safe_name(spec.method)}.jsonl"

    def update(self, record: RunRecord, **fields: Any) -> RunRecord:
        import dataclasses

        path = self.where(record)
        with self.lock("committed"):
            task, shared, entries = read_method(path)
            values = {entry.values["run_id"]: entry.values for entry in entries}
            current = from_values(values.get(record.run_id), str(path))
            if current.outputs_sha256 != record.outputs_sha256:
                raise StoreError("it was run again meanwhile")
            changed = dataclasses.replace(current, **fields)
            values[record.run_id] = json.loads(to_json(changed))
            used: Entries = {}
            text = encode_method(list(values.values()), used)
            others = "".join(file.read_text() for file in path.parent.glob("*.jsonl") if file != path)
            used |= {key: entry for key, entry in shared.items() if f'"{key}"' in others}
            write_files(path.parent, task, {CONTEXT: encode_context(task, used), path.name: text})
            self._entries()[record.run_id] = Entry(values[record.run_id], path, 0)
        return changed

    def write(self, record: RunRecord, *_: Any, **__: Any) -> RunRecord:
        raise StoreError(f"{self.root} holds results in the committed form: write into a store and export it")

    def _entries(self) -> dict[str, Entry]:
        if self._known is None:
            self._known = {entry.values["run_id"]: entry for entry in read_committed(self.root)[0]}
        return self._known


def write_files(folder: Path, task: str, files: dict[str, str]) -> list[Path]:
    """Write those files of a task that differ; gives their paths.

    Until all is written, the context holds what the old files refer to, too.
    """
    context, files = files[CONTEXT], {name: text for name, text in files.items() if name != CONTEXT}
    both = context
    if (folder / CONTEXT).is_file():
        old, new = read_context(folder / CONTEXT)[1], parse_context(context.splitlines())[1]
        both = encode_context(task, {**old, **new})
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for step in ({CONTEXT: both}, files, {CONTEXT: context}):
        changed = {
            folder / name: text.encode() for name, text in step.items() if not _holds(folder / name, text)
        }
        write_all(changed.items())
        written += changed
    return written


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def write_all(files: Iterable[tuple[Path, bytes]]) -> None:
    """Write files atomically, several at a time. Raises StoreError."""
    several_at_a_time(lambda file: write_atomically(*file), files)


def several_at_a_time(write: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What writing each of some items gives: most of it is waiting for the disk."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(write, items))


def _leftovers(root: Path) -> Iterator[Path]:
    """Temporary files anywhere below a folder; no run's folder is looked into, as they do not lie there."""
    yield from (root / RUNS / WAITING).glob(".*.tmp")
    for folder, folders, names in os.walk(root):
        if Path(folder) == root and RUNS in folders:
            folders.remove(RUNS)
        yield from (Path(folder, name) for name in names if name.startswith(".") and name.endswith(".tmp"))


def read_record(path: Path) -> RunRecord:
    """Read and validate one record file. Raises StoreError with the path and the reason."""
    return from_json(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_RECORD:
            raise StoreError(
                f"{path}: cannot be read: larger than {LARGEST_RECORD >> 20} MiB, which no record is"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises StoreError with the path and the reason."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file atomically; returns its SHA-256."""
    data = tensor_bytes(tensors)
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a safetensors file."""
    from safetensors.torch import save

    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def open_results(folder: Path) -> Store:
    """The results of a folder, a store's or in the committed form. Raises StoreError if it holds none, or both."""
    store, committed = (folder / "runs").is_dir(), is_committed(folder)
    if store and committed:
        raise StoreError(
            f"{folder}: holds both a store (`runs`) and the committed form: "
            f"move `runs` to another folder and `prunebench results export` that one into {folder}"
        )
    if committed:
        return CommittedStore(folder)
    if not store:
        raise StoreError(
            f"{folder}: no results here (no folder `runs`, no task's `{CONTEXT}`); name the folder that `run` wrote"
        )
    return Store(folder)


def narrowed(
    records: Sequence[RunRecord], tasks: Sequence[str] = (), methods: Sequence[str] = ()
) -> list[RunRecord]:
    """The records of some tasks and methods; of all, where none is named. Raises UsageError for unknown names."""
    for kind, names in (("task", tasks), ("method", methods)):
        known = {record.spec[kind] for record in records}
        for name in names:
            if name not in known:
                raise unknown(kind, name, known)
    return [
        record
        for record in records
        if record.spec["task"] in (tasks or (record.spec["task"],))
        and record.spec["method"] in (methods or (record.spec["method"],))
    ]


def write_atomically(path: Path, data: bytes) -> None:
    """Write via a temp file, fsync and rename. Raises StoreError on a full or read-only disk."""
    with writing(path):
        replace_file(path, data)


def write_run(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of a run's folder atomically, of which the last says that all are there. Raises StoreError.

    They wait for the disk together, not one after another. When all are safe there, they take their names in order.
    Until then they lie in one folder for all runs, where what killed processes leave is found without a search.
    """
    waiting = folder.parent / WAITING
    temporary = {name: _temporary(waiting / f"{folder.name}.{name}") for name in files}
    try:
        with writing(folder):
            for place in (folder, waiting):
                place.mkdir(parents=True, exist_ok=True)
        _at_once(lambda name: _write_through(temporary[name], files[name]), files, folder)
        for name in files:
            with writing(folder / name):
                temporary[name].replace(folder / name)
    except BaseException:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _at_once(write: Callable[[str], None], names: Iterable[str], folder: Path) -> None:
    """Write each of some files in a thread of its own; here where no thread can start. Raises StoreError.

    Ends when all threads have, whatever happens.
    """
    problems: list[BaseException] = []

    def attempt(name: str) -> None:
        try:
            with writing(folder / name):
                write(name)
        except BaseException as error:  # in a thread, no other would hear of it
            problems.append(error)

    threads = []
    *others, last = names
    try:
        for name in others:
            thread = threading.Thread(target=attempt, args=(name,))
            try:
                thread.start()
                threads.append(thread)
            except RuntimeError:  # the system has no more
                attempt(name)
        attempt(last)
    finally:
        for thread in threads:
            thread.join()
    if problems:
        raise problems[0]


def replace_file(path: Path, data: bytes) -> None:
    """As `write_atomically`, for files that are no results: the system's own error is left to the caller."""
    temporary = _temporary(path)
    try:
        _write_through(temporary, data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")


def _write_through(path: Path, data: bytes) -> None:
    """Write a file, and wait until the disk has it."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's error into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; existing records are intact. "
            "Free space or choose another --out, then run the same command again"
        ) from error
