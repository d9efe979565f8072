"""What a profile covers: model, batch, patterns, sparsities, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from prunebench.errors import UsageError, unknown
from prunebench.profile.weights import recorded_model
from prunebench.pruning.structure import STRUCTURE_NAMES, TWO_FOUR, TWO_FOUR_SPARSITY

STORED = "stored"
"""Pattern: the zeros that the weights given with --run already have."""
PATTERNS = (*STRUCTURE_NAMES, STORED)
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "triton", "torch")
FIRST_SPARSITY = 0.9
CPU_SPARSITIES = (0.5, 0.9, 0.99)
GPU_SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class ProfileSettings:
    """What was asked for. None or empty: chosen by the device, see `resolved`.

    `run` is a run's folder, its model.safetensors, or a run id; the record beside it names the model. `layers` are
    parts of layer names; `minutes` is a time box: what no longer fits is listed as left out.
    """

    model: str | None = None
    image: int | None = None
    batch: int | None = None
    sparsities: tuple[float, ...] = ()
    patterns: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    minutes: float | None = None
    device: str = "cpu"
    precision: str = "auto"
    backend: str = "auto"
    compiled: bool | None = None
    repeats: int | None = None
    seed: int = 0
    run: str | None = None
    results: Path = Path("leaderboard/results")
    out: Path = Path("profile")
    command: str = ""

    def resolved(self) -> ProfileSettings:
        """The same with defaults filled in for the device. Raises UsageError on what makes no sense."""
        gpu = self.device == "cuda"
        _check(self)
        recorded = recorded_model(self.run, self.results) if self.run else None
        patterns = self.patterns or ((STORED,) if self.run else STRUCTURE_NAMES)
        return replace(
            self,
            model=self.model or recorded or ("resnet18" if gpu else "convnet"),
            image=self.image or 32,
            batch=self.batch or (128 if gpu else 64),
            sparsities=tuple(sorted(set(self.sparsities))) or (GPU_SPARSITIES if gpu else CPU_SPARSITIES),
            patterns=tuple(dict.fromkeys(patterns)),
            minutes=self.minutes or (9.0 if gpu else 1.5),
            precision=(("bf16" if gpu else "fp32") if self.precision == "auto" else self.precision),
            compiled=gpu if self.compiled is None else self.compiled,
            repeats=self.repeats or (50 if gpu else 9),
        )

    def points(self) -> list[tuple[str, float | None]]:
        """Pattern and sparsity of every measurement; None: the zeros as they are stored.

        In the order of the run: all patterns at the sparsity nearest to 0.9, then at the next, so that a full time
        box leaves out the extremes.
        """
        fixed = {STORED: None, TWO_FOUR: TWO_FOUR_SPARSITY}
        found: list[tuple[str, float | None]] = []
        for index, sparsity in enumerate(
            sorted(self.sparsities, key=lambda value: abs(value - FIRST_SPARSITY))
        ):
            for pattern in self.patterns:
                if pattern not in fixed:
                    found.append((pattern, sparsity))
                elif index == 0:
                    found.append((pattern, fixed[pattern]))
        return found


def _check(settings: ProfileSettings) -> None:
    for pattern in settings.patterns:
        if pattern not in PATTERNS:
            raise unknown("pattern", pattern, PATTERNS)
    for kind, value, known in (
        ("precision", settings.precision, PRECISIONS),
        ("backend", settings.backend, BACKENDS),
        ("device", settings.device, DEVICES),
    ):
        if value not in known:
            raise unknown(kind, value, known)
    for sparsity in settings.sparsities:
        if not 0 <= sparsity < 1:
            raise UsageError(
                f"--sparsity must be in [0, 1), got {sparsity:g} (0.9: nine weights of ten are zero)"
            )
    for name in ("image", "batch", "minutes", "repeats"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name} must be positive, got {value:g}")
    if STORED in settings.patterns and not settings.run:
        raise UsageError("the pattern `stored` needs weights with zeros: give --run")
