"""Where the weights that `--run` means are, and of which model they are."""

from __future__ import annotations

from pathlib import Path

from prunebench.errors import StoreError, UsageError
from prunebench.results.store import Store, read_record


def find_weights(run: str, results: Path) -> Path:
    """The weights that `--run` means: a safetensors file, a run's folder, or a run id in `results`."""
    given = Path(run)
    for path in (given, given / "model.safetensors", Store(results).folder(run) / "model.safetensors"):
        if path.is_file():
            return path
    raise UsageError(
        f"--run {run}: no such file, no model.safetensors in it, and no run of that id with stored weights "
        f"in {results} (`prunebench run` stores them unless told --no-keep-models)"
    )


def recorded_model(run: str, results: Path) -> str | None:
    """The model that the record beside the weights names; None without a readable record."""
    try:
        record = read_record(find_weights(run, results).with_name("record.json"))
    except StoreError:
        return None
    model = record.spec.get("model")
    return model if isinstance(model, str) else None
