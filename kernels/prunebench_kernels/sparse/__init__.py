"""Sparse inference: packed layouts, their convolutions, and whole networks."""
