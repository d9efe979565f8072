"""Completion of names in the shell: suites, tasks, methods and models, without importing torch."""

from __future__ import annotations

LISTINGS = ("tasks", "methods", "suites", "runs")


def complete_suite(incomplete: str) -> list[str]:
    """Packaged suites that begin so."""
    from prunebench.suites import suite_names

    return _beginning(suite_names(), incomplete)


def complete_task(incomplete: str) -> list[str]:
    """Task names that need no path."""
    from prunebench.tasks.registry import describe_families

    return _beginning(describe_families(), incomplete)


def complete_method(incomplete: str) -> list[str]:
    """Methods of the package."""
    from prunebench.methods.discovery import builtin_names

    return _beginning(sorted(set(builtin_names())), incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Models by their names without a width."""
    from prunebench.models.names import BASES

    return _beginning(BASES, incomplete)


def complete_listing(incomplete: str) -> list[str]:
    """What `ls` lists."""
    return _beginning(LISTINGS, incomplete)


def _beginning(names: list[str] | tuple[str, ...], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
