"""Where runs run, as the command line says it: a Ray cluster, one part of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench.errors import UsageError

if TYPE_CHECKING:
    from prunebench.runner.ray import Cluster
    from prunebench.runner.shard import Shard


def choose_cluster(
    address: str | None, cells_per_gpu: int, memory_gib: float | None, artifacts: str | None
) -> Cluster | None:
    """The cluster that is asked for; None for this machine. Raises UsageError for options of a cluster without one."""
    if address is None:
        for name, value in (("--cell-memory", memory_gib), ("--artifacts", artifacts)):
            if value is not None:
                raise UsageError(f"{name} is for a cluster: give --cluster ADDRESS too")
        return None
    from prunebench.runner.ray import Cluster

    return Cluster(address, cells_per_gpu, memory_gib, artifacts)


def choose_shard(text: str | None) -> Shard | None:
    """The part that is asked for; None for the whole plan."""
    if text is None:
        return None
    from prunebench.runner.shard import Shard

    return Shard.parse(text)
