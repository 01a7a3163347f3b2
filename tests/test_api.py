"""The catalogue over HTTP: answers, decisions, roles, limits, what a kill leaves, and what attackers get."""

import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import hypothesis
import numpy as np
import openpyxl
import pandas as pd
import pytest
import schemathesis
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, settings
from PIL import Image
from schemathesis.checks import not_a_server_error
from sqlalchemy import func, select
from sqlalchemy.orm import SessionTransaction

from happywhale_nb.catalogue import database as tables
from happywhale_nb.catalogue import decisions, upload_photos
from happywhale_nb.catalogue.exports.formats import EXPORTS
from happywhale_nb.catalogue.ingest import ingest_dataset, recalibrate
from happywhale_nb.catalogue.listings import list_encounters, photo_crop
from happywhale_nb.catalogue.matching import Matcher, match_encounter
from happywhale_nb.catalogue.schema import Annotation, Decision, Embedding, Encounter, Individual, Photo, Token
from happywhale_nb.catalogue.store import Catalogue, create_catalogue
from happywhale_nb.catalogue.uploads import Limits
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.leases import LEASE
from happywhale_nb.core.roles import ROLES
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.formats import ENDINGS, heic_reader
from happywhale_nb.server.app import make_app
from happywhale_nb.server.auth import digest, make_token
from happywhale_nb.server.state import AppState, Options

HERE = "http://127.0.0.1:8000"
HEIC = Path(__file__).parent / "fixtures" / "fin.heic"


def client(catalogue, embedder, token="", **options):
    """A client of an app of this catalogue; without a token one that asks for none."""
    desk = AppState(catalogue, Options(**{"tokens": bool(token), "rates": {}} | options), owner="Ann")
    desk.network.open(lambda: embedder)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return TestClient(make_app(desk), base_url=HERE, headers=headers, raise_server_exceptions=True)


@pytest.fixture
def page(mine, colours):
    """A client on the loopback, without tokens."""
    with client(mine, colours) as made:
        yield made


@pytest.fixture(scope="module")
def still(built, colours, tmp_path_factory):
    """As `page`, shared by tests that change nothing."""
    catalogue = Catalogue(shutil.copytree(built, tmp_path_factory.mktemp("still") / "catalogue"))
    with client(catalogue, colours) as made:
        yield made
    catalogue.close()


@pytest.fixture
def tokens(mine):
    """A token of each role."""
    with mine.writing() as session:
        return {role: make_token(session, f"{role}er", role)[1] for role in ("read", "review", "admin")}


def jpeg(seed=0, size=(64, 48), **how):
    """The bytes of a photograph that no other seed gives."""
    data, pixels = io.BytesIO(), np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(data, "JPEG", **how)
    return data.getvalue()


def upload(page, *photos, **fields):
    """Send photographs `(name, bytes)` as a new encounter."""
    files = [("photos", (name, data, "image/jpeg")) for name, data in photos]
    return page.post("/api/encounters", files=files, data=fields)


def undecided(page):
    return page.get("/api/encounters", params={"state": "undecided"}).json()["encounters"]


# --- asking and deciding


def check_question_to_export(page):
    """An undecided encounter is asked about, confirmed, in the audit log with its answer, and exported."""
    met = undecided(page)[0]
    answer = page.post(f"/api/encounters/{met['id']}/answers", json={"k": 5}).json()
    assert len(answer["candidates"]) == 6 and answer["promised"] == (answer["set_size"] > 0)
    assert answer["promised"] != answer["promise"].startswith("no short list can be promised here")
    probabilities = [each["probability"] for each in answer["candidates"]]
    assert sum(probabilities) + answer["other_probability"] == pytest.approx(1, abs=1e-3) or len(probabilities) == 6
    assert sum(each["is_new"] for each in answer["candidates"]) <= 1
    first = next(each for each in answer["candidates"] if not each["is_new"])
    assert first["photo"]["name"] and first["photos"] >= 1 and first["query_photo"] == met["photos"][0]["id"]
    assert page.get(f"/api/answers/{answer['id']}").json() == answer
    body = {"kind": "confirm", "individual_id": first["individual"]["id"], "answer_id": answer["id"], "version": 1}
    done = page.post(f"/api/encounters/{met['id']}/decisions", json=body | {"note": "the notch"})
    assert done.status_code == 200 and done.json()["encounter"]["state"] == "confirmed"
    line = page.get("/api/audit-log", params={"encounter_id": met["id"]}).json()["decisions"][0]
    values = (line["user"], line["kind"], line["answer_id"], line["rank"])
    assert values == ("Ann", "confirm", answer["id"], first["rank"])
    assert line["probability"] == first["probability"] and line["note"] == "the notch"
    table = pd.read_csv(io.BytesIO(page.get("/api/exports/csv").content), dtype=str, keep_default_na=False)
    row = table[table["encounter_id"] == str(met["id"])].iloc[0]
    assert (row["individual"], row["decided_by"], row["state"]) == (first["individual"]["name"], "Ann", "confirmed")


def check_confirmed_answers(page):
    """A confirmed photograph answers for its animal at once, and no more after undo."""
    animal = page.get("/api/individuals").json()["individuals"][0]
    made = upload(page, ("a.jpg", jpeg(1))).json()
    body = {"kind": "confirm", "individual_id": animal["id"], "version": made["version"]}
    decision = page.post(f"/api/encounters/{made['id']}/decisions", json=body).json()["decision"]

    def best():
        files = {"photos": ("b.jpg", jpeg(1, quality=60), "image/jpeg")}
        found = page.post("/api/identify", files=files).json()["candidates"]
        return next(each for each in found if not each["is_new"])

    assert best()["photo"]["encounter"]["id"] == made["id"] and best()["individual"]["id"] == animal["id"]
    assert page.post(f"/api/decisions/{decision['id']}/undo").status_code == 200
    assert best()["photo"]["encounter"]["id"] != made["id"]


def test_decide_from_an_answer_is_in_the_audit_log_and_in_the_csv(page):
    check_question_to_export(page)


def test_identify_answers_by_a_confirmed_photograph_until_undo(page):
    check_confirmed_answers(page)


@pytest.mark.postgres
def test_api_on_postgresql_decides_exports_and_identifies_alike(postgres, tiny, colours, tmp_path):
    catalogue = create_catalogue(tmp_path / "pg", tiny, "tiny", postgres())
    ingest_dataset(catalogue, colours, read_dataset(tiny), "colours")
    catalogue.choose_model(colours.fingerprint)
    recalibrate(catalogue)
    with client(catalogue, colours) as page:
        check_question_to_export(page)
        check_confirmed_answers(page)
    catalogue.close()


def test_ask_about_two_photographs_leaves_their_own_encounter_out(page):
    made = upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), date="2026-08-01", place="Ness", side="left").json()
    assert len(made["photos"]) == 2 and made["side"] == "left"
    body = {"kind": "new", "version": 1, "species": ""}
    named = page.post(f"/api/encounters/{made['id']}/decisions", json=body).json()["encounter"]
    assert re.fullmatch(r"N\d{4}", named["individual"]["name"]), (
        "hex names have no number: the proposal starts a series"
    )
    answer = page.post(f"/api/encounters/{made['id']}/answers", json={}).json()
    assert all(each["photo"]["encounter"]["id"] != made["id"] for each in answer["candidates"] if each["photo"])


def test_ask_encounter_by_20_threads_with_one_connection_answers_all(mine, monkeypatch):
    """Who waits for a turn at the gallery holds no connection: else one who has the turn may never get one."""
    make, one = tables.create_engine, {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
    monkeypatch.setattr(tables, "create_engine", lambda address, **how: make(address, **how | one))
    catalogue = Catalogue(mine.folder)
    matcher = Matcher(catalogue)
    with catalogue.reading() as session:
        numbers = [met["id"] for met in list_encounters(session, matcher.model.settings, limit=100)["encounters"]]
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(match_encounter, matcher, "Ann", numbers[i % len(numbers)], 3) for i in range(60)]
        answers = [each.result(60) for each in asked]
    catalogue.close()
    assert len({each["id"] for each in answers}) == 60


def test_ask_with_filters_leaves_only_fitting_photographs_to_answer(page):
    met, facets = undecided(page)[0], page.get("/api/facets").json()
    whole = page.post(f"/api/encounters/{met['id']}/answers", json={"k": 50}).json()["candidates"]
    chance = {(each["individual"] or {}).get("id"): each["probability"] for each in whole}
    for species in facets["species"]:
        answer = page.post(f"/api/encounters/{met['id']}/answers", json={"species": species}).json()
        assert {each["individual"]["species"] for each in answer["candidates"] if each["individual"]} == {species}
        assert "filters hide" in answer["note"] and "among all known animals" in answer["note"]
        shown = {(each["individual"] or {}).get("id"): each["probability"] for each in answer["candidates"]}
        assert all(shown[number] == chance[number] for number in shown if number in chance) and None in shown
    nobody = page.post(f"/api/encounters/{met['id']}/answers", json={"place": "nowhere"}).json()
    assert [each["is_new"] for each in nobody["candidates"]] == [True]
    assert nobody["candidates"][0]["probability"] == chance[None], "somebody known elsewhere is not new"


def test_decide_with_a_stale_version_is_409_with_what_was_decided(page):
    met, animals = undecided(page)[0], page.get("/api/individuals").json()["individuals"]
    url, body = f"/api/encounters/{met['id']}/decisions", {"kind": "confirm", "version": met["version"]}
    assert page.post(url, json=body | {"individual_id": animals[0]["id"]}).status_code == 200
    late = page.post(url, json=body | {"individual_id": animals[1]["id"]})
    assert late.status_code == 409 and "somebody else" in late.json()["detail"]
    assert late.json()["encounter"]["individual"]["id"] == animals[0]["id"]
    assert late.json()["decision"]["kind"] == "confirm"


def test_merge_split_rename_and_undo_of_the_merge(page):
    one, two = page.get("/api/individuals").json()["individuals"][:2]
    same = [each for each in page.get("/api/individuals").json()["individuals"] if each["species"] == one["species"]]
    two = next(each for each in same if each["id"] != one["id"])
    done = page.post(f"/api/individuals/{one['id']}/merge", json={"into": two["id"]}).json()
    assert done["individual"]["photos"] == one["photos"] + two["photos"]
    gone = page.get(f"/api/individuals/{one['id']}").json()
    assert gone["merged_into"]["id"] == two["id"] and not gone["active"]
    assert page.post(f"/api/decisions/{done['decision']['id']}/undo").json()["encounter"] is None
    assert page.get(f"/api/individuals/{one['id']}").json() == one | {"history": ANY, "encounters": ANY}
    many = max(same, key=lambda each: each["encounters"])
    part = page.get(f"/api/individuals/{many['id']}").json()["encounters"][:1]
    made = page.post(f"/api/individuals/{many['id']}/split", json={"encounter_ids": [part[0]["id"]]}).json()
    assert made["individual"]["encounters"] == 1
    named = page.patch(f"/api/individuals/{made['individual']['id']}", json={"name": "Hope"}).json()
    assert named["name"] == "Hope"
    rename = page.get("/api/audit-log", params={"individual_id": named["id"], "limit": 1}).json()["decisions"][0]
    assert rename["kind"] == "rename" and rename["note"].endswith(" → Hope")
    taken = page.patch(f"/api/individuals/{two['id']}", json={"name": "Hope"})
    assert taken.status_code == 409 and taken.json()["individual"]["id"] == named["id"], "asked back: is it Hope?"
    assert "do you mean Hope?" in taken.json()["detail"] and taken.json()["encounter"] is None
    text = f"renamed {made['individual']['name']} to Hope"
    assert (rename["text"], named["decision"]["id"]) == (text, rename["id"]), "Undo names what it undoes"


def test_individuals_are_found_as_a_phone_types_them_and_its_apostrophe_makes_no_second_one(page):
    made = upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), species="humpback_whale").json()
    url = f"/api/encounters/{made['id']}/decisions"
    obrien = page.post(url, json={"kind": "new", "version": 1, "name": "Zoë O'Brien"}).json()["encounter"]["individual"]
    for q in ("zoe", "Zoë", "ZOE O’BRIEN", "obrien", "o'b"):
        found = page.get("/api/individuals", params={"q": q}).json()["individuals"]
        assert obrien["id"] in {each["id"] for each in found}, q
    again = upload(page, ("c.jpg", jpeg(3))).json()
    body = {"kind": "new", "version": 1, "name": "zoë o’brien"}
    asked = page.post(f"/api/encounters/{again['id']}/decisions", json=body)
    assert asked.status_code == 409 and asked.json()["individual"]["id"] == obrien["id"], "asked before the species"
    assert asked.json()["species"] is None


def test_an_individual_of_an_unknown_species_gets_one_and_loses_it_again(page):
    made = upload(page, ("a.jpg", jpeg(1))).json()
    url = f"/api/encounters/{made['id']}"
    page.patch(url, json={"version": 1, "species": ""})
    body = {"kind": "new", "version": page.get(url).json()["version"], "name": "Sky", "species": ""}
    sky = page.post(f"{url}/decisions", json=body).json()["encounter"]["individual"]["id"]
    assert page.get(f"/api/individuals/{sky}").json()["species"] == ""
    given = page.patch(f"/api/individuals/{sky}", json={"species": "Humpback Whale"}).json()
    assert given["species"] == "humpback_whale" and page.get(url).json()["species"] == "humpback_whale"
    assert given["decision"]["text"] == "set the species of Sky nothing → humpback_whale"
    assert sky in {each["id"] for each in page.get("/api/individuals?species=humpback_whale").json()["individuals"]}
    again = page.patch(f"/api/individuals/{sky}", json={"species": "humpback_whale"})
    assert again.status_code == 400 and "Sky is a humpback_whale already" in again.json()["detail"]
    for body in ({}, {"name": "Sea", "species": "killer_whale"}):
        assert "not both" in page.patch(f"/api/individuals/{sky}", json=body).json()["detail"]
    undone = page.post(f"/api/decisions/{given['decision']['id']}/undo").json()
    assert [each["species"] for each in undone["encounters"]] == [""]
    assert page.get(f"/api/individuals/{sky}").json()["species"] == page.get(url).json()["species"] == ""


def test_edit_and_crop_change_what_they_are_told_at_the_version_seen(page):
    made = upload(page, ("a.jpg", jpeg(1)), date="2026-08-01").json()
    url = f"/api/encounters/{made['id']}"
    edited = page.patch(url, json={"version": 1, "place": "Ness", "side": "right", "latitude": 57.1, "longitude": -4.2})
    assert edited.json()["place"] == "Ness" and edited.json()["side"] == "right" and edited.json()["version"] == 2
    assert edited.json()["date"] == "2026-08-01", "what was left out stays"
    line = page.get("/api/audit-log", params={"encounter_id": made["id"]}).json()["decisions"][0]
    assert (line["user"], line["kind"]) == ("Ann", "edit") and "place Ness" in line["note"]
    assert page.patch(url, json={"version": 1, "place": "Skerry"}).status_code == 409
    photo = made["photos"][0]["id"]
    before = page.post(f"{url}/answers", json={}).json()["candidates"]
    drawn = page.put(f"/api/photos/{photo}/crop", json={"version": 2, "box": [4, 4, 40, 30]}).json()
    assert drawn["photos"][0]["crop"] == {
        "source": "person",
        "box": [4, 4, 40, 30],
        "aspect": pytest.approx(39.6 / 28.6, abs=0.01),
    }
    after = page.post(f"{url}/answers", json={}).json()["candidates"]
    assert [each["score"] for each in before] != [each["score"] for each in after]
    assert page.put(f"/api/photos/{photo}/crop", json={"version": 3, "box": [4, 4, 5, 5]}).status_code == 400
    assert page.put(f"/api/photos/{photo}/crop", json={"version": 2, "box": None}).status_code == 409
    whole = page.put(f"/api/photos/{photo}/crop", json={"version": 3, "box": None}).json()["photos"][0]["crop"]
    assert (whole["source"], whole["box"]) == ("whole", None)


def test_add_photos_of_a_known_photograph_passes_it_over_or_is_409(page):
    made = upload(page, ("a.jpg", jpeg(1))).json()
    again = page.post(f"/api/encounters/{made['id']}/photos", files={"photos": ("a2.jpg", jpeg(1), "image/jpeg")})
    assert again.status_code == 200 and len(again.json()["photos"]) == 1, "sent again, as after a lost answer"
    assert again.json()["version"] == 1
    other = upload(page, ("b.jpg", jpeg(1)))
    assert other.status_code == 409 and made["name"] in other.json()["detail"]
    url = f"/api/encounters/{made['id']}"
    more = page.post(f"{url}/photos", files={"photos": ("c.jpg", jpeg(2), "image/jpeg")}).json()
    assert len(more["photos"]) == 2 and more["version"] == 2
    late = page.post(f"{url}/decisions", json={"kind": "unsure", "version": 1})
    assert late.status_code == 409, "who has not seen the new photograph looks again"


def test_photo_picture_crop_and_file_have_their_sizes_and_types(page):
    photo = undecided(page)[0]["photos"][0]
    for path, side in (("crop", 160), ("picture", 1600)):
        got = page.get(f"/api/photos/{photo['id']}/{path}", params={"side": side})
        assert got.headers["content-type"] == "image/jpeg"
        shape = Image.open(io.BytesIO(got.content)).size
        assert shape == ((160, 160) if path == "crop" else (photo["width"], photo["height"]))
    file = page.get(f"/api/photos/{photo['id']}/file")
    assert file.headers["content-disposition"].startswith("attachment") and file.content[:2] == b"\xff\xd8"


def fin_of(kind, seed):
    """The bytes of a photograph of a kind, of two pages where it may have them."""
    data, pixels = io.BytesIO(), np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2019:08:17 14:05:09"
    how = {"exif": exif.tobytes()} if kind in ("TIFF", "WEBP", "AVIF", "PNG", "MPO") else {}
    how |= {"save_all": True, "append_images": [Image.new("RGB", (64, 48))]} if kind in ("GIF", "TIFF", "MPO") else {}
    Image.fromarray(pixels).save(data, kind, **how)
    return data.getvalue()


def test_every_kind_of_photograph_is_uploaded_asked_about_matched_and_shown(page):
    sent = {f"{kind}.jpg": fin_of(kind, i) for i, kind in enumerate(ENDINGS) if kind != "HEIF"}
    if heic_reader():
        sent["IMG_1.HEIC"] = HEIC.read_bytes()
    for field, url in (("photos", "/api/identify"), ("images", "/match")):
        asked = [(field, (name, data)) for name, data in sent.items()]
        assert page.post(url, files=asked).status_code == 200
    made = upload(page, *sent.items())
    assert made.status_code == 201 and len(made.json()["photos"]) == len(sent)
    assert made.json()["date"].startswith("2019-07-13" if heic_reader() else "2019-08-17"), "the earliest camera's"
    for photo in made.json()["photos"]:
        for what in ("picture", "crop"):
            got = page.get(f"/api/photos/{photo['id']}/{what}", params={"side": 160})
            assert (got.status_code, got.headers["content-type"]) == (200, "image/jpeg"), photo["name"]
            assert np.asarray(Image.open(io.BytesIO(got.content))).std() > 5
        assert page.get(f"/api/photos/{photo['id']}/file").content == sent[photo["name"]], "as it was sent"
    again = upload(page, ("IMG_9.TIF", sent["TIFF.jpg"]))
    assert again.status_code == 409 and made.json()["name"] in again.json()["detail"]


def test_the_interface_says_which_kinds_of_photographs_are_taken(still):
    described = still.get("/openapi.json").text
    assert described.count("JPEG, PNG, TIFF, WebP, HEIC, AVIF, GIF, BMP, JPEG 2000 and PPM") >= 4


def test_photo_file_that_is_gone_is_404_with_its_name(page, mine):
    made = upload(page, ("a.jpg", jpeg(1))).json()["photos"][0]["id"]
    (path,) = mine.folder.glob("photos/*/*.jpg")
    path.unlink()
    got = page.get(f"/api/photos/{made}/file")
    assert got.status_code == 404 and "a.jpg" in got.json()["detail"] and path.name not in got.json()["detail"]


@pytest.fixture
def heat(monkeypatch):
    """Stands in for Grad-CAM, which needs TensorFlow: its picture is the map it was given."""
    maps = SimpleNamespace(query=b"query", match=b"match", method="grad-cam")
    modules = {"gradcam": {"heat_png": lambda heat: heat}, "match_maps": {"match_maps": lambda *given: maps}}
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"happywhale_nb.networks.{name}", SimpleNamespace(**content))


def test_heat_of_each_photograph_of_a_match_is_made_once(page, heat, monkeypatch):
    calls, desk = [], page.app.state.shared
    crop = desk.network.embedder.crop
    monkeypatch.setattr(type(desk.network.embedder), "crop", lambda self, *given: calls.append(given) or crop(*given))
    answer = page.post(f"/api/encounters/{undecided(page)[0]['id']}/answers", json={"k": 5}).json()
    found = next(each for each in answer["candidates"] if not each["is_new"])
    for of in ("query", "match"):
        got = page.get(f"/api/answers/{answer['id']}/heat", params={"rank": found["rank"], "of": of})
        assert (got.status_code, got.headers["content-type"], got.content) == (200, "image/png", of.encode())
        assert got.headers["x-heat-maps"] == "grad-cam"
    asked, match = (undecided(page)[0]["photos"][0], found["photo"])
    assert [path.name for path, *_ in calls] == [asked["name"], match["name"]]
    assert [box and list(box) for _, box, _ in calls] == [asked["crop"]["box"], match["crop"]["box"]]


def test_heat_of_a_candidate_without_a_pair_of_photographs_is_404(page, heat):
    url = f"/api/encounters/{undecided(page)[0]['id']}/answers"
    answer = page.post(url, json={"place": "nowhere"}).json()
    assert [each["is_new"] for each in answer["candidates"]] == [True]
    for rank in (1, 2):
        got = page.get(f"/api/answers/{answer['id']}/heat", params={"rank": rank})
        assert got.status_code == 404 and f"no pair of photographs at rank {rank}" in got.json()["detail"]
    assert page.get("/api/answers/999/heat").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["encounters/999", "individuals/999", "answers/999", "photos/999/file", "photos/999/picture", "photos/999/crop"],
)
def test_get_of_a_number_that_is_not_there_is_404_in_a_sentence(still, path):
    got = still.get(f"/api/{path}")
    assert got.status_code == 404 and "number 999" in got.json()["detail"]


def test_ask_while_the_network_is_loaded_answers_and_uploads_wait(mine):
    desk = AppState(mine, Options(tokens=False, rates={}), owner="Ann")
    with TestClient(make_app(desk), base_url=HERE) as page:
        assert page.get("/api/health").json()["status"] == "loading"
        assert page.post(f"/api/encounters/{undecided(page)[0]['id']}/answers", json={}).status_code == 200
        waiting = upload(page, ("a.jpg", jpeg(1)))
        assert waiting.status_code == 503 and waiting.headers["retry-after"]

        def broken():
            raise OSError("the disk is gone")

        with pytest.raises(OSError):
            desk.network.open(broken)
        assert page.get("/api/health").json() == {
            "status": "failed",
            "detail": "OSError('the disk is gone')",
            "damage": [],
        }


def test_upload_while_the_network_is_being_loaded_waits_for_it(mine, colours):
    loaded = threading.Event()
    desk = AppState(mine, Options(tokens=False, rates={}))
    with TestClient(make_app(desk, lambda: loaded.wait(30) and colours), base_url=HERE) as page:
        assert page.get("/api/health").json()["status"] == "loading"
        threading.Timer(0.2, loaded.set).start()
        assert upload(page, ("a.jpg", jpeg(1))).status_code == 201
        assert page.get("/api/health").json() == {"status": "ready", "detail": "", "damage": []}


def test_failed_network_is_told_without_the_servers_paths(mine):
    desk = AppState(mine, Options(tokens=False, rates={}))

    def load():
        raise UserError(f"there is no file {mine.folder / 'model' / 'gone.keras'}: build the catalogue again")

    with pytest.raises(UserError):
        desk.network.open(load)
    with TestClient(make_app(desk), base_url=HERE) as page:
        told = page.get("/api/health").json()
        assert told["status"] == "failed" and "gone.keras" in told["detail"] and str(mine.folder) not in told["detail"]
        refused = upload(page, ("a.jpg", jpeg(1)))
        assert refused.status_code == 503 and "gone.keras" in refused.json()["detail"]


def test_missing_photos_are_counted_and_a_remedy_is_named(page, mine):
    assert page.get("/api/missing-photos").json() == {"missing": 0, "names": [], "text": ""}
    made = upload(page, ("a.jpg", jpeg(1))).json()
    assert page.get("/api/missing-photos").json()["missing"] == 0
    (path,) = mine.folder.glob("photos/*/*.jpg")
    path.unlink()
    told = page.get("/api/missing-photos").json()
    assert told["missing"] == 1 and told["names"] == ["a.jpg"] and "1 photograph not found" in told["text"]
    mine.data = mine.data / "moved"
    told = page.get("/api/missing-photos").json()
    assert told["missing"] > 10 and len(told["names"]) == 5 and "where is the folder?" in told["text"]
    assert str(mine.folder.parent) not in told["text"]
    for what in ("picture", "crop", "file"):
        lost = page.get(f"/api/photos/{made['photos'][0]['id']}/{what}")
        assert lost.status_code == 404 and "photograph a.jpg is not where it was" in lost.json()["detail"]


def test_running_server_finds_photographs_that_were_relinked_by_a_command(page, mine):
    was = mine.data
    mine.move_data(was / "moved")
    assert page.get("/api/missing-photos").json()["missing"] > 10
    other = Catalogue(mine.folder)
    other.move_data(was)
    other.close()
    assert page.get("/api/missing-photos").json()["missing"] == 0 and mine.data == was


def test_export_messages_of_every_kind_count_what_was_withdrawn(page):
    made = upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2))).json()
    page.post(f"/api/encounters/{made['id']}/withdraw", json={"version": 1, "reason": "boat"}).raise_for_status()
    for kind in EXPORTS:
        told = page.get(f"/api/exports/{kind}/messages").json()["notes"]
        line = f"left out: 2 photographs of 1 encounter ({made['name']}), withdrawn on the page or by the command"
        assert told.count(line) == 1, kind


def test_export_messages_of_every_kind_say_what_is_left_out_or_refused(still):
    found = {kind: still.get(f"/api/exports/{kind}/messages").json() for kind in EXPORTS}
    assert found["csv"]["refused"] == [] and "not decided: without an individual" in found["csv"]["notes"][0]
    assert all("left out" in found[kind]["notes"][0] for kind in ("camtrap-dp", "mark", "rmark"))
    assert "has 0 observations" in found["camtrap-dp"]["refused"][0], "no photograph here has a position"
    wildbook = found["wildbook"]
    assert wildbook["total"] == len(wildbook["refused"] + wildbook["notes"]) > 1
    assert any(text.startswith("Row 2, encounter ") for text in wildbook["refused"])
    named = still.get("/api/exports/wildbook/messages", params={"submitter": "ana"}).json()
    assert found["wildbook"]["total"] == named["total"] + 1, "a submitter is named"
    assert still.get("/api/exports/nonsense/messages").status_code == 422


def test_export_of_every_kind_of_all_or_one_species(still):
    for kind in ("csv", "wildbook", "camtrap-dp", "mark", "rmark"):
        got = still.get(f"/api/exports/{kind}")
        assert got.status_code == 200 and got.content and "attachment" in got.headers["content-disposition"], kind
    assert still.get("/api/exports/nonsense").status_code == 422
    everything = pd.read_csv(io.BytesIO(still.get("/api/exports/csv").content))
    one = everything["species"].dropna().unique()[0]
    part = pd.read_csv(io.BytesIO(still.get("/api/exports/csv", params={"species": one}).content))
    pd.testing.assert_frame_equal(
        part, everything[everything["species"] == one].reset_index(drop=True), check_dtype=False
    )
    assert f"species: {one}" in still.get("/api/exports/mark", params={"species": one, "occasions": "day"}).text


# --- what is left when the server is killed: the files as they are on the disk, of a server that still runs


@contextmanager
def left_by_a_kill(mine, folder):
    """A catalogue on a copy of what `mine` has on the disk now, as after `kill -9`."""
    opened = Catalogue(shutil.copytree(mine.folder, folder))
    yield opened
    opened.close()


def test_decide_answered_with_200_is_in_what_a_kill_leaves(page, mine, tmp_path):
    met = undecided(page)[0]
    body = {"kind": "new", "version": 1, "name": "Hope", "species": "beluga"}
    done = page.post(f"/api/encounters/{met['id']}/decisions", json=body)
    assert done.status_code == 200
    with left_by_a_kill(mine, tmp_path / "left") as left, left.reading() as session:
        row, now = session.get(Decision, done.json()["decision"]["id"]), session.get(Encounter, met["id"])
        assert (row.kind, row.encounter_id, row.who) == ("new", met["id"], "Ann")
        assert now.state == "new" and session.get(Individual, now.individual_id).name == "Hope"


def test_add_encounter_answered_with_201_is_whole_in_what_a_kill_leaves(page, mine, tmp_path):
    data = [jpeg(1), jpeg(2)]
    made = upload(page, *((f"{i}.jpg", part) for i, part in enumerate(data)))
    assert made.status_code == 201
    with left_by_a_kill(mine, tmp_path / "left") as left, left.reading() as session:
        kept = session.scalars(select(Photo).where(Photo.encounter_id == made.json()["id"]).order_by(Photo.id)).all()
        assert [left.path(photo).read_bytes() for photo in kept] == data
        assert all(photo_crop(session, photo.id) for photo in kept)
        embedded = session.scalars(select(Annotation.photo_id).join(Embedding)).all()
        assert set(embedded) >= {photo.id for photo in kept}


@pytest.mark.parametrize("step", ["keep_photo", "new_encounter", "add_photo", "log_decision", "commit"])
def test_add_encounter_that_is_cut_off_leaves_nothing_half(page, mine, tmp_path, monkeypatch, step):
    """At any step of an upload, before or in its transaction: no row of it is there, and no file is half."""
    before, left, counts = page.get("/api/session").json()["catalogue"], [], Counter()

    def cut(*given, **more):
        counts[step] += 1
        if counts[step] == (2 if step in ("keep_photo", "add_photo") else 1):  # the second photograph's
            left.append(shutil.copytree(mine.folder, tmp_path / "left"))
            raise RuntimeError("the power is gone")
        return original(*given, **more)

    owner = SessionTransaction if step == "commit" else upload_photos
    original = getattr(owner, step)
    monkeypatch.setattr(owner, step, cut)
    with pytest.raises(RuntimeError, match="the power is gone"):
        upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)))
    monkeypatch.undo()
    assert page.get("/api/session").json()["catalogue"] == before
    whole = {hashlib.sha256(jpeg(i)).hexdigest(): jpeg(i) for i in (1, 2)}
    for folder in (mine.folder, *left):
        opened = Catalogue(folder)
        with opened.reading() as session:
            assert session.scalar(select(func.count()).select_from(Photo)) == before["photos"]
            assert session.scalar(select(func.count()).select_from(Encounter)) == before["encounters"]
            assert session.scalar(select(func.count()).select_from(Decision)) == 0
        opened.close()
        files = [path for path in folder.glob("photos/**/*") if path.is_file() and path.name != LEASE]
        assert all(path.read_bytes() == whole[path.stem] for path in files)
    again = upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)))
    assert again.status_code == 201 and len(again.json()["photos"]) == 2, "sent again, it is taken"


@pytest.mark.parametrize("step", ["make_individual", "update_encounter", "log_decision"])
def test_decide_that_is_cut_off_leaves_nothing_half(page, mine, monkeypatch, step):
    met, before = undecided(page)[0], page.get("/api/session").json()["catalogue"]

    def cut(*given, **more):
        original(*given, **more)
        raise RuntimeError("the power is gone")

    original = getattr(decisions, step)
    monkeypatch.setattr(decisions, step, cut)
    with pytest.raises(RuntimeError, match="the power is gone"):
        body = {"kind": "new", "version": 1, "name": "Hope", "species": "beluga"}
        page.post(f"/api/encounters/{met['id']}/decisions", json=body)
    assert page.get("/api/session").json()["catalogue"] == before
    assert page.get(f"/api/encounters/{met['id']}").json() == met
    assert page.get("/api/audit-log").json()["decisions"] == []


# --- the Photo ID App's contract: POST {base}/match, bearer token, multipart images, ranked ratings in [0, 1]


def test_match_is_the_photo_id_apps_contract(mine, colours, tokens):
    with client(mine, colours, tokens["read"]) as app:
        files = [("images", (f"{i}.jpg", jpeg(i, (1000, 700), quality=85), "image/jpeg")) for i in range(3)]
        got = app.post("/match", files=files)
        assert got.status_code == 200 and set(got.json()) == {"matches"}
        matches = got.json()["matches"]
        assert [match["rank"] for match in matches] == list(range(1, len(matches) + 1)) and len(matches) > 10
        names = {each["name"] for each in app.get("/api/individuals", params={"limit": 200}).json()["individuals"]}
        for match in matches:
            assert set(match) == {"rank", "id", "rating", "details"}
            assert 0 <= match["rating"] <= 1 and match["id"] in names and ".jpg" in match["details"]
        ratings = [match["rating"] for match in matches]
        assert ratings == sorted(ratings, reverse=True)
        asked = [("photos", file) for _, file in files]
        found = app.post("/api/identify", files=asked, data={"k": 50}).json()["candidates"]
        new = next(each["probability"] for each in found if each["is_new"])
        assert all(match["details"].endswith(f"photographs known; new: {new:.0%}") for match in matches)
        before = app.get("/api/session").json()["catalogue"]
        assert before == app.get("/api/session").json()["catalogue"], "asking adds nothing"


def test_match_of_what_cannot_be_answered_has_the_contracts_errors(mine, colours, tokens):
    with client(mine, colours, tokens["read"]) as app:
        files = [
            ("images", ("good.jpg", jpeg(), "image/jpeg")),
            ("images[]", ("notes.jpg", b"no picture", "image/jpeg")),
        ]
        bad = app.post("/match", files=files)
        assert bad.status_code == 422 and "notes.jpg" in bad.json()["detail"]
        none = app.post("/match", files={"photos": ("a.jpg", jpeg(), "image/jpeg")})
        assert none.status_code == 422 and "images" in none.json()["detail"]
        assert app.post("/match").status_code == 422
        for headers in ({"authorization": "Bearer wrong"}, {"authorization": "Basic abc"}):
            refused = app.post("/match", files=files[:1], headers=headers)
            assert refused.status_code == 401 and isinstance(refused.json()["detail"], str)
    desk = AppState(mine, Options(rates={}))
    with TestClient(make_app(desk), base_url=HERE, headers={"authorization": f"Bearer {tokens['read']}"}) as app:
        waiting = app.post("/match", files=files[:1])
        assert waiting.status_code == 503 and isinstance(waiting.json()["detail"], str)


def test_match_takes_both_names_of_its_field_alike(mine, colours, tokens):
    with client(mine, colours, tokens["read"]) as app:
        files = [(f"{i}.jpg", jpeg(i), "image/jpeg") for i in range(2)]
        ways = (("images", "images"), ("images[]", "images[]"), ("images", "images[]"))
        got = [app.post("/match", files=list(zip(names, files, strict=True))) for names in ways]
        assert [each.status_code for each in got] == [200] * 3
        assert got[0].json() == got[1].json() == got[2].json() and got[0].json()["matches"]
        one = app.post("/match", files=[("images", files[0])]).json()
        assert one != got[0].json(), "every photograph of a repeated field counts"


NODE = """
const [url, token, ...paths] = process.argv.slice(1);
const form = new FormData();
for (const path of paths) {
    const bytes = require("fs").readFileSync(path);
    form.append("images", new Blob([bytes], { type: "image/jpeg" }), path.split("/").at(-1));
}
fetch(url, { method: "POST", body: form, headers: { Authorization: `Bearer ${token}` } })
    .then(async (got) => console.log(JSON.stringify({ status: got.status, body: await got.json() })));
"""


@contextmanager
def listening(app):
    """An app on a free port of the loopback: its address."""
    ended = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=ended.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not ended.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{ended.servers[0].sockets[0].getsockname()[1]}"
    finally:
        ended.should_exit = True
        thread.join(30)


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node here: apt-get install nodejs")
def test_match_of_nodes_own_formdata_and_fetch_is_answered(mine, colours, tokens, tmp_path):
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(jpeg(i, (1000, 700), quality=85))
    with client(mine, colours, tokens["read"]) as app, listening(app.app) as address:
        words = ["node", "-e", NODE, "--", f"{address}/match", tokens["read"], *map(str, paths)]
        told = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        got = json.loads(told.stdout)
        files = [("images", (path.name, path.read_bytes(), "image/jpeg")) for path in paths]
        assert got == {"status": 200, "body": app.post("/match", files=files).json()}
    assert len(got["body"]["matches"]) > 10
    assert all(isinstance(match[key], str) for match in got["body"]["matches"] for key in ("id", "details"))


# --- who is let in


READ = """get /api/session, get /api/facets, get /api/encounters, get /api/encounters/{number}, get /api/individuals,
get /api/individuals/{number}, get /api/individuals/{number}/photos, get /api/next-id, get /api/audit-log,
get /api/photos/{number}/file, get /api/photos/{number}/picture, get /api/photos/{number}/crop,
post /api/encounters/{number}/answers, get /api/answers/{number}, get /api/answers/{number}/heat, post /api/identify,
get /api/exports/{kind}, get /api/exports/{kind}/messages, get /api/missing-photos, post /match"""
REVIEW = """post /api/encounters, post /api/encounters/{number}/photos, patch /api/encounters/{number},
put /api/photos/{number}/crop, post /api/encounters/{number}/decisions, post /api/decisions/{number}/undo,
post /api/individuals/{number}/merge, post /api/individuals/{number}/split, patch /api/individuals/{number},
post /api/encounters/{number}/withdraw, post /api/encounters/{number}/restore, post /api/photos/{number}/withdraw,
post /api/photos/{number}/restore, patch /api/photos/{number}, post /api/photos/move, post /api/encounters/regroup"""
ADMIN = """get /api/tokens, post /api/tokens, delete /api/tokens/{number}, delete /api/photos/{number},
delete /api/encounters/{number}"""
ALL = "get /api/health, post /api/session, delete /api/session"
TAKEN = dict(zip(("", *ROLES), (ALL, READ, REVIEW, ADMIN), strict=True))
ROUTES = {route: role for role, text in TAKEN.items() for route in re.split(r",\s", text)}


def test_every_route_takes_its_role_or_a_higher_one_and_no_lower(mine, colours, tokens):
    """A new route has to be written down above, with the role that it takes."""
    with client(mine, colours, tokens["read"]) as app:
        described = app.get("/openapi.json").json()["paths"]
        assert {f"{method} {path}" for path, methods in described.items() for method in methods} == set(ROUTES)
        for route, needed in ROUTES.items():
            method, _, path = route.partition(" ")
            url = path.replace("{kind}", "csv").replace("{number}", "987654")
            for role in ("", *ROLES):
                app.headers["authorization"] = f"Bearer {tokens[role]}" if role else ""
                got = app.request(method, url, json={} if method in ("post", "put", "patch") else None)
                told = f"{route} as {role or 'nobody'}: {got.status_code}"
                if needed and not role:
                    assert got.status_code == 401 and set(got.json()) == {"detail"}, told
                elif needed and ROLES.index(role) < ROLES.index(needed):
                    assert got.status_code == 403 and f"needs the role {needed}" in got.json()["detail"], told
                else:
                    assert got.status_code in (200, 204, 400, 404, 422), told
                    assert got.status_code < 300 or "token is needed" not in got.json()["detail"]


def test_undo_of_another_persons_decision_takes_an_admin(mine, colours, tokens):
    with client(mine, colours, tokens["review"]) as reviewer, client(mine, colours, tokens["admin"]) as admin:
        met = undecided(reviewer)[0]
        url, body = f"/api/encounters/{met['id']}/decisions", {"kind": "unsure", "version": 1}
        number = admin.post(url, json=body).json()["decision"]["id"]
        assert reviewer.post(f"/api/decisions/{number}/undo").status_code == 400, "an admin's decision"
        number = reviewer.post(url, json=body | {"version": 2}).json()["decision"]["id"]
        assert admin.post(f"/api/decisions/{number}/undo").status_code == 200
        line = admin.get("/api/audit-log").json()["decisions"][0]
        assert (line["kind"], line["user"], line["undoes"]) == ("undo", "adminer", number)


def test_new_token_is_shown_once_kept_as_digest_and_can_be_ended(mine, colours, tokens):
    with client(mine, colours, tokens["admin"]) as admin:
        made = admin.post("/api/tokens", json={"name": "Ben", "role": "review"}).json()
        assert made["token"] not in admin.get("/api/tokens").text
        with mine.reading() as session:
            row = session.get(Token, made["id"])
            assert row.digest == digest(made["token"]) and made["token"] not in str(vars(row))
        theirs = {"authorization": f"Bearer {made['token']}"}
        assert admin.get("/api/session", headers=theirs).json()["user"] == "Ben"
        assert admin.delete(f"/api/tokens/{made['id']}").status_code == 204
        assert admin.get("/api/session", headers=theirs).status_code == 401


def test_sign_in_cookie_is_out_of_reach_of_scripts_and_other_sites(mine, colours, tokens):
    with client(mine, colours, tokens["review"]) as app:
        app.headers.pop("authorization")
        assert app.post("/api/session", json={"token": "hw_wrong"}).status_code == 401
        got = app.post("/api/session", json={"token": tokens["review"]})
        cookie = got.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert app.get("/api/session").json()["user"] == "reviewer"
        app.delete("/api/session")
        assert app.get("/api/session").status_code == 401
        assert "secure" not in cookie
        app.base_url = HERE.replace("http", "https")
        got = app.post("/api/session", json={"token": tokens["review"]})
        assert "secure" in got.headers["set-cookie"].lower(), "where there is TLS, by TLS alone"


def test_caller_with_wrong_tokens_is_slowed_down_and_others_are_not(mine, colours, tokens):
    with client(mine, colours, tokens["read"], rates={"sign in": 5}) as app:
        wrong = [app.get("/api/facets", headers={"authorization": f"Bearer hw_{i}"}).status_code for i in range(8)]
        assert wrong == [401] * 5 + [429] * 3
        assert {app.get("/api/facets").status_code for _ in range(10)} == {200}, "who has a token is let in"
        app.headers["authorization"] = ""
        assert {app.get("/api/facets").status_code for _ in range(10)} == {401}, "no token is no guess"


def test_needs_slows_down_requests_and_questions_of_each_caller_apart(mine, colours, tokens):
    with client(mine, colours, tokens["read"], rates={"request": 40, "question": 3}) as app:
        url = f"/api/encounters/{undecided(app)[0]['id']}/answers"
        assert [app.post(url, json={}).status_code for _ in range(5)] == [200] * 3 + [429] * 2
        assert [app.get("/api/facets").status_code for _ in range(41)] == [200] * 39 + [429] * 2
        theirs = {"authorization": f"Bearer {tokens['review']}"}
        got = [app.get("/api/facets", headers=theirs), app.post(url, json={}, headers=theirs)]
        assert [each.status_code for each in got] == [200, 200]


# --- attacks


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_gate_refuses_changes_from_other_sites_pages(still, headers):
    met = undecided(still)[0]
    got = still.post(f"/api/encounters/{met['id']}/decisions", json={"kind": "unsure", "version": 1}, headers=headers)
    assert got.status_code == 403
    assert still.get(f"/api/encounters/{met['id']}").json()["version"] == 1


def test_gate_refuses_a_strange_host_name(still):
    """An attacker's name that points at the loopback (DNS rebinding)."""
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert still.get("/api/encounters", headers={"host": host}).status_code == 400
    assert still.get("/api/encounters", headers={"host": "localhost:8000"}).status_code == 200


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded"])
def test_gate_refuses_a_proxys_requests_where_no_tokens_are_asked_for(mine, colours, tokens, name):
    with client(mine, colours) as page:
        got = page.get("/api/encounters", headers={name: "10.1.2.3"})
        assert got.status_code == 403 and "--tokens" in got.json()["detail"]
    with client(mine, colours, tokens["read"]) as app:
        assert app.get("/api/encounters", headers={name: "10.1.2.3"}).status_code == 200


def test_gate_lets_in_the_hosts_that_it_was_told_of(mine, colours):
    with client(mine, colours, hosts=("whales.example",)) as page:
        for host, status in (("whales.example:443", 200), ("WHALES.example", 200), ("a.whales.example", 400)):
            assert page.get("/api/health", headers={"host": host}).status_code == status, host


def test_gate_takes_as_many_bytes_as_it_was_told_and_no_more(mine, colours):
    def parts(count):
        yield from (b"x" * 100,) * count

    with client(mine, colours, max_json=1000) as page:
        for content, status in ((b"x" * 1000, 422), (b"x" * 1001, 413), (parts(10), 422), (parts(11), 413)):
            got = page.post("/api/session", content=content, headers={"content-type": "application/json"})
            assert got.status_code == status
        for length in ("-1", "1e2", "0x10"):
            assert page.get("/api/health", headers={"content-length": length}).status_code == 413


def png(width, height, body=b""):
    """A PNG that says it is so large, of a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data, told",
    [
        (b"", "empty"),
        (b"<html><script>alert(1)</script>", "not a supported image"),
        (b"GIF89a" + bytes(50), "damaged"),
        (b"\0\0\0\x18ftypisom" + bytes(50), "is a film: send single frames"),
        (b"FUJIFILMCCD-RAW " + bytes(50), "is a camera's RAW file: export it as JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a supported image"),
        (jpeg()[:700], "damaged"),
        (png(60000, 60000), "pixels"),
        (png(30000, 10), "pixels"),
    ],
)
def test_add_encounter_with_a_bad_photograph_is_refused_by_name_and_leaves_nothing(still, data, told):
    before = still.get("/api/session").json()["catalogue"]
    got = upload(still, ("good.jpg", jpeg(5)), ("bad.jpg", data))
    assert got.status_code == 422 and "bad.jpg" in got.json()["detail"] and told in got.json()["detail"]
    assert still.get("/api/session").json()["catalogue"] == before
    assert not list(still.app.state.shared.catalogue.folder.glob("photos/*/*"))


def test_add_encounter_of_too_many_bytes_or_photographs_is_413(mine, colours):
    small = jpeg(9, (8, 8))
    with client(mine, colours, limits=Limits(bytes=5000), max_bytes=40_000, max_photos=3) as page:
        assert upload(page, ("big.jpg", jpeg(0, (200, 200)))).status_code == 413
        assert upload(page, *((f"{i}.jpg", jpeg(i, (8, 8))) for i in range(4))).status_code == 413
        assert upload(page, *((f"{i}.jpg", jpeg(i, (8, 8))) for i in range(3))).status_code == 201
        assert upload(page, ("a.jpg", bytes(50_000))).status_code == 413
        for limit, status in ((len(small), 201), (len(small) - 1, 413)):
            page.app.state.shared.options = replace(page.app.state.shared.options, limits=Limits(bytes=limit))
            assert upload(page, (f"{limit}.jpg", small)).status_code == status

        def endless():
            yield b'--x\r\ncontent-disposition: form-data; name="photos"; filename="a"\r\n\r\n'
            for _ in range(100):
                yield bytes(1000)

        got = page.post(
            "/api/encounters", content=endless(), headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert got.status_code == 413, "counted as it comes in: there was no content-length"


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..\\..\\boot.ini", "/etc/shadow", "a/../../b.jpg", "nul\x00.jpg", "\u202egpj.exe"]
)
def test_add_encounter_with_a_path_as_file_name_keeps_it_as_a_name(page, mine, name):
    got = upload(page, (name, jpeg(7)))
    assert got.status_code == 201
    shown = got.json()["photos"][0]["name"]
    assert not set(shown) & set("/\\\x00\u202e")
    kept = [path.relative_to(mine.folder) for path in mine.folder.glob("photos/**/*") if path.is_file()]
    assert len(kept) == 1 and re.fullmatch(r"photos/[0-9a-f]{2}/[0-9a-f]{64}\.jpg", kept[0].as_posix())


@pytest.mark.parametrize("path", ["/web/../api.py", "/web/%2e%2e/api.py", "/web/..%2fapi.py", "/web//etc/passwd"])
def test_web_path_outside_the_page_is_404(still, path):
    assert still.get(path).status_code == 404


def test_hostile_texts_are_kept_as_texts_and_no_formula_in_exports(page):
    formula = '=HYPERLINK("http://evil.example","x")'
    made = upload(page, (f"{formula}.jpg", jpeg(1)), place=formula, name="<img src=x onerror=alert(1)>")
    assert made.status_code == 201 and made.json()["name"] == "<img src=x onerror=alert(1)>"
    assert made.headers["content-type"] == "application/json" and made.headers["x-content-type-options"] == "nosniff"
    body = {"kind": "new", "version": 1, "name": "=1+1", "species": "=2+2"}
    page.post(f"/api/encounters/{made.json()['id']}/decisions", json=body)
    table = pd.read_csv(io.BytesIO(page.get("/api/exports/csv").content), dtype=str, keep_default_na=False)
    cells = {cell for column in ("photo", "place", "individual", "encounter") for cell in table[column]}
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells) and "'=1+1" in cells
    sheet = openpyxl.load_workbook(io.BytesIO(page.get("/api/exports/wildbook").content)).active
    assert not any(cell.data_type == "f" for row in sheet.iter_rows() for cell in row)


@pytest.mark.parametrize("q", ["' OR 1=1 --", "%", "_", "\\", "\x00", "\ud800", "a" * 200])
def test_encounters_searched_by_hostile_text_are_found_by_the_text_alone(still, q):
    query = {"q": q.encode("utf-8", "surrogatepass").decode("latin-1")}
    for what, fits in (("encounters", ("_", "\0")), ("individuals", "\0")):  # train_images/a.jpg has an underscore
        everything, got = still.get(f"/api/{what}").json()["total"], still.get(f"/api/{what}", params=query)
        assert got.status_code == 200 and got.json()["total"] == (everything if q in fits else 0), what


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind": "new", "version": 1, "name": "a\\u0000b"}',
        b'{"kind": "new", "version": 1, "name": "\\ud800"}',
        b'{"kind": "confirm", "version": 1, "individual_id": 99999999999999999999}',
        b'{"kind": "new", "version": 1e400}',
        b'{"kind": "new", "version": NaN}',
        b'{"kind": "new", "version": 1, "who": "somebody else"}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_decide_with_a_nonsense_body_is_refused_and_changes_nothing(still, body):
    met = undecided(still)[0]
    got = still.post(
        f"/api/encounters/{met['id']}/decisions", content=body, headers={"content-type": "application/json"}
    )
    assert 400 <= got.status_code < 500 and isinstance(got.json()["detail"], str)
    assert still.get(f"/api/encounters/{met['id']}").json()["version"] == 1


def test_pages_load_nothing_from_elsewhere(still):
    got = still.get("/")
    policy = got.headers["content-security-policy"]
    assert got.status_code == 200 and "default-src 'self'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for path in ("/", "/docs"):
        assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", still.get(path).text)


def test_photo_picture_and_crop_send_no_metadata(page):
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    exif.get_ifd(0x8825).update({1: "N", 2: (57.0, 1.0, 0.0), 3: "W", 4: (4.0, 0.0, 0.0)})
    made = upload(page, ("a.jpg", jpeg(3, exif=exif))).json()
    assert made["latitude"] == pytest.approx(57.0167, abs=1e-3), "taken over for those who may see it"
    for kind in ("picture", "crop"):
        assert b"secret place" not in page.get(f"/api/photos/{made['photos'][0]['id']}/{kind}").content


# --- the whole interface, by its own description


def ask_every_operation(catalogue, embedder, examples):
    """Requests that fit the OpenAPI description, to each operation: the method, path and status of each answer."""
    desk = AppState(catalogue, Options(tokens=False, rates={}), owner="Ann")
    desk.network.open(lambda: embedder)
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(desk), headers={"host": "127.0.0.1"})
    asked, how = [], {"deadline": None, "database": None, "derandomize": True}
    how |= {"suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}

    for operation in schema.get_all_operations():

        @settings(max_examples=examples, **how)
        @hypothesis.given(case=operation.ok().as_strategy())
        def fits(case):
            got = case.call(headers={"host": "127.0.0.1"})
            asked.append((case.method, case.path, got.status_code))
            case.validate_response(got, checks=[not_a_server_error])

        fits()
    return asked


@pytest.mark.parametrize("examples", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_every_operation_answers_what_fits_its_description_without_a_5xx(mine, colours, heat, examples):
    asked = ask_every_operation(mine, colours, examples)
    statuses = {status for *_, status in asked}
    assert len({where[:2] for where in asked}) == len(ROUTES) and 200 in statuses and max(statuses) < 500
