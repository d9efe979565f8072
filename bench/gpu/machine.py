"""The machine of a run: what it is, which source ran, and the ceilings that it reaches in that very run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch

from gpu.schedule import Call, Context, Result
from gpu.subjects import op, precision

ROOT = Path(__file__).resolve().parents[2]
MADE = "made.json"
"""In the Triton cache: the commit and the versions that it was made with."""
SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.limit")


def source_hash() -> str:
    """12 hex digits of the Python source of the kernels, of PruneBench and of the benchmarks."""
    digest = hashlib.sha256()
    for folder in ("kernels", "prunebench", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def output_of(*command: str) -> str | None:
    """What a command prints, or None where it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> dict[str, Any]:
    """The commit of the tree; without git, that which the Triton cache was made at, if the source is the same."""
    source = source_hash()
    if found := output_of("git", "rev-parse", "HEAD"):
        changed = (
            output_of("git", "status", "--porcelain", "--", "kernels", "prunebench", "bench") or ""
        ).split("\n")
        return {"commit": found, "changed_files": [line for line in changed if line][:50], "source": source}
    folder = os.environ.get("TRITON_CACHE_DIR")
    path = Path(folder) / MADE if folder else None
    if path is not None and path.is_file():
        made = json.loads(path.read_text())
        if made["source"] == source:
            return {key: made[key] for key in ("commit", "changed_files", "source")}
    return {"commit": None, "changed_files": None, "source": source}


def describe(context: Context) -> Result:
    """Versions, processor, commit and, of a GPU, its properties, driver and clocks as found."""
    found: Result = {
        "device": op("measured", "device_name")(context.device),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "interpreted": os.environ.get("TRITON_INTERPRET", "0"),
        "reduced_shapes": not context.is_full,
        **commit(),
    }
    if context.on_gpu:
        properties = torch.cuda.get_device_properties(context.device)
        smi = output_of(
            "nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "--id=0"
        )
        found["gpu"] = {
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "nvidia_smi": dict(zip(SMI_FIELDS, (smi or "").split(", "))),
        }
    return found


def _version(package: str) -> str | None:
    try:
        return str(__import__(package).__version__)
    except ImportError:
        return None


def ceilings(context: Context) -> dict[str, Any]:
    """Copy bandwidth in GB/s (bytes read and written), and TFLOP/s of a large square product in each precision."""
    seconds = context.sizes(1.0, 0.05)

    def timed(call: Call) -> timing.CallTiming:
        return timing.time_calls({"": call}, context.device, seconds=seconds, graph=False)[""]

    source = torch.rand(context.sizes(2**30, 2**22), device=context.device)  # 4 GiB: far more than the cache
    copies = torch.empty_like(source)
    copy = timed(lambda: copies.copy_(source))
    found: dict[str, Any] = {"copy_gb_per_s": 2 * source.nbytes / copy.p50_ms / 1e6, "copy": copy.to_dict()}
    size = context.sizes(8192, 256)
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32), ("fp32", torch.float32)):
        # Random numbers: a product of zeros draws less power and runs faster.
        a, b = (torch.randn(size, size, device=context.device).to(dtype) for _ in range(2))
        with precision(tf32=name == "tf32"):
            product = timed(partial(torch.matmul, a, b))
        found |= {f"{name}_tflop_per_s": 2 * size**3 / product.p50_ms / 1e9, name: product.to_dict()}
    return found
