"""The project's own detector: its windows and losses, and that what it learns is worth more than the mean box."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from happywhale_nb.boxes import iou, read_boxes
from happywhale_nb.cli import main
from happywhale_nb.dataset import read_dataset

pytestmark = pytest.mark.filterwarnings("ignore")


def test_windows_hold_their_boxes_and_show_them_where_they_are():
    from happywhale_nb.detector import windows

    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.7, (500, 2))
    boxes = np.hstack([low, low + rng.uniform(0.05, 0.3, (500, 2))])
    window, seen = windows(boxes, 1)
    assert (window >= -1e-6).all() and (window <= 1 + 1e-6).all()
    assert (seen >= -1e-5).all() and (seen <= 1 + 1e-5).all()
    size = np.tile(window[:, 2:] - window[:, :2], 2)
    assert np.allclose(seen * size + np.tile(window[:, :2], 2), boxes, atol=1e-5)


def test_the_loss_is_that_of_the_formula():
    from happywhale_nb.detector import box_loss

    rng = np.random.default_rng(1)
    low = rng.uniform(0, 0.6, (2, 40, 2))
    a, b = np.concatenate([low, low + rng.uniform(0.05, 0.4, (2, 40, 2))], axis=2)
    hull_low, hull_high = np.minimum(a[:, :2], b[:, :2]), np.maximum(a[:, 2:], b[:, 2:])
    hull = (hull_high - hull_low).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    inner = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0).prod(1)
    union -= inner
    giou = inner / union - (hull - union) / hull
    expected = 1 - giou + np.abs(a - b).mean(1)
    assert np.allclose(np.asarray(box_loss(a.astype("float32"), b.astype("float32"))), expected, atol=1e-4)
    assert np.allclose(iou(a, b), inner / union)


def test_a_detector_is_trained_measured_and_used(tiny_copy, tmp_path, monkeypatch):
    """Trained for moments on boxes that fit, then used where there are none: the file is a source like any other."""
    place = tmp_path / "detector.keras"
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(main, ["detect", str(tiny_copy), "--detector", str(place)])
    assert refused.exit_code == 2 and "there is no detector" in refused.stderr
    place.write_text("no model")
    broken = CliRunner().invoke(main, ["detect", str(tiny_copy), "--detector", str(place)])
    assert broken.exit_code == 2 and "cannot be read as a detector" in broken.stderr
    place.unlink()
    too_few = CliRunner().invoke(main, ["detector", str(tiny_copy), "--to", str(place)])
    assert too_few.exit_code == 2 and "needs 50 or more" in too_few.stderr and not place.exists()
    from happywhale_nb.detector import build_detector, write_own_boxes

    truth = pd.concat([pd.read_csv(p) for p in (tiny_copy / "boxes").glob("*.csv")])
    for path in (tiny_copy / "boxes").glob("*.csv"):
        path.unlink()
    (tiny_copy / "boxes.csv").unlink(missing_ok=True)
    data = read_dataset(tiny_copy)
    assert write_own_boxes(data, build_detector(8), tmp_path / "crops") == len(data.train) + len(data.test)
    boxes = read_boxes(tiny_copy)
    assert set(boxes["source"]) == {"own"} and set(boxes["image"]) == set(data.train["image"]) | set(data.test["image"])
    assert boxes["confidence"].between(0, 1).all() and len(truth)
    assert write_own_boxes(data, build_detector(8), tmp_path / "crops") == len(boxes)
