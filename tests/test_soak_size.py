"""A million rows, and a rehearsal of the whole competition: what is exact on few is exact on many, and fits in memory.

Each function below draws its own data, does what the package does with them, and asserts that a plain recomputation
gives the same. `make soak` runs it at full size in a process of its own; without, it is run with a few thousand rows.
The rehearsal has no pictures: Happywhale's table (or one drawn like it) and random embeddings with a planted signal.
"""

import csv
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faults import ROOT, keep_result

from happywhale_nb.core.artifacts import write_json
from happywhale_nb.data.dataset import NEW, read_dataset
from happywhale_nb.data.splits import fold_numbers, gallery_and_queries, make_folds
from happywhale_nb.ensemble.ranked_lists import read_ranked_lists
from happywhale_nb.retrieval.embeddings import image_embeddings, write_embeddings
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.metrics import (
    auroc_new,
    average_precision,
    balanced_accuracies,
    bootstrap_interval,
    classification_metrics,
    cmc,
    map_at_5,
    rank_of_truth,
    summary,
)
from happywhale_nb.retrieval.predictions import check_submission, read_predictions, write_predictions
from happywhale_nb.retrieval.search import ExactIndex, hit_rate, make_index
from happywhale_nb.retrieval.vectors import unit_rows
from happywhale_nb.stages.blend_record import BlendOptions
from happywhale_nb.stages.blending import blend_stage
from happywhale_nb.stages.knn import knn_stage
from happywhale_nb.stages.study_split import study_folds

MEMORY = 4000  # MB that no part may need more of; the most on a first run were 2,600


class Clock:
    """Seconds of each part, for the table."""

    def __init__(self):
        self.parts, self.last = {}, time.perf_counter()

    def lap(self, name):
        now = time.perf_counter()
        self.parts[name], self.last = round(now - self.last, 2), now


def drawn_answers(rng, rows, animals):
    """Truth `[n]` and five different answers `[n, 5]`, names as text; a third of the lists has the truth, an eighth of
    the truths is new."""
    names = np.array([NEW, *(f"{i:012x}" for i in range(1, animals))])
    start = rng.integers(0, animals, rows)
    step = rng.integers(1, animals // 5, rows)
    codes = (start[:, None] + step[:, None] * np.arange(5)) % animals  # all different: 4 steps are less than all
    truth = rng.integers(0, animals, rows)
    found = rng.random(rows) < 1 / 3
    truth[found] = codes[found, rng.integers(0, 5, found.sum())]
    truth[rng.random(rows) < 1 / 8] = 0
    return names[truth], names[codes]


def plain_points(truth, answers):
    """1 / rank of each row's truth among its first five, by a loop."""
    rows = zip(truth.tolist(), answers[:, :5].tolist(), strict=True)
    return [1 / (row.index(name) + 1) if name in row else 0.0 for name, row in rows]


# --- a million rows


def metrics_of(rows, folder, clock):
    """MAP@5 and the figures of ranks, each recomputed plainly on a sample."""
    rng, animals = np.random.default_rng(0), max(50, rows // 50)
    truth, answers = drawn_answers(rng, rows, animals)
    clock.lap("draw")
    values, figures = average_precision(truth, answers), summary(truth, answers)
    clock.lap("summary")
    shares, first = cmc(truth, answers, (1, 3, 5)), classification_metrics(truth, answers[:, 0])
    clock.lap("cmc, classification")
    balanced, score = balanced_accuracies(truth, answers[:, 0], truth), rng.random(rows)
    area = auroc_new(truth, score)
    clock.lap("balanced, auroc")
    low, high = bootstrap_interval(values, truth)
    clock.lap("bootstrap")
    sample = np.sort(rng.choice(rows, min(rows, 20_000), replace=False))
    points = plain_points(truth[sample], answers[sample])
    assert values[sample].tolist() == points and map_at_5(truth[sample], answers[sample]) == np.mean(points)
    # the whole is the mean of its parts, and they come in no order
    parts = np.array_split(rng.permutation(rows), 10)
    means = [map_at_5(truth[part], answers[part]) for part in parts]
    assert abs(np.average(means, weights=list(map(len, parts))) - figures["map5"]) < 1e-12
    assert figures["n"] == rows and figures["map5"] == values.mean() and low < figures["map5"] < high
    ranks = rank_of_truth(truth, answers)
    assert shares == {k: float(((ranks > 0) & (ranks <= k)).mean()) for k in (1, 3, 5)}
    assert shares[1] == figures["top1"] == first["accuracy"] and shares[5] == figures["top5"]
    right = pd.Series(truth == answers[:, 0]).groupby(truth).mean()
    assert abs(balanced["baks"] - right.drop(NEW).mean()) < 1e-12 and abs(balanced["baus"] - right[NEW]) < 1e-12
    place = pd.Series(score).rank().to_numpy()  # Mann and Whitney's count
    new = truth == NEW
    below = place[~new].sum() - (~new).sum() * ((~new).sum() + 1) / 2
    assert abs(area - below / (new.sum() * (~new).sum())) < 1e-9
    return {"individuals": animals, "map5": figures["map5"]}


def submission_of(rows, folder, clock):
    """A submission is written, read in both ways, validated; a single fault in its last row is named."""
    rng, path, like = np.random.default_rng(1), folder / "submission.csv", folder / "sample_submission.csv"
    images = np.array([f"{i:014x}.jpg" for i in rng.permutation(rows)])
    _, answers = drawn_answers(rng, rows, max(50, rows // 50))
    clock.lap("draw")
    write_predictions(path, images, answers)
    clock.lap("write")
    read, found = read_predictions(path)
    assert (read == images).all() and (found == answers).all()
    clock.lap("read")
    order = rng.permutation(rows)
    assert (read_predictions(path, images[order])[1] == answers[order]).all()
    clock.lap("read in another order")
    ballots, repaired = read_ranked_lists([path], images[order])
    assert repaired == [] and (ballots.decode(ballots.codes[0]) == answers[order]).all()
    clock.lap("read_ballots")
    pd.DataFrame({"image": images[order]}).to_csv(like, index=False)
    assert check_submission(path, like, set(answers.ravel().tolist())) == []
    clock.lap("check")
    with path.open("a") as file:
        file.write(f"{images[0]},{answers[0, 0]} {answers[0, 0]}\n")
    lines = check_submission(path, like)
    told = f"row {rows + 2}: {images[0]}"
    assert lines == [f"{told} names an animal twice (1 such)", f"{told} is listed more than once (1 such)"], lines
    clock.lap("check, with faults")
    return {"megabytes": round(path.stat().st_size / 1e6, 1)}


def drawn_table(rng, rows, animals):
    """A training table with a long tail: most animals have one photograph, few have hundreds."""
    weight = 1 / (np.arange(animals) + 30)
    who = np.concatenate([np.arange(animals), rng.choice(animals, rows - animals, p=weight / weight.sum())])
    kinds = np.array([f"species_{i}" for i in range(26)])[rng.integers(0, 26, animals)]
    names = np.array([f"{i:012x}" for i in rng.permutation(animals)])
    images = np.array([f"{i:014x}.jpg" for i in rng.permutation(rows)])
    return pd.DataFrame({"image": images, "species": kinds[who], "individual_id": names[who]})


def folds_of(rows, folder, clock):
    """The same folds for any order of the rows; as even as can be."""
    rng, k = np.random.default_rng(2), 10
    table = drawn_table(rng, rows, rows // 5)
    shuffled = table.sample(frac=1, random_state=3)
    clock.lap("draw")
    for kind in ("stratified", "open:0.3", "disjoint"):
        folds = make_folds(table, k, 7, kind)
        clock.lap(kind)
        assert folds.equals(make_folds(shuffled, k, 7, kind)), f"{kind}: another order of rows, other folds"
        clock.lap(f"{kind}, shuffled")
        assert (folds["image"].to_numpy() == np.sort(table["image"])).all()
        asked = folds[folds["fold"] >= 0]
        sizes = np.bincount(asked["fold"], minlength=k)
        if kind == "disjoint":
            assert folds.groupby("individual_id")["fold"].nunique().max() == 1
        else:
            assert np.ptp(sizes) <= 1 or kind != "stratified", sizes
        if kind == "stratified":
            each = pd.crosstab(folds["individual_id"], folds["fold"]) if rows <= 10_000 else None
            counts = folds.groupby(["individual_id", "fold"]).size()
            most, all_of = counts.groupby(level=0).max(), folds.groupby("individual_id").size()
            assert (most == -(-all_of // k)).all(), "an animal's photographs are spread over as many folds as there are"
            assert each is None or (each.max(axis=1) - each.min(axis=1)).max() <= 1
        if kind == "open:0.3":
            gallery, query = gallery_and_queries(folds, 0)
            known = folds["individual_id"][query].isin(folds["individual_id"][gallery])
            assert abs(1 - known.mean() - 0.3) < 0.02, 1 - known.mean()
    return {"individuals": rows // 5}


def clustered(rng, centres, count, spread=0.5):
    """Vectors of length 1 around centres."""
    vectors = rng.standard_normal((count, centres.shape[1]), dtype=np.float32) * np.float32(spread)
    vectors += centres[rng.integers(0, len(centres), count)]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def neighbours_of(rows, folder, clock):
    """The nearest of a gallery, exact to the last row; and by what `make_index` chooses for that many."""
    rng, asked, width, k = np.random.default_rng(4), min(2000, rows), 64, 50
    centres = rng.standard_normal((rows // 100, width), dtype=np.float32)
    gallery, queries = clustered(rng, centres, rows), clustered(rng, centres, asked)
    clock.lap("draw")
    index = ExactIndex()
    index.add(range(rows), gallery)
    clock.lap("add")
    cosine, row = index.kneighbors(queries, k)
    clock.lap("exact")
    # brute force in float64, of the same vectors of length 1
    known, asking = index.vectors.astype(np.float64), unit_rows(queries[:50]).astype(np.float64)
    products = asking @ known.T
    right = np.argsort(-products, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(row[:50], right)
    np.testing.assert_allclose(cosine[:50], np.take_along_axis(products, right, axis=1), atol=1e-6)
    clock.lap("brute force of 50")
    del known, products
    if importlib.util.find_spec("faiss") is None:
        return {"asked": asked, "faiss": "not installed"}
    chosen = make_index("auto", rows)
    chosen.add(range(rows), gallery)
    chosen.kneighbors(queries[:1], k)
    clock.lap(f"{type(chosen).__name__}, learn")
    found = hit_rate(chosen.kneighbors(queries, k)[1], row)
    clock.lap(f"{type(chosen).__name__}, ask")
    assert found > 0.98, found
    return {"asked": asked, "recall of what auto chooses": round(found, 4)}


# --- the competition, without its pictures

PHOTOS, INDIVIDUALS, TESTS, FOLDS = 51_033, 15_587, 27_956, 10


def competition(folder, rows, rng):
    """A data folder with Happywhale's table, if that is there and all of it is wanted, else with one drawn like it.
    Returns the data set and the test's truth."""
    real = Path(os.environ.get("HAPPYWHALE_SHARED", ROOT.parent / "shared" / "data")) / "happywhale" / "train.csv"
    folder.mkdir()
    if rows == PHOTOS and real.is_file():
        table = pd.read_csv(real, dtype=str)[["image", "species", "individual_id"]]
    else:
        table = drawn_table(rng, rows, INDIVIDUALS * rows // PHOTOS)
    table.to_csv(folder / "train.csv", index=False)
    count, who = TESTS * rows // PHOTOS, table["individual_id"].to_numpy(str)
    # an eighth are photographs of new animals, the others of known ones as often as these are photographed
    truth = np.where(rng.random(count) < 1 / 8, NEW, who[rng.integers(0, len(who), count)])
    images = [f"t{i:013x}.jpg" for i in range(count)]
    pd.DataFrame({"image": images, "predictions": NEW}).to_csv(folder / "sample_submission.csv", index=False)
    return read_dataset(folder, need_photos=False), truth


def planted(rng, dataset, truth, width, noise):
    """Embeddings of all photographs: each the vector of its animal and noise of that size."""
    people, place = np.unique(dataset.train["individual_id"], return_inverse=True)
    animals = rng.standard_normal((len(people) + 1, width), dtype=np.float32)
    asked = np.searchsorted(people, truth) * (truth != NEW)
    vectors = np.concatenate([animals[place], animals[asked]])
    new = np.flatnonzero(truth == NEW) + len(place)
    vectors[new] = rng.standard_normal((len(new), width), dtype=np.float32)
    vectors += np.float32(noise) * rng.standard_normal(vectors.shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    parts = np.repeat(["train", "test"], [len(dataset.train), len(dataset.test)])
    return image_embeddings(parts, np.concatenate([dataset.train["image"], dataset.test["image"]]), vectors)


def trained_fold(place, embeddings):
    """What the search reads of a trained fold."""
    place.mkdir(parents=True)
    write_embeddings(place / "embeddings.parquet", embeddings)
    names = ("protocol", "parameters", "result", "versions", "stamp")
    write_json(place / "config.json", {name: {} for name in names})


def worse_lists(rng, answers, share):
    """Lists of a model that is worse: in a `share` of the rows the first two names change places, in half as many the
    second is somebody else's first."""
    answers = answers.copy()
    swap = rng.random(len(answers)) < share
    answers[swap, :2] = answers[swap, 1::-1]
    other = answers[rng.permutation(len(answers)), 0]
    free = (rng.random(len(answers)) < share / 2) & (answers != other[:, None]).all(axis=1)
    answers[free, 1] = other[free]
    return answers


def rehearsal_of(rows, folder, clock):
    """Folds, search, thresholds, figures out of fold, a blend of thirty lists, and the submission, validated."""
    rng, (width, count) = np.random.default_rng(5), (512, FOLDS) if rows > 20_000 else (64, 4)
    dataset, truth = competition(folder / "data", rows, rng)
    clock.lap("table")
    study, model = folder / "study", "first"
    folds = study_folds(dataset, study, k=count)
    assert fold_numbers(folds) == list(range(count)) and len(folds) == rows
    clock.lap("study_folds")
    noise = 2.3 if width == 512 else 1.4  # so that about two of three photographs are found
    for k in range(count):
        embeddings = planted(np.random.default_rng([6, k]), dataset, truth, width, noise)
        trained_fold(study / model / f"fold{k}", embeddings)
    clock.lap("embeddings")
    head = KNNHead()
    told = knn_stage(dataset, study, model, folds, head)
    clock.lap("knn_stage")
    # out of fold: every photograph once, and the figure is what a loop over the files makes of them
    points, seen = [], []
    for k in range(count):
        gallery, query = gallery_and_queries(folds, k)
        images, answers = read_predictions(study / model / f"fold{k}" / "oof.csv", folds["image"][query])
        known = set(folds["individual_id"][gallery])
        right = np.array([name if name in known else NEW for name in folds["individual_id"][query]])
        points += plain_points(right, answers)
        seen += images.tolist()
    assert sorted(seen) == sorted(dataset.train["image"]) and abs(np.mean(points) - told["oof"]["map5"]) < 1e-12
    clock.lap("out of fold, plainly")
    # the search: a hundred queries of the last fold against brute force
    known, asked = embeddings.of("train", folds["image"][gallery]), embeddings.of("train", folds["image"][query][:100])
    ids, scores = head.fit(known, folds["individual_id"].to_numpy(str)[gallery]).rank(asked, 5)
    cosine = asked.astype(float) @ known.T.astype(float)
    best = pd.DataFrame(cosine.T).groupby(folds["individual_id"].to_numpy(str)[gallery]).max()
    assert ids[:, 0].tolist() == best.idxmax().tolist() and (np.abs(scores[:, 0] - best.max()) < 2e-6).all()
    clock.lap("brute force of 100")
    for number, share in ((1, 0.1), (2, 0.2)):  # two worse models: of ten folds thirty lists in all
        for k in range(count):
            for part in ("oof", "test"):
                images, answers = read_predictions(study / model / f"fold{k}" / f"{part}.csv")
                place = study / f"worse{number}" / f"fold{k}"
                place.mkdir(parents=True, exist_ok=True)
                write_predictions(place / f"{part}.csv", images, worse_lists(rng, answers, share))
    clock.lap("two more models")
    blend = blend_stage(dataset, study, options=BlendOptions(weighting="fit"))
    clock.lap("blend_stage")
    assert len(blend["prediction_files"]) == 3 * count and blend["photos"] == len(truth)
    # the fifty nearest photographs may show fewer than five animals
    assert all(line.endswith("rows have fewer than five names") for line in blend["repaired"]), blend["repaired"]
    submission = study / "submission.csv"
    assert check_submission(submission, folder / "data" / "sample_submission.csv", set(folds["individual_id"])) == []
    clock.lap("validate")
    _, answers = read_predictions(submission, dataset.test["image"])
    score = float(np.mean(plain_points(truth, answers)))
    singles = []
    for k in range(count):
        singles.append(
            map_at_5(truth, read_predictions(study / model / f"fold{k}" / "test.csv", dataset.test["image"])[1])
        )
    assert score > max(singles), "the blend of all is better than each"
    with submission.open(newline="") as file:
        assert sum(1 for _ in csv.reader(file)) == len(truth) + 1
    figures = {"out of fold": told["oof"]["map5"], "test, best single": max(singles), "test, blend": score}
    facts = {"test photographs": len(truth), "individuals": folds["individual_id"].nunique(), "width": width}
    return facts | {name: round(value, 4) for name, value in figures.items()}


PARTS = {
    "metrics": (metrics_of, 1_000_000),
    "submission": (submission_of, 1_000_000),
    "folds": (folds_of, 1_000_000),
    "neighbours": (neighbours_of, 1_000_000),
    "rehearsal": (rehearsal_of, PHOTOS),
}
FEW = 5000


def measure(name, rows, folder):
    """One part: a row of the table."""
    clock, began = Clock(), time.perf_counter()
    figures = PARTS[name][0](rows, Path(folder), clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    row = {"part": name, "rows": rows, "seconds": round(time.perf_counter() - began, 1), "peak MB": round(peak)}
    return row | figures | {"laps": clock.parts}


@pytest.fixture(scope="module")
def table():
    """Rows of all parts, kept when the last of them is there."""
    rows, began = [], time.monotonic()
    yield rows
    if len(rows) == len(PARTS):
        keep_result("size", rows, time.monotonic() - began)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PARTS)
def test_size_of_a_million_rows_is_exact_and_fits(name, table, tmp_path):
    code = "import json, sys, test_soak_size as t; name, rows, folder = sys.argv[1:]\n"
    code += "print(json.dumps(t.measure(name, int(rows), folder)))"
    path = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)])}
    command = [sys.executable, "-c", code, name, str(PARTS[name][1]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | path, timeout=3500)
    assert done.returncode == 0, done.stderr[-3000:]
    table.append(json.loads(done.stdout.splitlines()[-1]))
    assert table[-1]["peak MB"] < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PARTS][:-1])  # the rehearsal has its own size
def test_size_of_some_thousand_rows_is_exact(name, tmp_path):
    measure(name, FEW, tmp_path)
