"""Clients who break off many uploads and downloads: what a server keeps of them."""

import asyncio
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from strangers import FORM, head

from happywhale_nb.server import tidying
from happywhale_nb.server.tidying import ClosedStream, Tidier


def test_generator_of_a_download_that_breaks_off_is_closed():
    closed = []

    def pieces():
        try:
            while True:
                yield bytes(1000)
        finally:
            closed.append(True)

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        raise OSError("the client is gone")

    response = ClosedStream(pieces(), media_type="application/zip")
    with suppress(Exception):
        asyncio.run(response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send))
    next(iter(response.pieces), None)
    assert not list(response.pieces), "it is closed"


def test_memory_is_given_back_after_requests_and_not_without_any(monkeypatch):
    given = []
    monkeypatch.setattr(tidying, "give_back_memory", lambda: given.append(True))

    async def look(touched):
        tidier = Tidier(0.01)
        tidier.touched = touched
        task = asyncio.create_task(tidier.run())
        await asyncio.sleep(0.2)
        task.cancel()

    asyncio.run(look(False))
    assert not given
    asyncio.run(look(True))
    assert len(given) == 2, "at once, and when the threads are idle"


@pytest.fixture
def child(built, tmp_path):
    """A server in a process of its own: its port, and a function that tells its memory (kB) and threads."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("memory of a process is read from /proc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(built), str(port)]
    code = (
        "import sys; from happywhale_nb.catalogue.example import ColourEmbedder;"
        "from happywhale_nb.catalogue.store import Catalogue; from happywhale_nb.server.run import serve;"
        "serve(Catalogue(sys.argv[1]), port=int(sys.argv[2]), embedder=ColourEmbedder())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def state():
        text = Path(f"/proc/{process.pid}/status").read_text()
        return {name: int(re.search(rf"{name}:\s+(\d+)", text)[1]) for name in ("RssAnon", "Threads")}

    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.1)
    yield port, state
    process.terminate()
    process.wait(30)


@pytest.mark.soak
def test_broken_uploads_and_downloads_leave_no_memory_and_no_threads(child):
    port, state = child

    def broken(request, more=b"", size=0):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(request + more)
            client.recv(size) if size else None

    def burst():
        half = b"--b\r\ncontent-disposition: form-data; name=photos; filename=a.jpg\r\n\r\n" + bytes(4_000_000)
        upload = head("POST", "/api/identify", FORM, 6_000_000)
        with ThreadPoolExecutor(10) as threads:
            [threads.submit(broken, upload, half) for _ in range(100)]
            for path in ("/api/exports/camtrap-dp?photos=true", "/api/photos/1/file"):
                [threads.submit(broken, head("GET", path), b"", 1000) for _ in range(15)]
        time.sleep(30)

    time.sleep(20)
    burst()  # what is loaded on first use stays
    before = state()
    burst()
    after = state()
    assert after["RssAnon"] - before["RssAnon"] < 50_000, (before, after)
    assert after["Threads"] <= before["Threads"] + 3, (before, after)
