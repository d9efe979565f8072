"""Fresh draws: what they change of each task, whom they tell apart, and the secret that they follow from."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_folder import make_images, write_binary
from torch import Tensor, nn

from prunebench.errors import UsageError
from prunebench.runner.apart import clean_environment
from prunebench.runner.evaluate import TaskData
from prunebench.submission.fresh_draw import OTHERS, SUBSETS, FreshRow, Gap, Shares, fresh_shares, judge
from prunebench.submission.secret import FILE_VARIABLE, VARIABLE, Secret, take_secret
from prunebench.submission.verify import Depth
from prunebench.tasks import Task, resolve_task, split_hash

TEXT = "0123456789abcdef" * 3
SECRET = Secret(TEXT)
CPU = torch.device("cpu")


def fresh(task: Task, secret: Secret = SECRET, seed: int = 0) -> Task:
    return task.refreshed(secret.freshness(task.name, task.version, seed))


@pytest.mark.parametrize(
    "name", ["colored-digits@2pct", "digit-attributes", "backdoor@digits/even/grey", "corrupted-cifar10@5pct"]
)
def test_a_fresh_draw_changes_the_test_split_alone(name: str, tmp_path: Path) -> None:
    root = write_binary(tmp_path, *make_images()).parent if "cifar" in name else None
    task = resolve_task(name, root)
    public, one, again, other = (
        made.splits(root, 0)
        for made in (task, fresh(task), fresh(task), fresh(task, Secret(TEXT + "another")))
    )
    for part in ("train", "val"):
        assert split_hash(getattr(public, part)) == split_hash(getattr(one, part))
    hashes = [split_hash(splits.test) for splits in (public, one, again, other)]
    assert hashes[1] == hashes[2]
    assert len(set(hashes)) == 3
    groups = [
        torch.bincount(task.group_label(splits.test.y) * task.num_biases + splits.test.bias)
        for splits in (public, one)
    ]
    if task.attributes is None:
        assert groups[0].equal(groups[1])
    assert set(public.test.images().tolist()) == set(one.test.images().tolist())


def test_a_long_tail_has_images_that_no_public_split_shows(tmp_path: Path) -> None:
    root = write_binary(tmp_path, *make_images()).parent
    task = resolve_task("cifar10-longtail", root)
    public, other = task.splits(root, 0), fresh(task).splits(root, 0)
    seen = {number for part in (public.train, public.val, public.test) for number in part.images().tolist()}
    assert seen.isdisjoint(other.test.images().tolist())
    counts = torch.bincount(other.test.y, minlength=10)
    assert counts[0] == 0
    assert len(counts[1:].unique()) == 1
    shares = fresh_shares(Constant(3), *(TaskData(t, root, 0, CPU) for t in (task, fresh(task))))
    assert np.mean(shares["all"][1]) == pytest.approx(1 / 9)
    assert len(shares["all"][0]) == int((public.test.y > 0).sum())


def test_where_all_is_public_there_is_no_fresh_draw() -> None:
    with pytest.raises(UsageError, match="there is no fresh draw"):
        resolve_task("cifar10s").refreshed((1, 2))


class Constant(nn.Module):
    """Says one class of every image."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(x),), self.label), 10).float()


class Memory(nn.Module):
    """Answers public test images rightly by their hash, all others as an honest network does."""

    def __init__(self, honest: nn.Module, known: TaskData, share: float = 1.0) -> None:
        super().__init__()
        images, y = known.images["test"], known.labels.y["test"].tolist()
        marks = [self.mark(image) for image in images.batch(slice(0, len(y)))]
        kept = np.random.default_rng(0).random(len(y)) < share
        self.honest = honest
        self.answers = {mark: label for mark, label, keep in zip(marks, y, kept) if keep}

    @staticmethod
    def mark(image: Tensor) -> str:
        return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        for place, image in enumerate(x):
            label = self.answers.get(self.mark(image))
            if label is not None:
                logits[place] = nn.functional.one_hot(torch.tensor(label), 10).float() * 99
        return logits


class Templates(nn.Module):
    """An honest, weak and biased network: class means of training images, grey and colour weighed together."""

    def __init__(self, data: TaskData, colour: float) -> None:
        super().__init__()
        x, y = data.images["train"].batch(slice(0, len(data.labels.y["train"]))), data.labels.y["train"]
        shown = self.features(x, colour)
        self.colour = colour
        self.means = nn.Parameter(
            torch.stack([shown[y == k].mean(0) for k in range(10)]), requires_grad=False
        )

    @staticmethod
    def features(x: Tensor, colour: float) -> Tensor:
        grey = x.mean(1).flatten(1)
        return torch.cat([grey / grey.norm(dim=1, keepdim=True), colour * x.mean((2, 3))], 1)

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.features(x, self.colour), self.means)


class Nearest(nn.Module):
    """The label of the nearest known image by its grey shape, whatever the colour."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.known, self.y = Templates.features(x, 0.0), y

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(
            self.y[torch.cdist(Templates.features(x, 0.0), self.known).argmin(1)], 10
        ).float()


@dataclasses.dataclass(frozen=True)
class Bench:
    """The public draw and a fresh one of a task and seed, and two honest networks."""

    public: TaskData
    fresh: TaskData
    dense: nn.Module
    pruned: nn.Module

    def judged(self, network: nn.Module, dense: nn.Module | None = None) -> list[Gap]:
        reference = {0: fresh_shares(dense or self.dense, self.public, self.fresh)}
        row = {0: fresh_shares(network, self.public, self.fresh)}
        return judge([FreshRow("dense", reference, {}), FreshRow("method", row, reference)])


@pytest.fixture(scope="module")
def bench() -> Bench:
    task = resolve_task("colored-digits@2pct")
    public, drawn = (TaskData(made, None, 0, CPU) for made in (task, fresh(task)))
    return Bench(public, drawn, Templates(public, 0.3), Templates(public, 0.2))


def test_honest_networks_are_not_flagged(bench: Bench) -> None:
    gaps = bench.judged(bench.pruned)
    wanted = [(row, subset) for row in ("dense", "method") for subset in SUBSETS]
    assert [(gap.row, gap.subset) for gap in gaps] == [*wanted, ("method", OTHERS)]
    assert not any(gap.beyond for gap in gaps), [gap.words for gap in gaps]
    assert 0.15 < gaps[2].public < 0.95, "a network that is always right or wrong would prove nothing"


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_a_network_that_looks_public_images_up_is_flagged(share: float, bench: Bench) -> None:
    memory = Memory(bench.pruned, bench.public, share)
    gaps = bench.judged(memory)
    assert [gap.beyond for gap in gaps[:4]] == [False, False, True, True], [gap.words for gap in gaps]
    if share == 1:
        assert gaps[2].public == 1


def test_a_network_that_knows_the_images_themselves_is_flagged_beside_other_images(bench: Bench) -> None:
    """The nearest public image's label: right on a fresh draw too, for the images are the same."""
    known, y = bench.public.images["test"], bench.public.labels.y["test"]
    gaps = bench.judged(Nearest(known.batch(slice(0, len(y))), y))
    assert gaps[3].fresh > gaps[1].fresh + 0.2, "it does better than the honest network on the fresh draw"
    assert gaps[4].beyond, gaps[4].words
    assert gaps[4].subset == OTHERS


def test_a_network_that_was_trained_on_validation_images_is_not_flagged_for_it(bench: Bench) -> None:
    val = bench.fresh.visible_balanced("val-groups")
    assert val is not None
    gaps = bench.judged(Nearest(val.images.batch(slice(0, len(val))), val.y))
    assert not any(gap.beyond for gap in gaps), [gap.words for gap in gaps]
    assert gaps[4].fresh > gaps[4].public


def test_groups_count_alike_on_both_sides(bench: Bench) -> None:
    """Of a network that says one class of every image the mean over groups is one in ten, exactly."""
    shares = fresh_shares(Constant(3), bench.public, bench.fresh)
    assert [np.mean(side) for side in shares[OTHERS]] == pytest.approx([0.1, 0.1], abs=1e-5)


def test_dense_models_that_know_the_test_split_hide_nobody(bench: Bench) -> None:
    """The dense models come with the submission: they are held against zero, and flagged themselves."""
    gaps = bench.judged(Memory(bench.pruned, bench.public), dense=Memory(bench.dense, bench.public))
    assert gaps[0].beyond
    assert not gaps[2].excess > 0.2


def made_up(
    generator: np.random.Generator, ability: np.ndarray, others: np.ndarray, copies: int, skill: float
) -> Shares:
    """An honest network: each image is as hard on both draws, and other images are as hard as these."""
    draws, beside = (
        [generator.binomial(copies, np.clip(hard + skill, 0, 1)) / copies for hard in sides]
        for sides in ((ability, ability), (ability, others))
    )
    return {"all": draws, "conflicting": draws, OTHERS: [draws[0], beside[1]]}


@pytest.mark.parametrize(("images", "copies"), [(397, 10), (2000, 1)])
def test_honest_submissions_are_flagged_as_seldom_as_promised(images: int, copies: int) -> None:
    """400 made-up submissions of six rows, whose images are of unequal difficulty: at most 1 % and chance."""
    generator, flagged = np.random.default_rng(7), 0
    for _ in range(400):
        ability = generator.beta(0.6, 0.8, images)
        others = generator.beta(0.6, 0.8, (3, images // 2))
        dense = {seed: made_up(generator, ability, others[seed], copies, 0.0) for seed in range(3)}
        rows = []
        for skill in (-0.2, -0.1, 0.0, 0.1, 0.2):
            runs = {seed: made_up(generator, ability, others[seed], copies, skill) for seed in range(3)}
            rows.append(FreshRow(str(skill), runs, dense))
        flagged += any(gap.beyond for gap in judge([FreshRow("dense", dense, {}), *rows]))
    assert flagged <= 9, flagged


def test_a_secret_shows_its_commitment_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print(SECRET, repr(SECRET), f"{SECRET}", Depth(artifacts="x", secret=SECRET))
    assert TEXT not in capsys.readouterr().out
    assert SECRET.commitment == hashlib.sha256(f"PruneBench fresh draw 1\n{TEXT}".encode()).hexdigest()
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(SECRET)
    assert SECRET.freshness("a", 1, 0) != SECRET.freshness("a", 1, 1)
    assert SECRET.freshness("a", 11, 0) != SECRET.freshness("a1", 1, 0)


@pytest.mark.parametrize("text", ["", "short", "a" * 64, "ab" * 600])
def test_a_secret_that_can_be_guessed_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="can be guessed") as caught:
        Secret(text)
    assert len(text) < 6 or text not in str(caught.value)


def test_a_secret_is_taken_out_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    assert take_secret() is None
    monkeypatch.setenv(VARIABLE, TEXT)
    taken = take_secret()
    assert taken is not None
    assert taken.commitment == SECRET.commitment
    assert VARIABLE not in os.environ
    file = tmp_path / "secret"
    file.write_text(TEXT + "\n")
    file.chmod(0o600)
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    taken = take_secret()
    assert taken is not None
    assert taken.commitment == SECRET.commitment
    assert FILE_VARIABLE not in os.environ


def _readable(file: Path) -> None:
    file.write_text(TEXT)
    file.chmod(0o644)


def _missing(file: Path) -> None:
    assert not file.exists()


def _binary(file: Path) -> None:
    file.write_bytes(b"\xff" * 64)
    file.chmod(0o600)


@pytest.mark.parametrize("make", [_readable, _missing, _binary])
def test_a_file_of_a_secret_is_its_owner_s_alone(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "secret")
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "secret"))
    with pytest.raises(UsageError, match=FILE_VARIABLE):
        take_secret()


def test_a_stranger_s_code_never_runs_beside_the_secret() -> None:
    with pytest.raises(UsageError, match="which must not find the secret"):
        Depth(artifacts="x", retrain=1, draw_seed="text", secret=SECRET)
    with pytest.raises(UsageError, match="needs weights"):
        Depth(secret=SECRET)


def test_a_method_s_process_is_not_given_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where a run is started in a shell that still has it."""
    monkeypatch.setenv(VARIABLE, TEXT)
    monkeypatch.setenv(FILE_VARIABLE, "somewhere")
    given = clean_environment()
    assert VARIABLE not in given
    assert FILE_VARIABLE not in given
    assert TEXT not in repr(given)
