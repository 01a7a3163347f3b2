"""Demo data keep their promises; the real tables and photographs are read."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from happywhale_nb.baselines import hog, raw_pixels
from happywhale_nb.boxes import CropMix, read_boxes
from happywhale_nb.crops import load_crops
from happywhale_nb.dataset import read_dataset
from happywhale_nb.demo import draw_demo
from happywhale_nb.eda import imbalance_table, species_table
from happywhale_nb.knn import KNNHead
from happywhale_nb.metrics import map_at_5
from happywhale_nb.paths import UserError
from happywhale_nb.predictions import read_predictions
from happywhale_nb.splits import dataset_folds, gallery_and_queries, make_folds, true_answers


def digest(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return draw_demo(tmp_path_factory.mktemp("data") / "demo", progress=False)


def test_the_same_seed_draws_the_same_bytes(tiny, tmp_path):
    again = draw_demo(
        tmp_path / "again", seed=3, individuals=12, train_photos=48, test_photos=10, workers=1, progress=False
    )
    other = draw_demo(tmp_path / "other", seed=4, individuals=12, train_photos=48, test_photos=10, progress=False)
    assert digest(again) == digest(tiny) != digest(other)


def test_the_demo_is_like_happywhale(demo):
    data = read_dataset(demo)
    counts = data.train["individual_id"].value_counts()
    assert data.train["species"].nunique() >= 5 and len(counts) >= 60
    assert (counts == 1).mean() >= 0.3 and counts.max() >= 12
    truth = pd.read_csv(demo / "test_truth.csv", dtype=str)
    assert truth["image"].tolist() == data.test["image"].tolist()
    assert 0.12 <= (~truth["individual_id"].isin(counts.index)).mean() <= 0.20
    boxes = read_boxes(demo)
    assert {"fullbody", "detic"} <= set(boxes["source"])
    for name, box in zip(boxes["image"][:40], boxes[["x0", "y0", "x1", "y1"]].to_numpy()[:40], strict=True):
        with Image.open(
            demo / "train_images" / name if (demo / "train_images" / name).exists() else demo / "test_images" / name
        ) as photo:
            assert 0 <= box[0] < box[2] <= photo.width and 0 <= box[1] < box[3] <= photo.height


def test_the_demo_is_neither_trivial_nor_hopeless_for_plain_features(demo, tmp_path):
    data = read_dataset(demo)
    boxes = read_boxes(demo)
    gallery = np.array(
        load_crops(
            data.train_paths(), CropMix.parse("auto", boxes["source"]).prefer(data.train["image"], boxes), 96, tmp_path
        )
    )
    queries = np.array(
        load_crops(
            data.test_paths(), CropMix.parse("auto", boxes["source"]).prefer(data.test["image"], boxes), 96, tmp_path
        )
    )
    names = data.train["individual_id"].to_numpy(dtype=str)
    truth = pd.read_csv(demo / "test_truth.csv", dtype=str)["individual_id"].to_numpy(dtype=str)
    known = np.isin(truth, names)
    figures = {
        f.__name__: map_at_5(truth[known], KNNHead().fit(f(gallery), names).rank(f(queries)[known])[0])
        for f in (raw_pixels, hog)
    }
    assert all(0.05 < value < 0.75 for value in figures.values()), figures


def test_rows_of_spreadsheets_are_counted_as_spreadsheets_do(tiny_copy):
    table = pd.read_csv(tiny_copy / "train.csv", dtype=str)
    table.loc[3, "image"] = table.loc[1, "image"]
    table.to_csv(tiny_copy / "train.csv", index=False)
    with pytest.raises(UserError, match=r"row 5: image .* is listed already in row 3"):
        read_dataset(tiny_copy)


@pytest.mark.parametrize("name", ["new_individual", "two words"])
def test_ids_that_cannot_stand_in_an_answer_are_refused(name, tiny_copy):
    table = pd.read_csv(tiny_copy / "train.csv", dtype=str)
    table.loc[0, "individual_id"] = name
    table.to_csv(tiny_copy / "train.csv", index=False)
    with pytest.raises(UserError, match="row 2: individual_id"):
        read_dataset(tiny_copy)


def test_a_name_that_leaves_the_folder_is_refused(tiny_copy):
    table = pd.read_csv(tiny_copy / "train.csv", dtype=str)
    table.loc[0, "image"] = "../train.csv"
    table.to_csv(tiny_copy / "train.csv", index=False)
    with pytest.raises(UserError, match="plain file name"):
        read_dataset(tiny_copy)


def test_boxes_follow_the_photograph_when_it_was_turned_or_resized(tmp_path):
    """A red quarter, boxed in the frame a person sees: found again whatever the EXIF orientation or stored size."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[:40, 60:, 0] = 255
    upright = Image.fromarray(pixels)
    upright.save(tmp_path / "upright.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    upright.resize((60, 40)).save(tmp_path / "small.jpg", quality=95)
    chosen = pd.DataFrame({"x0": 60.0, "y0": 0.0, "x1": 120.0, "y1": 40.0, "W": 120.0, "H": 80.0}, index=range(3))
    crops = load_crops(
        [tmp_path / n for n in ("upright.jpg", "turned.jpg", "small.jpg")], chosen, 32, tmp_path / "crops"
    )
    for crop in crops:
        assert crop[8:24, 8:24, 0].mean() > 200 and crop[8:24, 8:24, 1:].mean() < 40


def test_the_real_table_splits_as_known(shared):
    table = pd.read_csv(shared / "happywhale" / "train.csv", dtype=str)
    folds = make_folds(table, k=10, seed=0)
    sizes = folds["fold"].value_counts()
    assert len(table) == 51033 and sizes.max() - sizes.min() <= 1
    for fold in range(10):
        gallery, query = gallery_and_queries(folds, fold)
        new = true_answers(folds.loc[query, "individual_id"], folds.loc[gallery, "individual_id"]) == "new_individual"
        assert new.mean() == pytest.approx(0.181, abs=0.01)


def test_real_boxes_and_submissions_are_read(shared):
    boxes = read_boxes(shared / "happywhale")
    known = set(pd.read_csv(shared / "happywhale" / "train.csv", dtype=str)["image"])
    assert boxes.loc[boxes["source"] == "detic", "image"].isin(known).sum() == 51033 - 15362
    assert (boxes["source"] == "yolov5").sum() == 34576 and (
        boxes["source"] == "fullbody_annotations_xywh"
    ).sum() > 3000
    photos = read_boxes(shared / "happywhale_photos")
    assert photos["W"].notna().all() and photos["image"].nunique() <= 286
    _, answers = read_predictions(shared / "happywhale" / "submissions" / "model_b.csv")
    assert answers.shape == (27956, 5)
    with pytest.raises(UserError, match=r"malformed_listfmt\.csv, row 2"):
        read_predictions(shared / "happywhale" / "submissions" / "malformed_listfmt.csv")


def test_given_folds_keep_rare_whales_out_of_the_gallery(shared):
    data = read_dataset(shared / "rightwhale80")
    folds = dataset_folds(data)
    gallery, query = gallery_and_queries(folds, 0)
    truth = true_answers(folds.loc[query, "individual_id"], folds.loc[gallery, "individual_id"])
    assert folds.loc[gallery, "individual_id"].nunique() == 60
    assert (truth == "new_individual").sum() == 7 and query.sum() == 206


def test_the_figures_of_imbalance_are_those_of_the_real_table(shared):
    train = read_dataset(shared / "happywhale", need_photos=False).train
    figures = imbalance_table(train)
    spelled, merged, paper = figures["as spelled"], figures["merged"], figures["the paper"]
    same = ["photographs", "individuals", "species", "photographs of the largest species"]
    same += ["photographs of the smallest species", "largest to smallest individual"]
    assert (spelled[same] == paper[same]).all() and merged["species"] == 26
    assert round(spelled["largest to smallest species"]) == 690 and round(merged["largest to smallest species"]) == 770
    assert spelled["share of the five largest species"] == pytest.approx(0.6399, abs=1e-4)
    assert merged["share of the five largest species"] == pytest.approx(0.6618, abs=1e-4)
    assert spelled["share of the ten smallest species"] == pytest.approx(0.0271, abs=1e-4)
    table = species_table(train, "species_raw")
    assert (table.index[0], table.index[-1]) == ("bottlenose_dolphin", "frasiers_dolphin")
