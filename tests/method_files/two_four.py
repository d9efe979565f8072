"""2:4 at any sparsity from a half on: at most two of four weights stay, exactly as many as asked in all."""

from prunebench import criterion


@criterion("my-two-four", cite="Mishra et al., 2021 (Accelerating sparse DNNs)", structure="2:4")
def two_four(weight, context):
    return weight.abs()
