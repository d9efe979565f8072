"""The machine: what it is, and the ceilings that it reaches in this very session."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from gpu_stages import Context, Item, Result
from prunebench_kernels.sparse.choices import device_name
from timing import time_calls

ROOT = Path(__file__).resolve().parents[1]
SMI_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
)


def source_hash() -> str:
    """12 hex digits of the kernels' source and tuned tables: results of other source are not continued."""
    digest = hashlib.sha256()
    folder = ROOT / "kernels" / "prunebench_kernels"
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def triton_version() -> str:
    """Triton's version, or `none`."""
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


def fingerprint(device: torch.device) -> dict[str, str]:
    """What a number depends on: results under another fingerprint are begun anew."""
    return {
        "device": device_name(device),
        "device_type": device.type,
        "torch": torch.__version__,
        "triton": triton_version(),
        "interpreted": os.environ.get("TRITON_INTERPRET", "0"),
        "source": source_hash(),
    }


def command_output(*command: str) -> str | None:
    """What a command prints, or None where it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def packed_commit() -> str | None:
    """The commit that `bench/pack.py` wrote beside a copy of the source without git."""
    path = ROOT / "commit.json"
    return json.loads(path.read_text())["commit"] if path.is_file() else None


def describe_machine(context: Context) -> Result:
    """Versions, processor, commit and, of a GPU, its properties, driver and clocks as found."""
    described: Result = {
        **context.fingerprint,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "commit": command_output("git", "rev-parse", "HEAD") or packed_commit(),
        "changed_files": (command_output("git", "status", "--porcelain") or "").splitlines()[:50],
        "gpu": None,
    }
    if context.cuda:
        properties = torch.cuda.get_device_properties(context.device)
        smi = command_output(
            "nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "--id=0"
        )
        described["gpu"] = {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia_smi": dict(zip(SMI_FIELDS, (smi or "").split(", "))),
        }
    return described


def measure_copy(context: Context) -> Result:
    """Copy bandwidth: bytes read and written by `copy_` of a buffer far larger than the cache, per second."""
    count = context.sizes(2**30, 2**24)  # 4 GiB and 64 MiB of float32
    source = torch.rand(count, device=context.device)
    target = torch.empty_like(source)
    timing = time_calls(
        {"copy": lambda: target.copy_(source)}, context.device, seconds=context.sizes(2.0, 0.2), graph=False
    )["copy"]
    moved = 2 * source.nbytes
    return {**timing.to_dict(), "bytes": moved, "gb_per_s": moved / timing.p50_ms / 1e6}


def measure_matmul(context: Context) -> Result:
    """Tera floating-point operations per second of a large square matrix product, in each precision."""
    size = context.sizes(8192, 512)
    generator = context.generator()
    rows: dict[str, Result] = {}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("fp16", torch.float16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        if not context.cuda and name in ("fp16", "tf32"):
            continue  # a processor has no TF32, and multiplies fp16 in software
        # Random numbers: a product of zeros draws less power and runs faster.
        a, b = (
            torch.randn(size, size, device=context.device, generator=generator).to(dtype) for _ in range(2)
        )
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            timing = time_calls(
                {name: lambda a=a, b=b: a @ b},  # type: ignore[misc]
                context.device,
                seconds=context.sizes(1.0, 0.2),
                graph=False,
            )[name]
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        rows[name] = {**timing.to_dict(), "tflop_per_s": 2 * size**3 / timing.p50_ms / 1e9}
    return {"size": size, "precisions": rows}


def items(context: Context) -> list[Item]:
    return [
        Item("machine", describe_machine, seconds=3),
        Item("copy bandwidth", measure_copy, seconds=6),
        Item("matrix product", measure_matmul, seconds=10),
    ]
