"""What was chosen for a data folder holds for all that comes later, and tables that say two things are refused."""

import os

import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from PIL import Image

import happywhale_nb.data.relink as relink
from happywhale_nb.catalogue.ingest import _unread_messages, folder_table
from happywhale_nb.catalogue.store import Catalogue
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.check import check_folder
from happywhale_nb.data.dataset import parse_csv, read_dataset
from happywhale_nb.data.encounters import encounter_facts
from happywhale_nb.data.extend import same_content
from happywhale_nb.data.folder_rules import FolderRules, read_rules
from happywhale_nb.data.names import is_nobody
from happywhale_nb.server.app import make_app
from happywhale_nb.server.state import AppState, Options

rng = np.random.default_rng(26)


def draw(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (5, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((80, 50)).save(path)


def run(*arguments):
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


@pytest.fixture
def handmade(tmp_path):
    """A data folder as somebody typed it: two known photographs, one to be identified."""
    root = tmp_path / "handmade"
    draw(root / "train_images" / "a.jpg", root / "train_images" / "b.jpg", root / "test_images" / "q.jpg")
    rows = ["image,species,individual_id,date,side", "a.jpg,fin_whale,Ann,07/08/2019,both", "b.jpg,fin_whale,Bo,,L"]
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root


def kinds(root, **options):
    return [(f.kind, f.file, f.row) for f in check_folder(root, progress=False, **options).findings]


def test_the_rule_of_an_import_is_kept_and_used_for_what_is_added(tmp_path):
    for year in ("2018", "2019"):
        draw(*(tmp_path / year / who / f"{year}_{who}.jpg" for who in ("Ann", "Bo")))
    mine = tmp_path / "mine"
    assert run("import", tmp_path / "2018", "--to", mine, "--encounters", "Folder").exit_code == 0
    assert read_rules(mine) == FolderRules("folder")
    assert run("import", tmp_path / "2019", "--to", mine, "--add").exit_code == 0
    assert (parse_csv(mine / "train.csv")["encounter"] != "").all()
    draw(tmp_path / "2020" / "Ann" / "2020.jpg")
    assert run("import", tmp_path / "2020", "--to", mine, "--add", "--encounters", "burst:10").exit_code == 0
    assert read_rules(mine) == FolderRules("burst:10")
    assert run("import", tmp_path / "2018", "--to", tmp_path / "none").exit_code == 0
    assert not (tmp_path / "none" / "rules.json").exists()


def test_a_catalogue_keeps_the_rule_for_its_page(mine, colours):
    assert mine.encounters == ""
    mine.keep_rule("burst:10")
    mine.keep_rule("")
    with pytest.raises(UserError, match="is not a rule"):
        mine.keep_rule("weekly")
    assert Catalogue(mine.folder).encounters == "burst:10"
    desk = AppState(mine, Options(tokens=False, rates={}), owner="Ann")
    desk.network.open(lambda: colours)
    page = TestClient(make_app(desk), base_url="http://127.0.0.1:8000", raise_server_exceptions=True)
    assert page.get("/api/session").json()["catalogue"]["encounters_by"] == "burst:10"


def test_dates_of_a_handmade_folder_are_said_once(handmade):
    (handmade / "encounters.csv").write_text("image,date\nq.jpg,09/08/2019\n")
    assert kinds(handmade) == [("ambiguous-date", "train.csv", 2), ("ambiguous-date", "encounters.csv", 2)]
    with pytest.raises(UserError, match=r"happywhale data check .*handmade --dates dmy") as error:
        folder_table(read_dataset(handmade))
    assert "--skip-faulty" not in str(error.value)
    result = run("check", handmade, "--dates", "dmy")
    assert (result.exit_code, read_rules(handmade)) == (0, FolderRules("", "dmy"))
    assert list(folder_table(read_dataset(handmade))["date"]) == ["2019-08-07", "", "2019-08-09"]
    assert list(encounter_facts(read_dataset(handmade))["date"]) == ["2019-08-07", ""]
    table = (handmade / "train.csv").read_text().replace("07/08/2019", "07/13/2019")
    (handmade / "train.csv").write_text(table)
    assert kinds(handmade) == [("date", "train.csv", 2)]


def test_encounters_that_tell_two_things_of_one_photograph_are_refused(handmade):
    (handmade / "train.csv").write_text("image,species,individual_id\na.jpg,fin,Ann\nb.jpg,fin,Bo\n")
    table = handmade / "encounters.csv"
    table.write_text("image,date,place\nq.jpg,2019-08-07,\nq.jpg,2019-08-08,\n")
    assert kinds(handmade) == [("encounters", "encounters.csv", None)]
    with pytest.raises(UserError, match=r"rows 2 and 3 contradict each other about q\.jpg"):
        folder_table(read_dataset(handmade))
    table.write_text("image,date,place\nq.jpg,2019-08-07,\nq.jpg,,Bay\n")
    assert kinds(handmade) == []
    assert folder_table(read_dataset(handmade)).iloc[2][["date", "place"]].to_list() == ["2019-08-07", "Bay"]


def test_boxes_of_other_photographs_are_told(handmade):
    (handmade / "train.csv").write_text("image,species,individual_id\na.jpg,fin,Ann\nb.jpg,fin,Bo\n")
    (handmade / "boxes").mkdir()
    boxes = handmade / "boxes" / "b.csv"
    boxes.write_text("image,x,y,w,h\nA.JPG,1,1,30,30\nq.jpg,1,1,30,30\n")
    assert kinds(handmade) == [("unknown-photograph", "b.csv", 2)]
    boxes.write_text("image,x,y,w,h\nz.jpg,1,1,30,30\n")
    assert kinds(handmade) == [("unknown-photograph", "b.csv", None)]
    boxes.write_text("image,x,y,w,h\nz.jpg,1,1,30,30\na.jpg,1,1,30,30\n")  # of a larger set: counted, and no finding
    check = check_folder(handmade, progress=False)
    assert (check.findings, check.summary["boxes_elsewhere"], check.summary["boxed"]) == ([], 1, 1)


@pytest.mark.parametrize("names, own, expected", [
    (("Ann", "Bo"), True, []), (("Ann", "Bo"), False, ["two-individuals"]),
    (("", ""), True, []), (("", ""), False, ["same-photo"]), (("Ann", "Ann"), True, ["same-photo"]),
])  # fmt: skip
def test_two_animals_of_one_file_with_boxes_are_no_copies(tmp_path, names, own, expected):
    draw(tmp_path / "src" / "x.jpg", tmp_path / "src" / "k.jpg")
    part = "train" if names[0] else "test"
    root = tmp_path / "mine"
    for folder in ("train_images", "test_images"):
        (root / folder).mkdir(parents=True)
    os.link(tmp_path / "src" / "k.jpg", root / "train_images" / "k.jpg")
    rows = ["image,species,individual_id", "k.jpg,fin,Kai"]
    for number, name in enumerate(names):
        os.link(tmp_path / "src" / "x.jpg", root / f"{part}_images" / f"x_{number}.jpg")
        rows += [f"x_{number}.jpg,fin,{name}"] if name else []
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    if own:
        (root / "boxes").mkdir()
        (root / "boxes" / "b.csv").write_text("image,x,y,w,h\nx_0.jpg,1,1,30,30\nx_1.jpg,40,1,30,30\n")
    assert [kind for kind, _, _ in kinds(root)] == expected


def test_a_data_folder_below_the_source_is_no_animal(tmp_path):
    draw(tmp_path / "src" / "Ann" / "a.jpg", tmp_path / "src" / "Bo" / "b.jpg")
    assert run("import", tmp_path / "src", "--to", tmp_path / "src" / "mine", "--copy").exit_code == 0
    said = run("import", tmp_path / "src", "--to", tmp_path / "second").output
    assert "2 photographs of 2 individuals" in said
    assert "data folders, which hold photographs of other folders, 1: mine" in said


def test_a_folder_called_as_a_species_among_animals_is_told(tmp_path):
    draw(tmp_path / "src" / "Ann" / "a.jpg", tmp_path / "src" / "humpback whale" / "b.jpg")
    said = run("import", tmp_path / "src", "--to", tmp_path / "mine", "--dry-run").output
    assert "note: called as a species is, but taken for an animal: 'humpback whale'" in said


def test_each_file_is_read_once_however_many_have_one_size(tmp_path, monkeypatch):
    draw(tmp_path / "k.jpg")
    for number in range(40):
        draw(tmp_path / "src" / "Ann" / f"{number}.bmp")  # of one size, as of one camera
    assert run("import", tmp_path / "src", "--to", tmp_path / "mine").exit_code == 0
    files = sorted((tmp_path / "src" / "Ann").iterdir())
    assert all(same_content(files, files)[path] == [path] for path in files)
    (tmp_path / "src").rename(tmp_path / "moved")
    read = []
    digest = relink.content_digest
    monkeypatch.setattr(relink, "content_digest", lambda path: read.append(path) or digest(path))
    assert len(relink.plan_relink(tmp_path / "mine", tmp_path / "moved").found) == 40
    assert len(read) == 40


@pytest.mark.parametrize("name", ["unbekannt", "Desconocido", "non identifié", "ukjent", "okänd", "Unmatched"])
def test_placeholders_of_other_languages_name_nobody(name):
    assert is_nobody(name)


@pytest.mark.parametrize("name", ["July 13, 2019", "13th Jul 2019", "2019-Jul-13", "13-07-19", "13.7.19"])
def test_days_are_read_in_many_spellings(tmp_path, name):
    draw(tmp_path / "src" / "Ann" / name / "a.jpg", tmp_path / "src" / "Bo" / name / "b.jpg")
    assert run("import", tmp_path / "src", "--to", tmp_path / "mine", "--dates", "dmy").exit_code == 0
    assert set(read_dataset(tmp_path / "mine").train["date"]) == {"2019-07-13"}


@pytest.mark.parametrize("names", [("Marta 2014", "Julia-2015"), ("12-34-56", "11-22-33")])
def test_animals_called_nearly_as_days_are_animals(tmp_path, names):
    draw(*(tmp_path / "src" / name / "a.jpg" for name in names))
    assert run("import", tmp_path / "src", "--to", tmp_path / "mine").exit_code == 0
    assert sorted(read_dataset(tmp_path / "mine").train["individual_name"]) == sorted(names)


def test_what_may_be_a_day_or_an_animal_is_asked_for(tmp_path):
    draw(tmp_path / "src" / "01-02-03" / "a.jpg", tmp_path / "src" / "04-05-06" / "b.jpg")
    asked = run("import", tmp_path / "src", "--to", tmp_path / "mine")
    assert "if it is no day, say what it is, such as --layout animal" in asked.output
    assert run("import", tmp_path / "src", "--to", tmp_path / "mine", "--layout", "animal").exit_code == 0
    assert len(set(read_dataset(tmp_path / "mine").train["individual_id"])) == 2


def table(tmp_path, text, *arguments):
    """What `import` says of a table of drawn photographs a.jpg, b.jpg, c.jpg."""
    draw(*(tmp_path / "src" / f"{name}.jpg" for name in "abc"))
    (tmp_path / "src" / "t.csv").write_text(text)
    return run("import", tmp_path / "src" / "t.csv", "--to", tmp_path / "mine", *arguments)


def test_names_in_doubt_are_told(tmp_path):
    result = table(tmp_path, "image,individual_id\na.jpg,Ann?\nb.jpg,Ann & Bo\nc.jpg,Bo\n")
    assert "names taken as they are: 'Ann & Bo' looks like the names of several animals; 'Ann?'" in result.output
    assert [row for kind, _, row in kinds(tmp_path / "mine") if kind == "odd-id"] == [3, 2]


def test_numbers_that_are_kept_from_a_spreadsheet_lose_their_marks(tmp_path):
    assert table(tmp_path, 'image,individual_id\na.jpg,"=""007"""\nb.jpg,\'008\nc.jpg,O\'Brien\n').exit_code == 0
    assert list(read_dataset(tmp_path / "mine").train["individual_id"]) == ["007", "008", "O'Brien"]


def test_a_column_is_known_with_its_unit(tmp_path):
    head = "Photo,Catalogue No.,Date (dd/mm/yyyy),Lat (decimal degrees),Long (W),Species (observer)\n"
    result = table(tmp_path, head + "a.jpg,12,13/07/2019,57.6,-4,Jo\nb.jpg,13,,,,\nc.jpg,13,,,,\n")
    train = read_dataset(tmp_path / "mine").train
    assert list(train.iloc[0][["date", "latitude", "longitude"]]) == ["2019-07-13", "57.6", "-4"]
    assert "columns that are not used, 1: Species (observer)" in result.output


def test_an_animal_has_the_species_of_its_other_photographs(tmp_path):
    told = table(tmp_path, "image,individual_id,species\na.jpg,Ann,fin whale\nb.jpg,Ann,\nc.jpg,Bo,\n")
    assert "1 photograph without a species: that of the animal is written" in told.output
    mine = tmp_path / "mine"
    assert list(read_dataset(mine).train["species"]) == ["fin_whale", "fin_whale", "unknown"]
    draw(tmp_path / "2019" / "Ann" / "n.jpg")
    assert run("import", tmp_path / "2019", "--to", mine, "--add", "--species", "minke whale").exit_code == 0
    assert set(read_dataset(mine).train.query("individual_name == 'Ann'")["species"]) == {"fin_whale"}


def test_an_animal_of_two_species_lends_neither(tmp_path):
    rows = "a.jpg,Ann,fin whale\nb.jpg,Ann,minke whale\nc.jpg,Ann,\n"
    assert table(tmp_path, "image,individual_id,species\n" + rows).exit_code == 0
    assert list(parse_csv(tmp_path / "mine" / "train.csv")["species"]) == ["fin_whale", "minke_whale", "unknown"]


def test_both_sides_are_told_by_the_catalogue(handmade):
    (handmade / "rules.json").write_text('{"dates": "dmy"}')
    assert any("1 photographs show both sides" in line for line in _unread_messages(read_dataset(handmade)))
