"""Masks with exact counts: made, applied and verified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.errors import MaskError, UsageError
from prunebench.pruning.counts import Masks, keep_count, masks_from_counts
from prunebench.pruning.counts import top_k as top_k
from prunebench.pruning.distribution import Distribution, allocate
from prunebench.pruning.pattern import pattern_masks
from prunebench.pruning.wrapped import bare_name, bare_network, own_names
from prunebench.results.spec import number_text


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are pruned, by name: every convolution and linear layer, first and last included.

    BatchNorm and biases stay dense. A weight that several layers share is one parameter, under the first layer's name;
    names are those of the network itself, without what `torch.compile` or `DataParallel` puts around it.
    """
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, ...]] = set()
    for name, module in bare_network(model).named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            place = _place(weight)
            if place not in seen:
                found[bare_name(f"{name}.weight" if name else "weight")] = weight
            seen.add(place)
    return found


def _place(weight: Tensor) -> tuple[int, ...]:
    """Where a weight's numbers lie: the same for the same numbers under another name, transposed ones included."""
    start = weight.untyped_storage().data_ptr()
    return (start, int(weight.storage_offset()), weight.numel()) if start else (id(weight),)


def check_held(model: nn.Module, names: Iterable[str]) -> None:
    """Raise MaskError for a weight that is no parameter: a mask on what is computed anew each time does not hold."""
    parameters = {id(value) for value in model.parameters()}
    weights = prunable(model)
    for name in names:
        if name in weights and id(weights[name]) not in parameters:
            raise MaskError(
                f"{name}: the weight is computed (weight_norm, spectral_norm, torch.nn.utils.prune or another "
                "parametrization), so a mask on it is lost; remove the parametrization first "
                "(parametrize.remove_parametrizations, prune.remove), or mask what it is computed from"
            )


def check_feasible(sizes: Mapping[str, int], sparsity: float) -> None:
    """Raise UsageError if the sparsity leaves fewer weights than there are layers."""
    total = sum(sizes.values())
    keep = keep_count(total, sparsity)
    if keep < len(sizes):
        raise UsageError(
            f"sparsity {number_text(sparsity)} keeps {keep} of {total} weights, fewer than the {len(sizes)} layers: "
            "it would empty a layer"
        )


def make_masks(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    allocation: str | Distribution = "global",
    structure: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Masks with exactly the asked count and at least one weight a layer.

    `allocation` is the distribution over layers, by name or a function (`distribution.allocate`); `structure` the
    pattern within them (`pattern.pattern_masks`). `weights` is needed by distributions that look at the weights rather
    than the scores.
    """
    keep = keep_count(sum(values.numel() for values in scores.values()), sparsity)
    if structure not in (None, "unstructured"):
        return pattern_masks(structure, scores, weights or {}, keep, allocation)
    return masks_from_counts(scores, allocate(allocation, scores, weights or {}, keep))


def uniform_counts(model: nn.Module, sparsity: float) -> dict[str, int]:
    """How many weights of each layer stay where all layers are as dense."""
    weights = prunable(model)
    total = sum(weight.numel() for weight in weights.values())
    return allocate("uniform", weights, weights, keep_count(total, sparsity))


def masks_of(model: nn.Module) -> Masks:
    """The masks that a network holds: those of `torch.nn.utils.prune`, or where its weights are not zero."""
    held = {bare_name(name): value for name, value in bare_network(model).named_buffers()}
    return {
        name: (held[f"{name}_mask"] if f"{name}_mask" in held else weight.detach()) != 0
        for name, weight in prunable(model).items()
    }


def whole_masks(model: nn.Module) -> Masks:
    """Masks that keep every weight."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}


def shuffled(masks: Mapping[str, Tensor], generator: torch.Generator) -> Masks:
    """Masks with as many weights in every layer, at random places of it; `generator` is a CPU one.

    The layers' order in `masks` does not matter: what was stored comes back in any.
    """
    places = {name: torch.randperm(masks[name].numel(), generator=generator) for name in sorted(masks)}
    return {
        name: mask.flatten()[places[name].to(mask.device)].view(mask.shape) for name, mask in masks.items()
    }


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the masked weights in place. Raises MaskError for a weight that is computed, or not there."""
    weights = prunable(model)
    check_held(model, masks)
    for name in masks:
        if name not in weights:
            raise unknown_weight(name, weights)
    for name, mask in masks.items():
        weights[name].mul_(mask.to(weights[name].device))


@dataclass(frozen=True)
class MaskReport:
    """Asked (None: chosen by the method) and achieved share of zeros, over all and by layer."""

    asked: float | None
    achieved: float
    by_layer: dict[str, float]


def verify(model: nn.Module, masks: Mapping[str, Tensor], asked: float | None) -> MaskReport:
    """Check masks and weights against what was asked.

    Raises MaskError if a layer has no mask or a wrong shape, is empty, misses the asked count, or if a masked
    weight is not exactly zero (the mask did not hold through training).
    """
    weights = prunable(model)
    if set(masks) != set(weights):
        wrong = sorted(set(masks) ^ set(weights))
        raise MaskError(
            f"masks must cover exactly the convolution and linear weights; see {', '.join(wrong)}"
        )
    kept, total, by_layer = 0, 0, {}
    for name, weight in weights.items():
        mask = masks[name]
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise MaskError(f"{name}: want a bool mask {tuple(weight.shape)}, got {mask.dtype} {mask.shape}")
        alive = int(mask.sum())
        if alive == 0:
            raise MaskError(f"{name}: the mask empties the layer")
        escaped = int(((weight.detach() != 0) & ~mask.to(weight.device)).sum())
        if escaped:
            check_held(model, [name])
            raise MaskError(f"{name}: the mask did not hold: {escaped} masked weights are not zero")
        if not torch.isfinite(weight.detach()).all():
            raise MaskError(f"{name}: weights are not finite")
        kept, total = kept + alive, total + mask.numel()
        by_layer[name] = 1 - alive / mask.numel()
    if asked is not None and kept != keep_count(total, asked):
        raise MaskError(
            f"asked for sparsity {asked:g}: {keep_count(total, asked)} of {total} weights, but {kept} are kept"
        )
    return MaskReport(asked, 1 - kept / total, by_layer)


def count_zeros(model: nn.Module, report: MaskReport) -> MaskReport:
    """The report by the zeros that the weights hold, which are what is evaluated; its masks may say fewer.

    Raises MaskError where a sparsity was asked for and the weights are sparser than that, and for a layer of zeros.
    """
    weights = {name: weight.detach() for name, weight in prunable(model).items()}
    alive = {name: int((weight != 0).sum()) for name, weight in weights.items()}
    for name, count in alive.items():
        if count == 0:
            raise MaskError(f"{name}: all its weights are zero")
    kept, total = sum(alive.values()), sum(weight.numel() for weight in weights.values())
    if report.asked is not None and kept != keep_count(total, report.asked):
        raise MaskError(
            f"asked for sparsity {report.asked:g}: {keep_count(total, report.asked)} of {total} weights, and the masks "
            f"keep so many, but {kept} of the returned weights are not zero; zero no weight that a mask keeps"
        )
    by_layer = {name: 1 - count / weights[name].numel() for name, count in alive.items()}
    return MaskReport(report.asked, 1 - kept / total, by_layer)


def unknown_weight(name: str, weights: Iterable[str]) -> MaskError:
    """The error for a mask of no layer."""
    return MaskError(f"{name}: no convolution or linear weight of this name; there are {', '.join(weights)}")


def named_as_in(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    """Masks under the names that the model itself has for its parameters, compiled or not.

    Raises MaskError for a weight that is computed, or not there.
    """
    if masks is None:
        return None
    names = own_names(model)
    if all(names.get(name) == name for name in masks):
        return masks
    check_held(model, masks)
    for name in masks:
        if name not in names:
            raise unknown_weight(name, names)
    return {names[name]: mask for name, mask in masks.items()}
