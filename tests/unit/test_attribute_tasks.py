"""Attributes of digits and marked digits: the labels by hand, the ties in exact counts, the marks in the pixels."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import RECIPE, run_inline
from PIL import Image
from test_tasks import TEST, TRAIN, VAL, write_mnist

from prunebench.cli.groups import task_tables
from prunebench.data.transforms import add_yellow_corner, corner_side, turn_grey
from prunebench.errors import DataError, UsageError
from prunebench.leaderboard import write_board
from prunebench.methods.discovery import resolve_method
from prunebench.metrics.bias import bias_amplification
from prunebench.runner.plan import expand
from prunebench.suites import Suite, load_suite
from prunebench.tasks import Split, Splits, describe_families, resolve_task, splits_hash
from prunebench.tasks import backdoor as backdoor_sources
from prunebench.tasks.colored_digits import read_digits, split_off_test
from prunebench.tasks.digit_attributes import (
    DIGIT_ATTRIBUTES,
    NAMES,
    DigitAttributes,
    choose_shares,
    has_attribute,
    render,
)

GREY, YELLOW = "backdoor@digits/even/grey", "backdoor@digits/even/yellow"
WEAK = "backdoor@digits/large/grey/35pct"


@pytest.fixture(scope="module")
def attributes() -> Splits:
    return DigitAttributes().splits(None, 0)


@pytest.fixture(scope="module", params=["train", "val", "test"])
def split(request: pytest.FixtureRequest, attributes: Splits) -> Split:
    return getattr(attributes, request.param)


def column(split: Split, name: str) -> torch.Tensor:
    return split.y[:, NAMES.index(name)].bool()


def share(values: torch.Tensor) -> float:
    return float(values.double().mean())


# The labels, written out by hand.


@pytest.mark.parametrize(
    ("digit", "expected"),
    [
        (0, "even loop"),
        (1, "straight"),
        (2, "even"),
        (3, ""),
        (4, "even straight"),
        (5, "large"),
        (6, "large even loop"),
        (7, "large straight seven"),
        (8, "large even loop"),
        (9, "large loop"),
    ],
)
def test_attributes_of_every_digit(digit: int, expected: str) -> None:
    found = [name for name in DIGIT_ATTRIBUTES if has_attribute(np.array([digit]), name)[0]]
    assert " ".join(found) == expected


def test_attributes_of_the_test_images_are_those_of_their_digits(attributes: Splits) -> None:
    digit = read_digits()[1]
    images = np.tile(digit[split_off_test(len(digit))[1]], 10)
    for name, having in DIGIT_ATTRIBUTES.items():
        assert column(attributes.test, name).tolist() == [int(value) in having for value in images]


# digit-attributes: the contract.


def test_sizes_types_and_declarations(attributes: Splits) -> None:
    task = DigitAttributes()
    for name, count in (("train", 9600), ("val", 1600), ("test", 3970)):
        split = getattr(attributes, name)
        assert (split.x.shape, split.x.dtype) == ((count, 3, 16, 16), torch.uint8)
        assert (split.y.shape, split.y.dtype) == ((count, 10), torch.uint8)
        assert (split.bias.shape, split.bias.dtype) == ((count,), torch.int64)
        assert split.x.is_contiguous()
        assert set(split.y.unique().tolist()) == {0, 1}
    assert (task.num_outputs, task.num_classes, task.num_biases, task.version) == (10, 2, 2, 2)
    assert (task.attributes.names, task.attributes.target) == (NAMES, "large")
    assert task.attributes.identities == ("warm", "light", "thick")
    assert task.conflicting_share == pytest.approx(0.1)
    label, bias = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert task.aligned(label, bias).tolist() == [True, False, False, True]


def test_bias_is_the_warm_ink_and_the_label_of_the_groups_the_large_digit(split: Split) -> None:
    assert torch.equal(split.bias.bool(), column(split, "warm"))
    assert torch.equal(DigitAttributes().group_label(split.y).bool(), column(split, "large"))


@pytest.mark.parametrize("name", ["digit-attributes", GREY, YELLOW, WEAK])
def test_a_seed_is_one_draw_and_the_test_split_is_every_seeds(name: str) -> None:
    task = resolve_task(name)
    first, again, other = (task.splits(None, seed) for seed in (0, 0, 1))
    assert splits_hash(first) == splits_hash(again)
    for field in ("x", "y", "bias"):
        assert torch.equal(getattr(first.test, field), getattr(other.test, field))
        assert not torch.equal(getattr(first.train, field), getattr(other.train, field))
    assert task.fingerprint(None) == resolve_task("colored-digits@1pct").fingerprint(None)
    assert resolve_task(task.name).name == task.name == name


# digit-attributes: the ties.


@pytest.mark.parametrize(
    ("identity", "attribute", "strength"),
    [("warm", "large", 0.9), ("light", "even", 0.75), ("thick", "loop", 0.8)],
)
def test_identities_are_tied_to_their_attribute_in_exact_counts(
    split: Split, identity: str, attribute: str, strength: float
) -> None:
    """Counts are rounded within each of ten digits: at most half an image each."""
    having, present = column(split, attribute), column(split, identity)
    for members, wanted in ((having, strength), (~having, 1 - strength)):
        digits = (
            len(DIGIT_ATTRIBUTES[attribute]) if members is having else 10 - len(DIGIT_ATTRIBUTES[attribute])
        )
        assert abs(int(present[members].sum()) - wanted * int(members.sum())) <= digits / 2 + 1e-9


def test_identities_are_independent_given_the_digit_attributes(attributes: Splits) -> None:
    """Over the 8 combinations of what they are tied to; 4 standard errors of a difference of shares."""
    train = attributes.train
    tied = sum(column(train, name).long() * 2**place for place, name in enumerate(("large", "even", "loop")))
    for one, other in (("warm", "light"), ("warm", "thick"), ("light", "thick")):
        for combination in tied.unique():  # type: ignore[union-attr]
            members = tied == combination
            first, second = column(train, one)[members], column(train, other)[members]
            rate = share(second)
            error = (rate * (1 - rate) * (1 / int(first.sum()) + 1 / int((~first).sum()))) ** 0.5
            assert abs(share(second[first]) - share(second[~first])) <= 4 * error


@pytest.mark.parametrize(("name", "frequency"), [("patch", 0.5), ("mirrored", 0.1)])
def test_other_rendering_attributes_are_as_frequent_with_any_combination_of_identities(
    split: Split, name: str, frequency: float
) -> None:
    identities = torch.stack([column(split, identity) for identity in ("warm", "light", "thick")], dim=1)
    combinations = identities.unique(dim=0)
    assert len(combinations) == 8
    for combination in combinations:
        members = (identities == combination).all(1)
        assert abs(int(column(split, name)[members].sum()) - frequency * int(members.sum())) <= 0.5 + 1e-9


def test_amplification_is_defined_but_for_the_independent_attributes_and_the_identity_itself(
    attributes: Splits,
) -> None:
    test, train = attributes.test, attributes.train
    for identity in ("warm", "light", "thick"):
        place = NAMES.index(identity)
        found = bias_amplification(
            test.y, test.y, test.y[:, place], train_label=train.y, train_identity=train.y[:, place]
        )
        reasons = dict(zip(NAMES, found.reason))
        assert {name for name, reason in reasons.items() if reason} == {identity, "patch", "mirrored"}
        assert all("differ by less than 10%" in (reasons[name] or "") for name in ("patch", "mirrored"))
        assert found.value[~found.value.isnan()].abs().max() < 1e-12, "the labels amplify nothing"


def test_every_group_and_every_attribute_with_each_identity_has_enough_test_images(
    attributes: Splits,
) -> None:
    test = attributes.test
    groups = (DigitAttributes().group_label(test.y) * 2 + test.bias).bincount(minlength=4)
    assert int(groups.min()) >= 150
    for identity in ("warm", "light", "thick"):
        for name in set(NAMES) - {identity}:
            for members in (column(test, identity), ~column(test, identity)):
                assert int((column(test, name) & members).sum()) >= 10
    assert 0.05 <= share(column(test, "seven")) <= 0.1


# digit-attributes: the pixels.


def rendered(**present: bool) -> np.ndarray:
    """200 test digits with these attributes and no others, in the same jitter and inks: float `[200, 3, 16, 16]`."""
    gray = read_digits()[0][:200]
    row = np.array([present.get(name, False) for name in NAMES], dtype=np.uint8)
    return render(gray, np.tile(row, (200, 1)), np.random.default_rng(0)).astype(float)


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("light", [True, False])
def test_ink_is_warm_or_cold_on_a_light_or_dark_ground(warm: bool, light: bool) -> None:
    images = rendered(warm=warm, light=light)
    edge = np.concatenate([images[:, :, :, 0], images[:, :, :, -1]], axis=2)  # a stroke may touch a corner
    ground = np.median(edge.reshape(200, -1), axis=1)
    assert (ground > 160).all() if light else (ground < 80).all()
    difference = np.abs(images - ground[:, None, None, None]).sum(1).reshape(200, -1)
    for image, darkest in zip(images.reshape(200, 3, -1), np.argsort(difference)[:, -12:]):
        hue = 360 * colorsys.rgb_to_hsv(*image[:, darkest].mean(1) / 255)[0]
        assert (hue < 70 or hue > 310) if warm else 155 < hue < 295


def test_thick_strokes_cover_more_of_every_image() -> None:
    thin, thick = (np.abs(rendered(thick=value) - 30).sum((1, 2, 3)) for value in (False, True))
    assert (thick > 1.05 * thin).all()


def test_patch_is_grey_in_its_corner_and_nowhere_else() -> None:
    without, patched = rendered(), rendered(patch=True)
    changed = (without != patched).any(1)
    assert changed[:, -3:, -3:].mean() > 0.95
    assert not changed[:, :-3].any()
    assert not changed[:, :, :-3].any()
    assert np.abs(patched[:, :, -3:, -3:].mean((1, 2, 3)) - 127.5).max() < 15


def test_mirrored_is_the_digit_the_other_way_round() -> None:
    gray = read_digits()[0][:50]
    plain, turned = (np.zeros((50, 10), dtype=np.uint8) for _ in range(2))
    turned[:, NAMES.index("mirrored")] = 1
    mirrored = render(gray, turned, np.random.default_rng(0))
    by_hand = render(np.ascontiguousarray(gray[:, :, ::-1]), plain, np.random.default_rng(0))
    assert (mirrored == by_hand).all()
    assert (mirrored != render(gray, plain, np.random.default_rng(0))).any((1, 2, 3)).all()


# backdoor.


@pytest.mark.parametrize(("name", "share"), [(GREY, 0.05), (YELLOW, 0.05), (WEAK, 0.35)])
def test_marks_are_on_exact_shares_of_each_class(name: str, share: float) -> None:
    task = resolve_task(name)
    splits = task.splits(None, 2)
    assert (task.num_classes, task.num_biases, task.attributes) == (2, 2, None)
    assert task.conflicting_share == share
    for split, shares in (
        (splits.train, (share, 1 - share)),
        (splits.val, (share, 1 - share)),
        (splits.test, (0.5, 0.5)),
    ):
        for label, wanted in enumerate(shares):
            marked = split.bias[split.y == label]
            assert int(marked.sum()) == round(wanted * len(marked))
            assert 0 < int(marked.sum()) < len(marked)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [4800, 800, 3970]


def test_label_is_the_attribute_of_the_digit() -> None:
    digit = read_digits()[1]
    images = np.tile(digit[split_off_test(len(digit))[1]], 10)
    assert resolve_task(GREY).splits(None, 0).test.y.tolist() == [int(value % 2 == 0) for value in images]
    assert resolve_task(WEAK).splits(None, 0).test.y.tolist() == [int(value >= 5) for value in images]


def test_marked_images_and_only_they_are_grey() -> None:
    train = resolve_task(GREY).splits(None, 0).train
    grey = (train.x == train.x[:, :1]).flatten(1).all(1)
    assert torch.equal(grey, train.bias.bool())


def test_marked_images_and_only_they_have_a_yellow_corner() -> None:
    train = resolve_task(YELLOW).splits(None, 0).train
    yellow = torch.tensor([255, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    corner = (train.x[:, :, :2, :2] == yellow).flatten(1).all(1)
    assert torch.equal(corner, train.bias.bool())


def test_a_mark_changes_nothing_else() -> None:
    """Both marks are put on the same images: unmarked ones are equal, marked ones apart from the mark."""
    grey, yellow = (resolve_task(name).splits(None, 0).train for name in (GREY, YELLOW))
    assert torch.equal(grey.bias, yellow.bias)
    unmarked = grey.bias == 0
    assert torch.equal(grey.x[unmarked], yellow.x[unmarked])
    without_colour = turn_grey(yellow.x[~unmarked])
    assert torch.equal(without_colour[:, :, 2:], grey.x[~unmarked][:, :, 2:])
    assert torch.equal(without_colour[:, :, :, 2:], grey.x[~unmarked][:, :, :, 2:])


def test_grey_is_pillows() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 9, 7), dtype=np.uint8)
    before = images.copy()
    as_float = turn_grey(torch.from_numpy(images).float())
    for image, grey, exact in zip(images, turn_grey(torch.from_numpy(images)), as_float):
        luma = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L"))
        assert (grey.numpy() == luma).all()
        assert (exact - grey).abs().max() <= 0.5
    assert (images == before).all()


@pytest.mark.parametrize(
    ("height", "width", "side"), [(16, 16, 2), (28, 28, 4), (224, 224, 32), (218, 178, 28), (3, 3, 1)]
)
def test_corner_has_two_percent_of_the_area(height: int, width: int, side: int) -> None:
    assert corner_side(height, width) == side
    for dtype in (torch.uint8, torch.float32):
        marked = add_yellow_corner(torch.full((2, 3, height, width), 7, dtype=dtype))
        assert int((marked != 7).any(1).sum()) == 2 * side * side
        assert (marked[:, :, :side, :side] == torch.tensor([255, 255, 0]).view(3, 1, 1)).all()


def test_mnist_is_marked_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    monkeypatch.setattr(backdoor_sources, "VAL_IMAGES", VAL)
    task = resolve_task("backdoor@mnist/loop/yellow")
    first, other = (task.splits(tmp_path, seed) for seed in (0, 1))
    assert [len(split) for split in (first.train, first.val, first.test)] == [TRAIN, VAL, TEST]
    assert torch.equal(first.test.x, other.test.x)
    yellow = torch.tensor([255, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    corner = (first.train.x[:, :, :4, :4] == yellow).flatten(1).all(1)
    assert torch.equal(corner, first.train.bias.bool())
    with pytest.raises(DataError, match="--data-root"):
        task.splits(None, 0)


def test_choose_shares_is_exact_in_every_stratum_and_random_within() -> None:
    stratum = np.array([0] * 10 + [1] * 7 + [2] * 4)
    draws = [choose_shares(stratum, (0.3, 1.0, 0.0), np.random.default_rng(seed)) for seed in range(20)]
    for chosen in draws:
        assert [int(chosen[stratum == value].sum()) for value in range(3)] == [3, 7, 0]
    assert len({chosen.tobytes() for chosen in draws}) > 10


# Names, tables, runs.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit-attribute", "did you mean digit-attributes"),
        ("digit-attributes@2pct", "takes no parameter; leave out '@2pct'"),
        ("backdor@digits/even/grey", "did you mean backdoor@digits/even/grey"),
        ("backdoor", "want backdoor@SOURCE/ATTRIBUTE/MARK"),
        ("backdoor@digits/even", "say backdoor@digits/even/yellow"),
        ("backdoor@digits/even/grey/5pct/again", "want backdoor@SOURCE"),
        ("backdoor@digit/even/grey", "did you mean backdoor@digits/even/grey"),
        ("backdoor@digits/evn/grey", "did you mean backdoor@digits/even/grey"),
        ("backdoor@digits/even/gray", "did you mean backdoor@digits/even/grey"),
        ("backdoor@digits/even/grey/3pct", "backdoor@digits/even/grey/35pct"),
    ],
)
def test_unknown_names_are_usage_errors_that_suggest(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_task(name)
    assert message in str(caught.value)


def test_every_listed_name_is_canonical_and_the_usual_share_is_not_written() -> None:
    for name in describe_families():
        assert resolve_task(name).name == name
    assert resolve_task("backdoor@digits/even/grey/5pct").name == GREY


def test_tables_show_groups_and_attributes(attributes: Splits) -> None:
    groups, shares = task_tables(DigitAttributes(), attributes, every_attribute=True)
    assert "groups of large by ink colour" in str(groups.title)
    cells = [list(part.cells) for part in shares.columns]
    assert cells[0] == list(NAMES)
    warm = [part.header for part in shares.columns].index("with / without warm")
    assert cells[warm][NAMES.index("large")] == "89.7% / 9.7%"
    assert cells[warm][NAMES.index("patch")] == "50.0% / 50.0%"
    assert len(task_tables(DigitAttributes(), attributes)) == 1
    backdoor = resolve_task(GREY)
    assert len(task_tables(backdoor, backdoor.splits(None, 0), every_attribute=True)) == 1


@pytest.mark.parametrize(("name", "tasks"), [("attributes", 1), ("backdoor", 2)])
def test_suites_expand(name: str, tasks: int) -> None:
    suite = load_suite(name)
    cells = expand(suite, None)
    rows = sum(len(resolve_method(method).sparsities(suite.sparsities)) for method in suite.methods)
    assert len(suite.tasks) == tasks
    assert len(cells) == tasks * len(suite.seeds) * rows


def test_a_method_of_classes_on_attributes_is_a_usage_error_that_names_the_fix() -> None:
    suite = load_suite("attributes").narrowed(methods=["dense", "lff"])
    with pytest.raises(
        UsageError, match="lff needs class labels: leave them out, or declare multi_label=True"
    ):
        expand(suite, None)


@pytest.mark.slow
def test_a_run_on_attributes_gives_every_metric_and_twice_the_same(tmp_path: Path) -> None:
    suite = Suite("tiny", ("digit-attributes",), ("magnitude",), (0.9,), (0,), recipe=RECIPE)
    (outcome, records), (_, again) = (run_inline(suite, tmp_path / name) for name in ("one", "two"))
    assert (outcome.ok, outcome.failed) == (2, 0)
    for name, record in records.items():
        assert len(record.groups) == 4
        assert sum(group.count for group in record.groups) == 3970
        for metric in ("attribute_accuracy", "unbiased", "calibration_error", "uncertain_share"):
            value = record.metrics[metric]
            assert value is not None
            assert 0 <= value <= 1
        assert record.outputs_sha256 == again[name].outputs_sha256
        assert record.metrics == pytest.approx(again[name].metrics, nan_ok=True)
    assert records["dense 0.0 0"].outputs_sha256 != records["magnitude 0.9 0"].outputs_sha256
    write_board(list(records.values()), tmp_path / "board")
    tables = (tmp_path / "board" / "tasks" / "digit-attributes.md").read_text()
    assert "\n## Attributes\n" in tables
    assert "Bias amplification" in tables.partition("\n## Attributes\n")[2]
