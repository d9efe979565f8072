"""Tiles worth timing of every operation, on the targets' shapes: the best one runs from then on, in memory.

An operation's module has a rule, the tile that follows from sizes; `gpu.tiles` lists those worth timing. The rule is
replaced by what was measured, and the target is timed again with it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cases
import torch

from gpu import items_inference as inference
from gpu import items_statistics as statistics
from gpu import tiles
from gpu.schedule import TUNING, Call, Context, Item, Result
from gpu.subjects import compare, random, random_mask

HEAVY = tuple(case for case in cases.RESNET18_32[128] if case.kernel == (3, 3) and case.in_channels >= 64)
PATTERNS = {"block": ("block", 0.9), "direct": ("unstructured", 0.99)}


@dataclass(frozen=True)
class Knob:
    """A rule that may be replaced: `module.rule(*arguments)` gives a tile, `tiles(*arguments)` the candidates.

    `subject(context)` gives the arguments, and a call of the operation with a given tile."""

    module: str
    rule: str
    tiles: Callable[..., Sequence[Any]]
    subject: Callable[[Context], tuple[tuple[Any, ...], Callable[[Any], object]]]
    key: Callable[..., Any] = lambda *arguments: arguments

    @property
    def home(self) -> Any:
        return importlib.import_module(f"prunebench_kernels.{self.module}")

    def candidates(self, context: Context) -> dict[str, tuple[Any, Call]]:
        arguments, run = self.subject(context)
        return {str(tile): (tile, partial(run, tile)) for tile in self.tiles(*arguments)}

    def take(self, tile: Any, context: Context) -> None:
        """From now on the rule gives this tile for these arguments."""
        real, wanted = getattr(self.home, self.rule), self.key(*self.subject(context)[0])

        def measured(*arguments: Any) -> Any:
            return tile if self.key(*arguments) == wanted else real(*arguments)

        setattr(self.home, self.rule, measured)


def tune(knobs: Iterable[Knob], again: Callable[[Context], Result], context: Context) -> Result:
    """Time each knob's candidates, take the best, then the benchmark `again`."""
    found: Result = {}
    with torch.no_grad():
        for number, knob in enumerate(knobs):
            candidates = knob.candidates(context)
            calls = {name: call for name, (_, call) in candidates.items()}
            result = compare(context, calls, ways=("kernels",), needed=())
            best = min(result["rows"], key=lambda row: row["p50_ms"])["candidate"]
            knob.take(candidates[best][0], context)
            found[f"{number}: {knob.module}"] = {**result, "rule": next(iter(calls)), "best": best}
    return found | {"tuned": again(context)}


def _uncertainty(case: cases.LogitsCase, context: Context) -> Any:
    logits, labels = statistics.logits_of(case, torch.float32, context)
    home = importlib.import_module("prunebench_kernels.uncertainty")
    models = logits if logits.ndim == 3 else logits.unsqueeze(0)

    def run(tile: Any) -> object:
        return home.launch(models, labels, None, 0.4, logits.ndim == 3, tile=tile)

    return (models.shape[0], models.shape[2], logits.dtype, False), run


def _correlation(context: Context) -> Any:
    outputs = statistics.outputs_of("correlation", statistics.OUTPUTS64, context)
    home = importlib.import_module("prunebench_kernels.dependence")
    return (outputs.shape[-1],), lambda tile: home.sums(outputs, tile=tile)


def _sparse(layout: str, case: cases.ConvCase, context: Context) -> Any:
    from prunebench_kernels import layouts, sparse_conv

    x = random(context, *case.x_shape, dtype=torch.bfloat16)
    bias = random(context, case.out_channels, dtype=torch.bfloat16)
    mask = random_mask(case.weight_shape, *PATTERNS[layout]).to(x.device)
    weight = (random(context, *case.weight_shape, dtype=torch.bfloat16, scale=0.1) + 1e-3) * mask
    packed = layouts.pack(weight, layout, geometry=case.geometry)
    ready = layouts.arrange(x, layouts.format_of(layout))
    return (packed, tuple(x.shape), x.device), lambda tile: sparse_conv.launch(
        ready, packed, bias, relu=True, tile=tile
    )


def _sparse_key(packed: Any, shape: Any, device: Any) -> Any:
    return packed.layout, packed.geometry.numbers, tuple(sorted(packed.settings.items())), tuple(shape)


def _item(name: str, knobs: list[Knob], again: Callable[[Context], Result], seconds: float) -> Item:
    def kernels(context: Context) -> Iterable[Call]:
        return [call for knob in knobs for _, call in knob.candidates(context).values()]

    return Item(
        f"tuning, {name}", partial(tune, knobs, again), seconds, TUNING, kernels=kernels, needs_gpu=True
    )


def later() -> list[Item]:
    found = []
    for case in (statistics.IMAGENET, statistics.RUNS):
        knob = Knob("uncertainty", "rule", tiles.of_uncertainty, partial(_uncertainty, case))
        found.append(
            _item(
                f"uncertainty, {case.name}",
                [knob],
                partial(statistics.bench_uncertainty, case, torch.float32),
                20,
            )
        )
    again = partial(statistics.bench_dependence, "correlation", statistics.OUTPUTS64)
    found.append(
        _item(
            "correlation", [Knob("dependence", "default_tile", tiles.of_dependence, _correlation)], again, 12
        )
    )
    for layout, pattern in PATTERNS.items():
        knobs = [
            Knob("sparse_conv", "tile_of", tiles.of_sparse_conv, partial(_sparse, layout, case), _sparse_key)
            for case in HEAVY
        ]
        found.append(_item(f"inference, {pattern[0]}", knobs, partial(inference.bench_network, *pattern), 60))
    return found
