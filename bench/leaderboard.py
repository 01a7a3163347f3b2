"""What a public score promises: private scores forecast from public ones, on parts drawn again and again.

The public part is 24 % of the photographs, drawn anew each time. Weights of a blend are equal, or fitted to the public
part, which is what a competitor does who reads the leaderboard. A forecast knows the precisions of the public
photographs and, in the last column, the optimism that five-fold cross-validation within the public part finds. It
should hold the private score in 95 % of the draws.

* the two real submissions, judged by the winning team's first answers, which stand in for the truth;
* thirty simulated models of 27,956 photographs.

    python bench/leaderboard.py [--quick] [--draws N]
"""

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from happywhale_nb.core.artifacts import versions, write_json
from happywhale_nb.core.progress import bar
from happywhale_nb.ensemble.ranked_lists import RankedLists, read_ranked_lists
from happywhale_nb.ensemble.voting import count_votes
from happywhale_nb.ensemble.weights import RankMargins, nested_cross_validation, search_weights, simulate
from happywhale_nb.evaluation.leaderboard import PUBLIC, TEST_PHOTOS, forecast_private
from happywhale_nb.retrieval.metrics import average_precision

HERE = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HAPPYWHALE_SHARED", HERE.parent / "shared" / "data")) / "happywhale" / "submissions"
MIN_GAIN, FOLDS = 1e-4, 5


def real(quick):
    truth = pd.read_csv(SHARED / "first_place_top1_round1.csv", dtype=str).head(2000 if quick else None)
    lists, _ = read_ranked_lists([SHARED / "model_a.csv", SHARED / "model_b.csv"], truth["image"])
    return lists, truth["individual_id"].to_numpy(str)


def simulated(quick):
    return simulate(30, 2000 if quick else TEST_PHOTOS, skill=(0.5, 2.0))


def part(lists, rows):
    """The lists of some photographs."""
    return RankedLists(lists.images[rows], lists.models, lists.names, lists.codes[:, rows])


def optimism(lists, truth, rows, rng):
    """What cross-validation within the public part says that its fit flatters."""
    margins = RankMargins(count_votes(part(lists, rows)), truth[rows])
    return max(nested_cross_validation(margins, rng.integers(0, FOLDS, len(rows)), MIN_GAIN).optimism, 0.0)


def draw(lists, votes, margins, truth, fitted, rng, with_optimism):
    """Public and private MAP@5 of one draw, and whether the forecasts, without and with optimism, hold the second."""
    public = np.zeros(len(truth), bool)
    public[rng.permutation(len(truth))[: round(PUBLIC * len(truth))]] = True
    weights = np.ones(len(lists.models))
    if fitted:
        weights = search_weights(margins, MIN_GAIN, sample_weight=public.astype(float)).weights
    precision = average_precision(truth, votes.predict(weights))
    shown, hidden = precision[public].mean(), precision[~public].mean()
    expected = [0.0] + ([optimism(lists, truth, np.flatnonzero(public), rng)] if with_optimism else [])
    found = [forecast_private(shown, precision[public], len(truth), optimism=each) for each in expected]
    row = {"public": shown, "private": hidden, "chance": found[0].chance, "optimism": expected[-1]}
    return row | {f"held{i}": each.low <= hidden <= each.high for i, each in enumerate(found)}


def measure(name, lists, truth, fitted, draws):
    """A row of the table."""
    votes, rng = count_votes(lists), np.random.default_rng(0)
    margins = RankMargins(votes, truth)
    rows = bar(range(draws), name, unit="draw")
    table = pd.DataFrame([draw(lists, votes, margins, truth, fitted, rng, fitted) for _ in rows])
    drop = table["public"] - table["private"]
    return {
        **{"answers": name, "weights": "fitted to the public part" if fitted else "equal", "draws": draws},
        **{"photographs": len(truth), "public": table["public"].mean(), "private": table["private"].mean()},
        **{"drop": drop.mean(), "sd of the drop": drop.std(ddof=1), "by the formula": table["chance"].mean()},
        "held": table["held0"].mean(),
        "optimism found": table["optimism"].mean() if fitted else None,
        "held with it": table["held1"].mean() if fitted else None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few photographs and draws; nothing is written")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "leaderboard.json")
    given = parser.parse_args()
    draws = 5 if given.quick else given.draws
    sets = {"two real submissions": real, "thirty simulated models": simulated}
    if not SHARED.is_dir():
        del sets["two real submissions"]
    rows = []
    for name, make in sets.items():
        lists, truth = make(given.quick)
        for fitted in (False, True):
            rows.append(measure(name, lists, truth, fitted, draws))
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    if not given.quick:
        facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions("numpy", "pandas")}
        write_json(given.to, {"name": "leaderboard", **facts, "results": rows})


if __name__ == "__main__":
    main()
