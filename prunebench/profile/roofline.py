"""Roofline: measured ceilings of the machine, and the time that a layer needs beneath them at any density."""

from __future__ import annotations

import math
import time
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


@dataclass(frozen=True)
class RooflineBound:
    """Milliseconds beneath the ceilings: max(compute, memory)."""

    compute_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        return max(self.compute_ms, self.memory_ms)

    @property
    def by(self) -> str:
        return "compute" if self.compute_ms > self.memory_ms else "memory"


def work_of(shape: ConvShape, batch: int, value_bytes: int) -> ConvWork:
    """FLOP = 2 M O K with M = N OH OW and K = I/G KH KW; bytes: input positions that are read, output, weight."""
    rows, columns = shape.output_size
    reduction = shape.in_channels // shape.groups * math.prod(shape.kernel)
    outputs = batch * rows * columns * shape.out_channels
    inputs = batch * shape.touched_inputs * shape.in_channels
    return ConvWork(
        2.0 * outputs * reduction,
        float(value_bytes * (inputs + outputs)),
        float(value_bytes * shape.out_channels * reduction),
    )


def bound(work: ConvWork, ceilings: Ceilings, density: float = 1.0) -> RooflineBound:
    """The time bound if only the share `density` of the weights is loaded and multiplied."""
    moved = work.activation_bytes + density * work.weight_bytes
    return RooflineBound(
        density * work.flop / ceilings.gflop_per_s / 1e6, moved / ceilings.copy_gb_per_s / 1e6
    )


def ceiling(work: ConvWork, ceilings: Ceilings, density: float) -> float:
    """The speed-up that a roofline allows: dense bound over the bound at this density."""
    return bound(work, ceilings).ms / bound(work, ceilings, density).ms


def memory_bound_below(work: ConvWork, ceilings: Ceilings) -> float:
    """The density below which memory is the bound, in [0, 1]; skipped weights are not loaded either."""
    compute = work.flop / ceilings.gflop_per_s
    weight, rest = (part / ceilings.copy_gb_per_s for part in (work.weight_bytes, work.activation_bytes))
    return min(1.0, rest / (compute - weight)) if compute > weight else 1.0


def layer_roof(work: ConvWork, ceilings: Ceilings, block_density: float, density: float) -> LayerRoof:
    """A layer's bounds: dense, of kernels that skip zero blocks, and of those for which every zero is free."""
    dense = bound(work, ceilings)
    return LayerRoof(
        gflop=work.flop / 1e9,
        megabytes=(work.activation_bytes + work.weight_bytes) / 1e6,
        flop_per_byte=work.intensity,
        bound_by=dense.by,
        dense_ms=dense.ms,
        memory_bound_below_density=memory_bound_below(work, ceilings),
        block_density=block_density,
        block_ms=bound(work, ceilings, block_density).ms,
        block_ceiling=ceiling(work, ceilings, block_density),
        free_ms=bound(work, ceilings, density).ms,
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
        self._stopwatch = Stopwatch(device)
        self._gpu = device.type == "cuda"
        self._bytes = max(4 * cache_bytes(device), (512 << 20) if self._gpu else (64 << 20))
        self._source, self._target = (
            torch.ones(self._bytes, dtype=torch.uint8, device=device) for _ in range(2)
        )
        self._side = GPU_MATRIX if self._gpu else CPU_MATRIX
        self._factors = [torch.randn(self._side, self._side, device=device).to(dtype) for _ in range(2)]
        batch, channels, side = GPU_CONVOLUTION if self._gpu else CPU_CONVOLUTION
        last = torch.channels_last
        self._image, self._kernel = (
            torch.randn(*shape, device=device).to(dtype, memory_format=last)
            for shape in ((batch, channels, side, side), (channels, channels, 3, 3))
        )
        self._convolution_flop = 18.0 * batch * side**2 * channels**2
        cache, flushed = cache_bytes(device) / 1e6, self._stopwatch.flushed_bytes / 1e6
        self.ceilings = Ceilings(0.0, 0.0, cache_mb=cache, flushed_mb=flushed)
        self._seconds = 0.0

    @torch.inference_mode()
    def try_again(self, trials: int = TRIALS) -> None:
        """A few more trials; the best count."""
        if self._seconds > SLOW:
            return
        begun = time.monotonic()
        left, right = self._factors
        copied = fastest(lambda: self._target.copy_(self._source), self._stopwatch, trials)
        before = torch.get_float32_matmul_precision()
        if self._gpu and torch.backends.cudnn.allow_tf32:
            torch.set_float32_matmul_precision("high")
        try:
            multiplied = fastest(lambda: left @ right, self._stopwatch, trials)
        finally:
            torch.set_float32_matmul_precision(before)
        convolved = fastest(
            lambda: torch.nn.functional.conv2d(self._image, self._kernel, padding=1), self._stopwatch, trials
        )
        best = self.ceilings
        self.ceilings = replace(
            best,
            copy_gb_per_s=max(best.copy_gb_per_s, 2e-9 * self._bytes / copied),
            matmul_gflop_per_s=max(best.matmul_gflop_per_s, 2e-9 * self._side**3 / multiplied),
            convolution_gflop_per_s=max(
                best.convolution_gflop_per_s, 1e-9 * self._convolution_flop / convolved
            ),
        )
        self._seconds = time.monotonic() - begun
