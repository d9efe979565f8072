"""The control `shuffled:METHOD`: as many weights of every layer, other ones, and the very same retraining."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import METHOD_FILE, run_inline, tiny_suite
from tiny_experiment import tiny_experiment
from torch import Tensor

from prunebench.errors import UsageError
from prunebench.methods import shuffled as module
from prunebench.methods.discovery import builtin_methods, check_method_name, resolve_method
from prunebench.pruning.masks import shuffled
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.submission import check_method

LEARNED = {"mining_steps": 12, "mask_steps": 6}
NAMES = ("magnitude", "snip", "imp", "lff", "jtt", "mrm-swept", "dcwp")


def run_with_control(out: Path, *names: str, sparsities: tuple[float, ...] = (0.5,)) -> dict[str, RunRecord]:
    asked = [*names, *(f"shuffled:{name}" for name in names)]
    params = {}
    for method in map(resolve_method, asked):
        params[method.name] = {key: value for key, value in LEARNED.items() if key in method.params}
    return run_inline(tiny_suite(*asked, sparsities=sparsities, params=params), out)[1]


def test_shuffling_keeps_the_counts_and_nothing_else() -> None:
    masks = {"a": torch.arange(600).view(20, 30) < 60, "b": torch.ones(4, 4, dtype=torch.bool)}
    one, same = (shuffled(masks, torch.Generator().manual_seed(3)) for _ in range(2))
    other = shuffled(masks, torch.Generator().manual_seed(4))
    assert {name: int(mask.sum()) for name, mask in one.items()} == {"a": 60, "b": 16}
    assert torch.equal(one["a"], same["a"])
    assert not torch.equal(one["a"], other["a"])
    turned = shuffled(dict(reversed(masks.items())), torch.Generator().manual_seed(3))
    assert torch.equal(turned["a"], one["a"])
    assert 0 < int((one["a"] & masks["a"]).sum()) < 20, "6 of 60 are expected to stay where they were"


@pytest.mark.slow
def test_unshuffled_masks_give_the_method_s_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replayed is the method's own retraining: with its masks as they are, every bit is the method's."""
    monkeypatch.setattr(module, "shuffled", lambda masks, generator: dict(masks))
    records = run_with_control(tmp_path, *NAMES)
    for name in NAMES:
        own, control = records[f"{name} 0.5 0"], records[f"{name}-shuffled-mask 0.5 0"]
        assert control.status == "ok", control.reason
        assert control.outputs_sha256 == own.outputs_sha256, name
        assert control.mining == own.mining


@pytest.mark.slow
def test_shuffled_masks_have_the_layers_of_the_method(tmp_path: Path) -> None:
    names = ("magnitude", "dcwp")
    records = run_with_control(tmp_path, *names, sparsities=(0.9,))
    for name in names:
        own, control = records[f"{name} 0.9 0"], records[f"{name}-shuffled-mask 0.9 0"]
        assert own.sparsity == control.sparsity
        assert own.outputs_sha256 != control.outputs_sha256
        assert own.method["supervision"] == control.method["supervision"]
    own_zeros, zeros = (
        state_zeros(tmp_path, records[f"magnitude{end} 0.9 0"]) for end in ("", "-shuffled-mask")
    )
    both = sum(int((own_zeros[name] & zeros[name]).sum()) for name in zeros)
    assert both / sum(int(mask.sum()) for mask in zeros.values()) < 0.96, (
        "0.9 by chance, 1 if they were the same"
    )


def state_zeros(out: Path, record: RunRecord) -> dict[str, Tensor]:
    state = Store(out).read_tensors(record.run_id, "model")
    return {name: value == 0 for name, value in state.items() if value.ndim > 1}


def test_stages_are_shared_with_the_method(tmp_path: Path) -> None:
    run_with_control(tmp_path, "dcwp")
    assert len(list((tmp_path / "shared").glob("*.safetensors"))) == 2, "mining and masks, once for both"


def test_gradual_pruning_becomes_one_shot(tmp_path: Path) -> None:
    records = run_with_control(tmp_path, "gmp-pt", sparsities=(0.9,))
    own, control = records["gmp-pt 0.9 0"], records["gmp-pt-shuffled-mask 0.9 0"]
    assert control.status == "ok", control.reason
    assert own.sparsity == control.sparsity
    assert own.cost is not None
    assert control.cost is not None
    assert control.cost.training_steps == own.cost.training_steps + 6


def test_a_user_s_file_and_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(METHOD_FILE.format(supervision="val-groups", peek="experiment.val_split.bias + 0"))
    method = resolve_method(f"shuffled:{path}")
    assert (method.name, method.supervision) == ("peeking-shuffled-mask", "val-groups")
    assert method.version.startswith("file-")
    check_method_name(f"shuffled:{path}")
    _, records = run_inline(tiny_suite(f"shuffled:{path}"), tmp_path / "out")
    assert records["peeking-shuffled-mask 0.9 0"].status == "ok"
    assert resolve_method("shuffled:dcwp").name == builtin_methods()["dcwp-shuffled-mask"].name
    assert resolve_method("shuffled:imp").with_params({"rate": 0.5}).params == {"rate": 0.5, "rewind": 0.05}


def test_a_row_s_name_finds_its_method() -> None:
    assert resolve_method("snip-shuffled-mask").name == resolve_method("shuffled:snip").name
    check_method_name("snip-shuffled-mask")
    with pytest.raises(UsageError, match="did you mean snip"):
        check_method_name("snop-shuffled-mask")


@pytest.mark.parametrize("name", ["dense", "dense-finetuned", "lff-dense"])
def test_without_masks_of_its_own_nothing_is_shuffled(name: str) -> None:
    with pytest.raises(UsageError, match="no masks of its own"):
        resolve_method(f"shuffled:{name}")


def test_unknown_names_behind_the_prefix() -> None:
    for find in (resolve_method, check_method_name):
        with pytest.raises(UsageError, match="did you mean magnitude"):
            find("shuffled:magnitud")


@pytest.mark.parametrize(
    ("peek", "complaint"),
    [
        ("import copy; model = copy.deepcopy(model)", "not from new_model, dense_model or model_from"),
        ("import torch; model = torch.nn.Sequential(model)", "inside of another module"),
    ],
)
def test_a_network_of_unknown_origin_is_refused(tmp_path: Path, peek: str, complaint: str) -> None:
    path = tmp_path / "mine.py"
    text = METHOD_FILE.format(supervision="none", peek="pass")
    if "Sequential" in peek:
        text = text.replace(
            "        return experiment.finetune(model, masks)",
            "        import torch, prunebench\n"
            "        outer = {f'0.{name}': mask for name, mask in masks.items()}\n"
            "        experiment.train(torch.nn.Sequential(model), steps=2, name='outer', masks=outer)\n"
            "        return prunebench.Pruned(model, masks)",
        )
    else:
        text = text.replace("        apply_masks", f"        {peek}\n        apply_masks")
    path.write_text(text)
    _, records = run_inline(tiny_suite(str(path), f"shuffled:{path}"), tmp_path / "out")
    assert records["peeking 0.9 0"].status == "ok", records["peeking 0.9 0"].traceback
    assert complaint in (records["peeking-shuffled-mask 0.9 0"].reason or "")


@pytest.mark.parametrize(
    ("name", "sparsity", "complaint"),
    [
        ("sr-ste", None, "inside of another module"),
        ("edge-popup", 0.8, "inside of another module"),
        ("magnitude-calibrated", 0.8, "pruned already"),
    ],
)
def test_shuffled_masks_on_weights_trained_under_others_are_no_control(
    name: str, sparsity: float | None, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        resolve_method(f"shuffled:{name}").fit(tiny_experiment(name, sparsity), sparsity or 0.0)


@pytest.mark.slow
def test_the_contract_says_what_masks_are_worth() -> None:
    findings = check_method("magnitude")
    (said,) = [finding.what for finding in findings if finding.what.startswith("for information")]
    assert "% with its masks shuffled" in said
    assert all(finding.ok for finding in findings)
