"""The host's time for one masked step of ResNet-18, all 21 layers, forward and backward as autograd runs it.

    python bench/bench_host_masks.py [--rounds 40] [--json]

No GPU is needed: kernels go through Triton's real launch path under a stand-in, compiled for sm_90, and the launch does
nothing; torch's side computes on tensors of at most 4 x 4 channels, which cost what any size costs the host. A step
makes bfloat16 products of float32 weights, a node in place of the network returns bfloat16 gradients, and backward
fills `.grad`. `net` is without what that takes when the masking does nothing. Processor time, the least of many rounds
taken in turns and their median; the C launch (3 to 4 us each, 2 of `apply_masks`, about 4 of foreach) is in neither.
Compare times of one run only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
from cases import MASK_LAYERS
from prunebench_kernels.mask_sampling import sample_masks
from prunebench_kernels.masks import apply_masks, layer_views
from standin import stand_in
from torch import Tensor

LOW = torch.bfloat16
CALLS = 50
FOREACH, NOTHING = "foreach, all layers", "nothing"


class Foreach(torch.autograd.Function):
    """The best that torch's own operations do: one node, products and gradients by lists."""

    @staticmethod
    def forward(ctx: Any, count: int, *layers: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*layers[count:])
        made = [torch.empty_like(weight, dtype=LOW) for weight in layers[:count]]
        torch._foreach_copy_(made, torch._foreach_mul(layers[:count], layers[count:]))
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        masks = ctx.saved_tensors
        return None, *torch._foreach_mul(gradients, masks), *(None for _ in masks)


class Nothing(torch.autograd.Function):
    """A node that returns what it was given before."""

    @staticmethod
    def forward(ctx: Any, products: Sequence[Tensor], gradients: Sequence[Tensor], *weights: Tensor) -> Any:
        ctx.gradients = gradients
        return tuple(product.detach() for product in products)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient.detach() for gradient in ctx.gradients)


class Network(torch.autograd.Function):
    """In place of the network: a loss of all products, and their gradients."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *products: Tensor) -> Tensor:
        ctx.gradients = gradients
        return products[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


def layers() -> dict[str, Tensor]:
    """Weights of ResNet-18's layers as channels_last nets hold them, cut to at most 4 x 4 channels."""
    shapes = [(min(k, 4), min(c, 4), *kernel) for k, c, *kernel in MASK_LAYERS["resnet18"]]
    weights = [torch.randn(shape) for shape in shapes]
    return {
        str(i): weight.to(memory_format=torch.channels_last) if weight.ndim == 4 else weight
        for i, weight in enumerate(weights)
    }


def steps() -> dict[str, Callable[[], None]]:
    """A masked step by each implementation; learned masks apart, whose logits are one buffer."""
    weights = {name: weight.requires_grad_() for name, weight in layers().items()}
    leaves = list(weights.values())
    masks = {name: torch.empty_like(weight).bernoulli_(0.5) for name, weight in weights.items()}
    bits = {name: mask.bool() for name, mask in masks.items()}
    values, plain = list(masks.values()), [leaf.detach() for leaf in leaves]
    gradients = [weight.detach().to(LOW) for weight in leaves]
    flat = torch.cat([weight.detach().flatten() for weight in leaves])
    logits, counter = torch.zeros_like(flat).requires_grad_(), torch.zeros(1, dtype=torch.int64)

    def drawn() -> list[Tensor]:
        made = sample_masks(logits, seed=7, offset=counter, weights=flat, weight_dtype=LOW, backend="triton")
        return layer_views(made, plain)

    def step(products: Callable[[], Sequence[Tensor]], of: Sequence[Tensor] = leaves) -> Callable[[], None]:
        def run() -> None:
            for leaf in of:
                leaf.grad = None
            Network.apply(gradients, *products()).backward()

        return run

    return {
        NOTHING: step(lambda: Nothing.apply(gradients, plain, *leaves)),
        FOREACH: step(lambda: Foreach.apply(len(leaves), *leaves, *values)),
        "apply_masks, float masks": step(
            lambda: list(apply_masks(weights, masks, dtype=LOW, backend="triton").values())
        ),
        "apply_masks, bool masks": step(
            lambda: list(apply_masks(weights, bits, dtype=LOW, backend="triton").values())
        ),
        "sample_masks and views of layers": step(drawn, [logits]),
        "(weight * mask).to, each layer": step(lambda: [(w * m).to(LOW) for w, m in zip(leaves, values)]),
    }


def host_times(named: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Microseconds of processor time a call: the least of the rounds, taken in turns, and their median."""
    samples: dict[str, list[float]] = {name: [] for name in named}
    for call in named.values():
        for _ in range(20):
            call()
    for _ in range(rounds):
        for name, call in named.items():
            start = time.process_time()
            for _ in range(CALLS):
                call()
            samples[name].append((time.process_time() - start) / CALLS * 1e6)
    return {name: (min(found), statistics.median(found)) for name, found in samples.items()}


def measure(rounds: int) -> dict[str, tuple[float, float]]:
    torch.set_num_threads(1)
    with stand_in(90):
        return host_times(steps(), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=40, help="rounds of which the fastest and the median count"
    )
    parser.add_argument("--json", action="store_true", help="print microseconds as JSON: least and median")
    arguments = parser.parse_args()
    found = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"host time of a masked step, 21 layers, torch {torch.__version__}, Triton {triton.__version__}")
    print(f"{'':34s} {'least':>8s} {'median':>8s} {'of foreach':>11s} {'net':>6s}")
    idle, base = found[NOTHING], found[FOREACH]
    for name, (least, median) in found.items():
        net = (least - idle[0]) / (base[0] - idle[0])
        print(f"{name:34s} {least:5.0f} us {median:5.0f} us {median / base[1]:10.2f}x {net:5.2f}x")


if __name__ == "__main__":
    main()
