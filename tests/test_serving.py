"""A catalogue built, changed over to another model and served: in this process, as a process, in a browser, killed."""

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from base64 import b64encode
from contextlib import closing, contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pandas as pd
import pytest
import uvicorn
from click.testing import CliRunner
from PIL import Image
from sqlalchemy import func, select

from happywhale_nb.catalogue import build
from happywhale_nb.catalogue import ingest as intake
from happywhale_nb.catalogue.build import build_catalogue, change_over, demo_catalogue, keep_model, open_embedder
from happywhale_nb.catalogue.matching import Matcher, match_encounter
from happywhale_nb.catalogue.schema import Annotation, Decision, Embedding, Encounter, Photo
from happywhale_nb.catalogue.store import Catalogue, pack_vector
from happywhale_nb.catalogue.training_photos import TrainedOn
from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import read_json, write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.splits import FOLD_COLUMNS
from happywhale_nb.demo.season import demo_model, draw_season
from happywhale_nb.retrieval.embeddings import image_embeddings, write_embeddings
from happywhale_nb.retrieval.no_animal import NoAnimal
from happywhale_nb.server import run as serving
from happywhale_nb.server.app import make_app
from happywhale_nb.server.auth import find_token, list_tokens, make_token
from happywhale_nb.server.run import check_server
from happywhale_nb.server.state import AppState, Options

# --- building and changing over, by an embedder that needs no TensorFlow


def stand_in(colours, names):
    """Stands in for `happywhale_nb.networks.embedder`: a network by colours, with the fingerprint of its
    files; the names of the photographs that it embeds come into `names`."""

    class Embedder(type(colours)):
        def __init__(self, model_path, detector=None):
            files = Path(model_path).read_bytes() + Path(model_path).with_name("config.json").read_bytes()
            self.fingerprint = sha256(files).hexdigest()[:16]

        def embed(self, paths, boxes=None, quiet=True):
            names.extend(path.name for path in paths if path.name != "probe.png")  # a check before a switch
            return super().embed(paths, boxes)

    return SimpleNamespace(Embedder=Embedder)


@pytest.fixture
def embedded(colours, monkeypatch):
    """The names of the photographs that were embedded, by a stand-in."""
    names = []
    monkeypatch.setitem(sys.modules, "happywhale_nb.networks.embedder", stand_in(colours, names))
    return names


@pytest.fixture(scope="module")
def first(colours, tiny, tmp_path_factory):
    """The folder of a catalogue of `tiny` that `build_catalogue` made; tests copy it."""
    place = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "happywhale_nb.networks.embedder", stand_in(colours, []))
        build_catalogue(place / "catalogue", tiny, save_model(place / "model"))[0].close()
    return place / "catalogue"


@pytest.fixture
def folder(first, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(first, tmp_path / "catalogue"))


def save_model(folder, content=b"one", **record):
    """Files that pass for a trained model: the place of its `model.keras`."""
    folder.mkdir()
    (folder / "model.keras").write_bytes(content)
    about = {"parameters": {"model": "colours", "fold": 0}, "trained_on": []}
    write_json(folder / "config.json", about | record)
    return folder / "model.keras"


def count_of(catalogue, table):
    with catalogue.reading() as session:
        return session.scalar(select(func.count()).select_from(table))


def add_photo_to(data):
    """One more photograph in a data folder; its name."""
    Image.fromarray(np.random.default_rng(5).integers(0, 255, (60, 80, 3), np.uint8)).save(data / "test_images/new.jpg")
    with (data / "sample_submission.csv").open("a") as file:
        file.write("new.jpg,\n")
    return "new.jpg"


def test_build_catalogue_given_again_embeds_only_what_is_new(embedded, tiny_copy, tmp_path):
    model, folder = save_model(tmp_path / "model"), tmp_path / "catalogue"
    made, _, added, worth = build_catalogue(folder, tiny_copy, model, name="ours")
    made.close()
    assert added == len(embedded) == len(set(embedded)) == 58 and worth.photographs > 0 and made.name == "ours"
    embedded.clear()
    for new in ([], ["new.jpg"]):
        assert not new or add_photo_to(tiny_copy) == "new.jpg"
        made, embedder, added, _ = build_catalogue(folder, tiny_copy)
        assert embedded == new and added == len(new) and made.fingerprint == embedder.fingerprint
        assert count_of(made, Embedding) == count_of(made, Photo) == 58 + len(new)
        made.close()


def test_build_catalogue_takes_stored_embeddings_of_the_same_data_and_no_others(embedded, tiny, colours, tmp_path):
    dataset = read_dataset(tiny)
    stored = image_embeddings("train", dataset.train["image"], colours.embed(dataset.train_paths()))
    for name, data in (("other", "0" * 16), ("same", dataset.fingerprint)):
        model = save_model(tmp_path / name, protocol={"data": data})
        assert build.stored_embeddings(model, dataset) is None
        write_embeddings(model.with_name("embeddings.parquet"), stored)
        assert (build.stored_embeddings(model, dataset) is None) == (name == "other")
    build_catalogue(tmp_path / "catalogue", tiny, model)[0].close()
    assert embedded == dataset.test["image"].tolist(), "the ten that training did not embed"


def test_build_catalogue_takes_two_photographs_of_one_name_apart(embedded, colours, tiny_copy, tmp_path):
    name = read_dataset(tiny_copy).train["image"][0]
    (tiny_copy / "test_images" / name).write_bytes((tiny_copy / "test_images" / add_photo_to(tiny_copy)).read_bytes())
    with (tiny_copy / "sample_submission.csv").open("a") as file:
        file.write(f"{name},\n")
    dataset = read_dataset(tiny_copy)
    images, parts = [*dataset.train["image"], *dataset.test["image"]], np.repeat(["train", "test"], [48, 12])
    vectors = np.random.default_rng(0).normal(size=(60, colours.width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    model = save_model(tmp_path / "model", protocol={"data": dataset.fingerprint}, trained_on=[name])
    write_embeddings(model.with_name("embeddings.parquet"), image_embeddings(parts, images, vectors))
    made = build_catalogue(tmp_path / "catalogue", tiny_copy, model)[0]
    with made.reading() as session:
        columns = select(Photo.path, Embedding.vector, Embedding.trained).select_from(Photo).join(Annotation)
        columns = columns.join(Embedding, Embedding.annotation_id == Annotation.id).where(Photo.name == name)
        rows = {path: (vector, trained) for path, vector, trained in session.execute(columns)}
    made.close()
    expected = {
        f"train_images/{name}": (pack_vector(vectors[0]), True),
        f"test_images/{name}": (pack_vector(vectors[59]), False),
    }
    assert rows == expected and not embedded


def test_build_catalogue_without_what_it_needs_is_refused_and_makes_nothing(embedded, tiny, tmp_path):
    model, folder = save_model(tmp_path / "model"), tmp_path / "catalogue"
    with pytest.raises(UserError, match="--model MODEL"):
        build_catalogue(folder, tiny)
    with pytest.raises(UserError, match="not a trained model"):
        build_catalogue(folder, tiny, tmp_path / "gone.keras")
    with pytest.raises(UserError, match="no detector"):
        build_catalogue(folder, tiny, model, detector=tmp_path / "gone.keras")
    assert not folder.exists()


def test_build_catalogue_of_another_model_or_other_data_is_refused_with_the_remedy(embedded, folder, tiny, tmp_path):
    with pytest.raises(UserError, match=r"catalogue re-embed .*catalogue --model MODEL"):
        build_catalogue(folder, tiny, save_model(tmp_path / "other", b"two"))
    with pytest.raises(UserError, match="was built from"):
        build_catalogue(folder, shutil.copytree(tiny, tmp_path / "copy"))
    assert embedded == []


def test_build_cut_off_goes_on_where_it_was(embedded, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "LOT", 20)
    model, folder, before = save_model(tmp_path / "model"), tmp_path / "catalogue", intake.add_photo

    def cut(*given, **more):
        if len(embedded) > 40:
            raise RuntimeError("the power is gone")
        return before(*given, **more)

    monkeypatch.setattr(intake, "add_photo", cut)
    with pytest.raises(RuntimeError, match="the power is gone"):
        build_catalogue(folder, tiny, model)
    monkeypatch.setattr(intake, "add_photo", before)
    with pytest.raises(UserError, match="has not been built to the end"):
        Matcher(Catalogue(folder))
    embedded.clear()
    made, _, added, _ = build_catalogue(folder, tiny)
    assert added == len(embedded) == 18 and count_of(made, Embedding) == count_of(made, Photo) == 58
    made.close()


def test_re_embed_cut_off_goes_on_and_the_old_model_answers_until_change_over(
    embedded, folder, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(intake, "LOT", 20)
    made, other = Catalogue(folder), save_model(tmp_path / "other", b"two")
    old = open_embedder(made)
    embedder, pack = sys.modules["happywhale_nb.networks.embedder"].Embedder(other), intake.pack_vector
    monkeypatch.setattr(intake, "pack_vector", lambda vector: 1 / 0 if len(embedded) > 40 else pack(vector))
    with pytest.raises(ZeroDivisionError):
        intake.re_embed(made, embedder, "other")
    monkeypatch.setattr(intake, "pack_vector", pack)
    with made.reading() as session:
        undecided = session.scalar(select(Encounter.id).where(Encounter.state == "undecided"))
    assert match_encounter(Matcher(made), "Ann", undecided)["candidates"] and made.fingerprint == old.fingerprint
    embedded.clear()
    assert intake.re_embed(made, embedder, "other") == len(embedded) == 18
    worth = change_over(made, embedder, other)
    assert worth.photographs > 0 and made.fingerprint == embedder.fingerprint != old.fingerprint
    assert made.model_path.read_bytes() == b"two" and Catalogue(folder).fingerprint == embedder.fingerprint
    assert match_encounter(Matcher(made), "Ann", undecided)["candidates"]
    made.close()
    again, _, added, _ = build_catalogue(folder, tiny)
    assert added == 0 and len(embedded) == 18
    again.close()


def test_open_embedder_embeds_what_is_missing_and_refuses_another_model(embedded, folder, tmp_path):
    made = Catalogue(folder)
    with made.writing() as session:
        session.delete(session.scalars(select(Embedding).order_by(Embedding.annotation_id)).first())
    assert open_embedder(made).fingerprint == made.fingerprint
    assert len(embedded) == 1 and count_of(made, Embedding) == 58
    keep_model(made.folder, save_model(tmp_path / "other", b"two"))
    with pytest.raises(UserError, match="embeddings cannot be compared"):
        open_embedder(made)
    made.close()


def test_trained_on_knows_the_gallery_of_its_fold(tmp_path):
    model = save_model(tmp_path / "model")
    record = read_json(model.with_name("config.json"))
    assert build.trained_on(model) == TrainedOn()
    del record["trained_on"]
    fold = tmp_path / "study" / "m" / "fold1"
    fold.parent.mkdir(parents=True)
    shutil.move(tmp_path / "model", fold)
    write_json(fold / "config.json", record | {"parameters": {"model": "m", "fold": 1}})
    assert build.trained_on(fold / "model.keras") is None
    rows = [("a.jpg", "A", 0, 0), ("b.jpg", "A", 1, 0), ("c.jpg", "B", 0, 1)]
    table = pd.DataFrame(rows, columns=["image", "individual_id", "fold", "query_only"])
    table.assign(species="x", protocol="known")[FOLD_COLUMNS].to_csv(tmp_path / "study" / "folds.csv", index=False)
    assert build.trained_on(fold / "model.keras") == TrainedOn(names=frozenset(["a.jpg"]))
    photos = tmp_path / "data" / "train_images"
    photos.mkdir(parents=True)
    (photos / "a.jpg").write_bytes(b"a whale")
    write_json(tmp_path / "study" / "study.json", {"data_dir": str(tmp_path / "data")})
    content = sha256(b"a whale").hexdigest()
    assert build.trained_on(fold / "model.keras") == TrainedOn(frozenset([content]))
    assert build.trained_on(fold / "model.keras", {photos / "a.jpg": "known"}) == TrainedOn(frozenset(["known"]))


def test_demo_catalogue_is_made_once_and_spares_other_catalogues(embedded, built, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        build, "draw_season", lambda place: drawn.append(draw_season(place, 3, 8, 4, (64, 80), 1, progress=False))
    )
    made, embedder = demo_catalogue(tmp_path / "demo")
    count = len(embedded)
    assert made.name == "demo season" and count == count_of(made, Photo) > 20 and len(drawn) == 1
    assert made.model_path.read_bytes() == demo_model().read_bytes() and made.fingerprint == embedder.fingerprint
    assert made.model_path.with_name("detector.keras").is_file()
    made.close()
    again, _ = demo_catalogue(tmp_path / "demo")
    assert len(drawn) == 1 and len(embedded) == count == count_of(again, Photo)
    again.close()
    with pytest.raises(UserError, match="not the demo's"):
        demo_catalogue(shutil.copytree(built, tmp_path / "mine"))


# --- the server in this process


def test_check_server_open_to_others_needs_tokens(mine):
    with pytest.raises(UserError, match="tokens are required"):
        check_server(mine, "0.0.0.0", 0, Options(tokens=False))
    with pytest.raises(UserError, match="no token yet"):
        check_server(mine, "127.0.0.1", 0, Options())
    with mine.writing() as session:
        make_token(session, "Ann", "read")
    for host in ("127.0.0.1", "0.0.0.0"):
        check_server(mine, host, 0, Options())
    check_server(mine, "127.0.0.1", 0, Options(tokens=False))


def test_check_server_on_a_taken_port_or_an_unknown_address_is_refused(mine):
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="cannot listen on"):
            check_server(mine, "127.0.0.1", other.getsockname()[1], Options(tokens=False))
    with pytest.raises(UserError, match=r"no address 'nowhere\.invalid'"):
        check_server(mine, "nowhere.invalid", 0, tokened(mine))


def tokened(catalogue):
    """Options of a server that asks for tokens, of which there is one."""
    with catalogue.writing() as session:
        make_token(session, "Ann", "read")
    return Options()


def test_serve_answers_until_it_is_stopped_and_closes_the_catalogue(mine, colours, monkeypatch):
    servers, ready, closed = [], threading.Event(), []
    make = uvicorn.Server
    monkeypatch.setattr(uvicorn, "Server", lambda config: servers.append(make(config)) or servers[0])
    monkeypatch.setattr(mine, "close", lambda: closed.append(True))
    how = {"port": 0, "options": Options(tokens=False), "embedder": colours, "ready": ready.set}
    thread = threading.Thread(target=serving.serve, args=(mine,), kwargs=how, daemon=True)
    thread.start()
    try:
        assert ready.wait(30), "the server did not start"
        port = servers[0].servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as page:
            assert page.get("/").headers["content-type"].startswith("text/html")
            assert page.get("/api/session").json()["role"] == "admin" and page.get("/api/encounters").json()["total"]
    finally:
        servers[0].should_exit = True
        thread.join(30)
    assert not thread.is_alive() and closed == [True]


# --- the commands


def happywhale(*words):
    """The command in this process: its `exit_code`, `stdout` and `stderr`."""
    return CliRunner().invoke(main, [str(word) for word in words])


def test_serve_command_for_others_without_tokens_is_refused(mine):
    for words, told in ((["--host", "0.0.0.0", "--no-tokens"], "tokens are required"), (["--tokens"], "no token yet")):
        done = happywhale("serve", mine.folder, "--no-browser", *words)
        assert done.exit_code == 2 and told in done.stderr and not done.stdout


def test_catalogue_token_command_makes_and_ends_tokens(mine):
    token = happywhale("catalogue", "token", mine.folder, "Ann", "--role", "review").stdout.strip()
    happywhale("catalogue", "token", mine.folder, "Ben")
    with mine.reading() as session:
        assert (find_token(session, token).name, find_token(session, token).role) == ("Ann", "review")
    assert "1 token of Ann revoked" in happywhale("catalogue", "token", mine.folder, "Ann", "--end").stdout
    with mine.reading() as session:
        assert find_token(session, token) is None and [row.name for row in list_tokens(session)] == ["Ben"]
    refused = happywhale("catalogue", "token", mine.folder, " ")
    assert refused.exit_code == 2 and "name is empty" in refused.stderr


def test_catalogue_export_command_writes_the_file_or_names_the_species_there_are(mine, tmp_path):
    done = happywhale("catalogue", "export", mine.folder, "csv", "-o", tmp_path / "all.csv")
    assert done.exit_code == 0 and len(pd.read_csv(tmp_path / "all.csv")) == count_of(mine, Photo)
    done = happywhale("catalogue", "export", mine.folder, "mark", "-o", tmp_path / "a.inp")
    assert "encounters left out:" in done.stdout and (tmp_path / "a.inp").read_bytes().startswith(b"/* species: all")
    done = happywhale("catalogue", "export", mine.folder, "wildbook", "-o", tmp_path / "sheet.xlsx")
    assert "Wildbook will refuse this sheet:" in done.stdout and "Row 2, encounter " in done.stdout
    for word in ("--dry-run", "--photos"):
        done = happywhale("catalogue", "export", mine.folder, "wildbook", "-o", tmp_path / "sheet.zip", word)
        assert done.exit_code == 0 and "Wildbook will refuse this sheet:" in done.stdout
        assert (tmp_path / "sheet.zip").exists() == (word == "--photos")
    assert len(zipfile.ZipFile(tmp_path / "sheet.zip").namelist()) == 1 + count_of(mine, Photo)
    refused = happywhale("catalogue", "export", mine.folder, "csv", "-o", tmp_path / "b.csv", "--species", "mermaid")
    assert refused.exit_code == 2 and "no photograph is of 'mermaid': choose one of" in refused.stderr
    assert not (tmp_path / "b.csv").exists()


def test_catalogue_add_command_takes_photographs_and_leaves_out_what_is_none(embedded, folder, tiny_copy, tmp_path):
    photo = tiny_copy / "test_images" / add_photo_to(tiny_copy)
    (tmp_path / "notes.jpg").write_text("no photograph")
    done = happywhale("catalogue", "add", folder, photo, tmp_path / "notes.jpg", "--each", "--place", "Ness")
    assert done.exit_code == 2 and "1 photograph of 2 left out" in done.stderr and "notes.jpg" in done.stderr
    number = int(re.search(r"encounter (\d+): 1 photograph", done.stdout)[1])
    opened = Catalogue(folder)
    with opened.reading() as session:
        kept = session.scalar(select(Photo).where(Photo.encounter_id == number))
        assert opened.path(kept).read_bytes() == photo.read_bytes() and session.get(Encounter, number).place == "Ness"
    opened.close()


def test_catalogue_add_command_keeps_folders_by_which_photographs_are_grouped_later(embedded, folder, tmp_path):
    rng = np.random.default_rng(6)
    for day in ("day1", "day2"):
        (tmp_path / "trip" / day).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(tmp_path / "trip" / day / "IMG_0001.jpg")
    done = happywhale("catalogue", "add", folder, tmp_path / "trip" / "day1", tmp_path / "trip" / "day2")
    assert done.exit_code == 0 and "2 photographs" in done.stdout
    opened = Catalogue(folder)
    with opened.reading() as session:
        (line,) = session.scalars(select(Decision).where(Decision.kind == "upload"))
    opened.close()
    assert sorted(line.after["folders"].values()) == ["trip/day1", "trip/day2"]


def test_catalogue_upgrade_command_of_todays_tables_says_so(mine):
    assert "already have version 0003" in happywhale("catalogue", "upgrade", mine.folder).stdout


# --- the server as a process

COMMAND = [sys.executable, "-c", "from happywhale_nb.cli.main import main; main()"]


@contextmanager
def server(folder):
    """`happywhale serve --demo` in a folder: its address, and its process."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*COMMAND, "serve", str(folder), "--demo", "--no-browser", "--rate", "0", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True)
        late = threading.Timer(240, process.kill)  # then its output ends, and so does the wait for it
        late.start()
        try:
            line = process.stdout.readline()
            late.cancel()
            assert f"localhost:{port}" in line, f"the server did not start: {told.seek(0) or told.read()[-3000:]}"
            yield f"http://localhost:{port}", process
        finally:
            late.cancel()
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()
                process.stdout.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a demo catalogue, and its network, loaded."""
    folder = tmp_path_factory.mktemp("season") / "demo"
    catalogue, network = demo_catalogue(folder)
    catalogue.close()
    close, network.close = network.close, lambda: None  # a server closes its network at the end: this one is shared
    yield folder, network
    close()


def copied(season, folder):
    """A copy of a demo catalogue."""
    shutil.copytree(season, folder)
    card = json.loads((folder / "catalogue.json").read_text())
    (folder / "catalogue.json").write_text(json.dumps(card | {"data": str(folder / "season")}))
    return folder


@pytest.fixture(scope="module")
def season(demo):
    """The folder of the demo catalogue."""
    return demo[0]


@pytest.fixture
def own(season, tmp_path):
    """A copy of it to change."""
    return copied(season, tmp_path / "demo")


@contextmanager
def served(folder, network, tokens=False):
    """A server of a copy in this process, which has loaded everything that one needs: its address."""
    catalogue, rates = Catalogue(folder), Options().rates | {"question": 0}
    app = make_app(AppState(catalogue, Options(tokens=tokens, rates=rates)), lambda: network)
    running = uvicorn.Server(uvicorn.Config(app, port=0, **serving.UVICORN_OPTIONS))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not running.started:
        assert thread.is_alive() and time.monotonic() < until, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://localhost:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(30)
        catalogue.close()
    assert not thread.is_alive()


@pytest.fixture
def page_of_own(own, demo):
    """The address of a server of the copy."""
    with served(own, demo[1]) as address:
        yield address


@pytest.fixture(scope="module")
def desk(demo, tmp_path_factory):
    """The address of a server of one copy, for tests that leave it as it was or take encounters of their own."""
    folder, network = demo
    with served(copied(folder, tmp_path_factory.mktemp("desk") / "demo"), network) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    """Chromium, started once: each test has a context of its own."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program:
        pytest.skip("no Chromium here: apt-get install chromium")
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


def sightings_of(address):
    """Rows of the table of all photographs that a server exports."""
    return list(csv.DictReader(io.StringIO(httpx.get(f"{address}/api/exports/csv").content.decode("utf-8-sig"))))


@pytest.mark.server
@pytest.mark.browser
def test_page_uploads_confirms_still_has_it_after_a_reload_and_exports(own, page_of_own, browser, tmp_path):
    address = page_of_own
    dropped = sorted((own / "season" / "to_drop").iterdir())
    photo = shutil.copy(dropped[0], tmp_path / "=1+1 <img src=x onerror=alert(1)>.jpg")
    with watched(browser, address) as (page, faults):
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
        page.wait_for_function("own => location.hash.split('?')[0] != own", arg=f"#/encounter/{number}")  # goes on
        page.goto(f"{address}/#/encounter/{number}")
        page.reload()
        page.wait_for_selector("#encounter[data-state='confirmed']")
        assert confirmed["individual"]["name"] in page.inner_text("main")
        page.goto(f"{address}/#/exports")
        page.wait_for_selector("[data-export='csv']")
        page.select_option("#exports-species", confirmed["species"])
        page.select_option("#occasions-mark", "month")
        page.click("[data-export='mark']")
        assert "encounters left out:" in page.inner_text("[data-notes='mark'] li"), "before the download"
        with page.expect_download() as got:
            page.click("[data-take='mark']")
        histories = got.value.path().read_text()
        assert got.value.suggested_filename == "histories.inp" and confirmed["individual"]["name"] in histories
        assert f"species: {confirmed['species']}" in histories and "months" in histories
        page.click("[data-export='wildbook']")
        page.wait_for_selector("[data-notes='wildbook'] li")
        told = page.inner_text("[data-notes='wildbook']")
        assert "Wildbook will refuse this sheet:" in told and "another name in the sheet" in told
        with page.expect_download() as got:
            page.click("[data-photos='wildbook']")
        names = set(zipfile.ZipFile(got.value.path()).namelist())
        shown = sum(1 for row in sightings_of(address) if row["species"] == confirmed["species"])
        assert got.value.suggested_filename == "wildbook.zip" and "wildbook.xlsx" in names and len(names) == shown + 1
        (row,) = [row for row in sightings_of(address) if row["encounter_id"] == str(number)]
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


@pytest.mark.server
@pytest.mark.browser
def test_page_takes_many_dropped_photographs_and_a_bad_one_costs_no_other(own, page_of_own, browser):
    address = page_of_own
    files = [(path.name, path.read_bytes()) for path in sorted((own / "season" / "to_drop").iterdir())]
    files.insert(2, ("notes.jpg", b"these are notes and no photograph"))
    with watched(browser, address) as (page, faults):
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
        failures = page.inner_text("#failures")
        assert "notes.jpg" in failures and "is not a supported image" in failures
        assert page.locator("#failures [data-retry]").count() == 0, "what is no photograph will never be one"
        assert httpx.get(f"{address}/api/encounters?limit=1").json()["total"] == before + 6
        assert [fault for fault in faults if "422" not in fault] == []


@pytest.mark.server
@pytest.mark.browser
def test_page_shows_and_keeps_the_filters_of_the_queue(desk, browser):
    with watched(browser, desk) as (page, faults):
        page.goto(f"{desk}/#/queue")
        page.wait_for_selector("#queue [data-encounter]")
        place = httpx.get(f"{desk}/api/facets").json()["places"][0]
        total, fits = (
            httpx.get(f"{desk}/api/encounters", params={"state": "undecided"} | part).json()["total"]
            for part in ({}, {"place": place})
        )
        assert 0 < fits < total
        page.select_option("#queue-place", place)
        holds(page, "#queue [data-encounter]", fits)
        page.goto(f"{desk}/#/individuals")
        page.wait_for_selector("#individuals li")
        page.goto(f"{desk}/#/queue")
        page.reload()
        holds(page, "#queue [data-encounter]", fits)
        assert page.input_value("#queue-place") == place and place in page.inner_text("[data-chips='queue']")
        page.click("[data-chips='queue'] button")
        holds(page, "#queue [data-encounter]", total)
        assert faults == []


@pytest.mark.server
@pytest.mark.browser
def test_page_tells_of_a_conflict_and_can_undo(desk, browser):
    with watched(browser, desk) as (page, faults):
        first = httpx.get(f"{desk}/api/encounters?state=undecided&limit=1").json()["encounters"][0]
        url = f"{desk}/api/encounters/{first['id']}/decisions"
        page.goto(f"{desk}/#/encounter/{first['id']}")
        page.wait_for_selector("#candidates [data-candidate='1']")
        page.wait_for_selector("#unsure:not([disabled])")
        assert httpx.post(url, json={"kind": "unsure", "version": 1, "note": "too dark"}).status_code == 200
        page.keyboard.press("u")
        page.wait_for_selector("#conflict:not([hidden])")
        assert httpx.get(f"{desk}/api/encounters/{first['id']}").json()["version"] == 2, "nothing was overwritten"
        page.goto(f"{desk}/#/audit-log")
        with page.expect_response(lambda answer: answer.url.endswith("/undo") and answer.ok):
            page.click("[data-undo]")
        assert httpx.get(f"{desk}/api/encounters/{first['id']}").json()["state"] == "undecided"
        assert [fault for fault in faults if "409" not in fault] == [], "the browser reports the status itself"


@pytest.mark.server
@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 360])
def test_page_fits_in_every_view_and_loads_nothing_from_elsewhere(desk, browser, width):
    with watched(browser, desk) as (page, faults):
        page.set_viewport_size({"width": width, "height": 740})
        for view in ("queue", "encounter/82", "individuals", "individual/1", "add", "audit-log", "exports", "tokens"):
            page.goto(f"{desk}/#/{view}")
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), view
        page.goto(f"{desk}/#/encounter/82")
        for opens, saves in (("Edit", "#edit-save"), ("Draw a box", "dialog .primary")):
            page.click(f"text={opens}")
            page.wait_for_selector(saves)
            body = "document.querySelector('dialog .dialog-body')"
            assert page.evaluate(f"{body}.scrollWidth <= {body}.clientWidth"), opens
            page.keyboard.press("Escape")
        page.goto(f"{desk}/docs")
        page.wait_for_selector("section.operation")
        assert faults == []


# --- corrections on the page


def open_encounters(address, photos=1):
    """Undecided encounters with at least so many photographs."""
    found = httpx.get(f"{address}/api/encounters?state=undecided&limit=100").json()["encounters"]
    return [each for each in found if len(each["photos"]) >= photos]


def knows(address, number):
    """Whether the first two candidates of an encounter are individuals with several photographs, none of them new."""
    answer = httpx.post(f"{address}/api/encounters/{number}/answers", json={"k": 10}).json()
    return all(each["photos"] > 1 for each in answer["candidates"][:2])


def taken_at(path, time):
    """The bytes of a photograph, with a time in its EXIF."""
    data, image = io.BytesIO(), Image.open(path)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = time
    image.save(data, "JPEG", exif=exif)
    return data.getvalue()


def show(page, address, number):
    """Open an encounter and wait for its candidates."""
    page.goto(f"{address}/#/encounter/{number}")
    page.wait_for_selector("#candidates [data-candidate='1']")


def says(page, text):
    """Wait until a message has this text; then all messages, of which there are two at most."""
    from playwright.sync_api import expect

    expect(page.locator("#messages")).to_contain_text(text)
    return page.locator("#messages .message").count()


@pytest.mark.server
@pytest.mark.browser
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_page_shows_both_photographs_above_the_bar_whatever_key_is_pressed(desk, browser, width, height):
    with watched(browser, desk) as (page, faults):
        page.set_viewport_size({"width": width, "height": height})
        show(page, desk, next(each["id"] for each in open_encounters(desk) if knows(desk, each["id"])))
        names = []
        for key in ("2", "k", "ArrowLeft", "2"):
            with page.expect_response("**/api/individuals/*/photos*") if key == "k" else nullcontext():
                page.keyboard.press(key)
            page.wait_for_function("() => document.querySelector('#match-photo').complete")
            bar = page.locator(".actions").bounding_box()["y"] if width < 700 else height
            for side in ("#query-photo", "#match-photo"):
                page.locator(side).wait_for()
                box = page.locator(side).bounding_box()
                assert box["y"] >= 0 and box["y"] + box["height"] <= bar and box["height"] >= 100, (key, side)
            names.append(page.inner_text("figure.match .file"))
        assert names[0] != names[1] and page.inner_text("figure.match .rank") == "2", "k turned the candidate's pages"
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.keyboard.press("2")
        assert page.locator("#match-photo").bounding_box()["y"] >= 0, "the photographs come back into view"
        assert faults == []


@pytest.mark.server
@pytest.mark.browser
def test_page_proposes_the_rule_of_the_data_folder(desk, browser):
    session = httpx.get(f"{desk}/api/session").json()
    assert session["catalogue"]["encounters_by"] == ""
    session["catalogue"]["encounters_by"] = "burst:7"
    with watched(browser, desk) as (page, faults):
        page.route("**/api/session", lambda route: route.fulfill(json=session))
        page.goto(f"{desk}/#/add")
        page.wait_for_selector("#drop")
        page.evaluate(DROP, [(f"{i}.jpg", b64encode(bytes(100 + i)).decode()) for i in range(3)])
        page.wait_for_selector("#group-burst:checked", state="attached")
        assert page.input_value("#add-minutes") == "7"
        page.check("#group-one", force=True)
        assert page.is_checked("#group-one"), "it is a proposal"
        assert faults == []


@pytest.mark.server
@pytest.mark.browser
def test_page_asks_how_a_folder_is_grouped_and_undoes_the_grouping(desk, season, browser):
    paths = sorted((season / "season" / "to_drop").iterdir())
    dropped = [(path.name, taken_at(path, f"2024:09:01 10:{10 * i:02}:00")) for i, path in enumerate(paths)]
    with watched(browser, desk) as (page, faults):
        page.set_viewport_size({"width": 390, "height": 844})
        page.goto(f"{desk}/#/add")
        page.wait_for_selector("#drop")
        page.evaluate(DROP, [(f"a_rather_long_name_{name}", b64encode(data).decode()) for name, data in dropped * 3])
        page.wait_for_selector("#grouping-why:has-text('met once')")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.is_enabled("#send") and f"{len(dropped)} photographs" in page.inner_text("#chosen")
        page.evaluate(DROP, [(f"{i}.jpg", b64encode(bytes(100 + i)).decode()) for i in range(20)])
        page.wait_for_selector("#send:disabled")
        assert "Choose a grouping" in page.inner_text("#grouping-why"), "so many are hardly one animal"
        page.click("#clear")
        page.evaluate(DROP, [(f"a_rather_long_name_{name}", b64encode(data).decode()) for name, data in dropped])
        page.check("#group-burst", force=True)
        page.fill("#add-minutes", "5")
        page.click("#send")
        says(page, "Grouped into")
        page.wait_for_selector("#sent [data-encounter]")
        holds(page, "#sent [data-encounter]", len(dropped))
        page.click("[data-action='message']")
        says(page, "Undid: regrouped")
        met = [each for each in open_encounters(desk, 2) if each["photos"][0]["name"].startswith("a_rather_long")]
        assert [len(each["photos"]) for each in met] == [len(dropped)], "one encounter again, each photograph once"
        assert faults == []


@pytest.mark.server
@pytest.mark.browser
def test_page_sends_an_encounter_a_folder_and_the_server_knows_the_folders(desk, browser, tmp_path):
    for i, folder in enumerate("AB"):
        (tmp_path / "trip" / folder).mkdir(parents=True)
        for j in range(2):
            (tmp_path / "trip" / folder / f"{j}.jpg").write_bytes(photograph(900 + 2 * i + j))
    with watched(browser, desk) as (page, faults):
        page.goto(f"{desk}/#/add")
        page.set_input_files("#folder", str(tmp_path / "trip"))
        page.wait_for_selector("#send:disabled")
        page.check("#group-folder", force=True)
        page.click("#send")
        holds(page, "#sent [data-encounter]", 2)
        met = [each for each in open_encounters(desk) if each["name"] in ("A", "B")]
        assert [len(each["photos"]) for each in met] == [2, 2] and met[0]["photos"][0]["name"] == "0.jpg"
        body = {"encounter_ids": [each["id"] for each in met], "by": "folder", "dry_run": True}
        told = httpx.post(f"{desk}/api/encounters/regroup", json=body).json()
        assert sorted(group["label"].split("/")[-1] for group in told["groups"]) == ["A", "B"]
        assert faults == []


@pytest.mark.server
@pytest.mark.browser
def test_page_takes_any_individual_and_a_known_name_and_undoes_what_the_message_names(desk, browser):
    met, other = open_encounters(desk)[1:3]
    with watched(browser, desk) as (page, faults):
        show(page, desk, met["id"])
        page.keyboard.press("o")
        page.fill("#someone-q", "KW-0003")
        page.click("dialog [data-into]:has-text('KW-0003')")
        page.wait_for_selector("#confirm:has-text('KW-0003')")
        page.keyboard.press("c")
        says(page, f"{met['name']} is KW-0003.")
        show(page, desk, other["id"])
        assert httpx.get(f"{desk}/api/encounters/{met['id']}").json()["individual"]["name"] == "KW-0003"
        seen = httpx.get(f"{desk}/api/encounters/{other['id']}").json()["version"]
        httpx.post(f"{desk}/api/encounters/{other['id']}/decisions", json={"kind": "unsure", "version": seen})
        page.click("[data-action='message']")
        says(page, f"Undid: confirmed KW-0003 for {met['name']}")
        states = [httpx.get(f"{desk}/api/encounters/{each['id']}").json()["state"] for each in (met, other)]
        assert states == ["undecided", "unsure"], "the message undoes the decision that it names, not the latest"
        show(page, desk, met["id"])
        page.keyboard.press("n")
        page.fill("#new-name", "kw-0003")
        page.keyboard.press("Enter")
        page.wait_for_selector("#new-known")
        if page.locator("#new-species").count():
            page.select_option("#new-species", "killer_whale")
            page.click("#new-confirm")
        page.wait_for_selector("#new-is-known")
        assert page.input_value("#new-name") == "kw-0003", "what was typed stays"
        page.click("#new-is-known")
        says(page, f"{met['name']} is KW-0003.")
        assert [fault for fault in faults if "409" not in fault] == []


@pytest.mark.server
@pytest.mark.browser
def test_page_withdraws_moves_and_edits_and_undoes_each(desk, browser):
    met = open_encounters(desk, 3)[-1]
    state = lambda: httpx.get(f"{desk}/api/encounters/{met['id']}").json()  # noqa: E731
    with watched(browser, desk) as (page, faults):
        show(page, desk, met["id"])
        page.click("#edit")
        page.select_option("dialog [data-side] >> nth=1", "left" if met["photos"][1]["side"] != "left" else "right")
        page.click("#edit-save")
        says(page, "Saved.")
        sides = [photo["side"] for photo in state()["photos"]]
        assert sides[0] == met["photos"][0]["side"] and sides[1] != met["photos"][1]["side"], "one photograph alone"
        page.click("[data-action='message']")
        says(page, "Undid: edited")
        assert [photo["side"] for photo in state()["photos"]] == [photo["side"] for photo in met["photos"]]
        page.click("#photographs")
        page.check("dialog [data-pick] >> nth=0")
        page.click("#move-new")
        says(page, "1 photograph moved to")
        assert len(state()["photos"]) == len(met["photos"]) - 1
        page.click("[data-action='message']")
        says(page, "Undid: moved")
        page.click("#withdraw")
        page.select_option("#withdraw-reason", "boat")
        page.click("#withdraw-yes")
        assert says(page, f"{met['name']} was withdrawn.") == 1, "messages do not stack"
        page.goto(f"{desk}/#/queue?state=withdrawn")
        page.click(f"[data-encounter='{met['id']}']")
        assert "boat" in page.inner_text("#withdrawn") and page.is_disabled("#confirm")
        page.click("#put-back")
        page.wait_for_selector("#encounter[data-state='undecided']")
        assert len(state()["photos"]) == len(met["photos"]) and faults == []


@pytest.mark.server
@pytest.mark.browser
def test_page_keeps_a_name_that_is_taken_and_a_merged_individual_offers_nothing(desk, browser):
    with watched(browser, desk) as (page, faults):
        page.goto(f"{desk}/#/individual/1")
        page.click("#rename")
        page.fill("#rename-name", "hb-0002")
        page.keyboard.press("Enter")
        page.wait_for_selector("#rename-merge")
        assert page.input_value("#rename-name") == "hb-0002", "what was typed stays"
        page.click("#rename-merge")
        page.click("#dialog-yes")
        says(page, "was merged into HB-0002.")
        page.goto(f"{desk}/#/individual/1")
        page.wait_for_selector("#merged")
        assert "it was merged into HB-0002" in page.inner_text("#merged")
        holds(page, "#rename, #merge", 0)
        page.click("#history [data-undo] >> nth=0")
        page.wait_for_selector("#rename")
        assert [fault for fault in faults if "409" not in fault] == []


@pytest.mark.server
@pytest.mark.browser
def test_page_with_nothing_to_show_says_what_to_do_next(desk, browser):
    with watched(browser, desk) as (page, faults):
        page.goto(f"{desk}/#/queue?place=Nowhere")
        page.click("#clear-filters")
        page.wait_for_selector("#queue [data-encounter]")
        page.goto(f"{desk}/#/queue?state=all")
        page.wait_for_selector("#queue [data-encounter]")
        assert page.is_checked("#queue-state [value='all']")
        page.goto(f"{desk}/#/individuals?q=nobody at all")
        page.click("#clear-filters")
        page.wait_for_selector("#individuals [data-individual]")
        page.goto(f"{desk}/#/encounter/98765")
        page.wait_for_selector("main [role='alert'] a[href='#/queue']")
        assert page.locator("main button", has_text="Try again").count() == 0, "the same would fail again"
        assert [fault for fault in faults if "404" not in fault] == []


@pytest.mark.server
@pytest.mark.browser
def test_page_of_a_server_with_tokens_asks_for_one(own, demo, browser):
    token = happywhale("catalogue", "token", own, "Ann", "--role", "read").stdout.strip()
    with served(own, demo[1], tokens=True) as address, watched(browser, address) as (page, faults):
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
            body = {"kind": "new", "version": 1, "name": f"K{number}-{i}", "species": "humpback_whale"}
            done = httpx.post(f"{address}/api/encounters/{met.json()['id']}/decisions", json=body, timeout=20)
            if done.status_code == 200:
                told["decisions"].append((met.json()["id"], done.json()["decision"]["id"], body["name"]))
        except httpx.HTTPError:
            return


@pytest.mark.soak
@pytest.mark.server
@pytest.mark.kill
@pytest.mark.timeout(900)
def test_serve_killed_under_load_has_all_it_acknowledged_and_nothing_half(own, demo):
    told, stop = {"photos": [], "decisions": []}, threading.Event()
    with server(own) as (address, process):
        workers = [threading.Thread(target=hammer, args=(address, n, told, stop)) for n in range(6)]
        for worker in workers:
            worker.start()
        until = time.monotonic() + 60
        while len(told["decisions"]) < 25 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        stop.set()
        for worker in workers:
            worker.join(60)
        assert not any(worker.is_alive() for worker in workers)
    assert len(told["decisions"]) >= 25, "in a minute"
    with closing(sqlite3.connect(own / "catalogue.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        paths = database.execute("SELECT path FROM photos WHERE kept").fetchall()
        bare = "SELECT count(*) FROM photos LEFT JOIN annotations a ON a.photo_id = photos.id WHERE a.id IS NULL "
        bare += "OR a.id NOT IN (SELECT annotation_id FROM embeddings) OR "
        assert database.execute(bare + "a.id NOT IN (SELECT annotation_id FROM crops)").fetchone() == (0,)
        half = "SELECT count(*) FROM encounters WHERE state = 'new' AND id NOT IN (SELECT encounter_id FROM decisions)"
        assert database.execute(half).fetchone() == (0,)
    for (path,) in paths:
        assert sha256((own / path).read_bytes()).hexdigest() == Path(path).stem
    with served(own, demo[1]) as address:
        for met, decision, name in told["decisions"]:
            now = httpx.get(f"{address}/api/encounters/{met}").json()
            assert (now["state"], now["individual"]["name"]) == ("new", name)
            trail = httpx.get(f"{address}/api/audit-log?encounter_id={met}").json()["decisions"]
            assert decision in {line["id"] for line in trail}
        for met, digest in told["photos"]:
            photo = httpx.get(f"{address}/api/encounters/{met}").json()["photos"][0]
            assert sha256(httpx.get(f"{address}/api/photos/{photo['id']}/file").content).hexdigest() == digest


# --- the season's real network


@pytest.mark.soak
@pytest.mark.server
def test_serve_demo_as_a_process_decides_and_ends_on_ctrl_c_with_nothing_lost(own):
    with server(own) as (address, process), httpx.Client(base_url=address, timeout=60) as page:
        assert page.get("/api/health").json()["status"] == "ready"
        met = page.get("/api/encounters?state=undecided&limit=1").json()["encounters"][0]
        answer = page.post(f"/api/encounters/{met['id']}/answers", json={}).json()
        first = next(each for each in answer["candidates"] if not each["is_new"])
        heat = page.get(f"/api/answers/{answer['id']}/heat?rank={first['rank']}")
        assert heat.status_code == 200 and heat.content.startswith(b"\x89PNG")
        body = {"kind": "confirm", "version": 1, "individual_id": first["individual"]["id"], "answer_id": answer["id"]}
        assert page.post(f"/api/encounters/{met['id']}/decisions", json=body).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    opened = Catalogue(own)
    with opened.reading() as session:
        assert session.get(Encounter, met["id"]).individual_id == first["individual"]["id"]
    opened.close()


@pytest.mark.soak
@pytest.mark.server
def test_build_and_re_embed_by_the_real_network_embed_only_what_is_missing(own, tmp_path, monkeypatch):
    from happywhale_nb.networks.embedder import Embedder  # here: it needs TensorFlow

    embedded, embed = [], Embedder.embed
    monkeypatch.setattr(
        Embedder, "embed", lambda self, paths, *a, **k: embedded.extend(paths) or embed(self, paths, *a, **k)
    )
    # what an empty picture looks like is learnt from photographs that are embedded once more: none of it is kept
    monkeypatch.setattr("happywhale_nb.catalogue.build.learn_no_animal", lambda *_: NoAnimal(note="not learnt"))
    data = own / "season"
    shutil.copy(next((data / "to_drop").iterdir()), data / "test_images" / "new.jpg")
    with (data / "sample_submission.csv").open("a") as file:
        file.write("new.jpg,\n")
    made, embedder, added, _ = build_catalogue(own, data)
    embedder.close()
    assert added == 1 and [path.name for path in embedded] == ["new.jpg"]
    other = keep_model(tmp_path / "other", demo_model())
    record = json.loads(other.with_name("config.json").read_text())
    record["parameters"]["crop_margin"] = 0.2
    other.with_name("config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"catalogue re-embed .*demo --model MODEL"):
        build_catalogue(own, data, other)
    embedded.clear()
    embedder = Embedder(other)
    assert intake.re_embed(made, embedder, "other") == len(embedded) == 204
    worth = change_over(made, embedder, other)
    embedder.close()
    made.close()
    assert worth.photographs > 100
    made, embedder, added, _ = build_catalogue(own, data)
    embedder.close()
    made.close()
    assert added == 0
