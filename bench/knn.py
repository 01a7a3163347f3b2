"""Nearest neighbours by cosine: the fifty nearest of Happywhale's size, of one photograph, and among a million.

1. 27,956 queries in a gallery of 51,033 vectors of 512 numbers, against the bare product of the two in blocks.
2. One query in that gallery, against the bare product of matrix and vector.
3. 1,000 queries, and one, in a gallery of a million, two hundred photographs of each animal: exact search, and faiss's
   inverted lists with their recall. Two photographs of an animal have a cosine of .8, or of .5, where lists find too
   few and everything is searched. The lists are learnt before the clock starts; how long that took is in the last
   column.
4. MAP@5 of 51,033 rows of five whole numbers, against a loop over the rows as the evaluation page writes it.

Alternatives that are not installed are left out.
"""

import importlib.util
import time

import numpy as np
from harness import main
from sklearn.neighbors import NearestNeighbors

from happywhale_nb.retrieval.metrics import map_at_5
from happywhale_nb.retrieval.search import ExactIndex, FaissIndex, hit_rate

WIDTH, NEIGHBOURS = 512, 50


def unit(vectors):
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def catalogue(quick, asked=27_956, known=51_033):
    """`(queries, gallery)`, float32 with rows of length 1: photographs of animals, two or three of each."""
    asked, known = (max(1, asked // 20), known // 20) if quick else (asked, known)
    rng = np.random.default_rng(0)
    animals = rng.standard_normal((known // 3 + 1, WIDTH), dtype=np.float32)

    def photographs(count):
        noise = rng.standard_normal((count, WIDTH), dtype=np.float32)
        noise += animals[rng.integers(0, len(animals), count)]
        return unit(noise)

    return photographs(asked), photographs(known)


def product(asked):
    """The limit: the same products in the same blocks, and nobody looks at them."""

    def prepare(quick):
        queries, gallery = catalogue(quick, asked)
        buffer = np.empty((min(256, len(queries)), len(gallery)), np.float32)

        def run():
            for start in range(0, len(queries), 256):
                part = queries[start : start + 256]
                np.matmul(part, gallery.T, out=buffer[: len(part)])
            return f"{len(queries) * len(gallery):,} cosines"

        return run

    return prepare


def ours(kind, asked, **options):
    def prepare(quick):
        queries, gallery = catalogue(quick, asked)
        index = kind(**options)
        index.add(range(len(gallery)), gallery)
        right = np.argsort(-(queries[:200] @ gallery.T), axis=1)[:, :NEIGHBOURS]
        if kind is FaissIndex:
            index.kneighbors(queries[:1], 1)  # built before the clock starts

        def run():
            found = index.kneighbors(queries, NEIGHBOURS)[1][: len(right)]
            return f"recall@{NEIGHBOURS} {hit_rate(found, right):.4f}"

        return run

    return prepare


def sklearn(asked):
    def prepare(quick):
        queries, gallery = catalogue(quick, asked)
        near = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine", algorithm="brute", n_jobs=-1).fit(gallery)
        return lambda: f"{near.kneighbors(queries, return_distance=False).size:,} neighbours"

    return prepare


def clustered(quick, asked, cosine, step=50_000):
    """`(queries, gallery)` of a million vectors in clusters of about 200 (`quick`: 20,000), `cosine` apart."""
    size = 20_000 if quick else 1_000_000
    rng, spread = np.random.default_rng(0), (1 / cosine - 1) ** 0.5
    centres = rng.standard_normal((size // 200, WIDTH), dtype=np.float32)

    def members(count):
        return unit(
            rng.standard_normal((count, WIDTH), dtype=np.float32) * np.float32(spread)
            + centres[rng.integers(0, len(centres), count)]
        )

    gallery = np.empty((size, WIDTH), np.float32)
    for start in range(0, size, step):
        gallery[start : start + step] = members(len(gallery[start : start + step]))
    return members(max(1, asked // 10) if quick else asked), gallery


def million(kind, asked, cosine):
    def prepare(quick):
        queries, gallery = clustered(quick, asked, cosine)
        index = kind() if kind is ExactIndex else kind(flat=1000)
        index.add(range(len(gallery)), gallery)
        del gallery
        told = "all of them"
        if kind is FaissIndex:
            began = time.perf_counter()
            engine = index.engine
            cells = f"{engine.nprobe} of {engine.nlist} cells" if hasattr(engine, "nprobe") else "everything searched"
            learnt = time.perf_counter() - began
            told = f"recall@{NEIGHBOURS} {index.recall(queries, NEIGHBOURS):.4f}, {cells}, learnt in {learnt:.0f} s"

        def run():
            index.kneighbors(queries, NEIGHBOURS)
            return told

        return run

    return prepare


FAISS = importlib.util.find_spec("faiss") is not None


def size(asked):
    return {
        "the bare product": product(asked),
        "ExactIndex": ours(ExactIndex, asked),
        "ExactIndex, float16": ours(ExactIndex, asked, dtype="float16"),
        **({"FaissIndex, flat": ours(FaissIndex, asked)} if FAISS else {}),
        "sklearn NearestNeighbors": sklearn(asked),
    }


def lists(asked, cosine):
    return {
        "ExactIndex": million(ExactIndex, asked, cosine),
        **({"FaissIndex, inverted lists": million(FaissIndex, asked, cosine)} if FAISS else {}),
    }


def answers(quick):
    rng = np.random.default_rng(0)
    rows = 51_033 // (20 if quick else 1)
    return rng.integers(0, 8, rows), rng.integers(0, 8, (rows, 5))


def vectorised(quick):
    truth, rows = answers(quick)
    return lambda: f"{map_at_5(truth, rows):.4f}"


def row_by_row(quick):
    truth, rows = answers(quick)
    truth, rows = truth.tolist(), rows.tolist()

    def run():
        points = (1 / (row.index(name) + 1) if name in row else 0.0 for name, row in zip(truth, rows, strict=True))
        return f"{sum(points) / len(truth):.4f}"

    return run


CASES = {
    "27,956 queries, 51,033 known": size(27_956),
    "one query, 51,033 known": size(1),
    "1,000 queries, a million known": lists(1000, 0.8),
    "one query, a million known": lists(1, 0.8),
    "1,000 queries, a million known, cosine .5": lists(1000, 0.5),
    "MAP@5 of 51,033 rows": {"metrics.map_at_5": vectorised, "row by row": row_by_row},
}

if __name__ == "__main__":
    main(CASES)
