"""The project's own rules: the package is what notebooks export, layers hold, notebooks and tests are well formed."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import symtable
import sys
import tomllib
from collections import Counter
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import nbformat
import pytest
from installed import make_venv

import happywhale_nb
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.renamed import PARAMETERS
from happywhale_nb.workflow.notebooks import read_parameters

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
STAGES = [p for p in NOTEBOOKS if p.name[:2].isdigit()]
PACKAGE = ROOT / "happywhale_nb"
MODULES = sorted(p for p in PACKAGE.glob("*/**/*.py") if not p.name.startswith("_") and "/migrations/" not in str(p))
TESTS = sorted((ROOT / "tests").glob("*.py"))

_stage = importlib.util.spec_from_file_location("stage", ROOT / "docs" / "stage.py")
stage = importlib.util.module_from_spec(_stage)  # what lays out the site: it knows the methods of classes
_stage.loader.exec_module(stage)

# a module imports from its own wing and from those named here; `happywhale_nb` alone has the names of all
WINGS = {
    "core": "",
    "data": "core",
    "demo": "core data",
    "imaging": "core data",
    "retrieval": "core data",
    "ensemble": "core data retrieval",
    "networks": "core data imaging retrieval",
    "evaluation": "core data imaging retrieval networks",
    "catalogue": "core data demo imaging retrieval",
    "stages": "core data imaging retrieval ensemble networks evaluation catalogue",
    "workflow": "core data retrieval ensemble networks stages",
    "server": "core catalogue",
    "cli": "core data demo imaging retrieval ensemble networks evaluation catalogue stages workflow server",
}
INSIDE_FUNCTIONS = {"catalogue": {"networks"}, "server": {"networks"}}  # so that TensorFlow is loaded only when used
NETWORKS_WITHOUT_KERAS = {"networks.presets", "networks.targets"}
NETWORKS_WITHOUT_KERAS |= {"networks.ready_cards", "networks.hubs", "networks.hub_models"}
NETWORKS_WITHOUT_KERAS |= {"networks.encoder_card", "networks.card_encoder", "networks.runtimes", "networks.probe"}
NETWORKS_WITHOUT_KERAS |= {"networks.encoder_groups", "networks.encoders", "networks.new_card"}
NETWORKS_WITHOUT_KERAS |= {"networks.graph_files"}
NETWORKS_WITHOUT_KERAS |= {"networks.vector_tables"}
NETWORKS_WITHOUT_KERAS |= {"networks.detector_card", "networks.detector_heads", "networks.detectors"}
NETWORKS_WITHOUT_KERAS |= {"networks.detector_draft", "networks.folder_boxes"}
# Keras only inside functions, for encoders and detectors that are Keras networks
KERAS_IN_FUNCTIONS = {"networks.loading", "networks.embedder"}


def module_name(path):
    """`wing.module`, or `wing.package.module`, of a file of the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def is_module(name):
    """Whether a name (`wing.module`, `wing.package.module`) is that of a file of the package."""
    return (PACKAGE / Path(*name.split("."))).with_suffix(".py").is_file()


@cache
def imports(path, inside=True):
    """Names (`wing.module`, `wing.package.module`) of the project's modules and of other top-level packages a module
    imports: anywhere, or, if not `inside`, when it is imported itself."""
    own, other = set(), set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            other |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["happywhale_nb", *path.parent.relative_to(PACKAGE).parts]
            base = package[: len(package) + 1 - node.level] if node.level else []
            whole = [*base, *(node.module or "").split(".")] if node.module else base
            if whole[0] != "happywhale_nb":
                other.add(whole[0])
            elif is_module(name := ".".join(whole[1:])):
                own.add(name)
            else:
                own |= {".".join([*whole[1:], alias.name]) for alias in node.names}
    return own, other


def without_keras(name):
    """Whether a module (`wing.module`) may import neither Keras nor TensorFlow."""
    return not name.startswith("networks.") or name in NETWORKS_WITHOUT_KERAS | KERAS_IN_FUNCTIONS


@cache
def loads_keras(name):
    """Whether importing a module (`wing.module`) imports Keras, by way of others too."""
    path = PACKAGE / Path(*name.split(".")).with_suffix(".py")
    return not without_keras(name) or any(map(loads_keras, imports(path, inside=False)[0] - {name}))


def test_wings_are_the_folders_of_the_package():
    assert {module_name(path).partition(".")[0] for path in MODULES} == set(WINGS)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_module_imports_from_the_wings_it_may_and_no_development_tool(path):
    wing = module_name(path).partition(".")[0]
    for inside in (True, False):
        own, other = imports(path, inside)
        allowed = {wing, *WINGS[wing].split()} | (INSIDE_FUNCTIONS.get(wing, set()) if inside else set())
        assert not {name for name in own if name.split(".")[0] not in allowed}
        assert not other & {"nbdev", "fastcore", "execnb", "pytest"}
        if without_keras(module_name(path)) and not (inside and module_name(path) in KERAS_IN_FUNCTIONS):
            assert not other & {"tensorflow", "keras", "jax"}


def test_modules_import_each_other_in_no_circle():
    remaining = {module_name(path): imports(path, inside=False)[0] - {module_name(path)} for path in MODULES}
    while free := {name for name, needs in remaining.items() if not needs & set(remaining)}:
        remaining = {name: needs for name, needs in remaining.items() if name not in free}
    assert not remaining


WITHOUT_TENSORFLOW = [name for name in map(module_name, MODULES) if not loads_keras(name)]


@pytest.fixture(scope="module")
def loaded():
    """Packages that a new process has loaded with the package, then with the command, then with all modules but those
    of training, then with what runs a notebook."""
    names = [f"happywhale_nb.{name}" for name in WITHOUT_TENSORFLOW]
    shown = "print(*{name.partition('.')[0] for name in sys.modules})"
    code = f"import sys, happywhale_nb; {shown}; import happywhale_nb.cli.main; {shown}; "
    code += f"import {', '.join(names)}; {shown}\n"
    code += f"with happywhale_nb.workflow.notebooks._without_grammars(): import nbformat; {shown}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_package_and_command_start_without_what_only_their_parts_need(loaded):
    package, command, *_ = loaded
    assert "happywhale_nb" in package and not package & {"click", "numpy", "pandas"}
    assert "click" in command and not command & {"numpy", "pandas", "papermill", "sqlalchemy", "fastapi", "yaml"}


def test_modules_but_those_of_training_load_without_tensorflow(loaded):
    _, _, modules, running = loaded
    assert "pandas" in modules and not modules & {"tensorflow", "keras", "jax", "nbdev"}
    assert "nbformat" in running and "lark" not in running, "its grammars take a second"


def test_public_names_are_those_of_their_modules():
    assert set(happywhale_nb.__all__) <= set(dir(happywhale_nb))
    for name, home in happywhale_nb._HOMES.items():
        assert hasattr(happywhale_nb, name) and (ROOT / "happywhale_nb" / f"{home.replace('.', '/')}.py").is_file()
    with pytest.raises(AttributeError, match="no attribute 'KNNHed'"):
        _ = happywhale_nb.KNNHed


def test_modules_read_and_write_no_pickles():
    """Files of others can be read without running what is in them."""
    doors = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    unsafe = (
        r"joblib\.(load|dump)|allow_pickle=True|safe_mode=False|enable_unsafe|(read|to)_pickle|yaml\.(unsafe|full)_load"
    )
    for path in [*MODULES, *(ROOT / "happywhale_nb" / "catalogue" / "migrations").rglob("*.py")]:
        assert not imports(path)[1] & doors and not re.search(unsafe, path.read_text()), path
    packed = [p.name for p in (ROOT / "happywhale_nb").rglob("*") if p.suffix in {".pkl", ".pickle", ".h5", ".joblib"}]
    assert not packed


def sources(tree):
    """Source text of the exported modules, by their place in the package."""
    package = tree / "happywhale_nb"
    by_hand = {
        package / "_modidx.py",
        *package.rglob("__init__.py"),
        *(package / "catalogue" / "migrations").rglob("*.py"),
    }
    files = set(package.rglob("*.py")) - by_hand
    return {p.relative_to(package).as_posix(): p.read_text() for p in files}


def copy_notebooks(folder):
    """A copy of the project without its package, to export into."""
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Such a copy, shared by the tests of nbdev."""
    return copy_notebooks(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def tree(copied, monkeypatch):
    """The copy as the current folder, of which nbdev, in this process, then reads the settings."""
    from nbdev.config import get_config

    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.chdir(copied)
    get_config.cache_clear()
    yield copied
    get_config.cache_clear()


def test_nbdev_export_of_the_notebooks_is_the_package(tree):
    from nbdev.doclinks import nbdev_export

    nbdev_export.__wrapped__()
    assert sources(tree) == sources(ROOT)


def test_nbdev_clean_cleans_a_notebook_changes_no_other_and_keeps_the_parameters_tags(tree):
    from nbdev.clean import nbdev_clean

    soiled = json.loads((tree / "nbs" / "06_knn.ipynb").read_text())
    for cell in soiled["cells"]:  # as Jupyter leaves a notebook
        cell["metadata"]["collapsed"] = False
        if cell["cell_type"] == "code":
            cell["execution_count"] = 7
    (tree / "nbs" / "06_knn.ipynb").write_text(json.dumps(soiled))
    nbdev_clean.__wrapped__()
    for path in NOTEBOOKS:
        assert (tree / path.relative_to(ROOT)).read_text() == path.read_text(), path.name
    assert "fold" in read_parameters(tree / "nbs" / "03_train.ipynb")
    for path in STAGES:
        assert read_parameters(tree / path.relative_to(ROOT))


@pytest.mark.soak
@pytest.mark.nbdev3
@pytest.mark.timeout(600)
def test_nbdev_3_export_of_the_notebooks_has_the_same_statements(tmp_path):
    """The way forward stays open: nbdev 3, which reads pyproject.toml alone, in an environment of its own."""
    tree, venv = tmp_path / "tree", tmp_path / "venv"
    tree.mkdir()
    copy_notebooks(tree)
    install = [*make_venv(venv), "install", "--quiet", "nbdev>=3,<4"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=280)
    if done.returncode:
        pytest.skip(f"nbdev 3 cannot be installed here, pip needs a package index: {done.stderr.splitlines()[-1]}")
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
    done = subprocess.run([venv / "bin" / "nbdev-export"], cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ours, theirs = sources(ROOT), sources(tree)
    assert set(ours) == set(theirs)
    for name in (name for name in ours if not name.endswith("__init__.py")):
        assert code_lines(ours[name]) == code_lines(theirs[name]), name


def code_lines(text):
    """The statements of a module: both versions of nbdev write them alike, but not the notes around them."""
    return ast.dump(ast.parse(text))


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_parameters_of_a_stage_mean_what_they_mean_in_training(path):
    parameters = read_parameters(path)
    assert {"data_dir", "quick"} <= set(parameters)
    train = read_parameters(ROOT / "nbs" / "03_train.ipynb")
    for name in set(parameters) & set(train):
        assert (parameters[name].type, parameters[name].default) == (train[name].type, train[name].default), name
    assert all(p.help for p in parameters.values())


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_cells_of_a_stage_assign_none_of_its_parameters(path):
    """A lesson that used the name of a parameter would change what the run at the end does."""
    parameters = set(read_parameters(path))
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            symbols = symtable.symtable(cell.source, path.name, "exec").get_symbols()
            assigned = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
            assert not assigned & parameters, cell.source[:80]


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_notebook_refuses_old_names_that_papermill_injects(path):
    parameters, cells = read_parameters(path), nbformat.read(path, as_version=4).cells
    tagged = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    values = {name: parameter.default for name, parameter in parameters.items()}
    for old, new in PARAMETERS.items():
        if new in parameters:
            exec(cells[tagged + 1].source, dict(values))
            with pytest.raises(UserError, match=f"parameter '{old}' is now '{new}'"):
                exec(cells[tagged + 1].source, values | {old: "injected"})


def cell_length(source):
    """How many lines an exported cell has without its docstrings."""
    nodes = ast.walk(ast.parse(source))
    documented = [n.body[0] for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(n)]
    return len(source.splitlines()) - sum(text.end_lineno - text.lineno + 1 for text in documented)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_opens_with_title_and_summary_and_has_short_cells(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and "\n> " in first.source
    for cell in notebook.cells:
        assert cell.source.strip(), f"cell {cell.id} is empty"
        if "#| export" in cell.source.splitlines()[:2]:
            assert cell_length(cell.source) <= 60, cell.source[:80]
        assert not any(output.output_type == "error" for output in cell.get("outputs", []))


def test_readme_is_what_make_writes_from_the_index():
    """As `make readme` does: the index as Markdown, its links changed by the sed scripts of the Makefile."""
    from nbconvert import MarkdownExporter

    recipe = (ROOT / "Makefile").read_text().partition("\nreadme:")[2].partition("\n\n")[0]
    scripts = re.findall(r"-e '([^']+)'", recipe)
    assert "nbconvert" in recipe and "nbs/index.ipynb" in recipe and len(scripts) == 3
    text, _ = MarkdownExporter().from_filename(ROOT / "nbs" / "index.ipynb")
    command = ["sed", "-E", *(word for script in scripts for word in ("-e", script))]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == (ROOT / "README.md").read_text()


# methods that Keras, click and FastAPI call, whose parameters are theirs
INHERITED = {"call", "build", "get_config", "from_config", "compute_output_shape", "invoke", "main", "get_command"}
INHERITED |= {"update_step", "list_commands", "format_commands", "format_help_text", "resolve_command"}


def sections(text):
    """The sections of a Google-style docstring, `{heading: text}`."""
    found = re.split(r"^ *(Args|Attributes|Returns|Yields|Raises|Examples?):(?=\s)", text, flags=re.M)
    return dict(zip(found[1::2], found[2::2], strict=True))


@cache
def protocol_methods():
    """Class and name of each method of a `typing.Protocol` of the package."""
    classes = [node for path in MODULES for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    protocols = [node for node in classes if "Protocol" in map(ast.unparse, node.bases)]
    return {(node.name, f.name) for node in protocols for f in node.body if isinstance(f, ast.FunctionDef)}


def of_a_protocol(text):
    """Whether a docstring, "as `Encoder.embed`", leaves parameters and result to the protocol of its class."""
    named = re.search(r": as `(\w+)\.(\w+)`\.$", text)
    return named is not None and named.groups() in protocol_methods()


def lacks(node):
    """What the docstring of a public function or method lacks: names of parameters and of sections."""
    text = ast.get_docstring(node) or ""
    if of_a_protocol(text):
        return []
    found = sections(text)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    names = [a.arg for a in arguments if a.arg not in ("self", "cls")]
    missing = [name for name in names if not re.search(rf"^ *{name}\b[^:\n]*:", found.get("Args", ""), re.M)]
    inner = [n for n in ast.walk(node) if isinstance(n, ast.Return | ast.Yield | ast.Raise)]
    is_property = {"property", "cached_property"} & {*map(ast.unparse, node.decorator_list)}
    if any(isinstance(n, ast.Return) and n.value for n in inner) and not is_property and node.returns is not None:
        none = ast.unparse(node.returns) == "None"
        missing += [] if none or {"Returns", "Yields"} & set(found) else ["Returns"]
    if any(isinstance(n, ast.Raise) and n.exc for n in inner) and "Raises" not in found:
        missing.append("Raises")
    return missing if text else ["docstring", *missing]


def public_functions(path):
    """Public functions, and methods of public classes, inherited ones too, that are no commands: those whose docstrings
    are read."""
    for node in ast.parse(path.read_text()).body:
        is_public_class = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        methods = [method for method, _ in stage.methods(path, node).values()] if is_public_class else []
        for inner in methods if isinstance(node, ast.ClassDef) else [node]:
            if not isinstance(inner, ast.FunctionDef) or inner.name.startswith("_") or inner.name in INHERITED:
                continue
            if not re.search(r"\b(click|command|group)\b", " ".join(map(ast.unparse, inner.decorator_list))):
                yield inner


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_private_bases_of_classes_are_shared(path):
    """Methods stand in their class: a private base that one class alone has is a class in two pieces."""
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    private = {node.name for node in classes if node.name.startswith("_")}
    bases = Counter(base.id for node in classes for base in node.bases if isinstance(base, ast.Name))
    assert not [name for name in private if bases[name] == 1]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_public_functions_of_a_module_have_complete_docstrings_and_types(path):
    for node in public_functions(path):
        assert not lacks(node), node.name
        arguments = [a for a in [*node.args.args, *node.args.kwonlyargs] if a.arg not in ("self", "cls")]
        assert all(a.annotation for a in arguments) and node.returns is not None, node.name


def test_files_name_no_package_index_and_no_place_on_one_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    files = listed.stdout.split()
    assert len(files) > 100
    forbidden = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "/ro" + "ot/", "/ho" + "me/"]
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".ipynb", ".md", ".ini", ".toml", ".lock", ".html", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not [word for word in forbidden if word in text], name


def test_lock_pins_every_requirement_with_a_hash():
    lock = (ROOT / "requirements.lock").read_text()
    blocks = [b for b in lock.replace("\\\n", " ").splitlines() if b and not b.startswith("#")]
    assert blocks and all("==" in b and "--hash=sha256:" in b for b in blocks)
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    elsewhere = {"hubs_requirements", "gpu_requirements", "jax-gpu_requirements"}  # for who asks; see settings.ini
    kinds = [key for key in settings["DEFAULT"] if key.endswith("requirements") and key not in elsewhere]
    wanted = " ".join(settings["DEFAULT"][kind] for kind in kinds).split()
    pinned = {b.split("==")[0].strip().lower() for b in blocks}
    for requirement in wanted:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].lower().replace("_", "-")
        assert name in pinned, name


def test_keras_is_one_that_runs_no_code_of_a_model_file():
    settings = (ROOT / "settings.ini").read_text()
    least = re.search(r"\bkeras>=(\d+)\.(\d+)", settings)
    assert tuple(map(int, least.groups())) >= (3, 12), "its safe mode could be passed by up to 3.11"


def test_version_is_that_of_the_settings_alone():
    settings = (ROOT / "settings.ini").read_text()
    assert f"version = {happywhale_nb.__version__}\n" in settings
    assert happywhale_nb.__version__ not in (ROOT / "setup.py").read_text()


def test_paper_map_is_what_its_rows_and_the_measured_results_make():
    done = subprocess.run([sys.executable, "docs/paper_map.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_paper_map_names_what_is_there():
    cells = json.loads((ROOT / "nbs" / "paper_map.ipynb").read_text())["cells"]
    rows = [line for cell in cells for line in "".join(cell["source"]).splitlines() if line.startswith("|")]
    assert len(rows) > 30
    text = "\n".join(rows)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "nbs" / target).is_file(), target
    names = {module_name(p): {n.name for n in ast.parse(p.read_text()).body if hasattr(n, "name")} for p in MODULES}
    constants = {module_name(p): p.read_text() for p in MODULES}
    found = re.findall(r"`([a-z_]+\.[a-z_.]+)\.([A-Za-z_0-9]+)`", text)
    assert len(found) > 20
    for module, name in found:
        assert name in names[module] or f"\n{name} = " in constants[module], f"{module}.{name}"
    for path in re.findall(r"`((?:tests|bench)/[a-z_]+\.py)`", text):
        assert (ROOT / path).is_file(), path


def test_each_fault_of_the_mutations_is_found_once_in_its_module():
    faults = json.loads((ROOT / "tests" / "mutation" / "mutants.json").read_text(encoding="utf-8"))
    for fault in faults:
        module = PACKAGE / f"{fault['module'].replace('.', '/')}.py"
        assert module.read_text(encoding="utf-8").count(fault["before"]) == 1, fault["id"]
        assert fault["before"] != fault["after"] and (ROOT / fault["notebook"]).is_file(), fault["id"]


BUILT_IN = {"parametrize", "filterwarnings", "skipif", "skip", "xfail", "usefixtures", "timeout"}


@pytest.mark.parametrize("path", TESTS, ids=lambda p: p.stem)
def test_names_and_markers_of_tests_follow_the_rules(path):
    """`test_<unit>_<condition>_<expectation>`, a class as it is written; what a marker needs is in pyproject.toml."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    declared = {line.partition(":")[0] for line in options["markers"]}
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.name.startswith("test")]
    assert not [name for name in names if not re.fullmatch(r"test_[A-Za-z0-9]+(_[a-z0-9]+){2,}", name)]
    marks = {n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pytest.mark"}
    assert marks <= declared | BUILT_IN
