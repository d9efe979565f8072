"""The targets of an H200 against what was measured: a pure function of the other stages' files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_operations import COMPILED, COPY, EAGER, OURS
from gpu_profile import INFERENCE
from gpu_stages import NO_CUDA, Context, Item, Result

NOT_YET = "not measured yet"
NOISE = 0.98
"""A ratio this close to 1 is not slower: repeated medians of one call differ by up to 2 %."""


@dataclass(frozen=True)
class Target:
    """`measured` is None where it was not measured; `note` then says why. `met` is measured against `least`,
    or `most` where less is better."""

    name: str
    unit: str
    least: float | None = None
    most: float | None = None
    measured: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.most if self.most is not None else self.measured >= (self.least or 0.0)


class Results:
    """The stages' files of a folder; only what was measured on a GPU counts."""

    def __init__(self, out: Path) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.on_gpu = False
        for name in ("environment", "correctness", "benchmarks", "profile"):
            path = out / f"{name}.json"
            if path.exists():
                stored = json.loads(path.read_text())
                self.on_gpu = self.on_gpu or stored["fingerprint"].get("device_type") == "cuda"
                self.items[name] = stored["items"]

    def result(self, stage: str, item: str) -> Result:
        """The result of an item. Raises LookupError where there is none."""
        found = self.items.get(stage, {}).get(item)
        if found is None:
            raise LookupError(NOT_YET)
        if found["status"] != "ok":
            raise LookupError(f"{item}: {found['status']}")
        return found["result"]  # type: ignore[no-any-return]

    def milliseconds(self, stage: str, item: str, candidate: str, *, how: str) -> float:
        """The median of a candidate. `how`: `hot` as fast as the GPU goes, `called` from Python, or `device`: the
        time of its kernels alone, with a cold L2."""
        result = self.result(stage, item)
        rows = [row for row in result["rows"] if row["candidate"] == candidate]
        if not rows:
            raise LookupError(f"{candidate}: {result['refused'].get(candidate, 'was not timed')}")
        by_kind = {(row["l2"], row["method"] == "kernels"): row for row in rows if row["l2"] == "cold"}
        if how == "device":
            if ("cold", True) not in by_kind:
                raise LookupError("the profiler gave no times of kernels")
            return float(by_kind["cold", True]["p50_ms"])
        hot = [row for row in rows if row["l2"] == "hot"]
        return float(hot[-1 if how == "called" else 0]["p50_ms"])


def measure(target: Target, read: Callable[[], float], results: Results) -> Target:
    """The target with its figure, or with the reason why there is none."""
    if not results.on_gpu:
        return Target(**{**asdict(target), "note": NO_CUDA})
    try:
        return Target(**{**asdict(target), "measured": read()})
    except LookupError as error:
        return Target(**{**asdict(target), "note": str(error.args[0])})


def statistic_targets(results: Results) -> Iterable[Target]:
    """Per-sample uncertainty and correlation: bandwidth, and speed-ups as called from Python."""
    for label, item in (
        ("uncertainty, 2 x 50,000 x 1000, fp32", "uncertainty, imagenet, fp32"),
        ("correlation, 2 x 50,000 x 64, fp32", "correlation, 64 columns, fp32"),
    ):

        def ratio(other: str, how: str, item: str = item) -> float:
            ours = results.milliseconds("benchmarks", item, OURS, how=how)
            return results.milliseconds("benchmarks", item, other, how=how) / ours

        share = Target(f"{label}: share of the copy bandwidth (kernels, cold L2)", "", least=0.85)
        yield measure(share, lambda ratio=ratio: ratio(COPY, "device"), results)  # type: ignore[misc]
        for other, least in ((EAGER, 10.0), (COMPILED, 2.0)):
            target = Target(f"{label}: speed-up over {other}", "x", least=least)
            yield measure(target, lambda ratio=ratio, other=other: ratio(other, "called"), results)  # type: ignore[misc]


def training_targets(results: Results) -> Iterable[Target]:
    """Mask sampling and the training step."""
    item = "sample_masks, resnet18"
    yield measure(
        Target("sample_masks, all of ResNet-18 (kernels, cold L2)", " us", most=40.0),
        lambda: 1e3 * results.milliseconds("benchmarks", item, OURS, how="device"),
        results,
    )

    def ratio(stage: str, item: str, ours: str, other: str) -> float:
        slow = results.milliseconds(stage, item, other, how="called")
        return slow / results.milliseconds(stage, item, ours, how="called")

    yield measure(
        Target("sample_masks, all of ResNet-18: speed-up over eager", "x", least=10.0),
        lambda: ratio("benchmarks", item, OURS, EAGER),
        results,
    )
    for kind in ("", ", learned masks"):
        yield measure(
            Target(
                f"training step, ResNet-18 32 px, batch 128, bf16{kind or ', fixed masks'}", "x", least=1.25
            ),
            lambda kind=kind: ratio(  # type: ignore[misc]
                "profile", "training step, ResNet-18, 32 px", OURS + kind, EAGER + kind
            ),
            results,
        )

    def slowest_layer() -> float:
        names = [name for name in results.items.get("benchmarks", {}) if name.startswith("masked_conv2d, ")]
        if not names:
            raise LookupError(NOT_YET)
        return min(ratio("benchmarks", name, OURS, EAGER) for name in names)

    yield measure(
        Target("masked_conv2d, the slowest layer against eager", "x", least=NOISE), slowest_layer, results
    )


def inference_targets(results: Results) -> Iterable[Target]:
    """Whole networks against torch.compile with BatchNorm folded."""

    def ratio(item: str) -> float:
        dense = results.milliseconds("profile", item, COMPILED, how="hot")
        ours = [results.milliseconds("profile", item, OURS, how="hot")]
        with contextlib.suppress(LookupError):  # one of two ways to run the same network
            ours.append(results.milliseconds("profile", item, f"{OURS}, compiled", how="hot"))
        return dense / min(ours)

    least = {("block", 0.9): 1.8, ("unstructured", 0.99): 1.8, ("unstructured", 0.995): 2.2}
    for batch in (128, 256):
        for (pattern, sparsity), value in least.items():
            item = f"inference, ResNet-18, {pattern} {sparsity:g}, batch {batch}"
            yield measure(Target(item, "x", least=value), lambda item=item: ratio(item), results)  # type: ignore[misc]

    def slowest() -> float:
        names = [
            f"inference, ResNet-18, {pattern} {sparsity:g}, batch {batch}"
            for pattern, sparsity in INFERENCE
            for batch in (128, 256)
        ]
        return min(ratio(name) for name in names)

    yield measure(Target("inference, the slowest of all sparsities", "x", least=NOISE), slowest, results)


def correctness_target(results: Results) -> Iterable[Target]:
    """The share of correctness items that pass."""

    def share() -> float:
        items = results.items.get("correctness", {})
        if not items:
            raise LookupError(NOT_YET)
        return sum(item["status"] == "ok" for item in items.values()) / len(items)

    yield measure(Target("correctness, share of the checks run that pass", "", least=1.0), share, results)


def all_targets(out: Path) -> list[Target]:
    """Every target of the issue that needs a GPU, from the files in `out`."""
    results = Results(out)
    groups = (correctness_target, statistic_targets, training_targets, inference_targets)
    return [target for group in groups for target in group(results)]


def items(context: Context) -> list[Item]:
    def collect(context: Context) -> Result:
        return {"targets": [{**asdict(target), "met": target.met} for target in all_targets(context.out)]}

    return [Item("table", collect, seconds=0)]


def table(out: Path) -> str:
    """The targets as a markdown table: target, wanted, measured, met."""
    rows = ["| target | wanted | measured | met |", "|---|---|---|---|"]
    for target in all_targets(out):
        bound = target.most if target.most is not None else target.least
        wanted = f"{'at most' if target.most is not None else 'at least'} {bound:g}{target.unit}"
        measured = target.note if target.measured is None else f"{target.measured:.2f}{target.unit}"
        met = {None: "-", True: "yes", False: "no"}[target.met]
        rows.append(f"| {target.name} | {wanted} | {measured} | {met} |")
    return "\n".join(rows)
