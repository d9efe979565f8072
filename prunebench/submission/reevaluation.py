"""Re-evaluation of stored weights, the second stage, in a process of its own: nothing of the submission's code runs.

`python -m prunebench.submission.reevaluation` reads `{"results": folder, "data_root": ..., "runs": [run_id, ...]}` on
standard input and writes a line of JSON a run. Weights are safetensors, loaded into the task's own network; its zeros
are counted, its logits of validation and test split computed here, and metrics from those. Where fresh draws are asked
for, their numbers come on standard input too, where no other process reads them.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from prunebench.errors import PruneBenchError, StoreError
from prunebench.results.artifacts import open_remote, pull, push, read_manifest
from prunebench.results.record import RunRecord
from prunebench.results.store import open_results
from prunebench.results.tracks import is_dense
from prunebench.runner.environment import describe_environment
from prunebench.submission.consistency import SAME, object_list, row_key, rows_of, track_key
from prunebench.submission.facts import RecordFacts
from prunebench.submission.folder import ARTIFACTS, Submission
from prunebench.submission.fresh_draw import FreshRow, Shares, fresh_shares, judge
from prunebench.submission.records import CLOSE, Finding, dense_of, record_problems
from prunebench.submission.report import Stage
from prunebench.submission.secret import Secret

CHANGED, ACCURACY = 0.005, 0.01
"""On another processor at most this share of test images is answered otherwise, and accuracies are this close."""
ACCURACIES = ("plain", "unbiased", "aligned", "conflicting", "worst_group")
FASTER, BEYOND = 3.0, 1.5
"""A claimed speed-up is refused above both: so many times the one here, and the one of multiply-accumulates."""
MOST_TIMED, MOST_TOLD = 12, 8
"""Rows that are timed again, and those of which the report tells how they do on a fresh draw."""
TIMEOUT_SECONDS = 1800
RECOMPUTED, REEVALUATED = "unverified weights", "re-evaluated"


@dataclass(frozen=True)
class Again:
    """What the weights of one run give here: zeros by layer, whether the logits are the stored ones, metrics."""

    run_id: str
    zeros: Mapping[str, float]
    nonzero_parameters: int
    same_bits: bool
    changed: float
    largest: float
    metrics: Mapping[str, float | None]
    speed: float | None = None
    """Latency dense / pruned, where it was measured here."""
    fresh: Shares | None = None
    """Right answers on the public and on a fresh draw, where one was made."""


def fetch(submission: Submission, address: str) -> None:
    """Bring logits and weights into the cache, by their hashes; the address may also be the folder of a store.

    Raises StoreError where one is missing or is not what the records name.
    """
    with tempfile.TemporaryDirectory() as folder:
        if (Path(address) / "runs").is_dir():
            records = open_results(submission.results).records()[0]
            list(push(Path(address), folder, methods=sorted({record.spec["method"] for record in records})))
            address = folder
        _check_list(submission, address)
        moves = list(pull(submission.results, address))
    wrong = [f"{move.kind} of {move.run_id}: {move.problem}" for move in moves if move.problem]
    if wrong:
        raise StoreError(f"{len(wrong)} objects cannot be had: {'; '.join(wrong[:3])}")


def _check_list(submission: Submission, address: str) -> None:
    """Raise StoreError unless the address offers objects of the sizes that were checked, for not more is fetched."""
    offered = read_manifest(open_remote(address))
    for run_id, entry in object_list(submission).items():
        if offered.get(run_id, entry) != entry:
            raise StoreError(
                f"{address}: has other logits or weights of {run_id} than {ARTIFACTS} lists: push them"
            )


def reevaluate(
    submission: Submission,
    records: Sequence[RunRecord],
    address: str,
    data_root: Path | None,
    secret: Secret | None = None,
) -> Stage:
    """Hold what stored logits and weights give here against what the records say.

    With a secret, the networks are tested on a fresh draw too.
    """
    predictions = submission.manifest.kind == "predictions"
    badge = RECOMPUTED if predictions else REEVALUATED
    try:
        fetch(submission, address)
    except PruneBenchError as error:
        return Stage(badge, (Finding("logits and weights are there, with their hashes", False, str(error)),))
    findings = [
        Finding("logits and weights are there, with their hashes", True),
        _rescored(submission, records, data_root),
    ]
    if predictions:
        return Stage(
            badge,
            tuple(findings),
            (
                "Predictions alone: metrics were computed here; no weights were seen, so nothing was tested on "
                "a fresh draw.",
            ),
        )
    try:
        again = {found.run_id: found for found in _in_a_process(submission, records, data_root, secret)}
    except PruneBenchError as error:
        return Stage(badge, (*findings, Finding("weights fit the task's network", False, str(error))))
    pairs = [(record, again[record.run_id]) for record in records]
    findings += [
        _all("every zero that is claimed is counted", (_zeros(record, found) for record, found in pairs)),
        _all("the weights give the stored logits", (_logits(record, found) for record, found in pairs)),
        _all("and the recorded metrics", (_metrics(record, found) for record, found in pairs)),
    ]
    timed = [(_row(record, records), found.speed) for record, found in pairs if found.speed is not None]
    timed.sort(key=lambda pair: (pair[0][0].run_spec.task, pair[0][0].run_spec.sparsity or 0.0))
    findings.append(_all("a speed that it claims is possible", (_speed(row, here) for row, here in timed)))
    same = sum(found.same_bits for _, found in pairs)
    note = (
        f"{same} of {len(pairs)} runs give the same bits here; the others may differ in {CHANGED:.1%} of the answers "
        f"and in {ACCURACY:.0%} of accuracy."
    )
    speeds = (f"{row[0].run_spec.sparsity}: {fmean(_claimed(row)):.2f} / {here:.2f}" for row, here in timed)
    notes = [note, f"Speed-up claimed / of one run here, by sparsity: {'; '.join(speeds)}."]
    if secret is not None:
        drawn, words = drawn_afresh(records, again, secret)
        findings += drawn
        notes += words
    return Stage(badge, tuple(findings), tuple(notes))


def drawn_afresh(
    records: Sequence[RunRecord], again: Mapping[str, Again], secret: Secret
) -> tuple[list[Finding], list[str]]:
    """Whether every row does as well on a fresh draw as on the public test split, and what is told of it."""
    tested = [record for record in records if again[record.run_id].fresh is not None]
    untested = sorted({record.run_spec.task for record in records} - {run.run_spec.task for run in tested})
    notes = [f"Fresh draws by the secret with the commitment {secret.commitment}."] if tested else []
    notes += [f"{name}: its test images are public as they are, there is no fresh draw." for name in untested]
    if not tested:
        return [], notes
    dense = {place_of(record): again[record.run_id].fresh for record in tested if is_dense(record)}
    rows = []
    for row in rows_of(tested):
        spec = row[0].run_spec
        runs = {run.run_spec.seed: again[run.run_id].fresh or {} for run in row}
        known = not is_dense(row[0]) and all(place_of(run) in dense for run in row)
        beside = {run.run_spec.seed: dense[place_of(run)] or {} for run in row} if known else {}
        rows.append(FreshRow(f"{spec.method} on {spec.task} at {spec.sparsity}", runs, beside))
    gaps = sorted(judge(rows), key=lambda gap: gap.allowed - gap.excess)
    notes += [gap.words + "." for gap in gaps[:MOST_TOLD]]
    wrong = [f"{gap.words}: fitted to the public test split" for gap in gaps if gap.beyond]
    what = "it does as well on a fresh draw as on the public test split"
    return [_all(what, wrong)], notes


def place_of(record: RunRecord) -> str:
    """Equal for runs that may be compared and share a seed."""
    return f"{track_key(record)} {record.run_spec.seed}"


def _rescored(submission: Submission, records: Sequence[RunRecord], data_root: Path | None) -> Finding:
    store, facts = open_results(submission.results), RecordFacts(data_root)
    missing = [record.run_id for record in records if _labels(facts, record) is None]
    if missing:
        return Finding(
            "metrics follow from the stored logits", False, "the task's data are not here: name --data-root"
        )
    problems = (
        "; ".join([record.run_id, *found]) if (found := record_problems(store, record, facts)) else None
        for record in records
    )
    return _all("metrics follow from the stored logits", problems)


def _labels(facts: RecordFacts, record: RunRecord) -> object:
    task = facts.task(record.run_spec.task)
    return None if task is None else task.labels(record.run_spec.seed)


def _all(what: str, problems: Iterable[str | None]) -> Finding:
    found = [problem for problem in problems if problem]
    more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
    return Finding(what, not found, "; ".join(found[:4]) + more)


def _zeros(record: RunRecord, found: Again) -> str | None:
    assert record.sparsity is not None
    assert record.cost is not None
    claimed = record.sparsity.by_layer
    dense = record.spec["method"] == "dense"
    off = [name for name in claimed if not dense and abs(claimed[name] - found.zeros.get(name, -1)) > 1e-9]
    if off:
        counted, said = found.zeros.get(off[0], 0.0), claimed[off[0]]
        return f"{record.run_id}: {off[0]} has {counted:.6f} zeros, its record says {said:.6f}"
    deferred = record.notes.get("deferred_share_test") is not None
    if not deferred and found.nonzero_parameters != record.cost.nonzero_parameters:
        return (
            f"{record.run_id}: {found.nonzero_parameters} parameters are not zero, its record says "
            f"{record.cost.nonzero_parameters}"
        )
    return None


def _logits(record: RunRecord, found: Again) -> str | None:
    if found.same_bits or found.changed <= CHANGED:
        return None
    return (
        f"{record.run_id} {record.run_spec.label}: {found.changed:.1%} of its test images are answered otherwise "
        f"(logits differ by up to {found.largest:.3g}): other weights than those that gave the logits"
    )


def _row(record: RunRecord, records: Sequence[RunRecord]) -> list[RunRecord]:
    return [other for other in records if row_key(other) == row_key(record)]


def _claimed(row: Sequence[RunRecord]) -> list[float]:
    costs = [run.cost for run in row if run.cost is not None]
    return [cost.latency_dense_ms.p50 / cost.latency_pruned_ms.p50 for cost in costs]


def _speed(row: Sequence[RunRecord], here: float) -> str | None:
    """A row's speed-up is believed unless every run of it is far beyond what is measured here and what zeros give.

    One run alone is no proof: a neighbour's load made honest ones of a ratio of 1 read 3.8.
    """
    cost, least, label = row[0].cost, min(_claimed(row)), row[0].run_spec.label
    assert cost is not None
    ideal = cost.macs / cost.nonzero_macs
    if least <= FASTER * here or least <= BEYOND * ideal:
        return None
    return (
        f"{label} and its other seeds: at least {least:.2f} times as fast, {here:.2f} here; skipping all zeros gives "
        f"{ideal:.2f}: measure again on a quiet machine (`prunebench retime`), then pack"
    )


def _metrics(record: RunRecord, found: Again) -> str | None:
    allowed = CLOSE if found.same_bits else ACCURACY
    for name in ACCURACIES:
        said, here = record.metrics.get(name), found.metrics.get(name)
        if said is not None and (here is None or not abs(said - here) <= allowed):
            return f"{record.run_id} {record.run_spec.label}: {name} is {said:.4f}, its weights give {here}"
    return None


def environment_here() -> str:
    """The processor and the torch that a report speaks of."""
    facts = describe_environment("cpu")
    return ", ".join(
        f"{facts[name]}" if name == "cpu" else f"{name} {facts[name]}" for name in SAME if facts.get(name)
    )


# The process


def _in_a_process(
    submission: Submission, records: Sequence[RunRecord], data_root: Path | None, secret: Secret | None
) -> Iterator[Again]:
    request = {
        "results": str(submission.results.resolve()),
        "data_root": None if data_root is None else str(data_root.resolve()),
        "runs": [record.run_id for record in records],
        "timed": [row[0].run_id for row in rows_of(records) if not is_dense(row[0])][:MOST_TIMED],
        "fresh": {} if secret is None else _freshness(records, secret),
    }
    command = [sys.executable, "-P", "-m", "prunebench.submission.reevaluation"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, input=json.dumps(request), capture_output=True, text=True, cwd=folder,
                timeout=TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise StoreError(f"re-evaluation took more than {TIMEOUT_SECONDS} seconds") from error
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [line["problem"] for line in lines if "problem" in line]
    if wrong or done.returncode or len(lines) != len(records):
        raise StoreError(
            "; ".join(wrong[:3]) or f"the process ended with status {done.returncode}: {done.stderr[-300:]}"
        )
    yield from (Again(**line) for line in lines)


def _freshness(records: Sequence[RunRecord], secret: Secret) -> dict[str, Sequence[int]]:
    """The numbers of every fresh draw that there can be, by run."""
    specs = {record.run_id: record.run_spec for record in records}
    return {
        run_id: secret.freshness(spec.task, spec.task_version, spec.seed) for run_id, spec in specs.items()
    }


def main() -> None:
    """Evaluate the runs that standard input names; a line of JSON each, or the problem."""
    import torch

    from prunebench.runner.evaluate import TaskData
    from prunebench.runner.execute import one_thread
    from prunebench.tasks import resolve_task

    request = json.load(sys.stdin)
    store, root = open_results(Path(request["results"])), request["data_root"]
    data_root = None if root is None else Path(root)
    records = sorted(map(store.read, request["runs"]), key=lambda run: (run.spec["task"], run.spec["seed"]))
    draw, data, fresh = None, None, None
    for record in records:
        if draw != (draw := (record.run_spec.task, record.run_spec.seed)) or data is None:
            task = resolve_task(draw[0], data_root)
            data = TaskData(task, data_root, draw[1], torch.device("cpu"))
            words = request["fresh"].get(record.run_id) if task.fresh_draw else None
            fresh = words and TaskData(task.refreshed(words), data_root, draw[1], torch.device("cpu"))
        try:
            with one_thread(data.device):
                timed = record.run_id in request["timed"]
                line = evaluate_again(store, record, data, data_root, timed=timed, fresh=fresh)
        except Exception as error:
            line = {"problem": f"{record.run_id} {record.run_spec.label}: {str(error)[:300]}"}
        print(json.dumps(line), flush=True)


def evaluate_again(
    store: Any, record: RunRecord, data: Any, data_root: Path | None, *, timed: bool, fresh: Any = None
) -> dict[str, Any]:
    """What a run's stored weights give on these data: the fields of `Again`."""
    import torch

    from prunebench.inference.cascade import THRESHOLD_NOTE, Cascade, Deferral
    from prunebench.inference.cost import count_parameters
    from prunebench.models import build_model
    from prunebench.pruning.masks import prunable
    from prunebench.runner.evaluate import measure_cost, measure_outputs
    from prunebench.runner.stored import load_stored

    sizes: dict[str, int] = {}

    def network(of: RunRecord) -> torch.nn.Module:
        net = build_model(
            of.run_spec.model, data.task.num_outputs, seed=of.run_spec.seed, data_root=data_root
        )
        sizes.update({name: weight.numel() for name, weight in prunable(net).items()})
        load_stored(net, of, store)
        return net

    model = measured = network(record)
    threshold = record.notes.get(THRESHOLD_NOTE)
    if threshold is not None:
        dense = dense_of(store, record)
        if dense is None:
            raise StoreError("it defers to a dense model that is not here")
        multi_label = data.task.attributes is not None
        measured = Cascade(model, network(dense), Deferral(threshold), multi_label=multi_label)
    weights = prunable(model)
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise StoreError("its weights are not all finite")
    outputs, _, metrics, _ = measure_outputs(measured, data)
    stored = store.read_tensors(record.run_id, "outputs")
    here, there = outputs["test_logits"].float(), stored["test_logits"].float()
    if here.shape != there.shape:
        raise StoreError(f"its stored logits have the shape {tuple(there.shape)}, want {tuple(here.shape)}")
    answers = [
        values > 0 if data.task.attributes is not None else values.argmax(1) for values in (here, there)
    ]
    speed = None
    if timed:
        plain = build_model(record.run_spec.model, data.task.num_outputs, seed=0, data_root=data_root)
        cost = measure_cost(plain.eval(), measured, data, 1, 1)
        speed = cost.latency_dense_ms.p50 / cost.latency_pruned_ms.p50
    return {
        "run_id": record.run_id,
        "speed": speed,
        "fresh": None if fresh is None else fresh_shares(measured, data, fresh),
        "zeros": {name: 1 - int((weight != 0).sum()) / sizes[name] for name, weight in weights.items()},
        "nonzero_parameters": count_parameters(model)[1],
        "same_bits": all(bool(outputs[name].equal(stored[name])) for name in outputs),
        "changed": float((answers[0] != answers[1]).double().mean()),
        "largest": float((here - there).abs().max()),
        "metrics": {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in metrics.items()
        },
    }


if __name__ == "__main__":
    main()
