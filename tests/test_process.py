"""A library is a guest in its process: forked children, threads, limits and settings that belong to others."""

import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import joblib
import numpy as np
import pytest
from hoststate import changes, host_state
from threadpoolctl import threadpool_info, threadpool_limits

from happywhale_nb.core.errors import UserError
from happywhale_nb.core.threads import in_threads, single_opencv_thread, thread_count
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.evaluation.factorial import half_fraction, measure_effects, plot_effects
from happywhale_nb.imaging.augmentation import augment
from happywhale_nb.imaging.augmentation_recipes import RECIPES
from happywhale_nb.imaging.crops import Crops
from happywhale_nb.networks.embedder import NetworkThread
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.search import ExactIndex, nearest

forks = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot fork here")


def in_child(function, seconds=20):
    """What a function returns in a forked child of this process, which has `seconds` for it."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(function()))
    child.start()
    child.join(seconds)
    hangs = child.is_alive()
    child.kill()
    assert not hangs, f"the child has not answered within {seconds} s"
    return answers.get()


@pytest.fixture
def four_cores(monkeypatch):
    """As many threads as on a machine with four cores that nobody has limited."""
    monkeypatch.setattr("happywhale_nb.core.threads.joblib.cpu_count", lambda: 4)
    with threadpool_limits(4):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@forks
def test_augment_in_a_forked_child_of_a_process_that_has_augmented(images, four_cores):
    before = augment(images, RECIPES["paper"], 1)
    assert (in_child(lambda: augment(images, RECIPES["paper"], 1)) == before).all()


@forks
def test_crops_made_before_a_fork_are_read_in_the_child(images, tmp_path, four_cores):
    crops = Crops(tmp_path, [f"{i:02}" for i in range(8)], lambda i: images[i], 32)
    before = crops[:]
    assert (in_child(lambda: crops[:]) == before).all()


@forks
def test_a_fork_while_another_thread_augments_leaves_the_child_working(images, four_cores):
    stop, threads = threading.Event(), cv2.getNumThreads()

    def work():
        while not stop.is_set():
            augment(images, RECIPES["paper"], 1)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(5):
            counts = in_child(lambda: (augment(images, RECIPES["paper"], 1).shape, cv2.getNumThreads()))
            assert counts == (images.shape, threads)
    finally:
        stop.set()
        worker.join()


@forks
def test_search_in_a_forked_child(rng, four_cores):
    index = ExactIndex()
    index.add(range(300), rng.standard_normal((300, 16), dtype=np.float32))
    queries = index.vectors[:40]
    before = index.kneighbors(queries, 5)[1]
    assert (in_child(lambda: index.kneighbors(queries, 5)[1]) == before).all()


@forks
def test_a_network_opened_before_a_fork_says_so_in_the_child():
    thread = NetworkThread(lambda crops: crops)

    def ask():
        try:
            thread.do(lambda: 1)
        except UserError as error:
            return str(error)

    try:
        assert thread.do(lambda: 1) == 1
        assert "opened before a fork" in in_child(ask)
    finally:
        thread.close()


def test_searches_in_several_threads_leave_blas_its_threads(rng, four_cores):
    vectors = rng.standard_normal((3000, 32), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    before = threadpool_info()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda k: nearest(vectors, vectors, k, n_jobs=4), range(1, 13)))
    assert threadpool_info() == before


def test_thread_count_keeps_every_limit(four_cores):
    assert thread_count() == thread_count(-1) == 4
    assert (thread_count(-2), thread_count(3), thread_count(-9)) == (3, 3, 1)
    with threadpool_limits(2):
        assert thread_count() == 2
    with joblib.parallel_config(n_jobs=1):
        assert thread_count() == 1
    for backend in ("threading", "loky"):
        assert joblib.Parallel(2, backend=backend)(joblib.delayed(thread_count)() for _ in range(2)) == [1, 1]
    with pytest.raises(UserError, match="n_jobs=0 means no thread"):
        thread_count(0)


def test_in_threads_uses_no_more_threads_than_allowed_and_ends_at_a_fault(four_cores):
    used, begun = set(), []

    def note(i):
        used.add(threading.get_ident())
        begun.append(i)
        if i == 3:
            raise KeyError(i)
        return i * i

    assert in_threads(note, range(3), 1) == [0, 1, 4] and used == {threading.get_ident()}
    with pytest.raises(KeyError):
        in_threads(note, range(10_000), 2)
    assert len(begun) < 5000


def test_opencv_threads_come_back_whatever_the_order():
    cv2.setNumThreads(3)
    try:
        first, second = single_opencv_thread(), single_opencv_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert cv2.getNumThreads() == 1
        second.__exit__(None, None, None)
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(-1)


def test_search_head_augmentation_and_plots_leave_the_process_as_it_was(tiny, images, rng):
    before, vectors = host_state(), rng.standard_normal((60, 8))
    names = np.repeat([f"w{i}" for i in range(20)], 3)
    augment(images, RECIPES["recommended"], 1)
    KNNHead().fit(vectors, names).rank(vectors)
    read_dataset(tiny)
    design = half_fraction(["a", "b", "c"])
    plot_effects(measure_effects(design, rng.random((4, 60)), names), "effects")
    assert changes(before, host_state()) == {}


def test_a_relative_path_is_of_the_working_directory(tiny_copy, monkeypatch):
    monkeypatch.chdir(tiny_copy.parent)
    assert read_dataset(tiny_copy.name).root == tiny_copy
    assert read_dataset(Path(tiny_copy.name)).root == tiny_copy
    with pytest.raises(UserError, match=f"no data folder at {tiny_copy.parent}/data/demo"):
        read_dataset("data/demo")


@pytest.mark.trains
def test_train_leaves_seeds_policy_and_threads_and_says_nothing_if_asked(images, tmp_path, capfd):
    import keras

    from happywhale_nb.networks.presets import configure
    from happywhale_nb.networks.training import Samples, TrainingOptions, train

    config = configure("small_resnet_arcface", image_size=32, overrides="epochs=1 batch_size=4")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        before = host_state()
        capfd.readouterr()
        options = TrainingOptions(precision="float32", verbose=False)
        train(config, Samples(images, np.arange(8), np.arange(8) % 4, 4), tmp_path, "stamp", options=options)
        written = capfd.readouterr()
        assert (written.out, written.err) == ("", "")
        assert changes(before, host_state()) == {}
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_importing_the_library_changes_no_setting(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import cv2, sklearn.linear_model, sklearn.neighbors, seaborn;"
        "from hoststate import changes, host_state; before = host_state(); import happywhale_nb;"
        "[getattr(happywhale_nb, name) for name in happywhale_nb.__all__ if 'mbed' not in name];"
        "import happywhale_nb.imaging.augmentation; print(sorted(changes(before, host_state())))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
