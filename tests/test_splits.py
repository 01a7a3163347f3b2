"""Laws of every kind of split, on small tables and on the real one, and what may be asked of each."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.paths import study_data
from happywhale_nb.data.dataset import NEW, read_dataset
from happywhale_nb.data.near_duplicates import close_hashes, find_near_duplicates
from happywhale_nb.data.protocol import add_protocol_footer, card_line, protocol_card
from happywhale_nb.data.species import merge_species
from happywhale_nb.data.splits import (
    FOLD_COLUMNS,
    SELDOM,
    dataset_folds,
    fold_numbers,
    gallery_and_queries,
    make_folds,
    open_set_truth,
    parse_split,
    require_catalogue,
    split_kind_of,
)
from happywhale_nb.stages.eda_tables import describe_leakage, leakage
from happywhale_nb.stages.study_split import finished_folds, study_card, study_folds

KINDS = ["stratified", "open:0.1", "open:0.5", "similar", "encounter", "time", "place", "disjoint"]
laws = settings(max_examples=30, deadline=None, derandomize=True)


def made_table(sizes, seed):
    """Animals with these numbers of photographs, of three species, on days of a hundred, in a drawn order."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(len(sizes)), sizes)
    n = len(who)
    species = np.array(["beluga", "dusky_dolphin", "minke_whale"])[rng.integers(0, 3, len(sizes))]
    table = pd.DataFrame({"image": [f"{i:05}.jpg" for i in rng.permutation(n)]})
    table["individual_id"], table["species"] = [f"w{i:03}" for i in who], species[who]
    days = pd.Timestamp("2019-01-01") + pd.to_timedelta(rng.integers(0, 100, n), "D")
    places = np.array(["Ness", "Skye", "Moray", "Mull", "Tiree", "Lewis", "Uist"])[rng.integers(0, 7, n)]
    return table.assign(date=days.strftime("%Y-%m-%d"), place=places)


def made_pairs(table, step):
    """Near-duplicates: every so many photographs resemble the next two of the table."""
    images = table["image"].to_numpy()
    ends = [(images[:-1:step], images[1::step]), (images[1:-1:step], images[2::step])]
    return pd.concat([pd.DataFrame({"image_a": a, "image_b": b}) for a, b in ends], ignore_index=True)


@st.composite
def tables(draw):
    """A table of three to twenty-five animals, the number of folds, and a seed."""
    sizes = draw(st.lists(st.integers(1, 14), min_size=3, max_size=25))
    table = made_table(sizes, draw(st.integers(0, 2**16)))
    return table, draw(st.integers(2, min(6, len(table)))), draw(st.integers(-5, 99))


def split(case, kind):
    """The folds of a case, if its table can be cut so."""
    table, k, seed = case
    try:
        return make_folds(table, k, seed, kind, made_pairs(table, 5))
    except UserError:
        assume(kind not in ("time", "encounter", "place"))  # too few of them for so many folds
        raise


def counts(folds, *names):
    """How many photographs of each `names` are in each fold, without those that are always gallery."""
    asked = folds[folds["fold"] >= 0]
    every = sorted(set(folds["fold"]) - {-1})
    return asked.groupby(list(names))["fold"].value_counts().unstack(fill_value=0).reindex(columns=every, fill_value=0)


@laws
@given(tables(), st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_make_folds_of_any_order_of_rows_gives_each_image_the_same_fold(case, kind, random):
    table, k, seed = case
    folds = split(case, kind)
    order = random.sample(range(len(table)), len(table))
    pairs = made_pairs(table, 5)
    mixed = make_folds(table.iloc[order], k, seed, kind, pairs.sample(frac=1, random_state=k))
    assert folds.equals(mixed) and list(folds) == FOLD_COLUMNS
    assert folds["image"].tolist() == sorted(table["image"])  # each image once
    least = -1 if kind.startswith("open") or kind == "time" else 0
    assert folds["fold"].between(least, k - 1).all() and (folds["query_only"] == 0).all()
    assert set(folds["protocol"]) == {f"{kind}-{k}-seed{seed}"}
    kept = table.set_index("image").loc[folds["image"]]
    for name in ("individual_id", "species"):
        assert folds[name].tolist() == kept[name].tolist()


@laws
@given(tables())
def test_make_folds_stratified_spreads_folds_species_and_individuals_evenly(case):
    folds = split(case, "stratified")
    sizes = np.bincount(folds["fold"], minlength=case[1])
    assert np.ptp(sizes) <= 1
    single = ~folds["individual_id"].duplicated(keep=False)
    many, few = folds[~single], folds[single]
    for part, names in ((many, ["individual_id"]), (many, ["species"]), (few, ["species"])):
        if len(part):
            spread = part.groupby(names)["fold"].value_counts().unstack(fill_value=0)
            spread = spread.reindex(columns=range(case[1]), fill_value=0)
            assert (spread.max(axis=1) - spread.min(axis=1)).max() <= 1
    for fold in fold_numbers(folds):  # so each animal with two photographs is in every gallery
        gallery, query = gallery_and_queries(folds, fold)
        new = open_set_truth(folds.loc[query, "individual_id"], folds.loc[gallery, "individual_id"]) == NEW
        assert new.tolist() == single[query].tolist()


@laws
@given(tables())
def test_make_folds_disjoint_keeps_individuals_whole_and_species_even(case):
    assume(case[0]["individual_id"].nunique() >= case[1])
    folds = split(case, "disjoint")
    assert (folds.groupby("individual_id")["fold"].nunique() == 1).all()
    largest = folds.groupby("individual_id").agg(species=("species", "first"), n=("image", "size"))
    largest = largest.groupby("species")["n"].max()
    spread = folds.groupby("species")["fold"].value_counts().unstack(fill_value=0)
    spread = spread.reindex(columns=range(case[1]), fill_value=0)
    assert (spread.max(axis=1) - spread.min(axis=1) <= largest).all()


@laws
@given(tables(), st.sampled_from([0.05, 0.2, 0.5, 0.8]))
def test_make_folds_open_comes_as_near_as_whole_animals_allow_to_its_share_of_new_ones(case, share):
    folds = split(case, f"open:{share}")
    size = folds.groupby("individual_id")["image"].size()
    spread = folds[folds["fold"] >= 0].groupby("individual_id")["fold"].nunique()
    new = spread.index[spread == 1]  # asked about, and in no other fold
    asked = folds["fold"] >= 0
    others, found = (size[size > 1].sum(), folds["individual_id"].isin(new)[asked].sum())
    wanted = share * others / (1 - share)
    if wanted <= (size == 1).sum():  # enough animals with one photograph: the rest of them are always gallery
        assert found == round(wanted) and set(size[new]) <= {1}
        return
    assert asked.all() and set(size.index[size == 1]) <= set(new)
    missing, held, left = share * len(folds) - found, size[new], size[(size > 1) & ~size.index.isin(new)]
    assert (held.empty or missing > -held.max() / 2) and (left.empty or missing <= left.min() / 2)


def test_make_folds_open_holds_animals_with_many_photographs_back_only_if_it_must():
    table = made_table([SELDOM + 1] * 3 + [SELDOM] * 3 + [2] * 10, 0)  # 83 photographs
    size = table.groupby("individual_id")["image"].size()

    def new(share):
        folds = make_folds(table, 4, 1, f"open:{share}")
        return set(size[folds.groupby("individual_id")["fold"].nunique() == 1])

    assert SELDOM in new(0.5) and SELDOM + 1 not in new(0.5) and SELDOM + 1 in new(0.8)


@laws
@given(tables(), st.integers(2, 6))
def test_make_folds_similar_keeps_chains_of_near_duplicates_together(case, step):
    table, k, seed = case
    pairs = made_pairs(table, step)
    strangers = pd.DataFrame({"image_a": ["none.jpg", table["image"][0]], "image_b": [table["image"][1], "none.jpg"]})
    try:
        folds = make_folds(table, k, seed, "similar", pd.concat([pairs, strangers]))
    except UserError as error:  # a short chain may hold all there is
        assert "cannot be cut" in str(error) and len(table) - len(pairs) < k
        return
    fold = folds.set_index("image")["fold"]
    assert (fold[pairs["image_a"]].to_numpy() == fold[pairs["image_b"]].to_numpy()).all()
    assert protocol_card(folds, "data", pairs)["near_duplicates"] == 0
    alone = make_folds(table, k, seed, "similar", pairs.head(0))  # each photograph is a unit
    spread = counts(alone, "individual_id")
    assert (spread.max(axis=1) - spread.min(axis=1)).max() <= 1
    assert make_folds(table, k, seed, "similar", strangers).equals(alone)  # pairs with others join nothing


@laws
@given(tables())
def test_make_folds_time_asks_only_about_later_days(case):
    folds = split(case, "time")
    date = case[0].set_index("image")["date"][folds["image"]].to_numpy()
    assert fold_numbers(folds) == list(range(case[1]))
    for fold in fold_numbers(folds):
        gallery, query = gallery_and_queries(folds, fold)
        assert query.any() and date[gallery].max() < date[query].min() and not (gallery & query).any()
        assert gallery.tolist() == (folds["fold"] < fold).tolist()


@pytest.fixture(scope="module")
def table():
    """Photographs of a population like the real one: most animals have one, a few have many. Nothing is drawn, so that
    it is the same for ever."""
    sizes = np.array([*[1] * 900, *[2] * 300, *range(3, 100)])
    who = np.repeat(np.arange(len(sizes)), sizes)
    n = len(who)
    made = pd.DataFrame({"image": [f"{i * 1009 % n:05}.jpg" for i in range(n)]})
    made["individual_id"] = [f"w{i * 601 % 1297:04}" for i in who]
    made["species"] = np.array(["beluga", "dusky_dolphin", "minke_whale"])[who % 7 % 3]
    days = pd.Timestamp("2015-01-01") + pd.to_timedelta(np.arange(n) * 7919 % n % 2000, "D")
    return made.assign(date=days.strftime("%Y-%m-%d"), place=[f"p{i * 31 % 40}" for i in range(n)])


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("stratified", "eae9e194f08042f3"),
        ("open:0.1", "468ce7602734bdcd"),
        ("open:0.5", "b516597eeeb2741f"),
        ("similar", "a12c69fae56fa1fc"),
        ("time", "3a9c43ce97ab411c"),
        ("place", "7af2c7327bbaf48c"),
        ("disjoint", "2e90f78ff04eb236"),
    ],
)
def test_make_folds_on_any_machine_gives_the_folds_of_the_digest(kind, digest, table):
    """The digests were taken once; another one means that other people's figures no longer compare."""
    folds = make_folds(table, 5, 0, kind, made_pairs(table, 20))["fold"].to_numpy(np.int8)
    assert hashlib.sha256(folds.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "time"])
def test_make_folds_of_another_seed_gives_other_folds(kind, table):
    one, other = (make_folds(table, 5, seed, kind, made_pairs(table, 20))["fold"] for seed in (7, 8))
    assert not one.equals(other)


def test_make_folds_time_of_many_days_cuts_equal_stretches(table):
    folds = make_folds(table, 5, 0, "time")
    assert (folds["fold"].value_counts() / len(table)).between(0.15, 0.185).all()


@laws
@given(tables())
def test_make_folds_place_keeps_places_together_and_uses_all_folds(case):
    folds = split(case, "place")
    place = case[0].set_index("image")["place"].loc[folds["image"]].to_numpy()
    assert folds.groupby(place)["fold"].nunique().max() == 1
    assert set(folds["fold"]) == set(range(case[1]))


def test_make_folds_place_without_places_is_refused(table):
    with pytest.raises(UserError, match="needs a column 'place'"):
        make_folds(table.drop(columns="place"), 5, 0, "place")
    with pytest.raises(UserError, match=r": no place \(2 such rows\)"):
        make_folds(table.assign(place=["", None, *table["place"][2:]]), 5, 0, "place")
    with pytest.raises(UserError, match="40 places cannot be cut into 41 folds"):
        make_folds(table, 41, 0, "place")


def test_make_folds_disjoint_of_many_animals_balances_folds(table):
    sizes = make_folds(table, 10, 0, "disjoint")["fold"].value_counts()
    assert sizes.max() / sizes.min() < 1.1


@pytest.mark.parametrize(("k", "right"), [(1, False), (2, True), (7, True), (8, False)])
def test_make_folds_of_fewer_than_two_or_more_than_photographs_is_refused(k, right):
    table = made_table([3, 4], 0)
    if right:
        assert set(make_folds(table, k)["fold"]) == set(range(k))
    else:
        with pytest.raises(UserError, match="choose 2 to 7"):
            make_folds(table, k)


def test_make_folds_similar_without_pairs_is_refused():
    with pytest.raises(ValueError, match="near-duplicates"):
        make_folds(made_table([3, 4], 0), 2, 0, "similar")


def test_make_folds_time_without_dates_or_days_is_refused(table):
    with pytest.raises(UserError, match="needs a column 'date'"):
        make_folds(table.drop(columns="date"), 5, 0, "time")
    with pytest.raises(UserError, match=r"'May' is not a date such as 2021-06-30 \(1 such rows\)"):
        make_folds(table.assign(date=["May", *table["date"][1:]]), 5, 0, "time")
    days = ["2020-01-01", "2020-01-02", "2020-01-03"]
    with pytest.raises(UserError, match="3 days"):
        make_folds(table.head(300).assign(date=days * 100), 5, 0, "time")
    assert fold_numbers(make_folds(table.head(300).assign(date=days * 100), 2, 0, "time")) == [0, 1]


@pytest.mark.parametrize("name", ["open", "open:0", "open:1", "open:1.2", "open:many", "random", "time:3", "disjont"])
def test_parse_kind_of_an_unknown_kind_or_share_is_refused(name):
    with pytest.raises(UserError, match="split") as caught:
        parse_split(name)
    assert ("did you mean 'disjoint'?" in str(caught.value)) == (name == "disjont")


def given_split(animals, fold, query_only=None):
    """A table of folds as of `folds.csv`."""
    table = pd.DataFrame({"image": [f"{i}.jpg" for i in range(len(animals))], "individual_id": list(animals)})
    table["species"], table["fold"], table["protocol"] = "orca", fold, "given"
    return table.assign(query_only=query_only or 0)


def test_gallery_and_queries_leave_out_what_is_always_gallery_or_only_asked_about():
    folds = given_split("aabbc", [0, 1, -1, 1, 0], [0, 0, 0, 1, 0])
    assert fold_numbers(folds) == [0, 1] and split_kind_of(folds) == "given"
    assert [part.tolist() for part in gallery_and_queries(folds, 0)] == [
        [False, True, True, False, False],  # the fourth is only asked about
        [True, False, False, False, True],
    ]


def test_gallery_and_queries_of_a_fold_that_is_not_there_is_refused():
    folds = given_split("aabb", [0, 1, 0, 2])
    for fold in (-1, 3):
        with pytest.raises(UserError, match="has folds 0 to 2"):
            gallery_and_queries(folds, fold)


def test_gallery_and_queries_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(UserError, match="fold 0 leaves no photograph"):
        gallery_and_queries(given_split("aab", [0, 0, 1], [0, 0, 1]), 0)
    gallery, _ = gallery_and_queries(given_split("aab", [0, 0, 1], [0, 0, 1]), 1)
    assert gallery.tolist() == [True, True, False]


def test_require_catalogue_of_a_split_without_known_queries_is_refused():
    with pytest.raises(UserError, match=r"disjoint.*MAP@5 against the catalogue"):
        require_catalogue(given_split("aabb", [0, 0, 1, 1]))
    require_catalogue(given_split("aabb", [0, 1, 1, 1]))  # a of one fold is known to the other
    lone = made_table([1, 1, 2], 0)
    with pytest.raises(UserError, match="split is disjoint"):
        require_catalogue(make_folds(lone, 2, 0, "disjoint"))


def test_protocol_card_of_a_split_counts_new_animals_and_pairs_across():
    folds = given_split("aabbcd", [0, 1, 0, 0, 1, 0])
    folds.loc[4:, "species"] = "minke"
    ends = [["0.jpg", "1.jpg"], ["2.jpg", "3.jpg"], ["5.jpg", "a test's.jpg"], ["a test's.jpg", "1.jpg"]]
    pairs = pd.DataFrame(ends, columns=["image_a", "image_b"])
    card = protocol_card(folds, "0123456789", pairs)
    assert card == {
        "split": "given",
        "kind": "given",
        "folds": 2,
        "seed": None,
        "photos": 6,
        "individuals": 4,
        "species": 2,
        "fraction_new": 0.6667,  # b, b, c and d
        "fraction_new_per_fold": [0.75, 0.5],
        "fraction_new_per_species": {"minke": 1.0, "orca": 0.5},
        "near_duplicates": 1,
        "data": "0123456789",
    }
    assert protocol_card(folds, "0123456789")["near_duplicates"] is None
    assert card_line(card) == "given, 2 folds, 66.7% new, 1 near-duplicate pairs across, data 01234567"


def test_card_line_of_a_made_split_names_kind_and_seed():
    card = protocol_card(make_folds(made_table([2] * 9, 0), 3, -4, "open:0.3"), "0123456789")
    assert (card["seed"], card["kind"], card["split"]) == (-4, "open", "open:0.3-3-seed-4")
    assert card_line(card).startswith("open:0.3, 3 folds, seed -4, ") and "pairs" not in card_line(card)
    figure = Figure()
    assert add_protocol_footer(figure, card) is figure and figure.texts[0].get_text() == card_line(card)


@pytest.fixture
def data(tmp_path):
    """A data folder with a table of eighteen photographs, without pictures."""
    (tmp_path / "data").mkdir()
    return SimpleNamespace(root=tmp_path / "data", train=made_table([4, 4, 4, 1, 2, 3], 3), fingerprint="0123456789")


def write_given(data, **columns):
    """A `folds.csv` of a data folder, its rows in reverse order."""
    table = pd.DataFrame({"image": sorted(data.train["image"], reverse=True), "fold": 0}).assign(**columns)
    table.to_csv(data.root / "folds.csv", index=False)
    return table


def test_dataset_folds_of_a_given_split_keep_rare_animals_out_of_the_gallery(data):
    table = write_given(data, fold=np.arange(18) % 3, rare=np.arange(18) % 2)
    folds = dataset_folds(data)
    assert list(folds) == FOLD_COLUMNS and folds["image"].tolist() == sorted(data.train["image"])
    assert folds["fold"].tolist() == table["fold"].tolist()[::-1] and set(folds["protocol"]) == {"given"}
    assert folds["query_only"].tolist() == table["rare"].tolist()[::-1]
    write_given(data, fold=np.arange(18) % 3)
    assert (dataset_folds(data)["query_only"] == 0).all()
    assert dataset_folds(data, 4, 1, "disjoint").equals(make_folds(data.train, 4, 1, "disjoint"))
    (data.root / "folds.csv").unlink()
    assert dataset_folds(data, 3, 2).equals(make_folds(data.train, 3, 2, "stratified"))


def test_make_folds_of_fewer_individuals_or_groups_than_folds_is_refused(data):
    with pytest.raises(UserError, match="6 individuals cannot be cut into 7 folds: ask for fewer folds"):
        make_folds(data.train, 7, split="disjoint")
    chain = pd.DataFrame({"image_a": sorted(data.train["image"])[:-1], "image_b": sorted(data.train["image"])[1:]})
    with pytest.raises(UserError, match="1 groups of near-duplicates cannot be cut into 2 folds"):
        make_folds(data.train, 2, split="similar", pairs=chain)


def test_dataset_folds_of_a_given_split_with_gaps_or_no_numbers_is_refused(data):
    write_given(data, fold="1").iloc[1:].to_csv(data.root / "folds.csv", index=False)
    with pytest.raises(UserError, match=r"gives no fold to 00017\.jpg \(1 images"):
        dataset_folds(data)
    twice = write_given(data, fold="1")
    pd.concat([twice, twice.iloc[3:4].assign(fold="2")]).to_csv(data.root / "folds.csv", index=False)
    with pytest.raises(UserError, match=r"row 20: 00014\.jpg is in row 5 already \(1 such rows\)"):
        dataset_folds(data)
    for wrong in ("-1", "first", "1.0"):
        write_given(data, fold=["2"] * 5 + [wrong] * 13)
        with pytest.raises(UserError, match=f"row 7: fold '{wrong}' is not a whole number"):
            dataset_folds(data)


def test_study_folds_are_those_the_study_began_with(data, tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    assert not (study_folds(data, folder, save=False).empty or any(folder.iterdir()))
    assert study_folds(data, folder).equals(make_folds(data.train, 5, 0))
    shown = tmp_path / "open"
    shown.mkdir()
    folds = study_folds(data, shown, 3, -2, "open:0.5")
    assert folds.equals(make_folds(data.train, 3, -2, "open:0.5"))
    assert study_folds(data, shown).equals(folds) and study_folds(data, shown, 3, -2, "open:0.5").equals(folds)
    for other in ({"k": 4}, {"seed": 0}, {"split_kind": "disjoint"}):
        with pytest.raises(UserError, match=r"holds another split \(open:0.5-3-seed-2"):
            study_folds(data, shown, **other)
    assert study_data(shown) == data.root


def test_study_folds_of_a_given_split_stay_given(data, tmp_path, capsys):
    write_given(data, fold=np.arange(18) % 3)
    folds = study_folds(data, tmp_path)
    assert set(folds["protocol"]) == {"given"} and study_folds(data, tmp_path).equals(folds)
    assert "folds=" not in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    assert study_folds(data, tmp_path / "other", 5).equals(folds)
    assert f"has {len(fold_numbers(folds))} folds, which are used: folds=5 is ignored" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds another split"):
        study_folds(data, tmp_path, 3, 0, "stratified")


def test_study_data_that_is_not_known_or_not_there_is_refused(data, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    study_folds(data, folder)
    with pytest.raises(UserError, match=r"no study in .*yours \(there: mine\)"):
        study_data(tmp_path / "yours")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="does not record its data folder"):
        study_data(tmp_path / "empty")
    data.root.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="which no longer exists"):
        study_data(folder)


def test_finished_folds_of_a_model_are_those_with_embeddings(tmp_path):
    folds = given_split("aabbcc", [0, 1, 2, 0, 1, 2])
    with pytest.raises(UserError, match=r"no trained fold of model 'small' .*\(trained: none\)"):
        finished_folds(tmp_path, "small", folds)
    for fold in (0, 2, 7):
        (tmp_path / "small" / f"fold{fold}").mkdir(parents=True)
        (tmp_path / "small" / f"fold{fold}" / "config.json").write_text("{}")
    assert finished_folds(tmp_path, "small", folds) == [0, 2]
    with pytest.raises(UserError, match=r"model 'large' .*\(trained: small\)"):
        finished_folds(tmp_path, "large", folds)


def test_study_card_counts_near_duplicates_once_they_are_searched_for(tiny, tmp_path):
    data = read_dataset(tiny)
    folds = study_folds(data, tmp_path, 3, 0, "open:0.5")
    assert study_card(data, tmp_path, folds)["near_duplicates"] is None
    find_near_duplicates(data, tmp_path, progress=False)
    assert study_card(data, tmp_path, folds)["near_duplicates"] == 0


def test_run_on_a_disjoint_split_is_refused_before_anything_runs(tiny, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    result = CliRunner().invoke(
        main, ["run", "-p", "data_dir", str(tiny), "-p", "split", "disjoint", "-p", "study", "d"]
    )
    assert result.exit_code == 2 and "no individual is on both sides" in result.stderr
    assert not (checkout / "outputs" / "d").exists()


def test_close_hashes_of_dense_groups_equals_plain_counting():
    rng = np.random.default_rng(2)
    centres = rng.integers(0, 2**64, 40, dtype=np.uint64)
    flips = (np.uint64(1) << rng.integers(0, 64, (40, 20, 5)).astype(np.uint64)).astype(np.uint64)
    hashes = (centres[:, None] ^ np.bitwise_xor.reduce(flips, axis=2)).ravel()
    bits = np.bitwise_count(hashes[:, None] ^ hashes)
    for distance in (0, 4, 9):
        found = close_hashes(hashes, distance)
        plain = np.argwhere(np.triu(bits <= distance, 1))
        assert np.array_equal(found[:, :2], plain) and (found[:, 2] == bits[plain[:, 0], plain[:, 1]]).all()


def test_leakage_of_a_planted_copy_is_one_pair_between_train_and_test(tiny_copy, tmp_path):
    data = read_dataset(tiny_copy)
    with Image.open(data.train_paths()[5]) as image:
        image.resize((image.width // 2, image.height // 2)).save(data.test_paths()[2], quality=60)
    pairs = find_near_duplicates(read_dataset(tiny_copy), tmp_path, progress=False)
    found = leakage(pairs, data.train)
    assert found.loc["between train and test"].tolist() == [1, 1] and found.to_numpy().sum() == 2
    assert pairs[["image_a", "image_b"]].to_numpy().tolist() == [[data.train["image"][5], data.test["image"][2]]]
    assert "1 pairs are copies" in describe_leakage(pairs, data.train, data.test)


@pytest.fixture(scope="module")
def real_table(shared):
    """Happywhale's table, with invented dates, which it lacks."""
    train = merge_species(pd.read_csv(shared / "happywhale" / "train.csv", dtype=str))
    days = np.random.default_rng(0).integers(0, 2000, len(train))
    return train.assign(date=(pd.Timestamp("2015-01-01") + pd.to_timedelta(days, "D")).strftime("%Y-%m-%d"))


@pytest.mark.real
def test_make_folds_stratified_of_the_real_table_gives_ten_alike(real_table):
    folds = make_folds(real_table, 10, 0)
    sizes = folds["fold"].value_counts()
    assert sizes.max() / sizes.min() < 1.01
    shares = folds.groupby("fold")["species"].value_counts(normalize=True).unstack(fill_value=0)
    assert (shares - real_table["species"].value_counts(normalize=True)).abs().max().max() < 0.01
    card = protocol_card(folds, "data")
    assert all(0.176 < share < 0.186 for share in card["fraction_new_per_fold"])
    digest = hashlib.sha256(folds["fold"].to_numpy(np.int8).tobytes()).hexdigest()[:16]
    assert digest == "9a91b19d13c9e6a6"  # taken once, as those above


@pytest.mark.real
@pytest.mark.parametrize("share", [0.05, 0.1, 0.18, 0.3, 0.5])
def test_make_folds_open_of_the_real_table_has_the_share_of_new_animals_asked_for(share, real_table):
    folds = make_folds(real_table, 5, 0, f"open:{share}")
    card = protocol_card(folds, "data")
    assert card["fraction_new"] == pytest.approx(share, abs=0.002)
    assert np.allclose(card["fraction_new_per_fold"], share, atol=0.02)
    assert len(folds) == len(real_table)


@pytest.mark.real
def test_make_folds_of_the_real_table_keep_the_laws_of_their_kinds(real_table):
    pairs = made_pairs(real_table, 20)
    fold = make_folds(real_table, 5, 0, "similar", pairs).set_index("image")["fold"]
    assert (fold[pairs["image_a"]].to_numpy() == fold[pairs["image_b"]].to_numpy()).all()
    across = protocol_card(make_folds(real_table, 5, 0), "data", pairs)["near_duplicates"]
    assert across > 0.7 * len(pairs)
    folds = make_folds(real_table, 10, 0, "disjoint")
    assert (folds.groupby("individual_id")["fold"].nunique() == 1).all()
    assert folds["fold"].value_counts().max() / folds["fold"].value_counts().min() < 1.1
    folds = make_folds(real_table, 5, 0, "time")
    date = real_table.set_index("image")["date"][folds["image"]].to_numpy()
    for number in range(5):
        gallery, query = gallery_and_queries(folds, number)
        assert date[gallery].max() < date[query].min()
        assert query.sum() == pytest.approx(len(real_table) / 6, rel=0.02)
