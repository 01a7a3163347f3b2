"""Other people's catalogues become data folders, complete or not at all."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from happywhale_nb.cli.main import main
from happywhale_nb.data.boxes import read_boxes
from happywhale_nb.data.check import check_folder
from happywhale_nb.data.dataset import read_dataset

rng = np.random.default_rng(0)


def draw(path, date=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if date:
        exif[0x0132] = date
    pixels = rng.integers(0, 255, (5, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((80, 50)).save(path, exif=exif)


def run(*arguments):
    return CliRunner().invoke(main, ["data", "import", *map(str, arguments)])


@pytest.fixture
def folders(tmp_path):
    for name in ("Old Scar/1.jpg", "Old Scar/2.JPG", "W7/1.jpg", "unknown/9.jpg"):
        draw(tmp_path / "photos" / name, "2020:05:01 10:00:00" if "W7" in name else None)
    (tmp_path / "photos" / "W7" / "notes.txt").write_text("a fine animal")
    return tmp_path / "photos"


def test_import_command_of_folders_writes_a_clean_data_folder(folders, tmp_path):
    result = run(folders, "--to", tmp_path / "mine", "--species", "humpback whale")
    assert result.exit_code == 0, result.stderr
    data = read_dataset(tmp_path / "mine")
    assert dict(zip(data.train["image"], data.train["individual_id"], strict=True)) == {
        "2.JPG": "Old_Scar",
        "Old Scar__1.jpg": "Old_Scar",
        "W7__1.jpg": "W7",
    }
    assert set(data.train["species"]) == {"humpback_whale"} and data.test["image"].tolist() == ["9.jpg"]
    assert data.train.set_index("image")["date"]["W7__1.jpg"] == "2020-05-01 10:00:00"
    assert check_folder(tmp_path / "mine", deep=True, progress=False).status == 0
    assert (tmp_path / "mine" / "train_images" / "2.JPG").is_symlink()


def test_import_command_of_species_folders_with_copy_links_nothing(tmp_path):
    for name in ("beluga/B1/a.png", "killer_whale/K1/a.png"):
        draw(tmp_path / "photos" / name)
    assert run(tmp_path / "photos", "--to", tmp_path / "mine", "--copy").exit_code == 0
    data = read_dataset(tmp_path / "mine")
    assert data.train["species"].tolist() == ["beluga", "killer_whale"]
    assert not any(p.is_symlink() for p in (tmp_path / "mine" / "train_images").iterdir())


def test_import_command_with_dry_run_writes_nothing(folders, tmp_path):
    result = run(folders, "--to", tmp_path / "mine", "--dry-run")
    assert result.exit_code == 0 and "3 photographs of 2 individuals" in result.stdout
    assert not (tmp_path / "mine").exists()


def test_import_command_of_a_semicolon_table_finds_columns_and_photographs(tmp_path):
    draw(tmp_path / "scans" / "2021" / "x.jpg")
    draw(tmp_path / "scans" / "y.jpg")
    (tmp_path / "sightings.csv").write_text(
        "Datei;WhaleName;Species;Event date;Flank;Sighting;lat;lon\n2021\\x.jpg;K 1;orca;2021-06-01;left;S1;60,1;-3\n"
        "y.jpg;;orca;2021-06-02;right;S2;60;-3\n"
    )
    columns = ["-c", "individual_id=WhaleName", "-c", "image=Datei"]
    result = run(tmp_path / "sightings.csv", "--photos", tmp_path / "scans", "--to", tmp_path / "mine", *columns)
    assert result.exit_code == 0, result.stderr
    data = read_dataset(tmp_path / "mine")
    assert data.train.iloc[0][["image", "individual_id", "species", "date", "side", "encounter"]].tolist() == [
        "x.jpg",
        "K_1",
        "orca",
        "2021-06-01",
        "left",
        "S1",
    ]
    assert data.test["image"].tolist() == ["y.jpg"]


def coco(tmp_path, annotations, **image):
    draw(tmp_path / "images" / "seq" / "p.jpg")
    content = {
        "images": [{"id": "i1", "file_name": "seq/p.jpg", "seq_id": "E1", "location": 7, **image}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "Killer whale"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return tmp_path / "coco.json", "--photos", tmp_path / "images", "--to", tmp_path / "mine"


def test_import_command_of_coco_with_two_animals_on_a_photograph_makes_two_rows(tmp_path):
    source = coco(
        tmp_path,
        [
            {"id": 1, "image_id": "i1", "category_id": 1, "bbox": [2, 3, 20, 10], "name": "A1"},
            {"id": 2, "image_id": "i1", "category_id": 1, "bbox": [30, 3, 20.5, 10], "name": "A2"},
        ],
        datetime="2019-07-30 12:00:00",
    )
    result = run(*source)
    assert result.exit_code == 0, result.stderr
    data = read_dataset(tmp_path / "mine")
    assert data.train[["image", "individual_id"]].to_numpy().tolist() == [["p.jpg", "A1"], ["p_2.jpg", "A2"]]
    row = data.train.iloc[0]
    assert row[["species", "date", "encounter", "place"]].tolist() == ["killer_whale", "2019-07-30 12:00:00", "E1", "7"]
    boxes = read_boxes(tmp_path / "mine")
    assert boxes[["image", "x0", "y0", "x1", "y1"]].to_numpy().tolist() == [
        ["p.jpg", 2, 3, 22, 13],
        ["p_2.jpg", 30, 3, 50.5, 13],
    ]


BAD = {
    "there is no such source": (lambda t: (t / "nowhere", "--to", t / "mine"), "is missing"),
    "nothing in the folder": (lambda t: ((t / "empty").mkdir() or t / "empty", "--to", t / "mine"), "no photographs"),
    "not COCO": (lambda t: ((t / "a.json").write_text("[1]") and t / "a.json", "--to", t / "mine"), "not COCO"),
    "another kind of file": (
        lambda t: ((t / "a.xlsx").write_text("x") and t / "a.xlsx", "--to", t / "mine"),
        "folder, .csv",
    ),
    "a column that is not there": (
        lambda t: (
            (t / "a.csv").write_text("image,id\nx,1\n") and t / "a.csv",
            "--to",
            t / "mine",
            "-c",
            "individual_id=Name",
        ),
        "no column 'Name'",
    ),
    "no column for individuals": (
        lambda t: ((t / "a.csv").write_text("image,flag\nx,1\n") and t / "a.csv", "--to", t / "mine"),
        "-c individual_id=COLUMN",
    ),
    "a photograph that is absent": (
        lambda t: ((t / "a.csv").write_text("image,identity\nx.jpg,1\n") and t / "a.csv", "--to", t / "mine"),
        "--skip-missing",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_import_command_of_what_cannot_be_read_names_it_and_writes_nothing(name, tmp_path):
    arguments, message = BAD[name]
    result = run(*arguments(tmp_path))
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "mine").exists()


def test_import_command_with_two_names_that_become_one_is_refused(folders, tmp_path):
    draw(folders / "Old_Scar" / "5.jpg")
    result = run(folders, "--to", tmp_path / "mine")
    assert result.exit_code == 2 and "would both be called 'Old_Scar'" in result.stderr


def test_import_command_of_two_animals_without_boxes_is_refused(tmp_path):
    source = coco(tmp_path, [{"id": i, "image_id": "i1", "category_id": 1, "name": f"A{i}"} for i in (1, 2)])
    result = run(*source)
    assert result.exit_code == 2 and "no boxes tell them apart" in result.stderr


def test_import_command_into_a_folder_that_is_there_changes_nothing(folders, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("mine")
    result = run(folders, "--to", tmp_path / "mine")
    assert result.exit_code == 2 and "there already" in result.stderr
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["keep.txt"]


def test_import_command_of_a_real_table_keeps_its_individuals(shared, tmp_path):
    """The right whales, as a stranger's table: another layout in, the same individuals out."""
    table = pd.read_csv(shared / "rightwhale80" / "train.csv", dtype=str)
    table.rename(columns={"image": "File", "individual_id": "Whale ID"}).to_csv(
        tmp_path / "t.csv", index=False, sep=";"
    )
    result = run(tmp_path / "t.csv", "--photos", shared / "rightwhale80" / "images", "--to", tmp_path / "mine")
    assert result.exit_code == 0, result.stderr
    data = read_dataset(tmp_path / "mine")
    assert data.train["individual_id"].value_counts().to_dict() == table["individual_id"].value_counts().to_dict()
