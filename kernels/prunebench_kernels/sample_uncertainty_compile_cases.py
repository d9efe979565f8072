"""Argument types and compile-time values that the cases of both uncertainty kernels share."""

from __future__ import annotations

VALUE_POINTERS = {
    f"{name}_ptr": "*fp32"
    for name in (
        *("max_probability", "margin", "entropy", "likelihood", "in_band", "kl", "correlation"),
        *("mean", "predictive", "information", "agreement"),
    )
}
SIZES = {"models": "i32", "samples": "i32", "model_stride": "i32", "threshold": "fp32"}


def signature(element: str) -> dict[str, str]:
    """Types of the arguments that both kernels have, for logits of Triton's type `element`."""
    return {
        "logits_ptr": f"*{element}",
        "dense_ptr": f"*{element}",
        "labels_ptr": "*i64",
        **VALUE_POINTERS,
        "vote_ptr": "*i64",
        "flags_ptr": "*i32",
        **SIZES,
    }


def constants_of(classes: int, columns: int, *, compared: bool, over_models: bool) -> dict[str, object]:
    """Compile-time values for contiguous logits with labels."""
    return {
        "MODEL_UNIT": 16,
        "ROW_STRIDE": classes,
        "DENSE_STRIDE": classes,
        "CLASSES": classes,
        "HAS_LABELS": True,
        "HAS_DENSE": compared,
        "OVER_MODELS": over_models,
        "COLUMNS": columns,
    }


ONES = {"models": 1, "samples": 1, "model_stride": 1}
"""Triton's launcher compiles integers that are 1 into the kernel."""
