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

from happywhale_nb.catalogue.build import open_embedder
from happywhale_nb.catalogue.listings import sightings
from happywhale_nb.catalogue.matching import Matcher, match_encounter
from happywhale_nb.catalogue.store import Catalogue, upgrade_catalogue
from happywhale_nb.cli.main import main
from happywhale_nb.networks.embedder import embed_folder
from happywhale_nb.retrieval.embeddings import UNKNOWN_PART, read_embeddings
from happywhale_nb.server.auth import list_tokens
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


def test_study_counts_as_done(old):
    result = CliRunner().invoke(main, ["run", "study.yaml", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "0 of 8 notebooks would be run" in result.output


def test_study_with_another_parameter_is_not_done(old):
    result = CliRunner().invoke(main, ["run", "study.yaml", "--dry-run", "-p", "alpha", "0.2"])
    assert "parameters or data have changed" in result.output


def test_records_and_results_of_a_study_are_compared(old):
    study = old / "outputs" / "whales-quick"
    again = shutil.copytree(study, old / "outputs" / "again-quick")
    same = compare_runs(study, again)
    assert not same["differs"] and same["recorded"] == {"a": 8, "b": 8}
    folds = compare_runs(study / "tiny" / "fold0", study / "tiny" / "fold1")
    assert folds["circumstances"] and folds["figures"]
