"""Tasks of users: classes in a file of their own, or of an installed package.

Their code counts as data: its hash is part of the fingerprint, so that numbers of an edited file are not taken for new.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from prunebench.errors import UsageError, unknown
from prunebench.plugins.entry_points import load_plugin, plugin_digest
from prunebench.plugins.files import digest_of, import_user_module, place_and_name
from prunebench.results.spec import hash_of
from prunebench.tasks.base import Task
from prunebench.tasks.registry import FAMILIES, GROUP


def open_file(name: str, _: str, data_root: Path | None) -> Task:
    """The task of `my_task.py`, or of `my_task.py:CLASS`. Raises UsageError where there is none, or more than one."""
    place, wanted = place_and_name(name)
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"no task file {path}")
    digest = digest_of(path)
    module = import_user_module(path, f"prunebench_task_{digest}")
    found = {
        key: value
        for key, value in vars(module).items()
        if _is_task(value) and value.__module__ == module.__name__
    }
    if wanted and wanted not in found:
        raise unknown(f"task in {path}", wanted, found)
    if len(found) != 1 and not wanted:
        held = f"holds {', '.join(found)}: name one, {path}:CLASS" if found else "no subclass of Task in it"
        raise UsageError(f"{path}: {held}")
    return _made(found[wanted or next(iter(found))], str(path), digest)


def open_plugin(name: str, _: str, data_root: Path | None) -> Task:
    """The task that an installed package offers under this name."""
    found = load_plugin(GROUP, name)
    if not _is_task(found):
        raise UsageError(f"entry point {GROUP}: {name} is no subclass of prunebench.tasks.Task")
    return _made(found, name, plugin_digest(GROUP, name))


def _is_task(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Task) and not inspect.isabstract(value)


def _made(kind: type[Task], place: str, digest: str) -> Task:
    """The task, its fingerprint that of its data and its code."""
    try:
        task = kind()
    except TypeError as error:
        raise UsageError(f"{place}: {kind.__name__} must be made without arguments: {error}") from error
    if any(task.name.partition(family.separator)[0] == family.name for family in FAMILIES):
        raise UsageError(f"{place}: {task.name!r} is a task of the package; give yours another name")
    own = task.fingerprint

    def fingerprint(data_root: Path | None) -> str:
        return hash_of({"data": own(data_root), "code": digest})

    task.fingerprint = fingerprint  # type: ignore[method-assign]
    return task
