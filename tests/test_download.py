"""`happywhale data download` against a local stand-in for Kaggle: faults are explained, and it resumes."""

import http.server
import io
import threading
import zipfile
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from happywhale_nb.cli.main import main
from happywhale_nb.data import download as stage

kaggle_env = pytest.importorskip("kagglesdk.kaggle_env", reason="Kaggle's client is an extra")


def packed(folder):
    """The files of a data folder as the bytes of a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


class StandIn(http.server.BaseHTTPRequestHandler):
    """The two addresses the client asks: one that redirects, one that serves the archive, in ranges on request."""

    def do_POST(self):
        state, token = self.server.state, self.headers.get("Authorization", "")
        if self.path.endswith("IntrospectToken"):
            return self.answer(200, b'{"active": true, "username": "someone"}', {"Content-Type": "application/json"})
        state.asked.append(("POST", token))
        if state.status != 200:
            body = f'{{"code": {state.status}, "message": "{state.message}"}}'.encode()
            self.answer(state.status, body, {"Content-Type": "application/json"})
        else:
            self.answer(302, b"", {"Location": f"http://localhost:{self.server.server_port}/happy.zip"})

    def do_GET(self):
        state = self.server.state
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        state.asked.append(("GET", start))
        size = len(state.archive)
        head = {"Accept-Ranges": "bytes", "ETag": '"one"', "Last-Modified": "Tue, 01 Feb 2022 00:00:00 GMT"}
        if wanted:
            head["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.answer(206 if wanted else 200, state.archive[start:], head, state.cut if not wanted else None)

    def answer(self, status, body, head, cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **head}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def kaggle(tiny, monkeypatch, tmp_path):
    """A stand-in that serves the tiny demo set; the client is told to talk to it, with a token."""
    server = http.server.ThreadingHTTPServer(("localhost", 0), StandIn)
    server.state = SimpleNamespace(archive=packed(tiny), status=200, message="", cut=None, asked=[])
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setitem(
        kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, f"http://localhost:{server.server_port}"
    )
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret")
    yield server.state
    server.shutdown()
    server.server_close()


def run(folder, *more):
    return CliRunner().invoke(main, ["data", "download", "--to", str(folder), *more])


def test_download_command_unpacks_and_checks_the_competition(kaggle, tiny, tmp_path):
    result = run(tmp_path / "data")
    assert result.exit_code == 0, result.stderr
    assert "48 known photographs" in result.stdout and "clean: nothing found" in result.stdout
    here = {p.relative_to(tmp_path / "data") for p in (tmp_path / "data").rglob("*") if p.is_file()}
    assert here == {p.relative_to(tiny) for p in tiny.rglob("*") if p.is_file()}
    assert "secret" in kaggle.asked[0][1]


def test_download_command_after_a_broken_line_goes_on_where_it_was(kaggle, tmp_path, monkeypatch):
    buffer = io.BytesIO(kaggle.archive)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("padding.bin", bytes(5_000_000))  # the client writes a megabyte at a time
    kaggle.archive, kaggle.cut = buffer.getvalue(), 3_000_000
    whole = len(kaggle.archive)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    result = run(tmp_path / "data")
    assert result.exit_code == 0, result.stderr
    starts = [start for kind, start in kaggle.asked if kind == "GET"]
    assert starts[0] == 0 and any(0 < start < whole for start in starts[1:])


def test_unpack_a_second_time_writes_only_what_is_missing_or_short(kaggle, tmp_path):
    archive = stage.fetch_archive(tmp_path)
    total = stage.unpack_archive(archive, tmp_path / "data", progress=False)
    photos = sorted((tmp_path / "data" / "train_images").iterdir())
    photos[0].unlink()
    photos[1].write_bytes(b"half")
    assert total > 58 and stage.unpack_archive(archive, tmp_path / "data", progress=False) == 2


@pytest.mark.parametrize(
    ("status", "message", "says"),
    [
        (401, "Unauthenticated", "does not accept the credentials"),
        (403, "You must accept this competition's rules", "accept its rules"),
        (404, "Not found", "knows no competition"),
        (500, "Oops", "cannot be reached"),
    ],
)
def test_download_command_refused_by_kaggle_explains_it(status, message, says, kaggle, tmp_path):
    kaggle.status, kaggle.message = status, message
    result = run(tmp_path / "data")
    assert result.exit_code == 2 and says in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "data" / "train.csv").exists()


def test_download_command_without_credentials_explains_it(kaggle, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    result = run(tmp_path / "data")
    assert result.exit_code == 2 and "create a token" in result.stderr
    assert kaggle.asked == []


def test_download_command_with_too_little_room_fetches_nothing(kaggle, tmp_path, monkeypatch):
    needed = 2 * len(kaggle.archive)  # the archive, and what is in it
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    result = run(tmp_path / "data")
    assert result.exit_code == 2 and "GB are needed" in result.stderr
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=needed))
    assert run(tmp_path / "data").exit_code == 0


def test_download_command_of_a_damaged_archive_removes_it(kaggle, tmp_path):
    kaggle.archive = b"PK" + bytes(5000)
    result = run(tmp_path / "data")
    assert result.exit_code == 2 and "is damaged" in result.stderr
    assert list((tmp_path / "data").iterdir()) == []


def test_unpack_of_an_archive_that_writes_elsewhere_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
    with pytest.raises(stage.UserError, match="outside"):
        stage.unpack_archive(tmp_path / "bad.zip", tmp_path / "data", progress=False)
    assert not (tmp_path / "evil.txt").exists()
