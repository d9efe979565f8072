"""False-positive rates of the cards: a thousand made-up experiments each, in which the hypothesis is just false.

    uv run python bench/false_positive_rates.py [--page docs/protocol.md]

Writes the table between the markers of the page, in seconds; `tests/unit/test_preregistered.py` holds every rate to the
binomial's 99 % interval about the significance.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pages import write_part

from prunebench.analysis.preregistered import (
    HypothesisCard,
    PairedValues,
    agreement_card,
    association_card,
    frozen_hypotheses,
    harmless_card,
    prediction_card,
)
from prunebench.report.markdown import markdown_table
from prunebench.report.table import Column, simple_table, text_column

PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
PART = "false-positives"
RULES = replace(frozen_hypotheses(), draws=499)
MARGINS = RULES.harmless.classes
DRAWS, SEED = 1000, 20261127
Null = Callable[[np.random.Generator], HypothesisCard]


def by_seed(values: object) -> dict[int, float]:
    """Numbers as the values of seeds 0, 1, ..."""
    return dict(enumerate(np.asarray(values, dtype=float).tolist()))


def arm(
    accuracy: object, bias: object, method: str = "magnitude", level: float = 0.9, reference_bias: float = 0.5
) -> list[PairedValues]:
    """A method whose differences from its reference are these, by seed."""
    base = 0.01 * np.arange(len(np.asarray(accuracy)))
    return [
        PairedValues(
            method, f"{method} unpruned", name, by_seed(start + base + change), by_seed(start + base)
        )
        for name, start, change in (
            ("in_distribution", level, np.asarray(accuracy)),
            ("bias_gap", reference_bias, np.asarray(bias)),
        )
    ]  # fmt: skip


def null_harmless(generator: np.random.Generator) -> HypothesisCard:
    """Worst case of (a) with one method: the bias differs by just the margin, the accuracy by nothing."""
    bias = MARGINS["bias_gap"] + generator.normal(0, 0.004, 5)
    return harmless_card(arm(generator.normal(0, 1e-5, 5), bias), MARGINS, RULES)


def null_harmless_in_six(generator: np.random.Generator) -> HypothesisCard:
    """(a) with six methods, all at the margin, apart: one that passes by chance is enough."""
    pairs = []
    for k in range(6):
        bias = MARGINS["bias_gap"] + generator.normal(0, 0.004, 5)
        pairs += arm(generator.normal(0, 1e-5, 5), bias, f"m{k}")
    return harmless_card(pairs, MARGINS, RULES)


def null_association(generator: np.random.Generator) -> HypothesisCard:
    """(b): both measures rise with sparsity, and have the method's own part in every sparsity, unrelated."""
    rise, own = 3 * np.arange(4.0), generator.normal(size=(2, 7, 1))
    first, second = rise + own + 0.3 * generator.normal(size=(2, 7, 4))
    return association_card(first, second, "methods", replace(RULES, draws=19))


def null_attributes(generator: np.random.Generator) -> HypothesisCard:
    """(b) over nine attributes in six models: more than are put in all orders."""
    own = generator.normal(size=(2, 9, 1))
    first, second = own + generator.normal(size=(2, 9, 6))
    return association_card(first, second, "attributes", replace(RULES, draws=199))


def null_prediction(generator: np.random.Generator) -> HypothesisCard:
    """Worst case of (c): one control is as good, the other far behind; seeds share their level."""
    level = 0.9 + 0.02 * generator.normal(size=5)
    areas, control = level + 0.01 * generator.normal(size=(2, 5))
    return prediction_card(
        by_seed(areas), {"dense-finetuned": by_seed(control), "another seed": by_seed([0.5] * 5)}, RULES
    )


def null_another_seed(generator: np.random.Generator) -> HypothesisCard:
    """(c) where pruning changes what another seed does: an area has a part of the model that is asked, and one of the
    model that answers, which a dense model has in the next seed's place too."""
    asked, pruned, dense = 0.01 * generator.normal(size=(3, 5))
    areas, control = 0.9 + asked + [pruned, np.roll(dense, -1)] + 0.003 * generator.normal(size=(2, 5))
    return prediction_card(
        by_seed(areas), {"dense-finetuned": by_seed([0.5] * 5), "another seed": by_seed(control)}, RULES
    )


def null_agreement(generator: np.random.Generator) -> HypothesisCard:
    """The tasks: each of three has its own order of nine methods, and each seed its noise."""
    values = {
        f"task {k}": {
            f"m{j}": by_seed(own + 0.5 * generator.normal(size=5))
            for j, own in enumerate(generator.normal(size=9))
        }
        for k in range(3)
    }
    return agreement_card(values, replace(RULES, draws=99))


NULLS: Mapping[str, Null] = {
    "(a), one method whose bias is at the margin": null_harmless,
    "(a), six methods at the margin": null_harmless_in_six,
    "(b), both rise with sparsity, methods unrelated": null_association,
    "(b), attributes unrelated": null_attributes,
    "(c), the equal-step control is as good": null_prediction,
    "(c), another seed is as good": null_another_seed,
    "tasks with unrelated orders": null_agreement,
}


@dataclass(frozen=True)
class FalsePositives:
    """How many of the experiments of one null supported its hypothesis, and how many could be tested."""

    name: str
    supported: int
    tested: int

    @property
    def rate(self) -> float:
        """Of those that could be tested."""
        return self.supported / self.tested


def count_false_positives(name: str, null: Null, draws: int = DRAWS) -> FalsePositives:
    """Draw experiments of one null, the same ones in every call."""
    generator = np.random.default_rng(SEED)
    outcomes = [null(generator).outcome for _ in range(draws)]
    return FalsePositives(
        name, outcomes.count("supported"), sum(outcome != "not testable" for outcome in outcomes)
    )


def rates_markdown() -> str:
    """A row a null."""
    rows = [count_false_positives(name, null) for name, null in NULLS.items()]
    columns = (
        text_column("name", "What is drawn", lead=True),
        Column("tested", "Experiments"),
        Column("rate", "Supported, %", format=lambda rate: f"{100 * rate:.1f}"),
    )
    return markdown_table(simple_table(columns, rows))


def main() -> None:
    """Count, print and write the page's part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose marked part is replaced")
    options = parser.parse_args()
    table = rates_markdown()
    print(table)
    write_part(options.page, PART, table)


if __name__ == "__main__":
    main()
