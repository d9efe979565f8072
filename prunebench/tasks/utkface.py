"""`utkface:PATH`: your copy of UTKFace (Zhang et al., CVPR 2017); gender by race unless chosen (`@label=age`).

PATH holds the images, in one folder or several, named `<age>_<gender>_<race>_<time>.jpg`: years; 0 man, 1 woman; 0
White, 1 Black, 2 Asian, 3 Indian, 4 others. Ages are taken by decades, from 70 on as one. Splits are drawn.
The few official images whose names lack a field are left out and counted.
"""

from __future__ import annotations

import re
from pathlib import Path

from prunebench.errors import DataError, UsageError, unknown
from prunebench.tasks.base import Task
from prunebench.tasks.csv_folder import find_place, read_side, split_argument
from prunebench.tasks.listed import ListedPhotos, PhotoList

NAME = re.compile(r"([0-9]{1,3})_([01])_([0-4])_[0-9]{5,}.*")
SUFFIXES = (".jpg", ".jpeg", ".png")
GENDERS = ("man", "woman")
RACES = ("White", "Black", "Asian", "Indian", "others")
DECADES = ("0-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
OLDEST = 116
ATTRIBUTES = ("age", "gender", "race")
MOST_UNNAMED = 0.01
"""Share of images without a whole name that is left out; beyond it the folder is not UTKFace."""


def open_utkface(name: str, argument: str, data_root: Path | None = None) -> Task:
    """The task of a folder, say `utkface:UTKFace@label=age,bias=gender,size=64`."""
    place, chosen = split_argument(name, argument)
    columns = {"label": "gender", "bias": "race"} | {key: chosen[key] for key in chosen if key != "size"}
    for key, column in columns.items():
        if key not in ("label", "bias"):
            raise UsageError(f"task {name!r}: UTKFace has no column for {key}=; choose label= and bias=")
        if column not in ATTRIBUTES:
            raise unknown("attribute of UTKFace", column, ATTRIBUTES)
    if columns["label"] == columns["bias"]:
        raise UsageError(f"task {name!r}: label and bias are both {columns['label']}: choose two")
    folder = find_place("utkface", place, data_root)
    listing, unnamed = list_faces(folder, columns["label"], columns["bias"])
    kept = ",".join(f"{key}={value}" for key, value in chosen.items())
    canonical = f"utkface:{folder.name}{kept and f'@{kept}'}"
    title = f"UTKFace, {columns['label']} by {columns['bias']}"
    task = ListedPhotos(canonical, title, "UTKFace (Zhang et al., 2017)", listing, read_side(name, chosen))
    if unnamed:
        task.notice(
            f"images whose names lack age, gender or race are left out: {len(unnamed)}, as {unnamed[0]}"
        )
    return task


def list_faces(folder: Path, label: str, bias: str) -> tuple[PhotoList, list[str]]:
    """The images of a folder with what their names say, and those whose names do not. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: unpack UTKFace and name the folder of its images")
    images = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    faces = {name: face for name in images if (face := read_face(folder, name)) is not None}
    unnamed = [name for name in images if name not in faces]
    if not images:
        raise DataError(f"{folder} holds no {', '.join(SUFFIXES)} images: unpack UTKFace there")
    if len(unnamed) > max(MOST_UNNAMED * len(images), 3):
        raise DataError(
            f"{folder / unnamed[0]}: its name (and {len(unnamed) - 1} more) is not <age>_<gender>_<race>_<time>.jpg"
        )
    names = tuple(faces)
    return PhotoList(
        folder,
        names,
        tuple(str(folder / name) for name in names),
        tuple(faces[name][label] for name in names),
        tuple(faces[name][bias] for name in names),
        None,
        label,
        bias,
    ), unnamed


def read_face(folder: Path, name: str) -> dict[str, str] | None:
    """Age by decade, gender and race of a file's name; None where it says less. Raises DataError at an age over 116."""
    match = NAME.fullmatch(Path(name).name)
    if match is None:
        return None
    age, gender, race = map(int, match.groups())
    if age > OLDEST:
        raise DataError(f"{folder / name}: nobody is {age} years old; rename or remove it")
    return {"age": DECADES[min(age // 10, len(DECADES) - 1)], "gender": GENDERS[gender], "race": RACES[race]}
