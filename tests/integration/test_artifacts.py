"""Logits and weights at an address: pushed, served over real HTTP, pulled whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from board_records import sound_records
from helpers import run_inline, tiny_suite
from typer.testing import CliRunner

from prunebench.cli.main import app
from prunebench.errors import StoreError, UsageError
from prunebench.results.artifacts import (
    MANIFEST,
    HttpRemote,
    Stored,
    Transfer,
    fetch_object,
    open_remote,
    pull,
    push,
    read_manifest,
)
from prunebench.results.convert import export_results, import_results
from prunebench.results.objects import cache, cached, object_name, object_path, partial_path
from prunebench.results.store import Store, open_results


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `faults` by path: bytes after which to hang up. Asked ranges are answered where `ranges`."""

    faults: dict[str, int] = {}  # noqa: RUF012 - of a class made for one test
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012
    ranges = True

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Range")))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, start = path.read_bytes(), 0
        if self.ranges and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.faults.get(self.path, len(data))])


@contextlib.contextmanager
def serving(folder: Path, **changes: Any) -> Iterator[tuple[str, type[Handler]]]:
    """A real server on loopback: its address, and the class that remembers what was asked."""
    handler = type("Handler", (Handler,), {"faults": {}, "asked": [], **changes})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", handler
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of six runs with made-up tensors, its committed form, and what was pushed of it."""
    root = tmp_path_factory.mktemp("made")
    store = Store(root / "store")
    for number, record in enumerate(sound_records()[:6]):
        outputs = {"test_logits": torch.full((200, 2), float(number))}
        model = {"weight": torch.full((300,), float(number))}
        store.write(record, outputs, model=model)
    export_results(store.root, root / "committed")
    assert all(entry.moved for entry in push(store.root, str(root / "remote")))
    return root


@pytest.fixture
def made(pushed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pushed, tmp_path / "made"))


def problems(entries: Iterator[Transfer]) -> list[str]:
    return [entry.problem for entry in entries if entry.problem is not None]


def first_outputs(made: Path) -> str:
    digest = open_results(made / "committed").records()[0][0].outputs_sha256
    assert digest is not None
    return digest


# Push


def test_a_push_stores_each_object_by_its_hash_and_lists_it(made: Path) -> None:
    manifest = read_manifest(open_remote(str(made / "remote")))
    records = Store(made / "store").records()[0]
    assert set(manifest) == {record.run_id for record in records}
    for record in records:
        entry = manifest[record.run_id]
        assert (entry["outputs"].sha256, entry["model"].sha256) == (
            record.outputs_sha256,
            record.model_sha256,
        )
        for stored in entry.values():
            data = (made / "remote" / object_name(stored.sha256)).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (stored.sha256, stored.bytes)


def test_a_push_again_sends_nothing_and_mends_what_was_cut_off(made: Path) -> None:
    path = made / "remote" / object_name(first_outputs(made))
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    moved = [entry.kind for entry in push(made / "store", f"file://{made / 'remote'}") if entry.moved]
    assert (moved, path.read_bytes()) == (["logits"], whole)
    assert not any(entry.moved for entry in push(made / "store", str(made / "remote")))


def test_a_push_keeps_what_others_have_pushed_and_takes_some_methods(made: Path) -> None:
    some = made / "some"
    assert {entry.label.split()[1] for entry in push(made / "store", str(some), methods=["dense"])} == {
        "dense"
    }
    before = read_manifest(open_remote(str(some)))
    list(push(made / "store", str(some), methods=["alpha"]))
    after = read_manifest(open_remote(str(some)))
    assert before.items() < after.items()
    with pytest.raises(UsageError, match="did you mean alpha"):
        list(push(made / "store", str(some), methods=["alpa"]))


def test_a_push_without_weights_keeps_those_that_are_listed(made: Path) -> None:
    before = (made / "remote" / MANIFEST).read_text()
    for path in (made / "store").rglob("model.safetensors"):
        path.unlink()
    store = Store(made / "store")
    store.write(store.records()[0][0], {"test_logits": torch.full((200, 2), 7.0)})
    list(push(store.root, str(made / "remote")))
    after = (made / "remote" / MANIFEST).read_text()
    lines = list(zip(before.splitlines(), after.splitlines(), strict=True))
    assert [old == new for old, new in lines] == [False] + [True] * 5
    assert "model" not in json.loads(lines[0][1])  # of weights that gave other logits


def test_a_push_leaves_what_does_not_match_its_record(made: Path) -> None:
    store = Store(made / "store")
    record = store.records()[0][0]
    (store.folder(record.run_id) / "outputs.safetensors").write_bytes(b"other")
    assert problems(push(store.root, str(made / "new"))) == ["its stored logits do not match their hash"]
    assert "outputs" not in read_manifest(open_remote(str(made / "new")))[record.run_id]


def test_nothing_is_pushed_over_http(made: Path) -> None:
    with pytest.raises(UsageError, match="nothing can be pushed over HTTP"):
        list(push(made / "store", "http://127.0.0.1:9/x"))


def test_whatever_a_protocol_raises_is_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no credentials")

    with pytest.raises(StoreError, match="x: cannot be opened"):
        open_remote("ftp://127.0.0.1:1/x")
    assert all(entry.moved for entry in push(made / "store", "memory://there"))
    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    with pytest.raises(StoreError, match="memory://there: cannot be read: RuntimeError: no credentials"):
        list(pull(made / "store", "memory://there"))
    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    with pytest.raises(StoreError, match="cannot be read: RuntimeError: no credentials"):
        list(push(made / "store", "memory://there"))


def test_a_scheme_without_its_package_is_named() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        open_remote("nosuch://bucket/folder")


# Pull


@pytest.mark.parametrize("kind", ["folder", "file", "http"])
def test_a_clone_has_everything_after_a_pull(kind: str, made: Path) -> None:
    remote, clone = made / "remote", open_results(made / "committed")
    with serving(remote) as (http_address, handler):
        address = {"folder": str(remote), "file": f"file://{remote}", "http": http_address + "/"}[kind]
        entries = list(pull(clone.root, address))
        assert (len(entries), all(entry.moved for entry in entries)) == (12, True)
        assert not any(entry.moved for entry in pull(clone.root, address))
        assert len(handler.asked) == (12 + 2 if kind == "http" else 0)
    store = Store(made / "store")
    for record in clone.records()[0]:
        for name in ("outputs", "model"):
            ours, theirs = (place.read_tensors(record.run_id, name) for place in (clone, store))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert list(cache().glob("partial/*")) == []


def test_weights_of_records_that_do_not_name_them_are_found_by_their_logits(made: Path) -> None:
    store = Store(made / "store")
    for record in store.records()[0]:
        old = dataclasses.replace(record, model_sha256=None)
        (store.folder(record.run_id) / "record.json").write_text(_schema_3(old))
    shutil.rmtree(made / "committed")
    export_results(store.root, made / "committed")
    list(push(store.root, str(made / "again")))
    clone = open_results(made / "committed")
    run_id = clone.records()[0][0].run_id
    assert not clone.has_model(run_id)
    assert problems(pull(clone.root, str(made / "again"))) == []
    assert clone.has_model(run_id)


def _schema_3(record: Any) -> str:
    from prunebench.results.record import json_text, to_json

    values = json.loads(to_json(record))
    del values["model_sha256"]
    return json_text({**values, "schema_version": 3})


def test_a_store_that_was_imported_finds_pulled_models(made: Path) -> None:
    """So that `run` does not train a dense model again that was pulled."""
    import_results(made / "committed", made / "imported")
    list(pull(made / "imported", str(made / "remote")))
    store = Store(made / "imported")
    assert all(store.has_model(record.run_id) for record in store.records()[0])


def test_a_transfer_that_breaks_off_goes_on_where_it_was(made: Path) -> None:
    digest = first_outputs(made)
    name = f"/{object_name(digest)}"
    with serving(made / "remote", faults={name: 700}) as (address, handler):
        assert problems(pull(made / "committed", address)) == []
    assert [asked for path, asked in handler.asked if path == name] == [None, "bytes=700-", "bytes=1400-"]


def test_the_same_command_goes_on_where_another_broke_off(made: Path) -> None:
    digest = first_outputs(made)
    name, size = f"/{object_name(digest)}", (made / "remote" / object_name(digest)).stat().st_size
    with serving(made / "remote", faults={name: 10}) as (address, handler):
        (problem,) = problems(pull(made / "committed", address))
        assert f"ended after 40 of {size:,} bytes; the same command goes on" in problem
        assert cached(digest) is None
        assert partial_path(digest).stat().st_size == 40
        handler.faults.clear()
        moved = [entry for entry in pull(made / "committed", address) if entry.moved]
        assert len(moved) == 1
        assert handler.asked[-1] == (name, "bytes=40-")
    assert cached(digest) is not None


def test_a_server_without_ranges_sends_it_again(made: Path) -> None:
    digest = first_outputs(made)
    partial_path(digest).parent.mkdir(parents=True)
    partial_path(digest).write_bytes(b"x" * 50)
    with serving(made / "remote", ranges=False) as (address, handler):
        assert problems(pull(made / "committed", address)) == []
    assert [asked for path, asked in handler.asked if path == f"/{object_name(digest)}"] == ["bytes=50-"]
    assert cached(digest) is not None


@pytest.mark.parametrize("begun", [b"x" * 50, b"x" * 10**4, None], ids=["wrong", "too long", "link"])
def test_what_lies_in_the_way_of_a_transfer_is_replaced(begun: bytes | None, made: Path) -> None:
    digest = first_outputs(made)
    part, victim = partial_path(digest), made / "victim"
    victim.write_bytes(b"mine")
    part.parent.mkdir(parents=True)
    if begun is None:
        part.symlink_to(victim)
    else:
        part.write_bytes(begun)
    with serving(made / "remote") as (address, _):
        assert problems(pull(made / "committed", address)) == []
    assert victim.read_bytes() == b"mine"
    found = cached(digest)
    assert found is not None
    assert hashlib.sha256(found.read_bytes()).hexdigest() == digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("altered", "other bytes than its hash says"),
        ("longer", "has more than"),
        ("cut", "ended after 100 of"),
        ("missing", "is missing there"),
        ("folder", "."),
        ("link", "is missing there|has more than|other bytes|ended after"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "http"])
def test_an_object_that_is_wrong_is_never_kept(kind: str, fault: str, why: str, made: Path) -> None:
    digest = first_outputs(made)
    path = made / "remote" / object_name(digest)
    data = path.read_bytes()
    path.unlink()
    if fault == "altered":
        path.write_bytes(data[:-1] + b"\0")
    elif fault == "longer":
        path.write_bytes(data + b"\0" * 5_000_000)
    elif fault == "cut":
        path.write_bytes(data[:100])
    elif fault == "folder":
        path.mkdir()
    elif fault == "link":
        path.symlink_to("/etc/hostname" if Path("/etc/hostname").exists() else "/nowhere")
    with serving(made / "remote") as (http_address, _):
        (problem,) = problems(
            pull(made / "committed", http_address if kind == "http" else str(made / "remote"))
        )
    assert re.search(why, problem), problem
    assert cached(digest) is None
    assert len(list(cache().rglob("*.safetensors"))) == 11, "all others are there"
    part = partial_path(digest)
    assert not part.exists() or part.stat().st_size <= len(data)


def test_no_more_is_read_than_the_manifest_says(made: Path) -> None:
    class Endless:
        address, read_bytes = "endless", 0

        def open(self, name: str, offset: int = 0) -> tuple[Any, int]:
            return self, offset

        def read(self, most: int) -> bytes:
            self.read_bytes += most
            assert self.read_bytes < 10**6
            return b"x" * most

        def close(self) -> None: ...

    endless: Any = Endless()
    with pytest.raises(StoreError, match="more than 5,000 bytes"):
        fetch_object(endless, Stored("ab" * 32, 5000))
    assert endless.read_bytes == 5001
    assert not partial_path("ab" * 32).exists()


def test_other_weights_than_a_record_names_are_left(made: Path) -> None:
    path = made / "remote" / MANIFEST
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["model"] = lines[1]["model"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (problem,) = problems(pull(made / "committed", str(made / "remote")))
    assert "other weights of it than its record names" in problem


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        read_manifest(HttpRemote("http://127.0.0.1:9"))


def test_a_record_whose_logits_are_of_another_time_is_left(made: Path) -> None:
    store = Store(made / "store")
    record = store.records()[0][0]
    store.write(record, {"test_logits": torch.zeros(3, 2)})
    found = problems(pull(store.root, str(made / "remote")))
    assert found
    assert all("of another time" in problem for problem in found)


def test_a_cached_object_that_was_altered_later_is_refused(made: Path) -> None:
    clone = open_results(made / "committed")
    record = clone.records()[0][0]
    list(pull(clone.root, str(made / "remote")))
    assert record.outputs_sha256 is not None
    path = object_path(record.outputs_sha256)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(StoreError, match="damaged; remove it and pull again"):
        clone.read_tensors(record.run_id, "outputs")


# Hostile manifests


def line(kind: str = "outputs", **values: Any) -> str:
    return json.dumps({"run_id": "r", kind: {"sha256": "ab" * 32, "bytes": 5, **values}})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no json", "no line of a manifest"),
        ("[1]", "no line of a manifest"),
        ('{"outputs": {}}', "run_id"),
        (line(sha256="../../../etc/passwd"), "SHA-256"),
        (line(sha256="ab" * 32 + "\n"), "SHA-256"),
        (line(sha256=7), "no line"),
        (line(bytes=10**14), "want at most 16 GiB"),
        (line(bytes=-1), "want at most"),
        (line(bytes=True), "want at most"),
        (line(path="/etc"), "path"),
        (line("../evil"), "want outputs or model"),
        ('{"run_id": "r"}\n{"run_id": "r"}', ":2: .*stands there twice"),
        ('{"run_id": "r", "run_id": "s"}', "one name twice"),
        ("[" * 100_000, "no line of a manifest"),
        ("\udcff", "no line of a manifest"),
    ],
    ids=range(15),
)
def test_a_manifest_that_is_no_manifest_is_refused_whole(text: str, why: str, made: Path) -> None:
    (made / "remote" / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StoreError, match=why):
        list(pull(made / "committed", str(made / "remote")))
    assert not cache().exists()
    with pytest.raises(StoreError, match=why):
        list(push(made / "store", str(made / "remote")))


def test_more_than_the_disk_holds_is_refused_before_anything_is_fetched(made: Path) -> None:
    path = made / "remote" / MANIFEST
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["outputs"]["bytes"] = line["model"]["bytes"] = 1 << 34
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if shutil.disk_usage(made).free > 12 << 34:
        pytest.skip("the disk holds it")
    with pytest.raises(StoreError, match=r"has room for .* bytes, .* are wanted"):
        list(pull(made / "committed", str(made / "remote")))


def test_a_size_that_is_a_lie_is_told(made: Path) -> None:
    path = made / "remote" / MANIFEST
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["outputs"]["bytes"] -= 7
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with serving(made / "remote") as (address, _):
        (problem,) = problems(pull(made / "committed", address))
    assert "more than" in problem


# With them, a clone does what the original does


@pytest.mark.slow
def test_a_clone_rescores_and_analyses_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_inline(tiny_suite("magnitude", seeds=(0, 1)), tmp_path / "store")
    store = Store(tmp_path / "store")
    for record in store.records()[0]:  # as if an older version had not known a metric, and had another wrong
        metrics = {name: value for name, value in record.metrics.items() if name != "entropy"}
        store.update(record, metrics={**metrics, "margin": 0.125})
    export_results(store.root, tmp_path / "clone" / "results")
    call("artifacts", "push", str(tmp_path / "remote"), "--results", str(store.root))
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache of the clone"))
    clone = tmp_path / "clone" / "results"
    unscored = CliRunner().invoke(app, ["rescore", str(clone)])
    assert unscored.exit_code == 1
    assert "artifacts pull" in unscored.output
    with serving(tmp_path / "remote") as (address, _):
        assert "8 objects pulled" in call("artifacts", "pull", address, "--results", str(clone))
        assert "0 objects pulled (0.0 MB), 8 were there" in call(
            "artifacts", "pull", address, "--results", str(clone)
        )
    with monkeypatch.context() as patch:  # the one thing that differs: when
        patch.setattr("prunebench.runner.rescore.time.strftime", lambda *_: "2026-01-01T00:00:00Z")
        for folder in (store.root, clone):
            assert "4 runs scored, 4 changed, 1 new metrics (entropy)" in call("rescore", str(folder))
    for folder in (store.root, clone):
        call("analyze", str(folder), "--out", str(folder.parent / f"pages of {folder.name}"))
    export_results(store.root, tmp_path / "wanted")
    assert files(tmp_path / "wanted", "*/*.json*") == {
        name: data for name, data in files(clone, "*/*.json*").items() if not name.startswith("analysis")
    }
    assert len(files(clone, "analysis/*.*")) == 2
    assert len(files(clone, "analysis/by-seed/*")) == 1
    for pattern in ("analysis/*.*", "analysis/by-seed/*"):
        assert files(clone, pattern) == files(store.root, pattern)
    assert call("compare", "magnitude", "dense", "--results", str(store.root)) == call(
        "compare", "magnitude", "dense", "--results", str(clone)
    )
    assert call("retime", "--results", str(clone)).count("dense / pruned") == 4
    assert all(record.cost and record.cost.timed_on for record in open_results(clone).records()[0])
    assert CliRunner().invoke(app, ["results", "check", str(clone)]).exit_code == 0


def files(root: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob(pattern))}


def call(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output
