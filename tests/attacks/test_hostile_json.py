"""JSON files of users with a hostile value in each place, and links that lead out of a folder: one line, or read."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import happywhale_nb
from happywhale_nb.catalogue.starting import RECORD, Start
from happywhale_nb.catalogue.store import CARD, Card
from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import parse_json, read_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.folder_rules import RULES, read_rules
from happywhale_nb.data.importers import import_lines, plan_source
from happywhale_nb.data.layouts import OUTSIDE_FILES, walk_files
from happywhale_nb.networks.encoder_card import EncoderCard, parse_card
from happywhale_nb.networks.new_card import read_expected
from happywhale_nb.networks.ready_cards import read_ready_card

DIGITS = "9" * 5000
DEEP = "[" * 900 + "]" * 900
DEEPER = '{"a":' * 100_000 + "1" + "}" * 100_000
HOSTILE = [
    "null",
    "true",
    "[]",
    "{}",
    '""',
    "-1",
    "1e999",
    "NaN",
    "0.5",
    '"x"',
    "[1]",
    '[{"a": []}]',
    '{"b": [1, "c"]}',
]
HOSTILE += ['{"b": [1, "c"]}', DIGITS, "9" * 400, DEEP, DEEPER, '"\\ud800"', '"\\u0000"', '"../../x"']


def places(value, path=()):
    """The paths of all values in a value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def with_one(value, path, text, mark="@here@"):
    """JSON text of a value in which one place has another text."""
    copy = json.loads(json.dumps(value))
    if not path:
        return text
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = mark
    return json.dumps(copy).replace(f'"{mark}"', text)


def photograph(path, side=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8)).save(path)


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 40, "date": "2020-01-02"}],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 2, "bbox": [1, 2, 30, 30], "attributes": {"individual_id": "Ann"}}
    ],
    "categories": [{"id": 2, "name": "beluga"}],
}
PACKAGE = {"resources": [{"name": name, "path": f"{name}.csv"} for name in ("media", "observations", "deployments")]}
TABLES = {
    "media": "mediaID,deploymentID,timestamp,filePath,fileName\nm1,d1,2020-01-02T03:04:05Z,a.jpg,a.jpg\n",
    "observations": "observationID,deploymentID,mediaID,observationLevel,observationType,individualID\n"
    "o1,d1,m1,media,animal,Ann\n",
    "deployments": "deploymentID,locationName\nd1,Ness\n",
}


def import_it(folder, source):
    import_lines(plan_source(source))


def coco(folder, text):
    photograph(folder / "a.jpg") if not (folder / "a.jpg").exists() else None
    (folder / "c.json").write_text(text)
    import_it(folder, folder / "c.json")


def camtrap(folder, text):
    photograph(folder / "a.jpg") if not (folder / "a.jpg").exists() else None
    for name, table in TABLES.items():
        (folder / f"{name}.csv").write_text(table)
    (folder / "datapackage.json").write_text(text)
    import_it(folder, folder)


def by(name, reader):
    def read(folder, text):
        (folder / name).write_text(text)
        reader(folder / name)

    return read


ENCODER = EncoderCard(
    *("little", "little.onnx", "0" * 64, 64, 32, "area", "rgb", "nchw"),
    *(255.0, (0.5,) * 3, (0.5,) * 3, 8, "MIT", True),
)
CARDS = Path(happywhale_nb.__file__).parent / "networks" / "ready_cards.json"


READERS = {
    "COCO": (coco, COCO),
    "Camtrap DP": (camtrap, PACKAGE),
    "rules of a folder": (by(RULES, lambda path: read_rules(path.parent)), {"encounters": "day", "dates": "dmy"}),
    "the card of a catalogue": (
        by(CARD, lambda path: Card.read(path.parent)),
        asdict(Card("a", "b", "", encoder={"a": 1})),
    ),
    "the record of a start": (by(RECORD, lambda path: Start.read(path.parent)), asdict(Start("a", "b", "c"))),
    "an embedding": (by("e.json", read_expected), [0.5, 0.5]),
    "a card of an encoder": (
        by("c.json", lambda path: parse_card(read_json(path), path)),
        json.loads(json.dumps(asdict(ENCODER))),
    ),
    "a card of a hub": (by("r.json", read_ready_card), read_json(CARDS)[0]),
}


def tried(name, folder, most=None):
    """Put hostile texts at places: all at all, or as many as wanted. Returns how many were refused."""
    reader, valid = READERS[name]
    reader(folder, json.dumps(valid))
    pairs = [(path, text) for path in places(valid) for text in HOSTILE]
    refused = 0
    for path, text in random.Random(7).sample(pairs, min(most or len(pairs), len(pairs))):
        try:
            reader(folder, with_one(valid, path, text))
        except UserError as error:
            first = str(error).splitlines()[0]
            assert 0 < len(first) < 1000, f"{name}, {path}, {text[:40]}: {first[:200]}"
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}, {path}, {text[:40]}: {error!r}") from error
    return refused


@pytest.mark.parametrize("name", READERS)
def test_hostile_value_at_each_place_is_read_or_refused_in_a_line(name, tmp_path):
    assert tried(name, tmp_path, 30)


@pytest.mark.soak
@pytest.mark.parametrize("name", READERS)
def test_all_hostile_values_at_each_place_are_read_or_refused_in_a_line(name, tmp_path):
    assert tried(name, tmp_path)


@pytest.mark.parametrize("text", [DIGITS, DEEP, DEEPER, "", "[", "nan", "{1: 2}"])
def test_json_that_is_no_json_or_too_deep_is_a_value_error(text, tmp_path):
    with pytest.raises(ValueError):
        parse_json("[" + text + "]" if text == DIGITS else text if text != "nan" else "nan!")
    (tmp_path / "a.json").write_text(text if text != "nan" else "nan!")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


# --- links


@pytest.fixture
def linked(tmp_path):
    """A folder of photographs with links: to a photograph of it, to one outside, and to a folder outside."""
    photograph(tmp_path / "secret" / "s.jpg", 50)
    photograph(tmp_path / "mine" / "Ann" / "a.jpg", 40)
    photograph(tmp_path / "mine" / "Bo" / "b.jpg", 44)
    try:
        (tmp_path / "mine" / "Ann" / "out.jpg").symlink_to(tmp_path / "secret" / "s.jpg")
        (tmp_path / "mine" / "Ann" / "in.jpg").symlink_to(tmp_path / "mine" / "Bo" / "b.jpg")
        (tmp_path / "mine" / "Cem").symlink_to(tmp_path / "secret")
    except OSError:
        pytest.skip("this system lets nobody make links")
    return tmp_path


def run(*words):
    return CliRunner().invoke(main, ["data", "import", *map(str, words)])


@pytest.mark.parametrize("copy", [["--copy"], []])
def test_links_out_of_the_imported_folder_are_left_out_counted_and_named(linked, copy):
    done = run(linked / "mine", "--to", linked / "made", *copy)
    assert done.exit_code == 0, done.output
    made = [path.resolve() for path in (linked / "made").rglob("*.jpg")]
    secret = (linked / "secret" / "s.jpg").read_bytes()
    assert made and not [path for path in made if path.read_bytes() == secret]
    assert OUTSIDE_FILES.partition(":")[0] in done.output and "out.jpg" in done.output
    followed = run(linked / "mine", "--to", linked / "all", "--follow-links", *copy)
    assert followed.exit_code == 0
    assert [path for path in (linked / "all").rglob("*.jpg") if path.read_bytes() == secret]


def test_link_out_of_the_folder_that_a_table_names_is_refused(linked):
    (linked / "mine" / "t.csv").write_text("image,individual_id\nAnn/a.jpg,Ann\nAnn/out.jpg,Ann\n")
    refused = run(linked / "mine" / "t.csv", "--to", linked / "made", "--copy")
    assert refused.exit_code == 2 and "out.jpg is a link to a file outside the folder" in refused.output
    assert not (linked / "made").exists()
    left = run(linked / "mine" / "t.csv", "--to", linked / "made", "--copy", "--skip-missing")
    assert left.exit_code == 0 and "out.jpg" in left.output
    assert len(list((linked / "made").rglob("*.jpg"))) == 1
    followed = run(linked / "mine" / "t.csv", "--to", linked / "all", "--copy", "--follow-links")
    assert followed.exit_code == 0 and len(list((linked / "all").rglob("*.jpg"))) == 2


def test_a_link_to_the_folder_itself_and_one_inside_it_are_followed(linked):
    (linked / "way").symlink_to(linked / "mine")
    files, left = walk_files(linked / "way")
    assert [path.name for path in files] == ["a.jpg", "in.jpg", "b.jpg"]
    assert {len(kind.names) for kind in left} == {1}
