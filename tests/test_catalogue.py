"""The store behind the catalogue, on SQLite and a real PostgreSQL: migrations, decisions, undo, two people at once."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, select, text

from happywhale_nb.catalogue import CARD, Catalogue, add_photo, create_catalogue, new_encounter, next_name
from happywhale_nb.dataset import read_dataset
from happywhale_nb.decisions import Conflict, change, decide, make_individual, merge, rename, split, undo
from happywhale_nb.intake import take_news, take_photos
from happywhale_nb.paths import UserError
from happywhale_nb.tables import Base, Decision, Encounter, Individual, Model, Photo
from happywhale_nb.views import encounter_view, facets, individual_page, list_decisions, list_encounters, sightings

SETTINGS = {"margin": 0.05, "keep_aspect": False}


@pytest.fixture(params=["sqlite", "postgresql"])
def catalogue(request, tmp_path):
    """An empty catalogue, in a file or on the server."""
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")()
    made = create_catalogue(tmp_path / "catalogue", tmp_path, database=url)
    yield made
    made.close()


@pytest.fixture
def filled(catalogue):
    """Three humpbacks, met twice each with two photographs, and four encounters that nobody has decided about."""
    rng = np.random.default_rng(0)
    with catalogue.writing() as session:
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
    return catalogue


def state(catalogue):
    """All that decisions can change."""
    with catalogue.reading() as session:
        columns = (Encounter.id, Encounter.state, Encounter.individual_id, Encounter.decided_by, Encounter.decided_at)
        met = session.execute(select(*columns).order_by(Encounter.id)).all()
        names = (Individual.id, Individual.name, Individual.active, Individual.merged_into_id)
        animals = session.execute(select(*names).where(Individual.active).order_by(Individual.id)).all()
    return list(map(tuple, met)), list(map(tuple, animals))


def test_migrations_make_the_tables_that_the_code_knows(catalogue):
    with catalogue.store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_other_versions_of_the_tables_are_refused_with_the_remedy(catalogue):
    engine = catalogue.store.engine
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="newer than this happywhale"):
        Catalogue(catalogue.folder)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    Catalogue(catalogue.folder).close()


@pytest.mark.parametrize(
    "url, told",
    [
        ("mysql://x/y", "not in mysql"),
        ("nonsense", "no address"),
        ("postgresql://ann@127.0.0.1:9/b", "cannot be reached"),
        ("sqlite:///{folder}/empty.sqlite", "has no catalogue"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_with_what_to_do(tmp_path, url, told):
    card = {"name": "x", "data": str(tmp_path), "model": "", "database": url.format(folder=tmp_path)}
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match=told):
        Catalogue(tmp_path)


def test_a_folder_without_a_catalogue(tmp_path):
    with pytest.raises(UserError, match="catalogue build"):
        Catalogue(tmp_path)


def test_a_password_is_not_written_down(tmp_path):
    with pytest.raises(UserError, match="PGPASSWORD"):
        create_catalogue(tmp_path / "c", tmp_path, database="postgresql://ann:secret@127.0.0.1/whales")
    assert not list(tmp_path.rglob(CARD))


def test_of_many_who_decide_at_once_one_wins_and_the_others_are_told(filled):
    def attempt(number):
        try:
            with filled.writing() as session:
                decide(session, f"person {number}", 7, ("confirm", "new")[number % 2], 1, 1)
            return "done"
        except Conflict as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(attempt, range(16)))
    assert told.count("done") == 1 and all("changed by somebody else" in t for t in told if t != "done")
    with filled.reading() as session:
        assert session.scalar(select(func.count()).select_from(Decision)) == 1
        assert session.get(Encounter, 7).version == 2
        assert session.scalar(select(func.count()).select_from(Individual)) <= 4, "a refused `new` leaves no animal"


def test_undoing_everything_gives_back_what_was(filled):
    """Whatever is done, by a dozen random decisions: taken back in reverse, the catalogue is as before."""
    for seed in range(6):
        rng, before, done = random.Random(seed), state(filled), []
        for _ in range(12):
            try:
                with filled.writing() as session:
                    done.append(something(session, rng).id)
            except UserError:
                pass
        assert len(done) > 4 and state(filled) != before
        for number in reversed(done):
            with filled.writing() as session:
                undo(session, "Ann", number)
        assert state(filled) == before


def something(session, rng):
    """A random decision; some are refused."""
    alive = session.scalars(select(Individual.id).where(Individual.active).order_by(Individual.id)).all()
    what, who = rng.choice(["confirm", "new", "unsure", "reject", "merge", "split", "rename"]), rng.choice(alive)
    if what == "merge":
        return merge(session, "Ann", who, rng.choice(alive))[0]
    if what == "split":
        own = session.scalars(select(Encounter.id).where(Encounter.individual_id == who)).all()
        return split(session, "Ann", who, own[:1])[0]
    if what == "rename":
        return rename(session, "Ann", who, f"HB-{rng.randrange(10**6)}")[0]
    met = session.get(Encounter, rng.randrange(1, 11))
    return decide(session, "Ann", met.id, what, met.version, who)[0]


def test_what_stands_on_a_decision_is_undone_first(filled):
    with filled.writing() as session:
        first, _ = decide(session, "Ann", 7, "new", 1, name="HB-0050")
    with filled.writing() as session:
        second, _ = decide(session, "Ben", 8, "confirm", 1, first.individual_id)
    for who, number, told in (("Ann", first.id, "stands on it"), ("Ann", second.id, "only they or an admin")):
        with pytest.raises(UserError, match=told), filled.writing() as session:
            undo(session, who, number)
    with filled.writing() as session:
        undo(session, "Ann", second.id, anybodys=True)
    with filled.writing() as session:
        undo(session, "Ann", first.id)
    with pytest.raises(Conflict, match="undone already"), filled.writing() as session:
        undo(session, "Ann", first.id)
    with filled.writing() as session:
        again, _ = decide(session, "Ann", 9, "new", 1, name="HB-0050")
        assert again.individual_id == first.individual_id, "the name of an animal that was unmade may be used again"


def test_refusals_change_nothing(filled):
    before = state(filled)
    with filled.reading() as session:
        trail = session.scalar(select(func.count()).select_from(Decision))
    acts = [
        (lambda s: decide(s, "Ann", 7, "confirm", 1), "whom"),
        (lambda s: decide(s, "Ann", 7, "confirm", 1, 99), "no individual of the number"),
        (lambda s: decide(s, "Ann", 99, "unsure", 1), "no encounter"),
        (lambda s: decide(s, "Ann", 7, "maybe", 1), "one of confirm"),
        (lambda s: decide(s, "Ann", 7, "new", 1, name="HB-0001"), "already"),
        (lambda s: decide(s, "Ann", 7, "new", 1, name="two words"), "blanks"),
        (lambda s: decide(s, "Ann", 7, "unsure", 1, answer_id=5), "no answer"),
        (lambda s: decide(s, "Ann", 1, "reject", 1, 1), "undo that decision"),
        (lambda s: merge(s, "Ann", 1, 1), "into itself"),
        (lambda s: split(s, "Ann", 1, [3]), "none of"),
        (lambda s: split(s, "Ann", 1, [1, 2]), "not all"),
        (lambda s: rename(s, "Ann", 1, "HB-0002"), "taken"),
    ]
    for act, told in acts:
        with pytest.raises(UserError, match=told), filled.writing() as session:
            act(session)
    with filled.reading() as session:
        assert session.scalar(select(func.count()).select_from(Decision)) == trail
    assert state(filled) == before


def test_lists_page_by_page_hold_each_row_once(filled):
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


def test_an_individuals_page_and_the_table_of_sightings(filled):
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
    assert trail[0]["note"] == "the notch" and trail[0]["who"] == "Ann"


def test_the_next_free_id_follows_the_catalogues_habit(filled):
    with filled.writing() as session:
        assert next_name(session, "humpback_whale") == "HB-0004"
        make_individual(session, "BW-12", "blue_whale")
        assert next_name(session, "blue_whale") == "BW-13" and next_name(session) == "HB-0004"
        session.rollback()


def test_photographs_and_vectors_come_together_or_not_at_all(filled):
    with pytest.raises(RuntimeError), filled.writing() as session:
        met = new_encounter(session, "torn")
        add_photo(session, met, 1, np.ones(4), name="x", path="x", kept=True, sha256="", width=1, height=1)
        session.flush()
        raise RuntimeError
    with filled.reading() as session:
        assert session.scalar(select(func.count()).select_from(Photo)) == 20
        assert session.scalar(select(Encounter.id).where(Encounter.name == "torn")) is None


# --- what a folder's tables say later


def test_a_folder_that_learns_where_and_when_fills_in_what_is_empty_and_changes_nothing_else(mine, tiny_copy):
    dataset = read_dataset(tiny_copy)
    one, two, three = dataset.train["image"][:3]
    with mine.writing() as session:
        met = session.scalar(select(Encounter).join(Photo).where(Photo.name == one))
        change(session, met, met.version, date="2001-01-01")
    table = pd.DataFrame(
        {"image": [one, two, "gone.jpg"], "date": ["2024-05-06"] * 3, "side": ["left"] * 3, "plaec": "x"}
    )
    table.to_csv(tiny_copy / "encounters.csv", index=False)
    told = " | ".join(take_news(mine, read_dataset(tiny_copy), "Ann"))
    assert "of 1 encounters filled in" in told and "date (1 photographs)" in told
    assert "1 photographs are not in the folder, such as gone.jpg" in told and "columns plaec are not read" in told
    with mine.reading() as session:
        rows = session.execute(select(Photo.name, Photo.side, Encounter.date).join(Encounter).where(~Photo.kept)).all()
        kept = {name: (side, date) for name, side, date in rows}
        last = session.scalars(select(Decision).order_by(Decision.id.desc())).first()
    assert kept[one] == ("left", "2001-01-01") and kept[two] == ("left", "2024-05-06") and kept[three][0] == ""
    assert last.kind == "edit" and "2024-05-06 (from the data folder)" in last.note
    assert not [line for line in take_news(mine, read_dataset(tiny_copy), "Ann") if "filled in" in line], "once"


def test_undo_gives_back_the_species_unless_somebody_said_another(mine):
    with mine.writing() as session:
        met = session.scalar(select(Encounter).where(Encounter.state == "undecided"))
        change(session, met, met.version, species="")
        who = session.scalar(select(Individual).where(Individual.species != ""))
        for said in ("", "beluga"):
            row, _ = decide(session, "Ann", met.id, "confirm", met.version, individual_id=who.id)
            assert met.species == who.species
            if said:
                change(session, met, met.version, species=said)
            undo(session, "Ann", row.id)
            assert met.species == said


def test_new_encounters_are_named_like_the_others(mine):
    with mine.writing() as session:
        first = new_encounter(session, "")
        assert first.name == f"E{first.id:05d}", "where the others are not numbered"
        for i in range(60):
            new_encounter(session, f"HB{i + 40:04d}")
        assert new_encounter(session, "").name == f"HB{first.id + 61:04d}"
        for i in range(120):
            new_encounter(session, f"2024-05-06-{i}")
        assert new_encounter(session, "").name.startswith("E0"), "a date is no prefix"


def test_who_adds_to_a_catalogue_that_changed_its_model_is_told(mine, colours):
    other = Catalogue(mine.folder)
    other.choose_model("f" * 16)
    with pytest.raises(UserError, match="changed over to another model"):
        take_photos(mine, colours, "Ann", [("a.jpg", b"")])
    other.close()
