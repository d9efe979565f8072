"""Load of the machine before a measurement, and what to do about one that is busy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

SLACK = 0.5
"""Processes beyond the cores that are still taken for a quiet machine: the load average lags by a minute."""
PAUSE = 5.0
"""Seconds between two looks at the load; the system renews it as often."""


@dataclass(frozen=True)
class MachineLoad:
    """Processes that ran or waited, over the last minute (None where the system does not tell), and the cores."""

    load_average: float | None
    cores: int

    def quiet_below(self, threads: int = 1) -> float:
        """The highest load average beside which so many threads still have cores of their own."""
        return self.cores + SLACK - min(threads, self.cores)

    def problem(self, threads: int = 1) -> str | None:
        """Why what is timed now with so many threads would say little, in words; None on a quiet machine."""
        load = self.load_average
        if load is None or load <= self.quiet_below(threads):
            return None
        return f"busy machine: load average {self.words}; times say little until it is quiet"

    @property
    def words(self) -> str:
        """`3.2 on 2 cores`."""
        return f"{self.load_average or 0:.3g} on {self.cores} core{'s' * (self.cores != 1)}"


def machine_load() -> MachineLoad:
    """How busy the machine is now. Cores are those that this process may use."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return MachineLoad(None if load is None else round(load, 2), count_cores())


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_until_quiet(seconds: float, tell: Callable[[MachineLoad], None]) -> MachineLoad:
    """Look at the load every PAUSE seconds until the machine is quiet or so many seconds are over; gives the last look.

    `tell` is told of each busy one. The load average lags: it halves in about 40 seconds after the last process ends.
    """
    end = time.monotonic() + seconds
    while (load := machine_load()).problem() is not None and (left := end - time.monotonic()) > 0:
        tell(load)
        time.sleep(min(PAUSE, left))
    return load
