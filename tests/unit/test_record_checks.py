"""Doctored records: each field has a range and a relation; `check` names it, `leaderboard` leaves the record out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import run_inline, tiny_suite
from typer.testing import CliRunner

from prunebench.cli.main import app
from prunebench.results.record import RunRecord
from prunebench.results.spec import RunSpec
from prunebench.results.store import Store
from prunebench.submission import check_records, sound_records

Values = dict[str, Any]
Change = Callable[[Values], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense and a pruned run; not to be changed."""
    out = tmp_path_factory.mktemp("made")
    run_inline(tiny_suite("magnitude"), out)
    return out


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    return Store(Path(shutil.copytree(made, tmp_path / "results")))


def pruned_of(store: Store) -> RunRecord:
    (record,) = (record for record in store.records()[0] if record.spec["method"] == "magnitude")
    return record


def doctor(store: Store, change: Change, *, outputs: bool = True) -> Path:
    """Change the pruned run's record; without `outputs` its logits go."""
    record = pruned_of(store)
    path = store.folder(record.run_id) / "record.json"
    values = json.loads(path.read_text())
    change(values)
    spec = values["spec"]
    if isinstance(spec.get("method"), str) and spec != record.spec:
        values["run_id"] = RunSpec.from_dict(spec).run_id
        path = Path(shutil.move(path.parent, path.parent.with_name(values["run_id"]))) / "record.json"
    path.write_text(json.dumps(values))
    if not outputs:
        (path.parent / "outputs.safetensors").unlink()
    return path


def at(*keys: str | int, to: Any) -> Change:
    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = to

    return change


def all_right(values: Values) -> None:
    for row in values["groups"]:
        row["correct"] = row["count"]
    perfect = dict.fromkeys(
        ("unbiased", "aligned", "conflicting", "worst_group", "plain", "train_weighted"), 1.0
    )
    values["metrics"] |= {**perfect, "bias_gap": 0.0}


def half_the_groups(values: Values) -> None:
    values["groups"] = [row for row in values["groups"] if row["aligned"]]
    right = sum(row["correct"] for row in values["groups"]) / sum(row["count"] for row in values["groups"])
    shares = [row["correct"] / row["count"] for row in values["groups"]]
    mean = sum(shares) / len(shares)
    values["metrics"] |= {
        "plain": right,
        "unbiased": mean,
        "aligned": mean,
        "conflicting": None,
        "bias_gap": None,
    }
    values["metrics"] |= {"worst_group": min(shares), "train_weighted": mean}


def no_by_layer(values: Values) -> None:
    values["sparsity"]["by_layer"] = dict.fromkeys(values["sparsity"]["by_layer"], 0.0)


def shifted_by_layer(values: Values) -> None:
    """Shares that lie around the achieved one and do not add up to it."""
    first = next(iter(values["sparsity"]["by_layer"]))
    values["sparsity"]["by_layer"][first] = 0.5


def percent(values: Values) -> None:
    values["metrics"] = {name: value and value * 100 for name, value in values["metrics"].items()}


def mining(mined: int, conflicting: int, precision: float | None, recall: float | None) -> Change:
    found = {"mined": mined, "conflicting": conflicting, "precision": precision, "recall": recall}
    return at("mining", to=found)


DOCTORED: dict[str, tuple[Change, str]] = {
    "unbiased": (at("metrics", "unbiased", to=1.0), "metric unbiased is 1.0, its groups give"),
    "worst group": (at("metrics", "worst_group", to=1.0), "metric worst_group is 1.0"),
    "gap": (at("metrics", "bias_gap", to=0.0), "metric bias_gap is 0.0"),
    "plain": (at("metrics", "plain", to=0.99), "metric plain is 0.99"),
    "aligned undefined": (at("metrics", "aligned", to=None), "metric aligned is undefined"),
    "gone": (lambda r: r["metrics"].pop("conflicting"), "metric conflicting is undefined"),
    "entropy": (at("metrics", "entropy", to=0.0), "metrics: entropy is 0.0, its stored logits give"),
    "validation": (at("validation", "plain", to=0.99), "validation: plain is 0.99, its stored logits give"),
    "adjusted": (at("metrics", "train_weighted", to=1.0), "train_weighted"),
    "entropy above one": (at("metrics", "entropy", to=1.5), "metrics.entropy: 1.5 is out of range"),
    "confidence below margin": (
        at("metrics", "margin", to=1.0),
        "metrics.margin: 1.0 is above the confidence",
    ),
    "negative loss": (
        at("metrics", "negative_log_likelihood", to=-1.0),
        "negative_log_likelihood: -1.0 is out",
    ),
    "percent": (percent, "is out of range"),
    "huge": (at("metrics", "mine", to=1e9), "metrics.mine: 1000000000.0 is out of range"),
    "named by markup": (at("metrics", "<b>", to=0.5), "is no name of a metric"),
    "all right": (all_right, "groups: its stored logits give other counts"),
    "half the groups": (half_the_groups, "groups: not those of the task's test split"),
    "a group twice": (lambda r: r["groups"].append(r["groups"][0]), "groups: a group stands there twice"),
    "an empty group": (
        lambda r: r["groups"].append({"label": 90, "bias": 0, "aligned": True, "count": 0, "correct": 0}),
        "an empty group has no row",
    ),
    "a group of a million": (at("groups", 0, "label", to=10**6), "label 1000000 or bias 0 is out of range"),
    "more right than there are": (at("groups", 0, "correct", to=10**6), "1000000 correct of"),
    "negative right": (at("groups", 0, "correct", to=-1), "-1 correct of"),
    "aligned turned": (lambda r: at("groups", 0, "aligned", to=False)(r), ""),
    "negative latency": (
        at("cost", "latency_pruned_ms", "p50", to=-1.0),
        "cost.latency_pruned_ms: want 0 < p20",
    ),
    "no latency": (at("cost", "latency_pruned_ms", "p50", to=0.0), "cost.latency_pruned_ms"),
    "percentiles crossed": (at("cost", "latency_pruned_ms", "p20", to=99.0), "cost.latency_pruned_ms"),
    "dense percentiles": (at("cost", "latency_dense_ms", "p80", to=1e-9), "cost.latency_dense_ms"),
    "no MACs left": (at("cost", "nonzero_macs", to=0), "cost.nonzero_macs: want a whole number from 1"),
    "one MAC left": (at("cost", "nonzero_macs", to=1), "cost.nonzero_macs: 1, the zeros leave"),
    "too many MACs": (at("cost", "nonzero_macs", to=10**12), "cost.nonzero_macs"),
    "other MACs": (at("cost", "macs", to=10**12), "cost.macs: 1000000000000, the model has"),
    "one parameter left": (
        at("cost", "nonzero_parameters", to=1),
        "cost.nonzero_parameters: 1, the zeros leave",
    ),
    "all parameters left": (
        lambda r: at("cost", "nonzero_parameters", to=r["cost"]["parameters"])(r),
        "cost.nonzero_parameters",
    ),
    "other parameters": (at("cost", "parameters", to=200_000), "cost.parameters: 200000, the model has"),
    "another sparsity": (at("sparsity", "achieved", to=0.5), "sparsity.achieved"),
    "nearly the sparsity": (at("sparsity", "achieved", to=0.90001), "sparsity.achieved"),
    "another asked": (at("sparsity", "asked", to=0.5), "sparsity.asked: 0.5, its spec says 0.9"),
    "nothing by layer": (no_by_layer, "sparsity"),
    "by layer adds up to another": (shifted_by_layer, "sparsity.achieved"),
    "a layer of zeros": (
        at("sparsity", "by_layer", "head.weight", to=1.0),
        "by_layer.head.weight: 1.0 is out",
    ),
    "another layer": (
        at("sparsity", "by_layer", "tail.weight", to=0.9),
        "its layers are not those of convnet",
    ),
    "no steps": (at("cost", "training_steps", to=0), "cost.training_steps: want a whole number from 1"),
    "negative steps": (at("cost", "training_steps", to=-5), "cost.training_steps"),
    "other dense steps": (
        at("cost", "dense_training_steps", to=7),
        "cost.dense_training_steps: 7, its recipe",
    ),
    "no batch": (at("cost", "latency_batch", to=0), "cost.latency_batch"),
    "memory": (at("cost", "peak_memory_mb", to=-1.0), "cost.peak_memory_mb"),
    "removed channels": (at("cost", "removed_channels", to=1.5), "cost.removed_channels: 1.5 is no share"),
    "unknown supervision": (at("method", "supervision", to="lots"), "method.supervision: want one of none"),
    "other supervision": (at("method", "supervision", to="train-groups"), "magnitude has 'none'"),
    "another source": (at("method", "cite", to="me"), "method.cite: 'me', magnitude has"),
    "another name": (at("method", "name", to="dcwp"), "method.name: 'dcwp', its spec says 'magnitude'"),
    "no source": (lambda r: r["method"].pop("cite"), "method.cite: want one line"),
    "other data": (at("splits_hash", to="0" * 16), "its dense model saw other data"),
    "to come": (at("started_utc", to="2099-01-01T00:00:00Z"), "started_utc: want a time that has been"),
    "no time": (at("started_utc", to="yesterday"), "started_utc"),
    "no environment": (at("environment", to={}), "environment: want at least python, torch and device"),
    "an essay of an environment": (
        at("environment", "cpu", to="x" * 10_000),
        "environment: want short names",
    ),
    "a terminal escape": (
        at("environment", "cpu", to="\x1b[2J"),
        "environment: want short names and one-line",
    ),
    "threads": (at("environment", "threads", to=0), "environment.threads"),
    "time of a phase": (at("phase_seconds", "fit", to=-1.0), "phase_seconds.fit: -1.0 is out of range"),
    "a note's name": (at("notes", "a\nb", to=1.0), "notes: 'a\\nb' is no name"),
    "hash of outputs": (at("outputs_sha256", to="zz"), "outputs_sha256: want 64 hexadecimal digits"),
    "other outputs": (at("outputs_sha256", to="0" * 64), "its stored logits do not match their hash"),
    "method of the spec": (
        lambda r: r["spec"].update(method="<img>") or r["method"].update(name="<img>"),
        "spec.method",
    ),
    "task of the spec": (at("spec", "task", to="a\nb"), "spec.task: want one line"),
    "model of 100 kB": (at("spec", "model", to="x" * 100_000), "spec.model: want one line of at most 100"),
    "seed": (at("spec", "seed", to=-1), "spec.seed: want a whole number from 0, got -1"),
    "sparsity of the spec": (at("spec", "sparsity", to=1.5), "spec.sparsity: want null or a share"),
    "settings": (at("spec", "params", "x", to="y" * 1000), "spec.params: setting x"),
    "mined": (mining(10, 5, 2.0, 0.5), "mining.precision: 2.0 of 10"),
    "mined without": (mining(0, 5, 0.5, 0.5), "mining.precision: 0.5 of 0"),
    "hits that disagree": (mining(10, 5, 0.5, 0.2), "mining: precision gives 5 hits, recall 1"),
    "a failure's essay": (
        lambda r: r.update(status="failed", reason="x" * 10_000),
        "reason, traceback: want at most",
    ),
}


def test_what_runs_write_is_sound(store: Store) -> None:
    assert [finding for finding in check_records(store.root) if not finding.ok] == []
    assert len(sound_records(store)[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("case", DOCTORED)
def test_a_doctored_record_is_named_and_left_out(store: Store, case: str) -> None:
    change, message = DOCTORED[case]
    path = doctor(store, change)
    (bad,) = [finding for finding in check_records(store.root) if not finding.ok]
    assert bad.what.startswith(path.parent.name)
    assert message in bad.why
    sound, damaged = sound_records(store)
    assert [record.spec["method"] for record in sound] == ["dense"]
    assert [entry.path for entry in damaged] == [path]


TEXTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "BOM": (lambda text: b"\xef\xbb\xbf" + text, "not valid JSON"),
    "UTF-16": (lambda text: text.decode().encode("utf-16"), "cannot be read"),
    "cut": (lambda text: text[: len(text) // 2], "not valid JSON"),
    "empty": (lambda text: b"", "not valid JSON"),
    "NaN": (lambda text: text.replace(b'"unbiased": 0', b'"unbiased": NaN, "x": 0', 1), "NaN is no JSON"),
    "Infinity": (
        lambda text: text.replace(b'"unbiased": 0', b'"unbiased": Infinity, "x": 0', 1),
        "Infinity is no",
    ),
    "a name twice": (
        lambda text: text.replace(b'"status": "ok"', b'"status": "failed", "status": "ok"'),
        "one name twice",
    ),
    "marks of a merge": (lambda text: b"<<<<<<< HEAD\n" + text, "not valid JSON"),
    "an endless list": (lambda text: b"[" * 100_000, "not valid JSON"),
    "a pointer": (lambda text: b"version https://git-lfs.github.com/spec/v1\nsize 1\n", "not valid JSON"),
    "3 MB": (lambda text: text + b" " * (3 << 20), "larger than 2 MiB"),
    "a number too large": (lambda text: text.replace(b'"unbiased": 0', b'"unbiased": 1e999, "x": 0', 1), ""),
}


@pytest.mark.parametrize("case", TEXTS)
def test_other_texts_are_named(store: Store, case: str) -> None:
    change, message = TEXTS[case]
    path = store.folder(pruned_of(store).run_id) / "record.json"
    path.write_bytes(change(path.read_bytes()))
    (bad,) = [finding for finding in check_records(store.root) if not finding.ok]
    assert message in bad.why


def test_without_logits_groups_must_still_be_the_task_s(store: Store) -> None:
    doctor(store, half_the_groups, outputs=False)
    (bad,) = [finding for finding in check_records(store.root) if not finding.ok]
    assert "groups: not those of the task's test split" in bad.why


@pytest.mark.parametrize("damage", [b"x" * 100, b""])
def test_stored_logits_of_other_bytes(store: Store, damage: bytes) -> None:
    (store.folder(pruned_of(store).run_id) / "outputs.safetensors").write_bytes(damage)
    (bad,) = [finding for finding in check_records(store.root) if not finding.ok]
    assert "its stored logits do not match their hash" in bad.why


def test_a_task_that_is_unknown_here_is_checked_by_its_fields_alone(store: Store) -> None:
    doctor(store, at("spec", "task", to="disent:of_somebody@2pct"))
    assert all(finding.ok for finding in check_records(store.root))


def test_a_record_that_crashes_a_rule_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise TypeError("odd")

    monkeypatch.setattr("prunebench.submission.records._against_dense", crash)
    assert {finding.why for finding in check_records(store.root)} == {"cannot be checked: TypeError: odd"}


def test_the_command_leaves_out_what_check_refuses(store: Store) -> None:
    path = doctor(store, all_right)
    done = CliRunner().invoke(
        app, ["leaderboard", "--results", str(store.root), "--out", str(store.root / "b")]
    )
    assert done.exit_code == 1
    assert f"left out: {path}: groups: its stored logits give other counts" in done.output.replace("\n", " ")
    board = (store.root / "b" / "README.md").read_text()
    assert "dense" in board
    assert "| magnitude" not in board
