"""Blending against a plain count of votes, files as people send them, and the honesty of fitted weights."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from happywhale_nb.ballots import Ballots, read_ballots
from happywhale_nb.blending import error_correlation, select_runs
from happywhale_nb.cli import main
from happywhale_nb.dataset import NEW
from happywhale_nb.paths import UserError
from happywhale_nb.tally import (
    Contest,
    dropping,
    explain,
    nested,
    rank_votes,
    search_weights,
    simulate,
    tally,
    weight_intervals,
)

W = (10, 6.5, 3.3, 2.9, 2.7)


def plain_votes(lists, weights, rule="paper", counts=None, finless=False, price=0.0):
    """Votes of one photograph, counted as the rules say: a list of (votes, name), best first."""
    found = {}
    for j, (names, weight) in enumerate(zip(lists, weights, strict=True)):
        for rank, name in enumerate(names):
            late = rank >= 2
            if rule == "paper":
                vote = W[rank] / 4 if name == NEW and late else W[rank]
            elif rule == "borda":
                vote = 5 - rank
            else:
                vote = W[rank] - ((2.5 if late else 4.9) if name == NEW else counts.get(name, 0) / 30)
                if finless and j > 23:
                    vote = 0
            old = found.setdefault(name, [0.0, (rank, j)])
            old[0] += weight * vote
            old[1] = min(old[1], (rank, j))
    order = sorted(
        found, key=lambda name: (-round(found[name][0] - price * (counts or {}).get(name, 0), 9), found[name][1])
    )
    return [(found[name][0], name) for name in order]


def plain_answers(ballots, weights, rule="paper", counts=None, finless=None, price=0.0):
    rows = []
    for i in range(len(ballots.images)):
        lists = [[name for name in model if name] for model in ballots.answers(ballots.codes[:, i])]
        ranked = plain_votes(lists, weights, rule, counts, finless is not None and finless[i], price)
        names = [name for _, name in ranked[:5]]
        if rule == "notebook" and len(names) > 1 and names[0] == NEW and ranked[0][0] - ranked[1][0] < 5 - 1e-9:
            names[:2] = names[1], names[0]
        rows.append(names + [""] * (5 - len(names)))
    return np.array(rows)


def map5(truth, answers):
    points = (answers == np.asarray(truth)[:, None]) * np.array([60, 30, 20, 15, 12])
    return int(points.sum()) / (60 * len(truth))  # in whole numbers: equals are equal


@pytest.fixture(scope="module")
def case():
    ballots, truth = simulate(27, 150, animals=60, seed=3)
    rng = np.random.default_rng(1)
    codes = ballots.codes.copy()
    codes[rng.random(codes.shape) < 0.05] = -1  # short lists
    codes = np.take_along_axis(codes, np.argsort(codes < 0, axis=2, kind="stable"), axis=2)
    counts = {name: int(c) for name, c in zip(ballots.names, rng.integers(1, 200, len(ballots.names)), strict=True)}
    counts[NEW] = 0
    return Ballots(ballots.images, ballots.models, ballots.names, codes), truth, counts, rng.random(150) < 0.3


@pytest.mark.parametrize("rule", ["paper", "notebook", "borda"])
@pytest.mark.parametrize("equal", [True, False])
def test_answers_are_those_of_a_plain_count(case, rule, equal):
    ballots, _, counts, finless = case
    weights = np.ones(27) if equal else np.random.default_rng(5).integers(-5, 30, 27) / 10
    tallied = tally(ballots, rule, counts, finless)
    got = tallied.answers(weights)
    assert (got == plain_answers(ballots, weights, rule, counts, finless)).all()
    filled = [row[row != ""] for row in got]
    assert all(len(set(row)) == len(row) for row in filled)


def test_the_frequency_penalty_costs_each_photograph_of_the_catalogue(case):
    ballots, _, counts, _ = case
    weights = np.r_[np.ones(27), 0.033]
    got = tally(ballots, "paper", counts, penalised=True).answers(weights)
    assert (got == plain_answers(ballots, np.ones(27), "paper", counts, price=0.033)).all()
    assert (got != tally(ballots).answers(np.ones(27))).any()


def test_golden_votes_of_the_notebook_rule():
    names = np.array(["a", "b", NEW])
    codes = np.array([[[2, 0, 1, -1, -1], [0, 1, 2, -1, -1]]], np.int32)
    ballots = Ballots(np.array(["x", "y"]), np.array(["one"]), names, codes)
    table = explain(tally(ballots, "notebook", {"a": 30, "b": 60}), [2], "x")
    assert table["total"].to_dict() == pytest.approx({"a": 2 * (6.5 - 1), NEW: 2 * (10 - 4.9), "b": 2 * (3.3 - 2)})
    table = explain(tally(ballots, "notebook", {"a": 30, "b": 60}), [1], "y")
    assert table["total"].to_dict() == pytest.approx({"a": 9, "b": 4.5, NEW: 3.3 - 2.5})
    rival = Ballots(ballots.images[:1], ballots.models, names, np.array([[[2, 0, -1, -1, -1]]], np.int32))
    lead = tally(rival, "notebook", {"a": 90})  # new 5.1, a 6.5 - 3 = 3.5: a lead of 1.6
    assert lead.answers([1])[0].tolist() == ["a", NEW, "", "", ""]
    assert lead.answers([4])[0].tolist() == [NEW, "a", "", "", ""]  # 6.4 ahead


def test_the_published_weights_are_counted_exactly(case):
    ballots, truth, _, _ = case
    weights = np.resize([25, 7, 1.5, 1, 0.1], 27)
    contest = Contest(tally(ballots), truth).start(weights)
    assert contest.map5() == pytest.approx(map5(truth, plain_answers(ballots, weights)), abs=1e-12)


def plain_search(ballots, truth, gain, step):
    """The paper's search as it is told, counting everything anew for every try."""
    weights = np.ones(len(ballots.models))
    score = map5(truth, plain_answers(ballots, weights))
    kept = True
    while kept:
        kept = False
        for j in range(len(weights)):
            tries = []
            for sign in (1, -1):
                changed = weights.copy()
                changed[j] = round(changed[j] + sign * step, 6)
                tries.append((map5(truth, plain_answers(ballots, changed)), changed))
            best, changed = max(tries, key=lambda pair: pair[0])
            if best - score >= gain - 1e-12:
                score, weights, kept = best, changed, True
    return weights, score


def test_the_search_is_the_plain_one_to_the_last_row():
    ballots, truth = simulate(5, 120, animals=40, seed=8)
    fit = search_weights(Contest(tally(ballots), truth), gain=1e-3, step=0.1, shrink=False)
    weights, score = plain_search(ballots, truth, 1e-3, 0.1)
    assert fit.moves and fit.after == pytest.approx(score, abs=1e-12)
    np.testing.assert_allclose(fit.weights, weights, atol=1e-9)


def test_every_move_of_a_search_agrees_with_counting_anew(case):
    ballots, truth, _, _ = case
    contest = Contest(tally(ballots), truth).start(np.ones(27))
    rng = np.random.default_rng(0)
    for _ in range(40):
        column, change = (
            int(rng.integers(27)),
            int(rng.integers(-15_000, 25_000)),
        )  # far enough to need 64 bits at times
        tried = contest.points(column, change)
        if abs(contest.weights[column] + change) <= 100_000:
            contest.move(column, change)
            assert contest.points() == tried
    fresh = Contest(tally(ballots), truth).start(contest.weights / 1000)
    assert fresh.points() == contest.points()
    assert contest.map5() == pytest.approx(map5(truth, tally(ballots).answers(contest.weights / 1000)), abs=1e-12)


def test_a_penalty_and_weights_beyond_32_bits_are_counted_right(case):
    ballots, truth, _, _ = case
    counts = dict.fromkeys(ballots.names, 1) | {ballots.names[3]: 400, ballots.names[4]: 5000}
    tallied = tally(ballots, "paper", counts, penalised=True)
    for weights in (np.r_[np.full(27, 99.0), 50.0], np.r_[np.full(27, -20.0), 0.033]):
        contest = Contest(tallied, truth).start(weights)
        assert contest.map5() == pytest.approx(map5(truth, tallied.answers(weights)), abs=1e-12)


def test_a_gain_too_large_keeps_the_weights_it_began_with(case):
    ballots, truth, _, _ = case
    fit = search_weights(Contest(tally(ballots), truth), gain=0.5, shrink=False)
    assert fit.moves == 0 and (fit.weights == 1).all() and fit.after == fit.before and fit.rounds == 1


def test_nested_weights_never_saw_the_fold():
    ballots, truth = simulate(6, 400, animals=80, seed=2)
    folds = np.arange(400) % 4
    contest = Contest(tally(ballots), truth)
    report = nested(contest, folds, gain=1e-4)
    assert report["fitted"] - report["expected"] == pytest.approx(report["optimism"])
    spoilt = truth.copy()
    spoilt[folds == 1] = "nobody"
    other = nested(Contest(tally(ballots), spoilt), folds, gain=1e-4)["folds"]
    models = list(ballots.models)
    assert other.loc[1, models].tolist() == report["folds"].loc[1, models].tolist()
    assert other.loc[1, "expected"] == 0
    whole = report["folds"]
    assert report["expected"] == pytest.approx(np.average(whole["expected"], weights=whole["photos"]))


def test_a_useless_model_gets_little_and_a_copy_costs_nothing():
    ballots, truth = simulate(4, 1500, animals=200, seed=4, skill=(0.5, 0.8))
    rng = np.random.default_rng(0)
    codes = np.concatenate([ballots.codes, rng.permuted(ballots.codes[:1], axis=1)])  # answers to other photographs
    wrong = Ballots(ballots.images, np.append(ballots.models, "noise"), ballots.names, codes)
    contest = Contest(tally(wrong), truth)
    table = weight_intervals(contest, truth, draws=20, gain=1e-4)
    assert table.loc["noise", "weight"] < table["weight"].drop("noise").min()
    assert (table["low"] <= table["high"]).all() and table["positive"].between(0, 1).all()
    lost = dropping(contest, np.ones(5))
    assert lost["noise"] <= 0.002 < lost.drop("noise").max()


def test_nobody_right_or_everybody_right():
    names = np.array(["a", "b"])
    ballots = Ballots(np.array(["x"]), np.array(["one"]), names, np.array([[[0, -1, -1, -1, -1]]], np.int32))
    for truth, score in ((["z"], 0), (["a"], 1)):
        fit = search_weights(Contest(tally(ballots), truth))
        assert fit.before == fit.after == score


@pytest.fixture
def files(tmp_path):
    def write(name, *rows, header="image,predictions"):
        path = tmp_path / name
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    return write


def test_files_are_matched_by_photograph_and_repaired(files):
    one = files("one.csv", "x,a b c d e", "y,f", "z,a a b")
    two = files("two.csv", "z,\"['b', 'a']\"", "w,a", "x,a b c d e f g")
    ballots, lines = read_ballots([one, two])
    assert ballots.images.tolist() == ["x", "y", "z"] and ballots.models.tolist() == ["one", "two"]
    assert ballots.answers(ballots.codes).tolist() == [
        [list("abcde"), ["f", "", "", "", ""], ["a", "b", "", "", ""]],
        [list("abcde"), [""] * 5, ["b", "a", "", "", ""]],
    ]
    text = "\n".join(lines)
    for part in ("one.csv: 1 rows name an animal twice", "one.csv: 2 rows have fewer", "two.csv: 1 lists as Python"):
        assert part in text
    for part in ("two.csv: 1 rows have more than five", "two.csv: 1 photographs are missing", "1 photographs were not"):
        assert part in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x,a", "x,b", "y,a"], "row 3: x has an answer already"),
        (["x,a", "y,"], "row 3"),
        (["x,a", "y,[]"], "row 3: no name in the list"),
        (["q,a", "r,b"], "answers 0 of 3 photographs"),
    ],
)
def test_what_nobody_can_mend_is_refused_with_its_row(files, rows, message):
    good = files("good.csv", "x,a", "y,b", "z,c")
    with pytest.raises(UserError, match=r"bad\.csv") as error:
        read_ballots([good, files("bad.csv", *rows)])
    assert message in str(error.value)


def test_names_outside_the_catalogue(files):
    good, odd = files("good.csv", "x,a b", "y,b q"), files("odd.csv", "x,q r", "y,s a")
    ballots, lines = read_ballots([good], known={"a", "b"})
    assert ballots.answers(ballots.codes[0, 1]).tolist() == ["b", "", "", "", ""]
    assert any("1 names that are not in the catalogue" in line for line in lines)
    with pytest.raises(UserError, match="nobody of the catalogue"):
        read_ballots([odd], known={"a", "b"})
    with pytest.raises(UserError, match="no column"):
        read_ballots([files("wrong.csv", "x,1", header="image,label")])
    with pytest.raises(UserError, match="missing"):
        read_ballots([good.with_name("absent.csv")])


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / model / "fold0" / "oof.csv" for model in "ab"]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("image,predictions\nx,a\n")
    assert read_ballots(paths)[0].models.tolist() == ["a/fold0/oof", "b/fold0/oof"]
    assert read_ballots([paths[0]] * 2)[0].models[1].endswith("#2")


def test_real_submissions(shared):
    folder = shared / "happywhale" / "submissions"
    ballots, lines = read_ballots([folder / f"{name}.csv" for name in ("model_a", "model_b", "malformed_listfmt")])
    assert ballots.codes.shape == (3, 27_956, 5)
    assert any(line.endswith("model_a.csv: 29 rows name an animal twice: the first mention counts") for line in lines)
    assert any("27956 lists as Python prints them" in line for line in lines)
    answers = tally(ballots).answers([1, 1, 1])
    assert all(len(set(row)) == 5 for row in answers[::500])
    assert (rank_votes(ballots)[0, :, 0] == 400).all()


def test_a_harmful_model_is_left_out_at_once():
    ballots, truth = simulate(1, 600, animals=500, seed=6)
    wrong = np.random.default_rng(0).integers(1, 500, (1, 600, 5)).astype(np.int32)
    both = Ballots(ballots.images, np.array(["good", "bad"]), ballots.names, np.concatenate([ballots.codes, wrong]))
    contest = Contest(tally(both), truth)
    alone = contest.start([1, 0]).map5()
    literal, fit = (search_weights(contest, gain=1e-4, shrink=shrink) for shrink in (False, True))
    assert literal.after < alone - 0.02  # from .9 to .8 nothing changes places, so small steps stay there
    assert fit.after >= alone


def test_files_are_blended_scored_and_validated_by_commands(files, tmp_path):
    run = CliRunner().invoke
    one, two = files("one.csv", "x,a b c", "y,b c", "z,c"), files("two.csv", "z,a", "y,a", "x,b a a")
    truth = files("truth.csv", "x,b", "y,a", "z,new_individual", header="image,individual_id")
    like, to = files("like.csv", "y,a", "x,a", "z,a"), tmp_path / "blend.csv"
    done = run(main, ["blend", str(one), str(two), "-o", str(to), "--weights", "1 2", "--like", str(like)])
    assert done.exit_code == 0 and "two.csv: 1 rows name an animal twice" in done.output, done.output
    assert to.read_text().splitlines() == ["image,predictions", "y,a b c", "x,b a c", "z,a c"]
    assert run(main, ["validate", str(to), "--like", str(like)]).exit_code == 0
    bad = run(main, ["validate", str(two), "--like", str(one)])
    assert bad.exit_code == 1 and "row 4: x names an animal twice (1 such)" in bad.output
    scored = run(main, ["score", str(to), str(truth), "--json"])
    assert json.loads(scored.stdout)["map5"] == pytest.approx(2 / 3)
    catalogue = files("train.csv", "q,b", "r,c", header="image,individual_id")
    scored = run(main, ["score", str(to), str(truth), "--catalogue", str(catalogue), "--json"])  # a is new there
    assert json.loads(scored.stdout)["share_new"] == pytest.approx(2 / 3)
    for wrong, message in (
        (["blend", str(one), str(two)], "-o submission.csv"),
        (["blend", str(one), "-o", str(to), "--weights", "1 2"], "2 weights for 1 files"),
        (["blend", str(one), "-o", str(to), "--rule", "votes"], "rule 'votes' is not known"),
        (["blend", str(one), "-o", str(to), "--rule", "notebook"], "catalogue"),
        (["blend", str(one), "-o", str(to), "--finless", str(like)], "matter to the rule notebook alone, not to paper"),
        (["score", str(to), str(like)], "no column 'individual_id'"),
    ):
        refused = run(main, wrong)
        assert refused.exit_code == 2 and message in refused.output, refused.output


def test_weights_are_fitted_from_the_command_line_and_nothing_is_half_written(files, tmp_path):
    ballots, truth = simulate(3, 200, animals=40, seed=1)
    paths = []
    for j, name in enumerate(ballots.models):
        rows = ballots.answers(ballots.codes[j])
        lines = [f"{i},{' '.join(filter(None, row))}" for i, row in zip(ballots.images, rows, strict=True)]
        paths.append(str(files(f"{name}.csv", *lines)))
    known = files("truth.csv", *map(",".join, zip(ballots.images, truth, strict=True)), header="image,individual_id")
    to = tmp_path / "blend.csv"
    done = CliRunner().invoke(main, ["blend", *paths, "-o", str(to), "--truth", str(known)])
    assert done.exit_code == 0 and "expected" in done.output and "model01" in done.output, done.output
    stuck = CliRunner().invoke(main, ["blend", paths[0], paths[0], "-o", str(to), "--truth", str(known)])
    assert "no step of any weight gains" in stuck.output  # a model and itself
    before = to.read_text()
    broken = files("broken.csv", "000000.jpg,")
    failed = CliRunner().invoke(main, ["blend", *paths, str(broken), "-o", str(to)])
    assert failed.exit_code == 2 and "broken.csv" in failed.output and to.read_text() == before


def test_photographs_without_a_back_fin_are_answered_by_the_first_24_files_alone(files, tmp_path):
    sure, late = files("sure.csv", "x,a", "y,a"), files("late.csv", "x,b", "y,b")
    finless, catalogue = (
        files("finless.csv", "y", header="image"),
        files("train.csv", "q,a", "r,b", header="image,individual_id"),
    )
    paths, to = [str(sure)] * 24 + [str(late)] * 30, tmp_path / "blend.csv"
    how = ["-o", str(to), "--rule", "notebook", "--catalogue", str(catalogue)]
    for asked, expected in (([], ["x,b a", "y,b a"]), (["--finless", str(finless)], ["x,b a", "y,a b"])):
        done = CliRunner().invoke(main, ["blend", *paths, *how, *asked])
        assert done.exit_code == 0, done.output
        assert to.read_text().splitlines()[1:] == expected


def test_thirty_of_120_runs_are_kept_and_a_specialist(tmp_path):
    for i, value in enumerate(np.linspace(0.72, 0.88, 120)):
        place = tmp_path / f"study{i % 4}" / f"run{i:03d}"
        place.mkdir(parents=True)
        (place / "knn.json").write_text(json.dumps({"oof": {"map5": value, "map5_known": value}, "folds": {"0": {}}}))
    table = select_runs(tmp_path, 0.84, keep=["run005"])
    assert len(table) == 120 and table["chosen"].sum() == 31 and table["map5"].is_monotonic_decreasing
    assert table[table["chosen"]].iloc[-1][["model", "why"]].tolist() == ["run005", "named"]


def test_models_are_selected_by_what_they_reach_out_of_fold(tmp_path):
    for study, model, value in (("a", "good", 0.85), ("a", "poor", 0.5), ("b", "expert", 0.3)):
        place = tmp_path / study / model
        place.mkdir(parents=True)
        (place / "knn.json").write_text(json.dumps({"oof": {"map5": value, "map5_known": value}, "folds": {"0": {}}}))
    table = select_runs(tmp_path, 0.84, keep=["expert"]).set_index("model")
    assert table["chosen"].to_dict() == {"good": True, "poor": False, "expert": True}
    assert table.loc["expert", "why"] == "named" and list(table.index) == ["good", "poor", "expert"]
    with pytest.raises(UserError, match="no model 'other'"):
        select_runs(tmp_path, 0.84, keep=["other"])
    with pytest.raises(UserError, match="no finished models"):
        select_runs(tmp_path / "a" / "good" / "none")


def test_errors_of_copies_are_one():
    ballots, truth = simulate(3, 300, animals=60)
    twice = Ballots(ballots.images, ballots.models, ballots.names, ballots.codes[[0, 1, 0]])
    table = error_correlation(twice, truth)
    assert table.iloc[0, 2] == pytest.approx(1) and 0 < table.iloc[0, 1] < 0.95
