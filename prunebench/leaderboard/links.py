"""Pages about bias that the board links to; another room writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunebench.leaderboard.board import Section

WORDS = "Bias under pruning"


@dataclass(frozen=True)
class AnalysisLink:
    """An analysis of a task: `analysis/<slug>.md` and `site/<slug>-analysis.html` beside the board."""

    slug: str
    task: str
    name: str

    @property
    def page(self) -> str:
        """Its file in `site`."""
        return f"{self.slug}-analysis.html"


def link_of(section: Section, links: Sequence[AnalysisLink]) -> AnalysisLink | None:
    """The analysis of a section, if there is one."""
    return next((link for link in links if (link.slug, link.task) == (section.slug, section.task)), None)
