"""Accuracies over groups: what the average hides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench.metrics.registry import metric

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.metrics.groups import GroupTable

SHARE = (0.0, 1.0)
BOTH_PAPERS = "Nam et al., NeurIPS 2020 (LfF); Park et al., CVPR 2023 (DCWP)"


@metric(
    "plain",
    title="Average accuracy",
    short="Average",
    unit="%",
    better="higher",
    help="Share of all samples that are right",
    cite="Sagawa et al., ICLR 2020",
    range=SHARE,
    compared=True,
)
def plain(groups: GroupTable) -> float:
    return groups.plain


@metric(
    "unbiased",
    title="Unbiased accuracy",
    short="Unbiased",
    unit="%",
    better="higher",
    help="Mean accuracy over all groups of label and bias, every group counting the same",
    cite=BOTH_PAPERS,
    range=SHARE,
    board=True,
    readme=True,
    compared=True,
)
def unbiased(groups: GroupTable) -> float:
    return groups.unbiased


@metric(
    "aligned",
    title="Bias-aligned accuracy",
    short="Bias-aligned",
    unit="%",
    better="higher",
    help="Mean accuracy over the groups that follow the training set's pattern",
    cite=BOTH_PAPERS,
    range=SHARE,
    board=True,
    compared=True,
)
def aligned(groups: GroupTable) -> float:
    return groups.aligned


@metric(
    "conflicting",
    title="Bias-conflicting accuracy",
    short="Bias-conflicting",
    unit="%",
    better="higher",
    help="Mean accuracy over the groups that break the training set's pattern: the minorities",
    cite=BOTH_PAPERS,
    range=SHARE,
    board=True,
    readme=True,
    compared=True,
)
def conflicting(groups: GroupTable) -> float:
    return groups.conflicting


@metric(
    "conflicting_seen",
    title="Bias-conflicting accuracy, groups seen",
    short="Conflicting, seen",
    unit="%",
    better="higher",
    help="Mean accuracy over the bias-conflicting groups that the training split has an image of",
    cite="PruneBench",
    range=SHARE,
    board=True,
)
def conflicting_seen(groups: GroupTable, train_count: Tensor) -> float:
    return groups.conflicting_where(train_count, seen=True)


@metric(
    "conflicting_unseen",
    title="Bias-conflicting accuracy, groups unseen",
    short="Conflicting, unseen",
    unit="%",
    better="higher",
    help="Mean accuracy over the bias-conflicting groups that the training split has no image of",
    cite="PruneBench",
    range=SHARE,
    board=True,
)
def conflicting_unseen(groups: GroupTable, train_count: Tensor) -> float:
    return groups.conflicting_where(train_count, seen=False)


@metric(
    "worst_group",
    title="Worst-group accuracy",
    short="Worst-group",
    unit="%",
    better="higher",
    help="Lowest accuracy of any group of a run",
    cite="Sagawa et al., ICLR 2020",
    range=SHARE,
    board=True,
    compared=True,
)
def worst_group(groups: GroupTable) -> float:
    return groups.worst_group


@metric(
    "worst_tenth",
    title="Accuracy on the worst tenth of groups",
    short="Worst tenth",
    unit="%",
    better="higher",
    help="Mean over the tenth of a run's groups with the lowest accuracy, one group at least (CVaR at 10 %)",
    cite="Rockafellar & Uryasev, 2000 (CVaR); Williamson & Menon, ICML 2019, over groups",
    range=SHARE,
    board=True,
    readme=True,
    compared=True,
)
def worst_tenth(groups: GroupTable) -> float:
    return groups.worst_tenth


@metric(
    "worst_class_conflicting",
    title="Worst class on bias-conflicting samples",
    short="Worst class, conflicting",
    unit="%",
    better="higher",
    help="Lowest accuracy of a class on its bias-conflicting samples",
    cite="PruneBench, after worst-group accuracy",
    range=SHARE,
    board=True,
    compared=True,
)
def worst_class_conflicting(groups: GroupTable) -> float:
    return groups.worst_class_conflicting


@metric(
    "class_recall",
    title="Mean class recall",
    short="Class recall",
    unit="%",
    better="higher",
    help="Mean over classes of the share of a class's samples that are right",
    cite="Brodersen et al., ICPR 2010 (balanced accuracy)",
    range=SHARE,
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


@metric(
    "train_weighted",
    title="Adjusted average accuracy",
    short="Adjusted average",
    unit="%",
    better="higher",
    help="Mean over groups, each weighted by its share of the training split",
    cite="Sagawa et al., ICLR 2020",
    range=SHARE,
)
def train_weighted(groups: GroupTable, train_count: Tensor) -> float:
    return groups.train_weighted(train_count)
