"""Same seed, same machine, same backend: the same submission, byte for byte; and what differs is said, no more."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from happywhale_nb import records
from happywhale_nb.cli import main
from happywhale_nb.compare import compare_runs, describe_comparison, model_weights
from happywhale_nb.embeddings import Embeddings, read_embeddings, write_embeddings
from happywhale_nb.paths import UserError
from happywhale_nb.predictions import write_predictions
from happywhale_nb.records import begin_record, commit_of, job_stamp, keep_record, record_path, without_folders
from happywhale_nb.runs import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
VALUES = {"fold": 0, "epochs": 0, "preset": "small", "seed": 0, "quick": False, "data_dir": "/x/demo", "force": False}
VALUES |= {"study": ""}


# --- records


@pytest.mark.parametrize("name, value", [("fold", 1), ("epochs", 3), ("preset", "large"), ("seed", 1), ("quick", True)])
def test_a_stamp_changes_with_every_parameter_that_counts(name, value):
    assert job_stamp("train", VALUES | {name: value}, "d") != job_stamp("train", VALUES, "d")


def test_a_stamp_does_not_change_with_places_or_force_but_with_stage_and_data():
    stamp = job_stamp("train", VALUES, "d")
    assert re.fullmatch("[0-9a-f]{16}", stamp)
    assert stamp == job_stamp("train", VALUES | {"data_dir": "/y", "study": "mine", "force": True}, "d")
    assert stamp == job_stamp("train", dict(reversed(VALUES.items())), "d")
    assert len({stamp, job_stamp("knn", VALUES, "d"), job_stamp("train", VALUES, "e")}) == 3


def test_only_records_of_the_same_notebook_with_other_stamps_are_removed(tmp_path):
    mine, other = "0" * 16, "f" * 16
    output = tmp_path / "03_train.ipynb"
    kept = [record_path(output, mine), output, tmp_path / f"06_knn-{other}.run.json"]
    kept += [tmp_path / f"03_train-{other}.json", tmp_path / f"03_train-b-{other}.run.json"]
    kept += [tmp_path / "sub" / f"03_train-{other}.run.json"]
    (tmp_path / "sub").mkdir()
    for path in [*kept, record_path(output, other), record_path(output, "1" * 16)]:
        path.touch()
    begin_record(output, mine)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
    begin_record(tmp_path / "nowhere" / "03_train.ipynb", mine)  # a folder that is not made yet


def test_a_record_says_everything_and_nothing_of_who_and_where(tmp_path, monkeypatch):
    place = tmp_path / "secret-place"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_gpu_cuda_data_dir={place}/cuda --xla_cpu_x=true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    values = VALUES | {"data_dir": str(place / "whales"), "changes": f"weights={place}/a.keras pool=gem"}
    path = keep_record(tmp_path / "03_train.ipynb", "train", values, "d" * 16, 12.34)
    record = read_json(path)
    assert path == record_path(tmp_path / "03_train.ipynb", record["stamp"]) and path.is_file()
    assert record["stamp"] == job_stamp("train", values, "d" * 16)
    assert record["parameters"] == values | {"data_dir": "whales", "changes": "weights=a.keras pool=gem"}
    assert record["data"] == {"folder": "whales", "fingerprint": "d" * 16}
    assert record["environment"]["OMP_NUM_THREADS"] == "1" and record["backend"] == "jax"
    assert {"python", "happywhale_nb", "numpy", "pandas", "scipy", "tensorflow", "keras"} <= set(record["versions"])
    assert record["device"]["cores"] >= 1 and record["device"]["cpu"] and record["seconds"] == 12.3
    assert set(record) >= {"stage", "notebook", "commit", "started"}
    text = path.read_text()
    told = [str(tmp_path), "secret-place", os.uname().nodename, str(Path.home()), os.environ.get("USER") or "\0"]
    assert not [word for word in told if len(word) > 5 and word in text]


def test_a_stage_that_found_its_work_done_is_not_recorded_as_if_it_had_done_it(tmp_path):
    output, figures = tmp_path / "03_train.ipynb", tmp_path / "config.json"
    write_json(figures, {"stamp": "s"})
    now = time.time()
    first = keep_record(output, "train", VALUES, "d", 60, {"hash": "0" * 40, "changes": None})
    made = read_json(first)
    assert made["commit"]["hash"] == "0" * 40 and not made["found_done"]
    os.utime(figures, (now - 600, now - 600))
    os.utime(first, (now - 600, now - 600))
    assert keep_record(output, "train", VALUES, "d", 5, {"hash": "f" * 40, "changes": None}) == first
    assert read_json(first) == made and first.stat().st_mtime > now - 5  # as it was, with a new date
    first.unlink()
    left = read_json(keep_record(output, "train", VALUES, "d", 5))
    assert left["found_done"] and not {"commit", "versions", "device", "environment"} & set(left)
    os.utime(figures)
    assert not read_json(keep_record(output, "train", VALUES, "d", 60))["found_done"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("weights=/a/b c.keras", "weights=b c.keras"),
        ("~/models/x.h5", "x.h5"),
        ("C:\\models\\x.h5 pool=gem", "x.h5 pool=gem"),
        ("fullbody:.8 whole:.2", "fullbody:.8 whole:.2"),
        ("a/b 1/2", "a/b 1/2"),
    ],
)
def test_folders_are_left_out_of_texts(text, left):
    assert without_folders(text) == left


def test_the_backend_is_what_keras_would_take(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert records.keras_backend() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert records.keras_backend() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert records.keras_backend() == "torch"


def test_a_commit_is_told_apart_from_changes_to_it(tmp_path):
    def git(*words):
        me = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
        subprocess.run(["git", "-C", tmp_path, *me, *words], check=True, capture_output=True)

    git("init", "-q")
    assert commit_of(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "."), git("commit", "-qm", "one")
    clean = commit_of(tmp_path)
    (tmp_path / "untracked").write_text("x")
    assert commit_of(tmp_path) == clean and clean["changes"] is None and len(clean["hash"]) == 40
    (tmp_path / "a").write_text("2")
    changed = commit_of(tmp_path)
    git("commit", "-qam", "two")
    after = commit_of(tmp_path)
    assert changed["hash"] == clean["hash"] != after["hash"] and changed["changes"] and after["changes"] is None
    (tmp_path / "inner").mkdir()
    assert commit_of(tmp_path / "inner") is None  # another project's repository around this one


def test_records_are_quick_to_import():
    code = "import sys, happywhale_nb.records, happywhale_nb.compare; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


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
    card = {"protocol": {"split": "stratified-2-seed0", "share_new": 0.1, "near_duplicates": None, "data": "d"}}
    made = card | {"versions": {"keras": "3.15.1", "numpy": "2.4.6", "backend": "tensorflow"}, "stamp": "s"}
    result = {"map5_known": 0.7, "train_seconds": 3.0, "device": "tensorflow on CPU (cpu), float32, no XLA"}
    write_json(fold / "config.json", made | {"parameters": {"epochs": 26, "seed": 0}, "result": result})
    write_embeddings(fold / "embeddings.parquet", Embeddings(images, np.eye(3, dtype=np.float32)))
    (fold / "history.csv").write_text("epoch,loss,seconds\n1,9.5,1.2\n2,9.25,1.3\n")
    model_file(fold / "model.keras", {"dense/0": np.eye(2), "dense/1": np.zeros(2)})
    write_predictions(fold / "oof.csv", images, [["w1", "w2"], ["w2"], ["w3"]])
    write_json(root / "small" / "knn.json", made | {"parameters": {"k": 50}, "oof": {"map5": 0.707}, "species": [1, 2]})
    write_predictions(root / "submission.csv", images, [["w1", "w2"], ["w2", "w1"], ["w3"]])
    write_json(root / "blend.json", {"rule": "paper", "photos": 3, "tested": True, "stamp": "b"})
    for place, stage, output in (("small/fold0", "train", "03_train"), ("small", "knn", "06_knn")):
        values = {"data_dir": f"/x/{root.name}", "study": root.name, "seed": 0, "epochs": 0}
        keep_record(root / place / f"{output}.ipynb", stage, values, "d", 60)
    keep_record(root / "07_blending.ipynb", "blend", {"data_dir": "/x/a", "rule": "paper"}, "d", 6)
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


def test_nothing_differs_between_two_runs_of_one_thing(two):
    model_file(
        two[1] / "small/fold0/model.keras", {"dense/0": np.eye(2), "dense/1": np.zeros(2)}, (2027, 2, 2, 2, 2, 2)
    )
    found = compare_runs(*two)
    assert not found["differs"] and not found["unrecorded"] and found["recorded"] == {"a": 3, "b": 3}
    known = "commit, " if found["unknown"] == [] else ""
    told = describe_comparison(found)[0]
    assert told.startswith(f"same parameters, data, protocol, {known}versions") and "submission.csv identical" in told


RECORDED = {
    "a parameter": (lambda r: r["parameters"].update(rule="borda"), ("parameters", "rule", "paper", "borda")),
    "a new parameter": (lambda r: r["parameters"].update(gain=0.1), ("parameters", "gain", None, 0.1)),
    "data": (lambda r: r["data"].update(fingerprint="e"), ("data", "fingerprint", "d", "e")),
    "a version": (lambda r: r["versions"].update(python="2.7"), ("versions", "python", None, "2.7")),
    "backend": (lambda r: r.update(backend="jax"), ("backend", "", None, "jax")),
    "device": (lambda r: r["device"].update(cores=999), ("device", "cores", None, 999)),
    "environment": (lambda r: r["environment"].update(TF_X="1"), ("environment", "TF_X", None, "1")),
    "commit": (lambda r: r.update(commit={"hash": "f" * 40, "changes": None}), ("commit", "hash", None, "f" * 40)),
}


@pytest.mark.parametrize("what", RECORDED)
def test_what_two_records_differ_in_is_said_and_nothing_else(what, two):
    spoil, (kind, name, before, after) = RECORDED[what]
    record = the_record(two[1])
    if what == "commit":
        for folder in two:
            edit(the_record(folder), lambda r: r.update(commit={"hash": "0" * 40, "changes": None}))
    edit(record, spoil)
    found = compare_runs(*two)
    assert [(row["kind"], row["name"], row["b"], row["runs"]) for row in found["circumstances"]] == [
        (kind, name, after, ["blend"])
    ]
    assert before is None or found["circumstances"][0]["a"] == before
    assert found["differs"] and not found["figures"] and not any(found["files"].values())
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
def test_places_and_times_are_no_difference(spoil, two):
    edit(the_record(two[1]), spoil)
    assert not compare_runs(*two)["differs"]


def test_figures_that_differ_come_with_their_difference_the_largest_first(two):
    edit(two[1] / "small/knn.json", lambda c: c["oof"].update(map5=0.711))
    edit(two[1] / "small/knn.json", lambda c: c.update(species=[1, 3, 4], stamp="other"))
    edit(two[1] / "small/fold0/config.json", lambda c: c["result"].update(train_seconds=99.0))
    edit(two[1] / "blend.json", lambda c: c.update(tested=False, stamp="other"))
    found = compare_runs(*two)
    rows = [(row["file"], row["name"], row["a"], row["b"]) for row in found["figures"]]
    assert rows[0] == ("small/knn.json", "species.1", 2, 3) and rows[1][1] == "oof.map5"
    assert sorted(rows[2:]) == [("blend.json", "tested", True, False), ("small/knn.json", "species.2", None, 4)]
    assert [row["difference"] for row in found["figures"]] == [1, pytest.approx(0.004), None, None]
    lines = describe_comparison(found)
    assert lines[1] == "small/knn.json oof.map5: 0.707 → 0.711 (+0.004)" and not found["circumstances"]


def test_answers_embeddings_weights_and_histories_are_compared_by_what_they_hold(two):
    fold, images = two[1] / "small/fold0", np.array(["a.jpg", "b.jpg", "d.jpg"])
    write_predictions(two[1] / "submission.csv", images, [["w2", "w1"], ["w2", "w3"], ["w3"]])
    turned = np.array([[np.cos(0.1), np.sin(0.1), 0], [0, 1, 0], [0, 0, 1]], np.float32)
    write_embeddings(fold / "embeddings.parquet", Embeddings(np.array(["b.jpg", "a.jpg", "c.jpg"]), turned[[1, 0, 2]]))
    model_file(fold / "model.keras", {"dense/0": np.eye(2), "dense/1": np.array([0, -0.25])})
    (fold / "history.csv").write_text("epoch,loss,seconds\n1,9.5,7.7\n2,9.26,7.7\n")
    found = compare_runs(*two)
    files = {name: what for name, what in found["files"].items() if what}
    assert files["submission.csv"] == {"photographs": 2, "first": 1, "lists": 2, "only_in_one": 2}
    assert files["small/fold0/embeddings.parquet"]["smallest_cosine"] == pytest.approx(np.cos(0.1), abs=1e-6)
    assert files["small/fold0/model.keras"] == {"arrays": 2, "different": 1, "largest": 0.25}
    assert files["small/fold0/history.csv"] == {"rows": 2, "different": 1} and len(files) == 4
    lines = describe_comparison(found)
    assert lines[0].startswith("same parameters") and "identical" not in lines[0]
    assert lines[1].startswith("submission.csv: 1 of 2 photographs have another first answer, 2 another list")


def test_a_history_that_differs_only_in_seconds_is_the_same(two):
    (two[1] / "small/fold0/history.csv").write_text("epoch,loss,seconds\n1,9.5,7.7\n2,9.25,7.7\n")
    assert not compare_runs(*two)["differs"]


def test_networks_of_other_shapes_and_embeddings_of_other_widths_are_said_to_be(two):
    fold = two[1] / "small/fold0"
    model_file(fold / "model.keras", {"dense/0": np.eye(3), "dense/1": np.zeros(2)})
    write_embeddings(fold / "embeddings.parquet", Embeddings(np.array(["a.jpg"]), np.ones((1, 1), np.float32)))
    text = "\n".join(describe_comparison(compare_runs(*two)))
    assert "1 of 2 arrays of weights differ, other shapes" in text and "of other widths, 2 photographs in one" in text


def test_what_only_one_has_is_said(two):
    shutil.rmtree(two[0] / "small/fold0")
    (two[1] / "submission.csv").unlink()
    found = compare_runs(*two)
    assert found["only_in_a"] == ["submission.csv"] and "small/fold0/train" in found["only_in_b"] and found["differs"]
    assert any(line.startswith("only in A: submission.csv") for line in describe_comparison(found))


def test_studies_without_records_are_compared_by_what_their_files_say(two):
    for path in two[0].rglob("*.run.json"):
        path.unlink()
    found = compare_runs(*two)
    assert not found["differs"] and found["unrecorded"] == ["blend", "small/fold0/train", "small/knn"]
    text = "\n".join(describe_comparison(found))
    assert "from when the work was done: blend, " in text and "commit" not in text.splitlines()[0]
    edit(two[1] / "small/knn.json", lambda c: c["parameters"].update(k=5))
    edit(two[1] / "small/fold0/config.json", lambda c: c["versions"].update(keras="3.16.0", backend="jax"))
    edit(two[1] / "small/fold0/config.json", lambda c: c["protocol"].update(data="e", near_duplicates=0))
    rows = compare_runs(*two)["circumstances"]
    assert [(row["kind"], row["name"], row["a"], row["b"]) for row in rows] == [
        ("parameters", "k", 50, 5),
        ("data", "fingerprint", "d", "e"),
        ("versions", "keras", "3.15.1", "3.16.0"),
        ("backend", "", "tensorflow", "jax"),
    ]


def test_a_record_that_claims_nothing_is_like_none(two):
    edit(the_record(two[0]), lambda r: [r.pop(n) for n in ("commit", "versions", "device", "environment", "backend")])
    edit(the_record(two[0]), lambda r: r.update(found_done=True))
    found = compare_runs(*two)
    assert not found["differs"] and found["unrecorded"] == ["blend"] and "commit" in found["unknown"]


def test_folds_notebooks_and_records_can_be_compared_too(two):
    for place in ("small", "small/fold0"):
        assert not compare_runs(two[0] / place, two[1] / place)["differs"]
    notebooks = [folder / "small/fold0/03_train.ipynb" for folder in two]
    for path in notebooks:
        path.touch()
    edit(two[1] / "small/knn.json", lambda c: c["oof"].update(map5=0.1))  # another stage's
    assert not compare_runs(*notebooks)["differs"]
    paths = [next((folder / "small").glob("06_knn-*.run.json")) for folder in two]
    assert [row["file"] for row in compare_runs(*paths)["figures"]] == ["knn.json"]
    assert "fold0/oof.csv" in compare_runs(*paths)["files"]


def test_the_command_s_status_says_whether_anything_differs(two):
    run = CliRunner().invoke
    assert run(main, ["compare", *map(str, two)]).exit_code == 0
    edit(two[1] / "small/knn.json", lambda c: c["oof"].update(map5=0.1))
    told = run(main, ["compare", *map(str, two), "--json"])
    assert told.exit_code == 1 and json.loads(told.output)["figures"][0]["name"] == "oof.map5"
    for wrong, message in ((two[0] / "nothing", "is not there"), (two[0].parent / "empty", "holds no results")):
        (two[0].parent / "empty").mkdir(exist_ok=True)
        told = run(main, ["compare", str(two[0]), str(wrong)])
        assert told.exit_code == 2 and message in told.output and "Traceback" not in told.output
    (two[0] / "05_robustness.ipynb").touch()
    with pytest.raises(UserError, match="no run record beside"):
        compare_runs(two[0] / "05_robustness.ipynb", two[1])
    (two[1] / "small/fold0/model.keras").write_bytes(b"cut off")
    told = run(main, ["compare", *map(str, two)])
    assert told.exit_code == 2 and "is not a model that Keras has saved" in told.output


# --- the promise itself


def happywhale(checkout, *words):
    """Run a command as if typed in `checkout`; each notebook has a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
        done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def trained_twice(tiny, tmp_path_factory):
    """Two checkouts with the same study of `tiny`: a fold trained, answered and blended by the commands."""
    studies = []
    for i in range(2):
        folder = tmp_path_factory.mktemp(f"checkout{i}")
        shutil.copy(ROOT / "settings.ini", folder)
        shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        words = ["-p", "data_dir", tiny, "-p", "study", f"study{i}", "-p", "quick", "true"]
        for stage, *more in (("train", "-p", "folds", 2), ("knn",), ("blend",)):
            happywhale(folder, stage, *words, *more)
        studies.append(folder / "outputs" / f"study{i}-quick")
    return studies


def test_the_same_seed_gives_the_same_submission_byte_for_byte(trained_twice):
    a, b = trained_twice
    names = ["submission.csv", "folds.csv"]
    names += [f"small_resnet_arcface/fold0/{name}.csv" for name in ("oof", "test", "oof_lists")]
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    folds = [study / "small_resnet_arcface" / "fold0" for study in trained_twice]
    histories = [pd.read_csv(fold / "history.csv").drop(columns="seconds") for fold in folds]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    vectors = [read_embeddings(fold / "embeddings.parquet").vectors for fold in folds]
    assert np.array_equal(*vectors)
    weights = [model_weights(fold / "model.keras") for fold in folds]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in {**weights[0], **weights[1]})
    assert len(weights[0]) > 20


def test_compare_agrees_that_nothing_differs(trained_twice):
    told = CliRunner().invoke(main, ["compare", *map(str, trained_twice)])
    assert told.exit_code == 0 and "submission.csv identical" in told.output.splitlines()[0], told.output


def test_another_seed_gives_other_results_and_compare_says_so(trained_twice, tiny):
    first, second = trained_twice
    checkout = second.parents[1]
    words = ["-p", "data_dir", tiny, "-p", "study", "seed", "-p", "quick", "true", "-p", "folds", 2, "-p", "seed", 1]
    happywhale(checkout, "train", *words)
    folds = [folder / "small_resnet_arcface/fold0" for folder in (first, checkout / "outputs/seed-quick")]
    found = compare_runs(*folds)
    assert ("parameters", "seed", 0, 1) in [(r["kind"], r["name"], r["a"], r["b"]) for r in found["circumstances"]]
    assert {row["name"] for row in found["circumstances"]} <= {"seed", "split", "share_new_per_species"} | {
        name for name in ("share_new", "share_new_per_fold")
    }
    assert found["files"]["embeddings.parquet"]["smallest_cosine"] < 0.999
    assert found["files"]["model.keras"]["different"] > 20 and found["files"]["history.csv"]["different"] == 2


TRAIN = """
import sys, numpy as np
from happywhale_nb.fitting import train
from happywhale_nb.presets import configure
config = configure("basic_cnn", epochs=2, image_size=32, changes="batch_size=8")
crops = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3)).astype("uint8")
model, _ = train(config, crops, np.arange(32), np.arange(32) % 8, 8, sys.argv[1], "stamp")
np.savez(sys.argv[1] + "/weights.npz", *model.get_weights())
"""


def test_jax_repeats_itself_too(tmp_path):
    env = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": ""}  # compiled as everywhere
    made = []
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", TRAIN, tmp_path / name]
        subprocess.run(command, check=True, capture_output=True, env=env)
        with np.load(tmp_path / name / "weights.npz") as weights:
            made.append([weights[array] for array in weights.files])
    assert all(np.array_equal(x, y) for x, y in zip(*made, strict=True))
