"""Cards of a board, from records and stored outputs that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from board_records import metrics, run
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from prunebench.analysis.cards import NO_OUTPUTS, cards_of, cards_table
from prunebench.analysis.measures import Outputs, StoredRun
from prunebench.analysis.preregistered import HypothesisCard, frozen_hypotheses
from prunebench.analysis.seed_numbers import (
    SeedNumbers,
    SeedRow,
    read_seed_numbers,
    seed_numbers,
    write_seed_numbers,
)
from prunebench.errors import StoreError
from prunebench.metrics.predictability import margin_uncertainty
from prunebench.report.markdown import markdown_table
from prunebench.results.record import RunRecord
from prunebench.runner.ground_truth import GroundTruth
from prunebench.tasks import resolve_task
from prunebench.tasks.base import Attributes

RULES = replace(frozen_hypotheses(), draws=199)
SLUG = "digits-2pct"
WOBBLE = (0.0, 0.001, -0.001, 0.002, -0.002)
ARMS = [(arm.method, arm.reference) for arm in RULES.harmless.arms]


def row(
    method: str, sparsity: float, conflicting: float, entropy: float = 0.5, **changes: Any
) -> list[RunRecord]:
    """Five seeds; the bias gap is 0.9 minus the conflicting accuracy."""
    found = []
    for seed, wobble in enumerate(WOBBLE):
        values = metrics(conflicting + wobble * (1 + 0.1 * sparsity)) | {"entropy": entropy}
        found.append(run(method, sparsity, seed, conflicting, metrics=values, **changes))
    return found


def board(loss: float = 0.0, references: bool = True) -> list[RunRecord]:
    """Methods that lose this much of their reference's conflicting accuracy, more entropy where the bias is larger."""
    records = row("dense", 0.0, 0.4)
    for method, reference in ARMS if references else ():
        if not any(record.spec["method"] == reference for record in records):
            records += row(reference, 0.0, 0.4)
        if method not in RULES.association.methods:
            records += row(method, 0.9, 0.4 - loss)
    for place, method in enumerate(RULES.association.methods):
        for sparsity in RULES.association.sparsities:
            own = 0.001 * place + loss
            records += row(method, sparsity, 0.4 - own, 0.3 + 0.2 * sparsity + 0.01 * place)
    return records


def numbers(gain: float = 0.03) -> SeedNumbers:
    """Areas of the named methods above that of the control by this gain, in every seed a little different."""
    rows = [
        SeedRow(method, RULES.prediction.sparsity, seed, 0.88 + gain + wobble)
        for method in RULES.prediction.methods
        for seed, wobble in enumerate(WOBBLE)
    ]
    rows += [SeedRow("dense-finetuned", 0.0, seed, 0.88) for seed in range(5)]
    return SeedNumbers(SLUG, tuple(rows), dict.fromkeys(range(5), 0.78))


def tracks_cards(records: list[RunRecord], found: SeedNumbers | None = None) -> tuple[HypothesisCard, ...]:
    (cards,) = cards_of(records, {} if found is None else {found.slug: found}, RULES).tracks.values()
    return cards


def test_a_board_that_supports_everything() -> None:
    harmless, association, prediction = tracks_cards(board(), numbers())
    assert [card.outcome for card in (harmless, association, prediction)] == ["supported"] * 3
    assert len(harmless.tests) == 2 * len(ARMS)
    assert (harmless.control, association.effect.n) == (pytest.approx(0.5), len(RULES.association.methods))
    assert prediction.effect.mean == pytest.approx(0.03)
    assert prediction.control_name == "dense-finetuned"


def test_a_board_that_supports_nothing() -> None:
    """All lose ten points; the more biased is the surer; no area is above the control's."""
    records = board(loss=0.1)
    for record in records:
        record.metrics["entropy"] = 1 - 0.3 * (record.metrics["bias_gap"] or 0)
    harmless, association, prediction = tracks_cards(records, numbers(gain=0.0))
    assert [card.outcome for card in (harmless, association, prediction)] == ["not supported"] * 3
    assert "bias_gap lies beyond the margin" in harmless.reason
    assert association.effect.mean == pytest.approx(-1)


def test_the_board_before_protocol_2_is_not_testable() -> None:
    harmless, association, prediction = tracks_cards(board(references=False))
    assert harmless.outcome == prediction.outcome == "not testable"
    assert harmless.reason.startswith(
        "no rows with seeds that count of dense-finetuned, dense-from-init, lff-dense, lff"
    )
    assert prediction.reason == NO_OUTPUTS
    assert association.outcome == "supported"


def test_cards_are_shown_as_a_table() -> None:
    lines = markdown_table(cards_table(tracks_cards(board(), numbers()))).splitlines()
    assert len(lines) == 5
    assert (
        "(c) Uncertainty predicts what pruning changes | supported | area under the curve | 0.030 \\["
        in lines[4]
    )
    assert "| 5 seeds | 0.880 (dense-finetuned) |" in lines[4]
    missing = markdown_table(cards_table(tracks_cards(board(references=False)))).splitlines()[4]
    assert "| not testable | — | — | — | — | — | — | no stored outputs were analysed |" in missing


def test_seeds_that_existed_before_are_left_out() -> None:
    seen = replace(RULES, seeds_from={"digits@2pct": 3})
    (cards,) = cards_of(board(), {}, seen).tracks.values()
    assert [card.outcome for card in cards] == ["not testable"] * 3
    assert "2 seeds that count, 5 needed" in cards[0].reason
    assert cards[1].reason == "0 methods with all their values, 5 needed"


def test_failed_runs_do_not_count() -> None:
    records = [replace(record, status="failed") if record.spec["seed"] == 4 else record for record in board()]
    assert tracks_cards(records)[0].outcome == "not testable"


def test_a_method_of_several_settings_has_no_row_by_its_bare_name() -> None:
    records = [record for record in board() if record.spec["method"] != "dense-finetuned"]
    for start in ("x", "y"):
        records += row("dense-finetuned", 0.0, 0.4, cell={"params": (("start", start),)})
    harmless = tracks_cards(records)[0]
    assert {test.name for test in harmless.tests} == {"gmp-ri", "lff", "jtt", "dcwp"}


def other_task(records: list[RunRecord], change: Callable[[RunRecord], RunRecord]) -> list[RunRecord]:
    found = []
    for record in map(change, records):
        spec = replace(record.run_spec, task="faces")
        found.append(replace(record, spec=spec.to_dict(), run_id=spec.run_id))
    return found


def test_tasks_are_compared_over_the_methods_that_they_share() -> None:
    records = board()
    card = cards_of(records, {}, RULES).board
    assert (card.outcome, "1 task at hand" in card.reason) == ("not testable", True)
    card = cards_of(records + other_task(records, lambda record: record), {}, RULES).board
    assert (card.outcome, card.effect.n) == ("supported", 2)

    def reverse(record: RunRecord) -> RunRecord:
        value = record.metrics["conflicting"] or 0.0
        return replace(record, metrics={**record.metrics, "conflicting": 1 - value})

    card = cards_of(records + other_task(records, reverse), {}, RULES).board
    assert card.outcome == "not supported"
    assert card.effect.mean == pytest.approx(-1)


# Attributes


def attribute_board(uncertain: list[float], bias: list[float]) -> HypothesisCard:
    records = [
        replace(record, metrics=record.metrics | {"attribute_accuracy": 0.9, "bias_amplification": 0.1})
        for record in board()
    ]
    rows = tuple(
        SeedRow(
            method, 0.9, seed, None, tuple(u + 0.001 * seed for u in uncertain), tuple(b * (1 + seed) for b in bias)
        )
        for method in ("magnitude", "gmp-pt")
        for seed in range(5)
    )  # fmt: skip
    cards = tracks_cards(records, SeedNumbers(SLUG, rows, {}))
    assert cards[0].outcome == "supported"
    assert cards[0].tests[0].quantity == "attribute_accuracy"
    return cards[1]


def test_attributes_are_correlated_within_each_model() -> None:
    uncertain = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    card = attribute_board(uncertain, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert (card.outcome, card.unit, card.effect.n) == ("supported", "attributes", 6)
    assert card.p_value == pytest.approx(1 / math.factorial(6))
    assert attribute_board(uncertain, [0.05, 0.01, 0.04, 0.03, 0.06, 0.02]).outcome == "not supported"
    few = attribute_board(uncertain[:4], [0.01, 0.02, 0.03, 0.04])
    assert few.reason == "4 attributes with all their values, 5 needed"


# Stored outputs


def outputs_of(runs: list[tuple[str, float, int, torch.Tensor]]) -> Outputs:
    """Of a task of classes; only the parts that are looked at."""
    task: Any = SimpleNamespace(name="digits@2pct", attributes=None)
    stored = [
        StoredRun(method, sparsity, method == "dense", sparsity, seed, {"test": logits})
        for method, sparsity, seed, logits in runs
    ]
    return Outputs(SLUG, task, {}, tuple(stored), {}, ())


def test_areas_are_of_the_labels_that_changed() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = {seed: torch.randn(50, 3, generator=generator) for seed in (0, 1, 2)}
    pruned = dense[0] + 0.5 * torch.randn(50, 3, generator=generator)
    runs = [("dense", 0.0, seed, logits) for seed, logits in dense.items()]
    runs += [
        ("magnitude", 0.9, 0, pruned),
        ("magnitude", 0.5, 0, pruned),
        ("dense-finetuned", 0.0, 0, dense[0]),
    ]
    found = seed_numbers(outputs_of(runs), RULES)
    unsure = margin_uncertainty(dense[0])
    changed = pruned.argmax(1) != dense[0].argmax(1)
    assert [(entry.method, entry.sparsity) for entry in found.rows] == [("magnitude", 0.9)]
    assert found.rows[0].flip_area == pytest.approx(roc_auc_score(changed, unsure))
    for seed, other in ((0, 1), (1, 2), (2, 0)):
        swapped = dense[other].argmax(1) != dense[seed].argmax(1)
        area = roc_auc_score(swapped, margin_uncertainty(dense[seed]))
        assert found.other_seeds[seed] == pytest.approx(area)
    alone = seed_numbers(outputs_of(runs[:1]), RULES)
    assert (alone.rows, alone.other_seeds) == ((), {})
    assert seed_numbers(outputs_of(runs), replace(RULES, seeds_from={"digits@2pct": 9})).rows == ()


def test_a_label_that_no_model_changes_has_no_area() -> None:
    logits = functional.one_hot(torch.arange(6) % 3).float()
    found = seed_numbers(outputs_of([("dense", 0.0, seed, logits) for seed in (0, 1)]), RULES)
    assert found.other_seeds == {0: None, 1: None}


def test_both_measures_of_each_attribute_are_kept() -> None:
    """Two attributes and an identity; a pruned model is sure of the first alone, and predicts it by the identity."""
    generator = torch.Generator().manual_seed(1)
    label = (torch.rand(400, 3, generator=generator) < 0.5).to(torch.uint8)
    follows = torch.rand(400, 2, generator=generator) < 0.8
    label[:, :2] = torch.where(follows, label[:, 2:], 1 - label[:, 2:])
    task = resolve_task("digit-attributes")
    task.attributes = Attributes(("a", "b", "g"), "a", ("g",))
    task.num_classes = task.num_biases = 2
    truth = GroundTruth(
        task,
        dict.fromkeys(("train", "val", "test"), label),
        dict.fromkeys(("train", "val", "test"), label[:, 2].long()),
        "0" * 16,
        "0" * 16,
    )
    dense = 6.0 * label - 3
    pruned = torch.stack([6.0 * label[:, 2] - 3, 0.2 * label[:, 1] - 0.1, 6.0 * label[:, 2] - 3], dim=1)
    stored = tuple(
        StoredRun(method, sparsity, method == "dense", sparsity, 5, {"val": logits, "test": logits})
        for method, sparsity, logits in (("dense", 0.0, dense), ("magnitude", 0.9, pruned))
    )
    (found,) = seed_numbers(Outputs(SLUG, task, {}, stored, {5: truth}, ()), RULES).rows
    assert found.uncertain_share == (0.0, 1.0, 0.0)
    first, second, identity = found.bias_amplification
    assert first == pytest.approx(1 - float(label[label[:, 0] == 1][:, 2].double().mean()))
    assert second == pytest.approx(0)
    assert identity is None
    changed = ((pruned > 0) != (dense > 0)).flatten()
    assert found.flip_area == pytest.approx(roc_auc_score(changed, margin_uncertainty(dense.flatten())))


def test_seed_numbers_come_back_as_they_were_written(tmp_path: Path) -> None:
    given = replace(numbers(), rows=(*numbers().rows, SeedRow("m", None, 3, None, (0.1, None), (None, 0.25))))
    path = write_seed_numbers(given, tmp_path)
    assert read_seed_numbers([tmp_path, tmp_path / "absent"]) == {SLUG: given}
    assert path.read_text(encoding="utf-8").count("\n") == len(given.rows) + 2
    path.write_text(path.read_text(encoding="utf-8").replace('"slug"', '"slag"'), encoding="utf-8")
    with pytest.raises(StoreError, match=r"digits-2pct\.json.*analyze again"):
        read_seed_numbers([tmp_path])
