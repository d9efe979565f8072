"""Coupled channels: units by hand, a narrower network that answers as one with zeros, and the order of removal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.errors import MaskError, UsageError
from prunebench.inference.cost import count_macs
from prunebench.methods.structured import macs_left, nearest, output_positions, removal_order
from prunebench.models import build_model, narrowed
from prunebench.pruning.coupling import Coupling, coupled_channels, slice_state


class Residual(nn.Module):
    """Two convolutions, the second added to the first's four channels, and a padded shortcut to eight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.third, self.head = nn.Conv2d(4, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = functional.relu(x + self.second(x))
        x = self.third(x) + functional.pad(x, (0, 0, 0, 0, 2, 2))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


def test_units_by_hand() -> None:
    """The padded two in front go with the two behind; the middle four with the sum that they came from."""
    coupling = coupled_channels(Residual())
    assert coupling.written["first"].tolist() == coupling.written["second"].tolist() == [0, 1, 2, 3]
    assert coupling.written["third"].tolist() == [4, 5, 0, 1, 2, 3, 4, 5]
    assert coupling.read["third"].tolist() == [0, 1, 2, 3]
    assert coupling.read["head"].tolist() == coupling.written["third"].tolist()
    assert coupling.read["first"].tolist() == [-1, -1, -1], "the image's channels stay"
    assert coupling.written["head"].tolist() == [-1, -1], "the logits stay"
    assert coupling.count == 6
    assert coupling.groups.tolist() == [0, 0, 0, 0, 1, 1]
    assert coupling.added.all()


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.second(torch.softmax(self.first(x), 1)), 1))


def test_what_an_unknown_operation_sees_stays() -> None:
    coupling = coupled_channels(Unknown())
    assert coupling.written["first"].tolist() == [-1] * 4
    assert coupling.written["second"].tolist() == list(range(6))
    assert not coupling.added.any()


def test_what_cannot_be_traced_is_said() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match=r"torch\.fx cannot trace"):
        coupled_channels(Branches())


@pytest.mark.parametrize(
    "name", ["convnet-small", "resnet8", "resnet20", "resnet8@0.3", "resnet18", "mobilenet"]
)
def test_a_network_without_units_answers_as_with_their_zeros(name: str) -> None:
    net = build_model(name, 10, seed=0).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that a removed channel is not zero by itself
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.running_mean, -1, 1)  # type: ignore[arg-type]
    coupling = coupled_channels(net)
    kept = torch.arange(coupling.count) % 3 != 0
    narrow = narrowed(build_model(name, 10, seed=0), state := slice_state(net.state_dict(), coupling, kept))
    narrow.load_state_dict(state)
    x = torch.rand(2, 3, 32, 32)
    positions = output_positions(net, x[:1])
    assert macs_left(net, coupling, positions, kept) == count_macs(narrow, x[:1])[0]
    assert macs_left(net, coupling, positions, torch.ones_like(kept)) == count_macs(net, x[:1])[0]
    with torch.no_grad():
        for layer in coupling.read:
            columns = coupling.columns(layer, kept)
            net.get_submodule(layer).weight[:, ~columns] = 0  # type: ignore[operator, index]
        expected, answer = net(x), narrow.eval()(x)
    assert torch.allclose(expected, answer, atol=1e-4 * float(expected.abs().max()))
    assert expected.std() > 0


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("name", ["convnet-small", "resnet8"])
def test_no_other_number_of_units_comes_nearer(name: str, uniform: bool, sparsity: float) -> None:
    net, x = build_model(name, 10, seed=0), torch.rand(1, 3, 16, 16)
    coupling = coupled_channels(net)
    worth = torch.rand(coupling.count, generator=torch.Generator().manual_seed(1))
    order = removal_order(coupling, worth, uniform=uniform)
    positions, dense = output_positions(net, x), count_macs(net, x)[0]
    away = []
    for count in range(len(order) + 1):
        kept = torch.ones(coupling.count, dtype=torch.bool)
        kept[order[:count]] = False
        away.append(abs(1 - sparsity - macs_left(net, coupling, positions, kept) / dense))
    kept = nearest(net, coupling, order, sparsity, x)
    assert abs(1 - sparsity - macs_left(net, coupling, positions, kept) / dense) == min(away)


def two_groups() -> Coupling:
    return coupled_channels(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    )


def test_order_by_hand() -> None:
    worth = torch.tensor([5.0, 1.0, 2.0, 8.0, 0.5, 3.0])
    assert removal_order(two_groups(), worth, uniform=False).tolist() == [4, 1, 2, 0]
    assert removal_order(two_groups(), worth, uniform=True).tolist() == [1, 2, 4, 0], "1/4, 2/4 = 1/2, 3/4"


def test_worth_must_be_numbers() -> None:
    with pytest.raises(MaskError, match="want 6 numbers"):
        removal_order(two_groups(), torch.ones(5), uniform=True)
    with pytest.raises(MaskError, match="nan"):
        removal_order(two_groups(), torch.full((6,), torch.nan), uniform=True)


def test_sums_may_be_left_alone_and_what_is_then_out_of_reach_is_said() -> None:
    net, x = build_model("resnet8", 10, seed=0), torch.rand(1, 3, 16, 16)
    coupling = coupled_channels(net)
    order = removal_order(coupling, torch.arange(coupling.count), uniform=False, coupled=False)
    assert len(order) == 16 + 32 + 64 - 3
    with pytest.raises(MaskError, match=r"asked to remove 0\.98 of the multiply-accumulates"):
        nearest(net, coupling, order, 0.98, x)


def test_means_and_sums_over_the_layers_of_a_unit() -> None:
    coupling = coupled_channels(Residual())
    values = {"first": torch.tensor([1.0, 2, 3, 4]), "third": torch.arange(8.0)}
    assert coupling.reduced(values, mean=False).tolist() == [1 + 2, 2 + 3, 3 + 4, 4 + 5, 0 + 6, 1 + 7]
    assert coupling.reduced(values).tolist() == [1.5, 2.5, 3.5, 4.5, 3.0, 4.0]
