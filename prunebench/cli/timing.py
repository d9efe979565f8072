"""The words of `prunebench retime`, and of speeds after a run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path

from prunebench.cli.console import console, duration, errors
from prunebench.inference.busy import MachineLoad, machine_load, wait_until_quiet
from prunebench.results.record import RunRecord
from prunebench.results.speed import disturbance, noise_floor, speed_up

NEVER_QUIET = 75
"""Exit status after `--wait` was in vain: sysexits.h's EX_TEMPFAIL, "try again later"."""
REMINDER = 300.0
"""Seconds after which it is said again what is waited for."""


def warn_if_busy() -> bool:
    """Say so, before anything is timed, where the machine is busy; gives whether it is."""
    problem = machine_load().problem()
    if problem is not None:
        errors.print(problem, style="yellow", soft_wrap=True)
    return problem is not None


def wait_for_quiet(seconds: float) -> bool:
    """Wait until the machine is quiet, and say what for; gives whether it became so in that time."""
    begun, said = time.monotonic(), -math.inf

    def tell(load: MachineLoad) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= REMINDER:
            said = now
            errors.print(
                f"waiting until the load average is at most {load.quiet_below():g}: it is {load.words}. "
                f"Giving up in {duration(begun + seconds - now)}; Ctrl-C stops",
                style="yellow",
                soft_wrap=True,
            )

    load = wait_until_quiet(seconds, tell)
    waited = duration(time.monotonic() - begun)
    if load.problem() is not None:
        errors.print(
            f"still busy after {waited}: load average {load.words}, where {load.quiet_below():g} is quiet. Nothing was "
            "timed. Stop other work, or wait longer (--wait MINUTES)",
            style="red",
            soft_wrap=True,
        )
        return False
    if said > -math.inf:
        errors.print(f"quiet after {waited}: load average {load.words}", soft_wrap=True)
    return True


def time_with_progress(
    results: Path, data_root: Path | None, device: str, *, disturbed: bool = False, wait: float | None = None
) -> int:
    """Time stored models again and say what was left; 1 if a record could not be timed.

    wait: minutes to wait at most until the machine is quiet; NEVER_QUIET, and nothing timed, where it stays busy.
    """
    from prunebench.api import choose_device
    from prunebench.results.store import open_results
    from prunebench.runner.retime import retime

    device = choose_device(device)
    if wait is not None:
        open_results(results)  # a folder without results is told before the waiting
        if not wait_for_quiet(60 * wait):
            return NEVER_QUIET
    if device == "cpu" and warn_if_busy():
        errors.print("speeds taken now are marked and left out of headlines; Ctrl-C keeps what is written")
    left, timed = 0, []
    for entry in retime(results, data_root, device, disturbed=disturbed):
        place, label = f"[{entry.done}/{entry.total}]", entry.record.run_spec.label
        if entry.problem is None:
            timed.append(entry.record)
            console.print(f"{place} {label}: {_speed_line(entry.record)}", soft_wrap=True)
        else:
            left += 1
            console.print(f"{place} {label}: left as it was: {entry.problem}", soft_wrap=True)
    print_disturbed(timed, results)
    if not timed and not left:
        console.print("no run was disturbed: nothing to time again")
    elif timed:
        console.print(f"`prunebench leaderboard --results {results}` shows them on the board", soft_wrap=True)
    return int(left > 0)


def _speed_line(record: RunRecord) -> str:
    cost = record.cost
    assert cost is not None
    floor, problem = noise_floor(cost), disturbance(cost)
    line = f"dense / pruned {cost.latency_dense_ms.p50:.2f} / {cost.latency_pruned_ms.p50:.2f} ms, "
    line += f"{speed_up(cost):.2f}x" + ("" if floor is None else f" (dense against itself {floor:.2f}x)")
    return line + (f"; disturbed: {problem}" if problem else "")


def print_disturbed(records: Iterable[RunRecord], results: Path) -> None:
    """How many of these runs a busy machine disturbed, and how to get better speeds; nothing if none was."""
    timed = [record for record in records if record.cost is not None]
    bad = [problem for record in timed if record.cost and (problem := disturbance(record.cost))]
    if bad:
        errors.print(
            f"{len(bad)} of {len(timed)} speeds were disturbed by other work (say: {bad[0]}). They are marked in the "
            "records and in no headline. When nothing else runs:\n"
            f"  prunebench retime --results {results} --disturbed --wait 60",
            style="yellow",
            soft_wrap=True,
        )
