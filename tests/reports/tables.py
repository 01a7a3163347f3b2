"""The tables of other people's catalogues: what each of them becomes."""

from pathlib import Path

import pandas as pd

from happywhale_nb.data.boxes import read_boxes
from happywhale_nb.data.check import check_folder
from reports.harness import Case

THREE = {"Ann": 2, "Bo": 1}
SOREN = {"Ann": 2, "Søren": 1}
SPECIES = "--species fin_whale"
TO_MANY = "left out: columns that are not used, 1: notes, who, when, where, why, how"


def column(name: str, values: dict[str, str]):
    """A check of one column of train.csv by image."""

    def check(folder: Path) -> None:
        train = pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False).set_index("image")
        assert train[name].to_dict() == values

    return check


def told(values: dict[str, dict[str, str]]):
    """A check of encounters.csv by image."""

    def check(folder: Path) -> None:
        table = pd.read_csv(folder / "encounters.csv", dtype=str, keep_default_na=False).set_index("image")
        assert table.to_dict("index") == values

    return check


def boxes_and_sides(folder: Path) -> None:
    """The boxes and sides of the wildlife data set."""
    boxes = read_boxes(folder).set_index("image")[["x0", "y0", "x1", "y1"]]
    assert boxes.loc["a.jpg"].tolist() == [10, 12, 70, 52]
    assert set(boxes.index) == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}
    column("side", {"a.jpg": "left", "b.jpg": "right", "c.jpg": ""})(folder)
    told({"d.jpg": {"species": "fin_whale", "date": "2019-07-04", "side": "left"}})(folder)


def everything_of_the_sheet(folder: Path) -> None:
    """Dates, places, encounters and species of Wildbook's sheet."""
    column("date", {"a.jpg": "2019-07-01", "b.jpg": "2019-07-01", "c.jpg": "2019-07-02"})(folder)
    column("place", dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), "Bay"))(folder)
    column("species", dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), "megaptera_novaeangliae"))(folder)
    encounters = pd.read_csv(folder / "train.csv").set_index("image")["encounter"]
    assert encounters["a.jpg"] == encounters["b.jpg"] != encounters["c.jpg"]


def readable_dates(folder: Path) -> None:
    """All dates of the table that can be read, day first."""
    dates = pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False).set_index("image")["date"]
    assert dates.to_dict() == {
        "p00.jpg": "2019-07-13",
        "p01.jpg": "",
        "p02.jpg": "2019-08-07",
        "p03.jpg": "2019-07-13",
        "p04.jpg": "2019-07-13",
        "p05.jpg": "2019-07-13T14:05",
        "p06.jpg": "2019-07-13",
        "p07.jpg": "2019-07-13",
        "p08.jpg": "2019-07-13T10:00:00",
        "p09.jpg": "",
        "p10.jpg": "2019-07-13",
        "p11.jpg": "2019-07-13T23:30:00-08:00",
        "p12.jpg": "",
        "p13.jpg": "",
        "p14.jpg": "2019",
        "p15.jpg": "2019-07",
    }
    assert not [finding for finding in check_folder(folder, progress=False).findings if "date" in finding.kind]


AMBIGUOUS = ["IMG_1.jpg is there twice: cam1/IMG_1.jpg, cam2/IMG_1.jpg; write the folder", "t.csv, row 2"]
HEIC = ["t.csv, row 2", "IMG_1.HEIC cannot be read: export it as JPEG"]
SHEET = "R/tables/wildbook_sheet/sheet.csv"
CASES = {
    "tables/dates": [
        Case(
            f"import R/tables/dates/t.csv --to OUT/d {SPECIES}",
            exit_code=2,
            words=[
                "3 faults",
                "row 4: column 'Date'",
                "2019-07-08 or 2019-08-07",
                "row 14: column 'Date': date '2019-13-07'",
                "row 15: column 'Date': date 'summer 2019'",
                "write 2026-07-31",
                "1 of them may be two days",
            ],
            never=["row 2:", "row 11"],
        ),
        Case(
            f"import R/tables/dates/t.csv --to OUT/d {SPECIES} --dates dmy --skip-faulty",
            words=["16 photographs of 4 individuals", "cells that cannot be read, 3", "1 date read as none"],
            known={"W0": 4, "W1": 4, "W2": 4, "W3": 4},
            left_out=["'07/13/19'", "'2019-13-07'", "'summer 2019'"],
            check=readable_dates,
        ),
    ],
    "tables/semicolon_comma_header": [
        Case(
            f"import R/tables/semicolon_comma_header/t.csv --to OUT/d {SPECIES}",
            words=["separated by semicolons", "3 positions read with decimal commas"],
            known=SOREN,
            check=column("latitude", dict.fromkeys(("p0.jpg", "p1.jpg", "p2.jpg"), "57.68")),
        )
    ],
    "tables/sides": [
        Case(
            f"import R/tables/sides/t.csv --to OUT/d {SPECIES}",
            words=["cells of 'viewpoint' that are neither left nor right, 1: t.csv, row 4: dorsal"],
            known=THREE,
            left_out=["t.csv, row 4: dorsal"],
            check=column("side", {"p0.jpg": "left", "p1.jpg": "right", "p2.jpg": ""}),
        )
    ],
    "tables/sep_line": [
        Case(f"import R/tables/sep_line/t.csv --to OUT/d {SPECIES}", words=["separated by semicolons"], known=SOREN)
    ],
    "tables/trailing_comma": [
        Case(f"import R/tables/trailing_comma/t.csv --to OUT/d {SPECIES}", words=["3 photographs"], known=SOREN)
    ],
    "tables/cp1252": [
        Case(
            f"import R/tables/cp1252/t.csv --to OUT/d {SPECIES}",
            words=["t.csv is not UTF-8: read as Windows-1252, such as 'Søren'", "CSV UTF-8"],
            known=SOREN,
        )
    ],
    "tables/utf16": [
        Case(f"import R/tables/utf16/t.csv --to OUT/d {SPECIES}", words=["read as UTF-16", "tabs"], known=SOREN)
    ],
    "tables/xlsx": [
        Case(
            f"import R/tables/xlsx/t.xlsx --to OUT/d {SPECIES}",
            words=["1 photograph of 1 individual"],
            never=["whatever its name says"],
            known={"Ann": 1},
        ),
        Case(
            f"import R/tables/xlsx/saved_as.csv --to OUT/e {SPECIES}",
            words=["saved_as.csv is an Excel workbook, whatever its name says"],
            known={"Ann": 1},
        ),
    ],
    "tables/comma_note": [
        Case(
            f"import R/tables/comma_note/t.csv --to OUT/d {SPECIES}",
            words=[TO_MANY],
            known=SOREN,
            left_out=["notes, who, when, where, why, how"],
        )
    ],
    "tables/pipe": [Case(f"import R/tables/pipe/t.csv --to OUT/d {SPECIES}", words=["separated by |"], known=SOREN)],
    "tables/blank_rows": [
        Case(f"import R/tables/blank_rows/t.csv --to OUT/d {SPECIES}", words=["3 photographs"], known=THREE)
    ],
    "tables/case_mismatch": [
        Case(
            f"import R/tables/case_mismatch/t.csv --to OUT/d {SPECIES}",
            words=["2 photographs written otherwise in the table, such as 'P0.JPG' for p0.jpg"],
            known=THREE,
        )
    ],
    "tables/no_extension": [
        Case(
            f"import R/tables/no_extension/t.csv --to OUT/d {SPECIES}",
            words=["3 photographs written otherwise", "'p0' for p0.jpg"],
            known=THREE,
        )
    ],
    "tables/full_paths": [
        Case(
            f"import R/tables/full_paths/t.csv --to OUT/d {SPECIES}",
            words=["3 photographs written otherwise", "for p0.jpg"],
            known=THREE,
        )
    ],
    "tables/nfd_file": [
        Case(
            f"import R/tables/nfd_file/t.csv --to OUT/d {SPECIES}",
            words=["3 photographs of 2 individuals"],
            never=["otherwise"],
            known=THREE,
            check=column("individual_id", {"Fj\u00e4rd_1.jpg": "Ann", "p1.jpg": "Ann", "p2.jpg": "Bo"}),
        )
    ],
    "tables/ambiguous": [
        Case(f"import R/tables/ambiguous/t.csv --to OUT/d {SPECIES} {skip}", exit_code=2, words=AMBIGUOUS)
        for skip in ("", "--skip-missing")
    ],
    "tables/heic_csv": [
        Case(f"import R/tables/heic_csv/t.csv --to OUT/d {SPECIES}", exit_code=2, words=HEIC),
        Case(
            f"import R/tables/heic_csv/t.csv --to OUT/d {SPECIES} --skip-missing",
            words=["photographs that cannot be read: export them as JPEG, 1: t.csv, row 2: IMG_1.HEIC"],
            known={"Ann": 1, "Bo": 1},
            left_out=["t.csv, row 2: IMG_1.HEIC"],
        ),
    ],
    "tables/many_in_cell": [
        Case(
            f"import R/tables/many_in_cell/t.csv --to OUT/d {SPECIES}",
            words=["1 cell with several photographs, such as 'p0.jpg; p1.jpg': each is read"],
            known=THREE,
        )
    ],
    "tables/same_photo_twice": [
        Case(
            f"import R/tables/same_photo_twice/t.csv --to OUT/d {SPECIES}",
            words=["1 photograph listed more than once for one animal: each is one"],
            known=THREE,
            check=column("side", {"p0.jpg": "", "p1.jpg": "left", "p2.jpg": "left"}),
        )
    ],
    "tables/older_kaggle": [
        Case(
            f"import R/tables/older_kaggle/t.csv --to OUT/d {SPECIES} -c individual_id=Id",
            words=["3 rows that name nobody are to be identified ('new_whale' 3)"],
            known={"w_1111": 2, "w_2222": 1},
            unidentified=3,
        )
    ],
    "tables/wildlife_datasets": [
        Case(
            f"import R/tables/wildlife_datasets/metadata.csv --to OUT/d {SPECIES}",
            words=["4 boxes", "columns that are not used, 1: image_id", "metadata.csv, row 4: top"],
            known=THREE,
            unidentified=1,
            left_out=["image_id", "metadata.csv, row 4: top"],
            check=boxes_and_sides,
        )
    ],
    "tables/wildbook_sheet": [
        Case(
            f"import {SHEET} --to OUT/d{i} {named}", words=["3 photographs of 2 individuals"], known=THREE, check=check
        )
        for i, (named, check) in enumerate(
            [
                ("", everything_of_the_sheet),
                (
                    "-c image=Encounter.mediaAsset0 -c individual_id=MarkedIndividual.individualID",
                    everything_of_the_sheet,
                ),
            ]
        )
    ],
    "tables/camtrap": [
        Case(
            f"import R/tables/camtrap{file} --to OUT/{name}",
            words=["2 photographs of 1 individual, 1 species"],
            known={"Ann": 2},
            check=column("date", {"a.jpg": "2019-07-01T10:00:00+02:00", "b.jpg": "2019-07-01T10:05:00+02:00"}),
        )
        for name, file in (("d", "/datapackage.json"), ("e", ""))
    ],
}
