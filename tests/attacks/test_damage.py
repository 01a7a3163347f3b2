"""A damaged catalogue: a check names the damage in one line, and the server refuses it or leaves the part out."""

import json
import os
import shutil
import sqlite3
import struct
import zipfile
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from happywhale_nb.catalogue.build import _ingest
from happywhale_nb.catalogue.check import check_catalogue, check_open, orphans
from happywhale_nb.catalogue.ingest import ingest_dataset, re_embed, recalibrate
from happywhale_nb.catalogue.matching import Matcher
from happywhale_nb.catalogue.repair import take_changed
from happywhale_nb.catalogue.schema import Embedding, Photo
from happywhale_nb.catalogue.store import CARD, Catalogue, create_catalogue, upgrade_catalogue
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.server.app import make_app
from happywhale_nb.server.state import AppState, Options

HERE = "http://127.0.0.1:8000"
WIDTH = 48


@pytest.fixture
def place(built, tiny, tmp_path):
    """The folder of a healthy catalogue with files of a model, and with a data folder of its own."""
    folder, data = tmp_path / "mine", tmp_path / "data"
    shutil.copytree(built, folder)
    shutil.copytree(tiny, data)
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"data": str(data)}))
    (folder / "model").mkdir()
    with zipfile.ZipFile(folder / "model" / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}" * 500)
    (folder / "model" / "config.json").write_text('{"parameters": {"model": "colours", "fold": 0}}')
    return folder


def sql(*lines, **values):
    """A damage by statements of SQL."""

    def act(folder):
        with closing(sqlite3.connect(folder / "catalogue.sqlite")) as connection, connection:
            for line in lines:
                connection.execute(line, values if ":" in line else {})

    return act


def vector(*numbers):
    return sql(
        "UPDATE embeddings SET vector = :it WHERE annotation_id = 1", it=struct.pack(f"<{len(numbers)}f", *numbers)
    )


def raw_vector(value):
    return sql("UPDATE embeddings SET vector = :it WHERE annotation_id = 1", it=value)


def settings(**changes):
    values = {"margin": 0.05, "keep_aspect": False, "boxed": True} | changes
    return model("settings", json.dumps(values))


def model(column, value):
    return sql(f"UPDATE models SET {column} = :it", it=value)


def calibration(change):
    """A damage of the stored calibration by a function of its dict."""

    def act(folder):
        with closing(sqlite3.connect(folder / "catalogue.sqlite")) as connection, connection:
            stored = json.loads(connection.execute("SELECT calibration FROM models").fetchone()[0])
            connection.execute("UPDATE models SET calibration = ?", (json.dumps(change(stored)),))

    return act


def box(assignments):
    return sql(f"UPDATE crops SET {assignments} WHERE annotation_id IN (1, 2)")


def photo(assignments):
    return sql(f"UPDATE photos SET {assignments} WHERE id = 1")


def card(change):
    """A damage of the card by a function of its dict, or by a text."""

    def act(folder):
        path = folder / CARD
        path.write_text(change if isinstance(change, str) else json.dumps(change(json.loads(path.read_text()))))

    return act


def database(change):
    """A damage of the database's file by a function of its bytes."""

    def act(folder):
        path = folder / "catalogue.sqlite"
        path.write_bytes(change(path.read_bytes()))

    return act


def in_place(name):
    """A folder in place of a file."""

    def act(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return act


def data_of(folder):
    return Catalogue(folder).data


def first_photo(folder):
    return sorted((data_of(folder) / "train_images").glob("*.jpg"))[0]


def pages_of_junk(data):
    size, junk = int.from_bytes(data[16:18], "big"), os.urandom
    pages = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join([page if n % 3 > 0 or n == 0 else junk(size) for n, page in enumerate(pages)])


OFF = "PRAGMA foreign_keys = OFF"
STOPS = {
    "card is a list": ("card", card("[]")),
    "card is no JSON": ("card", card("{")),
    "card is empty": ("card", card("")),
    "card without model and data": ("card", card(lambda values: {"name": "x"})),
    "card without data": ("card", card(lambda values: {k: v for k, v in values.items() if k != "data"})),
    "card: database is null": ("card", card(lambda values: values | {"database": None})),
    "card: model is a number": ("card", card(lambda values: values | {"model": 5})),
    "card: a newer field": ("card", card(lambda values: values | {"colour": "blue"})),
    "card: a zero byte": ("card", card(lambda values: values | {"data": "a\0b"})),
    "card: encoder is a list": ("card", card(lambda values: values | {"encoder": [1]})),
    "card: licences are a number": ("card", card(lambda values: values | {"encoder": {"boxes": 7}})),
    "card: data is relative": ("card", card(lambda values: values | {"data": "here"})),
    "card: another model": ("model", card(lambda values: values | {"model": "f" * 16})),
    "card: no model": ("model", card(lambda values: {k: v for k, v in values.items() if k != "model"})),
    "card: an unknown kind of database": ("database", card(lambda values: values | {"database": "mysql://a/b"})),
    "database is a text": ("database", database(lambda data: b"Dear Ann, this is not a database.\n" * 400)),
    "database is empty": ("database", database(lambda data: b"")),
    "database is truncated": ("database", database(lambda data: data[: len(data) // 2 // 4096 * 4096])),
    "database ends in a page": ("database", database(lambda data: data[:5000])),
    "database with pages of junk": ("database", database(pages_of_junk)),
    "database with a header of junk": ("database", database(lambda data: b"\0" * 100 + data[100:])),
    "database is missing": ("database", lambda folder: (folder / "catalogue.sqlite").unlink()),
    "database is a folder": ("database", in_place("catalogue.sqlite")),
    "a table is missing": ("database", sql(OFF, "DROP TABLE crops")),
    "the table of decisions is missing": ("database", sql(OFF, "DROP TABLE decisions")),
    "a column is missing": ("database", sql("ALTER TABLE photos DROP COLUMN taken")),
    "no version": ("database", sql("DELETE FROM alembic_version")),
    "a newer version": ("database", sql("UPDATE alembic_version SET version_num = '9999'")),
    "two versions": ("database", sql("INSERT INTO alembic_version VALUES ('0001')")),
    "the model's row is missing": ("model", sql(OFF, "DELETE FROM models")),
    "the model was never calibrated": ("model", model("calibration", None)),
    "settings {}": ("settings", model("settings", "{}")),
    "settings are a list": ("settings", model("settings", "[]")),
    "settings are no JSON": ("settings", model("settings", "{'margin'")),
    "settings: margin is NaN": ("settings", settings(margin=float("nan"))),
    "settings: margin is negative": (
        "settings",
        settings(margin=-1),
    ),
    "settings: a word for a truth": (
        "settings",
        settings(keep_aspect="no"),
    ),
    "settings: aspect 0": (
        "settings",
        settings(aspect=0),
    ),
    "width 0": ("settings", model("width", 0)),
    "width is negative": ("settings", model("width", -48)),
    "width is a word": ("settings", model("width", "wide")),
    "width of another model": ("embeddings", model("width", 47)),
}
FILES = {  # of the model
    "the network is empty": ("model", lambda folder: (folder / "model" / "model.keras").write_bytes(b"")),
    "the network is a text": ("model", lambda folder: (folder / "model" / "model.keras").write_text("hello" * 99)),
    "the network is truncated": ("model", lambda folder: os.truncate(folder / "model" / "model.keras", 200)),
    "the network's record is a list": ("model", lambda folder: (folder / "model" / "config.json").write_text("[]")),
    "the network's record is no JSON": ("model", lambda folder: (folder / "model" / "config.json").write_text("{")),
    "the network's record is missing": ("model", lambda folder: (folder / "model" / "config.json").unlink()),
    "the model's folder is missing": ("model", lambda folder: shutil.rmtree(folder / "model")),
    "the detector is empty": ("model", lambda folder: (folder / "model" / "detector.keras").write_bytes(b"")),
}
REDUCES = {
    "vector too short": ("embeddings", raw_vector(b"abc")),
    "vector without bytes": ("embeddings", raw_vector(b"")),
    "vector is a text": ("embeddings", raw_vector("a vector")),
    "vector of another width": ("embeddings", vector(*[0.1] * 12)),
    "box with one corner NaN": ("boxes", box("x0 = NULL")),
    "box with all corners NaN": ("boxes", box("x0 = NULL, y0 = NULL, x1 = NULL, y1 = NULL")),
    "box with the last corner NaN": ("boxes", box("y1 = NULL")),
    "box of no width": ("boxes", box("x1 = x0")),
    "box of no height": ("boxes", box("y1 = y0")),
    "box turned round": ("boxes", box("x0 = x1, x1 = x0 - 5")),
    "box to infinity": ("boxes", box("x1 = 9e999")),
    "box from minus infinity": ("boxes", box("x0 = -9e999")),
    "box of words": ("boxes", box("x0 = 'left'")),
    "box of bytes": ("boxes", box("y0 = x'0102'")),
    "box in a picture of no size": ("boxes", box("frame_width = 0, frame_height = 0")),
    "box in half a picture": ("boxes", box("frame_width = 100, frame_height = NULL")),
    "calibration {}": ("calibration", model("calibration", "{}")),
    "calibration is a list": ("calibration", model("calibration", "[]")),
    "calibration is null": ("calibration", model("calibration", "null")),
    "calibration is a number": ("calibration", model("calibration", "7")),
    "calibration is no JSON": ("calibration", model("calibration", "{'threshold'")),
    "calibration is empty": ("calibration", model("calibration", "")),
    "calibration: threshold NaN": ("calibration", calibration(lambda c: c | {"threshold": float("nan")})),
    "calibration: threshold null": ("calibration", calibration(lambda c: c | {"threshold": None})),
    "calibration: threshold is a word": ("calibration", calibration(lambda c: c | {"threshold": "high"})),
    "calibration: threshold infinite": ("calibration", calibration(lambda c: c | {"threshold": float("inf")})),
    "calibration: distance negative": ("calibration", calibration(lambda c: c | {"distance": -1.0})),
    "calibration: alpha 2": ("calibration", calibration(lambda c: c | {"alpha": 2})),
    "calibration: a count is negative": ("calibration", calibration(lambda c: c | {"photographs": -3})),
    "calibration: coverage 7": ("calibration", calibration(lambda c: c | {"coverage": 7.0})),
    "calibration: temperature 0": (
        "calibration",
        calibration(lambda c: c | {"probabilities": c["probabilities"] | {"temperature": 0}}),
    ),
    "calibration: probabilities are a list": ("calibration", calibration(lambda c: c | {"probabilities": [1, 2]})),
    "calibration: several is a text": ("calibration", calibration(lambda c: c | {"several": "many"})),
    "calibration: an unknown field": ("calibration", calibration(lambda c: c | {"colour": "blue"})),
    "calibration: a test of another width": (
        "calibration",
        calibration(lambda c: c | {"no_animal": {"direction": [1.0, 2.0], "limit": 0.5}}),
    ),
    "calibration: species is a list": ("calibration", calibration(lambda c: c | {"species": [3]})),
    "path is absolute": ("photographs", photo("path = '/etc/passwd'")),
    "path leads out": ("photographs", photo("path = '../../../etc/passwd'")),
    "path leads out from within": ("photographs", photo("path = 'train_images/../../x.jpg'")),
    "photograph of no width": ("photographs", photo("width = 0")),
    "photograph of negative height": ("photographs", photo("height = -3")),
    "photograph as wide as a word": ("photographs", photo("width = 'wide'")),
    "photograph is missing": ("files", lambda folder: first_photo(folder).unlink()),
    "photograph is a folder": ("files", lambda folder: (path := first_photo(folder)).unlink() or path.mkdir()),
    "the data folder is gone": ("files", lambda folder: shutil.rmtree(data_of(folder))),
    "an individual is missing": (
        "database",
        sql(OFF, "DELETE FROM individuals WHERE id = (SELECT individual_id FROM encounters WHERE id = 1)"),
    ),
    "the rule of encounters is unknown": ("card", card(lambda values: values | {"encounters": "by moon"})),
}
WHOLE = {  # what only a whole check examines, because every value or every file is read
    "vector with NaN": ("embeddings", vector(float("nan"), *[0.1] * 47)),
    "vector with an infinity": ("embeddings", vector(float("inf"), *[0.1] * 47)),
    "vector all zero": ("embeddings", vector(*[0.0] * 48)),
    "vector of huge numbers": ("embeddings", vector(*[1e30] * 48)),
    "vector of another length": ("embeddings", vector(*[3.0] * 48)),
    "embedding is missing": ("embeddings", sql("DELETE FROM embeddings WHERE annotation_id = 1")),
    "crop is missing": ("boxes", sql(OFF, "DELETE FROM crops WHERE annotation_id = 1")),
    "values of a photograph are no JSON": ("log", photo("given = '{'")),
    "an unknown state": ("database", sql("UPDATE encounters SET state = 'asleep' WHERE id = 1")),
    "photograph is replaced": (
        "files",
        lambda folder: shutil.copy(sorted(first_photo(folder).parent.glob("*.jpg"))[1], first_photo(folder)),
    ),
    "photograph is empty": ("files", lambda folder: first_photo(folder).write_bytes(b"")),
}
SAMPLES = (
    *("card is a list", "database is a text", "database with pages of junk", "a table is missing"),
    *("the model's row is missing", "settings {}", "width of another model", "the network is empty"),
    *("vector too short", "calibration {}", "box of no width", "path leads out", "photograph is replaced"),
)


def cases(table):
    return [pytest.param(*table[name], id=name, marks=() if name in SAMPLES else pytest.mark.soak) for name in table]


def one_line(told):
    assert told and "\n" not in told and "Traceback" not in told, told


def named(folder, part, severity=None, whole=True):
    """The findings of a check, each of which is one line; one of them is of the part that was damaged."""
    found = check_catalogue(folder, whole)
    for each in found.findings:
        one_line(each.line)
        assert each.where and each.remedy, each
    assert any(each.part == part and severity in (None, each.severity) for each in found.findings), found.lines
    return found


def ask_all(page):
    """Ask a server everything that a person looks at. Returns the answers' codes and the answers of encounters."""
    encounters = page.get("/api/encounters?limit=100")
    codes, answers = {"encounters": encounters.status_code}, []
    for path in ("individuals", "facets", "session", "missing-photos", "audit-log", "exports/csv"):
        codes[path] = page.get(f"/api/{path}").status_code
    for met in encounters.json()["encounters"][:6] if encounters.status_code == 200 else ():
        answer = page.post(f"/api/encounters/{met['id']}/answers", json={"k": 5})
        codes[met["id"]] = answer.status_code
        answers += [answer.json()] if answer.status_code == 200 else []
    for number in (1, 2):
        codes["file", number] = page.get(f"/api/photos/{number}/file").status_code
        codes["crop", number] = page.get(f"/api/photos/{number}/crop").status_code
    return codes, answers


@pytest.mark.parametrize("part, damage", cases(STOPS))
def test_what_stops_is_named_in_one_line_and_the_server_does_not_start(place, part, damage):
    damage(place)
    before = sorted(path.name for path in place.iterdir())
    found = named(place, part, "stops")
    assert found.stops and not found.healthy
    with pytest.raises(UserError) as refused:
        check_catalogue(place, whole=False).refuse()
    one_line(str(refused.value))
    with pytest.raises(UserError) as refused:
        catalogue = Catalogue(place)
        try:
            AppState(catalogue, Options(tokens=False, rates={}))
        finally:
            catalogue.close()
    one_line(str(refused.value))
    left = sorted(path.name for path in place.iterdir() if not path.name.endswith(("-wal", "-shm")))
    assert left == [name for name in before if not name.endswith(("-wal", "-shm"))], "nothing is left behind"


@pytest.mark.parametrize("part, damage", cases(FILES))
def test_damaged_files_of_the_model_stop_the_server(place, part, damage):
    damage(place)
    named(place, part, "stops")
    catalogue = Catalogue(place)
    with pytest.raises(UserError) as refused:
        AppState(catalogue, Options(tokens=False, rates={}), files=True)
    catalogue.close()
    one_line(str(refused.value))


@pytest.mark.parametrize("part, damage", cases(REDUCES))
def test_what_reduces_is_named_and_the_server_answers_without_it(place, part, damage):
    damage(place)
    named(place, part, "reduces")
    answer_without(place, part)


def answer_without(place, part, told=True):
    """A start of the server on a damaged catalogue: it says so, and answers all the same."""
    catalogue = Catalogue(place)
    try:
        desk = AppState(catalogue, Options(tokens=False, rates={}))
        with TestClient(make_app(desk), base_url=HERE) as page:
            damage = page.get("/api/health").json()["damage"]
            assert any(line.startswith(f"{part}: ") for line in damage) or not told, damage
            for line in damage:
                one_line(line)
                assert str(place) not in line
            codes, answers = ask_all(page)
    finally:
        catalogue.close()
    assert not [each for each in codes.items() if each[1] >= 500], codes
    assert answers, codes
    for each in (each for answer in answers for each in answer["candidates"]):
        assert (each["probability"] is None) == (part == "calibration")
    assert part != "calibration" or all("calibration" in answer["note"] for answer in answers)


@pytest.mark.parametrize("part, damage", cases(WHOLE))
def test_what_a_whole_check_finds_does_not_disturb_answers(place, part, damage):
    damage(place)
    named(place, part)
    answer_without(place, part, told=False)


@pytest.mark.parametrize(
    "bad", ["abc", pytest.param("NaN", marks=pytest.mark.soak), pytest.param("zero", marks=pytest.mark.soak)]
)
def test_damaged_embedding_is_left_out_counted_named_and_made_again(place, colours, bad):
    value = {"abc": b"abc", "NaN": np.full(WIDTH, np.nan, "<f4").tobytes(), "zero": bytes(4 * WIDTH)}[bad]
    raw_vector(value)(place)
    catalogue = Catalogue(place)
    matcher = Matcher(catalogue)
    assert list(matcher.left_out) == [1] and 1 not in matcher.photos.rows
    recalibrate(catalogue)
    assert re_embed(catalogue, colours, "colours") == 1
    matcher.refresh()
    assert not matcher.left_out and 1 in matcher.photos.rows, "a running server reads it"
    assert not [each for each in check_open(catalogue, whole=True).findings if each.part == "embeddings"]
    catalogue.close()


REPAIRED = ("settings {}", "calibration {}", "calibration is no JSON", "values of a photograph are no JSON")


@pytest.mark.parametrize(
    "damage", ["box of no width", *[pytest.param(each, marks=pytest.mark.soak) for each in REPAIRED]]
)
def test_remedy_repairs_what_was_damaged(place, colours, damage):
    """What the line tells to run, `catalogue build`, makes these values again."""
    (STOPS | REDUCES | WHOLE)[damage][1](place)
    catalogue = Catalogue(place)
    lines = []
    _ingest(catalogue, colours, read_dataset(catalogue.data), place / "model" / "model.keras", "", lines.append)
    recalibrate(catalogue)
    found = check_open(catalogue, whole=True)
    catalogue.close()
    assert found.healthy, found.lines
    assert "box" not in damage or "boxes of 2 photographs were damaged: restored" in lines[0], lines


def test_photograph_that_is_replaced_is_named_and_read_again(place, colours):
    """Its crop, its embedding and its checksum are those of the new file after the command that the line names."""
    before = Catalogue(place)
    first, second = sorted((before.data / "train_images").glob("*.jpg"))[:2]
    shutil.copy(second, first)
    (finding,) = named(place, "files").findings
    assert first.name in finding.where and "catalogue build" in finding.remedy
    _ingest(before, colours, read_dataset(before.data), place / "model" / "model.keras", "", [].append)
    with before.reading() as session:
        rows = select(Photo.name, Photo.sha256, Embedding.sha256, Embedding.vector)
        rows = rows.join(Embedding, Embedding.annotation_id == Photo.id).where(
            Photo.name.in_([first.name, second.name])
        )
        (_, sha256, made_of, _), (_, other, *_) = session.execute(rows.order_by(Photo.name)).all()
    assert sha256 == made_of == other and check_catalogue(place).healthy
    before.close()


def test_replaced_photograph_that_cannot_be_read_is_told_and_kept(place, colours):
    catalogue, lines = Catalogue(place), []
    first_photo(place).write_bytes(b"not a photograph")
    assert take_changed(catalogue, colours, read_dataset(catalogue.data), lines.append) == 0
    catalogue.close()
    assert len(lines) == 1 and "is kept as it was" in lines[0] and "\n" not in lines[0]


def test_photograph_replaced_by_one_of_the_same_size_and_date_is_found_if_every_file_is_read(place):
    path = first_photo(place)
    data, stat = path.read_bytes(), path.stat()
    path.write_bytes(data[:-2] + b"xy")
    os.utime(path, (1e9, 1e9))
    assert check_catalogue(place).healthy, "by size and date it is the same"
    assert not check_catalogue(place, every=True).healthy
    os.utime(path, (stat.st_atime + 1e6, stat.st_mtime + 1e6))
    assert not check_catalogue(place).healthy


def test_files_that_no_row_knows_are_listed_and_withdrawn_ones_are_not(place):
    lost, young = place / "photos" / "ab" / "abc.jpg", place / "photos" / "cd.jpg"
    lost.parent.mkdir(parents=True)
    for path in (lost, young):
        path.write_bytes(b"x")
    os.utime(lost, (1e9, 1e9))
    (place / ".model.x1").mkdir()
    (place / ".model.x1" / "half").write_bytes(b"x")
    os.utime(place / ".model.x1" / "half", (1e9, 1e9))
    catalogue = Catalogue(place)
    assert orphans(catalogue) == sorted([lost, place / ".model.x1" / "half"])
    with catalogue.writing() as session:
        session.execute(
            text("UPDATE photos SET kept = true, path = 'photos/ab/abc.jpg', withdrawn = true WHERE id = 1")
        )
    assert lost not in orphans(catalogue) and young in orphans(catalogue, least=0)
    catalogue.close()


def test_check_command_prints_lines_or_json_and_its_status_says_whether_there_are_findings(place):
    run = CliRunner().invoke
    healthy = run(main, ["catalogue", "check", str(place)])
    assert healthy.exit_code == 0 and "nothing is damaged" in healthy.output, healthy.output
    raw_vector(b"abc")(place)
    told = run(main, ["catalogue", "check", str(place), "--quick"])
    assert told.exit_code == 1 and told.output.startswith("embeddings: the embedding of 1 photograph has another size")
    told = run(main, ["catalogue", "check", str(place), "--json"])
    values = json.loads(told.output)
    assert told.exit_code == 1 and not values["healthy"] and values["findings"][0]["severity"] == "reduces"
    (place / CARD).write_text("[")
    told = run(main, ["catalogue", "check", str(place)])
    assert told.exit_code == 1 and told.output.startswith("card: it cannot be read")
    assert run(main, ["catalogue", "check", str(place / "nowhere")]).exit_code == 2


def test_serve_command_says_in_one_line_why_it_does_not_start(place, monkeypatch):
    model("settings", "{}")(place)
    told = CliRunner().invoke(main, ["serve", str(place), "--no-browser", "--port", "0"])
    assert told.exit_code == 2 and told.output.startswith("error: settings: they lack"), told.output
    assert told.output.count("\n") == 1


def test_values_of_the_log_that_are_no_json_are_told_where_they_are_read(place):
    catalogue = Catalogue(place)
    with catalogue.writing() as session:
        names = "at, who, kind, note, before, after"
        session.execute(
            text(f"INSERT INTO decisions ({names}) VALUES ('', 'Ann', 'unsure', '', :it, :it)"), {"it": "{"}
        )
    named(place, "log")
    with TestClient(make_app(AppState(catalogue, Options(tokens=False, rates={}))), base_url=HERE) as page:
        told = page.get("/api/audit-log")
    catalogue.close()
    assert told.status_code == 500 and "happywhale catalogue check" in told.json()["detail"]


def test_database_damaged_while_the_server_runs_is_told_in_one_line(place):
    catalogue = Catalogue(place)
    desk = AppState(catalogue, Options(tokens=False, rates={}))
    with TestClient(make_app(desk), base_url=HERE) as page:
        sql(OFF, "DROP TABLE decisions")(place)
        told = page.get("/api/audit-log")
    catalogue.close()
    assert told.status_code == 500 and "restore it from a backup" in told.json()["detail"]
    one_line(told.json()["detail"])


def test_network_that_cannot_be_loaded_is_one_line_in_the_log(place, caplog):
    def load():
        raise UserError("model.keras is damaged: copy it again")

    catalogue = Catalogue(place)
    with TestClient(make_app(AppState(catalogue, Options(tokens=False, rates={})), load), base_url=HERE) as page:
        told = page.get("/api/health").json()
    catalogue.close()
    assert told["status"] == "failed" and "model.keras is damaged" in told["detail"]
    assert [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"] == [
        "the network is not loaded: model.keras is damaged: copy it again"
    ]


OLD = ("two versions", "database is a text")


@pytest.mark.parametrize(
    "damage", ["a newer version", "no version", *[pytest.param(each, marks=pytest.mark.soak) for each in OLD]]
)
def test_upgrade_of_what_cannot_be_upgraded_leaves_nothing_behind(place, damage):
    STOPS[damage][1](place)
    before = {path.name: path.stat().st_size for path in place.iterdir() if path.is_file()}
    told = CliRunner().invoke(main, ["catalogue", "upgrade", str(place)])
    assert told.exit_code == 2 and told.output.startswith("error: ") and told.output.count("\n") == 1, told.output
    after = {path.name: path.stat().st_size for path in place.iterdir() if path.is_file()}
    assert {name: size for name, size in after.items() if not name.endswith(("-wal", "-shm"))} == before


GONE = ("database is empty", "database is a folder")


@pytest.mark.parametrize(
    "damage", ["database is missing", *[pytest.param(each, marks=pytest.mark.soak) for each in GONE]]
)
def test_upgrade_makes_no_database_in_place_of_one_that_is_gone(place, damage):
    STOPS[damage][1](place)
    before = sorted(path.name for path in place.iterdir())
    with pytest.raises(UserError) as refused:
        upgrade_catalogue(place)
    one_line(str(refused.value))
    assert sorted(path.name for path in place.iterdir()) == before


def test_paths_that_lead_out_are_not_sent(place):
    secret = place.parent / "secret.jpg"
    secret.write_bytes(first_photo(place).read_bytes())
    photo("path = '../secret.jpg'")(place)
    catalogue = Catalogue(place)
    assert not catalogue.path(SimpleNamespace(kept=False, path="../secret.jpg")).exists()
    with TestClient(make_app(AppState(catalogue, Options(tokens=False, rates={}))), base_url=HERE) as page:
        assert page.get("/api/photos/1/file").status_code == page.get("/api/photos/1/picture").status_code == 404
    catalogue.close()


@pytest.mark.postgres
def test_catalogue_in_postgresql_is_checked_as_far_as_that_goes(postgres, tiny, colours, tmp_path):
    catalogue = create_catalogue(tmp_path / "catalogue", tiny, database=postgres())
    ingest_dataset(catalogue, colours, read_dataset(tiny), "colours")
    catalogue.choose_model(colours.fingerprint)
    recalibrate(catalogue)
    assert check_open(catalogue, whole=True, files=False).healthy
    with catalogue.writing() as session:
        session.execute(text("UPDATE embeddings SET vector = '\\x0102' WHERE annotation_id = 1"))
        session.execute(text("UPDATE crops SET x0 = 'NaN' WHERE annotation_id = 2"))
        session.execute(text("UPDATE photos SET path = '../x.jpg' WHERE id = 3"))
        session.execute(text("UPDATE models SET calibration = '[]'"))
    for whole in (False, True):
        found = check_open(catalogue, whole, files=False)
        assert {each.part for each in found.findings} == {"embeddings", "boxes", "photographs", "calibration"}
        assert not found.stops
    with catalogue.writing() as session:
        session.execute(text("ALTER TABLE photos DROP COLUMN taken"))
    assert [each.part for each in check_open(catalogue, files=False).stops] == ["database"]
    catalogue.close()
