"""What the machine code of compiled kernels shows, read with the cuobjdump and nvdisasm that Triton carries."""

from __future__ import annotations

import bisect
import itertools
import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?\w+ )?([A-Z][A-Z0-9_.]*)(.*)", re.MULTILINE)


def code_of(cubin: bytes) -> bytes:
    """The instructions of all functions in a cubin (64-bit ELF): its sections .text.*."""
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + index * size) for index in range(count)]
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


def count_instructions(assembly: str) -> dict[str, int]:
    """Spills, tensor-core instructions and vector loads in nvdisasm's listing, by the fields of CompiledFigures."""
    instructions = _INSTRUCTION.findall(assembly)
    if not instructions:
        raise RuntimeError("nvdisasm printed no instruction")
    opcodes = [opcode.split(".") for _, opcode, _ in instructions]

    def count(*names: str, modifier: str = "") -> int:
        return sum(parts[0] in names and (not modifier or modifier in parts) for parts in opcodes)

    waits = [
        int(found[1], 16)
        for _, opcode, operands in instructions
        if opcode.startswith("WARPGROUP.DEPBAR") and (found := re.search(r"0x([0-9a-f]+)", operands))
    ]
    return {
        "spill_stores": count("STL"),
        "spill_loads": count("LDL"),
        "hgmma": count("HGMMA"),
        "hmma": count("HMMA"),
        "imma": count("IMMA", "IGMMA"),
        "vector_loads": count("LDG", "LDGSTS", modifier="128") + count("UTMALDG", "UBLKCP"),
        "wgmma_depth": max(waits, default=0),
    }
