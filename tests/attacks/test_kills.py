"""A server that is killed, or finds no room, at any write of any route: what it has acknowledged is there."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from fastapi.testclient import TestClient
from faults import Matrix, Nest, Writer, keep_result
from test_soak_writes import Colours, build_catalogue, data_folder, draw_photo, read_catalogue, rows_of

from happywhale_nb.catalogue.store import Catalogue
from happywhale_nb.core.errors import UserError
from happywhale_nb.server.app import make_app
from happywhale_nb.server.auth import make_token
from happywhale_nb.server.state import AppState, Options


class Closable(Colours):
    def close(self):
        """As an embedder has it."""


SEED, EACH = 20261130, 1


def photographs(ground, *names, field="photos"):
    return {"files": [(field, (name, (ground / "new" / name).read_bytes())) for name in names]}


def one(folder, question):
    return rows_of(folder / "catalogue.sqlite", question)[0][0]


def count(folder, table):
    return one(folder, f"SELECT count(*) FROM {table}")


def is_revoked(folder):
    return one(folder, "SELECT count(*) FROM tokens WHERE revoked_at = ''") == 1


def has(table, rows):
    return lambda folder: count(folder, table) == rows


def visit(folder, column="id", name="visit"):
    return one(folder, f"SELECT {column} FROM encounters WHERE name = '{name}'")


def animal(folder, name):
    return one(folder, f"SELECT id FROM individuals WHERE name = '{name}'")


def photo(folder, name):
    return one(folder, f"SELECT id FROM photos WHERE name = '{name}' OR path LIKE '%/{name}'")


def version_of(folder, name):
    return one(
        folder, f"SELECT e.version FROM encounters e JOIN photos p ON p.encounter_id = e.id WHERE p.name = '{name}'"
    )


@dataclass(frozen=True)
class Request:
    """One change.

    Attributes:
        method: of HTTP.
        path: of the route.
        of: function of (ground, folder): what stands for {number} in the path, and what is sent.
        made: function of folder: whether it was made; None: if the trail of decisions has one line more.
    """

    method: str
    path: str
    of: Callable
    made: Callable | None = None


def changing(body):
    """A request about the encounter `visit`, with its version."""
    return lambda ground, folder: (visit(folder), {"json": {"version": visit(folder, "version")} | body})


def about_photo(name, body):
    return lambda ground, folder: (photo(folder, name), {"json": {"version": version_of(folder, name)} | body})


def deciding(met, kind, who=None, **body):
    def of(ground, folder):
        known = {"individual_id": animal(folder, who)} if who else {}
        return visit(folder, name=met), {
            "json": {"kind": kind, "version": visit(folder, "version", met)} | known | body
        }

    return of


def arriving(ground, folder):
    return None, photographs(ground, "n0.jpg", "n1.jpg") | {"data": {"name": "visit"}}


def splitting(ground, folder):
    met = one(folder, "SELECT id FROM encounters WHERE name = 'test_images/t1.jpg'")
    return animal(folder, "B1"), {"json": {"encounter_ids": [met], "name": "B1b"}}


def moving(ground, folder):
    numbers = {"photo_ids": [photo(folder, "n2.jpg")], "encounter_id": None}
    return None, {"json": numbers | {"versions": {str(visit(folder)): visit(folder, "version")}}}


def walking(ground, folder):
    names = {"n3.jpg": "morning/n3.jpg", "n4.jpg": "evening/n4.jpg"}
    files = [("photos", (sent, (ground / "new" / name).read_bytes())) for name, sent in names.items()]
    return None, {"files": files, "data": {"name": "walk"}}


def regrouping(ground, folder):
    walk = visit(folder, name="walk")
    versions = {str(walk): visit(folder, "version", "walk")}
    return None, {"json": {"encounter_ids": [walk], "by": "folder", "versions": versions}}


def last_decision(ground, folder):
    return one(folder, "SELECT max(id) FROM decisions"), {}


API = (
    Request(
        "POST", "/encounters", lambda g, f: (None, photographs(g, "n0.jpg", "n1.jpg") | {"data": {"name": "visit"}})
    ),
    Request("POST", "/encounters/{number}/photos", lambda g, f: (visit(f), photographs(g, "n2.jpg"))),
    Request("PATCH", "/encounters/{number}", changing({"place": "bay", "species": "beluga"})),
    Request("PATCH", "/photos/{number}", about_photo("n0.jpg", {"side": "left"})),
    Request("PUT", "/photos/{number}/crop", about_photo("n1.jpg", {"box": [2, 2, 40, 30]})),
    Request(
        "POST",
        "/encounters/{number}/answers",
        lambda g, f: (visit(f), {"json": {"k": 2}}),
        lambda f: count(f, "answers") == 1,
    ),
    Request("POST", "/encounters/{number}/decisions", deciding("visit", "new", name="N1")),
    Request("POST", "/encounters/{number}/decisions", deciding("test_images/t0.jpg", "confirm", "N1")),
    Request("POST", "/decisions/{number}/undo", last_decision),
    Request("POST", "/encounters/{number}/decisions", deciding("test_images/t1.jpg", "confirm", "B1")),
    Request("POST", "/individuals/{number}/split", splitting),
    Request(
        "POST", "/individuals/{number}/merge", lambda g, f: (animal(f, "B1b"), {"json": {"into": animal(f, "B1")}})
    ),
    Request("PATCH", "/individuals/{number}", lambda g, f: (animal(f, "N1"), {"json": {"name": "N one"}})),
    Request("POST", "/photos/{number}/withdraw", about_photo("n1.jpg", {"reason": "boat"})),
    Request("POST", "/photos/{number}/restore", lambda g, f: (photo(f, "n1.jpg"), {})),
    Request("POST", "/photos/move", moving),
    Request("POST", "/photos/{number}/withdraw", about_photo("n2.jpg", {"reason": "mistake"})),
    Request("DELETE", "/photos/{number}", lambda g, f: (photo(f, "n2.jpg"), {})),
    Request("POST", "/encounters/{number}/withdraw", changing({"reason": "empty sea"})),
    Request("POST", "/encounters/{number}/restore", lambda g, f: (visit(f), {})),
    Request("POST", "/encounters/{number}/withdraw", changing({"reason": "mistake"})),
    Request("DELETE", "/encounters/{number}", lambda g, f: (visit(f), {})),
    Request("POST", "/encounters", walking),
    Request("POST", "/encounters/regroup", regrouping),
    Request(
        "POST",
        "/tokens",
        lambda g, f: (None, {"json": {"name": "Bo", "role": "read"}}),
        lambda f: count(f, "tokens") == 2,
    ),
    Request(
        "DELETE",
        "/tokens/{number}",
        lambda g, f: (one(f, "SELECT max(id) FROM tokens"), {}),
        lambda f: count(f, "tokens") == 1,
    ),
)
KEEP_NOTHING = {("POST", "/api/identify"), ("POST", "/match"), ("POST", "/api/session"), ("DELETE", "/api/session")}


def send(page, request, ground, folder):
    """Send a request. Raises `UserError` with the server's sentence if it is refused."""
    number, given = request.of(ground, folder)
    path = "/api" + request.path.replace("{number}", str(number))
    answer = page.request(request.method, path, **given)
    if answer.status_code >= 300:
        raise UserError(f"{answer.status_code} {request.method} {path}: {answer.text}")


def old(ground, folder):
    """A catalogue with one token, which is noted in `ground`."""
    yield from build_catalogue(ground, folder)
    catalogue = Catalogue(folder)
    with catalogue.writing() as session:
        token = make_token(session, "Ann", "admin")[1]
    catalogue.close()
    (ground / "start.json").write_text(json.dumps({"token": token, "decisions": count(folder, "decisions")}))


def steps(ground, folder):
    """All requests that have not been made yet, each acknowledged by its answer."""
    start = json.loads((ground / "start.json").read_text())
    app = make_app(AppState(Catalogue(folder), Options(rates={})), Closable)
    lines = start["decisions"]
    with TestClient(app, "http://localhost", headers={"Authorization": f"Bearer {start['token']}"}) as page:
        while page.get("/api/health").json()["status"] != "ready":
            time.sleep(0.01)
        for request in API:
            lines += request.made is None
            if not (request.made(folder) if request.made else count(folder, "decisions") >= lines):
                send(page, request, ground, folder)
            yield


def read(ground, folder):
    if not (folder / "catalogue.sqlite").exists():
        return {"all": None}
    others = ("SELECT id, encounter_id FROM answers ORDER BY id", "SELECT name, role FROM tokens ORDER BY id")
    boxes = "SELECT a.photo_id, a.side, c.source, c.x0, c.x1 FROM annotations a JOIN crops c ON c.annotation_id = a.id"
    found = {question: rows_of(folder / "catalogue.sqlite", question) for question in (*others, boxes)}
    return {"all": read_catalogue(folder) | found}


def ground(folder):
    data_folder(folder)
    for i in range(5):
        draw_photo(folder / "new" / f"n{i}.jpg", 200 + i)


WRITERS = {"service": Writer(steps, read, old, ground, says=False, largest=300_000, by_sql=True)}


@pytest.fixture(scope="module")
def nest():
    with Nest("attacks.test_kills") as made:
        yield made


def matrix(nest, tmp_path, most=None):
    found = Matrix(nest, "service", WRITERS["service"], tmp_path, "earlier")
    row, wrong = found.run(most, random.Random(SEED))
    print(json.dumps(row))
    return row, wrong


def test_every_route_that_changes_something_is_in_the_matrix(mine, colours):
    app = make_app(AppState(mine, Options()), lambda: colours)
    routes = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if method not in ("get", "head")
    }
    assert routes - KEEP_NOTHING == {(request.method, f"/api{request.path}") for request in API}


@pytest.mark.kill
def test_a_server_killed_at_some_writes_keeps_what_it_acknowledged(nest, tmp_path):
    _, wrong = matrix(nest, tmp_path, EACH)
    assert not wrong, "\n".join(wrong)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_server_killed_at_any_write_keeps_what_it_acknowledged(nest, tmp_path):
    began = time.monotonic()
    row, wrong = matrix(nest, tmp_path)
    keep_result("routes", [row], time.monotonic() - began)
    assert not wrong, "\n".join(wrong)
    assert row["kill: dead"] == row["steps"], "every write was found, and killed"
