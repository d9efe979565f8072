"""Papers of methods: the DOI and BibTeX that a citation leads to."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path
from typing import Any

PAPERS = Path(__file__).with_name("papers.toml")
_DOI = re.compile(r"\b10\.\d{4,9}/[A-Za-z0-9._;()/:-]*[A-Za-z0-9]")
_ARXIV = re.compile(r"arxiv[: ./a-z]*(\d{4}\.\d{4,5})", re.IGNORECASE)


def paper_of(cite: str) -> dict[str, str] | None:
    """The DOI of a citation and, where the paper is known here, its BibTeX; None where it names neither.

    A DOI or an arXiv number within the citation counts first; then the phrases of `papers.toml`.
    """
    if found := _DOI.search(cite):
        return {"doi": found.group(), "bibtex": ""}
    if found := _ARXIV.search(cite):
        return {"doi": f"10.48550/arXiv.{found.group(1)}", "bibtex": ""}
    paper = next((paper for paper in _papers() if paper["says"].lower() in cite.lower()), None)
    return None if paper is None else {"doi": f"10.48550/arXiv.{paper['arxiv']}", "bibtex": bibtex(paper)}


def bibtex(paper: dict[str, Any]) -> str:
    """The BibTeX entry of a paper."""
    fields = ("title", "author", "booktitle", "year")
    lines = [f"  {name} = {{{paper[name]}}}," for name in fields]
    return "\n".join([f"@inproceedings{{{paper['key']},", *lines, f"  eprint = {{{paper['arxiv']}}}", "}"])


@functools.cache
def _papers() -> list[dict[str, Any]]:
    return list(tomllib.loads(PAPERS.read_text(encoding="utf-8"))["paper"])
