"""Kill it, run it twice at once, damage it: the same command completes and the numbers are the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import CRITERION_FILE

from prunebench.results.store import Store

SUITE = """
tasks = ["colored-digits@2pct"]
methods = ["magnitude", "dcwp"]
sparsities = [0.5, 0.9]
seeds = [0, 1]

[recipe]
steps = 60
finetune_steps = 30
batch_size = 64

[params.dcwp]
mining_steps = 60
mask_steps = 30
"""
CELLS = 2 + 2 * 2 * 2


def command(folder: Path, out: str, *more: str) -> list[str]:
    suite = folder / "tiny.toml"
    suite.write_text(SUITE)
    return [sys.executable, "-m", "prunebench.cli.main", "run", str(suite), "--out", str(folder / out), *more]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(words: list[str], *, expect: int = 0) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def counts(text: str) -> tuple[int, int, int]:
    """Cells run, reused and failed, as the last lines of a run say."""
    found = re.search(r"(\d+) runs done, (\d+) reused, (\d+) failed", text)
    assert found, text
    ran, reused, failed = map(int, found.groups())
    return ran, reused, failed


def numbers(out: Path) -> dict[str, tuple[object, ...]]:
    """All that must not depend on how a run went: everything but times, machine and code."""
    records, damaged = Store(out).records()
    assert not damaged
    return {
        record.run_id: (record.status, record.metrics, record.validation, record.groups, record.sparsity,
                        record.mining, {name: value for name, value in record.notes.items() if "cpu" not in name},
                        record.outputs_sha256)
        for record in records
    }  # fmt: skip


def wait_for_records(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while len(list((out / "runs").glob("*/record.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no record appeared"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    text = finish(command(folder, "out"))
    assert f"{CELLS} runs done, 0 reused, 0 failed" in text
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 4])
def test_kill_9_mid_run_then_the_same_command(tmp_path: Path, uninterrupted: Path, after: int) -> None:
    words, out = command(tmp_path, "out"), tmp_path / "out"
    process = start(words)
    if after:
        wait_for_records(process, out, after)
    else:
        time.sleep(4)
    os.killpg(process.pid, signal.SIGKILL) if after % 2 else process.kill()
    process.communicate()
    time.sleep(1.5)
    before = len(list((out / "runs").glob("*/record.json"))) if out.exists() else 0
    assert before < CELLS
    if out.exists():
        assert {record.status for record in Store(out).records()[0]} <= {"ok"}, (
            "an interrupted cell counts as failed"
        )
    ran, reused, failed = counts(finish(words))
    # A worker that outlives its parent may still finish its cell after `before` was counted.
    assert (ran + reused, failed) == (CELLS, 0)
    assert before <= reused < CELLS
    assert len(numbers(out)) == CELLS
    assert numbers(out) == numbers(uninterrupted)


@pytest.mark.slow
def test_workers_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    process = start(command(tmp_path, "out"))
    wait_for_records(process, tmp_path / "out", 1)
    group = os.getpgid(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30  # a cell in progress may take this long on a loaded machine
    while is_alive(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(group), "worker processes outlived their parent"


def is_alive(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_worker_fails_its_cell_and_the_others_go_on(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.py"
    bomb.write_text(
        "import os, signal\nfrom prunebench import criterion\n\n\n"
        "@criterion('bomb', cite='nobody')\ndef bomb(weight, context):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = command(tmp_path, "out", "--method", str(bomb), "--method", "magnitude", "--seed", "0")
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "signal 9" in done.stdout
    states = {
        (r.run_spec.method, r.run_spec.sparsity): r.status for r in Store(tmp_path / "out").records()[0]
    }
    assert states == {
        ("dense", 0.0): "ok", ("magnitude", 0.5): "ok", ("magnitude", 0.9): "ok",
        ("bomb", 0.5): "failed", ("bomb", 0.9): "failed",
    }  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_stops_within_five_seconds_and_resumes(tmp_path: Path, uninterrupted: Path) -> None:
    words, out = command(tmp_path, "out"), tmp_path / "out"
    process = start(words)
    wait_for_records(process, out, 2)
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=20)
    assert time.monotonic() - begin < 5
    assert process.returncode == 130
    assert "same command again" in text
    assert "Traceback" not in text
    finish(words)
    assert numbers(out) == numbers(uninterrupted)


@pytest.mark.slow
def test_two_runs_on_one_folder_do_no_cell_twice(tmp_path: Path, uninterrupted: Path) -> None:
    words, out = command(tmp_path, "out", "--workers", "1"), tmp_path / "out"
    processes = [start(words), start(words)]
    texts = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert numbers(out) == numbers(uninterrupted)
    times = [path.stat().st_mtime_ns for path in (out / "runs").glob("*/record.json")]
    finish(words)
    assert times == [path.stat().st_mtime_ns for path in (out / "runs").glob("*/record.json")]
    leftovers = list(out.rglob("*.tmp"))
    assert leftovers == []


@pytest.mark.slow
def test_damaged_records_are_named_and_run_again(tmp_path: Path, uninterrupted: Path) -> None:
    import shutil

    out = tmp_path / "out"
    shutil.copytree(uninterrupted, out)
    paths = sorted((out / "runs").glob("*/record.json"))
    paths[0].write_text(paths[0].read_text()[:200])
    paths[1].write_bytes(b"\xff\x00nonsense")
    done = subprocess.run(command(tmp_path, "out"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for path in paths[:2]:
        assert path.parent.name in done.stderr.replace("\n", "")
    assert f"2 runs done, {CELLS - 2} reused" in done.stdout
    assert numbers(out) == numbers(uninterrupted)


@pytest.mark.slow
def test_ten_lines_of_a_users_own_get_their_row(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(CRITERION_FILE)
    assert len(CRITERION_FILE.strip().splitlines()) <= 10
    text = finish(command(tmp_path, "out", "--method", str(mine), "--method", "magnitude"))
    assert "channel-relative" in text
    (page,) = (tmp_path / "out" / "leaderboard" / "tasks").glob("*.md")
    assert "channel-relative" in page.read_text()


@pytest.mark.slow
def test_an_unwritable_folder_stops_with_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").write_text("a file where a folder should be")
    done = subprocess.run(command(tmp_path, "out"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_full_disk_keeps_records_and_says_so(tmp_path: Path, uninterrupted: Path) -> None:
    """A file-size limit of the process stands for a full disk: writes fail in the middle."""
    import shutil

    out = tmp_path / "out"
    shutil.copytree(uninterrupted, out)
    before = numbers(out)
    words = command(tmp_path, "out", "--seed", "7", "--workers", "1")
    shell = ["bash", "-c", 'ulimit -f 40; trap "" XFSZ; exec "$@"', "bash", *words]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "cannot write" in done.stdout + done.stderr
    after = numbers(out)
    assert {run_id: after[run_id] for run_id in before} == before
    assert not list(out.rglob("*.tmp"))
    finish(words)
