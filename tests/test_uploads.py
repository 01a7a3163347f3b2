"""Uploads: what is no photograph is refused, in a sentence and cheaply; photographs are shown without metadata."""

import errno
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import unicodedata
import warnings
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, TiffImagePlugin, TiffTags

from happywhale_nb.catalogue.uploads import (
    SUFFIX,
    Limits,
    check_photo,
    clean_name,
    count_chunks,
    count_segments,
    count_strips,
    keep_photo,
    show_crop,
    show_photo,
)
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.formats import ENDINGS, heic_reader
from happywhale_nb.imaging.crops import crop_aspect


def picture(size=(120, 80), noise=True):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)) if noise else np.zeros((*size[::-1], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def saved(kind="JPEG", size=(120, 80), noise=True, **how):
    out = io.BytesIO()
    picture(size, noise).save(out, kind, **how)
    return out.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(megabytes, level=9):
    """So many zeros packed, made without holding them."""
    packer, block = zlib.compressobj(level), bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(megabytes)) + packer.flush()


def jpeg_of_size(width, height):
    data = bytearray(saved())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def many_passes(passes):
    """A progressive JPEG whose last pass is there again and again."""
    data = saved(progressive=True, noise=False)
    at = data.rindex(b"\xff\xda")
    return data[:-2] + data[at:-2] * passes + b"\xff\xd9"


HEIC = Path(__file__).parent / "fixtures" / "fin.heic"
KINDS = [kind for kind in ENDINGS if kind not in ("HEIF", "MPO")]  # those that Pillow writes; MPO is JPEG


@lru_cache(maxsize=2)
def every_kind(size=(120, 80)):
    """A photograph of each of `KINDS`, by its kind."""
    how = {"AVIF": {"speed": 10}, "WEBP": {"quality": 90}}
    return {kind: saved(kind, size, **how.get(kind, {})) for kind in KINDS}


def tiff(*entries, rest=b""):
    """A TIFF of these entries, `(tag, count, value)` of LONG, and what follows its directory."""
    directory = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + rest


def bmp_of_runs(width, height, body):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + bytes(1024) + body


def of_size(kind, size):
    """A photograph of a kind whose header tells another size, width and height alike."""
    data = bytearray(every_kind()[kind])
    old = {"GIF": "<HH", "BMP": "<II", "JPEG2000": ">II", "AVIF": ">II", "WEBP": "<HH"}[kind]
    order = (80, 120) if kind == "JPEG2000" and struct.pack(old, 120, 80) not in data else (120, 80)
    assert struct.pack(old, *order) in data, kind
    return bytes(data).replace(struct.pack(old, *order), struct.pack(old, size, size))


def refusal(data, name="fin.jpg", **limits):
    with pytest.raises(UserError) as refused:
        check_photo(data, name, Limits(**limits))
    return str(refused.value)


NOT_PICTURES = {
    "text": (b"just text, nothing else", "not a supported image"),
    "one byte": (b"\xff", "not a supported image"),
    "page": (b"<!doctype html><script>alert(1)</script>", "not a supported image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "not a supported image"),
    "program": (b"\x7fELF\2\1\1" + bytes(99), "not a supported image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a supported image"),
    "pdf": (b"%PDF-1.7\n", "is PDF"),
    "archive": (b"PK\3\4" + bytes(99), "is an archive"),
    "photoshop": (b"8BPS\0\1" + bytes(99), "not a supported image"),
    "raw": (b"FUJIFILMCCD-RAW " + bytes(99), "camera's RAW file"),
    "canon's raw": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(99), "camera's RAW file"),
    "film": (b"\0\0\0\x18ftypisom" + bytes(99), "is a film"),
}


@pytest.mark.parametrize("kind", NOT_PICTURES)
def test_check_photo_of_another_format_named_jpg_is_refused_by_what_it_is(kind):
    data, why = NOT_PICTURES[kind]
    told = refusal(data)
    assert told.startswith("fin.jpg ") and why in told and "JPEG" in told


def test_check_photo_goes_by_the_bytes_and_not_by_the_name():
    assert check_photo(saved("PNG"), "fin.jpg").kind == "png" and check_photo(saved(), "page.html").kind == "jpeg"
    for name in ("fin.jpg", "fin.mp4", "fin.heic", "fin"):
        assert [check_photo(data, name).kind.upper() for data in every_kind().values()] == [*KINDS]


@pytest.mark.parametrize("name", ["fin.NEF", "fin.dng", "fin.orf"])
def test_check_photo_of_a_cameras_raw_file_is_refused_by_its_ending(name):
    assert "camera's RAW file: export it as JPEG" in refusal(saved("TIFF"), name)


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1, 330: 8}])
def test_check_photo_of_a_raw_file_named_tif_is_refused_by_its_tags(tags):
    preview = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        preview.tagtype[tag] = TiffTags.BYTE if tag == 50706 else TiffTags.LONG
        preview[tag] = value
    assert "camera's RAW file" in refusal(saved("TIFF", tiffinfo=preview), "fin.tif")


def test_check_photo_of_heic_without_the_extra_names_it(monkeypatch):
    monkeypatch.setattr("happywhale_nb.catalogue.uploads.heic_reader", lambda: False)
    told = refusal(HEIC.read_bytes(), "IMG_1.HEIC")
    assert "happywhale_nb[heic]" in told and "send it as JPEG" in told


def test_check_photo_gives_bytes_to_the_decoders_of_photographs_alone(monkeypatch):
    """Others of Pillow's start programs, such as Ghostscript for EPS."""
    asked, opened = set(), Image.open

    def watched(file, mode="r", formats=None):
        asked.update(formats)
        return opened(file, mode, formats)

    monkeypatch.setattr(Image, "open", watched)
    for data in (*every_kind().values(), *(data for data, _ in NOT_PICTURES.values())):
        outcome(data)
    assert asked == set(KINDS) and not asked & {"EPS", "PDF", "FPX", "WMF", "MIC", "PSD"}


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_check_photo_and_show_photo_of_several_pages_take_the_first(kind, tmp_path):
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    path = tmp_path / f"a.{kind.lower()}"
    first.save(path, kind, save_all=True, append_images=[second])
    assert check_photo(path.read_bytes(), path.name).width == 40
    assert Image.open(io.BytesIO(show_photo(path))).getpixel((20, 15))[0] > 200


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_check_photo_of_each_kind_with_exif_reads_time_place_and_orientation(kind, orientation, tmp_path):
    exif = with_exif(orientation).tobytes()
    data = saved(kind, noise=False, exif=exif, **({"speed": 10} if kind == "AVIF" else {}))
    seen = check_photo(data, "fin.jpg")
    assert (seen.taken, seen.latitude, seen.longitude) == ("2019-08-17T14:05:09", -44.76, -66.5)
    assert (seen.width, seen.height) == ((120, 80) if orientation < 5 else (80, 120))
    kept = keep_photo(tmp_path, data, seen)
    assert Image.open(io.BytesIO(show_photo(kept))).size == (seen.width, seen.height)


@pytest.mark.skipif(not heic_reader(), reason="HEIC is read with an extra")
def test_check_photo_of_a_heic_reads_its_date_and_of_half_a_heic_is_refused(tmp_path):
    data = HEIC.read_bytes()
    seen = check_photo(data, "IMG_1.jpg")
    assert (seen.kind, seen.width, seen.taken[:10]) == ("heif", 96, "2019-07-13")
    assert keep_photo(tmp_path, data, seen).suffix == ".heic"
    for share in (0.1, 0.3, 0.7, 0.95):
        assert "damaged or cut off" in refusal(data[: int(share * len(data))])


@pytest.mark.skipif(not heic_reader(), reason="HEIC is read with an extra")
def test_check_photo_of_a_heic_that_crashes_its_decoder_is_refused_and_nothing_crashes(monkeypatch):
    data = bytearray(HEIC.read_bytes())
    data[193] = 255  # the type of an item, which the decoder's wrapper takes for text
    assert "damaged" in refusal(bytes(data))
    monkeypatch.setattr("happywhale_nb.catalogue.uploads.ALONE", "import time; time.sleep(9)")
    monkeypatch.setattr("happywhale_nb.catalogue.uploads.PATIENCE", 0.1)
    assert "its decoder crashes" in refusal(HEIC.read_bytes())


@pytest.mark.parametrize("kind", [kind for kind in ENDINGS if kind not in ("HEIF", "MPO")])
def test_keep_photo_of_each_kind_keeps_it_as_it_was_sent_and_shows_it(kind, tmp_path):
    data = every_kind()[kind]
    kept = keep_photo(tmp_path, data, check_photo(data, "fin.jpg"))
    assert kept.suffix in ENDINGS[kind] and kept.read_bytes() == data
    for shown in (show_photo(kept, 60), show_crop(kept, side=64)):
        assert shown.startswith(b"\xff\xd8\xff") and np.asarray(Image.open(io.BytesIO(shown))).std() > 5


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"\xff\xd8\xff\xe0" + bytes(500), b"\x89PNG\r\n\x1a\n"])
def test_check_photo_of_first_bytes_alone_is_refused(start):
    assert "damaged or cut off" in refusal(start)
    assert "damaged or cut off" in refusal(start + b"<html><script>alert(1)</script></html>" * 9)


@pytest.mark.parametrize("how", [{}, {"progressive": True}, *KINDS])
def test_check_photo_of_a_file_cut_off_anywhere_is_refused(how):
    data = every_kind()[how] if isinstance(how, str) else saved(**how)
    check_photo(data)
    for share in (0.05, 0.3, 0.7, 0.95, 0.99):
        assert "damaged or cut off" in refusal(data[: int(share * len(data))])


def test_check_photo_of_a_png_with_a_changed_bit_is_refused():
    data = bytearray(saved("PNG"))
    data[len(data) // 2] ^= 1
    assert "damaged" in refusal(bytes(data))


@lru_cache(maxsize=1)
def wholes():
    """Small photographs to damage."""
    tagged = [saved(kind, size=(40, 30), exif=with_exif().tobytes()) for kind in ("JPEG", "TIFF")]
    return *tagged, *every_kind((40, 30)).values()


damage = st.lists(st.tuples(st.integers(2, 10**6), st.integers(0, 255)), max_size=4)
starts = st.sampled_from(
    [
        *(b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"II*\0", b"MM\0+"),
        *(b"RIFF\0\0\0\0WEBP", b"GIF89a", b"BM", b"P3 ", b"P6 ", b"\xffO\xffQ", b"\0\0\0\x0cjP  "),
        b"\0\0\0\x18ftypavif",
    ]
)


def outcome(data):
    """What `check_photo` makes of bytes; nothing but a `UserError` with a sentence may come."""
    try:
        seen = check_photo(data, "fin.jpg")
    except UserError as error:
        return str(error)
    assert seen.kind in SUFFIX and 0 < seen.width <= 20_000 and 0 < seen.height <= 20_000
    assert seen.sha256 == hashlib.sha256(data).hexdigest()
    assert seen.latitude is None or (abs(seen.latitude) <= 90 and abs(seen.longitude) <= 180)
    return ""


@settings(max_examples=300, deadline=None, derandomize=True)
@given(starts, st.binary(max_size=200))
def test_check_photo_of_any_bytes_is_refused_in_a_sentence(start, rest):
    assert outcome(start + rest).startswith("fin.jpg ") and "\n" not in outcome(start + rest)


def test_check_photo_of_a_damaged_photograph_is_taken_or_refused_in_a_sentence():
    told = []

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.integers(0, len(wholes()) - 1), damage)
    def some(which, changes):
        data = bytearray(wholes()[which])
        for at, value in changes:
            data[at % (len(data) - 2) + 2] = value
        told.append(outcome(bytes(data)))

    some()
    refused = [text for text in told if text]
    assert 20 < len(refused) < len(told) - 20, "both happen"
    assert all(text.startswith("fin.jpg ") and "\n" not in text for text in refused)


AT_THE_LIMIT = {
    "bytes": (lambda data: len(data), {}),
    "pixels": (lambda data: 120 * 80, {}),
    "side": (lambda data: 120, {}),
    "scans": (lambda data: count_segments(data)["scans"], {"progressive": True}),
    "segments": (lambda data: count_segments(data)["segments"], {}),
    "chunks": (count_chunks, {"kind": "PNG"}),
    "strips": (count_strips, {"kind": "TIFF", "strip_size": 1000}),
    "copied": (lambda data: 120 * 80, {"kind": "WEBP"}),
}


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_check_photo_at_a_limit_is_taken_and_above_it_refused(name):
    count, how = AT_THE_LIMIT[name]
    data = saved(**how)
    assert check_photo(data, "", Limits(**{name: count(data)})).width == 120
    assert "at most" in refusal(data, **{name: count(data) - 1})


def test_count_chunks_counts_by_the_lengths_that_they_give():
    assert count_chunks(png(4, 4)) == 2 and count_chunks(png(4, 4, *[chunk(b"tEXt", b"a\0b")] * 5)) == 7
    assert count_chunks(png(4, 4)[:-8]) == 1


@pytest.mark.parametrize(
    "sent",
    [
        png(60_000, 60_000, chunk(b"IDAT", zeros(1))),
        png(2**31 - 1, 2**31 - 1),
        jpeg_of_size(65_535, 65_535),
        png(9_000, 9_000),
        png(20_001, 10, chunk(b"IDAT", zeros(1))),
    ],
    ids=["png", "png of all bits", "jpeg", "png of 81 million", "a long line"],
)
def test_check_photo_of_too_many_pixels_is_refused_by_the_header(sent, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("a pixel was made"))
    told = refusal(sent)
    assert "save it smaller" in told and ("pixels" in told)


SENT_AND_MEASURED = """
import json, re, sys
from pathlib import Path
from happywhale_nb.core.errors import UserError
from happywhale_nb.catalogue.uploads import check_photo

def peak():
    # most memory of this process so far, in MB
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

check_photo(Path(sys.argv[1]).read_bytes())
for path in sys.argv[2:]:
    data, before = Path(path).read_bytes(), peak()
    try:
        check_photo(data, "fin.png")
        told = ""
    except UserError as error:
        told = str(error)
    print(json.dumps([told, peak() - before]))
"""


GREY = [(256, 1, 1000), (257, 1, 1000), (258, 1, 8), (259, 1, 1), (262, 1, 1), (277, 1, 1)]
STRIP = [(278, 1, 2**31), (273, 1, 150), (279, 1, 10**6)]
TILE = [(322, 1, 30_000), (323, 1, 30_000), (324, 1, 150), (325, 1, 10**6)]


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read in Linux's way")
def test_check_photo_of_little_that_unpacks_to_much_takes_no_memory(tmp_path):
    pixels, packed = chunk(b"IDAT", zlib.compress(bytes(4 * 13))), zeros(300, 1)
    bombs = {
        "pixels": png(60_000, 60_000, chunk(b"IDAT", packed)),
        "more pixels than said": png(4, 4, chunk(b"IDAT", packed)),
        "text": png(4, 4, chunk(b"zTXt", b"a\0\0" + packed), pixels),
        "texts": png(4, 4, *[chunk(b"zTXt", b"a\0\0" + zeros(1))] * 300, pixels),
        "international text": png(4, 4, chunk(b"iTXt", b"a\0\1\0\0\0" + packed), pixels),
        "colour profile": png(4, 4, chunk(b"iCCP", b"a\0\0" + packed), pixels),
        "empty chunks": png(4, 4, chunk(b"tEXt", b"a\0b") * 500_000, pixels),
        "passes": many_passes(20_000),
        "strips": tiff(*GREY, (273, 2_000_000, 200), (279, 2_000_000, 200), rest=bytes(8_000_000)),
        "a tile": tiff(*GREY, *TILE, rest=packed),
        "a strip": tiff(
            *GREY[:3], (259, 1, 8), *GREY[4:], (278, 1, 2**31), (273, 1, 150), (279, 1, 10**6), rest=packed
        ),
        "TIFF of pixels": tiff((256, 1, 60_000), (257, 1, 60_000), *GREY[2:], (273, 1, 8), (279, 1, 8)),
        "PPM": b"P6 60000 60000 255\n" + bytes(999),
        "PPM of text": b"P3 3000 3000 255\n" + b"1 " * 10**6,
        "BMP of runs": bmp_of_runs(9_000, 8_000, b"\1\1\0\0" * 9_000),
        **{f"{kind} of pixels": of_size(kind, 16_000) for kind in ("GIF", "BMP", "JPEG2000", "AVIF", "WEBP")},
        "no bomb, 100 MB of pixels": png(7_000, 5_000, chunk(b"IDAT", zeros(101, 1))),
    }
    assert all(len(data) < 10e6 for data in bombs.values())
    paths = [tmp_path / "plain", *(tmp_path / name for name in bombs)]
    for path, data in zip(paths, [saved("PNG"), *bombs.values()], strict=True):
        path.write_bytes(data)
    command = [sys.executable, "-c", SENT_AND_MEASURED, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = dict(zip(bombs, map(json.loads, done.stdout.splitlines()), strict=True))
    told, memory = found.pop("no bomb, 100 MB of pixels")
    assert not told and 80 < memory < 190, "memory is measured, and there are no two copies"
    assert {name for name, row in found.items() if not row[0]} <= {"more pixels than said"}
    assert {name: row for name, row in found.items() if row[1] > 70} == {}


def test_check_photo_of_too_many_passes_or_chunks_is_refused_before_a_pixel_is_made(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("a pixel was made"))
    assert "passes" in refusal(many_passes(500))
    monkeypatch.setattr(Image, "open", lambda *given, **how: pytest.fail("it was opened"))
    assert "20,102 chunks" in refusal(png(4, 4, chunk(b"tEXt", b"a\0b") * 20_100))


def test_count_segments_of_a_cameras_jpeg_is_within_the_limits_and_of_many_passes_is_not():
    usual = saved(progressive=True)
    assert 5 < count_segments(usual)["scans"] <= 12 and check_photo(usual).kind == "jpeg"
    assert count_segments(saved()) == {"scans": 1, "segments": 10, "padding": 0}
    assert count_segments(many_passes(500))["scans"] == 31 and "31 passes or more" in refusal(many_passes(500))


@pytest.mark.parametrize(
    "part,put_in",
    [
        ("padding", b"\xff" * 200_000),
        ("padding", b"\xff\x00" * 100_000),
        ("segments", b"\xff\xe5\0\2" * 10_000),
        ("segments", b"\xff\xfe\0\2" * 10_000),
    ],
)
def test_check_photo_of_a_jpeg_of_much_padding_or_many_segments_is_refused_before_it_is_opened(
    part, put_in, monkeypatch
):
    whole = saved()
    assert check_photo(whole[:2] + put_in[:20] + whole[2:]).kind == "jpeg", "a little is allowed"
    monkeypatch.setattr(Image, "open", lambda *given, **how: pytest.fail("it was opened"))
    assert part in refusal(whole[:2] + put_in + whole[2:])


def test_check_photo_of_too_many_bytes_or_none_is_refused_before_they_are_looked_at():
    told = refusal(b"\xff\xd8\xff" + bytes(2_000), bytes=1_000)
    assert "at most" in told and "save it smaller" in told and "empty" in refusal(b"")


letters = st.one_of(
    st.characters(exclude_categories=()), st.sampled_from("/\\.. \t\r\n\0\x1b\u2028\u202e\u2067\ud800\ue000\u0301eé")
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.none() | st.text(letters, max_size=20) | st.text(letters, min_size=95, max_size=130))
@example("\ud800fin.jpg")
@example("x" * 200 + ".\u0301jpg")
def test_clean_name_of_any_text_is_one_safe_path_part(name):
    shown = clean_name(name)
    assert 0 < len(shown) <= 100 and shown == unicodedata.normalize("NFC", shown)
    assert not {"/", "\\"} & set(shown) and PurePosixPath(shown).parts == (shown,)
    assert not any(unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" for c in shown)
    if len(shown) < 100:  # one that was cut may end in a blank or a period
        assert shown == " ".join(shown.split()).strip(". ") and clean_name(shown) == shown
    assert refusal(b"", name).startswith(f"{shown} is empty")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\ud800fin.jpg", "fin.jpg"),
        ("e\u0301.jpg", "\u00e9.jpg"),
        ("x" * 99 + ".jpg", "x" * 96 + ".jpg"),
        ("x" * 95 + ".jpeg", "x" * 95 + ".jpeg"),
        ("x" * 200 + ".12345678", "x" * 91 + ".12345678"),
        ("x" * 200 + ".123456789", "x" * 100),
    ],
)
def test_clean_name_keeps_short_suffixes_of_names_that_it_cuts(name, shown):
    assert clean_name(name) == shown


def with_exif(orientation=6, taken="2019:08:17 14:05:09", gps=None):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a camera"
    exif.get_ifd(0x8769)[0x9003] = taken
    exif.get_ifd(0x8825).update(gps or {1: "S", 2: (44.0, 45.0, 36.0), 3: "W", 4: (66.0, 30.0, 0.0)})
    return exif


def test_check_photo_reads_time_place_and_upright_size():
    seen = check_photo(saved(exif=with_exif()))
    assert (seen.width, seen.height, seen.taken) == (80, 120, "2019-08-17T14:05:09")
    assert (seen.latitude, seen.longitude) == (-44.76, -66.5)
    flat = check_photo(saved("PNG", exif=with_exif(orientation=1)))
    assert (flat.width, flat.height, flat.longitude) == (120, 80, -66.5)


@pytest.mark.parametrize(
    ("taken", "gps"),
    [
        ("0000:00:00 00:00:00", {1: "N", 2: (91.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)}),
        ("yesterday", {1: "N", 2: (44.0, 0.0, 0.0)}),
        ("2019:13:45 99:99:99", {1: "?", 2: (4.0, 0.0, 0.0), 3: "E", 4: (4.0, 0.0, 0.0)}),
        ("\0\0\0", {1: "N", 2: (4.0, 0.0), 3: "", 4: (4.0, 0.0, 0.0)}),
    ],
)
def test_check_photo_takes_nonsense_in_exif_as_not_said(taken, gps):
    seen = check_photo(saved(exif=with_exif(taken=taken, gps=gps)))
    assert (seen.taken, seen.latitude, seen.longitude) == ("", None, None) and seen.width == 80


def test_check_photo_of_a_degree_divided_by_zero_has_no_place():
    data = saved(exif=with_exif())
    order = "<" if b"Exif\0\0II" in data else ">"
    one, none = struct.pack(order + "II", 44, 1), struct.pack(order + "II", 44, 0)
    assert data.count(one) == 1
    seen = check_photo(data.replace(one, none))
    assert (seen.latitude, seen.longitude, seen.taken) == (None, None, "2019-08-17T14:05:09")


def test_check_photo_with_broken_exif_is_taken():
    data = saved(exif=with_exif())
    at, rng = data.index(b"Exif\0\0") + 6, np.random.default_rng(1)
    for length in (4, 8, 40, 100):
        broken = bytearray(data)
        broken[at : at + length] = rng.integers(0, 256, length).astype(np.uint8).tobytes()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            assert check_photo(bytes(broken)).kind == "jpeg"
        assert not heard, "nothing is printed"


def test_show_photo_and_show_crop_have_no_metadata_and_their_size(tmp_path):
    secret = b"54 Whale Street"
    data = saved(exif=with_exif(), comment=secret, icc_profile=secret * 20)
    assert secret in data and b"a camera" in data
    (tmp_path / "fin.jpg").write_bytes(data)
    for shown in (show_photo(tmp_path / "fin.jpg", 60), show_crop(tmp_path / "fin.jpg", (5, 5, 60, 90), side=64)):
        opened = Image.open(io.BytesIO(shown))
        assert not dict(opened.getexif()) and set(opened.info) <= {
            *("jfif", "jfif_version", "jfif_unit", "jfif_density")
        }
        assert secret not in shown and b"a camera" not in shown and b"Exif" not in shown
    assert Image.open(io.BytesIO(show_photo(tmp_path / "fin.jpg", 60))).size == (40, 60)
    assert Image.open(io.BytesIO(show_photo(tmp_path / "fin.jpg"))).size == (80, 120), "never enlarged"
    with pytest.raises(UserError, match="is missing"):
        show_photo(tmp_path / "other.jpg")
    (tmp_path / "half.jpg").write_bytes(data[:-900])
    with pytest.raises(UserError, match=r"half\.jpg cannot be decoded"):
        show_photo(tmp_path / "half.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_show_photo_and_show_crop_of_any_orientation_are_upright(tmp_path, orientation):
    """The upper left of what the camera wrote lies where EXIF says."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[:20, :30] = 255
    Image.fromarray(pixels).save(tmp_path / "fin.jpg", exif=with_exif(orientation), quality=95)
    whole, crop = (
        np.asarray(Image.open(io.BytesIO(shown)))[..., 0] > 127
        for shown in (show_photo(tmp_path / "fin.jpg"), show_crop(tmp_path / "fin.jpg", side=80))
    )
    below, right = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    assert whole.shape == ((80, 120) if orientation < 5 else (120, 80))
    for seen in (whole, crop):
        row, column = -3 if below else 2, -3 if right else 2
        assert seen[row, column] and seen.mean() == pytest.approx(1 / 16, abs=0.01)
    seen = check_photo((tmp_path / "fin.jpg").read_bytes())
    assert (seen.height, seen.width) == whole.shape


def test_crop_aspect_is_that_of_the_box_with_its_margin_inside_the_photograph():
    assert crop_aspect(300, 200) == 1.5 and crop_aspect(300, 200, keep_aspect=True) == 1
    assert crop_aspect(300, 200, (100, 50, 200, 100), margin=0) == 2
    assert crop_aspect(300, 200, (50, 25, 100, 50), (150, 100), margin=0.1) == pytest.approx(2)
    assert crop_aspect(300, 200, (0, 0, 300, 100), margin=0.05) == pytest.approx(300 / 105)


def test_keep_photo_twice_writes_one_file_named_by_its_bytes_once(tmp_path):
    data = saved("PNG")
    seen = check_photo(data, "../../fin.jpg")
    first = keep_photo(tmp_path, data, seen)
    changed = first.stat().st_mtime_ns
    assert keep_photo(tmp_path, data, seen) == first and first.stat().st_mtime_ns == changed
    assert first == tmp_path / "photos" / seen.sha256[:2] / f"{seen.sha256}.png" and first.read_bytes() == data
    with pytest.raises(ValueError, match="other bytes"):
        keep_photo(tmp_path, data + b"x", seen)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [first]


def test_keep_photo_leaves_a_file_complete_or_not_at_all(tmp_path, monkeypatch):
    data, order = saved(), []
    seen = check_photo(data)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):

        def full(handle):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        keep_photo(tmp_path, data, seen)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: order.append("replace") or replace(*paths))
    kept = keep_photo(tmp_path, data, seen)
    assert order[:2] == ["fsync", "replace"], "the bytes are on the disk before the name is"
    kept.write_bytes(data[:100])
    assert keep_photo(tmp_path, data, seen).read_bytes() == data, "a file cut off is mended"
    assert isinstance(kept, Path) and kept.suffix == ".jpg"
