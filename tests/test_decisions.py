"""Confirm, reject, new, unsure, merge, split, rename and undo: refusals, optimistic locking, and the way back."""

import csv
import io
import random
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from test_any_order import memory
from test_catalogue import fill

from happywhale_nb.catalogue.decisions import (
    Conflict,
    decide,
    make_individual,
    merge,
    rename_individual,
    split,
    update_encounter,
)
from happywhale_nb.catalogue.exports.common import original_text
from happywhale_nb.catalogue.exports.csv import to_csv
from happywhale_nb.catalogue.listings import individual_page, sightings
from happywhale_nb.catalogue.schema import Answer, Decision, Encounter, Individual
from happywhale_nb.catalogue.store import Catalogue, NotFound, add_photo, create_catalogue, new_encounter
from happywhale_nb.catalogue.undoing import undo
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.importers import plan_source
from happywhale_nb.data.names import is_nobody, name_key

SETTINGS = {"margin": 0.05, "keep_aspect": False}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def filled(request, tmp_path):
    """A catalogue, in a file or on a server, with what `fill` makes."""
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else ""
    made = create_catalogue(tmp_path / "catalogue", tmp_path, database=url)
    with made.writing() as session:
        fill(session)
    yield made
    made.close()


ENCOUNTER = ("id", "state", "individual_id", "decided_by", "decided_at", "species")
INDIVIDUAL = ("id", "name", "active", "merged_into_id")


def state(session):
    """All that decisions can change, but for versions and individuals whose creation was undone."""
    met = session.execute(select(*(getattr(Encounter, name) for name in ENCOUNTER)).order_by(Encounter.id)).all()
    shown = Individual.active | Individual.merged_into_id.is_not(None)
    animals = select(*(getattr(Individual, name) for name in INDIVIDUAL)).where(shown).order_by(Individual.id)
    return list(map(tuple, met)), list(map(tuple, session.execute(animals)))


def state_of(catalogue):
    """As `state`, of a catalogue."""
    with catalogue.reading() as session:
        return state(session)


# --- optimistic locking


def test_decide_by_many_at_once_lets_one_win_and_tells_the_others(filled):
    opened = [filled, Catalogue(filled.folder)]  # as of two processes: each has a lock of its own

    def attempt(number):
        try:
            with opened[number // 2 % 2].writing() as session:
                decide(session, f"person {number}", 7, ("confirm", "new")[number % 2], 1, 1)
            return "done"
        except Conflict as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(attempt, range(16), timeout=60))
    opened[1].close()
    assert told.count("done") == 1 and all("changed by somebody else" in t for t in told if t != "done")
    with filled.reading() as session:
        assert session.scalar(select(func.count()).select_from(Decision)) == 1
        assert session.get(Encounter, 7).version == 2
        assert session.scalar(select(func.count()).select_from(Individual)) <= 4, "a refused `new` leaves no animal"


def test_change_of_another_version_raises_conflict_and_writes_nothing(filled):
    with filled.writing() as session:
        met = session.get(Encounter, 7)
        update_encounter(session, met, 1, place="Fjord")
        assert (met.place, met.version) == ("Fjord", 2)
    for version in (1, 3):
        with pytest.raises(Conflict, match="changed by somebody else"), filled.writing() as session:
            update_encounter(session, session.get(Encounter, 7), version, place="Bight")
    with filled.reading() as session:
        assert session.get(Encounter, 7).place == "Fjord" and session.get(Encounter, 8).version == 1


# --- undo


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
        return rename_individual(session, "Ann", who, f"HB-{rng.randrange(10**6)}")[0]
    met = session.get(Encounter, rng.randrange(1, 11))
    return decide(session, "Ann", met.id, what, met.version, who)[0]


@pytest.mark.parametrize("seed", range(3))
def test_undo_of_a_dozen_decisions_in_reverse_gives_back_what_was(filled, seed):
    rng, before, done = random.Random(seed), state_of(filled), []
    for _ in range(12):
        try:
            with filled.writing() as session:
                done.append(something(session, rng).id)
        except UserError:
            pass
    assert len(done) > 4 and state_of(filled) != before
    for number in reversed(done):
        with filled.writing() as session:
            undo(session, "Ann", number)
    assert state_of(filled) == before


def test_undo_of_what_another_decision_stands_on_is_refused_until_that_is_undone(filled):
    with filled.writing() as session:
        first, _ = decide(session, "Ann", 7, "new", 1, name="HB-0050")
    with filled.writing() as session:
        second, _ = decide(session, "Ben", 8, "confirm", 1, first.individual_id)
    for who, number, told in (("Ann", first.id, "depends on it"), ("Ann", second.id, "only Ben or an admin")):
        with pytest.raises(UserError, match=told), filled.writing() as session:
            undo(session, who, number)
    with filled.writing() as session:
        undo(session, "Ann", second.id, any_user=True)
    with filled.writing() as session:
        undo(session, "Ann", first.id)
    with pytest.raises(Conflict, match="undone already"), filled.writing() as session:
        undo(session, "Ann", first.id)
    with filled.writing() as session:
        again, _ = decide(session, "Ann", 9, "new", 1, name="HB-0050")
        assert again.individual_id == first.individual_id, "the name of an animal that was unmade may be used again"
        assert session.get(Individual, again.individual_id).active


def make(session, who, what):
    """A decision written in words, such as `confirm 7 1`: the individual that is made is number 4. Its line."""
    kind, *given = what.split(" ")
    first, *rest = [int(number) for number in given]
    if kind in ("confirm", "reject", "new", "unsure"):
        return decide(session, who, first, kind, session.get(Encounter, first).version, *rest)[0]
    if kind == "rename":
        return rename_individual(session, who, first, "Hope")[0]
    return (merge(session, who, first, *rest) if kind == "merge" else split(session, who, first, rest))[0]


@pytest.mark.parametrize(
    ("one", "then", "stands"),
    [
        ("confirm 7 1", "unsure 7", True),
        ("unsure 7", "confirm 7 1", True),
        ("confirm 7 1", "reject 7 2", False),
        ("confirm 7 1", "confirm 8 1", False),
        ("confirm 7 1", "merge 1 2", True),
        ("confirm 7 1", "merge 2 1", False),
        ("confirm 7 1", "rename 1", False),
        ("confirm 7 1", "split 1 7", True),
        ("reject 7 1", "confirm 7 2", False),
        ("reject 7 1", "merge 1 2", False),
        ("new 7", "confirm 8 4", True),
        ("new 7", "merge 4 1", True),
        ("split 1 1", "confirm 8 4", True),
        ("split 1 1", "unsure 1", True),
        ("split 1 1", "unsure 2", False),
        ("merge 2 1", "confirm 3 3", True),
        ("merge 2 1", "unsure 1", False),
        ("merge 2 1", "merge 1 3", True),
        ("merge 2 1", "rename 1", False),
        ("merge 2 1", "split 1 1", False),
        ("merge 2 1", "split 1 3", True),
        ("rename 1", "merge 2 1", False),
        ("rename 1", "confirm 7 1", False),
    ],
)
@pytest.mark.parametrize("filled", ["sqlite"], indirect=True)
def test_undo_is_refused_where_a_later_decision_stands_on_it_and_only_there(filled, one, then, stands):
    with filled.writing() as session:
        first, second = make(session, "Ann", one), make(session, "Ben", then)
    if stands:
        with (
            pytest.raises(Conflict, match=r"^Ben .*, which depends on it: undo that"),
            filled.writing() as session,
        ):
            undo(session, "Ann", first.id)
        with filled.writing() as session:
            undo(session, "Ben", second.id)
    with filled.writing() as session:
        undo(session, "Ann", first.id)


def test_split_makes_an_individual_of_the_same_species_with_the_encounters_named(filled):
    with filled.writing() as session:
        _, made = split(session, "Ann", 1, [2])
        assert (made.name, made.species, made.active) == ("HB-0004", "humpback_whale", True)
        assert [session.get(Encounter, number).individual_id for number in (1, 2)] == [1, made.id]


def test_undo_of_a_merge_makes_the_individual_whole_again(filled):
    with filled.writing() as session:
        row, _ = merge(session, "Ann", 2, 1)
        gone = session.get(Individual, 2)
        assert (gone.active, gone.merged_into_id) == (False, 1) and session.get(Encounter, 3).individual_id == 1
    with filled.writing() as session:
        undo(session, "Ann", row.id)
    with filled.reading() as session:
        back = individual_page(session, SETTINGS, 2)
    assert (back["active"], back["merged_into"], [met["id"] for met in back["encounters"]]) == (True, None, [3, 4])


def test_undo_of_an_undo_an_edit_or_nothing_is_refused(filled):
    with filled.writing() as session:
        row, _ = decide(session, "Ann", 7, "unsure", 1)
        back, _ = undo(session, "Ann", row.id)
        other = Decision(at="", who="Ann", kind="edit", note="", before={}, encounter_id=7)
        session.add(other)
        session.flush()
    for number, kind, told in ((back.id, UserError, "cannot be undone"), (other.id, UserError, "cannot be undone")):
        with pytest.raises(kind, match=told), filled.writing() as session:
            undo(session, "Ann", number)
    with pytest.raises(NotFound, match="no decision number 99"), filled.writing() as session:
        undo(session, "Ann", 99)


def test_undo_gives_back_the_species_unless_somebody_said_another(mine):
    with mine.writing() as session:
        met = session.scalar(select(Encounter).where(Encounter.state == "undecided"))
        update_encounter(session, met, met.version, species="")
        who = session.scalar(select(Individual).where(Individual.species != ""))
        for said in ("", "beluga"):
            row, _ = decide(session, "Ann", met.id, "confirm", met.version, individual_id=who.id)
            assert met.species == who.species
            if said:
                update_encounter(session, met, met.version, species=said)
            undo(session, "Ann", row.id)
            assert met.species == said


# --- refusals


def test_refused_decisions_change_nothing(filled):
    with filled.writing() as session:
        session.add(Individual(name="BW-1", species="blue_whale", active=True, created_at=""))
        merge(session, "Ann", 3, 2)
        session.add(Answer(id=5, encounter_id=8, model_id=1, at="", who="", filters={}, content={"candidates": []}))
    before = state_of(filled)
    with filled.reading() as session:
        trail = session.scalar(select(func.count()).select_from(Decision))
    acts = [
        (lambda s: decide(s, "Ann", 7, "confirm", 1), "individual_id is missing"),
        (lambda s: decide(s, "Ann", 7, "reject", 1), "individual_id is missing"),
        (lambda s: decide(s, "Ann", 7, "confirm", 1, 99), "no individual number"),
        (lambda s: decide(s, "Ann", 7, "confirm", 1, 3), "no longer in the catalogue"),
        (lambda s: decide(s, "Ann", 99, "unsure", 1), "no encounter"),
        (lambda s: decide(s, "Ann", 7, "maybe", 1), "one of confirm"),
        (lambda s: decide(s, "Ann", 7, "new", 1, name="HB-0001"), "already: do you mean HB-0001"),
        (lambda s: decide(s, "Ann", 7, "new", 1, name="hb-0001"), "hb-0001 looks like it: do you mean HB-0001"),
        (lambda s: decide(s, "Ann", 7, "new", 1, name="HB-0003"), "HB-0003 is HB-0002 now: do you mean HB-0002"),
        (lambda s: decide(s, "Ann", 7, "new", 1, name="new_individual"), "names nobody"),
        (lambda s: decide(s, "Ann", 7, "new", 1, name="N/A"), "names nobody"),
        (lambda s: decide(s, "Ann", 7, "unsure", 1, answer_id=99), "no answer"),
        (lambda s: decide(s, "Ann", 7, "unsure", 1, answer_id=5), "about another encounter"),
        (lambda s: decide(s, "Ann", 7, "unsure", 1, note="x" * 2001), "2001 characters"),
        (lambda s: decide(s, "Ann", 1, "reject", 1, 1), "undo that decision"),
        (lambda s: merge(s, "Ann", 1, 1), "into itself"),
        (lambda s: merge(s, "Ann", 1, 4), "not one animal"),
        (lambda s: merge(s, "Ann", 3, 1), "no longer in the catalogue"),
        (lambda s: merge(s, "Ann", 1, 3), "no longer in the catalogue"),
        (lambda s: split(s, "Ann", 1, [3]), "does not belong to"),
        (lambda s: split(s, "Ann", 1, [1, 2]), "not all"),
        (lambda s: split(s, "Ann", 1, []), "not none"),
        (lambda s: split(s, "Ann", 1, [1], name="HB-0002"), "already"),
        (lambda s: rename_individual(s, "Ann", 1, "HB-0002"), "do you mean HB-0002"),
        (lambda s: rename_individual(s, "Ann", 1, "HB-0003"), "HB-0003 is HB-0002 now"),
        (lambda s: rename_individual(s, "Ann", 1, "HB-0001"), "this name already"),
        (lambda s: rename_individual(s, "Ann", 1, "unknown"), "names nobody"),
        (lambda s: rename_individual(s, "Ann", 1, "new_individual"), "names nobody"),
        (lambda s: rename_individual(s, "Ann", 1, " "), "name is empty"),
        (lambda s: rename_individual(s, "Ann", 3, "Hope"), "merged into HB-0002; rename HB-0002 instead"),
    ]
    for act, told in acts:
        with pytest.raises(UserError, match=told), filled.writing() as session:
            act(session)
    with filled.reading() as session:
        assert session.scalar(select(func.count()).select_from(Decision)) == trail
    assert state_of(filled) == before


def test_decide_from_an_answer_keeps_rank_and_probability_of_the_one_it_is_about(filled):
    about = {"encounter_id": 7, "model_id": 1, "at": "", "who": "Ann", "filters": {}}
    listed = [("HB-0002", 2), (None, None), ("HB-0001", 1)]
    found = [
        {"rank": i, "probability": 0.5 / i, "is_new": not number, "individual": number and {"id": number, "name": name}}
        for i, (name, number) in enumerate(listed, start=1)
    ]
    with filled.writing() as session:
        session.add(Answer(id=1, content={"candidates": found}, **about))
    asked = [("confirm", 1, 3), ("reject", 2, 1), ("new", None, 2), ("confirm", 3, None), ("unsure", None, None)]
    for version, (kind, who, rank) in enumerate(asked, start=1):
        with filled.writing() as session:
            row, _ = decide(session, "Ann", 7, kind, version, who, answer_id=1)
            assert (row.answer_id, row.rank, row.chance) == (1, rank, rank and 0.5 / rank), kind


# --- names


def read_back(data):
    """The rows of an exported CSV, as `to_csv` says to read it."""
    rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    return [{name: original_text(cell) for name, cell in row.items()} for row in rows]


characters = st.one_of(
    st.characters(exclude_categories=()),
    st.sampled_from("=+-@'\",;\t\n \0\xa0\u3000\u200b\u202e\ud800\u0301\uffffaÅ＝"),
)
texts = st.text(characters, max_size=8) | st.sampled_from(["new_individual", "x" * 80, "x" * 81, "e\u0301" * 80])


def kept_as(text):
    """What a name is kept as, "" if it has to be refused."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    odd = any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") for c in name)
    return "" if odd or len(name) > 80 or is_nobody(name) else name


@settings(max_examples=200, deadline=None, derandomize=True, phases=[Phase.generate])
@given(texts)
def test_make_individual_and_rename_take_any_name_of_somebody_that_can_be_shown(text):
    connection, engine, content = memory()
    connection.deserialize(content)
    acts = (
        lambda session: make_individual(session, text, ""),
        lambda session: rename_individual(session, "Ann", 1, text)[1],
    )
    for act in acts:
        with Session(engine) as session:
            try:
                row = act(session)
                session.flush()
                session.expire_all()
                found = row.name
            except UserError:
                found = ""
            assert found == kept_as(text)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder in which an import finds four photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        Image.new("RGB", (6, 4)).save(folder / f"{i}.jpg")
    return folder


# limits: U+FFFE and U+FFFF become U+FFFD in a file
fitting = texts.map(kept_as).filter(lambda name: name and not set(name) & set("\ufffe\uffff"))


@settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.lists(fitting, min_size=1, max_size=4, unique_by=name_key))
def test_names_of_individuals_survive_csv_export_and_import(photos, given_names):
    connection, engine, content = memory()
    connection.deserialize(content)
    with Session(engine) as session, session.begin():
        for i, name in enumerate(given_names):
            met = new_encounter(session, "")
            about = {"path": "x", "kept": True, "sha256": "", "width": 6, "height": 4}
            add_photo(session, met, 1, np.ones(4), name=f"{i}.jpg", **about)
            decide(session, "Ann", met.id, "new", 1, name=name, species="")
        table = sightings(session)
    data = to_csv(table[table["photo"].str.fullmatch("[0-9].jpg")])
    assert [row["individual"] for row in read_back(data)] == given_names
    (photos / "sightings.csv").write_bytes(data)
    plan = plan_source(photos / "sightings.csv")
    found = plan.train["individual_id"].map(original_text)
    assert list(map(name_key, found)) == list(map(name_key, given_names)) and plan.test.empty
