"""Where the weights that `--run` means are, and of which model they are."""

from __future__ import annotations

from pathlib import Path

from prunebench.errors import StoreError, UsageError
from prunebench.results.store import open_results, read_record


def find_weights(run: str, results: Path) -> Path:
    """The weights that `--run` means: a safetensors file, a run's folder, or a run id in `results`."""
    given = Path(run)
    for path in (given, given / "model.safetensors", _stored(run, results)):
        if path is not None and path.is_file():
            return path
    raise UsageError(
        f"--run {run}: no such file, no model.safetensors in it, and no run of that id with stored weights "
        f"in {results} (`prunebench run` stores them unless told --no-keep-models)"
    )


def _stored(run: str, results: Path) -> Path | None:
    try:
        store = open_results(results)
        folder = store.folder(run) / "model.safetensors"
        return folder if folder.is_file() else store.find_tensors(store.read(run), "model")
    except StoreError:
        return None


def recorded_model(run: str, results: Path) -> str | None:
    """The model that the record beside the weights names; None without a readable record."""
    try:
        beside = find_weights(run, results).with_name("record.json")
        record = read_record(beside) if beside.is_file() else open_results(results).read(run)
    except StoreError:
        return None
    model = record.spec.get("model")
    return model if isinstance(model, str) else None
