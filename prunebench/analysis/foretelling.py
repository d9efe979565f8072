"""Which outputs pruning changed, against what another seed changes, and whether the dense models told it before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prunebench.analysis.cells import FEWEST_PAIRS, Cells, defined, dense_runs, estimate
from prunebench.analysis.measures import Measured, own_identity
from prunebench.analysis.outputs import Outputs
from prunebench.analysis.values import (
    AttributeForetelling,
    Estimate,
    ExemplarRow,
    SampleForetelling,
    SusceptibleSample,
)
from prunebench.metrics.criteria import (
    bootstrap_area,
    evaluate_susceptibility,
    rank_correlation,
    susceptibility,
)
from prunebench.metrics.flips import compression_identified_exemplars
from prunebench.metrics.risk import bias_risks

SHOWN_SAMPLES = 32


def exemplar_rows(cells: Cells, outputs: Outputs) -> tuple[list[ExemplarRow], dict[str, Tensor]]:
    """Exemplars of every pruned cell, and their mask `[N]` (`[N K]` for attributes) by `method sparsity`."""
    dense = torch.stack([run.predicted for run in dense_runs(cells).values()])
    truth = outputs.test_y.long().flatten()
    rows, masks = [], {}
    for (method, sparsity), runs in cells.items():
        if runs[0].run.dense:
            continue
        sparse = torch.stack([run.predicted for run in runs])
        found = compression_identified_exemplars(dense, sparse)
        masks[cell_name(method, sparsity)] = found.modal
        right = math.nan
        if found.modal.any():
            mode = torch.nn.functional.one_hot(sparse[:, found.modal]).sum(0).argmax(1)
            right = float((mode == truth[found.modal]).double().mean())
        rows.append(
            ExemplarRow(
                method=method,
                sparsity=sparsity,
                share=defined(found.share),
                matched_share=defined(found.matched_share),
                control_share=defined(found.control_share),
                taxicab=defined(found.matched_taxicab),
                control_taxicab=defined(found.control_taxicab),
                right_share=defined(right),
                population=found.population,
            )
        )
    return rows, masks


def cell_name(method: str, sparsity: float | None) -> str:
    return f"{method} {'native' if sparsity is None else f'{sparsity:g}'}"


def output_uncertainty(run: Measured, outputs: Outputs) -> Tensor:
    """`susceptibility` of a run's outputs: by sample `[N]`, or by sample and attribute `[N K]`."""
    logits = run.run.logits["test"]
    return susceptibility(logits if outputs.task.attributes is None else logits.flatten())


def foretell_samples(cells: Cells, outputs: Outputs, masks: dict[str, Tensor]) -> list[SampleForetelling]:
    """How well the dense models' uncertainty ranks what pruning changes.

    Modal exemplars by the mean uncertainty of all dense seeds, with a bootstrap over outputs; flips and new errors
    by that of the seed's own dense model, with a t interval over seeds.
    """
    dense = dense_runs(cells)
    truth = outputs.test_y.long().flatten()
    unsure = {seed: output_uncertainty(run, outputs) for seed, run in dense.items()}
    together = torch.stack(list(unsure.values())).mean(0)
    columns = len(truth) // len(outputs.test_y)
    rows = []
    for (method, sparsity), runs in cells.items():
        if runs[0].run.dense:
            continue
        mask = masks[cell_name(method, sparsity)]
        told = evaluate_susceptibility(together, mask)
        low, high = bootstrap_area(together, mask, columns=columns)
        area = Estimate(defined(told.area_under_curve), defined(low), defined(high), told.samples)
        rows.append(
            SampleForetelling(
                method,
                sparsity,
                "modal exemplar",
                told.happened / told.samples,
                area,
                defined(told.average_precision),
                defined(told.recall_at_5_percent),
            )
        )
        paired = [run for run in runs if run.run.seed in dense]
        for event in ("flip", "new error"):
            found = []
            for run in paired:
                before = dense[run.run.seed].predicted
                changed = run.predicted != before
                if event == "new error":
                    changed = (before == truth) & (run.predicted != truth)
                found.append(evaluate_susceptibility(unsure[run.run.seed], changed))
            if found:
                rows.append(
                    SampleForetelling(
                        method,
                        sparsity,
                        event,
                        _mean([entry.happened / entry.samples for entry in found]),
                        estimate([entry.area_under_curve for entry in found]),
                        _mean([entry.average_precision for entry in found]),
                        _mean([entry.recall_at_5_percent for entry in found]),
                    )
                )
    return rows


def _mean(values: Sequence[float]) -> float | None:
    """The mean, or None where a value is undefined."""
    return defined(float(np.mean(values)))


def foretell_attributes(cells: Cells, outputs: Outputs) -> list[AttributeForetelling]:
    """Spearman's rho over classes or attributes (and identities) of each dense criterion with the change of the bias.

    Criteria and changes are means over the seeds where they are defined; a change is taken from the dense model of
    the same seed. With fewer than five of them there is no interval.
    """
    dense = dense_runs(cells)
    risks = [_risks(run, outputs) for run in dense.values()]
    criteria = {
        name: torch.stack([entry[name] for entry in risks]).nanmean(0) for name in (risks[0] if risks else ())
    }
    rows = []
    for (method, sparsity), runs in cells.items():
        if runs[0].run.dense:
            continue
        changes = [
            _by_output(run.entries["bias_amplification"] - dense[run.run.seed].entries["bias_amplification"])
            for run in runs
            if run.run.seed in dense
        ]
        if not changes:
            continue
        change = torch.stack(changes).nanmean(0)
        for name, criterion in criteria.items():
            found = rank_correlation(criterion, change)
            low, high = (found.low, found.high) if found.pairs >= FEWEST_PAIRS else (math.nan, math.nan)
            rho = Estimate(defined(found.rho), defined(low), defined(high), found.pairs)
            rows.append(AttributeForetelling(method, sparsity, name, rho))
    return rows


def _by_output(entries: Tensor) -> Tensor:
    """`[K]` of `[I, K]` or `[K]`: the mean over identities where it is defined."""
    return entries.nanmean(0) if entries.ndim == 2 else entries


def _risks(run: Measured, outputs: Outputs) -> dict[str, Tensor]:
    """The dense criteria by name, `[K]`; of attributes, means over the identities where they are defined."""
    truth = outputs.truths[run.run.seed]
    logits = run.run.logits["test"]
    attributes = outputs.task.attributes
    if attributes is None:
        identity, train_identity = (own_identity(truth, name) for name in ("test", "train"))
        return bias_risks(
            logits, truth.y["test"], identity, train_label=truth.y["train"], train_identity=train_identity
        )
    found = [
        bias_risks(
            logits,
            truth.y["test"],
            truth.y["test"][:, column],
            train_label=truth.y["train"],
            train_identity=truth.y["train"][:, column],
        )
        for column in attributes.identity_indices
    ]
    return {name: torch.stack([entry[name] for entry in found]).nanmean(0) for name in found[0]}


def susceptible_samples(cells: Cells, outputs: Outputs) -> list[SusceptibleSample]:
    """The test samples of which the dense models are least sure (of attributes: of their least sure one)."""
    dense = dense_runs(cells)
    attributes = outputs.task.attributes
    score = torch.stack([output_uncertainty(run, outputs) for run in dense.values()]).mean(0)
    columns = 1 if attributes is None else len(attributes)
    by_sample, least_sure = score.view(-1, columns).max(1)
    truth = outputs.truth
    pruned = [
        run
        for runs in cells.values()
        for run in runs
        if not run.run.dense and run.run.seed in dense and run.run.sparsity is not None
    ]
    label, bias = outputs.test_y.long().view(-1, columns), truth.bias["test"]
    rows = []
    for index in by_sample.argsort(descending=True, stable=True)[:SHOWN_SAMPLES].tolist():
        place = index * columns + int(least_sure[index])

        def name(value: int, column: int = int(least_sure[index])) -> str:
            return (
                str(value) if attributes is None else f"{'' if value else 'not '}{attributes.names[column]}"
            )

        flips = [bool(run.predicted[place] != dense[run.run.seed].predicted[place]) for run in pruned]
        before, after = (
            _mode([int(run.predicted[place]) for run in group]) for group in (dense.values(), pruned)
        )
        rows.append(
            SusceptibleSample(
                index=index,
                score=float(by_sample[index]),
                label=name(int(label[index, least_sure[index]])),
                bias=f"{truth.task.bias_name} {int(bias[index])}",
                dense="-" if before is None else name(before),
                sparse="-" if after is None else name(after),
                flipped_share=sum(flips) / len(flips) if flips else None,
            )
        )
    return rows


def _mode(values: Sequence[int]) -> int | None:
    """The most frequent value, the lowest where several are; None for no values."""
    return min(set(values), key=lambda value: (-values.count(value), value)) if values else None
