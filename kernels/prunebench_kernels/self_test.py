"""Self-test: every operation by its kernel and by torch, side by side, on this machine.

    python -m prunebench_kernels.self_test

On a GPU the kernels run there; without one Triton's interpreter runs them on the CPU (slower, same arithmetic).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__" and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import prunebench_kernels as kernels
from prunebench_kernels.dispatch import Choice, explain
from prunebench_kernels.layouts import Geometry, arrange, format_of, pack
from prunebench_kernels.sparse_conv import sparse_conv2d

TOLERANCE = 1e-5
"""Of the largest value, in float32: kernels and torch add in different orders."""


@dataclass(frozen=True)
class Agreement:
    """One result of one operation: the largest difference relative to the largest value, and what ran."""

    operation: str
    result: str
    difference: float
    choice: Choice

    @property
    def holds(self) -> bool:
        return self.difference <= TOLERANCE


Results = dict[str, Tensor]


def agreements(device: torch.device | None = None) -> Iterator[Agreement]:
    """Compare backend `triton` with backend `torch` for every operation, in float32 on small shapes.

    Where the kernel cannot run, `choice` says why and the difference is that of torch with itself.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolution.fp32_precision
    convolution.fp32_precision = "ieee"  # two engines round to TF32 in two ways
    try:
        for operation, (call, choice) in _calls(device).items():
            by_kernel, by_torch = call("triton"), call("torch")
            for name, expected in by_torch.items():
                yield Agreement(operation, name, _difference(by_kernel[name], expected), choice)
    finally:
        convolution.fp32_precision = before


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest |a - b| over the largest |b|; infinite where only one of them is nan."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if not torch.equal(torch.isnan(found), torch.isnan(expected)):
        return float("inf")
    scale = float(torch.nan_to_num(expected).abs().max()) or 1.0
    return float(torch.nan_to_num(found - expected).abs().max()) / scale


def _calls(device: torch.device) -> dict[str, tuple[Callable[[str], Results], Choice]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x, weight = normal(8, 16, 9, 9).contiguous(memory_format=torch.channels_last), normal(32, 16, 3, 3)
    mask = (torch.rand(weight.shape, generator=generator) < 0.3).float().to(device)
    mask[:16, :, 0, 0] = 0  # a block of 16 x 16 that the kernels skip
    pattern = kernels.BlockPattern.of(mask, padding=(1, 1), block=(16, 16))
    logits, dense = normal(2, 64, 10), normal(64, 10)
    labels = torch.randint(0, 10, (64,), generator=generator).to(device)
    ones = (normal(300, 12) > 0).to(torch.uint8)
    flat = normal(6000)
    packed = {
        layout: pack(weight * mask, layout, geometry=Geometry(16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1))
        for layout in ("block", "direct")
    }

    def gradients(result: Tensor, leaves: list[Tensor], *names: str) -> Results:
        result.square().sum().backward()
        return {name: leaf.grad for name, leaf in zip(names, leaves) if leaf.grad is not None}

    def masked(backend: str) -> Results:
        leaves = [value.clone().requires_grad_() for value in (x, weight)]
        y = kernels.masked_conv2d(leaves[0], leaves[1], mask, padding=1, pattern=pattern, backend=backend)
        return {"y": y, **gradients(y, leaves, "input gradient", "weight gradient")}

    def applied(backend: str) -> Results:
        leaves = [value.clone().requires_grad_() for value in (weight, mask)]
        product = kernels.apply_masks(leaves[0], leaves[1], backend=backend)
        return {"product": product, **gradients(product, leaves, "weight gradient", "mask gradient")}

    def sampled(backend: str) -> Results:
        leaf = flat.clone().requires_grad_()
        masks = kernels.sample_masks(leaf, seed=1, backend=backend)
        (masks * flat).sum().backward()
        assert leaf.grad is not None
        return {"masks": masks, "gradient": leaf.grad}

    def unsure(backend: str) -> Results:
        values = kernels.uncertainty(logits, labels=labels, dense_logits=dense, backend=backend)
        return {name: value for name, value in vars(values).items() if value is not None}

    def sparse(layout: str) -> Callable[[str], Results]:
        given = arrange(x, format_of(layout))
        return lambda backend: {"y": sparse_conv2d(given, packed[layout], relu=True, backend=backend)}

    def alone(name: str, operation: Callable[..., Tensor], given: Tensor) -> Callable[[str], Results]:
        return lambda backend: {name: operation(given, backend=backend)}

    def chosen(operation: str, *arguments: Any, **options: Any) -> Choice:
        return explain(operation, *arguments, **options, backend="triton")

    calls: dict[str, tuple[Callable[[str], Results], Choice]] = {
        "masked_conv2d": (masked, chosen("masked_conv2d", x, weight, mask, padding=1, pattern=pattern)),
        "apply_masks": (applied, chosen("apply_masks", weight, mask)),
        "sample_masks": (sampled, chosen("sample_masks", flat, seed=1)),
        "uncertainty": (unsure, chosen("uncertainty", logits, labels=labels)),
        "cooccurrence": (alone("counts", kernels.cooccurrence, ones), chosen("cooccurrence", ones)),
        "correlation": (alone("r", kernels.correlation, logits), chosen("correlation", logits)),
        "interdependence": (alone("R2", kernels.interdependence, ones), chosen("interdependence", ones)),
    }
    for layout, weights in packed.items():
        calls[f"sparse_conv2d, {layout}"] = (sparse(layout), chosen("sparse_conv2d", x, weights, relu=True))
    return calls


def main() -> int:
    """Print a line a result; 1 if one disagrees."""
    found = list(agreements())
    print("largest difference between Triton and torch, relative to the largest value, float32:")
    for entry in found:
        verdict = "agrees" if entry.holds else f"DIFFERS by more than {TOLERANCE:g}"
        note = "" if entry.choice.is_triton else f" (torch alone: {entry.choice.reason})"
        print(f"{entry.operation:24} {entry.result:24} {entry.difference:8.1e}  {verdict}{note}")
    print(
        "Kernels ran where:",
        "; ".join(sorted({e.choice.reason for e in found if e.choice.is_triton})) or "none ran",
    )
    return 0 if all(entry.holds for entry in found) else 1


if __name__ == "__main__":
    sys.exit(main())
