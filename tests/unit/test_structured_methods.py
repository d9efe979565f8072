"""Structured methods against their formulas: by hand, by the reference library, and by differences of the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import RECIPE, run_inline, tiny_suite
from torch import Tensor, nn

from prunebench.errors import UsageError
from prunebench.methods.depgraph import group_norms
from prunebench.methods.filter_norms import filter_norms
from prunebench.methods.fpgm import distances
from prunebench.methods.hrank import HRank
from prunebench.methods.network_slimming import norms_of, with_scale_penalty
from prunebench.methods.taylor_filter import TaylorFilter
from prunebench.models import build_model
from prunebench.pruning.coupling import coupled_channels
from prunebench.results.record import REMOVED_NOTE, RunRecord
from prunebench.training.loop import Batch
from prunebench.training.losses import task_loss

NAMES = (
    "l1-filter", "l2-filter", "random-channels", "depgraph", "network-slimming", "taylor-filter", "fpgm", "hrank",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    suite = tiny_suite("dense", *NAMES, sparsities=(0.5,))
    return run_inline(suite, tmp_path_factory.mktemp("structured"))[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_products_go_and_the_record_says_what_did(name: str, made: dict[str, RunRecord]) -> None:
    record = made[f"{name} 0.5 0"]
    assert record.reason is None
    assert record.cost is not None
    assert record.sparsity is not None
    assert record.sparsity.asked == 0.5
    assert record.notes[REMOVED_NOTE] == pytest.approx(0.5, abs=0.02)
    assert record.cost.nonzero_macs == pytest.approx((1 - record.notes[REMOVED_NOTE]) * record.cost.macs)
    assert 0.3 < record.sparsity.achieved < 0.8
    measuring = {"taylor-filter": 8, "hrank": -(-500 // (3 * RECIPE["batch_size"]))}
    expected = RECIPE["steps"] + RECIPE["finetune_steps"] + measuring.get(name, 0)
    assert record.cost.training_steps == expected


@pytest.mark.slow
def test_no_two_choose_alike(made: dict[str, RunRecord]) -> None:
    assert len({made[f"{name} 0.5 0"].outputs_sha256 for name in NAMES}) == len(NAMES)


def two_filters() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 2, (1, 2), bias=False), nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, -4.0], [-1.0, 0.0]]).view(2, 1, 1, 2))  # type: ignore[union-attr]
        net[2].weight.copy_(torch.tensor([[2.0, 1.0], [0.0, -3.0]]))  # type: ignore[union-attr]
    return net


def test_norms_by_hand() -> None:
    net: Any = two_filters()
    coupling = coupled_channels(net)
    assert filter_norms(net, coupling, 1).tolist() == [7.0, 1.0]
    assert filter_norms(net, coupling, 2).tolist() == [5.0, 1.0]


def test_group_norms_by_hand() -> None:
    """(3^2 + 4^2 + 2^2) / 2 and (1 + 1 + 3^2) / 2, divided by their mean, 10."""
    net = two_filters()
    assert group_norms(net, coupled_channels(net)).tolist() == [14.5 / 10, 5.5 / 10]


@pytest.mark.parametrize("name", ["resnet18", "convnet-small"])
def test_group_norms_are_torch_pruning_s(name: str) -> None:
    tp = pytest.importorskip("torch_pruning")
    net = build_model(name, 10, seed=0).double().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
    coupling = coupled_channels(net)
    ours, names = group_norms(net, coupling), {module: key for key, module in net.named_modules()}
    graph = tp.DependencyGraph().build_dependency(net, torch.rand(1, 3, 32, 32, dtype=torch.float64))
    importance, seen = tp.importance.GroupMagnitudeImportance(p=2), set()
    for group in graph.get_all_groups(ignored_layers=[net.head]):
        units = coupling.written[names[group[0].dep.target.module]]
        theirs = importance(group).double()
        assert torch.allclose(ours[units], theirs, rtol=1e-5)  # theirs are summed in float32
        seen.update(units.tolist())
    assert seen == set(range(coupling.count))


def test_distances_by_hand() -> None:
    assert distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])).tolist() == pytest.approx(
        [5 + 1, 5 + 18**0.5, 1 + 18**0.5], rel=1e-14
    )


def test_the_penalty_adds_its_sign_to_the_gradients_of_scales() -> None:
    """As the released code has it: gamma.grad += 1e-4 * sign(gamma)."""
    net = build_model("convnet-small@0.1", 3, seed=0).double()
    with torch.no_grad():
        for norm in norms_of(net, coupled_channels(net)).values():
            norm.weight.uniform_(-1, 1)
    batch = Batch(torch.rand(8, 3, 16, 16, dtype=torch.float64), torch.arange(8) % 3, torch.arange(8), 0)
    plain = torch.autograd.grad(task_loss(net(batch.x), batch.y), list(net.parameters()))
    found = torch.autograd.grad(with_scale_penalty(net, 1e-4)(net, batch), list(net.parameters()))
    for (name, value), before, after in zip(net.named_parameters(), plain, found):
        scale = isinstance(net.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d) and name.endswith(
            "weight"
        )
        expected = before + (1e-4 * value.sign() if scale else 0)
        assert torch.allclose(after, expected, rtol=1e-6, atol=1e-9), name  # the loss is taken in float32


def test_scales_need_batch_norm() -> None:
    net = two_filters()
    with pytest.raises(UsageError, match="have no BatchNorm"):
        norms_of(net, coupled_channels(net))


class Batches:
    """What scoring asks of an experiment: given batches."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.recipe, self.cost, self.train_split, self.images = self, self, self, self
        self.batch_size, self.own_steps, self.device = 4, 0, torch.device("cpu")

    def batches(self, net: nn.Module, *, steps: int, name: str) -> list[Batch]:
        return [
            Batch(x, y, y, step) for step, (x, y) in enumerate(zip(self.x.chunk(steps), self.y.chunk(steps)))
        ]

    def batch(self, rows: Tensor) -> Tensor:
        return self.x[rows]

    def rng(self, _: str) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return len(self.x)


def narrow_net(name: str = "convnet-small@0.1") -> Any:
    net = build_model(name, 3, seed=0).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -1, 1)
    return net


@pytest.mark.parametrize("name", ["convnet-small@0.1", "resnet8@0.2"])
def test_taylor_is_the_squared_derivative_in_a_gate(name: str) -> None:
    """Gates at 1 behind every BatchNorm, differentiated by themselves."""
    net = narrow_net(name)
    coupling = coupled_channels(net)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    found = TaylorFilter.build(batches=2).worth(Batches(x, y), net, coupling)  # type: ignore[attr-defined]
    norms = norms_of(net, coupling)
    gates = {key: torch.ones(norm.num_features, requires_grad=True) for key, norm in norms.items()}
    for key, norm in norms.items():
        norm.register_forward_hook(lambda _, __, out, key=key: out * gates[key].view(1, -1, 1, 1))
    expected = torch.zeros(coupling.count, dtype=torch.float64)
    for part, labels in zip(x.chunk(2), y.chunk(2)):
        slopes = torch.autograd.grad(task_loss(net(part), labels), list(gates.values()))
        for key, slope in zip(gates, slopes):
            units = coupling.passed[key]
            expected.index_add_(0, units[units >= 0], slope.double()[units >= 0].square() / 2)
    assert torch.allclose(found, expected, rtol=1e-3)


def test_ranks_are_those_of_numpy() -> None:
    import numpy as np

    net, x = narrow_net(), torch.rand(6, 3, 16, 16)
    coupling = coupled_channels(net)
    worth = HRank.build(images=6).worth(Batches(x, torch.zeros(6)), net, coupling)  # type: ignore[attr-defined]
    maps = x
    for at in (0, 3, 6):
        maps = net.body[at + 1](net.body[at](maps)).relu()
        ranks = np.linalg.matrix_rank(maps.detach().numpy()).mean(0)
        assert worth[coupling.written[f"body.{at}"]].tolist() == pytest.approx(ranks.tolist())
