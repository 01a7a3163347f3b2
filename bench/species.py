"""The species of a new animal: each individual left out in turn, told by ImageNet's features, nothing trained.

All photographs of an individual are queries among those of the other individuals. A species with one individual cannot
be found in this way; its photographs are counted apart. The temperature of the probabilities is fitted to the other
individuals. Intervals are 95 % bootstraps over individuals.

    python bench/species.py [--quick] [--work FOLDER]
"""

import argparse
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from recognition import HERE, SETS, SHARED, UNTRAINED, made, run_fold

from happywhale_nb.core.artifacts import versions, write_json
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.species import merge_species
from happywhale_nb.demo.dataset import draw_demo
from happywhale_nb.retrieval.embeddings import read_embeddings
from happywhale_nb.retrieval.metrics import bootstrap_interval, calibration_metrics
from happywhale_nb.retrieval.species import evidence_of_others, fit_species
from happywhale_nb.stages.study_split import study_folds


def measure(vectors, table):
    """Accuracy, calibration and confusion with each individual left out."""
    individuals, species = table["individual_id"].to_numpy(str), table["species"].to_numpy(str)
    names, codes = np.unique(species, return_inverse=True)
    owners = np.unique(individuals, return_inverse=True)[1]
    alone = np.array([len(np.unique(owners[codes == k])) == 1 for k in range(len(names))])
    evidence = evidence_of_others(vectors, owners, codes, len(names), np.arange(len(table)))
    likely = np.empty_like(evidence)
    for owner in np.unique(owners):  # by a temperature that has not seen the individual
        own = owners == owner
        likely[own] = fit_species(vectors[~own], individuals[~own], species[~own]).probabilities(evidence[own])
    asked, first = ~alone[codes], likely.argmax(axis=1)
    right = first == codes
    low, high = bootstrap_interval(right[asked], individuals[asked])
    confusion = pd.crosstab(pd.Series(species, name="is"), pd.Series(names[first], name="called"))
    by_species = {name: float(right[(codes == k)].mean()) for k, name in enumerate(names) if not alone[k]}
    calibration = calibration_metrics(right[asked], likely.max(axis=1)[asked])
    return {
        **{
            "photographs": int(asked.sum()),
            "individuals": len(np.unique(owners[asked])),
            "species": int((~alone).sum()),
        },
        **{"accuracy": float(right[asked].mean()), "low": low, "high": high},
        **{"confidence": float(likely.max(axis=1)[asked].mean()), "ece": calibration["ece"]},
        **{
            "alone": names[alone].tolist(),
            "alone_confidence": float(likely.max(axis=1)[~asked].mean()) if alone.any() else None,
        },
        **{"by_species": by_species, "confusion": confusion.to_dict("index")},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few drawn photographs; nothing is written")
    parser.add_argument("--work", type=Path, help="a folder in which data folders and embeddings are kept")
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "species.json")
    given = parser.parse_args()
    work, rows = (given.work or Path(tempfile.mkdtemp())).absolute(), []
    for name in ["demo"] if given.quick or not SHARED.is_dir() else ["happywhale_photos", "demo"]:
        few = partial(draw_demo, individuals=12, train_photos=60, test_photos=4, progress=False)
        dataset = read_dataset(made(work / name, few if given.quick else SETS[name][0]))
        folds = study_folds(dataset, work / f"{name}-study", 3, 0)
        (place,), _ = run_fold(dataset, folds, 0, "zero_training", UNTRAINED["zero training"], work / f"{name}-study")
        table = merge_species(dataset.train)
        found = measure(read_embeddings(place / "embeddings.parquet").of("train", table["image"]), table)
        rows.append({"set": name} | found)
        print(pd.DataFrame(found["confusion"]).T.fillna(0).astype(int).to_string(), flush=True)
        told = {key: value for key, value in rows[-1].items() if key not in ("confusion", "by_species")}
        print(pd.Series(told).to_string(), flush=True)
    if not given.quick:
        facts = {
            "name": "species",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions("numpy"),
        }
        write_json(given.to, facts | {"results": rows})


if __name__ == "__main__":
    main()
