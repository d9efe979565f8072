"""BISE against its formulas, and the narrow network against the gated one."""

from __future__ import annotations

import pytest
import torch
from tiny_experiment import tiny_experiment

from prunebench.methods.bise import (
    BiasInvariantChannels,
    GatedChannels,
    alike_by_group,
    conflicting,
    open_units,
)
from prunebench.methods.discovery import builtin_methods
from prunebench.models import build_model, narrowed
from prunebench.pruning.coupling import coupled_channels, slice_state
from prunebench.pruning.wrapped import state_of

F64 = torch.float64


def gated(model: str = "convnet-small@0.2") -> GatedChannels:
    net = build_model(model, 3, seed=0).eval()
    return GatedChannels(net, coupled_channels(net), 2, torch.Generator().manual_seed(0)).train()


def test_group_weights_are_the_published_ones() -> None:
    """rho = 3/4 of 16 samples aligned, two classes: 1 / (C rho) = 2/3 and (C - 1) / (C (1 - rho)) = 2."""
    y = torch.arange(16) % 2
    bias = torch.where(torch.arange(16) < 12, y, 1 - y)
    found = alike_by_group(2 * y + bias)
    torch.testing.assert_close(found, torch.where(bias == y, 2 / 3, 2.0))
    assert torch.equal(conflicting(y, bias), bias != y)
    assert torch.equal(conflicting(y, 1 - bias), bias != y), "whichever bias a label has most"


def test_gates_open_at_zero_with_the_slope_of_a_sigmoid() -> None:
    """At m = 0 and t = 1/2 the slope is 1/4 over 1/2; at m = -t it is sigmoid'(-1) / t."""
    seen = gated()
    assert bool((seen.openings() == 1).all())
    seen.temperature = 0.5
    with torch.no_grad():
        seen.gates[0][1] = -0.5
    gates = seen.openings()
    assert gates.tolist() == [1, 0, *[1] * (len(gates) - 2)]
    gates[:2].sum().backward()
    assert seen.gates[0].grad[:3].tolist() == pytest.approx([0.5, 2 * 0.1966119, 0.0])


@pytest.mark.parametrize("model", ["convnet-small@0.2", "resnet8@0.5"])
def test_without_closed_channels_the_network_answers_as_through_its_gates(model: str) -> None:
    seen = gated(model)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for layer in seen.net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.bias.data.uniform_(0.1, 1)  # a channel without inputs still writes this
    dense = seen.net(x)
    torch.testing.assert_close(seen.features_and_logits(x)[1], dense)
    with torch.no_grad():
        seen.gates[0].copy_(torch.arange(len(seen.gates[0])) % 3 - 1.0)
    coupling = coupled_channels(seen.net)
    kept = open_units(seen.gates[0].detach(), coupling)
    assert torch.equal(kept, seen.gates[0] >= 0)
    state = slice_state(state_of(seen.net), coupling, kept)
    narrow = narrowed(build_model(model, 3, seed=0), state).eval()
    narrow.load_state_dict(state)
    features, logits = seen.features_and_logits(x)
    torch.testing.assert_close(narrow(x), logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, dense)
    assert int((features.abs().sum(0) == 0).sum()) > 0, "nor does the head on the bias see them"


def test_a_group_keeps_its_best_channel() -> None:
    net = build_model("convnet-small@0.2", 3, seed=0)
    coupling = coupled_channels(net)
    gates = -1 - torch.arange(coupling.count) / 100
    kept = open_units(gates, coupling)
    assert kept.sum() == len(coupling.groups.unique())
    assert kept[0]


def test_native_and_ranked_networks_are_narrower() -> None:
    settings = {"mask_steps": 40, "head_steps": 3, "mask_lr": 0.5, "bias_weight": 20.0}
    experiment = tiny_experiment("bise-native", None)
    split = experiment.train_split
    split._bias = torch.where(
        torch.arange(48) < 40, split.y % 2, 1 - split.y % 2
    )  # one that labels have most
    native = builtin_methods()["bise-native"].with_params(settings).fit(experiment, 0.0)
    assert experiment.training_steps == 30 + 40 + 10 * 3
    assert native.structured
    ranked = tiny_experiment("bise", 0.5)
    pruned = builtin_methods()["bise"].with_params(settings).fit(ranked, 0.5)
    assert ranked.training_steps == 30 + 40 + 10 * 3 + 10
    whole = sum(value.numel() for value in ranked.new_model().parameters())
    for narrow in (native, pruned):
        assert sum(value.numel() for value in narrow.model.parameters()) < whole
    with pytest.raises(ValueError, match="mask_steps"):
        BiasInvariantChannels(mask_steps=0)
