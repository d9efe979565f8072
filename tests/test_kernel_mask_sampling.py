"""Sampled masks: random numbers against published vectors, both backends against the oracle and each other."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Callable

import cases
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from kernel_tolerances import TOLERANCE
from prunebench_kernels import mask_sampling_torch, mask_sampling_triton
from prunebench_kernels.backend import explain
from prunebench_kernels.errors import ArgumentError
from prunebench_kernels.mask_sampling import sample_masks
from prunebench_kernels.mask_sampling_operator import sample_masks_backward_op, sample_masks_op
from prunebench_kernels.mask_sampling_rule import Draw
from prunebench_kernels.mask_sampling_triton import Configuration
from prunebench_kernels.reference import sampling as oracle
from scipy import special
from torch import Tensor

BACKENDS = ("torch", "triton")
SEED = 0x1234_5678_9ABC_DEF1
WIDE = Configuration(block=1 << 14, num_warps=4)
"""Few, large programs: what the interpreter is quick at."""
EVERYWHERE = Configuration(block=1 << 12, num_warps=4, band=math.inf)
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
        made = mask_sampling_torch.philox4x32(tuple(parts), key, spare)
        assert tuple(int(word[0]) & 0xFFFFFFFF for word in made) == words


@pytest.mark.parametrize("count", [1, 3, 4, 1001])
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (SEED, 1), (2**63 - 1, 2**32 - 1), (2**31, 2**31)])
def test_numerators_are_those_of_the_oracle(count: int, seed: int, offset: int) -> None:
    expected = oracle.uniforms(count + 8, seed=seed, offset=offset)
    assert float(expected.min()) > 0
    assert float(expected.max()) < 1
    for start in (0, 8):
        out = torch.full((count,), -1, dtype=torch.int32)
        mask_sampling_torch.fill_numerators(out, start, Draw(seed, offset, 1.0, True))
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


def both(pi: Tensor, draw: Draw, forced: Configuration | None) -> tuple[Tensor, Tensor]:
    out = [torch.full((pi.numel() + 3,), math.nan) for _ in range(2)]
    mask_sampling_torch.forward(pi, None, out[0][: pi.numel()], torch.empty(0), draw)
    mask_sampling_triton.forward(pi, None, out[1][: pi.numel()], draw, forced)
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
    expected, actual = both(normal(count), Draw(7, 0, 1.0, True), Configuration(block=256, num_warps=4))
    assert torch.equal(actual, expected)
    assert set(expected.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("forced", mask_sampling_triton.TUNING_CANDIDATES, ids=str)
def test_the_configuration_does_not_change_the_masks(forced: Configuration) -> None:
    expected, actual = both(normal(4999), Draw(8, 1, 1.0, False), forced)
    assert torch.equal(actual, expected)


def test_a_tuned_configuration_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def lookup(operation: str, key: str) -> dict[str, int]:
        asked.append((operation, key))
        return {"block": 512, "num_warps": 8}

    monkeypatch.setattr(mask_sampling_triton.tuned, "lookup", lookup)
    assert mask_sampling_triton.configuration(1 << 20) == Configuration(512, 8)
    mask_sampling_triton.configuration((1 << 20) + 1)
    assert asked == [("sample_masks", "up to 2^20"), ("sample_masks", "up to 2^21")]


def test_kernels_are_launched_on_the_device_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton takes the current GPU, which need not be the one that the tensors are on."""
    entered: list[Tensor] = []

    def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
        entered.append(tensor)
        return contextlib.nullcontext()

    monkeypatch.setattr(mask_sampling_triton, "on_device", on_device)
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
    made = mask_sampling_torch.exponential_(x.clone())
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
    settings = (SEED, 3, 0.7, True)
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
    settings = (SEED, 3, 0.7, True)
    kept = sample_masks_op(pi, None, *settings, torch.float32, "torch", True)[1]
    none = torch.empty(0)
    assert kept.numel() == 3001
    with_slope, without = (
        sample_masks_backward_op(gradient, pi, None, slope, *settings, "torch", True, False)[0]
        for slope in (kept, none)
    )
    assert torch.equal(with_slope, without)


NO_FUSION = """
from prunebench_kernels.mask_sampling_triton import COMPILE_CASES
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

case = next(case for case in COMPILE_CASES if case.name == "sample_masks fp32 -> fp32, squash")
source = ASTSource(case.kernel, dict(case.signature), dict(case.constexprs))
for fusion in (False, True):
    options = {"num_warps": 4, "enable_fp_fusion": fusion}
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    print(text.count("fma."), text.count("mul.rn.f32") > 0, text.count("div.rn.f32") > 0)
"""


def test_the_decision_is_compiled_without_fused_operations() -> None:
    """As launched, the compiled kernel rounds each product: its masks are the torch path's on a GPU too."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", NO_FUSION], env=environment, capture_output=True, text=True, check=True
    )
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


def test_the_variable_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(mask_sampling_triton, "forward", lambda *_: launched.append(True))
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
