"""The site's parts without a browser: answers, papers, differences of boards, and what the addresses carry."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from board_records import failed, run

from prunebench.leaderboard import build_board
from prunebench.leaderboard.answers import answer_of, shown_sparsity
from prunebench.leaderboard.build import board_files, board_markdown, write_pages
from prunebench.leaderboard.diff import changes_markdown, diff_boards
from prunebench.leaderboard.papers import paper_of
from prunebench.results.record import RunRecord
from prunebench.stats.tests import paired_p_value, paired_p_values

SEEDS = range(5)


def runs(method: str, value: float, sparsity: float = 0.9, **changes: object) -> list[RunRecord]:
    """Five seeds around a value, spread otherwise for each method."""
    return [
        run(method, sparsity, seed, value + 0.01 * (seed * (1 + ord(method[0]) % 4) % 5), **changes)
        for seed in SEEDS
    ]


def made_up() -> list[RunRecord]:
    unpruned = [*runs("dense", 0.4, 0.0), *runs("dense-finetuned", 0.45, 0.0)]
    return [*unpruned, *runs("good", 0.6), *runs("fair", 0.3), *runs("good", 0.7, 0.5)]


def test_the_answer_names_the_best_its_bias_its_speed_and_the_reference() -> None:
    (track,) = build_board(made_up()).tracks
    answer = answer_of(track, 0.9)
    assert answer is not None
    assert (answer.best.method, answer.rank, answer.faster) == ("good", "1", ())
    assert answer.words.startswith("Best at 0.9: good (rank 1), 62.0 ± 2.0 % bias-conflicting accuracy")
    for words in (
        "where dense-finetuned has 47.0",
        "bias gap 28.0 points",
        "no measurable difference in speed",
    ):
        assert words in answer.words
    assert shown_sparsity(track) == 0.9
    assert answer_of(track, 0.8) is None


def test_an_interval_that_is_cut_is_written_with_its_ends_everywhere() -> None:
    values = (0.9, 1.0, 1.0, 1.0, 1.0)
    records = [run("high", 0.9, seed, value) for seed, value in zip(SEEDS, values, strict=True)]
    board = build_board([*runs("dense-finetuned", 0.4, 0.0), *records])
    files, shown = board_files(board), "98.0 [92.4, 100.0]"
    for name in ("README.md", "tasks/digits-2pct.md", "figures/digits-2pct.svg", "site/index.html"):
        assert "98.0 ± 5.6" not in files[name].decode(), name
    for name in ("README.md", "tasks/digits-2pct.md", "site/index.html"):
        text = files[name].decode().replace("\\", "")
        assert shown in text, name
    (track,) = board.tracks
    answer = answer_of(track, 0.9)
    assert answer is not None
    assert (f"{shown} %" in answer.words, shown in answer.cells) == (True, True)
    chunk = files["site/data/board.js"].decode()
    (told,) = json.loads(chunk[chunk.index(", ") + 2 : chunk.rindex(")")])["tasks"][0]["answers"]
    assert (told["mean"], told["width"]) == (98, [92.4, 100])
    assert shown in {row.after for row in diff_boards(build_board([]), board).added}


def test_collapsed_networks_and_rows_with_a_failed_run_are_no_answer() -> None:
    records = made_up()
    fallen = {"plain": 0.5, "class_recall": 0.5}
    records += runs("collapsed", 0.9, validation=fallen)
    records += [*runs("broken", 0.95)[1:], failed("broken", 0.9, 0, "no memory")]
    (track,) = build_board(records).tracks
    answer = answer_of(track, 0.9)
    assert answer is not None
    assert answer.best.method == "good"


def test_with_few_seeds_the_best_is_said_not_to_be_ranked() -> None:
    (track,) = build_board([run("alone", 0.9, seed, 0.5) for seed in range(2)]).tracks
    answer = answer_of(track, 0.9)
    assert answer is not None
    assert "alone (not ranked: 2 seeds of at least 5" in answer.words
    assert "not ranked" in board_markdown(build_board([run("alone", 0.9, seed, 0.5) for seed in range(2)]))


@pytest.mark.parametrize(
    ("cite", "doi"),
    [
        (
            "Park et al., CVPR 2023 (Training debiased subnetworks with contrastive weight pruning)",
            "2210.05247",
        ),
        ("ablation of Liu et al., 2021 (Just Train Twice); not pruned", "2107.09044"),
        ("Somebody, 2026, arXiv:2601.01234", "2601.01234"),
    ],
)
def test_citations_lead_to_their_paper(cite: str, doi: str) -> None:
    paper = paper_of(cite)
    assert paper is not None
    assert paper["doi"] == f"10.48550/arXiv.{doi}"


def test_a_doi_in_a_citation_counts_and_nothing_is_made_up() -> None:
    assert paper_of("Somebody, 2026. doi:10.1145/1234567.8901234.") == {
        "doi": "10.1145/1234567.8901234",
        "bibtex": "",
    }
    assert paper_of("an example") is None
    assert paper_of('10.1145/"><script>alert(1)</script>') is None
    known = paper_of("Lee et al., 2019 (SNIP)")
    assert known is not None
    assert known["bibtex"].startswith("@inproceedings{lee2019snip,\n  title = {SNIP: ")
    assert known["bibtex"].count("{") == known["bibtex"].count("}")


def test_what_changed_between_two_boards(tmp_path: Path) -> None:
    old = build_board(made_up())
    new = build_board([*made_up()[:-5], *runs("better", 0.8)])
    changes = diff_boards(old, new)
    assert [row.method for row in changes.added] == ["better"]
    assert [(row.method, row.sparsity) for row in changes.gone] == [("good", "0.5")]
    assert [(row.method, row.rank_before, row.rank_after) for row in changes.changed] == [
        ("fair", "2", "2-3"),
        ("good", "1", "2"),
    ]
    assert [(row.before, row.after) for row in changes.best] == [("good", "better")]
    assert changes.words == "1 row new, 1 row gone, 2 rows changed; the best method is another one on 1 task."
    text = changes_markdown(changes)
    assert "## Rows that are gone" in text
    write_pages(tmp_path, board_files(new, changes=changes))
    assert (tmp_path / "CHANGES.md").read_text(encoding="utf-8") == text
    assert "another one on 1 task" in (tmp_path / "site/data/board.js").read_text(encoding="utf-8")
    assert diff_boards(old, old).words == "Nothing changed."


def test_many_pairs_are_tested_as_each_by_itself() -> None:
    values = {
        "a": {seed: 0.5 + 0.01 * seed for seed in SEEDS},
        "b": {seed: 0.4 + 0.03 * (seed % 3) for seed in SEEDS},
        "c": dict.fromkeys(range(1, 4), 0.3),
        "same as c": dict.fromkeys(SEEDS, 0.3),
        "d": {7: 0.2},
    }
    pairs = [(one, other) for one in values for other in values if one < other]
    for (one, other), found in zip(pairs, paired_p_values(values, pairs), strict=True):
        alone = paired_p_value(values[one], values[other])
        assert found == pytest.approx(alone, rel=1e-9) or (math.isnan(found) and math.isnan(alone))
    assert paired_p_values(values, []) == []
