"""Cards as they are shown: a Markdown fragment, an HTML fragment, JSON, and a short table for a README.

For pages of other rooms: they take `cards_html` or `cards_markdown` as it is, or `HypothesisCards` as data.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunebench.analysis.cards import CARD_COLUMNS, CLAIMS, HypothesisCards
from prunebench.analysis.preregistered import FrozenHypotheses, HypothesisCard, frozen_hypotheses
from prunebench.report import format as fmt
from prunebench.report import html, markdown
from prunebench.report.table import RowGroup, Table
from prunebench.results.record import plain

TEMPLATES = Path(__file__).parent / "templates"
BOARD = "The whole board"
SCHEMA_VERSION = 1


def board_cards_table(cards: HypothesisCards) -> Table[HypothesisCard]:
    """All cards, a group a track and the board's own last."""
    groups = [RowGroup(entry, cards.titles[slug]) for slug, entry in cards.tracks.items()]
    return Table(CARD_COLUMNS, (*groups, RowGroup((cards.board,), BOARD)), "Hypotheses")


def cards_markdown(cards: HypothesisCards) -> str:
    """The table of all cards, and by which rules they were judged."""
    return f"{rules_sentence()}\n\n{markdown.markdown_table(board_cards_table(cards))}"


def cards_html(cards: Iterable[HypothesisCard], heading: str = "") -> str:
    """A `<section class="cards">` with an `<article class="card" data-outcome="...">` a card, without style."""
    return html.render(
        "cards.html.j2", folder=TEMPLATES, cards=list(cards), claims=CLAIMS, heading=heading, fmt=fmt
    )


def cards_json(cards: HypothesisCards) -> str:
    """What programs read: the file that the rules stand in, each track's cards by slug, and the board's.

    A card is its fields; an effect is `{"mean", "low", "high", "n"}`; what is undefined is null.
    """
    rules = frozen_hypotheses()
    values = {
        "schema_version": SCHEMA_VERSION,
        "frozen": rules.frozen.isoformat(),
        "significance": rules.significance,
        "tracks": {
            slug: {"task": cards.tasks[slug], "cards": [dataclasses.asdict(card) for card in entry]}
            for slug, entry in cards.tracks.items()
        },
        "board": dataclasses.asdict(cards.board),
    }
    return json.dumps(plain(values), sort_keys=True, indent=1, allow_nan=False) + "\n"


def cards_data(cards: HypothesisCards) -> dict[str, list[dict[str, Any]]]:
    """What the board's site shows: by slug, each card's claim, outcome, reason and facts; under "" the board's own."""
    told = ("key", "outcome", "reason")

    def shown(card: HypothesisCard) -> dict[str, Any]:
        cells = [(column.title, column.cell(card).text) for column in CARD_COLUMNS if column.key not in told]
        facts = [[title, text] for title, text in cells if text != fmt.MISSING]
        return {"title": CLAIMS[card.key], "outcome": card.outcome, "reason": card.reason, "facts": facts}

    return {slug: list(map(shown, entry)) for slug, entry in {**cards.tracks, "": (cards.board,)}.items()}


def cards_excerpt(cards: HypothesisCards, page: str = "leaderboard/analysis/README.md") -> str:
    """For a README: a row a track with the outcome of each card, and the board's card; empty without tracks."""
    if not cards.tracks:
        return ""
    keys = [key for key in CLAIMS if key != "tasks"]
    outcomes: dict[str, dict[str, str]] = {
        slug: {card.key: card.outcome for card in entry} for slug, entry in cards.tracks.items()
    }
    rows = [
        [markdown.escape(cards.titles[slug]), *(found.get(key, fmt.MISSING) for key in keys)]
        for slug, found in outcomes.items()
    ]
    table = markdown.pipe_table(["Task", *(CLAIMS[key] for key in keys)], rows)
    board = f"{CLAIMS['tasks']}: {cards.board.outcome}."
    return f"{rules_sentence()} Effects, intervals and reasons: [cards]({page}).\n\n{table}\n\n{board}\n\n"


def rules_sentence(rules: FrozenHypotheses | None = None) -> str:
    """When the rules were frozen, and what counts."""
    rules = rules or frozen_hypotheses()
    return (
        f"Rules frozen on {rules.frozen.isoformat()}, evaluated on seeds that had no run then; at least "
        f"{rules.fewest_seeds}. Significance {100 * rules.significance:g} %."
    )
