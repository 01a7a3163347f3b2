"""Reading, validating and splitting Happywhale's table, and the search for near-duplicates, against plain versions.

The table is the real one, if HAPPYWHALE_SHARED names a folder that holds happywhale/train.csv; otherwise one of the
same size is drawn. Hashes are random, with planted neighbours.
"""

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from harness import main
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import NearestNeighbors

from happywhale_nb.data.check import Check, check_folder, check_tables
from happywhale_nb.data.dataset import TRAIN_COLUMNS, read_dataset, read_table
from happywhale_nb.data.near_duplicates import MAX_HASH_DISTANCE, close_hashes
from happywhale_nb.data.splits import make_folds
from happywhale_nb.demo.dataset import draw_demo

HERE = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HAPPYWHALE_SHARED", HERE.parent / "shared" / "data"))


def table_folder(quick):
    """A folder with a `train.csv` of 51,033 rows (`quick`: 5,000): the real one's, or one drawn like it."""
    folder = Path(tempfile.mkdtemp())
    real = SHARED / "happywhale" / "train.csv"
    if real.is_file():
        table = pd.read_csv(real, dtype=str)
    else:
        rng = np.random.default_rng(0)
        who = np.repeat(np.arange(20000), rng.zipf(1.9, 20000).clip(max=400))[:51033]
        table = pd.DataFrame(
            {"image": [f"{i:014x}.jpg" for i in range(len(who))], "species": who % 26, "individual_id": who}
        )
    table.head(5000 if quick else None).to_csv(folder / "train.csv", index=False)
    return folder


def read_ours(quick):
    path = table_folder(quick) / "train.csv"
    return lambda: f"{len(read_table(path, TRAIN_COLUMNS)):,} rows, every cell checked"


def read_plain(quick):
    path = table_folder(quick) / "train.csv"
    return lambda: f"{len(pd.read_csv(path)):,} rows, as they come"


def validate_ours(quick):
    folder = table_folder(quick)

    def run():
        check = Check(folder)
        check_tables(check)
        return f"{len(check.findings)} findings"

    return run


def validate_plain(quick):
    path = table_folder(quick) / "train.csv"

    def run():
        table = pd.read_csv(path)
        faults = table.isna().to_numpy().sum() + table["image"].duplicated().sum()
        return f"{faults} empty or repeated"

    return run


def split_with(kind):
    def prepare(quick):
        train = pd.read_csv(table_folder(quick) / "train.csv", dtype=str)

        def run():
            folds = make_folds(train, 10, 0, kind)
            sizes = folds["fold"].value_counts()
            single = ~folds["individual_id"].duplicated(keep=False)
            new = folds.assign(single=single).groupby("fold")["single"].mean()
            told = f", singletons {new.min():.1%} to {new.max():.1%} a fold" if kind == "stratified" else ""
            return f"folds of {sizes.min():,} to {sizes.max():,}{told}"

        return run

    return prepare


def split_plain(splitter):
    def prepare(quick):
        train = pd.read_csv(table_folder(quick) / "train.csv", dtype=str)
        grouped = isinstance(splitter, StratifiedGroupKFold)
        labels = train["species"] if grouped else train["individual_id"]

        def run():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes with fewer members than folds: most individuals are such
                parts = list(splitter.split(train, labels, train["individual_id"] if grouped else None))
            single = ~train["individual_id"].duplicated(keep=False).to_numpy()
            new = [single[part].mean() for _, part in parts]
            sizes = [len(part) for _, part in parts]
            told = "" if grouped else f", singletons {min(new):.1%} to {max(new):.1%} a fold"
            return f"folds of {min(sizes):,} to {max(sizes):,}{told}"

        return run

    return prepare


def hashes(count):
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 2**64, count, dtype=np.uint64)
    drawn[: count // 100] = drawn[-(count // 100) :] ^ (
        np.uint64(1) << rng.integers(0, 64, count // 100, dtype=np.uint64)
    )
    return drawn


def search_ours(count):
    def prepare(quick):
        drawn = hashes(count // 10 if quick else count)
        return lambda: f"{len(close_hashes(drawn, MAX_HASH_DISTANCE)):,} pairs of {len(drawn):,}"

    return prepare


def search_numpy(count):
    def prepare(quick):
        drawn = hashes(count // 10 if quick else count)

        def run():
            found = 0
            for start in range(0, len(drawn), 128):
                found += (np.bitwise_count(drawn[start : start + 128, None] ^ drawn) <= MAX_HASH_DISTANCE).sum()
            return f"{(found - len(drawn)) // 2:,} pairs of {len(drawn):,}"

        return run

    return prepare


def search_sklearn(count):
    def prepare(quick):
        drawn = hashes(count // 10 if quick else count)
        bits = np.unpackbits(drawn.view(np.uint8).reshape(-1, 8), axis=1).astype(bool)

        def run():
            radius = MAX_HASH_DISTANCE / 64 + 1e-9
            near = NearestNeighbors(radius=radius, metric="hamming", algorithm="brute", n_jobs=-1).fit(bits)
            found = sum(map(len, near.radius_neighbors(bits, return_distance=False)))
            return f"{(found - len(drawn)) // 2:,} pairs of {len(drawn):,}"

        return run

    return prepare


def photos(quick):
    place = Path(tempfile.mkdtemp()) / "photos"
    return draw_demo(place, train_photos=120 if quick else 570, individuals=30 if quick else 90, progress=False)


def check_with(deep):
    def prepare(quick):
        root = photos(quick)

        def run():
            check = check_folder(root, deep, progress=False)
            return f"{check.summary['photos_seen']} photographs, {len(check.findings)} findings"

        return run

    return prepare


def names_only(quick):
    root = photos(quick)
    return lambda: f"{len(read_dataset(root).train)} photographs, names only"


CASES = {
    "read the table": {"pandas.read_csv": read_plain, "read_table": read_ours},
    "validate the table": {"pandas: isna, duplicated": validate_plain, "check_tables": validate_ours},
    "10 stratified folds": {
        "sklearn StratifiedKFold": split_plain(StratifiedKFold(10, shuffle=True, random_state=0)),
        "make_folds": split_with("stratified"),
    },
    "10 disjoint folds": {
        "sklearn StratifiedGroupKFold": split_plain(StratifiedGroupKFold(10, shuffle=True, random_state=0)),
        "make_folds": split_with("disjoint"),
    },
    "near hashes, 8,000": {
        "sklearn NearestNeighbors": search_sklearn(8000),
        "NumPy, all pairs": search_numpy(8000),
        "close_hashes": search_ours(8000),
    },
    "near hashes, 79,000": {"NumPy, all pairs": search_numpy(79000), "close_hashes": search_ours(79000)},
    "check the demo's photographs": {
        "read_dataset": names_only,
        "check_folder, headers": check_with(False),
        "check_folder, deep": check_with(True),
    },
}

if __name__ == "__main__":
    main(CASES)
