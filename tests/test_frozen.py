"""Encoders that are used as they are, as models of a study: what a fold's folder holds, makes stale, and who reads it.

Most tests have an encoder that takes no time, `colours.onnx`: the pixels of a small crop. Those with the marker `slow`
have EfficientNet-Lite0 with ImageNet's weights on crops of 48 pixels.
"""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from happywhale_nb.core.artifacts import read_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.splits import gallery_and_queries
from happywhale_nb.evaluation.browser import browse_folds
from happywhale_nb.imaging.crops import load_crop, study_crops
from happywhale_nb.networks.encoder_card import EncoderCard, files_digest, read_card, write_card
from happywhale_nb.networks.encoders import copy_encoder, open_encoder
from happywhale_nb.networks.presets import configure, used_preset
from happywhale_nb.networks.vector_tables import open_vectors
from happywhale_nb.retrieval.adapter import read_adapter
from happywhale_nb.retrieval.adapters import fit_adapter
from happywhale_nb.retrieval.embeddings import read_centres, read_embeddings, write_embeddings
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.metrics import average_precision
from happywhale_nb.stages import frozen
from happywhale_nb.stages.blend_record import BlendOptions
from happywhale_nb.stages.blending import blend_stage
from happywhale_nb.stages.degraded_queries import sample_queries
from happywhale_nb.stages.encoder_input import find_encoder
from happywhale_nb.stages.fold_explainer import GradcamOptions
from happywhale_nb.stages.frozen import encode_stage
from happywhale_nb.stages.gradcam import gradcam_stage
from happywhale_nb.stages.knn import knn_stage
from happywhale_nb.stages.report import report_stage
from happywhale_nb.stages.robustness import robustness_stage
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.stages.train import train_stage
from happywhale_nb.workflow import kaggle
from happywhale_nb.workflow.compare import compare_runs
from happywhale_nb.workflow.kaggle import build_folder
from happywhale_nb.workflow.notebooks import read_parameters
from happywhale_nb.workflow.provenance import job_stamp
from happywhale_nb.workflow.study import check_study, override, study_jobs, study_of_one


@pytest.fixture(autouse=True, scope="module")
def in_no_time():
    """A graph called `colours.onnx` gives the pixels of a crop of 4 × 4; no other one is loaded."""

    def load(path, card, runtime=""):
        assert Path(path).name == "colours.onnx"
        return lambda pixels: pixels[:, 6::12, 6::12].reshape(len(pixels), -1) + 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("happywhale_nb.networks.encoders.graph_function", load)
        patch.setattr("happywhale_nb.networks.encoders.further_files", lambda path: ())
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of the encoder that takes no time."""
    folder = tmp_path_factory.mktemp("encoders") / "small"
    folder.mkdir()
    (folder / "colours.onnx").write_bytes(b"no graph")
    card = EncoderCard(
        "small", "colours.onnx", files_digest([folder / "colours.onnx"]), 48, 48, "area", "rgb", "nhwc", 1.0,
        (0.0,) * 3, (1.0,) * 3, 48, "CC BY-NC 4.0", False, source="drawn for tests",
    )  # fmt: skip
    write_card(folder, card)
    return folder


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """The folder of EfficientNet-Lite0 for crops of 48 pixels."""
    folder = copy_encoder("efficientnet_lite0", tmp_path_factory.mktemp("encoders") / "lite48")
    card = replace(read_card(folder), name="lite48", width=48, height=48, probe="", probe_embedding=())
    write_card(folder, card)
    return folder


@pytest.fixture(scope="module")
def split(tiny, tmp_path_factory):
    """Data set, folder and two folds of a study, in which nothing has been done."""
    folder, dataset = tmp_path_factory.mktemp("frozen") / "outputs" / "study", read_dataset(tiny)
    return dataset, folder, study_folds(dataset, folder, 2, 0)


@pytest.fixture(scope="module")
def embedded(split, small):
    """The same with both folds of the model `small`, without an adapter and with one."""
    dataset, folder, folds = split
    encode_stage(dataset, folds, 0, "small", str(small), folder, adapter="none")
    encode_stage(dataset, folds, 1, "small", str(small), folder, adapter="whiten")
    return split


# --- a fold's folder


def test_encode_stage_writes_a_fold_that_open_encoder_opens_and_embeds_to_its_vectors(embedded):
    dataset, folder, folds = embedded
    crops = crops_of(dataset, folder, folds, folder / "small" / "fold1")
    for k in (0, 1):
        place = folder / "small" / f"fold{k}"
        stored = read_embeddings(place / "embeddings.parquet").of("train", folds["image"])
        found = open_encoder(place).embed(crops)
        np.testing.assert_allclose(found, stored, atol=1e-4)
        assert not (place / "model.keras").exists() and (place / "adapter.npz").is_file() == (k == 1)
        assert read_embeddings(place / "empty.parquet").vectors.shape[1] == stored.shape[1]
    assert len(list((folder / "small" / "encoder").glob("*.onnx"))) == 1 and not list(folder.glob("small/fold*/*.onnx"))


def crops_of(dataset, folder, folds, place):
    """The crops of the photographs of a table of folds, cut as a fold's model wants them."""
    used = read_json(place / "config.json")["parameters"]
    return study_crops(dataset, folds["image"], used_preset(used), used["crops"], folder)[0]


def test_adapter_of_a_fold_and_its_centres_know_nothing_of_its_queries(embedded, small, tmp_path):
    _, folder, folds = embedded
    gallery, _ = gallery_and_queries(folds, 1)
    images, individuals = folds["image"].to_numpy(str)[gallery], folds["individual_id"].to_numpy(str)[gallery]
    plain = read_embeddings(folder / "small" / "encoder" / "embeddings.parquet").of("train", images)
    expected, place = fit_adapter(plain, individuals, "whiten"), folder / "small" / "fold1"
    found = read_adapter(place / "adapter.npz")
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-5)
    centres = read_centres(place / "centres.parquet")
    assert centres.individual_ids.tolist() == sorted(set(individuals))
    own = expected.transform(plain[individuals == centres.individual_ids[0]]).sum(axis=0)
    np.testing.assert_allclose(centres.vectors[0], own / np.linalg.norm(own), atol=1e-4)


def test_config_of_a_fold_says_that_nothing_was_trained_and_what_is_known_of_the_encoder(embedded):
    _, folder, _ = embedded
    record = read_json(folder / "small" / "fold1" / "config.json")
    assert record["parameters"]["epochs"] == 0 and record["result"]["train_seconds"] == 0
    assert record["encoder"]["licence"] == "CC BY-NC 4.0" and not record["encoder"]["commercial"]
    assert record["encoder"]["bytes"] > 8 and record["encoder"]["note"] == ""
    assert record["adapter"]["kind"] == record["adapter"]["asked"] == "whiten" and record["adapter"]["used"]
    assert record["result"]["map5_known"] != record["result"]["without_adapter"]
    assert "/" not in record["parameters"]["encoder"]


@pytest.mark.slow
def test_photographs_are_embedded_once_for_all_folds_and_again_for_another_file_or_other_crops(
    embedded, small, tmp_path, monkeypatch
):
    dataset, folder, folds = embedded
    place = Path(shutil.copytree(folder, tmp_path / "study"))
    calls = []
    monkeypatch.setattr(frozen, "embed_in_blocks", counting(frozen.embed_in_blocks, calls))
    config = place / "small" / "fold0" / "config.json"
    before = config.stat().st_mtime_ns
    frozen.encode_stage(dataset, folds, 0, "small", str(small), place, adapter="none")
    assert config.stat().st_mtime_ns == before and not calls, "nothing to do"
    frozen.encode_stage(dataset, folds, 0, "small", str(small), place, adapter="centre")
    assert config.stat().st_mtime_ns != before and not calls, "another adapter, the same embeddings"
    frozen.encode_stage(dataset, folds, 0, "small", str(small), place, adapter="centre", crops="whole")
    assert len(calls) == 2 and read_card(place / "small" / "fold0").crops == "whole"
    other = Path(shutil.copytree(small, tmp_path / "small"))
    write_card(other, replace(read_card(other), colours="bgr"))
    frozen.encode_stage(dataset, folds, 0, "small", str(other), place, adapter="centre", crops="whole")
    assert len(calls) == 4 and read_card(place / "small" / "encoder").colours == "bgr"


def counting(function, calls):
    def counted(*arguments):
        calls.append(arguments[-1])
        return function(*arguments)

    return counted


@pytest.mark.slow
def test_embedding_that_was_killed_goes_on_with_the_next_block(split, small, tmp_path, monkeypatch):
    dataset, _, folds = split
    monkeypatch.setattr(frozen, "BLOCK", 16)
    encoder, sizes = open_encoder(small), []
    embed = encoder.embed

    def killed(crops, *more, **how):
        sizes.append(len(crops))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return embed(crops, *more, **how)

    encoder.embed = killed
    monkeypatch.setattr(frozen, "open_encoder", lambda place: encoder)
    how = (dataset, folds, 0, "small", str(small), tmp_path / "study", "none")
    with pytest.raises(KeyboardInterrupt):
        frozen.encode_stage(*how)
    assert not list((tmp_path / "study").glob("small/fold*/config.json"))
    record = frozen.encode_stage(*how)
    assert sizes[:5] == [16, 16, 16, 16, 10], "the two blocks that were done are not done again"
    assert record["result"]["map5_known"] > 0 and not list((tmp_path / "study" / "small" / "encoder").glob("blocks*"))
    limited = frozen.encode_stage(*how[:-3], str(small), tmp_path / "other", "none", max_hours=1e-9)
    assert "small, fold 0: stopped after 16 of 48 photographs" in limited["unfinished"]


# --- vectors made elsewhere, and several encoders


def write_vectors(path, dataset, left_out=()):
    """A table of vectors for all photographs of a data set: the pixels of tiny crops."""
    paths = {f"train/{p.name}": p for p in dataset.train_paths()} | {f"test/{p.name}": p for p in dataset.test_paths()}
    rows = {key: load_crop(p, 4).reshape(-1) + 1.0 for key, p in paths.items() if p.name not in left_out}
    keys = pd.DataFrame([key.split("/") for key in rows], columns=["part", "image"])
    pd.concat([keys, pd.DataFrame(rows.values())], axis=1).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_vectors_made_elsewhere_are_a_model_without_robustness_and_maps(split, tiny, tmp_path):
    dataset, _, folds = split
    table = write_vectors(tmp_path / "vectors.csv", dataset)
    folder = tmp_path / "study"
    record = encode_stage(dataset, folds, 0, "elsewhere", str(table), folder)
    assert record["result"]["map5_known"] > 0.2 and not record["encoder"]["embeds"]
    assert sorted(p.name for p in (folder / "elsewhere" / "fold0").glob("e*")) == ["embeddings.parquet"]
    assert knn_stage(dataset, folder, "elsewhere", folds, KNNHead())["no_animal"] == {"0": None}
    with pytest.raises(UserError, match="external embeddings cannot embed new crops"):
        robustness_stage(dataset, folder, "elsewhere", folds, 0, photos=3)
    with pytest.raises(UserError, match="external embeddings cannot embed new crops"):
        gradcam_stage(dataset, folder, "elsewhere", folds, 0)
    content = {"study": "v", "data_dir": str(tiny), "folds": 2}
    content |= {"models": {"elsewhere": {"encoder": str(table)}, "basic_cnn": {}}}
    titles = {job.title for job in study_jobs(content)[1]}
    assert {"06_knn elsewhere", "05_robustness basic_cnn"} <= titles and "05_robustness elsewhere" not in titles
    with pytest.raises(UserError, match=r"gradcam\.models: 'elsewhere' is a table of embeddings"):
        check_study(content | {"gradcam": {"models": "elsewhere"}}, "mine.yaml")


def test_vectors_that_lack_photographs_are_counted_and_the_first_is_named(split, tmp_path):
    dataset, _, folds = split
    lost = sorted(folds["image"])[:3]
    table = write_vectors(tmp_path / "vectors.csv", dataset, lost)
    with pytest.raises(UserError, match=rf"vectors\.csv has no vector of train/{lost[0]}, 3 of 58 missing"):
        encode_stage(dataset, folds, 0, "elsewhere", str(table), tmp_path / "study")
    assert not list((tmp_path / "study").rglob("config.json"))


@pytest.mark.slow
def test_encoders_side_by_side_are_one_whose_cosine_is_the_mean_of_theirs(split, small, tmp_path, monkeypatch):
    dataset, _, folds = split
    monkeypatch.setattr(frozen, "fold_weights", lambda parts, *rest: ((0.5, 0.5), "equal"))
    other = Path(shutil.copytree(small, tmp_path / "other"))
    write_card(other, replace(read_card(other), name="other", width=96, height=96, dimension=192))
    folder, both = tmp_path / "study", f"{small} {other}"
    record = encode_stage(dataset, folds, 0, "both", both, folder, "whiten")
    place = folder / "both" / "fold0"
    assert record["parameters"]["encoder"] == "small other" and record["encoder"]["dimension"] == 240
    stored = read_embeddings(place / "embeddings.parquet").of("train", folds["image"])
    np.testing.assert_allclose(open_encoder(place).embed(crops_of(dataset, folder, folds, place)), stored, atol=1e-4)
    monkeypatch.setattr(frozen, "fold_weights", lambda parts, *rest: ((0.0, 1.0), "the second alone"))
    record = encode_stage(dataset, folds, 1, "both", both, folder, "none")
    place = folder / "both" / "fold1"
    assert record["adapter"]["weights_say"] == "the second alone" and read_card(place).parts == ("../encoder/part2",)
    stored = read_embeddings(place / "embeddings.parquet").of("train", folds["image"])
    assert stored.shape[1] == 192
    np.testing.assert_allclose(open_encoder(place).embed(crops_of(dataset, folder, folds, place)), stored, atol=1e-4)
    monkeypatch.setattr(frozen, "fold_weights", lambda parts, *rest: ((0.5, 0.5), "equal"))
    table = write_vectors(tmp_path / "vectors.csv", dataset)
    encode_stage(dataset, folds, 0, "small", str(small), folder, "none")
    encode_stage(dataset, folds, 0, "vectors", str(table), folder, "none")
    encode_stage(dataset, folds, 0, "joined", f"{small} {table}", folder, "none")
    one, two, joined = (
        read_embeddings(folder / name / "fold0" / "embeddings.parquet").of("train", folds["image"])
        for name in ("small", "vectors", "joined")
    )
    np.testing.assert_allclose(joined @ joined.T, (one @ one.T + two @ two.T) / 2, atol=1e-5)


# --- the stages after it


@pytest.mark.soak
@pytest.mark.slow
def test_stages_after_a_frozen_model_run_and_maps_are_of_occlusion(embedded, tmp_path):
    dataset, folder, folds = embedded
    folder = Path(shutil.copytree(folder, tmp_path / "study"))
    knn_stage(dataset, folder, "small", folds, KNNHead())
    robust = robustness_stage(dataset, folder, "small", folds, -1, photos=6)
    assert robust["grid"][0]["map5"] == pytest.approx(stored_map5(folder, folds, robust), abs=1e-6)
    for explain in ("similarity", "class"):
        told = gradcam_stage(dataset, folder, "small", folds, 1, GradcamOptions(explain, examples=3, photos=4))
        assert told["maps"] == "occlusion" and told["layer"] is None and "not a Keras model" in told["why"]
        assert set(told["faithfulness"]["curves"]) == {"map", "random", "centre"}
        assert len(told["faithfulness"]["verdicts"]) == 4 and "occlusion is" in told["faithfulness"]["verdicts"][0]
        assert set(told["pointing"]["maps"]) == {"occlusion"}
    assert (folder / "small" / "fold1" / "gradcam.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="layer='top': this encoder is not a Keras model"):
        gradcam_stage(dataset, folder, "small", folds, 1, GradcamOptions(layer="top"))
    report = report_stage(dataset, folder, folds, examples=2)
    assert set(report["sections"]["encoders"]["small"]) == {"0", "1"} and "architectures" in report["missing"]
    page = (folder / "report.html").read_text()
    assert "Encoders that were not trained here" in page and "permits no commercial use" in page
    assert "CC BY-NC 4.0" in page and "drawn for tests" in page and "by occlusion" in page
    assert "Loss by epoch" not in page
    view = browse_folds(folder, "small", 0, "all photographs")
    assert view.crops.shape[1:] == (256, 256, 3)
    assert not compare_runs(folder, shutil.copytree(folder, tmp_path / "again"))["differs"]


def stored_map5(folder, folds, result):
    """MAP@5 of the photographs that robustness has drawn, by their stored embeddings."""
    rows, scores = sample_queries(folds, [0, 1], result["protocol"]["queries"]), []
    for k in (0, 1):
        gallery, own = folds[gallery_and_queries(folds, k)[0]], rows[rows["fold"] == k]
        vectors = read_embeddings(folder / "small" / f"fold{k}" / "embeddings.parquet")
        head = KNNHead().fit(vectors.of("train", gallery["image"]), gallery["individual_id"].to_numpy(str))
        ranked, _ = head.rank(vectors.of("train", own["image"]))
        scores.extend(average_precision(own["individual_id"].to_numpy(str), ranked))
    return np.mean(scores)


def command(project, *words):
    """The command in a process of its own."""
    how = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 400}
    return subprocess.run([str(Path(sys.executable).with_name("happywhale")), *map(str, words)], cwd=project, **how)


@pytest.mark.soak
@pytest.mark.slow
def test_trained_network_and_efficientnet_are_blended_and_grad_cam_goes_through_the_adapter(split, lite, tmp_path):
    from happywhale_nb.networks.model import build_network, inference_model

    def build(config, samples, *more):
        keras.utils.set_random_seed(0)
        return inference_model(build_network(config, samples.classes)), [{"epoch": 1, "loss": 1.0, "seconds": 0.1}]

    (dataset, _, folds), folder = split, tmp_path / "study"
    config = configure("small_resnet_arcface", epochs=1, image_size=32, overrides="backbone=tiny_resnet embedding=32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("happywhale_nb.stages.fold_training.train", build)
        for k in (0, 1):
            train_stage(dataset, folds, k, "tiny", config, folder)
            encode_stage(dataset, folds, k, "lite", str(lite), folder, "half-whiten")
    results = {name: knn_stage(dataset, folder, name, folds, KNNHead())["oof"]["map5"] for name in ("tiny", "lite")}
    assert results["lite"] > results["tiny"] + 0.1, "what ImageNet teaches is more than chance"
    blend = blend_stage(dataset, folder, options=BlendOptions(weighting="fit"))
    assert {row["model"] for row in blend["table"]} >= {"tiny", "lite"}
    assert blend["fit"]["fitted"] >= results["lite"] - 0.05
    told = gradcam_stage(dataset, folder, "lite", folds, 0, GradcamOptions(examples=3, photos=2))
    assert told["maps"] == "Grad-CAM" and len(told["faithfulness"]["verdicts"]) == 6
    for case in told["examples"]:
        assert case["score"] == pytest.approx(case["stored_cosine"], abs=1e-3), "the adapted embedding is explained"
    report = report_stage(dataset, folder, folds, examples=2)
    assert set(report["sections"]["encoders"]) == {"lite"} and "encoders" not in report["models"]["tiny"]
    assert "Loss by epoch" in (folder / "report.html").read_text()


@pytest.mark.soak
@pytest.mark.slow
def test_train_command_takes_an_encoder_from_the_project_s_folder(project, tiny, lite):
    shutil.copytree(lite, project / "encoders" / "lite48")
    words = ["-p", "data_dir", tiny, "-p", "study", "alone", "-p", "folds", "2", "-p", "encoder", "encoders/lite48"]
    command = [Path(sys.executable).with_name("happywhale"), "train", *words, "-p", "fold", "1"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "outputs/alone/lite48/fold1/03_train.ipynb" in done.stdout and "adapter" in done.stdout
    place = project / "outputs" / "alone" / "lite48"
    assert (place / "fold1" / "encoder.json").is_file() and (place / "encoder" / "encoder.json").is_file()
    record = next((place / "fold1").glob("03_train-*.run.json"))
    assert read_json(record)["parameters"]["encoder"] == "encoders/lite48"


# --- mistakes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 3}, "epochs=3 and encoder='efficientnet_lite0': an encoder is frozen"),
        ({"overrides": "pool=gem"}, "overrides='pool=gem' and encoder="),
        ({"snapshots": "1"}, "snapshots='1' and encoder="),
        ({"image_size": 96}, "image_size=96 and encoder="),
        ({"preset": "basic_cnn"}, "preset 'basic_cnn' and encoder 'efficientnet_lite0': a model has one or the other"),
        ({"encoder": "encoders/none.onnx"}, "there is no encoder encoders/none.onnx: name an encoder folder"),
        ({"encoder": "", "adapter": "whiten", "preset": "basic_cnn"}, "adapter='whiten' requires a frozen encoder"),
        ({"adapter": "white"}, "adapter 'white' is not known: choose auto, none"),
    ],
)
def test_check_study_of_what_an_encoder_cannot_have_names_the_place(given, message):
    content = {"models": {"lite": {"encoder": "efficientnet_lite0"} | given}}
    with pytest.raises(UserError) as error:
        check_study(content, "mine.yaml")
    assert str(error.value).startswith("mine.yaml: models.lite") and message in str(error.value)


def test_override_changes_training_in_trained_models_alone():
    content = {"models": {"lite": {"encoder": "efficientnet_lite0"}, "basic_cnn": {}}}
    models = override(content, {"epochs": "3", "adapter": "none", "crops": "whole"})["models"]
    assert models["lite"] == {"encoder": "efficientnet_lite0", "adapter": "none", "crops": "whole"}
    assert models["basic_cnn"] == {"epochs": "3", "crops": "whole"}
    with pytest.raises(UserError, match="-p epochs: no model of this study is trained"):
        study_of_one({"encoder": "efficientnet_lite0", "epochs": "3"})
    assert list(study_of_one({"encoder": "efficientnet_lite0"})["models"]) == ["efficientnet_lite0"]


@pytest.mark.slow
def test_encode_stage_does_not_replace_a_trained_network_unless_forced(embedded, small, tmp_path):
    dataset, folder, folds = embedded
    place = Path(shutil.copytree(folder, tmp_path / "study"))
    fold = place / "small" / "fold0"
    (fold / "model.keras").write_bytes(b"weeks of work")
    with pytest.raises(UserError, match="holds a network that was trained under the name 'small'"):
        encode_stage(dataset, folds, 0, "small", str(small), place, adapter="centre")
    assert (fold / "model.keras").read_bytes() == b"weeks of work"
    encode_stage(dataset, folds, 0, "small", str(small), place, adapter="centre", force=True)
    assert not (fold / "model.keras").exists() and (fold / "adapter.npz").is_file()


# --- plan, records, Kaggle


def test_study_jobs_of_an_encoder_embed_in_the_first_fold_and_are_stale_by_another_file(tiny, small, tmp_path):
    own = Path(shutil.copytree(small, tmp_path / "small"))
    content = {"study": "frozen", "data_dir": str(tiny), "folds": 2, "models": {"basic_cnn": {}}}
    content["models"]["small"] = {"encoder": str(own)}
    jobs = {job.title: job for job in study_jobs(content)[1]}
    second = jobs["03_train small fold 1"]
    assert [need.title for need in second.needs] == ["03_train small fold 0"]
    assert jobs["03_train small fold 0"].needs == ()
    assert {"04_gradcam small fold 0", "05_robustness small", "06_knn small"} <= set(jobs)
    assert second.parameters["encoder"] == str(own) and "preset" not in second.parameters
    write_card(own, replace(read_card(own), mirror="side"))
    again = {job.title: job for job in study_jobs(content)[1]}
    stale = {title for title in jobs if jobs[title].done_file != again[title].done_file}
    assert stale == {"03_train small fold 0", "03_train small fold 1"}
    moved = str(shutil.copytree(own, tmp_path / "elsewhere"))
    values = {"encoder": moved, "adapter": "auto", "fold": 0}
    assert job_stamp("train", values, "d") == job_stamp("train", values | {"encoder": str(own)}, "d")


def test_job_stamp_without_an_encoder_is_that_of_a_version_that_knew_none():
    values = {"fold": 0, "preset": "small", "seed": 0}
    assert job_stamp("train", values | {"encoder": "", "adapter": "auto"}, "d") == job_stamp("train", values, "d")


def test_licence_of_an_encoder_beside_a_table_is_that_of_both(embedded, small, tmp_path):
    dataset, folder, folds = embedded
    stored = read_embeddings(folder / "small" / "fold0" / "embeddings.parquet")
    write_embeddings(tmp_path / "v.parquet", stored)
    free = shutil.copytree(small, tmp_path / "free")
    write_card(free, replace(read_card(free), licence="MIT", commercial=True, source="a friend"))
    model = frozen.open_frozen(f"{free} {tmp_path / 'v.parquet'}")
    assert (model.card.licence, model.card.commercial) == ("MIT; not stated", False)
    assert model.described["numbers"] == 96 and model.card.name == "small + v"
    record = encode_stage(dataset, folds, 0, "joined", f"{free} {tmp_path / 'v.parquet'}", folder, adapter="none")
    assert (record["encoder"]["licence"], record["encoder"]["commercial"]) == ("MIT; not stated", False)
    frozen.keep_encoder(model, folder / "joined" / "encoder")
    assert read_card(folder / "joined" / "encoder").licence == "MIT", "of the encoder alone"


def test_kaggle_build_packs_tables_of_one_name_apart_with_their_cards(tmp_path):
    for place, value in {"a": 1.0, "b": 2.0, "c": 3.0}.items():
        (tmp_path / place).mkdir()
        path = tmp_path / place / "v.npy"
        np.save(path, np.array([[value, 1.0]]))
        path.with_suffix(".txt").write_text(f"{place}.jpg\n")
    nothing = 224, 224, "area", "rgb", "nhwc", 1.0, (0.0,) * 3, (1.0,) * 3
    digest = files_digest([tmp_path / "b" / "v.npy"])
    write_card(tmp_path / "b" / "v.json", EncoderCard("theirs", "v.npy", digest, *nothing, 2, "MIT", True))
    text = " ".join(str(tmp_path / place / "v.npy") for place in "abc")
    named, licence = kaggle.pack_encoder(text, tmp_path / "to")
    places = [tmp_path / "to" / name for name in named.split()]
    assert len(set(places)) == 3 and licence == "other"
    tables = [open_vectors(place) for place in places]
    assert [table.paths.tolist() for table in tables] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]
    assert [table.card.licence for table in tables] == ["not stated", "MIT", "not stated"]


def test_kaggle_build_packs_the_encoder_whole_and_names_it_in_the_training(small, tmp_path, monkeypatch):
    monkeypatch.setattr(kaggle, "build_wheel", lambda folder: (Path(folder) / "happywhale_nb.whl").touch())
    cards = build_folder(tmp_path / "to", "jo", "whales", {"encoder": str(small)}, machine="none")
    dataset = tmp_path / "to" / "dataset"
    assert open_encoder(dataset / "encoders" / "small").card.name == "small"
    values = read_parameters(tmp_path / "to" / "03_train" / "03_train.ipynb")
    assert (values["encoder"].default, values["name"].default) == ("encoders/small", "small")
    assert read_parameters(tmp_path / "to" / "06_knn" / "06_knn.ipynb")["model"].default == "small"
    lines = "\n".join(kaggle.next_steps(tmp_path / "to", cards))
    assert "kaggle datasets create" in lines and "--dir-mode zip" in lines
    monkeypatch.setenv("HAPPYWHALE_KAGGLE", str(tmp_path / "kaggle"))
    shutil.copytree(dataset, tmp_path / "kaggle" / "input" / "happywhale-wheels")
    found = find_encoder("encoders/small")
    assert found == tmp_path / "kaggle" / "input" / "happywhale-wheels" / "encoders" / "small"
    with pytest.raises(UserError, match="there is no encoder nothing"):
        build_folder(tmp_path / "to", "jo", "whales", {"encoder": "nothing"}, machine="none")
