"""How far a kernel may be from its float64 oracle, by topic and dtype; arguments of `torch.testing.assert_close`."""

from __future__ import annotations

import torch

TOLERANCE: dict[tuple[str, torch.dtype], dict[str, float]] = {
    # Gradients of up to 2 in size; a share of them underflows where a logit is extreme.
    ("sample_masks", torch.float32): {"rtol": 1e-5, "atol": 1e-9},
    ("sample_masks", torch.float16): {"rtol": 1e-3, "atol": 6e-8},
    # Relative to the largest value of the tensor: a sum over channels and taps cancels.
    ("masked_conv2d", torch.float32): {"rtol": 1e-5, "atol": 0.0},
    ("masked_conv2d", torch.float16): {"rtol": 2e-3, "atol": 0.0},
    # Relative to 1 + |value|; mutual information is a difference of two entropies of up to log C.
    ("uncertainty", torch.float64): {"rtol": 1e-12, "atol": 1e-12},
    ("uncertainty", torch.float32): {"rtol": 1e-6, "atol": 1e-6},
    ("uncertainty", torch.float16): {"rtol": 1e-6, "atol": 1e-6},
    # Of the float64 correlation of the same values, at any offset.
    ("correlation", torch.float32): {"rtol": 0.0, "atol": 1e-5},
    ("correlation", torch.float16): {"rtol": 0.0, "atol": 1e-5},
    # Relative to the largest value of the tensor: a sum over channels and taps cancels.
    ("sparse_conv2d", torch.float64): {"rtol": 1e-12, "atol": 0.0},
    ("sparse_conv2d", torch.float32): {"rtol": 1e-5, "atol": 0.0},
    ("sparse_conv2d", torch.float16): {"rtol": 2e-3, "atol": 0.0},
    ("sparse_conv2d", torch.bfloat16): {"rtol": 1.6e-2, "atol": 0.0},
}
