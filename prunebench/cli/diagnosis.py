"""The verdicts of `prunebench doctor`: for what this machine is ready, and what the rest lacks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prunebench.cli.console import Field, console, fitting_table
from prunebench.inference.busy import machine_load
from prunebench.runner.jail import explain_sandbox

EXTRAS = {
    "timm": ("models named timm:NAME", "pip install 'prunebench[timm]'"),
    "onnxruntime": ("export to ONNX, and ONNX Runtime's latencies", "pip install 'prunebench[onnx]'"),
    "openvino": ("OpenVINO's latencies (export --engine)", "pip install 'prunebench[openvino]'"),
    "s3fs": ("artifacts on S3", "pip install 'prunebench[s3]'"),
    "huggingface_hub": ("artifacts on the Hugging Face hub", "pip install 'prunebench[hf]'"),
}
"""Modules of extras: what they are for, and how they are installed."""


@dataclass(frozen=True)
class Verdict:
    """A use of this machine: ready, or what it lacks."""

    use: str
    lacks: str | None = None

    @property
    def words(self) -> str:
        return f"{self.use}: ready" if self.lacks is None else f"{self.use}: {self.lacks}"


def verdicts(data_root: Path | None) -> Iterator[Verdict]:
    """One for every suite, for timing, for a GPU, for the sandbox and for each extra."""
    yield from _suite_verdicts(data_root)
    busy = machine_load().problem()
    yield Verdict("speeds (run, retime, profile)", busy)
    yield Verdict("a GPU", _gpu_problem())
    yield Verdict("run --sandbox (methods of files see no data, results or network)", explain_sandbox())
    for module, (use, install) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Verdict(use, None if there else f"optional, not installed: {install}")


def _suite_verdicts(data_root: Path | None) -> Iterator[Verdict]:
    from prunebench.errors import DataError, PruneBenchError
    from prunebench.suites import load_suite, suite_names
    from prunebench.tasks import resolve_task

    problems: dict[str, str | None] = {}

    def problem(name: str) -> str | None:
        if name not in problems:
            try:
                resolve_task(name, data_root).fingerprint(data_root)
                problems[name] = None
            except DataError as error:
                problems[name] = f"no data: {error}"
            except PruneBenchError as error:
                problems[name] = str(error)
        return problems[name]

    by_problem: dict[str | None, list[str]] = {}
    for name in suite_names():
        lacks = next((why for task in load_suite(name).tasks if (why := problem(task))), None)
        by_problem.setdefault(lacks, []).append(name)
    for lacks, names in by_problem.items():
        yield Verdict(f"run {', '.join(names)}", lacks)


def _gpu_problem() -> str | None:
    import torch

    if torch.cuda.is_available():
        return None
    return "none that torch sees; --device cpu is what runs here"


def print_diagnosis(data_root: Path | None) -> None:
    """Verdicts first, then versions and device as records will state them."""
    from prunebench.api import choose_device
    from prunebench.runner.environment import describe_code, describe_environment

    found = list(verdicts(data_root))
    for verdict in sorted(found, key=lambda entry: entry.lacks is not None):
        mark, colour = ("ok  ", "green") if verdict.lacks is None else ("--  ", "yellow")
        console.print(f"{mark} {verdict.words}", style=colour, soft_wrap=True)
    facts = {**describe_environment(choose_device("auto")), **describe_code()}
    rows = [(key, "none" if value is None else str(value)) for key, value in facts.items()]
    console.print(fitting_table((Field("what"), Field("found", whole=False)), rows)[0])


def compare_kernels() -> int:
    """Every operation by its kernel and by torch, in a process of its own: Triton's interpreter is chosen there."""
    return subprocess.run([sys.executable, "-m", "prunebench_kernels.self_test"], check=False).returncode
