"""What the tests share: a checkout to run in, a small drawn data set, and the real data where it is present."""

import os
import shutil
from pathlib import Path

import pytest

from happywhale_nb.demo import draw_demo

ROOT = Path(__file__).resolve().parents[1]
# every kernel and command started by a test is quiet, and reads no data but what the test names
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.pop("HAPPYWHALE_DATA", None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A demo set small enough to train on in seconds; tests must not change it."""
    return draw_demo(
        tmp_path_factory.mktemp("data") / "tiny",
        seed=3,
        individuals=12,
        train_photos=48,
        test_photos=10,
        progress=False,
    )


@pytest.fixture
def tiny_copy(tiny, tmp_path):
    """A copy of `tiny` to break."""
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A folder that looks like the project's root, for commands whose outputs go to `<root>/outputs`."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "settings.ini", folder)
    for part in ("nbs", "studies", "workflow"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "outputs").mkdir()
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder of real photographs and tables (`$HAPPYWHALE_SHARED`, else beside the checkout)."""
    folder = Path(os.environ.get("HAPPYWHALE_SHARED", ROOT.parent / "shared" / "data"))
    if not (folder / "happywhale" / "train.csv").is_file():
        pytest.skip(f"no real data at {folder}: name its place in HAPPYWHALE_SHARED")
    return folder
