"""Pages: jinja2 templates with everything escaped, data for a page's script, and plotly's script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunebench.report.plot import REFERENCE, HeatMap, Plot, Style
from prunebench.report.svg import Key, key_svg
from prunebench.report.table import Table

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """Fill a template; text is escaped, an undefined name raises. Ends with a newline.

    Templates of another `folder` extend, include and import those of this room: `page.html.j2` (a page with its
    style and script) and `parts.html.j2` (tables, legends, figures, filters).
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES], encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    return environment.get_template(template).render(**values).rstrip("\n") + "\n"


def html_table(table: Table[Any], caption: str = "") -> str:
    """A table that the page's script can sort, in a box that scrolls."""
    return render("table.html.j2", table=table, caption=caption or table.title)


def trusted(markup: str) -> Any:
    """What `render` made, to stand in another template as it is."""
    from markupsafe import Markup

    return Markup(markup)


def script_json(values: Any) -> Any:
    """JSON that may stand inside a script element whatever its strings hold."""
    from markupsafe import Markup

    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def page_figures(pictures: Sequence[Plot | HeatMap]) -> dict[str, Any]:
    """Plotly's values of pictures by their keys, as the page's script wants them."""
    from prunebench.report.plotly import plotly_figure

    return {picture.key: plotly_figure(picture) for picture in pictures}


@dataclass(frozen=True)
class Switch:
    """An entry of a page's legend: the series that it shows or hides, and its sign as inline SVG."""

    key: str
    sign: str


def switch(name: str, style: Style, *, line: bool = True) -> Switch:
    """The entry of a series; a star alone where it has no line."""
    shown = style if line else replace(style, symbol="star")
    return Switch(name, key_svg(Key("", style.colour, style=shown, dash=style.dash if line else "")))


def reference(name: str) -> Switch:
    """The entry of a reference line, which is always shown."""
    return switch(name, REFERENCE)


def plotly_script() -> str:
    """plotly's library, as the installed package carries it."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().rstrip("\n") + "\n"
