"""The verbs `prunebench submission`: from results to a pull request, its verification, and the merge into the board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from prunebench.submission.report import VerificationReport

BOARD = Path("leaderboard/results")

submission_app = typer.Typer(
    name="submission",
    no_args_is_help=True,
    help="Hand a method's results in, verify what others hand in, merge it.",
)
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `pack` wrote.")]
DataOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time
    typer.Option("--data-root", envvar="PRUNEBENCH_DATA", help="Where data sets lie."),
]
BesideOption = Annotated[
    list[Path],
    typer.Option("--beside", help="Another submission of this method, whose seeds count too (repeatable)."),
]


@submission_app.command("pack")
def pack_(
    results: Annotated[Path, typer.Argument(help="The folder that `run` wrote.")],
    method: Annotated[
        str, typer.Option(help="Your method's file or package, or the name of a built-in one.")
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The folder to write (default: submissions/NAME)."),
    ] = None,
    card: Annotated[Path, typer.Option(help="The card; where there is none, one to fill in.")] = Path(
        "card.toml"
    ),
    task: Annotated[list[str], typer.Option(help="Only this task (repeatable).")] = [],  # noqa: B006
    predictions: Annotated[
        list[Path],
        typer.Option(help="Logits made elsewhere (safetensors; repeatable): a row without verified weights."),
    ] = [],  # noqa: B006
    data_root: DataOption = None,
) -> None:
    """Write a submission: runs, source, card, and hashes of logits and weights."""
    from prunebench.cli.console import console
    from prunebench.results.tracks import REFERENCE
    from prunebench.submission.pack import pack, pack_predictions

    folder = out or Path("submissions") / Path(method).stem
    if predictions:
        made = pack_predictions(predictions, results, method, folder, card, data_root)
    else:
        made = pack(results, method, folder, card, task)
    name = made.manifest.method
    beside = [] if predictions else [other for other in ("dense", REFERENCE) if made.has_runs_of(other)]
    console.print(
        f"{folder}: {name} {made.manifest.version}\n"
        f"next: prunebench submission verify {folder} --artifacts {results}\n"
        f"then: prunebench artifacts push ADDRESS --results {results} --method {name}"
        f"{''.join(f' --method {other}' for other in beside)}, and a pull request with {folder}",
        soft_wrap=True,
    )


@submission_app.command("verify")
def verify_(  # noqa: PLR0913
    folder: FolderArgument,
    board: Annotated[Path, typer.Option(help="The committed results to hold it against.")] = BOARD,
    artifacts: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Where its logits and weights are: an address, a folder of results, or `card`."),
    ] = None,
    retrain: Annotated[int, typer.Option(min=0, help="Train so many of its runs again; runs its code.")] = 0,
    draw_seed: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A public text that draws them, not known when it was submitted."),
    ] = None,
    fresh_draw: Annotated[
        bool,
        typer.Option(
            "--fresh-draw",
            help="Refuse to go without a fresh draw; one is made whenever PRUNEBENCH_SECRET or "
            "PRUNEBENCH_SECRET_FILE is set.",
        ),
    ] = False,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write report.json and comment.md into this folder."),
    ] = None,
    beside: BesideOption = [],  # noqa: B006
    data_root: DataOption = None,
) -> None:
    """Verify a submission in rising cost: consistent, re-evaluated (--artifacts), re-trained (--retrain)."""
    from prunebench.cli.console import console
    from prunebench.errors import UsageError
    from prunebench.submission.report import write_report
    from prunebench.submission.secret import MAKE, take_secret
    from prunebench.submission.verify import Depth, verify

    secret = take_secret()
    if fresh_draw and secret is None:
        raise UsageError(f"--fresh-draw wants a secret: {MAKE}")
    found, _ = verify(folder, board, Depth(artifacts, retrain, draw_seed, secret), beside, data_root)
    _tell(found)
    if report is not None:
        write_report(found, report)
        console.print(f"written: {report / 'report.json'}, {report / 'comment.md'}", soft_wrap=True)
    raise typer.Exit(int(not found.passed))


@submission_app.command("merge")
def merge_(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that `pack` wrote.")],
    into: Annotated[Path, typer.Option(help="Results in the committed form.")] = BOARD,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The report.json of `verify`, whose badge it gets (one DIR only)."),
    ] = None,
) -> None:
    """Add submissions to committed results; what is there with other numbers is shown and stays."""
    from prunebench.cli.console import console, errors
    from prunebench.errors import UsageError
    from prunebench.submission.merge import merge

    if report is not None and len(folders) != 1:
        raise UsageError("--report speaks of one submission: merge one DIR at a time")
    failed = 0
    for folder in folders:
        done = merge(folder, into, report, [other for other in folders if other != folder])
        failed += not done.done
        if done.refused is not None:
            _tell(done.refused)
            errors.print(f"not merged: {folder}", style="red", soft_wrap=True)
            continue
        for line in done.conflicts:
            errors.print(f"conflict: {line}", style="red", soft_wrap=True)
        if done.conflicts:
            errors.print(
                f"not merged: {folder}: these runs are there with other numbers", style="red", soft_wrap=True
            )
            continue
        console.print(
            f"{done.name}: {done.new} new runs, {done.same} as they were; {done.badge}", soft_wrap=True
        )
        for note in done.notes:
            console.print(f"  {note}", soft_wrap=True)
    if not failed:
        console.print("next: prunebench leaderboard --readme README.md")
    raise typer.Exit(int(bool(failed)))


@submission_app.command("withdraw")
def withdraw_(
    method: Annotated[str, typer.Argument(help="The method's name.")],
    reason: Annotated[str, typer.Option(help="Why, in one line: it stands in the board's history.")],
    version: Annotated[Optional[str], typer.Option(help="Its version, where there are several.")] = None,  # noqa: UP045
    into: Annotated[Path, typer.Option(help="Results in the committed form.")] = BOARD,
) -> None:
    """Take a method off the board; its runs stay, with a line of history."""
    from prunebench.cli.console import console
    from prunebench.submission.merge import withdraw

    console.print(withdraw(into, method, version, reason).words, soft_wrap=True)


@submission_app.command("commitment")
def commitment_() -> None:
    """Print the commitment of the secret: to be published before submissions are tested on its fresh draws."""
    from prunebench.cli.console import console
    from prunebench.errors import UsageError
    from prunebench.submission.secret import MAKE, take_secret

    secret = take_secret()
    if secret is None:
        raise UsageError(f"there is no secret: {MAKE}")
    console.print(secret.commitment)


def _tell(report: VerificationReport) -> None:
    """Print the findings of every stage, and what it comes to."""
    from prunebench.cli.console import console
    from prunebench.report.format import visible

    for stage in report.stages:
        console.print(
            f"{stage.badge}: {'passed' if stage.passed else 'failed'}", style="bold", soft_wrap=True
        )
        for finding in stage.findings:
            mark, colour = ("ok  ", "green") if finding.ok else ("FAIL", "red")
            console.print(f"  {mark} {visible(finding.what)}", style=colour, soft_wrap=True)
            if not finding.ok:
                console.print(f"       {visible(finding.why)}", soft_wrap=True)
        for note in stage.notes:
            console.print(f"  {visible(note)}", soft_wrap=True)
    console.print(
        f"{visible(report.method)} {visible(report.version)}: {report.badge or 'refused'}", soft_wrap=True
    )
