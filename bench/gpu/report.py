"""The page about a trip, from its raw results alone.

python bench/gpu/report.py bench/gpu/results/nvidia-h100.json --out docs/gpu.md --table docs/kernels.md
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


NOTES = {
    "b4af7a27": (
        "The source was not committed yet, and smaller changes came after it; the machine code of all kernels stayed "
        "as it was. What the later run measured anew, checks and training steps, is shown as it was then."
    ),
    "5876c0a9": (
        "The file that differs from the commit lists methods for a sweep; nothing measured here reads it. Only checks "
        "and training steps were measured in this run."
    ),
}
"""What must be known of a run and its raw results do not tell."""


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
    lines += [f"- {NOTES[name]}"] if name in NOTES else []
    return "\n".join([lines[0], "", *lines[1:]])


def item(name: str, record: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """One item: its rows, or what was checked, or why it failed."""
    lines = [f"### {name}", ""]
    if record["status"] != "ok":
        lines += [f"{record['status']}: {(record.get('reason') or ' ').splitlines()[-1]}", ""]
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


BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
STEP, NETWORK = "training step, ResNet-18, ", "inference, ResNet-18, "
SUMMARY = (
    (
        "ConvNet, 28 px, batch 256: a training step, captured",
        "training of small nets",
        "called",
        "captured step",
    ),
    (
        "the same, 8 networks in one graph, each",
        "training of small nets",
        "called",
        "captured, 8 nets together",
    ),
    ("ResNet-18, 32 px: a training step, block 90 %", f"{STEP}block 90 %", "graph", "auto, MaskedConv2d"),
    ("the same, called from Python", f"{STEP}block 90 %", "called", "auto, MaskedConv2d"),
    ("ResNet-18: inference, block 90 %, `auto`", f"{NETWORK}block 90 %", "graph", "kernel"),
    (
        'ResNet-18: inference, block 90 %, `layout="block"`',
        f"{NETWORK}block 90 %",
        "graph",
        "kernel, block everywhere",
    ),
    ("ResNet-18: inference, unstructured 99 %", f"{NETWORK}unstructured 99 %", "graph", "kernel"),
    ("ResNet-18: inference, unstructured 99.5 %", f"{NETWORK}unstructured 99.5 %", "graph", "kernel"),
    ("ResNet-18: inference, half of the channels removed", f"{NETWORK}channels 50 %", "graph", "kernel"),
    ("ResNet-18: inference, 2:4", f"{NETWORK}2:4", "graph", "kernel"),
    ("masks of ResNet-18 sampled", "masks, ResNet-18, sampled", "kernels", "kernel"),
    ("masks of ResNet-18 applied", "masks, ResNet-18, applied", "kernels", "kernel"),
    ("uncertainty, 2 x 50,000 x 1000", "uncertainty, 2 x 50,000 x 1000, fp32", "kernels", "kernel"),
    ("correlation, 2 x 50,000 x 64", "correlation, 2 x 50,000 x 64, fp32", "kernels", "kernel"),
    ("the same, called from Python", "correlation, 2 x 50,000 x 64, fp32", "called", "kernel"),
)


def summary(results: Mapping[str, Any]) -> str:
    """The short table: ours beside the fastest alternative of the same run; what was not timed is left out."""
    rows = [
        "| batch 128, bf16, where a network is named | timed | ours, us | fastest alternative, us | ratio |",
        "|---|---|--:|--:|--:|",
    ]
    for title, name, how, candidate in SUMMARY:
        record = results["items"].get(name, {})
        times = targets.rows_of(record["result"], how) if record.get("result") else {}
        best = targets.best_alternative(times)
        if candidate not in times or best is None or not targets.on_gpu(results, record):
            continue
        other = next(rival for rival, time in times.items() if time == best)
        ours = times[candidate]
        rows.append(
            f"| {title} | {WAYS[how]} | {1e3 * ours:.0f} | {1e3 * best:.0f} ({other}) | {best / ours:.2f}x |"
        )
    devices = sorted({run["machine"]["device"] for run in results["runs"].values() if "machine" in run})
    runs = (
        "one run"
        if len(results["runs"]) == 1
        else f"{len(results['runs'])} runs (the figures of a row are of one)"
    )
    return "\n".join([f"Medians of {runs} on {' and '.join(devices)}:", "", *rows])


def with_summary(text: str, results: Mapping[str, Any]) -> str:
    """A page with the short table between its marks renewed. Raises ValueError without the marks."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{summary(results)}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, help="results.tar.gz or results.json")
    parser.add_argument("--out", type=Path, help="the page (default: print it)")
    parser.add_argument("--table", type=Path, help="renew the short table of this page")
    options = parser.parse_args(arguments)
    results = read(options.results)
    text = page(results)
    if options.table is not None:
        renewed = with_summary(options.table.read_text(encoding="utf-8"), results)
        options.table.write_text(renewed, encoding="utf-8")
    if options.out is None:
        print(text)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
