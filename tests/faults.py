"""Faults on purpose: a process that dies, or finds no room on the disk, at one chosen step of what it writes.

A writer (`Writer`) is run again and again in a child process, each time with the fault one step later, until it ends
undisturbed. The children are forked from a process that has the package imported, without TensorFlow (`Nest`): each
costs some milliseconds. Where there is no fork each is a process of its own.

Steps are what Python does to files below one folder (open to write, rename, remove, make and remove folders, links,
fsync, dates) and the SQL statements that change a database. Within a step a limit on the size of files stops the write
at a chosen byte, also the writes of C libraries. A loss of power is not tried: what the system has not yet written to
the disk is not lost here.
"""

import errno
import importlib
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAKES = {"open", "os.mkdir", "os.rename", "os.symlink", "os.link", "os.fsync"}  # what a full disk does not let one do
CHANGES = MAKES | {"os.remove", "os.rmdir", "os.utime", "os.chmod", "os.truncate"}
SECONDS = 120  # a child that takes longer hangs
ROOM = "free some space"


# --- what `make soak` keeps


def keep_result(name, table, seconds=None):
    """Keep the table of a test as `docs/results/soak_<name>.json`, if `$HAPPYWHALE_KEEP_RESULTS` is set. Returns its
    place, or None."""
    if not os.environ.get("HAPPYWHALE_KEEP_RESULTS"):
        return None
    from happywhale_nb.core.artifacts import versions, write_json
    from happywhale_nb.workflow.provenance import checkout_state

    commit = checkout_state(ROOT) or {"hash": None, "changes": None}
    facts = {"commit": commit["hash"], "changed": commit["changes"] is not None}
    facts |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "system": platform.platform()}
    facts |= {"python": platform.python_version()} | {n: versions(n)[n] for n in ("numpy", "pandas", "pyarrow")}
    facts |= {"cores": os.cpu_count(), "seconds": seconds and round(seconds, 1)}
    path = ROOT / "docs" / "results" / f"soak_{name}.json"
    write_json(path, {"name": name} | facts | {"table": table})
    return path


# --- writers


@dataclass(frozen=True)
class Writer:
    """Something that writes files.

    Attributes:
        steps: function of (ground, folder), a generator that writes below `folder` and yields whenever it would tell
            somebody that something is kept. Called again it goes on, as a person would who gives a command again.
        read: function of (ground, folder): a dict of what the package's own reader finds, target → value (None: the
            target is not there). A half or damaged target is for the reader to raise.
        old: as `steps`, makes an earlier version of the targets; None: there is none.
        ground: function of a folder, puts there what is only read.
        says: whether a full disk is told with what to do (`UserError`, "free some space").
        untold: steps whose failure is not told so ("write" for the limit on files); "crash": nor does the process live.
        limit: function of (start, fault, steps) that knows faults which do go wrong, and are left out; None: none.
        gone: targets that may be absent after a kill though an old one was there: folders, which are moved aside.
        largest: bytes up to which the limit on files goes; 0: the largest file that is left.
        by_sql: whether SQL statements are steps, too.
        fork: whether the children may be forked.
    """

    steps: callable
    read: callable
    old: callable = None
    ground: callable = None
    says: bool = True
    untold: tuple = ()
    limit: callable = None
    gone: tuple = ()
    largest: int = 0
    by_sql: bool = False
    fork: bool = True


# --- in a child


class Steps:
    """Counts the steps of this process below `root`. `before(number, name, path)` is called before each."""

    def __init__(self, root, by_sql, before):
        self.root, self.before, self.names, self.on = os.path.realpath(root), before, [], True
        sys.addaudithook(self._audit)
        fsync = os.fsync
        os.fsync = lambda handle: self._step("os.fsync", None) or fsync(handle)
        if by_sql:
            from sqlalchemy import Engine, event

            event.listen(Engine, "before_cursor_execute", self._statement)
            event.listen(Engine, "commit", lambda connection: self._step("sql COMMIT", None))

    def _audit(self, name, args):
        if not self.on or (name not in CHANGES and name != "sqlite3.connect"):
            return
        if name == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            return
        place = args[1] if name in ("os.symlink", "os.link") else args[0]
        if not isinstance(place, int) and _path(name, place, args).startswith(self.root + os.sep):
            self._step(name, os.fsdecode(place))

    def _statement(self, connection, cursor, statement, *_):
        word = statement.split(None, 1)[0].upper()
        if word not in ("SELECT", "PRAGMA"):
            self._step(f"sql {word}", None)

    def _step(self, name, path):
        if self.on:
            self.names.append(name)
            self.before(len(self.names), name, path)


def _path(name, place, args):
    """The absolute path that an audited call is about; some name it relative to a folder that is open."""
    place = os.fsdecode(place)
    if name in ("os.remove", "os.rmdir", "os.mkdir") and args[-1] != -1 and os.path.islink(f"/proc/self/fd/{args[-1]}"):
        place = os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), place)
    return os.path.abspath(place)


def die():
    """End this process at once, with nothing tidied up."""
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)


def arm(fault):
    """What `Steps` is to call before each step; limits on files are set here."""
    kind, at = fault["kind"], fault["at"]
    if kind in ("size", "cut"):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN if kind == "size" else signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))

    def before(number, name, path):
        if kind == "kill" and number == at:
            die()
        if kind == "full" and number >= at and name in MAKES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    return before


def writer_of(job):
    """The `Writer` that a job is about."""
    return importlib.import_module(job["module"]).WRITERS[job["writer"]]


def play(job, tell):
    """Do one part of a writer's life, in a child. tell: function that passes a dict on, also if this dies later."""
    writer, places = writer_of(job), (Path(job["ground"]), Path(job["folder"]))
    if job["part"] == "ground":
        if writer.ground:
            writer.ground(places[0])
    elif job["part"] == "old":
        for _ in writer.old(*places):
            pass
    elif job["part"] == "history":
        states, names = [writer.read(*places)], names_below(places[1])
        for _ in writer.steps(*places):
            states.append(writer.read(*places))
            names |= names_below(places[1])
        tell({"value": states, "names": sorted(names)})
    elif job["part"] == "write":
        steps = Steps(places[1], writer.by_sql, arm(job["fault"]))
        try:
            for number, _ in enumerate(writer.steps(*places), 1):
                tell({"acknowledged": number})
        finally:
            steps.on = False
            tell({"steps": steps.names})
    elif job["part"] == "after":
        tell({"found": writer.read(*places)})
        for _ in writer.steps(*places):
            pass
        tell({"then": writer.read(*places)})


def tell_all(job, tell):
    """`play`, and how it ended."""
    try:
        play(job, tell)
        tell({"ended": True})
    except BaseException as error:
        kinds = [each.__name__ for each in type(error).__mro__]
        lines = "".join(traceback.format_exception(error))[-3000:]
        tell({"error": {"kinds": kinds, "text": str(error), "trace": lines}})


def to_descriptor(handle):
    """A `tell` that writes JSON lines to an open descriptor."""

    def tell(told):
        data = (json.dumps(told) + "\n").encode()
        while data:
            data = data[os.write(handle, data) :]

    return tell


# --- the process that children are forked from


def collect(handle, end):
    """What a child tells until it ends; None if it does not end in time."""
    parts = []
    while True:
        ready, _, _ = select.select([handle], [], [], max(0, end - time.monotonic()))
        if not ready:
            return None
        if not (data := os.read(handle, 1 << 20)):
            return b"".join(parts)
        parts.append(data)


def told(data, status):
    """One dict of all that a child told, with the signal or code it ended by."""
    result = {"status": status}
    for line in data.decode().splitlines():
        result |= json.loads(line)
    return result


def fork_one(job):
    """Run a job in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        nothing = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(nothing, handle)
        tell_all(job, to_descriptor(writing))
        os._exit(0)
    os.close(writing)
    data = collect(reading, time.monotonic() + SECONDS)
    os.close(reading)
    if data is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return told(data or b"", "hangs" if data is None else os.waitstatus_to_exitcode(status))


def serve():
    """Read jobs from standard input, a line each, and answer each with a line."""
    for line in sys.stdin:
        print(json.dumps(fork_one(json.loads(line))), flush=True)


class Nest:
    """Runs jobs of the writers of a module: in children forked from a process of its own, or in new processes."""

    def __init__(self, module):
        self.module, self.process = module, None
        # one thread: a fork takes along no other; nothing is compiled into files while their size is limited
        one = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1") | {"PYTHONDONTWRITEBYTECODE": "1"}
        self.environment = os.environ | one | {"TF_CPP_MIN_LOG_LEVEL": "3"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.stdin.close()
            self.process.wait(timeout=SECONDS)
            self.process.stdout.close()

    def _command(self, what):
        return [sys.executable, str(Path(__file__).resolve()), what, self.module]

    def run(self, job, fork=True):
        """What a job told: a dict with `status` (0, or minus the signal), and what `play` tells."""
        line = json.dumps(job | {"module": self.module}) + "\n"
        if not fork or not hasattr(os, "fork"):
            done = subprocess.run(
                self._command("once"), input=line.encode(), capture_output=True, env=self.environment, timeout=SECONDS
            )
            return told(done.stdout, done.returncode)
        if self.process is None:
            how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": self.environment, "text": True}
            self.process = subprocess.Popen(self._command("serve"), **how)
        self.process.stdin.write(line)
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"the process that forks has ended with {self.process.wait(timeout=SECONDS)}")
        return json.loads(answer)


# --- the matrix


def names_below(folder):
    """Files and links below a folder, without the hidden ones that a write is prepared in: a set of relative paths."""
    paths = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_symlink() or path.is_file())
    shown = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return {path.as_posix() for path in shown if not path.name.endswith(("-wal", "-shm", "-journal"))}  # SQLite's own


def hidden_below(folder):
    """What a write leaves of its preparations."""
    return [path.relative_to(folder).as_posix() for path in Path(folder).rglob(".*")]


@dataclass
class Matrix:
    """One writer, from one start, with every fault: `run()` returns a row of the table, and what was wrong."""

    nest: Nest
    name: str
    writer: Writer
    place: Path
    start: str  # "nothing" or "earlier"
    wrong: list = field(default_factory=list)

    def __post_init__(self):
        self.ground, self.before, self.spot = (self.place / each for each in ("ground", "before", "spot"))
        for folder in (self.ground, self.before, self.spot):
            folder.mkdir(parents=True)
        self.row = {"writer": self.name, "start": self.start, "left behind": 0}

    def job(self, part, folder=None, **more):
        places = {"ground": str(self.ground), "folder": str(folder or self.spot)}
        return self.nest.run({"writer": self.name, "part": part} | places | more, self.writer.fork)

    def must(self, part, folder=None, **more):
        """A part that nothing disturbs."""
        result = self.job(part, folder, **more)
        if result.get("status") != 0 or not result.get("ended"):
            raise AssertionError(f"{self.name}, {part}, undisturbed: {result.get('error', result)}")
        return result

    def fresh(self):
        """The spot as it was before anything was written."""
        shutil.rmtree(self.spot)
        shutil.copytree(self.before, self.spot, symlinks=True)

    def prepare(self):
        """Write once undisturbed: how the targets look after each step, and which steps there are."""
        self.must("ground")
        if self.start == "earlier":
            # written at the spot, for whatever holds its own path
            self.must("old")
            shutil.copytree(self.spot, self.before, symlinks=True, dirs_exist_ok=True)
        history = self.must("history")
        self.states, self.names = history["value"], set(history["names"]) | names_below(self.spot)
        files = [path for path in self.spot.rglob("*") if path.is_file() and not path.is_symlink()]
        self.sizes = {path.stat().st_size for path in files}
        self.fresh()
        done = self.must("write", fault={"kind": "none", "at": 0})
        self.steps, self.row["steps"] = done["steps"], len(done["steps"])
        self.row["told"] = len(self.states) - 1

    def faults(self):
        """All faults there are for this writer."""
        largest = self.writer.largest or max(self.sizes, default=0)
        if self.writer.largest:
            sizes = range(0, largest, max(1, largest // 80))
        else:
            parts = {size * part // 4 for size in self.sizes for part in (1, 2, 3)}
            sizes = {0, 1, *parts, *(size - 1 for size in self.sizes)}
        chosen = sorted(size for size in sizes if 0 <= size < max(largest, 1))
        chosen = chosen[:: max(1, len(chosen) // 80)]
        found = [{"kind": "kill", "at": n} for n in range(1, len(self.steps) + 2)]
        found += [{"kind": "full", "at": n} for n, name in enumerate(self.steps, 1) if name in MAKES]
        if sys.platform != "win32":
            found += [{"kind": kind, "at": size} for kind in ("size", "cut") for size in chosen]
        limits = [fault for fault in found if self.writer.limit and self.writer.limit(self.start, fault, self.steps)]
        self.row["known limits"] = len(limits)
        return [fault for fault in found if fault not in limits]

    def blame(self, fault, what, *more):
        at = self.steps[fault["at"] - 1] if fault["kind"] in ("kill", "full") and fault["at"] <= len(self.steps) else ""
        told = f"{self.name} from {self.start}, {fault['kind']} at {fault['at']} {at}: {what}"
        self.wrong.append(" ".join([told, *map(str, more)])[:2000])

    def count(self, what):
        self.row[what] = self.row.get(what, 0) + 1

    def try_one(self, fault):
        """Write with a fault, look at what is there, and write again."""
        self.fresh()
        result = self.job("write", fault=fault)
        self._look_at_end(fault, result)
        if strange := names_below(self.spot) - self.names:
            self.blame(fault, "files that are no target:", sorted(strange))
        if result["status"] == 0 and (left := hidden_below(self.spot)):
            self.blame(fault, "an error leaves behind", left)
        self.row["left behind"] += bool(hidden_below(self.spot))
        after = self.job("after")
        if "found" in after:
            self._look_at_state(fault, after["found"], result.get("acknowledged", 0))
        if after.get("then") != self.states[-1]:
            at = "cannot be read" if "found" not in after else "written again it is not what it should be"
            self.blame(fault, f"{at}:", after.get("error", after.get("then", after)))

    def _look_at_end(self, fault, result):
        """Did the process end as such a fault lets it end?"""
        kind, error = fault["kind"], result.get("error")
        self.count(f"{kind} tried")
        if kind in ("kill", "cut"):
            signals = (-signal.SIGXFSZ,) if kind == "cut" else (-9, 137)
            through = result["status"] == 0 and not error and result.get("ended")
            early = kind == "kill" and fault["at"] <= len(self.steps)
            if result["status"] in signals:
                self.count(f"{kind}: dead")
            elif not through or early:
                self.blame(fault, "did not die:", result["status"], error)
            return
        if result["status"] != 0:
            self.count(f"{kind}: crash")
            if "crash" not in self.writer.untold:
                self.blame(fault, "ends with", result["status"])
        elif error is None:
            self.count(f"{kind}: not needed" if kind == "size" else f"{kind}: done without")
        elif "UserError" in error["kinds"] and ROOM in error["text"]:
            self.count(f"{kind}: told what to do")
        else:
            self.count(f"{kind}: {error['kinds'][0]}")
            failed = self.steps[fault["at"] - 1] if kind == "full" else "write"
            if self.writer.says and failed not in self.writer.untold:
                self.blame(fault, "does not say what to do:", error["trace"])

    def _look_at_state(self, fault, found, acknowledged):
        """Each target is as before or as after the step that was under way; what was told before is there."""
        here, next_ = self.states[acknowledged], self.states[min(acknowledged + 1, len(self.states) - 1)]
        old = new = True
        for target in {**here, **next_, **found}:
            value = found.get(target)
            old, new = old and value == here.get(target), new and value == next_.get(target)
            if value not in (here.get(target), next_.get(target)):
                if value is None and target in self.writer.gone and fault["kind"] != "full":
                    self.count("absent")
                else:
                    self.blame(fault, f"{target} is neither old nor new ({acknowledged} told):", value)
        self.count("new" if new else "old" if old else "some old, some new")

    def run(self, most=None, draw=None):
        """Try all faults, or `most` of them that `draw` (a `random.Random`) chooses."""
        began = time.monotonic()
        self.prepare()
        faults = self.faults()
        if most is not None and most < len(faults):
            faults = draw.sample(faults, most)
        for fault in faults:
            self.try_one(fault)
        self.row |= {"faults": len(faults), "wrong": len(self.wrong), "seconds": round(time.monotonic() - began, 2)}
        return self.row, self.wrong


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.modules["faults"] = sys.modules["__main__"]  # the writers' module shares this one's classes
    importlib.import_module(sys.argv[2])
    if sys.argv[1] == "serve":
        serve()
    else:
        out = os.dup(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        tell_all(json.loads(sys.stdin.readline()), to_descriptor(out))
