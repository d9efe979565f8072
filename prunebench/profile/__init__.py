"""Sparse performance on the machine at hand: layers and whole networks, against dense and the roofline."""
