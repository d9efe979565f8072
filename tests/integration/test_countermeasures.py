"""Countermeasures on a pruned network: what is calibrated, what is deferred, and what it costs."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers import RECIPE, TASK, run_inline, tiny_suite
from torch import Tensor, nn

import prunebench.runner.evaluate
from prunebench.api import make_plan
from prunebench.errors import UsageError
from prunebench.inference.cascade import Cascade, Deferral, confidence_margin
from prunebench.inference.cost import count_macs, count_parameters
from prunebench.methods.discovery import builtin_methods
from prunebench.methods.mitigations import Deferred, _misplaced, _shift
from prunebench.metrics import margin
from prunebench.models import Classifier, build_model
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.runner.evaluate import TaskData
from prunebench.runner.retime import retime
from prunebench.submission import check_method
from prunebench.suites import Suite
from prunebench.tasks import resolve_task
from prunebench.training.loop import evaluate

NAMES = ("magnitude-calibrated", "gmp-pt-calibrated", "magnitude-deferred", "gmp-pt-deferred")
ATTRIBUTES = "digit-attributes"
Run = tuple[Path, dict[str, RunRecord]]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("classes") / "out"
    return out, run_inline(tiny_suite("magnitude", "magnitude-calibrated", "magnitude-deferred"), out)[1]


@pytest.fixture(scope="module")
def attributes(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("attributes") / "out"
    methods = ("magnitude", "magnitude-calibrated", "magnitude-deferred", "gmp-pt-calibrated")
    suite = Suite("tiny", (ATTRIBUTES,), methods, (0.9,), (0,), recipe=RECIPE)
    return out, run_inline(suite, out)[1]


def data_of(task: str) -> TaskData:
    return TaskData(resolve_task(task), None, 0, torch.device("cpu"))


def model_of(run: Run, name: str, data: TaskData) -> Classifier:
    """The stored network of a run."""
    out, records = run
    record = records[name]
    model = build_model(record.spec["model"], data.task.num_outputs, seed=0)
    model.load_state_dict(Store(out).read_tensors(record.run_id, "model"))
    return model


def deferring(run: Run, data: TaskData) -> Cascade:
    """The two networks of the deferring run, as the record says."""
    threshold = run[1]["magnitude-deferred 0.9 0"].notes["deferral_threshold"]
    assert threshold is not None
    pruned, dense = (model_of(run, name, data) for name in ("magnitude-deferred 0.9 0", "dense 0.0 0"))
    multi_label = data.task.attributes is not None
    return Cascade(pruned, dense, Deferral(threshold), multi_label=multi_label).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    broken = [finding for finding in check_method(name) if not finding.ok]
    assert not broken, "\n".join(f"{finding.what}: {finding.why}" for finding in broken)


def test_they_declare_themselves() -> None:
    for name in NAMES:
        method = builtin_methods()[name]
        assert method.multi_label
        assert method.supervision == "none"
        assert "Iofinova et al., 2023" in method.cite


@pytest.mark.slow
def test_the_calibrated_network_predicts_as_many_positives_as_there_are(attributes: Run) -> None:
    data = data_of(ATTRIBUTES)
    wanted = data.labels.y["val"].long().sum(0)
    for name in ("magnitude-calibrated 0.9 0", "gmp-pt-calibrated 0.9 0"):
        logits = evaluate(model_of(attributes, name, data), data.images["val"])
        assert torch.equal((logits > 0).sum(0), wanted)
        stored = Store(attributes[0]).read_tensors(attributes[1][name].run_id, "outputs")["val_logits"]
        assert torch.equal((stored > 0).sum(0), wanted), "signs survive float16"
        notes = attributes[1][name].notes
        assert notes["calibration_off"] == notes["calibration_left_alone"] == 0
    before = evaluate(model_of(attributes, "magnitude 0.9 0", data), data.images["val"])
    after = evaluate(model_of(attributes, "magnitude-calibrated 0.9 0", data), data.images["val"])
    assert not torch.equal((before > 0).sum(0), wanted)
    changed = attributes[1]["magnitude-calibrated 0.9 0"].notes["calibration_changed"]
    assert changed == int(((before > 0) != (after > 0)).sum())


@pytest.mark.slow
def test_the_calibrated_network_predicts_classes_as_often_as_they_occur(classes: Run) -> None:
    data = data_of(TASK)
    logits = evaluate(model_of(classes, "magnitude-calibrated 0.9 0", data), data.images["val"])
    assert torch.equal(logits.argmax(1).bincount(minlength=10), data.labels.y["val"].bincount(minlength=10))
    notes = classes[1]["magnitude-calibrated 0.9 0"].notes
    before = evaluate(model_of(classes, "magnitude 0.9 0", data), data.images["val"])
    assert notes["calibration_changed"] == int((before.argmax(1) != logits.argmax(1)).sum()) > 0
    assert notes["calibration_off"] == 0


@pytest.mark.parametrize("kind", ["classes", "attributes"])
def test_calibration_moves_the_heads_bias_and_nothing_else(kind: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(kind)
    records = run[1]
    base, calibrated = records["magnitude 0.9 0"], records["magnitude-calibrated 0.9 0"]
    before, after = (Store(run[0]).read_tensors(record.run_id, "model") for record in (base, calibrated))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.bias"}
    assert base.sparsity == calibrated.sparsity
    assert base.cost is not None
    assert calibrated.cost is not None
    for field in ("nonzero_parameters", "nonzero_macs", "training_steps"):
        assert getattr(base.cost, field) == getattr(calibrated.cost, field)


def test_what_validation_says_nothing_of_is_left_alone() -> None:
    logits = torch.tensor([[2.0, -1.0, 3.0], [1.0, -2.0, 1.0], [0.5, -3.0, 2.0]])
    y = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=torch.uint8)
    shift, possible = _shift(logits, y)
    assert shift.tolist() == [-1.5, 0.0, 0.0]
    assert possible.tolist() == [True, False, False]
    assert _misplaced(logits, y, possible) == 2, "the second and third of the first attribute"
    assert _misplaced(logits + shift, y, possible) == 0


def test_the_pruned_network_is_made_once_for_all(classes: Run, attributes: Run) -> None:
    assert len(list((classes[0] / "shared").glob("*.safetensors"))) == 1
    assert len(list((attributes[0] / "shared").glob("*.safetensors"))) == 2, "magnitude's and gmp-pt's"


def test_class_sureness_is_the_margin() -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(confidence_margin(logits, multi_label=False), margin(logits))
    torch.testing.assert_close(
        confidence_margin(logits, multi_label=True),
        margin(logits, multi_label=True).mean(1),
        check_dtype=True,
    )


@pytest.mark.parametrize(
    ("share", "deferred"), [(0.0, 0), (0.24, 1), (0.25, 2), (0.5, 3), (0.9, 5), (1.0, 6)]
)
def test_the_threshold_defers_the_share(share: float, deferred: int) -> None:
    """Of six samples: round(6 share), halves up; 0.9 asks for 5.4."""
    sure = torch.tensor([0.9, 0.1, 0.5, 0.3, 1.0, 0.7])
    threshold = Deferral.of_share(sure, share).threshold
    assert int((sure <= threshold).sum()) == deferred


def test_samples_that_tie_are_deferred_together() -> None:
    assert Deferral.of_share(torch.tensor([0.2, 0.2, 0.2, 0.4]), 0.25).threshold == pytest.approx(0.2)
    low = torch.tensor(0.2, dtype=torch.float64)
    sure = torch.stack([low, torch.nextafter(low, low + 1)])
    assert int((sure <= Deferral.of_share(sure, 0.5).threshold).sum()) == 1


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_other_shares_are_refused_before_anything_is_trained(share: float, tmp_path: Path) -> None:
    suite = tiny_suite("magnitude-deferred", params={"magnitude-deferred": {"share": share}})
    with pytest.raises(UsageError, match="share"):
        make_plan(suite, out=tmp_path)
    with pytest.raises(UsageError, match="share"):
        Deferral.of_share(torch.ones(3), share)


def test_settings_of_the_base_are_settings_of_the_countermeasure(tmp_path: Path) -> None:
    method = builtin_methods()["gmp-pt-deferred"]
    assert method.params == {**builtin_methods()["gmp-pt"].params, "share": 0.1}
    changed = method.with_params({"start": "init", "share": 0.2})
    procedure = changed.build(**changed.params)
    assert isinstance(procedure, Deferred)
    assert procedure.share == 0.2
    assert procedure.base.params == {**builtin_methods()["gmp-ri"].params}
    with pytest.raises(UsageError, match="unknown setting of magnitude-calibrated 'share'"):
        make_plan(
            tiny_suite("magnitude-calibrated", params={"magnitude-calibrated": {"share": 0.1}}), out=tmp_path
        )
    params = {"magnitude-calibrated": {"allocation": "even"}}
    with pytest.raises(UsageError, match="unknown allocation"):
        make_plan(tiny_suite("magnitude-calibrated", params=params), out=tmp_path)


@pytest.mark.parametrize("threshold", [-1.5, 1.01, float("nan")])
def test_other_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="threshold"):
        Deferral(threshold)


class Doubling(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.seen = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x.flatten(1) * self.factor


@pytest.mark.parametrize(
    ("threshold", "first"), [(-1.0, [False] * 3), (0.5, [True, False, True]), (1.0, [True] * 3)]
)
def test_two_stages_by_hand(threshold: float, first: list[bool]) -> None:
    """Surenesses tanh(|a - b| / 2) of two classes: 0.05, 0.96 and 0; undecided ones go to the second network."""
    x = torch.tensor([[1.0, 1.1], [0.0, 4.0], [2.0, 2.0]]).view(3, 2, 1, 1)
    pruned, dense = Doubling(1), Doubling(-10)
    stages = Cascade(pruned, dense, Deferral(threshold), multi_label=False)
    expected = torch.where(torch.tensor(first).unsqueeze(1), x.flatten(1) * -10, x.flatten(1))
    assert torch.equal(stages(x), expected)
    assert (pruned.seen, dense.seen) == (3, sum(first))


@pytest.mark.parametrize("kind", ["classes", "attributes"])
def test_deferral_answers_as_the_two_networks_do(kind: str, request: pytest.FixtureRequest) -> None:
    """The stored logits against both networks run on everything, and torch.where."""
    run: Run = request.getfixturevalue(kind)
    data = data_of(TASK if kind == "classes" else ATTRIBUTES)
    stages, record = deferring(run, data), run[1]["magnitude-deferred 0.9 0"]
    outputs = Store(run[0]).read_tensors(record.run_id, "outputs")
    for split, note in (("val", "deferred_share_validation"), ("test", "deferred_share_test")):
        pruned, dense = (evaluate(net, data.images[split]) for net in (stages.pruned, stages.dense))
        sure = margin(pruned, multi_label=True).mean(1) if kind == "attributes" else margin(pruned)
        unsure = sure <= stages.deferral.threshold
        expected = torch.where(unsure.unsqueeze(1), dense, pruned)
        torch.testing.assert_close(outputs[f"{split}_logits"].float(), expected, rtol=2e-3, atol=2e-3)
        assert record.notes[note] == int(unsure.sum()) / len(unsure)
        if split == "val":
            assert int(unsure.sum()) == round(0.1 * len(unsure))


@pytest.mark.slow
def test_none_deferred_is_the_pruned_run_and_all_deferred_the_dense_one(classes: Run, tmp_path: Path) -> None:
    records = classes[1]
    for share, same in ((0.0, "magnitude 0.9 0"), (1.0, "dense 0.0 0")):
        suite = tiny_suite("magnitude-deferred", params={"magnitude-deferred": {"share": share}})
        mine = run_inline(suite, tmp_path / f"{share}")[1]["magnitude-deferred 0.9 0"]
        assert mine.outputs_sha256 == records[same].outputs_sha256
        assert mine.metrics == records[same].metrics
        assert mine.notes["deferred_share_test"] == share


def test_deferral_is_paid_for(classes: Run) -> None:
    data, (_, records) = data_of(TASK), classes
    stages, record = deferring(classes, data), records["magnitude-deferred 0.9 0"]
    cost, dense, pruned = record.cost, records["dense 0.0 0"].cost, records["magnitude 0.9 0"].cost
    assert cost is not None
    assert dense is not None
    assert pruned is not None
    assert record.sparsity == records["magnitude 0.9 0"].sparsity, "verified on the pruned network"
    assert cost.nonzero_parameters == dense.nonzero_parameters + pruned.nonzero_parameters
    assert cost.nonzero_parameters == count_parameters(stages)[1]
    share = record.notes["deferred_share_test"]
    assert share is not None
    x = data.images["test"].batch(slice(0, 1))
    assert cost.nonzero_macs == count_macs(stages.pruned, x)[1] + round(
        share * count_macs(stages.dense, x)[0]
    )
    assert (cost.parameters, cost.macs) == (dense.parameters, dense.macs)
    assert cost.training_steps == pruned.training_steps == RECIPE["steps"] + RECIPE["finetune_steps"]
    batch = data.images["test"].batch(slice(0, 64))
    deferred = int(stages.unsure(stages.pruned(batch)).sum())
    assert cost.latency_path == f"sparsify: auto; then the dense network on {deferred} of 64"


@pytest.mark.slow
def test_who_never_touched_the_dense_model_is_charged_for_deferring_to_it(tmp_path: Path) -> None:
    params = {name: {"start": "init"} for name in ("gmp-pt-deferred", "gmp-pt-calibrated")}
    _, records = run_inline(tiny_suite(*params, params=params), tmp_path)
    own = RECIPE["steps"] + RECIPE["finetune_steps"]
    costs = {name: records[f"{name} 0.9 0"].cost for name in params}
    assert costs["gmp-pt-calibrated"].training_steps == own  # type: ignore[union-attr]
    assert costs["gmp-pt-deferred"].training_steps == own + RECIPE["steps"]  # type: ignore[union-attr]


def test_both_stages_are_timed(classes: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(TASK)
    stages, seen = deferring(classes, data), {}
    timer = prunebench.runner.evaluate.quietest_latency

    def spy(dense: nn.Module, pruned: nn.Module, x: Tensor) -> object:
        seen.update(dense=dense, pruned=pruned, x=x)
        return timer(dense, pruned, x)

    monkeypatch.setattr(prunebench.runner.evaluate, "quietest_latency", spy)
    cost = prunebench.runner.evaluate.measure_cost(stages.dense, stages, data, 1, 1, deferred_share=0.1)
    timed, x = seen["pruned"], seen["x"]
    assert isinstance(timed, Cascade)
    assert cost.latency_pruned_ms.p50 > 0
    assert sum(cost.latency_layouts.values()) == 3
    with torch.inference_mode():
        torch.testing.assert_close(timed(x), stages(x), rtol=1e-3, atol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in timed.modules()), "both are folded"


def test_latencies_of_both_stages_are_measured_again(classes: Run, tmp_path: Path) -> None:
    results = Path(shutil.copytree(classes[0], tmp_path / "out"))
    before = {record.run_id: record for record in Store(results).records()[0]}
    assert [timed.problem for timed in retime(results, None, "cpu")] == [None] * 4
    for record in Store(results).records()[0]:
        old = before[record.run_id]
        assert replace(record, cost=None) == replace(old, cost=None)
        assert record.cost is not None
        assert record.cost.timed_on["device"] == "cpu"
        changing = {
            "latency_dense_ms",
            "latency_again_ms",
            "latency_clock",
            "latency_wall_spread",
            "latency_pruned_ms",
            "timed_on",
            "latency_layouts",
            "removed_channels",
        }
        mine, theirs = (
            {key: value for key, value in asdict(cost).items() if key not in changing}
            for cost in (record.cost, old.cost)
            if cost is not None
        )
        assert mine == theirs


def test_without_the_dense_models_weights_a_deferring_run_is_left_as_it_is(
    classes: Run, tmp_path: Path
) -> None:
    results = Path(shutil.copytree(classes[0], tmp_path / "out"))
    (results / "runs" / classes[1]["dense 0.0 0"].run_id / "model.safetensors").unlink()
    problems = {timed.record.spec["method"]: timed.problem for timed in retime(results, None, "cpu")}
    assert "the dense model that it defers to" in str(problems["magnitude-deferred"])
    assert problems["magnitude"] is problems["magnitude-calibrated"] is None


USER_FILE = """
from prunebench import method
from prunebench.inference.cascade import Deferral
from prunebench.methods.experiment import Pruned
from prunebench.pruning.masks import make_masks, prunable, apply_masks


@method("mine", cite="nobody")
class Mine:
    def fit(self, experiment, sparsity):
        {body}
        model = experiment.new_model()
        masks = make_masks({{name: w.detach().abs() for name, w in prunable(model).items()}}, sparsity)
        apply_masks(model, masks)
        pruned = experiment.finetune(model, masks)
        return Pruned(pruned.model, pruned.masks, {deferral})
"""


def test_a_users_method_hands_in_a_number_and_no_network(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE.format(body="pass", deferral="Deferral(1.0)"))
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    mine, dense = records["mine 0.9 0"], records["dense 0.0 0"]
    assert mine.status == "ok", mine.traceback
    assert mine.outputs_sha256 == dense.outputs_sha256, "the shared dense model answers, no other"
    assert mine.cost is not None
    assert mine.cost.training_steps == RECIPE["steps"] + RECIPE["finetune_steps"]
    assert mine.cost.nonzero_macs > mine.cost.macs


@pytest.mark.parametrize(
    ("body", "deferral", "complaint"),
    [
        ("pass", "__import__('types').SimpleNamespace(threshold=7)", "want a threshold"),
        ("experiment.log(deferral_threshold=0.5)", "None", "written by the harness"),
    ],
)
def test_what_a_user_cannot_hand_in(tmp_path: Path, body: str, deferral: str, complaint: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE.format(body=body, deferral=deferral))
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    assert records["mine 0.9 0"].status == "failed"
    assert complaint in (records["mine 0.9 0"].reason or "")


def test_the_record_is_plain_json(classes: Run) -> None:
    """The threshold survives the record to the last bit: it decides which samples are deferred."""
    out, records = classes
    record = records["magnitude-deferred 0.9 0"]
    text = json.loads((out / "runs" / record.run_id / "record.json").read_text())
    assert text["notes"]["deferral_threshold"] == record.notes["deferral_threshold"]
    data = data_of(TASK)
    model = model_of(classes, "magnitude-deferred 0.9 0", data)
    sure = confidence_margin(evaluate(model, data.images["val"]), multi_label=False)
    assert Deferral.of_share(sure, 0.1).threshold == record.notes["deferral_threshold"]
