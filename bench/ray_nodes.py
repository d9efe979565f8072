"""Ray clusters whose nodes all run on this machine, and that can lose a node or their head.

Every node has one core. `together` they share the machine's address and files. `apart` each is a machine of namespaces,
and commands run on one more, without a core.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import namespaces

OBJECT_STORE_BYTES = 100_000_000
NODE_BYTES = 8 << 30
PORT = 6379
AGENT_PORTS = (
    "metrics-export-port",
    "runtime-env-agent-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
)
"""Ports to name, as a node else waits 15 s for each agent to say its own, too few on a busy machine."""
STARTED = "Ray runtime started"
PATIENCE = 180.0
"""Seconds for all nodes to start."""


class Cluster(Protocol):
    """A cluster by its address."""

    address: str

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs a command on the cluster."""

    def lose_node(self, *, cut: bool) -> None:
        """Kill the last node, or cut its network."""

    def lose_head(self) -> None:
        """Kill the first node, which holds the others together."""


@contextlib.contextmanager
def ray_cluster(nodes: int, folder: Path, *, apart: bool) -> Iterator[Cluster]:
    """A cluster that ends with the block; apart, only its commands see the folder, and its logs are there."""
    with _apart(nodes, folder) if apart else _together(nodes) as cluster:
        yield cluster


# Together


@contextlib.contextmanager
def _together(nodes: int) -> Iterator[Cluster]:
    from ray.cluster_utils import Cluster as RayCluster

    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "memory": NODE_BYTES}
    cluster = RayCluster(
        initialize_head=True, head_node_args={**node, **_free_ports(), "include_dashboard": False}
    )
    try:
        for _ in range(nodes - 1):
            cluster.add_node(wait=False, **node, **_free_ports())
        cluster.wait_for_nodes(timeout=PATIENCE)
        yield _Together(cluster)
    finally:
        cluster.shutdown()


class _Together:
    def __init__(self, cluster: Any) -> None:
        self._cluster, self.address = cluster, cluster.address

    def inside(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def lose_node(self, *, cut: bool) -> None:
        assert not cut, "nodes at one address have no network to cut"
        self._cluster.remove_node(self._cluster.list_all_nodes()[-1], allow_graceful=False)

    def lose_head(self) -> None:
        self._cluster.shutdown()  # and all others, as Ray ends no head alone


def _free_ports() -> dict[str, int]:
    names = [name.replace("dashboard-agent-grpc", "metrics-agent").replace("-", "_") for name in AGENT_PORTS]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets)}


# Apart


@contextlib.contextmanager
def _apart(nodes: int, folder: Path) -> Iterator[Cluster]:
    with namespaces.network() as network:
        first = ("--head", f"--port={PORT}", "--include-dashboard=false", "--disable-usage-stats")
        head = _start_ray(network, folder, *first)
        _wait_for_ray([head], folder)
        address = f"--address={head.address}:{PORT}"
        others = [_start_ray(network, folder, address) for _ in range(nodes - 1)]
        mine = _start_ray(network, folder, address, "--num-cpus=0", sees=folder)
        _wait_for_ray([*others, mine], folder)
        yield _Apart([head, *others], mine)


class _Apart:
    def __init__(self, nodes: Sequence[namespaces.Machine], mine: namespaces.Machine) -> None:
        self._nodes, self._mine = nodes, mine
        self.address = f"{nodes[0].address}:{PORT}"

    def inside(self, command: Sequence[str]) -> list[str]:
        return self._mine.inside(command)

    def lose_node(self, *, cut: bool) -> None:
        if cut:
            self._nodes[-1].cut()
        else:
            self._nodes[-1].kill()

    def lose_head(self) -> None:
        self._nodes[0].kill()


def _start_ray(
    network: namespaces.Network, folder: Path, *options: str, sees: Path | None = None
) -> namespaces.Machine:
    """A machine on which Ray starts: with one core, unless the options say otherwise."""
    words = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"),
        *(f"--object-store-memory={OBJECT_STORE_BYTES}", f"--memory={NODE_BYTES}"),
        f"--node-ip-address={network.next_address}",
        *(f"--{name}={PORT + 1 + number}" for number, name in enumerate(AGENT_PORTS)),
        *options,
    ]
    log = folder / f"{network.next_name}.log"
    log.unlink(missing_ok=True)
    return network.add(words, log, sees=sees, hidden=folder)


def _wait_for_ray(machines: Sequence[namespaces.Machine], folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    for machine in machines:
        while STARTED not in (said := (folder / f"{machine.name}.log").read_text(errors="replace")):
            if time.monotonic() > end or machine.process.poll() is not None:
                raise RuntimeError(f"no Ray on {machine.name}: {said[-1000:]}")
            time.sleep(0.1)
