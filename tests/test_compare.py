"""Same seed, same machine, same backend: the same submission, byte for byte; and what differs is said, no more."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import read_json, write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.retrieval.embeddings import image_embeddings, write_embeddings
from happywhale_nb.retrieval.predictions import write_predictions
from happywhale_nb.workflow.compare import compare_runs, describe_comparison
from happywhale_nb.workflow.provenance import write_record

ROOT = Path(__file__).resolve().parents[1]
VALUES = {"fold": 0, "epochs": 0, "preset": "small", "seed": 0, "quick": False, "data_dir": "/x/demo", "force": False}
VALUES |= {"study": ""}


# --- what is said of two runs, one thing spoilt at a time


def model_file(path, weights, when=(2026, 1, 1, 0, 0, 0)):
    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        for name, array in weights.items():
            file[name] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("model.weights.h5", when), held.getvalue())


def small_study(root):
    """A study of one model on one fold with a run record of each stage, as files."""
    fold, images = root / "small" / "fold0", np.array(["a.jpg", "b.jpg", "c.jpg"])
    card = {"protocol": {"split": "stratified-2-seed0", "fraction_new": 0.1, "near_duplicates": None, "data": "d"}}
    made = card | {"versions": {"keras": "3.15.1", "numpy": "2.4.6", "backend": "tensorflow"}, "stamp": "s"}
    result = {"map5_known": 0.7, "train_seconds": 3.0, "device": "tensorflow on CPU (cpu), float32, no XLA"}
    write_json(fold / "config.json", made | {"parameters": {"epochs": 26, "seed": 0}, "result": result})
    write_embeddings(fold / "embeddings.parquet", image_embeddings("train", images, np.eye(3, dtype=np.float32)))
    (fold / "history.csv").write_text("epoch,loss,seconds\n1,9.5,1.2\n2,9.25,1.3\n")
    model_file(fold / "model.keras", {"dense/0": np.eye(2), "dense/1": np.zeros(2)})
    write_predictions(fold / "oof.csv", images, [["w1", "w2"], ["w2"], ["w3"]])
    write_json(root / "small" / "knn.json", made | {"parameters": {"k": 50}, "oof": {"map5": 0.707}, "species": [1, 2]})
    write_predictions(root / "submission.csv", images, [["w1", "w2"], ["w2", "w1"], ["w3"]])
    write_json(root / "blend.json", {"voting": "paper", "photos": 3, "tested": True, "stamp": "b"})
    for place, stage, output in (("small/fold0", "train", "03_train"), ("small", "knn", "06_knn")):
        values = {"data_dir": f"/x/{root.name}", "study": root.name, "seed": 0, "epochs": 0}
        write_record(root / place / f"{output}.ipynb", stage, values, "d", 60)
    write_record(root / "07_blending.ipynb", "blend", {"data_dir": "/x/a", "voting": "paper"}, "d", 6)
    return root


@pytest.fixture
def two(tmp_path):
    return small_study(tmp_path / "one"), small_study(tmp_path / "two")


def edit(path, change):
    """Change a JSON file by a function of its content."""
    content = read_json(path)
    change(content)
    write_json(path, content)


def the_record(folder):
    return next(folder.glob("*.run.json"))


def test_compare_runs_of_two_equal_studies_finds_nothing(two):
    model_file(
        two[1] / "small/fold0/model.keras", {"dense/0": np.eye(2), "dense/1": np.zeros(2)}, (2027, 2, 2, 2, 2, 2)
    )
    found = compare_runs(*two)
    assert not found["differs"] and not found["unrecorded"] and found["recorded"] == {"a": 3, "b": 3}
    known = "commit, " if found["unknown"] == [] else ""
    told = describe_comparison(found)[0]
    assert told.startswith(f"same parameters, data, protocol, {known}versions") and "submission.csv identical" in told


RECORDED = {
    "a parameter": (lambda r: r["parameters"].update(voting="borda"), ("parameters", "voting", "paper", "borda")),
    "a new parameter": (lambda r: r["parameters"].update(min_gain=0.1), ("parameters", "min_gain", None, 0.1)),
    "data": (lambda r: r["data"].update(fingerprint="e"), ("data", "fingerprint", "d", "e")),
    "a version": (lambda r: r["versions"].update(python="2.7"), ("versions", "python", None, "2.7")),
    "backend": (lambda r: r.update(backend="jax"), ("backend", "", None, "jax")),
    "device": (lambda r: r["device"].update(cores=999), ("device", "cores", None, 999)),
    "environment": (lambda r: r["environment"].update(TF_X="1"), ("environment", "TF_X", None, "1")),
    "commit": (lambda r: r.update(commit={"hash": "f" * 40, "changes": None}), ("commit", "hash", None, "f" * 40)),
}


@pytest.mark.parametrize("what", RECORDED)
def test_compare_runs_with_one_difference_names_it_and_nothing_else(what, two):
    spoil, (kind, name, before, after) = RECORDED[what]
    record = the_record(two[1])
    if what == "commit":
        for folder in two:
            edit(the_record(folder), lambda r: r.update(commit={"hash": "0" * 40, "changes": None}))
    edit(record, spoil)
    found = compare_runs(*two)
    assert [(row["kind"], row["name"], row["b"], row["runs"]) for row in found["provenance"]] == [
        (kind, name, after, ["blend"])
    ]
    assert before is None or found["provenance"][0]["a"] == before
    assert found["differs"] and not found["metrics"] and not any(found["files"].values())
    first = describe_comparison(found)[0]
    assert first.startswith(f"differ in: {kind} {name}".rstrip()) and first.endswith("submission.csv identical")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r["parameters"].update(study="other", data_dir="elsewhere", force=True),
        lambda r: r["data"].update(folder="elsewhere"),
        lambda r: r.update(seconds=1e6, started="2001-01-01T00:00:00+00:00"),
    ],
)
def test_compare_runs_ignores_places_and_times(spoil, two):
    edit(the_record(two[1]), spoil)
    assert not compare_runs(*two)["differs"]


def test_compare_runs_lists_metrics_by_their_difference_largest_first(two):
    edit(two[1] / "small/knn.json", lambda c: c["oof"].update(map5=0.711))
    edit(two[1] / "small/knn.json", lambda c: c.update(species=[1, 3, 4], stamp="other"))
    edit(two[1] / "small/fold0/config.json", lambda c: c["result"].update(train_seconds=99.0))
    edit(two[1] / "blend.json", lambda c: c.update(tested=False, stamp="other"))
    found = compare_runs(*two)
    rows = [(row["file"], row["name"], row["a"], row["b"]) for row in found["metrics"]]
    assert rows[0] == ("small/knn.json", "species.1", 2, 3) and rows[1][1] == "oof.map5"
    assert sorted(rows[2:]) == [("blend.json", "tested", True, False), ("small/knn.json", "species.2", None, 4)]
    assert [row["difference"] for row in found["metrics"]] == [1, pytest.approx(0.004), None, None]
    lines = describe_comparison(found)
    assert lines[1] == "small/knn.json oof.map5: 0.707 → 0.711 (+0.004)" and not found["provenance"]


def test_compare_runs_compares_predictions_embeddings_weights_and_histories_by_content(two):
    fold, images = two[1] / "small/fold0", np.array(["a.jpg", "b.jpg", "d.jpg"])
    write_predictions(two[1] / "submission.csv", images, [["w2", "w1"], ["w2", "w3"], ["w3"]])
    turned = np.array([[np.cos(0.1), np.sin(0.1), 0], [0, 1, 0], [0, 0, 1]], np.float32)
    embeddings = image_embeddings("train", ["b.jpg", "a.jpg", "c.jpg"], turned[[1, 0, 2]])
    write_embeddings(fold / "embeddings.parquet", embeddings)
    model_file(fold / "model.keras", {"dense/0": np.eye(2), "dense/1": np.array([0, -0.25])})
    (fold / "history.csv").write_text("epoch,loss,seconds\n1,9.5,7.7\n2,9.26,7.7\n")
    found = compare_runs(*two)
    files = {name: what for name, what in found["files"].items() if what}
    assert files["submission.csv"] == {"photographs": 2, "first": 1, "rankings": 2, "only_in_one": 2}
    assert files["small/fold0/embeddings.parquet"]["smallest_cosine"] == pytest.approx(np.cos(0.1), abs=1e-6)
    assert files["small/fold0/model.keras"] == {"arrays": 2, "different": 1, "largest": 0.25}
    assert files["small/fold0/history.csv"] == {"rows": 2, "different": 1} and len(files) == 4
    lines = describe_comparison(found)
    assert lines[0].startswith("same parameters") and "identical" not in lines[0]
    assert lines[1].startswith("submission.csv: 1 of 2 photographs have another first prediction, 2 another ranking")


def test_compare_runs_of_embeddings_of_before_and_of_today_compares_the_vectors(two):
    file = two[1] / "small/fold0/embeddings.parquet"
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(3, dtype=np.float32)[::-1].ravel()), 3)
    parquet.write_table(pa.table({"image": ["c.jpg", "b.jpg", "a.jpg"], "embedding": vectors}), file)
    assert not compare_runs(*two)["differs"] and not compare_runs(*two[::-1])["differs"]
    write_embeddings(file, image_embeddings("test", ["a.jpg", "b.jpg", "c.jpg"], np.eye(3, dtype=np.float32)))
    found = compare_runs(*two)["files"]["small/fold0/embeddings.parquet"]
    assert found == {"photographs": 0, "smallest_cosine": None, "only_in_one": 6, "different": 6}


def test_compare_runs_of_histories_ignores_seconds(two):
    (two[1] / "small/fold0/history.csv").write_text("epoch,loss,seconds\n1,9.5,7.7\n2,9.25,7.7\n")
    assert not compare_runs(*two)["differs"]


def test_compare_runs_of_other_shapes_says_so(two):
    fold = two[1] / "small/fold0"
    model_file(fold / "model.keras", {"dense/0": np.eye(3), "dense/1": np.zeros(2)})
    write_embeddings(fold / "embeddings.parquet", image_embeddings("train", ["a.jpg"], np.ones((1, 1), np.float32)))
    text = "\n".join(describe_comparison(compare_runs(*two)))
    assert "1 of 2 arrays of weights differ, other shapes" in text and "different dimensions, 2 photographs" in text


def test_compare_runs_names_what_only_one_has(two):
    shutil.rmtree(two[0] / "small/fold0")
    (two[1] / "submission.csv").unlink()
    found = compare_runs(*two)
    assert found["only_in_a"] == ["submission.csv"] and "small/fold0/train" in found["only_in_b"] and found["differs"]
    assert any(line.startswith("only in A: submission.csv") for line in describe_comparison(found))


def test_compare_runs_without_records_goes_by_the_files(two):
    for path in two[0].rglob("*.run.json"):
        path.unlink()
    found = compare_runs(*two)
    assert not found["differs"] and found["unrecorded"] == ["blend", "small/fold0/train", "small/knn"]
    text = "\n".join(describe_comparison(found))
    assert "of the original run on both sides: blend, " in text and "commit" not in text.splitlines()[0]
    edit(two[1] / "small/knn.json", lambda c: c["parameters"].update(k=5))
    edit(two[1] / "small/fold0/config.json", lambda c: c["versions"].update(keras="3.16.0", backend="jax"))
    edit(two[1] / "small/fold0/config.json", lambda c: c["protocol"].update(data="e", near_duplicates=0))
    rows = compare_runs(*two)["provenance"]
    assert [(row["kind"], row["name"], row["a"], row["b"]) for row in rows] == [
        ("parameters", "k", 50, 5),
        ("data", "fingerprint", "d", "e"),
        ("versions", "keras", "3.15.1", "3.16.0"),
        ("backend", "", "tensorflow", "jax"),
    ]


def test_compare_runs_with_an_empty_record_is_as_without(two):
    edit(the_record(two[0]), lambda r: [r.pop(n) for n in ("commit", "versions", "device", "environment", "backend")])
    edit(the_record(two[0]), lambda r: r.update(already_done=True))
    found = compare_runs(*two)
    assert not found["differs"] and found["unrecorded"] == ["blend"] and "commit" in found["unknown"]


def test_compare_runs_takes_folds_notebooks_and_records(two):
    for place in ("small", "small/fold0"):
        assert not compare_runs(two[0] / place, two[1] / place)["differs"]
    notebooks = [folder / "small/fold0/03_train.ipynb" for folder in two]
    for path in notebooks:
        path.touch()
    edit(two[1] / "small/knn.json", lambda c: c["oof"].update(map5=0.1))  # another stage's
    assert not compare_runs(*notebooks)["differs"]
    paths = [next((folder / "small").glob("06_knn-*.run.json")) for folder in two]
    assert [row["file"] for row in compare_runs(*paths)["metrics"]] == ["knn.json"]
    assert "fold0/oof.csv" in compare_runs(*paths)["files"]


def test_compare_command_ends_with_0_1_or_2(two):
    run = CliRunner().invoke
    assert run(main, ["compare", *map(str, two)]).exit_code == 0
    edit(two[1] / "small/knn.json", lambda c: c["oof"].update(map5=0.1))
    told = run(main, ["compare", *map(str, two), "--json"])
    assert told.exit_code == 1 and json.loads(told.output)["metrics"][0]["name"] == "oof.map5"
    for wrong, message in ((two[0] / "nothing", "does not exist"), (two[0].parent / "empty", "holds no results")):
        (two[0].parent / "empty").mkdir(exist_ok=True)
        told = run(main, ["compare", str(two[0]), str(wrong)])
        assert told.exit_code == 2 and message in told.output and "Traceback" not in told.output
    (two[0] / "05_robustness.ipynb").touch()
    with pytest.raises(UserError, match="no run record beside"):
        compare_runs(two[0] / "05_robustness.ipynb", two[1])
    (two[1] / "small/fold0/model.keras").write_bytes(b"cut off")
    told = run(main, ["compare", *map(str, two)])
    assert told.exit_code == 2 and "is not a model that Keras has saved" in told.output


# --- the same numbers again: test_whole_study.py has it for TensorFlow

TRAIN = """
import sys, numpy as np
from happywhale_nb.networks.training import Samples, train
from happywhale_nb.networks.presets import configure
config = configure("basic_cnn", epochs=2, image_size=32, overrides="batch_size=8")
crops = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3)).astype("uint8")
model, _ = train(config, Samples(crops, np.arange(32), np.arange(32) % 8, 8), sys.argv[1], "stamp")
np.savez(sys.argv[1] + "/weights.npz", *model.get_weights())
"""


@pytest.mark.soak
def test_train_on_jax_twice_gives_the_same_weights(tmp_path):
    env = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": ""}  # compiled as everywhere
    made = []
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", TRAIN, tmp_path / name]
        subprocess.run(command, check=True, capture_output=True, env=env, timeout=200)
        with np.load(tmp_path / name / "weights.npz") as weights:
            made.append([weights[array] for array in weights.files])
    assert all(np.array_equal(x, y) for x, y in zip(*made, strict=True))
