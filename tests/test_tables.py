"""Laws of reading other people's tables, and what an import makes of what cannot be believed."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from happywhale_nb.catalogue.exports.camtrap_dp import to_camtrap_dp
from happywhale_nb.catalogue.exports.common import example_sightings
from happywhale_nb.catalogue.exports.csv import to_csv
from happywhale_nb.catalogue.exports.wildbook import to_wildbook
from happywhale_nb.catalogue.exports.with_photos import photo_names
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import read_boxes
from happywhale_nb.data.check import check_folder
from happywhale_nb.data.dataset import parse_csv, read_dataset
from happywhale_nb.data.file_names import file_key, name_files
from happywhale_nb.data.importers import plan_source, write_import
from happywhale_nb.data.tables import clean_cell, find_separator, read_text_table, read_user_table
from happywhale_nb.data.values import Faults, parse_degrees, parse_position

rng = np.random.default_rng(7)
# what people type: no control characters, no quotation mark at the beginning of an unquoted cell is left to csv
cell = st.text(st.characters(codec="cp1252", exclude_categories=("Cc", "Cs")), max_size=8)
word = st.text("abcdefgåø 0123456789-", min_size=1, max_size=8).filter(lambda text: text.strip())


def is_utf8(content):
    try:
        return content.decode("utf-8") is not None
    except UnicodeDecodeError:
        return False


def draw(path, size=(80, 50), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (5, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize(size).save(path, **options)


def run(*arguments):
    return CliRunner().invoke(main, ["data", "import", *map(str, arguments)])


def table(tmp_path, text, name="t.csv", photos=("a.jpg", "b.jpg", "c.jpg")):
    """A table and its photographs; the table's path."""
    for photo in photos:
        draw(tmp_path / photo)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(word, cell, cell), min_size=1, max_size=5),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_read_text_table_gives_the_cells_that_any_spreadsheet_has_written(rows, separator, encoding, line_end):
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=line_end).writerows([("image", "id", "note"), *rows])
    content = text.getvalue().encode(encoding)
    assume(encoding != "cp1252" or content.isascii() or not is_utf8(content))  # which nobody can tell from UTF-8
    read = read_text_table(content, "t.csv").cells
    expected = [tuple(map(clean_cell, row)) for row in rows]
    assert list(read.reindex(columns=["image", "id", "note"]).itertuples(index=False, name=None)) == expected
    assert read.index.tolist() == list(range(2, len(rows) + 2))


@given(st.lists(st.sampled_from(["a.jpg", "A.JPG", "a_2.jpg", "x/a.jpg", "y/a.jpg", "x__a.jpg", "nul.jpg", ".a.jpg"])))
def test_name_files_gives_no_name_twice_and_keeps_a_real_one(names):

    paths = [Path("/r", name) for name in names]
    given_names = name_files(paths, Path("/r"), taken=["B.jpg"])
    assert len({file_key(name) for name in given_names}) == len(names)
    owners = dict(zip(given_names, paths, strict=True))
    assert all(owners["a_2.jpg"].name == "a_2.jpg" for _ in [0] if Path("/r/a_2.jpg") in paths)
    assert all(owners["x__a.jpg"].name == "x__a.jpg" for _ in [0] if Path("/r/x__a.jpg") in paths)


def test_name_files_of_a_name_that_is_all_ending_ends_and_keeps_its_end():
    long = "a." + "é" * 300
    names = name_files(
        [Path("/r", long), Path("/r", "b" * 300 + ".jpg"), Path("/r", "c." + "d" * 190)] * 12, Path("/r")
    )
    assert len(set(names)) == 36 and all(len(name.encode()) <= 200 for name in names)
    assert names[0] == "é" * 100 and names[1].endswith("b.jpg")


@given(st.floats(-90, 90), st.sampled_from("NS"), st.booleans())
def test_parse_degrees_reads_decimals_commas_letters_and_minutes_alike(value, letter, comma):
    value = round(abs(value), 6)
    text = f"{value:.6f}".replace(".", "," if comma else ".")
    sign = -1 if letter == "S" else 1
    minutes = f"{int(value)}° {(value % 1) * 60:.6f}' {letter}"
    assert parse_degrees(f"{text} {letter}") == pytest.approx(sign * value)
    assert parse_degrees(minutes) == pytest.approx(sign * value, abs=1e-6)


@pytest.mark.parametrize("text", ["57.68.1", "1.234,5", "N 5 S", "57 61", "fifty", "--4", "1e5"])
def test_parse_degrees_of_what_is_none_is_refused(text):
    with pytest.raises(UserError):
        parse_degrees(text)


def test_parse_position_of_one_zero_is_a_position():
    assert parse_position("0", "10") == ("0", "10")


def test_find_separator_of_quoted_text_with_many_commas_is_the_semicolon():
    assert find_separator('image;notes\na.jpg;"one, two, three"\nb.jpg;"one, two, four"\n', ["image"]) == ";"


def test_read_user_table_of_a_workbook_refuses_formulas_without_values_and_names_other_sheets(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["image", "name"])
    book.active.append(["a.jpg", '=CONCATENATE("A","nn")'])
    book.save(tmp_path / "formula.xlsx")
    with pytest.raises(UserError, match="formulas without a value in B2"):
        read_user_table(tmp_path / "formula.xlsx")
    book.active["B2"] = "Ann"
    other = book.create_sheet("2020")
    other.append(["image", "name"])
    other.append(["b.jpg", 12.0])
    book.save(tmp_path / "two.xlsx")
    assert "--sheet names another (2020)" in read_user_table(tmp_path / "two.xlsx").notes[0]
    assert read_user_table(tmp_path / "two.xlsx", "2020").cells["name"].tolist() == ["12"]
    with pytest.raises(UserError, match="no sheet '2021'"):
        read_user_table(tmp_path / "two.xlsx", "2021")
    book.active["A1"] = "read me"
    book.save(tmp_path / "two.xlsx")
    assert read_user_table(tmp_path / "two.xlsx", words=["image"]).file == "two.xlsx, sheet 2020"


def test_faults_names_at_most_a_screen_and_counts_the_rest():
    faults = Faults()
    for row in range(300):
        faults.add(f"row {row}", "no")
    with pytest.raises(UserError, match="300 faults") as error:
        faults.refuse()
    assert "and 200 more" in str(error.value)


def test_import_command_names_all_faulty_rows_at_once_by_file_and_row(tmp_path):
    source = table(
        tmp_path,
        "image,name,date,lat,lon,bbox\n\na.jpg,Ann,31/02/2019,57,\nb.jpg,ann,2019,100,4,[1 2]\n"
        "c.jpg,Bo,,,,[10 10 900 9]\n",
    )
    result = run(source, "--to", tmp_path / "mine", "--dry-run")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    for words in (
        ("row 3", "'31/02/2019'"),
        ("row 3", "latitude '57', longitude ''"),
        ("row 4", "'100'"),
        ("row 4", "not four numbers"),
        ("row 5", "leaves its picture of 80 x 50 pixels"),
        ("row 3", "row 4", "'Ann'", "'ann'", "one name"),
    ):
        assert any(all(word in line for word in words) for line in lines), (words, lines)
    assert not (tmp_path / "mine").exists()


def test_import_command_with_skip_faulty_leaves_cells_out_and_lists_them(tmp_path):
    source = table(tmp_path, "image,name,date\na.jpg,Ann,31/02/2019\nb.jpg,Bo,2019-07-01\n", photos=("a.jpg", "b.jpg"))
    result = run(source, "--to", tmp_path / "mine", "--skip-faulty")
    assert result.exit_code == 0, result.stderr
    left_out = parse_csv(tmp_path / "mine" / "left_out.csv")
    assert left_out["reason"].tolist() == ["cells that cannot be read"]
    assert "row 2" in left_out["name"][0]
    assert read_dataset(tmp_path / "mine").train["date"].tolist() == ["", "2019-07-01"]


def test_import_command_counts_what_is_left_out_and_names_lost_animals_first(tmp_path):
    source = table(tmp_path, "image,name,weather\na.jpg,Ann,fair\ngone.jpg,Ann,foul\nlost.jpg,Cleo,\n,Dot,\n")
    result = run(source, "--to", tmp_path / "mine", "--skip-missing")
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("left out")]
    assert lines[0] == "left out: individuals without any photograph now, 2: Cleo, Dot"
    assert "columns that are not used, 1: weather" in result.stdout
    assert "rows without the name of a photograph, 1: t.csv, row 5" in result.stdout
    assert "photographs in the folder that the source does not list, 2: b.jpg, c.jpg" in result.stdout
    assert len(parse_csv(tmp_path / "mine" / "left_out.csv")) == 8


def test_import_writes_what_is_known_of_photographs_without_a_name(tmp_path):
    source = table(
        tmp_path,
        "image;name;date;side;place;lat;lon;sighting\na.jpg;Ann;2019-07-01;L;Bay;57,1;-4;S1\n"
        "b.jpg;NA;2019-07-02;dx;Cove;57,2;-4;S2\nc.jpg;?;NA;both;NA;0;0;NA\n",
    )
    data = write_import(plan_source(source), tmp_path / "mine", progress=False)
    told = parse_csv(data / "encounters.csv").set_index("image").to_dict("index")
    about = {"date": "2019-07-02", "side": "right", "encounter": "S2", "place": "Cove"}
    assert told == {"b.jpg": about | {"latitude": "57.2", "longitude": "-4"}}
    assert parse_csv(data / "sample_submission.csv").columns.tolist() == ["image", "predictions"]
    assert check_folder(data, progress=False).usable


def test_import_of_species_typed_in_three_ways_is_one_species(tmp_path):
    source = table(tmp_path, "image,name,species\na.jpg,A,Green turtle\nb.jpg,B,green-turtle\nc.jpg,C,Green  Turtle\n")
    plan = plan_source(source)
    assert set(plan.train["species"]) == {"green_turtle"}
    assert any("green-turtle" in note for note in plan.notes)


def test_import_that_copies_never_overwrites_a_photograph_by_a_made_name(tmp_path):
    """Data were lost here: the second animal of p.jpg took the name of a real p_2.jpg."""
    for name in ("A/p.jpg", "A/p_2.jpg", "A__p.jpg", "B/p.jpg"):
        draw(tmp_path / "photos" / name)
    rows = [("A/p.jpg", "Ann", 1), ("A/p.jpg", "Bo", 30), ("A/p_2.jpg", "Cleo", 1), ("A__p.jpg", "Dot", 1)]
    lines = [f"{image},{name},{x},2,20,20" for image, name, x in [*rows, ("B/p.jpg", "Eve", 1)]]
    (tmp_path / "photos" / "t.csv").write_text("\n".join(["image,name,x,y,w,h", *lines]))
    plan = plan_source(tmp_path / "photos" / "t.csv")
    data = write_import(plan, tmp_path / "mine", copy=True, progress=False)
    written = {path.name: path.read_bytes() for path in (data / "train_images").iterdir()}
    assert len(written) == 5
    for row in plan.train.itertuples():
        assert written[row.image] == row.path.read_bytes()
    assert len(read_boxes(data)) == 5


def test_import_of_a_photograph_of_two_days_is_refused_and_of_two_sides_is_of_none(tmp_path):
    source = table(tmp_path, "image,name,date,side\na.jpg,Ann,2019-07-01,left\na.jpg,Ann,2019-07-02,right\n")
    with pytest.raises(UserError, match=r"row 2, t\.csv, row 3: a\.jpg is listed twice, with the date"):
        plan_source(source)
    source.write_text("image,name,date,side\na.jpg,Ann,2019-07,left\na.jpg,Ann,2019-07-02,right\nb.jpg,Bo,,\n")
    train = plan_source(source).train
    assert train["date"].tolist() == ["2019-07-02", ""]
    assert "side" not in train


def test_import_of_an_encounter_of_two_animals_makes_one_for_each(tmp_path):
    source = table(tmp_path, "image,name,sighting\na.jpg,Ann,S1\nb.jpg,Bo,S1\nc.jpg,Bo,S2\n")
    plan = plan_source(source)
    assert plan.train["encounter"].tolist() == ["S1 Ann", "S1 Bo", "S2"]


def test_import_command_with_clock_moves_the_times_of_one_camera(tmp_path):
    for name, model in (("Ann/a.jpg", "D500"), ("Bo/b.jpg", "D4")):
        exif = Image.Exif()
        exif[0x0132], exif[0x0110] = "2020:05:01 23:30:00", model
        draw(tmp_path / "photos" / name, exif=exif)
    result = run(tmp_path / "photos", "--to", tmp_path / "mine", "--clock", "D500=+1h")
    assert result.exit_code == 0, result.stderr
    assert "dates of 1 photograph of D500 moved by +1h" in result.stdout
    dates = read_dataset(tmp_path / "mine").train["date"].tolist()
    assert dates == ["2020-05-02T00:30:00", "2020-05-01T23:30:00"]
    result = run(tmp_path / "photos", "--to", tmp_path / "other", "--clock", "Canon=+1h")
    assert result.exit_code == 2
    assert "no photograph is of the camera 'Canon' (cameras: D4, D500)" in result.stderr


def test_import_command_of_boxes_as_fractions_writes_pixels(tmp_path):
    source = table(tmp_path, "image,name,x,y,width,height\na.jpg,A,0.25,0.5,0.5,0.25\nb.jpg,B,0,0,1,1\nc.jpg,C,,,,\n")
    data = write_import(plan_source(source), tmp_path / "mine", progress=False)
    boxes = read_boxes(data).set_index("image")[["x0", "y0", "x1", "y1"]]
    assert boxes.loc["a.jpg"].tolist() == [20, 25, 60, 37.5]
    assert boxes.loc["b.jpg"].tolist() == [0, 0, 80, 50]


def test_import_reads_what_the_catalogue_exports(tmp_path):
    known = example_sightings()
    known = known[known["encounter"].isin(["E1", "E2", "E4"])]
    names = {kind: photo_names(known, kind) for kind in ("wildbook", "camtrap-dp")}
    for name in {*known["photo"], *names["wildbook"].values(), *names["camtrap-dp"].values()}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (1400, 900)).save(tmp_path / name, format="JPEG")
    (tmp_path / "x.csv").write_bytes(to_csv(known))
    (tmp_path / "w.xlsx").write_bytes(to_wildbook(known, "ana"))
    (tmp_path / "c.zip").write_bytes(to_camtrap_dp(known))
    for name, boxes in (("x.csv", 2), ("w.xlsx", 0), ("c.zip", 2)):
        plan = plan_source(tmp_path / name)
        assert plan.train["individual_id"].tolist() == ["Mn01"] * 3
        assert plan.train["date"].str[:16].tolist() == ["2018-06-03", *["2019-07-11T09:20"] * 2]
        assert plan.train["latitude"].tolist() == ["66.1", "66", "66"]
        assert plan.train["encounter"].nunique() == 2
        assert set(plan.train["place"]) == {"Skjálfandi"}
        assert len(plan.boxes) == boxes
        # the fourth has no position: the standard has no place for it, the other two wait for a name
        assert len(plan.test) == (name != "c.zip")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["images"].append({"id": "1", "file_name": "b.jpg"}), "two images have the id 1: a.jpg and b.jpg"),
        (lambda c: c["images"][0].pop("file_name"), "image 1 has no file_name"),
        (lambda c: c.update(annotations={"1": {}}), "'annotations' is not a list of objects"),
        (lambda c: c["annotations"][0].pop("individual_id"), "no annotation says which individual it is"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "not four numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 3]), "has no area"),
    ],
)
def test_import_command_of_coco_that_does_not_fit_together_says_what(tmp_path, change, words):
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "b.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "individual_id": "A", "bbox": [1, 2, 3, 4]}],
    }
    change(content)
    (tmp_path / "c.json").write_text(json.dumps(content))
    result = run(tmp_path / "c.json", "--to", tmp_path / "mine")
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "mine").exists()
