"""The place of runs, as the command line says it: a Ray cluster, one part of a plan, a shared GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from prunebench.errors import UsageError

if TYPE_CHECKING:
    from prunebench.runner.ray import Cluster
    from prunebench.runner.shard import Shard


ShardOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this at run time
    typer.Option(metavar="I/N", help="Only part I of N; `results import` merges the parts."),
]
ClusterOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="ADDRESS|auto", help="Run on a Ray cluster (needs prunebench[ray])."),
]
CellsOption = Annotated[int, typer.Option(min=1, help="Runs that share a GPU; latencies are then left out.")]
MemoryOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(min=0.1, help="Of a cluster: GiB that a run needs (default: estimated from its data)."),
]
ArtifactsOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="ADDRESS", help="Of a cluster: machines bring logits and weights there themselves."),
]


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
