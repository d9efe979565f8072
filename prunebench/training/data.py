"""Images resident on the training device, and the order in which they are drawn."""

from __future__ import annotations

import torch
from torch import Tensor


class Images:
    """uint8 images `[N, C, H, W]` kept on the device as NHWC bytes; a batch is one gather and one cast."""

    def __init__(
        self, x: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        self._bytes = x.permute(0, 2, 3, 1).contiguous().to(device)
        scale = torch.tensor(std, device=device) * 255.0
        self._scale = 1.0 / scale
        self._shift = -torch.tensor(mean, device=device) * 255.0 / scale

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def device(self) -> torch.device:
        return self._bytes.device

    def batch(self, index: Tensor | slice) -> Tensor:
        """Normalised float32 images `[B, C, H, W]`, channels_last."""
        pixels = self._bytes[index].to(torch.float32)
        return torch.addcmul(self._shift, pixels, self._scale).permute(0, 3, 1, 2)


def draw_batches(
    count: int,
    *,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Sample indices of every step, int64 `[steps, batch_size]`, drawn before the loop starts.

    Without weights: shuffled epochs, one after another. With `sample_weight` `[count]` (relative, >= 0):
    with replacement, in proportion to the weights. A batch never exceeds the data set.
    """
    size = min(batch_size, count)
    if sample_weight is not None:
        weight = sample_weight.detach().cpu().double()
        if (
            weight.shape != (count,)
            or not torch.isfinite(weight).all()
            or weight.min() < 0
            or weight.sum() <= 0
        ):
            raise ValueError(f"sample_weight: want [{count}] finite, >= 0 and not all zero")
        drawn = torch.multinomial(weight, steps * size, replacement=True, generator=generator)
        return drawn.view(steps, size)
    epochs = -(-steps * size // count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
    return order[: steps * size].view(steps, size)
