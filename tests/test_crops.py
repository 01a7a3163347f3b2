"""Crops show the pixels that were asked for, and a folder of crops that neither a kill nor damage can spoil."""

import io
import select
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import BOX
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.formats import ORIENTATION, open_photo, upright
from happywhale_nb.imaging import crops as crops_module
from happywhale_nb.imaging import photo as photo_module
from happywhale_nb.imaging.crops import Crops, cut_crops, load_crop, load_crops, study_crops
from happywhale_nb.imaging.photo import upright_pixels, upright_size

NO_BOX = [*BOX, "W", "H"]
quick = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# how a camera has to store a picture for each EXIF orientation to show it upright
STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


def places(height, width):
    """A picture whose red is the column and whose green the row of each pixel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, 0 * x], axis=2).astype(np.uint8)


def save(path, pixels, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels))).save(path, exif=exif, quality=95)
    return path


@pytest.mark.parametrize("orientation", STORED)
def test_load_crop_of_a_turned_photograph_shows_it_upright(tmp_path, orientation):
    """The box is that of the upright picture, whichever way the camera stored it."""
    pixels = places(90, 120)
    path = save(tmp_path / "photo.png", pixels, orientation)
    with Image.open(path) as photo:
        assert upright_size(photo) == (120, 90)
    assert (load_crop(path, 30, (70, 20, 100, 50), margin=0) == pixels[20:50, 70:100]).all()
    half = load_crop(path, 30, (35, 10, 50, 25), frame=(60, 45), margin=0)  # measured in a picture half as large
    assert (half == pixels[20:50, 70:100]).all()


def test_load_crop_of_a_turned_or_resized_jpeg_finds_the_box_again(tmp_path):
    """A red quarter, boxed in the frame a person sees: found again whatever the EXIF orientation or stored size."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[:40, 60:, 0] = 255
    save(tmp_path / "upright.jpg", pixels)
    save(tmp_path / "turned.jpg", pixels, 6)
    Image.fromarray(pixels).resize((60, 40)).save(tmp_path / "small.jpg", quality=95)
    chosen = pd.DataFrame({"x0": 60.0, "y0": 0.0, "x1": 120.0, "y1": 40.0, "W": 120.0, "H": 80.0}, index=range(3))
    paths = [tmp_path / name for name in ("upright.jpg", "turned.jpg", "small.jpg")]
    for crop in load_crops(paths, chosen, 32, tmp_path / "crops"):
        assert crop[8:24, 8:24, 0].mean() > 200 and crop[8:24, 8:24, 1:].mean() < 40


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A photograph of 120 x 90 pixels that tells where each pixel is from."""
    return save(tmp_path_factory.mktemp("grid") / "grid.png", places(90, 120))


@quick
@given(st.integers(0, 118), st.integers(0, 88), st.integers(2, 120), st.integers(2, 90), st.sampled_from([0, 0.1, 0.5]))
def test_load_crop_of_any_box_shows_the_box_with_its_margin_inside_the_photograph(grid, x, y, wide, high, margin):
    x1, y1 = min(x + wide, 120), min(y + high, 90)
    dx, dy = margin * (x1 - x), margin * (y1 - y)
    left, top, right, bottom = int(max(x - dx, 0)), int(max(y - dy, 0)), int(min(x1 + dx, 120)), int(min(y1 + dy, 90))
    part = places(90, 120)[top:bottom, left:right]
    how = cv2.INTER_AREA if part.shape[0] * part.shape[1] > 256 else cv2.INTER_LINEAR
    assert (load_crop(grid, 16, (x, y, x1, y1), margin=margin) == cv2.resize(part, (16, 16), interpolation=how)).all()


@quick
@given(st.integers(20, 80), st.integers(20, 50), st.integers(2, 20), st.integers(2, 20))
def test_load_crop_that_keeps_the_aspect_grows_the_shorter_side(grid, x, y, wide, high):
    """Far from the photograph's edges: a square about the middle of the box, as large as its longer side."""
    side = max(wide, high)
    crop = load_crop(grid, 64, (x, y, x + wide, y + high), margin=0, keep_aspect=True).astype(float)
    middle = crop[28:36, 28:36].mean(axis=(0, 1))
    assert middle[:2] == pytest.approx([x + wide / 2 - 0.5, y + high / 2 - 0.5], abs=1.2)
    across, down = crop[:, -1, 0].mean() - crop[:, 0, 0].mean(), crop[-1, :, 1].mean() - crop[0, :, 1].mean()
    assert across == pytest.approx(side - 1, abs=2) and down == pytest.approx(side - 1, abs=2)


def test_load_crop_that_keeps_the_aspect_mirrors_what_the_photograph_lacks(tmp_path):
    """A picture of four rows: padded to a square by its own rows, as many above as below (one more below)."""
    pixels = places(4, 9)
    path = save(tmp_path / "flat.png", pixels)
    crop = load_crop(path, 9, (0, 0, 9, 4), margin=0, keep_aspect=True)
    assert crop[:, 0, 1].tolist() == [1, 0, 0, 1, 2, 3, 3, 2, 1] and crop[0, :, 0].tolist() == list(range(9))
    upright = load_crop(
        save(tmp_path / "tall.png", pixels.transpose(1, 0, 2)), 9, (0, 0, 4, 9), margin=0, keep_aspect=True
    )
    assert (upright == crop.transpose(1, 0, 2)).all()
    assert (load_crop(path, 9) == cv2.resize(pixels, (9, 9), interpolation=cv2.INTER_LINEAR)).all()


def test_load_crop_that_keeps_the_aspect_keeps_a_disc_round(tmp_path):
    """A disc of 40 pixels in a box twice as wide as high: round if the aspect is kept, else an upright ellipse."""
    y, x = np.mgrid[:120, :240]
    disc = ((x - 120) ** 2 + (y - 60) ** 2 < 20**2).astype(np.uint8) * 255
    Image.fromarray(disc).convert("RGB").save(tmp_path / "disc.png")
    box = (80, 40, 160, 80)
    for keep, ratio in ((True, 1.0), (False, 0.5)):
        crop = load_crop(tmp_path / "disc.png", 96, box, margin=0, keep_aspect=keep)[..., 0] > 127
        width, height = crop.any(axis=0).sum(), crop.any(axis=1).sum()
        assert width / height == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((200, 10, 220, 20), "the box 200 10 220 20 ends beyond the picture of 120 x 90"),
        ((10, 95, 20, 99), "the box 10 95 20 99 has less than two pixels in the picture"),
        ((-9, -9, -5, -5), "has less than two pixels in the picture"),
        ((0.1, 0.2, 0.7, 0.9), "has less than two pixels in the picture"),
    ],
)
def test_load_crop_of_a_box_that_is_none_of_the_photograph_is_refused(grid, box, words):
    with pytest.raises(UserError, match=words):
        load_crop(grid, 8, box, margin=0)


def test_load_crop_of_a_photograph_in_memory_names_no_object(tmp_path):
    with pytest.raises(UserError, match="the photograph cannot be decoded") as error:
        load_crop(io.BytesIO(b"no picture"), 8)
    assert "BytesIO" not in str(error.value)


def test_load_crops_of_two_photographs_with_one_name_and_size_keeps_them_apart(tmp_path):
    for part, colour in (("train", "red"), ("test", "blue")):
        (tmp_path / f"{part}_images").mkdir()
        Image.new("RGB", (64, 48), colour).save(tmp_path / f"{part}_images" / "a.bmp")
    whole = pd.DataFrame(index=[0], columns=[*BOX, "W", "H"], dtype=float)
    paths = [tmp_path / f"{part}_images" / "a.bmp" for part in ("train", "test")]
    crops = [load_crops([path], whole, 16, tmp_path / "crops")[0] for path in paths]
    assert [crop[0, 0].tolist() for crop in crops] == [[255, 0, 0], [0, 0, 255]]


def test_load_crop_of_16_bit_greys_keeps_their_upper_bits(tmp_path):
    wide = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    crop = load_crop(tmp_path / "wide.png", 64)
    assert abs(crop[..., 0].astype(int) - (wide >> 8)).max() <= 1


def test_load_crop_of_a_missing_or_damaged_file_names_it(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg is missing"):
        load_crop(tmp_path / "gone.jpg", 8)
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"page\.jpg cannot be decoded .*happywhale data check --deep --skip"):
        load_crop(tmp_path / "page.jpg", 8)


@pytest.fixture
def six(tmp_path):
    """Six photographs of distinct greys, and a table without boxes for them."""
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        Image.new("RGB", (200, 150), (40 * i,) * 3).save(path)
    return paths, pd.DataFrame({name: [np.nan] * 6 for name in NO_BOX})


def kept_files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(("size", "ending"), [(32, ".png"), (128, ".png"), (129, ".jpg")])
def test_load_crops_with_damaged_truncated_and_misplaced_files_makes_them_anew(size, ending, six, tmp_path):
    paths, chosen = six
    first = load_crops(paths, chosen, size, tmp_path / "kept")
    files = kept_files(tmp_path / "kept")
    assert len(files) == 6 and {p.suffix for p in files} == {ending}
    files[0].write_bytes(files[0].read_bytes()[:-7])
    files[1].write_bytes(b"")
    files[2].write_bytes(files[3].read_bytes())
    spoilt = bytearray(files[4].read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    files[4].write_bytes(spoilt)
    assert (load_crops(paths, chosen, size, tmp_path / "kept") == first).all()


def test_load_crops_a_second_time_decodes_no_photograph_and_mixes_up_none(six, tmp_path, monkeypatch):
    paths, chosen = six
    first = load_crops(paths, chosen, 32, tmp_path / "kept")
    monkeypatch.setattr(crops_module, "load_crop", lambda *a, **k: pytest.fail("decoded again"))
    assert (load_crops(paths[::-1], chosen, 32, tmp_path / "kept") == first[::-1]).all()


def test_load_crops_cut_in_another_way_are_other_crops(grid, tmp_path):
    """In one folder: two boxes, two margins, two frames, with and without the aspect kept, two sizes."""
    box, frame = [20.0, 20.0, 80.0, 50.0], [120.0, 90.0]
    ways = [
        {"size": 32, "margin": 0.05, "keep_aspect": False, "place": [*box, *frame]},
        {"size": 32, "margin": 0.3, "keep_aspect": False, "place": [*box, *frame]},
        {"size": 32, "margin": 0.05, "keep_aspect": True, "place": [*box, *frame]},
        {"size": 40, "margin": 0.05, "keep_aspect": False, "place": [*box, *frame]},
        {"size": 32, "margin": 0.05, "keep_aspect": False, "place": [20.0, 20.0, 80.0, 50.4, *frame]},
        {"size": 32, "margin": 0.05, "keep_aspect": False, "place": [*box, 240.0, 180.0]},
        {"size": 32, "margin": 0.05, "keep_aspect": False, "place": [*box, np.nan, np.nan]},
        {"size": 32, "margin": 0.05, "keep_aspect": False, "place": [np.nan] * 6},
    ]
    for _ in range(2):  # the second time they are read
        for way in ways:
            size, margin, keep, place = way.values()
            crop = load_crops([grid], pd.DataFrame([place], columns=NO_BOX), size, tmp_path, margin, keep)[0]
            box = None if np.isnan(place[0]) else place[:4]
            frame = None if np.isnan(place[4]) else place[4:]
            assert (crop == load_crop(grid, size, box, frame, margin, keep)).all()
    assert len(kept_files(tmp_path)) == len(ways)


def test_load_crops_of_a_large_set_reads_rows_when_they_are_asked_for(six, tmp_path, monkeypatch):
    paths, chosen = six
    whole = load_crops(paths, chosen, 48, tmp_path / "kept")
    monkeypatch.setattr(crops_module, "IN_MEMORY", 6 * 48 * 48 * 3)
    assert isinstance(load_crops(paths, chosen, 48, tmp_path / "kept"), np.ndarray)
    monkeypatch.setattr(crops_module, "IN_MEMORY", 6 * 48 * 48 * 3 - 1)
    lazy = load_crops(paths, chosen, 48, tmp_path / "kept")
    assert isinstance(lazy, Crops) and lazy.shape == whole.shape and len(lazy) == 6
    for rows in (2, -1, slice(1, 5, 2), [4, 0, 4], np.array([True, False] * 3), slice(0, 0)):
        assert np.array_equal(lazy[rows], whole[rows])


@pytest.mark.parametrize("fault", [KeyboardInterrupt, UserError])
def test_load_crops_that_was_interrupted_goes_on_with_what_is_there(six, tmp_path, monkeypatch, fault):
    paths, chosen = six
    monkeypatch.setattr(crops_module, "thread_count", lambda: 1)  # one photograph after the other
    decoded = []

    def decode(path, *how):
        if len(decoded) == 4:
            raise fault("stopped")
        decoded.append(path)
        return load_crop(path, *how)

    monkeypatch.setattr(crops_module, "load_crop", decode)
    with pytest.raises(fault, match="stopped"):
        load_crops(paths, chosen, 32, tmp_path / "kept")
    assert decoded == paths[:4] and len(kept_files(tmp_path / "kept")) == 4
    again = []
    monkeypatch.setattr(crops_module, "load_crop", lambda path, *how: again.append(path) or load_crop(path, *how))
    crops = load_crops(paths, chosen, 32, tmp_path / "kept")
    assert again == paths[4:]
    assert all((crops[i] == load_crop(path, 32)).all() for i, path in enumerate(paths))


def test_cut_takes_a_parts_photographs_by_the_preset_or_by_the_size_given(grid, tmp_path):
    folders = {"train_images": grid.parent, "test_images": tmp_path / "test"}
    folders["test_images"].mkdir()
    save(tmp_path / "test" / "grid.png", places(90, 120)[::-1])
    dataset, preset = SimpleNamespace(**folders), SimpleNamespace(crop_margin=0.2, keep_aspect=True, shape=(24, 24))
    chosen = pd.DataFrame([["grid.png", 30.0, 30.0, 60.0, 40.0, np.nan, np.nan]], columns=["image", *NO_BOX])
    for part, size in (("train", 0), ("test", 0), ("train", 16)):
        path = folders[f"{part}_images"] / "grid.png"
        expected = load_crop(path, size or 24, (30, 30, 60, 40), margin=0.2, keep_aspect=True)
        assert (cut_crops(dataset, chosen, preset, tmp_path / "study", part, size)[0] == expected).all()
    assert len(kept_files(tmp_path / "study" / "crops")) == 3


# the ninth crop is half written when it says so, and waits to be killed
KILLED = """
import os, sys
from pathlib import Path
os.cpu_count = lambda: 1
import pandas as pd
from happywhale_nb.imaging import crops
written, write = [], Path.write_bytes
def hold(path, data):
    if len(written) == 8:
        write(path, data[: len(data) // 2])
        print("half", flush=True)
        sys.stdin.read()
    written.append(path)
    return write(path, data)
Path.write_bytes = hold
paths = sorted(Path(sys.argv[1]).glob("*.jpg"))
crops.load_crops(paths, pd.DataFrame({n: [float("nan")] * len(paths) for n in crops.BOX + ["W", "H"]}), 32, sys.argv[2])
"""


@pytest.mark.kill
def test_load_crops_that_was_killed_goes_on_with_what_is_there(tiny, tmp_path, monkeypatch):
    paths = sorted((tiny / "train_images").glob("*.jpg"))
    command = [sys.executable, "-c", KILLED, str(tiny / "train_images"), str(tmp_path / "kept")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert select.select([run.stdout], [], [], 60)[0], "the process has not come to the ninth crop in a minute"
            assert run.stdout.readline() == "half\n", "the process ended before it could be killed"
        finally:
            run.kill()
            run.wait(timeout=60)
    assert len(list((tmp_path / "kept" / "32").glob("*/*.png"))) == 8
    decoded = []
    monkeypatch.setattr(crops_module, "load_crop", lambda path, *how: decoded.append(path) or load_crop(path, *how))
    chosen = pd.DataFrame({name: [np.nan] * len(paths) for name in NO_BOX})
    crops = load_crops(paths, chosen, 32, tmp_path / "kept")
    assert len(decoded) == len(paths) - 8
    assert all((crops[i] == load_crop(p, 32)).all() for i, p in enumerate(paths))


def test_study_crops_of_one_name_in_both_parts_cuts_each_by_its_own_box(tmp_path):
    """The known a.jpg is red in its left half, the other one blue in its right half, and each is boxed there."""
    for part, half, colour in (("train", slice(0, 40), 0), ("test", slice(40, 80), 2)):
        pixels = np.zeros((60, 80, 3), np.uint8)
        pixels[:, half, colour] = 255
        (tmp_path / f"{part}_images").mkdir()
        save(tmp_path / f"{part}_images" / "a.png", pixels)
    (tmp_path / "train.csv").write_text("image,species,individual_id\na.png,beluga,Ann\n")
    (tmp_path / "boxes.csv").write_text("image,bbox\ntrain_images/a.png,5 5 35 55\ntest_images/a.png,45 5 75 55\n")
    config = SimpleNamespace(shape=(16, 16), crop_margin=0.0, keep_aspect=False, min_confidence=0.0)
    dataset = read_dataset(tmp_path)
    crops = {p: study_crops(dataset, ["a.png"], config, "auto", tmp_path / "s", p)[0][0] for p in ("train", "test")}
    assert (crops["train"] == [255, 0, 0]).all() and (crops["test"] == [0, 0, 255]).all()


@pytest.mark.parametrize("size", [None, (300, 200), (100, 70), (30, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("turned", [1, 6])
def test_opencv_decodes_a_jpeg_to_the_pixels_of_pillow(tmp_path, size, mode, turned):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (30, 41, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    picture = Image.fromarray(coarse).resize((823, 601), Image.Resampling.BICUBIC).convert(mode)
    for quality, subsampling in ((95, 0), (80, 2)):
        picture.save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling, exif=exif)
        with open_photo(tmp_path / "a.jpg") as one, open_photo(tmp_path / "a.jpg") as two:
            two.draft("RGB", size) if size else None
            assert (upright_pixels(one, size) == np.asarray(upright(two))).all()
    with open_photo(tmp_path / "a.jpg") as photo:
        assert (photo_module._jpeg_pixels(photo) is not None) == (mode == "RGB" and turned == 1)


@pytest.mark.parametrize("size", [(823, 601), (512, 340), (17, 9), (3, 5), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"comment": b"a whale" * 99}])
def test_a_plain_jpeg_gives_the_pixels_of_pillow_whatever_decodes_it(tmp_path, monkeypatch, size, options):
    coarse = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    file = tmp_path / "a.jpg"
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, quality=90, **options)
    plain = photo_module.plain_jpeg(file)
    assert plain.size == size
    decoders = [None] if photo_module.decode_jpeg is None else [photo_module.decode_jpeg, None]
    for decoder in decoders:
        monkeypatch.setattr(photo_module, "decode_jpeg", decoder)
        for reduce in (1, 2, 3, 5, 8):
            least = (max(size[0] // reduce, 1), max(size[1] // reduce, 1))
            with open_photo(file) as photo:
                photo.draft("RGB", least)
                assert (plain.pixels(least) == np.asarray(upright(photo))).all()


def test_only_a_header_without_anything_to_interpret_is_plain(tmp_path):
    picture, file = Image.new("RGB", (30, 20)), tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for options in ({"exif": exif}, {"icc_profile": b"colours" * 30}):
        picture.save(file, **options)
        assert photo_module.plain_jpeg(file) is None
    for mode in ("L", "CMYK"):
        picture.convert(mode).save(file)
        assert photo_module.plain_jpeg(file) is None
    picture.save(tmp_path / "a.png")
    assert photo_module.plain_jpeg(tmp_path / "a.png") is None
    picture.save(file)
    body = file.read_bytes()
    for cut in range(0, body.index(b"\xff\xc0") + 10, 7):
        file.write_bytes(body[:cut])
        assert photo_module.plain_jpeg(file) is None
        with pytest.raises(UserError, match="cannot be decoded"):
            load_crop(file, 8)
    memory = io.BytesIO(body)
    assert photo_module.plain_jpeg(memory).size == (30, 20)
    assert memory.tell() == 0


def test_a_picture_too_large_for_pillow_is_refused_though_its_header_is_plain(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    body = bytearray((tmp_path / "a.jpg").read_bytes())
    at = body.index(b"\xff\xc0")
    body[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    (tmp_path / "a.jpg").write_bytes(body)
    with pytest.raises(UserError, match="cannot be decoded"):
        load_crop(tmp_path / "a.jpg", 8)


def test_a_truncated_jpeg_is_refused_whatever_decodes_it(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(tmp_path / "whole.jpg")
    body = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(body[: len(body) // 2])
    with pytest.raises(UserError, match="cannot be decoded"):
        load_crop(tmp_path / "cut.jpg", 64)
    (tmp_path / "more.jpg").write_bytes(body + b"\0" * 20)
    assert (load_crop(tmp_path / "more.jpg", 64) == load_crop(tmp_path / "whole.jpg", 64)).all()
