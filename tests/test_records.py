"""Run records: what a stage was run with, and where."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from happywhale_nb.core.artifacts import read_json, write_json
from happywhale_nb.workflow import provenance as records
from happywhale_nb.workflow.provenance import (
    begin_record,
    checkout_state,
    job_stamp,
    record_path,
    without_folders,
    write_record,
)

ROOT = Path(__file__).resolve().parents[1]
VALUES = {"fold": 0, "epochs": 0, "preset": "small", "seed": 0, "quick": False, "data_dir": "/x/demo", "force": False}
VALUES |= {"study": ""}


@pytest.mark.parametrize("name, value", [("fold", 1), ("epochs", 3), ("preset", "large"), ("seed", 1), ("quick", True)])
def test_job_stamp_with_another_parameter_is_another(name, value):
    assert job_stamp("train", VALUES | {name: value}, "d") != job_stamp("train", VALUES, "d")


def test_job_stamp_depends_on_the_stage_and_not_on_the_order_of_names():
    stamp = job_stamp("train", VALUES, "d")
    assert re.fullmatch("[0-9a-f]{16}", stamp)
    assert stamp == job_stamp("train", dict(reversed(VALUES.items())), "d") != job_stamp("knn", VALUES, "d")
    assert stamp == job_stamp("train", VALUES | {"study": "mine"}, "d")


def test_begin_record_removes_only_other_stamps_of_the_same_notebook(tmp_path):
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


def test_keep_record_has_every_circumstance_and_no_private_path_or_name(tmp_path, monkeypatch):
    place = tmp_path / "secret-place"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_gpu_cuda_data_dir={place}/cuda --xla_cpu_x=true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    values = VALUES | {"data_dir": str(place / "whales"), "overrides": f"weights={place}/a.keras pool=gem"}
    path = write_record(tmp_path / "03_train.ipynb", "train", values, "d" * 16, 12.34)
    record = read_json(path)
    assert path == record_path(tmp_path / "03_train.ipynb", record["stamp"]) and path.is_file()
    assert record["stamp"] == job_stamp("train", values, "d" * 16)
    assert record["parameters"] == values | {"data_dir": "whales", "overrides": "weights=a.keras pool=gem"}
    assert record["data"] == {"folder": "whales", "fingerprint": "d" * 16}
    assert record["environment"]["OMP_NUM_THREADS"] == "1" and record["backend"] == "jax"
    assert {"python", "happywhale_nb", "numpy", "pandas", "scipy", "tensorflow", "keras"} <= set(record["versions"])
    assert record["device"]["cores"] >= 1 and record["device"]["cpu"] and record["seconds"] == 12.3
    assert set(record) >= {"stage", "notebook", "commit", "started"}
    text = path.read_text()
    told = [str(tmp_path), "secret-place", os.uname().nodename, str(Path.home()), os.environ.get("USER") or "\0"]
    assert not [word for word in told if len(word) > 5 and word in text]


def test_keep_record_of_work_found_done_keeps_the_first_record(tmp_path):
    output, figures = tmp_path / "03_train.ipynb", tmp_path / "config.json"
    write_json(figures, {"stamp": "s"})
    now = time.time()
    first = write_record(output, "train", VALUES, "d", 60, {"hash": "0" * 40, "changes": None})
    made = read_json(first)
    assert made["commit"]["hash"] == "0" * 40 and not made["already_done"]
    os.utime(figures, (now - 600, now - 600))
    os.utime(first, (now - 600, now - 600))
    assert write_record(output, "train", VALUES, "d", 5, {"hash": "f" * 40, "changes": None}) == first
    assert read_json(first) == made and first.stat().st_mtime > now - 5  # as it was, with a new date
    first.unlink()
    left = read_json(write_record(output, "train", VALUES, "d", 5))
    assert left["already_done"] and not {"commit", "versions", "device", "environment"} & set(left)
    os.utime(figures)
    assert not read_json(write_record(output, "train", VALUES, "d", 60))["already_done"]


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
def test_without_folders_cuts_paths_and_nothing_else(text, left):
    assert without_folders(text) == left


def test_keras_backend_with_variable_or_settings_file_is_what_keras_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert records.keras_backend() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert records.keras_backend() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert records.keras_backend() == "torch"


def test_commit_of_a_folder_heeds_neither_untracked_files_nor_repositories_around_it(tmp_path):
    def git(*words):
        me = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
        subprocess.run(["git", "-C", tmp_path, *me, *words], check=True, capture_output=True, timeout=60)

    git("init", "-q")
    assert checkout_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "."), git("commit", "-qm", "one")
    clean = checkout_state(tmp_path)
    (tmp_path / "untracked").write_text("x")
    assert checkout_state(tmp_path) == clean and clean["changes"] is None and len(clean["hash"]) == 40
    (tmp_path / "a").write_text("2")
    git("commit", "-qam", "two")
    assert checkout_state(tmp_path)["hash"] != clean["hash"] and checkout_state(tmp_path)["changes"] is None
    (tmp_path / "inner").mkdir()
    assert checkout_state(tmp_path / "inner") is None  # another project's repository around this one


def test_records_and_compare_are_imported_without_tensorflow():
    code = "import sys; from happywhale_nb.workflow import compare, provenance; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
