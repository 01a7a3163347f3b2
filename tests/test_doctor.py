"""NVIDIA's libraries and the doctor: what `make` installs where, the lock, remedies, and what a report gives away."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from click.testing import CliRunner
from installed import find_uv, make_venv
from packaging.requirements import Requirement
from packaging.version import Version
from standins import nvidia_smi

from happywhale_nb.cli.main import main
from happywhale_nb.core.hardware import NvidiaDriver, gpu_remedy, hidden_gpus, nvidia_driver
from happywhale_nb.workflow import doctor
from happywhale_nb.workflow.doctor import Diagnosis, anonymous, devices_finding, opencv_finding, private_words

ROOT = Path(__file__).resolve().parents[1]
IDLE = NvidiaDriver(("NVIDIA L4",), "550.54.15")
ON_CPU = {"opencv": "", "error": "", "kind": "cpu", "line": "tensorflow on CPU (cpu), float32, no XLA"}
ANSWERS, FAILS, HANGS = "answers", "fails", "hangs"


def pins(name):
    """What a lock names: a list of name, version, marker, number of hashes."""
    text = (ROOT / name).read_text()
    blocks = re.findall(r"^([\w.-]+)==(\S+)(?: ; (.+?))? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M)
    assert sum(line.count("--hash") == 1 or "==" in line for line in text.splitlines()) == len(text.splitlines())
    return [(package, version, marker, hashes.count("--hash")) for package, version, marker, hashes in blocks]


def test_requirements_gpu_lock_has_only_what_comes_on_top_with_hashes():
    above, below = pins("requirements-gpu.lock"), pins("requirements.lock")
    assert all(hashes for *_, hashes in above)
    assert not {name for name, *_ in above} & {name for name, *_ in below}
    assert {"nvidia-cudnn-cu12", "jax-cuda12-plugin", "jax-cuda12-pjrt"} <= {name for name, *_ in above}
    assert all("sys_platform == 'linux'" in marker for _, _, marker, _ in above)


def test_requirements_gpu_lock_agrees_with_requirements_lock_on_jax():
    def versions(lock, package):
        found = [(version, marker) for name, version, marker, _ in pins(lock) if name == package]
        return {(version, marker.replace(" and sys_platform == 'linux'", "")) for version, marker in found}

    jax = versions("requirements.lock", "jax")
    assert jax
    assert versions("requirements-gpu.lock", "jax-cuda12-plugin") == jax
    assert versions("requirements-gpu.lock", "jax-cuda12-pjrt") == jax


@pytest.mark.parametrize(("package", "extra"), [("tensorflow", "and-cuda"), ("jax", "cuda12")])
def test_requirements_gpu_lock_satisfies_the_extra_of_the_pinned_package(package, extra):
    here = {"sys_platform": "linux", "platform_machine": "x86_64", "extra": extra}
    wanted = [Requirement(line) for line in requires(package) if extra in line]
    wanted = {need.name: need.specifier for need in wanted if need.marker.evaluate(here)}
    locked = {}
    for name, version, marker, _ in pins("requirements-gpu.lock") + pins("requirements.lock"):
        if not marker or Requirement(f"{name}; {marker}").marker.evaluate(here):
            locked[name] = Version(version)
    assert wanted
    assert not {name: str(spec) for name, spec in wanted.items() if locked.get(name) not in spec}


@pytest.mark.soak
@pytest.mark.index
@pytest.mark.timeout(400)
def test_extras_gpu_and_jax_gpu_resolve_to_the_locked_versions(tmp_path):
    make_venv(tmp_path / "empty")
    command = [find_uv(tmp_path), "pip", "install", "--dry-run", "--python", tmp_path / "empty/bin/python"]
    locks = ["-c", "requirements.lock", "-c", "requirements-gpu.lock"]
    done = subprocess.run([*command, *locks, ".[gpu,jax-gpu]"], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    chosen = set(re.findall(r"^ \+ ([\w.-]+)==(\S+)", done.stderr, re.M))
    locked = {(name, version) for name, version, *_ in pins("requirements-gpu.lock")}
    ours = {(name, version) for name, version in chosen if re.match("nvidia-|jax-cuda", name)}
    assert len(ours) == 16
    assert ours <= locked


@pytest.fixture
def folder(tmp_path):
    """What `make` needs, and a Python that installs nothing: it writes down what it is asked to do, into `log`."""
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ROOT.glob("requirements*.lock"):
        shutil.copy(name, tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nmkdir -p .venv/bin && cp -f "$0" .venv/bin/python 2>/dev/null\necho "$@" >> log\n')
    python.chmod(0o755)
    return tmp_path


def make(folder, *words, smi=None):
    """What `make .venv/.ready` prints beside a stand-in for nvidia-smi, and what it had Python do."""
    (folder / "log").unlink(missing_ok=True)
    shutil.rmtree(folder / "programs", ignore_errors=True)
    (folder / "programs").mkdir()
    if smi:
        nvidia_smi(folder / "programs", smi)
    hasty = folder / "programs" / "timeout"  # a deadline that a test can wait for
    hasty.write_text(f'#!/bin/sh\nshift\nexec {shutil.which("timeout")} 0.3 "$@"\n')
    hasty.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name not in {"GPU", "MAKEFLAGS", "MAKELEVEL"}}
    env["PATH"] = f"{folder / 'programs'}:{env['PATH']}"
    command = ["make", "PYTHON=./python", *words, ".venv/.ready"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, (folder / "log").read_text() if (folder / "log").is_file() else ""


@pytest.mark.parametrize(
    ("smi", "words", "taken"),
    [
        (ANSWERS, [], True),
        (ANSWERS, ["GPU=0"], False),
        (None, ["GPU=1"], True),
        (None, [], False),
        (FAILS, [], False),
        (HANGS, [], False),
    ],
)
def test_make_takes_nvidias_libraries_where_the_driver_answers(folder, smi, words, taken):
    printed, _ = make(folder, "-n", *words, smi=smi)
    assert ("-r requirements.lock -r requirements-gpu.lock" in printed) == taken
    assert ("3 GB more" in printed) == taken
    assert not taken or printed.index("3 GB more") < printed.index("-r requirements-gpu.lock")
    assert not (folder / ".venv").exists()


def test_make_remembers_the_choice_and_installs_anew_when_it_changes(folder):
    def installs(*words, smi=None):
        _, log = make(folder, *words, smi=smi)
        return (
            "install --quiet --no-compile --require-hashes" in log,
            "requirements-gpu.lock" in log,
            "uninstall" in log,
        )

    assert installs() == (True, False, False)
    assert installs() == (False, False, False)
    assert installs(smi=ANSWERS) == (True, True, False)  # a driver has come
    assert installs() == (False, False, False)  # it does not answer now: what is installed stays
    assert installs("GPU=0", smi=ANSWERS) == (True, True, True)
    assert installs(smi=ANSWERS) == (False, False, False)  # declined once is declined
    assert installs("GPU=1") == (True, True, False)


def test_make_refuses_another_value_of_gpu(folder):
    done = subprocess.run(["make", "-n", "GPU=yes", ".venv/.ready"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert "GPU=yes: 1 installs NVIDIA's libraries, 0 does not" in done.stderr


@pytest.mark.parametrize(
    ("smi", "cards", "fault"),
    [
        (ANSWERS, ("NVIDIA L4", "NVIDIA L4"), ""),
        (FAILS, (), "nvidia-smi ends with status 9"),
        (HANGS, (), "nvidia-smi has not answered within 0.5 s"),
    ],
)
def test_nvidia_driver_with_a_stand_in_is_what_it_says(tmp_path, monkeypatch, smi, cards, fault):
    nvidia_smi(tmp_path, smi)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    driver = nvidia_driver(timeout=0.5 if smi == HANGS else 30, folder=tmp_path / "none")
    assert driver == NvidiaDriver(cards, "550.54.15" if cards else "", fault)


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("CUDA_VISIBLE_DEVICES", "-1", True),
        ("CUDA_VISIBLE_DEVICES", "", True),
        ("CUDA_VISIBLE_DEVICES", "0", False),
        ("JAX_PLATFORMS", "cpu", True),
    ],
)
def test_hidden_gpus_are_those_of_the_environment(monkeypatch, name, value, hidden):
    for variable in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(variable, raising=False)
    assert not hidden_gpus()
    monkeypatch.setenv(name, value)
    assert hidden_gpus() == hidden


@pytest.mark.parametrize(
    ("backend", "system", "machine", "driver", "installed", "remedy"),
    [
        ("tensorflow", "linux", "x86_64", IDLE, False, r"make GPU=1 .venv/.ready.*happywhale_nb\[gpu\]"),
        ("jax", "linux", "x86_64", IDLE, False, r"happywhale_nb\[jax-gpu\]"),
        ("tensorflow", "linux", "x86_64", IDLE, True, "happywhale doctor"),
        ("tensorflow", "linux", "aarch64", IDLE, False, "KERAS_BACKEND=jax"),
        ("jax", "linux", "aarch64", IDLE, False, r"happywhale_nb\[jax-gpu\]"),
        ("tensorflow", "win32", "AMD64", IDLE, False, "WSL2"),
        ("jax", "linux", "x86_64", NvidiaDriver(("NVIDIA L4",), "470.82"), True, "470.82 is too old, install 525"),
        ("jax", "linux", "x86_64", NvidiaDriver(("NVIDIA L4",), "", "it hangs"), True, "it hangs; restart"),
    ],
)
def test_gpu_remedy_for_each_reason_is_its_own(monkeypatch, backend, system, machine, driver, installed, remedy):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("happywhale_nb.core.hardware.has_package", lambda name: installed)
    assert re.search(remedy, gpu_remedy(backend, driver))


@pytest.mark.parametrize(
    ("answer", "driver", "value", "remedy"),
    [
        (ON_CPU, None, ON_CPU["line"], ""),
        (ON_CPU, IDLE, "NVIDIA L4 is not used", "make GPU=1"),
        (ON_CPU | {"kind": "gpu"}, IDLE, ON_CPU["line"], ""),
        (ON_CPU, NvidiaDriver(("NVIDIA L4",), "", "it hangs"), ON_CPU["line"], ""),  # a fault of the driver's line
        (ON_CPU | {"error": "ImportError: no"}, IDLE, "ImportError: no", "pip install --force-reinstall tensorflow"),
    ],
)
def test_devices_finding_has_one_remedy_for_a_fault(monkeypatch, answer, driver, value, remedy):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("happywhale_nb.core.hardware.has_package", lambda name: False)
    monkeypatch.setattr(doctor, "has_package", lambda name: False)
    found = devices_finding("tensorflow", answer, driver)
    assert value in found.value
    assert remedy in found.remedy and bool(remedy) == bool(found.remedy)


def test_opencv_finding_without_libgl_names_the_headless_build():
    error = "libGL.so.1: cannot open shared object file: No such file or directory"
    assert "opencv-python-headless" in opencv_finding(ON_CPU | {"opencv": error}).remedy


def test_disk_finding_of_a_folder_that_is_not_there_is_a_fault(tmp_path):
    assert doctor.disk_finding(tmp_path / "none").remedy


def test_memory_gb_in_a_container_is_the_containers(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("1000000000\n")
    assert doctor.memory_gb(limit) == 1.0
    limit.write_text("max\n")
    assert doctor.memory_gb(limit) == doctor.memory_gb(tmp_path / "none") > 1.0


@pytest.fixture
def ann(monkeypatch, tmp_path):
    """The doctor in the home of somebody whose backend and driver have faults that name her, machine and folders."""
    home = tmp_path / "home of ann"
    (home / "whales of skye").mkdir(parents=True)
    for name, value in {"HOME": str(home), "USERPROFILE": str(home), "LOGNAME": "ann", "USER": "ann"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={home}/whales of skye/dump")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr("platform.node", lambda: "fluke.lab.example")
    error = f"ImportError: {home}/whales of skye/lib.so, '/srv/photos/ann/IMG_1.jpg' on fluke (C:\\Users\\Ann\\57.29N)"
    monkeypatch.setattr(doctor, "ask_backend", lambda: ON_CPU | {"error": error})
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: IDLE)
    return home


def test_doctor_with_a_fault_ends_with_status_one_and_says_the_remedy(ann):
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "FAULT devices   ImportError" in result.output
    assert result.output.count("remedy:") == 1
    assert "1 fault found" in result.output


def test_doctor_with_an_unknown_backend_does_not_ask_it(ann, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setattr(doctor, "ask_backend", None)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "KERAS_BACKEND (or ~/.keras/keras.json): tensorflow or jax" in result.output


def test_doctor_report_has_three_texts_and_gives_nothing_away(ann, monkeypatch):
    monkeypatch.chdir(ann / "whales of skye")
    result = CliRunner().invoke(main, ["doctor", "--report", "report.zip"])
    assert result.exit_code == 1, result.output
    with zipfile.ZipFile("report.zip") as archive:
        assert archive.namelist() == ["doctor.txt", "packages.txt", "environment.txt"]
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    whole = "\n".join(texts.values())
    private = ("skye", str(ann), "fluke", "photos", "IMG_1", "57.29", str(ROOT), "/bin/", "Users")
    assert not [word for word in private if word in whole]
    assert not re.search(r"\bann\b", whole, re.IGNORECASE)
    assert "FAULT devices   ImportError: <path>" in texts["doctor.txt"]
    assert "keras==" in texts["packages.txt"]
    assert "XLA_FLAGS=--xla_dump_to=<path>" in texts["environment.txt"]


def test_private_words_without_a_table_of_users_leave_the_user_out(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: {}["uid not found"])
    assert "<user>" not in private_words().values()
    assert anonymous("a/b and 3/4", {}) == "a/b and 3/4"


def test_doctor_of_packages_that_are_missing_names_them():
    found = doctor.packages_finding(["numpy", "no-such-package"])
    assert found == Diagnosis("packages", "not installed: no-such-package", found.remedy)
    assert found.remedy


@pytest.mark.soak
@pytest.mark.probe
def test_doctor_asks_the_backend_in_a_process_of_its_own():
    code = "import sys; from happywhale_nb.workflow.doctor import examine, doctor_lines"
    code += "; print(*doctor_lines(examine()), 'tensorflow' in sys.modules, sep='\\n')"
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ok    devices   tensorflow on CPU \(cpu\)", done.stdout, re.M), done.stdout
    assert done.stdout.splitlines()[-1] == "False"
