"""What the tests share: a checkout to run in, a small drawn data set, and the real data where it is present."""

import gc
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

import pytest
import yaml
from installed import build_wheel
from sqlalchemy import text
from standins import write_standins
from threadpoolctl import threadpool_limits

from happywhale_nb.catalogue.database import make_engine
from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.ingest import ingest_dataset, recalibrate
from happywhale_nb.catalogue.store import Catalogue, create_catalogue
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.demo.dataset import draw_demo
from happywhale_nb.workflow.locks import locked
from happywhale_nb.workflow.registry import study_stages

ROOT = Path(__file__).resolve().parents[1]
# every kernel and command started by a test is quiet, and reads no data but what the test names
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# XLA compiles in haste: most tests of JAX train for seconds what takes longer to optimize
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ.pop("HAPPYWHALE_DATA", None)
threadpool_limits(1)  # two workers whose products of matrices take both cores each are in each other's way


# what puts a test into `make test-all`: it needs something, or time, that `make test` does without (see pyproject.toml)
REST = {"browser", "postgres", "slurm", "hosts", "wheel", "nbdev3", "index", "bench", "kill", "real", "server"}
REST |= {"trains", "probe", "slow"}


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    """Mark the tests of `make test-all`, leave out what is run by hand, and begin with what takes long."""
    for item in items:
        if "shared" in item.fixturenames:
            item.add_marker("real")
        if REST & {marker.name for marker in item.iter_markers()}:
            item.add_marker("rest")
    if "soak" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("soak")])
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    result = yield  # pytest leaves out what -m and -k do not name
    items[:] = in_two_halves(items)
    return result


def pytest_collection_finish():
    """What is imported by now stays to the end: the garbage collector need not look at a million objects again."""
    gc.collect()
    gc.freeze()


# seconds that a test with a marker takes, roughly
SECONDS = {"slurm": 90, "hosts": 50, "wheel": 40, "kill": 30, "slow": 20, "trains": 20, "bench": 15, "browser": 6}
SECONDS |= {"server": 6, "postgres": 3, "real": 1}
# what takes long to make: the tests that use it stand together, so that one worker makes it, and once
LONG_FIXTURES = {"study", "finished", "extended", "embedded", "stored"}


def in_two_halves(items):
    """Order tests for two workers, of whom each begins with one half and takes over from the other in the end.

    What takes long stands at the beginning of both halves, the tests of a module together; those of the one study that
    all share are in the first half, so that nobody waits for it.
    """
    modules, halves = {}, ([], [])
    for item in items:
        long = LONG_FIXTURES & set(item.fixturenames) or item.get_closest_marker("rest")
        modules.setdefault(item.path if long else "", []).append(item)
    quick = modules.pop("", [])
    on_study = {path for path, tests in modules.items() if any("study" in test.fixturenames for test in tests)}
    seconds = {path: sum(_seconds(test) for test in tests) for path, tests in modules.items()}
    taken = [70, 0]  # the study itself
    for path in sorted(modules, key=lambda path: (path not in on_study, -seconds[path])):
        half = 0 if path in on_study else taken.index(min(taken))
        taken[half] += seconds[path]
        halves[half].extend(modules[path])
    first = max(len(items) // 2 - len(halves[0]), 0)
    return [*halves[0], *quick[:first], *halves[1], *quick[first:]]


def _seconds(item):
    return max((SECONDS.get(marker.name, 0) for marker in item.iter_markers()), default=0) or 2


def once(tmp_path_factory, name, make):
    """What `make(folder)` leaves in a folder that all workers share; the first to come makes it."""
    place = tmp_path_factory.getbasetemp()
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / name
    with locked(place.with_suffix(".lock"), f"{name} is being made"):
        if not place.with_suffix(".done").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make(place)
            place.with_suffix(".done").touch()
    return place


def copy_project(folder):
    """What the command needs of a checkout."""
    shutil.copy(ROOT / "settings.ini", folder)
    for part in ("nbs", "studies"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "outputs").mkdir()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A demo set small enough to train on in seconds; tests must not change it."""
    return draw_demo(
        tmp_path_factory.mktemp("data") / "tiny",
        seed=3,
        individuals=12,
        train_photos=48,
        test_photos=10,
        progress=False,
    )


@pytest.fixture
def tiny_copy(tiny, tmp_path):
    """A copy of `tiny` to break."""
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A folder that looks like the project's root, its stages' notebooks replaced by stand-ins that take no time."""
    folder = tmp_path_factory.mktemp("checkout")
    copy_project(folder)
    write_standins(folder / "nbs")
    return folder


def run_whole_study(folder):
    """Draw a small data set and run a study on it, quick: two folds of one model, on one core each."""
    copy_project(folder)
    data = folder / "data" / "tiny"
    draw_demo(data, seed=3, individuals=12, train_photos=48, test_photos=10, progress=False)
    content = {"study": "whole", "data_dir": str(data), "folds": 2, "quick": True}
    content |= {"models": {"small_resnet_arcface": {}}, "resources": {stage: {"cores": 1} for stage in study_stages()}}
    (folder / "whole.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    command = [str(Path(sys.executable).with_name("happywhale")), "run", "whole.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "said.txt").write_text(done.stdout)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A checkout in which the real notebooks have run a whole study, once for all workers; nothing in it is changed."""
    return once(tmp_path_factory, "whole", run_whole_study)


@pytest.fixture(scope="session")
def study(whole):
    """The folder of that study's results: two folds of `small_resnet_arcface` on the photographs of `tiny`."""
    return whole / "outputs" / "whole-quick"


@pytest.fixture
def project(tmp_path):
    """A checkout of one's own with the real notebooks."""
    folder = tmp_path / "project"
    folder.mkdir()
    copy_project(folder)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The project's wheel."""
    return build_wheel(tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def files(tmp_path):
    """A function that writes a table of answers from its lines."""

    def write(name, *rows, header="image,predictions"):
        path = tmp_path / name
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def shared():
    """The folder of real photographs and tables (`$HAPPYWHALE_SHARED`, else beside the checkout)."""
    folder = Path(os.environ.get("HAPPYWHALE_SHARED", ROOT.parent / "shared" / "data"))
    if not (folder / "happywhale" / "train.csv").is_file():
        pytest.skip(f"no real data at {folder}: name its place in HAPPYWHALE_SHARED")
    return folder


@pytest.fixture(scope="session")
def colours():
    """An embedder that needs no network: mean colours."""
    return ColourEmbedder()


@pytest.fixture(scope="session")
def built(tiny, colours, tmp_path_factory):
    """The folder of a catalogue of `tiny`, by colours; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("catalogue") / "tiny"
    catalogue = create_catalogue(folder, tiny, "tiny")
    ingest_dataset(catalogue, colours, read_dataset(tiny), "colours")
    catalogue.choose_model(colours.fingerprint)
    recalibrate(catalogue)
    catalogue.close()
    return folder


@pytest.fixture
def mine(built, tmp_path):
    """A copy of `built`, opened."""
    catalogue = Catalogue(shutil.copytree(built, tmp_path / "mine"))
    yield catalogue
    catalogue.close()


@pytest.fixture(scope="session")
def postgres():
    """A function that makes an empty database on a PostgreSQL server of our own; Debian's package has it.

    Its attribute `crash` is a function that kills the server and starts it again.
    """
    programs = sorted(glob("/usr/lib/postgresql/*/bin"))
    if not programs or os.geteuid() != 0 or not shutil.which("runuser"):
        pytest.skip("no PostgreSQL, or not root, who runs it as its own user: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="happywhale-postgres-"))  # not among pytest's: its user has to get there
    shutil.chown(folder, "postgres")

    def server(program, *words):
        command = ["runuser", "-u", "postgres", "--", f"{programs[-1]}/{program}", "-D", f"{folder}/data", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr

    server("initdb", "--auth=trust", "--username=ann")
    port = 20000 + os.getpid() % 20000
    started = ("-w", "-o", f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}", "-l", f"{folder}/log")
    server("pg_ctl", *started, "start")
    address = f"postgresql://ann@127.0.0.1:{port}"

    def database():
        name = f"whales{secrets.token_hex(5)}"  # `random` may be seeded by what a test trains
        engine = make_engine(f"{address}/postgres").execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return f"{address}/{name}"

    database.crash = lambda: server("pg_ctl", *started, "-m", "immediate", "restart")
    yield database
    server("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder)
