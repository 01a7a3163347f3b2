"""The catalogue as people have it: the server on the demo season, its page in a browser, and what a kill leaves."""

import csv
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from happywhale_nb.paths import UserError
from happywhale_nb.season import demo_model
from happywhale_nb.serving import build_catalogue, change_over, keep_model

COMMAND = [sys.executable, "-c", "from happywhale_nb.cli import main; main()"]


@contextmanager
def server(folder, *words):
    """`happywhale serve --demo` in a folder: its address, and its process."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*COMMAND, "serve", str(folder), "--demo", "--no-browser", "--rate", "0", "--port", str(port), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert f"localhost:{port}" in line, process.stderr.read()
        yield f"http://localhost:{port}", process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    """The folder of a demo catalogue."""
    folder = tmp_path_factory.mktemp("season") / "demo"
    with server(folder):
        pass
    return folder


@pytest.fixture
def own(season, tmp_path):
    """A copy of it to change."""
    folder = Path(shutil.copytree(season, tmp_path / "demo"))
    card = json.loads((folder / "catalogue.json").read_text())
    (folder / "catalogue.json").write_text(json.dumps(card | {"data": str(folder / "season")}))
    return folder


@pytest.fixture
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program:
        pytest.skip("no Chromium here: install Debian's package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def watched(browser, address, **how):
    """A page on which nothing may go wrong unseen: errors, requests to others, dialogs."""
    faults, context = [], browser.new_context(viewport={"width": 1280, "height": 800}, **how)
    page = context.new_page()
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    own = (address, "blob:", "data:")
    page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
    yield page, faults
    context.close()


def holds(page, selector, count):
    """Wait until a page has this number of elements."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(count)


def test_upload_candidates_confirm_reload_still_there_export(own, browser, tmp_path):
    dropped = sorted((own / "season" / "to_drop").iterdir())
    photo = shutil.copy(dropped[0], tmp_path / "=1+1 <img src=x onerror=alert(1)>.jpg")
    with server(own) as (address, _), watched(browser, address) as (page, faults):
        page.goto(f"{address}/#/add")
        page.set_input_files("#files", [str(photo)])
        page.fill("#add-place", "<script>alert(2)</script>")
        page.click("#send")
        page.wait_for_selector("#candidates [data-candidate='1']")
        shown = page.inner_text("main")
        assert "onerror" in shown and "<script>" in shown, "hostile names are text"
        with page.expect_response(lambda answer: "/heat" in answer.url and answer.ok):
            page.keyboard.press("h")
        page.keyboard.press("ArrowDown")
        assert page.get_attribute("#candidates [aria-current='true']", "data-candidate") == "2"
        page.keyboard.press("1")
        number = int(page.url.partition("#/encounter/")[2].partition("?")[0])
        with page.expect_response(lambda answer: answer.url.endswith("/decisions")) as told:
            page.keyboard.press("c")
        confirmed = told.value.json()["encounter"]
        assert confirmed["state"] == "confirmed"
        page.goto(f"{address}/#/encounter/{number}")
        page.reload()
        page.wait_for_selector(
            "#encounter[data-state='confirmed'], #encounter [data-state='confirmed'], [data-state='confirmed']"
        )
        assert confirmed["individual"]["name"] in page.inner_text("main")
        page.goto(f"{address}/#/exports")
        page.wait_for_selector("[data-export='csv']")
        page.select_option("#exports-species", confirmed["species"])
        page.select_option("#occasions-mark", "month")
        with page.expect_download() as got:
            page.click("[data-export='mark']")
        histories = got.value.path().read_text()
        assert got.value.suggested_filename == "histories.inp" and confirmed["individual"]["name"] in histories
        assert f"species: {confirmed['species']}" in histories and "months" in histories
        table = list(csv.DictReader(io.StringIO(httpx.get(f"{address}/api/exports/csv").content.decode("utf-8-sig"))))
        (row,) = [row for row in table if row["encounter_id"] == str(number)]
        assert row["individual"] == confirmed["individual"]["name"] and row["photo"].startswith("'=1+1")
        assert row["place"] == "<script>alert(2)</script>"
        assert faults == []


DROP = """async (files) => {
    const carried = new DataTransfer();
    for (const [name, data] of files) {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        carried.items.add(new File([bytes], name, { type: "image/jpeg" }));
    }
    document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
}"""


def test_many_photographs_are_dropped_with_progress_and_a_bad_one_costs_no_other(own, browser):
    files = [(path.name, path.read_bytes()) for path in sorted((own / "season" / "to_drop").iterdir())]
    files.insert(2, ("notes.jpg", b"these are notes and no photograph"))
    with server(own) as (address, _), watched(browser, address) as (page, faults):
        before = httpx.get(f"{address}/api/encounters?limit=1").json()["total"]
        page.goto(f"{address}/#/add")
        page.wait_for_selector("#drop")
        page.evaluate(DROP, [(name, b64encode(data).decode()) for name, data in files])
        page.check("#group-each", force=True)
        page.click("#send")
        page.wait_for_selector("#progress", state="visible")
        page.wait_for_selector("[data-failed='notes.jpg']")
        page.wait_for_selector("#sent")
        holds(page, "#sent [data-encounter]", 6)
        assert "notes.jpg" in page.inner_text("#failures") and "photograph" in page.inner_text("#failures")
        assert httpx.get(f"{address}/api/encounters?limit=1").json()["total"] == before + 6
        assert [fault for fault in faults if "422" not in fault] == []


def test_filters_of_the_queue_are_seen_and_saved(own, browser):
    with server(own) as (address, _), watched(browser, address) as (page, faults):
        page.goto(f"{address}/#/queue")
        page.wait_for_selector("#queue [data-encounter]")
        place = httpx.get(f"{address}/api/facets").json()["places"][0]
        total, fits = (
            httpx.get(f"{address}/api/encounters", params={"state": "undecided"} | part).json()["total"]
            for part in ({}, {"place": place})
        )
        assert 0 < fits < total
        page.select_option("#queue-place", place)
        holds(page, "#queue [data-encounter]", fits)
        page.goto(f"{address}/#/individuals")
        page.wait_for_selector("#individuals li")
        page.goto(f"{address}/#/queue")
        page.reload()
        holds(page, "#queue [data-encounter]", fits)
        assert page.input_value("#queue-place") == place and place in page.inner_text("[data-chips='queue']")
        page.click("[data-chips='queue'] button")
        holds(page, "#queue [data-encounter]", total)
        assert faults == []


def test_the_page_tells_who_was_faster_and_can_undo(own, browser):
    with server(own) as (address, _), watched(browser, address) as (page, faults):
        first = httpx.get(f"{address}/api/encounters?state=undecided&limit=1").json()["encounters"][0]
        url = f"{address}/api/encounters/{first['id']}/decisions"
        page.goto(f"{address}/#/encounter/{first['id']}")
        page.wait_for_selector("#candidates [data-candidate='1']")
        page.wait_for_selector("#unsure:not([disabled])")
        assert httpx.post(url, json={"kind": "unsure", "version": 1, "note": "too dark"}).status_code == 200
        page.keyboard.press("u")
        page.wait_for_selector("#conflict:not([hidden])")
        assert httpx.get(f"{address}/api/encounters/{first['id']}").json()["version"] == 2, "nothing was overwritten"
        faults = [fault for fault in faults if "409" not in fault]  # the browser reports the status itself
        page.goto(f"{address}/#/trail")
        page.click("[data-undo]")
        page.wait_for_timeout(500)
        assert httpx.get(f"{address}/api/encounters/{first['id']}").json()["state"] == "undecided"
        assert faults == []


@pytest.mark.parametrize("width", [1280, 360])
def test_every_view_fits_and_loads_nothing_from_elsewhere(own, browser, width):
    with server(own) as (address, _), watched(browser, address) as (page, faults):
        page.set_viewport_size({"width": width, "height": 740})
        for view in ("queue", "encounter/82", "individuals", "individual/1", "add", "trail", "exports", "tokens"):
            page.goto(f"{address}/#/{view}")
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), view
        page.goto(f"{address}/#/encounter/82")
        for opens, saves in (("Edit", "#edit-save"), ("Draw a box", "dialog .primary")):
            page.click(f"text={opens}")
            page.wait_for_selector(saves)
            body = "document.querySelector('dialog .dialog-body')"
            assert page.evaluate(f"{body}.scrollWidth <= {body}.clientWidth"), opens
            page.keyboard.press("Escape")
        page.goto(f"{address}/docs")
        page.wait_for_selector("section.operation")
        assert faults == []


def test_with_tokens_the_page_asks_for_one(own, browser):
    made = subprocess.run(
        [*COMMAND, "catalogue", "token", str(own), "Ann", "--role", "read"], capture_output=True, text=True
    )
    token = made.stdout.strip()
    assert token.startswith("hw_"), made.stderr
    with server(own, "--tokens") as (address, _), watched(browser, address) as (page, faults):
        page.goto(address)
        page.fill("#token", token)
        page.click("#sign-in")
        page.wait_for_selector("#queue [data-encounter]")
        assert "Ann" in page.inner_text("#who") and page.evaluate("document.cookie") != "document.cookie"
        assert page.evaluate("document.cookie") == "", "the cookie is out of reach of scripts"
        assert [fault for fault in faults if "401" not in fault] == []


# --- kill -9


def photograph(seed):
    data, rng = io.BytesIO(), np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (120, 160, 3), np.uint8)).save(data, "JPEG")
    return data.getvalue()


def hammer(address, number, told, stop):
    """Upload and decide until the server is gone; what was acknowledged is told."""
    for i in range(1000):
        if stop.is_set():
            return
        try:
            data = photograph(1000 * number + i)
            files = {"photos": (f"{number}-{i}.jpg", data, "image/jpeg")}
            met = httpx.post(f"{address}/api/encounters", files=files, timeout=20)
            if met.status_code != 201:
                continue
            told["photos"].append((met.json()["id"], sha256(data).hexdigest()))
            body = {"kind": "new", "version": 1, "name": f"K{number}-{i}"}
            done = httpx.post(f"{address}/api/encounters/{met.json()['id']}/decisions", json=body, timeout=20)
            if done.status_code == 200:
                told["decisions"].append((met.json()["id"], done.json()["decision"]["id"], body["name"]))
        except httpx.HTTPError:
            return


def test_after_a_kill_nothing_acknowledged_is_lost_and_nothing_is_half_there(own):
    for attempt in range(2):
        told, stop = {"photos": [], "decisions": []}, threading.Event()
        with server(own) as (address, process):
            workers = [threading.Thread(target=hammer, args=(address, 10 * attempt + n, told, stop)) for n in range(6)]
            for worker in workers:
                worker.start()
            until = time.monotonic() + 60
            while len(told["decisions"]) < 25 and time.monotonic() < until:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            stop.set()
            for worker in workers:
                worker.join()
        assert len(told["decisions"]) >= 25
        with closing(sqlite3.connect(own / "catalogue.sqlite")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            paths = database.execute("SELECT path FROM photos WHERE kept").fetchall()
            bare = "SELECT count(*) FROM photos WHERE id NOT IN (SELECT photo_id FROM embeddings) OR id NOT IN "
            assert database.execute(bare + "(SELECT photo_id FROM crops)").fetchone() == (0,)
            half = (
                "SELECT count(*) FROM encounters WHERE state = 'new' AND id NOT IN (SELECT encounter_id FROM decisions)"
            )
            assert database.execute(half).fetchone() == (0,)
        for (path,) in paths:
            assert sha256((own / path).read_bytes()).hexdigest() == Path(path).stem
        with server(own) as (address, _):
            for met, decision, name in told["decisions"]:
                now = httpx.get(f"{address}/api/encounters/{met}").json()
                assert (now["state"], now["individual"]["name"]) == ("new", name)
                trail = httpx.get(f"{address}/api/trail?encounter_id={met}").json()["decisions"]
                assert decision in {line["id"] for line in trail}
            for met, digest in told["photos"]:
                photo = httpx.get(f"{address}/api/encounters/{met}").json()["photos"][0]
                assert sha256(httpx.get(f"{address}/api/photos/{photo['id']}/file").content).hexdigest() == digest


# --- models


def test_adding_embeds_only_what_is_new_and_another_model_is_refused_with_the_remedy(own, tmp_path, monkeypatch):
    from happywhale_nb.encoding import Embedder

    embedded, embed = [], Embedder.embed
    monkeypatch.setattr(
        Embedder, "embed", lambda self, paths, *a, **k: embedded.extend(paths) or embed(self, paths, *a, **k)
    )
    data = own / "season"
    shutil.copy(next((data / "to_drop").iterdir()), data / "test_images" / "new.jpg")
    with (data / "sample_submission.csv").open("a") as file:
        file.write("new.jpg,\n")
    made, embedder, added, _ = build_catalogue(own, data)
    embedder.close()
    assert added == 1 and [path.name for path in embedded] == ["new.jpg"]
    other = keep_model(tmp_path / "other", demo_model())
    record = json.loads(other.with_name("config.json").read_text())
    record["parameters"]["margin_around"] = 0.2
    other.with_name("config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"catalogue re-embed .*demo --model MODEL"):
        build_catalogue(own, data, other)
    from happywhale_nb.intake import re_embed

    embedded.clear()
    embedder = Embedder(other)
    assert re_embed(made, embedder, "other") == len(embedded) == 204
    worth = change_over(made, embedder, other)
    embedder.close()
    made.close()
    assert worth.photographs > 100
    made, embedder, added, _ = build_catalogue(own, data)
    embedder.close()
    made.close()
    assert added == 0


def test_a_server_for_others_needs_tokens(own):
    for words, told in ((["--host", "0.0.0.0", "--no-tokens"], "bring a token"), (["--tokens"], "no token yet")):
        done = subprocess.run(
            [*COMMAND, "serve", str(own), "--no-browser", *words], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2 and told in done.stderr
