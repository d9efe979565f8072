"""The cost of keeping a method apart: a suite with one method as a user's file, against the same method built in.

    uv run python bench/separation.py [--suite quick] [--method magnitude] [--seed 0] [--page docs/withholding.md]

Both ways run in turns, each in a fresh command, beside the other methods of the suite, or those of `--beside`. Counted
are wall time and the processor time of the command and all its processes, by the kernel's account. Latencies, which a
neighbour on the machine stretches, and the board are left out. Both ways must give the same bits. With `--page` the
figures go between the markers of that page, after every round.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from pages import write_part

from prunebench.api import execute_plan, make_plan
from prunebench.report.markdown import pipe_table
from prunebench.results.store import Store
from prunebench.suites import load_suite

PART = "separation"
OWN = '''"""A built-in method as a user's file."""

from dataclasses import replace

from prunebench.methods.discovery import resolve_method

mine = replace(resolve_method("{name}"), name="mine")
'''
WAYS = ("built in", "a file")


def run_suite(options: argparse.Namespace, out: Path, own: str) -> None:
    """Run the suite with `own`, a name or a file, in place of the method; without latencies."""
    suite = load_suite(options.suite)
    if options.beside:
        suite = suite.narrowed(methods=["dense", options.method, *options.beside])
    methods = tuple(own if name == options.method else name for name in suite.methods)
    params = {
        "mine" if name == options.method and own != name else name: values
        for name, values in suite.params.items()
    }
    suite = dataclasses.replace(suite.narrowed(methods=methods, seeds=options.seed), params=params)
    plan = make_plan(suite, out=out)
    context = dataclasses.replace(plan.context, latency_skipped="a benchmark")
    execute_plan(dataclasses.replace(plan, context=context), workers=options.workers)


def measured(arguments: Sequence[str], out: Path, own: str) -> tuple[float, float]:
    """Seconds of wall and of processor time of the command that runs the suite once."""
    command = [sys.executable, __file__, *arguments, "--once", str(out), own]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bits_of(out: Path, method: str) -> dict[tuple[str, float | None, int], str | None]:
    """Digests of the outputs of every run; the method is called `mine` whatever its name is."""
    found = {}
    for record in Store(out).records()[0]:
        spec = record.run_spec
        name = "mine" if spec.method == method else spec.method
        found[name, spec.sparsity, spec.seed] = record.outputs_sha256
    return found


def compare(options: argparse.Namespace, arguments: Sequence[str]) -> Iterator[str]:
    """The text with its table, after every round. Raises SystemExit where the two ways give different bits."""
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder, bits = Path(name), []
            (folder / "mine.py").write_text(OWN.format(name=options.method))
            for way, own in zip(WAYS, (options.method, str(folder / "mine.py"))):
                taken[way].append(measured(arguments, folder / way, own))
                bits.append(bits_of(folder / way, options.method))
            if bits[0] != bits[1] or None in bits[0].values():
                raise SystemExit(f"the two ways differ: {bits}")
        yield describe(options, [method for method, _, _ in bits[0]], taken)


def describe(
    options: argparse.Namespace, runs: list[str], taken: dict[str, list[tuple[float, float]]]
) -> str:
    """What was run, and the table of medians."""
    rows = []
    for place, kind in enumerate(("wall time", "processor time")):
        here, away = (median(times[place] for times in taken[way]) for way in WAYS)
        ratios = sorted(two[place] / one[place] for one, two in zip(*taken.values()))
        rows.append(
            [kind, f"{here:.1f}", f"{away:.1f}", f"{away / here:.3f}", f"{ratios[0]:.3f} to {ratios[-1]:.3f}"]
        )
    seeds = "all seeds" if not options.seed else "seeds " + ", ".join(map(str, options.seed))
    others = sorted({name for name in runs if name != "mine"})
    head = ("median", "built in, s", "a file, s", "ratio", "ratios of pairs")
    return (
        f"`{options.suite}`, {seeds}: {runs.count('mine')} runs of `{options.method}` among {len(runs)}, the others of "
        f"{', '.join(others)}; {len(taken[WAYS[0]])} times each way, on {os.cpu_count()} cores. "
        f"Both ways gave the same bits.\n\n{pipe_table(head, rows)}"
    )


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--method", default="magnitude", help="the one that is a file")
    parser.add_argument(
        "--beside", action="append", default=[], help="a method that is run too; all if none is given"
    )
    parser.add_argument("--seed", type=int, action="append", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--page", type=Path)
    parser.add_argument("--once", nargs=2, metavar=("OUT", "OWN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        run_suite(options, Path(options.once[0]), options.once[1])
        return
    for text in compare(options, sys.argv[1:]):
        print(text, end="\n\n", flush=True)
        if options.page is not None:
            write_part(options.page, PART, text)


if __name__ == "__main__":
    main()
