"""masked_conv2d: block kernels in Triton's interpreter and the torch path against the float64 oracle."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from cases import ODD_CONVS, RESNET18_32, ConvCase
from kernel_tolerances import TOLERANCE
from prunebench_kernels import ArgumentError, LayoutError, explain, reference
from prunebench_kernels import masked_conv as operation
from prunebench_kernels.dispatch import Choice, Contest
from prunebench_kernels.masked_conv import (
    PARTS,
    BlockPattern,
    MaskedConv2d,
    PixelTile,
    launch_dgrad,
    launch_forward,
    launch_pack,
    launch_wgrad,
    masked_conv2d,
    tiles,
)
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda uniform: (uniform < 0.5).to(uniform.dtype),
    "empty": torch.zeros_like,
    "full": torch.ones_like,
    "float": lambda uniform: 3 * uniform - 1,
}
BY_NAME = {case.name: case for case in ODD_CONVS}
BLOCK_CONVS = (
    ConvCase("3x3", 2, 40, 7, 5, 35),
    ConvCase("3x3 stride 2", 2, 36, 7, 6, 48, stride=(2, 2)),
    ConvCase("3x2 stride 2x1", 1, 33, 9, 6, 20, (3, 2), (2, 1), (2, 0), (1, 2)),
    ConvCase("1x1 stride 2", 2, 24, 5, 5, 40, (1, 1), (2, 2), (0, 0)),
    ConvCase("1x1", 1, 16, 3, 4, 32, (1, 1), (1, 1), (0, 0)),
    ConvCase("3x3 stride 3x2, dilation 2x1", 1, 33, 9, 11, 20, (3, 3), (3, 2), (2, 2), (2, 1)),
)
BLOCKS = ((16, 16), (32, 16), (16, 64), (64, 32), (64, 64), (128, 64))
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
NAMES = ("y", "dx", "dweight", "dmask", "dbias")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Uninitialised memory is NaN, so that what a kernel leaves out shows; float32 is not TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = allowed


def inputs(
    case: ConvCase, kind: str = "random", dtype: torch.dtype = torch.float32, layout: str = "nchw"
) -> list[Tensor]:
    """x, weight, mask and bias that require gradients, values exact in `dtype`."""
    generator = torch.Generator().manual_seed(len(case.name))
    x = torch.randn(case.x_shape, generator=generator)
    weight = torch.randn(case.weight_shape, generator=generator)
    mask = MASKS[kind](torch.rand(case.weight_shape, generator=generator))
    bias = torch.randn(case.out_channels, generator=generator)
    made = [tensor.to(dtype) for tensor in (x, weight, mask, bias)]
    made[:3] = [tensor.to(memory_format=LAYOUTS[layout]) for tensor in made[:3]]
    return [tensor.requires_grad_() for tensor in made]


def block_inputs(
    case: ConvCase,
    block: tuple[int, int],
    kind: str = "float",
    dtype: torch.dtype = torch.float32,
    share: float = 0.4,
) -> tuple[list[Tensor], BlockPattern]:
    """As `inputs`, x in channels_last, the mask fixed and zero in all but a share of its blocks, and its pattern."""
    x, weight, mask, bias = inputs(case, kind, dtype)
    rows, columns = -(-case.out_channels // block[0]), -(-case.in_channels // block[1])
    generator = torch.Generator().manual_seed(1)
    kept = (torch.rand(rows, columns, *case.kernel, generator=generator) < share).to(dtype)
    kept = kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    mask = mask.detach() * kept[: case.out_channels, : case.in_channels]
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    pattern = BlockPattern.of(mask, case.stride, case.padding, case.dilation, block=block)
    return [x, weight, mask, bias], pattern


def outgoing(case: ConvCase, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(99)
    return torch.randn(case.y_shape, generator=generator).to(dtype)


def oracle(case: ConvCase, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Output and gradients in float64, by autograd on the formula."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y = reference.masked_conv2d(*leaves, **case.arguments)
    y.backward(outgoing(case, tensors[0].dtype).double())
    return dict(zip(NAMES, [y.detach(), *(leaf.grad for leaf in leaves)], strict=True))  # type: ignore[arg-type]


def computed(case: ConvCase, tensors: list[Tensor], **keywords: Any) -> dict[str, Tensor]:
    """Output and those gradients that are required."""
    y = masked_conv2d(*tensors, **case.arguments, **keywords)
    y.backward(outgoing(case, y.dtype))
    made = dict(zip(NAMES, [y.detach(), *(tensor.grad for tensor in tensors)], strict=True))
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Largest error relative to the largest value; what should be zero is exactly zero."""
    bound = TOLERANCE["masked_conv2d", dtype]["rtol"]
    for name, value in actual.items():
        error = (value.double() - expected[name]).abs().max()
        largest = expected[name].abs().max()
        assert value.shape == expected[name].shape, name
        assert error <= bound * largest, f"{name}: {error:.2e} of {largest:.2e}"


# --- without a pattern ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("case", ODD_CONVS, ids=lambda case: case.name)
def test_formula(case: ConvCase, kind: str, layout: str) -> None:
    tensors = inputs(case, kind, layout=layout)
    actual = computed(case, tensors)
    assert set(actual) == set(NAMES)
    assert_close(actual, oracle(case, tensors), torch.float32)
    assert actual["y"].is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_materialised_mask(layout: str, bf16: bool) -> None:
    """Same values to the bit as conv2d(x, weight * mask) by autograd, under autocast too."""
    case = replace(RESNET18_32[128][1], batch=2, height=8, width=8)
    tensors, others = (inputs(case, "float", layout=layout) for _ in range(2))
    grad = outgoing(case, torch.float32).to(memory_format=LAYOUTS[layout])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = masked_conv2d(*tensors, padding=1)
        expected = functional.conv2d(others[0], others[1] * others[2], others[3], padding=1)
    assert y.dtype == expected.dtype
    assert y.stride() == expected.stride()
    y.backward(grad.to(y.dtype))
    expected.backward(grad.to(y.dtype))
    assert torch.equal(y, expected)
    for name, ours, theirs in zip(NAMES[1:], tensors, others, strict=True):
        assert torch.equal(ours.grad, theirs.grad), name  # type: ignore[arg-type]
        assert ours.grad.dtype == torch.float32  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :32],
        lambda x: x[:, :1],
        lambda x: x[:, :, :1, :1],
        lambda x: x.permute(0, 3, 1, 2),
        lambda x: x[:1],
        lambda x: x.contiguous()[:, :32],
        lambda x: x[:1, :1, :1, :1].expand(2, 3, 4, 5),
    ],
)
def test_memory_formats_are_torchs(view: Callable[[Tensor], Tensor]) -> None:
    x = view(torch.randn(2, 48, 6, 5).contiguous(memory_format=torch.channels_last))
    from torch._prims_common import suggest_memory_format

    assert operation.is_channels_last(x) == (suggest_memory_format(x) == torch.channels_last)
    weight = torch.randn(8, x.shape[1], 1, 1)
    y = masked_conv2d(x, weight, torch.ones_like(weight))
    assert y.stride() == functional.conv2d(x, weight).stride()


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of torch's own
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2)])
@pytest.mark.parametrize("skips", [False, True])
def test_named_padding(padding: str, kernel: tuple[int, int], skips: bool) -> None:
    case = replace(BY_NAME["same 3x3"], kernel=kernel)
    x, weight, mask, _ = inputs(case, layout="nhwc")
    if skips and padding == "same" and kernel[0] % 2 == 0:
        with pytest.raises(LayoutError, match="'same' of an even kernel"):
            BlockPattern.of(mask, 1, padding, (1, 2))
        skips = False
    pattern = BlockPattern.of(mask, 1, padding, (1, 2), block=(16, 16)) if skips else None
    keywords: dict[str, Any] = {"padding": padding, "dilation": (1, 2)}
    expected = functional.conv2d(x, weight * mask, **keywords)
    actual = masked_conv2d(x, weight, mask, **keywords, pattern=pattern, backend="triton")
    torch.testing.assert_close(actual, expected)


def test_second_derivatives_and_transforms() -> None:
    """The formula has them, the kernels do not."""
    case = BLOCK_CONVS[-2]
    (x, weight, mask, _), pattern = block_inputs(case, (16, 16))
    for keywords in ({}, {"pattern": pattern}):
        y = masked_conv2d(x, weight, mask, **keywords).square().sum()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        if not keywords:
            gradient.sum().backward()
            torch.func.grad(lambda mask: masked_conv2d(x, weight, mask).sum())(mask)
            continue
        with pytest.raises(RuntimeError, match="twice"):
            gradient.sum().backward()
        with pytest.raises(RuntimeError, match="functorch"):
            torch.func.grad(lambda weight: masked_conv2d(x, weight, mask, pattern=pattern).sum())(weight)


# --- the block kernels ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "block"), [*zip(BLOCK_CONVS, BLOCKS[::-1]), *zip(BLOCK_CONVS[::-1], BLOCKS)]
)
def test_kernels(case: ConvCase, block: tuple[int, int]) -> None:
    tensors, pattern = block_inputs(case, block)
    assert explain(masked_conv2d, *tensors, **case.arguments, pattern=pattern, backend="triton").is_triton
    actual = computed(case, tensors, pattern=pattern, backend="triton")
    assert set(actual) == {"y", "dx", "dweight", "dbias"}
    assert_close(actual, oracle(case, tensors), torch.float32)
    assert actual["y"].is_contiguous(memory_format=torch.channels_last)
    assert actual["dx"].stride() == tensors[0].stride()
    assert actual["dweight"].stride() == tensors[1].stride()


@pytest.mark.parametrize("case", BLOCK_CONVS[:3], ids=lambda case: case.name)
def test_kernels_in_half_precision(case: ConvCase) -> None:
    tensors, pattern = block_inputs(case, (64, 64), dtype=torch.float16)
    actual = computed(case, tensors, pattern=pattern, backend="triton")
    assert {value.dtype for value in actual.values()} == {torch.float16}
    assert_close(actual, oracle(case, tensors), torch.float16)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_empty_and_full_patterns(share: float) -> None:
    case = BLOCK_CONVS[2]
    tensors, pattern = block_inputs(case, (16, 32), share=share)
    assert pattern.density == share
    assert_close(
        computed(case, tensors, pattern=pattern, backend="triton"), oracle(case, tensors), torch.float32
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize("skips", [False, True])
def test_integer_masks(dtype: torch.dtype, skips: bool) -> None:
    case = BLOCK_CONVS[0]
    tensors, pattern = block_inputs(case, (16, 16), "random")
    expected = oracle(case, tensors)
    tensors[2] = tensors[2].to(dtype)
    actual = computed(case, tensors, pattern=pattern if skips else None, backend="triton")
    assert_close(actual, expected, torch.float32)


def test_gradient_of_the_mask_is_dense() -> None:
    case = BLOCK_CONVS[0]
    tensors, pattern = block_inputs(case, (16, 16))
    tensors[2].requires_grad_()
    actual = computed(case, tensors, pattern=pattern, backend="triton")
    assert set(actual) == set(NAMES)
    assert_close(actual, oracle(case, tensors), torch.float32)
    assert (actual["dmask"][tensors[2].detach() == 0] != 0).any()


@pytest.mark.parametrize("taken", [set(), *map(set, itertools.combinations(PARTS, 1)), {"dgrad", "wgrad"}])
def test_parts_mix(taken: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part may run in the library: the kernel of dgrad then takes the dense product, or forward the packed."""
    monkeypatch.setattr(
        operation, "_choose", lambda part, *_: Choice("triton" if part in taken else "torch", "a test")
    )
    case = BLOCK_CONVS[2]
    tensors, pattern = block_inputs(case, (16, 16))
    assert_close(computed(case, tensors, pattern=pattern), oracle(case, tensors), torch.float32)


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (False, False, False)]
)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_only_needed_gradients(needed: Sequence[bool], backend: str) -> None:
    case = BLOCK_CONVS[3]
    tensors, pattern = block_inputs(case, (16, 16))
    expected = oracle(case, tensors)
    for tensor, need in zip((tensors[0], tensors[1], tensors[3]), needed, strict=True):
        tensor.requires_grad_(need)
    if not any(needed):
        y = masked_conv2d(*tensors, **case.arguments, pattern=pattern, backend=backend)
        assert_close({"y": y}, expected, torch.float32)
        return
    actual = computed(case, tensors, pattern=pattern, backend=backend)
    assert [name in actual for name in ("dx", "dweight", "dbias")] == list(needed)
    assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize(
    "stretch", [lambda bias: bias.repeat_interleave(2)[::2], lambda bias: bias[:1].expand(40)]
)
def test_bias_of_any_stride(stretch: Callable[[Tensor], Tensor]) -> None:
    case = BLOCK_CONVS[3]
    tensors, pattern = block_inputs(case, (16, 16))
    tensors[3] = stretch(tensors[3].detach())
    assert tensors[3].stride() != (1,)
    for backend in ("torch", "triton"):
        y = masked_conv2d(*tensors, **case.arguments, pattern=pattern, backend=backend)
        assert_close({"y": y.detach()}, oracle(case, tensors), torch.float32)


def test_autocast_on_the_kernels() -> None:
    case = BLOCK_CONVS[3]
    tensors, pattern = block_inputs(case, (16, 16))
    with torch.autocast("cpu", torch.float16):
        actual = computed(case, tensors, pattern=pattern, backend="triton")
    assert actual["y"].dtype == torch.float16
    assert actual["dweight"].dtype == actual["dbias"].dtype == torch.float32
    assert_close(actual, oracle(case, tensors), torch.float16)


@pytest.mark.slow
def test_tiles_agree_and_outputs_may_be_given() -> None:
    """Every tile, the product dense and packed; what a kernel writes is all that is read."""
    case = BLOCK_CONVS[2]
    tensors, pattern = block_inputs(case, (32, 16))
    x, weight, mask, bias = (tensor.detach() for tensor in tensors)
    expected = oracle(case, tensors)
    grad = outgoing(case, x.dtype).contiguous(memory_format=torch.channels_last)
    packed = launch_pack(weight, mask, pattern, x.dtype)
    dense = (weight * mask).contiguous(memory_format=torch.channels_last)
    y, dx, dweight = (
        torch.empty_like(expected["y"], dtype=x.dtype),
        torch.empty_like(x),
        torch.empty_like(weight),
    )
    y = y.contiguous(memory_format=torch.channels_last)
    for tile, product in itertools.product((PixelTile(16, 4, 2), PixelTile(64, 8, 3)), (packed, dense)):
        for tensor in (y, dx):
            tensor.fill_(torch.nan)
        assert launch_forward(x, product, pattern, bias, tile=tile, out=y) is y
        assert launch_dgrad(grad, product, pattern, x.shape, tile=tile, out=dx) is dx
        assert_close({"y": y, "dx": dx}, expected, torch.float32)
    for splits in (1, 3, 4):
        dweight.fill_(torch.nan)
        workspace = torch.full((splits, pattern.alive, 32, 16), torch.nan)
        tile = PixelTile(16, 4, 2, splits)
        made = launch_wgrad(grad, x, mask, pattern, weight, tile=tile, workspace=workspace, out=dweight)
        assert made is dweight
        assert_close({"dweight": dweight}, expected, torch.float32)
        again = launch_wgrad(grad, x, mask, pattern, weight, tile=tile)
        assert torch.equal(again, dweight)


@pytest.mark.parametrize("case", RESNET18_32[128], ids=lambda case: case.name)
@pytest.mark.parametrize("part", PARTS)
def test_tiles_worth_measuring(part: str, case: ConvCase) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = (-(-case.out_channels // 64), -(-case.in_channels // 64), *case.kernel)
    kept = (torch.rand(blocks, generator=generator) < 0.1).repeat_interleave(64, 0).repeat_interleave(64, 1)
    mask = kept[: case.out_channels, : case.in_channels]
    pattern = BlockPattern.of(mask, case.stride, case.padding)
    made = tiles(part, pattern, case.x_shape, torch.bfloat16, torch.device("cpu"))
    assert 4 <= len(set(made)) == len(made) <= 8
    if part == "wgrad" and pattern.alive:
        assert made[0].splits * pattern.alive >= 32  # programs: few blocks of few pixels fill no GPU
    doubled = tiles(part, pattern, case.x_shape, torch.float32, torch.device("cpu"))
    assert max(tile.stages * tile.pixels for tile in doubled) <= max(t.stages * t.pixels for t in made)


# --- the pattern ---------------------------------------------------------------------------------------------


def decoded(starts: Tensor, codes: Tensor) -> list[tuple[int, int, int, int, int]]:
    """(list, high, tap row, tap column, low) of each code."""
    edges = starts.tolist()
    return [
        (row, code >> 32, code >> 16 & 0xFF, code >> 24 & 0xFF, code & 0xFFFF)
        for row, (start, end) in enumerate(itertools.pairwise(edges))
        for code in codes[start:end].tolist()
    ]


@pytest.mark.parametrize("case", BLOCK_CONVS, ids=lambda case: case.name)
def test_pattern_lists_every_block_once(case: ConvCase) -> None:
    (_, _, mask, _), pattern = block_inputs(case, (16, 16))
    alive = {
        (k, r, s, c): int(pattern.slots[k, r, s, c])
        for k, r, s, c in itertools.product(*map(range, pattern.slots.shape))
        if mask[16 * k : 16 * k + 16, 16 * c : 16 * c + 16, r, s].any()
    }
    assert sorted(alive.values()) == list(range(pattern.alive))
    assert int((pattern.slots >= 0).sum()) == pattern.alive
    forward = decoded(pattern.starts, pattern.codes)
    assert [(k, r, s, c) for _, k, r, s, c in forward] == sorted(alive, key=lambda place: alive[place])
    assert all(row == k for row, k, *_ in forward)
    back = decoded(pattern.back_starts, pattern.back_codes)
    columns = pattern.blocks[1]
    assert {(k, r, s, row % columns): slot for row, slot, r, s, k in back} == alive
    for row, _, r, s, _ in back:  # a class's rows of dx are those that the tap hits
        taps = zip((r, s), divmod(row // columns, case.stride[1]), case.dilation, case.padding, case.stride)
        assert all((tap * gap - pad) % step == phase for tap, phase, gap, pad, step in taps)


def test_patterns_are_copied_and_pickled() -> None:
    case = BLOCK_CONVS[3]
    tensors, pattern = block_inputs(case, (16, 16))
    computed(case, tensors, pattern=pattern, backend="triton")  # it holds launches now
    for other in (copy.deepcopy(pattern), pickle.loads(pickle.dumps(pattern))):
        assert other.handle != pattern.handle
        assert (other.cache, other.numbers, other.density) == ({}, pattern.numbers, pattern.density)
        assert_close(
            {"y": masked_conv2d(*tensors, **case.arguments, pattern=other, backend="triton").detach()},
            oracle(case, tensors),
            torch.float32,
        )


PATTERN_ERRORS: dict[str, tuple[Callable[[BlockPattern], Any], str]] = {
    "shape": (
        lambda _: BlockPattern.of(torch.ones(35, 41, 3, 3), 1, 1),
        r"pattern: is of a mask \(35, 41, 3, 3\)",
    ),
    "stride": (lambda _: BlockPattern.of(torch.ones(35, 40, 3, 3), 2, 1), r"pattern: is of stride \(2, 2\)"),
    "device": (
        lambda pattern: replace(pattern, codes=pattern.codes.to("meta")),
        "pattern: is on meta, weight on cpu",
    ),
    "sides": (lambda _: BlockPattern.of(torch.ones(3, 3, 3, 3), block=(48, 16)), "block: want two of 16"),
    "one side": (lambda _: BlockPattern.of(torch.ones(3, 3, 3, 3), block=(16,)), "block: want two"),  # type: ignore[arg-type]
    "dimensions": (lambda _: BlockPattern.of(torch.ones(3, 3)), "mask: want shape"),
    "no tensor": (lambda _: BlockPattern.of([1]), "mask: want a torch tensor"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", PATTERN_ERRORS)
def test_errors_of_patterns(name: str) -> None:
    make, message = PATTERN_ERRORS[name]
    tensors, pattern = block_inputs(BLOCK_CONVS[0], (16, 16))
    with pytest.raises(ArgumentError, match=f"^{message}"):
        masked_conv2d(*tensors, **BLOCK_CONVS[0].arguments, pattern=make(pattern))


# --- the choice ----------------------------------------------------------------------------------------------


def test_explains() -> None:
    case = BLOCK_CONVS[0]
    tensors, pattern = block_inputs(case, (16, 16))
    known: dict[str, Any] = {**case.arguments, "pattern": pattern}
    assert "no pattern" in explain(masked_conv2d, *tensors, **case.arguments).reason
    assert "need a GPU" in explain(masked_conv2d, *tensors, **known).reason
    assert explain("masked_conv2d", *tensors, **known, backend="triton").is_triton
    assert (
        explain("masked_conv2d", *tensors, **known, backend="torch").reason == "backend torch was asked for"
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert "bfloat16 wrongly" in explain("masked_conv2d", *tensors, **known, backend="triton").reason
    with pytest.raises(ArgumentError, match="mask: shape"):
        explain("masked_conv2d", *tensors[:2], tensors[2][:1], **known)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"groups": 2, "out_channels": 36}, "take one group, this convolution has 2"),
        ({"dtype": torch.float64}, "accumulate in float32; float64 runs in torch"),
        ({"layout": torch.contiguous_format}, "need x in channels_last"),
        ({"kernel": (16, 1)}, "15 taps an axis"),
        ({"batch": 2**16, "height": 256, "width": 256}, "in 32 bits"),
        ({"in_channels": 2**15, "height": 256, "width": 256}, "in 32 bits"),
        ({"stride": (300, 300)}, "at most 65535"),
    ],
)
def test_refusals(change: dict[str, Any], reason: str) -> None:
    dtype, layout = change.pop("dtype", torch.float32), change.pop("layout", torch.channels_last)
    case = replace(BLOCK_CONVS[0], padding=(8, 1), **change)
    mask = torch.ones(case.weight_shape)
    pattern = BlockPattern.of(mask, case.stride, case.padding)
    x = torch.empty(case.x_shape, dtype=dtype, device="meta").to(memory_format=layout)
    weight, mask = (torch.empty(case.weight_shape, dtype=dtype, device="meta") for _ in range(2))
    pattern = replace(pattern, codes=pattern.codes.to("meta"))
    choice = explain("masked_conv2d", x, weight, mask, **case.arguments, pattern=pattern, backend="triton")
    assert not choice.is_triton
    assert reason in choice.reason


@pytest.mark.parametrize("groups", [1, 2])
def test_refused_patterns_run_in_torch(groups: int) -> None:
    case = replace(BLOCK_CONVS[0], in_channels=36, out_channels=34, groups=groups)
    tensors = inputs(case, layout="nchw" if groups == 1 else "nhwc")
    pattern = BlockPattern.of(tensors[2], case.stride, case.padding, block=(16, 16))
    assert_close(
        computed(case, tensors, pattern=pattern, backend="triton"), oracle(case, tensors), torch.float32
    )


def test_contests_call_what_the_operation_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each part both candidates give the same; the key tells classes of shapes and densities apart."""
    contests: dict[str, Contest] = {}

    def record(name: str, *_: Any, contest: Contest, **__: Any) -> Choice:
        contests[name] = contest
        return Choice("torch", "a test")

    monkeypatch.setattr(operation, "select", record)
    case = BLOCK_CONVS[2]
    tensors, pattern = block_inputs(case, (16, 16))
    known: dict[str, Any] = {**case.arguments, "pattern": pattern}
    assert explain("masked_conv2d", *tensors, **known) == Choice("torch", "a test")
    assert list(contests) == [f"masked_conv2d.{part}" for part in PARTS]
    for contest in contests.values():
        calls = contest.calls()
        assert list(calls) == ["torch", "triton"]
        with torch.no_grad():
            torch.testing.assert_close(calls["triton"](), calls["torch"](), rtol=1e-4, atol=1e-4)
    _, sparser = block_inputs(case, (16, 16), share=0.1)
    explain("masked_conv2d", *tensors, **{**known, "pattern": sparser})
    assert contests["masked_conv2d.dgrad"].key != contest.key
    before = dict(contests)
    contests.clear()
    explain("masked_conv2d", *tensors, **known)  # remembered
    assert before
    assert not contests


# --- the module ----------------------------------------------------------------------------------------------


def test_module() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, padding="same", groups=2)
    )
    state = torch.get_rng_state()
    masked = nn.Sequential(
        MaskedConv2d.from_conv(net[0]), nn.ReLU(), MaskedConv2d.from_conv(net[2], backend="torch")
    )
    assert torch.equal(state, torch.get_rng_state())
    assert masked[0].weight is net[0].weight
    assert masked[0].bias is None
    assert masked[2].backend == "torch"
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(masked(x), net(x))
    mask = torch.rand(net[0].weight.shape).requires_grad_()
    y = functional_call(masked, {"0.mask": mask}, (x,))
    torch.testing.assert_close(y, functional_call(net, {"0.weight": net[0].weight * mask}, (x,)))
    y.sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().max() > 0
    assert set(masked.state_dict()) == {"0.weight", "0.mask", "2.weight", "2.bias", "2.mask"}
    with pytest.raises(ArgumentError, match="padding_mode: want zeros"):
        MaskedConv2d.from_conv(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))


def sparse_layer(**keywords: Any) -> tuple[MaskedConv2d, Tensor]:
    layer = MaskedConv2d(40, 24, 3, padding=1, backend="triton", **keywords)
    mask = torch.zeros_like(layer.weight)
    mask[:16, 16:32, 1] = 1
    mask[3, -1, 0, 2] = 1
    return layer, mask


def test_module_skips_where_the_mask_is_set() -> None:
    layer, mask = sparse_layer()
    assert layer.pattern is None
    pattern = layer.set_mask(mask, block=(16, 16))
    assert pattern is layer.pattern is not None
    assert pattern.alive == 4
    x = torch.randn(2, 40, 5, 6).contiguous(memory_format=torch.channels_last)
    expected = functional.conv2d(x, layer.weight * mask, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)
    assert "_pattern" not in str(layer.state_dict().keys())

    other = copy.deepcopy(layer)
    assert other.pattern is not pattern
    torch.testing.assert_close(other(x), expected)

    # Another mask, or a change of it, is followed, without the pattern.
    ones = torch.ones_like(mask)
    dense = functional.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(functional_call(layer, {"mask": ones}, (x,)), dense)
    assert layer.pattern is pattern
    layer.load_state_dict({**layer.state_dict(), "mask": ones})
    assert layer.pattern is None
    torch.testing.assert_close(layer(x), dense)


def test_module_keeps_no_pattern_that_cannot_gain() -> None:
    layer, mask = sparse_layer()
    assert layer.set_mask(mask) is not None
    assert layer.set_mask(torch.ones_like(mask)) is None
    grouped = MaskedConv2d(40, 24, 3, groups=2)
    assert grouped.set_mask(torch.zeros_like(grouped.weight)) is None
    with pytest.raises(ArgumentError, match=r"^mask: shape \(2, 40, 3, 3\) differs"):
        layer.set_mask(mask[:2])


# --- compilers and tracers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "triton"])
# Of torch's own check, which looks at the gradients of copies.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(backend: str) -> None:
    case = BLOCK_CONVS[2]
    torch.use_deterministic_algorithms(False)  # opcheck compares uninitialised outputs of its own
    tensors, pattern = block_inputs(case, (16, 16))
    tensors[2].requires_grad_()
    torch.library.opcheck(operation._operator, (*tensors, pattern.handle, backend))
    detached = [tensor.detach() for tensor in tensors[:3]]
    arguments = (outgoing(case, torch.float32), *detached, pattern.handle, backend, [True] * 4)
    torch.library.opcheck(operation._backward_operator, arguments)


@pytest.mark.parametrize("skips", [False, True])
def test_compiles_whole(skips: bool) -> None:
    case = BLOCK_CONVS[3]
    tensors, pattern = block_inputs(case, (16, 16))
    keywords: dict[str, Any] = {"pattern": pattern, "backend": "triton"} if skips else {}
    expected = computed(case, tensors, **keywords)
    for tensor in tensors:
        tensor.grad = None
    whole = torch.compile(masked_conv2d, backend="aot_eager", fullgraph=True)
    y = whole(*tensors, **case.arguments, **keywords)
    y.backward(outgoing(case, y.dtype))
    actual = dict(zip(NAMES, [y.detach(), *(tensor.grad for tensor in tensors)], strict=True))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name)


def test_a_module_compiles_whole_and_follows_its_mask() -> None:
    layer, mask = sparse_layer()
    layer.set_mask(mask, block=(16, 16))
    x = torch.randn(2, 40, 5, 6).contiguous(memory_format=torch.channels_last)
    whole = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for changed in (mask, mask.flip(0), torch.ones_like(mask)):
        layer.set_mask(changed, block=(16, 16))
        expected = functional.conv2d(x, layer.weight * changed, layer.bias, padding=1)
        torch.testing.assert_close(whole(x), expected)


@pytest.mark.parametrize("skips", [False, True])
def test_shapes_of_meta_tensors(skips: bool) -> None:
    case = BLOCK_CONVS[1]
    tensors, pattern = block_inputs(case, (16, 16))
    x, weight, mask, bias = (tensor.to("meta") for tensor in tensors)
    known = {"pattern": replace(pattern, codes=pattern.codes.to("meta"))} if skips else {}
    y = masked_conv2d(x, weight, mask, bias, **case.arguments, **known)
    assert (y.device.type, y.shape) == ("meta", case.y_shape)
    gradients = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert [gradient.shape for gradient in gradients] == [x.shape, weight.shape, bias.shape]


# --- arguments -----------------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "mask shape": ({"mask": torch.ones(6, 2, 3, 2)}, "mask: shape"),
    "mask dtype": ({"mask": torch.ones(6, 2, 3, 3, dtype=torch.int64)}, "mask: want a floating"),
    "no tensor": ({"mask": 1}, "mask: want a torch tensor"),
    "dtypes": (
        {"x": torch.ones(2, 4, 5, 5, dtype=torch.float64)},
        "weight: is torch.float32, x is torch.float64",
    ),
    "integer x": (
        {"x": torch.ones(2, 4, 5, 5, dtype=torch.int32)},
        "weight: is torch.float32, x is torch.int32",
    ),
    "backend": ({"backend": "cuda"}, "backend: want one of"),
}


TORCHS: tuple[dict[str, Any], ...] = (
    {"x": torch.ones(4, 5, 5, 5, 5)},
    {"groups": 4},
    {"groups": 0},
    {"x": torch.ones(2, 6, 5, 5)},
    {"bias": torch.ones(5)},
    {"bias": torch.ones(6, dtype=torch.int32)},
    {"mask": torch.ones(6, 2, 3, 3, device="meta")},
    {"padding": 0, "dilation": 3},
    {"stride": 0},
    {"stride": {}},
    {"padding": -1},
    {"padding": "full"},
    {"padding": "same", "stride": 2},
    {"dilation": (1, 2, 3)},
)
"""Arguments that torch itself refuses."""
ARGUMENTS: dict[str, Any] = {
    "x": torch.ones(2, 4, 5, 5),
    "weight": torch.ones(6, 2, 3, 3),
    "mask": torch.ones(6, 2, 3, 3),
    "groups": 2,
    "padding": 1,
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name: str) -> None:
    changes, message = ERRORS[name]
    with pytest.raises(ArgumentError, match=f"^{message}"):
        masked_conv2d(**{**ARGUMENTS, **changes})


@pytest.mark.parametrize("changes", TORCHS, ids=str)
def test_what_torch_refuses_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        masked_conv2d(**{**ARGUMENTS, **changes})


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "channels": ({"x": torch.ones(2, 41, 7, 5)}, "x: a pattern of a mask"),
    "no batch": ({"x": torch.ones(40, 7, 5)}, "x: a pattern of a mask"),
    "empty batch": ({"x": torch.ones(0, 40, 7, 5)}, "x: a pattern of a mask"),
    "too small": ({"x": torch.ones(2, 40, 0, 5)}, "x: a pattern of a mask"),
    "bias": ({"bias": torch.ones(5)}, r"bias: want shape \(35,\)"),
    "bias dtype": ({"bias": torch.ones(35, dtype=torch.int32)}, "bias: want a floating"),
    "mask elsewhere": ({"mask": torch.ones(35, 40, 3, 3, device="meta")}, "mask: is on meta"),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_pattern_takes_what_fits_it(name: str, backend: str) -> None:
    changes, message = UNFIT[name]
    (x, weight, mask, bias), pattern = block_inputs(BLOCK_CONVS[0], (16, 16))
    given = {"x": x, "weight": weight, "mask": mask, "bias": bias, **changes}
    with pytest.raises(ArgumentError, match=f"^{message}"):
        masked_conv2d(**given, **BLOCK_CONVS[0].arguments, pattern=pattern, backend=backend)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_patterns_of_possible_numbers(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ArgumentError, match=r"^stride, padding, dilation: want at least"):
        BlockPattern.of(torch.ones(3, 3, 3, 3), *numbers)


# --- machine code --------------------------------------------------------------------------------------------

BUDGETS = {"forward": 180, "dgrad": 200, "wgrad": 130}
"""Instructions a warp may take for a step of 64 terms on sm_90: 95 to 181 with Triton 3.6 and 3.9.

The tensor cores take 256 clocks for a step of 64 x 128 x 64 (2048 multiply-adds a clock and
multiprocessor); meanwhile each of four schedulers issues the instructions of one of the program's four warps.
"""
ODD_BUDGETS = {"forward": 200, "dgrad": 230, "wgrad": 480}
"""Where channels fill no vector, every element is loaded alone."""
LAYERS = {
    "3x3": ConvCase("", 128, 256, 8, 8, 256),
    "3x3 stride 2": ConvCase("", 128, 128, 16, 16, 256, stride=(2, 2)),
    "odd": ConvCase("", 64, 100, 9, 7, 130, (3, 2), (2, 1), (2, 0), (1, 2)),
}
STEPS: dict[str, PixelTile | None] = {
    "rule": None,
    "128": PixelTile(128, 4, 4, 8),
    "256": PixelTile(256, 8, 3, 8),
}


def calls() -> dict[str, Callable[[], object]]:
    """What each part of a bfloat16 layer launches, by layer, tile and part."""
    made: dict[str, Callable[[], object]] = {}
    for (layer, case), (name, tile) in itertools.product(LAYERS.items(), STEPS.items()):
        if name != "rule" and layer != "3x3":
            continue
        mask = torch.zeros(case.weight_shape).contiguous(memory_format=torch.channels_last)
        mask[:64, :64] = 1
        pattern = BlockPattern.of(mask, case.stride, case.padding, case.dilation)
        x, grad = (
            torch.zeros(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
            for shape in (case.x_shape, case.y_shape)
        )
        packed, known = launch_pack(mask, mask, pattern, x.dtype), {"tile": tile}
        bias = torch.zeros(case.out_channels)
        made[f"{layer}, {name}, forward"] = functools.partial(
            launch_forward, x, packed, pattern, bias, **known
        )
        made[f"{layer}, {name}, dgrad"] = functools.partial(
            launch_dgrad, grad, packed, pattern, x.shape, **known
        )
        if name != "256":
            made[f"{layer}, {name}, wgrad"] = functools.partial(
                launch_wgrad, grad, x, mask, pattern, mask, **known
            )
        if name == "rule":
            made[f"{layer}, pack"] = functools.partial(launch_pack, mask, mask, pattern, torch.float16)
    return made


def loop_of(listing: str) -> tuple[int, int]:
    """Instructions, NOPs left out, and tensor-core instructions of the longest loop that holds one; zeros if none."""
    import standin

    lines = [(int(at, 16), opcode, rest) for at, opcode, rest in standin._INSTRUCTION.findall(listing)]
    found = [(0, 0)]
    for end, opcode, rest in lines:
        target = re.search(r"0x([0-9a-f]+)", rest) if opcode.startswith("BRA") else None
        if target is None or (start := int(target[1], 16)) >= end:
            continue
        body = [
            name.split(".")[0] for at, name, _ in lines if start <= at <= end and not name.startswith("NOP")
        ]
        products = sum(name in ("HGMMA", "HMMA", "UTCHMMA") for name in body)
        if products:
            found.append((len(body), products))
    return max(found)


def report(capability: int) -> None:
    """Print the figures and loops of all kernels that `calls` compile, as JSON."""
    import standin

    rows = []
    with standin.stand_in(capability) as seen:
        for name, call in calls().items():
            if capability != 90 and name.split(", ")[1] not in ("rule", "pack"):
                continue
            before = len(seen.kernels)
            call()
            rows += [(name, kernel) for kernel in seen.kernels[before:]]
    kernels = [kernel for _, kernel in rows]
    codes = [standin.code_of(kernel.cubin) for kernel in kernels]
    loops = [loop_of(listing) for listing in standin.disassemble(codes, capability)]
    figures = standin.figures_of(kernels, capability)
    print(json.dumps([(name, asdict(made), *loop) for (name, _), made, loop in zip(rows, figures, loops)]))


@functools.cache
def machine_code(capability: int) -> list[Any]:
    import compiled

    paths = [compiled.ROOT / part for part in ("", "kernels", "bench", "tests", "tests/kernels")]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(capability)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_machine_code(capability: int) -> None:
    """No spills; products on tensor cores, and at most as many instructions a step as a change may not double."""
    import standin

    for name, figures, loop, products in machine_code(capability):
        told = f"{name}: {figures['name']} on sm_{capability}"
        assert figures["spills"] == 0, told
        assert figures["shared_bytes"] <= standin.SHARED_MEMORY_LIMITS[capability], told
        if figures["name"] in ("block_pack_kernel", "block_gradient_kernel"):
            assert figures["instructions"] <= 400, told
            continue
        assert products, told
        if not name.startswith("odd"):
            assert figures["vector_loads"] >= 8, told
        if capability == 90:
            assert figures["hgmma"] >= 4, told
            assert figures["wgmma_depth"] >= 1, told
            budgets = ODD_BUDGETS if name.startswith("odd") else BUDGETS
            assert 4 * loop / products <= budgets[name.split(", ")[-1]], f"{told}: {loop} instructions"


if __name__ == "__main__":
    report(int(sys.argv[1]))
