"""Runs of suites on a GPU within so many minutes, several at a time, and all that came of them in parts to carry.

    python3 bench/gpu/sweep.py SUITE.toml ... --minutes 5 --out DIR --data-root DATA [--carried FOLDER]

The runs of the first suite come first, within a suite the dense models and then seed by seed, so that what is cut off
is whole seeds. Latencies are left out: runs share the GPU. At the end every process is ended; the store is packed into
`sweep.tar.xz.NNN`, records first, then models, then outputs. `--carried` holds the parts of an earlier command, which
this one goes on from:

    cat sweep.tar.xz.* | tar -xJ -C FOLDER      # a results folder like any other

Needs no network, and of the packages that PruneBench names neither polars nor plotly.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "kernels"):  # an installed package is not needed
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

PART_BYTES = 15 * 2**20
STORE, PACKED = "store", "sweep.tar.xz"
PACKING_SECONDS = 25.0
"""Of the time given: to end the workers, read the records and pack the store."""
MARGIN_BYTES = 2**20
"""What the compressor may hold back."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("suites", nargs="+", metavar="SUITE")
    parser.add_argument(
        "--minutes", type=float, required=True, help="wall-clock time to use, packing included"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the parts")
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/prunebench-sweep"), help="folder for the store"
    )
    parser.add_argument("--carried", type=Path, help="folder with the parts of an earlier command")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--parts", type=int, default=4, help=f"of at most {PART_BYTES >> 20} MiB (default 4)")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    let_workers_import()
    store = options.work / STORE
    if options.carried is not None:
        unpack(options.carried, options.work)
    failed = run_suites(options.suites, store, options, end - PACKING_SECONDS)
    print(summary(store), flush=True)
    pack(store, options.out, options.parts)
    return int(failed > 0)


def let_workers_import() -> None:
    """Name the packages of this tree to the processes that this one starts."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def run_suites(suites: Sequence[str], store: Path, options: argparse.Namespace, end: float) -> int:
    """Run what is open of all suites, in order, until `end` of the monotonic clock; gives how many failed.

    Where results cannot be written it stops, so that what there is can be packed, and counts that as one failed.
    """
    from prunebench.api import make_plan
    from prunebench.results.store import Store
    from prunebench.runner.local import LocalLauncher

    plans = [
        make_plan(suite, out=store, data_root=options.data_root, device=options.device) for suite in suites
    ]
    Store(store).prepare()
    runs = {
        run.spec.run_id: run
        for plan in plans
        for run in sorted(plan.todo, key=lambda run: (not run.is_dense, run.spec.seed))
    }
    gpus = 1 if options.device == "cuda" else 0
    print(f"{len(runs)} runs are open, {options.workers} at a time", flush=True)
    begun, failed, done = time.monotonic(), 0, 0
    launcher = LocalLauncher(options.workers, gpus=gpus, until=end)
    with contextlib.closing(launcher.map([*runs.values()], plans[0].context)) as events:
        for event in events:
            spec, reason = event.run.spec, event.values.get("reason") or ""
            if event.kind == "fatal":
                print(f"stopped: {reason}", flush=True)
                return failed + 1
            if event.kind != "done":
                continue
            done += 1
            bad = event.values["status"] != "ok"
            failed += bad
            if bad or done % 10 == 0:
                what = f"{spec.task} {spec.method} {spec.sparsity} {spec.seed}"
                print(f"{time.monotonic() - begun:6.1f} s, {done} done: {what} {reason[:300]}", flush=True)
    if done < len(runs):
        print(f"the time is over, {len(runs) - done} runs are left", flush=True)
    return failed


def summary(store: Path) -> str:
    """A line a task, method and sparsity: finished runs, seconds of a fit, the worst reason."""
    from prunebench.results.store import Store

    groups = collections.defaultdict(list)
    for record in Store(store).records()[0]:
        groups[record.spec["task"], record.spec["sparsity"], record.spec["method"]].append(record)
    lines = []
    for (task, sparsity, method), records in sorted(groups.items(), key=str):
        fits = [record.phase_seconds["fit"] for record in records if record.status == "ok"]
        others = [record.phase_seconds for record in records if record.status == "ok"]
        rest = [sum(seconds.values()) - seconds["fit"] - seconds["data"] for seconds in others]
        said = f"{statistics.median(fits):6.1f} s + {statistics.median(rest):4.1f}" if fits else ""
        wrong = {record.reason or "" for record in records if record.status != "ok"}
        lines.append(
            f"{task} {sparsity} {method}: {len(fits)} ok {said} {' | '.join(sorted(wrong))[:300]}".rstrip()
        )
    return "\n".join(lines)


def pack(store: Path, out: Path, parts: int) -> None:
    """The store as `sweep.tar.xz` in at most so many parts; what is too much is left out, records last of all."""
    out.mkdir(parents=True, exist_ok=True)
    for earlier in out.glob(f"{PACKED}.*"):  # more parts than there are now would be read behind these
        earlier.unlink()
    files = sorted(
        path for path in store.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors")
    )
    rank = {"record.json": 0, "model.safetensors": 1, "outputs.safetensors": 2}
    files.sort(key=lambda path: rank.get(path.name, 3))
    buffer = io.BytesIO()
    left_out = 0
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=1) as archive:
        for path in files:
            if buffer.tell() + path.stat().st_size > PART_BYTES * parts - MARGIN_BYTES:
                left_out += 1
                continue
            archive.add(path, arcname=str(path.relative_to(store.parent)))
    data = buffer.getvalue()
    for number, start in enumerate(range(0, len(data), PART_BYTES)):
        (out / f"{PACKED}.{number:03d}").write_bytes(data[start : start + PART_BYTES])
    print(f"packed {len(files) - left_out} files into {len(data)} bytes; {left_out} left out", flush=True)


def unpack(parts: Path, folder: Path) -> None:
    """The store of an earlier command; files that are there already stay as they are."""
    found = sorted(parts.glob(f"{PACKED}.*"))
    if not found:
        raise SystemExit(f"--carried {parts} holds no {PACKED}.000: name the --out of an earlier command")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(
        fileobj=io.BytesIO(b"".join(path.read_bytes() for path in found)), mode="r:xz"
    ) as archive:
        for member in archive:
            if not (folder / member.name).exists():
                archive.extract(member, folder, filter="data")


if __name__ == "__main__":
    sys.exit(main())
