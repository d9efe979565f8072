"""Pruning methods, one file each: this folder is the reading list."""
