"""Whole networks for sparse inference: the same outputs, and only what cannot change them removed."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from prunebench_kernels import measured, sparse_conv
from prunebench_kernels.channels import Channels, DeadChannels
from prunebench_kernels.dispatch import ArgumentError, LayoutError
from prunebench_kernels.files import load_sparse, save_sparse
from prunebench_kernels.fold import TracingError, fold_batchnorm, trace
from prunebench_kernels.measured import QUICK, Choices, Measuring, Samples
from prunebench_kernels.sparse_conv import SparseConv2d
from prunebench_kernels.sparsify import (
    MULTIPLES,
    PASSES,
    SparseNetwork,
    fold_dense,
    replayed,
    sparsify,
    without_dead_channels,
)
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune

from prunebench.models import build_model
from prunebench.pruning.masks import prunable

NETWORKS = {"convnet": 28, "convnet-small": 16, "resnet18": 16, "resnet18-imagenet": 32, "mobilenet": 16}
SPARSITIES = (0.0, 0.5, 0.9, 0.98, 0.995)


@pytest.fixture(autouse=True)
def channels_are_counted_singly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets made by hand have few channels: multiples of one, as the rules are."""
    monkeypatch.setitem(MULTIPLES, "cpu", 1)


def fake_timer(speeds: Mapping[str, float]) -> Callable[..., Samples]:
    """A call takes the milliseconds of the longest prefix of its name; dense 1, others 2 if not named."""

    def measure(calls: Mapping[str, Callable[[], object]], repeats: int) -> Samples:
        return {name: [_time_of(name)] * repeats for name in calls}

    def _time_of(name: str) -> float:
        return next(
            (ms for prefix, ms in speeds.items() if name.startswith(prefix)), 1 if name == "dense" else 2
        )

    return measure


def measuring(**speeds: float) -> Measuring:
    return Measuring(QUICK, Choices.in_memory(), fake_timer(speeds))


def sparse(model: nn.Module, x: Tensor, **settings: object) -> SparseNetwork:
    """Sparsify without measuring: dense layouts."""
    return sparsify(model, example=x, **{"layout": "dense", **settings})  # type: ignore[arg-type]


@torch.no_grad()
def scramble_statistics(model: nn.Module, seed: int = 0) -> None:
    """BatchNorm as after training on other data: no channel's constant is zero by chance."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.normal_()
            module.bias.normal_()


def random_masks(model: nn.Module, sparsity: float) -> dict[str, Tensor]:
    return {name: torch.rand_like(weight) >= sparsity for name, weight in prunable(model).items()}


@torch.inference_mode()
def assert_same(found: nn.Module, wanted: nn.Module, x: Tensor, relative: float = 1e-5) -> None:
    got, want = found(x), wanted.eval()(x)
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= relative * float(want.abs().max())


def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_stay(name: str, sparsity: float) -> None:
    model = build_model(name, 5, seed=1)
    scramble_statistics(model)
    masks = random_masks(model, sparsity)
    x = torch.randn(3, 3, NETWORKS[name], NETWORKS[name])
    network = sparse(model, x, masks=masks)
    assert_same(network, masked(model, masks), x)
    assert_same(network, masked(model, masks), torch.randn(5, 3, NETWORKS[name], NETWORKS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_filter_pruning_removes_the_filters(name: str) -> None:
    """With BatchNorm as initialised (shift 0) a pruned filter is zero, and half of the channels go, or nearly."""
    model = build_model(name, 5, seed=1)
    masks = {
        path: torch.ones_like(weight) if weight.ndim == 2 else _every_other(weight)
        for path, weight in prunable(model).items()
    }
    x = torch.randn(2, 3, NETWORKS[name], NETWORKS[name])
    network = sparse(model, x, masks=masks)
    assert_same(network, masked(model, masks), x)
    assert network.report.removed_channels == pytest.approx(0.5)
    text = str(network.report).splitlines()
    assert all(
        line.startswith(layer.name) and layer.layout in line for line, layer in zip(text, network.report)
    )
    for layer in network.report:
        assert layer.density == 0.5
        assert layer.density_left == 1


def _every_other(weight: Tensor) -> Tensor:
    mask = torch.zeros_like(weight)
    mask[::2] = 1
    return mask


@pytest.mark.parametrize(("alive", "left"), [(31, 32), (17, 32), (16, 16), (1, 16)])
def test_on_a_cpu_channels_are_left_in_sixteens(
    monkeypatch: pytest.MonkeyPatch, alive: int, left: int
) -> None:
    monkeypatch.undo()
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(32, 4, 1))
    with torch.no_grad():
        model[0].weight[alive:] = 0
    x = torch.randn(2, 3, 5, 5)
    network = sparse(model, x)
    assert [layer.channels.out_after for layer in network.report] == [left, 4]
    assert_same(network, model, x)


def half_dead() -> nn.Sequential:
    """Seventeen of 64 hidden channels are alive."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(64, 4, 1))
    with torch.no_grad():
        model[0].weight[17:] = 0
    return model


@pytest.mark.parametrize(
    ("speeds", "left"),
    [
        ({"all": 1.0, "live": 0.5, "channels": 0.7}, 17),
        ({"all": 1.0, "live": 0.8, "channels": 0.6}, 32),
        ({"all": 1.0, "live": 1.2, "channels": 1.1}, 64),
        ({"all": 1.0, "live": 0.98, "channels": 0.99}, 64),  # within the noise: nothing is removed
    ],
)
def test_auto_removes_channels_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float], left: int
) -> None:
    monkeypatch.setitem(MULTIPLES, "cpu", 16)
    model, x = half_dead(), torch.randn(2, 3, 5, 5)
    network = sparsify(model, example=x, measuring=measuring(**speeds))
    assert [layer.channels.out_after for layer in network.report] == [left, 4]
    assert {"all channels", "live channels", "channels in multiples of 16"} <= set(
        network.report.whole_timings
    )
    assert "all channels" in network.report.whole
    assert_same(network, model, x)


def test_nothing_is_timed_where_no_channel_is_dead() -> None:
    model = half_dead()
    with torch.no_grad():
        model[0].weight.fill_(1)
    network = sparsify(model, example=torch.randn(2, 3, 5, 5), measuring=measuring(live=0.1, channels=0.1))
    assert [layer.channels.out_after for layer in network.report] == [64, 4]
    assert not network.report.whole_timings


def test_the_choice_of_channels_is_remembered() -> None:
    model, x, asked = half_dead(), torch.randn(2, 3, 5, 5), measuring(all=1.0, live=0.5, channels=0.9)
    first = sparsify(model, example=x, measuring=asked)
    again = sparsify(
        model, example=x, measuring=Measuring(QUICK, asked.choices, fake_timer({"all": 0.1, "live": 9}))
    )
    assert (
        [layer.channels.out_after for layer in again.report]
        == [layer.channels.out_after for layer in first.report]
        == [17, 4]
    )


def test_the_model_is_left_as_it_is() -> None:
    model = build_model("convnet-small", 3, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = model.training
    sparse(model, torch.randn(2, 3, 16, 16), masks=random_masks(model, 0.9))
    assert model.training == training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(isinstance(module, SparseConv2d) for module in model.modules())


def conv(outputs: int, inputs: int, kernel: int = 1, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **settings)  # type: ignore[arg-type]


def chain(padding: int) -> nn.Sequential:
    """conv(3 channels) -> ReLU -> conv; channel 1 is dead with bias -2, channel 2 with bias 5."""
    model = nn.Sequential(conv(3, 1), nn.ReLU(), conv(2, 3, 3, padding=padding))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 0, 0]).view(3, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([1.0, -2, 5]))
        model[2].weight.copy_(torch.arange(54.0).view(2, 3, 3, 3))
        model[2].bias.copy_(torch.tensor([0.5, -0.5]))
    return model


def test_constants_by_hand() -> None:
    """relu(-2) = 0 goes; relu(5) goes into the bias: 0.5 + 5 * (18 + ... + 26) = 990.5."""
    network = sparse(chain(padding=0), torch.randn(1, 1, 5, 5))
    first, second = network.convolutions.values()
    assert (first.geometry.out_channels, second.geometry.in_channels) == (1, 1)
    assert first.bias is not None
    assert second.bias is not None
    assert first.bias.tolist() == [1]
    assert second.bias.tolist() == [0.5 + 5 * 198, -0.5 + 5 * (9 * 49)]
    assert torch.equal(
        second.packed.unpack().flatten(), torch.cat([torch.arange(9.0), torch.arange(27.0, 36)])
    )
    layers = network.report.layers
    assert [layer.channels for layer in layers] == [Channels(1, 1, 3, 1), Channels(3, 1, 2, 2)]
    assert network.report.removed_channels == 2 / 5
    assert_same(network, chain(0), torch.randn(2, 1, 7, 6))


def test_a_constant_that_is_padded_stays() -> None:
    """Its border would see zeros, not 5; the zero channel goes all the same."""
    network = sparse(chain(padding=1), torch.randn(1, 1, 5, 5))
    first, second = network.convolutions.values()
    assert first.geometry.out_channels == second.geometry.in_channels == 2
    assert first.bias is not None
    assert first.bias.tolist() == [1, 5]
    assert_same(network, chain(1), torch.randn(2, 1, 7, 6))


def test_what_nobody_reads_goes_back_through_the_chain() -> None:
    """The head reads channel 0 only, which reads channel 1 only, which reads channel 2 only."""
    model = nn.Sequential(
        conv(4, 3), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 4), nn.Flatten(), nn.Linear(16, 2)
    )
    with torch.no_grad():
        for index, reads in ((2, (1, 2)), (4, (0, 1))):
            keep = torch.zeros(4, 4, 1, 1)
            keep[reads] = 1
            keep[1:, 3] = 1  # other channels read channel 3, but nobody reads them
            keep[reads[0], 3] = 0
            model[index].weight.mul_(keep)
        model[6].weight[:, 4:] = 0
    x = torch.randn(2, 3, 2, 2)
    network = sparse(model, x)
    counts = [(layer.channels.in_after, layer.channels.out_after) for layer in network.report]
    assert counts == [(3, 1), (1, 1), (1, 1)]
    assert network.traced.get_submodule("6").in_features == 4
    assert_same(network, model, x)


class Residual(nn.Module):
    """relu(a(x) + b(x)) read by a last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = conv(4, 2), conv(4, 2, bias=False), conv(2, 4, 3, padding=1)
        with torch.no_grad():
            self.a.weight[:2] = 0
            self.a.bias[:] = torch.tensor([-1.0, 1, 1, 1])
            self.b.weight[0] = 0
            self.last.weight[:, 2] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y += self.b(x)
        return self.last(functional.relu(y, inplace=True))


def test_residual_adds_join_channels() -> None:
    """0: constant relu(-1 + 0) = 0, goes. 1: dead in a alone, stays. 2: nobody reads it, goes. 3: stays."""
    model = Residual()
    network = sparse(model, torch.randn(1, 2, 4, 4))
    a, b, last = (network.convolutions[name] for name in ("a", "b", "last"))
    assert (a.geometry.out_channels, b.geometry.out_channels, last.geometry.in_channels) == (2, 2, 2)
    assert torch.equal(b.packed.unpack(), model.b.weight[[1, 3]])
    assert torch.equal(last.packed.unpack(), model.last.weight[:, [1, 3]])
    assert a.relu
    assert not b.relu
    assert_same(network, model, torch.randn(3, 2, 5, 5))


def test_residual_and_relu_are_fused() -> None:
    network = sparse(build_model("resnet18", 2, seed=0), torch.randn(1, 3, 16, 16))
    left = [node.name for node in network.traced.graph.nodes if "relu" in node.name or "add" in node.name]
    assert not left
    fused = [node for node in network.traced.graph.nodes if "residual" in node.kwargs]
    assert len(fused) == 8


def test_depthwise_channels_follow_their_input() -> None:
    """Channel 0 is dead before (zero), 1 dead in the depthwise filter with bias 2, 2 not read after, 3 lives."""
    model = nn.Sequential(
        conv(4, 2),
        nn.ReLU6(),
        conv(4, 4, 3, padding=1, groups=4),
        nn.ReLU6(),
        conv(3, 4),
        nn.ReLU6(),
        conv(1, 3),
    )
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, -1
        model[2].weight[1], model[2].bias[:] = 0, torch.tensor([-1.0, 2, 1, 1])
        model[4].weight[:, 2] = 0
    x = torch.randn(2, 2, 5, 5)
    network = sparse(model, x)
    assert [layer.channels.out_after for layer in network.report][:2] == [1, 1]
    middle, after = (network.convolutions[name] for name in "24")
    assert middle.geometry.groups == middle.geometry.in_channels == 1
    assert torch.equal(middle.packed.unpack(), model[2].weight[3:])
    assert after.bias is not None
    torch.testing.assert_close(after.bias, model[4].bias + 2 * model[4].weight[:, 1].flatten())
    assert_same(network, model, x)


@pytest.mark.parametrize(("multiple", "left"), [(1, 3), (2, 4), (4, 4), (3, 3), (8, 7)])
def test_channels_are_left_in_multiples(multiple: int, left: int) -> None:
    model = nn.Sequential(conv(7, 2), nn.ReLU(), conv(3, 7, 3))
    with torch.no_grad():
        model[0].weight[[0, 2, 3, 6]] = 0
        model[0].bias[:] = torch.tensor([1.0, -1, -1, 5, 1, 1, -1])
    x = torch.randn(2, 2, 5, 5)
    graph = trace(model, x)
    dead = DeadChannels(graph)
    changes = dead.channels(multiple)
    dead.cut(graph, multiple)
    assert changes["0"].out_after == changes["2"].in_after == left
    assert_same(graph, model, x)


def test_an_empty_layer_keeps_one_channel() -> None:
    model = nn.Sequential(conv(4, 3), nn.BatchNorm2d(4), nn.ReLU(), conv(2, 4, 3, padding=1), nn.Flatten())
    scramble_statistics(model)
    x = torch.randn(2, 3, 4, 4)
    masks = {"0.weight": torch.zeros(4, 3, 1, 1), "3.weight": torch.zeros(2, 4, 3, 3)}
    network = sparse(model, x, masks=masks)
    assert [layer.channels.out_after for layer in network.report] == [1, 2]
    assert_same(network, masked(model, masks), x)


class Unusual(nn.Module):
    """What the rules must leave alone or get right: unfolded BatchNorm, grouped and shared layers, views, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = conv(6, 3, 3, bias=False), nn.BatchNorm2d(6)
        self.shared, self.grouped = conv(6, 6), conv(6, 6, 3, groups=2, padding=1)
        self.reflected = conv(6, 6, 3, padding=1, padding_mode="reflect")
        self.strided = conv(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.pool, self.average = nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2, padding=1)
        self.hidden, self.norm1, self.head = nn.Linear(4 * 6 * 8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = functional.relu(self.norm(y))  # y is read twice: not folded
        z = self.shared(torch.sigmoid(self.shared(z))) + y
        z = self.average(self.pool(functional.silu(self.reflected(self.grouped(z)))))
        z = functional.interpolate(z, scale_factor=2.0)
        z = self.dropout(functional.hardswish(self.strided(z)))
        z = z.view(z.shape[0], -1)
        return self.head(
            functional.dropout(functional.relu(self.norm1(self.hidden(z))), training=self.training)
        )


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.95])
def test_unusual_layers(sparsity: float) -> None:
    torch.manual_seed(1)
    model = Unusual()
    scramble_statistics(model)
    masks = {name: (torch.rand_like(weight) >= sparsity) for name, weight in prunable(model).items()}
    masks["first.weight"][2] = False
    masks["hidden.weight"][3] = False
    masks["strided.weight"][1] = False
    x = torch.randn(3, 3, 20, 18)
    network = sparse(model, x, masks=masks)
    assert_same(network, masked(model, masks), x)
    assert_same(fold_dense(masked(model, masks), x), masked(model, masks), x)
    if sparsity == 0.6:
        assert network.traced.get_submodule("hidden").in_features < 4 * 6 * 8
        assert network.traced.get_submodule("hidden").out_features < 8


class InPlace(nn.Module):
    """The second reader of y sees what ReLU wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = conv(3, 2), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.relu(y)
        return z + 2 * y


def test_later_readers_see_what_was_written_in_place() -> None:
    model, x = InPlace(), torch.randn(2, 2, 3, 3)
    assert_same(sparse(model, x), model, x)
    assert model.relu.inplace


class WritesLate(nn.Module):
    """A convolution reads y, then `write` changes y, then both are added: the add may be fused, the write not moved."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.write = conv(4, 2), conv(4, 4), write

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.b(y)
        return functional.relu(z + self.write(y))


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y.tanh_(),
        lambda y: y.div_(3),
        lambda y: y.masked_fill_(y > 0, 2.0),
        lambda y: functional.leaky_relu_(y),
        lambda y: functional.relu(y, True),
        lambda y: torch.sigmoid_(y),
        lambda y: y.mul(torch.logical_not(torch.isnan(y) & torch.isinf(y))),
    ],
)
def test_no_convolution_moves_behind_a_write(write: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = WritesLate(write), torch.randn(2, 2, 3, 3)
    network = sparse(model, x)
    assert [node for node in network.traced.graph.nodes if "residual" in node.kwargs]
    assert_same(network, model, x)


def test_writes_that_a_graph_cannot_show_are_refused() -> None:
    x = torch.randn(2, 2, 3, 3)
    with pytest.raises(TracingError, match="model: fill_ writes in place"):
        sparse(WritesLate(lambda y: y.fill_(2)), x)
    with pytest.raises(TracingError, match="model: add writes to `out`"):
        sparse(WritesLate(lambda y: torch.add(y, 1, out=y)), x)

    class Aliased(nn.Module):
        """torch.fx takes `+=` for a plain addition."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = z = self.conv(x)
            z += 1
            return y + z

    with pytest.raises(TracingError, match="model: its graph computes something else"):
        sparse(Aliased(), x)


@pytest.mark.parametrize("layout", ["dense", "direct"])
def test_one_residual_for_all_images(layout: str) -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.place = conv(4, 2, 3), nn.Parameter(torch.randn(1, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.conv(x) + self.place)

    model, x = Embedded(), torch.randn(3, 2, 5, 5)
    assert_same(sparsify(model, example=x, layout=layout), model, x)


def test_a_memory_format_within_the_model() -> None:
    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = conv(3, 2), conv(2, 3)
            with torch.no_grad():
                self.first.weight[1], self.first.bias[1] = 0, -1

        def forward(self, x: Tensor) -> Tensor:
            y = functional.relu(self.first(x))
            return self.last(y.contiguous(memory_format=torch.channels_last))

    model, x = ChannelsLast(), torch.randn(2, 2, 4, 4)
    network = sparse(model, x)
    assert [layer.channels.out_after for layer in network.report] == [2, 2]
    assert_same(network, model, x)


@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_is_folded(affine: bool) -> None:
    """weight' = weight / sqrt(4 + eps), bias' = (1 - 3) / sqrt(4 + eps), then gamma and beta."""
    model = nn.Sequential(conv(1, 1), nn.BatchNorm2d(1, eps=1e-30, affine=affine))
    with torch.no_grad():
        model[0].weight[:], model[0].bias[:] = 6, 1
        model[1].running_mean[:], model[1].running_var[:] = 3, 4
        if affine:
            model[1].weight[:], model[1].bias[:] = 10, 7
    graph = trace(model, torch.zeros(1, 1, 2, 2))
    assert fold_batchnorm(graph) == ["1"]
    layer = graph.get_submodule("0")
    scale, shift = (10, 7) if affine else (1, 0)
    assert layer.weight.item() == 3 * scale
    assert layer.bias.item() == -1 * scale + shift


def test_batchnorm_without_statistics_is_not_folded() -> None:
    model = nn.Sequential(conv(2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.ReLU(), conv(1, 2))
    x = torch.randn(4, 1, 3, 3)
    assert_same(sparse(model, x), model, x)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if y.sum() > 0 else -y


def test_what_cannot_be_traced_is_named() -> None:
    model = nn.Sequential(conv(3, 3), nn.Sequential(nn.ReLU(), Branching()))
    with pytest.raises(TracingError, match=r"model: 1\.1 \(Branching\) cannot be traced") as caught:
        sparse(model, torch.zeros(1, 3, 4, 4))
    assert isinstance(caught.value, ArgumentError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"example": torch.zeros(3, 4, 4)}, "example: want images"),
        ({"example": torch.zeros(0, 1, 4, 4)}, "example: want images"),
        ({"example": torch.zeros(1, 2, 4, 4)}, r"example: the model does not take \(1, 2, 4, 4\)"),
        ({"layout": "csr"}, "layout: want auto or one of dense"),
        ({"dtype": torch.int8}, r"dtype: want a floating dtype, got torch\.int8"),
        ({"masks": {"0.weight": [1]}}, r"masks: 0\.weight: want a torch tensor, got list"),
        (
            {"masks": {"9.weight": torch.ones(1)}},
            r"masks: 9\.weight names no weight .*\(0\.weight, 2\.weight\)",
        ),
        ({"masks": [torch.ones(1)]}, "masks: want masks by the weights' names, got list"),
        (
            {"masks": {"0.weight": torch.ones(1)}},
            r"masks: 0\.weight has shape \(1,\), the weight \(3, 1, 1, 1\)",
        ),
    ],
)
def test_wrong_arguments(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        sparsify(chain(0), **{"example": torch.zeros(1, 1, 5, 5), **settings})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="model: want a torch module, got function"):
        sparsify(functional.relu, example=torch.zeros(1, 1, 5, 5))  # type: ignore[arg-type]


# What a graph of layers cannot hold is kept or refused by name


def net() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(conv(8, 3, 3), nn.BatchNorm2d(8), nn.ReLU(), conv(4, 8, 3), nn.Linear(6, 5)).eval()
    scramble_statistics(model)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


X = torch.linspace(-1, 1, 2 * 3 * 10 * 10).view(2, 3, 10, 10).sin()


def pre_hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].clamp(-0.2, 0.2),)


def post_hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.clamp(-0.2, 0.2)


@pytest.mark.parametrize("build", [sparse, fold_dense])
@pytest.mark.parametrize("path", ["", "0", "1", "2", "3", "4"])
def test_hooks_are_refused_by_name(path: str, build: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    """Layers are replaced by others; a hook would be gone, or run on a tracer's proxies."""
    for kind, hook in (("forward pre-hook pre_hook", pre_hook), ("forward hook post_hook", post_hook)):
        model = net()
        module = model.get_submodule(path)
        where = f"{path} ({type(module).__name__})" if path else "Sequential"
        register = module.register_forward_pre_hook if hook is pre_hook else module.register_forward_hook
        handle = register(hook)  # type: ignore[operator]
        with pytest.raises(TracingError, match=re.escape(f"model: {where} has the {kind}, which")):
            build(model, X)
        handle.remove()
        assert_same(build(model, X), model, X)


def test_hooks_of_graph_modules_and_of_all_modules_are_refused_too() -> None:
    """A copy of a GraphModule has lost its hooks."""
    nested = nn.Sequential(torch.fx.symbolic_trace(net()), nn.ReLU())
    assert_same(sparse(nested, X), nested, X)
    nested[0].register_forward_hook(post_hook)
    with pytest.raises(TracingError, match=r"model: 0 \(Sequential\) has the forward hook post_hook"):
        sparse(nested, X)
    handle = nn.modules.module.register_module_forward_hook(post_hook)
    try:
        with pytest.raises(TracingError, match="every module has the global forward hook post_hook"):
            sparse(net(), X)
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")
def test_backward_hooks_have_no_part_in_inference() -> None:
    model = nn.Sequential(net(), nn.ReLU())
    model[0].register_full_backward_hook(lambda *_: None)
    model.register_backward_hook(lambda *_: None)  # asks what it takes for a tuple for its first element
    assert_same(sparse(model, X), model, X)


def test_a_replaced_forward_pass_is_followed_or_refused() -> None:
    model = net()
    model[0].forward = types.MethodType(  # type: ignore[method-assign]
        lambda self, x: functional.conv2d(x, 2 * self.weight, self.bias), model[0]
    )
    network = sparse(model, X)
    assert list(network.convolutions) == ["3"]
    assert_same(network, model, X)
    for place in (model[3], model):
        outer = net()[3]
        place.forward = lambda x, outer=outer: outer(x)  # type: ignore[method-assign]
        with pytest.raises(
            TracingError, match=r"model: (3 \(Conv2d\) cannot be traced|Sequential.forward was repl)"
        ):
            sparse(model, X)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_compiled_and_scripted_models() -> None:
    model = net()
    assert_same(sparse(torch.compile(model, backend="eager"), X), model, X)  # type: ignore[arg-type]
    mask = {"_orig_mod.0.weight": torch.zeros(8, 3, 3, 3)}
    network = sparse(torch.compile(model, backend="eager"), X, masks=mask)  # type: ignore[arg-type]
    assert_same(network, masked(model, {"0.weight": torch.zeros(8, 3, 3, 3)}), X)
    with pytest.raises(TracingError, match=r"model: 0 \(TopLevelTracedModule\) is a ScriptModule"):
        sparse(nn.Sequential(torch.jit.trace(model, X)), X)


@pytest.mark.parametrize("name", ["graph", "code", "_graph", "recompile", "meta"])
def test_names_that_fx_keeps_for_itself_are_refused(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, conv(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, name)(x)

    with pytest.raises(TracingError, match=f"keeps the name {name} of its attribute"):
        sparse(Named(), X)


def test_a_sparse_network_is_not_made_sparse_again() -> None:
    with pytest.raises(ArgumentError, match="model: is sparse already"):
        sparse(nn.Sequential(sparse(net(), X)), X)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = net()
    model.last = X.clone().requires_grad_() * 2  # what a forward pass left, with its history
    assert_same(sparse(model, X), model, X)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(TracingError, match=r"model: cannot be copied \(TypeError: cannot pickle"):
        sparse(model, X)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Noisy(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.rand_like(weight)


PARAMETRISED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "twice": lambda layer: [
        parametrize.register_parametrization(layer, "weight", Halved()) for _ in range(2)
    ],
    "bias": lambda layer: parametrize.register_parametrization(layer, "bias", Halved()),
    "weight_norm of before": nn.utils.weight_norm,
    "spectral_norm of before": nn.utils.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune twice": lambda layer: [prune.random_structured(layer, "weight", 0.3, dim=dim) for dim in (0, 1)],
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", PARAMETRISED)
def test_parametrised_weights_are_folded_in_the_copy(name: str) -> None:
    model = net().train()
    for index in (0, 3, 4):
        PARAMETRISED[name](model[index])
    model(X)  # in training: some have state
    model.eval()
    with torch.no_grad():
        before, weight, outputs = state(model), model[0].weight.clone(), model(X)
    network = sparse(model, X)
    assert_same(network, model, X)
    assert type(trace(model, X).get_submodule("0")) is nn.Conv2d
    mask = torch.rand(8, 3, 3, 3) > 0.5
    half = net()
    half.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for index in (0, 3, 4):
            half[index].weight.copy_(model[index].weight)
            half[index].bias.copy_(model[index].bias)
        half[0].weight.copy_(weight * mask)
    assert_same(sparse(model, X, masks={"0.weight": mask}), half, X)
    with torch.no_grad():
        assert torch.equal(model(X), outputs), "the model is left as it is"
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_parametrisations_of_buffers_of_tied_weights_and_at_random() -> None:
    model = nn.Sequential(conv(3, 3), nn.ReLU(), conv(3, 3), nn.BatchNorm2d(3))
    for layer in (model[0], model[2]):
        parametrize.register_parametrization(layer, "weight", Halved())
    model[2].parametrizations.weight.original = model[0].parametrizations.weight.original
    parametrize.register_parametrization(model[3], "running_var", Halved())
    assert_same(sparse(model, X), model, X)
    assert parametrize.is_parametrized(model[0])
    parametrize.register_parametrization(model[2], "weight", Noisy())
    with pytest.raises(TracingError, match=r"the parametrisation of 2\.weight draws random numbers"):
        sparse(model, X)


class Calls(nn.Module):
    """Two convolutions, joined by `function`."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.last, self.function = conv(4, 3), conv(4, 3), conv(2, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.function(self.a(x), self.b(x))))


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: torch.add(a, b, out=None),
        lambda a, b: a * torch.mean(b, (2, 3), True, out=None),
        lambda a, b: torch.clamp(a, 0, 1, out=None) + torch.max(b, 1, keepdim=True, out=None)[0],
    ],
)
def test_no_output_to_write_to_is_none(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Calls(function)
    assert_same(sparse(model, X), model, X)


def test_out_none_is_fused_as_if_it_were_not_there() -> None:
    network = sparse(Calls(lambda a, b: torch.add(a, b, out=None)), X)
    assert [node for node in network.traced.graph.nodes if "residual" in node.kwargs]
    with pytest.raises(TracingError, match="model: add writes to `out`"):
        sparse(Calls(lambda a, b: torch.add(a, b, out=torch.empty(0))), X)


def test_inputs_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop, self.norm, self.last = (
                conv(4, 3),
                nn.Dropout(),
                nn.BatchNorm2d(4),
                conv(2, 4),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(input=self.drop(input=self.conv(input=x)))
            y = functional.dropout(input=y, training=self.training)
            return self.last(input=functional.relu(input=y))

    model = Named()
    scramble_statistics(model)
    network = sparse(model, X)
    assert len(network.convolutions) == 2
    assert_same(network, model, X)


class Tied(nn.Module):
    """`a` and `b` have one weight; `c` is `a` by another name; a function reads the weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 3, 3, padding=1), conv(3, 3, 3, padding=1)
        self.b.weight, self.c = self.a.weight, self.a
        self.norm, self.own = nn.BatchNorm2d(3), nn.Parameter(torch.randn(2, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.b(functional.relu(self.a(x))))
        y = functional.relu(self.c(y) + functional.conv_transpose2d(x, self.a.weight, padding=1))
        return functional.conv2d(y + self.norm.running_var[:, None, None], self.own)


@pytest.mark.parametrize("names", [["a.weight"], ["b"], ["c.weight"], ["a.weight", "b.weight", "own"], []])
@pytest.mark.parametrize("layout", ["dense", "direct"])
def test_a_mask_is_of_the_tensor_under_all_its_names(names: list[str], layout: str) -> None:
    model = Tied()
    scramble_statistics(model)
    mask, own = torch.rand(3, 3, 3, 3) > 0.5, torch.tensor([1, 0, 1]).expand(2, 3).view(2, 3, 1, 1)
    masks = {name: own if name == "own" else mask for name in names}
    wanted = masked(
        model, {name if "." in name or name == "own" else f"{name}.weight": m for name, m in masks.items()}
    )
    network = sparse(model, X, masks=masks, layout=layout)
    assert len(network.convolutions) == 3
    assert_same(network, wanted, X)
    with pytest.raises(
        ArgumentError, match=r"masks: a\.weight and b are one tensor in the model, and their masks differ"
    ):
        sparse(model, X, masks={"a.weight": mask, "b": ~mask})


def test_a_weight_that_a_function_reads_is_not_cut_with_its_layer() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = conv(6, 3, 3)
            with torch.no_grad():
                self.encode.weight[:3], self.encode.bias[:3] = 0, -1

        def forward(self, x: Tensor) -> Tensor:
            return functional.conv_transpose2d(functional.relu(self.encode(x)), self.encode.weight)

    model = Decoder()
    assert_same(sparse(model, X), model, X)


def test_models_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = net(), X.clone()
        network = sparse(model, x, masks={"0.weight": torch.ones(8, 3, 3, 3)})
    assert not any(parameter.is_inference() for parameter in network.parameters())
    assert_same(network, model, x)


def test_a_wide_layer_takes_no_wide_copies() -> None:
    """Of 4096 x 4096 weights, 64 MiB; half of the inputs are constant, half of the outputs dead."""
    model = nn.Sequential(
        conv(16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 4096), nn.BatchNorm1d(4096), nn.ReLU()
    )
    model.append(nn.Linear(4096, 2))
    with torch.no_grad():
        model[0].weight[:8], model[0].bias[:8] = 0, 0.5
        model[3].weight[::2] = 0
    x = torch.randn(1, 3, 16, 16)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as recorded:
        network = sparse(model, x)
    held, peak = 0, 0
    assert recorded.profiler is not None
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert network.traced.get_submodule("3").weight.shape == (2048, 2048)
    assert peak < 4.5 * 2**26, f"{peak / 2**26:.1f} times the weight: one in float64 alone is two"
    assert_same(network, model, x)


# Layouts


def sparse_chain() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(conv(32, 16, 3, padding=1), nn.ReLU(), conv(32, 32, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(torch.rand_like(layer.weight) > 0.97)
            layer.bias.uniform_(1, 2)
    return model, torch.randn(2, 16, 6, 6)


@pytest.mark.parametrize("layout", ["dense", "direct", "block"])
def test_every_layout_gives_the_same(layout: str) -> None:
    model, x = sparse_chain()
    network = sparsify(model, example=x, layout=layout)
    assert network.report.layouts == {layout: 2}
    assert {row.reason for row in network.report} == {"asked for"}
    assert_same(network, model, x)


def test_a_layout_that_refuses_leaves_dense_and_says_why() -> None:
    model = nn.Sequential(conv(8, 4, 17, padding=8), nn.ReLU(), conv(8, 8, 3))
    network = sparsify(model, example=torch.randn(1, 4, 6, 6), layout="direct")
    first, second = network.report.layers
    assert (first.layout, second.layout) == ("dense", "direct")
    assert "takes kernels of at most" in first.reason
    with pytest.raises(LayoutError, match="takes kernels of at most"):
        SparseConv2d.from_dense(model[0], None, "direct")


def test_auto_takes_what_is_faster_and_says_why() -> None:
    model, x = sparse_chain()
    network = sparsify(model, example=x, measuring=measuring(direct=0.5, auto=0.8))
    assert network.report.layouts == {"direct": 2}
    for row in network.report:
        assert row.reason == "2.00x as fast as dense"
        assert row.timings["dense"].p50 == 1
        assert 0 < row.density == row.density_left < 0.05
        assert row.channels.out_after == 32
    assert network.report.whole == "1.25x as fast as dense"
    assert network.report.whole_timings["auto"].p50 == 0.8
    assert_same(network, model, x)


def test_a_network_that_is_not_faster_is_dense() -> None:
    model, x = sparse_chain()
    network = sparsify(model, example=x, measuring=measuring(direct=0.5, auto=0.99))
    assert network.report.layouts == {"dense": 2}
    assert "the whole network was not faster" in network.report.layers[0].reason
    assert network.report.layers[0].timings["dense"].p50 == 1
    assert "within the noise" in network.report.whole
    assert_same(network, model, x)


def order_chain() -> tuple[nn.Sequential, Tensor]:
    """Four layers without epilogues, sparse enough for every layout."""
    torch.manual_seed(0)
    model = nn.Sequential(*(conv(32, 32, 3, padding=1) for _ in range(4)))
    with torch.no_grad():
        for layer in model:
            layer.weight.mul_(torch.rand_like(layer.weight) > 0.97)
    return model, torch.randn(2, 32, 6, 6)


BLOCK = {"block_in": 16, "block_out": 16}


@pytest.mark.parametrize(
    ("speeds", "timed", "winner"),
    [
        # Blocks win each layer, as `direct` copies its input; `direct` throughout is faster.
        ({"block": 0.8, "direct": 0.9, "auto b": 0.5, "auto": 0.8}, {"auto", "auto b"}, "auto b"),
        ({"block": 0.8, "direct": 0.9, "auto b": 0.99, "auto": 0.8}, {"auto", "auto b"}, "auto"),
        # Nothing sparse wins a layer, but comes near.
        ({"block": 1.2, "direct": 1.1, "auto b": 0.5, "auto": 0.8}, set(), "auto"),
        # All layers have the format already, and none is near the other one; or none is near the other one.
        ({"block": 2.5, "direct": 0.8, "auto": 0.8}, {"auto"}, "auto"),
        ({"block": 0.8, "direct": 2.5, "auto": 0.8}, {"auto"}, "auto"),
    ],
)
def test_a_memory_format_that_pays_only_for_all_layers_is_found(
    monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float], timed: set[str], winner: str
) -> None:
    monkeypatch.setattr(
        sparse_conv, "candidates", lambda *_: [("dense", {}), ("block", BLOCK), ("direct", {})]
    )
    monkeypatch.setitem(PASSES, "cpu", ("channels_last", "batch_innermost"))
    model, x = order_chain()
    asked = fake_timer(speeds)
    network = sparsify(model, example=x, measuring=Measuring(QUICK, Choices.in_memory(), asked))
    names = {"auto b": "auto batch_innermost", "auto": "auto"}
    assert network.whole.winner == names[winner]
    assert set(network.report.whole_timings) == {
        "dense" if timed else "",
        *(names[name] for name in timed),
    } - {""}
    assert_same(network, model, x)


@pytest.mark.parametrize(("everywhere", "layers"), [(0.5, 4), (0.9, 1)])
def test_a_layout_that_wins_a_layer_is_tried_in_all(
    monkeypatch: pytest.MonkeyPatch, everywhere: float, layers: int
) -> None:
    """Blocks are offered to the first layer alone; the network is the fastest with blocks in all of them."""
    model, x = order_chain()
    model[0] = conv(32, 32, 1)
    monkeypatch.setattr(
        sparse_conv,
        "candidates",
        lambda weight, geometry, *_: [("dense", {}), *([("block", BLOCK)] if geometry.taps == 1 else [])],
    )
    how = measuring(block=0.8, auto=0.8, everywhere=everywhere)
    network = sparsify(model, example=x, measuring=how)
    assert {"dense", "auto", "everywhere block"} == set(network.report.whole_timings)
    assert network.report.layouts.get("block") == layers
    assert (network.whole.winner == "everywhere block") == (layers == 4)
    assert all(("block everywhere" in layer.reason) == (layers == 4) for layer in network.report)
    assert_same(network, model, x)


def test_choices_are_reused() -> None:
    model, x = sparse_chain()
    calls: list[int] = []

    def timer(candidates: Mapping[str, Callable[[], object]], repeats: int) -> Samples:
        calls.append(repeats)
        return fake_timer({"direct": 0.5, "auto": 0.5})(candidates, repeats)

    choices = Choices.in_memory()
    first = sparsify(model, example=x, measuring=Measuring(QUICK, choices, timer))
    made = len(calls)
    again = sparsify(model, example=x, measuring=Measuring(QUICK, choices, timer))
    assert len(calls) == made > 0
    assert again.report.layouts == first.report.layouts == {"direct": 2}
    assert all(conv.decision.cached for conv in again.convolutions.values())
    sparsify(model, example=torch.cat([x, x]), measuring=Measuring(QUICK, choices, timer))
    assert len(calls) > made, "another shape is measured anew"


def test_layouts_are_measured_on_the_device_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, events and kernels are the current GPU's."""
    current: list[torch.device] = []

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def timer(calls: Mapping[str, Callable[[], object]], repeats: int) -> Samples:
        assert current == [torch.device("cuda:1")]
        return {name: [1.0] * repeats for name in calls}

    monkeypatch.setattr(torch.cuda, "device", on)
    calls = dict.fromkeys(("dense", "direct"), lambda: None)
    how = Measuring(QUICK, Choices.in_memory(), timer)
    assert how.decide("key", calls, torch.device("cuda:1")).timings
    assert not current


def test_a_convolution_measures_at_its_first_input() -> None:
    model, _ = sparse_chain()
    layer = SparseConv2d.from_dense(model[2], relu=True, measuring=measuring(direct=0.1))
    assert (layer.layout, layer.is_prepared) == ("dense", False)
    y, residual = torch.randn(2, 32, 6, 6), torch.randn(2, 32, 6, 6)
    with torch.inference_mode():
        got = layer(y, residual)
        want = functional.relu(model[2](y) + residual)
    assert (layer.layout, layer.is_prepared) == ("direct", True)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(layer.double()(y.double()), functional.relu(model[2](y)).double(), atol=1e-5)
    assert "layout=direct" in repr(layer)


def test_masks_of_a_convolution() -> None:
    layer = conv(4, 3, 3)
    mask = torch.rand_like(layer.weight) > 0.5
    made = SparseConv2d.from_dense(layer, mask, "direct")
    assert torch.equal(made.packed.unpack(), layer.weight * mask)
    with pytest.raises(ArgumentError, match="mask: want shape"):
        SparseConv2d.from_dense(layer, mask[:1])
    with pytest.raises(ArgumentError, match="layout: want auto"):
        SparseConv2d.from_dense(layer, mask, "csr")
    with pytest.raises(ArgumentError, match="settings: layout auto chooses"):
        SparseConv2d.from_dense(layer, mask, block_in=16)
    with pytest.raises(ArgumentError, match="conv: want a Conv2d"):
        SparseConv2d.from_dense(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_network_computes_in_the_dtype_asked_for() -> None:
    model, x = sparse_chain()
    network = sparsify(model, example=x, layout="direct", dtype=torch.float64)
    with torch.inference_mode():
        got = network(x.double())
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, model.double()(x.double()))


@pytest.mark.parametrize("layout", ["dense", "block", "direct"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_network_is_exported(layout: str, strict: bool) -> None:
    model, x = sparse_chain()
    network = sparsify(model, example=x, layout=layout)
    exported = torch.export.export(network, (x,), strict=strict)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), network(x))


def test_dense_is_the_same_network_of_torchs_own_operators() -> None:
    model, x = sparse_chain()
    network = sparsify(model, example=x, layout="direct")
    dense = network.dense()
    assert (network.report.layouts, dense.report.layouts) == ({"direct": 2}, {"dense": 2})
    assert {row.reason for row in dense.report} == {"was direct"}
    assert_same(dense, model, x)
    calls = {
        str(node.target)
        for node in torch.export.export(dense, (x,)).graph.nodes
        if node.op == "call_function"
    }
    assert calls
    assert all(name.startswith("aten.") for name in calls), calls


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_onnx_takes_dense_layouts_and_refuses_others_by_name(
    monkeypatch: pytest.MonkeyPatch, dynamo: bool
) -> None:
    """The exporter's own packages are none of ours: it is asked for its first step, torch.export or tracing."""
    import torch.onnx

    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    model, x = sparse_chain()
    network = sparsify(model, example=x, layout="direct")

    def export(module: nn.Module) -> None:
        if not dynamo:
            torch.jit.trace(module, x)
            return
        torch.export.export(module, (x,), strict=False)
        torch.export.export(module, (x,), strict=True)

    export(network.dense())
    for strict in (False, True) if dynamo else (None,):
        with pytest.raises(
            Exception, match=r"ONNX has no operator for the sparse layouts of 0, 2; export network\.dense"
        ):
            torch.jit.trace(network, x) if strict is None else torch.export.export(
                network, (x,), strict=strict
            )


def test_for_other_runtimes_dead_channels_go_and_plain_layers_stay() -> None:
    model = build_model("resnet8", 10, seed=0).eval()
    with torch.no_grad():
        for name in ("body.layer1.0.conv1.weight", "body.layer1.0.bn1.weight", "body.layer1.0.bn1.bias"):
            model.get_parameter(name)[:5] = 0
    x = torch.randn(2, 3, 16, 16)
    network = without_dead_channels(model, x)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert {type(module) for module in convolutions} == {nn.Conv2d}
    assert sorted(module.out_channels for module in convolutions)[0] == 11
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert_same(network, model, x)


class FakeGraph:
    """A CUDA graph that calls again what it captured."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.replays = call, 0

    def replay(self) -> None:
        self.replays += 1
        self.call()


def test_a_graphed_network_copies_its_input_in(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[FakeGraph] = []
    module = sys.modules[sparsify.__module__]
    written: list[Tensor] = []

    class InPlace(nn.Module):
        """Its output lies where the graph put it."""

        def forward(self, x: Tensor) -> Tensor:
            if not written:
                written.append(torch.empty_like(x))
            return written[0].copy_(2 * x)

    def capture(call: Callable[[], object], repeats: int = 1) -> FakeGraph:
        call()
        graphs.append(FakeGraph(call))
        return graphs[-1]

    monkeypatch.setattr(module, "capture", capture)
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        run = replayed(InPlace(), x)
    for _ in range(2):
        other = torch.randn_like(x).requires_grad_()
        y = run(other)
        assert torch.equal(y, 2 * other)
        assert y is run(other), "the output is the graph's own"
    assert graphs[0].replays == 4
    assert y.stride() == x.stride()
    for wrong in (x[:1], x.double(), x.to("meta")):
        with pytest.raises(
            ArgumentError, match=r"x: the graph takes \(2, 3, 4, 4\) torch.float32 on cpu, got"
        ):
            run(wrong)
    with pytest.raises(ArgumentError, match="x: want a torch tensor"):
        run(None)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "capture", lambda call: None)
    with pytest.raises(ArgumentError, match="network: cannot be captured as a CUDA graph"):
        replayed(InPlace(), x)


def test_on_a_cpu_a_network_is_its_own_graph() -> None:
    model, x = sparse_chain()
    network = sparse(model, x)
    assert network.graphed(x) is network
    with pytest.raises(ArgumentError, match="x: want a torch tensor, got list"):
        network.graphed([1])  # type: ignore[arg-type]


def test_the_report_has_the_times_in_graphs_and_as_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; here its part is called by hand."""
    module = sys.modules[sparsify.__module__]
    model, x = sparse_chain()
    asked = measuring(direct=0.5, auto=0.25, sparse=4.0)
    network = sparsify(model, example=x, measuring=asked)
    assert "measured: dense 1 ms, auto 0.25 ms" in str(network.report)
    assert not network.report.as_called
    module._time_as_called(network, network.dense(), x, asked)
    text = str(network.report)
    assert "in a CUDA graph: dense 1 ms, auto 0.25 ms" in text
    assert "as called from Python: dense 1 ms, sparse 4 ms" in text
    again = sparsify(model, example=x, measuring=asked)
    monkeypatch.setattr(measured, "time_as_called", None)
    module._time_as_called(again, again.dense(), x, Measuring(QUICK, asked.choices))
    assert again.as_called.cached, "it is remembered, and not timed again"
    dense = sparsify(model, example=x, measuring=measuring(direct=2, block=2))
    module._time_as_called(dense, dense.dense(), x, asked)
    assert not dense.report.as_called, "there is nothing to compare"


@pytest.mark.parametrize("layout", ["dense", "direct"])
def test_a_network_compiles_as_one_graph(layout: str) -> None:
    model, x = sparse_chain()
    network = sparsify(model, example=x, layout=layout)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))


def test_fold_dense_keeps_channels_and_fuses() -> None:
    model = build_model("convnet-small", 3, seed=0)
    network = fold_dense(
        masked(model, {"body.0.weight": torch.zeros(32, 3, 4, 4)}), torch.randn(1, 3, 16, 16)
    )
    assert network.report.removed_channels == 0
    assert network.report.layouts == {"dense": 3}
    assert all(conv.relu for conv in network.convolutions.values())


# The file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnet-small", "resnet18", "mobilenet"])
def test_a_saved_network_computes_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = build_model(name, 4, seed=0)
    scramble_statistics(model)
    x = torch.randn(2, 3, 16, 16)
    network = sparsify(
        model,
        example=x,
        masks=random_masks(model, 0.97),
        measuring=measuring(direct=0.5, auto=0.5, channels=0.4),
    )
    assert set(network.report.layouts) & {"direct"}
    save_sparse(network, tmp_path / "net.safetensors")
    again = load_sparse(build_model(name, 4, seed=9), tmp_path / "net.safetensors")
    with torch.inference_mode():
        assert torch.equal(again(x), network(x))
    assert again.report.layouts == network.report.layouts
    assert again.report == network.report


def test_the_file_of_unusual_layers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Unusual().to(memory_format=torch.channels_last)
    scramble_statistics(model)
    masks = {name: (torch.rand_like(weight) >= 0.8) for name, weight in prunable(model).items()}
    x = torch.randn(3, 3, 20, 18)
    network = sparse(model, x, masks=masks)
    save_sparse(network, tmp_path / "net.safetensors")
    again = load_sparse(Unusual(), tmp_path / "net.safetensors")
    with torch.inference_mode():
        assert torch.equal(again(x), network(x))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 16, 16)
    path = tmp_path / "net.safetensors"
    save_sparse(sparse(build_model("convnet-small", 2, seed=0), x), path)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["prunebench_sparse"])
    assert facts["layers"]["body.0"]["layout"] == "dense"
    with pytest.raises(ArgumentError, match="not of the architecture"):
        load_sparse(build_model("resnet18", 2, seed=0), path)
    (tmp_path / "bad").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ArgumentError, match="holds no sparse network"):
        load_sparse(build_model("convnet-small", 2, seed=0), tmp_path / "bad")
    with pytest.raises(ArgumentError, match="network: want what sparsify returns"):
        save_sparse(nn.Linear(1, 1), path)  # type: ignore[arg-type]
