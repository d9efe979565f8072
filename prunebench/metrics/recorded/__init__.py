"""Metrics that a record holds, one file a family: a new one is a file here (see `metrics.registry`)."""
