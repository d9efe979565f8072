"""2:4 wherever the layer has channels for it, and nothing else: the pattern says how sparse that is."""

from prunebench import criterion


@criterion("my-two-four-native", cite="Mishra et al., 2021", structure="2:4", native=True)
def two_four(weight, context):
    return weight.abs()
