"""LaRReg against its formulas in float64, and the random views that its encoders learn from."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch
from tiny_experiment import fitted, tiny_experiment
from torch import Tensor

from prunebench.data.augmentation import random_crop, random_view, turn_hue
from prunebench.methods.discovery import resolve_method
from prunebench.methods.larreg import LowRankDebiasing, Projected, mean_squared_correlation, nt_xent
from prunebench.training.loop import Batch

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contrastive(z: Tensor, temperature: float) -> float:
    """SimCLR's loss, row by row in float64."""
    z = z.detach().double()
    z = z / z.norm(dim=1, keepdim=True)
    half, total = len(z) // 2, 0.0
    for i in range(len(z)):
        alike = {a: math.exp(float(z[i] @ z[a]) / temperature) for a in range(len(z)) if a != i}
        total -= math.log(alike[(i + half) % len(z)] / sum(alike.values())) / len(z)
    return total


def correlated(features: Tensor) -> float:
    """4 / F^2 times the sum of squared correlations of different features, in float64."""
    squared = torch.corrcoef(features.detach().double().T).square()
    return 4 * float(squared.sum() - squared.diagonal().sum()) / features.shape[1] ** 2


def test_contrastive_loss_is_the_formula() -> None:
    z = torch.randn(6, 4, generator=seeded())
    assert nt_xent(z, 0.5).item() == pytest.approx(contrastive(z, 0.5), rel=1e-5)
    assert nt_xent(z, 0.07).item() == pytest.approx(contrastive(z, 0.07), rel=1e-5)


def test_contrastive_loss_by_hand() -> None:
    """Views that agree, images at right angles: e^2 of e^2 + 2 by t = 1/2, in each of four rows."""
    z = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    assert nt_xent(z, 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))


def test_squared_correlation_by_hand() -> None:
    """Equal features: C is 2 everywhere, 2 * 2^2 off its diagonal, over 2^2; features at right angles: 0."""
    equal = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert mean_squared_correlation(equal).item() == pytest.approx(2, rel=1e-4)
    apart = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert mean_squared_correlation(apart).item() == pytest.approx(0, abs=1e-6)
    some = torch.randn(10, 5, generator=seeded())
    assert mean_squared_correlation(some).item() == pytest.approx(correlated(some), rel=1e-3)


def test_encoder_loss_rewards_correlation() -> None:
    experiment = tiny_experiment("larreg")
    split, chosen = experiment.train_split, LowRankDebiasing(projection=6)
    learner = Projected(experiment.new_model(), 6, seeded())
    index = torch.arange(8)
    batch = Batch(split.images.batch(index), split.y[index], index, 0)
    found = chosen.objective(experiment, 0.1)(learner, batch)
    generator = experiment.device_rng("larreg/views")
    views = [random_view(split.images.pixels(batch.x), generator) for _ in range(2)]
    features = learner.net.features(split.images.normalised(torch.cat(views)))
    expected = contrastive(learner.projector(features), 0.07) - 0.1 * correlated(features)
    assert found.item() == pytest.approx(expected, rel=1e-3)
    plain = chosen.objective(experiment, 0.0)(learner, batch)
    assert plain.item() == pytest.approx(contrastive(learner.projector(features), 0.07), rel=1e-4)


def test_one_encoder_mines_its_errors_and_several_what_they_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing probabilities of .2 and .6 are .4 together, of .6 and .6 above .47; labels go 0, 1, 2."""
    experiment = tiny_experiment("larreg")
    y = experiment.train_split.y

    def probe(_: object, __: object, weight: float) -> Tensor:
        missing = torch.full((48,), 0.6)
        if weight == 0:
            missing[:10] = 0.2
        told = torch.nn.functional.one_hot(y, 3)
        return (told * (1 - missing).unsqueeze(1) + (1 - told) * missing.unsqueeze(1) / 2).log()

    monkeypatch.setattr(LowRankDebiasing, "_probe", probe)
    together = LowRankDebiasing(rank_weights=(0.0, 0.3))._mine(experiment)
    assert together.tolist() == [False] * 10 + [True] * 38
    assert not LowRankDebiasing(rank_weights=(0.0,))._mine(experiment).any(), "0.4 against 0.3 is right"
    monkeypatch.setattr(LowRankDebiasing, "_probe", lambda *_: torch.nn.functional.one_hot(y % 2, 3))
    assert torch.equal(LowRankDebiasing()._mine(experiment), y == 2)


def test_a_probe_trains_the_head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, made = tiny_experiment("larreg"), []
    new = experiment.new_model
    monkeypatch.setattr(LowRankDebiasing, "pretrain", lambda *_: None)
    monkeypatch.setattr(experiment, "new_model", lambda purpose: made.append(new(purpose)) or made[-1])
    LowRankDebiasing()._probe(experiment, 0.1)
    before = dict(new("biased").named_parameters())
    for name, value in made[0].named_parameters():
        assert torch.equal(value, before[name]) != name.startswith("head."), name


def test_mined_samples_are_drawn_ten_times_as_often() -> None:
    mined = torch.tensor([True, False])
    assert LowRankDebiasing().drawing(mined).tolist() == [10, 1]
    experiment, _ = fitted("larreg", 0.5, rank_weights=(0.0, 0.1, 0.3))
    assert experiment.training_steps == 3 * 3 * 30 + 3 * 30 + 10, (
        "two views and a probe for each encoder, the main network's, fine-tuning"
    )
    assert experiment.mined is not None


@pytest.mark.parametrize(
    "settings", [{"rank_weights": ()}, {"rank_weights": 0.3}, {"upweight": 0.0}, {"cutoff": 1.5}]
)
def test_settings_that_cannot_be(settings: dict[str, object]) -> None:
    entry = resolve_method("magnitude+larreg").with_params(
        {f"larreg_{key}": value for key, value in settings.items()}
    )
    with pytest.raises(ValueError, match="want"):
        entry.build(**entry.params)


# Views


def test_hue_turns_as_in_the_standard_library() -> None:
    pixels = torch.rand(4, 3, 5, 5, generator=seeded(), dtype=F64)
    pixels[0, :, 0, 0] = 0.3
    turn = torch.tensor([0.1, -0.1, 0.4, 0.0], dtype=F64).view(4, 1, 1, 1)
    found = turn_hue(pixels, turn)
    for n, row, column in ((0, 0, 0), (0, 1, 2), (1, 3, 3), (2, 4, 1), (3, 2, 2)):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[n, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb((hue + turn[n].item()) % 1, saturation, value)
        torch.testing.assert_close(found[n, :, row, column], torch.tensor(expected, dtype=F64))


def test_crops_keep_a_fifth_or_more_and_some_are_mirrored() -> None:
    """Of two ramps, across and down, a crop keeps the slopes that its sides are shares of."""
    ramp = (torch.arange(64, dtype=F64) + 0.5) / 64
    across, down = ramp.expand(64, 64), ramp.view(64, 1).expand(64, 64)
    pixels = torch.stack([across, down, torch.zeros_like(across)]).expand(40, 3, 64, 64)
    found = random_crop(pixels, seeded(), 0.2)
    width = (found[:, 0, 32, 40] - found[:, 0, 32, 24]) * 64 / 16
    height = (found[:, 1, 40, 32] - found[:, 1, 24, 32]) * 64 / 16
    area, ratio = width.abs() * height, width.abs() / height
    assert ((area >= 0.2) & (area <= 1)).all()
    assert ((ratio > 0.74) & (ratio < 1.34)).all()
    assert height.min() > 0
    assert (width < 0).sum() in range(10, 31)
    assert len(set(area.tolist())) == 40, "each image has its own"


def test_views_change_colours_by_share() -> None:
    pixels = torch.rand(1, 3, 16, 16, generator=seeded()).expand(60, 3, 16, 16)
    cropped = random_crop(pixels, seeded(1), 0.2)
    untouched = random_view(pixels, seeded(1), recoloured=0.0, grey=0.0)
    torch.testing.assert_close(untouched, cropped)
    found = random_view(pixels, seeded(1))
    assert found.min() >= 0
    assert found.max() <= 1
    grey = (found.amax(1) - found.amin(1)).flatten(1).amax(1) < 1e-6
    same = (found - cropped).abs().flatten(1).amax(1) < 1e-6
    assert grey.sum() in range(5, 20), "a fifth"
    assert same.sum() in range(3, 20), "a fifth of the others"
    assert torch.equal(found, random_view(pixels, seeded(1)))


def test_normalised_images_and_their_pixels() -> None:
    images = tiny_experiment("larreg").train_split.images
    x = images.batch(slice(0, 4))
    torch.testing.assert_close(
        images.pixels(x) * 255, (images.pixels(x) * 255).round(), atol=1e-4, rtol=0, msg="bytes"
    )
    torch.testing.assert_close(x * 0.25 + 0.4, images.pixels(x))
    torch.testing.assert_close(images.normalised(images.pixels(x)), x)
