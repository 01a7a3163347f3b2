"""Who did what: two users of one name, copied cookies, addresses that a client makes up, names that look alike."""

import httpx
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from sqlalchemy import select
from strangers import serving

from happywhale_nb.catalogue.decisions import NameAlike, NameTaken, User, decide, make_individual, rename_individual
from happywhale_nb.catalogue.ingest import update_metadata
from happywhale_nb.catalogue.listings import sightings
from happywhale_nb.catalogue.pseudonyms import give_pseudonym, user_names
from happywhale_nb.catalogue.schema import Decision, Encounter, SignIn, Token
from happywhale_nb.catalogue.undoing import undo
from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.names import find_lookalikes, is_nobody, look_key
from happywhale_nb.server.app import make_app
from happywhale_nb.server.auth import make_token, revoke
from happywhale_nb.server.run import check_proxies, server_config
from happywhale_nb.server.state import AppState, Options

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def page(mine, colours):
    """A client without a token of a server that asks for one; `page.tokens` has one for Ann and one for Ben."""
    with mine.writing() as session:
        tokens = {name: make_token(session, name, role)[1] for name, role in (("Ann", "review"), ("Ben", "admin"))}
    app = make_app(AppState(mine, Options(rates={"sign in": 10})), lambda: colours)
    with TestClient(app, base_url=HERE) as client:
        client.tokens = tokens
        yield client


def as_user(page, name):
    return {"authorization": f"Bearer {page.tokens[name]}"}


def undecided(page):
    answer = page.get("/api/encounters", params={"state": "undecided"}, headers=as_user(page, "Ben"))
    return answer.json()["encounters"][0]


# --- two users of one name


def test_second_token_of_a_name_is_refused_over_http_and_the_log_keeps_the_tokens_number(page, mine):
    ben, met = as_user(page, "Ben"), undecided(page)
    for name in ("Ann", "ann", "\u0410nn", "A\ufe0fnn"):
        refused = page.post("/api/tokens", json={"name": name, "role": "review"}, headers=ben)
        assert refused.status_code == 409 and "has a token" in refused.json()["detail"], name
    url = f"/api/encounters/{met['id']}/decisions"
    first = page.post(url, json={"kind": "unsure", "version": 1}, headers=as_user(page, "Ann")).json()["decision"]
    page.tokens["Ann"] = page.post(
        "/api/tokens", json={"name": "Ann", "role": "review", "replace": True}, headers=ben
    ).json()["token"]
    undone = page.post(f"/api/decisions/{first['id']}/undo", headers=as_user(page, "Ann"))
    assert undone.status_code == 200, "the same user, by the word of an admin"
    with mine.reading() as session:
        used = {row.name: row for row in session.scalars(select(Token).order_by(Token.id))}
        assert first["token_id"] == session.get(Decision, first["id"]).token_id
        assert undone.json()["decision"]["token_id"] == used["Ann"].id != first["token_id"]


def test_two_tokens_of_one_name_from_before_are_told_apart(mine):
    """As a migration leaves them: the second has another name, and cannot undo what the first decided."""
    with mine.writing() as session:
        met = session.scalar(select(Encounter).where(Encounter.state == "undecided"))
        row, _ = decide(session, User("Ann", None), met.id, "unsure", met.version)
        with pytest.raises(UserError, match="only Ann or an admin"):
            undo(session, "Ann (2)", row.id)
        undo(session, User("Ann", None), row.id)


# --- cookies


def test_copy_of_a_cookie_is_worthless_after_sign_out_and_after_the_token_is_revoked(page, mine):
    def signed_in():
        page.cookies.clear()
        assert page.post("/api/session", json={"token": page.tokens["Ann"]}).status_code == 200
        return {"cookie": f"happywhale={page.cookies['happywhale']}"}

    copied, other = signed_in(), signed_in()
    assert page.tokens["Ann"] not in copied["cookie"] and copied != other
    page.cookies.clear()
    assert page.get("/api/session", headers=copied).json()["user"] == "Ann"
    assert page.delete("/api/session", headers=copied).status_code == 204
    assert page.get("/api/session", headers=copied).status_code == 401
    assert page.delete("/api/session", headers=copied).status_code == 204, "again, without harm"
    assert page.get("/api/session", headers=other).status_code == 200, "another browser stays signed in"
    for wrong in (page.tokens["Ann"], "", "hs_", other["cookie"].partition("=")[2][:-1]):
        assert page.get("/api/session", headers={"cookie": f"happywhale={wrong}"}).status_code == 401, wrong
    with mine.writing() as session:
        revoke(session, session.scalar(select(Token.id).where(Token.name == "Ann")))
    assert page.get("/api/session", headers=other).status_code == 401


def test_browser_is_signed_out_after_some_weeks(page, mine):
    page.post("/api/session", json={"token": page.tokens["Ann"]})
    assert page.get("/api/session").status_code == 200
    with mine.writing() as session:
        session.scalar(select(SignIn)).created_at = "2020-01-01T00:00:00.000Z"
    assert page.get("/api/session").status_code == 401
    page.post("/api/session", json={"token": page.tokens["Ben"]})
    with mine.reading() as session:
        assert len(session.scalars(select(SignIn)).all()) == 1, "what has ended is deleted"


# --- addresses


def guesses(address, most=14):
    with httpx.Client(base_url="http://{}:{}".format(*address)) as client:
        for number in range(most):
            made_up = {"x-forwarded-for": f"10.0.0.{number}", "x-forwarded-proto": "https"}
            yield client.post("/api/session", json={"token": f"hw_{number}"}, headers=made_up).status_code


@pytest.mark.parametrize("proxies,let_by", [((), 10), (("10.9.9.9",), 10), (("127.0.0.1",), 14)])
def test_addresses_are_taken_from_a_named_proxy_alone(mine, colours, proxies, let_by):
    rates = {"sign in": 10}
    with serving(mine, colours, rates=rates, proxies=proxies) as (address, _):
        assert list(guesses(address)) == [401] * let_by + [429] * (14 - let_by)


def test_proxy_is_an_address_and_not_everybody(mine):
    check_proxies(["127.0.0.1", "::1", "10.0.0.0/24"])
    for wrong in ("*", "", "proxy.example", "0.0.0.0/0", "::/0", "10.0.0.1/24"):
        with pytest.raises(UserError, match="--proxy"):
            check_proxies([wrong])
    assert not server_config(None, Options(), port=0).proxy_headers
    refused = CliRunner().invoke(main, ["serve", str(mine.folder), "--no-browser", "--proxy", "proxy.example"])
    assert refused.exit_code == 2 and "is not an IP address" in refused.stderr


# --- look-alike individuals


TWINS = ["\u0410nn", "\u0391nn", "An\u034fn", "Ann\ufe0f", "\uff21nn\u3164"]


@pytest.mark.parametrize("name", TWINS)
def test_individual_that_looks_like_another_is_asked_about(mine, name):
    with mine.writing() as session:
        ann = make_individual(session, "Ann", "beluga")
        bo = make_individual(session, "Bo", "beluga")
        for attempt in (
            lambda: make_individual(session, name, "beluga"),
            lambda: rename_individual(session, "Ben", bo.id, name),
        ):
            with pytest.raises(NameAlike, match="looks like Ann, but is written with other letters") as told:
                attempt()
            assert told.value.individual == ann.id
        assert rename_individual(session, "Ben", bo.id, name, alike=True)[1].name != "Bo"


@pytest.mark.parametrize("name", ["ann", "A N N".replace(" ", ""), "\uff21nn", "New_individual", "N\u0435w_individual"])
def test_individual_with_the_same_name_or_no_name_is_refused_whatever_is_said(mine, name):
    with mine.writing() as session:
        make_individual(session, "Ann", "beluga")
        with pytest.raises((NameTaken, UserError), match=r"do you mean Ann|names nobody") as told:
            make_individual(session, name, "beluga", alike=True)
        assert not isinstance(told.value, NameAlike)


@pytest.mark.parametrize("name", ["Ann\u200b", "\u202eAnn", "An\u00adn", "\u2066Ann"])
def test_individual_with_letters_that_are_not_seen_is_refused(mine, name):
    with mine.writing() as session, pytest.raises(UserError, match="cannot be shown"):
        make_individual(session, name, "beluga", alike=True)


def test_look_alike_over_http_is_a_question_that_can_be_answered(page, mine):
    with mine.writing() as session:
        make_individual(session, "Ann", "beluga")
    met, ben = undecided(page), as_user(page, "Ben")
    body = {"kind": "new", "version": 1, "name": TWINS[0], "species": "beluga"}
    url = f"/api/encounters/{met['id']}/decisions"
    asked = page.post(url, json=body, headers=ben)
    assert asked.status_code == 409 and asked.json()["alike"] and asked.json()["individual"]["name"] == "Ann"
    assert "CYRILLIC CAPITAL LETTER A" in asked.json()["detail"]
    taken = page.post(url, json=body | {"name": "ann"}, headers=ben)
    assert taken.status_code == 409 and not taken.json()["alike"]
    done = page.post(url, json=body | {"alike": True}, headers=ben)
    assert done.status_code == 200 and done.json()["encounter"]["individual"]["name"] == TWINS[0]


def test_look_alikes_of_a_table_are_told_when_the_catalogue_is_built(mine):
    with mine.writing() as session:
        for name in ("Ann", TWINS[0]):
            make_individual(session, name, "beluga", alike=True)
    assert [line for line in update_metadata(mine, read_dataset(mine.data), "Ann") if "look alike" in line]


def test_names_in_one_foreign_script_are_names_like_others():
    names = ["\u0410\u043d\u043d\u0430", "\u0391\u03bd\u03bd\u03b1", "Zo\u00eb", "\u82b1\u5b50", "\u0623\u0645\u0644"]
    assert not find_lookalikes([*names[:1], *names[2:]]) and not any(map(is_nobody, names))
    assert len({look_key(name) for name in ("Ann", "Bo", "Zoe", "Zo\u00eb")}) == 4


# --- pseudonyms


def test_pseudonym_takes_a_name_out_of_log_and_exports_and_keeps_the_decisions(mine):
    with mine.writing() as session:
        numbers = session.scalars(select(Encounter.id).where(Encounter.state == "undecided").limit(2)).all()
        first, _ = decide(session, "Ann", numbers[0], "new", 1, name="Sky", species="beluga", note="seen by Ann")
        decide(session, "Ben", numbers[0], "unsure", 2)  # its former value has the name, too
        decide(session, "Ann", numbers[1], "unsure", 1)
        make_token(session, "Ann", "review")
        before = session.query(Decision).count()
    done = CliRunner().invoke(main, ["catalogue", "pseudonym", str(mine.folder), "Ann", "observer 1"])
    assert done.exit_code == 0 and "2 × entry of the log" in done.stdout and "1 note in the log" in done.stderr
    with mine.writing() as session:
        rows = session.scalars(select(Decision).order_by(Decision.id)).all()
        assert len(rows) == before + 1 and rows[-1].kind == "pseudonym"
        assert not [row for row in rows if "Ann" in (row.who, row.before.get("decided_by"))]
        assert "Ann" not in user_names(session) and "Ann" not in set(sightings(session)["decided_by"])
        undo(session, "Ben", rows[-3].id)
        assert session.get(Encounter, numbers[0]).decided_by == "observer 1"
        undo(session, "observer 1", first.id)
        for name, wrong, told in (
            ("Ann", "x", "no user is named 'Ann'"), ("Ben", "Observer 1", "already"), ("Ben", " ", "is empty"),
            ("Ben", "Ben", "already"), ("Ben", "a\u202eb", "cannot be shown"),
        ):  # fmt: skip
            with pytest.raises(UserError, match=told):
                give_pseudonym(session, "Ben", name, wrong)
