"""A realistic analysis without any run: numbers made by formulas, the same on every machine."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from prunebench.analysis.measures import output_measures, task_measures
from prunebench.analysis.values import (
    SCHEMA_VERSION,
    AttributePredictability,
    AttributeRow,
    Condition,
    Correlation,
    Estimate,
    ExemplarRow,
    GroupChange,
    LossSplit,
    SamplePredictability,
    SusceptibleSample,
    TaskAnalysis,
)

METHODS = (
    "channel-relative", "dcwp", "gmp-pt", "gmp-ri", "imp", "jtt", "lff", "magnitude", "magnitude-erk",
    "magnitude-uniform", "mrm", "random", "random-layerwise", "snip",
)  # fmt: skip
NATIVE = "dcwp-native"
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
NASTY = '</script><script>alert("x")</script><img src=x onerror=y()> | `code` **bold** [a](javascript:b)\n# c'
NOTHING = Estimate(None, None, None, 0)
ATTRIBUTES = ("digit>=5", "even", "loop", "red", "dark", "thick", "patch", "prime")


@dataclass(frozen=True)
class Place:
    """A cell's place, and how much harm it takes (0-1)."""

    method: str
    sparsity: float | None
    dense: bool
    harm: float


def places(methods: tuple[str, ...] = METHODS, *, native: bool = True) -> list[Place]:
    found = [Place("dense", 0.0, True, 0.0)]
    for index, method in enumerate(methods):
        found += [
            Place(method, sparsity, False, min(1.0, (1 - sparsity) ** -0.7 / 30 * (0.5 + index % 5 / 3)))
            for sparsity in SPARSITIES
        ]
    return [*found, Place(NATIVE, None, False, 0.05)] if native else found


def noise(*parts: object) -> float:
    """Within +-1, by what it is for."""
    text = "/".join(map(str, parts))
    return math.sin(sum((index + 1) * ord(letter) for index, letter in enumerate(text)))


def estimate(mean: float, half: float, seeds: int = 3) -> Estimate:
    mean, half = round(mean, 6), round(abs(half), 6)
    if seeds < 2:
        return Estimate(mean, None, None, seeds)
    return Estimate(mean, round(mean - half, 6), round(mean + half, 6), seeds)


LEVELS = {
    "in_distribution": (0.985, -0.25), "attribute_accuracy": (0.96, -0.2), "unbiased": (0.6, -0.45),
    "aligned": (0.95, -0.2), "conflicting": (0.5, -0.45), "worst_group": (0.1, -0.1),
    "conflicting_seen": (0.55, -0.45), "conflicting_unseen": (0.3, -0.3),
    "worst_tenth": (0.2, -0.2), "worst_class_conflicting": (0.3, -0.3), "bias_gap": (0.4, 0.45),
    "bias_amplification": (0.05, 0.2), "amplification_defined": (1.0, -0.1),
    "calibrated_bias_amplification": (0.02, 0.1),
    "uncertain_share": (0.1, 0.6), "entropy": (0.2, 0.7), "logit_correlation": (0.3, 0.4),
    "interdependence": (0.4, 0.3), "calibration_error": (0.04, 0.2), "underprediction": (0.95, -0.3),
    "recall": (0.6, -0.4), "accuracy": (0.95, -0.2),
}  # fmt: skip


def level(key: str, place: Place, *extra: object) -> float:
    start, slope = LEVELS[key]
    shake = 0.03 * noise(key, place.method, place.sparsity, *extra)
    return start + slope * place.harm * (1 + shake) + 0.2 * shake


def cell(place: Place, keys: tuple[str, ...], seeds: tuple[int, ...]) -> Condition:
    values = {
        key: estimate(level(key, place), 0.02 + 0.06 * abs(noise(key, place)), len(seeds)) for key in keys
    }
    start = {key: level(key, Place("dense", 0.0, True, 0.0)) for key in keys}
    changes = {key: estimate(level(key, place) - start[key], 0.03, len(seeds)) for key in keys}
    accuracies = [key for key in ("in_distribution", "unbiased", "conflicting") if key in keys]
    sampled = {
        key: Estimate(values[key].mean, (values[key].mean or 0) - 0.04, (values[key].mean or 0) + 0.02, 3)
        for key in accuracies
    }
    achieved = place.sparsity if place.sparsity is not None else 0.42
    pruned = not place.dense
    return Condition(
        place.method, place.sparsity, place.dense, achieved, seeds, values,
        changes if pruned else {}, sampled, {key: sampled[key] for key in accuracies} if pruned else {},
    )  # fmt: skip


def groups(found: list[Place], labels: int) -> tuple[GroupChange, ...]:
    rows = []
    for place, label, bias in itertools.product(found, range(labels), range(labels)):
        change = -place.harm * 0.5 * (1 + noise(place, label, bias)) / 2
        p = min(1.0, abs(noise("p", place, label, bias)) ** 3 * 0.1)
        rows.append(
            GroupChange(
                str(label), f"colour {bias}", label == bias, 20, place.method, place.sparsity, 0.8,
                round(0.8 + change, 6), round(change, 6), round(p, 6), round(min(1.0, p * labels**2), 6),
            )
        )  # fmt: skip
    return tuple(rows)


def exemplars(found: list[Place]) -> tuple[ExemplarRow, ...]:
    return tuple(
        ExemplarRow(
            place.method, place.sparsity, round(0.02 + 0.4 * place.harm, 6), 0.3, round(0.03 + 0.4 * place.harm, 6),
            0.03, estimate(0.4 * place.harm, 0.01),
        )
        for place in found
    )  # fmt: skip


def predictability(found: list[Place]) -> tuple[SamplePredictability, ...]:
    return tuple(
        SamplePredictability(
            place.method, place.sparsity, event, round(0.05 + 0.3 * place.harm, 6),
            estimate(0.92 - 0.1 * index - 0.2 * place.harm, 0.03), 0.4, 0.35,
            estimate(0.02 * noise(place, event), 0.02) if index else None,
        )
        for place in found
        for index, event in enumerate(("modal exemplar", "flip", "new error"))
    )  # fmt: skip


def splits(found: list[Place]) -> tuple[LossSplit, ...]:
    return tuple(
        LossSplit(
            place.method, place.sparsity, place.dense, round(0.5 + 0.4 * place.harm, 6),
            round(0.35 + 0.4 * place.harm, 6), 0.15,
        )
        for place in found
    )  # fmt: skip


def over_all(first: str, second: str, rho: Estimate) -> Correlation:
    return Correlation("all methods", None, first, second, False, rho, "sparsity", 0.01)


def susceptible(count: int = 32) -> tuple[SusceptibleSample, ...]:
    return tuple(
        SusceptibleSample(
            17 * index, round(1 - index / 100, 3), None, str(index % 10), f"colour {(index + 1) % 10}",
            str((index + 1) % 10), str((index + 2) % 10), 0.5,
        )
        for index in range(count)
    )  # fmt: skip


def class_analysis(methods: tuple[str, ...] = METHODS, seeds: tuple[int, ...] = (0, 1, 2)) -> TaskAnalysis:
    """Ten classes, a bias by colour, fourteen methods and one of native sparsity."""
    found = places(methods)
    pruned = [place for place in found if not place.dense]
    keys = tuple(measure.key for measure in task_measures(multi_label=False))
    row_keys = tuple(measure.key for measure in output_measures(multi_label=False))
    names = tuple(map(str, range(10)))
    return TaskAnalysis(
        schema_version=SCHEMA_VERSION,
        slug="colored-digits-2pct",
        task="colored-digits@2pct",
        title="colored-digits@2pct",
        source="scikit-learn's digits, coloured",
        model="convnet-small",
        recipe={"steps": 400, "finetune_steps": 100, "optimizer": "adam"},
        multi_label=False,
        outputs=names,
        identities=(),
        bias_name="colour",
        accuracy_key="in_distribution",
        bias_key="bias_gap",
        reference="dense",
        seeds=seeds,
        samples=540,
        runs=len(found) * len(seeds),
        left_out=("snip at 0.99, seed 2: no stored outputs",),
        measures=task_measures(multi_label=False),
        attribute_measures=output_measures(multi_label=False),
        conditions=tuple(cell(place, keys, seeds) for place in found),
        attributes=tuple(
            AttributeRow(
                name, p.method, p.sparsity, p.dense,
                {key: round(level(key, p, name), 6) for key in row_keys},
            )
            for p in found for name in names
        ),
        groups=groups(pruned, 10),
        exemplars=exemplars(pruned),
        splits=splits(found),
        correlations=(
            over_all("uncertain_share", "bias_gap", Estimate(0.62, 0.5, 0.71, len(found) * 3)),
            over_all("logit_correlation", "bias_gap", Estimate(0.4, 0.3, 0.5, len(found) * 3)),
            Correlation("method", "dcwp", "sparsity", "bias_gap", False, Estimate(0.2, -0.3, 0.6, 18), None, 0.3),
        ),
        sample_predictability=predictability(pruned),
        attribute_predictability=tuple(
            AttributePredictability(p.method, p.sparsity, criterion, Estimate(0.3, -0.2, 0.7, 10))
            for p in pruned for criterion in ("uncertainty", "amplification")
        ),
        susceptible=susceptible(),
        code={"version": "0.1.0", "commit": "0123456789abcdef", "dirty": False},
    )  # fmt: skip


def attribute_analysis() -> TaskAnalysis:
    """Eight binary attributes, three methods, and a value missing here and there."""
    methods = ("dcwp", "gmp-ri", "magnitude")
    found = places(methods, native=False)
    keys = tuple(measure.key for measure in task_measures(multi_label=True))
    row_keys = tuple(measure.key for measure in output_measures(multi_label=True))
    base = class_analysis(methods)
    cells = [cell(place, keys, (0, 1, 2)) for place in found]
    holed = replace(cells[3], values={**cells[3].values, "bias_amplification": NOTHING})
    return replace(
        base,
        slug="digit-attributes",
        task="digit-attributes",
        title="digit-attributes",
        multi_label=True,
        outputs=ATTRIBUTES,
        identities=("red", "patch"),
        accuracy_key="attribute_accuracy",
        bias_key="bias_amplification",
        left_out=(),
        measures=task_measures(multi_label=True),
        attribute_measures=output_measures(multi_label=True),
        conditions=(*cells[:3], holed, *cells[4:]),
        attributes=tuple(
            AttributeRow(
                name, p.method, p.sparsity, p.dense,
                {
                    key: None if name in ("red", "patch") and "bias" in key else round(level(key, p, name), 6)
                    for key in row_keys
                },
            )
            for p in found for name in ATTRIBUTES
        ),
        groups=groups([place for place in found if not place.dense], 2),
        exemplars=exemplars([place for place in found if not place.dense]),
        splits=splits(found),
        correlations=(
            over_all("uncertain_share", "bias_amplification", Estimate(0.5, 0.2, 0.7, 57)),
            over_all("interdependence", "bias_amplification", Estimate(0.4, 0.1, 0.6, 57)),
        ),
        sample_predictability=predictability([place for place in found if not place.dense]),
        attribute_predictability=tuple(
            AttributePredictability(p.method, p.sparsity, "uncertainty", Estimate(0.3, -0.2, 0.7, 8))
            for p in found if not p.dense
        ),
    )  # fmt: skip


def odd_analysis() -> TaskAnalysis:
    """Names that try to be markup, one seed, nothing but levels and one condition's predictability."""
    base = class_analysis((NASTY,), seeds=(0,))
    conditions = tuple(replace(cell, changes={}, sampled={}, sampled_changes={}) for cell in base.conditions)
    return replace(
        base,
        slug="odd",
        task=NASTY,
        title=NASTY,
        source=NASTY,
        bias_name=NASTY,
        outputs=(NASTY, *base.outputs[1:]),
        left_out=(NASTY,),
        conditions=conditions,
        attributes=(),
        groups=(),
        exemplars=(),
        splits=(),
        correlations=(),
        sample_predictability=base.sample_predictability[:2],
        attribute_predictability=(),
        susceptible=(),
    )  # fmt: skip
