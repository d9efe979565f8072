"""A sweep on a Ray cluster whose nodes all run on this machine, disturbed in the middle, beside the same sweep without.

    uv run python bench/cluster.py [SUITE] [--disturb node|driver|head|none] [--nodes 3]

Needs the extra `ray`. Every node is a Ray node of its own (raylet, object store, workers) with one core. Once runs are
finished, a node is killed; or the command that drives the sweep is, and the same command goes on; or the whole cluster
with its head is, and the same command goes on at a new one. Prints a tally as JSON; exit status 0 if every run is
recorded once, ok, with the logits of the local run.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prunebench.results.objects import sha256_of
from prunebench.results.store import Store

OBJECT_STORE_BYTES = 100_000_000
DISTURBANCES = ("node", "driver", "head", "none")
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # a driver whose head is gone ends then


@contextlib.contextmanager
def ray_cluster(nodes: int) -> Iterator[Any]:
    """Ray nodes of one core each; the first is the head. They end with the block."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "memory": 8 << 30}
    head = {**node, **agent_ports(), "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(wait=False, **node, **agent_ports())
        cluster.wait_for_nodes(timeout=180)
        yield cluster
    finally:
        cluster.shutdown()


def agent_ports() -> dict[str, int]:
    """Free ports for the agents of a node, which it then does not wait for: it gives them 15 s, too few when busy."""
    names = (
        "metrics_agent_port",
        "metrics_export_port",
        "runtime_env_agent_port",
        "dashboard_agent_listen_port",
    )
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets)}


def start_sweep(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """`prunebench run` with these words, in a process group of its own; what it says goes into the log."""
    command = [sys.executable, "-m", "prunebench", "run", *words]
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)


def end_sweep(sweep: subprocess.Popen[bytes]) -> int:
    """`kill -9` of a sweep's process group, if it is still there; gives its exit status."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(sweep.pid, signal.SIGKILL)
    return sweep.wait()


def wait_for_records(store: Store, count: int, sweep: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait until a sweep has recorded so many runs; gives how many there are. Raises RuntimeError if it ends before."""
    end = time.monotonic() + seconds
    while (found := len(list(store.root.glob("runs/*/record.json")))) < count:
        if sweep.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{found} of {count} runs after the sweep ended with {sweep.poll()}")
        time.sleep(0.05)
    return found


def disturbed_sweep(
    words: Sequence[str], store: Store, log: Path, disturb: str, nodes: int, after: int, seconds: float
) -> dict[str, Any]:
    """Run a sweep on a cluster, disturb it once `after` runs are recorded, and bring it to its end."""
    with contextlib.ExitStack() as stack:
        start = time.monotonic()
        cluster = stack.enter_context(ray_cluster(nodes))
        facts: dict[str, Any] = {"cluster_start_seconds": round(time.monotonic() - start, 1)}
        start = time.monotonic()
        sweep = start_sweep([*words, "--cluster", cluster.address], log)
        stack.callback(end_sweep, sweep)
        if disturb != "none":
            facts["recorded_before"] = wait_for_records(store, after, sweep, seconds)
        start = time.monotonic()
        if disturb == "node":
            cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        elif disturb in ("driver", "head"):
            if disturb == "head":
                cluster.shutdown()
                cluster = stack.enter_context(ray_cluster(nodes))
            facts["first_driver_status"] = end_sweep(sweep)
            facts["recorded_at_restart"] = len(list(store.root.glob("runs/*/record.json")))
            sweep = start_sweep([*words, "--cluster", cluster.address], log)
            stack.callback(end_sweep, sweep)
        facts["status"] = sweep.wait(timeout=seconds)
        facts["seconds_after"] = round(time.monotonic() - start, 1)
    return facts


def compare(local: Store, other: Store, log: str) -> dict[str, Any]:
    """The tally: runs of both stores, logits that differ, and how often the driver said that a run was done."""
    mine, theirs = ({record.run_id: record for record in store.records()[0]} for store in (local, other))
    done = collections.Counter(re.findall(r"^\[\d+/\d+\] \w+ (.*?)(?:: |; took)", log, re.M))
    stored = [record for record in theirs.values() if other.find_tensors(record, "outputs")]
    return {
        "runs": len(mine),
        "recorded": len(theirs),
        "ok": sum(record.status == "ok" for record in theirs.values()),
        "missing": sorted(set(mine) - set(theirs)),
        "said_done_twice": sorted(label for label, times in done.items() if times > 1),
        "tried_again": len(re.findall(r"^again ", log, re.M)),
        "equal_logits": sum(
            run_id in mine and record.outputs_sha256 == mine[run_id].outputs_sha256
            for run_id, record in theirs.items()
        ),
        "whole_outputs": sum(
            sha256_of(other.folder(record.run_id) / "outputs.safetensors") == record.outputs_sha256
            for record in stored
        ),
        "dense_weights": sum((other.folder(run_id) / "model.safetensors").is_file() for run_id in theirs),
    }


def main() -> int:
    """Run both sweeps and print the tally. Gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", nargs="?", default="smoke", help="a suite's name or a TOML file")
    parser.add_argument("--disturb", choices=DISTURBANCES, default="node")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--after", type=int, default=1, help="recorded runs before the disturbance")
    parser.add_argument("--seconds", type=float, default=3600, help="limit of each sweep")
    parser.add_argument("--out", type=Path, help="where both sweeps go (default: a temporary folder)")
    parser.add_argument(
        "--set", action="append", default=[], help="further options of `run`, such as --set=--seed=1"
    )
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = asked.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        out.mkdir(parents=True, exist_ok=True)
        words = [asked.suite, *asked.set]
        start = time.monotonic()
        status = start_sweep([*words, "--out", str(out / "local")], out / "local.log").wait(asked.seconds)
        tally: dict[str, Any] = {"suite": asked.suite, "nodes": asked.nodes, "disturbed": asked.disturb}
        tally |= {"local_status": status, "local_seconds": round(time.monotonic() - start, 1)}
        store, log = Store(out / "cluster"), out / "cluster.log"
        tally |= disturbed_sweep(
            [*words, "--out", str(store.root)],
            store,
            log,
            asked.disturb,
            asked.nodes,
            asked.after,
            asked.seconds,
        )
        tally |= compare(Store(out / "local"), store, log.read_text(errors="replace"))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    tally["cpu_seconds"] = round(usage.ru_utime + usage.ru_stime, 1)
    print(json.dumps(tally, indent=2))
    whole = (
        tally["runs"] == tally["recorded"] == tally["ok"] == tally["equal_logits"] == tally["whole_outputs"]
    )
    return int(not (whole and tally["status"] == 0 and not tally["missing"] and not tally["said_done_twice"]))


if __name__ == "__main__":
    sys.exit(main())
