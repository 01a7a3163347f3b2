"""Nearest neighbours against brute force, the folder of an index on disk, and the indexes of faiss and Qdrant."""

import importlib.util
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from happywhale_nb.core.errors import UserError
from happywhale_nb.retrieval.qdrant import QdrantIndex
from happywhale_nb.retrieval.search import ExactIndex, FaissIndex, NamedVectors, make_index, nearest
from happywhale_nb.retrieval.vectors import unit_rows

needs_faiss = pytest.mark.skipif(
    not importlib.util.find_spec("faiss"), reason="no faiss here: pip install 'happywhale_nb[search]'"
)
needs_qdrant = pytest.mark.skipif(
    not importlib.util.find_spec("qdrant_client"), reason="no qdrant_client here: pip install 'happywhale_nb[qdrant]'"
)


def filled(kind, vectors, **options):
    """An index of vectors named 0.jpg, 1.jpg ..."""
    index = kind(**options)
    index.add([f"{i}.jpg" for i in range(len(vectors))], vectors)
    return index


def clusters(count, each, width=32, seed=0):
    """Vectors around `count` centres."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.normal(size=(count, width)), each, axis=0) + 0.3 * rng.normal(size=(count * each, width))


@pytest.mark.parametrize("block", [(1024, 65536), (7, 100), (1, 33)])
@pytest.mark.parametrize("k", [1, 50, 777])
def test_exact_index_in_any_blocks_equals_scikit_learns_brute_force(block, k):
    rng = np.random.default_rng(0)
    known, asked = rng.normal(size=(1000, 24)), rng.normal(size=(41, 24))
    distance, right = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(known).kneighbors(asked)
    cosine, row = filled(ExactIndex, known, block=block).kneighbors(asked, k)
    assert (row == right).all()
    np.testing.assert_allclose(cosine, 1 - distance, atol=1e-6)
    assert cosine.dtype == np.float32 and (np.diff(cosine, axis=1) <= 0).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 8), st.integers(1, 5), st.integers(1, 70), st.data())
def test_nearest_of_any_vectors_in_any_blocks_equals_the_plain_order(seed, m, n, height, width, data):
    rng, k = np.random.default_rng(seed), data.draw(st.integers(1, m))
    vectors, queries = unit_rows(rng.normal(size=(m, 5))), unit_rows(rng.normal(size=(n, 5)))
    row = st.integers(0, m - 1)
    for target, source in data.draw(st.lists(st.tuples(row, row), max_size=10)):
        vectors[target] = vectors[source]
    cosine = queries.astype(float) @ vectors.astype(float).T
    assume(all((np.diff(np.unique(np.round(line, 12))) > 1e-6).all() for line in cosine))
    order = [sorted(range(m), key=lambda i: (-round(line[i], 9), i))[:k] for line in cosine]
    found, rows = nearest(queries, vectors, k, block=(height, width))
    assert rows.tolist() == order
    np.testing.assert_allclose(found, np.take_along_axis(cosine, rows, axis=1), atol=1e-6)


@pytest.mark.parametrize("block", [(1024, 65536), (5, 64), (1, 33)])
def test_exact_index_of_copies_keeps_the_order_of_adding_wherever_blocks_end(block):
    rng = np.random.default_rng(1)
    index = filled(ExactIndex, np.tile(rng.normal(size=(40, 67)), (5, 1)), block=block)
    row = index.kneighbors(index.vectors[:40], 5)[1]
    assert (row == np.arange(40)[:, None] + 40 * np.arange(5)).all()
    alone = [index.kneighbors(v, 5)[1][0].tolist() for v in index.vectors[:40]]
    assert row.tolist() == alone
    same = filled(ExactIndex, np.tile(rng.normal(size=(1, 67)), (300, 1)), block=block)
    assert (same.kneighbors(same.vectors[:9], 50)[1] == np.arange(50)).all()


def test_nearest_of_more_ties_than_its_limit_halves_the_queries():
    same = unit_rows(np.ones((500, 8)))
    assert (nearest(same[:32], same, 3, limit=2000)[1] == np.arange(3)).all()


def test_nearest_of_many_vectors_needs_no_more_memory_than_its_buffers():
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
def test_faiss_index_of_few_vectors_equals_exact_search_ties_included():
    vectors = np.tile(clusters(30, 10), (2, 1))
    exact, faiss = filled(ExactIndex, vectors), filled(FaissIndex, vectors)
    for a, b in zip(exact.kneighbors(vectors[:50], 20), faiss.kneighbors(vectors[:50], 20), strict=True):
        np.testing.assert_array_equal(a, b) if a.dtype == np.int64 else np.testing.assert_allclose(a, b, atol=1e-6)
    assert exact.recall(vectors[:5], 7) == 1 == faiss.recall(vectors[:5], 7)


KINDS = [ExactIndex, pytest.param(FaissIndex, marks=needs_faiss)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_index_after_removing_adding_and_loading_finds_what_is_in_it(kind, dtype, tmp_path):
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


@pytest.mark.parametrize(
    ("ids", "vectors", "said"),
    [
        (["new.jpg", "zero.jpg"], [[1, 0, 0, 0], [0, 0, 0, 0]], "zero.jpg"),
        (["nan.jpg"], [[1, np.nan, 0, 0]], "nan.jpg"),
        (["inf.jpg"], [[1, np.inf, 0, 0]], "inf.jpg"),
        (["wide.jpg"], [[1, 0, 0]], "wide.jpg"),
        (["2.jpg"], [[1, 0, 0, 0]], "2.jpg"),
        (["x.jpg", "x.jpg"], np.eye(4)[:2], "x.jpg"),
        (["x.jpg"], np.eye(4)[:2], "1 ids for 2"),
    ],
)
def test_gallery_add_of_bad_vectors_or_names_is_refused_and_adds_nothing(ids, vectors, said):
    index = filled(ExactIndex, np.eye(4))
    with pytest.raises(ValueError if "ids for" in said else UserError, match=said):
        index.add(ids, vectors)
    assert index.ids.tolist() == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"] and (index.vectors == np.eye(4)).all()


def test_gallery_remove_of_an_unknown_name_is_refused_and_removes_nothing():
    index = filled(ExactIndex, np.eye(4))
    with pytest.raises(UserError, match=r"no\.jpg"):
        index.remove(["0.jpg", "no.jpg"])
    assert len(index) == 4 and index.search(np.eye(4), 9)[0].shape == (4, 4)


@pytest.mark.parametrize(
    ("queries", "k", "said"),
    [([[0, 0, 0, 0]], 1, "query 0"), ([[1, 2]], 1, "query 0"), (np.eye(4), 0, "at least one")],
)
def test_exact_index_search_of_bad_queries_is_refused(queries, k, said):
    with pytest.raises(UserError, match=said):
        filled(ExactIndex, np.eye(4)).search(queries, k)


def test_exact_index_search_of_an_empty_index_is_refused_and_of_no_queries_is_empty():
    with pytest.raises(UserError, match="not empty"):
        ExactIndex().search(np.eye(4), 1)
    scores, names = filled(ExactIndex, np.eye(4)).search(np.empty((0, 4)), 2)
    assert scores.shape == names.shape == (0, 2)


def test_make_index_of_an_unknown_kind_or_dtype_is_refused():
    with pytest.raises(ValueError, match="float64"):
        ExactIndex(dtype="float64")
    with pytest.raises(ValueError, match="annoy"):
        make_index("annoy")


def test_gallery_load_of_a_damaged_folder_is_refused(tmp_path):
    filled(ExactIndex, clusters(4, 5)).save(tmp_path / "index")
    body = (tmp_path / "index" / "vectors.npy").read_bytes()
    for damaged in (body[:-50], body[:-1] + bytes([body[-1] ^ 1]), b""):
        (tmp_path / "index" / "vectors.npy").write_bytes(damaged)
        with pytest.raises(UserError, match="make"):
            NamedVectors.load(tmp_path / "index")


def test_gallery_save_into_a_folder_that_is_no_index_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not an index"):
        filled(ExactIndex, clusters(4, 5)).save(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


@needs_faiss
def test_faiss_index_with_a_damaged_or_stale_cache_makes_it_anew(tmp_path):
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
def test_faiss_index_whose_lists_find_too_few_searches_all():
    vectors = np.random.default_rng(0).normal(size=(3000, 64))
    index = filled(FaissIndex, vectors, flat=1000)
    with pytest.warns(UserWarning, match="all 3000"):
        assert index.recall(vectors[:20], 50) == 1


@pytest.mark.parametrize(
    "kind, package, extra", [(FaissIndex, "faiss", "search"), (QdrantIndex, "qdrant_client", "qdrant")]
)
def test_index_without_its_package_says_how_to_install_it(kind, package, extra, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'happywhale_nb\[{extra}\]'"):
        kind()


@needs_qdrant
def test_qdrant_index_equals_exact_search_and_filters(tmp_path):
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
def test_qdrant_index_without_a_server_is_refused():
    with pytest.raises(UserError, match="no Qdrant server answers at http://localhost:9"):
        QdrantIndex("http://localhost:9")


@needs_faiss
def test_make_index_auto_chooses_by_size():
    assert type(make_index(size=51_033)) is type(make_index(size=200_000)) is ExactIndex
    assert type(make_index(size=200_001)) is type(make_index(size=10**6)) is FaissIndex
