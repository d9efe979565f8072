"""The two doors for a method: what decorators refuse, how files are read, what scores may look at."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunebench.methods
from prunebench.errors import MaskError, SupervisionError, UsageError
from prunebench.methods.api import Method, method
from prunebench.methods.criteria import Criterion, ScoringContext, compute_scores, criterion
from prunebench.methods.discovery import FORMER, builtin_methods, file_methods, resolve_method
from prunebench.methods.magnitude import magnitude
from prunebench.methods.prune import prune_by
from prunebench.pruning.masks import prunable

CRITERION_FILE = """
from prunebench import criterion

@criterion("mine", cite="me, 2026")
def mine(weight, context):
    return 2 * weight.abs()
"""
CLASS_FILE = """
from dataclasses import dataclass
from prunebench import method

@method("mine", cite="me, 2026", supervision="val-groups", native=True)
@dataclass(frozen=True)
class Mine:
    rate: float = 0.5
    rounds: int = 3

    def fit(self, experiment, sparsity):
        return self.rate, sparsity
"""


def write_method(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def score_with(entry: Method, weight: Tensor) -> Tensor:
    """What the criterion behind a method says of a weight."""
    return entry.build(**entry.params).criterion.score(weight, None)  # type: ignore[attr-defined]


# Decorators


def test_a_criterion_is_still_its_function() -> None:
    @criterion("largest", cite="me, 2026", needs={"gradient"}, at="init", version=3)
    def largest(weight: Tensor, context: ScoringContext) -> Tensor:
        return weight.abs()

    assert isinstance(largest, Criterion)
    assert (largest.name, largest.cite, largest.at, largest.version) == ("largest", "me, 2026", "init", "3")
    assert largest.needs == {"gradient"}
    assert largest(torch.tensor([-2.0]), None).tolist() == [2.0]  # type: ignore[arg-type]
    entry = prune_by(largest)
    assert (entry.name, entry.version, entry.params["start"]) == ("largest", "3", "init")


def test_a_method_has_its_fields_as_settings() -> None:
    @method("nothing", cite="me, 2026", supervision="train-groups", version=2, native=True)
    @dataclasses.dataclass(frozen=True)
    class Nothing:
        rate: float = 0.5

        def fit(self, experiment: object, sparsity: float) -> None:
            return None

    assert isinstance(Nothing, Method)
    assert (Nothing.name, Nothing.supervision, Nothing.version) == ("nothing", "train-groups", "2")
    assert (Nothing.native, Nothing.dense, Nothing.params) == (True, False, {"rate": 0.5})
    assert Nothing.build(rate=0.1).rate == 0.1  # type: ignore[attr-defined]


class WithFit:
    def fit(self, experiment: object, sparsity: float) -> None:
        return None


@dataclasses.dataclass
class WithoutDefault(WithFit):
    rate: float


@dataclasses.dataclass
class WithFactory(WithFit):
    rates: list[float] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: criterion("x", cite="c", at="end"), "at must be 'dense' or 'init', got 'end'"),
        (
            lambda: criterion("x", cite="c", needs={"hessian"}),
            r"needs \['hessian'\] is unknown; known: gradient",
        ),
        (lambda: prune_by(criterion("x", cite="")(abs)), "cite its source"),  # type: ignore[arg-type]
        (lambda: method("x", cite=" ")(WithFit), "method 'x': cite its source"),
        (
            lambda: method("x", cite="c", supervision="bias")(WithFit),
            "supervision must be one of .*got 'bias'",
        ),
        (lambda: method("x", cite="c")(object), "the class needs fit"),
        (
            lambda: method("x", cite="c")(WithoutDefault),
            "WithoutDefault.rate: a setting needs a plain default",
        ),
        (lambda: method("x", cite="c")(WithFactory), "WithFactory.rates: a setting needs a plain default"),
    ],
)
def test_decorators_refuse(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


# What comes with the package


def test_every_builtin_is_listed_once_under_its_own_name_with_a_source() -> None:
    found = builtin_methods()
    assert {"dense", "magnitude", "random", "snip", "imp", "lff", "jtt", "mrm", "dcwp"} <= set(found)
    entries = {}
    for info in pkgutil.iter_modules(prunebench.methods.__path__):
        module = importlib.import_module(f"prunebench.methods.{info.name}")
        entries.update({id(value): value for value in vars(module).values() if isinstance(value, Method)})
    names = [entry.name for entry in entries.values()]
    assert len(set(names)) == len(names)
    assert set(names) <= set(found)
    for name, entry in found.items():
        assert entry.name == name
        assert entry.version.isdigit()
        assert len(entry.cite) > 10


def test_there_is_one_baseline() -> None:
    assert [name for name, entry in builtin_methods().items() if entry.dense] == ["dense"]


def test_builtins_can_be_built_with_their_own_settings() -> None:
    for entry in builtin_methods().values():
        assert callable(entry.build(**entry.params).fit)


def test_two_builtins_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("prunebench.methods.snip")
    twin = dataclasses.replace(builtin_methods()["dense"], cite="another")
    monkeypatch.setattr(module, "twin", twin, raising=False)
    with pytest.raises(UsageError, match=r"two methods are called 'dense'; the second is in .*snip"):
        builtin_methods.__wrapped__()


def test_unknown_methods() -> None:
    with pytest.raises(UsageError, match="unknown method 'magnitud': did you mean magnitude"):
        resolve_method("magnitud")
    with pytest.raises(UsageError, match=r"unknown method 'zzz': known: .*snip"):
        resolve_method("zzz")
    assert resolve_method("snip").name == "snip"


# Settings


def test_settings_replace_defaults() -> None:
    entry = resolve_method("dcwp")
    changed = entry.with_params({"mask_steps": 7})
    assert changed.params["mask_steps"] == 7
    assert entry.params["mask_steps"] != 7
    assert set(changed.params) == set(entry.params)
    assert changed.build(**changed.params).mask_steps == 7  # type: ignore[attr-defined]


def test_unknown_settings() -> None:
    with pytest.raises(UsageError, match="unknown setting of dcwp 'mask_step': did you mean mask_steps"):
        resolve_method("dcwp").with_params({"mask_step": 7})


@pytest.mark.parametrize("setting", ["allocation", "schedule", "start"])
def test_an_unknown_value_of_a_pruning_setting(setting: str) -> None:
    with pytest.raises(UsageError, match=f"unknown {setting} 'zzz'"):
        prune_by(magnitude, "x", **{setting: "zzz"})


def test_a_gradual_run_is_named_by_how_it_is_gradual() -> None:
    """Every setting that decides the numbers is a setting, so that it is part of the run's id."""
    gradual = resolve_method("magnitude").with_params({"schedule": "cubic"})
    assert set(gradual.params) >= {"initial", "events", "begin", "end"}


# Files


def test_a_file_with_a_criterion(tmp_path: Path) -> None:
    entry = resolve_method(str(write_method(tmp_path, CRITERION_FILE)))
    assert (entry.name, entry.cite, entry.supervision) == ("mine", "me, 2026", "none")
    assert entry.params["allocation"] == "global"
    assert score_with(entry, torch.tensor([-1.5])).tolist() == [3.0]


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"], ids=["plain", "annotations"])
def test_a_file_with_a_class(tmp_path: Path, future: str) -> None:
    entry = resolve_method(str(write_method(tmp_path, future + CLASS_FILE)))
    assert (entry.name, entry.supervision, entry.native) == ("mine", "val-groups", True)
    assert entry.params == {"rate": 0.5, "rounds": 3}
    assert entry.build(**entry.params | {"rate": 0.25}).fit(None, 0.9) == (0.25, 0.9)


def test_the_version_of_a_file_is_its_content(tmp_path: Path) -> None:
    path = write_method(tmp_path, CRITERION_FILE)
    first, again = resolve_method(str(path)), resolve_method(str(path))
    moved = resolve_method(str(write_method(tmp_path, CRITERION_FILE, "elsewhere.py")))
    assert first.version.startswith("file-")
    assert first.version == again.version == moved.version
    write_method(tmp_path, CRITERION_FILE + "\n")
    assert resolve_method(str(path)).version != first.version


def test_an_edited_file_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same size, same second: bytecode kept from the first reading must not stand in for the second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "mine.py"
    versions = set()
    for factor in (2, 3):
        write_method(tmp_path, CRITERION_FILE.replace("2 *", f"{factor} *"))
        os.utime(path, (1e9, 1e9))
        entry = resolve_method(str(path))
        versions.add(entry.version)
        assert score_with(entry, torch.ones(1)).tolist() == [factor]
    assert len(versions) == 2


@pytest.mark.parametrize(
    "imports",
    [
        "from prunebench.methods.magnitude import magnitude",
        "from prunebench.methods.dense import DenseBaseline",
    ],
    ids=["criterion", "method"],
)
def test_what_a_file_imports_is_not_its_own(tmp_path: Path, imports: str) -> None:
    path = write_method(tmp_path, imports + "\n" + CRITERION_FILE)
    assert list(file_methods(path)) == ["mine"]


def test_a_file_may_vary_a_builtin_criterion(tmp_path: Path) -> None:
    text = """
from prunebench.methods.magnitude import magnitude
from prunebench.methods.prune import prune_by
mine = prune_by(magnitude, "mine", allocation="erk")
"""
    entry = resolve_method(str(write_method(tmp_path, text)))
    assert (entry.name, entry.params["allocation"]) == ("mine", "erk")
    assert entry.version.startswith("file-")


SECOND = CRITERION_FILE.replace("def mine", "def other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CRITERION_FILE + SECOND, "two methods are called 'mine'"),
        (CRITERION_FILE + SECOND.replace('"mine"', '"other"'), "holds mine, other: name one, .*:mine"),
        ("def broken(:\n", "cannot be imported: SyntaxError"),
        ("import no_such_module_anywhere\n", "cannot be imported: ModuleNotFoundError"),
        ("from prunebench.store import Store\n", "write `from prunebench import criterion, method"),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError"),
        (CRITERION_FILE.replace("me, 2026", ""), "cite its source"),
        ("def mine(weight, context):\n    return weight\n", "no method in it; decorate"),
        ("", "no method in it; decorate"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = write_method(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        resolve_method(str(path))
    assert "mine" in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no method file .*none\.py"):
        resolve_method(str(tmp_path / "none.py"))


# What a scoring function may look at


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))


def score(function: Any, *, needs: frozenset[str] = frozenset(), seed: int = 0) -> dict[str, Tensor]:
    net = small_net()
    return compute_scores(
        Criterion("mine", "me, 2026", function, "dense", needs, "1"),
        net,
        lambda: {name: torch.full_like(weight, 2.0) for name, weight in prunable(net).items()},
        torch.Generator().manual_seed(seed),
    )


def test_scores_of_every_prunable_weight() -> None:
    scores, net = score(lambda weight, context: weight**2), small_net()
    assert {name: values.tolist() for name, values in scores.items()} == {
        name: (weight**2).tolist() for name, weight in prunable(net).items()
    }
    assert not any(values.requires_grad for values in scores.values())


def test_declared_gradients_are_given_and_computed_once() -> None:
    net, calls = small_net(), []

    def gradients() -> dict[str, Tensor]:
        calls.append(1)
        return {name: torch.full_like(weight, 2.0) for name, weight in prunable(net).items()}

    entry = criterion("mine", cite="c", needs={"gradient"})(lambda w, context: w * context.gradient(w))
    scores = compute_scores(entry, net, gradients, torch.Generator())
    assert torch.equal(scores["3.weight"], 2 * net[3].weight)
    assert len(calls) == 1


def test_undeclared_gradients_are_withheld() -> None:
    with pytest.raises(SupervisionError, match=r'without declaring it: write .*needs=\{"gradient"\}'):
        score(lambda weight, context: context.gradient(weight))


def test_gradients_nobody_asks_for_are_not_computed() -> None:
    entry = criterion("mine", cite="c", needs={"gradient"})(lambda weight, context: weight)
    scores = compute_scores(entry, small_net(), lambda: pytest.fail("computed"), torch.Generator())
    assert set(scores) == set(prunable(small_net()))


def test_names_and_noise() -> None:
    names = []

    def noise(weight: Tensor, context: ScoringContext) -> Tensor:
        names.append(context.name(weight))
        return context.random(weight)

    first, again, other = score(noise), score(noise), score(noise, seed=1)
    assert names[:2] == ["0.weight", "3.weight"]
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert 0 <= first["0.weight"].min() < first["0.weight"].max() < 1


def test_a_weight_must_be_handed_back_unchanged() -> None:
    with pytest.raises(UsageError, match="pass the weight that was handed"):
        score(lambda weight, context: context.random(weight) if context.name(weight.clone()) else weight)


def test_scoring_leaves_the_model_alone() -> None:
    """The weight carries no graph, so a criterion cannot train through it."""
    flags = []
    score(lambda weight, context: flags.append(weight.requires_grad) or weight)
    assert flags == [False, False]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w, _: w.sum(), r"scores for 0.weight must have shape \(3, 2, 3, 3\), got \(\)"),
        (lambda w, _: w.flatten(), r"must have shape \(3, 2, 3, 3\), got \(54,\)"),
        (lambda w, _: 1.0, "got float"),
        (lambda w, _: None, "got NoneType"),
        (lambda w, _: w * math.nan, "scores for 0.weight contain nan"),
    ],
)
def test_wrong_scores(function: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message) as caught:
        score(function)
    assert "criterion 'mine'" in str(caught.value)


def test_infinite_scores_pass() -> None:
    scores = score(lambda weight, _: torch.where(weight > 0, math.inf, -math.inf))
    assert torch.isinf(scores["0.weight"]).all()


def test_a_file_of_the_former_layout_works(tmp_path: Path) -> None:
    """What stood elsewhere in version 0.1.0 is the same class, not a copy."""
    path = tmp_path / "old.py"
    path.write_text(
        "from prunebench.experiment import Pruned\nfrom prunebench.registry import criterion, method\n"
        "from prunebench.methods.experiment import Pruned as now\nassert Pruned is now\n\n\n"
        "@method('old', cite='x')\nclass Old:\n"
        "    def fit(self, experiment, sparsity):\n        return Pruned(None, {})\n"
    )
    assert resolve_method(str(path)).name == "old"
    for former, today in FORMER.items():
        old = importlib.import_module(former)
        new = {
            name: value for module in today for name, value in vars(importlib.import_module(module)).items()
        }
        public = {name: value for name, value in new.items() if not name.startswith("_")}
        assert {name: vars(old)[name] for name in public} == public
        assert public
