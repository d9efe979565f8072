"""Methods found by name: the modules of this folder, an installed plug-in, or a user's file or package."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

from prunebench.errors import UsageError, unknown
from prunebench.plugins.entry_points import load_plugin, plugin_digest, plugin_names
from prunebench.plugins.files import FORMER as FORMER
from prunebench.plugins.files import digest_of, import_user_module, is_package, place_and_name
from prunebench.plugins.files import source_files as source_files

if TYPE_CHECKING:
    from prunebench.methods.api import Method

FOLDER = Path(__file__).parent
GROUP = "prunebench.methods"
"""Of entry points: a package declares `name = "module:object"` in it."""
SHUFFLED, SHUFFLED_NAME = "shuffled:", "-shuffled-mask"
"""What asks for a method with its masks shuffled (`methods.shuffled`), and what its name ends in."""


@functools.cache
def builtin_methods() -> Mapping[str, Method]:
    """All methods of the package, by name. Raises UsageError if two share one."""
    found: dict[str, Method] = {}
    for info in sorted(pkgutil.iter_modules([str(FOLDER)]), key=lambda info: info.name):
        module = importlib.import_module(f"{__package__}.{info.name}")
        for entry in _methods_in(module):
            if found.setdefault(entry.name, entry) != entry:
                raise UsageError(f"two methods are called {entry.name!r}; the second is in {module.__name__}")
    return MappingProxyType(found)


@functools.cache
def builtin_names() -> tuple[str, ...]:
    """Names of all methods of the package, read from its source: in an instant, without importing torch.

    A name is the first text in a call at the top of a module, or in a decorator there: `@criterion("magnitude", ...)`,
    `prune_by(magnitude, "magnitude-erk", ...)`.
    """
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.parse(path.read_bytes()).body:
            makers = [node.value] if isinstance(node, ast.Assign) else getattr(node, "decorator_list", [])
            found += [name for maker in makers if (name := _first_text(maker)) is not None]
    return tuple(found)


def _first_text(call: ast.expr) -> str | None:
    """The first argument of a call that is a text, also of `maker("name")(...)`; None if there is none."""
    if not isinstance(call, ast.Call):
        return None
    if isinstance(call.func, ast.Call):
        return _first_text(call.func)
    texts = (entry.value for entry in call.args if isinstance(entry, ast.Constant))
    return next((text for text in texts if isinstance(text, str) and re.fullmatch(r"[\w.+-]+", text)), None)


DEBIASED = "+"
DEBIASER_NAMES = ("lff", "jtt", "dcwp", "pw-loss", "dfr", "groupdro", "modad", "disent", "larreg", "ceag")
"""What may stand behind a pruner's name, as in `magnitude+lff`: see `methods.debiased`."""


def check_method_name(name: str) -> None:
    """Raise UsageError, with a suggestion, unless `name` is a method of the package or may be a user's file.

    Before either may stand `shuffled:`, behind a name of the package `-shuffled-mask`.
    """
    name = name.removeprefix(SHUFFLED)
    if name not in builtin_names():
        name = name.removesuffix(SHUFFLED_NAME)
        name = place_and_name(name)[0]
    known = (*builtin_names(), *plugin_names(GROUP))
    name, plus, debiaser = name.partition(DEBIASED) if name not in known else (name, "", "")
    if plus and debiaser not in DEBIASER_NAMES:
        raise unknown("debiaser", debiaser, DEBIASER_NAMES)
    if not (name.endswith(".py") or is_package(Path(name))) and name not in known:
        raise unknown("method", name, known)


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


def _methods_in(module: ModuleType) -> Iterator[Method]:
    from prunebench.methods.api import Method
    from prunebench.methods.criteria import Criterion
    from prunebench.methods.prune import prune_by

    for value in vars(module).values():
        if isinstance(value, Criterion):
            home = value.score.__module__
            if home == module.__name__ or home.startswith(f"{module.__name__}."):
                yield prune_by(value)
        elif isinstance(value, Method):
            yield value


def all_names(name: str) -> list[str]:
    """The names of all methods that a file or package holds, each to be resolved; of all else the name itself."""
    place = name.removeprefix(SHUFFLED)
    if not place.endswith(".py") and (place in builtin_names() or not is_package(Path(place))):
        return [name]
    found = file_methods(Path(place))
    return [name] if len(found) == 1 else [f"{name}:{each}" for each in found]


def resolve_method(name: str) -> Method:
    """The method called `name`, or the only one in the file or package `name`; with `shuffled:` before it, its control.

    `my_methods.py:NAME` is one of several in a file.

    Raises UsageError with a suggestion.
    """
    known = builtin_methods()
    if name.startswith(SHUFFLED) or (name not in known and name.endswith(SHUFFLED_NAME)):
        from prunebench.methods.shuffled import shuffled_mask

        base = resolve_method(name.removeprefix(SHUFFLED).removesuffix(SHUFFLED_NAME))
        return shuffled_mask(base, f"{base.name}{SHUFFLED_NAME}")
    place, wanted = place_and_name(name)
    if place.endswith(".py") or (name not in known and is_package(Path(place))):
        found = file_methods(Path(place))
        if wanted and wanted not in found:
            raise unknown(f"method in {place}", wanted, found)
        if len(found) > 1 and not wanted:
            raise UsageError(f"{place} holds {', '.join(found)}: name one, {place}:{next(iter(found))}")
        return found[wanted] if wanted else next(iter(found.values()))
    if name in known:
        return known[name]
    if name in plugin_names(GROUP):
        return plugin_method(name)
    if DEBIASED in name:
        from prunebench.methods.debiased import debiased

        base_name, _, debiaser = name.partition(DEBIASED)
        return debiased(resolve_method(base_name), debiaser)
    raise unknown("method", name, [*known, *plugin_names(GROUP)])


def plugin_method(name: str) -> Method:
    """The method that an installed package offers under this name; its version is the hash of the whole package.

    Raises UsageError where the entry point does not load, or is no method of that name.
    """
    from prunebench.methods.api import Method
    from prunebench.methods.criteria import Criterion
    from prunebench.methods.prune import prune_by

    found = load_plugin(GROUP, name)
    if isinstance(found, Criterion):
        found = prune_by(found)
    if not isinstance(found, Method) or found.name != name:
        shown = repr(found.name) if isinstance(found, Method) else f"a {type(found).__name__}"
        raise UsageError(
            f"entry point {GROUP}: {name} gives {shown}; want the method or criterion of this name"
        )
    return dataclasses.replace(found, version=f"plugin-{plugin_digest(GROUP, name)}")
