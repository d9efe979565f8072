"""The training loop, its images, and masks that are learned."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from prunebench_kernels import measured
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn import functional

from prunebench.data.images import Images, draw_batches
from prunebench.models import Classifier, build_model
from prunebench.pruning.learned import DensityMasks, LearnedMasks, density_threshold, native_masks
from prunebench.pruning.masks import Masks, apply_masks, make_masks, prunable, verify
from prunebench.results.spec import View
from prunebench.training import Batch, LoopSettings, evaluate, loop, resolve_precision, train
from prunebench.training.loop import CHECK_EVERY, learning_rate
from prunebench.training.losses import cross_entropy

CPU = torch.device("cpu")
GRAY = (0.5, 0.5, 0.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_images(count: int = 24) -> tuple[Images, Tensor]:
    """Random bytes and labels of three classes."""
    x = torch.randint(256, (count, 3, 16, 16), generator=seeded(), dtype=torch.uint8)
    return Images(x, mean=GRAY, std=GRAY, device=CPU), torch.arange(count) % 3


def adam(**changes: object) -> LoopSettings:
    return LoopSettings(**{"optimizer": "adam", "lr": 1e-2, "total_steps": 10, **changes})  # type: ignore[arg-type]


def sgd(**changes: object) -> LoopSettings:
    return adam(**{"optimizer": "sgd", "momentum": 0.0, **changes})


def batches(steps: int, *, count: int = 24, size: int = 8, seed: int = 0) -> Tensor:
    return draw_batches(count, steps=steps, batch_size=size, generator=seeded(seed))


def half_masks(net: nn.Module, sparsity: float = 0.5) -> Masks:
    return make_masks({name: weight.abs() for name, weight in prunable(net).items()}, sparsity)


class Scalar(nn.Module):
    """One parameter; its own gradient is 1 under `slope`."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


def slope(model: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(model, Scalar)
    return model.value * 1.0


@pytest.mark.parametrize("index", [slice(1, 4), torch.tensor([5, 0, 0, 2])], ids=["slice", "index"])
def test_a_batch_is_normalised_and_channels_last(index: slice | Tensor) -> None:
    x = torch.randint(256, (6, 3, 5, 4), generator=seeded(), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = Images(x, mean=mean, std=std, device=CPU)
    batch = images.batch(index)
    shape = (1, 3, 1, 1)
    expected = (x[index].double() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    assert len(images) == 6
    assert images.device == CPU
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch.double(), expected, rtol=0, atol=2e-6)


def test_images_do_not_change_with_the_source() -> None:
    x = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images = Images(x, mean=GRAY, std=GRAY, device=CPU)
    x.fill_(255)
    assert float(images.batch(slice(None)).max()) == -1.0


def test_schedules_by_hand() -> None:
    cosine = adam(schedule="cosine", lr=0.2, total_steps=12)
    assert [learning_rate(cosine, step) for step in (0, 4, 6, 8)] == pytest.approx([0.2, 0.15, 0.1, 0.05])
    assert learning_rate(cosine, 12) == pytest.approx(0, abs=1e-17)
    tenth = adam(schedule="step", lr=1.0, total_steps=10)
    rates = [learning_rate(tenth, step) for step in range(10)]
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])
    assert [learning_rate(adam(lr=0.3), step) for step in (0, 5, 9)] == [0.3] * 3


@pytest.mark.parametrize("total", [10, 20, 70, 400, 2000])
def test_step_schedule_falls_exactly_at_each_30_percent(total: int) -> None:
    settings = adam(schedule="step", lr=1.0, total_steps=total)
    falls = [
        step for step in range(1, total) if learning_rate(settings, step) < learning_rate(settings, step - 1)
    ]
    assert falls == [total * 3 // 10, total * 6 // 10, total * 9 // 10]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_the_loop_follows_the_schedule(schedule: str) -> None:
    images, y = make_images(4)
    model, seen = Scalar(), [0.0]
    settings = sgd(schedule=schedule, lr=0.5, total_steps=10)
    train(
        model,
        images,
        y,
        batches(10, count=4, size=2),
        objective=slope,
        settings=settings,
        after_step=lambda _: seen.append(model.value.item()),
    )
    used = [before - after for before, after in itertools.pairwise(seen)]
    assert used == pytest.approx([learning_rate(settings, step) for step in range(10)], abs=1e-6)


def test_a_schedule_can_end_early() -> None:
    """Three steps of a schedule of ten use the first three rates of ten."""
    images, y = make_images(4)
    model, settings = Scalar(), sgd(schedule="cosine", lr=0.5, total_steps=10)
    train(model, images, y, batches(3, count=4, size=2), objective=slope, settings=settings)
    assert model.value.item() == pytest.approx(-sum(learning_rate(settings, step) for step in range(3)))


def test_one_sgd_step_by_hand() -> None:
    torch.manual_seed(0)
    images, y = make_images(6)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    weight, bias = net[1].weight.detach().clone(), net[1].bias.detach().clone()
    index = torch.tensor([[4, 1]])
    train(net, images, y, index, objective=cross_entropy, settings=sgd(lr=0.1, weight_decay=0.01))
    x = images.batch(index[0]).flatten(1)
    error = functional.softmax(x @ weight.T + bias, dim=1) - functional.one_hot(y[index[0]], 3)
    torch.testing.assert_close(net[1].weight, weight - 0.1 * (error.T @ x / 2 + 0.01 * weight))
    torch.testing.assert_close(net[1].bias, bias - 0.1 * (error.mean(0) + 0.01 * bias))


def test_momentum_by_hand() -> None:
    images, y = make_images(4)
    model, drawn = Scalar(), batches(3, count=4, size=2)
    train(model, images, y, drawn, objective=slope, settings=sgd(lr=0.1, momentum=0.5))
    assert model.value.item() == pytest.approx(-0.1 * (1 + 1.5 + 1.75))


def test_an_objective_sees_the_right_samples() -> None:
    images, y = make_images()
    drawn, seen = batches(5), []

    def watch(model: nn.Module, batch: Batch) -> Tensor:
        torch.testing.assert_close(batch.x, images.batch(batch.index))
        assert torch.equal(batch.y, y[batch.index])
        seen.append((batch.step, batch.index.tolist()))
        return slope(model, batch)

    train(Scalar(), images, y, drawn, objective=watch, settings=sgd())
    assert seen == list(enumerate(drawn.tolist()))


@pytest.mark.parametrize("settings", [adam(weight_decay=0.1), sgd(momentum=0.9)], ids=["adam", "sgd"])
def test_masks_hold_after_every_step(settings: LoopSettings) -> None:
    images, y = make_images()
    net = build_model("convnet-small", 3, seed=0)
    masks, checked = half_masks(net), []

    def look(step: int) -> None:
        for name, weight in prunable(net).items():
            assert not weight[~masks[name]].any(), f"{name} at step {step}"
        checked.append(step)

    before = {name: weight.detach().clone() for name, weight in prunable(net).items()}
    train(
        net, images, y, batches(6), objective=cross_entropy, settings=settings, masks=masks, after_step=look
    )
    assert checked == [1, 2, 3, 4, 5, 6]
    assert verify(net, masks, 0.5).achieved == 0.5
    for name, weight in prunable(net).items():
        assert (weight != before[name])[masks[name]].any(), f"{name} did not train"


def test_masks_returned_after_a_step_hold_from_then_on() -> None:
    images, y = make_images()
    net = build_model("convnet-small", 3, seed=0)
    alive, current = [], {}

    def prune(step: int) -> Masks | None:
        for name, mask in current.items():
            assert not prunable(net)[name][~mask].any()
        alive.append(sum(int((weight != 0).sum()) for weight in prunable(net).values()))
        if step in (2, 4):
            current.update(half_masks(net, {2: 0.5, 4: 0.9}[step]))
            return current
        return None

    train(net, images, y, batches(6), objective=cross_entropy, settings=adam(), after_step=prune)
    total = sum(weight.numel() for weight in prunable(net).values())
    assert alive[0] == alive[1] == total
    assert alive[2] == alive[3] == total - math.floor(total * 0.5 + 0.5)
    assert alive[4] == alive[5] == total - math.floor(total * 0.9 + 0.5)
    verify(net, current, 0.9)


def test_only_the_given_parameters_move() -> None:
    images, y = make_images()
    net = build_model("convnet-small", 3, seed=0)
    before = {name: values.detach().clone() for name, values in net.named_parameters()}
    train(
        net,
        images,
        y,
        batches(3),
        objective=cross_entropy,
        settings=adam(),
        parameters=list(net.head.parameters()),
    )
    moved = {name for name, values in net.named_parameters() if not torch.equal(values, before[name])}
    assert moved == {"head.weight", "head.bias"}


def train_afresh(seed: int) -> Classifier:
    images, y = make_images()
    net = build_model("convnet-small", 3, seed=seed)
    train(
        net,
        images,
        y,
        batches(8, seed=seed),
        objective=cross_entropy,
        settings=adam(schedule="cosine"),
        masks=half_masks(net),
    )
    return net


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again, other = train_afresh(0), train_afresh(0), train_afresh(1)
    for name, values in first.state_dict().items():
        assert torch.equal(values, again.state_dict()[name]), name
    assert not torch.equal(first.head.weight, other.head.weight)


def test_training_lowers_the_loss() -> None:
    images, y = make_images()
    net = build_model("convnet-small", 3, seed=0)
    before = functional.cross_entropy(evaluate(net, images), y)
    train(net, images, y, batches(30), objective=cross_entropy, settings=adam(total_steps=30))
    assert functional.cross_entropy(evaluate(net, images), y) < before / 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("steps", "broken", "noticed"),
    [(5, 2, 5), (CHECK_EVERY + 20, 3, CHECK_EVERY), (CHECK_EVERY + 20, CHECK_EVERY, CHECK_EVERY + 20)],
)
def test_a_loss_that_is_not_finite_stops_training(
    steps: int, broken: int, noticed: int, value: float
) -> None:
    images, y = make_images(4)
    last = []

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        last.append(batch.step)
        return slope(model, batch) + (value if batch.step == broken else 0.0)  # its gradient stays finite

    model = Scalar()
    with pytest.raises(FloatingPointError, match=rf"step {noticed} of {steps}\b.*lower the learning rate"):
        train(
            model,
            images,
            y,
            batches(steps, count=4, size=2),
            objective=objective,
            settings=sgd(lr=0.0, total_steps=steps),
        )
    assert last[-1] == noticed - 1


def test_progress_is_reported_at_every_check() -> None:
    images, y = make_images(4)
    steps, reports = 2 * CHECK_EVERY + 30, []
    train(
        Scalar(),
        images,
        y,
        batches(steps, count=4, size=2),
        objective=slope,
        settings=sgd(lr=1.0, total_steps=steps),
        progress=lambda step, loss: reports.append((step, loss)),
    )
    checks = (CHECK_EVERY, 2 * CHECK_EVERY, steps)
    assert reports == [(step, pytest.approx(1.0 - step)) for step in checks]  # the value before its step


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_is_that_of_the_objective_alone(bf16: bool, dtype: torch.dtype) -> None:
    images, y = make_images()
    net, seen = build_model("convnet-small", 3, seed=0), []

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x)
        seen.append(logits.dtype)
        return functional.cross_entropy(logits.float(), batch.y)

    train(net, images, y, batches(1), objective=objective, settings=adam(bf16=bf16))
    assert seen == [dtype]
    assert {values.dtype for values in net.parameters()} == {torch.float32}


def test_resolve_precision() -> None:
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", CPU) in ("fp32", "bf16")


@pytest.mark.parametrize("batch_size", [7, 24, 512])
def test_evaluate_equals_a_manual_loop(batch_size: int) -> None:
    images, _ = make_images()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 5)
    )
    net.train()
    buffers = {name: values.clone() for name, values in net.named_buffers()}
    logits = evaluate(net, images, batch_size=batch_size)
    assert not [name for name, module in net.named_modules() if module.training]
    assert all(torch.equal(values, buffers[name]) for name, values in net.named_buffers())
    with torch.no_grad():
        expected = torch.cat([net(images.batch(torch.tensor([row]))) for row in range(24)])
    assert (logits.shape, logits.dtype, logits.device) == ((24, 5), torch.float32, CPU)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_evaluated_logits_can_be_targets_of_a_loss() -> None:
    """A method may distil: predictions of one net are constants in the loss of another."""
    images, _ = make_images()
    teacher, student = (build_model("convnet-small", 3, seed=seed) for seed in (0, 1))
    functional.mse_loss(student(images.batch(slice(None))), evaluate(teacher, images)).backward()
    assert student.head.weight.grad is not None


def learner(seed: int = 0, **settings: object) -> LearnedMasks:
    return LearnedMasks(build_model("convnet-small", 3, seed=0), seed=seed, **settings)  # type: ignore[arg-type]


def learn(masks: LearnedMasks, steps: int) -> None:
    images, y = make_images()

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        _, logits = masks.features_and_logits(batch.x)
        return functional.cross_entropy(logits.float(), batch.y) + 1e-3 * masks.sum_of_logits()

    train(
        masks,
        images,
        y,
        batches(steps),
        objective=objective,
        settings=adam(),
        parameters=[masks.logits],
    )


def test_learning_masks_moves_logits_and_leaves_weights() -> None:
    masks = learner()
    before = {name: values.detach().clone() for name, values in masks.net.named_parameters()}
    learn(masks, 3)
    for name, values in masks.net.named_parameters():
        assert torch.equal(values, before[name]), name
    for name, values in masks.named_logits().items():
        assert (values != 1.5).any(), name


def test_gradients_reach_every_logit() -> None:
    images, y = make_images()
    masks = learner()
    features, logits = masks.features_and_logits(images.batch(slice(None)))
    assert features.shape == (24, 128)
    functional.cross_entropy(logits, y).backward()
    assert torch.isfinite(masks.logits.grad).all()  # type: ignore[arg-type]
    nonzero = masks._by_layer((masks.logits.grad != 0).float())  # type: ignore[union-attr,operator,arg-type]
    assert all(layer.mean() > 0.5 for layer in nonzero.values())
    assert all(weight.grad is None for weight in masks.net.parameters()), "the network is frozen"


def test_the_regulariser_is_the_sum_of_logits() -> None:
    masks = learner(initial=0.25)
    count = sum(weight.numel() for weight in prunable(masks.net).values())
    total = masks.sum_of_logits()
    assert total.item() == pytest.approx(0.25 * count)
    total.backward()
    assert torch.equal(masks.logits.grad, torch.ones(count))  # type: ignore[arg-type]


def test_a_threshold_gives_the_density_that_is_asked_for() -> None:
    logits = torch.randn(5000, generator=seeded()) * 3
    for density in (0.01, 0.1, 0.9):
        found = density_threshold(logits, torch.tensor([density]))
        wanted = brentq(lambda t, d=density: float(torch.sigmoid(logits - t).mean()) - d, -40, 40)
        assert float(found) == pytest.approx(wanted, abs=1e-3)
        assert float(torch.sigmoid(logits - found).mean()) == pytest.approx(density, rel=1e-3)


def test_masks_are_sampled_at_the_density_of_the_step() -> None:
    """Of 20 steps of annealing: all weights at first, 0.1 + 0.9 / 8 after half of them, 0.1 from the end on."""
    net = build_model("convnet-small", 3, seed=0)
    masks = DensityMasks(net, seed=0, density=0.1, anneal_steps=20)
    kept = []
    for _ in range(25):
        drawn = masks.draw_masks()
        kept.append(sum(float(mask.detach().sum()) for mask in drawn.values()) / len(masks.logits))
    assert kept[0] == pytest.approx(1.0, abs=1e-4)
    assert kept[10] == pytest.approx(0.1 + 0.9 / 8, abs=5e-3)
    assert kept[20:] == pytest.approx([0.1] * 5, abs=5e-3)


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped() -> None:
    images, y = make_images()
    order = batches(10)
    whole, parts = (build_model("convnet-small", 3, seed=0) for _ in range(2))
    settings = sgd(lr=0.05, schedule="cosine")
    train(whole, images, y, order, objective=cross_entropy, settings=settings)
    train(parts, images, y, order[:4], objective=cross_entropy, settings=settings)
    resumed = replace(settings, first_step=4)
    train(parts, images, y, order[4:], objective=cross_entropy, settings=resumed)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_a_pass_uses_the_weights_under_one_draw() -> None:
    images, _ = make_images()
    x = images.batch(slice(None))
    features, logits = learner(seed=4).features_and_logits(x)
    drawn = learner(seed=4).draw_masks()
    plain = build_model("convnet-small", 3, seed=0)
    dense = {name: weight.detach().clone() for name, weight in prunable(plain).items()}
    apply_masks(plain, {name: mask.detach() for name, mask in drawn.items()})
    for name, weight in prunable(plain).items():
        kept = weight != 0
        assert torch.equal(weight[kept], dense[name][kept])
        assert 0.5 < kept.float().mean() < 0.9  # kept with probability sigmoid(sigmoid(1.5)) = 0.69
    torch.testing.assert_close(features, plain.features(x))
    torch.testing.assert_close(logits, plain(x))
    assert not torch.equal(logits, learner(seed=5).features_and_logits(x)[1])


def test_learning_masks_is_repeatable() -> None:
    first, again = learner(), learner()
    learn(first, 3)
    learn(again, 3)
    assert torch.equal(first.logits, again.logits)


def test_every_pass_draws_anew() -> None:
    masks = learner()
    first, second = masks.draw_masks(), masks.draw_masks()
    assert all(not torch.equal(first[name], second[name]) for name in first)


def test_masks_and_logits_lie_as_the_weights_do() -> None:
    """So that weight * mask is one run through memory, and each layer keeps its own logits."""
    masks = learner()
    weights = prunable(masks.net)
    for name, mask in masks.draw_masks().items():
        assert (mask.shape, mask.stride()) == (weights[name].shape, weights[name].stride())
    with torch.no_grad():
        masks.logits.copy_(torch.arange(float(masks.logits.numel())))
    seen = torch.cat([values.flatten().sort().values for values in masks.named_logits().values()])
    assert torch.equal(seen, masks.logits.detach())


def test_native_masks_by_hand() -> None:
    logits = {"a": torch.tensor([[0.0, -1e-9], [2.0, -3.0]]), "b": torch.tensor([-3.0, -1.0, -1.0])}
    masks = native_masks(logits)
    assert masks["a"].tolist() == [[True, False], [True, False]]
    assert masks["b"].tolist() == [False, True, False]
    assert {mask.dtype for mask in masks.values()} == {torch.bool}


@pytest.mark.parametrize("initial", [-1.0, 1.5])
def test_native_masks_never_empty_a_layer(initial: float) -> None:
    """Straight from the learner, whose logits lie as the weights do (channels_last)."""
    masks = native_masks(learner(initial=initial).named_logits())
    net = build_model("convnet-small", 3, seed=0)
    with torch.no_grad():
        for name, weight in prunable(net).items():
            weight.mul_(masks[name])
    verify(net, masks, None)
    assert all(int(mask.sum()) == (mask.numel() if initial > 0 else 1) for mask in masks.values())


def test_native_masks_do_not_alter_the_logits() -> None:
    logits = {"a": torch.full((2, 2), -1.0)}
    native_masks(logits)
    assert torch.equal(logits["a"], torch.full((2, 2), -1.0))


# --- captured steps ------------------------------------------------------------------------------------------


class Replay:
    """Stands for a captured step: replaying it takes the step, with what the buffers then hold."""

    captures = 0

    def __init__(self, trainings: object, run: Callable[[int], None]) -> None:
        self.replay = lambda: run(-1)
        Replay.captures += 1


class Queue:
    """Stands for a CUDA stream on a device without any."""

    def __init__(self, device: object = None) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> type[Replay]:
    """Steps of capturable objectives take the captured road, on the CPU."""
    monkeypatch.setattr(
        loop.Training, "can_be_captured", property(lambda self: getattr(self._objective, "capturable", False))
    )
    monkeypatch.setattr(loop, "_capture", Replay)
    monkeypatch.setattr(measured, "waiting_raises", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", Queue)
    monkeypatch.setattr(torch.cuda, "current_stream", Queue)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    Replay.captures = 0
    return Replay


def weights_after(capture: bool, **options: Any) -> list[Tensor]:
    images, y = make_images()
    net = build_model("convnet-small", 3, seed=0)
    settings = options.pop("settings", adam(schedule="cosine"))
    train(
        net,
        images,
        y,
        batches(10),
        objective=options.pop("objective", cross_entropy),
        settings=settings,
        capture=capture,
        **options,
    )
    return [value.clone() for value in net.state_dict().values()]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_captured_steps_are_the_same_steps(captured: type[Replay], schedule: str, optimizer: str) -> None:
    """The learning rate is float32 on the device, and Python's float elsewhere."""
    settings = adam(schedule=schedule, optimizer=optimizer, momentum=0.9)
    eager, replayed = weights_after(False, settings=settings), weights_after(True, settings=settings)
    assert captured.captures == 1
    for one, other in zip(eager, replayed):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_new_masks_reach_a_captured_step(captured: type[Replay]) -> None:
    """Masks of other weights are other buffers, so the step is captured anew; new values of the same are not."""
    names = list(prunable(build_model("convnet-small", 3, seed=0)))
    given: dict[int, list[str]] = {5: names[:1], 7: names, 8: names}

    def masks_after(step: int) -> Masks | None:
        if step not in given:
            return None
        net = build_model("convnet-small", 3, seed=step)
        return {name: mask for name, mask in half_masks(net).items() if name in given[step]}

    settings = adam(schedule="constant")
    eager = weights_after(False, settings=settings, after_step=masks_after)
    replayed = weights_after(True, settings=settings, after_step=masks_after)
    assert captured.captures == 3
    assert all(torch.equal(one, other) for one, other in zip(eager, replayed))


def test_what_is_not_marked_is_not_captured(captured: type[Replay]) -> None:
    weights_after(True, objective=lambda net, batch: cross_entropy(net, batch))
    assert captured.captures == 0


def test_crops_reach_a_captured_step(captured: type[Replay]) -> None:
    x = torch.randint(256, (24, 3, 20, 20), generator=seeded(), dtype=torch.uint8)
    images = Images(x, mean=GRAY, std=GRAY, device=CPU, view=View(resize=20, crop=16, flip=True))
    rows = batches(8)
    crops = images.draw_crops(rows.shape, seeded(1))
    nets = [build_model("convnet-small", 3, seed=0) for _ in range(2)]
    for net, capture in zip(nets, (False, True)):
        settings = adam(schedule="constant")
        train(
            net, images, torch.arange(24) % 3, rows,
            objective=cross_entropy, settings=settings, crops=crops, capture=capture,
        )  # fmt: skip
    assert captured.captures == 1
    assert all(torch.equal(one, other) for one, other in zip(*(net.state_dict().values() for net in nets)))


@pytest.mark.parametrize("replays", [False, True])
def test_networks_trained_together_are_those_trained_alone(
    request: pytest.FixtureRequest, replays: bool
) -> None:
    if replays:
        request.getfixturevalue("captured")
    images, y = make_images()
    settings = adam(schedule="constant")
    alone = [build_model("convnet-small", 3, seed=seed) for seed in range(3)]
    for seed, net in enumerate(alone):
        train(net, images, y, batches(8, seed=seed), objective=cross_entropy, settings=settings)
    together = [build_model("convnet-small", 3, seed=seed) for seed in range(3)]
    trainings = [
        loop.Training(net, images, y, objective=cross_entropy, settings=settings) for net in together
    ]
    loop.train_together(trainings, [batches(8, seed=seed) for seed in range(3)])
    for one, other in zip(alone, together):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def test_networks_train_together_for_as_many_steps() -> None:
    images, y = make_images()
    trainings = [
        loop.Training(
            build_model("convnet-small", 3, seed=0), images, y, objective=cross_entropy, settings=adam()
        )
        for _ in range(2)
    ]
    with pytest.raises(ValueError, match="want one for each of 2 trainings"):
        loop.train_together(trainings, [batches(3), batches(4)])


class Counting(nn.Module):
    """A layer of somebody else's, which counts its calls in Python."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return x


def test_only_networks_of_known_layers_are_captured() -> None:
    """What Python holds would stay in a captured step as it was."""
    net = build_model("convnet-small", 3, seed=0)
    assert loop.holds_known_layers_alone(net)
    assert loop.holds_known_layers_alone(nn.ModuleList([net, LearnedMasks(net, seed=1)]))
    assert not loop.holds_known_layers_alone(nn.Sequential(net, Counting()))
    hooked = build_model("convnet-small", 3, seed=0)
    hooked.head.register_forward_hook(lambda *_: None)
    assert not loop.holds_known_layers_alone(hooked)
    patched = build_model("convnet-small", 3, seed=0)
    patched.forward = patched.features  # type: ignore[method-assign]
    assert not loop.holds_known_layers_alone(patched)
