"""`catalogue build` of other people's tables: what is read, what is refused, and that nothing is half made.

The network is a stand-in without weights; tables and messages do not depend on it.
"""

from contextlib import contextmanager
from unittest.mock import patch

from click.testing import CliRunner

from happywhale_nb.catalogue import build
from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.listings import sightings
from happywhale_nb.catalogue.store import CARD, Catalogue
from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import write_json


@contextmanager
def stand_in(out):
    """A model's files in `out`, and an embedder that needs none of them."""
    folder = out / "model"
    folder.mkdir(exist_ok=True)
    (folder / "model.keras").write_bytes(b"none")
    write_json(folder / "config.json", {"parameters": {"model": "colours", "fold": 0}, "trained_on": []})
    with patch.object(build, "_load_embedder", lambda model, detector: ColourEmbedder()):
        yield folder / "model.keras"


def build_of(data, out, name="catalogue"):
    """Run `catalogue build`: exit code, what it printed, and the table of photographs (None if nothing was made)."""
    with stand_in(out) as model:
        words = ["catalogue", "build", data, "--model", model, "--to", out / name]
        result = CliRunner().invoke(main, list(map(str, words)))
    printed = result.output + getattr(result, "stderr", "")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in printed
    if not (out / name / CARD).is_file():
        return result.exit_code, printed, None
    opened = Catalogue(out / name)
    with opened.reading() as session:
        table = sightings(session).set_index("photo").sort_index()
    opened.close()
    return result.exit_code, printed, table


def import_of(table, out, *options):
    """Run `data import` of a table: the data folder. Raises `AssertionError` if it is refused."""
    words = ["data", "import", table, "--to", out / "data", "--species", "fin_whale", *options]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output + getattr(result, "stderr", "")
    return out / "data"


def reads(first, words=()):
    """An outcome: all three photographs, two of Ann, and of the first this encounter, date and place."""

    def outcome(folder):
        def run(reports, out):
            code, printed, table = build_of(reports / folder, out)
            assert code == 0, printed
            assert [word for word in words if word not in printed] == [], printed
            assert len(table) == 3 and "3 photographs added" in printed
            assert sorted(table["individual"]) == sorted(["Ann", "Ann", table["individual"].iloc[-1]])
            row = table.loc["p0.jpg"]
            assert (row["encounter"], row["date"], row["place"]) == first, dict(row)

        return run

    return outcome


def empty_is_told(reports, out):
    code, printed, table = build_of(reports / "data" / "encounters_empty", out)
    assert (code, table) == (2, None), (code, printed)
    lines = printed.splitlines()
    assert "encounters.csv" in lines[0] and "empty" in lines[0] and len(set(lines)) == 1, printed


def dates_build(reports, out):
    """What can be read arrives in one form; the cells that cannot were told at import."""
    data = import_of(reports / "tables" / "dates" / "t.csv", out, "--dates", "dmy", "--skip-faulty")
    code, printed, made = build_of(data, out)
    assert code == 0, printed
    assert len(made) == 16 and made["individual"].nunique() == 4
    days = {photo[:3]: date[:10] for photo, date in made["date"].items()}
    assert {days[f"p{i:02}"] for i in (0, 3, 4, 5, 6, 7, 8, 10, 11)} == {"2019-07-13"}, days
    assert (days["p02"], days["p14"], days["p15"]) == ("2019-08-07", "2019", "2019-07")
    assert {days[photo] for photo in ("p01", "p09", "p12", "p13")} == {""}, days


def commas_build(reports, out):
    data = import_of(reports / "tables" / "semicolon_comma_header" / "t.csv", out)
    code, printed, made = build_of(data, out)
    assert code == 0 and len(made) == 3, printed
    assert set(zip(made["latitude"], made["longitude"], strict=True)) == {(57.68, -4.03)}


def sides_build(reports, out):
    data = import_of(reports / "tables" / "sides" / "t.csv", out)
    code, printed, made = build_of(data, out)
    assert code == 0, printed
    assert made["side"].to_dict() == {"p0.jpg": "left", "p1.jpg": "right", "p2.jpg": ""}


CASES = {
    "data/encounters_semicolon": reads(("S1", "2019-07-01", "Bay"), ["separated by"])("data/encounters_semicolon"),
    "data/encounters_cp1252": reads(("S1", "2019-07-01", "Søndre"), ["Windows-1252"])("data/encounters_cp1252"),
    "data/encounters_capitals": reads(("S1", "2019-07-01", "Bay"))("data/encounters_capitals"),
    "data/encounters_trailing_comma": reads(("S1", "2019-07-01", "Bay"))("data/encounters_trailing_comma"),
    "data/encounters_empty": empty_is_told,
    "tables/dates": dates_build,
    "tables/semicolon_comma_header": commas_build,
    "tables/sides": sides_build,
}
