"""An exported encoder gives what Keras gives, mirror images and zooms included, or is not written."""

import json
import shutil
import sys
from dataclasses import asdict, replace

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from happywhale_nb.catalogue.training_photos import trained_on
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
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
    with pytest.raises(UserError, match=r"off: cosine .* with Keras, 0.9999 asked; not written"):
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
