"""The sweep of suites within so many minutes: cut off, packed, carried on, and what too few parts leave out."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from gpu import sweep

from prunebench.results.store import Store
from prunebench.runner import local

SUITE = """
tasks = ["colored-digits@2pct"]
methods = ["magnitude"]
sparsities = [0.9]
seeds = {seeds}

[recipe]
steps = {steps}
finetune_steps = 4
batch_size = 16
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The workers that were started; no time is kept back for packing."""
    workers: list[Any] = []
    start = local._Worker.__init__

    def noted(self: Any, *words: Any, **settings: Any) -> None:
        start(self, *words, **settings)
        workers.append(self)

    monkeypatch.setattr(local._Worker, "__init__", noted)
    monkeypatch.setattr(sweep, "PACKING_SECONDS", 0.0)
    monkeypatch.setenv("PYTHONPATH", "")  # is set, and put back
    return workers


def run(folder: Path, name: str, *words: str, minutes: float, seeds: list[int], steps: int = 8) -> Store:
    """Sweep a tiny suite into a store and parts of a name; exit code 0."""
    suite = folder / f"{name}.toml"
    suite.write_text(SUITE.format(seeds=seeds, steps=steps))
    places = ["--out", str(folder / name), "--work", str(folder / f"{name}-work")]
    command = [str(suite), *places, "--device", "cpu", "--workers", "2", "--minutes", str(minutes), *words]
    assert sweep.main(command) == 0
    return Store(folder / f"{name}-work" / sweep.STORE)


@pytest.mark.slow
def test_a_sweep_is_cut_off_packed_and_carried_on(
    tmp_path: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path, "first", minutes=2, seeds=[0])
    assert "2 runs are open" in capsys.readouterr().out
    outputs = {record.run_id: record.outputs_sha256 for record in first.records()[0]}
    assert len(outputs) == 2

    begun = time.monotonic()
    carried = ("--carried", str(tmp_path / "first"))
    run(tmp_path, "cut", *carried, minutes=0.15, seeds=[0, 1], steps=1_000_000)
    assert time.monotonic() - begun < 60
    said = capsys.readouterr().out
    assert "4 runs are open" in said
    assert "the time is over, 4 runs are left" in said
    assert started
    assert all(worker._process.poll() is not None for worker in started)

    again = run(tmp_path, "again", "--carried", str(tmp_path / "cut"), minutes=2, seeds=[0, 1])
    assert "2 runs are open" in capsys.readouterr().out
    records = {record.run_id: record for record in again.records()[0]}
    assert len(records) == 4
    assert {record.status for record in records.values()} == {"ok"}
    assert {name: records[name].outputs_sha256 for name in outputs} == outputs


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three made-up runs whose models and outputs do not compress, and what a killed worker leaves."""
    store = tmp_path / "made" / sweep.STORE
    for run in "abc":
        folder = store / "runs" / run
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"run_id": run}))
        noise = os.urandom(3 * 2**20)
        (folder / "model.safetensors").write_bytes(noise)
        (folder / "outputs.safetensors").write_bytes(noise[: 2**20])
    (store / "locks").mkdir()
    (store / "locks" / "a.lock").touch()
    (store / "runs" / "a" / ".model.safetensors.1.tmp").touch()
    return store


def packed(store: Path, out: Path, parts: int) -> list[str]:
    """What unpacking gives, after packing into at most so many parts of 4 MiB."""
    sweep.pack(store, out, parts)
    assert 1 <= len([*out.iterdir()]) <= parts
    sweep.unpack(out, out.parent / f"back-{parts}")
    back = out.parent / f"back-{parts}" / sweep.STORE
    return sorted(str(path.relative_to(back)) for path in back.rglob("*") if path.is_file())


@pytest.mark.slow
def test_too_few_parts_leave_out_outputs_and_models_but_no_record(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PART_BYTES", 4 * 2**20)
    everything = [
        f"runs/{run}/{name}"
        for run in "abc"
        for name in ("model.safetensors", "outputs.safetensors", "record.json")
    ]
    assert packed(store, tmp_path / "out", 4) == everything
    few = packed(store, tmp_path / "out", 2)  # the parts of before are gone
    assert {f"runs/{run}/record.json" for run in "abc"} < {*few}
    assert "runs/c/model.safetensors" not in few
    monkeypatch.setattr(sweep, "MARGIN_BYTES", 4 * 2**20 - 1000)
    assert packed(store, tmp_path / "out", 1) == [name for name in everything if name.endswith(".json")]


def test_what_is_there_stays_when_parts_are_unpacked(tmp_path: Path, store: Path) -> None:
    for path in store.rglob("*.safetensors"):
        path.unlink()
    sweep.pack(store, tmp_path / "out", 4)
    record = store / "runs" / "a" / "record.json"
    record.write_text("newer")
    sweep.unpack(tmp_path / "out", store.parent)
    assert record.read_text() == "newer"


def test_a_folder_without_parts_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"name the --out of an earlier command"):
        sweep.unpack(tmp_path, tmp_path / "back")
