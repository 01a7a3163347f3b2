"""The demo's field season: the same for everybody, whole, and with something to find."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from happywhale_nb.dataset import read_dataset
from happywhale_nb.paths import UserError
from happywhale_nb.season import DROPS, PLACES, draw_season, plan_season


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    return draw_season(tmp_path_factory.mktemp("season") / "a", 3, 8, 4, (64, 80), workers=1, progress=False)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_seed_gives_the_same_bytes_whatever_the_number_of_workers(season, tmp_path):
    again = draw_season(tmp_path / "b", 3, 8, 4, (64, 80), workers=4, progress=False)
    assert contents(again) == contents(season)
    assert contents(draw_season(tmp_path / "c", 4, 8, 4, (64, 80), progress=False)) != contents(season)


def test_a_season_is_a_dataset_with_encounters_and_photographs_to_drop(season):
    dataset, met = read_dataset(season), pd.read_csv(season / "encounters.csv").fillna({"side": ""})
    assert set(met["image"]) == {*dataset.train["image"], *dataset.test["image"]}
    assert met.groupby("encounter")[["date", "place"]].nunique().eq(1).all().all(), "one day, one place"
    assert met["side"].isin(["left", "right", ""]).all() and met["side"].isin(["left", "right"]).sum() > 5
    assert (met["date"] < "2024")[met["image"].isin(dataset.train["image"])].all()
    truth = pd.read_csv(season / "to_drop_truth.csv")
    assert (
        sorted(path.name for path in (season / "to_drop").iterdir()) == sorted(truth["image"]) and len(truth) == DROPS
    )
    for name in truth["image"]:
        with Image.open(season / "to_drop" / name) as photo:
            photo.load()


def test_the_sides_are_those_that_the_animals_show(season):
    """A back seen from its other side is mirrored: photographs of one animal and side resemble each other more."""
    dataset, met = read_dataset(season), pd.read_csv(season / "encounters.csv").fillna({"side": ""})
    table = dataset.train.merge(met[["image", "side"]], on="image")
    assert (table.loc[table["species"] == "humpback_whale", "side"] == "").all(), "a fluke has none"
    backs = table[table["species"] != "humpback_whale"]
    assert backs["side"].isin(["left", "right"]).mean() > 0.8
    assert 0.15 < (backs.loc[backs["side"] != "", "side"] == "left").mean() < 0.85


@pytest.mark.parametrize("seed", range(5))
def test_who_is_asked_about_is_known_or_new_as_it_was_planned(seed):
    table = plan_season(seed, 32, 18)
    known = set(table.loc[table["part"] == "known", "individual_id"])
    asked = table[table["part"] == "asked"].drop_duplicates("encounter")
    assert len(known) == 32 and len(asked) == 18 and (~asked["individual_id"].isin(known)).sum() == 4
    drops = table[table["part"] == "drop"]
    assert len(drops) == DROPS and (~drops["individual_id"].isin(known)).sum() == 2
    assert table.groupby("individual_id")["species"].nunique().eq(1).all() and table["image"].is_unique
    assert set(table["place"]) <= set(PLACES["place"])
    where = table.merge(PLACES, on="place", suffixes=("", "_of_place"))
    apart = where[["latitude", "longitude"]].to_numpy() - where[["latitude_of_place", "longitude_of_place"]].to_numpy()
    assert np.abs(apart).max() < 0.1


def test_numbers_that_make_no_season(tmp_path):
    with pytest.raises(UserError, match="at least 8 individuals and 4 encounters"):
        draw_season(tmp_path / "d", individuals=7)
    assert not (tmp_path / "d").exists()
