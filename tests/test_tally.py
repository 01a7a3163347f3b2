"""Weighted votes against a plain count, and the search for weights against one that counts everything anew."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import NEW
from happywhale_nb.ensemble.ranked_lists import RankedLists
from happywhale_nb.ensemble.voting import as_thousandths, count_votes, explain_votes, rank_votes
from happywhale_nb.ensemble.weights import (
    RankMargins,
    leave_one_out_loss,
    nested_cross_validation,
    search_weights,
    simulate,
    weight_intervals,
)

quick = settings(max_examples=100, deadline=None, derandomize=True)
VOTE = 120  # the plain count is in whole 120ths of a vote, and weights in thousandths: equals are equal
RANKS = {
    "paper": (1200, 780, 396, 348, 324),
    "notebook": (1200, 780, 396, 348, 324),
    "borda": (600, 480, 360, 240, 120),
}
LEAD = 5 * VOTE * 1000


def plain_vote(voting, rank, name, model, counts, no_fin):
    """What one mention is worth at weight 1, as the rule says it."""
    vote = RANKS[voting][rank]
    if voting == "notebook":
        if no_fin and model >= 24:
            return 0
        if name == NEW:
            return vote - (300 if rank >= 2 else 588)
        return vote - 4 * min(counts.get(name, 0), 400)
    return vote // 4 if voting == "paper" and name == NEW and rank >= 2 else vote


def plain_totals(lists, weights, voting="paper", counts=None, no_fin=False, price=0):
    """`[(total, name)]` of one photograph, most first; equals by the best rank they were given, then by the model."""
    total, first, counts = {}, {}, counts or {}
    for model, (names, weight) in enumerate(zip(lists, weights, strict=True)):
        for rank, name in enumerate(names):
            total[name] = total.get(name, 0) + weight * plain_vote(voting, rank, name, model, counts, no_fin)
            first[name] = min(first.get(name, (rank, model)), (rank, model))
    for name in total:
        total[name] -= price * VOTE * min(counts.get(name, 0), 400)
    return sorted(((votes, name) for name, votes in total.items()), key=lambda pair: (-pair[0], first[pair[1]]))


def lists_of_photo(lists, photo):
    """What each model says of one photograph."""
    return [[name for name in names if name] for names in lists.decode(lists.codes[:, photo])]


def plain_answers(lists, weights, voting="paper", counts=None, no_fin=None, price=0):
    """Answers `[n, 5]`; weights and the price of a photograph in whole thousandths."""
    rows = []
    for i in range(len(lists.images)):
        fin = no_fin is not None and no_fin[i]
        ranked = plain_totals(lists_of_photo(lists, i), weights, voting, counts, fin, price)
        names = [name for _, name in ranked[:5]]
        if voting == "notebook" and len(names) > 1 and names[0] == NEW and ranked[0][0] - ranked[1][0] < LEAD:
            names[:2] = names[1], names[0]
        rows.append(names + [""] * (5 - len(names)))
    return np.array(rows)


def plain_points(truth, answers):
    """MAP@5 times 60 times the number of photographs, a whole number."""
    return int(((answers == np.asarray(truth)[:, None]) * np.array([60, 30, 20, 15, 12])).sum())


def thousandths(weights):
    return [round(1000 * weight) for weight in weights]


@st.composite
def some_lists(draw, most=26):
    """Lists of a few models, now and then of more than the 24 that see fins; short and empty lists among them."""
    names = draw(st.permutations([*"abcdefg", NEW]))[: draw(st.integers(1, 8))]
    m, n = draw(st.sampled_from([1, 2, 3, most])), draw(st.integers(1, 3))
    codes = np.full((m, n, 5), -1, np.int32)
    for place in np.ndindex(m, n):
        found = draw(st.lists(st.integers(0, len(names) - 1), max_size=5, unique=True))
        codes[place][: len(found)] = found
    images, models = [f"{i}.jpg" for i in range(n)], [f"model{j}" for j in range(m)]
    return RankedLists(np.array(images), np.array(models), np.array(names), codes)


def weights_for(data, m):
    """Weights in thousandths: equal ones make ties, some are 0 or negative."""
    return data.draw(
        st.lists(st.sampled_from([1000, 1000, 500, 0, -300]) | st.integers(-2000, 9000), min_size=m, max_size=m)
    )


@quick
@given(some_lists(), st.sampled_from(["paper", "notebook", "borda"]), st.data())
def test_count_votes_of_any_lists_answers_as_a_plain_count(lists, voting, data):
    counts = data.draw(st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from([1, 2, 30, 399, 400, 401, 1000])))
    no_fin = np.array(data.draw(st.lists(st.booleans(), min_size=len(lists.images), max_size=len(lists.images))))
    weights = weights_for(data, len(lists.models))
    for i, fin in enumerate(no_fin):  # a lead of exactly five votes may be missed by the last bit of a float
        ranked = plain_totals(lists_of_photo(lists, i), weights, voting, counts, fin)
        assume(voting != "notebook" or len(ranked) < 2 or ranked[0][0] - ranked[1][0] != LEAD)
    got = count_votes(lists, voting, counts, no_fin).predict(np.array(weights) / 1000)
    assert got.tolist() == plain_answers(lists, weights, voting, counts, no_fin).tolist()


@quick
@given(some_lists(most=4), st.sampled_from(["paper", "notebook", "borda"]), st.data())
def test_explain_votes_of_any_lists_shows_the_votes_of_a_plain_count(lists, voting, data):
    weights, counts = weights_for(data, len(lists.models)), {"a": 30, "b": 500}
    votes = count_votes(lists, voting, counts)
    for i, image in enumerate(lists.images):
        table = explain_votes(votes, np.array(weights) / 1000, image)
        expected = {
            name: votes / VOTE / 1000 for votes, name in plain_totals(lists_of_photo(lists, i), weights, voting, counts)
        }
        assert table["total"].to_dict() == pytest.approx(expected)
        assert table["total"].is_monotonic_decreasing
        assert np.allclose(table[list(lists.models)].sum(axis=1), table["total"])


@quick
@given(some_lists(most=4), st.booleans(), st.data())
def test_rank_margins_of_any_weights_scores_as_a_plain_count(lists, penalised, data):
    truth = data.draw(st.lists(st.sampled_from([*"abcdefg", NEW, "z"]), min_size=len(lists.images), max_size=9))
    truth, counts = truth[: len(lists.images)], {"a": 30, "b": 500, NEW: 0}
    margins = RankMargins(count_votes(lists, "paper", counts, penalised=penalised), truth)
    weights = weights_for(data, len(lists.models)) + [data.draw(st.integers(0, 100))] * penalised

    def recount():
        price = weights[-1] if penalised else 0
        answers = plain_answers(lists, weights[: len(lists.models)], "paper", counts, price=price)
        return plain_points(truth, answers)

    margins.set_weights(np.array(weights) / 1000)
    assert margins.points() == recount()
    for _ in range(3):
        column, change = data.draw(st.integers(0, len(weights) - 1)), data.draw(st.integers(-20_000, 20_000))
        assume(abs(weights[column] + change) <= 100_000)
        tried = margins.points(column, change)
        weights[column] += change
        assert tried == recount()
        margins.move(column, change)
        assert margins.points() == tried and margins.weights.tolist() == weights


@pytest.fixture(scope="module")
def case():
    """27 models about 150 photographs, some lists short: lists, truth, counts, photographs without a fin."""
    lists, truth = simulate(27, 150, animals=60, seed=3)
    rng = np.random.default_rng(1)
    codes = lists.codes.copy()
    codes[rng.random(codes.shape) < 0.05] = -1  # short lists
    codes = np.take_along_axis(codes, np.argsort(codes < 0, axis=2, kind="stable"), axis=2)
    counts = {name: int(c) for name, c in zip(lists.names, rng.integers(1, 200, len(lists.names)), strict=True)}
    counts[NEW] = 0
    return RankedLists(lists.images, lists.models, lists.names, codes), truth, counts, rng.random(150) < 0.3


@pytest.mark.parametrize("voting", ["paper", "notebook", "borda"])
@pytest.mark.parametrize("equal", [True, False])
def test_count_votes_of_many_models_answers_as_a_plain_count(case, voting, equal):
    lists, _, counts, no_fin = case
    weights = np.ones(27) if equal else np.random.default_rng(5).integers(-5, 30, 27) / 10
    got = count_votes(lists, voting, counts, no_fin).predict(weights)
    assert (got == plain_answers(lists, thousandths(weights), voting, counts, no_fin)).all()
    filled = [row[row != ""] for row in got]
    assert all(len(set(row)) == len(row) for row in filled)


def test_count_votes_with_a_frequency_penalty_takes_it_for_each_known_photograph(case):
    lists, _, counts, _ = case
    got = count_votes(lists, "paper", counts, penalised=True).predict(np.r_[np.ones(27), 0.033])
    assert (got == plain_answers(lists, [1000] * 27, "paper", counts, price=33)).all()
    assert (got != count_votes(lists).predict(np.ones(27))).any()


def test_explain_votes_by_the_rule_notebook_has_the_votes_counted_by_hand():
    names = np.array(["a", "b", NEW])
    codes = np.array([[[2, 0, 1, -1, -1], [0, 1, 2, -1, -1]]], np.int32)
    lists = RankedLists(np.array(["x", "y"]), np.array(["one"]), names, codes)
    table = explain_votes(count_votes(lists, "notebook", {"a": 30, "b": 60}), [2], "x")
    assert table["total"].to_dict() == pytest.approx({"a": 2 * (6.5 - 1), NEW: 2 * (10 - 4.9), "b": 2 * (3.3 - 2)})
    table = explain_votes(count_votes(lists, "notebook", {"a": 30, "b": 60}), [1], "y")
    assert table["total"].to_dict() == pytest.approx({"a": 9, "b": 4.5, NEW: 3.3 - 2.5})
    with pytest.raises(UserError, match="z is not among the 2 photographs"):
        explain_votes(count_votes(lists), [1], "z")


def test_count_votes_by_the_rule_notebook_puts_new_second_below_a_lead_of_five():
    names = np.array(["a", NEW])
    lists = RankedLists(np.array(["x"]), np.array(["one"]), names, np.array([[[1, 0, -1, -1, -1]]], np.int32))
    lead = count_votes(lists, "notebook", {"a": 90})  # new 5.1, a 6.5 - 3 = 3.5: a lead of 1.6
    assert lead.predict([1])[0].tolist() == ["a", NEW, "", "", ""]
    assert lead.predict([3])[0].tolist() == ["a", NEW, "", "", ""]  # 4.8 ahead
    assert lead.predict([4])[0].tolist() == [NEW, "a", "", "", ""]  # 6.4 ahead
    assert count_votes(lists, "notebook", {"a": 42}).predict([1])[0, 0] == "a"  # new and a with 5.1 votes each
    alone = RankedLists(np.array(["x"]), np.array(["one"]), names, np.array([[[1, -1, -1, -1, -1]]], np.int32))
    assert count_votes(alone, "notebook").predict([0.1])[0].tolist() == [NEW, "", "", "", ""]


@pytest.mark.parametrize("weight", [100.001, -100.001, float("nan"), float("inf")])
def test_as_thousandths_of_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(UserError, match="numbers between -100 and 100"):
        as_thousandths([1, weight])
    assert as_thousandths([100, -100, 0.0006]).tolist() == [100_000, -100_000, 1]


def test_rank_votes_of_an_unknown_rule_is_refused(case):
    with pytest.raises(UserError, match="rule 'plurality' is not known: choose paper, notebook, borda"):
        rank_votes(case[0], "plurality")


def test_rank_margins_of_too_few_right_answers_is_refused(case):
    with pytest.raises(UserError, match="149 right answers for 150 photographs"):
        RankMargins(count_votes(case[0]), case[1][:149])


def test_rank_margins_with_the_published_weights_scores_as_a_plain_count(case):
    lists, truth, _, _ = case
    weights = np.resize([25, 7, 1.5, 1, 0.1], 27)
    margins = RankMargins(count_votes(lists), truth).set_weights(weights)
    assert margins.points() == plain_points(truth, plain_answers(lists, thousandths(weights)))
    assert margins.map5() == pytest.approx(margins.points() / 9000, abs=1e-12)
    share = np.arange(150) % 3
    own = plain_points(np.repeat(truth, share), np.repeat(plain_answers(lists, thousandths(weights)), share, axis=0))
    assert margins.map5(share.astype(float)) == pytest.approx(own / 60 / share.sum(), abs=1e-12)


def test_rank_margins_after_many_moves_scores_as_one_started_anew(case):
    lists, truth, _, _ = case
    margins = RankMargins(count_votes(lists), truth).set_weights(np.ones(27))
    rng = np.random.default_rng(0)
    for _ in range(40):  # far enough to need 64 bits at times
        column, change = int(rng.integers(27)), int(rng.integers(-15_000, 25_000))
        tried = margins.points(column, change)
        if abs(margins.weights[column] + change) <= 100_000:
            margins.move(column, change)
            assert margins.points() == tried
    fresh = RankMargins(count_votes(lists), truth).set_weights(margins.weights / 1000)
    assert fresh.points() == margins.points()
    assert margins.map5() == pytest.approx(
        plain_points(truth, count_votes(lists).predict(margins.weights / 1000)) / 9000, abs=1e-12
    )


def test_rank_margins_with_a_penalty_and_weights_beyond_32_bits_scores_as_its_answers(case):
    lists, truth, _, _ = case
    counts = dict.fromkeys(lists.names, 1) | {lists.names[3]: 400, lists.names[4]: 5000}
    votes = count_votes(lists, "paper", counts, penalised=True)
    for weights in (np.r_[np.full(27, 99.0), 50.0], np.r_[np.full(27, -20.0), 0.033]):
        margins = RankMargins(votes, truth).set_weights(weights)
        assert margins.points() == plain_points(truth, votes.predict(weights))


def plain_search(lists, truth, counts, gain, step, shrink, penalised):
    """The paper's search as it is told, counting everything anew for every try: weights in thousandths, points."""
    m, most = len(lists.models), 60 * len(truth)
    weights, size = [1000] * m + [0] * penalised, [round(1000 * step)] * m + [round(1000 * step / 30)] * penalised

    def recount(tried):
        price = tried[m] if penalised else 0
        return plain_points(truth, plain_answers(lists, tried[:m], "paper", counts, price=price))

    points, kept = recount(weights), True
    while kept or (shrink and max(size) > 1):
        if not kept:
            size = [max(one // 2, 1) for one in size]
        kept = False
        for j in range(len(weights)):
            tries = [weights[j] + size[j], weights[j] - size[j], *[0] * shrink]
            found = [(recount([*weights[:j], one, *weights[j + 1 :]]), one) for one in tries]
            best, one = max(found, key=lambda pair: pair[0])
            if best - points >= gain * most:
                points, weights[j], kept = best, one, True
    return weights, points


@pytest.mark.parametrize(("shrink", "penalised"), [(False, False), (True, False), (False, True)])
def test_search_weights_finds_the_weights_of_the_plain_search(shrink, penalised):
    lists, truth = simulate(5, 60, animals=40, seed=8)
    counts = {name: int(name, 16) % 7 for name in lists.names if name != NEW}
    margins = RankMargins(count_votes(lists, "paper", counts, penalised=penalised), truth)
    fit = search_weights(margins, min_gain=1e-3, step=0.1, shrink=shrink)
    weights, points = plain_search(lists, truth, counts, 1e-3, 0.1, shrink, penalised)
    assert fit.moves and thousandths(fit.weights) == weights
    assert fit.after == pytest.approx(points / 3600, abs=1e-12) and fit.after > fit.before


def test_search_weights_with_a_gain_too_large_keeps_the_first_weights(case):
    lists, truth, _, _ = case
    fit = search_weights(RankMargins(count_votes(lists), truth), min_gain=0.5, shrink=False)
    assert fit.moves == 0 and (fit.weights == 1).all() and fit.after == fit.before and fit.rounds == 1
    assert fit.tries == 2 * 27
    begun = search_weights(RankMargins(count_votes(lists), truth), min_gain=0.5, shrink=False, start=np.full(27, 2.0))
    assert (begun.weights == 2).all()


def test_search_weights_with_a_limit_of_rounds_stops_there(case):
    lists, truth, _, _ = case
    fit = search_weights(RankMargins(count_votes(lists), truth), min_gain=1e-4, max_rounds=2)
    assert fit.rounds == 2 and fit.tries == 2 * 3 * 27


def test_search_weights_where_nobody_or_everybody_is_right_keeps_the_score():
    names = np.array(["a", "b"])
    lists = RankedLists(np.array(["x"]), np.array(["one"]), names, np.array([[[0, -1, -1, -1, -1]]], np.int32))
    for truth, score in ((["z"], 0), (["a"], 1)):
        fit = search_weights(RankMargins(count_votes(lists), truth))
        assert fit.before == fit.after == score


def test_search_weights_with_a_harmful_model_leaves_it_out():
    lists, truth = simulate(1, 600, animals=500, seed=6)
    wrong = np.random.default_rng(0).integers(1, 500, (1, 600, 5)).astype(np.int32)
    both = RankedLists(lists.images, np.array(["good", "bad"]), lists.names, np.concatenate([lists.codes, wrong]))
    margins = RankMargins(count_votes(both), truth)
    alone = margins.set_weights([1, 0]).map5()
    literal, fit = (search_weights(margins, min_gain=1e-4, shrink=shrink) for shrink in (False, True))
    assert literal.after < alone - 0.02  # from .9 to .8 nothing changes places, so small steps stay there
    assert fit.after >= alone


def part_of(lists, rows):
    """The same models about some of the photographs."""
    return RankedLists(lists.images[rows], lists.models, lists.names, lists.codes[:, rows])


def test_nested_cross_validation_fits_each_fold_on_the_other_folds_alone():
    lists, truth = simulate(6, 240, animals=80, seed=2)
    folds, models = np.arange(240) % 4, list(lists.models)
    report = nested_cross_validation(RankMargins(count_votes(lists), truth), folds, min_gain=1e-4)
    for k, row in report.folds.iterrows():
        own = RankMargins(count_votes(part_of(lists, folds != k)), truth[folds != k])
        assert row[models].tolist() == search_weights(own, min_gain=1e-4).weights.tolist()
        held = RankMargins(count_votes(part_of(lists, folds == k)), truth[folds == k])
        assert row["photos"] == 60 and row["expected"] == pytest.approx(held.set_weights(row[models]).map5(), abs=1e-12)
        assert row["equal"] == pytest.approx(held.set_weights(np.ones(6)).map5(), abs=1e-12)
    whole = search_weights(RankMargins(count_votes(lists), truth), min_gain=1e-4)
    assert report.fitted == whole.after and report.weights.tolist() == whole.weights.tolist()
    assert report.equal == pytest.approx(whole.before) and report.moves == whole.moves
    assert report.expected == pytest.approx(np.average(report.folds["expected"], weights=report.folds["photos"]))
    assert report.optimism == pytest.approx(report.fitted - report.expected)


def test_nested_cross_validation_with_one_fold_is_refused(case):
    with pytest.raises(UserError, match="at least two folds"):
        nested_cross_validation(RankMargins(count_votes(case[0]), case[1]), np.zeros(150))


def test_weight_intervals_draw_animals_and_not_photographs():
    """Each photograph twice, of the same animals: nothing changes, as the draws are of animals."""
    lists, truth = simulate(3, 90, animals=30, seed=4)
    twice = np.repeat(np.arange(90), 2)
    how = {"draws": 6, "min_gain": 1e-3, "seed": 2}
    once = weight_intervals(RankMargins(count_votes(lists), truth), truth, **how)
    again = weight_intervals(RankMargins(count_votes(part_of(lists, twice)), truth[twice]), truth[twice], **how)
    assert once.equals(again) and (once["low"] < once["high"]).any()


def test_weight_intervals_and_leave_one_out_loss_with_a_useless_model_find_it_worthless():
    lists, truth = simulate(4, 600, animals=200, seed=4, skill=(0.5, 0.8))
    rng = np.random.default_rng(0)
    codes = np.concatenate([lists.codes, rng.permuted(lists.codes[:1], axis=1)])  # answers to other photographs
    wrong = RankedLists(lists.images, np.append(lists.models, "noise"), lists.names, codes)
    margins = RankMargins(count_votes(wrong), truth)
    table = weight_intervals(margins, truth, draws=8, min_gain=1e-4)
    assert table.loc["noise", "weight"] < table["weight"].drop("noise").min()
    assert (table["low"] <= table["high"]).all() and table["positive"].between(0, 1).all()
    shrunk = weight_intervals(margins, truth, draws=8, min_gain=1e-4, shrink=True)["positive"]
    assert shrunk["noise"] < 1 == shrunk.max()
    lost = leave_one_out_loss(margins, np.ones(5))
    assert lost["noise"] <= 0.002 < lost.drop("noise").max()
    without = [margins.set_weights(np.arange(5) != j).map5() for j in range(5)]
    assert lost.tolist() == pytest.approx(margins.set_weights(np.ones(5)).map5() - np.array(without), abs=1e-12)


@pytest.mark.parametrize("seed", [15, 25])  # searches that end with small steps down
def test_search_weights_with_halved_steps_reports_the_score_of_the_weights_it_returns(seed):
    lists, truth = simulate(4, 120, animals=60, seed=seed)
    fit = search_weights(RankMargins(count_votes(lists), truth), min_gain=1e-6, shrink=True)
    assert fit.after == pytest.approx(RankMargins(count_votes(lists), truth).set_weights(fit.weights).map5(), abs=1e-12)
    assert fit.after > fit.before
