"""Everything to run on a GPU machine, in one command, most valuable first.

    python bench/gpu.py --minutes 9 --out DIR

Environment and ceilings, correctness of every operation, benchmarks against eager and torch.compile, whole networks
and single layers, tuning, and the table of targets. Results lie in DIR: one JSON file a stage, tuned.json and
log.txt; the same command goes on where it stopped. Needs torch, numpy and Triton, nothing else. Without CUDA it runs
to the end on reduced shapes (kernels in Triton's interpreter if TRITON_INTERPRET=1) and says what is not measured.

To measure with tuned configurations, copy DIR/tuned.json to kernels/prunebench_kernels/tuned/<gpu>.json, where <gpu>
is its field `gpu`, and run again: the source has changed, so all but the environment's fingerprint is measured anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent, HERE.parent / "kernels", HERE):  # an installed package is not needed
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import gpu_correctness  # noqa: E402
import gpu_environment  # noqa: E402
import gpu_operations  # noqa: E402
import gpu_profile  # noqa: E402
import gpu_targets  # noqa: E402
import gpu_tuning  # noqa: E402
import torch  # noqa: E402 - after the paths
from gpu_processes import run_side_by_side, run_stage_apart  # noqa: E402
from gpu_stages import NO_CUDA, Context, Deadline, Stage, run_stage  # noqa: E402

STAGES = (
    Stage("environment", gpu_environment.items),
    Stage("correctness", gpu_correctness.items),
    Stage("benchmarks", gpu_operations.items),
    Stage("tuning", gpu_tuning.items),
    Stage("profile", gpu_profile.items),
    Stage("targets", gpu_targets.items, kept=False),
)
SIDE_BY_SIDE = frozenset({"correctness"})
WARMED = frozenset({"benchmarks", "tuning", "profile"})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="bench/gpu.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="wall-clock time to use (default 9)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--only", choices=names, nargs="+", help="only these stages (targets are always renewed)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier results of the chosen stages")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is one")
    parser.add_argument("--no-compile", action="store_true", help="leave out the baselines of torch.compile")
    parser.add_argument("--in-process", action="store_true", help="do not give each stage its own process")
    # For the processes of single stages and items:
    parser.add_argument("--session", help=argparse.SUPPRESS)
    parser.add_argument("--item", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run(stage: Stage, context: Context, *, apart: bool) -> None:
    """Run a stage here or, `apart`, in processes of its own."""
    if not apart:
        run_stage(stage, context)
        return
    if stage.name in SIDE_BY_SIDE:
        run_side_by_side(stage, context)
    elif stage.name in WARMED:
        run_side_by_side(stage, context, discard=True)
    run_stage_apart(stage, context)


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Run the stages. Exit code 1 if an item failed."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    context = Context(
        device=torch.device(kind),
        out=options.out,
        deadline=Deadline(options.minutes * 60, clock),
        session=options.session or uuid.uuid4().hex[:8],
        compiles=not options.no_compile,
        only_item=options.item,
    )
    context.fingerprint = gpu_environment.fingerprint(context.device)
    alone = options.session is not None
    chosen = [stage for stage in STAGES if not options.only or stage.name in options.only]
    if not alone:
        context.log(
            f"session {context.session} on {context.fingerprint['device']}, {options.minutes:g} minutes"
        )
        if not context.cuda:
            context.log(f"no CUDA device: reduced shapes on the CPU; GPU figures are {NO_CUDA!r}")
    if options.fresh:
        for stage in chosen:
            stage.path(context.out).unlink(missing_ok=True)
    for stage in chosen:
        if stage.kept:
            run(stage, context, apart=context.cuda and not options.in_process)
        if stage.name == "tuning" and gpu_tuning.write_table(context):
            context.log("tuned.json: the configurations measured so far")
    if alone:
        return 0
    run_stage(STAGES[-1], context)
    print(gpu_targets.table(context.out))
    return int(bool(failures(context.out)))


def failures(out: Path) -> list[str]:
    """`stage: item` of every failed item on disk."""
    found = []
    for stage in STAGES:
        path = stage.path(out)
        items = json.loads(path.read_text())["items"] if path.exists() else {}
        found += [f"{stage.name}: {name}" for name, item in items.items() if item["status"] == "failed"]
    return found


if __name__ == "__main__":
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    sys.exit(main())
