"""Leaderboard: records in, tables, plots and pages out, byte for byte the same whatever the records' order."""

from prunebench.leaderboard.aggregate import build_board
from prunebench.leaderboard.build import AnalysisLink, write_board
from prunebench.leaderboard.values import Leaderboard

__all__ = ["AnalysisLink", "Leaderboard", "build_board", "write_board"]
