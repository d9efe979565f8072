"""Images as a network sees them: resident on the training device or streamed to it, and the order of drawing."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional

from prunebench.data.transforms import ImageTransform
from prunebench.results.spec import View

Rows = Tensor | slice


class Images:
    """uint8 images `[N, C, H, W]` kept on the device as NHWC bytes; a batch is one gather and one cast.

    With a `view` a batch holds crops of the scaled images, cut on the device; an `overlay` changes some of them then.
    """

    evaluation_batch = 512

    def __init__(
        self,
        x: Tensor,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        view: View | None = None,
        overlay: ImageTransform | None = None,
    ) -> None:
        self._bytes = self._keep(x.permute(0, 2, 3, 1), device)
        scale = torch.tensor(std, device=device) * 255.0
        self._scale = 1.0 / scale
        self._shift = -torch.tensor(mean, device=device) * 255.0 / scale
        self._view = view
        self._painter = None if overlay is None else overlay.painter(device)

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def device(self) -> torch.device:
        return self._scale.device

    def batch(self, index: Rows, crops: Tensor | None = None) -> Tensor:
        """Normalised float32 images `[B, C, H, W]`, channels_last; cut in the middle unless `crops` are given."""
        return self._show(self._gather(index).to(self.device), index, crops)

    def pixels(self, x: Tensor) -> Tensor:
        """The pixels, from 0 to 1, of normalised images `[B, C, H, W]`."""
        return (x - self._shift.view(-1, 1, 1)) / (255 * self._scale).view(-1, 1, 1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 1, `[B, C, H, W]`, as a batch has them."""
        return pixels * (255 * self._scale).view(-1, 1, 1) + self._shift.view(-1, 1, 1)

    def feed(
        self, batches: Tensor | Sequence[Rows], crops: Tensor | None = None
    ) -> Generator[Tensor, None, None]:
        """The images of every step, in order. batches `[steps, B]`, or one index a step; crops `[steps, B, 3]`."""
        if isinstance(batches, Tensor):
            batches = batches.to(self.device)
        crops = None if crops is None else crops.to(self.device)
        for step in range(len(batches)):
            yield self.batch(batches[step], None if crops is None else crops[step])

    def draw_crops(self, shape: Sequence[int], generator: torch.Generator) -> Tensor | None:
        """Random crops for batches `[steps, B]`: int16 `[steps, B, 3]` of top, left, mirrored; None without a view."""
        if self._view is None:
            return None
        height, width = self._view.resized(*self._bytes.shape[1:3])
        choices = (height - self._view.crop + 1, width - self._view.crop + 1, 1 + self._view.flip)
        drawn = [
            torch.randint(choice, tuple(shape), generator=generator, dtype=torch.int16) for choice in choices
        ]
        return torch.stack(drawn, dim=-1)

    def _keep(self, x: Tensor, device: torch.device) -> Tensor:
        return x.contiguous().to(device)

    def _gather(self, index: Rows) -> Tensor:
        return self._bytes[index]

    def _show(self, pixels: Tensor, index: Rows, crops: Tensor | None) -> Tensor:
        shown = pixels.to(torch.float32)
        if self._view is not None:
            shown = cut(shown, self._view, crops)
        if self._painter is not None:
            rows = index if isinstance(index, slice) else index.to(self.device, non_blocking=True)
            shown = self._painter(shown.permute(0, 3, 1, 2), rows).permute(0, 2, 3, 1)
        return torch.addcmul(self._shift, shown, self._scale).permute(0, 3, 1, 2)


class StreamedImages(Images):
    """Images that stay in a file mapped into memory; only the rows of a batch travel to the device.

    x: a view `[N, C, H, W]` of NHWC bytes. Threads gather the coming batches (into pinned memory for a GPU) while
    the device computes.
    """

    evaluation_batch = 128
    ahead = 4
    """Batches gathered before they are asked for, each by a thread of its own."""

    def feed(
        self, batches: Tensor | Sequence[Rows], crops: Tensor | None = None
    ) -> Generator[Tensor, None, None]:
        if isinstance(batches, Tensor):
            batches = batches.cpu()  # once: threads that asked a GPU for rows would wait for its steps
        crops = None if crops is None else crops.to(self.device)
        coming: deque[Future[Tensor]] = deque()
        pool = ThreadPoolExecutor(self.ahead, thread_name_prefix="gather")
        try:
            for step in range(len(batches)):
                while len(coming) < min(self.ahead, len(batches) - step):
                    coming.append(pool.submit(self._gather, batches[step + len(coming)]))
                pixels = coming.popleft().result().to(self.device, non_blocking=True)
                yield self._show(pixels, batches[step], None if crops is None else crops[step])
        finally:
            pool.shutdown(cancel_futures=True)

    def _keep(self, x: Tensor, device: torch.device) -> Tensor:
        return x

    def _gather(self, index: Rows) -> Tensor:
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        shape = (len(index), *self._bytes.shape[1:])
        gathered = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return torch.index_select(self._bytes, 0, index.cpu(), out=gathered)


def cut(pixels: Tensor, view: View, crops: Tensor | None) -> Tensor:
    """The crops of float pixels `[B, H, W, C]` that a view shows: `[B, crop, crop, C]`.

    crops: `[B, 3]` of top, left and mirrored; None cuts in the middle. Scaling is bilinear, antialiased where it
    shrinks, and not rounded to whole grey levels: within one level (of 255) of what torchvision makes of a PIL image.
    """
    device, side = pixels.device, view.crop
    height, width = view.resized(*pixels.shape[1:3])
    if (height, width) != tuple(pixels.shape[1:3]):
        pixels = functional.interpolate(
            pixels.permute(0, 3, 1, 2),
            (height, width),
            mode="bilinear",
            align_corners=False,
            antialias=height < pixels.shape[1],
        ).permute(0, 2, 3, 1)
    if crops is None:
        top, left = view.center(height, width)
        return pixels[:, top : top + side, left : left + side]
    first_row, first_column, mirrored = crops.to(device).long().unsqueeze(-1).unbind(1)
    span = torch.arange(side, device=device)
    rows = first_row + span
    columns = first_column + torch.where(mirrored > 0, side - 1 - span, span)
    sample = torch.arange(len(pixels), device=device)
    return pixels[sample[:, None, None], rows[:, :, None], columns[:, None, :]]


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
