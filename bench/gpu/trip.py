"""Everything to measure on a GPU machine, in one command, most valuable first.

    python3 bench/gpu/trip.py --minutes 8.5 --out DIR

Runs in the plain tree: torch, numpy and Triton suffice, no network, nothing is installed. The items run in one
process (nothing else runs beside what is timed); this one watches it, ends it when an item hangs, and begins another
after a crash. DIR gets results.tar.gz (written anew after every item), table.md, log.txt and compiled.bin. The same
command goes on where the last one stopped; `--resume FILE` goes on from an archive that lies elsewhere.

    python bench/gpu/trip.py --rehearse [--factor 0.4]          # which items come home, under a fake clock
    python bench/gpu/trip.py --device cpu --out DIR             # all items on reduced shapes, in torch
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "kernels", ROOT / "bench"):  # an installed package is not needed
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from gpu import archive, cache, schedule, targets  # noqa: E402 - after the paths

PROGRAM, CACHE, COMPILED = Path(__file__).resolve(), ROOT / "bench" / "gpu" / "cache.tar.xz", "compiled.bin"
COMPILED_LIMIT = 16 * 2**20
BROKEN = 75
"""Exit code of a worker whose GPU no longer answers: another one goes on (EX_TEMPFAIL)."""
LEAST_SECONDS = 20.0
"""What a worker needs at least: it starts, measures the ceilings and an item."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/gpu/trip.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.5, help="wall-clock time to use (default 8.5)")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--resume", type=Path, help="results.tar.gz of an earlier command")
    parser.add_argument("--only", nargs="+", metavar="GLOB", default=["*"], help="only items of these names")
    parser.add_argument("--again", nargs="+", metavar="GLOB", default=[], help="measure these anew if done")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    parser.add_argument("--no-compile", action="store_true", help="leave out the baselines of torch.compile")
    parser.add_argument("--cache", type=Path, default=CACHE, help="Triton cache that bench/gpu/cache.py made")
    parser.add_argument("--rehearse", action="store_true", help="only say which items come home")
    parser.add_argument(
        "--factor", type=float, default=1.0, help="rehearsal: items take so much of their time"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the run's name: this is the measuring process
    parser.add_argument("--part", help=argparse.SUPPRESS)  # a part of an item that runs in several processes
    options = parser.parse_args(arguments)
    if options.out is None and not (options.rehearse or options.part):
        parser.error("--out: the folder for the results is needed")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if an item failed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    if options.rehearse:
        print(rehearsal(options.minutes, options.factor))
        return 0
    if options.part:
        from gpu.items_checks import part

        print(json.dumps(part(options.part, context_of(options)), default=str))
        return 0
    return work(options) if options.worker else supervise(options, given)


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


# --- the process that watches ----------------------------------------------------------------------------------


def supervise(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Workers, one after the other, until the items are done or the time is over."""
    deadline = schedule.Deadline(options.minutes * 60)
    results, log = archive.Archive(options.out, options.resume), schedule.Log(options.out, deadline)
    for name in [name for name in results.results["items"] if matches(name, options.again)]:
        del results.results["items"][name]
    results.save()
    before = options.resume and options.resume.with_name(COMPILED)
    if before and before.is_file() and not (options.out / COMPILED).exists():
        shutil.copyfile(before, options.out / COMPILED)
    with tempfile.TemporaryDirectory(prefix="prunebench-trip-") as caches:
        environment = {**os.environ, **environment_in(Path(caches))}
        if options.cache.is_file():
            count, refused = cache.unpack(options.cache, Path(environment["TRITON_CACHE_DIR"]))
            log(f"{options.cache.name}: {count} compiled kernels {refused}")
        run_id = uuid.uuid4().hex[:8]
        while deadline.left > LEAST_SECONDS:
            command = [
                sys.executable,
                str(PROGRAM),
                *given,
                f"--minutes={deadline.left / 60}",
                "--worker",
                run_id,
            ]
            code, item = watch(command, environment, deadline, log)
            if code != 0:
                log(f"the measuring process ended with code {code} in {item or 'its start'}")
            results = archive.Archive(options.out)
            if results.item(item or "").get("status") == "running":
                reason = f"its process ended with code {code}" if code else "the time was over"
                results.put(item or "", {**results.item(item or ""), "status": "failed", "reason": reason})
            if code == 0 or item is None:
                break
    results = archive.Archive(options.out)
    text = targets.table(results.results)
    archive.replace(options.out / "table.md", text.encode())
    print(text)
    failed = {name: item for name, item in results.results["items"].items() if item["status"] != "ok"}
    for name, item in failed.items():
        log(f"failed: {name}: {item['reason'].splitlines()[-1]}")
    results.save()
    return int(bool(failed))


def environment_in(caches: Path) -> dict[str, str]:
    """Caches of their own: nothing that this machine chose or compiled earlier decides."""
    folders = {
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "PRUNEBENCH_CACHE": "choices",
    }
    made = {name: str(caches / folder) for name, folder in folders.items()}
    return made | {"CUDA_MODULE_LOADING": "LAZY", "PYTHONUNBUFFERED": "1"}


def watch(
    command: Sequence[str], environment: dict[str, str], deadline: schedule.Deadline, log: schedule.Log
) -> tuple[int, str | None]:
    """Run the worker, pass its lines on, end it at the deadline or when an item takes far too long.

    A line `@SECONDS ITEM` says what it begins and how long that may take. Its exit code (0 also at the deadline),
    and the item that it began last.
    """
    item, end, pending = None, min(deadline.left, 120.0) + time.monotonic(), b""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        while True:
            if select.select([process.stdout], [], [], 0.5)[0]:
                chunk = os.read(process.stdout.fileno(), 65536)
                *lines, pending = (pending + chunk).split(b"\n")
                for line in (part.decode(errors="replace") for part in lines):
                    if line.startswith("@"):
                        limit, _, begun = line[1:].partition(" ")
                        end, item = time.monotonic() + float(limit), begun or item
                    else:
                        print(line, flush=True)
                if not chunk:
                    return process.wait(), item
            if deadline.left <= 0 or time.monotonic() > end:
                os.killpg(process.pid, 9)
                log("ended at the deadline" if deadline.left <= 0 else f"{item}: takes too long, ended")
                return (0 if deadline.left <= 0 else -9), item


# --- the process that measures ---------------------------------------------------------------------------------


def context_of(options: argparse.Namespace) -> schedule.Context:
    import torch

    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return schedule.Context(torch.device(kind), is_full=kind == "cuda", compiles=not options.no_compile)


def work(options: argparse.Namespace) -> int:
    """Measure until the time is over: the machine and its ceilings, then the items."""
    import torch

    from gpu import machine
    from gpu.items import all_items

    results = archive.Archive(options.out)
    log, context = schedule.Log(options.out, schedule.Deadline(options.minutes * 60)), context_of(options)
    compiled = options.out / COMPILED
    if context.compiles and compiled.is_file():
        torch.compiler.load_cache_artifacts(compiled.read_bytes())
    kernels = count_compiled()
    run = results.results["runs"].setdefault(options.worker, {})
    if not run:
        run |= {"machine": machine.describe(context), "ceilings": machine.ceilings(context)}
        log(f"{run['machine']['device']}: copy {run['ceilings']['copy_gb_per_s']:.0f} GB/s")

    def before(item: schedule.Item) -> None:
        print(f"@{item.limit:.0f} {item.name}", flush=True)

    def after(item: schedule.Item) -> bool:
        print("@60", flush=True)
        run["kernels"] = {what: sorted(names) for what, names in kernels.items()}
        chosen = Path(os.environ["PRUNEBENCH_CACHE"]).glob("choices-*.json")
        results.beside |= {path.name: path for path in chosen}
        results.save()
        archive.replace(options.out / "table.md", targets.table(results.results).encode())
        with contextlib.suppress(Exception):  # the next trip compiles again then
            made = torch.compiler.save_cache_artifacts() if context.compiles else None
            if made is not None and len(made[0]) <= COMPILED_LIMIT:
                archive.replace(compiled, made[0])
        return answers(context)

    items = [item for item in all_items() if matches(item.name, options.only)]
    schedule.run_items(items, context, results, log, run_id=options.worker, before=before, after=after)
    log("our Triton kernels: " + ", ".join(f"{len(names)} {what}" for what, names in kernels.items()))
    return 0 if answers(context) else BROKEN


def answers(context: schedule.Context) -> bool:
    """Whether the GPU still computes: an illegal access ends the process's context for good, and a capture that breaks
    off its random numbers."""
    import torch

    try:
        if context.on_gpu:
            torch.rand(1, device=context.device)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def count_compiled() -> dict[str, set[str]]:
    """Names of our kernels, filled while they are compiled or read from the cache; torch.compile's are not ours."""
    import triton

    found: dict[str, set[str]] = {"compiled anew": set(), "from the cache": set()}

    def listen(*, src: Any, metadata: Any, cache_hit: bool, **_: Any) -> None:
        if not src.name.startswith("triton_"):
            found["from the cache" if cache_hit else "compiled anew"].add(
                f"{src.name} {metadata['hash'][:8]}"
            )

    triton.knobs.compilation.listener = listen
    return found


# --- the rehearsal ---------------------------------------------------------------------------------------------


def rehearse(minutes: float, factor: float) -> set[str]:
    """Names of the items that end in time if each takes `factor` of what is expected: the schedule itself runs, its
    clock is not real."""
    import torch

    from gpu.items import all_items

    clock, home = schedule.FakeClock(), set()
    log = schedule.Log(None, schedule.Deadline(minutes * 60, clock))
    clock.now += schedule.START_SECONDS

    def pretend(item: schedule.Item) -> schedule.Item:
        def run(context: schedule.Context) -> dict[str, Any]:
            clock.now += item.seconds * factor
            return {}

        return replace(item, run=run, needs_gpu=False)

    def after(item: schedule.Item) -> bool:
        if log.deadline.left >= 0:
            home.add(item.name)
        return True

    with tempfile.TemporaryDirectory() as folder:
        context = schedule.Context(torch.device("cpu"), is_full=True)
        items, results = [pretend(item) for item in all_items()], archive.Archive(Path(folder))
        schedule.run_items(items, context, results, log, run_id="rehearsal", after=after)
    return home


def rehearsal(minutes: float, factor: float) -> str:
    """A line an item: whether it comes home, the seconds expected of it, its part and name."""
    from gpu.items import all_items

    home, items = rehearse(minutes, factor), all_items()
    rows = [f"{'home' if i.name in home else '-':5} {i.seconds:4g} s  {i.part:7} {i.name}" for i in items]
    wanted = [item.name for item in items if item.part == schedule.TARGET]
    count = sum(name in home for name in wanted)
    return "\n".join(
        [*rows, f"{count} of {len(wanted)} target items come home in {minutes:g} minutes at {factor:g}x"]
    )


if __name__ == "__main__":
    sys.exit(main())
