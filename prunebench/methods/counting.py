"""Counting of backward passes: what a method spends in a loop of its own is charged like a step of the harness."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch


class BackwardCounter:
    """Backward passes since the beginning, but for those that were taken out again."""

    def __init__(self) -> None:
        self.count = 0

    def take(self, since: int = 0) -> int:
        """Those counted since there were `since`, which then count no more."""
        taken, self.count = self.count - since, since
        return taken

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count every call of `Tensor.backward`, `torch.autograd.backward` and `torch.autograd.grad` inside."""
        backward, grad = torch.autograd.backward, torch.autograd.grad

        def counted_backward(*args: Any, **settings: Any) -> None:
            self.count += 1
            backward(*args, **settings)

        def counted_grad(*args: Any, **settings: Any) -> tuple[torch.Tensor, ...]:
            self.count += 1
            return grad(*args, **settings)

        with mock.patch.multiple(torch.autograd, backward=counted_backward, grad=counted_grad):
            yield
