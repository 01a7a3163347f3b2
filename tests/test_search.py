"""Nearest neighbours: exact ones against scikit-learn, equals in order, the folder on disk, faiss and Qdrant."""

import importlib.util
import json
import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from happywhale_nb.paths import UserError
from happywhale_nb.search import ExactIndex, FaissIndex, Gallery, QdrantIndex, make_index, nearest, unit_rows

needs_faiss = pytest.mark.skipif(not importlib.util.find_spec("faiss"), reason="the extra `search` is not installed")
needs_qdrant = pytest.mark.skipif(
    not importlib.util.find_spec("qdrant_client"), reason="the extra `qdrant` is not installed"
)


def filled(kind, vectors, **options):
    index = kind(**options)
    index.add([f"{i}.jpg" for i in range(len(vectors))], vectors)
    return index


def clusters(count, each, width=32, seed=0):
    rng = np.random.default_rng(seed)
    return np.repeat(rng.normal(size=(count, width)), each, axis=0) + 0.3 * rng.normal(size=(count * each, width))


@pytest.mark.parametrize("block", [(1024, 65536), (7, 100), (1, 33)])
@pytest.mark.parametrize("k", [1, 50, 777])
def test_exact_search_is_scikit_learns_brute_force_to_the_last_index(block, k):
    rng = np.random.default_rng(0)
    known, asked = rng.normal(size=(1000, 24)), rng.normal(size=(41, 24))
    distance, right = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(known).kneighbors(asked)
    cosine, row = filled(ExactIndex, known, block=block).kneighbors(asked, k)
    assert (row == right).all()
    np.testing.assert_allclose(cosine, 1 - distance, atol=1e-6)
    assert cosine.dtype == np.float32 and (np.diff(cosine, axis=1) <= 0).all()


@pytest.mark.parametrize("block", [(1024, 65536), (5, 64), (1, 33)])
def test_copies_come_in_the_order_they_were_added_wherever_blocks_end(block):
    rng = np.random.default_rng(1)
    index = filled(ExactIndex, np.tile(rng.normal(size=(40, 67)), (5, 1)), block=block)
    row = index.kneighbors(index.vectors[:40], 5)[1]
    assert (row == np.arange(40)[:, None] + 40 * np.arange(5)).all()
    alone = [index.kneighbors(v, 5)[1][0].tolist() for v in index.vectors[:40]]
    assert row.tolist() == alone
    same = filled(ExactIndex, np.tile(rng.normal(size=(1, 67)), (300, 1)), block=block)
    assert (same.kneighbors(same.vectors[:9], 50)[1] == np.arange(50)).all()


def test_many_ties_are_taken_in_halves():
    same = unit_rows(np.ones((500, 8)))
    assert (nearest(same[:32], same, 3, limit=2000)[1] == np.arange(3)).all()


def test_the_memory_beside_the_data_is_the_buffers():
    vectors = unit_rows(clusters(3000, 10))

    def peak(block):
        tracemalloc.start()
        nearest(vectors[:2000], vectors, 10, block)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    buffer, out = 4 * 64 * 8192, 2000 * 10 * 12
    assert peak((64, 8192)) < 1.5 * buffer + out + 2**21 < 2000 * 30000 * 4 / 20


@needs_faiss
def test_faiss_among_few_is_exact_equals_included():
    vectors = np.tile(clusters(30, 10), (2, 1))
    exact, faiss = filled(ExactIndex, vectors), filled(FaissIndex, vectors)
    for a, b in zip(exact.kneighbors(vectors[:50], 20), faiss.kneighbors(vectors[:50], 20), strict=True):
        np.testing.assert_array_equal(a, b) if a.dtype == np.int64 else np.testing.assert_allclose(a, b, atol=1e-6)
    assert exact.recall(vectors[:5], 7) == 1 == faiss.recall(vectors[:5], 7)


KINDS = [ExactIndex, pytest.param(FaissIndex, marks=needs_faiss)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_removed_vectors_are_not_found_and_a_folder_brings_all_back(kind, dtype, tmp_path):
    vectors = clusters(20, 5)
    index = filled(kind, vectors, dtype=dtype)
    assert index.search(vectors[:1], 1)[1] == "0.jpg"
    index.remove(["0.jpg", "50.jpg"])
    left = [f"{i}.jpg" for i in range(100) if i not in (0, 50)]
    assert len(index) == 98 and index.ids.tolist() == left
    plain = np.argsort(-(unit_rows(vectors[[0, 50]]) @ index.vectors.astype(np.float32).T), axis=1)[:, :4]
    assert index.search(vectors[[0, 50]], 4)[1].tolist() == index.ids[plain].tolist()
    index.add(["0.jpg"], vectors[:1])
    assert index.search(vectors[:1], 1)[1] == "0.jpg" and index.ids[-1] == "0.jpg"
    index.save(tmp_path / "index")
    index.save(tmp_path / "index")
    back = kind.load(tmp_path / "index")
    assert back.dtype == dtype and back.ids.tolist() == index.ids.tolist()
    for a, b in zip(index.search(vectors, 9), back.search(vectors, 9), strict=True):
        np.testing.assert_array_equal(a, b)
    back.remove(back.ids)
    assert len(back) == 0
    back.save(tmp_path / "none")
    assert len(kind.load(tmp_path / "none")) == 0


def test_bad_input_is_named_and_changes_nothing():
    index = filled(ExactIndex, np.eye(4))
    for ids, vectors, word in [
        (["new.jpg", "zero.jpg"], [[1, 0, 0, 0], [0, 0, 0, 0]], "zero.jpg"),
        (["nan.jpg"], [[1, np.nan, 0, 0]], "nan.jpg"),
        (["inf.jpg"], [[1, np.inf, 0, 0]], "inf.jpg"),
        (["wide.jpg"], [[1, 0, 0]], "wide.jpg"),
        (["2.jpg"], [[1, 0, 0, 0]], "2.jpg"),
        (["x.jpg", "x.jpg"], np.eye(4)[:2], "x.jpg"),
        (["x.jpg"], np.eye(4)[:2], "1 ids for 2"),
    ]:
        with pytest.raises(UserError, match=word):
            index.add(ids, vectors)
        assert index.ids.tolist() == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    for queries, k, word in [([[0, 0, 0, 0]], 1, "query 0"), ([[1, 2]], 1, "query 0"), (np.eye(4), 0, "at least one")]:
        with pytest.raises(UserError, match=word):
            index.search(queries, k)
    with pytest.raises(UserError, match=r"no\.jpg"):
        index.remove(["0.jpg", "no.jpg"])
    assert len(index) == 4 and index.search(np.eye(4), 9)[0].shape == (4, 4)
    with pytest.raises(UserError, match="not empty"):
        ExactIndex().search(np.eye(4), 1)
    with pytest.raises(UserError, match="float64"):
        ExactIndex(dtype="float64")
    with pytest.raises(UserError, match="annoy"):
        make_index("annoy")


def test_a_damaged_folder_is_refused_and_a_foreign_one_kept(tmp_path):
    index = filled(ExactIndex, clusters(4, 5))
    index.save(tmp_path / "index")
    body = (tmp_path / "index" / "vectors.npy").read_bytes()
    for damaged in (body[:-50], body[:-1] + bytes([body[-1] ^ 1]), b""):
        (tmp_path / "index" / "vectors.npy").write_bytes(damaged)
        with pytest.raises(UserError, match="make"):
            Gallery.load(tmp_path / "index")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="no index"):
        index.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


@needs_faiss
def test_lists_find_enough_and_a_cache_that_is_damaged_or_stale_is_made_anew(tmp_path):
    vectors = clusters(40, 100)
    filled(ExactIndex, vectors).save(tmp_path / "index")
    cache, record = tmp_path / "index" / "faiss.index", tmp_path / "index" / "faiss.json"

    def searched():
        index = FaissIndex.load(tmp_path / "index", flat=1000)
        assert hasattr(index.engine, "nprobe") and index.recall(vectors[::20], 50) > 0.98
        return index.kneighbors(vectors[::20], 50)[1]

    first, body, told = searched(), cache.read_bytes(), record.read_text()
    kept = cache.stat().st_ino
    np.testing.assert_array_equal(searched(), first)
    assert cache.stat().st_ino == kept
    for damage in (body[: len(body) // 2], b"", body[:-9] + b"\0" * 9):
        cache.write_bytes(damage)
        np.testing.assert_array_equal(searched(), first)
        assert cache.read_bytes() != damage
    record.write_text(json.dumps(json.loads(told) | {"stamp": "of other vectors"}))
    searched()
    assert json.loads(record.read_text())["stamp"] == json.loads(told)["stamp"]
    cache.unlink()
    searched()
    assert cache.is_file()


@needs_faiss
def test_lists_that_find_too_few_give_way_to_everything():
    vectors = np.random.default_rng(0).normal(size=(3000, 64))
    index = filled(FaissIndex, vectors, flat=1000)
    with pytest.warns(UserWarning, match="all 3000"):
        assert index.recall(vectors[:20], 50) == 1


@pytest.mark.parametrize(
    "kind, package, extra", [(FaissIndex, "faiss", "search"), (QdrantIndex, "qdrant_client", "qdrant")]
)
def test_what_is_missing_says_how_to_get_it(kind, package, extra, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'happywhale_nb\[{extra}\]'"):
        kind()


@needs_qdrant
def test_a_server_finds_the_same_and_filters(tmp_path):
    vectors = clusters(20, 5)
    exact, server = filled(ExactIndex, vectors), QdrantIndex(":memory:")
    payload = [{"species": "orca" if i % 2 else "minke", "date": f"20{10 + i % 10}-06-01"} for i in range(100)]
    server.add(exact.ids, vectors, payload)
    assert len(server) == 100 and server.recall(vectors[:10], 7) == 1
    assert server.search(vectors, 7)[1].tolist() == exact.search(vectors, 7)[1].tolist()
    where = {"species": ["orca"], "date": ("2011-01-01", "2013-12-31")}
    scores, names = server.search(vectors[:1], 30, where=where)
    assert {int(n[:-4]) % 10 for n in names[0] if n} == {1, 3} and (names[0] == "").sum() == 10
    assert np.isneginf(scores[0, 20:]).all()
    for ids, rows, word in [(["0.jpg"], vectors[:1], "0.jpg"), (["w.jpg"], [[1, 2]], "w.jpg")]:
        with pytest.raises(UserError, match=word):
            server.add(ids, rows)
    server.save(tmp_path / "index")
    assert sorted(ExactIndex.load(tmp_path / "index").ids) == sorted(exact.ids)
    assert len(QdrantIndex.load(tmp_path / "index", where=":memory:")) == 100
    server.remove(["0.jpg"])
    assert len(server) == 99 and "0.jpg" not in server.search(vectors[:1], 99)[1]
    with pytest.raises(UserError, match=r"0\.jpg"):
        server.remove(["0.jpg"])


@needs_qdrant
def test_a_server_that_is_not_there_is_said():
    with pytest.raises(UserError, match="no Qdrant server answers at http://localhost:9"):
        QdrantIndex("http://localhost:9")


@needs_faiss
def test_the_fastest_is_chosen_by_size():
    assert type(make_index(size=51_033)) is ExactIndex and type(make_index(size=10**6)) is FaissIndex
