"""Task names: `family@parameter`, a family alone where it takes none, or `disent:PATH` for one's own folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prunebench.errors import UsageError, unknown
from prunebench.tasks.backdoor import open_backdoor
from prunebench.tasks.base import Task
from prunebench.tasks.celeba import open_celeba
from prunebench.tasks.colored_digits import ColoredDigits
from prunebench.tasks.colored_mnist import ColoredMnist
from prunebench.tasks.corrupted_cifar10 import CorruptedCifar10, NoisyCifar10
from prunebench.tasks.digit_attributes import DigitAttributes

SHARES = ("0.5pct", "1pct", "2pct", "5pct")


@dataclass(frozen=True)
class Family:
    """Tasks whose names begin alike. `open(name, parameter, data_root)` gives one of them.

    `name` is the whole name as it was given and `parameter` what stands behind the separator, empty if nothing
    does; `open` raises UsageError, with a suggestion, for a parameter that it cannot read. `examples` are whole
    names, listed by `prunebench ls tasks`; `pattern` stands for them in hints where only a user can name one.
    """

    name: str
    open: Callable[[str, str, Path | None], Task]
    examples: tuple[str, ...] = ()
    pattern: str = ""
    separator: str = "@"

    @property
    def hints(self) -> tuple[str, ...]:
        """Names that an error may suggest."""
        return self.examples or (self.pattern,)


def _colored(family: str, task: Callable[[float], Task]) -> Family:
    """A family whose parameter is the share of bias-conflicting images, one of SHARES."""
    examples = tuple(f"{family}@{share}" for share in SHARES)

    def open_share(name: str, parameter: str, _: Path | None) -> Task:
        if not parameter:
            raise UsageError(f"task {name!r} needs its share of bias-conflicting images: {family}@2pct")
        if parameter not in SHARES:
            raise unknown("task", name, examples)
        return task(float(parameter.removesuffix("pct")) / 100)

    return Family(family, open_share, examples)


def _only(task: Callable[[], Task], family: str) -> Family:
    """A family of one task, which takes no parameter."""

    def open_only(name: str, _: str, __: Path | None) -> Task:
        if name != family:
            raise UsageError(f"task {name!r}: {family} takes no parameter; leave out {name[len(family) :]!r}")
        return task()

    return Family(family, open_only, (family,))


def _open_disent(_: str, parameter: str, data_root: Path | None) -> Task:
    from prunebench.tasks.disent import open_disent

    return open_disent(parameter, data_root)


FAMILIES: tuple[Family, ...] = (
    _colored("colored-digits", ColoredDigits),
    _colored("colored-mnist", ColoredMnist),
    _colored(CorruptedCifar10.family_name, CorruptedCifar10),
    _colored(NoisyCifar10.family_name, NoisyCifar10),
    _only(DigitAttributes, DigitAttributes.name),
    Family(
        "backdoor",
        open_backdoor,
        (
            "backdoor@digits/even/grey",
            "backdoor@digits/even/yellow",
            "backdoor@digits/large/grey/35pct",
            "backdoor@mnist/even/yellow",
            "backdoor@celeba/Blond_Hair/grey",
        ),
    ),
    Family("celeba", open_celeba, ("celeba", "celeba@Blond_Hair")),
    Family("disent", _open_disent, pattern="disent:PATH", separator=":"),
)


def describe_families() -> list[str]:
    """Every task name that needs no path."""
    return [example for family in FAMILIES for example in family.examples]


def resolve_task(name: str, data_root: Path | None = None) -> Task:
    """The task called `name`. Raises UsageError with a suggestion when there is none.

    The PATH of `disent:PATH` is looked for from here, then under `data_root`.
    """
    for family in FAMILIES:
        head, separator, parameter = name.partition(family.separator)
        if head == family.name and (separator or not family.pattern):
            return family.open(name, parameter, data_root)
    raise unknown("task", name, [hint for family in FAMILIES for hint in family.hints])
