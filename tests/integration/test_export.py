"""Networks of runs as files: every structure gives torch's outputs, what cannot be is named; engines side by side."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import run_inline, tiny_suite
from torch import nn
from typer.testing import CliRunner, Result

from prunebench.cli import exporting
from prunebench.cli.main import app
from prunebench.data.images import Images
from prunebench.errors import UsageError
from prunebench.inference import export
from prunebench.inference.cascade import THRESHOLD_NOTE
from prunebench.profile import engines
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.runner import stored
from prunebench.runner.stored import Draws, ExportedNetwork, export_runs, structure_of
from prunebench.submission.evaluation import evaluate_weights, list_weights

pytestmark = pytest.mark.slow
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="ONNX is in the extra `onnx`",
)
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is in the extra `openvino`"
)
PATTERNS = ["unstructured", "2:4", "block", "filter"]
STRUCTURES = ["dense", *PATTERNS, "channels removed"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every structure, with its weights."""
    out = tmp_path_factory.mktemp("export") / "out"
    suite = tiny_suite("dense", "magnitude", "l1-filter", sweep={"magnitude": {"structure": PATTERNS}})
    outcome, _ = run_inline(suite, out)
    assert (outcome.ok, outcome.failed) == (6, 0)
    return out


def by_structure(results: Path) -> dict[str, RunRecord]:
    store, draws = Store(results), Draws(None)
    return {
        structure_of(
            record, stored.stored_network(record, store, draws.of(record).task.num_outputs, None)
        ): record
        for record in store.records()[0]
    }


def exported(results: Path, out: Path, form: str = "onnx", **options: object) -> dict[str, ExportedNetwork]:
    store = Store(results)
    found = list(export_runs(store, store.records()[0], out, form=form, **options))  # type: ignore[arg-type]
    assert [entry.problem for entry in found] == [None] * len(found)
    return {entry.structure: entry for entry in found}


@pytest.fixture(scope="module")
def onnx_files(
    results: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, ExportedNetwork]]:
    """All of them in ONNX, compared on 300 images."""
    out = tmp_path_factory.mktemp("onnx")
    return out, exported(results, out, images=300)


def test_structures_are_told_from_the_stored_weights(results: Path) -> None:
    assert sorted(by_structure(results)) == sorted(STRUCTURES)


@needs_onnx
def test_every_structure_gives_torch_s_outputs_in_onnx(
    results: Path, onnx_files: tuple[Path, dict[str, ExportedNetwork]]
) -> None:
    import onnxruntime

    records, (out, found) = by_structure(results), onnx_files
    assert sorted(found) == sorted(STRUCTURES)
    for structure, entry in found.items():
        assert entry.opset == export.OPSET
        assert entry.difference is not None
        assert entry.largest_output is not None
        assert entry.difference <= 1e-4 * entry.largest_output, structure
        assert entry.images == 300
        path = out / entry.file
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        data = Draws(None).of(records[structure])
        kept = Store(results).read_tensors(entry.run_id, "outputs")["val_logits"].float()
        for batch in (1, 7, 64):  # any number of images, and the logits that the run stored in float16
            x = data.images["val"].batch(slice(0, batch)).contiguous().numpy()
            (logits,) = session.run(None, {"images": x})
            assert torch.allclose(torch.from_numpy(logits), kept[:batch], rtol=2e-3, atol=2e-3), structure
        facts = session.get_modelmeta().custom_metadata_map
        assert facts["run"] == entry.run_id
        assert facts["mean"].split() == [str(value) for value in data.task.mean]


@needs_onnx
def test_dead_channels_leave_the_file_and_other_zeros_stay(
    onnx_files: tuple[Path, dict[str, ExportedNetwork]],
) -> None:
    found = onnx_files[1]
    assert found["channels removed"].bytes < found["dense"].bytes / 2
    assert found["filter"].bytes < 0.9 * found["dense"].bytes
    assert abs(found["2:4"].bytes / found["dense"].bytes - 1) < 0.05
    assert found["unstructured"].nonzero_weights / found["unstructured"].weights == pytest.approx(
        0.1, abs=1e-4
    )


def test_torch_export_gives_the_same_for_any_batch(results: Path, tmp_path: Path) -> None:
    found, records = exported(results, tmp_path, "torch"), by_structure(results)
    for structure in ("unstructured", "channels removed"):
        entry = found[structure]
        assert (entry.opset, Path(entry.file).suffix) == (None, ".pt2")
        data = Draws(None).of(records[structure])
        x = data.images["val"].batch(slice(0, 5))
        net = stored.stored_network(records[structure], Store(results), 10, None)
        assert torch.allclose(torch.export.load(tmp_path / entry.file).module()(x), net(x), atol=1e-4)


def test_exported_weights_are_evaluated_as_the_run_was(results: Path, tmp_path: Path) -> None:
    found = exported(results, tmp_path, "safetensors")
    assert {entry.difference for entry in found.values()} == {0.0}
    done = CliRunner().invoke(
        app, ["export", "--results", str(results), "--to", "safetensors", "--out", str(tmp_path / "again")]
    )
    assert done.exit_code == 0, done.output
    again = {each.file: each for each in evaluate_weights(list_weights(tmp_path / "again"))}
    for structure, record in by_structure(results).items():
        mine = again[found[structure].file]
        assert (mine.task, mine.seed, mine.evidence) == (record.spec["task"], 0, "re-evaluated")
        assert list(mine.groups) == list(record.groups)
        wanted = {name: math.nan if value is None else value for name, value in record.metrics.items()}
        assert mine.metrics == pytest.approx(wanted, nan_ok=True), structure


def test_a_file_with_other_outputs_is_removed(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(net: nn.Module, x: torch.Tensor, *rest: object) -> None:
        other = copy.deepcopy(net)
        with torch.no_grad():
            other.head.bias += 0.01  # type: ignore[operator, union-attr]
        export.write_network(other, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stored, "write_network", wrong)
    store = Store(results)
    (entry,) = export_runs(store, store.records()[0][:1], tmp_path, form="torch")
    assert entry.problem is not None
    assert "differ from torch's by up to 0.01" in entry.problem
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_removed(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(net: nn.Module, x: torch.Tensor, path: Path, *rest: object) -> None:
        export.write_network(net, x, path, *rest)  # type: ignore[arg-type]
        path.write_bytes(path.read_bytes()[:-7])

    monkeypatch.setattr(stored, "write_network", cut)
    store = Store(results)
    (entry,) = export_runs(store, store.records()[0][:1], tmp_path, form="safetensors")
    assert "cannot be read" in str(entry.problem)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_model_are_together_its_dense_one_first(results: Path) -> None:
    records = Store(results).records()[0]
    others = [
        replace(record, run_id=f"other{record.run_id}", spec={**record.spec, "model": "a-model"})
        for record in records
    ]
    found = stored.in_order([*records, *others])
    models = [record.run_spec.model for record in found]
    assert models == ["a-model"] * 6 + ["convnet-small"] * 6
    assert [place for place, record in enumerate(found) if record.spec["method"] == "dense"] == [0, 6]


def test_runs_that_cannot_be_exported_are_named_and_the_others_are_there(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(results)
    records = store.records()[0]
    deferring = replace(records[0], notes={**records[0].notes, THRESHOLD_NOTE: 0.5})
    failed = replace(records[1], status="failed")
    find = store.find_tensors
    monkeypatch.setattr(
        store, "find_tensors", lambda run, name: None if run.run_id == records[2].run_id else find(run, name)
    )
    chosen = [deferring, failed, *records[2:4]]
    found = {entry.run_id: entry for entry in export_runs(store, chosen, tmp_path, form="safetensors")}
    problems = [found[record.run_id].problem for record in chosen]
    assert "hands images to a dense network" in str(problems[0])
    assert problems[1] == "the run failed"
    assert "its model is not stored (run with --keep-models" in str(problems[2])
    assert problems[3] is None


def test_damaged_weights_are_a_problem_of_their_run(results: Path, tmp_path: Path) -> None:
    store = Store(results)
    record = by_structure(results)["unstructured"]
    path = store.folder(record.run_id) / "model.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-7])
        (entry,) = export_runs(store, [record], tmp_path, form="safetensors")
        assert "model.safetensors: cannot be read" in str(entry.problem)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_without_the_packages_the_command_says_how_to_install_them(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"needs .*{name}.*pip install 'prunebench\[onnx\]'"):
        list(export_runs(Store(results), [], tmp_path))
    chosen, missing = engines.choose_engines(["all"])
    assert "onnxruntime" not in chosen
    assert any("ONNX Runtime needs" in line for line in missing)


def test_names_that_there_are_not(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown form 'onxx': did you mean onnx"):
        list(export_runs(Store(results), [], tmp_path, form="onxx"))
    with pytest.raises(UsageError, match="unknown engine 'openvin': did you mean openvino"):
        engines.choose_engines(["openvin"])
    ran = partial(CliRunner().invoke, app, catch_exceptions=True)
    for words, says in (
        (["--method", "magnitud"], "did you mean magnitude"),
        (["--seed", "7"], "no finished run of"),
        (["--sparsity", "0.8"], "no finished run of"),
        (["--to", "torch", "--images", "1"], "--images must be 2 or more"),
        (["--to", "torch", "--engine", "graph"], "--engine graph runs with --device cuda only"),
        (["--to", "torch", "--engine", "torch", "--device", "tpu"], "unknown device 'tpu'"),
    ):
        done = ran(["export", "--results", str(results), "--out", str(tmp_path), *words])
        assert isinstance(done.exception, UsageError), words
        assert says in str(done.exception)
    for option in ("--batch", "--threads", "--repeats"):
        done = ran(
            ["export", "--results", str(results), "--out", str(tmp_path), "--engine", "torch", option, "0"]
        )
        assert done.exit_code == 2, option
    assert list(tmp_path.iterdir()) == []


# --- engines side by side ----------------------------------------------------------------------------------


@needs_onnx
def test_one_command_times_dense_and_pruned_networks_in_every_engine(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    command = ["export", "--results", str(results), "--method", "l1-filter", "--out", str(out)]
    asked = ["torch", "folded", "sparse", "onnxruntime"]
    command += [word for name in asked for word in ("--engine", name)]
    done = CliRunner().invoke(app, [*command, "--batch", "1", "--batch", "3", "--repeats", "3"])
    assert done.exit_code == 0, done.output
    assert "1 thread, float32, wall clock" in done.output
    (times,) = json.loads((out / "engines.json").read_text())["engines"]
    entries = {(each["network"], each["engine"], each["batch"]) for each in times["entries"]}
    assert entries == {
        (network, engine, batch)
        for network in ("dense", "l1-filter 0.9") for engine in asked for batch in (1, 3)
    }  # fmt: skip
    for entry in times["entries"]:
        assert entry["not_measured"] is None
        assert 0 < entry["latency_ms"]["p20"] <= entry["latency_ms"]["p50"] <= entry["latency_ms"]["p80"]
        assert entry["difference"] <= 1e-4
    page = (out / "engines.md").read_text()
    assert "| onnxruntime |" in page
    assert "| dense |" in page
    assert re.search(r"\d \\\[[\d.]+, [\d.]+\\\]", page), "percentiles"
    assert "milliseconds, medians" in done.output
    assert len(json.loads((out / "networks.json").read_text())["networks"]) == 2


@needs_onnx
def test_an_engine_of_onnx_files_wants_them(results: Path, tmp_path: Path) -> None:
    words = ["export", "--results", str(results), "--out", str(tmp_path), "--to", "torch", "--engine", "all"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UsageError)
    assert re.match("--engine onnxruntime.* runs ONNX files: leave out --to torch", str(done.exception))
    assert list(tmp_path.iterdir()) == []


def test_engines_of_torch_need_no_onnx_files(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    done = timed(results, tmp_path, "--engine", "all", "--batch", "2", "--repeats", "3")
    assert done.exit_code == 0, done.output
    (times,) = json.loads((tmp_path / "engines.json").read_text())["engines"]
    assert {"torch", "folded", "sparse"} <= {each["engine"] for each in times["entries"]}
    assert {"graph", "onnxruntime", "openvino"}.isdisjoint(each["engine"] for each in times["entries"])


def timed(results: Path, out: Path, *words: str) -> Result:
    """What the command says of l1-filter's run and the dense one, whose files are their weights."""
    asked = ["--results", str(results), "--method", "l1-filter", "--out", str(out), "--to", "safetensors"]
    return CliRunner().invoke(app, ["export", *asked, *words])


# --- engines on a GPU -----------------------------------------------------------------------------------------


def test_a_gpu_has_engines_of_its_own() -> None:
    assert engines.choose_engines(["all"], "cuda") == (("torch", "folded", "compile", "graph", "sparse"), [])
    assert "graph" not in engines.choose_engines(["all"])[0]
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(
            UsageError, match=f"--engine {name} runs with --device cpu only; .*: torch, folded"
        ):
            engines.choose_engines([name, "all"], "cuda")
    with pytest.raises(UsageError, match="--engine graph runs with --device cuda only"):
        engines.choose_engines(["graph"])


def test_without_a_gpu_the_device_is_refused(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = timed(results, tmp_path, "--engine", "all", "--device", "cuda")
    assert isinstance(done.exception, UsageError)
    assert "no CUDA device here; use --device cpu" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


class OnGPU:
    """Images that say they are on a GPU, and are not."""

    device = torch.device("cuda")

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: slice) -> torch.Tensor:
        return self.images.batch(index)


def test_on_a_gpu_each_timed_call_waits_for_its_result(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, draws = timed_networks(results)
    images, log = draws.of(Store(results).records()[0][0]).images["val"], []

    def logged(network: engines.TimedNetwork, x: torch.Tensor, _: int) -> object:
        return lambda: (log.append("call"), network.net(x))[1]

    monkeypatch.setitem(engines.ENGINES, "graph", engines.Engine("a graph", logged))  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("done"))
    times = engines.time_engines(networks, OnGPU(images), ("graph",), batches=(2,), repeats=3)  # type: ignore[arg-type]
    assert all(entry.latency_ms is not None for entry in times.entries)
    after = [
        log[at + 1] for at, word in enumerate(log) if word == "call" and at > 1
    ]  # two are compared first
    assert len(after) >= 2 * 3 * 2
    assert set(after) == {"done"}


def test_on_a_gpu_the_conditions_name_it_and_what_was_a_graph(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []

    def to(net: nn.Module, device: object) -> nn.Module:
        moved.append(device)
        return net

    class Data:
        def __init__(self, root: Path | None, device: torch.device) -> None:
            moved.append(device)
            self.draws = Draws(root)

        def of(self, record: RunRecord) -> object:
            data = self.draws.of(record)
            return SimpleNamespace(task=data.task, images={"val": OnGPU(data.images["val"])})

    def net_of(*rest: object) -> nn.Module:
        net = stored.stored_network(*rest)  # type: ignore[arg-type]
        net.to = partial(to, net)  # type: ignore[assignment]
        return net

    def eager(network: engines.TimedNetwork, x: torch.Tensor, _: int) -> object:
        return partial(network.net, x)

    for name in ("compile", "folded", "graph", "sparse"):
        fake = replace(engines.ENGINES[name], prepare=eager)
        monkeypatch.setitem(engines.ENGINES, name, fake)  # type: ignore[arg-type]
    monkeypatch.setattr(exporting, "Draws", Data)
    monkeypatch.setattr(exporting, "stored_network", net_of)
    monkeypatch.setattr(exporting, "choose_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    done = timed(results, tmp_path, "--engine", "all", "--device", "cuda", "--batch", "2", "--repeats", "3")
    assert done.exit_code == 0, done.output
    assert {str(device) for device in moved} == {"cuda"}
    assert re.search(
        r"A GPU, 1 thread, float32.*, wall clock as called: each launch until torch", done.output
    )
    assert "launched as CUDA graphs: graph, sparse" in done.output
    assert json.loads((tmp_path / "engines.json").read_text())["environment"]["gpu"] == "A GPU"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_times_all_its_engines(results: Path, tmp_path: Path) -> None:
    done = timed(results, tmp_path, "--engine", "all", "--device", "cuda", "--batch", "2", "--repeats", "3")
    assert done.exit_code == 0, done.output
    (times,) = json.loads((tmp_path / "engines.json").read_text())["engines"]
    assert len(times["entries"]) == 2 * 5
    assert [entry["not_measured"] for entry in times["entries"]] == [None] * 10


# --- engines that go wrong ------------------------------------------------------------------------------------


def timed_networks(results: Path) -> tuple[list[engines.TimedNetwork], Draws]:
    store, draws = Store(results), Draws(None)
    nets = {
        name: stored.stored_network(record, store, 10, None) for name, record in by_structure(results).items()
    }
    chosen = ("dense", "unstructured")
    return [engines.TimedNetwork(name, name, nets[name], is_dense=name == "dense") for name in chosen], draws


def test_an_engine_with_wrong_outputs_or_none_is_not_timed(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks, draws = timed_networks(results)
    images = draws.of(Store(results).records()[0][0]).images["val"]

    def off(network: engines.TimedNetwork, x: torch.Tensor, _: int) -> object:
        return lambda: network.net(x) * 1.01

    def broken(*_: object) -> object:
        raise RuntimeError("no such instruction\nsecond line")

    for name, prepare in (("folded", off), ("sparse", broken)):
        monkeypatch.setitem(engines.ENGINES, name, engines.Engine(name, prepare))  # type: ignore[arg-type]
    times = engines.time_engines(networks, images, ("torch", "folded", "sparse"), batches=(2,), repeats=3)
    mine = times.of("unstructured", 2)
    assert mine["torch"].latency_ms is not None
    assert (mine["folded"].latency_ms, mine["sparse"].latency_ms) == (None, None)
    assert "outputs differ by 1.0e-02 of the largest" in str(mine["folded"].not_measured)
    assert mine["sparse"].not_measured == "RuntimeError: no such instruction"
    assert times.fastest("unstructured", 2) == mine["torch"]
    table = engines.engine_table(networks, times)
    assert table.keys == ("batch", "network", "zeros", "torch", "fastest", "speed_up")


def test_engines_want_a_dense_network_images_and_sensible_numbers(results: Path) -> None:
    networks, draws = timed_networks(results)
    images = draws.of(Store(results).records()[0][0]).images["val"]
    with pytest.raises(UsageError, match="want a dense network"):
        engines.time_engines(networks[1:], images, ("torch",))
    with pytest.raises(UsageError, match=r"--batch 100000: the split has \d+ images"):
        engines.time_engines(networks, images, ("torch",), batches=(100_000,))
    for options in ({"batches": (0,)}, {"threads": 0}, {"repeats": 0}, {"batches": ()}):
        with pytest.raises(UsageError, match="must be 1 or more"):
            engines.time_engines(networks, images, ("torch",), **options)  # type: ignore[arg-type]


def test_a_busy_machine_is_said(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench.inference.busy import MachineLoad

    networks, draws = timed_networks(results)
    images = draws.of(Store(results).records()[0][0]).images["val"]
    monkeypatch.setattr(engines, "machine_load", lambda: MachineLoad(9.0, 2))
    times = engines.time_engines(networks, images, ("torch",), batches=(1,), repeats=3)
    assert times.load_average == 9.0
    assert times.remarks[0].startswith("busy machine: load average 9 on 2 cores")


@needs_onnx
@needs_openvino
def test_openvino_gives_torch_s_outputs(
    results: Path, onnx_files: tuple[Path, dict[str, ExportedNetwork]]
) -> None:
    (out, found), records = onnx_files, by_structure(results)
    for structure in ("dense", "2:4", "channels removed"):
        net = stored.stored_network(records[structure], Store(results), 10, None)
        network = engines.TimedNetwork(structure, "run", net, out / found[structure].file)
        x = Draws(None).of(records[structure]).images["val"].batch(slice(0, 9))
        with torch.inference_mode():
            assert torch.allclose(engines.ENGINES["openvino"].prepare(network, x, 1)(), net(x), atol=1e-4)
