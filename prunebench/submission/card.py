"""The card of a submission: who made the method, from what, and how its settings were chosen; TOML, validated."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prunebench.errors import UsageError

CARD = "card.toml"
LARGEST_CARD = 1 << 14
URL = r"https://[A-Za-z0-9.-]{1,253}(:\d{1,5})?(/[A-Za-z0-9._~%/+?=&#:@,-]{0,300})?"
LICENCE = r"[A-Za-z0-9.+-]{1,40}( (AND|OR|WITH) [A-Za-z0-9.+-]{1,40}){0,3}"
"""An SPDX expression, as `MIT` or `Apache-2.0 OR MIT`."""

VERSION = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}"
"""Of a method: a folder on the board is named so."""

TEMPLATE = """\
# The card of a submission. Fill in every empty text; one line each.
title = ""              # what the method is, at most 120 characters
authors = [""]
paper = "none"          # https://..., or none
code = "none"           # https://... of the authors' own code, or none
supervision = "{supervision}"    # bias labels that the method reads: none, val-groups or train-groups
data = ""               # all data that decided its weights, e.g. "the task's training images alone"
tuned_on = "validation" # what its settings were chosen by: nothing, validation, training or other; never the test split
tuning = ""             # how: which settings, how many tries
hardware = "{hardware}"
licence = ""            # of the method's file, SPDX: MIT, Apache-2.0, ...
# artifacts = "https://..."     # where its logits and weights are served, so that anybody can re-evaluate
# supersedes = "file-0123456789ab"   # the version of yours on the board that this one replaces
"""


def one_line(text: str) -> str:
    """The text itself. Raises ValueError unless it is one line that every page shows from left to right."""
    if not text.strip():
        raise ValueError("is empty: fill it in")
    if not text.isprintable():
        raise ValueError("want one line without control, right-to-left or invisible characters")
    return text


Line = Annotated[str, Field(max_length=300), AfterValidator(one_line)]
Address = Annotated[str, Field(pattern=f"^(none|{URL})$")]


class Card(BaseModel):
    """What people say of a submission. Every text is one printable line; nothing of it is ever markup."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    title: Annotated[str, Field(max_length=120), AfterValidator(one_line)]
    authors: Annotated[
        list[Annotated[str, Field(max_length=100), AfterValidator(one_line)]],
        Field(min_length=1, max_length=40),
    ]
    paper: Address
    code: Address
    supervision: Literal["none", "val-groups", "train-groups"]
    data: Line
    tuned_on: Literal["nothing", "validation", "training", "other"]
    tuning: Line
    hardware: Line
    licence: Annotated[str, Field(pattern=f"^{LICENCE}$")]
    artifacts: Annotated[str, Field(pattern=f"^{URL}$")] | None = None
    supersedes: Annotated[str, Field(pattern=rf"^{VERSION}$")] | None = None


def read_card(path: Path) -> Card:
    """The card of a file. Raises UsageError with the field and what it wants."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_CARD:
        raise UsageError(f"{path}: larger than {LARGEST_CARD >> 10} kB, which no card is")
    try:
        return parse_card(tomllib.loads(data.decode("utf-8-sig")), str(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML (in UTF-8): {ascii(str(error))[1:-1][:200]}") from error


def parse_card(values: dict[str, Any], source: str) -> Card:
    """The card that these values make. Raises UsageError with the field and what it wants."""
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{ascii('.'.join(map(str, found['loc'])))[1:-1][:60]}: {found['msg'].removeprefix('Value error, ')[:200]}"
            for found in error.errors(include_url=False)[:12]
        ]
        raise UsageError(
            "\n  ".join([f"{source}: mend the card, then the same command again", *lines])
        ) from error


def write_template(path: Path, supervision: str, hardware: str) -> None:
    """Write a card to fill in. Raises UsageError where that cannot be."""
    plain = "".join(sign for sign in hardware if sign.isprintable() and sign not in '"\\')
    try:
        path.write_text(TEMPLATE.format(supervision=supervision, hardware=plain), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
