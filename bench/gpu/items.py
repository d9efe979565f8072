"""All items of a trip, in order: targets first, then checks, single layers and tuning."""

from __future__ import annotations

import importlib

from gpu.schedule import Item

FIRST = ("items_checks", "items_statistics", "items_masks", "items_training", "items_inference")
LATER = ("items_checks", "items_inference", "items_statistics", "items_tuning")


def all_items() -> list[Item]:
    """The items, each once: what a module calls `first`, then what it calls `later`."""
    found = [item for name in FIRST for item in _module(name).first()] + _module("items_training").last()
    return found + [item for name in LATER for item in _module(name).later()]


def _module(name: str):  # type: ignore[no-untyped-def]
    return importlib.import_module(f"gpu.{name}")
