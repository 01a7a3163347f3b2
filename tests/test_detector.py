"""The detector's windows, batches, losses and files, and that what it learns is worth more than the mean box."""

import zipfile

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import BOX, iou, read_boxes
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.demo.dataset import draw_demo

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def untrained():
    """A small detector as it begins."""
    from happywhale_nb.networks.detector import build_detector

    return build_detector(4)


@pytest.fixture(scope="module")
def bright():
    """Photographs of one bright patch each, `[8, 128, 128, 3]`, and where it is, in shares."""
    rng = np.random.default_rng(3)
    low = rng.integers(6, 60, (8, 2))
    corners = np.hstack([low, low + rng.integers(24, 60, (8, 2))])
    photos = np.full((8, 128, 128, 3), 20, np.uint8)
    for photo, (x0, y0, x1, y1) in zip(photos, corners, strict=True):
        photo[y0:y1, x0:x1] = 230
    return photos, corners / 128


def test_windows_of_any_boxes_hold_them_and_show_them_where_they_are():
    from happywhale_nb.networks.detector import random_windows

    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.7, (500, 2))
    boxes = np.hstack([low, low + rng.uniform(0.05, 0.3, (500, 2))])
    window, seen = random_windows(boxes, 1)
    assert (window >= -1e-6).all() and (window <= 1 + 1e-6).all()
    assert (seen >= -1e-5).all() and (seen <= 1 + 1e-5).all()
    size = np.tile(window[:, 2:] - window[:, :2], 2)
    assert np.allclose(seen * size + np.tile(window[:, :2], 2), boxes, atol=1e-5)
    assert size.min() >= 0.55 - 1e-6 and size.min() < 0.6 and size.max() > 0.95


def test_detector_batches_show_each_box_where_its_pixels_are(bright):
    """The patch is found in the pixels where the box says it is, also in windows and in mirror images."""
    from happywhale_nb.networks.detector import SIDE, detector_batches

    photos, boxes = bright
    batches, steps = detector_batches(photos, boxes.astype(np.float32), epochs=4, batch_size=3, seed=0)
    seen = [(pixels.numpy(), found.numpy()) for pixels, found in batches]
    assert steps == 3 and len(seen) == 12
    for pixels, found in seen:
        for photo, box in zip(pixels, found, strict=True):
            grey = photo.astype(float).mean(axis=2)
            y, x = np.nonzero(grey > (grey.min() + grey.max()) / 2)
            assert np.abs(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / SIDE - box).max() < 1.6 / SIDE
    again, _ = detector_batches(photos, boxes.astype(np.float32), epochs=4, batch_size=3, seed=0)
    assert all((one == other.numpy()).all() for (one, _), (other, _) in zip(seen, again, strict=True))


def test_box_loss_of_any_boxes_is_that_of_the_formula():
    from happywhale_nb.networks.detector import box_loss

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


def test_draw_boxes_of_mirror_images_are_mirrored(untrained, bright):
    from happywhale_nb.networks.detector import detect_boxes

    photos, _ = bright
    plain, mirrored = detect_boxes(untrained, photos), detect_boxes(untrained, photos[:, :, ::-1], batch_size=3)
    assert np.allclose(plain[["x0", "x1"]], 1 - mirrored[["x1", "x0"]].to_numpy(), atol=1e-4)
    assert np.allclose(plain[["y0", "y1", "confidence"]], mirrored[["y0", "y1", "confidence"]], atol=1e-4)
    assert detect_boxes(untrained, photos[:0]).empty and plain["confidence"].between(0, 1).all()


@pytest.mark.soak  # the command below learns more from more
def test_train_detector_brings_the_boxes_nearer_to_the_truth(bright, monkeypatch):
    import keras

    from happywhale_nb.networks import detector

    photos, boxes = bright
    monkeypatch.setattr(detector, "build_detector", lambda build=detector.build_detector: build(2))
    trained = detector.train_detector(photos, boxes, epochs=15, batch_size=4, seed=0)
    keras.utils.set_random_seed(0)
    both = (detector.build_detector(), trained)
    first, last = (iou(detector.detect_boxes(model, photos)[BOX], boxes).mean() for model in both)
    assert last > first + 0.1
    assert getattr(trained, "optimizer", None) is None  # its file is a third as large


def test_evaluate_detector_measures_the_detector_against_boxes_that_see_nothing(bright, monkeypatch):
    from happywhale_nb.networks import detector

    photos, boxes = bright
    monkeypatch.setattr(detector, "detect_boxes", lambda model, photos: pd.DataFrame(boxes, columns=BOX))
    table = detector.evaluate_detector(None, photos, boxes, boxes[:1])
    assert table.loc["detector"].tolist() == pytest.approx([1, 1, 1])
    mean, area = iou(np.tile(boxes[:1], (8, 1)), boxes), (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert table.loc["mean box"].tolist() == pytest.approx([mean.mean(), np.median(mean), (mean > 0.5).mean()])
    assert table.loc["whole photograph"].tolist() == pytest.approx([area.mean(), np.median(area), 0])


def test_detect_and_detector_commands_without_what_they_need_say_so(tiny, untrained, tmp_path):
    from happywhale_nb.networks.detector import mirror_averaged, read_detector

    place = tmp_path / "detector.keras"
    refused = CliRunner().invoke(main, ["detector", "apply", str(tiny), "--detector", str(place)])
    assert refused.exit_code == 2 and "there is no detector" in refused.stderr
    place.write_text("no model")
    broken = CliRunner().invoke(main, ["detector", "apply", str(tiny), "--detector", str(place)])
    assert broken.exit_code == 2 and "cannot be read as a detector" in broken.stderr
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("readme.txt", "no model")
    torn = CliRunner().invoke(main, ["detector", "apply", str(tiny), "--detector", str(place)])
    assert torn.exit_code == 2 and "cannot be read as a detector" in torn.stderr and torn.stderr.count("\n") == 1
    place.unlink()
    too_few = CliRunner().invoke(main, ["detector", "train", str(tiny), "--to", str(place)])
    assert too_few.exit_code == 2 and "needs 50 or more" in too_few.stderr and not place.exists()
    mirror_averaged(untrained).save(place)
    with pytest.raises(UserError, match="is a model called 'two_sided', not a detector"):
        read_detector(place)


def test_write_own_boxes_of_photographs_without_boxes_is_a_source_like_any_other(tiny_copy, untrained, tmp_path):
    from happywhale_nb.networks.detector import write_own_boxes

    data = read_dataset(tiny_copy)
    boxed = pd.read_csv(tiny_copy / "boxes" / "fullbody_train.csv").head(5)
    for path in (tiny_copy / "boxes").glob("*.csv"):
        path.unlink()
    boxed.to_csv(tiny_copy / "boxes" / "fullbody_train.csv", index=False)
    photos = {*data.train["image"], *data.test["image"]}
    for _ in range(2):  # the second time as the first: boxes of its own do not count
        assert write_own_boxes(data, untrained, tmp_path / "crops") == len(photos) - 5
        boxes = read_boxes(tiny_copy)
        own = boxes[boxes["source"] == "own"]
        assert set(boxes["source"]) == {"own", "fullbody"} and set(own["image"]) == photos - set(boxed["image"])
        assert boxes["confidence"].between(0, 1).all()
    pd.DataFrame({"image": sorted(photos), "box": "1 1 9 9"}).to_csv(tiny_copy / "boxes.csv", index=False)
    assert write_own_boxes(data, untrained, tmp_path / "crops") == 0


def figures_and_sources(folder, monkeypatch, train_photos, epochs):
    """Train a detector by the command and box all photographs with it: rows of its table, and sources of the boxes."""
    (folder / "settings.ini").touch(), (folder / "nbs").mkdir()  # a project of its own: crops are kept in it
    monkeypatch.chdir(folder)
    data = draw_demo(folder / "data", individuals=30, train_photos=train_photos, test_photos=4, progress=False)
    place = folder / "detector.keras"
    trained = CliRunner().invoke(main, ["detector", "train", str(data), "--to", str(place), "--epochs", str(epochs)])
    assert trained.exit_code == 0, trained.output
    lines = [line for line in trained.output.splitlines() if "%|" not in line]  # a slow machine shows progress bars
    rows = [line.rsplit(maxsplit=3) for line in lines if "0." in line and "IoU" not in line]
    for path in (data / "boxes").glob("*.csv"):
        path.unlink()
    used = CliRunner().invoke(main, ["detector", "apply", str(data), "--detector", str(place)])
    assert used.exit_code == 0, used.output
    return {name.strip(): float(iou) for name, iou, *_ in rows}, set(read_boxes(data)["source"])


@pytest.mark.soak
@pytest.mark.trains
def test_detector_command_trains_one_and_boxes_all_photographs(tmp_path, monkeypatch):
    figures, sources = figures_and_sources(tmp_path, monkeypatch, 60, 2)
    assert list(figures) == ["detector", "mean box", "whole photograph"] and figures["detector"] > 0.1
    assert sources == {"own"}


@pytest.mark.soak
def test_detector_command_trains_one_that_is_worth_more_than_the_mean_box(tmp_path, monkeypatch):
    """What the notebook's slow lesson does, by the commands."""
    figures, _ = figures_and_sources(tmp_path, monkeypatch, 160, 25)
    assert figures["detector"] > figures["mean box"]
