"""A study as a file: what is run and what is not, what mistakes cost, and what faults leave behind."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import yaml

from happywhale_nb.dataset import read_dataset
from happywhale_nb.paths import UserError
from happywhale_nb.records import kept_records, mark_path
from happywhale_nb.splits import study_folds
from happywhale_nb.study import check_study, override, read_study, study_jobs

BIN, ROOT = Path(sys.executable).parent, Path(__file__).resolve().parents[1]
SMALL = {"folds": 2, "seed": 3, "quick": True, "models": {"basic_cnn": {}}, "gradcam": False, "robustness": False}


def command(*words):
    return [str(BIN / "happywhale"), *map(str, words)]


def happywhale(checkout, *words, **how):
    how = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | how
    return subprocess.run(command(*words), cwd=checkout, **how)


def write_study(checkout, tiny, name, **more):
    path = checkout / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"study": name, "data_dir": str(tiny)} | SMALL | more, sort_keys=False))
    return path


@pytest.fixture(scope="module")
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
        mark_path(kept_records(folder / notebook)[0]).unlink()
    return path, folder


def planned(checkout, path, *words):
    """What a dry run says of each job: title → state."""
    done = happywhale(checkout, "run", path, "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("run ", "done "))]
    return {line[6:57].strip(): line[57:].strip() or "done" for line in lines}


REST = {"03_train basic_cnn fold 1", "06_knn basic_cnn", "07_blending", "08_report"}


def waiting(checkout, path, *words):
    return {title for title, state in planned(checkout, path, *words).items() if state != "done"}


def test_a_study_runs_each_notebook_once_and_then_nothing(finished, checkout):
    path, folder, done = finished
    steps = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(steps) == 6 and "[2/6] 03_train basic_cnn fold 0" in steps
    assert (folder / "submission.csv").is_file() and "MAP@5 of the submission" in done.stdout
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "study.yaml"}
    again = happywhale(checkout, "run", path)
    assert again.returncode == 0 and "[" not in again.stderr and "Nothing to do, all 6 notebooks" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert set(planned(checkout, path).values()) == {"done"}


def test_snakemake_alone_reads_the_same_study(finished, checkout):
    path, _, _ = finished
    words = ["--configfile", path, "--cores", "1", "--dry-run"]
    done = subprocess.run([BIN / "snakemake", *words], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr


def test_a_dry_run_draws_the_plan_and_runs_nothing(finished, checkout, tiny):
    path = write_study(checkout, tiny, "planned", models={"basic_cnn": {"snapshots": [1]}, "small_resnet_arcface": {}})
    states = planned(checkout, path)
    assert len(states) == 1 + 4 + 3 + 1 + 1 and set(states.values()) == {"not run yet"}
    assert [p.name for p in (checkout / "outputs" / "planned-quick").iterdir()] == ["plan.svg"]
    picture = (checkout / "outputs" / "planned-quick" / "plan.svg").read_text()
    assert picture.rstrip().endswith("</svg>") and picture.count("<!-- run  ") == 10


def test_only_what_a_change_touches_is_run_again(finished, checkout, tiny):
    path, _, _ = finished
    assert waiting(checkout, path, "-p", "alpha", "0.3") == REST - {"03_train basic_cnn fold 1"}
    assert waiting(checkout, path, "-p", "examples", "5") == {"08_report"}
    assert len(waiting(checkout, path, "-p", "seed", "1", "-p", "study", "other")) == 6
    moved = tiny.parent / "moved"
    moved.symlink_to(tiny)
    assert waiting(checkout, path, "-p", "data_dir", moved) == set(), "where the data lie is no change"


def test_results_made_by_hand_with_other_parameters_are_noticed(finished, checkout, tiny):
    _, folder, _ = finished
    place = folder.with_name("byhand-quick")
    shutil.copytree(folder, place)
    by_hand = write_study(checkout, tiny, "byhand")
    words = ("-p", "data_dir", tiny, "-p", "study", "byhand", "-p", "quick", "true", "-p", "model", "basic_cnn")
    assert waiting(checkout, by_hand) == set()
    done = happywhale(checkout, "knn", *words, "-p", "folds", "2", "-p", "seed", "3", "-p", "alpha", "0.3")
    assert done.returncode == 0, done.stderr
    states = planned(checkout, by_hand)
    assert states["06_knn basic_cnn"] == "parameters or data have changed"
    assert {title for title, state in states.items() if state != "done"} == REST - {"03_train basic_cnn fold 1"}


def test_what_is_found_done_keeps_its_record_and_a_study_keeps_its_seed(half, checkout, tiny):
    path, folder = half
    blend = kept_records(folder / "07_blending.ipynb")[0]
    before = blend.read_bytes()
    mark_path(blend).unlink(missing_ok=True)
    shutil.copytree(folder.with_name("finished-quick") / "basic_cnn", folder / "basic_cnn", dirs_exist_ok=True)
    assert happywhale(checkout, "run", path, "--snakemake", "--until 07_blending").returncode == 1, (
        "no report asked for"
    )
    assert blend.read_bytes() == before and mark_path(blend).is_file()
    seeded = write_study(checkout, tiny, "seeded", seed=7)
    dataset, place = read_dataset(tiny), checkout / "outputs" / "seeded-quick"
    kept = study_folds(dataset, place, 2, 7)
    assert kept["protocol"][0] == "stratified-2-seed7" and study_folds(dataset, place).equals(kept)
    assert set(planned(checkout, seeded)) == set(planned(checkout, path))
    with pytest.raises(UserError, match="stratified-2-seed7, asked for: stratified-2-seed8"):
        study_folds(dataset, place, 2, 8)


MISTAKES = {
    "a key": ({"modles": {}}, ["unknown key 'modles'", "did you mean 'models'?"]),
    "no model": ({"models": {}}, ["models is missing", "small_resnet_arcface"]),
    "a parameter": ({"models": {"basic_cnn": {"epoch": 3}}}, ["models.basic_cnn", "'epoch'", "did you mean 'epochs'?"]),
    "a type": ({"models": {"basic_cnn": {"epochs": "many"}}}, ["models.basic_cnn", "a whole number, not 'many'"]),
    "a preset": ({"models": {"mine": {}}}, ["models.mine", "'mine' is no preset"]),
    "a field": ({"models": {"basic_cnn": {"changes": "pol=gem"}}}, ["models.basic_cnn", "did you mean 'pool'?"]),
    "a folder": ({"models": {"../x": {"preset": "basic_cnn"}}}, ["models.../x", "one folder name"]),
    "a range": ({"knn": {"alpha": 3}}, ["knn: alpha=3.0", "from 0 to 1"]),
    "a place": ({"knn": {"seed": 3}}, ["knn.seed", "put it at the top"]),
    "the model": ({"knn": {"model": "basic_cnn"}}, ["knn.model", "is for the study to say"]),
    "a stranger": ({"gradcam": {"models": ["swin"]}}, ["gradcam.models: 'swin' is not among the models (basic_cnn)"]),
    "a blend": ({"blend": {"models": ["basic_cnn@3"]}}, ["blend.models: 'basic_cnn@3' is not among the models"]),
    "needed": ({"report": False}, ["report: this stage cannot be left out"]),
    "snapshots": ({"models": {"basic_cnn": {"snapshots": [20]}}}, ["models.basic_cnn.snapshots: '20'", "from 1 to 2"]),
    "folds": ({"folds": "five"}, ["'folds' is a whole number, not 'five'"]),
    "a study's name": ({"study": "a/b"}, ["one folder name, not 'a/b'"]),
    "a list": ({"models": ["basic_cnn"]}, ["models: keys and values are wanted here"]),
    "a stage": ({"resources": {"trian": {}}}, ["resources: no stage is called 'trian'"]),
    "a resource": ({"resources": {"train": {"gpu": 1}}}, ["resources.train: 'gpu' is not one of cores, gpus"]),
    "an amount": ({"resources": {"train": {"cores": 0}}}, ["resources.train.cores: a number from 1, not 0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_study_file_is_named_with_its_place(mistake):
    spoilt, expected = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        check_study(SMALL | spoilt, "studies/mine.yaml")
    assert all(part in str(error.value) for part in ["studies/mine.yaml: ", *expected]), error.value


def test_a_file_that_is_no_study_is_one_line_and_status_2(checkout, tmp_path):
    spoilt = {
        "models: {a: [": "line 1: not a study's YAML",
        "a: 1\na: 2": "line 2: not a study's YAML ('a' stands here twice)",
        "- 1": "keys and values",
        None: "No such file",
    }
    for text, expected in spoilt.items():
        path = tmp_path / "study.yaml"
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)
        done = happywhale(checkout, "run", path)
        assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        override(SMALL, {"epoch": "3"})
    with pytest.raises(UserError, match="the file names models and folds"):
        override(SMALL, {"fold": "3"})


def test_the_papers_study_has_ten_folds_and_blends_thirty_checkpoints(shared):
    content = read_study(ROOT / "studies" / "paper.yaml") | {"data_dir": str(shared / "happywhale")}
    _, jobs = study_jobs(content, "studies/paper.yaml")
    count = {stage: sum(job.stage == stage for job in jobs) for stage in {job.stage for job in jobs}}
    assert count == {"eda": 1, "train": 30, "knn": 5, "gradcam": 1, "robustness": 1, "blend": 1, "report": 1}
    blend = next(job for job in jobs if job.stage == "blend")
    assert len(blend.needs) * 10 == 30 and all("efficientnet_b5" in job.title for job in blend.needs)
    trained = {need.title for job in blend.needs for need in job.needs if need.stage == "train"}
    assert trained == {f"03_train efficientnet_b5_arcface fold {k}" for k in range(10)}


def test_the_demos_study_is_valid(tiny):
    content = read_study(ROOT / "studies" / "demo.yaml") | {"data_dir": str(tiny), "study": "drawn"}
    assert [job.stage for job in study_jobs(content)[1]].count("train") == 3


def test_two_trainings_share_no_graphics_card(checkout, tiny):
    models = {"first": {"preset": "basic_cnn"}, "second": {"preset": "basic_cnn", "changes": "dropout=0"}}
    resources = {stage: {"cores": 1} for stage in ("eda", "train", "knn", "blend", "report")}
    path = write_study(checkout, tiny, "cards", models=models, resources=resources)
    words = command("run", path, "--snakemake", "--until 03_train_first_fold_0 03_train_second_fold_0 --cores 2")
    for cards, expected in (("7", {"7"}), ("3,5", {"3", "5"})):
        shutil.rmtree(checkout / "outputs" / "cards-quick", ignore_errors=True)
        seen = os.environ | {"CUDA_VISIBLE_DEVICES": cards}
        subprocess.run(words, cwd=checkout, env=seen, capture_output=True, stdin=subprocess.DEVNULL)
        records = [
            json.loads(p.read_text()) for p in (checkout / "outputs" / "cards-quick").rglob("03_train-*.run.json")
        ]
        assert len(records) == 2
        spans = sorted((r["started"], r["seconds"], r["environment"]["CUDA_VISIBLE_DEVICES"]) for r in records)
        assert {card for _, _, card in spans} == expected
        if len(expected) == 1:
            begun = [datetime.fromisoformat(start) for start, _, _ in spans]
            assert (begun[1] - begun[0]).total_seconds() >= spans[0][1] - 1.5, "one after the other"


# --- faults -----------------------------------------------------------------------------------------------------------


def leftovers(folder):
    """Files of a fold that are no results: a half-written one would be among them."""
    return {p.name for p in (folder / "basic_cnn" / "fold1").rglob("*") if p.is_file()}


def test_a_broken_fold_stops_its_own_branch_and_the_next_run_goes_on_there(half, checkout):
    path, folder = half
    fold = folder / "basic_cnn" / "fold1"
    fold.mkdir()
    (fold / "resume.json").write_text("{")
    eda = mark_path(kept_records(folder / "01_eda.ipynb")[0])
    eda.unlink()
    done = happywhale(checkout, "run", path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "failed: 03_train basic_cnn fold 1" in done.stderr and "resume.json is not valid JSON" in done.stderr
    assert "fold1/03_train.failed.ipynb" in done.stderr
    assert "not run: 06_knn basic_cnn, which needs 03_train basic_cnn fold 1" in done.stderr
    assert "[1/6] 01_eda" in done.stderr and eda.is_file(), "another branch went on"
    assert waiting(checkout, path) == REST


def test_a_full_disk_leaves_nothing_half_written(half, checkout):
    path, folder = half

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = happywhale(checkout, "run", path, preexec_fn=small_files_only)
    assert done.returncode == 1 and "cannot write" in done.stderr and "free some space" in done.stderr
    assert "failed: 03_train basic_cnn fold 1" in done.stderr
    assert leftovers(folder) <= {".03_train.lock", "03_train.failed.ipynb", "03_train.log", "resume.json"}
    assert waiting(checkout, path) == REST


def started(checkout, path, notebook):
    """A run in the background, when the kernel of `notebook` computes: the process, and the kernel's."""
    run = subprocess.Popen(
        command("run", path), cwd=checkout, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and run.poll() is None:
        for child in psutil.Process(run.pid).children(recursive=True):
            try:
                words, above = child.cmdline(), child.parent().cmdline()
            except psutil.Error:
                continue
            if any("ipykernel" in word for word in words) and notebook in above:
                return run, child
        time.sleep(0.05)
    raise AssertionError(f"no kernel of {notebook} was seen")


def test_a_killed_kernel_is_told_and_only_its_fold_is_done_again(half, checkout):
    path, folder = half
    before = (folder / "basic_cnn" / "fold0" / "model.keras").stat().st_mtime_ns
    run, kernel = started(checkout, path, "train")
    time.sleep(4)
    kernel.kill()
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1 and b"the kernel died" in said and b"Traceback" not in said
    assert "model.keras" not in leftovers(folder) and not kept_records(folder / "basic_cnn/fold1/03_train.ipynb")
    assert waiting(checkout, path) == REST
    assert (folder / "basic_cnn" / "fold0" / "model.keras").stat().st_mtime_ns == before


def test_a_killed_runner_loses_nothing_and_the_next_run_ends_with_the_same_submission(half, finished, checkout):
    path, folder = half
    before = (folder / "basic_cnn" / "fold0" / "model.keras").stat().st_mtime_ns
    run, kernel = started(checkout, path, "train")
    os.kill(run.pid, signal.SIGKILL)
    run.stderr.close()
    run.wait()
    assert kernel.is_running(), "the fold that was begun goes on"
    done = happywhale(checkout, "run", path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fold 0" not in done.stderr and "another process runs" in done.stderr
    assert (folder / "basic_cnn" / "fold0" / "model.keras").stat().st_mtime_ns == before
    assert (folder / "submission.csv").read_bytes() == (finished[1] / "submission.csv").read_bytes()
