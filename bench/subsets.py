"""From how many photographs a training pays: fine-tuned against ImageNet's features with an adapter, on subsets.

Subsets of the real photographs are nested: the first 5 individuals of a random order are among the first 10. Some have
a few photographs of each individual only, the first ones of a random order again. Each becomes a data folder with two
stratified folds; of large ones the first fold alone is measured. Both models are made by the study's own stages:

* adapter: `efficientnet_lite0`, nothing trained, an adapter where it pays, which is what `happywhale start` does;
* fine-tuned: the preset of the kind of photograph.

"known" are the photographs that a network is trained on, and among which the others are looked for. The gain is the
mean difference of average precision, query by query; its 95 % interval is a bootstrap over individuals.
`training_pays_from` is the smallest number of known photographs from which the fine-tuned network was better in every
subset, provided that this is beyond chance in the largest; null, if it was not. `happywhale start` reads it.

    python bench/subsets.py [--quick] [--set NAME ...] [--only INDIVIDUALS] [--work FOLDER]

It takes about forty minutes of one core, and goes on where it was stopped if `--work` names a folder. A part, by --set
or --only, is shown and not written.
"""

import argparse
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from recognition import HERE, SHARED, UNTRAINED, data_folder, made, measure_fold, run_fold, shown_seconds
from sklearn.model_selection import StratifiedKFold

from happywhale_nb.core.artifacts import versions, write_json
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.demo.dataset import draw_demo
from happywhale_nb.retrieval.metrics import mean_gain
from happywhale_nb.stages.study_split import study_folds

FOLDS, BOTH_BELOW = 2, 500  # photographs of a subset below which both folds are measured
ADAPTER, TUNED = "adapter", "fine-tuned"


@dataclass(frozen=True)
class Subset:
    """The first individuals of a random order, with so many photographs of each at most; 0: all there are."""

    individuals: int
    most: int = 0

    @property
    def name(self):
        return f"{self.individuals} individuals" + f", {self.most} photographs of each at most" * bool(self.most)

    def of(self, rows, seed=0):
        """The subset's rows of a table (image, individual_id, species), with their folds."""
        rng, names = np.random.default_rng(seed), np.unique(rows["individual_id"])
        chosen = rng.permutation(names)[: self.individuals]
        rows = rows.iloc[rng.permutation(len(rows))]  # the same order in every subset
        rows = rows[rows["individual_id"].isin(chosen)]
        if self.most:
            rows = rows[rows.groupby("individual_id").cumcount() < self.most]
        rows = rows.sort_values("image", ignore_index=True).assign(fold=0)
        split = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(rows, rows["individual_id"])
        for fold, (_, queries) in enumerate(split):
            rows.loc[queries, "fold"] = fold
        return rows


# The sets: their photographs, the preset that is fine-tuned, the subsets


def happywhale_photos(work):
    source = SHARED / "happywhale_photos"
    return pd.read_csv(source / "train.csv", dtype=str)[["image", "species", "individual_id"]], source / "crops224"


def humpback(work):
    rows = pd.read_csv(SHARED / "humpback" / "folds.csv", dtype={"individual_id": str})
    known = rows[rows["new"] == 0][["image", "individual_id"]]
    return known.assign(species="humpback_whale"), SHARED / "humpback" / "images"


def drawn(work):
    if not (work / "drawn" / "train.csv").is_file():
        draw_demo(work / "drawn", individuals=8, train_photos=48, test_photos=4, progress=False)
    table = pd.read_csv(work / "drawn" / "train.csv", dtype=str)[["image", "species", "individual_id"]]
    often = table.groupby("individual_id")["image"].transform("size") >= FOLDS
    return table[often], work / "drawn" / "train_images"


SETS = {
    "happywhale_photos": (
        happywhale_photos,
        {"preset": "efficientnet_lite0_arcface"},
        [Subset(14, 2), Subset(14, 4), Subset(5), Subset(14, 8), Subset(10), Subset(14)],
    ),
    "humpback": (
        humpback,
        {"preset": "efficientnet_lite0_flukes"},
        [Subset(15), Subset(60, 2), Subset(30), Subset(240, 2), Subset(60), Subset(120)],
    ),
}
QUICK = {
    "drawn": (
        drawn,
        {"preset": "efficientnet_lite0_arcface", "overrides": "epochs=2 image_size=48"},
        [Subset(4, 2), Subset(6)],
    )
}


# Measuring


def measure(set_name, subset, rows, photos, tuned, work):
    """A row of the result: both models on the subset's folds, and the gain of the training."""
    place = work / f"{set_name}-{subset.individuals}-{subset.most}"
    table = subset.of(rows)
    dataset = read_dataset(made(place / "data", lambda root: data_folder(root, table, photos)))
    folds = study_folds(dataset, place / "study")
    models = {ADAPTER: UNTRAINED["adapter"], TUNED: tuned}
    scores, seconds, known = {name: [] for name in models}, [], []
    for fold in range(FOLDS if len(table) < BOTH_BELOW else 1):
        for name, model in models.items():
            folders, took = run_fold(dataset, folds, fold, name.replace("-", "_"), model, place / "study")
            scores[name].append(measure_fold(dataset, folds, fold, folders))
            if name == TUNED and took is not None:
                seconds.append(took)
        known.append(int((table["fold"] != fold).sum()))
    before, after = (np.concatenate([each["precision"] for each in scores[name]]) for name in (ADAPTER, TUNED))
    who = np.concatenate([each["individuals"] for each in scores[ADAPTER]])
    return {
        **{"set": set_name, "individuals": subset.individuals, "most": subset.most, "photographs": len(table)},
        **{"known": round(float(np.mean(known))), "queries": len(who), "folds": len(known), **tuned},
        **{"map5": {ADAPTER: float(before.mean()), TUNED: float(after.mean())}, **mean_gain(after - before, who)},
        "core_seconds": round(float(np.median(seconds)), 1) if seconds else None,
    }


def pays_from(rows):
    """The smallest number of known photographs from which every subset gained; None without a gain beyond chance."""
    largest = max(rows, key=lambda row: row["known"])
    if not largest["low"] > 0:
        return None
    worse = max((row["known"] for row in rows if row["gain"] <= 0), default=0)
    return min((row["known"] for row in rows if row["known"] > worse), default=None)


def line(row):
    each = row["most"] or "all"
    gain = f"{row['gain']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
    scores = " | ".join(f"{row['map5'][name]:.3f}" for name in (ADAPTER, TUNED))
    counts = f"{row['individuals']} | {each} | {row['known']} | {row['queries']}"
    return f"| {row['set']} | {counts} | {scores} | {gain} | {shown_seconds([row])} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few drawn photographs, two epochs; nothing is written")
    parser.add_argument("--set", choices=SETS, action="append", help="only these; nothing is written")
    parser.add_argument("--only", type=int, action="append", help="only subsets of so many individuals; as --set")
    parser.add_argument("--work", type=Path, help="a folder in which data folders and studies are kept")
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "encoders_subsets.json")
    given = parser.parse_args()
    work, rows = (given.work or Path(tempfile.mkdtemp())).absolute(), []
    sets = QUICK if given.quick else {name: SETS[name] for name in given.set or SETS}
    print("| set | individuals | of each | known | queries | adapter | fine-tuned | gain | core-seconds a fold |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for name, (read, tuned, subsets) in sets.items():
        table, photos = read(work)
        for subset in subsets:
            if given.only and subset.individuals not in given.only:
                continue
            rows.append(measure(name, subset, table, photos, tuned, work))
            print(line(rows[-1]), flush=True)
    print(f"\ntraining pays from {pays_from(rows) or '–'} photographs of known animals")
    if given.quick or given.set or given.only:
        print("a part, or drawn photographs: nothing was written")
        return
    facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions("numpy", "keras")}
    write_json(given.to, {"name": "encoders_subsets", "training_pays_from": pays_from(rows), **facts, "results": rows})


if __name__ == "__main__":
    main()
