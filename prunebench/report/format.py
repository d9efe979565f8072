"""Written numbers: percentages, intervals, p-values, and the one way to write and place a sparsity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeGuard

MISSING = "\u2014"
"""Em dash: no value, because a run is missing or the value is undefined."""
UNKNOWN = "\u2013"
"""En dash: a half-width or an end of an interval that is not known."""
FOLDED = "\u00b7"
"""Middle dot: a number that another column says already, as is told under the table."""
MINUS, TIMES, ELLIPSIS = "\u2212", "\u00d7", "\u2026"
LEAST_DENSITY = 1e-4
"""Where a sparsity of 1 would stand on the axis."""
TICK_ROOM = 0.12
"""Decades of density that two ticks of a sparsity axis are apart at least."""


class Spread(Protocol):
    """A mean and the half-width of its interval; nan or None where undefined."""

    @property
    def mean(self) -> float | None: ...
    @property
    def half_width(self) -> float | None: ...


def known(value: float | None) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return value is not None and math.isfinite(value)


def number(value: float | None, decimals: int, scale: float = 1) -> str:
    """A scaled number with fixed decimals and a true minus; an em dash if undefined. Never a negative zero."""
    if not known(value):
        return MISSING
    text = f"{scale * value:.{decimals}f}"
    if text[0] != "-":
        return text
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", MINUS)


def percent(value: float | None, decimals: int = 1) -> str:
    """A fraction in percent, without the sign."""
    return number(value, decimals, 100)


def with_half_width(interval: Spread, decimals: int = 1, scale: float = 100) -> str:
    """`37.9 ± 1.2`, by default in percent; an en dash for an unknown half-width, an em dash where there is no mean."""
    mean, width = interval.mean, number(interval.half_width, decimals, scale)
    return (
        f"{number(mean, decimals, scale)} ± {UNKNOWN if width == MISSING else width}"
        if known(mean)
        else MISSING
    )


def with_ends(
    value: float | None, low: float | None, high: float | None, decimals: int = 2, scale: float = 1
) -> str:
    """`0.62 [0.41, 0.80]`; an en dash for an unknown end."""
    if not known(value):
        return MISSING
    ends = (number(end, decimals, scale) if known(end) else UNKNOWN for end in (low, high))
    return f"{number(value, decimals, scale)} [{', '.join(ends)}]"


def signed(interval: Spread, decimals: int = 1, scale: float = 100) -> str:
    """`+3.2 ± 1.1`: a difference, by default in percentage points."""
    text = with_half_width(interval, decimals, scale)
    return f"+{text}" if known(interval.mean) and text[0] != MINUS and float(text.split()[0]) > 0 else text


def times(text: str | float | None, decimals: int = 2) -> str:
    """`1.25×` of a number, or of one that is written already."""
    written = text if isinstance(text, str) else number(text, decimals)
    return written if written == MISSING else f"{written}{TIMES}"


def count(value: float | None) -> str:
    """`661,898`."""
    return f"{value:,.0f}" if known(value) else MISSING


def millions(value: float | None) -> str:
    """`11.75` of 11,745,792; three decimals below one million."""
    return MISSING if value is None else number(value / 1e6, 2 if value >= 1e6 else 3)


def significant(value: float | None, digits: int = 3) -> str:
    """So many digits, without an exponent from a thousandth up: `1,024`, `86.1`, `0.0042`."""
    if not known(value):
        return MISSING
    text = f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def p_value(value: float | None) -> str:
    """Three decimals; below that, `< 0.001`."""
    return "< 0.001" if value is not None and value < 0.001 else number(value, 3)


def sparsity(asked: float | None, achieved: float | None = None, *, dense: bool = False) -> str:
    """`dense`, `0.9`, or `native` where the method chose; with what was achieved `native, 0.424`."""
    if dense:
        return "dense"
    if asked is not None:
        return f"{asked:g}"
    return f"native, {number(achieved, 3)}" if known(achieved) else "native"


def at_sparsity(name: str, asked: float | None, *, dense: bool = False) -> str:
    """`dcwp at sparsity 0.9`, `tickets at native sparsity`, or the name alone of a dense network."""
    if dense:
        return name
    return f"{name} at native sparsity" if asked is None else f"{name} at sparsity {sparsity(asked)}"


def sparsity_place(value: float) -> float:
    """Where a sparsity stands on an axis: decades of density below 1, -log10(1 - sparsity)."""
    return -math.log10(max(LEAST_DENSITY, 1 - value))


def sparsity_ticks(asked: Iterable[float], achieved: Iterable[float] = ()) -> tuple[tuple[float, str], ...]:
    """Places and labels: all sparsities that were asked for, and achieved ones where there is room."""
    ticks = [(sparsity_place(value), sparsity(value)) for value in sorted(set(asked))]
    for value in achieved:
        place = sparsity_place(value)
        if all(abs(place - other) > TICK_ROOM for other, _ in ticks):
            ticks.append((place, number(value, 2)))
    return tuple(sorted(ticks))


def plural(amount: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{amount} {noun}{'s' * (amount != 1)}"


def listed(noun: str, values: Sequence[object]) -> str:
    """`seed 0`, `seeds 0, 1, 2`."""
    return f"{noun}{'s' * (len(values) != 1)} {', '.join(map(str, values))}"


def visible(text: object, kept: str = "") -> str:
    """A text in which nothing steers a terminal or turns a line round: such signs are U+FFFD, all space is blanks."""
    signs = str(text)
    if signs.isprintable():
        return signs
    return "".join(
        sign if sign.isprintable() or sign in kept else " " if sign.isspace() else "\ufffd" for sign in signs
    )


def cut(text: str, length: int) -> str:
    """On one line, and with an ellipsis where it is longer than `length`."""
    plain = " ".join(text.split())
    return plain if len(plain) <= length else plain[: length - 1] + ELLIPSIS
