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
    SHUFFLED,
    builtin_methods,
    digest_of,
    is_package,
    resolve_method,
    source_files,
)
from prunebench.runner.apart import Request, can_run_apart, fork_server, jail_of

DESCRIBE_SECONDS = 300.0
"""That an import may take."""


def is_users(name: str) -> bool:
    """Whether a method, or the base of its shuffled control, is a file or package of a user."""
    path = Path(name.removeprefix(SHUFFLED))
    return path.suffix == ".py" or (str(path) not in builtin_methods() and is_package(path))


def absolute(name: str) -> str:
    """The name of a user's method wherever the process that imports it stands."""
    shuffled = SHUFFLED if name.startswith(SHUFFLED) else ""
    return f"{shuffled}{Path(name.removeprefix(SHUFFLED)).resolve()}"


def files_of(name: str) -> list[str]:
    """What a user's method may read of its folder: the file and its helpers, or the package."""
    path = Path(name.removeprefix(SHUFFLED)).resolve()
    return [str(path)] if path.is_dir() else [str(file) for file in source_files(path)]


def find_method(name: str, *, sandbox: bool = False) -> Method:
    """The method called `name`; of a user's file, one that says what it declares. Raises UsageError."""
    if not is_users(name) or not can_run_apart():
        return resolve_method(name)
    path = Path(name.removeprefix(SHUFFLED))
    if not path.is_file() and not is_package(path):
        raise UsageError(f"no method file {path}")
    asked = functools.partial(_ask, absolute(name), digest_of(path), sandbox)
    facts = asked(None)["facts"]
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in facts.items()
        if key != "settings"
    }

    def build(**params: Any) -> Procedure:
        asked(json.dumps(params))
        return _Elsewhere(name)

    def relevant(settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return asked(json.dumps(dict(settings)))["params"]

    return Method(**fields, settings=facts["settings"], build=build, relevant=relevant)


@dataclasses.dataclass(frozen=True)
class _Elsewhere:
    """A procedure that runs in a process of its own."""

    name: str

    def fit(self, *_: Any) -> Any:
        raise PruneBenchError(
            f"{self.name} is a user's file: it is run by `prunebench run`, in a process of its own"
        )


@functools.cache
def _ask(name: str, digest: str, sandbox: bool, changes: str | None) -> dict[str, Any]:
    """What the file declares with changed settings; asked once for each state of the file."""
    files = files_of(name)
    message = {
        "kind": "describe",
        "method": name,
        "method_files": files,
        "changes": None if changes is None else json.loads(changes),
        "jail": jail_of(files, sandbox=sandbox),
    }
    return fork_server().ask(Request(message, timeout=DESCRIBE_SECONDS)).message
