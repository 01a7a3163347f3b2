"""What must happen with the folders of the reports, and with other layouts of the same kinds."""

from pathlib import Path

import numpy as np
from PIL import Image

from happywhale_nb.data.formats import heic_reader
from reports.harness import Case

HEIC = "cannot be opened: damaged" if heic_reader() else "pip install 'happywhale_nb[heic]'"
RAW = "which are not read: export them as JPEG (.cr2, .dng), 2: Hope/IMG_9.CR2, Hope/IMG_9.DNG"


def same_bytes(folder: Path) -> None:
    """Every photograph of `folders/collision` arrived with its own content."""
    images = sorted((folder / "train_images").iterdir())
    assert len({path.read_bytes() for path in images}) == len({path.name.lower() for path in images}) == 4


def put(*names: str, top: Path) -> None:
    """Draw a photograph for each name."""
    for i, name in enumerate(names):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([i, len(name)]).integers(0, 255, (6, 9, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((72, 48)).save(path, "JPEG")


def linked(reports: Path, out: Path) -> None:
    """A link that leads out of the chosen folder is named with its animal; it is followed on request."""
    put("D/Sirius/a.jpg", "E/Hope/b.jpg", top=out)
    (out / "D" / "Hope").symlink_to("../E/Hope")
    words = [
        "individuals without any photograph now, 1: Hope",
        "links to folders outside the chosen one",
        "--follow-links",
    ]
    Case("import OUT/D --to OUT/d", words=words, known={"Sirius": 1}, left_out=["Hope", "Hope"])(reports, out)
    followed = Case("import OUT/D --to OUT/f --follow-links", words=["2 individuals"], known={"Sirius": 1, "Hope": 1})
    followed(reports, out)
    (out / "D" / ".store").mkdir()
    (out / "E" / "Hope").rename(out / "D" / ".store" / "Hope")
    (out / "D" / "Hope").unlink()
    (out / "D" / "Hope").symlink_to(".store/Hope")
    (out / "D" / "Sirius" / "all").symlink_to("..")
    Case(
        "import OUT/D --to OUT/i", words=["2 individuals", "links to folders that are read already"],
        known={"Sirius": 1, "Hope": 1}, left_out=["Sirius/all", ".store"],
    )(reports, out)  # fmt: skip


CASES = {
    "folders/formats": [
        Case(
            "import R/folders/formats --to OUT/d --species fin_whale",
            words=["9 photographs of 5 individuals", "individuals without any photograph now, 1: Vega", HEIC, RAW],
            known={"Hope": 1, "Lyra": 2, "Nova": 2, "Orion": 2, "Sirius": 2},
            left_out=["Vega", "Hope/IMG_3.heic", "Vega/IMG_1.HEIC", "Vega/IMG_2.HEIC", "Hope/IMG_9.CR2", "IMG_9.DNG"],
        ),
    ],
    "folders/apple": [
        Case(
            "import R/folders/apple --to OUT/d --species fin_whale",
            words=["3 photographs of 2 individuals", "hidden files and thumbnails of other programs, 3: Hope/._a1.jpg"],
            known={"Hope": 2, "Sirius": 1},
            left_out=["Hope/._a1.jpg", "Hope/._a2.jpg", "Sirius/._b1.jpg"],
        ),
    ],
    "folders/eadir": [
        Case(
            "import R/folders/eadir --to OUT/d --species fin_whale",
            words=["3 photographs of 2 individuals", "hidden files and thumbnails of other programs, 1: Hope/@eaDir"],
            known={"Hope": 2, "Sirius": 1},
            left_out=["Hope/@eaDir"],
        ),
    ],
    "folders/collision": [
        Case(
            f"import R/folders/collision --to OUT/d --species fin_whale {copy}",
            words=["4 photographs of 3 individuals", "another name"],
            known={"A": 1, "B": 1, "C": 2},
            check=same_bytes,
        )
        for copy in ("", "--copy")
    ],
    "a folder with a link to": linked,
}
