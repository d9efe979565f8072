"""A method whose second file stands beside it."""

from helper_scores import score

from prunebench import criterion


@criterion("my-two-files", cite="an example")
def two_files(weight, context):
    return score(weight)
