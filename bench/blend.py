"""Blending 30 models' answers to 51,033 photographs, twenty candidates each on average.

1. MAP@5 after one changed weight: a contest's column of leads, everything counted again with SciPy's sparse matrices,
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

from happywhale_nb.ensemble.ranked_lists import Ballots, read_ballots
from happywhale_nb.ensemble.voting import VOTES, tally
from happywhale_nb.ensemble.weights import Contest, search_weights, simulate
from happywhale_nb.retrieval.predictions import write_predictions

MODELS, PHOTOS, QUICK = 30, 51_033, 20  # QUICK: that many times fewer photographs
SKILL = (0.5, 2.0)  # of the simulated models


def answers(quick, models=MODELS, photos=PHOTOS):
    return simulate(models, photos // QUICK if quick else photos, skill=SKILL)


def changed(quick):
    """This project: one weight of a contest."""
    ballots, truth = answers(quick)
    contest = Contest(tally(ballots), truth).start(np.ones(MODELS))
    return lambda: f"MAP@5 {contest.points(3, 100) / (60 * contest.n):.4f}"


def counted_again(quick):
    """All votes again by sparse matrices: entries × models, times weights, and the rank of the truth."""
    ballots, truth = answers(quick)
    tallied = tally(ballots)
    votes = sparse.csc_matrix(tallied.votes.T.astype(np.float64))
    own = tallied.code == ballots.code(truth)[tallied.row]
    entry = np.full(len(truth), -1)
    entry[tallied.row[own]] = np.flatnonzero(own)
    weights = np.ones(MODELS)
    weights[3] = 1.1

    def run():
        total = votes @ weights
        ours = np.where(entry[tallied.row] >= 0, total[entry[tallied.row]], np.inf)
        earlier = np.arange(len(total)) < entry[tallied.row]
        ahead = (total > ours + 1e-9) | ((np.abs(total - ours) < 1e-9) & earlier)
        rank = np.bincount(tallied.row, ahead, minlength=len(truth))
        return f"MAP@5 {((entry >= 0) & (rank < 5)) @ (1 / (rank + 1)) / len(truth):.4f}"

    return run


def row_by_row(quick):
    """Every row's votes in a dict, by pandas."""
    ballots, truth = answers(quick)
    columns = {
        m: [" ".join(filter(None, row)) for row in ballots.answers(c)]
        for m, c in zip(ballots.models, ballots.codes, strict=True)
    }
    frame, ranks = pd.DataFrame(columns).assign(truth=truth), VOTES["paper"]
    weights = dict.fromkeys(ballots.models, 1.0) | {ballots.models[3]: 1.1}

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
    ballots, truth = answers(quick, models, photos)
    contest = Contest(tally(ballots), truth)

    def run():
        fit = search_weights(contest, **how)
        return f"{fit.before:.4f} → {fit.after:.4f}, {fit.moves} moves, {fit.tries} tries"

    return run


def from_files(quick, read):
    folder = Path(tempfile.mkdtemp())
    ballots, _ = answers(quick)
    for model, codes in zip(ballots.models, ballots.codes, strict=True):
        write_predictions(folder / f"{model}.csv", ballots.images, ballots.answers(codes))
    files = sorted(folder.glob("*.csv"))

    def run():
        blended = tally(read(files)).answers(np.ones(len(files)))
        write_predictions(folder / "submission" / "submission.csv", ballots.images, blended)
        return f"{len(blended):,} photographs"

    return run


def with_pandas(files):
    """The same `Ballots` by pandas and Python's own splitting."""
    tables = [pd.read_csv(path) for path in files]
    names, parts = {}, []
    for table in tables:
        rows = [[names.setdefault(name, len(names)) for name in text.split()] for text in table["predictions"]]
        parts.append([row + [-1] * (5 - len(row)) for row in rows])
    codes, images = np.array(parts, np.int32), tables[0]["image"].to_numpy(str)
    return Ballots(images, np.array([path.stem for path in files]), np.array(list(names)), codes)


def whole(quick, models):
    """Counting, the contest and the paper's search."""
    ballots, truth = answers(quick, models)

    def run():
        fit = search_weights(Contest(tally(ballots), truth), gain=1e-3, shrink=False)
        return f"{fit.tries} tries"

    return run


CASES = {
    "one changed weight": {
        "this project": changed,
        "SciPy, counted again": counted_again,
        "pandas apply": row_by_row,
    },
    "search": {
        "gain 1e-3, the paper's": partial(searched, gain=1e-3, shrink=False),
        "gain 1e-5": partial(searched, gain=1e-5, shrink=False),
        "gain 1e-5, smaller steps": partial(searched, gain=1e-5),
    },
    "30 files to a submission": {
        "this project": partial(from_files, read=lambda files: read_ballots(files)[0]),
        "pandas reads": partial(from_files, read=with_pandas),
    },
    "number of models, counting and search": {f"{m} models": partial(whole, models=m) for m in (10, 30, 100)},
    "number of photographs, search": {
        f"{n:,} photographs": partial(searched, photos=n, gain=1e-3, shrink=False) for n in (10_000, 51_033, 200_000)
    },
}

if __name__ == "__main__":
    main(CASES)
