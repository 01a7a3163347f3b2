"""Windows and macOS: a Python that refuses what Windows refuses (tests/windows), and each refusal alone."""

import ast
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from configparser import ConfigParser
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from installed import find_uv
from PIL import Image
from test_project import MODULES, WITHOUT_TENSORFLOW, module_name

from happywhale_nb.cli.main import main
from happywhale_nb.core import platforms
from happywhale_nb.core.artifacts import atomic, write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.paths import fold_dir, study_dir
from happywhale_nb.core.platforms import check_file_name, clean_file_name, link_file, rename_patiently, sync_folder
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.importers import plan_source, write_import

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from happywhale_nb.cli.main import main; main()"]
WINDOWS = "x86_64-pc-windows-msvc"
SYSTEMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", WINDOWS, "aarch64-apple-darwin")
ODD = "Ñandú → 3"  # the arrow is not among a Windows console's characters


def windows():
    """The environment of a Python that takes Linux for Windows, with a console and a locale of few letters."""
    paths = [str(ROOT / "tests" / "windows"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    few = {"PYTHONIOENCODING": "cp1252", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    return os.environ | few | {"PYTHONPATH": os.pathsep.join(paths), "USERNAME": "ann", "TF_CPP_MIN_LOG_LEVEL": "3"}


def draw_photos(folder, names):
    """Small photographs."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 40 + number), (90 * number, 80, 70)).save(folder / name, "JPEG")
    return folder


# --- a process without POSIX

SCRIPT = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
from happywhale_nb.cli.main import main
for words in json.loads(sys.argv[2]):
    print("exit", main(words, standalone_mode=False))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a process without POSIX says: to the import of all modules but Keras', help, an import of data, a check."""
    folder = tmp_path_factory.mktemp("windows")
    photos = draw_photos(folder / "photos", ["a.jpg", "b.jpg"])
    (photos / "who.csv").write_text(f"image,whale_id\na.jpg,{ODD}\nb.jpg,W2\n", encoding="utf-8")
    asked = ["data", "import", str(photos / "who.csv"), "--to", "mine", "--species", "humpback_whale"]
    commands = [["--help"], [*asked, "--dry-run"], asked, ["data", "check", "mine"]]
    names = [f"happywhale_nb.{name}" for name in WITHOUT_TENSORFLOW]
    command = [sys.executable, "-c", SCRIPT, json.dumps(names), json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, env=windows(), cwd=folder, timeout=100)
    assert done.returncode == 0, done.stderr.decode("cp1252", "replace")[-3000:]
    return folder, done.stdout.decode("cp1252"), done.stderr.decode("cp1252")


def test_modules_without_posix_are_imported_and_help_is_shown(told):
    _, answer, _ = told
    assert "Identify individual whales" in answer


def test_commands_on_a_cp1252_console_show_a_question_mark_for_a_letter_that_it_lacks(told):
    _, answer, _ = told
    assert "Ñandú ? 3" in answer
    assert "nothing was written (--dry-run)" in answer


def test_import_without_symbolic_links_makes_hard_links_and_says_so(told):
    folder, _, line = told
    photo = folder / "mine" / "train_images" / "a.jpg"
    assert not photo.is_symlink() and photo.samefile(folder / "photos" / "a.jpg")
    assert "no links can be made" in line and "2 photographs are hard links" in line


def test_check_without_posix_finds_the_imported_folder_whole(told):
    folder, answer, _ = told
    assert "nothing found" in answer or answer.split()[-1] == "0", answer
    assert set(read_dataset(folder / "mine").train["individual_id"]) == {"Ñandú_→_3", "W2"}


@pytest.mark.soak
@pytest.mark.trains
def test_all_modules_without_posix_are_imported_and_a_quick_training_leaves_its_fold(tiny, project):
    names = [f"happywhale_nb.{module_name(path)}" for path in MODULES]
    asked = ["train", "-p", "data_dir", str(tiny), "-p", "quick", "true", "-p", "folds", "2", "-p", "epochs", "1"]
    command = [sys.executable, "-c", SCRIPT, json.dumps(names), json.dumps([asked])]
    done = subprocess.run(command, capture_output=True, env=windows(), cwd=project, timeout=280)
    assert done.returncode == 0, done.stderr.decode("cp1252", "replace")[-3000:]
    assert len(list(project.glob("outputs/*/*/fold0/model.keras"))) == 1


@pytest.mark.soak
@pytest.mark.server
def test_serve_without_posix_shows_its_page_and_scripts(tmp_path):
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*COMMAND, "serve", str(tmp_path / "demo"), "--demo", "--no-browser", "--port", str(port)]
    with tempfile.TemporaryFile("w+b") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=windows())
        late = threading.Timer(240, process.kill)  # then its output ends, and so does the wait for it
        late.start()
        try:
            line = process.stdout.readline().decode("cp1252")
            assert f"localhost:{port}" in line, f"{said.seek(0) or said.read()[-3000:].decode('cp1252')}"
            page = httpx.get(f"http://localhost:{port}/")
            assert page.status_code == 200 and "<html" in page.text
            script = httpx.get(f"http://localhost:{port}{re.search(r'/web/[a-z_]+[.]js', page.text)[0]}")
            assert script.headers["content-type"].startswith("text/javascript")
            assert httpx.get(f"http://localhost:{port}/api/encounters?limit=1").json()["total"] > 0
        finally:
            late.cancel()
            process.kill()
            process.wait(30)
            process.stdout.close()


# --- what the package's text may hold

POSIX = {"fcntl", "pwd", "grp", "resource", "termios", "pty"}
CALLS = {"fork", "forkpty", "getuid", "geteuid", "getgid", "uname", "killpg", "setsid", "mkfifo", "chown", "rename"}
ONCE = {  # where a system has it, or nothing else does
    ("core.platforms", "symlink"),
    ("core.platforms", "link"),
    ("core.platforms", "replace"),
    ("demo.season", "replace"),  # moves its own new photograph
}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_module_names_no_posix_and_the_encoding_of_every_text(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not POSIX & {alias.name for node in own if isinstance(node, ast.Import) for alias in node.names}
    assert not POSIX & {node.module for node in own if isinstance(node, ast.ImportFrom)}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        named = {word.arg for word in call.keywords}
        of_os = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "os"
        assert not (of_os and name in CALLS), f"os.{name}"
        if (of_os and name in {"symlink", "link", "replace"}) or name in {"symlink_to", "hardlink_to"}:
            assert (module_name(path), name) in ONCE, name
        if name in {"read_text", "write_text"}:
            assert "encoding" in named, ast.unparse(call)
        if name == "write_text" or (name == "to_csv" and call.args):
            assert named & {"newline", "lineterminator"}, ast.unparse(call)
        if name == "run" and getattr(getattr(call.func, "value", None), "id", "") == "subprocess":
            assert not named & {"text", "shell", "preexec_fn"}, ast.unparse(call)


# --- each refusal alone


def held(number=32):
    """An error as Windows raises it for a file that another program has open."""
    error = PermissionError(13, "Permission denied")
    error.winerror = number
    return error


def test_rename_over_a_file_that_is_soon_closed_waits_for_it(tmp_path, monkeypatch):
    replace, tries = os.replace, []

    def refuse_twice(source, target):
        tries.append(target)
        if len(tries) < 3:
            raise held()
        return replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_twice)
    write_json(tmp_path / "a.json", {"map5": 1})
    assert len(tries) == 3 and json.loads((tmp_path / "a.json").read_text()) == {"map5": 1}


def test_atomic_over_a_file_that_stays_open_says_which_program_may_have_it(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("old")
    monkeypatch.setattr(platforms, "PATIENCE", 0.0)
    monkeypatch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(held(5)))
    with (
        pytest.raises(UserError, match="another program has it open, such as a spreadsheet"),
        atomic(tmp_path / "a.csv") as part,
    ):
        part.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"] and (tmp_path / "a.csv").read_text() == "old"


def test_rename_that_is_not_allowed_on_linux_is_not_tried_again(tmp_path, monkeypatch):
    tries = []
    monkeypatch.setattr(os, "replace", lambda *paths: tries.append(paths) or (_ for _ in ()).throw(PermissionError(1)))
    with pytest.raises(PermissionError):
        rename_patiently(tmp_path / "a", tmp_path / "b")
    assert len(tries) == 1


def test_atomic_at_a_path_too_long_for_windows_says_so(tmp_path, monkeypatch):
    make = os.mkdir

    def mkdir(path, *more, **named):
        if len(str(path)) > 247:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return make(path, *more, **named)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(platforms, "WINDOWS", True)
    deep = tmp_path.joinpath(*["a" * 50] * 5) / "knn.json"
    with pytest.raises(UserError, match="path is too long for Windows"):
        write_json(deep, {})


@pytest.mark.parametrize("number", [13, 22])
def test_sync_folder_that_the_system_refuses_goes_on_and_a_fault_of_the_disk_does_not(number, tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


NAMES = ["CON", "nul.txt", "com1", "LPT9.csv", "COM¹", "a:b", "a/b", "a?b", 'a"b', "a.", "a ", "a\n", ""]


@pytest.mark.parametrize("name", NAMES)
def test_file_name_that_windows_does_not_take_is_refused_and_cleaned_to_one_that_it_takes(name):
    with pytest.raises(UserError, match="Windows takes no such file name"):
        check_file_name(name, "a study")
    assert clean_file_name(clean_file_name(name)) == clean_file_name(name) != name


@pytest.mark.parametrize("name", ["demo", "console", "b5@12", "Ñandú 3", ".hidden", "a.b"])
def test_file_name_that_every_system_takes_stays(name):
    assert clean_file_name(name) == name


def test_study_and_model_with_names_that_windows_does_not_take_are_refused_unless_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HAPPYWHALE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"a study cannot be called 'a:b'.*'a_b'"):
        study_dir("a:b")
    with pytest.raises(UserError, match="a model cannot be called 'nul'"):
        fold_dir(tmp_path, "nul", 0)
    (tmp_path / "nul").mkdir()
    assert fold_dir(tmp_path, "nul", 0).name == "fold0"


def test_export_with_a_name_that_windows_does_not_take_is_refused(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["catalogue", "export", str(built), "csv", "-o", "aux.csv"])
    assert done.exit_code == 2 and "an export cannot be called 'aux.csv'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_import_of_names_that_windows_does_not_take_renames_the_files_and_keeps_the_individuals(tmp_path):
    photos = draw_photos(tmp_path / "photos", ["a:b.jpg", "nul.jpg", "c.jpg"])
    rows = ["a:b.jpg,NUL", "nul.jpg,a:b", "c.jpg,W3"]
    (photos / "who.csv").write_text("\n".join(["image,whale_id", *rows]) + "\n")
    plan = plan_source(photos / "who.csv")
    data = read_dataset(write_import(plan, tmp_path / "mine", progress=False))
    assert data.train.set_index("image")["individual_id"].to_dict() == {
        "_nul.jpg": "a:b",
        "a_b.jpg": "NUL",
        "c.jpg": "W3",
    }
    assert "2 photographs with another name here" in "".join(plan.notes)


def test_import_of_two_names_that_would_become_one_gives_the_made_one_a_number(tmp_path):
    photos = draw_photos(tmp_path / "photos", ["a:b.jpg", "a_b.jpg"])
    (photos / "who.csv").write_text("image,whale_id\na:b.jpg,W1\na_b.jpg,W2\n")
    plan = plan_source(photos / "who.csv")
    assert plan.train.set_index("image")["individual_id"].to_dict() == {"a_b.jpg": "W2", "a_b_2.jpg": "W1"}


def test_link_file_without_any_links_copies(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("pixels")
    for name in ("symlink", "link"):
        monkeypatch.setattr(os, name, lambda source, target: (_ for _ in ()).throw(OSError(1, "no links here")))
    assert link_file(tmp_path / "a", tmp_path / "b") == "copy"
    assert (tmp_path / "b").read_text() == "pixels"


def test_link_file_onto_a_file_that_is_there_leaves_it(tmp_path):
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileExistsError):
        link_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "old"


def test_command_on_an_intel_mac_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(platforms.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platforms.platform, "machine", lambda: "x86_64")
    done = CliRunner().invoke(main, ["architectures"])
    assert done.exit_code == 2 and done.stderr.startswith("error: Intel Macs are not supported")
    assert len(done.stderr.splitlines()) == 1


# --- what is installed


def resolve(uv, folder, system, extras=("train", "serve", "study", "notebooks")):
    """`uv pip compile` of the project's requirements for a system, from wheels but for `connection-pool`."""
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    kinds = ["requirements", *(f"{extra}_requirements" for extra in extras)]
    (folder / "wanted.in").write_text("\n".join(" ".join(settings["DEFAULT"][kind] for kind in kinds).split()))
    words = ["--python-platform", system, "--python-version", "3.11", "--only-binary", ":all:"]
    words += ["--no-binary", "connection-pool", "--no-annotate", "--no-header", "wanted.in"]
    return subprocess.run([uv, "pip", "compile", *words], cwd=folder, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """The program uv, if a package index answers."""
    folder = tmp_path_factory.mktemp("uv")
    program = find_uv(folder)
    (folder / "wanted.in").write_text("filelock")
    words = ["pip", "compile", "--no-cache", "wanted.in"]
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, timeout=200)
    if done.returncode:
        pytest.skip(f"uv needs a package index: {(done.stderr.strip() or 'no word why').splitlines()[-1]}")
    return program


@pytest.mark.index
@pytest.mark.parametrize("system", [pytest.param(s, marks=pytest.mark.soak if s != WINDOWS else ()) for s in SYSTEMS])
def test_requirements_have_wheels_for_every_supported_system(system, uv, tmp_path):
    done = resolve(uv, tmp_path, system)
    assert done.returncode == 0, done.stderr[-2000:]
    packages = dict(line.split("==") for line in done.stdout.splitlines() if "==" in line)
    assert {"tensorflow", "keras", "filelock", "connection-pool"} <= set(packages)
    assert len(packages) > 100
    print(f"{system}: {len(packages)} packages, tensorflow {packages['tensorflow']}")


@pytest.mark.soak
@pytest.mark.index
def test_requirements_on_an_intel_mac_fail_for_tensorflow(uv, tmp_path):
    done = resolve(uv, tmp_path, "x86_64-apple-darwin")
    assert done.returncode != 0 and "tensorflow" in done.stderr
    assert resolve(uv, tmp_path, "x86_64-apple-darwin", ("serve",)).returncode == 0, "a lab's catalogue needs none"
