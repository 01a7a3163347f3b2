"""The project's own rules: the package is what the notebooks export, layers hold, notebooks are well formed."""

import ast
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

from happywhale_nb.notebooks import read_parameters

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
STAGES = [p for p in NOTEBOOKS if p.name[:2].isdigit()]
MODULES = sorted(p for p in (ROOT / "happywhale_nb").glob("*.py") if not p.name.startswith("_"))

# design: a module imports only from its own floor's left or from below
FLOORS = [
    "paths progress runs records saving species dataset metrics predictions",
    "augmentation boxes crops duplicates splits check importing download baselines demo embeddings search targets "
    "presets degradations eda thresholds local_match ballots tally knn blending outcomes compare "
    "statistics errors faithfulness uploads exports season answering tables catalogue views decisions access asking "
    "intake schemas",
    "devices images backbones heads schedule callbacks detector fitting architectures export encoding train gradcam "
    "heat",
    "page widgets robustness report notebooks stages study kaggle api serving identify cli",
]
FLOORS = [floor.split() for floor in FLOORS]
ORDER = [name for floor in FLOORS for name in floor]
WITHOUT_TENSORFLOW = [*FLOORS[0], *FLOORS[1], *(name for name in FLOORS[3] if name != "robustness")]


def imports(path):
    """Names of the project's modules and of other top-level packages a module imports anywhere."""
    own, other = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            own |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("happywhale_nb."):  # over several lines
            own.add(node.module.removeprefix("happywhale_nb."))
        elif isinstance(node, ast.ImportFrom):
            other.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
    return own, other


def test_every_module_has_its_floor():
    assert {p.stem for p in MODULES} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_modules_import_from_below_and_no_development_tool(path):
    own, other = imports(path)
    above = {name for name in own if ORDER.index(name) >= ORDER.index(path.stem)}
    assert not above
    assert not other & {"nbdev", "fastcore", "execnb", "pytest"}
    if path.stem in WITHOUT_TENSORFLOW:
        assert not other & {"tensorflow", "keras", "jax"}


def test_all_but_training_imports_without_tensorflow():
    names = [f"happywhale_nb.{name}" for name in WITHOUT_TENSORFLOW]
    heavy = "[m for m in ('tensorflow', 'keras', 'jax', 'nbdev') if m in sys.modules]"
    code = f"import sys, {', '.join(names)}; sys.exit(' '.join({heavy}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_command_starts_without_what_only_its_stages_need():
    heavy = "[m for m in ('sklearn', 'matplotlib', 'papermill', 'sqlalchemy', 'fastapi', 'yaml') if m in sys.modules]"
    code = f"import sys, happywhale_nb.cli; sys.exit(' '.join({heavy}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_nothing_is_pickled():
    """Files of others can be read without running what is in them."""
    doors = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    unsafe = r"allow_pickle=True|safe_mode=False|enable_unsafe|(read|to)_pickle|yaml\.(unsafe|full)_load"
    for path in [*MODULES, *(ROOT / "happywhale_nb" / "migrations").rglob("*.py")]:
        assert not imports(path)[1] & doors and not re.search(unsafe, path.read_text()), path
    packed = [p.name for p in (ROOT / "happywhale_nb").rglob("*") if p.suffix in {".pkl", ".pickle", ".h5", ".joblib"}]
    assert not packed


def export(tree, command):
    """Export the notebooks of `tree` with an `nbdev_export`; returns source text by module."""
    done = subprocess.run([command], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sources(tree)


def sources(tree):
    return {p.name: p.read_text() for p in (tree / "happywhale_nb").glob("*.py") if p.name != "_modidx.py"}


@pytest.fixture
def tree(tmp_path):
    """A copy of the project without its package, to export into."""
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return tmp_path


def test_a_fresh_export_is_the_package(tree):
    assert export(tree, Path(sys.executable).with_name("nbdev_export")) == sources(ROOT)


def test_nbdev_3_exports_the_same_modules(tree, tmp_path_factory):
    """The way forward stays open: nbdev 3, which reads pyproject.toml alone, in an environment of its own."""
    venv = tmp_path_factory.mktemp("nbdev3")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    done = subprocess.run([venv / "bin" / "pip", "install", "--quiet", "nbdev>=3,<4"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nbdev 3 cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    settings = ConfigParser()
    settings.read(tree / "settings.ini")
    (tree / "settings.ini").unlink()
    (tree / "pyproject.toml").write_text(f"""[project]
name = "happywhale_nb"
dynamic = ["version"]

[tool.nbdev]
lib_path = "happywhale_nb"
nbs_path = "nbs"
recursive = true
put_version_in_init = true
allowed_cell_metadata_keys = ["{settings["DEFAULT"]["allowed_cell_metadata_keys"]}"]
""")
    (tree / "happywhale_nb").mkdir()
    (tree / "happywhale_nb" / "__init__.py").write_text((ROOT / "happywhale_nb" / "__init__.py").read_text())
    ours, theirs = sources(ROOT), export(tree, venv / "bin" / "nbdev-export")
    assert set(ours) == set(theirs)
    for name in set(ours) - {"__init__.py"}:
        assert code_lines(ours[name]) == code_lines(theirs[name]), name


def code_lines(text):
    """The statements of a module: both versions of nbdev write them alike, but not the notes around them."""
    return ast.dump(ast.parse(text))


def test_cleaning_changes_nothing_and_keeps_the_parameters_tags(tree):
    subprocess.run([Path(sys.executable).with_name("nbdev_clean")], cwd=tree, check=True, capture_output=True)
    for path in NOTEBOOKS:
        assert (tree / path.relative_to(ROOT)).read_text() == path.read_text(), path.name
    for path in STAGES:
        assert "fold" in read_parameters(tree / "nbs" / "03_train.ipynb")
        assert read_parameters(tree / path.relative_to(ROOT))


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_stages_share_names_and_meanings_of_parameters(path):
    parameters = read_parameters(path)
    assert {"data_dir", "quick"} <= set(parameters)
    train = read_parameters(ROOT / "nbs" / "03_train.ipynb")
    for name in set(parameters) & set(train):
        assert (parameters[name].type, parameters[name].default) == (train[name].type, train[name].default), name
    assert all(p.help for p in parameters.values())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_open_with_title_and_summary_and_keep_cells_short(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and "\n> " in first.source
    for cell in notebook.cells:
        lines = cell.source.splitlines()
        assert not ("#| export" in lines[:2] and len(lines) > 60), cell.source[:80]
        assert not any(output.output_type == "error" for output in cell.get("outputs", []))


def test_the_readme_is_written_from_the_index(tmp_path):
    done = subprocess.run(
        ["make", "--no-print-directory", "readme", f"README={tmp_path / 'README.md'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_nothing_names_a_registry_or_a_place_on_one_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    forbidden = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "/ro" + "ot/", "/ho" + "me/"]
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".ipynb", ".md", ".ini", ".toml", ".lock", ".html", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not [word for word in forbidden if word in text], name


def test_the_lock_pins_every_requirement_with_a_hash():
    lock = (ROOT / "requirements.lock").read_text()
    blocks = [b for b in lock.replace("\\\n", " ").splitlines() if b and not b.startswith("#")]
    assert blocks and all("==" in b and "--hash=sha256:" in b for b in blocks)
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    kinds = ("requirements", "dev_requirements", "docs_requirements")
    wanted = " ".join(settings["DEFAULT"][kind] for kind in kinds).split()
    pinned = {b.split("==")[0].strip().lower() for b in blocks}
    for requirement in wanted:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].lower()
        assert name in pinned, name


def test_settings_are_the_only_source_of_the_version():
    import happywhale_nb

    settings = (ROOT / "settings.ini").read_text()
    assert f"version = {happywhale_nb.__version__}\n" in settings
    assert happywhale_nb.__version__ not in (ROOT / "setup.py").read_text()


def test_the_paper_map_names_what_is_there():
    cells = json.loads((ROOT / "nbs" / "paper_map.ipynb").read_text())["cells"]
    rows = [line for cell in cells for line in "".join(cell["source"]).splitlines() if line.startswith("|")]
    assert len(rows) > 30
    text = "\n".join(rows)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "nbs" / target).is_file(), target
    names = {p.stem: {n.name for n in ast.parse(p.read_text()).body if hasattr(n, "name")} for p in MODULES}
    constants = {p.stem: p.read_text() for p in MODULES}
    found = [pair for pair in re.findall(r"`([a-z_]+)\.([A-Za-z_0-9]+)`", text) if pair[0] in names]
    assert len(found) > 20
    for module, name in found:
        assert name in names[module] or f"\n{name} = " in constants[module], f"{module}.{name}"
    for path in re.findall(r"`((?:tests|bench)/[a-z_]+\.py)`", text):
        assert (ROOT / path).is_file(), path
