"""Methods as a plan knows them: built-in ones themselves, those of users' files by what they declare.

A user's file is imported in a process of its own: what it does at import, say patching a clock, happens there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunebench.errors import PruneBenchError, UsageError
from prunebench.methods.api import Method, Procedure
from prunebench.methods.discovery import (
    GROUP,
    SHUFFLED,
    all_names,
    builtin_names,
    digest_of,
    is_package,
    place_and_name,
    resolve_method,
    source_files,
)
from prunebench.plugins.entry_points import plugin_digest, plugin_names
from prunebench.runner.apart import Request, ask, can_run_apart, jail_of

DESCRIBE_SECONDS = 300.0
"""That an import may take."""


def place_of(name: str) -> tuple[Path, str]:
    """The file or package of a user's method, or of the base of its shuffled control, and its own name if given."""
    place, own = place_and_name(name.removeprefix(SHUFFLED))
    return Path(place), own


def source_of(name: str) -> Path | None:
    """The file or package of a user's method, its links followed; None of a built-in or installed method."""
    path = place_of(name)[0]
    package = is_package(path) and str(path) not in (*builtin_names(), *plugin_names(GROUP))
    return path.resolve() if path.suffix == ".py" or package else None


def is_users(name: str) -> bool:
    """Whether a method, or the base of its shuffled control, is a user's: a file, folder or installed package."""
    return source_of(name) is not None or _is_installed(place_of(name)[0])


def _is_installed(place: Path) -> bool:
    """Whether a method is one that an installed package offers by an entry point."""
    return str(place) not in builtin_names() and str(place) in plugin_names(GROUP)


def absolute(name: str) -> str:
    """The name of a method wherever the process that imports it stands: of a user's file, by its whole path."""
    path, own = source_of(name), place_of(name)[1]
    if path is None:
        return name
    return f"{SHUFFLED if name.startswith(SHUFFLED) else ''}{path}{own and f':{own}'}"


def files_of(name: str) -> list[str]:
    """What a user's method may read of its folder: the file and its helpers, or the package."""
    path = source_of(name)
    if path is None:
        return []
    return [str(path)] if path.is_dir() else [str(file) for file in source_files(path)]


def find_names(name: str, *, sandbox: bool = False) -> list[str]:
    """The names of all methods of a user's file, each to be found; of all else the name itself. Raises UsageError."""
    path, own = place_of(name)
    if own or source_of(name) is None:
        return [name]
    if not can_run_apart():
        return all_names(name)
    found = _ask(absolute(name), _state_of(path), sandbox, "names")["names"]
    return [name] if len(found) == 1 else [f"{name}:{each}" for each in found]


def _state_of(path: Path) -> str:
    """The hash of a user's method as it is now. Raises UsageError where there is none."""
    if _is_installed(path):
        return plugin_digest(GROUP, str(path))
    if not path.is_file() and not is_package(path):
        raise UsageError(f"no method file {path}")
    return digest_of(path)


def find_method(name: str, *, sandbox: bool = False) -> Method:
    """The method called `name`; of a user's file, one that says what it declares. Raises UsageError."""
    if not is_users(name) or not can_run_apart():
        return resolve_method(name)
    asked = functools.partial(_ask, absolute(name), _state_of(place_of(name)[0]), sandbox, "describe")
    declared = asked(None)
    facts = declared["facts"]
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in facts.items()
        if key not in ("settings", "choices")
    }
    choices = {key: tuple(values) for key, values in facts["choices"].items()}

    def build(**params: Any) -> Procedure:
        if params != declared["params"]:
            asked(json.dumps(params))
        return _Elsewhere(name)

    def relevant(settings: Mapping[str, Any]) -> Mapping[str, Any]:
        same = dict(settings) == facts["settings"]
        return declared["params"] if same else asked(json.dumps(dict(settings)))["params"]

    return Method(**fields, settings=facts["settings"], choices=choices, build=build, relevant=relevant)


@dataclasses.dataclass(frozen=True)
class _Elsewhere:
    """A procedure that runs in a process of its own."""

    name: str

    def fit(self, *_: Any) -> Any:
        raise PruneBenchError(
            f"{self.name} is a user's file: it is run by `prunebench run`, in a process of its own"
        )


@functools.cache
def _ask(name: str, digest: str, sandbox: bool, kind: str, changes: str | None = None) -> dict[str, Any]:
    """What the file declares with changed settings, or what it holds; asked once for each state of the file."""
    files = files_of(name)
    message = {
        "kind": kind,
        "method": name,
        "method_files": files,
        "changes": None if changes is None else json.loads(changes),
        "jail": jail_of(files, sandbox=sandbox),
    }
    return ask(Request(message, timeout=DESCRIBE_SECONDS)).message
