"""COCO files of other tools: what each of them becomes."""

from pathlib import Path

import pandas as pd

from reports.harness import Case


def ids_stay_as_they_are(folder: Path) -> None:
    """A text stays a text."""
    assert pd.read_csv(folder / "train.csv", dtype=str)["individual_id"].tolist() == ["7", "0010.0"]


CASES = {
    "coco/ids_types": [
        Case(
            "import R/coco/ids_types/c.json --to OUT/d",
            words=["3 photographs of 2 individuals"],
            known={"7": 1, "8": 2},
        )
    ],
    "coco/backslash": [
        Case("import R/coco/backslash/c.json --to OUT/d", words=["2 photographs of 1 individual"], known={"7": 2})
    ],
    "coco/orphan": [
        Case(
            "import R/coco/orphan/c.json --to OUT/d --species fin_whale",
            words=[
                "left out: individuals without any photograph now, 1: 8",
                "annotations of images that are not listed, 1: annotation 2 of image 99 (8)",
                "categories that are not listed: their animals have no species, 1: category 5",
            ],
            known={"7": 1, "0010.0": 1},
            left_out=["without any photograph now,8", "annotation 2 of image 99 (8)", "category 5"],
            check=ids_stay_as_they_are,
        )
    ],
    "coco/empty_category": [
        Case(
            "import R/coco/empty_category/c.json --to OUT/d",
            words=["photographs without an animal, 1: b.jpg (empty)"],
            known={"7": 1},
            left_out=["b.jpg (empty)"],
        )
    ],
}
