"""Two runs or methods compared: paired by seed, by the board's own test, and by sample.

By seed: do the methods differ when they are trained again? On rows that the board compares, the verdict is the board's:
paired t-tests, corrected by Benjamini and Hochberg over all tests of that track, sparsity and metric
(`results.ranking`). Any other two are a family of their own. By sample: do these very models differ on samples like
these? A sign-flip test over source images of who is right: an image in ten colours, or under three seeds, is flipped
as one. That table is corrected by Holm's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prunebench.comparison.pairing import Pair
from prunebench.errors import DataError, StoreError, UsageError
from prunebench.metrics.registry import Metric, metrics
from prunebench.results.ranking import (
    FEWEST_SEEDS,
    TrackRanking,
    paired_differences,
    rank_track,
    unranked_reason,
)
from prunebench.results.record import RunRecord
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.standing import read_standing
from prunebench.results.store import open_results
from prunebench.results.tracks import Place, SeedPlan, finished_runs, split_tracks
from prunebench.runner.ground_truth import GroundTruth
from prunebench.runner.plan import board_plans
from prunebench.runner.rescore import Draw, has_logits, load_ground_truth, read_logits
from prunebench.stats.clusters import cluster_sums, clustered_mcnemar_p_value, clustered_t
from prunebench.stats.intervals import Interval, mean_interval
from prunebench.stats.multiplicity import Verdicts, holm_adjusted, paired_verdicts
from prunebench.stats.tests import paired_p_value
from prunebench.tasks import Task, resolve_task


@dataclass(frozen=True)
class SeedTest:
    """A metric over seeds: both means, the t interval of second minus first, and what the paired t-test says.

    `corrected_p` is Benjamini and Hochberg's q over the `family` of tests that this one stands among; nan where the
    pair was not tested. `decided`: whether the two differ at a false discovery rate of 5 %.
    """

    metric: Metric
    first: float
    second: float
    difference: Interval
    p_value: float
    corrected_p: float = math.nan
    decided: bool = False
    family: int = 0


@dataclass(frozen=True)
class SampleTest:
    """Samples of one scope, in one pair of runs (`pair`) or in all (None).

    Scopes: `all samples`, `bias-aligned`, `bias-conflicting`, and each group, `label 3, bias 7`. `first_only` and
    `second_only` count samples that only one got right, added up over the pairs; `images` the source images behind
    them, `differing` those that the sides differ on after pooling. `difference` is of second minus first, with the
    half-width of its 95 % interval over images.
    """

    scope: str
    pair: str | None
    samples: int
    images: int
    first_right: float
    second_right: float
    difference: Interval
    first_only: int
    second_only: int
    differing: int
    p_value: float
    corrected_p: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """The tables, each with its own correction. `by_pair` is empty with one pair; `notes` says what was left out.

    `board`: whether the verdicts by seed are the board's. `untested`: why the two were not tested by seed, if so.
    """

    first: str
    second: str
    task: str
    pairs: tuple[str, ...]
    by_seed: tuple[SeedTest, ...]
    pooled: tuple[SampleTest, ...]
    by_pair: tuple[SampleTest, ...]
    notes: tuple[str, ...]
    board: bool = False
    untested: str = ""


@dataclass(frozen=True)
class Answers:
    """One pair of runs on the test split: whether each is right, bool `[N]`."""

    pair: str
    first: Tensor
    second: Tensor
    truth: GroundTruth


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
    cell = find_cell(pairs)
    counted = pairs if cell is None else [pair for pair in pairs if pair.seed in cell.ranking.planned]
    extra = [pair.name for pair in pairs if pair not in counted]
    if extra:
        notes.append(f"By seed, {', '.join(extra)} beyond the planned ones do not count, as on the board.")
    return Comparison(
        *names,
        pairs[0].first.run_spec.task,
        tuple(pair.name for pair in pairs),
        compare_seeds(counted, cell),
        pooled,
        by_pair if len(answers) > 1 else (),
        tuple(notes),
        cell is not None,
        _why_untested(counted, cell),
    )


# By seed


@dataclass(frozen=True)
class BoardCell:
    """Two rows that the board tests against each other: of one track, at one sparsity."""

    ranking: TrackRanking
    first: Place
    second: Place
    sparsity: float | None

    def verdicts(self, metric: str) -> Verdicts:
        """The board's tests of a metric at this sparsity."""
        return self.ranking.verdicts(self.sparsity, metric)


def find_cell(pairs: Sequence[Pair], plans: Sequence[SeedPlan] | None = None) -> BoardCell | None:
    """Where the board compares the two sides of these pairs; None where it does not.

    It compares ranked rows of one sparsity, and every row with the reference; never runs of two folders, and no single
    pair out of several.
    """
    stores = {store.root for pair in pairs for store in (pair.first_store, pair.second_store)}
    if len(stores) > 1 or not (root := stores.pop()).exists():
        return None
    records = list(filter(_counts, read_standing(root).listed(open_results(root).records()[0])))
    sides = zip(*((pair.first, pair.second) for pair in pairs))
    ids = [{record.run_id for record in filter(_counts, side)} for side in sides]
    for runs in split_tracks(records).values():
        if not {run.run_id for run in runs} >= ids[0] | ids[1]:
            continue
        ranking = rank_track(runs, board_plans() if plans is None else plans)
        places = [
            {place for place, row in ranking.rows.items() if {run.run_id for run in row} & side}
            for side in ids
        ]
        if {len(found) for found in places} != {1}:
            return None
        first, second = (found.pop() for found in places)
        shared = {*finished_runs(ranking.rows[first])} & {*finished_runs(ranking.rows[second])}
        whole = shared <= {pair.seed for pair in pairs} and all(pair.paired for pair in pairs)
        if whole and first != second and ranking.compares(first, second):
            other = second if first == ranking.reference else first
            return BoardCell(ranking, first, second, other[0])
    return None


def _counts(record: RunRecord) -> bool:
    """Whether a run's seed is one of the board's, and none for choosing budgets."""
    return record.run_spec.seed < TUNE_SEEDS


def compare_seeds(pairs: Sequence[Pair], cell: BoardCell | None = None) -> tuple[SeedTest, ...]:
    """Paired t-tests of the registry's compared metrics that all runs have; undefined ones are nan."""
    tests = []
    for metric in filter(lambda entry: entry.compared, metrics()):
        name = metric.name
        if pairs and all(name in run.metrics for pair in pairs for run in (pair.first, pair.second)):
            first, second = (
                {place: _number(run.metrics[name]) for place, run in enumerate(side)}
                for side in zip(*((pair.first, pair.second) for pair in pairs))
            )
            labels = ("first", "second") if cell is None else (cell.first[1], cell.second[1])
            found = (
                paired_verdicts(dict(zip(labels, (first, second))), fewest=FEWEST_SEEDS)
                if cell is None
                else cell.verdicts(name)
            )
            tests.append(
                SeedTest(
                    metric,
                    _mean([*first.values()]),
                    _mean([*second.values()]),
                    mean_interval(paired_differences(second, first)),
                    paired_p_value(first, second),
                    found.q(*labels),
                    found.decided(*labels),
                    len(found.q_values),
                )
            )
    return tuple(tests)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _why_untested(pairs: Sequence[Pair], cell: BoardCell | None) -> str:
    """Why no difference by seed could be decided, in words; empty where some could."""
    if cell is not None:
        for place in (cell.first, cell.second):
            reason = unranked_reason(cell.ranking.rows[place], cell.ranking.planned, of_rows=False)
            if reason and place != cell.ranking.reference:
                return f"{place[1]}: {reason}"
    if len(pairs) < FEWEST_SEEDS:
        return f"{len(pairs)} of at least {FEWEST_SEEDS} seeds"
    return ""


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


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


def _corrected(tests: Sequence[SampleTest]) -> tuple[SampleTest, ...]:
    """The tests of one table with Holm's corrected p."""
    adjusted = holm_adjusted([test.p_value for test in tests])
    return tuple(replace(test, corrected_p=p) for test, p in zip(tests, adjusted, strict=True))


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
    """One scope over these pairs, clustered by source image: also by the same image in several pairs."""
    first = [entry.first[chosen].long() for entry, chosen in zip(answers, members)]
    second = [entry.second[chosen].long() for entry, chosen in zip(answers, members)]
    net = (torch.cat(first) - torch.cat(second)).numpy()
    images = torch.cat([entry.truth.image["test"][chosen] for entry, chosen in zip(answers, members)]).numpy()
    mean, half_width, _ = clustered_t(-net, images)
    by_image = cluster_sums(net, images)
    return SampleTest(
        scope,
        pair,
        samples=len(net) // len(answers) if _one_test_split(answers) else len(net),
        images=len(by_image),
        first_right=_mean(torch.cat(first).tolist()),
        second_right=_mean(torch.cat(second).tolist()),
        difference=Interval(mean, half_width, len(by_image)),
        first_only=int((net == 1).sum()),
        second_only=int((net == -1).sum()),
        differing=int((by_image != 0).sum()),
        p_value=clustered_mcnemar_p_value(net, images),
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
