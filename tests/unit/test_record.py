"""Records: what must stay readable, what is refused, and what names a run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.errors import StoreError
from prunebench.results.record import (
    SCHEMA_VERSION,
    Mining,
    RunRecord,
    from_json,
    parse_again,
    parse_json,
    to_json,
)
from prunebench.results.spec import Recipe, RunSpec, hash_of

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> str:
    return (GOLDEN / f"{name}.json").read_text(encoding="utf-8")


def changed(**changes: Any) -> str:
    """The golden ok record with some top-level fields replaced."""
    return json.dumps(json.loads(golden("record_v1_ok")) | changes)


def edited(edit: Callable[[dict[str, Any]], object]) -> str:
    """The golden ok record after `edit` has changed it in place."""
    values = json.loads(golden("record_v1_ok"))
    edit(values)
    return json.dumps(values)


# What was written stays readable


def test_an_ok_record_reads() -> None:
    record = from_json(golden("record_v1_ok"), "here")
    assert (record.status, record.run_id) == ("ok", "f83cd242c983ff6e")
    assert record.run_spec.method == "dcwp"
    assert record.run_spec.recipe.steps == 20
    assert dict(record.run_spec.params)["lambda_sparse"] == 1e-8
    assert record.sparsity is not None
    assert record.sparsity.by_layer["head.weight"] == 0.53671875
    assert (record.groups[0].label, record.groups[0].aligned, record.groups[0].correct) == (0, True, 27)
    assert record.mining == Mining(2224, 95, 0.03821942446043165, 0.8947368421052632)
    assert record.cost is not None
    assert record.cost.latency_pruned_ms.p50 == 1.6249300001618394
    assert record.validation["conflicting"] is None
    assert record.notes == {"native_sparsity": 0.0}
    assert record.environment["gpu"] is None
    assert record.code["dirty"] is False


def test_a_failed_record_reads() -> None:
    record = from_json(golden("record_v1_failed"), "here")
    assert record.status == "failed"
    assert record.reason is not None
    assert record.reason.startswith("FloatingPointError")
    assert record.traceback is not None
    assert (record.cost, record.sparsity, record.groups) == (None, None, [])


NEW_IN_5 = {"latency_again_ms", "latency_clock", "latency_wall_spread"}


def without_new(values: dict[str, Any]) -> dict[str, Any]:
    """A record's values without the timing that came with schema 5, which must all be null."""
    cost = values.get("cost")
    if cost:
        assert [cost.pop(name) for name in sorted(NEW_IN_5)] == [None] * 3
    return values


@pytest.mark.parametrize("name", ["record_v4_ok", "record_v4_scored", "record_v4_failed"])
def test_schema_4_timed_the_dense_network_once(name: str) -> None:
    written = without_new(json.loads(to_json(from_json(golden(name), name))))
    assert written | {"schema_version": 4} == json.loads(golden(name))


@pytest.mark.parametrize("name", ["record_v5_ok", "record_v5_scored", "record_v5_failed"])
def test_a_record_is_written_as_it_was_read(name: str) -> None:
    assert to_json(from_json(golden(name), name)) == golden(name)


def test_schema_0_is_migrated() -> None:
    old, record = json.loads(golden("record_v0")), from_json(golden("record_v0"), "here")
    assert "splits_hash" not in old
    assert record.schema_version == SCHEMA_VERSION
    assert record.notes == old["log"] == {"native_sparsity": 0.0}
    assert record.splits_hash is None
    assert from_json(to_json(record), "again") == record
    assert replace(record, splits_hash="4153705eee51840b") == from_json(golden("record_v1_ok"), "here")


def test_schema_1_was_timed_in_the_plain_network() -> None:
    old, record = json.loads(golden("record_v1_ok")), from_json(golden("record_v1_ok"), "here")
    assert record.schema_version == SCHEMA_VERSION
    assert record.cost is not None
    assert record.cost.latency_path == "dense kernels with zeros"
    assert (record.cost.latency_layouts, record.cost.removed_channels) == ({}, None)
    written = json.loads(to_json(record))
    added = {"latency_path", "latency_layouts", "removed_channels", "timed_on", *NEW_IN_5}
    assert set(written["cost"]) - set(old["cost"]) == added
    assert {key: value for key, value in written["cost"].items() if key not in added} == old["cost"]
    assert (written.pop("scored_on"), written.pop("model_sha256")) == ({}, None)
    assert written | {"cost": 0, "schema_version": 1} == old | {"cost": 0}


def test_schema_1_of_a_failed_run() -> None:
    record = from_json(golden("record_v1_failed"), "here")
    assert (record.schema_version, record.cost) == (SCHEMA_VERSION, None)


def test_schema_2_says_what_was_timed() -> None:
    record = from_json(golden("record_v2_ok"), "here")
    assert record.cost is not None
    assert record.cost.latency_path == "sparsify: auto"
    assert record.cost.latency_layouts == {"dense": 2, "compact": 1}
    assert record.cost.removed_channels == 0.25


@pytest.mark.parametrize("name", ["record_v2_ok", "record_v2_plain", "record_v2_failed"])
def test_schema_2_was_scored_by_its_run(name: str) -> None:
    record = from_json(golden(name), "here")
    assert (record.schema_version, record.scored_on) == (SCHEMA_VERSION, {})
    written = without_new(json.loads(to_json(record)))
    assert (written.pop("scored_on"), written.pop("model_sha256")) == ({}, None)
    assert written | {"schema_version": 2} == json.loads(golden(name))


def test_schema_3_says_what_scored_it() -> None:
    record = from_json(golden("record_v3_scored"), "here")
    assert record.scored_on == {
        "commit": "4dd8d7e6b3b9d0c3a2e1f0a9b8c7d6e5f4a3b2c1",
        "dirty": False,
        "utc": "2026-11-20T15:00:00Z",
        "version": "0.1.0",
    }


@pytest.mark.parametrize("name", ["record_v3_ok", "record_v3_scored", "record_v3_failed"])
def test_schema_3_did_not_name_its_weights(name: str) -> None:
    written = without_new(json.loads(to_json(from_json(golden(name), "here"))))
    assert written.pop("model_sha256") is None
    assert written | {"schema_version": 3} == json.loads(golden(name))


def test_schema_0_without_a_log() -> None:
    old = json.loads(golden("record_v0"))
    del old["log"]
    assert from_json(json.dumps(old), "here").notes == {}


# What is refused, and why


def forget_spec_field(record: dict[str, Any]) -> None:
    del record["spec"]["seed"]


def forget_params(record: dict[str, Any]) -> None:
    del record["spec"]["params"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            changed(schema_version=6),
            "written with record schema 6; this PruneBench reads up to 5: upgrade it",
        ),
        (changed(schema_version=-1), "record schema -1 is no longer readable; run it again"),
        (changed(schema_version="1"), "not a PruneBench record"),
        (changed(accuracy=0.5), "invalid record: accuracy: Unexpected keyword argument"),
        (changed(status=3), "invalid record: status"),
        (changed(status="done"), "invalid record: status"),
        (changed(metrics={"plain": "high"}), "invalid record: metrics.plain: Input should be a valid number"),
        (changed(groups={"0": 1}), "invalid record: groups: Input should be a valid array"),
        (changed(spec="dense"), "invalid record: spec: Input should be an object"),
        (changed(spec={}), "invalid record: spec"),
        (changed(run_id="0" * 16), "run_id 0000000000000000 does not match its spec (f83cd242c983ff6e)"),
        (changed(cost=None), "an ok record needs groups, sparsity and cost"),
        (changed(sparsity=None), "an ok record needs groups, sparsity and cost"),
        (changed(groups=[]), "an ok record needs groups, sparsity and cost"),
        (edited(lambda r: r.pop("run_id")), "invalid record: run_id"),
        (edited(lambda r: r.pop("schema_version")), "not a PruneBench record (no schema_version)"),
        (edited(lambda r: r["groups"][0].pop("count")), "invalid record: groups.0.count"),
        (edited(lambda r: r["groups"][0].update(count=1.5)), "invalid record: groups.0.count"),
        (edited(lambda r: r["cost"]["latency_dense_ms"].pop("p20")), "latency_dense_ms.p20"),
        (edited(lambda r: r.update(cost="cheap")), "invalid record: cost"),
        (edited(lambda r: r["cost"].update(latency_layouts=[])), "invalid record: cost.latency_layouts"),
        (edited(lambda r: r.update(scored_on="today")), "invalid record: scored_on"),
        (edited(lambda r: r["mining"].update(mined=None)), "invalid record: mining.mined"),
        (edited(lambda r: r["spec"].update(seed=1)), "run_id f83cd242c983ff6e does not match its spec"),
        (edited(lambda r: r["spec"].update(colour="red")), "invalid record: spec"),
        (edited(lambda r: r["spec"].update(recipe=7)), "invalid record: spec"),
        (edited(lambda r: r["spec"]["recipe"].update(steps="many")), "invalid record: spec"),
        (edited(lambda r: r["spec"]["recipe"].update(optimizer="lamb")), "optimizer must be one of"),
        (edited(lambda r: r["spec"].update(params=["allocation"])), "invalid record: spec"),
        (edited(forget_spec_field), "invalid record: spec"),
        (edited(forget_params), "invalid record: spec"),
        (edited(lambda r: r["spec"].update(task_version="1")), "spec: task_version: '1' is of another type"),
        (edited(lambda r: r["spec"].update(seed=True)), "spec: seed: True is of another type"),
        (edited(lambda r: r["spec"].update(sparsity=[0.5])), "spec: sparsity: [0.5] is of another type"),
        (golden("record_v1_ok").replace('"seed": 0', f'"seed": {2**63}'), "beyond 64 bits"),
        (golden("record_v1_ok").replace('"seed": 0', '"seed": 1e999'), "larger than any number"),
        (golden("record_v1_ok")[:1000], "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "not a PruneBench record"),
        ("null", "not a PruneBench record"),
        ('"record"', "not a PruneBench record"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(StoreError) as caught:
        from_json(text, "runs/abc/record.json")
    assert str(caught.value).startswith("runs/abc/record.json: ")
    assert why in str(caught.value)


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_only_ok_records_need_results(status: str) -> None:
    text = changed(status=status, reason="why", cost=None, sparsity=None, groups=[], metrics={})
    assert from_json(text, "here").status == status


# The text of a record


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_undefined_is_null(make_record: Callable[..., RunRecord], value: float) -> None:
    record = make_record(metrics={"plain": 0.5, "conflicting": value}, mining=Mining(0, 3, value, 0.0))
    values = json.loads(to_json(record), parse_constant=pytest.fail)
    assert values["metrics"] == {"plain": 0.5, "conflicting": None}
    assert values["mining"]["precision"] is None
    again = from_json(to_json(record), "here")
    assert again.metrics["conflicting"] is None
    assert again.mining == Mining(0, 3, None, 0.0)


def test_text_is_canonical(make_record: Callable[..., RunRecord]) -> None:
    record = make_record()
    text = to_json(record)
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n"
    reordered = replace(record, metrics=dict(reversed(record.metrics.items())))
    assert list(reordered.metrics) != list(record.metrics)
    assert to_json(reordered) == text == to_json(from_json(text, "here"))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(json_values)
def test_a_text_read_again_has_the_same_values(values: Any) -> None:
    text = json.dumps(values)
    assert repr(parse_again(text)) == repr(parse_json(text)) == repr(values)


def test_a_round_trip_loses_nothing(make_record: Callable[..., RunRecord]) -> None:
    record = make_record(
        reason="ünïcode\nand a line",
        phase_seconds={"fit": 1 / 3},
        environment={"gpu": None, "threads": 2, "cpu": "x"},
        code={"dirty": None, "commit": "abc"},
        notes={"precision": 1e-300},
        outputs_sha256="f" * 64,
        splits_hash="0123456789abcdef",
    )
    assert from_json(to_json(record), "here") == record


def test_a_native_run_has_no_asked_sparsity(make_record: Callable[..., RunRecord], spec: RunSpec) -> None:
    record = make_record(replace(spec, sparsity=None))
    assert from_json(to_json(record), "here").run_spec.sparsity is None


# What names a run

OTHER_CELL = {
    "task": "colored-digits@1pct",
    "task_version": 2,
    "data_fingerprint": "47dade0da6438e65",
    "model": "convnet",
    "method": "magnitude-erk",
    "method_version": "2",
    "params": (("allocation", "erk"), ("start", "dense")),
    "sparsity": 0.95,
    "seed": 1,
    "recipe": Recipe(steps=1, finetune_steps=1, batch_size=1),
}
OTHER_RECIPE = {
    "steps": 401,
    "finetune_steps": 101,
    "batch_size": 129,
    "optimizer": "sgd",
    "lr": 2.1e-3,
    "finetune_lr": 1.1e-3,
    "weight_decay": 1e-4,
    "momentum": 0.8,
    "schedule": "constant",
    "precision": "fp32",
}


def test_run_id_is_pinned(spec: RunSpec) -> None:
    """If this fails, every stored result has lost its name: make a new schema and a migration."""
    assert spec.run_id == "64779b3c26b3de98"


def test_the_default_recipe_is_pinned(spec: RunSpec) -> None:
    """A changed default must change run ids, so defaults are part of the hash."""
    assert replace(spec, recipe=Recipe(400, 100, 128)).run_id == hash_of(
        spec.to_dict()
        | {
            "recipe": {
                "steps": 400,
                "finetune_steps": 100,
                "batch_size": 128,
                "optimizer": "adam",
                "lr": 0.001,
                "finetune_lr": 0.001,
                "weight_decay": 0.0,
                "momentum": 0.9,
                "schedule": "constant",
                "precision": "auto",
            }
        }
    )


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RunSpec)])
def test_every_field_of_a_cell_changes_its_id(spec: RunSpec, name: str) -> None:
    assert getattr(spec, name) != OTHER_CELL[name]
    assert replace(spec, **{name: OTHER_CELL[name]}).run_id != spec.run_id


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Recipe)])
def test_every_field_of_the_recipe_changes_the_id(spec: RunSpec, name: str) -> None:
    assert getattr(spec.recipe, name) != OTHER_RECIPE[name]
    recipe = spec.recipe.replace({name: OTHER_RECIPE[name]})
    assert replace(spec, recipe=recipe).run_id != spec.run_id


@pytest.mark.parametrize(
    "params",
    [
        (),
        (("allocation", "global"),),
        (("allocation", "global"), ("start", "dense"), ("events", 8)),
        (("allocation", "dense"), ("start", "global")),
    ],
)
def test_every_setting_changes_the_id(spec: RunSpec, params: tuple[tuple[str, Any], ...]) -> None:
    assert replace(spec, params=params).run_id != spec.run_id


def test_native_is_not_sparsity_zero(spec: RunSpec) -> None:
    assert replace(spec, sparsity=None).run_id != replace(spec, sparsity=0.0).run_id


def test_order_of_settings_does_not_matter(spec: RunSpec) -> None:
    assert replace(spec, params=spec.params[::-1]).run_id == spec.run_id


def test_a_cell_survives_json(spec: RunSpec) -> None:
    again = RunSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.run_id == spec.run_id


def test_ids_look_like_ids(spec: RunSpec) -> None:
    assert len(spec.run_id) == 16
    assert int(spec.run_id, 16) >= 0


def test_nan_names_no_run(spec: RunSpec) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = replace(spec, params=(("rate", math.nan),)).run_id


def test_what_a_shared_stage_depends_on(spec: RunSpec) -> None:
    key = spec.without_method()
    assert set(spec.to_dict()) - set(key) == {"sparsity", "method", "method_version", "params"}
    other = replace(spec, sparsity=0.5, method="snip", method_version="3", params=())
    assert other.without_method() == key
    assert replace(spec, seed=1).without_method() != key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"finetune_steps": 0}, "at least 1"),
        ({"batch_size": -1}, "at least 1"),
        ({"optimizer": "lamb"}, "optimizer must be one of"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"precision": "fp16"}, "precision must be one of"),
    ],
)
def test_a_recipe_is_validated(spec: RunSpec, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec.recipe.replace(change)


def test_labels(spec: RunSpec) -> None:
    assert spec.label == "colored-digits@2pct magnitude 0.9 seed 0"
    assert "native" in replace(spec, sparsity=None).label
