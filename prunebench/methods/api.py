"""The door for a method that is a class with `fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, get_origin, get_type_hints

from prunebench.errors import UsageError, unknown
from prunebench.methods.criteria import LONGEST_CITE, check_name, check_setting

if TYPE_CHECKING:
    from prunebench.methods.experiment import Experiment, Pruned


SUPERVISION = ("none", "bias-rate", "val-groups", "train-groups")
"""What a method may know of the bias: nothing; the share of conflicting training images; bias labels."""
UNRANKED = ("ranked", "no")
"""What the record of a method that is not ranked says of it."""


class Procedure(Protocol):
    """What a method class must have."""

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned: ...


@dataclass(frozen=True)
class Method:
    """A named way to a pruned model.

    `build(**params)` makes the procedure; `params` are the settings that matter, all part of the run's identity.
    `native` methods choose their sparsity themselves; `unpruned` ones keep every weight and run once a seed, at
    sparsity 0; `dense` marks the shared model that pruning begins from; `multi_label` ones also take tasks whose labels
    are attributes `[N, K]`. One that is not `ranked` stands on the board without a rank: a reference, or one that
    needs more than the pruned network when it answers.
    """

    name: str
    cite: str
    supervision: str
    version: str
    build: Callable[..., Procedure]
    settings: Mapping[str, Any]
    native: bool = False
    dense: bool = False
    relevant: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Which of the settings matter, given the others."""
    multi_label: bool = False
    unpruned: bool = False
    ranked: bool = True
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of settings."""
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The values that some settings may have; `prunebench check` tries each."""

    def __post_init__(self) -> None:
        check_name("method", self.name)
        for key, value in self.settings.items():
            check_setting(self.name, key, value)
        if self.supervision not in SUPERVISION:
            raise UsageError(
                f"method {self.name!r}: supervision must be one of {SUPERVISION}, got {self.supervision!r}"
            )
        if self.native and self.unpruned:
            raise UsageError(
                f"method {self.name!r}: unpruned means sparsity 0, native that it chooses; declare one"
            )
        if not self.cite.strip():
            raise UsageError(f"method {self.name!r}: cite its source (cite='Author et al., year')")
        if len(self.cite) > LONGEST_CITE or not self.cite.isprintable():
            raise UsageError(
                f"method {self.name!r}: cite its source in one line of at most {LONGEST_CITE} characters"
            )

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.relevant(self.settings))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a record says of its method."""
        facts = ("name", self.name), ("supervision", self.supervision), ("cite", self.cite)
        return facts if self.ranked else (*facts, UNRANKED)

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        """Run it, its own backward passes counted. Raises what the method raises."""
        with experiment.counted():
            return self.build(**self.params).fit(experiment, sparsity)

    def facts(self) -> dict[str, Any]:
        """All that is declared, as JSON values; neither how it is built nor which settings matter."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if not callable(value)} | {
            "settings": dict(self.settings)
        }

    def sparsities(self, asked: Iterable[float]) -> tuple[float | None, ...]:
        """The sparsities that it runs at, in order, where `asked` ones are wanted of methods that take any."""
        if self.native:
            return (None,)
        return (0.0,) if self.unpruned or self.dense else tuple(sorted(asked))

    def with_params(self, changes: Mapping[str, Any]) -> Method:
        """This method with other settings. Raises UsageError on an unknown one."""
        changes = {self.aliases.get(key, key): value for key, value in changes.items()}
        for key in changes:
            if key not in self.settings:
                raise unknown(f"setting of {self.name}", key, [*self.settings, *self.aliases])
        return dataclasses.replace(self, settings={**self.settings, **changes})


def method(  # noqa: PLR0913
    name: str,
    *,
    cite: str,
    supervision: str = "none",
    version: int = 1,
    native: bool = False,
    dense: bool = False,
    multi_label: bool = False,
    unpruned: bool = False,
    ranked: bool = True,
) -> Callable[[type], Method]:
    """Make a class with `fit(experiment, sparsity)` a method; dataclass fields are its settings."""

    def wrap(cls: type) -> Method:
        if not callable(getattr(cls, "fit", None)):
            raise UsageError(f"method {name!r}: the class needs fit(self, experiment, sparsity)")
        return Method(
            name,
            cite,
            supervision,
            str(version),
            cls,
            defaults_of(cls),
            native,
            dense,
            multi_label=multi_label,
            unpruned=unpruned,
            ranked=ranked,
            choices=literals_of(cls) if dataclasses.is_dataclass(cls) else {},
        )

    return wrap


def literals_of(annotated: Any) -> dict[str, tuple[Any, ...]]:
    """The values of what a class or function annotates with `Literal`, by name; none where they do not resolve."""
    try:
        hints = get_type_hints(annotated)
    except (NameError, TypeError, AttributeError):
        return {}
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def defaults_of(cls: type) -> dict[str, Any]:
    """The settings of a method class: its dataclass fields, each with a default."""
    if not dataclasses.is_dataclass(cls):
        return {}
    settings = {}
    for each in dataclasses.fields(cls):
        if each.default is dataclasses.MISSING:
            raise UsageError(f"{cls.__name__}.{each.name}: a setting needs a plain default value")
        settings[each.name] = each.default
    return settings
