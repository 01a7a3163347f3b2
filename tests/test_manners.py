"""What engineers expect of a library: scikit-learn's manners, arguments that are checked, extras that are named."""

import os
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import happywhale_nb as h
from happywhale_nb.core.artifacts import write_json
from happywhale_nb.core.errors import EXTRA_OF, MissingExtra, UserError, require
from happywhale_nb.data.splits import fold_numbers, gallery_and_queries, make_folds, open_set_truth
from happywhale_nb.data.splitters import GallerySplit
from happywhale_nb.demo.dataset import draw_demo
from happywhale_nb.ensemble.blending import blend_rankings, fit_ranking_weights
from happywhale_nb.evaluation.per_query import tabulate_outcomes
from happywhale_nb.imaging.augmentation import augment
from happywhale_nb.imaging.augmentation_recipes import RECIPES
from happywhale_nb.imaging.crops import load_crop
from happywhale_nb.networks.embedder import Embedder
from happywhale_nb.networks.encoder_card import EncoderCard
from happywhale_nb.networks.presets import configure
from happywhale_nb.retrieval.adapters import EmbeddingAdapter
from happywhale_nb.retrieval.calibration import CandidateProbabilities, TopOneCalibrator, cross_fit_confidence
from happywhale_nb.retrieval.conformal import CandidateSets, CoverageWarning
from happywhale_nb.retrieval.gallery import Gallery
from happywhale_nb.retrieval.identifier import Calibration, calibrate, identify_individual
from happywhale_nb.retrieval.knn import KNNHead, rank_sets
from happywhale_nb.retrieval.local_features import Fusion
from happywhale_nb.retrieval.metrics import classification_metrics, map_at_5, map_at_5_scorer
from happywhale_nb.retrieval.open_set import estimate_prior_new, fit_threshold, rank_new, threshold_for_fraction
from happywhale_nb.retrieval.predictions import read_predictions, write_predictions
from happywhale_nb.retrieval.vectors import unit_length, unit_rows


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def known(rng):
    """Vectors of thirty individuals, four photographs each, in a random order, and their numbers."""
    who = rng.permutation(np.repeat(np.arange(30), 4))
    return rng.standard_normal((30, 16))[who] + 0.9 * rng.standard_normal((120, 16)), who


@pytest.mark.parametrize("kind", [int, str, float, object, np.uint8])
def test_rank_and_predict_give_labels_of_the_dtype_of_y_and_pad_with_nobody(known, kind):
    X, who = known
    y = np.array([f"w{i}" for i in who], object) if kind is object else who.astype(kind)
    head = KNNHead().fit(X, y)
    ids, scores = head.rank(X[:5], 40)
    assert ids.dtype == head.classes_.dtype == head.predict(X[:5]).dtype
    assert (ids[:, 0] == y[:5]).all() and np.isneginf(scores[:, 30:]).all()
    assert not np.isin(ids[:, 30:], head.classes_).any()
    assert map_at_5(y[:5], ids[:, 30:]) == 0
    assert map_at_5(y[:5], ids) == 1


@pytest.mark.parametrize("aggregate", ["max", "vote", "softmax_sum"])
def test_decision_function_and_probabilities_have_the_order_of_the_ranking(known, aggregate):
    X, y = known
    head = KNNHead(20, aggregate).fit(X[:90], y[:90])
    ids, scores = head.rank(X[90:])
    for values in (head.decision_function(X[90:]), head.predict_proba(X[90:])):
        best = head.classes_[np.argsort(-values, axis=1, kind="stable")[:, :5]]
        assert (best == ids)[np.isfinite(scores)].all()
    np.testing.assert_allclose(head.predict_proba(X[90:]).sum(axis=1), 1)


def test_calibrate_makes_the_probabilities_of_the_truth_likelier(known):
    X, y = known
    part = np.arange(120) % 4
    head = KNNHead(temperature=0.005).fit(X[part < 2], y[part < 2])
    there = np.isin(y, head.classes_)
    ask, judge = (part == 2) & there, (part == 3) & there
    rows, codes = np.arange(judge.sum()), np.searchsorted(head.classes_, y[judge])
    before = np.log(head.predict_proba(X[judge])[rows, codes]).mean()
    after = np.log(head.calibrate(X[ask], y[ask]).predict_proba(X[judge])[rows, codes]).mean()
    assert after > before
    with pytest.raises(UserError, match=r"y\[0\]=99 is not in the gallery"):
        head.calibrate(X[:1], [99])


def test_a_head_keeps_the_names_of_columns_and_refuses_others(known):
    X, y = known
    frame = pd.DataFrame(X).rename(columns=str)
    head = KNNHead().fit(frame, y)
    assert head.feature_names_in_.tolist() == list(frame)
    with pytest.raises(ValueError, match="feature names should match"):
        head.predict(frame[frame.columns[::-1]])


def test_scorer_is_map_at_5_in_cross_validation_with_numbers_and_text(known):
    X, y = known
    cv = GallerySplit("stratified", 3)
    found = {kind: cross_val_score(KNNHead(), X, y.astype(kind), scoring=map_at_5_scorer, cv=cv) for kind in (int, str)}
    np.testing.assert_array_equal(found[int], found[str])
    by_hand = [map_at_5(y[q], KNNHead().fit(X[g], y[g]).rank(X[q])[0]) for g, q in cv.split(X, y)]
    np.testing.assert_allclose(found[int], by_hand)
    pipeline = make_pipeline(StandardScaler(), KNNHead())
    search = GridSearchCV(pipeline, {"knnhead__n_neighbors": [1, 20]}, scoring=map_at_5_scorer, cv=cv).fit(X, y)
    assert 0 < search.best_score_ <= 1
    theirs = KNeighborsClassifier(1).fit(X, y)
    assert map_at_5_scorer(theirs, X, y) == 1


@pytest.mark.parametrize("split", ["stratified", "open:0.3", "disjoint", "similar", "encounter", "time", "place"])
def test_gallery_split_counts_the_rows_as_they_are_given(known, split):
    X, y = known
    kind = split.split(":")[0]
    groups = {"similar": y // 2, "encounter": np.arange(120) // 2, "time": pd.date_range("2020-01-01", periods=120)}
    groups = (groups | {"place": np.array(list("abcdefgh"))[y % 8]}).get(kind)
    table = pd.DataFrame({"image": [f"{i:09}" for i in range(120)], "individual_id": y, "species": ""})
    found = list(GallerySplit(split, 3).split(X, y, groups))
    assert len(found) == GallerySplit(split, 3).get_n_splits() == 3
    for gallery, query in found:
        assert not set(gallery) & set(query) and (np.diff(gallery) > 0).all()
        if kind == "disjoint":
            assert not set(y[gallery]) & set(y[query])
        if kind == "open":
            assert set(y[query]) - set(y[gallery])
        if kind in ("similar", "encounter", "place"):
            assert not set(np.asarray(groups)[gallery]) & set(np.asarray(groups)[query])
        if kind == "time":
            assert groups[gallery].max() < groups[query].min()
    if kind in ("stratified", "open", "disjoint"):  # the same folds as those of the table, whatever its order
        shuffled = table.sample(frac=1, random_state=1)
        folds = make_folds(shuffled, 3, split=split)
        for number, (gallery, _) in zip(fold_numbers(folds), found, strict=True):
            names = folds["image"][gallery_and_queries(folds, number)[0]].astype(int)
            assert sorted(names) == gallery.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"individual_id": [None, "a", "b"]}, "individual_id of x is missing (1 such rows)"),
        ({"image": ["x", "x", "z"]}, "x is in the table twice"),
        ({"species": None}, "no column 'species'"),
    ],
)
def test_make_folds_of_a_table_that_cannot_be_split_is_refused(change, said):
    table = pd.DataFrame({"image": list("xyz"), "individual_id": list("aab"), "species": "orca"})
    for name, values in change.items():
        table = table.drop(columns=name) if values is None else table.assign(**{name: values})
    with pytest.raises(UserError, match=re.escape(said)):
        make_folds(table, 2)


@pytest.mark.parametrize(
    ("truth", "predictions", "said"),
    [
        (["7"], [[7]], "truth holds text, predictions numbers"),
        (np.array([7], object), np.array([["7"]], object), "truth holds numbers, predictions text"),
        ([b"a"], [["a"]], "truth holds bytes, predictions text"),
        (["a"], ["a"], "give [n], and [n, m]"),
        (["a"], [[]], "with m from 1"),
        (["a", ""], [["a"], ["b"]], "truth[1] is missing"),
        ([1.0, np.nan], [[1.0], [2.0]], "truth[1] is missing"),
        (["a", "b"], [["a"]], "2 truths for 1 rows"),
    ],
)
def test_metrics_refuse_what_could_only_score_zero(truth, predictions, said):
    with pytest.raises(UserError, match=re.escape(said)):
        map_at_5(truth, predictions)


def test_macro_f1_is_over_the_classes_of_the_truth_or_of_both():
    truth, first = ["a", "a", "b"], ["a", "a", "c"]
    assert classification_metrics(truth, first)["macro_f1"] == 0.5
    assert classification_metrics(truth, first, classes="both")["macro_f1"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="unknown choice of classes 'all'"):
        classification_metrics(truth, first, classes="all")


def test_estimators_have_a_repr_are_cloned_and_say_when_they_are_not_fitted():
    vectors, ids, scores = np.eye(3), [["a", "b"]], [[0.9, 0.5]]
    asked = {
        KNNHead(7): lambda e: e.rank(vectors),
        CandidateSets(0.2): lambda e: e.predict(ids, scores, 0.5),
        TopOneCalibrator("isotonic"): lambda e: e.predict(scores),
        EmbeddingAdapter("lda"): lambda e: e.transform(vectors),
        Fusion(): lambda e: e.probabilities(None),
    }
    for estimator, ask in asked.items():
        copy = clone(estimator)
        assert repr(copy) == repr(estimator) and copy.get_params() == estimator.get_params()
        with pytest.raises(NotFittedError):
            ask(copy)
    assert clone(CandidateProbabilities(bend=2.0)).bend == 2
    asks = (
        lambda g: g.rank(vectors),
        lambda g: g.extend(vectors, ["a"] * 3),
        lambda g: g.under(),
        lambda g: g.counts(),
    )
    for ask in (*asks, lambda g: g.relabel([0], ["a"]), lambda g: identify_individual(g, Calibration(), vectors)):
        with pytest.raises(NotFittedError, match="call fit first"):
            ask(Gallery())


WRONG = {
    "n_neighbors='a'": lambda X, y: KNNHead("a").fit(X, y),
    "n_neighbors=0": lambda X, y: KNNHead(0).fit(X, y),
    "temperature=nan": lambda X, y: KNNHead(temperature=np.nan).fit(X, y),
    "n_ranked=0": lambda X, y: KNNHead().fit(X, y).rank(X, 0),
    "y[0] is ''": lambda X, y: KNNHead().fit(X[:2], ["", "a"]),
    "alpha=2": lambda X, y: CandidateSets(2).fit([["a"]], [[0.5]], 0.4, ["a"]),
    "min_rows=0": lambda X, y: CandidateSets(min_rows=0).fit([["a"]], [[0.5]], 0.4, ["a"]),
    "scores[0, 0] is nan": lambda X, y: CandidateSets().fit([["a"]], [[np.nan]], 0.4, ["a"]),
    "scores[0, 1] is nan": lambda X, y: TopOneCalibrator().fit([[0.5, np.nan]], [True]),
    "method='best'": lambda X, y: TopOneCalibrator("best").fit([[0.5, 0.4]], [True]),
    "prior_new=1.5": lambda X, y: fit_threshold([["a"] * 5], [[0.5] * 5], ["a"], 1.5),
    "fraction_new=2": lambda X, y: threshold_for_fraction([[0.5]], 2),
    "queries[0, 0] is inf": lambda X, y: estimate_prior_new([[0.5]], ["a"], [[np.inf]]),
    "ids have the shape [1, 2]": lambda X, y: rank_new([["a", "b"]], [[0.5]], 0.4),
    "temperature=0": lambda X, y: CandidateProbabilities(0).predict([["a"]], [[0.5]], 0.4),
    "threshold has the shape []": lambda X, y: rank_new([["a"]], [[0.5]], np.nan),
    "threshold has the shape [3]": lambda X, y: rank_new([["a"]], [[0.5]], np.full(3, 0.4)),
    "groups are missing: give the encounter": lambda X, y: list(GallerySplit("encounter").split(X, y)),
    "y mixes text and numbers": lambda X, y: KNNHead().fit(X[:2], np.array(["a", 1], object)),
    "y[1] is None": lambda X, y: KNNHead().fit(X[:2], np.array(["a", None], object)),
    "X has the shape [1, 1, 1, 16]": lambda X, y: KNNHead().fit(X, y).rank(X[:1, None, None]),
    "no row of the gallery is open": lambda X, y: Gallery().fit(X, [""] * len(X)).rank(X),
    "images are float32": lambda X, y: augment(np.zeros((1, 8, 8, 3), np.float32), RECIPES["paper"]),
    "n_splits=1": lambda X, y: list(GallerySplit(n_splits=1).split(X, y)),
    "split 'random' is not known": lambda X, y: list(GallerySplit("random").split(X, y)),
    "scores[1] ascend: 0.1 stands before 0.4": lambda X, y: rank_new([["a", "b"]] * 2, [[0.5, 0.4], [0.1, 0.4]], 0.4),
    "scores[0] ascend": lambda X, y: fit_threshold([["a", "b"]], [[0.1, 0.4]], ["a"]),
    "threshold='high'": lambda X, y: rank_new([["a"]], [[0.5]], "high"),
    "X has the shape [16], sets [1]": lambda X, y: rank_sets(KNNHead().fit(X, y), X[0], ["a"]),
    "sets [2]: give X": lambda X, y: rank_sets(KNNHead().fit(X, y), X[:2], ["a", None]),
    "k='many'": lambda X, y: identify_individual(Gallery().fit(X, y), Calibration(), X[:1], k="many"),
    "calibration is None": lambda X, y: identify_individual(Gallery().fit(X, y), None, X[:1]),
    "allowed is of int64": lambda X, y: Gallery().fit(X, y).under(np.arange(len(X))),
    "left_out is of bool and shape [1]": lambda X, y: Gallery().fit(X, y).under(left_out=[True]),
    "truth has the shape []": lambda X, y: map_at_5(None, [["a"]]),
    "vectors [], individuals []": lambda X, y: calibrate(None, None),
    "individuals [2]": lambda X, y: open_set_truth(["a", None], ["a"]),
    "train is None": lambda X, y: make_folds(None),
    "predictions is None": lambda X, y: blend_rankings(None),
    "root is None": lambda X, y: draw_demo(None),
    "encoder is of the type int": lambda X, y: Embedder(3),
    "preset is None": lambda X, y: configure(None),
    "a crop's size is one number": lambda X, y: load_crop("a.jpg", None),
    "path is None": lambda X, y: load_crop(None, 32),
    "box=(1, 2)": lambda X, y: load_crop("a.jpg", 32, (1, 2)),
    "recipe='paper'": lambda X, y: augment(np.zeros((1, 8, 8, 3), np.uint8), "paper"),
    "seed=-1": lambda X, y: augment(np.zeros((1, 8, 8, 3), np.uint8), RECIPES["paper"], -1),
    "this recipe's is [1, 22]": lambda X, y: augment(np.zeros((1, 8, 8, 3), np.uint8), RECIPES["paper"], 0, X),
    "y mixes text and numbers: name": lambda X, y: KNNHead().fit(X[:2], [1, "w01"]),
    "y[0] is nan": lambda X, y: KNNHead().fit(X[:2], [np.nan, "w01"]),
    "y has no name for some rows": lambda X, y: EmbeddingAdapter("within").fit(X, [np.nan, *map(str, y[1:])]),
    "seed='x'": lambda X, y: EmbeddingAdapter("within", seed="x").fit(X, y),
    "rows are of bool": lambda X, y: Gallery().fit(X, y).replace(np.zeros(len(X), bool), X),
    "rows are of float64": lambda X, y: Gallery().fit(X, y).relabel([1.7], ["zz"]),
    "held_out is of int64": lambda X, y: calibrate(X, y, held_out=y % 3 - 1),
    "held_out is of object": lambda X, y: calibrate(X, y, held_out=pd.array([True, None] * 60)),
    "'new_individual' is not an individual: give such": lambda X, y: calibrate(X, ["new_individual", *y[1:]]),
    "seed=-1: give a whole": lambda X, y: calibrate(X, y, seed=-1),
    "truth[0] is missing": lambda X, y: fit_threshold([["a"]] * 2, [[0.5]] * 2, [None, "a"]),
    "truth[1] is missing": lambda X, y: CandidateSets().fit([["a"]] * 2, [[0.5]] * 2, 0.4, ["a", ""]),
    "ids hold 'new_individual' already": lambda X, y: rank_new([["new_individual"]], [[0.5]], 0.4),
    "ids hold 'new_individual'": lambda X, y: fit_threshold([["new_individual"]], [[0.5]], ["a"]),
    "threshold is infinite": lambda X, y: CandidateSets().fit([["a"]], [[0.5]], np.inf, ["a"]),
    "weights['a']=0.0001: weights count": lambda X, y: blend_rankings({"a": [["x"]]}, {"a": 1e-4}),
    "weights is of the type list": lambda X, y: blend_rankings({"a": [["x"]]}, [1]),
    "the name 0 of a model is of the type int": lambda X, y: blend_rankings({0: [["x"]]}),
    "folds have the shape [1], or a gap": lambda X, y: fit_ranking_weights({"a": [["x"]]}, ["x"], [np.nan]),
    "gallery is of the type KNNHead": lambda X, y: identify_individual(KNNHead().fit(X, y), Calibration(), X),
    "X has the shape [0]": lambda X, y: Gallery().fit([], []),
    "y[1]=None is not in the gallery": lambda X, y: KNNHead().fit(X, y).calibrate(X[:2], np.array([0, None])),
    "y[0]='0' is not in the gallery": lambda X, y: KNNHead().fit(X, y).calibrate(X[:1], ["0"]),
    "centre_weight needs": lambda X, y: KNNHead(centre_weight=0.5).fit(X, y, centres=5),
    "weights and predictions differ in b": lambda X, y: blend_rankings({"a": [["x"]]}, {"a": 1, "b": 1}),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_argument_is_named_with_its_value(known, said):
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        WRONG[said](*known)
    assert isinstance(refused.value, UserError) and "\n" not in str(refused.value)


def test_rankings_are_padded_to_their_length():
    assert rank_new([["a", "b"]], [[0.5, 0.3]], 0.4, 5).tolist() == [["a", "new_individual", "b", "", ""]]


def test_nothing_that_cannot_be_compared_warns_before_it_is_refused():
    for wrong in (np.nan, np.inf, -np.inf):
        for dtype in (np.float32, np.float64):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(UserError, match="NaN or an infinity"):
                    unit_rows(np.array([[1e30, 1], [wrong, 1]], dtype))


def test_embedding_adapter_is_a_transformer_as_scikit_learn_wants_them():
    zero = {"check_estimators_dtypes": "a vector of zeros has no direction: it is refused by its row"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(EmbeddingAdapter("within"), expected_failed_checks=zero, on_skip=None)


def test_groups_are_routed_to_the_splitter(known):
    X, y = known
    how = {"cv": GallerySplit("encounter", 3), "scoring": map_at_5_scorer}
    wanted = cross_val_score(KNNHead(), X, y, groups=np.arange(120) // 2, **how)
    with config_context(enable_metadata_routing=True):
        found = cross_val_score(KNNHead(), X, y, params={"groups": np.arange(120) // 2}, **how)
    assert found.tolist() == wanted.tolist()


def test_numbers_of_any_kind_of_column_name_the_same_individuals(known, tmp_path):
    X, y = known
    plain = KNNHead().fit(X, y)
    for kind in ("Int64", "int64[pyarrow]", "UInt8"):
        column = pd.Series(y, dtype=kind)
        head = KNNHead().fit(X, column)
        assert head.classes_.tolist() == plain.classes_.tolist() and head.classes_.dtype.kind == "i"
        assert open_set_truth(column, column[:60]).tolist() == open_set_truth(y, y[:60]).tolist()
    assert len(KNNHead().fit(X[:2], pd.Series([2**53, 2**53 + 1], dtype="Int64")).classes_) == 2
    with_gap = pd.Series([1, 2, None])  # float
    assert open_set_truth([1, 2, 3], with_gap).tolist() == ["1", "2", "new_individual"]
    both = {"float": with_gap.to_numpy()[:2, None], "int": np.array([[1], [3]])}
    assert blend_rankings(both)[:, 0].tolist()[0] == "1"
    assert tabulate_outcomes([1, 2], [[1], [2]], gallery=with_gap)["known"].tolist() == [1, 1]
    write_predictions(tmp_path / "p.csv", ["a.jpg", "b.jpg"], KNNHead().fit(X[:3], [0, 5, 6]).rank(X[:2])[0])
    assert sorted(" ".join(read_predictions(tmp_path / "p.csv")[1][0]).split()) == ["0", "5", "6"]


def test_predictions_that_a_file_cannot_hold_are_refused(tmp_path):
    for images, rows, said in (
        (["a"], [["Old Tom", "B"]], "'Old Tom' of a cannot be written: blanks"),
        (["a", "a"], [["B"], ["C"]], "a is there more than once"),
        (["a"], [["B"], ["C"]], "images 1, predictions 2"),
        (["a"], [[None, float("nan")]], "for a are empty"),
    ):
        with pytest.raises(UserError, match=said):
            write_predictions(tmp_path / "p.csv", images, rows)
    write_predictions(tmp_path / "p.csv", ["a"], [[None, "B", float("nan")]])
    assert (tmp_path / "p.csv").read_text() == "image,predictions\na,B\n"


def test_options_and_temperature_after_calibrate_and_of_a_gallery(known):
    X, y = known
    head = KNNHead().fit(X, y)
    flat = head.set_params(temperature=0.5).predict_proba(X[:5])
    assert (flat == KNNHead(temperature=0.5).fit(X, y).predict_proba(X[:5])).all()
    head.calibrate(X + 0.1, y)
    assert clone(head).get_params() == head.get_params()
    with pytest.raises(UserError, match="aggregate='vote' was set after calibrate: calibrate again"):
        head.set_params(aggregate="vote").predict_proba(X[:5])
    assert head.calibrate(X, y).predict_proba(X[:5]).shape == (5, 30)
    gallery = Gallery().fit(X, y)
    gallery.head.set_params(aggregate="vot")
    with pytest.raises(UserError, match="aggregate='vot' is not known"):
        gallery.rank(X[:2])


def test_time_is_split_by_numbers_times_and_dates_alike(known):
    X, y = known
    day = np.random.default_rng(0).integers(0, 300, 120)
    dates = pd.Timestamp("2015-03-01") + pd.to_timedelta(day, unit="D")
    split = lambda groups: [q.tolist() for _, q in GallerySplit("time", 3).split(X, y, groups)]  # noqa: E731
    assert split(day) == split(dates) == split(dates.strftime("%Y-%m-%d")) == split(day * 86400.0 + 1e9)
    with pytest.raises(UserError, match=r"groups\[1\]='soon' is not a date such as"):
        split(["2015-03-01", "soon"] * 60)
    with pytest.raises(UserError, match="groups are missing: give the time of each row"):
        split(None)


def test_no_queries_get_no_answers_from_any_method(known):
    X, y = known
    head, none = KNNHead().fit(X, y), np.empty((0, 16))
    assert head.predict(none).shape == (0,) and head.predict_proba(none).shape == (0, 30)
    assert head.decision_function(none).shape == (0, 30) and head.rank(none)[0].shape == (0, 5)
    assert [part.shape for part in head.kneighbors(none)] == [(0, 50)] * 2


def test_a_promise_that_ends_is_told(rng):
    ids = np.array([[f"w{i}" for i in range(5)]] * 200)
    scores = -np.sort(-rng.random((200, 5)), axis=1)
    truth = np.where(rng.random(200) < 0.4, "w0", "nobody here")
    with pytest.warns(CoverageWarning, match="90% cannot be promised"):
        CandidateSets().fit(ids, scores, -1.0, truth)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CandidateSets().fit(ids, scores, -1.0, np.full(200, "w0"))
    X, who = rng.standard_normal((240, 8)), np.repeat(np.arange(60), 4).astype(str)
    with pytest.warns(CoverageWarning, match="no short list can be promised"):
        calibrate(X, who)


def test_vectors_of_any_length_have_a_direction():
    tiny, huge = np.array([[3e-30, 4e-30]]), np.array([[3e300, 4e300]])
    for rows in (tiny, huge, tiny.astype(np.float32), np.array([[3e-320, 4e-320]])):
        np.testing.assert_allclose(unit_length(rows)[0], [[0.6, 0.8]], rtol=1e-3)
        np.testing.assert_allclose(unit_rows(rows), [[0.6, 0.8]], rtol=1e-3)
    assert KNNHead().fit([*tiny, [0.0, 1.0]], ["a", "b"]).predict(huge).tolist() == ["a"]
    ordinary = np.random.default_rng(1).standard_normal((50, 7))
    assert (unit_length(ordinary)[0] == ordinary / np.linalg.norm(ordinary, axis=1, keepdims=True)).all()


def test_a_missing_extra_is_named_in_one_line(monkeypatch):
    assert set(EXTRA_OF.values()) <= {"train", "serve", "study", "notebooks", "export"}
    for package, extra in EXTRA_OF.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            ImportError, match=rf"{package} is not installed: pip install 'happywhale_nb\[{extra}\]'"
        ) as e:
            require(package)
        assert isinstance(e.value, MissingExtra | UserError) and e.value.name == package


# as if only the core was installed: what needs more says so, and everything else works
CORE = """
import sys
for name in "tensorflow keras jax sqlalchemy alembic fastapi uvicorn snakemake papermill nbformat onnxruntime".split():
    sys.modules[name] = None
import inspect, numpy as np, happywhale_nb
from happywhale_nb import *
from happywhale_nb.core.errors import MissingExtra
assert KNNHead and inspect.getmembers(happywhale_nb)
missing = {}
for name in happywhale_nb._HOMES:
    try:
        getattr(happywhale_nb, name)
    except MissingExtra as error:
        missing[name] = str(error).partition("[")[2].partition("]")[0]
print(missing, set(happywhale_nb._HOMES) - set(happywhale_nb.__all__) == set(missing))
"""


def test_the_core_alone_offers_everything_but_networks_and_catalogues():
    done = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    wanted = dict.fromkeys(("create_model", "ArcFaceLoss", "export_model"), "train")
    wanted |= dict.fromkeys(("Catalogue", "identify", "build_catalogue"), "serve")
    found, _, listed = done.stdout.strip().rpartition(" ")
    assert eval(found) == wanted and listed == "True"


def test_who_is_missing_is_no_animal_called_nan(known):
    X, y = known
    names = np.array([f"w{i}" for i in y], object)
    for nobody in (None, float("nan"), pd.NA, ""):
        some = names.copy()
        some[40:] = nobody
        gallery = Gallery().fit(X, some)
        assert set(gallery.classes_) == set(names[:40]) and (gallery.codes_[40:] == -1).all()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CoverageWarning)
            assert calibrate(X, some).photographs == 40
        for refuse in (KNNHead(), EmbeddingAdapter("within")):
            with pytest.raises(UserError, match="leave"):
                refuse.fit(X, some)
        assert blend_rankings({"a": [["x", nobody]]}).tolist() == [["x", "", "", "", ""]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        assert calibrate(X, names, np.array([None] * 120, object)).encounters == 120


def test_numbers_as_names_go_through_the_open_set(known):
    X, y = known
    gallery, query = next(GallerySplit("open:0.3", 3).split(X, y))
    ids, scores = KNNHead().fit(X[gallery], y[gallery]).rank(X[query])
    truth = open_set_truth(y[query], y[gallery])
    named = KNNHead().fit(X[gallery], y[gallery].astype(str)).rank(X[query])
    threshold = fit_threshold(ids, scores, truth)
    assert threshold == fit_threshold(named[0], scores, truth)
    assert (rank_new(ids, scores, threshold) == rank_new(named[0], scores, threshold)).all()
    padded = KNNHead().fit(X[:2], [3, 4]).rank(X[:2])
    assert rank_new(*padded, 0.4)[:, 3:].tolist() == [["", ""]] * 2


def test_options_set_after_fit_are_used_checked_or_refused(known):
    X, y = known
    head = KNNHead().fit(X, y)
    before = head.rank(X[:3])
    after = head.set_params(search="sklearn").rank(X[:3])
    assert (before[0] == after[0]).all() and (before[1] == after[1]).all()
    with pytest.raises(UserError, match="aggregate='bogus' is not known"):
        head.set_params(aggregate="bogus").rank(X)
    with pytest.raises(UserError, match="fit again, with centres"):
        head.set_params(aggregate="max", centre_weight=0.5).rank(X)
    names = np.unique(y)
    for centres in ((names.astype(str), X[: len(names)]), (names[:-1], X[: len(names)])):
        with pytest.raises(UserError, match=r"not named alike|differ in their number"):
            KNNHead(centre_weight=0.3).fit(X, y, centres)
    frame = pd.DataFrame(X).rename(columns=str)
    assert not hasattr(KNNHead().fit(frame, y).fit(X, y), "feature_names_in_")
    adapter = EmbeddingAdapter("within").fit(frame, y)
    assert len(adapter.get_feature_names_out()) == adapter.transform(frame).shape[1]
    with pytest.raises(ValueError, match="feature names should match"):
        adapter.transform(frame[frame.columns[::-1]])


@pytest.mark.slow
def test_a_users_script_has_types_and_wrong_uses_are_found(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--disable-error-code",
        "import-untyped",
        "--cache-dir",
        tmp_path / "cache",
    ]
    fixtures = Path(__file__).parent / "fixtures"
    seen = os.environ | {"PYTHONPATH": str(ROOT)}  # mypy does not follow an editable installation
    done = subprocess.run(
        [*command, fixtures / "users_script.py", fixtures / "wrong_uses.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=seen,
    )
    found = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(found) == 3 and all("wrong_uses.py" in line for line in found), done.stdout + done.stderr


# --- what a third reader found


@pytest.mark.parametrize("write", ["predictions", "blend", "json"])
def test_a_folder_is_never_replaced_by_a_file(tmp_path, write):
    folder, file = tmp_path / "mine", tmp_path / "a.csv"
    folder.mkdir()
    (folder / "precious.txt").write_text("x")
    h.write_predictions(file, ["a"], [["x", "y"]])
    writers = {
        "predictions": lambda: h.write_predictions(folder, ["a"], [["x", "y"]]),
        "blend": lambda: h.blend_files([file], folder),
        "json": lambda: write_json(folder, {}),
    }
    with pytest.raises(UserError, match="is a folder: name a file"):
        writers[write]()
    assert (folder / "precious.txt").read_text() == "x" and set(tmp_path.iterdir()) == {folder, file}


def test_candidate_sets_keep_their_promise_for_unnamed_and_for_small_groups():
    rng = np.random.default_rng(0)
    n, m = 4000, 25
    groups = np.where(rng.random(n) < 0.6, "", rng.integers(0, 40, n).astype(str))  # many unnamed, forty small groups
    truth_rank = np.where(groups == "", rng.integers(0, 20, n), 0)
    ids = np.tile([f"i{k:02}" for k in range(m)], (n, 1))
    scores = np.tile(np.linspace(0.9, 0.1, m), (n, 1))
    truth, half = ids[np.arange(n), truth_rank], np.arange(n) < n // 2
    sets = h.CandidateSets(0.1, min_rows=200).fit(ids[half], scores[half], -1.0, truth[half], groups[half])
    names, sizes = sets.predict(ids[~half], scores[~half], -1.0, groups[~half])
    held = (names == truth[~half, None]) & (np.arange(m + 1) < sizes[:, None])
    for unnamed in (True, False):
        assert held[(groups[~half] == "") == unnamed].any(axis=1).mean() > 0.87


def test_map_at_5_scorer_gives_what_rank_gives_whatever_the_names():
    rng = np.random.default_rng(1)
    X, who = rng.normal(size=(240, 8)), np.repeat(np.arange(6), 40)
    query = np.arange(240) % 4 == 0
    values = set()
    for letters in ("abcdef", "fedcba", "badcfe"):
        names = np.array(list(letters))[who]
        head = h.KNNHead(1).fit(X[~query], names[~query])
        score = h.map_at_5_scorer(head, X[query], names[query])
        assert score == h.map_at_5(names[query], head.rank(X[query])[0])
        piped = make_pipeline(StandardScaler(), h.KNNHead(1)).fit(X[~query], names[~query])
        assert 0 < h.map_at_5_scorer(piped, X[query], names[query]) < 1
        values.add(score)
    assert len(values) == 1


def test_map_at_5_scorer_of_another_classifier_credits_nobody_in_the_shared_last_place():
    X, y = np.eye(4), np.array(list("abcd"))
    assert h.map_at_5_scorer(DummyClassifier(strategy="uniform").fit(X, y), X, y) == 0
    forest = RandomForestClassifier(5, random_state=0).fit(X, y)
    chances = forest.predict_proba(X)
    expected = [1 / (1 + (row > row[i]).sum()) if row[i] > row.min() else 0 for i, row in enumerate(chances)]
    assert h.map_at_5_scorer(forest, X, y) <= np.mean(expected) + 1e-9


def test_tables_read_in_many_threads_leave_the_filters_of_warnings(tmp_path):
    h.write_predictions(tmp_path / "a.csv", ["a"], [["x"]])
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: h.read_predictions(tmp_path / "a.csv"), range(200)))
    assert warnings.filters == before


def test_calibrate_finds_the_temperature_of_vectors_with_a_large_common_part():
    rng = np.random.default_rng(2)
    who = np.repeat(np.arange(20), 20)
    X = (rng.normal(size=(20, 16))[who] + rng.normal(size=(400, 16))) + 40
    query = np.arange(400) % 2 == 0
    head = h.KNNHead(10).fit(X[~query], who[~query]).calibrate(X[query], who[query])
    confidence = head.predict_proba(X[query]).max(axis=1).mean()
    right = (head.predict(X[query]) == who[query]).mean()
    assert head.proba_temperature_ < 1e-3 and abs(confidence - right) < 0.15


TABLE = pd.DataFrame({"image": list("abcdef"), "individual_id": list("xxyyzz"), "species": "s"})
RANKED = np.array([["x", "y", "z", "u", "v"]] * 4)
ALL_SCORES = np.tile([0.9, 0.8, 0.7, 0.6, 0.5], (4, 1))


@pytest.mark.parametrize(
    "call,told",
    [
        (lambda: h.make_folds(TABLE, k=2.5), "k=2.5: give a whole number"),
        (lambda: h.make_folds(TABLE, k="3"), "k='3': give a whole number"),
        (lambda: h.make_folds(TABLE, k=2, seed="a"), "seed='a'"),
        (lambda: h.make_folds(TABLE, k=2, split=3), "split is of the type int"),
        (lambda: h.make_folds(TABLE, k=2, split="encounter"), "needs a column encounter or date"),
        (lambda: next(h.GallerySplit(split_by=None).split(np.eye(6), list("xxyyzz"))), "split_by is None"),
        (lambda: h.fit_ranking_weights({}, ["x"] * 4, [0, 0, 1, 1]), "predictions are empty"),
        (
            lambda: h.fit_threshold(RANKED[:2], np.full((2, 5), -np.inf), ["x", "new_individual"]),
            "nobody is ranked",
        ),
        (lambda: h.tabulate_outcomes(["x"] * 5, RANKED[0]), "1 dimensions: give"),
        (lambda: h.map_at_5(3, RANKED), "truth"),
        (lambda: h.augment(np.zeros((2, 0, 5, 3), np.uint8), h.RECIPES["paper"]), r"\[2, 0, 5, 3\]"),
        (lambda: h.card_fingerprint(None), "card is None"),
        (lambda: h.export_model(None, "a.onnx", "onnx"), "model is None"),
        (lambda: h.blend_files("a.csv", "b.csv"), "files is of the type str: give a list"),
        (lambda: h.write_predictions("b.csv", ["a"], ["xyz"]), "'xyz' is no list of names"),
        (lambda: h.write_predictions("b.csv", ["a"], [["[42]", "x"]]), "Python's list"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(call, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", [{"frame": (0, 0)}, {"frame": (10,)}, {"margin": -1}, {"margin": float("nan")}])
def test_load_crop_tells_of_the_argument_and_not_of_the_file(how, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=next(iter(how))):
        h.load_crop(tmp_path / "a.png", 8, (2, 2, 20, 20), **how)


def test_files_with_a_photograph_twice_or_a_folder_for_a_file_are_refused(tmp_path):
    twice, truth = tmp_path / "twice.csv", tmp_path / "truth.csv"
    twice.write_text("image,predictions\na,x\na,y\n")
    truth.write_text("image,individual_id\na,x\na,z\n")
    with pytest.raises(UserError, match="has a more than once"):
        h.read_predictions(twice, images=["a"])
    h.write_predictions(tmp_path / "one.csv", ["a"], [["x"]])
    with pytest.raises(UserError, match="names two individuals for a"):
        h.score_file(tmp_path / "one.csv", truth)
    truth.write_text("image,individual_id\na, x\n")
    assert h.score_file(tmp_path / "one.csv", truth)[0]["map5"] == 1
    with pytest.raises(UserError, match="is a folder"):
        h.read_predictions(tmp_path)


def test_GallerySplit_takes_rows_without_an_encounter_each_for_themselves():
    who, encounters = np.repeat(list("abcdefgh"), 8), np.repeat(np.arange(32).astype(str), 2)
    blank = np.where(np.arange(64) % 2 == 0, encounters, "")
    sizes = [len(query) for _, query in h.GallerySplit("encounter", 4).split(np.eye(64), who, blank)]
    assert sum(sizes) == 64 and max(sizes) <= 20


def test_blend_files_takes_weights_as_an_array(tmp_path):
    for name in "ab":
        h.write_predictions(tmp_path / name, ["p"], [[name, "x"]])
    h.blend_files([tmp_path / "a", tmp_path / "b"], tmp_path / "c", weights=np.array([1.0, 3.0]))
    assert h.read_predictions(tmp_path / "c")[1][0, 0] == "b"


# ---- and what was left of the list


def test_labels_and_encounters_have_one_dimension():
    X, y = np.eye(6), np.array(list("aabbcc"))
    with pytest.raises(UserError, match=r"labels have the shape \[6, 1\]"):
        Gallery().fit(X, y[:, None])
    with pytest.raises(UserError, match=r"encounters have the shape \[6, 1\]"):
        calibrate(X, y, encounters=y[:, None])
    folds = [(np.array([[0.9, 0.1], [0.5, 0.4]]), np.array([True, False]))] * 2
    with pytest.raises(UserError, match=r"shape \[2, 1\]: give \[2\]"):
        cross_fit_confidence(folds, encounters=[np.array([["a"], ["b"]])] * 2)
    with pytest.raises(UserError, match="encounters of 1 folds for 2"):
        cross_fit_confidence(folds, encounters=[np.array(["a", "b"])])


def test_a_refused_fit_of_a_gallery_changes_nothing():
    gallery = Gallery().fit(np.eye(6), list("aabbcc"))
    with pytest.raises(UserError, match="is not an individual"):
        gallery.fit(np.eye(4), ["new_individual"] * 4)
    assert gallery.vectors.tolist() == np.eye(6).tolist()
    assert gallery.n_features_in_ == 6


@pytest.mark.parametrize("name", [None, 3, ["lda"]])
def test_a_name_that_is_no_text_is_told(name):
    with pytest.raises(UserError, match="give a name as text"):
        EmbeddingAdapter(name).fit(np.eye(6), list("aabbcc"))


def test_a_head_fitted_to_a_frame_warns_of_an_array():
    frame = pd.DataFrame(np.eye(6), columns=list("abcdef"))
    head = KNNHead().fit(frame, list("aabbcc"))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        head.predict(np.eye(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head.predict(frame)


@pytest.mark.parametrize("field", [{"scale": 0}, {"std": (0, 1, 1)}, {"dimension": 0}, {"resize": "nearest"}])
def test_a_card_with_an_impossible_value_is_not_made(field):
    values = dict(name="a", file="", sha256="", width=8, height=8, resize="area", colours="rgb", layout="nhwc")
    values |= dict(scale=255.0, mean=(0.0,) * 3, std=(1.0,) * 3, dimension=8, licence="CC0-1.0", commercial=True)
    with pytest.raises(UserError, match=f"card: {next(iter(field))} is"):
        EncoderCard(**values | field)
