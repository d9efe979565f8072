"""Analyses at rest: `<results>/analysis/<slug>.json`, with the image of the susceptible samples beside it."""

from __future__ import annotations

from pathlib import Path

from prunebench.analysis.values import TaskAnalysis, read_analysis

FOLDER = "analysis"
"""In a results folder: `<slug>.json` and `<slug>-samples.png` of every analysed section."""


def stored_analyses(results: Path) -> tuple[list[TaskAnalysis], dict[str, Path]]:
    """The analyses of a results folder, by slug, and the images of their samples that are there."""
    found = [read_analysis(path) for path in sorted((results / FOLDER).glob("*.json"))]
    grids = {analysis.slug: results / FOLDER / analysis.grid_name for analysis in found}
    return found, {slug: path for slug, path in grids.items() if path.is_file()}
