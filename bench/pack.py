"""Inputs for a machine without a network, in parcels of limited size, and results back in few files.

    python bench/pack.py inputs --data DIR --out parcels          # parcel-1.tar, ...: source, packages, data
    python bench/pack.py unpack parcels/parcel-*.tar --into trip  # there: trip/source, trip/site, trip/data
    python bench/pack.py results --results DIR --out back         # there: at most 8 files of at most 16 MiB
    python bench/pack.py collect back --into results/gpu          # here: records and logits, checked

A parcel is a tar file of at most `--limit-mib`; its size against the limit is printed, and what does not fit into one
is an error. `unpack` and `results` need the standard library alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
SOURCE = ("prunebench", "kernels", "bench", "pyproject.toml", "LICENSE", "README.md")
PACKAGES = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"),
    *("filelock", "safetensors"),
)
"""What training and records need besides torch, torchvision, Triton, numpy, scipy and Pillow."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
DATA = (
    "MNIST/raw/*.gz",
    *("cifar-10-batches-bin/*.bin", "cifar-10-batches-py/*_batch*", "cifar10/*.npz", "cifar10/*.webp"),
)
BLOCK = 512
"""Bytes of a tar file's header, and of what its files are rounded up to."""


class PackError(Exception):
    """What does not fit, or is not there. The message names the fix."""


@dataclass(frozen=True)
class Entry:
    """A file on its way: where it lies, and its name in a parcel."""

    path: Path
    name: str

    @property
    def size(self) -> int:
        """Bytes that it takes in a tar file."""
        return BLOCK + -(-self.path.stat().st_size // BLOCK) * BLOCK


# --- inputs ------------------------------------------------------------------------------------------------


def pack_inputs(options: argparse.Namespace) -> int:
    """Write the parcels and print the size of each against the limit."""
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("parcel-*.tar"):
        old.unlink()
    commit = options.out / "commit.json"
    commit.write_text(json.dumps(describe_commit(ROOT)) + "\n")
    sources = [*source_entries(ROOT), Entry(commit, "source/commit.json")]
    entries = [*sources, *wheel_entries(options), *data_entries(options.data)]
    limit = round((options.limit_mib - options.reserve_mib) * MIB)
    parcels = fill(entries, limit)
    for number, parcel in enumerate(parcels, 1):
        path = options.out / f"parcel-{number}.tar"
        write_tar(path, parcel)
        size = path.stat().st_size
        if size > limit:
            raise PackError(f"{path}: {size} bytes, {size - limit} over the limit")
        folders = sorted({entry.name.split("/")[0] for entry in parcel})
        print(f"{path}: {size / MIB:.1f} of {limit / MIB:.1f} MiB, {len(parcel)} files: {', '.join(folders)}")
    return 0


def source_entries(root: Path) -> list[Entry]:
    """The files under version control that a run needs; of a copy without git, all of them."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(root), "ls-files", "--", *SOURCE], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        found = [path for name in SOURCE for path in (root / name, *(root / name).rglob("*"))]
        listed = [path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts]
    paths = [root / name for name in listed]
    return [Entry(path, f"source/{path.relative_to(root).as_posix()}") for path in paths if path.is_file()]


def describe_commit(root: Path) -> dict[str, str | bool | None]:
    """The commit that a record made from the packed source names, and whether the source differs from it."""
    sys.path[:0] = [str(root), str(root / "kernels")]
    from prunebench.environment import describe_code

    code = describe_code()
    return {"commit": code["commit"], "dirty": code["dirty"]}


def wheel_entries(options: argparse.Namespace) -> list[Entry]:
    """Wheels of the packages for the other machine's Python, fetched into `--wheels` if they are not there."""
    if options.no_wheels:
        return []
    folder: Path = options.wheels or options.out / "wheels"
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES]
    if not all(any(folder.glob(f"{name.replace('-', '_')}-*.whl")) for name in PACKAGES):
        folder.mkdir(parents=True, exist_ok=True)
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        command = [
            *(pip_python(), "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
            *("--python-version", options.python, "--implementation", "cp", *platforms, "-d", str(folder)),
        ]
        try:
            subprocess.run([*command, *wanted], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PackError(
                f"{error}; fetch the wheels of {', '.join(wanted)} into {folder} yourself, or use --no-wheels"
            ) from error
    return [Entry(path, f"wheels/{path.name}") for path in sorted(folder.glob("*.whl"))]


def pip_python() -> str:
    """A Python that has pip: environments made by uv have none."""
    for python in (sys.executable, shutil.which("python3") or "", "/usr/bin/python3"):
        done = python and subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
        if done and done.returncode == 0:
            return python
    raise PackError("no Python with pip: install one, or fetch the wheels into --wheels, or use --no-wheels")


def data_entries(folder: Path) -> list[Entry]:
    """The data files of the tasks, in the order in which they are wanted: MNIST first."""
    found = [path for pattern in DATA for path in sorted(folder.glob(pattern))]
    if not found:
        raise PackError(f"no data under {folder}: expected {' or '.join(DATA)}")
    return [Entry(path, f"data/{path.relative_to(folder).as_posix()}") for path in found]


def fill(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    """The entries in as few parcels as their order allows: each goes into the first that has room for it."""
    parcels: list[list[Entry]] = []
    room: list[int] = []
    for entry in entries:
        empty = limit - tarfile.RECORDSIZE
        if entry.size > empty:
            raise PackError(f"{entry.path} takes {entry.size} bytes, more than a parcel holds ({empty})")
        place = next((number for number, left in enumerate(room) if entry.size <= left), None)
        if place is None:
            parcels.append([])
            room.append(empty)
            place = len(parcels) - 1
        parcels[place].append(entry)
        room[place] -= entry.size
    return parcels


def write_tar(path: Path, entries: Iterable[Entry], *, mode: str = "w") -> None:
    """A tar file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with tarfile.open(temporary, mode, format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
        for entry in entries:
            tar.add(entry.path, entry.name, recursive=False)
    temporary.replace(path)


def unpack(options: argparse.Namespace) -> int:
    """Unpack parcels; the files of wheels come to lie in `site`, ready for PYTHONPATH."""
    for parcel in options.parcels:
        extract(parcel, options.into)
    for wheel in sorted((options.into / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(options.into / "site")
    print(f"unpacked {len(options.parcels)} parcels into {options.into}")
    return 0


def extract(path: Path, folder: Path) -> None:
    """Unpack a tar file; nothing in it can write outside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise PackError(f"{path}: {error}; send it again") from error


# --- results -----------------------------------------------------------------------------------------------


def pack_results(options: argparse.Namespace) -> int:
    """Pack the finished runs below `--results` into the limits."""
    left_out = pack_runs(
        options.results, options.out, Limits(options.files, options.file_mib, options.total_mib)
    )
    print(f"{options.out}: {describe(options.out)}; logits of {left_out} runs left out")
    return 0


@dataclass(frozen=True)
class Limits:
    """What may come back: files, MiB of each, MiB together."""

    files: int = 8
    file_mib: float = 16.0
    total_mib: float = 64.0


def pack_runs(results: Path, out: Path, limits: Limits) -> int:
    """Write records.tar.gz, logits-1.tar, ... and the log of a sweep to `out`. Returns how many runs lack logits.

    Records come first, all of them; then logits, runs in the order in which they were finished. Raises PackError if
    the records alone do not fit.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("records.tar.gz"), *out.glob("logits-*.tar")):
        old.unlink()
    extra = [results / name for name in ("sweep.json", "log.txt") if (results / name).is_file()]
    for path in extra:
        shutil.copyfile(path, out / path.name)
    records = sorted(results.glob("runs/*/record.json"), key=lambda path: (path.stat().st_mtime, path))
    write_tar(out / "records.tar.gz", [_result(path, results) for path in records], mode="w:gz")
    spent = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    single, total = round(limits.file_mib * MIB), round(limits.total_mib * MIB)
    if (out / "records.tar.gz").stat().st_size > single or spent > total:
        raise PackError(f"{len(records)} records are larger than the limits: narrow the sweep")
    logits = [path.with_name("outputs.safetensors") for path in records]
    entries = [_result(path, results) for path in logits if path.is_file()]
    packed = 0
    for number in range(1, limits.files - len(extra)):
        room = min(single, total - spent)
        chosen = list(_prefix(entries[packed:], room - tarfile.RECORDSIZE))
        if not chosen:
            break
        path = out / f"logits-{number}.tar"
        write_tar(path, chosen)
        packed += len(chosen)
        spent += path.stat().st_size
    return len(entries) - packed


def _result(path: Path, results: Path) -> Entry:
    return Entry(path, path.relative_to(results).as_posix())


def _prefix(entries: Iterable[Entry], room: int) -> Iterator[Entry]:
    for entry in entries:
        room -= entry.size
        if room < 0:
            return
        yield entry


def describe(folder: Path) -> str:
    """Files, and their size together and at most."""
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
    return (
        f"{len(sizes)} files, {sum(sizes) / MIB:.2f} MiB, the largest {max(sizes, default=0) / MIB:.2f} MiB"
    )


def collect(options: argparse.Namespace) -> int:
    """Unpack results into a results folder and check every record; exit code 1 if one is damaged."""
    for path in sorted((*options.back.glob("records.tar.gz"), *options.back.glob("logits-*.tar"))):
        extract(path, options.into)
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    from prunebench.store import Store

    records, damaged = Store(options.into).records()
    states = {
        status: sum(record.status == status for record in records) for status in ("ok", "failed", "skipped")
    }
    print(f"{options.into}: {json.dumps(states)}, {len(damaged)} damaged")
    for entry in damaged:
        print(entry.reason)
    return int(bool(damaged))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Exit code 1 if something does not fit or is damaged."""
    parser = argparse.ArgumentParser(prog="bench/pack.py", description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("inputs", help="write parcels of source, packages and data")
    verb.add_argument("--data", type=Path, required=True, help="folder with MNIST and CIFAR-10")
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--limit-mib", type=float, default=64.0, help="size of a parcel (default 64)")
    verb.add_argument(
        "--reserve-mib", type=float, default=0.0, help="what else travels with each (default 0)"
    )
    verb.add_argument("--python", default="3.12", help="the other machine's Python (default 3.12)")
    verb.add_argument("--wheels", type=Path, help="folder of wheels (default: fetched into OUT/wheels)")
    verb.add_argument("--no-wheels", action="store_true", help="the other machine has the packages")
    verb.set_defaults(run=pack_inputs)
    verb = verbs.add_parser("unpack", help="unpack parcels on the other machine")
    verb.add_argument("parcels", type=Path, nargs="+")
    verb.add_argument("--into", type=Path, required=True)
    verb.set_defaults(run=unpack)
    verb = verbs.add_parser("results", help="pack results for the way back")
    verb.add_argument("--results", type=Path, required=True)
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--files", type=int, default=8)
    verb.add_argument("--file-mib", type=float, default=16.0)
    verb.add_argument("--total-mib", type=float, default=64.0)
    verb.set_defaults(run=pack_results)
    verb = verbs.add_parser("collect", help="unpack results and check them")
    verb.add_argument("back", type=Path)
    verb.add_argument("--into", type=Path, required=True)
    verb.set_defaults(run=collect)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except PackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
