"""The head finds whom it should, says what it cannot do, and is a scikit-learn classifier."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from happywhale_nb.knn import AGGREGATES, KNNHead, VectorError, rank_sets
from happywhale_nb.metrics import average_precision, classification, map_at_5
from happywhale_nb.paths import UserError
from happywhale_nb.thresholds import CandidateSets, fit_threshold, rank_new


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
