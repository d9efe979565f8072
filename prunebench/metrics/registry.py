"""Registry of the metrics of a record: `@metric` on a pure function, and all that are found in `metrics/recorded`.

Record, rescoring, leaderboard, comparison, frame and the checks of submissions iterate `metrics()`. Nothing heavy is
imported for names and titles: the functions get tensors, and need no import of torch to call their methods.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal

from prunebench.errors import UsageError, unknown
from prunebench.plugins.entry_points import load_plugin, plugin_names

Better = Literal["higher", "lower", "zero"]
"""Which values are better; of some metrics none is (None)."""

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "logits": "float32 [N, C] of classes, or [N, K] of attributes",
        "y": "labels as the task gives them: int64 [N], or 0/1 [N, K] of attributes",
        "prediction": "int64 [N]: the predicted class (of attributes: the target attribute)",
        "label": "int64 [N]: the true class (of attributes: the target attribute)",
        "bias": "int64 [N]: the bias of each sample",
        "aligned_pair": "bool [C, B]: which (label, bias) pairs are bias-aligned",
        "groups": "GroupTable: counts and accuracies by (label, bias)",
        "train_count": "int64 [C, B]: training samples of each (label, bias) pair",
        "uncertainty": "MeanUncertainty: means of entropy, confidence, margin and log likelihood",
        "output_correlation": "float: mean |Pearson r| between the logits of two outputs",
        "attributes": "AttributeTable: metrics by attribute; multi-class tasks lack it",
        "train_y": "as y, of the training split",
        "validation_logits": "as logits, of the validation split",
        "validation_y": "as y, of the validation split",
    }
)
"""What a metric's parameters may be called, and what they get (`evaluated.EvaluatedSplit` serves them)."""

FOLDER = Path(__file__).parent / "recorded"
"""Whose modules hold the metrics; they are found there, not listed."""
GROUP = "prunebench.metrics"
"""Of entry points: a package declares `name = "module:metric"` in it."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Metric:
    """One number of a run on a split, and how it is shown. Called, it is its function.

    `title` names it in full, `short` heads a column. `unit`: `%` and `points` show a share times 100, other units show
    it as it is. `range` bounds what a record may hold. `board` and `readme`: whether it is a column of the leaderboard
    and of the README's table; `compared`: whether `prunebench compare` tests it.
    """

    name: str
    title: str
    short: str
    unit: str
    decimals: int
    better: Better | None
    help: str
    cite: str
    needs: tuple[str, ...]
    function: Callable[..., float]
    range: tuple[float, float] = (-math.inf, math.inf)
    board: bool = False
    readme: bool = False
    compared: bool = False

    @property
    def of_attributes(self) -> bool:
        """Whether multi-label tasks alone have it."""
        return "attributes" in self.needs

    @property
    def scale(self) -> float:
        """What the stored number is multiplied with to be shown in the unit."""
        return 100.0 if self.unit in ("%", "points") else 1.0

    @property
    def title_with_unit(self) -> str:
        """`Worst-group accuracy, %`: a plot's axis."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def in_words(self) -> str:
        """The title within a sentence: `worst-group accuracy`."""
        first, *rest = self.title.split(" ")
        return " ".join([first.lower() if first.capitalize() == first else first, *rest])

    def __call__(self, *needed: Any) -> float:
        return self.function(*needed)


def metric(  # noqa: PLR0913
    name: str,
    *,
    title: str,
    help: str,
    cite: str,
    unit: str = "",
    better: Better | None = None,
    short: str | None = None,
    decimals: int | None = None,
    range: tuple[float, float] = (-math.inf, math.inf),
    needs: tuple[str, ...] | None = None,
    board: bool = False,
    readme: bool = False,
    compared: bool = False,
) -> Callable[[Callable[..., float]], Metric]:
    """Make a pure function a metric of every record.

    The function gets what its parameters name (or `needs`, in the order of its parameters): see `NEEDS`. On a task that
    lacks one of them the metric is left out of the record; where it is undefined it is nan.

    Raises:
        UsageError: for a name that is no lower-case word, a need that nothing serves, and no title, help or source.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"metric {name!r}: want a name of lower-case letters, digits and '_'")
    for field, text in (("title", title), ("help", help), ("cite", cite)):
        if not text.strip() or not text.isprintable():
            raise UsageError(f"metric {name!r}: give its {field} in one line")

    def wrap(function: Callable[..., float]) -> Metric:
        wanted = tuple(inspect.signature(function).parameters) if needs is None else needs
        for need in wanted:
            if need not in NEEDS:
                raise unknown(f"need of metric {name}", need, NEEDS)
        places = decimals if decimals is not None else 1 if unit in ("%", "points") else 3
        return Metric(
            name, title, short or title, unit, places, better, help, cite, wanted, function, range, board, readme,
            compared,
        )  # fmt: skip

    return wrap


@functools.cache
def metrics() -> tuple[Metric, ...]:
    """All metrics of a record, in order of their files and within a file.

    Raises:
        UsageError: where two share a name.
    """
    found: dict[str, Metric] = {}
    for info in sorted(pkgutil.iter_modules([str(FOLDER)]), key=lambda info: info.name):
        module = importlib.import_module(f"{__package__}.{FOLDER.name}.{info.name}")
        for entry in metrics_in(module):
            if entry.name in found:
                raise UsageError(f"two metrics are called {entry.name!r}; the second is in {module.__name__}")
            found[entry.name] = entry
    for name in plugin_names(GROUP):
        entry = load_plugin(GROUP, name)
        if not isinstance(entry, Metric) or entry.name != name or name in found:
            raise UsageError(
                f"entry point or file, {GROUP}: {name}: want a metric of this name, that no other has"
            )
        found[name] = entry
    return tuple(found.values())


def metrics_in(module: ModuleType) -> list[Metric]:
    """The metrics that a module defines (those that it imports from another are not its own)."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, Metric) and value.function.__module__ == module.__name__
    ]


def metric_named(name: str) -> Metric:
    """The metric of this name. Raises UsageError with a suggestion."""
    known = {entry.name: entry for entry in metrics()}
    if name not in known:
        raise unknown("metric", name, known)
    return known[name]


def metric_or_plain(name: str) -> Metric:
    """The metric of this name; of a name that this version does not know, one that shows the number as it is."""
    known = {entry.name: entry for entry in metrics()}
    return known.get(name) or Metric(
        name, name.replace("_", " ").capitalize(), name, "", 3, None, "", "", (), _not_computed
    )


def _not_computed(*needed: Any) -> float:
    del needed
    return math.nan
