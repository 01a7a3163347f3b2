"""Every fault that `happywhale check` names, planted one by one in a data folder that is clean without it."""

import json
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from happywhale_nb.blending import blend_stage
from happywhale_nb.check import FINDINGS, check_folder
from happywhale_nb.cli import main
from happywhale_nb.crops import load_crop
from happywhale_nb.dataset import read_dataset
from happywhale_nb.paths import UserError
from happywhale_nb.predictions import read_predictions, write_predictions


def edit(root, change, file="train.csv"):
    table = pd.read_csv(root / file, dtype=str)
    table = change(table)
    table.to_csv(root / file, index=False)


def cell(row, column, value, file="train.csv"):
    def plant(root):
        def change(table):
            table.loc[row, column] = value(table) if callable(value) else value
            return table

        edit(root, change, file)

    return plant


def photo(change):
    """Plant by replacing the first training photograph: `change(path, opened image)`."""

    def plant(root):
        path = sorted((root / "train_images").iterdir())[0]
        with Image.open(path) as image:
            image.load()
        change(path, image)

    return plant


def png_of_size(width, height):
    """A PNG whose header claims a size, and which holds next to nothing: a decompression bomb."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def turned(path, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def grey16(path, image):
    wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(wide).save(path.with_suffix(".png"))
    path.with_suffix(".png").replace(path)


def copy_to_second(root, part="train_images", change=None):
    first, second = sorted((root / "train_images").iterdir())[:2]
    target = second if part == "train_images" else sorted((root / part).iterdir())[0]
    if change:
        with Image.open(first) as image:
            change(image).save(target, quality=70)
    else:
        target.write_bytes(first.read_bytes())


def same_animal(root, different):
    names = sorted(p.name for p in (root / "train_images").iterdir())[:2]

    def change(table):
        table = table.set_index("image")
        table.loc[names, "individual_id"] = ["one", "two"] if different else "one"
        table.loc[names, "species"] = "beluga"
        return table.reset_index()

    edit(root, change)


def plant_folds(root):
    table = pd.read_csv(root / "train.csv", dtype=str)
    table.assign(fold="first")[["image", "fold"]].to_csv(root / "folds.csv", index=False)


def plant_skip(root):
    (root / "skip.csv").write_text(f"image,reason\n{sorted((root / 'train_images').iterdir())[0].name},truncated\n")


def in_lines(row):
    return row.loc[1, "image"]


PLANTS = {
    "no-table": lambda root: (root / "train.csv").unlink(),
    "no-photos": lambda root: (root / "train_images").rename(root / "elsewhere"),
    "encoding": lambda root: (root / "train.csv").write_bytes(
        (root / "train.csv").read_text().replace("beluga", "bélouga").encode("latin-1")
    ),
    "not-a-table": lambda root: (root / "train.csv").write_text("image,species,individual_id\na.jpg,b,c,d,e\n"),
    "missing-column": lambda root: edit(root, lambda t: t.drop(columns="species")),
    "empty-table": lambda root: edit(root, lambda t: t.head(0)),
    "empty-cell": cell(2, "individual_id", ""),
    "odd-id": cell(2, "individual_id", "two words"),
    "leaves-folder": cell(2, "image", "../x.jpg"),
    "listed-twice": cell(2, "image", in_lines),
    "absent": cell(2, "image", "gone.jpg"),
    "empty-file": photo(lambda path, _: path.write_bytes(b"")),
    "not-a-photo": photo(lambda path, _: path.write_text("<html>404</html>")),
    "truncated": photo(lambda path, _: path.write_bytes(path.read_bytes()[:-2000])),
    "too-large": photo(lambda path, _: path.write_bytes(png_of_size(60_000, 60_000))),
    "two-individuals": lambda root: (copy_to_second(root), same_animal(root, different=True)),
    "train-and-test": lambda root: copy_to_second(root, "test_images"),
    "folds": plant_folds,
    "boxes": lambda root: (
        (root / "boxes").mkdir(exist_ok=True) or (root / "boxes" / "odd.csv").write_text("image,where\na.jpg,left\n")
    ),
    "same-photo": lambda root: (copy_to_second(root), same_animal(root, different=False)),
    "near-photo": lambda root: (
        copy_to_second(root, change=lambda i: i.resize((i.width * 3 // 4, i.height * 3 // 4))),
        same_animal(root, different=True),
    ),
    "extra-column": lambda root: edit(root, lambda t: t.assign(weather="fog")),
    "not-listed": lambda root: (root / "train_images" / "notes.txt").write_text("hello"),
    "species-spelling": cell(slice(0, 2), "species", "humpback_whales"),
    "two-species": lambda root: (
        edit(root, lambda t: pd.concat([t, t.head(1).assign(image="again.jpg", species="vaquita")]))
        or Image.new("RGB", (64, 64), "red").save(root / "train_images" / "again.jpg")
    ),
    "mislabelled": photo(lambda path, image: image.save(path, format="PNG")),
    "tiny": photo(lambda path, image: image.resize((20, 16)).save(path)),
    "greyscale": photo(lambda path, image: image.convert("L").save(path)),
    "cmyk": photo(lambda path, image: image.convert("CMYK").save(path)),
    "16-bit": photo(grey16),
    "alpha": photo(lambda path, image: image.convert("RGBA").save(path, format="PNG")),
    "exif-rotation": photo(turned),
    "readable-again": plant_skip,
}


UNUSABLE = {"no-table", "no-photos", "not-a-table", "missing-column", "empty-table"}
DEEP = {"near-photo"}


def test_a_clean_folder_is_clean(tiny):
    assert check_folder(tiny, deep=True, progress=False).findings == []


def test_every_kind_of_finding_is_planted():
    assert set(PLANTS) == set(FINDINGS)


@pytest.mark.parametrize("kind", PLANTS)
def test_a_planted_fault_is_named_with_its_file(kind, tiny_copy):
    PLANTS[kind](tiny_copy)
    check = check_folder(tiny_copy, deep=kind in DEEP, progress=False)
    found = [f for f in check.findings if f.kind == kind]
    assert found and all(f.file for f in found), [f.kind for f in check.findings]
    assert check.status == (2 if kind in UNUSABLE else 1)


@pytest.mark.parametrize("kind", ["truncated", "too-large", "empty-file", "not-a-photo", "16-bit", "cmyk", "alpha"])
def test_deep_finds_what_the_header_shows_too(kind, tiny_copy):
    PLANTS[kind](tiny_copy)
    assert kind in {f.kind for f in check_folder(tiny_copy, deep=True, progress=False).findings}


def test_damage_in_the_middle_is_found_only_by_decoding(tiny_copy):
    path = sorted((tiny_copy / "train_images").iterdir())[0]
    with Image.open(path) as image:
        image.save(path, format="PNG")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    shallow, deep = (check_folder(tiny_copy, deep=d, progress=False) for d in (False, True))
    assert "truncated" not in {f.kind for f in shallow.findings}
    assert "truncated" in {f.kind for f in deep.findings}


@pytest.mark.parametrize("name", ["/etc/passwd", "..\\x.jpg", "C:x.jpg", "a/b.jpg", ".."])
def test_names_that_leave_the_folder(name, tiny_copy):
    cell(2, "image", name)(tiny_copy)
    check = check_folder(tiny_copy, progress=False)
    assert [(f.kind, f.row) for f in check.findings if f.kind == "leaves-folder"] == [("leaves-folder", 4)]


def test_rows_are_those_of_a_spreadsheet(tiny_copy):
    cell(2, "individual_id", "")(tiny_copy)
    finding = next(f for f in check_folder(tiny_copy, progress=False).findings if f.kind == "empty-cell")
    assert (finding.file, finding.row, finding.level) == ("train.csv", 4, "error")


def test_the_command_speaks_to_people_and_to_machines(tiny_copy):
    PLANTS["truncated"](tiny_copy)
    said = CliRunner().invoke(main, ["check", str(tiny_copy)])
    machine = CliRunner().invoke(main, ["check", str(tiny_copy), "--json"])
    assert said.exit_code == machine.exit_code == 1
    assert "truncated, once" in said.stdout and "copy it again" in said.stdout
    told = json.loads(machine.stdout)
    assert told["status"] == "findings" and told["findings"][0]["kind"] == "truncated"
    assert CliRunner().invoke(main, ["check", str(tiny_copy / "nowhere")]).exit_code == 2
    (tiny_copy / "train.csv").unlink()
    assert CliRunner().invoke(main, ["check", str(tiny_copy)]).exit_code == 2


def test_bad_photographs_are_skipped_on_request_and_only_then(tiny_copy):
    path = sorted((tiny_copy / "train_images").iterdir())[0]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=f"{path.name}.*--skip"):
        load_crop(path, 32)
    assert len(read_dataset(tiny_copy).train) == 48
    assert CliRunner().invoke(main, ["check", str(tiny_copy), "--deep", "--skip"]).exit_code == 1
    data = read_dataset(tiny_copy)
    assert len(data.train) == 47 and data.skipped[["image", "part"]].to_numpy().tolist() == [[path.name, "train"]]
    again = CliRunner().invoke(main, ["check", str(tiny_copy), "--deep"])
    assert again.exit_code == 0 and "1 more are left out" in again.stdout


def test_16_bit_greys_are_read_with_their_upper_bits(tmp_path):
    wide = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    crop = load_crop(tmp_path / "wide.png", 64)
    assert abs(crop[..., 0].astype(int) - (wide >> 8)).max() <= 1


def test_the_real_tables_have_no_faults_but_the_known_spellings(shared):
    check = check_folder(shared / "happywhale", progress=False)
    kinds = {f.kind for f in check.findings}
    assert kinds == {"no-photos"}
    assert check.summary["photos"] == 51033 and check.summary["individuals"] == 15587
    assert (check.summary["species"], check.summary["species_spellings"]) == (26, 30)
    assert check.summary["singletons"] == 9258


def test_the_real_photographs_are_whole(shared):
    check = check_folder(shared / "happywhale_photos", deep=True, progress=False)
    assert not {f.kind for f in check.findings} & {"truncated", "not-a-photo", "empty-file", "two-individuals"}


def test_a_skipped_test_photograph_is_still_answered(tiny_copy, tmp_path):
    name = sorted(p.name for p in (tiny_copy / "test_images").iterdir())[4]
    (tiny_copy / "test_images" / name).write_bytes(b"")
    CliRunner().invoke(main, ["check", str(tiny_copy), "--skip"])
    data = read_dataset(tiny_copy)
    assert name not in set(data.test["image"])
    answers = [["a", "b", "c", "d", "e"]] * len(data.test)
    write_predictions(tmp_path / "model" / "fold0" / "test.csv", data.test["image"], answers)
    record = blend_stage(data, tmp_path)
    images, given = read_predictions(tmp_path / "submission.csv")
    sample = pd.read_csv(tiny_copy / "sample_submission.csv")["image"]
    assert record["unseen"] == [name] and sorted(images) == sorted(sample)
    assert given[images == name].tolist() == [["new_individual", "", "", "", ""]]


def test_links_that_point_nowhere_are_absent(tiny_copy, tmp_path):
    path = sorted((tiny_copy / "train_images").iterdir())[0]
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    assert check_folder(tiny_copy, progress=False).status == 0
    (tmp_path / path.name).unlink()
    found = [f for f in check_folder(tiny_copy, progress=False).findings if f.kind == "absent"]
    assert len(found) == 1 and "link points to a file that is no longer there" in found[0].detail
    with pytest.raises(UserError, match=f"{path.name} is not in"):
        read_dataset(tiny_copy)
