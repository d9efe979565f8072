"""Suites: those that come with the package, and what is wrong with others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from prunebench.errors import UsageError
from prunebench.methods.discovery import resolve_method
from prunebench.models import MODELS
from prunebench.results.spec import Recipe
from prunebench.runner.plan import expand
from prunebench.suites import Suite, load_suite, suite_names
from prunebench.tasks import resolve_task

GOOD = """
tasks = ["colored-digits@2pct"]
methods = ["dense", "magnitude"]
sparsities = [0.5, 0.9]
seeds = [0, 1]
"""


def write_suite(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_packaged_suites() -> None:
    assert set(suite_names()) >= {"smoke", "quick", "digits", "mnist", "cmnist-short"}


@pytest.mark.parametrize("name", suite_names())
def test_a_packaged_suite_resolves(name: str) -> None:
    suite = load_suite(name)
    methods = {found.name: found for found in map(resolve_method, suite.methods)}
    assert suite.name == name
    assert suite.description
    assert "dense" in suite.methods
    assert len(methods) == len(suite.methods)
    assert set(suite.params) <= set(methods)
    for method, changes in suite.params.items():
        changed = methods[method].with_params(changes)
        assert {key: changed.params[key] for key in changes} == changes
    for task in map(resolve_task, suite.tasks):
        assert task.name in suite.tasks
        assert (suite.model or task.model) in MODELS
        assert task.recipe.replace(suite.recipe).steps >= 1


def test_smoke_is_what_it_says() -> None:
    suite = load_suite("smoke")
    assert suite.tasks == ("colored-digits@2pct",)
    assert suite.methods == ("dense", "magnitude", "dcwp")
    assert (suite.sparsities, suite.seeds) == ((0.9,), (0,))
    assert suite.recipe["steps"] == 20
    assert suite.params["dcwp"]["mask_steps"] == 10


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    suite = load_suite(
        write_suite(tmp_path, GOOD + '[recipe]\nlr = 0.1\n[params.magnitude]\nstart = "init"\n')
    )
    assert suite == Suite(
        "mine",
        ("colored-digits@2pct",),
        ("dense", "magnitude"),
        (0.5, 0.9),
        (0, 1),
        recipe={"lr": 0.1},
        params={"magnitude": {"start": "init"}},
    )


def test_a_file_may_name_itself(tmp_path: Path) -> None:
    assert load_suite(write_suite(tmp_path, 'name = "other"\n' + GOOD)).name == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks = [", "mine.toml: not valid TOML"),
        (GOOD + 'colour = "red"', "mine.toml: colour: Unexpected keyword argument"),
        (GOOD.replace("seeds = [0, 1]", ""), "mine.toml: seeds: "),
        (GOOD.replace("[0, 1]", '"all"'), "mine.toml: seeds: "),
        (GOOD.replace("[0, 1]", "[0, 0.5]"), "mine.toml: seeds.1: "),
        (GOOD.replace("0.5, 0.9", '"half"'), "mine.toml: sparsities.0: "),
        (GOOD.replace("[0, 1]", "[]"), "seeds is empty"),
        (GOOD + "[sweep.magnitude]\nallocation = []", "sweep.magnitude.allocation is empty"),
        (GOOD.replace("[0, 1]", "[3, 3]"), "seeds holds the same value twice"),
        (GOOD.replace("[0, 1]", "[-1]"), "seeds must be 0 or more, got -1"),
        (GOOD.replace("0.5, 0.9", "0.9, 0.90"), "sparsities holds the same value twice"),
        (GOOD.replace('"dense", ', '"magnitude", '), "methods holds the same value twice"),
        (GOOD.replace("0.9", "1.0"), r"sparsity must be in \[0, 1\), got 1 "),
        (GOOD.replace("0.9", "-0.1"), r"sparsity must be in \[0, 1\), got -0.1 "),
        (GOOD.replace("0.9", "90"), r"sparsity must be in \[0, 1\), got 90 "),
        (GOOD.replace("0.9", "nan"), r"sparsity must be in \[0, 1\), got nan "),
        (GOOD.replace("0.9", "inf"), r"sparsity must be in \[0, 1\), got inf "),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_suite(write_suite(tmp_path, text))


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"tasks = [\xff]")
    with pytest.raises(UsageError, match=r"mine\.toml: not valid TOML"):
        load_suite(str(path))


def test_unknown_suites(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown suite 'smok': did you mean smoke"):
        load_suite("smok")
    with pytest.raises(UsageError, match=r"unknown suite 'zzz': known: .*PATH\.toml.*quick"):
        load_suite("zzz")
    for missing in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match=r"no suite file|unknown suite"):
            load_suite(str(missing))


@pytest.mark.parametrize("value", [1.0, -0.1, math.nan])
def test_sparsity_is_checked_however_a_suite_is_made(value: float) -> None:
    with pytest.raises(UsageError, match=r"sparsity must be in \[0, 1\)"):
        Suite("mine", ("t",), ("m",), (value,), (0,))
    with pytest.raises(UsageError, match=r"sparsity must be in \[0, 1\)"):
        load_suite("smoke").narrowed(sparsities=[value])


def test_narrowed() -> None:
    suite = load_suite("digits")
    assert suite.narrowed() == suite
    narrow = suite.narrowed(methods=["dense", "snip"], sparsities=[0.7], seeds=[5, 6])
    assert narrow.methods == ("dense", "snip")
    assert (narrow.sparsities, narrow.seeds) == ((0.7,), (5, 6))
    assert (narrow.name, narrow.tasks, narrow.recipe) == (suite.name, suite.tasks, suite.recipe)
    assert suite.narrowed(tasks=["colored-mnist@1pct"]).tasks == ("colored-mnist@1pct",)
    with pytest.raises(UsageError, match="seeds holds the same value twice"):
        suite.narrowed(seeds=[1, 1])


def test_a_recipe_with_an_unknown_field() -> None:
    recipe = Recipe(10, 5, 8)
    assert recipe.replace({"lr": 0.5, "steps": 7}) == Recipe(7, 5, 8, lr=0.5)
    with pytest.raises(ValueError, match=r"recipe: unknown field 'step'; known: .*steps"):
        recipe.replace({"step": 7})


def mine(**changes: object) -> Suite:
    fields = {
        "name": "mine",
        "tasks": ("colored-digits@2pct",),
        "methods": ("dense", "magnitude"),
        "sparsities": (0.9,),
        "seeds": (0,),
    }
    return Suite(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (mine(tasks=("colored-digit@2pct",)), "unknown task 'colored-digit@2pct': did you mean"),
        (mine(tasks=("colored-digits",)), "needs its share"),
        (mine(methods=("dense", "magnitud")), "unknown method 'magnitud': did you mean magnitude"),
        (mine(model="convnet-smal"), "unknown model 'convnet-smal': did you mean convnet-small"),
        (mine(sparsities=(0.99999,)), "would empty a layer"),
        (mine(params={"magnitude": {"alocation": "erk"}}), "did you mean allocation"),
        (mine(params={"magnitude": {"allocation": "kre"}}), "unknown allocation 'kre'"),
        (mine(params={"magnitud": {"allocation": "erk"}}), "magnitud'"),
        (mine(recipe={"step": 5}), "recipe: unknown field 'step'"),
        (mine(recipe={"steps": 0}), "recipe: steps"),
        (mine(recipe={"steps": "many"}), "recipe"),
        (mine(recipe={"optimizer": "lamb"}), "recipe: optimizer"),
    ],
)
def test_a_suite_is_refused_before_anything_is_trained(suite: Suite, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand(suite, None)


def test_expansion_puts_dense_first_and_every_cell_once() -> None:
    cells = expand(mine(methods=("magnitude", "dcwp-native"), sparsities=(0.9, 0.5), seeds=(0, 1)), None)
    named = [(cell.spec.method, cell.spec.sparsity, cell.spec.seed) for cell in cells]
    assert named[:2] == [("dense", 0.0, 0), ("dense", 0.0, 1)]
    assert [cell.is_dense for cell in cells] == [True] * 2 + [False] * 6
    assert sorted(named[2:], key=str) == sorted(
        [("magnitude", sparsity, seed) for sparsity in (0.5, 0.9) for seed in (0, 1)]
        + [("dcwp-native", None, seed) for seed in (0, 1)],
        key=str,
    )
    assert len({cell.spec.run_id for cell in cells}) == 8
    assert all(cell.dense_id == cells[cell.spec.seed].spec.run_id for cell in cells)
