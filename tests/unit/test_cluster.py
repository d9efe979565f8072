"""The tally of disturbed sweeps on a cluster: what it counts, what it lets pass, and what it asks for."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cluster
import namespaces
import pytest
import torch

from prunebench.results.record import RunRecord
from prunebench.results.spec import RunSpec
from prunebench.results.store import Store


@pytest.fixture
def stores(tmp_path: Path, spec: RunSpec, make_record: Callable[..., RunRecord]) -> tuple[Store, Store]:
    """Two equal stores of three runs."""
    local, other = Store(tmp_path / "local"), Store(tmp_path / "other")
    for seed in range(3):
        record = make_record(dataclasses.replace(spec, seed=seed))
        local.write(record, {"test_logits": torch.full((2, 10), seed)}, model={"w": torch.ones(seed + 1)})
    shutil.copytree(local.root, other.root)
    return local, other


def folder_of(store: Store, seed: int) -> Path:
    return next(store.folder(r.run_id) for r in store.records()[0] if r.run_spec.seed == seed)


def tally_of(stores: tuple[Store, Store], log: str = "", **facts: Any) -> dict[str, Any]:
    return {"disturbed": "node", "status": 0} | facts | cluster.compare(*stores, log)


def test_equal_sweeps_are_whole(stores: tuple[Store, Store]) -> None:
    log = "[1/3] ok a seed 0: unbiased 1%; took 1 s\nagain a seed 1: NodeDiedError\n[2/3] ok a seed 1: 2%; took 1 s\n"
    tally = tally_of(stores, log)
    assert [tally[name] for name in ("runs", "recorded", "ok", "equal_outputs", "equal_model")] == [3] * 5
    assert tally["tried_again"] == 1
    assert cluster.is_whole(tally)


def test_what_is_lost_changed_or_left_shows(stores: tuple[Store, Store]) -> None:
    twice = "[1/3] ok a seed 0: 1%; took 1 s\n[1/2] ok a seed 0: 1%; took 1 s\n"
    assert tally_of(stores, twice)["said_done_twice"] == ["a seed 0"]
    assert not cluster.is_whole(tally_of(stores, twice))
    for facts in ({"status": 1}, {"locks_left": ["one"]}, {"tasks_left": 1}, {"disturbed": "head"}):
        assert not cluster.is_whole(tally_of(stores, **facts))
    assert cluster.is_whole(tally_of(stores, disturbed="head", first_driver_seconds=6.0))
    with stores[1].lock("somebody", wait=False):
        assert len(tally_of(stores)["locks_left_at_end"]) == 1
    (folder_of(stores[1], 0) / "model.safetensors").unlink()
    assert (tally_of(stores)["equal_model"], tally_of(stores)["equal_outputs"]) == (2, 3)
    outputs = folder_of(stores[1], 1) / "outputs.safetensors"
    outputs.write_bytes(outputs.read_bytes()[:-1])
    assert (tally_of(stores)["equal_model"], tally_of(stores)["equal_outputs"]) == (2, 2)
    lost = folder_of(stores[1], 2)
    shutil.rmtree(lost)
    tally = tally_of(stores)
    assert tally["missing"] == [lost.name]
    assert (tally["runs"], tally["recorded"]) == (3, 2)
    assert not cluster.is_whole(tally)


def test_the_page_has_a_row_a_disturbance(stores: tuple[Store, Store]) -> None:
    tallies = [
        tally_of(stores, local_seconds=10.2, seconds=20.4),
        tally_of(stores, disturbed="driver", locks_left=["one"], local_seconds=10.2, seconds=30.0),
    ]
    text = cluster.tally_markdown("quick", 3, True, "2 cores, load 0.1 to 3", tallies)
    assert "`quick` on 3 nodes of one core with a network address and files of its own each" in text
    assert "| a node, killed | 3 | 3 | 0 | 0 | 3 | 3 | 0 | 10 | 20 |" in text
    assert "| the command, killed | 3 | 3 | 0 | 0 | 3 | 3 | 1 | 10 | 30 |" in text


@pytest.mark.parametrize("words", [["--apart"], ["--disturb", "network"]])
def test_without_rights_or_a_network_it_says_so_in_a_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(namespaces, "what_is_missing", lambda: "needs root's rights")
    monkeypatch.setattr("sys.argv", ["cluster.py", *words])
    assert cluster.main() == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs" in said
