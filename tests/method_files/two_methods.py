"""Two methods in a file: a paper with a variant."""

from prunebench import criterion


@criterion("variant-a", cite="an example")
def first(weight, context, *, power=1.0):
    return weight.abs() ** power


@criterion("variant-b", cite="an example")
def second(weight, context):
    return weight.abs() / weight.abs().mean()
