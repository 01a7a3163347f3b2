"""Several processes train one model: as one process would, with one set of files, and without waiting for the dead."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

TRAIN = """
import sys
from pathlib import Path
from happywhale_nb.dataset import read_dataset
from happywhale_nb.presets import configure
from happywhale_nb.splits import study_folds
from happywhale_nb.train import train_stage

data, folder, size = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
dataset = read_dataset(data)
changes = f"backbone=basic_cnn batch_size={size} dropout=0 learning_rate=.0002"
config = configure("small_resnet_arcface", epochs=6, image_size=32, changes=changes)
train_stage(dataset, study_folds(dataset, folder, 2, 0), 0, "model", config, folder, snapshots="3", save_every=0.0)
"""
OUTPUTS = ["centres.parquet", "config.json", "embeddings.parquet", "history.csv", "model.keras"]


def start(command, log, place=0, of=1, port=0, **more):
    """One of several processes on this machine, its standard error in `log`."""
    env = os.environ | {"KERAS_BACKEND": "jax", "HAPPYWHALE_HEARTBEAT": "5"} | more
    if of > 1:
        env |= {"KERAS_DISTRIBUTION_NUM_PROCESSES": str(of), "KERAS_DISTRIBUTION_PROCESS_ID": str(place)}
        env |= {"KERAS_DISTRIBUTION_JOB_ADDRESSES": f"localhost:{port}"}
    with open(log, "w") as err:
        return subprocess.Popen([sys.executable, "-c", *map(str, command)], env=env, stdout=err, stderr=err)


def start_two(command, folder, **more):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start(command, folder / f"{k}.log", k, 2, port, **more) for k in range(2)]


def ended(process, log, seconds=120):
    try:
        return process.wait(seconds)
    finally:
        process.kill()
        print(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory):
    """The folder of a training in one process."""
    folder = tmp_path_factory.mktemp("one")
    assert ended(start([TRAIN, tiny, folder, 8], folder / "0.log"), folder / "0.log") == 0
    return folder


def test_two_processes_train_as_one_does_also_after_one_was_killed(tiny, tmp_path, one):
    import pandas as pd

    from happywhale_nb.embeddings import read_embeddings

    place, command = tmp_path / "model" / "fold0", [TRAIN, tiny, tmp_path, 4]
    both = start_two(command, tmp_path)
    while not (place / "resume.json").is_file() and both[0].poll() is None:
        time.sleep(0.02)
    both[1].send_signal(signal.SIGKILL)
    began = time.perf_counter()
    assert ended(both[0], tmp_path / "0.log", 60) != 0
    print("ended after", time.perf_counter() - began)
    done = len(json.loads((place / "resume.json").read_text())["history"])
    assert 1 <= done < 6 and not (place / "config.json").exists()

    both = start_two(command, tmp_path)
    assert [ended(p, tmp_path / f"{k}.log") for k, p in enumerate(both)] == [0, 0]
    assert sorted(p.name for p in place.iterdir()) == OUTPUTS
    record = json.loads((place / "config.json").read_text())
    assert "2 × cpu in 2 processes" in record["result"]["device"]
    for name, fold in (("model", "fold0"), ("model@3", "fold0")):
        a, b = (read_embeddings(folder / name / fold / "embeddings.parquet") for folder in (one, tmp_path))
        np.testing.assert_allclose(a.vectors, b.vectors, atol=1e-3)
    a, b = (pd.read_csv(folder / "model" / "fold0" / "history.csv") for folder in (one, tmp_path))
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
