"""Thresholds of `new_individual` against brute force, and the coverage of conformal lists and probabilities."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import NEW
from happywhale_nb.retrieval.calibration import CandidateProbabilities, TopOneCalibrator, cross_fit_confidence
from happywhale_nb.retrieval.conformal import CandidateSets
from happywhale_nb.retrieval.metrics import average_precision, balanced_accuracies, map_at_5, rank_of_truth, summary
from happywhale_nb.retrieval.open_set import (
    estimate_prior_new,
    fit_species_thresholds,
    fit_threshold,
    precision_by_threshold,
    rank_new,
    score_grid,
    threshold_curve,
    threshold_for_fraction,
)

laws = settings(max_examples=50, deadline=None, derandomize=True)
SCORES = st.integers(-2, 10).map(lambda tenths: tenths / 10)  # few values: candidates and thresholds tie


@st.composite
def ranked(draw, least=0, truths="abz"):
    """Lists of five to seven candidates, `(ids, scores, truth)`: "" and -inf where there are fewer than that; a truth
    may be unlisted, or new."""
    n, m = draw(st.integers(1, 12)), draw(st.integers(5, 7))
    ids, scores = np.full((n, m), "", dtype="<U14"), np.full((n, m), -np.inf)
    for i in range(n):
        found = sorted(draw(st.lists(SCORES, min_size=least, max_size=m)), reverse=True)
        scores[i, : len(found)] = found
        ids[i, : len(found)] = draw(st.permutations("abcdefg"))[: len(found)]
    truth = draw(st.lists(st.sampled_from([*truths, NEW]), min_size=n, max_size=n))
    return ids, scores, np.array(truth, dtype=str)


def plain_rank_new(ids, scores, threshold, length):
    """A list with `new_individual` behind the names that reach the threshold."""
    before = [name for name, score in zip(ids, scores, strict=True) if score >= threshold]
    return [*before, NEW, *ids[len(before) :]][:length]


@laws
@given(ranked(), st.data(), st.integers(1, 8))
def test_rank_new_of_any_lists_equals_plain_insertion(lists, data, length):
    ids, scores, _ = lists
    n, m = ids.shape
    thresholds = data.draw(st.lists(SCORES, min_size=n, max_size=n))
    length = min(length, m + 1)
    expected = [plain_rank_new(*row, length) for row in zip(ids.tolist(), scores, thresholds, strict=True)]
    assert rank_new(ids, scores, thresholds, length).tolist() == expected
    assert rank_new(ids, scores, thresholds[0])[0].tolist() == plain_rank_new(ids[0], scores[0], thresholds[0], 5)


def test_rank_new_of_long_names_cuts_none():
    ids = np.array([["humpback_tail_0001_left", "humpback_tail_0001_right"]], object)
    assert rank_new(ids, [[0.9, 0.8]], 0.5, 3)[0].tolist() == [*ids[0], NEW]


@laws
@given(ranked(), st.lists(SCORES, min_size=1, max_size=4))
def test_precision_by_threshold_of_any_lists_equals_that_of_the_lists_with_new(lists, grid):
    ids, scores, truth = lists
    expected = [average_precision(truth, rank_new(ids, scores, threshold)) for threshold in grid]
    np.testing.assert_allclose(precision_by_threshold(ids, scores, truth, grid), expected, atol=1e-7)


@laws
@given(ranked(least=1), st.integers(3, 30))
def test_score_grid_of_any_scores_runs_from_the_least_to_above_the_greatest(lists, n_grid):
    scores = lists[1]
    grid, finite = score_grid(scores, n_grid), scores[np.isfinite(scores)]
    assert len(grid) == n_grid and (np.diff(grid) >= -1e-15).all()
    assert grid[0] == finite.min() and grid[-2] == finite.max() < grid[-1] < finite.max() + 1e-12
    assert len(score_grid(scores)) == 201


@laws
@given(ranked(least=1), st.data())
def test_threshold_curve_of_any_lists_equals_the_metrics_of_each_threshold(lists, data):
    ids, scores, truth = lists
    who = np.array(data.draw(st.lists(st.sampled_from("wxyz"), min_size=len(truth), max_size=len(truth))))
    grid = data.draw(st.lists(SCORES, min_size=1, max_size=3))
    curve = threshold_curve(ids, scores, truth, who, grid)
    assert curve["threshold"].tolist() == grid
    for threshold, row in zip(grid, curve.to_dict("records"), strict=True):
        answers = rank_new(ids, scores, threshold)
        first, figures = answers[:, 0], summary(truth, answers)
        expected = {name: figures[name] for name in ("map5", "map5_known", "map5_new")}
        expected |= balanced_accuracies(truth, first, who)
        known = truth != NEW
        expected["false_negatives"] = np.mean(first[known] == NEW) if known.any() else np.nan
        expected |= {"fraction_new": np.mean(first == NEW), "threshold": threshold}
        assert row == pytest.approx({name: expected[name] for name in row}, nan_ok=True, abs=1e-6)


def test_threshold_curve_without_individuals_counts_photographs_of_new_ones_alike():
    ids, scores = np.tile(list("abcde"), (3, 1)), np.array([[0.9, 0, 0, 0, 0], [0.2, 0, 0, 0, 0], [0.4, 0, 0, 0, 0]])
    curve = threshold_curve(ids, scores, np.array(["a", NEW, NEW]), grid=[0.3])
    assert curve["baus"][0] == 0.5 and curve["baks"][0] == 1
    assert len(threshold_curve(ids, scores, ["a", NEW, NEW])) == 201


def weighed(values, truth, share):
    """Mean of the rows' values in which new animals count `share` together."""
    new = truth == NEW
    return share * values[new].mean() + (1 - share) * values[~new].mean()


@laws
@given(ranked(least=1), st.sampled_from([None, 0.05, 0.5, 0.9]))
def test_fit_threshold_of_any_lists_is_the_best_of_all_cut_points(lists, share):
    ids, scores, truth = lists
    assume(0 < (truth == NEW).sum() < len(truth))
    given_share = np.mean(truth == NEW) if share is None else share
    cuts = np.unique(scores[np.isfinite(scores)])  # between two of these every threshold gives the same lists

    def worth(threshold):
        return weighed(average_precision(truth, rank_new(ids, scores, threshold)), truth, given_share)

    best = max(worth(cut) for cut in [*cuts, cuts[-1] + 1])
    assert worth(fit_threshold(ids, scores, truth, share)) >= best - 1e-6


@laws
@given(ranked(least=1))
def test_fit_threshold_of_a_larger_share_of_new_animals_is_no_lower(lists):
    ids, scores, truth = lists
    assume(0 < (truth == NEW).sum() < len(truth))
    levels = [fit_threshold(ids, scores, truth, share) for share in (0.02, 0.3, 0.9)]
    called = [np.mean(rank_new(ids, scores, level)[:, 0] == NEW) for level in levels]
    assert levels == sorted(levels) and called == sorted(called)


def test_fit_threshold_of_a_fine_grid_is_the_best_of_many_scores():
    rng = np.random.default_rng(0)
    for _ in range(5):
        ids = np.stack([rng.permutation(list("abcdefg"))[:5] for _ in range(60)])
        scores = -np.sort(-rng.random((60, 5)), axis=1)
        truth = np.where(rng.random(60) < 0.3, NEW, ids[np.arange(60), rng.integers(0, 5, 60)])
        best = map_at_5(truth, rank_new(ids, scores, fit_threshold(ids, scores, truth, n_grid=3000)))
        assert best >= max(map_at_5(truth, rank_new(ids, scores, t)) for t in np.linspace(0, 1, 23)) - 1e-9


def test_fit_threshold_of_several_best_is_the_middle_one():
    known, new = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0.1, 0.0, -0.1, -0.2, -0.3])
    ids, scores = np.tile(list("abcde"), (2, 1)), np.stack([known, new])
    # every threshold above 0.1 and up to 0.9 is right; the grid's are quantiles of the ten scores
    assert fit_threshold(ids, scores, ["a", NEW]) == pytest.approx(0.65, abs=0.01)


@pytest.mark.parametrize("shift", [0.0, -10.0, 5.0])
def test_fit_threshold_of_only_new_or_only_known_animals_is_beyond_all_scores(shift):
    ids, scores = np.tile(list("abcde"), (3, 1)), np.tile([0.5, 0.4, 0.3, 0.2, 0.1], (3, 1)) + shift
    above, below = fit_threshold(ids, scores, [NEW] * 3), fit_threshold(ids, scores, ["a"] * 3)
    assert (rank_new(ids, scores, above)[:, 0] == NEW).all() and above >= 1
    assert (rank_new(ids, scores, below, 6)[:, 5] == NEW).all() and below <= -1
    if shift == 0:
        assert (below, above) == (-1, 1)
    scores[:, 3:] = -np.inf  # lists of three
    assert np.isfinite([fit_threshold(ids, scores, truth) for truth in ([NEW] * 3, ["a"] * 3)]).all()


@laws
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30, unique=True), st.floats(0.01, 0.99))
def test_threshold_for_share_of_any_scores_calls_that_share_new(best, share):
    scores = np.array(best)[:, None] / 1000 - [0, 0.1]
    level = threshold_for_fraction(scores, share)
    assert abs(np.mean(scores[:, 0] < level) - share) <= 1 / len(best)


@pytest.mark.parametrize("truth", [["a", "b"], [NEW, NEW]])
def test_estimate_share_new_from_one_kind_of_animals_is_refused(truth):
    with pytest.raises(UserError, match="both known and new animals"):
        estimate_prior_new([[0.5], [0.2]], truth, [[0.3]])


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_estimate_share_new_of_a_mixture_finds_its_share(share):
    rng = np.random.default_rng(0)
    known, new = rng.normal(0.7, 0.15, 4000), rng.normal(0.3, 0.15, 4000)
    truth = np.repeat(["a", NEW], [1500, 500])
    learnt = np.r_[known[:1500], new[:500]][:, None]
    asked = np.r_[known[2000 : 2000 + round(2000 * (1 - share))], new[2000 : 2000 + round(2000 * share)]][:, None]
    assert estimate_prior_new(learnt, truth, asked) == pytest.approx(share, abs=0.04)
    # the first step is already beyond the share it starts from
    assert abs(estimate_prior_new(learnt, truth, asked, rounds=1) - 0.25) > 0.02


def test_fit_species_thresholds_are_weighed_means_with_the_common_one():
    rng = np.random.default_rng(1)
    n = 120
    truth = np.where(rng.random(n) < 0.3, NEW, "a")
    scores = rng.normal(0.5, 0.2, n)[:, None] - np.arange(5) * 0.05
    ids, species = np.tile(list("abcde"), (n, 1)), np.repeat(["minke", "orca", "sei"], [70, 40, 10])
    truth[species == "sei"] = "a"  # no new one: the common threshold stands
    for share in (None, 0.6):
        common, own = fit_species_thresholds(ids, scores, truth, species, 50, share)
        assert common == fit_threshold(ids, scores, truth, share)
        expected = {"sei": common}
        for name in ("minke", "orca"):
            rows = species == name
            alone = fit_threshold(ids[rows], scores[rows], truth[rows], share)
            expected[name] = (rows.sum() * alone + 50 * common) / (rows.sum() + 50)
        assert own == pytest.approx(expected)
    truth[species == "sei"] = NEW  # all of them are new: likewise
    common, own = fit_species_thresholds(ids, scores, truth, species, 50)
    assert own["sei"] == pytest.approx(common)


def test_fit_species_thresholds_of_a_larger_share_call_more_animals_new():
    rng, n = np.random.default_rng(0), 2000
    truth = np.where(rng.random(n) < 0.2, NEW, "a")
    best = np.where(truth == "a", rng.normal(0.7, 0.15, n), rng.normal(0.5, 0.15, n))
    scores, ids = best[:, None] - np.arange(5) * 0.05, np.tile(np.array(list("abcde")), (n, 1))
    species = np.repeat(["orca", "minke"], n // 2)
    called = []
    for share in (0.02, 0.2, 0.9):
        _, own = fit_species_thresholds(ids, scores, truth, species, 50, share)
        called.append(np.mean([best[i] < own[species[i]] for i in range(n)]))
    assert called[0] < called[1] - 0.05 < called[2] - 0.1


def test_confidence_of_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="choose logistic or isotonic"):
        TopOneCalibrator("platt").fit([[0.9, 0.5]], [True])


@pytest.mark.parametrize("kind", ["logistic", "isotonic"])
@pytest.mark.parametrize(("right", "chance"), [(True, 9 / 10), (False, 1 / 10)])
def test_confidence_of_answers_all_right_or_all_wrong_follows_laplace(kind, right, chance):
    scores = -np.sort(-np.random.default_rng(0).random((8, 2)))
    sure = TopOneCalibrator(kind).fit(scores, np.full(8, right))
    assert sure.predict(scores[:3]).tolist() == [chance] * 3


def test_confidence_of_a_greater_lead_is_higher_in_logistic_kind_only():
    rng = np.random.default_rng(0)
    lead = rng.random(500)
    scores, right = np.column_stack([np.full(500, 0.5), 0.5 - lead]), rng.random(500) < lead
    near, far, alone = [0.5, 0.4], [0.5, -0.4], [0.5, -np.inf]  # of a single candidate the lead is infinite
    sure = TopOneCalibrator().fit(scores, right).predict([near, far, alone])
    assert 0 < sure[0] < 0.3 < 0.7 < sure[1] < sure[2] < 1
    assert sure[2] == TopOneCalibrator().fit(scores, right).predict([[0.5, -1.5]])[0]  # as if it were 2
    same = TopOneCalibrator("isotonic").fit(scores, right).predict([near, far, alone])
    assert same == pytest.approx([right.mean()] * 3)


@pytest.mark.parametrize("kind", ["logistic", "isotonic"])
def test_cross_fit_confidence_of_a_fold_is_learnt_from_the_others(kind):
    rng = np.random.default_rng(2)
    folds = [(-np.sort(-rng.random((60, 3)), axis=1), rng.random(60) < 0.5) for _ in range(3)]
    found = cross_fit_confidence(folds, kind)
    for i, (scores, _) in enumerate(folds):
        others = [folds[j] for j in range(3) if j != i]
        learnt = TopOneCalibrator(kind).fit(
            np.concatenate([s for s, _ in others]), np.concatenate([r for _, r in others])
        )
        np.testing.assert_array_equal(found[i], learnt.predict(scores))
    (alone,) = cross_fit_confidence(folds[:1], kind)
    np.testing.assert_array_equal(alone, TopOneCalibrator(kind).fit(*folds[0]).predict(folds[0][0]))


@st.composite
def answers_of(draw, least, most):
    """Lists of four candidates and `new_individual` of which one is the truth: `(ids, scores, level, truth)`."""
    n = draw(st.integers(least, most))
    scores = np.array(draw(st.lists(st.lists(SCORES, min_size=4, max_size=4), min_size=n, max_size=n)))
    level = np.array(draw(st.lists(SCORES, min_size=n, max_size=n)))
    truth = draw(st.lists(st.sampled_from([*"abcd", NEW]), min_size=n, max_size=n))
    return np.tile(list("abcd"), (n, 1)), -np.sort(-scores, axis=1), level, np.array(truth, dtype=str)


def held(sets, answers, groups=None):
    """`[n]` bool, whether each list holds its truth."""
    *given_answers, truth = answers
    rank = rank_of_truth(truth, sets.predict_sets(*given_answers, groups))
    return rank > 0


@laws
@given(answers_of(2, 14), st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.8]))
def test_candidate_sets_of_any_answers_miss_no_more_than_alpha_of_those_left_out(answers, alpha):
    """The law of split conformal prediction without chance: each answer is left out once, and asked by the others."""
    n = len(answers[0])
    missed = 0
    for i in range(n):
        rest, own = np.arange(n) != i, np.arange(n) == i
        sets = CandidateSets(alpha).fit(*(part[rest] for part in answers))
        missed += not held(sets, tuple(part[own] for part in answers))[0]
    assert missed <= alpha * n + 1e-9


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_candidate_sets_of_answers_to_come_hold_the_truth_at_least_1_minus_alpha(alpha):
    calibrate, ask, seeds, coverage = 99, 50, 80, []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, int(alpha * 100)])
        n = calibrate + ask
        scores = -np.sort(-rng.normal(size=(n, 8)), axis=1)
        ids, level = np.tile(list("abcdefgh"), (n, 1)), rng.normal(size=n)
        truth = rank_new(ids, scores, level, 9)[np.arange(n), np.minimum(rng.geometric(0.4, n) - 1, 8)]
        answers = (ids, scores, level, truth)
        sets = CandidateSets(alpha).fit(*(part[:calibrate] for part in answers))
        coverage.append(held(sets, tuple(part[calibrate:] for part in answers)).mean())
    # without ties the expectation lies in [1 - alpha, 1 - alpha + 1 / (n + 1)]; a mean strays by its standard error
    stray = 3 * np.sqrt(alpha * (1 - alpha) * (1 / ask + 1 / calibrate) / seeds)
    assert 1 - alpha - stray <= np.mean(coverage) <= 1 - alpha + 1 / (calibrate + 1) + stray


@laws
@given(answers_of(1, 14), st.sampled_from([0.05, 0.1, 0.3]), st.sampled_from([0.3, 0.5, 0.9]))
def test_candidate_sets_of_a_larger_alpha_are_parts_of_those_of_a_smaller(answers, small, large):
    *asked, truth = answers
    lists = [CandidateSets(alpha).fit(*asked, truth).predict_sets(*asked) for alpha in (small, large)]
    assert ((lists[1] == lists[0]) | (lists[1] == "")).all() and (lists[1][:, 0] != "").all()


@laws
@given(answers_of(1, 14), st.sampled_from([0.1, 0.3, 0.6]))
def test_candidate_sets_of_any_answers_list_all_within_their_distance_of_the_best(answers, alpha):
    ids, scores, level, truth = answers
    sets = CandidateSets(alpha).fit(ids, scores, level, truth)
    names, sizes = sets.predict(ids, scores, level)
    for i, size in enumerate(sizes):
        value = {NEW: level[i]} | dict(zip(ids[i], scores[i], strict=True))
        near = {name for name in value if max(value.values()) - value[name] <= sets.distances_[""]}
        assert set(names[i, :size].tolist()) == near
    assert names.tolist() == rank_new(ids, scores, level, 5).tolist()


def test_candidate_sets_of_empty_places_list_none_of_them():
    ids, scores = np.array([["a", "b", ""], ["", "", ""]]), np.array([[0.9, 0.8, -np.inf], [-np.inf] * 3])
    sets = CandidateSets(0.1).fit(ids, scores, 0.5, np.array(["a", NEW]))  # too few: everything is listed
    assert sets.distances_[""] == np.inf
    assert sets.predict_sets(ids, scores, 0.5).tolist() == [["a", "b", NEW, ""], [NEW, "", "", ""]]


def test_candidate_sets_of_groups_too_small_for_a_distance_of_their_own_share_one():
    rng = np.random.default_rng(0)
    ids, scores = np.tile(list("abc"), (300, 1)), -np.sort(-rng.normal(size=(300, 3)), axis=1)
    groups = np.where(np.arange(300) < 290, "beluga", "rare")
    sets = CandidateSets(0.1).fit(ids, scores, -9.0, np.repeat("a", 300), groups)
    assert set(sets.distances_) == {"beluga", ""} and sets.distances_[""] == 0
    few = CandidateSets(0.1).fit(ids[:5], scores[:5], -9.0, np.repeat("a", 5))
    assert few.distances_[""] == np.inf  # five rows cannot promise nine in ten: everything is listed
    assert few.predict(ids[:2], scores[:2], -9.0)[1].tolist() == [4, 4]


def test_candidate_sets_of_groups_have_the_distances_of_their_own_rows():
    ids = np.tile(list("ab"), (140, 1))
    groups = np.repeat(["beluga", "orca", "rare", "seldom"], [100, 20, 10, 10])
    gap = np.repeat([0.1, 0.2, 0.3, 0.4], [100, 20, 10, 10])  # how far the truth, b, is below a
    scores, truth = np.column_stack([np.full(140, 0.9), 0.9 - gap]), np.full(140, "b")
    sets = CandidateSets(0.2, min_rows=20).fit(ids, scores, 0.0, truth, groups)
    assert sets.distances_ == pytest.approx({"beluga": 0.1, "orca": 0.2, "": 0.4})
    asked = (ids[:3], np.tile([0.9, 0.65], (3, 1)), 0.0, ["beluga", "orca", "never seen"])
    assert sets.predict(*asked)[1].tolist() == [1, 1, 2]
    # 20 rows of the small groups are enough for a distance of theirs; 19 are not, and all rows together speak
    part = np.arange(140) != 130
    fewer = CandidateSets(0.2, min_rows=20).fit(ids[part], scores[part], 0.0, truth[part], groups[part])
    assert fewer.distances_[""] == pytest.approx(0.2)
    assert set(CandidateSets(0.2).fit(ids, scores, 0.0, truth, groups).distances_) == {"beluga", ""}


def plain_loss(x, lists, truth, weight):
    """What `Chances.fit` makes least, of its four numbers in units of the temperature: the surprise of the answers, and
    how far the numbers stray from the prior."""
    made = CandidateProbabilities(0.05 / x[0], x[1] / x[0], *(np.array(x[2:]) * 0.05 / x[0]))
    listed, other = made.predict(*lists, 0.5)
    rank = rank_of_truth(truth, rank_new(*lists, 0.5, lists[0].shape[1] + 1))
    chance = [row[r - 1] if r else o for row, o, r in zip(listed, other, rank, strict=True)]
    return (((x - [1, 0, 0, 0]) / [1, 1, 3, 3]) ** 2).sum() / 2 - weight @ np.log(chance)


def test_chances_of_any_answers_are_the_most_likely_ones():
    rng = np.random.default_rng(1)
    lists = np.tile(list("abcd"), (80, 1)), -np.sort(-rng.normal(0.4, 0.2, (80, 4)), axis=1)
    lists[1][:5, 3] = -np.inf
    lists[0][:5, 3] = ""
    chance = np.column_stack(CandidateProbabilities(0.1, 3.0, 0.1, -0.1).predict(*lists, 0.5)).cumsum(
        axis=1
    )  # of a bend above 0
    names = np.column_stack([rank_new(*lists, 0.5, 5), np.full(80, "z")])  # z is not listed
    truth = names[np.arange(80), (chance < rng.random((80, 1))).sum(axis=1)]
    weight = rng.uniform(0.5, 2, 80)
    made = CandidateProbabilities().fit(*lists, 0.5, truth, weight)
    sharp = 0.05 / made.temperature_
    x = np.array([sharp, made.bend_ * sharp, made.b_new_ / made.temperature_, made.b_other_ / made.temperature_])
    assert set(truth) >= {"a", "b", NEW, "z"} and made.bend_ > 0.2
    for step in np.eye(4) / 1e4:
        slope = (plain_loss(x + step, lists, truth, weight) - plain_loss(x - step, lists, truth, weight)) * 5e3
        assert abs(slope) < 0.01
    alike = CandidateProbabilities().fit(*lists, 0.5, truth, np.ones(80))
    assert alike.as_dict() == CandidateProbabilities().fit(*lists, 0.5, truth).as_dict()
    assert alike.as_dict() != made.as_dict()


numbers = st.builds(
    CandidateProbabilities, st.floats(0.02, 0.5), st.floats(0, 3), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)
)


@laws
@given(ranked(), numbers, SCORES)
def test_chances_of_any_lists_add_up_to_one(lists, made, threshold):
    ids, scores, _ = lists
    listed, other = made.predict(ids, scores, threshold)
    names = rank_new(ids, scores, threshold, ids.shape[1] + 1)
    assert (listed >= 0).all() and (other >= 0).all()
    np.testing.assert_allclose(listed.sum(axis=1) + other, 1)
    assert (listed[names == ""] == 0).all()
    empty = (ids == "").all(axis=1)  # nobody is known: the animal is new, and nobody else
    assert (other[empty] == 0).all() and (listed[empty][names[empty] == NEW] == 1).all()


@laws
@given(numbers, st.integers(-3, 10), st.integers(-3, 10))
def test_chances_level_is_the_score_of_a_name_as_likely_as_a_new_animal(made, threshold, score):
    threshold, score = threshold / 10, score / 10
    level = made.equivalent_threshold(threshold)
    assume(abs(level - score) > 1e-9)
    listed, _ = made.predict([["a"]], [[score]], threshold)
    names = rank_new([["a"]], [[score]], threshold, 2)[0].tolist()
    name, new = listed[0, names.index("a")], listed[0, names.index(NEW)]
    assert (name >= new) if score > level else (name <= new)
    listed, _ = made.predict([["a"]], [[level]], threshold)
    assert listed[0, 0] == pytest.approx(listed[0, 1])


def test_chances_of_the_prior_are_a_softmax_of_scores():
    listed, other = CandidateProbabilities().predict([["a", "b"]], [[0.9, 0.85]], 0.8)
    expected = np.exp(np.array([0.9, 0.85, 0.8, 0.8]) / 0.05)
    np.testing.assert_allclose([*listed[0], other[0]], expected / expected.sum())
    bent = CandidateProbabilities(0.1, 2.0, 0.3, -0.2).predict([["a", "b"]], [[0.5, -0.5]], 0.4)
    expected = np.exp(np.array([0.5 + 0.25, 0.4 + 0.16 + 0.3, -0.5, 0.4 + 0.16 - 0.2]) / 0.1)
    np.testing.assert_allclose([*bent[0][0], bent[1][0]], expected / expected.sum())
