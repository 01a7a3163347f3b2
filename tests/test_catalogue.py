"""The catalogue's folder and database, what it lists, and what a data folder's tables add to it later."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import MetaData, func, select, text
from sqlalchemy.orm import Session

from happywhale_nb.catalogue import database as tables
from happywhale_nb.catalogue.decisions import decide, make_individual, merge, update_encounter
from happywhale_nb.catalogue.ingest import update_metadata
from happywhale_nb.catalogue.listings import (
    encounter_view,
    facets,
    individual_page,
    list_decisions,
    list_encounters,
    sightings,
)
from happywhale_nb.catalogue.naming import next_name
from happywhale_nb.catalogue.schema import Annotation, Base, Decision, Embedding, Encounter, Model, Photo
from happywhale_nb.catalogue.store import CARD, Catalogue, add_photo, create_catalogue, new_encounter, upgrade_catalogue
from happywhale_nb.catalogue.upload_photos import ingest_uploads
from happywhale_nb.catalogue.validation import clean_text
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset

SETTINGS = {"margin": 0.05, "keep_aspect": False}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def catalogue(request, tmp_path):
    """An empty catalogue, in a file or on the server."""
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else ""
    made = create_catalogue(tmp_path / "catalogue", tmp_path, database=url)
    yield made
    made.close()


def fill(session):
    """Three humpbacks, met twice each with two photographs, and four encounters that nobody has decided about."""
    rng = np.random.default_rng(0)
    model = Model(fingerprint="f" * 16, name="m", width=4, settings=SETTINGS, created_at="")
    session.add(model)
    session.flush()
    animals = [make_individual(session, f"HB-000{i}", "humpback_whale") for i in (1, 2, 3)]
    for number in range(10):
        where = {"date": f"2026-07-{10 + number}", "place": "Ness" if number % 2 else "Skerry"}
        met = new_encounter(session, "", given=number < 6, species="humpback_whale", **where)
        if number < 6:
            met.state, met.individual_id = "confirmed", animals[number // 2].id
        for part in range(2):
            known = {"name": f"p{number}{part}.jpg", "path": "p.jpg", "kept": True, "sha256": f"{number}{part}"}
            shape = {"width": 640, "height": 480, "side": ("left", "right")[part]}
            add_photo(session, met, model.id, rng.normal(size=4), **known, **shape)


@pytest.fixture
def filled(catalogue):
    """A catalogue with what `fill` makes."""
    with catalogue.writing() as session:
        fill(session)
    return catalogue


# --- the folder and its database


@pytest.mark.postgres
def test_migrate_on_postgresql_makes_the_tables_that_the_code_knows(postgres, tmp_path):
    made = create_catalogue(tmp_path / "catalogue", tmp_path, database=postgres())
    with made.store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    made.close()


def test_catalogue_with_tables_of_another_version_is_refused_with_the_remedy(catalogue):
    engine = catalogue.store.engine
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="newer than this happywhale"):
        Catalogue(catalogue.folder)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    Catalogue(catalogue.folder).close()


NEXT = """
from alembic import op
revision, down_revision = "0004", "0003"
def upgrade():
    op.execute("ALTER TABLE individuals ADD COLUMN sex VARCHAR NOT NULL DEFAULT ''")
    op.execute("{then}")
"""


@pytest.fixture
def next_version(tmp_path, monkeypatch):
    """A function that makes today's version of the tables 0004; `then`: what its migration does after adding a
    column."""

    def make(then):
        folder = shutil.copytree(Path(tables.__file__).parent / "migrations", tmp_path / "migrations")
        (folder / "versions" / "0004_next.py").write_text(NEXT.format(then=then))
        config = tables.Config()
        config.set_main_option("script_location", str(folder))
        monkeypatch.setattr(tables, "_migrations_config", lambda: config)

    return make


def test_upgrade_catalogue_copies_the_sqlite_file_before_it_changes_it(mine, next_version):
    assert "already have version 0003" in upgrade_catalogue(mine.folder)
    with mine.reading() as session:
        count = session.scalar(select(func.count()).select_from(Photo))
    next_version("SELECT 1")
    with pytest.raises(UserError, match=f"0004 is needed: run `happywhale catalogue upgrade {mine.folder}`"):
        Catalogue(mine.folder)
    assert "now have version 0004; the version before was 0003" in upgrade_catalogue(mine.folder)
    opened = Catalogue(mine.folder)
    with opened.reading() as session:
        assert session.scalar(select(func.count()).select_from(Photo)) == count > 0
        assert set(session.scalars(text("SELECT sex FROM individuals"))) == {""}
    opened.close()
    copy = tables.make_engine(f"sqlite:///{mine.folder}/catalogue-0003.sqlite")
    with copy.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Photo)) == count
        assert tables.schema_version(copy)[0] == "0003"
    copy.dispose()


BEFORE = Path(__file__).parent / "fixtures" / "fd95285" / "outputs" / "catalogue" / "catalogue.sqlite"
OLD_TABLES = ("models", "individuals", "encounters", "photos", "crops", "embeddings", "answers", "decisions")


def move_tables(engine, direction, version):
    """Bring a database to a version of its tables, upwards or downwards."""
    config = tables._migrations_config()
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        getattr(command, direction)(config, version)


def rows_of(engine, *names):
    """The rows of tables, as texts without an order of columns."""
    with engine.connect() as connection:
        found = {name: connection.execute(text(f"SELECT * FROM {name}")).mappings().all() for name in names}
    return {name: sorted(str(sorted(row.items())) for row in rows) for name, rows in found.items()}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def before(request, tmp_path):
    """The database of a catalogue with tables of version 0001; photo 2 was seen by two models and boxed by hand."""
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{tmp_path}/old.sqlite"
    shutil.copy(BEFORE, tmp_path / "before.sqlite")
    engine, old = tables.make_engine(url), tables.make_engine(f"sqlite:///{tmp_path}/before.sqlite")
    move_tables(engine, "upgrade", "0001")
    known = MetaData()
    known.reflect(engine)
    with old.connect() as source, engine.begin() as target:
        for table in (known.tables[name] for name in OLD_TABLES):
            values = source.execute(select(table)).mappings().all()
            target.execute(table.insert(), [dict(row) for row in values])
        again = "SELECT 9, 'second', name, width, settings, created_at FROM models"
        target.execute(text(f"INSERT INTO models (id, fingerprint, name, width, settings, created_at) {again}"))
        again = "SELECT photo_id, 9, vector, trained FROM embeddings WHERE photo_id = 2"
        target.execute(text(f"INSERT INTO embeddings (photo_id, model_id, vector, trained) {again}"))
        target.execute(text("UPDATE crops SET source = 'person' WHERE photo_id IN (2, 3)"))
        target.execute(text("UPDATE photos SET side = 'left' WHERE id = 2"))
        for number, date in enumerate(("20190713", "2019-W28-6", "13/07/2019", "07/08/2019", "2019-07-13T14:05"), 1):
            target.execute(text("UPDATE encounters SET date = :date WHERE id = :id"), {"date": date, "id": number})
        target.execute(text("UPDATE encounters SET date = '2019-07-13x14:05', individual_id = 1 WHERE id = 6"))
        target.execute(text("UPDATE individuals SET active = false, merged_into_id = id + 1 WHERE id < 3"))
    old.dispose()
    yield engine
    engine.dispose()


def test_migration_to_annotations_keeps_all_rows_and_can_be_undone(before):
    kept = rows_of(before, *OLD_TABLES)
    move_tables(before, "upgrade", "head")
    with before.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        made = connection.execute(select(Annotation).order_by(Annotation.id)).all()
        embedded = connection.execute(select(Embedding.annotation_id, Embedding.sha256, Embedding.box)).all()
        digests = dict(connection.execute(select(Photo.id, Photo.sha256)).all())
        dates = connection.scalars(select(Encounter.date).where(Encounter.id < 7).order_by(Encounter.id)).all()
        merged = connection.scalar(select(func.count()).where(Encounter.individual_id.in_((1, 2))))
    assert len(made) == 32 and made[1] == (2, 2, 0, "left", "")
    assert {number: digest for number, digest, _ in embedded} == digests
    # what came before the box that a person drew is unknown where several models have looked
    assert sorted(number for number, _, box in embedded if box == "?") == [2, 2]
    assert dates == ["2019-07-13"] * 3 + ["07/08/2019", "2019-07-13T14:05", "2019-07-13T14:05"]
    assert merged == 0, "no encounter stays with an animal that was merged away"
    move_tables(before, "downgrade", "0001")
    names = [name for name in OLD_TABLES if name != "encounters"]  # their dates stay in one form
    assert rows_of(before, *names) == {name: kept[name] for name in names}


def test_photo_can_be_added_after_the_migration_to_annotations(before):
    move_tables(before, "upgrade", "head")
    with Session(before) as session, session.begin():
        met = session.scalar(select(Encounter).limit(1))
        columns = {"name": "a.jpg", "path": "a.jpg", "kept": True, "sha256": "0" * 64, "width": 9, "height": 9}
        if before.dialect.name == "postgresql":  # the rows were copied with their numbers
            session.execute(text("SELECT setval('photos_id_seq', 32)"))
        photo = add_photo(session, met, 1, np.ones(4, np.float32) / 2, **columns)
        assert (photo.withdrawn, photo.given) == (False, None)
        assert session.scalar(select(Annotation.box).where(Annotation.photo_id == photo.id)) == 0


def test_migration_numbers_the_tokens_of_one_name_and_keeps_all_else(before):
    move_tables(before, "upgrade", "0002")
    columns = "id, name, role, digest, created_at, revoked_at"
    keep = f"INSERT INTO tokens ({columns}) VALUES (:id, :name, 'read', CAST(:id AS TEXT), '', '')"
    with before.connect().execution_options(writes=True) as connection, connection.begin():
        names = ["Ann", "Ann", "Bo", "Ann", "Ann (2)", "Ann"]
        rows = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
        connection.execute(text(keep), rows)
        connection.execute(text("UPDATE tokens SET revoked_at = '2026' WHERE id = 4"))
    kept = rows_of(before, "decisions", "answers", "encounters")
    move_tables(before, "upgrade", "head")
    with before.connect() as connection:
        found = connection.scalars(text("SELECT name FROM tokens ORDER BY id")).all()
        assert found == ["Ann", "Ann (3)", "Bo", "Ann", "Ann (2)", "Ann (4)"], "a revoked one keeps its name"
        assert set(connection.scalars(text("SELECT token_id FROM decisions"))) <= {None}
    move_tables(before, "downgrade", "0002")
    assert rows_of(before, "decisions", "answers", "encounters") == kept


def test_upgrade_catalogue_that_fails_midway_leaves_the_tables_as_they_were(mine, next_version):
    next_version("SELECT * FROM nowhere")
    with pytest.raises(UserError, match="nowhere"):
        upgrade_catalogue(mine.folder)
    assert not list(mine.folder.glob("catalogue-*.sqlite"))
    with mine.store.engine.connect() as connection:
        names = {row[1] for row in connection.execute(text("PRAGMA table_info(individuals)"))}
        assert "name" in names and "sex" not in names
    assert tables.schema_version(mine.store.engine)[0] == "0003"


def test_upgrade_catalogue_without_a_catalogue_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no catalogue in"):
        upgrade_catalogue(tmp_path)


def test_store_on_sqlite_waits_for_the_disk_and_checks_references(mine):
    """What is acknowledged is on the disk: SQLite's synchronous=FULL; a row cannot name another that is not there."""
    with mine.store.engine.connect() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "foreign_keys")]
    assert found == [2, 1]
    with pytest.raises(tables.SQLAlchemyError, match="FOREIGN KEY"), mine.writing() as session:
        session.get(Encounter, 1).individual_id = 10**6


@pytest.mark.parametrize(
    "url, told",
    [
        ("mysql://x/y", "not in mysql"),
        ("nonsense", "not a database URL"),
        ("postgresql://ann@127.0.0.1:9/b", "cannot be reached"),
        ("sqlite:///{folder}/empty.sqlite", "it is missing"),
    ],
)
def test_catalogue_with_a_database_that_cannot_be_used_is_refused_with_the_remedy(tmp_path, url, told):
    card = {"name": "x", "data": str(tmp_path), "model": "", "database": url.format(folder=tmp_path)}
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match=told):
        Catalogue(tmp_path)


def test_catalogue_in_a_folder_without_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="catalogue build"):
        Catalogue(tmp_path)


def test_create_catalogue_with_a_password_in_the_address_is_refused_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="PGPASSWORD"):
        create_catalogue(tmp_path / "c", tmp_path, database="postgresql://ann:secret@127.0.0.1/whales")
    assert not list(tmp_path.rglob(CARD))


# --- what it lists


def test_list_encounters_page_by_page_holds_each_row_once(filled):
    with filled.reading() as session:
        seen, after = [], ""
        while True:
            page = list_encounters(session, SETTINGS, after, limit=3)
            seen += [row["id"] for row in page["encounters"]]
            if not (after := page["next"]):
                break
        assert seen == list(range(1, 11)) and page["total"] == 10
        asked = {"state": "undecided", "place": "Ness", "side": "left", "since": "2026-07", "until": "2026-07-17"}
        assert [row["id"] for row in list_encounters(session, SETTINGS, **asked)["encounters"]] == [8]
        assert list_encounters(session, SETTINGS, q="p31")["encounters"][0]["id"] == 4
        assert list_encounters(session, SETTINGS, q="%")["total"] == 0, "a percent sign is no wildcard"
        found = facets(session)
        assert (found["places"], found["sides"], found["states"]) == (
            ["Ness", "Skerry"], ["left", "right"], {"confirmed": 6, "undecided": 4},
        )  # fmt: skip
        assert encounter_view(session, SETTINGS, 1)["side"] == "both"


def test_individual_page_and_sightings_follow_decisions_and_merges(filled):
    with filled.writing() as session:
        decide(session, "Ann", 7, "confirm", 1, 1, note="the notch")
        merge(session, "Ann", 2, 1)
    with filled.reading() as session:
        page = individual_page(session, SETTINGS, 1)
        table = sightings(session)
        trail = list_decisions(session, encounter_id=7)["decisions"]
    assert [met["id"] for met in page["encounters"]] == [1, 2, 3, 4, 7] and page["photos"] == 10
    assert [line["kind"] for line in page["history"]] == ["merge", "confirm"]
    assert len(table) == 20 and set(table["individual"]) == {"HB-0001", "HB-0003", ""}
    row = table[table["encounter_id"] == 7].iloc[0]
    assert (row["kind_of_source"], row["decided_by"], row["state"]) == ("decision", "Ann", "confirmed")
    assert table[table["encounter_id"] == 1].iloc[0]["kind_of_source"] == "given"
    assert trail[0]["note"] == "the notch" and trail[0]["user"] == "Ann"


def test_next_name_follows_the_names_of_the_species(filled):
    with filled.writing() as session:
        assert next_name(session, "humpback_whale") == "HB-0004"
        make_individual(session, "BW-12", "blue_whale")
        assert next_name(session, "blue_whale") == "BW-13" and next_name(session) == "HB-0004"
        session.rollback()


def test_add_photo_in_a_transaction_that_fails_leaves_no_row(filled):
    with pytest.raises(RuntimeError), filled.writing() as session:
        met = new_encounter(session, "torn")
        add_photo(session, met, 1, np.ones(4), name="x", path="x", kept=True, sha256="", width=1, height=1)
        session.flush()
        raise RuntimeError
    with filled.reading() as session:
        assert session.scalar(select(func.count()).select_from(Photo)) == 20
        assert session.scalar(select(Encounter.id).where(Encounter.name == "torn")) is None


# --- what a folder's tables say later


def test_take_news_fills_in_what_is_empty_and_changes_nothing_else(mine, tiny_copy):
    dataset = read_dataset(tiny_copy)
    one, two, three = dataset.train["image"][:3]
    with mine.writing() as session:
        met = session.scalar(select(Encounter).join(Photo).where(Photo.name == one))
        update_encounter(session, met, met.version, date="2001-01-01")
    table = pd.DataFrame(
        {"image": [one, two, "gone.jpg"], "date": ["2024-05-06"] * 3, "side": ["left"] * 3, "plaec": "x"}
    )
    table.to_csv(tiny_copy / "encounters.csv", index=False)
    told = " | ".join(update_metadata(mine, read_dataset(tiny_copy), "Ann"))
    assert "of 1 encounters filled in" in told and "date (1 photographs)" in told
    assert "1 photographs are not in the folder, such as gone.jpg" in told and "columns plaec are not read" in told
    with mine.reading() as session:
        query = (
            select(Photo.name, Annotation.side, Encounter.date)
            .select_from(Photo)
            .join(Annotation)
            .join(Encounter, Encounter.id == Photo.encounter_id)
        )
        rows = session.execute(query.where(~Photo.kept)).all()
        kept = {name: (side, date) for name, side, date in rows}
        last = session.scalars(select(Decision).order_by(Decision.id.desc())).first()
    assert kept[one] == ("left", "2001-01-01") and kept[two] == ("left", "2024-05-06") and kept[three][0] == ""
    assert last.kind == "edit" and "2024-05-06 (from the data folder)" in last.note
    assert not [line for line in update_metadata(mine, read_dataset(tiny_copy), "Ann") if "filled in" in line], "once"


def test_new_encounter_is_named_like_the_others(mine):
    with mine.writing() as session:
        first = new_encounter(session, "")
        assert first.name == f"E{first.id:05d}", "where the others are not numbered"
        for i in range(60):
            new_encounter(session, f"HB{i + 40:04d}")
        assert new_encounter(session, "").name == f"HB{first.id + 61:04d}"
        for i in range(120):
            new_encounter(session, f"2024-05-06-{i}")
        assert new_encounter(session, "").name.startswith("E0"), "a date is no prefix"


def test_take_photos_into_a_catalogue_that_changed_its_model_is_refused(mine, colours):
    other = Catalogue(mine.folder)
    other.choose_model("f" * 16)
    with pytest.raises(UserError, match="switched to another model"):
        ingest_uploads(mine, colours, "Ann", [("a.jpg", b"")])
    other.close()


# --- texts that people type

characters = st.one_of(
    st.characters(exclude_categories=()), st.sampled_from(" \t\n\r\0\xa0\u200b\u202e\ud800\u0301\u2028aÅ")
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(characters, max_size=12), st.integers(1, 12), st.booleans())
def test_plain_of_any_text_is_trimmed_nfc_or_refused(given_text, most, needed):
    wanted = unicodedata.normalize("NFC", given_text).strip()
    odd = any(unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp") for c in wanted if c != "\n")
    if odd or len(wanted) > most or (needed and not wanted):
        with pytest.raises(UserError, match="a place "):
            clean_text(given_text, "a place", most, needed)
    else:
        assert clean_text(given_text, "a place", most, needed) == wanted
