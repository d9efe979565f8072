"""Roofline: measured ceilings of the machine, and the time that a layer needs beneath them at any density."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunebench.profile.layers import ConvShape
from prunebench.profile.results import Ceilings, LayerRoof
from prunebench.profile.stopwatch import Stopwatch, cache_bytes, fastest
from prunebench.pruning.structure import BLOCK

GPU_MATRIX, CPU_MATRIX = 8192, 1024
"""Side of the multiplied matrices: at these sizes more no longer helps."""
CPU_CONVOLUTION, GPU_CONVOLUTION = (8, 128, 28), (128, 512, 28)
"""Batch, channels, and rows of the image that is convolved."""
TRIALS = 5
SLOW = 3.0
"""Seconds of trials after which there is no second time: half precision that a processor only emulates."""


@dataclass(frozen=True)
class ConvWork:
    """What a convolution of a whole batch must compute and move at least once."""

    flop: float
    activation_bytes: float
    weight_bytes: float

    @property
    def intensity(self) -> float:
        """FLOP per byte, dense."""
        return self.flop / (self.activation_bytes + self.weight_bytes)


def work_of(shape: ConvShape, batch: int, value_bytes: int) -> ConvWork:
    """FLOP = 2 M O K with M = N OH OW and K = I/G KH KW; bytes: input positions that are read, output, weight."""
    weights = math.prod(shape.geometry.weight_shape)
    positions = batch * math.prod(shape.output_size)
    inputs = batch * shape.touched_inputs * shape.geometry.in_channels
    activations = inputs + positions * shape.geometry.out_channels
    return ConvWork(2.0 * positions * weights, float(value_bytes * activations), float(value_bytes * weights))


def bound(work: ConvWork, ceilings: Ceilings, density: float = 1.0) -> float:
    """Milliseconds beneath the ceilings, max(compute, memory), if only this share of weights is loaded and used."""
    moved = work.activation_bytes + density * work.weight_bytes
    compute = density * work.flop / ceilings.gflop_per_s / 1e6
    return max(compute, moved / ceilings.copy_gb_per_s / 1e6)


def ceiling(work: ConvWork, ceilings: Ceilings, density: float) -> float:
    """The speed-up that a roofline allows: dense bound over the bound at this density."""
    return bound(work, ceilings) / bound(work, ceilings, density)


def memory_bound_below(work: ConvWork, ceilings: Ceilings) -> float:
    """The density below which memory is the bound, in [0, 1]; skipped weights are not loaded either."""
    compute = work.flop / ceilings.gflop_per_s
    weight, rest = (part / ceilings.copy_gb_per_s for part in (work.weight_bytes, work.activation_bytes))
    return min(1.0, rest / (compute - weight)) if compute > weight else 1.0


def layer_roof(work: ConvWork, ceilings: Ceilings, block_density: float, density: float) -> LayerRoof:
    """A layer's bounds: dense, of kernels that skip zero blocks, and of those for which every zero is free."""
    below = memory_bound_below(work, ceilings)
    return LayerRoof(
        gflop=work.flop / 1e9,
        megabytes=(work.activation_bytes + work.weight_bytes) / 1e6,
        flop_per_byte=work.intensity,
        bound_by="compute" if below < 1 else "memory",
        dense_ms=bound(work, ceilings),
        memory_bound_below_density=below,
        block_density=block_density,
        block_ms=bound(work, ceilings, block_density),
        block_ceiling=ceiling(work, ceilings, block_density),
        free_ms=bound(work, ceilings, density),
        free_ceiling=ceiling(work, ceilings, density),
    )


def block_density(mask: Tensor, block: tuple[int, int] = BLOCK) -> float:
    """Share of the weights that lie in blocks (output x input channels within a tap) with any non-zero.

    This is the density that matrix units see: only a block that is zero throughout can be skipped.
    """
    rows = torch.arange(mask.shape[0], device=mask.device) // block[0]
    columns = torch.arange(mask.shape[1], device=mask.device) // block[1]
    alive = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1, *mask.shape[2:], device=mask.device)
    partial = torch.zeros(len(alive), *mask.shape[1:], device=mask.device)
    partial.index_add_(0, rows, mask.float())
    alive.index_add_(1, columns, partial)
    return float((alive > 0)[rows][:, columns].float().mean())


class CeilingMeter:
    """The best copy of a buffer far larger than the cache, product and convolution of all trials so far.

    Trials are spread over a profile, because a machine that is busy with other work shows its ceilings only now
    and then. On a GPU in fp32 the product uses TF32 where cuDNN's convolutions do.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        gpu, cache = device.type == "cuda", cache_bytes(device)
        size = max(4 * cache, (512 << 20) if gpu else (64 << 20))
        side = GPU_MATRIX if gpu else CPU_MATRIX
        batch, channels, rows = GPU_CONVOLUTION if gpu else CPU_CONVOLUTION
        last = torch.channels_last
        source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        image, kernel = (
            torch.randn(*shape, device=device).to(dtype, memory_format=last)
            for shape in ((batch, channels, rows, rows), (channels, channels, 3, 3))
        )
        self._work: dict[str, tuple[Callable[[], object], float]] = {
            "copy_gb_per_s": (lambda: target.copy_(source), 2.0 * size),
            "matmul_gflop_per_s": (lambda: left @ right, 2.0 * side**3),
            "convolution_gflop_per_s": (
                lambda: torch.nn.functional.conv2d(image, kernel, padding=1), 18.0 * batch * rows**2 * channels**2,
            ),
        }  # fmt: skip
        self._stopwatch, self._gpu, self._seconds = Stopwatch(device), gpu, 0.0
        flushed = self._stopwatch.flushed_bytes / 1e6
        self.ceilings = Ceilings(0.0, 0.0, cache_mb=cache / 1e6, flushed_mb=flushed)

    @torch.inference_mode()
    def try_again(self, trials: int = TRIALS) -> None:
        """A few more trials; the best count."""
        if self._seconds > SLOW:
            return
        begun, before = time.monotonic(), torch.get_float32_matmul_precision()
        if self._gpu and torch.backends.cudnn.allow_tf32:
            torch.set_float32_matmul_precision("high")
        try:
            for name, (call, amount) in self._work.items():
                rate = 1e-9 * amount / fastest(call, self._stopwatch, trials)
                best = max(rate, getattr(self.ceilings, name))
                self.ceilings = replace(self.ceilings, **{name: best})
        finally:
            torch.set_float32_matmul_precision(before)
        self._seconds = time.monotonic() - begun
