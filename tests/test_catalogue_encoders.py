"""A catalogue by every kind of encoder: the demo's network, the same as an ONNX file, ImageNet's features, vectors that
were made elsewhere; changed over from each to the next and back."""

import shutil

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from happywhale_nb.catalogue.build import build_catalogue, change_model, open_embedder
from happywhale_nb.catalogue.edits import set_crop
from happywhale_nb.catalogue.matching import Matcher, match_encounter
from happywhale_nb.catalogue.schema import Embedding, Encounter, Photo
from happywhale_nb.catalogue.store import Catalogue
from happywhale_nb.catalogue.upload_photos import ingest_uploads
from happywhale_nb.core.errors import UserError
from happywhale_nb.demo.dataset import draw_demo
from happywhale_nb.demo.season import demo_model
from happywhale_nb.server.app import make_app
from happywhale_nb.server.state import AppState, Options


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Sixteen drawn photographs of four animals, and three to be identified."""
    folder = tmp_path_factory.mktemp("few") / "few"
    return draw_demo(folder, seed=5, individuals=4, train_photos=16, test_photos=3, progress=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The demo's network as an ONNX file with its card."""
    from happywhale_nb.networks.export import export_encoder  # here: it needs TensorFlow

    target = tmp_path_factory.mktemp("exported") / "encoder.onnx"
    assert export_encoder(demo_model(), target, "onnx") > 0.9999
    return target


def candidates(catalogue):
    """Names and scores of the candidates for each undecided encounter."""
    with catalogue.reading() as session:
        waiting = session.scalars(select(Encounter.id).where(Encounter.state == "undecided")).all()
    matcher = Matcher(catalogue)
    answers = [match_encounter(matcher, "Ann", number)["candidates"] for number in sorted(waiting)]
    answers = [[each for each in answer if not each["is_new"]] for answer in answers]
    named = [[each["individual"]["name"] for each in answer] for answer in answers]
    return named, np.array([[each["score"] for each in answer] for answer in answers])


@pytest.mark.slow
def test_catalogue_by_the_exported_network_gives_the_candidates_of_the_network_itself(few, exported, tmp_path):
    made = {}
    for name, model in {"keras": demo_model(), "onnx": exported}.items():
        built = build_catalogue(tmp_path / name, few, model)
        made[name] = candidates(built.catalogue)
        built.embedder.close()
        built.catalogue.close()
    assert made["keras"][0] == made["onnx"][0]
    assert np.allclose(made["keras"][1], made["onnx"][1], atol=1e-4)
    opened = Catalogue(tmp_path / "onnx")
    embedder = open_embedder(opened)
    app = make_app(AppState(opened, Options(tokens=False)), lambda: embedder)
    with TestClient(app, base_url="http://localhost") as client:
        with opened.reading() as session:
            number = session.scalar(select(Encounter.id).where(Encounter.state == "undecided"))
        answer = client.post(f"/api/encounters/{number}/answers", json={}).json()
        assert answer["heat_maps"] == "occlusion"
        heat = client.get(f"/api/answers/{answer['id']}/heat")
        assert heat.status_code == 200 and heat.headers["x-heat-maps"] == "occlusion" and heat.content[:4] == b"\x89PNG"
        photo = next((few / "test_images").iterdir()).read_bytes()
        assert client.post("/match", files={"images": ("a.jpg", photo)}).json()["matches"]
    opened.close()


@pytest.mark.soak
@pytest.mark.slow
def test_catalogue_changes_over_between_all_kinds_and_back(few, exported, tmp_path):
    from happywhale_nb.networks.embedder import embed_folder  # here: it needs TensorFlow

    built = build_catalogue(tmp_path / "catalogue", few, demo_model())
    built.embedder.close()
    catalogue, seen = built.catalogue, {}
    first = candidates(catalogue)
    vectors = tmp_path / "theirs.parquet"
    embed_folder(exported, few, vectors)
    for model in (exported, "efficientnet_lite0", vectors, demo_model()):
        embedded, _ = change_model(catalogue, model)
        seen[str(model)] = embedded, catalogue.fingerprint, catalogue.licence.name
        opened = open_embedder(catalogue)
        assert opened.fingerprint == catalogue.fingerprint == Catalogue(catalogue.folder).fingerprint
        opened.close()
    numbers = [embedded for embedded, *_ in seen.values()]
    assert numbers == [19, 19, 19, 0], "embeddings of before are used again"
    assert len({mark for _, mark, _ in seen.values()}) == 4
    again = candidates(catalogue)
    assert again[0] == first[0] and np.allclose(again[1], first[1])
    with pytest.raises(UserError, match="re-embed"):
        build_catalogue(catalogue.folder, few, "efficientnet_lite0")
    catalogue.close()


@pytest.fixture
def from_vectors(few, tmp_path):
    """A catalogue of vectors that were made elsewhere, by mean colours."""
    from happywhale_nb.catalogue.example import ColourEmbedder
    from happywhale_nb.data.dataset import read_dataset
    from happywhale_nb.retrieval.embeddings import image_embeddings, write_embeddings

    data = shutil.copytree(few, tmp_path / "few")
    dataset = read_dataset(data)
    paths, parts = [*dataset.train_paths(), *dataset.test_paths()], ["train"] * len(dataset.train) + ["test"] * 3
    made = image_embeddings(parts, [path.name for path in paths], ColourEmbedder().embed(paths))
    write_embeddings(tmp_path / "theirs.parquet", made)
    with pytest.raises(UserError, match="licence not stated, not for commercial use"):
        build_catalogue(tmp_path / "catalogue", data, tmp_path / "theirs.parquet")
    vectors = tmp_path / "theirs.parquet"
    built = build_catalogue(tmp_path / "catalogue", data, vectors, agree=lambda licence: True)
    yield built.catalogue, built.embedder
    built.catalogue.close()


@pytest.mark.slow
def test_vectors_made_elsewhere_answer_and_refuse_what_needs_an_encoder(from_vectors, tmp_path):
    catalogue, embedder = from_vectors
    named, scores = candidates(catalogue)
    assert all(named) and np.isfinite(scores).all() and "not stated" in catalogue.licence.sentence
    photo, files = next((catalogue.data / "test_images").iterdir()), sorted(catalogue.folder.rglob("*"))
    with pytest.raises(UserError, match="made elsewhere, so new photographs cannot be embedded"):
        ingest_uploads(catalogue, embedder, "Ann", [("a.jpg", photo.read_bytes() + b" ")])
    with catalogue.reading() as session:
        number, version = session.execute(select(Photo.id, Encounter.version).join(Encounter)).first()
    with pytest.raises(UserError, match="so a new box has no effect"):
        set_crop(catalogue, embedder, "Ann", number, [1, 1, 40, 40], version)
    app = make_app(AppState(catalogue, Options(tokens=False)), lambda: embedder)
    with TestClient(app, base_url="http://localhost") as client:
        sent = client.post("/match", files={"images": ("a.jpg", photo.read_bytes())})
        assert sent.status_code == 400 and "made elsewhere" in sent.json()["detail"]
        assert client.get("/api/session").json()["catalogue"]["embeds"] is False
        with catalogue.reading() as session:
            waiting = session.scalar(select(Encounter.id).where(Encounter.state == "undecided"))
        answer = client.post(f"/api/encounters/{waiting}/answers", json={}).json()
        assert answer["heat_maps"] == "" and client.get(f"/api/answers/{answer['id']}/heat").status_code == 400
    assert sorted(catalogue.folder.rglob("*")) == files, "nothing is half-written"


@pytest.mark.slow
def test_vectors_that_lack_photographs_are_refused_before_anything_is_written(from_vectors, tmp_path):
    catalogue, _ = from_vectors
    shutil.copy(next((catalogue.data / "test_images").iterdir()), catalogue.data / "test_images" / "new.jpg")
    with (catalogue.data / "sample_submission.csv").open("a") as file:
        file.write("new.jpg,\n")
    with pytest.raises(UserError, match=r"1 photographs have no vector in vectors.parquet: new.jpg"):
        build_catalogue(catalogue.folder, catalogue.data)
    with catalogue.reading() as session:
        assert session.scalar(select(func.count()).select_from(Embedding)) == 19
