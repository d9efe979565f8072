"""`fairface:PATH`: your copy of FairFace (Karkkainen and Joo, WACV 2021); gender by race unless chosen.

    PATH/fairface_label_train.csv    file, age, gender, race, service_test
    PATH/fairface_label_val.csv      likewise
    PATH/train/*.jpg, PATH/val/*.jpg

FairFace has no test split: its validation images test, and a tenth of the training images validates.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prunebench.data.table import read_csv
from prunebench.errors import DataError
from prunebench.tasks.base import Task
from prunebench.tasks.csv_folder import choose_columns, find_place, list_rows, read_side, split_argument
from prunebench.tasks.listed import ListedPhotos, PhotoList

TABLES = {"train": "fairface_label_train.csv", "test": "fairface_label_val.csv"}
PER_ROW = ("names", "where", "label", "bias", "split")
DEFAULTS = {"file": "file", "label": "gender", "bias": "race"}


def open_fairface(name: str, argument: str, data_root: Path | None = None) -> Task:
    """The task of a folder, say `fairface:faces@label=age,size=64`."""
    place, chosen = split_argument(name, argument)
    folder = find_place("fairface", place, data_root)
    columns = {**DEFAULTS, **{key: value for key, value in chosen.items() if key != "size"}}
    parts = {}
    for split, file in TABLES.items():
        if not (folder / file).is_file():
            raise DataError(f"{folder / file} is missing: FairFace has two tables beside train/ and val/")
        table = read_csv(folder / file)
        listing = list_rows(table, choose_columns(table, columns))
        parts[split] = replace(listing, split=(split,) * len(listing.names))
    both = join_listings(parts["train"], parts["test"])
    kept = ",".join(f"{key}={value}" for key, value in chosen.items())
    canonical = f"fairface:{folder.name}{kept and f'@{kept}'}"
    title = f"FairFace, {columns['label']} by {columns['bias']}"
    return ListedPhotos(canonical, title, "FairFace (Karkkainen & Joo, 2021)", both, read_side(name, chosen))


def join_listings(first: PhotoList, second: PhotoList) -> PhotoList:
    """Two listings of one folder, one below the other."""
    if first.folder != second.folder:
        raise DataError(
            f"{second.where[0]}: its images are in {second.folder}, those of the other table in {first.folder}"
        )
    pairs = ((getattr(each, name) for each in (first, second)) for name in PER_ROW)
    return replace(first, **{name: one + other for name, (one, other) in zip(PER_ROW, pairs)})
