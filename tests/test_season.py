"""The demo's field season: the same for everybody, whole, and with something to find."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.demo.season import N_UPLOADS, PLACES, draw_season, plan_season


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    return draw_season(tmp_path_factory.mktemp("season") / "a", 3, 8, 4, (64, 80), n_jobs=1, progress=False)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_draw_season_with_one_seed_writes_the_same_bytes_from_any_number_of_workers(season, tmp_path):
    again = draw_season(tmp_path / "b", 3, 8, 4, (64, 80), n_jobs=4, progress=False)
    assert contents(again) == contents(season)
    assert contents(draw_season(tmp_path / "c", 4, 8, 4, (64, 80), progress=False)) != contents(season)


def test_draw_season_writes_a_dataset_with_encounters_and_photographs_to_drop(season):
    dataset, met = read_dataset(season), pd.read_csv(season / "encounters.csv").fillna({"side": ""})
    assert set(met["image"]) == {*dataset.train["image"], *dataset.test["image"]}
    assert met.groupby("encounter")[["date", "place"]].nunique().eq(1).all().all(), "one day, one place"
    assert met["side"].isin(["left", "right", ""]).all() and met["side"].isin(["left", "right"]).sum() > 5
    backs = dataset.train.merge(met[met["side"] != ""], on="image", suffixes=("", "_met"))
    assert 0.15 < (backs["side"] == "left").mean() < 0.85 and not backs["species"].eq("humpback_whale").any()
    assert (met["date"] < "2024")[met["image"].isin(dataset.train["image"])].all()
    truth = pd.read_csv(season / "to_drop_truth.csv")
    names = sorted(path.name for path in (season / "to_drop").iterdir())
    assert names == sorted(truth["image"]) and len(truth) == N_UPLOADS
    for name in truth["image"]:
        with Image.open(season / "to_drop" / name) as photo:
            photo.load()


@pytest.mark.parametrize("seed", range(5))
def test_plan_season_of_any_seed_asks_about_known_and_new_animals_as_planned(seed):
    table = plan_season(seed, 32, 18)
    known = set(table.loc[table["subset"] == "known", "individual_id"])
    undecided = table[table["subset"] == "undecided"].drop_duplicates("encounter")
    assert len(known) == 32 and len(undecided) == 18 and (~undecided["individual_id"].isin(known)).sum() == 4
    drops = table[table["subset"] == "drop"]
    assert len(drops) == N_UPLOADS and (~drops["individual_id"].isin(known)).sum() == 2
    assert table.groupby("individual_id")["species"].nunique().eq(1).all() and table["image"].is_unique
    assert set(table["place"]) <= set(PLACES["place"])
    where = table.merge(PLACES, on="place", suffixes=("", "_of_place"))
    apart = where[["latitude", "longitude"]].to_numpy() - where[["latitude_of_place", "longitude_of_place"]].to_numpy()
    assert np.abs(apart).max() < 0.1


@pytest.mark.parametrize("numbers", [{"individuals": 7}, {"undecided": 3}, {"seed": -1}])
def test_draw_season_with_too_few_animals_or_encounters_is_refused(numbers, tmp_path):
    with pytest.raises(UserError, match="at least 8 individuals and 4 encounters"):
        draw_season(tmp_path / "d", **numbers)
    assert not (tmp_path / "d").exists()
