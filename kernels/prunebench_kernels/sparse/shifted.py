"""The input laid out so that every tap of a convolution is a shifted view of it: no unfolding.

The image is stored channel-major, `[C, N * Hq * Wq]`, with zeros between rows and images. Output pixel
(n, i, j) stands at n * Hq * Wq + i * Wq + j, and the input that tap (r, s) brings to it stands a fixed number of
elements further on. So the tap's matrix of inputs `[C, pixels]` is a slice, which BLAS takes as it is. Rows
share the zeros between them (the right border of one is the left border of the next), so 8 x 8 pixels cost
9 x 9. A stride splits the padded image into stride_h * stride_w phases, each stored like that.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from prunebench_kernels.sparse import codes as places
from prunebench_kernels.sparse.geometry import Geometry


@dataclass(frozen=True)
class ShiftedInput:
    """`data` `[phases, C, length]`; `pitch` (Hq, Wq)."""

    data: Tensor
    geometry: Geometry
    batch: int
    output: tuple[int, int]
    pitch: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Places of the output, the unused ones between rows included: N * Hq * Wq."""
        return self.batch * self.pitch[0] * self.pitch[1]

    def tap(self, row: int, column: int, channels: slice) -> Tensor:
        """The inputs that tap (row, column) multiplies, `[channels, pixels]`, a view."""
        (sh, sw), (dh, dw) = self.geometry.stride, self.geometry.dilation
        phase = row * dh % sh * sw + column * dw % sw
        shift = row * dh // sh * self.pitch[1] + column * dw // sw
        return self.data[phase, channels, shift : shift + self.pixels]

    def rows(self, codes: Tensor) -> Tensor:
        """The inputs of each code, `[codes, pixels]`, gathered."""
        (sh, sw), (dh, dw) = self.geometry.stride, self.geometry.dilation
        channel, row, column = places.decode(codes)
        phase = row * dh % sh * sw + column * dw % sw if sh * sw > 1 else 0
        shift = _times_over(row, dh, sh) * self.pitch[1] + _times_over(column, dw, sw)
        channels, length = self.data.shape[1:]
        starts = (phase * channels + channel) * length + shift
        every_start = self.data.as_strided((self.data.numel() - self.pixels + 1, self.pixels), (1, 1))
        return every_start.index_select(0, starts)

    def crop(self, product: Tensor) -> Tensor:
        """`[K, N * Hq * Wq]` as the view `[N, K, OH, OW]`, without the places between rows."""
        grid = product.view(product.shape[0], self.batch, *self.pitch)
        return grid[:, :, : self.output[0], : self.output[1]].transpose(0, 1)


def _times_over(value: Tensor, factor: int, divisor: int) -> Tensor:
    """value * factor // divisor. An integer division takes torch longer than all else here, so it is left out."""
    return value * factor if divisor == 1 else value * factor // divisor


def shift(x: Tensor, geometry: Geometry) -> ShiftedInput:
    """Lay out `x` `[N, C, H, W]`: one copy, padding and stride included."""
    batch, channels, height, width = x.shape
    (sh, sw), (ph, pw) = geometry.stride, geometry.padding
    output = geometry.output_size(height, width)
    if (sh, sw) == (1, 1):
        # Padding beyond the kernel's reach makes the output larger than the image with its zeros.
        pitch = (max(height + ph, output[0]), max(width + pw, output[1]))
    else:
        pitch = (-(-(height + 2 * ph) // sh), -(-(width + 2 * pw) // sw))
    pixels = batch * pitch[0] * pitch[1]
    reach = [(kernel - 1) * dilation for kernel, dilation in zip(geometry.kernel, geometry.dilation)]
    furthest = reach[0] // sh * pitch[1] + reach[1] // sw
    data = x.new_zeros(sh * sw, channels, pixels + furthest + ph * pitch[1] + pw)
    if (sh, sw) == (1, 1):
        lead = ph * pitch[1] + pw
        grid = data[0, :, lead : lead + pixels].view(channels, batch, *pitch)
        grid[:, :, :height, :width] = x.transpose(0, 1)
    else:
        padded = functional.pad(x, (pw, pw, ph, ph))
        grid = data[:, :, :pixels].view(sh * sw, channels, batch, *pitch)
        for phase in range(sh * sw):
            part = padded[:, :, phase // sw :: sh, phase % sw :: sw].transpose(0, 1)
            grid[phase, :, :, : part.shape[2], : part.shape[3]] = part
    return ShiftedInput(data, geometry, batch, output, pitch)
