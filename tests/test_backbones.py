"""Backbones scale the pixels they get, 0 to 255, for themselves; sizes that do not suit one are refused."""

import keras
import numpy as np
import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.networks.backbones import BACKBONES, feature_maps


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
