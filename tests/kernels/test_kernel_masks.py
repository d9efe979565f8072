"""Masks: random numbers against published vectors, both backends against the oracle and each other, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

import cases
import compiled
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from gpu import tiles
from kernel_tolerances import TOLERANCE
from prunebench_kernels import dispatch, mask_sampling, masks
from prunebench_kernels import reference as oracle
from prunebench_kernels.dispatch import ArgumentError, explain
from prunebench_kernels.mask_sampling import Draw, sample_masks, sample_masks_backward_op, sample_masks_op
from prunebench_kernels.masks import Configuration, apply_masks, layer_views
from scipy import special
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BACKENDS = ("torch", "triton")
SEED = 0x1234_5678_9ABC_DEF1
WIDE = Configuration(block=1 << 16, num_warps=4)
"""Few, large programs: what the interpreter is quick at."""
EVERYWHERE = Configuration(block=1 << 14, num_warps=4, band=math.inf)
"""Every decision repeated in exactly rounded operations."""


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 2.0, seed: int = 1) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def layers(dtype: torch.dtype = torch.float32, scale: float = 2.0, seed: int = 1) -> dict[str, Tensor]:
    shapes = cases.ODD_MASK_LAYERS
    return {str(i): normal(*shape, dtype=dtype, scale=scale, seed=seed + i) for i, shape in enumerate(shapes)}


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- random numbers -----------------------------------------------------------------------------------------

KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
"""Counter, key and words of philox4x32-10 in Random123's kat_vectors."""


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert oracle.philox4x32(counter, key) == words
    for spare, *parts in (
        [torch.tensor([word]) for word in (0, *counter)],
        [np.array([word], dtype=np.uint64) for word in (0, *counter)],
    ):
        made = mask_sampling.philox4x32(tuple(parts), key, spare)
        assert tuple(int(word[0]) & 0xFFFFFFFF for word in made) == words


@pytest.mark.parametrize("count", [1, 3, 4, 1001])
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (SEED, 1), (2**63 - 1, 2**32 - 1), (2**31, 2**31)])
def test_numerators_are_those_of_the_oracle(count: int, seed: int, offset: int) -> None:
    expected = oracle.uniforms(count + 8, seed=seed, offset=offset)
    assert float(expected.min()) > 0
    assert float(expected.max()) < 1
    for start in (0, 8):
        out = torch.full((count,), -1, dtype=torch.int32)
        mask_sampling.fill_numerators(out, start, Draw(seed, offset, 1.0, True))
        assert torch.equal(out.double() / 2**24, expected[start : start + count])


@triton.jit
def _tritons_own_words(out, seed, start, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    counter = tl.arange(0, BLOCK)
    for word in tl.static_range(4):
        tl.store(out + counter * 4 + word, tl.randint4x(seed, start + counter)[word])


def test_numerators_are_tritons_randint4x() -> None:
    out, offset = torch.zeros(64, dtype=torch.int32), 5
    _tritons_own_words[(1,)](out, SEED, offset << 32, BLOCK=16)
    numerators = (out.long() & 0xFFFFFFFF) >> 8 | 1
    assert torch.equal(numerators.double() / 2**24, oracle.uniforms(64, seed=SEED, offset=offset))


# --- both backends make the same masks ----------------------------------------------------------------------


def both(pi: Tensor, draw: Draw, forced: Configuration) -> tuple[Tensor, Tensor]:
    out = [torch.full((pi.numel() + 3,), math.nan) for _ in range(2)]
    mask_sampling.forward_in_torch(pi, None, out[0][: pi.numel()], torch.empty(0), draw)
    mask_sampling.launch_sample(pi, None, out[1][: pi.numel()], draw, forced)
    for made in out:
        assert made[pi.numel() :].isnan().all(), "written past the end"
    return out[0][: pi.numel()], out[1][: pi.numel()]


@pytest.mark.parametrize("squash", [True, False])
def test_a_million_masks_are_the_same_bits(squash: bool) -> None:
    pi = normal(1_100_003, scale=4.0)
    expected, actual = both(pi, Draw(SEED, 3, 1.0, squash), WIDE)
    assert torch.equal(actual, expected)
    assert 0.4 < float(expected.mean()) < 0.7


@pytest.mark.parametrize("squash", [True, False])
def test_the_exact_decision_is_the_same_everywhere(squash: bool) -> None:
    pi = torch.cat([normal(100_000, scale=6.0), torch.linspace(-18, 18, 100_001), torch.zeros(3)])
    expected, actual = both(pi, Draw(SEED, 9, 1.0, squash), EVERYWHERE)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("count", [1, 2, 5, 1023, 1024, 1025, 4096, 5000])
def test_every_element_is_written_and_none_beyond(count: int) -> None:
    expected, actual = both(normal(count), Draw(7, 0, 1.0, True), Configuration(block=1024, num_warps=4))
    assert torch.equal(actual, expected)
    assert set(expected.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("forced", tiles.of_masks(), ids=str)
def test_the_configuration_does_not_change_the_masks(forced: Configuration) -> None:
    expected, actual = both(normal(4999), Draw(8, 1, 1.0, False), forced)
    assert torch.equal(actual, expected)


def test_kernels_are_launched_on_the_device_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton takes the current GPU, which need not be the one that the tensors are on."""
    entered: list[Tensor] = []

    def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
        entered.append(tensor)
        return contextlib.nullcontext()

    monkeypatch.setattr(mask_sampling, "on_device", on_device)
    pi = normal(10).requires_grad_()
    sample_masks(pi, seed=0, backend="triton").sum().backward()
    assert [tensor.data_ptr() for tensor in entered] == [pi.data_ptr()] * 2


@pytest.mark.parametrize("squash", [True, False])
def test_decisions_at_the_border(squash: bool) -> None:
    """Logits around the one at which the mask turns, in steps of one rounding: backends agree, also with the truth."""
    count, draw = 4000, Draw(SEED, 2, 1.0, squash)
    uniform = oracle.uniforms(count, seed=draw.seed, offset=draw.offset)
    location = -torch.logit(uniform)  # g(pi) at which the mask turns
    inside = (location > 0.02) & (location < 0.98) if squash else location.abs() < 17
    border = (torch.logit(location.clamp(0.02, 0.98)) if squash else location).float()
    wrong = 0
    for ulps in range(-12, 13):
        pi = border * (1 + ulps * 2.0**-23)
        expected, actual = both(pi, draw, WIDE)
        assert torch.equal(actual, expected)
        margin = location_of(pi, squash) - location
        differs = inside & ((margin > 0) != (expected > 0))
        assert (margin[differs].abs() < 1.5e-6).all()
        wrong += int(differs.sum())
    assert wrong > 0, "the border was met"


def location_of(logits: Tensor, squash: bool) -> Tensor:
    return torch.sigmoid(logits.double()) if squash else logits.double()


@pytest.mark.parametrize(("limit", "error"), [(1e-3, 2e-7), (1.0, 2.5e-7), (17.0, 1.1e-6), (40.0, 2e-6)])
def test_the_written_out_exponential(limit: float, error: float) -> None:
    x = torch.linspace(-limit, limit, 100_001)
    made = mask_sampling.exponential_(x.clone())
    torch.testing.assert_close(made.double(), torch.exp(x.double()), rtol=error, atol=0)


# --- against the oracle -------------------------------------------------------------------------------------


def assert_masks(actual: Tensor, expected: Tensor, logits: Tensor, uniform: Tensor, squash: bool) -> None:
    """Equal, except where the oracle itself is within float32 rounding of the border."""
    margin = location_of(logits, squash) + torch.logit(uniform)
    differs = actual.double() != expected.double()
    assert (margin[differs].abs() < 1.5e-6).all()
    assert differs.double().mean() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("squash", "temperature"), [(True, 1.0), (False, 1.0), (True, 0.4), (False, 3.0)])
def test_masks_and_gradients(backend: str, dtype: torch.dtype, squash: bool, temperature: float) -> None:
    logits = {name: values.requires_grad_() for name, values in layers(dtype).items()}
    upstream = layers(dtype, seed=50)
    masks = sample_masks(logits, seed=SEED, offset=4, temperature=temperature, squash=squash, backend=backend)
    assert [(name, mask.shape, mask.dtype) for name, mask in masks.items()] == [
        (name, values.shape, dtype) for name, values in logits.items()
    ]
    torch.autograd.backward(list(masks.values()), list(upstream.values()))

    pi = flat(logits).detach().double().requires_grad_()
    uniform = oracle.uniforms(pi.numel(), seed=SEED, offset=4)
    expected = oracle.sample_masks(pi, uniform, temperature=temperature, squash=squash)
    expected.backward(flat(upstream).double())
    assert_masks(flat(masks).detach(), expected.detach(), pi.detach(), uniform, squash)
    actual = torch.cat([values.grad.reshape(-1) for values in logits.values()])  # type: ignore[union-attr]
    torch.testing.assert_close(actual.double(), pi.grad, **TOLERANCE["sample_masks", dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("trains", ["both", "logits", "weights"])
def test_masked_weights_and_gradients(backend: str, weight_dtype: torch.dtype, trains: str) -> None:
    pi, weight = normal(5001), normal(5001, scale=0.1, seed=2)
    pi.requires_grad_(trains != "weights"), weight.requires_grad_(trains != "logits")
    masked = sample_masks(pi, seed=6, weights=weight, weight_dtype=weight_dtype, backend=backend)
    mask = sample_masks(pi.detach(), seed=6, backend=backend)
    assert masked.dtype == weight_dtype
    assert torch.equal(masked.detach(), (weight * mask).detach().to(weight_dtype))
    gradient = normal(5001, dtype=weight_dtype, seed=3)
    masked.backward(gradient)

    pi64 = pi.detach().double().requires_grad_()
    hard = oracle.sample_masks(pi64, oracle.uniforms(5001, seed=6))
    hard.backward(gradient.double() * weight.detach().double())
    for leaf, expected in ((pi, pi64.grad), (weight, gradient.double() * mask)):
        if leaf.requires_grad:
            assert leaf.grad.dtype == torch.float32  # type: ignore[union-attr]
            torch.testing.assert_close(
                leaf.grad.double(), expected, **TOLERANCE["sample_masks", torch.float32]
            )  # type: ignore[union-attr]
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_written_everywhere(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what `empty` gives poisoned, nothing of it shows."""
    pi, weight = normal(4099).requires_grad_(), normal(4099, seed=2).requires_grad_()
    empty, new_empty = torch.empty, Tensor.new_empty

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: object, **kwargs: object) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor.fill_(77)

        return made

    monkeypatch.setattr(torch, "empty", poisoned(empty))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(new_empty))
    masked = sample_masks(pi, seed=1, weights=weight, backend=backend)
    masked.sum().backward()
    for tensor in (masked, pi.grad, weight.grad):
        assert torch.isfinite(tensor).all()  # type: ignore[arg-type]
    assert (pi.grad != 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_gradient_is_that_of_the_soft_value(squash: bool, temperature: float) -> None:
    """By finite differences of a formula in numpy, in float64."""
    pi = normal(500, dtype=torch.float64).requires_grad_()
    upstream = normal(500, dtype=torch.float64, seed=9)
    mask = sample_masks(pi, seed=2, temperature=temperature, squash=squash)
    mask.backward(upstream)
    uniform = oracle.uniforms(500, seed=2).numpy()

    def soft(values: np.ndarray) -> np.ndarray:
        location = special.expit(values) if squash else values
        return special.expit((location + special.logit(uniform)) / temperature)

    values, step = pi.detach().numpy(), 1e-6
    slope = (soft(values + step) - soft(values - step)) / (2 * step)
    np.testing.assert_array_equal(mask.detach().numpy(), soft(values) > 0.5)
    np.testing.assert_allclose(pi.grad.numpy(), slope * upstream.numpy(), rtol=1e-5, atol=1e-9)  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("squash", [True, False])
def test_extreme_logits(backend: str, squash: bool) -> None:
    pi = torch.tensor([200.0, -200.0, 88.8, -104.0]).repeat(500).requires_grad_()
    mask = sample_masks(pi, seed=5, squash=squash, temperature=0.1, backend=backend)
    mask.sum().backward()
    assert torch.isfinite(pi.grad).all()  # type: ignore[arg-type]
    if squash:  # sigmoid(0) and sigmoid(1): still random
        shares = mask.detach().view(-1, 4).mean(0).tolist()
        assert shares == pytest.approx([sigmoid(1), 0.5, sigmoid(1), 0.5], abs=5 * 0.5 / math.sqrt(500))
    else:
        assert mask.tolist() == [1.0, 0.0, 1.0, 0.0] * 500


# --- what is drawn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("logit", [-3.0, 0.0, 1.5])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_keep_probability(logit: float, squash: bool, temperature: float) -> None:
    count = 200_000
    mask = sample_masks(torch.full((count,), logit), seed=1, temperature=temperature, squash=squash)
    expected = sigmoid(sigmoid(logit) if squash else logit)
    five_deviations = 5 * math.sqrt(expected * (1 - expected) / count)  # missed once in two million draws
    assert abs(float(mask.double().mean()) - expected) < five_deviations


def test_draws_seeds_words_and_layers_are_independent() -> None:
    """Pairs of masks agree as often as two coins; so do neighbours, words and layers within one draw."""
    count = 1 << 16
    coin = torch.zeros(2 * count)

    def draw(seed: int, offset: int) -> tuple[Tensor, Tensor]:
        masks = sample_masks({"a": coin[:count], "b": coin[:count]}, seed=seed, offset=offset, squash=False)
        return masks["a"], masks["b"]

    streams = [*draw(3, 0), *draw(3, 1), *draw(4, 0), *draw(3 + 2**32, 0), *draw(3, 2**31)]
    streams += [streams[0].roll(step) for step in (1, 2, 4, 1024)]
    centred = torch.stack(streams).double() * 2 - 1
    products = centred @ centred.T / count
    products.fill_diagonal_(0)
    assert float(products.abs().max()) < 5 / math.sqrt(count)
    words = centred[0].view(-1, 4)
    agreement = words.T @ words / len(words)
    agreement.fill_diagonal_(0)
    assert float(agreement.abs().max()) < 5 / math.sqrt(len(words))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_seed_and_the_number_of_the_draw_decide(backend: str) -> None:
    pi = normal(3000)
    first, again = (sample_masks(pi, seed=3, offset=2, backend=backend) for _ in range(2))
    assert torch.equal(first, again)
    for other in ({"seed": 4, "offset": 2}, {"seed": 3, "offset": 3}, {"seed": 3 + 2**40, "offset": 2}):
        assert not torch.equal(first, sample_masks(pi, backend=backend, **other))


def test_a_mapping_is_one_buffer_layer_after_layer() -> None:
    logits = layers()
    masks = sample_masks(logits, seed=3)
    assert torch.equal(flat(masks), sample_masks(flat(logits), seed=3))
    weights = layers(seed=30)
    masked = sample_masks(logits, seed=3, weights=weights)
    for name, mask in masks.items():
        assert torch.equal(masked[name], weights[name] * mask)


def test_a_tensor_is_numbered_in_row_major_order() -> None:
    pi = normal(6, 5, 3, 3)
    expected = sample_masks(pi.reshape(-1), seed=3).view(pi.shape)
    assert torch.equal(sample_masks(pi, seed=3), expected)
    assert torch.equal(sample_masks(pi.to(memory_format=torch.channels_last), seed=3), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.float16, torch.float64, torch.bfloat16], ids=str
)
def test_masks_in_any_dtype_are_the_same(backend: str, dtype: torch.dtype) -> None:
    pi = normal(1500).requires_grad_()
    mask = sample_masks(pi, seed=3, mask_dtype=dtype, backend=backend)
    assert mask.dtype == dtype
    assert torch.equal(mask.float(), sample_masks(pi, seed=3, backend=backend))
    assert mask.requires_grad == dtype.is_floating_point


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_logits_in_other_dtypes_decide_in_float32(dtype: torch.dtype) -> None:
    pi = normal(1500, dtype=dtype)
    assert torch.equal(sample_masks(pi, seed=3).float(), sample_masks(pi.float(), seed=3))


def test_temperature_changes_gradients_not_masks() -> None:
    pi = normal(2000)
    assert torch.equal(sample_masks(pi, seed=3, temperature=5.0), sample_masks(pi, seed=3, temperature=0.1))


def test_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    sample_masks(normal(10), seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- as an operator of torch --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck itself reads it from copies
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_weights", [True, False])
def test_operators_are_sound(backend: str, with_weights: bool) -> None:
    pi = normal(37).requires_grad_()
    weight = normal(37, seed=2).requires_grad_() if with_weights else None
    settings = (None, SEED, 3, 0.7, True)
    torch.library.opcheck(sample_masks_op, (pi, weight, *settings, torch.float32, backend, True))
    slope = sample_masks_op(pi, weight, *settings, torch.float32, backend, True)[1]
    arguments = (normal(37), pi.detach(), None if weight is None else weight.detach(), slope)
    torch.library.opcheck(
        sample_masks_backward_op, (*arguments, *settings, backend, True, weight is not None)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_into_one_graph(backend: str) -> None:
    def step(pi: Tensor, weight: Tensor, draw: int) -> Tensor:
        return sample_masks(pi * 2, seed=SEED, offset=draw, weights=weight, backend=backend) + 1

    pi, weight = normal(300).requires_grad_(), normal(300, seed=2)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for draw in (0, 5, 6):
        made, expected = compiled(pi, weight, draw), step(pi, weight, draw)
        assert torch.equal(made, expected)
        gradients = [torch.autograd.grad(values.square().sum(), pi)[0] for values in (made, expected)]
        assert torch.equal(*gradients)


def test_the_torch_path_draws_again_if_no_slope_was_kept() -> None:
    pi, gradient = normal(3001), normal(3001, seed=2)
    settings = (None, SEED, 3, 0.7, True)
    kept = sample_masks_op(pi, None, *settings, torch.float32, "torch", True)[1]
    none = torch.empty(0)
    assert kept.numel() == 3001
    with_slope, without = (
        sample_masks_backward_op(gradient, pi, None, slope, *settings, "torch", True, False)[0]
        for slope in (kept, none)
    )
    assert torch.equal(with_slope, without)


# --- a draw that is counted on the device -----------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [0, 7, 2**31, 2**32 - 1])
def test_the_offset_may_be_a_tensor(backend: str, number: int) -> None:
    pi, weight = normal(1003).requires_grad_(), normal(1003, seed=2).requires_grad_()
    made = []
    for offset in (number, torch.tensor([number]), torch.tensor(number)):
        masked = sample_masks(pi, seed=SEED, offset=offset, weights=weight, temperature=0.7, backend=backend)
        made.append((masked, *torch.autograd.grad(masked, (pi, weight), normal(1003, seed=3))))
    for other in made[1:]:
        assert all(map(torch.equal, made[0], other))


def test_a_launch_reads_the_offset_when_it_runs() -> None:
    """A captured graph repeats a launch: the same arguments, and what the tensor holds by then."""
    pi, counter, draws = normal(999), torch.zeros(1, dtype=torch.int64), []
    for _ in range(3):
        out = torch.full((999,), math.nan)
        mask_sampling.launch_sample(pi, None, out, Draw(SEED, counter, 1.0, True))
        draws.append(out)
        counter += 1
    for number, made in enumerate(draws):
        assert torch.equal(made, sample_masks(pi, seed=SEED, offset=number))


@pytest.mark.parametrize("offset", [5, torch.tensor([5]), torch.tensor([5 + 2**32])], ids=str)
def test_torch_draws_the_same_words_off_the_cpu(offset: int | Tensor) -> None:
    pairs = torch.full((1003, 2), -1)
    mask_sampling.fill_by_torch(pairs, 2, Draw(SEED, offset, 1.0, True))
    expected = oracle.uniforms(1005 * 4, seed=SEED, offset=5)[8:]
    assert torch.equal(pairs.view(torch.int32).reshape(-1).double() / 2**24, expected)


def test_a_counter_that_moved_before_the_backward_pass_is_refused() -> None:
    counter = torch.zeros(1, dtype=torch.int64)
    mask = sample_masks(normal(8).requires_grad_(), seed=0, offset=counter)
    counter += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        mask.sum().backward()


# --- given masks, applied -------------------------------------------------------------------------------------

SHAPES = (*cases.ODD_MASK_LAYERS, (130, 40, 1, 1))


def pairs_of(
    weight_dtype: torch.dtype, mask_dtype: torch.dtype, channels_last: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and masks, which need gradients where they can; float masks are no 0/1."""
    weights = {str(i): normal(*shape, dtype=weight_dtype, seed=i) for i, shape in enumerate(SHAPES)}
    if channels_last:
        weights = {
            name: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in weights.items()
        }
    given = {
        name: torch.empty_like(value, dtype=mask_dtype).copy_(normal(*value.shape, seed=40).clamp(0, 3))
        for name, value in weights.items()
    }
    for value in (*weights.values(), *given.values()):
        value.requires_grad_(value.is_floating_point())
    return weights, given


def formula(
    weights: Mapping[str, Tensor], given: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    return {name: (weight * given[name]).to(dtype) for name, weight in weights.items()}


def step_of(
    products: Mapping[str, Tensor], weights: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> list[Tensor]:
    """Products and all gradients."""
    leaves = [leaf for leaf in (*weights.values(), *given.values()) if leaf.requires_grad]
    upstream = [normal(*made.shape, dtype=made.dtype, seed=60) for made in products.values()]
    return [*products.values(), *torch.autograd.grad(list(products.values()), leaves, upstream)]


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Zeros with their signs; nan is nan."""
    assert actual.dtype == expected.dtype
    nan = actual.isnan() & expected.isnan()
    signs = torch.signbit(actual) == torch.signbit(expected)
    return bool((nan | ((actual == expected) & signs)).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.float16, torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float16], ids=str)
def test_products_and_gradients_are_the_formulas_bit_for_bit(
    weight_dtype: torch.dtype,
    mask_dtype: torch.dtype,
    dtype: torch.dtype | None,
    channels_last: bool,
    backend: str,
) -> None:
    weights, given = pairs_of(weight_dtype, mask_dtype, channels_last)
    products = apply_masks(weights, given, dtype=dtype, backend=backend)
    assert list(products) == list(weights)
    for name, made in products.items():
        assert made.shape == weights[name].shape
        form = torch.channels_last if channels_last and made.ndim == 4 else torch.contiguous_format
        assert made.is_contiguous(memory_format=form)
    expected = step_of(formula(weights, given, dtype or weight_dtype), weights, given)
    assert all(map(same_bits, step_of(products, weights, given), expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_run_in_torch(dtype: torch.dtype) -> None:
    weights, given = pairs_of(dtype, torch.float32)
    products = apply_masks(weights, given, dtype=torch.float32, backend="triton")
    expected = step_of(formula(weights, given, torch.float32), weights, given)
    assert all(map(same_bits, step_of(products, weights, given), expected))


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")  # of the interpreter's numpy
@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_keep_their_sign_and_infinities_are_multiplied(backend: str) -> None:
    weight = torch.tensor([-1.0, math.inf, -math.inf, math.nan, -0.0, 3e-39, 6e4, 1e30])
    for given in (torch.zeros(8), torch.ones(8), torch.tensor([0, 1] * 4, dtype=torch.bool)):
        for dtype in (torch.float32, torch.float16):
            made = apply_masks(weight, given, dtype=dtype, backend=backend)
            assert same_bits(made, (weight * given).to(dtype))


@pytest.mark.parametrize("chosen", tiles.of_masks(), ids=str)
@pytest.mark.parametrize("count", [1, 15, 1024, 4097])
def test_the_configuration_does_not_change_products(chosen: Configuration, count: int) -> None:
    layers_ = [normal(count, seed=i) for i in range(3)]
    given = [(normal(count, seed=9 + i) > 0).float() for i in range(3)]
    gradients = [normal(count, dtype=torch.float16, seed=19 + i) for i in range(3)]
    made = masks.launch_apply(layers_, given, torch.float16, chosen)
    types = torch.float32, torch.float32
    to_weights, to_masks = masks.launch_apply_backward(gradients, layers_, given, types, chosen)
    for i, gradient in enumerate(gradients):
        assert torch.equal(made[i], (layers_[i] * given[i]).half())
        assert torch.equal(to_weights[i], gradient.float() * given[i])  # type: ignore[index]
        assert torch.equal(to_masks[i], gradient.float() * layers_[i])  # type: ignore[index]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trains", ["weights", "masks", "neither"])
def test_gradients_are_made_where_they_are_needed(backend: str, trains: str) -> None:
    weights, given = pairs_of(torch.float32, torch.float32)
    for value in (*weights.values(), *given.values()):
        value.requires_grad_(False)
    leaves = {"weights": weights, "masks": given, "neither": {}}[trains]
    for value in leaves.values():
        value.requires_grad_()
    products = apply_masks(weights, given, dtype=torch.float16, backend=backend)
    assert all(made.requires_grad == bool(leaves) for made in products.values())
    if leaves:
        expected = step_of(formula(weights, given, torch.float16), weights, given)
        assert all(map(same_bits, step_of(products, weights, given), expected))
    with torch.no_grad():
        assert not any(made.requires_grad for made in apply_masks(weights, given, backend=backend).values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_buffer_of_all_layers(backend: str) -> None:
    weight, given = normal(5003).requires_grad_(), (normal(5003, seed=2) > 0)
    made = apply_masks(weight, given, dtype=torch.float16, backend=backend)
    (gradient,) = torch.autograd.grad(made, weight, normal(5003, dtype=torch.float16, seed=3))
    assert torch.equal(made, (weight * given).half())
    assert torch.equal(gradient, normal(5003, dtype=torch.float16, seed=3).float() * given)


def test_one_launch_forward_and_one_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[str] = []

    class Counted:
        def __init__(self, kernel: object) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int]) -> object:
            launches.append(self.kernel.__name__)  # type: ignore[attr-defined]
            return self.kernel[grid]  # type: ignore[index]

    for name in ("apply_masks_kernel", "apply_masks_backward_kernel"):
        monkeypatch.setattr(masks, name, Counted(getattr(masks, name)))
    weights, given = pairs_of(torch.float32, torch.float32)
    step_of(apply_masks(weights, given, backend="triton"), weights, given)
    assert launches == ["apply_masks_kernel", "apply_masks_backward_kernel"]

    monkeypatch.setattr(masks, "MOST_LAYERS", 5)
    many = {str(i): normal(3, seed=i) for i in range(8)}
    made = apply_masks(many, {name: value > 0 for name, value in many.items()}, backend="triton")
    assert all(torch.equal(made[name], value.clamp(min=0)) for name, value in many.items())
    assert len(launches) == 4


def test_products_share_no_memory() -> None:
    weights, given = pairs_of(torch.float32, torch.bool)
    products = list(apply_masks(weights, given, backend="triton").values())
    ranges = sorted((made.data_ptr(), made.data_ptr() + 4 * made.numel()) for made in products)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_in_any_order(backend: str) -> None:
    """Slices, transposed and expanded weights; masks and gradients that lie otherwise than their weights."""
    wide = normal(6, 8, 3, 3)
    weights = {
        "slice": wide[:, ::2],
        "transposed": normal(5, 7).T,
        "expanded": normal(4, 1).expand(4, 6),
        "last": wide.to(memory_format=torch.channels_last),
        "plain": wide.clone(),
    }
    for weight in weights.values():
        weight.requires_grad_()
    given = {name: (normal(*weight.shape, seed=4) > 0).float() for name, weight in weights.items()}
    given["plain"] = given["plain"].to(memory_format=torch.channels_last)
    products = apply_masks(weights, given, backend=backend)
    upstream = [normal(*made.shape, seed=6) for made in products.values()]
    upstream[3:] = [upstream[3].contiguous(), upstream[4].to(memory_format=torch.channels_last)]
    expected = formula(weights, given, torch.float32)
    results = [
        torch.autograd.grad(list(made.values()), list(weights.values()), upstream)
        for made in (products, expected)
    ]
    for name, made in products.items():
        assert same_bits(made, expected[name]), name
    assert products["last"].is_contiguous(memory_format=torch.channels_last)
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_and_expanded_gradients(backend: str) -> None:
    weights, given = pairs_of(torch.float32, torch.float32)
    products = list(apply_masks(weights, given, dtype=torch.float16, backend=backend).values())
    (products[1].sum() + products[4].sum()).backward()
    for i, (name, weight) in enumerate(weights.items()):
        if i in (1, 4):
            assert torch.equal(weight.grad, given[name].detach())  # type: ignore[arg-type]
            assert (given[name].grad != 0).any()
        else:  # as in torch
            assert weight.grad is None
            assert given[name].grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_have_gradients(backend: str) -> None:
    weights = {"a": normal(3, 4).requires_grad_(), "b": normal(5, seed=2).requires_grad_()}
    given = {name: torch.rand_like(weight).requires_grad_() for name, weight in weights.items()}
    leaves, results = (*weights.values(), *given.values()), []
    for products in (apply_masks(weights, given, backend=backend), formula(weights, given, torch.float32)):
        loss = sum(made.pow(3).sum() for made in products.values())
        first = torch.autograd.grad(loss, leaves, create_graph=True)  # type: ignore[arg-type]
        results.append(torch.autograd.grad(sum(one.square().sum() for one in first), leaves))  # type: ignore[arg-type]
    for made, expected in zip(*results):
        torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_without_elements(backend: str) -> None:
    weights = {"a": torch.zeros(0, 3), "b": normal(7), "c": torch.zeros(0), "d": normal(2, 2)}
    products = apply_masks(weights, {name: one > 0 for name, one in weights.items()}, backend=backend)
    for name, made in products.items():
        assert torch.equal(made, weights[name].clamp(min=0))


def test_masks_that_changed_before_the_backward_pass_are_refused() -> None:
    weight, mask = normal(9).requires_grad_(), torch.ones(9)
    made = apply_masks(weight, mask, backend="triton")
    mask.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        made.sum().backward()


def test_products_are_written_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what `empty` gives poisoned, nothing of it shows."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(math.nan))
    weights, given = pairs_of(torch.float32, torch.float32)
    for tensor in step_of(apply_masks(weights, given, backend="triton"), weights, given):
        assert torch.isfinite(tensor).all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_application_compiles_into_one_graph(backend: str) -> None:
    def step(weights: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
        return apply_masks({name: one * 2 for name, one in weights.items()}, given, backend=backend)

    weights, given = pairs_of(torch.float32, torch.float32, channels_last=True)
    traced = torch.compile(step, backend="aot_eager", fullgraph=True)(weights, given)
    expected = step_of(step(weights, given), weights, given)
    assert all(map(torch.equal, step_of(traced, weights, given), expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_transforms_of_functions(backend: str) -> None:
    weight, mask = normal(20), (normal(20, seed=2) > 0).float()

    def squares(weight: Tensor) -> Tensor:
        return apply_masks(weight, mask, backend=backend).square().sum()

    assert torch.equal(torch.func.grad(squares)(weight), 2 * weight * mask)


# --- layers in one buffer -------------------------------------------------------------------------------------


def test_layer_views_are_splits_with_the_strides_of_the_weights() -> None:
    like = [*layers().values(), normal(4, 3, 2, 2).to(memory_format=torch.channels_last)]
    flat_ = normal(sum(one.numel() for one in like)).requires_grad_()
    pieces = flat_.split([one.numel() for one in like])
    expected = [piece.view(one.shape) for piece, one in zip(pieces[:-1], like)]
    expected.append(pieces[-1].view(4, 2, 2, 3).permute(0, 3, 1, 2))
    upstream = [normal(*one.shape, seed=i) for i, one in enumerate(like)]
    for made in (layer_views(flat_, like), torch.compile(layer_views, backend="aot_eager")(flat_, like)):
        assert all(map(torch.equal, made, expected))
        assert made[-1].stride() == like[-1].stride()
        gradients = [
            torch.autograd.grad(views, flat_, upstream, retain_graph=True)[0] for views in (made, expected)
        ]
        assert torch.equal(*gradients)
    (gradient,) = torch.autograd.grad(layer_views(flat_, like)[1].sum(), flat_)
    assert torch.equal(
        gradient, torch.cat([torch.full((one.numel(),), float(i == 1)) for i, one in enumerate(like)])
    )
    with torch.no_grad():
        assert layer_views(flat_, like)[0].data_ptr() == flat_.data_ptr()


# --- machine code ---------------------------------------------------------------------------------------------


def calls() -> dict[str, Callable[[], object]]:
    """What `compiled.figures` compiles: ResNet-18's 21 layers, and buffers, with sizes that no power of two divides."""
    size, counter, half = 5003, torch.zeros(1, dtype=torch.int64), torch.bfloat16
    pi, weight, upstream = normal(size), normal(size), normal(size, dtype=half)
    draw = Draw(SEED, counter, 1.0, True)
    empty, layers_ = torch.empty(0), [normal(4, 4, 3, 3) for _ in cases.MASK_LAYERS["resnet18"]]
    given = {torch.float32: [torch.ones_like(one) for one in layers_]}
    given[torch.bool] = [one.bool() for one in given[torch.float32]]
    gradients, types = [one.to(half) for one in layers_], (torch.float32, torch.float32)
    return {
        "sample float masks": lambda: mask_sampling.launch_sample(pi, None, torch.empty(size), draw),
        "sample bfloat16 weights": lambda: mask_sampling.launch_sample(
            pi, weight, torch.empty(size, dtype=half), draw
        ),
        "sample backward": lambda: mask_sampling.launch_sample_backward(
            upstream, pi, weight, torch.empty(size), empty, draw
        ),
        "sample backward, temperature 0.7": lambda: mask_sampling.launch_sample_backward(
            upstream, pi, weight, torch.empty(size), empty, Draw(SEED, counter, 0.7, True)
        ),
        "sample backward, both": lambda: mask_sampling.launch_sample_backward(
            upstream, pi, weight, torch.empty(size), torch.empty(size), draw
        ),
        "sample backward, both, bfloat16": lambda: mask_sampling.launch_sample_backward(
            upstream, pi, upstream, torch.empty(size), torch.empty(size, dtype=half), draw
        ),
        "apply, one buffer": lambda: masks.launch_apply([pi], [weight], half),
        "apply, 21 layers": lambda: masks.launch_apply(layers_, given[torch.float32], half),
        "apply, 21 layers, bool": lambda: masks.launch_apply(layers_, given[torch.bool], half),
        "apply backward, one buffer": lambda: masks.launch_apply_backward([upstream], None, [weight], types),
        "apply backward, 21 layers": lambda: masks.launch_apply_backward(
            gradients, None, given[torch.float32], types
        ),
        "apply backward, 21 layers, both": lambda: masks.launch_apply_backward(
            gradients, layers_, given[torch.float32], types
        ),
    }


BUDGET = {
    "sample float masks": 230,
    "sample bfloat16 weights": 235,
    "sample backward": 150,
    "sample backward, temperature 0.7": 225,
    "sample backward, both": 350,
    "sample backward, both, bfloat16": 350,
    "apply, one buffer": 22,
    "apply, 21 layers": 42,
    "apply, 21 layers, bool": 45,
    "apply backward, one buffer": 29,
    "apply backward, 21 layers": 43,
    "apply backward, 21 layers, both": 70,
}
"""Instructions in the kernel for each element of a thread, at most 15 % more than Triton 3.6 and 3.9 make for sm_80,
sm_90 and sm_100.

They count the tail and the exact decision, which hardly run; without these, 57 to 59 instructions draw a mask and 68 to
69 its gradient at temperature 1 (sm_90). At 3 TB/s an H100 has time for 99 an element of 10 bytes and 138 one of 14
(132 * 128 lanes, 1.755 GHz; arithmetic).
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", compiled.CAPABILITIES)
def test_machine_code(capability: int) -> None:
    found = compiled.figures("test_kernel_masks", capability)
    assert set(found) == set(BUDGET)
    for name, rows in found.items():
        assert not compiled.check(name, rows, capability)
        (row,) = rows
        chosen = masks.SAMPLE if name.startswith("sample") else masks.APPLY
        needed = row.instructions * 32 * chosen.num_warps / chosen.block
        assert needed <= BUDGET[name], f"{name}: {needed:.1f} instructions an element on sm_{capability}"
        assert row.vector_loads >= 2, f"{name}: loads elements one by one on sm_{capability}"


NO_FUSION = """
import torch
from prunebench_kernels import mask_sampling, masks
from prunebench_kernels.mask_sampling import Draw
from standin import stand_in

pi, out, scalars = torch.zeros(4096), torch.zeros(4096), (4096, 1, 0, 2)
flags = {"SQUASH": True, "HAS_WEIGHTS": False, "ON_DEVICE": False, "BAND": masks.SAMPLE.band, "BLOCK": 1024}
kernel = mask_sampling.sample_masks_kernel
with stand_in(90):
    mask_sampling.launch_sample(pi, None, out, Draw(1, 2, 1.0, True))
    kernel[(4,)](pi, pi, out, *scalars, **flags, num_warps=4, enable_fp_fusion=True)
    for made in kernel.device_caches[90][0].values():
        text = made.asm["ptx"]
        print(text.count("fma."), text.count("mul.rn.f32") > 0, text.count("div.rn.f32") > 0)
"""


@pytest.mark.slow
def test_the_decision_is_compiled_without_fused_operations() -> None:
    """As launched, the compiled kernel rounds each product: its masks are the torch path's on a GPU too."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        str(compiled.ROOT / name) for name in (".", "kernels", "bench")
    )
    command = [sys.executable, "-W", "ignore", "-c", NO_FUSION]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    as_launched, fused = (line.split() for line in run.stdout.splitlines())
    assert as_launched == ["0", "True", "True"]
    assert int(fused[0]) > 0, "the test can tell"


# --- choice and errors --------------------------------------------------------------------------------------


def test_explain() -> None:
    pi = normal(8)
    assert not explain(sample_masks, pi, seed=0).is_triton
    assert explain(sample_masks, pi, seed=0, backend="triton").is_triton
    assert explain(sample_masks, {"a": pi}, seed=0, backend="triton", mask_dtype=torch.uint8).is_triton
    assert "float64" in explain(sample_masks, pi.double(), seed=0, backend="triton").reason
    assert "bfloat16" in explain("sample_masks", pi.bfloat16(), seed=0, backend="triton").reason
    assert "torch was asked for" in explain(sample_masks, pi, seed=0, backend="torch").reason


def test_explain_application() -> None:
    weights, given = pairs_of(torch.float32, torch.bool)
    assert not explain(apply_masks, weights, given).is_triton
    assert explain(apply_masks, weights, given, backend="triton").is_triton
    assert "float64" in explain(apply_masks, weights, given, dtype=torch.float64, backend="triton").reason
    assert "bfloat16" in explain("apply_masks", weights, given, dtype=torch.bfloat16, backend="triton").reason


def test_auto_measures_steps_as_autograd_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    contests: list[dispatch.Contest] = []

    def select(*_: object, contest: dispatch.Contest, **__: object) -> dispatch.Choice:
        contests.append(contest)
        return dispatch.Choice("torch", "a test")

    monkeypatch.setattr(masks, "select", select)
    for mask_dtype, count in ((torch.float32, 2 * len(SHAPES)), (torch.bool, len(SHAPES))):
        weights, given = pairs_of(torch.float32, mask_dtype)
        apply_masks(weights, given, dtype=torch.float16)
        with torch.no_grad():
            apply_masks(weights, given, dtype=torch.float16)
        step, forward = contests[-2:]
        assert step.key != forward.key
        gradients = [call() for call in step.calls().values()]
        assert [len(made) for made in gradients] == [count, count]  # type: ignore[arg-type]
        assert all(map(torch.equal, *gradients))  # type: ignore[arg-type]
        products = [call() for call in forward.calls().values()]
        assert all(map(torch.equal, *products))  # type: ignore[arg-type]
        assert list(step.calls()) == ["torch", "triton"]


def test_torch_takes_the_launches_that_make_the_kernel_certain() -> None:
    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Callable[..., object], types: object, args=(), kwargs=None
        ) -> object:  # type: ignore[no-untyped-def]
            self.count += 1
            return func(*args, **(kwargs or {}))

    pi, out, slope = (torch.empty(4000, device="meta") for _ in range(3))
    with Counter() as counter:
        mask_sampling.forward_in_torch(pi, pi, out, slope, Draw(1, 2, 1.0, True))
    assert counter.count > 150


def test_the_variable_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(mask_sampling, "launch_sample", lambda *_: launched.append(True))
    sample_masks(normal(8), seed=0)
    assert not launched
    monkeypatch.setenv("PRUNEBENCH_KERNELS", "triton")
    sample_masks(normal(8), seed=0)
    assert launched


PI = torch.zeros(4)
WRONG: list[tuple[str, object, dict[str, object]]] = [
    ("logits: no layer", {}, {}),
    ("logits: want a torch tensor", [0.0], {}),
    (r"logits\['b'\]: want a torch tensor", {"a": PI, "b": 1.0}, {}),
    (r"logits\['b'\]: is torch.float64", {"a": PI, "b": PI.double()}, {}),
    (r"logits\['b'\]: is on meta", {"a": PI, "b": PI.to("meta")}, {}),
    ("logits: want a floating dtype", PI.int(), {}),
    ("logits: want 1 to", PI[:0], {}),
    ("logits: want 1 to", {"a": PI[:0]}, {}),
    ("logits: contains values that are not finite", PI / 0, {}),
    ("logits: contains values that are not finite", PI + math.inf, {"backend": "triton"}),
    ("seed: want", PI, {"seed": -1}),
    ("seed: want", PI, {"seed": 2**63}),
    ("offset: want", PI, {"offset": -1}),
    ("offset: want", PI, {"offset": 2**32}),
    ("offset: want", PI, {"offset": torch.tensor([2**32])}),
    ("offset: want an int or one int64", PI, {"offset": torch.tensor([1, 2])}),
    ("offset: want an int or one int64", PI, {"offset": torch.tensor(1, dtype=torch.int32)}),
    ("offset: is on meta", PI, {"offset": torch.tensor(1, device="meta")}),
    ("temperature: must be positive", PI, {"temperature": 0.0}),
    ("temperature: must be positive", PI, {"temperature": -1.0}),
    ("temperature: must be positive", PI, {"temperature": math.nan}),
    ("temperature: must be positive", PI, {"temperature": math.inf}),
    ("weights: want shape", PI, {"weights": torch.zeros(5)}),
    ("weights: want a torch tensor", PI, {"weights": {"a": PI}}),
    ("weights: want a mapping", {"a": PI}, {"weights": PI}),
    ("weights: want a mapping", {"a": PI, "b": PI}, {"weights": {"b": PI, "a": PI}}),
    (r"weights\['a'\]: want shape", {"a": PI}, {"weights": {"a": torch.zeros(2, 2)}}),
    ("weights: is on meta", PI, {"weights": PI.to("meta")}),
    ("weights: want a floating dtype", PI, {"weights": PI.int()}),
    ("mask_dtype: want", PI, {"mask_dtype": torch.int64}),
    ("mask_dtype: is for masks", PI, {"weights": PI, "mask_dtype": torch.float32}),
    ("weight_dtype: is for masked weights", PI, {"weight_dtype": torch.float32}),
    ("weight_dtype: want a floating", PI, {"weights": PI, "weight_dtype": torch.uint8}),
    ("backend: want one of", PI, {"backend": "cuda"}),
]


@pytest.mark.parametrize(("message", "logits", "settings"), WRONG, ids=[case[0] for case in WRONG])
def test_errors_name_the_argument(message: str, logits: object, settings: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        sample_masks(logits, **{"seed": 0, **settings})  # type: ignore[call-overload]


WRONG_PAIRS: list[tuple[str, object, object, dict[str, object]]] = [
    ("weights: no layer", {}, {}, {}),
    ("weights: want a torch tensor", 3.0, PI, {}),
    ("masks: want a torch tensor", PI, 3.0, {}),
    ("masks: want a torch tensor", PI, {"a": PI}, {}),
    ("masks: want a mapping", {"a": PI}, PI, {}),
    ("masks: want a mapping", {"a": PI, "b": PI}, {"b": PI, "a": PI}, {}),
    (r"weights\['a'\]: want a torch tensor", {"a": 1}, {"a": PI}, {}),
    (r"weights\['b'\]: is torch.float64", {"a": PI, "b": PI.double()}, {"a": PI, "b": PI}, {}),
    (r"weights\['b'\]: is on meta", {"a": PI, "b": PI.to("meta")}, {"a": PI, "b": PI}, {}),
    (r"masks\['b'\]: is torch.bool", {"a": PI, "b": PI}, {"a": PI, "b": PI.bool()}, {}),
    (r"masks\['a'\]: want shape \(4,\), got \(2, 2\)", {"a": PI}, {"a": PI.view(2, 2)}, {}),
    (r"masks\['a'\]: is on meta", {"a": PI}, {"a": PI.to("meta")}, {}),
    ("masks: want shape", PI, PI[:2], {}),
    ("weights: want a floating dtype", PI.int(), PI, {}),
    ("masks: want a floating dtype, uint8 or bool", PI, PI.int(), {}),
    ("dtype: want a floating", PI, PI, {"dtype": torch.int32}),
    ("weights: want 1 to", PI[:0], PI[:0], {}),
    ("weights: want 1 to", {"a": PI[:0]}, {"a": PI[:0]}, {}),
    ("backend: want one of", PI, PI, {"backend": "cuda"}),
]


@pytest.mark.parametrize(
    ("message", "weights", "given", "settings"), WRONG_PAIRS, ids=[case[0] for case in WRONG_PAIRS]
)
def test_errors_of_application(
    message: str, weights: object, given: object, settings: dict[str, object]
) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        apply_masks(weights, given, **settings)  # type: ignore[type-var,arg-type]


def test_views_of_a_part_of_a_buffer() -> None:
    buffer = torch.arange(20.0)
    (view,) = masks.layer_views(buffer[4:], [torch.empty(16)])
    assert view.tolist() == list(range(4, 20))
    with pytest.raises(ArgumentError, match="flat: want a contiguous buffer"):
        masks.layer_views(buffer[::2], [torch.empty(10)])
