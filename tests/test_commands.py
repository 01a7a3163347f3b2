"""What a person types: one clear line for each mistake, nothing half-written, and a study that runs."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

BIN = Path(sys.executable).parent
SMALLER = ("-p", "changes", "backbone=basic_cnn")  # where it does not matter what is trained


def happywhale(checkout, *words):
    return subprocess.run(
        [BIN / "happywhale", *map(str, words)], cwd=checkout, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


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
    "no such folder": (None, ["-p", "data_dir", "nowhere"], ["no data folder at", "nowhere", "happywhale demo"]),
    "a column is missing": (spoil_column, [], ["train.csv", "no column 'individual_id'", "found: image, species, who"]),
    "an image is missing": (spoil_image, [], ["train.csv, row", "is not in", "train_images"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line_before_any_kernel_starts(mistake, checkout, tiny_copy):
    spoil, words, expected = MISTAKES[mistake]
    if spoil:
        spoil(tiny_copy)
    data = [] if "data_dir" in words else ["-p", "data_dir", tiny_copy]
    before = outputs(checkout)
    done = happywhale(checkout, "train", *data, *words)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert all(part in done.stderr for part in expected), done.stderr
    assert outputs(checkout) == before


def test_a_truncated_photograph_is_named_and_leaves_no_result(checkout, tiny_copy):
    photo = sorted((tiny_copy / "train_images").iterdir())[5]
    photo.write_bytes(photo.read_bytes()[:-400])
    done = happywhale(checkout, "train", "-p", "data_dir", tiny_copy, "-p", "study", "truncated", "-p", "quick", "true")
    assert done.returncode == 2
    assert photo.name in done.stderr and "cannot be decoded" in done.stderr and "Traceback" not in done.stderr
    left = {Path(p).name for p in outputs(checkout) if "truncated" in p and Path(checkout, p).is_file()}
    left = {name for name in left if not name.endswith(".png")}  # crops that were made before it stay, and are whole
    assert left == {"folds.csv", "study.json", "03_train.failed.ipynb", "03_train.log", ".03_train.lock"}


def test_papermill_trains_the_fold_it_is_told(checkout, tiny):
    place = checkout / "outputs" / "by_papermill.ipynb"
    done = subprocess.run(
        [
            BIN / "papermill",
            "nbs/03_train.ipynb",
            place,
            "-p",
            "fold",
            "2",
            "-p",
            "quick",
            "True",
            "-p",
            "data_dir",
            tiny,
            "-p",
            "study",
            "papermill",
            *SMALLER,
        ],
        cwd=checkout,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((checkout / "outputs/papermill-quick/small_resnet_arcface/fold2/config.json").read_text())
    assert config["parameters"]["fold"] == 2
    injected = [
        c for c in nbformat.read(place, as_version=4).cells if "injected-parameters" in c.metadata.get("tags", [])
    ]
    assert len(injected) == 1 and "fold = 2" in injected[0].source


TRAIN = """
import sys, numpy as np
from happywhale_nb.fitting import train
from happywhale_nb.presets import configure
config = configure("small_resnet_arcface", epochs=4, image_size=32, changes="batch_size=8 backbone=basic_cnn")
crops = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3)).astype("uint8")
model, history = train(config, crops, np.arange(64), np.arange(64) % 8, 8, sys.argv[1], "stamp", save_every=0)
np.savez(sys.argv[1] + "/weights.npz", *model.get_weights())
"""


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    subprocess.run([sys.executable, "-c", TRAIN, whole], check=True, capture_output=True)
    process = subprocess.Popen([sys.executable, "-c", TRAIN, broken], stderr=subprocess.DEVNULL)
    while not (broken / "resume.json").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(json.loads((broken / "resume.json").read_text())["history"])
    assert 1 <= done < 4 and not (broken / "weights.npz").exists()
    subprocess.run([sys.executable, "-c", TRAIN, broken], check=True, capture_output=True)
    with np.load(whole / "weights.npz") as a, np.load(broken / "weights.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_an_unwritable_place_is_said(checkout, tiny):
    blocked = checkout / "outputs" / "blocked"
    blocked.write_text("a file where a folder is wanted")
    done = happywhale(checkout, "eda", "-p", "data_dir", tiny, "-o", checkout / "outputs" / "blocked" / "eda.ipynb")
    assert done.returncode == 2 and "cannot write" in done.stderr


def test_a_disjoint_split_trains_for_retrieval_within_and_is_not_answered_from_a_catalogue(checkout, tiny):
    words = ["-p", "data_dir", tiny, "-p", "study", "apart", "-p", "quick", "true"]
    done = happywhale(checkout, "train", *words, "-p", "split", "disjoint", "-p", "folds", 2, *SMALLER)
    assert done.returncode == 0, done.stderr
    record = json.loads((checkout / "outputs/apart-quick/small_resnet_arcface/fold0/config.json").read_text())
    assert record["protocol"]["kind"] == "disjoint" and 0 < record["result"]["map5_within"] <= 1
    refused = happywhale(checkout, "knn", *words)
    assert refused.returncode == 2 and "no individual is on both sides" in refused.stderr


BENCHES = {
    "blend.py": "search",
    "data.py": "read the table",
    "images.py": "memory",
    "knn.py": "one query, 51,033 known",
    "serve.py": "50 clients, a photograph each",
    "train.py": "embedding one crop",
}


def test_benchmarks_print_their_tables():
    bench = Path(__file__).parents[1] / "bench"
    assert {p.name for p in bench.glob("*.py")} == {"harness.py", *BENCHES}
    for script, case in BENCHES.items():
        command = [sys.executable, bench / script, "--quick", "--case", case]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {case}")]
        assert len(rows) >= 2 and " 1.00 |" in rows[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("knn", "alpha", "5"), "alpha=5.0: from 0 to 1"),
        (("knn", "alpha", "0"), "between 0 and 1"),
        (("knn", "local", "-3"), "local=-3"),
        (("knn", "aggregate", "mean"), "max, vote, softmax_sum"),
        (("knn", "model", "nobody"), "run 03_train first"),
        (("blend", "weights", "fti"), "equal, fit"),
        (("blend", "rule", "votes"), "paper, notebook, borda, scores"),
        (("report", "public", "88"), "public=88.0"),
        (("robustness", "photos", "0"), "photos=0"),
    ],
)
def test_parameters_are_checked_before_anything_is_written(checkout, tiny, words, message):
    stage, name, value = words
    before = outputs(checkout)
    done = happywhale(checkout, stage, "-p", "data_dir", tiny, "-p", "study", "checked", "-p", name, value)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert outputs(checkout) == before


def test_architectures_measured_alike_are_kept_together(checkout, tmp_path):
    target = tmp_path / "architectures.json"
    for preset in ("basic_cnn", "small_resnet_arcface", "basic_cnn"):
        done = happywhale(checkout, "architectures", preset, "--to", target)
        assert done.returncode == 0 and preset in done.stdout, done.stderr
    rows = json.loads(target.read_text())["models"]
    assert [row["preset"] for row in rows] == ["small_resnet_arcface", "basic_cnn"]
    assert happywhale(checkout, "architectures", "basic_cn", "--to", target).returncode == 2
