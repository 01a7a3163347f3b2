"""The catalogue over HTTP: what it answers, what it remembers, whom it lets in, and what attackers get."""

import io
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import numpy as np
import openpyxl
import pandas as pd
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from PIL import Image
from schemathesis.checks import not_a_server_error

from happywhale_nb import tables
from happywhale_nb.access import digest, make_token
from happywhale_nb.api import Desk, Options, make_app
from happywhale_nb.asking import Asker, ask_encounter
from happywhale_nb.catalogue import Catalogue, create_catalogue
from happywhale_nb.dataset import read_dataset
from happywhale_nb.intake import build, recalibrate
from happywhale_nb.tables import Token
from happywhale_nb.uploads import Limits
from happywhale_nb.views import list_encounters

HERE = "http://127.0.0.1:8000"


def client(catalogue, embedder, token="", **options):
    """A client of an app of this catalogue; without a token one that asks for none."""
    desk = Desk(catalogue, Options(**{"tokens": bool(token), "rates": {}} | options), owner="Ann")
    desk.open(lambda: embedder)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return TestClient(make_app(desk), base_url=HERE, headers=headers, raise_server_exceptions=True)


@pytest.fixture
def page(mine, colours):
    """A client on the loopback, without tokens."""
    with client(mine, colours) as made:
        yield made


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


def test_from_question_to_export(page, tiny):
    """The whole way: an undecided encounter is asked about, confirmed, in the trail with its answer, and exported."""
    met = undecided(page)[0]
    answer = page.post(f"/api/encounters/{met['id']}/answers", json={"k": 5}).json()
    assert answer["set_size"] >= 1 and len(answer["candidates"]) == 6
    chances = [each["chance"] for each in answer["candidates"]]
    assert sum(chances) + answer["other"] == pytest.approx(1, abs=1e-3) or len(chances) == 6
    assert sum(each["is_new"] for each in answer["candidates"]) <= 1
    first = next(each for each in answer["candidates"] if not each["is_new"])
    assert first["photo"]["name"] and first["photos"] >= 1 and first["asked"] == met["photos"][0]["id"]
    assert page.get(f"/api/answers/{answer['id']}").json() == answer
    body = {"kind": "confirm", "individual_id": first["individual"]["id"], "answer_id": answer["id"], "version": 1}
    done = page.post(f"/api/encounters/{met['id']}/decisions", json=body | {"note": "the notch"})
    assert done.status_code == 200 and done.json()["encounter"]["state"] == "confirmed"
    line = page.get("/api/trail", params={"encounter_id": met["id"]}).json()["decisions"][0]
    assert (line["who"], line["kind"], line["answer_id"], line["rank"]) == (
        "Ann",
        "confirm",
        answer["id"],
        first["rank"],
    )
    assert line["chance"] == first["chance"] and line["note"] == "the notch"
    table = pd.read_csv(io.BytesIO(page.get("/api/exports/csv").content), dtype=str, keep_default_na=False)
    row = table[table["encounter_id"] == str(met["id"])].iloc[0]
    assert (row["individual"], row["decided_by"], row["state"]) == (first["individual"]["name"], "Ann", "confirmed")


def test_a_confirmed_photograph_answers_for_its_animal_at_once_and_no_more_after_undo(page):
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


def test_the_same_on_postgresql(postgres, tiny, colours, tmp_path):
    catalogue = create_catalogue(tmp_path / "pg", tiny, "tiny", postgres())
    build(catalogue, colours, read_dataset(tiny), "colours")
    catalogue.choose_model(colours.fingerprint)
    recalibrate(catalogue)
    with client(catalogue, colours) as page:
        test_from_question_to_export(page, tiny)
        test_a_confirmed_photograph_answers_for_its_animal_at_once_and_no_more_after_undo(page)
    catalogue.close()


def test_a_set_of_photographs_is_asked_together_and_never_answers_for_itself(page):
    made = upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), date="2026-08-01", place="Ness", side="left").json()
    assert len(made["photos"]) == 2 and made["side"] == "left"
    body = {"kind": "new", "version": 1}
    named = page.post(f"/api/encounters/{made['id']}/decisions", json=body).json()["encounter"]
    assert re.fullmatch(r"N\d{4}", named["individual"]["name"]), (
        "hex names have no number: the proposal starts a series"
    )
    answer = page.post(f"/api/encounters/{made['id']}/answers", json={}).json()
    assert all(each["photo"]["encounter"]["id"] != made["id"] for each in answer["candidates"] if each["photo"])


def test_more_askers_than_connections_to_the_database_all_get_their_answer(mine, monkeypatch):
    """Who waits for a turn at the gallery holds no connection: else one who has the turn may never get one."""
    make, one = tables.create_engine, {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
    monkeypatch.setattr(tables, "create_engine", lambda address, **how: make(address, **how | one))
    catalogue = Catalogue(mine.folder)
    asker = Asker(catalogue)
    with catalogue.reading() as session:
        numbers = [met["id"] for met in list_encounters(session, asker.settings, limit=100)["encounters"]]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda i: ask_encounter(asker, "Ann", numbers[i % len(numbers)], 3), range(60)))
    catalogue.close()
    assert len({each["id"] for each in answers}) == 60


def test_filters_leave_only_fitting_photographs_to_answer(page):
    met, facets = undecided(page)[0], page.get("/api/facets").json()
    for species in facets["species"]:
        answer = page.post(f"/api/encounters/{met['id']}/answers", json={"species": species}).json()
        assert {each["individual"]["species"] for each in answer["candidates"] if each["individual"]} == {species}
        assert "filters leave out" in answer["note"]
    nobody = page.post(f"/api/encounters/{met['id']}/answers", json={"place": "nowhere"}).json()
    assert [each["is_new"] for each in nobody["candidates"]] == [True]


def test_of_two_reviewers_the_second_is_told_what_the_first_decided(page):
    met, animals = undecided(page)[0], page.get("/api/individuals").json()["individuals"]
    url, body = f"/api/encounters/{met['id']}/decisions", {"kind": "confirm", "version": met["version"]}
    assert page.post(url, json=body | {"individual_id": animals[0]["id"]}).status_code == 200
    late = page.post(url, json=body | {"individual_id": animals[1]["id"]})
    assert late.status_code == 409 and "somebody else" in late.json()["detail"]
    assert late.json()["encounter"]["individual"]["id"] == animals[0]["id"]
    assert late.json()["decision"]["kind"] == "confirm"


def test_merge_split_rename_and_back(page):
    one, two = page.get("/api/individuals").json()["individuals"][:2]
    same = [each for each in page.get("/api/individuals").json()["individuals"] if each["species"] == one["species"]]
    two = next(each for each in same if each["id"] != one["id"])
    done = page.post(f"/api/individuals/{one['id']}/merge", json={"into": two["id"]}).json()
    assert done["individual"]["photos"] == one["photos"] + two["photos"]
    gone = page.get(f"/api/individuals/{one['id']}").json()
    assert gone["merged_into"]["id"] == two["id"] and not gone["active"]
    assert page.post(f"/api/decisions/{done['decision']['id']}/undo").json()["encounter"] is None
    assert page.get(f"/api/individuals/{one['id']}").json()["photos"] == one["photos"]
    many = max(same, key=lambda each: each["encounters"])
    part = page.get(f"/api/individuals/{many['id']}").json()["encounters"][:1]
    made = page.post(f"/api/individuals/{many['id']}/split", json={"encounter_ids": [part[0]["id"]]}).json()
    assert made["individual"]["encounters"] == 1
    named = page.patch(f"/api/individuals/{made['individual']['id']}", json={"name": "Hope"}).json()
    assert named["name"] == "Hope"


def test_what_is_known_of_an_encounter_and_its_boxes_can_be_changed(page):
    made = upload(page, ("a.jpg", jpeg(1)), date="2026-08-01").json()
    url = f"/api/encounters/{made['id']}"
    edited = page.patch(url, json={"version": 1, "place": "Ness", "side": "right", "latitude": 57.1, "longitude": -4.2})
    assert edited.json()["place"] == "Ness" and edited.json()["side"] == "right" and edited.json()["version"] == 2
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


def test_the_same_photograph_twice(page):
    made = upload(page, ("a.jpg", jpeg(1))).json()
    again = page.post(f"/api/encounters/{made['id']}/photos", files={"photos": ("a2.jpg", jpeg(1), "image/jpeg")})
    assert again.status_code == 200 and len(again.json()["photos"]) == 1, "sent again, as after a lost answer"
    other = upload(page, ("b.jpg", jpeg(1)))
    assert other.status_code == 409 and made["name"] in other.json()["detail"]


def test_pictures(page):
    photo = undecided(page)[0]["photos"][0]
    for path, side in (("crop", 160), ("picture", 1600)):
        got = page.get(f"/api/photos/{photo['id']}/{path}", params={"side": side})
        assert got.headers["content-type"] == "image/jpeg"
        shape = Image.open(io.BytesIO(got.content)).size
        assert shape == ((160, 160) if path == "crop" else (photo["width"], photo["height"]))
    file = page.get(f"/api/photos/{photo['id']}/file")
    assert file.headers["content-disposition"].startswith("attachment") and file.content[:2] == b"\xff\xd8"


def test_while_the_network_is_loaded_known_encounters_are_answered_and_uploads_wait(mine):
    desk = Desk(mine, Options(tokens=False, rates={}), owner="Ann")
    with TestClient(make_app(desk), base_url=HERE) as page:
        assert page.get("/api/health").json()["status"] == "loading"
        assert page.post(f"/api/encounters/{undecided(page)[0]['id']}/answers", json={}).status_code == 200
        waiting = upload(page, ("a.jpg", jpeg(1)))
        assert waiting.status_code == 503 and waiting.headers["retry-after"]

        def broken():
            raise OSError("the disk is gone")

        with pytest.raises(OSError):
            desk.open(broken)
        assert page.get("/api/health").json() == {"status": "failed", "detail": "OSError('the disk is gone')"}


def test_every_export_can_be_had(page):
    for kind in ("csv", "wildbook", "camtrap-dp", "mark", "rmark"):
        got = page.get(f"/api/exports/{kind}")
        assert got.status_code == 200 and got.content and "attachment" in got.headers["content-disposition"], kind
    assert page.get("/api/exports/nonsense").status_code == 422
    everything = pd.read_csv(io.BytesIO(page.get("/api/exports/csv").content))
    one = everything["species"].dropna().unique()[0]
    part = pd.read_csv(io.BytesIO(page.get("/api/exports/csv", params={"species": one}).content))
    pd.testing.assert_frame_equal(
        part, everything[everything["species"] == one].reset_index(drop=True), check_dtype=False
    )
    assert f"species: {one}" in page.get("/api/exports/mark", params={"species": one, "occasions": "day"}).text


# --- the Photo ID App's contract: POST {base}/match, bearer token, multipart images[], ranked ratings in [0, 1]


def test_match_keeps_the_photo_id_apps_contract(mine, colours, tokens):
    with client(mine, colours, tokens["read"]) as app:
        files = [("images[]", (f"{i}.jpg", jpeg(i, (1000, 700), quality=85), "image/jpeg")) for i in range(3)]
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
        before = app.get("/api/session").json()["catalogue"]
        assert before == app.get("/api/session").json()["catalogue"], "asking adds nothing"


def test_match_tells_errors_as_the_contract_has_them(mine, colours, tokens):
    with client(mine, colours, tokens["read"]) as app:
        files = [
            ("images[]", ("good.jpg", jpeg(), "image/jpeg")),
            ("images[]", ("notes.jpg", b"no picture", "image/jpeg")),
        ]
        bad = app.post("/match", files=files)
        assert bad.status_code == 422 and "notes.jpg" in bad.json()["detail"]
        assert app.post("/match").status_code == 422
        for headers in ({"authorization": "Bearer wrong"}, {"authorization": "Basic abc"}):
            refused = app.post("/match", files=files[:1], headers=headers)
            assert refused.status_code == 401 and isinstance(refused.json()["detail"], str)
    desk = Desk(mine, Options(rates={}))
    with TestClient(make_app(desk), base_url=HERE, headers={"authorization": f"Bearer {tokens['read']}"}) as app:
        waiting = app.post("/match", files=files[:1])
        assert waiting.status_code == 503 and isinstance(waiting.json()["detail"], str)


# --- who is let in


def test_without_a_token_nothing_is_told_but_health(mine, colours, tokens):
    with client(mine, colours, tokens["admin"]) as app:
        app.headers.pop("authorization")
        paths = app.get("/openapi.json").json()["paths"]
        for path, methods in paths.items():
            for method in methods:
                url = re.sub(r"\{kind\}", "csv", re.sub(r"\{number\}", "1", path))
                got = app.request(method, url, json={} if method in ("post", "put", "patch") else None)
                if path == "/api/health":
                    assert got.status_code == 200
                else:
                    assert got.status_code in (401, 422, 204), (method, path)
                    assert got.status_code != 204 or (method, path) == ("delete", "/api/session")
                    assert "photos" not in got.text or "Field required" in got.text


def test_roles(mine, colours, tokens):
    met = 1
    with client(mine, colours, tokens["read"]) as reader:
        assert reader.get("/api/encounters").status_code == 200
        body = {"kind": "unsure", "version": 1}
        for got in (
            reader.post(f"/api/encounters/{met}/decisions", json=body),
            upload(reader, ("a.jpg", jpeg())),
            reader.post("/api/individuals/1/merge", json={"into": 2}),
            reader.get("/api/tokens"),
        ):
            assert got.status_code == 403 and "role" in got.json()["detail"]
    with client(mine, colours, tokens["review"]) as reviewer, client(mine, colours, tokens["admin"]) as admin:
        met = undecided(reviewer)[0]
        url, body = f"/api/encounters/{met['id']}/decisions", {"kind": "unsure", "version": 1}
        assert reviewer.get("/api/tokens").status_code == 403
        number = admin.post(url, json=body).json()["decision"]["id"]
        assert reviewer.post(f"/api/decisions/{number}/undo").status_code == 400, "an admin's decision"
        number = reviewer.post(url, json=body | {"version": 2}).json()["decision"]["id"]
        assert admin.post(f"/api/decisions/{number}/undo").status_code == 200


def test_tokens_are_shown_once_kept_as_digests_and_can_be_ended(mine, colours, tokens):
    with client(mine, colours, tokens["admin"]) as admin:
        made = admin.post("/api/tokens", json={"name": "Ben", "role": "review"}).json()
        assert made["token"] not in admin.get("/api/tokens").text
        with mine.reading() as session:
            row = session.get(Token, made["id"])
            assert row.digest == digest(made["token"]) and made["token"] not in str(vars(row))
        theirs = {"authorization": f"Bearer {made['token']}"}
        assert admin.get("/api/session", headers=theirs).json()["who"] == "Ben"
        assert admin.delete(f"/api/tokens/{made['id']}").status_code == 204
        assert admin.get("/api/session", headers=theirs).status_code == 401


def test_the_pages_cookie_is_out_of_reach_of_scripts_and_other_sites(mine, colours, tokens):
    with client(mine, colours, tokens["review"]) as app:
        app.headers.pop("authorization")
        assert app.post("/api/session", json={"token": "hw_wrong"}).status_code == 401
        got = app.post("/api/session", json={"token": tokens["review"]})
        cookie = got.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert app.get("/api/session").json()["who"] == "reviewer"
        app.delete("/api/session")
        assert app.get("/api/session").status_code == 401


def test_wrong_tokens_and_too_many_requests_are_slowed_down(mine, colours, tokens):
    with client(mine, colours, tokens["read"], rates={"sign in": 5, "request": 40}) as app:
        wrong = [app.get("/api/facets", headers={"authorization": f"Bearer hw_{i}"}).status_code for i in range(8)]
        assert wrong == [401] * 5 + [429] * 3
        right = [app.get("/api/facets").status_code for _ in range(42)]
        assert right == [200] * 40 + [429] * 2, "somebody else's guesses do not shut out who has a token"


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
def test_requests_from_other_sites_pages_change_nothing(page, headers):
    met = undecided(page)[0]
    got = page.post(f"/api/encounters/{met['id']}/decisions", json={"kind": "unsure", "version": 1}, headers=headers)
    assert got.status_code == 403
    assert page.get(f"/api/encounters/{met['id']}").json()["version"] == 1


def test_a_strange_host_name_is_refused(page):
    """An attacker's name that points at the loopback (DNS rebinding)."""
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert page.get("/api/encounters", headers={"host": host}).status_code == 400
    assert page.get("/api/encounters", headers={"host": "localhost:8000"}).status_code == 200


def test_a_proxy_in_front_of_a_server_without_tokens_is_noticed(page):
    assert page.get("/api/encounters", headers={"x-forwarded-for": "10.1.2.3"}).status_code == 403


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
        (b"<html><script>alert(1)</script>", "not a picture"),
        (b"GIF89a" + bytes(50), "GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (jpeg()[:700], "damaged"),
        (png(60000, 60000), "pixels"),
        (png(30000, 10), "pixels"),
    ],
)
def test_what_is_no_harmless_photograph_is_refused_by_name_and_leaves_nothing(page, mine, data, told):
    before = page.get("/api/session").json()["catalogue"]
    got = upload(page, ("good.jpg", jpeg(5)), ("bad.jpg", data))
    assert got.status_code == 422 and "bad.jpg" in got.json()["detail"] and told in got.json()["detail"]
    assert page.get("/api/session").json()["catalogue"] == before
    assert not list(mine.folder.glob("photos/*/*"))


def test_too_many_bytes_in_a_file_in_a_request_or_too_many_files(mine, colours):
    with client(mine, colours, limits=Limits(bytes=5000), most_bytes=40_000, most_photos=3) as page:
        assert upload(page, ("big.jpg", jpeg(0, (200, 200)))).status_code == 413
        assert upload(page, *((f"{i}.jpg", jpeg(i, (8, 8))) for i in range(4))).status_code == 413
        assert upload(page, ("a.jpg", bytes(50_000))).status_code == 413

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
def test_file_names_are_names_and_never_paths(page, mine, name):
    got = upload(page, (name, jpeg(7)))
    assert got.status_code == 201
    shown = got.json()["photos"][0]["name"]
    assert not set(shown) & set("/\\\x00\u202e")
    kept = [path.relative_to(mine.folder) for path in mine.folder.glob("photos/**/*") if path.is_file()]
    assert len(kept) == 1 and re.fullmatch(r"photos/[0-9a-f]{2}/[0-9a-f]{64}\.jpg", kept[0].as_posix())


@pytest.mark.parametrize("path", ["/web/../api.py", "/web/%2e%2e/api.py", "/web/..%2fapi.py", "/web//etc/passwd"])
def test_nothing_but_the_page_is_served(page, path):
    assert page.get(path).status_code == 404


def test_hostile_text_is_kept_as_text_and_harmless_in_exports(page):
    formula = '=HYPERLINK("http://evil.example","x")'
    made = upload(page, (f"{formula}.jpg", jpeg(1)), place=formula, name="<img src=x onerror=alert(1)>")
    assert made.status_code == 201 and made.json()["name"] == "<img src=x onerror=alert(1)>"
    assert made.headers["content-type"] == "application/json" and made.headers["x-content-type-options"] == "nosniff"
    page.post(f"/api/encounters/{made.json()['id']}/decisions", json={"kind": "new", "version": 1, "name": "=1+1"})
    table = pd.read_csv(io.BytesIO(page.get("/api/exports/csv").content), dtype=str, keep_default_na=False)
    cells = {cell for column in ("photo", "place", "individual", "encounter") for cell in table[column]}
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells) and "'=1+1" in cells
    sheet = openpyxl.load_workbook(io.BytesIO(page.get("/api/exports/wildbook").content)).active
    assert not any(cell.data_type == "f" for row in sheet.iter_rows() for cell in row)


@pytest.mark.parametrize("q", ["' OR 1=1 --", "%", "_", "\\", "\x00", "\ud800", "a" * 200])
def test_searches_are_text_to_the_database(page, q):
    got = page.get("/api/encounters", params={"q": q.encode("utf-8", "surrogatepass").decode("latin-1")})
    assert got.status_code == 200 and got.json()["total"] in (0, got.json()["total"])
    assert page.get("/api/individuals", params={"q": "' OR 1=1 --"}).json()["total"] == 0


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
def test_nonsense_is_a_refusal_and_never_a_failure(page, body):
    met = undecided(page)[0]
    got = page.post(
        f"/api/encounters/{met['id']}/decisions", content=body, headers={"content-type": "application/json"}
    )
    assert 400 <= got.status_code < 500 and isinstance(got.json()["detail"], str)
    assert page.get(f"/api/encounters/{met['id']}").json()["version"] == 1


def test_pages_may_load_nothing_from_elsewhere(page):
    got = page.get("/")
    policy = got.headers["content-security-policy"]
    assert got.status_code == 200 and "default-src 'self'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for path in ("/", "/docs"):
        assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page.get(path).text)


def test_metadata_of_a_photograph_is_not_sent_out(page):
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    exif.get_ifd(0x8825).update({1: "N", 2: (57.0, 1.0, 0.0), 3: "W", 4: (4.0, 0.0, 0.0)})
    made = upload(page, ("a.jpg", jpeg(3, exif=exif))).json()
    assert made["latitude"] == pytest.approx(57.0167, abs=1e-3), "taken over for those who may see it"
    for kind in ("picture", "crop"):
        assert b"secret place" not in page.get(f"/api/photos/{made['photos'][0]['id']}/{kind}").content


# --- the whole interface, by its own description


def test_schemathesis_finds_no_failure(mine, colours):
    """Every operation of the OpenAPI description, with requests that fit it and such that do not: never a 5xx."""
    desk = Desk(mine, Options(tokens=False, rates={}), owner="Ann")
    desk.open(lambda: colours)
    app = make_app(desk)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "127.0.0.1"})
    asked = []

    for operation in schema.get_all_operations():
        strategy = operation.ok().as_strategy()

        @settings(
            max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @hypothesis.given(case=strategy)
        def fits(case):
            got = case.call(headers={"host": "127.0.0.1"})
            asked.append((case.method, case.path, got.status_code))
            case.validate_response(got, checks=[not_a_server_error])

        fits()
    statuses = {status for *_, status in asked}
    assert len({where[:2] for where in asked}) >= 30 and 200 in statuses and not any(s >= 500 for s in statuses)
