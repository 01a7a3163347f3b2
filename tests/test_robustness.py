"""Degradations are what their names say; what they cost is measured against the untouched photographs."""

import cv2
import keras
import numpy as np
import pytest

from happywhale_nb.core.artifacts import read_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.paths import fold_dir
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.splits import make_folds
from happywhale_nb.imaging.degradations import DEGRADATIONS, degrade
from happywhale_nb.networks.model import build_network, inference_model
from happywhale_nb.networks.presets import configure
from happywhale_nb.retrieval.embeddings import read_embeddings
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.metrics import bootstrap_interval, map_at_5
from happywhale_nb.stages.degradation_costs import degradation_costs
from happywhale_nb.stages.degraded_crops import all_changes
from happywhale_nb.stages.degraded_queries import sample_queries
from happywhale_nb.stages.robustness import robustness_stage
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.stages.train import train_stage

NAMES = list(DEGRADATIONS)


@pytest.fixture(scope="module")
def picture():
    """Smooth light and dark with some texture, as a photograph of the sea has; not a square."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(150, 220, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 12)
    value = 110 + 45 * smooth / smooth.std() + 6 * cv2.GaussianBlur(noise, (0, 0), 1) / 0.28
    return np.clip(value, 20, 200).astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_degrade_at_the_strength_that_is_none_changes_nothing(picture, name):
    none = DEGRADATIONS[name].none
    if none is None:
        assert name == "jpeg"
    else:
        assert (degrade(picture, [(name, none)], 1) == picture).all()


def test_degradations_have_five_strengths_and_a_unit_and_tilt_changes_more_at_each(picture):
    assert all(len(d.strengths) == 5 and d.unit for d in DEGRADATIONS.values())
    tilted = [degrade(picture, [("tilt", strength)], 1) for strength in DEGRADATIONS["tilt"].strengths]
    moved = [np.abs(turned.astype(int) - picture).mean() for turned in tilted]
    assert moved[0] > 0 and (np.diff(moved) > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(33, 120), (7, 5)])
def test_degrade_keeps_shape_and_kind_and_the_original(picture, name, shape):
    pixels = np.ascontiguousarray(picture[: shape[0], : shape[1]])
    before = pixels.copy()
    for strength in DEGRADATIONS[name].strengths:
        out = degrade(pixels, [(name, strength)], [2, 3])
        assert out.shape == pixels.shape and out.dtype == np.uint8
    assert (pixels == before).all()


@pytest.mark.parametrize("name", NAMES)
def test_degrade_with_the_same_seed_is_the_same_and_only_what_is_drawn_changes_with_it(picture, name):
    strong = DEGRADATIONS[name].strengths[3]
    once, again = (degrade(picture, [(name, strong)], [4, 5]) for _ in range(2))
    others = [degrade(picture, [(name, strong)], [4, seed]) for seed in range(6, 12)]
    assert (once == again).all()
    drawn = name in {"glare", "spray", "occlusion", "tilt", "motion"}
    assert any((other != once).any() for other in others) == drawn


def test_degrade_is_what_each_name_says(picture):
    def one(name, strength):
        return degrade(picture, [(name, strength)], 1)

    assert (one("darkness", 0.5) == np.rint(picture / 2)).all()
    code = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    assert (one("jpeg", 30) == cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1]).all()
    assert (one("blur", 2.0) == cv2.GaussianBlur(picture, (0, 0), 2.0)).all()
    for name in ("glare", "spray"):
        assert (one(name, DEGRADATIONS[name].strengths[2]) >= picture).all()
    contrast = [one("haze", share).std() / picture.std() for share in (0.35, 0.8)]
    assert contrast == pytest.approx([0.65, 0.2], abs=0.05)
    assert cv2.Laplacian(one("scale", 6.0), cv2.CV_64F).std() < 0.3 * cv2.Laplacian(picture, cv2.CV_64F).std()
    still = degrade(picture, [("tilt", 20.0)], 1, centre=(60, 40))
    assert np.abs(still[40, 60].astype(int) - picture[40, 60]).max() <= 1


def test_degrade_of_an_unknown_name_or_of_what_is_no_photograph_is_refused(picture):
    with pytest.raises(UserError, match="did you mean 'spray'"):
        degrade(picture, [("sprai", 3)])
    with pytest.raises(UserError, match=r"\[h, w, 3\] uint8, not \[150, 220, 3\] float64"):
        degrade(picture / 255.0, [])


def test_costs_are_the_mean_losses_against_the_first_column_with_their_intervals():
    rng = np.random.default_rng(0)
    scores, who = rng.choice([0, 0.2, 0.5, 1], (40, 3)), np.array(list("abcdefgh") * 5)
    found = degradation_costs(scores, who)
    for j, cost in enumerate(found):
        by_hand = sum(scores[i, 0] - scores[i, j] for i in range(40)) / 40
        assert cost["loss"] == pytest.approx(by_hand) and cost["map5"] == pytest.approx(scores[:, j].mean())
        assert (cost["loss_low"], cost["loss_high"]) == bootstrap_interval(scores[:, 0] - scores[:, j], who)
        assert cost["loss_low"] <= cost["loss"] <= cost["loss_high"]
    assert found[0]["loss_low"] == found[0]["loss_high"] == 0


def stored_map5(place, folds, fold, photos=500):
    """MAP@5 of a fold's known animals by the embeddings that training stored."""
    rows, gallery = sample_queries(folds, [fold], photos), folds[folds["fold"] != fold]
    kept = read_embeddings(place / "embeddings.parquet")
    head = KNNHead().fit(kept.of("train", gallery["image"]), gallery["individual_id"].to_numpy(dtype=str))
    answers, _ = head.rank(kept.of("train", rows["image"]))
    return map_at_5(rows["individual_id"].to_numpy(dtype=str), answers)


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory):
    """Two of three folds of a small network that is not trained, as `train_stage` leaves them. The embeddings of the
    second are the means of two crops."""
    folder, dataset = tmp_path_factory.mktemp("study"), read_dataset(tiny)
    folds = study_folds(dataset, folder, 3, 0)
    config = configure("small_resnet_arcface", image_size=32, overrides="backbone=basic_cnn embedding=32")

    def build(config, crops, rows, labels, classes, *rest, **how):
        keras.utils.set_random_seed(0)
        return inference_model(build_network(config, classes)), [{"epoch": 1, "loss": 1.0, "seconds": 0.0}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("happywhale_nb.stages.fold_training.train", build)
        for k, views in enumerate(("", "fullbody:.5 whole:.5")):
            train_stage(dataset, folds, k, "small", config, folder, tta_sources=views)
    return dataset, folder, folds


def test_robustness_stage_of_all_folds_leaves_its_figures_and_does_not_do_them_twice(whole, study):
    dataset, record = read_dataset(whole / "data" / "tiny"), study / "small_resnet_arcface" / "robustness.json"
    folds, result = study_folds(dataset, study, save=False), read_json(record)
    protocol, drawn = result["protocol"], sample_queries(folds, [0, 1], 32)
    assert protocol["trained_folds"] == [0, 1] and protocol["queries"] == len(drawn)
    assert not protocol["degrade_before_crop"]
    assert set(result["degradations"]) == set(DEGRADATIONS) and len(result["grid"]) == 16
    for name, part in result["degradations"].items():
        assert [row["strength"] for row in part["rows"]] == list(DEGRADATIONS[name].strengths)
        assert part["unit"] == DEGRADATIONS[name].unit
    untouched = result["grid"][0]
    rows = [row for part in result["degradations"].values() for row in part["rows"]]
    assert all(row["loss"] == pytest.approx(untouched["map5"] - row["map5"]) for row in rows + result["grid"])
    blur = {row["strength"]: row["map5"] for row in result["degradations"]["blur"]["rows"]}
    assert all(row["map5"] == blur[row["sigma"]] for row in result["grid"] if row["brightness"] == 1 and row["sigma"])
    written = record.stat().st_mtime_ns
    assert robustness_stage(dataset, study, "small_resnet_arcface", folds, -1, 32) == result
    assert record.stat().st_mtime_ns == written


@pytest.mark.parametrize("fold", [0, 1])
def test_robustness_stage_scores_untouched_photographs_as_their_stored_embeddings_do(small, fold):
    dataset, folder, folds = small
    place = fold_dir(folder, "small", fold)
    result = robustness_stage(dataset, folder, "small", folds, fold, photos=10)
    assert result["grid"][0]["map5"] == pytest.approx(stored_map5(place, folds, fold, 10))
    assert result["protocol"]["queries"] == 10 and read_json(place / "robustness.json") == result


def test_robustness_stage_can_degrade_photographs_before_they_are_cropped(small):
    dataset, folder, folds = small
    result = robustness_stage(dataset, folder, "small", folds, 0, photos=6, degrade_before_crop=True)
    on_crops = robustness_stage(dataset, folder, "small", folds, 0, photos=6)
    assert result["protocol"]["degrade_before_crop"] and "photograph" in result["protocol"]["pixels"]
    assert (fold_dir(folder, "small", 0) / "robustness_before.json").is_file()
    assert result["protocol"]["queries"] == 6 == on_crops["protocol"]["queries"]
    worst = [sum(row["loss"] for row in r["degradations"]["blur"]["rows"]) for r in (result, on_crops)]
    assert len(all_changes()) == 65 and worst[0] != worst[1]


def test_robustness_stage_of_what_cannot_be_measured_is_refused(small):
    dataset, folder, folds = small
    for fold, message in ((2, "fold 2 of 'small' is not trained"), (3, "fold 3 does not exist"), (-2, "fold -2 does")):
        with pytest.raises(UserError, match=message):
            robustness_stage(dataset, folder, "small", folds, fold)
    with pytest.raises(UserError, match="no trained fold of model 'none'"):
        robustness_stage(dataset, folder, "none", folds, -1)
    with pytest.raises(UserError, match="photos=0"):
        robustness_stage(dataset, folder, "small", folds, 0, photos=0)
    with pytest.raises(UserError, match="this split is disjoint"):
        robustness_stage(dataset, folder, "small", make_folds(dataset.train, 3, split="disjoint"), 0)
    alone = folds["individual_id"].map(folds.groupby("individual_id")["fold"].nunique()) > 1
    strangers = folds[~((folds["fold"] == 0) & alone)]
    with pytest.raises(UserError, match="no held-out photograph of fold 0 shows an individual of the gallery"):
        robustness_stage(dataset, folder, "small", strangers, 0)
