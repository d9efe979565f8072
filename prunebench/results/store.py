"""The store of records: one folder a run, `record.json` written last.

runs/<run_id>/outputs.safetensors   logits of val and test, float16
runs/<run_id>/model.safetensors     weights, for dense models (shared by all methods)
runs/<run_id>/record.json           the commit point: temp file, fsync, rename
shared/<stage_id>.safetensors       stages shared between runs, written the same way
locks/                              one lock a run or stage; released by the system when a process dies
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.errors import NewerSchemaError, StoreError
from prunebench.results.record import RunRecord, from_json, to_json

if TYPE_CHECKING:
    from torch import Tensor


LARGEST_RECORD = 1 << 21
LEFTOVER_SECONDS = 3600
"""Temporary files of killed processes are removed after this time."""


@dataclass(frozen=True)
class CorruptRecord:
    """A record that could not be read: where, and why."""

    path: Path
    reason: str
    newer: bool = False


class Store:
    """The results under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run_id: str) -> Path:
        return self.root / "runs" / run_id

    def prepare(self) -> None:
        """Make the folders and try a write. Raises StoreError where that fails."""
        for name in ("runs", "shared", "locks"):
            with _writing(self.root / name):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        for leftover in self.root.rglob(".*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    leftover.unlink()
        probe = self.root / "locks" / f"probe-{os.getpid()}"
        write_atomically(probe, b"")
        probe.unlink(missing_ok=True)

    def status(self, run_id: str) -> str | None:
        """`ok`, `failed` or `skipped`; None where there is no valid record of this run."""
        try:
            record = self.read(run_id)
        except StoreError:
            return None
        return record.status if record.run_id == run_id else None

    def has_model(self, run_id: str) -> bool:
        """Whether the weights of a run are there and whole."""
        try:
            return bool(self.read_tensors(run_id, "model"))
        except StoreError:
            return False

    def read(self, run_id: str) -> RunRecord:
        """The validated record of a run. Raises StoreError if there is none or it is damaged."""
        return read_record(self.folder(run_id) / "record.json")

    def records(self) -> tuple[list[RunRecord], list[CorruptRecord]]:
        """All readable records, in order of run_id, and what could not be read."""
        found, damaged = [], []
        for path in sorted((self.root / "runs").glob("*/record.json")):
            try:
                record = read_record(path)
                if record.run_id != path.parent.name:
                    raise StoreError(f"{path}: holds run {record.run_id}; remove the folder or name it so")
                found.append(record)
            except StoreError as error:
                damaged.append(CorruptRecord(path, str(error), isinstance(error, NewerSchemaError)))
        return found, damaged

    def write(
        self,
        record: RunRecord,
        outputs: Mapping[str, Tensor] | None = None,
        *,
        model: Mapping[str, Tensor] | None = None,
    ) -> RunRecord:
        """Write a run; the record last. Returns it with the hash of its outputs."""
        import dataclasses

        folder = self.folder(record.run_id)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if model is not None:
            write_tensors(folder / "model.safetensors", model)
        if outputs is not None:
            digest = write_tensors(folder / "outputs.safetensors", outputs)
            record = dataclasses.replace(record, outputs_sha256=digest)
        write_atomically(folder / "record.json", to_json(record).encode())
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

    def read_tensors(self, run_id: str, name: str) -> dict[str, Tensor]:
        """`outputs` or `model` of a run. Raises StoreError if absent or damaged."""
        return read_tensors(self.folder(run_id) / f"{name}.safetensors")

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
        path = self.root / "shared" / f"{stage_id}.safetensors"
        with self.lock(f"stage-{stage_id}"):
            if path.is_file():
                with contextlib.suppress(StoreError):
                    return read_tensors(path)
            write_tensors(path, compute())
            return read_tensors(path)


def read_record(path: Path) -> RunRecord:
    """Read and validate one record file. Raises StoreError with the path and the reason."""
    try:
        if path.stat().st_size > LARGEST_RECORD:
            raise StoreError(
                f"{path}: cannot be read: larger than {LARGEST_RECORD >> 20} MiB, which no record is"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    return from_json(text, str(path))


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
    from safetensors.torch import save

    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def open_results(folder: Path) -> Store:
    """The store of a folder that holds results. Raises StoreError if it holds none."""
    if not (folder / "runs").is_dir():
        raise StoreError(f"{folder}: no results here (no folder `runs`); name the folder that `run` wrote")
    return Store(folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Write via a temp file, fsync and rename. Raises StoreError on a full or read-only disk."""
    with _writing(path):
        replace_file(path, data)


def replace_file(path: Path, data: bytes) -> None:
    """As `write_atomically`, for files that are no results: the system's own error is left to the caller."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; existing records are intact. "
            "Free space or choose another --out, then run the same command again"
        ) from error
