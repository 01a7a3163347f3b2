"""Photographs of every kind are read, cropped and shown alike; what cannot be read is named, never guessed."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.ingest import ingest_dataset, recalibrate
from happywhale_nb.catalogue.store import create_catalogue
from happywhale_nb.catalogue.uploads import read_exif, show_photo
from happywhale_nb.cli.catalogue import photo_files
from happywhale_nb.data import formats
from happywhale_nb.data.check import check_folder, inspect_photo
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.formats import ENDINGS, eight_bits, heic_reader, kind_of, open_photo, to_rgb, unread_reason
from happywhale_nb.imaging.crops import load_crop
from happywhale_nb.imaging.photo import photo_size, read_upright
from happywhale_nb.server.app import make_app
from happywhale_nb.server.state import AppState, Options

HEIC = Path(__file__).parent / "fixtures" / "fin.heic"  # written by libheif's heif-enc
WRITTEN = [kind for kind in ENDINGS if kind != "HEIF"]
needs_heic = pytest.mark.skipif(not heic_reader(), reason=formats.HEIC_REMEDY)


def fin(size=(96, 64)):
    """Sky above, sea below: nothing that any encoder would lose."""
    pixels = np.full((size[1], size[0], 3), (90, 140, 190), np.uint8)
    pixels[size[1] // 2 :] = 30, 70, 110
    return Image.fromarray(pixels)


def write(folder, kind, ending=""):
    path = folder / f"{kind}{ending or ENDINGS[kind][0]}"
    more = {"save_all": True, "append_images": [fin().rotate(180)]} if kind in {"MPO", "TIFF", "GIF"} else {}
    fin().save(path, kind, **more | ({"speed": 10} if kind == "AVIF" else {}))
    return path


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A data folder with a photograph of each kind that Pillow writes, some of several pages, known and not."""
    root = tmp_path_factory.mktemp("kinds")
    (root / "train_images").mkdir()
    (root / "test_images").mkdir()
    rows = ["image,species,individual_id"]
    for i, kind in enumerate(WRITTEN):
        rows.append(f"{write(root / 'train_images', kind).name},fin_whale,{'Hope' if i % 2 else 'Nova'}")
    for kind in ("TIFF", "WEBP", "AVIF"):
        write(root / "test_images", kind)
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def page(every_kind, tmp_path_factory):
    """A client of a page for them."""
    catalogue, embedder = create_catalogue(tmp_path_factory.mktemp("page") / "c", every_kind, "kinds"), ColourEmbedder()
    ingest_dataset(catalogue, embedder, read_dataset(every_kind), "colours")
    catalogue.choose_model(embedder.fingerprint)
    recalibrate(catalogue)
    desk = AppState(catalogue, Options(tokens=False, rates={}), owner="Ann")
    desk.network.open(lambda: embedder)
    with TestClient(make_app(desk), base_url="http://127.0.0.1:8000") as client:
        client.catalogue = catalogue
        yield client
    catalogue.close()


def photo_numbers(catalogue):
    from sqlalchemy import select

    from happywhale_nb.catalogue.schema import Photo

    with catalogue.reading() as session:
        return {photo.name: photo.id for photo in session.scalars(select(Photo)) if photo.path.startswith("train")}


@pytest.mark.parametrize("kind", WRITTEN)
def test_read_upright_of_each_kind_shows_sky_above_sea(every_kind, kind):
    path = every_kind / "train_images" / f"{kind}{ENDINGS[kind][0]}"
    pixels = read_upright(path).astype(int)
    assert photo_size(path) == (96, 64) and unread_reason(path, thorough=True) == ""
    assert abs(pixels[5, 40] - (90, 140, 190)).max() < 25
    assert abs(load_crop(path, 32).astype(int)[28, 16] - (30, 70, 110)).max() < 25


def test_check_folder_and_read_dataset_of_every_kind_count_all(every_kind):
    check = check_folder(every_kind, deep=True, progress=False)
    assert [finding for finding in check.findings if finding.level == "error"] != []
    assert {finding.kind for finding in check.findings} <= {
        "same-photo",
        "train-and-test",
        "two-individuals",
        "near-photo",
    }
    assert len(read_dataset(every_kind).test) == 3 and check.summary["test_photos"] == 3


@pytest.mark.parametrize("what", ["picture", "crop"])
def test_page_shows_a_photograph_of_each_kind_as_a_jpeg(page, what):
    numbers = photo_numbers(page.catalogue)
    assert len(numbers) == len(WRITTEN)
    for name, number in numbers.items():
        got = page.get(f"/api/photos/{number}/{what}", params={"side": 160})
        assert (got.status_code, got.headers["content-type"]) == (200, "image/jpeg"), name
        shown = np.asarray(Image.open(io.BytesIO(got.content))).astype(int)
        assert abs(shown[3, shown.shape[1] // 2] - (90, 140, 190)).max() < 30, name


def test_page_names_a_damaged_or_missing_photograph_without_the_servers_folders(page, every_kind):
    path, number = every_kind / "train_images" / "BMP.bmp", photo_numbers(page.catalogue)["BMP.bmp"]
    content = path.read_bytes()
    try:
        for left, status in ((content[:80], 400), (b"a fine animal", 400), (None, 404)):
            path.unlink()
            if left is not None:
                path.write_bytes(left)
            got = page.get(f"/api/photos/{number}/picture", params={"side": 320})
            assert got.status_code == status and "train_images/BMP.bmp" in got.json()["detail"]
            assert str(every_kind) not in got.text and "BytesIO" not in got.text
            path.touch()
    finally:
        path.write_bytes(content)


@needs_heic
def test_a_real_heic_is_read_shown_dated_and_told_by_its_content(tmp_path):
    assert kind_of(HEIC.read_bytes()[:64]) == "HEIF" and photo_size(HEIC) == (96, 64)
    sky = read_upright(HEIC).astype(int)[5, 10]
    assert abs(sky - (90, 140, 190)).max() < 20
    assert Image.open(io.BytesIO(show_photo(HEIC, 48))).size == (48, 32)
    renamed = tmp_path / "IMG_1.jpg"
    renamed.write_bytes(HEIC.read_bytes())
    assert read_upright(renamed).shape == (64, 96, 3)
    assert inspect_photo(renamed, deep=True).findings == (("mislabelled", "named .jpg, contains HEIF"),)
    with open_photo(HEIC) as photo:
        assert read_exif(photo)[0].startswith("2019-07-13")


def test_a_heic_without_the_extra_is_named_with_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(formats, "heic_reader", lambda: False)
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC.read_bytes())
    photos, left_out = formats.photos_in(tmp_path)
    assert photos == [] and "happywhale_nb[heic]" in left_out[0].reason
    with pytest.raises(Image.UnidentifiedImageError, match="HEIC, which needs the extra"):
        open_photo(tmp_path / "IMG_1.HEIC")
    assert inspect_photo(tmp_path / "IMG_1.HEIC").findings[0][0] == "not-a-photo"


@pytest.mark.parametrize(
    "name, head",
    [("a.NEF", b"MM\0*"), ("a.dng", b"II*\0"), ("a.jpg", b"FUJIFILMCCD-RAW "), ("a.cr3", b"\0\0\0\x18ftypcrx ")],
)
def test_open_photo_of_a_raw_file_never_takes_its_thumbnail(tmp_path, name, head):
    Image.new("RGB", (16, 12)).save(tmp_path / name, "TIFF")
    body = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(head + body[len(head) :])
    with pytest.raises(Image.UnidentifiedImageError, match="RAW file: export it as JPEG"):
        open_photo(tmp_path / name)


@given(bits=st.sampled_from([8, 10, 12, 14, 16]), low=st.floats(0, 0.4), whole=st.booleans())
def test_eight_bits_of_any_depth_spreads_from_black_to_white(bits, low, whole):
    top = 2**bits - 1
    values = np.linspace(low * top, top, 50).astype(np.uint16 if whole else np.float32)
    scaled = eight_bits(values).astype(int)
    assert scaled[-1] == 255 and abs(scaled[0] - low * 255) <= 1.5 and (np.diff(scaled) >= 0).all()


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_to_rgb_of_dark_sixteen_bit_colours_keeps_all_bits(tmp_path, ending):
    wide = np.zeros((40, 60, 3), np.uint16)
    wide[:20] = 100, 1000, 4000
    cv2.imwrite(str(tmp_path / f"a{ending}"), wide)
    with open_photo(tmp_path / f"a{ending}") as photo:
        rgb = np.asarray(to_rgb(photo))
    assert rgb[5, 5].tolist() == [249, 62, 6]


def gps(latitude, longitude):
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: latitude, 3: "E", 4: longitude}
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    with Image.open(file) as photo:
        return read_exif(photo)[1:]


def test_read_exif_of_a_position_of_zeros_is_no_position():
    assert gps((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)) == (None, None)
    assert gps((0.0, 0.0, 0.0), (9.0, 30.0, 0.0)) == (0, 9.5), "on the equator"
    assert gps((51.0, 30.0, 0.0), (0.0, 0.0, 0.0)) == (51.5, 0), "at Greenwich"


def test_inspect_photo_of_a_jpeg_with_something_behind_it_finds_nothing(tmp_path):
    path = tmp_path / "a.jpg"
    fin((400, 300)).save(path, exif=Image.Exif())
    whole = path.read_bytes()
    for behind in (bytes(10_000), b"\0\0\0\x18ftypmp42" + bytes(9000), b"\xff" * 9000):
        path.write_bytes(whole + behind)
        assert inspect_photo(path).findings == ()
    path.write_bytes(whole[:-200])
    assert inspect_photo(path).findings[0][0] == "truncated"


def test_photo_files_of_a_folder_takes_every_kind_and_names_the_rest(tmp_path, capsys):
    for kind in ("TIFF", "WEBP", "PNG"):
        write(tmp_path, kind)
    (tmp_path / "IMG_9.NEF").write_bytes(b"MM\0*")
    (tmp_path / "._PNG.png").write_bytes(b"x")
    assert [path.name for path in photo_files([tmp_path])] == ["PNG.png", "TIFF.tif", "WEBP.webp"]
    assert "RAW photographs of cameras" in capsys.readouterr().err


def test_check_folder_passes_over_what_systems_leave_beside_photographs(every_kind):
    left = [every_kind / "train_images" / name for name in ("Thumbs.db", "._JPEG.jpg", ".DS_Store", "desktop.ini")]
    for path in left:
        path.touch()
    assert "not-listed" not in {finding.kind for finding in check_folder(every_kind, progress=False).findings}
    for path in left:
        path.unlink()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("turn", range(0, 11))
def test_a_turned_photograph_has_the_size_pixels_and_crops_of_an_upright_one(tmp_path, kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(turn, 1)
    stored = fin()
    stored.getexif()[0x0112] = back
    stored = ImageOps.exif_transpose(stored)
    path = tmp_path / f"a{ENDINGS[kind][0]}"
    stored.save(path, kind, exif=exif, **({"speed": 10} if kind == "AVIF" else {}))
    assert photo_size(path) == (96, 64)
    assert abs(read_upright(path)[5, 40].astype(int) - (90, 140, 190)).max() < 25
    assert abs(load_crop(path, 16, (0, 36, 96, 64)).astype(int)[8, 8] - (30, 70, 110)).max() < 25
