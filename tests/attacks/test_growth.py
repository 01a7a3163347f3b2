"""What a stranger sends is read in time that grows with its length, and not with the square of it."""

import contextlib
import importlib
import inspect
import io
import itertools
import multiprocessing
import os
import pkgutil
import random
import re
import time
import warnings

import pytest
from PIL import Image

import happywhale_nb
from happywhale_nb.catalogue.uploads import check_photo
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.formats import jpeg_ends

SHORT, LONG = 4_000, 16_000  # characters; four times the time is in proportion, sixteen times is the square
RUNS = [
    *"a0 -_.,/\\\n\t([{'\"=&;:<?",
    "A1",
    "0-",
    "a ",
    "é",
    "\0",
    "1/",
    "0.",
    "1e",
    "°",
    "N ",
    " and ",
    "sp ",
    "2020-",
]
ENDS = (("", ""), ("a", "\1"), ("1", "!"), ("a.", ""))
PARTS = ("data", "catalogue", "server", "core", "imaging", "networks", "workflow", "cli")
SEEN_BY_STRANGERS = (
    *("catalogue.uploads", "catalogue.upload_photos", "catalogue.naming", "core.platforms", "data.columns"),
    *("data.dates", "data.file_names", "data.formats", "data.lookup", "data.names", "data.tables", "data.values"),
    *("server.auth", "server.state"),
)
MOST = 60  # seconds; what never ends is ended


def time_of(reader, text):
    """Seconds of the processor that a reader takes, whatever it says."""
    began = time.process_time()
    with contextlib.suppress(Exception):
        reader(text)
    return time.process_time() - began


def grows(reader, texts):
    """The first of the texts, given as functions of a length, for which the time grows faster than the length."""
    for name, text in texts:
        time_of(reader, text(SHORT))
        short, long = time_of(reader, text(SHORT)), time_of(reader, text(LONG))
        if 0.05 < long < 1 and long > 8 * short:  # once more: something else may have run
            short, long = (min(time_of(reader, text(n)) for _ in range(5)) for n in (SHORT, LONG))
        if long > 0.05 and long > 8 * short:
            return f"{name}: {short:.3f} s for {SHORT:,}, {long:.3f} s for {LONG:,}"
    return None


def runs(encode=False):
    """Runs of characters between beginnings and ends, each a name and a function of a length."""
    for run, (begin, end) in itertools.product(RUNS, ENDS):

        def text(length, run=run, begin=begin, end=end):
            text = begin + (run * length)[:length] + end
            return text.encode() if encode else text

        yield f"{begin!r}, {run!r} …, {end!r}", text


def readers(module):
    """The functions of a module that a text, texts or a file's bytes are enough for: name, function, whether bytes."""
    for name, function in vars(module).items():
        if not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        first, *more = inspect.signature(function).parameters.values() or [None]
        needed = [p for p in more if p.default is p.empty and p.kind in (0, 1, 3)]
        if first is None or any(p.annotation is not str or p.kind == 3 for p in needed):
            continue
        kind, others = str(first.annotation), ["x"] * len(needed)
        private = name.startswith("_") and first.name in ("text", "name", "value", "word", "cell", "line")
        if kind in ("<class 'str'>", "str | None") or private:
            yield name, lambda text, function=function, others=others: function(text, *others), False
        elif kind.endswith(("Iterable[str]", "Sequence[str]", "Collection[str]")):
            yield name, lambda text, function=function, others=others: function([text], *others), False
        elif first.annotation is bytes:
            yield name, lambda data, function=function, others=others: function(data, *others), True


def grown(name, folder):
    """What of a module takes time that grows too fast: names and times. Run in a process and a folder of its own."""
    os.chdir(folder)
    warnings.simplefilter("ignore")
    found = {}
    for reader, function, takes_bytes in readers(importlib.import_module(f"happywhale_nb.{name}")):
        if reader != "survives_heic" and (slow := grows(function, runs(takes_bytes))):  # a process of its own
            found[reader] = slow
    return found


def in_a_process(function, *given):
    """What a function returns in a process of its own, which is killed if it does not end."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(function, given).get(MOST)


MODULES = sorted(
    found.name.removeprefix("happywhale_nb.")
    for found in pkgutil.walk_packages(happywhale_nb.__path__, "happywhale_nb.")
    if found.name.split(".")[1] in PARTS and "migrations" not in found.name
)


@pytest.mark.soak
@pytest.mark.parametrize("name", MODULES)
def test_every_reader_of_a_text_takes_time_in_proportion(name, tmp_path):
    assert in_a_process(grown, name, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEN_BY_STRANGERS)
def test_readers_of_what_strangers_send_take_time_in_proportion(name, tmp_path):
    assert name in MODULES and grown(name, tmp_path) == {}


def saved(kind):
    """A small image of a format."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(file, kind)
    return file.getvalue()


MARKS = {  # what may come again and again, and where: after how many bytes
    "JPEG": (2, [b"\xff", b"\xff\0", b"\xff\xe5\0\2", b"\xff\xfe\0\2", b"\xff\xda\0\2", b"\xff\xd8"]),
    "PNG": (33, [b"\0\0\0\0tEXt....", b"\0\0\0\4fcTL........", b"IDAT"]),
    "GIF": (13, [b"!\xfe\1a\0", b"!\xff\1a\0", b"!\xf9\4....\0", b",", b"!\xfe\xff" + b"a" * 255]),
    "PPM": (3, [b"#\n", b" ", b"#", b"\n"]),
    "JPEG2000": (12, [b"\0\0\0\x08free", b"\0\0\0\x08jp2h", b"\xff\x64\0\2"]),
    "TIFF": (8, [b"\0\1\0\0", b"II*\0"]),
    "WEBP": (12, [b"JUNK\0\0\0\0", b"EXIF\0\0\0\0", b"ANMF\0\0\0\0"]),
    "BMP": (14, [b"\0\1", b"\0\2"]),
}


def photographs(kind, marks):
    """A format's image with marks again and again: in its head, and at its end."""
    plain, (head, _) = saved(kind), MARKS[kind]
    for mark, at in itertools.product(marks, (head, len(plain))):

        def data(length, mark=mark, at=at):
            return plain[:at] + (mark * length)[:length] + plain[at:]

        yield f"{mark!r} at {at}", data


def taken_or_refused(data):
    """Give bytes to what looks at an upload, and at a file of a folder."""
    jpeg_ends(data)
    with contextlib.suppress(UserError):
        check_photo(data)


@pytest.mark.parametrize("kind", MARKS)
def test_check_photo_of_marks_again_and_again_takes_time_in_proportion(kind):
    few = [bytes([value]) for value in random.Random(0).sample(range(256), 6)]
    assert grows(taken_or_refused, photographs(kind, MARKS[kind][1] + few)) is None


@pytest.mark.soak
@pytest.mark.parametrize("kind", MARKS)
def test_check_photo_of_any_byte_again_and_again_takes_time_in_proportion(kind):
    every = [bytes([value]) for value in range(256)]
    pairs = [bytes([255, value]) for value in range(256)]
    assert grows(taken_or_refused, photographs(kind, [*every, *pairs])) is None


@pytest.mark.soak
def test_every_pattern_used_to_search_takes_time_in_proportion():
    """Patterns that are compiled once: `search` begins at every character."""
    whole = {"core.quiet.NO_CARD", "data.dates._TIME", "data.values._DEGREES", "networks.hubs._REPOSITORY"}  # match
    patterns = {
        f"{module}.{name}": value
        for module in MODULES
        for name, value in vars(importlib.import_module(f"happywhale_nb.{module}")).items()
        if isinstance(value, re.Pattern) and f"{module}.{name}" not in whole
    }
    assert len(patterns) > 10
    slow = {name: grows(one.search, runs(isinstance(one.pattern, bytes))) for name, one in patterns.items()}
    assert {name: told for name, told in slow.items() if told} == {}
