"""The store: commits that are whole or absent, damage that is reported, locks that die with their holder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunebench.errors import StoreError
from prunebench.results.record import RunRecord, to_json
from prunebench.results.spec import RunSpec
from prunebench.results.store import Store, read_record, read_tensors, write_atomically, write_tensors

MakeRecord = Callable[..., RunRecord]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    place = Store(tmp_path / "results")
    place.prepare()
    return place


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_what_is_written_is_read(store: Store, make_record: MakeRecord) -> None:
    outputs = {"test_logits": torch.randn(6, 3).half(), "val_logits": torch.randn(2, 3).half()}
    strided = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    written = store.write(make_record(), outputs, model={"body.0.weight": strided})
    folder = store.folder(written.run_id)
    assert names_in(folder) == ["model.safetensors", "outputs.safetensors", "record.json"]
    assert store.read(written.run_id) == written
    assert written.outputs_sha256 == hashlib.sha256((folder / "outputs.safetensors").read_bytes()).hexdigest()
    again = store.read_tensors(written.run_id, "outputs")
    assert set(again) == set(outputs)
    assert all(torch.equal(again[name], outputs[name]) for name in outputs)
    assert torch.equal(store.read_tensors(written.run_id, "model")["body.0.weight"], strided)


def test_a_record_alone(store: Store, make_record: MakeRecord) -> None:
    record = make_record(status="failed", reason="why")
    assert store.write(record) == record
    assert names_in(store.folder(record.run_id)) == ["record.json"]
    assert (store.folder(record.run_id) / "record.json").read_text() == to_json(record)


def test_the_record_is_written_last(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, move = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), move(a, b)))
    store.write(make_record(), {"x": torch.ones(1)}, model={"w": torch.ones(1)})
    assert order == ["model.safetensors", "outputs.safetensors", "record.json"]


def test_files_of_a_run_wait_for_the_disk_together(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None takes its name before all are safe; the waits overlap, or this barrier would break."""
    together, sync, at_sync = threading.Barrier(3, timeout=30), os.fsync, []

    def wait(descriptor: int) -> None:
        together.wait()
        at_sync.append(names_in(store.folder(record.run_id)))
        sync(descriptor)

    record = make_record()
    with monkeypatch.context() as slow:
        slow.setattr(os, "fsync", wait)
        written = store.write(record, {"x": torch.ones(1)}, model={"w": torch.ones(1)})
    assert at_sync == [[], [], []]
    for name in ("outputs", "model"):
        data = (store.folder(record.run_id) / f"{name}.safetensors").read_bytes()
        assert getattr(written, f"{name}_sha256") == hashlib.sha256(data).hexdigest()


def test_where_no_thread_can_start_files_are_written_one_after_another(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    record = store.write(make_record(), {"x": torch.ones(1)}, model={"w": torch.ones(1)})
    assert store.read(record.run_id) == record
    assert set(store.read_tensors(record.run_id, "model")) == {"w"}


def test_whatever_stops_a_file_stops_the_record(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is written in a thread of its own, whose errors nobody else would hear of."""
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        sync(descriptor)

    record = make_record()
    with monkeypatch.context() as short:
        short.setattr(os, "fsync", fail)
        with pytest.raises(MemoryError):
            store.write(record, {"x": torch.ones(1)})
    assert store.status(record.run_id) is None
    assert list(store.root.rglob("*.tmp")) == []


@pytest.mark.parametrize("call", ["open", "replace"])
def test_a_disk_that_became_read_only_is_named(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The system refuses to remove a file there, too, even one that is not there."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    record = store.write(make_record())
    with monkeypatch.context() as read_only:
        for name in (call, "unlink"):
            read_only.setattr(Path, name, refuse)
        with pytest.raises(StoreError, match=r"cannot write .*: Read-only file system"):
            store.write(replace(record, reason="again"))
    assert store.read(record.run_id) == record


def test_what_a_killed_writer_left_goes_in_an_hour(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run's folder is looked into for it: to look into each of 10^5 took 21 s from a cold disk."""
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        if (child := os.fork()) == 0:
            store.write(make_record(), {"x": torch.ones(1)})
        os.waitpid(child, 0)
    left = list(store.root.rglob("*.tmp"))
    assert len(left) == 2
    beside = store.root / "shared" / ".a.1.2.tmp"
    beside.write_bytes(b"half")
    store.prepare()
    assert all(path.exists() for path in (*left, beside))
    for path in (*left, beside):
        os.utime(path, (1.0, 1.0))
    monkeypatch.chdir(store.root)
    Store(Path()).prepare()
    assert not any(path.exists() for path in (*left, beside))


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(StoreError, match="No space left on device; existing records are intact") as caught:
        write_atomically(path, b"new")
    assert str(path) in str(caught.value)
    assert "Free space or choose another --out" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["record.json"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_makes_no_record(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    record = make_record()
    with monkeypatch.context() as full:
        full.setattr(os, call, no_space)
        with pytest.raises(StoreError, match="cannot write"):
            store.write(record, {"x": torch.ones(1)})
    assert store.status(record.run_id) is None
    assert names_in(store.folder(record.run_id)) == []
    store.write(record)
    assert store.status(record.run_id) == "ok"


def test_an_unwritable_place_is_named(tmp_path: Path, make_record: MakeRecord) -> None:
    """A file where a folder should be: refused for every user, the superuser included."""
    blocked = tmp_path / "results"
    blocked.write_text("a file")
    with pytest.raises(StoreError, match=r"cannot write .*results") as caught:
        Store(blocked).prepare()
    assert "choose another --out" in str(caught.value)
    with pytest.raises(StoreError, match=r"cannot write .*results"):
        Store(blocked).write(make_record())
    with pytest.raises(StoreError, match=r"cannot write .*results"):
        write_atomically(blocked / "record.json", b"")
    assert blocked.read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="Permission denied; existing records are intact"):
            Store(tmp_path / "results").prepare()
    finally:
        tmp_path.chmod(0o700)


def test_prepare_may_be_repeated_and_leaves_no_probe(store: Store) -> None:
    store.prepare()
    assert names_in(store.root) == ["locks", "runs", "shared"]
    assert names_in(store.root / "locks") == []


# Reading


def write_some(store: Store, make_record: MakeRecord, spec: RunSpec, count: int) -> list[RunRecord]:
    records = [make_record(replace(spec, seed=seed)) for seed in range(count)]
    for record in records:
        store.write(record)
    return sorted(records, key=lambda record: record.run_id)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"schema_version": 1, "run', "not valid JSON"),
        (b"{}", "not a PruneBench record"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"schema_version": 99}', "written with record schema 99"),
    ],
)
def test_damaged_records_are_listed_and_the_others_load(
    store: Store, make_record: MakeRecord, spec: RunSpec, damage: bytes, reason: str
) -> None:
    first, broken, last = write_some(store, make_record, spec, 3)
    path = store.folder(broken.run_id) / "record.json"
    path.write_bytes(damage)
    found, damaged = store.records()
    assert found == [first, last]
    assert [entry.path for entry in damaged] == [path]
    assert damaged[0].reason.startswith(f"{path}: ")
    assert reason in damaged[0].reason
    assert store.status(broken.run_id) is None
    with pytest.raises(StoreError, match=reason):
        store.read(broken.run_id)


def test_a_record_in_another_s_folder_does_not_count(
    store: Store, make_record: MakeRecord, spec: RunSpec
) -> None:
    record, other = write_some(store, make_record, spec, 2)
    (store.folder(other.run_id) / "record.json").write_text(to_json(record))
    assert store.status(other.run_id) is None
    found, damaged = store.records()
    assert found == [record], "a copied folder must not count a run twice"
    assert [entry.path.parent.name for entry in damaged] == [other.run_id]


def test_an_empty_store(tmp_path: Path) -> None:
    assert Store(tmp_path / "nowhere").records() == ([], [])


def test_status(store: Store, make_record: MakeRecord, spec: RunSpec) -> None:
    for seed, status in enumerate(("ok", "failed", "skipped")):
        record = make_record(replace(spec, seed=seed), status=status)
        store.write(record)
        assert store.status(record.run_id) == status
    assert store.status("0123456789abcdef") is None


def newer_schema(values: dict[str, Any]) -> None:
    values["schema_version"] = 99


def lost_cost(values: dict[str, Any]) -> None:
    values["cost"] = None


def unknown_field(values: dict[str, Any]) -> None:
    values["colour"] = "red"


def another_spec(values: dict[str, Any]) -> None:
    values["spec"]["seed"] = 7


@pytest.mark.parametrize("damage", [newer_schema, lost_cost, unknown_field, another_spec])
def test_a_record_that_cannot_be_read_is_not_done(
    store: Store, make_record: MakeRecord, damage: Callable[[dict[str, Any]], None]
) -> None:
    """What `records` lists as damaged must be run again, so its status cannot be ok."""
    record = make_record()
    store.write(record)
    path = store.folder(record.run_id) / "record.json"
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    assert store.records()[0] == []
    assert [entry.path for entry in store.records()[1]] == [path]
    assert store.status(record.run_id) is None


def test_missing_files_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing/record\.json: cannot be read"):
        store.read("nothing")
    with pytest.raises(StoreError, match=r"nothing/outputs\.safetensors: cannot be read"):
        store.read_tensors("nothing", "outputs")
    with pytest.raises(StoreError, match="cannot be read"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "damage", [b"", b"garbage", b"\x08" + b"\x00" * 7 + b"{}"], ids=["empty", "text", "cut"]
)
def test_damaged_tensors_are_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "outputs.safetensors"
    write_tensors(path, {"x": torch.arange(100)})
    path.write_bytes(damage)
    with pytest.raises(StoreError, match=r"outputs\.safetensors: cannot be read"):
        read_tensors(path)


# Locks

HOLDER = """
import sys
from pathlib import Path
from prunebench.results.store import Store

with Store(Path(sys.argv[1])).lock(sys.argv[2]) as held:
    print("held" if held else "not held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def other_process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate("go on\n", timeout=30)
    assert process.returncode == 0


def test_a_lock_keeps_other_processes_out(store: Store) -> None:
    with other_process(HOLDER, store.root, "stage") as holder:
        assert first_line(holder) == "held"
        with store.lock("stage", wait=False) as held:
            assert not held
        with store.lock("another", wait=False) as held:
            assert held
        let_go(holder)
        with store.lock("stage", wait=False) as held:
            assert held


def test_a_waiting_process_gets_the_lock(store: Store) -> None:
    got = threading.Event()

    def wait_for_it() -> None:
        with store.lock("stage") as held:
            assert held
            got.set()

    with other_process(HOLDER, store.root, "stage") as holder:
        assert first_line(holder) == "held"
        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        assert not got.wait(0.2)
        let_go(holder)
        waiter.join(30)
        assert got.is_set()


def test_a_killed_holder_leaves_no_lock(store: Store) -> None:
    with other_process(HOLDER, store.root, "stage") as holder:
        assert first_line(holder) == "held"
        with store.lock("stage", wait=False) as held:
            assert not held
        holder.send_signal(signal.SIGKILL)
        assert holder.wait(30) == -signal.SIGKILL
        with store.lock("stage", wait=False) as held:
            assert held


def test_a_lock_is_released_when_its_body_fails(store: Store) -> None:
    with pytest.raises(RuntimeError, match="inside"), store.lock("stage"):
        raise RuntimeError("inside")
    with store.lock("stage", wait=False) as held:
        assert held


def test_a_place_without_locks_is_named(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file")
    with (
        pytest.raises(StoreError, match=r"cannot lock in .*locks"),
        Store(tmp_path).lock("stage"),
    ):
        pytest.fail("locked")


def test_an_update_changes_the_record_as_it_is_now(store: Store, make_record: MakeRecord) -> None:
    record = store.write(make_record(metrics={"plain": 0.5}))
    store.write(replace(record, metrics={"plain": 0.75}))
    after = store.update(record, reason="seen")
    assert after == replace(record, metrics={"plain": 0.75}, reason="seen") == store.read(record.run_id)


def test_no_update_while_another_process_is_at_work_on_the_run(store: Store, make_record: MakeRecord) -> None:
    record = store.write(make_record())
    text = (store.folder(record.run_id) / "record.json").read_text()
    with other_process(HOLDER, store.root, record.run_id) as holder:
        assert first_line(holder) == "held"
        with pytest.raises(StoreError, match="another process is at work on this run"):
            store.update(record, reason="lost")
        assert (store.folder(record.run_id) / "record.json").read_text() == text
        let_go(holder)
    assert store.update(record, reason="mine").reason == "mine"


def test_an_update_of_a_run_made_again_leaves_the_record(store: Store, make_record: MakeRecord) -> None:
    before = store.write(make_record(), {"x": torch.zeros(3)})
    record = store.write(make_record(), {"x": torch.ones(3)})
    with pytest.raises(StoreError, match="it was run again meanwhile"):
        store.update(before, reason="of other outputs")
    assert store.read(record.run_id) == record
    with store.lock(record.run_id, wait=False) as held:
        assert held


# Shared stages


class Stage:
    """A computation that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Tensor]:
        self.calls += 1
        strided = torch.arange(48.0).view(1, 3, 4, 4).to(memory_format=torch.channels_last)
        return {"mask": torch.tensor([1, 0, 1], dtype=torch.uint8), "logits": strided + self.calls}


def test_a_stage_is_computed_once(store: Store) -> None:
    stage = Stage()
    fresh, cached = store.shared("abc", stage), store.shared("abc", stage)
    assert stage.calls == 1
    assert set(fresh) == set(cached) == {"mask", "logits"}
    for name, value in fresh.items():
        assert torch.equal(value, cached[name])
        assert (value.dtype, value.stride()) == (cached[name].dtype, cached[name].stride())
    assert torch.equal(fresh["logits"].flatten(), torch.arange(48.0) + 1)
    assert fresh["mask"].tolist() == [1, 0, 1]
    store.shared("other", stage)
    assert stage.calls == 2


@pytest.mark.parametrize("keep", [0, 7, 60])
def test_a_damaged_stage_is_computed_again(store: Store, keep: int) -> None:
    stage = Stage()
    store.shared("abc", stage)
    (path,) = (store.root / "shared").iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    again = store.shared("abc", stage)
    assert stage.calls == 2
    assert float(again["logits"][0, 0, 0, 0]) == 2.0
    store.shared("abc", stage)
    assert stage.calls == 2


def test_a_stage_that_fails_leaves_nothing(store: Store) -> None:
    def fail() -> dict[str, Tensor]:
        raise FloatingPointError("the loss was nan")

    with pytest.raises(FloatingPointError):
        store.shared("abc", fail)
    assert names_in(store.root / "shared") == []
    stage = Stage()
    store.shared("abc", stage)
    assert stage.calls == 1


def test_a_stage_that_cannot_be_kept_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match=r"abc\.safetensors: No space left"):
        store.shared("abc", Stage())
    assert names_in(store.root / "shared") == []


COMPUTER = """
import sys
from pathlib import Path
import torch
from prunebench.results.store import Store

def compute():
    print("computing", flush=True)
    sys.stdin.readline()
    return {"x": torch.tensor([1.0, 2.0])}

Store(Path(sys.argv[1])).shared("abc", compute)
"""


@pytest.mark.slow
def test_two_processes_compute_a_stage_once(store: Store) -> None:
    stage, results = Stage(), []
    with other_process(COMPUTER, store.root) as computer:
        assert first_line(computer) == "computing"
        second = threading.Thread(target=lambda: results.append(store.shared("abc", stage)))
        second.start()
        second.join(0.2)
        waited = second.is_alive()
        let_go(computer)
        second.join(30)
    assert waited, "did not wait for the process that computes"
    assert stage.calls == 0
    (tensors,) = results
    assert tensors["x"].tolist() == [1.0, 2.0]
