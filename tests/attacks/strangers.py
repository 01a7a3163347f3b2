"""A real server in this process, and the raw ends of connections to it."""

import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from happywhale_nb.server.app import make_app
from happywhale_nb.server.auth import make_token
from happywhale_nb.server.connections import ConnectionLimits, guarded_protocol
from happywhale_nb.server.run import server_config
from happywhale_nb.server.state import AppState, Options

HEAD = "{} {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {}\r\ncontent-length: {}\r\n{}\r\n"
JSON, FORM = "application/json", "multipart/form-data; boundary=b"
QUICK = ConnectionLimits(headers=0.6, silence=0.6)


@contextmanager
def serving(catalogue, embedder, tokens=True, connections=QUICK, **options):
    """A server of a catalogue, on a thread: its address and a token."""
    with catalogue.writing() as session:
        token = make_token(session, "Ann", "admin")[1]
    state = AppState(catalogue, Options(**{"tokens": tokens, "connections": connections, "rates": {}} | options))
    how = {"http": guarded_protocol(connections), "log_config": None, "timeout_keep_alive": 1}
    server = uvicorn.Server(server_config(make_app(state, lambda: embedder), state.options, port=0, **how))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname(), token
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def connected(address):
    """A client's end of a connection."""
    with socket.create_connection(address, timeout=20) as client:
        yield client


def answer(client):
    """All that a server sends until it closes the connection."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def status(client):
    return int(answer(client).split(b" ", 2)[1])


def head(method, path, kind=JSON, length=0, more=""):
    return HEAD.format(method, path, kind, length, more).encode()
