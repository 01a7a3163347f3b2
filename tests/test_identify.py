"""The catalogue in a notebook: candidates as pictures, and decisions that go to the one store."""

import shutil

import pytest
from PIL import Image
from sqlalchemy import select

from happywhale_nb.catalogue import identified as module
from happywhale_nb.catalogue.decisions import Conflict, decide
from happywhale_nb.catalogue.identify import identify
from happywhale_nb.catalogue.listings import encounter_view, list_decisions
from happywhale_nb.catalogue.opened import OpenedCatalogue
from happywhale_nb.catalogue.schema import Photo
from happywhale_nb.catalogue.store import Catalogue
from happywhale_nb.core.errors import UserError


@pytest.fixture
def opened(mine, colours):
    return OpenedCatalogue(Catalogue(mine.folder), colours)


def seen(mine, opened, number):
    """An encounter as somebody else sees it, who has opened the same catalogue."""
    with mine.reading() as session:
        return encounter_view(session, opened.matcher.model.settings, number)


@pytest.fixture
def photo(tiny, tmp_path):
    """A photograph that the catalogue does not have."""
    with Image.open(sorted((tiny / "train_images").iterdir())[0]) as known:
        known.save(tmp_path / "<b>new.jpg", quality=60)
    return tmp_path / "<b>new.jpg"


def test_identify_shows_candidates_with_name_and_chance_and_keeps_nothing(opened, photo):
    found = identify(photo, opened, k=4)
    candidates = found.answer["candidates"]
    assert [each["rank"] for each in candidates] == [1, 2, 3, 4, 5] and found.encounter is None
    assert sum(each["is_new"] for each in candidates) == 1
    titles = [ax.get_title() for ax in found.figure().axes]
    assert titles[0] == "query" and len(titles) == 6
    for title, each in zip(titles[1:], candidates, strict=True):
        name = f"new: {each['proposed']}" if each["is_new"] else each["individual"]["name"]
        assert title == f"{each['rank']}. {name}\n{each['probability']:.0%}"
    assert "<img" in found._repr_html_() and len(repr(found).splitlines()) == 7
    assert not (opened.catalogue.folder / "photos").exists(), "who only asks leaves nothing"


def test_confirm_of_a_photograph_is_in_the_catalogue_until_undo(opened, mine, photo):
    found = identify(photo, opened, place="<Bay>", side="left", date="2024-07-01")
    name = next(each["individual"]["name"] for each in found.answer["candidates"] if not each["is_new"])
    found.confirm(name, note="by the notch")
    met = seen(mine, opened, found.encounter)
    assert met["state"] == "confirmed" and met["individual"]["name"] == name
    assert (met["place"], met["date"], met["photos"][0]["side"]) == ("<Bay>", "2024-07-01", "left")
    with mine.reading() as session:
        line = list_decisions(session, found.encounter, limit=1)["decisions"][0]
    assert line["kind"] == "confirm" and line["note"] == "by the notch" and line["answer_id"] == found.answer["id"]
    assert f"Decided: confirmed, {name}." in found._repr_html_()
    assert found.undo().state()["state"] == "undecided" == seen(mine, opened, found.encounter)["state"]
    with pytest.raises(UserError, match="nothing was decided"):
        found.undo()
    assert found.new("Hope").state()["individual"]["name"] == "Hope", "a decision after the undo"


def test_identify_of_a_stored_photograph_is_its_encounter_and_its_facts_are_edited_there(opened, mine, photo, tmp_path):
    number = opened.undecided()[0]
    with mine.reading() as session:
        row = session.scalars(select(Photo).where(Photo.encounter_id == number)).first()
        stored = mine.path(row)
    copied = shutil.copy(stored, tmp_path / "renamed.jpg")
    found = identify(copied, opened)
    assert found.encounter == number and found.answer["id"] is not None
    assert all(each["photo"]["id"] != row.id for each in found.answer["candidates"] if each["photo"])
    assert found.unsure().state()["state"] == "unsure"
    with pytest.raises(UserError, match=f"in the catalogue already, as encounter {number}"):
        identify(copied, opened, place="Bay")
    assert identify([copied, photo], opened).encounter is None, "only one of the two is stored"


def test_reject_unsure_and_new_are_kept_with_their_note(opened, mine):
    number = opened.undecided()[0]
    found = identify(number, opened)
    rank, other = next((each["rank"], each["individual"]) for each in found.answer["candidates"] if not each["is_new"])
    assert [each["name"] for each in found.reject(rank, note="no notch").state()["rejected"]] == [other["name"]]
    assert found.unsure(note="too dark").state()["state"] == "unsure"
    met = found.new("Hope", note="another one").state()
    assert (met["state"], met["individual"]["name"], met["version"]) == ("new", "Hope", 4)
    with mine.reading() as session:
        lines = list_decisions(session, number)["decisions"]
    kept = [(line["kind"], line["note"], line["answer_id"]) for line in lines]
    about = ("new", "another one"), ("unsure", "too dark"), ("reject", "no notch")
    assert kept == [(*each, found.answer["id"]) for each in about]


def test_new_after_somebody_else_decided_raises_conflict_and_writes_nothing(opened, mine):
    number = opened.undecided()[0]
    found = identify(number, opened)
    with mine.writing() as session:
        decide(session, "Bea", number, "unsure", 1, individual_id=None, name="", answer_id=None, note="")
    with pytest.raises(Conflict, match="changed by somebody else"):
        found.new()
    assert seen(mine, opened, number)["version"] == 2


@pytest.mark.parametrize("who, told", [("nobody", "neither a rank nor a name"), (99, "neither a rank nor a name")])
def test_confirm_of_what_is_no_candidate_is_refused(opened, who, told):
    found = identify(opened.undecided()[0], opened)
    with pytest.raises(UserError, match=told):
        found.confirm(who)
    assert found.state()["version"] == 1


def test_identify_of_a_missing_or_broken_photograph_names_it(opened, tmp_path):
    with pytest.raises(UserError, match="there is no photograph"):
        identify(tmp_path / "gone.jpg", opened)
    (tmp_path / "notes.jpg").write_text("no photograph")
    with pytest.raises(UserError, match=r"notes\.jpg"):
        identify(tmp_path / "notes.jpg", opened)


@pytest.mark.parametrize("about, told", [({"dat": "2024"}, "'dat'"), ({"side": "up"}, "side"), ({"date": "x"}, "x")])
def test_identify_with_an_unknown_fact_or_value_is_refused_before_it_asks(opened, photo, about, told):
    with pytest.raises((UserError, TypeError), match=told):
        identify(photo, opened, **about)


def test_controls_decide_and_tell_what_is_refused(opened, mine):
    number = opened.undecided()[0]
    controls = identify(number, opened).controls()
    row, told, page = controls.children
    buttons = {each.description: each for each in row.children[1:]}
    assert list(buttons) == ["confirm", "reject", "new", "unsure", "undo"]
    buttons["undo"].click()
    assert "nothing was decided" in told.value
    row.children[0].value = row.children[0].options[1][1]
    buttons["confirm"].click()
    assert told.value == "" and seen(mine, opened, number)["individual"]["name"] == row.children[0].value
    assert f"Decided: confirmed, {row.children[0].value}" in page.value
    buttons["undo"].click()
    assert seen(mine, opened, number)["state"] == "undecided"


def test_ipython_display_has_buttons_only_in_a_live_notebook(opened, monkeypatch):
    found, shown = identify(opened.undecided()[0], opened), []
    monkeypatch.setattr("IPython.display.display", lambda what, **how: shown.append(what))
    found._ipython_display_()
    monkeypatch.setattr(module, "shows_widgets", lambda: True)
    found._ipython_display_()
    assert set(shown[0]) == {"text/html", "text/plain"} and type(shown[1]).__name__ == "VBox"
