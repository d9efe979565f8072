"""Damaged inputs: files of every kind that PruneBench reads, broken at random by a seeded mutator.

Each must come to the right value, or to a PruneBenchError that names the file: within 10 s and 1 GiB, never with
another exception. `faults.py` counts; a seed alone makes an input again (`python bench/fault_inputs.py KIND SEED`).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PruneBenchError

SECONDS, MEMORY = 10, 1 << 30
TOKENS = (
    b"NaN", b"1e999", b"-1", b"18446744073709551616", b"9" * 400, b"null", b"true", b'""', b"{}", b"[]", b"\x00",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"[" * 60_000, b'{"a":' * 20_000, b"\r\n", b"\n\n",
    b'"', b",", b"\t", b"../../x", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"r\xff\xff\xff\x7f",
)  # fmt: skip
"""What breaks readers: numbers beyond all bounds, bad encodings, deep nesting, lengths that are not there."""


@dataclass(frozen=True)
class Kind:
    """A kind of input: a whole file's name and bytes, what lies beside it, and what reads it, given the file."""

    name: str
    data: Callable[[], bytes]
    read: Callable[[Path], object]
    beside: Callable[[], Mapping[str, bytes]] = dict


def mutate(data: bytes, dice: random.Random) -> bytes:
    """One to four changes: bits, bytes, cuts, repeats, moves, tokens, whole numbers in a binary head."""
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data) + 1)
        other = min(len(data), place + dice.choice((1, 2, 4, 16, 300)))
        how = dice.randrange(8)
        if how == 0 and data:
            place = dice.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
        elif how == 1:
            data = data[:place]
        elif how == 2:
            data = data[:place] + data[other:]
        elif how == 3:
            data = data[:other] + data[place:other] * dice.choice((1, 2, 50)) + data[other:]
        elif how == 4:
            data = data[:place] + dice.choice(TOKENS) + data[other:]
        elif how == 5:
            data = data[:place] + dice.choice(TOKENS) + data[place:]
        elif how == 6:
            place = dice.randrange(min(len(data), 64) + 1)
            number = dice.choice((0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
            data = data[:place] + struct.pack(dice.choice("<>") + "I", number) + data[place + 4 :]
        else:
            middle = dice.randrange(len(data) + 1)
            low, high = sorted((place, middle))
            data = data[high:] + data[low:high] + data[:low]
    return data


ODD = (
    None,
    True,
    -1,
    2**62,
    1e308,
    -0.0,
    "",
    "x" * 9999,
    "\ud800",
    "../../x",
    [],
    {},
    [[]],
    {"": None},
    [1, "a"],
)
"""What takes the place of a JSON value, in a text that stays JSON."""


def mutate_json(data: bytes, dice: random.Random) -> bytes:
    """One line of JSON, or the whole text, with one to three of its values replaced, dropped, doubled or renamed."""
    lines = data.decode().split("\n") if data.count(b"\n{") else [data.decode()]
    number = dice.randrange(len(lines))
    try:
        values = json.loads(lines[number])
    except ValueError:
        return mutate(data, dice)
    for _ in range(dice.randint(1, 3)):
        places = list(_places(values))
        if not places:
            break
        holder, key = dice.choice(places)
        how = dice.randrange(4)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[dice.choice(("id", "run", "x", key.upper()))] = holder.pop(key)
        elif how == 2 and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = dice.choice(ODD)
    lines[number] = json.dumps(values)
    return "\n".join(lines).encode()


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value within a JSON value: what holds it, and its key there."""
    for key, value in list(values.items() if isinstance(values, dict) else enumerate(values)):
        yield values, key
        if isinstance(value, dict | list):
            yield from _places(value)


# Kinds


def _record() -> bytes:
    from madeup import made_up_plan, made_up_records

    return next(made_up_records([made_up_plan(1, 1)[6].spec]))[1].encode()


def _read_record(path: Path) -> object:
    from prunebench.results.record import from_json, to_json
    from prunebench.results.store import read_record

    record = read_record(path)
    assert from_json(to_json(record), "again") == record
    return record


def _committed() -> Mapping[str, bytes]:
    from madeup import made_up_plan, made_up_records

    from prunebench.results.committed import encode_task

    texts = made_up_records([run.spec for run in made_up_plan(1, 1)[5:12]])
    files = encode_task("task-00", [json.loads(text) for _, text in texts])
    return {name: text.encode() for name, text in files.items()}


def _read_committed(path: Path) -> object:
    from prunebench.errors import StoreError
    from prunebench.results.store import CommittedStore

    records, damaged = CommittedStore(path.parent.parent).records()
    if damaged:
        assert all(str(path.parent) in entry.reason for entry in damaged)
        raise StoreError(damaged[0].reason)
    return records


def _badges() -> bytes:
    line = {
        "task": "t", "method": "m", "version": "1", "badge": "consistent", "utc": "2026-01-01T00:00:00Z",
        "machine": "x", "digest": "0" * 64,
    }  # fmt: skip
    return (json.dumps(line) + "\n").encode() * 3


def _read_standing(path: Path) -> object:
    from prunebench.results.standing import read_standing

    return read_standing(path.parent)


def _tensors() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"conv.weight": torch.ones(4, 3, 3, 3), "head.bias": torch.zeros(10, dtype=torch.float16)})


def _read_tensors(path: Path) -> object:
    from prunebench.results.store import read_tensors

    return read_tensors(path)


SUITE = b"""description = "tiny"
tasks = ["colored-digits@2pct"]
methods = ["magnitude", "dcwp"]
sparsities = [0.5, 0.9]
seeds = [0, 1]
[recipe]
steps = 60
schedule = "constant"
[params.dcwp]
mining_steps = 60
"""


def _read_suite(path: Path) -> object:
    from prunebench.suites import load_suite

    return load_suite(str(path))


def _image(form: str) -> Callable[[], bytes]:
    def made() -> bytes:
        import numpy as np
        from PIL import Image

        stream = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, form)
        return stream.getvalue()

    return made


def _read_image(path: Path) -> object:
    from prunebench.data.decoding import read_image

    return read_image(path)


def _idx() -> bytes:
    return struct.pack(">HBBIII", 0, 8, 3, 5, 8, 8) + bytes(range(64)) * 5


def _read_idx(path: Path) -> object:
    from prunebench.tasks.colored_mnist import read_idx

    return read_idx(path.with_suffix("") if path.suffix == ".gz" else path)


def _cifar_rows() -> bytes:
    return b"".join(bytes([k % 10]) + bytes([k]) * 3072 for k in range(3))


def _cifar_pickle() -> bytes:
    import pickle  # only written: the reader runs nothing

    import numpy as np

    values = {b"data": np.zeros((3, 3072), dtype=np.uint8), b"labels": [0, 1, 2], b"batch_label": b"one"}
    return pickle.dumps(values, protocol=2)


def _read_cifar(path: Path) -> object:
    from prunebench.tasks import cifar10

    if path.suffix == ".bin":
        return cifar10._read_binary(path.parent)
    return cifar10._read_pickle(path)


CSV = "name,label,bias,split\n" + "".join(f'"a {k}.png",{k % 2},{k % 3},train\n' for k in range(9))


def _read_csv(path: Path) -> object:
    from prunebench.data.table import read_csv

    return read_csv(path)


_METHOD_FILE = "method-00.jsonl"
KINDS: Mapping[str, Kind] = {
    "record": Kind("record.json", _record, _read_record),
    "jsonl": Kind(f"task-00/{_METHOD_FILE}", lambda: _committed()[_METHOD_FILE], _read_committed,
                  lambda: {f"task-00/{name}": text for name, text in _committed().items()}),
    "context": Kind("task-00/context.json", lambda: _committed()["context.json"], _read_committed,
                    lambda: {f"task-00/{name}": text for name, text in _committed().items()}),
    "badges": Kind("badges.jsonl", _badges, _read_standing),
    "safetensors": Kind("model.safetensors", _tensors, _read_tensors),
    "suite": Kind("mine.toml", lambda: SUITE, _read_suite),
    "png": Kind("a.png", _image("PNG"), _read_image),
    "jpeg": Kind("a.jpg", _image("JPEG"), _read_image),
    "idx": Kind("train-images-idx3-ubyte", _idx, _read_idx),
    "idx.gz": Kind("train-images-idx3-ubyte.gz", lambda: gzip.compress(_idx(), mtime=0), _read_idx),
    "cifar binary": Kind("test_batch.bin", _cifar_rows, _read_cifar,
                         lambda: {f"data_batch_{k}.bin": _cifar_rows() for k in range(1, 6)}),
    "cifar pickle": Kind("test_batch", _cifar_pickle, _read_cifar),
    "csv": Kind("table.csv", CSV.encode, _read_csv),
}  # fmt: skip


def try_input(kind: str, seed: int, folder: Path, whole: bytes) -> str:
    """Damage and read one input: `value`, `named error`, or what is wrong."""
    asked = KINDS[kind]
    path = folder / asked.name
    text = path.suffix in (".json", ".jsonl") and seed % 2
    path.write_bytes((mutate_json if text else mutate)(whole, random.Random(f"{kind} {seed}")))
    start = time.monotonic()
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked.read(path)
        outcome = "value"
    except PruneBenchError as error:
        named = path.name in str(error) or str(path.parent) in str(error)
        outcome = "named error" if named else f"no file in: {str(error)[:200]!a}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = f"{type(error).__name__}: {str(error)[:200]!a}"
    return outcome if time.monotonic() - start < SECONDS else f"took {time.monotonic() - start:.0f} s"


def prepare(kind: str, folder: Path) -> bytes:
    """Put what lies beside an input into a folder; gives the whole input."""
    for name, data in KINDS[kind].beside().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    data = KINDS[kind].data()
    path = folder / KINDS[kind].name
    path.write_bytes(data)
    KINDS[kind].read(path)  # whole, it is read; and what reading imports is loaded before memory is counted
    return data


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """At most so many seconds of CPU time, and so much more memory than there is now."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s of CPU time")

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    heard = signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, heard)


def try_many(kind: str, seeds: range) -> dict[str, list[int]]:
    """The seeds of each outcome."""
    found: dict[str, list[int]] = {}
    folder = Path(tempfile.mkdtemp(prefix="prunebench-inputs-"))
    try:
        whole = prepare(kind, folder)
        for seed in seeds:
            found.setdefault(try_input(kind, seed, folder, whole), []).append(seed)
    finally:
        shutil.rmtree(folder)
    return found


def main() -> None:
    """Read one damaged input again, with the traceback of what goes wrong."""
    kind, seed = sys.argv[1], int(sys.argv[2])
    folder = Path(tempfile.mkdtemp(prefix="prunebench-inputs-"))
    whole = prepare(kind, folder)
    print(try_input(kind, seed, folder, whole), folder / KINDS[kind].name)
    print(KINDS[kind].read(folder / KINDS[kind].name))


if __name__ == "__main__":
    main()
