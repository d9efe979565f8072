"""Corrupted CIFAR-10: its three forms on disk, the protocol of its splits, the cache, and bad input."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_folder import make_images, pickled_batch, planes_of, write_binary, write_mosaics, write_python

from prunebench.errors import DataError, UsageError
from prunebench.tasks import corruptions as corruptions_module
from prunebench.tasks import resolve_task, splits_hash
from prunebench.tasks.base import Splits
from prunebench.tasks.cifar10 import Cifar10, read_cifar10
from prunebench.tasks.corrupted_cifar10 import CorruptedCifar10
from prunebench.tasks.corruptions import TYPE_0, TYPE_1, corrupt

Folder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images in the Python version, 100 a batch."""
    folder = tmp_path_factory.mktemp("cifar")
    write_python(folder, *make_images(100))
    return folder


@pytest.fixture
def splits(root: Path) -> Splits:
    return resolve_task("corrupted-cifar10@5pct").splits(root, 0)


# --- reading -----------------------------------------------------------------------------------------------


def test_a_batch_is_what_python_2_wrote() -> None:
    images, labels = make_images(10)
    read = pickle.loads(pickled_batch(planes_of(images[:10]), labels[:10]), encoding="bytes")
    np.testing.assert_array_equal(read[b"data"], planes_of(images[:10]))
    assert read[b"labels"] == labels[:10].tolist()


@pytest.mark.parametrize("write", [write_python, write_binary, write_mosaics])
def test_all_forms_hold_the_same_images(write: Folder, tmp_path: Path) -> None:
    images, labels = make_images(20)
    write(tmp_path, images, labels)
    read = read_cifar10(tmp_path)
    np.testing.assert_array_equal(read.images, images)
    np.testing.assert_array_equal(read.labels, labels)
    assert read.train == 100


def test_the_fingerprint_is_of_the_data_and_mosaics_say_so(tmp_path: Path) -> None:
    task = resolve_task("corrupted-cifar10@1pct")
    found = {}
    for name, write in (("py", write_python), ("bin", write_binary), ("mosaics", write_mosaics)):
        write(tmp_path / name, *make_images(20))
        found[name] = task.fingerprint(tmp_path / name)
    assert found["py"] == found["bin"]
    assert len(found["py"]) == 16
    assert found["mosaics"] == f"mosaics-{found['py']}"
    write_binary(tmp_path / "other", *make_images(20, seed=1))
    assert task.fingerprint(tmp_path / "other") != found["py"]


def test_a_batch_pickled_again_by_python_3_is_read(tmp_path: Path) -> None:
    images, labels = make_images(10)
    folder = write_python(tmp_path, images, labels)
    values = {
        "labels": labels[:10].tolist(),
        "data": planes_of(images[:10]),
        "batch_label": "training batch 1 of 5",
    }
    (folder / "data_batch_1").write_bytes(pickle.dumps(values, protocol=2))
    np.testing.assert_array_equal(read_cifar10(tmp_path).images, images)


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    folder = write_python(tmp_path, *make_images(10))
    harm = tmp_path / "harm"
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": Harmful(harm), "labels": [0]}))
    with pytest.raises(DataError, match=r"data_batch_2.*system.*fetch CIFAR-10 again"):
        read_cifar10(tmp_path)
    assert not harm.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}.",
        pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 300]}, protocol=2),
        pickle.dumps({"data": [1, 2], "labels": [0, 1]}, protocol=2),
    ],
    ids=["empty", "no data", "floats", "short rows", "fewer labels", "label 300", "a list"],
)
def test_a_damaged_batch_is_named(content: bytes, tmp_path: Path) -> None:
    folder = write_python(tmp_path, *make_images(10))
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_3.*fetch CIFAR-10 again"):
        read_cifar10(tmp_path)


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-root"):
        read_cifar10(None)
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        read_cifar10(tmp_path)
    folder = write_binary(tmp_path, *make_images(10))
    (folder / "test_batch.bin").write_bytes(b"\x00" * 100)
    with pytest.raises(DataError, match=r"100 bytes are no whole images"):
        read_cifar10(tmp_path)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4.bin.*No such file"):
        read_cifar10(tmp_path)
    images, labels = make_images(10)
    write_binary(tmp_path / "ten", images, labels + 1)
    with pytest.raises(DataError, match="label 10 is not a class"):
        read_cifar10(tmp_path / "ten")


def test_damaged_mosaics(tmp_path: Path) -> None:
    folder = write_mosaics(tmp_path, *make_images(10))
    np.savez(folder / "labels.npz", y_train=np.zeros(3, np.uint8), y_test=np.zeros(1, np.uint8))
    with pytest.raises(DataError, match="do not fit together"):
        read_cifar10(tmp_path)
    (folder / "train_2.webp").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"cifar10.*put its files back"):
        read_cifar10(tmp_path)


# --- the protocol ------------------------------------------------------------------------------------------


def test_names() -> None:
    assert resolve_task("corrupted-cifar10@0.5pct").family is TYPE_0  # type: ignore[attr-defined]
    noisy = resolve_task("corrupted-cifar10-type1@2pct")
    assert isinstance(noisy, CorruptedCifar10)
    assert (noisy.family, noisy.name, noisy.version) == (TYPE_1, "corrupted-cifar10-type1@2pct", 2)
    assert (noisy.model, noisy.bias_name, noisy.conflicting_share) == ("resnet18", "corruption", 0.02)
    for name in ("corrupted-cifar10", "corrupted-cifar10@3pct", "corrupted-cifar10-type2@1pct"):
        with pytest.raises(UsageError):
            resolve_task(name)


def test_training_and_validation_carry_the_bias(root: Path) -> None:
    for share in (0.02, 0.05):
        drawn = CorruptedCifar10(share).splits(root, 0)
        assert [len(split) for split in (drawn.train, drawn.val, drawn.test)] == [450, 50, 100]
        labels = torch.cat([drawn.train.y, drawn.val.y])
        assert torch.bincount(labels).tolist() == [50] * 10
        conflicting = int((drawn.train.y != drawn.train.bias).sum())
        assert conflicting == pytest.approx(share * 450, abs=10)
        assert int((drawn.val.y != drawn.val.bias).sum()) <= 10


def test_the_test_split_has_every_pair_equally_often_for_every_seed(root: Path) -> None:
    first, second = (CorruptedCifar10(share).splits(root, seed) for share, seed in ((0.01, 0), (0.05, 1)))
    assert torch.equal(first.test.x, second.test.x)
    assert torch.equal(first.test.bias, second.test.bias)
    assert torch.bincount(first.test.y * 10 + first.test.bias).tolist() == [1] * 100
    assert not torch.equal(first.train.x, second.train.x)


def test_every_image_shows_its_corruption(root: Path, splits: Splits) -> None:
    source = read_cifar10(root)
    order = np.random.default_rng([0, 69_621]).permutation(source.train)
    train = order[50:]
    np.testing.assert_array_equal(source.labels[train], splits.train.y.numpy())
    for place in range(10):
        here = np.flatnonzero(splits.train.bias.numpy() == place)
        want = corrupt(TYPE_0[place], source.images[train[here]], train[here])
        np.testing.assert_array_equal(splits.train.x.permute(0, 2, 3, 1)[here].numpy(), want)


def test_the_same_seed_gives_the_same_splits(root: Path, splits: Splits) -> None:
    again = resolve_task("corrupted-cifar10@5pct").splits(root, 0)
    assert splits_hash(again) == splits_hash(splits)
    other = resolve_task("corrupted-cifar10-type1@5pct").splits(root, 0)
    assert torch.equal(other.train.y, splits.train.y)
    assert splits_hash(other) != splits_hash(splits)


# --- the cache ---------------------------------------------------------------------------------------------


def test_corrupted_images_are_made_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    original = corruptions_module.corrupt

    def counted(corruption, images, positions):  # type: ignore[no-untyped-def]
        made.append((corruption.name, len(images)))
        return original(corruption, images, positions)

    monkeypatch.setattr(corruptions_module, "corrupt", counted)
    first = CorruptedCifar10(0.01).splits(root, 0)
    kept = [(entry.name, 60) for entry in TYPE_0]  # 50 training and 10 test images of each
    assert sorted(made)[: len(kept)] != []
    assert all(entry in made for entry in kept)
    made.clear()
    second = CorruptedCifar10(0.01).splits(root, 0)
    assert splits_hash(first) == splits_hash(second)
    assert sum(count for _, count in made) <= 20  # the conflicting ones alone
    assert len(list((tmp_path / "cache" / "corrupted").glob("*.safetensors"))) == 10


def test_a_damaged_file_is_made_again_and_a_killed_one_leaves_no_trace(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = corruptions_module.corrupt

    def killed(corruption, images, positions):  # type: ignore[no-untyped-def]
        if corruption.name == "spatter":
            raise KeyboardInterrupt
        return original(corruption, images, positions)

    with monkeypatch.context() as patch:
        patch.setattr(corruptions_module, "corrupt", killed)
        with pytest.raises(KeyboardInterrupt):
            CorruptedCifar10(0.01).splits(root, 0)
    folder = tmp_path / "cache" / "corrupted"
    assert len(list(folder.glob("*.safetensors"))) == 5  # snow to contrast
    want = splits_hash(CorruptedCifar10(0.01).splits(root, 0))
    path = next(folder.glob("*-fog-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    assert splits_hash(CorruptedCifar10(0.01).splits(root, 0)) == want
    path.write_bytes(data[:100])
    assert splits_hash(CorruptedCifar10(0.01).splits(root, 0)) == want


def test_a_file_that_another_process_makes_is_taken_up_last(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    order: list[str] = []
    original = corruptions_module.corrupt
    fingerprint = CorruptedCifar10(0.01).fingerprint(root)
    folder = tmp_path / "cache" / "corrupted"
    folder.mkdir(parents=True)
    lock = FileLock(folder / f"{fingerprint}-snow-v2.safetensors.lock")
    lock.acquire()

    def noted(corruption, images, positions):  # type: ignore[no-untyped-def]
        order.append(corruption.name)
        if corruption.name == "saturate":
            lock.release()
        return original(corruption, images, positions)

    monkeypatch.setattr(corruptions_module, "corrupt", noted)
    CorruptedCifar10(0.01).splits(root, 0)
    assert order[:10] == [*(entry.name for entry in TYPE_0[1:]), "snow"]


def test_a_folder_that_cannot_be_written_to(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="PRUNEBENCH_CACHE"):
        CorruptedCifar10(0.01).splits(root, 0)


def test_too_small_to_split(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = make_images(10)
    small = Cifar10(images[:3], labels[:3].astype(np.int64), 2, official=True)
    monkeypatch.setattr("prunebench.tasks.cifar10.read_cifar10", lambda _: small)
    with pytest.raises(DataError, match="too small"):
        CorruptedCifar10(0.01).splits(root, 0)


# --- real data ---------------------------------------------------------------------------------------------


def test_the_real_data() -> None:
    given = os.environ.get("PRUNEBENCH_DATA")
    if not given:
        pytest.skip("PRUNEBENCH_DATA is not set")
    try:
        source = read_cifar10(Path(given))
    except DataError as error:
        pytest.skip(str(error))
    assert (len(source.labels), source.train) == (60_000, 50_000)
    assert np.bincount(source.labels[: source.train]).tolist() == [5000] * 10
    drawn = CorruptedCifar10(0.01).splits(Path(given), 0)
    assert [len(split) for split in (drawn.train, drawn.val, drawn.test)] == [45_000, 5_000, 10_000]
    assert torch.bincount(drawn.test.y * 10 + drawn.test.bias).tolist() == [100] * 100
    assert int((drawn.train.y != drawn.train.bias).sum()) == 450
