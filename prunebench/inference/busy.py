"""Load of the machine before a measurement, and what to do about one that is busy."""

from __future__ import annotations

import os
from dataclasses import dataclass

SLACK = 0.5
"""Processes beyond the cores that are still taken for a quiet machine: the load average lags by a minute."""


@dataclass(frozen=True)
class MachineLoad:
    """Processes that ran or waited, over the last minute (None where the system does not tell), and the cores."""

    load_average: float | None
    cores: int

    def problem(self, threads: int = 1) -> str | None:
        """Why what is timed now with so many threads would say little, in words; None on a quiet machine."""
        load = self.load_average
        if load is None or load + min(threads, self.cores) <= self.cores + SLACK:
            return None
        cores = f"{self.cores} core{'s' * (self.cores != 1)}"
        return f"busy machine: load average {load:.3g} on {cores}; times say little until it is quiet"


def machine_load() -> MachineLoad:
    """How busy the machine is now. Cores are those that this process may use."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return MachineLoad(None if load is None else round(load, 2), count_cores())


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
