"""The contract suite over every method, and what each method promises beyond it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import CRITERION_FILE, METHOD_FILE, RECIPE, TASK, run_inline, tiny_suite, write_careless_method
from tiny_experiment import tiny_experiment

from prunebench.api import execute_plan, make_plan
from prunebench.methods import experiment
from prunebench.methods.dcwp import DebiasedPruning
from prunebench.methods.discovery import builtin_methods
from prunebench.methods.jtt import _worst_and_mean_group, sample_weight
from prunebench.pruning.masks import keep_count, whole_masks
from prunebench.results.record import RunRecord
from prunebench.results.spec import Recipe
from prunebench.results.store import Store
from prunebench.submission import check_method, check_path
from prunebench.tasks import resolve_task

REQUIRED = {
    "dense", "random", "random-layerwise", "magnitude", "magnitude-uniform", "magnitude-erk", "gmp-ri", "gmp-pt",
    "snip", "imp", "lff", "jtt", "mrm", "dcwp", "dcwp-native", "dense-finetuned",
    "dense-from-init", "dense-long", "dense-small", "lff-dense", "jtt-dense", "jtt-tuned",
    "mrm-swept", "dcwp-dense", "dcwp-magnitude-mask", "dcwp-shuffled-mask",
    "random-erk", "synflow", "grasp", "force", "rigl", "set", "ac-dc", "granet", "top-kast", "movement", "edge-popup",
    "str", "str-swept", "continuous-sparsification",
    "l1-filter", "l2-filter", "random-channels", "depgraph", "network-slimming", "taylor-filter", "fpgm", "hrank",
    "wanda", "lamp", "taylor", "woodfisher", "cap", "magnitude-2-4", "sr-ste",
    "pw-loss", "pw-loss-dense", "dfr", "dfr-dense", "groupdro", "groupdro-dense", "modad", "modad-dense", "disent",
    "disent-dense", "fairgrape", "larreg", "larreg-dense", "ffw", "ffw-native",
    "bise", "bise-native", "ceag", "fairprune",
}  # fmt: skip

THOROUGH = {"magnitude", "gmp-ri", "rigl"}
"""Methods that are checked through every setting and all steps here: one of each door, and one whose masks move."""


def test_the_reading_list_is_complete() -> None:
    assert set(builtin_methods()) >= REQUIRED


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_contract(name: str) -> None:
    findings = check_method(name, thorough=name in THOROUGH)
    broken = [finding for finding in findings if not finding.ok]
    assert not broken, "\n".join(f"{finding.what}: {finding.why}" for finding in broken)


def test_random_layerwise_has_the_layer_densities_of_magnitude(tmp_path: Path) -> None:
    _, records = run_inline(tiny_suite("magnitude", "random", "random-layerwise"), tmp_path)
    layers = {name: records[f"{name} 0.9 0"].sparsity for name in ("magnitude", "random", "random-layerwise")}
    assert layers["random-layerwise"].by_layer == layers["magnitude"].by_layer  # type: ignore[union-attr]
    assert layers["random"].by_layer != layers["magnitude"].by_layer  # type: ignore[union-attr]


def test_allocations_differ_in_layers_but_not_in_count(tmp_path: Path) -> None:
    _, records = run_inline(tiny_suite("magnitude", "magnitude-uniform", "magnitude-erk"), tmp_path)
    reports = [
        records[f"{name} 0.9 0"].sparsity for name in ("magnitude", "magnitude-uniform", "magnitude-erk")
    ]
    assert len({report.achieved for report in reports if report}) == 1
    uniform = reports[1].by_layer.values()  # type: ignore[union-attr]
    assert max(uniform) - min(uniform) < 2e-3
    assert len({tuple(report.by_layer.values()) for report in reports if report}) == 3


@pytest.mark.slow
def test_dcwp_ranks_its_logits_and_native_keeps_its_threshold(tmp_path: Path) -> None:
    params = {
        name: {"mining_steps": 12, "mask_steps": 6, "lambda_sparse": 1e-3} for name in ("dcwp", "dcwp-native")
    }
    suite = tiny_suite("dcwp", "dcwp-native", sparsities=(0.5, 0.9), params=params)
    _, records = run_inline(suite, tmp_path)
    assert len(list((tmp_path / "shared").glob("*.safetensors"))) == 2, (
        "mining and masks are computed once for all"
    )
    native = records["dcwp-native None 0"]
    assert native.sparsity is not None
    assert native.sparsity.asked is None
    assert native.sparsity.achieved == pytest.approx(native.notes["native_sparsity"], abs=1e-4)
    for asked in (0.5, 0.9):
        record = records[f"dcwp {asked} 0"]
        assert record.sparsity is not None
        total = 166_656
        assert round((1 - record.sparsity.achieved) * total) == keep_count(total, asked)
        assert record.mining is not None
        assert record.mining.conflicting == 96
        assert record.cost is not None
        assert record.cost.training_steps == 12 + 12 + 6 + 6, "mining, dense, masks, fine-tuning"


@pytest.mark.slow
@pytest.mark.parametrize(
    "switch",
    [{"mining": "early-stop"}, {"sigmoid_before_noise": False}, {"positives_as_coded": False}],
    ids=lambda switch: next(iter(switch)),
)
def test_each_dcwp_switch_changes_the_run(tmp_path: Path, switch: dict[str, object]) -> None:
    base = {"mining_steps": 60, "mask_steps": 12, "early_stop": 0.5}
    hashes = []
    for params in (base, base | switch):
        _, records = run_inline(tiny_suite("dcwp", params={"dcwp": params}), tmp_path / str(len(hashes)))
        hashes.append(records["dcwp 0.9 0"].outputs_sha256)
    assert hashes[0] != hashes[1]


@pytest.mark.slow
def test_imp_shares_its_rounds_between_sparsities(tmp_path: Path) -> None:
    _, records = run_inline(tiny_suite("imp", sparsities=(0.5, 0.6)), tmp_path)
    assert records["imp 0.5 0"].notes["rounds"] == 4, "0.8^4 = 0.41 is the first below 0.5"
    assert records["imp 0.6 0"].notes["rounds"] == 5
    stages = len(list((tmp_path / "shared").glob("*.safetensors")))
    assert stages == 1 + 4, "the rewind point and rounds 1 to 4, once each"
    costs = [records[f"imp {sparsity} 0"].cost for sparsity in (0.5, 0.6)]
    assert costs[1].training_steps - costs[0].training_steps == RECIPE["steps"] - 1  # type: ignore[union-attr]


def test_imp_resumes_where_it_rewinds_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch is seen twice on the way to a network, and the learning rate goes on from the rewind point."""
    drawn: list[torch.Tensor] = []
    firsts: list[int] = []
    draw, train = experiment.draw_batches, experiment.train

    def watched_draw(*args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    def watched_train(model: Any, images: Any, y: Any, batches: torch.Tensor, **kwargs: Any) -> Any:
        firsts.append(kwargs["settings"].first_step)
        assert torch.equal(batches, drawn[-1][firsts[-1] :][: len(batches)])
        return train(model, images, y, batches, **kwargs)

    monkeypatch.setattr(experiment, "draw_batches", watched_draw)
    monkeypatch.setattr(experiment, "train", watched_train)
    _, records = run_inline(tiny_suite("imp", sparsities=(0.5,), params={"imp": {"rewind": 0.25}}), tmp_path)
    assert records["imp 0.5 0"].status == "ok", records["imp 0.5 0"].reason
    assert firsts == [0, 0, *[3] * 4], "dense, rewind point, rounds 1 to 3 and the last"
    assert all(torch.equal(batches[:12], drawn[0]) for batches in drawn), "one order for all"


def test_each_stage_sees_images_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuned twice, a network does not see the same batches twice; another network starts with the first order."""
    seeds = []
    draw = experiment.draw_batches

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        seeds.append(kwargs["generator"].initial_seed())
        return draw(*args, **kwargs)

    monkeypatch.setattr(experiment, "draw_batches", watched)
    made_up = tiny_experiment("magnitude")
    model, other = made_up.dense_model(), made_up.dense_model()
    seeds.clear()
    for network in (model, other, model):
        made_up.finetune(network, whole_masks(network))
    first, other_network, again = seeds
    assert first == other_network
    assert again != first


def test_masks_are_learned_with_adam_s_own_betas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code leaves the optimiser of the masks at its defaults; the networks have (0.9, 0.99)."""
    settings = {}
    train = experiment.train

    def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
        settings[type(model).__name__, kwargs["masks"] is None] = kwargs["settings"]
        return train(model, *args, **kwargs)

    monkeypatch.setattr(experiment, "train", watched)
    params = {"dcwp": {"mining_steps": 4, "mask_steps": 4}, "mrm-swept": {"mask_steps": 4}}
    run_inline(tiny_suite("dcwp", "mrm-swept", params=params), tmp_path)
    assert settings["LearnedMasks", True].betas == settings["DensityMasks", True].betas == (0.9, 0.999)
    recipe = resolve_task(TASK).recipe
    finetuning = settings["Classifier", False]  # of mrm-swept, the last one
    assert finetuning.lr == recipe.lr
    run_inline(tiny_suite("dcwp", params=params | {"dcwp": {**params["dcwp"], "mask_steps": 5}}), tmp_path)
    finetuning = settings["Classifier", False]
    assert finetuning.betas == (0.9, 0.99)
    assert finetuning.lr == pytest.approx(0.1 * recipe.lr)
    assert finetuning.schedule == "constant"


def test_lff_starts_two_different_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    train = experiment.train

    def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(model, torch.nn.ModuleList):
            starts.append([net.head.weight.detach().clone() for net in model])
        else:
            starts.append([model.head.weight.detach().clone()])
        return train(model, *args, **kwargs)

    monkeypatch.setattr(experiment, "train", watched)
    run_inline(tiny_suite("lff"), tmp_path)
    (dense,), (biased, debiased) = starts[:2]
    assert torch.equal(debiased, dense), "the net that is kept has the run's own initial weights"
    assert not torch.equal(biased, debiased)


@pytest.mark.parametrize("steps", [12, 80])
def test_ensemble_mining_runs(tmp_path: Path, steps: int) -> None:
    params = {"dcwp-dense": {"mining": "ensemble", "mining_steps": steps, "ensemble_cut": 0.5}}
    _, records = run_inline(tiny_suite("dcwp-dense", params=params), tmp_path)
    record = records["dcwp-dense 0.0 0"]
    assert record.status == "ok", record.reason
    assert record.mining is not None
    assert record.mining.mined < 4800, "after few steps much is improbable, but not all"
    if steps == 80:
        assert record.mining.precision == 1.0
        assert record.mining.recall > 0.8
    else:
        assert record.mining.mined > 96


def test_ensemble_mining_by_hand() -> None:
    """Seven steps, three to an epoch: 1 - p after steps 3 and 6, each times 3/7; the cut is 0.8."""
    probability = torch.tensor([[0.02, 0.5, 0.9], [0.04, 0.01, 0.9]])
    seen = iter(torch.log(torch.stack([probability, 1 - probability], dim=2)))

    def train(model: Any, *, steps: int, after_step: Any, **settings: Any) -> None:
        for step in range(1, steps + 1):
            assert after_step(step) is None

    class Split(list):  # type: ignore[type-arg]
        y = torch.zeros(3, dtype=torch.int64)

    fake = SimpleNamespace(
        device=torch.device("cpu"),
        recipe=Recipe(steps=1, finetune_steps=1, batch_size=1),
        train_split=Split(range(3)),
        predict=lambda model: next(seen),
        train=train,
    )
    method = DebiasedPruning(mining="ensemble", mining_steps=7)
    mined = method._mine_together(fake, torch.nn.Identity())  # type: ignore[arg-type]
    sums = [(0.98 + 0.96) * 3 / 7, (0.5 + 0.99) * 3 / 7, 0.2 * 3 / 7]
    assert [total > 0.8 for total in sums] == [True, False, False]
    assert mined.tolist() == [True, False, False]
    assert next(seen, None) is None, "looked at twice"


def test_jtt_appends_the_marked_samples() -> None:
    assert sample_weight(torch.tensor([0, 1, 0]).byte(), 20.0).tolist() == [1.0, 21.0, 1.0]


def test_jtt_is_tuned_by_groups(tmp_path: Path) -> None:
    """Groups (0, 0), (0, 1) and (1, 1) with 2 of 2, 1 of 2 and 1 of 1 right."""
    split = SimpleNamespace(y=torch.tensor([0, 0, 0, 0, 1]), bias=torch.tensor([0, 0, 1, 1, 1]))
    right = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1, 1])).float()
    fake = SimpleNamespace(val_balanced=split, predict_balanced=lambda model: right)
    assert _worst_and_mean_group(fake, None) == pytest.approx((0.5, 2.5 / 3))  # type: ignore[arg-type]

    grid = {"identify": [0.25, 0.5], "upweight": [5.0, 50.0]}
    _, records = run_inline(tiny_suite("jtt-tuned", params={"jtt-tuned": grid}), tmp_path)
    record = records["jtt-tuned 0.9 0"]
    assert record.status == "ok", record.reason
    assert record.method["supervision"] == "val-groups"
    assert record.notes["identify"] in grid["identify"]
    assert record.notes["upweight"] in grid["upweight"]
    assert record.cost is not None
    assert record.cost.training_steps == 3 + 6 + 4 * 12 + 6, "two first nets, four second ones, fine-tuning"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("masks = {n: m ^ m for n, m in masks.items()}; apply_masks(model, masks)", "empties the layer"),
        ("masks.popitem()", "masks must cover"),
        ("return __import__('prunebench').Pruned(experiment.dense_model(), masks)", "did not hold"),
        ("model.head.weight.data.fill_(float('nan'))", "not finite|nan"),
    ],
)
def test_masks_that_do_not_hold_fail_the_run(tmp_path: Path, body: str, complaint: str) -> None:
    path = tmp_path / "sloppy.py"
    write_careless_method(path, body)
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    record = records["peeking 0.9 0"]
    assert record.status == "failed"
    assert re.search(complaint, f"{record.reason} {record.traceback}")


def test_a_wrong_count_fails_the_run(tmp_path: Path) -> None:
    path = tmp_path / "sloppy.py"
    text = METHOD_FILE.format(supervision="none", peek="sparsity = sparsity - 0.01")
    path.write_text(text)
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    assert "asked for sparsity 0.9" in (records["peeking 0.9 0"].reason or "")


@pytest.mark.slow
def test_a_diverging_cell_fails_and_the_others_go_on(tmp_path: Path) -> None:
    suite = tiny_suite("magnitude", "gmp-pt", params={"magnitude": {}})
    path = tmp_path / "exploding.py"
    path.write_text(
        METHOD_FILE.format(supervision="none", peek="pass").replace(
            "return experiment.finetune(model, masks)",
            "return experiment.finetune(model, masks, objective=lambda net, batch: net(batch.x).sum() * float('nan'))",
        )
    )
    outcome, records = run_inline(tiny_suite("magnitude", str(path), "gmp-pt"), tmp_path / "out")
    assert (outcome.ok, outcome.failed) == (3, 1)
    assert "nan or infinite" in (records["peeking 0.9 0"].reason or "")
    assert records["gmp-pt 0.9 0"].status == "ok"
    again = make_plan(tiny_suite("magnitude", str(path), "gmp-pt"), out=tmp_path / "out")
    assert [cell.spec.method for cell in again.todo] == ["peeking"], (
        "failures are tried again, never cached as done"
    )
    assert suite.methods == ("magnitude", "gmp-pt")


@pytest.mark.slow
def test_a_failed_dense_model_skips_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench.methods.experiment import Experiment

    def explode(*_: object, **__: object) -> None:
        raise FloatingPointError("the loss was nan")

    suite = tiny_suite("magnitude")
    plan = make_plan(suite, out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "train", explode)
        outcome = execute_plan(plan, workers=0)
    assert outcome.failed == 2
    states = {record.run_spec.method: record.status for record in Store(tmp_path).records()[0]}
    assert states == {"dense": "failed", "magnitude": "skipped"}
    assert execute_plan(make_plan(suite, out=tmp_path), workers=0).ok == 2


@pytest.mark.slow
def test_same_spec_twice_is_identical_and_seeds_differ(tmp_path: Path) -> None:
    suite = tiny_suite("gmp-ri", seeds=(0, 1))
    first, second = (run_inline(suite, tmp_path / name)[1] for name in ("a", "b"))
    for key, record in first.items():
        assert record.metrics == second[key].metrics
        assert record.groups == second[key].groups
        assert record.outputs_sha256 == second[key].outputs_sha256
    assert first["gmp-ri 0.9 0"].outputs_sha256 != first["gmp-ri 0.9 1"].outputs_sha256


@pytest.mark.slow
def test_stored_logits_give_the_recorded_metrics(tmp_path: Path) -> None:
    from prunebench.tasks import resolve_task

    _, records = run_inline(tiny_suite("magnitude"), tmp_path)
    record = records["magnitude 0.9 0"]
    logits = Store(tmp_path).read_tensors(record.run_id, "outputs")["test_logits"]
    assert logits.dtype == torch.float16
    test = resolve_task("colored-digits@2pct").splits(None, 0).test
    assert record.metrics["plain"] == pytest.approx(
        float((logits.argmax(1) == test.y).double().mean()), abs=1e-12
    )


NOISY_FILE = """
import random
import torch
from prunebench import criterion


@criterion("noisy", cite="nobody")
def noisy(weight, context):
    seed = random.SystemRandom().getrandbits(31)
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
"""


@pytest.mark.slow
def test_check_finds_what_is_wrong_with_a_method_file(tmp_path: Path) -> None:
    path = tmp_path / "noisy.py"
    path.write_text(NOISY_FILE)
    failed = [finding.what for finding in check_path(path, thorough=False) if not finding.ok]
    assert failed == ["the same spec twice gives the same numbers"]


def test_a_method_file_edited_during_a_run_fails_its_cells(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CRITERION_FILE)
    plan = make_plan(tiny_suite(str(path)), out=tmp_path / "out")
    path.write_text(CRITERION_FILE.replace("weight.abs()", "-weight.abs()"))
    assert execute_plan(plan, workers=0).failed == 1
    (tmp_path / "broken.py").write_text("def broken(:")
    path.write_text("def broken(:")
    assert execute_plan(plan, workers=0).failed == 1
    reasons = {record.reason for record in Store(tmp_path / "out").records()[0] if record.status == "failed"}
    assert len(reasons) == 1
    assert "cannot be imported: SyntaxError" in str(reasons)


@pytest.mark.slow
def test_a_lost_dense_model_is_trained_again_when_needed(tmp_path: Path) -> None:
    run_inline(tiny_suite("magnitude"), tmp_path)
    before = {record.run_id: record.metrics for record in Store(tmp_path).records()[0]}
    for weights in tmp_path.glob("runs/*/model.safetensors"):
        weights.unlink()
    assert make_plan(tiny_suite("magnitude"), out=tmp_path).todo == [], "nothing needs it"
    outcome, records = run_inline(tiny_suite("magnitude", "random"), tmp_path)
    assert (outcome.ok, outcome.failed) == (2, 0), "dense again, and random"
    assert {
        run_id: record.metrics for run_id, record in _by_id(records).items() if run_id in before
    } == before


def _by_id(records: dict[str, RunRecord]) -> dict[str, RunRecord]:
    return {record.run_id: record for record in records.values()}


def test_logging_inside_a_shared_stage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "logging.py"
    peek = "experiment.shared('stage', lambda: experiment.log(lost=1) or {})"
    path.write_text(METHOD_FILE.format(supervision="none", peek=peek))
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    assert "log and report_mining outside of it" in (records["peeking 0.9 0"].reason or "")


@pytest.mark.slow
def test_no_mixing_of_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import prunebench.runner.execute

    run_inline(tiny_suite("magnitude"), tmp_path)
    monkeypatch.setattr(prunebench.runner.execute, "resolve_precision", lambda precision, device: "fp8")
    _, records = run_inline(tiny_suite("random"), tmp_path)
    assert records["random 0.9 0"].status == "skipped"
    assert "use another --out" in (records["random 0.9 0"].reason or "")
