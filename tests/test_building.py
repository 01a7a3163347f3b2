"""A catalogue is built again: what is new is taken in, what people have decided stays, and what differs is told."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import select

from happywhale_nb.catalogue.build import build_catalogue
from happywhale_nb.catalogue.corrections import withdraw_encounter
from happywhale_nb.catalogue.decisions import decide, give_species, make_individual, merge, rename_individual
from happywhale_nb.catalogue.edits import edit_encounter, set_crop
from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.ingest import (
    folder_table,
    ingest_dataset,
    re_embed,
    recalibrate,
    take_boxes,
    update_metadata,
)
from happywhale_nb.catalogue.known_names import read_names
from happywhale_nb.catalogue.listings import annotated, sightings
from happywhale_nb.catalogue.photo_files import missing_photos
from happywhale_nb.catalogue.schema import Annotation, Decision, Embedding, Encounter, Individual, Photo
from happywhale_nb.catalogue.store import Catalogue, create_catalogue, pack_vector
from happywhale_nb.catalogue.training_photos import TrainedOn, mark_trained
from happywhale_nb.catalogue.undoing import undo
from happywhale_nb.catalogue.upload_photos import ingest_uploads
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.retrieval.embeddings import UNKNOWN_PART, image_embeddings
from happywhale_nb.retrieval.identifier import calibrate

RNG = np.random.default_rng(7)


def draw(path):
    """One photograph of noise, and no two alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (40, 60, 3), np.uint8)).save(path)


class Field:
    """A data folder whose tables grow, and the catalogue of it."""

    def __init__(self, root, database=""):
        self.database = database
        self.data, self.rows, self.embedder, self.told = root / "data", [], ColourEmbedder(), []
        (self.data / "test_images").mkdir(parents=True)
        self.folder = root / "catalogue"

    def add(self, image, name, **columns):
        """A photograph with a row of `train.csv`."""
        draw(self.data / "train_images" / image)
        self.rows.append({"image": image, "individual_id": name, "species": "fin_whale"} | columns)

    def build(self):
        """Build the catalogue, or build it again: how many photographs are new."""
        table = pd.DataFrame(self.rows).fillna("")
        table.to_csv(self.data / "train.csv", index=False)
        if not (self.folder / "catalogue.json").is_file():
            self.catalogue = create_catalogue(self.folder, self.data, database=self.database)
        dataset, self.told = read_dataset(self.data), []
        added = ingest_dataset(self.catalogue, self.embedder, dataset, "colours", log=self.told.append)
        self.told += update_metadata(self.catalogue, dataset, "Ann")
        self.catalogue.choose_model(self.embedder.fingerprint)
        return added

    def who(self):
        """Name of the individual by photograph."""
        with self.catalogue.reading() as session:
            table = sightings(session)
        return dict(zip(table["photo"], table["individual"], strict=True))

    def number(self, name):
        """Number of an individual."""
        with self.catalogue.reading() as session:
            return session.scalar(select(Individual.id).where(Individual.name == name))

    def met(self, image):
        """The encounter of a photograph."""
        with self.catalogue.reading() as session:
            return session.scalar(select(Encounter).join(Photo).where(Photo.name == image))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Three animals, met twice each, in a catalogue."""
    made = Field(tmp_path_factory.mktemp("first"))
    for name, at in (("Hope", "a"), ("Nova", "b"), ("Vega", "c")):
        for i in range(2):
            when = {"encounter": f"{name} {i}", "date": f"2019-07-1{i}", "side": "left", "place": "Ness"}
            made.add(f"{at}{i}.jpg", name, **when)
    assert made.build() == 6 and made.told == []
    made.catalogue.close()
    return made


@pytest.fixture
def field(first, tmp_path):
    """A copy of it."""
    made = Field(tmp_path)
    shutil.copytree(first.data, made.data, dirs_exist_ok=True)
    shutil.copytree(first.folder, made.folder)
    made.rows, made.catalogue = [dict(row) for row in first.rows], Catalogue(made.folder)
    made.catalogue.move_data(made.data)
    yield made
    made.catalogue.close()


def test_build_again_without_a_change_finds_nothing_and_says_nothing(field):
    assert field.build() == 0 and field.told == []


def test_build_after_a_rename_knows_the_animal_by_its_old_and_its_new_name(field):
    with field.catalogue.writing() as session:
        rename_individual(session, "Ann", field.number("Hope"), "Lyra")
    field.add("a2.jpg", "Hope", encounter="new 1")
    field.add("a3.jpg", "Lyra", encounter="new 2")
    assert field.build() == 2 and field.told == []
    assert {field.who()[f"a{i}.jpg"] for i in range(4)} == {"Lyra"} and field.number("Hope") is None


def test_build_after_a_merge_gives_new_photographs_to_the_animal_that_stays(field):
    with field.catalogue.writing() as session:
        merge(session, "Ann", field.number("Nova"), field.number("Vega"))
        rename_individual(session, "Ann", field.number("Vega"), "Lyra")
    field.add("b2.jpg", "Nova", encounter="new 1")
    field.add("b3.jpg", "Nova", encounter="Nova 1")
    field.add("c3.jpg", "Vega")
    assert field.build() == 3 and field.told == []
    assert {field.who()[image] for image in ("b0.jpg", "b2.jpg", "b3.jpg", "c0.jpg", "c3.jpg")} == {"Lyra"}


@pytest.mark.rest
def test_build_tells_by_the_known_photographs_whom_a_name_means_that_two_animals_had(field):
    with field.catalogue.writing() as session:
        rename_individual(session, "Ann", field.number("Hope"), "Lyra")
        rename_individual(session, "Ann", field.number("Nova"), "Hope")
    field.add("a2.jpg", "Hope", encounter="new 1")  # the table still means the first Hope
    field.add("b2.jpg", "Nova", encounter="new 2")
    assert field.build() == 2 and field.told == []
    assert (field.who()["a2.jpg"], field.who()["b2.jpg"]) == ("Lyra", "Hope")


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A catalogue without animals."""
    made = create_catalogue(tmp_path_factory.mktemp("names") / "catalogue", tmp_path_factory.mktemp("data"))
    yield made
    made.close()


STEPS = st.lists(
    st.tuples(st.sampled_from(["rename", "merge", "undo"]), st.integers(0, 3), st.integers(0, 5)), max_size=8
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_names_of_a_table_lead_to_the_animals_of_its_photographs_after_any_history(empty, steps):
    with empty.reading() as session:
        start = f"x{len(session.scalars(select(Individual)).all())}"
    pool = [f"{start} {letter}" for letter in "abcdef"]  # names are given away and taken again
    with empty.writing() as session:
        animals = [make_individual(session, name, "").id for name in pool[:4]]
        done = []
        for kind, one, other in steps:
            try:
                with session.begin_nested():
                    if kind == "rename":
                        done.append(rename_individual(session, "Ann", animals[one], pool[other])[0].id)
                    elif kind == "merge":
                        done.append(merge(session, "Ann", animals[one], animals[other % 4])[0].id)
                    elif done:
                        undo(session, "Ann", done.pop())
            except UserError:
                continue
        names = read_names(session)
        rows = {row.id: row for row in session.scalars(select(Individual))}
    for number, name in zip(animals, pool, strict=False):
        stays = rows[number]
        while stays.merged_into_id is not None:
            stays = rows[stays.merged_into_id]
        assert names.find(name, {stays.id: 1}) == stays.id  # by the photographs that the table calls so
        assert names.find(stays.name) == stays.id


def test_name_whose_making_was_undone_means_the_animal_that_had_it_before(empty):
    with empty.writing() as session:
        first = make_individual(session, "Halley", "")
        rename_individual(session, "Ann", first.id, "Encke")
        second = make_individual(session, "Halley", "")
        assert read_names(session).find("Halley") == second.id
        second.active = False
        session.flush()
        assert read_names(session).find("Halley") == first.id
        first.active = False
        session.flush()
        assert read_names(session).find("Encke") == first.id


def test_build_adds_a_photograph_to_its_old_encounter_whatever_people_decided_there(field):
    met = field.met("a0.jpg")
    with field.catalogue.writing() as session:
        decide(session, "Ann", met.id, "confirm", met.version, individual_id=field.number("Vega"))
    field.add("a2.jpg", "Hope", encounter="Hope 0", date="2019-07-10")
    assert field.build() == 1
    assert field.who()["a2.jpg"] == "Vega" and field.met("a2.jpg").id == met.id
    line = "changed by users in the catalogue, so different from the folder's tables: individual_id (2 photographs)"
    assert field.told == [line]


def test_build_keeps_what_people_edited_and_says_so_apart_from_what_the_tables_changed(field):
    met, other = field.met("a0.jpg"), field.met("b0.jpg")
    with field.catalogue.reading() as session:
        photo = session.scalar(select(Photo.id).where(Photo.name == "a0.jpg"))
    with field.catalogue.writing() as session:
        edit_encounter(session, "Ann", met.id, met.version, {"date": "2019-08-01", "sides": {photo: "right"}})
    field.rows[2]["place"] = "Skerry"
    for _ in range(2):  # it is told until one of the two gives way
        assert field.build() == 0
        assert field.told[0].endswith("tables: date (1 photographs), side (1 photographs)")
        assert field.told[1].startswith("the folder's tables differ from the catalogue in place (1 photographs)")
    assert field.met("a0.jpg").date == "2019-08-01" and field.met("b0.jpg").place == other.place
    with field.catalogue.reading() as session:
        assert session.scalar(select(Annotation.side).where(Annotation.photo_id == photo)) == "right"


@pytest.mark.rest
def test_build_raises_no_alarm_where_photographs_of_one_encounter_have_times_of_their_own(tmp_path):
    field = Field(tmp_path)
    for i in range(3):
        field.add(f"{i}.jpg", "Hope", encounter="one", date=f"2019-07-13T14:0{i}", latitude=f"57.{i}", longitude="4")
    assert field.build() == 3 and field.told == []
    assert field.build() == 0 and field.told == []
    with field.catalogue.writing() as session:  # as in a catalogue of before
        session.scalars(select(Photo)).first().given = None
    assert field.build() == 0 and field.told == []
    field.catalogue.close()


@pytest.mark.rest
def test_build_takes_the_name_that_a_table_learned_for_an_encounter_nobody_has_decided(field):
    draw(field.data / "test_images" / "x.jpg")
    draw(field.data / "test_images" / "y.jpg")
    assert field.build() == 2 and field.who()["x.jpg"] == ""
    seen = field.met("y.jpg")
    with field.catalogue.writing() as session:
        decide(session, "Ann", seen.id, "unsure", seen.version)
    for image in ("x.jpg", "y.jpg"):
        (field.data / "test_images" / image).rename(field.data / "train_images" / image)
        field.rows.append({"image": image, "individual_id": "Nova", "species": "fin_whale"})
    assert field.build() == 0
    assert (field.who()["x.jpg"], field.who()["y.jpg"]) == ("Nova", "")
    assert field.told[0].startswith("2 photographs (train_images/x.jpg, train_images/y.jpg) were renamed or moved")
    assert "1 encounters now have the individual named in the tables" in field.told
    with field.catalogue.reading() as session:
        notes = session.scalars(select(Decision.note).where(Decision.kind == "confirm")).all()
    assert notes == ["(from the data folder)"]


@pytest.mark.rest
def test_build_does_not_add_a_photograph_that_was_uploaded_before(field):
    draw(field.data / "train_images" / "u.jpg")
    data = (field.data / "train_images" / "u.jpg").read_bytes()
    ingest_uploads(field.catalogue, field.embedder, "Ann", [("IMG_1.jpg", data)])
    field.rows.append({"image": "u.jpg", "individual_id": "Hope", "species": "fin_whale"})
    assert field.build() == 0
    assert field.told[0] == "1 photographs (train_images/u.jpg) were uploaded before; the catalogue keeps their records"


@pytest.mark.rest
def test_build_gives_a_new_photograph_of_a_withdrawn_encounter_one_of_its_own(field):
    met = field.met("a0.jpg")
    with field.catalogue.writing() as session:
        withdraw_encounter(session, "Ann", met.id, met.version, "mistake")
    field.add("a2.jpg", "Hope", encounter="Hope 0")
    assert field.build() == 1 and field.told == []
    assert field.met("a2.jpg").name == "train_images/a2.jpg" and field.who()["a2.jpg"] == "Hope"


class Counting(ColourEmbedder):
    """Counts the boxes that it is given."""

    def __init__(self):
        self.boxes = 0

    def crop_boxes(self, images, boxes=None):
        self.boxes += 0 if boxes is None else len(boxes)
        return super().crop_boxes(images, boxes)


@pytest.mark.rest
def test_build_looks_at_each_box_of_a_photograph_once_and_at_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr("happywhale_nb.catalogue.ingest.LOT", 4)
    field = Field(tmp_path)
    field.embedder = Counting()
    for i in range(20):
        field.add(f"{i}.jpg", "Hope")
    for source in ("one", "two", "three"):
        boxes = pd.DataFrame({"image": [f"{i}.jpg" for i in range(20)], "xmin": 1, "ymin": 1, "xmax": 30, "ymax": 30})
        (field.data / "boxes").mkdir(exist_ok=True)
        boxes.to_csv(field.data / "boxes" / f"{source}.csv", index=False)
    assert field.build() == 20
    assert field.embedder.boxes == 2 * 60  # once for the crops, once for the embeddings
    field.catalogue.close()


@pytest.mark.rest
def test_build_makes_one_encounter_of_a_known_animals_day_and_none_of_unnamed_photographs(tmp_path):
    field = Field(tmp_path)
    for i in range(4):
        field.add(f"{i}.jpg", "Hope", date=f"2019-07-13T14:0{i}" if i < 3 else "2019-07-14")
    for i in (4, 5):
        draw(field.data / "test_images" / f"{i}.jpg")
    later = pd.DataFrame({"image": ["4.jpg", "5.jpg"], "date": ["2019-07-13"] * 2})
    later.to_csv(field.data / "encounters.csv", index=False)
    assert field.build() == 6
    names = [field.met(f"{i}.jpg").name for i in range(6)]
    assert names[:4] == ["Hope 2019-07-13"] * 3 + ["Hope 2019-07-14"]
    assert names[4:] == ["test_images/4.jpg", "test_images/5.jpg"] and field.who()["5.jpg"] == ""
    field.catalogue.close()


@pytest.mark.postgres
def test_build_again_on_postgresql_takes_in_what_is_new(postgres, tmp_path):
    field = Field(tmp_path, postgres())
    field.add("a.jpg", "Hope", date="2019-07-13", side="left")
    field.add("b.jpg", "Nova", encounter="one")
    assert field.build() == 2 and field.told == []
    with field.catalogue.writing() as session:
        rename_individual(session, "Ann", field.number("Hope"), "Lyra")
    met = field.met("b.jpg")
    with field.catalogue.writing() as session:
        edit_encounter(session, "Ann", met.id, met.version, {"date": "2019-08-01"})
    field.rows[1]["date"] = "2019-07-31"
    field.add("c.jpg", "Hope", date="2019-07-13", latitude="57.1", longitude="-4.03")
    shutil.move(field.data / "train_images" / "b.jpg", field.data / "train_images" / "d.jpg")
    field.rows[1]["image"] = "d.jpg"
    assert field.build() == 1 and field.who() == {"a.jpg": "Lyra", "c.jpg": "Lyra", "d.jpg": "Nova"}
    assert "1 photographs (train_images/d.jpg) were renamed or moved" in field.told[0] and len(field.told) == 3
    assert field.told[1] == "date, place, species or position of 1 encounters filled in"
    assert field.told[2].endswith("so different from the folder's tables: date (1 photographs)")
    assert mark_trained(field.catalogue, field.embedder.fingerprint, TrainedOn(names=frozenset(["a.jpg"]))) == 1
    field.catalogue.close()


def test_a_file_under_the_names_of_two_individuals_is_told(field):
    for name, whose in (("copy.jpg", "Nova"), ("same.jpg", "Hope")):
        shutil.copy(field.data / "train_images" / "a0.jpg", field.data / "train_images" / name)
        field.rows.append({"image": name, "individual_id": whose, "species": "fin_whale"})
    assert field.build() == 2
    said = "(train_images/a0.jpg is Hope, train_images/copy.jpg is Nova)"
    assert [line for line in field.told if f"1 photograph is there under several individuals {said}" in line]


def test_a_refused_first_build_leaves_nothing_and_bars_can_be_hidden(field, tmp_path, capsys):
    names = [row["image"] for row in field.rows]
    np.save(tmp_path / "mine.npy", RNG.standard_normal((len(names), 8)))
    (tmp_path / "mine.txt").write_text("\n".join(names))
    photo, place = field.data / "train_images" / names[0], tmp_path / "new" / "place"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:100])
    (tmp_path / "new").mkdir()

    def build():
        return build_catalogue(place, field.data, tmp_path / "mine.npy", agree=lambda licence: True, progress=False)

    with pytest.raises(UserError, match=f"1 photographs cannot be used:\n.*{names[0]}"):
        build()
    assert not place.exists()
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    with pytest.raises(UserError):
        build()
    assert [path.name for path in place.iterdir()] == ["notes.txt"]
    (place / "model").mkdir()
    (place / "model" / "weights.txt").write_text("mine")
    with pytest.raises(UserError):
        build()
    assert (place / "model" / "weights.txt").is_file()  # a folder that was there before is not ours to remove
    shutil.rmtree(place)
    photo.write_bytes(whole)
    capsys.readouterr()
    built = build()
    assert built.added == len(names) and capsys.readouterr().err == ""
    draw(field.data / "train_images" / "later.jpg")
    with pytest.raises(UserError, match="have no vector"):
        field.rows.append({"image": "later.jpg", "individual_id": "Hope", "species": "fin_whale"})
        pd.DataFrame(field.rows).fillna("").to_csv(field.data / "train.csv", index=False)
        build()  # without a vector of later.jpg
    assert (place / "catalogue.json").is_file()
    built.catalogue.close()


@pytest.mark.rest
def test_calibration_takes_photographs_of_one_day_for_one_encounter_also_in_an_old_catalogue(field, monkeypatch):
    given = {}
    with field.catalogue.writing() as session:
        for photo, met in session.execute(select(Photo, Encounter).join(Encounter)).all():
            met.name, photo.given, met.date = f"train_images/{photo.name}", None, "2019-07-13"
    monkeypatch.setattr(
        "happywhale_nb.catalogue.ingest.calibrate",
        lambda *data, warn: given.update(units=data[2]) or calibrate(*data, warn=warn),
    )
    recalibrate(field.catalogue)
    assert len(set(given["units"])) == 3 and list(given["units"]) == sorted(given["units"])


def test_all_faults_of_a_folder_are_told_at_once_and_nothing_is_made(tmp_path):
    field = Field(tmp_path)
    field.add("a.jpg", "Hope", date="31/02/2019", encounter="one")
    field.add("b.jpg", "Nova", date="2019-07-13", side="upside", encounter="one")
    with pytest.raises(UserError) as told:
        field.build()
    text = str(told.value)
    assert "train.csv, row 2" in text and "train.csv, row 3" in text and "encounter one: would show 2 animals" in text
    with field.catalogue.reading() as session:
        assert session.scalar(select(Photo.id)) is None


def test_photographs_of_one_name_in_both_parts_have_their_own_boxes_and_vectors(tmp_path):
    field = Field(tmp_path)
    field.add("IMG_1.jpg", "Hope")
    draw(field.data / "test_images" / "IMG_1.jpg")
    boxes = [("train_images/IMG_1.jpg", 0, 0, 20, 20), ("test_images/IMG_1.jpg", 30, 10, 60, 40)]
    pd.DataFrame(boxes, columns=["image", "xmin", "ymin", "xmax", "ymax"]).to_csv(field.data / "boxes.csv", index=False)
    assert field.build() == 2
    with field.catalogue.reading() as session:
        rows = session.execute(annotated(Embedding).join(Embedding, Embedding.annotation_id == Annotation.id)).all()
    for photo, _, crop, embedding in rows:
        known = {
            f"train_images/{name}" if "train" in place else f"test_images/{name}": box
            for place, *box in boxes
            for name in ["IMG_1.jpg"]
        }
        assert [crop.x0, crop.y0, crop.x1, crop.y1] == known[photo.path]
        assert embedding.sha256 == photo.sha256
    first, second = rows
    assert first[3].vector != second[3].vector and first[0].sha256 != second[0].sha256
    for again in range(2):  # the second time by the catalogue's own boxes
        with field.catalogue.writing() as session:
            for embedding in session.scalars(select(Embedding)):
                embedding.box = "?"
        assert re_embed(field.catalogue, field.embedder, "colours") == 2, again
        with field.catalogue.reading() as session:
            vectors = session.scalars(select(Embedding.vector).order_by(Embedding.annotation_id)).all()
        assert vectors == [first[3].vector, second[3].vector]
    field.catalogue.close()


def test_embeddings_without_parts_are_no_photographs_that_two_parts_have(tmp_path):
    field = Field(tmp_path)
    for image in ("IMG_1.jpg", "IMG_2.jpg"):
        field.add(image, "Hope")
    draw(field.data / "test_images" / "IMG_1.jpg")
    pd.DataFrame(field.rows).to_csv(field.data / "train.csv", index=False)
    vectors = np.eye(2, field.embedder.width, dtype=np.float32)
    stored = image_embeddings(UNKNOWN_PART, ["IMG_1.jpg", "IMG_2.jpg"], vectors)
    made = create_catalogue(field.folder, field.data)
    assert ingest_dataset(made, field.embedder, read_dataset(field.data), "colours", stored) == 3
    with made.reading() as session:
        rows = select(Photo.path, Embedding.vector).join(Annotation, Annotation.photo_id == Photo.id)
        kept = dict(session.execute(rows.join(Embedding, Embedding.annotation_id == Annotation.id)).all())
    made.close()
    own = {path for path, vector in kept.items() if vector in {pack_vector(each) for each in vectors}}
    assert own == {"train_images/IMG_2.jpg"} and len(set(kept.values())) == 3


class Other(ColourEmbedder):
    """Another model."""

    fingerprint = "07e4" * 4

    def embed(self, paths, boxes=None, quiet=True):
        return -super().embed(paths, boxes, quiet)


def test_box_drawn_while_another_model_is_in_use_leaves_no_stale_embedding(field):
    re_embed(field.catalogue, Other(), "other")
    field.catalogue.choose_model(Other.fingerprint)
    with field.catalogue.reading() as session:
        photo = session.scalar(select(Photo).where(Photo.name == "a0.jpg"))
    set_crop(field.catalogue, Other(), "Ann", photo.id, (10, 5, 50, 30), field.met("a0.jpg").version)
    assert re_embed(field.catalogue, Other(), "other") == 0
    assert re_embed(field.catalogue, field.embedder, "colours") == 1
    assert re_embed(field.catalogue, field.embedder, "colours") == 0
    box = pd.DataFrame([["a0.jpg", "person", 10, 5, 50, 30, 1.0, 60, 40]])
    box.columns = ["image", "source", "x0", "y0", "x1", "y1", "confidence", "W", "H"]
    shown = field.embedder.embed([field.catalogue.path(photo)], box)[0]
    with field.catalogue.reading() as session:
        rows = select(Embedding).join(Annotation).where(Annotation.photo_id == photo.id)
        vectors = {row.box: row.vector for row in session.scalars(rows)}
        both = session.scalars(rows).all()
    assert list(vectors) == ["10 5 50 30 60 40"] and len(both) == 2
    assert pack_vector(shown) in {row.vector for row in both} and pack_vector(-shown) in {row.vector for row in both}


def test_boxes_that_come_after_the_build_are_taken_where_no_person_has_decided(field):
    """A table of boxes made later reaches photographs that the catalogue has; a removed box stays removed."""
    with field.catalogue.reading() as session:
        numbers = dict(session.execute(select(Photo.name, Photo.id)).all())
    for box in ((10, 5, 50, 30), None):
        set_crop(field.catalogue, field.embedder, "Ann", numbers["a1.jpg"], box, field.met("a1.jpg").version)
    boxes = pd.DataFrame({"image": ["a0.jpg", "a1.jpg"], "xmin": 1, "ymin": 2, "xmax": 30, "ymax": 32})
    (field.data / "boxes").mkdir()
    boxes.to_csv(field.data / "boxes" / "ours.csv", index=False)
    seen, dataset = field.met("a0.jpg").version, read_dataset(field.data)
    assert take_boxes(field.catalogue, field.embedder, dataset) == 1
    assert re_embed(field.catalogue, field.embedder, "colours") == 1
    assert take_boxes(field.catalogue, field.embedder, dataset) == 0
    with field.catalogue.reading() as session:
        crops = {photo.name: (crop.source, crop.x0) for photo, _, crop in session.execute(annotated()).all()}
    assert crops["a0.jpg"] == ("ours", 1) and {crops[name] for name in crops if name != "a0.jpg"} == {("whole", None)}
    assert field.met("a0.jpg").version == seen + 1, "somebody who looks at the encounter is told"
    with field.catalogue.writing() as session:
        for _, _, crop in session.execute(annotated()).all():
            crop.source = "ours"
    field.embedder.crop_boxes = None  # where every photograph has a box, nothing is chosen
    assert take_boxes(field.catalogue, field.embedder, dataset) == 0


def test_training_photographs_are_known_by_content_whatever_they_are_called(field):
    with field.catalogue.reading() as session:
        digests = dict(session.execute(select(Photo.name, Photo.sha256)).all())
    assert mark_trained(field.catalogue, field.embedder.fingerprint, TrainedOn(frozenset([digests["b1.jpg"]]))) == 1
    old = TrainedOn.of(["a0.jpg", digests["c0.jpg"]])
    assert mark_trained(field.catalogue, field.embedder.fingerprint, old) == 3
    with field.catalogue.reading() as session:
        rows = select(Photo.name).join(Annotation).join(Embedding).where(Embedding.trained)
        assert sorted(session.scalars(rows)) == ["a0.jpg", "c0.jpg"]
    assert mark_trained(field.catalogue, field.embedder.fingerprint, None) == 0


@pytest.mark.rest
def test_status_and_relink_find_a_folder_that_was_moved_and_files_that_were_renamed(field, tmp_path):
    def run(*words):
        return CliRunner().invoke(main, ["catalogue", *map(str, words)])

    assert "all photographs are found" in run("status", field.folder).output
    moved = shutil.move(field.data, tmp_path / "disk" / "2019")
    told = run("status", field.folder).output
    assert "6 photographs not found; where is the folder?" in told and "6 photographs of" in told
    empty = tmp_path / "empty"
    empty.mkdir()
    result = run("relink", field.folder, "--photos", empty)
    assert result.exit_code == 2 and "6 photographs not found in" in result.output + result.stderr
    assert (
        "6 of 6 photographs that were not found would be there"
        in run("relink", field.folder, "--photos", tmp_path / "disk", "--dry-run").output
    )
    assert (
        "6 of 6 photographs that were not found are there"
        in run("relink", field.folder, "--photos", tmp_path / "disk").output
    )
    again = Catalogue(field.folder)
    assert again.data == Path(moved) and missing_photos(again) == []
    again.close()


@pytest.mark.rest
def test_build_of_a_folder_that_was_moved_is_recognised_by_its_photographs(field, tmp_path, monkeypatch):
    from happywhale_nb.catalogue import build

    monkeypatch.setattr(build, "_load_embedder", lambda model, detector: field.embedder)
    monkeypatch.setattr(build, "check_model", lambda *files: None)
    told = []
    recalibrate(field.catalogue)
    moved = shutil.move(field.data, tmp_path / "moved")
    dataset = read_dataset(moved)
    opened = build._open_or_create(field.folder, dataset, "", "", told.append)
    assert opened.data == Path(moved) and "no longer exists" in told[0]
    opened.close()
    draw(tmp_path / "other" / "train_images" / "a0.jpg")
    (tmp_path / "other" / "train.csv").write_text("image,species,individual_id\na0.jpg,fin_whale,Hope\n")
    shutil.rmtree(moved)
    with pytest.raises(UserError, match="was built from"):
        build._open_or_create(field.folder, read_dataset(tmp_path / "other"), "", "", told.append)


@pytest.mark.rest
def test_folder_table_reads_encounters_as_spreadsheets_save_them(tmp_path):
    field = Field(tmp_path)
    field.add("a.jpg", "Hope")
    pd.DataFrame(field.rows).to_csv(field.data / "train.csv", index=False)
    text = "sep=;\nImage;Date;Latitude;Longitude;Side\na.jpg;13/07/2019;57,68;-3,5;L\n"
    (field.data / "encounters.csv").write_bytes(text.encode("cp1252"))
    (row,) = folder_table(read_dataset(field.data)).itertuples()
    assert (row.date, row.side, row.latitude, row.longitude) == ("2019-07-13", "left", "57.68", "-3.5")


def test_species_that_people_gave_an_individual_stays_when_the_catalogue_is_built_again(field):
    with field.catalogue.writing() as session:
        met = session.scalars(select(Encounter).where(Encounter.individual_id.is_not(None))).first()
        give_species(session, "Ann", met.individual_id, "" if met.species else "blue_whale")
        number, species = met.id, met.species
    field.build()
    with field.catalogue.reading() as session:
        assert session.get(Encounter, number).species == species
