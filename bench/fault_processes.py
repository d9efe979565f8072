"""Killed processes: several writers on one folder, writers and sweeps ended by `kill -9` at random moments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from prunebench.results.record import SCHEMA_VERSION, RunRecord, to_json
from prunebench.results.spec import Recipe, RunSpec
from prunebench.results.store import Store

CELLS, KILLED_CELLS, KILLS = 500, 2000, 10
"""Runs of undisturbed writers; runs and kills of those that are killed."""
SUITE = """
tasks = ["colored-digits@2pct"]
methods = ["magnitude", "random"]
sparsities = [0.5, 0.9]
seeds = [0, 1]

[recipe]
steps = 20
finetune_steps = 10
batch_size = 32
"""
SWEEP_RUNS = 10
MOST_MOMENTS = 7
"""At which a sweep is struck."""
COMPARED = ("status", "metrics", "validation", "groups", "sparsity", "mining", "notes", "outputs_sha256")


def instant_record(number: int) -> RunRecord:
    """The record of an instant run, the same whoever writes it: it failed, which needs no measurements."""
    spec = RunSpec("t", 1, "f" * 16, "m", "instant", "1", (), 0.5, number, Recipe(1, 1, 1))
    return RunRecord(
        schema_version=SCHEMA_VERSION, run_id=spec.run_id, status="skipped", spec=spec.to_dict(),
        method={"name": "instant"}, reason="instant",
    )  # fmt: skip


def write_instantly(folder: Path, cells: int, seed: int) -> None:
    """What a writer does: every run that nobody has, in an order of its own, under its lock; each is noted after it.

    As in a real run, what another process holds is tried again, and a run is done once its record says so.
    """
    store, waiting = Store(folder), [instant_record(number) for number in range(cells)]
    store.prepare()
    random.Random(seed).shuffle(waiting)
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while waiting:
        record = waiting.pop()
        with store.lock(record.run_id, wait=False) as mine:
            if not mine:
                waiting.insert(0, record)
                continue
            if store.status(record.run_id) is None:
                store.write(record)
                os.write(journal, f"{record.run_id}\n".encode())


def start_writer(folder: Path, cells: int, seed: int) -> subprocess.Popen[bytes]:
    """A process that writes."""
    code = f"import fault_processes as f, pathlib; f.write_instantly(pathlib.Path({str(folder)!r}), {cells}, {seed})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)


def writers(seed: int, number: int, folder: Path) -> tuple[int, list[str]]:
    """Two or four writers, 500 runs."""
    place = fresh(folder / "writers")
    processes = [
        start_writer(place, CELLS, 1000 * seed + 10 * number + k) for k in range(4 if number % 2 else 2)
    ]
    problems = [f"a writer ended with {p.returncode}" for p in processes if p.wait()]
    return CELLS, problems + what_is_wrong(place, CELLS)


def killed_writers(seed: int, number: int, folder: Path) -> tuple[int, list[str]]:
    """Two writers, of which one or both are killed again and again, and started again."""
    place, dice = fresh(folder / "killed"), random.Random(f"{seed} {number}")
    cells, kills = KILLED_CELLS, 0
    running = [start_writer(place, cells, dice.randrange(9999)) for _ in range(2)]
    _wait_for(place / "journal")
    while kills < KILLS and any(process.poll() is None for process in running):
        time.sleep(dice.uniform(0.0, 0.15))
        for k in (0, 1) if dice.random() < 0.3 else (dice.randrange(2),):
            kills += running[k].poll() is None
            running[k].send_signal(signal.SIGKILL)
            running[k].wait()
            running[k] = start_writer(place, cells, dice.randrange(9999))
            if dice.random() < 0.7:
                _wait_for_growth(place / "journal", running[k])
    problems = [f"a writer ended with {p.returncode}" for p in running if p.wait()]
    return kills, problems + what_is_wrong(place, cells, killed=kills)


def what_is_wrong(place: Path, cells: int, killed: int = 0) -> list[str]:
    """Runs lost or written twice, records damaged or other than undisturbed, locks held."""
    problems = []
    lines = (place / "journal").read_text().split()
    if len(set(lines)) < len(lines):
        problems.append(f"{len(lines) - len(set(lines))} runs were written twice")
    if len(lines) < cells - killed:
        problems.append(f"{cells - len(lines)} runs are not in the journal, {killed} writers were killed")
    statuses, damaged = Store(place).statuses()
    problems += [entry.reason for entry in damaged]
    wanted = [instant_record(number) for number in range(cells)]
    if set(statuses) != {record.run_id for record in wanted}:
        problems.append(f"{cells - len(statuses)} runs are lost")
    for record in wanted:
        path = Store(place).where(record)
        if path.is_file() and path.read_text() != to_json(record):
            problems.append(f"{path} is not what was written")
    return problems + held_locks(place)


def held_locks(place: Path) -> list[str]:
    """The locks that somebody holds."""
    held = []
    for path in (place / "locks").glob("*.lock"):
        try:
            FileLock(path).acquire(timeout=0).lock.release()
        except Timeout:
            held.append(f"{path} is held")
    return held


# Sweeps


def start_sweep(place: Path, mark: str, *more: str, suite: str = SUITE) -> subprocess.Popen[bytes]:
    """`prunebench run` of a tiny suite with two workers, whose processes can be found by `mark`."""
    (place / "tiny.toml").write_text(suite)
    words = ["run", str(place / "tiny.toml"), "--out", str(place / "out"), "--workers", "2", *more]
    paths = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), f"/nowhere/{mark}"])
    return subprocess.Popen(
        [sys.executable, "-m", "prunebench", *words],
        stdout=(place / "said").open("ab"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": paths},
    )


def processes_with(mark: str) -> dict[int, str]:
    """The command lines of all processes that descend from a marked one, however they detached themselves."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def killed_sweeps(seed: int, number: int, folder: Path) -> tuple[int, list[str]]:
    """A real sweep whose driver, workers or both are killed at random moments, again and again; then left to end.

    Each time that the driver is gone, the same command goes on with what is there.
    """
    whole = undisturbed(folder)
    place, dice = fresh(folder / f"sweep-{seed}"), random.Random(f"{seed} {number}")
    mark, killed, problems = f"prunebench-mark-{os.getpid()}-{number}", 0, []
    process = start_sweep(place, mark)
    for _ in range(dice.randint(1, MOST_MOMENTS)):
        if process.poll() is not None:
            process = start_sweep(place, mark)
        patience, after = time.monotonic() + 300, count_records(place) + dice.randrange(3)
        while count_records(place) < after and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 2))
        whom = dice.choice(("driver", "worker", "both"))
        killed += _kill(process, mark, whom, dice)
        if whom != "worker":
            process.wait()
            problems += [f"left after the kill of {whom}: {word}" for word in gone(mark)]
    process.wait()
    problems += [f"left after its own end: {word}" for word in gone(mark)]
    status = start_sweep(place, mark).wait()
    if status:
        problems.append(f"the same command ended with {status}: {(place / 'said').read_text()[-300:]}")
    problems += [f"left after the end: {word}" for word in gone(mark)]
    problems += [f"after {killed} kills: {word}" for word in differences(numbers(place), whole)]
    return killed, problems + held_locks(place / "out")


def _kill(process: subprocess.Popen[bytes], mark: str, whom: str, dice: random.Random) -> int:
    """`kill -9` of the driver, of a worker or of both; gives how many."""
    workers = [pid for pid, words in processes_with(mark).items() if "prunebench.runner.worker" in words]
    chosen = [dice.choice(workers)] if workers and whom != "driver" else []
    chosen += [process.pid] if whom != "worker" and process.poll() is None else []
    for pid in chosen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(chosen)


def gone(mark: str, patience: float = 60.0) -> list[str]:
    """The marked processes that are left after some patience, which a busy machine needs."""
    deadline = time.monotonic() + patience
    while (left := processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return list(left.values())


def undisturbed(folder: Path) -> dict[str, tuple[object, ...]]:
    """The numbers of the sweep that nobody kills, which is run once."""
    place = folder / "undisturbed"
    if len(numbers(place)) < SWEEP_RUNS:
        status = start_sweep(fresh(place), "prunebench-undisturbed").wait()
        assert status == 0, (place / "said").read_text()
    return numbers(place)


def numbers(place: Path) -> dict[str, tuple[object, ...]]:
    """All that must not depend on how a sweep went: everything but times, machine and code."""
    records, _ = Store(place / "out").records()
    return {
        record.run_id: tuple(getattr(_without_times(record), name) for name in COMPARED) for record in records
    }


def _without_times(record: RunRecord) -> RunRecord:
    """A record without the notes that are processor time."""
    return replace(record, notes={name: v for name, v in record.notes.items() if "cpu" not in name})


def differences(found: dict[str, tuple[object, ...]], whole: dict[str, tuple[object, ...]]) -> list[str]:
    """The runs that are lost, and the fields in which others differ from the undisturbed ones."""
    lost = [f"run {run_id} is lost" for run_id in whole if run_id not in found]
    return lost + [
        f"run {run_id}: {name} is {one!a:.300}, not {other!a:.300}"
        for run_id in found
        for name, one, other in zip(COMPARED, found[run_id], whole.get(run_id, ()))
        if one != other
    ]


def count_records(place: Path) -> int:
    """How many records are there."""
    return len(Store(place / "out").sources())


def fresh(place: Path) -> Path:
    """An empty folder there."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def _wait_for_growth(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a writer that was just started has written something, or has ended."""
    size, deadline = path.stat().st_size, time.monotonic() + 60
    while path.stat().st_size == size and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
