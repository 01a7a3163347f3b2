"""Data folders as people make them: what `check` says, and what a catalogue is built from."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import func, select

from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.ingest import ingest_dataset
from happywhale_nb.catalogue.schema import Encounter, Photo
from happywhale_nb.catalogue.store import create_catalogue
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import read_boxes
from happywhale_nb.data.dataset import read_dataset
from reports.harness import Case

THREE = "3 known photographs of 2 individuals, 1 species; 0 to be identified"


def build(name: str, encounters: Sequence[tuple[str, str, str]]) -> Callable[[Path, Path], None]:
    """Make an outcome: a catalogue of the folder has these encounters (name, date, place) that are named."""

    def outcome(reports, out):
        catalogue = create_catalogue(out / "catalogue", reports / "data" / name, name)
        added = ingest_dataset(catalogue, ColourEmbedder(), read_dataset(reports / "data" / name), "colours")
        with catalogue.reading() as session:
            named = session.execute(select(Encounter.name, Encounter.date, Encounter.place).order_by(Encounter.name))
            found = [tuple(row) for row in named if row[2]]
            assert session.scalar(select(func.count()).select_from(Photo)) == added == 3
        assert found == list(encounters)

    return outcome


def refuses_to_build(name: str, words: str) -> Callable[[Path, Path], None]:
    """Make an outcome: building a catalogue is refused in one line, and adds nothing."""

    def outcome(reports, out):
        catalogue = create_catalogue(out / "catalogue", reports / "data" / name, name)
        with pytest.raises(UserError, match=words) as error:
            ingest_dataset(catalogue, ColourEmbedder(), read_dataset(reports / "data" / name), "colours")
        assert "\n" not in str(error.value)
        with catalogue.reading() as session:
            assert session.scalar(select(func.count()).select_from(Photo)) == 0

    return outcome


def only_p1_has_a_box(reports, out):
    """The first cell is `[nan nan nan nan]`, the last one empty."""
    boxes = read_boxes(reports / "data" / "boxes_first_missing")
    assert boxes[["image", "source", "x0", "y0", "x1", "y1"]].to_numpy().tolist() == [["p1.jpg", "b", 10, 10, 60, 50]]


def braces_are_refused(reports, out):
    """A folder with braces in its name: refused with the reason, before anything is run or written."""
    shutil.copytree(reports / "data" / "boxes_first_missing", out / "a{b}c")
    words = ["a{b}c", "folder with braces in its name", "-p study NAME"]
    Case("run -p data_dir OUT/a{b}c -p quick true", exit_code=2, words=words)(reports, out)
    assert [path.name for path in out.iterdir()] == ["a{b}c"]


CASES = {
    "data/encounters_semicolon": [
        Case(
            "check R/data/encounters_semicolon",
            exit_code=1,
            words=[THREE, "encounters.csv: is read as separated by semicolons", "1 finding"],
        ),
        build("encounters_semicolon", [("S1", "2019-07-01", "Bay")]),
    ],
    "data/encounters_cp1252": [
        Case(
            "check R/data/encounters_cp1252",
            exit_code=1,
            words=[THREE, "encounters.csv: is not UTF-8: read as Windows-1252, such as 'Søndre'", "1 finding"],
        ),
        build("encounters_cp1252", [("S1", "2019-07-01", "Søndre")]),
    ],
    "data/encounters_capitals": [
        Case("check R/data/encounters_capitals", words=[THREE, "clean: nothing found"]),
        build("encounters_capitals", [("S1", "2019-07-01", "Bay")]),
    ],
    "data/encounters_trailing_comma": [
        Case("check R/data/encounters_trailing_comma", words=[THREE, "clean: nothing found"]),
        build("encounters_trailing_comma", [("S1", "2019-07-01", "Bay")]),
    ],
    "data/encounters_empty": [
        Case(
            "check R/data/encounters_empty",
            exit_code=1,
            words=[THREE, "error: encounters, once: encounters.csv cannot be read", "encounters.csv: is empty"],
        ),
        refuses_to_build("encounters_empty", "encounters.csv is empty"),
    ],
    "data/boxes_first_missing": [
        Case(
            "check R/data/boxes_first_missing",
            words=[THREE, "1 of 3 photographs have a box", "clean: nothing found"],
            never=["no boxes that are recognised"],
        ),
        only_p1_has_a_box,
    ],
    "data/handmade_semicolon": [
        Case(
            "check R/data/handmade_semicolon",
            exit_code=2,
            words=["train.csv: they are separated by semicolons", "save it as CSV UTF-8, with commas", "unusable"],
            never=["missing-column"],
        ),
    ],
    "a data folder with braces: copy": braces_are_refused,
}
