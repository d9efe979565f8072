"""The page about a trip, from its raw results alone.

python bench/gpu/report.py results.tar.gz --out docs/gpu.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu import targets
from gpu.archive import read

WAYS = {"called": "as called", "graph": "CUDA graph", "kernels": "kernels alone, L2 flushed"}


def page(results: Mapping[str, Any]) -> str:
    """Markdown: the machines, the targets, and every figure with its 20th and 80th percentile."""
    parts = [
        "# Measurements on a GPU",
        "Made by `bench/gpu/report.py` from the raw results of `bench/gpu/trip.py`. Medians with 20th and 80th "
        'percentile; candidates of one item were timed in turns, in one process. "Of the limit" is the time that the '
        "bytes or the multiplications of the operation need at the ceilings measured in the same run. What was not "
        "measured is said so, and no target counts as met that was not measured.",
        *(machine(name, run) for name, run in results["runs"].items()),
        "## Targets",
        targets.table(results),
        *(item(name, record, results) for name, record in results["items"].items()),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def machine(name: str, run: Mapping[str, Any]) -> str:
    """One run: where, which versions and source, and its ceilings."""
    if "machine" not in run:
        return ""
    facts, ceilings = run["machine"], run["ceilings"]
    commit = facts["commit"] or "of no known commit"
    changed = ", with changes" if facts["changed_files"] else ""
    kernels = {what: len(names) for what, names in run.get("kernels", {}).items()}
    lines = [
        f"## Run {name}: {facts['device']}"
        + ("" if "gpu" in facts else " (no GPU: reduced shapes, no figure counts)"),
        f"- torch {facts['torch']}, Triton {facts['triton']}, CUDA {facts['cuda']}, cuDNN {facts['cudnn']}, "
        f"Python {facts['python']}",
        f"- source {commit}{changed} (hash {facts['source']})",
        f"- copy {ceilings['copy_gb_per_s']:.0f} GB/s; products "
        + ", ".join(
            f"{unit} {ceilings[f'{unit}_tflop_per_s']:.0f} TFLOP/s" for unit in ("bf16", "tf32", "fp32")
        ),
        f"- our kernels: {', '.join(f'{count} {what}' for what, count in kernels.items()) or 'none ran'}",
    ]
    if "gpu" in facts:
        smi = ", ".join(f"{field} {value}" for field, value in facts["gpu"]["nvidia_smi"].items())
        lines.append(f"- {facts['gpu']['multiprocessors']} multiprocessors; {smi}")
    return "\n".join([lines[0], "", *lines[1:]])


def item(name: str, record: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """One item: its rows, or what was checked, or why it failed."""
    lines = [f"### {name}", ""]
    if record["status"] != "ok":
        lines += [f"{record['status']}: {(record.get('reason') or '').splitlines()[-1:] or ['']}", ""]
    result = record.get("result") or {}
    if "checks" in result:
        errors = [f"{what} {error:.1e}" for what, error in result["largest_relative_error"].items()]
        lines += [
            f"{result['checks']} checks, {len(result['wrong'])} wrong. Largest relative errors: {', '.join(errors)}."
        ]
        lines += [f"- {wrong}" for wrong in result["wrong"]]
    for part in _comparisons(result):
        lines += _rows(part, targets.floor_ms(part, results["runs"][record["run"]]["ceilings"]))
    return "\n".join(lines)


def _comparisons(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The result itself, and results inside it (a layer at several sparsities), that hold rows."""
    found = [result] if result.get("rows") else []
    for name, value in result.items():
        if isinstance(value, Mapping) and value.get("rows"):
            found.append({**value, "title": name})
    return found


def _rows(part: Mapping[str, Any], floor: float) -> list[str]:
    lines: list[str] = [f"{part['title']}", ""] if "title" in part else []
    table: list[Sequence[str]] = [
        ("how", "candidate", "median ms", "p20 to p80", "of the limit"),
        ("---",) * 5,
    ]
    for row in part["rows"]:
        share = f"{floor / row['p50_ms']:.2f}" if floor else ""
        spread = f"{row['p20_ms']:.4f} to {row['p80_ms']:.4f}"
        table.append((WAYS[row["how"]], row["candidate"], f"{row['p50_ms']:.4f}", spread, share))
    lines += [f"| {' | '.join(cells)} |" for cells in table] + [""]
    lines += [f"- not timed: {name}: {why}" for name, why in part.get("refused", {}).items()]
    return [*lines, ""]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, help="results.tar.gz or results.json")
    parser.add_argument("--out", type=Path, help="the page (default: print it)")
    options = parser.parse_args(arguments)
    text = page(read(options.results))
    if options.out is None:
        print(text)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
