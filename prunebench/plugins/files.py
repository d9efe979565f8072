"""Files and packages of users, imported with the helpers beside them, and the hash of all of it."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from prunebench.errors import UsageError

NO_CODE = ("__pycache__",)
FORMER = {
    "prunebench.experiment": ("prunebench.methods.experiment",),
    "prunebench.registry": ("prunebench.methods.criteria", "prunebench.methods.api"),
    "prunebench.pruning.scores": ("prunebench.methods.criteria",),
    "prunebench.pruning.allocation": ("prunebench.pruning.distribution",),
    "prunebench.training.objectives": ("prunebench.training.losses",),
    "prunebench.training.data": ("prunebench.data.images",),
    "prunebench.spec": ("prunebench.results.spec",),
}
"""Where modules that method files of version 0.1.0 import are now: such files work as they are."""


class _SourceLoader(SourceFileLoader):
    """Always compiles: bytecode kept from an earlier version of a file must not stand in for it."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _FormerPlace(Loader):
    """A module under its former name: it holds what the modules of today hold."""

    def exec_module(self, module: ModuleType) -> None:
        for name in FORMER[module.__name__]:
            today = vars(importlib.import_module(name))
            module.__dict__.update({key: value for key, value in today.items() if not key.startswith("__")})


class Neighbours:
    """Modules and packages beside a method file, found before installed ones of their name.

    Those of the standard library and of PruneBench keep their names. One folder at a time: two contributors' helpers
    may share a name, so the modules of the last folder are forgotten when another one is entered.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._loaded: list[str] = []

    def enter(self, folder: Path) -> None:
        """Find modules in `folder` from now on."""
        for name in self._loaded:
            sys.modules.pop(name, None)
        self._folder, self._loaded = folder, []
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        importlib.invalidate_caches()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As Python asks: where a module is, or None."""
        if fullname in FORMER:
            return importlib.util.spec_from_loader(fullname, _FormerPlace())
        found = None if self._folder is None else locate(self._folder, fullname)
        if found is None:
            return None
        self._loaded.append(fullname)
        inside = [str(found.parent)] if found.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, found, loader=_SourceLoader(fullname, str(found)), submodule_search_locations=inside
        )


NEIGHBOURS = Neighbours()


def locate(folder: Path, name: str) -> Path | None:
    """The file of the module `name` in a folder, if it is there and the name is free."""
    first = name.partition(".")[0]
    if first in sys.stdlib_module_names or first in ("prunebench", "prunebench_kernels"):
        return None
    base = folder.joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if path.is_file():
            return path
    return None


def import_user_module(path: Path, name: str) -> ModuleType:
    """Import a method file under `name`, or a package under its own. Raises UsageError with what went wrong."""
    package = path.is_dir()
    NEIGHBOURS.enter(path.resolve().parent)
    try:
        if package:
            module = importlib.import_module(path.resolve().name)
            if Path(module.__file__ or "").parent != path.resolve():
                raise UsageError(f"{path}: its name is taken by {module.__file__}; rename the package")
            return module
        spec = importlib.util.spec_from_loader(name, _SourceLoader(name, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        hint = ""
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("prunebench."):
            hint = "; write `from prunebench import criterion, method, Experiment, Pruned`, which stay where they are"
        raise UsageError(f"{path}: cannot be imported: {type(error).__name__}: {error}{hint}") from error
    return module


def digest_of(path: Path) -> str:
    """Twelve hex digits of SHA-256: of a file alone, or of a file with all that it imports from its folder.

    A package counts whole, with every file in it: what a method reads decides its numbers as much as its code.
    """
    files = source_files(path.resolve())
    if files == [path.resolve()]:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    folder, total = path.resolve().parent, hashlib.sha256()
    for file in files:
        place = "main" if file == path.resolve() else file.relative_to(folder).as_posix()
        total.update(f"{place}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:12]


def source_files(path: Path) -> list[Path]:
    """The file (or the package's files) and, for each import in them, what of it lies in the folder; in order."""
    folder, found = path.parent, set[Path]()
    waiting = _files_of(path)
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        if file.suffix == ".py":
            for name in _imports(file):
                module = locate(folder, name)
                if module is not None:
                    waiting += _files_of(module.parent if module.name == "__init__.py" else module)
    return sorted(found)


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [
        file
        for file in path.rglob("*")
        if file.is_file()
        and not any(part in NO_CODE or part.startswith(".") for part in file.parts[len(path.parts) :])
    ]


def _imports(file: Path) -> Iterator[str]:
    """First names of what a file imports anywhere, absolute imports alone; none of one that does not parse."""
    try:
        tree = ast.parse(file.read_bytes())
    except (
        SyntaxError,
        ValueError,
        MemoryError,
        RecursionError,
    ):  # the last two of a file nested beyond reason
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def is_package(path: Path) -> bool:
    """Whether a folder is a Python package, which may be a method as a file is."""
    return (path / "__init__.py").is_file()


def place_and_name(name: str) -> tuple[str, str]:
    """The file or package and the method in it of `my_methods.py:NAME`; of all else the name itself, and nothing."""
    place, colon, wanted = name.rpartition(":")
    if colon and (place.endswith(".py") or is_package(Path(place))):
        return place, wanted
    return name, ""
