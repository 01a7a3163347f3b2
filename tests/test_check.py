"""Every fault that `happywhale data check` names, planted one by one in a data folder that is clean without it."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.check import (
    check_as_dict,
    check_folder,
    count_noun,
    describe_check,
    inspect_photo,
    write_skips,
)
from happywhale_nb.data.check_values import odd_ids
from happywhale_nb.data.dataset import NEW, read_dataset
from happywhale_nb.data.findings import FINDINGS, Check
from happywhale_nb.imaging.crops import load_crop
from happywhale_nb.retrieval.predictions import read_predictions, write_predictions
from happywhale_nb.stages.blending import blend_stage


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Eight known photographs of three belugas, four that are asked about, all of one colourful kind."""
    root, rng = tmp_path_factory.mktemp("check") / "clean", np.random.default_rng(0)
    names = {"train": [f"{i}.jpg" for i in "abcdefgh"], "test": [f"{i}.jpg" for i in "pqrs"]}
    for part, images in names.items():
        (root / f"{part}_images").mkdir(parents=True)
        for image in images:
            spots = Image.fromarray(rng.integers(0, 255, (6, 9, 3)).astype(np.uint8))
            spots.resize((144, 96), Image.Resampling.BICUBIC).save(root / f"{part}_images" / image, quality=95)
    table = pd.DataFrame({"image": names["train"], "species": "beluga", "individual_id": [*"xxyyzzzz"]})
    table.to_csv(root / "train.csv", index=False)
    pd.DataFrame({"image": names["test"], "predictions": "x"}).to_csv(root / "sample_submission.csv", index=False)
    return root


@pytest.fixture
def folder(clean, tmp_path):
    """A copy of `clean` to break."""
    return Path(shutil.copytree(clean, tmp_path / "broken"))


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


def plant_moved(root):
    path = root / "train_images" / "a.jpg"
    path.unlink()
    path.symlink_to(root / "elsewhere" / "a.jpg")


def column(name, *values):
    """Plant by adding a column to `train.csv`, empty below `values`."""
    return lambda root: edit(root, lambda t: t.assign(**{name: [*values, *[""] * (len(t) - len(values))]}))


def table_of(file, text):
    """Plant by writing a table."""

    def plant(root):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(text)

    return plant


def namesake(root):
    """A photograph to be identified that has the name of a known one, and a table that does not say which it means."""
    (root / "test_images" / "p.jpg").rename(root / "test_images" / "a.jpg")
    edit(root, lambda t: t.replace("p.jpg", "a.jpg"), "sample_submission.csv")
    table_of("boxes/mine.csv", "image,bbox\na.jpg,1 1 90 60\n")(root)


def boxes_of(*corners, frame=""):
    """A table of one box for each of some photographs; their pictures have 144 x 96 pixels."""
    rows = [f"{name}.jpg,{corner}{frame}" for name, corner in zip("abcdefgh", corners, strict=False)]
    return table_of("boxes/mine.csv", "\n".join(["image,bbox" + ",W,H" * bool(frame), *rows]) + "\n")


def small_corner(root):
    images = [f"{path.parent.name}/{path.name}" for path in root.glob("*_images/*")]
    rows = [f"{name},{x} 2 {x + 30} 40" for name in images for x in (1, 9)]
    table_of("boxes/mine.csv", "\n".join(["image,bbox", *rows]) + "\n")(root)


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
    "separator": table_of("train.csv", "image;species;individual_id\na.jpg;beluga;x\n"),
    "nobody": cell(2, "individual_id", "#REF!"),
    "twin-names": cell(2, "individual_id", "Z"),
    "odd-name": cell(2, "individual_id", "w\u200b7"),
    "odd-id": cell(2, "individual_id", "1.23E+11"),
    "date": column("date", "2019-07-13", "31/02/2019"),
    "ambiguous-date": column("date", "07/08/2019", "08/07/2019"),
    "side": column("side", "dorsal"),
    "position": lambda root: (
        (column("latitude", "57,68")(root), column("longitude", "-4")(root))[0] or column("latitude", "95")(root)
    ),
    "odd-text": column("place", "Bay\u200b"),
    "encounters": table_of("encounters.csv", ""),
    "sizes": table_of("image_sizes.csv", "image,width,height\na.jpg,0,96\n"),
    "two-animals": table_of("encounters.csv", "image,encounter\na.jpg,S1\nc.jpg,S1\n"),
    "which-part": namesake,
    "skip-list": table_of("skip.csv", "image\na.jpg\n"),
    "box-outside": boxes_of("1 1 90 60", "100 10 300 90"),
    "read-as": table_of("encounters.csv", "Image;Date\na.jpg;2019-07-01\n"),
    "unknown-photograph": table_of("encounters.csv", "image,date\nz.jpg,2019-07-01\n"),
    "box-cut": boxes_of(*["1 1 90 60"] * 7, "100 10 300 90", frame=",144,96"),
    "tiny-box": boxes_of("1 1 90 5"),
    "box-corner": small_corner,
    "box-frame": boxes_of("1 1 90 60", frame=",96,144"),
    "leaves-folder": cell(2, "image", "../x.jpg"),
    "listed-twice": cell(2, "image", in_lines),
    "absent": cell(2, "image", "gone.jpg"),
    "moved": plant_moved,
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
    "not-read": lambda root: (
        (root / "sample_submission.csv").unlink() or (root / "test_images" / "IMG_9.CR2").write_bytes(b"II*\0")
    ),
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


UNUSABLE = {"no-table", "no-photos", "not-a-table", "missing-column", "empty-table", "separator"}
DEEP = {"near-photo"}


def kinds(root, deep=False):
    return {finding.kind for finding in check_folder(root, deep=deep, progress=False).findings}


def test_check_folder_of_a_clean_folder_finds_nothing(clean):
    check = check_folder(clean, deep=True, progress=False)
    assert check.findings == [] and check.status == 0
    assert check.summary["photos"] == 8 and check.summary["test_photos"] == 4 and check.summary["photos_seen"] == 12
    assert (check.summary["individuals"], check.summary["singletons"]) == (3, 0)
    assert (check.summary["median_width"], check.summary["median_height"]) == (144, 96)
    assert check.summary["bytes"] == sum(path.stat().st_size for path in clean.glob("*_images/*"))


def test_findings_are_all_planted_by_these_tests():
    assert set(PLANTS) == set(FINDINGS)


@pytest.mark.parametrize("kind", PLANTS)
def test_check_folder_with_a_planted_fault_names_it_and_its_file(kind, folder):
    PLANTS[kind](folder)
    check = check_folder(folder, deep=kind in DEEP, progress=False)
    found = [f for f in check.findings if f.kind == kind]
    assert found and all(f.file for f in found), [f.kind for f in check.findings]
    assert check.status == (2 if kind in UNUSABLE else 1)


@pytest.mark.parametrize("kind", ["truncated", "too-large", "empty-file", "not-a-photo", "16-bit", "cmyk", "alpha"])
def test_check_folder_deep_finds_what_the_header_shows_too(kind, folder):
    PLANTS[kind](folder)
    assert kind in kinds(folder, deep=True)


def test_check_folder_finds_damage_in_the_middle_only_by_decoding(folder):
    path = folder / "train_images" / "a.jpg"
    with Image.open(path) as image:
        image.save(path, format="PNG")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    assert "truncated" not in kinds(folder) and "truncated" in kinds(folder, deep=True)


@pytest.mark.parametrize("name", ["/etc/passwd", "..\\x.jpg", "C:x.jpg", "a/b.jpg", "..", "."])
def test_check_folder_with_a_name_that_leaves_the_folder_says_so_once(name, folder):
    cell(2, "image", name)(folder)
    found = [f for f in check_folder(folder, progress=False).findings if f.kind != "not-listed"]
    assert [(f.kind, f.row) for f in found] == [("leaves-folder", 4)]


@pytest.mark.parametrize("name", ["..jpg", "a..b.jpg", "CC:x.jpg", ".hidden.jpg"])
def test_check_folder_with_an_odd_plain_name_says_only_that_it_is_absent(name, folder):
    cell(2, "image", name)(folder)
    found = [f for f in check_folder(folder, progress=False).findings if f.kind != "not-listed"]
    assert [(f.kind, f.row) for f in found] == [("absent", 4)]


def test_check_folder_finds_faults_of_the_truth_that_only_the_report_reads(folder):
    (folder / "test_truth.csv").write_text("image,individual\np.jpg,x\n")
    found = [(f.kind, f.file) for f in check_folder(folder, progress=False).findings]
    assert found == [("missing-column", "test_truth.csv")]


def test_check_folder_counts_rows_as_a_spreadsheet_does(folder):
    cell(2, "individual_id", "")(folder)
    finding = next(f for f in check_folder(folder, progress=False).findings if f.kind == "empty-cell")
    assert (finding.file, finding.row, finding.level) == ("train.csv", 4, "error")
    assert finding.detail == "individual_id"


def test_check_folder_says_where_a_row_stands_already_and_which_file_may_be_meant(folder):
    cell(5, "image", "b.jpg")(folder)
    cell(6, "image", "G.JPG")(folder)
    found = {f.kind: f for f in check_folder(folder, progress=False).findings}
    assert found["listed-twice"].row == 7 and found["listed-twice"].detail == "b.jpg, already in row 3"
    assert found["absent"].row == 8 and found["absent"].detail == "G.JPG is not in train_images/; is it g.jpg?"
    lost = [f.file for f in check_folder(folder, progress=False).findings if f.kind == "not-listed"]
    assert lost == ["train_images/f.jpg", "train_images/g.jpg"]


def test_check_folder_names_photographs_without_a_fold_and_folds_that_are_no_numbers(folder):
    names = sorted(path.name for path in (folder / "train_images").iterdir())
    fold = dict(zip(names, ["0", "1", "2", "-1", "1.0", "3", "4", "5"], strict=True))
    pd.Series(fold, name="fold").drop("b.jpg").rename_axis("image").reset_index().to_csv(
        folder / "folds.csv", index=False
    )
    found = [(f.kind, f.detail, f.row) for f in check_folder(folder, progress=False).findings]
    assert found == [
        ("folds", "b.jpg has no fold", None),
        ("folds", "'-1' is not a whole number from 0", 4),
        ("folds", "'1.0' is not a whole number from 0", 5),
    ]


def test_check_folder_names_copies_by_what_the_tables_say_of_them(folder):
    for first, second in (("train_images/a.jpg", "train_images/b.jpg"), ("train_images/c.jpg", "train_images/e.jpg")):
        shutil.copy(folder / first, folder / second)
    shutil.copy(folder / "train_images" / "h.jpg", folder / "test_images" / "p.jpg")
    found = [(f.kind, f.file, f.detail) for f in check_folder(folder, progress=False).findings]
    assert found == [
        ("same-photo", "train_images/b.jpg", "is train_images/a.jpg"),
        ("two-individuals", "train_images/e.jpg", "is train_images/c.jpg: y, z"),
        ("train-and-test", "test_images/p.jpg", "is train_images/h.jpg"),
    ]


@pytest.mark.parametrize(("side", "found"), [(31, ["tiny"]), (32, [])])
def test_check_photo_finds_pictures_tiny_below_32_pixels(side, found, tmp_path):
    Image.new("RGB", (64, side), "red").save(tmp_path / "photo.jpg")
    assert [kind for kind, _ in inspect_photo(tmp_path / "photo.jpg").findings] == found
    assert [kind for kind, _ in inspect_photo(tmp_path / "photo.jpg", deep=True).findings] == found


@pytest.mark.parametrize("orientation", range(9))
def test_check_photo_of_a_turned_picture_names_its_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (64, 40), "red").save(tmp_path / "photo.jpg", exif=exif)
    turned = [] if orientation in (0, 1) else [("exif-rotation", f"orientation {orientation}")]
    assert list(inspect_photo(tmp_path / "photo.jpg").findings) == turned


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        (NEW, "nobody", "names nobody"),
        ("N/A", "nobody", "names nobody"),
        ("w\u200b7", "odd-name", "cannot be shown"),
        ("1.2E+05", "odd-id", "looks like a number changed by a spreadsheet"),
        ("12.0", "odd-id", "looks like a number changed by a spreadsheet"),
        ("W9", "twin-names", "differs from 'W9' only by case"),
        ("w-9_", "odd-id", "differs from 'w9' only by blanks or hyphens"),
    ],
)
def test_odd_ids_of_an_odd_name_says_why(name, kind, why):
    found = odd_ids(["w9", "0007", "12.05", "E+5", "two words", name, "w9"])
    assert [(k, why in reason) for k, reason in found.values()] == [(kind, True)]


def test_describe_and_as_json_of_many_findings_show_examples_and_list_all():
    check = Check(Path("data"), {"photos": 1200, "individuals": 7, "species": 2, "bytes": 2_500_000, "skipped_test": 3})
    for row in range(2, 7):
        check.add("nobody", "train.csv", f"'w {row}' names nobody", row)
    check.add("tiny", "train_images/a.jpg")
    text = describe_check(check)
    assert "1,200 known photographs of 7 individuals, 2 species; 0 to be identified" in text
    assert "0 files looked at, 2.5 MB" in text and "3 more are left out" in text
    assert "error: nobody, 5 times:" in text and "train.csv, row 4: 'w 4' names nobody" in text and "row 5" not in text
    assert (
        "... and 2 more (--json lists all)" in text and "warning: tiny, once:" in text and text.endswith("\n6 findings")
    )
    told = check_as_dict(check)
    assert (told["status"], len(told["findings"]), told["root"]) == ("findings", 6, "data")
    assert told["findings"][5] == {
        "kind": "tiny", "file": "train_images/a.jpg", "detail": "", "row": None, "level": "warning"
    }  # fmt: skip
    exactly = Check(Path("data"))
    for row in range(3):
        exactly.add("tiny", f"{row}.jpg")
    assert "more (--json" not in describe_check(exactly)
    assert describe_check(Check(Path("data"))).endswith("clean: nothing found") and count_noun(1, "file") == "1 file"
    assert check_as_dict(Check(Path("data"), usable=False))["status"] == "unusable"


def test_check_command_speaks_to_people_and_to_machines(folder):
    PLANTS["truncated"](folder)
    said = CliRunner().invoke(main, ["data", "check", str(folder)])
    machine = CliRunner().invoke(main, ["data", "check", str(folder), "--json"])
    assert said.exit_code == machine.exit_code == 1
    assert "truncated, once" in said.stdout and "copy it again" in said.stdout
    told = json.loads(machine.stdout)
    assert told["status"] == "findings" and told["findings"][0]["kind"] == "truncated"
    assert CliRunner().invoke(main, ["data", "check", str(folder / "nowhere")]).exit_code == 2
    (folder / "train.csv").unlink()
    assert CliRunner().invoke(main, ["data", "check", str(folder)]).exit_code == 2


def test_check_command_skips_bad_photographs_on_request_and_only_then(folder):
    path = folder / "train_images" / "a.jpg"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=f"{path.name}.*--skip"):
        load_crop(path, 32)
    assert len(read_dataset(folder).train) == 8
    assert CliRunner().invoke(main, ["data", "check", str(folder), "--deep", "--skip"]).exit_code == 1
    data = read_dataset(folder)
    assert len(data.train) == 7 and data.skipped[["image", "part"]].to_numpy().tolist() == [[path.name, "train"]]
    again = CliRunner().invoke(main, ["data", "check", str(folder), "--deep"])
    assert again.exit_code == 0 and "1 more are left out" in again.stdout


def test_write_skips_adds_absent_and_empty_photographs_to_those_listed(folder):
    (folder / "skip.csv").write_text("image,reason\nh.jpg,blurred\n")
    (folder / "train_images" / "a.jpg").unlink()
    (folder / "train_images" / "b.jpg").write_bytes(b"")
    with Image.open(folder / "train_images" / "c.jpg") as image:
        image.convert("L").save(folder / "train_images" / "c.jpg")  # a warning: it stays
    assert write_skips(check_folder(folder, progress=False)) == 2
    assert (folder / "skip.csv").read_text() == (
        "image,reason,part\nh.jpg,blurred,\na.jpg,absent,train\nb.jpg,empty-file,train\n"
    )
    assert write_skips(check_folder(folder, progress=False)) == 0
    assert kinds(folder) == {"greyscale", "readable-again"}


def test_check_folder_of_the_real_tables_finds_no_faults_but_absent_photographs(shared):
    check = check_folder(shared / "happywhale", progress=False)
    assert {f.kind for f in check.findings} == {"no-photos", "tiny-box"}
    assert check.summary["photos"] == 51033 and check.summary["individuals"] == 15587
    assert (check.summary["species"], check.summary["species_spellings"]) == (26, 30)
    assert check.summary["singletons"] == 9258


def test_check_folder_of_the_real_photographs_finds_them_whole(shared):
    assert not kinds(shared / "happywhale_photos", deep=True) & {
        "truncated", "not-a-photo", "empty-file", "two-individuals"
    }  # fmt: skip


def test_check_folder_without_a_table_of_queries_asks_for_those_that_moved(folder, tmp_path):
    (folder / "sample_submission.csv").unlink()
    path = folder / "test_images" / "p.jpg"
    path.unlink()
    path.symlink_to(tmp_path / "gone" / "p.jpg")
    found = [(f.kind, f.file, f.detail) for f in check_folder(folder, progress=False).findings]
    assert found == [("moved", "test_images/p.jpg", f"was {tmp_path / 'gone' / 'p.jpg'}")]


def test_blend_stage_answers_a_skipped_test_photograph_with_new(folder, tmp_path):
    (folder / "test_images" / "s.jpg").write_bytes(b"")
    CliRunner().invoke(main, ["data", "check", str(folder), "--skip"])
    data = read_dataset(folder)
    assert "s.jpg" not in set(data.test["image"])
    answers = [["a", "b", "c", "d", "e"]] * len(data.test)
    write_predictions(tmp_path / "model" / "fold0" / "test.csv", data.test["image"], answers)
    record = blend_stage(data, tmp_path)
    images, given = read_predictions(tmp_path / "submission.csv")
    sample = pd.read_csv(folder / "sample_submission.csv")["image"]
    assert record["unseen"] == ["s.jpg"] and sorted(images) == sorted(sample)
    assert given[images == "s.jpg"].tolist() == [[NEW, "", "", "", ""]]


def test_check_folder_and_read_dataset_with_a_link_to_nowhere_ask_where_the_folder_is(folder, tmp_path):
    path = folder / "train_images" / "a.jpg"
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    assert check_folder(folder, progress=False).status == 0
    (tmp_path / path.name).unlink()
    check = check_folder(folder, progress=False)
    assert [(f.kind, f.file, f.row) for f in check.findings] == [("moved", "train_images/a.jpg", 2)]
    assert f"1 photograph not found; where is the folder? It was {tmp_path}" in describe_check(check)
    assert write_skips(check) == 0, "moved photographs are found again, not left out"
    with pytest.raises(UserError, match=r"1 of 8 photographs .* `happywhale data relink"):
        read_dataset(folder)
