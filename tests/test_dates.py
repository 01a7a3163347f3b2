"""Laws of the parser of dates and of the rule for names."""

import unicodedata
from datetime import date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dates import AmbiguousDate, parse_date
from happywhale_nb.data.names import clean_name, find_twins, id_of, is_nobody, name_key, search_key

DAYS = st.dates(date(1930, 1, 1), date(2025, 12, 31))
NAMES = st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=30)


@given(DAYS)
def test_parse_date_of_a_day_in_any_form_gives_the_day(day):
    iso, serial = day.isoformat(), (day - date(1899, 12, 30)).days
    forms = [iso, f"{day:%Y:%m:%d}", f"{day:%Y%m%d}", f"{day:%G-W%V-%u}", f"{day:%d-%b-%Y}", str(serial)]
    assert {parse_date(form) for form in forms} == {iso}
    assert parse_date(f"{day:%d/%m/%Y}", "dmy") == parse_date(f"{day:%m/%d/%Y}", "mdy") == iso


@given(DAYS)
def test_parse_date_without_an_order_never_guesses(day):
    if day.day > 12 or day.day == day.month:
        assert parse_date(f"{day:%d/%m/%Y}") == day.isoformat()
    else:
        with pytest.raises(AmbiguousDate, match=day.isoformat()):
            parse_date(f"{day:%d/%m/%Y}")


@given(st.datetimes(datetime(1930, 1, 1), datetime(2025, 12, 31)), st.sampled_from(["", "Z", "+02:00", "-0330"]))
def test_parse_date_is_idempotent_and_keeps_local_time(moment, zone):
    read = parse_date(f"{moment:%Y-%m-%d %H:%M:%S}{zone}")
    assert read == parse_date(read)
    assert read.startswith(f"{moment:%Y-%m-%dT%H:%M:%S}")


@given(st.text(max_size=20))
def test_parse_date_of_any_text_gives_an_iso_date_or_a_user_error(text):
    try:
        read = parse_date(text)
    except UserError as error:
        assert "date " in str(error)
    else:
        assert read == parse_date(read)


@given(NAMES)
def test_clean_name_of_any_text_is_idempotent_and_composition_does_not_matter(text):
    name = clean_name(text)
    assert name == clean_name(name) == clean_name(unicodedata.normalize("NFD", text))
    assert not any(c.isspace() for c in id_of(name))
    assert name_key(name) == name_key(id_of(name))


@given(st.lists(NAMES, max_size=8))
def test_find_twins_of_names_are_all_that_share_a_key(names):
    groups = find_twins(names)
    assert all(len({name_key(name) for name in group}) == 1 and len(group) > 1 for group in groups)
    alone = set(names) - {name for group in groups for name in group}
    assert len({name_key(name) for name in alone}) == len(alone)


@pytest.mark.parametrize(
    "text", ["", " ", "NA", "n/a", "NULL", "#REF!", "#N/A", "?", "unk", "new_whale", "New  Individual"]
)
def test_is_nobody_of_a_placeholder_is_true(text):
    assert is_nobody(text)


@pytest.mark.parametrize("text", ["Zoë 07", "Nº 12", "O'Brien", "unknown 3", "0", "N", "Nobody's Child"])
def test_is_nobody_of_a_name_is_false(text):
    assert not is_nobody(text)


LATIN = st.characters(max_codepoint=0x24F, categories=("L", "N", "P", "Zs")) | st.sampled_from("’‘–")


@given(st.text(LATIN, max_size=30))
def test_names_with_one_key_are_found_by_one_search_and_kinds_of_apostrophes_and_dashes_are_alike(name):
    assert search_key(name) == search_key(name_key(name)) == search_key(search_key(name))
    typed = name.replace("’", "'").replace("‘", "'").replace("–", "-")
    assert name_key(typed) == name_key(name)
    assert search_key(unicodedata.normalize("NFD", name)) == search_key(name)
