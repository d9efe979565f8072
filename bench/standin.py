"""A stand-in for the GPU: kernels go through Triton's real launch path and are compiled; the launch does nothing.

    with stand_in(90) as seen:
        uncertainty(logits, backend="triton")     # tensors lie on the CPU
    figures_of(seen.kernels, 90)

Three things need it: tests that read the machine code of kernels exactly as they are called, a Triton cache that
travels to a GPU machine (`bench/gpu/cache.py`), and the host's time for a call (`bench/bench_host_*.py`). Triton's
interpreter must be off in the process.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from prunebench_kernels import dispatch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

SHARED_MEMORY_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes a block may use (CUDA programming guide, technical specifications per compute capability)."""
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?\w+ )?([A-Z][A-Z0-9_.]*)(.*)", re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its name, machine code, and bytes of shared memory."""

    name: str
    cubin: bytes
    shared_bytes: int


@dataclass
class Seen:
    """What happened under the stand-in: kernels, in the order in which they were first compiled, and launches."""

    kernels: list[Kernel] = field(default_factory=list)
    launches: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)


class _Utils:
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def load_binary(
        self, name: str, cubin: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        self._seen.kernels.append(Kernel(name, cubin, shared))
        return (1, 1, 32, 0, 1024)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}


class _Driver:
    """Triton's driver interface, as far as JIT launches ask it. The device's number is the capability."""

    def __init__(self, capability: int, seen: Seen) -> None:
        self._capability, self.utils = capability, _Utils(seen)

        class Launcher:
            def __init__(self, source: Any, metadata: Any) -> None:
                self._name = metadata.name

            def __call__(self, x: int, y: int, z: int, *rest: Any) -> None:
                seen.launches.append((self._name, (x, y, z)))

        self.launcher_cls = Launcher

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda


@contextlib.contextmanager
def stand_in(capability: int = 90) -> Iterator[Seen]:
    """Kernels asked for with `backend="triton"` are compiled for sm_`capability`; `Seen` fills as they are.

    A kernel is seen once a process and capability. Results of calls are whatever memory held. Raises RuntimeError in
    Triton's interpreter.
    """
    if dispatch.is_interpreted():
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, there is nothing to compile")
    seen = Seen()
    driver.set_active(_Driver(capability, seen))
    dispatch.STAND_IN = True
    try:
        yield seen
    finally:
        dispatch.STAND_IN = False
        with contextlib.suppress(RuntimeError):  # raised where there is no GPU to go back to
            driver.reset_active()


# --- machine code --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What a kernel became: sizes in bytes, instructions counted in the SASS (NOPs left out).

    `vector_loads` are 128-bit loads from global memory (LDG, asynchronous copies LDGSTS) and bulk tensor loads
    (UTMALDG); `wgmma_depth` is the largest number of WGMMA groups left in flight by a wait (0: every one waits).
    """

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    spills: int
    hgmma: int
    hmma: int
    vector_loads: int
    barriers: int
    wgmma_depth: int


def figures_of(kernels: Sequence[Kernel], capability: int = 90) -> list[Figures]:
    """The figures of kernels, disassembled at once: nvdisasm takes 0.2 s to start."""
    if not kernels:
        return []
    listings = disassemble([code_of(kernel.cubin) for kernel in kernels], capability)
    return [
        Figures(
            kernel.name, shared_bytes=kernel.shared_bytes, **resource_usage(kernel.cubin), **count(listing)
        )
        for kernel, listing in zip(kernels, listings)
    ]


def code_of(cubin: bytes) -> bytes:
    """The instructions of all functions in a cubin (64-bit ELF): its sections .text.*."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, number, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + index * size) for index in range(number)]
    names = cubin[sections[names_at][4] :]
    found = [
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if names[name:].startswith(b".text.")
    ]
    if not found:
        raise RuntimeError("the cubin holds no code")
    return b"".join(found)


def disassemble(codes: Sequence[bytes], capability: int) -> list[str]:
    """nvdisasm's listing of each code: one run over all of them, one after the other, cut at their offsets."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        # Without data-flow analysis, which only labels branches.
        listing = _run("nvdisasm", "--binary", f"SM{capability}", "--no-dataflow", file.name)
    ends = list(itertools.accumulate(len(code) for code in codes))
    parts: list[list[str]] = [[] for _ in codes]
    for line in listing.splitlines():
        if found := _INSTRUCTION.match(line):
            parts[bisect.bisect_right(ends, int(found[1], 16))].append(line)
    return ["\n".join(lines) for lines in parts]


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes of a thread, of a cubin that holds one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage!r}")
    return {"registers": int(found[1]), "stack_bytes": int(found[2])}


def _run(tool: str, *arguments: str) -> str:
    from triton.backends import nvidia

    path = Path(nvidia.__file__).parent / "bin" / tool
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout


def count(assembly: str) -> dict[str, int]:
    """Instructions of the kinds that `Figures` names, in nvdisasm's listing."""
    instructions = _INSTRUCTION.findall(assembly)
    if not instructions:
        raise RuntimeError("nvdisasm printed no instruction")
    opcodes = [opcode.split(".") for _, opcode, _ in instructions]

    def number(*names: str, modifier: str = "") -> int:
        return sum(parts[0] in names and (not modifier or modifier in parts) for parts in opcodes)

    waits = [
        int(found[1], 16)
        for _, opcode, operands in instructions
        if opcode.startswith("WARPGROUP.DEPBAR") and (found := re.search(r"0x([0-9a-f]+)", operands))
    ]
    return {
        "instructions": len(opcodes) - number("NOP"),
        "spills": number("STL", "LDL"),
        "hgmma": number("HGMMA", "IGMMA"),
        "hmma": number("HMMA", "IMMA"),
        "vector_loads": number("LDG", "LDGSTS", modifier="128") + number("UTMALDG", "UBLKCP"),
        "barriers": number("BAR"),
        "wgmma_depth": max(waits, default=0),
    }
