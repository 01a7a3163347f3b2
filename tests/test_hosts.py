"""Several processes train one model: the result of one process, one set of files, and an end where one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from happywhale_nb.retrieval.embeddings import read_embeddings
from happywhale_nb.workflow.provenance import done_file, record_paths

pytestmark = pytest.mark.hosts

ROOT = Path(__file__).resolve().parents[1]
TRAIN = """
import sys
from pathlib import Path
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.networks.presets import configure
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.networks.training import TrainingOptions
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.stages.train import train_stage

data, folder, size = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
dataset = read_dataset(data)
overrides = f"backbone=basic_cnn batch_size={size} dropout=0 learning_rate=.0002"
config = configure("small_resnet_arcface", epochs=4, image_size=32, overrides=overrides)
folds, options = study_folds(dataset, folder, 2, 0), TrainingOptions(snapshots="2", save_every=0.0)
train_stage(dataset, folds, 0, "model", config, folder, options=options)
"""
COMMAND = "from happywhale_nb.cli.main import main; main()"
OUTPUTS = ["centres.parquet", "config.json", "embeddings.parquet", "empty.parquet", "history.csv", "model.keras"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Variables by which processes find what an earlier one has compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(code, arguments, log, cwd=None, **variables):
    """A Python process on JAX, its output in the file `log`."""
    env = os.environ | {"KERAS_BACKEND": "jax", "HAPPYWHALE_HEARTBEAT": "10"} | variables
    with open(log, "w") as out:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd, env=env)


def start_two(code, each, folder, **how):
    """Two processes that know of each other; each: their arguments; logs are `0.log` and `1.log` in `folder`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        first = f"localhost:{free.getsockname()[1]}"
    places = {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2", "KERAS_DISTRIBUTION_JOB_ADDRESSES": first}
    return [
        start(code, arguments, folder / f"{k}.log", KERAS_DISTRIBUTION_PROCESS_ID=str(k), **places, **how)
        for k, arguments in enumerate(each)
    ]


def wait_for(path, process, seconds=200):
    """Wait until there is a file, or the process that is to write it has ended."""
    end = time.monotonic() + seconds
    while not path.is_file() and process.poll() is None:
        assert time.monotonic() < end, f"{path} is not there after {seconds} s"
        time.sleep(0.02)


def ended(processes, folder, seconds=200):
    """Their exit statuses, and what they said. Raises if one runs longer."""
    try:
        codes = [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return codes, [(folder / f"{k}.log").read_text() for k in range(len(processes))]


@pytest.mark.soak
def test_train_stage_in_two_processes_one_killed_once_gives_the_results_of_one_process(tiny, tmp_path, compiled):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    codes, said = ended([start(TRAIN, [tiny, one, 8], one / "0.log", **compiled)], one)
    assert codes == [0], said

    place = two / "model" / "fold0"
    both = start_two(TRAIN, [[tiny, two, 4]] * 2, two, **compiled)
    wait_for(place / "resume.json", both[0])
    both[1].send_signal(signal.SIGKILL)
    codes, said = ended(both, two, 60)
    assert codes[0] not in (0, -signal.SIGKILL), "the survivor ends by itself"
    assert "cannot continue with the others" in said[0], said[0]
    done = len(json.loads((place / "resume.json").read_text())["history"])
    assert 1 <= done < 4 and not (place / "config.json").exists()

    codes, said = ended(start_two(TRAIN, [[tiny, two, 4]] * 2, two, **compiled), two)
    assert codes == [0, 0], said
    assert f"epoch {done + 1}/4" in said[0] and f"epoch {done}/4" not in said[0] and "epoch" not in said[1]
    for name in ("model", "model@2"):
        assert sorted(path.name for path in (two / name / "fold0").iterdir()) == OUTPUTS
    records = [json.loads((folder / "model/fold0/config.json").read_text())["result"] for folder in (one, two)]
    assert records[0]["device"].startswith("jax on cpu (")
    assert records[1]["device"].startswith("jax on 2 × cpu in 2 processes (")
    losses = [pd.read_csv(folder / "model/fold0/history.csv")["loss"] for folder in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    vectors = {
        (folder, name): read_embeddings(folder / name / "fold0/embeddings.parquet").vectors
        for folder in (one, two)
        for name in ("model", "model@2")
    }
    alike = lambda a, b: (vectors[a] * vectors[b]).sum(axis=1).min()  # noqa: E731
    learned = alike((one, "model"), (one, "model@2"))  # what two epochs change
    for name in ("model", "model@2"):  # sums are taken in another order, and the difference grows with the steps
        assert 1 - alike((one, name), (two, name)) < (1 - learned) / 20, (
            learned,
            name,
            alike((one, name), (two, name)),
        )


@pytest.mark.soak
def test_train_stage_in_two_processes_that_do_not_agree_is_refused_in_both(tiny, tmp_path, compiled):
    codes, said = ended(start_two(TRAIN, [[tiny, tmp_path, size] for size in (4, 2)], tmp_path, **compiled), tmp_path)
    assert codes == [1, 1]
    assert all("UserError: the processes do not agree on the model" in text for text in said), said


@pytest.mark.soak
def test_train_command_in_two_processes_leaves_one_set_of_results_and_two_notebooks(project, tiny, tmp_path, compiled):
    words = ["train", "-p", "data_dir", tiny, "-p", "study", "hosts", "-p", "quick", "true", "-p", "folds", 2]
    words += ["-p", "overrides", "backbone=basic_cnn"]
    codes, said = ended(start_two(COMMAND, [words] * 2, tmp_path, cwd=project, **compiled), tmp_path)
    assert codes == [0, 0], said
    place = project / "outputs/hosts-quick/small_resnet_arcface/fold0"
    notebooks = ["03_train.ipynb", "03_train.process1.ipynb"]
    left = {path.name for path in place.iterdir() if not path.name.startswith(".")}
    record = record_paths(place / notebooks[0])[0]
    assert left == {*OUTPUTS, *notebooks, record.name, done_file(record).name}, "one record, of the first process"
    assert all("MAP@5 of held-out photographs" in text for text in said)
    shown = [(place / name).read_text() for name in notebooks]
    assert "in 2 processes" in shown[0] and all("image/png" in text for text in shown)
