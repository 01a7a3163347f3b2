"""Every writer killed at every step, and with a full disk from every step on: old or new is there, and nothing half."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import time
import zipfile
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from faults import Matrix, Nest, Writer, keep_result
from PIL import Image
from sqlalchemy import func, select

from happywhale_nb.catalogue import ingest as intake
from happywhale_nb.catalogue.build import keep_model
from happywhale_nb.catalogue.decisions import decide
from happywhale_nb.catalogue.schema import Decision, Encounter, Individual
from happywhale_nb.catalogue.store import CARD, Catalogue, copy_sqlite, create_catalogue
from happywhale_nb.catalogue.undoing import undo
from happywhale_nb.catalogue.upload_photos import Metadata, ingest_uploads
from happywhale_nb.catalogue.uploads import check_photo, keep_photo
from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import read_json, write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import BOX_COLUMNS
from happywhale_nb.data.check import write_skips
from happywhale_nb.data.dataset import read_dataset, read_skips
from happywhale_nb.data.download import unpack_archive
from happywhale_nb.data.importers import plan_source, write_import
from happywhale_nb.data.near_duplicates import find_near_duplicates, read_near_duplicates
from happywhale_nb.demo.dataset import draw_demo
from happywhale_nb.ensemble.blending import blend_files
from happywhale_nb.imaging.crops import decode_crop, load_crops
from happywhale_nb.retrieval.embeddings import image_embeddings, read_embeddings, write_embeddings
from happywhale_nb.retrieval.predictions import (
    check_submission,
    read_predictions,
    read_scores,
    write_predictions,
    write_scores,
)
from happywhale_nb.retrieval.search import ExactIndex
from happywhale_nb.stages.blend_inputs import select_runs
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.workflow import kaggle
from happywhale_nb.workflow.compare import collect_results
from happywhale_nb.workflow.provenance import begin_record, done_file, job_stamp, record_path, write_record

SEED, EACH = 20260731, 3  # of the sample that is tried without `make soak`: faults of each writer and start

# What `read` returns is compared only.


def digest(path):
    """Sixteen digits of the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def shown(folder, pattern):
    """Files below a folder whose names match, without those that a write is prepared in."""
    paths = (path for path in folder.rglob(pattern) if path.is_file() or path.is_symlink())
    return sorted(p for p in paths if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def digest_of(folder):
    """The same of all files of a folder with their names; links count by where they lead."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        what = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"/"
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + what)
    return found.hexdigest()[:16]


def single(target, write, read, again=True, **how):
    """A `Writer` of one file or folder: `write(path, word)` makes the version called by a word, `read(path)` says what
    is in a whole one. again: whether an earlier version may be there."""

    def steps(word):
        def run(ground, folder):
            write(folder / target, word)
            yield

        return run

    def found(ground, folder):
        return {target: read(folder / target) if (folder / target).exists() else None}

    return Writer(steps("new"), found, steps("old") if again else None, **how)


# --- known limits: what goes wrong today and is left out; each goes when the package is mended


def second_rename(start, fault, steps):
    """`atomic` moves an old folder aside, and the new one to its place. If that fails it removes both."""
    last = max((i for i, name in enumerate(steps, 1) if name == "os.rename"), default=0)
    return start == "earlier" and fault == {"kind": "full", "at": last}


def second_rename_or_last_block(start, fault, steps):
    """`numpy.save` (2.4) does not tell that there is no room for the last 4096 bytes of an array, here of 76,928; the
    half file then takes the place of the whole one."""
    return second_rename(start, fault, steps) or (fault["kind"] == "size" and fault["at"] >= 76_928 - 4096)


def second_remove(start, fault, steps):
    """`begin_record` removes an old record, then its mark. A mark that is left alone is never removed."""
    removed = [i for i, name in enumerate(steps, 1) if name == "os.remove"]
    return start == "earlier" and fault == {"kind": "kill", "at": removed[1]}


# a folder that cannot be moved aside, and a copy for which there is no room (`shutil` names the source as the file at
# fault), are told as the system tells them, not as `atomic` promises
COPY = ("write",)


def replaced(target, *untold, limit=second_rename):
    """What holds for a folder that takes another one's place."""
    return {"gone": (target,), "untold": ("os.rename", *untold), "limit": limit}


# --- tables, vectors, JSON


def content_of(word):
    return {"word": word, "numbers": list(range(3000)), "nested": [{"x": None}] * 10}


def write_content(path, word):
    write_json(path, content_of(word))


def read_content(path):
    found = read_json(path)
    assert found == content_of(found["word"])
    return found["word"]


def answers_of(word, n=300):
    images = [f"{i}.jpg" for i in range(1, n)]
    return images, [[*dict.fromkeys(f"{word}{(i * j) % 97}" for j in (1, 2, 3, 5, 8))] for i in range(1, n)]


def write_answers(path, word):
    write_predictions(path, *answers_of(word))


def read_answers(path):
    assert check_submission(path) == []
    images, rows = read_predictions(path)
    word = rows[0, 0].rstrip("0123456789")
    assert (images.tolist(), [[name for name in row if name] for row in rows.tolist()]) == answers_of(word)
    return word


def vectors_of(word, n=300, width=64):
    vectors = np.random.default_rng(len(word)).normal(size=(n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * (1 if word == "new" else -1)


def write_vectors(path, word):
    write_embeddings(path, image_embeddings("train", [f"{i}.jpg" for i in range(300)], vectors_of(word)))


def word_of(vectors):
    (word,) = [word for word in ("old", "new") if (vectors == vectors_of(word)).all()]
    return word


def read_vectors(path):
    return word_of(read_embeddings(path).vectors)


def write_candidates(path, word):
    vectors = vectors_of(word, width=10)
    write_scores(path, range(300), (vectors * 1000).astype(int).astype(str), vectors)


def read_candidates(path):
    ids, scores = read_scores(path, map(str, range(300)))
    (word,) = [word for word in ("old", "new") if (scores == vectors_of(word, width=10)).all()]
    assert ids.shape == (300, 10)
    return word


def write_index(path, word):
    index = ExactIndex()
    index.add(range(300), vectors_of(word))
    index.save(path)


def read_index(path):
    index = ExactIndex.load(path)
    assert len(index) == 300
    return "new" if (index.vectors[0] * vectors_of("new")[0]).sum() > 0.9 else "old"


def blend_writer():
    """Thirty lists would be no other than three."""

    def ground(folder):
        for word in ("a", "b", "c"):
            write_answers(folder / f"{word}.csv", word)

    def steps(voting):
        def run(ground, folder):
            blend_files(sorted(ground.glob("*.csv")), folder / "submission.csv", voting=voting, weights=[1, 1.2, 0.7])
            yield

        return run

    def read(ground, folder):
        path = folder / "submission.csv"
        if not path.exists():
            return {"submission.csv": None}
        assert check_submission(path, ground / "a.csv") == []
        return {"submission.csv": digest(path)}

    return Writer(steps("paper"), read, steps("borda"), ground)


# --- photographs and data folders


def draw_photo(path, seed, size=(64, 48)):
    """A drawn JPEG; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)).save(path, "JPEG")
    return path.read_bytes()


def data_folder(folder):
    """A data folder: six photographs of three animals, and two to be asked about."""
    rows = [(f"{i}.jpg", "beluga", f"B{i % 3}") for i in range(6)]
    for i in range(6):
        draw_photo(folder / "train_images" / f"{i}.jpg", i)
    for i in range(2):
        draw_photo(folder / "test_images" / f"t{i}.jpg", 100 + i)
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "species", "individual_id"), *rows])


def crops_writer():
    def steps(ground, folder):
        os.cpu_count = lambda: 1  # one thread: the steps come in one order
        paths = sorted((ground / "train_images").iterdir())
        load_crops(paths, pd.DataFrame(index=range(len(paths)), columns=BOX_COLUMNS, dtype=float), 32, folder)
        yield

    def read(ground, folder):
        found = {path.name: decode_crop(path.read_bytes(), path.stem) for path in shown(folder, "*.png")}
        return {name: hashlib.sha256(pixels.tobytes()).hexdigest() for name, pixels in found.items()}

    return Writer(steps, read, ground=data_folder)


def folds_writer():
    def steps(ground, folder):
        study_folds(read_dataset(ground), folder, k=3)
        yield

    def read(ground, folder):
        found = dict.fromkeys(("folds.csv", "study.json"))
        if (folder / "folds.csv").exists():
            table = study_folds(read_dataset(ground), folder, k=3, save=False)  # refuses other folds
            found["folds.csv"] = table["fold"].tolist()
        if (folder / "study.json").exists():
            found["study.json"] = read_json(folder / "study.json")
        return found

    return Writer(steps, read, ground=data_folder)


def duplicates_writer():
    def steps(ground, folder):
        find_near_duplicates(read_dataset(ground), folder, progress=False)
        yield

    def ground(folder):
        data_folder(folder)
        shutil.copy(folder / "train_images" / "0.jpg", folder / "train_images" / "3.jpg")

    def read(ground, folder):
        found = read_near_duplicates(read_dataset(ground), folder)
        return {"pairs": None if found is None else found.to_csv()}

    return Writer(steps, read, ground=ground)


def write_unusable(path, word):
    findings = [SimpleNamespace(kind="truncated", file=f"train_images/{word}{i}.jpg", detail="") for i in range(200)]
    write_skips(SimpleNamespace(root=path.parent, findings=findings))


def read_unusable(path):
    return read_skips(path.parent)["image"].tolist()


def import_writer(copy):
    def ground(folder):
        for i in range(5):
            draw_photo(folder / "photos" / f"B{i % 2}" / f"{i}.jpg", i)
        rows = [(f"{i}.jpg", f"B{i % 2}" if i < 4 else "", 1, 2, 30, 20) for i in range(5)]
        with (folder / "photos" / "table.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file", "individual", "x", "y", "w", "h"), *rows])

    def steps(ground, folder):
        if not (folder / "data").exists():  # an import into what is there is refused
            plan = plan_source(ground / "photos" / "table.csv", species="beluga")
            write_import(plan, folder / "data", copy=copy, progress=False)
        yield

    def read(ground, folder):
        if not (folder / "data").exists():
            return {"data": None}
        data = read_dataset(folder / "data")
        assert len(data.train) == 4 and len(data.test) == 1 and (data.root / "boxes" / "annotated.csv").is_file()
        return {"data": digest_of(data.root)}

    return Writer(steps, read, ground=ground, untold=COPY if copy else ())


def unpack_writer():
    def ground(folder):
        with zipfile.ZipFile(folder / "archive.zip", "w") as packed:
            for i in range(4):
                packed.writestr(f"train_images/{i}.jpg", bytes([i]) * (5000 + 3000 * i))

    def steps(ground, folder):
        unpack_archive(ground / "archive.zip", folder, progress=False)
        yield

    def read(ground, folder):
        with zipfile.ZipFile(ground / "archive.zip") as packed:
            there = [name for name in packed.namelist() if (folder / name).exists()]
            whole = {name: (folder / name).read_bytes() == packed.read(name) for name in there}
        assert all(whole.values()), whole
        return whole

    return Writer(steps, read, ground=ground)


def write_demo(path, word):
    how = {"individuals": 2, "train_photos": 3, "test_photos": 1, "size": (96, 96), "progress": False}
    draw_demo(path, seed=len(word) + (word == "old"), n_jobs=1, **how)


def read_demo(path):
    data = read_dataset(path)
    assert (len(data.train), len(data.test)) == (3, 1)
    return digest_of(path)


# --- a study's records


def record_writer():
    """A stage's run record, and the empty file beside it that says that the stage has ended."""

    def steps(seed):
        def run(ground, folder):
            output, values = folder / "03_train.ipynb", {"data_dir": "data", "seed": seed}
            stamp = job_stamp("train", values, "f00d")
            begin_record(output, stamp)
            record = write_record(output, "train", values, "f00d", 1.0, {"hash": "c0ffee", "changes": None})
            done_file(record).touch()
            yield

        return run

    def read(ground, folder):
        found = {}
        for seed in (0, 1):
            stamp = job_stamp("train", {"data_dir": "data", "seed": seed}, "f00d")
            path = record_path(folder / "03_train.ipynb", stamp)
            found[f"record {seed}"] = read_json(path)["parameters"] if path.exists() else None
            found[f"mark {seed}"] = done_file(path).exists() or None
            # a mark alone would say that a stage is done whose results are another run's
            assert not found[f"mark {seed}"] or found[f"record {seed}"], f"a mark without its record, seed {seed}"
        return found

    # the mark is made without `atomic`: no room for it is told as the system tells it
    return Writer(steps(1), read, steps(0), untold=("open",), limit=second_remove)


def model_files(folder):
    for word in ("old", "new"):
        (folder / word).mkdir()
        (folder / word / "model.keras").write_bytes(word.encode() * 20_000)
        (folder / word / "config.json").write_text(json.dumps({"word": word}))


def write_model_folder(path, word):
    keep_model(path.parent, path.parent.with_name("ground") / word / "model.keras")


def read_model_folder(path):
    word = json.loads((path / "config.json").read_text())["word"]
    assert (path / "model.keras").read_bytes() == word.encode() * 20_000
    return word


def write_kaggle(path, word):
    """As `happywhale kaggle build`, with a wheel that is there already: pip's own files are not the question here."""
    kaggle.build_wheel = lambda folder: (folder / "happywhale_nb-0-py3-none-any.whl").write_bytes(b"wheel" * 9000)
    kaggle.build_folder(path, "jo", "whales", {"seed": str(len(word))}, prefix=f"study {word}", weights="jo/weights")


def read_kaggle(path):
    cards = sorted(path.glob("*/kernel-metadata.json"))
    ids = {json.loads(card.read_text())["id"] for card in cards}
    for card in cards:
        json.loads((card.parent / json.loads(card.read_text())["code_file"]).read_text())
    assert len(ids) == 8 and json.loads((path / "dataset" / "dataset-metadata.json").read_text())["id"]
    return sorted(ids)


def take_up_writer():
    def ground(folder):
        for i in range(3):
            path = folder / "input" / "notebook" / "outputs" / "study" / f"{i}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(list(range(2000 + i))))
        draw_photo(path.parent / "crops" / "x.jpg", 0)
        (folder / "input" / "weights").mkdir()
        (folder / "input" / "weights" / "b5.h5").write_bytes(b"h5" * 9000)

    def steps(ground, folder):
        kaggle.restore_outputs(ground / "input", folder / "working", folder / "keras")
        yield

    def read(ground, folder):
        files = {path.name: len(json.loads(path.read_text())) for path in shown(folder, "*.json")}
        return files | {path.name: digest(path) for path in shown(folder, "*") if path.is_symlink()}

    # nor are Keras' folder and the link in it written by `atomic`
    return Writer(steps, read, ground=ground, untold=(*COPY, "os.mkdir", "os.symlink"))


# --- the catalogue


class Colours:
    """Stands in for a network: the mean colours of a photograph's quarters."""

    fingerprint, width, detector = "c010" * 4, 12, None
    settings = {"image_size": 8, "margin": 0.05, "keep_aspect": False, "sources": "auto", "boxed": True}  # noqa: RUF012

    def crop_boxes(self, images, boxes=None):
        return [("whole", None, None) for _ in images]

    def embed(self, paths, boxes=None, quiet=True):
        small = [np.asarray(Image.open(path).resize((2, 2)), np.float32).ravel() for path in paths]
        vectors = np.array(small).reshape(len(small), self.width) - 127
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows_of(path, question):
    """Rows of a database that nobody has open, or that a process which died has left."""
    with closing(sqlite3.connect(path)) as database:
        return [list(row) for row in database.execute(question)]


def read_catalogue(folder):
    """What is in the catalogue of a folder: no photograph without crop, embedding, or its whole file."""
    path = folder / "catalogue.sqlite"
    assert rows_of(path, "PRAGMA integrity_check") == [["ok"]] and rows_of(path, "PRAGMA foreign_key_check") == []
    photos = "SELECT p.id, p.name, p.path, p.kept, p.sha256, e.name FROM photos p JOIN encounters e"
    found = rows_of(path, f"{photos} ON e.id = p.encounter_id ORDER BY p.id")
    for number, _, place, kept, sha256, _ in found:
        for table in ("crops", "embeddings"):
            about = f"SELECT count(*) FROM {table} JOIN annotations a ON a.id = annotation_id WHERE photo_id = {number}"
            assert rows_of(path, about) == [[1 if place else 0]], place  # of a deleted one only the row is left
        assert not (kept and place) or hashlib.sha256((folder / place).read_bytes()).hexdigest() == sha256, place
    met = "SELECT e.name, e.state, e.version, i.name, i.active FROM encounters e LEFT JOIN individuals i"
    trail = "SELECT kind, who, encounter_id, individual_id, undoes_id, undone_by_id FROM decisions ORDER BY id"
    return {
        "photos": found,
        "encounters": rows_of(path, f"{met} ON i.id = e.individual_id ORDER BY e.id"),
        "decisions": rows_of(path, trail),
        "individuals": rows_of(path, "SELECT name, active, merged_into_id FROM individuals ORDER BY id"),
    }


def build_catalogue(ground, folder):
    """A catalogue of the data folder `ground`: made, built, with its model. Given again it goes on."""
    intake.LOT = 2  # photographs in one transaction
    made = Catalogue(folder) if (folder / CARD).is_file() else create_catalogue(folder, ground, "drawn")
    intake.ingest_dataset(made, Colours(), read_dataset(ground), "colours")
    made.choose_model(Colours.fingerprint)
    intake.recalibrate(made)
    made.close()
    yield


def build_writer():
    def read(ground, folder):
        if not (folder / CARD).is_file():
            return {"card": None}
        found = read_catalogue(folder)
        rows = {f"photograph {row[2]}": row[1:] for row in found["photos"]}
        rows |= {f"encounter {row[0]}": row for row in found["encounters"]}
        card, kept = read_json(folder / CARD), "SELECT calibration IS NOT NULL FROM models"
        # the card is written twice: with and without its model
        return rows | {"card": True, "model": card["model"] or None} | {
            "calibrated": (rows_of(folder / "catalogue.sqlite", kept) or [[0]])[0][0] or None
        }  # fmt: skip

    return Writer(build_catalogue, read, ground=data_folder, says=False, largest=216_000, by_sql=True)


def desk_writer():
    """A morning's work: photographs arrive, three decisions, one is undone. Each line of the trail is acknowledged."""

    def ground(folder):
        data_folder(folder)
        for i in range(2):
            draw_photo(folder / "new" / f"n{i}.jpg", 200 + i)

    def take(catalogue, ground):
        metadata = Metadata(name="visit", place="bay", species="beluga")
        files = [(path.name, path.read_bytes()) for path in sorted((ground / "new").iterdir())]
        ingest_uploads(catalogue, Colours(), "ann", files, metadata=metadata)

    def decision(catalogue, visit, kind, **given):
        with catalogue.writing() as session:
            met = session.scalar(select(Encounter).where(Encounter.name == visit))
            if "individual" in given:
                who = session.scalar(select(Individual.id).where(Individual.name == given.pop("individual")))
                given["individual_id"] = who
            decide(session, "ann", met.id, kind, met.version, **given)

    def undo_last(catalogue, ground):
        with catalogue.writing() as session:
            undo(session, "ann", session.scalar(select(func.max(Decision.id))))

    lines = (
        take,
        lambda catalogue, ground: decision(catalogue, "visit", "new", name="N1"),
        lambda catalogue, ground: decision(catalogue, "test_images/t0.jpg", "confirm", individual="N1"),
        undo_last,
        lambda catalogue, ground: decision(catalogue, "test_images/t1.jpg", "confirm", individual="B1"),
    )

    def steps(ground, folder):
        catalogue = Catalogue(folder)
        done = rows_of(folder / "catalogue.sqlite", "SELECT count(*) FROM decisions")[0][0]
        for number, line in enumerate(lines):
            if number >= done:
                line(catalogue, ground)
            yield
        catalogue.close()

    def read(ground, folder):
        # one transaction is one target: what is in it is there together, or not at all
        return {"all": read_catalogue(folder)} if (folder / "catalogue.sqlite").exists() else {"all": None}

    return Writer(steps, read, build_catalogue, ground, says=False, largest=190_000, by_sql=True)


def export_writer():
    def ground(folder):
        data_folder(folder / "data")
        for _ in build_catalogue(folder / "data", folder / "catalogue"):
            pass

    def steps(kind):
        def run(ground, folder):
            words = ["catalogue", "export", str(ground / "catalogue"), kind, "-o", str(folder / "table")]
            done = CliRunner().invoke(main, words)
            if done.exit_code == 2 and done.exception.__class__ is SystemExit:
                raise UserError(done.output)
            if done.exception:
                raise done.exception
            yield

        return run

    def read(ground, folder):
        return {"table": digest(folder / "table") if (folder / "table").exists() else None}

    # below 32 kB no SQLite database can be opened, and that is what is told
    return Writer(steps("csv"), read, steps("mark"), ground, untold=("write",))


def keep_photo_writer():
    def steps(ground, folder):
        for i in range(2):
            data = (ground / "train_images" / f"{i}.jpg").read_bytes()
            keep_photo(folder, data, check_photo(data))
            yield

    def read(ground, folder):
        paths = shown(folder, "*.jpg")
        whole = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in paths}
        assert all(whole.values()), whole
        return whole

    # the folders are synchronized after the file is there; if that fails, it is told as the system tells it
    return Writer(steps, read, ground=data_folder, untold=("os.fsync",))


def copy_writer():
    def ground(folder):
        data_folder(folder / "data")
        for _ in build_catalogue(folder / "data", folder / "catalogue"):
            pass

    def steps(ground, folder):
        copy_sqlite(ground / "catalogue" / "catalogue.sqlite", folder / "copy.sqlite")
        yield

    def read(ground, folder):
        path = folder / "copy.sqlite"
        if not path.exists():
            return {"copy.sqlite": None}
        assert rows_of(path, "PRAGMA integrity_check") == [["ok"]]
        return {"copy.sqlite": rows_of(path, "SELECT count(*) FROM photos")}

    # SQLite's own error is told, not what `atomic` promises
    return Writer(steps, read, ground=ground, says=False)


# --- a training's state


def state_writer():
    """With Keras no process is forked: each fault costs seconds."""

    def model():
        import keras

        keras.utils.set_random_seed(0)
        made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        made.compile("adam", "mse")
        made.optimizer.build(made.trainable_variables)
        return made

    def steps(epochs):
        def run(ground, folder):
            import keras

            from happywhale_nb.networks.callbacks import TrainingState

            state, network = TrainingState(folder, "stamp"), model()
            history = state.load(network)
            if len(history) < epochs:
                network.set_weights([keras.ops.full(w.shape, epochs) for w in network.weights])
                state.save(network, [{"epoch": epoch} for epoch in range(1, epochs + 1)])
            yield

        return run

    def read(ground, folder):
        from happywhale_nb.networks.callbacks import TrainingState

        network = model()
        history = TrainingState(folder, "stamp").load(network)
        weights = {float(value) for w in network.weights for value in w.numpy().ravel()}
        assert not history or weights == {float(len(history))}, f"weights of {weights} after epoch {len(history)}"
        return {"resume.json": len(history) or None}

    # h5py (3.14) crashes when it closes a file there is no room for: the state stays, but nobody is told
    return Writer(steps(3), read, steps(2), untold=("crash",), fork=False)


WRITERS = {
    "half": single("whole/knn.json", write_content, read_content),
    "runs.write_json": single("deep/down/figures.json", write_content, read_content),
    "predictions.write_predictions": single("submission.csv", write_answers, read_answers),
    "predictions.write_scores": single("oof_scores.parquet", write_candidates, read_candidates),
    "embeddings.write_embeddings": single("embeddings.parquet", write_vectors, read_vectors),
    "search.ExactIndex.save": single(
        "index", write_index, read_index, **replaced("index", limit=second_rename_or_last_block)
    ),
    "blending.blend_files": blend_writer(),
    "crops.load_crops": crops_writer(),
    "splits.study_folds": folds_writer(),
    "duplicates.near_duplicates": duplicates_writer(),
    "check.write_skips": single("skip.csv", write_unusable, read_unusable, again=False),
    "importing.write_import links": import_writer(copy=False),
    "importing.write_import copies": import_writer(copy=True),
    "download.unpack_archive": unpack_writer(),
    "demo.draw_demo": single("demo", write_demo, read_demo, **replaced("demo")),
    "records.keep_record": record_writer(),
    "serving.keep_model": single(
        "model", write_model_folder, read_model_folder, ground=model_files, **replaced("model", *COPY)
    ),
    "kaggle.build_folder": single("kaggle", write_kaggle, read_kaggle, **replaced("kaggle")),
    "kaggle.restore_outputs": take_up_writer(),
    "uploads.keep_photo": keep_photo_writer(),
    "catalogue.copy_sqlite": copy_writer(),
    "intake.ingest_dataset": build_writer(),
    "decisions.decide, upload_photos.ingest_uploads": desk_writer(),
    "exports.export_sightings": export_writer(),
    "callbacks.TrainingState.save": state_writer(),
}
STARTS = [(name, "nothing") for name in WRITERS] + [(name, "earlier") for name, each in WRITERS.items() if each.old]
# there has to be a catalogue to decide in; `half` is for the two tests at the end
LATER = ("decisions.decide, upload_photos.ingest_uploads", "nothing")
STARTS = [pair for pair in STARTS if pair[0] != "half" and pair != LATER]
SLOW = {"callbacks.TrainingState.save", "kaggle.build_folder", "demo.draw_demo"}


@pytest.fixture(scope="module")
def nest():
    with Nest("test_soak_writes") as made:
        yield made


@pytest.fixture(scope="module")
def table():
    """Rows of all writers, kept when the last of them has been tried."""
    rows, began = [], time.monotonic()
    yield rows
    if len(rows) == len(STARTS):
        keep_result("writes", rows, time.monotonic() - began)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "start"), STARTS)
def test_writer_killed_or_out_of_space_at_any_step_leaves_old_or_new(name, start, nest, table, tmp_path):
    most = 6 if name == "callbacks.TrainingState.save" else None  # each takes two new processes with Keras
    row, wrong = Matrix(nest, name, WRITERS[name], tmp_path, start).run(most, random.Random(SEED))
    table.append(row)
    assert not wrong, "\n".join(wrong)


@pytest.mark.kill
@pytest.mark.parametrize(("name", "start"), [pair for pair in STARTS if pair[0] not in SLOW])
def test_writer_killed_or_out_of_space_at_some_steps_leaves_old_or_new(name, start, nest, tmp_path):
    _, wrong = Matrix(nest, name, WRITERS[name], tmp_path, start).run(EACH, random.Random(SEED))
    assert not wrong, "\n".join(wrong)


def killed_in_the_middle(nest, tmp_path):
    """A study in which a process died while it wrote a model's `knn.json`: the study's folder."""
    (tmp_path / "ground").mkdir()
    (tmp_path / "study").mkdir()
    places = {"ground": str(tmp_path / "ground"), "folder": str(tmp_path / "study")}
    done = nest.run({"writer": "half", "part": "write", "fault": {"kind": "cut", "at": 50}} | places)
    assert done["status"] == -signal.SIGXFSZ
    (left,) = (tmp_path / "study").rglob("knn.json")
    assert left.stat().st_size == 50
    oof = {"map5": 0.5, "map5_known": 0.5}
    write_json(tmp_path / "study" / "whole" / "knn.json", {"folds": {"0": {}}, "oof": oof})
    return tmp_path / "study"


MENDED = "what a write was prepared in is taken for a result after a kill"


@pytest.mark.kill
@pytest.mark.xfail(raises=UserError, strict=True, reason=MENDED)
def test_select_runs_after_a_kill_in_the_middle_of_a_write_lists_the_whole_models(nest, tmp_path):
    found = select_runs(killed_in_the_middle(nest, tmp_path))
    assert found["model"].tolist() == ["whole"]


@pytest.mark.kill
@pytest.mark.xfail(raises=UserError, strict=True, reason=MENDED)
def test_gather_after_a_kill_in_the_middle_of_a_write_finds_the_whole_files(nest, tmp_path):
    assert list(collect_results(killed_in_the_middle(nest, tmp_path)).files) == ["whole/knn.json"]
