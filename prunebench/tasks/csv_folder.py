"""`csv:PATH`: any folder of images with a table of attributes, as WILDS and SubpopBench keep theirs.

PATH is a CSV file, or a folder with one (`metadata.csv` if there are several); one column each names file, label, bias
and, where there is one, split. Columns are known by the names below, or said behind an @:

    csv:waterbirds@size=224                       img_filename, y, place, split: all known
    csv:celeba/list.csv@label=Blond_Hair,bias=Male
    csv:photos@file=picture,label=animal,bias=season,size=64

`size=N` scales every image to N x N pixels, which images of several sizes need. Files are looked for beside the table,
then in the folders beside it. Without a split column, folders named train, val and test are the splits; without them
splits are drawn.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from prunebench.data.table import CsvTable, at_line, read_csv
from prunebench.errors import DataError, UsageError, unknown
from prunebench.tasks.base import Task
from prunebench.tasks.listed import SPLIT_NAMES, ListedPhotos, PhotoList

COLUMNS = {
    "file": (
        "img_filename",
        "filename",
        "file_name",
        "file",
        "image_path",
        "filepath",
        "path",
        "image_id",
        "image",
    ),
    "label": ("y", "label", "target", "class", "category"),
    "bias": ("place", "a", "bias", "attribute", "spurious", "background", "location_remapped", "location"),
    "split": ("split", "partition", "set", "subset"),
}
"""Names of columns by what they hold, the first that a table has; capitals do not count."""
CHOSEN = re.compile(r"(?P<key>file|label|bias|split|size)=(?P<value>[^=]+)")
SIDES = (8, 1024)
PROBED = 50
"""Rows by which the folder that files are in is found."""


def open_csv(name: str, argument: str, data_root: Path | None = None) -> Task:
    """The task of a table. Raises UsageError for a path or column to be chosen, DataError naming file and line."""
    place, chosen = split_argument(name, argument)
    path = find_table(find_place("csv", place, data_root))
    table = read_csv(path)
    columns = choose_columns(table, chosen)
    listing = list_rows(table, columns)
    kept = ",".join(f"{key}={chosen[key]}" for key in (*COLUMNS, "size") if key in chosen)
    title = f"{path.parent.name}, {columns['label']} by {columns['bias']}"
    canonical = f"csv:{path.parent.name}/{path.name}{kept and f'@{kept}'}"
    return ListedPhotos(canonical, title, f"images listed in {path.name}", listing, read_side(name, chosen))


def split_argument(name: str, argument: str) -> tuple[str, dict[str, str]]:
    """The path, and what stands behind its last @ if that is `key=value,...`."""
    place, at, tail = argument.rpartition("@")
    pairs = [CHOSEN.fullmatch(part.strip()) for part in tail.split(",")]
    if not at or not any("=" in part for part in tail.split(",")):
        place, pairs = argument, []
    if not all(pairs):
        raise UsageError(
            f"task {name!r}: behind the @ want file=, label=, bias= and split= with names of columns, and "
            "size=, between commas"
        )
    chosen = {pair["key"]: pair["value"].strip() for pair in pairs if pair}
    if len(chosen) != len(pairs):
        raise UsageError(f"task {name!r} chooses one thing twice")
    if not place.strip():
        raise UsageError(f"task {name!r} needs a path, say csv:photos/metadata.csv")
    return place, chosen


def read_side(name: str, chosen: dict[str, str]) -> int | None:
    """The pixels a side that images are scaled to, if they are."""
    text = chosen.get("size")
    if text is None:
        return None
    if not text.isdecimal() or not SIDES[0] <= int(text) <= SIDES[1]:
        raise UsageError(
            f"task {name!r}: size must be a whole number from {SIDES[0]} to {SIDES[1]}, got {text}"
        )
    return int(text)


def find_place(family: str, argument: str, data_root: Path | None) -> Path:
    """A file or folder, looked for from the current folder, then `data_root`, then PRUNEBENCH_DATA."""
    roots = [Path.cwd(), *(Path(root) for root in (data_root, os.environ.get("PRUNEBENCH_DATA")) if root)]
    places = [Path(os.path.normpath(root.absolute() / Path(argument).expanduser())) for root in roots]
    for place in places:
        if place.exists():
            return place
    raise DataError(
        f"there is no {' or '.join(dict.fromkeys(map(str, places)))}: behind {family}: give an absolute path, one from "
        f"the current folder, or with --data-root the folder that {argument} lies in"
    )


def find_table(place: Path) -> Path:
    """The CSV file at a path, or in a folder."""
    if not place.is_dir():
        return place
    tables = sorted(path for path in place.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    for path in tables:
        if path.name == "metadata.csv" or len(tables) == 1:
            return path
    if not tables:
        raise DataError(
            f"{place} holds no CSV file: name the table of attributes, say csv:{place}/metadata.csv"
        )
    some = ", ".join(f"csv:{path}" for path in tables[:5])
    raise UsageError(f"{place} holds {len(tables)} CSV files: choose one, as {some}")


def choose_columns(table: CsvTable, chosen: dict[str, str]) -> dict[str, str]:
    """The column of file, label, bias and, if there is one, split: as chosen, else by its name."""
    found: dict[str, str] = {}
    folded = {name.lower(): name for name in reversed(table.header)}
    for key, known in COLUMNS.items():
        if key in chosen:
            if chosen[key] not in table.header:
                raise DataError(
                    f"{table.path}, line 1: {unknown('column', chosen[key], filter(None, table.header))}"
                )
            found[key] = chosen[key]
            continue
        names = [folded[name] for name in known if name in folded and folded[name] not in found.values()]
        if names:
            found[key] = names[0]
        elif key != "split":
            raise DataError(
                f"{table.path}, line 1: no column for the {key} among {', '.join(filter(None, table.header))}: "
                f"choose it, as @{key}=COLUMN (known without: {', '.join(known)})"
            )
    for key, name in found.items():
        for other, column in found.items():
            if key < other and name == column:
                raise DataError(
                    f"{table.path}, line 1: {key} and {other} are one column, {name!r}: choose two"
                )
    return found


def list_rows(table: CsvTable, columns: dict[str, str]) -> PhotoList:
    """The listing of a table, its files checked."""
    names = [_checked_name(table, row, text) for row, text in enumerate(table.column(columns["file"]))]
    folder = _find_folder(table, names)
    _check_files(table, folder, names)
    split = table.column(columns["split"]) if "split" in columns else _splits_by_folder(names)
    return PhotoList(
        folder,
        tuple(names),
        tuple(f"{table.path}, line {line}" for line in table.lines),
        tuple(table.column(columns["label"])),
        tuple(table.column(columns["bias"])),
        None if split is None else tuple(split),
        columns["label"],
        columns["bias"],
    )


def _checked_name(table: CsvTable, row: int, text: str) -> str:
    """The name of a file, with / between folders."""
    name = text.replace("\\", "/")
    problem = ""
    if name.lower() in ("", "nan", "none", "null"):
        problem = f"no file is named ({text!r}); name one or remove the row"
    elif not name.isprintable() or len(name) > 1000:
        problem = f"{name[:40]!r} is no name of a file"
    elif "://" in name:
        problem = f"{name!r} is an address: fetch the image and name its file"
    elif name.startswith(("/", "~")) or re.match("[A-Za-z]:", name):
        problem = f"{name!r} is an absolute path: name files from the folder of the table on"
    elif ".." in PurePosixPath(name).parts:
        problem = f"{name!r} leaves the folder of the table: move the image into it"
    if problem:
        raise at_line(table.path, table.lines[row], problem)
    return str(PurePosixPath(name))


def _find_folder(table: CsvTable, names: Sequence[str]) -> Path:
    """The folder of the table or one in it: where most of the first files are."""
    here = table.path.parent
    folders = [
        here,
        *sorted(path for path in here.iterdir() if path.is_dir() and not path.name.startswith(".")),
    ]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names[:PROBED]))


def _check_files(table: CsvTable, folder: Path, names: Sequence[str]) -> None:
    """Raise DataError for a file that is missing, empty, listed twice, or outside the folder by a link."""
    root, parents, seen = os.path.realpath(folder), dict[Path, str](), dict[str, int]()
    for name, line in zip(names, table.lines):
        path = folder / name
        parent = parents.setdefault(path.parent, os.path.realpath(path.parent))
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(parent, path.name)  # noqa: PTH118
        if not Path(real).is_relative_to(root):
            raise at_line(table.path, line, f"{name} is a link out of {folder}: copy the image into it")
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else f"is not in {folder} or the folders in it"
            raise at_line(table.path, line, f"{name} {problem}: put the image there or remove the row")
        if path.stat().st_size == 0:
            raise at_line(table.path, line, f"{name} has no bytes: fetch it again or remove the row")
        if name in seen:
            raise at_line(table.path, line, f"{name} is in line {seen[name]} already: remove one")
        seen[name] = line


def _splits_by_folder(names: Sequence[str]) -> list[str] | None:
    """The first folders of all files, if they are names of splits; None where they are not."""
    first = [PurePosixPath(name).parts[0].lower() for name in names]
    return first if set(first) <= SPLIT_NAMES.keys() and not any(part.isdigit() for part in first) else None
