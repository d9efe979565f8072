"""Plain files in the stead of an installed package: their models and metrics, known by name without an import.

`PRUNEBENCH_PLUGINS` names them, as PATH names folders; so every command and every process that it starts has them. Of
functions at the top of a file, those annotated `-> Classifier` are models, those behind `@metric("NAME", ...)` metrics.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from prunebench.errors import UsageError, unknown
from prunebench.plugins.files import digest_of, import_user_module, place_and_name

VARIABLE = "PRUNEBENCH_PLUGINS"
MODELS, METRICS = "prunebench.models", "prunebench.metrics"
"""The groups of entry points that a plain file may stand for; methods and tasks of files are named by their path."""


def plain_files() -> tuple[Path, ...]:
    """The files that stand for packages now."""
    return tuple(Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name)


def use_file(path: Path) -> None:
    """Let a file stand for a package, in this process and those that it starts. Raises UsageError where it is none."""
    if not path.is_file():
        raise UsageError(f"no file {path}")
    known = list(dict.fromkeys([*map(str, plain_files()), str(path.resolve())]))
    os.environ[VARIABLE] = os.pathsep.join(known)


def use_model(name: str) -> str:
    """The model's name of `my_net.py:FUNCTION@WIDTH`, whose file then stands for a package; else the name itself.

    Raises UsageError where the file has no such model, or several and none is named.
    """
    place, wanted = place_and_name(name)
    if not place.endswith(".py"):
        return name
    use_file(Path(place))
    function, at, width = wanted.partition("@")
    found = names_in(Path(place), MODELS)
    if function and function not in found:
        raise unknown(f"model in {place}", function, found)
    if len(found) != 1 and not function:
        held = f"holds {', '.join(found)}: name one, {place}:FUNCTION" if found else "holds no model"
        raise UsageError(f"{place}: {held} (a function annotated `-> Classifier`)")
    return f"{function or found[0]}{at}{width}"


def use_metrics(path: Path) -> None:
    """Let the metrics of a file be metrics of every record. Raises UsageError where it has none."""
    use_file(path)
    if not names_in(path, METRICS):
        raise UsageError(f"{path}: holds no metric (a function behind @metric)")


def names_in(path: Path, group: str) -> list[str]:
    """The names of a file's models or metrics, in order. Raises UsageError where it cannot be read."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if group == MODELS:
        return [each.name for each in functions if _last(each.returns) == "Classifier"]
    return [name for each in functions for name in _metrics_of(each)] if group == METRICS else []


def _metrics_of(function: ast.FunctionDef) -> Iterator[str]:
    for call in function.decorator_list:
        if isinstance(call, ast.Call) and _last(call.func) == "metric" and call.args:
            first = call.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _last(node: ast.expr | None) -> str:
    """The last name of `a.b.name`, or of the same as text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.rpartition(".")[2]
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def plain_names(group: str) -> tuple[str, ...]:
    """What the files of now offer in a group. Raises UsageError where two offer one name."""
    names = [name for path in plain_files() for name in names_in(path, group)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{VARIABLE}: {twice!r} is defined twice in {', '.join(map(str, plain_files()))}")
    return tuple(names)


def file_of(group: str, name: str) -> Path | None:
    """The file that offers a name in a group, if one does."""
    return next((path for path in plain_files() if name in names_in(path, group)), None)


def load_plain(path: Path, group: str, name: str) -> Any:
    """The function or metric of a file. Raises UsageError where the file cannot be imported."""
    module = _module(path, digest_of(path))
    if group == MODELS:
        return getattr(module, name)
    return next((value for value in vars(module).values() if getattr(value, "name", None) == name), None)


@functools.cache
def _module(path: Path, digest: str) -> ModuleType:
    return import_user_module(path, f"prunebench_plain_{digest}")
