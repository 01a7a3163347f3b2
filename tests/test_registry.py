"""One record and one notebook make a stage: a study plans and runs it, `compare` compares it, Kaggle's folder has it.

The package is copied and one record more written under its registry, as somebody would who adds a stage. The notebooks
are stand-ins.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from happywhale_nb.workflow.registry import STAGES, attached_stages, reads_from

BIN, ROOT = Path(sys.executable).parent, Path(__file__).resolve().parents[1]
RECORD = """
register(
    Stage(
        name="poster",
        notebook="10_poster",
        summary="Draw a poster of a model's answers.",
        scope="model",
        inputs=(Input("knn", ("knn.json",)),),
        outputs=("poster.json", "poster.csv"),
        headline=("poster.score",),
        ranges={"width": Range(1, 100)},
        study=InStudy(chosen=True, resources=Resources(cores=1)),
        accelerators=("gpu",),
    )
)
"""
PARAMETERS = """
data_dir: str = ""  # a folder in Happywhale's layout
study: str = ""  # results are in outputs/<study>
model: str = "basic_cnn"  # the model
width: int = 10  # of the poster
quick: bool = False  # small and fast
"""
CODE = """
from happywhale_nb.core.artifacts import read_json, write_json
from happywhale_nb.core.paths import study_dir
place = study_dir(study, data_dir, quick) / model
score = read_json(place / "knn.json")["oof"]["map5"] * width
(place / "poster.csv").write_text(f"width\\n{width}\\n")
write_json(place / "poster.json", {"poster": {"score": score}})
"""
PACK = """
from pathlib import Path
from happywhale_nb.workflow import kaggle
kaggle.build_wheel = lambda folder: (Path(folder) / "happywhale_nb.whl").touch()
kaggle.build_folder("packed", "jo", "whales", {"width": "7"}, machine="gpu")
"""


@pytest.fixture(scope="module")
def extended(checkout, tmp_path_factory):
    """A checkout with a package of its own that has one stage more."""
    folder = tmp_path_factory.mktemp("extended") / "checkout"
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns("outputs", ".snakemake"))
    shutil.copytree(ROOT / "happywhale_nb", folder / "happywhale_nb")
    with (folder / "happywhale_nb" / "workflow" / "registry.py").open("a", encoding="utf-8") as file:
        file.write(RECORD)
    parameters = nbformat.v4.new_code_cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# A poster"), parameters, nbformat.v4.new_code_cell(CODE.strip())]
    metadata = nbformat.read(folder / "nbs" / "06_knn.ipynb", as_version=4).metadata
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "nbs" / "10_poster.ipynb")
    return folder


def call(folder, *words):
    """A command of the extended package; its exit status and all that it says."""
    command = [sys.executable, "-c", words[1]] if words[0] == "-c" else [BIN / "happywhale", *map(str, words)]
    env = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=200
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def study_file(extended, tiny):
    """A study of one model with the new stage and as little else as can be."""
    content = {"study": "posters", "data_dir": str(tiny), "folds": 2, "quick": True, "models": {"basic_cnn": {}}}
    content |= dict.fromkeys(("eda", "gradcam", "robustness", "blend"), False) | {"poster": {"width": 20}}
    content |= {"resources": {stage: {"cores": 1} for stage in ("train", "knn", "poster", "report")}}
    (extended / "posters.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return extended / "posters.yaml"


@pytest.fixture(scope="module")
def finished(extended, study_file):
    """The folder of that study, run."""
    status, text = call(extended, "run", study_file)
    assert status == 0 and "[4/5] " in text and "10_poster basic_cnn" in text, text
    return extended / "outputs" / "posters-quick"


@pytest.mark.soak
def test_run_of_a_study_with_one_stage_more_runs_it_and_then_finds_it_done(extended, study_file, finished):
    status, text = call(extended, "run", study_file, "--dry-run", "-p", "study", "planned")
    assert status == 0 and "10_poster basic_cnn" in text and "5 of 5 notebooks would be run" in text, text
    assert json.loads((finished / "basic_cnn" / "poster.json").read_text()) == {"poster": {"score": 10.0}}
    assert (finished / "basic_cnn" / "10_poster.ipynb").is_file()
    assert len(list((finished / "basic_cnn").glob("10_poster-*.run.done"))) == 1
    status, text = call(extended, "run", study_file)
    assert status == 0 and "Nothing to do, all 5 notebooks" in text
    status, text = call(extended, "run", study_file, "--dry-run", "-p", "width", "30")
    waiting = [line for line in text.splitlines() if line.startswith("run ")]
    assert status == 0 and len(waiting) == 1 and "10_poster basic_cnn" in waiting[0]


@pytest.mark.soak
@pytest.mark.slow
def test_command_of_one_stage_more_has_help_checks_its_ranges_and_says_its_headline(extended, finished, tiny):
    status, text = call(extended, "--help")
    assert status == 0 and "poster " in text and "Draw a poster of a model's answers." in text
    words = ("poster", "-p", "data_dir", tiny, "-p", "study", "posters", "-p", "quick", "true", "-p", "width")
    status, text = call(extended, *words, "101")
    assert (status, text) == (2, "error: width=101: from 1 to 100\n")
    status, text = call(extended, *words, "20")
    assert status == 0 and text.endswith("poster.score 10.000\n")


@pytest.mark.soak
def test_run_of_a_study_that_misspells_one_stage_more_names_the_place(extended, study_file):
    content = yaml.safe_load(study_file.read_text())
    for spoilt, told in (
        ({"poster": {"widht": 3}}, "posters.yaml: poster: unknown parameter 'widht'; did you mean 'width'?"),
        ({"poster": {"models": "swin"}}, "posters.yaml: poster.models: 'swin' is not among the models (basic_cnn)"),
    ):
        path = study_file.with_name("spoilt-posters.yaml")
        path.write_text(yaml.safe_dump(content | spoilt))
        status, text = call(extended, "run", path)
        assert status == 2 and told in text


@pytest.mark.soak
@pytest.mark.slow
def test_compare_of_two_studies_with_one_stage_more_names_its_files_and_its_headline_first(extended, finished):
    other = shutil.copytree(finished, finished.with_name("other"))
    assert call(extended, "compare", finished, other)[0] == 0
    (other / "basic_cnn" / "poster.json").write_text('{"poster": {"score": 12.0, "area": 1}}')
    (other / "basic_cnn" / "poster.csv").write_text("width\n21\n")
    status, text = call(extended, "compare", finished, other)
    assert status == 1 and "basic_cnn/poster.csv: 1 of 1 rows differ" in text
    figures = [line for line in text.splitlines() if line.startswith("basic_cnn/poster.json")]
    assert figures[0] == "basic_cnn/poster.json poster.score: 10 → 12 (+2)" and len(figures) == 2
    shutil.rmtree(other)


@pytest.mark.soak
def test_kaggle_folder_with_one_stage_more_attaches_what_it_reads(extended):
    status, text = call(extended, "-c", PACK)
    assert status == 0, text
    card = json.loads((extended / "packed" / "10_poster" / "kernel-metadata.json").read_text())
    assert card["kernel_sources"] == ["jo/happywhale-06-knn"] and card["enable_gpu"] and not card["enable_tpu"]
    assert "width: int = 7  # of the poster" in (extended / "packed" / "10_poster" / "10_poster.ipynb").read_text()


def test_reads_from_of_scopes_is_the_same_model_and_the_same_fold():
    jobs = [(name, model, fold) for name in STAGES for model in ("", "a", "a@3", "b") for fold in ("", "0", "1")]
    read = {job: {other for other in jobs if reads_from(job, other)} for job in jobs}
    assert ("train", "a", "1") in read["knn", "a@3", ""] and ("train", "b", "1") not in read["knn", "a@3", ""]
    assert ("knn", "a", "") not in read["knn", "a@3", ""] and ("knn", "a@3", "") not in read["gradcam", "a", "0"]
    assert ("knn", "b", "") in read["blend", "", ""] and ("eda", "", "") in read["knn", "a", ""]


def test_gradcam_and_report_read_the_training_themselves():
    read = {name: {source.stage: source.files for source in STAGES[name].inputs} for name in ("gradcam", "report")}
    network = ("config.json", "model.keras", "encoder.json", "adapter.npz")
    assert read["gradcam"]["train"] == (*network, "embeddings.parquet", "centres.parquet")
    assert read["report"]["train"] == ("config.json", "history.csv", "embeddings.parquet")
    assert reads_from(("gradcam", "a", "0"), ("train", "a", "0"))
    assert not reads_from(("gradcam", "a", "0"), ("train", "a", "1"))
    assert attached_stages("gradcam") == ["knn"], "Kaggle attaches no file twice"


def test_attached_stages_bring_along_all_that_is_read_but_not_attached():
    def brought(name):
        near = attached_stages(name)
        return {*near}.union(*map(brought, near))

    for name, stage in STAGES.items():
        assert {source.stage for source in stage.inputs if source.on_kaggle} <= brought(name), name
