"""What is on disk is what was made: results that are deleted, cut, swapped, edited or copied after its end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from happywhale_nb.core.artifacts import write_json
from happywhale_nb.workflow import provenance
from happywhale_nb.workflow import study as study_module
from happywhale_nb.workflow.outputs import (
    check_outputs,
    finished_at,
    list_tables,
    listed_places,
    remove_scratch,
    withdraw_results,
    write_done,
)
from happywhale_nb.workflow.provenance import begin_record, record_path, write_record
from happywhale_nb.workflow.registry import STAGES
from happywhale_nb.workflow.runner import stage_values
from happywhale_nb.workflow.study import all_needs, check_results, plan_states, study_jobs

BIN = Path(sys.executable).parent
SMALL = {"folds": 2, "seed": 3, "quick": True, "models": {"basic_cnn": {}}, "gradcam": False, "robustness": False}
TRAINED = ("config.json", "history.csv", "model.keras", "embeddings.parquet", "centres.parquet")
SEARCHED = ("metrics.json", "oof.csv", "test.csv", "oof_scores.parquet", "test_scores.parquet")
OUTPUTS = {
    "eda": ("eda.json",),
    "train": TRAINED,
    "knn": ("knn.json", *(f"fold{k}/{name}" for k in (0, 1) for name in SEARCHED)),
    "blend": ("blend.json", "submission.csv"),
    "report": ("report.json", "report.html", "answers.jpg"),
}


def finish(job):
    """Leave what a stage leaves: its files, the executed notebook, the run record and the done file."""
    folder, full = job.output.parent, stage_values(job.stage, job.parameters)[1]
    for name in OUTPUTS[job.stage]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{job.title} {name}\n" * 9 if not name.endswith(".json") else '{"stamp": "s"}')
    job.output.write_text("{}")
    stamp = job.done_file.name.removesuffix(".run.done").rpartition("-")[2]
    record = write_record(job.output, job.stage, full, "data", 1.0, {"hash": "0" * 40, "changes": None})
    record = record.rename(record_path(job.output, stamp))
    write_done(record, listed_places(record, json.loads(record.read_text()), full["data_dir"]))
    return record


@pytest.fixture(scope="module")
def template(checkout, tiny, tmp_path_factory):
    """A finished study of two folds in a checkout of its own: its root, content, folder and jobs."""
    root = tmp_path_factory.mktemp("disk") / "root"
    root.mkdir()
    for part in ("nbs", "settings.ini"):
        (root / part).symlink_to(checkout / part)
    data = Path(shutil.copytree(tiny, root / "data"))
    content = {"study": "made", "data_dir": str(data)} | SMALL
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(provenance, "computing_environment", dict)  # git and the driver are asked once a record
        folder, jobs = study_jobs(content)
        for job in jobs:
            finish(job)
    shutil.copytree(folder, root / "template")
    return root, content, folder, jobs


@pytest.fixture
def made(template, monkeypatch):
    """The finished study, as it was made: its content, its folder and its jobs."""
    root, content, folder, jobs = template
    shutil.rmtree(folder)
    shutil.copytree(root / "template", folder)  # keeps the files' times
    monkeypatch.chdir(root)
    monkeypatch.setattr(provenance, "computing_environment", dict)
    return content, folder, jobs


def plan(content, jobs, monkeypatch, pending=()):
    """The states of a plan: title → state; Snakemake, which sees done files alone, is asked for nothing."""
    pending = set(pending)
    plans = {job: "pending" if job in pending else "no update" for job in jobs}
    summary = {str(job.done_file): ("ok" if job.done_file.is_file() else "missing", plans[job]) for job in jobs}
    monkeypatch.setattr(study_module, "_snakemake_summary", lambda content: summary)
    return {job.title: state for job, state in zip(jobs, plan_states(content, jobs), strict=True)}


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def edit(path):
    data, times = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000))


HARMS = {"deleted": (Path.unlink, "is missing"), "cut": (cut, "it was cut"), "edited": (edit, "has changed")}
CASES = [(stage, name) for stage, names in OUTPUTS.items() for name in names]


@pytest.mark.parametrize("harm", HARMS)
def test_plan_of_a_harmed_result_names_it_and_all_that_depends_on_it(made, monkeypatch, harm):
    content, _, jobs = made
    does, expected = HARMS[harm]
    assert set(plan(content, jobs, monkeypatch).values()) == {"done"}
    for stage, name in CASES:
        job = next(job for job in jobs if job.stage == stage)
        path = job.output.parent / name
        kept, times = path.read_bytes(), path.stat()
        does(path)
        states = plan(content, jobs, monkeypatch)
        assert name in states[job.title] and expected in states[job.title], (stage, name, states[job.title])
        after = {other.title for other in jobs if job in all_needs(other)}
        assert {title for title, state in states.items() if state == "needs jobs to be run"} == after
        assert {title for title, state in states.items() if state != "done"} == {job.title} | after
        path.write_bytes(kept)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_an_edit_that_keeps_size_and_time_is_found_by_verify_alone(made):
    _, folder, jobs = made
    path = folder / "submission.csv"
    times = path.stat()
    edit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not any(check.faults for check in check_results(jobs).values())
    (fault,) = [check.faults for check in check_results(jobs, verify=True).values() if check.faults]
    assert fault == ("submission.csv has changed since it was made",)


def test_two_swapped_files_of_two_folds_are_both_named(made):
    _, folder, jobs = made
    a, b = (folder / "basic_cnn" / f"fold{k}" / "test.csv" for k in (0, 1))
    a.write_text("of fold 0\n"), b.write_text("of fold 1\n")
    knn = next(job for job in jobs if job.stage == "knn")
    finish(knn)
    a.write_text("of fold 0\n"), b.write_text("of fold 1\n")
    record = knn.done_file.with_suffix(".json")
    content = json.loads(record.read_text())
    a.rename(folder / "x"), b.rename(a), (folder / "x").rename(b)
    assert set(content["outputs"]) >= {"fold0/test.csv", "fold1/test.csv"}
    assert [fault.partition(" ")[0] for fault in check_outputs(record).faults] == ["fold0/test.csv", "fold1/test.csv"]


def test_withdrawing_removes_the_marks_of_harmed_jobs_alone_and_says_why(made, capsys):
    _, folder, jobs = made
    (folder / "submission.csv").unlink()
    study_module._withdraw_faulty(jobs, False)
    assert [job.title for job in jobs if not job.done_file.is_file()] == ["07_blending"]
    assert capsys.readouterr().err == "07_blending: submission.csv is missing: made again\n"


def test_a_copied_study_is_hashed_once_and_nothing_is_made_again(made, monkeypatch):
    content, folder, jobs = made
    for number, path in enumerate(sorted(folder.rglob("*"), reverse=True)):
        if path.is_file():  # an archive without times, unpacked in any order
            os.utime(path, ns=(10**18 + number * 10**9,) * 2)
    dates = {job: job.done_file.stat().st_mtime for job in jobs}
    newer = [job for job in jobs if any(dates[need] > dates[job] for need in job.needs)]
    assert newer and set(plan(content, jobs, monkeypatch, pending=newer).values()) == {"done"}
    study_module._withdraw_faulty(jobs, False)
    assert all(job.done_file.is_file() for job in jobs)
    assert not any(check.hashed or check.faults for check in check_results(jobs).values())
    for job in jobs:
        assert job.done_file.stat().st_mtime_ns == finished_at(job.done_file)
        assert all(need.done_file.stat().st_mtime_ns <= job.done_file.stat().st_mtime_ns for need in job.needs)


def test_records_of_earlier_versions_get_a_listing_and_a_missing_first_output_is_noticed(made, monkeypatch):
    content, folder, jobs = made
    for job in jobs:
        record = job.done_file.with_suffix(".json")
        write_json(record, {k: v for k, v in json.loads(record.read_text()).items() if k != "outputs"})
        job.done_file.write_bytes(b"")
    write_json(folder / "blend.json", {"tested": True})
    assert set(plan(content, jobs, monkeypatch).values()) == {"done"}
    for name in ("submission.csv", "basic_cnn/knn.json"):
        (folder / name).rename(folder / "away")
        states = plan(content, jobs, monkeypatch)
        assert f"{Path(name).name} is missing" in states.values()
        (folder / "away").rename(folder / name)
    study_module._withdraw_faulty(jobs, False)
    for job in jobs:
        record = json.loads(job.done_file.with_suffix(".json").read_text())
        assert set(record["outputs"]) == {*OUTPUTS[job.stage], job.output.name} and record["outputs_listed"] == "later"
    (folder / "report.html").unlink()
    assert plan(content, jobs, monkeypatch)["08_report"] == "report.html is missing"


@pytest.mark.parametrize("spoilt", [None, b"", b"{", b"[]", b'{"outputs": 3}'])
def test_a_run_record_that_is_gone_or_damaged_is_made_again(made, monkeypatch, spoilt):
    content, _, jobs = made
    record = jobs[-1].done_file.with_suffix(".json")
    record.unlink() if spoilt is None else record.write_bytes(spoilt)
    state = plan(content, jobs, monkeypatch)["08_report"]
    assert state == "done" if spoilt == b'{"outputs": 3}' else "run.json is missing or damaged" in state


@pytest.mark.parametrize("spoilt", [b"", b"{", b'{"finished": "x"}', b"[1]", b'{"finished": 5, "times": 3}'])
def test_a_done_file_with_anything_in_it_costs_a_hash_and_no_run(made, monkeypatch, spoilt):
    content, _, jobs = made
    jobs[-1].done_file.write_bytes(spoilt)
    assert plan(content, jobs, monkeypatch)["08_report"] == "done"


def test_an_executed_notebook_may_be_saved_but_not_be_gone(made, monkeypatch):
    content, _, jobs = made
    jobs[-1].output.write_text('{"saved": "in Jupyter"}')
    assert plan(content, jobs, monkeypatch)["08_report"] == "done"
    jobs[-1].output.unlink()
    assert plan(content, jobs, monkeypatch)["08_report"] == "08_report.ipynb is missing"
    assert withdraw_results("report", jobs[-1].done_file.with_suffix(".json")) == (), "its results are as they were"


def test_a_stage_that_begins_withdraws_the_record_of_harmed_results(made):
    _, _, jobs = made
    for job in jobs:
        record = job.done_file.with_suffix(".json")
        assert withdraw_results(job.stage, record) == ()
        (job.output.parent / OUTPUTS[job.stage][-1]).unlink()
        assert withdraw_results(job.stage, record)
        assert not (job.output.parent / STAGES[job.stage].outputs[0]).exists() and not job.done_file.exists()


def test_outputs_of_snapshots_and_other_crops_belong_to_their_training(made):
    _, folder, jobs = made
    train = next(job for job in jobs if job.stage == "train")
    for variant in ("2", "whole"):
        place = folder / f"basic_cnn@{variant}" / "fold0"
        place.mkdir(parents=True)
        (place / "embeddings.parquet").write_text(variant)
    values = stage_values("train", train.parameters)[1] | {"snapshots": "2", "other_crops": "whole"}
    record = write_record(train.output, "train", values, "data", 1.0, {})
    write_done(record, {})
    assert not check_outputs(record).faults
    (folder / "basic_cnn@2" / "fold0" / "embeddings.parquet").unlink()
    assert check_outputs(record).faults == ("../../basic_cnn@2/fold0/embeddings.parquet is missing",)


def test_a_table_that_is_edited_between_stages_is_named_and_what_reads_it_is_made_again(made, monkeypatch):
    content, _, jobs = made
    data = Path(content["data_dir"])
    boxes = sorted((data / "boxes").glob("*.csv"))[0]
    readers = {
        boxes: {"01_eda", "03_train basic_cnn fold 0", "03_train basic_cnn fold 1"},
        data / "sample_submission.csv": {"06_knn basic_cnn", "07_blending"},
        data / "train.csv": {"01_eda", "06_knn basic_cnn", "08_report"},
    }
    for path, expected in readers.items():
        kept, times, name = path.read_bytes(), path.stat(), path.relative_to(data).as_posix()
        os.utime(path)
        assert set(plan(content, jobs, monkeypatch).values()) == {"done"}, "a copy is no change"
        path.write_bytes(kept.rstrip(b"\n") + b" \n")
        states = plan(content, jobs, monkeypatch)
        named = {title for title, state in states.items() if f"{name} of the data has" in state}
        assert named == expected, (name, states)
        train = next(job for job in jobs if job.stage == "train")
        faults = withdraw_results("train", train.done_file.with_suffix(".json"), data)
        assert bool(faults) == (path == boxes)
        path.write_bytes(kept)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        finish(train)


def test_a_training_lists_the_boxes_of_the_sources_that_it_uses(tmp_path):
    (tmp_path / "boxes").mkdir()
    for name in ("boxes.csv", "boxes/detic.csv", "boxes/fullbody_train.csv", "boxes/fullbody_test.csv"):
        (tmp_path / name).write_text("image\n")
    assert set(list_tables("train", tmp_path, tmp_path)) >= {"boxes/detic.csv", "boxes/fullbody_test.csv"}
    config = {"parameters": {"crops": "fullbody whole", "tta_sources": ""}, "result": {"boxes": {"whole": 3}}}
    write_json(tmp_path / "config.json", config)
    own = ["boxes.csv", "boxes/fullbody_test.csv", "boxes/fullbody_train.csv"]
    assert list(list_tables("train", tmp_path, tmp_path)) == own and "boxes/detic.csv" in list_tables(
        "eda", "", tmp_path
    )


def test_folds_that_are_deleted_are_written_again_and_the_same(made, capsys):
    content, folder, jobs = made
    for _ in range(2):
        study_module._restore_folds(content, folder, jobs)
    first = (folder / "folds.csv").read_bytes()
    (folder / "folds.csv").unlink()
    study_module._restore_folds(content, folder, jobs)
    assert (folder / "folds.csv").read_bytes() == first
    assert capsys.readouterr().err.count("folds.csv is missing: written again") == 2
    (folder / "folds.csv").unlink()
    for job in jobs:
        job.done_file.unlink()
    study_module._restore_folds(content, folder, jobs)
    assert not (folder / "folds.csv").exists(), "a new study has none yet"


def test_scratch_of_killed_runs_is_removed_and_nothing_else(made):
    _, folder, _ = made
    fold = folder / "basic_cnn" / "fold0"
    scratch = [fold / f".03_train.ipynb.ab{i}defg_" for i in range(9)] + [fold / ".model.keras.abcdefgh"]
    others = [fold / ".oof.csv.abcdefgh", fold / ".resume.json.abcdefgh", fold / ".mine", fold / ".model.keras.short"]
    for place in scratch + others:
        place.mkdir()
        (place / "part").write_text("half")
    (fold / ".config.json.abcdefgh").write_text("a file")
    assert remove_scratch("train", fold / "03_train.ipynb") == sorted(place.name for place in scratch)
    assert all(place.is_dir() for place in others) and (fold / ".config.json.abcdefgh").is_file()
    begin_record(fold / "03_train.ipynb", "0" * 16)


# --- whole runs


def happywhale(root, *words):
    command = [str(BIN / "happywhale"), *map(str, words)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_makes_whatever_is_harmed_again_and_ends_as_it_began(checkout, tiny):
    path = checkout / "harmed.yaml"
    path.write_text(yaml.safe_dump({"study": "harmed", "data_dir": str(tiny)} | SMALL))
    folder = checkout / "outputs" / "harmed-quick"
    first = happywhale(checkout, "run", path)
    assert first.returncode == 0, first.stderr[-3000:]
    results = [p for p in folder.rglob("*") if p.suffix in (".csv", ".keras", ".json") and ".run" not in p.name]
    results = [p for p in results if p.name not in ("folds.csv", "study.json", "check.json")]
    before = {p: p.read_bytes() for p in results}
    assert len(before) >= 12
    for turn, harm in enumerate(HARMS):
        harmed = [result for number, result in enumerate(before) if (number + turn) % 3 == 0]
        for result in harmed:
            HARMS[harm][0](result)
        again = happywhale(checkout, "run", path)
        assert again.returncode == 0, (harm, again.stderr[-3000:])
        assert ": made again" in again.stderr and "Made in" in again.stdout
        assert {result: result.read_bytes() for result in before} == before
        still = happywhale(checkout, "run", path)
        assert "Nothing to do" in still.stdout and "made again" not in still.stderr
    copy = Path(shutil.copytree(folder, folder.with_name("copied-quick"), copy_function=shutil.copyfile))
    path.write_text(path.read_text().replace("harmed", "copied"))
    moved = happywhale(checkout, "run", path)
    assert "Nothing to do" in moved.stdout and copy.is_dir(), moved.stderr[-3000:]
