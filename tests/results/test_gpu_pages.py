"""Pages about kernels come from committed results, or from arithmetic, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import roofline
from gpu import report
from gpu.archive import read

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "gpu" / "results" / "nvidia-h100.json"


def test_the_page_is_that_of_the_committed_results() -> None:
    assert (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8") == report.page(read(RESULTS))


def test_the_page_of_kernels_shows_the_committed_results() -> None:
    kernels = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert report.with_summary(kernels, read(RESULTS)) == kernels


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no <!-- gpu:begin -->"):
        report.with_summary("# PruneBench\n", read(RESULTS))


def test_what_was_not_measured_on_a_gpu_is_left_out() -> None:
    results = read(RESULTS)
    for run in results["runs"].values():
        del run["machine"]["gpu"]
    assert report.summary(results).count("\n| ") == 1  # the head alone


def test_the_limits_are_those_of_the_program() -> None:
    assert (ROOT / "docs" / "roofline.md").read_text(encoding="utf-8") == roofline.page()


def test_a_floor_is_the_longest_of_three_times() -> None:
    gpu = roofline.Gpu("made up", bytes_per_s=1e12, flop_per_s=1e14, warp_instructions_per_s=1e12)
    assert roofline.Work("bytes", 3e6, 1e8, 1e6).floor_us(gpu) == (pytest.approx(3.0), "bytes")
    assert roofline.Work("FLOP", 1e6, 4e8, 1e6).floor_us(gpu) == (pytest.approx(4.0), "FLOP")
    assert roofline.Work("issue", 1e6, 1e8, 5e6).floor_us(gpu) == (pytest.approx(5.0), "issue")
    assert roofline.per_element(64, 8) == 16
