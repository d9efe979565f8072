"""Faults, a short run: inputs damaged at random, writers killed, disks that fill. `bench/faults.py` does thousands."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path

import fault_processes
import fault_resources
import faults
import numpy as np
import pytest
import scale
from fault_inputs import KINDS, try_many

from prunebench.errors import DataError
from prunebench.report.markdown import fill_part
from prunebench.tasks import cifar10
from prunebench.tasks.colored_mnist import LARGEST, read_idx

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_give_a_value_or_an_error_that_names_the_file(kind: str) -> None:
    found = try_many(kind, range(10_000_000, 10_000_040))
    assert set(found) <= {"value", "named error"}, found
    assert "named error" in found


def test_an_idx_file_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    body = struct.pack(">HBBI", 0, 8, 1, LARGEST) + bytes(LARGEST)
    (tmp_path / "a.gz").write_bytes(gzip.compress(body, 1))
    with pytest.raises(DataError, match=r"a\.gz: unpacks to more than 64 MiB"):
        read_idx(tmp_path / "a")


def test_a_pickle_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    values = {b"data": np.zeros((1, 3072), dtype=np.uint8), b"labels": [0]}
    head, rest = (data := pickle.dumps(values, protocol=2))[:3], data[3:]
    path = tmp_path / "batch"
    path.write_bytes(head + b"r\xff\xff\xff\x7f" + rest)  # LONG_BINPUT: the object of number 2^31 - 1
    with pytest.raises(DataError, match=r"batch: it numbers an object 2147483647 in \d+ bytes"):
        cifar10._read_pickle(path)


def test_writers_on_one_folder_do_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_processes, "CELLS", 60)
    assert fault_processes.writers(1, 1, tmp_path) == (60, [])


@pytest.mark.slow
def test_killed_writers_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_processes, "KILLED_CELLS", 300)
    monkeypatch.setattr(fault_processes, "KILLS", 2)
    kills, problems = fault_processes.killed_writers(1, 0, tmp_path)
    assert problems == []
    assert kills > 0


def test_what_is_lost_twice_or_damaged_is_seen(tmp_path: Path) -> None:
    fault_processes.write_instantly(tmp_path, 5, 0)
    assert fault_processes.what_is_wrong(tmp_path, 5) == []
    with (tmp_path / "journal").open("a") as journal:
        journal.write(fault_processes.instant_record(0).run_id + "\n")
    store = fault_processes.Store(tmp_path)
    store.where(fault_processes.instant_record(1)).write_text("{")
    store.where(fault_processes.instant_record(2)).unlink()
    with store.lock("x"):
        problems = "\n".join(fault_processes.what_is_wrong(tmp_path, 5))
    assert "1 runs were written twice" in problems
    assert "2 runs are lost" in problems
    assert "x.lock is held" in problems
    assert "is not what was written" in problems


@pytest.mark.parametrize("number", range(len(fault_resources.SCARCE)))
def test_a_full_or_read_only_disk_is_named_and_then_goes_on(tmp_path: Path, number: int) -> None:
    assert fault_resources.scarce(2, number, tmp_path)[1] == []


def test_a_tally_goes_on_and_fills_its_page(tmp_path: Path) -> None:
    first = faults.run_part("inputs", 3, 1, tmp_path)
    assert (first["trials"], first["faults"], first["wrong"]) == (1, 100, 0)
    assert faults.run_part("inputs", 3, 1, tmp_path) == first
    table = faults.tally_markdown({"inputs": first})
    assert "| 1 | 100 | 0 |" in table
    assert table in fill_part(faults.PAGE.read_text(encoding="utf-8"), faults.PART, table)


def test_the_scale_table_states_growth_and_load() -> None:
    shared = {"step": "scan", "wall": 2.0, "peak": 0.5, "load": 9.5, **dict.fromkeys(scale._DISK, 7.0)}
    rows = [
        {**shared, "size": "1k", "cpu": 0.1, "runs": 1000},
        {**shared, "size": "10k", "cpu": 1.0, "runs": 10_000},
    ]
    text = scale.scale_markdown(rows)
    assert "load 9.5 to 9.5" in text
    assert "| resume scan, no index | 0.10 (2.00, 0.50) | 1.00 (2.00, 0.50) | n^1.00 |" in text


def test_tallies_of_several_seeds_are_added(tmp_path: Path) -> None:
    for seed, wrong in ((0, 0), (12, 1)):
        tally = {"trials": 2, "faults": 10 + seed, "problems": [], "wrong": wrong}
        (tmp_path / f"killed-sweeps-{seed}.json").write_text(json.dumps(tally))
    assert faults.read_tally("killed sweeps", tmp_path) == {"trials": 4, "faults": 32, "wrong": 1}
    assert faults.read_tally("writers", tmp_path) == {"trials": 0, "faults": 0, "wrong": 0}
