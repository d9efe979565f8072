"""One way to run many cells: local worker processes, or this process."""

from prunebench.launch.local import Event, InlineLauncher, LocalLauncher

__all__ = ["Event", "InlineLauncher", "LocalLauncher"]
