"""Remarks on methods of users' files: whether they ran in a sandbox, and whose processor time exceeds its steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from prunebench.results.record import OVERSPENT_NOTE, RunRecord


def confinement_words(runs: Sequence[RunRecord]) -> Iterator[str]:
    """A sentence for each kind of confinement, and one for each method that spent more than its steps."""
    own = [run for run in runs if run.status == "ok" and "sandbox" in run.environment]
    for state, words in WORDS.items():
        methods = sorted({run.spec["method"] for run in own if run.environment["sandbox"] == state})
        if methods:
            yield f"{', '.join(methods)}: {words}."
    for method in sorted({run.spec["method"] for run in own}):
        shares = [run.notes.get(OVERSPENT_NOTE) for run in own if run.spec["method"] == method]
        found = [share for share in shares if share]
        if found:
            yield (
                f"{method} spent the processor time of {median(found):.1f} times the steps that were counted, in "
                f"{len(found)} of {len(shares)} runs (against the dense model's, on the same machine)."
            )


WORDS = {
    "no": "sandbox: no (a process of its own, which could still read files and the network of its machine)",
    "yes": "sandbox: yes (no data, results or network were in sight)",
}
