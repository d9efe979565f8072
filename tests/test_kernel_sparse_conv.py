"""Sparse convolution: torch paths and kernels against the float64 oracle, and the operator around them."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import torch
from kernel_tolerances import TOLERANCE
from prunebench_kernels import explain
from prunebench_kernels.errors import ArgumentError
from prunebench_kernels.reference.sparse import sparse_conv2d as oracle
from prunebench_kernels.sparse import conv as conv_module
from prunebench_kernels.sparse import formats, launching
from prunebench_kernels.sparse.configurations import (
    Configuration,
    as_entry,
    configuration,
    key,
    tuning_candidates,
)
from prunebench_kernels.sparse.conv import sparse_conv2d
from prunebench_kernels.sparse.layouts import LAYOUTS, Geometry, PackedWeight, pack
from test_sparse_layouts import masked_weight, takes
from torch import Tensor

KERNELS: tuple[tuple[str, dict[str, int]], ...] = (
    ("block", {"block_out": 16, "block_in": 16}),
    ("direct", {}),
    ("direct", {"batch_innermost": 1}),
    ("compact", {"block_rows": 16}),
    ("compact", {"batch_innermost": 1}),
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


def launch(x: Tensor, packed: PackedWeight, epilogue: dict[str, Any], **forced: Any) -> Tensor:
    """Run the kernel (interpreted) into poisoned memory."""
    order = formats.format_of(packed.layout, packed.settings)
    residual = epilogue["residual"]
    kernel = importlib.import_module(f"prunebench_kernels.sparse.{packed.layout}_triton")
    out = launching.output_like(x, packed).fill_(float("nan"))
    return kernel.launch(
        formats.arrange(x, order),
        packed,
        epilogue["bias"],
        None if residual is None else formats.arrange(residual, order),
        epilogue["relu"],
        out=out,
        **forced,
    )


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", ["block", "direct", "compact"])
@pytest.mark.parametrize(
    ("kernel", "padding"), [((1, 1), (1, 2)), ((3, 2), (3, 3)), ((2, 2), (4, 0))], ids=str
)
def test_padding_beyond_the_kernels_reach(
    layout: str, kernel: tuple[int, int], padding: tuple[int, int]
) -> None:
    """The output is larger than the image with the zeros that rows share."""
    for stride in ((1, 1), (2, 1)):
        case = cases.ConvCase("overpadded", 3, 5, 4, 7, 6, kernel, stride, padding)
        packed = pack(masked_weight(case, 0.4), layout, geometry=case.geometry)
        x, epilogue = inputs(case, torch.float32, 7)
        want = oracle(x, packed, **epilogue)
        assert_near(sparse_conv2d(x, packed, **epilogue, backend="torch"), want)
        assert_near(launch(x, packed, epilogue), want)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", cases.ODD_CONVS, ids=lambda case: case.name)
def test_torch_path_equals_the_oracle(case: cases.ConvCase, layout: str, dtype: torch.dtype) -> None:
    if not takes(layout, case):
        pytest.skip("the layout takes one group; test_sparse_layouts checks the refusal")
    every = [settings for name, settings in KERNELS if name == layout] or [{}]
    for position, density in enumerate(DENSITIES):
        for turn in range(4):
            settings = every[turn % len(every)]
            packed = pack(masked_weight(case, density, dtype), layout, geometry=case.geometry, **settings)
            x, epilogue = inputs(case, dtype, 4 * position + turn)
            y = sparse_conv2d(x, packed, **epilogue, backend="torch")
            assert y.dtype == dtype
            assert formats.is_arranged(y, formats.format_of(layout, packed.settings))
            assert_near(y, oracle(x, packed, **epilogue))


@pytest.mark.parametrize("layout_settings", KERNELS, ids=str)
@pytest.mark.parametrize("case", cases.ODD_CONVS, ids=lambda case: case.name)
def test_kernel_equals_the_oracle(case: cases.ConvCase, layout_settings: tuple[str, dict[str, int]]) -> None:
    layout, settings = layout_settings
    if not takes(layout, case):
        pytest.skip("the layout takes one group; test_sparse_layouts checks the refusal")
    for position, density in enumerate(DENSITIES):
        dtype = (torch.float32, torch.float16)[(position + len(case.name)) % 2]
        packed = pack(masked_weight(case, density, dtype), layout, geometry=case.geometry, **settings)
        x, epilogue = inputs(case, dtype, position + 3 * len(case.name) + len(settings))
        # The interpreter's time goes by steps: full weights walk all channels at once.
        chosen = Configuration(256, 4, channels=32) if layout == "direct" and density > 0.1 else None
        assert_near(launch(x, packed, epilogue, chosen=chosen), oracle(x, packed, **epilogue))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("layout", "settings", "chosen"),
    [
        ("block", {"block_out": 16, "block_in": 16}, Configuration(16, 4, 2)),
        ("block", {"block_out": 32, "block_in": 16}, Configuration(32, 4, 3)),
        ("block", {}, Configuration(128, 4, 4)),
        ("block", {"block_out": 128, "block_in": 64}, Configuration(64, 8, 4)),
        ("direct", {}, Configuration(32, 4, splits=2, channels=4, unroll=1)),
        ("direct", {}, Configuration(64, 4, splits=3, channels=8, unroll=4)),
        ("compact", {}, Configuration(16, 4, 2, splits=2)),
        ("compact", {"block_out": 32, "block_rows": 64, "sorted": 0}, Configuration(64, 4, 3)),
    ],
    ids=str,
)
def test_every_configuration_gives_the_same(
    layout: str, settings: dict[str, int], chosen: Configuration, dtype: torch.dtype
) -> None:
    packed = pack(masked_weight(SAME, 0.05, dtype), layout, geometry=SAME.geometry, **settings)
    x, epilogue = inputs(SAME, dtype, 7)
    assert_near(launch(x, packed, epilogue, chosen=chosen), oracle(x, packed, **epilogue))


@pytest.mark.parametrize("layout", ["direct", "compact"])
def test_aligned_batches_use_whole_runs(layout: str) -> None:
    case = cases.ConvCase("batch of 32", 32, 5, 3, 4, 6, stride=(2, 1))
    packed = pack(masked_weight(case, 0.3), layout, geometry=case.geometry, batch_innermost=1)
    x, epilogue = inputs(case, torch.float32, 7)
    assert_near(launch(x, packed, epilogue), oracle(x, packed, **epilogue))


@pytest.mark.parametrize("layout_settings", KERNELS, ids=str)
def test_wide_addresses_give_the_same(
    layout_settings: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "LARGEST_INT32", 1)
    layout, settings = layout_settings
    packed = pack(masked_weight(SAME, 0.02), layout, geometry=SAME.geometry, **settings)
    x, epilogue = inputs(SAME, torch.float32, 7)
    assert_near(launch(x, packed, epilogue), oracle(x, packed, **epilogue))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("layout", ["block", "direct", "compact"])
def test_nan_of_the_input_is_not_hidden(layout: str, backend: str) -> None:
    case = cases.ODD_CONVS[0]
    packed = pack(masked_weight(case, 1.0), layout, geometry=case.geometry)
    x = torch.zeros(case.x_shape)
    x[1, :, 2, 3] = float("nan")
    y = sparse_conv2d(x, packed, relu=True, backend=backend)
    assert y[1, :, 2, 3].isnan().all()
    assert y.isnan().sum() == case.out_channels


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("layout_settings", [("dense", {}), *KERNELS], ids=str)
def test_operator_is_registered_cleanly(layout_settings: tuple[str, dict[str, int]], backend: str) -> None:
    layout, settings = layout_settings
    packed = pack(masked_weight(SAME, 0.02), layout, geometry=SAME.geometry, **settings)
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operator_compiles_into_one_graph(layout: str) -> None:
    packed = pack(masked_weight(SAME, 0.3), layout, geometry=SAME.geometry)
    x, epilogue = inputs(SAME, torch.float32, 7)

    def network(x: Tensor) -> Tensor:
        return sparse_conv2d(x, packed, epilogue["bias"], residual=epilogue["residual"], relu=True) * 2

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), network(x))


def test_explain_says_what_runs_and_why() -> None:
    x = torch.randn(SAME.x_shape)

    def reason(layout: str, backend: str | None, dtype: torch.dtype = torch.float32) -> str:
        packed = pack(masked_weight(SAME, 0.3, dtype), layout, geometry=SAME.geometry)
        choice = explain(sparse_conv2d, x.to(dtype), packed, backend=backend)
        return f"{choice.backend}: {choice.reason}"

    assert reason("direct", None) == "torch: the tensors are on cpu; Triton kernels need a GPU"
    assert reason("direct", "triton").startswith("triton: ")
    assert reason("dense", "triton") == "torch: layout dense is the library's convolution"
    assert "not torch.float64" in reason("block", "triton", torch.float64)
    assert "bfloat16 wrongly" in reason("compact", "triton", torch.bfloat16)


def test_wrong_arguments_are_named() -> None:
    geometry = Geometry(4, 6, padding=(1, 1))
    packed = pack(torch.ones(geometry.weight_shape), "direct", geometry=geometry)
    x = torch.zeros(2, 4, 5, 5)
    with pytest.raises(ArgumentError, match="packed: want a PackedWeight"):
        sparse_conv2d(x, torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"x: want \[N, 4, H, W\], got \(2, 3, 5, 5\)"):
        sparse_conv2d(x[:, :3], packed)
    with pytest.raises(ArgumentError, match="x: is empty"):
        sparse_conv2d(x[:0], packed)
    with pytest.raises(ArgumentError, match=r"x: is torch.float64, the packed weight torch.float32"):
        sparse_conv2d(x.double(), packed)
    with pytest.raises(ArgumentError, match="x: is on cpu, packed on meta"):
        sparse_conv2d(x, packed.to("meta"))
    with pytest.raises(ArgumentError, match=r"bias: want shape \(6,\), got \(5,\)"):
        sparse_conv2d(x, packed, torch.zeros(5))
    with pytest.raises(ArgumentError, match=r"residual: want shape \(2, 6, 5, 5\)"):
        sparse_conv2d(x, packed, residual=torch.zeros(2, 6, 5, 4))
    with pytest.raises(ArgumentError, match=r"bias: is torch.float16"):
        sparse_conv2d(x, packed, torch.zeros(6).half())
    with pytest.raises(ArgumentError, match="backend: want one of"):
        sparse_conv2d(x, packed, backend="cuda")
    with pytest.raises(ArgumentError, match="x: requires a gradient, and sparse_conv2d has none"):
        sparse_conv2d(x.requires_grad_(), packed)
    with torch.no_grad():
        assert sparse_conv2d(x, packed).shape == (2, 6, 5, 5)


@pytest.mark.parametrize("layout", ["block", "direct", "compact"])
def test_kernels_are_launched_on_the_device_of_x(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current GPU, which need not be the one that holds x."""
    seen: list[Tensor] = []

    @contextlib.contextmanager
    def on_device(tensor: Tensor) -> Iterator[None]:
        seen.append(tensor)
        yield

    monkeypatch.setattr(conv_module, "on_device", on_device)
    packed = pack(masked_weight(SAME, 0.02), layout, geometry=SAME.geometry)
    x, _ = inputs(SAME, torch.float32, 7)
    sparse_conv2d(x, packed, backend="triton")
    assert [tensor.shape for tensor in seen] == [x.shape]


def test_precision_follows_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also once `fp32_precision` was written, when torch's own getter of the other name raises."""
    for asked, want in (("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=asked))
        assert launching.ieee_or_tf32() == want


def test_configurations_fit_and_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"batch_innermost": 1}
    for case in cases.RESNET18_32[128]:
        call = (case.geometry, case.x_shape, torch.bfloat16)
        for layout, chosen in (
            ("block", {"block_out": 64, "block_in": 64}),
            ("direct", settings),
            ("compact", {"block_out": 16, **settings}),
        ):
            every = tuning_candidates(layout, *call, chosen)
            assert every[0] == configuration(layout, *call, chosen)
            assert len(every) == len(set(every)) > 3
            for candidate in every:
                pixels = candidate.pixels
                assert pixels & (pixels - 1) == 0
                assert layout != "direct" or pixels % 256 == 0
    measured = Configuration(64, 2, 5)
    asked: list[str] = []

    def lookup(operation: str, name: str) -> dict[str, int]:
        asked.append(f"{operation} {name}")
        return as_entry(measured)

    monkeypatch.setattr("prunebench_kernels.tuned.lookup", lookup)
    assert configuration("direct", *call, settings) == measured
    assert asked == ["sparse_conv2d " + key("direct", *call, settings)]
    assert asked[0].startswith("sparse_conv2d direct bfloat16 128x512x4x4 512x512x3x3x1x1x1x1x1x1x1 batch")
