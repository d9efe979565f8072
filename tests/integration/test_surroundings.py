"""Suites in any locale, seeds, sparsities by value, terminals, odd folders of images, extra seeds on a board."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from board_records import full_records, run
from celeba_folder import labels_of, partition_of, write_celeba, write_csv
from helpers import TASK, tiny_suite
from PIL import Image
from typer.testing import CliRunner

from prunebench.cli.console import speak_plainly
from prunebench.cli.main import app
from prunebench.errors import DataError, UsageError
from prunebench.leaderboard import build_board
from prunebench.pruning.masks import check_feasible
from prunebench.results.spec import number_text
from prunebench.suites import load_suite
from prunebench.tasks import resolve_task
from prunebench.tasks.celeba import read_listing

SUITE = f"""description = "Größe, über 90 %"
tasks = ["{TASK}"]
methods = ["dense"]
sparsities = [0.9]
seeds = [0]
[recipe]
steps = 6
finetune_steps = 3
batch_size = 32
"""


def prunebench(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "prunebench.cli.main", *words]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment})


# Suites


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_suite_is_utf8_in_every_locale(tmp_path: Path, bom: bytes) -> None:
    path = tmp_path / "tiny.toml"
    path.write_bytes(bom + SUITE.encode())
    assert load_suite(str(path)).description == "Größe, über 90 %"
    code = f"from prunebench.suites import load_suite; print(len(load_suite({str(path)!r}).description))"
    for words in ({"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"}):
        done = subprocess.run(
            [
                sys.executable,
                "-X",
                "warn_default_encoding",
                "-W",
                "error::EncodingWarning:prunebench",
                "-c",
                code,
            ],
            env={**os.environ, **words},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout.strip()) == (0, "16"), done.stderr


def test_a_suite_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_bytes(SUITE.encode("cp1252"))
    with pytest.raises(UsageError, match=r"not valid TOML \(in UTF-8\)"):
        load_suite(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seeds = [true]", "seeds.0: want a whole number, got true"),
        ('seeds = ["0"]', "seeds.0: want a whole number, got 0"),
        ("seeds = [0.0]", "seeds.0: want a whole number, got 0.0"),
        (f"seeds = [{2**64}]", "seeds must be whole numbers below 2"),
        (f"seeds = [{2**63}]", "seeds must be whole numbers"),
        ("seeds = [-1]", "seeds must be 0 or more, got -1"),
        ("sparsities = [true]", "sparsities.0: want a number, got true"),
        ("sparsities = [nan]", r"sparsity must be in \[0, 1\), got nan"),
        ("sparsities = [1.0]", r"sparsity must be in \[0, 1\), got 1"),
    ],
)
def test_odd_numbers_of_a_suite_are_usage_errors(tmp_path: Path, line: str, message: str) -> None:
    key = line.split()[0]
    text = "\n".join(line if row.startswith(key) else row for row in SUITE.splitlines())
    (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_suite(str(tmp_path / "tiny.toml"))


@pytest.mark.parametrize("seed", [2**64, 2**63, -1, True, 0.0, "0"])
def test_odd_seeds_however_a_suite_is_made(seed: object) -> None:
    with pytest.raises(UsageError, match=r"seeds must be (whole numbers below|0 or more)"):
        tiny_suite("dense", seeds=(seed,))  # type: ignore[arg-type]


def test_the_largest_seed_runs(tmp_path: Path) -> None:
    from helpers import run_inline

    _, records = run_inline(tiny_suite("magnitude", seeds=(2**63 - 1,)), tmp_path)
    assert {record.status for record in records.values()} == {"ok"}


def test_numbers_are_told_by_value() -> None:
    told = {
        0.9: "0.9",
        0.98: "0.98",
        0.0: "0",
        0.9999999: "0.9999999",
        1 - 1e-12: "0.999999999999",
        1 / 3: repr(1 / 3),
    }
    assert {value: number_text(value) for value in told} == told
    assert number_text(float("nan")) == "nan"
    with pytest.raises(UsageError, match=r"sparsity 0\.9999999 keeps 0 of 1000 weights"):
        check_feasible({"layer": 1000}, 0.9999999)
    done = CliRunner().invoke(app, ["run", "smoke", "--sparsity", "0.9999999", "--dry-run"])
    assert isinstance(done.exception, UsageError)
    assert "sparsity 0.9999999 keeps" in str(done.exception)


# Words on the terminal, and of the environment


@pytest.mark.slow
@pytest.mark.parametrize("words", [("doctor",), ("run", "smoke", "--dry-run")])
def test_unknown_kernels_are_a_usage_error_with_the_choices(words: tuple[str, ...]) -> None:
    done = prunebench(*words, PRUNEBENCH_KERNELS="bogus")
    assert done.returncode == 2
    assert b"PRUNEBENCH_KERNELS: want one of auto, triton, torch, got 'bogus'" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp437", "latin-1", "koi8-r"])
def test_a_terminal_that_cannot_encode(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE, encoding="utf-8")
    words = ("run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out"), "--workers", "0")
    done = prunebench(*words, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    text = done.stdout.decode(encoding)
    assert "dense" in text
    assert "1 runs done" in text


def test_signs_have_plain_stand_ins(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w", encoding="ascii") as stream:
        speak_plainly(stream, object(), None)
        stream.write("45.7 ± 3.5 \N{EM DASH} 1.8\N{MULTIPLICATION SIGN} … ü")
    assert (tmp_path / "out.txt").read_text(encoding="ascii") == "45.7 +- 3.5 - 1.8x ... ?"


@pytest.mark.slow
def test_a_method_may_print_in_any_script(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "import os, sys\nfrom prunebench import criterion\n@criterion('mine', cite='x')\ndef s(weight, context):\n"
        "    print('hello \\u2603'); sys.stdout.flush(); os.write(1, b'\\xff\\n'); return weight.abs()\n",
        encoding="utf-8",
    )
    words = (
        "run",
        str(tmp_path / "tiny.toml"),
        "--method",
        str(tmp_path / "mine.py"),
        "--out",
        str(tmp_path / "out"),
    )
    done = prunebench(*words, "--workers", "1", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr


# Boards


def test_one_extra_seed_leaves_the_other_rows_alone() -> None:
    before = build_board(full_records())
    extra = [run("dense", 0.0, 99, 0.5), run("alpha", 0.9, 99, 0.4)]
    after = build_board([*full_records(), *extra])
    (one,), (other,) = before.tracks, after.tracks
    assert repr(other.rows) == repr(one.rows), "equal, undefined numbers too"
    assert other.seeds == (0, 1, 2)
    assert other.problems == one.problems
    assert set(other.notes) - set(one.notes) == {
        "alpha was also run with seed 99, beyond the planned ones: in no mean here."
    }


def test_a_seed_that_most_rows_have_is_planned() -> None:
    records = [run(method, 0.9, seed, 0.4) for method in ("alpha", "beta", "gamma") for seed in range(3)]
    missing = [record for record in records if (record.spec["method"], record.spec["seed"]) != ("alpha", 2)]
    (track,) = build_board(missing).tracks
    assert track.seeds == (0, 1, 2)
    assert [row.method for row in track.rows if not row.complete] == ["alpha"]


# Folders of images


def image(folder: Path, name: str, side: int = 16, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def disent_folder(
    root: Path, *, align: int = 98, conflict: int = 2, side: int = 16, labels: tuple[int, ...] = (0, 1)
) -> Path:
    """A folder named 2pct, by default with two conflicting images of a hundred."""
    folder, number = root / "data" / "2pct", 0
    for part, count in (("align", align), ("conflict", conflict), ("valid", 4), ("test", 4)):
        for position in range(count):
            label = labels[position % len(labels)]
            bias = 1 - label if part == "conflict" else label
            place = folder / part / str(label) if part in ("align", "conflict") else folder / part
            image(place, f"{number}_{label}_{bias}.png", side, number)
            number += 1
    return folder


def remarks_of(folder: Path) -> list[str]:
    return list(resolve_task(f"disent:{folder}").remarks(None))


def test_a_folder_as_it_should_be_needs_no_remark(tmp_path: Path) -> None:
    folder = disent_folder(tmp_path)
    (folder / "align" / "0" / "Thumbs.db").write_bytes(b"x")
    image(folder / "align" / ".ipynb_checkpoints", "9_1_1.png")
    before = resolve_task(f"disent:{folder}").fingerprint(None)
    image(folder / "align" / "__MACOSX", "9_1_1.png")
    assert remarks_of(folder) == []
    assert resolve_task(f"disent:{folder}").conflicting_share == 0.02
    assert resolve_task(f"disent:{folder}").fingerprint(None) == before


def test_the_conflicting_share_is_counted(tmp_path: Path) -> None:
    folder = disent_folder(tmp_path, align=10, conflict=10)
    assert remarks_of(folder) == [
        "its name says 2.00% conflicting images, 10 of 20 (50.00%) are; DCWP weighs by the name: rename the folder if "
        "it is wrong"
    ]
    done = CliRunner().invoke(app, ["run", "smoke", "--task", f"disent:{folder}", "--dry-run"])
    assert "its name says 2.00% conflicting images" in done.output


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        (
            ["align/0/990_0_0.webp", "test/991_0_0.bmp"],
            "images of other formats are left out: 2, as align/0/990_0_0.webp",
        ),
        (
            ["align/0/deep/990_0_0.png"],
            "images deeper than a class folder are left out: 1, as align/0/deep/990_0_0.png",
        ),
        (["align/0/990_1_1.png"], "images in the folder of another class: 1, as align/0/990_1_1.png"),
    ],
)
def test_images_that_are_left_out_or_misplaced_are_counted(
    tmp_path: Path, names: list[str], remark: str
) -> None:
    folder = disent_folder(tmp_path)
    for name in names:
        image((folder / name).parent, Path(name).name, seed=999)
    (found,) = remarks_of(folder)
    assert found.startswith(remark)


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_training_image_in_another_split_is_told(tmp_path: Path, split: str) -> None:
    folder = disent_folder(tmp_path)
    shutil.copy(folder / "align" / "0" / "0_0_0.png", folder / split / "copy_0_0.png")
    assert remarks_of(folder) == [
        f"{split} images that are training images too: 1, as copy_0_0.png is 0_0_0.png"
    ]


@pytest.mark.parametrize("side", [1, 7])
def test_images_too_small_for_the_models_are_refused(tmp_path: Path, side: int) -> None:
    with pytest.raises(DataError, match=f"images of {side}x{side} pixels are too small: want at least 8x8"):
        resolve_task(f"disent:{disent_folder(tmp_path, side=side)}")


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all images have label 0; a task needs at least two classes"):
        resolve_task(f"disent:{disent_folder(tmp_path, labels=(0,))}")


# CelebA's lists


@pytest.mark.parametrize("how", ["plain", "BOM", "semicolons", "tabs", "one quoted", "all quoted", "CRLF"])
def test_lists_as_spreadsheets_write_them(tmp_path: Path, how: str) -> None:
    root = write_celeba(tmp_path)
    wanted = read_listing(root)
    write_csv(root, labels_of(), partition_of())
    for name in ("list_attr_celeba", "list_eval_partition"):
        (root / f"{name}.txt").unlink()
        path = root / f"{name}.csv"
        text = path.read_text()
        text = {
            "semicolons": text.replace(",", ";"),
            "tabs": text.replace(",", "\t"),
            "one quoted": text.replace("000001.jpg", '"000001.jpg"'),
            "all quoted": "\n".join(
                ",".join(f'"{field}"' for field in row.split(",")) for row in text.splitlines()
            ),
            "CRLF": text.replace("\n", "\r\n"),
        }.get(how, text)
        path.write_bytes((b"\xef\xbb\xbf" if how == "BOM" else b"") + text.encode())
    found = read_listing(root)
    assert (found.names, found.counts) == (wanted.names, wanted.counts)
    assert np.array_equal(found.y, wanted.y)


def test_the_png_variant_and_a_web_page_are_named(tmp_path: Path) -> None:
    root = write_celeba(tmp_path)
    text = (root / "list_attr_celeba.txt").read_text()
    (root / "list_attr_celeba.txt").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(DataError, match="is a web page, not a list"):
        read_listing(root)
    (root / "list_attr_celeba.txt").write_text(text)
    for path in (root / "img_align_celeba").glob("*.jpg"):
        path.rename(path.with_suffix(".png"))
    with pytest.raises(DataError, match="CelebA's PNG variant"):
        read_listing(root)
