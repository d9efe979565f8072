"""Weights trained elsewhere: names of others, and what does not fit, named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from prunebench.api import execute_plan, make_plan
from prunebench.errors import DataError, UsageError
from prunebench.models import build_model, identify_model
from prunebench.models.checkpoints import checkpoint_digest, load_checkpoint
from prunebench.results.store import Store
from prunebench.submission.fields import field_problems
from prunebench.suites import Suite

State = dict[str, Tensor]


def state_of(name: str, classes: int = 4) -> State:
    """Weights of a network, with running statistics that are not those of a fresh one."""
    net = build_model(name, classes, seed=7)
    net(torch.rand(4, 3, 32, 32))
    return {key: value.contiguous() for key, value in net.state_dict().items()}


def bare(state: State, head: str) -> State:
    """The names that the network has without this project."""
    return {
        key.replace("head.", f"{head}.", 1) if key.startswith("head.") else key.removeprefix("body."): value
        for key, value in state.items()
    }


RENAMED: dict[str, Callable[[State], State]] = {
    "ours": lambda state: state,
    "bare, fc": lambda state: bare(state, "fc"),
    "bare, linear": lambda state: bare(state, "linear"),
    "wrapped": lambda state: {f"module.{key}": value for key, value in bare(state, "fc").items()},
    "wrapped twice": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "without counters": lambda state: {key: v for key, v in state.items() if "num_batches" not in key},
    "half": lambda state: {key: v.half() if v.is_floating_point() else v for key, v in state.items()},
}


@pytest.mark.parametrize("how", RENAMED)
def test_weights_of_others_fit(how: str, tmp_path: Path) -> None:
    state = state_of("resnet8@0.5")
    save_file(RENAMED[how](state), tmp_path / "w.safetensors")
    net = load_checkpoint(tmp_path / "w.safetensors", build_model("resnet8@0.5", 4, seed=0))
    for key, value in net.state_dict().items():
        assert value.dtype == state[key].dtype
        if "num_batches" not in key:
            assert torch.allclose(value, state[key], atol=1e-3 if how == "half" else 0), key


def test_torchvision_weights_fit_resnet18(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=3).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    net = load_checkpoint(tmp_path / "w.safetensors", build_model("resnet18-imagenet", 3, seed=0)).eval()
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(net(x), theirs(x), atol=1e-5)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def changed(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {key: value(each) if key == name else each for key, each in state.items()}


MISFITS: dict[str, tuple[Callable[[State], State], str]] = {
    "another width": (lambda _: state_of("resnet8"), r"body.conv1.weight is \[16, 3, 3, 3\], the network's is \[8, 3"),
    "other classes": (lambda _: state_of("resnet8@0.5", 9), r"head.weight is \[9, 32\], the network's is \[4, 32\]"),
    "another network": (lambda _: state_of("convnet"), "body.conv1.weight is missing; it has body.0.weight, which"),
    "deeper": (lambda _: state_of("resnet20@0.5"), "body.layer1.1.bn1.bias has no place in the network"),
    "one missing": (without("body.layer2.0.bn1.bias"), "body.layer2.0.bn1.bias is missing: "),
    "the first of two": (
        lambda state: without("body.layer3.0.conv1.weight")(without("body.bn1.weight")(state)),
        "body.bn1.weight is missing",
    ),
    "not finite": (changed("head.bias", lambda v: v / 0), "head.bias holds values that are not finite"),
    "quantised": (changed("body.conv1.weight", lambda v: v.to(torch.int8)), "conv1.weight is torch.int8"),
    "an optimiser": (lambda state: {**state, "exp_avg": torch.ones(1)}, "exp_avg has no place"),
    "nothing": (lambda _: {}, "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_a_misfit_is_named_and_changes_nothing(case: str, tmp_path: Path) -> None:
    change, says = MISFITS[case]
    path = tmp_path / "w.safetensors"
    save_file(change(state_of("resnet8@0.5")), path)
    net = build_model("resnet8@0.5", 4, seed=0)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(DataError, match=says) as caught:
        load_checkpoint(path, net)
    assert str(caught.value).startswith(f"{path}: ")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    net = build_model("convnet-small", 2, seed=0)
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"want a \.safetensors file.*convert it once"):
        load_checkpoint(tmp_path / "w.pth", net)
    path = tmp_path / "w.safetensors"
    with pytest.raises(DataError, match="No such file"):
        load_checkpoint(path, net)
    with pytest.raises(DataError, match="No such file"):
        checkpoint_digest(path)
    save_file(state_of("convnet-small"), path)
    for data in (b"", b"<html>", path.read_bytes()[:-9], path.read_bytes()[:200]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"not a whole \.safetensors file"):
            load_checkpoint(path, net)


def test_a_checkpoint_is_part_of_the_models_name(tmp_path: Path) -> None:
    save_file(state_of("convnet-small"), tmp_path / "w.safetensors")
    name = f"convnet-small@0.50+{checkpoint_digest(tmp_path / 'w.safetensors')}"
    assert identify_model(name, None) == name.replace("0.50", "0.5")
    one, other = (build_model(each, 2, seed=3).state_dict() for each in (name, "convnet-small@0.5"))
    assert all(torch.equal(value, other[key]) for key, value in one.items()), "untrained"


# --- as the dense model of a run ---------------------------------------------------------------------------


def make_suite(**changes: Any) -> Suite:
    fields: dict[str, Any] = {
        "name": "outside",
        "tasks": ("colored-digits@2pct",),
        "methods": ("dense", "magnitude"),
        "sparsities": (0.5,),
        "seeds": (0,),
        "recipe": {"steps": 4, "finetune_steps": 2, "batch_size": 8},
    }
    return Suite(**{**fields, **changes})


def test_a_checkpoint_stands_for_the_dense_model(tmp_path: Path) -> None:
    path, out = tmp_path / "w.safetensors", tmp_path / "out"
    weights = state_of("convnet-small", 10)
    save_file(bare(weights, "fc"), path)
    plan = make_plan(make_suite(), out=out, device="cpu", dense=path)
    assert execute_plan(plan, workers=0).failed == 0
    dense, pruned = (Store(out).read(run.spec.run_id) for run in plan.runs)
    assert dense.spec["model"] == pruned.spec["model"] == f"convnet-small+{checkpoint_digest(path)}"
    assert (dense.cost.training_steps, pruned.cost.training_steps) == (0, 2)
    assert dense.notes["trained_outside"] == 1.0
    assert set(dense.notes) - set(pruned.notes) == {"trained_outside"}
    stored = Store(out).read_tensors(dense.run_id, "model")
    assert all(torch.equal(stored[key], value) for key, value in weights.items())
    assert not list(field_problems(dense))
    assert not make_plan(make_suite(), out=out, device="cpu", dense=path).todo, "the same command resumes"
    assert len(make_plan(make_suite(), out=out, device="cpu").todo) == 2, "other weights, other runs"


def test_a_checkpoint_that_cannot_stand_for_it_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state_of("convnet-small", 9), path)
    with pytest.raises(DataError, match=r"head\.weight is \[9, 128\], the network's is \[10, 128\]"):
        make_plan(make_suite(), out=tmp_path / "out", device="cpu", dense=path)
    two = make_suite(tasks=("colored-digits@2pct", "colored-digits@5pct"))
    with pytest.raises(UsageError, match="for one task, the suite has 2"):
        make_plan(two, out=tmp_path / "out", device="cpu", dense=path)


def test_another_file_than_planned_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state_of("convnet-small", 10), path)
    plan = make_plan(make_suite(methods=("dense",)), out=tmp_path / "out", device="cpu", dense=path)
    save_file({**state_of("convnet-small", 10), "head.bias": torch.zeros(10)}, path)
    assert execute_plan(plan, workers=0).failed == 1
    assert "give that file with --dense PATH" in Store(tmp_path / "out").read(plan.runs[0].spec.run_id).reason
