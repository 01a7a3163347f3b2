"""Other people's catalogues become data folders, complete or not at all."""

import json
import os

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


def run(*arguments, command="import"):
    return CliRunner().invoke(main, ["data", command, *map(str, arguments)])


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
    assert data.train.set_index("image")["date"]["W7__1.jpg"] == "2020-05-01T10:00:00"
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
        datetime="2019-07-30T12:00:00",
    )
    result = run(*source)
    assert result.exit_code == 0, result.stderr
    data = read_dataset(tmp_path / "mine")
    assert data.train[["image", "individual_id"]].to_numpy().tolist() == [["p.jpg", "A1"], ["p_2.jpg", "A2"]]
    row = data.train.iloc[0]
    about = ["killer_whale", "2019-07-30T12:00:00", "E1 A1", "7"]
    assert row[["species", "date", "encounter", "place"]].tolist() == about
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
        lambda t: ((t / "a.xlsx").write_text("%PDF-1.4") and t / "a.xlsx", "--to", t / "mine"),
        "a.xlsx is a PDF: save it as .xlsx, or as CSV UTF-8",
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
    assert result.exit_code == 2
    assert "'Old Scar' (Old Scar/1.jpg) and 'Old_Scar' (Old_Scar/5.jpg) are one name" in result.stderr
    assert not (tmp_path / "mine").exists()


def test_import_command_of_two_animals_without_boxes_is_refused(tmp_path):
    source = coco(tmp_path, [{"id": i, "image_id": "i1", "category_id": 1, "name": f"A{i}"} for i in (1, 2)])
    result = run(*source)
    assert result.exit_code == 2 and "no boxes tell them apart" in result.stderr


def test_import_command_into_a_folder_that_is_there_changes_nothing(folders, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("mine")
    result = run(folders, "--to", tmp_path / "mine")
    assert result.exit_code == 2 and "already exists" in result.stderr
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


@pytest.fixture
def moved(folders, tmp_path):
    """An imported data folder whose photographs were moved: its path, and theirs."""
    assert run(folders, "--to", tmp_path / "mine").exit_code == 0
    folders.rename(tmp_path / "disk")
    return tmp_path / "mine", tmp_path / "disk"


def links(data_dir):
    return {path.name: os.readlink(path) for path in data_dir.glob("*_images/*")}


def test_relink_command_after_a_move_makes_every_link_anew(moved):
    data_dir, disk = moved
    expected = [(disk / name).read_bytes() for name in ("Old Scar/1.jpg", "W7/1.jpg", "unknown/9.jpg")]
    result = run(data_dir, "--photos", disk, command="relink")
    assert result.exit_code == 0, result.output
    assert "4 broken links: 4 found, 0 ambiguous, 0 not found" in result.stdout
    assert "4 photographs linked" in result.stdout
    names = ("train_images/Old Scar__1.jpg", "train_images/W7__1.jpg", "test_images/9.jpg")
    assert [(data_dir / name).read_bytes() for name in names] == expected
    assert check_folder(data_dir, progress=False).status == 0
    assert not [path for path in data_dir.rglob(".*")]


def test_relink_command_with_dry_run_changes_nothing(moved):
    data_dir, disk = moved
    before = links(data_dir)
    result = run(data_dir, "--photos", disk, "--dry-run", command="relink")
    assert result.exit_code == 0
    assert "4 found" in result.stdout
    assert "nothing was changed" in result.stdout
    assert links(data_dir) == before


def test_relink_command_that_finds_nothing_changes_nothing_and_names_all(moved, tmp_path):
    data_dir, before = moved[0], links(moved[0])
    (tmp_path / "other").mkdir()
    result = run(data_dir, "--photos", tmp_path / "other", command="relink")
    assert result.exit_code == 2
    assert "nothing was changed" in result.stderr
    assert "not found: test_images/9.jpg, was" in result.stdout
    assert links(data_dir) == before


def test_relink_command_links_what_it_finds_and_names_the_rest(moved):
    data_dir, disk = moved
    (disk / "W7" / "1.jpg").unlink()
    (disk / "unknown").rename(disk / "2020")
    draw(disk / "2021" / "9.jpg")
    (disk / "Old Scar" / "1.jpg").rename(disk / "1.jpg")
    result = run(data_dir, "--photos", disk, command="relink")
    assert result.exit_code == 1
    # two links used to lead to files called 1.jpg; the one that is left is told from the other by its content
    assert "4 broken links: 3 found, 0 ambiguous, 1 not found" in result.stdout
    assert f"{disk / '1.jpg'} has this name but other content" in result.stdout
    assert (data_dir / "test_images" / "9.jpg").read_bytes() == (disk / "2020" / "9.jpg").read_bytes()
    assert not (data_dir / "train_images" / "W7__1.jpg").exists()


def test_relink_command_finds_photographs_under_other_names_by_their_content(moved):
    data_dir, disk = moved
    before = {path.name: path.read_bytes() for path in disk.rglob("*.*")}
    for i, path in enumerate(sorted(disk.rglob("*.jpg"))):
        path.rename(disk / f"DSC_{i}.jpg")
    checked = run(data_dir, command="check")
    assert "4 photographs not found; where is the folder? It was" in checked.stdout and checked.exit_code == 1
    result = run(data_dir, "--photos", disk, command="relink")
    assert result.exit_code == 0 and "4 broken links: 4 found" in result.stdout
    assert (data_dir / "test_images" / "9.jpg").read_bytes() == before["9.jpg"]
    assert check_folder(data_dir, progress=False).status == 0


def test_relink_command_restores_links_that_a_copy_has_dropped(moved):
    data_dir, disk = moved
    for link in data_dir.glob("*_images/*"):
        link.unlink()
    result = run(data_dir, "--photos", disk, command="relink")
    assert result.exit_code == 0 and "4 found" in result.stdout
    assert check_folder(data_dir, progress=False).status == 0


def test_relink_command_leaves_alone_what_was_taken_out_of_the_data_folder(moved):
    data_dir, disk = moved
    table = pd.read_csv(data_dir / "train.csv")
    table[table["image"] != "2.JPG"].to_csv(data_dir / "train.csv", index=False)
    (data_dir / "train_images" / "2.JPG").unlink()
    result = run(data_dir, "--photos", disk, command="relink")
    assert result.exit_code == 0 and "3 broken links: 3 found" in result.stdout
    assert not (data_dir / "train_images" / "2.JPG").exists()


def test_relink_command_of_an_older_data_folder_goes_by_names_and_by_name_on_request(moved):
    data_dir, disk = moved
    (disk / "W7" / "1.jpg").write_bytes(b"edited since")
    refused = run(data_dir, "--photos", disk, "--dry-run", command="relink")
    assert "3 found, 0 ambiguous, 1 not found" in refused.stdout and "--by-name" in refused.stdout
    assert "4 found" in run(data_dir, "--photos", disk, "--by-name", "--dry-run", command="relink").stdout
    (data_dir / "contents.csv").unlink()
    (disk / "unknown").rename(disk / "2020")
    draw(disk / "2021" / "9.jpg")
    older = run(data_dir, "--photos", disk, command="relink").stdout
    assert "4 broken links: 3 found, 1 ambiguous, 0 not found" in older
    assert f"ambiguous: test_images/9.jpg: {disk / '2020' / '9.jpg'}, {disk / '2021' / '9.jpg'}" in older


def test_relink_command_without_broken_links_changes_nothing(folders, tmp_path):
    run(folders, "--to", tmp_path / "mine")
    before = links(tmp_path / "mine")
    result = run(tmp_path / "mine", "--photos", folders, command="relink")
    assert (result.exit_code, links(tmp_path / "mine")) == (0, before)
    assert "0 broken links" in result.stdout


def test_relink_command_without_the_folder_of_photographs_says_so(moved, tmp_path):
    result = run(moved[0], "--photos", tmp_path / "nowhere", command="relink")
    assert result.exit_code == 2
    assert "nowhere is missing" in result.stderr


def test_relink_where_no_symbolic_links_can_be_made_leaves_whole_photographs_and_says_so(moved, monkeypatch):
    data_dir, disk = moved

    def refuse(source, target):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
    result = run(data_dir, "--photos", disk, command="relink")
    assert result.exit_code == 0
    assert "4 photographs are hard links, second names of the same files" in result.stderr
    assert (data_dir / "test_images" / "9.jpg").read_bytes() == (disk / "unknown" / "9.jpg").read_bytes()
