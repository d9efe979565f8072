"""DCWP as released: its pieces against numbers worked by hand, and what the driver makes of both codes' runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import dcwp_reference as reference
import pytest
import torch
from dcwp_reference import GatedNet, ReleasedDcwp, Run, Schedule

from prunebench.models import build_model
from prunebench.pruning.masks import prunable
from prunebench.report.markdown import fill_part

WEIGHTS = 3 * 64 * 16 + 64 * 128 * 16 + 128 * 256 * 16 + 256 * 10


# --- pieces ------------------------------------------------------------------------------------------------


def test_gce_weighs_cross_entropy_by_a_power_of_the_probability() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], requires_grad=True)
    loss = reference.gce_loss(logits, torch.tensor([0, 0]))
    # p = 1/2: .7 * .6156 * .6931 = .2987; p = 3/4: .7 * .8176 * .2877 = .1646
    assert loss.item() == pytest.approx((0.29868 + 0.16465) / 2, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    # the power is held constant: half of .7 p^.7 (p - 1)
    assert gradient[:, 0].tolist() == pytest.approx([-0.10773, -0.07154], abs=1e-5)


def test_a_sampled_gate_compares_its_noise_with_the_squashed_logit() -> None:
    # sigmoid(1.5) = .8176; with a first noise of 1/2 the gate opens from a second of 2^-2.2650 = .2081 on
    logit, half = torch.full((3,), 1.5, requires_grad=True), torch.full((3,), 0.5)
    gate = reference.gate_of_noise(logit, half, torch.tensor([0.207, 0.209, 0.5]))
    assert gate.tolist() == pytest.approx([0, 1, 1])
    (gradient,) = torch.autograd.grad(gate[2], logit)
    # of sigmoid(sigmoid(1.5)) = .69374: .69374 * .30626 * .81757 * .18243
    assert gradient[2].item() == pytest.approx(0.031689, abs=1e-5)


def test_sampled_gates_are_open_as_often_as_released() -> None:
    torch.manual_seed(0)
    for logit, probability in ((1.5, 0.69374), (0.0, 0.62246), (-9.0, 0.50003)):
        share = float(reference.sampled_gate(torch.full((200_000,), logit)).mean())
        assert share == pytest.approx(probability, abs=0.005)


def test_kept_gates_and_native_sparsity_are_those_of_the_threshold() -> None:
    assert reference.threshold_gate(torch.tensor([-0.1, 0.0, 1.5])).tolist() == [0, 1, 1]
    network = GatedNet(10)
    assert network.sparsity() == 0
    with torch.no_grad():
        network.head.logit.fill_(-1e-6)
    assert network.sparsity() == pytest.approx(256 * 10 / WEIGHTS)


def test_contrastive_loss_draws_a_class_to_its_mined_samples() -> None:
    feature = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, -3.0]])
    same, mined = torch.zeros(3, dtype=torch.int64), torch.tensor([False, True, False])
    # first: two others equally near, ln 2; last: cosine -1 against 0, 1 / .07 + e^(-1 / .07); the mined has no positive
    both = (math.log(2) + 1 / 0.07) / 2
    assert reference.contrastive_loss(feature, same, mined).item() == pytest.approx(both, abs=1e-4)
    other_class = torch.tensor([0, 0, 1])
    assert reference.contrastive_loss(feature, other_class, mined).item() == pytest.approx(math.log(2))


def test_contrastive_loss_without_a_positive_is_zero_and_has_gradients() -> None:
    feature = torch.ones(2, 3, requires_grad=True)
    loss = reference.contrastive_loss(feature, torch.tensor([0, 1]), torch.tensor([True, True]))
    loss.backward()
    assert loss.item() == 0
    assert feature.grad is not None
    assert feature.grad.tolist() == [[0.0] * 3] * 2


def test_mined_samples_are_drawn_more_often() -> None:
    torch.manual_seed(0)
    mined = torch.arange(100) < 10
    rows = next(reference.draws(mined, 80.0, 100_000))
    assert float(mined[rows].double().mean()) == pytest.approx(800 / 890, abs=0.005)


def test_epochs_show_every_sample_once() -> None:
    torch.manual_seed(0)
    batches = reference.epochs(5, 2)
    first, second = ([next(batches) for _ in range(3)] for _ in range(2))
    assert [len(rows) for rows in first] == [2, 2, 1]
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == [0, 1, 2, 3, 4]


@torch.no_grad()
def test_the_network_is_the_task_s() -> None:
    own, task_net = GatedNet(10).eval(), build_model("convnet", 10, seed=3).eval()
    weights = list(prunable(task_net).values())
    assert sum(weight.numel() for weight in weights) == WEIGHTS
    for layer, weight in zip(own.gated(), weights, strict=True):
        layer.layer.weight.copy_(weight)
    assert own.head.layer.bias is not None
    own.head.layer.bias.copy_(task_net.head.bias)
    x = torch.rand(4, 3, 28, 28)
    torch.testing.assert_close(own(x)[0], task_net(x), atol=1e-5, rtol=1e-4)


# --- stages ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> ReleasedDcwp:
    torch.manual_seed(0)
    x, y = torch.randint(0, 256, (40, 3, 28, 28), dtype=torch.uint8), torch.arange(40) % 4
    return ReleasedDcwp(x, y, Schedule(2, 2, 3, 2, 16), bf16=False)


def test_learning_gates_moves_gates_alone(tiny: ReleasedDcwp) -> None:
    network = tiny.pretrain()
    before = [weight.detach().clone() for weight in network.weights()]
    tiny.learn_gates(network, tiny.y == 0)
    assert all(torch.equal(old, new) for old, new in zip(before, network.weights()))
    assert all((gate != reference.GATE_START).any() for gate in network.logits_of_gates())


def test_fine_tuning_keeps_gates_and_trains_open_weights(tiny: ReleasedDcwp) -> None:
    network = tiny.pretrain()
    with torch.no_grad():
        for gate in network.logits_of_gates():
            gate.flatten()[::2] = -1.0
    gates = [gate.detach().clone() for gate in network.logits_of_gates()]
    weights = [layer.layer.weight.detach().clone() for layer in network.gated()]
    tiny.finetune(network, tiny.y == 0, 50.0)
    assert all(torch.equal(old, new) for old, new in zip(gates, network.logits_of_gates()))
    for layer, old, gate in zip(network.gated(), weights, gates):
        moved = layer.layer.weight.detach() != old
        assert moved[gate >= 0].any()
        assert not moved[gate < 0].any()


# --- runs and tables ---------------------------------------------------------------------------------------


def run_with(code: str, seed: int, unbiased: float = 0.6, sparsity: float = 0.1) -> Run:
    return Run(
        "digits", 1, 2, 3, 4, 5, "fp32", seed, code, unbiased, unbiased - 0.1, sparsity, 0.9, 0.95
    )  # fmt: skip


def test_the_difference_is_paired_over_the_seeds_that_both_have() -> None:
    runs = [run_with("released", seed, 0.5 + 0.1 * seed) for seed in range(3)]
    runs += [run_with("prunebench", seed, 0.52 + 0.1 * seed, sparsity=0.13) for seed in range(2)]
    released, own, difference = reference.rows_of(runs)
    assert (released.unbiased.mean, own.unbiased.mean) == pytest.approx((0.55, 0.57))
    assert difference.unbiased.n == 2
    assert difference.unbiased.mean == pytest.approx(0.02)
    assert difference.unbiased.half_width == pytest.approx(0, abs=1e-9)
    assert difference.sparsity.mean == pytest.approx(0.03)
    assert reference.rows_of(runs[:3]) == ()


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"unbiased": 0.571}, "yes"),
        ({"unbiased": 0.569}, "no"),
        ({"sparsity": 0.149}, "yes"),
        ({"sparsity": 0.151}, "no"),
        ({"unbiased": math.nan}, "no"),
    ],
)
def test_either_limit_is_a_limit(changes: dict[str, float], verdict: str) -> None:
    runs = [
        run
        for seed in range(2)
        for run in (run_with("released", seed), replace(run_with("prunebench", seed), **changes))  # type: ignore[arg-type]
    ]
    assert reference.rows_of(runs)[2].verdict == verdict


def test_other_schedules_are_other_groups() -> None:
    runs = [run_with(code, 0) for code in ("released", "prunebench")]
    longer = [replace(run, mask=2000) for run in runs]
    text = reference.comparison_markdown(runs + longer)
    assert "mask 3," in text
    assert "mask 2000," in text
    assert reference.comparison_markdown(runs[:1]) == "No pairs of runs yet."


def test_runs_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    runs = [run_with("released", 2), run_with("prunebench", 2), run_with("released", 1)]
    path.write_text(reference.runs_csv(runs))
    assert set(reference.read_runs(path)) == set(runs)
    assert reference.read_runs(tmp_path / "none.csv") == []


def test_the_page_is_what_its_numbers_give() -> None:
    page, runs = (
        reference.PAGE.read_text(encoding="utf-8"),
        reference.read_runs(reference.PAGE.with_suffix(".csv")),
    )
    assert runs
    assert fill_part(page, reference.PART, reference.comparison_markdown(runs)) == page


@pytest.mark.slow
def test_the_driver_runs_both_codes_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {reference.PART}:begin -->\n<!-- {reference.PART}:end -->\n")
    arguments = [
        "--task",
        "colored-digits@2pct",
        "--seed",
        "0",
        "1",
        "--page",
        str(page),
        "--out",
        str(tmp_path),
    ]
    for stage in ("mining", "pretrain", "mask", "finetune"):
        arguments += [f"--{stage}", "2"]
    reference.main([*arguments, "--batch", "16"])
    runs = reference.read_runs(page.with_suffix(".csv"))
    assert [(run.seed, run.code) for run in runs] == [
        (seed, code) for seed in (0, 1) for code in ("prunebench", "released")
    ]
    assert all(0 <= run.unbiased <= 1 and 0 <= run.recall <= 1 for run in runs)
    assert "colored-digits@2pct, seeds 0, 1; steps: mining 2," in page.read_text()

    def never(*_: object) -> Run:
        raise AssertionError("trained again")

    monkeypatch.setattr(reference, "run_released", never)
    monkeypatch.setattr(reference, "run_own", never)
    reference.main([*arguments, "--batch", "16"])
    assert reference.read_runs(page.with_suffix(".csv")) == runs
