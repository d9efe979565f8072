"""One `prunebench profile`: measure with a line of progress, write, print."""

from __future__ import annotations

import contextlib
from dataclasses import replace
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
    with console.status("starting") if console.is_terminal else contextlib.nullcontext() as status:

        def tell(text: str) -> None:
            if status is not None:
                status.update(text)
            else:
                console.print(text, soft_wrap=True)

        profile = Profiler(settings, tell).run()
    paths = write_profile(profile, settings.out)
    for table in terminal_tables(profile):
        console.print(table)
    for line in summary(profile):
        console.print(line, soft_wrap=True)
    console.print(f"page     {paths[0].resolve().as_uri()}\nfiles    {settings.out}", soft_wrap=True)
    return INTERRUPTED if profile.interrupted else 0
