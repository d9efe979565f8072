"""Two runs or methods compared: paired by sample and by seed, with correction for how much is looked at.

By sample: McNemar's exact test of the samples that only one of two models gets right. It tells whether these models
differ on samples like these, and takes samples as independent: where one source image stands behind several samples,
as each digit of colored-digits in ten colours, its p is too small. By seed: a sign-flip test of the differences between
runs of one seed. It tells whether the methods differ when they are trained again. Each table is corrected by itself,
by Holm's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from prunebench.comparison.pairing import Pair
from prunebench.errors import DataError, StoreError, UsageError
from prunebench.metrics.populations import holm
from prunebench.metrics.registry import Metric, metrics
from prunebench.runner.ground_truth import GroundTruth
from prunebench.runner.rescore import Draw, has_logits, load_ground_truth, read_logits
from prunebench.stats.intervals import Interval, mean_interval
from prunebench.stats.tests import mcnemar_p_value, pooled_mcnemar_p_value, sign_flip_p_value
from prunebench.tasks import Task, resolve_task


@dataclass(frozen=True)
class SeedTest:
    """A metric over seeds: both means, the t interval of second minus first, and the sign-flip test's p."""

    metric: Metric
    first: float
    second: float
    difference: Interval
    p_value: float
    corrected_p: float = math.nan


@dataclass(frozen=True)
class SampleTest:
    """Samples of one scope, in one pair of runs (`pair`) or in all (None).

    Scopes: `all samples`, `bias-aligned`, `bias-conflicting`, and each group, `label 3, bias 7`. `first_only` and
    `second_only` count samples that only one got right, added up over the pairs; `differing` the samples that the sides
    differ on after pooling.
    """

    scope: str
    pair: str | None
    samples: int
    first_right: float
    second_right: float
    first_only: int
    second_only: int
    differing: int
    p_value: float
    corrected_p: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """The tables, each with its own correction. `by_pair` is empty with one pair; `notes` says what was left out."""

    first: str
    second: str
    task: str
    pairs: tuple[str, ...]
    by_seed: tuple[SeedTest, ...]
    pooled: tuple[SampleTest, ...]
    by_pair: tuple[SampleTest, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """One pair of runs on the test split: whether each is right, bool `[N]`."""

    pair: str
    first: Tensor
    second: Tensor
    truth: GroundTruth


Tested = TypeVar("Tested", SeedTest, SampleTest)


def compare_pairs(
    names: tuple[str, str],
    pairs: Sequence[Pair],
    data_root: Path | None,
    *,
    resolve: Callable[[str, Path | None], Task] = resolve_task,
) -> Comparison:
    """Both tests of pairs of runs (see `pairing.choose_pairs`).

    Pairs without stored logits, and all where the task's labels are not at hand, are compared by seed alone; the
    notes say so. Raises UsageError where the runs of a pair were tested on different samples.
    """
    answers, notes = _read_answers(pairs, data_root, resolve)
    pooled, by_pair = compare_samples(answers)
    attributes = answers[0].truth.task.attributes if answers else None
    if attributes is not None:
        notes.append(f"By sample, right means right about {attributes.target}, the attribute of the groups.")
    if answers and not _one_test_split(answers):
        notes.append(
            "The test split differs between seeds: pooled, each seed's samples count as samples of their own."
        )
    return Comparison(
        *names,
        pairs[0].first.run_spec.task,
        tuple(pair.name for pair in pairs),
        compare_seeds(pairs),
        pooled,
        by_pair if len(answers) > 1 else (),
        tuple(notes),
    )


# By seed


def compare_seeds(pairs: Sequence[Pair]) -> tuple[SeedTest, ...]:
    """Sign-flip tests of the registry's compared metrics that all runs have; undefined ones are nan."""
    tests = []
    for metric in filter(lambda entry: entry.compared, metrics()):
        name = metric.name
        values = [(pair.first.metrics.get(name), pair.second.metrics.get(name)) for pair in pairs]
        if all(name in run.metrics for pair in pairs for run in (pair.first, pair.second)):
            first, second = (
                [math.nan if value is None else value for value in side] for side in zip(*values)
            )
            differences = [after - before for before, after in zip(first, second)]
            p_value = sign_flip_p_value(differences)
            tests.append(SeedTest(metric, _mean(first), _mean(second), mean_interval(differences), p_value))
    return _corrected(tests)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _corrected(tests: Sequence[Tested]) -> tuple[Tested, ...]:
    """The tests of one table with Holm's corrected p."""
    p_values = torch.tensor([test.p_value for test in tests], dtype=torch.float64)
    return tuple(replace(test, corrected_p=p) for test, p in zip(tests, holm(p_values).tolist()))


# By sample


def compare_samples(answers: Sequence[Answers]) -> tuple[tuple[SampleTest, ...], tuple[SampleTest, ...]]:
    """McNemar's tests of every scope: over all pairs, and of each pair."""
    if not answers:
        return (), ()
    pooled = [_test(scope, None, members, answers) for scope, members in _scopes(answers).items()]
    each = [
        _test(scope, entry.pair, members, [entry])
        for entry in answers
        for scope, members in _scopes([entry]).items()
    ]
    return _corrected(pooled), _corrected(each)


def _one_test_split(answers: Sequence[Answers]) -> bool:
    return len({entry.truth.test_hash for entry in answers}) == 1


def _scopes(answers: Sequence[Answers]) -> dict[str, list[Tensor]]:
    """By scope, in each pair, which samples are in it: bool `[N]`. Empty scopes are left out."""
    scopes: dict[str, list[Tensor]] = {}
    task = answers[0].truth.task
    for entry in answers:
        label, bias = entry.truth.label("test"), entry.truth.bias["test"]
        aligned = task.aligned(label, bias)
        wide = {
            "all samples": torch.ones_like(aligned),
            "bias-aligned": aligned,
            "bias-conflicting": ~aligned,
        }
        groups = {
            f"label {y}, bias {b}": (label == y) & (bias == b)
            for y in range(task.num_classes)
            for b in range(task.num_biases)
        }
        for scope, members in (wide | groups).items():
            scopes.setdefault(scope, []).append(members)
    return {scope: members for scope, members in scopes.items() if any(part.any() for part in members)}


def _test(scope: str, pair: str | None, members: list[Tensor], answers: Sequence[Answers]) -> SampleTest:
    """One scope over these pairs: pooled by sample where they share the test split."""
    first = [entry.first[chosen].long() for entry, chosen in zip(answers, members)]
    second = [entry.second[chosen].long() for entry, chosen in zip(answers, members)]
    apart = [one - other for one, other in zip(first, second)]
    first_only, second_only = (sum(int((part == sign).sum()) for part in apart) for sign in (1, -1))
    net = torch.stack(apart).sum(0) if _one_test_split(answers) else torch.cat(apart)
    single = len(answers) == 1
    p_value = mcnemar_p_value(first_only, second_only) if single else pooled_mcnemar_p_value(net.tolist())
    return SampleTest(
        scope,
        pair,
        samples=len(net),
        first_right=_mean(torch.cat(first).tolist()),
        second_right=_mean(torch.cat(second).tolist()),
        first_only=first_only,
        second_only=second_only,
        differing=int((net != 0).sum()),
        p_value=p_value,
    )


# Reading


def _read_answers(
    pairs: Sequence[Pair], data_root: Path | None, resolve: Callable[[str, Path | None], Task]
) -> tuple[list[Answers], list[str]]:
    """What the runs of each pair answered, and notes on pairs that cannot be compared by sample."""
    answers, notes = [], []
    truths: dict[int, GroundTruth] = {}
    for pair in pairs:
        try:
            for record, store in ((pair.first, pair.first_store), (pair.second, pair.second_store)):
                if not has_logits(store, record):
                    raise StoreError(f"run {record.run_id}: its logits are not stored in {store.root}")
                seed = record.run_spec.seed
                if seed not in truths:
                    truths[seed] = _read_truth((record.run_spec.task, seed), data_root, resolve)
            answers.append(_answers(pair, truths))
        except (StoreError, DataError) as error:
            notes.append(f"{pair.name}: compared by its metrics alone, not by sample: {error}")
    return answers, notes


def _answers(pair: Pair, truths: Mapping[int, GroundTruth]) -> Answers:
    right = []
    first, second = (truths[record.run_spec.seed] for record in (pair.first, pair.second))
    for record, store, truth in (
        (pair.first, pair.first_store, first),
        (pair.second, pair.second_store, second),
    ):
        try:
            logits = read_logits(record, store, truth, ("test",))["test"]
        except StoreError as error:
            raise StoreError(f"run {record.run_id}: {error}") from error
        right.append(truth.task.group_prediction(logits) == truth.label("test"))
    if first.test_hash != second.test_hash:
        raise UsageError(
            f"{pair.name}: the two runs were tested on different samples; compare runs of one seed"
        )
    return Answers(pair.name, right[0], right[1], first)


def _read_truth(
    draw: Draw, data_root: Path | None, resolve: Callable[[str, Path | None], Task]
) -> GroundTruth:
    """The labels of a draw. Raises DataError where the task is not known here or its data not at hand."""
    try:
        return load_ground_truth(draw, data_root, resolve)
    except UsageError as error:
        raise DataError(str(error)) from error
