"""What criteria may need, against formulas worked out sample by sample or in closed form; and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.errors import SupervisionError, UsageError
from prunebench.methods.counting import BackwardCounter
from prunebench.methods.criteria import compute_scores, criterion
from prunebench.methods.statistics import Statistics
from prunebench.models import build_model
from prunebench.pruning.masks import prunable

BATCHES = [
    (torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(at)), torch.arange(6) % 3)
    for at in (0, 1)
]


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    return iter(BATCHES)


def statistics_of(net: nn.Module, charged: list[float] | None = None) -> Statistics:
    spent = [] if charged is None else charged
    return Statistics(net, batches, spent.append, torch.Generator().manual_seed(0), dict)


@pytest.fixture
def net() -> nn.Module:
    found = build_model("convnet-small@0.2", 3, seed=0).eval()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after some training
            module.running_mean.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(1))
    return found


def gradients(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    functional.cross_entropy(net(x), y).backward()
    return {name: weight.grad.clone() for name, weight in prunable(net).items()}  # type: ignore[union-attr]


def test_squared_gradients_and_fisher_blocks_are_means_over_samples(net: nn.Module) -> None:
    spent: list[float] = []
    found = statistics_of(net, spent)
    each = [gradients(net, x[at : at + 1], y[at : at + 1]) for x, y in BATCHES for at in range(len(x))]
    for name, weight in prunable(net).items():
        rows = torch.stack([sample[name] for sample in each])
        assert torch.allclose(found.squared_gradient(name), rows.square().mean(0), atol=1e-7)
        blocks, flat = found.fisher_block(name, 5), rows.flatten(1)
        assert blocks.shape == (-(-weight.numel() // 5), 5, 5)
        assert torch.allclose(blocks[0], flat[:, :5].T @ flat[:, :5] / len(rows), atol=1e-7)
        left = weight.numel() % 5
        if left:
            assert (blocks[-1][left:] == 0).all()
    assert spent == [2, 2], "each computed once for all layers"


def test_norms_of_activations_multiply_with_the_weight(net: nn.Module) -> None:
    spent: list[float] = []
    found = statistics_of(net, spent)
    first, *_, last = prunable(net).items()
    x = torch.cat([x for x, _ in BATCHES])
    assert torch.allclose(found.activation_norm(first[0]), x.square().sum((0, 2, 3)).sqrt().view(1, 3, 1, 1))
    features = net.features(x)  # type: ignore[operator]
    assert torch.allclose(
        found.activation_norm(last[0]), features.square().sum(0).sqrt().view(1, -1), rtol=1e-4
    )
    assert (first[1] * found.activation_norm(first[0])).shape == first[1].shape
    assert spent == [pytest.approx(2 / 3)]


def test_activation_norms_of_grouped_convolutions_belong_to_their_group() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.Conv2d(4, 6, 1, groups=2, bias=False))
    data = torch.arange(1.0, 5).view(1, 4, 1, 1)
    found = Statistics(net, lambda: iter([(data, torch.zeros(1))]), lambda _: None, torch.Generator(), dict)
    assert found.activation_norm("0.weight").flatten().tolist() == [1, 2, 3, 4]
    second = found.activation_norm("1.weight")
    assert second.shape == (6, 2, 1, 1)
    inner = (data * net[0].weight.view(1, 4, 1, 1)).abs().flatten()
    assert torch.allclose(second[0].flatten(), inner[:2])
    assert torch.allclose(second[5].flatten(), inner[2:])


def test_the_gram_matrix_is_twice_the_inputs_products() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(32, 3))
    found = statistics_of(net)
    weight = net[0].weight.detach().flatten(1)
    x = torch.cat([x for x, _ in BATCHES])
    out = functional.conv2d(x, net[0].weight, stride=2, padding=1)
    gram = found.input_gram("0.weight")
    assert gram.shape == (1, 27, 27)
    assert torch.allclose((weight @ gram[0] * weight).sum(1), 2 * out.square().sum((0, 2, 3)), rtol=1e-4)
    assert found.input_gram("2.weight").shape == (1, 32, 32)


@pytest.mark.parametrize("padding", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_a_padding_without_a_gram_matrix_is_named(padding: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3, **padding), nn.Flatten(), nn.Linear(128, 3))
    with pytest.raises(UsageError, match="zeros as padding"):
        statistics_of(net).input_gram("0.weight")


def test_curvature_of_a_quadratic_in_closed_form() -> None:
    """One linear layer and one sample: the Hessian of cross-entropy is (diag(p) - p p^T) (x) x x^T."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False)).double()
    x, y = torch.tensor([[0.5, -1.5]], dtype=torch.float64), torch.tensor([1])
    spent: list[float] = []
    found = Statistics(net, lambda: iter([(x, y)]), spent.append, torch.Generator().manual_seed(0), dict)
    p = net(x).softmax(1).detach().flatten()
    hessian = torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(x[0], x[0]))
    slope = torch.outer(p - functional.one_hot(y[0], 3), x[0]).flatten()
    assert torch.allclose(found.hessian_gradient("0.weight").flatten(), hessian @ slope)
    assert spent == [1, 2]
    estimate = found.hessian_diagonal("0.weight", 4000).flatten()
    assert torch.allclose(estimate, hessian.diag(), atol=0.05)


def test_nothing_undeclared_is_served_and_nothing_changes_the_network(net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}

    @criterion("all", cite="x", needs={"squared_gradient", "activation_norm", "hessian_gradient", "network"})
    def every(weight: Tensor, context: object) -> Tensor:
        curved = context.hessian_gradient(weight)  # type: ignore[attr-defined]
        context.once("wiped", lambda: [value.data.zero_() for value in context.network().parameters()])  # type: ignore[attr-defined]
        return curved + context.squared_gradient(weight) * context.activation_norm(weight)  # type: ignore[attr-defined]

    scores = compute_scores(every, net, statistics_of(net), torch.Generator())
    assert {name: tuple(one.shape) for name, one in scores.items()} == {
        name: tuple(weight.shape) for name, weight in prunable(net).items()
    }
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    peeking = criterion("peeking", cite="x", needs={"gradient"})(lambda w, c: c.fisher_block(w))
    with pytest.raises(
        SupervisionError, match=r'context\.fisher_block without declaring it.*needs=\{"fisher_block"\}'
    ):
        compute_scores(peeking, net, statistics_of(net), torch.Generator())


def test_settings_of_a_criterion_have_defaults_and_names_of_their_own() -> None:
    from prunebench.methods.prune import prune_by

    @criterion("power", cite="x", structure="filter")
    def power(weight: Tensor, context: object, *, exponent: float = 2.0) -> Tensor:
        return weight.abs() ** exponent

    entry = prune_by(power)
    assert entry.params["exponent"] == 2.0
    assert entry.params["structure"] == "filter"
    changed = entry.with_params({"exponent": 3.0, "distribution": "erk"})
    assert changed.params["allocation"] == "erk"
    built = changed.build(**changed.params)
    assert built.criterion(torch.tensor([2.0]), None).tolist() == [8.0]  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="its setting base needs a default"):
        criterion("x", cite="x")(lambda w, c, *, base: w)
    with pytest.raises(UsageError, match="begin is a setting of pruning"):
        prune_by(criterion("x", cite="x")(lambda w, c, *, begin=1: w))
    with pytest.raises(UsageError, match="native=True needs structure='N:M'"):
        prune_by(criterion("x", cite="x", native=True)(lambda w, c: w))


def test_backward_passes_are_counted_and_the_functions_put_back() -> None:
    counter, weight = BackwardCounter(), torch.ones(2, requires_grad=True)
    functions = torch.autograd.backward, torch.autograd.grad
    with counter.running():
        weight.sum().backward()
        torch.autograd.grad(weight.square().sum(), weight)
    assert counter.count == 2
    assert (torch.autograd.backward, torch.autograd.grad) == functions
    assert counter.take(1) == 1
    assert counter.count == 1
