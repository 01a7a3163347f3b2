"""Tiny networks of timm and transformers, fetched and converted in an environment of their own with PyTorch.

The environment takes 5.5 GB and some minutes; `HAPPYWHALE_TORCH_PYTHON` names the Python of one that exists. Where no
package index answers, or the disk is full, the tests are skipped and say so.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from installed import ROOT, bin_of, run

# what the package imports on the way to an encoder, besides the extra
BESIDES = "opencv-python-headless pandas pyarrow pillow pyyaml tqdm click filelock imagehash threadpoolctl scikit-learn"


GIGABYTES = 8  # what the environment takes, with what pip unpacks meanwhile
NO_INDEX = re.compile(
    r"\(from versions: none\)|Failed to establish a new connection|Temporary failure in name resolution|ProxyError"
    r"|Network is unreachable|NewConnectionError|ConnectTimeout|ReadTimeout|Connection (refused|reset)"
)
NAME_ONE = "or let HAPPYWHALE_TORCH_PYTHON name the Python of an environment with the extra `hub`"


def make_environment(folder):
    """The Python of a new environment with the extra `hub`: skips where none can be had, fails if pip finds a fault."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < GIGABYTES:
        pytest.skip(
            f"PyTorch's environment needs {GIGABYTES} GB, {free:.1f} are free in {folder}: free some, {NAME_ONE}"
        )
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    wanted, venv = [*settings["DEFAULT"]["hubs_requirements"].split(), *BESIDES.split()], folder / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=folder)
    pip = (bin_of(venv) / "python", "-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "30")
    try:
        run(*pip, *wanted, cwd=folder)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        if not (isinstance(error, subprocess.TimeoutExpired) or NO_INDEX.search(str(error))):
            raise
        pytest.skip(f"no package index answers, or too slowly, and PyTorch has to be installed: try again, {NAME_ONE}")
    return bin_of(venv) / "python"


@pytest.fixture(scope="module")
def torch_python(tmp_path_factory):
    """The Python of an environment with the extra `hub`."""
    if given := os.environ.get("HAPPYWHALE_TORCH_PYTHON"):
        return Path(given)
    return make_environment(tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="module")
def cases(torch_python, tmp_path_factory):
    """What `torch_models.py` found."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1"}
    words = (torch_python, "-W", "ignore", ROOT / "tests" / "torch_models.py", tmp_path_factory.mktemp("models"))
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=1800, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


FETCHED = {
    "timm": (256, 160, "apache-2.0"),
    "timm, of another size": (256, 96, "apache-2.0"),
    "transformer": (64, 160, "apache-2.0"),
    "transformer, of another size": (64, 96, "apache-2.0"),
    "checkpoint": (256, 160, "cc-by-nc-4.0"),
    "swin": (96, 224, "cc-by-nc-4.0"),
    "dinov2": (32, 56, "apache-2.0"),
    "clip": (32, 32, "apache-2.0"),
    "gem": (256, 96, "none published"),
    "file": (256, 96, "none published"),
}
REFUSED = {
    "gem without a card": "never run",
    "code": "never run",
    "harmful": "never run",
    "lacking": "conv_stem.weight",
    "no such architecture": "did you mean",
    "noise": "differs from the original",
}


@pytest.mark.soak
@pytest.mark.parametrize("case", FETCHED)
def test_network_becomes_an_encoder_that_equals_the_original(cases, case):
    dimension, size, licence = FETCHED[case]
    found = cases[case]
    assert (found["dimension"], found["size"], found["licence"]) == (dimension, size, licence), found
    assert found["cosine"] >= 0.9999 and found["rows"] == [5, dimension]
    assert found["commercial"] == (licence == "apache-2.0")


@pytest.mark.soak
@pytest.mark.parametrize("case", REFUSED)
def test_network_that_cannot_be_had_is_refused_and_leaves_nothing(cases, case):
    assert REFUSED[case] in cases[case]["refused"] and not cases[case]["left"]


@pytest.mark.soak
def test_miewids_kind_equals_its_parts_one_after_the_other(cases):
    assert cases["gem, step by step"] > 0.99999


@pytest.mark.soak
def test_code_in_weights_is_not_run_although_it_would(cases):
    assert cases["code would run"] and not cases["code ran"]


# --- where the environment cannot be made

NOTHING_FOUND = "ERROR: Could not find a version that satisfies the requirement torch>=2.6 (from versions: none)"
CONFLICT = "ERROR: Cannot install timm and torch==1 because these package versions have conflicting dependencies."


@pytest.mark.parametrize(
    ("said", "outcome"), [(NOTHING_FOUND, pytest.skip.Exception), (CONFLICT, AssertionError)], ids=["offline", "fault"]
)
def test_environment_that_pip_cannot_make_is_skipped_only_without_an_index(said, outcome, tmp_path, monkeypatch):
    def failing(*words, cwd):
        assert "pip" not in words, said

    monkeypatch.setattr(sys.modules[__name__], "run", failing)
    with pytest.raises(outcome) as caught:
        make_environment(tmp_path)
    assert outcome is AssertionError or "HAPPYWHALE_TORCH_PYTHON" in str(caught.value)


def test_environment_without_room_is_skipped_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3e9))
    with pytest.raises(pytest.skip.Exception, match=r"needs 8 GB, 3\.0 are free"):
        make_environment(tmp_path)
