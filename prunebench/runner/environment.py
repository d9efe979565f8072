"""The environment of a number: machine, versions, commit."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from prunebench.errors import UsageError
from prunebench.training.loop import resolve_precision


def describe_environment(device: str, precision: str = "auto") -> dict[str, str | int | None]:
    """Python, library and driver versions, processor and accelerator; absent ones are None."""
    facts = dict(_machine())
    where = torch.device(device)
    facts["device"] = where.type
    facts["precision"] = resolve_precision(precision, where)
    facts["threads"] = torch.get_num_threads()
    facts["kernels"] = requested_kernels()
    facts["gpu"] = torch.cuda.get_device_name(where) if where.type == "cuda" else None
    facts["driver"] = _driver_version() if where.type == "cuda" else None
    return facts


def requested_kernels() -> str:
    """Which kernels PRUNEBENCH_KERNELS asks for. Raises UsageError with the choices for another word."""
    from prunebench_kernels.dispatch import requested

    try:
        return requested(None)
    except ValueError as error:
        raise UsageError(str(error)) from error


@functools.cache
def _machine() -> tuple[tuple[str, str | int | None], ...]:
    return (
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("torchvision", _version("torchvision")),
        ("triton", _version("triton")),
        ("numpy", _version("numpy")),
        ("cuda", torch.version.cuda),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("cpu", _processor()),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


@functools.cache
def _driver_version() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout else None


@functools.cache
def _code() -> tuple[tuple[str, str | bool | None], ...]:
    root = Path(__file__).parent.parent.parent
    commit, dirty = None, None
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "prunebench", "kernels", "pyproject.toml")
        dirty = None if changed is None else bool(changed)
    return (("version", _version("prunebench")), ("commit", commit), ("dirty", dirty))


def describe_code() -> dict[str, str | bool | None]:
    """Package version and, in a checkout, the commit and whether the code differs from it."""
    return dict(_code())


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
