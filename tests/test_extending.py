"""Next year's photographs: what is new by content is added, whole or not at all, and what differs is told."""

import contextlib
import os
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import happywhale_nb.data.extend as extend
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import read_boxes
from happywhale_nb.data.check import check_folder
from happywhale_nb.data.dataset import parse_csv, read_dataset
from happywhale_nb.data.extend import contradict, plan_extension, same_content, write_extension
from happywhale_nb.data.importers import ImportOptions, plan_source, write_import

rng = np.random.default_rng(3)
HEAD = "image,name,species,date,side,sighting,lat,lon\n"


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (5, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((80, 50)).save(path)


def run(*arguments):
    return CliRunner().invoke(main, ["data", "import", *map(str, arguments)])


def contents(folder):
    """Every file below a folder with its bytes, hidden ones as well."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def first(tmp_path):
    """A data folder of last year: Ann twice, Zoë once, one photograph without a name."""
    for name in ("a1.jpg", "a2.jpg", "z1.jpg", "q1.jpg"):
        draw(tmp_path / "2026" / name)
    rows = "a1.jpg,Ann,fin whale,2016-07-01,left,S1,57.68,-4.03\na2.jpg,Ann,fin whale,2016-07-01,right,S1,57.68,-4.03\n"
    rows += "z1.jpg,Zoë 07,fin whale,,,S2,,\nq1.jpg,,fin whale,2016-07-03,,S3,,\n"
    (tmp_path / "2026" / "t.csv").write_text(HEAD + rows, encoding="utf-8")
    return write_import(plan_source(tmp_path / "2026" / "t.csv"), tmp_path / "mine", progress=False)


def second(tmp_path, rows, new=(), old=()):
    """A source of this year: drawn photographs, and copies of last year's under other names."""
    for name in new:
        draw(tmp_path / "2027" / name)
    for name, before in old:
        (tmp_path / "2027").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "2026" / before, tmp_path / "2027" / name)
    (tmp_path / "2027" / "t.csv").write_text(HEAD + rows, encoding="utf-8")
    return tmp_path / "2027" / "t.csv"


def test_import_command_with_add_takes_what_is_new_and_says_the_rest(first, tmp_path):
    source = second(
        tmp_path,
        "a1.jpg,ANN,Fin-Whale,2017-07-01,L,S1,,\n"
        "old.jpg,Ann,Balaenoptera physalus,2016-07-01T10:00,left,S1,57.6800,-4.03\n"
        "n.jpg,Nova,fin whale,2017-07-02,,S2,,\nq.jpg,,fin whale,2017-07-03,,S4,,\n",
        new=("a1.jpg", "n.jpg", "q.jpg"),
        old=[("old.jpg", "a1.jpg")],
    )
    dry = run(source, "--to", first, "--add", "--dry-run")
    before = contents(first)
    assert dry.exit_code == 0, dry.stderr
    result = run(source, "--to", first, "--add")
    assert result.exit_code == 0, result.stderr
    spelt = "1 name spelt as in the data folder, such as 'ANN'"
    for words in ("1 photograph of the source in", "new individuals, 1: Nova", spelt):
        assert words in result.stdout
        assert words in dry.stdout
    assert "differ" not in result.stdout
    data = read_dataset(first)
    assert data.train["individual_name"].value_counts().to_dict() == {"Ann": 3, "Zoë 07": 1, "Nova": 1}
    assert set(data.train["species"]) == {"fin_whale"}
    assert set(data.test["image"]) == {"q1.jpg", "q.jpg"}
    train = data.train.set_index("image")
    # the same names of sightings mean others this year
    assert train["encounter"].to_dict()["a1_2.jpg"] == "S1 (2)"
    assert train["encounter"].to_dict()["n.jpg"] == "S2 (2)"
    assert parse_csv(first / "encounters.csv")["image"].tolist() == ["q1.jpg", "q.jpg"]
    after = contents(first)
    assert all(after[name] == content for name, content in before.items() if name.endswith(".jpg"))
    assert check_folder(first, deep=True, progress=False).usable


def test_import_with_add_of_the_same_source_again_changes_nothing_and_alarms_nobody(first, tmp_path):
    before = contents(first)
    result = run(tmp_path / "2026" / "t.csv", "--to", first, "--add")
    assert result.exit_code == 0, result.stderr
    assert "4 photographs of the source in" in result.stdout
    assert "nothing is new" in result.stdout
    assert "left out" not in result.stdout
    assert contents(first) == before


def test_import_with_add_says_what_differs_and_keeps_what_is_there(first, tmp_path):
    rows = "x.jpg,Bo,fin whale,2016-07-09,left,S1,57.68,-4.03\ny.jpg,Ann,beluga,2016-07-01,left,S9,1,2\n"
    rows += "q.jpg,Cleo,,,,,,\n"
    source = second(tmp_path, rows, old=[("x.jpg", "a1.jpg"), ("y.jpg", "a2.jpg"), ("q.jpg", "q1.jpg")])
    train = (first / "train.csv").read_bytes()
    extension = plan_extension(source, first)
    assert [text.partition(" in t.csv")[0] for text in extension.differences] == [
        "a1.jpg is Ann here, Bo",
        "a2.jpg: species is fin_whale here, beluga",
        "a2.jpg: side is right here, left",
        "a2.jpg: encounter is S1 here, S9",
        "a2.jpg: latitude is 57.68 here, 1",
        "a2.jpg: longitude is -4.03 here, 2",
        "q1.jpg waits to be identified here, Cleo",
    ]
    result = run(source, "--to", first, "--add")
    assert "left out: differences from the data folder, which is kept, 7: a1.jpg is Ann here, Bo in" in result.stdout
    assert (first / "train.csv").read_bytes() == train


def test_import_with_add_fills_in_what_was_unknown(first, tmp_path):
    rows = "z.jpg,ZOË 07,,2016-07-05,left,,57.1,-4\nq.jpg,,,2016-07-03T10:00,right,,,\n"
    source = second(tmp_path, rows, old=[("z.jpg", "z1.jpg"), ("q.jpg", "q1.jpg")])
    result = run(source, "--to", first, "--add")
    assert result.exit_code == 0, result.stderr
    assert "2 of them get what was unknown: date, latitude, longitude, side" in result.stdout
    row = read_dataset(first).train.set_index("image").loc["z1.jpg"]
    assert row[["date", "side", "encounter", "latitude"]].tolist() == ["2016-07-05", "left", "S2", "57.1"]
    assert parse_csv(first / "encounters.csv").set_index("image")["side"].to_dict() == {"q1.jpg": "right"}


def test_import_with_add_sets_a_species_that_was_unknown_and_changes_no_other(first, tmp_path):
    """A first import without --species is mended by a second one of the same source."""
    source = second(tmp_path, "z.jpg,ZOË 07,,,,,,\ny.jpg,Ann,,,,,,\n", old=[("z.jpg", "z1.jpg"), ("y.jpg", "a2.jpg")])
    train = read_dataset(first).train.set_index("image")["species"]
    text = (first / "train.csv").read_text(encoding="utf-8")
    (first / "train.csv").write_text(text.replace("z1.jpg,fin_whale", "z1.jpg,unknown"), encoding="utf-8")
    result = run(source, "--to", first, "--add", "--species", "Humpback Whale")
    assert "1 of them get what was unknown: species" in result.stdout
    now = read_dataset(first).train.set_index("image")["species"]
    assert now["z1.jpg"] == "humpback_whale" and now.drop("z1.jpg").equals(train.drop("z1.jpg"))


def test_import_with_add_of_boxes_adds_those_that_are_missing(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        draw(tmp_path / "p" / name)
    (tmp_path / "p" / "t.csv").write_text("image,name,x,y,w,h\na.jpg,A,1,2,30,20\nb.jpg,B,,,,\n")
    data = write_import(plan_source(tmp_path / "p" / "t.csv"), tmp_path / "mine", progress=False)
    (tmp_path / "p" / "t.csv").write_text("image,name,x,y,w,h\na.jpg,A,1,2,40,20\nb.jpg,B,5,5,10,10\n")
    extension = plan_extension(tmp_path / "p" / "t.csv", data)
    write_extension(extension, progress=False)
    assert extension.differences == ("a.jpg: its box differs in t.csv, row 2",)
    assert read_boxes(data).set_index("image")["x1"].to_dict() == {"a.jpg": 31, "b.jpg": 15}


@pytest.mark.parametrize("moves", [0, 1, 4])
def test_import_with_add_that_fails_on_the_way_leaves_all_as_it_was(first, tmp_path, monkeypatch, moves):
    source = second(tmp_path, "n.jpg,Nova,,,,S7,,\nq.jpg,,,2017-07-03,,S4,,\n", new=("n.jpg", "q.jpg"))
    extension, before, rename, left = plan_extension(source, first), contents(first), extend.rename_patiently, [moves]

    def failing(a, b):
        if left[0] == 0:
            left[0] = -1
            raise OSError(28, "No space left on device")
        left[0] -= 1
        rename(a, b)

    monkeypatch.setattr(extend, "rename_patiently", failing)
    with pytest.raises(UserError, match="No space left"):
        write_extension(extension, copy=True, progress=False)
    assert contents(first) == before


@pytest.mark.parametrize("moves", [1, 3, 4])
def test_import_with_add_that_was_killed_on_the_way_is_whole_and_goes_on(first, tmp_path, monkeypatch, moves):
    source = second(tmp_path, "n.jpg,Nova,,,,S7,,\nq.jpg,,,2017-07-03,,S4,,\n", new=("n.jpg", "q.jpg"))
    rename, left = extend.rename_patiently, [moves]

    def killed(a, b):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        rename(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(extend, "rename_patiently", killed)
        patch.setattr(extend, "_take_back", lambda moved: None)
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        with contextlib.suppress(KeyboardInterrupt):
            write_extension(plan_extension(source, first), copy=True, progress=False)
    for table in first.glob("*.csv"):
        assert len(parse_csv(table))
    result = run(source, "--to", first, "--add", "--copy")
    assert result.exit_code == 0, result.stderr
    data = read_dataset(first)
    assert sorted(data.train["image"]) == ["a1.jpg", "a2.jpg", "n.jpg", "z1.jpg"]
    assert sorted(data.test["image"]) == ["q.jpg", "q1.jpg"]
    assert sorted(path.name for path in (first / "train_images").iterdir()) == sorted(data.train["image"])


def test_import_with_add_to_what_is_no_data_folder_or_has_lost_its_photographs_is_refused(first, tmp_path):
    source = second(tmp_path, "n.jpg,Nova,,,,,,\n", new=("n.jpg",))
    result = run(source, "--to", tmp_path / "none", "--add")
    assert result.exit_code == 2
    assert "is not a data folder, so nothing can be added to it: import without --add makes one" in result.stderr
    (tmp_path / "2026").rename(tmp_path / "moved")
    result = run(source, "--to", first, "--add")
    assert result.exit_code == 2
    assert "4 photographs of" in result.stderr
    assert "happywhale data relink" in result.stderr


def test_import_with_add_of_photographs_without_a_name_alone_adds_them(first, tmp_path):
    draw(tmp_path / "later" / "unknown" / "a1.jpg")
    write_extension(plan_extension(tmp_path / "later", first, ImportOptions()), progress=False)
    assert read_dataset(first).test["image"].tolist() == ["q1.jpg", "a1_2.jpg"]


def test_import_with_add_calls_nobody_lost_who_has_photographs_here(first, tmp_path):
    rows = "gone.jpg,ann,,,,,,\nlost.jpg,Nova,,,,,,\nold.jpg,Ann,,,,,,\n"
    source = second(tmp_path, rows, old=[("old.jpg", "a1.jpg")])
    result = run(source, "--to", first, "--add", "--skip-missing")
    assert result.exit_code == 0, result.stderr
    assert "left out: individuals without any photograph now, 1: Nova" in result.stdout
    assert "nothing is new" in result.stdout
    assert "written to" not in result.stdout


def test_import_with_add_and_a_rule_gives_each_source_its_encounters(tmp_path):
    settings = ImportOptions(encounters="folder")
    for year in ("2016", "2017", "2018"):
        draw(tmp_path / year / "Ann" / f"{year}.jpg")
        draw(tmp_path / year / "Bo" / f"{year}.jpg")
    mine = write_import(plan_source(tmp_path / "2016", settings), tmp_path / "mine", progress=False)
    for year in ("2017", "2018"):
        write_extension(plan_extension(tmp_path / year, mine, settings), progress=False)
    assert read_dataset(mine).train["encounter"].nunique() == 6


def test_same_content_reads_only_files_of_one_size(tmp_path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two"), ("d", "three")):
        (tmp_path / name).write_text(text)
    os.chmod(tmp_path / "d", 0)
    found = same_content([tmp_path / "a"], [tmp_path / name for name in "bcd"])
    assert found == {tmp_path / "a": [tmp_path / "b"]}


@pytest.mark.parametrize(
    "column, here, new, differ",
    [
        ("date", "2019-07-13 10:00", "2019-07-13T10:00:00", False),
        ("date", "2019-07", "2019-08-01", True),
        ("place", "bay", "Bay ", False),
        ("latitude", "57.680000", "57.68", False),
    ],
)
def test_contradict_tells_what_cannot_both_be_true(column, here, new, differ):
    assert contradict(column, here, new) == differ
