"""Configurations measured on this GPU, written as the table that the operations read.

`tuned.json` has the format of `prunebench_kernels.tuned`: copy it to
kernels/prunebench_kernels/tuned/<gpu>.json (its field `gpu`) and run the benchmarks again. The library's own
convolution is among the candidates of every part of a masked convolution, so that a kernel is taken only where it is
faster.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import cases
import torch
from cases import ConvCase
from gpu_stages import Context, Item, Result, write_json
from gpu_subjects import DTYPES, random, random_mask
from timing import Call, Timing, time_calls

PARTS = ("forward", "dgrad", "wgrad")
SPARSE = (("block", "block", 0.9), ("direct", "unstructured", 0.99), ("compact", "unstructured", 0.98))
"""(layout, pattern, sparsity) that the sparse layouts' configurations are measured at."""

Options = Mapping[str, tuple[dict[str, Any], Call]]
"""Candidate -> (its entry in the table, its call); the first is what runs without a table."""


def tune(operation: str, key: str, options: Options, context: Context) -> Result:
    """Time the candidates in turns; the entry of the fastest, and all times."""
    alive: dict[str, Call] = {}
    refused: dict[str, str] = {}
    for name, (_, call) in options.items():
        try:
            call()
            alive[name] = call
        except Exception as error:  # a configuration that does not fit this GPU is no candidate
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    if not alive:
        raise RuntimeError(f"{operation}: no candidate runs: {refused}")
    timings = time_calls(alive, context.device, seconds=context.sizes(1.5, 0.01))
    best = min(timings, key=lambda name: timings[name].p50_ms)
    return {
        "operation": operation,
        "key": key,
        "best": best,
        "entry": options[best][0],
        "p50_ms": {name: timing.p50_ms for name, timing in timings.items()},
        "p80_ms": {name: timing.p80_ms for name, timing in timings.items()},
        "method": _methods(timings),
        "refused": refused,
    }


def _methods(timings: Mapping[str, Timing]) -> list[str]:
    return sorted({timing.method for timing in timings.values()})


def tune_masked_conv(case: ConvCase, part: str, context: Context) -> Result:
    """One part of a masked convolution in bf16, channels_last, float32 master weights."""
    from prunebench_kernels import masked_conv_configurations as configurations
    from prunebench_kernels.masked_conv_parts import Geometry, Plan, key, run_backward, run_forward

    last = torch.channels_last
    x = random(context, *context.sizes(case.x_shape, (1, 16, 6, 6)), dtype=_dtype(context))
    shape = context.sizes(case.weight_shape, (16, 16, *case.kernel))
    x, weight = x.contiguous(memory_format=last), random(context, *shape, scale=0.1)
    mask = random_mask(context, shape, "unstructured", 0.9).float()
    geometry = Geometry.of(x, weight, list(case.stride), list(case.padding), list(case.dilation), case.groups)
    gradient = random(context, *geometry.y_shape, dtype=x.dtype).contiguous(memory_format=last)
    needed = [part == "dgrad", part == "wgrad", part == "wgrad", False]

    def call(plan: Any) -> Call:
        if part == "forward":
            return lambda: run_forward(x, weight, mask, None, geometry, plan)
        return lambda: run_backward(gradient, x, weight, mask, geometry, plan, needed)

    fused = context.cuda
    options: dict[str, tuple[dict[str, Any], Call]] = {
        "torch": ({"implementation": "torch"}, call(Plan(fused_weight=fused)))
    }
    candidates = configurations.tuning_candidates(part, geometry, x.dtype)
    for chosen in candidates if context.cuda else candidates[:1] if _interpreted() else []:
        options[str(chosen)] = (chosen.as_entry(), call(Plan(**{part: chosen}, fused_weight=True)))
    return {"tuned": [tune(f"masked_conv2d.{part}", key(geometry, x.dtype), options, context)]}


def tune_sparse(case: ConvCase, layout: str, pattern: str, sparsity: float, context: Context) -> Result:
    """One layout of a sparse convolution with bias and ReLU, in bf16, with each setting that `auto` would measure."""
    from prunebench_kernels.sparse import configurations
    from prunebench_kernels.sparse.candidates import candidates
    from prunebench_kernels.sparse.formats import arrange, format_of
    from prunebench_kernels.sparse.layouts import pack

    kernel = importlib.import_module(f"prunebench_kernels.sparse.{layout}_triton")
    if not context.cuda:
        case = ConvCase(case.name, 1, 64, 4, 4, 64, case.kernel, case.stride, case.padding)
    dtype, geometry = _dtype(context), case.geometry
    mask = random_mask(context, case.weight_shape, pattern, sparsity)
    weight = random(context, *case.weight_shape, dtype=dtype, scale=0.1) * mask
    x, bias = random(context, *case.x_shape, dtype=dtype), random(context, case.out_channels, dtype=dtype)
    found = candidates(weight, geometry, case.x_shape, context.device)
    tuned = []
    for settings in [chosen for name, chosen in found if name == layout] or [{}]:
        packed = pack(weight, layout, geometry=geometry, **settings)
        ready = arrange(x, format_of(layout, packed.settings))
        question = (layout, geometry, case.x_shape, dtype, packed.settings)
        options = {
            str(chosen): (
                configurations.as_entry(chosen),
                lambda ready=ready, packed=packed, chosen=chosen: kernel.launch(
                    ready, packed, bias, None, True, chosen=chosen
                ),
            )
            for chosen in configurations.tuning_candidates(*question)[: None if context.cuda else 1]
        }
        tuned.append(tune("sparse_conv2d", configurations.key(*question), options, context))
    return {"tuned": tuned}


def tune_uncertainty(models: int, classes: int, dtype: torch.dtype, context: Context) -> Result:
    """The tile of per-sample uncertainty for logits `[models, any, classes]`."""
    from prunebench_kernels import sample_uncertainty_configurations as configurations
    from prunebench_kernels.sample_uncertainty_triton import launch

    models, samples = context.sizes((models, 50_000), (min(models, 2), 4))
    logits = random(context, models, samples, classes, dtype=dtype, scale=4.0)
    labels = torch.arange(samples, device=context.device) % classes
    options = {
        str(tile): (asdict(tile), lambda tile=tile: launch(logits, labels, None, 0.4, True, tile=tile))
        for tile in configurations.candidates(models, classes)[: None if context.cuda else 1]
    }
    key = configurations.key(models, classes, dtype)
    return {"tuned": [tune(configurations.OPERATION, key, options, context)]}


def tune_sample_masks(network: str, context: Context) -> Result:
    """The program of mask sampling for all layers of a network, masked bfloat16 weights out."""
    from prunebench_kernels import mask_sampling_triton as kernel
    from prunebench_kernels.mask_sampling_rule import Draw

    layers = cases.MASK_LAYERS[network]
    numel = context.sizes(sum(torch.Size(shape).numel() for shape in layers), 4096)
    logits, weights = random(context, numel), random(context, numel)
    out = torch.empty(numel, device=context.device, dtype=_dtype(context))
    draw = Draw(7, 0, 1.0, True)
    options = {
        str(chosen): (
            {"block": chosen.block, "num_warps": chosen.num_warps},
            lambda chosen=chosen: kernel.forward(logits, weights, out, draw, forced=chosen),
        )
        for chosen in kernel.TUNING_CANDIDATES[: None if context.cuda else 1]
    }
    return {"tuned": [tune("sample_masks", kernel.key(numel), options, context)]}


def _dtype(context: Context) -> torch.dtype:
    return context.sizes(torch.bfloat16, torch.float32)


def _interpreted() -> bool:
    from prunebench_kernels.backend import is_interpreted

    return is_interpreted()


def write_table(context: Context) -> int:
    """Collect the entries measured so far into tuned.json; their number. On a CPU none: its times say nothing."""
    path = context.out / "tuning.json"
    if not context.cuda or not path.exists():
        return 0
    from prunebench_kernels import tuned

    operations: dict[str, dict[str, Any]] = {}
    for item in json.loads(path.read_text())["items"].values():
        for found in (item["result"] or {}).get("tuned", ()):
            operations.setdefault(found["operation"], {})[found["key"]] = found["entry"]
    table = {"format": tuned.FORMAT, "gpu": tuned.device_slug(), "operations": operations}
    write_json(context.out / "tuned.json", table)
    return sum(len(entries) for entries in operations.values())


def items(context: Context) -> list[Item]:
    """The layers with most work first."""
    layers = [case for case in cases.RESNET18_32[128] if case.in_channels >= 16]
    heavy = sorted(layers, key=lambda case: (case.kernel == (1, 1), -case.flop))
    found: list[Item] = []

    def add(name: str, run: Callable[[Context], Result], seconds: float) -> None:
        found.append(Item(name, run, seconds))

    for models, classes in ((2, 1000), (2, 40), (8, 10)) if context.cuda else ((2, 10),):
        for name in ("fp32", "bf16") if context.cuda else ("fp32",):
            add(
                f"uncertainty, {models} models, {classes} classes, {name}",
                lambda c, m=models, k=classes, d=DTYPES[name]: tune_uncertainty(m, k, d, c),  # type: ignore[misc]
                8,
            )
    for network in ("resnet18", "convnet") if context.cuda else ("convnet",):
        add(f"sample_masks, {network}", lambda c, n=network: tune_sample_masks(n, c), 6)  # type: ignore[misc]
    for case in heavy if context.cuda else heavy[:1]:
        for layout, pattern, sparsity in SPARSE:
            add(
                f"sparse_conv2d, {case.name}, {layout}",
                lambda c, case=case, a=(layout, pattern, sparsity): tune_sparse(case, *a, c),  # type: ignore[misc]
                8,
            )
        for part in PARTS:
            add(
                f"masked_conv2d.{part}, {case.name}",
                lambda c, case=case, part=part: tune_masked_conv(case, part, c),  # type: ignore[misc]
                10,
            )
    return found
