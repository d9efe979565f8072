"""The targets against what was measured: a pure function of the results. What was not measured is not met."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Results = Mapping[str, Any]
COPY = "copy of the same bytes"
OURS = ("kernel", "auto", "captured")
"""How names of candidates begin that are ours; others are alternatives, but for those that do other work."""
OTHER_WORK = (COPY, "dense, no masks")
NOISE = 0.98
"""A ratio this close to 1 is not slower: repeated medians of one call differ by up to 2 %."""
NOT_MEASURED = "not measured"


class Missing(LookupError):
    """Nothing was measured; says why."""


@dataclass(frozen=True)
class Target:
    """What `candidate` of one item must reach, timed as `how` says: `at_least` so many times the speed of `over`
    (None: of the best alternative; COPY: a share of the bandwidth), or `at_most` so many microseconds."""

    item: str
    how: str
    at_least: float = 0.0
    over: str | None = None
    candidate: str = "kernel"
    at_most: float | None = None

    @property
    def unit(self) -> str:
        return " us" if self.at_most is not None else " of the copy" if self.over == COPY else "x"

    @property
    def name(self) -> str:
        if self.at_most is not None or self.over == COPY:
            return f"{self.item} ({self.how})"
        ours = "" if self.candidate == "kernel" else f", {self.candidate}"
        return f"{self.item}{ours}: over {self.over or 'the best alternative'} ({self.how})"

    @property
    def wanted(self) -> str:
        bound = f"at least {self.at_least:g}" if self.at_most is None else f"at most {self.at_most:g}"
        return bound + self.unit


IMAGENET, CORRELATION = "uncertainty, 2 x 50,000 x 1000, fp32", "correlation, 2 x 50,000 x 64, fp32"
EAGER, HOLD, MATERIAL, STEP, NETWORK = (
    "eager torch",
    "MaskHold",
    "eager w * m",
    "training step, ResNet-18, ",
    "inference, ResNet-18, ",
)
TARGETS = [
    Target(IMAGENET, "kernels", 0.85, COPY),
    Target(IMAGENET, "called", 10, EAGER),
    Target(IMAGENET, "called", 2, "torch.compile"),
    Target("uncertainty, 1000 x 10,000 x 10, fp32", "kernels", 0.85, COPY),
    Target("uncertainty, one model, 50,000 x 1000, fp32", "kernels", 0.85, COPY),
    Target(CORRELATION, "called", 2, "float64 cuBLAS"),
    Target("masks, ResNet-18, sampled", "kernels", at_most=40),
    Target("masks, ResNet-18, sampled", "called", 10, EAGER),
    Target("masks, ResNet-18, applied", "graph", 1, "_foreach"),
    *(
        Target(f"{STEP}{kind}", how, least, MATERIAL, candidate)
        for kind, least, candidate in (
            ("unstructured 90 %", 1.25, "kernel"),
            ("learned masks", 1.25, "kernel"),
            ("block 90 %", 1.6, "auto, MaskedConv2d"),
        )
        for how in ("called", "graph")
    ),
    Target(f"{STEP}unstructured 90 %", "graph", NOISE, HOLD),
    Target("training of small nets", "called", 2, "eager", "captured step"),
    Target("training of small nets", "called", 2, "eager", "captured, 8 nets together"),
    *(
        Target(f"{NETWORK}{kind}", how, least, candidate=candidate)
        for kind, least in (
            ("block 90 %", 1.8),
            ("unstructured 99 %", 1.8),
            ("unstructured 99.5 %", 2.2),
            ("2:4", NOISE),
            ("channels 50 %", NOISE),
        )
        for how, candidate in (("graph", "kernel"), ("called", "kernel, graphed"))
    ),
]


@dataclass(frozen=True)
class Line:
    """A target with what was measured: the figure (None: `why` not), and how it compares."""

    target: Target
    measured: float | None
    why: str = ""
    of_limit: float | None = None
    """The time that bytes or FLOP take at the ceilings of the same run, over the measured time."""
    over_best: Mapping[str, float] = field(default_factory=dict)
    """The best alternative's time over ours, by way of timing."""

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        most = self.target.at_most
        return self.measured >= self.target.at_least if most is None else self.measured <= most


def line(target: Target, results: Results) -> Line:
    """Compare a target with the results."""
    try:
        record, result = _measured(results, target.item)
        times = rows_of(result, target.how)
        if target.candidate not in times:
            reason = result.get("refused", {}).get(target.candidate, "not timed this way")
            raise Missing(f"{NOT_MEASURED}: {reason}")
        ours = times[target.candidate]
        other = best_alternative(times) if target.over is None else times.get(target.over)
        if target.at_most is None and other is None:
            raise Missing(f"{NOT_MEASURED}: {target.over or 'no alternative'} was not timed")
    except Missing as error:
        return Line(target, None, str(error))
    ratios = {}
    for how in ("called", "graph"):
        so = rows_of(result, how)
        best = best_alternative(so)
        if best is not None and target.candidate in so:
            ratios[how] = best / so[target.candidate]
    floor = floor_ms(result, results["runs"][record["run"]]["ceilings"])
    measured = 1e3 * ours if target.at_most is not None else (other or math.nan) / ours
    return Line(target, measured, of_limit=floor / ours if floor else None, over_best=ratios)


def _measured(results: Results, item: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """An item's record and result, from a GPU. Raises Missing."""
    record = results["items"].get(item)
    if record is None or record.get("result") is None:
        raise Missing(NOT_MEASURED if record is None else f"{NOT_MEASURED}: {record['status']}")
    if not on_gpu(results, record):
        raise Missing(f"{NOT_MEASURED}: no GPU")
    return record, record["result"]


def on_gpu(results: Results, record: Mapping[str, Any]) -> bool:
    return "gpu" in results["runs"].get(record["run"], {}).get("machine", {})


def rows_of(result: Mapping[str, Any], how: str) -> dict[str, float]:
    """Median milliseconds by candidate, timed one way."""
    return {row["candidate"]: row["p50_ms"] for row in result["rows"] if row["how"] == how}


def best_alternative(times: Mapping[str, float]) -> float | None:
    """The time of the fastest candidate that is not ours and does the same work."""
    others = [time for name, time in times.items() if not name.startswith(OURS) and name not in OTHER_WORK]
    return min(others, default=None)


def floor_ms(result: Mapping[str, Any], ceilings: Mapping[str, float]) -> float:
    """The time that the item's bytes or FLOP need at the measured ceilings, whichever is longer; 0 if unknown."""
    by_bytes = result.get("bytes", 0) / ceilings["copy_gb_per_s"] / 1e6
    by_flop = result.get("flop", 0) / ceilings[f"{result.get('unit', 'bf16')}_tflop_per_s"] / 1e9
    return float(max(by_bytes, by_flop))


def checks(results: Results) -> str:
    """How many checks were made on a GPU, and how many passed."""
    found = [
        record["result"]
        for record in results["items"].values()
        if "checks" in (record.get("result") or {}) and on_gpu(results, record)
    ]
    count, wrong = sum(one["checks"] for one in found), sum(len(one["wrong"]) for one in found)
    return f"{count - wrong} of {count} checks against float64 pass." if count else f"Checks: {NOT_MEASURED}."


HEAD = (
    "target",
    "wanted",
    "measured",
    "met",
    "of the limit",
    "over the best alternative, called",
    "in a graph",
)


def table(results: Results) -> str:
    """The targets as a markdown table."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for found in (line(target, results) for target in TARGETS):
        figure = found.why if found.measured is None else f"{found.measured:.2f}{found.target.unit}"
        met = {None: "", True: "yes", False: "no"}[found.met]
        limit = "" if found.of_limit is None else f"{found.of_limit:.2f}"
        ratios = [
            f"{found.over_best[how]:.2f}x" if how in found.over_best else "" for how in ("called", "graph")
        ]
        rows.append((found.target.name, found.target.wanted, figure, met, limit, *ratios))
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", checks(results), ""])
