"""Counting of backward passes: what a method spends in a loop of its own is charged like a step of the harness."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch


class BackwardCounter:
    """Backward passes since the beginning, but for those that were taken out again."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        """All of them, whatever was taken out."""

    def take(self, since: int = 0) -> int:
        """Those counted since there were `since`, which then count no more."""
        taken, self.count = self.count - since, since
        return taken

    def _add(self) -> None:
        self.count += 1
        self.total += 1

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count every call of `Tensor.backward`, `torch.autograd.backward` and `torch.autograd.grad` inside."""
        backward, grad = torch.autograd.backward, torch.autograd.grad

        def counted_backward(*args: Any, **settings: Any) -> None:
            self._add()
            backward(*args, **settings)

        def counted_grad(*args: Any, **settings: Any) -> tuple[torch.Tensor, ...]:
            self._add()
            return grad(*args, **settings)

        with mock.patch.multiple(torch.autograd, backward=counted_backward, grad=counted_grad):
            yield


@dataclass
class EngineRuns:
    """Runs of the autograd engine, of whatever loop."""

    count: int = 0


@contextlib.contextmanager
def watching_engine() -> Iterator[EngineRuns]:
    """Count every run of the autograd engine inside, also by functions that were imported from torch before."""
    engine, runs = torch.autograd.graph._engine_run_backward, EngineRuns()

    def counted(*args: Any, **settings: Any) -> Any:
        runs.count += 1
        return engine(*args, **settings)

    with (
        mock.patch.object(torch.autograd, "_engine_run_backward", counted),
        mock.patch.object(torch.autograd.graph, "_engine_run_backward", counted),
    ):
        yield runs
