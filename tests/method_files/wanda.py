"""Wanda: a weight counts as much as its magnitude times the norm of the input that it meets."""

from prunebench import criterion


@criterion("my-wanda", cite="Sun et al., 2024 (Wanda)", needs={"activation_norm"}, distribution="uniform")
def wanda(weight, context):
    return weight.abs() * context.activation_norm(weight)
