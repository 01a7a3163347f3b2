"""The benchmark that finds from how many photographs a training pays: its subsets, its rule, its table."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        import subsets
    finally:
        sys.path.remove(str(BENCH))
    return subsets


@pytest.fixture(scope="module")
def rows():
    names = [f"{i:02d}" for i in range(12) for _ in range(3 + i)]
    images = [f"{i:03d}.jpg" for i in range(len(names))]
    return pd.DataFrame({"image": images, "species": "beluga", "individual_id": names})


def test_subset_is_part_of_larger_ones(bench, rows):
    few, small, large = (set(bench.Subset(*each).of(rows)["image"]) for each in ((5, 2), (5,), (9,)))
    assert few < small < large < set(rows["image"])


def test_subset_has_every_individual_on_both_sides(bench, rows):
    table = bench.Subset(12, 2).of(rows)
    assert table.groupby("fold")["individual_id"].nunique().tolist() == [12, 12] and len(table) == 24


def row(known, gain, low):
    return {"known": known, "gain": gain, "low": low}


def test_training_pays_from_the_first_photographs_after_the_last_loss(bench):
    measured = [row(50, -0.1, -0.2), row(100, 0.05, -0.1), row(30, 0.2, 0.1), row(400, 0.3, 0.2), row(200, 0.1, 0.0)]
    assert bench.pays_from(measured) == 100
    assert bench.pays_from(measured[:3]) is None, "not beyond chance where there are most"
    assert bench.pays_from(measured[3:]) == 200


@given(st.lists(st.tuples(st.integers(1, 99), st.floats(-1, 1), st.floats(-1, 1)), min_size=1))
def test_training_pays_from_leaves_no_loss_above(bench, measured):
    found = bench.pays_from([row(*each) for each in measured])
    assert found is None or all(gain > 0 for known, gain, _ in measured if known >= found)


@pytest.mark.soak
def test_subsets_quick_prints_its_table_and_writes_nothing(tmp_path):
    words = [sys.executable, BENCH / "subsets.py", "--quick", "--work", tmp_path / "work", "--to", tmp_path / "to.json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| drawn |") == 2 and not (tmp_path / "to.json").exists()
