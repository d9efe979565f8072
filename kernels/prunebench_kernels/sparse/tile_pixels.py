"""What the Triton kernels share: where an output pixel lies, which taps reach the image, and the last step.

Output pixels of the whole batch are numbered in the order in which they lie in memory: (n, i, j) for NCHW and
NHWC, (i, j, n) where the batch is innermost. All sizes and strides are constants, so that divisions become
multiplications and the compiler sees which loads are aligned.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
import triton
import triton.language as tl


@triton.jit
def pixel_place(index, BATCH: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr, INNER: tl.constexpr):
    """Image, row and column of output pixel `index`; INNER: the batch is innermost."""
    if INNER:
        image = index % BATCH
        place = index // BATCH
    else:
        image = index // (OUT_H * OUT_W)
        place = index % (OUT_H * OUT_W)
    if OUT_H == 1:
        i, j = place * 0, place
    else:
        i, j = place // OUT_W, place % OUT_W
    return image, i, j


@triton.jit
def taps_outside(  # noqa: PLR0913 - pointers, and constants of the call
    top,
    left,
    valid,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
):
    """One integer a pixel: bit r is set if row r of the kernel lies outside the image, bit 15 + s for column s.

    Tap (r, s) may be loaded where `outside & (1 << r | 32768 << s)` is zero: one test per load, however many
    borders there are. Bit 30 is always set, for taps that are not to be loaded at all; all are, where `valid`
    is false.
    """
    bits = tl.full(top.shape, 1 << 30, dtype=tl.int32)
    for r in tl.static_range(KERNEL_H):
        row = top + r * DILATION_H
        bits |= ((row < 0) | (row >= HEIGHT)).to(tl.int32) << r
    for s in tl.static_range(KERNEL_W):
        column = left + s * DILATION_W
        bits |= ((column < 0) | (column >= WIDTH)).to(tl.int32) << (15 + s)
    return tl.where(valid, bits, (1 << 31) - 1)


@triton.jit
def finish(  # noqa: PLR0913 - pointers, and constants of the call
    total,
    bias,
    residual,
    y,
    channel,
    at,
    valid,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    """Store relu(total + bias[channel] + residual[at]) at y[at]; `channel` has total's rank."""
    if HAS_BIAS:
        total += tl.load(bias + channel).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual + at, mask=valid, other=0.0).to(tl.float32)
    if RELU:
        # A comparison, unlike maximum, hands NaN through, as torch does.
        total = tl.where(total < 0, 0.0, total)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=valid)
