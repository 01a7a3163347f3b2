"""What a person at JupyterLab meets: fresh kernels, widgets and text in their places, clean files, merges that open."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from happywhale_nb import progress
from happywhale_nb.notebooks import read_parameters
from happywhale_nb.saving import HOOK, hook_git, hook_server

ROOT = Path(__file__).resolve().parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
# Stages run whole in test_a_study, and nbdev_test runs the others' lessons, cells marked `eval: false` aside. Here a
# kernel of its own runs every cell of: what no other test runs whole, one that loads Keras, and what asks who is
# looking. HAPPYWHALE_FRESH=all takes all that are no stages (5 minutes).
FRESH = ["index", "paper_map", "02_augmentation", "lib/notebooks", "lib/heads", "lib/saving", "lib/progress"]
if os.environ.get("HAPPYWHALE_FRESH") == "all":
    FRESH += [f"lib/{p.stem}" for p in sorted((ROOT / "nbs" / "lib").glob("*.ipynb")) if f"lib/{p.stem}" not in FRESH]


def run_fresh(path, data="", session=""):
    """A notebook, run whole by a new kernel in its own folder; session: its name, if a Jupyter server had it open."""
    notebook = nbformat.read(path, as_version=4)
    env = {**os.environ, "HAPPYWHALE_DATA": str(data), "PYTHONPATH": str(ROOT)}
    env.pop(progress.SESSION, None)
    env |= {progress.SESSION: session} if session else {}
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute(env=env)
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def written(notebook, name):
    return "".join(o["text"] for o in outputs(notebook) if o["output_type"] == "stream" and o["name"] == name)


def widgets(notebook):
    return [o for o in outputs(notebook) if WIDGET in o.get("data", {})]


@pytest.mark.parametrize("name", FRESH)
def test_notebooks_run_whole_in_a_fresh_kernel(name, checkout, tiny):
    done = run_fresh(checkout / "nbs" / f"{name}.ipynb", data=tiny)
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not widgets(done)


@pytest.fixture
def counting(tmp_path):
    source = 'from happywhale_nb.progress import bar\nsum(bar(range(3), "counting"))'
    cells = [nbformat.v4.new_code_cell(source)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "counting.ipynb")
    return tmp_path / "counting.ipynb"


def test_bars_are_text_for_papermill_and_widgets_in_a_servers_kernel(counting):
    headless, live = run_fresh(counting), run_fresh(counting, session="counting.ipynb")
    assert "counting: 100%|" in written(headless, "stderr") and not widgets(headless)
    assert len(widgets(live)) == 1 and "%|" not in written(live, "stderr")
    assert outputs(headless)[-1]["data"]["text/plain"] == outputs(live)[-1]["data"]["text/plain"] == "3"


def test_browsers_are_widgets_in_a_servers_kernel_and_pages_elsewhere(checkout):
    path = checkout / "nbs" / "lib" / "widgets.ipynb"
    headless, live = run_fresh(path), run_fresh(path, session="widgets.ipynb")
    pages = [o["data"] for o in outputs(headless) if "<img" in o.get("data", {}).get("text/html", "")]
    assert not widgets(headless) and len(widgets(live)) == len(pages) == 2
    for page in pages:
        assert "cosine" in page["text/plain"] and "<img" not in page["text/plain"]
        assert page["text/html"].count("<table") == 2 and "data:image/png" in page["text/html"]


def test_without_ipywidgets_nobody_is_shown_any(monkeypatch):
    monkeypatch.setenv(progress.SESSION, "study.ipynb")
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert progress.live()
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    assert not progress.live()


SAVE = """
import asyncio, json, sys
from jupyter_server.serverapp import ServerApp

root, changed, *paths = sys.argv[1:]
app = ServerApp()
app.initialize([f"--ServerApp.root_dir={root}", "--ServerApp.token=x", "--allow-root", "--no-browser", "--port=0"])
for path in paths:
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


def test_a_jupyter_server_saves_notebooks_clean_and_leaves_others_alone(checkout, tmp_path):
    """A real server's contents manager with its configuration found as any server finds it."""
    config = hook_server(tmp_path / "env")
    assert json.loads(config.read_text()) == {"ContentsManager": {"pre_save_hook": HOOK}}
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_PATH": str(config.parent)}
    shutil.copytree(checkout / "nbs", tmp_path / "project" / "nbs")
    shutil.copy(checkout / "settings.ini", tmp_path / "project")
    (tmp_path / "project" / "outputs").mkdir()
    (tmp_path / "other" / "nbs").mkdir(parents=True)
    (tmp_path / "other" / "settings.ini").write_text("[DEFAULT]\nlib_name = other\n")
    source = checkout / "nbs" / "03_train.ipynb"
    run = changed_by_running(source, 7)
    (tmp_path / "run.json").write_text(json.dumps(run))
    served = {".": ["project/nbs/03_train.ipynb", "project/outputs/03_train.ipynb", "other/nbs/03_train.ipynb"]}
    served["project/nbs"] = ["copy.ipynb"]  # as `jupyter lab nbs` has it
    for root, paths in served.items():
        command = [sys.executable, "-c", SAVE, tmp_path / root, tmp_path / "run.json", *paths]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    for name in ("03_train.ipynb", "copy.ipynb"):
        saved = tmp_path / "project" / "nbs" / name
        assert saved.read_bytes() == source.read_bytes() and "fold" in read_parameters(saved)
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
    shutil.copy(ROOT / "nbs" / "lib" / "thresholds.ipynb", folder / "work.ipynb")
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]

    def git(*words, fails=False):
        done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True)
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


def test_a_merge_of_different_outputs_and_metadata_is_no_conflict(clone):
    path, git = clone
    branches(path, git, changed_by_running)
    git("merge", "-q", "b1")
    merged, ours = json.loads(path.read_text()), changed_by_running(path, 2)
    sources = ["".join(c["source"]) for c in merged["cells"]]
    assert sources == ["".join(c["source"]) for c in json.loads(git("show", "main:work.ipynb"))["cells"]]
    assert [c.get("outputs") for c in merged["cells"]] == [c.get("outputs") for c in ours["cells"]]


def test_a_conflict_of_sources_becomes_cells_of_a_notebook_that_opens(clone):
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
