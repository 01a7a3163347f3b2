"""Metrics against plain implementations, row by row."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from happywhale_nb.data.dataset import NEW
from happywhale_nb.retrieval.metrics import (
    auroc_new,
    average_precision,
    balanced_accuracies,
    bootstrap_interval,
    calibration_metrics,
    classification_metrics,
    cmc,
    map_at_5,
    mean_gain,
    paired_gain,
    rank_of_truth,
    student_interval,
    summary,
    summary_by,
    top_k_accuracy,
)

laws = settings(max_examples=50, deadline=None, derandomize=True)
NAMES = ["a", "b", "c", NEW]


@st.composite
def answered(draw, least=0):
    """Truths `[n]` and answers `[n, m]`, m from 1 to 7: names may be repeated, and "" stands where there are fewer."""
    m = draw(st.integers(1, 7))
    rows = draw(st.lists(st.tuples(st.sampled_from(NAMES), _list_of(m)), min_size=least, max_size=12))
    return np.array([t for t, _ in rows], dtype=str), np.array([a for _, a in rows], dtype=str).reshape(len(rows), m)


def _list_of(m):
    return st.lists(st.sampled_from([*NAMES, "d", ""]), min_size=m, max_size=m)


def plain_rank(truth, row):
    """Place of the truth in a list, counted from 1; 0 if it is not there."""
    for place, name in enumerate(row, 1):
        if name == truth:
            return place
    return 0


def plain_precision(truth, answers):
    """1/rank among the first five of each list, else 0."""
    ranks = [plain_rank(t, row[:5]) for t, row in zip(truth, answers, strict=True)]
    return [1 / rank if rank else 0.0 for rank in ranks]


def plain_mean(values):
    """The mean, not-a-number of nothing."""
    return sum(values) / len(values) if len(values) else math.nan


@laws
@given(answered())
def test_map_at_5_of_any_lists_equals_the_plain_mean(lists):
    truth, answers = lists
    expected = plain_precision(truth, answers)
    assert average_precision(truth, answers).tolist() == expected
    assert map_at_5(truth, answers) == pytest.approx(plain_mean(expected), nan_ok=True)
    assert rank_of_truth(truth, answers).tolist() == [plain_rank(t, r) for t, r in zip(truth, answers, strict=True)]


@laws
@given(answered(least=1))
def test_map_at_5_of_codes_equals_that_of_names(lists):
    truth, answers = lists
    code = {name: i for i, name in enumerate([*NAMES, "d"])} | {"": -1}  # -1: no candidate, never a truth
    codes = np.vectorize(code.get)(answers)
    assert map_at_5(np.array([code[t] for t in truth]), codes) == map_at_5(truth, answers)


def test_average_precision_with_a_repeated_name_counts_its_first_rank():
    answers = [list("abcde"), list("bacde"), list("bcade"), list("bcdae"), list("bcdea"), list("bcdef"), list("bbbba")]
    assert average_precision(["a"] * 7, np.array(answers)).tolist() == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 0, 1 / 5]
    assert average_precision(["a"], np.array([list("abcaa")])).tolist() == [1]


def test_average_precision_of_a_sixth_answer_is_zero():
    assert average_precision(["a"], np.array([list("bcdefa")])).tolist() == [0]


@pytest.mark.parametrize(
    ("truth", "answers", "said"),
    [
        (np.arange(3), np.arange(3), r"give \[n\], and \[n, m\]"),
        (np.zeros((3, 1), int), np.zeros((3, 2), int), r"give \[n\], and \[n, m\]"),
        (np.arange(3), np.zeros((3, 2, 2), int), r"give \[n\], and \[n, m\]"),
        (np.arange(2), np.zeros((3, 2), int), "2 truths for 3 rows"),
        (np.arange(3), np.array([["0"], ["1"], ["2"]]), "both alike"),
        (np.array(["0", "1"]), np.array([[0], [1]]), "both alike"),
    ],
)
def test_rank_of_truth_of_shapes_or_kinds_that_do_not_fit_is_refused(truth, answers, said):
    with pytest.raises(ValueError, match=said):
        rank_of_truth(truth, answers)


@laws
@given(answered(), st.integers(1, 8))
def test_cmc_of_any_lists_equals_plain_counting(lists, k):
    truth, answers = lists
    ranks = [plain_rank(t, row) for t, row in zip(truth, answers, strict=True)]
    expected = plain_mean([0 < rank <= k for rank in ranks])
    assert cmc(truth, answers, (1, k))[k] == pytest.approx(expected, nan_ok=True)
    assert top_k_accuracy(truth, answers, k) == pytest.approx(expected, nan_ok=True)
    assert list(cmc(truth, answers)) == [1, 3, 5, 10]
    assert top_k_accuracy(truth, answers) == pytest.approx(cmc(truth, answers)[1], nan_ok=True)


@laws
@given(answered(least=1))
def test_summary_of_any_lists_equals_plain_counting(lists):
    truth, answers = lists
    values, found = plain_precision(truth, answers), summary(truth, answers)
    known = [value for value, t in zip(values, truth, strict=True) if t != NEW]
    new = [value for value, t in zip(values, truth, strict=True) if t == NEW]
    expected = {"map5": plain_mean(values), "map5_known": plain_mean(known), "map5_new": plain_mean(new)}
    expected["top1"] = plain_mean([t == row[0] for t, row in zip(truth, answers, strict=True)])
    expected["top5"] = plain_mean([t in row[:5] for t, row in zip(truth, answers.tolist(), strict=True)])
    expected |= {"n": len(truth), "fraction_new": len(new) / len(truth)}
    assert found == pytest.approx(expected, nan_ok=True)


@laws
@given(answered(least=1), st.data())
def test_summary_by_of_any_groups_is_the_summary_of_their_rows(lists, data):
    truth, answers = lists
    groups = data.draw(st.lists(st.sampled_from("xyz"), min_size=len(truth), max_size=len(truth)))
    table = summary_by(groups, truth, answers)
    assert sorted(table.index) == sorted(set(groups)) and table["n"].is_monotonic_decreasing
    for group in set(groups):
        rows = [i for i, name in enumerate(groups) if name == group]
        assert table.loc[group].to_dict() == pytest.approx(summary(truth[rows], answers[rows]), nan_ok=True)


def plain_macro_f1(truth, first):
    """Mean F1 of the classes that occur among the truths."""
    scores = []
    for name in sorted(set(truth)):
        hit = sum(t == f == name for t, f in zip(truth, first, strict=True))
        scores.append(2 * hit / (list(truth).count(name) + list(first).count(name)))
    return plain_mean(scores)


@laws
@given(answered())
def test_classification_of_any_answers_equals_plain_counting(lists):
    truth, first = lists[0], lists[1][:, 0]
    found = classification_metrics(truth, first)
    for end, rows in (("", np.arange(len(truth))), ("_known", np.flatnonzero(truth != NEW))):
        t, f = truth[rows].tolist(), first[rows].tolist()
        right = plain_mean([a == b for a, b in zip(t, f, strict=True)])
        assert found[f"accuracy{end}"] == pytest.approx(right, nan_ok=True)
        assert found[f"macro_f1{end}"] == pytest.approx(plain_macro_f1(t, f), nan_ok=True)


def test_classification_without_known_animals_has_no_figures_of_known_ones():
    figures = classification_metrics([NEW] * 3, ["a", NEW, NEW])
    assert figures["accuracy"] == pytest.approx(2 / 3) and figures["macro_f1"] == pytest.approx(0.8)
    assert np.isnan(figures["accuracy_known"]) and np.isnan(figures["macro_f1_known"])


@laws
@given(st.lists(st.tuples(st.sampled_from(["a", "b", NEW]), st.integers(0, 5)), max_size=15))
def test_auroc_new_of_any_scores_is_the_share_of_pairs_in_order(rows):
    new, known = [s for t, s in rows if t == NEW], [s for t, s in rows if t != NEW]
    pairs = [1 if n < k else 0.5 if n == k else 0 for n in new for k in known]
    found = auroc_new(np.array([t for t, _ in rows], dtype=str), [s for _, s in rows])
    assert found == pytest.approx(plain_mean(pairs), nan_ok=True)


def plain_mean_of_means(values, groups):
    """Mean over the groups of the mean of each."""
    return plain_mean([plain_mean([v for v, h in zip(values, groups, strict=True) if h == g]) for g in set(groups)])


@laws
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from("wxyz")), max_size=15))
def test_balanced_accuracies_of_any_answers_count_individuals_alike(rows):
    truth, first, who = (np.array([row[i] for row in rows], dtype=str) for i in range(3))
    found = balanced_accuracies(truth, first, who)
    baks, baus = (plain_mean_of_means(truth[part] == first[part], who[part]) for part in (truth != NEW, truth == NEW))
    expected = {"baks": baks, "baus": baus, "geometric": (baks * baus) ** 0.5}
    assert found == pytest.approx(expected, nan_ok=True)


def plain_calibration(right, confidence, bins):
    """ECE by bins of [0, 1], and the rows of the table: confidence, accuracy, n."""
    table = []
    for number in range(bins):
        rows = [i for i, c in enumerate(confidence) if min(int(c * bins), bins - 1) == number]
        if rows:
            table.append([plain_mean([x[i] for i in rows]) for x in (confidence, right)] + [len(rows)])
    return sum(n * abs(a - c) for c, a, n in table) / len(right), table


@laws
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=20), st.integers(1, 12))
def test_calibration_of_any_confidences_equals_plain_bins(rows, bins):
    right, confidence = [float(r) for r, _ in rows], [c for _, c in rows]
    found, (ece, table) = calibration_metrics(right, confidence, bins), plain_calibration(right, confidence, bins)
    assert found["ece"] == pytest.approx(ece, abs=1e-12)
    assert found["brier"] == pytest.approx(plain_mean([(r - c) ** 2 for r, c in zip(right, confidence, strict=True)]))
    assert list(found["table"]) == ["confidence", "accuracy", "n"]
    np.testing.assert_allclose(found["table"].to_numpy(float), table, atol=1e-12)


def test_calibration_at_the_ends_of_its_range_has_ten_bins():
    table = calibration_metrics([False, True, True], [0.0, 1.0, 0.95])["table"]
    assert table["n"].tolist() == [1, 2] and table["confidence"].tolist() == pytest.approx([0, 0.975])


@pytest.mark.parametrize("outside", [-1e-9, 1 + 1e-9, float("nan")])
def test_calibration_outside_0_and_1_is_refused(outside):
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        calibration_metrics([True, False], [0.5, outside])


def test_calibration_of_no_rows_is_nan():
    found = calibration_metrics([], [])
    assert np.isnan(found["ece"]) and np.isnan(found["brier"]) and found["table"].empty
    assert list(found["table"]) == ["confidence", "accuracy", "n"]


def test_bootstrap_interval_draws_individuals_and_weighs_photographs():
    # of two individuals both draws are the first in 1/4 of the rounds, both the second in 1/4
    values, who = [0, 0, 0, 1], ["a", "a", "a", "b"]
    assert bootstrap_interval(values, who) == (0, 1)
    assert bootstrap_interval(values, who, level=0.4) == (0.25, 0.25)
    assert bootstrap_interval(values[::-1], who[::-1], level=0.4) == (0.25, 0.25)


@pytest.mark.parametrize(("level", "deviations"), [(0.95, 1.96), (0.5, 0.674)])
def test_bootstrap_interval_of_many_individuals_is_the_normal_one(level, deviations):
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = bootstrap_interval(values, np.arange(400), level)
    half = deviations * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert (low, high) == bootstrap_interval(values, np.arange(400), level)  # the draws are those of a seed
    assert (low, high) != bootstrap_interval(values, np.arange(400), level, seed=1)


def test_bootstrap_interval_without_options_is_of_95_percent_2000_rounds_and_seed_0():
    values, who = np.random.default_rng(1).random(30), np.arange(30)
    assert bootstrap_interval(values, who) == bootstrap_interval(values, who, 0.95, 2000, 0)


def test_bootstrap_interval_of_one_individual_is_nan():
    assert np.isnan(bootstrap_interval([0.5, 1], ["a", "a"])).all()
    assert np.isnan(bootstrap_interval([], [])).all()


@laws
@given(answered(least=1), st.data())
def test_paired_gain_of_any_answers_is_the_mean_difference(lists, data):
    truth, before = lists
    n, m = before.shape
    after = np.array(data.draw(st.lists(_list_of(m), min_size=n, max_size=n)), dtype=str)
    who = data.draw(st.lists(st.sampled_from("wxyz"), min_size=n, max_size=n))
    gain = np.subtract(plain_precision(truth, after), plain_precision(truth, before))
    found = paired_gain(truth, before, after, who)
    assert found["gain"] == pytest.approx(plain_mean(gain))
    np.testing.assert_array_equal([found["low"], found["high"]], bootstrap_interval(gain, who))


def test_mean_gain_of_no_rows_is_nan():
    assert np.isnan(list(mean_gain([], []).values())).all()


@laws
@given(st.lists(st.integers(0, 100), min_size=2, max_size=10, unique=True), st.sampled_from([0.5, 0.95]))
def test_student_interval_of_any_values_is_scipys(percents, level):
    values = np.array(percents) / 100
    found, mean, sd = student_interval(values, level), values.mean(), values.std(ddof=1)
    low, high = stats.t.interval(level, len(values) - 1, mean, sd / len(values) ** 0.5)
    assert found == pytest.approx({"mean": mean, "sd": sd, "low": low, "high": high})


def test_student_interval_of_one_value_has_no_spread():
    found = student_interval([0.7])
    assert found["mean"] == 0.7 and np.isnan([found["sd"], found["low"], found["high"]]).all()


def test_student_interval_without_a_level_is_of_95_percent():
    assert student_interval([0.1, 0.2, 0.4]) == student_interval([0.1, 0.2, 0.4], 0.95)
