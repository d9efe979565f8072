"""The call of a method's `fit`: its ways out, and what it must return."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from prunebench.errors import MaskError
from prunebench.methods.api import Method
from prunebench.methods.experiment import Pruned


@functools.cache
def warm_up() -> None:
    """Let torch import and prepare what it does at its first step: a second's work that is no method's."""
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
        with torch.no_grad():
            net(torch.zeros(2, 3, 8, 8))
    torch.optim.Adam(net.parameters(), fused=True)


@contextlib.contextmanager
def ending_raises(name: str) -> Iterator[None]:
    """A method that ends the process (`sys.exit`) fails its run, whatever status it asks for."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception | KeyboardInterrupt):
            raise
        raise RuntimeError(
            f"method {name!r} called for the end of the process ({type(error).__name__}: {error}); "
            "raise an error to fail a run, return to end it"
        ) from error


def check_returned(method: Method, returned: object) -> Pruned:
    """What `fit` returned, if it is what it must be. Raises MaskError that says what it is instead."""
    if not isinstance(returned, Pruned):
        hint = "(model, masks)" if isinstance(returned, nn.Module) else ""
        raise MaskError(
            f"method {method.name!r}: fit must return Pruned(model, masks), got {type(returned).__name__}; "
            f"write `return Pruned{hint or '(...)'}` with a bool mask for every convolution and linear weight"
        )
    if not isinstance(returned.model, nn.Module):
        raise MaskError(
            f"method {method.name!r}: Pruned.model must be the network, got {type(returned.model).__name__}"
        )
    if not isinstance(returned.masks, Mapping) or not all(
        isinstance(mask, torch.Tensor) for mask in returned.masks.values()
    ):
        raise MaskError(
            f"method {method.name!r}: Pruned.masks must be bool tensors by the name of their weight"
        )
    return returned
