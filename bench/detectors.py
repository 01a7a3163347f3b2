"""What boxes are worth: detection, crops and encoder together, on real photographs.

1. How well do detectors box the animal? IoU with the boxes of others, of animals that the detector never saw: our own,
   trained on the others' boxes (animals held out, three parts) and on drawn animals (the demo's), the given sources
   among each other, and any detector named with --detector (a .keras or an .onnx with its card).
2. What is that worth for identification? MAP@5 of known individuals, three stratified folds, best photograph per
   individual, by each encoder on crops of each detector, of each given source, and on whole photographs. Intervals are
   bootstrapped over individuals; the gain is over whole photographs by the same encoder.

The photographs are `happywhale_photos` of the shared data. `--quick`: few photographs, epochs and pairs; nothing is
written.
"""

import argparse
import json
import os
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from happywhale_nb.core.artifacts import read_json, versions, write_json
from happywhale_nb.data.boxes import BOX, iou
from happywhale_nb.data.splits import make_folds
from happywhale_nb.demo.season import demo_model
from happywhale_nb.imaging.photo import photo_size
from happywhale_nb.networks.detector import detect_boxes, train_detector, whole_photos
from happywhale_nb.networks.detectors import best_boxes, open_detector
from happywhale_nb.networks.embedder import Embedder
from happywhale_nb.retrieval.metrics import average_precision, bootstrap_interval, mean_gain

HERE = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HAPPYWHALE_SHARED", HERE.parent / "shared" / "data"))
SOURCES = ("yolo_fullbody_achilleess", "detic_full", "backfin_KingOF")
ENCODERS = {"efficientnet_lite0, untrained": "efficientnet_lite0", "the demo's network": ""}
FOLDS = 3


# Photographs and boxes: `[n, 4]` in fractions of the photograph, rows of NaN where there is none


def photographs(quick):
    """Paths, individuals, and the boxes of each source."""
    root = SHARED / "happywhale_photos"
    train, given = pd.read_csv(root / "train.csv", dtype=str), pd.read_csv(root / "boxes.csv").set_index("image")
    if quick:
        train = train.groupby("individual_id", sort=False).head(6).reset_index(drop=True)
    given = given.loc[train["image"]]
    frame = np.tile(given[["W", "H"]].to_numpy(float), 2)
    boxes = {}
    for source in SOURCES:
        cells = given[source].fillna("nan nan nan nan").str.split(expand=True).astype(float).to_numpy()
        boxes[source] = (cells / frame).clip(0, 1)
    return [root / "images" / name for name in train["image"]], train, boxes


def detected(path, paths):
    """Boxes of a detector: the best wanted one of each photograph."""
    detector = open_detector(path)
    best = best_boxes(detector.detect(paths, quiet=False), detector.card).set_index("image")
    best = best.reindex([photo.name for photo in paths])
    return best[BOX].to_numpy(float) / np.tile(best[["W", "H"]].to_numpy(float), 2)


def trained(paths, train, truth, folder, quick):
    """Boxes of a detector of our own that has not seen the photograph's animal; trained on the boxes `truth`."""
    parts = 3
    fold = make_folds(train.assign(individual_id=train["individual_id"]), parts, 0, "disjoint").set_index("image")[
        "fold"
    ]
    fold, photos = fold[train["image"]].to_numpy(), whole_photos(paths, folder)
    known, boxes = ~np.isnan(truth).any(axis=1), np.full((len(paths), 4), np.nan)
    for part in range(parts):
        rows = known & (fold != part)
        model = train_detector(photos[rows], truth[rows], epochs=2 if quick else 60)
        boxes[fold == part] = detect_boxes(model, photos[fold == part])[BOX].to_numpy()
    return boxes


def agreement(name, boxes, truths, individuals):
    """Rows of IoU of a detector's boxes with those of each source; a photograph without a box counts as 0."""
    rows = []
    for source, truth in truths.items():
        known = ~np.isnan(truth).any(axis=1)
        if name == source or not known.any():
            continue
        found = ~np.isnan(boxes).any(axis=1)
        scores = iou(np.nan_to_num(boxes[known]), truth[known])
        low, high = bootstrap_interval(scores, individuals[known])
        rows.append(
            {
                "detector": name,
                "boxes of": source,
                "photographs": int(known.sum()),
                "without a box": int((known & ~found).sum()),
                "mean IoU": float(scores.mean()),
                "low": low,
                "high": high,
                "median IoU": float(np.median(scores)),
                "IoU > 0.5": float((scores > 0.5).mean()),
            }
        )
    return rows


# Identification


def embedded(embedder, paths, boxes):
    """Embeddings of the crops; whole photographs where there is no box."""
    crops = []
    for path, box in zip(paths, boxes, strict=True):
        size = photo_size(path)
        corners = None if np.isnan(box).any() else (box * np.tile(size, 2)).tolist()
        crops.append(embedder.crop(path, corners, None if corners is None else list(size)))
    return np.concatenate([embedder.encoder.embed(np.stack(crops[i : i + 32])) for i in range(0, len(crops), 32)])


def precisions(vectors, individuals):
    """Average precision at 5 of each photograph, by the best photograph of each individual of the other folds.

    `vectors` has an array for each fold, by the encoder that answers its queries.
    """
    found, names = np.zeros(len(individuals)), np.unique(individuals)
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(individuals, individuals))
    for (gallery, queries), rows in zip(folds, vectors, strict=True):
        cosine = rows[queries] @ rows[gallery].T
        best = np.stack([cosine[:, individuals[gallery] == name].max(axis=1, initial=-2) for name in names], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :5]
        found[queries] = average_precision(individuals[queries], names[order])
    return found, [rows for _, rows in folds]


def identification(name, embedders, paths, sources, individuals):
    """Rows of MAP@5 on each kind of crop, of one encoder or of one for each fold."""
    rows, whole = [], None
    for source, boxes in sources.items():
        vectors = [embedded(embedder, paths, boxes) for embedder in embedders]
        values, folds = precisions(vectors * (FOLDS // len(vectors)), individuals)
        whole = values if whole is None else whole
        low, high = bootstrap_interval(values, individuals)
        rows.append(
            {
                "encoder": name,
                "crops": source,
                "boxed": int((~np.isnan(boxes).any(axis=1)).sum()),
                "MAP@5": float(values.mean()),
                "low": low,
                "high": high,
                "folds": [float(values[rows].mean()) for rows in folds],
                "gain over whole": mean_gain(values - whole, individuals),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main():
    """Measure, print both tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few photographs and epochs; nothing is written")
    parser.add_argument("--case", choices=["boxes", "identification"], help="only this table; the file keeps the other")
    parser.add_argument("--detector", type=Path, action="append", default=[], help="another detector, repeatable")
    parser.add_argument("--encoder", action="append", default=[], help="another encoder's file or folder, repeatable")
    parser.add_argument("--tuned", type=Path, help="a model trained on these folds: FOLDER/fold0, … of recognition.py")
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "detectors.json")
    given = parser.parse_args()
    paths, train, truths = photographs(given.quick)
    individuals = train["individual_id"].to_numpy(str)
    with tempfile.TemporaryDirectory() as folder:
        ours = trained(paths, train, truths[SOURCES[0]], Path(folder), given.quick)
    found = {"own, animals held out": ours, "own, drawn animals": detected(demo_model("detector.keras"), paths)}
    found |= {path.stem: detected(path, paths) for path in given.detector}
    boxes = found | truths
    agreed = [row for name in boxes for row in agreement(name, boxes[name], truths, individuals)]
    if given.case != "identification":
        print(pd.DataFrame(agreed).round(3).to_string(index=False))
    whole, results = np.full((len(paths), 4), np.nan), []
    encoders = {name: [path or demo_model()] for name, path in ENCODERS.items()}
    encoders |= {Path(name).name: [name] for name in given.encoder}
    if given.tuned:
        encoders["fine-tuned"] = [given.tuned / f"fold{k}" / "model.keras" for k in range(FOLDS)]
    for name, places in [] if given.case == "boxes" else list(encoders.items()):
        embedders = [Embedder(place) for place in places]
        results += identification(name, embedders, paths, {"whole photographs": whole} | boxes, individuals)
        for embedder in embedders:
            embedder.close()
    if not given.quick:
        kept = read_json(given.to) if given.case and given.to.is_file() else {}
        tables = {"boxes": agreed, "identification": results}
        tables |= {name: kept[name] for name in tables if given.case not in (None, name) and name in kept}
        about = {"name": "detectors", "date": date.today().isoformat(), "photographs": len(paths)}
        about |= {
            "individuals": len(np.unique(individuals)),
            "versions": versions("tensorflow", "keras", "opencv-python"),
        }
        write_json(given.to, about | tables)


if __name__ == "__main__":
    main()
