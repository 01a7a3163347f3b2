"""Upgrades: a catalogue, a study, a model and settings made by an earlier commit are read by the code of today."""

import gzip
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import copy_project
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from happywhale_nb.catalogue.build import open_embedder
from happywhale_nb.catalogue.ingest import update_metadata
from happywhale_nb.catalogue.listings import sightings
from happywhale_nb.catalogue.matching import Matcher, match_encounter
from happywhale_nb.catalogue.photo_files import missing_photos
from happywhale_nb.catalogue.schema import Photo
from happywhale_nb.catalogue.store import Catalogue, upgrade_catalogue
from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import read_json
from happywhale_nb.core.renamed import FIELDS, METRICS, PARAMETERS, read_record
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.networks.embedder import embed_folder
from happywhale_nb.networks.presets import configure, used_preset
from happywhale_nb.retrieval.embeddings import UNKNOWN_PART, read_embeddings
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.server.app import make_app
from happywhale_nb.server.auth import list_tokens
from happywhale_nb.server.state import AppState, Options
from happywhale_nb.stages.blend_record import is_current
from happywhale_nb.stages.blending import blend_stage
from happywhale_nb.stages.knn import knn_stage
from happywhale_nb.stages.report import report_stage
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.stages.train import train_stage
from happywhale_nb.workflow.compare import compare_runs
from happywhale_nb.workflow.provenance import done_file

FIXTURES = Path(__file__).parent / "fixtures"
KEPT = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
ORDER = ("eda", "train", "knn", "gradcam", "robustness", "blend", "report")  # as a run leaves their marks


def put(fixture, folder):
    """Lay a fixture out as a person had it: the folder's own paths, the models unpacked, marks with dates."""
    shutil.copytree(fixture, folder, dirs_exist_ok=True)
    for path in (folder / "outputs").glob("*/*.json"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("FOLDER", folder.as_posix()), encoding="utf-8")
    for packed in (folder / "outputs").rglob("model.keras.gz"):
        model = packed.with_suffix("")
        model.write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
        for catalogue in (folder / "outputs").glob("*/catalogue.json"):
            (catalogue.parent / "model").mkdir()
            shutil.copy(model, catalogue.parent / "model")
            shutil.copy(model.with_name("config.json"), catalogue.parent / "model")
    for record in (folder / "outputs").rglob("*.run.json"):
        stage, mark = json.loads(record.read_text(encoding="utf-8"))["stage"], done_file(record)
        mark.touch()
        os.utime(mark, (1.7e9 + ORDER.index(stage),) * 2)
        if stage == "report":  # too large for a fixture; a run asks only whether it is there
            record.with_name("report.json").write_text("{}")


@pytest.fixture(params=KEPT)
def old(request, tmp_path, monkeypatch):
    """A project whose data and outputs an earlier commit has made, as the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    copy_project(folder)
    put(FIXTURES / request.param, folder)
    shutil.copy(folder / "outputs" / "catalogue" / "catalogue.sqlite", folder / "as_it_was.sqlite")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def catalogue(old):
    """The catalogue of `old`, upgraded and opened."""
    upgrade_catalogue(old / "outputs" / "catalogue")
    opened = Catalogue(old / "outputs" / "catalogue")
    yield opened
    opened.close()


def stored(old, query):
    """The first value that SQL finds in a catalogue's file as it was, before any upgrade."""
    with closing(sqlite3.connect(old / "as_it_was.sqlite")) as tables:
        return tables.execute(query).fetchone()[0]


def test_fixtures_are_small_and_name_no_place_on_one_machine():
    files = [path for path in FIXTURES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000 * len(KEPT)
    for path in files:
        data = path.read_bytes()
        places = (b"/ho" + b"me/", b"/ro" + b"ot/", b"/tm" + b"p/", b"/wo" + b"rk/", b"C:" + b"\\")
        assert not [place for place in places if place in data and path.suffix != ".gz"], path


def test_catalogue_upgrades_and_keeps_its_rows(catalogue, old):
    with catalogue.reading() as session:
        table, tokens = sightings(session), list_tokens(session)
    assert len(table) == stored(old, "SELECT count(*) FROM photos") == 32
    assert [token.name for token in tokens] == ["Ann"]
    assert "already" in upgrade_catalogue(old / "outputs" / "catalogue")


def test_catalogue_of_before_is_built_again_without_an_alarm(catalogue, old):
    with catalogue.reading() as session:
        assert session.scalar(select(func.count()).select_from(Photo).where(Photo.given.is_not(None))) == 0
    dataset = read_dataset(old / "data" / "tiny")
    assert missing_photos(catalogue) == [] and update_metadata(catalogue, dataset, "Ann") == []
    with catalogue.reading() as session:
        assert session.scalar(select(func.count()).select_from(Photo).where(Photo.given.is_(None))) == 0


def test_catalogue_answers_as_it_did(catalogue, old):
    number = stored(old, "SELECT max(encounter_id) FROM answers")
    before = json.loads(stored(old, f"SELECT content FROM answers WHERE encounter_id = {number}"))
    now = match_encounter(Matcher(catalogue), "bob", number)
    scores = [
        {c["individual"]["id"]: c["score"] for c in found["candidates"] if c["individual"]} for found in (before, now)
    ]
    common = sorted(scores[0].keys() & scores[1].keys())
    assert len(common) == 8
    assert [scores[1][each] for each in common] == pytest.approx([scores[0][each] for each in common], abs=1e-5)


@pytest.fixture
def api(catalogue):
    """A client of the API of `catalogue`, without a network."""
    return TestClient(make_app(AppState(catalogue, Options(tokens=False), "Ann")), base_url="http://127.0.0.1")


def test_stored_answer_of_an_earlier_version_is_shown_with_the_keys_of_today(api, old):
    number = stored(old, "SELECT max(id) FROM answers")
    before = json.loads(stored(old, f"SELECT content FROM answers WHERE id = {number}"))
    now = api.get(f"/api/answers/{number}").json()
    assert now["other_probability"] == before["other"] and now["encounter_id"] and now["note"] == before["note"]
    for shown, left in zip(now["candidates"], before["candidates"], strict=True):
        assert (shown["probability"], shown["query_photo"]) == (left["chance"], left["asked"])
        assert shown.keys() ^ left.keys() == {"probability", "chance", "query_photo", "asked", "species"}
        assert shown["species"] is None
        left["photo"] = left["photo"] and left["photo"] | {"withdrawn": "", "uploaded": False}
        assert all(shown[key] == left[key] for key in shown.keys() & left.keys())


def test_decision_from_a_stored_answer_of_an_earlier_version_keeps_rank_and_probability(api, old):
    answer = api.get(f"/api/answers/{stored(old, 'SELECT max(id) FROM answers')}").json()
    candidate = next(each for each in answer["candidates"] if not each["is_new"])
    url = f"/api/encounters/{answer['encounter_id']}"
    body = {"kind": "reject", "individual_id": candidate["individual"]["id"], "answer_id": answer["id"]}
    done = api.post(f"{url}/decisions", json=body | {"version": api.get(url).json()["version"]})
    assert done.status_code == 200, done.text
    decision = done.json()["decision"]
    assert (decision["user"], decision["rank"]) == ("Ann", candidate["rank"])
    assert decision["probability"] == candidate["probability"] > 0


def test_catalogue_finds_its_model_and_embeds_a_new_photograph(catalogue, old):
    embedder = open_embedder(catalogue)
    try:
        (vector,) = embedder.embed([sorted((old / "data" / "tiny" / "test_images").iterdir())[0]])
    finally:
        embedder.close()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)


def test_model_loads_and_embeds_to_the_vectors_it_left(old):
    fold = old / "outputs" / "whales-quick" / "tiny" / "fold0"
    left = read_embeddings(fold / "embeddings.parquet")
    made = embed_folder(fold / "model.keras", old / "data" / "tiny", old / "made.parquet")
    assert len(made.paths) == 32 and set(left.parts) == {UNKNOWN_PART}
    assert left.of(made.parts, made.paths) == pytest.approx(made.vectors, abs=1e-4)


def run_study(old, *parameters):
    """What `happywhale run --dry-run` says of the study, after the names in its file were brought up to date."""
    path = old / "study.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("changes:", "overrides:"), encoding="utf-8")
    result = CliRunner().invoke(main, ["run", "study.yaml", "--dry-run", *parameters])
    assert result.exit_code == 0, result.output
    return result.output


def test_study_file_with_old_names_is_refused_with_the_new_ones(old):
    result = CliRunner().invoke(main, ["run", "study.yaml", "--dry-run"])
    assert result.exit_code == 2
    assert "study.yaml: models.tiny: parameter 'changes' is now 'overrides'" in result.stderr


def test_study_counts_as_done(old):
    assert "0 of 8 notebooks would be run" in run_study(old)


def test_study_with_another_parameter_is_not_done(old):
    assert "parameters or data have changed" in run_study(old, "-p", "alpha", "0.2")


def test_records_and_results_of_a_study_are_compared(old):
    study = old / "outputs" / "whales-quick"
    again = shutil.copytree(study, old / "outputs" / "again-quick")
    same = compare_runs(study, again)
    assert not same["differs"] and same["recorded"] == {"a": 8, "b": 8}
    folds = compare_runs(study / "tiny" / "fold0", study / "tiny" / "fold1")
    assert folds["provenance"] and folds["metrics"]


def folder_of(old):
    """Data, folder and folds of the study in `old`."""
    dataset, folder = read_dataset(old / "data" / "tiny"), old / "outputs" / "whales-quick"
    return dataset, folder, study_folds(dataset, folder, save=False)


def test_stages_take_over_what_an_earlier_version_has_finished(old):
    dataset, folder, folds = folder_of(old)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config = configure("small_resnet_arcface", quick=True, overrides="backbone=tiny_resnet embedding=32")
    trained = train_stage(dataset, folds, 0, "tiny", config, folder)
    searched = knn_stage(dataset, folder, "tiny", folds, KNNHead(50))
    blended = blend_stage(dataset, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert used_preset(trained["parameters"]) == config and trained["parameters"]["tta_sources"] == ""
    assert searched["oof"]["fraction_new"] == pytest.approx(4 / 28) and searched["for_test"]["prior_new"] is None
    assert blended["voting"] == "paper" and is_current(dataset, folder, blended)


def test_report_of_an_earlier_version_s_results_is_whole(old):
    dataset, folder, folds = folder_of(old)
    assert "neighbour_grid" not in read_json(folder / "tiny" / "knn.json")
    report = report_stage(dataset, folder, folds, examples=2)
    assert set(report["missing"]) == {"pairs", "architectures", "species"}
    open_set = report["sections"]["open set"]
    assert [row["k"] for row in open_set["grid"]] == [1, 3, 5, 10]
    assert open_set["rules"][0]["lost"] == 0 and len(open_set["rules"]) == 4
    assert report["sections"]["grad-cam"]["selection"] and report["sections"]["robustness"]["degradations"]


def keys_of(value):
    """All keys of a JSON value."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {*(value if isinstance(value, dict) else ())}.union(*map(keys_of, parts))


def test_records_of_an_earlier_version_are_read_with_the_new_keys_alone(old):
    folder = old / "outputs" / "whales-quick"
    old_keys = {*PARAMETERS, *FIELDS, *METRICS, "new_first", "found_done", "drawn_by"}
    old_keys -= {"weights"}  # of blends (numbers) and of presets, as before
    other_meaning = {"gradcam.json": {"gain"}, "robustness.json": {"scale"}}
    written = {path: read_json(path) for path in folder.rglob("*.json")}
    read = {path: read_record(path) for path in written}
    assert set.union(*map(keys_of, written.values())) >= {"changes", "share_new", "twins", "around", "before"}
    for path, record in read.items():
        assert keys_of(record) & old_keys == other_meaning.get(path.name, set()), path
