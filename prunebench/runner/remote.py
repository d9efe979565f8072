"""A run on another machine: what it needs goes there as bytes, and its record and logits come back as bytes.

Nothing here knows how bytes travel, and no file system is shared. There, a run is executed as by any worker, in a
store of that machine's own under the folder for temporary files, which keeps dense models and shared stages for the
next run and is removed a day after its last use.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from prunebench.errors import StoreError
from prunebench.methods.discovery import SHUFFLED, source_files
from prunebench.results.record import RunRecord, from_json
from prunebench.results.store import Store, write_atomically, write_run
from prunebench.runner.described import absolute, source_of
from prunebench.runner.environment import describe_code, describe_environment
from prunebench.runner.evaluate import TaskData
from prunebench.runner.plan import PlannedRun, RunContext
from prunebench.runner.worker import RunExecutor, load_draw
from prunebench.tasks import Split, Splits, Task, resolve_task

if TYPE_CHECKING:
    import numpy as np

Files = dict[str, bytes]
"""Contents by name."""
Arrays = dict[str, "np.ndarray[Any, Any]"]
"""The tensors of a draw, `train.x`, `train.y`, ..."""
RECORD = "record.json"
TENSORS = ("outputs", "model")
UNUSED_SECONDS = 86_400
"""After this time without use the folder of a job is removed."""


@dataclass(frozen=True)
class RemoteRequest:
    """One run to execute: the run and its context as JSON values, the job that asks, and its version of PruneBench.

    With an `address` logits and weights go there, as objects named by their SHA-256, and the record alone comes back.
    """

    run: dict[str, Any]
    context: dict[str, Any]
    job: str
    version: str
    address: str | None = None

    @classmethod
    def of(cls, run: PlannedRun, context: RunContext, job: str, address: str | None = None) -> RemoteRequest:
        """The request of a run as it is planned here; a user's method is named by its whole path."""
        run = replace(run, method=absolute(run.method))
        return cls(run.to_dict(), context.to_dict(), job, own_version(), address)


# A run's folder


def pack_run(store: Store, run_id: str) -> Files:
    """The record, logits and weights of a run, as far as they are there or in the cache of pulled objects."""
    record = store.read(run_id)
    found = {name: store.find_tensors(record, name) for name in TENSORS}
    paths = {f"{name}.safetensors": path for name, path in found.items() if path is not None}
    try:
        return {name: path.read_bytes() for name, path in ({RECORD: store.where(record)} | paths).items()}
    except OSError as error:
        raise StoreError(f"{store.folder(run_id)}: cannot be read: {error}") from error


def read_run(run_id: str, files: Mapping[str, bytes]) -> RunRecord:
    """The record of a run that came as bytes. Raises StoreError unless it is that run, whole and unharmed."""
    try:
        record = from_json(files[RECORD].decode(), f"run {run_id} as it came back")
    except (KeyError, UnicodeDecodeError) as error:
        raise StoreError(f"run {run_id} came back without its record") from error
    if record.run_id != run_id:
        raise StoreError(f"run {run_id} was asked for, {record.run_id} came back")
    for name in TENSORS:
        data, said = files.get(f"{name}.safetensors"), getattr(record, f"{name}_sha256")
        if data is not None and said not in (None, hashlib.sha256(data).hexdigest()):
            raise StoreError(f"run {run_id}: its {name} came back damaged")
    return record


def keep_run(store: Store, run_id: str, files: Mapping[str, bytes]) -> None:
    """Write a run that came as bytes, its record last."""
    names = (*(f"{name}.safetensors" for name in TENSORS), RECORD)
    write_run(store.folder(run_id), {name: files[name] for name in names if name in files})


# A user's method


def pack_method(name: str) -> Files:
    """The files of a user's method, by their place beside it; none of a built-in or installed one."""
    path = source_of(name)
    if path is None:
        return {}
    files = source_files(path)
    return {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files}


def unpack_method(name: str, files: Mapping[str, bytes], root: Path) -> str:
    """Write the files of a user's method below a folder; gives the name by which the method is found there.

    name: as `described.absolute` gives it, where the files came from.
    """
    if not files:
        return name
    total = hashlib.sha256()
    for place, data in sorted(files.items()):
        total.update(f"{place}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    folder = root / "methods" / total.hexdigest()[:16]
    for place, data in files.items():
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise StoreError(f"{place!a}: no place beside a method")
        if not (folder / place).is_file():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / place, data)
    return f"{SHUFFLED if name.startswith(SHUFFLED) else ''}{folder / Path(name).name}"


# A draw of the data


def pack_draw(task: Task, data_root: Path | None, seed: int) -> Arrays | None:
    """The tensors of a draw that is in memory; None for one that is streamed from a file or painted when shown."""
    splits = task.splits(data_root, seed)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    if splits.val_balanced is not None:
        parts["val_balanced"] = splits.val_balanced()
    if any(part.digest is not None or part.overlay is not None for part in parts.values()):
        return None
    return {
        f"{name}.{kind}": values.contiguous().numpy()
        for name, part in parts.items()
        for kind in ("x", "y", "bias", "image")
        if (values := getattr(part, kind)) is not None
    }


def unpack_draw(arrays: Arrays) -> Splits:
    """The splits of a draw that came as arrays; copied, as what comes may be memory shared with others."""
    import torch

    def part(name: str) -> Split:
        mine = {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(f"{name}.")}
        tensors: dict[str, Any] = {kind: torch.from_numpy(values.copy()) for kind, values in mine.items()}
        return Split(**tensors)

    balanced = functools.partial(part, "val_balanced") if "val_balanced.x" in arrays else None
    return Splits(part("train"), part("val"), part("test"), val_balanced=balanced)


def load_given(arrays: Arrays | None, run: PlannedRun, context: RunContext) -> TaskData:
    """The draw of a run: of the arrays that came, else of this machine's own files."""
    if arrays is None:
        return load_draw(run, context)
    import torch

    task = resolve_task(run.task, context.data_root)
    return TaskData(task, None, run.spec.seed, torch.device(context.device), splits=unpack_draw(arrays))


# There


def execute_here(
    request: RemoteRequest,
    *,
    dense: Files | None = None,
    arrays: Arrays | None = None,
    method: Files | None = None,
    checkpoint: bytes | None = None,
    emit: Callable[[dict[str, Any]], None] | None = None,
    place: str = "",
) -> tuple[dict[str, Any], Files]:
    """Execute a run on this machine; gives the worker's message (`done`, `busy`, `fatal`) and the run's files.

    `dense` is the run of its dense model as it came back; `place` tells machines apart that share a disk.
    """
    if request.version != own_version():
        reason = (
            f"a node has prunebench {own_version()}, the command is of {request.version}: install the same"
        )
        return {"kind": "fatal", "reason": reason}, {}
    root = job_folder(f"{request.job}-{place}")
    run, context = PlannedRun.from_dict(request.run), RunContext.from_dict(request.context)
    run = replace(run, method=unpack_method(run.method, method or {}, root))
    context = replace(
        context, out=root, data_root=_data_root(context), dense=_keep(root, "dense", checkpoint)
    )
    store = Store(root)
    if dense is not None and not run.is_dense:
        with store.lock(f"came-{run.dense_id}"):
            if store.status(run.dense_id) is None or pack_run(store, run.dense_id) != dense:
                keep_run(store, run.dense_id, dense)
    if emit is not None:
        environment = describe_environment(context.device, run.spec.recipe.precision)
        emit({"kind": "started", "environment": environment})
    load = functools.partial(load_given, arrays)
    message = RunExecutor(emit, load=load, draws=_draws()).execute(run, context)
    if message["kind"] == "fatal":  # this machine's disk, not the results': another one may have room
        raise StoreError(message["reason"])
    if message["kind"] != "done":
        return message, {}
    files = pack_run(store, run.spec.run_id)
    if request.address is not None and message["status"] == "ok":
        message["objects"] = _deliver(request.address, store, store.read(run.spec.run_id))
        files = files if run.is_dense else {RECORD: files[RECORD]}
    if not run.is_dense:
        shutil.rmtree(store.folder(run.spec.run_id), ignore_errors=True)
    return message, files


def own_version() -> str:
    """The version of PruneBench as it is installed here."""
    return str(describe_code()["version"])


@functools.cache
def _draws() -> OrderedDict[tuple[str, int], TaskData]:
    """The draws that this process keeps between runs."""
    return OrderedDict()


def job_folder(name: str) -> Path:
    """The store of a job on this machine, made if need be; those that nobody has used for a day are removed."""
    home = Path(tempfile.gettempdir()) / f"prunebench-{os.getuid() if hasattr(os, 'getuid') else 'runs'}"
    root = home / name
    if not root.is_dir():
        home.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and home.stat().st_uid != os.getuid():
            raise StoreError(f"{home} belongs to somebody else: remove it, or set TMPDIR on that machine")
        for old in home.iterdir():
            with contextlib.suppress(OSError):  # another run of the job may be removing it
                if time.time() - old.stat().st_mtime > UNUSED_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        Store(root).prepare()
    os.utime(root)
    return root


def _data_root(context: RunContext) -> Path | None:
    """Where this machine has its data: as it says itself, else as the command said."""
    own = os.environ.get("PRUNEBENCH_DATA")
    return Path(own) if own else context.data_root


def _keep(root: Path, name: str, data: bytes | None) -> Path | None:
    """A file of this content below a folder; None for none."""
    if data is None:
        return None
    path = root / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        write_atomically(path, data)
    return path


def _deliver(address: str, store: Store, record: RunRecord) -> dict[str, Any]:
    """Bring logits and weights of a run to an address, as objects; gives SHA-256 and size of each."""
    from prunebench.results.artifacts import send_object

    sent = {}
    for name in TENSORS:
        path = store.folder(record.run_id) / f"{name}.safetensors"
        if path.is_file():
            sent[name] = asdict(send_object(address, path))
    return sent
