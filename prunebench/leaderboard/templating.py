"""Templates beside this file, or in a room above, with everything escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, *, folder: Path = TEMPLATES, **values: Any) -> str:
    """Fill a template; text is escaped for HTML and XML, an undefined name raises. Ends with a newline.

    Templates of another `folder` can include and import those beside this file.
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
