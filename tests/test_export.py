"""An exported encoder gives what Keras gives, mirror images and zooms included, or is not written."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from happywhale_nb.catalogue.training_photos import trained_on
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.demo.season import demo_model
from happywhale_nb.networks.detector import detect_boxes, read_detector
from happywhale_nb.networks.detector_export import export_detector
from happywhale_nb.networks.encoders import copy_encoder, open_encoder
from happywhale_nb.networks.export import export_encoder
from happywhale_nb.networks.model import build_network, embed, inference_model
from happywhale_nb.networks.presets import configure

pytest.importorskip("openvino", reason="no OpenVINO here: pip install 'happywhale_nb[export]'")
pytest.importorskip("onnxruntime", reason="no ONNX Runtime here: pip install 'happywhale_nb[export]'")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A small model in a fold's folder, whose preset averages mirror images and zooms, and crops."""
    folder = tmp_path_factory.mktemp("fold0")
    config = configure("small_resnet_arcface", overrides="backbone=basic_cnn embedding=32 tta_zoom=0.1")
    config = replace(config, image_size=24)
    keras.utils.set_random_seed(1)
    inference_model(build_network(config, classes=5)).save(folder / "model.keras")
    used = asdict(config) | {"crops": "fullbody", "tta_sources": ""}
    (folder / "config.json").write_text(json.dumps({"parameters": used, "trained_on": ["f" * 64]}))
    return folder, np.random.default_rng(1).integers(0, 256, (12, 24, 24, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["onnx", pytest.param("openvino", marks=pytest.mark.trains)])
def test_export_command_gives_what_embed_gives_mirror_images_and_zooms_included(stored, tmp_path, kind):
    folder, crops = stored
    target = tmp_path / ("encoder.onnx" if kind == "onnx" else "encoder")
    words = ["model", "export", folder / "model.keras", "--to", target, "--format", kind]
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 0 and "smallest cosine 1.0000" in done.stdout, done.output
    expected = embed(keras.saving.load_model(folder / "model.keras"), crops, mirror=2, zoom=0.1, quiet=True)
    encoder = open_encoder(target)
    found = encoder.embed(crops, batch_size=8)
    assert found.shape == expected.shape and (found * expected).sum(axis=1).min() > 0.9999
    files = ["encoder.json", "encoder.onnx", "encoder.probe.png", "trained_on.json"]
    files = files if kind == "onnx" else ["encoder"]
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    assert encoder.card.mirror == "" and encoder.card.crops == "fullbody" and encoder.card.margin == 0.05
    for place in (target, copy_encoder(target, tmp_path / "copy")):
        assert trained_on(place).sha256 == {"f" * 64}


def test_export_of_an_adapted_encoder_is_refused(stored, tmp_path):
    for name in ("model.keras", "config.json"):
        shutil.copy(stored[0] / name, tmp_path)
    (tmp_path / "adapter.npz").write_bytes(b"")
    with pytest.raises(UserError, match="has an adapter, which is no part of"):
        export_encoder(tmp_path / "model.keras", tmp_path / "encoder.onnx", "onnx")


def test_export_encoder_that_is_off_is_not_written(stored, tmp_path, monkeypatch):
    write, export = lambda source, to, kind: to.write_text("another network"), "happywhale_nb.networks.export"
    monkeypatch.setattr(f"{export}._write", write)
    monkeypatch.setattr(f"{export}.graph_function", lambda path, card: lambda crops: np.full((len(crops), 32), 1.0))
    with pytest.raises(UserError, match=r"inaccurate: cosine .* with Keras, below 0.9999; not written"):
        export_encoder(stored[0] / "model.keras", tmp_path / "encoder.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_export_encoder_of_no_model_or_without_its_runtime_is_refused(stored, tmp_path, monkeypatch):
    (tmp_path / "model.keras").write_text("no model")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a model"):
        export_encoder(tmp_path / "model.keras", tmp_path / "encoder")
    with pytest.raises(UserError, match="openvino, onnx"):
        export_encoder(stored[0] / "model.keras", tmp_path / "encoder", "tflite")
    for target, kind in (("encoder", "onnx"), ("encoder.onnx", "openvino")):
        with pytest.raises(UserError, match=r"a file that ends with \.onnx"):
            export_encoder(stored[0] / "model.keras", tmp_path / target, kind)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"happywhale_nb\[export\]"):
        export_encoder(stored[0] / "model.keras", tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


# --- on JAX

REMEDY = "KERAS_BACKEND=tensorflow for this command"


def test_export_on_jax_is_refused_with_the_remedy_and_writes_nothing(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=REMEDY):
        export_encoder(stored[0] / "model.keras", tmp_path / "encoder")
    with pytest.raises(UserError, match=REMEDY):
        export_detector(demo_model("detector.keras"), tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", pytest.param("detector", marks=pytest.mark.soak)])
def test_export_command_writes_by_tensorflow_where_jax_is_chosen(stored, tmp_path, what):
    path = stored[0] / "model.keras" if what == "model" else demo_model("detector.keras")
    script = "from happywhale_nb.cli.main import main; main()"
    words = [sys.executable, "-c", script, what, "export", path, "--to", tmp_path / "made.onnx"]
    words += ["--format", "onnx"] if what == "model" else []
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"KERAS_BACKEND": "jax"}, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made.onnx").is_file() and (tmp_path / "made.json").is_file()


ON_JAX = """
import sys
import keras, numpy as np
from happywhale_nb.networks.detector import detect_boxes, read_detector, train_detector
assert keras.backend.backend() == "jax"
photos = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3)).astype(np.uint8)
found = detect_boxes(read_detector(sys.argv[1]), photos)
np.save(sys.argv[2], found.to_numpy())
train_detector(photos, np.tile([0.2, 0.2, 0.7, 0.7], (4, 1)), epochs=1, batch_size=4)
"""


@pytest.mark.soak
def test_detector_on_jax_learns_and_finds_the_boxes_that_it_finds_on_tensorflow(tmp_path):
    path, photos = demo_model("detector.keras"), np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3))
    words = [sys.executable, "-c", ON_JAX, path, tmp_path / "found.npy"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"KERAS_BACKEND": "jax"}, timeout=200)
    assert done.returncode == 0, done.stderr
    expected = detect_boxes(read_detector(path), photos.astype(np.uint8)).to_numpy()
    assert np.abs(np.load(tmp_path / "found.npy") - expected).max() < 1e-4
