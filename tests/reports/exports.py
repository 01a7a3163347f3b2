"""What the rows about exports of a catalogue must come to."""

import io
import re
import shutil
import zipfile

import openpyxl
from click.testing import CliRunner
from PIL import Image

from happywhale_nb.catalogue.example import example_catalogue
from happywhale_nb.catalogue.upload_photos import Metadata, ingest_uploads
from happywhale_nb.cli.main import main


def phone_photo(colour):
    """The bytes of a photograph of one colour, so that no two are alike."""
    data = io.BytesIO()
    Image.new("RGB", (120, 80), colour).save(data, "JPEG")
    return data.getvalue()


def export(catalogue, *words):
    """`happywhale catalogue export … wildbook`: what it prints."""
    done = CliRunner().invoke(main, ["catalogue", "export", str(catalogue.folder), "wildbook", *map(str, words)])
    assert done.exit_code == 0 and "Traceback" not in done.output, done.output
    return done.output


def media_of(sheet):
    """The names of photographs in a sheet, by row."""
    heads, *rows = openpyxl.load_workbook(sheet).active.iter_rows(values_only=True)
    columns = [i for i, head in enumerate(heads) if head.startswith("Encounter.mediaAsset")]
    return [[row[i] for i in columns if row[i]] for row in rows]


def two_photographs_of_one_name(reports, out):
    """Two photographs called image.jpg: names that differ, the files to go with them, and what Wildbook refuses."""
    catalogue, embedder = example_catalogue(out / "c", individuals=3, photos=6, waiting=2)
    files = [("image.jpg", phone_photo("navy")), ("image.jpg", phone_photo("teal"))]
    number = ingest_uploads(catalogue, embedder, "Ann", files, metadata=Metadata(name="phones", date="2024-07-01"))
    printed = export(catalogue, "-o", out / "sheet.xlsx", "--submitter", "ana")
    assert "2 photographs have another name in the sheet ('image.jpg' is 'image_" in printed
    assert "take the photographs with it" in printed and "Wildbook will refuse this sheet:" in printed
    assert re.search(r"Row \d+, encounter phones: it has no location; a place or a position is required", printed)
    assert "encounter phones: it has no species" in printed and "another photograph, too" not in printed
    names = [name for row in media_of(out / "sheet.xlsx") for name in row]
    renamed = sorted(name for name in names if name.startswith("image_"))
    assert len(names) == len({name.casefold() for name in names}) == 10 and len(renamed) == 2
    export(catalogue, "-o", out / "all.zip", "--photos")
    with zipfile.ZipFile(out / "all.zip") as archive:
        assert sorted(archive.namelist()) == sorted([*names, "wildbook.xlsx"])
        assert {archive.read(name) for name in renamed} == {data for _, data in files}
        assert media_of(io.BytesIO(archive.read("wildbook.xlsx"))) == media_of(out / "sheet.xlsx")
    shutil.rmtree(catalogue.folder / "photos")
    printed = export(catalogue, "-o", out / "fewer.zip", "--photos")
    assert printed.count("image.jpg is missing: left out") == 2 and number > 0
    assert len(zipfile.ZipFile(out / "fewer.zip").namelist()) == 9
    catalogue.close()


CASES = {"two photographs called image.jpg (as phones": two_photographs_of_one_name}
