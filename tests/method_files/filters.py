"""Whole filters by their L1 norm, as many from every layer."""

from prunebench import criterion


@criterion("my-l1-filters", cite="Li et al., 2017", structure="filter", distribution="uniform")
def l1_filters(weight, context):
    return weight.abs()
