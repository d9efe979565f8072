"""A profile as one HTML page without scripts and without anything to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunebench.profile import report
from prunebench.profile.drawing import SOFT, Canvas, draw_key
from prunebench.profile.results import Profile, shown_patterns
from prunebench.profile.roofline_figure import roofline_svg
from prunebench.profile.speed_figure import has_sparse, legend, panel_canvas, panels

TEMPLATES = Path(__file__).parent / "templates"


def page(profile: Profile) -> str:
    """The page's text, everything escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values = profile.settings
    return environment.get_template("profile.html.j2").render(
        title=f"{values['model']}, batch {values['batch']}, {values['image']} x {values['image']}",
        summary=report.summary(profile)[1:],
        where=report.summary(profile)[0],
        roofline=roofline_svg(profile),
        patterns=[_pattern(profile, pattern) for pattern in shown_patterns(profile)],
        tables=[
            (heading, words, *report.without_empty(head, rows)) for heading, words, head, rows in [
            ("Break-even", "The sparsity from which a layout is no slower than dense torch.",
             report.BREAK_EVEN_HEAD, report.break_even_rows(profile)),
            ("Whole network", "Dense and sparse timed in turns, on a GPU with the host's launches; speed-up over the "
             "fastest dense one of the same turns. In brackets the zeros of all convolutions, where not as asked for. "
             "Weights with their indices, activations and workspaces at their peak, in 10^6 bytes.",
             report.NETWORK_HEAD, report.network_rows(profile)),
            ("Layers", "Convolution, bias (a folded BatchNorm) and ReLU; the input in the memory format that each "
             "layout prefers. Medians with a hot cache, on a GPU without the host's launches. hot and cold: speed-up "
             "of the fastest sparse layout over torch. roof: the dense bound. ceiling: the dense bound over that of "
             "skipping zero blocks, and over that of free zeros; a layer that runs dense below the roof can gain more, "
             "and one without dead channels neither reads nor writes them.",
             report.LAYER_HEAD, report.layer_rows(profile)),
        ]],
        facts={**profile.environment, **profile.code, "started": profile.started_utc,
               "seconds": profile.seconds, "command": profile.command, "settings": json.dumps(values, default=str)},
    )  # fmt: skip


def _pattern(profile: Profile, pattern: str) -> dict[str, Any]:
    if not has_sparse(profile, pattern):
        return {"name": pattern, "legend": [], "panels": []}
    return {
        "name": pattern,
        "legend": [(_key(kind, colour), words) for kind, colour, words in legend(profile, pattern)],
        "panels": [panel_canvas(panel).svg() for panel in panels(profile, pattern)],
    }


def _key(kind: str, colour: str) -> str:
    canvas = Canvas(28, 16, "")
    draw_key(canvas, kind, colour or SOFT, (14, 8))
    return canvas.svg()
