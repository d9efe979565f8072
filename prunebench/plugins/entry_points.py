"""Entry points of installed packages: methods, tasks, models and metrics that `pip install` brings.

A plain file may stand for a package (`plain`): its models and metrics are found here as theirs are.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunebench.errors import UsageError
from prunebench.plugins.files import digest_of
from prunebench.plugins.plain import file_of, load_plain, plain_names


def plugin_names(group: str) -> tuple[str, ...]:
    """The names in a group, such as `prunebench.methods`, in order; nothing is imported."""
    return tuple(sorted({each.name for each in entry_points(group=group)} | {*plain_names(group)}))


def load_plugin(group: str, name: str) -> Any:
    """What an entry point stands for. Raises UsageError with what went wrong."""
    plain = file_of(group, name)
    if plain is not None:
        return load_plain(plain, group, name)
    try:
        return _entry(group, name).load()
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"entry point {group}: {name} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def plugin_digest(group: str, name: str) -> str:
    """Twelve hex digits over all files of the package that an entry point is in."""
    plain = file_of(group, name)
    if plain is not None:
        return digest_of(plain)
    spec = find_spec(_entry(group, name).module.partition(".")[0])
    if spec is None or spec.origin is None:
        raise UsageError(f"entry point {group}: {name}: the package has no files")
    origin = Path(spec.origin)
    return digest_of(origin.parent if origin.name == "__init__.py" else origin)


def _entry(group: str, name: str) -> EntryPoint:
    (first, *_) = entry_points(group=group, name=name)
    return first
