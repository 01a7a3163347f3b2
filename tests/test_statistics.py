"""Statistics over folds, and the analysis of errors, against SciPy and plain counting."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import NEW
from happywhale_nb.evaluation import error_analysis as errors
from happywhale_nb.evaluation.per_query import OUTCOME_KINDS, classify_outcomes
from happywhale_nb.evaluation.separability import silhouettes
from happywhale_nb.evaluation.statistics import compare_models, fold_statistics, holm, learning_curve


@pytest.fixture
def table():
    """Six hundred answers of three species, forty animals, five folds, some of them new."""
    rng, n = np.random.default_rng(0), 600
    who = rng.integers(0, 40, n)
    kinds = np.array(["beluga", "orca", "sei_whale"])
    made = pd.DataFrame({"image": [f"{i}.jpg" for i in range(n)], "fold": rng.integers(0, 5, n)})
    made["individual_id"], made["species"] = [f"w{i}" for i in who], kinds[who % 3]
    made["truth"] = np.where(rng.random(n) < 0.1, NEW, made["individual_id"])
    first = rng.integers(0, 40, n)
    right = rng.random(n) < 0.5
    made["first"] = np.where(right, made["truth"], [f"w{i}" for i in first])
    made.loc[rng.random(n) < 0.05, "first"] = NEW
    made["first_species"] = [kinds[int(name[1:]) % 3] if name != NEW else "" for name in made["first"]]
    made["score"] = np.where(made["first"] == made["truth"], 1.0, rng.choice([0, 0.5, 1 / 3], n))
    made["known"] = np.where(made["truth"] == NEW, 0, who + 1)
    return made.assign(kind=classify_outcomes(made))


def test_kind_of_answer_of_any_row_equals_the_plain_rule(table):
    for row in table.itertuples():
        if row.first == row.truth:
            expected = "right"
        elif row.truth == NEW:
            expected = "new missed"
        elif row.first == NEW:
            expected = "called new"
        else:
            expected = "same species" if row.first_species == row.species else "other species"
        assert row.kind == expected
    assert set(table["kind"]) == set(OUTCOME_KINDS)


def test_fold_statistics_are_students_of_the_folds_that_have_the_figure(table):
    by_fold = table.groupby("fold")["score"].mean().to_frame("map5")
    row = fold_statistics(by_fold).loc["map5"]
    low, high = stats.t.interval(0.95, 4, by_fold["map5"].mean(), stats.sem(by_fold["map5"]))
    assert row[["low", "high"]].to_numpy() == pytest.approx([low, high]) and row["folds"] == 5
    some = by_fold.assign(map5_new=[0.5, np.nan, 0.7, np.nan, np.nan], none=np.nan, n=120)
    found = fold_statistics(some)
    assert found.index.tolist() == ["map5", "map5_new"] and found["folds"].tolist() == [5, 2]
    assert found.loc["map5_new", ["mean", "least", "greatest"]].tolist() == pytest.approx([0.6, 0.5, 0.7])
    assert fold_statistics(some[["none"]]).empty


def test_fold_statistics_of_one_fold_have_no_spread():
    one = fold_statistics(pd.DataFrame({"map5": [0.7]})).loc["map5"]
    assert one["mean"] == one["least"] == one["greatest"] == 0.7 and one["folds"] == 1
    assert np.isnan(one[["sd", "low", "high"]].to_numpy(float)).all()


def test_compare_models_equals_scipys_exact_test(table):
    rng = np.random.default_rng(1)
    other = table.assign(score=np.clip(table["score"] + rng.normal(0.02, 0.2, len(table)), 0, 1), fold=table.index % 10)
    first = table.assign(fold=table.index % 10)
    found = compare_models({"a": first, "b": other}, "a").loc["b"]
    gains = (other["score"] - first["score"]).groupby(first["fold"]).mean()
    assert found["p"] == pytest.approx(stats.wilcoxon(gains, method="exact").pvalue)
    assert found["least_p"] == 2 / 2**10 and found["better"] == (gains > 0).sum()
    assert found["gain"] == pytest.approx((other["score"] - first["score"]).mean())
    assert found["low"] < found["gain"] < found["high"]
    with pytest.raises(UserError, match="no predictions of a model 'c'"):
        compare_models({"a": first}, "c")


def test_compare_models_counts_what_both_have_answered(table):
    half = table[table["fold"] < 2].assign(score=1.0)
    found = compare_models({"a": table, "b": half}, "a").loc["b"]
    assert found["folds"] == 2 and found["gain"] == pytest.approx(1 - table.loc[table["fold"] < 2, "score"].mean())
    assert found["p"] == found["least_p"] == 0.5 and found["better"] == 2  # by chance both of two folds in a half
    assert compare_models({"a": table, "b": half.head(0)}, "a").empty
    alone = compare_models({"a": table, "b": half[half["fold"] == 0]}, "a").loc["b"]
    assert alone["folds"] == alone["p"] == alone["least_p"] == 1 and alone["better"] == 1


def test_holm_of_any_p_values_rejects_as_the_step_down_procedure_does():
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = rng.random(6) ** 3
        order, rejected = np.argsort(p), np.zeros(6, bool)
        for step, i in enumerate(order):
            if p[i] > 0.05 / (6 - step):
                break
            rejected[i] = True
        assert (holm(p) <= 0.05).tolist() == rejected.tolist()


def test_learning_curve_of_a_larger_gallery_contains_the_smaller():
    rng = np.random.default_rng(3)
    y = np.repeat([f"w{i}" for i in range(20)], 6)
    X = rng.normal(size=(120, 16)) + np.repeat(rng.normal(size=(20, 16)), 6, axis=0)
    parts = [(X, y, X + 0.01, y)]
    curve = learning_curve(parts, max_photos=(1, 2, 6))
    assert curve["photos"].tolist() == [20, 40, 120, 120]
    assert curve["map5"].iloc[-1] == 1 and curve.loc[6].equals(curve.loc[np.inf])
    assert curve["map5"].is_monotonic_increasing  # a query's twin is in ever more of the galleries
    assert ((curve["low"] <= curve["map5"]) & (curve["map5"] <= curve["high"])).all()
    halves = learning_curve([*parts, (X[:60], y[:60], X[:30], y[:30])], max_photos=(2,))
    assert halves["photos"].tolist() == [(40 + 20) / 2, (120 + 60) / 2]


def test_learning_curve_without_known_animals_is_refused():
    with pytest.raises(UserError, match="no known animals"):
        learning_curve([])


def test_species_errors_and_by_photos_equal_plain_counting(table):
    confusion, by_species = errors.species_confusion(table), errors.species_errors(table)
    for name in ("beluga", "orca", "sei_whale"):
        rows = table[(table["species"] == name) & (table["first"] != NEW)]
        for other in confusion.columns:
            assert confusion.loc[name, other] == (rows["first_species"] == other).sum()
        part = table[table["species"] == name]
        shares = by_species.loc[name, ["within", "across", "called_new", "new_missed"]].sum()
        assert shares + (part["kind"] == "right").mean() == pytest.approx(1)
    bins = errors.map5_by_gallery_size(table)
    known = table[table["truth"] != NEW]
    assert bins["photos"].sum() == len(known)
    assert bins.loc["3–5", "map5"] == pytest.approx(known.loc[known["known"].between(3, 5), "score"].mean())


def test_rank_correlation_is_spearmans_within_its_interval(table):
    rng = np.random.default_rng(4)
    x = table["score"].to_numpy() + rng.normal(0, 0.5, len(table))
    r, low, high = errors.rank_correlation(x, table["score"].to_numpy(), table["individual_id"])
    assert r == pytest.approx(stats.spearmanr(x, table["score"]).statistic) and low < r < high
    assert np.isnan(errors.rank_correlation(np.ones(600), table["score"].to_numpy(), table["individual_id"])[0])


def test_check_claims_says_what_holds_and_what_cannot_be_told(table):
    rng = np.random.default_rng(5)
    known = table["truth"] != NEW
    measures = pd.DataFrame({"sharpness": table["score"] + rng.normal(0, 0.3, 600), "backlight": -table["score"]})
    measures = measures.assign(exposure=-table["score"], contrast=rng.random(600), pixels=1.0)
    claims = errors.check_claims(table, errors.explain_errors(table, measures))["found"]
    assert claims["blurred photographs fail"] == claims["backlit photographs fail"] == "holds"
    assert (
        claims["dark photographs fail"] == "the contrary"
        and claims["small photographs fail"] == "pixels does not vary here"
    )
    pair = table.assign(first=np.where(known, "w0", NEW), first_species=np.where(known, "beluga", ""))
    found = errors.check_claims(pair, pd.DataFrame(), ("beluga", "orca"))
    assert found["found"].iloc[-1] == "holds" and found["r"].iloc[-1] == 1


def test_worst_individuals_are_those_of_the_lowest_map5(table):
    worst = errors.worst_individuals(table, min_photos=5, n=3)
    known = table[table["truth"] != NEW].groupby("individual_id")["score"].agg(["mean", "size"])
    assert worst["map5"].iloc[0] == pytest.approx(known["mean"].min())
    assert worst["map5"].is_monotonic_increasing and len(worst) == 3
    assert errors.worst_individuals(table.assign(score=1.0)).empty


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4, 1e-7, 0.0])
def test_silhouettes_of_vectors_that_hardly_differ_stay_between_their_ends(apart):
    rng = np.random.default_rng(0)
    X = np.float32(1) + np.float32(apart) * rng.normal(size=(60, 16)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    who = np.tile(list("abcd"), 15)
    found = silhouettes(X[:20] @ X[20:].T, who[:20], who[20:])
    assert (np.abs(found) <= 1).all(), "cosines of like photographs may be rounded to above 1"
