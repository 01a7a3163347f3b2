"""`happywhale kaggle build`: what Kaggle's client is given, and its notebooks on a stand-in for Kaggle's machines.

The stand-in is a folder with `input` and `working`, and an environment that holds what Kaggle's TPU image holds and no
more. Kaggle itself, its images and its TPUs are not tried here.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.workflow.kaggle import kaggle_user
from happywhale_nb.workflow.notebooks import read_parameters

ROOT = Path(__file__).parents[1]
SLUG = "happy-whale-and-dolphin"
GIVEN = ["-p", "folds", "2", "-p", "fold", "1", "-p", "quick", "true", "-p", "neighbors", "7"]
GIVEN += ["-p", "overrides", "backbone=basic_cnn"]  # trains quickly


def build(target, *words, user="jo"):
    return CliRunner().invoke(main, ["kaggle", "build", "--to", str(target), "--user", user, *map(str, words)])


@pytest.fixture
def same_wheel(built, monkeypatch):
    """Builds take the wheel that is built already."""
    (wheel,) = (built / "dataset").glob("*.whl")
    monkeypatch.setattr("happywhale_nb.workflow.kaggle.build_wheel", lambda folder: shutil.copy(wheel, folder))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A build for a TPU: one training that stops at once, for it has a millionth of an hour."""
    target = tmp_path_factory.mktemp("built") / "kaggle"
    done = build(target, *GIVEN, "-p", "max_hours", "1e-6", "--continue", "--weights", "jo/weights")
    assert done.exit_code == 0, done.output
    return target


def cards(folder):
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.glob("*/kernel-metadata.json"))}


def test_kaggle_build_gives_each_stage_a_folder_with_metadata_that_name_its_sources(built):
    found = cards(built)
    assert set(found) == {p.stem for p in (ROOT / "nbs").glob("0[1-8]*.ipynb")} and len(found) == 8
    fields = {"id", "title", "code_file", "language", "kernel_type", "is_private", "enable_gpu", "enable_tpu"}
    fields |= {"enable_internet", "machine_shape", "model_sources"}
    fields |= {"dataset_sources", "competition_sources", "kernel_sources"}
    ids = {card["id"] for card in found.values()}
    for name, card in found.items():
        assert set(card) == fields and card["enable_internet"] is False and card["is_private"] is True
        assert card["id"] == "jo/happywhale-" + name.replace("_", "-") == "jo/" + card["title"].replace(" ", "-")
        assert card["competition_sources"] == [SLUG] and set(card["kernel_sources"]) <= ids
        assert card["dataset_sources"] == ["jo/happywhale-wheels", "jo/weights"]
        assert (built / name / card["code_file"]).is_file()
    assert {name for name, card in found.items() if card["enable_tpu"]} == {"03_train", "05_robustness"}
    assert {card["machine_shape"] for card in found.values() if card["enable_tpu"]} == {"TpuV5E8"}
    assert {card["machine_shape"] for card in found.values() if not card["enable_tpu"]} == {""}
    assert found["06_knn"]["kernel_sources"] == found["03_train"]["kernel_sources"] == ["jo/happywhale-03-train"]
    for name in ("07_blending", "04_gradcam"):
        assert found[name]["kernel_sources"] == ["jo/happywhale-06-knn"]
    dataset = json.loads((built / "dataset" / "dataset-metadata.json").read_text())
    assert dataset["id"] == "jo/happywhale-wheels" and len(dataset["licenses"]) == 1


def test_kaggle_build_makes_notebooks_that_install_first_and_have_the_chosen_values(built):
    for name, card in cards(built).items():
        path = built / name / card["code_file"]
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert set(notebook.metadata) <= {"kernelspec", "language_info"}
        first = notebook.cells[0]
        assert first.cell_type == "code" and "--no-index" in first.source and "restore_outputs()" in first.source
        assert ('os.environ["KERAS_BACKEND"] = "jax"' in first.source) == card["enable_tpu"]
        assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
        assert ("offer_submission(folder)" in notebook.cells[-1].source) == (name == "07_blending")
        original = read_parameters(ROOT / "nbs" / f"{name}.ipynb")
        values = {n: p.default for n, p in read_parameters(path).items()}
        chosen = {"folds": 2, "fold": 1, "quick": True, "neighbors": 7, "max_hours": 1e-6}
        chosen["overrides"] = "backbone=basic_cnn"
        assert values == {n: chosen.get(n, p.default) for n, p in original.items()}, name


def test_build_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = (built / "dataset").glob("*.whl")
    assert {p.name for p in (built / "dataset").iterdir()} == {wheel.name, "dataset-metadata.json"}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for path in (ROOT / "happywhale_nb").glob("*.py"):
            assert archive.read(f"happywhale_nb/{path.name}") == path.read_bytes()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"happywhale_nb"}
    assert not any(name.endswith(".pyc") for name in names)
    copies = [name for name in names if name.endswith(".ipynb")]
    assert len(copies) == len(list((ROOT / "nbs").glob("[0-9]*.ipynb")))
    assert all(name.startswith("happywhale_nb/workflow/copies/nbs/") for name in copies)


def test_kaggle_build_of_two_folds_makes_two_trainings_that_knn_takes_up_both(same_wheel, tmp_path):
    assert build(tmp_path / "to", "--fold", 0, "--fold", 3, "--accelerator", "gpu", "--prefix", "b5").exit_code == 0
    found = cards(tmp_path / "to")
    assert found["06_knn"]["kernel_sources"] == ["jo/b5-03-train-fold0", "jo/b5-03-train-fold3"]
    assert found["03_train-fold3"]["kernel_sources"] == []
    assert {found[f"03_train-fold{k}"]["machine_shape"] for k in (0, 3)} == {"NvidiaTeslaT4"}
    assert not any(card["enable_tpu"] for card in found.values())
    defaults = read_parameters(tmp_path / "to" / "03_train-fold3" / "03_train.ipynb")
    assert (defaults["fold"].default, defaults["max_hours"].default) == (3, 11.0)


def test_kaggle_build_makes_folders_that_kaggle_s_client_takes_as_they_are(built, monkeypatch, tmp_path, capsys):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    client = pytest.importorskip("kaggle.api.kaggle_api_extended", reason="Kaggle's client is an extra").KaggleApi()
    sent = []
    service = SimpleNamespace(save_kernel=sent.append)
    service = SimpleNamespace(kernels=SimpleNamespace(kernels_api_client=service))
    monkeypatch.setattr(client, "build_kaggle_client", lambda: nullcontext(service))
    for name in cards(built):
        client.kernels_push(str(built / name))
    assert "surprising" not in capsys.readouterr().out  # what it says of a title that does not give the slug
    assert len(sent) == len(cards(built)) and not any(request.enable_internet for request in sent)
    assert not any(request.docker_image for request in sent)
    (train,) = [request for request in sent if request.slug == "jo/happywhale-03-train"]
    assert train.machine_shape == "TpuV5E8" and train.kernel_data_sources == ["jo/happywhale-03-train"]
    assert '"metadata": {"kernelspec"' in train.text
    # the client's checks come before the question whether there is such a dataset: "yes" ends it there
    client.config_values[client.CONFIG_NAME_USER] = "jo"
    monkeypatch.setattr(client, "dataset_status", lambda name: "ready")
    assert "already in use" in client.dataset_create_new(str(built / "dataset")).error


MISTAKES = {
    "nobody's": (["--user", ""], "--user NAME"),
    "a displayed name": (["--user", "Jo Whale"], "not a Kaggle name"),
    "unknown parameter": (["-p", "fould", "2"], "did you mean 'fold'?"),
    "unknown preset": (["-p", "preset", "smal_resnet_arcface"], "did you mean 'small_resnet_arcface'?"),
    "weights that are not there": (["-p", "preset", "resnet50_arcmargin"], "--weights USER/SLUG"),
    "weights without their owner": (["--weights", "mine"], "a dataset's USER/SLUG"),
    "a fold twice": (["--fold", "1", "--fold", "1"], "each once"),
    "a name too long": (["--prefix", "a-very-long-name-" * 3], "6 to 50"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_kaggle_build_with_a_mistake_says_so_before_anything_is_written(mistake, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    monkeypatch.delenv("KAGGLE_CONFIG_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    words, message = MISTAKES[mistake]
    done = build(tmp_path / "to", *words)
    assert done.exit_code == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_kaggle_user_is_the_one_of_the_client_s_file_unless_given(tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "kaggle.json").write_text('{"username": "ann", "key": "secret"}')
    assert kaggle_user() == "ann" and kaggle_user("jo") == "jo"


def test_kaggle_build_replaces_only_a_folder_of_its_own(built, same_wheel, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = build(tmp_path)
    assert done.exit_code == 2 and "was not made by this command" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    again = shutil.copytree(built, tmp_path / "again")
    (again / "old").touch()
    assert build(again).exit_code == 0 and not (again / "old").exists()


# what Kaggle's TPU image has of what the project imports; its other images have more
IMAGE = "tensorflow keras jax jaxlib numpy pandas scipy scikit-learn matplotlib seaborn pillow pyarrow opencv-python"
IMAGE += " opencv-python-headless tqdm papermill ipykernel nbclient nbformat jinja2"
LACKING = ("nbdev", "fastcore", "execnb", "ghapi", "imagehash", "snakemake", "happywhale_nb")


def distributions(names):
    """The installed ones of the distributions `names`, and what they require."""
    found, left = {}, list(names)
    while left:
        name = left.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if distribution.name not in found:
            found[distribution.name] = distribution
            needed = [Requirement(text) for text in distribution.requires or []]
            left += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The Python of an environment that stands for Kaggle's image."""
    venv = tmp_path_factory.mktemp("image") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=120)
    (packages,) = venv.glob("lib/*/site-packages")
    for distribution in distributions(IMAGE.split()):
        for part in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / part).exists():
                (packages / part).symlink_to(distribution.locate_file(part))
    return venv / "bin" / "python"


def clean(root):
    """The environment variables on the stand-in at `root`."""
    dropped = ("PYTHON", "HAPPYWHALE", "KERAS", "KAGGLE", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"HAPPYWHALE_KAGGLE": str(root), "HOME": str(root), "PYTHONNOUSERSITE": "1", "JAX_PLATFORMS": "cpu"}


def version(image, root, notebook, inputs):
    """Run a version of a notebook file as Kaggle does: `inputs` (place under `input` → folder) attached, `working`
    empty. Returns the executed notebook and the folder that is the version's output."""
    shutil.rmtree(root / "input", ignore_errors=True)
    shutil.rmtree(root / "working", ignore_errors=True)
    (root / "working").mkdir(parents=True)
    for place, folder in inputs.items():
        (root / "input" / place).parent.mkdir(parents=True, exist_ok=True)
        (root / "input" / place).symlink_to(folder)
    before = {folder: listing(folder) for folder in inputs.values()}
    command = [image, "-m", "papermill", notebook, "__notebook__.ipynb", "--no-progress-bar"]
    done = subprocess.run(command, cwd=root / "working", env=clean(root), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert before == {folder: listing(folder) for folder in inputs.values()}
    output = Path(shutil.copytree(root / "working", root / "versions" / f"{len(list(root.glob('versions/*')))}"))
    return nbformat.read(output / "__notebook__.ipynb", as_version=4), output


def listing(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def seen(notebook):
    """All text that a notebook's cells have printed or shown."""
    texts = [
        o.get("text", "") or o.get("data", {}).get("text/plain", "")
        for c in notebook.cells
        for o in c.get("outputs", [])
    ]
    return "\n".join(texts)


@pytest.mark.soak
@pytest.mark.wheel
def test_kaggle_notebooks_on_a_stand_in_train_in_two_versions_and_answer(image, built, tiny, tmp_path):
    code = f"import importlib.util as u; print([n for n in {LACKING} if u.find_spec(n)])"
    there = subprocess.run(
        [image, "-c", code], env=clean(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert there.stdout == "[]\n", there.stderr
    train, wheels = built / "03_train" / "03_train.ipynb", built / "dataset"

    new = {f"competitions/{SLUG}": tiny, "datasets/jo/happywhale-wheels": wheels}
    notebook, first = version(image, tmp_path, train, new)
    assert "no earlier outputs" in seen(notebook) and "stopped after epoch 1 of 2" in seen(notebook)
    model = f"outputs/{SLUG}-quick/small_resnet_arcface"
    assert not (first / model / "fold1" / "config.json").exists()
    assert len(list(image.parents[1].glob("lib/*/site-packages/happywhale_nb-*.dist-info"))) == 1
    assert not (first / model / "fold0").exists()

    notebook, second = version(image, tmp_path, train, new | {"notebooks/jo/happywhale-03-train": first})
    assert "restored from" in seen(notebook) and "stopped after epoch 1 of 2" not in seen(notebook)
    record = json.loads((second / model / "fold1" / "config.json").read_text())
    assert (record["parameters"]["fold"], record["versions"]["backend"]) == (1, "jax")
    assert record["protocol"]["folds"] == 2
    history = pd.read_csv(second / model / "fold1" / "history.csv")
    begun = json.loads((first / model / "fold1" / "resume.json").read_text())["history"]
    assert history["epoch"].tolist() == [1, 2] and history["loss"][0] == pytest.approx(begun[0]["loss"])
    assert not list((second / model / "fold1").glob("resume*"))

    old = {SLUG: tiny, "happywhale-wheels": wheels, "happywhale-03-train": second}
    notebook, third = version(image, tmp_path, built / "06_knn" / "06_knn.ipynb", old)
    found = json.loads((third / model / "knn.json").read_text())
    assert list(found["folds"]) == ["1"]
    answers = pd.read_csv(third / model / "fold1" / "oof.csv")
    assert len(answers) == found["oof"]["n"] > 10
    assert len(pd.read_csv(third / model / "fold1" / "test.csv")) == 10


def test_restore_outputs_of_attached_weights_puts_them_where_keras_looks_instead_of_downloading(tmp_path):
    (tmp_path / "input" / "weights").mkdir(parents=True)
    (tmp_path / "input" / "weights" / "some_notop.h5").write_bytes(b"numbers")
    code = """
from happywhale_nb.workflow.kaggle import restore_outputs
print(restore_outputs())
import hashlib, keras
sum = hashlib.sha256(b"numbers").hexdigest()
origin = "http://localhost:9/some_notop.h5"
print(keras.utils.get_file("some_notop.h5", origin, cache_subdir="models", file_hash=sum))"""
    env = os.environ | {
        "HAPPYWHALE_KAGGLE": str(tmp_path),
        "KERAS_HOME": str(tmp_path / "keras"),
        "KERAS_BACKEND": "jax",
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "weights for Keras: some_notop.h5",
        str(tmp_path / "keras/models/some_notop.h5"),
    ]


def test_train_notebook_out_of_time_fails_but_on_kaggle_where_its_output_is_kept():
    notebook = nbformat.read(ROOT / "nbs" / "03_train.ipynb", as_version=4)
    (last,) = [cell.source for cell in notebook.cells if "raise UserError(unfinished)" in cell.source]
    told = "small, fold 0: stopped after epoch 1 of 2"

    def run(unfinished, kaggle):
        exec(last, {"unfinished": unfinished, "on_kaggle": lambda: kaggle, "UserError": UserError})

    with pytest.raises(UserError, match=told):
        run(told, kaggle=False)
    run(told, kaggle=True)
    run(None, kaggle=False)


@pytest.mark.soak
@pytest.mark.trains
def test_train_command_out_of_time_fails_and_keeps_what_goes_on_when_run_again(project, tiny):
    command = [Path(sys.executable).with_name("happywhale"), "train", "-p", "data_dir", tiny, "-p", "study", "limited"]
    command += ["-p", "quick", "true", "-p", "overrides", "backbone=basic_cnn", "-p", "max_hours"]
    place = project / "outputs" / "limited-quick" / "small_resnet_arcface" / "fold0"
    done = subprocess.run([*command, "1e-6"], cwd=project, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "stopped after epoch 1 of 2" in done.stderr and "Traceback" not in done.stderr
    assert not (place / "config.json").exists()
    assert [row["epoch"] for row in json.loads((place / "resume.json").read_text())["history"]] == [1]
