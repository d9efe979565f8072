"""Channels that can be removed: which they are, that the narrower network answers as one with zeros, and its size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunebench.errors import MaskError
from prunebench.inference.cost import count_macs
from prunebench.methods.channels import remove_channels, without_channels
from prunebench.models import build_model, narrowed
from prunebench.pruning.channels import free_channels, norms_behind, with_norms
from prunebench.pruning.masks import prunable


class FakeExperiment:
    """What removal asks of an experiment: networks of a name, and an image."""

    def __init__(self, name: str) -> None:
        self.name, self.train_split, self.images = name, self, self

    def batch(self, _: slice) -> torch.Tensor:
        return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))

    def model_from(self, state: Any) -> nn.Module:
        net = narrowed(build_model(self.name, 10, seed=0), state)
        net.load_state_dict(dict(state))
        return net.eval()


@pytest.mark.parametrize(
    ("name", "free"),
    [("convnet-small", 3), ("resnet8", 3), ("resnet18", 8), ("mobilenet", 17)],
)
def test_a_network_without_channels_answers_as_with_their_zeros(name: str, free: int) -> None:
    experiment: Any = FakeExperiment(name)
    net = build_model(name, 10, seed=0).eval()
    found = free_channels(net)
    assert len(found) >= free
    kept, modules = {}, dict(net.named_modules())
    for each in found:
        channels = modules[each.layer].out_channels
        kept[each] = torch.arange(channels) % 3 != 0
    narrow = without_channels(experiment, net, kept)
    with torch.no_grad():
        for each, mask in kept.items():
            for reader in each.readers:
                weight = modules[reader].weight
                weight[:, ~mask.repeat_interleave(weight.shape[1] // len(mask))] = 0
    x = experiment.batch(slice(0, 1))
    assert torch.allclose(narrow.eval()(x), net(x), atol=1e-4)
    assert count_macs(narrow, x)[0] < 0.8 * count_macs(net, x)[0]


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("name", ["convnet-small", "resnet8"])
def test_the_asked_share_of_products_goes(name: str, uniform: bool) -> None:
    experiment: Any = FakeExperiment(name)
    net = build_model(name, 10, seed=0)
    x = experiment.batch(slice(0, 1))
    scores = {key: weight.detach().abs() for key, weight in prunable(net).items()}
    narrow = remove_channels(experiment, net, scores, 0.5, uniform=uniform)
    left = count_macs(narrow, x)[0] / count_macs(net, x)[0]
    assert 0.42 < left <= 0.5


def test_what_cannot_be_removed_is_said() -> None:
    experiment: Any = FakeExperiment("resnet8")
    net = build_model("resnet8", 10, seed=0)
    scores = {key: weight.detach().abs() for key, weight in prunable(net).items()}
    with pytest.raises(MaskError, match=r"cannot remove 0\.99 of this network's"):
        remove_channels(experiment, net, scores, 0.99)


def test_batch_norm_goes_with_its_filter() -> None:
    net = build_model("resnet8", 10, seed=0)
    norms = norms_behind(net)
    assert norms["body.conv1.weight"] == "body.bn1"
    mask = torch.ones(16, 3, 3, 3, dtype=torch.bool)
    mask[2] = False
    held = with_norms({"body.conv1.weight": mask}, norms)
    assert held["body.bn1.weight"].tolist() == [at != 2 for at in range(16)]
    assert torch.equal(held["body.bn1.bias"], held["body.bn1.weight"])
    assert set(held) == {"body.conv1.weight", "body.bn1.weight", "body.bn1.bias"}
