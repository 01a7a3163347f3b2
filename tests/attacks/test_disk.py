"""A disk that is full, read-only or over its quota, and a locked database: what is told, and what still works."""

import errno
import io
import os
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from faults import MAKES, Steps
from PIL import Image
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError, OperationalError
from starlette.formparsers import MultiPartParser

from happywhale_nb.catalogue.schema import Decision, Encounter, Individual, Photo
from happywhale_nb.catalogue.storage import storage_fault
from happywhale_nb.catalogue.store import Catalogue
from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import atomic
from happywhale_nb.core.errors import CannotWrite, NoRoom
from happywhale_nb.server.app import make_app
from happywhale_nb.server.auth import make_token
from happywhale_nb.server.state import AppState, Options

pytestmark = pytest.mark.slow
HERE = "http://127.0.0.1:8000"
READS = ("/health", "/session", "/facets", "/encounters", "/individuals", "/individuals/1", "/audit-log", "/tokens")
READS += ("/exports/csv", "/photos/1/file", "/photos/1/picture?side=160", "/photos/2/crop?side=160")


def photograph(side):
    file = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def upload(side, field="photos"):
    return {"files": {field: ("fin.png", photograph(side))}}


def writes(page):
    """A request to each route that writes: name of the route, address and arguments. None undoes another's ground."""
    with page.catalogue.reading() as session:
        waiting = session.scalars(
            select(Encounter.id).where(Encounter.state == "undecided").order_by(Encounter.id)
        ).all()
        photos = session.execute(select(Photo.encounter_id, Photo.id).order_by(Photo.id)).all()
        several = select(Encounter.individual_id).group_by(Encounter.individual_id).having(func.count() > 1)
        split = session.scalar(several.where(Encounter.individual_id.is_not(None)))
        own = session.scalar(select(Encounter.id).where(Encounter.individual_id == split))
        kinds = {}
        for each in session.scalars(select(Individual).where(Individual.active).order_by(Individual.id)):
            kinds.setdefault(each.species, []).append(each.id)
    gone, stays = next(numbers for numbers in kinds.values() if len(numbers) > 1)[:2]
    photo = {encounter: number for encounter, number in reversed(photos)}
    one, two, three, four, five, six, seven = waiting[:7]
    made = page.ready
    yield "post /encounters", "", upload(40)
    yield "post /encounters/{number}/photos", one, upload(50)
    yield "patch /encounters/{number}", two, {"json": {"version": 1, "place": "Ness"}}
    yield "patch /photos/{number}", photo[three], {"json": {"version": 1, "side": "left"}}
    yield "put /photos/{number}/crop", photo[four], {"json": {"version": 1, "box": [1, 1, 30, 30]}}
    yield "post /encounters/{number}/decisions", five, {"json": {"version": 1, "kind": "unsure"}}
    yield "post /decisions/{number}/undo", made["decision"], {}
    yield "post /individuals/{number}/split", split, {"json": {"encounter_ids": [own]}}
    yield "patch /individuals/{number}", split, {"json": {"name": "Another name"}}
    yield "post /individuals/{number}/merge", gone, {"json": {"into": stays}}
    yield "post /encounters/{number}/withdraw", six, {"json": {"version": 1, "reason": "boat"}}
    yield "post /photos/{number}/withdraw", photo[seven], {"json": {"version": 1, "reason": "boat"}}
    yield "post /encounters/{number}/restore", made["withdrawn"], {}
    yield "post /photos/{number}/restore", made["withdrawn photo"], {}
    yield "post /photos/move", "", {"json": {"photo_ids": [photo[one]]}}
    yield "post /encounters/regroup", "", {"json": {"encounter_ids": [two, three], "by": "folder"}}
    yield "delete /photos/{number}", made["gone photo"], {}
    yield "delete /encounters/{number}", made["gone"], {}
    yield "post /encounters/{number}/answers", two, {"json": {}}
    yield "post /identify", "", upload(60)
    yield "post /match", "", upload(60, "images")
    yield "post /tokens", "", {"json": {"name": "Cem", "role": "read"}}
    yield "delete /tokens/{number}", made["token"], {}
    yield "post /session", "", {"json": {"token": page.token}}
    yield "delete /session", "", {"headers": {"cookie": page.cookie}}


def address(route, number):
    method, path = route.split(" ")
    return method, f"{'' if path == '/match' else '/api'}{path}".replace("{number}", str(number))


def send(page, route, number, given):
    return page.request(*address(route, number), **given)


@pytest.fixture
def page(mine, colours, tmp_path, monkeypatch):
    """A client with a token, of a server whose temporary files lie in the catalogue's folder, too."""
    with client(mine, colours, monkeypatch) as opened:
        yield opened


def client(catalogue, embedder, monkeypatch):
    temporary = catalogue.folder / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(MultiPartParser, "spool_max_size", 1000)
    with catalogue.writing() as session:
        token = make_token(session, "Ann", "admin")[1]
        spare = make_token(session, "Spare", "read")[0].id
    app = make_app(AppState(catalogue, Options(rates={})), lambda: embedder)
    page = TestClient(app, base_url=HERE, raise_server_exceptions=False, headers={"authorization": f"Bearer {token}"})
    page.catalogue, page.token, page.ready = catalogue, token, {"token": spare}
    return page


def prepare(page):
    """Make what some requests need: a decision to undo, and what is withdrawn."""
    page.post("/api/session", json={"token": page.token})
    page.cookie = f"happywhale={page.cookies['happywhale']}"
    page.cookies.clear()
    reason, ids = {"version": 1, "reason": "boat"}, []
    for side in (70, 80, 90, 100):
        ids.append(page.post("/api/encounters", **upload(side)).json())
    one, two, three, four = ids
    decided = page.post(f"/api/encounters/{one['id']}/decisions", json={"kind": "unsure", "version": 1}).json()
    for each in (two, three):
        assert page.post(f"/api/encounters/{each['id']}/withdraw", json=reason).status_code == 200
    again = page.post(f"/api/encounters/{four['id']}/photos", **upload(110)).json()
    photos = [photo["id"] for photo in again["photos"]]
    for version, photo in enumerate(photos, again["version"]):
        assert page.post(f"/api/photos/{photo}/withdraw", json=reason | {"version": version}).status_code == 200
    page.ready |= {"decision": decided["decision"]["id"], "withdrawn": two["id"], "gone": three["id"]}
    page.ready |= {"withdrawn photo": photos[0], "gone photo": photos[1]}


class Disk:
    """Lets all writes below a folder fail from one step on."""

    def __init__(self, folder):
        self.error = self.fails_from = None
        self.steps = Steps(str(folder), True, self.before)
        self.steps.on = False

    def before(self, number, name, path):
        if number < self.fails_from:
            return
        number, of_files, of_database = self.error
        if name == "sql BEGIN":  # of reading, too
            return
        if name.startswith("sql "):
            wrapped = number % 2  # an error of the driver, as it comes out of a pool, or as SQLAlchemy tells it
            error = sqlite3.OperationalError(of_database)
            raise OperationalError(name, {}, error) if wrapped else error
        if name in MAKES or of_files == errno.EROFS:
            raise OSError(of_files, os.strerror(of_files), path)

    def sending(self, page, error, fails_from, request):
        """The answer to a request while writes fail, and whether one was tried."""
        self.error, self.fails_from, self.steps.names = error, fails_from, []
        self.steps.on = True
        try:
            return send(page, *request), len(self.steps.names) >= fails_from
        finally:
            self.steps.on = False


FAULTS = {
    "full": (errno.ENOSPC, "database or disk is full", 507),
    "quota": (errno.EDQUOT if hasattr(errno, "EDQUOT") else errno.ENOSPC, "database or disk is full", 507),
    "read-only": (errno.EROFS, "attempt to write a readonly database", 503),
    "failing": (errno.EROFS, "disk I/O error", 503),
    "locked": (errno.EROFS, "database is locked", 503),
}
SAMPLE_AND_REST = [("full", 60), *(pytest.param(name, 1, marks=pytest.mark.soak) for name in FAULTS)]


@pytest.mark.parametrize("fault,step", SAMPLE_AND_REST)
def test_every_write_of_every_route_is_told_when_it_fails(page, fault, step):
    with page:
        prepare(page)
        (of_files, of_database, status), tried = FAULTS[fault], set()
        disk, seen = Disk(page.catalogue.folder), 0
        for route, number, given in writes(page):
            fails_from, got = 1 - step, None
            while got is None or got.status_code >= 300:
                fails_from += step
                before = decisions(page.catalogue)
                error = (fails_from, of_files, of_database)
                got, wrote = disk.sending(page, error, fails_from, (route, number, given))
                seen += wrote
                told = f"{route}, {disk.steps.names[fails_from - 1 :][:1]}: {got.status_code} {got.text}"
                assert got.status_code in (200, 201, 204, status), told
                if "still on the disk" in got.text:  # after the commit: what was not done is said
                    assert route.startswith("delete /") and decisions(page.catalogue) == before + 1
                    break
                if got.status_code == status:
                    assert wrote and ("try again" in got.text or "free some space" in got.text), told
                    assert decisions(page.catalogue) == before, told
                    assert page.get("/api/encounters").status_code == 200
            tried.add(route)
        described = page.get("/openapi.json").json()["paths"]
    routes = {f"{method} {path.removeprefix('/api')}" for path, methods in described.items() for method in methods}
    assert {route for route in routes if not route.startswith("get ")} == tried
    assert seen > 20
    with sqlite3.connect(page.catalogue.folder / "catalogue.sqlite") as tables:
        assert tables.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def decisions(catalogue):
    with catalogue.reading() as session:
        return session.scalar(select(func.count()).select_from(Decision))


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_pictures_are_shown_though_none_can_be_kept(page, fault):
    with page:
        disk = Disk(page.catalogue.folder)
        of_files, of_database, _ = FAULTS[fault]
        for path in ("/photos/1/picture?side=160", "/photos/1/crop?side=160"):
            got, wrote = disk.sending(page, (1, of_files, of_database), 1, (f"get {path}", "", {}))
            assert wrote and got.status_code == 200 and got.content.startswith(b"\xff\xd8"), got.text
    assert not (page.catalogue.folder / "shown").exists() or not list((page.catalogue.folder / "shown").rglob("*.jpg"))


def test_caller_who_cannot_be_looked_up_is_told_so(page, monkeypatch):
    def shut(*_):
        raise OperationalError("SELECT", {}, sqlite3.OperationalError("unable to open database file"))

    with page:
        monkeypatch.setattr("happywhale_nb.server.dependencies.find_token", shut)
        got = page.get("/api/encounters")
        assert got.status_code == 503 and "try again" in got.json()["detail"]


@pytest.mark.parametrize("text,fault", [("database or disk is full", NoRoom), ("database is locked", CannotWrite)])
def test_command_on_a_full_disk_says_so_in_one_line(mine, monkeypatch, text, fault):
    def fails(*_, **__):
        raise OperationalError("INSERT", {}, sqlite3.OperationalError(text))

    monkeypatch.setattr("happywhale_nb.server.auth.make_token", fails)
    done = CliRunner().invoke(main, ["catalogue", "token", str(mine.folder), "Ann"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "try again" in done.stderr
    assert type(storage_fault(OperationalError("", {}, sqlite3.OperationalError(text)))) is fault


def test_other_errors_are_no_faults_of_a_disk(tmp_path):
    assert storage_fault(None) is storage_fault(KeyError("disk is full")) is None
    assert storage_fault(FileNotFoundError(errno.ENOENT, "none")) is None
    assert storage_fault(OperationalError("", {}, sqlite3.OperationalError("no such table: x"))) is None
    assert isinstance(storage_fault(DBAPIError("", {}, Exception({"C": "53100", "M": "no"}))), NoRoom)
    with pytest.raises(NoRoom, match="free some space"), atomic(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_disk(built, tmp_path):
    """A catalogue on a file system of a few megabytes, and a function that fills it, empties it, or shuts it."""
    place, size = tmp_path / "disk", 6_000_000 + sum(path.stat().st_size for path in built.rglob("*") if path.is_file())
    place.mkdir()
    if not sys.platform.startswith("linux") or not shutil.which("mount"):
        pytest.skip("small file systems are made by Linux' mount")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here: only root may")

    def make(state):
        if state in ("ro", "rw"):
            subprocess.run(["mount", "-o", f"remount,{state}", str(place)], check=True)
        elif state == "full":
            with (place / "filler").open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(1 << 16)):
                        pass
                except OSError:
                    pass
        else:
            (place / "filler").unlink()

    catalogue = Catalogue(shutil.copytree(built, place / "catalogue"))
    yield catalogue, make
    catalogue.close()
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("shut,opened,status", [("full", "room", 507), ("ro", "rw", 503)])
def test_server_on_a_real_disk_goes_on_reading_and_then_writing(small_disk, colours, monkeypatch, shut, opened, status):
    catalogue, make = small_disk
    with client(catalogue, colours, monkeypatch) as page:
        prepare(page)
        if shut == "ro":
            catalogue.store.engine.dispose()  # a disk with files that are open for writing cannot be shut
        make(shut)
        for path in READS:
            assert page.get(f"/api{path}").status_code == 200, path
        before = decisions(catalogue)
        codes = {route: send(page, route, number, given).status_code for route, number, given in writes(page)}
        assert set(codes.values()) <= {200, 204, status} and status in codes.values(), codes
        assert list(codes.values()).count(status) > 15, codes
        done = decisions(catalogue) - before
        for path in READS:
            assert page.get(f"/api{path}").status_code == 200, path
        make(opened)
        for route, number, given in writes(page):
            if codes[route] == status:
                assert send(page, route, number, given).status_code < 300, route
        assert decisions(catalogue) > before + done
