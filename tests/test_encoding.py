"""A trained model asked about single photographs, by many threads at once: vectors, crops, heat maps, and limits."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from happywhale_nb.core.artifacts import write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import BOX_COLUMNS, read_boxes
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.demo.season import demo_model
from happywhale_nb.networks.embedder import Busy, Embedder, NetworkThread
from happywhale_nb.networks.gradcam import PROBES, heat_png, match_heat, similarity_cam
from happywhale_nb.networks.presets import configure
from happywhale_nb.retrieval.embeddings import read_embeddings

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def dataset(tiny):
    return read_dataset(tiny)


@pytest.fixture(scope="module")
def embedder():
    """The network that comes with the package, with its detector."""
    opened = Embedder(demo_model(), demo_model("detector.keras"))
    yield opened
    opened.close()


def ask_one_by_one(embedder, images, paths, boxes):
    """Embeddings of photographs, each asked for alone, by 16 threads."""

    def ask(i):
        return embedder.embed([paths[i]], boxes[boxes["image"] == images[i]])[0]

    with ThreadPoolExecutor(16) as people:
        return np.stack([each.result(120) for each in [people.submit(ask, i) for i in range(len(paths))]])


def test_embed_of_single_photographs_gives_the_vectors_of_training(study, whole):
    dataset, place = read_dataset(whole / "data" / "tiny"), study / "small_resnet_arcface" / "fold0"
    stored, boxes = read_embeddings(place / "embeddings.parquet"), read_boxes(dataset.root)
    images, paths = dataset.train["image"].tolist(), dataset.train_paths()
    embedder = Embedder(place / "model.keras")
    asked = ask_one_by_one(embedder, images, paths, boxes)
    embedder.close()
    assert np.abs(asked - stored.of("train", images)).max() < 1e-5


def test_embed_by_16_threads_gives_the_vectors_of_one_batch(dataset, embedder):
    images, paths, boxes = dataset.train["image"].tolist(), dataset.train_paths(), read_boxes(dataset.root)
    asked = ask_one_by_one(embedder, images, paths, boxes)
    assert np.abs(embedder.embed(paths, boxes) - asked).max() < 1e-5
    assert embedder.width == asked.shape[1] and embedder.embed([]).shape == (0, embedder.width)


def test_crop_boxes_of_a_person_go_before_all_others(dataset, embedder):
    image, path = dataset.train["image"][0], dataset.train_paths()[0]
    known = read_boxes(dataset.root).query("image == @image")
    person = pd.DataFrame([[image, "person", 5.04, 6, 60, 50, 1.0, 120.0, 80.0]], columns=BOX_COLUMNS)
    ((source, box, frame), other) = embedder.crop_boxes([image, "other"], pd.concat([known, person]))
    assert (source, box, frame) == ("person", [5.0, 6, 60, 50], [120, 80]) and other == ("whole", None, None)
    assert embedder.crop_boxes([image]) == [other] and embedder.crop_boxes([image], known)[0][0] == "fullbody"
    ours = embedder.crop(path, box, frame)
    assert (ours != embedder.crop(path)).any() and ours.shape == (embedder.settings["image_size"],) * 2 + (3,)
    moved, whole = embedder.embed([path], pd.concat([known, person])), embedder.embed([path])
    assert np.abs(moved - whole).max() > 1e-3 and np.abs(moved - embedder.embed([path], person)).max() < 1e-6


def test_embed_of_a_bad_photograph_fails_alone(dataset, embedder, tmp_path):
    (tmp_path / "half.jpg").write_bytes(dataset.train_paths()[0].read_bytes()[:400])
    with pytest.raises(UserError, match=r"half\.jpg cannot be decoded"):
        embedder.embed([tmp_path / "half.jpg"])
    with pytest.raises(ZeroDivisionError):
        embedder.call(lambda: 1 / 0)
    assert embedder.thread.waiting.coming == 0 and embedder.call(lambda: 7) == 7
    assert len(embedder.embed(dataset.train_paths()[:1])) == 1


def test_detect_gives_boxes_in_pixels_of_the_upright_photograph(dataset, embedder):
    found, paths = embedder.detect(dataset.train_paths()[:3]), dataset.train_paths()[:3]
    assert found["image"].tolist() == [path.name for path in paths] and set(found["source"]) == {"detector"}
    known = read_boxes(dataset.root).query("source == 'fullbody'").set_index("image").loc[found["image"]].reset_index()
    (near, far), (low, high) = ((t[["x0", "y0"]].to_numpy(), t[["x1", "y1"]].to_numpy()) for t in (found, known))
    shared = np.clip(np.minimum(far, high) - np.maximum(near, low), 0, None).prod(axis=1)
    union = (far - near).prod(axis=1) + (high - low).prod(axis=1) - shared
    assert (shared / union > 0.5).all(), "where the animal was drawn"
    sizes = [Image.open(path).size for path in paths]
    assert list(map(tuple, found[["W", "H"]].astype(int).to_numpy())) == sizes and embedder.detect([]).empty


def test_match_heat_is_grad_cam_of_the_similarity(dataset, embedder):
    paths = dataset.train_paths()[:2]
    one, two = map(embedder.crop, paths)
    before = embedder.embed(paths)
    heats, probe = match_heat(embedder, one, two), PROBES[embedder]
    first, second, _ = similarity_cam(embedder.model, one[None], two[None])
    assert np.abs(heats[0] - first[0]).max() < 1e-4 and np.abs(heats[1] - second[0]).max() < 1e-4
    assert max(heat.max() for heat in heats) == 1 and min(heat.min() for heat in heats) == 0
    swapped = match_heat(embedder, two, one)
    assert np.abs(swapped[0] - heats[1]).max() < 1e-4 and PROBES[embedder] is probe
    assert np.array_equal(before, embedder.embed(paths))


def test_match_heat_on_another_backend_is_refused_with_the_remedy(embedder, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.delitem(PROBES, embedder, raising=False)
    crop = np.zeros((*[embedder.settings["image_size"]] * 2, 3), np.uint8)
    with pytest.raises(UserError, match="KERAS_BACKEND=tensorflow"):
        match_heat(embedder, crop, crop)


def test_heat_png_is_more_opaque_and_brighter_where_it_is_hotter():
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    layer = cv2.imdecode(np.frombuffer(heat_png(ramp, 100), np.uint8), cv2.IMREAD_UNCHANGED)
    grey = cv2.cvtColor(layer[..., :3], cv2.COLOR_BGR2GRAY)[50].astype(int)
    assert layer.shape == (100, 100, 4) and layer[50, 0, 3] == 0 and layer[50, -1, 3] == round(0.75 * 255)
    assert (np.diff(layer[50, :, 3].astype(int)) >= 0).all() and (np.diff(grey) >= -1).all()


def save_small(folder, weight=1.0, **changes):
    """A network of nine weights, which looks at mean colours, with its record: the place of its `model.keras`."""
    pixels = keras.Input((64, 64, 3))
    dense = keras.layers.Dense(3, use_bias=False, name="embedding")
    network = keras.Model(pixels, dense(keras.layers.GlobalAveragePooling2D()(pixels)))
    dense.set_weights([weight * np.eye(3)])
    folder.mkdir(exist_ok=True)
    network.save(folder / "model.keras")
    used = asdict(configure("small_resnet_arcface", image_size=64)) | {"crops": "auto", "tta_sources": ""} | changes
    write_json(folder / "config.json", {"parameters": used})
    return folder / "model.keras"


def test_embedder_of_other_weights_or_settings_has_another_fingerprint(tmp_path):
    found, path = [], save_small(tmp_path)
    for model in (path, path, save_small(tmp_path / "b", weight=1.01), save_small(tmp_path / "c", crop_margin=0.2)):
        other = Embedder(model)
        other.close()
        found.append(other.fingerprint)
    assert found[0] == found[1] and len(set(found[1:])) == 3


def test_embedder_that_was_closed_or_has_no_detector_says_so(dataset, tmp_path):
    other = Embedder(save_small(tmp_path))
    with pytest.raises(UserError, match="no detector"):
        other.detect(dataset.train_paths()[:1])
    other.close()
    with pytest.raises(UserError, match="shut down"):
        other.embed(dataset.train_paths()[:1])


def test_embedder_of_a_model_with_code_is_refused_and_runs_none(tmp_path):
    mark = f"{tmp_path}/ran"
    pixels = keras.Input((8, 8, 3))
    hostile = keras.layers.Lambda(lambda x: [open(mark, "w").close(), x][1], name="embedding", output_shape=(8, 8, 3))
    keras.Model(pixels, hostile(pixels)).save(tmp_path / "model.keras")
    Path(mark).unlink(missing_ok=True)  # building it has run it
    write_json(tmp_path / "config.json", {"parameters": {}})
    with pytest.raises(UserError, match=r"contains code \(a Lambda layer\)"):
        Embedder(tmp_path / "model.keras")
    assert not Path(mark).exists()


def test_embedder_of_what_is_no_model_is_refused_by_what_it_is(tmp_path):
    pixels = keras.Input((8, 8, 3))
    write_json(tmp_path / "config.json", {"parameters": {}})
    keras.Model(pixels, keras.layers.Flatten()(pixels)).save(tmp_path / "model.keras")
    with pytest.raises(UserError, match="no layer called 'embedding'"):
        Embedder(tmp_path / "model.keras")
    (tmp_path / "model.keras").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(UserError, match="cannot be read as a model"):
        Embedder(tmp_path / "model.keras")
    with pytest.raises(UserError, match="there is no model"):
        Embedder(tmp_path / "other.keras")


# --- the thread that owns a network


@pytest.fixture
def held():
    """`(a network's thread of 8 places, an event that it waits for)`; its vector is the crop's mean."""
    go = threading.Event()

    def run(pixels):
        assert go.wait(20)
        return pixels.mean(axis=(1, 2, 3))[:, None]

    yield NetworkThread(run, limit=8), go
    go.set()


def until(true, what, seconds=20):
    """Wait until `true()`, for so long at most."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.002)


def test_network_thread_when_full_refuses_the_next_and_serves_the_others_in_one_batch(held):
    thread, go = held

    def ask(i):
        with thread.room():
            return float(thread.do(np.full((1, 2, 2, 3), i, np.uint8))[0, 0])

    with ThreadPoolExecutor(9) as people:
        busy = threading.Event()
        first = people.submit(thread.do, lambda: busy.set() or go.wait(20))
        assert busy.wait(20)
        asked = [people.submit(ask, i) for i in range(8)]
        until(lambda: thread.jobs.qsize() == 8, "eight crops are handed over")
        with pytest.raises(Busy, match="8 photographs are waiting"), thread.room():
            raise AssertionError("there was room")
        go.set()
        assert first.result(20) and [answer.result(20) for answer in asked] == list(range(8))
    assert thread.waiting.coming == 0 and thread.batches == 1
    thread.close()


def test_network_thread_with_nobody_coming_has_room_for_more_than_its_limit(held):
    thread, go = held
    go.set()
    with thread.room(9):
        assert thread.waiting.coming == 9 and len(thread.do(np.zeros((9, 2, 2, 3), np.uint8))) == 9
    with thread.room(4), thread.room(4), pytest.raises(Busy), thread.room(1):
        raise AssertionError("there was room")
    thread.close()


def test_network_thread_close_waits_for_what_was_begun(held):
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
        until(lambda: thread.waiting.closed, "it is being closed")
        assert not answer.done() and not closing.done()
        go.set()
        assert answer.result(20) == 9
        closing.result(20)
    assert not thread.thread.is_alive()
    with pytest.raises(UserError, match="shut down"), thread.room():
        raise AssertionError("there was room")
