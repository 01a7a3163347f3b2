"""Photographs are read while the network computes: the same results in the same order, a few ahead, nothing left."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from happywhale_nb.core.errors import UserError
from happywhale_nb.core.threads import read_ahead
from happywhale_nb.networks.card_encoder import CardEncoder
from happywhale_nb.networks.embedder import Embedder
from happywhale_nb.networks.encoder_card import EncoderCard
from happywhale_nb.retrieval.vectors import unit_length


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(st.integers(0, 9), max_size=30),
    count=st.integers(1, 8),
    threads=st.integers(0, 3),
    fault=st.integers(0, 40),
    stop=st.integers(0, 40),
)
def test_read_ahead_is_map_in_order_a_few_ahead_and_leaves_nothing_running(items, count, threads, fault, stop):
    """`threads` 0: its own; the call for item `fault` fails, and whoever takes the results stops after `stop`."""
    begun, ended, taken = [], [], []

    def square(i):
        begun.append(i)
        try:
            time.sleep(items[i] * 1e-5)
            if i == fault:
                raise ZeroDivisionError
            return i, items[i] ** 2
        finally:
            ended.append(i)

    pool = ThreadPoolExecutor(threads) if threads else None
    with closing(read_ahead(square, range(len(items)), count, pool)) as results:
        try:
            for result in results:
                taken.append(result)
                assert len(begun) <= len(taken) + count
                if len(taken) == stop:
                    break
        except ZeroDivisionError:
            assert len(taken) == fault
    assert sorted(begun) == sorted(ended) and max(Counter(begun).values(), default=1) == 1
    expected = min(len(items), fault, stop or len(items))
    assert taken == [(i, items[i] ** 2) for i in range(expected)]
    if pool:
        begun.clear()
        pool.shutdown()
        assert not begun


class Meanwhile(Embedder):
    """Mean colours of pictures; it counts what is cropped, and waits or fails in the network as it is told."""

    def __init__(self):
        names = ("means", "means.onnx", "0" * 64, 8, 8, "area", "rgb", "nhwc")
        card = EncoderCard(*names, 255.0, (0.0,) * 3, (1.0,) * 3, 3, "CC0-1.0", True)
        self.cropped, self.before, self.lock = 0, lambda pixels: None, threading.Lock()
        super().__init__(CardEncoder(card, self.run))

    def run(self, pixels):
        self.before(pixels)
        return pixels.mean(axis=(1, 2)) + 0.01

    def crop(self, path, box=None, frame=None):
        with self.lock:
            self.cropped += 1
        return super().crop(path, box, frame)


@pytest.fixture
def embedder():
    opened = Meanwhile()
    yield opened
    opened.close()


@pytest.fixture
def paths(tmp_path):
    """150 paths of ten small pictures."""
    pictures = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 3)).astype(np.uint8)
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
    return [tmp_path / f"{i * 7 % 10}.png" for i in range(150)]


def test_embed_cuts_the_crops_of_the_next_batch_while_the_network_computes(embedder, paths):
    seen = []

    def wait_for_the_next(pixels):
        until = time.monotonic() + 5
        while embedder.cropped < min(150, 128 + 64 * len(seen)) and time.monotonic() < until:
            time.sleep(0.001)
        seen.append((len(pixels), embedder.cropped))

    embedder.before = wait_for_the_next
    found = embedder.embed(paths)
    assert seen == [(64, 128), (64, 150), (22, 150)]
    crops = np.stack([Embedder.crop(embedder, path) for path in paths])
    in_turn = np.concatenate([embedder.encoder.embed(crops[start : start + 64]) for start in (0, 64, 128)])
    assert np.array_equal(found, unit_length(in_turn, 1e-12)[0])


def test_embed_that_fails_names_the_photograph_and_leaves_nothing_running(embedder, paths, tmp_path):
    (tmp_path / "half.png").write_bytes(Path(paths[0]).read_bytes()[:60])
    with pytest.raises(UserError, match=r"half\.png cannot be decoded"):
        embedder.embed([*paths[:100], tmp_path / "half.png", *paths[100:], tmp_path / "missing.png"])
    with pytest.raises(UserError, match=r"missing\.png is missing"):
        embedder.embed([*paths, tmp_path / "missing.png"])
    do, calls = embedder.thread.do, []
    for error in (ZeroDivisionError, KeyboardInterrupt):

        def fail_once(crops, error=error):
            calls.append(len(crops))
            if len(calls) % 2 == 0:
                raise error
            return do(crops)

        embedder.thread.do = fail_once
        with pytest.raises(error):
            embedder.embed(paths)
        done = embedder.cropped
        time.sleep(0.02)
        assert embedder.cropped == done and embedder.thread.waiting.coming == 0
    embedder.thread.do = do
    assert embedder.embed(paths).shape == (150, 3) and embedder.embed([]).shape == (0, 3)
