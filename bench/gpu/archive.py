"""Results of a trip: one file, replaced as a whole after every item, so that a cut loses only the running item.

`results.tar.gz` holds results.json, log.txt and the choices that were measured (choices-*.json). results.json:

    format   1
    runs     id -> {"machine": ..., "ceilings": ..., "kernels": ...}: one a process group that measured
    items    name -> {"status", "reason", "seconds", "run", "result"}

`status` is `ok`, `failed` (reason: the traceback, or what was wrong) or `running`. Imports no torch.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1
NAME, LOG = "results.tar.gz", "log.txt"

Results = dict[str, Any]


def empty() -> Results:
    return {"format": FORMAT, "runs": {}, "items": {}}


def read(path: Path) -> Results:
    """The results in an archive, or in a results.json. Raises ValueError on another format."""
    if path.name.endswith(".json"):
        results = json.loads(path.read_text())
    else:
        with tarfile.open(path) as archive:
            member = archive.extractfile("results.json")
            assert member is not None
            results = json.load(member)
    if results.get("format") != FORMAT:
        raise ValueError(f"{path}: is of format {results.get('format')}, this program reads {FORMAT}")
    return dict(results)


class Archive:
    """The results in a folder, in memory and on disk; begins with what lies there, or with those of `resume`."""

    def __init__(self, folder: Path, resume: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / NAME
        found = self.path if self.path.exists() else resume
        self.results = empty() if found is None else read(found)
        self.beside: dict[str, Path] = {LOG: folder / LOG}
        """Other files that travel in the archive, by their names in it."""

    def item(self, name: str) -> dict[str, Any]:
        """What is known of an item; empty if nothing is."""
        return dict(self.results["items"].get(name, {}))

    def put(self, name: str, record: Mapping[str, Any]) -> None:
        """Record an item and write the archive."""
        self.results["items"][name] = dict(record)
        self.save()

    def save(self) -> None:
        """Write the archive beside itself, then move it into place: a reader sees the old one or the new one."""
        holder = io.BytesIO()
        with tarfile.open(fileobj=holder, mode="w:gz", compresslevel=6) as archive:
            members = {"results.json": json.dumps(self.results, indent=1, default=str).encode()}
            members |= {name: path.read_bytes() for name, path in self.beside.items() if path.is_file()}
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(content), int(time.time())
                archive.addfile(info, io.BytesIO(content))
        replace(self.path, holder.getvalue())


def replace(path: Path, content: bytes) -> None:
    """Write a file as a whole."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
