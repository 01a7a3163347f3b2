"""One rule for encounters: laws, splits and their cards, catalogues; and a gallery that sees every change."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from happywhale_nb.catalogue.corrections import move_photos, restore, withdraw_encounter, withdraw_photo
from happywhale_nb.catalogue.decisions import decide, log_decision, merge, rename_individual, split
from happywhale_nb.catalogue.example import example_catalogue
from happywhale_nb.catalogue.grouping import encounter_names, known_units, own_name
from happywhale_nb.catalogue.ingest import recalibrate
from happywhale_nb.catalogue.matching import FILTER_FIELDS, OUT, Matcher, match_encounter
from happywhale_nb.catalogue.schema import Decision, Encounter, Individual, Photo
from happywhale_nb.catalogue.undoing import undo
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.encounters import (
    assign_encounters,
    encounter_facts,
    encounter_notes,
    encounter_units,
    local_times,
    parse_rule,
    unchecked_photographs,
)
from happywhale_nb.data.protocol import encounter_card, protocol_card, split_warnings
from happywhale_nb.data.splits import dataset_folds, gallery_and_queries, make_folds
from happywhale_nb.stages.study_split import study_card, study_encounters, study_folds

laws = settings(max_examples=15, deadline=None, derandomize=True)
RULES = ("", "day", "folder", "burst:5", "burst:90")


@st.composite
def seasons(draw, n=24):
    """A table of photographs, some without a name, a date, a time or an encounter, and pairs that look alike."""
    rows = draw(st.integers(1, n))
    pick = lambda *values: draw(st.lists(st.sampled_from(values), min_size=rows, max_size=rows))  # noqa: E731
    minutes = draw(st.lists(st.integers(0, 300), min_size=rows, max_size=rows))
    days = pick("2024-07-13", "2024-07-14", "")
    with_time = pick(True, True, False)
    dates = [
        f"{day}T{10 + m // 60}:{m % 60:02d}" if day and time else day
        for day, m, time in zip(days, minutes, with_time, strict=True)
    ]
    table = pd.DataFrame({"image": [f"{i:02d}.jpg" for i in range(rows)], "date": dates})
    table["individual_id"], table["folder"] = pick("Ann", "Bo", ""), pick("north", "south/Ann", "")
    table["encounter"] = pick("", "", "", "E1", "E2")
    pairs = draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, rows - 1)), max_size=4))
    return table, np.array(pairs, int).reshape(-1, 2)


@laws
@given(seasons(), st.sampled_from(RULES))
def test_an_encounter_is_given_or_of_one_animal_and_follows_its_rule(case, rule):
    table, pairs = case
    found = assign_encounters(table, rule, pairs)
    assert list(found.columns[: len(table.columns)]) == list(table.columns) and len(found) == len(table)
    assert (found["encounter"][table["encounter"] != ""] == table["encounter"][table["encounter"] != ""]).all()
    assert ((found["encounter_by"] == "") == (found["encounter"] == "")).all()
    made = found[found["encounter_by"].isin(["day", "burst", "folder"])]
    for _, group in made.groupby("encounter"):
        if group["encounter"].iloc[0] not in ("E1", "E2"):
            assert group["individual_id"].nunique() == 1
    day, time = local_times(table["date"])
    by_day = found[found["encounter_by"] == "day"]
    assert (day[by_day.index] != "").all()
    for _, group in by_day.groupby("encounter"):
        assert day[group.index].nunique() == 1
    bursts = found[found["encounter_by"] == "burst"]
    for _, group in bursts.groupby("encounter"):
        gaps = time[group.index].sort_values().diff().dropna()
        assert (gaps <= pd.Timedelta(minutes=parse_rule(rule).minutes)).all()
    unnamed = found[(found["individual_id"] == "") & found["encounter_by"].isin(["day", "folder", "burst"])]
    for _, group in unnamed.groupby("encounter"):
        assert group["folder"].nunique() == 1


@laws
@given(seasons(), st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_encounters_do_not_depend_on_the_order_of_rows_nor_on_the_index(case, rule, random):
    table, _ = case
    order = random.sample(range(len(table)), len(table))
    mixed = assign_encounters(table.iloc[order], rule)
    whole = assign_encounters(table, rule).iloc[order]
    assert mixed["encounter"].tolist() == whole["encounter"].tolist()
    assert mixed.index.tolist() == table.index[order].tolist()


@laws
@given(seasons(), st.sampled_from(RULES))
def test_units_keep_labels_pairs_and_copies_together(case, rule):
    table, pairs = case
    table = table.assign(sha256=["s" if i % 7 == 3 else "" for i in range(len(table))])
    units, labels = encounter_units(table, rule, pairs), assign_encounters(table, rule)["encounter"]
    assert all(units[a] == units[b] for a, b in pairs)
    assert pd.Series(units)[labels != ""].groupby(labels[labels != ""]).nunique().le(1).all()
    assert len(set(units[(table["sha256"] == "s").to_numpy()])) <= 1
    assert len(set(units)) <= len(table) and set(units) == set(range(len(set(units))))


@laws
@given(seasons(), st.integers(2, 4), st.integers(0, 99))
def test_no_encounter_is_on_both_sides_of_the_split_encounter(case, k, seed):
    table, pairs = case
    train = table.assign(species="beluga", individual_id=table["individual_id"].replace("", "Cy"))
    ends = train["image"].to_numpy()[pairs]
    images = pd.DataFrame({"image_a": ends[:, 0], "image_b": ends[:, 1]})
    units = pd.Series(encounter_units(train, pairs=images), train["image"])
    if units.nunique() < k:
        with pytest.raises(UserError):
            make_folds(train, k, seed, "encounter", images)
        return
    folds = make_folds(train, k, seed, "encounter", images)
    for fold in sorted(set(folds["fold"])):
        gallery, query = gallery_and_queries(folds, fold)
        sides = [set(units[folds["image"][rows]]) for rows in (gallery, query)]
        assert not sides[0] & sides[1]
    mixed = make_folds(train.sample(frac=1, random_state=seed), k, seed, "encounter", images)
    assert folds.equals(mixed) and encounter_card(folds, train)["encounter_pairs"] in (0, None)


@pytest.mark.parametrize("text", ["week", "burst", "burst:", "burst:x", "burst:-3", "burst:0", "day:2", "burst:nan"])
def test_a_rule_that_is_none_is_refused_with_those_there_are(text):
    with pytest.raises(UserError, match="choose folder, day, or burst:MINUTES"):
        parse_rule(text)


def test_notes_count_what_could_not_be_grouped():
    table = pd.DataFrame(
        {"individual_id": ["Ann", "Ann", ""], "date": ["2024-07-13T10:00", "2024-07-13", "0000:00:00"]}
    )
    notes = encounter_notes(assign_encounters(table, "burst:10"), "burst:10")
    assert "1 of 3 photographs have neither an encounter nor a date" in notes[1]
    assert notes[2] == "1 photographs could not be grouped by burst:10: the next rule was used"
    assert unchecked_photographs(table.drop(columns="date")) == 3


# --- the split and its card


def burst_table(animals=20, days=3, frames=4, dated=True):
    """Animals met on some days, with bursts of one minute."""
    rows = [
        (f"{a:02d}-{d}-{f}.jpg", f"w{a:02d}", "beluga", f"2024-0{6 + d}-{1 + a % 28:02d}T10:0{f}" if dated else "")
        for a in range(animals)
        for d in range(days)
        for f in range(frames)
    ]
    return pd.DataFrame(rows, columns=["image", "individual_id", "species", "date"])


def test_stratified_says_how_many_pairs_of_one_encounter_it_has_across(tmp_path, capsys):
    table = burst_table()
    data = SimpleNamespace(root=tmp_path, train=table, fingerprint="0123456789abcdef")
    folds = study_folds(data, tmp_path / "study", 5, 1, "stratified")
    said = capsys.readouterr().err
    fold_of, pairs = folds.set_index("image")["fold"], 0
    for _, group in table.groupby(["individual_id", table["date"].str[:10]]):
        numbers = fold_of[group["image"]].tolist()
        pairs += sum(a != b for i, a in enumerate(numbers) for b in numbers[:i])
    assert f"split stratified: {pairs} pairs of photographs of one encounter are on both sides" in said
    card = study_card(data, tmp_path / "study", folds)
    assert (card["encounter_pairs"], card["encounters_unknown"]) == (pairs, 0)
    study_folds(data, tmp_path / "study", 5, 1, "stratified")
    assert capsys.readouterr().err == "", "it is said when a study begins"
    assert len(set(study_encounters(data, tmp_path / "study", folds))) == 60


def test_a_split_without_dates_says_that_bursts_could_not_be_checked(tmp_path, capsys):
    data = SimpleNamespace(root=tmp_path, train=burst_table(dated=False), fingerprint="0123456789abcdef")
    folds = study_folds(data, tmp_path / "study", 5, 1)
    assert "240 of 240 photographs have neither an encounter nor a date" in capsys.readouterr().err
    card = study_card(data, tmp_path / "study", folds)
    assert card["encounter_pairs"] is None and len(split_warnings(card)) == 1
    assert split_warnings(protocol_card(folds, "0123456789abcdef")) == [], "cards of earlier versions say nothing"


def test_dates_beside_the_table_count_for_splits(tmp_path):
    table = burst_table()
    table[["image", "date"]].to_csv(tmp_path / "encounters.csv", index=False)
    data = SimpleNamespace(root=tmp_path, train=table.drop(columns="date"), fingerprint="0123456789abcdef")
    assert encounter_facts(data)["date"].tolist() == table["date"].tolist()
    assert len(set(dataset_folds(data, 3, 0, "time")["fold"])) == 4


# --- in a catalogue


def test_photographs_of_a_folder_are_named_by_animal_and_day_or_by_themselves():
    table = pd.DataFrame(
        [
            ("train_images/a.jpg", "Ann", "", "2024-07-13T10:00"),
            ("train_images/b.jpg", "Ann", "", "2024-07-13T18:00"),
            ("train_images/c.jpg", "Ann", "E3", "2024-07-13"),
            ("train_images/d.jpg", "Bo", "", ""),
            ("test_images/q.jpg", "", "", "2024-07-13"),
            ("test_images/r.jpg", "", "", "2024-07-13"),
            ("test_images/north/s.jpg", "", "", "2024-07-13"),
            ("test_images/north/t.jpg", "", "", "2024-07-13"),
        ],
        columns=["path", "individual_id", "encounter", "date"],
    )
    table["image"] = table["path"].str.rpartition("/")[2]
    names = encounter_names(table, [""] * 8)
    assert names[:4] == ["Ann 2024-07-13", "Ann 2024-07-13", "E3", "train_images/d.jpg"]
    assert names[4:6] == ["test_images/q.jpg", "test_images/r.jpg"], "nobody says that a day has one animal"
    assert names[6] == names[7] != names[4]
    assert encounter_names(table, ["", "", "", "2024-07-20T09:00", "", "", "", ""])[3] == "Bo 2024-07-20"


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A catalogue that is changed at will."""
    catalogue, _ = example_catalogue(tmp_path_factory.mktemp("changed"))
    yield catalogue
    catalogue.close()


def test_single_photographs_of_before_are_grouped_by_their_dates_or_their_pixels(changed):
    catalogue = changed
    with catalogue.writing() as session:
        query = select(Photo, Encounter).join(Encounter, Encounter.id == Photo.encounter_id)
        rows = session.execute(query.where(Encounter.individual_id.is_not(None)).order_by(Photo.id)).all()
        numbers = [photo.id for photo, _ in rows]
        alone = {}
        for photo, encounter in rows:
            alone.setdefault(encounter.id, (encounter, []))[1].append(photo)
        single = [(e, photos[0]) for e, photos in alone.values() if len(photos) == 1][:4]
        for encounter, photo in single:
            encounter.name, encounter.date = own_name(photo.path, photo.name), "2024-07-13"
            photo.taken, encounter.individual_id = "", single[0][0].individual_id
        session.flush()
        units, unchecked = known_units(catalogue, session, numbers)
        of = dict(zip(numbers, units, strict=True))
        assert len({of[photo.id] for _, photo in single}) == 1
        assert unchecked == len(numbers) - len(single)
        for encounter, _ in single:
            encounter.date = ""
        session.flush()
        units, unchecked = known_units(catalogue, session, numbers)
        assert unchecked == len(numbers)
        session.rollback()
    made = recalibrate(catalogue)
    assert f"{len(numbers)} of {len(numbers)} known photographs have neither an encounter nor a date" in made.note
    assert made.measured.is_unchecked and made.coverage_encounters <= len(set(units))
    if made.measured.is_kept:
        assert made.measured.sentence.endswith("frames of one burst may have matched each other")


# --- a gallery that sees every change


def gallery_of(matcher):
    """`{photo: (label, facts, vector)}` of a gallery in memory."""
    index, names = matcher.photos, [*matcher.photos.known.classes_, ""]
    return {
        number: (
            names[index.known.codes_[row]],
            *(index.facts[field][row] for field in FILTER_FIELDS),
            index.known.vectors[row].tobytes(),
        )
        for number, row in index.rows.items()
        if index.facts["encounter"][row] != OUT
    }


def act(session, kind, draw):
    """Does something drawn to the catalogue, if it can be done."""
    active = session.scalars(select(Individual.id).where(Individual.active).order_by(Individual.id)).all()
    met = session.scalars(select(Encounter).order_by(Encounter.id)).all()
    one, two = draw(st.sampled_from(active)), draw(st.sampled_from(active))
    encounter = draw(st.sampled_from(met))
    photo = draw(st.sampled_from(session.scalars(select(Photo).order_by(Photo.id)).all()))
    if kind == "merge":
        merge(session, "Ann", one, two)
    elif kind == "split":
        own = session.scalars(select(Encounter.id).where(Encounter.individual_id == one)).all()
        split(session, "Ann", one, own[:1])
    elif kind == "rename":
        rename_individual(session, "Ann", one, f"R{draw(st.integers(0, 10**6))}")
    elif kind == "confirm":
        decide(session, "Ann", encounter.id, "confirm", encounter.version, two)
    elif kind == "withdraw":
        withdraw_encounter(session, "Ann", encounter.id, encounter.version, "mistake")
    elif kind == "withdraw photo":
        withdraw_photo(session, "Ann", photo.id, session.get(Encounter, photo.encounter_id).version, "boat")
    elif kind == "restore":
        restore(session, "Ann", encounter=encounter.id)
    elif kind == "move":
        move_photos(session, "Ann", [photo.id], encounter.id)
    elif kind == "undo":
        done = session.scalars(select(Decision.id).where(Decision.kind != "undo").order_by(Decision.id)).all()
        undo(session, "Ann", draw(st.sampled_from(done)), any_user=True)
    else:
        for _ in range(250):  # more than any window of the audit log
            log_decision(session, "Ann", "reject", encounter.id, one)


ACTS = ("merge", "split", "rename", "confirm", "withdraw", "withdraw photo", "restore", "move", "undo", "undo", "many")


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.data())
def test_any_order_of_changes_and_undos_leaves_the_gallery_of_a_fresh_start(changed, data):
    matcher = Matcher(changed)
    for _ in range(data.draw(st.integers(1, 12))):
        try:
            with changed.writing() as session:
                act(session, data.draw(st.sampled_from(ACTS)), data.draw)
        except UserError:
            continue
        if data.draw(st.booleans()):
            matcher.refresh()
    matcher.refresh()
    fresh = Matcher(changed)
    assert gallery_of(matcher) == gallery_of(fresh)
    assert matcher.photos.known.counts() == fresh.photos.known.counts()
    with changed.reading() as session:
        asked = session.scalar(select(Encounter.id).where(Encounter.state == "undecided").order_by(Encounter.id))
    if asked is not None:
        try:
            answers = [match_encounter(each, "Ann", asked, k=8) for each in (matcher, fresh)]
        except UserError:
            return
        for answer in answers:
            answer.pop("id"), answer.pop("created_at")
        assert answers[0] == answers[1]


def test_withdrawn_photographs_are_neither_candidates_nor_asked_about(changed):
    with changed.writing() as session:
        rows = select(Encounter).where(Encounter.individual_id.is_not(None), Encounter.state != "withdrawn")
        encounter = session.scalar(rows.order_by(Encounter.id))
        number, name = encounter.id, encounter.name
        withdraw_encounter(session, "Ann", number, encounter.version, "mistake")
        photos = session.scalars(select(Photo.id).where(Photo.encounter_id == number)).all()
    matcher = Matcher(changed)
    codes = [matcher.photos.known.codes_[matcher.photos.rows[photo]] for photo in photos]
    assert set(codes) == {-1}
    with pytest.raises(UserError, match=f"encounter {name} is withdrawn: put it back"):
        match_encounter(matcher, "Ann", number)


def test_import_without_rule_or_with_one_is_told_by_its_options():
    from happywhale_nb.cli.main import main

    shown = CliRunner().invoke(main, ["data", "import", "--help"]).output
    assert "--encounters" in shown and "burst:MINUTES" in " ".join(shown.split())
