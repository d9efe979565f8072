"""Dependence between output columns: co-occurrence, correlation, interdependence; batched over models.

These are measurements: the results carry no gradient. Input that breaks a rule on values is found in the one pass
over the data, so each operation ends by reading a flag, which waits for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunebench_kernels import dependence_torch as in_torch
from prunebench_kernels.backend import Choice, explains, is_traced, select
from prunebench_kernels.checks import FLOATS, check_tensor
from prunebench_kernels.errors import ArgumentError

BYTES = (torch.bool, torch.uint8, torch.int8)
WHOLE = (*BYTES, torch.int16, torch.int32, torch.int64)
PROBED_ROWS = 256


def cooccurrence(predictions: Tensor, *, backend: str | None = None) -> Tensor:
    """How often columns are 1 together: X'X, exact counts; the diagonal counts the ones of each column.

    predictions: only 0 and 1, `[N, K]` or `[M, N, K]`, bool, uint8, int8 or floating. Returns int64 `[K, K]` or
    `[M, K, K]`. Raises ArgumentError on another value (found during the pass), dtype or shape, or no element.
    """
    batched = _batched("predictions", predictions, (*FLOATS, *BYTES), fewest=1)
    run = _cooccurrence_operator if is_traced(batched) else _cooccurrence
    result = run(batched, backend or "")
    return result if predictions.ndim == 3 else result.squeeze(0)


def correlation(outputs: Tensor, *, backend: str | None = None) -> Tensor:
    """Pearson correlation between columns: `[N, K]` to `[K, K]`, or `[M, N, K]` to `[M, K, K]`, float64.

    r_ij = cov_ij / sqrt(cov_ii cov_jj) in one pass over shifted data, clamped to [-1, 1]; exactly 1 on the
    diagonal. A constant column gives nan in its own row and column only. 0/1 columns: from exact counts (phi).
    The kernel is within 1e-5 of float64 (at most 1.1e-6 in the interpreter); torch computes in float64.
    Raises ArgumentError on fewer than two samples, no column, another dtype, or values that are not finite.
    """
    batched = _batched("outputs", outputs, (*FLOATS, *WHOLE), fewest=2)
    run = _correlation_operator if is_traced(batched) else _correlation
    result = run(batched, backend or "")
    return result if outputs.ndim == 3 else result.squeeze(0)


def interdependence(predictions: Tensor, *, backend: str | None = None) -> Tensor:
    """R2 of the least-squares fit (with intercept) of each column on all others: `[K]`, or `[M, K]`; float64.

    Fitted and scored on the same data, so with the correlation matrix R of the columns R2_j = 1 - 1 / (R^-1)_jj:
    one matrix and one inverse for K fits. A constant column is nan and no regressor of the others. A column that
    is a linear combination of others (a duplicate, y and 1 - y, a sum, more columns than rows) has R2 = 1; the
    others then follow from the pseudo-inverse, as in a minimum-norm fit. One varying column alone: R2 = 0.
    Equals scikit-learn's LinearRegression scores, but for real columns that are nearly collinear: release 1.9 and
    later drop directions below 1e-6 of the strongest (their `tol`), where this keeps what float64 resolves.
    predictions: `[N, K]` or `[M, N, K]`, 0/1 or real. Raises ArgumentError as `correlation` does.
    """
    batched = _batched("predictions", predictions, (*FLOATS, *WHOLE), fewest=2)
    run = _interdependence_operator if is_traced(batched) else _interdependence
    result = run(batched, backend or "")
    return result if predictions.ndim == 3 else result.squeeze(0)


def _batched(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...], fewest: int) -> Tensor:
    """`[M, N, K]` without gradient. Raises ArgumentError on a wrong type, dtype or shape."""
    check_tensor(name, value)
    if value.dtype not in dtypes:
        raise ArgumentError(f"{name}: dtype {value.dtype} is not taken")
    if value.ndim not in (2, 3) or value.shape[-2] < fewest or value.numel() == 0:
        raise ArgumentError(
            f"{name}: want [N, K] or [M, N, K] with N >= {fewest}, M, K >= 1, got {tuple(value.shape)}"
        )
    value = value.detach()
    return value if value.ndim == 3 else value.unsqueeze(0)


def _refusal(batched: Tensor) -> str | None:
    """Why the kernels do not take this input, if so."""
    if batched.dtype not in (*BYTES, torch.float32, torch.float16, torch.bfloat16):
        return f"{batched.dtype} is computed in float64, in torch"
    if batched.shape[-1] > 8192:
        return "more than 8192 columns: the kernels' workspace grows with their square"
    if batched.shape[-2] >= 1 << 31:
        return "2^31 rows or more"
    return None


def _is_binary_so_far(batched: Tensor) -> bool:
    """Whether the first rows hold only 0 and 1."""
    head = batched[:, :PROBED_ROWS]
    return batched.dtype == torch.bool or bool(((head == 0) | (head == 1)).all())


def _choose(batched: Tensor, backend: str | None) -> Choice:
    return select(backend, batched.device, batched.dtype, _refusal(batched))


def _choose_interdependence(batched: Tensor, backend: str | None) -> Choice:
    choice = _choose(batched, backend)
    if choice.is_triton and not _is_binary_so_far(batched):
        return Choice("torch", "real-valued columns: an inverse needs float64 sums, the kernel's are float32")
    return choice


def _counts(batched: Tensor, choice: Choice) -> Tensor | None:
    """Counts X'X; None if a value is not 0 or 1."""
    if not choice.is_triton:
        return in_torch.counts(batched)
    from prunebench_kernels import dependence_triton

    batched = batched.contiguous()
    counts, flags = dependence_triton.cooccurrence(
        batched.view(torch.uint8) if batched.dtype == torch.bool else batched
    )
    return None if flags.cpu().any() else counts


def _cooccurrence(predictions: Tensor, backend: str) -> Tensor:
    counts = _counts(predictions, _choose(predictions, backend))
    if counts is None:
        raise ArgumentError("predictions: want only 0 and 1, found another value")
    return counts


def _correlation(outputs: Tensor, backend: str) -> Tensor:
    choice = _choose(outputs, backend)
    if outputs.dtype in BYTES:
        counts = _counts(outputs, choice)
        if counts is not None:
            return in_torch.phi(counts, outputs.shape[1])
    if not choice.is_triton:
        return in_torch.correlation(outputs, "outputs")
    from prunebench_kernels import dependence_triton

    if outputs.dtype in BYTES:
        outputs = outputs.to(torch.float16)  # holds every int8 and uint8 exactly
    matrix, status = dependence_triton.correlation(outputs.contiguous())
    # Not finite, or a spread that float32 cannot hold: float64 decides which.
    return in_torch.correlation(outputs, "outputs") if status.cpu().any() else matrix


def _interdependence(predictions: Tensor, backend: str) -> Tensor:
    choice = _choose(predictions, backend)
    counts = _counts(predictions, choice) if _is_binary_so_far(predictions) else None
    if counts is None:
        matrix = in_torch.correlation(predictions, "predictions")
    else:
        matrix = in_torch.phi(counts, predictions.shape[1])
    return in_torch.determination(matrix, predictions, counted=counts is not None)


_cooccurrence_operator = torch.library.custom_op("prunebench::cooccurrence", mutates_args=())(_cooccurrence)
_correlation_operator = torch.library.custom_op("prunebench::correlation", mutates_args=())(_correlation)
_interdependence_operator = torch.library.custom_op("prunebench::interdependence", mutates_args=())(
    _interdependence
)


@_cooccurrence_operator.register_fake
def _(predictions: Tensor, backend: str) -> Tensor:
    models, _, columns = predictions.shape
    return predictions.new_empty((models, columns, columns), dtype=torch.int64)


@_correlation_operator.register_fake
def _(outputs: Tensor, backend: str) -> Tensor:
    models, _, columns = outputs.shape
    return outputs.new_empty((models, columns, columns), dtype=torch.float64)


@_interdependence_operator.register_fake
def _(predictions: Tensor, backend: str) -> Tensor:
    models, _, columns = predictions.shape
    return predictions.new_empty((models, columns), dtype=torch.float64)


@explains("cooccurrence")
def _explain_cooccurrence(predictions: Tensor, *, backend: str | None = None) -> Choice:
    return _choose(_batched("predictions", predictions, (*FLOATS, *BYTES), fewest=1), backend)


@explains("correlation")
def _explain_correlation(outputs: Tensor, *, backend: str | None = None) -> Choice:
    return _choose(_batched("outputs", outputs, (*FLOATS, *WHOLE), fewest=2), backend)


@explains("interdependence")
def _explain_interdependence(predictions: Tensor, *, backend: str | None = None) -> Choice:
    return _choose_interdependence(_batched("predictions", predictions, (*FLOATS, *WHOLE), fewest=2), backend)
