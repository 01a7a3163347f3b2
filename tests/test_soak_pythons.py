"""The wheel in an environment of its own, under each Python the project is for."""

import json
import os
import re
import shutil
import subprocess
import time
from configparser import ConfigParser
from pathlib import Path

import pytest
from faults import ROOT, keep_result
from installed import bin_of, install_beside, run
from test_project import MODULES, WITHOUT_TENSORFLOW, module_name

PYTHONS = ("3.11", "3.12", "3.13")
COMMANDS = ("--help", "demo --help", "catalogue build --help", "serve --help", "run --help", "kaggle build --help")

# what an installed package has to be: prints what is checked by the test
LOOK = """
import importlib, json, sys
from importlib import metadata
from pathlib import Path

import happywhale_nb

if sys.argv[1] != "with TensorFlow":
    sys.modules["tensorflow"] = sys.modules["keras"] = sys.modules["jax"] = None  # importing them fails
for name in sys.argv[2:]:
    importlib.import_module(f"happywhale_nb.{name}")

from happywhale_nb.catalogue.store import create_catalogue
from happywhale_nb.demo.season import demo_model

create_catalogue(Path("catalogue").absolute(), Path("data").absolute()).close()  # finds its migrations
print(json.dumps({
    "place": happywhale_nb.__file__,
    "version": happywhale_nb.__version__,
    "metadata": metadata.version("happywhale_nb"),
    "model": demo_model().stat().st_size,
    "page": (Path(happywhale_nb.__file__).parent / "server" / "web" / "index.html").is_file(),
}))
"""


def settings():
    """The project's settings."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


@pytest.fixture
def outside(tmp_path):
    """A folder outside of any checkout."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def look(venv, outside, tensorflow=False):
    """Try the installed package: commands, modules, versions, and the files that come with it. Returns its facts."""
    for words in COMMANDS:
        assert "Usage: happywhale" in run(bin_of(venv) / "happywhale", *words.split(), cwd=outside)
    version = settings()["version"]
    assert version in run(bin_of(venv) / "happywhale", "--version", cwd=outside)
    names = [module_name(path) for path in MODULES]
    assert set(WITHOUT_TENSORFLOW) < set(names)
    python = bin_of(venv) / "python"
    facts = json.loads(run(python, "-c", LOOK, "without", *WITHOUT_TENSORFLOW, cwd=outside).splitlines()[-1])
    assert facts["version"] == facts["metadata"] == version and facts["page"] and facts["model"] > 100_000
    assert Path(facts["place"]).resolve().is_relative_to(venv.resolve()), "the installed package, no checkout"
    if tensorflow:
        shutil.rmtree(outside / "catalogue")
        run(python, "-c", LOOK, "with TensorFlow", *names, cwd=outside)
    return facts


def constraints(place):
    """The versions of requirements.lock as a file of constraints: hashes are not for these."""
    lines = re.findall(r"^([A-Za-z0-9].*?==.*?)\s*\\?$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert len(lines) > 100
    path = place / "constraints.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def find_python(version):
    """The program of this Python on PATH, and "" or why there is none."""
    found = shutil.which(f"python{version}")
    if not found:
        return None, f"no python{version} on PATH: install it, or put its folder on PATH"
    told = subprocess.run(
        [found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, timeout=60
    )
    if told.returncode:
        return None, f"python{version} on PATH does not start: with pyenv name its version in PYENV_VERSION"
    return told.stdout.strip(), ""


@pytest.fixture(scope="module")
def table():
    """Rows of all Pythons, kept when the last of them has been tried."""
    rows, began = [], time.monotonic()
    yield rows
    if len(rows) == len(PYTHONS):
        keep_result("pythons", rows, time.monotonic() - began)


# what is installed one after the other, each with what is there before: extras, and what then works
STEPS = ("", "[serve]", "[serve,train]", "[serve,train,study]", "[all]")
CORE = "from happywhale_nb import *; from happywhale_nb import __all__ as names; print(len(names))"


def measure(venv):
    """Packages and bytes of an environment."""
    count = "from importlib import metadata; print(len(list(metadata.distributions())))"
    packages = int(run(bin_of(venv) / "python", "-c", count, cwd=venv))
    size = sum(path.stat().st_size for path in venv.rglob("*") if path.is_file() and not path.is_symlink())
    return {"packages": packages, "gigabytes": round(size / 1e9, 2)}


def with_opencv(venv, outside):
    """As in the Makefile: opencv-python needs a library of the system, its version without windows does not."""
    if not subprocess.run([bin_of(venv) / "python", "-c", "import cv2"], capture_output=True, timeout=120).returncode:
        return "with windows"
    pip = (bin_of(venv) / "python", "-m", "pip")
    run(*pip, "uninstall", "--quiet", "--yes", "opencv-python", cwd=outside)
    locked = ROOT / "requirements-headless.lock"
    run(*pip, "install", "--quiet", "--no-deps", "--require-hashes", "-r", locked, cwd=outside)
    return "headless"


PYRIGHT = "basedpyright==1.40.2"  # pyright with its Node in wheels, so that it runs without fetching anything more


def check_types(venv, outside, limits):
    """What pyright says of a user's script is nothing, of wrong uses an error each."""
    folder = shutil.copytree(ROOT / "tests" / "fixtures", outside / "types")
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    run(bin_of(venv) / "python", "-m", "pip", "install", "--quiet", "--constraint", limits, PYRIGHT, cwd=outside)
    scripts = ("users_script.py", "wrong_uses.py")
    seen = os.environ | {"PATH": f"{bin_of(venv)}{os.pathsep}{os.environ['PATH']}"}  # it asks the first Python there
    done = subprocess.run(
        [bin_of(venv) / "basedpyright", "--outputjson", *scripts], capture_output=True, text=True, cwd=folder, env=seen
    )
    told = json.loads(done.stdout)
    found = [(Path(one["file"]).name, one["rule"]) for one in told["generalDiagnostics"]]
    wrong = ("reportCallIssue", "reportArgumentType", "reportArgumentType")
    assert told["summary"]["filesAnalyzed"] == 2 and found == [("wrong_uses.py", rule) for rule in wrong], found


@pytest.mark.soak
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("version", PYTHONS)
def test_wheel_under_each_python_installs_with_the_locked_versions_and_works(version, wheel, outside, table, tmp_path):
    python, why = find_python(version)
    if why:
        table.append({"python": version, "missing": why})
        pytest.skip(why)
    venv, steps, limits = tmp_path / "venv", [], constraints(tmp_path)
    run(python, "-m", "venv", venv, cwd=outside)
    pip, opencv = (bin_of(venv) / "python", "-m", "pip"), "with windows"
    for extras in STEPS:
        began = time.monotonic()
        run(*pip, "install", "--quiet", "--constraint", limits, f"{wheel}{extras}", cwd=outside, minutes=60)
        seconds = round(time.monotonic() - began, 1)
        opencv = with_opencv(venv, outside) if not extras else opencv
        run(bin_of(venv) / "python", "-c", CORE, cwd=outside)
        steps.append({"extras": extras, "seconds": seconds} | measure(venv))
    if opencv == "with windows":
        run(*pip, "check", cwd=outside)
    look(venv, outside, tensorflow=True)
    check_types(venv, outside, limits)
    told = run(bin_of(venv) / "python", "-c", "import platform; print(platform.python_version())", cwd=outside)
    table.append({"python": version, "missing": None, "found": told.strip(), "opencv": opencv, "steps": steps})
    shutil.rmtree(venv)


@pytest.mark.wheel
def test_wheel_under_this_python_works_outside_a_checkout(wheel, outside, tmp_path):
    """Beside the packages that are installed here, so that nothing is fetched."""
    venv = tmp_path / "venv"
    install_beside(wheel, venv)
    look(venv, outside)
