"""Channels removed by the L1 norm of their filters: the network gets narrower."""

from prunebench import criterion


@criterion("my-l1-channels", cite="Li et al., 2017", structure="channel", distribution="uniform")
def l1_channels(weight, context):
    return weight.abs()
