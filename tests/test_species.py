"""The species of new animals: evidence against plain loops, honest probabilities, and what a catalogue says of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_api import client, jpeg, upload

from happywhale_nb.catalogue.ingest import recalibrate
from happywhale_nb.catalogue.matching import Matcher, match_encounter, mistyped_species, note_sampling
from happywhale_nb.catalogue.schema import Annotation, Embedding, Encounter, Individual, Model, Photo
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.retrieval.identifier import Calibration
from happywhale_nb.retrieval.species import (
    NEAREST,
    combine_species,
    doubtful_species,
    evidence_of_others,
    fit_species,
    species_evidence,
    surprise,
)
from happywhale_nb.retrieval.vectors import unit_rows

KINDS = ["beluga", "fin_whale", "humpback_whale"]


def drawn(spread=1.0, animals=5, photographs=8, seed=0):
    """Embeddings, individuals and species: animals around their species' direction."""
    rng, n = np.random.default_rng(seed), animals * photographs
    centre = np.repeat(rng.normal(size=(3, 24)), n, axis=0)
    animal = np.repeat(rng.normal(size=(3 * animals, 24)), photographs, axis=0)
    vectors = centre + spread * animal + 0.4 * rng.normal(size=(3 * n, 24))
    return vectors, np.repeat([f"a{i}" for i in range(3 * animals)], photographs), np.repeat(KINDS, n)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 4))
def test_evidence_is_the_mean_of_the_nearest_that_count(seed, photographs, n_species):
    rng = np.random.default_rng(seed)
    cosines, species = rng.uniform(-1, 1, (4, photographs)), rng.integers(-1, n_species, photographs)
    cosines[rng.random(cosines.shape) < 0.3] = -np.inf
    found = species_evidence(cosines, species, n_species)
    for i in range(4):
        for kind in range(n_species):
            own = sorted(c for c, s in zip(cosines[i], species, strict=True) if s == kind and np.isfinite(c))[-NEAREST:]
            assert found[i, kind] == pytest.approx(np.mean(own)) if own else found[i, kind] == -np.inf


def test_evidence_of_others_never_sees_the_own_animal():
    vectors, animals, species = drawn()
    owners, kinds = (np.unique(names, return_inverse=True)[1] for names in (animals, species))
    rows, unit = np.arange(len(vectors)), unit_rows(vectors)
    found = evidence_of_others(unit, owners, kinds, 3, rows, block=7)
    for row in rows[::17]:
        others = owners != owners[row]
        expected = species_evidence(unit[[row]] @ unit[others].T, kinds[others], 3)
        np.testing.assert_allclose(found[row], expected[0], atol=1e-6)


@pytest.mark.parametrize("spread", [0.5, 2.0, 4.0])
def test_probabilities_are_as_high_as_they_are_right(spread):
    model = fit_species(*drawn(spread, animals=12))
    assert model.told and abs(model.accuracy - model.confidence) < 0.1 and model.ece < 0.15
    vectors, animals, species = drawn(spread, animals=12)
    owners, kinds = (np.unique(names, return_inverse=True)[1] for names in (animals, species))
    evidence = evidence_of_others(unit_rows(vectors), owners, kinds, 3, np.arange(len(vectors)))
    likely = model.probabilities(evidence)
    np.testing.assert_allclose(likely.sum(axis=1), 1)
    assert (likely.argmax(axis=1) == kinds).mean() == pytest.approx(model.accuracy)
    doubt = 1 / (2 * 36 + 2)
    told = [surprise(evidence, kinds, model.temperature * factor, doubt) for factor in (1, 0.8, 1.25)]
    assert told[0] == min(told), "no temperature nearby is better"
    assert likely.max(axis=1).mean() < 1 - doubt / 4, "36 animals do not make the next one certain"


def test_species_that_no_query_can_test_are_named_and_too_few_photographs_are_not_told():
    vectors, animals, species = drawn()
    alone = np.where(animals == "a0", "gray_whale", species)
    model = fit_species(vectors, animals, alone)
    assert model.told and model.alone == ("gray_whale",) and model.individuals == 14
    for kinds in (np.full(len(species), "beluga"), np.full(len(species), "")):
        model = fit_species(vectors, animals, kinds)
        assert not model.told and "two species with two individuals" in model.note
        assert doubtful_species(model, vectors, animals, kinds) == []
    few = fit_species(vectors[::8], animals[::8], species[::8])
    assert not few.told and "20 photographs, and there are 15" in few.note
    assert Calibration.from_dict(Calibration(species=few).as_dict()).species.note == few.note


def test_photographs_of_the_training_set_are_no_queries_where_there_are_others():
    vectors, animals, species = drawn()
    model = fit_species(vectors, animals, species, held_out=np.arange(len(vectors)) % 4 == 0)
    assert model.photographs == 30
    assert fit_species(vectors, animals, species, held_out=np.arange(len(vectors)) < 19).photographs == 120
    of_three = np.isin(animals, np.unique(animals)[:3])  # too few animals to measure on others than it is fitted to
    assert of_three.sum() >= 20 and fit_species(vectors, animals, species, held_out=of_three).photographs == 120


def test_candidates_and_photographs_agree_on_a_species():
    said = combine_species({"a": 0.2, "b": 0.8}, ["a", "c"], [0.3, 0.5])
    assert said == {"c": pytest.approx(0.5), "a": pytest.approx(0.34), "b": pytest.approx(0.16)}
    assert combine_species({"a": 1.0}, ["a"], [1.0]) == {"a": 1.0}


# --- in a catalogue


def give_kinds(catalogue, kinds):
    """Species of individuals and their encounters: the n-th individual has `kinds(n)`."""
    with catalogue.writing() as session:
        for n, individual in enumerate(session.query(Individual).order_by(Individual.id)):
            individual.species = kinds(n)
            for encounter in session.query(Encounter).filter_by(individual_id=individual.id):
                encounter.species, encounter.version = kinds(n), encounter.version + 1


@pytest.fixture
def told(mine):
    """A catalogue whose embeddings lie by species: of even individuals at one place, of odd ones at another."""
    rng = np.random.default_rng(0)
    with mine.writing() as session:
        width = session.query(Model).one().width
        places = rng.normal(size=(2, width))
        order = {row.id: n for n, row in enumerate(session.query(Individual).order_by(Individual.id))}
        rows = session.query(Embedding, Encounter).join(Annotation, Annotation.id == Embedding.annotation_id)
        rows = rows.join(Photo, Photo.id == Annotation.photo_id).join(Encounter, Encounter.id == Photo.encounter_id)
        for embedding, encounter in rows:
            n = order.get(encounter.individual_id, 0)
            vector = places[n % 2] + 0.5 * np.random.default_rng(n).normal(size=width) + 0.2 * rng.normal(size=width)
            embedding.vector = (vector / np.linalg.norm(vector)).astype("<f4").tobytes()
    give_kinds(mine, lambda n: KINDS[n % 2])
    recalibrate(mine)
    return mine


def test_answer_tells_the_species_also_of_a_new_animal(told, colours):
    with client(told, colours) as page:
        known = page.get("/api/encounters", params={"state": "confirmed"}).json()["encounters"][0]
        answer = page.post(f"/api/encounters/{known['id']}/answers", json={}).json()
        assert answer["species"][0]["name"] == known["species"]
        assert sum(each["probability"] for each in answer["species"]) == pytest.approx(1, abs=0.05)
        (new,) = [each for each in answer["candidates"] if each["is_new"]]
        assert new["species"]["name"] == known["species"] and new["species"]["probability"] > 0.8
        assert all(each["species"] is None for each in answer["candidates"] if not each["is_new"])
        assert "recorded as" not in answer["note"]
        made = upload(page, ("new.jpg", jpeg(3))).json()
        answer = page.post(f"/api/encounters/{made['id']}/answers", json={}).json()
        assert {each["name"] for each in answer["species"]} <= set(KINDS)
        assert page.get(f"/api/answers/{answer['id']}").json()["species"] == answer["species"]


def test_mistyped_species_are_found_and_said(told):
    matcher = Matcher(told)
    assert mistyped_species(matcher) == []
    give_kinds(told, lambda n: KINDS[1] if n == 2 else KINDS[n % 2])
    recalibrate(told)
    (row,) = mistyped_species(matcher)
    assert (row["species"], row["likelier"]) == (KINDS[1], KINDS[0]) and row["probability"] < 0.1
    with told.reading() as session:
        number = session.query(Encounter).filter_by(individual_id=row["id"]).first().id
    answer = match_encounter(matcher, "Ann", number)
    assert "recorded as fin whale, but" in answer["note"] and "probably a beluga" in answer["note"]
    done = CliRunner().invoke(main, ["catalogue", "species", str(told.folder)])
    assert done.exit_code == 0, done.output
    assert f"{row['individual']}: recorded as fin_whale" in done.output
    assert "1 individual whose species may be mistyped" in done.output


def test_an_animal_alone_in_its_species_is_neither_doubted_nor_listed(told):
    give_kinds(told, lambda n: "narwhal" if n == 2 else KINDS[n % 2])
    recalibrate(told)
    matcher = Matcher(told)
    assert matcher.model.calibration.species.alone == ("narwhal",)
    assert "narwhal" not in {row["species"] for row in mistyped_species(matcher)}
    with told.reading() as session:
        number = session.query(Encounter).filter_by(species="narwhal").first().id
    assert "recorded as" not in match_encounter(matcher, "Ann", number)["note"]


def test_catalogue_of_one_species_or_of_before_says_nothing_of_species(told, colours):
    give_kinds(told, lambda n: "beluga")
    recalibrate(told)
    with pytest.raises(UserError, match="two species with two individuals each"):
        mistyped_species(Matcher(told))
    with told.writing() as session:
        row = session.query(Model).one()
        row.calibration = {name: value for name, value in row.calibration.items() if name != "species"}
    with pytest.raises(UserError, match="species are not predicted"):
        mistyped_species(Matcher(told))
    with client(told, colours) as page:
        number = page.get("/api/encounters").json()["encounters"][0]["id"]
        answer = page.post(f"/api/encounters/{number}/answers", json={}).json()
        assert answer["species"] == [] and all(each["species"] is None for each in answer["candidates"])


def test_a_place_or_season_that_is_hardly_sampled_is_said(mine):
    places, dates = np.array(["Skye"] * 3 + ["Moray"] * 1500), np.array(["2019-08-01"] * 3 + ["2019-02-01"] * 1500)
    facts = {"place": places.astype(object), "date": dates.astype(object)}
    many = SimpleNamespace(photos=SimpleNamespace(facts=facts, known=SimpleNamespace(codes_=np.zeros(1503, int))))
    note = note_sampling(many, "so", "Skye", "2019-08-01")
    assert note.startswith("so; 3 of 1,503 known photographs are from Skye: probabilities were learnt elsewhere; ")
    assert "3 of 1,503 known photographs are of July to September" in note
    assert note_sampling(many, "so", "Moray", "2019-02-01") == "so"
    assert note_sampling(many, "", "", "") == "" == note_sampling(many, "", "", "2019")
    with mine.writing() as session:
        encounter = session.query(Encounter).first()
        encounter.place, encounter.date, number = "Skye", "2019-08-01", encounter.id
    assert "Skye" not in match_encounter(Matcher(mine), "Ann", number)["note"], "48 photographs tell nothing"
