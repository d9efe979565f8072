"""Unpruned methods, references of equal steps and of equal products, and results with fewer channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import RECIPE, TASK, run_inline, tiny_suite

from prunebench.errors import MaskError, UsageError
from prunebench.inference.cost import count_macs, count_parameters, narrowed_to
from prunebench.leaderboard import build_board
from prunebench.methods.api import method
from prunebench.methods.discovery import builtin_methods
from prunebench.methods.imp import IterativeMagnitude
from prunebench.models import build_model, narrowed
from prunebench.profile.run import ProfileSettings, load_network
from prunebench.results.record import REMOVED_NOTE, RunRecord, removal_problem
from prunebench.results.spec import Recipe
from prunebench.results.store import Store
from prunebench.runner.evaluate import TaskData
from prunebench.runner.plan import expand
from prunebench.runner.retime import retime
from prunebench.submission import check_records
from prunebench.submission.fields import field_problems
from prunebench.submission.reevaluation import evaluate_again
from prunebench.tasks import resolve_task

Run = tuple[Path, dict[str, RunRecord]]
X = torch.zeros(1, 3, 16, 16)
"""As large as the digits."""
DENSE_MACS, DENSE_PARAMETERS = 1_148_160, 167_114


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """References and what they are references of; not to be changed."""
    out = tmp_path_factory.mktemp("references")
    names = ("magnitude", "snip", "imp", "magnitude-deferred")
    names += ("dense-finetuned", "dense-from-init", "dense-long", "dense-small")
    return out, run_inline(tiny_suite(*names, sparsities=(0.0, 0.9)), out)[1]


# --- at sparsity 0 -----------------------------------------------------------------------------------------


def test_an_unpruned_method_runs_once_a_seed() -> None:
    suite = tiny_suite("dense", "lff-dense", "magnitude", sparsities=(0.9, 0.5), seeds=(0, 1))
    runs = [(run.spec.method, run.spec.sparsity) for run in expand(suite, None)]
    assert runs.count(("lff-dense", 0.0)) == runs.count(("dense", 0.0)) == 2
    assert runs.count(("magnitude", 0.5)) == runs.count(("magnitude", 0.9)) == 2
    assert len(runs) == 8


@pytest.mark.slow
def test_the_finetuned_reference_takes_the_very_steps_of_a_pruned_network(made: Run) -> None:
    """Magnitude pruning of no weight is the reference, bit for bit."""
    reference, magnitude = made[1]["dense-finetuned 0.0 0"], made[1]["magnitude 0.0 0"]
    assert reference.outputs_sha256 == magnitude.outputs_sha256
    assert reference.outputs_sha256 != made[1]["dense 0.0 0"].outputs_sha256
    assert reference.sparsity is not None
    assert set(reference.sparsity.by_layer.values()) == {0.0}
    assert reference.cost is not None
    assert reference.cost.training_steps == RECIPE["steps"] + RECIPE["finetune_steps"]


def test_the_reference_from_initialisation_is_snip_of_no_weight(made: Run) -> None:
    reference, snip = made[1]["dense-from-init 0.0 0"], made[1]["snip 0.0 0"]
    assert reference.outputs_sha256 == snip.outputs_sha256 != made[1]["dense-finetuned 0.0 0"].outputs_sha256
    assert reference.cost is not None
    assert reference.cost.training_steps == RECIPE["steps"] + RECIPE["finetune_steps"]


def test_the_long_reference_is_as_long_as_imp(made: Run) -> None:
    long, imp = made[1]["dense-long 0.0 0"].cost, made[1]["imp 0.9 0"].cost
    assert long is not None
    assert imp is not None
    assert long.training_steps == imp.training_steps


def test_steps_of_imp_by_hand() -> None:
    """0.8^3 = 0.51 > 0.5: three rounds of 95 steps between the dense model and a last training of 95 + 40."""
    recipe = Recipe(steps=100, finetune_steps=40, batch_size=8)
    assert IterativeMagnitude().training_steps(recipe, 0.5) == 100 + 5 + 2 * 95 + 95 + 95 + 40


def test_unpruned_and_native_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="declare one"):
        method("both", cite="me", native=True, unpruned=True)(IterativeMagnitude)


def test_an_unpruned_method_must_keep_every_weight(tmp_path: Path) -> None:
    path = tmp_path / "liar.py"
    path.write_text(
        "from prunebench import method, Pruned\n"
        "from prunebench.pruning.masks import whole_masks\n"
        '@method("liar", cite="me", unpruned=True)\n'
        "class Liar:\n"
        "    def fit(self, experiment, sparsity):\n"
        "        model = experiment.dense_model()\n"
        "        masks = whole_masks(model)\n"
        "        masks['head.weight'][0, 0] = False\n"
        "        model.head.weight.data[0, 0] = 0\n"
        "        return Pruned(model, masks)\n"
    )
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    assert "asked for sparsity 0" in (records["liar 0.0 0"].reason or "")


def test_rows_at_sparsity_0_leave_the_board_whole(made: Run) -> None:
    records = [
        record
        for name, record in made[1].items()
        if not name.startswith(("magnitude 0.0", "imp 0.0", "snip 0.0"))
    ]
    (track,) = build_board(records).tracks
    missing = [problem for problem in track.problems if "seeds 1, 2" not in problem]
    assert missing == [], "no method lacks the sparsities that it cannot have"
    ranks = {(row.method, row.sparsity): row.ranks.get("unbiased") for row in track.rows}
    assert {key for key, rank in ranks.items() if rank is not None} <= {
        (name, 0.9) for name in ("magnitude", "imp", "snip")
    }


def test_what_is_not_ranked_says_so(made: Run) -> None:
    unranked = {"magnitude-deferred 0.9 0", "dense-finetuned 0.0 0", "dense-long 0.0 0", "dense-small 0.9 0"}
    for name in unranked | {"magnitude 0.9 0", "dense 0.0 0"}:
        assert made[1][name].method.get("ranked") == ("no" if name in unranked else None)
    record = made[1]["magnitude-deferred 0.9 0"]
    silent = replace(record, method={key: value for key, value in record.method.items() if key != "ranked"})
    assert any(problem.startswith("method.ranked") for problem in field_problems(silent))
    assert "suggested by Iofinova" in record.method["cite"]


def test_debiased_nets_stand_unpruned_too() -> None:
    known = builtin_methods()
    for name in ("lff", "jtt", "dcwp"):
        dense, pruned = known[f"{name}-dense"], known[name]
        assert dense.unpruned
        assert not pruned.unpruned
        assert (dense.version, dense.params, dense.supervision) == (
            pruned.version,
            pruned.params,
            pruned.supervision,
        )


# --- fewer channels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnet-small", "resnet8", "resnet20", "resnet18"])
def test_a_network_is_narrowed_to_the_weights_given(name: str) -> None:
    narrow = build_model(f"{name}@0.3", 10, seed=1).eval()
    again = narrowed(build_model(name, 10, seed=0), narrow.state_dict())
    again.load_state_dict(narrow.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), narrow(x))
    assert count_parameters(again) == count_parameters(narrow)


def test_depthwise_layers_stay_depthwise() -> None:
    narrow = build_model("mobilenet@0.5", 4, seed=0)
    again = narrowed(build_model("mobilenet", 4, seed=0), narrow.state_dict())
    again.load_state_dict(narrow.state_dict())
    assert again.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 4)
    assert count_macs(again, X) == count_macs(narrow, X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("body.0.weight"), "body.0.weight: the network lacks it"),
        (
            lambda state: state.update({"head.weight": torch.zeros(11, 128)}),
            "head.weight: shape .* is no part",
        ),
        (lambda state: state.update({"body.0.weight": torch.zeros(32, 3, 2, 2)}), "body.0: a Conv2d cannot"),
    ],
)
def test_what_no_narrowing_gives(change: object, message: str) -> None:
    state = build_model("convnet-small", 10, seed=0).state_dict()
    change(state)  # type: ignore[operator]
    with pytest.raises(MaskError, match=message):
        narrowed(build_model("convnet-small", 10, seed=0), state)


def test_the_small_reference_is_measured_against_the_task_s_network(made: Run) -> None:
    record = made[1]["dense-small 0.9 0"]
    name = narrowed_to("convnet-small", 0.1, 10, (16, 16))
    small = build_model(name, 10, seed=0)
    macs = count_macs(small, X)[0]
    assert record.cost is not None
    assert record.sparsity is not None
    assert (record.cost.parameters, record.cost.macs) == (DENSE_PARAMETERS, DENSE_MACS)
    assert (record.cost.nonzero_parameters, record.cost.nonzero_macs) == (count_parameters(small)[0], macs)
    assert record.notes[REMOVED_NOTE] == 1 - macs / DENSE_MACS == pytest.approx(0.9, abs=0.01)
    weights = sum(w.numel() for w in small.parameters() if w.ndim > 1)
    assert record.sparsity.achieved == pytest.approx(1 - weights / 166_656)
    assert record.sparsity.asked == 0.9
    assert record.cost.training_steps == RECIPE["steps"] + RECIPE["finetune_steps"]


def test_stored_weights_of_fewer_channels_answer_as_recorded(made: Run) -> None:
    out, records = made
    record, store = records["dense-small 0.9 0"], Store(out)
    settings = ProfileSettings(model="convnet-small", run=record.run_id, results=out)
    net = load_network(settings)
    state = store.read_tensors(record.run_id, "model")
    by_name = build_model(narrowed_to("convnet-small", 0.1, 10, (16, 16)), 10, seed=0).eval()
    by_name.load_state_dict(state)
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(net(x), by_name(x))


def test_records_of_fewer_channels_are_sound_and_can_be_timed_again(made: Run) -> None:
    assert [finding for finding in check_records(made[0]) if not finding.ok] == []
    timed = {entry.record.run_id: entry for entry in retime(made[0], None, "cpu")}
    entry = timed[made[1]["dense-small 0.9 0"].run_id]
    assert entry.problem is None
    assert entry.record.cost is not None
    assert entry.record.cost.timed_on
    assert entry.record.cost.macs == DENSE_MACS


def test_a_verifier_evaluates_fewer_channels_again(made: Run) -> None:
    record = made[1]["dense-small 0.9 0"]
    data = TaskData(resolve_task(TASK), None, 0, torch.device("cpu"))
    again = evaluate_again(Store(made[0]), record, data, None, timed=False)
    assert again["changed"] == 0
    assert again["metrics"] == pytest.approx(record.metrics, nan_ok=True)
    assert record.sparsity is not None
    assert again["zeros"] == pytest.approx(record.sparsity.by_layer)


def test_a_record_cannot_claim_channels_that_it_kept(made: Run) -> None:
    record = made[1]["magnitude 0.9 0"]
    claimed = replace(record, notes={REMOVED_NOTE: 0.9})
    assert any("notes.removed_macs" in problem for problem in field_problems(claimed))
    small = made[1]["dense-small 0.9 0"]
    assert small.sparsity is not None
    missed = replace(
        small, spec={**small.spec, "sparsity": 0.95}, sparsity=replace(small.sparsity, asked=0.95)
    )
    assert any("asked to remove 0.95" in problem for problem in field_problems(missed))


@pytest.mark.parametrize(
    ("asked", "removed", "fits"),
    [(None, 0.2, True), (0.9, 0.9, True), (0.9, 0.868, True), (0.9, 0.86, False), (0.99, 0.9924, True)],
)
def test_whole_channels_leave_a_third_more_or_less(asked: float | None, removed: float, fits: bool) -> None:
    assert (removal_problem(asked, removed) is None) is fits


CHANNELS = """
import torch
from prunebench import method, Pruned
from prunebench.pruning.masks import whole_masks

@method("half-channels", cite="an example")
class HalfChannels:
    def fit(self, experiment, sparsity):
        state = experiment.dense_model().state_dict()
        state = {{name: value.clone() for name, value in state.items()}}
        for name in {kept}:
            state[name] = state[name][:16]
        state["body.3.weight"] = state["body.3.weight"][:, :{inner}]
        model = experiment.model_from(state)
        experiment.train(model, steps=2, name="channels")
        return Pruned(model, whole_masks(model){structured})
"""
FIRST = ["body.0.weight", *(f"body.1.{part}" for part in ("weight", "bias", "running_mean", "running_var"))]


def test_a_user_s_method_may_remove_channels(tmp_path: Path) -> None:
    """Half of the first layer's channels: half of the first two layers' products, at 8 x 8 and 4 x 4 places."""
    path = tmp_path / "channels.py"
    path.write_text(CHANNELS.format(kept=FIRST, inner=16, structured=", structured=True"))
    _, records = run_inline(tiny_suite(str(path), sparsities=(0.3,)), tmp_path / "out")
    record = records["half-channels 0.3 0"]
    assert record.status == "ok", record.reason
    assert record.cost is not None
    assert record.sparsity is not None
    first, second = 8 * 8 * 48 * 32 // 2, 4 * 4 * 64 * 512 // 2
    assert record.cost.nonzero_macs == DENSE_MACS - first - second
    assert record.sparsity.by_layer == {
        "body.0.weight": 0.5,
        "body.3.weight": 0.5,
        "body.6.weight": 0.0,
        "head.weight": 0.0,
    }
    assert record.notes[REMOVED_NOTE] == (first + second) / DENSE_MACS
    assert [finding for finding in check_records(tmp_path / "out") if not finding.ok] == []


@pytest.mark.parametrize(
    ("inner", "structured", "sparsity", "complaint"),
    [
        (16, "", 0.3, r"structured=True"),
        (16, ", structured=True", 0.9, r"asked to remove 0.9 of the multiply-accumulates"),
    ],
)
def test_what_a_structured_result_must_be(
    tmp_path: Path, inner: int, structured: str, sparsity: float, complaint: str
) -> None:
    path = tmp_path / "channels.py"
    path.write_text(CHANNELS.format(kept=FIRST, inner=inner, structured=structured))
    _, records = run_inline(tiny_suite(str(path), sparsities=(sparsity,)), tmp_path / "out")
    assert complaint in (records[f"half-channels {sparsity} 0"].reason or "")


def test_channels_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    path = tmp_path / "channels.py"
    text = CHANNELS.format(kept=FIRST, inner=12, structured=", structured=True")
    path.write_text(text.replace('        experiment.train(model, steps=2, name="channels")\n', ""))
    _, records = run_inline(tiny_suite(str(path), sparsities=(0.3,)), tmp_path / "out")
    assert "do not fit each other" in (records["half-channels 0.3 0"].reason or "")


def test_the_task_is_the_one_the_numbers_by_hand_are_of() -> None:
    assert TASK == "colored-digits@2pct"
    assert count_macs(build_model("convnet-small", 10, seed=0), X)[0] == DENSE_MACS
