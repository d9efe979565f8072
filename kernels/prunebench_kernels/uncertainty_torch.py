"""The torch path of `uncertainty`: the samples in chunks that stay in cache, every intermediate written in place.

Per chunk and model: z = (x - max x) / ln 2, e = 2^z, d = sum e. Then max p = 1 / d, margin = (1 - 2^z_(2)) / d and
entropy = log d - ln 2 sum(e z) / d, so that one exponential serves all. (On AVX-512 torch.exp2 takes a quarter of
the time of torch.exp, and a comparison that writes floats a fifth of one that writes booleans.) With few classes a
chunk is transposed first, so that reductions over classes vectorise over samples.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench_kernels.dispatch import check_finite

LN2 = math.log(2.0)
CHUNK = 1 << 18
"""Logits that a CPU thread takes at a time: fewer leave the time to calls, more do not stay in the caches."""
CHUNK_ON_A_GPU = 1 << 26
CLASSES_IN_ROWS_FROM = 128
"""Number of classes from which reductions along a row are faster than a transposed copy."""
SMALLEST_SQUARE = 1e-30
"""Sums of squares below this have lost digits to underflow in float32."""


def compute(
    logits: Tensor, labels: Tensor | None, dense_logits: Tensor | None, band: float, over_models: bool
) -> list[Tensor]:
    """All values for logits `[M, N, C]`, in the order of PER_MODEL and OVER_MODELS; what is absent has no elements.

    Values that are not finite show as a nan, so that looking for them costs no pass over the logits. So do finite
    ones whose differences or squares overflow: those calls run again with clamps and scaling. Raises ArgumentError
    for logits that are not finite.
    """
    quick = _Pass(logits, labels, dense_logits, band, over_models, careful=False)
    quick.run()
    if not quick.suspicious:
        return quick.outputs
    check_finite("logits", logits)
    if dense_logits is not None:
        check_finite("dense_logits", dense_logits.to(quick.dtype))
    careful = _Pass(logits, labels, dense_logits, band, over_models, careful=True)
    careful.run()
    return careful.outputs


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

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        dense_logits: Tensor | None,
        band: float,
        over_models: bool,
        careful: bool,
    ) -> None:
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

    def run(self) -> None:
        """Fill the outputs."""
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
        return out.mul_(1 / LN2), highest

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

    def _run_block(
        self,
        logits: Tensor,
        values: list[Tensor],
        labels: Tensor | None,
        dense: _Dense | None,
        votes: Tensor | None,
    ) -> Tensor:
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
            values[6].masked_fill_((sums < SMALLEST_SQUARE) | (sums == torch.inf), torch.nan)

    def _finish_per_model(self, values: list[Tensor]) -> None:
        largest, second, weighted, at_label, in_band, to_dense, correlation = values
        log_largest = largest.log()
        second.mul_(LN2).expm1_().mul_(largest).neg_()
        weighted.mul_(-LN2).sub_(log_largest)
        in_band.div_(self.classes)
        if len(at_label):
            at_label.add_(log_largest).neg_()
        if len(to_dense):
            to_dense.mul_(LN2).add_(log_largest).clamp_(min=0)
        self.suspicious |= any(bool(found.isnan().any()) for found in (weighted, to_dense, correlation))

    def _finish_over_models(self, part: slice, mean: Tensor, votes: Tensor) -> None:
        """Write mean probability, its entropy, the vote and agreement of one chunk."""
        work = self._buffer("work", 1, part.stop - part.start)
        self.outputs[7][part] = (mean if self.in_rows else mean.permute(1, 2, 0)).squeeze(0)
        torch.clamp(mean, min=torch.finfo(self.dtype).tiny, out=work).log2_()
        predictive = self._sum(work.mul_(mean)).squeeze(0).mul_(-LN2)
        self.outputs[8][part] = predictive
        self.outputs[9][part] = (predictive - self.outputs[2][:, part].mean(0)).clamp_(min=0)
        most = votes.amax(self.class_dim, keepdim=True)
        rank = torch.arange(
            self.classes, 0, -1, dtype=self.dtype, device=votes.device
        )  # the lowest class highest
        shape = [self.classes if dim == self.class_dim else 1 for dim in range(3)]
        best = torch.eq(votes, most, out=work).mul_(rank.view(shape)).amax(self.class_dim)
        self.outputs[10][part] = self.classes - best.squeeze(0).to(torch.int64)
        self.outputs[11][part] = most.flatten().div_(self.models)
