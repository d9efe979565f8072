"""Logits and weights of runs at an address: pushed there once, pulled from there by whoever has the records.

    ADDRESS/manifest.jsonl                           one line a run: SHA-256 and size of its logits and weights
    ADDRESS/objects/ab/abcdef....safetensors         one file an object, named by its SHA-256

An address is a folder, `http(s)://` (pull only) or whatever else fsspec knows (`s3://`, `hf://`, `gs://`; the package
that it wants is named where it is missing). HTTP goes by the standard library: fsspec's own needs aiohttp, which
nothing else here does, and all that is asked of a server is GET; with Range, a transfer that broke off goes on.

An object arrives as `partial/<sha256>.part` in the cache and takes its name when size and hash are right. No path is
made of anything but a SHA-256 that has the form of one, so a manifest cannot lead elsewhere; it is believed in sizes
(no more is read, and the disk must have room), and for weights of records older than schema 4 in their hash.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, Protocol

from prunebench.errors import PruneBenchError, StoreError, UsageError
from prunebench.results.objects import (
    DIGEST,
    cache,
    object_name,
    object_path,
    partial_path,
    sha256_of,
    weights_path,
)
from prunebench.results.record import RunRecord, parse_json
from prunebench.results.store import Store, narrowed, open_results, write_atomically, writing

MANIFEST = "manifest.jsonl"
KINDS = {"outputs": "logits", "model": "weights"}
LARGEST_MANIFEST, LARGEST_OBJECT = 1 << 26, 1 << 34
ATTEMPTS, AT_ONCE = 4, 8
CHUNK = 1 << 20
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Stored:
    """An object: its SHA-256 and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Transfer:
    """One object of one run: moved, there before, or why not; `done` of `total`."""

    run_id: str
    label: str
    kind: str
    bytes: int
    moved: bool
    problem: str | None
    done: int
    total: int


Manifest = dict[str, dict[str, Stored]]
"""By run id, then `outputs` or `model`."""


class Remote(Protocol):
    """A place of objects, by names relative to the address."""

    address: str

    def open(self, name: str, offset: int = 0) -> tuple[IO[bytes], int]:
        """A stream of a file, and the offset it really begins at. Raises FileNotFoundError, OSError."""

    def size(self, name: str) -> int | None:
        """The size of a file; None if it is not there."""

    def write(self, name: str, path: Path) -> None:
        """Put a file there: whole, or not at all."""


class HttpRemote:
    """Files under an HTTP address, to read."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def open(self, name: str, offset: int = 0) -> tuple[IO[bytes], int]:
        request = urllib.request.Request(f"{self.address}/{name}")
        if offset:
            request.add_header("Range", f"bytes={offset}-")
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise FileNotFoundError(f"{self.address} has no {name}") from error
            if error.code == 416 and offset:  # nothing is left to send: begin anew
                return self.open(name)
            raise
        partial = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {offset}-"
        )
        return answer, offset if partial else 0

    def size(self, name: str) -> int | None:
        raise UsageError(
            f"{self.address}: nothing can be pushed over HTTP; push to the folder behind it, S3 or HF"
        )

    def write(self, name: str, path: Path) -> None:
        self.size(name)


class FolderRemote:
    """Files under whatever fsspec opens: a folder, S3, Hugging Face."""

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address
        try:
            self._files, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{address}: {error} (`pip install prunebench[s3]`, or `[hf]`)") from error
        except Exception as error:  # whatever a protocol's package raises
            raise StoreError(f"{address}: cannot be opened: {error}") from error
        self._root = root.rstrip("/")
        self._local = "file" in _protocols(self._files)

    def open(self, name: str, offset: int = 0) -> tuple[IO[bytes], int]:
        with _told_as_oserror():
            stream = self._files.open(f"{self._root}/{name}", "rb")
            stream.seek(offset)
            return stream, offset

    def size(self, name: str) -> int | None:
        try:
            with _told_as_oserror():
                return int(self._files.info(f"{self._root}/{name}")["size"])
        except FileNotFoundError:
            return None

    def write(self, name: str, path: Path) -> None:
        target = f"{self._root}/{name}"
        with _told_as_oserror():
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        if not self._local:
            with _told_as_oserror():
                self._files.put_file(str(path), target)
            return
        write_atomically(Path(target), path.read_bytes())


@contextlib.contextmanager
def _told_as_oserror() -> Iterator[None]:
    """Turn what a protocol's package raises, such as for missing credentials, into the system's kind of error."""
    try:
        yield
    except (OSError, PruneBenchError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _protocols(files: Any) -> Sequence[str]:
    return (files.protocol,) if isinstance(files.protocol, str) else files.protocol


def open_remote(address: str) -> Remote:
    """The place that an address means. Raises UsageError for one that nothing opens."""
    return HttpRemote(address) if address.startswith(("http://", "https://")) else FolderRemote(address)


# The manifest


def read_manifest(remote: Remote) -> Manifest:
    """The objects of every run at an address. Raises StoreError with the line of what is wrong, or if there is none."""
    try:
        with contextlib.closing(remote.open(MANIFEST)[0]) as stream:
            data = stream.read(LARGEST_MANIFEST + 1)
    except FileNotFoundError as error:
        raise StoreError(f"{remote.address}: no {MANIFEST}, so nothing was pushed there") from error
    except (OSError, HTTPException) as error:
        raise StoreError(f"{remote.address}: cannot be read: {error}") from error
    return parse_manifest(data, f"{remote.address}/{MANIFEST}")


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The objects of every run that a manifest's text names. Raises StoreError with the line of what is wrong."""
    if len(data) > LARGEST_MANIFEST:
        raise StoreError(f"{where}: larger than {LARGEST_MANIFEST >> 20} MiB")
    found: Manifest = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line:
            try:
                _take(found, parse_json(line.decode()))
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise StoreError(f"{where}:{number}: no line of a manifest ({error})") from error
    return found


def _take(found: Manifest, line: dict[str, Any]) -> None:
    run_id = line.pop("run_id")
    if not isinstance(run_id, str) or run_id in found:
        raise ValueError(f"run {run_id!a:.40} stands there twice, or is no id")
    entry = {}
    for kind, values in line.items():
        stored = Stored(**values)
        if kind not in KINDS or not DIGEST.fullmatch(stored.sha256):
            raise ValueError(f"{kind!a:.40}: want {' or '.join(KINDS)} with a SHA-256")
        if type(stored.bytes) is not int or not 0 < stored.bytes <= LARGEST_OBJECT:
            raise ValueError(f"a size of {stored.bytes!r:.40} bytes: want at most {LARGEST_OBJECT >> 30} GiB")
        entry[kind] = stored
    found[run_id] = entry


def manifest_text(manifest: Manifest) -> str:
    """The text of a manifest: one line a run, in order."""
    lines = [
        {"run_id": run_id, **{kind: vars(stored) for kind, stored in manifest[run_id].items()}}
        for run_id in sorted(manifest)
    ]
    return "".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines)


# Push


def push(
    results: Path, address: str, tasks: Sequence[str] = (), methods: Sequence[str] = ()
) -> Iterator[Transfer]:
    """Push logits and weights of the finished runs of a folder; yields each object when it is there.

    Objects that are there already are not sent again, so the same command goes on where another broke off. The
    manifest is written last and keeps what others have pushed. Raises StoreError where it cannot be read or written.
    """
    store, remote = open_results(results), open_remote(address)
    manifest = _manifest_so_far(remote)
    chosen = [
        (record, kind)
        for record in _finished(store, tasks, methods)
        for kind in KINDS
        if kind == "outputs" or store.find_tensors(record, kind) is not None
    ]
    pushed: Manifest = {}

    def send(record: RunRecord, kind: str) -> tuple[int, bool]:
        path = store.find_tensors(record, kind)
        if path is None:
            raise StoreError(f"its {KINDS[kind]} are not stored here")
        said = record.outputs_sha256 if kind == "outputs" else record.model_sha256
        stored = Stored(sha256_of(path), path.stat().st_size)
        if said is not None and stored.sha256 != said:
            raise StoreError(f"its stored {KINDS[kind]} do not match their hash")
        missing = _send(remote, stored, path)
        pushed.setdefault(record.run_id, {})[kind] = stored
        return stored.bytes, missing

    yield from _each(chosen, send)
    _extend(remote, manifest, pushed)


def send_object(address: str, path: Path) -> Stored:
    """Bring one file to an address as an object, unless it is there. Raises StoreError where it cannot be written.

    Until `add_to_manifest` names it, nobody pulls it.
    """
    stored = Stored(sha256_of(path), path.stat().st_size)
    try:
        _send(open_remote(address), stored, path)
    except OSError as error:
        raise StoreError(f"{address}: cannot be written: {error}") from error
    return stored


def add_to_manifest(address: str, pushed: Manifest) -> None:
    """Name the objects of runs that `send_object` brought there. Raises StoreError where that cannot be written."""
    remote = open_remote(address)
    _extend(remote, _manifest_so_far(remote), pushed)


def _send(remote: Remote, stored: Stored, path: Path) -> bool:
    """Write an object that is not there; says whether it was missing."""
    missing = remote.size(object_name(stored.sha256)) != stored.bytes
    if missing:
        remote.write(object_name(stored.sha256), path)
    return missing


def _manifest_so_far(remote: Remote) -> Manifest:
    """What an address has; empty where nothing was pushed yet."""
    try:
        known = remote.size(MANIFEST) is not None
    except OSError as error:
        raise StoreError(f"{remote.address}: cannot be read: {error}") from error
    return read_manifest(remote) if known else {}


def _extend(remote: Remote, manifest: Manifest, pushed: Manifest) -> None:
    """Write the manifest with what was pushed; what others have pushed stays."""
    merged = dict(manifest)
    for run_id, entry in pushed.items():
        before = manifest.get(run_id, {})
        same_run = entry.get("outputs", before.get("outputs")) == before.get("outputs")
        merged[run_id] = dict(sorted({**(before if same_run else {}), **entry}.items()))
    if merged != manifest:
        _write_text(remote, manifest_text(merged))


def _write_text(remote: Remote, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MANIFEST
        path.write_text(text, encoding="utf-8")
        try:
            remote.write(MANIFEST, path)
        except OSError as error:
            raise StoreError(f"{remote.address}: cannot write {MANIFEST}: {error}") from error


# Pull


def pull(
    results: Path, address: str, tasks: Sequence[str] = (), methods: Sequence[str] = ()
) -> Iterator[Transfer]:
    """Pull logits and weights of the finished runs of a folder into the cache; yields each object when it is there.

    What the cache has is not fetched again, and what has arrived in part goes on from there. Raises StoreError where
    the manifest cannot be read, or the disk has no room.
    """
    store, remote = open_results(results), open_remote(address)
    manifest = read_manifest(remote)
    chosen = [
        (record, kind)
        for record in _finished(store, tasks, methods)
        for kind in KINDS
        if kind == "outputs" or kind in manifest.get(record.run_id, {})
    ]
    wanted = {
        stored
        for record, kind in chosen
        if (stored := manifest.get(record.run_id, {}).get(kind)) and not object_path(stored.sha256).is_file()
    }
    _check_room(sum(stored.bytes for stored in wanted))

    def fetch(record: RunRecord, kind: str) -> tuple[int, bool]:
        entry = manifest.get(record.run_id)
        if entry is None or "outputs" not in entry:
            raise StoreError(f"not at {address}: it was not pushed there")
        if entry["outputs"].sha256 != record.outputs_sha256:
            raise StoreError(f"{address} has it of another time: its logits have another hash")
        stored = entry[kind]
        if kind == "model" and record.model_sha256 not in (None, stored.sha256):
            raise StoreError(f"{address} has other weights of it than its record names")
        moved = fetch_object(remote, stored)
        if kind == "model" and record.model_sha256 is None:
            link = weights_path(entry["outputs"].sha256)
            link.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(link, stored.sha256.encode())
        return stored.bytes, moved

    yield from _each(chosen, fetch)


def _check_room(need: int) -> None:
    folder = cache()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise StoreError(
            f"{folder} has room for {free:,} bytes, {need:,} are wanted: choose fewer with --task or --method, or "
            "another place with PRUNEBENCH_CACHE"
        )


def fetch_object(remote: Remote, stored: Stored) -> bool:
    """Bring one object into the cache; says whether anything was to do. Raises StoreError if it cannot be had whole."""
    from filelock import FileLock

    final, part = object_path(stored.sha256), partial_path(stored.sha256)

    def there() -> bool:
        return final.is_file() and final.stat().st_size == stored.bytes

    if there():
        return False
    with writing(part):
        for folder in (final.parent, part.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(part.with_suffix(".lock")):
            if there():  # another process has brought it meanwhile
                return False
            if part.is_symlink():
                part.unlink()
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    _receive(remote, stored, part)
                    break
                except _BrokenOffError as error:
                    if attempt == ATTEMPTS:
                        raise StoreError(
                            f"{remote.address}: {error}; the same command goes on from here"
                        ) from error
            part.replace(final)
        part.with_suffix(".lock").unlink(missing_ok=True)
    return True


class _BrokenOffError(Exception):
    """A transfer that another attempt may complete."""


def _receive(remote: Remote, stored: Stored, part: Path) -> None:
    """Bring on what is missing of an object. Raises _BrokenOffError; StoreError, and removes it, where it is wrong."""
    name, begun = object_name(stored.sha256), part.stat().st_size if part.is_file() else 0
    if begun < stored.bytes:
        try:
            stream, offset = remote.open(name, begun)
        except FileNotFoundError as error:
            raise StoreError(f"{remote.address}: {name} is missing there") from error
        except (OSError, HTTPException) as error:
            raise _BrokenOffError(error) from error
        with contextlib.closing(stream), part.open("r+b" if offset else "wb") as target:
            target.seek(offset)
            _copy(stream, target, stored.bytes + 1 - offset)
    size = part.stat().st_size
    if size < stored.bytes:
        raise _BrokenOffError(f"{name} ended after {size:,} of {stored.bytes:,} bytes")
    if size == stored.bytes and sha256_of(part) == stored.sha256:
        return
    part.unlink()
    more = f"more than {stored.bytes:,} bytes" if size > stored.bytes else "other bytes than its hash says"
    if begun:  # what was there before may be what is wrong
        raise _BrokenOffError(f"{name} has {more}")
    raise StoreError(f"{remote.address}: {name} has {more}: it was altered or damaged")


def _copy(stream: IO[bytes], target: IO[bytes], most: int) -> None:
    while most > 0:
        try:
            data = stream.read(min(CHUNK, most))
        except (OSError, HTTPException) as error:
            raise _BrokenOffError(error) from error
        if not data:
            return
        target.write(data)
        most -= len(data)


# Both


def _finished(store: Store, tasks: Sequence[str], methods: Sequence[str]) -> list[RunRecord]:
    """The ok runs of some tasks and methods, or all, whose outputs were stored."""
    records = [record for record in store.records()[0] if record.status == "ok" and record.outputs_sha256]
    return narrowed(records, tasks, methods)


def _each(
    chosen: Iterable[tuple[RunRecord, str]], move: Callable[[RunRecord, str], tuple[int, bool]]
) -> Iterator[Transfer]:
    """Move objects, some at once; one object's trouble does not stop the others."""

    def one(record: RunRecord, kind: str) -> tuple[int, bool, str | None]:
        try:
            return *move(record, kind), None
        except Exception as error:
            return 0, False, str(error) or type(error).__name__

    work = list(chosen)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = pool.map(lambda pair: one(*pair), work)
        try:
            for number, ((record, kind), (size, moved, problem)) in enumerate(zip(work, results), start=1):
                label = record.run_spec.label
                yield Transfer(record.run_id, label, KINDS[kind], size, moved, problem, number, len(work))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
