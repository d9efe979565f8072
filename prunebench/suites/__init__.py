"""A suite: which tasks, methods, sparsities and seeds, in TOML, and its expansion to runs."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prunebench.errors import UsageError, unknown
from prunebench.results.spec import number_text

SEEDS = 2**63
"""Seeds are below this, as the generators of every library take them."""
SUITES = Path(__file__).parent


@dataclass(frozen=True)
class Suite:
    """What `prunebench run` runs. `params` sets methods' settings by name; `recipe` changes the tasks' budget.

    `sweep` has several values of settings, as lists, and stands for all their combinations.
    """

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    seeds: tuple[int, ...]
    description: str = ""
    model: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    board: bool = False
    """Whether its seeds are those that rows of its tasks are to have on the board."""
    sweep: Mapping[str, Mapping[str, list[Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tasks", "methods", "sparsities", "seeds"):
            values = getattr(self, name)
            if not values:
                raise UsageError(f"suite {self.name!r}: {name} is empty")
            if len(set(values)) != len(values):
                raise UsageError(f"suite {self.name!r}: {name} holds the same value twice")
        for value in self.sparsities:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise UsageError(
                    f"sparsity must be in [0, 1), got {number_text(value)} (0.9 prunes nine weights of ten)"
                )
        for seed in self.seeds:
            if type(seed) is not int or not 0 <= seed < SEEDS:
                rule = "0 or more" if type(seed) is int and seed < 0 else "whole numbers below 2^63"
                raise UsageError(f"seeds must be {rule}, got {seed!r}")
        for method, settings in self.sweep.items():
            for key, chosen in settings.items():
                if not chosen:
                    raise UsageError(f"suite {self.name!r}: sweep.{method}.{key} is empty")

    def narrowed(
        self,
        *,
        tasks: Sequence[str] = (),
        methods: Sequence[str] = (),
        sparsities: Sequence[float] = (),
        seeds: Sequence[int] = (),
        model: str | None = None,
    ) -> Suite:
        """This suite with the given lists and model in place of its own; empty ones change nothing."""
        chosen = {"tasks": tasks, "methods": methods, "sparsities": sparsities, "seeds": seeds}
        changes: dict[str, Any] = {name: tuple(values) for name, values in chosen.items() if values}
        return replace(self, model=model or self.model, **changes)

    def swept(self, method: str) -> list[dict[str, Any]]:
        """The combinations of settings that a method runs with; one without settings where nothing is swept."""
        values = self.sweep.get(method, {})
        return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]

    def with_settings(self, changes: Sequence[str]) -> Suite:
        """This suite with `method.key=value` set; several values behind commas are swept.

        Values are TOML's: `0.5`, `true`, `[1, 2]`, a text with or without quotes; `none` is None. Raises UsageError.
        """
        params = {name: dict(values) for name, values in self.params.items()}
        sweep = {name: dict(values) for name, values in self.sweep.items()}
        for change in changes:
            left, equals, text = change.partition("=")
            method, dot, key = left.strip().rpartition(".")
            values = _values(text)
            if not (equals and dot and method and key and values):
                raise UsageError(
                    f"--set {change}: want METHOD.KEY=VALUE, say jtt.upweight=5 or jtt.upweight=5,20,50"
                )
            chosen, other = (params, sweep) if len(values) == 1 else (sweep, params)
            other.get(method, {}).pop(key, None)
            chosen.setdefault(method, {})[key] = values[0] if len(values) == 1 else values
        return replace(self, params=params, sweep=sweep)


def _values(text: str) -> list[Any]:
    """Values between commas, as TOML has them, or words."""
    try:
        return [*tomllib.loads(f"values = [{text}]")["values"]]
    except tomllib.TOMLDecodeError:
        words = [word.strip() for word in text.split(",")]
    if len(words) > 1:
        return [value for word in words for value in _values(word)]
    return [None] if words == ["none"] else [word for word in words if word]


def suite_names() -> list[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def load_suite(name: str) -> Suite:
    """A packaged suite by name, or one from a TOML file. Raises UsageError with what is wrong."""
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise UsageError(f"no suite file {name}")
        raise unknown("suite", name, [*suite_names(), "PATH.toml"])
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # TOML is UTF-8 in every locale
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML (in UTF-8): {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    return _validate(values, str(path), path.stem)


def _validate(values: dict[str, Any], source: str, stem: str) -> Suite:
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    for name, kinds in (("seeds", (int,)), ("sparsities", (int, float))):
        for place, value in enumerate(values[name] if isinstance(values.get(name), list) else ()):
            if type(value) not in kinds:
                whole = "a whole number" if kinds == (int,) else "a number"
                raise UsageError(f"{source}: {name}.{place}: want {whole}, got {str(value).lower()}")
    adapter: Any = TypeAdapter(with_config(ConfigDict(extra="forbid"))(Suite))
    try:
        return adapter.validate_python({"name": stem, **values})
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{source}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
