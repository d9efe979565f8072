"""Masks that are learned: one logit a weight, Gumbel-sigmoid samples, straight-through gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from prunebench_kernels import explain, sample_masks
from prunebench_kernels.masked_conv import MaskedConv2d
from torch import Tensor, nn
from torch.func import functional_call

from prunebench.pruning.masks import Masks, prunable, top_k

if TYPE_CHECKING:
    from prunebench.models import Classifier


class LearnedMasks(nn.Module):
    """A frozen network seen through sampled masks; only `logits`, one flat buffer of all layers, trains.

    Takes `net` over: its parameters stop to require gradients. Every pass draws all layers in one call; the seed
    and the number of the pass decide the draw. Where the kernels run, that call gives masks, and the convolutions
    become masked ones; elsewhere it gives the masked weights, in the dtype that the network computes in.
    BatchNorm stays in training mode, as in the released code of DCWP. `squash` applies the sigmoid before the
    noise (the released quirk: keep-probabilities stay in (0.5, 0.731)).
    """

    def __init__(
        self,
        net: Classifier,
        *,
        seed: int,
        initial: float = 1.5,
        temperature: float = 1.0,
        squash: bool = True,
    ) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self._weights = prunable(net)
        self._flat_weights = torch.cat([_flattened(weight) for weight in self._weights.values()])
        self.logits = nn.Parameter(torch.full_like(self._flat_weights, initial))
        self._seed, self._draws = seed, 0
        self._temperature = temperature
        self._squash = squash
        kernels_run = explain(sample_masks, self.logits, seed=seed).is_triton
        self._convolutions = _mask_convolutions(net) if kernels_run else set()

    def draw_masks(self) -> dict[str, Tensor]:
        """The next draw of float masks, differentiable in the logits, by the name of their weight."""
        return self._by_layer(self._draw())

    def draw_weights(self) -> dict[str, Tensor]:
        """weight * mask of the next draw, in the dtype of autocast, by the name of the weight."""
        device = self.logits.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return self._by_layer(self._draw(weights=self._flat_weights, weight_dtype=dtype))

    def _draw(self, **output: Any) -> Tensor:
        self._draws += 1
        return sample_masks(
            self.logits,
            seed=self._seed,
            offset=self._draws - 1,
            temperature=self._temperature,
            squash=self._squash,
            **output,
        )

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features `[B, F]` and class logits `[B, C]` of one mask draw."""
        return functional_call(self, self._replacements(), (x,))

    def _replacements(self) -> dict[str, Tensor]:
        if not self._convolutions:
            return {f"net.{name}": weight for name, weight in self.draw_weights().items()}
        masks = self.draw_masks()
        return {
            f"net.{name.removesuffix('weight')}mask": mask
            for name, mask in masks.items()
            if name in self._convolutions
        } | {
            f"net.{name}": self._weights[name] * mask
            for name, mask in masks.items()
            if name not in self._convolutions
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(x)
        return features, self.net.head(features)

    def sum_of_logits(self) -> Tensor:
        """The sparsity regulariser of the released code: the plain sum of the logits."""
        return self.logits.sum()

    def named_logits(self) -> dict[str, Tensor]:
        """A copy of the logits of each layer, by the name of its weight."""
        return {name: values.clone() for name, values in self._by_layer(self.logits.detach()).items()}

    def _by_layer(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat buffer with the shapes and strides of the weights."""
        pieces = flat.split([weight.numel() for weight in self._weights.values()])
        return {name: _view_as(piece, self._weights[name]) for name, piece in zip(self._weights, pieces)}


def _mask_convolutions(net: nn.Module) -> set[str]:
    """Put masked convolutions, which share the parameters, in place of the plain ones; their weights' names."""
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    for name in names:
        net.set_submodule(name, MaskedConv2d.from_conv(net.get_submodule(name)))  # type: ignore[arg-type]
    return {f"{name}.weight" for name in names}


def _is_channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def _flattened(weight: Tensor) -> Tensor:
    """The values `[P]` in the order in which they lie."""
    weight = weight.detach()
    return (weight.permute(0, 2, 3, 1) if _is_channels_last(weight) else weight).reshape(-1)


def _view_as(piece: Tensor, weight: Tensor) -> Tensor:
    """A contiguous `[P]` piece with the weight's shape, channels_last where the weight is stored so."""
    if _is_channels_last(weight):
        k, c, r, s = weight.shape
        return piece.view(k, r, s, c).permute(0, 3, 1, 2)
    return piece.view(weight.shape)


def native_masks(logits: Mapping[str, Tensor]) -> Masks:
    """The masks at the method's own threshold, logit >= 0; the best weight of an empty layer stays."""
    return {name: values >= 0 if (values >= 0).any() else top_k(values, 1) for name, values in logits.items()}
