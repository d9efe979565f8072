"""Errors that a user can act on. Each message names the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneBenchError(Exception):
    """Something the user can put right; the command line prints the message alone."""


class UsageError(PruneBenchError):
    """A wrong name, option or value (exit status 2)."""


class DataError(PruneBenchError):
    """Data that is missing or damaged: which file, and what to do."""


class StoreError(PruneBenchError):
    """A record that cannot be read or written: which path, and why."""


class SupervisionError(PruneBenchError):
    """A method touched what it did not declare."""


class NewerSchemaError(StoreError):
    """A record that a newer PruneBench wrote: refused, never overwritten."""


class MetricError(PruneBenchError, ValueError):
    """An argument of a metric has the wrong shape or values. The message begins with the argument's name."""


class MaskError(PruneBenchError):
    """A mask that misses the asked count, empties a layer or did not hold."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for an unknown name, with the nearest known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
    return UsageError(f"unknown {kind} {name!r}: {hint}")
