"""The index and the kept frame: fast where nothing changed, never believed where a record did."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from board_records import failed, run

from prunebench.api import load_results
from prunebench.results import frame as frames
from prunebench.results import index, store
from prunebench.results.convert import export_results
from prunebench.results.frame import load_frame, results_frame
from prunebench.results.record import RunRecord, to_json
from prunebench.results.store import Store, open_results

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _small_folders_are_indexed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (frames, store):
        monkeypatch.setattr(module, "WORTHWHILE", 1)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))


def records() -> list[RunRecord]:
    return [run("alpha", 0.5, seed) for seed in range(4)] + [failed("beta", 0.9, 0, "no memory")]


def filled(folder: Path) -> Store:
    """A store whose records were written long ago."""
    made = Store(folder)
    made.prepare()
    for record in records():
        made.write(record)
        age(made.where(record))
    return made


def age(path: Path) -> None:
    """Set a file's time back; its stamp tells another change then (the inode's own time cannot be set)."""
    os.utime(path, (1_700_000_000, 1_700_000_000))


def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The records that are opened from now on."""
    found: list[Path] = []
    read = store._text
    monkeypatch.setattr(store, "_text", lambda path: found.append(path) or read(path))
    return found


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if what was just written had been so for a while."""
    monkeypatch.setattr(index, "SETTLED_SECONDS", -3600.0)


def test_a_writer_s_index_spares_the_scan_every_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Store(tmp_path)
    made.prepare()
    for record in records():
        made.write(record)
    seen = opened(monkeypatch)
    statuses, damaged = made.statuses()
    assert statuses == {record.run_id: record.status for record in records()}
    assert damaged == []
    assert seen == []


def test_a_changed_record_is_read_whatever_the_index_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    made, first = filled(tmp_path), records()[0]
    made.statuses()
    made.where(first).write_text(to_json(replace(first, status="failed", reason="by hand")))
    seen = opened(monkeypatch)
    assert made.statuses()[0][first.run_id] == "failed"
    assert seen == [made.where(first)]


def test_a_damaged_and_a_removed_record_are_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    made, (first, second, *others) = filled(tmp_path), records()
    made.statuses()
    made.where(first).write_text("{")
    made.where(second).unlink()
    for _ in range(2):
        statuses, damaged = made.statuses()
        assert set(statuses) == {record.run_id for record in others}
        assert [entry.path for entry in damaged] == [made.where(first)]


@pytest.mark.parametrize("text", ["", "nonsense\n", index.HEAD + "\x00\xff\t1\t\n" * 9, index.HEAD[:-3]])
def test_a_damaged_index_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    settle(monkeypatch)
    made = filled(tmp_path)
    (tmp_path / "index" / "status.tsv").write_text(text)
    wanted = {record.run_id: record.status for record in records()}
    assert made.statuses() == (wanted, [])
    seen = opened(monkeypatch)
    assert made.statuses() == (wanted, [])
    assert not seen


def test_a_record_that_may_still_change_within_a_tick_is_not_indexed(tmp_path: Path) -> None:
    made = filled(tmp_path)
    (tmp_path / "index" / "status.tsv").unlink()
    made.statuses()
    assert index.read_index(tmp_path) == {}


@pytest.mark.parametrize("form", ["store", "committed"])
def test_a_kept_frame_is_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    settle(monkeypatch)
    filled(tmp_path / "store")
    (tmp_path / "committed").mkdir()
    export_results(tmp_path / "store", tmp_path / "committed")
    folder, wanted = tmp_path / form, results_frame(records())
    assert load_results(folder).equals(wanted)
    monkeypatch.setattr(frames, "_row", lambda _: pytest.fail("a row was made again"))
    assert load_results(folder).equals(wanted)


def test_rows_of_changed_records_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    made, (first, *others) = filled(tmp_path), records()
    load_frame(made)
    other, new = replace(first, metrics={"plain": 0.25, "of_mine": 1.0}), run("gamma", 0.5, 7)
    made.write(other)
    made.write(new)
    assert load_frame(made)[0].equals(results_frame([other, *others, new]))
    made.write(first)
    assert load_frame(made)[0].equals(results_frame([first, *others, new]))


@pytest.mark.parametrize("keep", [0, 31, 64, 70, 500])
def test_a_damaged_frame_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    settle(monkeypatch)
    made = filled(tmp_path)
    wanted, path = load_frame(made)[0], tmp_path / "index" / "frame.bin"
    data = path.read_bytes()
    path.write_bytes(data[:keep] + b"\xff" * (len(data) - keep))
    assert load_frame(made)[0].equals(wanted)


def test_damaged_records_are_named_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    made, (first, *others) = filled(tmp_path), records()
    made.where(first).write_text("{")
    for _ in range(2):
        frame, damaged = load_frame(made)
        assert [entry.path for entry in damaged] == [made.where(first)]
        assert frame.equals(results_frame(others))


def test_a_stray_file_of_the_committed_form_is_named_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    filled(tmp_path / "store")
    (tmp_path / "committed").mkdir()
    export_results(tmp_path / "store", tmp_path / "committed")
    (tmp_path / "committed" / "digits@2pct" / "stray.txt").write_text("")
    for _ in range(2):
        _, damaged = load_frame(open_results(tmp_path / "committed"))
        assert [entry.path.name for entry in damaged] == ["stray.txt"]
