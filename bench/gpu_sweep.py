"""Leaderboards at full size on a GPU, in one command: time-boxed, most valuable cells first, resumable.

    python bench/gpu_sweep.py --minutes 18 --data-root DIR --results DIR --back DIR

Trains the chapters of PLAN in their order, many cells at once on one GPU, until the time is over; every minute the
finished runs are packed into `--back` (at most 8 files of 16 MiB; `bench/pack.py collect` unpacks them). The same
command goes on where it stopped. A chapter whose data are not there yet is put off until they are. Needs torch,
torchvision, numpy, scipy, Pillow, pydantic, filelock and safetensors; the packages of `bench/pack.py` lie in `site`
beside the source. `--rehearse` is the same on a CPU, with a few training steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

HERE = Path(__file__).resolve().parent
PATHS = [str(path) for path in (HERE.parent, HERE.parent / "kernels", HERE, HERE.parent.parent / "site")]
sys.path[:0] = [path for path in PATHS if path not in sys.path]

import pack  # noqa: E402 - after the paths

if TYPE_CHECKING:
    from prunebench.cells import Cell, Workplace
    from prunebench.launch import LocalLauncher

CHEAP = (
    *("dense", "magnitude", "dcwp", "dcwp-native", "gmp-pt", "lff", "jtt"),
    *("magnitude-uniform", "magnitude-erk", "random-layerwise", "random"),
)
"""Methods that start from the dense model, or share their stages between sparsities: 1,000 steps a cell."""
CROWDED = "timed beside other runs"
GRACE_SECONDS = 5.0
PACK_SECONDS = 60.0


@dataclass(frozen=True)
class Chapter:
    """A part of a suite (empty lists: all of it), and how many of its cells run at once on a GPU.

    Small networks wait for their own launches, so many share the GPU; two ResNets keep it busy.
    """

    suite: str
    workers: int
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: str | None = None


MNIST, CIFAR = "colored-mnist-full", "corrupted-cifar10"
PLAN = (
    Chapter(MNIST, 14, ("colored-mnist@1pct",), CHEAP),
    Chapter(CIFAR, 2, ("corrupted-cifar10@1pct",), ("dense", "magnitude", "dcwp"), (0.5, 0.9, 0.98)),
    Chapter(MNIST, 14, (), CHEAP),
    Chapter(CIFAR, 2, ("corrupted-cifar10@1pct",), CHEAP),
    Chapter(MNIST, 14, ("colored-mnist@1pct",)),
    Chapter(CIFAR, 2, (), ("dense", "magnitude", "dcwp"), (0.9,)),
    Chapter(MNIST, 14),
    Chapter(CIFAR, 2, (), CHEAP),
    Chapter(CIFAR, 2),
)

_SHORT: dict[str, Any] = {"steps": 6, "finetune_steps": 3, "batch_size": 32}
_SHORT_MASKS = {"dcwp": {"mining_steps": 4, "mask_steps": 4}}
REHEARSAL = tuple(
    Chapter(
        chapter.suite, 2, (f"{task}@1pct",), ("dense", "magnitude", "dcwp"), (0.9,), (0,),
        recipe=_SHORT, params=_SHORT_MASKS, model="convnet-small",
    )
    for chapter, task in ((PLAN[0], "colored-mnist"), (PLAN[1], "corrupted-cifar10"))
)  # fmt: skip


# --- inside: the cells -------------------------------------------------------------------------------------


def cells_of(chapter: Chapter, data_root: Path) -> list[Cell]:
    """The cells of a chapter. Raises DataError where its data are not there."""
    import dataclasses

    from prunebench.cells import expand
    from prunebench.suite import load_suite

    suite = load_suite(chapter.suite).narrowed(
        tasks=chapter.tasks, methods=chapter.methods, sparsities=chapter.sparsities, seeds=chapter.seeds
    )
    params = {name: {**suite.params.get(name, {}), **values} for name, values in chapter.params.items()}
    suite = dataclasses.replace(
        suite,
        model=chapter.model or suite.model,
        recipe={**suite.recipe, **chapter.recipe},
        params={**suite.params, **params},
    )
    return expand(suite, data_root)


def next_chapter(
    chapters: list[Chapter], place: Workplace, report: Callable[[str], None]
) -> tuple[Chapter, list[Cell]] | None:
    """Take the first chapter with open cells whose data are there off the list, with these cells."""
    from prunebench.cells import plan
    from prunebench.errors import DataError
    from prunebench.store import Store

    for chapter in list(chapters):
        assert place.data_root is not None
        try:
            open_cells = plan(cells_of(chapter, place.data_root), Store(place.out))
        except DataError as error:
            report(f"{chapter.suite} {' '.join(chapter.tasks)}: put off: {error}")
            continue
        chapters.remove(chapter)
        if open_cells:
            return chapter, open_cells
    return None


class Tally:
    """What has been done so far, in `sweep.json` and `log.txt` of the results folder."""

    def __init__(self, out: Path, deadline: float, clock: Callable[[], float]) -> None:
        self.out, self.deadline, self.clock = out, deadline, clock
        self.done: Counter[str] = Counter()
        self.begun: list[str] = []

    def remaining(self) -> float:
        return self.deadline - self.clock()

    def report(self, line: str) -> None:
        stamped = f"[{self.remaining():6.0f} s left] {line}"
        print(stamped, flush=True)
        with (self.out / "log.txt").open("a") as file:
            file.write(stamped + "\n")

    def count(self, label: str, status: str, reason: str | None) -> None:
        self.done[status] += 1
        self.report(f"{label}: {status}" + (f": {reason}" if reason else ""))
        self.write(finished=False)

    def write(self, *, finished: bool, put_off: Iterable[Chapter] = ()) -> None:
        left = [f"{chapter.suite} {' '.join(chapter.tasks)}".strip() for chapter in put_off]
        values = {"done": dict(self.done), "chapters": self.begun, "put_off": left, "finished": finished}
        temporary = self.out / ".sweep.json.part"
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        temporary.replace(self.out / "sweep.json")


Launch = Callable[[int], "LocalLauncher"]


def run_chapters(chapters: Sequence[Chapter], place: Workplace, tally: Tally, launch: Launch) -> None:
    """Run chapter after chapter until all are done or the time is over; cells under way are then given up."""
    from prunebench.store import Store

    Store(place.out).prepare()
    waiting = list(chapters)
    while tally.remaining() > 0 and (found := next_chapter(waiting, place, tally.report)) is not None:
        chapter, cells = found
        tally.begun.append(f"{chapter.suite} {' '.join(chapter.tasks)}".strip())
        tally.report(f"{tally.begun[-1]}: {len(cells)} cells, {chapter.workers} at a time")
        events = launch(chapter.workers).map(cells, place)
        try:
            for event in events:
                if event.kind == "done":
                    values = event.values
                    tally.count(event.cell.spec.label, values["status"], values["reason"])
                if event.kind == "fatal":
                    tally.report(f"stopped: {event.values['reason']}")
                    return
                if tally.remaining() <= 0:
                    break
        finally:
            events.close()  # type: ignore[attr-defined]
    over = tally.remaining() <= 0
    tally.report("the time is over; the same command goes on" if over else "every chapter with data is done")
    tally.write(finished=not over and not waiting, put_off=waiting)


def train(options: argparse.Namespace) -> int:
    """The process that trains: the chapters, until `--minutes` are over."""
    import torch

    from prunebench.cells import Workplace
    from prunebench.launch import LocalLauncher

    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpus = torch.cuda.device_count() if kind == "cuda" else 0
    options.results.mkdir(parents=True, exist_ok=True)
    place = Workplace(options.results, options.data_root, kind, keep_models=False, crowded=CROWDED)
    tally = Tally(options.results, time.monotonic() + 60 * options.minutes, time.monotonic)
    chapters = REHEARSAL if options.rehearse else PLAN
    most = options.workers or (64 if gpus else 2)
    run_chapters(chapters, place, tally, lambda workers: LocalLauncher(min(workers, most), gpus=gpus))
    return 0


# --- outside: the time box ---------------------------------------------------------------------------------


class Process(Protocol):
    """What the time box needs of a process."""

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


def watch(
    process: Process, seconds: float, pack_up: Callable[[], None], clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> int:  # fmt: skip
    """Wait for a process, packing every minute; end it GRACE_SECONDS after its time. Its exit code, 0 if ended.

    The workers of a training process end when it does.
    """
    end, next_pack = clock() + seconds + GRACE_SECONDS, clock() + PACK_SECONDS
    code = process.poll()
    while code is None and clock() < end:
        sleep(0.5)
        if clock() >= next_pack:
            pack_up()
            next_pack = clock() + PACK_SECONDS
        code = process.poll()
    if code is None:
        process.kill()
        process.wait()
    pack_up()
    return code or 0


def train_apart(arguments: Sequence[str], options: argparse.Namespace) -> int:
    """Train in another process, within the time box, and pack what is finished."""

    def pack_up() -> None:
        left_out = pack.pack_runs(options.results, options.back, pack.Limits())
        print(f"packed {pack.describe(options.back)}; logits of {left_out} runs left out", flush=True)

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*PATHS, *_inherited()])}
    environment.setdefault("PRUNEBENCH_CACHE", str((options.results / "cache").resolve()))
    command = [sys.executable, str(HERE / "gpu_sweep.py"), *arguments, "--inside"]
    options.results.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command, env=environment)
    try:
        return watch(process, 60 * options.minutes, pack_up, time.monotonic, time.sleep)
    finally:
        if process.poll() is None:  # interrupted
            process.kill()


def _inherited() -> Iterator[str]:
    if os.environ.get("PYTHONPATH"):
        yield os.environ["PYTHONPATH"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and pack. Exit code 0 also where the time was over before the cells were."""
    parser = argparse.ArgumentParser(prog="bench/gpu_sweep.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=18.0, help="wall-clock time to use (default 18)")
    parser.add_argument("--data-root", type=Path, required=True, help="where data sets lie")
    parser.add_argument(
        "--results", type=Path, required=True, help="results folder; goes on with what it holds"
    )
    parser.add_argument("--back", type=Path, required=True, help="folder for the packed results")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    parser.add_argument(
        "--workers", type=int, help="cells at once, at most (default: as planned, 2 on a CPU)"
    )
    parser.add_argument("--rehearse", action="store_true", help="a few steps of a few cells")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    return train(options) if options.inside else train_apart(given, options)


if __name__ == "__main__":
    sys.exit(main())
