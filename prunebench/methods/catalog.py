"""How methods are found by name: the modules of this folder, or a user's file."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

import prunebench.methods as package
from prunebench.errors import UsageError, unknown
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
    """The methods of a user's file; their version is the hash of the file."""
    if not path.is_file():
        raise UsageError(f"no method file {path}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    module = _import_file(path, f"prunebench_user_{digest}")
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


class _SourceLoader(SourceFileLoader):
    """Always compiles: bytecode kept from an earlier version of a file must not stand in for it."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _import_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_loader(name, _SourceLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _methods_in(module: ModuleType) -> Iterator[Method]:
    for value in vars(module).values():
        if isinstance(value, Criterion) and value.score.__module__ == module.__name__:
            yield prune_by(value)
        elif isinstance(value, Method):
            yield value


def resolve_method(name: str) -> Method:
    """The method called `name`, or the only one in the file `name`. Raises UsageError with a suggestion."""
    if name.endswith(".py"):
        found = file_methods(Path(name))
        if len(found) > 1:
            raise UsageError(f"{name} holds {', '.join(found)}: keep one method a file")
        return next(iter(found.values()))
    known = builtin_methods()
    if name not in known:
        raise unknown("method", name, known)
    return known[name]
