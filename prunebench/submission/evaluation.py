"""Own weights and own predictions, evaluated as runs are: groups and metrics, without a record.

Weights are `.safetensors` files of a folder, each in a network of the task; a list beside them, `networks.toml` or
`networks.json`, may name them and their models: `[[networks]]` with `file`, `name`, `model`, `task`, `seed` (of the
draw) and `channels_removed`. What `prunebench export --to safetensors` writes is such a folder. Predictions are logits
`[N, outputs]` of the test split in the task's order: a safetensors file with `test_logits` (and `val_logits`), or CSV
with a row a sample.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from prunebench_kernels.dispatch import ArgumentError

from prunebench.errors import DataError, UsageError, unknown
from prunebench.inference.cost import count_parameters
from prunebench.models import build_model
from prunebench.models.checkpoints import load_checkpoint
from prunebench.results.record import GroupRow
from prunebench.results.spec import TUNE_SEEDS
from prunebench.runner.evaluate import Summary, group_rows, measure_outputs
from prunebench.runner.execute import one_thread
from prunebench.runner.stored import CPU, Draws, ExportedNetwork
from prunebench.submission.predictions import LARGEST, checked_logits, header
from prunebench.submission.reevaluation import RECOMPUTED, REEVALUATED

if TYPE_CHECKING:
    from torch import Tensor

LISTS = ("networks.toml", "networks.json")
SPLITS = ("val", "test")


@dataclass(frozen=True)
class ListedNetwork:
    """A file of weights: whose network it is, and of which task and draw it is to be evaluated."""

    file: Path
    name: str
    task: str
    model: str | None = None
    seed: int = 0
    channels_removed: bool = False


KEYS = frozenset(entry.name for entry in dataclasses.fields(ListedNetwork))
EXPORTED = frozenset(entry.name for entry in dataclasses.fields(ExportedNetwork))


@dataclass(frozen=True)
class EvaluatedNetwork:
    """The test split's groups and metrics of a network or of predictions, and what is known of them.

    `evidence`: `re-evaluated` where weights gave the logits here, else `unverified weights`.
    """

    name: str
    file: str
    task: str
    seed: int
    evidence: str
    groups: Sequence[GroupRow]
    metrics: Summary
    validation: Summary = field(default_factory=dict)
    model: str | None = None
    weights: int | None = None
    nonzero_weights: int | None = None


def list_weights(
    folder: Path, task: str | None = None, model: str | None = None, seed: int | None = None
) -> list[ListedNetwork]:
    """The networks of a folder, as its list says, or all its `.safetensors` files by name.

    `task`, `model` and `seed` stand where the list says nothing. Raises UsageError for a folder without weights, a list
    that is damaged or has a key that there is not, and where no task is known.
    """
    found = [folder / name for name in LISTS if (folder / name).is_file()]
    if len(found) > 1:
        raise UsageError(f"{folder}: holds {' and '.join(LISTS)}: leave one")
    if not folder.is_dir():
        raise UsageError(f"--weights {folder}: no such folder; name one with .safetensors files")
    entries = (
        _listed(found[0]) if found else [{"file": path.name} for path in sorted(folder.glob("*.safetensors"))]
    )
    if not entries:
        raise UsageError(f"--weights {folder}: no .safetensors files in it")
    source = found[0] if found else folder
    named = [_named(entry, folder, source, task, model, seed) for entry in entries]
    names = [each.name for each in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{source}: two networks are called {twice!r}; give each its `name`")
    return named


def _listed(path: Path) -> list[dict[str, Any]]:
    """The entries of a list, each a table with a file."""
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    entries = values.get("networks") if isinstance(values, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{path}: want `networks`, a list of tables with `file`")
    return [entry for entry in entries if entry.get("problem") is None]


def _named(
    entry: Mapping[str, Any],
    folder: Path,
    source: Path,
    task: str | None,
    model: str | None,
    seed: int | None,
) -> ListedNetwork:
    for key in entry:
        if key not in KEYS | EXPORTED:
            raise unknown(f"key in {source}", key, KEYS)
    kinds: dict[str, type] = {
        "file": str, "name": str, "task": str, "model": str, "seed": int, "channels_removed": bool,
    }  # fmt: skip
    for key, kind in kinds.items():
        if key in entry and type(entry[key]) is not kind:
            raise UsageError(f"{source}: {key}: want {kind.__name__}, got {entry[key]!r:.40}")
    name = entry.get("file", "")
    path = folder / name
    if not name or "\0" in name or path.resolve().parent != folder.resolve():
        raise UsageError(f"{source}: file {name!r}: want the name of a file in this folder")
    if path.suffix != ".safetensors":
        raise UsageError(
            f"{source}: file {name!r}: want .safetensors, as `export --to safetensors` writes them"
        )
    chosen = entry.get("task") or task
    if chosen is None:
        raise UsageError(f"{name}: of which task? Give --task")
    return ListedNetwork(
        path, entry.get("name") or path.stem, chosen, entry.get("model") or model,
        _checked_seed(entry.get("seed", seed or 0), source),
        entry.get("channels_removed", entry.get("removed_macs") is not None),
    )  # fmt: skip


def _checked_seed(seed: int, source: Path) -> int:
    """The seed of a draw that has a test split. Raises UsageError."""
    if not 0 <= seed < TUNE_SEEDS:
        raise UsageError(f"{source}: seed {seed}: want 0 to {TUNE_SEEDS - 1}; others draw no test split")
    return seed


def evaluate_weights(
    networks: Sequence[ListedNetwork], data_root: Path | None = None
) -> Iterator[EvaluatedNetwork]:
    """Each network's logits of validation and test split, and the metrics of them as a run records them.

    Raises DataError that names the first tensor of a file that does not fit, or why its network gives no finite logits.
    """
    draws = Draws(data_root)
    for entry in networks:
        data = draws.draw(entry.task, entry.seed)
        name = entry.model or data.task.model
        net = build_model(name, data.task.num_outputs, seed=entry.seed, data_root=data_root)
        load_checkpoint(entry.file, net, channels_removed=entry.channels_removed)
        try:
            with one_thread(CPU):
                _, groups, metrics, validation = measure_outputs(net, data)
        except (
            RuntimeError,
            ArgumentError,
        ) as error:  # layers that do not fit each other, logits without end
            raise DataError(f"{entry.file}: its network cannot be evaluated: {error}") from error
        weights, nonzero = count_parameters(net)
        yield EvaluatedNetwork(
            entry.name, entry.file.name, data.task.name, entry.seed, REEVALUATED, groups, metrics, validation,
            name, weights, nonzero,
        )  # fmt: skip


def evaluate_predictions(
    path: Path, task: str | None = None, seed: int | None = None, draws: Draws | None = None
) -> EvaluatedNetwork:
    """The metrics of a file of logits. The task and seed may stand in a safetensors file's metadata.

    `draws` keeps the data for the next file.

    Raises UsageError for a file that does not fit, and where no task is known.
    """
    facts = {} if path.suffix == ".csv" else header(path)
    for key, given in (("task", task), ("seed", seed)):
        if given is not None and facts.get(key, str(given)) != str(given):
            raise UsageError(f"{path}: its header says {key} {facts[key]}, --{key} says {given}")
    name = task or facts.get("task")
    if name is None:
        raise UsageError(f"{path}: of which task? Give --task")
    if not re.fullmatch(r"\d{1,18}", facts.get("seed", "0")):
        raise UsageError(f"{path}: its header says seed {facts['seed']!r:.40}: want a whole number")
    draw = _checked_seed(int(facts.get("seed", seed or 0)), path)
    data = (draws or Draws(None)).draw(name, draw)
    given_logits = _csv_logits(path) if path.suffix == ".csv" else _tensor_logits(path)
    logits = {
        split: checked_logits(path, split, values, data).float() for split, values in given_logits.items()
    }
    with one_thread(CPU):
        validation = logits.get("val")
        table, metrics = data.labels.summary(logits["test"], "test", validation)
        there = {} if validation is None else data.labels.summary(validation, "val", validation)[1]
    return EvaluatedNetwork(
        path.stem, path.name, data.task.name, draw, RECOMPUTED, group_rows(table), {**metrics}, {**there}
    )


def _tensor_logits(path: Path) -> dict[str, Tensor]:
    from prunebench.results.store import read_tensors

    tensors = read_tensors(path)
    known = {f"{split}_logits": split for split in SPLITS}
    for key in sorted(tensors):
        if key not in known:
            raise unknown(f"tensor in {path}", key, known)
    if "test_logits" not in tensors:
        raise UsageError(f"{path}: holds no test_logits")
    return {known[key]: values for key, values in tensors.items()}


def _csv_logits(path: Path) -> dict[str, Tensor]:
    """Logits of the test split: a line a sample, a column an output, behind a line of headings or none."""
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path}: larger than {LARGEST >> 30} GiB")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = [(number, row) for number, row in enumerate(csv.reader(stream), start=1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    if lines and not any(map(_is_number, lines[0][1])):
        lines = lines[1:]
    if not lines:
        raise UsageError(f"{path}: holds no rows of logits")
    width = len(lines[0][1])
    for number, row in lines:
        if len(row) != width:
            raise UsageError(f"{path}: line {number} has {len(row)} columns, the first has {width}")
        wrong = next((text for text in row if not _is_number(text)), None)
        if wrong is not None:
            raise UsageError(f"{path}: line {number}: {wrong!r:.40} is no number")
    return {"test": torch.tensor([[float(text) for text in row] for _, row in lines], dtype=torch.float64)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
