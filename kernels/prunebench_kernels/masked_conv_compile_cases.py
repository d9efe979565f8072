"""Layers and precisions that the masked convolution's kernels are compiled for without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from prunebench_kernels.masked_conv_configurations import configuration, tuning_candidates
from prunebench_kernels.masked_conv_geometry import Configuration, Geometry


@dataclass(frozen=True)
class Precision:
    """A dtype of the tensors and what the multiplications see of it."""

    label: str
    dtype: torch.dtype
    pointer: str


PRECISIONS = (
    Precision("float32", torch.float32, "*fp32"),
    Precision("tf32", torch.float32, "*fp32"),
    Precision("float16", torch.float16, "*fp16"),
    Precision("bfloat16", torch.bfloat16, "*bf16"),
)


def _layer(
    inputs: int,
    outputs: int,
    size: int = 32,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    channels_last: bool = True,
) -> Geometry:
    pads = ((kernel - 1) // 2,) * 2
    return Geometry(
        128, inputs, size, size, outputs, (kernel,) * 2, (stride,) * 2, pads, (1, 1), groups, channels_last
    )


LAYERS = {
    "stem": _layer(3, 64),
    "layer1": _layer(64, 64),
    "layer1-nchw": _layer(64, 64, channels_last=False),
    "layer2.0": _layer(64, 128, stride=2),
    "layer2.down": _layer(64, 128, kernel=1, stride=2),
    "layer3": _layer(256, 256, size=8),
    "depthwise": _layer(64, 64, groups=64),
}
"""Of ResNet-18 at 32 x 32, batch 128, and one depthwise layer."""

CANDIDATE_LAYERS = ("layer3",)
"""Layers for which every tuning candidate is compiled, in bfloat16 and TF32."""


def cases_of(part: str) -> Iterator[tuple[str, Geometry, Precision, Configuration]]:
    """Name, layer, precision and configuration of every case of one part."""
    for layer, geometry in LAYERS.items():
        for precision in PRECISIONS:
            rule = configuration(part, geometry, precision.dtype, precision=precision.label)
            yield f"{layer}-{precision.label}-rule", geometry, precision, rule
            if layer in CANDIDATE_LAYERS and precision.label in ("bfloat16", "tf32"):
                made = tuning_candidates(part, geometry, precision.dtype, precision=precision.label)
                seen = {rule.tile}
                for entry in made:
                    if entry.tile not in seen:
                        seen.add(entry.tile)
                        yield f"{layer}-{precision.label}-{entry.label}", geometry, precision, entry


def expectations(part: str, geometry: Geometry, precision: Precision, made: Configuration) -> frozenset[str]:
    """What the machine code must show: MMA instructions wherever the tile has the 64 rows that a WGMMA takes.

    A wgrad in TF32 transposes both operands on their way to shared memory, in copies of 4 bytes.
    """
    expected = set()
    if precision.label != "float32" and made.rows >= 64:
        expected.add("tensor-cores")
    transposes = part == "wgrad" and precision.label == "tf32"
    if not transposes and geometry.channels_last and geometry.groups == 1 and geometry.in_channels % 16 == 0:
        expected.add("vector-loads")
    return frozenset(expected)
