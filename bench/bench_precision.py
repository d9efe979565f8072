"""bf16 autocast against float32: how much faster, and is accuracy within noise? Seeds paired, one run.

uv run pytest bench/bench_precision.py -s
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from scipy import stats

from prunebench.api import execute_plan, make_plan
from prunebench.results.store import Store
from prunebench.suites import Suite
from prunebench.training import resolve_precision

SEEDS = (0, 1, 2, 3, 4)
METRICS = ("unbiased", "aligned", "conflicting")


def run_in(precision: str, out: Path) -> tuple[dict[int, dict[str, float | None]], float]:
    """Dense colored-digits models in one precision: metrics by seed, and seconds."""
    suite = Suite(
        precision, ("colored-digits@2pct",), ("dense",), (0.5,), SEEDS, recipe={"precision": precision}
    )
    start = time.perf_counter()
    execute_plan(make_plan(suite, out=out, device="cpu"), workers=0)
    seconds = time.perf_counter() - start
    return {record.spec["seed"]: record.metrics for record in Store(out).records()[0]}, seconds


def test_bf16_leaves_accuracy_within_noise(tmp_path: Path) -> None:
    if resolve_precision("auto", torch.device("cpu")) != "bf16":
        pytest.skip("this processor does not multiply bf16 natively, so `auto` trains in float32")
    (half, half_seconds), (full, full_seconds) = (run_in(name, tmp_path / name) for name in ("bf16", "fp32"))
    print(f"\n{len(SEEDS)} dense colored-digits models: fp32 {full_seconds:.1f} s, bf16 {half_seconds:.1f} s")
    for name in METRICS:
        differences = [(half[seed][name] or 0.0) - (full[seed][name] or 0.0) for seed in SEEDS]
        mean = sum(differences) / len(SEEDS)
        test = stats.ttest_1samp(differences, 0.0) if len(set(differences)) > 1 else None
        p = 1.0 if test is None else float(test.pvalue)
        print(f"  {name:12s} bf16 - fp32 = {mean:+.4f} (paired t-test over seeds, p = {p:.2f})")
        assert p > 0.01
