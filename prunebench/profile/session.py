"""One `prunebench profile`: measure with a line of progress, write, print."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prunebench.errors import UsageError
from prunebench.profile.report import summary, terminal_tables, write_profile
from prunebench.profile.run import Profiler
from prunebench.profile.settings import ProfileSettings

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


def profile_machine(settings: ProfileSettings, console: Console) -> int:
    """Profile, write the files and print the tables. Gives the exit status; 130 if it was stopped early."""
    if settings.device == "auto":
        settings = replace(settings, device="cuda" if torch.cuda.is_available() else "cpu")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: torch sees no GPU here; leave the option out to profile the CPU paths"
        )
    profiler = Profiler(settings)
    check_folder(settings.out)
    with console.status("starting") if console.is_terminal else contextlib.nullcontext() as status:

        def tell(text: str) -> None:
            if status is not None:
                status.update(text)
            else:
                console.print(text, soft_wrap=True)

        profiler.tell = tell
        profile = profiler.run()
    if profile.interrupted and not (profile.layers or profile.networks):
        console.print(
            f"stopped before anything was measured; {settings.out} is left as it was", soft_wrap=True
        )
        return INTERRUPTED
    paths = write_profile(profile, settings.out)
    for table in terminal_tables(profile):
        console.print(table)
    for line in summary(profile):
        console.print(line, soft_wrap=True)
    console.print(f"page     {paths[0].resolve().as_uri()}\nfiles    {settings.out}", soft_wrap=True)
    return INTERRUPTED if profile.interrupted else 0


def check_folder(out: Path) -> None:
    """Make the folder and try a write, before minutes are spent on measuring. Raises UsageError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot write there ({error.strerror or error}); name another folder"
        ) from error
