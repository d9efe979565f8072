"""Whole networks for sparse inference: the same outputs, and only what cannot change them removed."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from prunebench_kernels.errors import ArgumentError, LayoutError
from prunebench_kernels.sparse import module as module_file
from prunebench_kernels.sparse import network as network_file
from prunebench_kernels.sparse.channels import Channels, remove_dead_channels
from prunebench_kernels.sparse.choices import Choices
from prunebench_kernels.sparse.fold import TracingError, fold_batchnorm, trace
from prunebench_kernels.sparse.measured import QUICK, Samples
from prunebench_kernels.sparse.module import Measuring, SparseConv2d
from prunebench_kernels.sparse.network import SparseNetwork, fold_dense, sparsify
from prunebench_kernels.sparse.state import load_sparse, save_sparse
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from prunebench.models import build_model
from prunebench.pruning.masks import prunable

NETWORKS = {"convnet": 28, "convnet-small": 16, "resnet18": 16, "resnet18-imagenet": 32, "mobilenet": 16}
SPARSITIES = (0.0, 0.5, 0.9, 0.98, 0.995)


@pytest.fixture(autouse=True)
def channels_are_counted_singly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets made by hand have few channels: multiples of one, as the rules are."""
    monkeypatch.setitem(network_file.MULTIPLES, "cpu", 1)


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
    monkeypatch.setitem(network_file.MULTIPLES, "cpu", 16)
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
    assert network.graph.get_submodule("6").in_features == 4
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
    left = [node.name for node in network.graph.graph.nodes if "relu" in node.name or "add" in node.name]
    assert not left
    fused = [node for node in network.graph.graph.nodes if "residual" in node.kwargs]
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
    changes = remove_dead_channels(graph, multiple)
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
        assert network.graph.get_submodule("hidden").in_features < 4 * 6 * 8
        assert network.graph.get_submodule("hidden").out_features < 8


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
    assert [node for node in network.graph.graph.nodes if "residual" in node.kwargs]
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
        ({"masks": {"9.weight": torch.ones(1)}}, r"masks: 9\.weight names no convolution .*\(0, 2\)"),
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


# Layouts


def sparse_chain() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(conv(32, 16, 3, padding=1), nn.ReLU(), conv(32, 32, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(torch.rand_like(layer.weight) > 0.97)
            layer.bias.uniform_(1, 2)
    return model, torch.randn(2, 16, 6, 6)


@pytest.mark.parametrize("layout", ["dense", "direct", "compact", "block"])
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


def test_a_memory_format_that_pays_only_for_all_layers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer NCHW wins, as each copies its input; the network in batch_innermost throughout is faster."""
    offered = [("dense", {}), ("direct", {"batch_innermost": 0}), ("direct", {"batch_innermost": 1})]
    monkeypatch.setattr(module_file, "candidates", lambda *_: offered)
    speeds = {"direct batch_innermost=0": 0.8, "direct batch_innermost=1": 0.9}
    model, x = sparse_chain()
    for whole, settings in ((0.5, 1), (0.99, 0)):
        timer = fake_timer({**speeds, "auto batch_innermost": whole, "auto": 0.8})
        network = sparsify(model, example=x, measuring=Measuring(QUICK, Choices.in_memory(), timer))
        assert [row.settings for row in network.report] == [{"batch_innermost": settings}] * 2
        assert network.whole.winner == ("auto batch_innermost" if settings else "auto")
        assert set(network.report.whole_timings) == {"dense", "auto", "auto batch_innermost"}
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
    made = SparseConv2d.from_dense(layer, mask, "compact")
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


@pytest.mark.parametrize("name", ["convnet-small", "resnet18", "mobilenet"])
def test_a_saved_network_computes_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = build_model(name, 4, seed=0)
    scramble_statistics(model)
    x = torch.randn(2, 3, 16, 16)
    network = sparsify(
        model,
        example=x,
        masks=random_masks(model, 0.97),
        measuring=measuring(direct=0.5, compact=0.6, auto=0.5, channels=0.4),
    )
    assert set(network.report.layouts) & {"direct", "compact"}
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
