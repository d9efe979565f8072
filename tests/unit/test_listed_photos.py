"""Users' own photographs: tables in the layouts that people have, and damage as a sentence that names file and line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_folder import COUNT, HEADER, SIDE, draw, rows, write_photos
from PIL import Image

from prunebench.data.table import read_csv
from prunebench.errors import DataError, PruneBenchError, UsageError
from prunebench.tasks import listed as listed_module
from prunebench.tasks import resolve_task, splits_hash

Damage = Callable[[Path], object]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def open_all(name: str) -> None:
    """What a run does before it trains."""
    task = resolve_task(name)
    task.fingerprint(None)
    task.splits(None, 0)
    task.remarks(None)


# --- a folder in order -------------------------------------------------------------------------------------


def test_the_table_says_what_the_splits_hold(photos: Path) -> None:
    task = resolve_task(f"csv:{photos}")
    splits = task.splits(None, 0)
    assert task.name == "csv:photos/metadata.csv"
    assert (task.num_classes, task.num_biases, task.bias_name, task.model) == (2, 2, "place", "convnet-small")
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [24, 8, 8]
    table = [row.split(",") for row in rows()]
    for start, split in ((0, splits.train), (24, splits.val), (32, splits.test)):
        part = table[start : start + len(split)]
        assert split.y.tolist() == [int(row[2]) for row in part]
        assert split.bias.tolist() == [int(row[4]) for row in part]
        for position, row in enumerate(part):
            pixels = np.asarray(Image.open(photos / row[1]))
            assert np.array_equal(split.x[position].permute(1, 2, 0).numpy(), pixels)
    assert splits_hash(task.splits(None, 5)) == splits_hash(splits), "a list has one draw"
    assert task.remarks(None) == ()


def test_pairs_that_training_has_more_often_are_aligned(tmp_path: Path) -> None:
    turned = [",".join([*row.split(",")[:4], str(1 - int(row[-1]))]) for row in rows()]
    for name, table, diagonal in (("as", rows(), True), ("turned", turned, False)):
        task = resolve_task(f"csv:{write_photos(tmp_path / name, table)}")
        y, bias = torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
        assert ((y == bias) == task.aligned(y, bias)).all() == diagonal
        assert task.conflicting_share == pytest.approx(4 / 24)


def test_the_fingerprint_is_of_the_data_and_not_of_the_place(tmp_path: Path) -> None:
    here, there = (write_photos(tmp_path / name / "photos") for name in ("here", "there"))
    first = resolve_task(f"csv:{here}").fingerprint(None)
    assert resolve_task(f"csv:{there}").fingerprint(None) == first
    draw(there / "birds" / "39.png", 999)
    changed = resolve_task(f"csv:{there}").fingerprint(None)
    (here / "metadata.csv").write_text("\n".join([HEADER, *rows()[:-1], "39,birds/39.png,0,2,0"]))
    assert len({first, changed, resolve_task(f"csv:{here}").fingerprint(None)}) == 3


def test_a_path_is_found_from_the_data_root_and_the_name_finds_it_again(photos: Path) -> None:
    with pytest.raises(DataError, match="--data-root"):
        resolve_task("csv:photos/metadata.csv")
    task = resolve_task("csv:photos@size=16", photos.parent)
    assert task.name == "csv:photos/metadata.csv@size=16"
    assert resolve_task(task.name, photos.parent).fingerprint(None) == task.fingerprint(None)
    assert task.splits(None, 0).train.x.shape == (24, 3, 16, 16)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: re.sub(r"[^,\n]+", r'"\g<0>"', text),
        lambda text: text.replace(",", " , "),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: re.sub(r",(\d),(\d),(\d)\n", r",\1.0,\2.0,\3.0\n", text),
        lambda text: text.replace("birds/", ".\\birds\\"),
        lambda text: text.replace("img_id", "", 1),
        lambda text: text.replace("img_filename,y,split,place", "Filename,Y,Split,A"),
        lambda text: re.sub(
            r",([012]),(\d)\n", lambda m: f",{('train', 'val', 'Test')[int(m[1])]},{m[2]}\n", text
        ),
    ],
    ids=["BOM", "CRLF", "CR", "semicolons", "tabs", "quotes", "spaces", "blank lines", "pandas floats",
         "backslashes", "pandas index", "SubpopBench", "splits by name"],
)  # fmt: skip
def test_tables_as_people_write_them(change: Callable[[str], str], photos: Path) -> None:
    before = splits_hash(resolve_task(f"csv:{photos}").splits(None, 0))
    path = photos / "metadata.csv"
    path.write_bytes(change(path.read_text()).encode())
    assert splits_hash(resolve_task(f"csv:{photos}").splits(None, 0)) == before


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    table = []
    for number, row in enumerate(rows()):
        head, name, y, *rest = row.split(",")
        kind, side = ("land bird", "water bird")[int(y)], "left" if number % 3 else "right"
        table.append(",".join([head, name, kind, *rest, side]))
    folder = write_photos(tmp_path / "own", table, "n,picture,kind,part,ground,side")
    with pytest.raises(DataError, match=r"line 1: no column for the file among n, picture.*@file=COLUMN"):
        resolve_task(f"csv:{folder}")
    task = resolve_task(f"csv:{folder}@file=picture,label=kind,bias=side,split=part")
    assert task.name == "csv:own/metadata.csv@file=picture,label=kind,bias=side,split=part"
    assert (task.labels, task.biases) == (("land bird", "water bird"), ("left", "right"))
    assert task.bias_name == "side"
    with pytest.raises(DataError, match="did you mean kind"):
        resolve_task(f"csv:{folder}@file=picture,label=kint,bias=side")


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        ("@size=4", "from 8 to 1024"),
        ("@size=big", "from 8 to 1024"),
        ("@label=y,label=y", "chooses one thing twice"),
        ("@colour=y", "behind the @"),
        ("@label=y,", "behind the @"),
        ("@label=place", "no column for the bias"),
        ("@label=place,bias=place", "label and bias are one column|bias and label are one column"),
    ],
)
def test_choices_that_cannot_be(tail: str, says: str, photos: Path) -> None:
    with pytest.raises(PruneBenchError, match=says):
        resolve_task(f"csv:{photos}{tail}")


def test_a_folder_with_several_tables_leaves_the_choice(photos: Path) -> None:
    (photos / "metadata.csv").rename(photos / "a.csv")
    assert resolve_task(f"csv:{photos}").name == "csv:photos/a.csv"
    (photos / "b.csv").write_text("")
    with pytest.raises(UsageError, match=r"2 CSV files: choose one, as csv:.*a\.csv"):
        resolve_task(f"csv:{photos}")
    (photos / "a.csv").rename(photos / "metadata.csv")
    assert resolve_task(f"csv:{photos}").name == "csv:photos/metadata.csv"


def test_without_splits_they_are_drawn_by_group(tmp_path: Path) -> None:
    table = [",".join(row.split(",")[k] for k in (1, 2, 4)) for row in rows()]
    task = resolve_task(f"csv:{write_photos(tmp_path / 'p', table, 'file,label,bias')}")
    splits = task.splits(None, 0)
    assert "drawn" in task.remarks(None)[0]
    for split in (splits.train, splits.test):
        assert len((split.y * 2 + split.bias).unique()) == 4
    assert len(splits.train) + len(splits.val) + len(splits.test) == COUNT
    assert 6 <= len(splits.test) <= 10


def test_folders_named_after_splits_are_the_splits(tmp_path: Path) -> None:
    folder, table = tmp_path / "p", []
    for number in range(24):
        name = f"{('train', 'train', 'val')[number // 8]}/{'cat' if number % 2 else 'dog'}/{number}.png"
        draw(folder / name, number)
        table.append(
            f"{name},{'cat' if number % 2 else 'dog'},{number % 4 // 2 if number % 3 else number % 2}"
        )
    (folder / "attributes.csv").write_text("\n".join(["path,class,attribute", *table]))
    task = resolve_task(f"csv:{folder}")
    splits = task.splits(None, 0)
    assert len(splits.test) == 8, "validation images test where there is no test split"
    assert any("no test split" in remark for remark in task.remarks(None))
    assert len(splits.val) >= 1


def test_iwildcam_validates_in_distribution_and_tests_elsewhere(tmp_path: Path) -> None:
    parts = ["train"] * 16 + ["val"] * 4 + ["test"] * 8 + ["id_val"] * 8 + ["id_test"] * 4
    table = [f"{split},{n}.png,{n % 2},{n % 3},{n // 2}" for n, split in enumerate(parts)]
    folder = tmp_path / "iwildcam_v2.0"
    for number in range(COUNT):
        draw(folder / "train" / f"{number}.png", number)
    (folder / "metadata.csv").write_text(
        "\n".join(["split,filename,y,location_remapped,sequence_remapped", *table])
    )
    task = resolve_task(f"csv:{folder}")
    splits = task.splits(None, 0)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [16, 8, 8]
    assert (task.bias_name, task.num_biases) == ("location_remapped", 3)
    assert any("left out: 8" in remark for remark in task.remarks(None))


def test_large_sets_are_mapped_from_a_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve_task(f"csv:{photos}").splits(None, 0)
    monkeypatch.setattr(listed_module, "IN_MEMORY", 0)
    task = resolve_task(f"csv:{photos}")
    splits = task.splits(None, 0)
    for name in ("train", "val", "test"):
        one, other = getattr(before, name), getattr(splits, name)
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
        assert other.digest
    assert task.fingerprint(None) == resolve_task(f"csv:{photos}").fingerprint(None)


# --- damage ------------------------------------------------------------------------------------------------


def line(number: int, text: str) -> Damage:
    """Another text in a line of the table."""

    def damage(folder: Path) -> None:
        path = folder / "metadata.csv"
        lines = path.read_text().split("\n")
        lines[number - 1] = text
        path.write_text("\n".join(lines))

    return damage


def column(place: int, value: str) -> Damage:
    """One value in a whole column."""

    def damage(folder: Path) -> None:
        fields = [row.split(",") for row in rows()]
        table = [",".join([*row[:place], value, *row[place + 1 :]]) for row in fields]
        (folder / "metadata.csv").write_text("\n".join([HEADER, *table]))

    return damage


def whole(data: bytes) -> Damage:
    return lambda folder: (folder / "metadata.csv").write_bytes(data)


def byte(number: int, data: bytes) -> Damage:
    """Bytes at the end of a line of the table."""

    def damage(folder: Path) -> None:
        path = folder / "metadata.csv"
        lines = path.read_bytes().split(b"\n")
        lines[number - 1] += data
        path.write_bytes(b"\n".join(lines))

    return damage


def image(number: int, make: Callable[[Path], object]) -> Damage:
    return lambda folder: make(folder / "birds" / f"{number}.png")


def saved(mode: str, color: object, size: tuple[int, int] = (SIDE, SIDE), **options: object) -> Damage:
    """An image of one colour in some mode; as TIFF or JPEG where PNG has no such mode."""
    kind = "JPEG" if mode == "CMYK" else "TIFF" if mode in ("F", "LAB") else "PNG"
    return lambda path: Image.new(mode, size, color).save(path, kind, **options)  # type: ignore[arg-type]


def film(path: Path) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), shade) for shade in ("red", "blue")]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def link_out(folder: Path) -> None:
    outside = folder.parent / "secret.png"
    draw(outside, 7)
    (folder / "birds" / "5.png").unlink()
    (folder / "birds" / "5.png").symlink_to(outside)


def linked_folder(folder: Path) -> None:
    draw(folder.parent / "elsewhere" / "x.png", 7)
    (folder / "more").symlink_to(folder.parent / "elsewhere")
    line(7, "5,more/x.png,1,0,1")(folder)


DAMAGE: dict[str, tuple[Damage, str]] = {
    "too few fields": (line(5, "3,birds/3.png,1"), "line 5: 3 fields, but the header has 5"),
    "too many fields": (line(6, "4,birds/4.png,0,0,0,9"), "line 6: 6 fields, but the header has 5"),
    "open quote": (line(9, '7,"birds/7.png,1,0,1'), "line 9: .*quotation mark"),
    "missing file": (line(7, "5,birds/none.png,1,0,1"), "line 7: birds/none.png is not in .*put the image there"),
    "no file named": (line(7, "5,,1,0,1"), "line 7: no file is named"),
    "file is nan": (line(7, "5,nan,1,0,1"), "line 7: no file is named"),
    "a folder": (line(7, "5,birds,1,0,1"), "line 7: birds is a folder"),
    "absolute path": (line(7, "5,/etc/passwd,1,0,1"), "line 7: '/etc/passwd' is an absolute path"),
    "a drive": (line(7, "5,C:\\5.png,1,0,1"), "line 7: 'C:/5.png' is an absolute path"),
    "home": (line(7, "5,~/5.png,1,0,1"), "line 7: '~/5.png' is an absolute path"),
    "dots": (line(7, "5,birds/../../5.png,1,0,1"), "line 7: .*leaves the folder"),
    "backslash dots": (line(7, "5,..\\5.png,1,0,1"), "line 7: .*leaves the folder"),
    "an address": (line(7, "5,https://a.b/5.png,1,0,1"), "line 7: .*is an address"),
    "control sign": (line(7, "5,birds/\x1b[31m.png,1,0,1"), "line 7: .*no name of a file"),
    "link out": (link_out, "line 7: birds/5.png is a link out of"),
    "folder linked out": (linked_folder, "line 7: more/x.png is a link out of"),
    "listed twice": (line(8, "5,birds/5.png,1,0,1"), "line 8: birds/5.png is in line 7 already"),
    "row twice": (byte(7, b"\n5,birds/5.png,1,0,1"), "line 8: birds/5.png is in line 7 already"),
    "label missing": (line(7, "5,birds/5.png,,0,1"), "line 7: y is missing"),
    "label nan": (line(7, "5,birds/5.png,NaN,0,1"), r"line 7: y is missing \('NaN'\)"),
    "label infinite": (line(7, "5,birds/5.png,inf,0,1"), "line 7: y 'inf' is no class"),
    "label half": (line(7, "5,birds/5.png,0.5,0,1"), "line 7: y '0.5' is no class"),
    "label text": (line(7, "5,birds/5.png,duck,0,1"), "line 7: y 'duck' among '0'"),
    "bias missing": (line(7, "5,birds/5.png,1,0,"), "line 7: place is missing"),
    "bias empty": (column(4, ""), "line 2: place is missing"),
    "one bias": (column(4, "1"), "line 2: place is '1' here and in every row"),
    "one class": (column(2, "0"), "line 2: y is '0' here and in every row"),
    "split unknown": (line(7, "5,birds/5.png,1,3,1"), "line 7: split '3' is not known: want train, val or test"),
    "split missing": (line(7, "5,birds/5.png,1,,1"), "line 7: split '' is not known"),
    "all to train": (column(3, "train"), "line 41: no row up to this one, the last, is in the test split"),
    "all to test": (column(3, "2"), "line 41: no row up to this one, the last, is in the train split"),
    "capitals": (
        lambda folder: (column(4, "Sea")(folder), line(7, "5,birds/5.png,1,0,sea")(folder)),
        "line 7: place 'sea' and 'Sea' differ in capitals",
    ),
    "an id as label": (
        lambda folder: (folder / "metadata.csv").write_text(
            "\n".join(["img_filename,y,split,place", *(f"{r.split(',')[1]},{n},0,0" for n, r in enumerate(rows()))])
        ),
        "line 41: y has 40 values in 40 rows",
    ),
    "latin-1": (byte(9, ",é".encode("latin-1")), "line 9: byte 0xe9 is not UTF-8"),
    "utf-16": (whole("\ufeffa,b\n1,2".encode("utf-16-le")), "line 1: is UTF-16"),
    "zero byte": (byte(4, b"\0"), "line 4: a byte of zero"),
    "web page": (whole(b"<!DOCTYPE html><html>quota</html>"), "line 1: this is a web page"),
    "empty table": (whole(b""), "line 1: the file is empty"),
    "header alone": (whole(HEADER.encode() + b"\n"), "line 1: there is a header, but no row"),
    "one column": (whole(b"filename\na.png\n"), "line 1: one column"),
    "no header": (whole("\n".join(rows()).encode()), "line 1: an image stands where names"),
    "same name twice": (line(1, "img_filename,y,y,split,place"), "line 1: two columns are called 'y'"),
    "column without name": (line(1, "img_id,img_filename,,split,place"), "line 1: column 3 has no name"),
    "no label column": (line(1, "img_id,img_filename,z,split,place"), "line 1: no column for the label"),
    "no bias column": (line(1, "img_id,img_filename,y,split,where"), "line 1: no column for the bias"),
    "spreadsheet": (whole(b"PK\x03\x04 xlsx"), "line 1: is a zip archive or a spreadsheet"),
    "gzip": (whole(b"\x1f\x8b\x08"), "line 1: is compressed"),
    "lfs pointer": (whole(b"version https://git-lfs.github.com/spec/v1\noid"), "line 1: .*git lfs pull"),
    "image empty": (image(5, lambda path: path.write_bytes(b"")), "line 7: birds/5.png has no bytes"),
    "image a web page": (image(5, lambda p: p.write_text("<html>")), "line 7: birds/5.png cannot be read"),
    "image cut": (image(5, lambda p: p.write_bytes(p.read_bytes()[:-60])), "line 7: birds/5.png cannot be read"),
    "image garbled": (image(5, lambda p: p.write_bytes(p.read_bytes()[:30] + bytes(99))), "line 7: birds/5.png "),
    "16 bits": (image(5, saved("I;16", 40_000)), "line 7: birds/5.png has more than 8 bits"),
    "float": (image(5, saved("F", 0.5)), "line 7: birds/5.png has more than 8 bits"),
    "CMYK": (image(5, saved("CMYK", (9, 9, 9, 9))), "line 7: birds/5.png is in CMYK colours"),
    "Lab": (image(5, saved("LAB", (9, 9, 9))), "line 7: birds/5.png is in LAB colours"),
    "transparent": (image(5, saved("RGBA", (9, 9, 9, 0))), "line 7: birds/5.png is transparent"),
    "transparent palette": (image(5, saved("P", 0, transparency=0)), "line 7: birds/5.png is transparent"),
    "a film": (image(5, film), "line 7: birds/5.png is a film"),
    "another size": (image(5, saved("RGB", 0, (SIDE, 20))), "line 7: birds/5.png has 12x20 pixels.*size=64"),
    "the first of another size": (image(0, saved("RGB", 0, (20, SIDE))), "line 3: birds/1.png has 12x12 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_a_sentence_that_names_file_and_line(case: str, photos: Path) -> None:
    damage, says = DAMAGE[case]
    damage(photos)
    with pytest.raises(DataError) as caught:
        open_all(f"csv:{photos}")
    message = str(caught.value)
    assert message.startswith(f"{photos / 'metadata.csv'}, line ")
    assert re.search(f"metadata.csv, {says}", message), message
    assert "\n" not in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("mode", "color", "says"),
    [("L", 77, "is grey"), ("P", 3, "with a palette"), ("1", 1, "black and white"), ("RGBA", (9, 8, 7, 255), "alpha")],
)  # fmt: skip
def test_images_that_are_read_as_rgb_are_remarked(mode: str, color: object, says: str, photos: Path) -> None:
    for number in (5, 9):
        saved(mode, color)(photos / "birds" / f"{number}.png")
    task = resolve_task(f"csv:{photos}")
    want = np.asarray(Image.open(photos / "birds" / "5.png").convert("RGB"))
    assert np.array_equal(task.splits(None, 0).train.x[5].permute(1, 2, 0).numpy(), want)
    (remark, *_) = task.remarks(None)
    assert re.search(rf"metadata.csv, line 7: birds/5.png .*{says}.*1 others", remark)


def test_mixed_sizes_are_scaled_on_demand(photos: Path) -> None:
    saved("RGB", (1, 2, 3), (30, 50))(photos / "birds" / "5.png")
    x = resolve_task(f"csv:{photos}@size=32").splits(None, 0).train.x
    assert x.shape == (24, 3, 32, 32)
    assert x[5].flatten(1).float().mean(1).tolist() == [1, 2, 3]


def test_tiny_images_are_refused(photos: Path) -> None:
    for number in range(COUNT):
        saved("RGB", 0, (4, 4))(photos / "birds" / f"{number}.png")
    with pytest.raises(DataError, match="line 2: images of 4x4 pixels are too small"):
        resolve_task(f"csv:{photos}")


def test_an_image_in_two_splits_and_a_class_unseen_in_training_are_remarked(tmp_path: Path) -> None:
    table = [*rows()[:-2], "38,birds/38.png,2,2,0", "39,birds/39.png,2,2,1"]
    folder = write_photos(tmp_path / "p", table)
    (folder / "birds" / "39.png").write_bytes((folder / "birds" / "3.png").read_bytes())
    remarks = resolve_task(f"csv:{folder}").remarks(None)
    assert any("y '2' has no training image" in remark for remark in remarks)
    assert any("39.png is 3.png" in remark for remark in remarks)


def test_a_damaged_image_of_a_large_set_is_named_too(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed_module, "IN_MEMORY", 0)
    (photos / "birds" / "9.png").write_text("gone")
    with pytest.raises(DataError, match=r"metadata.csv, line 11: birds/9.png cannot be read"):
        resolve_task(f"csv:{photos}").fingerprint(None)


def test_a_quoted_field_may_hold_delimiters_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n"1,5","x\ny"\n"say ""no""",z\n')
    table = read_csv(path)
    assert table.rows == (("1,5", "x\ny"), ('say "no"', "z"))
    assert table.lines == (2, 4)


# --- FairFace and UTKFace ----------------------------------------------------------------------------------


@pytest.fixture
def fairface(tmp_path: Path) -> Path:
    folder = tmp_path / "FairFace"
    for part, count in (("train", 40), ("val", 16)):
        table = ["file,age,gender,race,service_test"]
        for number in range(count):
            draw(folder / part / f"{number}.jpg", number)
            gender, race = ("Male", "Female")[number % 2], ("White", "Black", "East Asian")[number % 3]
            table.append(
                f"{part}/{number}.jpg,{'3-9' if number % 4 else 'more than 70'},{gender},{race},False"
            )
        (folder / f"fairface_label_{part}.csv").write_text("\n".join(table))
    return folder


def test_fairface(fairface: Path) -> None:
    task = resolve_task(f"fairface:{fairface}")
    splits = task.splits(None, 0)
    assert (task.name, task.bias_name, task.labels) == ("fairface:FairFace", "race", ("Female", "Male"))
    assert len(splits.train) + len(splits.val) == 40
    assert len(splits.test) == 16
    aged = resolve_task("fairface:FairFace@label=age,bias=gender", fairface.parent)
    assert aged.labels == ("3-9", "more than 70")
    table = fairface / "fairface_label_val.csv"
    table.write_text(table.read_text().replace("val/3.jpg", "val/99.jpg"))
    with pytest.raises(DataError, match=r"fairface_label_val\.csv, line 5: val/99\.jpg is not in"):
        open_all(f"fairface:{fairface}")
    table.unlink()
    with pytest.raises(DataError, match=r"fairface_label_val\.csv is missing"):
        resolve_task(f"fairface:{fairface}")


@pytest.fixture
def utkface(tmp_path: Path) -> Path:
    folder = tmp_path / "UTKFace"
    for number in range(60):
        draw(folder / f"{number + 1}_{number % 2}_{number % 5}_2017010917{number:04d}.jpg.chip.jpg", number)
    return folder


def test_utkface(utkface: Path) -> None:
    task = resolve_task(f"utkface:{utkface}")
    splits = task.splits(None, 0)
    assert (task.name, task.bias_name, task.labels) == ("utkface:UTKFace", "race", ("man", "woman"))
    assert len(splits.train) + len(splits.val) + len(splits.test) == 60
    aged = resolve_task("utkface:UTKFace@label=age,bias=gender,size=16", utkface.parent)
    assert aged.labels[:2] == ("0-9", "10-19")
    draw(utkface / "61_1_20170109142408075.jpg.chip.jpg", 99)
    assert any(
        "left out: 1, as 61_1_" in remark for remark in resolve_task(f"utkface:{utkface}").remarks(None)
    )


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("", lambda f: draw(f / "117_0_0_20170109170000.jpg", 1), "117_0_0_20170109170000.jpg: nobody is 117"),
        ("", lambda f: [draw(f / f"cat{n}.jpg", n) for n in range(9)], r"cat0\.jpg: its name \(and 8 more\)"),
        ("", lambda f: next(f.glob("9_*")).write_bytes(b"x"), "9_0_3_20170109170008.jpg.chip.jpg: cannot be read"),
        ("@label=colour", lambda f: None, "unknown attribute of UTKFace"),
        ("@label=race", lambda f: None, "both race"),
        ("@file=name", lambda f: None, "no column for file"),
        ("/none", lambda f: None, "there is no"),
    ],
)  # fmt: skip
def test_utkface_damage(name: str, damage: Damage, says: str, utkface: Path) -> None:
    damage(utkface)
    with pytest.raises(PruneBenchError, match=says):
        open_all(f"utkface:{utkface}{name}")
