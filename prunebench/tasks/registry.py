"""Task names: `family@parameter`, a family alone where it takes none, or `csv:PATH` and the like for one's own folder.

A task's module is imported when the task is opened: names are known, and wrong ones answered, without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.errors import UsageError, unknown
from prunebench.plugins.entry_points import plugin_names
from prunebench.plugins.files import place_and_name

if TYPE_CHECKING:
    from prunebench.tasks.base import Task

SHARES = ("0.5pct", "1pct", "2pct", "5pct")


def _any_parameter(name: str, parameter: str) -> None:
    """No rule: `open` knows more."""


@dataclass(frozen=True)
class Family:
    """Tasks whose names begin alike. `open(name, parameter, data_root)` gives one of them.

    `name` is the whole name as it was given and `parameter` what stands behind the separator, empty if nothing
    does; `check` and `open` raise UsageError, with a suggestion, for a parameter that they cannot read, `check` without
    importing the task. `examples` are whole names, listed by `prunebench ls tasks`; `pattern` stands for them in hints
    where only a user can name one.
    """

    name: str
    open: Callable[[str, str, Path | None], Task]
    examples: tuple[str, ...] = ()
    pattern: str = ""
    separator: str = "@"
    check: Callable[[str, str], None] = _any_parameter

    @property
    def hints(self) -> tuple[str, ...]:
        """Names that an error may suggest."""
        return self.examples or (self.pattern,)


def _load(home: str) -> Any:
    """The class or function at `module:name`, of this folder."""
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(f"prunebench.tasks.{module}"), name)


def _colored(family: str, home: str) -> Family:
    """A family whose parameter is the share of bias-conflicting images, one of SHARES."""
    examples = tuple(f"{family}@{share}" for share in SHARES)

    def check(name: str, parameter: str) -> None:
        if not parameter:
            raise UsageError(f"task {name!r} needs its share of bias-conflicting images: {family}@2pct")
        if parameter not in SHARES:
            raise unknown("task", name, examples)

    def open_share(_: str, parameter: str, __: Path | None) -> Task:
        return _load(home)(float(parameter.removesuffix("pct")) / 100)

    return Family(family, open_share, examples, check=check)


def _only(family: str, home: str) -> Family:
    """A family of one task, which takes no parameter."""

    def check(name: str, _: str) -> None:
        if name != family:
            raise UsageError(f"task {name!r}: {family} takes no parameter; leave out {name[len(family) :]!r}")

    return Family(family, lambda *_: _load(home)(), (family,), check=check)


def _own(family: str, home: str) -> Family:
    """A family of users' own copies, `family:PATH`."""
    return Family(family, lambda *named: _load(home)(*named), pattern=f"{family}:PATH", separator=":")


BACKDOORS = (
    "backdoor@digits/even/grey",
    "backdoor@digits/even/yellow",
    "backdoor@digits/large/grey/35pct",
    "backdoor@mnist/even/yellow",
    "backdoor@celeba/Blond_Hair/grey",
)
FAMILIES: tuple[Family, ...] = (
    _colored("colored-digits", "colored_digits:ColoredDigits"),
    _colored("colored-mnist", "colored_mnist:ColoredMnist"),
    _colored("corrupted-cifar10", "corrupted_cifar10:CorruptedCifar10"),
    _colored("corrupted-cifar10-type1", "corrupted_cifar10:NoisyCifar10"),
    _only("cifar10-backgrounds", "cifar10_backgrounds:Cifar10Backgrounds"),
    _only("cifar10s", "cifar10s:Cifar10S"),
    _only("cifar10-longtail", "cifar10_longtail:Cifar10LongTail"),
    _only("digit-attributes", "digit_attributes:DigitAttributes"),
    Family("backdoor", lambda *named: _load("backdoor:open_backdoor")(*named), BACKDOORS),
    Family("celeba", lambda *named: _load("celeba:open_celeba")(*named), ("celeba", "celeba@Blond_Hair")),
    Family(
        "disent",
        lambda _, path, data_root: _load("disent:open_disent")(path, data_root),
        pattern="disent:PATH",
        separator=":",
    ),
    _own("csv", "csv_folder:open_csv"),
    _own("fairface", "fairface:open_fairface"),
    _own("utkface", "utkface:open_utkface"),
)


def describe_families() -> list[str]:
    """Every task name that needs no path."""
    return [example for family in FAMILIES for example in family.examples]


GROUP = "prunebench.tasks"
"""Of entry points: a package declares `name = "module:TaskClass"` in it."""


def find_family(name: str) -> tuple[Family, str]:
    """The family of a task's name, and the parameter in it. Raises UsageError with a suggestion when there is none.

    `my_task.py` is the task of a user's file, `my_task.py:CLASS` one of several; a name that the package does not
    have may also be an entry point's.
    """
    if place_and_name(name)[0].endswith(".py"):
        return Family(name, lambda *named: _load("own:open_file")(*named)), name
    for family in FAMILIES:
        head, separator, parameter = name.partition(family.separator)
        if head == family.name and (separator or not family.pattern):
            family.check(name, parameter)
            return family, parameter
    plugins = plugin_names(GROUP)
    if name in plugins:
        return Family(name, lambda *named: _load("own:open_plugin")(*named)), name
    raise unknown("task", name, [*plugins, *(hint for family in FAMILIES for hint in family.hints)])


def resolve_task(name: str, data_root: Path | None = None) -> Task:
    """The task called `name`. Raises UsageError with a suggestion when there is none.

    A PATH (`disent:PATH`, `csv:PATH`) is looked for from here, then under `data_root`.
    """
    family, parameter = find_family(name)
    return family.open(name, parameter, data_root)
