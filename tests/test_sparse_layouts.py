"""Packed weights: exact inverse, what each layout takes, and what the candidates are."""

from __future__ import annotations

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prunebench_kernels.errors import ArgumentError, LayoutError
from prunebench_kernels.sparse import formats
from prunebench_kernels.sparse.candidates import candidates
from prunebench_kernels.sparse.layouts import LAYOUTS, Geometry, PackedWeight, pack, preferred_format
from torch import Tensor, nn


def masked_weight(case: cases.ConvCase, density: float, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(len(case.name))
    weight = torch.randn(case.weight_shape, generator=generator)
    return (weight * (torch.rand(case.weight_shape, generator=generator) < density)).to(dtype)


SETTINGS = {
    "dense": ({},),
    "block": (
        {},
        {"block_out": 16, "block_in": 16},
        {"block_out": 32, "block_in": 16},
        {"block_out": 128, "block_in": 64},
    ),
    "direct": ({},),
    "compact": (
        {},
        {"sorted": 0},
        {"block_out": 32, "block_rows": 16},
        {"block_out": 64, "block_rows": 64},
    ),
}


def takes(layout: str, case: cases.ConvCase) -> bool:
    return layout in ("dense", "direct") or case.groups == 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", cases.ODD_CONVS, ids=lambda case: case.name)
def test_unpack_is_the_exact_inverse_of_pack(case: cases.ConvCase, layout: str) -> None:
    for density in (0.0, 0.02, 0.3, 1.0):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            weight = masked_weight(case, density, dtype)
            for settings in SETTINGS[layout]:
                if not takes(layout, case):
                    with pytest.raises(LayoutError, match="one group"):
                        pack(weight, layout, geometry=case.geometry, **settings)
                    continue
                packed = pack(weight, layout, geometry=case.geometry, **settings)
                assert torch.equal(packed.unpack(), weight)
                assert packed.dtype == dtype
                assert all(tensor.is_contiguous() for tensor in packed.tensors.values())


@pytest.mark.parametrize("layout", LAYOUTS)
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
    for layout in LAYOUTS:
        assert torch.equal(pack(weight, layout, geometry=geometry).unpack(), weight)


def test_blocks_of_zeros_are_not_stored() -> None:
    weight = torch.zeros(64, 64, 3, 3)
    weight[20, 40, 1, 2] = 1
    packed = pack(weight, "block", geometry=Geometry(64, 64), block_out=16, block_in=16)
    assert packed.tensors["values"].shape == (1, 16, 16)
    assert packed.tensors["columns"].tolist() == [5 * 4 + 2]
    assert packed.tensors["pointers"].tolist() == [0, 0, 1, 1, 1]


def test_direct_sorts_output_channels_by_their_weights() -> None:
    weight = masked_weight(cases.ODD_CONVS[1], 0.3)
    packed = pack(weight, "direct", geometry=cases.ODD_CONVS[1].geometry)
    counts = packed.tensors["pointers"].diff()
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)
    assert counts.sum() == (weight != 0).sum()
    assert packed.nbytes == counts.sum() * (4 + 4) + (19 + 20) * 4


def test_a_packed_weight_is_a_copy_in_its_own_format() -> None:
    """Of a 1 x 1 weight `contiguous` is a view, whose strides no convolution takes for channels_last."""
    for shape in ((4, 6, 1, 1), (4, 6, 3, 3)):
        weight = torch.randn(shape).to(memory_format=torch.channels_last)
        geometry = Geometry(6, 4, shape[2:])
        for layout in LAYOUTS:
            packed = pack(weight, layout, geometry=geometry)
            kept = packed.unpack().clone()
            weight.mul_(2)
            assert torch.equal(packed.unpack(), kept)
        stride = pack(weight, "dense", geometry=geometry).tensors["weight"].stride()
        assert stride == torch.empty(shape[0], *shape[2:], shape[1]).stride()


def test_compact_keeps_the_places_that_a_block_uses() -> None:
    weight = torch.zeros(16, 40, 1, 1)
    weight[3, 7] = weight[9, 7] = weight[4, 21] = 1
    packed = pack(weight, "compact", geometry=Geometry(40, 16, (1, 1)), block_rows=16)
    assert packed.tensors["codes"].shape == (1, 16)
    assert packed.tensors["codes"][0, :3].tolist() == [7 * 256, 21 * 256, 0]


def test_similar_masks_share_a_block_of_compact() -> None:
    weight = torch.zeros(32, 64, 1, 1)
    weight[0::2, :32] = 1
    weight[1::2, 32:] = 1
    geometry = Geometry(64, 32, (1, 1))
    assert pack(weight, "compact", geometry=geometry).tensors["codes"].numel() == 64
    assert pack(weight, "compact", geometry=geometry, sorted=0).tensors["codes"].numel() == 128


def test_a_packed_weight_moves_to_another_device() -> None:
    packed = pack(masked_weight(cases.ODD_CONVS[1], 0.3), "direct", geometry=cases.ODD_CONVS[1].geometry)
    moved = packed.to("meta")
    assert moved.device.type == "meta"
    assert moved.nbytes == packed.nbytes
    assert moved.settings == packed.settings


def test_wrong_arguments_are_named() -> None:
    weight, geometry = torch.ones(4, 4, 3, 3), Geometry(4, 4)
    with pytest.raises(ArgumentError, match="layout: want one of dense, block, direct, compact, got 'csr'"):
        pack(weight, "csr", geometry=geometry)
    with pytest.raises(ArgumentError, match=r"weight: want shape \(4, 4, 3, 3\), got \(4, 4, 3, 1\)"):
        pack(weight[..., :1], "dense", geometry=geometry)
    with pytest.raises(ArgumentError, match="weight: contains values that are not finite"):
        pack(weight * float("nan"), "direct", geometry=geometry)
    with pytest.raises(ArgumentError, match="weight: want a floating dtype"):
        pack(weight.int(), "direct", geometry=geometry)
    with pytest.raises(ArgumentError, match="settings: layout direct has batch_innermost; got block_out"):
        pack(weight, "direct", geometry=geometry, block_out=16)
    with pytest.raises(LayoutError, match="layout: block takes block_in 16, 32, 64 or 128, got 8"):
        pack(weight, "block", geometry=geometry, block_in=8)
    with pytest.raises(LayoutError, match="layout: compact takes block_out and block_rows of 16, 32 or 64"):
        pack(weight, "compact", geometry=geometry, block_rows=8)
    with pytest.raises(LayoutError, match="layout: direct takes kernels of at most 15 x 15"):
        pack(torch.ones(1, 1, 16, 1), "direct", geometry=Geometry(1, 1, (16, 1)))
    with pytest.raises(ArgumentError, match="tensors: layout dense has"):
        PackedWeight("dense", geometry, {})
    with pytest.raises(ArgumentError, match="settings: layout direct has"):
        PackedWeight("direct", geometry, pack(weight, "direct", geometry=geometry).tensors, {})


def test_geometry_follows_the_module_and_checks_its_numbers() -> None:
    conv = nn.Conv2d(6, 9, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=3)
    geometry = Geometry.of(conv)
    assert geometry == Geometry(6, 9, (3, 5), (2, 1), (1, 0), (1, 2), 3)
    assert geometry.weight_shape == tuple(conv.weight.shape)
    assert geometry.output_size(11, 13) == tuple(conv(torch.zeros(1, 6, 11, 13)).shape[2:])
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


@pytest.mark.parametrize("order", formats.FORMATS)
def test_formats_arrange_without_changing_values(order: str) -> None:
    x = torch.randn(3, 4, 5, 6)
    arranged = formats.arrange(x, order)
    assert torch.equal(arranged, x)
    assert formats.is_arranged(arranged, order)
    assert formats.arrange(arranged, order).data_ptr() == arranged.data_ptr()
    assert formats.empty(x.shape, order, x).stride() == arranged.stride()
    assert formats.arrange(arranged + 1, order).stride() == arranged.stride()


def test_preferred_formats() -> None:
    assert [preferred_format(layout) for layout in LAYOUTS] == [
        torch.channels_last,
        torch.channels_last,
        torch.contiguous_format,
        torch.contiguous_format,
    ]


def test_candidates_follow_the_mask() -> None:
    geometry, shape = Geometry(128, 128, padding=(1, 1)), (128, 128, 16, 16)
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(geometry.weight_shape, generator=generator)

    def names(weight: Tensor, geometry: Geometry = geometry, device: str = "cuda") -> list[str]:
        found = candidates(weight, geometry, shape, device)
        assert found[0] == ("dense", {})
        for layout, settings in found:
            pack(weight, layout, geometry=geometry, **settings)
        return [layout for layout, _ in found]

    unstructured = dense * (torch.rand(dense.shape, generator=generator) < 0.01)
    blocks = torch.rand(2, 2, 3, 3, generator=generator) < 0.2
    blocky = dense * blocks.repeat_interleave(64, 0).repeat_interleave(64, 1)
    assert names(dense) == ["dense"]
    assert names(dense * (torch.rand(dense.shape, generator=generator) < 0.3)) == ["dense"]
    assert names(unstructured) == ["dense", "compact", "compact", "direct", "direct"]
    assert names(unstructured, device="cpu") == ["dense", "compact", "direct"]
    assert "block" in names(blocky)
    depthwise = Geometry(128, 128, padding=(1, 1), groups=128)
    assert set(names(torch.randn(depthwise.weight_shape), depthwise)) == {"dense", "direct"}
    packed = pack(unstructured, "direct", geometry=geometry)
    assert candidates(packed, geometry, shape, "cuda") == candidates(unstructured, geometry, shape, "cuda")
