"""Errors of the operations: each names the argument and what it should be."""

from __future__ import annotations


class ArgumentError(ValueError):
    """An argument has the wrong shape, dtype, device or values. The message begins with the argument's name."""


class LayoutError(ArgumentError):
    """A sparse layout cannot hold this weight or convolution; the message says why."""
