"""What a run has started ends when the run is killed: the stage, its kernel, and the locks that they hold."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from happywhale_nb.workflow.locks import locked
from happywhale_nb.workflow.parents import PARENT, as_parent, ended_with_parent, follow, process_name

STAGE = """
import subprocess, sys, time
from pathlib import Path
from happywhale_nb.core.artifacts import atomic
from happywhale_nb.workflow import parents
from happywhale_nb.workflow.locks import locked
parents.POLL, parents.PATIENCE = 0.1, 3.0
folder = Path(sys.argv[1])
kernel = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with parents.ended_with_parent(), locked(folder / "lock"), atomic(folder / "03_train.ipynb") as part:
    part.write_text("half")
    (folder / "begun").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        if sys.argv[2] == "deaf":
            time.sleep(60)
        kernel.kill()
        raise
"""
RUN = """
import subprocess, sys
from happywhale_nb.workflow.parents import as_parent
with as_parent():
    shell = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', *sys.argv[1:]]))"
    subprocess.call([sys.executable, "-c", shell, *sys.argv[1:]])
"""


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "too long"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["obeys", pytest.param("deaf", marks=pytest.mark.soak)])
def test_children_end_soon_after_their_killed_parent(tmp_path, kind):
    run = subprocess.Popen([sys.executable, "-c", RUN, STAGE, str(tmp_path), kind], stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "begun").exists)
    below = [follow(process_name(child.pid)) for child in psutil.Process(run.pid).children(recursive=True)]
    assert len(below) >= 3, "a shell, a stage and its kernel"
    run.kill()
    run.wait()
    wait_for(lambda: not any(is_running() for is_running in below), 10)
    with locked(tmp_path / "lock"):
        pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"lock", "begun"} if kind == "obeys" else "03_train.ipynb" not in left


def test_a_process_is_named_by_number_and_start(monkeypatch):
    own = process_name()
    number, start = own.split(":")
    assert follow(own)() and number == str(os.getpid())
    assert follow(f"{number}:{float(start) + 5}")(), "the clock was set"
    for text in ("", ":", "0", "whale", "-1:2", "9" * 30 + ":1", "²:1", f"{number}:0.00", f"{number}:nan", own + ":1"):
        assert not follow(text)(), text
    is_running = follow(own)
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: float(start) + 86400)
    assert is_running(), "the clock was set while it was followed"


def test_without_a_named_parent_nothing_is_watched(monkeypatch):
    monkeypatch.delenv(PARENT, raising=False)
    with ended_with_parent(lambda over: pytest.fail("it was ended")):
        pass
    with as_parent(), as_parent():
        assert os.environ[PARENT] == process_name()
    assert PARENT not in os.environ
