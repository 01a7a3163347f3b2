"""The paper's study in small on real flukes, from its plan to its report: an hour of two cores."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from happywhale_nb.core.artifacts import read_json


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_paper_study_in_small_on_flukes_comes_from_its_plan_to_its_report(shared, project, tmp_path):
    kept = bool(os.environ.get("HAPPYWHALE_KEEP_RESULTS"))
    to = ROOT / "docs" / "results" / "paper_small.json" if kept else tmp_path / "paper_small.json"
    command = [sys.executable, ROOT / "bench" / "paper_small.py", "--set", "humpback", "--to", to]
    command += ["--work", tmp_path / "work"]
    done = subprocess.run(command, cwd=project, env=os.environ | {"HAPPYWHALE_SHARED": str(shared)})
    assert done.returncode == 0, "what it said stands above"
    found = read_json(to)["humpback"]
    mean = {name: row["map5_known"] for name, row in found["models"].items()}
    for row in found["models"].values():
        assert len(row["by_fold"]) == 3 and row["low"] < row["map5_known"] < row["high"]
    assert mean["small_paper_arcface"] > mean["small_paper_arcmargin"] > mean["basic_cnn"], "the paper's order"
    assert found["separability"]["small_paper_arcface"]["silhouette"] > found["separability"]["basic_cnn"]["silhouette"]
    assert found["blend"]["lists"] >= 3 and found["plan"]["all"]["taken"] > 0
    assert {"accuracy", "macro_f1", "map5"} == set(found["statistics"])
