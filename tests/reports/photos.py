"""What must happen with the odd photographs of the reports: uploaded, in a data folder, as crops and on the page."""

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from happywhale_nb.catalogue.uploads import check_photo, show_photo
from happywhale_nb.imaging.crops import load_crop
from reports.harness import Case


def data_folder(photo: Path, out: Path) -> Path:
    """A data folder with one known photograph."""
    (out / "d" / "train_images").mkdir(parents=True)
    shutil.copy(photo, out / "d" / "train_images")
    (out / "d" / "train.csv").write_text(f"image,species,individual_id\n{photo.name},fin_whale,Hope\n")
    return out / "d"


def has_no_position(reports: Path, out: Path) -> None:
    """GPS of zeros, as of a telephone without a fix, and 0/0 are no position."""
    for name in ("gps_zero.jpg", "gps_0_over_0.jpg"):
        picture = check_photo((reports / "photos" / name).read_bytes(), name)
        assert (picture.latitude, picture.longitude) == (None, None)


def counts_as_upright(reports: Path, out: Path) -> None:
    """There is no orientation 9: the photograph is as it is stored, and so are its boxes."""
    path = reports / "photos" / "orientation_9.jpg"
    picture = check_photo(path.read_bytes(), path.name)
    assert (picture.width, picture.height) == (160, 100)
    assert Image.open(io.BytesIO(show_photo(path))).size == (160, 100)
    with Image.open(path) as stored:
        corner = np.asarray(stored.convert("RGB").crop((0, 0, 40, 40)).resize((16, 16))).astype(int)
    assert abs(load_crop(path, 16, (0, 0, 40, 40), margin=0).astype(int) - corner).mean() < 12
    data_folder(path, out)
    Case("check OUT/d --deep", words=["clean: nothing found"], never=["exif-rotation"])(reports, out)


def ends_well(name: str):
    """A film or zeros behind a JPEG are no damage."""

    def outcome(reports: Path, out: Path) -> None:
        data_folder(reports / "photos" / name, out)
        Case("check OUT/d", words=["1 file looked at", "clean: nothing found"], never=["truncated"])(reports, out)
        check_photo((reports / "photos" / name).read_bytes(), name)

    return outcome


def is_visible(name: str, exit_code: int, words: list[str]):
    """Crops and page show the photograph; an upload of it is taken."""

    def outcome(reports: Path, out: Path) -> None:
        path = reports / "photos" / name
        shown = np.asarray(Image.open(io.BytesIO(show_photo(path))).convert("RGB"))
        for pixels in (load_crop(path, 64), shown):
            assert 60 < pixels.mean() < 200 and np.ptp(pixels) > 40
        picture = check_photo(path.read_bytes(), name)
        assert (picture.kind, picture.width, picture.height) == ("tiff", *Image.open(path).size)
        data_folder(path, out)
        Case("check OUT/d --deep", exit_code=exit_code, words=words, never=["truncated", "error"])(reports, out)

    return outcome


DEEP = ["16-bit, once: the picture has more than 8 bits a channel; it is scaled to eight"]
CASES = {
    "photos/gps_zero.jpg": has_no_position,
    "photos/orientation_9.jpg": counts_as_upright,
    "photos/motion_photo.jpg": ends_well("motion_photo.jpg"),
    "photos/zero_padded.jpg": ends_well("zero_padded.jpg"),
    "photos/grey12in16.tif": is_visible("grey12in16.tif", 1, DEEP),
    "photos/float.tif": is_visible("float.tif", 1, DEEP),
    "photos/lab.tif": is_visible("lab.tif", 0, ["clean: nothing found"]),
}
