"""A whole study by the real notebooks, quick, on a small drawn data set: its results, and what reads them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import once

from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import read_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.splits import gallery_and_queries, open_set_truth
from happywhale_nb.evaluation import browser as widgets
from happywhale_nb.evaluation.browser import ModelResults, browse_folds, browse_neighbours, view_query
from happywhale_nb.networks.presets import used_preset
from happywhale_nb.retrieval.embeddings import read_embeddings
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.metrics import map_at_5
from happywhale_nb.retrieval.predictions import read_predictions
from happywhale_nb.stages.blend_record import BlendOptions, is_current
from happywhale_nb.stages.blending import blend_stage
from happywhale_nb.stages.knn import knn_stage
from happywhale_nb.stages.new_individual import PredictionOptions
from happywhale_nb.stages.report import report_stage
from happywhale_nb.stages.rule_tables import compare_rules
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.stages.train import train_stage
from happywhale_nb.workflow.compare import compare_runs, describe_comparison, model_weights
from happywhale_nb.workflow.provenance import record_paths
from happywhale_nb.workflow.registry import study_stages

BIN = Path(sys.executable).parent


def test_run_of_a_whole_study_leaves_a_submission_a_report_and_its_metrics(whole, study, tiny):
    folder, said = study, (whole / "said.txt").read_text()
    images, answers = read_predictions(folder / "submission.csv")
    assert images.tolist() == pd.read_csv(tiny / "sample_submission.csv")["image"].tolist()
    assert all(len({a for a in row if a}) == sum(row != "") for row in answers)
    metrics = json.loads((folder / "report.json").read_text())
    truth = pd.read_csv(tiny / "test_truth.csv", dtype=str).set_index("image")["individual_id"].reindex(images)
    expected = map_at_5(open_set_truth(truth, pd.read_csv(tiny / "train.csv", dtype=str)["individual_id"]), answers)
    assert metrics["test"]["map5"] == pytest.approx(expected)
    assert metrics["protocol"]["folds"] == 2 and metrics["protocol"]["split"] == "stratified-2-seed0"
    page = (folder / "report.html").read_text()
    assert "&lt;" not in page, "no tag is shown as text"
    assert page.count("<figure") >= 6 * len(images) - 12 and "http" not in page.replace("http-equiv", "")
    assert "submission.csv" in said and "MAP@5" in said and "Next:" in said


def test_files_that_the_registry_names_are_there_after_a_whole_study(study):
    asked_for = {"robustness_before.json", "robustness_before.png", "degradations_before.png", "duplicates-*.csv"}
    asked_for |= {"encoder.json", "adapter.npz"}  # of a model that is not trained
    for name, stage in study_stages().items():
        for pattern in {*stage.outputs, *stage.not_compared} - asked_for:
            depth = {"study": "", "model": "small_resnet_arcface/", "fold": "small_resnet_arcface/fold0/"}[stage.scope]
            assert list(study.glob(depth + pattern)), (name, pattern)


def test_out_of_fold_predictions_come_from_models_that_have_not_seen_the_photo(study):
    folder = study
    folds = pd.read_csv(folder / "folds.csv", dtype=str)
    for k in "01":
        images, answers = read_predictions(folder / "small_resnet_arcface" / f"fold{k}" / "oof.csv")
        assert sorted(images) == sorted(folds.loc[folds["fold"] == k, "image"])
        known = set(folds.loc[folds["fold"] != k, "individual_id"]) | {"new_individual", ""}
        assert set(answers.ravel()) <= known


def test_train_stage_of_a_finished_fold_does_nothing_and_of_another_split_is_refused(study, tiny):
    weights = study / "small_resnet_arcface" / "fold0" / "model.keras"
    before, dataset = weights.stat().st_mtime_ns, read_dataset(tiny)
    config = used_preset(read_json(weights.with_name("config.json"))["parameters"])
    record = train_stage(dataset, study_folds(dataset, study, 2, 0), 0, "small_resnet_arcface", config, study)
    assert record["result"]["map5_known"] is not None and weights.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another split"):
        study_folds(dataset, study, 3, 0)


def test_compare_rules_of_a_study_uses_the_same_photos_for_all(study, tiny):
    folder = study
    folds = study_folds(read_dataset(tiny), folder, 0, 0)
    table = compare_rules(folder, "small_resnet_arcface", folds, [0, 1], (("max", 5), ("vote", 5), ("vote", 1)))
    assert list(table.index) == ["max, k = 5", "vote, k = 5", "vote, k = 1"]
    assert table.iloc[0, 1:].tolist() == [0, 0, 0] and 0 < table["map5"].min() <= table["map5"].max() <= 1
    assert table["map5"].iloc[0] - table["map5"].to_numpy() == pytest.approx(table["lost"].to_numpy())
    assert ((table["low"] <= table["lost"]) & (table["lost"] <= table["high"])).all()


def test_blend_stage_of_two_models_fits_weights_or_averages_scores(study, tiny, tmp_path):
    folder, dataset = tmp_path / "study", read_dataset(tiny)
    shutil.copytree(study, folder)
    shutil.copytree(folder / "small_resnet_arcface", folder / "other")
    equal = blend_stage(dataset, folder)
    before = (folder / "submission.csv").read_text()
    assert len(equal["prediction_files"]) == 4 and equal["fit"] is None and set(equal["weights"]) == {1}
    fit = blend_stage(dataset, folder, options=BlendOptions(weighting="fit", penalty=True))
    assert fit["fit"]["fitted"] >= fit["fit"]["equal"] and len(fit["table"]) == 3
    assert fit["table"][0]["map5"] == fit["table"][1]["map5"] > 0  # a model and its copy
    printed = blend_stage(dataset, folder, options=BlendOptions(weighting="printed", penalty=True))
    assert printed["models"] == {"other": 25, "small_resnet_arcface": 7, "frequency": 0.033}
    assert set(printed["fit"]) == {"equal", "printed"} and sorted(set(printed["weights"])) == [7, 25]
    scores = blend_stage(dataset, folder, options=BlendOptions(voting="scores"))
    assert scores["fit"]["equal"] > 0 and scores["fit"]["threshold"] <= 1
    assert blend_stage(dataset, folder, options=BlendOptions(voting="scores")) == scores  # nothing is done twice
    one = blend_stage(dataset, folder, models="other", options=BlendOptions(weighting="fit"))
    assert one["models"] == {"other": 1} and one["fit"] is None
    included = BlendOptions(min_map5=0.999, always_include="other")
    assert blend_stage(dataset, folder, options=included)["models"] == {"other": 1}
    again = blend_stage(dataset, folder)
    assert (folder / "submission.csv").read_text() == before and is_current(dataset, folder, again)
    changed = folder / "other" / "fold1" / "test.csv"
    kept = changed.read_text()
    changed.write_text(kept.replace("new_individual", "nobody"))
    assert not is_current(dataset, folder, again)
    changed.write_text(kept)
    for how, message in (
        ({"min_map5": 0.999}, "no model reaches"),
        ({"min_map5": 0.999, "always_include": "none"}, "no model 'none'"),
        ({"weighting": "best"}, "equal, or fit"),
        ({"voting": "scores", "weighting": "fit"}, "count votes"),
        ({"voting": "scores", "weighting": "printed"}, "count votes"),
    ):
        with pytest.raises(UserError, match=message):
            blend_stage(dataset, folder, options=BlendOptions(**how))
    with pytest.raises(UserError, match=r"model 'none' has no test\.csv"):
        blend_stage(dataset, folder, models="none")
    (folder / "other" / "fold0" / "test_scores.parquet").unlink()
    with pytest.raises(UserError, match="run 06_knn again"):
        blend_stage(dataset, folder, options=BlendOptions(voting="scores"))


def test_blend_stage_without_test_photos_blends_out_of_fold(study, tiny, tmp_path):
    folder, dataset = tmp_path / "study", read_dataset(tiny)
    dataset = replace(dataset, test=dataset.test.iloc[:0])
    shutil.copytree(study, folder)
    (folder / "submission.csv").unlink()
    with pytest.raises(UserError, match=r"nothing to submit.* two models \(here: small_resnet_arcface"):
        blend_stage(dataset, folder)
    shutil.copytree(folder / "small_resnet_arcface", folder / "other")
    alone = json.loads((folder / "other" / "knn.json").read_text())["oof"]["map5"]
    equal = blend_stage(dataset, folder, options=BlendOptions(voting="borda"))
    assert equal["fit"] == {"equal": pytest.approx(alone)} and not equal["tested"]  # a model and its copy
    fit = blend_stage(dataset, folder, options=BlendOptions(voting="borda", weighting="fit"))
    assert fit["fit"]["equal"] == pytest.approx(alone) and len(fit["fit_folds"]) == 2
    assert blend_stage(dataset, folder, options=BlendOptions(voting="scores"))["fit"]["equal"] > 0
    assert not (folder / "submission.csv").exists()


def test_knn_stage_with_every_option_leaves_a_whole_study(study, tiny, tmp_path):
    folder = Path(shutil.copytree(study, tmp_path / "study"))
    dataset = read_dataset(tiny)
    folds = study_folds(dataset, folder, 0, 0)
    head = KNNHead(10, "softmax_sum", centre_weight=0.3)
    options = PredictionOptions(prior_new=-1, species_shrinkage=50, match_prior=True, rerank_top=3)
    result = knn_stage(dataset, folder, "small_resnet_arcface", folds, head, options)
    kept = sorted(folder.glob("small_resnet_arcface/fold*/local.npz"))
    made = [path.stat().st_mtime_ns for path in kept]
    rerank, open_set = result["for_test"]["rerank"], result["open_set"]
    assert len(kept) == 2 and -1 <= rerank["low"] <= rerank["gain"] <= rerank["high"] <= 1
    assert rerank["used"] == (rerank["low"] > 0) and rerank["fused"] == pytest.approx(rerank["cosine"] + rerank["gain"])
    share = result["for_test"]["prior_new"]
    for k in "01":
        _, answers = read_predictions(folder / "small_resnet_arcface" / f"fold{k}" / "test.csv")
        assert (answers[:, 0] == "new_individual").mean() == pytest.approx(share, abs=0.5 / len(answers) + 0.1)
    assert 0 <= share <= 1 and set(result["species"]) == set(folds["species"])
    assert open_set["intervals"]["map5"][0] <= result["oof"]["map5"] <= open_set["intervals"]["map5"][1]
    assert sum(row["n"] for row in result["species"].values()) == result["oof"]["n"]
    again = knn_stage(dataset, folder, "small_resnet_arcface", folds, head, options, force=True)
    assert {k: v for k, v in again.items() if k != "stamp"} == {k: v for k, v in result.items() if k != "stamp"}
    assert [path.stat().st_mtime_ns for path in kept] == made  # matches are not made twice


def test_report_stage_without_some_stages_names_them_and_takes_kaggles_scores(study, tiny, tmp_path):
    folder = Path(shutil.copytree(study, tmp_path / "study"))
    dataset = read_dataset(tiny)
    for record in ("robustness.json", "fold0/gradcam.json"):
        (folder / "small_resnet_arcface" / record).unlink()
    split = study_folds(dataset, folder, save=False)
    report = report_stage(dataset, folder, split, examples=3, kaggle_public=0.5, kaggle_private=0.4)
    assert {"pairs", "robustness", "grad-cam", "architectures"} <= set(report["missing"])
    sent = report["sections"]["submission"]
    assert (sent["kaggle_public"], sent["kaggle_private"]) == (0.5, 0.4) and sent["test"]["n"] == 10
    assert sent["forecast"]["expected"] == 0.5 and sent["forecast"]["low"] < 0.4  # ten photographs say little
    page = (folder / "report.html").read_text()
    assert "Not in this report" in page and "run happywhale gradcam" in page and "public less private" in page
    rows = report["sections"]["models"]["small_resnet_arcface"]["folds"]
    assert [row["map5"] for row in rows] == pytest.approx([f["map5"] for f in report_folds(report).values()])
    assert sum(report["sections"]["errors"]["kinds"].values()) == pytest.approx(1)
    with pytest.raises(UserError, match="between 0 and 1"):
        report_stage(dataset, folder, split, kaggle_public=88)


def report_folds(report):
    return report["models"]["small_resnet_arcface"]["folds"]


def test_report_of_an_unknown_study_names_those_there_are(whole, monkeypatch):
    monkeypatch.chdir(whole)
    lost = CliRunner().invoke(main, ["report", "another"])
    assert lost.exit_code == 2 and re.search(r"\(there: .*whole-quick\)", lost.stderr)


PROBE = """<script>addEventListener("load", () => {
const asked = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
const broken = [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length;
const wide = document.documentElement.scrollWidth > innerWidth;
document.title = JSON.stringify({images: document.images.length, broken, asked, wide}); })</script></body>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 400])
def test_report_page_in_a_browser_has_no_errors_requests_or_overflow(study, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    (tmp_path / "page.html").write_text((study / "report.html").read_text().replace("</body>", PROBE))
    how = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--enable-logging=stderr"]
    how += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([browser, *how, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120)
    seen = json.loads(done.stdout.partition("<title>")[2].partition("</title>")[0].replace("&quot;", '"'))
    assert seen["images"] > 20 and seen["broken"] == 0 and seen["asked"] == [] and not seen["wide"]
    assert "CONSOLE" not in done.stderr


def test_browse_folds_shows_the_predictions_of_06_knn(study, tiny):
    folder = study
    dataset = read_dataset(tiny)
    folds = study_folds(dataset, folder, 0, 0)
    opened = ModelResults(folder, "small_resnet_arcface")
    assert opened.fold_numbers == [0, 1] and set(opened.select(1, "all photographs")) == set(
        folds["image"][folds["fold"] == 1]
    )
    page = browse_folds(folder, "small_resnet_arcface", 1, "all photographs")
    _, answers = read_predictions(folder / "small_resnet_arcface" / "fold1" / "oof.csv", [page.image])
    assert page.predictions["prediction"].tolist() == [a for a in answers[0] if a]
    vectors = read_embeddings(folder / "small_resnet_arcface" / "fold1" / "embeddings.parquet")
    gallery, _ = gallery_and_queries(folds, 1)
    head = KNNHead(5).fit(vectors.of("train", folds["image"][gallery]), folds["individual_id"][gallery])
    cosine, rows = head.kneighbors(vectors.of("train", [page.image]))
    assert page.neighbours["image"].tolist() == folds["image"][gallery].iloc[rows[0]].tolist()
    assert page.neighbours["cosine"].to_numpy() == pytest.approx(cosine[0], abs=1e-5)
    individual = folds.set_index("image").loc[page.image, "individual_id"]
    assert (page.neighbours["same"] == "yes").tolist() == (page.neighbours["individual_id"] == individual).tolist()
    tested = browse_neighbours(folder, "small_resnet_arcface", dataset.test["image"][0], n_neighbors=30)
    assert len(tested.neighbours) == 30 and set(tested.predictions["right"]) == {"?"} and tested.crops.shape[0] == 31
    for wrong, message in (((5,), "fold 5 has no predictions"), ((0, "nothing"), "unknown choice")):
        with pytest.raises(UserError, match=message):
            browse_folds(folder, "small_resnet_arcface", *wrong)
    with pytest.raises(UserError, match="is not a query of fold 0"):
        browse_neighbours(folder, "small_resnet_arcface", "nobody.jpg")
    with pytest.raises(UserError, match="run 06_knn first"):
        browse_folds(folder, "another")
    notebook = json.loads((folder / "small_resnet_arcface" / "06_knn.ipynb").read_text())
    shown = [o for c in notebook["cells"] for o in c.get("outputs", []) if "browse_folds" in "".join(c["source"])]
    data = shown[-1]["data"]
    assert sorted(data) == ["text/html", "text/plain"] and "Prediction:" in "".join(data["text/plain"])


@pytest.mark.slow
def test_browse_folds_live_controls_choose_what_is_shown(study, monkeypatch):
    monkeypatch.setattr(widgets, "shows_widgets", lambda: True)
    folder, opened = study, ModelResults(study, "small_resnet_arcface")
    box = browse_folds(folder, "small_resnet_arcface", show="all photographs")
    (folds, shown, place, back, on), page = box.children[0].children, box.children[1]
    names = opened.select(0, "all photographs")
    assert place.max == len(names) and names[0] in page.value
    place.value = len(names) - 1
    for _ in range(2):  # it stays with the last
        on.click()
    assert place.value == len(names) and names[-1] in page.value
    back.click()
    assert names[-2] in page.value
    shown.value = "new animals"
    for choice in shown.options:
        for fold in folds.options:
            folds.value, shown.value = fold, choice
            chosen = opened.select(fold, choice)
            assert place.value == 1 and place.max == max(1, len(chosen))
            assert chosen[0] in page.value if chosen else "there are none" in page.value
    box = browse_neighbours(folder, "small_resnet_arcface", n_neighbors=3)
    (folds, asked, count), page = box.children[0].children, box.children[1]
    assert page.value.count("<tr") == 2 + len(view_query(opened, 0, asked.value).predictions) + 3
    count.value, asked.value = 7, names[5]
    assert f"Fold 0, {names[5]}" in page.value
    folds.value = 1
    assert "is not a query of fold" in page.value  # a photograph of fold 0
    asked.value = asked.options[-1]
    assert "Test photograph" in page.value


def test_embed_of_the_data_folder_gives_the_embeddings_of_training(study, tiny, tmp_path):
    fold = study / "small_resnet_arcface" / "fold0"
    words = ["model", "embed", f"{fold}/model.keras", str(tiny), "--to", f"{tmp_path}/all.parquet"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0 and "512 numbers for each of 58 photographs" in done.output, done.output
    kept, found = (read_embeddings(path) for path in (fold / "embeddings.parquet", tmp_path / "all.parquet"))
    assert found.keys.equals(kept.keys) and set(kept.parts) == {"train", "test"}
    np.testing.assert_allclose(found.vectors, kept.vectors, atol=1e-5)
    (tmp_path / "empty").mkdir()
    for words, expected in (
        ((fold / "none.keras", tiny), "there is no model"),
        ((fold / "model.keras", tmp_path / "none"), "there is no folder"),
        ((fold / "model.keras", tmp_path / "empty"), "has no photographs"),
    ):
        done = CliRunner().invoke(main, ["model", "embed", *map(str, words), "--to", f"{tmp_path}/none.parquet"])
        assert done.exit_code == 2 and expected in done.stderr
    assert not (tmp_path / "none.parquet").exists()


# --- a second training of one fold


def train_again(whole, study):
    """Train fold 0 of the study a second time, and search and blend it beside the first study's fold 1."""
    folder = whole / "outputs" / "again-quick"
    first = read_json(record_paths(study / "small_resnet_arcface" / "fold0" / "03_train.ipynb")[0])
    values = first["parameters"] | {"data_dir": whole / "data" / "tiny", "study": "again"}
    command = [str(BIN / "happywhale"), "train"]
    command += [word for name, value in values.items() for word in ("-p", name, str(value))]
    environment = os.environ | first["environment"] | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=whole, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    keep = shutil.ignore_patterns("oof*", "test*")
    shutil.copytree(study / "small_resnet_arcface/fold1", folder / "small_resnet_arcface/fold1", ignore=keep)
    dataset = read_dataset(whole / "data" / "tiny")
    knn_stage(dataset, folder, "small_resnet_arcface", study_folds(dataset, folder, 0, 0), KNNHead())
    blend_stage(dataset, folder)


@pytest.fixture(scope="session")
def again(whole, study, tmp_path_factory):
    """The folder of a study whose fold 0 was trained a second time, by the command and with the first one's threads;
    its fold 1 is a copy of the first study's, and both were searched and blended again. Once for all workers."""
    once(tmp_path_factory, "again", lambda _: train_again(whole, study))
    return whole / "outputs" / "again-quick"


@pytest.mark.soak
def test_train_with_the_same_seed_gives_the_same_files_byte_for_byte(study, again):
    names = ["submission.csv", "folds.csv"]
    names += [f"small_resnet_arcface/fold0/{name}.csv" for name in ("oof", "test", "oof_lists")]
    for name in names:
        assert (study / name).read_bytes() == (again / name).read_bytes(), name
    folds = [folder / "small_resnet_arcface" / "fold0" for folder in (study, again)]
    histories = [pd.read_csv(fold / "history.csv").drop(columns="seconds") for fold in folds]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert np.array_equal(*(read_embeddings(fold / "embeddings.parquet").vectors for fold in folds))
    weights = [model_weights(fold / "model.keras") for fold in folds]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in {**weights[0], **weights[1]})
    assert len(weights[0]) > 20


@pytest.mark.soak
def test_compare_of_two_trainings_alike_finds_no_difference_in_what_they_made(study, again):
    pair = [folder / "small_resnet_arcface" / "fold0" for folder in (study, again)]
    found = compare_runs(*pair)
    assert not found["metrics"] and not any(found["files"].values()), describe_comparison(found)
    assert {row["kind"] for row in found["provenance"]} <= {"environment"}, found["provenance"]


def test_compare_of_two_folds_names_the_fold_and_that_all_weights_differ(study):
    found = compare_runs(*(study / "small_resnet_arcface" / f"fold{k}" for k in (0, 1)))
    assert ("parameters", "fold", 0, 1) in [(r["kind"], r["name"], r["a"], r["b"]) for r in found["provenance"]]
    assert found["files"]["model.keras"]["different"] > 20 and found["files"]["history.csv"]["different"] == 2
    assert found["files"]["embeddings.parquet"]["smallest_cosine"] < 0.999
