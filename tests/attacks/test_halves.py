"""Long operations of a catalogue, killed or out of space at every step: the state before or after, and nothing half."""

import hashlib
import random
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from faults import Matrix, Nest, Writer, keep_result
from PIL import Image
from sqlalchemy import func, select

from happywhale_nb.catalogue import ingest as intake
from happywhale_nb.catalogue.backup import back_up, check_backup, read_manifest, restore
from happywhale_nb.catalogue.build import build_catalogue, change_model, open_embedder
from happywhale_nb.catalogue.check import check_open
from happywhale_nb.catalogue.matching import Matcher
from happywhale_nb.catalogue.photo_files import content_digest
from happywhale_nb.catalogue.schema import Embedding, Photo
from happywhale_nb.catalogue.store import CARD, CHANGED, Card, Catalogue
from happywhale_nb.catalogue.tidy import tidy
from happywhale_nb.catalogue.upload_photos import ingest_uploads
from happywhale_nb.core.artifacts import write_json
from happywhale_nb.core.errors import UserError

SEED, EACH = 20260731, 1  # of the sample that is tried without `make soak`


class Colours:
    """Stands in for a network: mean colours, turned by a number in its file; "nan" in it spoils them."""

    width, detector = 12, None
    settings = {"image_size": 8, "margin": 0.05, "keep_aspect": False, "sources": "auto", "boxed": False}  # noqa: RUF012

    def __init__(self, model, detector=None):
        self.content = Path(model).read_bytes()
        self.fingerprint = hashlib.sha256(self.content).hexdigest()[:16]

    def crop_boxes(self, images, boxes=None):
        return [("whole", None, None) for _ in images]

    def embed(self, paths, boxes=None, quiet=True):
        small = [np.asarray(Image.open(path).convert("RGB").resize((2, 2)), np.float32).ravel() for path in paths]
        vectors = np.roll(np.array(small).reshape(len(small), self.width) - 127.5, len(self.content), axis=1)
        if b"nan" in self.content:
            vectors[:] = np.nan
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def close(self):
        pass


def stand_in():
    """No network is loaded in this process from now on."""
    sys.modules["happywhale_nb.networks.embedder"] = SimpleNamespace(Embedder=Colours)


@pytest.fixture(autouse=True)
def colours_for_networks(monkeypatch):
    monkeypatch.setitem(sys.modules, "happywhale_nb.networks.embedder", SimpleNamespace(Embedder=Colours))


def save_model(folder, content):
    """Files that pass for a trained network: the place of its `model.keras`."""
    folder.mkdir(parents=True)
    (folder / "model.keras").write_bytes(content)
    write_json(folder / "config.json", {"parameters": {"model": "colours", "fold": 0}, "trained_on": []})
    return folder / "model.keras"


def draw_photo(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)).save(path)
    return path


def data_folder(folder):
    """Three individuals with two photographs each, and two unknown."""
    rows = ["image,species,individual_id"]
    for i in range(6):
        draw_photo(folder / "train_images" / f"{i}.png", i)
        rows.append(f"{i}.png,beluga,{'ABC'[i % 3]}1")
    for i in range(2):
        draw_photo(folder / "test_images" / f"t{i}.png", 100 + i)
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    (folder / "sample_submission.csv").write_text("image,predictions\nt0.png,\nt1.png,\n")


def digest_of(folder):
    """A digest of all files below a folder with their names."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


# --- writers


def ground(folder):
    """What is only read: a data folder, and two networks."""
    stand_in()
    data_folder(folder / "data")
    save_model(folder / "one", b"one")
    save_model(folder / "two", b"twofold")


def build(ground, folder):
    stand_in()
    built = build_catalogue(folder / "catalogue", ground / "data", ground / "one" / "model.keras", progress=False)
    built.catalogue.close()
    yield


def switch(ground, folder):
    """The catalogue changes to the second network."""
    stand_in()
    intake.LOT = 3
    catalogue = Catalogue(folder / "catalogue")
    try:
        change_model(catalogue, ground / "two" / "model.keras")
    finally:
        catalogue.close()
    yield


def model_in_use(ground, folder):
    """What a server that starts now would load, and whether it could answer."""
    stand_in()
    if not (folder / "catalogue" / CARD).is_file():
        return {"model": None}
    catalogue = Catalogue(folder / "catalogue")
    try:
        embedder, matcher = open_embedder(catalogue), Matcher(catalogue)
        with catalogue.reading() as session:
            made = session.scalar(
                select(func.count()).select_from(Embedding).where(Embedding.model_id == matcher.model.id)
            )
        return {"model": [embedder.fingerprint, digest_of(catalogue.model_folder), matcher.model.name, made]}
    finally:
        catalogue.close()


def arrivals(ground, folder):
    """Two uploads, which are acknowledged one by one."""
    stand_in()
    catalogue = Catalogue(folder / "catalogue")
    embedder = open_embedder(catalogue)
    try:
        for i in range(2):
            with catalogue.reading() as session:
                there = session.scalar(select(func.count(Photo.id)).where(Photo.kept))
            if there <= i:
                ingest_uploads(catalogue, embedder, "Ann", [(f"n{i}.png", (ground / f"n{i}.png").read_bytes())])
            yield
    finally:
        catalogue.close()


def uploads(ground, folder):
    """Rows of uploads with their files. After a start there is no other file, and no hidden folder."""
    stand_in()
    catalogue = Catalogue(folder / "catalogue")
    try:
        tidy(catalogue)
        with catalogue.reading() as session:
            rows = session.scalars(select(Photo.path).where(Photo.kept).order_by(Photo.id)).all()
        files = [path for path in (catalogue.folder / "photos").rglob("*") if path.is_file() or path.name[0] == "."]
        assert sorted(path.relative_to(catalogue.folder).as_posix() for path in files) == sorted(rows), files
        assert all(content_digest(catalogue.folder / path) == Path(path).stem for path in rows)
        return {path: True for path in rows}
    finally:
        catalogue.close()


def ground_with_catalogue(folder):
    """What is only read: also a catalogue, with an upload in it, and a backup of it."""
    ground(folder)
    for i in range(2):
        draw_photo(folder / f"n{i}.png", 200 + i)
    for _ in build(folder, folder):
        pass
    catalogue = Catalogue(folder / "catalogue")
    ingest_uploads(catalogue, open_embedder(catalogue), "Ann", [("n0.png", (folder / "n0.png").read_bytes())])
    back_up(catalogue, folder / "backup")
    catalogue.close()


def copy(ground, folder):
    catalogue = Catalogue(ground / "catalogue")
    try:
        if not (folder / "backup").exists():
            back_up(catalogue, folder / "backup")
    finally:
        catalogue.close()
    yield


def whole_backup(ground, folder):
    target = folder / "backup"
    if not target.exists():
        return {"backup": None}
    assert check_backup(target) == []
    return {"backup": sorted(read_manifest(target).files)}


def bring_back(ground, folder):
    if not (folder / "catalogue").exists():
        restore(ground / "backup", folder / "catalogue").close()
    yield


def whole_catalogue(ground, folder):
    stand_in()
    if not (folder / "catalogue").exists():
        return {"catalogue": None}
    catalogue = Catalogue(folder / "catalogue")
    try:
        with catalogue.reading() as session:
            photos = session.scalars(select(Photo).order_by(Photo.id)).all()
        assert all(content_digest(catalogue.path(photo)) == photo.sha256 for photo in photos)
        return {"catalogue": [len(photos), open_embedder(catalogue).fingerprint, Matcher(catalogue).model.name]}
    finally:
        catalogue.close()


def untidy(ground, folder):
    """A catalogue with much that is not needed."""
    for _ in build(ground, folder):
        pass
    place = folder / "catalogue"
    for i in range(3):
        lost = place / "photos" / f"{i}a" / f"{i}a{'0' * 62}.png"
        lost.parent.mkdir(parents=True)
        lost.write_bytes(b"lost")
    shutil.copytree(place / "model", place / "model-2")
    shutil.copy(place / "catalogue.sqlite", place / "catalogue-0001.sqlite")
    yield


def clean(ground, folder):
    catalogue = Catalogue(folder / "catalogue")
    try:
        tidy(catalogue, cache=True)
    finally:
        catalogue.close()
    yield


def needed(ground, folder):
    """What may not be lost; the rest may be there or not."""
    return model_in_use(ground, folder) if (folder / "catalogue" / CARD).is_file() else {"model": None}


WRITERS = {
    "uploads": Writer(arrivals, uploads, build, ground_with_catalogue, says=False, largest=250_000, by_sql=True),
    "backup": Writer(copy, whole_backup, None, ground_with_catalogue, untold=("write",)),
    "restore": Writer(bring_back, whole_catalogue, None, ground_with_catalogue, untold=("write",)),
    "tidy": Writer(clean, needed, untidy, ground, says=False, largest=250_000, by_sql=True),
    "re-embed": Writer(switch, model_in_use, build, ground, says=False, largest=250_000, by_sql=True),
}
MATRIX = [(name, "earlier" if each.old else "nothing") for name, each in WRITERS.items()]


@pytest.fixture(scope="module")
def nest():
    with Nest("attacks.test_halves") as made:
        yield made


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "start"), MATRIX)
def test_long_operation_killed_or_out_of_space_at_any_step(name, start, nest, tmp_path):
    began = time.monotonic()
    row, wrong = Matrix(nest, name, WRITERS[name], tmp_path, start).run()
    keep_result(f"halves_{name}", [row], time.monotonic() - began)
    print(row)
    assert not wrong, "\n".join(wrong)


# a sample of uploads is in `test_soak_writes`, and what `tidy` needs is in `test_leftovers`
SAMPLED = [(name, start) for name, start in MATRIX if name in ("re-embed", "backup", "restore")]


@pytest.mark.kill
@pytest.mark.parametrize(("name", "start"), SAMPLED)
def test_long_operation_killed_or_out_of_space_at_some_steps(name, start, nest, tmp_path):
    _, wrong = Matrix(nest, name, WRITERS[name], tmp_path, start).run(EACH, random.Random(SEED))
    assert not wrong, "\n".join(wrong)


# --- another encoder


@pytest.fixture(scope="module")
def grounds(tmp_path_factory):
    """A data folder, two networks, and a catalogue by the first."""
    place, patch = tmp_path_factory.mktemp("halves"), pytest.MonkeyPatch()
    patch.setitem(sys.modules, "happywhale_nb.networks.embedder", SimpleNamespace(Embedder=Colours))
    ground(place)
    for _ in build(place, place):
        pass
    patch.undo()
    return place


@pytest.fixture
def own(grounds, tmp_path):
    """A copy of the catalogue, opened."""
    catalogue = Catalogue(shutil.copytree(grounds / "catalogue", tmp_path / "catalogue"))
    yield catalogue
    catalogue.close()


def test_network_whose_vectors_are_not_finite_is_refused_before_anything_changes(own, tmp_path):
    before = digest_of(own.folder / "model"), (own.folder / CARD).read_bytes()
    for name, content in (("a", b"nan"), ("b", b"two nan")):
        with pytest.raises(UserError, match="zero or not finite"):
            change_model(own, save_model(tmp_path / name, content))
    assert before == (digest_of(own.folder / "model"), (own.folder / CARD).read_bytes())
    with own.reading() as session:
        assert session.scalar(select(func.count()).select_from(Embedding)) == 8
    assert open_embedder(own).fingerprint == own.fingerprint and Matcher(own)


def test_stored_vectors_that_are_not_finite_are_made_again_before_a_switch(own, grounds):
    two = grounds / "two" / "model.keras"
    change_model(own, two)
    change_model(own, grounds / "one" / "model.keras")
    with own.writing() as session:
        for row in session.scalars(select(Embedding).where(Embedding.model_id == 2)):
            row.vector = np.full(12, np.nan, "<f4").tobytes()
    count, _ = change_model(own, two)
    with own.reading() as session:
        vectors = session.scalars(select(Embedding.vector).where(Embedding.model_id == 2)).all()
    assert count == len(vectors) > 0 and np.isfinite(np.frombuffer(b"".join(vectors), "<f4")).all()
    assert Card.read(own.folder).model == own.fingerprint == open_embedder(own).fingerprint


def test_copy_that_differs_from_the_encoder_is_not_used(own, grounds, monkeypatch):
    def spoil(model, folder, detector=""):
        shutil.copytree(Path(model).parent, folder)
        (folder / "model.keras").write_bytes(b"half")

    first = own.fingerprint
    monkeypatch.setattr("happywhale_nb.catalogue.model_files.copy_model", spoil)
    with pytest.raises(UserError, match="copy of the encoder differs"):
        change_model(own, grounds / "two" / "model.keras")
    assert Card.read(own.folder).model == first and open_embedder(own).fingerprint == first
    assert [path.name for path in own.folder.iterdir() if "model" in path.name] == ["model"]


def test_switch_leaves_one_folder_of_an_encoder(own, grounds):
    change_model(own, grounds / "two" / "model.keras")
    assert own.model_path.read_bytes() == b"twofold" and not (own.folder / "model").exists()
    change_model(own, grounds / "one" / "model.keras")
    assert own.model_path.read_bytes() == b"one"
    assert [path.name for path in own.folder.iterdir() if path.name.startswith(("model", "."))] == ["model"]


def test_check_and_tidy_after_a_switch_look_at_the_encoder_in_use(own, grounds):
    """The stand-ins are no real networks, and that is what the check says of the folder in use."""
    other = Catalogue(own.folder)
    change_model(own, grounds / "two" / "model.keras")
    assert own.model_folder.name == "model-2"
    assert [each.where for each in check_open(own, files=True).findings if each.part == "model"] == [
        str(own.model_folder)
    ]
    with pytest.raises(UserError, match=CHANGED):
        tidy(other, cache=True)
    other.close()
    tidy(own, cache=True)
    with own.reading() as session:
        assert session.scalar(select(func.count()).select_from(Embedding)) == 8, "those of the encoder in use"


def test_backup_leaves_out_a_row_whose_path_leads_out(own, tmp_path):
    (own.folder.parent / "secret.txt").write_text("not yours", encoding="utf-8", newline="\n")
    with own.writing() as session:
        session.get(Photo, 1).path = "../secret.txt"
    manifest = back_up(own, tmp_path / "backup")
    assert manifest.missing == ("data/../secret.txt",) and not check_backup(tmp_path / "backup")
    assert not list(tmp_path.rglob("backup/**/secret.txt")) and not (tmp_path / "backup" / "secret.txt").exists()


def test_backup_names_a_photograph_that_cannot_be_read(own, tmp_path):
    with own.reading() as session:
        photo = session.get(Photo, 1)
        path = own.path(photo)
    content = path.read_bytes()
    try:
        path.unlink()
        path.mkdir()
        manifest = back_up(own, tmp_path / "backup")
    finally:
        path.rmdir()
        path.write_bytes(content)
    assert manifest.missing == (f"data/{photo.path}",) and not check_backup(tmp_path / "backup")
