"""Any order of decisions, corrections and undos leaves what a plain model says, and the answers of a fresh start."""

import sqlite3
from collections import namedtuple
from contextlib import contextmanager
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from test_catalogue import fill

from happywhale_nb.catalogue import corrections
from happywhale_nb.catalogue.decisions import Conflict, decide, give_species, merge, rename_individual, split
from happywhale_nb.catalogue.edits import edit_encounter
from happywhale_nb.catalogue.listings import list_encounters, rejections, sightings
from happywhale_nb.catalogue.matching import Matcher, answer_content, rank_candidates
from happywhale_nb.catalogue.schema import Annotation, Base, Decision, Encounter, Individual, Model, Photo
from happywhale_nb.catalogue.store import add_photo, new_encounter
from happywhale_nb.catalogue.undoing import undo
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.names import name_key
from happywhale_nb.retrieval.identifier import Calibration

FIRST = {number: ("confirmed", (number + 1) // 2, "") for number in range(1, 7)}  # state, individual, decided by
FIRST |= {number: ("undecided", None, "") for number in range(7, 12)}
SPECIES = {number: "humpback_whale" for number in range(1, 11)} | {11: ""}
PLACES = {number: ("Skerry", "Ness")[(number - 1) % 2] for number in range(1, 11)} | {11: ""}
PHOTOS = {number: (number + 1) // 2 for number in range(1, 21)} | {21: 11}  # photo: encounter
SIDES = {number: ("right", "left")[number % 2] for number in range(1, 21)} | {21: ""}
FIELDS = "kind who encounter individual other was name moved before places sides photos withdrawn made"
Step = namedtuple("Step", FIELDS, defaults=[None] * 12)


class Plain:
    """What a list of decisions makes of the catalogue, each done again from the start."""

    def __init__(self, steps):
        self.met, self.species, self.rejected, self.merged = dict(FIRST), dict(SPECIES), set(), {}
        self.names, self.active = {1: "HB-0001", 2: "HB-0002", 3: "HB-0003", 4: "BW-1"}, {1, 2, 3, 4}
        self.kinds = {1: "humpback_whale", 2: "humpback_whale", 3: "humpback_whale", 4: "blue_whale"}
        self.places, self.photos, self.sides, self.withdrawn = dict(PLACES), dict(PHOTOS), dict(SIDES), set()
        for step in steps:
            getattr(self, {"species": "give_species"}.get(step.kind, step.kind))(step)

    def confirm(self, step):
        self.met[step.encounter] = ("confirmed", step.individual, step.who)
        self.species[step.encounter] = self.species[step.encounter] or self.kinds[step.individual]

    def reject(self, step):
        self.rejected.add((step.encounter, step.individual))

    def new(self, step):
        self.make(step.individual, step.name, self.species[step.encounter])
        self.met[step.encounter] = ("new", step.individual, step.who)

    def unsure(self, step):
        self.met[step.encounter] = ("unsure", None, step.who)

    def merge(self, step):
        for number in self.of(step.other):
            was, _, who = self.met[number]
            self.met[number] = (was, step.individual, who)
        self.active.discard(step.other)
        self.merged[step.other] = step.individual

    def split(self, step):
        self.make(step.individual, step.name, self.kinds[step.other])
        for number in step.moved:
            was, _, who = self.met[number]
            self.met[number] = (was, step.individual, who)

    def rename(self, step):
        self.names[step.individual] = step.name

    def give_species(self, step):
        self.kinds[step.individual] = step.name
        self.species |= dict.fromkeys(step.moved, step.name)

    def edit(self, step):
        if step.places is not None:
            self.places[step.encounter] = step.places
        self.sides |= step.sides or {}

    def withdraw(self, step):
        if step.withdrawn:
            self.withdrawn.add(step.withdrawn)
        else:
            self.met[step.encounter] = ("withdrawn", None, "")

    def move(self, step):
        for number, (place, species) in step.made.items():
            self.met[number], self.places[number], self.species[number] = ("undecided", None, ""), place, species
        self.photos |= step.photos

    regroup = move

    def make(self, number, name, species):
        self.names[number], self.kinds[number] = name, species
        self.active.add(number)

    def of(self, individual):
        """Numbers of an individual's encounters."""
        return sorted(number for number, (_, who, _) in self.met.items() if who == individual)

    def shown(self, number):
        """Whether an encounter is not withdrawn and has photos that are not."""
        left = {encounter for photo, encounter in self.photos.items() if photo not in self.withdrawn}
        return self.met[number][0] != "withdrawn" and number in left


@lru_cache(maxsize=1)
def memory():
    """`(connection, engine, bytes)`: a SQLite database in memory, and what a new catalogue is in it."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        fill(session)
        session.add(Individual(name="BW-1", species="blue_whale", active=True, created_at=""))
        add_photo(session, new_encounter(session, ""), 1, np.ones(4), name="x.jpg", path="x.jpg", kept=True,
                  sha256="x", width=6, height=4)  # fmt: skip
        model = session.get(Model, 1)
        model.settings, model.calibration = model.settings | {"boxed": False}, Calibration().as_dict()
        for photo in session.scalars(select(Photo)):  # two bursts an encounter, and one night between some
            photo.taken = f"2026-07-{10 + photo.id // 4:02}T{10 + photo.id % 3}:00"
    return connection, engine, connection.serialize()


numbers, names = (
    st.integers(0, 20),
    st.sampled_from(["", "HB-0002", "hb-0002", "HB-0004", "HB-0005", "Hope", "hope", "Ö", "unknown"]),
)
people = st.sampled_from(["Ann", "Ben"])


def is_taken(name, plain):
    return name_key(name) in set(map(name_key, plain.names.values())) or name == "unknown"


class Reviewing(RuleBasedStateMachine):
    """Decisions by two people, right and wrong ones, and undo in any order, on a catalogue and on its plain model."""

    @initialize()
    def begin(self):
        connection, self.engine, content = memory()
        connection.deserialize(content)
        self.steps, self.states, self.trail = {}, {}, []  # decisions that stand, and what was before each, by number
        self.catalogue = SimpleNamespace(fingerprint="f" * 16, reading=self.reading)
        self.matcher = Matcher(self.catalogue)

    @contextmanager
    def reading(self):
        with Session(self.engine) as session:
            yield session

    def act(self, function, *given, refused=False, **more):
        """Do one thing in one transaction. Returns its line of the audit log, None if it was refused or did nothing.

        refused: whether it must be, True or the error's class, False; None: it may."""
        before = self.now()
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                row, _ = function(session, *given, **more)
        except UserError as error:
            assert refused is not False, f"{function.__name__}{given}: {error}"
            assert isinstance(error, refused if isinstance(refused, type) else UserError)
            assert self.now() == before, "a refusal changes nothing"
            self.check_remedy(error)
            return None
        assert not refused, f"{function.__name__}{given} should have been refused"
        if row is None:
            assert self.now() == before, "nothing differs"
        elif function is not undo:
            self.states[row.id] = before[0]
            was = {number: who for number, _, who, *_ in before[0][0]}.get(row.encounter_id)
            self.steps[row.id] = Step(row.kind, row.who, row.encounter_id, row.individual_id, row.other_id, was=was)
        return row

    def check_remedy(self, error):
        """A conflict names a later decision that stands, if it is about one."""
        if isinstance(error, Conflict) and error.decision is not None:
            assert error.decision in self.steps and str(error).endswith("undo that first")

    def now(self):
        with Session(self.engine) as session:
            versions = session.execute(select(Encounter.id, Encounter.version)).all()
            log = session.scalar(select(func.count()).select_from(Decision))
            return self.state(session), sorted(map(tuple, versions)), log

    def state(self, session):
        """All that decisions can change, but for versions and what was made by a decision that was undone."""
        fields = [getattr(Encounter, name) for name in ("id", "state", "individual_id", "decided_by", "decided_at")]
        fields += [Encounter.species, Encounter.place]
        made = set(self.plain.met)
        met = [tuple(row) for row in session.execute(select(*fields).order_by(Encounter.id)) if row.id in made]
        shown = Individual.active | Individual.merged_into_id.is_not(None)
        fields = [getattr(Individual, name) for name in ("id", "name", "active", "merged_into_id", "species")]
        animals = session.execute(select(*fields).where(shown).order_by(Individual.id))
        photos = select(Photo.id, Photo.encounter_id, Photo.withdrawn, Annotation.side).order_by(Photo.id)
        photos = session.execute(photos.join(Annotation, Annotation.photo_id == Photo.id))
        return met, list(map(tuple, animals)), list(map(tuple, photos))

    def more(self, row, **known):
        """What only its caller knows of a decision."""
        if row is not None:
            self.steps[row.id] = self.steps[row.id]._replace(**known)

    def name_of(self, number):
        with Session(self.engine) as session:
            return session.get(Individual, number).name

    def some(self, number):
        """The number of an individual that stands, active or merged away."""
        known = sorted(self.plain.names)
        return known[number % len(known)]

    def some_encounter(self, number):
        """The number of an encounter that stands."""
        known = sorted(self.plain.met)
        return known[number % len(known)]

    @property
    def plain(self):
        return Plain(self.steps.values())

    # what is done

    @rule(kind=st.sampled_from(["confirm", "confirm", "reject"]), number=numbers, individual=numbers, who=people)
    def confirm_or_reject(self, kind, number, individual, who):
        met, plain, individual = self.some_encounter(number), self.plain, self.some(individual)
        own = kind == "reject" and plain.met[met][1] == individual
        gone = plain.met[met][0] == "withdrawn" or individual not in plain.active
        self.act(decide, who, met, kind, self.version(met), individual, refused=own or gone)

    @rule(number=numbers, who=people)
    def unsure(self, number, who):
        met = self.some_encounter(number)
        self.act(decide, who, met, "unsure", self.version(met), refused=self.plain.met[met][0] == "withdrawn")

    @rule(number=numbers, name=names, who=people)
    def new(self, number, name, who):
        met, plain = self.some_encounter(number), self.plain
        wrong = is_taken(name, plain) or plain.met[met][0] == "withdrawn"
        given = {"name": name, "species": plain.species[met]}
        row = self.act(decide, who, met, "new", self.version(met), refused=wrong, **given)
        self.more(row, name=row and self.name_of(row.individual_id))

    @rule(number=numbers, into=numbers, who=people)
    def merge(self, number, into, who):
        plain, gone, stays = self.plain, self.some(number), self.some(into)
        kinds = {plain.kinds[each] for each in (gone, stays)} - {""}
        wrong = gone == stays or not {gone, stays} <= plain.active or len(kinds) > 1
        self.act(merge, who, gone, stays, refused=wrong)

    @rule(number=numbers, chosen=st.sets(numbers, max_size=2), name=names, who=people)
    def split(self, number, chosen, name, who):
        plain, source = self.plain, self.some(number)
        own = plain.of(source)
        moved = sorted({own[i % len(own)] for i in chosen}) if own else [1]
        wrong = source not in plain.active or not 0 < len(moved) < len(own) or is_taken(name, plain)
        row = self.act(split, who, source, moved, name, refused=wrong)
        self.more(row, name=row and self.name_of(row.individual_id), moved=moved)

    @rule(number=numbers, name=names, who=people)
    def rename(self, number, name, who):
        plain, individual = self.plain, self.some(number)
        others = {key: each for key, each in plain.names.items() if key != individual}
        wrong = name in ("", "unknown", plain.names[individual]) or individual not in plain.active
        wrong = wrong or name_key(name) in set(map(name_key, others.values()))
        row = self.act(rename_individual, who, individual, name, refused=wrong)
        self.more(row, name=name, before=plain.names[individual])

    @rule(number=numbers, kind=st.sampled_from(["", "humpback_whale", "blue_whale"]), who=people)
    def give_species(self, number, kind, who):
        plain, individual = self.plain, self.some(number)
        old = plain.kinds[individual]
        moved = [each for each in plain.of(individual) if plain.species[each] in ("", old) and kind != old]
        row = self.act(give_species, who, individual, kind, refused=individual not in plain.active or kind == old)
        self.more(row, name=kind, moved=[each for each in moved if plain.species[each] != kind])

    @rule(number=numbers, place=st.sampled_from(["", "Ness", "Bight"]), who=people)
    def edit(self, number, place, who):
        met = self.some_encounter(number)
        row = self.act(edit_encounter, who, met, self.version(met), {"place": place})
        self.more(row, places=place)

    @rule(number=numbers, side=st.sampled_from(["", "left", "right"]), every=st.booleans(), who=people)
    def edit_sides(self, number, side, every, who):
        photo, plain = number + 1, self.plain
        met = plain.photos[photo]
        inside = [each for each, encounter in plain.photos.items() if encounter == met] if every else [photo]
        sides = {each: side for each in inside if plain.sides[each] != side}
        changes = {"side": side} if every else {"sides": {photo: side}}
        row = self.act(edit_encounter, who, met, self.version(met), changes)
        assert (row is None) == (not sides), "only what differs is changed"
        self.more(row, sides=sides)

    @rule(number=numbers, reason=st.sampled_from(["boat", "mistake"]), who=people)
    def withdraw_encounter(self, number, reason, who):
        met = self.some_encounter(number)
        gone = self.plain.met[met][0] == "withdrawn"
        self.act(corrections.withdraw_encounter, who, met, self.version(met), reason, refused=gone)

    @rule(number=numbers, who=people)
    def withdraw_photo(self, number, who):
        photo, plain = number + 1, self.plain
        given = (who, photo, self.version(plain.photos[photo]), "empty sea")
        row = self.act(corrections.withdraw_photo, *given, refused=photo in plain.withdrawn)
        self.more(row, withdrawn=photo)

    @rule(number=numbers, of_photo=st.booleans(), who=people)
    def put_back(self, number, of_photo, who):
        plain, photo, met = self.plain, number + 1, self.some_encounter(number)
        gone = photo in plain.withdrawn if of_photo else plain.met[met][0] == "withdrawn"
        which = {"photo": photo} if of_photo else {"encounter": met}
        before = self.steps.copy()
        row = self.act(corrections.restore, who, refused=None if gone else True, **which)
        if row is not None:
            self.steps = {number: step for number, step in before.items() if number != row.undoes_id}
            self.states |= dict.fromkeys(each for each in self.steps if each > row.undoes_id)

    @rule(chosen=st.sets(numbers, min_size=1, max_size=3), to=numbers | st.none(), who=people)
    def move(self, chosen, to, who):
        plain, photos = self.plain, sorted(number + 1 for number in chosen)
        aim = None if to is None else self.some_encounter(to)
        ends = {plain.photos[photo] for photo in photos} | ({aim} - {None})
        gone = any(plain.met[each][0] == "withdrawn" for each in ends)
        row = self.act(corrections.move_photos, who, photos, aim, refused=gone or ends == {aim})
        self.more(row, **self.moved(row))

    def moved(self, row):
        """What the log tells of a move: the photos' encounters, and what the made encounters are like."""
        if row is None:
            return {}
        photos = {int(photo): values["encounter_id"] for photo, values in row.after["photos"].items()}
        with Session(self.engine) as session:
            made = {number: session.get(Encounter, number) for number in row.after["made"]}
            return {"photos": photos, "made": {number: (each.place, each.species) for number, each in made.items()}}

    @rule(chosen=st.sets(numbers, min_size=1, max_size=2), by=st.sampled_from(["day", "burst:10"]), who=people)
    def regroup(self, chosen, by, who):
        plain, encounters = self.plain, sorted({self.some_encounter(number) for number in chosen})
        wrong = any(plain.met[each][0] != "undecided" for each in encounters)
        row = self.act(corrections.regroup, who, encounters, by, refused=wrong)
        self.more(row, **self.moved(row))

    @rule(number=numbers, kind=st.sampled_from(["confirm", "reject", "new", "unsure"]), late=st.sampled_from([-1, 1]))
    def decide_by_another_version(self, number, kind, late):
        met = self.some_encounter(number)
        self.act(decide, "Ann", met, kind, self.version(met) + late, 1, refused=Conflict)

    @precondition(lambda self: self.steps)
    @rule(who=people)
    def undo_last(self, who):
        self.undo(max(self.steps), who, any_user=True, refused=False)

    @precondition(lambda self: self.steps)
    @rule(which=numbers, who=people, any_user=st.booleans())
    def undo_any(self, which, who, any_user):
        number = sorted(self.steps)[which % len(self.steps)]
        foreign = self.steps[number].who != who and not any_user
        self.undo(number, who, any_user, refused=True if foreign else None)

    def undo(self, number, who, any_user, refused):
        step, before, plain = self.steps[number], self.states[number], self.plain
        others = {name_key(name) for each, name in plain.names.items() if each != step.individual}
        if step.kind == "rename" and name_key(step.before) in others:
            refused = True
        if self.act(undo, who, number, any_user, refused=refused) is not None:
            del self.steps[number]
            later = [each for each in self.steps if each > number]
            assert later or before is None or self.now()[0] == before, "the last decision: exactly what was before it"
            self.states |= dict.fromkeys(later)  # what was before these is no longer what there would be

    @rule()
    def look(self):
        """A server that looks now and then answers as one that is started anew."""
        self.matcher.refresh()
        fresh = Matcher(self.catalogue)
        with Session(self.engine) as session:
            waiting = list_encounters(session, fresh.model.settings, state="undecided", limit=2)["encounters"]
            for met in waiting:
                assert self.answer(self.matcher, session, met) == self.answer(fresh, session, met)
        assert self.gallery(self.matcher) == self.gallery(fresh)

    def gallery(self, matcher):
        known, facts = matcher.photos.known, {name: each.tolist() for name, each in matcher.photos.facts.items()}
        labels = [known.classes_[code] if code >= 0 else "" for code in known.codes_]
        return matcher.photos.ids.tolist(), labels, facts, known.vectors.tolist()

    def answer(self, matcher, session, met):
        ids = [photo["id"] for photo in met["photos"] if not photo["withdrawn"]]
        vectors = matcher.photos.known.vectors[[matcher.photos.rows[number] for number in ids]]
        ranked, note = rank_candidates(matcher, vectors, 10, met["id"])
        content = answer_content(matcher, session, ranked, note, ids)
        shown = [each["individual"]["id"] for each in content["candidates"] if each["individual"]]
        plain = self.plain
        others = {e for photo, e in plain.photos.items() if photo not in plain.withdrawn and e != met["id"]}
        known = {plain.met[encounter][1] for encounter in others} - {None}
        assert set(shown) == known, "known are the animals with photos that are shown, and no others"
        return content | {"created_at": ""}

    def version(self, number):
        with Session(self.engine) as session:
            return session.get(Encounter, number).version

    # what must hold after each of them

    @invariant()
    def it_is_as_the_decisions_that_stand_make_it(self):
        plain = self.plain
        with Session(self.engine) as session:
            met, animals, photos = self.state(session)
            assert {row[0]: (row[1], row[2], row[3], row[5], row[6]) for row in met} == {
                number: (*about, plain.species[number], plain.places[number]) for number, about in plain.met.items()
            }
            assert {row[0]: row[1] for row in animals if row[2]} == {n: plain.names[n] for n in plain.active}
            assert {row[0]: row[3] for row in animals if row[3]} == plain.merged
            assert {row[0]: row[4] for row in animals} == {n: plain.kinds[n] for n in plain.active | set(plain.merged)}
            assert photos == [
                (photo, encounter, photo in plain.withdrawn, plain.sides[photo])
                for photo, encounter in sorted(plain.photos.items())
            ]
            told = rejections(session, plain.met)
            assert {(met, each["id"]) for met, listed in told.items() for each in listed} == plain.rejected

    @invariant()
    def the_audit_log_only_grows(self):
        fields = ("id", "at", "who", "kind", "encounter_id", "individual_id", "other_id", "note", "undoes_id")
        with Session(self.engine) as session:
            rows = session.execute(select(*(getattr(Decision, name) for name in fields)).order_by(Decision.id)).all()
            standing = select(Decision.id).where(Decision.kind != "undo", Decision.undone_by_id.is_(None))
            assert set(session.scalars(standing)) == set(self.steps)
        assert list(map(tuple, rows[: len(self.trail)])) == self.trail
        self.trail = list(map(tuple, rows))

    def teardown(self):
        self.look()
        with Session(self.engine) as session:
            table = sightings(session)
            listed = list_encounters(session, {"margin": 0.05, "keep_aspect": False}, limit=100)["encounters"]
        plain = self.plain
        assert {met["id"] for met in listed if met["state"] != "withdrawn"} == set(filter(plain.shown, plain.met))
        decided = {step.encounter for step in self.steps.values() if step.kind in ("confirm", "new", "unsure")}
        fields = ("photo_id", "encounter_id", "state", "individual", "decided_by", "kind_of_source", "side")
        assert {tuple(row[name] for name in fields) for row in table.to_dict("records")} == {
            (photo, e, was, plain.names.get(i, ""), who, "given" if e < 7 and e not in decided else "decision", side)
            for photo, e in plain.photos.items()
            for (was, i, who), side in [(plain.met[e], plain.sides[photo])]
            if photo not in plain.withdrawn and was != "withdrawn"
        }


def test_decisions_corrections_and_undo_in_any_order_leave_what_a_plain_model_says():
    # without `shrink`: it would take minutes, and the steps are few
    how = settings(max_examples=8, stateful_step_count=15, deadline=None, derandomize=True, phases=[Phase.generate])
    run_state_machine_as_test(Reviewing, settings=how)


@pytest.mark.rest
def test_decisions_corrections_and_undo_in_long_orders_leave_what_a_plain_model_says():
    how = settings(max_examples=20, stateful_step_count=40, deadline=None, derandomize=True, phases=[Phase.generate])
    run_state_machine_as_test(Reviewing, settings=how)
