"""What a user's file cannot do: every cheat of `cheating`, with and without the sandbox, beside an honest method."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cheating import CHEATS, FAILED, HARMLESS, OPEN, SHOWN, STOPPED, Cheat
from helpers import TASK, tiny_suite

from prunebench.api import execute_plan, make_plan
from prunebench.errors import UsageError
from prunebench.results.record import OVERSPENT_NOTE, RunRecord
from prunebench.results.store import Store
from prunebench.runner.described import find_method
from prunebench.runner.fitted import CPU_NOTE, DECLARED_NOTE
from prunebench.runner.jail import explain_sandbox
from prunebench.tasks import resolve_task

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
WAYS = {"without": False, "within": True}


def run_confined(
    out: Path, methods: list[str], *, sandbox: bool, timeout: float, seeds: tuple[int, ...] = (0,)
) -> Store:
    """Run methods in this process, their latencies taken plain."""
    plan = make_plan(tiny_suite(*methods, seeds=seeds), out=out, sandbox=sandbox, timeout=timeout)
    context = dataclasses.replace(plan.context, latency_skipped="a test")
    execute_plan(dataclasses.replace(plan, context=context), workers=0)
    return Store(out)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came of all cheats one way: records by method and seed, and the folder of it all."""

    folder: Path
    records: dict[tuple[str, int], RunRecord]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trial]]:
    """The trials, without and within the sandbox, each run when it is first asked for."""
    found: dict[str, Trial] = {}
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_SECRET", "SECRET-of-the-harness")

        def trial(way: str) -> Trial:
            if way not in found:
                folder = tmp_path_factory.mktemp(way)
                patch.setenv("PRUNEBENCH_DATA", str(folder / "data"))
                found[way] = _try_all(folder, server.getsockname()[1], sandbox=WAYS[way])
            return found[way]

        yield trial


def _try_all(folder: Path, port: int, *, sandbox: bool) -> Trial:
    """Run every cheat beside an honest method's file and its built-in twin; those that leave notes twice."""
    if sandbox and explain_sandbox() is not None:
        pytest.skip(f"no sandbox here: {explain_sandbox()}")
    tests = len(resolve_task(TASK).splits(None, 0).test)
    facts: dict[str, object] = {"port": port, "out": str(folder / "out"), "tests": tests}
    for name in ("data", "elsewhere", "methods"):
        (folder / name).mkdir()
        facts[name] = str(folder / name)
    (folder / "elsewhere").chmod(0o777)
    (folder / "data" / "labels.txt").write_text("withheld")
    files = {cheat.name: str(cheat.write(folder / "methods", facts)) for cheat in (*CHEATS, HONEST)}
    run_confined(folder / "out", [*files.values(), "magnitude"], sandbox=sandbox, timeout=100)
    notes = [files[name] for name in files if name.startswith("note-")]
    store = run_confined(folder / "out", notes, sandbox=sandbox, timeout=100, seeds=(0, 1))
    time.sleep(4)  # for what was left behind
    records, damaged = store.records()
    assert not damaged
    return Trial(folder, {(record.run_spec.method, record.run_spec.seed): record for record in records})


HONEST = Cheat("honest", "nothing", "", "", "")


def fate(cheat: Cheat, way: str) -> str:
    return cheat.within if WAYS[way] else cheat.without


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_a_cheat_meets_its_fate(tried: Callable[[str], Trial], cheat: Cheat, way: str) -> None:
    records = tried(way).records
    record, honest = records[cheat.name, int(cheat.name.startswith("note-"))], records["honest", 0]
    told = f"{record.reason} {record.notes} {record.traceback}"
    assert record.environment["sandbox"] == ("yes" if WAYS[way] else "no")
    if fate(cheat, way) == FAILED:
        assert record.status == "failed", told
        assert cheat.reason in str(record.reason), told
        return
    assert record.status == "ok", told
    if fate(cheat, way) in (STOPPED, OPEN):
        assert record.notes["got"] == (fate(cheat, way) == OPEN), told
    if fate(cheat, way) == HARMLESS:
        assert record.outputs_sha256 == honest.outputs_sha256, told
        assert record.sparsity == honest.sparsity
        assert 0 < record.cost.latency_dense_ms.p50 < 1000  # type: ignore[union-attr]
    if fate(cheat, way) == SHOWN:
        _check_shown(cheat, record, honest)


def _check_shown(cheat: Cheat, record: RunRecord, honest: RunRecord) -> None:
    assert record.cost is not None
    assert honest.cost is not None
    more = {"cost-erased": 12, "negative-networks": 30, "own-loop": 30}.get(cheat.name, 0)
    assert record.cost.training_steps == honest.cost.training_steps + more
    if cheat.name == "cost-erased":
        assert record.notes[DECLARED_NOTE] == 0
    if cheat.name == "counter-replaced":
        assert (record.notes[CPU_NOTE] or 0) > 3
        assert (record.notes[OVERSPENT_NOTE] or 0) > 3


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_neighbours_change_no_bit(tried: Callable[[str], Trial], tmp_path: Path, way: str) -> None:
    """A built-in method gives the same bits after all cheats as alone, and a user's file those of its built-in twin."""
    records = tried(way).records
    alone = run_confined(tmp_path / "out", ["magnitude"], sandbox=False, timeout=60).records()[0]
    for record in alone:
        assert records[record.run_spec.method, 0].outputs_sha256 == record.outputs_sha256


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_left_behind(tried: Callable[[str], Trial], way: str) -> None:
    """No daemon and no thread lives on, and a stage is found under no name that its method chose."""
    trial = tried(way)
    assert {trial.records[name, 0].status for name in ("daemon", "thread", "another-methods-stage")} == {"ok"}
    assert {path.name for path in (trial.folder / "elsewhere").iterdir()} <= {"note"}
    stages = [path.stem for path in (trial.folder / "out" / "shared").glob("*.safetensors")]
    assert len(stages) == 1
    assert "0123456789abcdef" not in stages


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_hang_is_ended_whatever_it_ignores(tmp_path: Path, way: str) -> None:
    if WAYS[way] and explain_sandbox() is not None:
        pytest.skip("no sandbox here")
    body = "for s in (signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\ntime.sleep(10**6)"
    path = Cheat("hang", "", body, "", "").write(tmp_path, {})
    start = time.monotonic()
    records, _ = run_confined(
        tmp_path / "out", [str(path), "magnitude"], sandbox=WAYS[way], timeout=6
    ).records()
    by_method = {record.run_spec.method: record for record in records}
    assert by_method["hang"].reason == "the method took longer than 6 s (--timeout) and was ended"
    assert by_method["magnitude"].status == "ok", "the rest of the sweep goes on"
    assert time.monotonic() - start < 120


@pytest.mark.slow
def test_a_sandbox_limits_processes(tmp_path: Path) -> None:
    if explain_sandbox() is not None:
        pytest.skip("no sandbox here")
    body = (
        "born = 0\ntry:\n    for _ in range(400):\n        if os.fork() == 0: time.sleep(60); os._exit(0)\n"
        "        born += 1\nexcept OSError: pass\ne.log(born=born)"
    )
    path = Cheat("many", "", body, "", "").write(tmp_path, {})
    records, _ = run_confined(tmp_path / "out", [str(path)], sandbox=True, timeout=60).records()
    (record,) = (record for record in records if record.run_spec.method == "many")
    assert record.status == "ok", record.reason
    assert 50 < (record.notes["born"] or 0) < 200


@pytest.mark.parametrize(
    "name", ["magnitud\u0435", "n" * 100_000, "<img src=x>|`x`\n## H", "a/../b", "\u202egnp.exe"]
)
def test_names_that_imitate_or_inject_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        f"from prunebench import criterion\n@criterion({name!r}, cite='x')\ndef mine(w, context): return w.abs()\n"
    )
    with pytest.raises(UsageError, match="a name has at most 64 letters"):
        find_method(str(path))


def test_an_import_that_exits_or_hangs_on_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    for text, words in (
        ("import sys; sys.exit(0)", "cannot be imported"),
        ("import os; os._exit(0)", "exit status 0"),
    ):
        path.write_text(text)
        with pytest.raises(Exception, match=words):
            find_method(str(path))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted by Linux")
def test_descriptors_that_a_file_sends_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    honest = "from prunebench import criterion\n@criterion('mine', cite='x')\ndef mine(w, context): return w.abs()\n"
    send = (
        "import os, socket, stat\n"
        "for fd in (fd for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{fd}')):\n"
        "    if stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
        "        with socket.socket(fileno=os.dup(fd)) as end:\n"
        '            for _ in range(20): socket.send_fds(end, [b\'{"kind": "progress"}\\n\'], [0] * 8)\n'
    )
    path.write_text(honest)
    find_method(str(path))
    before = len([*Path("/proc/self/fd").iterdir()])
    path.write_text(send + honest)
    assert find_method(str(path)).name == "mine"
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@pytest.mark.slow
def test_an_installed_method_is_imported_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "pbthirteen.py").write_text(
        "from prunebench import criterion\n@criterion('thirteen', cite='x')\ndef score(w, context): return w.abs()\n"
    )
    facts = tmp_path / "pbthirteen-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: pbthirteen\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[prunebench.methods]\nthirteen = pbthirteen:score\n")
    code = (
        "import sys; from prunebench.runner.described import find_method, is_users; m = find_method('thirteen'); "
        "print(is_users('thirteen'), is_users('magnitude'), m.version[:7], 'pbthirteen' in sys.modules)"
    )
    given = [os.environ.get("PYTHONPATH") or str(ROOT), str(ROOT), str(ROOT / "kernels"), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(given)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "False", "plugin-", "False"], done.stderr


def test_the_docs_say_what_the_tests_show() -> None:
    text = (ROOT / "docs" / "withholding.md").read_text()
    rows = [f"| {cheat.tries} | {cheat.without} | {cheat.within} |" for cheat in CHEATS]
    assert [row for row in rows if row not in text] == []
    assert text.count("\n| ") - 2 >= len(rows)
