"""Blending 30 models' answers to 51,033 photographs, twenty candidates each on average.

1. MAP@5 after one changed weight: one row of rank margins, everything counted again with SciPy's sparse matrices,
   and a pandas `apply` that counts each row's votes.
2. The search for the weights: the paper's, one to convergence at a gain of 1e-5, and that with smaller and smaller
   steps.
3. From 30 CSV files to a submission: reading and coding with Arrow, and with pandas.
4. The search at other sizes: does its cost grow with models and photographs, and not faster?
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from harness import main
from scipy import sparse

from happywhale_nb.ensemble.ranked_lists import RankedLists, read_ranked_lists
from happywhale_nb.ensemble.voting import VOTES, count_votes
from happywhale_nb.ensemble.weights import RankMargins, search_weights, simulate
from happywhale_nb.retrieval.predictions import write_predictions

MODELS, PHOTOS, QUICK = 30, 51_033, 20  # QUICK: that many times fewer photographs
SKILL = (0.5, 2.0)  # of the simulated models


def answers(quick, models=MODELS, photos=PHOTOS):
    return simulate(models, photos // QUICK if quick else photos, skill=SKILL)


def changed(quick):
    """This project: one weight of the rank margins."""
    lists, truth = answers(quick)
    margins = RankMargins(count_votes(lists), truth).set_weights(np.ones(MODELS))
    return lambda: f"MAP@5 {margins.points(3, 100) / (60 * margins.rivals.n_photos):.4f}"


def counted_again(quick):
    """All votes again by sparse matrices: entries × models, times weights, and the rank of the truth."""
    lists, truth = answers(quick)
    table = count_votes(lists)
    votes = sparse.csc_matrix(table.votes.T.astype(np.float64))
    own = table.code == lists.encode(truth)[table.row]
    entry = np.full(len(truth), -1)
    entry[table.row[own]] = np.flatnonzero(own)
    weights = np.ones(MODELS)
    weights[3] = 1.1

    def run():
        total = votes @ weights
        ours = np.where(entry[table.row] >= 0, total[entry[table.row]], np.inf)
        earlier = np.arange(len(total)) < entry[table.row]
        ahead = (total > ours + 1e-9) | ((np.abs(total - ours) < 1e-9) & earlier)
        rank = np.bincount(table.row, ahead, minlength=len(truth))
        return f"MAP@5 {((entry >= 0) & (rank < 5)) @ (1 / (rank + 1)) / len(truth):.4f}"

    return run


def row_by_row(quick):
    """Every row's votes in a dict, by pandas."""
    lists, truth = answers(quick)
    columns = {
        m: [" ".join(filter(None, row)) for row in lists.decode(c)]
        for m, c in zip(lists.models, lists.codes, strict=True)
    }
    frame, ranks = pd.DataFrame(columns).assign(truth=truth), VOTES["paper"]
    weights = dict.fromkeys(lists.models, 1.0) | {lists.models[3]: 1.1}

    def points(row):
        votes = {}
        for model, weight in weights.items():
            for rank, name in enumerate(row[model].split()):
                late = 4 if name == "new_individual" and rank >= 2 else 1
                votes[name] = votes.get(name, 0) + weight * ranks[rank] / late
        best = sorted(votes, key=votes.get, reverse=True)[:5]
        return 1 / (best.index(row["truth"]) + 1) if row["truth"] in best else 0.0

    return lambda: f"MAP@5 {frame.apply(points, axis=1).mean():.4f}"


def searched(quick, models=MODELS, photos=PHOTOS, **how):
    lists, truth = answers(quick, models, photos)
    margins = RankMargins(count_votes(lists), truth)

    def run():
        fit = search_weights(margins, **how)
        return f"{fit.before:.4f} → {fit.after:.4f}, {fit.moves} moves, {fit.tries} tries"

    return run


def from_files(quick, read):
    folder = Path(tempfile.mkdtemp())
    lists, _ = answers(quick)
    for model, codes in zip(lists.models, lists.codes, strict=True):
        write_predictions(folder / f"{model}.csv", lists.images, lists.decode(codes))
    files = sorted(folder.glob("*.csv"))

    def run():
        blended = count_votes(read(files)).predict(np.ones(len(files)))
        write_predictions(folder / "submission" / "submission.csv", lists.images, blended)
        return f"{len(blended):,} photographs"

    return run


def with_pandas(files):
    """The same `RankedLists` by pandas and Python's own splitting."""
    tables = [pd.read_csv(path) for path in files]
    names, parts = {}, []
    for table in tables:
        rows = [[names.setdefault(name, len(names)) for name in text.split()] for text in table["predictions"]]
        parts.append([row + [-1] * (5 - len(row)) for row in rows])
    codes, images = np.array(parts, np.int32), tables[0]["image"].to_numpy(str)
    return RankedLists(images, np.array([path.stem for path in files]), np.array(list(names)), codes)


def whole(quick, models):
    """Counting, the margins and the paper's search."""
    lists, truth = answers(quick, models)

    def run():
        fit = search_weights(RankMargins(count_votes(lists), truth), min_gain=1e-3, shrink=False)
        return f"{fit.tries} tries"

    return run


CASES = {
    "one changed weight": {
        "this project": changed,
        "SciPy, counted again": counted_again,
        "pandas apply": row_by_row,
    },
    "search": {
        "gain 1e-3, the paper's": partial(searched, min_gain=1e-3, shrink=False),
        "gain 1e-5": partial(searched, min_gain=1e-5, shrink=False),
        "gain 1e-5, smaller steps": partial(searched, min_gain=1e-5),
    },
    "30 files to a submission": {
        "this project": partial(from_files, read=lambda files: read_ranked_lists(files)[0]),
        "pandas reads": partial(from_files, read=with_pandas),
    },
    "number of models, counting and search": {f"{m} models": partial(whole, models=m) for m in (10, 30, 100)},
    "number of photographs, search": {
        f"{n:,} photographs": partial(searched, photos=n, min_gain=1e-3, shrink=False)
        for n in (10_000, 51_033, 200_000)
    },
}

if __name__ == "__main__":
    main(CASES)
