"""The first hour of a lab: a folder of photographs becomes a catalogue at once, goes on where it was stopped, and keeps
to an encoder's licence. By an embedder that needs no network."""

import io
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openpyxl
import pandas as pd
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from happywhale_nb.catalogue import build, starting
from happywhale_nb.catalogue import ingest as intake
from happywhale_nb.catalogue.embedders import model_source
from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.licences import Licence
from happywhale_nb.catalogue.matching import Matcher, match_encounter
from happywhale_nb.catalogue.schema import Embedding, Encounter, Photo
from happywhale_nb.catalogue.starting import (
    TRAINING_PAYS_FROM,
    boxes_line,
    plan_start,
    start_catalogue,
    take_in,
    training_line,
)
from happywhale_nb.catalogue.store import Card, Catalogue
from happywhale_nb.catalogue.training_photos import TrainedOn, trained_on
from happywhale_nb.cli.main import main
from happywhale_nb.core.artifacts import fingerprint, read_json, write_json
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.paths import find_checkout
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.networks.encoder_card import EncoderCard, files_digest, read_card, write_card
from happywhale_nb.networks.encoders import copy_encoder
from happywhale_nb.retrieval import identifier
from happywhale_nb.retrieval.adapter import read_adapter, write_adapter
from happywhale_nb.retrieval.adapters import AdapterChoice, fit_adapter
from happywhale_nb.server.app import make_app
from happywhale_nb.server.state import AppState, Options

NAMES = []  # of the photographs that the stand-in has embedded


class StandIn(ColourEmbedder):
    """Stands in for `networks.embedder.Embedder`: mean colours, with card and adapter of an encoder's folder."""

    def __init__(self, folder, detector=None):
        self.card, adapter = read_card(folder), Path(folder) / "adapter.npz"
        self.adapter = read_adapter(adapter) if adapter.is_file() else None
        self.width = 48 if self.adapter is None else self.adapter.matrix.shape[1]
        self.fingerprint = fingerprint(self.card.sha256, self.adapter and self.adapter.fingerprint)

    def embed(self, paths, boxes=None, quiet=True):
        NAMES.extend(Path(path).name for path in paths)
        vectors = super().embed(paths, boxes)
        return vectors if self.adapter is None else self.adapter.transform(vectors)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """No network is loaded."""
    NAMES.clear()
    monkeypatch.setitem(sys.modules, "happywhale_nb.networks.embedder", SimpleNamespace(Embedder=StandIn))
    monkeypatch.setattr(build, "learn_no_animal", lambda catalogue, embedder: None)


def make_encoder(folder, content=b"net", **known):
    """An encoder's folder that passes for one made elsewhere."""
    folder.mkdir(parents=True)
    (folder / "net.onnx").write_bytes(content)
    values = {"name": "borrowed", "licence": "Apache-2.0", "commercial": True, "source": "https://example.org"} | known
    nothing = {"scale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3, "dimension": 48, "resize": "area"}
    pixels = {"width": 16, "height": 16, "colours": "rgb", "layout": "nhwc"}
    write_card(
        folder, EncoderCard(file="net.onnx", sha256=files_digest([folder / "net.onnx"]), **values, **nothing, **pixels)
    )
    return folder


@pytest.fixture
def encoder(tmp_path):
    return make_encoder(tmp_path / "borrowed")


@pytest.fixture
def lab(tiny, tmp_path):
    """Photographs in folders by animal, four that nobody has named, and what else lies about."""
    folder = tmp_path / "lab"
    for row in read_dataset(tiny).train.head(24).itertuples():
        (folder / row.individual_id).mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny / "train_images" / row.image, folder / row.individual_id)
    (folder / "unknown").mkdir()
    for path in sorted((tiny / "test_images").iterdir())[:4]:
        shutil.copy(path, folder / "unknown")
    (folder / "notes.txt").write_text("windy")
    return folder


def start(lab, place, encoder, log=lambda line: None, **more):
    """What `happywhale start` does but for the page."""
    plan = plan_start(lab, place, place / "data" / "lab", str(encoder or ""), more.pop("options", None))
    return start_catalogue(plan, place, take_in(plan, place, log), log=log, **more)


def ended(built):
    built.catalogue.close()
    return built


def counts(place):
    catalogue = Catalogue(place)
    with catalogue.reading() as session:
        number = {
            table: session.scalar(select(func.count()).select_from(table)) for table in (Photo, Embedding, Encounter)
        }
    catalogue.close()
    return number


def test_start_again_embeds_only_new_photographs_and_keeps_the_encoder(lab, tiny, encoder, tmp_path):
    place, lines = tmp_path / "catalogue", []
    first = ended(start(lab, place, encoder, lines.append))
    assert first.added == 28 and sorted(NAMES) == sorted(path.name for path in lab.glob("*/*.jpg"))
    assert any("animal (" in line for line in lines) and any("notes.txt" in line for line in lines)
    NAMES.clear()
    (lab / "Zoë").mkdir()
    new = sorted((tiny / "test_images").iterdir())[5]
    shutil.copy(new, lab / "Zoë" / "new.jpg")
    built = ended(start(lab, place, ""))
    assert built.added == 1 and NAMES == ["new.jpg"] and built.embedder.fingerprint == first.embedder.fingerprint
    assert counts(place)[Photo] == 29 and starting.Start.read(place).encoder == str(encoder)
    assert (model_source(place / "model") / "net.onnx").read_bytes() == b"net"


@pytest.mark.slow
def test_start_of_another_folder_or_encoder_is_refused_with_the_remedy(lab, tiny_copy, encoder, tmp_path):
    place = tmp_path / "catalogue"
    ended(start(lab, place, encoder))
    with pytest.raises(UserError, match="--name or --catalogue"):
        start(tiny_copy, place, encoder)
    with pytest.raises(UserError, match=r"catalogue re-embed .*efficientnet_lite1"):
        start(lab, place, "efficientnet_lite1")
    with pytest.raises(UserError, match="there is no folder"):
        start(tmp_path / "gone", tmp_path / "other", encoder)
    assert not (tmp_path / "other").exists()
    (tmp_path / "third" / "data" / "lab").mkdir(parents=True)
    (tmp_path / "third" / "data" / "lab" / "train.csv").write_text("image\n")
    with pytest.raises(UserError, match="already exists"):
        start(lab, tmp_path / "third", encoder)


@pytest.mark.slow
def test_start_of_a_data_folder_uses_it_as_it_is(tiny, encoder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    built = ended(start(tiny, tmp_path / "catalogue", encoder))
    assert built.added == 58 and built.catalogue.data == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


@pytest.mark.slow
def test_start_with_a_spreadsheet_beside_photographs_leaves_out_what_is_missing_by_name(tiny, encoder, tmp_path):
    folder, lines = tmp_path / "season", []
    shutil.copytree(tiny / "train_images", folder / "pictures")
    table = read_dataset(tiny).train.head(30)
    book = openpyxl.Workbook()
    book.active.append(["Photo", "Whale ID", "Date"])
    for row in table.itertuples():
        book.active.append([row.image, row.individual_id, "2026-07-01"])
    book.active.append(["gone.jpg", "Ana", "2026-07-01"])
    book.save(folder / "sightings.xlsx")
    built = ended(start(folder, tmp_path / "catalogue", encoder, lines.append))
    assert "sightings.xlsx identifies the animals on the photographs" in lines
    assert any("gone.jpg" in line for line in lines)
    assert built.added == len(table)
    table[["image", "individual_id"]].to_csv(folder / "old.csv", index=False)
    with pytest.raises(UserError, match="several lists"):
        start(folder, tmp_path / "other", encoder)


@pytest.mark.slow
def test_start_with_a_photograph_that_breaks_off_leaves_it_out_by_name(lab, encoder, tmp_path):
    lines, whole = [], next(lab.glob("*/*.jpg"))
    (whole.parent / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    built = ended(start(lab, tmp_path / "catalogue", encoder, lines.append))
    assert built.added == 28 and any("cannot be decoded" in line and "half.jpg" in line for line in lines)


CUTS = {
    "the photographs are linked": "happywhale_nb.data.importers.write_contents",
    "the folder is imported": "happywhale_nb.catalogue.starting.start_catalogue",
    "half are embedded": "happywhale_nb.catalogue.ingest.add_photo",
    "all are embedded": "happywhale_nb.catalogue.starting.adapt_encoder",
    "the encoder is copied": "happywhale_nb.catalogue.build.mark_trained",
    "it is calibrated": "happywhale_nb.catalogue.build.recalibrate",
}
KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_starting as here
from types import SimpleNamespace
from importlib import import_module
from pathlib import Path
sys.modules["happywhale_nb.networks.embedder"] = SimpleNamespace(Embedder=here.StandIn)
here.intake.LOT, calls = 20, []
module, _, name = {cut!r}.rpartition(".")
made = getattr(import_module(module), name)
def die(*given, **more):
    calls.append(1)
    if len(calls) > (25 if name == "add_photo" else 0):
        os.kill(os.getpid(), signal.SIGKILL)
    return made(*given, **more)
for each in (import_module(module), here):
    if hasattr(each, name):
        setattr(each, name, die)
here.start(Path({lab!r}), Path({place!r}), {encoder!r})
"""


@pytest.mark.kill
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_start_that_is_killed_goes_on_and_does_nothing_twice(cut, lab, encoder, tmp_path, monkeypatch):
    place = tmp_path / "catalogue"
    script = KILLED.format(
        tests=str(Path(__file__).parent), cut=cut, lab=str(lab), place=str(place), encoder=str(encoder)
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    built = ended(start(lab, place, encoder))
    assert counts(place)[Photo] == 28 and built.catalogue.fingerprint == built.embedder.fingerprint
    expected = {"half are embedded": 8, "all are embedded": 0, "the encoder is copied": 0, "it is calibrated": 0}
    assert built.added == expected.get(next(name for name, each in CUTS.items() if each == cut), 28)
    assert not list(place.glob("adapted*")) and len(read_dataset(place / "data" / "lab").train) == 24


@pytest.mark.slow
def test_start_cut_off_between_photographs_goes_on(lab, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "LOT", 20)
    made, place = intake.add_photo, tmp_path / "catalogue"
    monkeypatch.setattr(intake, "add_photo", lambda *given, **more: 1 / 0 if len(NAMES) > 20 else made(*given, **more))
    with pytest.raises(ZeroDivisionError):
        start(lab, place, encoder)
    monkeypatch.setattr(intake, "add_photo", made)
    assert ended(start(lab, place, "")).added == 8


def choose_centre(vectors, individuals, seed=0, encounters=None):
    told = {"gain": 0.1, "low": 0.05, "high": 0.15}
    kinds = {kind: {"known": 0.8, "grown": 0.8, "auroc_new": 0.7} for kind in ("none", "centre")}
    adapter = fit_adapter(vectors, individuals, "centre")
    return AdapterChoice(adapter, kind="centre", best="centre", grown=told, kinds=kinds)


@pytest.mark.slow
def test_start_with_an_adapter_calibrates_on_photographs_that_it_was_not_fitted_to(lab, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "choose_adapter", choose_centre)
    for module in (starting, identifier):
        monkeypatch.setattr(module, "MIN_HELD_OUT", 5)
    place = tmp_path / "catalogue"
    built = start(lab, place, encoder)
    with built.catalogue.reading() as session:
        rows = select(Embedding.trained, func.count()).group_by(Embedding.model_id, Embedding.trained)
        rows = session.execute(rows.order_by(Embedding.model_id, Embedding.trained)).all()
        waiting = session.scalar(select(Encounter.id).where(Encounter.state == "undecided"))
    (_, plain), (_, apart), (_, fitted) = rows
    assert plain == apart + fitted == 28 and 5 <= apart - 4 < fitted and built.calibration.photographs == apart - 4
    path = next((place / "data" / "lab" / "train_images").iterdir())
    assert built.embedder.width == 48 and np.isclose(np.linalg.norm(built.embedder.embed([path])), 1)
    assert match_encounter(Matcher(built.catalogue), "Ann", waiting)["candidates"]
    assert trained_on(Catalogue(place).model_folder).sha256 and starting.Start.read(place).adapter["kind"] == "centre"
    ended(built)
    NAMES.clear()
    assert ended(start(lab, place, "")).embedder.fingerprint == built.embedder.fingerprint


@pytest.fixture
def adapting(monkeypatch):
    """An adapter always pays, however few photographs there are."""
    monkeypatch.setattr(starting, "choose_adapter", choose_centre)
    for module in (starting, identifier):
        monkeypatch.setattr(module, "MIN_HELD_OUT", 5)


def double(lab, tiny):
    """As many photographs again of known animals in a folder."""
    for number, row in enumerate(read_dataset(tiny).train.tail(24).itertuples()):
        (lab / row.individual_id).mkdir(exist_ok=True)
        shutil.copy(tiny / "train_images" / row.image, lab / row.individual_id / f"again{number}.jpg")


@pytest.mark.slow
def test_start_again_adapts_anew_and_leaves_an_encoder_that_was_changed_over_to(
    lab, tiny, encoder, tmp_path, adapting, monkeypatch
):
    place, lines = tmp_path / "catalogue", []
    first = ended(start(lab, place, encoder)).catalogue.fingerprint
    double(lab, tiny)
    trained = make_encoder(tmp_path / "trained", content=b"of the lab's own", name="trained")
    shutil.copytree(place, tmp_path / "kept")
    build.change_model(Catalogue(place), trained)
    tuned = Card.read(place).model
    assert ended(start(lab, place, "")).catalogue.fingerprint == tuned == Card.read(place).model
    assert "trained" in Card.read(place).encoder["name"]
    shutil.rmtree(place)
    shutil.move(tmp_path / "kept", place)
    whole = encoder.rename(tmp_path / "away")
    kept = ended(start(lab, place, "", lines.append)).catalogue.fingerprint
    assert kept == first and any("the adapter stays as it is: there is no encoder" in line for line in lines)
    make_encoder(encoder, content=b"another one")
    assert ended(start(lab, place, "", lines.append)).catalogue.fingerprint == first and "not the encoder" in lines[-1]
    shutil.rmtree(encoder)
    whole.rename(encoder)
    again = ended(start(lab, place, "")).catalogue.fingerprint
    record = starting.Start.read(place)
    assert again not in (first, tuned) and (record.chosen, record.before) == (again, "")


def test_adapter_is_due_only_of_the_encoder_that_was_chosen():
    known = SimpleNamespace()
    record = starting.Start("", "", "", adapter={"photographs": 1}, chosen="new", before="old")
    for now, due in {"old": True, "theirs": False}.items():
        known.fingerprint = now
        assert starting._is_due(record, known) is due
    known.fingerprint = ""
    assert not starting._is_due(starting.Start("", "", ""), known)


def test_encoder_that_is_adapted_already_gets_no_second_adapter(lab, encoder, tmp_path, adapting):
    vectors = np.random.default_rng(0).normal(size=(8, 48)).astype(np.float32)
    write_adapter(encoder / "adapter.npz", fit_adapter(vectors, list("aabbccdd"), "centre"))
    write_json(encoder / "trained_on.json", [])
    place, lines, given = tmp_path / "catalogue", [], (encoder / "adapter.npz").read_bytes()
    built = ended(start(lab, place, encoder, lines.append))
    assert any("already has an adapter" in line for line in lines)
    assert (built.catalogue.model_folder / "adapter.npz").read_bytes() == given and not (place / "adapted").exists()
    assert (
        built.catalogue.fingerprint == StandIn(encoder).fingerprint == StandIn(built.catalogue.model_folder).fingerprint
    )


def test_adapter_keeps_the_list_of_what_the_encoder_was_trained_on(lab, encoder, tmp_path, adapting):
    write_json(encoder / "trained_on.json", ["f" * 64])
    ended(start(lab, tmp_path / "catalogue", encoder))
    assert {"f" * 64} < trained_on(Catalogue(tmp_path / "catalogue").model_folder).sha256


def test_encoder_is_kept_by_its_whole_path_and_may_be_another_while_nothing_is_embedded(
    lab, encoder, tmp_path, monkeypatch
):
    place, built_in = tmp_path / "catalogue", starting.ENCODER
    monkeypatch.chdir(tmp_path)
    plan = plan_start(lab, place, place / "data" / "lab", "borrowed")
    assert plan.encoder == str(encoder) and plan_start(lab, place, place / "data", built_in).encoder == built_in
    take_in(replace(plan, encoder=str(tmp_path / "mistyped")), place, print)
    monkeypatch.chdir(lab)
    ended(start(lab, place, encoder))
    with pytest.raises(UserError, match="catalogue re-embed"):
        start(lab, place, built_in)
    assert plan_start(lab, place, place / "data" / "lab").encoder == str(encoder)


def test_trained_on_of_an_adapter_of_unknown_photographs_takes_all_for_known(encoder):
    assert trained_on(encoder) == TrainedOn()
    (encoder / "adapter.npz").write_bytes(b"")
    trained = trained_on(encoder)
    assert trained.has("0" * 64, "train_images/a.jpg", kept=False) and not trained.has(
        "0" * 64, "photos/a.jpg", kept=True
    )


def test_trained_on_goes_with_a_copy_and_of_encoders_side_by_side_is_that_of_all(encoder, tmp_path, monkeypatch):
    write_json(encoder / "trained_on.json", ["a" * 64])
    write_card(bare := tmp_path / "fins.json", replace(read_card(encoder), file="fins.onnx"))
    shutil.copy(encoder / "net.onnx", tmp_path / "fins.onnx")
    write_json(tmp_path / "fins.trained_on.json", ["b" * 64, "c.jpg"])
    (both := tmp_path / "both").mkdir()
    for part, path in {"part1": encoder, "part2": bare.with_suffix(".onnx")}.items():
        copy_encoder(path, both / part)
    write_card(both, replace(read_card(encoder), file="", sha256="", parts=("part1", "part2"), weights=(1.0, 1.0)))
    assert trained_on(both) == TrainedOn(frozenset(["a" * 64, "b" * 64]), frozenset(["c.jpg"]))
    assert trained_on(copy_encoder(both, tmp_path / "copy")) == trained_on(both)
    monkeypatch.chdir(encoder)
    assert trained_on("efficientnet_lite0") == TrainedOn(), "the folder in which the command is given does not count"


# --- licences


@pytest.fixture
def theirs(tmp_path):
    return make_encoder(tmp_path / "theirs", licence="CC BY-NC 4.0", commercial=False, name="theirs")


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def test_licence_that_forbids_commercial_use_is_asked_for_once(lab, theirs, encoder, tmp_path, monkeypatch):
    place = tmp_path / "catalogue"
    words = ("start", lab, "--catalogue", place, "--encoder", theirs, "--no-serve")
    done = run(*words)
    assert done.exit_code == 2 and "--accept-licence" in done.output and not (place / "catalogue.json").exists()
    done = run(*words, "--accept-licence")
    assert done.exit_code == 0 and "not for commercial use (accepted on 20" in done.output, done.output
    assert "0 photographs added" in run(*words).output, "nobody is asked again"
    assert run("catalogue", "re-embed", place, "--model", encoder).exit_code == 0
    assert "encoder borrowed: licence Apache-2.0" in run("catalogue", "status", place).output
    assert run("catalogue", "re-embed", place, "--model", theirs).exit_code == 0, "accepted before"
    assert "encoder theirs: licence CC BY-NC 4.0, not for" in run("catalogue", "status", place).output
    card = Card.read(place)
    assert card.encoder["accepted"] in card.accepted.values()
    assert card.accepted.keys() == {"theirs: CC BY-NC 4.0; from https://example.org"}


def test_licence_is_asked_for_once_with_an_adapter_and_holds_for_one_source(lab, theirs, tmp_path, adapting):
    place, asked = tmp_path / "catalogue", []
    built = ended(start(lab, place, theirs, agree=lambda licence: asked.append(licence) or True))
    assert len(asked) == 1 and Card.read(place).encoder["name"] == "theirs, adapted"
    assert Card.read(place).encoder["accepted"] and built.catalogue.fingerprint == starting.Start.read(place).chosen
    assert ended(start(lab, place, "")).embedder.fingerprint == built.embedder.fingerprint, "and nobody is asked again"
    other = make_encoder(
        tmp_path / "other", name="theirs", licence="CC BY-NC 4.0", commercial=False, source="elsewhere"
    )
    with pytest.raises(UserError, match="--accept-licence"):
        build.change_model(Catalogue(place), other)


@pytest.mark.parametrize("encoder", ["theirs", "no_such_encoder", "broken"])
def test_encoder_that_is_declined_or_cannot_be_opened_leaves_nothing_behind(encoder, lab, theirs, tmp_path):
    place = tmp_path / "catalogue"
    (make_encoder(tmp_path / "broken") / "encoder.json").write_text("{}")
    done = run("start", lab, "--catalogue", place, "--encoder", tmp_path / encoder, "--no-serve")
    assert done.exit_code == 2 and not place.exists(), done.output
    with pytest.raises(UserError):
        plan = plan_start(lab, place, place / "data" / "lab", str(tmp_path / encoder))
        start_catalogue(plan, place, None)
    assert not place.exists()


def test_licence_that_is_refused_decodes_no_photograph(lab, theirs, tmp_path, monkeypatch):
    place, looked = tmp_path / "catalogue", []
    monkeypatch.setattr(starting, "check_folder", lambda *given, **more: looked.append(given) or [])
    plan = plan_start(lab, place, place / "data" / "lab", str(theirs))
    dataset = take_in(plan, place, print)
    with pytest.raises(UserError, match="not for commercial use"):
        start_catalogue(plan, place, dataset)
    monkeypatch.setattr(starting, "build_catalogue", lambda *given, **more: refuse())
    with pytest.raises(UserError, match="no memory"):
        starting._build(plan, place, dataset, print)
    assert not looked


def refuse():
    raise UserError("no memory is left")


@pytest.mark.slow
def test_licence_that_a_person_declines_changes_nothing(lab, theirs, encoder, tmp_path, monkeypatch):
    place = tmp_path / "catalogue"
    ended(start(lab, place, encoder))
    before = (place / "catalogue.json").read_bytes(), counts(place)
    with pytest.raises(UserError, match="nothing was changed"):
        build.change_model(Catalogue(place), theirs, agree=lambda licence: False)
    assert ((place / "catalogue.json").read_bytes(), counts(place)) == before


@pytest.fixture(scope="module")
def licensed(built, tmp_path_factory):
    """A catalogue by an encoder whose licence was accepted; nothing in it is changed."""
    catalogue = Catalogue(shutil.copytree(built, tmp_path_factory.mktemp("licensed") / "catalogue"))
    theirs = Licence("theirs", "CC BY-NC 4.0", commercial=False, source="https://example.org", accepted="2026-07-01")
    catalogue.choose_model(catalogue.fingerprint, theirs)
    catalogue.close()
    return catalogue.folder


@pytest.mark.parametrize("kind", ["csv", "wildbook", "camtrap-dp", "mark", "rmark"])
def test_export_of_every_kind_says_whose_encoder_it_was(kind, licensed, tmp_path):
    done = run("catalogue", "export", licensed, kind, "-o", tmp_path / "file")
    assert done.exit_code == 0 and "encoder theirs: licence CC BY-NC 4.0" in done.output
    data, said = (tmp_path / "file").read_bytes(), "encoder theirs: licence CC BY-NC 4.0, not for commercial use"
    found = {
        "csv": lambda: pd.read_csv(io.BytesIO(data))["encoder"][0],
        "wildbook": lambda: openpyxl.load_workbook(io.BytesIO(data)).properties.description,
        "camtrap-dp": lambda: json.loads(zipfile.ZipFile(io.BytesIO(data)).read("datapackage.json"))["description"],
        "mark": lambda: data.decode().replace(" */\r\n/* ", " "),
        "rmark": lambda: (tmp_path / "file.licence.txt").read_text(),
    }[kind]()
    assert said in found


def test_export_with_photographs_and_the_interface_say_the_licence(licensed, tmp_path):
    assert run("catalogue", "export", licensed, "wildbook", "--photos", "-o", tmp_path / "all.zip").exit_code == 0
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert b"encoder theirs: licence CC BY-NC 4.0" in archive.read("LICENCE.txt")
    catalogue = Catalogue(licensed)
    with TestClient(make_app(AppState(catalogue, Options(tokens=False))), base_url="http://localhost") as client:
        encoder = client.get("/api/session").json()["catalogue"]["encoder"]
        assert not encoder["commercial"] and encoder["accepted"] and encoder["text"].startswith("encoder theirs")
        assert "theirs" in client.get("/api/exports/rmark").headers["x-encoder-licence"]
        assert any("theirs" in note for note in client.get("/api/exports/rmark/messages").json()["notes"])
    catalogue.close()


# --- what would make it better


def test_training_line_says_from_how_many_photographs_it_pays(tiny):
    dataset = read_dataset(tiny)
    said = training_line(dataset)
    assert "does not pay yet with 48 named" in said and "happywhale run -p data_dir" in said
    assert "training does not pay yet with 48 named photographs" in training_line(dataset, 40)
    counts = "48 named photographs, of which a fold of five trains on 38 (it does from about 38)"
    assert f"training pays with {counts}" in training_line(dataset, 38)


def test_training_line_counts_named_animals_alone_and_names_a_preset_for_flukes_too(tiny):
    dataset = read_dataset(tiny)
    names = dataset.train["individual_id"].where(dataset.train.index % 2 == 0, "new_individual")
    said = training_line(replace(dataset, train=dataset.train.assign(individual_id=names)))
    assert f"with {len(names) - len(names) // 2} named" in said
    assert "efficientnet_lite0_arcface (animals from either side" in said and "efficientnet_lite0_flukes (fluke" in said


def test_boxes_line_has_figures_that_are_stored(tiny):
    unboxed = replace(read_dataset(tiny), root=tiny / "nowhere")
    measured = read_json(find_checkout() / "docs" / "results" / "detectors.json")["identification"]
    untrained = {row["crops"]: row["MAP@5"] for row in measured if row["encoder"] == "efficientnet_lite0, untrained"}
    figures = [f"{untrained[crops]:.3f}"[1:] for crops in ("own, animals held out", "whole photographs")]
    assert "MAP@5 {} instead of {} on 286".format(*figures) in boxes_line(unboxed)
    page = (find_checkout() / "docs" / "howto" / "start.md").read_text(encoding="utf-8")
    assert f"MAP@5 is {figures[0]} with" in page and f"and {figures[1]} without" in page


def test_training_pays_from_the_number_that_was_measured():
    measured = read_json(find_checkout() / "docs" / "results" / "encoders_subsets.json")
    assert measured["training_pays_from"] == TRAINING_PAYS_FROM
