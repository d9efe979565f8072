"""One convolution for sparse inference: its weight packed in the layout that was asked for or measured fastest."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench_kernels.backend import requested
from prunebench_kernels.errors import ArgumentError, LayoutError
from prunebench_kernels.sparse.candidates import candidates
from prunebench_kernels.sparse.choices import (
    Choices,
    choices_of,
    device_name,
    fingerprint,
    precision,
    versions,
)
from prunebench_kernels.sparse.conv import sparse_conv2d
from prunebench_kernels.sparse.formats import FORMATS, format_of, is_arranged
from prunebench_kernels.sparse.layouts import LAYOUTS, Geometry, PackedWeight, pack
from prunebench_kernels.sparse.measured import Decision, Effort, Timer, choose, key_of

AUTO = "auto"


@dataclass(frozen=True)
class Measuring:
    """How `auto` measures: how long, with which timer, and where choices are kept (None: this device's file)."""

    effort: Effort = field(default_factory=Effort)
    choices: Choices | None = None
    timer: Timer | None = None

    def choices_on(self, device: torch.device) -> Choices:
        return self.choices if self.choices is not None else choices_of(device)

    def decide(self, key: str, calls: Mapping[str, Any], device: torch.device) -> Decision:
        """The remembered decision, if it names one of the calls, or a measured one, which is remembered."""
        choices = self.choices_on(device)
        known = choices.get(key)
        if known is not None and known.winner in calls:
            return known
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            decision = choose(calls, timer=self.timer, effort=self.effort)
        choices.put(key, decision)
        return decision


class SparseConv2d(nn.Module):
    """y = relu(conv2d(x, W) + bias + residual), W packed; the ReLU and the residual are optional. For inference.

    With layout `auto` the candidates are measured at the first forward pass, or by `prepare`, for that input's
    shape; the choice then stays. `decision` says what was chosen and why.
    """

    bias: Tensor | None
    _packed: PackedWeight | None

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        *,
        relu: bool = False,
        backend: str | None = None,
        measuring: Measuring | None = None,
    ) -> None:
        super().__init__()
        self.relu, self.backend, self.measuring = relu, backend, measuring or Measuring()
        self.is_prepared = True
        self.decision = Decision(packed.layout, "asked for")
        self.key, self.offered = "", frozenset[str]()
        self.formats: frozenset[str] | None = None
        """Memory formats that sparse layouts may have when measured (None: all); `offered` is what there was."""
        self.register_buffer("bias", bias)
        self.take(packed)

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        mask: Tensor | None = None,
        layout: str = AUTO,
        *,
        relu: bool = False,
        backend: str | None = None,
        measuring: Measuring | None = None,
        **settings: int,
    ) -> SparseConv2d:
        """The convolution with `weight * mask` (None: the weight as it is) in a layout, or `auto`.

        `settings` are the layout's. Raises LayoutError where the layout cannot take the convolution,
        ArgumentError on a mask of another shape or an unknown layout.
        """
        if not isinstance(conv, nn.Conv2d):
            raise ArgumentError(f"conv: want a Conv2d, got {type(conv).__name__}")
        if layout not in (AUTO, *LAYOUTS):
            raise ArgumentError(f"layout: want auto or one of {', '.join(LAYOUTS)}, got {layout!r}")
        if layout == AUTO and settings:
            raise ArgumentError(f"settings: layout auto chooses its own, got {', '.join(sorted(settings))}")
        weight = conv.weight.detach()
        if mask is not None:
            if mask.shape != weight.shape:
                raise ArgumentError(f"mask: want shape {tuple(weight.shape)}, got {tuple(mask.shape)}")
            weight = torch.where(mask.to(weight.device) != 0, weight, 0)
        packed = pack(weight, "dense" if layout == AUTO else layout, geometry=Geometry.of(conv), **settings)
        bias = None if conv.bias is None else conv.bias.detach().clone()
        made = cls(packed, bias, relu=relu, backend=backend, measuring=measuring)
        if layout == AUTO:
            made.is_prepared, made.decision = False, Decision("dense", "not measured yet")
        return made

    @property
    def packed(self) -> PackedWeight:
        """The weight as it is packed now."""
        if self._packed is None:
            tensors = {name: getattr(self, f"packed_{name}") for name in self._tensor_names}
            self._packed = PackedWeight(self.layout, self.geometry, tensors, self.settings)
        return self._packed

    def take(self, packed: PackedWeight) -> None:
        """Use this packed weight from now on."""
        for name in getattr(self, "_tensor_names", ()):
            delattr(self, f"packed_{name}")
        self.layout, self.geometry, self.settings = packed.layout, packed.geometry, dict(packed.settings)
        self._tensor_names = tuple(packed.tensors)
        self._packed = None
        for name, tensor in packed.tensors.items():
            self.register_buffer(f"packed_{name}", tensor)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._packed = None
        return super()._apply(*args, **kwargs)

    @torch.no_grad()
    def prepare(self, x: Tensor, residual: Tensor | None = None) -> Decision:
        """Measure the candidates on this input `[N, C, H, W]` and take the winner; dense is the guard."""
        with torch.inference_mode(False):
            options, refused = self._options(x)
        calls = {
            name: lambda packed=packed: self._run(x, packed, residual) for name, packed in options.items()
        }
        self.key = self._key(x, residual, tuple(options))
        decision = self.measuring.decide(self.key, calls, x.device)
        if refused:
            decision = Decision(
                decision.winner, decision.reason, decision.timings, {**refused, **decision.refused}
            )
        self.take(options[decision.winner])
        self.decision, self.is_prepared = decision, True
        return decision

    def _options(self, x: Tensor) -> tuple[dict[str, PackedWeight], dict[str, str]]:
        """Packed candidates by label, and why others could not be packed."""
        weight = self.packed.unpack()
        options: dict[str, PackedWeight] = {}
        refused = {}
        found = candidates(weight, self.geometry, tuple(x.shape), x.device)
        self.offered = frozenset(format_of(*candidate) for candidate in found)
        for layout, settings in found:
            if layout != "dense" and self.formats and format_of(layout, settings) not in self.formats:
                continue
            try:
                options[label(layout, settings)] = pack(weight, layout, geometry=self.geometry, **settings)
            except LayoutError as error:
                refused[label(layout, settings)] = str(error)
        return options, refused

    def _key(self, x: Tensor, residual: Tensor | None, options: tuple[str, ...]) -> str:
        return key_of(
            operation="sparse_conv2d",
            device=device_name(x.device),
            x=tuple(x.shape),
            formats=[name for name in FORMATS if is_arranged(x, name)],
            candidates=options,
            dtype=x.dtype,
            geometry=self.geometry.numbers,
            mask=fingerprint(self.packed.unpack()),
            epilogue=(self.bias is not None, residual is not None, self.relu),
            backend=requested(self.backend),
            precision=precision(),
            versions=versions(),
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """y `[N, K, OH, OW]` of x `[N, C, H, W]` and, if given, a residual of y's shape."""
        if not self.is_prepared and not torch.compiler.is_compiling():
            self.prepare(x, residual)
        return self._run(x, self.packed, residual)

    def _run(self, x: Tensor, packed: PackedWeight, residual: Tensor | None) -> Tensor:
        if packed.layout != "dense":
            if residual is not None:
                residual = residual.expand(x.shape[0], *residual.shape[1:])  # one for all images: a parameter
            return sparse_conv2d(
                x, packed, self.bias, residual=residual, relu=self.relu, backend=self.backend
            )
        # The guard: the library's convolution adds the bias itself, and no operator of ours stands in between.
        shape = packed.geometry
        y = functional.conv2d(
            x, packed.unpack(), self.bias, shape.stride, shape.padding, shape.dilation, shape.groups
        )
        if residual is not None:
            y += residual
        return y.relu_() if self.relu else y

    def extra_repr(self) -> str:
        return f"{self.geometry.in_channels}, {self.geometry.out_channels}, layout={label(self.layout, self.settings)}"


def label(layout: str, settings: Mapping[str, int]) -> str:
    """A layout with its settings, as reports and choices name it: `block block_in=64 block_out=64`."""
    return " ".join((layout, *(f"{name}={settings[name]}" for name in sorted(settings))))
