"""Splits of the real table and of small ones: balance, repeatability, what may be asked of each."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from happywhale_nb.cli import main
from happywhale_nb.dataset import read_dataset
from happywhale_nb.duplicates import close_hashes, near_duplicates
from happywhale_nb.paths import UserError
from happywhale_nb.species import merge_species
from happywhale_nb.splits import (
    gallery_and_queries,
    make_folds,
    parse_kind,
    protocol_card,
    require_catalogue,
    study_card,
    study_folds,
)

KINDS = ["stratified", "open:0.1", "open:0.3", "similar", "time", "disjoint"]


@pytest.fixture(scope="module")
def table(shared):
    """The real table, with invented dates, which it lacks."""
    train = merge_species(pd.read_csv(shared / "happywhale" / "train.csv", dtype=str))
    days = np.random.default_rng(0).integers(0, 2000, len(train))
    return train.assign(date=(pd.Timestamp("2015-01-01") + pd.to_timedelta(days, "D")).strftime("%Y-%m-%d"))


@pytest.fixture(scope="module")
def pairs(table):
    """Invented near-duplicates: every twentieth photograph resembles the next one in the table."""
    images = table["image"].to_numpy()
    return pd.DataFrame({"image_a": images[:-1:20], "image_b": images[1::20]})


def test_ten_stratified_folds_of_the_real_table_are_alike(table):
    folds = make_folds(table, 10, 0)
    sizes = folds["fold"].value_counts()
    assert sizes.max() / sizes.min() < 1.01
    shares = folds.groupby("fold")["species"].value_counts(normalize=True).unstack(fill_value=0)
    assert (shares - table["species"].value_counts(normalize=True)).abs().max().max() < 0.01
    card = protocol_card(folds, "data")
    assert all(0.176 < share < 0.186 for share in card["share_new_per_fold"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_folds_for_any_order_of_rows(kind, table, pairs):
    part = table[table["species"].isin(["killer_whale", "dusky_dolphin", "minke_whale"])]
    folds = make_folds(part, 5, 7, kind, pairs)
    assert folds.equals(make_folds(part.sample(frac=1, random_state=1), 5, 7, kind, pairs.sample(frac=1)))
    if kind != "time":
        assert not folds["fold"].equals(make_folds(part, 5, 8, kind, pairs)["fold"])


def test_folds_are_the_same_on_any_machine(table):
    """The digest was taken once; another one means that other people's figures no longer compare."""
    folds = make_folds(table, 10, 0)["fold"].to_numpy(np.int8)
    assert hashlib.sha256(folds.tobytes()).hexdigest()[:16] == "9a91b19d13c9e6a6"


def test_disjoint_keeps_individuals_whole_and_balances_folds(table):
    folds = make_folds(table, 10, 0, "disjoint")
    assert (folds.groupby("individual_id")["fold"].nunique() == 1).all()
    sizes = folds["fold"].value_counts()
    assert sizes.max() / sizes.min() < 1.1
    with pytest.raises(UserError, match=r"disjoint.*MAP@5 against the catalogue"):
        require_catalogue(folds)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.18, 0.3, 0.5])
def test_open_has_the_share_of_new_animals_that_was_asked_for(share, table):
    folds = make_folds(table, 5, 0, f"open:{share}")
    card = protocol_card(folds, "data")
    assert card["share_new"] == pytest.approx(share, abs=0.002)
    assert np.allclose(card["share_new_per_fold"], share, atol=0.02)
    assert len(folds) == len(table)


def test_similar_keeps_near_duplicates_together(table, pairs):
    folds = make_folds(table, 5, 0, "similar", pairs)
    fold = folds.set_index("image")["fold"]
    assert (fold[pairs["image_a"]].to_numpy() == fold[pairs["image_b"]].to_numpy()).all()
    assert protocol_card(folds, "data", pairs)["near_duplicates"] == 0
    assert protocol_card(make_folds(table, 5, 0), "data", pairs)["near_duplicates"] > 0.7 * len(pairs)


def test_time_asks_only_about_later_days(table):
    folds = make_folds(table, 5, 0, "time")
    date = table.set_index("image")["date"][folds["image"]].to_numpy()
    for fold in range(5):
        gallery, query = gallery_and_queries(folds, fold)
        assert date[gallery].max() < date[query].min()
        assert query.sum() == pytest.approx(len(table) / 6, rel=0.02)


def test_what_a_split_by_time_cannot_do_without(table):
    with pytest.raises(UserError, match="needs a column 'date'"):
        make_folds(table.drop(columns="date"), 5, 0, "time")
    with pytest.raises(UserError, match=r"'May' is no date such as 2021-06-30 \(1 such rows\)"):
        make_folds(table.assign(date=["May", *table["date"][1:]]), 5, 0, "time")
    with pytest.raises(UserError, match="3 days"):
        make_folds(table.head(300).assign(date=["2020-01-01", "2020-01-02", "2020-01-03"] * 100), 5, 0, "time")


@pytest.mark.parametrize("name", ["open", "open:1.2", "open:many", "random", "time:3", "disjont"])
def test_unknown_kinds_are_refused(name):
    with pytest.raises(UserError, match="split"):
        parse_kind(name)


def test_a_study_keeps_its_split_and_its_near_duplicates(tiny, tmp_path):
    data = read_dataset(tiny)
    folds = study_folds(data, tmp_path, 3, 0, "open:0.5")
    assert study_folds(data, tmp_path).equals(folds)
    with pytest.raises(UserError, match="another split"):
        study_folds(data, tmp_path, 3, 0, "disjoint")
    assert study_card(data, tmp_path, folds)["near_duplicates"] is None
    near_duplicates(data, tmp_path, progress=False)
    assert study_card(data, tmp_path, folds)["near_duplicates"] == 0


def test_a_study_on_a_disjoint_split_is_refused_before_anything_runs(tiny, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    result = CliRunner().invoke(
        main, ["run", "-p", "data_dir", str(tiny), "-p", "split", "disjoint", "-p", "study", "d"]
    )
    assert result.exit_code == 2 and "no individual is on both sides" in result.stderr
    assert not (checkout / "outputs" / "d").exists()


def test_close_hashes_are_those_of_plain_counting():
    rng = np.random.default_rng(2)
    centres = rng.integers(0, 2**64, 40, dtype=np.uint64)
    flips = (np.uint64(1) << rng.integers(0, 64, (40, 20, 5)).astype(np.uint64)).astype(np.uint64)
    hashes = (centres[:, None] ^ np.bitwise_xor.reduce(flips, axis=2)).ravel()
    bits = np.array([[(int(a) ^ int(b)).bit_count() for b in hashes] for a in hashes])
    for distance in (0, 4, 9):
        found = close_hashes(hashes, distance)
        plain = np.argwhere(np.triu(bits <= distance, 1))
        assert np.array_equal(found[:, :2], plain) and (found[:, 2] == bits[plain[:, 0], plain[:, 1]]).all()


def test_a_planted_leak_is_measured(tiny_copy, tmp_path):
    from PIL import Image

    from happywhale_nb.eda import leakage, leakage_line

    data = read_dataset(tiny_copy)
    with Image.open(data.train_paths()[5]) as image:
        image.resize((image.width // 2, image.height // 2)).save(data.test_paths()[2], quality=60)
    pairs = near_duplicates(read_dataset(tiny_copy), tmp_path, progress=False)
    found = leakage(pairs, data.train)
    assert found.loc["between train and test"].tolist() == [1, 1] and found.to_numpy().sum() == 2
    assert pairs[["image_a", "image_b"]].to_numpy().tolist() == [[data.train["image"][5], data.test["image"][2]]]
    assert "1 pairs are copies" in leakage_line(pairs, data.train, data.test)
