"""Processes of `bench/gpu.py`: a stage in one of its own, or its items side by side.

A crash, a hang or a destroyed GPU context then costs one item. Side by side, on a machine of many processors, the
checks of correctness run (they time nothing), and before a timed stage its items run once for nothing: Triton and
torch.compile fill their caches on disk, which takes most of a first run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_stages import BROKEN_DEVICE, Context, Item, Stage, is_done, read_stage, record, write_json

PROGRAM = Path(__file__).resolve().with_name("gpu.py")
GRACE_SECONDS = 15.0
"""A process is ended this long after its time."""
STARTUP_SECONDS = 12.0
"""What a new process needs before its first item: imports and a CUDA context."""
WARM_SHARE = 0.35
"""Share of the remaining time that filling caches may take."""


def command(stage: Stage, context: Context, out: Path, seconds: float, *extra: str) -> list[str]:
    """The command that runs one stage, or one of its items, in another process."""
    return [
        *(sys.executable, str(PROGRAM), "--in-process", "--only", stage.name, "--out", str(out)),
        *("--minutes", str(seconds / 60), "--session", context.session, "--device", context.device.type),
        *(() if context.compiles else ("--no-compile",)),
        *extra,
    ]


def run_stage_apart(stage: Stage, context: Context) -> None:
    """Run the stage in its own process; again after a crash, which is then recorded as its item's failure."""
    while context.deadline.remaining() > 0:
        before = read_stage(stage, context)
        seconds = context.deadline.remaining()
        try:
            code = subprocess.run(
                command(stage, context, context.out, seconds), check=False, timeout=seconds + GRACE_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            context.log(f"{stage.name}: ended at the deadline")
            return
        if code == 0:
            return
        context.log(f"{stage.name}: its process ended with code {code}")
        after = read_stage(stage, context)
        if code != BROKEN_DEVICE and after["running"] is None and after["items"] == before["items"]:
            return  # it ends before its first item; trying again would too


def run_side_by_side(
    stage: Stage, context: Context, *, discard: bool = False, workers: int | None = None
) -> None:
    """Run the items that are not done, several at a time, each in its own process.

    With `discard` their results are thrown away: the run only fills the compilers' caches.
    """
    results = read_stage(stage, context)
    items = [
        item
        for item in stage.items(context)
        if not is_done(results["items"].get(item.name), context) and (context.cuda or not item.needs_cuda)
    ]
    workers = workers or max(1, min(12, (os.cpu_count() or 4) - 4))
    budget = context.deadline.remaining() * (WARM_SHARE if discard else 1.0)
    lock = threading.Lock()
    end = context.deadline.remaining() - budget

    def run(item: Item) -> None:
        seconds = context.deadline.remaining() - end
        if seconds < STARTUP_SECONDS:
            return
        found = run_item_apart(stage, item, context, seconds)
        if discard:
            return
        with lock:
            results["items"][item.name] = found
            write_json(stage.path(context.out), results)

    what = "runs once to fill the compilers' caches" if discard else "runs"
    context.log(f"{stage.name}: {what}, {len(items)} items, {workers} at a time")
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, items))


def run_item_apart(stage: Stage, item: Item, context: Context, seconds: float) -> dict[str, Any]:
    """One item in its own process; its record, or one that says how the process ended."""
    holder: dict[str, Any] = {"stage": stage.name, "items": {}, "running": None}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        try:
            done = subprocess.run(
                command(stage, context, out, seconds, "--item", item.name),
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds + GRACE_SECONDS,
            )
            path = stage.path(out)
            stored = json.loads(path.read_text())["items"] if path.exists() else {}
            if item.name in stored:
                found: dict[str, Any] = stored[item.name]
                context.log(f"{stage.name}: {item.name}: {found['status']} in {found['seconds']:.1f} s")
                return found
            reason = f"its process ended with code {done.returncode}: {done.stderr[-2000:]}"
        except subprocess.TimeoutExpired:
            reason = "it took longer than the time left"
    record(holder, item.name, "failed", reason, context, seconds)
    context.log(f"{stage.name}: {item.name}: failed: {reason.splitlines()[0]}")
    failed: dict[str, Any] = holder["items"][item.name]
    return failed
