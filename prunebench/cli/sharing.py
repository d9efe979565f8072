"""The verbs `prunebench results` and `prunebench artifacts`: records into git, logits and weights beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prunebench.results.artifacts import Transfer
    from prunebench.results.convert import Converted

COMMITTED = Path("leaderboard/results")

results_app = typer.Typer(
    name="results",
    no_args_is_help=True,
    help="Records into the committed form and back, and whether it is sound.",
)

artifacts_app = typer.Typer(
    name="artifacts",
    no_args_is_help=True,
    help="Logits and weights of runs, to an address and from it.",
)

ADDRESS_HELP = "A folder, http(s):// (pull only), s3://, hf:// or what else fsspec opens."
AddressArgument = Annotated[str, typer.Argument(metavar="ADDRESS", help=ADDRESS_HELP)]
TaskOption = Annotated[list[str], typer.Option("--task", help="Only this task (repeatable).")]
MethodOption = Annotated[list[str], typer.Option("--method", help="Only this method (repeatable).")]


@results_app.command("export")
def export(
    source: Annotated[
        Path, typer.Argument(help="The folder that `run` wrote, or one in the committed form.")
    ],
    destination: Annotated[Path, typer.Argument(help="Where the committed form goes.")] = COMMITTED,
    task: TaskOption = [],  # noqa: B006
    method: MethodOption = [],  # noqa: B006
    replace: Annotated[
        bool, typer.Option("--replace", help="Also runs that stand there with another record.")
    ] = False,
) -> None:
    """Write runs into the committed form: one file a task and method. What stands there stays."""
    from prunebench.results.convert import export_results

    raise typer.Exit(_tell(export_results(source, destination, task, method, replace=replace), destination))


@results_app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="Results in the committed form, or a folder that `run` wrote (a shard's).")
    ],
    destination: Annotated[Path, typer.Argument(help="The folder of the store: a folder a run.")],
    task: TaskOption = [],  # noqa: B006
    method: MethodOption = [],  # noqa: B006
) -> None:
    """Write results into a store, which `run` resumes: those of another store, or of the committed form once verified.

    Nothing of the committed form is written if a line of it is wrong.
    """
    from prunebench.results.convert import import_results
    from prunebench.results.merge import is_store, merge_stores

    bring = merge_stores if is_store(source) else import_results
    raise typer.Exit(_tell(bring(source, destination, task, method), destination))


@results_app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="Results in the committed form, or a store.")] = COMMITTED,
) -> None:
    """Whether every line is sound: form, ids, hashes, ranges and relations of the fields."""
    from prunebench.cli.progress import print_findings
    from prunebench.submission import check_records

    raise typer.Exit(print_findings(folder, check_records(folder), faults_only=True))


@artifacts_app.command("push")
def push_(
    address: AddressArgument,
    results: Annotated[Path, typer.Option(help="The folder whose runs stored them.")],
    task: TaskOption = [],  # noqa: B006
    method: MethodOption = [],  # noqa: B006
) -> None:
    """Push logits and weights of finished runs. What is there already is not sent again."""
    from prunebench.results.artifacts import push

    raise typer.Exit(_move(push(results, address, task, method), "pushed"))


@artifacts_app.command("pull")
def pull_(
    address: AddressArgument,
    results: Annotated[Path, typer.Option(help="The folder whose runs they are of.")] = COMMITTED,
    task: TaskOption = [],  # noqa: B006
    method: MethodOption = [],  # noqa: B006
) -> None:
    """Pull logits and weights into the cache: `rescore`, `analyze`, `retime` and `compare` then work on a clone."""
    from prunebench.results.artifacts import pull

    raise typer.Exit(_move(pull(results, address, task, method), "pulled"))


def _move(transfers: Iterator[Transfer], verb: str) -> int:
    """Show transfers as they are done, then what could not be moved. Gives the exit status."""
    from rich.progress import track

    from prunebench.cli.console import console, errors

    moved: list[int] = []
    there, wrong = 0, []
    for transfer in track(transfers, verb, console=console, disable=not console.is_terminal):
        if transfer.problem is not None:
            wrong.append(transfer)
        elif transfer.moved:
            moved.append(transfer.bytes)
        else:
            there += 1
    for transfer in wrong:
        label = f"{transfer.kind} of {transfer.run_id} {transfer.label}"
        errors.print(f"not {verb}: {label}: {transfer.problem}", style="yellow", soft_wrap=True)
    console.print(
        f"{len(moved)} objects {verb} ({sum(moved) / 1e6:.1f} MB), {there} were there"
        + (f", {len(wrong)} not {verb}: the same command tries them again" if wrong else ""),
        soft_wrap=True,
    )
    return int(bool(wrong))


def _tell(done: Converted, destination: Path) -> int:
    """Say what was converted. Gives the exit status: 1 where a record could not be read."""
    from prunebench.cli.console import console, errors

    for entry in done.left_out:
        errors.print(f"left out: {entry.reason}", style="red", soft_wrap=True)
    if done.kept:
        some = ", ".join(done.kept[:5]) + ", ..." * (len(done.kept) > 5)
        errors.print(f"kept as they are in {destination}, though they differ: {some}", soft_wrap=True)
    console.print(
        f"{done.new} new, {done.replaced} replaced, {done.same} as they were, {len(done.kept)} kept; "
        f"{len(done.files)} files written in {destination}",
        soft_wrap=True,
    )
    return int(bool(done.left_out))
