"""The networks: shapes, seeds, memory format, pretrained weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunebench.errors import DataError, UsageError
from prunebench.models import MODELS, build_model, identify_model

FREE = [name for name in MODELS if name != "resnet18-pretrained"]


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
