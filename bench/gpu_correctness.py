"""Every operation against its oracle in float64, in every dtype, over the odd shapes and the large ones.

On a GPU the Triton backend runs, each call five times: results must agree bit for bit (a race shows as a difference)
and free memory is filled with nan first (an element that was not written shows as nan). On a CPU the same runs in
the interpreter where TRITON_INTERPRET=1 (not bfloat16, which it computes wrongly), else in torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cases
import torch
from cases import ConvCase, LogitsCase
from gpu_stages import Context, Item, Result
from gpu_subjects import DTYPES, operation, poison_memory, random, random_mask
from torch import Tensor

REPEATS = 5
CONV_TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.6e-2}
"""|result - oracle| / |oracle| in the Frobenius norm: outputs are rounded to the dtype."""
STATISTIC_TOLERANCE = 1e-5
"""The same for values that are float32 whatever the logits' dtype."""
DIFFERENCE_TOLERANCE = 1e-4
"""For differences of nearly equal numbers: KL divergence, mutual information."""
DIFFERENCES = frozenset({"kl_to_dense", "mutual_information"})

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Check:
    """One call: `actual` runs the operation, `expected` its oracle in float64, both by name of the result."""

    name: str
    actual: Callable[[], Tensors]
    expected: Callable[[], Tensors]
    tolerance: Callable[[str], float]
    bitwise: bool = True


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| (Frobenius) over what the oracle defines; inf where nan patterns differ."""
    ours, theirs = actual.detach().double(), expected.detach().to(actual.device).double()
    if ours.shape != theirs.shape or not torch.equal(ours.isnan(), theirs.isnan()):
        return float("inf")
    ours, theirs = ours.nan_to_num(0.0), theirs.nan_to_num(0.0)
    norm = float(theirs.norm())
    return float((ours - theirs).norm()) / norm if norm else float((ours - theirs).norm())


def same_bits(one: Tensors, other: Tensors) -> bool:
    """Whether two results are equal bit for bit, nan included."""
    return all(
        torch.equal(one[name].isnan(), other[name].isnan())
        and torch.equal(one[name].nan_to_num(0.0), other[name].nan_to_num(0.0))
        for name in one
    )


def run_checks(checks: Iterator[Check], context: Context) -> Result:
    """Carry out the checks; the largest error of each result, and what is wrong."""
    errors: dict[str, float] = {}
    wrong: list[str] = []
    count = 0
    for check in checks:
        poison_memory(context)
        actual = {name: value.detach().clone() for name, value in check.actual().items()}
        for name, expected in check.expected().items():
            error = relative_error(actual[name], expected)
            errors[name] = max(error, errors.get(name, 0.0))
            if not error <= check.tolerance(name):
                wrong.append(f"{check.name}: {name}: relative error {error:.2e}")
        for _ in range(REPEATS - 1 if context.cuda and check.bitwise else 0):
            if not same_bits(actual, check.actual()):
                wrong.append(f"{check.name}: repeated calls differ")
                break
        count += 1
    return {"checks": count, "largest_relative_error": errors, "wrong": wrong, "passed": not wrong}


# --- masked convolution ------------------------------------------------------------------------------------


def conv_checks(shapes: Sequence[ConvCase], dtype: str, backend: str, context: Context) -> Iterator[Check]:
    """Output and all gradients, both memory formats, a bool mask in every third case."""
    from prunebench_kernels import reference

    masked_conv2d = operation("masked_conv2d")
    for index, case in enumerate(shapes):
        kind = DTYPES["fp32" if dtype == "tf32" else dtype]
        layout = (torch.contiguous_format, torch.channels_last)[index % 2]
        x = random(context, *case.x_shape, dtype=kind).contiguous(memory_format=layout)
        weight = random(context, *case.weight_shape, dtype=kind, scale=0.1)
        bias = random(context, case.out_channels, dtype=kind)
        gradient = random(context, *case.y_shape, dtype=kind).contiguous(memory_format=layout)
        chosen = random_mask(context, case.weight_shape, "unstructured", 0.5)
        mask = chosen if index % 3 == 2 else chosen.to(kind)  # a bool mask carries no gradient

        def run(
            function: Callable[..., Tensor],
            convert: Callable[[Tensor], Tensor],
            tensors: tuple[Tensor, ...] = (x, weight, mask, bias),
            gradient: Tensor = gradient,
            case: ConvCase = case,
            **options: Any,
        ) -> Tensors:
            inputs = [
                tensor if tensor.dtype == torch.bool else convert(tensor).detach().requires_grad_()
                for tensor in tensors
            ]
            y = function(*inputs, **case.arguments, **options)
            y.backward(convert(gradient))
            names = ("x", "weight", "mask", "bias")
            gradients = {
                f"d_{name}": value.grad for name, value in zip(names, inputs) if value.grad is not None
            }
            return {"y": y} | gradients

        yield Check(
            f"{case.name}, {layout}",
            lambda run=run: run(masked_conv2d, lambda tensor: tensor, backend=backend),  # type: ignore[misc]
            lambda run=run: run(reference.masked_conv2d, Tensor.double),  # type: ignore[misc]
            lambda _: CONV_TOLERANCE[dtype],
            bitwise=backend == "triton",  # cuDNN's own gradients need not repeat
        )


def check_convolutions(shapes: Sequence[ConvCase], dtype: str, backend: str, context: Context) -> Result:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        return run_checks(conv_checks(shapes, dtype, backend, context), context)
    finally:
        torch.backends.cudnn.allow_tf32 = before


# --- uncertainty and dependence ----------------------------------------------------------------------------


def values_of(result: object) -> Tensors:
    """The tensors of a result: a tensor, or a dataclass's fields that are not None."""
    if isinstance(result, Tensor):
        return {"value": result}
    return {name: value for name, value in vars(result).items() if isinstance(value, Tensor)}


def uncertainty_checks(shapes: Sequence[LogitsCase], dtype: str, context: Context) -> Iterator[Check]:
    from prunebench_kernels import reference

    uncertainty = operation("uncertainty")
    for case in shapes:
        logits = random(context, *case.shape, dtype=DTYPES[dtype], scale=4.0)
        dense = random(context, case.samples, case.classes, dtype=DTYPES[dtype], scale=4.0)
        labels = torch.arange(case.samples, device=context.device) % case.classes
        yield Check(
            case.name,
            lambda logits=logits, dense=dense, labels=labels: values_of(  # type: ignore[misc]
                uncertainty(logits, labels=labels, dense_logits=dense, backend="triton")
            ),
            lambda logits=logits, dense=dense, labels=labels: values_of(  # type: ignore[misc]
                reference.uncertainty(logits.double(), labels=labels, dense_logits=dense.double())
            ),
            lambda name: DIFFERENCE_TOLERANCE if name in DIFFERENCES else STATISTIC_TOLERANCE,
        )


def count(predictions: Tensor) -> Tensor:
    """Co-occurrence counts `[M, K, K]` of 0/1 predictions `[M, N, K]`."""
    return predictions.transpose(-1, -2) @ predictions


def dependence_checks(
    name: str, shapes: Sequence[LogitsCase], dtype: str, context: Context
) -> Iterator[Check]:
    """`correlation` of real outputs far from zero, or `cooccurrence` of 0/1 predictions: exact counts."""
    from prunebench_kernels import reference

    function, oracle = operation(name), reference.correlation if name == "correlation" else count
    for case in shapes:
        outputs = random(context, *case.shape, dtype=DTYPES[dtype])
        outputs = (outputs > 0.5).to(torch.uint8) if name == "cooccurrence" else outputs + 3.0
        yield Check(
            case.name,
            lambda outputs=outputs: values_of(function(outputs, backend="triton")),  # type: ignore[misc]
            lambda outputs=outputs: values_of(oracle(outputs.double())),  # type: ignore[misc]
            lambda _: 0.0 if name == "cooccurrence" else STATISTIC_TOLERANCE,
        )


# --- sampled masks and sparse layouts ----------------------------------------------------------------------


def check_sampled_masks(network: str, context: Context) -> Result:
    """Masks of the two backends from one seed are the same bits, and keep the share that the formula says."""
    sample_masks = operation("sample_masks")
    shapes = cases.MASK_LAYERS[network] if context.cuda else cases.ODD_MASK_LAYERS
    logits = {str(index): random(context, *shape) for index, shape in enumerate(shapes)}
    wrong: list[str] = []
    for squash in (True, False):
        ours, theirs = (
            sample_masks(logits, seed=7, squash=squash, backend=backend) for backend in ("triton", "torch")
        )
        wrong += [
            f"layer {name}, squash {squash}" for name in logits if not torch.equal(ours[name], theirs[name])
        ]
    return {"checks": 2 * len(shapes), "wrong": wrong, "passed": not wrong}


def sparse_checks(dtype: str, context: Context) -> Iterator[Check]:
    """Every layout that takes the convolution, with bias, residual and ReLU, at 90 and 99 % of each pattern."""
    from prunebench_kernels.errors import LayoutError
    from prunebench_kernels.reference.sparse import sparse_conv2d as oracle
    from prunebench_kernels.sparse.conv import sparse_conv2d
    from prunebench_kernels.sparse.layouts import LAYOUTS, pack

    large = cases.RESNET18_32[128] if context.cuda else ()
    odd = cases.ODD_CONVS if context.cuda else cases.ODD_CONVS[:3]
    for case in (*odd, *large):
        geometry = case.geometry
        x = random(context, *case.x_shape, dtype=DTYPES[dtype])
        bias = random(context, case.out_channels, dtype=DTYPES[dtype])
        residual = random(context, *case.y_shape, dtype=DTYPES[dtype])
        for pattern, sparsity in (("unstructured", 0.9), ("unstructured", 0.99), ("block", 0.5)):
            mask = random_mask(context, case.weight_shape, pattern, sparsity)
            weight = random(context, *case.weight_shape, dtype=DTYPES[dtype], scale=0.1) * mask
            for layout in LAYOUTS:
                try:
                    packed = pack(weight, layout, geometry=geometry)
                except LayoutError:
                    continue
                arguments = {"x": x, "packed": packed, "bias": bias, "residual": residual, "relu": True}
                yield Check(
                    f"{case.name}, {pattern} {sparsity:g}, {layout}",
                    lambda a=arguments: {"y": sparse_conv2d(**a, backend="triton")},  # type: ignore[misc]
                    lambda a=arguments: {"y": oracle(**a)},  # type: ignore[misc]
                    lambda _: CONV_TOLERANCE[dtype],
                    bitwise=layout != "dense",
                )


# --- the items ---------------------------------------------------------------------------------------------


def dtypes(context: Context) -> tuple[str, ...]:
    """bf16 is left out on a CPU: the interpreter computes it wrongly."""
    return ("bf16", "fp32", "fp16") if context.cuda else ("fp32", "fp16")


def items(context: Context) -> list[Item]:
    """Small shapes of all operations first, then the large ones."""
    odd_convs = context.sizes(cases.ODD_CONVS, cases.ODD_CONVS[:4])
    odd_logits = context.sizes(cases.ODD_LOGITS, cases.ODD_LOGITS[:4])
    odd_outputs = context.sizes(cases.ODD_OUTPUTS, cases.ODD_OUTPUTS[:3])
    found: list[Item] = []

    def add(name: str, run: Callable[[Context], Result], seconds: float, needs_cuda: bool = False) -> None:
        found.append(Item(name, run, seconds, needs_cuda))

    def add_logits(where: str, dtype: str, logits: Any, outputs: Any, seconds: float, large: bool) -> None:
        add(
            f"uncertainty, {dtype}{where}",
            lambda c: run_checks(uncertainty_checks(logits, dtype, c), c),
            seconds,
            large,
        )
        for name in ("correlation", "cooccurrence"):
            add(
                f"{name}, {dtype}{where}",
                lambda c, name=name: run_checks(dependence_checks(name, outputs, dtype, c), c),  # type: ignore[misc]
                seconds,
                large,
            )

    for dtype in dtypes(context):
        add(
            f"masked_conv2d, {dtype}",
            lambda c, d=dtype: check_convolutions(odd_convs, d, "triton", c),  # type: ignore[misc]
            20,
        )
        add_logits("", dtype, odd_logits, odd_outputs, 8, large=False)
        add(f"sparse_conv2d, {dtype}", lambda c, d=dtype: run_checks(sparse_checks(d, c), c), 45)  # type: ignore[misc]
    add("sample_masks", lambda c: check_sampled_masks("resnet18", c), 8)
    for dtype in ("bf16", "fp32"):
        add_logits(", large", dtype, cases.LOGITS[:2], cases.OUTPUTS[:2], 10, large=True)
        for backend in ("triton", "auto"):
            add(
                f"masked_conv2d, {dtype}, ResNet-18, {backend}",
                lambda c, d=dtype, b=backend: check_convolutions(cases.RESNET18_32[128], d, b, c),  # type: ignore[misc]
                30,
                True,
            )
    return found


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
