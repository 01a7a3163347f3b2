"""A gallery that grows and is asked in part, and calibration: probabilities and lists that come true."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import NEW
from happywhale_nb.retrieval.calibration import CandidateProbabilities
from happywhale_nb.retrieval.conformal import NO_LIST, measure_coverage
from happywhale_nb.retrieval.gallery import Gallery
from happywhale_nb.retrieval.identifier import (
    DEFAULT_THRESHOLD,
    DEPTH,
    MIN_HELD_OUT,
    Calibration,
    calibrate,
    identify_individual,
)
from happywhale_nb.retrieval.knn import KNNHead, rank_sets
from happywhale_nb.retrieval.open_set import rank_new

# what a calibration says of its sets, where it was measured
MEASURED = {"coverage": 0.9, "coverage_low": 0.8, "coverage_high": 0.95, "coverage_encounters": 100}


@pytest.fixture
def gallery():
    """Vectors `[300, 16]` float32 of 40 individuals, and who they show."""
    rng = np.random.default_rng(0)
    who = rng.integers(0, 40, 300)
    vectors = rng.normal(size=(40, 16))[who] + rng.normal(size=(300, 16))
    return vectors.astype(np.float32), np.char.add("w", who.astype(str))


@pytest.fixture
def queries():
    return np.random.default_rng(1).normal(size=(25, 16)).astype(np.float32)


def same(one, other, queries):
    """Both find the same rows and the same individuals."""
    (near, rows), (near_2, rows_2) = one.kneighbors(queries), other.kneighbors(queries)
    assert np.allclose(near, near_2, atol=2e-6)
    assert (one.classes_[one.codes_[rows]] == other.classes_[other.codes_[rows_2]]).all()
    assert (rows == rows_2).all() and (one.rank(queries)[0] == other.rank(queries)[0]).all()


def test_known_without_masks_answers_as_a_knn_head(gallery, queries):
    X, y = gallery
    known, head = Gallery().fit(X, y), KNNHead().fit(X, y)
    same(known, head, queries)
    sets = np.arange(len(queries)) // 4
    for one, other in zip(rank_sets(known, queries, sets, 10), rank_sets(head, queries, sets, 10), strict=True):
        assert np.allclose(one, other, atol=2e-6) if one.dtype.kind == "f" else (one == other).all()


@pytest.mark.parametrize("n", [1, 4])
def test_answer_is_rank_sets_with_new_individual_at_its_rank(gallery, queries, n):
    X, y = gallery
    made = Calibration(threshold=0.6)
    found = identify_individual(Gallery().fit(X, y), made, queries[:n], k=5)
    _, ids, scores, drivers = rank_sets(KNNHead().fit(X, y), queries[:n], np.zeros(n), DEPTH)
    expected = rank_new(ids, scores, 0.6, DEPTH + 1)[0]
    assert found.names.tolist() == expected[: len(found.names)].tolist()
    named = found.names != NEW
    assert (found.query_rows[named] == drivers[0, :5]).all() and np.allclose(
        found.scores[named], scores[0, :5], atol=2e-6
    )
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    for name, photo, asked in zip(found.names[named], found.photos[named], found.query_rows[named], strict=True):
        rows = np.flatnonzero(y == name)
        assert photo == rows[np.argmax(unit[rows] @ queries[asked])]


def test_known_after_extend_relabel_and_replace_equals_a_fresh_fit(gallery, queries):
    X, y = gallery
    known = Gallery().fit(np.empty((0, 16), np.float32), [])
    for start, end in ((0, 1), (1, 2), (2, 40), (40, 41), (41, 300)):
        known.extend(X[start:end], y[start:end])
    fresh = Gallery().fit(X, y)
    same(known, fresh, queries)
    assert (known.vectors == fresh.vectors).all() and known.vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(known.vectors, axis=1), 1)
    rows, names = [3, 77, 299], ["w5", "another", ""]
    changed = np.array(y, dtype=object)
    changed[rows] = names
    known.relabel(rows, names).replace([10, 20], queries[:2])
    X = X.copy()
    X[[10, 20]] = queries[:2]
    kept = np.flatnonzero(changed != "")
    near, rows = known.kneighbors(queries)
    near_2, rows_2 = KNNHead().fit(X[kept], changed[kept].astype(str)).kneighbors(queries)
    assert (rows == kept[rows_2]).all() and np.allclose(near, near_2, atol=2e-6)
    names, counts = np.unique(changed[kept].astype(str), return_counts=True)
    assert known.counts() == dict(zip(names, counts, strict=True))


def test_known_extend_doubles_its_space():
    known, places = Gallery().fit(np.empty((0, 4), np.float32), []), set()
    for i in range(1000):
        known.extend(np.eye(4)[i % 4 : i % 4 + 1], [str(i)])
        places.add(len(known._rows))
    assert len(known.vectors) == 1000 and len(places) <= 8


def test_known_under_masks_leaves_out_closed_and_nameless_rows(gallery, queries):
    X, y = gallery
    rng = np.random.default_rng(2)
    allowed, left_out, nameless = rng.random(300) < 0.5, rng.random(300) < 0.3, rng.random(300) < 0.3
    known = Gallery(n_neighbors=20).fit(X, np.where(nameless, "", y))
    is_open = allowed & ~left_out & ~nameless
    kept = np.flatnonzero(is_open)
    part = known.under(allowed, left_out)
    _, rows = part.kneighbors(queries)
    _, expected = KNNHead(20).fit(X[kept], y[kept]).kneighbors(queries)
    assert rows.shape == (25, 20) and (rows == kept[expected]).all()
    for query in queries:
        found = identify_individual(known, Calibration(), [query], 10, allowed, left_out)
        photos = found.photos[found.photos >= 0]
        assert is_open[photos].all() and (y[photos] == found.names[found.names != NEW]).all()
    known.relabel(np.arange(300), [""] * 300)
    assert is_open.sum() == part.open_.sum(), "what was asked before keeps its names"
    assert not known.open_.any() and known.counts() == {}


def test_answer_of_no_open_row_is_new_individual_for_certain(queries):
    empty = Gallery().fit(np.empty((0, 16), np.float32), [])
    full = Gallery().fit(queries, ["a"] * 25)
    for known, masks in ((empty, {}), (full, {"left_out": np.ones(25, bool)})):
        for n in (1, 3):
            found = identify_individual(known, Calibration(), queries[:n], **masks)
            assert found.names.tolist() == [NEW] and found.probabilities.tolist() == [1.0] and found.other == 0
            assert found.photos.tolist() == found.query_rows.tolist() == [-1]
            assert found.in_set.tolist() == [False] and found.set_size == 0, "nothing was measured"
            kept = identify_individual(known, replace(Calibration(), distance=0.2, **MEASURED), queries[:n], **masks)
            assert kept.in_set.tolist() == [True] and kept.set_size == 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**16), st.integers(1, 30), st.floats(0.0, 1.0), st.sampled_from([1, 3]), st.integers(1, 40))
def test_answer_under_any_filter_has_the_probabilities_of_no_filter(seed, animals, share, n, k):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(90, 8)), np.array([f"w{i}" for i in rng.integers(0, animals, 90)])
    known, allowed, left_out = Gallery().fit(X, y), rng.random(90) < share, rng.random(90) < 0.1
    made = Calibration(0.3, CandidateProbabilities(0.2, 0.5, 0.0, -0.1), 0.2, **MEASURED)
    free = identify_individual(known, made, X[:n], 100, None, left_out)
    found = identify_individual(known, made, X[:n], k, allowed, left_out)
    chance = dict(zip(free.names, free.probabilities, strict=True))
    shown = dict(zip(found.names, found.probabilities, strict=True))
    assert shown[NEW] == chance[NEW], "a filter tells nothing of new animals"
    assert all(shown[name] == chance[name] for name in shown if name in chance)
    assert np.isclose(found.probabilities.sum() + found.other, 1) and found.other >= 0
    assert (allowed & ~left_out)[found.photos[found.photos >= 0]].all()
    fit = [name for name in free.names if name != NEW and (allowed & ~left_out)[y == name].any()]
    assert [name for name in found.names if name in chance and name != NEW] == fit[:k]
    in_set = set(free.names[free.in_set])
    assert set(found.names[found.in_set]) == in_set & set(found.names) and found.set_size == free.set_size
    assert found.hidden == len(in_set - {NEW} - set(fit))


@pytest.mark.parametrize("k", [1, 3, 10, 50])
@pytest.mark.parametrize("level", [-0.9, 0.4, 0.99])
def test_answer_probabilities_add_up_to_one_and_fall_with_the_rank(gallery, queries, k, level):
    X, y = gallery
    known, made = Gallery().fit(X, y), Calibration(level, CandidateProbabilities(0.1, 0.8, 0.0, -0.1), 0.2, **MEASURED)
    few = np.isin(y, ["w1", "w2", "w3"])
    for n, allowed in ((1, None), (3, None), (1, few)):
        found = identify_individual(known, made, queries[:n], k=k, allowed=allowed)
        assert (
            np.isclose(found.probabilities.sum() + found.other, 1)
            and (found.probabilities >= 0).all()
            and found.other >= 0
        )
        most, listed = (3, found.names != NEW) if allowed is not None else (DEPTH, np.ones(len(found.names), bool))
        assert (np.diff(found.probabilities[listed]) <= 1e-12).all() and (np.diff(found.scores[listed]) <= 0).all()
        assert (found.names == NEW).sum() == 1 and (found.names != NEW).sum() == min(k, most)
        if allowed is None:
            assert found.in_set.tolist() == (found.scores[0] - found.scores <= 0.2).tolist()
            assert 1 <= found.in_set.sum() <= found.set_size
    everybody = identify_individual(known, made, queries[:1], k=10, left_out=~few)
    assert everybody.other < 1e-12, "nobody is left who is not listed"


def test_known_and_answer_of_bad_input_are_refused_and_change_nothing(gallery, queries):
    X, y = gallery
    known = Gallery().fit(X, y)
    unfit = [
        lambda: known.extend(X[:1, :5], ["a"]),
        lambda: known.extend(X[:1], [NEW]),
        lambda: known.extend(np.zeros((1, 16)), ["a"]),
        lambda: known.replace([0], [[np.nan] * 16]),
        lambda: identify_individual(known, Calibration(), queries[:1, :5]),
        lambda: identify_individual(known, Calibration(), queries[:0]),
        lambda: identify_individual(known, Calibration(), queries[:1], k=0),
    ]
    miscalled = [
        lambda: known.extend(X[:2], ["a"]),
        lambda: known.relabel([300], ["a"]),
        lambda: known.relabel([-1], ["a"]),
        lambda: known.relabel([0, 1], ["a"]),
        lambda: known.replace([0, 1], X[:1]),
        lambda: known.under(np.ones(299, bool)),
    ]
    for call in unfit:
        with pytest.raises(UserError):
            call()
    for call in miscalled:
        with pytest.raises(ValueError):
            call()
    same(known, Gallery().fit(X, y), queries)
    assert "a" not in known.counts()


def survey(n, seed, animals=600, width=32):
    """Encounters of one photograph, in the order they happened; some animals are met often, many seldom."""
    rng = np.random.default_rng(seed)
    chance = 1 / np.arange(1, animals + 1) ** 0.7
    who = rng.choice(animals, n, p=chance / chance.sum())
    clear = rng.uniform(0.5, 1.6, (n, 1))
    return rng.normal(size=(animals, width))[who] + clear * rng.normal(size=(n, width)), who.astype(str)


def test_calibrate_of_a_survey_states_what_its_own_questions_come_to():
    X, who = survey(900, 5)
    made = calibrate(X, who, np.arange(900), np.ones(900, bool))
    assert (
        made.ece < 0.05
        and abs(made.coverage - 0.9) < 0.02
        and made.coverage_low < 0.9 < made.coverage_high
        and made.note == ""
    )
    times = dict(zip(*np.unique(who, return_counts=True), strict=True))
    met_once = np.array([times[name] == 1 for name in who])
    assert made.new == met_once.sum() and made.individuals == len(times) and made.encounters == made.photographs == 900
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(900)  # a photograph is asked about among all others
    first = np.where(cosine.max(axis=1) >= made.threshold, who[cosine.argmax(axis=1)], NEW)
    assert made.top1 == pytest.approx(np.mean(first == np.where(met_once, NEW, who)), abs=0.03)
    assert made.top1 < made.map5 < 1


def bursts(seed, n=900, animals=150, width=32):
    """Encounters of one to four photographs that resemble each other more than those of other encounters."""
    rng = np.random.default_rng(seed)
    who, shots = rng.integers(0, animals, n), rng.integers(1, 5, n)
    day = rng.normal(size=(animals, width))[who] + 0.9 * rng.normal(size=(n, width))
    encounter = np.repeat(np.arange(n), shots)
    return day[encounter] + 0.9 * rng.normal(size=(len(encounter), width)), who[encounter].astype(str), encounter


def test_calibrate_of_several_photographs_together_has_probabilities_of_their_own():
    X, who, encounter = bursts(1, n=600)
    past = encounter < 400
    made, known = calibrate(X[past], who[past], encounter[past], past[past]), Gallery().fit(X[past], who[past])
    assert made.several.encounters == np.count_nonzero(np.bincount(encounter[past]) > 1)
    kinds = {"own": made, "of one": replace(made, several=None)}
    told = {kind: [] for kind in kinds}
    for number in range(400, 600):
        rows = np.flatnonzero(encounter == number)
        for kind, promise in kinds.items() if len(rows) > 1 else ():
            found = identify_individual(known, promise, X[rows], k=DEPTH)
            told[kind].append(
                (found.probabilities[0], found.names[0] == who[rows[0]], who[rows[0]] in found.names[found.in_set])
            )
    off = {
        kind: np.mean([sure for sure, *_ in rows]) - np.mean([right for _, right, _ in rows])
        for kind, rows in told.items()
    }
    assert abs(off["own"]) < 0.05 < 0.07 < -off["of one"], off
    assert abs(np.mean([held for *_, held in told["own"]]) - 0.9) < 0.04
    alone = identify_individual(known, made, X[:1])
    assert (alone.probabilities == identify_individual(known, kinds["of one"], X[:1]).probabilities).all(), (
        "one photograph goes by its own curve"
    )


def test_calibrate_of_few_encounters_with_several_photographs_learns_nothing_of_several():
    X, who, encounter = bursts(2, n=60)
    single = np.unique(encounter, return_index=True)[1]
    assert calibrate(X[single], who[single], encounter[single], np.ones(60, bool)).several is None
    some = np.isin(encounter, np.flatnonzero(np.bincount(encounter) > 1)[: MIN_HELD_OUT - 1]) | np.isin(
        np.arange(len(X)), single
    )
    assert calibrate(X[some], who[some], encounter[some], np.ones(some.sum(), bool)).several is None
    made = calibrate(X, who, encounter, np.ones(len(X), bool))
    assert made.several is not None and Calibration.from_dict(made.as_dict()).as_dict() == made.as_dict()


def test_calibrate_asks_no_photograph_among_its_own_encounter():
    rng = np.random.default_rng(3)
    X = np.repeat(rng.normal(size=(40, 16)), 2, axis=0)  # two equal photographs an encounter, alike in nothing else
    who, encounter = np.repeat(np.arange(40) // 2, 2).astype(str), np.repeat(np.arange(40), 2)
    apart, alike = calibrate(X, who, encounter, np.ones(80, bool)), calibrate(X, who, range(80), np.ones(80, bool))
    assert apart.top1 < 0.3 and alike.top1 > 0.9


def test_calibrate_asks_held_out_photographs_unless_they_are_few():
    X, who = survey(200, 7)
    some, every = np.arange(200) % 4 == 0, np.ones(200, bool)
    made = calibrate(X, who, np.arange(200), some)
    assert made.photographs == 50 and made.note.startswith("The probabilities are based on only 50 photographs of")
    few = calibrate(X, who, np.arange(200), np.arange(200) < MIN_HELD_OUT - 1)
    assert few.photographs == 200 and "optimistic" in few.note
    enough = calibrate(X, who, np.arange(200), np.arange(200) < MIN_HELD_OUT)
    assert enough.photographs == MIN_HELD_OUT and "optimistic" not in enough.note
    nameless = np.where(some, who, "")
    assert calibrate(X, nameless, np.arange(200), every).photographs == 50
    drawn = [calibrate(X, who, np.arange(200), every, max_queries=50, seed=s).as_dict() for s in (0, 0, 1)]
    assert drawn[0]["photographs"] == 50 and drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("n", [0, 1, 2, 5, 30])
@pytest.mark.parametrize("kind", ["one", "all different", "two", "nobody"])
@pytest.mark.parametrize("apart", [True, False])
def test_calibrate_of_little_gives_a_calibration_that_answers(n, kind, apart):
    rng = np.random.default_rng(n)
    who = [{"one": "a", "all different": str(i), "two": "ab"[i % 2], "nobody": ""}[kind] for i in range(n)]
    X = rng.normal(size=(n, 8)).astype(np.float32)
    made = calibrate(X, who, np.arange(n) if apart else np.zeros(n), np.ones(n, bool))
    assert made.note
    if n == 0 or kind == "nobody":
        assert made.photographs == 0 and made.threshold == DEFAULT_THRESHOLD and made.note.startswith("No identified")
    else:
        assert made.photographs == n
    text = json.dumps(made.as_dict(), allow_nan=False)
    again = Calibration.from_dict(json.loads(text))
    assert json.dumps(again.as_dict()) == text
    query = rng.normal(size=(2, 8))
    one, other = (identify_individual(Gallery().fit(X, who), c, query) for c in (made, again))
    assert np.isfinite(one.probabilities).all() and np.isclose(one.probabilities.sum() + one.other, 1)
    assert one.names.tolist() == other.names.tolist() and (one.probabilities == other.probabilities).all()
    assert one.set_size == other.set_size


@pytest.mark.soak
@pytest.mark.slow
def test_measured_coverage_of_bursts_has_an_interval_that_covers_the_truth(asked=0.9):
    """The truth: how often later encounters' lists hold the animal, by what earlier ones have taught."""
    inside, width = [], []
    for seed in range(8):
        X, who, encounter = bursts(seed, n=500, animals=60)
        past = encounter < 200
        made, known = calibrate(X[past], who[past], encounter[past], past[past], 1 - asked), Gallery()
        known.fit(X[past], who[past])
        held = []
        for number in np.unique(encounter[~past]):
            rows = np.flatnonzero(encounter == number)[:1]
            found = identify_individual(known, replace(made, several=None), X[rows], k=DEPTH)
            truth = who[rows[0]] if who[rows[0]] in known.counts() else NEW
            held.append(truth in found.names[found.in_set])
        stray = 2 * np.sqrt(asked * (1 - asked) / len(held))  # of what came later
        inside.append(made.coverage_low - stray <= np.mean(held) <= made.coverage_high + stray)
        width.append(made.coverage_high - made.coverage_low)
        assert made.measured.is_kept and made.coverage_encounters <= 200
    assert np.mean(inside) >= 0.9 and np.mean(width) < 0.2


def test_a_weak_network_promises_no_short_list():
    rng = np.random.default_rng(0)
    who, n = rng.integers(0, 150, 900).astype(str), 900
    made = calibrate(rng.normal(size=(n, 16)), who, np.arange(n), np.ones(n, bool))
    assert made.coverage < 0.4 < 1 - made.alpha and not made.measured.is_kept
    assert made.measured.sentence.startswith("no short list can be promised here: lists of the best candidates held")
    found = identify_individual(Gallery().fit(rng.normal(size=(n, 16)), who), made, rng.normal(size=(1, 16)))
    assert not found.in_set.any() and found.set_size == 0 and "90% was asked for" in found.measured.sentence


def test_training_photographs_measure_no_coverage_and_old_calibrations_promise_nothing():
    X, who = survey(200, 7)
    few = calibrate(X, who, np.arange(200), np.zeros(200, bool))
    assert "optimistic" in few.note and np.isnan(few.coverage) and "not been measured" in few.measured.sentence
    old = calibrate(X, who, np.arange(200), np.ones(200, bool)).as_dict()
    for name in ("coverage_low", "coverage_high", "coverage_encounters"):
        del old[name]
    again = Calibration.from_dict(old)
    assert again.coverage == old["coverage"] and not again.measured.is_kept


def test_coverage_is_judged_by_limits_of_other_encounters():
    """Two individuals of one encounter look alike; neither may set the limit by which the other is judged."""
    X, who, encounter = bursts(4, n=200, animals=40)
    shared = encounter // 2  # a group of two
    made = calibrate(X, who, shared, np.ones(len(X), bool))
    assert (
        0 < made.coverage_encounters <= len(np.unique(shared)) and made.coverage_low < 0.9 < made.coverage_high + 0.05
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.floats(0.05, 0.95), st.integers(1, 60), st.integers(1, 6), st.integers(0, 2**16))
def test_coverage_of_any_encounters_lies_in_its_interval_and_counts_each_once(rate, encounters, photographs, seed):
    rng = np.random.default_rng(seed)
    covered = np.repeat(rng.random(encounters) < rate, photographs)
    one = measure_coverage(covered, np.repeat(np.arange(encounters), photographs))
    assert one.encounters == encounters and one.low <= one.rate <= one.high
    assert one == measure_coverage(covered[::photographs], np.arange(encounters))
    assert one.is_kept == (one.high >= 0.9) and (NO_LIST in one.sentence) != one.is_kept
