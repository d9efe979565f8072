"""Tables of text (CSV) with any delimiter, quotes and line ends; what is damaged is named by its line."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from prunebench.errors import DataError

DELIMITERS = ",;\t|"
LARGEST = 1 << 30
"""Bytes: the 203,029 images of iWildCam take 40 million."""
NOT_TEXT = {
    b"\x1f\x8b": "is compressed: unpack it (gunzip)",
    b"PK": "is a zip archive or a spreadsheet: unpack it, or save the sheet as CSV",
    b"\xff\xfe": "is UTF-16: save it as UTF-8",
    b"\xfe\xff": "is UTF-16: save it as UTF-8",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file: run git lfs pull",
}


@dataclass(frozen=True)
class CsvTable:
    """Header and rows of a file, every row with as many fields as the header, and the line where each begins."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str) -> list[str]:
        """The fields below a name of the header."""
        place = self.header.index(name)
        return [row[place] for row in self.rows]


def at_line(path: Path, line: int, problem: str) -> DataError:
    """The error for a line of a file."""
    return DataError(f"{path}, line {line}: {problem}")


def read_csv(path: Path) -> CsvTable:
    """The table in a file of UTF-8 (with or without its mark). Raises DataError that names the file and the line."""
    text = _read_text(path)
    delimiter = _find_delimiter(path, text)
    header: tuple[str, ...] = ()
    rows, lines, line = [], [], 1
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        for fields in reader:
            row = tuple(field.strip() for field in fields)
            if any(row) and not header:
                header = _checked_header(path, line, row)
            elif any(row):
                if len(row) != len(header):
                    raise at_line(
                        path, line, f"{len(row)} fields, but the header has {len(header)}; mend or remove it"
                    )
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise at_line(path, line, f"{error}: is a quotation mark missing? close it or take it out") from error
    if not rows:
        raise DataError(f"{path}, line 1: there is a header, but no row below it; fetch the file again")
    return CsvTable(path, header, tuple(rows), tuple(lines))


def _read_text(path: Path) -> str:
    """The file's text with \\n at the end of lines."""
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} has more than {LARGEST:,} bytes: is it a table?")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give the path of a CSV file") from error
    for start, problem in NOT_TEXT.items():
        if data.startswith(start):
            raise DataError(f"{path}, line 1: {problem}")
    if b"\0" in data:
        raise at_line(
            path,
            _line_of(data, data.index(b"\0")),
            "a byte of zero: this is no text; save it as CSV in UTF-8",
        )
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        raise at_line(path, _line_of(data, error.start), problem) from error
    if not text.strip():
        raise DataError(f"{path}, line 1: the file is empty; fetch it again")
    if text.lstrip().startswith("<"):
        raise DataError(
            f"{path}, line 1: this is a web page, not a table (its download was refused?); fetch it again"
        )
    return text


def _line_of(data: bytes, place: int) -> int:
    """The number of the line that a byte is in."""
    before = data[:place].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return before.count(b"\n") + 1


def _find_delimiter(path: Path, text: str) -> str:
    """What separates the names of the header: the sign that is in it most often outside quotes."""
    first = next(line for line in text.split("\n") if line.strip())
    outside = "".join(first.split('"')[::2])
    delimiter = max(DELIMITERS, key=outside.count)
    if not outside.count(delimiter):
        shown = first if len(first) <= 40 else f"{first[:40]}..."
        raise DataError(f"{path}, line 1: one column ({shown!r}): want names between commas (or ; or tabs)")
    return delimiter


def _checked_header(path: Path, line: int, header: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the columns; the first may be empty, as pandas writes its index."""
    if any(name.lower().endswith((".jpg", ".jpeg", ".png")) for name in header):
        raise at_line(path, line, "an image stands where names of columns should: add a header")
    for name in header[1:]:
        if not name:
            raise at_line(path, line, f"column {header.index(name, 1) + 1} has no name; give it one")
        if header.count(name) > 1:
            raise at_line(path, line, f"two columns are called {name!r}; rename one")
    return header
