"""Limits of every operation by arithmetic: bytes, FLOP and instructions against what two GPUs can do.

    python bench/roofline.py --out docs/roofline.md

Nothing here is a measurement of a kernel: `docs/gpu.md` has those. Ceilings are a datasheet's or a copy's rates, given
once below; instructions per element are counted in the machine code that Triton makes (tests/kernels holds them).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from cases import LAYER_REPEATS, MASK_LAYERS, RESNET18_32


@dataclass(frozen=True)
class Gpu:
    """Rates that bound a kernel: copy bandwidth (read plus write), bf16 tensor cores, and instruction issue."""

    name: str
    bytes_per_s: float
    flop_per_s: float
    warp_instructions_per_s: float = 132 * 4 * 1.755e9


GPUS = (Gpu("H100", 3.0e12, 800e12), Gpu("H200", 4.3e12, 790e12))


@dataclass(frozen=True)
class Work:
    """What an operation must do: bytes moved once, FLOP on tensor cores, and instructions of all warps."""

    name: str
    nbytes: float
    flop: float = 0.0
    instructions: float = 0.0
    expected: str = ""

    def floor_us(self, gpu: Gpu) -> tuple[float, str]:
        """The longest of the three times, in microseconds, and which it is."""
        times = {
            "bytes": self.nbytes / gpu.bytes_per_s,
            "FLOP": self.flop / gpu.flop_per_s,
            "issue": self.instructions / gpu.warp_instructions_per_s,
        }
        bound = max(times, key=lambda name: times[name])
        return times[bound] * 1e6, bound


def per_element(count: int, instructions: float) -> float:
    """Warp instructions of `count` elements at so many instructions each."""
    return count * instructions / 32


def works() -> list[Work]:
    weights = sum(math.prod(shape) for shape in MASK_LAYERS["resnet18"])
    logits = 2 * 50_000 * 1000
    found = [
        Work(
            "uncertainty, 2 x 50,000 x 1000, fp32",
            4 * logits * 1.5,
            0,
            per_element(logits, 30),
            "0.85 of a copy",
        ),
        Work(
            "uncertainty, 1000 x 10,000 x 10, fp32", 600e6, 0, per_element(10**8, 35), "0.6 to 0.8 of a copy"
        ),
        Work(
            "correlation, 2 x 50,000 x 64, fp32", 25.6e6, 2 * 2 * 50_000 * 64 * 64 * 3, 4.4e6, "2x of float64"
        ),
        Work("sample_masks, ResNet-18, bf16 products", 10 * weights, 0, per_element(weights, 58), "a copy"),
        Work("apply_masks, ResNet-18, bf16 products", 10 * weights, 0, per_element(weights, 11), "a copy"),
        Work("MaskHold, ResNet-18", 12 * weights, 0, per_element(weights, 4), "a copy"),
    ]
    for case in RESNET18_32[128]:
        if case.in_channels < 64:
            continue
        repeats = LAYER_REPEATS.get(case.name, 1)
        outer = 2 * (math.prod(case.x_shape) + math.prod(case.y_shape))
        for title, density, expected in (("dense", 1.0, "cuDNN"), ("block 90 %", 0.1, "2x to 3x of cuDNN")):
            kept = 2 * math.prod(case.weight_shape) * density
            name = f"conv {case.name} x{repeats}, {title}, forward"
            found.append(Work(name, outer + kept, case.flop * density, 0, expected))
    return found


def page() -> str:
    """The table as Markdown."""
    head = "| operation | MB | GFLOP | M warp instr. |" + "".join(f" floor {g.name}, us |" for g in GPUS)
    rows = [head + " expected |", "|---|--:|--:|--:|" + "--:|" * len(GPUS) + "---|"]
    for work in works():
        floors = [work.floor_us(gpu) for gpu in GPUS]
        cells = [
            work.name,
            f"{work.nbytes / 1e6:.1f}",
            f"{work.flop / 1e9:.2f}" if work.flop else "",
            f"{work.instructions / 1e6:.1f}" if work.instructions else "",
            *(f"{time:.1f} ({bound})" for time, bound in floors),
            work.expected,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    ceilings = "; ".join(
        f"{g.name}: {g.bytes_per_s / 1e12:.1f} TB/s, {g.flop_per_s / 1e12:.0f} TFLOP/s in bf16, "
        f"{g.warp_instructions_per_s / 1e9:.0f} G warp instructions/s"
        for g in GPUS
    )
    return "\n".join(
        [
            "# Limits of the kernels, by arithmetic",
            "",
            "Made by `python bench/roofline.py --out docs/roofline.md`. No number here is a measurement of a kernel:",
            "[gpu.md](gpu.md) has those. The floor is the longest of three times: every byte moved once, every FLOP on",
            f"tensor cores, every instruction issued. Ceilings assumed: {ceilings}.",
            "",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="the page (default: print it)")
    options = parser.parse_args()
    if options.out is None:
        print(page())
    else:
        options.out.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
