"""A study as a file, and its runner: which jobs there are, which are run, and what mistakes and faults leave behind.

The notebooks are stand-ins (`standins.py`); test_whole_study.py runs the real ones.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from click.testing import CliRunner

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.networks.presets import configure
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.workflow.assets import find_snakefile
from happywhale_nb.workflow.provenance import done_file, record_paths
from happywhale_nb.workflow.study import (
    all_needs,
    check_study,
    override,
    plan_states,
    read_study,
    study_jobs,
    study_notes,
)

BIN, ROOT = Path(sys.executable).parent, Path(__file__).resolve().parents[1]
SMALL = {"folds": 2, "seed": 3, "quick": True, "models": {"basic_cnn": {}}, "gradcam": False, "robustness": False}
REST = {"03_train basic_cnn fold 1", "06_knn basic_cnn", "07_blending", "08_report"}


@pytest.fixture(autouse=True)
def here(checkout, monkeypatch):
    """The command finds the project by the folder it is called in."""
    monkeypatch.chdir(checkout)


def happywhale(checkout, *words, **how):
    """The command in a process of its own."""
    how = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 200} | how
    return subprocess.run([str(BIN / "happywhale"), *map(str, words)], cwd=checkout, **how)


def write_study(checkout, tiny, name, **more):
    path = checkout / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"study": name, "data_dir": str(tiny)} | SMALL | more, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def finished(checkout, tiny):
    """A study of two folds, run whole: its file, its folder and what the command said."""
    path = write_study(checkout, tiny, "finished")
    done = happywhale(checkout, "run", path)
    assert done.returncode == 0, done.stderr[-3000:]
    return path, checkout / "outputs" / "finished-quick", done


@pytest.fixture
def half(finished, checkout, tiny, request):
    """A copy of the finished study without fold 1 and all that comes after it: its file and its folder."""
    name = f"half{abs(hash(request.node.name)) % 10**6}"
    path, folder = write_study(checkout, tiny, name), checkout / "outputs" / f"{name}-quick"
    shutil.copytree(finished[1], folder)  # keeps the files' times
    shutil.rmtree(folder / "basic_cnn" / "fold1")
    for notebook in ("basic_cnn/06_knn.ipynb", "07_blending.ipynb", "08_report.ipynb"):
        done_file(record_paths(folder / notebook)[0]).unlink()
    return path, folder


def waiting(path, **given):
    """Titles of the jobs whose done file is missing, and of those that need them."""
    _, jobs = study_jobs(override(read_study(path), given))
    missing = {job for job in jobs if not job.done_file.is_file()}
    return {job.title for job in jobs if job in missing or all_needs(job) & missing}


def dry_run(path, *words):
    """The states that a dry run prints: title → state."""
    done = CliRunner().invoke(main, ["run", str(path), "--dry-run", *words])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith(("run ", "done "))]
    return {line[6:57].strip(): line[57:].strip() or "done" for line in lines}


# --- which jobs are run


def test_run_of_a_study_runs_each_notebook_once_and_then_none(finished, checkout):
    path, folder, done = finished
    steps = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(steps) == 6 and "[2/6] 03_train basic_cnn fold 0" in steps
    assert (folder / "submission.csv").is_file() and "MAP@5 of the submission" in done.stdout
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "study.yaml"}
    again = happywhale(checkout, "run", path)
    assert again.returncode == 0 and "[" not in again.stderr and "Nothing to do, all 6 notebooks" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert waiting(path) == set()


def test_snakemake_alone_on_a_finished_study_has_nothing_to_do(finished, checkout):
    path, _, _ = finished
    words = ["--snakefile", find_snakefile(), "--configfile", path, "--cores", "1", "--dry-run"]
    done = subprocess.run([BIN / "snakemake", *words], cwd=checkout, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr


def test_run_dry_run_of_a_new_study_draws_the_plan_and_runs_nothing(finished, checkout, tiny):
    path = write_study(checkout, tiny, "planned", models={"basic_cnn": {"snapshots": [1]}, "small_resnet_arcface": {}})
    states = dry_run(path)
    assert len(states) == 1 + 4 + 3 + 1 + 1 and set(states.values()) == {"not run yet"}
    assert sorted(p.name for p in (checkout / "outputs" / "planned-quick").iterdir()) == ["check.json", "plan.svg"]
    picture = (checkout / "outputs" / "planned-quick" / "plan.svg").read_text()
    assert picture.rstrip().endswith("</svg>") and picture.count("<!-- run  ") == 10


def test_run_dry_run_without_a_file_plans_a_study_of_one_model(finished, checkout, tiny):
    words = ["-p", "data_dir", tiny, "-p", "study", "one", "-p", "folds", "3", "-p", "preset", "basic_cnn"]
    done = CliRunner().invoke(main, ["run", "--dry-run", *map(str, words)])
    assert done.exit_code == 0 and "9 of 9 notebooks would be run" in done.output, done.output
    assert (checkout / "outputs" / "one" / "plan.svg").is_file()


def test_plan_states_with_a_missing_fold_names_it_and_what_follows(half):
    path, _ = half
    content = read_study(path)
    _, jobs = study_jobs(content)
    states = {job.title: state for job, state in zip(jobs, plan_states(content, jobs), strict=True)}
    assert {title for title, state in states.items() if state != "done"} == REST == waiting(path)
    assert states["03_train basic_cnn fold 1"] == "not run yet"


def test_study_jobs_after_a_change_are_those_it_touches(finished, tiny):
    path, _, _ = finished
    assert waiting(path, alpha="0.3") == REST - {"03_train basic_cnn fold 1"}
    assert waiting(path, examples="5") == {"08_report"}
    assert len(waiting(path, seed="1", study="other")) == 6
    moved = tiny.parent / "moved"
    if not moved.exists():
        moved.symlink_to(tiny)
    assert waiting(path, data_dir=str(moved)) == set(), "where the data lie is no change"


def test_study_jobs_after_a_fold_was_added_wait_for_every_fold(finished):
    path, _, _ = finished
    _, jobs = study_jobs(read_study(path))
    knn = next(job for job in jobs if job.stage == "knn")
    assert {need.title for need in knn.needs} == {"01_eda", *(f"03_train basic_cnn fold {k}" for k in (0, 1))}
    assert all_needs(jobs[-1]) == set(jobs[:-1])


@pytest.mark.soak
@pytest.mark.slow
def test_run_notices_results_made_by_hand_with_other_parameters(finished, checkout, tiny):
    _, folder, _ = finished
    place = folder.with_name("byhand-quick")
    shutil.copytree(folder, place)
    by_hand = write_study(checkout, tiny, "byhand")
    words = ("-p", "data_dir", tiny, "-p", "study", "byhand", "-p", "quick", "true", "-p", "model", "basic_cnn")
    assert waiting(by_hand) == set()
    done = happywhale(checkout, "knn", *words, "-p", "folds", "2", "-p", "seed", "3", "-p", "alpha", "0.3")
    assert done.returncode == 0, done.stderr
    states = dry_run(by_hand)
    assert states["06_knn basic_cnn"] == "parameters or data have changed"
    assert {title for title, state in states.items() if state != "done"} == REST - {"03_train basic_cnn fold 1"}


@pytest.mark.soak
@pytest.mark.slow
def test_run_of_work_found_done_keeps_its_record(half, checkout, tiny):
    path, folder = half
    blend = record_paths(folder / "07_blending.ipynb")[0]
    before = blend.read_bytes()
    done_file(blend).unlink(missing_ok=True)
    shutil.copytree(folder.with_name("finished-quick") / "basic_cnn", folder / "basic_cnn", dirs_exist_ok=True)
    done = happywhale(checkout, "run", path, "--snakemake", "--until 07_blending")
    assert done.returncode == 1, "no report asked for"
    assert blend.read_bytes() == before and done_file(blend).is_file()


def test_study_folds_of_a_study_keep_its_seed_and_refuse_another(finished, checkout, tiny):
    seeded = write_study(checkout, tiny, "seeded", seed=7)
    dataset, place = read_dataset(tiny), checkout / "outputs" / "seeded-quick"
    kept = study_folds(dataset, place, 2, 7)
    assert kept["protocol"][0] == "stratified-2-seed7" and study_folds(dataset, place).equals(kept)
    titles = [{job.title for job in study_jobs(read_study(path))[1]} for path in (seeded, finished[0])]
    assert titles[0] == titles[1]
    with pytest.raises(UserError, match="stratified-2-seed7, asked for: stratified-2-seed8"):
        study_folds(dataset, place, 2, 8)


# --- mistakes

MISTAKES = {
    "a key": ({"modles": {}}, ["unknown key 'modles'", "did you mean 'models'?"]),
    "no model": ({"models": {}}, ["models is missing", "small_resnet_arcface"]),
    "a parameter": ({"models": {"basic_cnn": {"epoch": 3}}}, ["models.basic_cnn", "'epoch'", "did you mean 'epochs'?"]),
    "a type": ({"models": {"basic_cnn": {"epochs": "many"}}}, ["models.basic_cnn", "a whole number, not 'many'"]),
    "a preset": ({"models": {"mine": {}}}, ["models.mine", "'mine' is not a preset"]),
    "a field": ({"models": {"basic_cnn": {"overrides": "pol=gem"}}}, ["models.basic_cnn", "did you mean 'pool'?"]),
    "a folder": ({"models": {"../x": {"preset": "basic_cnn"}}}, ["models.../x", "one folder name"]),
    "a range": ({"knn": {"alpha": 3}}, ["knn: alpha=3.0", "from 0 to 1"]),
    "a place": ({"knn": {"seed": 3}}, ["knn.seed", "put it at the top"]),
    "the model": ({"knn": {"model": "basic_cnn"}}, ["knn.model", "is set by the study itself"]),
    "a stranger": ({"gradcam": {"models": ["swin"]}}, ["gradcam.models: 'swin' is not among the models (basic_cnn)"]),
    "a blend": ({"blend": {"models": ["basic_cnn@3"]}}, ["blend.models: 'basic_cnn@3' is not among the models"]),
    "needed": ({"report": False}, ["report: this stage cannot be left out"]),
    "snapshots": ({"models": {"basic_cnn": {"snapshots": [20]}}}, ["models.basic_cnn.snapshots: '20'", "from 1 to 2"]),
    "other crops": ({"blend": {"models": ["basic_cnn@whole"]}}, ["blend.models: 'basic_cnn@whole' is not among"]),
    "folds": ({"folds": "five"}, ["'folds' is a whole number, not 'five'"]),
    "a study's name": ({"study": "a/b"}, ["one folder name, not 'a/b'"]),
    "a list": ({"models": ["basic_cnn"]}, ["models: expected keys and values"]),
    "a stage": ({"resources": {"trian": {}}}, ["resources: there is no stage 'trian'"]),
    "a resource": ({"resources": {"train": {"gpu": 1}}}, ["resources.train: 'gpu' is not one of cores, gpus"]),
    "an amount": ({"resources": {"train": {"cores": 0}}}, ["resources.train.cores: expected a number from 1, not 0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_check_study_with_a_mistake_names_it_and_its_place(mistake):
    spoilt, expected = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        check_study(SMALL | spoilt, "studies/mine.yaml")
    assert all(part in str(error.value) for part in ["studies/mine.yaml: ", *expected]), error.value


def test_check_study_accepts_the_examples_of_the_pages():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(models:.*?|# studies.*?)```", pages, re.S)]
    assert len(examples) == 3
    for example in examples:  # encoders that a reader would have are not here
        example["models"] = {k: v for k, v in example["models"].items() if "encoder" not in v}
        assert check_study(example).models


def test_run_of_a_file_that_is_no_study_ends_with_one_line_and_status_2(tmp_path):
    spoilt = {
        "models: {a: [": "line 1: not a study's YAML",
        "a: 1\na: 2": "line 2: not a study's YAML ('a' occurs twice)",
        "- 1": "keys and values",
        None: "No such file",
    }
    for text, expected in spoilt.items():
        path = tmp_path / "study.yaml"
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)
        done = CliRunner().invoke(main, ["run", str(path)])
        assert done.exit_code == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1


def test_override_of_an_unknown_or_foreign_parameter_is_refused():
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        override(SMALL, {"epoch": "3"})
    with pytest.raises(UserError, match="the file names models and folds"):
        override(SMALL, {"fold": "3"})


# --- the studies that come with the project


def test_study_jobs_of_the_papers_study_are_three_networks_on_ten_folds(tiny):
    content = read_study(ROOT / "studies" / "paper.yaml") | {"data_dir": str(tiny)}
    _, jobs = study_jobs(content, "studies/paper.yaml")
    count = {stage: sum(job.stage == stage for job in jobs) for stage in {job.stage for job in jobs}}
    assert count == {"eda": 1, "train": 30, "knn": 3, "gradcam": 1, "robustness": 1, "blend": 1, "report": 1}


def test_study_jobs_of_the_papers_blend_are_thirty_checkpoints_on_five_folds(tiny_copy):
    for name in ("backfin", "detic_far"):
        shutil.copyfile(tiny_copy / "boxes" / "fullbody_train.csv", tiny_copy / "boxes" / f"{name}_train.csv")
    content = read_study(ROOT / "studies" / "paper_blend.yaml") | {"data_dir": str(tiny_copy)}
    _, jobs = study_jobs(content)
    blend = next(job for job in jobs if job.stage == "blend")
    specialists = [job for job in blend.needs if "specialist" in job.title]
    assert len(blend.needs) == 30 and len(specialists) == 5
    trained = [job for job in jobs if job.stage == "train"]
    assert len(trained) == 10 * 5 and blend.parameters["min_map5"] == "0.840"
    (line,) = study_notes(content)
    assert line.startswith("no boxes called yolo, vit: crops are ") and "(efficientnet_b5_arcface, b5_at_512" in line


def test_study_jobs_without_a_specialists_boxes_are_refused(tiny):
    content = read_study(ROOT / "studies" / "paper_blend.yaml") | {"data_dir": str(tiny)}
    with pytest.raises(UserError, match=r"models\.backfin_b5_specialist: crops: no boxes called 'backfin'"):
        study_jobs(content)


@pytest.mark.parametrize(("name", "trainings"), [("demo", 3), ("paper", 9), ("paper_small", 9), ("paper_demo", 9)])
def test_study_jobs_of_the_given_studies_are_valid(tiny, name, trainings):
    content = read_study(ROOT / "studies" / f"{name}.yaml") | {"data_dir": str(tiny), "study": "drawn", "folds": 3}
    jobs = study_jobs(content)[1]
    assert [job.stage for job in jobs].count("train") == trainings


def test_study_jobs_of_other_crops_and_snapshots_are_models_of_their_own_also_without_test_photographs(tiny_copy):
    models = {"basic_cnn": {"epochs": 2, "snapshots": [1], "other_crops": "detic whole"}}
    content = {"data_dir": str(tiny_copy), "study": "crops", "folds": 2, "models": models}
    names = ["basic_cnn", "basic_cnn@1", "basic_cnn@detic", "basic_cnn@whole"]
    for name in ("test.csv", "test_truth.csv", "sample_submission.csv"):
        (tiny_copy / name).unlink(missing_ok=True)
    shutil.rmtree(tiny_copy / "test_images")
    jobs = study_jobs(content)[1]
    blend = next(job for job in jobs if job.stage == "blend")
    assert [job.title for job in blend.needs] == [f"06_knn {name}" for name in names]
    alone = study_jobs(content | {"models": {"basic_cnn": {"epochs": 2}}})[1]
    assert "blend" not in {job.stage for job in alone}, "nothing to submit, nothing to blend"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"crops": "fin"}, "models.basic_cnn: crops: no boxes called 'fin'"),
        ({"tta_sources": "fin:1"}, "models.basic_cnn: tta_sources: crops: no boxes called 'fin'"),
        ({"other_crops": "whole detik"}, "other_crops: unknown source of crops 'detik'; did you mean 'detic'?"),
        ({"other_crops": "whole whole"}, "models.basic_cnn: other_crops: a source is repeated"),
        ({"other_crops": "auto"}, "models.basic_cnn: other_crops: unknown source of crops 'auto'"),
        ({"snapshots": [1, 1]}, "models.basic_cnn.snapshots: name each epoch once, not 1 1"),
        ({"overrides": "weights=last/model.keras"}, "models.basic_cnn: weights=last/model.keras: no such file"),
    ],
)
def test_study_jobs_of_sources_or_weights_that_are_not_there_are_refused(tiny, model, expected):
    content = {"data_dir": str(tiny), "study": "drawn", "models": {"basic_cnn": model}}
    with pytest.raises(UserError, match=re.escape(expected)):
        study_jobs(content)


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_two_models_of_a_study_are_the_same_training(path):
    trainings = []
    for name, values in read_study(path)["models"].items():
        numbers = {key: int(values.get(key, 0)) for key in ("epochs", "image_size")}
        preset = configure(values.get("preset", name), **numbers, overrides=values.get("overrides", ""))
        crops = values.get("crops", "auto")
        trainings.append((preset, preset.sources if crops == "auto" else crops, values.get("seed", 0)))
    assert len(set(trainings)) == len(trainings)


# --- graphics cards


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize(("cards", "expected"), [("7", {"7"}), pytest.param("3,5", {"3", "5"}, marks=pytest.mark.soak)])
def test_run_of_two_trainings_gives_each_a_graphics_card_of_its_own(checkout, tiny, cards, expected):
    models = {"first": {"preset": "basic_cnn"}, "second": {"preset": "basic_cnn", "overrides": "dropout=0"}}
    resources = {stage: {"cores": 1} for stage in ("eda", "train", "knn", "blend", "report")}
    name = f"cards{len(expected)}"
    path = write_study(checkout, tiny, name, models=models, resources=resources)
    words = ("--snakemake", "--until 03_train_first_fold_0 03_train_second_fold_0 --cores 2")
    happywhale(checkout, "run", path, *words, env=os.environ | {"CUDA_VISIBLE_DEVICES": cards})
    found = (checkout / "outputs" / f"{name}-quick").rglob("03_train-*.run.json")
    records = [json.loads(path.read_text()) for path in found]
    assert len(records) == 2
    spans = sorted((r["started"], r["seconds"], r["environment"]["CUDA_VISIBLE_DEVICES"]) for r in records)
    assert {card for _, _, card in spans} == expected
    if len(expected) == 1:
        begun = [datetime.fromisoformat(start) for start, _, _ in spans]
        assert (begun[1] - begun[0]).total_seconds() >= spans[0][1] - 1.5, "one after the other"


# --- faults


def leftovers(folder):
    """Files of a fold that are no results: a half-written one would be among them."""
    return {p.name for p in (folder / "basic_cnn" / "fold1").rglob("*") if p.is_file()}


@pytest.mark.soak
@pytest.mark.slow
def test_run_with_a_broken_fold_stops_its_branch_and_the_next_run_resumes_there(half, checkout):
    path, folder = half
    fold = folder / "basic_cnn" / "fold1"
    fold.mkdir()
    (fold / "resume.json").write_text("{")
    eda = done_file(record_paths(folder / "01_eda.ipynb")[0])
    eda.unlink()
    done = happywhale(checkout, "run", path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "failed: 03_train basic_cnn fold 1" in done.stderr and "resume.json is not valid JSON" in done.stderr
    assert "fold1/03_train.failed.ipynb" in done.stderr
    assert "not run: 06_knn basic_cnn, which needs 03_train basic_cnn fold 1" in done.stderr
    assert "[1/6] 01_eda" in done.stderr and eda.is_file(), "another branch went on"
    assert not record_paths(fold / "03_train.ipynb") and waiting(path) == REST


def test_train_that_fails_leaves_no_done_file_and_no_record(checkout, tiny):
    place = checkout / "outputs" / "failed-quick" / "small_resnet_arcface" / "fold0"
    place.mkdir(parents=True)
    (place / "resume.json").write_text("{")
    words = ["-p", "data_dir", tiny, "-p", "study", "failed", "-p", "quick", "true", "-p", "folds", "2"]
    done = CliRunner().invoke(main, ["train", *map(str, words)])
    assert done.exit_code == 2 and "resume.json is not valid JSON" in done.stderr
    assert not list(place.glob("*.done")) and not record_paths(place / "03_train.ipynb")
    assert (place / "03_train.failed.ipynb").is_file() and not (place / "03_train.ipynb").exists()


@pytest.mark.soak
@pytest.mark.slow
def test_run_on_a_full_disk_leaves_nothing_half_written(half, checkout):
    path, folder = half

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = happywhale(checkout, "run", path, preexec_fn=small_files_only)
    assert done.returncode == 1 and "cannot write" in done.stderr and "free some space" in done.stderr
    assert "failed: 03_train basic_cnn fold 1" in done.stderr
    assert leftovers(folder) <= {".03_train.lock", "03_train.failed.ipynb", "03_train.log", "resume.json"}
    assert waiting(path) == REST


def started(checkout, path, folder):
    """A run in the background whose training of fold 1 is held in the middle: its process, its kernel's, and the file
    to remove so that the training goes on."""
    hold = folder / "hold"
    hold.touch()
    run = subprocess.Popen(
        [str(BIN / "happywhale"), "run", str(path)],
        cwd=checkout,
        env=os.environ | {"HAPPYWHALE_HOLD": str(hold)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while not (folder / "basic_cnn" / "fold1" / "resume.json").is_file():
        assert time.monotonic() < end and run.poll() is None, "no training was begun"
        time.sleep(0.05)
    below = psutil.Process(run.pid).children(recursive=True)
    kernels = [child for child in below if any("ipykernel" in word for word in child.cmdline())]
    assert len(kernels) == 1
    return run, kernels[0], hold


@pytest.mark.soak
@pytest.mark.slow
def test_run_with_a_killed_kernel_says_so_and_only_its_fold_is_left(half, checkout):
    path, folder = half
    before = (folder / "basic_cnn" / "fold0" / "model.keras").stat().st_mtime_ns
    run, kernel, _ = started(checkout, path, folder)
    kernel.kill()
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1 and b"the kernel died" in said and b"Traceback" not in said
    assert "model.keras" not in leftovers(folder) and not record_paths(folder / "basic_cnn/fold1/03_train.ipynb")
    assert waiting(path) == REST
    assert (folder / "basic_cnn" / "fold0" / "model.keras").stat().st_mtime_ns == before


@pytest.mark.soak
@pytest.mark.slow
def test_run_after_a_killed_runner_resumes_its_fold_and_ends_with_the_same_submission(half, finished, checkout):
    path, folder = half
    before = (folder / "basic_cnn" / "fold0" / "model.keras").stat().st_mtime_ns
    run, kernel, hold = started(checkout, path, folder)
    os.kill(run.pid, signal.SIGKILL)
    run.stderr.close()
    run.wait(20)
    kernel.wait(60)  # the fold that was begun ends with the run
    assert "resume.json" in leftovers(folder) and "model.keras" not in leftovers(folder)
    hold.unlink()
    again = happywhale(checkout, "run", path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "fold 0" not in again.stderr and not list(folder.rglob(".03_train.ipynb.*"))
    assert (folder / "basic_cnn" / "fold0" / "model.keras").stat().st_mtime_ns == before
    assert (folder / "submission.csv").read_bytes() == (finished[1] / "submission.csv").read_bytes()


def test_run_of_data_that_a_stage_would_refuse_names_all_of_it_and_runs_nothing(checkout, tiny_copy):
    table = pd.read_csv(tiny_copy / "train.csv", dtype=str)
    table["latitude"] = ["57,68", "x", *[""] * (len(table) - 2)]
    table["longitude"] = ["-4,03", "1", *[""] * (len(table) - 2)]
    table.loc[3, "individual_id"] = "#REF!"
    table.loc[5, "image"] = "gone.jpg"
    table.to_csv(tiny_copy / "train.csv", index=False)
    done = CliRunner().invoke(main, ["run", "-p", "data_dir", str(tiny_copy), "-p", "study", "spoilt"])
    assert done.exit_code == 2 and not (checkout / "outputs" / "spoilt").exists()
    assert "3 findings in the data" in done.stderr and "nothing was run" in done.stderr
    for words in ("row 3: 'x' is not a position", "row 5: '#REF!' names nobody", "gone.jpg is not in train_images/"):
        assert words in done.stderr


@pytest.mark.soak
def test_run_of_a_folder_with_braces_under_another_name_runs(checkout, tiny):
    data = checkout / "data" / "a{b}c"
    shutil.copytree(tiny, data)
    path = write_study(checkout, data, "braces", blend={"models": "basic_cnn"})
    done = happywhale(checkout, "run", path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (checkout / "outputs" / "braces-quick" / "check.json").is_file()


@pytest.mark.parametrize("text", ["007", "on", "1e3", "2019-07-13", "0o17", "1_000", "~x"])
def test_read_study_keeps_a_name_as_it_is_written(text, tmp_path):
    model = f"{text}: {{preset: basic_cnn, epochs: 3}}"
    (tmp_path / "study.yaml").write_text(f"study: {text}\nmodels:\n  {model}\ngradcam: no\n")
    content = read_study(tmp_path / "study.yaml")
    checked = check_study(content)
    assert checked.shared["study"] == text and list(checked.models) == [text] and "gradcam" not in checked.sections
    assert checked.models[text]["epochs"] == "3"
    assert yaml.safe_load(yaml.safe_dump(content)) == content
