"""The command `happywhale`: one clear line for each mistake, nothing half-written, and papermill beside it.

The notebooks are stand-ins (`standins.py`); test_whole_study.py runs the real ones.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from happywhale_nb.cli.main import RENAMED, main
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.renamed import FIELDS, PARAMETERS
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.networks.presets import PRESETS, configure
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.workflow.notebooks import read_parameters
from happywhale_nb.workflow.registry import command_stages
from happywhale_nb.workflow.runner import stage_notebook

BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def here(checkout, monkeypatch):
    """The command finds the project by the folder it is called in."""
    monkeypatch.chdir(checkout)


def happywhale(*words):
    """The command in this process: its `exit_code`, `stdout` and `stderr`."""
    return CliRunner().invoke(main, [str(word) for word in words])


def outputs(checkout):
    return sorted(str(p.relative_to(checkout)) for p in (checkout / "outputs").rglob("*"))


def spoil_column(data):
    table = pd.read_csv(data / "train.csv", dtype=str)
    table.rename(columns={"individual_id": "who"}).to_csv(data / "train.csv", index=False)


def spoil_image(data):
    next((data / "train_images").iterdir()).unlink()


MISTAKES = {
    "unknown parameter": (None, ["-p", "fould", "2"], ["unknown parameter 'fould'", "did you mean 'fold'?"]),
    "wrong type": (None, ["-p", "fold", "two"], ["'fold' is a whole number, not 'two'"]),
    "unknown preset": (
        None,
        ["-p", "preset", "smal_resnet_arcface"],
        ["unknown preset", "did you mean 'small_resnet_arcface'?"],
    ),
    "fold out of range": (None, ["-p", "fold", "9"], ["fold 9 does not exist", "0 to 4"]),
    "unknown boxes": (None, ["-p", "crops", "yolo99"], ["no boxes called 'yolo99'", "fullbody"]),
    "no such folder": (None, ["-p", "data_dir", "nowhere"], ["no data folder at", "nowhere", "happywhale data draw"]),
    "a column is missing": (spoil_column, [], ["train.csv", "no column 'individual_id'", "found: image, species, who"]),
    "an image is missing": (spoil_image, [], ["train.csv, row", "is not in", "train_images"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_train_with_a_mistake_ends_with_one_line_before_any_kernel_starts(mistake, checkout, tiny_copy):
    spoil, words, expected = MISTAKES[mistake]
    if spoil:
        spoil(tiny_copy)
    data = [] if "data_dir" in words else ["-p", "data_dir", tiny_copy]
    before = outputs(checkout)
    done = happywhale("train", *data, *words)
    assert done.exit_code == 2 and not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1 and all(part in done.stderr for part in expected), done.stderr
    assert outputs(checkout) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("knn", "alpha", "5"), "alpha=5.0: from 0 to 1"),
        (("knn", "alpha", "0"), "between 0 and 1"),
        (("knn", "rerank_top", "-3"), "rerank_top=-3"),
        (("knn", "aggregate", "mean"), "max, vote, softmax_sum"),
        (("knn", "model", "nobody"), "run 03_train first"),
        (("blend", "weighting", "fti"), "equal, fit"),
        (("blend", "voting", "votes"), "paper, notebook, borda, scores"),
        (("report", "kaggle_public", "88"), "kaggle_public=88.0"),
        (("robustness", "photos", "0"), "photos=0"),
    ],
)
def test_stage_with_a_parameter_out_of_range_is_refused_before_anything_is_written(checkout, tiny, words, message):
    stage, name, value = words
    before = outputs(checkout)
    done = happywhale(stage, "-p", "data_dir", tiny, "-p", "study", "checked", "-p", name, value)
    assert done.exit_code == 2 and message in done.stderr
    assert outputs(checkout) == before


@pytest.mark.parametrize(
    ("words", "command"),
    [
        *((old, new) for old, new in RENAMED.items()),
        ("detector data/mine", "detector train"),
        ("blend one.csv two.csv -o both.csv", "submission blend"),
        ("demo --draw-only", "data draw"),
    ],
)
def test_command_under_its_old_name_is_refused_with_the_new_one(words, command):
    done = happywhale(*words.split())
    assert done.exit_code == 2 and f"`happywhale {command}" in done.stderr and not done.stdout


@pytest.mark.parametrize("old", PARAMETERS)
def test_parameter_under_its_old_name_is_refused_with_the_new_one(checkout, tiny, old):
    new, before = PARAMETERS[old], outputs(checkout)
    stages = [name for name in command_stages() if new in read_parameters(stage_notebook(name))]
    assert len(stages) == 1
    done = happywhale(stages[0], "-p", "data_dir", tiny, "-p", old, "1")
    assert done.exit_code == 2 and f"parameter {old!r} is now {new!r}" in done.stderr
    assert outputs(checkout) == before


@pytest.mark.parametrize("old", FIELDS)
def test_field_of_a_preset_under_its_old_name_is_refused_with_the_new_one(checkout, tiny, old):
    done = happywhale("train", "-p", "data_dir", tiny, "-p", "overrides", f"dropout=0 {old}=1")
    assert done.exit_code == 2 and f"field of a preset {old!r} is now {FIELDS[old]!r}" in done.stderr
    assert hasattr(PRESETS["basic_cnn"], FIELDS[old])


def test_every_command_of_the_table_is_there_and_says_what_it_does():
    for name, entry in main.entries.items():
        command = entry.load(name)
        assert command.name == name, name
        for inner in getattr(command, "commands", {"": command}).values():
            assert inner.get_short_help_str(), (name, inner.name)


def test_the_command_as_a_process_ends_a_mistake_with_status_2_and_no_traceback(checkout):
    words = [str(BIN / "happywhale"), "train", "-p", "fould", "2"]
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: unknown parameter 'fould'") and len(done.stderr.splitlines()) == 1


def test_train_stage_with_a_truncated_photo_names_it_and_leaves_no_result(tiny_copy, tmp_path):
    from happywhale_nb.stages.train import train_stage

    photo = sorted((tiny_copy / "train_images").iterdir())[5]
    photo.write_bytes(photo.read_bytes()[:-400])
    dataset = read_dataset(tiny_copy)
    config = configure("small_resnet_arcface", quick=True, overrides="backbone=basic_cnn")
    with pytest.raises(UserError, match=rf"(?s){photo.name}.*cannot be decoded"):
        train_stage(dataset, study_folds(dataset, tmp_path, 2, 0), 0, "cut", config, tmp_path)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and tiny_copy not in path.parents}
    left = {name for name in left if not name.endswith(".png")}  # crops that were made before it stay, and are whole
    assert left == {"folds.csv", "study.json"}


def test_eda_with_an_output_that_cannot_be_written_says_so(checkout, tiny):
    blocked = checkout / "outputs" / "blocked"
    blocked.write_text("a file where a folder is wanted")
    done = happywhale("eda", "-p", "data_dir", tiny, "-o", blocked / "eda.ipynb")
    assert done.exit_code == 2 and "cannot write" in done.stderr


def test_papermill_with_a_fold_runs_that_fold(checkout, tiny):
    place = checkout / "outputs" / "by_papermill.ipynb"
    words = f"papermill nbs/03_train.ipynb {place} -p fold 2 -p quick True -p data_dir {tiny} -p study papermill"
    done = subprocess.run(
        [BIN / "papermill", *words.split()[1:]],
        cwd=checkout,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((checkout / "outputs/papermill-quick/small_resnet_arcface/fold2/config.json").read_text())
    assert config["parameters"]["fold"] == 2
    cells = nbformat.read(place, as_version=4).cells
    injected = [cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert len(injected) == 1 and "fold = 2" in injected[0].source


def train_in(folder):
    """A training that keeps its state after every epoch; its weights go to the folder as well."""
    from happywhale_nb.networks.training import Samples, TrainingOptions, train  # here: it needs TensorFlow

    config = configure("small_resnet_arcface", epochs=4, image_size=32, overrides="batch_size=8 backbone=basic_cnn")
    crops = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3)).astype("uint8")
    kept = TrainingOptions(save_every=0)
    samples = Samples(crops, np.arange(64), np.arange(64) % 8, 8)
    model, _ = train(config, samples, folder, "stamp", options=kept)
    np.savez(Path(folder) / "weights.npz", *model.get_weights())


@pytest.mark.kill
def test_train_after_a_kill_resumes_and_ends_with_the_same_weights(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    train_in(whole)
    here, code = {"PYTHONPATH": str(Path(__file__).parent)}, "import sys, test_cli; test_cli.train_in(sys.argv[1])"
    here["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    process = subprocess.Popen([sys.executable, "-c", code, broken], stderr=subprocess.DEVNULL, env=os.environ | here)
    end = time.monotonic() + 100
    while not (broken / "resume.json").exists():
        assert time.monotonic() < end and process.poll() is None, "no state was saved before the training ended"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    done = len(json.loads((broken / "resume.json").read_text())["history"])
    assert 1 <= done < 4 and not (broken / "weights.npz").exists()
    train_in(broken)
    with np.load(whole / "weights.npz") as a, np.load(broken / "weights.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_train_stage_of_a_disjoint_split_measures_retrieval_within_and_knn_refuses_it(checkout, tiny):
    from happywhale_nb.stages.train import train_stage

    dataset, folder = read_dataset(tiny), checkout / "outputs" / "apart-quick"
    config = configure("small_resnet_arcface", quick=True, epochs=1, overrides="backbone=basic_cnn")
    folds = study_folds(dataset, folder, 2, 0, "disjoint")
    record = train_stage(dataset, folds, 0, "small_resnet_arcface", config, folder)
    assert record["protocol"]["kind"] == "disjoint" and 0 < record["result"]["map5_within"] <= 1
    refused = happywhale("knn", "-p", "data_dir", tiny, "-p", "study", "apart", "-p", "quick", "true")
    assert refused.exit_code == 2 and "no individual is on both sides" in refused.stderr


def test_architectures_measured_twice_keeps_the_last_row_of_each_preset(tmp_path):
    target = tmp_path / "architectures.json"
    for preset in ("basic_cnn", "small_resnet_arcface", "basic_cnn"):
        done = happywhale("model", "benchmark", preset, "--to", target)
        assert done.exit_code == 0 and preset in done.stdout, done.stderr
    rows = json.loads(target.read_text())["models"]
    assert [row["preset"] for row in rows] == ["small_resnet_arcface", "basic_cnn"]
    assert happywhale("model", "benchmark", "basic_cn", "--to", target).exit_code == 2


BENCHES = {
    "blend.py": "search",
    "data.py": "read the table",
    "encoders.py": "alone",
    "images.py": "memory",
    "knn.py": "one query, 51,033 known",
    "library.py": "photographs of 512 px to 224",
    "serve.py": "50 clients, a photograph each",
    "train.py": "embedding one crop",
}
LONG = {"encoders.py", "images.py", "knn.py", "library.py", "serve.py", "train.py"}  # tried by `make soak`


def test_every_benchmark_has_a_case_to_try():
    bench = Path(__file__).parents[1] / "bench"
    others = {"adapters.py", "baselines.py", "coverage.py", "detectors.py", "harness.py", "no_animal.py"}  # elsewhere
    others |= {"accelerator.py", "counts.py", "gap.py", "leaderboard.py", "neighbours.py", "recognition.py"}
    others |= {"paper_small.py", "species.py", "subsets.py"}
    assert {p.name for p in bench.glob("*.py")} == others | {*BENCHES}


@pytest.mark.bench
@pytest.mark.parametrize("script", [pytest.param(b, marks=pytest.mark.soak if b in LONG else ()) for b in BENCHES])
def test_benchmark_quick_prints_its_table(script):
    case = BENCHES[script]
    command = [sys.executable, Path(__file__).parents[1] / "bench" / script, "--quick", "--case", case]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {case}")]
    assert len(rows) >= 2 and " 1.00 |" in rows[0]
