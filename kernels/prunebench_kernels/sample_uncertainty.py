"""How sure one or several models are of each sample, in one pass over the logits.

(The function carries the operation's name, `uncertainty`; a module of that name would hide it from importers.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunebench_kernels.backend import Choice, explains, is_traced, requested, select
from prunebench_kernels.checks import check_device, check_floating, check_tensor
from prunebench_kernels.errors import ArgumentError
from prunebench_kernels.sample_uncertainty_torch import allocate, compute
from prunebench_kernels.uncertainty_values import OVER_MODELS, PER_MODEL, Uncertainty

LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def uncertainty(
    logits: Tensor,
    *,
    labels: Tensor | None = None,
    dense_logits: Tensor | None = None,
    band: float = 0.4,
    backend: str | None = None,
) -> Uncertainty:
    """Uncertainty of each sample; the fields, their formulas and shapes stand at `Uncertainty`.

    logits `[N, C]`, or `[M, N, C]` for M models; labels `[N]` of classes 0..C-1 for the negative log-likelihood;
    dense_logits `[N, C]` of the model to compare with; 0 < band < 0.5 about the probability 0.5. Computed in float32
    (float64 logits: in float64). A measurement: nothing is differentiable, and no result requires a gradient.

    For the correlation, logits of one row that differ must do so by 1e-37 to 2e38; the other values are right beyond
    that too.

    Raises ArgumentError for wrong shapes, dtypes and devices, values that are not finite and labels outside 0..C-1;
    on a GPU the kernel itself looks for those, and the call waits for it.
    """
    _check(logits, labels, dense_logits, band)
    over_models = logits.ndim == 3
    run = _operator if is_traced(logits) else _run
    values = run(
        logits.detach() if over_models else logits.detach().unsqueeze(0),
        labels,
        None if dense_logits is None else dense_logits.detach(),
        float(band),
        over_models,
        requested(backend),
    )
    absent = {
        "negative_log_likelihood": labels is None,
        "kl_to_dense": dense_logits is None,
        "correlation_to_dense": dense_logits is None,
        **dict.fromkeys(OVER_MODELS, not over_models),
    }
    fields = dict(zip((*PER_MODEL, *OVER_MODELS), values))
    shaped = {
        name: value.squeeze(0) if name in PER_MODEL and not over_models else value
        for name, value in fields.items()
        if not absent.get(name, False)
    }
    return Uncertainty(**{"negative_log_likelihood": None, **shaped})


@explains("uncertainty")
def _explain(
    logits: Tensor,
    *,
    labels: Tensor | None = None,
    dense_logits: Tensor | None = None,
    band: float = 0.4,
    backend: str | None = None,
) -> Choice:
    _check(logits, labels, dense_logits, band)
    return _choose(logits, backend)


def _choose(logits: Tensor, backend: str | None) -> Choice:
    refusal = None
    if logits.dtype == torch.float64:
        refusal = "the kernel computes in float32, and the logits are float64"
    elif logits.shape[-1] >= 1 << 20:
        refusal = "the kernel takes fewer than 2^20 classes"
    return select(backend, logits.device, logits.dtype, refusal)


def _check(logits: Tensor, labels: Tensor | None, dense_logits: Tensor | None, band: float) -> None:
    """Raise ArgumentError for what shapes, dtypes and devices tell; values are looked at where they are read."""
    check_floating("logits", check_tensor("logits", logits))
    if logits.ndim not in (2, 3) or logits.shape[-1] < 2 or 0 in logits.shape:
        raise ArgumentError(
            f"logits: want [N, C] or [M, N, C] with M, N >= 1 and C >= 2, got {tuple(logits.shape)}"
        )
    samples, classes = logits.shape[-2:]
    if labels is not None:
        check_device("labels", check_tensor("labels", labels), "logits", logits)
        if labels.shape != (samples,):
            raise ArgumentError(f"labels: want [{samples}], one a sample, got {tuple(labels.shape)}")
        if labels.dtype not in LABELS:
            raise ArgumentError(f"labels: want an integer dtype, got {labels.dtype}")
    if dense_logits is not None:
        check_floating("dense_logits", check_tensor("dense_logits", dense_logits))
        check_device("dense_logits", dense_logits, "logits", logits)
        if dense_logits.shape != (samples, classes):
            raise ArgumentError(
                f"dense_logits: want [{samples}, {classes}] as the logits, got {tuple(dense_logits.shape)}"
            )
    if not 0 < band < 0.5:
        raise ArgumentError(f"band: want a number between 0 and 0.5, got {band}")


def _run(
    logits: Tensor,
    labels: Tensor | None,
    dense_logits: Tensor | None,
    band: float,
    over_models: bool,
    backend: str,
) -> list[Tensor]:
    """For logits `[M, N, C]`: the fields in the order of PER_MODEL and OVER_MODELS; absent ones have no elements."""
    if labels is not None:
        labels = labels.to(torch.int64)
    if _choose(logits, backend).is_triton:
        from prunebench_kernels.sample_uncertainty_triton import launch

        return launch(logits, labels, dense_logits, band, over_models)
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
        raise ArgumentError(f"labels: values outside 0..{logits.shape[-1] - 1}")
    return compute(logits, labels, dense_logits, band, over_models)


_operator = torch.library.custom_op("prunebench::uncertainty", mutates_args=())(_run)


@_operator.register_fake
def _fake(
    logits: Tensor,
    labels: Tensor | None,
    dense_logits: Tensor | None,
    band: float,
    over_models: bool,
    backend: str,
) -> list[Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return allocate(logits, labels is not None, dense_logits is not None, over_models, dtype)
