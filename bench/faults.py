"""Faults by the thousand: processes killed, disks full, methods that misbehave, inputs damaged; and what came of it.

    uv run python bench/faults.py [PART ...] [--count N] [--seed S] [--folder FOLDER] [--page docs/scale.md]

Each trial has a number, from which its faults are drawn: the same command goes on after the last one, and `--count`
says up to which. Other seeds are other trials, and may run at the same time. The tally of all seeds rests in FOLDER and
goes between the markers of the page. The status is 1 if any trial went wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import fault_processes
import fault_resources
from pages import write_part

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
PART = "faults"
KEPT_PROBLEMS = 20

Trial = Callable[[int, int, Path], tuple[int, list[str]]]
"""Given the seed, the trial's number and a folder of its own: how many faults it held, and what went wrong."""


@dataclass(frozen=True)
class Part:
    """A kind of fault: what is done, what must hold, how many trials are wanted and how many make a short run."""

    title: str
    holds: str
    trial: Trial
    wanted: int
    short: int


def damaged_inputs(seed: int, number: int, _: Path) -> tuple[int, list[str]]:
    """A hundred damaged inputs of one kind."""
    from fault_inputs import KINDS, try_many

    kinds = list(KINDS)
    start = seed * 1_000_000 + number // len(kinds) * 100
    kind = kinds[number % len(kinds)]
    found = try_many(kind, range(start, start + 100))
    wrong = {outcome: seeds for outcome, seeds in found.items() if outcome not in ("value", "named error")}
    return 100, [f"{kind} {seeds[0]}: {outcome}" for outcome, seeds in wrong.items()]


PARTS: Mapping[str, Part] = {
    "inputs": Part(
        "damaged inputs: records, JSONL, context, badges, safetensors, TOML, PNG, JPEG, idx, CIFAR-10, CSV",
        "the value, or an error that names the file, within 10 s and 1 GiB",
        damaged_inputs, 104, 13,
    ),
    "writers": Part(
        "instant runs by two and by four processes on one folder",
        "each run once, no lock left",
        fault_processes.writers, 20, 2,
    ),
    "killed writers": Part(
        "kill -9 of writers at random moments",
        "no run lost or written twice, every record whole and as undisturbed, no lock left",
        fault_processes.killed_writers, 100, 1,
    ),
    "killed sweeps": Part(
        "kill -9 of worker, driver or both in real sweeps",
        "the same command completes: no run lost, numbers as undisturbed, no process and no lock left",
        fault_processes.killed_sweeps, 300, 0,  # each strikes several times: a thousand kills and more
    ),
    "resources": Part(
        "writing with a full disk, a read-only one, a quota, no descriptors",
        "an error that names the path; earlier records intact; then the same write succeeds",
        fault_resources.scarce, 40, 4,
    ),
    "methods": Part(
        "methods that hang, print without end, fork, ignore SIGTERM, leave children, return nan, ask for a terabyte",
        "that run fails with its reason, the others go on, no process is left",
        fault_resources.bad_methods, 1, 0,
    ),
    "surroundings": Part(
        "runs under another locale, time zone, hash seed, clock, home, path, symlink",
        "numbers and logits equal",
        fault_resources.surroundings, len(fault_resources.SURROUNDINGS), 0,
    ),
}  # fmt: skip


def run_part(name: str, seed: int, count: int, folder: Path) -> dict[str, object]:
    """Do the trials of a part up to `count` that have not been done; gives its tally."""
    path = folder / f"{name.replace(' ', '-')}-{seed}.json"
    tally = json.loads(path.read_text()) if path.is_file() else {"trials": 0, "faults": 0, "problems": []}
    while tally["trials"] < count:
        faults, problems = PARTS[name].trial(seed, tally["trials"], folder)
        tally["problems"] = [*tally["problems"], *problems][:KEPT_PROBLEMS]
        tally["wrong"] = tally.get("wrong", 0) + bool(problems)
        tally["trials"] += 1
        tally["faults"] += faults
        path.write_text(json.dumps(tally, indent=1))
        for problem in problems:
            print(f"{name}, trial {tally['trials'] - 1}: {problem}", flush=True)
    return tally


def read_tally(name: str, folder: Path) -> dict[str, int]:
    """A part's counts over all seeds that were begun in the folder, by several processes at a time if you like."""
    paths = folder.glob(f"{name.replace(' ', '-')}-[0-9]*.json")
    found = [json.loads(path.read_text()) for path in paths]
    return {what: sum(tally.get(what, 0) for tally in found) for what in ("trials", "faults", "wrong")}


def tally_markdown(tallies: Mapping[str, Mapping[str, object]]) -> str:
    """A row a part: what was done how often, what must hold, and how often it did not."""
    from prunebench.report.markdown import markdown_table
    from prunebench.report.table import Column, simple_table, text_column

    columns = (
        text_column("title", "Fault", lead=True, value=lambda row: PARTS[row[0]].title),
        text_column("holds", "What must hold", value=lambda row: PARTS[row[0]].holds),
        Column("trials", "Trials", value=lambda row: row[1]["trials"], format="{:,}".format),
        Column("faults", "Faults", value=lambda row: row[1]["faults"], format="{:,}".format),
        Column("wrong", "Trials gone wrong", value=lambda row: row[1].get("wrong", 0)),
    )
    return markdown_table(simple_table(columns, [item for item in tallies.items() if item[1]["trials"]]))


def main() -> None:
    """Do what is missing, print the tally, write the page's part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--count", type=int, help="trials of each part; by default what the page asks for")
    parser.add_argument("--short", action="store_true", help="few trials, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "prunebench-faults")
    parser.add_argument("--page", type=Path, help="the page whose marked part is replaced")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tallies = {}
    for name, part in PARTS.items():
        asked = not options.parts or name in options.parts
        count = (part.short if options.short else options.count or part.wanted) if asked else 0
        run_part(name, options.seed, count, options.folder)
        tallies[name] = read_tally(name, options.folder)
    table = tally_markdown(tallies)
    print(table)
    if options.page:
        write_part(options.page, PART, table)
    sys.exit(any(tally.get("wrong") for tally in tallies.values()))


if __name__ == "__main__":
    main()
