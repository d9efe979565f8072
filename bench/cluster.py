"""Sweeps on a Ray cluster whose nodes all run on this machine, disturbed in the middle, beside the same sweep without.

    uv run python bench/cluster.py [SUITE] [--disturb node driver head] [--apart] [--nodes 3] [--page docs/cluster.md]

Needs the extra `ray`. Every node is a Ray node of its own (raylet, object store, workers) with one core. With `--apart`
(root, Linux) each is a machine of namespaces, with an address, processes and temporary files of its own, and the
command that drives the sweep is on one more, without a core; what is shared is the network, and what is installed here
(not below `/tmp`) for reading. Once runs are finished,

    node     the last node is killed, all its processes at once;
    network  its cable is pulled, and it computes on (needs `--apart`);
    driver   the command is killed, and the same command goes on;
    head     the head is killed, the command ends by itself, and the same command goes on at a new cluster;
    none     nothing happens.

Prints a tally as JSON; exit status 0 if every run is recorded once, ok, with the logits of the local run, and neither
tasks nor locks outlived their command.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import namespaces
from fault_processes import held_locks
from pages import write_part
from ray_nodes import Cluster, ray_cluster

from prunebench.inference.busy import machine_load
from prunebench.report.markdown import pipe_table
from prunebench.results.objects import sha256_of
from prunebench.results.store import Store
from prunebench.runner.remote import TENSORS

PART = "disturbed"
DISTURBANCES = {
    "node": "a node, killed",
    "network": "a node, its network cut",
    "driver": "the command, killed",
    "head": "the head, killed",
    "none": "nothing",
}
PATIENCE = 120.0
"""Seconds for a command whose head is gone to end, and for what it had at work."""


def start_sweep(words: Sequence[str], log: Path, cluster: Cluster | None = None) -> subprocess.Popen[bytes]:
    """`prunebench run` with these words, in a process group of its own; what it says goes into the log."""
    command = [sys.executable, "-m", "prunebench", "run", *words]
    if cluster is not None:
        command = cluster.inside([*command, "--cluster", cluster.address])
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)


def end_sweep(sweep: subprocess.Popen[bytes]) -> int:
    """`kill -9` of a sweep's process group, if it is still there, until nothing is left; gives its exit status."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(sweep.pid, signal.SIGKILL)
            sweep.poll()
            time.sleep(0.01)
    return sweep.wait()


def wait_for_records(store: Store, count: int, sweep: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait until a sweep has recorded so many runs; gives how many there are. Raises RuntimeError if it ends before."""
    end = time.monotonic() + seconds
    while (found := len(store.sources())) < count:
        if sweep.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{found} of {count} runs after the sweep ended with {sweep.poll()}")
        time.sleep(0.05)
    return found


def working(parent: int | None = None) -> set[int]:
    """Processes below this one in which a run is at work: Ray gives them the run's label as a title."""
    found = set()
    for path in Path(f"/proc/{parent or os.getpid()}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                title = Path(f"/proc/{child}/cmdline").read_bytes()
                if title.startswith(b"ray::") and b" seed " in title:
                    found.add(child)
                found |= working(child)
    return found


def disturbed_sweep(
    words: Sequence[str], store: Store, log: Path, disturb: str, asked: argparse.Namespace
) -> dict[str, Any]:
    """Run a sweep on a cluster, disturb it once `--after` runs are recorded, and bring it to its end."""
    facts: dict[str, Any] = {"disturbed": disturb}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        cluster = first.enter_context(ray_cluster(asked.nodes, asked.out, apart=asked.apart))
        start = time.monotonic()
        sweep = start_sweep(words, log, cluster)
        stack.callback(end_sweep, sweep)
        if disturb != "none":
            facts["recorded_before"] = wait_for_records(store, asked.after, sweep, asked.seconds)
        if disturb in ("node", "network"):
            cluster.lose_node(cut=disturb == "network")
        elif disturb in ("driver", "head"):
            tasks, lost = working(), time.monotonic()
            if disturb == "head":
                cluster.lose_head()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    sweep.wait(PATIENCE)
                    facts["first_driver_seconds"] = round(time.monotonic() - lost, 1)
            facts["first_driver_status"] = end_sweep(sweep)
            facts["locks_left"] = held_locks(store.root)
            facts["recorded_at_restart"] = len(store.sources())
            if disturb == "head":
                first.close()
                cluster = stack.enter_context(ray_cluster(asked.nodes, asked.out, apart=asked.apart))
            sweep = start_sweep(words, log, cluster)
            stack.callback(end_sweep, sweep)
            while tasks & working() and time.monotonic() < lost + PATIENCE:
                time.sleep(0.1)
            facts["tasks_left"] = len(tasks & working())
            facts["tasks_ended_seconds"] = round(time.monotonic() - lost, 1)
        facts["status"] = sweep.wait(timeout=asked.seconds)
        facts["seconds"] = round(time.monotonic() - start, 1)
    return facts


def compare(local: Store, other: Store, log: str) -> dict[str, Any]:
    """The tally: runs of both stores, what differs, and how often the driver said that a run was done."""
    mine, theirs = ({record.run_id: record for record in store.records()[0]} for store in (local, other))
    done = collections.Counter(re.findall(r"^\[\d+/\d+\] \w+ (.*?)(?:: |; took)", log, re.M))

    def equal(name: str) -> int:
        said = f"{name}_sha256"
        return sum(
            getattr(mine[run_id], said)
            == getattr(theirs[run_id], said)
            == _sha256_of_file(other.folder(run_id) / f"{name}.safetensors")
            for run_id in mine.keys() & theirs
        )

    return {
        "runs": len(mine),
        "recorded": len(theirs),
        "ok": sum(record.status == "ok" for record in theirs.values()),
        "missing": sorted(set(mine) - set(theirs)),
        "said_done_twice": sorted(label for label, times in done.items() if times > 1),
        "tried_again": len(re.findall(r"^again ", log, re.M)),
        "locks_left_at_end": held_locks(other.root),
    } | {f"equal_{name}": equal(name) for name in TENSORS}


def _sha256_of_file(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def is_whole(tally: dict[str, Any]) -> bool:
    """Whether a disturbed sweep is what the local one is, and left nothing behind."""
    counts = {tally[name] for name in ("runs", "recorded", "ok", "equal_outputs", "equal_model")}
    left = [tally.get(name) for name in ("locks_left", "locks_left_at_end", "tasks_left", "said_done_twice")]
    ended = tally["disturbed"] != "head" or "first_driver_seconds" in tally
    return len(counts) == 1 and ended and not any(left) and tally["status"] == 0


def tally_markdown(suite: str, nodes: int, apart: bool, load: str, tallies: Sequence[dict[str, Any]]) -> str:
    """A row a disturbance."""
    how = "with a network address and files of its own each" if apart else "that share address and files"
    words = f"`{suite}` on {nodes} nodes of one core {how}; {load} while this was measured."
    head = ["Lost in the middle", "Runs", "Recorded", "Twice", "Tried again"]
    head += ["Equal logits", "Equal weights", "Locks left", "Local, s", "Ray, s"]
    rows = [
        [
            DISTURBANCES[tally["disturbed"]],
            *(str(tally[name]) for name in ("runs", "recorded")),
            str(len(tally["said_done_twice"])),
            *(str(tally[name]) for name in ("tried_again", "equal_outputs", "equal_model")),
            str(len(tally.get("locks_left", [])) + len(tally["locks_left_at_end"])),
            *(f"{tally[name]:.0f}" for name in ("local_seconds", "seconds")),
        ]
        for tally in tallies
    ]
    return f"{words}\n\n{pipe_table(head, rows)}"


def main() -> int:
    """Run the sweeps, print the tally, write the page's part. Gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", nargs="?", default="smoke", help="a suite's name or a TOML file")
    parser.add_argument("--disturb", choices=DISTURBANCES, nargs="+", default=["node"])
    parser.add_argument("--apart", action="store_true", help="an address and files of its own for each node")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--after", type=int, default=1, help="recorded runs before the disturbance")
    parser.add_argument("--seconds", type=float, default=3600, help="limit of each sweep")
    parser.add_argument("--out", type=Path, help="where all sweeps go (default: a temporary folder)")
    parser.add_argument("--page", type=Path, help="the page whose marked part is replaced")
    parser.add_argument(
        "--set", action="append", default=[], help="further options of `run`, such as --set=--seed=1"
    )
    asked = parser.parse_args()
    if asked.apart and (missing := namespaces.what_is_missing()):
        print(f"--apart {missing}", file=sys.stderr)
        return 2
    if "network" in asked.disturb and not asked.apart:
        print("--disturb network needs --apart: nodes at one address have no network to cut", file=sys.stderr)
        return 2
    os.environ.setdefault(
        "RAY_gcs_rpc_server_reconnect_timeout_s", "5"
    )  # else all wait a minute for a head that is gone
    before = machine_load()
    with contextlib.ExitStack() as stack:
        asked.out = (asked.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        asked.out.mkdir(parents=True, exist_ok=True)
        words = [asked.suite, *asked.set]
        if Path(asked.suite).is_file():  # where all sweeps see it
            words[0] = shutil.copy(asked.suite, asked.out)
        start = time.monotonic()
        local = Store(asked.out / "local")
        status = start_sweep([*words, "--out", str(local.root)], asked.out / "local.log").wait(asked.seconds)
        facts = {"local_status": status, "local_seconds": round(time.monotonic() - start, 1)}
        tallies = []
        for disturb in asked.disturb:
            store, log = Store(asked.out / disturb), asked.out / f"{disturb}.log"
            tally = facts | disturbed_sweep([*words, "--out", str(store.root)], store, log, disturb, asked)
            tally |= compare(local, store, log.read_text(errors="replace"))
            tallies.append(tally | {"whole": is_whole(tally)})
            print(json.dumps(tallies[-1]), file=sys.stderr)
    load = f"{before.cores} cores, load {before.load_average} to {machine_load().load_average}"
    told = {"suite": Path(asked.suite).stem, "nodes": asked.nodes, "apart": asked.apart}
    print(json.dumps(told | {"load": load, "sweeps": tallies}, indent=2))
    if asked.page is not None:
        write_part(asked.page, PART, tally_markdown(**told, load=load, tallies=tallies))
    return int(not all(tally["whole"] for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
