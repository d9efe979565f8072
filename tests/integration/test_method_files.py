"""Files that a new user writes, one of each kind, none over thirty lines: each passes `prunebench check`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import name_of, run_inline, tiny_suite

from prunebench.pruning.masks import masks_of, prunable
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.submission import check_method

FOLDER = next(folder for folder in Path(__file__).parents if folder.name == "tests") / "method_files"
HELPERS = {"helper_scores", "two_methods"}
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


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_passes_check(path: Path) -> None:
    findings = check_method(str(path))
    assert len(findings) >= 5
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
    for name in ("body.0.weight", "body.3.weight"):
        rows = (state[name] != 0).flatten(1).float().mean(1)
        assert int(((rows > 0) & (rows < 1)).sum()) <= 1
        assert int((rows == 0).sum()) >= 0.8 * len(rows)


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
