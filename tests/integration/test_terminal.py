"""The terminal at any width, piped or not: listings, typing errors, completion, estimates, the board, reproduction."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from browsing import chromium
from helpers import run_inline, tiny_suite
from typer.testing import CliRunner, Result

from prunebench.cli import console as terminal
from prunebench.cli.console import Field, duration, fitting_table
from prunebench.cli.estimate import Rates
from prunebench.cli.listing import folded, method_listing, suite_listing, task_listing
from prunebench.cli.main import app
from prunebench.cli.progress import LiveProgress
from prunebench.cli.serving import content_policy, make_server
from prunebench.errors import UsageError
from prunebench.models import MODELS
from prunebench.models.names import BASES
from prunebench.results.record import RunRecord
from prunebench.results.spec import RunSpec
from prunebench.results.store import Store
from prunebench.runner.local import Event
from prunebench.runner.plan import PlannedRun
from prunebench.runner.reproduce import Row, find_rows, row_differences, same_logits
from prunebench.tasks.registry import describe_families


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def spoken(*words: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, piped, with these variables."""
    code = "import sys; from prunebench.cli.main import main\ntry:\n main()\nfinally:\n " + (
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=folder,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("terminal") / "out"
    run_inline(tiny_suite("magnitude"), out)
    return Store(out)


# Typing errors


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "quik"], "did you mean quick?"),
        (["run", "quick", "--task", "coloured-digits@2pct"], "did you mean colored-digits@2pct"),
        (["run", "quick", "--method", "magnitud"], "did you mean magnitude"),
        (["profile", "--model", "resnet81"], "did you mean resnet8"),
        (["ls", "task"], "did you mean tasks?"),
        (["runn", "quick"], "Did you mean 'run'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_typing_error_is_answered_without_torch(words: list[str], hint: str) -> None:
    done = spoken(*words)
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stderr.rstrip().endswith("False"), "torch was imported to say so"


def test_a_misspelt_method_is_answered_without_torch_by_compare(store: Store) -> None:
    done = spoken("compare", "dense", "magnitud", "--results", str(store.root))
    assert done.returncode == 2
    assert "did you mean magnitude?" in done.stderr
    assert done.stderr.rstrip().endswith("False")


def test_a_misspelt_model_of_a_suite_is_answered_without_torch(tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        'tasks = ["colored-digits@2pct"]\nmethods = ["dense"]\nsparsities = [0.5]\nseeds = [0]\nmodel = "resnt8"\n'
    )
    done = spoken("run", str(suite))
    assert "did you mean resnet8" in done.stderr
    assert done.stderr.rstrip().endswith("False")


def test_the_names_of_models_are_those_that_are_built() -> None:
    assert set(BASES) == set(MODELS)


# Help, version and completion


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["run", "-h"]])
def test_help_has_a_short_name(words: list[str]) -> None:
    done = call(*words)
    assert done.exit_code == 0
    assert "Usage:" in done.output


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("prunebench run qu", {"quick"}),
        (
            "prunebench run quick --task colored-mnist@",
            {name for name in describe_families() if "colored-mnist@" in name},
        ),
        ("prunebench run quick --method dcwp-n", {"dcwp-native"}),
        ("prunebench compare lff-d", {"lff-dense"}),
        ("prunebench profile --model resnet2", {"resnet20"}),
        ("prunebench ls su", {"suites"}),
        ("prunebench repro", {"reproduce"}),
    ],
)
def test_a_shell_completes_names_without_torch(words: str, offered: set[str]) -> None:
    """By the protocol that the completion script of bash speaks."""
    count = len(words.split(" ")) - 1
    code = (
        "import sys\nsys.argv = ['prunebench']\nfrom prunebench.cli.main import app\ntry:\n"
        " app(prog_name='prunebench')\nfinally:\n print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "_PRUNEBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)},
    )  # fmt: skip
    assert set(done.stdout.split()) == offered, done.stderr
    assert done.stderr.rstrip().endswith("False")


def test_a_shell_gets_its_script() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from prunebench.cli.main import app; app(prog_name='prunebench')"],
        capture_output=True, text=True, env={**os.environ, "_PRUNEBENCH_COMPLETE": "source_bash"},
    )  # fmt: skip
    assert "complete -o default -F" in done.stdout


# Widths


FIELDS = (
    Field("name"),
    Field("what", whole=False),
    Field("number", drop=1, right=True),
    Field("more", drop=2),
)
ROWS = [("a-name-of-20-columns", "words " * 12, "3.14", "last")]


@pytest.mark.parametrize(("width", "out"), [(140, []), (62, []), (57, ["more"]), (50, ["more", "number"])])
def test_columns_go_in_their_order_where_the_width_is_short(width: int, out: list[str]) -> None:
    table, left_out = fitting_table(FIELDS, ROWS, width=width)
    assert left_out == out
    assert [column.header for column in table.columns] == ["name", "what", "number", "more"][: 4 - len(out)]


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("words", [["ls", "tasks"], ["ls", "methods"], ["ls", "suites"], ["ls"]])
def test_listings_keep_the_width_and_cut_nothing(width: int, words: list[str]) -> None:
    done = spoken(*words, COLUMNS=str(width))
    assert done.returncode == 0, done.stderr
    tables = [
        line for line in done.stdout.splitlines() if not line.startswith(("no room", "groups", "prunebench"))
    ]
    assert all(len(line) <= width for line in tables)
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout


@pytest.mark.parametrize("width", ["40", "80"])
def test_runs_at_any_width(store: Store, width: str) -> None:
    done = spoken("ls", "runs", "--results", str(store.root), COLUMNS=width)
    assert "magnitude" in done.stdout
    assert "0.9" in done.stdout
    for record in store.records()[0]:
        assert (record.run_id in done.stdout) == (width == "80")


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp437"}],
    ids=lambda environment: "=".join(next(iter(environment.items()))),
)
@pytest.mark.parametrize("verb", ["ls", "show", "doctor", "compare"])
def test_any_terminal_is_spoken_to(store: Store, verb: str, environment: dict[str, str]) -> None:
    run_id = store.records()[0][0].run_id
    words = {
        "ls": ["ls", "runs", "--results", str(store.root)],
        "show": ["show", run_id, "--results", str(store.root)],
        "doctor": ["doctor"],
        "compare": ["compare", "dense", "magnitude", "--results", str(store.root)],
    }[verb]
    done = spoken(*words, COLUMNS="80", **environment)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "Traceback" not in done.stderr


# Listings


def test_families_are_folded() -> None:
    assert folded(["a@0.5pct", "a@1pct", "b", "c@2pct"]) == {
        "a@{0.5,1}pct": ("a@0.5pct", "a@1pct"),
        "b": ("b",),
        "c@2pct": ("c@2pct",),
    }
    names = [name for values in task_listing().values for name in values["names"]]
    assert names == describe_families()
    assert len(task_listing().rows) < len(names)


def test_filters_are_words_and_numbers() -> None:
    methods = method_listing()
    assert [values["method"] for values in methods.matching(["dcwp-native"]).values] == ["dcwp-native"]
    both = methods.matching(["2023", "val-groups"]).values
    assert all("2023" in str(values) and "val-groups" in str(values) for values in both)
    exact = suite_listing().matching(["0.98"]).values
    assert exact
    assert all(0.98 in values["sparsities"] for values in exact)


def test_runs_are_filtered_and_sorted(store: Store) -> None:
    listed = json.loads(call("ls", "runs", "--results", str(store.root), "--json").stdout)
    assert [(run["method"], run["sparsity"]) for run in listed] == [("dense", 0.0), ("magnitude", 0.9)]
    assert set(listed[0]) >= {"run", "task", "seed", "status", "metrics"}
    one = json.loads(call("ls", "runs", "0.9", "magnitude", "--results", str(store.root), "--json").stdout)
    assert one == listed[1:]
    none = call("ls", "runs", "0.123", "--results", str(store.root))
    assert isinstance(none.exception, UsageError)
    assert "none of 2 runs fits '0.123'" in str(none.exception)


def test_ls_alone_lists_what_it_lists() -> None:
    done = call("ls")
    assert done.exit_code == 0
    assert [line.split()[2] for line in done.output.splitlines()] == ["tasks", "methods", "suites", "runs"]


def test_groups_are_shown_on_demand() -> None:
    done = call("ls", "tasks", "digit-attributes", "--groups")
    assert "smallest group" in done.output
    assert "share of positives" in done.output
    assert "smallest group" not in call("ls", "tasks", "digit-attributes").output


def test_results_are_found_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="`prunebench run quick` makes results/quick"):
        raise call("ls", "runs").exception or AssertionError
    for name in ("one", "two"):
        (tmp_path / "results" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "results" / name).symlink_to(store.root)
        if name == "one":
            assert "magnitude" in call("ls", "runs").output, "the only folder there is"
    with pytest.raises(UsageError, match="choose one of results/one, results/two"):
        raise call("ls", "runs").exception or AssertionError


# Comparison


def test_compare_says_the_verdict_first_and_p_whole(store: Store) -> None:
    done = spoken("compare", "dense", "magnitude", "--results", str(store.root), COLUMNS="80")
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith("A = dense")
    assert second.startswith("Verdict: ")
    better = max(store.records()[0], key=lambda record: record.metrics["conflicting"] or 0)
    assert second.split(" is ahead")[0].split()[1] == better.spec["method"]
    assert "in this one pair of runs" in second
    assert done.stdout.index("Verdict") < done.stdout.index("corrected p")
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout


# Runs


def planned(spec: RunSpec) -> PlannedRun:
    return PlannedRun(spec, spec.task, spec.method, "dense", ())


def test_progress_says_rate_time_left_and_metrics_also_when_piped(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("prunebench.cli.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("prunebench.cli.progress.console", terminal.make_console())
    live, run = LiveProgress(4), planned(spec)
    live.take(Event("started", run, 0))
    now[0] += 31
    step = {"phase": "fine-tuning", "step": 5, "steps": 100, "loss": 0.25}
    live.take(Event("progress", run, 0, step))
    live.take(Event("progress", run, 0, step))
    now[0] += 29
    done = {"status": "ok", "reason": None, "metrics": {"unbiased": 0.5, "conflicting": 0.25}}
    live.take(Event("done", run, 0, done))
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"[0/4] ... {spec.label}: fine-tuning 5/100 loss 0.250; no run done yet"
    assert second == (
        f"[1/4] ok {spec.label}: unbiased 50.0%, conflicting 25.0%; took 1 min 0 s, 1.0 runs/min, about 3 min 0 s left"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_is_estimated_from_measured_steps(make_record: Callable[..., RunRecord], spec: RunSpec) -> None:
    """500 steps in 50 and in 100 s; another method is taken to need their median."""
    snip = replace(spec, method="snip")
    records = [
        make_record(spec, phase_seconds={"data": 3.0, "fit": 50.0, "evaluate": 1.0, "cost": 1.0}),
        make_record(snip, phase_seconds={"data": 5.0, "fit": 100.0, "evaluate": 1.0, "cost": 1.0}),
    ]
    rates = Rates.of(iter(records))
    assert rates.seconds(planned(spec)) == pytest.approx(52)
    assert rates.seconds(planned(replace(spec, method="jtt"))) == pytest.approx(77)
    longer = replace(spec, recipe=replace(spec.recipe, steps=900))
    assert rates.seconds(planned(longer)) == pytest.approx(102)
    assert rates.load[spec.task] == 4
    assert rates.seconds(planned(replace(spec, task="another"))) is None


def test_a_dry_run_tells_time_and_disk(store: Store, tmp_path: Path) -> None:
    words = ["run", "smoke", "--dry-run", "--out", str(tmp_path / "new"), "--workers", "1"]
    done = call(*words)
    assert done.exit_code == 0, done.output
    disk = next(line for line in done.stdout.splitlines() if line.startswith("disk"))
    logits, weights = 3 * 2 * 10 * (800 + 3970), 3 * 4 * 167_114
    assert float(disk.split()[1]) == pytest.approx((logits + weights + 3 * 20_000) / 1e6, abs=0.2)
    assert "time     " in done.stdout
    unknown = call(*words, "--task", "backdoor@digits/large/grey/35pct")
    assert (
        "unknown for backdoor@digits/large/grey/35pct (3): no finished run of this processor"
        in unknown.stdout
    )


# The board in a browser


@contextmanager
def served(site: Path) -> Iterator[int]:
    with make_server(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def answer(port: int, path: str, host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    response = connection.getresponse()
    response.body = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "board" / "site"
    (folder / "parts").mkdir(parents=True)
    (folder / "index.html").write_text(
        "<!doctype html><title>it</title><script>document.title = 'ran'</script><script src='own.js'></script>"
        "<p onclick=\"document.title = 'handler'\">text</p>"
    )
    (folder / "own.js").write_text("document.title += ' both';")
    (folder.parent / "secret.txt").write_text("outside")
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    return folder


def test_the_site_is_served_with_a_strict_policy(site: Path) -> None:
    with served(site) as port:
        page = answer(port, "/")
        policy = page.headers["Content-Security-Policy"]
        assert page.status == 200
        assert "default-src 'none'" in policy
        assert "script-src 'self' 'sha256-" in policy
        assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
        assert "unsafe-eval" not in policy
        assert answer(port, "/own.js").status == 200
        assert answer(port, "/parts/").status == 404, "no listing"
        assert answer(port, "/../secret.txt").status == 404
        assert answer(port, "/link.txt").status == 403, "a link that leads out"
        assert answer(port, "/", host=f"elsewhere.example:{port}").status == 403
        assert answer(port, "/", host=f"localhost:{port}").status == 200


def test_only_the_page_s_own_scripts_are_allowed() -> None:
    one, other = (content_policy(f"<script>{text}</script>".encode()) for text in ("a()", "b()"))
    assert one != other
    assert "sha256" not in content_policy(b"<script src='x.js'></script>")


@pytest.mark.slow
def test_a_browser_runs_the_page_s_scripts_and_no_others(site: Path) -> None:
    with served(site) as port, chromium() as browser:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        assert page.title() == "ran both"
        page.click("p")
        assert page.title() == "ran both", "an inline handler is not run"


def test_a_taken_port_is_named(site: Path) -> None:
    with served(site) as port, pytest.raises(UsageError, match=f"--port {port}: "):
        make_server(site, port)


# Reproduction


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("colored-digits@2pct/dcwp/0.9", Row("colored-digits@2pct", "dcwp", 0.9)),
        ("colored-digits@2pct/dcwp/0.9/3", Row("colored-digits@2pct", "dcwp", 0.9, 3)),
        ("colored-digits@2pct/dense/0", Row("colored-digits@2pct", "dense", 0.0)),
        ("backdoor@digits/even/grey/jtt/0.5/0", Row("backdoor@digits/even/grey", "jtt", 0.5, 0)),
        ("a/dcwp-native/native", Row("a", "dcwp-native", None)),
        ("0123456789abcdef", None),
        ("a/b", None),
        ("a/b/1.5", None),
    ],
)
def test_rows_are_read(text: str, row: Row | None) -> None:
    assert Row.parse(text) == row


def test_a_row_that_is_not_there_is_answered_with_what_is(store: Store) -> None:
    records = store.records()[0]
    task = records[0].spec["task"]
    assert [run.spec["method"] for run in find_rows(f"{task}/magnitude/0.9/0", records)] == ["magnitude"]
    assert find_rows(records[0].run_id[:10], records) == [records[0]]
    for text, words in (
        (f"{task}/magnitud/0.9", "did you mean magnitude"),
        (f"{task}x/magnitude/0.9", f"did you mean {task}"),
        (f"{task}/magnitude/0.5", "its sparsities are 0.9"),
        ("zzz", "nor the beginning of one run's id"),
    ):
        with pytest.raises(UsageError, match=words):
            find_rows(text, records)


def test_a_row_is_reproduced_bit_for_bit(store: Store, tmp_path: Path) -> None:
    row = f"{store.records()[0][0].spec['task']}/magnitude/0.9"
    words = ["reproduce", row, "--results", str(store.root), "--out", str(tmp_path / "again")]
    told = call(*words)
    assert told.exit_code == 0, told.output
    assert f"prunebench run {tmp_path / 'again' / 'suite.toml'}" in told.output.replace("\n", "")
    assert not (tmp_path / "again" / "runs").exists(), "nothing is run unless asked"
    done = call(*words, "--run")
    assert done.exit_code == 0, done.output
    assert "reproduced: the same logits, bit for bit, in 1 of 1 runs" in done.output


def test_rows_of_other_processors_are_compared_by_their_means(make_record: Callable[..., RunRecord]) -> None:
    made = make_record(outputs_sha256="a" * 64, metrics={"unbiased": 0.500, "conflicting": 0.40})
    near = make_record(outputs_sha256="b" * 64, metrics={"unbiased": 0.515, "conflicting": 0.43})
    assert same_logits([(made, made), (made, near)]) == 1
    found = {entry.metric: entry.close for entry in row_differences([(made, near)])}
    assert found == {"unbiased": True, "conflicting": False}


def test_another_version_of_a_task_is_said(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = store.records()[0]
    monkeypatch.setattr("prunebench.tasks.colored_digits.ColoredDigits.version", 99)
    done = call(
        "reproduce", records[0].run_id, "--results", str(store.root), "--out", str(tmp_path / "again")
    )
    assert isinstance(done.exception, UsageError)
    assert "is version 99 here, the run was made with version" in str(done.exception)
    assert not (tmp_path / "again").exists()
