"""Per-sample uncertainty of one or several models, in one pass over the logits.

A tile of logits is `[models, rows, width, chunks]`: a row lies across a few lanes of a warp (a whole warp for 1000
classes, one lane for 10), each lane holding up to 32 of its logits in registers. Everything is in powers of two: with
z = (x - max x) / ln 2, e = 2^z and d = sum e, max p = 1/d, margin = (1 - 2^z_(2))/d and entropy = ln 2 (log2 d -
sum e z / d). Mean probability and votes stay in registers, so that every logit is read from memory once whatever the
number of models. Logits that are not finite leave a nan in the sums, as do finite ones whose differences or squares
overflow: the kernel then raises a flag, and a second one, which clamps and scales, runs. It also takes rows that
registers do not hold. The launcher reads the flags once, after the kernel.

Bytes: the logits once, 4 N C for the mean probability, 4 N M for each value per model.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunebench_kernels.dispatch import (
    ArgumentError,
    Choice,
    Contest,
    check_device,
    check_finite,
    check_floating,
    check_tensor,
    constexpr,
    explains,
    is_interpreted,
    is_traced,
    jit,
    on_device,
    requested,
    select,
    shape_class,
    tl,
)

PER_MODEL = (
    "max_probability",
    "margin",
    "entropy",
    "negative_log_likelihood",
    "in_band_share",
    "kl_to_dense",
    "correlation_to_dense",
)
OVER_MODELS = ("mean_probability", "predictive_entropy", "mutual_information", "vote", "agreement")
LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty of each sample, with p = softmax(z) over the C outputs z of one model; what was not asked is None.

    Per model, `[N]` for logits `[N, C]` and `[M, N]` for logits `[M, N, C]`; entropies in nats:
    max_probability = p_(1), the largest; margin = p_(1) - p_(2); entropy = -sum p log p;
    negative_log_likelihood = -log p_label; in_band_share = share of the C outputs with |sigmoid(z) - 0.5| < band;
    kl_to_dense = KL(p || q) = sum p (log p - log q), q = softmax(dense_logits);
    correlation_to_dense = Pearson's correlation of z and dense_logits over the C outputs, nan where a row is constant.

    Over the M models, for logits `[M, N, C]` only: mean_probability `[N, C]`; predictive_entropy `[N]`, the entropy
    of the mean probability; mutual_information `[N]` = predictive entropy - mean entropy (BALD; never below 0);
    vote `[N]` int64, the class that most models put first, the lowest of equals; agreement `[N]`, the share of the
    models that put it first.
    """

    max_probability: Tensor
    margin: Tensor
    entropy: Tensor
    negative_log_likelihood: Tensor | None
    in_band_share: Tensor
    kl_to_dense: Tensor | None = None
    correlation_to_dense: Tensor | None = None
    mean_probability: Tensor | None = None
    predictive_entropy: Tensor | None = None
    mutual_information: Tensor | None = None
    vote: Tensor | None = None
    agreement: Tensor | None = None


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
    shaped = values if over_models else [value.squeeze(0) for value in values[: len(PER_MODEL)]]
    fields: dict[str, Any] = dict(zip((*PER_MODEL, *OVER_MODELS), shaped))
    if labels is None:
        fields["negative_log_likelihood"] = None
    if dense_logits is None:
        fields["kl_to_dense"] = fields["correlation_to_dense"] = None
    return Uncertainty(**fields)


@explains("uncertainty")
def _explain(logits, *, labels=None, dense_logits=None, band=0.4, backend=None) -> Choice:
    _check(logits, labels, dense_logits, band)
    over_models = logits.ndim == 3
    logits = logits if over_models else logits.unsqueeze(0)
    return _choose((logits, labels, dense_logits, band, over_models), backend)


CERTAIN_FROM = 1 << 20
ENOUGH_SAMPLES = 1024
"""Logits and samples from which the kernel's win on a GPU is certain.

In torch's way 104 bytes a logit move (26 reads and writes of 4), which on an H100 at 3 TB/s takes as long as 1,000 of
its instructions (132 x 128 lanes at 1.755 GHz); the kernel moves 4 to 16 and needs 22 to 140, those for 2 classes.
A thousand samples fill a GPU with warps or, beyond 4096 classes, programs.
"""
CERTAIN = "torch reads or writes the logits 26 times, the kernel reads them once; the samples fill a GPU"


Arguments = tuple[Tensor, Tensor | None, Tensor | None, float, bool]
"""Logits `[M, N, C]`, labels, dense logits, the band, and whether values over models are wanted."""


def _choose(arguments: Arguments, backend: str | None) -> Choice:
    logits, labels, dense_logits, _, over_models = arguments
    device, dtype = logits.device, logits.dtype
    if dtype == torch.float64:
        refusal = "the kernel computes in float32, and the logits are float64"
        return select("uncertainty", backend, device, dtype, refusal=refusal)
    options = (labels is not None, dense_logits is not None, over_models)
    is_certain = logits.numel() >= CERTAIN_FROM and logits.shape[1] >= ENOUGH_SAMPLES
    contest = Contest(
        (*shape_class(*logits.shape), str(dtype), *options),
        lambda: {"torch": lambda: in_torch(*arguments), "triton": lambda: launch(*arguments)},
    )
    certain = CERTAIN if is_certain else None
    return select("uncertainty", backend, device, dtype, certain=certain, contest=contest)


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
    logits: Tensor, labels: Tensor | None, dense_logits: Tensor | None, band: float, over_models: bool,
    backend: str,
) -> list[Tensor]:  # fmt: skip
    """For logits `[M, N, C]`: the fields in the order of PER_MODEL and OVER_MODELS; absent ones have no elements."""
    arguments = (logits, labels, dense_logits, band, over_models)
    run = launch if _choose(arguments, backend).is_triton else in_torch
    return run(*arguments)


_operator = torch.library.custom_op("prunebench::uncertainty", mutates_args=())(_run)


@_operator.register_fake
def _fake(logits, labels, dense_logits, band, over_models, backend) -> list[Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return allocate(logits, labels is not None, dense_logits is not None, over_models, dtype)


# --- torch ---------------------------------------------------------------------------------------------------
# Per chunk and model: z = (x - max x) / ln 2, e = 2^z, d = sum e. Then max p = 1 / d, margin = (1 - 2^z_(2)) / d and
# entropy = log d - ln 2 sum(e z) / d, so that one exponential serves all. (On AVX-512 torch.exp2 takes a quarter of the
# time of torch.exp, and a comparison that writes floats a fifth of one that writes booleans.) With few classes a chunk
# is transposed first, so that reductions over classes vectorise over samples.

CHUNK = 1 << 18
"""Logits that a CPU thread takes at a time: fewer leave the time to calls, more do not stay in the caches."""
CHUNK_ON_A_GPU = 1 << 26
CLASSES_IN_ROWS_FROM = 128
"""Number of classes from which reductions along a row are faster than a transposed copy."""
TOO_SMALL = 1e-30
"""Sums of squares below this have lost digits to underflow in float32."""


def in_torch(logits, labels, dense_logits, band: float, over_models: bool) -> list[Tensor]:
    """All values for logits `[M, N, C]`, in the order of PER_MODEL and OVER_MODELS; what is absent has no elements.

    Values that are not finite show as a nan, so that looking for them costs no pass over the logits. So do finite
    ones whose differences or squares overflow: those calls run again with clamps and scaling. Raises ArgumentError
    for logits that are not finite, and labels outside 0..C-1.
    """
    if labels is not None:
        labels = labels.to(torch.int64)
        if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
            raise ArgumentError(f"labels: values outside 0..{logits.shape[-1] - 1}")
    quick = _Pass(logits, labels, dense_logits, band, over_models, careful=False)
    if not quick.suspicious:
        return quick.outputs
    check_finite("logits", logits)
    if dense_logits is not None:
        check_finite("dense_logits", dense_logits.to(quick.dtype))
    return _Pass(logits, labels, dense_logits, band, over_models, careful=True).outputs


def allocate(
    logits: Tensor, with_labels: bool, with_dense: bool, over_models: bool, dtype: torch.dtype
) -> list[Tensor]:
    """The outputs for logits `[M, N, C]`, not yet written: values per model, then over models."""
    models, samples, classes = logits.shape
    alike = torch.empty_like  # half the time of new_empty
    of_model = logits.new_empty((models, samples), dtype=dtype)
    of_sample = logits.new_empty(samples if over_models else 0, dtype=dtype)
    absent = logits.new_empty(0, dtype=dtype)
    return [
        *(of_model, alike(of_model), alike(of_model)),
        alike(of_model if with_labels else absent),
        alike(of_model),
        *(alike(of_model if with_dense else absent) for _ in range(2)),
        logits.new_empty((samples, classes) if over_models else 0, dtype=dtype),
        *(of_sample, alike(of_sample), alike(of_sample, dtype=torch.int64), alike(of_sample)),
    ]


@functools.lru_cache(maxsize=64)
def in_band_threshold(band: float, dtype: torch.dtype) -> float:
    """logit(0.5 + band), rounded up to `dtype`: |z| < it exactly where |z| < the true value, for z of `dtype`."""
    value = math.log(0.5 + band) - math.log(0.5 - band)
    exact = torch.tensor(value, dtype=torch.float64, device="cpu")
    rounded = exact.to(dtype)
    if rounded.double() < exact:
        rounded = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return float(rounded)


@dataclass(frozen=True)
class _Dense:
    """A chunk of the dense logits y: z = (y - max y) / ln 2, z less its mean, the squares of that, log2 sum 2^z."""

    scaled: Tensor
    centred: Tensor
    squares: Tensor
    log_sum: Tensor


class _Pass:
    """One pass over logits `[M, N, C]`; a `careful` one clamps and scales what could overflow, and takes longer.

    A block is [C, models, samples] with few classes, [models, samples, C] with many.
    """

    def __init__(self, logits, labels, dense_logits, band, over_models: bool, *, careful: bool) -> None:
        self.logits, self.labels, self.dense_logits = logits, labels, dense_logits
        self.over_models, self.careful = over_models, careful
        self.models, self.samples, self.classes = logits.shape
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        self.outputs = allocate(logits, labels is not None, dense_logits is not None, over_models, self.dtype)
        self.threshold = in_band_threshold(band, self.dtype)
        self.lowest = torch.finfo(self.dtype).min
        self.in_rows = self.classes >= CLASSES_IN_ROWS_FROM
        self.class_dim, self.model_dim, self.sample_dim = (2, 0, 1) if self.in_rows else (0, 1, 2)
        size = CHUNK * torch.get_num_threads() if logits.device.type == "cpu" else CHUNK_ON_A_GPU
        self.chunk = min(self.samples, max(1, size // self.classes))
        self.block = min(self.models, max(1, size // (self.chunk * self.classes)))
        self.suspicious = False
        """Whether a result so far is nan."""
        self._memory: dict[str, Tensor] = {}
        for start in range(0, self.samples, self.chunk):
            self._run_chunk(slice(start, min(start + self.chunk, self.samples)))

    def _buffer(self, name: str, models: int, samples: int) -> Tensor:
        """Working memory by name; its content is undefined."""
        if name not in self._memory:
            size = self.block * self.chunk * self.classes
            self._memory[name] = self.logits.new_empty(size, dtype=self.dtype)
        shape = (models, samples, self.classes) if self.in_rows else (self.classes, models, samples)
        return self._memory[name][: models * samples * self.classes].view(shape)

    def _read(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[models, samples, C]` as a block, and a buffer of that shape, maybe the block itself."""
        buffer = self._buffer("block", *values.shape[:2])
        if self.in_rows:
            return (values if values.dtype == self.dtype else buffer.copy_(values)), buffer
        # Converted first: faster than both at once.
        block = buffer.copy_(values.to(self.dtype).permute(2, 0, 1))
        return block, block

    def _scale(self, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """(x - max x) / ln 2 per sample, and max x."""
        highest = x.amax(self.class_dim, keepdim=True)
        torch.sub(x, highest, out=out)
        if self.careful:
            out.clamp_(min=self.lowest * 0.69)  # less than ln 2: the quotient is finite
        return out.mul_(1 / math.log(2.0)), highest

    def _sum(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.sum(values, self.class_dim, out=out)

    def _run_chunk(self, part: slice) -> None:
        count = part.stop - part.start
        labels = None if self.labels is None else self.labels[part]
        dense = None if self.dense_logits is None else self._read_dense(self.dense_logits[part])
        mean, votes = (
            self._buffer(name, 1, count).zero_() if self.over_models else None for name in ("mean", "votes")
        )
        for start in range(0, self.models, self.block):
            models = slice(start, min(start + self.block, self.models))
            values = [output[models, part] if output.ndim == 2 else output for output in self.outputs[:7]]
            p = self._run_block(self.logits[models, part], values, labels, dense, votes)
            if mean is not None:
                mean.add_(p.sum(self.model_dim, keepdim=True))
        self._finish_per_model(
            [output[:, part] if output.ndim == 2 else output for output in self.outputs[:7]]
        )
        if mean is not None and votes is not None:
            self._finish_over_models(part, mean.div_(self.models), votes)

    def _run_block(self, logits: Tensor, values: list[Tensor], labels, dense: _Dense | None, votes) -> Tensor:
        """Leave sums in `values`, which `_finish_per_model` turns into the results; returns the probabilities.

        In this order: max p, z_(2), sum p z, z_label, the number in the band, sum p (z - z_dense), the correlation.
        """
        x, buffer = self._read(logits)
        work = self._buffer("work", *logits.shape[:2])
        self._sum(torch.lt(torch.abs(x, out=work), self.threshold, out=work), out=values[4])
        at_label = None if labels is None else self._at(x, labels)
        z, highest = self._scale(x, buffer)
        first = torch.eq(z, 0, out=work)
        ties = self._sum(first)
        if votes is not None:
            self._vote(votes, first, ties)
        torch.amax(torch.add(z, first, alpha=self.lowest, out=work), self.class_dim, out=values[1])
        values[1].masked_fill_(ties > 1, 0.0)
        p = torch.exp2(z, out=work)
        self._sum(p, out=values[0]).reciprocal_()
        p.mul_(values[0].unsqueeze(self.class_dim))
        if at_label is not None:
            torch.sub(at_label, highest.squeeze(self.class_dim), out=values[3])
        if dense is not None:
            self._compare(z, p, dense, values)
        self._sum(z.mul_(p), out=values[2])
        return p

    def _at(self, x: Tensor, labels: Tensor) -> Tensor:
        """The logits of the labels, `[models, samples]`."""
        shape = [1 if dim == self.class_dim else size for dim, size in enumerate(x.shape)]
        where = labels.view([len(labels) if dim == self.sample_dim else 1 for dim in range(3)]).expand(shape)
        return x.gather(self.class_dim, where).squeeze(self.class_dim)

    def _vote(self, votes: Tensor, first: Tensor, ties: Tensor) -> None:
        """Count each sample's largest logits, marked in `first`; of several only that of the lowest class."""
        votes.add_(first.sum(self.model_dim, keepdim=True))
        if float(ties.amax()) > 1:
            model, sample = (ties > 1).nonzero().unbind(1)
            marks = (first if self.in_rows else first.permute(1, 2, 0))[model, sample]
            lowest = torch.zeros_like(marks).scatter_(1, marks.argmax(1, keepdim=True), 1.0)
            excess = lowest.sub_(marks)
            counts = votes.squeeze(self.model_dim)
            (counts if self.in_rows else counts.t()).index_add_(0, sample, excess)

    def _read_dense(self, dense_logits: Tensor) -> _Dense:
        x, _ = self._read(dense_logits.unsqueeze(0))
        count = len(dense_logits)
        scaled, _ = self._scale(x, self._buffer("dense", 1, count))
        log_sum = self._sum(torch.exp2(scaled, out=self._buffer("work", 1, count))).log2()
        centred = self._centre(scaled, "dense centred")
        return _Dense(scaled, centred, self._sum(centred.square()), log_sum)

    def _centre(self, z: Tensor, name: str) -> Tensor:
        """z less its mean; in a careful pass first divided by its largest size, so that squares do not overflow."""
        if self.careful:
            z = z / z.abs().amax(self.class_dim, keepdim=True).clamp_(min=torch.finfo(self.dtype).tiny)
        shape = (z.shape[self.model_dim], z.shape[self.sample_dim])
        return torch.sub(z, z.mean(self.class_dim, keepdim=True), out=self._buffer(name, *shape))

    def _compare(self, z: Tensor, p: Tensor, dense: _Dense, values: list[Tensor]) -> None:
        """sum p (z - z_dense) + log2 sum 2^z_dense, and the correlation: nan where squares under- or overflow."""
        spare = self._buffer("spare", *values[0].shape)
        self._sum(torch.sub(z, dense.scaled, out=spare).mul_(p), out=values[5]).add_(dense.log_sum)
        centred = self._centre(z, "centred")
        product = self._sum(torch.mul(centred, dense.centred, out=spare))
        squares = self._sum(centred.square_())
        torch.div(product, squares.sqrt().mul_(dense.squares.sqrt()), out=values[6]).clamp_(-1, 1)
        for sums in (squares, dense.squares):
            values[6].masked_fill_((sums < TOO_SMALL) | (sums == torch.inf), torch.nan)

    def _finish_per_model(self, values: list[Tensor]) -> None:
        largest, second, weighted, at_label, in_band, to_dense, correlation = values
        log_largest = largest.log()
        second.mul_(math.log(2.0)).expm1_().mul_(largest).neg_()
        weighted.mul_(-math.log(2.0)).sub_(log_largest)
        in_band.div_(self.classes)
        if len(at_label):
            at_label.add_(log_largest).neg_()
        if len(to_dense):
            to_dense.mul_(math.log(2.0)).add_(log_largest).clamp_(min=0)
        self.suspicious |= any(bool(found.isnan().any()) for found in (weighted, to_dense, correlation))

    def _finish_over_models(self, part: slice, mean: Tensor, votes: Tensor) -> None:
        """Write mean probability, its entropy, the vote and agreement of one chunk."""
        work = self._buffer("work", 1, part.stop - part.start)
        self.outputs[7][part] = (mean if self.in_rows else mean.permute(1, 2, 0)).squeeze(0)
        torch.clamp(mean, min=torch.finfo(self.dtype).tiny, out=work).log2_()
        predictive = self._sum(work.mul_(mean)).squeeze(0).mul_(-math.log(2.0))
        self.outputs[8][part] = predictive
        self.outputs[9][part] = (predictive - self.outputs[2][:, part].mean(0)).clamp_(min=0)
        most = votes.amax(self.class_dim, keepdim=True)
        # The lowest class ranks highest.
        rank = torch.arange(self.classes, 0, -1, dtype=self.dtype, device=votes.device)
        shape = [self.classes if dim == self.class_dim else 1 for dim in range(3)]
        best = torch.eq(votes, most, out=work).mul_(rank.view(shape)).amax(self.class_dim)
        self.outputs[10][part] = self.classes - best.squeeze(0).to(torch.int64)
        self.outputs[11][part] = most.flatten().div_(self.models)


# --- kernels -------------------------------------------------------------------------------------------------

INTERPRETED = constexpr(is_interpreted())
LOG2E = constexpr(math.log2(math.e))
LN2 = constexpr(math.log(2.0))
INFINITY = constexpr(math.inf)
PADDING = constexpr(-1.0e38)
"""Stands behind the last class of a row: its probability is 0, and products with it stay finite."""
SMALLEST_SQUARE = constexpr(TOO_SMALL)
LOWEST = constexpr(-3.0e38)
"""Stands for differences of finite logits that overflow: exp of it is 0, and 0 times it is 0."""
SMALLEST_EXTENT = constexpr(1e-37)
TALLY = constexpr(128)
"""Models whose first classes are compared at a time."""


@jit
def _sum(x):
    """Over the classes of a tile `[models, rows, width, chunks]`: those of a lane first."""
    return tl.sum(tl.sum(x, 3, keep_dims=True), 2, keep_dims=True)


@jit
def _max(x):
    return tl.max(tl.max(x, 3, keep_dims=True), 2, keep_dims=True)


@jit
def _min(x):
    return tl.min(tl.min(x, 3, keep_dims=True), 2, keep_dims=True)


@jit
def _log2(x):
    """One instruction on a GPU in place of 20: right to 2^-22, absolutely for x in 0.5..2, relatively elsewhere."""
    if INTERPRETED:
        y = tl.log2(x)
    else:
        y = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@jit
def _share(count, total, inverse):
    """count / total, rounded correctly, with inverse = 1 / total: all is 1, not 1 - 2^-24."""
    count = count.to(tl.float32)
    quotient = count * inverse
    return tl.fma(tl.fma(-quotient, total, count), inverse, quotient)


@jit
def _is_not_finite(x):
    """Not by x - x != 0: where x is a product, a fused multiply-add leaves its rounding error there (seen on sm_90)."""
    return (tl.abs(x) < INFINITY) == 0


@jit
def _rows_kernel(  # noqa: PLR0913 - pointers, sizes and compile-time values
    logits_ptr, dense_ptr, labels_ptr, max_probability_ptr, margin_ptr, entropy_ptr, likelihood_ptr, in_band_ptr,
    kl_ptr, correlation_ptr, mean_ptr, predictive_ptr, information_ptr, vote_ptr, agreement_ptr, flags_ptr,
    models, samples, model_stride, threshold,
    MODEL_UNIT: tl.constexpr, ROW_STRIDE: tl.constexpr, DENSE_STRIDE: tl.constexpr, CLASSES: tl.constexpr,
    HAS_LABELS: tl.constexpr, HAS_DENSE: tl.constexpr, OVER_MODELS: tl.constexpr, MODELS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, VOTERS: tl.constexpr, STEPS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    PAIRS: tl.constexpr = MODELS * ROWS
    SHAPE: tl.constexpr = [MODELS, ROWS, WIDTH, CHUNKS]
    pair = tl.arange(0, PAIRS)  # of a model and a row
    chunk = tl.arange(0, CHUNKS)[None, None, None, :] * WIDTH
    lane = tl.arange(0, WIDTH)[None, None, :, None]
    inside = lane + chunk < CLASSES
    model = tl.arange(0, MODELS)[:, None, None, None]
    # Logits are read as [pairs x width, chunks]: only along the first of these dimensions do they lie side by side,
    # so that Triton spreads it, and not the chunks, over the lanes.
    place = tl.arange(0, PAIRS * WIDTH)[:, None]
    columns = place % WIDTH + tl.arange(0, CHUNKS)[None, :] * WIDTH
    place_inside = columns < CLASSES
    place_model = place // (ROWS * WIDTH)
    first_row = tl.program_id(0).to(tl.int64) * (ROWS * STEPS)
    place_row = first_row + place // WIDTH % ROWS
    stride = tl.cast(model_stride, tl.int64) * MODEL_UNIT
    place_ptr = logits_ptr + place_model * stride + place_row * ROW_STRIDE + columns
    # The same for one model: dense logits and mean probability.
    spot = tl.arange(0, ROWS * WIDTH)[:, None]
    spot_columns = spot % WIDTH + tl.arange(0, CHUNKS)[None, :] * WIDTH
    share = 1.0 / models
    if EARLY:
        mask = place_inside & (place_model < models) & (place_row < samples)
        upcoming = tl.load(place_ptr, mask=mask, other=0.0)
    for step in range(STEPS):
        rows = first_row + step * ROWS + pair % ROWS
        if HAS_LABELS:
            label = tl.load(labels_ptr + rows, mask=rows < samples, other=0).to(tl.int64)
            known = (label >= 0) & (label < CLASSES)
            tl.store(flags_ptr + 2 + tl.zeros_like(pair), 1, mask=known == 0)
            label = tl.where(known, label, 0)
        spot_row = first_row + step * ROWS + spot // WIDTH
        spot_inside = (spot_columns < CLASSES) & (spot_row < samples)
        if HAS_DENSE:
            y = tl.load(dense_ptr + (spot_row * DENSE_STRIDE + spot_columns), mask=spot_inside, other=0.0)
            y = tl.where(inside, tl.reshape(y, [1, ROWS, WIDTH, CHUNKS]).to(tl.float32), PADDING)
            y_highest = _max(y)
            y = tl.where(inside, (y - y_highest) * LOG2E, 0.0)
            y_log_sum = _log2(_sum(tl.where(inside, tl.exp2(y), 0.0)))
            y_total = _sum(y)
            y_mean = y_total * (1.0 / CLASSES)
            y_centred = tl.where(inside, y - y_mean, 0.0)
            y_squares = _sum(y_centred * y_centred)
            y_constant = y_total == 0
            y_suspicious = (y_highest < 0.5 * PADDING) | _is_not_finite(y_squares)
            y_suspicious |= (y_squares < SMALLEST_SQUARE) & (y_constant == 0)
        if OVER_MODELS:
            mean = tl.zeros(SHAPE, tl.float32)
            entropies = tl.zeros([MODELS, ROWS, 1, 1], tl.float32)
            if VOTERS:
                voter = tl.arange(0, VOTERS)[None, None, None, :]
                firsts = tl.full([1, ROWS, 1, VOTERS], -1, tl.int32)
            else:
                votes = tl.zeros(SHAPE, tl.int32)
        for start in range(0, models, MODELS):
            if EARLY:
                x = upcoming
                more = start + MODELS < models
                models_left = tl.where(more, models - start - MODELS, models)
                last_row = tl.where(more, samples, tl.where(step + 1 < STEPS, samples - ROWS, 0))
                following = tl.where(more, (start + MODELS) * stride, ROWS * ROW_STRIDE)
                mask = place_inside & (place_model < models_left) & (place_row < last_row)
                upcoming = tl.load(place_ptr + following, mask=mask, other=0.0)
            else:
                mask = place_inside & (place_model < models - start) & (place_row < samples)
                x = tl.load(place_ptr + start * stride, mask=mask, other=0.0)
            x = tl.where(inside, tl.reshape(x, SHAPE).to(tl.float32), PADDING)

            highest = _max(x)
            first = tl.min(tl.where(x == highest, chunk, CHUNKS * WIDTH), 3, keep_dims=True) + lane
            first = tl.min(first, 2, keep_dims=True)
            is_first = chunk == first - lane
            second = _max(tl.where(is_first, PADDING, x)) - highest
            z = (x - highest) * LOG2E
            e = tl.where(inside, tl.exp2(z), 0.0)
            d = _sum(e)
            largest = 1.0 / d
            log_sum = _log2(d)
            entropy = (log_sum - _sum(e * z) * largest) * LN2
            in_band = _share(_sum((tl.abs(x) < threshold).to(tl.int32)), 1.0 * CLASSES, 1.0 / CLASSES)
            suspicious = _is_not_finite(entropy) | (highest < 0.5 * PADDING)

            current = start + pair // ROWS
            stored = (current < models) & (rows < samples)
            at = current * tl.cast(samples, tl.int64) + rows
            margin = (1.0 - tl.exp2(second * LOG2E)) * largest
            tl.store(max_probability_ptr + at, tl.reshape(largest, [PAIRS]), mask=stored)
            tl.store(margin_ptr + at, tl.reshape(margin, [PAIRS]), mask=stored)
            tl.store(entropy_ptr + at, tl.reshape(entropy, [PAIRS]), mask=stored)
            tl.store(in_band_ptr + at, tl.reshape(in_band, [PAIRS]), mask=stored)
            if HAS_LABELS:
                chosen = tl.load(
                    logits_ptr + (current * stride + rows * ROW_STRIDE + label), mask=stored, other=0.0
                )
                below = (tl.reshape(highest, [PAIRS]) - chosen.to(tl.float32)) * LOG2E
                tl.store(likelihood_ptr + at, (tl.reshape(log_sum, [PAIRS]) + below) * LN2, mask=stored)
            if HAS_DENSE:
                divergence = (_sum(e * (z - y)) * largest - log_sum + y_log_sum) * LN2
                total = _sum(tl.where(inside, z, 0.0))
                centred = tl.where(inside, z - total * (1.0 / CLASSES), 0.0)
                squares = _sum(centred * centred)
                product = _sum(centred * tl.where(inside, y - y_mean, 0.0))
                constant = (total == 0) | y_constant
                correlation = product / (tl.sqrt(squares) * tl.sqrt(y_squares))
                correlation = tl.minimum(tl.maximum(correlation, -1.0), 1.0)
                correlation = tl.where(constant, float("nan"), correlation)
                suspicious |= _is_not_finite(divergence) | _is_not_finite(squares) | y_suspicious
                suspicious |= (squares < SMALLEST_SQUARE) & (constant == 0)
                tl.store(kl_ptr + at, tl.reshape(tl.maximum(divergence, 0.0), [PAIRS]), mask=stored)
                tl.store(correlation_ptr + at, tl.reshape(correlation, [PAIRS]), mask=stored)
            flag = tl.reshape(suspicious.to(tl.int32), [PAIRS])
            tl.store(flags_ptr + tl.zeros_like(pair), 1, mask=stored & (flag != 0))
            if OVER_MODELS:
                counted = start + model < models
                mean += e * tl.where(counted, largest, 0.0)
                entropies += tl.where(counted, entropy, 0.0)
                if VOTERS:
                    firsts = tl.where(voter == start, first, firsts)
                else:
                    votes += (is_first & counted).to(tl.int32)
        if OVER_MODELS:
            mean = tl.sum(mean, 0, keep_dims=True) * share
            spot_ptr = mean_ptr + (spot_row * CLASSES + spot_columns)
            tl.store(spot_ptr, tl.reshape(mean, [ROWS * WIDTH, CHUNKS]), mask=spot_inside)
            predictive = _sum(mean * _log2(tl.maximum(mean, 1e-37))) * -LN2
            information = tl.maximum(predictive - tl.sum(entropies, 0, keep_dims=True) * share, 0.0)
            if VOTERS:
                votes = tl.zeros([1, ROWS, 1, VOTERS], tl.int32)
                for other in tl.static_range(VOTERS):
                    theirs = tl.max(tl.where(voter == other, firsts, -1), 3, keep_dims=True)
                    votes += ((firsts == theirs) & (firsts >= 0)).to(tl.int32)
                most = _max(votes)
                vote = _min(tl.where(votes == most, firsts, CLASSES))
            else:
                votes = tl.sum(votes, 0, keep_dims=True)
                most = _max(votes)
                vote = _min(tl.where(votes == most, lane + chunk, CLASSES))
            rows = first_row + step * ROWS + tl.arange(0, ROWS)
            stored = rows < samples
            tl.store(predictive_ptr + rows, tl.reshape(predictive, [ROWS]), mask=stored)
            tl.store(information_ptr + rows, tl.reshape(information, [ROWS]), mask=stored)
            tl.store(vote_ptr + rows, tl.reshape(vote, [ROWS]).to(tl.int64), mask=stored)
            agreement = _share(most, tl.cast(models, tl.float32), share)
            tl.store(agreement_ptr + rows, tl.reshape(agreement, [ROWS]), mask=stored)
        place_row += ROWS
        place_ptr += ROWS * ROW_STRIDE


@jit
def _extremes(row_ptr, threshold, CLASSES: tl.constexpr, COLUMNS: tl.constexpr):
    """Largest logit and its lowest class, the next, the smallest; how many in the band, how many not finite."""
    highest = tl.full([COLUMNS], -INFINITY, tl.float32)
    second = tl.full([COLUMNS], -INFINITY, tl.float32)
    lowest = tl.full([COLUMNS], INFINITY, tl.float32)
    first = tl.zeros([COLUMNS], tl.int32)
    in_band = tl.zeros([COLUMNS], tl.int32)
    finite = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, CLASSES, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        inside = columns < CLASSES
        x = tl.load(row_ptr + columns, mask=inside, other=-INFINITY).to(tl.float32)
        in_band += (tl.abs(x) < threshold).to(tl.int32)
        finite += (tl.abs(x) < INFINITY).to(tl.int32)
        first = tl.where(x > highest, columns, first)
        second = tl.maximum(second, tl.minimum(highest, x))
        highest = tl.maximum(highest, x)
        lowest = tl.minimum(lowest, tl.where(inside, x, INFINITY))
    top = tl.max(highest, 0)
    winner = tl.min(tl.where(highest == top, first, CLASSES), 0)
    runner_up = tl.max(tl.where((highest == top) & (first == winner), second, highest), 0)
    return top, winner, runner_up, tl.min(lowest, 0), tl.sum(in_band, 0), CLASSES - tl.sum(finite, 0)


@jit
def _shifted(row_ptr, columns, highest, CLASSES: tl.constexpr):
    """x - max x of a block, 0 behind the row."""
    inside = columns < CLASSES
    x = tl.load(row_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, tl.maximum(x - highest, LOWEST), 0.0)


@jit
def _scale(difference):
    """1 / (largest - smallest), or 1 where that is 0: keeps squares from over- and underflow."""
    extent = -tl.maximum(difference, LOWEST)
    return 1.0 / tl.where(extent > SMALLEST_EXTENT, extent, 1.0)


@jit
def _columns_kernel(  # noqa: PLR0913 - pointers, sizes and compile-time values
    logits_ptr, dense_ptr, labels_ptr, max_probability_ptr, margin_ptr, entropy_ptr, likelihood_ptr, in_band_ptr,
    kl_ptr, correlation_ptr, mean_ptr, predictive_ptr, information_ptr, vote_ptr, agreement_ptr, flags_ptr,
    highest_ptr, first_ptr, models, samples, model_stride, threshold,
    MODEL_UNIT: tl.constexpr, ROW_STRIDE: tl.constexpr, DENSE_STRIDE: tl.constexpr, CLASSES: tl.constexpr,
    HAS_LABELS: tl.constexpr, HAS_DENSE: tl.constexpr, OVER_MODELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One sample a program. A row is read twice, a third time with dense logits, and once more for the values over
    models; all but the first reads come from the second-level cache."""
    row = tl.program_id(0).to(tl.int64)
    stride = tl.cast(model_stride, tl.int64) * MODEL_UNIT
    block = tl.arange(0, COLUMNS)
    if HAS_LABELS:
        label = tl.load(labels_ptr + row).to(tl.int64)
        known = (label >= 0) & (label < CLASSES)
        tl.store(flags_ptr + 2, 1, mask=known == 0)
        label = tl.where(known, label, 0)
    if HAS_DENSE:
        y_ptr = dense_ptr + row * DENSE_STRIDE
        y_highest, _, _, y_lowest, _, y_wrong = _extremes(y_ptr, threshold, CLASSES, COLUMNS)
        tl.store(flags_ptr + 1, 1, mask=y_wrong > 0)
        y_scale = _scale(y_lowest - y_highest)
        y_sums = tl.zeros([COLUMNS], tl.float32)
        y_totals = tl.zeros([COLUMNS], tl.float32)
        for start in range(0, CLASSES, COLUMNS):
            y = _shifted(y_ptr, start + block, y_highest, CLASSES)
            y_sums += tl.where(start + block < CLASSES, tl.exp2(y * LOG2E), 0.0)
            y_totals += y * y_scale
        y_log_sum = tl.log(tl.sum(y_sums, 0))
        y_mean = tl.sum(y_totals, 0) * (1.0 / CLASSES)
    entropies = 0.0
    for model in range(0, models):
        row_ptr = logits_ptr + model * stride + row * ROW_STRIDE
        highest, first, second, lowest, in_band, wrong = _extremes(row_ptr, threshold, CLASSES, COLUMNS)
        tl.store(flags_ptr, 1, mask=wrong > 0)
        scale = _scale(lowest - highest)
        sums = tl.zeros([COLUMNS], tl.float32)
        weighted = tl.zeros([COLUMNS], tl.float32)
        shared = tl.zeros([COLUMNS], tl.float32)
        totals = tl.zeros([COLUMNS], tl.float32)
        for start in range(0, CLASSES, COLUMNS):
            z = _shifted(row_ptr, start + block, highest, CLASSES)
            e = tl.where(start + block < CLASSES, tl.exp2(z * LOG2E), 0.0)
            sums += e
            weighted += e * z
            if HAS_DENSE:
                shared += e * (z - _shifted(y_ptr, start + block, y_highest, CLASSES))
                totals += z * scale
        largest = 1.0 / tl.sum(sums, 0)
        log_sum = tl.log(tl.sum(sums, 0))
        entropy = log_sum - tl.sum(weighted, 0) * largest
        entropies += entropy
        at = model * tl.cast(samples, tl.int64) + row
        margin = (1.0 - tl.exp2(tl.maximum(second - highest, LOWEST) * LOG2E)) * largest
        tl.store(max_probability_ptr + at, largest)
        tl.store(margin_ptr + at, margin)
        tl.store(entropy_ptr + at, entropy)
        tl.store(in_band_ptr + at, _share(in_band, 1.0 * CLASSES, 1.0 / CLASSES))
        tl.store(highest_ptr + at, highest)
        tl.store(first_ptr + at, first)
        if HAS_LABELS:
            tl.store(likelihood_ptr + at, log_sum + (highest - tl.load(row_ptr + label).to(tl.float32)))
        if HAS_DENSE:
            divergence = tl.sum(shared, 0) * largest - log_sum + y_log_sum
            tl.store(kl_ptr + at, tl.maximum(divergence, 0.0))
            mean = tl.sum(totals, 0) * (1.0 / CLASSES)
            squares = tl.zeros([COLUMNS], tl.float32)
            y_squares = tl.zeros([COLUMNS], tl.float32)
            products = tl.zeros([COLUMNS], tl.float32)
            for start in range(0, CLASSES, COLUMNS):
                inside = start + block < CLASSES
                z = tl.where(inside, _shifted(row_ptr, start + block, highest, CLASSES) * scale - mean, 0.0)
                y = tl.where(
                    inside, _shifted(y_ptr, start + block, y_highest, CLASSES) * y_scale - y_mean, 0.0
                )
                squares += z * z
                y_squares += y * y
                products += z * y
            size = tl.sqrt(tl.sum(squares, 0)) * tl.sqrt(tl.sum(y_squares, 0))
            correlation = tl.sum(products, 0) / tl.where(size > 0, size, 1.0)
            correlation = tl.minimum(tl.maximum(correlation, -1.0), 1.0)
            tl.store(correlation_ptr + at, tl.where(size > 0, correlation, float("nan")))
    if OVER_MODELS:
        tl.debug_barrier()  # what this program stored for each model is read back below
        predictive = tl.zeros([COLUMNS], tl.float32)
        for start in range(0, CLASSES, COLUMNS):
            inside = start + block < CLASSES
            mean_block = tl.zeros([COLUMNS], tl.float32)
            for model in range(0, models):
                at = model * tl.cast(samples, tl.int64) + row
                row_ptr = logits_ptr + model * stride + row * ROW_STRIDE
                z = _shifted(row_ptr, start + block, tl.load(highest_ptr + at), CLASSES)
                mean_block += tl.exp2(z * LOG2E) * tl.load(max_probability_ptr + at)
            mean_block = tl.where(inside, mean_block / models, 0.0)
            tl.store(mean_ptr + row * CLASSES + start + block, mean_block, mask=inside)
            predictive -= mean_block * tl.log(tl.where(mean_block > 0, mean_block, 1.0))
        uncertain = tl.sum(predictive, 0)
        most, vote = 0, 0
        for model in range(0, models):
            first = tl.load(first_ptr + model * tl.cast(samples, tl.int64) + row)
            votes = tl.zeros([TALLY], tl.int32)
            for start in range(0, models, TALLY):
                other = start + tl.arange(0, TALLY)
                at = other * tl.cast(samples, tl.int64) + row
                votes += (tl.load(first_ptr + at, mask=other < models, other=-1) == first).to(tl.int32)
            count = tl.sum(votes, 0)
            vote = tl.where((count > most) | ((count == most) & (first < vote)), first, vote)
            most = tl.maximum(most, count)
        tl.store(predictive_ptr + row, uncertain)
        tl.store(information_ptr + row, tl.maximum(uncertain - entropies / models, 0.0))
        tl.store(vote_ptr + row, tl.cast(vote, tl.int64))
        tl.store(agreement_ptr + row, _share(most, tl.cast(models, tl.float32), 1.0 / models))


# --- launch --------------------------------------------------------------------------------------------------

LARGEST_ROW = 4096
"""Classes up to which a program holds a row in registers."""
LARGEST_VOTE = 8
"""Models up to which a row's first classes are kept one by one; of more, votes are counted for every class."""


@dataclass(frozen=True)
class RowTile:
    """What a program takes at a step: rows of `models` x `rows`, in pieces of `width` classes, by `warps` warps.

    It takes `steps` such tiles one after the other; `early`: the next one's logits are asked for before this one's
    are used; `registers`: what the assembler may give a thread. Without `whole_rows`, one sample a program, in a loop
    over blocks of `width` classes.
    """

    width: int
    rows: int = 1
    models: int = 1
    warps: int = 1
    steps: int = 1
    early: bool = True
    registers: int | None = None
    whole_rows: bool = True


IN_A_LOOP = RowTile(width=2048, warps=8, early=False, whole_rows=False)


@functools.lru_cache(maxsize=256)
def rule(models: int, classes: int, dtype: torch.dtype, compared: bool = False) -> RowTile:
    """At most 32 logits of a row in a lane, 16 where votes or dense logits lie beside them and the sums over models.

    Registers are bounded only to tell the assembler that it may use them: left alone, it spills a few to stay below
    128 or 168.
    """
    if classes > LARGEST_ROW:
        return IN_A_LOOP
    vector = min(16 // dtype.itemsize, classes & -classes)
    crowded = models > LARGEST_VOTE or (compared and models > 1)
    lanes = power_of_two(math.ceil(classes / (16 if crowded else 32)))
    # Measured on an H100, 2 x 50,000 x 1000 float32, one row a warp: 240 us with 4 warps a program, 256 with 2, 260 to
    # 286 with 1; copy 204. Beyond a warp's lanes a row is a program's only one: its warps wait for each other.
    warps = lanes // 32 if lanes > 32 else 4
    # A warp has 32 samples of few classes: 10,000 keep a GPU busy only if its warps share out the models.
    together = 1 if lanes > 1 else min(8, power_of_two(models) // 8) or 1
    warps = max(warps, together)
    registers = 255 if compared else None if lanes == 32 else 192
    rows = 32 * warps // (lanes * together)
    return RowTile(max(2, lanes * vector), rows, together, warps, 1, not compared, registers)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


def launch(
    logits: Tensor, labels: Tensor | None, dense_logits: Tensor | None, band: float, over_models: bool, *,
    tile: RowTile | None = None, outputs: list[Tensor] | None = None,
) -> list[Tensor]:  # fmt: skip
    """All values for logits `[M, N, C]`, in the order of PER_MODEL and OVER_MODELS; absent ones have no elements.

    Logits whose last stride is not 1 are copied first. Raises ArgumentError for values that are not finite and labels
    outside 0..C-1, after the kernel has run.
    """
    if logits.stride(2) != 1:
        logits = logits.contiguous()
    compared = dense_logits is not None
    dense = logits if dense_logits is None else dense_logits
    if dense.stride(-1) != 1:
        dense = dense.contiguous()
    if outputs is None:
        outputs = allocate(logits, labels is not None, compared, over_models, torch.float32)
    if tile is None:
        tile = rule(logits.shape[0], logits.shape[2], logits.dtype, compared)
    arguments = (logits, dense, logits if labels is None else labels.contiguous(), *outputs)
    constants = (labels is not None, compared, over_models)
    threshold = in_band_threshold(band, torch.float32)
    flags = _run_kernel(tile, arguments, threshold, constants)
    if tile.whole_rows and flags[0]:
        flags = _run_kernel(IN_A_LOOP, arguments, threshold, constants)
    for raised, name in zip(flags, ("logits", "dense_logits")):
        if raised:
            raise ArgumentError(f"{name}: contains values that are not finite")
    if flags[2]:
        raise ArgumentError(f"labels: values outside 0..{logits.shape[2] - 1}")
    return outputs


def _run_kernel(
    tile: RowTile, arguments: tuple[Tensor, ...], threshold: float, options: tuple[bool, bool, bool]
) -> list[int]:
    """Fill the outputs among the arguments; the flags that the kernel raised: logits, dense logits, labels."""
    logits, dense = arguments[:2]
    models, samples, classes = logits.shape
    model_stride, row_stride, _ = logits.stride()
    # Only what the compiler knows of strides lets it load 16 bytes at a time: rows' are constants.
    unit, model_stride = (math.gcd(model_stride, 16), model_stride) if models > 1 else (16, 0)
    flags = torch.zeros(3, dtype=torch.int32, device=logits.device)
    sizes = (models, samples, model_stride // unit, threshold, unit, row_stride, dense.stride(-2), classes)
    constants, rows = _constants(tile, models, classes)
    with on_device(logits):
        if tile.whole_rows:
            _rows_kernel[(-(-samples // rows), 1, 1)](*arguments, flags, *sizes, *options, **constants)
        else:
            seen = (flags.new_empty(models, samples, dtype=dtype) for dtype in (torch.float32, torch.int32))
            _columns_kernel[(samples, 1, 1)](*arguments, flags, *seen, *sizes, *options, **constants)
    return flags.tolist()


@functools.lru_cache(maxsize=256)
def _constants(tile: RowTile, models: int, classes: int) -> tuple[dict[str, Any], int]:
    """Compile-time values and launch options, and the samples that a program of whole rows takes."""
    options = {"num_warps": tile.warps, "num_stages": 1, "maxnreg": tile.registers, "enable_fp_fusion": True}
    if not tile.whole_rows:
        return options | {"COLUMNS": tile.width}, 1
    constants = {
        "MODELS": tile.models,
        "ROWS": tile.rows,
        "WIDTH": tile.width,
        "CHUNKS": power_of_two(math.ceil(classes / tile.width)),
        "VOTERS": power_of_two(models) if models <= LARGEST_VOTE and tile.models == 1 else 0,
        "STEPS": tile.steps,
        "EARLY": tile.early,
    }
    return constants | options, tile.rows * tile.steps
