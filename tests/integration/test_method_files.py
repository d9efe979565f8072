"""Files that a new user writes, one of each kind, none over thirty lines: each passes `prunebench check`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import name_of, run_inline, tiny_suite

from prunebench.api import make_plan
from prunebench.errors import UsageError
from prunebench.pruning.masks import masks_of, prunable
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.submission import check_path

FOLDER = next(folder for folder in Path(__file__).parents if folder.name == "tests") / "method_files"
HELPERS = {"helper_scores"}
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in HELPERS)


def run_file(name: str, out: Path, **settings: object) -> RunRecord:
    """The one run of a file's method, at 0.9, on a tiny budget."""
    _, records = run_inline(tiny_suite(str(FOLDER / f"{name}.py"), **settings), out)
    (record,) = [one for one in records.values() if one.run_spec.method != "dense"]
    assert record.status == "ok", record.traceback
    return record


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 30


THOROUGH = ("rigl", "two_four")
"""Files that are checked with all their settings and all steps; each takes a minute."""


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_passes_check(path: Path) -> None:
    if path.stem == "depgraph":
        pytest.importorskip("torch_pruning")
    thorough = path.stem in THOROUGH
    findings = check_path(path, thorough=thorough)
    assert len(findings) >= (7 if thorough else 5)
    assert not [finding for finding in findings if not finding.ok]


@pytest.mark.slow
def test_masks_change_during_training_and_what_grows_begins_clean(tmp_path: Path) -> None:
    """The optimizer's moments of grown weights are zero at the update, and those of the others are not."""
    text = (FOLDER / "rigl.py").read_text().replace("every: int = 100", "every: int = 5")
    text = text.replace(
        "            return drop_and_grow(step.masks, step.weights, new, share)\n",
        "            seen.append((step.optimizer, step.weights, step.masks))\n"
        "            return drop_and_grow(step.masks, step.weights, new, share)\n",
    )
    text = text.replace(
        "            if step % self.every",
        "            for optimizer, weights, before in (seen.pop(),) if seen else ():\n"
        "                for name, weight in weights.items():\n"
        "                    grown = step.masks[name] & ~before[name]\n"
        "                    count[0] += int(grown.sum())\n"
        "                    moment = optimizer.state[weight]['exp_avg']\n"
        "                    # one step of Adam after a clean start: (1 - 0.9) times the last gradient\n"
        "                    assert ((moment - 0.1 * weight.grad).abs() < 1e-6)[grown].all()\n"
        "                    rest = step.masks[name] & before[name]\n"
        "                    dirty[0] += int(((moment - 0.1 * weight.grad).abs() > 1e-6)[rest].sum())\n"
        "            if step % self.every",
    )
    text = text.replace(
        "        steps = exp", "        seen, count, dirty = [], [0], [0]\n        steps = exp"
    )
    text = text.replace(
        "        return Pruned", "        assert count[0] > 100 and dirty[0] > 100\n        return Pruned"
    )
    path = tmp_path / "mine.py"
    path.write_text(text)
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    record = records["my-rigl 0.9 0"]
    assert record.status == "ok", record.traceback
    assert record.sparsity is not None
    assert record.sparsity.achieved == pytest.approx(0.9, abs=1e-4)


@pytest.mark.slow
def test_a_loop_of_one_s_own_is_charged_by_its_backward_passes_and_said(tmp_path: Path) -> None:
    record = run_file("own_loop", tmp_path)
    assert record.cost is not None
    assert record.cost.training_steps == 12 + 2 * 6
    assert record.notes["own_loop_steps"] == 12


@pytest.mark.slow
def test_needs_are_charged(tmp_path: Path) -> None:
    record = run_file("wanda", tmp_path)
    assert record.cost is not None
    assert record.cost.training_steps == 12 + 6 + 3, "eight forward passes are three steps, rounded up"


@pytest.mark.slow
def test_an_augmentation_is_seeded_and_an_optimizer_counts(tmp_path: Path) -> None:
    one, two = (run_file("own_optimizer", tmp_path / name) for name in ("one", "two"))
    assert one.outputs_sha256 == two.outputs_sha256
    plain = run_inline(tiny_suite("magnitude"), tmp_path / "plain")[1]["magnitude 0.9 0"]
    assert plain.outputs_sha256 != one.outputs_sha256
    assert plain.cost is not None
    assert one.cost is not None
    assert plain.cost.training_steps == one.cost.training_steps


@pytest.mark.slow
def test_filters_are_gone_as_a_whole(tmp_path: Path) -> None:
    record = run_file("filters", tmp_path)
    state = Store(tmp_path).read_tensors(record.run_id, "model")
    for layer, norm in (("body.0", "body.1"), ("body.3", "body.4")):
        rows = (state[f"{layer}.weight"] != 0).flatten(1).float().mean(1)
        assert (state[f"{norm}.weight"][rows == 0] == 0).all(), "BatchNorm goes with its filter"
        assert (state[f"{norm}.bias"][rows == 0] == 0).all()
        assert int(((rows > 0) & (rows < 1)).sum()) <= 1
        assert int((rows == 0).sum()) >= 0.8 * len(rows)


@pytest.mark.slow
def test_removed_channels_are_measured_as_a_narrower_network(tmp_path: Path) -> None:
    record = run_file("channels", tmp_path)
    assert record.cost is not None
    assert record.sparsity is not None
    assert 0.9 <= record.notes["removed_macs"] < 0.95
    assert record.cost.nonzero_macs == pytest.approx(
        (1 - record.notes["removed_macs"]) * record.cost.macs, rel=1e-3
    )
    state = Store(tmp_path).read_tensors(record.run_id, "model")
    assert state["body.3.weight"].shape[1] == state["body.0.weight"].shape[0] < 64


@pytest.mark.slow
def test_a_pattern_of_its_own_sparsity_holds_it(tmp_path: Path) -> None:
    record = run_file("two_four_native", tmp_path)
    assert name_of(record) == "my-two-four-native None 0"
    assert record.sparsity is not None
    assert record.sparsity.by_layer["body.0.weight"] == 0
    assert record.sparsity.by_layer["body.3.weight"] == 0.5


@pytest.mark.slow
def test_what_torch_pruned_is_read_from_the_network(tmp_path: Path) -> None:
    from prunebench.models import build_model

    record = run_file("torch_prune", tmp_path)
    net = build_model(record.run_spec.model, 10, seed=0)
    net.load_state_dict(Store(tmp_path).read_tensors(record.run_id, "model"))
    total = sum(weight.numel() for weight in prunable(net).values())
    assert sum(int(mask.sum()) for mask in masks_of(net).values()) == total - round(0.9 * total)
    assert torch.isfinite(net(torch.zeros(1, 3, 16, 16))).all()


@pytest.mark.slow
def test_check_goes_as_far_as_a_real_run_does(tmp_path: Path) -> None:
    """Eighteen steps never reach the update that is wrong; neither does a value of a setting that is never tried."""
    text = (FOLDER / "rigl.py").read_text()
    late = tmp_path / "late.py"
    late.write_text(text.replace("step.weights, new, share)", "step.weights, {}, share)"))
    rare = tmp_path / "rare.py"
    rare.write_text(text.replace("every: int = 100", "every: int = 5").replace(", noise)", ", None, 1)"))
    for path, rule in ((late, "through all steps"), (rare, "every declared value")):
        findings = check_path(path)
        assert any(rule in finding.what and not finding.ok for finding in findings), path.name
        others = [finding for finding in findings if not finding.ok and rule not in finding.what]
        assert not others


def test_settings_from_the_command_line_are_set_or_swept() -> None:
    file = str(FOLDER / "two_methods.py")
    suite = tiny_suite(file, "magnitude")
    suite = suite.with_settings(
        ["variant-a.power=1,2.5", "magnitude.distribution=erk", "magnitude.structure=none"]
    )
    runs = [run.spec for run in make_plan(suite, out="unused").runs if run.spec.method != "dense"]
    found = [(spec.method, dict(spec.params).get("power"), dict(spec.params)["allocation"]) for spec in runs]
    assert found == [
        ("variant-a", 1, "global"), ("variant-a", 2.5, "global"), ("variant-b", None, "global"),
        ("magnitude", None, "erk"),
    ]  # fmt: skip
    assert len({spec.run_id for spec in runs}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("magnitude=1", "want METHOD.KEY=VALUE"),
        ("magnitude.rate=", "want METHOD.KEY=VALUE"),
        ("magnitude.rate=1", "unknown setting of magnitude 'rate'"),
        ("magntude.events=1", "unknown method 'magntude': did you mean magnitude"),
        ("magnitude.events=3,4", "two values of a sweep are the same, or change nothing"),
        ("magnitude.structure=5:4", "want N <= M"),
    ],
)
def test_settings_that_cannot_be_are_usage_errors(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(tiny_suite("magnitude").with_settings([change]), out="unused")


@pytest.mark.slow
def test_swept_settings_are_rows_of_their_own(tmp_path: Path) -> None:
    suite = tiny_suite(f"{FOLDER / 'two_methods.py'}:variant-a").with_settings(["variant-a.power=1,-1"])
    outcome, _ = run_inline(suite, tmp_path)
    assert (outcome.ok, outcome.failed) == (3, 0)
    records = [record for record in Store(tmp_path).records()[0] if record.run_spec.method == "variant-a"]
    assert sorted(dict(record.run_spec.params)["power"] for record in records) == [-1, 1]
    assert len({record.outputs_sha256 for record in records}) == 2
