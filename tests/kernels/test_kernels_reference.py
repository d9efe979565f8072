"""The oracles of the kernels against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from prunebench_kernels import correlation, masked_conv2d, uncertainty
from scipy import special, stats
from torch import Tensor
from torch.nn import functional


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2)},
    {"dilation": 2, "padding": 2},
    {"groups": 2},
    {"groups": 4, "stride": 2, "dilation": (1, 2), "padding": 1},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_masked_conv2d(settings: dict[str, int], with_bias: bool) -> None:
    generator = seeded(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, weight = draw(2, 4, 9, 8), draw(8, 4 // settings.get("groups", 1), 3, 3)
    bias = draw(8) if with_bias else None
    mask = (torch.rand(weight.shape, generator=generator) < 0.4).double().requires_grad_()
    y = masked_conv2d(x, weight, mask, bias, **settings)  # type: ignore[arg-type]
    upstream = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (y * upstream).sum().backward()

    product = (weight * mask).detach().requires_grad_()
    x_again = x.detach().requires_grad_()
    expected = functional.conv2d(x_again, product, bias, **settings)  # type: ignore[arg-type]
    (expected * upstream).sum().backward(inputs=[product, x_again])
    dense_gradient = product.grad
    assert dense_gradient is not None
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, x_again.grad)
    torch.testing.assert_close(weight.grad, dense_gradient * mask.detach())
    torch.testing.assert_close(mask.grad, dense_gradient * weight.detach())
    if bias is not None:
        torch.testing.assert_close(bias.grad, upstream.sum((0, 2, 3)))


def test_masked_conv2d_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    weight, mask = torch.tensor([[[[10.0, 100.0]]]]), torch.tensor([[[[True, False]]]])
    assert masked_conv2d(x, weight, mask).tolist() == [[[[10.0, 20.0], [40.0, 50.0]]]]
    biased = masked_conv2d(x, weight, mask, torch.tensor([1.0]), stride=(1, 2))
    assert biased.tolist() == [[[[11.0], [41.0]]]]


def test_masked_conv2d_wrong_mask() -> None:
    with pytest.raises(ValueError, match="mask: shape"):
        masked_conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 1))


def test_uncertainty_against_scipy() -> None:
    logits = 3 * torch.randn(50, 7, generator=seeded())
    labels = torch.randint(7, (50,), generator=seeded())
    values = uncertainty(logits, labels=labels)
    probability = special.softmax(logits.double().numpy(), axis=1)
    ordered = np.sort(probability, axis=1)
    assert values.negative_log_likelihood is not None
    likelihood = probability[np.arange(50), labels.numpy()]
    np.testing.assert_allclose(values.max_probability, ordered[:, -1], rtol=1e-5)
    np.testing.assert_allclose(values.margin, ordered[:, -1] - ordered[:, -2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values.entropy, stats.entropy(probability, axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values.negative_log_likelihood, -np.log(likelihood), rtol=1e-4, atol=1e-6)


def test_uncertainty_by_hand() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1], [1.0, 1.0, 1.0]]).log()
    values = uncertainty(logits, labels=torch.tensor([1, 2]))
    assert values.max_probability.tolist() == pytest.approx([0.6, 1 / 3])
    assert values.margin.tolist() == pytest.approx([0.3, 0.0], abs=1e-6)
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    assert values.entropy.tolist() == pytest.approx([entropy, math.log(3)])
    assert values.negative_log_likelihood is not None
    assert values.negative_log_likelihood.tolist() == pytest.approx([-math.log(0.3), math.log(3)])
    assert uncertainty(logits).negative_log_likelihood is None


def test_uncertainty_of_several_models() -> None:
    logits, labels = torch.randn(3, 10, 4, generator=seeded()), torch.arange(10) % 4
    together = uncertainty(logits, labels=labels)
    for position in range(3):
        alone = uncertainty(logits[position], labels=labels)
        for name in ("max_probability", "margin", "entropy", "negative_log_likelihood"):
            assert getattr(together, name).shape == (3, 10)
            torch.testing.assert_close(getattr(together, name)[position], getattr(alone, name))


@pytest.mark.parametrize("size", [100.0, 1e4, 1e30, 3e38])
def test_uncertainty_of_extreme_logits(size: float) -> None:
    values = uncertainty(torch.tensor([[size, -size, 0.0], [size, size, -size]]), labels=torch.tensor([0, 0]))
    assert values.max_probability.tolist() == [1.0, 0.5]
    assert values.margin.tolist() == [1.0, 0.0]
    assert values.entropy.tolist() == pytest.approx([0.0, math.log(2)], abs=1e-6)
    assert values.negative_log_likelihood is not None
    assert values.negative_log_likelihood.tolist() == pytest.approx([0.0, math.log(2)], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_uncertainty_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(20, 5, generator=seeded()).to(dtype)
    values, expected = uncertainty(logits), uncertainty(logits.float())
    assert values.entropy.dtype == torch.float32
    torch.testing.assert_close(values.entropy, expected.entropy)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (0, 5), (2, 0, 5), (1, 2, 3, 4)])
def test_uncertainty_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="logits: want"):
        uncertainty(torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_uncertainty_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        uncertainty(torch.tensor([[0.0, value]]))


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_correlation_against_numpy(offset: float) -> None:
    mixing = torch.randn(5, 5, generator=seeded(), dtype=torch.float64)
    outputs = torch.randn(200, 5, generator=seeded(1), dtype=torch.float64) @ mixing + offset
    expected = np.corrcoef(outputs.numpy(), rowvar=False)
    matrix = correlation(outputs)
    assert matrix.dtype == torch.float64
    assert np.abs(expected[0, 1]) > 0.01
    np.testing.assert_allclose(matrix, expected, atol=1e-12 if offset == 0 else 1e-6)


def test_correlation_with_an_offset_equals_without() -> None:
    outputs = torch.randint(0, 100, (50, 4), generator=seeded()).double()
    np.testing.assert_allclose(correlation(outputs + 1e8), correlation(outputs), atol=1e-12)


def test_correlation_by_hand() -> None:
    outputs = torch.tensor([[1.0, 2.0, -1.0], [2.0, 4.0, -2.0], [3.0, 6.0, -3.0]])
    expected = torch.tensor([[1, 1, -1], [1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    torch.testing.assert_close(correlation(outputs), expected)
    assert correlation(outputs).abs().max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 + 0.1])  # the mean of 37 times 0.1 is not 0.1
def test_constant_column_is_nan_in_its_own_row_and_column_only(value: float) -> None:
    outputs = torch.randn(37, 4, generator=seeded(), dtype=torch.float64)
    outputs[:, 2] = value
    matrix, rest = correlation(outputs), [0, 1, 3]
    assert torch.isnan(matrix[2]).all()
    assert torch.isnan(matrix[:, 2]).all()
    expected = np.corrcoef(outputs[:, rest].numpy(), rowvar=False)
    np.testing.assert_allclose(matrix[rest][:, rest], expected, atol=1e-12)


def test_correlation_of_several_models() -> None:
    outputs = torch.randn(3, 20, 4, generator=seeded())
    outputs[1, :, 0] = 5.0
    matrices = correlation(outputs)
    assert matrices.shape == (3, 4, 4)
    for position in range(3):
        torch.testing.assert_close(matrices[position], correlation(outputs[position]), equal_nan=True)
    assert torch.isnan(matrices).sum() == 7


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 1, 4), (1, 2, 3, 4)])
def test_correlation_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="outputs: want"):
        correlation(torch.zeros(shape))
