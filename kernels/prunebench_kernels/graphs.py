"""CUDA graphs of calls, captured without harm to the process."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch


def capture(call: Callable[[], object], repeats: int = 1) -> torch.cuda.CUDAGraph | None:
    """A CUDA graph of `repeats` calls, or None if the call cannot be captured: it waits for the GPU, say.

    The call must have run before: what it compiles or tunes at first may wait.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream), _waiting_raises():
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


@contextlib.contextmanager
def _waiting_raises() -> Iterator[None]:
    """What waits for the GPU raises RuntimeError here: in a capture it would leave the generator of random numbers
    unusable for the rest of the process ("Offset increment outside graph capture")."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # Once a process, torch warns that this mode is a prototype.
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
