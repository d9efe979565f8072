"""Scarce resources, methods that misbehave, and surroundings that must not matter."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from fault_processes import (
    SUITE,
    differences,
    fresh,
    gone,
    held_locks,
    instant_record,
    numbers,
    start_sweep,
    undisturbed,
)

from prunebench.errors import StoreError
from prunebench.results.objects import sha256_of
from prunebench.results.store import Store

SCARCE = ("disk", "quota", "descriptors", "read-only")


def scarce(seed: int, number: int, folder: Path) -> tuple[int, list[str]]:
    """Fill a store until it cannot be written to, in a process of its own; see what it says, and go on with room."""
    kind = SCARCE[number % len(SCARCE)]
    place = fresh(folder / "scarce")
    with _small_disk(place) if kind in ("disk", "read-only") else contextlib.nullcontext(True) as mounted:
        if not mounted:
            return 0, []  # only the superuser may mount one
        code = f"import fault_resources as f; f.fill({str(place)!r}, {kind!r}, {seed * 1000 + number})"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    if done.returncode:
        return 1, [f"{kind}: {done.stderr[-400:]}"]
    return 1, [f"{kind}: {problem}" for problem in json.loads(done.stdout.splitlines()[-1])]


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[bool]:
    """A disk of 512 KB at a folder; False where none can be mounted."""
    options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill(where: str, kind: str, seed: int) -> None:
    """Write records, make the resource scarce, write on, make room, write again; prints what was wrong."""
    place, dice = Path(where), random.Random(seed)
    store, problems = Store(place), []
    store.prepare()
    first = dice.randrange(2, 20)  # both kinds, as what they import needs descriptors, too
    for number in range(first):
        _write(store, number)
    with _scarcity(place, kind, dice):
        failed, number = "", first
        while not failed and number < 3000:
            try:
                with store.lock(instant_record(number).run_id) as mine:
                    assert mine
                    _write(store, number)
                number += 1
            except StoreError as error:
                failed = str(error)
    if not failed:
        problems.append("nothing failed")
    elif where not in failed:
        problems.append(f"the error names no path: {failed}")
    _write(store, number)
    statuses, damaged = store.statuses()
    problems += [entry.reason for entry in damaged]
    for record in store.records()[0]:
        for name, said in (("outputs", record.outputs_sha256), ("model", record.model_sha256)):
            path = store.folder(record.run_id) / f"{name}.safetensors"
            if said is not None and (not path.is_file() or sha256_of(path) != said):
                problems.append(f"{path} is not what its record says")
    if set(statuses) != {instant_record(k).run_id for k in range(number + 1)}:
        problems.append(f"{len(statuses)} of {number + 1} records are there")
    leftovers = [path.name for path in place.rglob(".*.tmp")]
    print(json.dumps([*problems, *(f"left: {name}" for name in leftovers), *held_locks(place)]))


def _write(store: Store, number: int) -> None:
    """Write a run; every other one with logits and weights."""
    import torch

    tensors = {"x": torch.full((number % 50 + 1,), float(number))} if number % 2 else None
    store.write(instant_record(number), tensors, model=tensors)


@contextlib.contextmanager
def _scarcity(place: Path, kind: str, dice: random.Random) -> Iterator[None]:
    """Little of a resource, as long as this is entered."""
    if kind == "disk":
        (place / "filler").write_bytes(b"\0" * dice.randrange(200_000, 350_000))
        yield
        (place / "filler").unlink()
    elif kind == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        yield
        subprocess.run(["mount", "-o", "remount,rw,size=512k", str(place)], check=True)
    else:
        what, least = {
            "quota": (resource.RLIMIT_FSIZE, dice.randrange(64, 700)),
            "descriptors": (
                resource.RLIMIT_NOFILE,
                len(list(Path("/proc/self/fd").iterdir())) - 1 + dice.randrange(2),  # a write needs two more
            ),
        }[kind]
        before = resource.getrlimit(what)
        resource.setrlimit(what, (least, before[1]))
        yield
        resource.setrlimit(what, before)


# Methods

BODY = '''"""A method that misbehaves."""

import os, signal, subprocess, sys, threading, time

import torch

from prunebench import criterion


@criterion("{name}", cite="nobody")
def score(weight, context):
{body}
    return weight.abs()
'''
BAD: Mapping[str, tuple[str, str]] = {
    "hangs": ("while True: time.sleep(1)", "timeout"),
    "spins": ("while True: pass", "timeout"),
    "deaf": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)", "timeout"),
    "prints": ("while True: print('x' * 10_000)", "timeout"),
    "forks": (
        "for _ in range(20):\n    if os.fork() == 0:\n        time.sleep(9999)\nraise ValueError('forked')", "forked",
    ),
    "leaves": (
        "subprocess.Popen(['sleep', '9999'], start_new_session=True)\nraise ValueError('left a child')", "left a child",
    ),
    "threads": (
        "threading.Thread(target=time.sleep, args=(9999,)).start()\nraise ValueError('left a thread')", "left a thread",
    ),
    "nan": ("return weight * float('nan')", ""),
    "greedy": ("torch.empty(10**12)", ""),
    "dies": ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    "leaves-orphan": (
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(9999)\n    os._exit(0)", "ok",
    ),
}  # fmt: skip
"""What each does, and a word of the reason that its record must give."""


def bad_methods(_: int, number: int, folder: Path) -> tuple[int, list[str]]:
    """One sweep of all bad methods with a good one among them."""
    place, mark = fresh(folder / "methods"), f"prunebench-mark-{os.getpid()}-m{number}"
    files = []
    for name, (body, _word) in BAD.items():
        files.append(place / f"{name.replace('-', '_')}.py")
        text = "\n".join(f"    {line}" for line in body.split("\n"))
        files[-1].write_text(BODY.format(name=name, body=text))
    suite = SUITE.replace("[0.5, 0.9]", "[0.5]").replace("[0, 1]", "[0]")
    more = [word for path in files for word in ("--method", str(path))]
    process = start_sweep(place, mark, *more, "--method", "magnitude", "--timeout", "30", suite=suite)
    process.wait(timeout=3600)
    problems = [f"left after the end: {word}" for word in gone(mark, 20)]
    records = {record.spec["method"]: record for record in Store(place / "out").records()[0]}
    for name, (_body, word) in {**BAD, "magnitude": ("", "ok"), "dense": ("", "ok")}.items():
        if name not in records:
            problems.append(f"{name}: no record")
        elif word == "ok" and records[name].status != "ok":
            problems.append(f"{name}: {records[name].reason}")
        elif word != "ok" and (records[name].status != "failed" or word not in (records[name].reason or "")):
            problems.append(f"{name}: {records[name].status}, {records[name].reason!a:.200}")
    return len(BAD), problems + held_locks(place / "out")


# Surroundings

SURROUNDINGS: Mapping[str, Mapping[str, str]] = {
    "another time zone and locale": {"TZ": "Pacific/Kiritimati", "LC_ALL": "C"},
    "a hash seed": {"PYTHONHASHSEED": "4711"},
    "no home": {"HOME": "/nowhere/home", "XDG_CACHE_HOME": ""},
    "a read-only home": {"HOME": "/proc", "XDG_CACHE_HOME": ""},
    "spaces, umlauts and emoji in the path": {},
    "results behind a symbolic link": {},
    "the clock set back": {"PRUNEBENCH_FAULT_CLOCK": "-900000000"},
}
CLOCK = """import os, time
if "PRUNEBENCH_FAULT_CLOCK" in os.environ:
    _now, _shift = time.time, float(os.environ["PRUNEBENCH_FAULT_CLOCK"])
    time.time = lambda: _now() + _shift
"""
"""`sitecustomize`: the clock as a process sees it."""


def surroundings(_: int, number: int, folder: Path) -> tuple[int, list[str]]:
    """The tiny sweep in one other surrounding: the numbers of the undisturbed one."""
    name, changes = list(SURROUNDINGS.items())[number % len(SURROUNDINGS)]
    whole = undisturbed(folder)
    place = fresh(folder / ("ein schöner 🌳 Ort" if "emoji" in name else "surroundings"))
    if "link" in name:
        fresh(folder / "elsewhere")
        (place / "out").symlink_to(folder / "elsewhere", target_is_directory=True)
    (place / "sitecustomize.py").write_text(CLOCK)
    paths = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]) if "clock" in name else None
    before = dict(os.environ)
    os.environ.update(changes | ({"PYTHONPATH": paths} if paths else {}))
    try:
        status = start_sweep(place, f"prunebench-mark-{os.getpid()}-s{number}").wait()
    finally:
        os.environ.clear()
        os.environ.update(before)
    problems = [f"{name}: ended with {status}: {(place / 'said').read_text()[-400:]}"] if status else []
    return 1, problems + [f"{name}: {word}" for word in differences(numbers(place), whole)]
