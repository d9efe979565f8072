"""Parts of a suite in processes of their own, merged: the whole, with the logits of the whole."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from helpers import RECIPE, TASK, run_inline, tiny_suite
from typer.testing import CliRunner

from prunebench.api import make_plan
from prunebench.cli.main import app
from prunebench.results.merge import merge_stores
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.runner.shard import Shard


def test_two_processes_make_the_whole(tmp_path: Path) -> None:
    suite = tiny_suite("dense", "magnitude", sparsities=(0.5, 0.9), seeds=(0, 1))
    recipe = "\n".join(f"{name} = {json.dumps(value)}" for name, value in RECIPE.items())
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'description = "tiny"\ntasks = ["{TASK}"]\nmethods = ["dense", "magnitude"]\nsparsities = [0.5, 0.9]\n'
        f"seeds = [0, 1]\n\n[recipe]\n{recipe}\n"
    )
    parts = [tmp_path / "part-1", tmp_path / "part-2"]
    commands = [
        [sys.executable, "-m", "prunebench", "run", str(path), "--shard", f"{number}/2", "--out", str(part)]
        for number, part in enumerate(parts, 1)
    ]
    running = [
        subprocess.Popen([*command, "--workers", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    for each in running:
        said = each.communicate(timeout=300)[0]
        assert each.returncode == 0, said.decode()
    _, whole = run_inline(suite, tmp_path / "whole")
    merged = tmp_path / "merged"
    for part in parts:
        done = CliRunner().invoke(app, ["results", "import", str(part), str(merged)])
        assert done.exit_code == 0, done.output
    records = {record.run_id: record for record in Store(merged).records()[0]}
    assert {record.run_id: record.outputs_sha256 for record in whole.values()} == {
        run_id: record.outputs_sha256 for run_id, record in records.items()
    }
    for run_id in records:
        assert Store(merged).read_tensors(run_id, "outputs").keys() == {"val_logits", "test_logits"}
    assert make_plan(suite, out=merged).todo == []
    assert make_plan(suite, out=merged, shard=Shard(1, 2)).todo == []


def test_a_merge_keeps_what_is_finished_and_takes_nothing_damaged(
    tmp_path: Path, make_record: Callable[..., RunRecord]
) -> None:
    first, second, merged = (Store(tmp_path / name) for name in ("first", "second", "merged"))
    record = make_record()
    other, third = (make_record(dataclasses.replace(record.run_spec, seed=seed)) for seed in (1, 2))
    first.write(dataclasses.replace(record, status="failed", reason="lost"))
    first.write(other, {"test_logits": torch.zeros(1)})
    second.write(record, {"test_logits": torch.ones(1)})
    second.write(other, {"test_logits": torch.ones(1)})
    second.write(third, {"test_logits": torch.ones(1)})
    damaged = second.folder(third.run_id) / "outputs.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    one, two = merge_stores(first.root, merged.root), merge_stores(second.root, merged.root)
    assert (one.new, one.replaced, one.kept) == (2, 0, ())
    assert (two.new, two.replaced, two.kept) == (0, 1, (other.run_id,))
    assert [entry.path.parent.name for entry in two.left_out] == [third.run_id]
    assert {record.run_id: record.status for record in merged.records()[0]} == {
        record.run_id: "ok",
        other.run_id: "ok",
    }
    assert merged.read_tensors(other.run_id, "outputs")["test_logits"].item() == 0
    again = merge_stores(first.root, merged.root)
    assert (again.new, again.same, again.kept) == (0, 1, (record.run_id,))
