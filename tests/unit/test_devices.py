"""Where tensors lie: every built-in method on a GPU that is pretended, so that no device is mixed with another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_experiment as tiny
import torch
from pretended_gpu import GPU, MixedDevices, Tags, pretended_gpu
from torch import Tensor

from prunebench.methods.discovery import builtin_methods, resolve_method
from prunebench.methods.experiment import Experiment
from prunebench.pruning.masks import verify
from prunebench.training import loop

SHORT = {"mining_steps": 12, "mask_steps": 12, "rounds": 4, "samples": 32}
OTHERS: dict[str, dict[str, Any]] = {
    **{f"magnitude+{name}": {} for name in ("lff", "jtt", "dcwp", "pw-loss", "groupdro", "modad", "disent", "dfr")},
    "shuffled:gmp-pt": {},
    "dcwp": {"mining": "ensemble"},
    "magnitude": {"structure": "filter", "recalibrate": 2},
    "taylor": {"structure": "block:2x3", "schedule": "cubic"},
    "snip": {"structure": "channel"},
    "gmp-ri": {"structure": "2:4"},
}  # fmt: skip
"""Compositions, and settings that take another road."""


@pytest.mark.parametrize(
    "mix",
    [
        lambda ours, theirs: ours + theirs,
        lambda ours, theirs: torch.cat([ours, theirs]),
        lambda ours, theirs: theirs[ours.long()],
        lambda ours, theirs: torch.where(ours > 0, ours, theirs),
        lambda ours, theirs: torch._foreach_mul_([ours], [theirs]),
        lambda ours, theirs: ours.numpy(),
    ],
)
def test_what_a_gpu_refuses_is_refused(mix: Callable[[Tensor, Tensor], object]) -> None:
    with pretended_gpu():
        ours, theirs = torch.zeros(3, device=GPU), torch.zeros(3)
        with pytest.raises(MixedDevices):
            mix(ours, theirs)


def test_what_a_gpu_takes_is_taken() -> None:
    with pretended_gpu():
        ours, theirs = torch.arange(3.0).to(GPU), torch.arange(3)
        results = [ours * torch.tensor(2.0), ours[theirs], ours.clone().copy_(theirs), theirs.to(ours)]
        assert {result.device for result in results} == {GPU}
        assert (ours[theirs] + 1).cpu().numpy().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.to("cpu")]
)
def test_what_waits_is_refused_in_a_captured_step(wait: Callable[[Tensor], object]) -> None:
    with pretended_gpu() as tags:
        x = torch.ones(3, device=GPU)
        wait(x)
        tags.capturing = True
        with pytest.raises(MixedDevices, match="captured"):
            wait(x)


def fit_on_gpu(monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]) -> set[str]:
    """Fit a method on a pretended GPU; gives how its steps are taken: `captured`, `eager`."""
    method, ways, own, tags = resolve_method(name), set(), loop.Training.step, Tags()

    def step(training: loop.Training, x: Tensor, index: Tensor, number: int) -> None:
        marked = getattr(training._objective, "capturable", False)
        captured = marked and loop.holds_known_layers_alone(training.model)
        ways.add("captured" if captured else "eager")
        tags.capturing = captured and number >= loop.WARM_STEPS - 1
        try:
            own(training, x, index, number)
        finally:
            tags.capturing = False

    monkeypatch.setenv("PRUNEBENCH_KERNELS", "torch")
    monkeypatch.setattr(loop.Training, "can_be_captured", False)
    monkeypatch.setattr(loop.Training, "step", step)
    monkeypatch.setattr(tiny, "DEVICE", GPU)
    monkeypatch.setattr(Experiment, "device_rng", Experiment.rng)
    method = method.with_params(
        {key: value for key, value in SHORT.items() if key in method.settings} | settings
    )
    sparsity = None if method.native else 0.0 if method.unpruned or method.dense else 0.8
    monkeypatch.setattr(tiny, "builtin_methods", lambda: {name: method})
    with pretended_gpu(tags):
        experiment = tiny.tiny_experiment(name, sparsity)
        pruned = method.fit(experiment, sparsity or 0.0)
        masks = {weight: mask.to(experiment.device) for weight, mask in pruned.masks.items()}
        verify(pruned.model, masks, None if method.native or pruned.structured else sparsity)
    return ways


EAGER = {"edge-popup", "sr-ste", "top-kast"}
PARTLY_EAGER = {
    "bise", "bise-native", "continuous-sparsification", "disent", "disent-dense", "ffw", "ffw-native", "larreg",
    "larreg-dense", "modad", "modad-dense", "movement", "str", "str-swept",
}  # fmt: skip
"""Methods whose own objective, or network, Python changes from step to step; the dense model's steps are captured."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(builtin_methods()))
def test_methods_mix_no_devices(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nor does a step that is captured wait for the GPU."""
    expected = {"eager"} if name in EAGER else {"captured", "eager"} if name in PARTLY_EAGER else {"captured"}
    assert fit_on_gpu(monkeypatch, name, {}) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_compositions_and_settings_mix_no_devices(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fit_on_gpu(monkeypatch, name, OTHERS[name])
