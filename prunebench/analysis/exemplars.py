"""Compression-identified exemplars, and the test samples that pruning is most likely to change."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunebench.analysis.aggregate import MeasuredConditions, dense_runs, pruned_conditions, reference_runs
from prunebench.analysis.measures import MeasuredRun, Outputs
from prunebench.analysis.values import Estimate, ExemplarRow, SusceptibleSample, defined
from prunebench.errors import UsageError
from prunebench.metrics.populations import (
    Disagreement,
    compression_identified_exemplars,
    expected_disagreement,
)
from prunebench.metrics.predictability import margin_uncertainty
from prunebench.report.format import cut

SHOWN_SAMPLES, SAMPLE_COLUMNS = 32, 8
TILE, MARGIN, LETTERS = 140, 16, 22
"""Pixels of an enlarged sample and between two, and letters of a line below it."""
INK, SOFT = "#1f2328", "#57606a"

Masks = dict[tuple[str, float | None], Tensor]
"""By method and sparsity, which outputs are exemplars."""


def exemplar_rows(conditions: MeasuredConditions, outputs: Outputs) -> tuple[list[ExemplarRow], Masks]:
    """Compression-identified exemplars of every pruned condition, and their mask `[N]` (`[N K]` for attributes).

    Both sides have had as many steps: what pruning is held against is the reference of the track.
    """
    unpruned = reference_runs(conditions)
    dense = torch.stack([run.predicted for run in unpruned.values()])
    truth = outputs.test_y.long().flatten()
    rows: list[ExemplarRow] = []
    masks: Masks = {}
    for (method, sparsity), runs in pruned_conditions(conditions).items():
        sparse = torch.stack([run.predicted for run in runs])
        found = compression_identified_exemplars(dense, sparse)
        masks[method, sparsity] = found.modal
        right = math.nan
        if found.modal.any():
            mode = torch.nn.functional.one_hot(sparse[:, found.modal]).sum(0).argmax(1)
            right = float((mode == truth[found.modal]).double().mean())
        by_seed = {run.run.seed: run for run in runs}
        shared = [seed for seed in unpruned if seed in by_seed]
        apart = expected_disagreement(
            *(torch.stack([by[seed].predicted for seed in shared]) for by in (unpruned, by_seed))
        ) if shared else None  # fmt: skip
        rows.append(_exemplar_row(method, sparsity, found.share, right, apart))
    return rows, masks


def _exemplar_row(
    method: str, sparsity: float | None, share: float, right: float, apart: Disagreement | None
) -> ExemplarRow:
    if apart is None:
        return ExemplarRow(method, sparsity, share, defined(right), None, None, Estimate(None, None, None, 0))
    added = Estimate.of(apart.difference, apart.low, apart.high, apart.seeds)
    return ExemplarRow(
        method, sparsity, share, defined(right), defined(apart.sparse), defined(apart.control), added
    )


def output_uncertainty(run: MeasuredRun, outputs: Outputs) -> Tensor:
    """`margin_uncertainty` of a run's outputs: by sample `[N]`, or by sample and attribute `[N K]`."""
    logits = run.run.logits["test"]
    return margin_uncertainty(logits if outputs.task.attributes is None else logits.flatten())


def susceptible_samples(conditions: MeasuredConditions, outputs: Outputs) -> list[SusceptibleSample]:
    """The test samples of which the dense models are least sure (of attributes: of their least sure one)."""
    dense = dense_runs(conditions)
    attributes = outputs.task.attributes
    score = torch.stack([output_uncertainty(run, outputs) for run in dense.values()]).mean(0)
    columns = 1 if attributes is None else len(attributes)
    by_sample, least_sure = score.view(-1, columns).max(1)
    truth = outputs.truth
    asked = [runs for (_, sparsity), runs in pruned_conditions(conditions).items() if sparsity is not None]
    pruned = [run for runs in asked for run in runs if run.run.seed in dense]
    label, bias = outputs.test_y.long().view(-1, columns), truth.bias["test"]
    rows = []

    def said(label: int) -> str:
        return str(label) if attributes is None else "yes" if label else "no"

    for index in by_sample.argsort(descending=True, stable=True)[:SHOWN_SAMPLES].tolist():
        place = index * columns + int(least_sure[index])
        flips = [bool(run.predicted[place] != dense[run.run.seed].predicted[place]) for run in pruned]
        before, after = (
            most_frequent([int(run.predicted[place]) for run in group]) for group in (dense.values(), pruned)
        )
        rows.append(
            SusceptibleSample(
                index=index,
                score=float(by_sample[index]),
                attribute=None if attributes is None else attributes.names[int(least_sure[index])],
                label=said(int(label[index, least_sure[index]])),
                bias=f"{truth.task.bias_name} {int(bias[index])}",
                dense="-" if before is None else said(before),
                sparse="-" if after is None else said(after),
                flipped_share=sum(flips) / len(flips) if flips else None,
            )
        )
    return rows


def most_frequent(values: Sequence[int]) -> int | None:
    """The most frequent value, the lowest where several are; None for no values."""
    return min(set(values), key=lambda value: (-values.count(value), value)) if values else None


def sample_grid(images: Tensor, captions: Sequence[str]) -> bytes:
    """Images as a PNG of enlarged tiles, each with its caption of two lines below; up to 32 are shown.

    images: uint8 `[n, C, H, W]` with one or three channels; captions: `n` texts, lines parted by a newline.
    Raises UsageError on images of other shapes or as many captions as there are not images.
    """
    from PIL import Image, ImageDraw, ImageFont

    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(captions) != len(images) or not len(images):
        raise UsageError(
            f"sample grid: want images [n, 1 or 3, H, W] and n captions, n > 0; got {list(images.shape)} "
            f"and {len(captions)} captions"
        )
    shown = images[:SHOWN_SAMPLES].cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()
    columns = min(SAMPLE_COLUMNS, len(shown))
    pitch = TILE + MARGIN, TILE + MARGIN + 36
    size = columns * pitch[0] + MARGIN, math.ceil(len(shown) / columns) * pitch[1] + MARGIN
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(13)
    pen = ImageDraw.Draw(sheet)
    for index, image in enumerate(shown):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * pitch[0], MARGIN + row * pitch[1]
        sheet.paste(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.NEAREST), (left, top))
        pen.rectangle((left - 1, top - 1, left + TILE, top + TILE), outline=SOFT)
        for line, (text, colour) in enumerate(zip(captions[index].split("\n")[:2], (INK, SOFT))):
            pen.text((left, top + TILE + 5 + 16 * line), cut(text, LETTERS), fill=colour, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def caption(sample: SusceptibleSample) -> str:
    """What stands below a sample: its label, then what dense and pruned models say; of an attribute, yes or no."""
    of_class = f"{sample.label}, {sample.bias}"
    label = of_class if sample.attribute is None else f"{sample.attribute}: {sample.label}"
    return f"{label}\n{sample.dense} -> {sample.sparse}"
