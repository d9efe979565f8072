"""The layouts of a network as a whole: what won layer by layer is timed against dense, and against one memory format;
and its channels: what is left of them is timed against all.

Layer by layer each convolution pays for copying its input out of the format of the layer before it, so a format that
pays only when all layers have it would never be found: where layouts offer batch_innermost, the network is also
prepared with layouts of that format alone, and with NCHW alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunebench_kernels.sparse.choices import versions
from prunebench_kernels.sparse.layouts import PackedWeight, pack
from prunebench_kernels.sparse.measured import Decision, key_of
from prunebench_kernels.sparse.module import AUTO, Measuring, SparseConv2d, label

if TYPE_CHECKING:
    from prunebench_kernels.sparse.network import SparseNetwork

Plan = Mapping[str, tuple[PackedWeight, Decision]]
"""For every convolution by name: the packed weight, and why."""


WHOLE = "all channels"


def choose_channels(made: Mapping[str, SparseNetwork], x: Tensor, measuring: Measuring) -> SparseNetwork:
    """Choose the layouts of every network, then the network that is fastest on x.

    All compute the same; they differ in how many dead channels were removed. The first one stays unless another
    clearly beats it: fewer channels can be slower, where the library has no kernel for their number.
    """
    for network in made.values():
        if not all(conv.is_prepared for conv in network.convolutions.values()):
            choose_layouts(network, x, measuring)
    if len(made) == 1:
        return next(iter(made.values()))
    key = key_of(
        operation="channels",
        networks={
            name: [network.graph.code, hash_of(network.convolutions), *_described(network)]
            for name, network in made.items()
        },
        versions=versions(),
    )
    calls = {name: functools.partial(_inferred, network, x) for name, network in made.items()}
    decision = measuring.decide(key, calls, x.device)
    network = made[decision.winner]
    before = network.whole
    reasons = [*filter(None, [before.reason]), f"{decision.winner}: {decision.reason}"]
    network.whole = replace(before, reason="; ".join(reasons), timings={**before.timings, **decision.timings})
    return network


@torch.inference_mode()
def _inferred(network: SparseNetwork, x: Tensor) -> Tensor:
    return network(x)


def _described(network: SparseNetwork) -> list[str]:
    """Layout and shape of every convolution."""
    return [
        f"{label(conv.layout, conv.settings)} {conv.geometry.numbers}"
        for conv in network.convolutions.values()
    ]


def choose_layouts(network: SparseNetwork, x: Tensor, measuring: Measuring) -> None:
    """Prepare every convolution on what the layers before it give for x, and keep the plan that is fastest overall.

    Dense layouts stay unless another plan clearly beats them.
    """
    convolutions = network.convolutions
    keys: dict[str, list[str]] = {}
    plans: dict[str, Plan] = {}

    def prepare(name: str, formats: frozenset[str] | None) -> None:
        for conv in convolutions.values():
            conv.formats, conv.is_prepared = formats, False
        network(x)
        plan = {path: (conv.packed, conv.decision) for path, conv in convolutions.items()}
        layouts = [label(packed.layout, packed.settings) for packed, _ in plan.values()]
        if layouts not in [entry[1:] for entry in keys.values()]:
            plans[name] = plan
            keys[name] = [hash_of(convolutions), *layouts]

    prepare(AUTO, None)
    if any("batch_innermost" in conv.offered for conv in convolutions.values()):
        for order in ("batch_innermost", "contiguous"):
            prepare(f"{AUTO} {order}", frozenset({order}))
    for conv in convolutions.values():
        conv.formats = None
    if set(plans) == {AUTO} and all(packed.layout == "dense" for packed, _ in plans[AUTO].values()):
        take(convolutions, plans[AUTO])
        return
    candidates: dict[str, Plan] = {"dense": _dense(plans[AUTO]), **plans}
    key = key_of(operation="network", code=network.graph.code, plans=keys, versions=versions())
    calls = {name: _runner(network, convolutions, plan, x) for name, plan in candidates.items()}
    network.whole = measuring.decide(key, calls, x.device)
    take(convolutions, candidates[network.whole.winner])


def hash_of(convolutions: Mapping[str, SparseConv2d]) -> str:
    """What the layers' own choices depended on."""
    return " ".join(conv.key for conv in convolutions.values())


def take(convolutions: Mapping[str, SparseConv2d], plan: Plan) -> None:
    """Pack every convolution as the plan says."""
    for name, (packed, decision) in plan.items():
        convolutions[name].take(packed)
        convolutions[name].decision, convolutions[name].is_prepared = decision, True


def _runner(
    network: SparseNetwork, convolutions: Mapping[str, SparseConv2d], plan: Plan, x: Tensor
) -> Callable[[], Tensor]:
    def run() -> Tensor:
        take(convolutions, plan)
        return network(x)

    return run


def _dense(plan: Plan) -> Plan:
    """The same convolutions, all dense; the reason names what had won each."""
    dense = {}
    with torch.inference_mode(False):
        for name, (packed, won) in plan.items():
            if packed.layout == "dense":
                dense[name] = packed, won
                continue
            reason = f"{won.winner} won this layer, but the whole network was not faster with it"
            weight = pack(packed.unpack(), "dense", geometry=packed.geometry)
            dense[name] = weight, Decision("dense", reason, won.timings, won.refused)
    return dense
