"""FFW against its formulas in float64: gates, mutual information, and what each part learns from."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_experiment import fitted, tiny_experiment
from torch.nn.functional import cross_entropy

from prunebench.methods.discovery import builtin_methods
from prunebench.methods.experiment import Experiment
from prunebench.methods.ffw import FantasticWeights, GatedWeights, opening
from prunebench.methods.gates import gate_objective, mutual_information
from prunebench.pruning.masks import prunable
from prunebench.training.loop import Batch

F64 = torch.float64


def gated() -> tuple[GatedWeights, Batch, torch.Tensor]:
    experiment = tiny_experiment("ffw")
    seen = GatedWeights(experiment.dense_model(), 2, torch.Generator().manual_seed(0)).train()
    split, index = experiment.train_split, torch.tensor([0, 1, 3, 4, 8])
    return seen, Batch(split.images.batch(index), split.y[index], index, 0), split.bias


def test_openings_and_their_slopes_by_hand() -> None:
    """sigmoid(-ln 3, 0, ln 3) = 1/4, 1/2, 3/4; slopes 2 * 3/16, 2 * 1/4 and, though it is open, 2 * 3/16."""
    s = torch.tensor([-math.log(3), 0.0, math.log(3)], dtype=F64, requires_grad=True)
    found = opening(s)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0, 1.0], dtype=F64))
    found.sum().backward()
    torch.testing.assert_close(s.grad, torch.tensor([0.375, 0.5, 0.375], dtype=F64))
    assert opening(torch.tensor([-1e5, 1e5])).tolist() == [0, 1], "at the lowest temperature"


def test_mutual_information_by_hand() -> None:
    told = torch.tensor([[50.0, 0.0], [0.0, 50.0], [50.0, 0.0], [0.0, 50.0]], dtype=F64)
    assert mutual_information(told, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(1), "all of log 2"
    assert mutual_information(told, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(0, abs=1e-12)
    p = torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], dtype=F64)
    bias = [0, 1, 1, 2]
    joint = [[sum(p[n, j].item() for n in range(4) if bias[n] == k) / 4 for j in range(3)] for k in range(3)]
    expected = 0.0
    for k in range(3):
        for j in range(3):
            apart = sum(joint[k]) * sum(row[j] for row in joint)
            expected += joint[k][j] * math.log(joint[k][j] / apart) / math.log(3)
    assert mutual_information(p.log(), torch.tensor(bias)).item() == pytest.approx(expected)
    more = torch.cat([p.log(), told[:1].repeat(1, 2)[:, :3]])
    among = torch.tensor([True] * 4 + [False])
    assert mutual_information(more, torch.tensor([*bias, 1]), among).item() == pytest.approx(expected)
    assert mutual_information(more, torch.tensor([*bias, 1]), ~among.fill_(True)).item() == pytest.approx(0)


def test_open_gates_leave_the_dense_network_and_others_scale_its_weights() -> None:
    seen, batch, _ = gated()
    features, logits = seen.features_and_logits(batch.x)
    dense = tiny_experiment("ffw").dense_model().eval()
    torch.testing.assert_close(features, dense.features(batch.x))
    torch.testing.assert_close(logits, dense(batch.x))
    seen.temperature = 0.1
    with torch.no_grad():
        for s in seen.gates:
            s.fill_(-0.1 * math.log(3))
    for name, weight in prunable(seen.net).items():
        torch.testing.assert_close(seen.weights()[name], weight / 2)


def test_gates_learn_from_task_and_information_and_the_head_from_its_own_loss() -> None:
    seen, batch, bias = gated()
    gate_objective(bias, lambda logits, batch: cross_entropy(logits, batch.y), 10.0)(seen, batch).backward()
    own = bias[batch.index]
    features, logits = (value.detach().double() for value in seen.features_and_logits(batch.x))
    head = seen.bias_head
    error = (features @ head.weight.detach().double().T + head.bias.detach().double()).softmax(1)
    error = error - torch.eye(2, dtype=F64)[own]
    torch.testing.assert_close(head.weight.grad.double(), error.T @ features / 5, rtol=1e-4, atol=1e-7)
    found = [s.grad.clone() for s in seen.gates]
    seen.zero_grad(set_to_none=True)
    features, logits = seen.features_and_logits(batch.x)
    task = cross_entropy(logits, batch.y)
    (task + 10 * mutual_information(head(features), own)).backward()
    for ours, expected in zip(found, seen.gates):
        torch.testing.assert_close(ours, expected.grad, rtol=1e-4, atol=1e-8)
    assert all(value.grad is None for value in seen.net.parameters())


def test_the_native_network_is_the_dense_one_with_some_weights_closed() -> None:
    experiment, pruned = fitted("ffw-native", None, mask_steps=90, head_steps=4)
    assert experiment.training_steps == 30 + 90 + 9 * 4
    dense = tiny_experiment("ffw-native", None).dense_model().state_dict()
    closed = 0
    for name, value in pruned.model.state_dict().items():
        mask = pruned.masks.get(name)
        torch.testing.assert_close(value, dense[name] if mask is None else dense[name] * mask)
        closed += 0 if mask is None else int((~mask).sum())
    assert closed > 0, "BatchNorm too is as it was"


def test_the_head_begins_each_temperature_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own training leaves that of the last step, which no optimizer of the gates' training clears."""
    left: list[float] = []
    train = Experiment.train

    def watched(self: Experiment, model: GatedWeights, *, name: str, **settings: object) -> object:
        if name == "masks":
            grad = model.bias_head.weight.grad
            left.append(0.0 if grad is None else float(grad.abs().max()))
        return train(self, model, name=name, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Experiment, "train", watched)
    fitted("ffw-native", None, mask_steps=9, head_steps=2)
    assert left == [0.0] * 9


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_ranked_gates_reach_a_sparsity_and_are_fine_tuned(sparsity: float) -> None:
    experiment, _ = fitted("ffw", sparsity, mask_steps=5, head_steps=2)
    assert experiment.training_steps == 30 + 5 + 5 * 2 + 10, "a temperature without steps needs no head"
    assert builtin_methods()["ffw"].supervision == "train-groups"


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="mask_steps"):
        FantasticWeights(mask_steps=0)
