"""What a stage reads is what the stage before it has written: files that are cut, halved, swapped or of other data."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from happywhale_nb.core.artifacts import is_done, read_json, write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.listings import FILES, RECORDS, list_beside
from happywhale_nb.evaluation.per_query import read_outcomes
from happywhale_nb.retrieval.embeddings import ClassCentres, read_centres, read_embeddings, write_centres
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.predictions import read_candidate_sets, read_predictions, read_scores
from happywhale_nb.stages.blend_inputs import prediction_files
from happywhale_nb.stages.blend_record import BlendOptions
from happywhale_nb.stages.blend_steps import blend_lists
from happywhale_nb.stages.candidate_sets import calibrate_folds
from happywhale_nb.stages.example_study import write_example_study
from happywhale_nb.stages.fold_ranking import rank_fold
from happywhale_nb.stages.model_predictions import read_fold, write_fold
from happywhale_nb.stages.new_individual import add_new_individual
from happywhale_nb.stages.report_models import plot_history
from happywhale_nb.stages.report_study import read_submission


def train(study, fold):
    """Complete a fold of the example study: centres, history, and the record that lists them."""
    place = study.fold_folders[fold]
    vectors = np.eye(12, dtype=np.float32)
    write_centres(place / "centres.parquet", ClassCentres(np.array([f"w{i:02}" for i in range(12)]), vectors))
    (place / "history.csv").write_text("epoch,loss\n1,2.0\n2,1.0\n3,0.5\n")
    record = read_json(place / "config.json")
    record |= {"parameters": {"fold": fold, "model": study.model}, "protocol": {"data": study.dataset.fingerprint}}
    files = list_beside(place, ("embeddings.parquet", "centres.parquet", "history.csv"))
    write_json(place / "config.json", record | {FILES: files})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A searched and blended study of random embeddings."""
    study = write_example_study(tmp_path_factory.mktemp("readers"))
    for fold in range(3):
        train(study, fold)
    predicted, _ = add_new_individual(study.rank(KNNHead(20)))
    for place, fold in zip(study.fold_folders, calibrate_folds(predicted), strict=True):
        write_fold(place, fold, 3, None)
    study.folds.to_csv(study.folder / "folds.csv", index=False)
    table = study.folds[["image", "species", "individual_id"]]
    table.to_csv(study.folder / "train.csv", index=False)
    return study, blend(study)


def blend(study, options=BlendOptions()):
    folder, files = study.folder, prediction_files(study.folder)
    with pytest.MonkeyPatch.context() as patch:  # its folds are of no data folder
        patch.setattr("happywhale_nb.stages.blend_steps.study_folds", lambda *words, **names: study.folds)
        result = blend_lists(study.dataset, folder, files, options)
    write_json(folder / "blend.json", result)
    return result


@pytest.fixture
def study(template, tmp_path):
    """A copy of the study to harm."""
    made, _ = template
    folder = Path(shutil.copytree(made.folder, tmp_path / "study"))
    return replace(made, folder=folder, dataset=replace(made.dataset, root=folder))


def cut_in_a_line(path):
    path.write_bytes(path.read_bytes()[:-4])


def drop_half(path):
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        return parquet.write_table(table.slice(0, len(table) // 2), path)
    lines = path.read_text().splitlines(keepends=True)
    return path.write_text("".join(lines[: len(lines) // 2 + 1]))


def of_the_next_fold(path):
    other = path.parent.with_name(f"fold{(int(path.parent.name[-1]) + 1) % 3}") / path.name
    keep = path.read_bytes()
    path.write_bytes(other.read_bytes()), other.write_bytes(keep)


def queries(study, fold=0):
    return study.folds["image"][study.folds["fold"] == fold].tolist()


def photographs(study):
    return study.dataset.test["image"].tolist()


READERS = {
    "embeddings.parquet": lambda s, path: read_embeddings(path),
    "centres.parquet": lambda s, path: read_centres(path),
    "oof.csv": lambda s, path: read_predictions(path, queries(s)),
    "test.csv": lambda s, path: read_predictions(path, photographs(s)),
    "oof_scores.parquet": lambda s, path: read_scores(path, queries(s)),
    "test_scores.parquet": lambda s, path: read_scores(path, photographs(s)),
    "oof_lists.csv": lambda s, path: read_candidate_sets(path, queries(s)),
    "test_lists.csv": lambda s, path: read_candidate_sets(path, photographs(s)),
}


@pytest.mark.parametrize("harm", [cut_in_a_line, drop_half, of_the_next_fold])
def test_every_reader_refuses_a_harmed_file_in_one_line(study, harm):
    for name, read in READERS.items():
        path = study.fold_folders[0] / name
        whole = [place / name for place in study.fold_folders]
        kept = [each.read_bytes() for each in whole]
        read(study, path)
        harm(path)
        if [each.read_bytes() for each in whole] == kept:
            continue  # centres are the same in all folds
        with pytest.raises(UserError) as error:
            read(study, path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value), name
        assert "again" in str(error.value) and "`happywhale run`" in str(error.value)
        for each, content in zip(whole, kept, strict=True):
            each.write_bytes(content)


def test_blend_refuses_a_list_cut_inside_a_line_and_two_swapped_folds(study):
    assert blend(study)["photos"] == 20
    path = study.fold_folders[1] / "test.csv"
    kept = path.read_bytes()
    cut_in_a_line(path)
    with pytest.raises(UserError, match=r"fold1/test\.csv has .* bytes instead of .*: it was cut"):
        blend(study)
    path.write_bytes(kept)
    of_the_next_fold(path)
    with pytest.raises(UserError, match=r"fold1/test\.csv has (changed|.* bytes)"):
        blend(study)


def test_blend_of_scores_refuses_a_halved_table(study):
    drop_half(study.fold_folders[2] / "oof_scores.parquet")
    with pytest.raises(UserError, match=r"fold2/oof_scores\.parquet has .* by the listing in metrics\.json"):
        blend(study, BlendOptions(voting="scores"))


def test_knn_refuses_half_of_the_centres(study):
    head = KNNHead(20, centre_weight=0.3)
    rank_fold(study.fold_folders[0], study.dataset, study.folds, 0, head)
    drop_half(study.fold_folders[0] / "centres.parquet")
    with pytest.raises(UserError, match=r"centres\.parquet has .* by the listing in config\.json: run 03_train"):
        rank_fold(study.fold_folders[0], study.dataset, study.folds, 0, head)


def test_report_refuses_half_a_history_and_a_submission_without_its_end(study):
    search = type("Model", (), {"search": {"folds": {"0": {}}}})()
    plot_history(study.folder, {study.model: search})
    drop_half(study.fold_folders[0] / "history.csv")
    with pytest.raises(UserError, match=r"history\.csv has .*: it was cut"):
        plot_history(study.folder, {study.model: search})
    assert len(read_submission(study.dataset, study.folder).images) == 20
    cut_in_a_line(study.folder / "submission.csv")
    with pytest.raises(UserError, match=r"submission\.csv has .*: it was cut, by the listing in blend\.json"):
        read_submission(study.dataset, study.folder)


def test_a_fold_whose_predictions_are_gone_is_not_left_out_in_silence(study):
    write_json(study.folder / study.model / "knn.json", {"folds": {str(k): {} for k in range(3)}})
    assert len(prediction_files(study.folder)[study.model]) == 3
    assert set(read_outcomes(study.folder, study.model, study.folds)["fold"]) == {0, 1, 2}
    for name in ("test.csv", "oof.csv"):
        (study.fold_folders[1] / name).unlink()
    with pytest.raises(UserError, match=r"fold1/test\.csv is missing, and knn\.json counts its fold: run 06_knn again"):
        blend(study)
    with pytest.raises(UserError, match=r"fold1/oof\.csv is missing, by the listing in metrics\.json"):
        read_outcomes(study.folder, study.model, study.folds)


def test_folders_of_two_folds_that_are_swapped_are_refused(study):
    a, b = study.fold_folders[:2]
    a.rename(study.folder / "x"), b.rename(a), (study.folder / "x").rename(b)
    for read in (lambda: read_fold(a, study.folds, 0), lambda: read_embeddings(b / "embeddings.parquet")):
        with pytest.raises(UserError, match=r"belongs to fold [01], by the listing"):
            read()


def test_results_of_other_data_are_refused_by_the_stages_that_read_them(study):
    later = replace(study, dataset=replace(study.dataset, fingerprint="f" * 16))
    with pytest.raises(UserError, match=r"other photographs or another train\.csv .*: run 03_train again"):
        later.rank(KNNHead(20))
    place = study.fold_folders[0] / "metrics.json"
    write_json(place, read_json(place) | {"protocol": {"data": "0" * 16}})
    with pytest.raises(UserError, match="run 06_knn again"):
        blend(study)


def test_stages_that_found_their_work_done_look_at_what_they_wrote(study):
    place = study.fold_folders[0]
    write_json(study.folder / "knn.json", {"stamp": "s"})
    outputs = [place / name for name in ("metrics.json", "oof.csv", "test_scores.parquet")]
    assert is_done(study.folder / "knn.json", "s", outputs) and is_done(place / "config.json", "s0", [])
    drop_half(place / "test_scores.parquet")
    assert not is_done(study.folder / "knn.json", "s", outputs)
    drop_half(place / "centres.parquet")
    assert not is_done(place / "config.json", "s0", [])
    for spoilt in ("", "{", "[]", "3"):
        (study.folder / "knn.json").write_text(spoilt)
        assert not is_done(study.folder / "knn.json", "s", [])


def test_files_of_earlier_versions_are_read_as_before(study):
    for place in study.fold_folders:
        for record in RECORDS:
            if (place / record).is_file():
                write_json(place / record, {k: v for k, v in read_json(place / record).items() if k != FILES})
    drop_half(study.fold_folders[0] / "centres.parquet")
    for name, read in READERS.items():
        read(study, study.fold_folders[0] / name)


@pytest.mark.parametrize("listing", [None, 3, [], {"oof.csv": {}}, {"oof.csv": {"bytes": None}}, {"test.csv": 5}])
def test_a_listing_that_says_nothing_of_use_refuses_nothing_and_never_crashes(study, listing):
    place = study.fold_folders[0]
    write_json(place / "metrics.json", read_json(place / "metrics.json") | {FILES: listing})
    try:
        read_predictions(place / "oof.csv")
    except UserError as error:
        assert "bytes" in json.dumps(listing) and "\n" not in str(error)
