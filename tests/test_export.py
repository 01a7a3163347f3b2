"""An exported encoder gives what Keras gives, or is not written."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from happywhale_nb.paths import UserError

pytest.importorskip("openvino", reason="the extra `export` is not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model in a fold's folder whose preset averages mirror images and zooms, and crops."""
    from happywhale_nb.fitting import build_network, identifier
    from happywhale_nb.presets import configure

    folder = tmp_path_factory.mktemp("fold0")
    config = configure("small_resnet_arcface", image_size=48, changes="zoom=0.1")
    identifier(build_network(config, classes=5)).save(folder / "model.keras")
    (folder / "config.json").write_text(json.dumps({"parameters": asdict(config)}))
    return folder, np.random.default_rng(1).integers(0, 256, (40, 48, 48, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_the_command_exports_what_embed_gives_mirror_images_and_zooms_included(trained, tmp_path, kind):
    import keras

    from happywhale_nb.export import Encoder
    from happywhale_nb.fitting import embed

    folder, crops = trained
    command = [
        sys.executable,
        "-c",
        "from happywhale_nb.cli import main; main()",
        "export",
        folder / "model.keras",
        "--to",
        tmp_path / kind,
    ]
    done = subprocess.run([*command, "--format", kind], capture_output=True, text=True)
    assert done.returncode == 0 and "smallest cosine 1.0000" in done.stdout, done.stderr
    expected = embed(keras.saving.load_model(folder / "model.keras"), crops, mirror=2, zoom=0.1, quiet=True)
    found = Encoder(tmp_path / kind)(crops)
    assert found.shape == expected.shape and (found * expected).sum(axis=1).min() > 0.9999
    assert [p.name for p in tmp_path.iterdir()] == [kind]


def test_an_encoder_that_is_off_is_not_written(trained, tmp_path):
    from happywhale_nb.export import export_encoder

    with pytest.raises(UserError, match=r"off: cosine .* with Keras"):
        export_encoder(trained[0] / "model.keras", tmp_path / "encoder", least=1.1)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_or_no_encoder_is_said(trained, tmp_path, monkeypatch):
    from happywhale_nb.export import Encoder, export_encoder

    (tmp_path / "model.keras").write_text("no model")
    with pytest.raises(UserError, match="cannot be read as a model"):
        export_encoder(tmp_path / "model.keras", tmp_path / "encoder")
    with pytest.raises(UserError, match="openvino, onnx"):
        export_encoder(trained[0] / "model.keras", tmp_path / "encoder", "tflite")
    with pytest.raises(UserError, match="cannot be read as an encoder"):
        Encoder(tmp_path / "model.keras")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"happywhale_nb\[export\]"):
        export_encoder(trained[0] / "model.keras", tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
