"""What a study will take: measured here, added up by hand, kept for each device, and compared with what it took."""

import json

import pytest
import yaml
from click.testing import CliRunner

from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.networks.presets import configure
from happywhale_nb.stages.costs import measure_model
from happywhale_nb.stages.degraded_crops import all_changes
from happywhale_nb.stages.gradcam_checks import evaluations_per_query
from happywhale_nb.workflow import planning
from happywhale_nb.workflow.runner import stage_values
from happywhale_nb.workflow.study import study_jobs

TOLD = {
    **{"start": 3.0, "step": 0.5, "batch": 32, "embed": 0.01, "crop": 0.1, "crop_bytes": 1e6, "model_mb": 4.0},
    **{"memory_gb": 1.5, "device": "keras on a card", "notebook": 5.0},
}


@pytest.fixture
def planned(tiny, project, monkeypatch):
    """Run `happywhale plan` on a study of one network, as if each step took half a second."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(planning, "measure_together", lambda values, copies, threads: dict(TOLD))
    model = {"epochs": 4, "snapshots": "2", "other_crops": "whole", "crops": "fullbody"}
    content = {"study": "plan", "data_dir": str(tiny), "folds": 2, "models": {"small_resnet_arcface": model}}
    content |= {"gradcam": False, "robustness": {"photos": 10}, "resources": {"train": {"cores": 1}}}
    (project / "study.yaml").write_text(yaml.safe_dump(content))

    def run(*words):
        return CliRunner().invoke(main, ["plan", "study.yaml", *words])

    return run, study_jobs(yaml.load((project / "study.yaml").read_text(), yaml.BaseLoader))


def test_plan_adds_up_what_was_measured(planned):
    run, (folder, jobs) = planned
    done = run()
    assert done.exit_code == 0, done.output
    plan = planning.read_plan(folder)
    by_title = {job.title: job for job in plan.jobs}
    photos, trained = 58, 24  # of 48 known ones in two folds, and ten test photographs
    first, second = (by_title[f"03_train small_resnet_arcface fold {k}"] for k in (0, 1))
    assert second.seconds == pytest.approx(5 + 3 + 4 * 0.5 + 3 * photos * 0.01), trained
    assert first.seconds == pytest.approx(second.seconds + 2 * photos * 0.1), "fold 0 cuts both kinds of crops"
    numbers = configure("small_resnet_arcface").embedding
    assert second.disk_mb == pytest.approx(3 * (4 + photos * numbers * 4 / 1e6))
    assert by_title["06_knn small_resnet_arcface@whole"].seconds == 5
    assert len(plan.jobs) == len(jobs) and plan.sessions == 2
    assert "2 sessions of up to 12 hours" in done.output and "memory: 1.5 GB" in done.output


def test_plan_of_a_device_that_was_not_measured_is_refused(planned, tmp_path):
    run, (folder, _) = planned
    nothing = run("--device", "TPU v3-8")
    assert nothing.exit_code == 2 and "nothing was measured for plan" in nothing.output
    run()
    refused = run("--device", "TPU v3-8")
    assert refused.exit_code == 2 and "'TPU v3-8' is not one of the measured devices (" in refused.output
    kept = json.loads((folder / "plan.json").read_text())
    (here,) = kept
    write_json(tmp_path / "other.json", {"a card elsewhere": kept[here] | {"hours": 7.0}})
    taken_in = run("--from", str(tmp_path / "other.json"), "--device", "elsewhere")
    assert taken_in.exit_code == 0 and "imported: a card elsewhere" in taken_in.output
    assert "7.0 hours for" in taken_in.output and "small_resnet_arcface" in taken_in.output
    assert list(json.loads((folder / "plan.json").read_text())) == [here, "a card elsewhere"]
    assert "matches several of the measured devices" in run("--device", "card").output
    (folder / "plan.json").write_text('{"a card": {"hours": 1}}')
    damaged = run("--device", "card")
    assert damaged.exit_code == 2 and "not a plan of this version" in damaged.output
    gone = run("--from", str(tmp_path / "none.json"))
    assert gone.exit_code == 2 and "no such file" in gone.output


def test_plan_lets_an_encoder_embed_once_and_robustness_cut_once():
    told = TOLD | {"notebook": 5.0}
    values = {"snapshots": "", "other_crops": "", "tta_sources": "", "encoder": "efficientnet_lite0"}
    first, second = (planning.training_seconds(values, told, 100, 50, first) for first in (True, False))
    assert (first, second) == (pytest.approx(5 + 100 * 0.01), 5)
    averaged = {"snapshots": "1 2 3 4", "other_crops": "whole", "tta_sources": "a:.5 b:.3 c:.2"}
    assert planning.training_seconds(values | averaged, told, 100, 50) == pytest.approx(5 + (3 * 5 + 1) * 100 * 0.01)
    asked = {"photos": 20, "degrade_before_crop": False}
    changes = len(all_changes())
    assert planning._robustness_seconds(asked, told, 58) == pytest.approx(20 * (changes * 0.01 + 0.1))
    before = planning._robustness_seconds(asked | {"degrade_before_crop": True}, told, 58)
    assert before == pytest.approx(20 * changes * (0.01 + 0.1))


def test_plan_counts_the_tests_of_heat_maps():
    told, with_gradients = TOLD | {"views": 2}, evaluations_per_query()
    assert with_gradients > 200
    assert planning._gradcam_seconds({"photos": 20}, told, 58) == pytest.approx(20 * (with_gradients * 0.01 / 2 + 0.2))
    assert planning._gradcam_seconds({"photos": 20}, told, 5) == pytest.approx(5 * (with_gradients * 0.01 / 2 + 0.2))
    frozen = told | {"batch": 0, "views": 1}
    fewer = evaluations_per_query(gradients=False)
    assert planning._gradcam_seconds({"photos": 20}, frozen, 5) == pytest.approx(5 * (fewer * 0.01 + 0.2))


def test_plan_is_compared_with_what_the_run_took(planned):
    run, (folder, jobs) = planned
    run()
    unrun = run("--taken")
    assert unrun.exit_code == 2 and "nothing of this plan has been run" in unrun.output
    plan = planning.read_plan(folder)
    for job in jobs[:3]:
        write_json(job.done_file.with_suffix(".json"), {"seconds": 30.0})
    table = planning.taken(plan, jobs)
    assert table.loc["03_train small_resnet_arcface", "taken"] == 1  # two trainings of half a minute
    assert table.loc["all", "taken"] == 1.5
    expected = sum(job.seconds for job in plan.jobs[:3]) / 60
    assert table.loc["all", "ratio"] == pytest.approx(1.5 / expected)
    assert "ratio" in run("--taken").output


@pytest.mark.soak
@pytest.mark.trains
def test_measure_model_of_a_network_and_of_an_encoder(tiny):
    given = {"data_dir": str(tiny), "study": "plan", "folds": 2}
    network = {"preset": "small_resnet_arcface", "overrides": "image_size=48 batch_size=8"}
    network |= {"crops": "fullbody:.5 whole:.5"}
    found = measure_model(stage_values("train", given | network)[1], timed=0.2)
    assert 0 < found["embed"] < found["step"] < found["start"] and found["batch"] == 8
    assert found["views"] == 2, "a crop and its mirror image"
    assert 0 < found["crop"] < 1 and found["crop_bytes"] > 100 and 0.1 < found["memory_gb"] < 20
    used = measure_model(stage_values("train", given | {"encoder": "efficientnet_lite0"})[1])
    assert used["step"] == 0 and used["embed"] > 0 and used["crop_bytes"] > found["crop_bytes"]


@pytest.mark.soak
@pytest.mark.slow
def test_measure_together_is_a_process_each_and_names_a_fault(tiny):
    values = stage_values("train", {"data_dir": str(tiny), "folds": 2, "preset": "small_resnet_arcface"})[1]
    with pytest.raises(UserError, match=r"small_resnet_arcface: fold 7 does not exist|fold 7"):
        planning.measure_together(values | {"fold": 7}, 1, 1)
    small = values | {"overrides": "image_size=48 batch_size=8"}
    found = planning.measure_together(small, 2, 1, timed=0.2)
    assert found["notebook"] > 0.5 and 0 < found["step"] < 5 and "cpu" in found["device"].lower()
