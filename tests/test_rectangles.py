"""Crops and networks that are not square: squares are as they always were, and nothing else is squeezed or cut off."""

import io
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from happywhale_nb.catalogue.embedders import TableEmbedder
from happywhale_nb.catalogue.opened import shaped_crop
from happywhale_nb.core.artifacts import fingerprint, read_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.paths import fold_dir
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.evaluation.error_analysis import measure_crop
from happywhale_nb.evaluation.faithfulness import box_in_crop, compare_maps, occlusion_maps, pointing_metrics
from happywhale_nb.imaging.augmentation import augment
from happywhale_nb.imaging.augmentation_passes import maps_in_pixels
from happywhale_nb.imaging.augmentation_plan import plan
from happywhale_nb.imaging.augmentation_recipes import STEPS
from happywhale_nb.imaging.crops import crop_aspect, crop_region, load_crop, load_crops
from happywhale_nb.imaging.empty_pictures import empty_crops
from happywhale_nb.networks.encoder_card import EncoderCard, files_digest, write_card
from happywhale_nb.networks.encoder_groups import group_card
from happywhale_nb.networks.presets import PRESETS, configure, used_preset
from happywhale_nb.retrieval.local_features import extract_features
from happywhale_nb.stages.study_split import study_folds

quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIDES = st.integers(1, 40)
BOXES = st.tuples(st.integers(0, 118), st.integers(0, 88), st.integers(2, 120), st.integers(2, 90))
WIDE = "aspect=2 keep_aspect=true backbone=basic_cnn embedding=32"


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A smooth photograph of 120 x 90 pixels, and the same with rows and columns exchanged."""
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8), (0, 0), 2)
    folder = tmp_path_factory.mktemp("noise")
    for name, picture in (("wide", pixels), ("tall", pixels.transpose(1, 0, 2))):
        Image.fromarray(np.ascontiguousarray(picture)).save(folder / f"{name}.png")
    return folder


def inside(x, y, wide, high):
    """A box within the photograph."""
    return x, y, min(x + wide, 120), min(y + high, 90)


@quick
@given(BOXES, st.sampled_from([0, 0.05, 0.3]), st.booleans())
def test_crop_region_of_a_square_is_that_of_before(box, margin, keep):
    x0, y0, x1, y1 = map(float, inside(*box))
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    if keep:
        side = max(x1 - x0 + 2 * dx, y1 - y0 + 2 * dy)
        dx, dy = (side - (x1 - x0)) / 2, (side - (y1 - y0)) / 2
    low = min(max(x0 - dx, 0), 119), min(max(y0 - dy, 0), 89)
    before = *low, max(min(x1 + dx, 120), low[0] + 1), max(min(y1 + dy, 90), low[1] + 1)
    assert crop_region((x0, y0, x1, y1), None, (120, 90), margin, keep) == before


@quick
@given(BOXES, SIDES, SIDES, st.sampled_from([0, 0.2]), st.booleans())
def test_load_crop_with_rows_and_columns_exchanged_is_the_same_crop(noise, box, high, wide, margin, keep):
    x0, y0, x1, y1 = inside(*box)
    crop = load_crop(noise / "wide.png", (high, wide), (x0, y0, x1, y1), None, margin, keep)
    other = load_crop(noise / "tall.png", (wide, high), (y0, x0, y1, x1), None, margin, keep)
    assert crop.shape == (high, wide, 3)
    # columns are resized before rows, and each step rounds; an exchange of height and width would differ by 20
    assert np.abs(crop.astype(int) - other.transpose(1, 0, 2)).mean() <= 3


@pytest.mark.parametrize("size", [(48, 96), (96, 48), (64, 64), (40, 100)])
def test_load_crop_that_keeps_the_aspect_keeps_a_disc_round_and_whole(size, tmp_path):
    y, x = np.mgrid[:160, :240]
    disc = ((x - 120) ** 2 + (y - 60) ** 2 < 20**2).astype(np.uint8) * 255
    Image.fromarray(disc).convert("RGB").save(tmp_path / "disc.png")
    crop = load_crop(tmp_path / "disc.png", size, (100, 40, 140, 80), margin=0, keep_aspect=True)[..., 0] > 127
    across, down = crop.any(axis=0).sum(), crop.any(axis=1).sum()
    assert across == pytest.approx(down, abs=2) and down == pytest.approx(min(size), abs=3)
    assert crop_aspect(240, 160, (100, 40, 140, 80), None, 0, True, size[1] / size[0]) == size[1] / size[0]


def test_load_crops_of_squares_keep_their_files_and_others_have_their_own(noise, tmp_path):
    nowhere = pd.DataFrame({name: [np.nan] for name in ["x0", "y0", "x1", "y1", "W", "H"]})
    paths = [noise / "wide.png"]
    one, same = (load_crops(paths, nowhere, size, tmp_path) for size in (32, (32, 32)))
    key = fingerprint(32, 0.05, False, nowhere.iloc[0].to_numpy(), photos=paths)
    assert (one == same).all()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")] == [Path("32", key[:2], f"{key}.png")]
    made = [load_crops(paths, nowhere, size, tmp_path)[0] for size in ((32, 64), (64, 32), (64, 160))]
    assert [crop.shape[:2] for crop in made] == [(32, 64), (64, 32), (64, 160)]
    found = sorted(path.relative_to(tmp_path).parts[0] + path.suffix for path in tmp_path.rglob("*.*"))
    assert found == ["32.png", "32x64.png", "64x160.jpg", "64x32.png"]
    again = load_crops(paths, nowhere, (64, 160), tmp_path)
    assert (again[0] == made[2]).all()


@pytest.mark.parametrize("size", [0, (0, 5), (5,), (5, 5, 3), 2.5])
def test_load_crop_of_an_impossible_size_is_refused(size, noise):
    with pytest.raises(UserError, match="one number, or height and width, in whole pixels from 1"):
        load_crop(noise / "wide.png", size)


def test_empty_crops_have_the_size_that_is_asked_for(tiny):
    kinds, crops = empty_crops(read_dataset(tiny), (16, 32), keep_aspect=True)
    assert crops.shape == (len(kinds), 16, 32, 3) and set(kinds) == {"piece", "plain"}


def test_pictures_without_an_animal_have_the_shape_of_the_training(tiny, monkeypatch):
    from happywhale_nb.stages import fold_training

    seen = []
    monkeypatch.setattr(
        fold_training, "embed", lambda model, crops, **more: seen.append(crops.shape) or np.ones((len(crops), 4))
    )
    config = configure("small_resnet_arcface", image_size=64, overrides="aspect=2")
    fold_training._embed_empty(SimpleNamespace(dataset=read_dataset(tiny), config=config), None)
    assert seen[0][1:] == (32, 64, 3)


def test_embed_refuses_crops_of_another_size_before_and_after_the_first():
    from happywhale_nb.networks.model import build_network, embed, inference_model

    model = inference_model(build_network(configure("basic_cnn", image_size=64, overrides="aspect=2"), 3))
    for _ in range(2):
        with pytest.raises(UserError, match="crops of 64 x 64 pixels, but basic_cnn takes 64 x 32"):
            embed(model, np.zeros((2, 64, 64, 3), np.uint8), batch_size=2, quiet=True)
        assert embed(model, np.zeros((2, 32, 64, 3), np.uint8), batch_size=2, quiet=True).shape == (2, 512)


def test_vectors_of_an_encoder_of_wide_crops_are_shown_with_wide_crops(noise, tmp_path):
    vectors = pd.DataFrame(np.eye(3, dtype=np.float32)).assign(image=["wide.png", "a.png", "b.png"])
    vectors.to_csv(tmp_path / "theirs.csv", index=False)
    digest = files_digest([tmp_path / "theirs.csv"])
    card = EncoderCard(
        *(
            "theirs",
            "theirs.csv",
            digest,
            64,
            32,
            "linear",
            "rgb",
            "nhwc",
            255.0,
            (0.0,) * 3,
            (1.0,) * 3,
            3,
            "MIT",
            True,
        ),
        keep_aspect=True,
    )
    write_card(tmp_path / "theirs.json", card)
    embedder = TableEmbedder(tmp_path / "theirs.csv")
    box, settings = (40, 30, 60, 50), embedder.settings
    assert settings["aspect"] == 2 and settings["image_size"] == 64
    crop = embedder.crop(noise / "wide.png", box)
    assert np.array_equal(crop, load_crop(noise / "wide.png", (32, 64), box, None, 0.05, True, "linear"))
    shown = shaped_crop(noise / "wide.png", box, None, settings, 32)
    assert shown.shape == (32, 64, 3), "what the page shows has the shape of what the encoder saw"
    write_card(tmp_path / "theirs.json", replace(card, width=32))
    assert "aspect" not in TableEmbedder(tmp_path / "theirs.csv").settings


def test_encoders_side_by_side_of_several_shapes_are_refused_if_boxes_keep_theirs():
    cards = [SimpleNamespace(card=card_of(64, 32)), SimpleNamespace(card=card_of(32, 32))]
    with pytest.raises(UserError, match=r"keep_aspect makes several shapes.*64 x 32; 32 wide"):
        group_card(cards, [1, 1])
    cards[1].card = card_of(128, 64)
    assert group_card(cards, [1, 1]).width == 128


def card_of(width, height):
    nothing = ("area", "rgb", "nhwc", 255.0, (0.0,) * 3, (1.0,) * 3, 3, "MIT", True)
    return EncoderCard(f"{width} wide", "net.onnx", "0" * 64, width, height, *nothing, keep_aspect=True)


# --- augmentation


@quick
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_maps_in_pixels_of_squares_are_those_of_before(side, size, seed):
    for dtype in (np.float32, np.float64):
        maps = np.random.default_rng(seed).normal(size=(3, 2, 3)).astype(dtype)
        linear = maps[:, :, :2] * (side / size)
        shift = maps[:, :, 2] * side + (side - 1) / 2 - linear.sum(2) * (size - 1) / 2
        found = maps_in_pixels(maps.reshape(3, 6), side, size)
        assert found.dtype == dtype and (found == np.concatenate([linear, shift[:, :, None]], axis=2)).all()


@quick
@given(st.integers(4, 200), st.integers(4, 200), st.integers(0, 99), st.sampled_from(["Rotation", "HorizonTilt"]))
def test_steps_that_turn_are_rotations_in_pixels_about_the_middle(high, wide, seed, name):
    maps = plan((STEPS[name](40.0),), 8, seed, wide / high).astype(float)
    pixels = maps_in_pixels(maps, (high, wide))
    turns = pixels[:, :, :2]
    scale = np.sqrt(np.linalg.det(turns))[:, None, None]
    middle = np.array([(wide - 1) / 2, (high - 1) / 2])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), scale**2 * np.eye(2)[None], atol=1e-5)
    np.testing.assert_allclose(turns @ middle + pixels[:, :, 2], np.tile(middle, (8, 1)), atol=1e-3)


@quick
@given(st.floats(0.25, 4), st.integers(0, 99))
def test_steps_that_show_a_part_stay_inside_an_image_of_any_aspect(aspect, seed):
    corners = np.array([[x, y, 1] for x in (-0.5, 0.5) for y in (-0.5, 0.5)])
    for step in (STEPS["RandomResizedCrop"](0.8), STEPS["HorizonTilt"](45.0)):
        maps = plan((step,), 50, seed, aspect).reshape(-1, 2, 3)
        assert np.abs(np.einsum("nij,kj->nki", maps, corners)).max() <= 0.5 + 1e-5


@pytest.mark.parametrize("name", sorted(STEPS))
def test_augment_by_a_step_keeps_the_shape_and_a_wide_image_is_changed_all_over(name):
    images = np.random.default_rng(0).integers(60, 190, (24, 20, 46, 3)).astype(np.uint8)
    strength = {"Rotation": 40, "Affine": 40, "HorizonTilt": 60, "Noise": 60, "Jpeg": 95, "Blur": 0.1, "Spray": 0.3}
    strength["CutOut"] = 2.0
    changed = augment(images, (STEPS[name](strength.get(name, 0.8), 1.0),), 1)
    where = (changed != images).any(axis=(0, 3))
    assert changed.shape == images.shape and where.all(), "every row and column of some image"


def test_drops_of_spray_and_blur_are_round_in_wide_images():
    black = np.zeros((1, 40, 120, 3), np.uint8)
    spots = [augment(black, (STEPS["Spray"](0.15),), seed)[0, ..., 0] > 100 for seed in range(30)]
    sides = []
    for spot in spots:
        rows = cv2.connectedComponentsWithStats(spot.astype(np.uint8))[2][1:]  # left, top, width, height, area
        whole = [row for row in rows if min(row[:2]) > 0 and row[0] + row[2] < 120 and row[1] + row[3] < 40]
        sides += [(row[2], row[3]) for row in whole if row[4] > 12]
    ratio = np.array([wide / high for wide, high in sides])
    assert len(ratio) > 20 and np.median(ratio) == pytest.approx(1, abs=0.1)
    point = black.copy()
    point[0, 20, 60] = 255
    blurred = augment(point, (STEPS["Blur"](0.03),), 3)[0, ..., 0].astype(float)
    down, across = (np.arange(40) - 20) ** 2, (np.arange(120) - 60) ** 2
    spread = np.average(down, weights=blurred.sum(1)), np.average(across, weights=blurred.sum(0))
    assert spread[0] > 0.5 and spread[0] == pytest.approx(spread[1], rel=0.15)


# --- presets and networks


def test_presets_without_an_aspect_are_squares_and_overrides_keep_it():
    assert all(preset.shape == (preset.image_size,) * 2 for preset in PRESETS.values() if preset.aspect == 1)
    assert [name for name, preset in PRESETS.items() if preset.aspect != 1] == ["efficientnet_lite0_flukes"]
    old = asdict(configure("small_resnet_arcface")) | {"preset": "x"}
    del old["aspect"]
    assert used_preset(old) == configure("small_resnet_arcface")
    wide = configure("small_resnet_arcface", image_size=256, overrides="aspect=2")
    assert wide.shape == (128, 256) and used_preset(asdict(wide)) == wide
    assert configure("small_resnet_arcface", quick=True, overrides="aspect=0.5").shape == (96, 48)
    refused = {"aspect=5": "from 0.25 to 4", "aspect=nan": "from 0.25", "aspect=2 image_size=48": "at least 32"}
    for words, told in refused.items():
        with pytest.raises(UserError, match=told):
            configure("small_resnet_arcface", overrides=words)


def test_network_of_a_wide_preset_embeds_wide_crops_with_mirror_and_zoom():
    from happywhale_nb.networks.model import build_network, embed, inference_model

    config = configure("small_resnet_arcface", image_size=64, overrides=f"{WIDE} pool=parts tta_zoom=.1 parts=2")
    model = inference_model(build_network(config, 3))
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3)).astype(np.uint8)
    vectors = embed(model, crops, 2, config.tta_zoom, batch_size=4, quiet=True)
    assert model.input_shape == (None, 32, 64, 3) and vectors.shape == (3, 32)
    np.testing.assert_allclose(vectors, embed(model, crops[:, :, ::-1], 2, config.tta_zoom, 4, True), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_attention_in_windows_of_a_wide_image_is_stored_and_read_again(kind, tmp_path):
    import keras

    from happywhale_nb.networks import backbones

    build = {
        "swin": partial(backbones.swin, width=12, depths=(2, 1, 1, 1), heads=(1, 2, 4, 8)),
        "vit": partial(backbones.vit, width=12, depth=2, heads=2),
    }[kind]
    pixels = keras.Input((64, 128, 3))
    model = keras.Model(pixels, build(pixels))
    shapes = {"swin": [(None, 4, 8, 48), (None, 2, 4, 96)], "vit": [(None, 4, 8, 12)] * 2}
    assert [tuple(each.shape) for each in model.outputs] == shapes[kind]
    crops = np.random.default_rng(0).uniform(0, 255, (1, 64, 128, 3)).astype(np.float32)
    model.save(tmp_path / "wide.keras")
    again = keras.saving.load_model(tmp_path / "wide.keras")
    for one, other in zip(model(crops), again(crops), strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other), atol=1e-5)
    with pytest.raises(UserError, match=r"width and height that are multiples of (32|16), not 104 and 40"):
        build(keras.Input((40, 104, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "efficientnet_lite0", "convnext_tiny"])
def test_backbones_of_wide_images_give_maps_of_a_sixteenth_and_a_thirty_second(name):
    import keras

    from happywhale_nb.networks.backbones import feature_maps

    before, last = feature_maps(name, keras.Input((64, 128, 3)))
    assert (before.shape[1:3], last.shape[1:3]) == ((4, 8), (2, 4))


# --- heat maps and measures


@quick
@given(BOXES, st.sampled_from([(40, 80), (80, 40), (64, 64), (30, 100)]), st.booleans())
def test_box_in_crop_is_where_load_crop_shows_the_box(tmp_path, box, size, keep):
    x0, y0, x1, y1 = inside(*box)
    if min(x1 - x0, y1 - y0) < 8:
        return
    pixels = np.zeros((90, 120, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    buffer = io.BytesIO(cv2.imencode(".png", pixels)[1].tobytes())
    found = load_crop(buffer, size, (x0, y0, x1, y1), None, 0.5, keep)[..., 0] > 127
    (high, wide), nowhere = size, [np.nan, np.nan]
    left, top, right, bottom = box_in_crop((x0, y0, x1, y1), nowhere, (120, 90), 0.5, keep, wide / high)
    across, down = found[int(high * (top + bottom) / 2)], found[:, int(wide * (left + right) / 2)]
    assert across.any() and down.any()
    if not keep:  # mirrored edges show the box twice
        assert np.flatnonzero(across)[[0, -1]] / wide == pytest.approx([left, right], abs=0.06)
        assert np.flatnonzero(down)[[0, -1]] / high == pytest.approx([top, bottom], abs=0.06)


def test_maps_of_wide_crops_are_compared_and_point_as_those_of_squares():
    crops = np.random.default_rng(0).integers(0, 256, (4, 16, 48, 3)).astype(np.uint8)

    def score(pixels, rows):
        return pixels[:, :8, 34:41].std(axis=(1, 2, 3))

    maps = occlusion_maps(score, crops, cells=4)
    top = np.array(np.unravel_index(maps.reshape(4, -1).argmax(axis=1), (16, 48)))
    assert maps.shape == (4, 16, 48) and ((top >= [[0], [34]]) & (top < [[8], [41]])).all()
    found = compare_maps(score, crops, maps, (2, 6), np.array(list("aabb")), steps=3, seeds=1, cells=4)
    assert found["areas"]["map"] == found["areas"]["occlusion"] and found["empty"] == 0
    pointed = pointing_metrics(maps, np.tile([34 / 48, 0, 41 / 48, 0.5], (4, 1)), list("aabb"))
    assert pointed["mass"] > pointed["area"] and pointed["peak"] == 1


def test_measures_and_local_features_of_a_wide_crop_are_not_those_of_a_squeezed_one(noise):
    pixels = cv2.imread(str(noise / "wide.png"), cv2.IMREAD_COLOR_RGB)[:64, :120]
    wide = cv2.resize(pixels, (240, 128))
    whole, half = measure_crop(wide, 64), measure_crop(wide[:, :128], 64)
    assert abs(whole["sharpness"] - measure_crop(cv2.resize(wide, (120, 64)), 64)["sharpness"]) < 0.2
    assert half["sharpness"] < whole["sharpness"]  # seen twice as large
    one, other = extract_features(wide, 128), extract_features(wide[:, ::-1].copy(), 128)
    assert len(one) > 20 and one.positions[:, 1].max() <= 64 / 120 and one.positions[:, 0].max() > 0.9
    assert len(other) == pytest.approx(len(one), rel=0.3)


# --- a study and a catalogue


@pytest.fixture(scope="module")
def wide(tiny, tmp_path_factory):
    """One fold of a network of 32 x 64 pixels, as `train_stage` leaves it."""
    from happywhale_nb.stages.train import train_stage

    folder, dataset = tmp_path_factory.mktemp("outputs") / "wide", read_dataset(tiny)
    folds = study_folds(dataset, folder, 2, 0)
    config = configure("small_resnet_arcface", epochs=2, image_size=64, overrides=f"{WIDE} batch_size=16")
    train_stage(dataset, folds, 0, "wide", config, folder)
    return dataset, folder, folds


@pytest.mark.soak
@pytest.mark.trains
def test_a_study_of_wide_crops_runs_from_training_to_report(wide):
    from happywhale_nb.retrieval.knn import KNNHead
    from happywhale_nb.stages.fold_explainer import GradcamOptions
    from happywhale_nb.stages.gradcam import gradcam_stage
    from happywhale_nb.stages.knn import knn_stage
    from happywhale_nb.stages.new_individual import PredictionOptions
    from happywhale_nb.stages.report import report_stage
    from happywhale_nb.stages.robustness import robustness_stage

    (dataset, folder, folds), place = wide, fold_dir(wide[1], "wide", 0)
    record = read_json(place / "config.json")
    assert record["parameters"]["aspect"] == 2 and (folder / "crops" / "32x64").is_dir()
    assert knn_stage(dataset, folder, "wide", folds, KNNHead(), PredictionOptions(rerank_top=5))["parameters"]
    shown = gradcam_stage(dataset, folder, "wide", folds, 0, GradcamOptions(examples=3, photos=6))
    assert set(shown["pointing"]["maps"]) == {"Grad-CAM", "occlusion"}
    with Image.open(place / "gradcam.png") as picture:
        assert picture.width > 2 * picture.height
    found = robustness_stage(dataset, folder, "wide", folds, 0, photos=6)
    assert found["protocol"]["pixels"] == "of the crop, 64 × 32"
    report_stage(dataset, folder, folds, examples=2)
    assert "64 × 32" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.soak
@pytest.mark.trains
def test_a_wide_network_is_exported_with_its_width_and_height(wide, tmp_path):
    from happywhale_nb.networks.encoders import open_encoder
    from happywhale_nb.networks.export import export_encoder

    model = fold_dir(wide[1], "wide", 0) / "model.keras"
    assert export_encoder(model, tmp_path / "wide.onnx", "onnx") > 0.9999
    fold, exported = open_encoder(model), open_encoder(tmp_path / "wide.onnx")
    assert (exported.card.width, exported.card.height) == (fold.card.width, fold.card.height) == (64, 32)
    assert used_preset(exported.record["parameters"]).shape == (32, 64)
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3)).astype(np.uint8)
    assert ((fold.embed(crops) * exported.embed(crops)).sum(axis=1) > 0.9999).all()


@pytest.mark.trains
def test_a_catalogue_of_a_wide_network_shows_its_crops_and_heat_maps_in_their_shape(wide, tmp_path):
    from happywhale_nb.catalogue.build import build_catalogue
    from happywhale_nb.catalogue.opened import shaped_crop
    from happywhale_nb.server.app import make_app
    from happywhale_nb.server.state import AppState, Options

    dataset, folder, _ = wide
    model = fold_dir(folder, "wide", 0) / "model.keras"
    made, embedder, *_ = build_catalogue(tmp_path / "catalogue", dataset.root, model)
    state = AppState(made, Options(tokens=False))
    with TestClient(make_app(state, lambda: embedder), base_url="http://localhost") as page:
        met = page.get("/api/encounters?state=undecided&limit=1").json()["encounters"][0]
        photo = met["photos"][0]
        assert photo["crop"]["aspect"] == 2
        with Image.open(io.BytesIO(page.get(f"/api/photos/{photo['id']}/crop?side=512").content)) as crop:
            assert crop.size == (512, 256)
        answer = page.post(f"/api/encounters/{met['id']}/answers", json={}).json()
        first = next(each for each in answer["candidates"] if not each["is_new"])
        heat = page.get(f"/api/answers/{answer['id']}/heat?rank={first['rank']}")
        with Image.open(io.BytesIO(heat.content)) as layer:
            assert layer.size == (256, 128)
    path = dataset.test_images / photo["name"]
    assert shaped_crop(path, photo["crop"]["box"], None, embedder.settings, 100).shape == (100, 200, 3)
    embedder.close()
    made.close()


def test_choose_boxes_of_no_photographs_is_empty_with_or_without_boxes():
    from happywhale_nb.networks.loading import choose_boxes

    boxes = pd.DataFrame({"image": ["a.jpg"], "source": "fullbody", "x0": 0, "y0": 0, "x1": 5, "y1": 5})
    record = {"parameters": asdict(configure("small_resnet_arcface")) | {"crops": "auto"}}
    for table_of in (None, boxes.assign(W=9, H=9, confidence=1.0)):
        ((share, table),) = choose_boxes([], table_of, record)
        assert share == 1 and len(table) == 0
