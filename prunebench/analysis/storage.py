"""Storage of analyses: one JSON file a track beside the records, and the migration of those of schema 1."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunebench.analysis.hypotheses import DENSITY_BOUND, evaluate_hypotheses
from prunebench.analysis.values import SCHEMA_VERSION, TaskAnalysis
from prunebench.errors import StoreError
from prunebench.results.record import without_nan
from prunebench.results.store import write_atomically

FOLDER = "analysis"
"""In a results folder: `<slug>.json` and `<slug>-samples.png` of every analysed track."""
WORKING = " (working)"
RENAMED = {
    "cells": "conditions",
    "sample_foretelling": "sample_predictability",
    "attribute_foretelling": "attribute_predictability",
    "happened": "event_rate",
    "taxicab": "l1_distance",
    "control_taxicab": "control_l1_distance",
}


def write_analysis(analysis: TaskAnalysis, folder: Path) -> Path:
    """Write `<slug>.json` into a folder that exists; returns its path."""
    path = folder / f"{analysis.slug}.json"
    write_atomically(path, to_json(analysis).encode())
    return path


def to_json(analysis: TaskAnalysis) -> str:
    """Its text at rest, a row a line; undefined numbers are null."""
    values = without_nan(dataclasses.asdict(analysis))
    return "{\n" + ",\n".join(f'"{key}": {_field(values[key])}' for key in sorted(values)) + "\n}\n"


def _field(value: Any) -> str:
    """One line, or a line a row of a list of rows."""
    compact = functools.partial(json.dumps, sort_keys=True, separators=(",", ":"))
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(compact, value)) + "\n]"
    return compact(value)


def read_analysis(path: Path) -> TaskAnalysis:
    """Read and validate one analysis, of this schema or an older one. Raises StoreError with path and reason."""
    from pydantic import ValidationError

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.get("schema_version") if isinstance(values, dict) else None
        if found == 1:
            return migrate(values)
        if found != SCHEMA_VERSION:
            raise StoreError(f"{path}: analysis schema {found}, want {SCHEMA_VERSION}: analyze again")
        return validated(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path}: invalid analysis: {where}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read: {error}; analyze again") from error


def validated(values: dict[str, Any]) -> TaskAnalysis:
    """An analysis from the values of its JSON. Raises pydantic's ValidationError."""
    return _adapter().validate_json(json.dumps(values), strict=True)


@functools.cache
def _adapter() -> Any:
    from pydantic import ConfigDict, TypeAdapter, with_config

    return TypeAdapter(with_config(ConfigDict(extra="forbid"))(TaskAnalysis))


def stored_analyses(results: Path) -> tuple[list[TaskAnalysis], dict[str, Path]]:
    """The analyses of a results folder, by slug, and the images of their samples that are there."""
    found = [read_analysis(path) for path in sorted((results / FOLDER).glob("*.json"))]
    grids = {analysis.slug: results / FOLDER / analysis.grid_name for analysis in found}
    return found, {slug: path for slug, path in grids.items() if path.is_file()}


# Migration


def migrate(values: Mapping[str, Any]) -> TaskAnalysis:
    """An analysis from the JSON of schema 1, whose evidence was sentences; it follows again from the stored rows.

    Every number is kept. Whether runs deferred to the dense model was not stored: of a method that did, claim (a)
    left the sparse conditions out. Raises pydantic's ValidationError, and ValueError for what is not of schema 1.
    """
    from prunebench.analysis.measures import measure_named

    rest = {name: value for name, value in values.items() if name != "claims"}
    found = {RENAMED.get(name, name): _renamed(value) for name, value in rest.items()}
    try:
        told = {line["what"] for line in values["claims"][0]["evidence"]}
        deferred = {
            row["method"]
            for row in values["cells"]
            if not row["dense"] and row["achieved"] >= DENSITY_BOUND and _place_in_words(row) not in told
        }
        for row in found["conditions"]:
            row["deferred"] = row["method"] in deferred
        found["correlations"] = list(map(_correlation, values["correlations"]))
        if values["multi_label"]:
            found["susceptible"] = list(map(_attribute_sample, values["susceptible"]))
        else:
            found["susceptible"] = [{**row, "attribute": None} for row in values["susceptible"]]
        for name in ("measures", "attribute_measures"):
            found[name] = [dataclasses.asdict(measure_named(measure["key"])) for measure in values[name]]
    except (KeyError, TypeError, IndexError, AttributeError):
        return validated(dict(values))  # which says what is wrong with it
    analysis = validated({**found, "schema_version": SCHEMA_VERSION, "hypotheses": []})
    return dataclasses.replace(analysis, hypotheses=evaluate_hypotheses(analysis))


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_renamed, value))
    if isinstance(value, dict):
        return {RENAMED.get(name, name): entry for name, entry in value.items()}
    return value


def _place_in_words(row: Mapping[str, Any]) -> str:
    """How claim (a) named a condition."""
    return f"{row['method']} at {100 * (1 - row['achieved']):.3g} % of weights"


def _correlation(row: Mapping[str, Any]) -> dict[str, Any]:
    """The scope stood in the method's place, and which runs behind the second measure."""
    method, second = row["method"], row["second"]
    scope = "all methods" if method is None else "within methods" if method == "within methods" else "method"
    return {
        "scope": scope,
        "method": method if scope == "method" else None,
        "first": row["first"],
        "second": second.removesuffix(WORKING),
        "working": second.endswith(WORKING),
        "rho": row["rho"],
    }


def _attribute_sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """Labels were the attribute's name, or `not` and the name."""
    name = row["label"].removeprefix("not ")
    answers = {name: "yes", f"not {name}": "no"}
    said = {key: answers.get(row[key], row[key]) for key in ("label", "dense", "sparse")}
    return {**row, **said, "attribute": name}
