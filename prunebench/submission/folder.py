"""The folder of a submission: what may lie in it, and how it is read when a stranger made it.

    card.toml            who, from what, how tuned
    submission.json      method, version, where its source lies, whether weights or only predictions were handed in
    artifacts.jsonl      SHA-256 and size of logits and weights, which are served or attached
    method/              the method's file or package, with the helpers that it imports
    results/             its runs and their dense models, in the committed form

Archives are not taken: whoever unpacks one knows best how large it may grow. A folder holds plain files of known kinds
only (no links, nothing hidden, no pickle), few and small. Nothing in it is imported or run to read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunebench.errors import StoreError, UsageError
from prunebench.methods.criteria import NAME
from prunebench.results.committed import safe_name
from prunebench.results.record import parse_json
from prunebench.submission.card import CARD, VERSION, Card, read_card

FORMAT = 1
MANIFEST, ARTIFACTS, METHOD, RESULTS = "submission.json", "artifacts.jsonl", "method", "results"
MOST_FILES, DEEPEST = 500, 8
LARGEST_FILE, LARGEST_SOURCE, LARGEST_FOLDER = 1 << 23, 1 << 20, 1 << 26
LONGEST_LINE = 1 << 16
"""Of results, in bytes: what one line says counts for many runs, so a long one would grow when it is read."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_%][A-Za-z0-9_.+@=~%-]{0,159}")
SOURCE_KINDS = frozenset({".py", ".toml", ".json", ".txt", ".md", ".csv", ".safetensors"})


class Manifest(BaseModel):
    """What `submission.json` says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    method: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9._+-]{0,63}$")]
    version: Annotated[str, Field(pattern=rf"^{VERSION}$")]
    kind: Literal["weights", "predictions"]
    source: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,100}(\.py)?$")] | None = None
    """The file or package in `method/`; none for a built-in method, or for predictions alone."""


@dataclass(frozen=True)
class Submission:
    """A folder that holds what it may hold; `digest` is of all its files."""

    root: Path
    manifest: Manifest
    card: Card
    digest: str

    @property
    def results(self) -> Path:
        """Its runs, in the committed form."""
        return self.root / RESULTS

    @property
    def source(self) -> Path | None:
        """The method's file or package, if it has one."""
        return None if self.manifest.source is None else self.root / METHOD / self.manifest.source

    def has_runs_of(self, method: str) -> bool:
        """Whether runs of a method are in it."""
        return any(self.results.glob(f"*/{safe_name(method)}.jsonl"))


def read_submission(root: Path) -> Submission:
    """Read a submission's folder, importing and running nothing. Raises StoreError or UsageError with what is wrong."""
    if not root.is_dir() or root.is_symlink():
        what = "an archive or a file" if root.is_file() else "not there"
        raise UsageError(
            f"{root}: {what}; want the folder that `prunebench submission pack` wrote (unpack archives yourself)"
        )
    files = list(plain_files(root))
    for name in (CARD, MANIFEST, ARTIFACTS):
        if root / name not in files:
            raise StoreError(f"{root}: has no {name}: `prunebench submission pack` writes it")
    for file in files:
        if file.relative_to(root).parts[0] == RESULTS:
            _check_lines(file, file.relative_to(root).as_posix())
    return Submission(root, _manifest(root / MANIFEST), read_card(root / CARD), digest_of_files(root, files))


def plain_files(root: Path) -> Iterator[Path]:
    """Every file below a folder, in order. Raises StoreError, before any is opened, for what does not belong there."""
    total, seen = 0, set[str]()
    for folder, folders, names in os.walk(root, followlinks=False):
        folders.sort()
        for name in sorted((*folders, *names)):
            path = Path(folder, name)
            place = path.relative_to(root)
            shown = ascii(place.as_posix())[1:-1][:120]
            state = path.lstat()
            if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
                raise StoreError(f"{shown}: neither a file nor a folder (a link?): put the file itself there")
            if not PLAIN_NAME.fullmatch(name) or len(place.parts) > DEEPEST:
                raise StoreError(f"{shown}: want plain short names, none that begins with '.' or '-'")
            seen.add(place.as_posix().casefold())
            if stat.S_ISREG(state.st_mode):
                total += state.st_size
                _check_kind(place, shown)
                if path.suffix == ".py" and state.st_size > LARGEST_SOURCE:
                    raise StoreError(f"{shown}: want source files of at most {LARGEST_SOURCE >> 20} MiB")
                if state.st_size > LARGEST_FILE or total > LARGEST_FOLDER:
                    raise StoreError(
                        f"{shown}: want files of at most {LARGEST_FILE >> 20} MiB, {LARGEST_FOLDER >> 20} MiB in all; "
                        "logits and weights are served or attached (`prunebench artifacts push`)"
                    )
                yield path
            if len(seen) > MOST_FILES:
                raise StoreError(f"{root.name}: more than {MOST_FILES} files and folders")
        if len({name.casefold() for name in (*folders, *names)}) != len(folders) + len(names):
            raise StoreError(f"{ascii(folder)[1:-1]}: two names differ in case alone")


def _check_kind(place: Path, shown: str) -> None:
    """Raise StoreError for a file that its part of the folder has no use for."""
    top = place.parts[0]
    if len(place.parts) == 1:
        fits = place.name in (CARD, MANIFEST, ARTIFACTS)
    elif top == RESULTS:
        fits = len(place.parts) == 3 and (place.name == "context.json" or place.suffix == ".jsonl")
    else:
        fits = top == METHOD and place.suffix in SOURCE_KINDS
    if not fits:
        kinds = ", ".join(sorted(SOURCE_KINDS))
        raise StoreError(
            f"{shown}: does not belong here; {METHOD}/ takes {kinds} (weights as safetensors, never pickled), "
            f"{RESULTS}/ the committed form"
        )


def _check_lines(path: Path, shown: str) -> None:
    """Raise StoreError for results with a line of a length that none has."""
    with path.open("rb") as stream:
        while line := stream.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise StoreError(f"{shown}: want lines of at most {LONGEST_LINE >> 10} kB")


def digest_of_files(root: Path, files: list[Path]) -> str:
    """SHA-256 over names and contents: of what a report speaks."""
    total = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def _manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ascii(".".join(map(str, first["loc"])))[1:-1][:60]
        raise StoreError(f"{path.name}: {where}: {first['msg'][:200]}; pack it again") from error
    except (ValueError, RecursionError, OSError) as error:
        raise StoreError(
            f"{path.name}: not valid JSON ({ascii(str(error))[1:-1][:100]}); pack it again"
        ) from error
    if not NAME.fullmatch(manifest.method):
        raise StoreError(f"{path.name}: method: no name of a method")
    return manifest


def manifest_json(manifest: Manifest) -> str:
    """The text of `submission.json`."""
    return json.dumps(manifest.model_dump(exclude_none=True), indent=1, sort_keys=True) + "\n"
