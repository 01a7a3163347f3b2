"""What lists promise and what they hold on later encounters, when photographs and when encounters are held out.

1. A drawn season in bursts: each photograph is four frames of one second. The catalogue is what was met before the last
   two years, the questions are the encounters of these two. `before` calibrates with each frame as its own encounter,
   as tables without a column `encounter` were; `after` by `data.encounters`, one animal on one day.
2. Humpbacks and right whales, as far as $HAPPYWHALE_SHARED has them, by the demo's network, which has never seen a
   whale: a weak one. Four folds are the catalogue, the fifth asks. `before` says nine in ten whatever comes; `after`
   says what was measured, or that no short list can be promised.

The figures are written to docs/results/coverage.json (`--to`); `--quick` draws little and writes nothing.
"""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from happywhale_nb.data.boxes import read_boxes
from happywhale_nb.data.dataset import NEW, read_dataset
from happywhale_nb.data.encounters import assign_encounters
from happywhale_nb.demo.season import demo_model, draw_season
from happywhale_nb.networks.embedder import Embedder
from happywhale_nb.retrieval.conformal import measure_coverage
from happywhale_nb.retrieval.gallery import Gallery
from happywhale_nb.retrieval.identifier import DEPTH, calibrate, identify_individual

FRAMES, ASKED = 4, 0.9


def frame(crop, rng):
    """The same moment once more: moved by at most two pixels in a hundred, a little lighter or darker, compressed."""
    height, width = crop.shape[:2]
    shift = rng.uniform(-0.02, 0.02, 2) * (width, height)
    zoom = rng.uniform(0.98, 1.02)
    moved = cv2.warpAffine(
        crop, np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]]), (width, height), borderMode=cv2.BORDER_REFLECT
    )
    return np.clip(moved * rng.uniform(0.95, 1.05), 0, 255).astype(np.uint8)


def season_frames(folder, individuals, embedder):
    """A drawn season as a table of frames (image, individual_id, date, photo) and their embeddings."""
    data = draw_season(folder / "season", seed=5, individuals=individuals, undecided=individuals // 2, progress=False)
    dataset, boxes = read_dataset(data), read_boxes(data)
    met = pd.read_csv(data / "encounters.csv", dtype=str).set_index("image")
    truth = dict(zip(dataset.train["image"], dataset.train["individual_id"], strict=True))
    rng, rows, paths = np.random.default_rng(0), [], []
    named = zip(dataset.train["image"], dataset.train_paths(), strict=True)
    for (image, path), (_, box, size) in zip(named, embedder.crop_boxes(list(truth), boxes), strict=True):
        crop = embedder.crop(path, box, size)
        for number in range(FRAMES):
            paths.append(folder / f"{Path(image).stem}_{number}.png")
            cv2.imwrite(str(paths[-1]), cv2.cvtColor(frame(crop, rng), cv2.COLOR_RGB2BGR))
            rows.append((paths[-1].name, truth[image], met["date"][image], image))
    return pd.DataFrame(rows, columns=["image", "individual_id", "date", "photo"]), embedder.embed(paths)


def ask(made, known, vectors, truth, encounters):
    """Coverage of the lists of later encounters, all frames of each as one query, and how long the lists are."""
    held, sizes = [], []
    certain = replace(made, coverage=1.0, coverage_low=1.0, coverage_high=1.0, coverage_encounters=1)
    certain = replace(certain, several=None)  # both calibrations answer by the list of one photograph
    for number in np.unique(encounters):
        rows = np.flatnonzero(encounters == number)[:1]
        found = identify_individual(known, certain, vectors[rows], k=DEPTH)
        listed = found.names[found.in_set] if np.isfinite(made.distance) else found.names
        name = truth[rows[0]] if truth[rows[0]] in known.counts() else NEW
        held.append(name in listed)
        sizes.append(len(listed))
    later = measure_coverage(held, np.arange(len(held)), 1 - ASKED, made.distance)
    return {"rate": later.rate, "low": later.low, "high": later.high, "encounters": later.encounters}, np.mean(sizes)


def compare(vectors, table, later, units):
    """Promise and outcome of `before`, each photograph an encounter, and of `after`, by `units`."""
    individuals, results = table["individual_id"].to_numpy(str), {}
    known = Gallery().fit(vectors[~later], individuals[~later])
    for name, encounters in (("before", np.arange(len(table))), ("after", units)):
        past = ~later & (individuals != "")
        made = calibrate(vectors[past], individuals[past], encounters[past], np.ones(past.sum(), bool), 1 - ASKED)
        outcome, size = ask(made, known, vectors[later], individuals[later], units[later])
        says = (
            f"in the list that holds the truth {ASKED:.0%} of the time" if name == "before" else made.measured.sentence
        )
        results[name] = {
            "says": says,
            "promised": name == "before" or made.measured.is_kept,
            "asked": ASKED,
            "measured when built": made.coverage,
            "interval": [made.coverage_low, made.coverage_high],
            "encounters when built": made.coverage_encounters,
            "limit": made.distance if np.isfinite(made.distance) else None,
            "later": outcome,
            "names in a list": float(size),
        }
    return results


def drawn_season(folder, quick, embedder):
    table, vectors = season_frames(folder, 12 if quick else 150, embedder)
    later = (table["date"] >= "2022").to_numpy()
    units = pd.factorize(assign_encounters(table)["encounter"])[0]
    return compare(vectors, table, later, units)


def real_whales(folder, embedder):
    """Photographs of fold 0 are asked, the others are known; each is an encounter, for the tables say no more."""
    folds = pd.read_csv(folder / "folds.csv", dtype=str, keep_default_na=False)
    if "rare" in folds:
        folds = folds[folds["rare"] == "0"]
    later = (folds["fold"] == "0").to_numpy()
    known = later | (folds["individual_id"] != "").to_numpy()
    folds, later = folds[known].reset_index(drop=True), later[known]
    vectors = embedder.embed([folder / "images" / name for name in folds["image"]])
    folds["individual_id"] = folds["individual_id"].where(folds["individual_id"] != "", "nobody")
    return compare(vectors, folds, later, np.arange(len(folds)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little, to see that it works")
    parser.add_argument("--to", type=Path, default=Path("docs/results/coverage.json"))
    given = parser.parse_args()
    shared = Path(os.environ.get("HAPPYWHALE_SHARED", "../shared/data"))
    embedder, results = Embedder(demo_model()), {}
    with tempfile.TemporaryDirectory() as folder:
        results["drawn season in bursts"] = drawn_season(Path(folder), given.quick, embedder)
    for name, kind in (("humpback", "humpbacks"), ("rightwhale80", "right whales")):
        if (shared / name / "folds.csv").is_file() and not given.quick:
            results[f"{kind}, by a network that never saw a whale"] = real_whales(shared / name, embedder)
    embedder.close()
    print("| data | | says | later encounters | names in a list |\n|---|---|---|---|--:|")
    for data, both in results.items():
        for name, one in both.items():
            later = "{rate:.2f} ({low:.2f} to {high:.2f}) of {encounters}".format(**one["later"])
            print(f"| {data} | {name} | {one['says']} | {later} | {one['names in a list']:.1f} |")
    if not given.quick:
        given.to.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
