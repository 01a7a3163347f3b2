"""Data folders are read or refused with file, row and column; drawn photographs and the real tables among them."""

import csv
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import BOX, CropMix, read_boxes
from happywhale_nb.data.dataset import NEW, Dataset, parse_csv, read_dataset, read_sizes, read_skips, read_table
from happywhale_nb.data.names import clean_name, find_twins, is_nobody
from happywhale_nb.data.species import suspect_spellings
from happywhale_nb.data.splits import dataset_folds, gallery_and_queries, make_folds, open_set_truth
from happywhale_nb.demo.dataset import check_sizes, draw_demo, plan_photos
from happywhale_nb.imaging.crops import load_crops
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.metrics import map_at_5
from happywhale_nb.retrieval.predictions import read_predictions, write_predictions
from happywhale_nb.stages.eda_tables import imbalance_table, species_table

ROWS = [("a.jpg", "beluga", "w1"), ("b.jpg", "beluga", "w2"), ("c.jpg", "kiler_whale", "w1"), ("d.jpg", "globis", "w3")]


def write_folder(root, rows=ROWS, test=(), images="train_images", header=("image", "species", "individual_id")):
    """A data folder of empty photographs; what is there already is removed."""
    shutil.rmtree(root, ignore_errors=True)
    for folder, names in ((images, [row[0] for row in rows]), ("test_images", test)):
        (root / folder).mkdir(parents=True)
        for name in {name for name in names if name and "/" not in name and "\\" not in name}:
            (root / folder / name).touch()
    with (root / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def changed(row, column, value):
    """`ROWS` with one other cell."""
    rows = [list(row) for row in ROWS]
    rows[row][column] = value
    return rows


def test_read_dataset_of_a_small_folder_has_its_tables_and_paths(tmp_path):
    root = write_folder(tmp_path / "data", test=["y.JPG", "x.png", "notes.txt"])
    data = read_dataset(root)
    assert isinstance(data, Dataset) and data.root == root.resolve() and data.has_photos
    assert data.train["species"].tolist() == ["beluga", "beluga", "killer_whale", "short_finned_pilot_whale"]
    assert data.train["species_raw"].tolist() == [row[1] for row in ROWS]
    assert data.test["image"].tolist() == ["x.png", "y.JPG"] and data.skipped.empty
    assert data.train_paths() == [data.root / "train_images" / f"{name}.jpg" for name in "abcd"]
    assert data.test_paths() == [data.root / "test_images" / name for name in ("x.png", "y.JPG")]
    (root / "sample_submission.csv").write_text("image,predictions\ny.JPG,w1\nx.png,w1\n")
    assert read_dataset(root).test["image"].tolist() == ["y.JPG", "x.png"]  # the order answers are wanted in


def test_read_dataset_takes_the_photographs_of_train_images_or_else_of_images(tmp_path):
    root = write_folder(tmp_path / "data", images="images")
    assert read_dataset(root).train_images.name == "images"
    shutil.copytree(root / "images", root / "train_images")
    assert read_dataset(root).train_images.name == "train_images"
    shutil.rmtree(root / "images"), shutil.rmtree(root / "train_images"), shutil.rmtree(root / "test_images")
    with pytest.raises(UserError, match="neither train_images/ nor images/"):
        read_dataset(root)
    tables = read_dataset(root, need_photos=False)
    assert len(tables.train) == 4 and not tables.has_photos and tables.test.empty
    (root / "sample_submission.csv").write_text("image,predictions\nq.jpg,w1\n")
    assert read_dataset(root, need_photos=False).test["image"].tolist() == ["q.jpg"]
    (root / "train.csv").unlink()
    with pytest.raises(UserError, match=r"train\.csv is missing: .*happywhale data import"):
        read_dataset(root)


def test_read_dataset_leaves_out_what_skip_csv_lists(tmp_path):
    root = write_folder(tmp_path / "data", test=["x.jpg", "y.jpg"])
    (root / "skip.csv").write_text("image,reason\nb.jpg,blurred\ny.jpg,dark\nb.jpg,twice\nz.jpg,gone\n")
    data = read_dataset(root)
    assert data.train["image"].tolist() == ["a.jpg", "c.jpg", "d.jpg"] and data.train.index.tolist() == [0, 1, 2]
    assert data.test["image"].tolist() == ["x.jpg"]
    assert data.skipped.to_numpy().tolist() == [["b.jpg", "blurred", "train"], ["y.jpg", "dark", "test"]]
    assert read_skips(root)["reason"].tolist() == ["blurred", "dark", "gone"]


def test_fingerprint_of_a_dataset_changes_with_tables_and_photographs_alone(tmp_path):
    root = tmp_path / "data"
    first = read_dataset(write_folder(root, test=["x.jpg"])).fingerprint
    assert read_dataset(write_folder(root, ROWS[::-1], test=["x.jpg"])).fingerprint == first
    stamps = [first]
    for rows in (ROWS[:3], changed(0, 1, "orca"), changed(0, 2, "w9")):
        stamps.append(read_dataset(write_folder(root, rows, test=["x.jpg"])).fingerprint)
    stamps.append(read_dataset(write_folder(root, test=["y.jpg"])).fingerprint)
    write_folder(root, test=["x.jpg"])
    (root / "train_images" / "a.jpg").write_text("larger")
    stamps.append(read_dataset(root).fingerprint)
    assert len(set(stamps)) == len(stamps)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(3, 0, "b.jpg"), r"train\.csv, row 5: image b\.jpg is listed already in row 3"),
        (changed(0, 2, NEW), r"train\.csv, row 2: 'new_individual' names nobody \(1 such rows\)"),
        (changed(2, 2, "#REF!"), r"train\.csv, row 4: '#REF!' names nobody"),
        (changed(2, 2, "w\u200b7"), r"train\.csv, row 4: name .* contains the character U\+200B"),
        (changed(2, 2, changed(0, 0, "")[1][2].upper()), r"train\.csv, row \d: .* differ only by case, blanks"),
        (changed(0, 0, "../train.csv"), r"row 2: image '\.\./train\.csv' must be a plain file name"),
        (changed(1, 0, "sub\\b.jpg"), r"row 3: image 'sub\\\\b\.jpg' must be a plain file name"),
        (changed(1, 1, "  "), r"train\.csv, row 3: 'species' is empty \(1 such rows\)"),
        ([], "has a header but no rows"),
    ],
)
def test_read_dataset_with_one_faulty_row_names_file_row_and_reason(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        read_dataset(write_folder(tmp_path / "data", rows))


def test_read_dataset_of_absent_photographs_counts_them(tmp_path):
    root = write_folder(tmp_path / "data")
    (root / "train_images" / "b.jpg").unlink(), (root / "train_images" / "d.jpg").unlink()
    with pytest.raises(UserError, match=r"row 3: image b\.jpg is not in .* \(2 of 4 are absent\)"):
        read_dataset(root)
    (root / "train_images" / "b.jpg").mkdir()  # a folder of that name is no photograph
    with pytest.raises(UserError, match=r"row 3: image b\.jpg"):
        read_dataset(root)


def test_read_table_of_a_file_that_is_no_table_says_what_is_wrong(tmp_path):
    path = tmp_path / "t.csv"
    with pytest.raises(UserError, match=r"t\.csv is missing"):
        read_table(path, [])
    for content in (b"", "image\ncaf\xe9\n".encode("latin-1"), b"image,b\nx,1\ny,2,3\n", b"image\nx,1\ny,2\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"t\.csv cannot be read as a UTF-8 CSV table"):
            read_table(path, ["image"])
    path.write_text("image,note\na,NA\n007,\n", encoding="utf-8-sig")  # as spreadsheets save it
    assert read_table(path, ["image"]).to_numpy().tolist() == [["a", "NA"], ["007", ""]]
    assert list(parse_csv(path, encoding="utf-8-sig")) == ["image", "note"]


def test_read_sizes_reads_shapes_or_sides_and_refuses_other_columns(tmp_path):
    assert read_sizes(tmp_path) is None
    (tmp_path / "image_sizes.csv").write_text('image,shapes\na.jpg,"(804, 671)"\nb.jpg,"(30,20)"\n')
    assert read_sizes(tmp_path).to_numpy().tolist() == [["a.jpg", 804, 671, ""], ["b.jpg", 30, 20, ""]]
    (tmp_path / "image_sizes.csv").write_text("image,height,width\na.jpg,671,804\n")
    assert read_sizes(tmp_path).to_numpy().tolist() == [["a.jpg", 804, 671, ""]]
    (tmp_path / "image_sizes.csv").write_text("image,width\na.jpg,804\n")
    with pytest.raises(UserError, match=r"image_sizes\.csv has no column 'height' \(found: image, width\)"):
        read_sizes(tmp_path)


def test_suspect_spellings_of_known_or_equally_common_names_are_none():
    assert suspect_spellings(["kiler_whale", "killer_whale"]) == {}  # both are among Happywhale's thirty
    assert suspect_spellings(["vaquita", "vaqita"]) == {}  # nobody knows which of the two is right
    assert suspect_spellings(["vaquita", "vaquita", "narwhal"]) == {}
    assert suspect_spellings(["humpback_whal"]) == {"humpback_whal": "humpback_whale"}


IDS = st.text(min_size=1, max_size=6) | st.sampled_from(
    ["two words", "a\u3000b", "a\xa0b", "x\t", NEW, "nan", "0007", '"', ","]
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(IDS, min_size=1, max_size=4, unique=True))
def test_read_dataset_with_any_ids_refuses_them_or_gives_them_back_through_predictions(tmp_path, ids):
    """What is accepted is the same after a submission is written and read, with `_` for blanks; the rest is no name."""
    # two limits: what is accepted and then taken for a printed list, and NULs, which arrays of text lose at the end
    assume(not any(name.startswith("[") or "\0" in name for name in ids))
    root = write_folder(tmp_path / "data", [(f"{i}.jpg", "beluga", name) for i, name in enumerate(ids)])
    try:
        names = [clean_name(name) for name in ids]
        accepted = not any(map(is_nobody, ids)) and not find_twins(names)
    except UserError:
        accepted = False
    if not accepted or any(not name.strip() for name in ids):
        with pytest.raises(UserError, match=r"names nobody|differ only|cannot be shown|is empty|cannot be read"):
            read_dataset(root)
        return
    data = read_dataset(root)
    assert data.train["individual_name"].tolist() == names
    assert data.train["individual_id"].tolist() == [name.replace(" ", "_") for name in names]
    answers = [[*data.train["individual_id"], NEW]] * len(data.train)
    write_predictions(tmp_path / "oof.csv", data.train["image"], answers)
    images, back = read_predictions(tmp_path / "oof.csv", images=data.train["image"])
    assert images.tolist() == data.train["image"].tolist()
    assert back.tolist() == [(row + [""] * 5)[:5] for row in answers]


def digest(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_draw_demo_with_another_seed_draws_other_photographs(tmp_path):
    few = {"individuals": 3, "train_photos": 5, "test_photos": 2, "size": (96, 128), "progress": False}
    one, other = (digest(draw_demo(tmp_path / str(seed), seed=seed, **few)) for seed in (3, 4))
    photos = [{stamp for name, stamp in drawn.items() if name.endswith(".jpg")} for drawn in (one, other)]
    assert len(photos[0]) == 7 and not photos[0] & photos[1] and one["train.csv"] != other["train.csv"]


def test_plan_of_the_demo_is_like_happywhale():
    table = plan_photos(0, 90, 570, 150)
    counts = table.loc[~table["test"], "individual_id"].value_counts()
    assert table.loc[~table["test"], "species"].nunique() >= 5 and len(counts) >= 60
    assert (counts == 1).mean() >= 0.3 and counts.max() >= 12
    assert 0.12 <= (~table.loc[table["test"], "individual_id"].isin(counts.index)).mean() <= 0.20


def test_draw_demo_has_truth_and_boxes_that_fit_its_photographs(tiny):
    data, boxes = read_dataset(tiny), read_boxes(tiny)
    assert pd.read_csv(tiny / "test_truth.csv", dtype=str)["image"].tolist() == data.test["image"].tolist()
    assert {"fullbody", "detic"} <= set(boxes["source"])
    paths = {path.name: path for path in data.train_paths() + data.test_paths()}
    assert set(boxes["image"]) == set(paths)
    for name, *box in boxes[["image", *BOX]].to_numpy().tolist():
        with Image.open(paths[name]) as photo:
            assert 0 <= box[0] < box[2] <= photo.width and 0 <= box[1] < box[3] <= photo.height


def test_draw_demo_is_neither_trivial_nor_hopeless_for_plain_features(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "bench")
    from baselines import hog, raw_pixels

    root = draw_demo(
        tmp_path / "demo", individuals=40, train_photos=160, test_photos=50, size=(128, 160), progress=False
    )
    data, boxes = read_dataset(root), read_boxes(root)
    mix = CropMix.parse("auto", boxes["source"])
    gallery = load_crops(data.train_paths(), mix.prefer(data.train["image"], boxes), 96, tmp_path)
    queries = load_crops(data.test_paths(), mix.prefer(data.test["image"], boxes), 96, tmp_path)
    names = data.train["individual_id"].to_numpy(dtype=str)
    truth = pd.read_csv(root / "test_truth.csv", dtype=str)["individual_id"].to_numpy(dtype=str)
    known = np.isin(truth, names)
    figures = {
        f.__name__: map_at_5(truth[known], KNNHead().fit(f(gallery), names).rank(f(queries)[known])[0])
        for f in (raw_pixels, hog)
    }
    assert all(0.05 < value < 0.75 for value in figures.values()), figures


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 5, 1, (96, 96)), "at least 2 individuals"),
        ((0, 6, 5, 1, (96, 96)), "one training photograph for each"),
        ((-1, 2, 2, 1, (96, 96)), "seed -1 cannot be used"),
        ((0, 2, 2, 0, (96, 96)), "ask for at least 1"),
        ((0, 2, 2, 1, (95, 96)), "between 96 and 2048 pixels"),
        ((0, 2, 2, 1, (200, 199)), "between 96 and 2048 pixels"),
        ((0, 2, 2, 1, (96, 2049)), "between 96 and 2048 pixels"),
    ],
)
def test_check_sizes_of_numbers_that_make_no_demo_says_what_to_change(numbers, message):
    check_sizes(0, 2, 2, 1, (96, 96))
    check_sizes(0, 2, 2, 1, (96, 2048))
    with pytest.raises(UserError, match=message):
        check_sizes(*numbers)


def test_make_folds_of_the_real_table_gives_the_known_split(shared):
    table = pd.read_csv(shared / "happywhale" / "train.csv", dtype=str)
    folds = make_folds(table, k=10, seed=0)
    sizes = folds["fold"].value_counts()
    assert len(table) == 51033 and sizes.max() - sizes.min() <= 1
    for fold in range(10):
        gallery, query = gallery_and_queries(folds, fold)
        new = open_set_truth(folds.loc[query, "individual_id"], folds.loc[gallery, "individual_id"]) == NEW
        assert new.mean() == pytest.approx(0.181, abs=0.01)


def test_read_predictions_of_real_submissions_reads_lists_and_refuses_printed_ones(shared):
    _, answers = read_predictions(shared / "happywhale" / "submissions" / "model_b.csv")
    assert answers.shape == (27956, 5)
    with pytest.raises(UserError, match=r"malformed_listfmt\.csv, row 2"):
        read_predictions(shared / "happywhale" / "submissions" / "malformed_listfmt.csv")


def test_dataset_folds_of_real_right_whales_keep_rare_ones_out_of_the_gallery(shared):
    data = read_dataset(shared / "rightwhale80")
    folds = dataset_folds(data)
    gallery, query = gallery_and_queries(folds, 0)
    truth = open_set_truth(folds.loc[query, "individual_id"], folds.loc[gallery, "individual_id"])
    assert folds.loc[gallery, "individual_id"].nunique() == 60
    assert (truth == NEW).sum() == 7 and query.sum() == 206


def test_imbalance_table_of_the_real_table_has_the_figures_of_the_paper(shared):
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
