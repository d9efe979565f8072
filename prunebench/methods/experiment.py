"""The experiment that a method is handed: training split, budget, shared dense model, seeded noise, a log."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prunebench.data.images import Images, draw_batches
from prunebench.errors import SupervisionError, UsageError
from prunebench.inference.cascade import NOTES, Deferral
from prunebench.methods.counting import BackwardCounter
from prunebench.methods.criteria import BATCHES, Criterion, Score, as_criterion, compute_scores
from prunebench.methods.statistics import Statistics, steps_of
from prunebench.models import Classifier, build_model, narrowed
from prunebench.models.nets import ModelName, channels_last, contiguous
from prunebench.pruning.channels import norms_behind, with_norms
from prunebench.pruning.distribution import Distribution
from prunebench.pruning.masks import Masks, apply_masks, make_masks, masks_of, named_as_in, prunable
from prunebench.pruning.wrapped import bare_network, make_plain, own_names, plain
from prunebench.pruning.wrapped import state_of as state_of
from prunebench.results.record import FITTED_NOTE, REMOVED_NOTE
from prunebench.results.spec import Recipe, RunSpec, hash_of
from prunebench.training.loop import (
    AfterStep,
    Augment,
    Batch,
    LoopSettings,
    Objective,
    evaluate,
    resolve_precision,
    train,
)
from prunebench.training.losses import cross_entropy, task_loss


@dataclass(frozen=True)
class Pruned:
    """What `fit` returns: the trained model and the masks that its weights obey.

    Without masks they are read from the network: those of `torch.nn.utils.prune`, or where its weights are not zero.
    With a `deferral`, the harness gives the samples that the model is unsure of to the shared dense model. A
    `structured` result has fewer channels: the layers of the task's network under their names, with smaller weights,
    and masks of their shapes. Its asked sparsity is the share of multiply-accumulates to be removed.
    """

    model: Classifier
    masks: Masks = None  # type: ignore[assignment]
    deferral: Deferral | None = None
    structured: bool = False

    def __post_init__(self) -> None:
        if self.masks is None and isinstance(self.model, nn.Module):
            object.__setattr__(self, "masks", masks_of(self.model))


class VisibleSplit:
    """A split as a method sees it: images on the device, labels `[N]`, and `bias` only if declared.

    `missing_groups`: of balanced validation, the (label, bias) groups that the data have and it has no image of.
    """

    def __init__(
        self,
        images: Images,
        y: Tensor,
        bias: Tensor | None,
        *,
        name: str,
        needs: str,
        missing_groups: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.images, self.missing_groups = images, missing_groups
        self.y = y.to(images.device)
        self._bias = bias
        self._name, self._needs = name, needs

    def __len__(self) -> int:
        return len(self.y)

    @property
    def bias(self) -> Tensor:
        """Bias labels `[N]`. Raises SupervisionError unless the method declared them."""
        if self._bias is None:
            raise SupervisionError(
                f"bias labels of the {self._name} split are withheld: this method did not declare "
                f"supervision={self._needs!r}. Declare it in @method(...); the board shows that column"
            )
        return self._bias.to(self.images.device)

    @property
    def group(self) -> Tensor:
        """The group of each sample, int64 `[N]`: label * (largest bias + 1) + bias. Raises as `bias`."""
        bias = self.bias
        return self.y * (int(bias.max()) + 1) + bias


@dataclass
class TrainingCost:
    """Training spent so far: steps of one network (a step of two networks counts twice).

    The shared dense model is charged once, however often it is used.
    """

    own_steps: int = 0
    uses_dense: bool = False

    def add(self, other: TrainingCost) -> None:
        self.own_steps += other.own_steps
        self.uses_dense |= other.uses_dense


COST_FIELD = "_cost"
OWN_LOOP_NOTE = "own_loop_steps"
"""The note of a run whose method called `backward` in a loop of its own: how often, which is what was charged."""


class Stages(Protocol):
    """Where results shared between runs rest; see `store.Store.shared`."""

    def shared(self, stage_id: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class ExperimentContext:
    """What `execute.execute` hands to an experiment besides data."""

    stages: Stages
    dense: Callable[[], dict[str, Tensor]]
    data_root: Path | None = None
    progress: Callable[[str, int, int, float], None] | None = None


class Experiment:
    """One fit. `seed`, `recipe`, `num_classes`, `conflicting_share` (if declared) and `device` are public.

    In a multi-label task `num_classes` is the number of attributes, and labels are `[N, K]`. `train_split`,
    `val_split` and (if declared) `val_balanced` are `VisibleSplit`s; there is no test split here.
    """

    def __init__(  # noqa: PLR0913
        self,
        spec: RunSpec,
        num_classes: int,
        train_split: VisibleSplit,
        val_split: VisibleSplit,
        context: ExperimentContext,
        *,
        conflicting_share: float | None = None,
        supervision: str = "none",
        val_balanced: VisibleSplit | None = None,
    ) -> None:
        self.spec = spec
        self.seed: int = spec.seed
        self.recipe: Recipe = spec.recipe
        self.num_classes = num_classes
        self._conflicting_share, self._supervision = conflicting_share, supervision
        self.train_split, self.val_split, self._val_balanced = train_split, val_split, val_balanced
        self.device = train_split.images.device
        self.cost = TrainingCost()
        self.notes: dict[str, float] = {}
        self.mined: Tensor | None = None
        self.trained_outside = bool(ModelName.parse(spec.model).outside)
        self._around = context
        self._backward = BackwardCounter()
        self._trainings: WeakKeyDictionary[nn.Module, Counter[str]] = WeakKeyDictionary()

    @property
    def conflicting_share(self) -> float | None:
        """The nominal share of conflicting training images; None where the task has none.

        Raises SupervisionError unless the method declared `supervision="bias-rate"` or more.
        """
        if self._supervision == "none":
            raise SupervisionError(
                "the share of bias-conflicting images is withheld: this method did not declare "
                "supervision='bias-rate'. Declare it in @method(...); the board shows that column"
            )
        return self._conflicting_share

    @property
    def val_balanced(self) -> VisibleSplit:
        """Validation's own images with every (label, bias) group as frequent, and their bias labels.

        Raises SupervisionError unless the method declared `supervision="val-groups"` or more.
        """
        if self._val_balanced is None:
            raise SupervisionError(
                "group-balanced validation is withheld: this method did not declare supervision='val-groups'. "
                "Declare it in @method(...); the board shows that column"
            )
        return self._val_balanced

    def rng(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on the run's seed and the purpose alone."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def device_rng(self, purpose: str) -> torch.Generator:
        """As `rng`, on the training device."""
        seed = self.rng(purpose).initial_seed()
        return torch.Generator(self.device).manual_seed(seed)

    def new_model(self, purpose: str | None = None) -> Classifier:
        """The network at its initial weights, contiguous; the same for every method with this seed.

        With a `purpose` the weights are others: those of a second network of the same seed.
        """
        return contiguous(self.harness_model(purpose))

    def harness_model(self, purpose: str | None = None) -> Classifier:
        """As `new_model`, but channels_last, the layout that trains and answers fastest."""
        seed = self.seed if purpose is None else self.rng(f"weights/{purpose}").initial_seed()
        net = build_model(self.spec.model, self.num_classes, seed=seed, data_root=self._around.data_root)
        return net.to(self.device)

    def dense_model(self) -> Classifier:
        """A copy of the dense model of this task and seed, trained once and shared."""
        self.cost.uses_dense = True
        return self.model_from(self._around.dense())

    def model_from(self, state: Mapping[str, Tensor]) -> Classifier:
        """A network with these weights; where they are narrower than the task's network, so are its layers."""
        net = narrowed(self.new_model(), state)
        net.load_state_dict({name: value.to(self.device) for name, value in state.items()})
        return net

    def train(  # noqa: PLR0913
        self,
        model: nn.Module,
        *,
        steps: int,
        name: str,
        lr: float | None = None,
        objective: Objective = cross_entropy,
        masks: Mapping[str, Tensor] | None = None,
        sample_weight: Tensor | None = None,
        parameters: list[nn.Parameter] | None = None,
        after_step: AfterStep | None = None,
        augment: Augment | None = None,
        start: int = 0,
        stop_after: int | None = None,
        networks: int = 1,
        dead_filters: bool = False,
        **settings: Any,
    ) -> Masks:
        """Train `model` in place on the training split; gives the masks that are held at the end.

        `name` seeds the order of samples; trained again under the same name, a network sees them in another order.
        `sample_weight` `[N]` draws samples in proportion. `after_step(step)` may look at the training and return new
        masks: see `Step`. `augment(images, generator)` changes the images of a step. `stop_after` ends a schedule of
        `steps` early, and `start` resumes one: its first `start` batches have been seen. `networks` counts those that a
        step trains, for the cost; more backward passes than that count themselves. `dead_filters` holds the BatchNorm
        behind a filter that its mask empties at zero too: the channel is then gone. Further settings (`optimizer`,
        `betas`, `weight_decay`, `momentum`, `schedule`) override the recipe's; an optimizer may be a function of the
        parameters and the learning rate.
        """
        stream = self._stream(model, name)
        loop = LoopSettings.of(
            self.recipe, self.device, lr=self.recipe.lr if lr is None else lr, total_steps=steps
        )
        batches = self._draw(stream, steps, sample_weight)[start:stop_after]
        images, report, before = self.train_split.images, self._around.progress, self._backward.count
        noise = None if augment is None else self.device_rng(f"augment/{stream}")
        names = own_names(model)
        pruned = {bare: names[bare] for bare in prunable(model) if bare in names}
        norms = norms_behind(model) if dead_filters else {}

        def to_hold(given: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
            return named_as_in(model, with_norms(given, norms) if given and norms else given)

        with channels_last(model):
            held = train(
                model,
                images,
                self.train_split.y,
                batches,
                crops=images.draw_crops(batches.shape, self.rng(f"crops/{stream}")),
                objective=objective,
                settings=replace(loop, first_step=start, **settings),
                masks=to_hold(masks),
                parameters=parameters,
                after_step=after_step and (lambda step: to_hold(after_step(step.renamed(pruned)))),
                augment=augment and (lambda x: augment(x, noise)),  # type: ignore[arg-type]
                progress=None
                if report is None
                else lambda step, loss: report(name, step, len(batches), loss),
            )
        self.cost.own_steps += max(len(batches) * networks, self._backward.take(before))
        return {bare: held[own] for bare, own in pruned.items() if own in held}

    def _draw(self, stream: str, steps: int, sample_weight: Tensor | None = None) -> Tensor:
        """Sample indices of every step of a stream."""
        return draw_batches(
            len(self.train_split),
            steps=steps,
            batch_size=self.recipe.batch_size,
            generator=self.rng(f"batches/{stream}"),
            sample_weight=sample_weight,
        )

    def batches(
        self, model: nn.Module, *, steps: int, name: str, sample_weight: Tensor | None = None
    ) -> Iterator[Batch]:
        """The batches that `train` would show this network under this name, for a loop of one's own.

        The harness counts the backward passes of such a loop as its steps, and the record says so.
        """
        stream, images = self._stream(model, name), self.train_split.images
        rows = self._draw(stream, steps, sample_weight).to(self.device)
        crops = images.draw_crops(rows.shape, self.rng(f"crops/{stream}"))
        for step, x in enumerate(images.feed(rows, crops)):
            yield Batch(x, self.train_split.y[rows[step]], rows[step], step)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """While a method fits: backward passes outside of `train` are charged as steps, and noted."""
        with self._backward.running():
            yield
        own = self._backward.take()
        if own:
            self.cost.own_steps += own
            self.notes[OWN_LOOP_NOTE] = float(own)

    def _stream(self, model: nn.Module, name: str) -> str:
        """What seeds the batches of a stage: its name, and how often this network was trained under it before."""
        net = bare_network(model)
        self._trainings.setdefault(net, Counter())[name] += 1
        return self.last_stream(net, name)

    def last_stream(self, net: nn.Module, name: str) -> str:
        """The name of the stream that `net` was last trained on under this name."""
        times = self._trainings[net][name]
        return name if times == 1 else f"{name}/{times}"

    def finetune(
        self,
        model: Classifier,
        masks: Masks | None = None,
        *,
        objective: Objective = cross_entropy,
        sample_weight: Tensor | None = None,
        steps: int | None = None,
        lr: float | None = None,
        **settings: Any,
    ) -> Pruned:
        """Train a pruned model with its masks held: the recipe's fine-tuning steps, or `steps`.

        Fine-tuned again, a model sees the images in another order. Without masks they are the network's own: its zeros,
        or what `torch.nn.utils.prune` put into it; that is taken out again, and the masks are held here.
        """
        masks = masks_of(model) if masks is None else masks
        make_plain(model)
        held = self.train(
            model,
            steps=steps or self.recipe.finetune_steps,
            lr=self.recipe.finetune_lr if lr is None else lr,
            name="finetune",
            objective=objective,
            masks=masks,
            sample_weight=sample_weight,
            **settings,
        )
        return Pruned(model, held)

    def prune(
        self,
        model: Classifier,
        sparsity: float,
        score: Score | Mapping[str, Tensor] | None = None,
        *,
        distribution: str | Distribution = "global",
        structure: str | None = None,
    ) -> Masks:
        """Masks with exactly the asked count, and the model's masked weights zero.

        `score` is a criterion, a scoring function `(weight, context)` or scores by name; magnitude where none is given.
        """
        scores: Mapping[str, Tensor]
        if isinstance(score, Criterion):
            scores = self.scores(score, model)
        elif callable(score):
            scores = self.scores(as_criterion(score), model)
        else:
            scores = score or {name: weight.detach().abs() for name, weight in prunable(model).items()}
        masks = make_masks(
            scores, sparsity, allocation=distribution, structure=structure, weights=prunable(model)
        )
        apply_masks(model, masks)
        return masks

    @torch.no_grad()
    def recalibrate(self, model: Classifier, *, batches: int = 8) -> None:
        """Take BatchNorm's running statistics anew: the mean over some training batches, charged as forward passes."""
        layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        model.train()
        with channels_last(model):
            for x, _ in self._some_batches("recalibrate", batches):
                model(x)
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
        self.cost.own_steps += steps_of(batches / 3)

    def _some_batches(
        self, purpose: str, count: int, sample_weight: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Training images as they are shown in evaluation, and their labels."""
        for row in self._draw(purpose, count, sample_weight).to(self.device):
            yield self.train_split.images.batch(row), self.train_split.y[row]

    @torch.no_grad()
    def features(self, model: Classifier, split: VisibleSplit) -> Tensor:
        """Penultimate features `[N, F]` of a split's images, in evaluation mode, float32, on the device."""
        model.eval()
        size = split.images.evaluation_batch
        rows = [slice(at, at + size) for at in range(0, len(split), size)]
        with channels_last(model):
            return torch.cat([model.features(split.images.batch(row)).float() for row in rows])

    def predict(self, model: Classifier) -> Tensor:
        """Logits `[N, C]` of the training images, in evaluation mode, on the device."""
        return self._answers(model, self.train_split)

    def predict_validation(self, model: Classifier) -> Tensor:
        """Logits `[N, C]` of the validation images, in evaluation mode, on the device."""
        return self._answers(model, self.val_split)

    def predict_balanced(self, model: Classifier) -> Tensor:
        """Logits `[N, C]` of the images of `val_balanced`, as `predict_validation`."""
        return self._answers(model, self.val_balanced)

    def _answers(self, model: Classifier, split: VisibleSplit) -> Tensor:
        with channels_last(model):
            return evaluate(model, split.images).to(self.device)

    def scores(self, criterion: Criterion, model: Classifier) -> dict[str, Tensor]:
        """Scores of every prunable weight of `model`; what the criterion needs is computed, and charged."""
        statistics = self.statistics(model, batches=criterion.batches)
        return compute_scores(criterion, model, statistics, self.rng(f"scores/{criterion.name}"))

    def statistics(
        self, model: Classifier, *, batches: int = BATCHES, sample_weight: Tensor | None = None
    ) -> Statistics:
        """Gradients, activations and curvature of `model` as it is now, over training batches; see `Statistics`.

        `sample_weight` `[N]` draws samples in proportion: those of a group alone, where it is 0 for the others.
        """

        def charge(steps: float) -> None:
            self.cost.own_steps += steps_of(steps)

        return Statistics(
            model,
            lambda: self._some_batches("statistics", batches, sample_weight),
            charge,
            self.rng("probes"),
            lambda: self.gradients(model, batches=batches, sample_weight=sample_weight),
            self._backward,
        )

    def gradients(
        self, model: Classifier, *, batches: int = 8, sample_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Gradients of the mean loss over some batches, in training mode; the model is unchanged."""
        net = copy.deepcopy(model).train()
        index = self._draw("gradients", batches, sample_weight).to(self.device)
        before = self._backward.count
        with channels_last(net):
            for row in index:
                logits = net(self.train_split.images.batch(row))
                (task_loss(logits, self.train_split.y[row]) / batches).backward()
        self._backward.take(before)
        self.cost.own_steps += batches
        return {name: weight.grad for name, weight in prunable(net).items() if weight.grad is not None}

    def group_importance(
        self, model: Classifier, group: Tensor, *, batches: int = BATCHES
    ) -> dict[str, Tensor]:
        """Sums over some batches of (weight * gradient of a group's mean loss)^2, `[G, *shape]` by weight.

        In evaluation mode, the model unchanged. group: of each training sample, `[N]`; those that occur, in order.
        Charged as the batches, which the groups share.
        """
        names, group = torch.unique(group, return_inverse=True)
        net, before = copy.deepcopy(model).eval(), self._backward.count
        weights = prunable(net)
        values = [weight.requires_grad_() for weight in weights.values()]
        total = {name: weight.new_zeros(len(names), *weight.shape) for name, weight in weights.items()}
        with channels_last(net), torch.enable_grad():
            for row in self._draw("gradients", batches).to(self.device):
                for member in group[row].unique().tolist():
                    own = row[group[row] == member]
                    loss = task_loss(net(self.train_split.images.batch(own)), self.train_split.y[own])
                    for (name, weight), slope in zip(weights.items(), torch.autograd.grad(loss, values)):
                        total[name][member] += (weight.detach() * slope).square()
        self._backward.take(before)
        self.cost.own_steps += batches
        return total

    def shared(
        self,
        name: str,
        compute: Callable[[], dict[str, Tensor]],
        *,
        owner: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Tensors of a stage that does not depend on the sparsity: computed once, kept with the results.

        The key holds the task, data, model, recipe, seed and the method with all its settings (`owner` and `params`
        replace the method's name and settings, for methods that share stages). The training steps of `compute`
        are charged to every run that uses it.
        """
        spec = self.spec
        key = spec.without_method() | {"stage": name, "owner": owner or spec.method}
        key |= {"version": spec.method_version, "params": dict(spec.params if params is None else params)}
        key |= {"precision": resolve_precision(spec.recipe.precision, self.device)}

        def with_cost() -> dict[str, Tensor]:
            notes, mined = dict(self.notes), self.mined
            with self._separate_cost() as cost:
                tensors = {field: plain(value) for field, value in compute().items()}
            if self.notes != notes or self.mined is not mined:
                raise UsageError(
                    f"stage {name!r} runs once for many runs: log and report_mining outside of it"
                )
            return {**tensors, COST_FIELD: torch.tensor([cost.own_steps, int(cost.uses_dense)])}

        tensors = self._around.stages.shared(hash_of(key), with_cost)
        own_steps, uses_dense = tensors.pop(COST_FIELD).tolist()
        self.cost.add(TrainingCost(own_steps, bool(uses_dense)))
        return {field: value.to(self.device) for field, value in tensors.items()}

    @property
    def training_steps(self) -> int:
        """Steps of one network that the result took, shared stages and a dense model that was trained here included."""
        dense = self.recipe.steps if self.cost.uses_dense and not self.trained_outside else 0
        return self.cost.own_steps + dense

    @contextlib.contextmanager
    def _separate_cost(self) -> Iterator[TrainingCost]:
        outer, self.cost, before = self.cost, TrainingCost(), self._backward.count
        try:
            yield self.cost
        finally:
            self.cost.own_steps += self._backward.take(before)
            self.cost = outer

    def report_mining(self, conflicting: Tensor) -> None:
        """Hand in which training samples (bool `[N]`) are thought bias-conflicting.

        The harness records precision and recall against the withheld truth; nothing comes back.
        """
        if conflicting.shape != (len(self.train_split),):
            raise ValueError(f"conflicting: want [{len(self.train_split)}], got {tuple(conflicting.shape)}")
        self.mined = conflicting.detach().bool().cpu()

    def log(self, **values: float) -> None:
        """Numbers for the record. Raises UsageError for the names that the harness writes."""
        for name in (*NOTES, FITTED_NOTE, REMOVED_NOTE, OWN_LOOP_NOTE):
            if name in values:
                raise UsageError(f"log: {name} is written by the harness; choose another name")
        self.notes.update({name: float(value) for name, value in values.items()})


class ExperimentView(Experiment):
    """The same experiment, seen otherwise: data, stages, notes and cost are those of the one that it is made from.

    A view of a view has what both change, the later one first.
    """

    def __new__(cls, experiment: Experiment, *_: Any) -> Self:
        seen = type(experiment)
        view: Self = object.__new__(cls if issubclass(cls, seen) else type(cls.__name__, (cls, seen), {}))
        vars(view).update(vars(experiment))
        return view
