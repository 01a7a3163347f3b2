"""Exports: safe to open in a spreadsheet, true to what was decided, and what the other programs' standards ask for."""

import csv
import io
import json
import re
import unicodedata
import zipfile
from datetime import date

import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from happywhale_nb.catalogue.exports.camtrap_dp import camtrap_tables, to_camtrap_dp
from happywhale_nb.catalogue.exports.common import (
    MAX_CELL_LENGTH,
    ZIP_TIME,
    arranged,
    latin,
    original_text,
    read_moment,
    safe_text,
    writable_text,
)
from happywhale_nb.catalogue.exports.csv import to_csv
from happywhale_nb.catalogue.exports.formats import EXPORTS, describe_export, export_messages
from happywhale_nb.catalogue.exports.mark import capture_histories, to_mark, to_rmark
from happywhale_nb.catalogue.exports.wildbook import check_wildbook, sheet_names, to_wildbook, wildbook_table
from happywhale_nb.catalogue.exports.with_photos import photo_names
from happywhale_nb.catalogue.listings import SIGHTING_COLUMNS
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.species import SPECIES

# ---------------------------------------------------------------------------------------------------- a table of ours


def sighting(encounter_id=1, **others):
    """One photograph of an encounter that a person confirmed, but for `others`."""
    row = {"photo": "a.jpg", "sha256": "f" * 64, "width": 1000, "height": 500, "side": "left"}
    row |= {
        "encounter": f"E{encounter_id}",
        "date": "2020-06-01",
        "place": "Bay",
        "latitude": 44.5,
        "longitude": -66.25,
    }
    row |= {"species": "humpback_whale", "individual": "Mn01", "state": "confirmed", "decided_by": "Ana"}
    row |= {"decided_at": "2024-01-05T10:00:00+00:00", "kind_of_source": "decision", "answer_id": 7, "rank": 1}
    return row | {"probability": 0.83, "box": [100, 50, 900, 450], "encounter_id": encounter_id} | others


def table_of(*rows):
    """A table of sightings with photographs numbered from 1."""
    table = pd.DataFrame([{"photo_id": i} | row for i, row in enumerate(rows, start=1)], dtype=object)
    return table.astype({"photo_id": int, "encounter_id": int})


HOSTILE = [
    '=cmd|" /C calc"!A0',
    "@SUM(A1)",
    "\t=1",
    "−1",
    "＝1+1",
    " \u200b\u3164-1",
    "x;=1",
    'x,"=1"',
    "a\r\n+1",
    "'",
    "''=1",
]


@pytest.fixture
def hostile():
    """As many encounters as there are hostile texts; each has one as the name of everything that people name."""
    names = ["photo", "encounter", "place", "individual", "decided_by", "side", "species", "state", "kind_of_source"]
    rows = [sighting(i, **{name: text for name in names[:-3]}) for i, text in enumerate(HOSTILE)]
    return table_of(*rows, sighting(99, **dict.fromkeys(names, "=1+1"), sha256="=1", date="=1"))


def opens_a_formula(cell):
    """Whether the first visible character of `cell` is one that spreadsheets begin a formula with."""
    for character in cell:
        if unicodedata.category(character)[0] not in "ZCM" and character not in "\u115f\u1160\u2800\u3164\uffa0":
            return unicodedata.normalize("NFKC", character)[0] in "=+-@"
    return False


def readings(data):
    """Cells of a CSV in every way that a program may take it apart: list of lists of texts, as written first."""
    text = data.decode("utf-8-sig")
    for delimiter in ",;\t|":
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
            yield [
                cell
                for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
                for cell in row
            ]


# ------------------------------------------------------------------------------------------------------------ texts

# what matters comes often, everything else sometimes, lone surrogates and NULs too
texts = st.text(
    st.one_of(
        st.sampled_from("=+-@'\",;|\t\r\n \0\u200b\u3164\u0301\ufeff＝＋－＠﹣a1"), st.characters(exclude_categories=())
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(texts)
def test_original_text_gives_back_what_safe_text_was_given(text):
    assert original_text(safe_text(text)) == writable_text(text)
    assert safe_text(text).encode("utf-8").count(b"\0") == 0


@settings(deadline=None, max_examples=200, derandomize=True)
@given(texts, texts)
def test_safe_text_is_no_formula_however_a_csv_is_taken_apart(first, second):
    data = io.StringIO(newline="")
    csv.writer(data, quoting=csv.QUOTE_NONNUMERIC).writerow([1, safe_text(first), safe_text(second)])
    for cells in readings(data.getvalue().encode()):
        assert not any(map(opens_a_formula, cells)), cells


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.one_of(st.integers(), st.floats(), st.booleans()))
def test_safe_text_of_a_number_is_the_number(value):
    assert safe_text(value) is value


def test_safe_text_of_a_long_text_is_cut_and_says_so():
    for text in ("x" * 100_000, ";=" * 50_000, "\t" * 100_000):
        assert len(safe_text(text)) == MAX_CELL_LENGTH and safe_text(text).endswith(" [cut]")
    assert safe_text("x" * MAX_CELL_LENGTH) == "x" * MAX_CELL_LENGTH and safe_text(None) == ""


def test_safe_text_of_an_ordinary_name_is_the_name():
    for text in ("Old Scar", "N0007", "IMG_0001.JPG", "2019-05-02", "Skjálfandi", "O'Brien", "a-b=c", "5 - 6"):
        assert safe_text(text) == text


# -------------------------------------------------------------------------------------------------------------- csv


def test_to_csv_of_hostile_names_holds_them_and_no_formula(hostile):
    data = to_csv(hostile)
    assert data.startswith(b"\xef\xbb\xbf")
    back = pd.read_csv(io.BytesIO(data), keep_default_na=False)
    for name in ("photo", "encounter", "place", "individual", "decided_by"):
        assert back[name].map(original_text).tolist() == hostile[name].tolist()
    assert back["latitude"].tolist() == [44.5] * len(hostile) and back["rank"].tolist() == [1] * len(hostile)
    numbers = {"-66.25"}
    for cells in readings(data):
        assert not [cell for cell in cells if opens_a_formula(cell) and not set(re.split("[,;]", cell)) & numbers]


def test_to_csv_with_missing_values_is_whole():
    rows = [
        sighting(1, latitude=np.nan, probability=np.nan, rank=None, box=None, date=None),
        sighting(2, photo="a\nb\0\ud800.jpg"),
    ]
    back = pd.read_csv(io.BytesIO(to_csv(table_of(*rows))))
    assert back.loc[0, ["latitude", "probability", "rank", "box_x0", "date"]].isna().all()
    assert back["photo"][1] == "a\nb\ufffd.jpg" and back["box_y1"][1] == 450
    assert b",1000,500," in to_csv(table_of(*rows)), "whole numbers look like it"
    assert pd.read_csv(io.BytesIO(to_csv(table_of(*rows).head(0)))).empty


def test_to_csv_without_a_column_is_refused_by_its_name():
    with pytest.raises(UserError, match="no column sha256"):
        to_csv(table_of(sighting()).drop(columns="sha256"))


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_leave_the_table_as_it_was(name):
    rows = [sighting(i, individual=f"Mn{i % 4}", date=f"20{10 + i % 5}-06-0{1 + i % 9}") for i in range(9)]
    table, (make, file, kind) = table_of(*rows).sample(frac=1, random_state=3), EXPORTS[name]
    table.index = range(5, 14)
    before = table.copy(deep=True)
    assert len(make(table)) > len(make(table.head(0)))
    pd.testing.assert_frame_equal(table, before)
    assert "." in file and "/" in kind


def test_to_wildbook_and_to_camtrap_dp_hold_no_time_of_today():
    for data in (to_wildbook(table_of(sighting())), to_camtrap_dp(table_of(sighting()))):
        archive = zipfile.ZipFile(io.BytesIO(data))
        assert {entry.date_time for entry in archive.infolist()} == {ZIP_TIME}
        content = b"".join(archive.read(name) for name in archive.namelist())
        assert date.today().isoformat().encode() not in content


# ------------------------------------------------------------------------------------------------------ dates, species


@pytest.mark.parametrize(
    "text",
    [
        "",
        "May 2019",
        "2019-13-01",
        "2019-5-1",
        "19-05-01",
        "2019-05-01T25:00",
        "٢٠١٩",
    ],
)
def test_read_moment_of_what_is_no_date_is_none(text):
    assert read_moment(text) is None


def test_read_moment_reads_as_far_as_it_is_known():
    assert read_moment(" 2019-05 ") == (2019, 5, 0, "", "")
    assert read_moment("2019-05-01T10:20:30.123456+00:00") == (2019, 5, 1, "10:20:30", "+00:00")


def test_latin_knows_every_species_of_the_competition():
    genera = {name: latin(name)[0] for name in [*SPECIES["species_raw"], "north_atlantic_right_whale"]}
    assert all(genera.values()) and genera["kiler_whale"] == "Orcinus"
    assert latin("Fin Whale") == latin("fin_whale") == ("Balaenoptera", "physalus") and latin("") == ("", "")
    assert latin("Stenella") == ("", "")


# --------------------------------------------------------------------------------------------------------- wildbook

# fields that Wildbook's validator knows (BulkValidator.java), and those it takes for the same
KNOWN = re.compile(
    r"Encounter\.(mediaAsset\d+|year|month|day|hour|minutes|locationID|verbatimLocality|decimalLatitude|decimalLongitude|"
    r"genus|specificEpithet|submitterID|state|otherCatalogNumbers)|MarkedIndividual\.individualID"
)


def read_sheet(data):
    """Rows of cells of a workbook's only sheet."""
    (sheet,) = openpyxl.load_workbook(io.BytesIO(data)).worksheets
    return list(sheet.iter_rows())


def test_to_wildbook_has_a_row_for_each_encounter():
    table = table_of(
        sighting(1, date="2020-06-02T08:05:00", photo="1a.jpg"),
        sighting(1, date="2020-06-01T23:59:00", photo="1b.jpg"),
        sighting(2, individual="", state="unsure", date="2020", latitude=np.nan, longitude=np.nan, photo="2.jpg"),
    )
    heads, *rows = [[cell.value for cell in row] for row in read_sheet(to_wildbook(table, "ana", {"Bay": "Fundy"}))]
    assert all(map(KNOWN.fullmatch, heads)) and len(set(heads)) == len(heads)
    one, two = (dict(zip(heads, row, strict=True)) for row in rows)
    assert [one[f"Encounter.{name}"] for name in ("year", "month", "day", "hour", "minutes")] == [2020, 6, 1, 23, 59]
    assert [one["Encounter.mediaAsset0"], one["Encounter.mediaAsset1"]] == ["1a.jpg", "1b.jpg"]
    assert (one["MarkedIndividual.individualID"], one["Encounter.state"]) == ("Mn01", "approved")
    assert (two["MarkedIndividual.individualID"], two["Encounter.state"]) == (None, "unapproved")
    assert (two["Encounter.year"], two["Encounter.month"], two["Encounter.decimalLatitude"]) == (2020, None, None)
    assert one["Encounter.locationID"] == "Fundy" and one["Encounter.decimalLongitude"] == -66.25
    assert (one["Encounter.genus"], one["Encounter.specificEpithet"]) == ("Megaptera", "novaeangliae")


def test_wildbook_table_leaves_out_columns_without_data():
    assert not {"Encounter.hour", "Encounter.submitterID", "Encounter.locationID"} & set(
        wildbook_table(table_of(sighting()))
    )


def test_to_wildbook_of_hostile_names_has_texts_and_no_formula(hostile):
    rows = read_sheet(to_wildbook(hostile, submitter="=1+1"))
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.data_type == "f"]
    for cell in cells:
        if isinstance(cell.value, str):
            assert cell.data_type == "s" and cell.quotePrefix == (safe_text(cell.value) != cell.value)
    assert b"<f>" not in zipfile.ZipFile(io.BytesIO(to_wildbook(hostile))).read("xl/worksheets/sheet1.xml")
    column = [cell.value for cell in rows[0]].index("Encounter.mediaAsset0")
    assert all(re.fullmatch("[A-Za-z0-9. _]+", row[column].value) for row in rows[1:]), "as Wildbook asks for"


@settings(deadline=None, max_examples=25, derandomize=True)
@given(texts, texts, texts)
def test_to_wildbook_of_any_texts_has_no_live_formula(photo, place, individual):
    table = table_of(sighting(1, photo=photo, place=place, individual=individual))
    heads, row = read_sheet(to_wildbook(table, submitter=place))
    found = dict(zip([cell.value for cell in heads], row, strict=True))
    assert not [cell for cell in row if cell.data_type == "f"]
    for column, text in (("MarkedIndividual.individualID", individual), ("Encounter.verbatimLocality", place)):
        if wanted := writable_text(text):
            read = "".join(found[column].value.splitlines())  # XML has its own ends of lines
            assert found[column].data_type == "s" and read == "".join(wanted.splitlines())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"date": ""}, "it has no date; a year is required"),
        ({"date": "in May"}, "its date 'in May' cannot be read"),
        ({"date": "2031-01-01"}, "its date is in the future"),
        ({"species": ""}, "it has no species"),
        ({"species": "mermaid"}, "the scientific name of 'mermaid' is not known"),
        ({"species": "spotted_dolphin"}, "may be Atlantic (S. frontalis)"),
        ({"place": "", "latitude": np.nan, "longitude": np.nan}, "it has no location"),
        ({"latitude": np.nan}, "it has a latitude or a longitude, not both"),
        ({"latitude": 95.0}, "is not on Earth"),
    ],
)
def test_check_wildbook_tells_what_it_would_refuse(change, sentence):
    table = table_of(sighting(1, photo="b.jpg"), sighting(4, **({"photo": "c.jpg"} | change)))
    found = [text for text in check_wildbook(table, "ana", date(2026, 1, 1)) if "encounter E4" in text]
    assert len(found) == 1 and found[0].startswith("Row 3, ") and sentence in found[0]


def test_check_wildbook_of_a_good_sheet_is_empty_up_to_200_encounters():
    table = table_of(sighting(1, photo="a.jpg", date="2020"), sighting(2, photo="b c_1.JPG", place=""))
    assert check_wildbook(table, "ana") == []
    assert check_wildbook(table)[0].startswith("Every row: the submitter is missing")
    many = table_of(*(sighting(i, photo=f"{i}.jpg") for i in range(201)))
    assert check_wildbook(many, "ana") == ["Every row: 201 encounters are more than 200; export them in parts."]


def test_check_wildbook_of_an_encounter_of_two_species_tells():
    table = table_of(sighting(1, photo="a.jpg"), sighting(1, photo="b.jpg", species="fin_whale"))
    assert "several species (fin_whale, humpback_whale)" in check_wildbook(table, "ana")[0]


# ------------------------------------------------------------------------------------------------------- camtrap dp

# Camtrap DP 1.0's table schemas: every field in its order, with its type and constraints
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})"
FEATURES = (
    "roadPaved roadDirt trailHiking trailGame roadUnderpass roadOverpass roadBridge culvert burrow nestSite carcass "
    "waterSource fruitingTree"
)
STANDARD = {
    "deployments": """deploymentID required unique
locationID
locationName
latitude required number -90 90
longitude required number -180 180
coordinateUncertainty integer 1
deploymentStart required time
deploymentEnd required time
setupBy
cameraID
cameraModel
cameraDelay integer 0
cameraHeight number 0
cameraDepth number 0
cameraTilt integer -90 90
cameraHeading integer 0 360
detectionDistance number 0
timestampIssues boolean
baitUse boolean
featureType enum """
    + FEATURES
    + """
habitat
deploymentGroups
deploymentTags
deploymentComments""",
    "media": r"""mediaID required unique
deploymentID required
captureMethod enum activityDetection timeLapse
timestamp required time
filePath required pattern ^(?=^[^./~])(^((?!\.{2}).)*$).*$
filePublic required boolean
fileName
fileMediatype required pattern ^(image|video|audio)/.*$
exifData
favorite boolean
mediaComments""",
    "observations": """observationID required unique
deploymentID required
mediaID
eventID
eventStart required time
eventEnd required time
observationLevel required enum media event
observationType required enum animal human vehicle blank unknown unclassified
cameraSetupType enum setup calibration
scientificName
count integer 1
lifeStage enum adult subadult juvenile
sex enum female male
behavior
individualID
individualPositionRadius number 0
individualPositionAngle number -90 90
individualSpeed number 0
bboxX number 0 1
bboxY number 0 1
bboxWidth number 1e-15 1
bboxHeight number 1e-15 1
classificationMethod enum human machine
classifiedBy
classificationTimestamp time
classificationProbability number 0 1
observationTags
observationComments""",
}


def faults(values, words):
    """What is wrong with a column's texts by the standard, a list."""
    given, found = [value for value in values if value != ""], []
    if "required" in words and len(given) < len(values):
        found.append("missing")
    if "unique" in words and len(set(given)) < len(given):
        found.append("not unique")
    kind = next((word for word in words if word in ("number", "integer", "time", "boolean", "enum", "pattern")), None)
    after = words[words.index(kind) + 1 :] if kind else []
    if kind in ("number", "integer"):
        numbers = [(float if kind == "number" else int)(value) for value in given]
        low, high = float(after[0]), float(after[1]) if len(after) > 1 else np.inf
        found += [number for number in numbers if not low <= number <= high]
    patterns = {"time": TIME, "boolean": "true|false", "enum": "|".join(after), "pattern": after[0] if after else ""}
    if kind in patterns:
        found += [value for value in given if not re.fullmatch(patterns[kind], value)]
    return found


def read_package(data):
    """The description and the tables (all texts) of a package, after every check that the standard allows."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    about = json.loads(archive.read("datapackage.json"))
    assert set(archive.namelist()) == {"datapackage.json", *(part["path"] for part in about["resources"])}
    tables = {}
    for part in about["resources"]:
        content = archive.read(part["path"])
        assert not content.startswith(b"\xef\xbb\xbf") and part["profile"] == "tabular-data-resource"
        tables[part["name"]] = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    for name, text in STANDARD.items():
        fields = [line.split(" ") for line in text.splitlines()]
        assert tables[name].columns.tolist() == [field[0] for field in fields]
        wrong = {field[0]: faults(tables[name][field[0]].tolist(), field[1:]) for field in fields}
        assert not {field: found for field, found in wrong.items() if found}
    check_references(tables)
    check_description(about, tables)
    return about, tables


def check_references(tables):
    observations, media = tables["observations"], tables["media"].set_index("mediaID")
    for name in ("media", "observations"):
        assert set(tables[name]["deploymentID"]) <= set(tables["deployments"]["deploymentID"])
    of_media = observations["observationLevel"] == "media"
    assert (
        set(observations.loc[of_media, "mediaID"]) == set(media.index)
        and (observations.loc[~of_media, "mediaID"] == "").all()
    )
    assert (observations["eventStart"] <= observations["eventEnd"]).all()
    for row in observations[of_media].itertuples():
        assert row.eventStart <= media.loc[row.mediaID, "timestamp"] <= row.eventEnd


def check_description(about, tables):
    """The profile's rules: required parts, vocabularies, one version."""
    needed = {"resources", "profile", "created", "contributors", "project", "spatial", "temporal", "taxonomic"}
    assert needed <= set(about) and re.fullmatch(TIME, about["created"])
    assert re.fullmatch("[-a-z0-9._/]+", about["name"]) and all(person["title"] for person in about["contributors"])
    assert "/1.0.2/" in about["profile"]
    for part in about["resources"]:
        if part["name"] in STANDARD:
            assert part["schema"] == about["profile"].replace("camtrap-dp-profile", f"{part['name']}-table-schema")
    project = about["project"]
    assert (
        project["title"]
        and project["individualAnimals"] is True
        and set(project["observationLevel"]) == {"media", "event"}
    )
    designs = {"simpleRandom", "systematicRandom", "clusteredRandom", "experimental", "targeted", "opportunistic"}
    assert project["samplingDesign"] in designs and set(project["captureMethod"]) <= {"activityDetection", "timeLapse"}
    assert all(re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", about["temporal"][end]) for end in ("start", "end"))
    named = {taxon["scientificName"] for taxon in about["taxonomic"]}
    assert named == set(tables["observations"]["scientificName"]) - {""}
    assert all(set(taxon["vernacularNames"]) == {"eng"} for taxon in about["taxonomic"])
    points = set(
        zip(
            tables["deployments"]["longitude"].astype(float),
            tables["deployments"]["latitude"].astype(float),
            strict=True,
        )
    )
    assert about["spatial"]["type"] == "MultiPoint" and set(map(tuple, about["spatial"]["coordinates"])) == points


def test_faults_of_broken_columns_are_found():
    assert faults(["", "a", "a"], ["required", "unique"]) == ["missing", "not unique"]
    assert faults(["-91", "90", ""], ["number", "-90", "90"]) == [-91] and faults(["adult"], ["enum", "adult"]) == []
    assert faults(["2020-06-01"], ["time"]) == ["2020-06-01"] and faults(["a/../b"], ["pattern", "^((?!\\.{2}).)*$"])


def test_to_camtrap_dp_is_what_the_standard_says():
    table = table_of(
        sighting(1, date="2020-06-01T10:00:00+02:00"),
        sighting(1, date="2020-06-01T10:05:00+02:00", box=None, photo="b.PNG"),
        sighting(
            2,
            state="undecided",
            individual="",
            rank=None,
            probability=np.nan,
            decided_by="",
            decided_at="",
            species="mermaid",
        ),
        sighting(3, state="unsure", individual="", decided_by="Bo", date="2021-07-01", species="white_sided_dolphin"),
        sighting(4, kind_of_source="given", decided_by="", decided_at=""),
        sighting(5, date=""),
        sighting(6, date="2020-05"),
        sighting(7, longitude=np.nan, individual="Mn07"),
        sighting(8, latitude=-91.0),
    )
    about, tables = read_package(to_camtrap_dp(table, title="Ours: 2020!"))
    out = tables["left_out"].set_index("encounter_id")["why"].to_dict()
    assert out == {"5": "no date", "6": "its date has no day", "7": "no position", "8": "its position is not on Earth"}
    assert "1 (no date)" in about["description"] and about["created"] == "2024-01-05T10:00:00+00:00"
    assert [person["title"] for person in about["contributors"]] == ["Ana", "Bo"] and about["name"] == "ours-2020"
    assert tables["deployments"]["timestampIssues"].tolist() == ["false", "true", "true", "true"]
    rows = tables["observations"].set_index("observationID")
    assert rows.loc["photo-1", ["bboxX", "bboxY", "bboxWidth", "bboxHeight"]].tolist() == ["0.1", "0.1", "0.8", "0.8"]
    assert rows.loc["photo-2", "bboxX"] == "" and rows.loc["encounter-1", "eventEnd"] == "2020-06-01T10:05:00+02:00"
    whole = rows[rows["observationLevel"] == "event"]
    assert whole["individualID"].tolist() == ["Mn01", "", "", "Mn01"]
    assert (
        whole["classificationMethod"].tolist() == ["human", "", "human", ""]
        and whole["classifiedBy"].tolist()[2] == "Bo"
    )
    assert (rows["classificationProbability"] == "").all() and "machineProbability:0.83" in rows.loc[
        "photo-1", "observationTags"
    ]
    assert (
        whole["scientificName"].tolist()[1:3] == ["", "Lagenorhynchus"]
        and "mermaid" in whole["observationComments"].iloc[1]
    )
    media = tables["media"]
    assert media["filePath"][1] == f"photos/{'f' * 64}.png" and media["fileMediatype"][1] == "image/png"
    assert set(media["filePublic"]) == {"false"}


def test_to_camtrap_dp_of_hostile_names_is_sound_and_has_no_formula(hostile):
    hostile["photo"] = [f"../../{text}.jpg" for text in hostile["photo"]]
    data = to_camtrap_dp(hostile, title="=1+1", contributors=["=2"])
    _, tables = read_package(data)
    assert (
        len(tables["deployments"]) == len(HOSTILE) and tables["media"]["filePath"].str.match("photos/f{64}.jpg$").all()
    )
    for name in tables:
        numbers = {"longitude"}
        for field in set(tables[name]) - numbers:
            assert not tables[name][field].map(opens_a_formula).any(), (name, field)


def test_camtrap_tables_with_another_address_and_zone_or_wrong_ones():
    table = table_of(sighting(date="2020-06-01T10:00:00"))
    media = camtrap_tables(table, zone="+02:00", address="https://whales.example/photos/{photo_id}/file", public=True)[
        "media"
    ]
    assert media.loc[0, ["filePath", "filePublic"]].tolist() == ["https://whales.example/photos/1/file", "true"]
    assert media["timestamp"][0] == "2020-06-01T10:00:00+02:00"
    for wrong in ("/photos/{photo_id}", "a/../{photo_id}", "{photo}", "{photo_id.__class__}", ""):
        with pytest.raises(UserError, match="not a photo address"):
            camtrap_tables(table, address=wrong)
    with pytest.raises(UserError, match="not a time zone"):
        camtrap_tables(table, zone="CEST")


def test_to_camtrap_dp_without_a_real_time_of_creation_is_refused():
    with pytest.raises(UserError, match="not a creation time"):
        to_camtrap_dp(table_of(sighting()), created="today")
    about, _ = read_package(to_camtrap_dp(table_of(sighting(decided_at="")), created="2026-01-31T12:00:00Z"))
    assert about["created"] == "2026-01-31T12:00:00Z"


def test_to_camtrap_dp_of_a_box_outside_the_photograph_leaves_it_out():
    boxes = [
        [-50, -50, 5000, 5000],
        [2000, 0, 3000, 10],
        [np.nan] * 4,
        [999.9999999, 0, 1000, 500],
    ]
    table = table_of(*(sighting(i, box=box) for i, box in enumerate(boxes)))
    _, tables = read_package(to_camtrap_dp(table))
    found = tables["observations"].query("observationLevel == 'media'")
    assert found["bboxWidth"].tolist() == ["1.0", "", "", ""]


# ------------------------------------------------------------------------------------------------ capture histories


def read_inp(data):
    """Histories by identifier, read as MARK and RMark's `convert.inp` do: comments away, records end at a semicolon."""
    found = {}
    for line in data.decode("ascii").splitlines():
        comments = re.findall(r"/\*(.*?)\*/", line)
        rest = re.sub(r"/\*.*?\*/", "", line).strip()
        assert len(comments) == 1 and (not rest or re.fullmatch("[01]+ 1;", rest))
        if rest:
            assert comments[0].strip() not in found
            found[comments[0].strip()] = rest.split(" ")[0]
    return found


def test_capture_histories_count_decided_animals_only():
    table = table_of(
        sighting(1, date="2018", individual="A"),
        sighting(2, date="2020-01-01", individual="A", state="new"),
        sighting(3, date="2020-05-01", individual="B", kind_of_source="given", state=""),
        sighting(4, date="2021-05-01", individual="C", state="undecided"),
        sighting(5, date="2021-05-01", individual="", state="unsure"),
        sighting(6, date="", individual="A"),
        sighting(7, date="soon", individual="D"),
        sighting(8, date="2018-03-01", individual="E", species="fin_whale"),
        sighting(8, date="2018-03-02", individual="E", species="fin_whale"),
    )
    found = capture_histories(table, species="Megaptera novaeangliae")
    assert found.table.loc["A"].to_dict() == {"2018": 1, "2020": 1, "2021": 0} and found.table.index.tolist() == [
        "A",
        "B",
    ]
    assert found.intervals == [2, 1] and found.unit == "years"
    why = found.left_out.set_index("encounter_id")["why"].to_dict()
    assert why == {4: "nobody has decided", 5: "nobody has decided", 6: "no date", 7: "its date cannot be read"}
    assert capture_histories(table).table.loc["E"].tolist() == [1, 0, 0]
    assert read_inp(to_mark(table)) == {"A": "110", "B": "010", "E": "100"}
    assert "1 (its date cannot be read), 1 (no date), 2 (nobody has decided)" in to_mark(table).decode()
    by_month = capture_histories(table, "month")
    assert by_month.table.columns.tolist() == ["2018-03", "2020-01", "2020-05", "2021-05"] and by_month.intervals == [
        22,
        4,
        12,
    ]
    assert by_month.left_out["why"].tolist().count("its date has no month") == 1


def test_capture_histories_keep_all_listed_occasions():
    table = table_of(
        sighting(1, date="2020-06-30"), sighting(2, date="2020-07-01", individual="B"), sighting(3, date="2020-06")
    )
    listed = [
        ("one", "2020-06-01", "2020-06-30"),
        ("none", "2020-08-01", "2020-08-31"),
        ("two", "2020-09-01", "2020-09-01"),
    ]
    found = capture_histories(table, listed)
    assert found.table.to_dict("index") == {"Mn01": {"one": 1, "none": 0, "two": 0}} and found.unit == "days"
    assert found.intervals == [61.5, 16.0]
    assert found.left_out["why"].tolist() == ["outside the occasions", "its date has no day"]


@pytest.mark.parametrize(
    ("occasions", "message"),
    [
        ("week", "'week' are not known"),
        ([], "at least one"),
        ([("a", "2020-06-01", "2020-05-01")], "ends before it begins"),
        ([("a", "2020-06-01", "2020-06-30"), ("b", "2020-06-30", "2020-07-01")], "without overlap"),
        ([("a", "2020-06-01", "2020-06-30"), ("a", "2020-07-30", "2020-08-01")], "names that differ"),
        ([("a", "June", "July")], "is not an occasion"),
        ([2019, 2020], "is not an occasion"),
    ],
)
def test_capture_histories_of_occasions_that_cannot_be_are_refused(occasions, message):
    with pytest.raises(UserError, match=message):
        capture_histories(table_of(sighting()), occasions)


def test_to_mark_without_a_decided_animal_says_so():
    undecided = table_of(sighting(state="undecided"))
    assert "no decided animal" in to_mark(undecided).decode() and read_inp(to_mark(undecided)) == {}
    assert "1 (nobody has decided)" in to_mark(undecided).decode()
    for make in (to_mark, to_rmark):
        with pytest.raises(UserError, match="no photograph is of 'beluga'"):
            make(table_of(sighting()), species="beluga")


meetings = st.lists(
    st.tuples(st.sampled_from("ABCD"), st.integers(2000, 2006), st.sampled_from(["confirmed", "new", "unsure"])),
    min_size=1,
)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(meetings)
def test_capture_histories_hold_exactly_the_decided_meetings(met):
    rows = [sighting(i, individual=who, date=f"{year}-06-01", state=state) for i, (who, year, state) in enumerate(met)]
    found = capture_histories(table_of(*rows))
    true = {(who, str(year)) for who, year, state in met if state != "unsure"}
    assert {(who, year) for who, row in found.table.iterrows() for year in row.index if row[year]} == true
    assert found.table.columns.tolist() == sorted({str(year) for _, year, _ in met})
    assert sum(found.intervals) == int(found.table.columns[-1]) - int(found.table.columns[0])
    assert len(found.left_out) == sum(state == "unsure" for *_, state in met)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    st.lists(
        st.one_of(texts, st.sampled_from(["*/", "/*", "a*/ 111 1;", "a/**/", "é", "Е", "A", "a", "#", "\n;"])),
        min_size=1,
        max_size=6,
    )
)
def test_to_mark_and_to_rmark_of_any_names_are_whole(names):
    table = table_of(*(sighting(i, individual=name) for i, name in enumerate(names)), sighting(999, individual="Mn"))
    count = len({writable_text(name) for name in names} - {""} | {"Mn"})
    assert set(read_inp(to_mark(table)).values()) == {"1"} and len(read_inp(to_mark(table))) == count
    lines = [line.split("\t") for line in to_rmark(table).decode("ascii").splitlines()]
    assert lines[0] == ["ch", "freq", "id"] and len(lines) == count + 1
    assert all(
        re.fullmatch('"[01]+"', ch) and n == "1" and re.fullmatch('"[0-9A-Za-z._-]+"', who) for ch, n, who in lines[1:]
    )


def test_to_mark_tells_similar_names_apart():
    names = ["a", "A", "a_2", "a 2", "Скала", "岩", "animal_2"]
    found = read_inp(to_mark(table_of(*(sighting(i, individual=name) for i, name in enumerate(names)))))
    assert len({name.casefold() for name in found}) == len(names)


# ------------------------------------------------------------------------------------------- as a catalogue tells it


def of_a_catalogue(*encounters):
    """Sightings as `listings.sightings` makes them where nothing is known but the photograph, but for `encounters`."""
    nothing = {"side": "", "date": "", "place": "", "species": "", "individual": "", "state": "undecided"}
    nothing |= {"decided_by": "", "decided_at": "", "kind_of_source": "decision"}
    nothing |= dict.fromkeys(["latitude", "longitude", "answer_id", "rank", "probability", "box"])
    rows = [sighting(i, photo_id=i) | nothing | others for i, others in enumerate(encounters)]
    return pd.DataFrame([[row[name] for name in SIGHTING_COLUMNS] for row in rows], columns=list(SIGHTING_COLUMNS))


@pytest.mark.parametrize(
    "table",
    [
        of_a_catalogue(),
        of_a_catalogue({}, {}),
        of_a_catalogue({"date": "2020-06-01", "latitude": 44.5, "longitude": -66.0}, {"box": [1.0, 2.0, 3.0, 4.0]}),
    ],
    ids=["empty", "nothing known", "nothing decided"],
)
def test_exports_of_a_catalogue_without_decisions_are_whole(table):
    assert len(pd.read_csv(io.BytesIO(to_csv(table)))) == len(table)
    assert len(wildbook_table(table)) == len(table) and len(read_sheet(to_wildbook(table))) == (len(table) or -1) + 1
    archive = zipfile.ZipFile(io.BytesIO(to_camtrap_dp(table)))
    about = json.loads(archive.read("datapackage.json"))
    deployments = pd.read_csv(io.BytesIO(archive.read("deployments.csv")))
    assert deployments.columns.tolist() == [line.split(" ")[0] for line in STANDARD["deployments"].splitlines()]
    assert ("package is not valid yet" in about["description"]) == deployments.empty == ("temporal" not in about)
    assert len(about["spatial"]["coordinates"]) == len(deployments)
    for occasions in ("year", "month", "day", [("one", "2020-01-01", "2020-12-31")]):
        assert read_inp(to_mark(table, occasions=occasions)) == {}
        assert to_rmark(table, occasions=occasions) == b"ch\tfreq\tid\r\n"


def test_exports_of_one_decision_among_unknowns_hold_it():
    known = {"individual": "Mn01", "state": "confirmed", "decided_by": "Ana", "date": "2020-06-01T10:00:00+02:00"}
    known |= {"decided_at": "2024-01-05T10:00:00.123456+00:00", "latitude": 44.5, "longitude": -66.0}
    known |= {"probability": 0.5}
    table = of_a_catalogue({}, known, {})
    _, tables = read_package(to_camtrap_dp(table))
    assert set(tables["observations"]["individualID"]) == {"Mn01"} and len(tables["left_out"]) == 2
    assert read_inp(to_mark(table)) == {"Mn01": "1"}
    assert pd.read_csv(io.BytesIO(to_csv(table)))["probability"].dropna().tolist() == [0.5]


def test_clean_text_of_any_missing_value_is_empty():
    for missing in (None, np.nan, pd.NA, pd.NaT):
        assert writable_text(missing) == ""


# -------------------------------------------------------------------------------- what a person is told


def test_describe_export_of_a_sheet_that_wildbook_refuses_names_the_rows():
    table = table_of(sighting(1, date=""), sighting(2, species="minke_whale"), sighting(3, species="mermaid"))
    text = describe_export(table, "wildbook")
    assert "\nWildbook will refuse this sheet:\nEvery row: the submitter is missing" in text
    assert "Row 2, encounter E1: it has no date" in text and "Row 4, encounter E3: the scientific name of" in text
    assert "E3" not in describe_export(table, "wildbook", "minke_whale"), "of one species, its rows alone"


def test_describe_export_of_many_refused_rows_shows_the_first_and_counts_the_rest():
    table = table_of(*(sighting(i, date="", photo=f"{i}.jpg") for i in range(1, 31)))
    refused, notes = export_messages(table, "wildbook")
    assert len(refused) == 31 and len(notes) == 1 and notes[0].startswith("the sides of 30 photographs are left out")
    assert describe_export(table, "wildbook").splitlines()[-1] == "… and 11 more"


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.one_of(texts, st.sampled_from(["image.jpg", "IMAGE.JPG", "image_1.jpg", "..", "é.png"])), max_size=9)
)
def test_sheet_names_differ_and_keep_what_can_be_kept(names):
    table = arranged(pd.DataFrame([sighting(i, photo=name, photo_id=i) for i, name in enumerate(["a.jpg", *names])]))
    new, old = sheet_names(table), list(table["photo"])
    assert len({name.casefold() for name in new}) == len(new) and not [name for name in new if not name.strip(". ")]
    assert all(re.fullmatch("[A-Za-z0-9. _]+", name) for name in new)
    folded = [name.casefold() for name in old]
    for name, other in zip(old, new, strict=True):
        if re.fullmatch("[A-Za-z0-9. _]*[A-Za-z0-9_][A-Za-z0-9. _]*", name) and folded.count(name.casefold()) == 1:
            assert other == name


def test_export_messages_tell_of_photographs_that_get_another_name():
    table = table_of(sighting(1, photo="image.jpg"), sighting(1, photo="image.jpg"), sighting(2, photo="b.jpg"))
    refused, notes = export_messages(table, "wildbook", submitter="ana")
    assert refused == [] and "2 photographs have another name in the sheet ('image.jpg' is 'image_" in notes[0]
    cells = [cell.value for row in read_sheet(to_wildbook(table)) for cell in row]
    assert "image.jpg" not in cells and set(photo_names(table, "wildbook").values()) <= set(cells)


def test_export_messages_of_histories_tell_of_gaps_sides_and_animals_without_species():
    table = table_of(
        sighting(1, date="2018-05-01", individual="Mn01", side="left"),
        sighting(2, date="2021-05-01", individual="Mn02", side="right"),
        sighting(3, date="2022-05-01", individual="", state="undecided"),
        sighting(4, date="2021-06-01", individual="Mn03", species=""),
    )
    told = "\n".join(export_messages(table, "mark").notes)
    assert "no encounter has a date in 2019, 2020: no column" in told and "no capture in 2022" in told
    assert "2 from the left, 1 from the right" in told
    told = export_messages(table, "mark", species="humpback_whale").notes
    assert "left out: 1 encounter (E4) without a species, and with them sightings of Mn03" in told[-1]
    months = export_messages(table.iloc[[0, 1]], "mark", occasions="month").notes[1]
    assert months.startswith("no encounter has a date in 2018-06, 2018-07, 2018-08")
    for kind in ("csv", "wildbook", "camtrap-dp"):
        assert any("E4" in note and "without a species" in note for note in export_messages(table, kind).notes)


def test_export_messages_of_a_package_without_observations_tell_that_it_is_refused():
    table = table_of(sighting(1, latitude=np.nan, longitude=np.nan), sighting(2, date="2020"))
    refused, notes = export_messages(table, "camtrap-dp")
    assert "has 0 observations" in refused[0] and notes[0] == (
        "encounters left out: 1 (its date has no day), 1 (no position)"
    )
    assert "This package will be refused:" in describe_export(table, "camtrap-dp")
