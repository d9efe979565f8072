"""The command line: verbs, no logic. Heavy libraries are imported inside the verbs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    name="prunebench",
    help="What a pruned vision model costs its minorities, and what it really gains in speed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OutOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time
    typer.Option("--out", help="Results folder (default: results/SUITE)."),
]
DataOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--data-root", envvar="PRUNEBENCH_DATA", help="Where data sets lie."),
]


@app.command()
def run(  # noqa: PLR0913
    suite: Annotated[str, typer.Argument(help="A suite's name (see `prunebench ls suites`) or a TOML file.")],
    out: OutOption = None,
    data_root: DataOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Processes (default: one a core, or one a GPU; 0: this process)."),
    ] = None,
    task: Annotated[list[str], typer.Option(help="Run these tasks instead of the suite's.")] = [],  # noqa: B006
    method: Annotated[
        list[str],
        typer.Option(help="These methods instead of the suite's: names, or your own my_method.py."),
    ] = [],  # noqa: B006
    sparsity: Annotated[list[float], typer.Option(help="These sparsities (share of zeros).")] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="These seeds.")] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Train, prune, measure and rank. The same command again resumes."""
    from prunebench.api import make_plan
    from prunebench.console import print_plan, run_with_progress
    from prunebench.suite import load_suite

    chosen = load_suite(suite).narrowed(tasks=task, methods=method, sparsities=sparsity, seeds=seed)
    plan = make_plan(chosen, out=out, data_root=data_root, device=device)
    print_plan(plan, every_cell=dry_run)
    if not dry_run:
        raise typer.Exit(run_with_progress(plan, workers))


@app.command("ls")
def list_things(
    what: Annotated[str, typer.Argument(help="tasks, methods, suites or runs")],
    results: Annotated[Path, typer.Option(help="For runs: the results folder.")] = Path(
        "leaderboard/results"
    ),
    data_root: DataOption = None,
) -> None:
    """List tasks (with their group tables), methods, suites or runs."""
    from prunebench.errors import unknown
    from prunebench.listings import list_methods, list_runs, list_suites, list_tasks

    verbs = {
        "tasks": lambda: list_tasks(data_root),
        "methods": list_methods,
        "suites": list_suites,
        "runs": lambda: list_runs(results),
    }
    if what not in verbs:
        raise unknown("listing", what, verbs)
    verbs[what]()


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(help="A run's id, or the beginning of it.")],
    results: Annotated[Path, typer.Option(help="The results folder.")] = Path("leaderboard/results"),
) -> None:
    """Show one run: settings, groups, metrics, cost, traceback."""
    from prunebench.listings import show_run

    show_run(run_id, results)


@app.command()
def leaderboard(
    results: Annotated[
        list[Path],
        typer.Option(help="Results folders (repeatable)."),
    ] = [Path("leaderboard/results")],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Where the board goes.")] = Path("leaderboard"),
    readme: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also refill the marked parts of this file."),
    ] = None,
) -> None:
    """Write the board (README.md and site/index.html) from records alone."""
    from prunebench.console import write_leaderboard

    raise typer.Exit(write_leaderboard(results, out, readme))


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A method file (my_method.py), or a folder of results.")],
) -> None:
    """Run the contract suite on a method file, or validate records."""
    from prunebench.console import print_findings
    from prunebench.submission import check_path

    raise typer.Exit(print_findings(path, check_path(path)))


@app.command()
def doctor(data_root: DataOption = None) -> None:
    """Tell what this machine has: versions, device, precision, data."""
    from prunebench.console import print_environment

    print_environment(data_root)


def main() -> None:
    """Entry point: 0 done, 1 some cell failed, 2 usage error, 130 interrupted."""
    from prunebench.errors import PruneBenchError, UsageError

    try:
        app()
    except PruneBenchError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        typer.secho("stopped; run the same command again to resume", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
