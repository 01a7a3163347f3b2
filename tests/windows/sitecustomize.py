"""Makes a Python on Linux refuse what Windows refuses. It is loaded by every Python whose PYTHONPATH names this folder.

Gone are modules and functions of POSIX. Refused are links, renaming over an open file, opening a folder, names that
Windows does not take, and paths above 259 characters. Processes are spawned, not forked."""

import builtins
import importlib.abc
import io
import mimetypes
import multiprocessing
import os
import re
import shutil
import sys
import tempfile

MODULES = {"fcntl", "pwd", "grp", "resource", "termios"}
GONE = "fork forkpty chown lchown mkfifo killpg setsid"
# gone for this project alone: libraries that see a Linux use them
OURS = {"getuid", "geteuid", "getgid", "getegid", "getgroups", "uname", "sysconf", "sched_getaffinity"}
NAMES = re.compile(r'(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[<>:"|?*\\\n].*|.*[. ]', re.I)
SYSTEMS_OWN = ("/proc", "/sys", "/dev")


class System(type(os)):
    """The module `os`. Libraries that see a Linux ask it for what Linux has; this project is told what Windows has."""

    def __getattribute__(self, name):
        """An attribute, unless a module of the project asks for one that Windows lacks."""
        if name in OURS and str(sys._getframe(1).f_globals.get("__name__")).startswith("happywhale_nb"):
            raise AttributeError(f"module 'os' has no attribute {name!r}")
        return super().__getattribute__(name)


class Blocked(importlib.abc.MetaPathFinder):
    """Finds no module of `MODULES`, and says so."""

    def find_spec(self, name, path=None, target=None):
        """Raise `ModuleNotFoundError` for a module of POSIX."""
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def refusal(kind, number, text, path, winerror):
    """An error as Windows' Python raises it."""
    error = kind(number, text, path)
    error.winerror = winerror
    return error


def check(path):
    """Refuse a name or a length that Windows refuses."""
    if isinstance(path, int):
        return
    whole = os.path.abspath(os.fsdecode(path))
    if whole.startswith(SYSTEMS_OWN):
        return
    if len(whole) > 259:
        raise refusal(FileNotFoundError, 2, "No such file or directory", os.fsdecode(path), 3)
    if NAMES.fullmatch(os.path.basename(whole)):
        raise refusal(OSError, 22, "Invalid argument", os.fsdecode(path), 123)


def is_open(path):
    """Whether this process has a file open, or one in a folder."""
    whole = os.path.realpath(path)
    for number in os.listdir("/proc/self/fd"):
        try:
            found = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if found == whole or found.startswith(whole + os.sep):
            return True
    return False


def checked(function, folders=True):
    """`function` of a path, which refuses as Windows does."""

    def call(path, *more, **named):
        check(path)
        if not folders and "opener" not in named and not isinstance(path, int) and os.path.isdir(path):
            raise refusal(PermissionError, 13, "Permission denied", os.fsdecode(path), 5)
        return function(path, *more, **named)

    return call


def moved(function):
    """`os.replace` or `os.rename`, which refuses files that are open."""

    def call(source, target, **named):
        check(target)
        for path in (source, target):
            if is_open(path):
                raise refusal(PermissionError, 13, "Permission denied", os.fsdecode(path), 32)
        return function(source, target, **named)

    return call


def refuse_link(source, target, *more, **named):
    """As Windows without developer mode."""
    raise refusal(OSError, 22, "A required privilege is not held by the client", os.fsdecode(source), 1314)


sys.meta_path.insert(0, Blocked())
for module in MODULES:
    sys.modules.pop(module, None)
multiprocessing.set_start_method("spawn")
mimetypes.add_type("text/plain", ".js")  # as the registry has it on many machines
for function in GONE.split():
    delattr(os, function)
os.__class__ = System
os.symlink = refuse_link
shutil._use_fd_functions = tempfile._O_TMPFILE_WORKS = False  # these open folders, as only Linux does
os.open, os.mkdir = checked(os.open, folders=False), checked(os.mkdir)
builtins.open = io.open = checked(open, folders=False)
os.replace, os.rename = moved(os.replace), moved(os.rename)
