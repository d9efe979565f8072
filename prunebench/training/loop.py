"""The only training loop: data on the device, no synchronisation inside, masks held after every step.

On a GPU a step of a small network takes Python longer than the device: a step is captured once as a CUDA graph and
replayed, and several networks may train as branches of one graph.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prunebench.data.images import Images
from prunebench.results.spec import Recipe

CHECK_EVERY = 100
"""Steps between two looks at the loss: the only points where the loop waits for an accelerator."""

WARMUP_SHARE = 0.05
"""Of the steps, with `warmup-cosine`: 5 epochs of 100."""


@dataclass(frozen=True)
class Batch:
    """What an objective sees of a step: images `[B, C, H, W]`, labels `[B]`, sample indices `[B]`."""

    x: Tensor
    y: Tensor
    index: Tensor
    step: int


Objective = Callable[[nn.Module, Batch], Tensor]
MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
"""Of the parameters and the learning rate, which the loop changes by its schedule."""
Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Normalised images `[B, C, H, W]`, and the device's seeded generator, to images of the same shape."""


class Step(int):
    """How many steps a training has taken, from 1, and what `after_step` may look at and change then.

    `of` is how many it takes in all; `weights` are the network's parameters, `masks` those held now, both by name;
    `optimizer` is at hand with its state. Masks that `after_step` returns are held from then on: what they let grow
    begins at zero, with clean moments.
    """

    of: int
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer

    @classmethod
    def at(cls, number: int, of: int, training: Training) -> Step:
        """The step `number` of a training."""
        weights = dict(training.model.named_parameters())
        return cls(number)._with(of, weights, training.hold.masks, training.optimizer)

    def renamed(self, names: Mapping[str, str]) -> Step:
        """The same, of the parameters in `names` alone, under the names that they have there (new name: own name)."""
        weights = {new: self.weights[own] for new, own in names.items()}
        masks = {new: self.masks[own] for new, own in names.items() if own in self.masks}
        return type(self)(int(self))._with(self.of, weights, masks, self.optimizer)

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of the step's loss in every weight that has one; dense: those under a mask have theirs too."""
        return {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}

    def _with(
        self,
        of: int,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> Step:
        self.of, self.weights, self.masks, self.optimizer = of, weights, masks, optimizer
        return self


AfterStep = Callable[[Step], Mapping[str, Tensor] | None]


@dataclass(frozen=True)
class LoopSettings:
    """How a loop optimises. `total_steps` sets the length of the learning-rate schedule, begun at `first_step`.

    `optimizer` is `adam`, `sgd`, or a function that makes one of the parameters and the learning rate.
    """

    optimizer: str | MakeOptimizer
    lr: float
    total_steps: int
    first_step: int = 0
    weight_decay: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    bf16: bool = False

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device, *, lr: float, total_steps: int) -> LoopSettings:
        """The settings that a recipe asks for on a device."""
        return cls(
            optimizer=recipe.optimizer,
            lr=lr,
            total_steps=total_steps,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            schedule=recipe.schedule,
            bf16=resolve_precision(recipe.precision, device) == "bf16",
        )


def resolve_precision(precision: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` takes bf16 where the device multiplies it natively.

    Measured on a Zen 4 core, ConvNet at batch 256: 242 ms a step in fp32, 122 ms in bf16, channels_last.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "fp32"
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def make_optimizer(parameters: list[nn.Parameter], settings: LoopSettings) -> torch.optim.Optimizer:
    """The optimizer that the settings name, fused, or make."""
    if callable(settings.optimizer):
        return settings.optimizer(parameters, settings.lr)
    if settings.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def learning_rate(settings: LoopSettings, step: int) -> float:
    """The learning rate of a step: constant, `cosine` to zero, or `step` (a tenth at each 30 %).

    `warmup-cosine` rises linearly over the first 5 % of the steps, then follows a cosine to zero over the rest.
    """
    progress = step / settings.total_steps
    if settings.schedule == "warmup-cosine":
        warmup = round(WARMUP_SHARE * settings.total_steps)
        if step < warmup:
            return settings.lr * (step + 1) / warmup
        progress = (step - warmup) / (settings.total_steps - warmup)
    if settings.schedule in ("cosine", "warmup-cosine"):
        return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "step":
        return settings.lr * 0.1 ** int(progress / 0.3)
    return settings.lr


def capturable(objective: Objective) -> Objective:
    """Mark an objective whose step a GPU may capture once as a CUDA graph and replay.

    Such an objective reads tensors alone: the batch's, the model's and its own, which it changes in place if at all.
    What Python holds (`batch.step`, a counter) stays in a graph as it was when the step was captured, and nothing may
    wait for the GPU. The results are those of the same steps one by one; a learning rate that follows a schedule is
    float32 then.
    """
    objective.capturable = True  # type: ignore[attr-defined]
    return objective


def remembering(objective: Objective, *state: Tensor | torch.Generator) -> Objective:
    """Name what an objective changes, in place, as it is used: a training can be made again from the same state."""
    objective.remembers = state  # type: ignore[attr-defined]
    return objective


def remembered(objective: Objective | None) -> Callable[[], None]:
    """What makes the state of an objective again what it is now; it does nothing for one that names none."""
    state = getattr(objective, "remembers", ())
    held = [one.get_state() if isinstance(one, torch.Generator) else one.clone() for one in state]

    def restore() -> None:
        for one, then in zip(state, held):
            if isinstance(one, torch.Generator):
                one.set_state(then)
            else:
                one.copy_(then)

    return restore


def train(  # noqa: PLR0913
    model: nn.Module,
    images: Images,
    y: Tensor,
    batches: Tensor,
    *,
    objective: Objective,
    settings: LoopSettings,
    masks: Mapping[str, Tensor] | None = None,
    parameters: list[nn.Parameter] | None = None,
    after_step: AfterStep | None = None,
    progress: Callable[[int, float], None] | None = None,
    crops: Tensor | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    capture: bool = True,
) -> dict[str, Tensor]:
    """Train `model` in place for `len(batches)` steps; gives the masks that are held at the end.

    batches: sample indices `[steps, batch]`. crops: where each image is cut (see `Images.draw_crops`). masks: name
    of weight to mask; those weights are zero after every step. parameters: what is optimised (default: all).
    `after_step(step)` may return new masks (gradual or dynamic pruning); see `Step`. `augment` changes the images of
    a step. `progress(step, loss)` is called at every check.
    On a GPU the step of a `capturable` objective is captured once and replayed, unless `capture` is False.
    Raises FloatingPointError when the loss is not finite.
    """
    training = Training(
        model, images, y, objective=objective, settings=settings, masks=masks, parameters=parameters
    )
    batches = batches.to(images.device)
    crops = None if crops is None else crops.to(images.device)
    if capture and augment is None and training.can_be_captured:
        feed = _replayed([training], [batches], [crops])
    else:
        feed = _one_by_one(training, batches, crops, augment)
    with contextlib.closing(feed):
        for step, _ in enumerate(feed):
            if after_step is not None:
                training.change_masks(after_step(Step.at(step + 1, len(batches), training)))
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == len(batches):
                training.check(step + 1, len(batches))
                if progress is not None:
                    progress(step + 1, float(training.loss))
    return training.hold.masks


def train_together(trainings: Sequence[Training], batches: Sequence[Tensor]) -> None:
    """Train several networks for as many steps as `batches` (each `[steps, batch]`) have, one after another or at once.

    On a GPU the steps of all are branches of one CUDA graph: a small network leaves most of a GPU idle, and its
    neighbours fill it. Each network's numbers are those of training it alone, unless networks draw random numbers
    (dropout) from the generator that they share. Raises FloatingPointError as `train`,
    ValueError where the numbers of steps differ.
    """
    if len({len(rows) for rows in batches}) != 1 or len(batches) != len(trainings):
        raise ValueError(f"batches: want one for each of {len(trainings)} trainings, all with as many steps")
    moved = [rows.to(training.device) for training, rows in zip(trainings, batches)]
    steps = len(moved[0])
    if all(training.can_be_captured for training in trainings):
        feeds: list[Iterable[object]] = [_replayed(trainings, moved, [None] * len(trainings))]
    else:
        feeds = [_one_by_one(training, rows, None) for training, rows in zip(trainings, moved)]
    for feed in feeds:
        for _ in feed:
            pass
    for training in trainings:
        training.check(steps, steps)


class Training:
    """A network in training: its optimiser, its masks, and the step that turns a batch's indices into new weights."""

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        y: Tensor,
        *,
        objective: Objective,
        settings: LoopSettings,
        masks: Mapping[str, Tensor] | None = None,
        parameters: list[nn.Parameter] | None = None,
    ) -> None:
        self.device, self.images, self.settings = images.device, images, settings
        self.model, self._y, self._objective = model, y.to(images.device), objective
        self._parameters = list(model.parameters()) if parameters is None else parameters
        self.optimizer = make_optimizer(self._parameters, settings)
        self.hold = MaskHold(model, masks)
        self.hold.apply()
        self.loss = torch.zeros((), device=self.device)
        """Of the last step."""
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        model.train()

    @property
    def can_be_captured(self) -> bool:
        """Whether a CUDA graph can hold the step.

        So it is on a GPU, with images resident there, an objective marked so, and a network of known layers: what
        other code or a hook does in Python would stay as it was when the step was captured.
        """
        marked = type(self.images) is Images and getattr(self._objective, "capturable", False)
        if self.device.type != "cuda" or self.device.index not in (None, torch.cuda.current_device()):
            return False
        if callable(self.settings.optimizer):
            return False
        return marked and holds_known_layers_alone(self.model)

    def at(self, step: int) -> None:
        """Set the learning rate of a step."""
        if self.settings.schedule != "constant":
            rate = learning_rate(self.settings, self.settings.first_step + step)
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def hold_rate_on_device(self) -> None:
        """Let the learning rate be a tensor, which a captured step reads anew each time."""
        if self.settings.schedule != "constant":
            for group in self.optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=self.device)

    def step(self, x: Tensor, index: Tensor, number: int) -> None:
        """One step on images x `[B, C, H, W]` of the samples `index` `[B]`."""
        batch = Batch(x, self._y[index], index, number)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            loss = self._objective(self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.hold.apply()
        self.loss.copy_(loss.detach())
        self._finite &= torch.isfinite(self.loss)

    @torch.no_grad()
    def change_masks(self, masks: Mapping[str, Tensor] | None) -> None:
        """Hold these masks from now on; what they let grow begins at zero, and with no moments."""
        for name, grown in self.hold.update(masks).items():
            for value in self.optimizer.state.get(self.hold.parameter(name), {}).values():
                if isinstance(value, Tensor) and value.shape == grown.shape:
                    value.masked_fill_(grown, 0.0)

    def drop_gradients(self) -> None:
        """Leave no gradient: a captured step makes its own, in memory that belongs to the graph."""
        self.optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def in_capture(self) -> Iterator[None]:
        """Adam refuses a capture unless told of it; its fused step is the same either way."""
        asked = [group for group in self.optimizer.param_groups if "capturable" in group]
        for group in asked:
            group["capturable"] = True
        try:
            yield
        finally:
            for group in asked:
                group["capturable"] = False

    def check(self, step: int, steps: int) -> None:
        """Raise FloatingPointError if the loss was not finite; waits for the device."""
        if not self._finite:
            raise FloatingPointError(
                f"the loss was nan or infinite at or before step {step} of {steps}; "
                "lower the learning rate of the recipe"
            )


KNOWN = {"torch", "torchvision", "prunebench"}
"""Packages whose layers keep no state in Python from step to step."""


def holds_known_layers_alone(model: nn.Module) -> bool:
    """Whether all of a network's modules come from `KNOWN` packages, without hooks or functions of others.

    A module of ours that computes with what Python changes from step to step says so: `steps_differ`.
    """
    for module in model.modules():
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if type(module).__module__.partition(".")[0] not in KNOWN or any(hooks) or "forward" in vars(module):
            return False
        if getattr(module, "steps_differ", False):
            return False
    return True


def _one_by_one(
    training: Training,
    batches: Tensor,
    crops: Tensor | None,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> Generator[None, None, None]:
    with contextlib.closing(training.images.feed(batches, crops)) as feed:
        for number, x in enumerate(feed):
            training.at(number)
            training.step(x if augment is None else augment(x), batches[number], number)
            yield


WARM_STEPS = 3
"""Steps taken as usual before one is captured: libraries choose algorithms and allocate workspaces in them."""


def _replayed(
    trainings: Sequence[Training], batches: Sequence[Tensor], crops: Sequence[Tensor | None]
) -> Generator[None, None, None]:
    """The steps of all trainings, from the fourth on as one CUDA graph with a branch for each training.

    Raises RuntimeError in the third if an objective waits for the GPU: a capture would fail of it, and leave torch's
    random numbers unusable.
    """
    from prunebench_kernels.measured import waiting_raises

    rows = [every[0].clone() for every in batches]
    cuts = [None if every is None else every[0].clone() for every in crops]
    for training in trainings:
        training.hold_rate_on_device()
    aside = [torch.cuda.Stream(training.device) for training in trainings]

    def run(number: int) -> None:
        main = torch.cuda.current_stream()
        for training, index, cut, stream in zip(trainings, rows, cuts, aside):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                training.step(training.images.batch(index, cut), index, number)
        for stream in aside:
            main.wait_stream(stream)

    graph, held = None, None
    try:
        for number in range(len(batches[0])):
            for training, index, cut, every, every_cut in zip(trainings, rows, cuts, batches, crops):
                training.at(number)
                index.copy_(every[number])
                if cut is not None and every_cut is not None:
                    cut.copy_(every_cut[number])
            holding = [training.hold.buffers for training in trainings]
            if number < WARM_STEPS:
                with waiting_raises() if number + 1 == WARM_STEPS else contextlib.nullcontext():
                    run(number)
            else:
                if graph is None or held != holding:
                    graph, held = _capture(trainings, run), holding
                graph.replay()
            yield
    finally:
        for training in trainings:
            training.drop_gradients()


def _capture(trainings: Sequence[Training], run: Callable[[int], None]) -> torch.cuda.CUDAGraph:
    """The step as a graph; capturing runs nothing."""
    torch.cuda.synchronize()
    for training in trainings:
        training.drop_gradients()
    graph = torch.cuda.CUDAGraph()
    with contextlib.ExitStack() as told:
        for training in trainings:
            told.enter_context(training.in_capture())
        with torch.cuda.graph(graph):
            run(-1)
    return graph


class MaskHold:
    """Keeps masked weights at zero with one fused multiplication a step."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor] | None) -> None:
        self._named = dict(model.named_parameters())
        self._names: list[str] = []
        self.buffers = 0
        """What a captured step refers to: another number, other buffers."""
        self._weights: list[Tensor] = []
        self._factors: list[Tensor] = []
        self.masks: dict[str, Tensor] = {}
        """As they were given, by name."""
        self.update(masks)

    def update(self, masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Hold these masks from now on; those of the same weights as before are written into the same buffers.

        Gives which weights were held at zero and no longer are, bool, by name.
        """
        if masks is None:
            return {}
        self.masks = dict(masks)
        held = dict(zip(self._names, self._factors))
        grown = {
            name: mask.to(held[name].device).bool() & (held[name] == 0)
            for name, mask in masks.items()
            if name in held
        }
        if list(masks) != self._names:
            self._names = list(masks)
            self._weights = [self._named[name].detach() for name in masks]
            self._factors = [torch.empty_like(weight) for weight in self._weights]
            self.buffers += 1
        for factor, mask in zip(self._factors, masks.values()):
            factor.copy_(mask)
        self.apply()
        return grown

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter that a mask of this name holds."""
        return self._named[name]

    def apply(self) -> None:
        if self._weights:
            torch._foreach_mul_(self._weights, self._factors)


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, *, batch_size: int | None = None) -> Tensor:
    """Logits `[N, C]` of all images in evaluation mode, float32, on the CPU."""
    model.eval()
    size = batch_size or images.evaluation_batch
    with contextlib.closing(
        images.feed([slice(at, at + size) for at in range(0, len(images), size)])
    ) as feed:
        return torch.cat([model(x).float() for x in feed]).cpu()
