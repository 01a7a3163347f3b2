"""Tokens and roles, requests a minute, and from which hosts and pages a request may come."""

from itertools import pairwise

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from happywhale_nb.catalogue.schema import Base, Token
from happywhale_nb.catalogue.store import NotFound
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.roles import PERMISSIONS, ROLES, may, role_with
from happywhale_nb.server.auth import (
    Limiter,
    NameInUse,
    cross_site_reason,
    find_token,
    host_name,
    list_tokens,
    loopback,
    make_token,
    revoke,
)


@pytest.fixture
def session():
    """A session on an empty database in memory."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as opened:
        yield opened
    engine.dispose()


# --- tokens


@pytest.mark.parametrize(
    ("name", "role", "told"),
    [
        ("", "read", "name is empty"),
        (" \t", "read", "name is empty"),
        ("x" * 81, "read", "81 characters, 80 are allowed"),
        ("Ann\u202e", "read", r"U\+202E"),
        ("Ann", "owner", "one of read, review, admin"),
        ("Ann", "Admin", "one of read, review, admin"),
        ("Ann", "", "one of read, review, admin"),
    ],
)
def test_make_token_with_no_name_or_no_role_is_refused(session, name, role, told):
    with pytest.raises(UserError, match=told):
        make_token(session, name, role)
    assert session.scalars(select(Token)).all() == []


@pytest.mark.parametrize("role", ROLES)
def test_make_token_gives_a_long_random_token_with_its_role(session, role):
    (one, first), (_, second) = make_token(session, "x" * 80, role), make_token(session, "y" * 80, role)
    assert first != second and all(len(token) >= 43 and token.startswith("hw_") for token in (first, second))
    assert find_token(session, first) is one and (one.name, one.role, one.revoked_at) == ("x" * 80, role, "")


def test_holder_knows_whole_tokens_that_are_not_revoked_and_no_others(session):
    (_, ended), (row, token) = make_token(session, "Ann", "admin"), make_token(session, "Ann", "review", replace=True)
    assert find_token(session, token) is row and [each.name for each in list_tokens(session)] == ["Ann"]
    for wrong in (ended, "", token[:-1], token + "x", token.upper(), row.digest, "hw_", "\udcff"):
        assert find_token(session, wrong) is None, wrong


def test_list_tokens_leaves_out_revoked_ones(session):
    numbers = [make_token(session, name, "read")[0].id for name in ("Cem", "Ann", "Ben")]
    revoke(session, numbers[1])
    assert [row.name for row in list_tokens(session)] == ["Cem", "Ben"], "in the order they were made"


def test_revoke_of_a_token_that_is_not_there_or_revoked_raises_not_found(session):
    row, _ = make_token(session, "Ann", "read")
    revoke(session, row.id)
    ended = row.revoked_at
    for number in (row.id, row.id + 1):
        with pytest.raises(NotFound, match=f"no valid token with number {number}"):
            revoke(session, number)
    assert row.revoked_at == ended != ""


@pytest.mark.parametrize("name", ["Ann", "ann", "\u0410nn", " Ann "])
@pytest.mark.parametrize("ended", [False, True])
def test_name_of_a_token_is_not_given_to_a_second_user_unasked(session, name, ended):
    row, _ = make_token(session, "Ann", "review")
    if ended:
        revoke(session, row.id)
    with pytest.raises(NameInUse, match=r"Ann ha[ds] a token"):
        make_token(session, name, "read")
    assert len(session.scalars(select(Token)).all()) == 1
    if name.strip() == "Ann":
        again, _ = make_token(session, name, "admin", replace=True)
        assert list_tokens(session) == [again]
    else:
        with pytest.raises(NameInUse, match="looks like it"):
            make_token(session, name, "read", replace=True)


def test_two_valid_tokens_of_one_name_are_refused_by_the_database_too(session):
    make_token(session, "Ann", "read")
    session.add(Token(name="Ann", role="read", digest="0", created_at="", revoked_at=""))
    with pytest.raises(IntegrityError):
        session.flush()


def test_each_role_has_the_permissions_of_those_before_it_and_more():
    for role, more in pairwise(ROLES):
        assert set(PERMISSIONS[role]) < set(PERMISSIONS[more])
    assert not may("read", "decide") and may("review", "decide") and not may("review", "undo others")
    assert {role_with(each) for each in ("delete", "tokens", "undo others")} == {"admin"}
    with pytest.raises(UserError, match="unknown role 'owner'"):
        may("owner", "read")


# --- requests a minute


def test_limiter_allows_the_rate_in_any_minute_for_each_kind_and_caller(monkeypatch):
    clock = [1_000_000.0]
    monkeypatch.setattr("limits.storage.memory.time.time", lambda: clock[0])
    limiter = Limiter({"sign in": 3, "request": 3, "look": 0})

    def allowed(kind, caller, times=5):
        return sum(limiter.allowed(kind, caller) for _ in range(times))

    assert allowed("sign in", "Ann") == 3 and allowed("sign in", "Ben") == 3 and allowed("request", "Ann") == 3
    assert allowed("look", "Ann", 99) == allowed("another kind", "Ann", 99) == 99, "0, or no rate: no limit"
    clock[0] += 58
    assert allowed("sign in", "Ann") == 0
    clock[0] += 3
    assert allowed("sign in", "Ann") == 3


# --- hosts and pages


@pytest.mark.parametrize("host", ["localhost", "LocalHost.", "127.0.0.1", "127.8.9.10", "::1", "[::1]"])
def test_loopback_of_this_machines_own_names_is_true(host):
    assert loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "[::]", "10.0.0.1", "128.0.0.1", "127.0.0.1.evil.example", "localhost.evil.example", "2130706433"],
)
def test_loopback_of_other_names_is_false(host):
    assert not loopback(host)


def test_host_name_is_in_lower_case_without_the_port():
    assert host_name("Whales.Example:8000") == host_name("whales.example") == "whales.example"
    assert host_name("[::1]:80") == host_name("[::1]") == "[::1]"


HERE = {"host": "localhost:8000"}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://localhost:9999"},
        {"origin": "http://localhost:8000.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost:8000"},
    ],
)
def test_foreign_change_from_another_page_is_told(method, headers):
    assert cross_site_reason(method, HERE | headers).startswith("this request comes from")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_foreign_lets_links_of_other_pages_look(method):
    assert cross_site_reason(method, HERE | {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}) == ""


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin", "origin": "http://localhost:8000"},
        {"origin": "https://localhost:8000"},
    ],
)
def test_foreign_change_from_the_own_page_or_a_program_is_let_in(headers):
    assert cross_site_reason("POST", HERE | headers) == ""
