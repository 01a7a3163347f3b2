"""The project installed from its wheel, with no checkout in sight: from an empty folder it does what it does in one."""

import json
import re
import shutil
import socket
import subprocess
import threading
import zipfile
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pandas as pd
import pytest
from installed import ENVIRONMENT, ROOT, bin_of, install_beside, run

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(900)]

# what is typed after `happywhale`
IMPORT = ("data", "import")
RUN = ("run",)
NOTEBOOKS = ("notebooks",)
KAGGLE_BUILD = ("kaggle", "build")
SERVE_DEMO = ("serve", "--demo")
STUDY = """
study: mine
data_dir: data/mine
folds: 2
quick: true
models: {basic_cnn: {}}
eda: false
gradcam: false
robustness: false
blend: false
"""


@pytest.fixture(scope="module")
def venv(wheel, tmp_path_factory):
    """An environment with the wheel."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    install_beside(wheel, place)
    return place


@pytest.fixture
def happywhale(venv, tmp_path):
    """A function that runs the command in an empty folder, `.place`, and returns what it printed."""
    place = tmp_path / "station"
    place.mkdir()

    def call(*words):
        return run(bin_of(venv) / "happywhale", *words, cwd=place)

    call.place = place
    return call


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    """Photographs as people keep them: a folder for each individual."""
    folder = tmp_path_factory.mktemp("photographs")
    for row in pd.read_csv(tiny / "train.csv").itertuples():
        home = folder / row.individual_id
        home.mkdir(exist_ok=True)
        shutil.copy(tiny / "train_images" / row.image, home)
    return folder


def contents(wheel):
    """The files of a wheel, name → bytes."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_has_the_notebooks_without_outputs_the_studies_and_the_workflow(wheel):
    found = contents(wheel)
    notebooks = {name: data for name, data in found.items() if name.endswith(".ipynb")}
    assert {Path(name).name for name in notebooks} == {p.name for p in ROOT.glob("nbs/[0-9]*.ipynb")}
    for name, data in notebooks.items():
        notebook = nbformat.reads(data.decode(), as_version=4)
        nbformat.validate(notebook)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
        original = nbformat.read(ROOT / "nbs" / Path(name).name, as_version=4)
        assert [(c.source, c.metadata) for c in notebook.cells] == [(c.source, c.metadata) for c in original.cells]
    for name in ("Snakefile", "profiles/default/config.yaml", "copies/studies/demo.yaml", "copies/studies/paper.yaml"):
        assert f"happywhale_nb/workflow/{name}" in found
    notices = [data for name, data in found.items() if name.endswith("dist-info/licenses/NOTICE")]
    assert notices == [(ROOT / "NOTICE").read_bytes()]
    assert "happywhale_nb/demo/assets/probe.png" in found
    assert "happywhale_nb/py.typed" in found


def test_wheel_says_what_it_is_and_which_extras_it_has(wheel):
    (text,) = [data.decode() for name, data in contents(wheel).items() if name.endswith("dist-info/METADATA")]
    head, _, readme = text.partition("\n\n")
    assert not re.search(r"\]\((?!https?://)", readme) and "<img" not in readme and "| notebook |" in readme
    extras = re.findall(r"^Provides-Extra: (\S+)$", head, re.M)
    wanted = "train gpu jax-gpu serve study notebooks search qdrant postgres export hubs heic track docs dev all"
    assert sorted(extras) == sorted(wanted.split())
    core = [line for line in re.findall(r"^Requires-Dist: (.+)$", head, re.M) if "extra ==" not in line]
    heavy = "tensorflow keras jupyterlab papermill snakemake fastapi alembic sqlalchemy nbdev onnx"
    assert len(core) < 20 and not [line for line in core if re.split(r"\W", line)[0] in heavy.split()]
    every = {
        re.split(r"[^\w-]", line)[0]
        for line in re.findall(r"^Requires-Dist: (.+extra == ['\"]all['\"].*)$", head, re.M)
    }
    assert {"jupyterlab", "papermill", "nbdev", "tensorflow", "fastapi", "snakemake"} <= every


@pytest.mark.soak
def test_import_and_run_of_a_folder_leave_data_and_outputs_in_the_current_folder(happywhale, source):
    happywhale(*IMPORT, source, "--to", "data/mine", "--species", "humpback_whale")
    (happywhale.place / "mine.yaml").write_text(STUDY)
    said = happywhale(*RUN, "mine.yaml")
    assert "report.html" in said and "MAP@5 of basic_cnn, out of fold" in said
    assert "happywhale notebooks ." in said
    assert {path.name for path in happywhale.place.iterdir()} <= {"data", "outputs", ".snakemake", "mine.yaml"}
    folder = happywhale.place / "outputs" / "mine-quick"
    assert (folder / "report.html").is_file()
    (record,) = (folder / "basic_cnn" / "fold1").glob("03_train-*.run.json")
    assert json.loads(record.read_text())["commit"] is None


def test_record_of_a_run_inside_somebody_elses_repository_names_no_commit_of_it(venv, tmp_path):
    git = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True, timeout=60)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], cwd=tmp_path, check=True, timeout=60)
    code = "from happywhale_nb.workflow.provenance import begin_record; print(begin_record('x.ipynb', '0' * 16))"
    assert run(bin_of(venv) / "python", "-c", code, cwd=tmp_path).strip() == "None"


def test_kaggle_build_puts_the_wheel_together_again(happywhale, wheel):
    happywhale(*KAGGLE_BUILD, "--user", "jo", "--fold", "0")
    folder = happywhale.place / "outputs" / "kaggle"
    assert (folder / "03_train-fold0" / "03_train.ipynb").is_file()
    (again,) = (folder / "dataset").glob("*.whl")
    before, after = contents(wheel), contents(again)
    record = next(name for name in before if name.endswith("/RECORD"))
    assert again.name == wheel.name and set(after) == set(before)
    assert {n: d for n, d in after.items() if n != record} == {n: d for n, d in before.items() if n != record}
    assert sorted(after[record].splitlines()) == sorted(before[record].splitlines())


@pytest.mark.soak  # the files in it are the same, as the test above tells
def test_wheel_put_together_again_can_be_installed(happywhale, tmp_path):
    happywhale(*KAGGLE_BUILD, "--user", "jo")
    (again,) = (happywhale.place / "outputs" / "kaggle" / "dataset").glob("*.whl")
    install_beside(again, tmp_path / "other")
    assert "Usage: happywhale" in run(bin_of(tmp_path / "other") / "happywhale", *RUN, "--help", cwd=tmp_path)


def test_notebooks_are_copied_once_and_a_changed_copy_is_left(happywhale):
    happywhale(*NOTEBOOKS, "mine")
    copy = happywhale.place / "mine" / "03_train.ipynb"
    assert len(list(copy.parent.glob("[0-9]*.ipynb"))) == len(list(ROOT.glob("nbs/[0-9]*.ipynb")))
    original = copy.read_bytes()
    copy.write_text("{}")
    happywhale(*NOTEBOOKS, "mine")
    assert copy.read_text() == "{}"
    assert "03_train.ipynb differed and was overwritten" in happywhale(*NOTEBOOKS, "mine", "--force")
    assert copy.read_bytes() == original


@pytest.mark.soak
def test_serve_demo_answers_from_an_empty_folder(venv, tmp_path):
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [bin_of(venv) / "happywhale", *SERVE_DEMO, "--no-browser", "--port", str(port)]
    server = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    late = threading.Timer(300, server.kill)  # then its output ends, and so does the wait for it
    late.start()
    try:
        assert f"localhost:{port}" in server.stdout.readline()
        with urlopen(f"http://localhost:{port}/", timeout=30) as page:
            assert b"<html" in page.read()
    finally:
        late.cancel()
        server.terminate()
        server.wait(60)
        server.stdout.close()
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}
    assert (tmp_path / "outputs" / "demo-season" / "catalogue.json").is_file()
