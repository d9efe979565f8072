"""Verification of a submission in rising cost: consistent, re-evaluated, re-trained; each stage is a badge."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.errors import PruneBenchError, UsageError
from prunebench.results.record import RunRecord
from prunebench.results.store import open_results
from prunebench.results.tracks import is_reference_of
from prunebench.submission.consistency import BoardResults, check_consistency, claims_of
from prunebench.submission.folder import Submission, read_submission
from prunebench.submission.records import Finding, data_root
from prunebench.submission.reevaluation import environment_here, reevaluate
from prunebench.submission.report import Stage, VerificationReport, changed_rows
from prunebench.submission.retraining import retrain
from prunebench.submission.secret import Secret

CONSISTENT, READABLE = "consistent", "the folder holds what it may hold"
OF_THE_CARD = "card"
"""Stands for the address that a submission's card names."""
NO_ADDRESS = "Its card names no address of logits and weights (`artifacts = ...`): it was not re-evaluated."


@dataclass(frozen=True)
class Depth:
    """How far to verify: where logits and weights are, how many runs to train, drawn by which text.

    With a secret, weights are tested on fresh draws too.
    """

    artifacts: str | None = None
    retrain: int = 0
    draw_seed: str | None = None
    secret: Secret | None = None

    def __post_init__(self) -> None:
        if self.retrain and self.secret is not None:
            raise UsageError(
                "--retrain runs a stranger's code, which must not find the secret: verify with the secret first, "
                "then train again in a shell without it, best on another machine"
            )
        if self.secret is not None and self.artifacts is None:
            raise UsageError("a fresh draw needs weights: name --artifacts too")
        if self.retrain and self.artifacts is None:
            raise UsageError("--retrain comes after re-evaluation: name --artifacts too")
        if self.retrain and not self.draw_seed:
            raise UsageError(
                "--retrain wants --draw-seed TEXT: something public that nobody knew when the submission was made"
            )


def verify(
    folder: Path, board: Path, depth: Depth = Depth(), beside: Sequence[Path] = (), root: Path | None = None
) -> tuple[VerificationReport, Submission | None]:
    """Verify a submission's folder against a board's results, stage by stage until one fails.

    `beside`: other submissions of the same method whose seeds count too. Raises UsageError for what is no folder.
    """
    root = root or data_root()
    results = BoardResults.read(board)
    begun = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), environment_here())
    try:
        submission = read_submission(folder)
    except PruneBenchError as error:
        if isinstance(error, UsageError) and not folder.is_dir():
            raise
        finding = Finding(READABLE, False, str(error))
        stage = Stage(CONSISTENT, (finding,))
        return VerificationReport(folder.name, "unknown", "unknown", *begun, (stage,)), None
    findings, records = check_consistency(submission, results, root, _records_of(beside))
    notes = claims_of(submission, results)
    stages = [Stage(CONSISTENT, (Finding(READABLE, True), *findings), notes)]
    address = submission.card.artifacts if depth.artifacts == OF_THE_CARD else depth.artifacts
    if address is None and depth.artifacts is not None:
        stages = [dataclasses.replace(stages[0], notes=(*notes, NO_ADDRESS))]
    elif stages[-1].passed and address is not None:
        stages.append(reevaluate(submission, records, address, root, depth.secret))
    if stages[-1].passed and address is not None and depth.retrain and submission.manifest.kind == "weights":
        assert depth.draw_seed is not None
        stages.append(retrain(submission, records, depth.retrain, depth.draw_seed, root))
    manifest = submission.manifest
    added = _added(results, records, manifest.method) if stages[0].passed else []
    rows = changed_rows(results.records, added) if added else ()
    return VerificationReport(
        manifest.method, manifest.version, submission.digest, *begun, tuple(stages), rows
    ), submission


def _records_of(folders: Sequence[Path]) -> list[RunRecord]:
    return [
        record for folder in folders for record in open_results(read_submission(folder).results).records()[0]
    ]


def _added(board: BoardResults, records: Sequence[RunRecord], method: str) -> list[RunRecord]:
    """What a merge would add: of references those that the board has not."""
    there = {record.run_id for record in board.records}
    return [record for record in records if record.run_id not in there or not is_reference_of(record, method)]
