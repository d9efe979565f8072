"""The only training loop, and its losses."""

from prunebench.data.images import Images, draw_batches
from prunebench.training.loop import Batch, LoopSettings, evaluate, resolve_precision, train

__all__ = ["Batch", "Images", "LoopSettings", "draw_batches", "evaluate", "resolve_precision", "train"]
