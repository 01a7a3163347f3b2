"""What an adapter is worth on the features of ImageNet's networks, which have seen no animal of these sets.

Each set is scored by the best photograph of each individual, MAP@5. "known": the set's own folds, gallery and adapter
without the queries. "grown": a gallery of all individuals, the adapter fitted to half of them. "others": adapter fitted
to half of the individuals, the other half among themselves. Intervals are 95 % bootstraps over individuals. What was
chosen by looking at folds 0 and 1 is also given for the other folds alone.

    python bench/adapters.py [--quick] [--set NAME] [--cache FOLDER] [--to docs/results/adapters.json]

Without HAPPYWHALE_SHARED there are only drawn photographs. `--cache` keeps embeddings, which take most of the time.
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from happywhale_nb.core.artifacts import read_json, versions, write_json
from happywhale_nb.data.boxes import BOX, read_boxes
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.demo.season import draw_season
from happywhale_nb.imaging.crops import load_crop
from happywhale_nb.networks.adapter_training import train_arcface
from happywhale_nb.networks.card_encoder import BATCH_SIZES, CardEncoder
from happywhale_nb.networks.keras_encoders import lite_card, lite_file, lite_function
from happywhale_nb.retrieval.adapter import KINDS
from happywhale_nb.retrieval.adapters import (
    choose_adapter,
    cross_scores,
    deal_photographs,
    fit_adapters,
    fit_weights,
)
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.metrics import auroc_new, average_precision, bootstrap_interval, mean_gain
from happywhale_nb.retrieval.vectors import unit_rows

HERE = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HAPPYWHALE_SHARED", HERE.parent / "shared" / "data"))
COMPUTED = [kind for kind in KINDS if kind != "arcface"]
CHOICE_FOLDS = 2  # folds 0 and 1: what is decided by looking is decided on them


# Photographs


@dataclass
class Photographs:
    """Photographs, whom they show ("": nobody known, always a query), and the fold of each (-1: none)."""

    paths: list
    individuals: np.ndarray
    fold: np.ndarray
    boxes: list


def happywhale_photos():
    root = SHARED / "happywhale_photos"
    names = pd.read_csv(root / "train.csv", dtype=str)
    who, fold = names["individual_id"].to_numpy(str), np.empty(len(names), int)
    for k, (_, queries) in enumerate(StratifiedKFold(3, shuffle=True, random_state=0).split(who, who)):
        fold[queries] = k
    return Photographs([root / "crops224" / name for name in names["image"]], who, fold, [None] * len(who))


def of_folds(folder, apart):
    """A set with a table of folds, whose column `apart` marks photographs that are never in the gallery."""
    root = SHARED / folder
    table = pd.read_csv(root / "folds.csv", dtype={"individual_id": str}).fillna({"individual_id": ""})
    who = np.where(table[apart] == 1, "", table["individual_id"].to_numpy(str))
    place = next(path for path in root.rglob(table["image"][0])).parent
    paths = [place / name for name in table["image"]]
    return Photographs(paths, who, table["fold"].to_numpy(), [None] * len(who))


def drawn(quick):
    root = draw_season(Path(tempfile.mkdtemp()) / "season", 5, 20 if quick else 60, 6 if quick else 40, progress=False)
    dataset, boxes = read_dataset(root), read_boxes(root)
    first = boxes[boxes["source"] == "fullbody"].drop_duplicates("image").set_index("image")
    who, paths = dataset.train["individual_id"].to_numpy(str), dataset.train_paths()
    given = [first.loc[p.name, BOX].astype(float).tolist() if p.name in first.index else None for p in paths]
    fold = deal_photographs(np.unique(who, return_inverse=True)[1], parts=3)
    return Photographs(paths, who, fold, given)


# Embeddings


def embed(data, number, height, width, cache, name):
    """`[n, 1280]` of EfficientNet-Lite `number`, averaged over the photograph and its mirror image, and seconds."""
    file = cache / f"{name}_{number}_{height}x{width}.npz" if cache else None
    if file and file.is_file():
        with np.load(file) as arrays:
            return arrays["vectors"], float(arrays["seconds"])
    began, built_in = time.perf_counter(), f"efficientnet_lite{number}"
    card = replace(lite_card(built_in), height=height, width=width, mirror="side")
    encoder = CardEncoder(card, lite_function(lite_file(built_in), card), BATCH_SIZES)
    vectors = []
    for start in range(0, len(data.paths), 64):
        rows = range(start, min(start + 64, len(data.paths)))
        crops = [load_crop(data.paths[i], (height, width), data.boxes[i]) for i in rows]
        vectors.append(encoder.embed(np.stack(crops)))
    vectors, seconds = np.concatenate(vectors), time.perf_counter() - began
    if file:
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, vectors=vectors, seconds=seconds)
    return vectors, seconds


# Scores


def answers(adapter, vectors, data, fold):
    """Average precision of a fold's known queries, their individuals, and the best cosine of known and of new ones."""
    rows, named, own = adapter.transform(vectors), data.individuals != "", data.fold == fold
    head = KNNHead().fit(rows[named & ~own], data.individuals[named & ~own])
    asked = named & own & np.isin(data.individuals, head.classes_)
    ids, scores = head.rank(rows[asked])
    new = head.rank(rows[own & ~named])[1][:, 0]
    truth = np.r_[np.full(len(scores), "known"), np.full(len(new), "new_individual")]
    auroc = auroc_new(truth, np.r_[scores[:, 0], new])
    return average_precision(data.individuals[asked], ids), data.individuals[asked], auroc


def fits(vectors, who, trained):
    """Kind → adapter, with the choice among those that are computed as "auto"."""
    choice = choose_adapter(vectors, who)
    adapters = fit_adapters(vectors, who, COMPUTED) | {"auto": choice.adapter}
    if trained:
        adapters["arcface"] = train_arcface(vectors, who)
    return adapters, choice


def rounded(value):
    return round(float(value), 4)


def known_rows(vectors, data, trained):
    """Kind → row of figures over the set's folds, and the choices."""
    named, scores, owners, aurocs, choices = data.individuals != "", {}, [], {}, []
    for fold in range(data.fold.max() + 1):
        gallery = named & (data.fold != fold)
        adapters, choice = fits(vectors[gallery], data.individuals[gallery], trained)
        facts = {key: rounded(getattr(choice, key)) for key in ("gain", "low", "high", "p", "seconds")}
        choices.append({"kind": choice.kind, **facts})
        for kind, adapter in adapters.items():
            values, who, auroc = answers(adapter, vectors, data, fold)
            scores.setdefault(kind, []).append(values)
            aurocs.setdefault(kind, []).append(auroc)
        owners.append(who)
    rows, owner = {}, np.concatenate(owners)
    for kind, values in scores.items():
        means = [rounded(each.mean()) for each in values]
        low, high = bootstrap_interval(np.concatenate(values), owner)
        gain = mean_gain(np.concatenate(values) - np.concatenate(scores["none"]), owner)
        rows[kind] = {"map5": rounded(np.mean(means)), "low": rounded(low), "high": rounded(high), "folds": means}
        rows[kind] |= {
            "other_folds": rounded(np.mean(means[CHOICE_FOLDS:])),
            "auroc_new": rounded(np.mean(aurocs[kind])),
        }
        rows[kind]["gain"] = {name: rounded(value) for name, value in gain.items()}
    return rows, choices


def grown_rows(vectors, data, trained):
    """Kind → MAP@5 of all queries and of the old animals' where half of the gallery's animals are new."""
    named = data.individuals != ""
    rows, who = vectors[named], data.individuals[named]
    codes = np.unique(who, return_inverse=True)[1]
    half = np.random.default_rng(0).permutation(codes.max() + 1)[: (codes.max() + 2) // 2]
    old = np.isin(codes, half)

    def fit(some, names):
        return fit_adapters(some, names, COMPUTED) | ({"arcface": train_arcface(some, names)} if trained else {})

    table, found = cross_scores(rows, who, deal_photographs(codes), fit, old), {}
    for kind, values in table.items():
        asked = values >= 0
        gain = mean_gain((values - table["none"])[asked], who[asked])
        found[kind] = {"map5": rounded(values[asked].mean()), "old": rounded(values[asked & old].mean()),
                       "gain": {name: rounded(value) for name, value in gain.items()}}  # fmt: skip
    return found


def others_rows(vectors, data, trained):
    """Kind → MAP@5 of individuals among themselves, the adapter fitted to other ones; both halves in turn."""
    named = data.individuals != ""
    rows, who = vectors[named], data.individuals[named]
    codes = np.unique(who, return_inverse=True)[1]
    half = np.isin(codes, np.random.default_rng(0).permutation(codes.max() + 1)[: (codes.max() + 2) // 2])
    part, values = deal_photographs(codes), {}
    for own in (half, ~half):
        adapters = fit_adapters(rows[~own], who[~own], COMPUTED)
        if trained:
            adapters["arcface"] = train_arcface(rows[~own], who[~own])
        fixed = lambda *_, adapters=adapters: adapters  # noqa: E731
        for kind, scores in cross_scores(rows[own], who[own], part[own], fixed).items():
            values.setdefault(kind, np.full(len(who), -1.0))[own] = scores
    found = {}
    for kind, scores in values.items():
        asked = scores >= 0
        gain = mean_gain((scores - values["none"])[asked], who[asked])
        found[kind] = {"map5": rounded(scores[asked].mean()), "gain": {k: rounded(v) for k, v in gain.items()}}
    return found


def measured(name, encoder, vectors, data, seconds, trained):
    known, choices = known_rows(vectors, data, trained)
    found = {"known": known, "grown": grown_rows(vectors, data, trained), "others": others_rows(vectors, data, trained)}
    result = {"set": name, "encoder": encoder, "photographs": len(data.paths), "seconds": rounded(seconds)}
    result |= {"individuals": len(np.unique(data.individuals[data.individuals != ""])), **found, "choices": choices}
    print_rows(result)
    return result


def print_rows(result):
    title = f"{result['set']}, {result['encoder']}: {result['photographs']} photographs of {result['individuals']}"
    print(f"\n{title} individuals, embedded in {result['seconds']:.0f} s\n")
    print("| adapter | MAP@5 | 95 % | folds but 0 and 1 | gain | AUROC of new | grown (old) | others |")
    print("|---|--:|---|--:|---|--:|--:|--:|")
    for kind, row in result["known"].items():
        gain, grown, others = row["gain"], result["grown"].get(kind), result["others"].get(kind)
        cells = [kind, f"{row['map5']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", f"{row['other_folds']:.3f}"]
        cells += [
            f"{gain['gain']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})",
            "" if np.isnan(row["auroc_new"]) else f"{row['auroc_new']:.3f}",
        ]
        cells += [
            f"{grown['map5']:.3f} ({grown['old']:.3f})" if grown else "",
            f"{others['map5']:.3f}" if others else "",
        ]
        print("| " + " | ".join(cells) + " |")
    kinds = ", ".join(f"{each['kind']} ({each['seconds']:.0f} s)" for each in result["choices"])
    print(f"\nchosen by fold: {kinds}", flush=True)


def side_by_side(name, blocks, data):
    """Weights that are fitted to the gallery of fold 0."""
    named = (data.individuals != "") & (data.fold != 0)
    fitted = fit_weights([block[named] for block in blocks], data.individuals[named])
    print(f"\n{name}: {fitted.sentence}")
    return {"set": name, **{key: value for key, value in vars(fitted).items()}}


SETS = {  # name: photographs, and (number, height, width, whether ArcFace is trained) of each encoder
    "happywhale_photos": (happywhale_photos, [(0, 224, 224, True), (1, 240, 240, False), (2, 260, 260, False)]),
    "humpback": (lambda: of_folds("humpback", "new"), [(0, 128, 256, True), (0, 192, 384, False)]),
    "rightwhale80": (lambda: of_folds("rightwhale80", "rare"), [(0, 128, 128, False)]),
}


def measure_set(name, cache, keep):
    """Measure all encoders of a set; `keep` is called after each with what is new."""
    make, encoders = SETS[name]
    data, blocks, total = make(), [], 0
    for number, height, width, trained in encoders:
        vectors, seconds = embed(data, number, height, width, cache, name)
        keep(measured(name, f"Lite{number} {width} × {height}", vectors, data, seconds, trained), None)
        blocks.append(vectors)
        total += seconds
    if len({number for number, *_ in encoders}) == len(encoders) > 1:
        weights = side_by_side(name, blocks, data)
        joined = unit_rows(np.concatenate(blocks, axis=1))
        keep(measured(name, "side by side", joined, data, total, False), weights)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few drawn photographs, small; nothing is written")
    parser.add_argument("--cache", type=Path, help="a folder in which embeddings are kept")
    parser.add_argument("--set", choices=SETS, action="append", help="only these sets; the file keeps what else it has")
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "adapters.json")
    given = parser.parse_args()
    if given.quick or not SHARED.is_dir():
        data = drawn(given.quick)
        vectors, seconds = embed(data, 0, 96, 96, given.cache, "drawn")
        measured("drawn", "Lite0 96 × 96", vectors, data, seconds, True)
        return
    before = read_json(given.to) if given.set and given.to.is_file() else {"results": [], "side_by_side": []}
    chosen = given.set or list(SETS)
    kept = {key: [each for each in before[key] if each["set"] not in chosen] for key in ("results", "side_by_side")}
    facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions("numpy", "keras")}

    def keep(result, weights):
        kept["results"].append(result)
        kept["side_by_side"] += [weights] if weights else []
        write_json(given.to, {"name": "adapters", **facts, **kept})

    for name in chosen:
        measure_set(name, given.cache, keep)


if __name__ == "__main__":
    main()
