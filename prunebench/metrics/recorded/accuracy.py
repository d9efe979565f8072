"""Accuracies over groups: what the average hides."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prunebench.metrics.registry import metric

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.metrics.groups import GroupTable

SHARE = (0.0, 1.0)
BOTH_PAPERS = "Nam et al., NeurIPS 2020 (LfF); Park et al., CVPR 2023 (DCWP)"

accuracy = partial(metric, unit="%", better="higher", range=SHARE)


@accuracy(
    "plain",
    title="Average accuracy",
    short="Average",
    help="Share of all samples that are right",
    cite="Sagawa et al., ICLR 2020",
    compared=True,
)
def plain(groups: GroupTable) -> float:
    return groups.plain


@accuracy(
    "unbiased",
    title="Unbiased accuracy",
    short="Unbiased",
    help="Mean accuracy over all groups of label and bias, every group counting the same",
    cite=BOTH_PAPERS,
    board=True,
    readme=True,
    compared=True,
)
def unbiased(groups: GroupTable) -> float:
    return groups.unbiased


@accuracy(
    "aligned",
    title="Bias-aligned accuracy",
    short="Bias-aligned",
    help="Mean accuracy over the groups that follow the training set's pattern",
    cite=BOTH_PAPERS,
    board=True,
    compared=True,
)
def aligned(groups: GroupTable) -> float:
    return groups.aligned


@accuracy(
    "conflicting",
    title="Bias-conflicting accuracy",
    short="Bias-conflicting",
    help="Mean accuracy over the groups that break the training set's pattern: the minorities",
    cite=BOTH_PAPERS,
    board=True,
    readme=True,
    compared=True,
)
def conflicting(groups: GroupTable) -> float:
    return groups.conflicting


@accuracy(
    "conflicting_seen",
    title="Bias-conflicting accuracy, groups seen",
    short="Conflicting, seen",
    help="Mean accuracy over the bias-conflicting groups that the training split has an image of",
    cite="PruneBench",
    board=True,
)
def conflicting_seen(groups: GroupTable, train_count: Tensor) -> float:
    return groups.conflicting_where(train_count, seen=True)


@accuracy(
    "conflicting_unseen",
    title="Bias-conflicting accuracy, groups unseen",
    short="Conflicting, unseen",
    help="Mean accuracy over the bias-conflicting groups that the training split has no image of",
    cite="PruneBench",
    board=True,
)
def conflicting_unseen(groups: GroupTable, train_count: Tensor) -> float:
    return groups.conflicting_where(train_count, seen=False)


@accuracy(
    "worst_group",
    title="Worst-group accuracy",
    short="Worst-group",
    help="Lowest accuracy of any group of a run",
    cite="Sagawa et al., ICLR 2020",
    board=True,
    compared=True,
)
def worst_group(groups: GroupTable) -> float:
    return groups.worst_group


@accuracy(
    "worst_tenth",
    title="Accuracy on the worst tenth of groups",
    short="Worst tenth",
    help="Mean over the tenth of a run's groups with the lowest accuracy, one group at least (CVaR at 10 %)",
    cite="Rockafellar & Uryasev, 2000 (CVaR); Williamson & Menon, ICML 2019, over groups",
    board=True,
    readme=True,
    compared=True,
)
def worst_tenth(groups: GroupTable) -> float:
    return groups.worst_tenth


@accuracy(
    "worst_class_conflicting",
    title="Worst class on bias-conflicting samples",
    short="Worst class, conflicting",
    help="Lowest accuracy of a class on its bias-conflicting samples",
    cite="PruneBench, after worst-group accuracy",
    board=True,
    compared=True,
)
def worst_class_conflicting(groups: GroupTable) -> float:
    return groups.worst_class_conflicting


@accuracy(
    "class_recall",
    title="Mean class recall",
    short="Class recall",
    help="Mean over classes of the share of a class's samples that are right",
    cite="Brodersen et al., ICPR 2010 (balanced accuracy)",
)
def class_recall(groups: GroupTable) -> float:
    return groups.class_recall


@metric(
    "bias_gap",
    title="Bias gap",
    unit="points",
    better="zero",
    help="Bias-aligned minus bias-conflicting accuracy: 0 for a model that does not use the bias",
    cite="PruneBench",
    range=(-1.0, 1.0),
    board=True,
    compared=True,
)
def bias_gap(groups: GroupTable) -> float:
    return groups.bias_gap


@accuracy(
    "train_weighted",
    title="Adjusted average accuracy",
    short="Adjusted average",
    help="Mean over groups, each weighted by its share of the training split",
    cite="Sagawa et al., ICLR 2020",
)
def train_weighted(groups: GroupTable, train_count: Tensor) -> float:
    return groups.train_weighted(train_count)
