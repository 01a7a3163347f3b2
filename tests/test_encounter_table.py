"""What a data folder says of where and when, however a spreadsheet has saved it, and all faults in one message."""

import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.check import check_folder
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.encounter_table import WHEN_AND_WHERE, clean_columns, folder_photos, read_encounters
from happywhale_nb.data.values import Faults

quick = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CELLS = [["a.jpg", "S1", "2019-07-01", "Sørøya"], ["b.jpg", "S2", "2019-07", "Bay"]]


@pytest.fixture
def folder(tmp_path):
    """Two known photographs and one to be identified, which has the name of one of them."""
    for path in ("train_images/a.jpg", "train_images/b.jpg", "test_images/a.jpg"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "train.csv").write_text("image,species,individual_id\na.jpg,beluga,Ann\nb.jpg,beluga,Zoë 07\n")
    return tmp_path


@quick
@given(
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "cp1252", "utf-16"]),
    names=st.sampled_from([str.lower, str.upper, str.title]),
    end=st.sampled_from(["\n", "\r\n"]),
    trailing=st.booleans(),
)
def test_read_encounters_saved_in_any_way_gives_the_same_cells(tmp_path, separator, encoding, names, end, trailing):
    header = [names(name) for name in ("image", "encounter", "date", "place")]
    rows = [separator.join(row) + separator * trailing for row in CELLS]
    text = end.join([separator.join(header), *rows]) + end
    (tmp_path / "encounters.csv").write_bytes(text.encode(encoding))
    cells = read_encounters(tmp_path).cells
    assert cells[["image", "encounter", "date", "place"]].to_numpy().tolist() == CELLS
    assert cells.index.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "encounters.csv is empty"),
        ("image,date\n", "has a header but no rows"),
        ("photo,date\na.jpg,2019\n", "has no column 'image'"),
        ("image,date\na.jpg,2019\n", "row 2: a.jpg is in train_images and in test_images"),
    ],
)
def test_read_encounters_that_cannot_be_used_says_so_in_one_line_here_and_in_check(text, message, folder):
    (folder / "encounters.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        folder_photos(read_dataset(folder))
    assert "\n" not in str(error.value)
    found = [f for f in check_folder(folder, progress=False).findings if f.file == "encounters.csv"]
    assert [f.kind for f in found] == ["encounters"]
    assert found[0].detail.split(" is ")[-1] in message or message.split("csv ")[-1] in found[0].detail


def test_folder_photos_with_many_faults_names_all_of_them_with_file_and_row(folder):
    table = pd.read_csv(folder / "train.csv").assign(date=["31/02/2019", "07/08/2019"], side=["dorsal", "L"])
    table.to_csv(folder / "train.csv", index=False)
    (folder / "encounters.csv").write_text("image,part,latitude,longitude\na.jpg,test,95,3\nb.jpg,,57,\n")
    with pytest.raises(UserError) as error:
        folder_photos(read_dataset(folder))
    lines = str(error.value).splitlines()
    assert lines[0].startswith("5 faults")
    wanted = ["train.csv, row 2: column 'date'", "train.csv, row 3: column 'date'", "train.csv, row 2: column 'side'"]
    wanted += ["encounters.csv, row 2: latitude '95'", "encounters.csv, row 3: latitude '57'"]
    assert [place for place in wanted if not any(place in line for line in lines)] == []
    found = {(f.kind, f.file, f.row) for f in check_folder(folder, progress=False).findings}
    assert {("date", "train.csv", 2), ("ambiguous-date", "train.csv", 3), ("side", "train.csv", 2)} <= found
    assert {("position", "encounters.csv", 2), ("position", "encounters.csv", 3)} <= found


def test_folder_photos_of_one_name_in_both_parts_gives_each_its_own_values(folder):
    (folder / "encounters.csv").write_text("image,side\ntrain_images/a.jpg,L\ntest_images/a.jpg,R\nb.jpg,both\n")
    photos = folder_photos(read_dataset(folder))
    assert photos["side"].tolist() == ["left", "", "right"]
    assert photos["path"].tolist() == ["train_images/a.jpg", "train_images/b.jpg", "test_images/a.jpg"]
    assert photos["individual_id"].tolist() == ["Ann", "Zoë 07", ""]


@quick
@given(st.lists(st.tuples(*[st.text(max_size=8)] * 4), min_size=1, max_size=4))
def test_clean_columns_of_any_cells_is_clean_or_has_a_fault(rows):
    """Whatever is not a fault is in one form: reading it again changes nothing."""
    table = pd.DataFrame(rows, columns=["date", "side", "latitude", "longitude"])
    first, second = Faults(), Faults()
    clean = clean_columns(table, [str(row) for row in table.index], first)
    again = clean_columns(clean, [str(row) for row in table.index], second)
    assert again.equals(clean) and second.found == []
    assert set(clean["side"]) <= {"", "left", "right", "both"}


def test_check_of_names_in_both_parts_finds_all_rows_that_leave_it_open(folder):
    (folder / "boxes").mkdir()
    (folder / "boxes" / "own.csv").write_text("image,bbox\nb.jpg,1 1 9 9\na.jpg,1 1 9 9\na.jpg,2 2 8 8\n")
    (folder / "skip.csv").write_text("image,reason\na.jpg,blurred\n")
    done = CliRunner().invoke(main, ["data", "check", str(folder)])
    assert "which-part, 3 times" in done.output
    for place in ("skip.csv, row 2", "own.csv, row 3", "own.csv, row 4"):
        assert f"{place}: a.jpg is in train_images and in test_images: write train_images/a.jpg" in done.output


def test_columns_of_where_and_when_are_those_that_the_catalogue_reads():
    assert WHEN_AND_WHERE == ("encounter", "date", "place", "side", "latitude", "longitude")
