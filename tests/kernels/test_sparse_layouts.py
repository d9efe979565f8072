"""Packed weights: exact inverse, what each layout takes, and what the candidates are."""

from __future__ import annotations

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prunebench_kernels import layouts
from prunebench_kernels.dispatch import ArgumentError, LayoutError
from prunebench_kernels.layouts import (
    FORMATS,
    LAYOUTS,
    SEMI_STRUCTURED,
    Geometry,
    PackedWeight,
    arrange,
    empty,
    format_of,
    is_arranged,
    pack,
    strides,
)
from prunebench_kernels.sparse_conv import candidates
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ANYWHERE = tuple(layout for layout in LAYOUTS if layout != "semi_structured")
"""Layouts of weights on any device, in any dtype and pattern."""


def geometry_of(case: cases.ConvCase) -> Geometry:
    return Geometry(case.in_channels, case.out_channels, case.kernel, **case.arguments)


def masked_weight(case: cases.ConvCase, density: float, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(len(case.name))
    weight = torch.randn(case.weight_shape, generator=generator)
    return (weight * (torch.rand(case.weight_shape, generator=generator) < density)).to(dtype)


def two_of_four(outputs: int, inputs: int, kept: int = 2) -> Tensor:
    """`[outputs, inputs, 1, 1]` with `kept` weights in four neighbouring input channels, at random places."""
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, inputs // 4, 4, generator=generator)
    places = torch.rand(weight.shape, generator=generator).argsort(2) < kept
    return (weight * places).view(outputs, inputs, 1, 1)


SETTINGS = {
    "dense": ({},),
    "block": (
        {},
        {"block_out": 16, "block_in": 16},
        {"block_out": 32, "block_in": 16},
        {"block_out": 128, "block_in": 64},
    ),
    "direct": ({},),
}


def takes(layout: str, case: cases.ConvCase) -> bool:
    return layout in ("dense", "direct") or case.groups == 1


@pytest.mark.parametrize("layout", ANYWHERE)
@pytest.mark.parametrize("case", cases.ODD_CONVS, ids=lambda case: case.name)
def test_unpack_is_the_exact_inverse_of_pack(case: cases.ConvCase, layout: str) -> None:
    geometry = geometry_of(case)
    for density in (0.0, 0.02, 0.3, 1.0):
        for dtype in DTYPES:
            weight = masked_weight(case, density, dtype)
            for settings in SETTINGS[layout]:
                if not takes(layout, case):
                    with pytest.raises(LayoutError, match="one group"):
                        pack(weight, layout, geometry=geometry, **settings)
                    continue
                packed = pack(weight, layout, geometry=geometry, **settings)
                assert torch.equal(packed.unpack(), weight)
                assert packed.dtype == dtype
                assert all(tensor.is_contiguous() for tensor in packed.tensors.values())


@pytest.mark.parametrize("layout", ANYWHERE)
def test_pruned_rows_blocks_and_columns_survive_packing(layout: str) -> None:
    weight = torch.randn(40, 48, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[:16, 16:32] = 0  # blocks of 16
    weight[20] = 0  # an output channel
    weight[:, 47] = 0  # an input channel
    weight[:, :, 1, 1] = 0  # a tap
    for settings in SETTINGS[layout]:
        packed = pack(weight, layout, geometry=Geometry(48, 40), **settings)
        assert torch.equal(packed.unpack(), weight)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1)]),
    st.floats(0, 1),
    st.integers(0, 2**16),
)
def test_every_random_mask_survives_packing(
    out_channels: int, in_channels: int, kernel: tuple[int, int], density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    geometry = Geometry(in_channels, out_channels, kernel)
    weight = torch.randn(geometry.weight_shape, generator=generator)
    weight *= torch.rand(geometry.weight_shape, generator=generator) < density
    for layout in ANYWHERE:
        assert torch.equal(pack(weight, layout, geometry=geometry).unpack(), weight)


def test_blocks_of_zeros_are_not_stored() -> None:
    weight = torch.zeros(64, 64, 3, 3)
    weight[20, 40, 1, 2] = 1
    packed = pack(weight, "block", geometry=Geometry(64, 64), block_out=16, block_in=16)
    assert packed.tensors["values"].shape == (1, 16, 16)
    assert packed.tensors["columns"].tolist() == [5 * 4 + 2]
    assert packed.tensors["pointers"].tolist() == [0, 0, 1, 1, 1]


def test_direct_sorts_output_channels_by_their_weights() -> None:
    case = cases.ODD_CONVS[1]
    weight = masked_weight(case, 0.3)
    packed = pack(weight, "direct", geometry=geometry_of(case))
    counts = packed.tensors["pointers"].diff()
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)
    assert counts.sum() == (weight != 0).sum()
    assert packed.nbytes == counts.sum() * (4 + 4) + (19 + 20) * 4


def test_a_packed_weight_is_a_copy_in_its_own_format() -> None:
    """Of a 1 x 1 weight `contiguous` is a view, whose strides no convolution takes for channels_last."""
    for shape in ((4, 6, 1, 1), (4, 6, 3, 3)):
        weight = torch.randn(shape).to(memory_format=torch.channels_last)
        geometry = Geometry(6, 4, shape[2:])
        for layout in ANYWHERE:
            packed = pack(weight, layout, geometry=geometry)
            kept = packed.unpack().clone()
            weight.mul_(2)
            assert torch.equal(packed.unpack(), kept)
        stride = pack(weight, "dense", geometry=geometry).tensors["weight"].stride()
        assert stride == torch.empty(shape[0], *shape[2:], shape[1]).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_two_of_four_weights_are_half_as_many(kept: int, dtype: torch.dtype) -> None:
    weight, geometry = two_of_four(48, 64, kept).to(dtype), Geometry(64, 48, (1, 1))
    tensors = SEMI_STRUCTURED.pack(weight, geometry, {})
    assert tensors["values"].shape == (48, 32)
    assert tensors["places"].shape == (48, 16)
    assert tensors["places"].dtype == torch.uint8
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    packed = PackedWeight("semi_structured", geometry, tensors)
    assert torch.equal(packed.unpack(), weight)
    assert packed.nbytes == weight.numel() * dtype.itemsize // 2 + weight.numel() // 4


def test_two_of_four_by_hand() -> None:
    weight = torch.tensor([0.0, 5, 0, 7, 0, 0, 3, 0, 0, 0, 0, 0, 1, 2, 0, 0]).view(1, 16, 1, 1)
    tensors = SEMI_STRUCTURED.pack(weight, Geometry(16, 1, (1, 1)), {})
    assert tensors["values"].tolist() == [[5, 7, 0, 3, 0, 0, 1, 2]]
    assert tensors["places"].tolist() == [[1 + 4 * 3, 0 + 4 * 2, 0 + 4 * 1, 0 + 4 * 1]]


def test_semi_structured_says_what_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, geometry = two_of_four(48, 64).bfloat16(), Geometry(64, 48, (1, 1))

    def refusal(weight: Tensor, geometry: Geometry) -> str:
        with pytest.raises(LayoutError) as caught:
            pack(weight, "semi_structured", geometry=geometry)
        return str(caught.value).removeprefix("layout: semi_structured takes ")

    assert refusal(weight, geometry) == "weights on a GPU, got cpu"
    assert refusal(torch.ones(4, 4, 3, 3), Geometry(4, 4)).startswith("1 x 1 convolutions without padding")
    assert refusal(weight, Geometry(64, 48, (1, 1), padding=(1, 1))).startswith("1 x 1 convolutions without")
    assert refusal(weight[:, :32], Geometry(64, 48, (1, 1), groups=2)) == "convolutions of one group, got 2"
    assert refusal(weight[:40], Geometry(64, 40, (1, 1))).startswith("channels in multiples of 16, got 64")
    monkeypatch.setattr(layouts.SemiStructuredLayout, "devices", ("cpu",))
    assert refusal(weight.float(), geometry) == "float16 and bfloat16, got torch.float32"
    assert refusal(weight + 1, geometry).startswith("at most two weights in four neighbouring input channels")
    assert torch.equal(pack(weight, "semi_structured", geometry=geometry).unpack(), weight)


def test_a_packed_weight_moves_to_another_device() -> None:
    case = cases.ODD_CONVS[1]
    packed = pack(masked_weight(case, 0.3), "direct", geometry=geometry_of(case))
    moved = packed.to("meta")
    assert moved.device.type == "meta"
    assert moved.nbytes == packed.nbytes
    assert moved.settings == packed.settings


def test_wrong_arguments_are_named() -> None:
    weight, geometry = torch.ones(4, 4, 3, 3), Geometry(4, 4)
    every = "dense, block, direct, semi_structured"
    with pytest.raises(ArgumentError, match=f"layout: want one of {every}, got 'csr'"):
        pack(weight, "csr", geometry=geometry)
    with pytest.raises(ArgumentError, match=r"weight: want shape \(4, 4, 3, 3\), got \(4, 4, 3, 1\)"):
        pack(weight[..., :1], "dense", geometry=geometry)
    with pytest.raises(ArgumentError, match="weight: contains values that are not finite"):
        pack(weight * float("nan"), "direct", geometry=geometry)
    with pytest.raises(ArgumentError, match="weight: want a floating dtype"):
        pack(weight.int(), "direct", geometry=geometry)
    with pytest.raises(ArgumentError, match="settings: layout direct has none; got block_out"):
        pack(weight, "direct", geometry=geometry, block_out=16)
    with pytest.raises(LayoutError, match="layout: block takes block_in 16, 32, 64 or 128, got 8"):
        pack(weight, "block", geometry=geometry, block_in=8)
    with pytest.raises(LayoutError, match="layout: direct takes kernels of at most 15 x 15"):
        pack(torch.ones(1, 1, 16, 1), "direct", geometry=Geometry(1, 1, (16, 1)))
    with pytest.raises(ArgumentError, match="tensors: layout dense has"):
        PackedWeight("dense", geometry, {})
    with pytest.raises(ArgumentError, match="settings: layout block has"):
        PackedWeight("block", geometry, pack(weight, "block", geometry=geometry).tensors, {})


def test_geometry_follows_the_module_and_checks_its_numbers() -> None:
    conv = nn.Conv2d(6, 9, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=3)
    geometry = Geometry.of(conv)
    assert geometry == Geometry(6, 9, (3, 5), (2, 1), (1, 0), (1, 2), 3)
    assert geometry.weight_shape == tuple(conv.weight.shape)
    assert geometry.output_shape((4, 6, 11, 13)) == tuple(conv(torch.zeros(4, 6, 11, 13)).shape)
    assert Geometry.from_numbers(geometry.numbers) == geometry
    assert Geometry.of(nn.Conv2d(1, 1, (3, 5), dilation=(2, 1), padding="same")).padding == (2, 2)
    assert Geometry.of(nn.Conv2d(1, 1, 3, padding="valid")).padding == (0, 0)
    with pytest.raises(LayoutError, match="'same' of an even kernel"):
        Geometry.of(nn.Conv2d(1, 1, 2, padding="same"))
    with pytest.raises(LayoutError, match="padding mode reflect"):
        Geometry.of(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ArgumentError, match="groups: 2 does not divide in_channels, 3"):
        Geometry(3, 4, groups=2)
    with pytest.raises(ArgumentError, match="stride: want two integers of at least 1"):
        Geometry(3, 4, stride=(0, 1))
    with pytest.raises(ArgumentError, match="x: 2 x 9 pixels are fewer than kernel"):
        Geometry(3, 4).output_size(2, 9)


@pytest.mark.parametrize("order", FORMATS)
def test_formats_arrange_without_changing_values(order: str) -> None:
    x = torch.randn(3, 4, 5, 6)
    arranged = arrange(x, order)
    assert torch.equal(arranged, x)
    assert is_arranged(arranged, order)
    assert arrange(arranged, order).data_ptr() == arranged.data_ptr()
    assert empty(x.shape, order, x).stride() == arranged.stride() == strides(x.shape, order)
    assert arrange(arranged + 1, order).stride() == arranged.stride()


def test_every_layout_has_one_format() -> None:
    assert {layout: format_of(layout) for layout in LAYOUTS} == {
        "dense": "channels_last",
        "block": "channels_last",
        "direct": "batch_innermost",
        "semi_structured": "channels_last",
    }


def test_candidates_follow_the_mask() -> None:
    geometry, shape = Geometry(128, 128, padding=(1, 1)), (128, 128, 16, 16)
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(geometry.weight_shape, generator=generator)

    def names(
        weight: Tensor, geometry: Geometry = geometry, device: str = "cuda", batch: int = 128
    ) -> list[str]:
        found = candidates(weight, geometry, (batch, *shape[1:]), device)
        assert found[0] == ("dense", {})
        return [layout for layout, _ in found]

    unstructured = dense * (torch.rand(dense.shape, generator=generator) < 0.01)
    blocks = torch.rand(2, 2, 3, 3, generator=generator) < 0.2
    blocky = dense * blocks.repeat_interleave(64, 0).repeat_interleave(64, 1)
    assert names(dense) == ["dense"]
    assert names(dense * (torch.rand(dense.shape, generator=generator) < 0.3)) == ["dense"]
    assert names(unstructured) == ["dense", "direct"]
    assert names(unstructured, device="cpu") == ["dense", "direct"]
    assert names(unstructured, batch=12) == ["dense"]
    assert "block" in names(blocky)
    depthwise = Geometry(128, 128, padding=(1, 1), groups=128)
    assert names(torch.randn(depthwise.weight_shape), depthwise) == ["dense", "direct"]
    stem = Geometry(3, 64, padding=(1, 1))
    assert names(torch.randn(stem.weight_shape), stem) == ["dense", "direct"]
    assert names(torch.randn(stem.weight_shape), stem, "cpu") == ["dense"]
    pointwise = Geometry(64, 48, (1, 1))
    assert names(two_of_four(48, 64), pointwise) == ["dense", "semi_structured"]
    assert names(two_of_four(48, 64) + 1, pointwise) == ["dense"]
    packed = pack(unstructured, "direct", geometry=geometry)
    assert candidates(packed, geometry, shape, "cuda") == candidates(unstructured, geometry, shape, "cuda")
