"""The kNN head against a plain float64 implementation, and a study's answers made from its rankings."""

import json
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from sklearn.utils.estimator_checks import check_estimator

from happywhale_nb.core.artifacts import write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import NEW
from happywhale_nb.data.splits import gallery_and_queries
from happywhale_nb.retrieval.calibration import TopOneCalibrator
from happywhale_nb.retrieval.conformal import CandidateSets
from happywhale_nb.retrieval.embeddings import (
    ClassCentres,
    image_embeddings,
    read_centres,
    read_embeddings,
    write_centres,
    write_embeddings,
)
from happywhale_nb.retrieval.knn import KNNHead, neighbour_grid, rank_sets, within_map5
from happywhale_nb.retrieval.local_features import (
    Evidence,
    Features,
    Fusion,
    cross_probabilities,
    match_candidates,
    rerank,
)
from happywhale_nb.retrieval.metrics import (
    auroc_new,
    average_precision,
    balanced_accuracies,
    bootstrap_interval,
    calibration_metrics,
    classification_metrics,
    cmc,
    map_at_5,
    rank_of_truth,
    student_interval,
    summary,
)
from happywhale_nb.retrieval.open_set import (
    estimate_prior_new,
    fit_species_thresholds,
    fit_threshold,
    rank_new,
    threshold_for_fraction,
)
from happywhale_nb.retrieval.predictions import read_candidate_sets, read_predictions, read_scores, write_candidate_sets
from happywhale_nb.retrieval.rankings import Fold, Ranking
from happywhale_nb.retrieval.search import AGGREGATES
from happywhale_nb.retrieval.vectors import VectorError
from happywhale_nb.stages import knn, reranking, rule_tables
from happywhale_nb.stages.candidate_sets import calibrate_folds, held_by_others
from happywhale_nb.stages.fold_ranking import rank_fold
from happywhale_nb.stages.knn import knn_stage, predict_folds
from happywhale_nb.stages.model_predictions import read_folds
from happywhale_nb.stages.new_individual import OpenSetThresholds, PredictionOptions, add_new_individual
from happywhale_nb.stages.open_set_metrics import evaluate
from happywhale_nb.stages.prediction_examples import choose_examples
from happywhale_nb.stages.reranking import fuse_local, local_evidence
from happywhale_nb.stages.rule_tables import (
    compare_rules,
    compute_rule_tables,
    known_queries,
    read_rule_tables,
    study_grid,
)

laws = settings(max_examples=100, deadline=None, derandomize=True)
T = 0.05  # temperature of softmax_sum


@pytest.fixture
def rng():
    """Random numbers, the same for each test."""
    return np.random.default_rng(0)


@pytest.fixture
def gallery(rng):
    """Vectors `[300, 16]` of 40 individuals, and who they show."""
    who = rng.integers(0, 40, 300)
    return rng.normal(size=(40, 16))[who] + rng.normal(size=(300, 16)), np.char.add("w", who.astype(str))


@st.composite
def galleries(draw, copies=True):
    """Vectors, individuals and queries; some rows are copies of others, of any length: their cosines tie exactly."""
    n, people, width = draw(st.integers(2, 30)), draw(st.integers(1, 14)), draw(st.integers(3, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    X = rng.normal(size=(n, width))
    if copies:
        row = st.integers(0, n - 1)
        for target, source in draw(st.lists(st.tuples(row, row), max_size=8)):
            X[target] = 2 * X[source]
    y = np.char.add("w", rng.integers(0, people, n).astype(str))
    return X, y, rng.normal(size=(draw(st.integers(1, 5)), width))


def cosines(X, query):
    """Of a query with each row, in float64."""
    return (X / np.linalg.norm(X, axis=1, keepdims=True)) @ (query / np.linalg.norm(query))


def apart(values):
    """Whether different values differ by so much that rounding to six decimals cannot put them in another order."""
    return (np.diff(np.unique(np.round(values, 12))) > 1e-5).all()


def plain_entries(X, y, query, k, aggregate):
    """`{name: (key, score)}` of the individuals among the k nearest, nearest first, and the k-th cosine."""
    cosine = cosines(X, query).tolist()
    near = sorted(range(len(y)), key=lambda i: (-round(cosine[i], 6), i))[:k]
    groups = {}
    for i in near:
        groups.setdefault(str(y[i]), []).append(cosine[i])
    key = {"max": max, "vote": len, "softmax_sum": lambda v: T * np.log(np.exp(np.array(v) / T).sum())}[aggregate]
    score = max if aggregate == "vote" else key
    return {name: (key(values), score(values)) for name, values in groups.items()}, cosine[near[-1]]


def clear(X, queries):
    """Whether no rounding can change the order of the rows."""
    return all(apart(cosines(X, query)) for query in queries)


def plain_list(entries, n):
    """Names and scores by key, ties to the first; a score is no higher than the one before."""
    names = sorted(entries, key=lambda name: -entries[name][0])[:n]
    scores = np.minimum.accumulate([entries[name][1] for name in names])
    gap = n - len(names)
    return names + [""] * gap, [*scores, *[-np.inf] * gap]


@laws
@given(galleries(), st.integers(1, 33), st.sampled_from(AGGREGATES))
def test_rank_of_any_gallery_equals_the_plain_lists(case, k, aggregate):
    X, y, queries = case
    assume(clear(X, queries))
    ids, scores = KNNHead(k, aggregate).fit(X, y).rank(queries, 4)
    for row, values, query in zip(ids, scores, queries, strict=True):
        entries, _ = plain_entries(X, y, query, k, aggregate)
        assume(aggregate == "vote" or apart([key for key, _ in entries.values()]) or len(entries) < 2)
        names, expected = plain_list(entries, 4)
        assert row.tolist() == names
        np.testing.assert_allclose(values, expected, atol=2e-6)


@pytest.mark.parametrize("search", ["auto", "exact", "faiss", "sklearn"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("k", [1, 50, 1000])
def test_rank_by_any_search_equals_the_plain_lists(gallery, aggregate, k, search):
    if search == "faiss":
        pytest.importorskip("faiss", reason="no faiss here: pip install 'happywhale_nb[search]'")
    X, y = gallery
    queries = np.random.default_rng(1).normal(size=(8, 16))
    ids, scores = KNNHead(k, aggregate, search=search).fit(X, y).rank(queries, 4)
    for row, values, query in zip(ids, scores, queries, strict=True):
        names, expected = plain_list(plain_entries(X, y, query, k, aggregate)[0], 4)
        assert row.tolist() == names
        np.testing.assert_allclose(values, expected, atol=2e-6)


@laws
@given(galleries(copies=False), st.integers(1, 33), st.sampled_from(AGGREGATES), st.randoms(use_true_random=False))
def test_rank_of_a_gallery_in_another_order_is_the_same_without_ties(case, k, aggregate, random):
    X, y, queries = case
    assume(clear(X, queries))
    order = random.sample(range(len(y)), len(y))
    one, other = (KNNHead(k, aggregate).fit(X[rows], y[rows]).rank(queries) for rows in (np.arange(len(y)), order))
    assert one[0].tolist() == other[0].tolist()
    np.testing.assert_allclose(one[1], other[1], atol=2e-6)


def test_rank_of_equal_photographs_follows_the_order_of_the_gallery():
    same = np.tile([[3.0, 4.0]], (6, 1))
    for _ in range(3):
        assert KNNHead(6).fit(same, list("fedcba")).rank([[1.0, 1.0]])[0].tolist() == [list("fedcb")]
    ids, _ = KNNHead(7, "vote").fit(np.vstack([same, [[-1, 0]]]), [*"ababab", "z"]).rank([[1.0, 1.0]])
    assert ids[0, :3].tolist() == ["a", "b", "z"]


def test_rank_of_no_queries_is_empty_and_of_many_names_the_bad_rows(rng):
    head = KNNHead(5).fit(rng.normal(size=(30, 8)), (np.arange(30) % 6).astype(str))
    queries = rng.normal(size=(4600, 8))  # more than a block of them
    ids, scores = head.rank(queries)
    alone = head.rank(queries[4095:4098])
    assert ids[4095:4098].tolist() == alone[0].tolist() and np.allclose(scores[4095:4098], alone[1], atol=2e-6)
    queries[[4500, 4599]] = np.nan
    with pytest.raises(UserError, match=r"embedding 4500 .*\(and 1 more cannot be compared\)"):
        head.rank(queries)
    ids, scores = head.rank(np.empty((0, 8)))
    assert ids.shape == scores.shape == (0, 5)


def test_rank_by_a_soft_sum_of_low_temperature_is_that_by_the_maximum(rng):
    X, y = rng.normal(size=(40, 8)), np.arange(40) % 7
    queries = rng.normal(size=(9, 8))
    soft, hard = (KNNHead(40, rule, temperature=1e-4).fit(X, y).rank(queries) for rule in ("softmax_sum", "max"))
    assert (soft[0] == hard[0]).all()
    np.testing.assert_allclose(soft[1], hard[1], atol=1e-3)


def test_predict_gives_the_first_of_each_list(gallery):
    X, y = gallery
    head = KNNHead().fit(X, y)
    assert head.predict(X[:20] + 0.5).tolist() == head.rank(X[:20] + 0.5, 1)[0][:, 0].tolist()


def test_knn_head_is_a_classifier_as_scikit_learn_wants_them():
    zero = "a vector of zeros has no direction: it is refused by its row"
    check_estimator(KNNHead(), expected_failed_checks={"check_estimators_dtypes": zero}, on_skip=None)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1, 0], [0, 0], [0, 0]], "embedding 1 is zero (and 1 more"),
        ([[1, 0], [1, 1], [np.nan, 0]], "embedding 2 has a NaN or an infinity"),
        ([[1, 0, 0]], "X has 3 features, but KNNHead is expecting 2"),
        ([[1, 0], [0, 0], [np.inf, 0]], "embedding 1 is zero (and 1 more"),
    ],
)
def test_rank_of_vectors_that_cannot_be_compared_names_the_row(rows, said):
    head = KNNHead().fit([[1, 0], [0, 1]], ["a", "b"])
    with pytest.raises(VectorError) as caught:
        head.rank(np.array(rows, float))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"aggregate": "mean"}, "choose max, vote, softmax_sum"),
        ({"search": "annoy"}, "choose auto, exact, faiss, sklearn"),
        ({"temperature": 0}, "temperature=.*: give a number above 0"),
        ({"temperature": -1.0}, "temperature=.*: give a number above 0"),
        ({"centre_weight": 1}, "centre_weight=.*: give a number from 0 to below 1"),
        ({"centre_weight": 1.5}, "centre_weight=.*: give a number from 0 to below 1"),
        ({"centre_weight": -0.3}, "centre_weight=.*: give a number from 0 to below 1"),
        ({"centre_weight": 0.5, "aggregate": "vote"}, "is not for votes"),
    ],
)
def test_fit_with_an_unknown_rule_or_a_number_out_of_range_is_refused(options, said):
    X, y = [[1, 0], [0, 1]], ["a", "b"]
    with pytest.raises(UserError, match=said):
        KNNHead(**options).fit(X, y, (y, X))


def test_fit_with_centre_weight_but_without_centres_is_refused():
    with pytest.raises(UserError, match="train again"):
        KNNHead(centre_weight=0.5).fit([[1, 0]], ["a"])


def test_fit_with_new_individual_in_the_gallery_is_refused(rng):
    with pytest.raises(UserError, match="is not an individual"):
        KNNHead().fit(rng.normal(size=(6, 4)), [*"aabbc", NEW])


def test_rank_of_views_takes_each_view_for_a_photograph(gallery):
    X, y = gallery
    views = np.stack([X, X[:, ::-1]], axis=1)
    one = KNNHead(20).fit(views, y)
    two = KNNHead(20).fit(views.reshape(-1, 16), np.repeat(y, 2))
    assert (one.rank(X[:30])[0] == two.rank(X[:30])[0]).all()
    both = one.rank(views[:30], 1)[1][:, 0]  # each view of a query may bring the nearest
    assert np.allclose(both, np.maximum(one.rank(X[:30], 1)[1], one.rank(X[:30, ::-1], 1)[1])[:, 0])


def with_centres(entries, floor, near, share):
    """Entries of a query with the cosines `near` `{name: cosine}` to the class centres mixed in: the ten best of these
    are candidates too, as near as the farthest neighbour."""
    entries = dict(entries)
    for name in sorted(near, key=lambda name: -near[name])[:10]:
        entries.setdefault(name, (floor, floor))
    mixed = {n: (1 - share) * key + share * near[n] if n in near else key for n, (key, _) in entries.items()}
    return {name: (value, value) for name, value in mixed.items()}


@laws
@given(galleries(), st.integers(1, 6), st.sampled_from(["max", "softmax_sum"]), st.sampled_from([0.2, 0.7]), st.data())
def test_rank_with_class_centres_equals_the_plain_mixture(case, k, aggregate, share, data):
    X, y, queries = case
    known = np.unique(y).tolist()
    names = data.draw(st.lists(st.sampled_from([*known, "a stranger"]), min_size=1, max_size=16))  # some have several
    vectors = np.random.default_rng(len(names)).normal(size=(len(names), X.shape[1]))
    assume(clear(X, queries) and clear(vectors, queries))
    head = KNNHead(k, aggregate, centre_weight=share).fit(X, y, (names, vectors))
    ids, scores = head.rank(queries, 12)
    for row, values, query in zip(ids, scores, queries, strict=True):
        found = cosines(vectors, query)
        near = {n: max(c for m, c in zip(names, found, strict=True) if m == n) for n in set(names) & set(known)}
        entries = with_centres(*plain_entries(X, y, query, k, aggregate), near, share)
        assume(apart([key for key, _ in entries.values()]))
        listed, expected = plain_list(entries, 12)
        assert row.tolist() == listed
        np.testing.assert_allclose(values, expected, atol=2e-6)


def test_rank_of_views_with_class_centres_compares_their_mean(rng):
    X, y = rng.normal(size=(6, 4)), list("abcdef")
    head = KNNHead(6, centre_weight=0.5).fit(X, y, (y, X))
    views = rng.normal(size=(1, 2, 4))
    unit = views / np.linalg.norm(views, axis=-1, keepdims=True)
    mean = cosines(X, unit[0].mean(axis=0))
    nearest = np.maximum(cosines(X, views[0, 0]), cosines(X, views[0, 1]))
    assert head.rank(views, 6)[1][0] == pytest.approx(np.sort(nearest / 2 + mean / 2)[::-1], abs=2e-6)


def plain_sets(entries, floors, sets, votes, n):
    """Names, scores and drivers of each set: what an individual has on average, an absent one the least there is."""
    for name in sorted(set(sets)):
        rows = [i for i, other in enumerate(sets) if other == name]
        least = {i: min([floors[i], *[score for _, score in entries[i].values()]]) for i in rows}
        found = {}
        for who in sorted({w for i in rows for w in entries[i]}):
            present = [i for i in rows if who in entries[i]]
            score = np.mean([entries[i][who][1] if who in entries[i] else least[i] for i in rows])
            absent = {i: 0 if votes else least[i] for i in rows}
            key = np.mean([entries[i][who][0] if who in entries[i] else absent[i] for i in rows])
            found[who] = (key, score, max(present, key=lambda i: (entries[i][who][1], -i)))
        order = sorted(found, key=lambda who: (-round(found[who][0], 9), found[who][2], who))[:n]
        gap = n - len(order)
        scores = np.minimum.accumulate([found[who][1] for who in order])
        yield name, order + [""] * gap, [*scores, *[-np.inf] * gap], [found[who][2] for who in order] + [-1] * gap


@laws
@given(galleries(copies=False), st.integers(1, 33), st.sampled_from(AGGREGATES), st.data())
def test_rank_sets_of_any_sets_equals_the_plain_means(case, k, aggregate, data):
    X, y, queries = case
    assume(clear(X, queries))
    sets = data.draw(st.lists(st.sampled_from("pq"), min_size=len(queries), max_size=len(queries)))
    entries, floors = zip(*[plain_entries(X, y, query, k, aggregate) for query in queries], strict=True)
    names, ids, scores, drivers = rank_sets(KNNHead(k, aggregate).fit(X, y), queries, sets, 6)
    for i, row in enumerate(plain_sets(entries, floors, sets, aggregate == "vote", 6)):
        name, listed, values, drove = row
        assert (names[i], ids[i].tolist(), drivers[i].tolist()) == (name, listed, drove)
        np.testing.assert_allclose(scores[i], values, atol=2e-6)


def test_rank_sets_of_several_photographs_finds_more_than_each_alone(gallery):
    X, y = gallery
    rng = np.random.default_rng(3)
    sets, queries = np.repeat(np.arange(60), 4), X[:60].repeat(4, axis=0) + 2.5 * rng.normal(size=(240, 16))
    head = KNNHead().fit(X, y)
    alone = map_at_5(y[:60].repeat(4), head.rank(queries)[0])
    names, ids, _, _ = rank_sets(head, queries, sets)
    assert map_at_5(y[names.astype(int)], ids) > alone + 0.1


def test_rank_sets_with_class_centres_gives_nobody_less_for_being_a_neighbour(rng):
    centres = rng.normal(size=(12, 16))
    X, y = np.repeat(centres, 4, axis=0) + rng.normal(size=(48, 16)), np.repeat(np.arange(12), 4).astype(str)
    names = np.unique(y)
    table = np.stack([X[y == name].mean(axis=0) for name in names])
    queries = np.repeat(centres, 3, axis=0) + rng.normal(size=(36, 16))
    head = KNNHead(8, centre_weight=0.6).fit(X, y, (names, table))
    found, scores = head.rank(queries, 12)
    sets, _, fused, _ = rank_sets(head, queries, np.repeat(np.arange(12), 3).astype(str), 12)
    for i, name in enumerate(sets):
        rows = scores[3 * int(name) : 3 * int(name) + 3]
        least = np.where(np.isfinite(rows), rows, np.inf).min(axis=1).mean()
        assert np.isfinite(fused[i]).any() and fused[i][np.isfinite(fused[i])].min() >= least - 1e-9
    assert (found != "").any()


@laws
@given(galleries(copies=False), st.data())
def test_neighbour_grid_of_any_gallery_equals_a_head_of_each_k(case, data):
    X, y, queries = case
    truth = np.array(data.draw(st.lists(st.sampled_from(y.tolist()), min_size=len(queries), max_size=len(queries))))
    ks = sorted(data.draw(st.sets(st.integers(1, 40), min_size=1, max_size=3)))
    grid = neighbour_grid(X, y, queries, truth, ks)
    assert grid.index.tolist() == [k for k in ks if k <= len(y)] and (grid.empty or list(grid) == ["max", "vote"])
    for k in grid.index:
        for rule in grid:
            assert grid.loc[k, rule] == map_at_5(truth, KNNHead(k, rule).fit(X, y).rank(queries)[0])


def test_neighbour_grid_of_numbered_individuals_compares_them_as_names(rng):
    X, y = rng.normal(size=(20, 4)), np.arange(20) % 5
    assert neighbour_grid(X, y, X, y, ks=(1,)).loc[1, "max"] == 1


def test_neighbour_grid_without_numbers_tries_those_of_the_paper_and_more(gallery):
    assert neighbour_grid(*gallery, *gallery).index.tolist() == [1, 3, 5, 10, 20, 50, 75, 100]


@settings(laws, max_examples=25)
@given(galleries(copies=False))
def test_within_map5_of_any_set_asks_each_photograph_among_the_others(case):
    X, y, _ = case
    scores = []
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        if y[i] in y[rest]:
            ids, _ = KNNHead().fit(X[rest], y[rest]).rank(X[i : i + 1])
            scores.append(average_precision(y[i : i + 1], ids)[0])
    expected = np.mean(scores) if scores else np.nan
    assert within_map5(X, y) == pytest.approx(expected, nan_ok=True)


# Below, a study's answers are made from drawn lists or embeddings, without a network.

KIND = pd.Series(["orca"] * 4 + ["minke"] * 4, index=list("abcdefgh"))


FOLDS = count()  # folds share no photographs


def drawn_fold(rng, n=60, tests=30):
    """What `rank_fold` gives: a third of the photographs shows new animals, with lower scores."""
    new = rng.random(n) < 0.3
    ids = np.stack([rng.permutation(list("abcdefgh"))[:6] for _ in range(n + tests)])
    scores = -np.sort(-rng.normal(0.5, 0.15, (n + tests, 6)), axis=1)
    scores[:n] -= 0.25 * new[:, None]
    who = ids[np.arange(n), np.minimum(rng.geometric(0.6, n) - 1, 5)]
    queries = Ranking(
        images=np.char.add(f"q{next(FOLDS)}_", np.arange(n).astype(str)),
        ids=ids[:n],
        scores=scores[:n],
        species_of=KIND,
        individuals=np.where(new, "stranger", who),
        species=np.where(new, "orca", KIND[who].to_numpy(str)),
        truth=np.where(new, NEW, who),
    )
    names = np.char.add("t", np.arange(tests).astype(str))
    return Fold(queries, Ranking(images=names, ids=ids[n:], scores=scores[n:], species_of=KIND) if tests else None)


def together(folds, *names):
    """Columns of the queries of several folds, one behind the other."""
    return [np.concatenate([getattr(fold.queries, name) for fold in folds]) for name in names]


def test_add_new_individual_of_several_folds_takes_each_threshold_from_the_others(rng):
    ranked = [drawn_fold(rng) for _ in range(3)]
    predicted, thresholds = add_new_individual(ranked)
    level = fit_threshold(*together(ranked, "ids", "scores", "truth"))
    assert thresholds == OpenSetThresholds(level, None, {}, [level] * 3)
    for i, (before, fold) in enumerate(zip(ranked, predicted, strict=True)):
        own = fit_threshold(*together([o for j, o in enumerate(ranked) if j != i], "ids", "scores", "truth"))
        for asked, found, expected in ((before.queries, fold.queries, own), (before.test, fold.test, level)):
            assert found.threshold.tolist() == [expected] * len(asked.ids)
            assert (found.predictions == rank_new(asked.ids, asked.scores, expected)).all()
            assert found.predicted_species.tolist() == KIND[asked.ids[:, 0]].tolist()
            assert found.truth is asked.truth and found.images is asked.images


def test_add_new_individual_of_one_fold_takes_the_threshold_from_itself(rng):
    ranked = [drawn_fold(rng, tests=0)]
    (fold,), thresholds = add_new_individual(ranked)
    assert fold.queries.threshold.tolist() == [fit_threshold(*together(ranked, "ids", "scores", "truth"))] * 60
    assert thresholds.by_fold == [] and fold.test is None


def test_add_new_individual_with_species_gives_each_its_threshold(rng):
    ranked = [drawn_fold(rng) for _ in range(2)]
    predicted, thresholds = add_new_individual(ranked, PredictionOptions(prior_new=0.5, species_shrinkage=20))
    names = ("ids", "scores", "truth", "predicted_species")
    common, own = fit_species_thresholds(*together(ranked, *names), 20, 0.5)
    assert (thresholds.threshold, thresholds.species) == (common, own) and len(set(own.values())) == 2
    for fold, other in zip(predicted, ranked[::-1], strict=True):
        _, here = fit_species_thresholds(*together([other], *names), 20)
        assert fold.queries.threshold.tolist() == [here[name] for name in fold.queries.predicted_species]
        assert fold.test.threshold.tolist() == [own[name] for name in fold.test.predicted_species]
    assert thresholds.by_fold == [float(np.median(fold.test.threshold)) for fold in predicted]


def test_add_new_individual_with_a_share_of_new_animals_changes_the_test_only(rng):
    ranked = [drawn_fold(rng) for _ in range(2)]
    plain, _ = add_new_individual(ranked)
    shared, thresholds = add_new_individual(ranked, PredictionOptions(prior_new=0.8))
    level = fit_threshold(*together(ranked, "ids", "scores", "truth"), 0.8)
    assert thresholds.prior_new == 0.8 and thresholds.threshold == level
    for one, other in zip(plain, shared, strict=True):
        assert (one.queries.threshold == other.queries.threshold).all() and (other.test.threshold == level).all()
    assert level > plain[0].test.threshold[0]
    _, thresholds = add_new_individual(ranked, PredictionOptions(prior_new=-1))
    found = [estimate_prior_new(*together(ranked, "scores", "truth"), fold.test.scores) for fold in ranked]
    assert thresholds.prior_new == pytest.approx(np.mean(found))
    _, thresholds = add_new_individual([drawn_fold(rng, tests=0)], PredictionOptions(prior_new=-1))
    assert thresholds.prior_new is None  # nothing to estimate it from


def test_add_new_individual_by_share_calls_that_share_of_each_test_new(rng):
    ranked = [drawn_fold(rng) for _ in range(2)]
    for share in (0.3, None):
        predicted, _ = add_new_individual(ranked, PredictionOptions(prior_new=share, match_prior=True))
        wanted = share or np.mean(together(ranked, "truth")[0] == NEW)
        for fold in predicted:
            assert (fold.test.threshold == threshold_for_fraction(fold.test.scores, wanted)).all()
            assert np.mean(fold.test.predictions[:, 0] == NEW) == pytest.approx(wanted, abs=1 / 30)


def level_among(scores, threshold):
    """Scores with the threshold at its place."""
    return -np.sort(-np.column_stack([scores, threshold]), axis=1)


@pytest.mark.parametrize("folds", [1, 3])
def test_calibrate_folds_learns_from_the_other_folds_or_the_only_one(rng, folds):
    predicted, _ = add_new_individual([drawn_fold(rng) for _ in range(folds)])
    calibrated = calibrate_folds(predicted, 0.2)
    names = ("ids", "scores", "threshold", "truth", "predicted_species")

    def confidence(learnt):
        right = [fold.queries.predictions[:, 0] == fold.queries.truth for fold in learnt]
        scores = [level_among(fold.queries.scores, fold.queries.threshold) for fold in learnt]
        return TopOneCalibrator().fit(np.concatenate(scores), np.concatenate(right))

    for i, fold in enumerate(calibrated):
        others = [o for j, o in enumerate(predicted) if j != i] or predicted
        for found, learnt in ((fold.queries, others), (fold.test, predicted)):
            sets = CandidateSets(0.2).fit(*together(learnt, *names))
            assert (
                found.candidate_sets
                == sets.predict_sets(found.ids, found.scores, found.threshold, found.predicted_species)
            ).all()
            assert (found.confidence == confidence(learnt).predict(level_among(found.scores, found.threshold))).all()


@pytest.mark.parametrize("folds", [1, 2])
def test_evaluate_of_all_folds_equals_the_metrics_of_their_rows(rng, folds):
    calibrated = calibrate_folds(add_new_individual([drawn_fold(rng) for _ in range(folds)])[0], 0.2)
    figures = evaluate([fold.queries for fold in calibrated], 0.2)
    truth, answers, who, ids, scores, sure, listed = together(
        calibrated, "truth", "predictions", "individuals", "ids", "scores", "confidence", "candidate_sets"
    )
    known, values, first = truth != NEW, average_precision(truth, answers), answers[:, 0]
    assert figures["cmc_known"] == cmc(truth[known], ids[known])
    assert figures["intervals"] == {
        "map5": bootstrap_interval(values, who),
        "map5_known": bootstrap_interval(values[known], who[known]),
    }
    by_fold = student_interval([map_at_5(fold.queries.truth, fold.queries.predictions) for fold in calibrated])
    assert figures["folds"] == pytest.approx(by_fold, nan_ok=True)
    expected = classification_metrics(truth, first) | balanced_accuracies(truth, first, who)
    expected |= {"auroc_new": auroc_new(truth, scores[:, 0])}
    expected |= {name: calibration_metrics(first == truth, sure)[name] for name in ("ece", "brier")}
    assert {name: figures[name] for name in expected} == expected
    sizes = (listed != "").sum(axis=1)
    said = figures["candidate_sets"]
    held = rank_of_truth(truth, listed) > 0 if folds > 1 else held_by_others([calibrated[0].queries], 0.2)
    assert said["coverage"] == pytest.approx(held.mean()) and said["encounters"] == len(truth)
    assert said["low"] <= said["coverage"] <= said["high"] and said["promised"] == (said["high"] >= 0.8)
    assert (said["alpha"], said["mean_size"], said["largest"]) == (0.2, sizes.mean(), sizes.max())
    if folds > 1:
        (one,) = {fold.queries.coverage[0].sentence for fold in calibrated[:1]}
        assert one.startswith("lists like this held") == calibrated[0].queries.coverage[0].is_kept


def with_bursts(fold, name):
    """The fold's queries in encounters of five, some of which another fold has as well."""
    n = len(fold.queries.images)
    encounters = np.array([f"{name}{i // 5}" if i >= 10 else f"shared{i // 5}" for i in range(n)])
    return Fold(replace(fold.queries, encounters=encounters), fold.test)


def test_folds_learn_nothing_from_encounters_that_they_share(rng):
    ranked = [with_bursts(drawn_fold(rng), name) for name in "ab"]
    predicted, _ = add_new_individual(ranked)
    names = ("ids", "scores", "threshold", "truth", "predicted_species")
    calibrated = calibrate_folds(predicted, 0.2)
    for i, fold in enumerate(predicted):
        other = predicted[1 - i].queries
        apart = ~np.isin(other.encounters, fold.queries.encounters)
        assert apart.sum() == len(apart) - 10
        learnt = [np.asarray(getattr(other, name))[apart] for name in names]
        assert fold.queries.threshold[0] == fit_threshold(learnt[0], learnt[1], learnt[3])
        sets, own = CandidateSets(0.2).fit(*learnt), fold.queries
        expected = sets.predict_sets(own.ids, own.scores, own.threshold, own.predicted_species)
        assert (calibrated[i].queries.candidate_sets == expected).all()
    said = evaluate([fold.queries for fold in calibrated], 0.2)["candidate_sets"]
    units = np.concatenate([fold.queries.encounters for fold in predicted])
    assert said["encounters"] == len(set(units)) < len(units)


@pytest.mark.parametrize("folds", [1, 2])
def test_lists_of_a_weak_network_are_not_promised(rng, folds, tmp_path):
    """Candidates without the animal: lists limited in length cannot hold it nine times in ten."""
    weak = []
    for _ in range(folds):
        fold = drawn_fold(rng)
        absent = np.where(rng.random(len(fold.queries.truth)) < 0.8, "z", fold.queries.truth)
        weak.append(Fold(replace(fold.queries, truth=absent), fold.test))
    calibrated = calibrate_folds(add_new_individual(weak)[0], 0.1)
    said = evaluate([fold.queries for fold in calibrated])["candidate_sets"]
    assert said["coverage"] < 0.4 and not said["promised"]
    assert said["says"].startswith("no short list can be promised here")
    test = calibrated[0].test
    write_candidate_sets(tmp_path / "t.csv", test.images, test.confidence, test.candidate_sets, test.coverage)
    table = pd.read_csv(tmp_path / "t.csv")
    assert table["says"].str.startswith("no short list can be promised here").all()
    assert (table["coverage_high"] < 0.9).all() and (table["coverage_low"] <= table["coverage"]).all()
    _, listed = read_candidate_sets(tmp_path / "t.csv", test.images)
    assert listed.shape[0] == len(test.images)


def test_choose_examples_are_the_surest_right_and_wrong_ones_and_new_animals_taken_for_known():
    first = np.array(["a", "a", "b", "c", NEW, "a", "b"])
    truth = np.array(["a", "a", "a", "a", NEW, NEW, NEW])
    sure = np.array([0.5, 0.9, 0.3, 0.8, 0.95, 0.2, 0.6])
    ids = np.where(first == NEW, "z", first)[:, None]
    ranking = Ranking(images=first, ids=ids, scores=np.ones((7, 1)), species_of=KIND, truth=truth)
    prediction = ranking.with_new_individual(np.where(first == NEW, 2.0, 0.0)).calibrated(sure, first[:, None])
    folds = {4: prediction}
    table = choose_examples(folds, each=2)
    assert table["kind"].tolist() == ["right", "right", "wrong", "wrong", "new", "new"]
    assert table["row"].tolist() == [1, 0, 3, 2, 6, 5] and set(table["fold"]) == {4}
    of_each_three = choose_examples(folds)["row"].tolist()
    assert of_each_three == [1, 0, 3, 2, 6, 5, 4]  # the new one that was called new comes last


def drawn_evidence(rng, truth, width, helpful):
    """`Evidence` of queries: the truth among `width` candidates, known by its local score if that is helpful."""
    ids = np.array([[t, *[o for o in "abcdefghij" if o != t][: width - 1]] for t in truth])
    cosine, local = rng.normal(0.5, 0.1, ids.shape), rng.normal(1, 0.3, ids.shape)
    local[:, 0] += 3 * helpful
    order = np.argsort(-cosine, axis=1)
    return Evidence(*(np.take_along_axis(part, order, axis=1) for part in (ids, cosine, local)))


def evidence_fold(rng, width, helpful=True, new=0):
    """A fold ranked by cosine, and the evidence for its queries and for its test; the first `new` queries are new."""
    truth = rng.choice(list("abcdefgh"), 40)
    own, test = (drawn_evidence(rng, who, width, helpful) for who in (truth, rng.choice(list("abcd"), 10)))

    def ranking(evidence, **told):
        names = np.arange(len(evidence.ids)).astype(str)
        lists = {"ids": evidence.ids[:, :5], "scores": evidence.cosine[:, :5]}
        return Ranking(images=names, species_of=KIND, **lists, **told)

    named = np.where(np.arange(40) < new, NEW, truth)
    return Fold(ranking(own, truth=named, individuals=truth), ranking(test)), (own, test)


def cut(evidence, width):
    """The first candidates."""
    return Evidence(evidence.ids[:, :width], evidence.cosine[:, :width], evidence.local[:, :width])


def test_fuse_local_of_several_folds_reranks_each_by_the_others_and_the_test_by_all(rng):
    parts = [evidence_fold(rng, width) for width in (8, 6)]
    ranked = [fold for fold, _ in parts]
    fused, figures = fuse_local(ranked, [e for _, e in parts])
    for i, (fold, (_, (own, test))) in enumerate(zip(fused, parts, strict=True)):
        other, evidence = parts[1 - i]
        ids, scores = rerank(own, Fusion().fit(evidence[0], other.queries.truth).probabilities(own), 10)
        assert (fold.queries.ids == ids).all() and np.allclose(fold.queries.scores, scores)
        one, two = (cut(e, 6) for _, (e, _) in parts)
        both = Evidence(*(np.concatenate(p) for p in zip(*(vars(e).values() for e in (one, two)), strict=True)))
        every = Fusion().fit(both, *together(ranked, "truth"))
        ids, scores = rerank(test, every.probabilities(test), 10)
        assert (fold.test.ids == ids).all() and np.allclose(fold.test.scores, scores)
    assert figures["fused"] == map_at_5(*together(fused, "truth", "ids"))
    assert figures["cosine"] == map_at_5(*together(ranked, "truth", "ids"))
    assert figures["gain"] == pytest.approx(figures["fused"] - figures["cosine"]) and figures["low"] > 0


def test_fuse_local_of_one_fold_learns_from_its_other_animals(rng):
    fold, evidence = evidence_fold(rng, 8)
    (fused,), figures = fuse_local([fold], [evidence])
    expected = rerank(evidence[0], cross_probabilities(evidence[0], fold.queries.individuals), 10)[0]
    assert figures["used"] and (fused.queries.ids == expected).all()


def test_fuse_local_judges_by_known_animals_and_changes_nothing_without_gain(rng):
    fold, evidence = evidence_fold(rng, 8, helpful=False, new=10)
    same, figures = fuse_local([fold, fold], [evidence, evidence])
    assert figures["cosine"] == map_at_5(fold.queries.truth[10:], fold.queries.ids[10:])
    assert not figures["used"] and same[0] is same[1] is fold


def photographs():
    """Thirty-six photographs of eight animals in three folds, of which one pair of rows is only asked about, and their
    folds table; one animal has a single photograph."""
    who = np.array([*np.repeat(list("abcdefg"), 5), "h"])
    folds = pd.DataFrame({"image": [f"{i:02}.jpg" for i in range(36)], "individual_id": who})
    folds["species"], folds["fold"], folds["protocol"] = KIND[who].to_numpy(str), np.arange(36) % 3, "given"
    return folds.assign(query_only=(np.arange(36) < 2).astype(int))


@pytest.fixture
def trained(tmp_path, rng):
    """A study's folder with embeddings as of three trained folds, its data and its folds. Its test photographs have
    names that training photographs have too."""
    folds = photographs()
    tests = pd.DataFrame({"image": [f"{i:02}.jpg" for i in range(9)]})
    data = SimpleNamespace(root=tmp_path, train=folds, test=tests, fingerprint="0123456789abcdef")
    parts, middle = np.repeat(["train", "test"], [36, 9]), rng.normal(size=(8, 6))
    for k in range(3):
        place = tmp_path / "small" / f"fold{k}"
        place.mkdir(parents=True)
        code = np.array([*(ord(name) - ord("a") for name in folds["individual_id"]), *np.arange(9) % 8])
        X = middle[code] + 0.5 * rng.normal(size=(45, 6))
        X /= np.linalg.norm(X, axis=1, keepdims=True)
        write_embeddings(place / "embeddings.parquet", image_embeddings(parts, [*folds["image"], *tests["image"]], X))
        centres = ClassCentres(np.array(list("abcdefgh")), middle / np.linalg.norm(middle, axis=1, keepdims=True))
        write_centres(place / "centres.parquet", centres)
        told = {name: {} for name in ("protocol", "parameters", "result", "versions")} | {"stamp": f"s{k}"}
        write_json(place / "config.json", told)
    return SimpleNamespace(folder=tmp_path, data=data, folds=folds)


def vectors_of(trained, fold, images, part="train"):
    """Embeddings of a fold."""
    return read_embeddings(trained.folder / "small" / f"fold{fold}" / "embeddings.parquet").of(part, images)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_rank_fold_searches_the_folds_gallery_and_for_the_test_all_usable_photographs(trained, share):
    folds, place = trained.folds, trained.folder / "small" / "fold1"
    found = rank_fold(place, trained.data, folds, 1, KNNHead(centre_weight=share), 7)
    query, usable = folds["fold"] == 1, folds["query_only"] == 0
    who, rest = folds["individual_id"].to_numpy(str), (~query & usable).to_numpy()
    asked, tests = found.queries, trained.data.test["image"]
    assert asked.images.tolist() == folds["image"][query].tolist() and "01.jpg" in asked.images
    assert asked.individuals.tolist() == who[query].tolist()
    assert asked.species.tolist() == folds["species"][query].tolist()
    assert asked.truth.tolist() == [name if name in who[rest] else NEW for name in who[query]]
    assert asked.species_of.to_dict() == KIND.to_dict() and found.test.truth is None
    assert found.test.images.tolist() == tests.tolist()
    table = read_centres(place / "centres.parquet")
    sides = ((asked, "train", folds["image"][query], rest), (found.test, "test", tests, usable))
    for ranking, part, images, rows in sides:
        head = KNNHead(centre_weight=share).fit(
            vectors_of(trained, 1, folds["image"][rows]), who[rows], (table.individual_ids, table.vectors)
        )
        ids, scores = head.rank(vectors_of(trained, 1, images, part), 7)
        assert (ranking.ids == ids).all() and np.allclose(ranking.scores, scores)


def test_rank_fold_of_files_of_before_ranks_as_of_those_of_today(trained):
    place, tests = trained.folder / "small" / "fold1", [f"t{i}.jpg" for i in range(9)]
    stored, centres = read_embeddings(place / "embeddings.parquet"), read_centres(place / "centres.parquet")
    images = [*trained.folds["image"], *tests]
    data = SimpleNamespace(test=pd.DataFrame({"image": tests}), fingerprint="d")
    write_embeddings(place / "embeddings.parquet", image_embeddings(stored.parts, images, stored.vectors))
    today = rank_fold(place, data, trained.folds, 1, KNNHead(centre_weight=0.3))
    files = {"embeddings": (images, stored.vectors), "centres": (centres.individual_ids.tolist(), centres.vectors)}
    for name, (keys, vectors) in files.items():
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        parquet.write_table(pa.table({"image": keys, "embedding": column}), place / f"{name}.parquet")
    before = rank_fold(place, data, trained.folds, 1, KNNHead(centre_weight=0.3))
    for a, b in ((today.queries, before.queries), (today.test, before.test)):
        assert (a.images == b.images).all() and (a.ids == b.ids).all() and (a.scores == b.scores).all()


def test_rank_fold_without_test_photographs_ranks_none(trained):
    data = SimpleNamespace(**vars(trained.data) | {"test": trained.data.test.iloc[:0]})
    found = rank_fold(trained.folder / "small" / "fold0", data, trained.folds, 0, KNNHead())
    assert found.test is None and found.queries.ids.shape == (12, 10)


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5])
def test_prediction_options_of_a_share_out_of_range_are_refused(share):
    with pytest.raises(UserError, match=r"must be between 0 and 1 \(or -1: estimate it\)"):
        PredictionOptions(prior_new=share)


@pytest.mark.parametrize("share", [None, -1, 0.4])
def test_knn_stage_of_a_study_writes_what_its_predicted_folds_say(trained, share):
    options, data, folds = PredictionOptions(prior_new=share, alpha=0.3), trained.data, trained.folds
    result = knn_stage(data, trained.folder, "small", folds, KNNHead(5), options)
    prediction = predict_folds(data, trained.folder, "small", folds, KNNHead(5), options)
    thresholds, predicted = prediction.thresholds, prediction.folds
    assert result["for_test"] == vars(thresholds) | {"rerank": None}
    assert 0 < thresholds.prior_new < 1 if share == -1 else thresholds.prior_new == share
    truth, answers, species = together(predicted.values(), "truth", "predictions", "species")
    assert list(predicted) == [0, 1, 2] and result["threshold"] == thresholds.threshold
    assert result["oof"] == pytest.approx(summary(truth, answers))
    assert list(result["folds"]) == ["0", "1", "2"] and set(result["species"]) == {"orca", "minke"}
    for name, figures in result["species"].items():
        expected = summary(truth[species == name], answers[species == name])
        assert {k: v for k, v in figures.items() if v is not None} == pytest.approx(
            {k: v for k, v in expected.items() if not np.isnan(v)}
        )
    assert result["open_set"]["candidate_sets"]["alpha"] == 0.3 and result["protocol"]["folds"] == 3
    for k, fold in predicted.items():
        place = trained.folder / "small" / f"fold{k}"
        queries = fold.queries
        assert result["folds"][str(k)]["map5"] == pytest.approx(map_at_5(queries.truth, queries.predictions))
        for part, said in (("oof", queries), ("test", fold.test)):
            images, written = read_predictions(place / f"{part}.csv")
            assert images.tolist() == said.images.tolist() and (written == said.predictions).all()
            ids, scores = read_scores(place / f"{part}_scores.parquet", images)
            assert (ids == said.ids).all() and np.allclose(scores, said.scores)
            confidence, listed = read_candidate_sets(place / f"{part}_lists.csv", images)
            width = listed.shape[1]
            assert (listed == said.candidate_sets[:, :width]).all() and (said.candidate_sets[:, width:] == "").all()
            assert confidence == pytest.approx(said.confidence, abs=1e-4)
        metrics = json.loads((place / "metrics.json").read_text())
        assert metrics["threshold_from"] == "the other folds" and metrics["stamp"] == f"s{k}"
        assert metrics["threshold"] == np.median(queries.threshold) and metrics["oof"] == result["folds"][str(k)]


def test_read_folds_of_a_finished_stage_gives_what_it_has_answered(trained):
    study = (trained.folder, "small", trained.folds)
    knn_stage(trained.data, *study, KNNHead(5))
    prediction = predict_folds(trained.data, *study, KNNHead(5))
    read = read_folds(*study)
    assert list(read) == list(prediction.folds)
    for k, found in read.items():
        said = prediction.folds[k].queries
        for name in (
            "images",
            "ids",
            "individuals",
            "species",
            "truth",
            "threshold",
            "predictions",
            "predicted_species",
        ):
            assert (getattr(found, name) == getattr(said, name)).all(), name
        assert np.allclose(found.scores, said.scores) and np.allclose(found.confidence, said.confidence, atol=1e-4)
        assert (found.candidate_sets == said.candidate_sets[:, : found.candidate_sets.shape[1]]).all()
    (trained.folder / "small" / "fold1" / "oof_lists.csv").unlink()
    with pytest.raises(UserError, match=r"oof_lists\.csv"):
        read_folds(*study)


def test_knn_stage_that_is_done_is_not_done_again(trained, monkeypatch):
    given_study = (trained.data, trained.folder, "small", trained.folds)
    found, asked = predict_folds(*given_study, KNNHead(5)), []
    monkeypatch.setattr(knn, "predict_folds", lambda *given: asked.append(given[-1]) or found)

    def done_again(head=5, force=False, **options):
        before = len(asked)
        knn_stage(*given_study, KNNHead(head), PredictionOptions(**options), force)
        return len(asked) > before

    assert done_again() and not done_again() and done_again(force=True)
    assert done_again(alpha=0.2) and asked[-1] == PredictionOptions(alpha=0.2) and done_again(head=6) and done_again()
    for name in ("test.csv", "oof_scores.parquet", "metrics.json"):
        (trained.folder / "small" / "fold2" / name).unlink()
        assert done_again() and not done_again()
    others = read_embeddings(trained.folder / "small" / "fold1" / "embeddings.parquet")
    write_embeddings(trained.folder / "small" / "fold0" / "embeddings.parquet", others)  # trained again
    assert done_again() and not done_again()


def test_predict_folds_with_local_features_describes_each_photograph_once(trained, rng, monkeypatch):
    sides = []

    def described(data, folder, parameters, images, part="train"):
        sides.append((part, parameters, len(images)))
        return [marks(rng, 5) for _ in images]

    monkeypatch.setattr(reranking, "crop_features", described)
    write_json(trained.folder / "small" / "fold0" / "config.json", {"parameters": {"preset": "small"}})
    study = (trained.data, trained.folder, "small", trained.folds)
    prediction = predict_folds(*study, KNNHead(5), PredictionOptions(rerank_top=3))
    assert sorted(sides) == [("test", {"preset": "small"}, 9), ("train", {"preset": "small"}, 36)]
    assert set(prediction.rerank) == {"cosine", "fused", "gain", "low", "high", "used"}
    assert list(prediction.folds) == [0, 1, 2]


def test_known_queries_leaves_out_animals_that_the_gallery_lacks(trained):
    folds = trained.folds
    parts = list(known_queries(trained.folder, "small", folds, [0, 2]))
    for k, (X, y, queries, truth) in zip((0, 2), parts, strict=True):
        gallery, query = gallery_and_queries(folds, k)
        who = folds["individual_id"].to_numpy(str)
        rows = query & np.isin(who, who[gallery])
        assert y.tolist() == who[gallery].tolist() and truth.tolist() == who[rows].tolist()
        np.testing.assert_array_equal(X, vectors_of(trained, k, folds["image"][gallery]))
        np.testing.assert_array_equal(queries, vectors_of(trained, k, folds["image"][rows]))
    assert "h" not in parts[1][3]  # its only photograph is in fold 2
    strangers = folds.assign(individual_id=np.where(folds["fold"] == 0, "z" + folds["image"], folds["individual_id"]))
    assert list(known_queries(trained.folder, "small", strangers, [0])) == []


def test_study_grid_is_the_mean_of_the_folds(trained):
    parts = list(known_queries(trained.folder, "small", trained.folds, [0, 1]))
    grids = [neighbour_grid(*part) for part in parts]
    found = study_grid(trained.folder, "small", trained.folds, [0, 1])
    np.testing.assert_allclose(found, (grids[0] + grids[1]) / 2)


def test_compare_rules_states_what_each_rule_loses_to_the_first(trained):
    rules = (("max", 8), ("vote", 8), ("vote", 2))
    table = compare_rules(trained.folder, "small", trained.folds, [0, 1, 2], rules)
    assert table.index.tolist() == ["max, k = 8", "vote, k = 8", "vote, k = 2"]
    values, who = {rule: [] for rule in rules}, []
    for X, y, queries, truth in known_queries(trained.folder, "small", trained.folds, [0, 1, 2]):
        who.extend(truth)
        for rule, k in rules:
            values[rule, k].extend(average_precision(truth, KNNHead(k, rule).fit(X, y).rank(queries)[0]))
    for row, (_, found) in zip(table.to_dict("records"), values.items(), strict=True):
        lost = np.subtract(values["max", 8], found)
        low, high = bootstrap_interval(lost, who)
        expected = {"map5": np.mean(found), "lost": lost.mean(), "low": low, "high": high}
        assert row == pytest.approx(expected)
    assert len(set(table["map5"])) == 3
    by_default = compare_rules(trained.folder, "small", trained.folds, [0]).index
    assert by_default.tolist() == ["max, k = 50", "vote, k = 50", "max, k = 1", "vote, k = 1"]


def test_knn_stage_stores_the_tables_of_rules_and_an_older_record_gives_the_same(trained, monkeypatch):
    study = (trained.folder, "small", trained.folds)
    record = knn_stage(trained.data, *study, KNNHead(5))
    older = {name: value for name, value in record.items() if name not in ("neighbour_grid", "rules")}
    computed = read_rule_tables(older, *study)
    monkeypatch.setattr(rule_tables, "known_queries", None)  # what is stored is not computed again
    stored = read_rule_tables(record, *study)
    pd.testing.assert_frame_equal(stored.grid, computed.grid, check_exact=True)
    pd.testing.assert_frame_equal(stored.rules, computed.rules, check_exact=True)
    assert record["neighbour_grid"][0]["neighbours"] == 1
    assert record["rules"][0]["rule"] == "max, k = 50"


def test_rule_tables_without_queries_of_known_animals_are_empty_and_come_back(trained):
    folds = trained.folds
    strangers = folds.assign(individual_id=np.where(folds["fold"] == 0, "z" + folds["image"], folds["individual_id"]))
    study = (trained.folder, "small", strangers)
    tables = compute_rule_tables(*study, [0])
    back = read_rule_tables(tables.as_record(), *study)
    for found in (tables, back):
        assert found.grid.empty and found.rules.empty
        assert found.rules.columns.tolist() == ["map5", "lost", "low", "high"]


def marks(rng, n):
    """`Features` of random places."""
    rows = rng.random((n, 128)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return Features(rng.random((n, 2)).astype(np.float32), np.full(n, 0.1, np.float32), np.zeros(n, np.float32), unit)


def test_local_evidence_is_gathered_once_among_the_folds_gallery(trained, rng):
    folds, tests = trained.folds, trained.data.test["image"]
    known, test, asked = [marks(rng, 8) for _ in range(36)], [marks(rng, 8) for _ in range(9)], []
    place = trained.folder / "small" / "fold1"

    def found(top, others=tests):
        asked.clear()
        return local_evidence(place, folds, 1, top, lambda: asked.append(1) or known, lambda: test, others)

    first, again = found(4), asked.copy()
    assert again and found(4)[0].ids.tolist() == first[0].ids.tolist() and not asked
    gallery, query = gallery_and_queries(folds, 1)
    usable = (folds["query_only"] == 0).to_numpy()
    who, X = folds["individual_id"].to_numpy(str), vectors_of(trained, 1, folds["image"])
    queries = [known[i] for i in np.flatnonzero(query)]
    parts = [(X[query], queries, gallery), (vectors_of(trained, 1, tests, "test"), test, usable)]
    for evidence, (rows, photos, against) in zip(found(4), parts, strict=True):
        others = [known[i] for i in np.flatnonzero(against)]
        expected = match_candidates(rows @ X[against].T, who[against], photos, others, 4)
        assert (evidence.ids == expected.ids).all()
        np.testing.assert_allclose(evidence.local, expected.local, rtol=1e-5)
    assert found(3)[0].ids.shape[1] == 3 and asked  # another question
    write_json(place / "config.json", {"crops": "others"})
    found(3)
    assert asked
