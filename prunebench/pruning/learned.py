"""Masks that are learned: one logit a weight, Gumbel-sigmoid samples, straight-through gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from prunebench_kernels.mask_sampling import sample_masks
from prunebench_kernels.masks import layer_views
from torch import Tensor, nn
from torch.func import functional_call

from prunebench.pruning.masks import Masks, prunable, top_k

if TYPE_CHECKING:
    from prunebench.models import Classifier


class LearnedMasks(nn.Module):
    """A frozen network seen through sampled masks; only `logits`, one flat buffer of all layers, trains.

    Takes `net` over: its parameters stop to require gradients. Every pass draws the masked weights of all layers in
    one call, in the dtype that the network computes in; the seed and the number of the pass, counted in `draws`,
    decide the draw. A captured CUDA graph counts on: every replay draws new masks.
    BatchNorm stays in training mode, as in the released code of DCWP. `squash` applies the sigmoid before the
    noise (the released quirk: keep-probabilities stay in (0.5, 0.731)).
    """

    draws: Tensor

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
        self.register_buffer("draws", torch.zeros(1, dtype=torch.int64, device=self.logits.device))
        self._seed = seed
        self._temperature = temperature
        self._squash = squash

    def sampled_logits(self) -> Tensor:
        """What the next draw adds its noise to, `[P]`."""
        return self.logits

    def draw_masks(self) -> dict[str, Tensor]:
        """The next draw of float masks, differentiable in the logits, by the name of their weight."""
        return self._by_layer(self._draw())

    def draw_weights(self) -> dict[str, Tensor]:
        """weight * mask of the next draw, in the dtype of autocast, by the name of the weight."""
        device = self.logits.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return self._by_layer(self._draw(weights=self._flat_weights, weight_dtype=dtype))

    def _draw(self, **output: Any) -> Tensor:
        logits, number = self.sampled_logits(), self.draws.clone()  # the backward pass reads the number again
        self.draws.add_(1)
        return sample_masks(
            logits,
            seed=self._seed,
            offset=number,
            temperature=self._temperature,
            squash=self._squash,
            **output,
        )

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features `[B, F]` and class logits `[B, C]` of one mask draw."""
        return functional_call(self, {f"net.{name}": one for name, one in self.draw_weights().items()}, (x,))

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
        return dict(zip(self._weights, layer_views(flat, list(self._weights.values()))))


class DensityMasks(LearnedMasks):
    """Masks that are sampled, at every step, at the density that is to be reached.

    A weight is kept where logit + noise > t; the noise is logistic and added to the raw logit, so that its probability
    is sigmoid(logit - t), and t makes the mean of these the density of the step: 1 at first, `density` after
    `anneal_steps` draws, and between them the cubic of gradual pruning.
    """

    def __init__(
        self, net: Classifier, *, seed: int, density: float, anneal_steps: int, temperature: float = 1.0
    ) -> None:
        super().__init__(net, seed=seed, initial=0.0, temperature=temperature, squash=False)
        self._density, self._anneal_steps = density, anneal_steps

    def sampled_logits(self) -> Tensor:
        left = (1 - self.draws / max(self._anneal_steps, 1)).clamp(min=0)
        return self.logits - density_threshold(self.logits, self._density + (1 - self._density) * left**3)


HALVINGS = 24
FARTHEST = 20.0
"""Of a threshold from the logits: there the probability is 2e-9 or as near to 1."""


@torch.no_grad()
def density_threshold(logits: Tensor, density: Tensor) -> Tensor:
    """The t at which the mean of sigmoid(logits - t) is `density` `[1]`, by halving an interval: `[1]`.

    Nothing in it waits for a GPU.
    """
    low, high = logits.min() - FARTHEST, logits.max() + FARTHEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = torch.sigmoid(logits - middle).mean() > density
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


def _flattened(weight: Tensor) -> Tensor:
    """The values `[P]` in the order in which they lie: contiguous or channels_last."""
    weight = weight.detach()
    return (weight if weight.is_contiguous() else weight.permute(0, 2, 3, 1)).reshape(-1)


def native_masks(logits: Mapping[str, Tensor]) -> Masks:
    """The masks at the method's own threshold, logit >= 0; the best weight of an empty layer stays."""
    return {name: values >= 0 if (values >= 0).any() else top_k(values, 1) for name, values in logits.items()}
