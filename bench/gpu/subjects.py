"""What items measure and how: random inputs, masks, ResNet-18, and candidates timed in turns."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import cases
import timing
import torch
from torch import Tensor, nn

from gpu.schedule import Call, Context, Result, time_box

OURS, AUTO, EAGER, COMPILED, COPY = "kernel", "auto", "eager torch", "torch.compile", "copy of the same bytes"
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BLOCK = 64
"""Output and input channels of a block in block masks."""
REPEATS = 5
"""Calls in a row when they are timed as called: the host may run ahead, as it does in a loop."""
FIRST_CALL_SECONDS = 90.0
"""For a candidate's first call: torch.compile compiles in it."""


def op(module: str, name: str) -> Any:
    """An operation, imported when an item needs it: one that is missing fails that item alone."""
    return getattr(importlib.import_module(f"prunebench_kernels.{module}"), name)


# --- inputs ----------------------------------------------------------------------------------------------------


def random(context: Context, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same in every run; under the stand-in zeros, which cost nothing."""
    if context.is_full and not context.on_gpu:
        return torch.zeros(shape, dtype=dtype)
    generator = torch.Generator(context.device).manual_seed(sum(shape))
    values = torch.randn(*shape, device=context.device, generator=generator)
    return values.mul_(scale).to(dtype)


def labels_of(case: cases.LogitsCase, context: Context) -> Tensor:
    return torch.arange(case.samples, device=context.device) % case.classes


def reduced(case: cases.LogitsCase, context: Context) -> cases.LogitsCase:
    """The case, with 64 to 200 samples and at most 8 models where shapes are reduced."""
    if context.is_full:
        return case
    return replace(case, models=min(case.models, 8), samples=min(max(case.samples // 500, 64), 200))


def random_mask(shape: Sequence[int], pattern: str, sparsity: float, seed: int = 0) -> Tensor:
    """A bool mask `[K, C, R, S]` on the CPU with random survivors, exact in number; equal on every machine, so
    that a network without its dead channels has the same shapes wherever its kernels are compiled.

    `2:4` keeps two of four neighbouring input channels; a weight whose channels are no multiple of four stays
    dense. `filter` keeps whole filters, the first ones.
    """
    generator = torch.Generator().manual_seed(seed + sum(shape))

    def kept(*sizes: int) -> Tensor:
        scores = torch.rand(*sizes, generator=generator).flatten()
        mask = torch.zeros(len(scores), dtype=torch.bool)
        mask[scores.topk(max(1, round(len(scores) * (1 - sparsity)))).indices] = True
        return mask.view(sizes)

    if pattern == "unstructured":
        return kept(*shape)
    rows, columns, *taps = shape
    if pattern == "filter":
        first = torch.arange(rows) < max(1, round(rows * (1 - sparsity)))
        return first.view(-1, 1, 1, 1).expand(*shape).contiguous()
    if pattern == "2:4":
        if columns % 4:
            return torch.ones(*shape, dtype=torch.bool)
        order = torch.rand(rows, columns // 4, 4, *taps, generator=generator).argsort(2)
        return (order < 2).reshape(*shape)
    if pattern != "block":
        raise ValueError(f"pattern: want unstructured, block, 2:4 or filter, got {pattern!r}")
    blocks = kept(-(-rows // BLOCK), -(-columns // BLOCK), *taps)
    whole = blocks.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return whole[:rows, :columns].contiguous()


def poison(context: Context, limit: int = 2**30) -> None:
    """Fill up to `limit` bytes of free GPU memory with nan, so that an element left unwritten shows."""
    if not context.on_gpu:
        return
    held: list[Tensor] = []
    for power in (29, 27, 25, 23, 20, 16, 12, 9):
        if sum(tensor.nbytes for tensor in held) + 2**power <= limit:
            held.append(torch.full((2**power // 4,), torch.nan, device=context.device))
    del held


@contextlib.contextmanager
def precision(*, tf32: bool) -> Iterator[None]:
    """Whether float32 products and convolutions may use TF32 here; torch allows it in convolutions by default."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def searching() -> Iterator[None]:
    """cuDNN chooses its algorithms by measurement here."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


# --- networks --------------------------------------------------------------------------------------------------


def network(context: Context) -> nn.Module:
    """ResNet-18 with the CIFAR stem (`cases.RESNET18_32`), channels_last, from a fixed seed; reduced: a small net."""
    from prunebench.models import build_model

    return build_model(context.sizes("resnet18", "convnet-small"), 10, seed=0).to(context.device)


def images(context: Context, batch: int = 128) -> Tensor:
    """A batch for `network`, channels_last, float32."""
    x = random(context, context.sizes(batch, 2), 3, *context.sizes((32, 32), (16, 16)))
    return x.contiguous(memory_format=torch.channels_last)


def conv_weights(net: nn.Module) -> dict[str, Tensor]:
    """The convolutions' weights by parameter name, in the order of the network."""
    return {
        f"{name}.weight": module.weight
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def masks_of(
    net: nn.Module, pattern: str, sparsity: float, *, skip: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """A mask for every convolution but the first `skip`, on the weights' device."""
    weights = list(conv_weights(net).items())[skip:]
    return {
        name: random_mask(weight.shape, pattern, sparsity, seed + index).to(weight.device)
        for index, (name, weight) in enumerate(weights)
    }


# --- comparing -------------------------------------------------------------------------------------------------


def nbytes(value: object) -> int:
    """Bytes of all tensors in nested containers and dataclasses."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(nbytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(nbytes, value))
    return nbytes(vars(value)) if hasattr(value, "__dict__") else 0


def compare(  # noqa: PLR0913 - the ways to time are chosen one by one
    context: Context,
    calls: Mapping[str, Call],
    *,
    moved: int = 0,
    flop: int = 0,
    unit: str = "bf16",
    ways: Sequence[str] = ("called", "graph", "kernels"),
    seconds: float = 1.0,
    repeats: int = REPEATS,
    parts: Mapping[str, int] | None = None,
    needed: Sequence[str] = (OURS,),
) -> Result:
    """Rows of candidates timed in turns: {candidate, how, p20_ms, p50_ms, p80_ms, rounds, l2, method}.

    ways: `called` from Python, `repeats` calls in a row; `graph`: a replayed CUDA graph, L2 hot; `kernels`: GPU time
    of the kernels alone, L2 flushed. seconds: for each way, all candidates together. moved: bytes that any
    implementation must move, which a copy then moves as well; flop: what it must multiply and add, in the precision
    `unit`. parts: by how many the time of a call is divided. A candidate that raises is left out with its reason; one
    that is `needed` fails the item.
    """
    alive, refused = _that_run(calls)
    if not alive:
        raise RuntimeError(f"no candidate runs: {refused}")
    if moved and context.on_gpu:
        source = torch.empty(moved // 2, dtype=torch.uint8, device=context.device).random_()
        target = torch.empty_like(source)
        alive[COPY] = lambda: target.copy_(source)
    rounds, repeats, seconds = (None, repeats, seconds) if context.on_gpu else (1, 1, 0.0)
    rows: list[dict[str, Any]] = []
    with _no_garbage():
        for how in ways if context.on_gpu else ("called",):
            if how == "called":
                inside = {name: partial(_repeat, call, repeats) for name, call in alive.items()}
                timed = timing.time_calls(inside, context.device, seconds=seconds, rounds=rounds, graph=False)
            elif how == "kernels":
                alone = {name: timing.time_kernels(call, context.device) for name, call in alive.items()}
                timed = {name: value for name, value in alone.items() if value is not None}
            else:
                timed = timing.time_calls(alive, context.device, seconds=seconds)
                timed = {name: value for name, value in timed.items() if value.method == "cuda-graph"}
            for name, value in timed.items():
                share = (repeats if how == "called" else 1) * (parts or {}).get(name, 1)
                marks = {mark: getattr(value, mark) / share for mark in ("p20_ms", "p50_ms", "p80_ms")}
                rows.append({"candidate": name, "how": how, **value.to_dict(), **marks})
    missing = [f"{name}: {why}" for name, why in refused.items() if name in needed]
    facts = {"rows": rows, "refused": refused, "bytes": moved, "flop": flop, "unit": unit}
    return facts | ({"failed": "; ".join(missing)} if missing else {})


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Nothing old is freed here: what the collector frees in the middle of a capture breaks it off."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _repeat(call: Call, times: int) -> None:
    for _ in range(times):
        call()


def _that_run(calls: Mapping[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    alive: dict[str, Call] = {}
    refused: dict[str, str] = {}
    for name, call in calls.items():
        try:
            with time_box(FIRST_CALL_SECONDS):
                call()
            alive[name] = call
        except Exception as error:  # a candidate that cannot run must not hide the others
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return alive, refused


def with_baselines(
    context: Context, calls: dict[str, Call], formula: Callable[..., Any], *arguments: Any
) -> dict[str, Call]:
    """The calls, the formula in eager torch and, unless it is switched off, compiled for these shapes."""
    calls[EAGER] = lambda: formula(*arguments)
    if context.compiles:
        fast = timing.compiled(formula)
        calls[COMPILED] = lambda: fast(*arguments)
    return calls
