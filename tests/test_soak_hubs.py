"""Tiny networks of timm and transformers, fetched and converted in an environment of their own with PyTorch.

The environment takes 5.5 GB and some minutes; `HAPPYWHALE_TORCH_PYTHON` names the Python of one that exists.
"""

import json
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from installed import ROOT, bin_of, run

# what the package imports on the way to an encoder, besides the extra
BESIDES = "opencv-python-headless pandas pyarrow pillow pyyaml tqdm click filelock imagehash threadpoolctl scikit-learn"


@pytest.fixture(scope="module")
def torch_python(tmp_path_factory):
    """The Python of an environment with the extra `hub`."""
    if given := os.environ.get("HAPPYWHALE_TORCH_PYTHON"):
        return Path(given)
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    venv = tmp_path_factory.mktemp("torch") / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=venv.parent)
    wanted = [*settings["DEFAULT"]["hub_requirements"].split(), *BESIDES.split()]
    run(bin_of(venv) / "python", "-m", "pip", "install", "--quiet", *wanted, cwd=venv.parent)
    return bin_of(venv) / "python"


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
