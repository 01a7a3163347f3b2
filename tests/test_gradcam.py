"""Grad-CAM against maps worked out by other means, in several graphs; measures of maps; what the stage leaves."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import NEW, read_dataset
from happywhale_nb.evaluation.faithfulness import (
    area_under_curve,
    box_in_crop,
    centre_maps,
    compare_maps,
    occlusion_maps,
    perturbation_curves,
    pointing,
    removal_order,
)
from happywhale_nb.stages.fold_explainer import GradcamOptions, open_fold
from happywhale_nb.stages.gradcam import gradcam_stage
from happywhale_nb.stages.gradcam_checks import sample_rows
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.workflow.notebooks import read_parameters
from happywhale_nb.workflow.runner import check_stage


@pytest.fixture(scope="module")
def crops():
    """Six crops of noise, each with a bright square in another place."""
    rng = np.random.default_rng(0)
    made = rng.integers(0, 120, (6, 32, 32, 3)).astype(np.uint8)
    for i in range(6):
        made[i, 4 * i : 4 * i + 8, 24 - 4 * i : 32 - 4 * i] += 120
    return made


@pytest.fixture(scope="module")
def network():
    """`network(precision="float32", nested=False)`: a small network of pixels to 5 cosines, the same weights each time;
    its feature map is `features`, its embedding `embedding`."""
    import keras

    def build(precision="float32", nested=False):
        keras.utils.set_random_seed(1)
        layers, how = keras.layers, {"dtype": precision}
        pixels = keras.Input((32, 32, 3))
        x = layers.Rescaling(1 / 127.5, offset=-1.0, **how)(pixels)
        x = layers.Conv2D(8, 3, 2, "same", activation="relu", **how)(x)
        x = layers.Conv2D(12, 3, 2, "same", activation="relu", name="features", **how)(x)
        body = keras.Model(pixels, x, name="body")
        start = keras.Input((32, 32, 3)) if nested else pixels
        x = layers.GlobalAveragePooling2D(dtype="float32")(body(start) if nested else x)
        embedding = layers.Dense(6, name="embedding", dtype="float32")(x)
        return keras.Model(start, layers.Dense(5, name="cosines", dtype="float32")(embedding))

    return build


def by_differences(model, crops, score, step=1e-3):
    """Grad-CAM from its definition without any gradient: each channel of the feature map is raised everywhere by a
    little, and the change of the score, over the number of places, is the channel's weight."""
    import cv2
    import keras

    features = keras.Model(model.input, model.get_layer("features").output)(crops.astype(np.float32)).numpy()
    places = features.shape[1] * features.shape[2]
    rest = keras.Input(features.shape[1:])
    embedding = model.get_layer("embedding")(keras.layers.GlobalAveragePooling2D()(rest))
    head = keras.Model(rest, [embedding, model.get_layer("cosines")(embedding)])
    weights = np.empty((len(crops), features.shape[-1]))
    for k in range(features.shape[-1]):
        up, down = features.astype(float), features.astype(float)
        up[..., k] += step
        down[..., k] -= step
        change = score(*(part.numpy() for part in head(up))) - score(*(part.numpy() for part in head(down)))
        weights[:, k] = change / (2 * step) / places
    maps = np.maximum((features * weights[:, None, None]).sum(axis=-1), 0)
    large = np.stack([cv2.resize(m, (32, 32), interpolation=cv2.INTER_CUBIC) for m in maps]).clip(min=0)
    return large / large.max(axis=(1, 2), keepdims=True)


def unit(vectors):
    """Vectors of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_grad_cam_of_a_class_is_what_small_changes_of_the_channels_say(network, crops):
    from happywhale_nb.networks.gradcam import grad_cam

    model, classes = network(), np.array([0, 1, 2, 3, 4, 0])
    expected = by_differences(model, crops, lambda embedding, cosines: cosines[np.arange(6), classes])
    np.testing.assert_allclose(grad_cam(model, crops, classes), expected, atol=5e-3)
    best = model(crops.astype(np.float32)).numpy().argmax(axis=1)
    np.testing.assert_array_equal(grad_cam(model, crops), grad_cam(model, crops, best))


def test_similarity_cam_of_a_pair_is_what_small_changes_of_the_channels_say_on_either_side(network, crops):
    import keras

    from happywhale_nb.networks.gradcam import similarity_cam

    model, others = network(), crops[::-1].copy()
    maps, back, cosines = similarity_cam(model, crops, others, batch_size=4)
    vectors = keras.Model(model.input, model.get_layer("embedding").output)
    one, two = (unit(vectors(part.astype(np.float32)).numpy()) for part in (crops, others))
    np.testing.assert_allclose(cosines, (one * two).sum(axis=1), atol=1e-5)
    here = by_differences(model, crops, lambda embedding, cosines: (unit(embedding) * two).sum(axis=1))
    there = by_differences(model, others, lambda embedding, cosines: (unit(embedding) * one).sum(axis=1))
    np.testing.assert_allclose(maps, here, atol=0.02)
    np.testing.assert_allclose(back, there, atol=0.02)
    np.testing.assert_allclose(back, maps[::-1], atol=1e-4)  # the same pairs the other way round


def test_grad_cam_of_nested_and_flat_graphs_in_any_batches_is_the_same(network, crops):
    from happywhale_nb.networks.gradcam import feature_layers, grad_cam, last_feature_layer, similarity_cam

    flat, nested = network(), network(nested=True)
    assert last_feature_layer(flat) == "features" and last_feature_layer(nested) == "body"
    assert "body/features" in feature_layers(nested)
    whole = grad_cam(flat, crops, batch_size=6)
    assert whole.dtype == np.float32 and whole.shape == (6, 32, 32)
    for model, layer in ((nested, ""), (nested, "body/features"), (flat, "features")):
        for size in (1, 4):
            np.testing.assert_allclose(grad_cam(model, crops, layer=layer, batch_size=size), whole, atol=1e-4)
    pairs = [similarity_cam(model, crops, crops[::-1].copy(), batch_size=s) for model, s in ((flat, 6), (nested, 1))]
    for one, other in zip(*pairs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_similarity_cam_of_a_photograph_and_itself_is_the_same_twice_with_cosine_1(network, crops):
    from happywhale_nb.networks.gradcam import similarity_cam

    maps, back, cosines = similarity_cam(network(), crops, crops)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    np.testing.assert_array_equal(maps, back)


def test_grad_cam_in_half_precision_gives_float32_maps_like_those_in_full(network, crops):
    from happywhale_nb.networks.gradcam import grad_cam

    half = grad_cam(network("mixed_bfloat16"), crops, np.zeros(6, int))
    full = grad_cam(network(), crops, np.zeros(6, int))
    assert half.dtype == np.float32
    assert np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(half, full, strict=True)]) > 0.95


@pytest.mark.parametrize("kind", ["parts", "gem2", "swin", "vit"])
def test_grad_cam_and_similarity_cam_of_the_project_s_networks_are_maps_from_0_to_1(kind, crops):
    import keras

    from happywhale_nb.networks.backbones import swin, vit
    from happywhale_nb.networks.gradcam import grad_cam, last_feature_layer, similarity_cam
    from happywhale_nb.networks.model import build_network, inference_model
    from happywhale_nb.networks.presets import configure

    if kind in ("parts", "gem2"):
        preset = {"parts": "small_resnet_aligned", "gem2": "small_recommended"}[kind]
        config = configure(preset, image_size=32, overrides="backbone=tiny_resnet")
        model = inference_model(build_network(config, classes=4))
    else:
        crops = crops.repeat(2, axis=1).repeat(2, axis=2)  # a window of attention needs several places
        pixels = keras.Input((64, 64, 3))
        small = {"swin": (swin, {"width": 24, "depths": (1, 1), "heads": (1, 2)}), "vit": (vit, {"depth": 2})}
        body, how = small[kind]
        x = keras.layers.Activation("linear", name="features")(body(pixels, **how)[-1])
        x = keras.layers.Dense(8, name="embedding")(keras.layers.GlobalAveragePooling2D()(x))
        model = keras.Model(pixels, keras.layers.Dense(4)(x))
    assert last_feature_layer(model) == "features"
    both = [grad_cam(model, crops), *similarity_cam(model, crops, crops[::-1].copy())[:2]]
    for maps in both:
        assert maps.shape == crops.shape[:3] and np.isfinite(maps).all() and maps.min() >= 0
        assert set(maps.max(axis=(1, 2)).tolist()) <= {0, 1}
    assert max(maps.max() for maps in both) == 1


def test_Probe_of_a_layer_that_cannot_be_looked_at_is_refused(network, crops):
    import keras

    from happywhale_nb.networks.gradcam import grad_cam, last_feature_layer, similarity_cam

    model = network()
    with pytest.raises(UserError, match="no layer 'featurs': did you mean features"):
        grad_cam(model, crops, layer="featurs")
    with pytest.raises(UserError, match="no layer 'embeding': did you mean embedding"):
        similarity_cam(model, crops, crops, embedding="embeding")
    flat = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(UserError, match="no layer with a feature map"):
        last_feature_layer(flat)
    pixels = keras.Input((32, 32, 3))
    aside = keras.layers.Conv2D(2, 3, name="aside")(pixels)
    mean, other = (keras.layers.GlobalAveragePooling2D()(x) for x in (pixels, aside))
    with pytest.raises(UserError, match="does not depend on layer 'aside'"):
        similarity_cam(keras.Model(pixels, [keras.layers.Dense(3, name="embedding")(mean), other]), crops, crops)


def test_curves_run_between_the_whole_crop_and_the_blurred_one_and_fall_until_the_region_is_gone(crops):
    from happywhale_nb.evaluation.faithfulness import blur_crops

    region = np.zeros((6, 32, 32), np.float32)
    for i in range(6):
        region[i, 4 * i : 4 * i + 8, 24 - 4 * i : 32 - 4 * i] = 1
    seen = []

    def score(pixels, rows):
        seen.append(len(rows))
        return (pixels.mean(axis=3) * region[rows]).sum(axis=(1, 2))

    deletion, insertion = perturbation_curves(score, crops, region, steps=16, batch_size=4)
    assert max(seen) == 4 and deletion.shape == insertion.shape == (6, 17)
    whole, soft = (score(part.astype(np.float32), np.arange(6)) for part in (crops, blur_crops(crops)))
    for curve, first, last in ((deletion, whole, soft), (insertion, soft, whole)):
        np.testing.assert_allclose(curve[:, 0], first, rtol=1e-5)
        np.testing.assert_allclose(curve[:, -1], last, rtol=1e-5)
        np.testing.assert_allclose(curve[:, 1:], curve[:, -1:].repeat(16, axis=1), rtol=1e-5)  # 1/16 is the region
    finer, _ = perturbation_curves(score, crops, region, steps=64)
    assert (np.diff(finer[:, :5], axis=1) < 0).all()
    drawn, _ = perturbation_curves(score, crops, np.random.default_rng(0).random((6, 32, 32)), steps=16)
    assert (area_under_curve(deletion) < area_under_curve(drawn)).all()
    np.testing.assert_array_equal(perturbation_curves(score, crops, region, steps=16, batch_size=1)[0], deletion)


def test_area_and_ranks_of_small_cases_are_those_worked_out_by_hand():
    assert area_under_curve(np.array([1.0, 0.5, 0.0])) == pytest.approx(0.5)
    assert area_under_curve(np.ones((2, 11))).tolist() == pytest.approx([1, 1])
    maps = np.random.default_rng(0).random((3, 8, 8))
    np.testing.assert_array_equal(removal_order(maps).reshape(3, -1).argmin(axis=1), maps.reshape(3, -1).argmax(axis=1))
    ties = removal_order(np.zeros((2, 8, 8)))
    assert len(np.unique(ties[0])) == 64 and not np.array_equal(ties[0], ties[1])


def test_compare_orders_of_a_map_of_the_middle_gains_nothing_on_the_middle(crops):
    def score(pixels, rows):
        return pixels[:, 12:20, 12:20].mean(axis=(1, 2, 3))

    found = compare_maps(score, crops, centre_maps(6, 32), 4, np.array(list("aabbcc")), seeds=2)
    assert found["gains"]["centre"]["deletion"] == {"gain": 0, "low": 0, "high": 0}
    assert found["areas"]["map"] == found["areas"]["centre"] != found["areas"]["random"]


def test_pointing_counts_mass_peak_and_area():
    maps = np.zeros((1, 8, 8))
    maps[0, 1, 2], maps[0, 6, 7] = 3, 1
    found = pointing(maps, np.array([[0.25, 0.0, 0.75, 0.5]]))
    assert found["mass"][0] == 0.75 and found["peak"][0] and found["area"][0] == 0.25


def test_box_in_crop_without_a_margin_is_the_whole_crop_and_at_an_edge_is_off_the_middle():
    whole = box_in_crop([10, 20, 30, 60], [np.nan, np.nan], (100, 100), margin=0)
    assert whole.tolist() == [0, 0, 1, 1]
    edge = box_in_crop([0, 40, 20, 60], [np.nan, np.nan], (100, 100), margin=0.5)  # nothing left of the photograph
    assert edge.tolist() == pytest.approx([0, 0.25, 2 / 3, 0.75])


def test_occlusion_maps_are_highest_in_the_region_the_score_is_made_of(crops):
    def score(pixels, rows):
        return pixels[:, 8:16, 16:24].std(axis=(1, 2, 3))

    maps = occlusion_maps(score, crops, cells=4, batch_size=4)
    top = np.array(np.unravel_index(maps.reshape(6, -1).argmax(axis=1), (32, 32)))
    assert ((top >= [[8], [16]]) & (top < [[16], [24]])).all()
    np.testing.assert_allclose(maps, occlusion_maps(score, crops, cells=4), atol=1e-6)


def test_gradcam_stage_of_a_fold_that_is_not_trained_or_not_answered_is_refused(study, whole, tmp_path, monkeypatch):
    from happywhale_nb.stages.matched_photos import fold_predictions

    dataset = read_dataset(whole / "data" / "tiny")
    with pytest.raises(UserError, match=r"oof\.csv is missing: run 06_knn for this model first"):
        fold_predictions(tmp_path, study_folds(dataset, study, save=False), 0)
    words = {"data_dir": str(dataset.root), "study": "not trained", "fold": 1}
    values = {name: p.default for name, p in read_parameters(whole / "nbs" / "04_gradcam.ipynb").items()} | words
    monkeypatch.chdir(whole)
    with pytest.raises(UserError, match=r"fold1/config\.json is missing"):
        check_stage("gradcam", values)


def test_gradcam_stage_leaves_pictures_and_figures_of_pairs_of_the_fold_and_its_gallery(study):
    place = study / "small_resnet_arcface" / "fold0"
    for name in ("gradcam.png", "faithfulness.png"):
        assert (place / name).stat().st_size > 10_000
    told = json.loads((place / "gradcam.json").read_text())
    assert told["protocol"]["fold"] == 0 and told["layer"] == "features" and told["explain"] == "similarity"
    compared, fold = told["faithfulness"], pd.read_csv(study / "folds.csv").set_index("image")["fold"]
    for kind in ("deletion", "insertion"):
        ends = np.array([(c[kind][0], c[kind][-1]) for c in compared["curves"].values()])
        assert len(ends) == 4 and np.ptp(ends, axis=0).max() < 1e-5
        gain = compared["gains"]["random"][kind]
        assert gain["low"] <= gain["gain"] <= gain["high"]
    assert len(compared["verdicts"]) == 6 and all(
        v.startswith(("deletion: ", "insertion: ")) for v in compared["verdicts"]
    )
    for figures in told["pointing"]["maps"].values():
        assert 0 <= figures["area"] <= 1 and figures["photos"] <= told["protocol"]["photos"]
    for case in told["examples"]:
        assert fold[case["image"]] == 0 and fold[case["matched"]] == 1
        if case["kind"] != "new" and case["answer"] != NEW:
            assert case["matched_individual"] == case["answer"]
        assert (case["kind"] == "right") == (case["answer"] == case["individual"])


@pytest.fixture
def opened(study, whole, tmp_path):
    """Data, a copy of the study's folder, and its folds."""
    dataset, folder = read_dataset(whole / "data" / "tiny"), shutil.copytree(study, tmp_path / "study")
    return dataset, folder, study_folds(dataset, folder, save=False)


@pytest.mark.soak
@pytest.mark.slow
def test_gradcam_stage_called_again_leaves_the_same_files_as_the_notebook(opened):
    dataset, folder, folds = opened
    place = folder / "small_resnet_arcface" / "fold0"
    before = {name: (place / name).read_bytes() for name in ("gradcam.png", "faithfulness.png", "gradcam.json")}
    for name in before:
        (place / name).unlink()
    result = gradcam_stage(dataset, folder, "small_resnet_arcface", folds, 0, GradcamOptions(photos=24))
    assert result == json.loads(before["gradcam.json"])
    assert {name: (place / name).read_bytes() for name in before} == before


def test_gradcam_stage_of_the_class_without_boxes_and_answers_makes_the_answers_first(opened, whole, tmp_path):
    _, folder, folds = opened
    shutil.copytree(whole / "data" / "tiny", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "boxes")
    place = folder / "small_resnet_arcface" / "fold0"
    answers = (place / "oof.csv").read_bytes()
    (place / "oof_lists.csv").unlink()
    options = GradcamOptions(explain="class", examples=1, photos=3, seed=1)
    result = gradcam_stage(read_dataset(tmp_path / "bare"), folder, "small_resnet_arcface", folds, 0, options)
    assert (place / "oof.csv").read_bytes() == answers
    assert (result["explain"], result["pointing"], result["protocol"]["photos"]) == ("class", None, 3)
    assert {example["kind"] for example in result["examples"]} <= {"right", "wrong", "new"}
    assert len(result["examples"]) <= 3


def test_GradcamOptions_of_unknown_words_and_open_fold_of_an_unknown_layer_are_refused(opened):
    with pytest.raises(UserError, match="did you mean 'similarity'"):
        GradcamOptions(explain="similarty")
    with pytest.raises(UserError, match="did you mean 'inferno'"):
        GradcamOptions(colours="infreno")
    dataset, folder, folds = opened
    with pytest.raises(UserError, match="no layer 'featurs': did you mean"):
        open_fold(dataset, folder, "small_resnet_arcface", folds, 0, GradcamOptions(layer="featurs"))


def test_explained_queries_of_a_fold_are_pairs_whose_score_is_the_stored_cosine(opened):
    dataset, folder, folds = opened
    explainer = open_fold(dataset, folder, "small_resnet_arcface", folds, 0, GradcamOptions())
    fold, rows = explainer.fold, sample_rows(len(explainer.fold.queries), 5, seed=2)
    assert folds["fold"].to_numpy()[fold.queries].tolist() == [0] * len(fold.queries)
    assert (folds["fold"].to_numpy()[fold.matches] != 0).all()
    pairs = explainer.explained(rows)
    scores = (explainer.probe.values(pairs.crops) * pairs.weights).sum(axis=1)
    stored = (fold.vectors[fold.queries[rows]] * fold.vectors[fold.matches[rows]]).sum(axis=1)
    assert scores == pytest.approx(stored, abs=0.02)  # the stored ones are of a photograph and its mirror image
