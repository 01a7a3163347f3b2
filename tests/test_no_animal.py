"""Photographs without an animal: the law of the limit, old files, and the blue picture in catalogue, API and study."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from happywhale_nb.catalogue.decisions import update_encounter
from happywhale_nb.catalogue.example import ColourEmbedder, mean_colours
from happywhale_nb.catalogue.identify import identify
from happywhale_nb.catalogue.ingest import ingest_dataset, recalibrate
from happywhale_nb.catalogue.matching import Matcher, encounters_without_animal
from happywhale_nb.catalogue.no_animal import drawn_seas, learn_no_animal
from happywhale_nb.catalogue.opened import OpenedCatalogue
from happywhale_nb.catalogue.schema import Encounter, Model
from happywhale_nb.catalogue.store import Catalogue, create_catalogue
from happywhale_nb.catalogue.upload_photos import ingest_uploads
from happywhale_nb.cli.catalogue import tell_no_animal
from happywhale_nb.core.artifacts import read_json, write_json
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.imaging.empty_pictures import MARGIN, free_window
from happywhale_nb.retrieval.calibration import CandidateProbabilities
from happywhale_nb.retrieval.embeddings import image_embeddings, write_embeddings
from happywhale_nb.retrieval.identifier import Calibration
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.no_animal import NoAnimal, alarm_limit, all_flagged, fit_no_animal, least_photographs
from happywhale_nb.retrieval.vectors import unit_rows
from happywhale_nb.server.app import make_app
from happywhale_nb.server.state import AppState, Options
from happywhale_nb.stages.knn import knn_stage

numbers = st.floats(-1e6, 1e6)
shares = st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=3)

# --- the limit


@settings(max_examples=50)
@given(st.integers(1, 400), st.floats(0.005, 0.5), st.integers(0, 2**32))
def test_alarm_limit_is_passed_by_no_more_of_its_scores_than_the_rate_allows(n, rate, seed):
    scores = np.random.default_rng(seed).normal(size=n)
    limit = alarm_limit(scores, rate)
    assert np.isfinite(limit) == (n >= least_photographs(rate))
    assert np.count_nonzero(scores > limit) <= (n + 1) * rate
    if np.isfinite(limit):
        assert limit in scores and np.count_nonzero(scores >= limit) >= (n + 1) * rate - 1, "and it is no higher"


def animals(rng, n, each=3, width=24):
    middle = np.repeat(rng.normal(size=(n, width)) + np.eye(width)[0], each, axis=0)
    return middle + 0.6 * rng.normal(size=middle.shape), np.repeat(np.arange(n), each).astype(str)


def nothing(rng, n, width=24):
    return 0.7 * rng.normal(size=(n, width)) - 3 * np.eye(width)[0]


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_fit_no_animal_flags_new_animals_no_more_often_than_its_rate_on_average(rate):
    flagged, found = [], []
    for seed in range(12):
        rng = np.random.default_rng([seed, 5])
        learnt = fit_no_animal(*animals(rng, 80, 1), nothing(rng, 40), ["sea"] * 40, rate=rate, seed=seed)
        flagged.append(learnt.flags(animals(rng, 500, 1)[0]).mean())
        found.append(learnt.flags(nothing(rng, 100)).mean())
    error = np.std(flagged) / np.sqrt(len(flagged))
    assert np.mean(flagged) < rate + 2 * error < 1.8 * rate
    assert np.mean(found) > 0.9


def test_fit_no_animal_holds_the_rate_for_the_worst_way_of_cropping():
    rng = np.random.default_rng(1)
    (well, names), (badly, _) = animals(rng, 80), animals(rng, 80)
    badly = badly - 1.2 * np.eye(24)[0]  # a detector that cuts much water
    data = np.concatenate([well, badly]), np.tile(names, 2), nothing(rng, 60), ["sea"] * 60
    learnt = fit_no_animal(*data, np.repeat(["boxed", "sent"], len(names)))
    assert learnt.false_alarms["boxed"] <= learnt.false_alarms["sent"] <= 0.02
    assert learnt.limit >= fit_no_animal(*data).limit


@pytest.mark.parametrize("n, empty, why", [(16, 60, "takes 49 named"), (60, 9, "10 pictures without one"), (0, 0, "0")])
def test_fit_no_animal_of_too_little_flags_nothing_and_says_why(n, empty, why):
    rng = np.random.default_rng(2)
    learnt = fit_no_animal(*animals(rng, n), nothing(rng, empty), ["sea"] * empty)
    assert why in learnt.note and np.isinf(learnt.limit) and not learnt.flags(nothing(rng, 50)).any()


def test_all_flagged_of_an_encounter_with_one_animal_in_ten_is_not():
    assert all_flagged(np.array([True] * 9 + [False] + [True] * 2), [4] * 10 + [8] * 2) == [8]


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4), st.integers(0, 2**32))
def test_free_window_is_in_the_photograph_and_away_from_every_box(corners, seed):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    window = free_window(boxes, np.random.default_rng(seed))
    if window is not None:
        x0, y0, x1, y1 = window
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        gaps = [max(a - x1, x0 - c, b - y1, y0 - d) for a, b, c, d in boxes]
        assert min(gaps, default=1) >= MARGIN - 1e-9


# --- files


@settings(max_examples=25)
@given(st.lists(numbers, max_size=4), st.one_of(st.just(float("inf")), numbers), shares, st.text(max_size=9))
def test_no_animal_is_the_same_after_json(direction, limit, hits, note):
    one = NoAnimal(tuple(direction), limit, 0.05, 7, 3, {"sea": 4}, hits, hits, note)
    stored = json.loads(json.dumps(one.as_dict(), allow_nan=False))
    assert NoAnimal.from_dict(stored) == one
    made = Calibration.from_dict(json.loads(json.dumps(Calibration(no_animal=one).as_dict(), allow_nan=False)))
    assert made.no_animal == one and made.as_dict() == Calibration(no_animal=one).as_dict()


def test_calibration_of_an_earlier_version_does_not_tell():
    stored = Calibration(probabilities=CandidateProbabilities()).as_dict()
    del stored["no_animal"]
    assert Calibration.from_dict(stored).no_animal is None


# --- a catalogue


class Texture(ColourEmbedder):
    """Embeds a crop as its colours and, more strongly, as how rough it is in sixteen squares."""

    width = 64

    def embed(self, paths, boxes=None, quiet=True):
        """Embed photographs, as `ColourEmbedder` does."""
        sources = self.crop_boxes([path.name for path in paths], boxes)
        crops = np.stack([self.crop(path, box, frame) for path, (_, box, frame) in zip(paths, sources, strict=True)])
        squares = crops.astype(float).mean(axis=3).reshape(-1, 4, 4, 4, 4)
        rough = squares.std(axis=(2, 4)).reshape(-1, 16) - 20
        return unit_rows(np.hstack([0.3 * mean_colours(crops), rough / 20]))


def rough_animal(rng, colour):
    """A photograph `[192, 256, 3]` of a smooth sea with a rough patch of a colour, in the box 20, 70, 236, 190."""
    sea = np.linspace(rng.integers(60, 120), rng.integers(120, 220), 192)[:, None, None] * [0.4, 0.7, 1.0]
    photo = np.broadcast_to(sea, (192, 256, 3)) + rng.normal(0, 3, (192, 256, 3))
    patch = rng.normal(0, 60, (10, 18, 1)) + colour
    photo[70:190, 20:236] = patch.repeat(12, axis=0).repeat(12, axis=1)
    return photo.clip(0, 255).astype(np.uint8)


def write_animals(folder):
    """A data folder of 52 photographs of thirteen individuals with boxes, and two to be identified."""
    rng, rows = np.random.default_rng(8), []
    for part in ("train_images", "test_images"):
        (folder / part).mkdir(parents=True)
    for i in range(54):
        colour = np.random.default_rng(i % 13).uniform(40, 220, 3)
        part = "train_images" if i < 52 else "test_images"
        Image.fromarray(rough_animal(rng, colour)).save(folder / part / f"{i:02}.png")
        rows.append({"image": f"{i:02}.png", "species": "beluga", "individual_id": f"B{i % 13:02}"})
    table = pd.DataFrame(rows)
    table.head(52).to_csv(folder / "train.csv", index=False)
    boxes = table[["image"]].assign(xmin=20, ymin=70, xmax=236, ymax=190)
    (folder / "boxes").mkdir()
    boxes.to_csv(folder / "boxes" / "fullbody.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a catalogue that has learnt what shows no animal."""
    folder = tmp_path_factory.mktemp("no-animal")
    data, embedder = write_animals(folder / "data"), Texture()
    catalogue = create_catalogue(folder / "catalogue", data, "rough")
    ingest_dataset(catalogue, embedder, read_dataset(data), "texture")
    catalogue.choose_model(embedder.fingerprint)
    recalibrate(catalogue, learn_no_animal(catalogue, embedder))
    catalogue.close()
    return folder / "catalogue"


@pytest.fixture
def learnt(place, tmp_path):
    """A copy of it, opened."""
    catalogue = Catalogue(shutil.copytree(place, tmp_path / "catalogue"))
    yield catalogue
    catalogue.close()


@pytest.fixture
def untold(learnt):
    """The same as an earlier version left it."""
    with learnt.writing() as session:
        row = session.query(Model).one()
        row.calibration = {name: value for name, value in row.calibration.items() if name != "no_animal"}
    return learnt


def picture(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


BLUE = picture(np.full((90, 120, 3), (20, 90, 200), np.uint8))


def page_of(catalogue):
    desk = AppState(catalogue, Options(tokens=False, rates={}), owner="Ann")
    desk.network.open(Texture)
    return TestClient(make_app(desk), base_url="http://127.0.0.1:8000")


def test_learn_no_animal_of_a_catalogue_tells_what_it_was_learnt_from(learnt):
    told = Matcher(learnt).model.calibration.no_animal
    assert not told.note and told.individuals == 13 and told.photographs == 104, "boxed, and once more as if sent"
    assert set(told.empty) == {"piece", "plain", "drawn"} and max(told.false_alarms.values()) <= 0.02
    assert recalibrate(learnt).no_animal == told, "calibrating without the network keeps it"


def test_learn_no_animal_without_the_photographs_says_so_and_flags_nothing(learnt):
    learnt.data = learnt.data / "gone"
    told = learn_no_animal(learnt, Texture())
    assert "49 named photographs, but only 0 files are available" in told.note and np.isinf(told.limit)


def test_blue_picture_is_flagged_in_queue_answer_and_match(learnt):
    with page_of(learnt) as page:
        known = page.get("/api/encounters").json()
        assert {each["no_animal"] for each in known["encounters"] if each["state"] == "confirmed"} == {None}
        before = page.get("/api/facets").json()["no_animal"]
        made = page.post("/api/encounters", files={"photos": ("blue.png", BLUE, "image/png")}).json()
        assert made["no_animal"] is True
        assert page.get(f"/api/encounters/{made['id']}").json()["no_animal"] is True
        assert page.get("/api/facets").json()["no_animal"] == before + 1
        flagged = page.get("/api/encounters", params={"no_animal": True}).json()
        others = page.get("/api/encounters", params={"no_animal": False}).json()
        assert made["id"] in [each["id"] for each in flagged["encounters"]] and flagged["total"] == before + 1
        assert flagged["total"] + others["total"] == page.get("/api/encounters").json()["total"]
        answer = page.post(f"/api/encounters/{made['id']}/answers", json={}).json()
        assert answer["no_animal"] is True and answer["note"].startswith("probably no animal on this photograph")
        assert page.get(f"/api/answers/{answer['id']}").json() == answer
        matches = page.post("/match", files={"images": ("blue.png", BLUE, "image/png")}).json()["matches"]
        assert {each["rating"] for each in matches} == {0} and matches[0]["rank"] == 1
        assert all(each["details"].startswith("probably no animal") for each in matches)
        animal = page.get("/api/individuals").json()["individuals"][0]["id"]
        body = {"kind": "confirm", "individual_id": animal, "version": made["version"]}
        decided = page.post(f"/api/encounters/{made['id']}/decisions", json=body).json()
        assert decided["encounter"]["no_animal"] is None, "a person has looked at it"
        assert page.get("/api/encounters", params={"no_animal": True}).json()["total"] == before
        open_again = page.post(f"/api/decisions/{decided['decision']['id']}/undo").json()["encounter"]
        assert open_again["no_animal"] is True
        body = {"reason": "no animal", "version": open_again["version"]}
        gone = page.post(f"/api/encounters/{made['id']}/withdraw", json=body).json()["encounter"]
        assert (gone["state"], gone["no_animal"]) == ("withdrawn", None)
        assert page.get("/api/facets").json()["no_animal"] == before


def test_catalogue_add_says_which_encounter_probably_shows_no_animal(learnt, capsys):
    blue = ingest_uploads(learnt, Texture(), "Ann", [("blue.png", BLUE)])
    tell_no_animal(learnt, {blue, 1})
    assert capsys.readouterr().out.startswith(f"encounter {blue}: probably no animal")


def test_photograph_of_an_animal_is_not_flagged_and_its_ratings_stay(learnt):
    photo = next(learnt.data.glob("train_images/*")).read_bytes()
    with page_of(learnt) as page:
        sent = {"photos": ("a.jpg", photo, "image/jpeg")}
        assert page.post("/api/identify", files=sent).json()["no_animal"] is False
        matches = page.post("/match", files={"images[]": ("a.jpg", photo, "image/jpeg")}).json()["matches"]
        assert matches[0]["rating"] > 0 and "no animal" not in matches[0]["details"]


def test_identify_of_a_blue_picture_says_so_first(learnt, tmp_path):
    (tmp_path / "blue.png").write_bytes(BLUE)
    found = identify(tmp_path / "blue.png", OpenedCatalogue(learnt, Texture()))
    assert repr(found).splitlines()[1].startswith("probably no animal on this photograph")
    assert "Probably no animal" in found._repr_html_() and "of the time" not in found._repr_html_()


def test_catalogue_of_an_earlier_version_flags_nothing_and_says_what_to_do(untold):
    assert encounters_without_animal(Matcher(untold)) is None
    with page_of(untold) as page:
        made = page.post("/api/encounters", files={"photos": ("blue.png", BLUE, "image/png")}).json()
        assert made["no_animal"] is None and page.get("/api/facets").json()["no_animal"] is None
        answer = page.post(f"/api/encounters/{made['id']}/answers", json={}).json()
        assert answer["no_animal"] is None and "no animal" not in answer["note"]
        refused = page.get("/api/encounters", params={"no_animal": True})
        assert refused.status_code == 400 and "`happywhale catalogue build` again" in refused.json()["detail"]
        assert page.get("/api/encounters", params={"no_animal": False}).json()["total"] > 0


def test_server_that_runs_while_the_catalogue_is_built_again_answers_as_a_fresh_one(untold):
    running = Matcher(untold)
    assert encounters_without_animal(running) is None
    recalibrate(untold, learn_no_animal(untold, Texture()))
    with untold.writing() as session:  # a date that the table tells by now: no line in the log
        encounter = session.query(Encounter).first()
        update_encounter(session, encounter, encounter.version, date="2026-07-31")
        number = encounter.id
    assert encounters_without_animal(running) == set(), "what was learnt is known without a restart"
    fresh = Matcher(untold)
    assert running.model.calibration.as_dict() == fresh.model.calibration.as_dict()
    dates = dict(zip(running.photos.facts["encounter"], running.photos.facts["date"], strict=True))
    assert dates[number] == "2026-07-31"
    assert running.photos.facts["date"].tolist() == fresh.photos.facts["date"].tolist()


def test_candidates_are_the_same_with_and_without_the_flag(learnt, untold):
    shown = []
    for catalogue in (Catalogue(learnt.folder), untold):
        with page_of(catalogue) as page:
            sent = {"photos": ("blue.png", BLUE, "image/png")}
            shown.append(page.post("/api/identify", files=sent).json()["candidates"])
    assert shown[0] == shown[1]


# --- a study


@pytest.fixture
def fold(tmp_path):
    """A trained fold by vectors: ninety queries, and thirty test photographs of which the last ten show nothing."""
    rng = np.random.default_rng(3)
    vectors, names = animals(rng, 60)
    tests = np.concatenate([animals(rng, 20, 1)[0], nothing(rng, 10)])
    table = pd.DataFrame({"image": [f"{i:03}.jpg" for i in range(180)], "individual_id": names})
    table = table.assign(species="beluga", fold=np.arange(180) % 2, protocol="given", query_only=0)
    images = pd.DataFrame({"image": [f"{i:03}.jpg" for i in range(30)]})
    data = SimpleNamespace(root=tmp_path, train=table, test=images, fingerprint="0123456789abcdef")
    for k in range(2):
        place = tmp_path / "small" / f"fold{k}"
        rows = np.concatenate([vectors, tests])
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        parts = np.repeat(["train", "test"], [180, 30])
        keys = [*table["image"], *images["image"]]
        write_embeddings(place / "embeddings.parquet", image_embeddings(parts, keys, unit))
        told = {name: {} for name in ("protocol", "parameters", "result", "versions")} | {"stamp": f"s{k}"}
        write_json(place / "config.json", told)
    return SimpleNamespace(folder=tmp_path, data=data, folds=table)


def leave_empty(fold, k):
    """What training leaves beside a fold's embeddings."""
    rows = nothing(np.random.default_rng(4), 40)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    path = fold.folder / "small" / f"fold{k}" / "empty.parquet"
    write_embeddings(path, image_embeddings("piece", [str(i) for i in range(40)], unit))


def test_knn_stage_marks_test_photographs_without_an_animal_and_predicts_as_before(fold):
    study = (fold.data, fold.folder, "small", fold.folds, KNNHead(20))
    before = knn_stage(*study)
    files = sorted(path for path in fold.folder.glob("small/fold*/*") if path.suffix in (".csv", ".parquet"))
    earlier = {path: path.read_bytes() for path in files}
    assert before["no_animal"] == {"0": None, "1": None}
    leave_empty(fold, 0)
    after = knn_stage(*study)
    assert {path for path in files if path.read_bytes() != earlier[path]} == {files[0].with_name("test_lists.csv")}
    lists = pd.read_csv(files[0].with_name("test_lists.csv"), dtype=str)
    assert list(lists)[-1] == "no_animal"
    marked = lists["no_animal"].to_numpy() == "1"
    assert marked[20:].sum() >= 7 and marked[:20].sum() <= 1
    record = after["no_animal"]["0"]
    assert record["flagged"] == marked.sum() and record["rate"] == 0.02 and record["empty"] == {"piece": 40}
    assert after["no_animal"]["1"] is None and "direction" not in record
    same = before.keys() - {"no_animal", "stamp"}
    assert {name: before[name] for name in same} == {name: after[name] for name in same}
    assert read_json(fold.folder / "small" / "knn.json")["no_animal"] == after["no_animal"]


def test_knn_stage_of_few_queries_marks_nothing_and_says_why(fold):
    leave_empty(fold, 0)
    few = fold.folds.assign(fold=np.where(np.arange(180) < 40, 0, 1))
    record = knn_stage(fold.data, fold.folder, "small", few, KNNHead(20))["no_animal"]["0"]
    assert record["flagged"] == 0 and "takes 49 named photographs" in record["note"]
    assert "no_animal" not in pd.read_csv(fold.folder / "small" / "fold0" / "test_lists.csv")


# --- the demo's network, and the benchmark


@pytest.mark.soak
@pytest.mark.slow
def test_demo_catalogue_flags_blue_pictures_and_empty_seas_and_no_animal_to_upload(tmp_path):
    from happywhale_nb.catalogue.build import demo_catalogue

    catalogue, embedder = demo_catalogue(tmp_path / "demo")
    opened = OpenedCatalogue(catalogue, embedder)
    pictures = {"blue": np.full((300, 400, 3), (20, 90, 200), np.uint8), "grey": np.full((300, 400, 3), 128, np.uint8)}
    pictures |= {f"sea {i}": sea for i, sea in enumerate(drawn_seas(10, seed=77))}
    for name, pixels in pictures.items():
        (tmp_path / f"{name}.png").write_bytes(picture(pixels))
    flags = {name: identify(tmp_path / f"{name}.png", opened).answer["no_animal"] for name in pictures}
    uploads = sorted((tmp_path / "demo" / "season" / "to_drop").iterdir())
    met = [identify(path, opened).answer["no_animal"] for path in uploads]
    embedder.close()
    catalogue.close()
    assert flags["blue"] and sum(flags.values()) >= 11, flags
    assert met == [False] * len(uploads) and len(uploads) == 6


@pytest.mark.soak
def test_no_animal_benchmark_quick_prints_its_table():
    script = Path(__file__).parents[1] / "bench" / "no_animal.py"
    done = subprocess.run([sys.executable, script, "--quick"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| direction |"))
    assert float(row.split("|")[4].split()[0]) > 0.8, "of drawn pieces"
