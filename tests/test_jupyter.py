"""Notebooks as a person at JupyterLab meets them: cells that run, widgets or text, clean files, merges that open."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient

from happywhale_nb.core import progress
from happywhale_nb.workflow.jupyter_hooks import HOOK, hook_git, hook_server
from happywhale_nb.workflow.kaggle import set_parameters

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
LIBRARY = sorted(p for p in (NBS / "lib").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
WIDGET = "application/vnd.jupyter.widget-view+json"


def outputs(notebook):
    """All outputs of a notebook's cells."""
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def written(notebook, name):
    """What a notebook's cells have written to `stdout` or `stderr`."""
    return "".join(o["text"] for o in outputs(notebook) if o["output_type"] == "stream" and o["name"] == name)


def widgets(notebook):
    """Outputs that are widgets."""
    return [o for o in outputs(notebook) if WIDGET in o.get("data", {})]


# --- running


def prepares(source):
    """Whether a cell only imports and defines."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AugAssign)
    return all(isinstance(node, kinds) for node in ast.parse(source).body)


def run_left_out(name, module, **values):
    """Run the cells of a notebook that its lessons leave out (`eval: false`), with what is exported, imported and
    defined before them, in this process. Returns how many these were."""
    space, count = dict(vars(importlib.import_module(f"happywhale_nb.{module}"))), 0
    for cell in nbformat.read(NBS / f"{name}.ipynb", as_version=4).cells:
        left_out = cell.source.startswith("#| eval: false")
        if "parameters" in cell.metadata.get("tags", []):
            exec(set_parameters(cell.source, values), space)
        elif cell.cell_type == "code" and "#| export" not in cell.source and (left_out or prepares(cell.source)):
            exec(cell.source, space)
            count += left_out
    return count


@pytest.mark.parametrize(
    ("name", "module", "cells"),
    [("02_augmentation", "imaging.augmentation", 9), ("lib/workflow/notebooks", "workflow.notebooks", 1)],
)
def test_notebook_cells_that_lessons_leave_out_run(name, module, cells, tiny, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = {"data_dir": str(tiny), "side": 32} if module == "imaging.augmentation" else {}
    assert run_left_out(name, module, **values) == cells
    plt.close("all")


def run_fresh(path, data="", session=""):
    """A notebook, run whole by a new kernel in its own folder; session: its name, if a Jupyter server had it open."""
    notebook = nbformat.read(path, as_version=4)
    env = {**os.environ, "HAPPYWHALE_DATA": str(data), "PYTHONPATH": str(ROOT)}
    env.pop(progress.SESSION, None)
    env |= {progress.SESSION: session} if session else {}
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources=where).execute(env=env)
    return notebook


@pytest.mark.soak
@pytest.mark.parametrize(
    "name", ["index", "paper_map", "02_augmentation", *(p.relative_to(NBS).as_posix()[:-6] for p in LIBRARY)]
)
def test_notebook_in_a_fresh_kernel_runs_whole_without_widgets(name, tiny, tmp_path):
    copy = tmp_path / "checkout"
    copy.mkdir()
    for part in ("nbs", "bench", "studies", "docs/results", "happywhale_nb"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"))
    for file in (file for file in ROOT.iterdir() if file.is_file()):
        shutil.copy(file, copy)
    done = run_fresh(copy / "nbs" / f"{name}.ipynb", data=tiny)
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not widgets(done)


LIVE = """
from pathlib import Path
from happywhale_nb.core.progress import bar
from happywhale_nb.evaluation.browser import browse_folds, browse_neighbours
sum(bar(range(3), "counting"))
---
browse_folds(Path({study!r}), "small_resnet_arcface")
---
browse_neighbours(Path({study!r}), "small_resnet_arcface")
"""


def test_bars_and_browsers_in_the_kernel_of_a_jupyter_server_are_widgets(study, tmp_path):
    cells = [nbformat.v4.new_code_cell(part.strip()) for part in LIVE.format(study=str(study)).split("---")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "live.ipynb")
    live = run_fresh(tmp_path / "live.ipynb", session="live.ipynb")
    assert [len(widgets(nbformat.v4.new_notebook(cells=[cell]))) for cell in live.cells] == [1, 1, 1]
    assert "%|" not in written(live, "stderr") and live.cells[0].outputs[-1]["data"]["text/plain"] == "3"


def test_bars_and_browsers_under_papermill_are_text_and_pages(study):
    folder = study / "small_resnet_arcface"
    train, knn = (nbformat.read(folder / name, as_version=4) for name in ("fold0/03_train.ipynb", "06_knn.ipynb"))
    assert not widgets(train) and not widgets(knn) and "embedding: 100%|" in written(train, "stderr")
    (page,) = [o["data"] for o in outputs(knn) if "<img" in o.get("data", {}).get("text/html", "")]
    assert "cosine" in page["text/plain"] and "<img" not in page["text/plain"]
    assert page["text/html"].count("<table") == 2 and "data:image/png" in page["text/html"]


def test_live_without_ipywidgets_is_false(monkeypatch):
    monkeypatch.setenv(progress.SESSION, "study.ipynb")
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert progress.shows_widgets()
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    assert not progress.shows_widgets()


# --- saving and merging


SAVE = """
import asyncio, json, sys
from jupyter_server.serverapp import ServerApp

changed, *places = sys.argv[1:]
for place in places:
    root, _, path = place.partition(":")
    app = ServerApp()
    app.initialize([f"--ServerApp.root_dir={root}", "--ServerApp.token=x", "--allow-root", "--no-browser", "--port=0"])
    model = {"type": "notebook", "format": "json", "content": json.load(open(changed))}
    asyncio.run(app.contents_manager.save(model, path))
"""


def changed_by_running(path, number):
    """A notebook file as JupyterLab would have it after a run."""
    content = json.loads(path.read_text())
    content["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
    content["metadata"]["language_info"] = {"name": "python", "version": f"3.{number}"}
    for count, cell in enumerate(c for c in content["cells"] if c["cell_type"] == "code"):
        cell["execution_count"] = number + count
        cell["metadata"]["execution"] = {"iopub.status.busy": f"{number}"}
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": f"run {number}\n"}]
    return content


def test_clean_on_save_in_a_jupyter_server_cleans_the_project_s_notebooks_and_leaves_others(tmp_path):
    """A real server's contents manager with its configuration found as any server finds it."""
    config = hook_server(tmp_path / "env")
    assert json.loads(config.read_text()) == {"ContentsManager": {"pre_save_hook": HOOK}}
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_PATH": str(config.parent)}
    for folder, settings in (
        ("project", (ROOT / "settings.ini").read_text()),
        ("other", "[DEFAULT]\nlib_name = other\n"),
    ):
        (tmp_path / folder / "nbs").mkdir(parents=True)
        (tmp_path / folder / "settings.ini").write_text(settings)
    (tmp_path / "project" / "outputs").mkdir()
    source = NBS / "lib" / "core" / "paths.ipynb"
    run = changed_by_running(source, 7)
    (tmp_path / "run.json").write_text(json.dumps(run))
    places = [f"{tmp_path}:{folder}/03_train.ipynb" for folder in ("project/nbs", "project/outputs", "other/nbs")]
    places.append(f"{tmp_path}/project/nbs:copy.ipynb")  # as `jupyter lab nbs` has it
    command = [sys.executable, "-c", SAVE, tmp_path / "run.json", *places]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert (tmp_path / "project" / "nbs" / "copy.ipynb").read_bytes() == source.read_bytes()
    numbered = json.loads((tmp_path / "project" / "nbs" / "03_train.ipynb").read_text())
    said = [["".join(o["text"]) for o in c["outputs"]] for c in numbered["cells"] if c["cell_type"] == "code"]
    assert len(said) > 3 and all(texts == ["run 7\n"] for texts in said)
    assert not any(c.get("execution_count") or c["metadata"] for c in numbered["cells"])
    for name in ("project/outputs/03_train.ipynb", "other/nbs/03_train.ipynb"):
        cells = json.loads((tmp_path / name).read_text())["cells"]
        assert all(c["outputs"] and c["execution_count"] for c in cells if c["cell_type"] == "code")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A git checkout with hooks, one notebook, and two branches to be made; returns it and what runs git in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "a clone"
    folder.mkdir()
    shutil.copy(ROOT / ".gitattributes", folder)
    shutil.copy(NBS / "lib" / "networks" / "schedules.ipynb", folder / "work.ipynb")
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]

    def git(*words, fails=False):
        done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, timeout=60)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout

    git("init", "-q", "-b", "main")
    hook_git(folder)
    hook_git(folder)
    git("add", "-A")
    git("commit", "-q", "-m", "start")
    return folder / "work.ipynb", git


def branches(path, git, change):
    """Commits `change(path, n)` on branches b1 and b2, and stays on b2."""
    for number in (1, 2):
        git("checkout", "-q", "-b", f"b{number}", "main")
        path.write_text(json.dumps(change(path, number), indent=1, ensure_ascii=False) + "\n")
        git("commit", "-q", "-a", "-m", f"b{number}")


def test_hook_git_merge_of_different_outputs_and_metadata_is_no_conflict(clone):
    path, git = clone
    branches(path, git, changed_by_running)
    git("merge", "-q", "b1")
    merged, ours = json.loads(path.read_text()), changed_by_running(path, 2)
    sources = ["".join(c["source"]) for c in merged["cells"]]
    assert sources == ["".join(c["source"]) for c in json.loads(git("show", "main:work.ipynb"))["cells"]]
    assert [c.get("outputs") for c in merged["cells"]] == [c.get("outputs") for c in ours["cells"]]


def test_hook_git_merge_of_different_sources_leaves_both_in_cells_of_a_notebook_that_opens(clone):
    path, git = clone

    def edited(path, number):
        content = json.loads(path.read_text())
        cell = next(c for c in content["cells"] if c["cell_type"] == "code")
        cell["source"] = [f"answer = {number}"]
        return content

    branches(path, git, edited)
    git("merge", "-q", "b1", fails=True)
    assert git("status", "--short").startswith("UU")
    sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"]]
    start = sources.index("answer = 2") - 1
    assert "<<<<<<<" in sources[start] and ">>>>>>>" in sources[start + 4] and "=======" in sources[start + 2]
    assert sources[start + 3] == "answer = 1"
