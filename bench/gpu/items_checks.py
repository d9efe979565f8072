"""Every operation against its oracle in float64: a few shapes of each first, then all of them side by side.

Free memory is filled with nan first (an element that was not written shows), inputs are random, TF32 is allowed or
not in so many words, and kernels run twice: a difference between the two is a race.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cases
import torch
from torch import Tensor
from torch.nn import functional

from gpu.schedule import CHECK, Call, Context, Item, Result
from gpu.subjects import DTYPES, labels_of, op, poison, precision, random, random_mask

TOLERANCE = {"fp32": 1e-5, "tf32": 1e-3, "fp16": 2e-3, "bf16": 1e-2}
"""|result - oracle| / |oracle| in the Frobenius norm, of values rounded to the dtype."""
STATISTIC = 1e-5
"""The same of values that are float32 whatever the logits' dtype; differences of nearly equal numbers lose more."""
DIFFERENCES = {"kl_to_dense": 1e-4, "mutual_information": 1e-4}
SMALLEST = 0.01
"""Root mean square, of differences, below which an error counts as absolute: that of one model is zero."""
AT_ONCE = 4
"""Processes side by side: each holds a context, a gigabyte of nan and a float64 oracle."""
LAST = torch.channels_last

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Check:
    """`actual` runs the operation, `expected` its oracle, both by name of the result."""

    name: str
    actual: Callable[[], Tensors]
    expected: Callable[[], Tensors]
    tolerance: float
    repeats: bool = True
    """Whether two calls must agree bit for bit; cuDNN's own gradients need not."""


def relative_error(actual: Tensor, expected: Tensor, smallest: float = 0.0) -> float:
    """|actual - expected| / |expected| (Frobenius) over what the oracle defines; inf where nan patterns differ.

    The divisor is at least that of values of the root mean square `smallest`."""
    ours, theirs = actual.detach().double(), expected.detach().double()
    if ours.shape != theirs.shape or not torch.equal(ours.isnan(), theirs.isnan()):
        return float("inf")
    ours, theirs = ours.nan_to_num(0.0), theirs.nan_to_num(0.0)
    norm = max(float(theirs.norm()), smallest * theirs.numel() ** 0.5)
    return float((ours - theirs).norm()) / (norm or 1.0)


def run_checks(checks: Iterable[Check], context: Context) -> Result:
    """Carry out the checks: the largest error of each result, and what is wrong, if anything."""
    found: Result = {"checks": 0, "largest_relative_error": {}, "wrong": []}
    errors = found["largest_relative_error"]
    for check in checks:
        found["checks"] += 1
        try:
            poison(context)
            actual = {name: value.detach().clone() for name, value in check.actual().items()}
            for name, expected in check.expected().items():
                error = relative_error(actual[name], expected, SMALLEST if name in DIFFERENCES else 0.0)
                errors[name] = max(error, errors.get(name, 0.0))
                if not error <= DIFFERENCES.get(name, check.tolerance):
                    found["wrong"].append(f"{check.name}: {name}: relative error {error:.2e}")
            again = check.actual() if check.repeats and context.on_gpu else {}
            if any(
                not torch.equal(actual[name].nan_to_num(), other.nan_to_num())
                for name, other in again.items()
            ):
                found["wrong"].append(f"{check.name}: two calls differ")
        except Exception as error:  # the other checks still say something
            found["wrong"].append(f"{check.name}: {type(error).__name__}: {error}".splitlines()[0][:300])
            if context.on_gpu:
                torch.cuda.synchronize()  # raises where the GPU no longer answers: the item ends here
    return merged([found])


def merged(parts: Iterable[Result]) -> Result:
    """Several results of checks as one."""
    found: Result = {"checks": 0, "largest_relative_error": {}, "wrong": []}
    for part in parts:
        found["checks"] += part["checks"]
        found["wrong"] += part["wrong"]
        for name, error in part["largest_relative_error"].items():
            known = found["largest_relative_error"].get(name, 0.0)
            found["largest_relative_error"][name] = max(error, known)
    return found | ({"failed": "; ".join(found["wrong"][:5])} if found["wrong"] else {})


# --- the checks of each operation ------------------------------------------------------------------------------


def values_of(result: object) -> Tensors:
    """The tensors of a result: a tensor, or a dataclass's fields that are not None."""
    if isinstance(result, Tensor):
        return {"value": result}
    return {name: value for name, value in vars(result).items() if isinstance(value, Tensor)}


def _values(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Tensors]:
    return lambda: values_of(function(*arguments, **options))


def uncertainty_checks(dtype: str, context: Context, few: bool) -> Iterator[Check]:
    shapes = (*cases.ODD_LOGITS, cases.LogitsCase("two models", 2, context.sizes(4000, 40), 1000))
    ours, oracle = op("uncertainty", "uncertainty"), op("reference", "uncertainty")
    for case in shapes[1:5] if few else shapes:
        logits = random(context, *case.shape, dtype=DTYPES[dtype], scale=4.0)
        dense = random(context, case.samples, case.classes, dtype=DTYPES[dtype], scale=4.0)
        labels = labels_of(case, context)
        yield Check(
            f"uncertainty, {dtype}, {case.name}",
            _values(ours, logits, labels=labels, dense_logits=dense, backend=context.backend),
            _values(oracle, logits.double(), labels=labels, dense_logits=dense.double()),
            STATISTIC,
        )


def dependence_checks(dtype: str, context: Context, few: bool) -> Iterator[Check]:
    shapes = (*cases.ODD_OUTPUTS[:4], cases.LogitsCase("64 columns", 2, context.sizes(5000, 200), 64))
    for case in shapes[1:3] if few else shapes:
        real = random(context, *case.shape, dtype=DTYPES[dtype]) + 3.0
        ones = (random(context, *case.shape) > 0.5).to(torch.uint8)
        for name, given, bound in (("correlation", real, STATISTIC), ("cooccurrence", ones, 0.0)):
            ours = _values(op("dependence", name), given, backend=context.backend)
            yield Check(
                f"{name}, {dtype}, {case.name}", ours, _values(op("reference", name), given.double()), bound
            )


def mask_checks(dtype: str, context: Context, few: bool) -> Iterator[Check]:
    """Against torch, bit for bit: masks drawn from one seed, and given masks applied, with gradients."""
    shapes, kind = cases.ODD_MASK_LAYERS if few else cases.MASK_LAYERS["convnet"], DTYPES[dtype]
    layers = [{str(place): random(context, *shape) for place, shape in enumerate(shapes)} for _ in range(2)]
    logits, weights = layers
    masks = {name: (value > 0).to(kind) for name, value in logits.items()}

    def run(function: Callable[..., Any], given: Tensors, *others: Any, **options: Any) -> Tensors:
        leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
        with torch.enable_grad():
            made = function(leaves, *others, **options)
            sums = [value.float().square().sum() for value in made.values()]
            gradients = torch.autograd.grad(sums, list(leaves.values()))
        return made | {f"d_{name}": gradient for name, gradient in zip(leaves, gradients)}

    sample, apply = op("mask_sampling", "sample_masks"), op("masks", "apply_masks")
    draw = partial(run, sample, logits, weights=weights, weight_dtype=kind, seed=7)
    put = partial(run, apply, {name: value.to(kind) for name, value in weights.items()}, masks, dtype=kind)
    for name, call, bound in (("sample_masks", draw, STATISTIC), ("apply_masks", put, 0.0)):
        ours, theirs = partial(call, backend=context.backend), partial(call, backend="torch")
        yield Check(f"{name}, {dtype}", ours, theirs, max(bound, TOLERANCE[dtype]) if bound else 0.0)


def convolutions(few: bool, context: Context) -> Iterator[tuple[cases.ConvCase, str, float]]:
    """(case, pattern, sparsity)."""
    block = cases.ConvCase("blocks", *context.sizes((4, 128, 9, 9, 192), (1, 64, 3, 4, 80)))
    strided = cases.ConvCase(
        "blocks, stride 2", *context.sizes((3, 64, 10, 8, 130), (1, 70, 4, 4, 64)), stride=(2, 2)
    )
    found = [(case, "unstructured", 0.5) for case in (cases.ODD_CONVS[1:3] if few else cases.ODD_CONVS[::2])]
    found += [(block, "block", 0.5), (strided, "block", 0.5), (block, "unstructured", 0.95)]
    if not few and context.is_full:
        found += [(case, "block", 0.9) for case in cases.RESNET18_32[128]]
    yield from found


def masked_conv_checks(dtype: str, context: Context, few: bool) -> Iterator[Check]:
    """Output and gradients, channels_last."""
    ours, oracle = op("masked_conv", "masked_conv2d"), op("reference", "masked_conv2d")
    for case, pattern, sparsity in convolutions(few, context):
        shapes = (case.x_shape, case.weight_shape, case.y_shape)
        made = [random(context, *shape, dtype=DTYPES[dtype]) for shape in shapes]
        x, weight, gradient = (tensor.contiguous(memory_format=LAST) for tensor in made)
        mask = random_mask(case.weight_shape, pattern, sparsity).to(weight).contiguous(memory_format=LAST)

        def run(
            function: Callable[..., Tensor],
            convert: Callable[[Tensor], Tensor],
            given: tuple[Tensor, ...] = (x, weight, mask, gradient),
            options: Mapping[str, Any] = case.arguments,
        ) -> Tensors:
            x, weight, mask, gradient = map(convert, given)
            leaves = [tensor.detach().requires_grad_() for tensor in (x, weight)]
            with torch.enable_grad():
                y = function(*leaves, mask, **options)
                d_x, d_weight = torch.autograd.grad(y, leaves, gradient)
            return {"y": y, "d_x": d_x, "d_weight": d_weight}

        arguments = (case.stride, case.padding, case.dilation)
        blocks = op("masked_conv", "BlockPattern").of(mask, *arguments) if pattern == "block" else None
        name = f"masked_conv2d, {dtype}, {case.name}, {pattern} {sparsity:g}"
        actual = partial(run, partial(ours, pattern=blocks, backend=context.backend), Tensor.clone)
        yield Check(name, actual, partial(run, oracle, Tensor.double), TOLERANCE[dtype], repeats=False)


def sparse_checks(dtype: str, context: Context, few: bool) -> Iterator[Check]:
    """Every layout that takes the weight, with bias, residual and ReLU."""
    for case, pattern, sparsity in convolutions(few, context):
        kind = DTYPES[dtype]
        x, residual = (random(context, *shape, dtype=kind) for shape in (case.x_shape, case.y_shape))
        bias = random(context, case.out_channels, dtype=kind)
        mask = random_mask(case.weight_shape, pattern, sparsity).to(x.device)
        weight = (random(context, *case.weight_shape, dtype=kind, scale=0.1) + 1e-3) * mask

        def expected(
            given: tuple[Tensor, ...] = (x, weight, bias, residual), options: Any = case.arguments
        ) -> Tensors:
            x, weight, bias, residual = map(Tensor.double, given)
            return {"value": (functional.conv2d(x, weight, bias, **options) + residual).relu()}

        for layout in op("layouts", "LAYOUTS")[1:]:
            try:
                packed = op("layouts", "pack")(weight, layout, geometry=case.geometry)
            except ValueError:  # a layout that does not take this weight
                continue
            options = {"residual": residual, "relu": True, "backend": context.backend}
            name = f"sparse_conv2d, {dtype}, {case.name}, {pattern} {sparsity:g}, {layout}"
            actual = _values(op("sparse_conv", "sparse_conv2d"), x, packed, bias, **options)
            yield Check(name, actual, expected, TOLERANCE[dtype])


OPERATIONS: dict[str, tuple[Callable[[str, Context, bool], Iterator[Check]], float]] = {
    "uncertainty": (uncertainty_checks, 8),
    "dependence": (dependence_checks, 4),
    "masks": (mask_checks, 4),
    "masked_conv": (masked_conv_checks, 8),
    "sparse_conv": (sparse_checks, 9),
}
"""By name: the checks, and the seconds that a few of them take."""


def run_operation(operation: str, dtype: str, context: Context, few: bool) -> Result:
    with precision(tf32=dtype == "tf32"):
        return run_checks(OPERATIONS[operation][0](dtype, context, few), context)


def available(context: Context) -> tuple[str, ...]:
    """The dtypes that a check means something in: Triton's interpreter computes bf16 wrongly, a CPU has no TF32."""
    return ("fp32", "tf32", "bf16", "fp16") if context.is_full else ("fp32", "fp16")


# --- the items ---------------------------------------------------------------------------------------------------


def smoke(operation: str, context: Context) -> Result:
    """A few shapes in every dtype, in this process."""
    return merged(run_operation(operation, dtype, context, True) for dtype in available(context))


def side_by_side(dtypes: tuple[str, ...], context: Context) -> Result:
    """All shapes of all operations in processes of their own, a few at once: nothing is timed."""
    if not context.on_gpu:
        return merged(run_operation(name, "fp32", context, False) for name in ("masks", "dependence"))
    names = [f"{operation}:{dtype}" for dtype in dtypes for operation in OPERATIONS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return merged(pool.map(_apart, names))


def _apart(name: str, tool: tuple[str, ...] = ()) -> Result:
    """Checks in a process of their own, under a tool if one is given: what they found, and all that was printed."""
    program = Path(__file__).resolve().with_name("trip.py")
    with tempfile.TemporaryFile() as output:
        command = [*tool, sys.executable, str(program), "--device", "cuda", "--part", name]
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
        output.seek(0)
        printed = output.read().decode(errors="replace").splitlines()
    for line in reversed(printed):
        if line.startswith('{"checks"'):
            return {**json.loads(line), "printed": printed}
    wrong = f"{name}: its process ended with code {code}: {' '.join(printed[-3:])[-300:]}"
    return {"checks": 1, "largest_relative_error": {}, "wrong": [wrong], "printed": printed}


def part(name: str, context: Context) -> Result:
    """What a process of its own checks: `OPERATION:DTYPE`, or `few:DTYPE`: a few kernels run, without oracles."""
    operation, dtype = name.split(":")
    if operation != "few":
        return run_operation(operation, dtype, context, False)
    done = [check.actual() for each in OPERATIONS for check in OPERATIONS[each][0](dtype, context, True)]
    return merged([{"checks": len(done), "largest_relative_error": {}, "wrong": []}])


def sanitize(tool: str, context: Context) -> Result:
    """A few small shapes of each kernel under compute-sanitizer, where it is installed."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {
            "checks": 0,
            "largest_relative_error": {},
            "wrong": [],
            "note": "compute-sanitizer is not there",
        }
    printed = _apart("few:fp32", (program, "--tool", tool, "--print-limit", "20"))["printed"]
    said = [line for line in printed if line.startswith("=========")]
    clean = any("ERROR SUMMARY: 0 errors" in line or "(0 errors" in line for line in said)
    wrong = [] if clean else said[-20:] or [f"{tool} printed no summary: {printed[-3:]}"]
    return merged([{"checks": 1, "largest_relative_error": {}, "wrong": wrong}]) | {"summary": said[-2:]}


def kernels(operations: Iterable[str], dtypes: Iterable[str], few: bool, context: Context) -> Iterable[Call]:
    """Each check's kernels, TF32 allowed where the check allows it."""

    def call(operation: str, dtype: str) -> None:
        with precision(tf32=dtype == "tf32"):
            for check in OPERATIONS[operation][0](dtype, context, few):
                with contextlib.suppress(Exception):  # results are whatever memory held
                    check.actual()

    return [partial(call, operation, dtype) for operation in operations for dtype in dtypes]


DTYPES_OF_ALL = ("fp32", "tf32", "bf16", "fp16")


def first() -> list[Item]:
    return [
        Item(
            f"smoke, {name}",
            partial(smoke, name),
            seconds,
            kernels=partial(kernels, [name], DTYPES_OF_ALL, True),
        )
        for name, (_, seconds) in OPERATIONS.items()
    ]


def later() -> list[Item]:
    dtypes, tools = ("fp32", "bf16"), ("memcheck", "racecheck")
    made = partial(kernels, OPERATIONS, dtypes, False)
    found = [Item("correctness, fp32 and bf16", partial(side_by_side, dtypes), 60, CHECK, kernels=made)]
    for tool in tools:
        found.append(Item(f"compute-sanitizer, {tool}", partial(sanitize, tool), 45, CHECK, needs_gpu=True))
    return found
