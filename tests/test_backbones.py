"""Backbones scale the pixels they get, 0 to 255, for themselves; sizes that do not suit one are refused."""

import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.networks import model
from happywhale_nb.networks.backbones import BACKBONES, copy_weights, feature_maps
from happywhale_nb.networks.presets import configure


@pytest.mark.parametrize("name", ["basic_cnn", "small_resnet", "small_efficientnet", "resnet50", "efficientnet_b0"])
def test_backbones_scale_0_to_255_to_a_spread_near_1(name):
    """A second scaling outside would pass unnoticed and cost half the accuracy."""
    pixels = keras.Input((32, 32, 3))
    model = keras.Model(pixels, BACKBONES[name](pixels))
    scaling = [
        layer for layer in model.layers if type(layer).__name__ in ("Rescaling", "CaffeScaling", "Normalization")
    ]
    ends = np.array([[[[0.0, 0, 0], [255, 255, 255]]]], np.float32)
    for layer in scaling:
        ends = keras.ops.convert_to_numpy(layer(ends))
    width = np.ptp(ends, axis=2)
    assert (width == 255).all() if name == "resnet50" else ((width > 0.9) & (width < 5)).all()


@pytest.mark.parametrize(("name", "multiple"), [("swin_t", 32), ("vit_s", 16)])
def test_feature_maps_of_a_side_that_does_not_suit_the_backbone_is_refused(name, multiple):
    with pytest.raises(UserError, match=f"a side that is a multiple of {multiple}, not 40"):
        feature_maps(name, keras.Input((40, 40, 3)))


# --- names of layers: each once in a network, and those of earlier versions, whose files are read by them

OF_THE_NECK = {
    "gap": ["features", "pool", "neck_bn", "neck_dropout", "embedding"],
    "gem": ["features", "pool", "neck_bn", "neck_dropout", "embedding"],
    "gem2": ["features", "features_before", "pool0", "pool1", "pool", "neck_bn", "neck_dropout", "embedding"],
    "flat": ["features", "flat", "embedding"],
    "parts": ["features", "pool", "flat", "neck_bn", "neck_dropout", "places", "neck_dense", "unit", "embedding"],
}
SMALLEST = {"small_resnet", "small_efficientnet", "basic_cnn", "efficientnet_lite0", "resnet50", "efficientnet_b0"}
SMALLEST |= {"efficientnet_v2_b0", "convnext_tiny", "swin_t", "vit_s"}
OTHERS = sorted(BACKBONES.keys() - SMALLEST)  # more of the same blocks: tried by `make soak`


@pytest.mark.parametrize("name", [*sorted(SMALLEST), *(pytest.param(each, marks=pytest.mark.soak) for each in OTHERS)])
def test_neck_of_every_pool_has_no_name_of_the_backbone_and_else_its_old_names(name, monkeypatch):
    with keras.StatelessScope(initialize_variables=False):  # no weights: the largest have gigabytes
        pixels = keras.Input((64, 64, 3), name="pixels")
        maps = feature_maps(name, pixels)
        taken = [layer.name for layer in keras.Model(pixels, maps).layers]
        monkeypatch.setattr(model, "feature_maps", lambda *how: maps)
        for pool, expected in OF_THE_NECK.items():
            config = configure("small_resnet_arcface", overrides=f"pool={pool} embedding=64 parts=2 backbone={name}")
            names = [layer.name for layer in keras.Model(pixels, model._embedding(config, pixels)).layers]
            assert len(set(names)) == len(names)
            found = set(names) - set(taken)
            assert found == {f"neck_{each}" if each in taken else each for each in expected}, pool
            assert name == "basic_cnn" or found == set(expected), pool
    keras.utils.clear_session()


def test_basic_cnn_with_the_means_of_two_maps_is_stored_read_and_started_from(tmp_path):
    config = configure("basic_cnn", image_size=32, overrides="pool=gem2 embedding=16")
    stored = model.inference_model(model.build_network(config, 3))
    stored.save(tmp_path / "model.keras")
    read = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    crops = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_allclose(model.embed(read, crops), model.embed(stored, crops), atol=1e-6)
    network = model.build_network(replace(config, weights=str(tmp_path / "model.keras")), 5)
    first, again = (each.get_layer("conv1").get_weights()[0] for each in (stored, network))
    np.testing.assert_array_equal(first, again)


def test_weights_of_a_file_that_is_no_model_are_refused_whatever_keras_raises(tmp_path):
    network = model.build_network(configure("basic_cnn", image_size=32, overrides="embedding=16"), 3)
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("readme.txt", "no model")
    with pytest.raises(UserError, match=r"model\.keras cannot be read as a model"):
        copy_weights(network, tmp_path / "model.keras")


@pytest.mark.parametrize("name", ["embedding", "features_of_two"])
def test_build_network_of_a_backbone_with_a_layer_named_as_one_of_the_head_is_refused(name, monkeypatch):
    def named(pixels, momentum):
        return [keras.layers.Conv2D(4, 3, name=name)(pixels)] * 2

    monkeypatch.setitem(BACKBONES, "named", named)
    config = configure("basic_cnn", image_size=32, overrides="backbone=named")
    with pytest.raises(UserError, match=f"backbone named: layer name '{name}' is reserved for neck and head"):
        model.build_network(config, 3)
