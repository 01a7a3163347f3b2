"""The lessons of every notebook, one test a notebook: run as `nbdev_test` runs them, in this process."""

import atexit
import builtins
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from hoststate import changes, host_state
from IPython.core.interactiveshell import InteractiveShell
from nbdev.config import get_config
from nbdev.test import test_nb as run_lessons

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
NOTEBOOKS = [p for p in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


# what IPython and nbdev change, in whose shell lessons run, and the command, whose hook goes when TensorFlow comes
SHELLS = {"random", "Matplotlib", "Matplotlib's backend", "import hooks"}


@pytest.fixture
def alone(monkeypatch, notebook):
    """What a notebook changes in its process is put back: variables, folder, shell, plots, Keras' policy."""
    monkeypatch.setenv("IN_TEST", "1")
    variables, folder, path, main = dict(os.environ), Path.cwd(), list(sys.path), sys.modules["__main__"]
    with matplotlib.rc_context():
        yield
    plt.close("all")
    plt.switch_backend("agg")
    os.chdir(folder)
    sys.path[:] = path
    sys.modules["__main__"] = main
    if shell := InteractiveShell._instance:  # at the end it would look for garbage: a second for each notebook
        atexit.unregister(shell.atexit_operations)
    InteractiveShell._instance = None
    for name in ("get_ipython", "display"):
        vars(builtins).pop(name, None)
    os.environ.clear()
    os.environ.update(variables)
    if (keras := sys.modules.get("keras")) and "networks" in notebook.read_text():
        keras.config.set_dtype_policy("float32")
        keras.utils.clear_session(free_memory=False)  # Python frees it in time; to ask for it takes a second each time


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.relative_to(NBS).with_suffix("").as_posix())
def test_lessons_of_a_notebook_hold_and_leave_the_process_as_it_was(notebook, alone):
    before = host_state()
    passed, _ = run_lessons(notebook, skip_flags=get_config(path=ROOT).tst_flags.split(), basepath=NBS)
    assert passed
    assert changes(before, host_state(), but=SHELLS) == {}


def test_nbdev_test_runs_the_lessons_of_a_notebook():
    command = [Path(sys.executable).with_name("nbdev_test"), "--path", NBS / "lib" / "core" / "progress.ipynb"]
    done = subprocess.run([*command, "--n_workers", "0"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "Success" in done.stdout, done.stdout + done.stderr
