"""Boxes in every spelling, mixes of sources, and a cache of crops that neither a kill nor damage can spoil."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from happywhale_nb import crops as crops_module
from happywhale_nb.boxes import BOX, CropMix, clean_boxes, read_box_tables, read_boxes
from happywhale_nb.crops import Crops, load_crop, load_crops
from happywhale_nb.dataset import read_dataset
from happywhale_nb.paths import UserError

NO_BOX = [*BOX, "W", "H"]


def table(rows, source="detic", frame=(100, 80)):
    boxes = pd.DataFrame(rows, columns=["image", *BOX]).assign(source=source, confidence=1.0)
    return boxes.assign(W=float(frame[0]), H=float(frame[1]))


def test_boxes_are_clipped_dropped_and_counted():
    nan = float("nan")
    rows = [
        ["a", 10, 10, 20, 20],
        ["b", -5, 10, 120, 90],
        ["c", 30, 30, 30, 50],
        ["d", 200, 10, 220, 20],
        ["e", nan, nan, nan, nan],
        ["f", 50, 40, 20, 60],
    ]
    clean, report = clean_boxes(table(rows))
    assert report.loc["detic"].to_dict() == {"rows": 6, "without": 1, "degenerate": 3, "clipped": 1, "kept": 2}
    assert clean[BOX].to_numpy().tolist() == [[10, 10, 20, 20], [0, 10, 100, 80]]


SPELLINGS = {
    "brackets": "image,bbox,conf\na.jpg,[[1 2 31 22]],[[0.5]]\n",
    "bare": "image,box\na.jpg,1 2 31 22\n",
    "corners": "image,xmin,ymin,xmax,ymax,confidence\na.jpg,1.0,2.0,31.0,22.0,0.5\n",
    "by hand": "filename,x,y,w,h\na.jpg,1,2,30,20\n",
    "several sources": "image,one,two\na.jpg,1 2 31 22,1 2 31 22\n",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_the_same_box(name, tmp_path):
    (tmp_path / "boxes.csv").write_text(SPELLINGS[name])
    boxes = read_boxes(tmp_path)
    assert (boxes[BOX].to_numpy() == [1, 2, 31, 22]).all() and len(boxes) == (2 if name == "several sources" else 1)


def test_a_table_without_boxes_is_refused_with_what_was_found_and_what_is_read(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,left,right\na.jpg,one,two\n")
    with pytest.raises(UserError, match=r"found: image, left, right; a box is .* xmin, ymin, xmax, ymax"):
        read_boxes(tmp_path)


@pytest.mark.parametrize("text", ["nobody", "detic:.5 whole:.2", "detic:half whole:.5", "detic:-1 whole:2"])
def test_mixes_that_make_no_sense_are_refused(text):
    with pytest.raises(UserError, match="crops"):
        CropMix.parse(text, ["detic", "fullbody"])


def test_a_mix_falls_back_from_missing_and_from_weak_boxes():
    boxes = pd.concat([table([["a", 0, 0, 9, 9], ["b", 0, 0, 9, 9]]), table([["c", 1, 1, 9, 9]], "backfin")])
    boxes["confidence"] = [0.9, 0.05, 0.9]
    mix = CropMix.parse("detic:.6 backfin:.4", boxes["source"], least=0.1)
    assert mix.prefer(list("abcd"), boxes)["source"].tolist() == ["detic", "whole", "backfin", "whole"]
    shares = {share: chosen["source"].tolist() for share, chosen in mix.variants(list("abcd"), boxes)}
    assert shares[0.4] == ["detic", "whole", "backfin", "whole"]
    assert CropMix.parse("detic backfin", boxes["source"]).variants(list("ab"), boxes) == []


def test_crops_keep_their_aspect_on_request(tmp_path):
    """A disc of 40 pixels in a box twice as wide as high: round if the aspect is kept, else an upright ellipse."""
    y, x = np.mgrid[:120, :240]
    disc = ((x - 120) ** 2 + (y - 60) ** 2 < 20**2).astype(np.uint8) * 255
    Image.fromarray(disc).convert("RGB").save(tmp_path / "disc.png")
    box = (80, 40, 160, 80)
    for keep, ratio in ((True, 1.0), (False, 0.5)):
        crop = load_crop(tmp_path / "disc.png", 96, box, margin=0, keep_aspect=keep)[..., 0] > 127
        width, height = crop.any(axis=0).sum(), crop.any(axis=1).sum()
        assert width / height == pytest.approx(ratio, rel=0.1)


@pytest.fixture
def six(tmp_path):
    """Six photographs of distinct greys, and a table without boxes for them."""
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        Image.new("RGB", (200, 150), (40 * i,) * 3).save(path)
    return paths, pd.DataFrame({name: [np.nan] * 6 for name in NO_BOX})


@pytest.mark.parametrize("size", [32, 160])
def test_damaged_truncated_and_misplaced_crops_are_made_anew(size, six, tmp_path):
    paths, chosen = six
    first = load_crops(paths, chosen, size, tmp_path / "kept")
    files = sorted(p for p in (tmp_path / "kept").rglob("*") if p.is_file())
    assert len(files) == 6 and {p.suffix for p in files} == {".png" if size == 32 else ".jpg"}
    files[0].write_bytes(files[0].read_bytes()[:-7])
    files[1].write_bytes(b"")
    files[2].write_bytes(files[3].read_bytes())
    spoilt = bytearray(files[4].read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    files[4].write_bytes(spoilt)
    assert (load_crops(paths, chosen, size, tmp_path / "kept") == first).all()


def test_crops_are_not_decoded_twice_and_not_mixed_up(six, tmp_path, monkeypatch):
    paths, chosen = six
    first = load_crops(paths, chosen, 32, tmp_path / "kept")
    monkeypatch.setattr(crops_module, "load_crop", lambda *a, **k: pytest.fail("decoded again"))
    assert (load_crops(paths[::-1], chosen, 32, tmp_path / "kept") == first[::-1]).all()


def test_large_sets_are_read_row_by_row(six, tmp_path, monkeypatch):
    paths, chosen = six
    whole = load_crops(paths, chosen, 48, tmp_path / "kept")
    monkeypatch.setattr(crops_module, "IN_MEMORY", 0)
    lazy = load_crops(paths, chosen, 48, tmp_path / "kept")
    assert isinstance(lazy, Crops) and lazy.shape == whole.shape and len(lazy) == 6
    for rows in (2, slice(1, 5, 2), [4, 0, 4], np.array([True, False] * 3), slice(0, 0)):
        assert np.array_equal(lazy[rows], whole[rows])


KILLED = """
import sys, time
from pathlib import Path
import pandas as pd
from happywhale_nb import crops
slow = crops.load_crop
def load(*a, **k):
    time.sleep(0.05)
    return slow(*a, **k)
crops.load_crop = load
paths = sorted(Path(sys.argv[1]).glob("*.jpg"))
crops.load_crops(paths, pd.DataFrame({n: [float("nan")] * len(paths) for n in crops.BOX + ["W", "H"]}), 32, sys.argv[2])
"""


def test_a_killed_decoding_goes_on_with_what_is_there(tiny, tmp_path, monkeypatch):
    paths = sorted((tiny / "train_images").glob("*.jpg"))
    command = [sys.executable, "-c", KILLED, str(tiny / "train_images"), str(tmp_path / "kept")]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    kept = tmp_path / "kept" / "32"
    while len(list(kept.glob("*/*.png"))) < 8 and run.poll() is None:
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    made = len(list(kept.glob("*/*.png")))
    assert 8 <= made < len(paths)
    decoded = []
    original = crops_module.load_crop
    monkeypatch.setattr(
        crops_module, "load_crop", lambda path, *a, **k: decoded.append(path) or original(path, *a, **k)
    )
    chosen = pd.DataFrame({name: [np.nan] * len(paths) for name in NO_BOX})
    crops = load_crops(paths, chosen, 32, tmp_path / "kept")
    assert len(decoded) == len(paths) - made
    assert all((crops[i] == original(p, 32)).all() for i, p in enumerate(paths))


def test_real_boxes_are_counted(shared):
    raw = read_box_tables(shared / "happywhale")
    clean, report = clean_boxes(raw)
    assert report.loc["detic", "rows"] == 51033 + 27956 and len(clean) == report["kept"].sum()
    assert (report["rows"] == report["without"] + report["degenerate"] + report["kept"]).all()
    inside = clean["W"].isna() | ((clean["x1"] <= clean["W"]) & (clean["y1"] <= clean["H"]))
    assert inside.all() and (clean[["x0", "y0"]] >= 0).all().all()
    train = read_dataset(shared / "happywhale", need_photos=False).train["image"]
    mix = CropMix.parse("fullbody:.6 backfin:.25 detic:.1 whole:.05", clean["source"], least=0.1)
    chosen = mix.prefer(train, clean)
    assert chosen["image"].tolist() == train.tolist()
    assert (chosen["source"] == "fullbody").mean() > 0.97
