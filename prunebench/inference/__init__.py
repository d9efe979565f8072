"""The cost of a model in use: latency, memory, multiply-accumulates, and cascades."""
