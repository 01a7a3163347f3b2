"""The project installed from its wheel: how it is built, installed and called with no checkout in sight."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("PYTHONPATH", "HAPPYWHALE_DATA", "HAPPYWHALE_KAGGLE", "VIRTUAL_ENV")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
ENVIRONMENT |= {"PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
BUILT_FROM = ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
BUILT_FROM += ("happywhale_nb", "nbs", "studies")


def run(*words, cwd, minutes=30):
    """A command outside of any checkout; returns what it printed."""
    how = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 60 * minutes}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=ENVIRONMENT, **how)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def bin_of(venv):
    """The folder of an environment's programs."""
    return venv / ("Scripts" if os.name == "nt" else "bin")


def build_wheel(source, made):
    """The project's wheel in the folder `made`, built from a copy in `source`: building leaves files beside it."""
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(ROOT / name, source / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", made)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=made)
    (path,) = made.glob("*.whl")
    return path


def make_venv(venv):
    """A new environment, and the words of pip for it: ours, for to unpack another takes seconds."""
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    return (sys.executable, "-m", "pip", "--python", bin_of(venv) / "python")


def find_uv(folder):
    """The program uv: one that is here, else from a package index; the test is skipped if there is neither."""
    known = [Path(sys.executable).with_name("uv"), ROOT / ".venv" / "lock" / "bin" / "uv", shutil.which("uv")]
    for path in filter(None, known):
        if Path(path).is_file():
            return path
    install = [*make_venv(folder / "venv"), "install", "--quiet", "uv"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=200)
    if done.returncode:
        pytest.skip("no uv here, and no package index that has it: pip install uv")
    return folder / "venv" / "bin" / "uv"


def install_beside(wheel, venv):
    """A new environment with the wheel alone, which sees the packages that are installed here: nothing is fetched."""
    pip = make_venv(venv)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=venv.parent)
    own = sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)})
    Path(own, "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")  # after the environment's own packages
