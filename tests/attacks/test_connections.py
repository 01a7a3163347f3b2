"""Strangers who send much, little, or nothing: what is read before the caller is known, and who is kept out."""

import logging
import shutil
import socket
import time
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest
from strangers import FORM, JSON, QUICK, answer, connected, head, serving, status

from happywhale_nb.catalogue.store import Catalogue
from happywhale_nb.server.app import make_app
from happywhale_nb.server.connections import ConnectionLimits, counted_lines
from happywhale_nb.server.middleware import most_bytes, needs_token
from happywhale_nb.server.state import AppState, Options


def pushed(client, most):
    """Bytes that a server takes of a body before it closes the connection."""
    sent, part = 0, bytes(65536)
    try:
        while sent < most:
            sent += client.send(part)
    except (ConnectionError, TimeoutError):
        pass
    return sent


@pytest.fixture(scope="module")
def generous(built, colours, tmp_path_factory):
    """The address of a server that takes bodies of a gigabyte, from those it knows."""
    catalogue = Catalogue(shutil.copytree(built, tmp_path_factory.mktemp("generous") / "catalogue"))
    with serving(catalogue, colours, max_bytes=10**9, max_json=10**9) as (address, _):
        yield address
    catalogue.close()


@pytest.mark.parametrize(
    "method,path,kind",
    [
        ("POST", "/api/identify", FORM),
        ("POST", "/match", FORM),
        ("POST", "/api/encounters", FORM),
        ("POST", "/api/encounters/1/photos", FORM),
        ("POST", "/api/encounters/1/decisions", JSON),
        ("PATCH", "/api/photos/1", JSON),
        ("POST", "/api/tokens", JSON),
        ("POST", "/api/nothing", JSON),
    ],
)
@pytest.mark.parametrize("more", ["", "authorization: Bearer hw_wrong\r\n", "cookie: happywhale=hw_wrong\r\n"])
def test_nothing_of_a_strangers_body_is_read(generous, method, path, kind, more):
    with connected(generous) as client:
        client.sendall(head(method, path, kind, 100_000_000, more))
        assert status(client) == 401, "before a byte of the body was sent"
    with connected(generous) as client:
        client.sendall(head(method, path, kind, 100_000_000, more))
        assert pushed(client, 100_000_000) < 20_000_000, "what the buffers of both ends hold"


@pytest.mark.parametrize(
    "path,kind", [("/api/session", JSON), ("/api/session", FORM), ("/api/encounters/1/decisions", JSON)]
)
def test_a_body_without_photographs_is_a_megabyte_at_most(mine, colours, path, kind):
    with serving(mine, colours) as (address, token):
        more = f"authorization: Bearer {token}\r\n"
        with connected(address) as client:
            client.sendall(head("POST", path, kind, 1_000_001, more))
            assert status(client) == 413
        with connected(address) as client:
            chunked = head("POST", path, kind, 0, more).replace(b"content-length: 0", b"transfer-encoding: chunked")
            client.sendall(chunked)
            part = b"10000\r\n" + bytes(65536) + b"\r\n"
            try:
                for _ in range(40):
                    client.sendall(part)
            except ConnectionError:
                pass
            assert answer(client)[:13] in (b"HTTP/1.1 413 ", b"")


def test_who_has_a_token_is_known_on_every_route_and_strangers_on_none(mine, colours):
    state = AppState(mine, Options(rates={}))
    app = make_app(state, None)
    routes = [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]
    assert len(routes) > 40
    uploads = set()
    for method, path in routes:
        at = path.replace("{number}", "1").replace("{kind}", "csv")
        body = app.openapi()["paths"][path][method].get("requestBody", {}).get("content", {})
        takes_files = "multipart/form-data" in body
        uploads.add(path) if takes_files else None
        assert most_bytes(method.upper(), at, state.options) == (400_000_000 if takes_files else 1_000_000), path
        is_open = path == "/api/health" or (path == "/api/session" and method != "get")
        assert needs_token(method.upper(), at) != is_open, path
    assert len(uploads) == 4
    with serving(mine, colours) as ((host, port, *_), token):
        known = {"authorization": f"Bearer {token}"}
        with httpx.Client(base_url=f"http://{host}:{port}") as page:
            for method, path in routes:
                at = path.replace("{number}", "999").replace("{kind}", "none")
                given = {"json": {}} if method in ("post", "put", "patch") else {}
                open_to_all = not needs_token(method.upper(), at)
                stranger = page.request(method, at, **given).status_code
                assert (stranger == 401) != open_to_all or path == "/api/session", path
                assert page.request(method, at, headers=known, **given).status_code not in (401, 403, 500), path


def test_clients_who_are_silent_before_in_and_after_a_request_are_closed(mine, colours):
    with serving(mine, colours) as (address, token), ExitStack() as open_ones:
        known = f"authorization: Bearer {token}\r\n"
        silent = {
            "nothing": b"",
            "half a line": b"GET /api/hea",
            "half the headers": b"GET / HTTP/1.1\r\nhost: localhost\r\naccept: ",
            "half a body": head("POST", "/api/session", JSON, 100) + b'{"token": "',
            "half a form": head("POST", "/api/identify", FORM, 5_000, known) + b"--b\r\n" + b"x" * 2_000,
        }
        clients = {name: open_ones.enter_context(connected(address)) for name in silent}
        began = time.monotonic()
        for name, client in clients.items():
            client.sendall(silent[name])
        for client in clients.values():
            answer(client)  # ends when the connection is closed
        assert time.monotonic() - began < 8


def test_a_slow_client_who_goes_on_sending_is_served(mine, colours):
    with serving(mine, colours, connections=replace(QUICK, least=20)) as (address, token):
        body = ('{"token": "' + token + '"}').encode() + b" " * 100
        with connected(address) as client:
            client.sendall(head("POST", "/api/session", JSON, len(body), "connection: close\r\n"))
            for start in range(0, len(body), 30):
                client.sendall(body[start : start + 30])
                time.sleep(0.3)
            assert status(client) == 200


def test_a_drip_of_headers_or_of_a_body_is_closed(mine, colours):
    with serving(mine, colours) as (address, _):
        for begin in (b"GET / HTTP/1.1\r\n", head("POST", "/api/session", JSON, 900)):
            with connected(address) as client:
                client.sendall(begin)
                began, taken = time.monotonic(), True
                while taken and time.monotonic() - began < 8:
                    time.sleep(0.1)
                    try:
                        client.sendall(b"a")
                    except ConnectionError:
                        taken = False
                assert not taken, begin


def test_half_requests_on_all_places_keep_nobody_out(mine, colours):
    limits = ConnectionLimits(connections=20, headers=600, silence=600)
    with serving(mine, colours, connections=limits) as (address, _), ExitStack() as open_ones:
        for _ in range(60):
            open_ones.enter_context(connected(address)).sendall(b"GET / HTTP/1.1\r\nhost: lo")
        for _ in range(10):
            with connected(address) as client:
                client.sendall(head("GET", "/api/health", more="connection: close\r\n"))
                assert status(client) == 200


def test_one_address_cannot_take_the_places_of_all(mine, colours, monkeypatch):
    from happywhale_nb.server import connections

    monkeypatch.setattr(connections, "loopback", lambda address: False)  # as if it came from elsewhere
    limits = ConnectionLimits(connections=50, per_address=5, headers=600, silence=600)
    with serving(mine, colours, connections=limits) as (address, _), ExitStack() as open_ones:
        clients = [open_ones.enter_context(connected(address)) for _ in range(12)]
        for client in clients[:7]:
            assert answer(client) == b"", "the oldest made room"
        clients[-1].sendall(head("GET", "/api/health", more="connection: close\r\n"))
        assert status(clients[-1]) == 200


@pytest.mark.parametrize("after", [b"", b"this is no request\r\n\r\n"])
def test_a_client_who_reads_no_answer_is_closed(mine, colours, after):
    with serving(mine, colours) as (address, _), connected(address) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask = head("GET", "/openapi.json")  # a long answer, so that the system's buffers are soon full
        began, taken = time.monotonic(), True
        client.settimeout(0.5)
        while taken and time.monotonic() - began < 60:
            try:
                client.send(ask + after)
            except TimeoutError:
                continue
            except ConnectionError:
                taken = False
        assert not taken


def test_lines_of_one_kind_are_counted_and_errors_of_another_are_not(caplog):
    logger = logging.getLogger("uvicorn.error")
    with counted_lines("uvicorn.error"), caplog.at_level(logging.WARNING):
        for number in range(50):
            logger.warning("Invalid HTTP request received.")
            for wrong in ("int('x')", "{}['y']", "1 / 0"):
                try:
                    eval(wrong)
                except Exception:
                    logger.exception("an error, %d", number)
    assert len(caplog.records) == 4
    assert not logger.filters
