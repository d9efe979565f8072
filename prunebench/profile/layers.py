"""Convolution layers of a model, each shape once, and their implementations, dense and sparse, timed in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from prunebench_kernels.layouts import Geometry
from torch import Tensor, nn
from torch.nn import functional

from prunebench.errors import PruneBenchError, UsageError
from prunebench.profile.results import (
    COMPILED,
    EAGER,
    NO_TIME,
    NOT_COMPILED,
    SHRUNK,
    STORED,
    ImplementationTiming,
)
from prunebench.profile.stopwatch import Stopwatch, interleaved
from prunebench.pruning.structure import structured_mask

TOLERANCE = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest deviation from the dense result over the largest dense value; fp32 leaves room for TF32."""

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ConvShape:
    """A convolution's geometry with the size of its input."""

    geometry: Geometry
    height: int
    width: int

    @property
    def output_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.geometry.output_size(self.height, self.width)

    @property
    def touched_inputs(self) -> int:
        """Input positions (row, column) that any output reads: a strided 1 x 1 convolution skips the others."""
        one, count = self.geometry, 1
        for axis, (size, outputs) in enumerate(zip((self.height, self.width), self.output_size)):
            starts = (one.stride[axis] * output - one.padding[axis] for output in range(outputs))
            seen = {start + one.dilation[axis] * tap for start in starts for tap in range(one.kernel[axis])}
            count *= len(seen & set(range(size)))
        return count

    @property
    def words(self) -> str:
        """`3x3 64->128 /2 @32`: kernel, channels, stride, input size."""
        one = self.geometry
        stride = f" /{one.stride[0]}" if one.stride[0] > 1 else ""
        grouped = f" groups {one.groups}" if one.groups > 1 else ""
        channels = f"{one.in_channels}->{one.out_channels}"
        return f"{one.kernel[0]}x{one.kernel[1]} {channels}{stride}{grouped} @{self.height}"


@dataclass(frozen=True)
class ConvLayer:
    """A convolution of a model; `names` are all layers of the same shape, `weight` is that of the first."""

    names: tuple[str, ...]
    shape: ConvShape
    weight: Tensor

    @property
    def name(self) -> str:
        return self.names[0]


@torch.inference_mode()
def conv_layers(model: nn.Module, image: int, wanted: tuple[str, ...] = ()) -> list[ConvLayer]:
    """Every different convolution of the model for images `[3, image, image]`, in the order of the pass.

    `wanted` keeps layers whose name contains one of these parts. Raises UsageError if none does.
    """
    shapes: dict[str, ConvShape] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(module: nn.Conv2d, inputs: tuple[Tensor, ...], name: str = name) -> None:
                shapes[name] = ConvShape(Geometry.of(module), *inputs[0].shape[2:])

            handles.append(module.register_forward_pre_hook(note))
    try:
        parameter = next(model.parameters())
        model.eval()(torch.zeros(1, 3, image, image, dtype=parameter.dtype, device=parameter.device))
    except RuntimeError as error:
        raise UsageError(f"--image {image}: the model cannot take it ({error})") from error
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[ConvShape, list[str]] = {}
    for name, shape in shapes.items():
        if not wanted or any(part in name for part in wanted):
            groups.setdefault(shape, []).append(name)
    if not groups:
        raise UsageError(f"--layer {' '.join(wanted)}: no such convolution; there are {', '.join(shapes)}")
    return [
        ConvLayer(
            tuple(map(short_name, names)), shape, model.get_parameter(f"{names[0]}.weight").detach().clone()
        )
        for shape, names in groups.items()
    ]


def short_name(name: str) -> str:
    """A layer's name without `body.`, unless only a number would be left."""
    short = name.removeprefix("body.")
    return name if short.isdigit() else short


def make_mask(weight: Tensor, pattern: str, sparsity: float | None) -> Tensor | str:
    """The mask of a weight by its magnitudes, bool; or why this layer cannot have that pattern."""
    if pattern == STORED:
        return weight != 0
    assert sparsity is not None
    try:
        return structured_mask(pattern, weight.abs(), sparsity)
    except PruneBenchError as error:
        return str(error)


# Implementations


@dataclass(frozen=True)
class LayerInputs:
    """A layer's batch `[N, C, H, W]`, masked weight and bias, on the device, in the precision of the profile."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    geometry: Geometry


def make_inputs(
    layer: ConvLayer, mask: Tensor, batch: int, device: torch.device, dtype: torch.dtype
) -> LayerInputs:
    """Random input and bias (the same for every mask), channels_last, and the masked weight."""
    generator, shape = torch.Generator().manual_seed(0), layer.shape
    x = torch.randn(batch, shape.geometry.in_channels, shape.height, shape.width, generator=generator)
    bias = torch.randn(shape.geometry.out_channels, generator=generator)
    x = x.to(device, dtype).contiguous(memory_format=torch.channels_last)
    weight = (layer.weight * mask).to(device, dtype).contiguous(memory_format=torch.channels_last)
    return LayerInputs(x, weight, bias.to(device, dtype), shape.geometry)


def dense_layer(geometry: Geometry) -> Layer:
    """Convolution, bias (where BatchNorm was folded) and ReLU."""

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = functional.conv2d(
            x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        )
        return y.relu_()  # in place, as the sparse layouts have it

    return layer


class CompiledLayers:
    """`torch.compile` of each layer once; masks do not change what is compiled."""

    def __init__(self) -> None:
        self._layers: dict[tuple[Geometry, torch.Size, torch.dtype], Layer | str] = {}

    def layer(self, inputs: LayerInputs) -> Layer | str:
        """The compiled layer, or why there is none."""
        key = inputs.geometry, inputs.x.shape, inputs.x.dtype
        if key not in self._layers:
            call = dense_layer(inputs.geometry)
            self._layers[key] = compiled_call(call, inputs.x, inputs.weight, inputs.bias)
        return self._layers[key]


def compiled_call(model: Callable[..., Any], *example: Tensor) -> Any:
    """`torch.compile` of a function or module, run once; or why there is none, as text."""
    import torch._dynamo

    compiled = torch.compile(model, dynamic=False)
    try:
        with torch._dynamo.config.patch(recompile_limit=256), torch.inference_mode():
            compiled(*example)
    except Exception as error:  # whatever the compiler and its tool chain raise
        return f"torch.compile failed: {one_line(error)}"
    return compiled


def one_line(error: Exception) -> str:
    """An exception's name and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@torch.inference_mode()
def benchmark(
    inputs: LayerInputs,
    compiled: CompiledLayers | None,
    stopwatch: Stopwatch,
    *,
    backend: str,
    repeats: int,
    until: float = math.inf,
) -> tuple[ImplementationTiming, ...]:
    """Every implementation of the layer, checked against the dense result, timed in turns hot and cold.

    What has not begun at the monotonic time `until` is not measured; the dense baseline always is.
    """
    want = dense_layer(inputs.geometry)(inputs.x, inputs.weight, inputs.bias)
    checked, calls = [], {}
    for timing, call in (*_baselines(inputs, compiled, until), *_layouts(inputs, backend), *_shrunk(inputs)):
        if call is not None and time.monotonic() >= until and timing.name != EAGER:
            timing = replace(timing, not_measured=NO_TIME)
        elif call is not None:
            wanted = want[:, live_channels(inputs.weight)[0]] if timing.name == SHRUNK else want
            off, reason = checked_call(call, wanted, TOLERANCE[want.dtype])
            timing = replace(timing, error=off, not_measured=reason)
            if reason is None:
                calls[timing.name] = call
        checked.append(timing)
    hot, cold = (
        interleaved(calls, stopwatch, repeats=repeats, cold=cold, until=until) for cold in (False, True)
    )
    return tuple(
        replace(
            timing,
            hot_ms=hot.get(timing.name),
            cold_ms=cold.get(timing.name),
            not_measured=timing.not_measured or (None if timing.name in cold else NO_TIME),
        )
        for timing in checked
    )


Call = Callable[[], Tensor]
Entry = tuple[ImplementationTiming, Call | None]


def _baselines(inputs: LayerInputs, compiled: CompiledLayers | None, until: float) -> Iterator[Entry]:
    eager = dense_layer(inputs.geometry)
    yield ImplementationTiming(EAGER), lambda: eager(inputs.x, inputs.weight, inputs.bias)
    if compiled is None or time.monotonic() >= until:
        yield ImplementationTiming(COMPILED, not_measured=NO_TIME if compiled else NOT_COMPILED), None
        return
    layer = compiled.layer(inputs)
    if isinstance(layer, str):
        yield ImplementationTiming(COMPILED, not_measured=layer), None
    else:
        yield ImplementationTiming(COMPILED), lambda: layer(inputs.x, inputs.weight, inputs.bias)


def _layouts(inputs: LayerInputs, backend: str) -> Iterator[Entry]:
    """Every layout that may take this weight, packed; x lies in the order in memory that the layout reads."""
    from prunebench_kernels import explain
    from prunebench_kernels.layouts import arrange, format_of, pack
    from prunebench_kernels.sparse_conv import candidates, sparse_conv2d

    geometry, chosen = inputs.geometry, None if backend == "auto" else backend
    arranged: dict[str, Tensor] = {}
    for layout, settings in candidates(inputs.weight, geometry, tuple(inputs.x.shape), inputs.x.device):
        timing = ImplementationTiming(label(layout, settings), settings=dict(settings))
        try:
            packed = pack(inputs.weight, layout, geometry=geometry, **settings)
            order = format_of(layout)
            if order not in arranged:
                arranged[order] = arrange(inputs.x, order)
            x = arranged[order]
            runs = explain("sparse_conv2d", x, packed, inputs.bias, relu=True, backend=chosen).backend
        except Exception as error:  # a layout that cannot take the weight must not stop the others
            yield replace(timing, not_measured=one_line(error)), None
            continue
        yield (
            replace(timing, backend=runs),
            partial(sparse_conv2d, x, packed, inputs.bias, relu=True, backend=chosen),
        )


def _shrunk(inputs: LayerInputs) -> Iterator[Entry]:
    """The dense convolution without dead channels: outputs with no weight, inputs that no output reads.

    What its neighbours save or pay for that shows in the whole network only.
    """
    if inputs.geometry.groups > 1:
        return
    rows, columns = live_channels(inputs.weight)
    alive = len(rows), len(columns)
    if 0 in alive or alive == tuple(inputs.weight.shape[:2]):
        return
    eager, last = dense_layer(inputs.geometry), torch.channels_last
    x = inputs.x[:, columns].contiguous(memory_format=last)
    weight = inputs.weight[rows][:, columns].contiguous(memory_format=last)
    bias = inputs.bias[rows]
    yield (
        ImplementationTiming(SHRUNK, settings={"outputs": len(rows), "inputs": len(columns)}),
        lambda: eager(x, weight, bias),
    )


def live_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the output and of the input channels of `[O, I, KH, KW]` that have a weight other than zero.

    Where the device wants a multiple of channels, the first dead ones fill it up, as `sparsify` does.
    """
    from prunebench_kernels.sparsify import MULTIPLES

    alive, multiple = weight != 0, MULTIPLES.get(weight.device.type, 1)
    both = alive.flatten(1).any(1), alive.transpose(0, 1).flatten(1).any(1)
    rows, columns = (fill_up(channels, multiple).nonzero().flatten() for channels in both)
    return rows, columns


def fill_up(alive: Tensor, multiple: int) -> Tensor:
    """With the first dead channels alive too, up to a multiple or all."""
    wanted = min(-(-int(alive.sum()) // multiple) * multiple, len(alive))
    filled = alive.clone()
    filled[(~alive).nonzero().flatten()[: wanted - int(alive.sum())]] = True
    return filled


def label(layout: str, settings: Mapping[str, int]) -> str:
    """A layout's name; blocks with their size (output x input channels)."""
    return f"block {settings['block_out']}x{settings['block_in']}" if layout == "block" else layout


@torch.inference_mode()
def checked_call(call: Call, want: Tensor, tolerance: float) -> tuple[float | None, str | None]:
    """How far a call's result is off, over the largest wanted value; and why it is not to be timed, or None."""
    try:
        got = call()
    except Exception as error:  # shown in the table; the others are still measured
        return None, one_line(error)
    if got.shape != want.shape:
        return None, f"wrong shape {tuple(got.shape)}"
    largest = want.float().abs().max().clamp(min=1e-30)
    off = float((got.float() - want.float()).abs().max() / largest)
    return off, None if off <= tolerance else f"wrong result: off by {off:.2g} of the largest value"
