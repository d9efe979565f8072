"""The networks: shapes, seeds, memory format, pretrained weights."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunebench.errors import DataError, UsageError
from prunebench.inference.cost import count_macs, count_parameters, narrowed_to
from prunebench.inference.latency import SPARSE_PATH, ready_for_inference
from prunebench.models import MODELS, build_model, identify_model, widened
from prunebench.pruning.masks import prunable

SCALED = ["convnet@0.25", "resnet8@0.5", "resnet20@2", "resnet18@0.125", "mobilenet@0.35"]
FREE = [*(name for name in MODELS if name != "resnet18-pretrained"), *SCALED]


@pytest.mark.parametrize("name", FREE)
def test_features_and_logits(name: str) -> None:
    net = build_model(name, 7, seed=0).eval()
    x = torch.rand(2, 3, 32, 32)
    features = net.features(x)
    assert features.ndim == 2
    assert net(x).shape == (2, 7)
    assert torch.equal(net(x), net.head(features))


@pytest.mark.parametrize("name", FREE)
def test_the_seed_alone_decides_the_weights(name: str) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (build_model(name, 3, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's generator is untouched"
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_convnet_is_the_colored_mnist_net_of_dcwp() -> None:
    net = build_model("convnet", 10, seed=0)
    shapes = [tuple(weight.shape) for name, weight in net.named_parameters() if weight.ndim > 1]
    assert shapes == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (10, 256)]


def test_resnet_stems_differ() -> None:
    cifar, imagenet = (build_model(name, 2, seed=0).body for name in ("resnet18", "resnet18-imagenet"))
    assert cifar.conv1.kernel_size == (3, 3)
    assert imagenet.conv1.kernel_size == (7, 7)


def test_mobilenet_stems_differ() -> None:
    cifar, imagenet = (build_model(name, 2, seed=0).body for name in ("mobilenet", "mobilenet-imagenet"))
    assert cifar.features[0][0].stride == (1, 1)
    assert imagenet.features[0][0].stride == (2, 2)


def test_mobilenet_has_depthwise_convolutions() -> None:
    layers = [
        layer for layer in build_model("mobilenet", 2, seed=0).modules() if isinstance(layer, nn.Conv2d)
    ]
    depthwise = [layer for layer in layers if layer.groups > 1]
    assert (len(layers), len(depthwise)) == (52, 17)
    assert all(layer.groups == layer.in_channels == layer.out_channels for layer in depthwise)


def test_pretrained_weights_are_found_loaded_and_identified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import resnet18

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(DataError, match="no ResNet-18 ImageNet weights"):
        build_model("resnet18-pretrained", 2, seed=0, data_root=tmp_path)
    weights = resnet18(weights=None).state_dict()
    (tmp_path / "weights").mkdir()
    save_file(weights, tmp_path / "weights" / "resnet18-mine.safetensors")
    name = identify_model("resnet18-pretrained", tmp_path)
    assert name.startswith("resnet18-pretrained:")
    net = build_model(name, 2, seed=0, data_root=tmp_path)
    assert torch.equal(net.body.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])
    with pytest.raises(DataError, match="changed since the run was planned"):
        build_model("resnet18-pretrained:000000000000", 2, seed=0, data_root=tmp_path)


def test_unknown_model() -> None:
    with pytest.raises(UsageError, match="did you mean convnet"):
        build_model("convnett", 2, seed=0)


@pytest.mark.parametrize(("name", "parameters"), [("resnet8", 75_290), ("resnet20", 269_722)])
def test_cifar_resnets_have_the_published_size(name: str, parameters: int) -> None:
    """ResNet-20 has the 0.27 M of He et al.'s table 6; shortcuts have no weights."""
    net = build_model(name, 10, seed=0)
    assert count_parameters(net)[0] == parameters
    weights = prunable(net)
    assert len(weights) == int(name.removeprefix("resnet"))
    assert not any("shortcut" in layer for layer in weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SCALED, "resnet8", "resnet20"])
def test_prunable_trains_in_channels_last_and_is_sparsified(name: str) -> None:
    dense, net = build_model(name, 4, seed=0), build_model(name, 4, seed=0)
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in net.parameters() if w.ndim == 4)
    x = torch.rand(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    net(x).square().mean().backward()
    generator = torch.Generator().manual_seed(0)
    for weight in prunable(net).values():
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
        weight.data *= torch.rand(weight.shape, generator=generator) < 0.1
    assert ready_for_inference(dense.eval(), net.eval(), x).path == SPARSE_PATH


def test_width_multiplies_the_channels_and_is_part_of_the_name() -> None:
    half = prunable(build_model("resnet8@0.5", 10, seed=0))
    for name, weight in prunable(build_model("resnet8", 10, seed=0)).items():
        first, last = weight.shape[1] == 3, name == "head.weight"
        assert half[name].shape[0] == weight.shape[0] // (1 if last else 2)
        assert half[name].shape[1] == weight.shape[1] // (1 if first else 2)
    assert identify_model("resnet8@0.50", None) == identify_model("resnet8@.5", None) == "resnet8@0.5"
    assert identify_model("resnet8@1.0", None) == "resnet8"
    assert widened("resnet8@0.5", 0.5) == "resnet8@0.25"
    assert widened("convnet", 1) == "convnet"
    assert build_model("convnet@0.01", 2, seed=0).head.in_features == 3


@pytest.mark.parametrize(
    "name",
    ["resnet8@", "resnet8@0", "resnet8@-1", "resnet8@1e3", "resnet8@nan", "convnet@99", "resnet8@0.5@2"],
)
def test_a_width_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match=r"a number from 0.01 to 16"):
        identify_model(name, None)


def test_pretrained_weights_have_one_width() -> None:
    with pytest.raises(UsageError, match=r"use resnet18-imagenet@0\.5"):
        build_model("resnet18-pretrained@0.5", 2, seed=0)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_narrow_network_costs_what_a_pruned_one_would(share: float) -> None:
    name = narrowed_to("resnet8", share, 10, (32, 32))
    full, narrow = (
        count_macs(build_model(each, 10, seed=0), torch.zeros(1, 3, 32, 32))[0] for each in ("resnet8", name)
    )
    assert narrow / full == pytest.approx(share, rel=0.06)


# --- timm --------------------------------------------------------------------------------------------------


class _TinyTimm(ModuleType):
    """What stands for the library where it is not installed."""

    @staticmethod
    def list_models(pattern: str = "*") -> list[str]:
        return [name for name in ("resnet10t", "vit_tiny") if fnmatch(name, pattern)]

    @staticmethod
    def create_model(name: str, *, pretrained: bool, num_classes: int) -> nn.Module:
        assert (pretrained, num_classes) == (False, 0)
        body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        body.num_features = 6  # type: ignore[assignment]
        return body


def test_timm_models_have_features_and_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", _TinyTimm("timm"))
    net = build_model("timm:resnet10t", 5, seed=0).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(net(x), net.head(net.features(x)))
    assert net.features(x).shape == (2, 6)
    again, other = (build_model("timm:resnet10t", 5, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(value, again[key]) for key, value in net.state_dict().items())
    assert not torch.equal(other["body.0.weight"], again["body.0.weight"])
    assert identify_model("timm:resnet10t", None) == "timm:resnet10t"
    with pytest.raises(UsageError, match="did you mean resnet10t"):
        build_model("timm:resnet10", 5, seed=0)
    with pytest.raises(UsageError, match="cannot be scaled"):
        widened("timm:resnet10t", 0.5)


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"prunebench\[timm\]"):
        identify_model("timm:resnet10t", None)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_models_of_the_real_timm(name: str) -> None:
    pytest.importorskip("timm")
    net = build_model(f"timm:{name}", 3, seed=0).eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(net(x), net.head(net.features(x)))
    assert len(prunable(net)) > 5
