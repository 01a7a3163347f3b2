"""Two claims of section 3: small k is unstable for rare animals (3.8), and new is what is farther than .62 (3.7, 3.9).

Embeddings are those of bench/recognition.py, fine-tuned and untrained, on the same folds. "k" compares the vote of
the k nearest photographs, and the nearest photograph of each individual among them, by how many photographs of the
individual are in the gallery. "thresholds" reads .62 as a distance 1 - cosine, which agrees with the paper's
confidence .38, and as a distance of vectors of length 1, which does not; beside it the threshold that is fitted to the
other folds. Intervals are 95 % bootstraps over individuals; photographs of new animals count one each.

    python bench/neighbours.py [--quick] [--work FOLDER]    # of bench/recognition.py; without it all is trained anew
"""

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from recognition import FEW, HERE, SETS, UNTRAINED, made, run_fold

from happywhale_nb.core.artifacts import versions, write_json
from happywhale_nb.data.dataset import NEW, read_dataset
from happywhale_nb.data.splits import gallery_and_queries, open_set_truth
from happywhale_nb.retrieval.embeddings import read_embeddings
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.metrics import average_precision, bootstrap_interval
from happywhale_nb.retrieval.open_set import fit_threshold, rank_new
from happywhale_nb.stages.study_split import study_folds

KS = (1, 3, 5, 10, 20, 50, 100, 200)
BINS = {"1 photograph": (1, 2), "2 to 4": (2, 5), "5 to 9": (5, 10), "10 and more": (10, np.inf)}
READINGS = {"1 - cosine": 1 - 0.62, "distance of unit vectors": 1 - 0.62**2 / 2}  # the cosine below which it is new


def queries(dataset, folds, fold, place):
    """Gallery, queries with the new animals of the test photographs, and truth of a fold."""
    gallery, query = gallery_and_queries(folds, fold)
    who, stored = folds["individual_id"].to_numpy(str), read_embeddings(place / "embeddings.parquet")
    vectors = stored.of("train", folds["image"])
    table = dataset.root / "all_folds.csv"
    fold_of = pd.read_csv(table).set_index("image")["fold"] if table.is_file() else {}
    new = [image for image in dataset.test["image"] if fold_of.get(image, -1) == fold]
    asked = np.concatenate([vectors[query], stored.of("test", new)]) if new else vectors[query]
    truth = np.r_[open_set_truth(who[query], who[gallery]), np.full(len(new), NEW)]
    names = np.r_[who[query], np.array([f"new {image}" for image in new], dtype=str)]  # each counts as one animal
    return (vectors[gallery], who[gallery]), asked, truth, names


def by_k(found):
    """MAP@5 of known individuals by k, rule and number of photographs."""
    rows = []
    for rule in ("max", "vote"):
        for k in KS:
            scores = []
            for (vectors, who), asked, truth, names in found:
                known, counts = truth != NEW, pd.Series(who).value_counts()
                ids, _ = KNNHead(n_neighbors=k, aggregate=rule).fit(vectors, who).rank(asked[known])
                row = {"precision": average_precision(truth[known], ids), "individual": names[known]}
                scores.append(pd.DataFrame(row | {"photographs": counts[truth[known]].to_numpy()}))
            table = pd.concat(scores)
            for name, (low, high) in {"all": (1, np.inf), **BINS}.items():
                part = table[(table["photographs"] >= low) & (table["photographs"] < high)]
                if len(part):
                    ends = bootstrap_interval(part["precision"], part["individual"])
                    row = {"rule": rule, "k": k, "photographs": name, "queries": len(part)}
                    rows.append(row | {"map5": part["precision"].mean(), "low": ends[0], "high": ends[1]})
    return rows


def by_threshold(found):
    """What thresholds give: fractions called new, and MAP@5 with new individuals."""
    ranked = [KNNHead().fit(vectors, who).rank(asked) for (vectors, who), asked, _, _ in found]
    truths = [truth for _, _, truth, _ in found]
    if not any((truth == NEW).any() for truth in truths):
        return []
    fitted = []
    for fold in range(len(found)):
        others = [n for n in range(len(found)) if n != fold]
        parts = [np.concatenate([ranked[n][part] for n in others]) for part in (0, 1)]
        fitted.append(fit_threshold(*parts, np.concatenate([truths[n] for n in others])))
    rows = []
    for name, thresholds in {**{n: [t] * len(found) for n, t in READINGS.items()}, "fitted": fitted}.items():
        called = np.concatenate([r[1][:, 0] < t for r, t in zip(ranked, thresholds, strict=True)])
        answers = np.concatenate([rank_new(*r, t) for r, t in zip(ranked, thresholds, strict=True)])
        truth, who = np.concatenate(truths), np.concatenate([names for *_, names in found])
        precision = average_precision(truth, answers)
        low, high = bootstrap_interval(precision, who)
        row = {"threshold": name, "cosine": float(np.mean(thresholds)), "new_called_new": called[truth == NEW].mean()}
        row |= {"known_called_new": called[truth != NEW].mean(), "map5": precision.mean(), "low": low, "high": high}
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few drawn photographs; nothing is written")
    parser.add_argument("--work", type=Path, help="the folder of bench/recognition.py, whose embeddings are used")
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "neighbours.json")
    given = parser.parse_args()
    work, results = (given.work or Path(tempfile.mkdtemp())).absolute(), []
    for name in ["demo"] if given.quick else ["happywhale_photos", "humpback"]:
        dataset = read_dataset(made(work / name, FEW if given.quick else SETS[name][0]))
        folds = study_folds(dataset, work / f"{name}-study", *([3, 0] if given.quick else []))
        models = {"zero training": UNTRAINED["zero training"]} | ({} if given.quick else SETS[name][1])
        for model_name in ("zero training", "fine-tuned"):
            if model_name not in models:
                continue
            slug, study = model_name.replace(" ", "_"), work / f"{name}-study"
            runs = [
                run_fold(dataset, folds, fold, slug, models[model_name], study) for fold in sorted(set(folds["fold"]))
            ]
            found = [queries(dataset, folds, fold, places[0]) for fold, (places, _) in enumerate(runs)]
            results.append({"set": name, "model": model_name, "k": by_k(found), "thresholds": by_threshold(found)})
            table = pd.DataFrame(results[-1]["k"]).pivot_table("map5", ["rule", "k"], "photographs", sort=False)
            print(f"\n{name}, {model_name}\n{table.round(3).to_string()}", flush=True)
            print(pd.DataFrame(results[-1]["thresholds"]).round(3).to_string(index=False), flush=True)
    if not given.quick:
        facts = {"name": "neighbours", "date": datetime.now(UTC).isoformat(timespec="seconds")}
        write_json(given.to, facts | {"versions": versions("numpy"), "results": results})


if __name__ == "__main__":
    main()
