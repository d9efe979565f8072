"""The command line end to end: what it prints, writes and returns."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import polars
import pytest
from helpers import CRITERION_FILE, TASK, tiny_suite
from typer.testing import CliRunner, Result

import prunebench
import prunebench.errors
from prunebench.cli.main import app, main
from prunebench.results.store import Store


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=True)


def call_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    """Exit status and all output of the real entry point."""
    monkeypatch.setattr(sys, "argv", ["prunebench", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out + captured.err


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The smoke suite run once through the command line: its folder and what it printed."""
    out = tmp_path_factory.mktemp("smoke") / "out"
    done = subprocess.run(
        [sys.executable, "-m", "prunebench.cli.main", "run", "smoke", "--out", str(out)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def seconds_of_children() -> float:
    """Processor time of finished child processes: what else the machine does leaves it alone."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_answers_in_half_a_second() -> None:
    words = [sys.executable, "-m", "prunebench.cli", "--help"]
    times = []
    for _ in range(5):
        start = seconds_of_children()
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        times.append(seconds_of_children() - start)
    assert "leaderboard" in done.stdout
    assert min(times) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, prunebench, prunebench.cli.main\n"
        "print([name for name in ('torch', 'polars', 'pydantic', 'plotly', 'sklearn', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pruned_models_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call(
        "run", "smoke", "--method", "magnitude", "--workers", "0", "--no-keep-models", "--out", str(out)
    )
    assert done.exit_code == 0, done.output
    kept = [record.spec["method"] for record in Store(out).records()[0]
            if (out / "runs" / record.run_id / "model.safetensors").exists()]  # fmt: skip
    assert kept == ["dense"]


@pytest.mark.slow
def test_run_prints_groups_table_and_places(smoke: tuple[Path, str]) -> None:
    out, text = smoke
    for expected in (
        "conflicting",
        "dense",
        "magnitude",
        "dcwp",
        "3 runs done, 0 reused, 0 failed",
        "index.html",
    ):
        assert expected in text
    assert (out / "leaderboard" / "README.md").is_file()
    assert (out / "leaderboard" / "site" / "index.html").is_file()
    assert len(list((out / "runs").glob("*/record.json"))) == 3
    assert len(list((out / "runs").glob("*/outputs.safetensors"))) == 3
    assert len(list((out / "runs").glob("*/model.safetensors"))) == 3, "pruned models are kept too"


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    result = call("run", "smoke", "--dry-run", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0
    assert result.stdout.count("to run") == 4, "three cells and the summary"
    assert not (tmp_path / "out").exists()


def test_options_replace_the_suites_lists(tmp_path: Path) -> None:
    words = [
        "--method",
        "snip",
        "--method",
        "random",
        "--sparsity",
        "0.5",
        "--sparsity",
        "0.7",
        "--seed",
        "3",
    ]
    result = call(
        "run", "smoke", "--dry-run", "--out", str(tmp_path), *words, "--task", "colored-digits@5pct"
    )
    assert "suite smoke: 5 runs, 0 done, 5 to run" in result.stdout
    assert "colored-digits@5pct" in result.stdout


@pytest.mark.slow
def test_ls_show_check_and_leaderboard_on_finished_runs(
    smoke: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, _ = smoke
    runs = sorted(path.parent.name for path in (out / "runs").glob("*/record.json"))
    listing = call("ls", "runs", "--results", str(out))
    assert all(run_id in listing.stdout for run_id in runs)
    shown = call("show", runs[0][:8], "--results", str(out))
    for expected in (
        "Unbiased accuracy, %",
        "worst groups",
        "weights",
        "phase",
        f"prunebench show {runs[0]} --json",
    ):
        assert expected in shown.stdout
    record = json.loads(call("show", runs[0][:8], "--results", str(out), "--json").stdout)
    assert record["run_id"] == runs[0]
    assert record["spec"]["data_fingerprint"]
    assert call("check", str(out)).exit_code == 0
    board = call("leaderboard", "--results", str(out), "--out", str(tmp_path / "board"))
    assert board.exit_code == 0
    assert (tmp_path / "board" / "README.md").read_bytes() == (out / "leaderboard" / "README.md").read_bytes()
    status, text = call_main(monkeypatch, capsys, "show", "zzzz", "--results", str(out))
    assert status == 2
    assert "no single run 'zzzz'" in text


def test_check_catches_a_record_that_does_not_add_up(smoke: tuple[Path, str], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(smoke[0], copy)
    path = sorted((copy / "runs").glob("*/record.json"))[0]
    text = path.read_text()
    start = text.index('"conflicting": ', text.index('"metrics"'))
    end = text.index(",", start)
    path.write_text(text[:start] + '"conflicting": 0.987' + text[end:])
    result = call("check", str(copy))
    assert result.exit_code == 1
    assert "metric conflicting is 0.987" in result.stdout.replace("\n", " ")


@pytest.mark.parametrize("what", ["tasks", "methods", "suites"])
def test_ls(what: str) -> None:
    result = call("ls", what)
    assert result.exit_code == 0
    expected = {"tasks": "colored-digits@{0.5,1,2,5}pct", "methods": "dcwp-native", "suites": "cmnist-short"}
    assert expected[what] in result.stdout


def test_doctor() -> None:
    result = call("doctor")
    assert result.exit_code == 0
    assert "torch" in result.stdout
    ready, *_ = result.stdout.splitlines()
    assert ready.startswith("ok   run ")
    assert "quick" in ready
    lacking = next(line for line in result.stdout.splitlines() if "mnist" in line)
    assert lacking.startswith("--   run ")
    assert "torchvision" in lacking, "how to get the data"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "quik"], "did you mean quick?"),
        (["run", "smoke", "--task", "colored-digts@2pct"], "did you mean colored-digits@2pct"),
        (["run", "smoke", "--task", "colored-digits@3pct"], "colored-digits@"),
        (["run", "smoke", "--method", "dcpw"], "did you mean dcwp"),
        (["run", "smoke", "--method", "nowhere.py"], "no method file nowhere.py"),
        (["run", "smoke", "--sparsity", "1"], "must be in [0, 1)"),
        (["run", "smoke", "--sparsity", "-0.5"], "must be in [0, 1)"),
        (["run", "smoke", "--sparsity", "0.99999"], "would empty a layer"),
        (["run", "smoke", "--method", "magnitude-uniform", "--sparsity", "0.99998"], "would empty"),
        (["run", "smoke", "--seed", "-1"], "seeds must be 0 or more"),
        (["run", "smoke", "--device", "tpu"], "use auto, cpu or cuda"),
        (["run", "smoke", "--method", "magnitude", "--method", "magnitude"], "same value twice"),
        (["ls", "cats"], "known: methods, runs, suites, tasks"),
        (["check", "pyproject.toml"], "neither a method file"),
        (["run"], "Missing argument"),
        (["run", "smoke", "--frobnicate"], "No such option"),
    ],
)
def test_usage_errors_exit_2_and_name_the_fix(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    hint: str,
) -> None:
    out = ["--out", str(tmp_path / "out")] if words[0] == "run" and len(words) > 1 else []
    status, text = call_main(monkeypatch, capsys, *words, *out)
    assert status == 2, text
    assert hint in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists(), "said before anything starts"


def test_missing_data_names_the_command_that_gets_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("PRUNEBENCH_DATA", raising=False)
    words = ["run", "smoke", "--task", "colored-mnist@1pct", "--out", str(tmp_path / "out")]
    status, text = call_main(monkeypatch, capsys, *words)
    assert status == 1
    assert "--data-root" in text
    assert "torchvision" in text
    status, text = call_main(monkeypatch, capsys, *words, "--data-root", str(tmp_path))
    assert status == 1
    assert "train-images-idx3-ubyte" in text


@pytest.mark.slow
def test_python_interface(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(CRITERION_FILE)
    outcome = prunebench.run(tiny_suite("magnitude", str(mine)), out=tmp_path / "out", workers=0)
    assert (outcome.planned, outcome.ok, outcome.failed) == (3, 3, 0)
    frame = prunebench.load_results(tmp_path / "out")
    assert isinstance(frame, polars.DataFrame)
    assert sorted(frame["method"]) == ["channel-relative", "dense", "magnitude"]
    assert set(frame["task"]) == {TASK}
    assert frame.filter(polars.col("method") == "magnitude")["achieved_sparsity"].item() == pytest.approx(
        0.9, abs=1e-5
    )
    with pytest.raises(prunebench.errors.StoreError, match="no results here"):
        prunebench.load_results(tmp_path)
