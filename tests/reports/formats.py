"""What must happen with data folders that hold photographs of other formats than JPEG."""

import io
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import select

from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.ingest import ingest_dataset, recalibrate
from happywhale_nb.catalogue.schema import Photo
from happywhale_nb.catalogue.store import create_catalogue
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.formats import heic_reader
from happywhale_nb.server.app import make_app
from happywhale_nb.server.state import AppState, Options
from reports.harness import Case

# the reports' HEIC is a file's first bytes: with the extra it is listed, and damaged
HEIC = (
    ["4 to be identified", "not-a-photo, once", "test_images/b.HEIC: it begins as HEIC and is damaged"]
    if heic_reader()
    else ["3 to be identified", "not-read, once", "test_images/b.HEIC: HEIC photographs, which need an extra"]
)


def shown_on_the_page(reports: Path, out: Path) -> None:
    """Each photograph of `data/formats` is shown whole and as a crop, as a JPEG."""
    data = read_dataset(reports / "data" / "formats")
    catalogue, embedder = create_catalogue(out / "catalogue", data.root, "formats"), ColourEmbedder()
    assert ingest_dataset(catalogue, embedder, data, "colours") == 5
    catalogue.choose_model(embedder.fingerprint)
    recalibrate(catalogue)
    with catalogue.reading() as session:
        photos = {photo.id: photo.name for photo in session.scalars(select(Photo))}
    assert set(photos.values()) == {"cmyk.tif", "multi.tif", "plain.jpg", "still.webp", "x.bmp"}
    desk = AppState(catalogue, Options(tokens=False, rates={}), owner="Ann")
    desk.network.open(lambda: embedder)
    with TestClient(make_app(desk), base_url="http://127.0.0.1:8000") as client:
        for number, name in photos.items():
            for what in ("picture", "crop"):
                got = client.get(f"/api/photos/{number}/{what}", params={"side": 160})
                assert (got.status_code, got.headers["content-type"]) == (200, "image/jpeg"), (name, got.text)
                assert np.asarray(Image.open(io.BytesIO(got.content))).std() > 10, name
    catalogue.close()


CASES = {
    "data/formats": [
        Case(
            "check R/data/formats --deep",
            exit_code=1,
            words=["5 known photographs of 2 individuals", "5 files looked at", "cmyk, once"],
            never=["error", "not-read"],
        ),
        shown_on_the_page,
    ],
    "data/test_kinds": Case("check R/data/test_kinds --deep", exit_code=1, words=[*HEIC, "1 finding"]),
}
