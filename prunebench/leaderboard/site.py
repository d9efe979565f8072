"""Site of the leaderboard: a small page, one script and style, and data in chunks that are loaded when seen.

site/index.html            the page, with the answers as text for readers without scripts
site/assets/board.{js,css} made from `frontend/` by `npm run build`, shipped with the package
site/data/board.js         tasks, methods, answers, and the matrix of tasks x methods
site/data/SLUG.js          the rows of a task; SLUG-groups.js and SLUG-runs.js: its group accuracies and runs

Data are scripts that call one function with a value: a page from disk may load scripts, but not fetch files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.leaderboard import columns
from prunebench.leaderboard.aggregate import RANKED
from prunebench.leaderboard.answers import (
    BestMethod,
    answers_of,
    first_speed,
    lead_of,
    reference_of,
    shown_sparsity,
)
from prunebench.leaderboard.papers import paper_of
from prunebench.leaderboard.values import Leaderboard, MeasuredSpeed, MethodRow, Track
from prunebench.metrics.registry import Metric, metric_named
from prunebench.report import format as fmt
from prunebench.report.html import render, script_json
from prunebench.results.record import RunRecord
from prunebench.stats.intervals import UNDEFINED, Interval

ASSETS = Path(__file__).parent / "assets"
TEMPLATES = Path(__file__).parent / "templates"
COSTS = ("nonzero_parameters", "nonzero_macs_share", "theoretical_speed_up", "training")
"""Columns of cost that are sent as numbers."""

Json = dict[str, Any]


def site_files(
    board: Leaderboard,
    words: Json,
    analyses: Json,
    hypotheses: Mapping[str, Any],
    changes: Json | None = None,
) -> dict[str, bytes]:
    """Each file of the site by its name.

    Args:
        board: what it shows.
        words: sentences of the page: `introduction`, `facts`, `reading`.
        analyses: by slug, the page of an analysis.
        hypotheses: by slug, cards of a task; under "" those of the whole board.
        changes: what `diff` found against another board.
    """
    files = {f"site/assets/{path.name}": path.read_bytes() for path in sorted(ASSETS.iterdir())}
    files["site/index.html"] = page_html(board, words, analyses).encode()
    labels = {label: place for place, label in enumerate(_labels(board))}
    tasks = [
        _task(track, labels)
        | {"analysis": analyses.get(track.slug), "hypotheses": hypotheses.get(track.slug, [])}
        for track in board.tracks
    ]
    index = board_data(board, labels, words)
    index |= {"tasks": tasks, "hypotheses": hypotheses.get("", []), "changes": changes}
    files["site/data/board.js"] = chunk("board", index)
    for track in board.tracks:
        files[f"site/data/{track.slug}.js"] = chunk(track.slug, rows_data(track, labels))
        files[f"site/data/{track.slug}-groups.js"] = chunk(f"{track.slug}-groups", groups_data(track))
        files[f"site/data/{track.slug}-runs.js"] = chunk(f"{track.slug}-runs", runs_data(track))
    return files


def page_html(board: Leaderboard, words: Json, analyses: Json) -> str:
    """The page, with the best of each task for readers without scripts."""
    found = [(track, answers_of(track)) for track in board.tracks]
    return render("index.html.j2", TEMPLATES, words=words, tasks=found, analyses=analyses)


def chunk(key: str, values: Any) -> bytes:
    """A script that hands a value to the page."""
    return f'pruneBenchData("{key}", {script_json(values)});\n'.encode()


def _labels(board: Leaderboard) -> list[str]:
    return sorted({row.method for track in board.tracks for row in track.rows})


# The index


def board_data(board: Leaderboard, labels: dict[str, int], words: Json) -> Json:
    """Methods, metrics, and where the numbers were made."""
    shown = [
        metric for metric in columns.board_metrics() if any(metric.name in t.metrics for t in board.tracks)
    ]
    return {
        **words,
        "metrics": [_metric(metric) for metric in shown],
        "methods": _methods(board, labels),
        "environments": board.environments,
        "commits": board.commits,
        "history": board.history,
    }


def _metric(metric: Metric) -> Json:
    kept = ("name", "title", "short", "unit", "decimals", "better", "help")
    return {name: getattr(metric, name) for name in kept} | {"attributes": metric.of_attributes}


def _task(track: Track, labels: dict[str, int]) -> Json:
    reference = reference_of(track)
    return {
        "slug": track.slug,
        "title": track.title,
        "task": track.task,
        "version": track.task_version,
        "data": track.data_fingerprint,
        "model": track.model,
        "recipe": [[name, str(value)] for name, value in track.recipe],
        "seeds": track.seeds,
        "sparsities": track.sparsities,
        "shown": shown_sparsity(track),
        "devices": [machine.label for machine in track.machines],
        "differs": track.differs,
        "notes": track.notes,
        "problems": track.problems,
        "lead": lead_of(track).name,
        "remarks": track.remarks,
        "reference": None if reference is None else labels[reference.method],
        "summary": columns.speed_summary(track),
        "answers": [_answer(answer, labels) for answer in answers_of(track)],
        "cells": _matrix(track, labels),
    }  # fmt: skip


def _answer(answer: BestMethod, labels: dict[str, int]) -> Json:
    row, speed = answer.best, first_speed(answer.best)
    value = row.metric(answer.lead.name)
    return {
        "sparsity": answer.sparsity,
        "method": labels[row.method],
        "words": answer.words,
        "rank": answer.rank,
        "mean": _number(value.mean, answer.lead.decimals, answer.lead.scale),
        "width": _width(value, answer.lead),
        "before": answer.before,
        "gap": _number(row.metric("bias_gap").mean, 1, 100),
        "speed": None if speed is None else _speed(speed),
        "training": None if row.cost is None else _number(row.cost.training, 2),
        "faster": [labels[name] for name in answer.faster],
    }


def _matrix(track: Track, labels: dict[str, int]) -> Json:
    """The metric that ranks, column-wise; `place` is that among `sparsities`, -1 of dense rows, -2 of native ones."""
    places = {sparsity: place for place, sparsity in enumerate(track.sparsities)}
    rows, lead = [row for row in track.rows if row.has_means], lead_of(track)

    def place_of(row: MethodRow) -> int:
        return -1 if row.dense else -2 if row.sparsity is None else places[row.sparsity]

    return {
        "method": [labels[row.method] for row in rows],
        "place": list(map(place_of, rows)),
        **_interval_columns([row.metric(lead.name) for row in rows], lead),
        "rank": [_rank(row, lead)[1] for row in rows],
        "collapsed": [int(bool(row.collapsed)) for row in rows],
        "training": [_number(row.cost.training if row.cost is not None else None, 2) for row in rows],
    }


def _methods(board: Leaderboard, labels: dict[str, int]) -> list[Json]:
    """A card a method: source, settings, supervision, version, and whether it is ranked."""
    cards: dict[str, Json] = {}
    for track in board.tracks:
        for row in track.rows:
            if row.method not in cards and row.runs:
                cards[row.method] = _card(row)
    empty = {
        "name": "",
        "cite": "",
        "supervision": "",
        "version": "",
        "settings": [],
        "ranked": False,
        "paper": None,
    }
    return [{"label": label, **cards.get(label, empty)} for label in labels]


def _card(row: MethodRow) -> Json:
    run = row.runs[0]
    return {
        "name": run.spec["method"],
        "cite": run.method.get("cite", ""),
        "supervision": row.supervision,
        "version": str(run.spec["method_version"]),
        "settings": [[name, str(value)] for name, value in sorted(run.spec["params"].items())],
        "ranked": run.method.get("ranked") != "no" and not row.dense,
        "paper": paper_of(run.method.get("cite", "")),
    }


# A task


def rows_data(track: Track, labels: dict[str, int]) -> Json:
    """The rows of a track, column-wise, as the tables of the Markdown write them."""
    rows, lead = track.rows, lead_of(track)
    lines = [columns.BoardLine(row, row.cost.speeds if row.cost is not None else ()) for row in rows]
    costs = {column.key: column for column in columns.COSTS if column.key in COSTS}
    masks = {column.key: column for column in columns.MASKS}
    metrics = [metric for metric in columns.board_metrics() if metric.name in track.metrics]
    inside = metric_named(columns.IN_DISTRIBUTION_METRIC)
    changes = [row.changes.get(lead.name) for row in rows]
    differences = [UNDEFINED if found is None else found.interval for found in changes]
    return {
        "method": [labels[row.method] for row in rows],
        "sparsity": [row.sparsity for row in rows],
        "dense": [int(row.dense) for row in rows],
        "achieved": [_number(row.achieved.mean, 4) for row in rows],
        "seeds": [f"{len(row.seeds)}/{len(row.planned)}" for row in rows],
        "verified": [row.verified for row in rows],
        "mixed": ["; ".join(row.mixed) for row in rows],
        "collapsed": [row.collapsed for row in rows],
        "unranked": [row.unranked for row in rows],
        "rank": [_rank(row, lead) for row in rows],
        "metrics": {m.name: _interval_columns([row.metric(m.name) for row in rows], m) for m in metrics},
        "in_distribution": _interval_columns([row.in_distribution for row in rows], inside),
        "change": _interval_columns(differences, lead, cut=False),
        "decided": [int(found is not None and found.decided) for found in changes],
        "folded": {row.tag: sorted(row.folded) for row in rows if row.folded},
        "masks": {str(place): [[masks[key].title, masks[key].cell(line).text] for key in masks]
                  for place, line in enumerate(lines) if line.row.mask is not None},
        "speeds": [
            [[track.machines.index(speed.machine), *_speed(speed)] for speed in line.speeds] for line in lines
        ],
        **{key: [_number(column.value and column.value(line), 4) for line in lines] for key, column in costs.items()},
    }  # fmt: skip


def _rank(row: MethodRow, lead: Metric) -> tuple[int | None, str]:
    """What it sorts by, and how it is written."""
    rank = row.ranks.get(lead.name)
    return (None, "") if rank is None else (rank.best, str(rank))


def _speed(speed: MeasuredSpeed) -> list[float | str | None]:
    """Speed-up with half-width, what must be said of it, latencies dense and pruned (ms), runs, noise floor."""
    ratio, noise = speed.speed_up, speed.noise
    return [
        _number(ratio.mean, 2), _number(ratio.half_width, 2), speed.remark, _number(speed.dense_ms, 3),
        _number(speed.pruned_ms, 3), speed.runs, None if noise is None else _number(noise.mean, 2),
    ]  # fmt: skip


def groups_data(track: Track) -> Json:
    """Accuracy (%) by label and bias of each row that has groups, by its place among the rows."""
    maps = {
        str(place): [[_number(value, 0, 100) for value in line] for line in row.groups]
        for place, row in enumerate(track.rows)
        if row.groups
    }
    return {"maps": maps, "aligned": [[int(value) for value in line] for line in track.aligned]}


RUN_FACTS: tuple[tuple[str, Callable[[RunRecord], Any]], ...] = (
    ("seed", lambda run: run.spec["seed"]),
    ("id", lambda run: run.run_id),
    ("status", lambda run: run.status),
    ("reason", lambda run: fmt.cut(run.reason, 300) if run.reason else ""),
    *((name, lambda run, name=name: _number(run.metrics.get(name), 1, 100)) for name in RANKED),
    ("seconds", lambda run: round(sum(run.phase_seconds.values()), 1)),
    ("commit", lambda run: str(run.code.get("commit") or "")[:12]),
    ("started", lambda run: run.started_utc),
)
"""What the page says of a run."""


def runs_data(track: Track) -> Json:
    """The runs of each row, in the order of rows: facts in the order of `facts`."""
    return {
        "facts": [name for name, _ in RUN_FACTS],
        "runs": [[[of(run) for _, of in RUN_FACTS] for run in row.runs] for row in track.rows],
    }


# Numbers


def _interval_columns(intervals: Sequence[Interval], metric: Metric, *, cut: bool = True) -> Json:
    """Means and half-widths in a metric's unit at its decimals; differences are not `cut`."""
    return {
        "mean": [_number(interval.mean, metric.decimals, metric.scale) for interval in intervals],
        "width": [_width(interval, metric, cut=cut) for interval in intervals],
    }


def _width(interval: Interval, metric: Metric, *, cut: bool = True) -> Any:
    """The half-width; both ends instead where the interval is cut at what is possible."""
    bounds = columns.cut_bounds(interval, metric) if cut else None
    if bounds is not None:
        return [_number(end, metric.decimals, metric.scale) for end in bounds]
    return _number(interval.half_width, metric.decimals, metric.scale)


def _number(value: float | None, decimals: int, scale: float = 1) -> float | int | None:
    """A number as it is written in tables; whole ones without a point, undefined ones as None."""
    if value is None or not math.isfinite(value):
        return None
    rounded = round(float(scale * value), decimals)
    return int(rounded) if rounded.is_integer() else rounded
