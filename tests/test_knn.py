"""The head finds whom it should, says what it cannot do, and is a scikit-learn classifier."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from happywhale_nb.knn import AGGREGATES, KNNHead, VectorError, neighbour_grid, rank_sets
from happywhale_nb.metrics import average_precision, bootstrap_interval, classification, map_at_5, top_k_accuracy
from happywhale_nb.paths import UserError
from happywhale_nb.thresholds import CandidateSets, fit_species_thresholds, fit_threshold, rank_new


@pytest.fixture
def gallery():
    rng = np.random.default_rng(0)
    who = rng.integers(0, 40, 300)
    return rng.normal(size=(40, 16))[who] + rng.normal(size=(300, 16)), np.char.add("w", who.astype(str))


def naive(gallery, names, query, k, aggregate, temperature=0.05):
    """One query's list by plain Python: (name, score that orders it), best first."""
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    cosine = np.round(unit @ (query / np.linalg.norm(query)), 6)
    near = sorted(range(len(cosine)), key=lambda i: (-cosine[i], i))[:k]
    groups = {}
    for i in near:
        groups.setdefault(names[i], []).append(cosine[i])
    key = {
        "max": lambda values: values[0],
        "vote": len,
        "softmax_sum": lambda values: temperature * np.log(sum(np.exp(v / temperature) for v in values)),
    }[aggregate]
    return sorted(groups, key=lambda name: -key(groups[name]))  # stable: ties go to the nearer


@pytest.mark.parametrize("search", ["auto", "sklearn"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("k", [1, 7, 50, 1000])
def test_lists_equal_those_made_one_by_one(gallery, aggregate, k, search):
    X, y = gallery
    queries = np.random.default_rng(1).normal(size=(25, 16))
    ids, scores = KNNHead(k, aggregate, search=search).fit(X, y).rank(queries, 4)
    for row, query in zip(ids, queries, strict=True):
        expected = naive(X, y, query, k, aggregate)[:4]
        assert row.tolist() == expected + [""] * (4 - len(expected))
    assert (np.diff(np.where(np.isfinite(scores), scores, -9), axis=1) <= 0).all()


def test_it_is_a_classifier_as_scikit_learn_wants_them():
    zero = "a vector of zeros has no direction: it is refused by its row"
    check_estimator(KNNHead(), expected_failed_checks={"check_estimators_dtypes": zero}, on_skip=None)


def test_ties_go_by_the_order_of_the_gallery_whatever_else_is_in_it():
    same = np.tile([[3.0, 4.0]], (6, 1))
    names = np.array(list("fedcba"))
    for _ in range(3):
        assert KNNHead(6).fit(same, names).rank([[1.0, 1.0]])[0].tolist() == [list("fedcb")]
    ids, _ = KNNHead(7, "vote").fit(np.vstack([same, [[-1, 0]]]), [*"ababab", "z"]).rank([[1.0, 1.0]])
    assert ids[0, :3].tolist() == ["a", "b", "z"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1, 0], [0, 0], [0, 0]], "row 1 of the embeddings is zero (2 such"),
        ([[1, 0], [1, 1], [np.nan, 0]], "row 2 of the embeddings is not finite"),
        ([[1, 0, 0]], "X has 3 features, but KNNHead is expecting 2"),
    ],
)
def test_vectors_that_cannot_be_compared_are_named(rows, said):
    head = KNNHead().fit([[1, 0], [0, 1]], ["a", "b"])
    with pytest.raises(VectorError) as caught:
        head.rank(np.array(rows, float))
    assert said in str(caught.value)


def test_unknown_rules_and_missing_centres_are_refused():
    with pytest.raises(UserError, match="choose max, vote, softmax_sum"):
        KNNHead(aggregate="mean").fit([[1, 0]], ["a"])
    with pytest.raises(UserError, match="choose auto, exact, faiss, sklearn"):
        KNNHead(search="annoy").fit([[1, 0]], ["a"])
    with pytest.raises(UserError, match="train again"):
        KNNHead(centre_share=0.5).fit([[1, 0]], ["a"])


def test_views_of_a_photograph_are_photographs_of_the_gallery(gallery):
    X, y = gallery
    views = np.stack([X, X[:, ::-1]], axis=1)
    one = KNNHead(20).fit(views, y)
    two = KNNHead(20).fit(views.reshape(-1, 16), np.repeat(y, 2))
    assert (one.rank(X[:30])[0] == two.rank(X[:30])[0]).all()
    both = one.rank(views[:30], 1)[1][:, 0]  # each view of a query may bring the nearest
    assert np.allclose(both, np.maximum(one.rank(X[:30], 1)[1], one.rank(X[:30, ::-1], 1)[1])[:, 0])


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_set_is_the_mean_of_its_photographs(gallery, aggregate):
    X, y = gallery
    rng = np.random.default_rng(2)
    queries, sets = rng.normal(size=(30, 16)), rng.permutation(np.arange(30) % 7).astype(str)
    head = KNNHead(300, aggregate).fit(X, y)  # every individual is a neighbour: nothing is cut
    names, ids, scores, drivers = rank_sets(head, queries, sets)
    single_ids, single = head.rank(queries, 40)
    for name, row, values, driver in zip(names, ids, scores, drivers, strict=True):
        rows = np.flatnonzero(sets == name)
        of = [{i: s for i, s in zip(single_ids[r], single[r], strict=True) if i} for r in rows]
        if aggregate != "vote":  # a vote's single scores are cut to be descending
            mean = {i: np.mean([part[i] for part in of]) for i in of[0]}
            assert row.tolist() == sorted(mean, key=lambda i: -mean[i])[:5]
            assert np.allclose(values, [mean[i] for i in row])
            assert driver.tolist() == [rows[np.argmax([part[i] for part in of])] for i in row]
        else:
            votes = {i: (y == i).sum() for i in of[0]}
            assert [votes[i] for i in row] == sorted(votes.values(), reverse=True)[:5]


def test_sets_help(gallery):
    X, y = gallery
    rng = np.random.default_rng(3)
    sets, queries = np.repeat(np.arange(60), 4), X[:60].repeat(4, axis=0) + 2.5 * rng.normal(size=(240, 16))
    head = KNNHead().fit(X, y)
    alone = map_at_5(y[:60].repeat(4), head.rank(queries)[0])
    names, ids, _, _ = rank_sets(head, queries, sets)
    assert map_at_5(y[names.astype(int)], ids) > alone + 0.1


def test_ranks_are_worth_what_the_competition_pays():
    answers = [list("abcde"), list("bacde"), list("bcade"), list("bcdae"), list("bcdea"), list("bcdef"), list("bbbba")]
    assert average_precision(["a"] * 7, np.array(answers)).tolist() == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 0, 1 / 5]
    assert average_precision(["a"], np.array([list("bcdefa")])).tolist() == [0]
    assert average_precision(["a"], np.array([list("abcaa")])).tolist() == [1]


def test_macro_f1_of_new_animals_is_stated_both_ways():
    figures = classification(["new_individual"] * 3, ["a", "new_individual", "new_individual"])
    assert figures["accuracy"] == pytest.approx(2 / 3) and figures["macro_f1"] == pytest.approx(0.8)
    assert np.isnan(figures["accuracy_known"]) and np.isnan(figures["macro_f1_known"])


def test_a_fitted_threshold_is_the_best_of_its_grid():
    rng = np.random.default_rng(0)
    for _ in range(5):
        ids = np.stack([rng.permutation(list("abcdefg"))[:5] for _ in range(60)])
        scores = -np.sort(-rng.random((60, 5)), axis=1)
        truth = np.where(rng.random(60) < 0.3, "new_individual", ids[np.arange(60), rng.integers(0, 5, 60)])
        best = map_at_5(truth, rank_new(ids, scores, fit_threshold(ids, scores, truth, n_grid=3000)))
        assert best >= max(map_at_5(truth, rank_new(ids, scores, t)) for t in np.linspace(0, 1, 23)) - 1e-9


def test_conformal_lists_keep_their_promise_out_of_sample():
    held = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores = -np.sort(-rng.normal(size=(400, 8)), axis=1)
        ids = np.tile(list("abcdefgh"), (400, 1))
        truth = ids[np.arange(400), np.minimum(rng.geometric(0.5, 400) - 1, 7)]
        sets = CandidateSets(0.2).fit(ids[:150], scores[:150], -9.0, truth[:150])
        names, sizes = sets.predict(ids[150:], scores[150:], -9.0)
        held.append((names == truth[150:, None]).argmax(axis=1) < sizes)
    coverage = np.mean(held)
    assert 0.79 < coverage < 0.85


def test_groups_too_small_for_a_distance_of_their_own_share_one():
    rng = np.random.default_rng(0)
    ids, scores = np.tile(list("abc"), (300, 1)), -np.sort(-rng.normal(size=(300, 3)), axis=1)
    groups = np.where(np.arange(300) < 290, "beluga", "rare")
    sets = CandidateSets(0.1).fit(ids, scores, -9.0, np.repeat("a", 300), groups)
    assert set(sets.distances_) == {"beluga", ""} and sets.distances_[""] == 0
    few = CandidateSets(0.1).fit(ids[:5], scores[:5], -9.0, np.repeat("a", 5))
    assert few.distances_[""] == np.inf  # five rows cannot promise nine in ten: everything is listed
    assert few.predict(ids[:2], scores[:2], -9.0)[1].tolist() == [4, 4]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_bad_rows_are_named_wherever_they_are_and_no_rows_give_no_answers(rng):
    X, y = rng.normal(size=(30, 8)), np.arange(30) % 6
    head = KNNHead(5).fit(X, y.astype(str))
    queries = rng.normal(size=(4600, 8))
    queries[[4500, 4599]] = np.nan
    with pytest.raises(UserError, match=r"row 4500 .*\(2 such rows\)"):
        head.rank(queries)
    ids, scores = head.rank(np.empty((0, 8)))
    assert ids.shape == scores.shape == (0, 5)


def test_what_the_head_refuses(rng):
    X, y = rng.normal(size=(6, 4)), list("aabbcc")
    for wrong in ({"temperature": 0}, {"temperature": -1.0}, {"centre_share": 1.5}, {"centre_share": -0.3}):
        with pytest.raises(UserError, match="temperature is above 0"):
            KNNHead(**wrong).fit(X, y, (y, X))
    with pytest.raises(UserError, match="is no individual"):
        KNNHead().fit(X, [*y[:5], "new_individual"])


def test_a_soft_sum_at_a_low_temperature_is_the_maximum(rng):
    X, y = rng.normal(size=(40, 8)), np.arange(40) % 7
    queries = rng.normal(size=(9, 8))
    soft, hard = (KNNHead(40, rule, temperature=1e-4).fit(X, y).rank(queries) for rule in ("softmax_sum", "max"))
    assert (soft[0] == hard[0]).all()
    np.testing.assert_allclose(soft[1], hard[1], atol=1e-3)


def test_sets_with_class_centres_give_nobody_less_for_being_a_neighbour(rng):
    centres = rng.normal(size=(12, 16))
    X, y = np.repeat(centres, 4, axis=0) + rng.normal(size=(48, 16)), np.repeat(np.arange(12), 4).astype(str)
    names = np.unique(y)
    table = np.stack([X[y == name].mean(axis=0) for name in names])
    queries = np.repeat(centres, 3, axis=0) + rng.normal(size=(36, 16))
    head = KNNHead(8, centre_share=0.6).fit(X, y, (names, table))
    found, scores = head.rank(queries, 12)
    _, _, fused, _ = rank_sets(head, queries, np.repeat(np.arange(12), 3).astype(str), 12)
    for i, name in enumerate(sorted(map(str, range(12)))):
        rows = scores[3 * int(name) : 3 * int(name) + 3]
        least = np.where(np.isfinite(rows), rows, np.inf).min(axis=1).mean()
        assert np.isfinite(fused[i]).sum() == 0 or fused[i][np.isfinite(fused[i])].min() >= least - 1e-9
    assert (found != "").any()


def test_numbers_and_names_are_not_compared(rng):
    with pytest.raises(ValueError, match="both alike"):
        map_at_5(np.arange(3), np.array([["0"], ["1"], ["2"]]))
    with pytest.raises(ValueError, match="best first"):
        top_k_accuracy(np.arange(3), np.arange(3))
    X, y = rng.normal(size=(20, 4)), np.arange(20) % 5
    assert neighbour_grid(X, y, X, y, ks=(1,)).loc[1, "max"] == 1
    assert np.isnan(bootstrap_interval([0.5, 1], ["a", "a"])).all()


def test_long_names_and_thresholds_at_the_ends():
    ids = np.array([["humpback_tail_0001_left", "humpback_tail_0001_right"]], object)
    assert rank_new(ids, [[0.9, 0.8]], 0.5)[0].tolist() == [*ids[0], "new_individual"]
    many, scores = np.array([list("abcde")] * 3), np.array([[5.0, 4, 3, 2, 1]] * 3)  # sums of votes say: above 1
    above = fit_threshold(many, scores, ["new_individual"] * 3)
    assert (rank_new(many, scores, above)[:, 0] == "new_individual").all()
    below = fit_threshold(many, scores - 10, ["a"] * 3)
    assert (rank_new(many, scores - 10, below, 6)[:, 5] == "new_individual").all()


def test_an_expected_share_of_new_animals_reaches_each_species(rng):
    n = 2000
    truth = np.where(rng.random(n) < 0.2, "new_individual", "a")
    best = np.where(truth == "a", rng.normal(0.7, 0.15, n), rng.normal(0.5, 0.15, n))
    scores, ids = best[:, None] - np.arange(5) * 0.05, np.tile(np.array(list("abcde")), (n, 1))
    species = np.repeat(["orca", "minke"], n // 2)
    called = []
    for share in (0.02, 0.2, 0.9):
        _, own = fit_species_thresholds(ids, scores, truth, species, 50, share)
        called.append(np.mean([best[i] < own[species[i]] for i in range(n)]))
    assert called[0] < called[1] - 0.05 < called[2] - 0.1
