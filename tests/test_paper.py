"""The paper's systems as they are written: what their presets build, draw and train."""

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import CropMix, named_sources, read_boxes
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.imaging.augmentation_recipes import RECIPES
from happywhale_nb.imaging.crops import load_crop
from happywhale_nb.networks.model import (
    _schedule,
    build_network,
    build_optimizer,
    class_centres,
    compile_trainer,
    inference_model,
)
from happywhale_nb.networks.presets import PRESETS, configure
from happywhale_nb.networks.training import Samples, TrainingOptions, build_targets, train
from happywhale_nb.stages import fold_training
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.stages.train import train_stage


def test_basic_cnn_is_figure_two():
    config = PRESETS["basic_cnn"]
    network = build_network(config, 7)
    kinds = [type(layer).__name__ for layer in network.layers]
    body = ["Conv2D", "MaxPooling2D"] * 4
    assert kinds[:2] == ["InputLayer", "Rescaling"] and kinds[2:10] == body
    assert [kind for kind in kinds[10:] if kind != "Activation"] == ["Flatten", "Dense", "Dropout", "SoftmaxClassifier"]
    first, dense, dropout = (network.get_layer(name) for name in ("conv1", "embedding", "head_dropout"))
    assert (first.filters, first.kernel_size, first.activation.__name__) == (32, (3, 3), "relu")
    assert (dense.units, dense.activation.__name__, dropout.rate) == (512, "relu", 0.45)
    assert network.input["pixels"].shape == (None, 128, 128, 3)
    assert network.output["cosines"].shape == (None, 7)
    steps = [type(step).__name__ for step in RECIPES[config.recipe]]
    assert steps == ["Rotation", "Shift", "Zoom"] and config.sources == "whole", "section 5.1"


def test_basic_cnn_learns_by_keras_own_cross_entropy_and_by_adam_at_a_constant_rate():
    config = configure("basic_cnn", image_size=32)
    network = build_network(config, 5)
    optimizer = build_optimizer(config, network, steps=10, size=8)
    compile_trainer(network, config, optimizer)
    rates = {float(_schedule(config, 10, 8)(step)) for step in (0, 7, 299)}
    np.testing.assert_allclose(list(rates), 1e-3, rtol=1e-6)
    assert not optimizer.weight_decay
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype("float32"), rng.integers(0, 5, 6)
    ours = network.loss["cosines"](np.column_stack([labels, np.zeros(6)]).astype("float32"), logits)
    keras_own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    assert np.isclose(float(ours), float(keras_own), rtol=1e-6)


def test_a_softmax_head_is_trained_stored_and_has_directions_for_centres(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 8)
    tints = rng.integers(30, 220, (4, 1, 1, 3))
    crops = (tints[labels] + rng.integers(-20, 20, (32, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    config = configure("basic_cnn", epochs=12, image_size=32, overrides="batch_size=16 recipe=none dropout=0")
    samples = Samples(crops, np.arange(32), labels, 4)
    model, history = train(config, samples, tmp_path / "state", "stamp", options=TrainingOptions(inside=False))
    assert history[-1]["accuracy"] > 0.9 and history[-1]["loss"] < history[0]["loss"] / 2
    model.save(tmp_path / "model.keras")
    read = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(read.predict(crops[:3], verbose=0), model.predict(crops[:3], verbose=0), atol=1e-5)
    centres = class_centres(read, np.array(list("abcd")))
    assert centres.individual_ids.tolist() == list("abcd")
    np.testing.assert_allclose(np.linalg.norm(centres.vectors, axis=1), 1, atol=1e-5)


def test_sampled_classes_of_a_softmax_are_those_of_the_batch():
    config = configure("basic_cnn", image_size=32, overrides="sampled_classes=8 batch_size=4")
    network = build_network(config, 20)
    pixels, chosen = np.zeros((2, 32, 32, 3), "float32"), np.array([3, 1, 4, 15, 9, 2, 6, 5], "int32")
    some = network({"pixels": pixels, "chosen": chosen})["cosines"]
    every = inference_model(network)(pixels)
    np.testing.assert_allclose(some, np.asarray(every)[:, chosen], atol=1e-5)


@pytest.mark.parametrize("overrides", ["margin=.3", "margin_spread=.1", "centres=2", "pool=parts", "loss=cosine"])
def test_softmax_without_a_meaning_is_refused(overrides):
    with pytest.raises(UserError, match="loss"):
        configure("basic_cnn", overrides=overrides)


def test_resnet_is_table_four_left_and_efficientnet_right():
    left, right = PRESETS["resnet50_arcmargin"], PRESETS["efficientnet_b5_arcface"]
    assert (left.image_size, right.image_size) == (224, 380)
    assert (left.margin, left.margin_spread) == (0.3, 0.0) and right.margin_spread > 0
    assert (left.sources, left.resize) == ("whole", "area-centre") and right.sources.count(":") == 4
    assert (left.balance, right.balance) == ("", "weights")
    assert {type(step).__name__ for step in RECIPES[left.recipe]} == {"Flip", "Contrast", "Brightness", "Saturation"}
    assert (right.epsilon, right.start, right.arcface_scale) == (1e-5, "he_normal", 30.0)


def test_a_centre_crop_is_the_middle_square(tmp_path):
    pixels = np.repeat(np.arange(0, 200, dtype=np.uint8)[None, :, None], 100, axis=0).repeat(3, axis=2)  # 100 x 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "high.png")
    for name, across in (("wide.png", pixels), ("high.png", pixels.transpose(1, 0, 2))):
        middle = across[:, 50:150] if name == "wide.png" else across[50:150]
        assert (load_crop(tmp_path / name, 100, resize="area-centre") == middle).all()
        reduced = load_crop(tmp_path / name, 20, resize="area-centre").astype(int)
        assert np.abs(reduced - middle.reshape(20, 5, 20, 5, 3).mean(axis=(1, 3))).max() <= 1


def test_class_weights_raise_rare_animals():
    labels = np.repeat([0, 1], [20, 2])
    targets = build_targets(PRESETS["efficientnet_b5_arcface"], labels, 2)
    assert targets.weights[-1] > 5 * targets.weights[0] and np.isclose(targets.weights.mean(), 1)
    assert build_targets(PRESETS["resnet50_arcmargin"], labels, 2).weights is None


@pytest.mark.parametrize(
    ("there", "mix", "missing"),
    [
        (["fullbody", "yolov5", "detic", "vit"], "fullbody:0.25 yolov5:0.25 detic:0.25 vit:0.25", ()),
        (["fullbody_hand", "fullbody_net"], "fullbody_hand:0.5 fullbody_net:0.5", ("yolo", "detic", "vit")),
        (["fullbody", "fullbody_net"], "fullbody:1", ("yolo", "detic", "vit")),
        (["yolo_fullbody", "detic"], "yolo_fullbody:0.6667 detic:0.3333", ("vit",)),
        (["backfin"], "whole", ("fullbody", "yolo", "detic", "vit")),
    ],
)
def test_kinds_of_boxes_that_are_missing_leave_their_part_to_the_others(there, mix, missing):
    found = named_sources(PRESETS["efficientnet_b5_arcface"].sources, pd.Series(there))
    assert found == (mix, missing)
    parsed = CropMix.parse(found[0], there)
    assert not parsed.probabilities or np.isclose(sum(parsed.probabilities), 1)


def test_winners_mix_takes_the_two_tables_of_full_bodies_apart():
    mix, missing = named_sources(PRESETS["recommended"].sources, ["fullbody", "fullbody_charm", "backfin", "detic"])
    assert mix == "fullbody:0.6 fullbody_charm:0.15 backfin:0.15 detic:0.05 whole:0.05" and not missing


def test_a_mix_whose_parts_are_no_probabilities_is_refused():
    with pytest.raises(UserError, match="add up to 1"):
        named_sources("fullbody:.6 detic:.6", ["fullbody"])


def test_a_training_says_and_records_which_kinds_of_boxes_are_missing(tiny, capsys, monkeypatch, tmp_path):
    kept = {}
    monkeypatch.setattr(fold_training, "_train_fold", lambda training, *_: kept.update(training.record))
    monkeypatch.setattr(fold_training, "read_record", lambda path: kept)
    dataset = read_dataset(tiny)
    config = configure("efficientnet_b5_arcface", quick=True)
    train_stage(dataset, study_folds(dataset, tmp_path, 2, 0), 0, "model", config, tmp_path)
    there = set(read_boxes(dataset.root)["source"])
    assert "vit" in kept["missing_sources"] and "no boxes called" in capsys.readouterr().out
    names = [word.partition(":")[0] for word in kept["parameters"]["crops"].split()]
    assert set(names) <= there | {"whole"}
    kept.clear()
    train_stage(dataset, study_folds(dataset, tmp_path, 2, 0), 1, "model", config, tmp_path, crops="whole")
    assert kept["parameters"]["crops"] == "whole" and "missing_sources" not in kept
    assert capsys.readouterr().out == ""
