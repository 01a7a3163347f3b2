"""The first stage: what it writes to `eda.json`, with and without photographs, boxes and a search; its last sheet."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from happywhale_nb.core.artifacts import read_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.encounters import encounter_facts
from happywhale_nb.data.near_duplicates import PAIR_COLUMNS, read_near_duplicates
from happywhale_nb.data.sampling import sampling_table
from happywhale_nb.stages.eda import eda_stage
from happywhale_nb.stages.eda_plots import plot_most_alike
from happywhale_nb.stages.eda_tables import box_tables, imbalance_table, leakage
from happywhale_nb.stages.report_data import _sampling_blocks

FIXTURES = Path(__file__).parent / "fixtures"


def test_eda_stage_writes_imbalance_and_near_duplicates_and_gives_what_it_has_written(tiny_copy, tmp_path):
    first, *_ = sorted((tiny_copy / "train_images").iterdir())
    shutil.copy(first, sorted((tiny_copy / "test_images").iterdir())[0])  # a copy of a known photograph in the test
    dataset, folder = read_dataset(tiny_copy), tmp_path / "study"
    result = eda_stage(dataset, folder)
    assert result == read_json(folder / "eda.json")
    assert list(result) == ["data", "imbalance", "leakage", "line"]
    assert result["data"] == dataset.fingerprint
    shown = pd.DataFrame(result["imbalance"]).astype(float)
    pd.testing.assert_frame_equal(shown, imbalance_table(dataset.train))
    pairs = read_near_duplicates(dataset, folder)
    assert result["leakage"] == leakage(pairs, dataset.train).to_dict()
    assert result["leakage"]["copies"]["between train and test"] == 1
    assert result["line"].endswith("1 pairs are copies of one picture and 0 more are nearly the same.")


def test_eda_stage_searches_the_same_photographs_once(tiny, tmp_path, monkeypatch):
    dataset = read_dataset(tiny)
    first = eda_stage(dataset, tmp_path)

    def refuse(paths, progress):
        raise AssertionError("searched again")

    monkeypatch.setattr("happywhale_nb.data.near_duplicates.read_thumbnails", refuse)
    assert eda_stage(dataset, tmp_path) == first


def test_eda_stage_without_a_search_or_without_photographs_has_the_tables_alone(tiny_copy, tmp_path):
    folders = (tmp_path / "not asked for", tmp_path / "no photographs")
    results = [eda_stage(read_dataset(tiny_copy), folders[0], search=False)]
    shutil.rmtree(tiny_copy / "train_images")
    results.append(eda_stage(read_dataset(tiny_copy, need_photos=False), folders[1]))
    for result, folder in zip(results, folders, strict=True):
        assert (result["leakage"], result["line"]) == (None, "")
        assert result["imbalance"]["merged"]["photographs"] == 48
        assert [path.name for path in folder.iterdir()] == ["eda.json"]


def test_eda_stage_of_a_photograph_that_cannot_be_decoded_is_refused(tiny_copy, tmp_path):
    spoilt = sorted((tiny_copy / "train_images").iterdir())[3]
    spoilt.write_bytes(b"no photograph")
    with pytest.raises(UserError, match=spoilt.name):
        eda_stage(read_dataset(tiny_copy), tmp_path / "study")
    assert not (tmp_path / "study" / "eda.json").exists()


@pytest.mark.parametrize("folder", [path for path in sorted(FIXTURES.iterdir()) if path.is_dir()], ids=lambda p: p.name)
def test_eda_stage_writes_what_an_earlier_version_has_written(folder, tmp_path):
    before = read_json(folder / "outputs" / "whales-quick" / "eda.json")
    result = eda_stage(read_dataset(folder / "data" / "tiny"), tmp_path, search=False)
    assert result == before
    assert list(result["imbalance"]) == list(before["imbalance"])


def test_box_tables_of_a_folder_with_and_without_boxes(tiny_copy):
    dataset = read_dataset(tiny_copy)
    tables = box_tables(dataset)
    assert set(tables.coverage.index.get_level_values(0)) == {"known", "test"}
    assert set(tables.faults.index) == set(tables.coverage.index.get_level_values(1))
    assert tables.agreement["iou"].between(0, 1).all()
    shutil.rmtree(tiny_copy / "boxes")
    bare = box_tables(dataset)
    assert (len(bare.faults), len(bare.coverage), len(bare.agreement)) == (0, 0, 0)


def test_most_alike_sheet_shows_the_pairs_of_the_highest_correlation_side_by_side(tiny):
    dataset = read_dataset(tiny)
    known, asked = dataset.train["image"], dataset.test["image"]
    rows = [(known[0], "train", known[1], "train", 0.91), (known[2], "train", asked[0], "test", 0.99)]
    figure = plot_most_alike(dataset, pd.DataFrame(rows, columns=PAIR_COLUMNS), count=1)
    shown = [ax.get_title(loc="left") for ax in figure.axes if ax.images]
    assert shown == ["0.990", "0.990"]
    plt.close("all")


def test_sampling_of_a_data_folder_is_in_the_page_and_in_the_report(tiny_copy):
    table = pd.read_csv(tiny_copy / "train.csv", dtype=str)
    days = pd.date_range("2019-01-05", periods=len(table), freq="9D").strftime("%Y-%m-%d")
    table.assign(date=days, place=["Moray", "Skye"] * (len(table) // 2)).to_csv(tiny_copy / "train.csv", index=False)
    dataset = read_dataset(tiny_copy)
    counted = sampling_table(encounter_facts(dataset))
    assert counted["photographs"].sum() == len(table)
    assert set(counted.index.get_level_values("place")) == {"Moray", "Skye"}
    assert counted["new"].between(0, 1).all() and counted["animals"].le(counted["photographs"]).all()
    shown, note = _sampling_blocks(SimpleNamespace(dataset=dataset))
    assert "Moray" in str(shown) and "January to March" in str(shown) and "Hardly sampled" not in str(note)
