"""Re-training of runs that a public seed draws, the third stage: the submitted file, through the ordinary runner."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prunebench.errors import PruneBenchError, StoreError
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.runner.jail import explain_sandbox
from prunebench.runner.local import LocalLauncher
from prunebench.runner.plan import PlannedRun, RunContext, expand, plan
from prunebench.submission.consistency import row_key, rows_disagree, same_machine
from prunebench.submission.folder import Submission
from prunebench.submission.records import Finding
from prunebench.submission.report import Stage
from prunebench.suites import Suite

RETRAINED = "re-trained"


def draw_runs(records: Sequence[RunRecord], count: int, text: str, method: str) -> list[RunRecord]:
    """The `count` runs whose SHA-256 of `text` and run id comes first: nobody chooses, everybody can draw again."""

    def lot(record: RunRecord) -> str:
        return hashlib.sha256(f"{text}\n{record.run_id}".encode()).hexdigest()

    return sorted((record for record in records if record.spec["method"] == method), key=lot)[:count]


def retrain(
    submission: Submission, records: Sequence[RunRecord], count: int, text: str, data_root: Path | None
) -> Stage:
    """Train drawn runs again: the same logits, or else the row of a drawn run is trained whole and agrees."""
    drawn = draw_runs(records, count, text, submission.manifest.method)
    notes = [f"Drawn by {text!a:.80}: {', '.join(f'{run.run_id} ({run.run_spec.label})' for run in drawn)}."]
    with tempfile.TemporaryDirectory() as folder:
        context = RunContext(Path(folder), data_root, sandbox=explain_sandbox() is None)
        try:
            again = _train(submission, drawn, context)
            rows = [_row_of(run, records) for run in drawn if not _same_bits(run, again[run.run_id])]
            more = {run.run_id: run for row in rows for run in row if run.run_id not in again}
            again |= _train(submission, list(more.values()), context)
        except PruneBenchError as error:
            return Stage(
                RETRAINED, (Finding("its runs can be trained here", False, str(error)),), tuple(notes)
            )
    same = sum(_same_bits(run, again[run.run_id]) for run in drawn)
    findings = [Finding("its runs can be trained here", True), _declares(drawn, again)]
    findings.append(_rows_agree(rows, again))
    alike = sum(same_machine(run, again[run.run_id]) for run in drawn)
    notes.append(
        f"{same} of {len(drawn)} drawn runs give the same logits to the last bit ({alike} were made on a processor "
        f"of this name with this torch); of the others the whole row was trained, {len(again)} runs in all."
    )
    return Stage(RETRAINED, tuple(findings), tuple(notes))


def _same_bits(run: RunRecord, again: RunRecord) -> bool:
    return run.outputs_sha256 == again.outputs_sha256


def _row_of(run: RunRecord, records: Sequence[RunRecord]) -> list[RunRecord]:
    found = [other for other in records if row_key(other) == row_key(run)]
    return sorted(found, key=lambda other: other.run_spec.seed)


def _declares(drawn: Sequence[RunRecord], again: dict[str, RunRecord]) -> Finding:
    """The file declares what the records say, and spends what they say."""
    wrong = []
    for run in drawn:
        here = again[run.run_id]
        if run.method != here.method:
            wrong.append(f"{run.run_id}: its file declares {here.method}, its record {run.method}")
        assert run.cost is not None
        assert here.cost is not None
        if run.cost.training_steps != here.cost.training_steps:
            wrong.append(
                f"{run.run_id}: {here.cost.training_steps} steps here, its record says {run.cost.training_steps}"
            )
        if run.spec["sparsity"] is not None and run.sparsity != here.sparsity and _same_bits(run, here):
            wrong.append(f"{run.run_id}: other zeros than its record says")
    return Finding("it declares, and spends, what its records say", not wrong, "; ".join(wrong[:4]))


def _rows_agree(rows: Sequence[Sequence[RunRecord]], again: dict[str, RunRecord]) -> Finding:
    wrong = [text for row in rows for text in rows_disagree([again[run.run_id] for run in row], row)]
    return Finding(
        "it gives the same logits, or rows within the interval", not wrong, "; ".join(dict.fromkeys(wrong))
    )


def _train(submission: Submission, runs: Sequence[RunRecord], context: RunContext) -> dict[str, RunRecord]:
    """Train runs, and their dense models, in a worker. Raises StoreError where one is not planned so or fails."""
    planned: dict[str, PlannedRun] = {}
    for run in runs:
        found = {planned.spec.run_id: planned for planned in _plan(submission, run, context)}
        if run.run_id not in found:
            raise StoreError(
                f"{run.run_id} {run.run_spec.label}: this task, model and file do not plan such a run"
            )
        planned |= found
    store = Store(context.out)
    store.prepare()
    todo = plan(list(planned.values()), store)
    for _ in LocalLauncher(1).map(todo, context):
        pass
    records = {run.run_id: store.read(run.run_id) for run in runs}
    for record in records.values():
        if record.status != "ok":
            raise StoreError(f"{record.run_id} {record.run_spec.label} {record.status} here: {record.reason}")
    return records


def _plan(submission: Submission, run: RunRecord, context: RunContext) -> list[PlannedRun]:
    """A run and its dense model, as the ordinary plan has them."""
    spec = run.run_spec
    source = submission.source
    suite = Suite(
        name="re-trained",
        tasks=(spec.task,),
        methods=(spec.method if source is None else f"{source.resolve()}:{spec.method}",),
        sparsities=(0.5 if spec.sparsity is None else spec.sparsity,),
        seeds=(spec.seed,),
        model=spec.model,
        recipe=dataclasses.asdict(spec.recipe),
        params={spec.method: dict(spec.params)},
    )
    return expand(suite, context.data_root, sandbox=context.sandbox)
