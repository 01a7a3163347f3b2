"""The catalogue's server on the demo season, asked by 50 clients at once, clients and server on one machine.

1. Who is on this photograph? An upload is checked, embedded, and compared with the gallery; beside it the service that
   the paper sketches: Keras' `predict` for each request and scikit-learn's NearestNeighbors. Neither has a detector.
2. The same as the demo does it: a detector boxes the animal first.
3. Who is this encounter? Embeddings are there; the answer is kept.
4. The server's memory over 10,000 questions of the first kind.
"""

import atexit
import http.client
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import local

import numpy as np
from harness import main

CLIENTS, QUESTIONS, LONG, QUICK = 50, 1500, 10_000, 25  # QUICK: that many times fewer


def season(folder, detector):
    """A catalogue of the demo's season: `(catalogue, embedder)`."""
    from happywhale_nb.catalogue.build import build_catalogue
    from happywhale_nb.demo.season import demo_model, draw_season

    data, boxer = draw_season(Path(folder) / "season", progress=False), demo_model("detector.keras") if detector else ""
    return build_catalogue(folder, data, demo_model(), detector=boxer)[:2]


def serve_ours(folder, port, detector=False):
    """The project's server, in this process."""
    from happywhale_nb.server.run import serve
    from happywhale_nb.server.state import Options

    catalogue, embedder = season(folder, detector)
    serve(
        catalogue,
        port=port,
        options=Options(tokens=False, rates={}),
        embedder=embedder,
        ready=partial(print, "up", flush=True),
    )


def serve_plain(folder, port):
    """One photograph at a time: `predict`, NearestNeighbors."""
    import io

    import uvicorn
    from fastapi import FastAPI, UploadFile
    from PIL import Image
    from sklearn.neighbors import NearestNeighbors

    from happywhale_nb.catalogue.matching import Matcher

    catalogue, embedder = season(folder, False)
    matcher = Matcher(catalogue)
    known, size, app = matcher.photos.known, embedder.settings["image_size"], FastAPI()
    named = known.codes_ >= 0
    near = NearestNeighbors(n_neighbors=50, metric="cosine").fit(known.vectors[named])
    who = known.classes_[known.codes_[named]]
    import keras

    network = keras.Model(embedder.model.input, embedder.model.get_layer("embedding").output)

    @app.post("/api/identify")
    def identify(photos: list[UploadFile]):
        pixels = np.asarray(
            Image.open(io.BytesIO(photos[0].file.read())).convert("RGB").resize((size, size)), np.float32
        )
        distance, index = near.kneighbors(network.predict(pixels[None], verbose=0))
        return {
            "candidates": [
                {"name": str(who[i]), "score": 1 - float(d)} for d, i in zip(distance[0], index[0], strict=True)
            ]
        }

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    print("up", flush=True)
    server.run()


def started(kind):
    """A server of this kind in a process of its own: `(port, process, folder)`."""
    folder, port = tempfile.TemporaryDirectory(), 8300 + int(time.time() * 1000) % 1500
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind, folder.name, str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(lambda: (process.kill(), process.wait(), folder.cleanup()))
    assert process.stdout.readline().strip() == "up"
    time.sleep(1)
    return port, process, Path(folder.name)


def upload(path):
    """A request that asks about a photograph: path, body, headers."""
    head = b'--x\r\nContent-Disposition: form-data; name="photos"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return (
        "/api/identify",
        head + path.read_bytes() + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )


def ask(port, requests, count):
    """Send `count` of the requests from `CLIENTS` threads: seconds of each `[count]`, all together in seconds."""
    here = local()

    def one(i):
        if not hasattr(here, "line"):
            here.line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        path, body, headers = requests[i % len(requests)]
        began = time.perf_counter()
        here.line.request("POST", path, body, headers)
        answer = here.line.getresponse()
        data = answer.read()
        assert answer.status == 200 and b"candidates" in data, data[:200]
        return time.perf_counter() - began

    with ThreadPoolExecutor(CLIENTS) as pool:
        began = time.perf_counter()
        return np.array(list(pool.map(one, range(count)))), time.perf_counter() - began


def told(times, total):
    p50, p95, p99 = np.percentile(times * 1000, [50, 95, 99])
    return f"{len(times) / total:.0f} a second; p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f} ms"


def photographs(kind, quick):
    port, _, folder = started(kind)
    requests = [upload(path) for path in sorted((folder / "season" / "test_images").iterdir())]
    ask(port, requests, CLIENTS)
    return lambda: told(*ask(port, requests, QUESTIONS // (QUICK if quick else 1)))


def encounters(quick):
    port, _, _ = started("ours")
    headers = {"Content-Type": "application/json"}
    requests = [(f"/api/encounters/{number}/answers", b"{}", headers) for number in range(82, 99)]
    ask(port, requests, CLIENTS)
    return lambda: told(*ask(port, requests, QUESTIONS // (QUICK if quick else 1)))


def memory(kind, quick):
    port, process, folder = started(kind)
    requests = [upload(path) for path in sorted((folder / "season" / "test_images").iterdir())]
    step, sizes = LONG // 5 // (QUICK if quick else 1), []

    def run():
        for _ in range(5):
            ask(port, requests, step)
            status = Path(f"/proc/{process.pid}/status").read_text()
            sizes.append(int(status.partition("VmRSS:")[2].split()[0]) // 1024)
        return "MB after each fifth: " + " ".join(map(str, sizes[-5:]))

    return run


CASES = {
    "50 clients, a photograph each": {
        "this server": partial(photographs, "ours"),
        "predict and scikit-learn": partial(photographs, "plain"),
    },
    "50 clients, a photograph each, boxed": {"this server": partial(photographs, "boxed")},
    "50 clients, an encounter each": {"this server": encounters},
    "memory over 10,000 questions": {
        "this server": partial(memory, "ours"),
        "predict and scikit-learn": partial(memory, "plain"),
    },
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        kinds = {"ours": serve_ours, "boxed": partial(serve_ours, detector=True), "plain": serve_plain}
        kinds[sys.argv[2]](sys.argv[3], int(sys.argv[4]))
    else:
        main(CASES)
