"""Consistency of a submission, the first stage: what can be told without its code, its weights or any training."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, variance

from prunebench.errors import PruneBenchError, StoreError
from prunebench.methods.discovery import builtin_names, digest_of, resolve_method
from prunebench.results.artifacts import KINDS, Manifest, parse_manifest
from prunebench.results.committed import is_committed
from prunebench.results.convert import form_problems
from prunebench.results.record import PREDICTIONS_NOTE, RunRecord
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.store import CommittedStore, open_results
from prunebench.results.tracks import (
    REFERENCE,
    SeedPlan,
    is_dense,
    is_reference_of,
    planned_seeds,
    seed_plan,
    track_identity,
)
from prunebench.runner.plan import board_plans
from prunebench.submission.facts import RecordFacts
from prunebench.submission.folder import ARTIFACTS, Submission
from prunebench.submission.predictions import VERSION as PREDICTED
from prunebench.submission.records import Finding, record_problems

POINTS, ERRORS, WIDEST = 0.02, 2.0, 0.05
"""Row means agree within the larger of 2 points and 2 standard errors of their difference, at most 5 points."""
JUDGED = ("unbiased", "conflicting")
"""The metrics by which rows are compared with rows of another machine."""
SAME = ("cpu", "gpu", "torch", "device", "precision")
"""Where these agree, runs are expected to give the same bits."""
HEADER, MOST_OUTPUTS, MOST_VALIDATION = 1 << 20, 50, 2
"""Of a file of logits: bytes of its header, outputs of a multi-label task, images as a multiple of the test split."""
FEWEST_SEEDS, MOST_RUNS = 2, 2000
"""Seeds of a track that the board does not have yet; runs of a submission."""


@dataclass(frozen=True)
class BoardResults:
    """The committed results that a submission is held against, and the cards of methods that are on the board."""

    records: tuple[RunRecord, ...] = ()
    authors: dict[str, frozenset[str]] = field(default_factory=dict)
    """By method: everybody who is named on one of its cards."""
    plans: tuple[SeedPlan, ...] = ()
    """The seeds that rows are to have."""

    @classmethod
    def read(cls, folder: Path) -> BoardResults:
        """Of a folder in the committed form; empty where there is none. Raises StoreError for lines that are wrong."""
        from prunebench.submission.card import CARD, read_card

        if not is_committed(folder):
            return cls(plans=board_plans())
        records, damaged = CommittedStore(folder).records()
        if damaged:
            raise StoreError(f"{folder}: mend the board's results first: {damaged[0].reason}")
        authors: dict[str, frozenset[str]] = {}
        for path in sorted(folder.glob(f"submissions/*/*/{CARD}")):
            name = path.parent.parent.name
            authors[name] = authors.get(name, frozenset()) | {*read_card(path).authors}
        return cls(tuple(records), authors, board_plans())

    def track(self, record: RunRecord) -> list[RunRecord]:
        """The runs that a run may be compared with."""
        key = track_key(record)
        return [own for own in self.records if track_key(own) == key]

    def versions(self, method: str) -> set[str]:
        """The versions of a method that have runs here."""
        return {own.spec["method_version"] for own in self.records if own.spec["method"] == method}


def track_key(record: RunRecord) -> str:
    """Equal for runs that may be compared."""
    return json.dumps(track_identity(record), sort_keys=True)


def row_key(record: RunRecord) -> str:
    """Equal for runs that differ in their seed alone."""
    spec = {name: value for name, value in record.spec.items() if name != "seed"}
    return json.dumps(spec, sort_keys=True)


def rows_of(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs by row, in order of their seeds."""
    rows: defaultdict[str, list[RunRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda run: run.spec["seed"]):
        rows[row_key(record)].append(record)
    return list(rows.values())


@dataclass(frozen=True)
class Case:
    """One submission on trial: its records, the board, and what else was handed in with it."""

    submission: Submission
    records: tuple[RunRecord, ...]
    board: BoardResults
    facts: RecordFacts
    beside: tuple[RunRecord, ...] = ()

    @property
    def own(self) -> list[RunRecord]:
        """The runs of the submitted method."""
        method = self.submission.manifest.method
        return [record for record in self.records if not is_reference_of(record, method)]

    @property
    def dense(self) -> list[RunRecord]:
        """The dense models of its seeds."""
        return [record for record in self.records if is_dense(record)]

    @property
    def references(self) -> list[RunRecord]:
        """The dense models, and those with a pruned network's steps."""
        return [record for record in self.records if is_reference_of(record, self.submission.manifest.method)]


Rule = Callable[[Case], Iterator[str]]


def check_consistency(
    submission: Submission, board: BoardResults, data_root: Path | None, beside: Sequence[RunRecord] = ()
) -> tuple[list[Finding], tuple[RunRecord, ...]]:
    """What holds of a submission and what does not, with the reason; and its records. Nothing of it is run."""
    try:
        store = open_results(submission.results)
        records, damaged = store.records()
    except PruneBenchError as error:
        return [Finding("its results are in the committed form", False, str(error))], ()
    problems = [entry.reason for entry in damaged] or form_problems(submission.results)
    if problems or not records:
        return [_finding("its results are in the committed form", problems or ["there are none"])], ()
    if (
        bounds := _finding("it has runs of seeds that count, and not too many", list(out_of_bounds(records)))
    ).why:
        return [Finding("its results are in the committed form", True), bounds], ()
    case = Case(submission, tuple(records), board, RecordFacts(data_root), tuple(beside))
    sound = [
        f"{record.run_id} {ascii(record.run_spec.label)[1:-1][:120]}: {'; '.join(problems)}"
        for record in records
        if (problems := record_problems(store, record, case.facts))
    ]
    findings = [
        Finding("its results are in the committed form", True),
        _finding("every record holds together, and with its model and data", sound),
    ]
    return findings + [_judge(what, rule, case) for what, rule in RULES.items()], case.records


def out_of_bounds(records: Sequence[RunRecord]) -> Iterator[str]:
    """Before anything is drawn for them: every seed costs a draw of its task's data."""
    seeds = {str(seed): seed for run in records if (seed := run.spec.get("seed")) is not None}
    tuning = [name for name, seed in seeds.items() if type(seed) is not int or not 0 <= seed < TUNE_SEEDS]
    if tuning:
        yield f"seeds {_shown(tuning)} are for choosing budgets, without a test split: pack seeds below {TUNE_SEEDS}"
    if len(records) > MOST_RUNS:
        yield f"{len(records):,} runs: hand in at most {MOST_RUNS:,} at once"


def _judge(what: str, rule: Rule, case: Case) -> Finding:
    try:
        return _finding(what, list(rule(case)))
    except Exception as error:  # whatever a stranger wrote, the other rules are still judged
        return Finding(
            what, False, f"cannot be judged: {type(error).__name__}: {ascii(str(error))[1:-1][:300]}"
        )


def _finding(what: str, problems: Sequence[str], most: int = 5) -> Finding:
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return Finding(what, not problems, "; ".join([*problems[:most], *more]))


def claims_of(submission: Submission, board: BoardResults) -> tuple[str, ...]:
    """What no rule can judge and a reviewer must: whether who replaces a method is who made it."""
    manifest, card = submission.manifest, submission.card
    older = board.versions(manifest.method) - {manifest.version}
    if not older or card.supersedes not in older:
        return ()
    whose = _shown(board.authors.get(manifest.method, frozenset()))
    return (
        f"It would take the place of {manifest.method} {card.supersedes} by {whose}: is this request theirs?",
    )


# Rules: each yields what does not hold


def _one_method(case: Case) -> Iterator[str]:
    manifest = case.submission.manifest
    others = {run.spec["method"] for run in case.own} - {manifest.method}
    if others:
        yield f"there are runs of {_shown(others)} too: one submission a method"
    versions = {run.spec["method_version"] for run in case.own if run.spec["method"] == manifest.method}
    if versions - {manifest.version}:
        yield f"there are runs of version {_shown(versions - {manifest.version})}: pack one version"
    if not case.own:
        yield f"there is no run of {manifest.method}"
    for name in sorted({run.spec["method"] for run in case.references}):
        current = resolve_method(name).version
        found = {run.spec["method_version"] for run in case.references if run.spec["method"] == name}
        if found != {current}:
            yield f"its runs of {name} are not of version {current}: run again with this PruneBench"
    predicted = all(run.notes.get(PREDICTIONS_NOTE) for run in case.own)
    if predicted != (manifest.kind == "predictions"):
        yield f"submission.json says {manifest.kind}, its runs {'predictions' if predicted else 'weights'}"


def _its_source(case: Case) -> Iterator[str]:
    submission, manifest = case.submission, case.submission.manifest
    if manifest.kind == "predictions" or manifest.method in builtin_names():
        if manifest.kind == "predictions" and manifest.version != PREDICTED:
            yield f"predictions alone are of version {PREDICTED}, not {manifest.version}: pack them again"
        if manifest.source is not None:
            yield f"{manifest.method} has no source of its own to hand in"
        return
    if submission.source is None or not submission.source.exists():
        yield "the method's file is not there: pack it with `--method FILE`"
        return
    found = f"file-{digest_of(submission.source)}"
    if found != manifest.version:
        yield f"its runs are of version {manifest.version}, the file handed in is {found}: run it again, then pack"
    sources = submission.source.rglob("*.py") if submission.source.is_dir() else [submission.source]
    if not any(
        f'"{manifest.method}"' in text or f"'{manifest.method}'" in text for text in map(_text, sources)
    ):
        yield f"the file handed in names no method {manifest.method}"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _its_name(case: Case) -> Iterator[str]:
    manifest, card = case.submission.manifest, case.submission.card
    name, known = manifest.method, case.board.versions(manifest.method)
    if name in builtin_names():
        wanted = resolve_method(name).version
        if manifest.version != wanted or manifest.kind == "predictions":
            yield f"{name} is a method of PruneBench (version {wanted}): give yours another name"
        return
    taken = {*builtin_names(), *(run.spec["method"] for run in case.board.records)} - {name}
    alike = sorted(other for other in taken if _skeleton(other) == _skeleton(name))
    if alike:
        yield f"{name} is taken for {alike[0]}, which is on the board: choose a name that nobody confuses"
    if not known or manifest.version in known:
        return
    authors = case.board.authors.get(name, frozenset())
    if not authors & {*card.authors}:
        whose = f"by {_shown(authors)}" if authors else "of the project"
        yield f"{name} is a method {whose}, on the board with other code: give yours another name"
    elif card.supersedes not in known:
        yield f"{name} is on the board with version {_shown(known)}: name it on the card (`supersedes = ...`)"


def _skeleton(name: str) -> str:
    """What is left of a name for a reader who skims: no case, no signs, 0 for o and 1 for l and i."""
    return re.sub(r"[^a-z0-9]", "", name.casefold()).translate(str.maketrans("oli", "011"))


def _declared(case: Case) -> Iterator[str]:
    said = {run.method.get("supervision") for run in case.own} - {case.submission.card.supervision}
    if said:
        yield f"its card declares supervision {case.submission.card.supervision}, its runs {_shown(said)}"


def _current_task(case: Case) -> Iterator[str]:
    for name in sorted({run.run_spec.task for run in case.records}):
        task = case.facts.task(name)
        runs = [run for run in case.records if run.run_spec.task == name]
        if task is None:
            yield f"{name[:80]!a} is no task of PruneBench: submit the task first (docs/add-a-task.md)"
            continue
        versions = {run.run_spec.task_version for run in runs} - {task.version}
        if versions:
            yield f"{name}: made with version {_shown(versions)} of the task, this is version {task.version}: run again"
            continue
        prints = {run.run_spec.data_fingerprint for run in runs} - {task.fingerprint}
        if task.fingerprint is not None and prints:
            yield f"{name}: made with other data ({_shown(prints)}; here {task.fingerprint})"
        drawn = {
            own.run_spec.seed: own.splits_hash for own in case.board.records if own.run_spec.task == name
        }
        for run in runs:
            labels = task.labels(run.run_spec.seed)
            wanted = drawn.get(run.run_spec.seed) if labels is None else labels.splits_hash
            if run.status == "ok" and wanted is not None and run.splits_hash != wanted:
                yield f"{run.run_id}: its splits are {run.splits_hash}, seed {run.run_spec.seed} draws {wanted} here"


def _all_seeds(case: Case) -> Iterator[str]:
    """Every row has the seeds that the board's suites plan for its track, all finished."""
    method = case.submission.manifest.method
    every = [*case.own, *(run for run in case.beside if not is_reference_of(run, method))]
    mine = {row_key(run) for run in case.own}
    for row in rows_of(every):
        if row_key(row[0]) not in mine:
            continue
        track = case.board.track(row[0])
        finished = {run.spec["seed"] for run in row if run.status == "ok"}
        wanted = seed_plan(row, case.board.plans) or planned_seeds(track or every)
        planned = {*wanted}
        where = f"{row[0].run_spec.task} at {row[0].run_spec.sparsity}"
        lost = {run.spec["seed"] for run in row} - finished
        if lost:
            yield f"{where}: seeds {_shown(lost)} failed: run the same command again"
        elif planned - finished:
            yield f"{where}: seeds {_shown(planned - finished)} are missing: `prunebench run` all of them, then pack"
        elif len(finished) < FEWEST_SEEDS:
            yield f"{where}: one seed alone: want at least {FEWEST_SEEDS}"


def _our_dense(case: Case) -> Iterator[str]:
    """Dense models, and those with a pruned network's steps, are ours: bit for bit, else by the means of their rows."""
    if case.submission.manifest.kind == "predictions":
        return
    there = {
        (track_key(run), run.spec["seed"])
        for run in (*case.dense, *case.board.records, *case.beside)
        if is_dense(run)
    }
    for run in case.own:
        if (track_key(run), run.spec["seed"]) not in there:
            yield f"{run.run_id}: its dense model is not there: pack writes it"
    yield from _trained_as_long(case)
    for row in rows_of(case.references):
        name, params = row[0].spec["method"], row[0].spec["params"]
        ours = {
            own.spec["seed"]: own
            for own in case.board.track(row[0])
            if (own.spec["method"], own.spec["params"]) == (name, params)
        }
        pairs = [(own, run) for run in row if (own := ours.get(run.spec["seed"])) is not None]
        if pairs and not all(
            own.groups == run.groups and own.splits_hash == run.splits_hash for own, run in pairs
        ):
            if any(own.splits_hash != run.splits_hash for own, run in pairs):
                yield f"{name} on {row[0].run_spec.task}: of other splits than the board's"
            yield from rows_disagree([own for own, _ in pairs], [run for _, run in pairs])


def _trained_as_long(case: Case) -> Iterator[str]:
    """Where the board has the unpruned reference with a pruned network's steps, so has every seed of the submission."""
    if case.submission.manifest.method == REFERENCE:
        return
    there = {
        (track_key(run), run.spec["seed"])
        for run in (*case.records, *case.beside)
        if run.spec["method"] == REFERENCE and run.status == "ok"
    }
    on_board = {
        (track_key(run), run.spec["seed"]): run.run_spec.task
        for run in case.board.records
        if run.spec["method"] == REFERENCE
    }
    for run in case.own:
        key = (track_key(run), run.spec["seed"])
        if key in on_board and key not in there:
            yield (
                f"{run.run_id}: {REFERENCE}, which its row is compared with, has no run of seed {run.spec['seed']}: "
                f"`prunebench run` with `--method {REFERENCE}` too, then pack"
            )


def same_machine(one: RunRecord, other: RunRecord) -> bool:
    """Whether two runs are expected to give the same bits."""
    return all(one.environment.get(name) == other.environment.get(name) for name in SAME)


def rows_disagree(ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> Iterator[str]:
    """Where the means of two rows lie farther apart than another processor explains."""
    for name in JUDGED:
        pairs = [
            (own.metrics.get(name), run.metrics.get(name)) for own, run in zip(ours, theirs, strict=True)
        ]
        known = [(own, run) for own, run in pairs if own is not None and run is not None]
        if not known:
            continue
        here, there = zip(*known)
        spread = math.sqrt((variance(here) + variance(there)) / len(known)) if len(known) > 1 else 0.0
        allowed = min(max(POINTS, ERRORS * spread), WIDEST)
        gap = abs(fmean(here) - fmean(there))
        if not gap <= allowed:
            yield (
                f"{theirs[0].run_spec.method} on {theirs[0].run_spec.task} at {theirs[0].run_spec.sparsity}: "
                f"{name.replace('_', ' ')} {fmean(there):.1%}, here {fmean(here):.1%}: more than {allowed:.1%} apart"
            )


def _not_renamed(case: Case) -> Iterator[str]:
    """No run gives what another method gave: to the last bit of its logits or weights, or of all its metrics."""
    name = case.submission.manifest.method
    seen = {mark: own for own in case.board.records if own.spec["method"] != name for mark in _marks(own)}
    copies = [(run, seen[mark]) for run in case.own for mark in _marks(run)[:1] if mark in seen]
    copies += [(run, seen[mark]) for run in case.own for mark in _marks(run)[1:] if mark in seen]
    found = {run.run_id: own for run, own in copies}
    if found and 2 * len(found) >= len(case.own):
        others = {own.spec["method"] for own in found.values()}
        yield f"{len(found)} of {len(case.own)} runs are exactly those of {_shown(others)}: that method renamed"


def _marks(record: RunRecord) -> list[str]:
    """What no two different networks share."""
    if record.status != "ok":
        return []
    numbers = json.dumps([record.spec["task"], record.spec["seed"], sorted(record.metrics.items())])
    return [mark for mark in (record.outputs_sha256, record.model_sha256) if mark] + [numbers]


def _objects(case: Case) -> Iterator[str]:
    """Logits and weights are named by their hashes, and the list beside agrees."""
    weights = case.submission.manifest.kind == "weights"
    listed = object_list(case.submission)
    for run in case.records:
        wanted = {"outputs": run.outputs_sha256, **({"model": run.model_sha256} if weights else {})}
        for kind, digest in wanted.items():
            stored = listed.get(run.run_id, {}).get(kind)
            if digest is None:
                yield f"{run.run_id}: names no {KINDS[kind]}: run with --keep-models, or pack --predictions"
            elif stored is None or stored.sha256 != digest:
                yield f"{run.run_id}: {ARTIFACTS} has not the {KINDS[kind]} that its record names"
            elif stored.bytes > _largest(run, kind):
                yield f"{run.run_id}: {stored.bytes:,} bytes of {KINDS[kind]}, more than its network or test split has"


def _largest(run: RunRecord, kind: str) -> int:
    """Bytes that weights in float64 or logits in float32 may have, with a header."""
    assert run.cost is not None
    samples, outputs = sum(row.count for row in run.groups), 1 + max(row.label for row in run.groups)
    numbers = (
        8 * run.cost.parameters
        if kind == "model"
        else 8 * MOST_VALIDATION * samples * max(outputs, MOST_OUTPUTS)
    )
    return numbers + HEADER


def object_list(submission: Submission) -> Manifest:
    """SHA-256 and size of logits and weights by run. Raises StoreError with the line that is wrong."""
    return parse_manifest((submission.root / ARTIFACTS).read_bytes(), ARTIFACTS)


def _shown(values: Iterable[object]) -> str:
    """A few values as plain text."""
    texts = sorted(ascii(value).strip("'\"")[:100] for value in values)
    return ", ".join(texts[:6]) + ", ..." * (len(texts) > 6)


RULES: dict[str, Rule] = {
    "it is one method of one version, and its dense models": _one_method,
    "its source is what ran": _its_source,
    "its name is its own": _its_name,
    "card and runs declare the same supervision": _declared,
    "its tasks are of the version and the data that are here": _current_task,
    "every row has all seeds": _all_seeds,
    "its dense models are the board's": _our_dense,
    "it is no other method under a new name": _not_renamed,
    "its logits and weights are named by their hashes": _objects,
}
