"""A shard: one of n parts of a plan, the same on every machine, so that parts can run without knowing of each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prunebench.errors import UsageError
from prunebench.runner.plan import PlannedRun


@dataclass(frozen=True)
class Shard:
    """Part `number` of `total`, counted from 1."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard as the command line names it, `2/5`. Raises UsageError."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"no shard {text!r}: want I/N with I from 1 to N, such as 1/4")
        return cls(int(found[1]), int(found[2]))

    def part(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """The runs of this part, in the plan's order, with the dense models that they need.

        Runs in order of dense model and run id are cut into `total` pieces whose sizes differ by one at most. All parts
        together are the plan, and a dense model is trained twice only where a cut goes through its runs.
        """
        ordered = sorted(runs, key=lambda run: (run.dense_id, not run.is_dense, run.spec.run_id))
        first, last = (len(ordered) * edge // self.total for edge in (self.number - 1, self.number))
        mine = ordered[first:last]
        wanted = {run.spec.run_id for run in mine} | {run.dense_id for run in mine}
        return [run for run in runs if run.spec.run_id in wanted]
