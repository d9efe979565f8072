"""Intervals, tests and the bootstrap."""
