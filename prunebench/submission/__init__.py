"""The contract suite: what every method file and every record must satisfy."""

from __future__ import annotations

from pathlib import Path

from prunebench.errors import UsageError
from prunebench.methods.discovery import SHUFFLED, builtin_names, is_package, place_and_name
from prunebench.results.committed import is_committed
from prunebench.submission.methods import check_method, check_methods
from prunebench.submission.records import Finding, check_records, sound_records

__all__ = ["Finding", "check_method", "check_path", "check_records", "sound_records"]


def check_path(path: Path, *, thorough: bool = True) -> list[Finding]:
    """Check a method, by file or name, or a folder of results. Raises UsageError if it is none of them.

    Not `thorough`, the settings and the long run of a method are left out: see `check_method`.
    """
    named = not path.exists() and str(path).removeprefix(SHUFFLED) in builtin_names()
    place = Path(place_and_name(str(path))[0])
    if place.suffix == ".py" or is_package(place) or named:
        return check_methods(str(path), thorough=thorough)
    if (path / "runs").is_dir() or is_committed(path):
        return check_records(path)
    raise UsageError(
        f"{path}: neither a method file, package or name nor a folder of results (`runs` or the committed form)"
    )
