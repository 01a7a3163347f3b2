"""Withdraw, put back, delete, move, regroup, edit, over HTTP and by command; what is asked back; what Undo says."""

import getpass

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import ExifTags, Image
from sqlalchemy import func, select
from test_api import client, jpeg, undecided, upload

from happywhale_nb.catalogue.decisions import decide, make_individual, merge, rename_individual
from happywhale_nb.catalogue.edits import set_crop, undo_decision
from happywhale_nb.catalogue.ingest import re_embed, recalibrate
from happywhale_nb.catalogue.listings import sightings
from happywhale_nb.catalogue.matching import Matcher
from happywhale_nb.catalogue.schema import Decision, Embedding, Encounter, Individual, Photo
from happywhale_nb.catalogue.store import model_row
from happywhale_nb.catalogue.undoing import undo
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError


@pytest.fixture
def page(mine, colours):
    """A client on the loopback, without tokens."""
    with client(mine, colours) as made:
        yield made


def taken(seed, when):
    """A photograph whose camera says when it was taken."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = when
    return jpeg(seed, exif=exif)


def log_of(page, **about):
    return page.get("/api/audit-log", params=about).json()["decisions"]


def counts(page):
    return page.get("/api/facets").json()["states"]


# --- withdraw and put back


def test_withdrawn_encounter_waits_for_nobody_and_comes_back_as_it_was(page, mine):
    animal = page.get("/api/individuals").json()["individuals"][0]
    made = upload(page, ("boat.jpg", jpeg(1)), place="Ness").json()
    url = f"/api/encounters/{made['id']}"
    body = {"kind": "confirm", "individual_id": animal["id"], "version": 1}
    confirmed = page.post(f"{url}/decisions", json=body).json()["encounter"]
    before = counts(page)
    gone = page.post(f"{url}/withdraw", json={"version": 2, "reason": "boat", "note": "the ferry"}).json()
    assert gone["decision"]["text"] == f"withdrew {made['name']} (boat)" and gone["decision"]["can_undo"]
    assert (gone["encounter"]["state"], gone["encounter"]["individual"]) == ("withdrawn", None)
    told = gone["encounter"]["withdrawn"]
    assert (told["reason"], told["user"], told["decision"]) == ("boat", "Ann", gone["decision"]["id"])
    assert counts(page) == before | {"confirmed": before["confirmed"] - 1, "withdrawn": 1}
    assert page.get(f"/api/individuals/{animal['id']}").json()["photos"] == animal["photos"]
    with mine.reading() as session:
        assert "boat.jpg" not in set(sightings(session)["photo"])
    asked = page.post(f"{url}/answers", json={})
    assert asked.status_code == 400 and "put it back" in asked.json()["detail"]
    decided = page.post(f"{url}/decisions", json={"kind": "unsure", "version": 3})
    assert decided.status_code == 400 and "put it back first" in decided.json()["detail"]
    assert page.post(f"{url}/withdraw", json={"version": 3, "reason": "boat"}).status_code == 400
    more = page.post(f"{url}/photos", files={"photos": ("c.jpg", jpeg(2), "image/jpeg")})
    assert more.status_code == 400 and "was withdrawn" in more.json()["detail"]
    again = upload(page, ("again.jpg", jpeg(1)))
    assert again.status_code == 409 and "put it back there" in again.json()["detail"]
    back = page.post(f"{url}/restore").json()
    assert back["encounter"] == confirmed | {"version": 4} and counts(page) == before
    assert back["decision"]["text"] == f"undid: withdrew {made['name']} (boat)"
    assert page.post(f"{url}/restore").status_code == 400
    assert page.post(f"{url}/withdraw", json={"version": 4, "reason": "whim"}).status_code == 422
    late = page.post(f"{url}/withdraw", json={"version": 2, "reason": "boat"})
    assert late.status_code == 409 and late.json()["encounter"]["version"] == 4


def test_withdrawn_photo_is_no_longer_asked_about_and_the_last_one_takes_its_encounter_out(page):
    made = upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), side="left").json()
    one, two = (photo["id"] for photo in made["photos"])
    gone = page.post(f"/api/photos/{one}/withdraw", json={"version": 1, "reason": "empty sea"}).json()["encounter"]
    assert [photo["withdrawn"] for photo in gone["photos"]] == ["empty sea", ""]
    assert (gone["state"], gone["side"]) == ("undecided", "left")
    answer = page.post(f"/api/encounters/{made['id']}/answers", json={}).json()
    assert {each["query_photo"] for each in answer["candidates"] if each["photo"]} == {two}
    empty = page.post(f"/api/photos/{two}/withdraw", json={"version": 2, "reason": "mistake"}).json()["encounter"]
    assert (empty["state"], empty["withdrawn"]["reason"]) == ("withdrawn", "no photographs left")
    assert made["id"] not in {met["id"] for met in undecided(page)}
    listed = page.get("/api/encounters", params={"state": "withdrawn"}).json()["encounters"]
    assert [met["id"] for met in listed] == [made["id"]]
    late = page.post(f"/api/photos/{one}/withdraw", json={"version": 1, "reason": "boat"})
    assert late.status_code == 400 and "already" in late.json()["detail"]
    back = page.post(f"/api/photos/{one}/restore").json()["encounter"]
    assert (back["state"], [photo["withdrawn"] for photo in back["photos"]]) == ("undecided", ["", "mistake"])


def test_withdrawn_encounter_of_a_merged_animal_comes_back_to_the_one_that_stays(mine):
    with mine.writing() as session:
        gone, stays = (make_individual(session, name, "beluga").id for name in ("Hope", "Sky"))
        met = session.scalar(select(Encounter).where(Encounter.state == "undecided"))
        first, _ = decide(session, "Ann", met.id, "confirm", met.version, gone)
        second, _ = decide(session, "Ann", met.id, "unsure", met.version)
        merged, _ = merge(session, "Ben", gone, stays)
        undo(session, "Ann", second.id)
        assert met.individual_id == stays, "active, so that it can be proposed and confirmed"
        undo(session, "Ben", merged.id)
        assert met.individual_id == gone
        undo(session, "Ann", first.id)
        assert met.individual_id is None


@pytest.mark.rest
def test_undo_more_than_200_lines_later_is_answered_at_once(mine):
    with mine.writing() as session:
        species = select(Individual.species).group_by(Individual.species).having(func.count() > 1).limit(1)
        one_kind = select(Individual.id).where(Individual.species == session.scalar(species)).limit(2)
        two = session.scalars(one_kind).all()
        merged, _ = merge(session, "Ann", *two)
    matcher = Matcher(mine)
    with mine.writing() as session:
        met = session.scalar(select(Encounter).where(Encounter.state == "undecided"))
        for _ in range(220):
            decide(session, "Ben", met.id, "unsure", met.version)
    matcher.refresh()
    with mine.writing() as session:
        undo(session, "Ann", merged.id)
    matcher.refresh()
    assert matcher.photos.known.counts() == Matcher(mine).photos.known.counts()
    assert str(two[0]) in matcher.photos.known.counts()


# --- move and regroup


def test_moved_photos_are_asked_about_in_their_new_encounter(page):
    made = upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), place="Ness", species="Beluga").json()
    one, two = (photo["id"] for photo in made["photos"])
    assert made["species"] == "beluga", "spelt as the catalogue spells it"
    stale = page.post("/api/photos/move", json={"photo_ids": [two], "versions": {made["id"]: 7}})
    assert stale.status_code == 409 and len(page.get(f"/api/encounters/{made['id']}").json()["photos"]) == 2
    moved = page.post("/api/photos/move", json={"photo_ids": [two], "versions": {made["id"]: 1}}).json()
    target, source = moved["encounters"]
    assert ([p["id"] for p in target["photos"]], [p["id"] for p in source["photos"]]) == ([two], [one])
    assert (target["place"], target["species"], target["state"]) == ("Ness", "beluga", "undecided")
    assert moved["decision"]["text"] == f"moved b.jpg from {made['name']} to {target['name']}"
    for number in (source["id"], target["id"]):
        assert log_of(page, encounter_id=number)[0]["id"] == moved["decision"]["id"], "in both histories"
    page.post(f"/api/encounters/{target['id']}/decisions", json={"kind": "unsure", "version": target["version"]})
    refused = page.post(f"/api/decisions/{moved['decision']['id']}/undo")
    assert refused.status_code == 409 and refused.json()["decision"]["text"] == f"set {target['name']} aside as unsure"
    assert refused.json()["detail"].startswith(f"Ann set {target['name']} aside as unsure (")
    page.post(f"/api/decisions/{refused.json()['decision']['id']}/undo")
    undone = page.post(f"/api/decisions/{moved['decision']['id']}/undo").json()
    assert {met["id"]: len(met["photos"]) for met in undone["encounters"]} == {source["id"]: 2, target["id"]: 0}
    assert page.get(f"/api/encounters/{target['id']}").json()["state"] == "withdrawn", "nothing to ask about"
    there = page.post("/api/photos/move", json={"photo_ids": [one], "encounter_id": source["id"]})
    assert there.status_code == 400 and "already" in there.json()["detail"]


@pytest.mark.rest
def test_regroup_by_day_burst_and_folder_and_back(page):
    when = {"x/a.jpg": "30 10:00", "x/b.jpg": "30 10:04", "x/c.jpg": "30 15:00", "x/d.jpg": "31 09:00"}
    when |= {"y/e.jpg": "31 09:02"}  # another folder: another boat, another animal
    sent = [(name, taken(i, f"2026:07:{text}:00")) for i, (name, text) in enumerate(when.items())]
    made = upload(page, *sent).json()
    a, b, c, d, e = (photo["id"] for photo in made["photos"])
    assert "".join(photo["name"] for photo in made["photos"]) == "a.jpgb.jpgc.jpgd.jpge.jpg"
    wanted = {"day": [[a, b, c], [d], [e]], "burst:10": [[a, b], [c], [d], [e]], "folder": [[a, b, c, d], [e]]}
    for by, photos in wanted.items():
        body = {"encounter_ids": [made["id"]], "by": by}
        dry = page.post("/api/encounters/regroup", json=body | {"dry_run": True}).json()
        assert [group["photos"] for group in dry["groups"]] == photos and dry["decision"] is None
        assert dry["groups"][0]["encounter"]["id"] == made["id"] and dry["groups"][1]["encounter"] is None
        done = page.post("/api/encounters/regroup", json=body).json()
        assert [[photo["id"] for photo in met["photos"]] for met in done["encounters"]] == photos
        dates = [met["date"][:10] for met in done["encounters"]]
        assert (dates[0], dates[-1]) == ("2026-07-30", "2026-07-31")
        assert done["decision"]["text"].startswith(f"regrouped photographs of {made['name']} by {by}: ")
        again = page.post("/api/encounters/regroup", json=body).json()
        assert again["decision"] is None, "they are grouped so already"
        assert page.post(f"/api/decisions/{done['decision']['id']}/undo").status_code == 200
        assert len(page.get(f"/api/encounters/{made['id']}").json()["photos"]) == 5
    for by in ("", "month", "burst", "burst:-1"):
        assert page.post("/api/encounters/regroup", json={"encounter_ids": [made["id"]], "by": by}).status_code == 400
    now = page.get(f"/api/encounters/{made['id']}").json()["version"]
    page.post(f"/api/encounters/{made['id']}/decisions", json={"kind": "unsure", "version": now})
    refused = page.post("/api/encounters/regroup", json={"encounter_ids": [made["id"]], "by": "day"})
    assert refused.status_code == 400 and "is unsure: undo that first" in refused.json()["detail"]


# --- delete


def test_deleted_uploads_are_gone_with_file_vectors_and_pictures_but_not_from_the_log(page, mine):
    made = upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2))).json()
    one, two = (photo["id"] for photo in made["photos"])
    assert all(photo["uploaded"] for photo in made["photos"])
    page.get(f"/api/photos/{one}/picture")
    for url in (f"/api/photos/{one}", f"/api/encounters/{made['id']}"):
        early = page.delete(url)
        assert early.status_code == 400 and "withdraw it first" in early.json()["detail"]
    page.post(f"/api/photos/{one}/withdraw", json={"version": 1, "reason": "mistake"})
    gone = page.delete(f"/api/photos/{one}").json()
    assert gone["decision"]["text"] == f"deleted a.jpg of {made['name']} for good" and not gone["decision"]["can_undo"]
    assert [photo["id"] for photo in gone["encounter"]["photos"]] == [two]
    assert len(list(mine.folder.glob("photos/*/*.jpg"))) == 1 and not list(mine.folder.glob("shown/*/*.jpg"))
    assert page.get(f"/api/photos/{one}/picture").status_code == 404
    with mine.reading() as session:
        embedded = session.scalar(select(func.count()).select_from(Embedding))
        assert embedded == session.scalar(select(func.count()).where(Photo.path != ""))
    withdrawal = log_of(page)[1]
    assert withdrawal["text"] == f"withdrew a.jpg of {made['name']} (mistake)"
    refused = page.post(f"/api/decisions/{withdrawal['id']}/undo")
    assert refused.status_code == 409 and refused.json()["detail"].endswith("and that cannot be undone")
    assert page.post(f"/api/encounters/{made['id']}/answers", json={}).status_code == 200, (
        "the other one is asked about"
    )
    again = upload(page, ("a.jpg", jpeg(1)))
    assert again.status_code == 201 and again.json()["photos"][0]["id"] > two, "it can be sent again"
    given = next(photo for met in undecided(page) for photo in met["photos"] if not photo["uploaded"])
    version = page.get(f"/api/encounters/{given['encounter_id']}").json()["version"]
    page.post(f"/api/photos/{given['id']}/withdraw", json={"version": version, "reason": "no animal"})
    kept = page.delete(f"/api/photos/{given['id']}")
    assert kept.status_code == 400 and "lies in the data folder" in kept.json()["detail"]


# --- edit


def test_edit_changes_one_photos_side_keeps_what_was_and_can_be_undone(page):
    made = upload(page, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), date="20260701", side="left").json()
    url, photo = f"/api/encounters/{made['id']}", made["photos"][1]["id"]
    assert made["date"] == "2026-07-01"
    same = page.patch(url, json={"version": 1, "date": "2026-07-01", "place": "", "sides": {photo: "left"}}).json()
    assert (same["decision"], same["version"]) == (None, 1), "nothing differs"
    edited = page.patch(f"/api/photos/{photo}", json={"version": 1, "side": "right"}).json()
    assert [each["side"] for each in edited["photos"]] == ["left", "right"] and edited["side"] == "both"
    assert edited["decision"]["text"] == f"edited {made['name']}: side of b.jpg left → right"
    moved = page.patch(url, json={"version": 2, "date": "2026-06-30", "latitude": 57.1, "longitude": -4.2}).json()
    text = "date 2026-07-01 → 2026-06-30; latitude nothing → 57.1; longitude nothing → -4.2"
    assert moved["decision"]["text"] == f"edited {made['name']}: {text}"
    every = page.patch(url, json={"version": 3, "side": "right"}).json()
    assert every["decision"]["photos"] == [made["photos"][0]["id"]], "all that differ, where all are asked for"
    first = page.post(f"/api/decisions/{moved['decision']['id']}/undo").json()["encounter"]
    assert (first["date"], first["latitude"], first["side"]) == ("2026-07-01", None, "right"), "in any order"
    for each in (every, edited):
        assert page.post(f"/api/decisions/{each['decision']['id']}/undo").status_code == 200
    last = page.get(url).json()
    assert last == made | {"version": last["version"]}
    future = page.patch(url, json={"version": last["version"], "date": "2131-07-01"})
    assert future.status_code == 400 and "future" in future.json()["detail"]
    strange = page.patch(url, json={"version": last["version"], "sides": {1: "left"}})
    assert strange.status_code == 400 and "is not in encounter" in strange.json()["detail"]


@pytest.mark.rest
def test_undo_of_a_box_gives_back_the_embedding_also_under_another_model(mine, colours):
    class Greys(type(colours)):
        fingerprint = "9e49" * 4

        def embed(self, paths, boxes=None, quiet=True):
            return np.roll(super().embed(paths, boxes, quiet), 1, axis=1)

    with mine.reading() as session:
        photo = session.scalar(select(Photo.id).join(Encounter).where(Encounter.state == "undecided"))
        key = photo, model_row(session, colours.fingerprint).id
        first = session.get(Embedding, key).vector
    drawn, _ = set_crop(mine, colours, "Ann", photo, (4, 4, 40, 30), 1)
    re_embed(mine, greys := Greys(), "greys")
    mine.choose_model(greys.fingerprint)
    recalibrate(mine)
    undo_decision(mine, lambda: greys, "Ann", drawn)
    with mine.reading() as session:
        assert session.get(Embedding, key).vector == first
        new = np.frombuffer(session.get(Embedding, (photo, model_row(session, greys.fingerprint).id)).vector, "<f4")
    np.testing.assert_allclose(new, np.roll(np.frombuffer(first, "<f4"), 1), atol=1e-6)


# --- asked back


def test_new_individual_gets_its_encounters_species_or_asks_for_one(page):
    known = page.get("/api/facets").json()["species"]
    made = upload(page, ("a.jpg", jpeg(1))).json()
    url = f"/api/encounters/{made['id']}/decisions"
    asked = page.post(url, json={"kind": "new", "version": 1, "name": "Hope"})
    assert asked.status_code == 409 and "which species is Hope?" in asked.json()["detail"]
    assert asked.json()["species"] == known
    typed = known[0].replace("_", " ").title()
    body = {"kind": "new", "version": 1, "name": "Hope", "species": typed}
    done = page.post(url, json=body).json()["encounter"]
    assert done["species"] == known[0] and page.get("/api/facets").json()["species"] == known
    animal = page.get(f"/api/individuals/{done['individual']['id']}").json()
    assert animal["species"] == known[0]
    other = upload(page, ("b.jpg", jpeg(2)), species=typed.upper()).json()
    body = {"kind": "new", "version": 1, "name": "Sky"}
    met = page.post(f"/api/encounters/{other['id']}/decisions", json=body).json()["encounter"]
    assert page.get(f"/api/individuals/{met['individual']['id']}").json()["species"] == known[0]


def test_any_animal_is_found_by_names_it_had_and_shows_all_photographs_same_side_first(page):
    made = upload(page, *((f"{i}.jpg", jpeg(i)) for i in range(3)), date="2026-07-01", species="beluga").json()
    sides = {photo["id"]: side for photo, side in zip(made["photos"], ("left", "right", "left"), strict=True)}
    page.patch(f"/api/encounters/{made['id']}", json={"version": 1, "sides": sides})
    body = {"kind": "new", "version": 2, "name": "Zoë 07"}
    animal = page.post(f"/api/encounters/{made['id']}/decisions", json=body).json()["encounter"]["individual"]["id"]
    page.patch(f"/api/individuals/{animal}", json={"name": "Hope"})
    later = upload(page, ("n.jpg", jpeg(9)), date="2026-07-09", species="beluga").json()
    body = {"kind": "new", "version": 1, "name": "Sky"}
    sky = page.post(f"/api/encounters/{later['id']}/decisions", json=body).json()["encounter"]["individual"]["id"]
    merged = page.post(f"/api/individuals/{sky}/merge", json={"into": animal}).json()
    assert merged["decision"]["text"] == "merged Sky into Hope", "the right way round"
    assert (merged["decision"]["individual"]["name"], merged["decision"]["other"]["name"]) == ("Hope", "Sky")
    for q in ("zoë", "ZOË 07", "Zoe\u0308", "sky", "hop"):
        (found,) = page.get("/api/individuals", params={"q": q}).json()["individuals"]
        assert (found["id"], sorted(found["known_as"])) == (animal, ["Sky", "Zoë 07"])
    url = f"/api/individuals/{animal}/photos"
    pages = [page.get(url, params={"side": "left", "limit": 3, "after": after}).json() for after in (0, 3)]
    listed = [(each["side"], each["name"]) for part in pages for each in part["photos"]]
    assert listed == [("left", "2.jpg"), ("left", "0.jpg"), ("", "n.jpg"), ("right", "1.jpg")]
    assert [(part["total"], part["next"]) for part in pages] == [(4, 3), (4, None)]
    refused = page.patch(f"/api/individuals/{sky}", json={"name": "Star"})
    assert refused.status_code == 400 and "merged into Hope; rename Hope instead" in refused.json()["detail"]
    for url, body in ((f"/api/individuals/{sky}/merge", {"into": animal}), (f"/api/individuals/{sky}/split", None)):
        given = body or {"encounter_ids": [made["id"]]}
        assert page.post(url, json=given).status_code == 400


def test_undo_of_a_rename_whose_name_is_taken_again_is_a_conflict_with_a_remedy(mine, page):
    with mine.writing() as session:
        first, second = (make_individual(session, name, "beluga").id for name in ("Hope", "Sky"))
        renamed, _ = rename_individual(session, "Ann", first, "Star")
        rename_individual(session, "Ann", second, "hope")
    refused = page.post(f"/api/decisions/{renamed.id}/undo")
    assert refused.status_code == 409
    assert refused.json()["detail"] == (
        "Star cannot be renamed back to Hope: hope is now another individual's name; rename that one first"
    )


def test_undo_twice_or_of_an_upload_tells_what_when_and_what_else_to_do(page):
    made = upload(page, ("a.jpg", jpeg(1))).json()
    url = f"/api/encounters/{made['id']}/decisions"
    done = page.post(url, json={"kind": "unsure", "version": 1}).json()["decision"]
    page.post(f"/api/decisions/{done['id']}/undo")
    twice = page.post(f"/api/decisions/{done['id']}/undo")
    assert twice.status_code == 409 and str(done["id"]) not in twice.json()["detail"].split(" (")[0]
    text = f"Ann set {made['name']} aside as unsure: that was undone already, by Ann ("
    assert twice.json()["detail"].startswith(text)
    sent = log_of(page, encounter_id=made["id"])[-1]
    assert (sent["text"], sent["can_undo"]) == (f"added 1 photograph to {made['name']}", False)
    refused = page.post(f"/api/decisions/{sent['id']}/undo")
    assert refused.status_code == 400 and "withdraw the encounter instead" in refused.json()["detail"]
    assert log_of(page)[0]["text"] == f"undid: set {made['name']} aside as unsure"


# --- by command


def run(*words, **more):
    """Run `happywhale catalogue`; returns its status and what it prints."""
    done = CliRunner().invoke(main, ["catalogue", *map(str, words)], **more)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.rest
def test_commands_withdraw_move_regroup_and_undo_as_the_page_does(mine, colours, page):
    when = ["2026:07:30 10:00:00", "2026:07:31 10:04:00"]
    made = upload(page, *((f"{i}.jpg", taken(i, text)) for i, text in enumerate(when))).json()
    folder, name, me = mine.folder, made["name"], getpass.getuser()
    assert f"{me} withdrew {name} (boat)" in run("withdraw", folder, name, "--reason", "boat")[1]
    code, told = run("withdraw", folder, name, "--reason", "boat")
    assert code == 2 and "withdrawn already" in told
    assert f"undid: withdrew {name} (boat)" in run("restore", folder, name)[1]
    assert (
        f"withdrew 1.jpg of {name} (no animal)"
        in run("withdraw", folder, "--photo", "1.jpg", "--reason", "no animal")[1]
    )
    assert run("restore", folder, "--photo", "1.jpg")[0] == 0
    code, told = run("regroup", folder, name, "--by", "day", "--dry-run")
    assert (code, told) == (0, "2026-07-30: 1 photograph 2026-07-31: 1 photograph")
    assert f"regrouped photographs of {name} by day" in run("regroup", folder, name, "--by", "day")[1]
    assert "nothing was changed" in run("regroup", folder, name, "--by", "day")[1]
    assert "moved 1.jpg from" in run("move", folder, "1.jpg", "--to", name, "--note", "one dive")[1]
    code, told = run("log", folder, "-n", "1")
    assert code == 0 and told.endswith("one dive") and f"to {name}" in told
    with mine.reading() as session:
        last = session.scalar(select(func.max(Decision.id)))
    assert "undid: moved 1.jpg" in run("undo", folder, last)[1]
    code, told = run("undo", folder, last)
    assert code == 2 and "undone already" in told
    assert len(run("log", folder, "--encounter", name)[1].split(" UTC ")) == 1 + 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["withdraw", "--reason", "boat"], "name an encounter, or a photograph"),
        (["withdraw", "E99999", "--reason", "boat"], "there is no encounter E99999"),
        (["restore", "--photo", "nowhere.jpg"], "there is no photograph nowhere.jpg"),
        (["move", "nowhere.jpg"], "there is no photograph nowhere.jpg"),
        (["regroup", "1", "--by", "day"], "is confirmed: undo that first"),
        (["delete", "--photo", "1", "--yes"], "withdraw it first"),
        (["log", "--animal", "Nessie"], "there is no individual Nessie"),
        (["undo", "999"], "there is no decision number 999"),
    ],
)
def test_command_with_a_mistake_says_what_to_do_and_changes_nothing(mine, words, told):
    code, printed = run(words[0], mine.folder, *words[1:])
    assert code == 2 and told in printed
    with mine.reading() as session:
        assert session.scalar(select(func.count(Decision.id))) == 0


@pytest.mark.rest
def test_command_deletes_what_was_withdrawn_after_asking(mine, page):
    made = upload(page, ("same.jpg", jpeg(1))).json()
    upload(page, ("same.jpg", jpeg(2)))
    code, told = run("withdraw", mine.folder, "--photo", "same.jpg", "--reason", "mistake")
    number = made["photos"][0]["id"]
    assert code == 2 and f"2 photographs are called same.jpg: give the number of one: {number} (in" in told
    run("withdraw", mine.folder, made["name"], "--reason", "mistake")
    assert run("delete", mine.folder, made["name"], input="n\n")[0] == 1
    assert len(list(mine.folder.glob("photos/*/*.jpg"))) == 2
    code, told = run("delete", mine.folder, made["name"], input="y\n")
    assert code == 0 and f"deleted same.jpg of {made['name']} for good" in told
    assert len(list(mine.folder.glob("photos/*/*.jpg"))) == 1
    with pytest.raises(UserError, match="that cannot be undone"), mine.writing() as session:
        undo(
            session, getpass.getuser(), session.scalar(select(func.max(Decision.id)).where(Decision.kind == "withdraw"))
        )
