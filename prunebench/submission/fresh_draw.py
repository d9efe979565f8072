"""Fresh draws: a network's answers on the public test split, held against those on one that nobody could know.

Of every source image the share of right answers is taken on both draws. An honest network, which has seen neither, is
right on both equally often but for chance; one that was fitted to the public test split is not. The difference
(public - fresh) of a method is held against that of the dense models of the same seeds on the same draws, image by
image, and is beyond what is expected of honest networks where it is more than `LEAST` and `LEVEL` allow. The dense
models, which came with the submission, are held against zero.

Where the fresh draw shows the public images anew, a network fitted to the images themselves does well on both. So the
public test split is held against other images too: those of validation, drawn so that all groups count alike on both
sides. An honest network was trained on neither; one that was trained on validation's does better there, which is not
flagged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunebench.report import format as fmt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from prunebench.runner.evaluate import TaskData

    Floats = NDArray[np.float64]

LEVEL, LEAST = 0.01, 0.005
"""Chance that any row of an honest submission is flagged; a difference that is too small to be worth a cheat."""
SUBSETS, OTHERS = ("all", "conflicting"), "other"
DECIMALS = 6

Shares = Mapping[str, Sequence[Sequence[float]]]
"""By subset of the samples: the share of right answers of each source image on the public and on the fresh draw.

Of `OTHERS` the second list is of validation's images; both are weighed so that their means are those over groups.
"""


def fresh_shares(model: nn.Module, public: TaskData, fresh: TaskData) -> dict[str, list[list[float]]]:
    """What a network answers rightly, by source image, on both draws.

    Where both show the same images the two lists are of the same images, nan where a draw has no such sample of one.
    Where the fresh draw shows others, public images of classes that it lacks are left out.
    """
    import numpy as np

    samples = [_samples(model, data) for data in (public, fresh)]
    found = {OTHERS: _beside_validation(model, samples[0].right, public, fresh)}
    images = [np.unique(sample.image) for sample in samples]
    same = np.array_equal(images[0], images[1])
    known = np.unique(samples[1].label)
    for subset in SUBSETS:
        found[subset] = []
        for sample, every in zip(samples, images):
            chosen = sample.conflicting if subset == "conflicting" else np.ones(len(sample.image), dtype=bool)
            chosen = chosen & (same | np.isin(sample.label, known))
            place = np.searchsorted(every, sample.image[chosen])
            count = np.bincount(place, minlength=len(every)).astype(np.float64)
            total = np.bincount(place, sample.right[chosen], minlength=len(every))
            share = np.where(count > 0, total / np.maximum(count, 1), math.nan)
            found[subset].append(np.round(share if same else share[count > 0], DECIMALS).tolist())
    return found


def _beside_validation(
    model: nn.Module, right_in_public: Floats, public: TaskData, fresh: TaskData
) -> list[list[float]]:
    """By image of the public test split, and of balanced validation: values whose mean is the mean over groups."""
    import numpy as np

    from prunebench.training.loop import evaluate

    task, labels, beside = public.task, public.labels, fresh.visible_balanced("val-groups")
    assert beside is not None
    sides = (
        (right_in_public, labels.group("test"), labels.image["test"]),
        (
            _right(evaluate(model, beside.images), beside.y).numpy(),
            task.group_label(beside.y) * task.num_biases + beside.bias,
            fresh.balanced_images(),
        ),
    )
    common = np.intersect1d(*(group.unique().numpy() for _, group, _ in sides))
    values = []
    for right, group, image in sides:
        kept = np.isin(group.numpy(), common)
        place, count = np.unique(group.numpy()[kept], return_inverse=True, return_counts=True)[1:]
        weight = 1.0 / (len(common) * count[place])
        numbers, at = np.unique(image.numpy()[kept], return_inverse=True)
        total = np.bincount(at, weight * right[kept], minlength=len(numbers))
        values.append(np.round(len(numbers) * total, DECIMALS).tolist())
    return values


@dataclass(frozen=True)
class _Samples:
    """Of every sample, `[N]`: share of right answers, source image, label, whether bias-conflicting."""

    right: Floats
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    conflicting: NDArray[np.bool_]


def _samples(model: nn.Module, data: TaskData) -> _Samples:
    from prunebench.training.loop import evaluate

    labels, task = data.labels, data.task
    right = _right(evaluate(model, data.images["test"]), labels.y["test"])
    label = labels.label("test")
    conflicting = ~task.aligned(label, labels.bias["test"])
    return _Samples(right.numpy(), labels.image["test"].numpy(), label.numpy(), conflicting.numpy())


def _right(logits: Tensor, y: Tensor) -> Tensor:
    """The share of right answers of each sample, float64 `[N]`: 0 or 1, or that of K attributes."""
    if y.ndim == 2:
        return ((logits > 0) == y.bool()).double().mean(1)
    return (logits.argmax(1) == y).double()


@dataclass(frozen=True)
class Gap:
    """Accuracy of a row on both draws, by how much it differs from what is expected, and the most that chance gives."""

    row: str
    subset: str
    public: float
    fresh: float
    excess: float
    allowed: float

    @property
    def beyond(self) -> bool:
        """Whether no honest network is expected to differ so."""
        return not self.excess <= self.allowed

    @property
    def words(self) -> str:
        """One line, in points; a tenth of a point is all that is told of a fresh draw."""
        difference, most = (fmt.percent(value) for value in (self.excess, self.allowed))
        beside = "validation's images" if self.subset == OTHERS else "a fresh one"
        kind = "mean over groups" if self.subset == OTHERS else f"{self.subset} images"
        return (
            f"{self.row}, {kind}: {fmt.percent(self.public)} % right on the public draw, "
            f"{fmt.percent(self.fresh)} % on {beside}; excess {difference} points, honest at most {most}"
        )


@dataclass(frozen=True)
class FreshRow:
    """A row's runs on both draws, by seed; for the dense models themselves `dense` is empty."""

    name: str
    runs: Mapping[int, Shares]
    dense: Mapping[int, Shares]


def judge(rows: Sequence[FreshRow]) -> list[Gap]:
    """The gaps of all rows, in order; together no more than `LEVEL` of honest submissions have one beyond."""
    from scipy.special import ndtri

    quantile = float(ndtri(1 - LEVEL / max(len(rows) * (len(SUBSETS) + 1), 1)))
    return [gap for row in rows for gap in _gaps(row, quantile)]


def _gaps(row: FreshRow, quantile: float) -> Iterator[Gap]:
    import numpy as np

    for subset in (*SUBSETS, OTHERS) if row.dense else SUBSETS:
        if not all(subset in shares for shares in row.runs.values()):
            continue
        runs = [[np.array(side) for side in shares[subset]] for shares in row.runs.values()]
        if not runs or not all(np.isfinite(side).any() for run in runs for side in run):
            continue
        public, fresh = (float(np.mean([np.nanmean(run[place]) for run in runs])) for place in (0, 1))
        if row.dense:
            dense = [[np.array(side) for side in row.dense[seed][subset]] for seed in row.runs]
            runs = [[own - other for own, other in zip(*pair)] for pair in zip(runs, dense, strict=True)]
        excess, error = difference(runs)
        yield Gap(row.name, subset, public, fresh, excess, LEAST + quantile * error)


def difference(runs: Sequence[Sequence[Floats]]) -> tuple[float, float]:
    """Mean of public - fresh over source images, and its standard error; `runs`: both draws by seed.

    The seeds of a row share the public images, so an image counts once, with its mean over seeds.
    """
    import numpy as np

    if all(len(public) == len(fresh) for public, fresh in runs):
        gaps = _mean_over_seeds([public - fresh for public, fresh in runs])
        return float(gaps.mean()), _error(gaps)
    public = _mean_over_seeds([public for public, _ in runs])
    fresh = [values[np.isfinite(values)] for _, values in runs]
    mean = float(public.mean() - np.mean([values.mean() for values in fresh]))
    return mean, math.hypot(_error(public), float(np.mean([_error(values) for values in fresh])))


def _mean_over_seeds(values: Sequence[Floats]) -> Floats:
    """By image, over the seeds that have it; images that none has are left out."""
    import numpy as np

    stacked = np.stack(values)
    count = np.isfinite(stacked).sum(0)
    return (np.nansum(stacked, 0)[count > 0] / count[count > 0]).astype(np.float64)


def _error(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf
