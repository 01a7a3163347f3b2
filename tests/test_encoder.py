"""Single photographs through a trained model: the vectors of training, for many people at once; and what is refused."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from happywhale_nb.boxes import COLUMNS, read_boxes
from happywhale_nb.dataset import read_dataset
from happywhale_nb.embeddings import read_embeddings
from happywhale_nb.paths import UserError
from happywhale_nb.runs import write_json

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    """`(data set, fold's folder)` of one fold trained, quick."""
    from happywhale_nb.presets import configure
    from happywhale_nb.splits import study_folds
    from happywhale_nb.train import train_stage

    dataset, folder = read_dataset(tiny), tmp_path_factory.mktemp("study") / "asked-quick"
    folder.mkdir()
    config = configure("small_resnet_arcface", quick=True)
    train_stage(dataset, study_folds(dataset, folder, 2), 0, "small_resnet_arcface", config, folder)
    return dataset, folder / "small_resnet_arcface" / "fold0"


@pytest.fixture(scope="module")
def embedder(trained):
    from happywhale_nb.encoding import Embedder

    opened = Embedder(trained[1] / "model.keras")
    yield opened
    opened.close()


def test_single_photographs_have_the_vectors_of_training(trained, embedder):
    dataset, place = trained
    stored, boxes = read_embeddings(place / "embeddings.parquet"), read_boxes(dataset.root)
    images, paths = dataset.train["image"].tolist(), dataset.train_paths()

    def ask(i):
        return embedder.embed([paths[i]], boxes[boxes["image"] == images[i]])[0]

    with ThreadPoolExecutor(16) as people:
        asked = np.stack(list(people.map(ask, range(len(paths)))))
    assert np.abs(asked - stored.of(images)).max() < 1e-5
    assert np.abs(embedder.embed(paths, boxes) - asked).max() < 1e-5
    assert embedder.width == asked.shape[1] and embedder.embed([]).shape == (0, embedder.width)


def test_the_box_of_a_person_goes_before_all_others(trained, embedder):
    dataset, _ = trained
    image, path = dataset.train["image"][0], dataset.train_paths()[0]
    known = read_boxes(dataset.root).query("image == @image")
    person = pd.DataFrame([[image, "person", 5.04, 6, 60, 50, 1.0, 120.0, 80.0]], columns=COLUMNS)
    ((source, box, frame), other) = embedder.crop_boxes([image, "other"], pd.concat([known, person]))
    assert (source, box, frame) == ("person", [5.0, 6, 60, 50], [120, 80]) and other == ("whole", None, None)
    assert embedder.crop_boxes([image]) == [other] and embedder.crop_boxes([image], known)[0][0] == "fullbody"
    ours = embedder.crop(path, box, frame)
    assert (ours != embedder.crop(path)).any() and ours.shape == (embedder.settings["image_size"],) * 2 + (3,)
    moved, whole = embedder.embed([path], pd.concat([known, person])), embedder.embed([path])
    assert np.abs(moved - whole).max() > 1e-3 and np.abs(moved - embedder.embed([path], person)).max() < 1e-6


def test_one_bad_photograph_troubles_nobody_else(trained, embedder, tmp_path):
    (tmp_path / "half.jpg").write_bytes(trained[0].train_paths()[0].read_bytes()[:400])
    with pytest.raises(UserError, match=r"half\.jpg cannot be decoded"):
        embedder.embed([tmp_path / "half.jpg"])
    with pytest.raises(ZeroDivisionError):
        embedder.call(lambda: 1 / 0)
    assert embedder.thread.coming == 0 and embedder.call(lambda: 7) == 7
    assert len(embedder.embed(trained[0].train_paths()[:1])) == 1


def test_the_heat_of_a_match_is_grad_cam_of_its_similarity(trained, embedder, monkeypatch):
    import cv2
    import keras

    from happywhale_nb.gradcam import similarity_cam
    from happywhale_nb.heat import PROBES, heat_png, match_heat

    one, two = (embedder.crop(path) for path in trained[0].train_paths()[:2])
    with monkeypatch.context() as patch, pytest.raises(UserError, match="KERAS_BACKEND=tensorflow"):
        patch.setattr(keras.backend, "backend", lambda: "jax")
        match_heat(embedder, one, two)
    before = embedder.embed(trained[0].train_paths()[:2])
    heats, probe = match_heat(embedder, one, two), PROBES[embedder]
    first, second, _ = similarity_cam(embedder.model, one[None], two[None])
    assert np.abs(heats[0] - first[0]).max() < 1e-4 and np.abs(heats[1] - second[0]).max() < 1e-4
    assert max(heat.max() for heat in heats) == 1 and min(heat.min() for heat in heats) == 0
    swapped = match_heat(embedder, two, one)
    assert np.abs(swapped[0] - heats[1]).max() < 1e-4 and PROBES[embedder] is probe
    assert np.array_equal(before, embedder.embed(trained[0].train_paths()[:2]))
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    layer = cv2.imdecode(np.frombuffer(heat_png(ramp, 100), np.uint8), cv2.IMREAD_UNCHANGED)
    grey = cv2.cvtColor(layer[..., :3], cv2.COLOR_BGR2GRAY)[50].astype(int)
    assert layer.shape == (100, 100, 4) and layer[50, 0, 3] == 0 and layer[50, -1, 3] == round(0.75 * 255)
    assert (np.diff(layer[50, :, 3].astype(int)) >= 0).all() and (np.diff(grey) >= -1).all()


def test_a_changed_model_has_another_fingerprint(trained, embedder, tmp_path):
    from happywhale_nb.encoding import Embedder, read_model

    model, record = read_model(trained[1] / "model.keras")
    layer = model.get_layer("embedding")
    write_json(tmp_path / "config.json", record)
    found = []
    for kernel in (layer.get_weights()[0], 1.01 * layer.get_weights()[0]):
        layer.set_weights([kernel, *layer.get_weights()[1:]])
        model.save(tmp_path / "model.keras")
        other = Embedder(tmp_path / "model.keras")
        other.close()
        found.append(other.fingerprint)
    assert found[1] not in (found[0], embedder.fingerprint)
    with pytest.raises(UserError, match="shut down"):
        other.embed(trained[0].train_paths()[:1])
    with pytest.raises(UserError, match="no detector"):
        embedder.detect(trained[0].train_paths()[:1])


def test_a_model_with_code_in_it_is_refused_and_not_run(tmp_path):
    import keras

    from happywhale_nb.encoding import Embedder

    mark = f"{tmp_path}/ran"
    pixels = keras.Input((8, 8, 3))
    hostile = keras.layers.Lambda(lambda x: [open(mark, "w").close(), x][1], name="embedding", output_shape=(8, 8, 3))
    keras.Model(pixels, hostile(pixels)).save(tmp_path / "model.keras")
    Path(mark).unlink(missing_ok=True)  # building it has run it
    write_json(tmp_path / "config.json", {"parameters": {}})
    with pytest.raises(UserError, match="holds code of its own"):
        Embedder(tmp_path / "model.keras")
    assert not Path(mark).exists()
    keras.Model(pixels, keras.layers.Flatten()(pixels)).save(tmp_path / "model.keras")
    with pytest.raises(UserError, match="no layer called 'embedding'"):
        Embedder(tmp_path / "model.keras")
    (tmp_path / "model.keras").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(UserError, match="cannot be read as a model"):
        Embedder(tmp_path / "model.keras")
    with pytest.raises(UserError, match="there is no model"):
        Embedder(tmp_path / "other.keras")


@pytest.fixture
def held():
    """`(a network's thread of 8 places, an event that it waits for)`; its vector is the crop's mean."""
    from happywhale_nb.encoding import NetworkThread

    go = threading.Event()

    def run(pixels):
        assert go.wait(20)
        return pixels.mean(axis=(1, 2, 3))[:, None]

    yield NetworkThread(run, limit=8), go
    go.set()


def test_whoever_comes_when_it_is_full_is_told_so_and_the_others_are_served(held):
    from happywhale_nb.encoding import Busy

    thread, go = held
    ready = threading.Barrier(9)

    def ask(i):
        with thread.room():
            ready.wait(20)
            return float(thread.do(np.full((1, 2, 2, 3), i, np.uint8))[0, 0])

    with ThreadPoolExecutor(8) as people:
        asked = [people.submit(ask, i) for i in range(8)]
        ready.wait(20)
        with pytest.raises(Busy, match="8 photographs are waiting"), thread.room():
            raise AssertionError("there was room")
        time.sleep(0.5)  # all have handed over their crops by now
        go.set()
        assert [answer.result(20) for answer in asked] == list(range(8))
    assert thread.coming == 0 and thread.batches < 8
    thread.close()


def test_closing_waits_for_what_was_begun(held):
    thread, go = held
    begun = threading.Event()

    def ask():
        with thread.room():
            begun.set()
            return thread.do(np.full((1, 2, 2, 3), 9, np.uint8))[0, 0]

    with ThreadPoolExecutor(2) as people:
        answer = people.submit(ask)
        assert begun.wait(20)
        closing = people.submit(thread.close)
        go.set()
        assert answer.result(20) == 9
        closing.result(20)
    assert not thread.thread.is_alive()
    with pytest.raises(UserError, match="shut down"), thread.room():
        raise AssertionError("there was room")
