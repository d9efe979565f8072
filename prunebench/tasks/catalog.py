"""Task names: `family@parameter`, or `disent:PATH` for a folder of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from prunebench.errors import UsageError, unknown
from prunebench.tasks.base import Task
from prunebench.tasks.colored_digits import ColoredDigits
from prunebench.tasks.colored_mnist import ColoredMnist

SHARES = ("0.5pct", "1pct", "2pct", "5pct")
FAMILIES: dict[str, Callable[[float], Task]] = {
    "colored-digits": ColoredDigits,
    "colored-mnist": ColoredMnist,
}


def describe_families() -> list[str]:
    """Every task name that needs no path."""
    return [f"{family}@{share}" for family in FAMILIES for share in SHARES]


def resolve_task(name: str, data_root: Path | None = None) -> Task:
    """The task called `name`. Raises UsageError with a suggestion when there is none.

    The PATH of `disent:PATH` is looked for from here, then under `data_root`.
    """
    if name.startswith("disent:"):
        from prunebench.tasks.disent import open_disent

        return open_disent(name.removeprefix("disent:"), data_root)
    family, _, share = name.partition("@")
    if family not in FAMILIES:
        raise unknown("task", name, [*describe_families(), "disent:PATH"])
    if not share:
        raise UsageError(f"task {name!r} needs its share of bias-conflicting images: {family}@2pct")
    if share not in SHARES or not re.fullmatch(r"[0-9.]+pct", share):
        raise unknown("task", name, [f"{family}@{value}" for value in SHARES])
    return FAMILIES[family](float(share.removesuffix("pct")) / 100)
