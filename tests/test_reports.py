"""Other people's troubles: each row of the table in `reports/README.md` has an outcome, and the outcome holds."""

import importlib
import os
from pathlib import Path

import pytest
from reports.harness import keys_of, rows_of

ROOT = Path(__file__).resolve().parents[1]
REPORTS = Path(os.environ.get("HAPPYWHALE_SHARED", ROOT.parent / "shared" / "data")) / "reports"
README = REPORTS / "README.md"
ROWS = rows_of(README.read_text(encoding="utf-8")) if README.is_file() else []
KEYS = list(dict.fromkeys(key for _, cell in ROWS for key in keys_of(cell)))
MODULES = sorted(
    path.stem for path in (ROOT / "tests" / "reports").glob("*.py") if path.stem not in ("harness", "__init__")
)


def cases():
    """All outcomes by key: lists of cases, or functions."""
    table = {}
    for name in MODULES:
        for key, outcome in importlib.import_module(f"reports.{name}").CASES.items():
            outcomes = outcome if isinstance(outcome, list | tuple) else [outcome]
            table.setdefault(key, []).extend(outcomes)
    return table


CASES = cases()


@pytest.mark.real
@pytest.mark.skipif(not ROWS, reason="no reports here: name the folder of real data in HAPPYWHALE_SHARED")
def test_each_row_of_the_reports_has_an_outcome():
    assert [key for key in KEYS if not CASES.get(key)] == []
    assert [key for key in CASES if key not in KEYS] == []


@pytest.mark.real
@pytest.mark.parametrize("key", [key for key in KEYS if key in CASES])
def test_report_has_its_outcome(key, tmp_path):
    for i, outcome in enumerate(CASES[key]):
        out = tmp_path / str(i)
        out.mkdir()
        outcome(REPORTS, out)
