"""Blending by commands, which runs are blended, and means of scores against a plain mean."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.ensemble.blending import mean_scores
from happywhale_nb.ensemble.weights import simulate
from happywhale_nb.stages import blend_steps as blending
from happywhale_nb.stages.blend_inputs import select_runs
from happywhale_nb.stages.blend_record import BlendOptions
from happywhale_nb.stages.blending import blend_stage
from happywhale_nb.stages.study_split import study_folds


def test_blend_score_and_validate_commands_on_small_files_give_the_known_figures(files, tmp_path):
    def run(*words):
        return CliRunner().invoke(main, ["submission", *map(str, words)])

    one, two = files("one.csv", "x,a b c", "y,b c", "z,c"), files("two.csv", "z,a", "y,a", "x,b a a")
    truth = files("truth.csv", "x,b", "y,a", "z,new_individual", header="image,individual_id")
    like, to = files("like.csv", "y,a", "x,a", "z,a"), tmp_path / "blend.csv"
    done = run("blend", one, two, "-o", to, "--weights", "1 2", "--like", like)
    assert done.exit_code == 0 and "two.csv: 1 rows name an animal twice" in done.output, done.output
    assert to.read_text().splitlines() == ["image,predictions", "y,a b c", "x,b a c", "z,a c"]
    assert run("validate", to, "--like", like).exit_code == 0
    bad = run("validate", two, "--like", one)
    assert bad.exit_code == 1 and "row 4: x names an animal twice (1 such)" in bad.output
    scored = run("score", to, truth, "--json")
    assert json.loads(scored.stdout)["map5"] == pytest.approx(2 / 3)
    catalogue = files("train.csv", "q,b", "r,c", header="image,individual_id")
    scored = run("score", to, truth, "--catalogue", catalogue, "--json")  # a is new there
    assert json.loads(scored.stdout)["fraction_new"] == pytest.approx(2 / 3)
    for wrong, message in (
        (["blend", one, two], "Missing option '-o'"),
        (["blend", one, "-o", to, "--weights", "1 2"], "2 weights for 1 files"),
        (["blend", one, "-o", to, "--rule", "votes"], "--rule is now --voting"),
        (["blend", one, "-o", to, "--finless", like], "--finless is now --no-fin-csv"),
        (["blend", one, "-o", to, "--voting", "votes"], "rule 'votes' is not known"),
        (["blend", one, "-o", to, "--voting", "notebook"], "catalogue"),
        (["blend", one, "-o", to, "--no-fin-csv", like], "matter to the rule notebook alone, not to paper"),
        (["score", to, like], "no column 'individual_id'"),
    ):
        refused = run(*wrong)
        assert refused.exit_code == 2 and message in refused.output, refused.output


def test_blend_command_with_a_truth_fits_weights_and_a_broken_file_changes_nothing(files, tmp_path):
    ballots, truth = simulate(3, 200, animals=40, seed=1)
    paths = []
    for j, name in enumerate(ballots.models):
        rows = ballots.decode(ballots.codes[j])
        lines = [f"{i},{' '.join(filter(None, row))}" for i, row in zip(ballots.images, rows, strict=True)]
        paths.append(str(files(f"{name}.csv", *lines)))
    known = files("truth.csv", *map(",".join, zip(ballots.images, truth, strict=True)), header="image,individual_id")
    to = tmp_path / "blend.csv"
    done = CliRunner().invoke(main, ["submission", "blend", *paths, "-o", str(to), "--truth", str(known)])
    assert done.exit_code == 0 and "expected" in done.output and "model01" in done.output, done.output
    stuck = CliRunner().invoke(main, ["submission", "blend", paths[0], paths[0], "-o", str(to), "--truth", str(known)])
    assert "no step of any weight gains" in stuck.output  # a model and itself
    before = to.read_text()
    broken = files("broken.csv", "000000.jpg,")
    failed = CliRunner().invoke(main, ["submission", "blend", *paths, str(broken), "-o", str(to)])
    assert failed.exit_code == 2 and "broken.csv" in failed.output and to.read_text() == before


def test_blend_command_with_finless_photographs_counts_only_the_first_24_files(files, tmp_path):
    sure, late = files("sure.csv", "x,a", "y,a"), files("late.csv", "x,b", "y,b")
    no_fin, catalogue = (
        files("no_fin.csv", "y", header="image"),
        files("train.csv", "q,a", "r,b", header="image,individual_id"),
    )
    paths, to = [str(sure)] * 24 + [str(late)] * 30, tmp_path / "blend.csv"
    how = ["-o", str(to), "--voting", "notebook", "--catalogue", str(catalogue)]
    for asked, expected in (([], ["x,b a", "y,b a"]), (["--no-fin-csv", str(no_fin)], ["x,b a", "y,a b"])):
        done = CliRunner().invoke(main, ["submission", "blend", *paths, *how, *asked])
        assert done.exit_code == 0, done.output
        assert to.read_text().splitlines()[1:] == expected


def test_select_runs_of_120_keeps_thirty_and_a_specialist(tmp_path):
    for i, value in enumerate(np.linspace(0.72, 0.88, 120)):
        place = tmp_path / f"study{i % 4}" / f"run{i:03d}"
        place.mkdir(parents=True)
        (place / "knn.json").write_text(json.dumps({"oof": {"map5": value, "map5_known": value}, "folds": {"0": {}}}))
    table = select_runs(tmp_path, 0.84, always_include=["run005"])
    assert len(table) == 120 and table["chosen"].sum() == 31 and table["map5"].is_monotonic_decreasing
    assert table[table["chosen"]].iloc[-1][["model", "why"]].tolist() == ["run005", "named"]


def test_select_runs_by_out_of_fold_map5_says_who_is_chosen_and_why(tmp_path):
    for study, model, value in (("a", "good", 0.85), ("a", "poor", 0.5), ("b", "expert", 0.3)):
        place = tmp_path / study / model
        place.mkdir(parents=True)
        (place / "knn.json").write_text(json.dumps({"oof": {"map5": value, "map5_known": value}, "folds": {"0": {}}}))
    table = select_runs(tmp_path, 0.84, always_include=["expert"]).set_index("model")
    assert table["chosen"].to_dict() == {"good": True, "poor": False, "expert": True}
    assert table.loc["expert", "why"] == "named" and list(table.index) == ["good", "poor", "expert"]
    with pytest.raises(UserError, match="no model 'other'"):
        select_runs(tmp_path, 0.84, always_include=["other"])
    with pytest.raises(UserError, match="no finished models"):
        select_runs(tmp_path / "a" / "good" / "none")


def study_of_lists(folder, dataset, answers, folds_of):
    """A study whose models give all photographs these answers; `folds_of`: how many folds each model has."""
    folds = study_folds(dataset, folder, 3, 0)
    for model, k in folds_of.items():
        for fold in range(k):
            place = folder / model / f"fold{fold}"
            place.mkdir(parents=True)
            for file, images in (("oof", folds["image"][folds["fold"] == fold]), ("test", dataset.test["image"])):
                lines = [f"{image},{' '.join(answers[model])}" for image in images]
                (place / f"{file}.csv").write_text("\n".join(["image,predictions", *lines]) + "\n")
        record = {"oof": {"map5": 0.5, "map5_known": 0.5}, "folds": {str(fold): {} for fold in range(k)}}
        (folder / model / "knn.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("folds_of", [{"a": 1, "b": 1}, {"a": 3, "b": 3}, {"a": 3, "b": 1}])
def test_blend_of_more_folds_is_that_of_one_although_photographs_cost_votes(folds_of, tiny, tmp_path, monkeypatch):
    dataset = read_dataset(tiny)
    counts = dataset.train["individual_id"].value_counts()
    often, seldom, third = counts.index[0], counts.index[-1], counts.index[5]
    cost = 113 / (counts.iloc[0] - counts.iloc[-1])  # 32 * 10 votes against 32 * 6.5, and one more
    monkeypatch.setattr(blending, "PRINTED_PENALTY", cost)
    answers = {"a": [often, seldom], "b": [often, seldom, third]}
    folder = study_of_lists(tmp_path / "study", dataset, answers, folds_of)
    blended = blend_stage(dataset, folder, options=BlendOptions(weighting="printed", penalty=True))
    rows = (folder / "submission.csv").read_text().splitlines()[1:]
    assert len(rows) == 10 and all(row.split(",")[1].startswith(f"{seldom} {often}") for row in rows)
    assert blended["agreement"] == 1.0
    alone = blend_stage(dataset, folder, models="a")
    assert alone["agreement"] is None


def test_blend_of_two_folds_lets_the_first_24_models_vote_where_there_is_no_back_fin(tiny, tmp_path):
    dataset = read_dataset(tiny)
    counts = dataset.train["individual_id"].value_counts()
    one, other = counts.index[counts == counts.mode()[0]][:2]
    answers = {f"m{k:02d}": [one if k < 11 or k >= 24 else other] for k in range(28)}
    folder = study_of_lists(tmp_path / "study", dataset, answers, dict.fromkeys(answers, 2))
    (tmp_path / "no_fin.csv").write_text("image\n" + dataset.test["image"].iloc[0] + "\n")
    blend_stage(dataset, folder, options=BlendOptions("notebook", no_fin_csv=str(tmp_path / "no_fin.csv")))
    first = [row.split(",")[1].split()[0] for row in (folder / "submission.csv").read_text().splitlines()[1:]]
    assert first == [other] + [one] * 9  # 13 of the first 24 say the other


def test_blend_by_the_papers_search_takes_its_steps_and_its_penalty(tiny, tmp_path):
    dataset = read_dataset(tiny)
    names = dataset.train["individual_id"].value_counts().index
    answers = {"a": list(names[:5]), "b": list(names[4::-1])}
    folder = study_of_lists(tmp_path / "study", dataset, answers, {"a": 3, "b": 3})
    options = BlendOptions(weighting="paper", penalty=True, min_gain=1e-3)
    weights = blend_stage(dataset, folder, options=options)["models"]
    assert weights["frequency"] == 0.033
    steps = [(weights[name] - 1) * 10 for name in "ab"]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert any(steps)


@st.composite
def lists_of_candidates(draw):
    """What one model says of one photograph: different names with falling scores, in eighths so that sums are exact."""
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
    scores = sorted(draw(st.lists(st.integers(-8, 8), min_size=len(names), max_size=len(names))), reverse=True)
    return names, [score / 8 for score in scores]


def plain_means(lists, n):
    """`[(name, mean)]` of one photograph: who is not in a list has its lowest score; equals by rank, then by model."""
    found = {}
    for name in {name for names, _ in lists for name in names}:
        given = [dict(zip(*one, strict=True)).get(name, one[1][-1]) for one in lists]
        place = min((names.index(name), j) for j, (names, _) in enumerate(lists) if name in names)
        found[name] = (-sum(given) / len(given), place)
    return [(name, -found[name][0]) for name in sorted(found, key=found.get)][:n]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(lists_of_candidates(), min_size=2, max_size=2), min_size=1, max_size=4), st.integers(1, 7))
def test_mean_scores_of_any_lists_are_those_of_a_plain_mean(models, n):
    """`models[j][i]`: the candidates of model j for photograph i."""
    padded = []
    for photos in models:
        width = max(len(names) for names, _ in photos)
        ids = np.array([names + [""] * (width - len(names)) for names, _ in photos])
        padded.append((ids, np.array([scores + [-np.inf] * (width - len(scores)) for _, scores in photos])))
    ids, means = mean_scores(padded, n)
    for i in range(2):
        expected = plain_means([photos[i] for photos in models], n)
        empty = n - len(expected)
        assert ids[i].tolist() == [name for name, _ in expected] + [""] * empty
        assert means[i] == pytest.approx([mean for _, mean in expected] + [-np.inf] * empty)
