"""Methods whose masks change while they train: each update is what the published rule gives, worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny_experiment import fitted, tiny_experiment

from prunebench.methods.acdc import AlternatingCompression
from prunebench.methods.experiment import Experiment
from prunebench.methods.granet import GradualRegeneration
from prunebench.methods.rigl import DynamicSparseTraining, SparseEvolutionaryTraining
from prunebench.pruning.distribution import layer_counts
from prunebench.pruning.dynamic import wake_kept_zeros
from prunebench.pruning.masks import prunable
from prunebench.pruning.schedule import update_interval


def record_updates(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What each call of `after_step` saw and answered, as copies."""
    seen: list[dict] = []
    train = experiment.train

    def watched(model, *, after_step, **settings):  # type: ignore[no-untyped-def]
        def look(step):  # type: ignore[no-untyped-def]
            before = {
                "step": int(step),
                "masks": {name: mask.clone() for name, mask in step.masks.items()},
                "weights": {name: weight.detach().clone() for name, weight in step.weights.items()},
                "gradients": {name: slope.clone() for name, slope in step.gradients().items()},
                "optimizer": step.optimizer,
                "parameters": step.weights,
            }
            answer = after_step(step)
            seen.append(before | {"after": answer and {name: mask.clone() for name, mask in answer.items()}})
            return answer

        return train(model, after_step=look, **settings)

    monkeypatch.setattr(experiment, "train", watched)
    return seen


def layer_by_hand(
    mask: list[bool], weight: list[float], growth: list[float], share: float
) -> tuple[set[int], set[int]]:
    """Dropped and grown places of one layer, by sorted lists."""
    kept = [at for at, on in enumerate(mask) if on]
    count = int(share * len(kept))
    dropped = set(sorted(kept, key=lambda at: (abs(weight[at]), -at))[:count])
    free = [at for at, on in enumerate(mask) if not on or at in dropped]
    grown = set(sorted(free, key=lambda at: (-abs(growth[at]), at))[:count])
    return dropped, grown


def test_updates_of_rigl_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 steps, updates before step 30: each layer drops int(0.15 (1 + cos(pi t / 30)) n) and grows by gradient."""
    experiment = tiny_experiment("rigl")
    seen = record_updates(experiment, monkeypatch)
    pruned = DynamicSparseTraining(every=4, fewest=5).fit(experiment, 0.8)
    updates = {entry["step"]: entry for entry in seen if entry["after"]}
    assert list(updates) == [4, 8, 12, 16, 20, 24, 28]
    for step, entry in updates.items():
        share = 0.15 * (1 + math.cos(math.pi * step / 30))
        for name, before in entry["masks"].items():
            flat = [entry[key][name].flatten().tolist() for key in ("masks", "weights", "gradients")]
            dropped, grown = layer_by_hand(*flat, share)
            want = before.flatten().clone()
            want[list(dropped)] = False
            want[list(grown)] = True
            assert torch.equal(entry["after"][name].flatten(), want)
    assert torch.equal(pruned.masks["head.weight"], seen[-1]["masks"]["head.weight"])
    shapes = {name: tuple(weight.shape) for name, weight in prunable(pruned.model).items()}
    keep = sum(int(mask.sum()) for mask in pruned.masks.values())
    counts = layer_counts("erk", shapes, keep)
    assert all({name: int(mask.sum()) for name, mask in entry["masks"].items()} == counts for entry in seen)


def test_gradients_that_grow_are_dense_and_new_weights_begin_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_experiment("rigl")
    seen = record_updates(experiment, monkeypatch)
    DynamicSparseTraining(every=4, fewest=5).fit(experiment, 0.8)
    count = 0
    for entry, following in itertools.pairwise(seen):
        if not entry["after"]:
            continue
        for name, mask in entry["masks"].items():
            assert mask.all() or (entry["gradients"][name][~mask] != 0).any()
            grown = entry["after"][name] & ~mask
            # after one step of Adam from zero with clean moments
            slope = following["gradients"][name][grown]
            number = entry["step"] + 1
            first, second = 0.1 * slope / (1 - 0.9**number), 0.001 * slope**2 / (1 - 0.999**number)
            moved = -2e-3 * first / (second.sqrt() + 1e-8)
            assert torch.allclose(following["weights"][name][grown], moved, rtol=1e-3, atol=1e-7)
            count += int(grown.sum())
    assert count > 30


def test_set_grows_at_random_and_drops_as_rigl(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_experiment("set")
    seen = record_updates(experiment, monkeypatch)
    SparseEvolutionaryTraining(every=4, fewest=5).fit(experiment, 0.8)
    noise = experiment.rng("growth")
    for entry in seen:
        if not entry["after"]:
            continue
        share = 0.15 * (1 + math.cos(math.pi * entry["step"] / 30))
        for name, before in entry["masks"].items():
            growth = torch.rand(before.shape, generator=noise)
            flat = [entry[key][name].flatten().tolist() for key in ("masks", "weights")]
            dropped, grown = layer_by_hand(*flat, growth.flatten().tolist(), share)
            assert (
                set((before & ~entry["after"][name]).flatten().nonzero().flatten().tolist())
                == dropped - grown
            )
            assert entry["after"][name].flatten()[list(grown)].all()


def test_rigl_set_and_random_erk_begin_with_the_same_masks() -> None:
    masks = [fitted(name, 0.8, share=0.0)[1].masks for name in ("rigl", "set")]
    masks.append(fitted("random-erk", 0.8)[1].masks)
    assert all(torch.equal(masks[0][name], other[name]) for other in masks[1:] for name in other)


def test_updates_lie_a_hundred_steps_apart_or_closer_in_a_short_training() -> None:
    assert update_interval(24_000, every=100, fewest=60) == 100
    assert update_interval(750, every=100, fewest=60) == 12
    assert update_interval(13, every=100, fewest=60) == 1


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_counts_are_exact_and_masks_hold(name: str) -> None:
    experiment, pruned = fitted(name, 0.95)
    assert experiment.training_steps == 40
    static = fitted("random-erk", 0.95)[1]
    assert any(not torch.equal(pruned.masks[layer], static.masks[layer]) for layer in pruned.masks)


def test_kept_weights_without_a_gradient_are_counted() -> None:
    model = tiny_experiment("set").new_model()
    weight = model.head.weight
    masks = {name: torch.ones_like(one, dtype=torch.bool) for name, one in prunable(model).items()}
    masks["head.weight"][0, 0] = False
    with torch.no_grad():
        weight[0, :2] = 0
    before = weight.detach().clone()
    wake_kept_zeros(model, masks)
    assert weight[0, 0] == 0
    assert weight[0, 1].item() == pytest.approx(1e-12)
    assert torch.equal(weight[1:], before[1:])


# AC/DC


def test_phases_of_ac_dc_are_those_of_the_released_configuration() -> None:
    """CIFAR-10, 200 epochs: sparse from 10, 50, 90, 130, 170; dense from 30, 70, 110, 150."""
    phases = AlternatingCompression().phases(200)
    assert [step for step, sparse in phases.items() if sparse] == [10, 50, 90, 130, 170]
    assert [step for step, sparse in phases.items() if not sparse] == [30, 70, 110, 150]


def test_sparse_phases_hold_the_largest_magnitudes_and_dense_ones_let_all_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = tiny_experiment("ac-dc")
    seen = record_updates(experiment, monkeypatch)
    method = AlternatingCompression()
    pruned = method.fit(experiment, 0.8)
    phases = method.phases(40)
    assert phases == {
        2: True,
        6: False,
        10: True,
        14: False,
        18: True,
        22: False,
        26: True,
        30: False,
        34: True,
    }
    assert {entry["step"]: entry["after"] is not None for entry in seen} == {
        step: step in phases for step in range(1, 41)
    }
    for entry, following in itertools.pairwise(seen):
        if not entry["after"]:
            continue
        kept = torch.cat([mask.flatten() for mask in entry["after"].values()])
        if phases[entry["step"]]:
            values = torch.cat([weight.flatten().abs() for weight in entry["weights"].values()])
            want = torch.zeros_like(kept)
            want[values.argsort(descending=True, stable=True)[: int(kept.sum())]] = True
            assert torch.equal(kept, want), "global, by magnitude"
            assert int(kept.sum()) == kept.numel() - math.floor(0.8 * kept.numel() + 0.5)
        else:
            assert kept.all()
            slope = following["gradients"]["head.weight"]
            change = following["weights"]["head.weight"] - entry["weights"]["head.weight"]
            # the first step of Adam begun anew: the learning rate, by the gradient's sign
            moved = -2e-3 * slope / (slope.abs() + 1e-8)
            assert torch.allclose(change, moved, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(pruned.masks[name], seen[-1]["masks"][name]) for name in pruned.masks)


def test_ac_dc_holds_its_masks() -> None:
    experiment, _ = fitted("ac-dc", 0.95)
    assert experiment.training_steps == 40


# GraNet


def test_granet_prunes_by_the_cubic_and_regenerates_in_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 steps, events every 4, pruning until 24 = 4 int(27.5 / 4); s = 0.8 - 0.3 (1 - t / 24)^3."""
    experiment = tiny_experiment("granet")
    seen = record_updates(experiment, monkeypatch)
    GradualRegeneration(every=4, fewest=10).fit(experiment, 0.8)
    events = {entry["step"]: entry for entry in seen if entry["after"]}
    assert list(events) == list(range(4, 40, 4))
    for step, entry in events.items():
        total = sum(mask.numel() for mask in entry["masks"].values())
        sparsity = 0.8 - 0.3 * (1 - step / 24) ** 3 if step < 24 else 0.8
        keep = total - math.floor(total * sparsity + 0.5)
        assert sum(int(mask.sum()) for mask in entry["after"].values()) == keep
        flat = torch.cat([weight.flatten().abs() for weight in entry["weights"].values()])
        largest = torch.zeros(total, dtype=torch.bool)
        largest[flat.argsort(descending=True, stable=True)[:keep]] = True
        share = 0.005 + 0.495 / 2 * (1 + math.cos(math.pi * step / 40))
        at = 0
        for name, mask in entry["masks"].items():
            held = largest[at : at + mask.numel()] if step <= 24 else mask.flatten()
            at += mask.numel()
            values = [entry[key][name].flatten().tolist() for key in ("weights", "gradients")]
            dropped, grown = layer_by_hand(held.tolist(), *values, share)
            want = held.clone()
            want[list(dropped)] = False
            want[list(grown)] = True
            assert torch.equal(entry["after"][name].flatten(), want)


def test_granet_begins_at_the_asked_sparsity_where_that_is_below_half() -> None:
    experiment, _ = fitted("granet", 0.3)
    assert experiment.training_steps == 40
