"""Parcels: nothing over the limit leaves, everything arrives, and results come back whole in few files."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pack
import pytest
import torch

from prunebench.record import RunRecord
from prunebench.spec import RunSpec
from prunebench.store import Store

MIB = pack.MIB


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Data files of the names that tasks read, 1.2 MiB together."""
    root = tmp_path / "data"
    sizes = {
        "MNIST/raw/train.gz": 200,
        "cifar10/labels.npz": 1,
        "cifar10/test.webp": 500,
        "cifar10/train_0.webp": 500,
    }
    for name, kib in sizes.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(kib * 1024))
    (root / "cifar10" / "notes.txt").write_text("stays here")
    return root


def inputs(data: Path, out: Path, *extra: str) -> int:
    return pack.main(["inputs", "--data", str(data), "--out", str(out), "--no-wheels", *extra])


def test_the_inputs_fit_and_arrive_whole(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, trip = tmp_path / "parcels", tmp_path / "trip"
    source = sum(entry.size for entry in pack.source_entries(pack.ROOT)) / MIB
    assert source < 12, "the source has grown: look at what `bench/pack.py` takes along"
    limit = source + 0.8
    assert inputs(data, out, "--limit-mib", str(limit + 2), "--reserve-mib", "2") == 0
    parcels = sorted(out.glob("parcel-*.tar"))
    assert len(parcels) == 2
    assert all(path.stat().st_size <= limit * MIB for path in parcels)
    printed = capsys.readouterr().out.splitlines()
    assert [f"of {limit:.1f} MiB" in line for line in printed] == [True, True]
    assert pack.main(["unpack", *map(str, parcels), "--into", str(trip)]) == 0
    for path in data.rglob("*"):
        if path.is_file() and path.suffix != ".txt":
            assert (trip / "data" / path.relative_to(data)).read_bytes() == path.read_bytes()
    assert not (trip / "data" / "cifar10" / "notes.txt").exists()
    for name in (
        "prunebench/execute.py",
        "bench/gpu.py",
        "bench/gpu_sweep.py",
        "prunebench/suites/digits.toml",
    ):
        assert (trip / "source" / name).read_bytes() == (pack.ROOT / name).read_bytes()


def test_what_does_not_fit_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inputs(data, tmp_path / "parcels", "--limit-mib", "0.3") == 1
    assert "more than a parcel holds" in capsys.readouterr().err
    assert not list((tmp_path / "parcels").glob("*.tar"))
    assert inputs(tmp_path / "empty", tmp_path / "parcels") == 1
    assert "no data under" in capsys.readouterr().err


def test_a_parcel_is_filled_to_the_last_block(tmp_path: Path) -> None:
    entries = []
    for number in range(6):
        path = tmp_path / str(number)
        path.write_bytes(bytes(pack.BLOCK * 3))
        entries.append(pack.Entry(path, path.name))
    limit = 3 * 4 * pack.BLOCK + tarfile.RECORDSIZE
    parcels = pack.fill(entries, limit)
    assert [len(parcel) for parcel in parcels] == [3, 3]
    assert [len(parcel) for parcel in pack.fill(entries, limit - 1)] == [2, 2, 2]
    pack.write_tar(tmp_path / "full.tar", parcels[0])
    assert (tmp_path / "full.tar").stat().st_size <= limit


def test_wheels_come_to_lie_where_python_finds_them(data: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in pack.PACKAGES:
        with zipfile.ZipFile(wheels / f"{name.replace('-', '_')}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name.replace('-', '_')}_stand_in.py", f"name = {name!r}\n")
    out, trip = tmp_path / "parcels", tmp_path / "trip"
    assert pack.main(["inputs", "--data", str(data), "--out", str(out), "--wheels", str(wheels)]) == 0
    assert pack.main(["unpack", *map(str, out.glob("*.tar")), "--into", str(trip)]) == 0
    done = subprocess.run(
        [sys.executable, "-c", "import pydantic_core_stand_in as p; print(p.name)"],
        env={"PYTHONPATH": str(trip / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "pydantic-core\n"


def test_nothing_in_a_parcel_can_write_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(tmp_path / "evil", "../outside")
    assert pack.main(["unpack", str(tmp_path / "evil.tar"), "--into", str(tmp_path / "trip")]) == 1
    assert "send it again" in capsys.readouterr().err
    assert not (tmp_path / "outside").exists()


# --- results -----------------------------------------------------------------------------------------------

Make = Callable[..., RunRecord]


def fill_store(root: Path, spec: RunSpec, make_record: Make, runs: int) -> Store:
    """Runs with 10,000 x 10 random logits each: 0.2 MB."""
    store = Store(root)
    store.prepare()
    for seed in range(runs):
        logits = torch.rand(10_000, 10, generator=torch.Generator().manual_seed(seed)).half()
        store.write(
            make_record(replace(spec, seed=seed)), {"test_logits": logits}, model={"w": torch.zeros(9)}
        )
    (root / "sweep.json").write_text("{}")
    (root / "log.txt").write_text("a line\n")
    return store


def test_results_come_back_within_the_limits(
    tmp_path: Path, spec: RunSpec, make_record: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fill_store(tmp_path / "results", spec, make_record, 12)
    out, into = tmp_path / "back", tmp_path / "collected"
    limits = ["--files", "8", "--file-mib", "0.5", "--total-mib", "1.5"]
    for _ in range(2):  # again over what is there
        assert pack.main(["results", "--results", str(store.root), "--out", str(out), *limits]) == 0
    files = [path for path in out.iterdir() if path.is_file()]
    assert {path.name for path in files} >= {"records.tar.gz", "sweep.json", "log.txt", "logits-1.tar"}
    assert len(files) <= 8
    assert all(path.stat().st_size <= 0.5 * MIB for path in files)
    assert sum(path.stat().st_size for path in files) <= 1.5 * MIB
    printed = capsys.readouterr().out
    left_out = int(printed.rsplit("logits of ", 1)[1].split()[0])
    assert 0 < left_out < 12
    assert pack.main(["collect", str(out), "--into", str(into)]) == 0
    records, damaged = Store(into).records()
    assert (len(records), damaged) == (12, [])
    assert records == store.records()[0]
    arrived = [
        record for record in records if (Store(into).folder(record.run_id) / "outputs.safetensors").exists()
    ]
    assert len(arrived) == 12 - left_out
    for record in arrived:
        tensors = Store(into).read_tensors(record.run_id, "outputs")
        torch.testing.assert_close(tensors, store.read_tensors(record.run_id, "outputs"))
    assert not list(into.rglob("model.safetensors"))


def test_the_number_of_files_is_a_limit_too(tmp_path: Path, spec: RunSpec, make_record: Make) -> None:
    store = fill_store(tmp_path / "results", spec, make_record, 12)
    left_out = pack.pack_runs(store.root, tmp_path / "back", pack.Limits(files=5, file_mib=0.5))
    assert len(list((tmp_path / "back").iterdir())) == 5
    assert left_out == 8  # two runs a file, two files of logits


def test_records_that_do_not_fit_are_an_error(
    tmp_path: Path, spec: RunSpec, make_record: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fill_store(tmp_path / "results", spec, make_record, 2)
    arguments = [
        "results",
        "--results",
        str(store.root),
        "--out",
        str(tmp_path / "back"),
        "--file-mib",
        "0.0001",
    ]
    assert pack.main(arguments) == 1
    assert "narrow the sweep" in capsys.readouterr().err


def test_a_damaged_record_is_found_on_arrival(
    tmp_path: Path, spec: RunSpec, make_record: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fill_store(tmp_path / "results", spec, make_record, 2)
    path = next(store.root.glob("runs/*/record.json"))
    path.write_text(json.dumps({"schema_version": 2}))
    pack.pack_runs(store.root, tmp_path / "back", pack.Limits())
    assert pack.main(["collect", str(tmp_path / "back"), "--into", str(tmp_path / "collected")]) == 1
    assert "1 damaged" in capsys.readouterr().out
