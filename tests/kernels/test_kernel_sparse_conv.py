"""Sparse convolution: torch paths and kernels against the float64 oracle, the operator, the module, machine code."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import pickle
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import torch
from compiled import CAPABILITIES, check, figures
from gpu import tiles
from kernel_tolerances import TOLERANCE
from prunebench_kernels import dispatch, measured, sparse_conv
from prunebench_kernels.dispatch import ArgumentError, explain
from prunebench_kernels.layouts import (
    SEMI_STRUCTURED,
    Geometry,
    PackedWeight,
    arrange,
    empty,
    format_of,
    is_arranged,
    pack,
)
from prunebench_kernels.measured import QUICK, Choices, Decision, Measuring, Samples
from prunebench_kernels.reference import sparse_conv2d as oracle
from prunebench_kernels.sparse_conv import ConvTile, SparseConv2d, launch, sparse_conv2d, tile_of
from test_sparse_layouts import ANYWHERE, geometry_of, masked_weight, takes, two_of_four
from torch import Tensor, nn
from torch.nn import functional

KERNELS: tuple[tuple[str, dict[str, int]], ...] = (
    ("block", {"block_out": 16, "block_in": 16}),
    ("direct", {}),
)
DENSITIES = (0.0, 0.02, 0.3, 1.0)
SAME = cases.ODD_CONVS[1]


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialised memory holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def inputs(case: cases.ConvCase, dtype: torch.dtype, index: int) -> tuple[Tensor, dict[str, Any]]:
    """x, and bias, residual and ReLU in every combination as `index` counts."""
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(case.x_shape, generator=generator).to(dtype)
    bias = torch.randn(case.out_channels, generator=generator).to(dtype) if index & 1 else None
    residual = torch.randn(case.y_shape, generator=generator).to(dtype) if index & 2 else None
    if index & 8:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, {"bias": bias, "residual": residual, "relu": bool(index & 4)}


def assert_near(y: Tensor, want: Tensor) -> None:
    tolerance = TOLERANCE["sparse_conv2d", y.dtype]
    scale = max(want.abs().max().item(), 1e-6)
    torch.testing.assert_close(y.double() / scale, want / scale, rtol=0.0, atol=tolerance["rtol"])


def launched(
    x: Tensor, packed: PackedWeight, epilogue: dict[str, Any], tile: ConvTile | None = None
) -> Tensor:
    """Run the kernel (interpreted) into poisoned memory."""
    order, residual = format_of(packed.layout), epilogue["residual"]
    out = empty(packed.geometry.output_shape(x.shape), order, x).fill_(float("nan"))
    return launch(
        arrange(x, order),
        packed,
        epilogue["bias"],
        None if residual is None else arrange(residual, order),
        epilogue["relu"],
        tile=tile,
        out=out,
    )


# --- values ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", ["block", "direct"])
@pytest.mark.parametrize(
    ("kernel", "padding"), [((1, 1), (1, 2)), ((3, 2), (3, 3)), ((2, 2), (4, 0))], ids=str
)
def test_padding_beyond_the_kernels_reach(
    layout: str, kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    """The output is larger than the image with the zeros that rows share."""
    for stride in ((1, 1), (2, 1)):
        case = cases.ConvCase("overpadded", 3, 5, 4, 7, 6, kernel, stride, padding)
        packed = pack(masked_weight(case, 0.4), layout, geometry=geometry_of(case))
        x, epilogue = inputs(case, torch.float32, 7)
        want = oracle(x, packed, **epilogue)
        assert_near(sparse_conv2d(x, packed, **epilogue, backend="torch"), want)
        assert_near(launched(x, packed, epilogue), want)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ANYWHERE)
@pytest.mark.parametrize("case", cases.ODD_CONVS, ids=lambda case: case.name)
def test_torch_path_equals_the_oracle(case: cases.ConvCase, layout: str, dtype: torch.dtype) -> None:
    if not takes(layout, case):
        pytest.skip("the layout takes one group; test_sparse_layouts checks the refusal")
    settings = dict(KERNELS).get(layout, {})
    for position, density in enumerate(DENSITIES):
        for turn in range(4):
            chosen = settings if turn % 2 else {}
            packed = pack(masked_weight(case, density, dtype), layout, geometry=geometry_of(case), **chosen)
            x, epilogue = inputs(case, dtype, 4 * position + turn)
            y = sparse_conv2d(x, packed, **epilogue, backend="torch")
            assert y.dtype == dtype
            assert is_arranged(y, format_of(layout))
            assert_near(y, oracle(x, packed, **epilogue))


@pytest.mark.slow
@pytest.mark.parametrize("layout_settings", KERNELS, ids=str)
@pytest.mark.parametrize("case", cases.ODD_CONVS, ids=lambda case: case.name)
def test_kernel_equals_the_oracle(case: cases.ConvCase, layout_settings: tuple[str, dict[str, int]]) -> None:
    layout, settings = layout_settings
    if not takes(layout, case):
        pytest.skip("the layout takes one group; test_sparse_layouts checks the refusal")
    for position, density in enumerate(DENSITIES):
        dtype = (torch.float32, torch.float16)[(position + len(case.name)) % 2]
        packed = pack(masked_weight(case, density, dtype), layout, geometry=geometry_of(case), **settings)
        x, epilogue = inputs(case, dtype, position + 3 * len(case.name) + len(settings))
        # The interpreter's time goes by steps: full weights walk all channels at once.
        tile = ConvTile(256, 4, channels=32) if layout == "direct" and density > 0.1 else None
        assert_near(launched(x, packed, epilogue, tile), oracle(x, packed, **epilogue))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("layout", "settings", "tile"),
    [
        ("block", {"block_out": 16, "block_in": 16}, ConvTile(16, 4, 2)),
        ("block", {"block_out": 32, "block_in": 16}, ConvTile(32, 4, 3)),
        ("block", {}, ConvTile(128, 4, 4)),
        ("block", {"block_out": 128, "block_in": 64}, ConvTile(64, 8, 4)),
        ("direct", {}, ConvTile(64, 4, splits=2, channels=4, unroll=1)),
        ("direct", {}, ConvTile(256, 4, splits=3, channels=8, unroll=4)),
    ],
    ids=str,
)
def test_every_tile_gives_the_same(
    layout: str, settings: dict[str, int], tile: ConvTile, dtype: torch.dtype
) -> None:
    packed = pack(masked_weight(SAME, 0.05, dtype), layout, geometry=geometry_of(SAME), **settings)
    x, epilogue = inputs(SAME, dtype, 7)
    assert_near(launched(x, packed, epilogue, tile), oracle(x, packed, **epilogue))


@pytest.mark.parametrize("layout", ["direct"])
def test_aligned_batches_use_whole_runs(layout: str) -> None:
    case = cases.ConvCase("batch of 32", 32, 5, 3, 4, 6, stride=(2, 1))
    packed = pack(masked_weight(case, 0.3), layout, geometry=geometry_of(case))
    x, epilogue = inputs(case, torch.float32, 7)
    assert_near(launched(x, packed, epilogue), oracle(x, packed, **epilogue))


@pytest.mark.parametrize("batch", [1, 2, 6, 16])
def test_bfloat16_is_loaded_in_pairs(batch: int) -> None:
    """The interpreter has no arithmetic of bfloat16; the kernel's is integer and float32. It truncates at the end."""
    case = cases.ConvCase("bfloat16", batch, 5, 3, 4, 6, stride=(1, 2))
    packed = pack(masked_weight(case, 0.3, torch.bfloat16), "direct", geometry=geometry_of(case))
    x, epilogue = inputs(case, torch.bfloat16, 4)
    assert_near(launched(x, packed, epilogue), oracle(x, packed, **epilogue))
    assert_near(launched(x, packed, epilogue, ConvTile(512, 4)), oracle(x, packed, **epilogue))


def test_the_second_of_a_pair_is_alone_in_its_word() -> None:
    """Where two channels agree their difference is nothing, whatever the first of the pair is."""
    weight = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).bfloat16()
    packed = pack(weight, "direct", geometry=Geometry(2, 1, (1, 1)))
    x = torch.rand(8, 2, 3, 3).bfloat16()
    x[1::2, 1] = x[1::2, 0]
    y = launched(x, packed, {"bias": None, "residual": None, "relu": False})
    assert (y[1::2] == 0).all()
    assert (y[0::2] != 0).any()


def test_pairs_are_read_at_multiples_of_four_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view may begin at an odd number, which is no address of a word."""
    read: list[Tensor] = []

    class Kernel:
        arg_names = sparse_conv.direct_convolution_kernel.arg_names

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda x, *rest, **constants: read.append(x)

    monkeypatch.setitem(sparse_conv._KERNELS, "direct", Kernel())
    packed = pack(torch.ones(1, 1, 1, 1).bfloat16(), "direct", geometry=Geometry(1, 1, (1, 1)))
    numbers = torch.arange(17.0).bfloat16()
    for begin in (0, 1):
        launch(numbers[begin : begin + 16].view(1, 1, 1, 16).permute(3, 0, 1, 2), packed)
    assert read[0].data_ptr() == numbers.data_ptr()
    assert read[1].data_ptr() % 4 == 0
    assert torch.equal(read[1].flatten(), numbers[1:])
    assert read[1].stride() == read[0].stride()


@pytest.mark.parametrize("layout_settings", KERNELS, ids=str)
def test_wide_addresses_give_the_same(
    layout_settings: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_conv, "LARGEST_INT32", 1)
    layout, settings = layout_settings
    packed = pack(masked_weight(SAME, 0.02), layout, geometry=geometry_of(SAME), **settings)
    x, epilogue = inputs(SAME, torch.float32, 7)
    assert_near(launched(x, packed, epilogue), oracle(x, packed, **epilogue))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("layout", ["block", "direct"])
def test_nan_of_the_input_is_not_hidden(layout: str, backend: str) -> None:
    case = cases.ODD_CONVS[0]
    packed = pack(masked_weight(case, 1.0), layout, geometry=geometry_of(case))
    x = torch.zeros(case.x_shape)
    x[1, :, 2, 3] = float("nan")
    y = sparse_conv2d(x, packed, relu=True, backend=backend)
    assert y[1, :, 2, 3].isnan().all()
    assert y.isnan().sum() == case.out_channels


def test_what_stands_beside_a_channels_weights_does_not_reach_it() -> None:
    """Channels side by side are read as far as the longest of them: infinities there must not become NaN."""
    weight = torch.zeros(8, 4, 1, 1)
    weight[0] = 1
    weight[1, 0] = 1
    packed = pack(weight, "direct", geometry=Geometry(4, 8, (1, 1)))
    x = torch.zeros(2, 4, 3, 3)
    x[:, 1:] = float("inf")
    y = launched(x, packed, {"bias": None, "residual": None, "relu": False})
    assert y[:, 0].isinf().all()
    assert (y[:, 1:] == 0).all()


def test_semi_structured_on_a_cpu_is_the_dense_convolution() -> None:
    """A file of them loads anywhere."""
    geometry = Geometry(64, 48, (1, 1), stride=(2, 1))
    weight = two_of_four(48, 64).half()
    packed = PackedWeight("semi_structured", geometry, SEMI_STRUCTURED.pack(weight, geometry, {}))
    case = cases.ConvCase("2:4", 2, 64, 5, 4, 48, (1, 1), (2, 1), (0, 0))
    x, epilogue = inputs(case, torch.float16, 7)
    y = sparse_conv2d(x, packed, **epilogue)
    assert is_arranged(y, "channels_last")
    assert_near(y, oracle(x, packed, **epilogue))


# --- the operator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("layout_settings", [("dense", {}), *KERNELS], ids=str)
def test_operator_is_registered_cleanly(layout_settings: tuple[str, dict[str, int]], backend: str) -> None:
    layout, settings = layout_settings
    packed = pack(masked_weight(SAME, 0.02), layout, geometry=geometry_of(SAME), **settings)
    x, epilogue = inputs(SAME, torch.float32, 7)
    torch.library.opcheck(
        torch.ops.prunebench.sparse_conv2d.default,
        (
            x,
            list(packed.tensors.values()),
            epilogue["bias"],
            epilogue["residual"],
            list(packed.geometry.numbers),
            layout,
            list(packed.settings.values()),
            epilogue["relu"],
            backend,
        ),
    )


@pytest.mark.parametrize("layout", ANYWHERE)
def test_operator_compiles_into_one_graph(layout: str) -> None:
    packed = pack(masked_weight(SAME, 0.3), layout, geometry=geometry_of(SAME))
    x, epilogue = inputs(SAME, torch.float32, 7)

    def network(x: Tensor) -> Tensor:
        return sparse_conv2d(x, packed, epilogue["bias"], residual=epilogue["residual"], relu=True) * 2

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), network(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("layout", ANYWHERE)
def test_modules_are_exported(layout: str, strict: bool) -> None:
    conv = nn.Conv2d(17, 19, 3, padding=1)
    module = SparseConv2d.from_dense(conv, masked_weight(SAME, 0.3) != 0, layout, relu=True).eval()
    x, _ = inputs(SAME, torch.float32, 0)
    with torch.no_grad():
        want = module(x)
        exported = torch.export.export(nn.Sequential(module, nn.ReLU()), (x,), strict=strict)
        assert torch.equal(exported.module()(x), want)


def test_explain_says_what_runs_and_why() -> None:
    x = torch.randn(SAME.x_shape)

    def reason(layout: str, backend: str | None, dtype: torch.dtype = torch.float32) -> str:
        packed = pack(masked_weight(SAME, 0.3, dtype), layout, geometry=geometry_of(SAME))
        choice = explain(sparse_conv2d, x.to(dtype), packed, backend=backend)
        return f"{choice.backend}: {choice.reason}"

    assert reason("direct", None) == "torch: the tensors are on cpu; Triton kernels need a GPU"
    assert reason("direct", "triton").startswith("triton: ")
    assert reason("dense", "triton") == "torch: layout dense is the library's convolution"
    assert "not torch.float64" in reason("block", "triton", torch.float64)
    assert "bfloat16 wrongly" in reason("direct", "triton", torch.bfloat16)


def test_wrong_arguments_are_named() -> None:
    geometry = Geometry(4, 6, padding=(1, 1))
    packed = pack(torch.ones(geometry.weight_shape), "direct", geometry=geometry)
    x = torch.zeros(2, 4, 5, 5)
    with pytest.raises(ArgumentError, match="packed: want a PackedWeight"):
        sparse_conv2d(x, torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="x: want a torch tensor, got list"):
        sparse_conv2d([1.0], packed)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"x: want \[N, 4, H, W\], got \(2, 3, 5, 5\)"):
        sparse_conv2d(x[:, :3], packed)
    with pytest.raises(ArgumentError, match="x: is empty"):
        sparse_conv2d(x[:0], packed)
    with pytest.raises(ArgumentError, match=r"x: is torch.float64, the packed weight torch.float32"):
        sparse_conv2d(x.double(), packed)
    with pytest.raises(ArgumentError, match="x: is on cpu, packed on meta"):
        sparse_conv2d(x, packed.to("meta"))
    with pytest.raises(ArgumentError, match="backend: want one of"):
        sparse_conv2d(x, packed, backend="cuda")
    for _ in range(2):  # also after a call of the same kind was remembered
        with pytest.raises(ArgumentError, match=r"bias: want shape \(6,\), got \(5,\)"):
            sparse_conv2d(x, packed, torch.zeros(5))
        with pytest.raises(ArgumentError, match=r"bias: is torch.float16"):
            sparse_conv2d(x, packed, torch.zeros(6).half())
        with pytest.raises(ArgumentError, match=r"residual: want shape \(2, 6, 5, 5\)"):
            sparse_conv2d(x, packed, residual=torch.zeros(2, 6, 5, 4))
        with pytest.raises(ArgumentError, match="x: requires a gradient, and sparse_conv2d has none"):
            sparse_conv2d(x.clone().requires_grad_(), packed)
        with torch.no_grad():
            assert sparse_conv2d(x.clone().requires_grad_(), packed, torch.zeros(6)).shape == (2, 6, 5, 5)
        assert sparse_conv2d(x, packed, torch.zeros(6)).shape == (2, 6, 5, 5)
        assert sparse_conv2d(x, packed, torch.zeros(6), residual=torch.zeros(2, 6, 5, 5)).shape == (
            2,
            6,
            5,
            5,
        )


@pytest.mark.parametrize("layout", ["block", "direct"])
def test_kernels_are_launched_on_the_device_of_x(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current GPU, which need not be the one that holds x."""
    seen: list[Tensor] = []

    @contextlib.contextmanager
    def on_device(tensor: Tensor) -> Iterator[None]:
        seen.append(tensor)
        yield

    monkeypatch.setattr(dispatch, "on_device", on_device)
    packed = pack(masked_weight(SAME, 0.02), layout, geometry=geometry_of(SAME))
    x, _ = inputs(SAME, torch.float32, 7)
    sparse_conv2d(x, packed, backend="triton")
    assert [tensor.shape for tensor in seen] == [x.shape]


def test_precision_follows_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also once `fp32_precision` was written, when torch's own getter of the other name raises."""
    for asked, want in (("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=asked))
        assert sparse_conv.ieee_or_tf32() == want


# --- what is remembered ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["direct", "block"])
def test_a_call_is_resolved_once_for_each_shape(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    first = sparse_conv.KernelCall.__init__

    def count(self: Any, packed: PackedWeight, x: Tensor, *rest: Any) -> None:
        made.append(tuple(x.shape))
        first(self, packed, x, *rest)

    monkeypatch.setattr(sparse_conv.KernelCall, "__init__", count)
    packed = pack(masked_weight(SAME, 0.05), layout, geometry=geometry_of(SAME))
    x, bias = arrange(torch.randn(SAME.x_shape), format_of(layout)), torch.randn(19)
    for _ in range(3):
        for images in (x, x[:1], x.contiguous()):
            y = sparse_conv2d(images, packed, bias, backend="triton")
            assert_near(y, oracle(images, packed, bias))
    assert len(made) == 3
    assert_near(sparse_conv2d(x, packed, bias + 1, backend="triton"), oracle(x, packed, bias + 1))
    assert len(packed.resolved) == 3


def test_another_precision_is_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(masked_weight(SAME, 0.05), "block", geometry=geometry_of(SAME))
    for want, precision in enumerate(("ieee", "tf32", "ieee"), 1):
        monkeypatch.setattr(sparse_conv, "ieee_or_tf32", lambda precision=precision: precision)
        sparse_conv2d(torch.randn(SAME.x_shape), packed, backend="triton")
        assert len(packed.resolved) == min(want, 2)


def test_what_is_remembered_has_a_limit() -> None:
    packed = pack(masked_weight(SAME, 0.05), "direct", geometry=geometry_of(SAME))
    for width in range(1, sparse_conv.MOST_RESOLVED + 20):
        sparse_conv2d(torch.zeros(1, 17, 1, width), packed)
    assert 0 < len(packed.resolved) <= sparse_conv.MOST_RESOLVED


@pytest.mark.parametrize("layout", ["direct", "block"])
def test_weights_that_were_written_are_used(layout: str) -> None:
    conv = nn.Conv2d(17, 19, 3, padding=1)
    module = SparseConv2d.from_dense(conv, masked_weight(SAME, 0.05) != 0, layout, backend="triton")
    x = torch.randn(SAME.x_shape)
    with torch.no_grad():
        module(x)
        module.load_state_dict(
            {name: tensor * 2 for name, tensor in module.state_dict().items() if tensor.is_floating_point()},
            strict=False,
        )
        assert_near(module(x), oracle(x, module.packed, module.bias))
        module.bias = torch.ones(19)
        assert_near(module(x), oracle(x, module.packed, module.bias))
        module.take(pack(masked_weight(SAME, 0.1), "direct", geometry=geometry_of(SAME)))
        assert_near(module(x), oracle(x, module.packed, module.bias))
        module.half()
        assert_near(module(x.half()), oracle(x.half(), module.packed, module.bias))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["direct", "block"])
def test_modules_that_ran_are_copied_and_pickled(layout: str) -> None:
    module = SparseConv2d.from_dense(nn.Conv2d(17, 19, 3), None, layout, backend="triton")
    x = torch.randn(SAME.x_shape)
    with torch.no_grad():
        want = module(x)
        for copied in copy.deepcopy(module), pickle.loads(pickle.dumps(module)):
            assert not copied.packed.resolved
            assert torch.equal(copied(x), want)
            copied.packed_values.mul_(2)
            assert_near(copied(x), oracle(x, copied.packed, copied.bias))
        assert torch.equal(module(x), want)


def test_a_packed_weight_is_freed_without_the_garbage_collector() -> None:
    packed = pack(masked_weight(SAME, 0.05), "direct", geometry=geometry_of(SAME))
    sparse_conv2d(torch.randn(SAME.x_shape), packed, backend="triton")
    alive = weakref.ref(packed.values)
    gc.collect()
    gc.disable()
    try:
        del packed
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_the_second_call_goes_past_the_jit() -> None:
    """In a process without the interpreter, under the stand-in: also for pointers that are no multiples of 16 bytes."""
    script = """
import torch
from prunebench_kernels.layouts import Geometry, arrange, pack
from prunebench_kernels.sparse_conv import sparse_conv2d, block_convolution_kernel
from standin import stand_in
weight = torch.ones(64, 64, 1, 1).bfloat16()
packed = pack(weight, "block", geometry=Geometry(64, 64, (1, 1)))
x = torch.zeros(8 * 64 * 4 + 8).bfloat16()
aligned, shifted = (x[i : i + 2048].view(8, 4, 64).permute(0, 2, 1)[..., None] for i in (0, 1))
binds = []
block_convolution_kernel.pre_run_hooks.append(lambda *args, **kwargs: binds.append(1))
with stand_in(90) as seen:
    for images in (aligned, aligned, aligned, shifted, shifted, aligned):
        sparse_conv2d(images, packed, backend="triton")
print(len(seen.launches), len(binds), len(seen.kernels))
"""
    assert _in_process(script).split() == ["6", "3", "2"]


# --- the module -----------------------------------------------------------------------------------------------


def measuring(**speeds: float) -> Measuring:
    """A timer by which a call takes the milliseconds given for its name's first word; dense 1, others 2."""

    def timer(calls: Any, repeats: int) -> Samples:
        for call in calls.values():
            call()
        return {
            name: [speeds.get(name.split()[0], 1.0 if name == "dense" else 2.0)] * repeats for name in calls
        }

    return Measuring(QUICK, Choices.in_memory(), timer)


def module_of(density: float, **speeds: float) -> SparseConv2d:
    conv = nn.Conv2d(64, 64, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(0)) < density)
    return SparseConv2d.from_dense(conv, relu=True, measuring=measuring(**speeds))


def test_the_fastest_candidate_is_taken_and_the_choice_stays() -> None:
    x = torch.randn(2, 64, 5, 5)
    for speeds, want in ({"direct": 0.5}, "direct"), ({}, "dense"):
        module = module_of(0.01, **speeds)
        assert not module.is_prepared
        assert module.decision == Decision("dense", "not measured yet")
        with torch.no_grad():
            y = module(x)
            assert module.layout == want
            assert module.is_prepared
            assert_near(y, oracle(x, module.packed, module.bias, relu=True))
            assert set(module.decision.timings) >= {"dense", "direct"}
            decision = module.decision
            module(torch.randn(3, 64, 7, 7))
        assert module.decision is decision


def test_candidates_of_one_format_are_timed_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a network of that format dense pays for the copy into it."""
    gave: dict[str, bool] = {}

    def timer(calls: Any, repeats: int) -> Samples:
        gave.update({name: is_arranged(call(), "batch_innermost") for name, call in calls.items()})
        return {name: [1.0] * repeats for name in calls}

    module = module_of(0.01)
    module.measuring = Measuring(QUICK, Choices.in_memory(), timer)
    module.formats = frozenset({"batch_innermost"})
    with torch.no_grad():
        module.prepare(torch.randn(2, 64, 5, 5))
    assert gave["dense"]
    assert gave["direct"]
    key, module.formats = module.key, None
    with torch.no_grad():
        module.prepare(torch.randn(2, 64, 5, 5))
    assert module.key != key


def test_layouts_that_cannot_be_packed_are_named() -> None:
    conv = nn.Conv2d(64, 48, 1)
    with torch.no_grad():
        conv.weight.copy_(two_of_four(48, 64))
        module = SparseConv2d.from_dense(conv, measuring=measuring())
        module(torch.randn(2, 64, 3, 3))
    assert module.decision.refused["semi_structured"].endswith("takes weights on a GPU, got cpu")


def test_a_candidate_is_captured_once_for_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture waits for the GPU and empties its allocator."""
    captured: list[Callable[[], object]] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            pass

        record = synchronize = lambda self: None

        def elapsed_time(self, end: Event) -> float:
            return 1.0

    def capture(call: Callable[[], object], repeats: int) -> Any:
        captured.append(call)
        return SimpleNamespace(replay=call)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(measured, "_runs_on_gpu", lambda call: True)
    monkeypatch.setattr(measured, "capture", capture)
    calls = {"dense": lambda: 0, "other": lambda: 1}
    decision = measured.choose(calls, effort=QUICK)
    assert decision.winner == "dense"
    assert captured == list(calls.values())


# --- tiles and machine code -----------------------------------------------------------------------------------


def test_tiles_are_powers_of_two_and_the_rules_comes_first() -> None:
    for case in cases.RESNET18_32[128]:
        for dtype in (torch.float32, torch.bfloat16):
            for layout, settings in KERNELS:
                weight = masked_weight(case, 0.01, dtype)
                packed = pack(weight, layout, geometry=geometry_of(case), **settings)
                every = tiles.of_sparse_conv(packed, case.x_shape)
                assert every[0] == tile_of(packed, case.x_shape, torch.device("cpu"))
                assert 4 <= len(every) == len(set(every)) <= 8
                for tile in every:
                    assert tile.pixels & (tile.pixels - 1) == 0
                    assert layout != "direct" or tile.pixels % sparse_conv.run_length(128, dtype) == 0


def test_the_number_of_multiprocessors_decides() -> None:
    """On a smaller GPU fewer programs fill it, so that tiles are larger or fewer programs share one."""
    case = cases.RESNET18_32[128][-1]
    packed = pack(masked_weight(case, 0.01, torch.bfloat16), "direct", geometry=geometry_of(case))
    here = tile_of(packed, case.x_shape, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_conv, "limits", lambda device: (16, 0))
        smaller = tile_of(packed, case.x_shape, torch.device("cpu"))
    assert smaller.pixels > here.pixels


LAYERS = {
    "3x3 of layer1": (Geometry(64, 64, padding=(1, 1)), (128, 64, 32, 32)),
    "3x3 of layer4": (Geometry(512, 512, padding=(1, 1)), (128, 512, 4, 4)),
    "3x3 stride 2": (Geometry(64, 128, stride=(2, 2), padding=(1, 1)), (128, 64, 32, 32)),
    "1x1": (Geometry(256, 64, (1, 1)), (128, 256, 8, 8)),
}
BLOCKS = {"64x64": (64, 64), "128x64": (128, 64), "32x32": (32, 32), "16x16": (16, 16)}
SHORT = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _call(
    layout: str, geometry: Geometry, shape: tuple[int, ...], dtype: torch.dtype, settings: dict[str, int]
) -> Callable[[], Tensor]:
    def call() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(geometry.weight_shape, generator=generator)
        weight *= torch.rand(geometry.weight_shape, generator=generator) < 0.01
        packed = pack(weight.to(dtype), layout, geometry=geometry, **settings)
        x = empty(shape, format_of(layout), torch.empty(0, dtype=dtype))
        residual = empty(geometry.output_shape(shape), format_of(layout), x)
        bias = torch.zeros(geometry.out_channels, dtype=dtype)
        return launch(x, packed, bias, residual, True)

    return call


def calls() -> dict[str, Callable[[], Tensor]]:
    """The kernels by name, with bias, residual and ReLU, as the rule's tiles launch them."""
    found = {}
    for short, dtype in SHORT.items():
        for name, (geometry, shape) in LAYERS.items():
            for layout in ("direct",):
                if short == "bf16" or name == "3x3 of layer1":
                    found[f"{layout} {name} {short}"] = _call(layout, geometry, shape, dtype, {})
        for name, (block_out, block_in) in BLOCKS.items():
            settings = {"block_out": block_out, "block_in": block_in}
            geometry, shape = LAYERS["3x3 of layer4" if block_out == 128 else "3x3 of layer1"]
            if short == "bf16" or name in ("64x64", "16x16"):
                found[f"block {name} {short}"] = _call("block", geometry, shape, dtype, settings)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_do_not_spill_and_load_whole_words(capability: int) -> None:
    found = figures("test_kernel_sparse_conv", capability)
    assert set(found) == set(calls())
    broken = [line for name, rows in found.items() for line in check(name, rows, capability)]
    assert not broken
    for name, (row,) in found.items():
        assert row.vector_loads, name
        if not name.startswith("direct") and not name.endswith("fp32"):
            # sm_100 has tensor memory instead, whose instructions these figures do not count.
            assert row.hgmma or row.hmma or capability == 100, name


@pytest.mark.slow
def test_blocks_keep_their_inputs_in_flight() -> None:
    """Of 64 x 64 blocks at three stages three inputs of 16 KiB and three weights of 8; WGMMA does not wait."""
    (row,) = figures("test_kernel_sparse_conv", 90)["block 64x64 bf16"]
    assert row.hgmma
    assert row.wgmma_depth >= 1
    assert row.shared_bytes == 3 * (128 * 64 + 64 * 64) * 2
    (row,) = figures("test_kernel_sparse_conv", 80)["block 64x64 bf16"]
    assert row.shared_bytes >= 2 * (128 * 64 + 64 * 64) * 2


@pytest.mark.slow
def test_a_multiply_add_costs_few_instructions() -> None:
    """Of `direct` on sm_90: in the loop over a channel's weights, 32 and 8 pixels a thread."""
    script = "import test_kernel_sparse_conv as tests; tests.print_loops()"
    found = json.loads(_in_process(script).splitlines()[-1])
    assert found["direct 3x3 of layer1 bf16"] <= 3.2
    assert found["direct 3x3 of layer4 bf16"] <= 4.4
    assert found["direct 3x3 of layer1 fp16"] <= 3.2
    assert found["direct 3x3 of layer1 fp32"] <= 2.8


def print_loops() -> None:
    """JSON: instructions a multiply-add of the innermost loop that has any, of each `direct` kernel on sm_90."""
    from standin import code_of, disassemble, stand_in

    named = {name: call for name, call in calls().items() if name.startswith("direct")}
    with stand_in(90) as seen:
        for call in named.values():
            call()
    listings = disassemble([code_of(kernel.cubin) for kernel in seen.kernels], 90)
    print(json.dumps({name: _of_loop(listing) for name, listing in zip(named, listings, strict=True)}))


def _of_loop(listing: str) -> float:
    lines = re.findall(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?\w+ )?\s*([A-Z]\w*)\S*(.*)", listing, re.MULTILINE)
    rows = [(int(address, 16), opcode, rest) for address, opcode, rest in lines]
    loops = []
    for address, opcode, rest in rows:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if opcode == "BRA" and target and int(target[1], 16) < address:
            body = [row for row in rows if int(target[1], 16) <= row[0] <= address]
            adds = sum(opcode == "FFMA" for _, opcode, _ in body)
            if adds:
                loops.append((len(body), adds))
    instructions, adds = min(loops, key=lambda loop: -loop[1])
    return instructions / adds


def _in_process(script: str) -> str:
    """What a script prints in a process without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# --- tensors that change under a module ----------------------------------------------------------------------


def packed_module(layout: str, bias: Tensor | None = None) -> tuple[SparseConv2d, Tensor]:
    """A packed 3x3 convolution of 16 channels by its kernel, and its input."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, 3, 3, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < 0.2
    packed = pack(weight, layout, geometry=Geometry(16, 16, padding=(1, 1)))
    return SparseConv2d(packed, bias, backend="triton"), torch.randn(8, 16, 4, 4, generator=generator)


def expected_of(module: SparseConv2d, x: Tensor) -> Tensor:
    return functional.conv2d(x, module.packed.unpack().float(), module.bias, padding=1)


@pytest.mark.parametrize("layout", ["block", "direct"])
@pytest.mark.parametrize(
    "bias", [torch.randn(32)[::2], torch.randn(1).expand(16)], ids=["strided", "expanded"]
)
def test_a_bias_of_any_strides(layout: str, bias: Tensor) -> None:
    module, x = packed_module(layout, bias)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(module(x), expected_of(module, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["block", "direct"])
def test_buffers_that_are_replaced_are_used(layout: str) -> None:
    module, x = packed_module(layout)
    with torch.no_grad():
        before = module(x)
        doubled = {name: 2 * v if v.is_floating_point() else v for name, v in module.state_dict().items()}
        replaced = torch.func.functional_call(module, {"packed_values": 3 * module.packed_values}, (x,))
        torch.testing.assert_close(replaced, 3 * before, rtol=1e-4, atol=1e-4)
        module.load_state_dict(doubled, assign=True)
        torch.testing.assert_close(module(x), 2 * before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["block", "direct"])
def test_a_round_trip_through_half_precision_is_seen(layout: str) -> None:
    module, x = packed_module(layout)
    with torch.no_grad():
        module(x)
        module.half().float()
        torch.testing.assert_close(module(x), expected_of(module, x), rtol=1e-5, atol=1e-5)
