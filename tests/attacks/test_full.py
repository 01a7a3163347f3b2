"""A server whose threads are all taken: by large photographs, or by decisions that wait for the database."""

import asyncio
import io
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select
from strangers import serving

from happywhale_nb.catalogue.schema import Encounter
from happywhale_nb.core.errors import Busy
from happywhale_nb.imaging import pixels_in_flight
from happywhale_nb.imaging.pixels_in_flight import PIXELS
from happywhale_nb.server.pools import Pool

PATIENCE = 10  # seconds in which what does not wait for the others is answered


@pytest.fixture
def page(mine, colours, request):
    """A client of a server whose embedder is the test's parameter, if it has one."""
    embedder = getattr(request, "param", lambda colours: colours)(colours)
    with serving(mine, embedder) as ((host, port, *_), token):
        limits = httpx.Limits(max_connections=200)
        known = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=f"http://{host}:{port}", headers=known, timeout=60, limits=limits) as client:
            client.embedder = embedder
            yield client


def reads(page):
    """Ask for what only reads, with little patience. Returns the codes."""
    paths = ("/api/health", "/api/session", "/api/encounters", "/api/individuals", "/", "/openapi.json")
    return {path: page.get(path, timeout=PATIENCE).status_code for path in paths}


def test_reading_goes_on_while_decisions_wait_for_the_database(page, mine):
    with mine.reading() as session:
        rows = session.scalars(select(Encounter).where(Encounter.state == "undecided").limit(44)).all()
        asked = [(row.id, row.version) for row in rows]
    assert asked
    asked = (asked * 44)[:44]
    lock = sqlite3.connect(mine.folder / "catalogue.sqlite", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")

    def decide(at):
        body = {"kind": "unsure", "version": at[1]}
        return page.post(f"/api/encounters/{at[0]}/decisions", json=body).status_code

    with ThreadPoolExecutor(44) as threads:
        waiting = [threads.submit(decide, at) for at in asked]
        assert set(reads(page).values()) == {200}
        assert not all(each.done() for each in waiting), "they wait"
        lock.execute("ROLLBACK")
        codes = Counter(each.result() for each in waiting)
    lock.close()
    assert codes[200] and set(codes) <= {200, 409, 503}, codes


class Stuck:
    """An embedder that answers when it is told to."""

    def __init__(self, embedder):
        self.inner, self.go_on, self.held = embedder, threading.Event(), threading.Semaphore(0)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def embed(self, *given):
        self.held.release()
        assert self.go_on.wait(60)
        return self.inner.embed(*given)


def photograph(side=40):
    file = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("page", [Stuck], indirect=True)
def test_reading_goes_on_while_all_questions_wait_for_the_network(page):
    files = {"photos": ("fin.png", photograph())}
    with ThreadPoolExecutor(140) as threads:
        waiting = [threads.submit(page.post, "/api/identify", files=files) for _ in range(140)]
        for _ in range(24):
            assert page.embedder.held.acquire(timeout=30), "as many as there are threads"
        assert set(reads(page).values()) == {200}
        page.embedder.go_on.set()
        answers = [each.result() for each in waiting]
    codes = Counter(each.status_code for each in answers)
    assert codes == {200: 124, 503: 16}, "124 run or wait; the others are told to come again"
    refused = next(each for each in answers if each.status_code == 503)
    assert "try again" in refused.json()["detail"] and refused.headers["retry-after"] == "2"


def test_bytes_of_uploads_are_counted_by_their_pool(page, monkeypatch):
    sizes, run = [], Pool.run
    monkeypatch.setattr(Pool, "run", lambda pool, function, size=0: sizes.append(size) or run(pool, function, size))
    one, other = photograph(40), photograph(50)
    for path, field in (("/api/identify", "photos"), ("/match", "images")):
        files = [(field, ("one.png", one)), (field, ("other.png", other))]
        assert page.post(path, files=files).status_code == 200
    assert sizes == [len(one) + len(other)] * 2


def test_photographs_of_too_many_bytes_do_not_run_together():
    running, most = [], []

    def work(size):
        running.append(size)
        most.append(sum(running))
        time.sleep(0.02)
        running.remove(size)

    async def all_at_once():
        pool = Pool(8, 100, most_bytes=1000)
        await asyncio.gather(*[pool.run(partial(work, size), size) for size in [600, 300, 500, 400, 100, 2000] * 3])
        assert pool.count == pool.bytes == 0

    asyncio.run(all_at_once())
    assert len(most) == 18 and max(size for size in most if size != 2000) <= 1000, "2000 runs alone"


def test_a_request_does_not_wait_for_ever():
    go_on = threading.Event()

    async def one_too_many():
        pool = Pool(1, 10, patience=0.1)
        first = asyncio.create_task(pool.run(partial(go_on.wait, 30)))
        await asyncio.sleep(0.02)
        with pytest.raises(Busy, match="2 requests of this kind are being worked on: try again"):
            await pool.run(lambda: "never")
        go_on.set()
        assert await first
        assert await pool.run(lambda: "the next one") == "the next one"
        assert pool.count == pool.running == 0

    asyncio.run(one_too_many())


def test_large_photographs_are_decoded_a_few_at_a_time(page, monkeypatch):
    monkeypatch.setattr(pixels_in_flight, "SMALL", 0)
    monkeypatch.setattr(PIXELS, "most", 30_000)
    enter, most, asked = PIXELS._enter, [], []

    def watched(pixels):
        asked.append(pixels)
        enter(pixels)
        most.append(PIXELS.pixels)

    monkeypatch.setattr(PIXELS, "_enter", watched)
    sides = [100, 120, 150, 220] * 3
    files = [{"photos": ("fin.png", photograph(side))} for side in sides]
    with ThreadPoolExecutor(len(files)) as threads:
        answers = list(threads.map(lambda each: page.post("/api/identify", files=each), files))
    assert {each.status_code for each in answers} == {200}
    assert Counter(asked) == {side**2: 6 for side in sides[:4]}, "each is checked, and embedded"
    assert max(pixels for pixels in most if pixels != 220**2) <= 30_000, "48,400 pixels are decoded alone"
    assert PIXELS.pixels == 0


def test_a_large_request_is_not_overtaken_for_ever():
    done = []

    async def crowd():
        pool = Pool(4, 100, most_bytes=100)
        first = [asyncio.create_task(pool.run(partial(time.sleep, 0.05), 60)) for _ in range(2)]
        await asyncio.sleep(0.01)
        large = asyncio.create_task(pool.run(partial(done.append, "large"), 95))
        await asyncio.sleep(0)
        small = [asyncio.create_task(pool.run(partial(done.append, "small"), 5)) for _ in range(9)]
        await asyncio.gather(*first, large, *small)

    asyncio.run(crowd())
    assert done[0] == "large"


def test_cookies_of_strangers_write_nothing(page, mine):
    lock = sqlite3.connect(mine.folder / "catalogue.sqlite", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        gone = page.delete("/api/session", headers={"cookie": "happywhale=junk"}, timeout=PATIENCE)
        assert gone.status_code == 204, "though another program writes"
    finally:
        lock.execute("ROLLBACK")
        lock.close()
