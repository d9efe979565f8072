"""How methods are found by name: the modules of this folder, or a user's file."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import prunebench.methods as package
from prunebench.errors import UsageError, unknown
from prunebench.methods.files import digest_of, import_user_module
from prunebench.methods.prune import prune_by
from prunebench.registry import Criterion, Method


def builtin_methods() -> dict[str, Method]:
    """All methods of the package, by name. Raises UsageError if two share one."""
    found: dict[str, Method] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for entry in _methods_in(module):
            if found.setdefault(entry.name, entry) != entry:
                raise UsageError(f"two methods are called {entry.name!r}; the second is in {module.__name__}")
    return found


def file_methods(path: Path) -> dict[str, Method]:
    """The methods of a user's file or package; their version is the hash of it and of the helpers beside it."""
    if not path.is_file() and not is_package(path):
        raise UsageError(f"no method file {path}")
    digest = digest_of(path)
    module = import_user_module(path, f"prunebench_user_{digest}")
    known = list(builtin_methods().values())
    found: dict[str, Method] = {}
    for entry in _methods_in(module):
        if entry in known:
            continue
        if entry.name == "dense" or entry.dense:
            raise UsageError(f"{path}: `dense` is the baseline of every run; give your method another name")
        if entry.name in found:
            raise UsageError(f"{path}: two methods are called {entry.name!r}")
        found[entry.name] = dataclasses.replace(entry, version=f"file-{digest}")
    if not found:
        raise UsageError(
            f"{path}: no method in it; decorate a scoring function with @criterion or a class with @method"
        )
    return found


def is_package(path: Path) -> bool:
    """Whether a folder is a Python package, which may be a method as a file is."""
    return (path / "__init__.py").is_file()


def _methods_in(module: ModuleType) -> Iterator[Method]:
    for value in vars(module).values():
        if isinstance(value, Criterion):
            home = value.score.__module__
            if home == module.__name__ or home.startswith(f"{module.__name__}."):
                yield prune_by(value)
        elif isinstance(value, Method):
            yield value


def resolve_method(name: str) -> Method:
    """The method called `name`, or the only one in the file or package `name`. Raises UsageError with a suggestion."""
    known = builtin_methods()
    if name.endswith(".py") or (name not in known and is_package(Path(name))):
        found = file_methods(Path(name))
        if len(found) > 1:
            raise UsageError(f"{name} holds {', '.join(found)}: keep one method a file")
        return next(iter(found.values()))
    if name not in known:
        raise unknown("method", name, known)
    return known[name]
