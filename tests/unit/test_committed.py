"""The committed form: nothing is lost, nothing depends on order, and what is wrong is told with file and line."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from board_records import full_records, sound_records
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from prunebench.errors import NewerSchemaError, StoreError, UsageError
from prunebench.results.committed import encode_method, encode_task, read_committed, safe_name
from prunebench.results.convert import export_results, form_problems, import_results
from prunebench.results.record import RunRecord, json_text, to_json
from prunebench.results.store import CommittedStore, Store, open_results

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("record_*.json"))
TASK = "digits@2pct"


def write(root: Path, records: list[RunRecord]) -> Store:
    store = Store(root)
    for record in records:
        store.write(record)
    return store


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """The committed form of a board with everything in it."""
    write(tmp_path / "store", full_records())
    export_results(tmp_path / "store", tmp_path / "committed")
    return tmp_path / "committed"


def texts(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*.json*")}


def runs_of(root: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in root.glob("runs/*/record.json")}


# Nothing is lost


def test_failed_missing_and_native_runs_come_back_byte_for_byte(committed: Path, tmp_path: Path) -> None:
    done = import_results(committed, tmp_path / "again")
    assert done.new == len(full_records())
    assert runs_of(tmp_path / "again") == runs_of(tmp_path / "store")
    assert import_results(committed, tmp_path / "again").same == len(full_records())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_records_of_every_schema_come_back_byte_for_byte(path: Path, tmp_path: Path) -> None:
    values = json.loads(path.read_text())
    folder = tmp_path / "store" / "runs" / values["run_id"]
    folder.mkdir(parents=True)
    shutil.copy(path, folder / "record.json")
    export_results(tmp_path / "store", tmp_path / "committed")
    import_results(tmp_path / "committed", tmp_path / "again")
    assert runs_of(tmp_path / "again") == {values["run_id"]: path.read_bytes()}
    assert open_results(tmp_path / "committed").records() == Store(tmp_path / "store").records()


@pytest.mark.slow
@given(
    st.dictionaries(
        st.text(max_size=8), st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=6
    ),
    st.dictionaries(st.sampled_from(["fit", "utc", "environment", "code"]), st.floats(0, 1e300)),
)
def test_any_metrics_and_seconds_come_back(
    metrics: dict[str, float | None], seconds: dict[str, float]
) -> None:
    record = replace(full_records()[0], metrics=metrics, phase_seconds=seconds)
    values, other = (json.loads(to_json(entry)) for entry in (record, full_records()[1]))
    lines = [json.loads(line) for line in encode_method([other, values], {}).splitlines()]
    found = {line["metric"]: line["values"][0] for line in lines if line.get("split") == "test"}
    assert {name: found[name] for name in metrics} == metrics


def test_words_of_the_form_are_words_in_a_record(tmp_path: Path) -> None:
    """`absent`, `all` and the names of the form's own lines mean nothing special within a record."""
    record = full_records()[0]
    timed = {"environment": "absent", "code": "all", "utc": "run", "cpu": "stamp"}
    assert record.cost is not None
    cost = replace(record.cost, timed_on=timed, latency_path="absent")
    odd = replace(record, cost=cost, splits_hash="absent", started_utc="all", method={"absent": "absent"})
    odd = replace(odd, metrics={"absent": None, "values": 0.5, "run_id": -0.0}, notes={"stamp": 1.0})
    write(tmp_path / "store", [odd])
    export_results(tmp_path / "store", tmp_path / "committed")
    import_results(tmp_path / "committed", tmp_path / "again")
    assert runs_of(tmp_path / "again") == runs_of(tmp_path / "store")


def test_a_field_that_a_record_leaves_out_stays_out(tmp_path: Path) -> None:
    values = json.loads(to_json(full_records()[0]))
    del values["mining"], values["metrics"], values["scored_on"]
    folder = tmp_path / "store" / "runs" / values["run_id"]
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json_text(values))
    export_results(tmp_path / "store", tmp_path / "committed")
    import_results(tmp_path / "committed", tmp_path / "again")
    assert runs_of(tmp_path / "again") == runs_of(tmp_path / "store")


# The text depends on the records alone


def test_the_order_of_records_does_not_matter() -> None:
    records = full_records()
    for record in records[3:9]:  # the same sparsity and seed with other settings
        for share in (1, 1.0, 2):
            spec = replace(record.run_spec, params=(("share", share),))
            records.append(replace(record, spec=spec.to_dict(), run_id=spec.run_id))
    values = [json.loads(to_json(record)) for record in records]
    for seed in range(5):
        shuffled = random.Random(seed).sample(values, len(values))
        assert encode_task(TASK, values) == encode_task(TASK, shuffled)


@pytest.mark.parametrize("more", [{"absent": ["mining"]}, {"variant": "0" * 8}, {"zeros": {}}, {"seed": 3}])
def test_what_the_form_cannot_hold_is_refused(more: dict[str, Any]) -> None:
    values = json.loads(to_json(full_records()[0])) | more
    with pytest.raises(StoreError, match=f"run {values['run_id']}: "):
        encode_method([values], {})


def test_exporting_again_writes_nothing(committed: Path, tmp_path: Path) -> None:
    before = texts(committed)
    for source in (tmp_path / "store", committed):
        done = export_results(source, committed)
        assert (done.new, done.replaced, done.files) == (0, 0, ())
    assert texts(committed) == before
    assert form_problems(committed) == []


def test_a_method_of_the_same_environment_adds_one_file(tmp_path: Path) -> None:
    records = full_records()
    rest = [record for record in records if record.spec["method"] != "alpha"]
    write(tmp_path / "rest", rest)
    export_results(tmp_path / "rest", tmp_path / "committed")
    before = texts(tmp_path / "committed")
    write(tmp_path / "all", records)
    done = export_results(tmp_path / "all", tmp_path / "committed", methods=["alpha"])
    assert [path.name for path in done.files] == ["alpha.jsonl"]
    after = texts(tmp_path / "committed")
    assert {name: after[name] for name in before} == before


def test_a_new_metric_adds_lines_and_rewrites_none(committed: Path, tmp_path: Path) -> None:
    before = texts(committed)
    for record in Store(tmp_path / "store").records()[0]:
        if record.status == "ok":
            more = {**record.metrics, "gini": record.run_spec.seed / 3}
            Store(tmp_path / "store").update(record, metrics=more)
    export_results(tmp_path / "store", committed, replace=True)
    for name, text in texts(committed).items():
        old, new = before[name].splitlines(), text.splitlines()
        added = [line for line in new if line not in old]
        assert [line for line in new if line in old] == old
        assert all('"metric":"gini"' in line for line in added)
        assert len(added) == name.endswith(".jsonl")


def test_files_that_an_export_was_killed_between_are_read(
    committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file was the last to be written, every run can be read, as it was before or as it is now."""
    from prunebench.results import store

    elsewhere = [replace(r, environment={**r.environment, "cpu": "Processor Two"}) for r in full_records()]
    write(tmp_path / "other", elsewhere)
    wanted, write_file = len(full_records()), store.write_atomically
    for last in range(9):
        copy, left = tmp_path / f"copy {last}", [last]
        shutil.copytree(committed, copy)

        def killed(path: Path, data: bytes, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write_file(path, data)

        monkeypatch.setattr(store, "write_atomically", killed)
        try:
            export_results(tmp_path / "other", copy, replace=True)
        except KeyboardInterrupt:
            entries, problems = read_committed(copy)
            assert (len(entries), problems) == (wanted, []), last
        else:
            assert last == 8
            assert form_problems(copy) == []


# Names


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("colored-digits@2pct", "colored-digits@2pct"),
        ("backdoor@digits/even/grey", "backdoor@digits~even~grey"),
        ("a~b", "a%7Eb"),
        ("../../etc", "%2E.~..~etc"),
        ("C:\\x", "C%3A%5Cx"),
        ("analysis", "%61nalysis"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("runs.", "runs%2E"),
    ],
)
def test_names_of_folders_are_safe(name: str, file: str) -> None:
    assert safe_name(name) == file


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_two_names_never_share_a_folder(first: str, second: str) -> None:
    names = safe_name(first), safe_name(second)
    assert (names[0] == names[1]) == (first == second)
    assert re.fullmatch(r"[A-Za-z0-9_+@=%~][A-Za-z0-9_.+@=%~-]*", names[0])
    assert len(names[0]) < 140


def test_a_hostile_task_stays_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "store", _renamed(full_records(), "../../../outside: 1/.."))
    export_results(tmp_path / "store", tmp_path / "deep" / "committed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "store"]
    (entry, *_), problems = read_committed(tmp_path / "deep" / "committed")
    assert not problems
    assert entry.values["spec"]["task"] == "../../../outside: 1/.."


def _renamed(records: list[RunRecord], task: str) -> list[RunRecord]:
    found = []
    for record in records:
        spec = replace(record.run_spec, task=task)
        found.append(replace(record, spec=spec.to_dict(), run_id=spec.run_id))
    return found


# What is wrong is told with file and line


def edited(path: Path, edit: Callable[[list[Any]], None]) -> None:
    """Let `edit` change a file's lines, as JSON values."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    edit(lines)
    path.write_text("".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in lines))


def first(lines: list[Any], kind: str) -> int:
    return next(number for number, line in enumerate(lines) if kind in line)


def _change(kind: str, change: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    def edit(lines: list[Any]) -> None:
        change(lines[first(lines, kind)])

    return edit


def _twice(kind: str) -> Callable[[list[Any]], None]:
    return lambda lines: lines.insert(first(lines, kind), lines[first(lines, kind)])


FAULTS: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "another seed": (_change("run", lambda line: line["run"].update(seed=7)), r"does not match its spec"),
    "another entry": (
        _change("code", lambda line: line["code"].update(dirty=True)),
        "does not match its hash",
    ),
    "a run twice": (_twice("run"), "stands there twice"),
    "a metric twice": (_twice("metric"), "stands there twice"),
    "a latency twice": (_twice("latency"), "stands there twice"),
    "two stamps": (_twice("stamp"), "two stamps"),
    "no stamp": (lambda lines: lines.pop(first(lines, "stamp")) and None, "schema_version"),
    "no latency": (lambda lines: lines.pop(first(lines, "latency")) and None, "latency"),
    "an unknown entry": (
        _change("run", lambda line: line["run"].update(groups="0" * 8)),
        "refers to nothing",
    ),
    "an unknown run": (_change("latency", lambda line: line.update(run_id="0" * 16)), "refers to nothing"),
    "a value too few": (_change("metric", lambda line: line["values"].pop()), "a value for each of"),
    "another split": (_change("metric", lambda line: line.update(split="train")), "split 'train'"),
    "a count too few": (
        _change("correct_by_group", lambda line: line["correct_by_group"].pop()),
        "3 counts of correct samples for 4 groups",
    ),
    "a text for a number": (
        _change("metric", lambda line: line["values"].__setitem__(0, "1")),
        "invalid record",
    ),
    "an unknown kind": (lambda lines: lines.append({"weights": 1}), "no known kind"),
    "no object": (lambda lines: lines.append([1]), "want a JSON object"),
    "a run without id": (_change("run", lambda line: line["run"].pop("run_id")), "run_id"),
    "a run that is none": (_change("run", lambda line: line.update(run=3)), "subscript"),
    "an unknown field": (_change("run", lambda line: line["run"].update(more=1)), "invalid record"),
    "no spec": (_change("run", lambda line: line["run"].update(spec={})), "'task'"),
    "another order": (lambda lines: lines.append(lines.pop(first(lines, "latency"))), "canonical"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_import_says_where_a_fault_is_and_writes_nothing(
    fault: str, committed: Path, tmp_path: Path
) -> None:
    edit, why = FAULTS[fault]
    path = committed / safe_name(TASK) / "beta.jsonl"
    edited(path, edit)
    with pytest.raises(StoreError, match=rf"{re.escape(str(path))}:\d+: .*{why}") as caught:
        import_results(committed, tmp_path / "again")
    assert str(path) in str(caught.value)
    assert re.search(rf"{re.escape(str(path))}:\d+", str(caught.value))
    assert not (tmp_path / "again" / "runs").exists()
    if fault != "another order":
        with pytest.raises(StoreError, match="mend these lines first"):
            export_results(tmp_path / "store", committed)


@pytest.mark.slow
def test_no_line_however_wrong_stops_the_reading_of_others(committed: Path) -> None:
    rng, junk = random.Random(0), [None, True, -1, "", "absent", [], {}, [[]], {"a": 1}, 1e308, "x" * 50]
    path = committed / safe_name(TASK) / "beta.jsonl"
    text, others = path.read_text(), len(full_records()) - 6
    for _ in range(100):
        lines = text.splitlines()
        number = rng.randrange(len(lines))
        line = json.loads(lines[number])
        inner = line["run"] if "run" in line and rng.random() < 0.8 else line
        inner[rng.choice(list(inner))] = rng.choice(junk)
        lines[number] = json.dumps(line)
        path.write_text("\n".join(lines))
        assert len(open_results(committed).records()[0]) >= others
        assert form_problems(committed), lines[number]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", r":\d+: not valid JSON"),
        ('{"task": "digits@2pct"}', "no context of a task"),
        ('{"format": 9, "task": "digits@2pct"}', "format 9 of results; this PruneBench reads up to 1"),
        ('{"format": 1, "task": "other"}', "whose folder is other"),
        (
            '{\n"00000000": {"layers": []},\n"format": 1,\n"task": "digits@2pct"\n}',
            ":2: entry '00000000' does not",
        ),
        ('{"format": 1, "format": 1, "task": "digits@2pct"}', "one name twice"),
        ("[]", "no context"),
    ],
)
def test_a_context_that_is_wrong(text: str, why: str, committed: Path, tmp_path: Path) -> None:
    (committed / safe_name(TASK) / "context.json").write_text(text)
    with pytest.raises(StoreError, match=rf"context\.json{why}" if why[0] == ":" else why):
        import_results(committed, tmp_path / "again")


def test_a_run_in_two_places_a_link_and_a_stray_file_are_told(committed: Path, tmp_path: Path) -> None:
    folder = committed / safe_name(TASK)
    (folder / "notes.txt").write_text("mine")
    (folder / "linked.jsonl").symlink_to(folder / "alpha.jsonl")
    shutil.copytree(folder, committed / "elsewhere")
    os.mkfifo(folder / "pipe.jsonl")  # opening it would wait for ever
    _, problems = read_committed(committed)
    told = "\n".join(map(str, problems))
    for part in (
        "notes.txt: no file of",
        "linked.jsonl: a link",
        "pipe.jsonl: a link, no plain file",
        "whose folder is digits@2pct",
        "stands elsewhere",
    ):
        assert part in told


def test_spacing_and_entries_without_use_are_told(committed: Path) -> None:
    path = committed / safe_name(TASK) / "alpha.jsonl"
    path.write_text(path.read_text().replace('":', '": ', 1))
    (problem,) = form_problems(committed)
    assert problem.startswith(f"{path}:1: not in canonical form")
    export_results(committed, committed)
    assert form_problems(committed) == []
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [problem.startswith(f"{path}:1: ") for problem in form_problems(committed)] == [True]
    export_results(committed, committed)
    rest = path.with_name("rest.jsonl")
    rest.write_text(path.read_text().splitlines()[0] + "\n")
    assert form_problems(committed) == [f"{rest}: holds no run; remove it"]
    rest.unlink()
    (committed / safe_name(TASK) / "beta.jsonl").unlink()
    context = committed / safe_name(TASK) / "context.json"
    assert form_problems(committed) == []
    for name in ("alpha", "gamma", "delta", "native"):
        (committed / safe_name(TASK) / f"{name}.jsonl").unlink()
    assert open_results(committed).records()[1] == []
    assert context.is_file()


# As results to read


def test_the_committed_form_is_read_as_the_store_is(committed: Path, tmp_path: Path) -> None:
    store, form = open_results(tmp_path / "store"), open_results(committed)
    assert isinstance(form, CommittedStore)
    assert form.records() == store.records()
    for record in store.records()[0]:
        assert form.read(record.run_id) == record
        assert form.status(record.run_id) == record.status
    assert form.status("nothing") is None
    assert sorted(run_id for run_id, _ in form.glances()) == sorted(run_id for run_id, _ in store.glances())


def test_an_update_is_the_export_of_an_update(committed: Path, tmp_path: Path) -> None:
    store, form = open_results(tmp_path / "store"), open_results(committed)
    for record in store.records()[0][:7]:
        fields: dict[str, Any] = {"notes": {"seen": 0.5}, "scored_on": {"version": "0.2.0"}}
        assert form.update(record, **fields) == store.update(record, **fields)
    export_results(tmp_path / "store", tmp_path / "wanted")
    assert texts(committed) == texts(tmp_path / "wanted")
    assert open_results(committed).records() == store.records()
    with pytest.raises(StoreError, match="run again meanwhile"):
        form.update(replace(record, outputs_sha256="0" * 64), notes={})


def test_an_update_leaves_no_entry_without_use(committed: Path) -> None:
    form = open_results(committed)
    for record in form.records()[0]:
        if record.cost is not None:
            form.update(record, cost=replace(record.cost, timed_on={"cpu": "another", "utc": "now"}))
            form.update(record, cost=record.cost)
    assert form_problems(committed) == []


def test_no_run_is_made_into_the_committed_form(committed: Path) -> None:
    with pytest.raises(StoreError, match="results export"):
        Store(committed).prepare()
    with pytest.raises(StoreError, match="committed form"):
        open_results(committed).write(full_records()[0])
    (committed / "runs").mkdir()
    with pytest.raises(StoreError, match="holds both"):
        open_results(committed)
    with pytest.raises(StoreError, match="is a store"):
        export_results(committed, committed)


def test_an_export_keeps_what_stands_there_unless_told_to_replace_it(committed: Path, tmp_path: Path) -> None:
    before, store = texts(committed), Store(tmp_path / "store")
    record = store.update(store.records()[0][0], notes={"mine": 1.0})
    done = export_results(store.root, committed)
    assert (done.kept, done.files, texts(committed)) == ((record.run_id,), (), before)
    done = export_results(store.root, committed, replace=True)
    assert (done.kept, done.replaced, len(done.files)) == ((), 1, 1)
    assert open_results(committed).read(record.run_id) == record


def test_an_import_keeps_what_the_store_has(committed: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    record = store.update(store.records()[0][0], notes={"mine": 1.0})
    assert import_results(committed, store.root).kept == (record.run_id,)
    assert store.read(record.run_id) == record


def test_an_import_leaves_alone_what_a_process_is_at_work_on(committed: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "empty")
    store.prepare()
    run_id = open_results(committed).records()[0][0].run_id
    with store.lock(run_id):
        found = import_results(committed, store.root)
    assert found.kept == (run_id,)
    assert store.status(run_id) is None
    assert found.new == len(open_results(committed).records()[0]) - 1
    assert import_results(committed, store.root).new == 1


def test_a_record_of_a_newer_schema_is_refused(committed: Path) -> None:
    path = committed / safe_name(TASK) / "alpha.jsonl"
    edited(path, _change("stamp", lambda line: line["stamp"].update(schema_version=99)))
    damaged = open_results(committed).records()[1]
    assert damaged
    assert all(entry.newer for entry in damaged)
    assert issubclass(NewerSchemaError, StoreError)


# The command


def call(*words: str) -> Any:
    from prunebench.cli.main import app

    return CliRunner().invoke(app, list(words))


def test_the_command_exports_checks_and_imports(tmp_path: Path) -> None:
    write(tmp_path / "store", sound_records())
    store, form, again = (str(tmp_path / name) for name in ("store", "form", "again"))
    done = call("results", "export", store, form)
    assert done.exit_code == 0, done.output
    assert f"{len(sound_records())} new" in done.output
    done = call("results", "check", form)
    assert done.exit_code == 0, done.output
    checks = len(sound_records()) + 1
    assert "".join(done.output.split()) == "".join(f"{form}: {checks} of {checks} checks hold".split())
    done = call("results", "import", form, again)
    assert done.exit_code == 0, done.output
    assert runs_of(tmp_path / "again") == runs_of(tmp_path / "store")
    edited(tmp_path / "form" / safe_name(TASK) / "beta.jsonl", _twice("run"))
    done = call("results", "check", form)
    assert done.exit_code == 1
    assert "stands there twice" in done.output
    done = call("leaderboard", "--results", form, "--out", str(tmp_path / "board"))
    assert done.exit_code == 1, "a wrong line is no silent loss"


def test_an_unknown_method_is_told(committed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean alpha"):
        export_results(committed, tmp_path / "some", methods=["alpa"])
    done = export_results(committed, tmp_path / "some", methods=["alpha"])
    assert {path.name for path in done.files} == {"alpha.jsonl", "context.json"}
