"""The words of `prunebench retime`, and of speeds after a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prunebench.cli.console import console, errors
from prunebench.inference.busy import machine_load
from prunebench.results.record import RunRecord
from prunebench.results.speed import disturbance, noise_floor, speed_up


def warn_if_busy() -> bool:
    """Say so, before anything is timed, where the machine is busy; gives whether it is."""
    problem = machine_load().problem()
    if problem is not None:
        errors.print(problem, style="yellow", soft_wrap=True)
    return problem is not None


def time_with_progress(results: Path, data_root: Path | None, device: str, *, disturbed: bool = False) -> int:
    """Time stored models again and say what was left; 1 if a record could not be timed."""
    from prunebench.api import choose_device
    from prunebench.runner.retime import retime

    device = choose_device(device)
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
            f"  prunebench retime --results {results} --disturbed",
            style="yellow",
            soft_wrap=True,
        )
