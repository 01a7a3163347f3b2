"""Files of answers as people send them: what is repaired, what is refused with its row, what a submission may hold."""

import csv
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import NEW
from happywhale_nb.ensemble import ranked_lists as ranked_lists_module
from happywhale_nb.ensemble.ranked_lists import RankedLists, first_five, read_columns, read_ranked_lists
from happywhale_nb.ensemble.voting import count_votes, rank_votes
from happywhale_nb.retrieval.predictions import check_submission

quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_read_ranked_lists_of_two_files_matches_photographs_and_repairs_lists(files):
    one = files("one.csv", "x,a b c d e", "y,f", "z,a a b")
    two = files("two.csv", "z,\"['b', 'a']\"", "w,a", "x,a b c d e f g")
    lists, lines = read_ranked_lists([one, two])
    assert lists.images.tolist() == ["x", "y", "z"] and lists.models.tolist() == ["one", "two"]
    assert lists.decode(lists.codes).tolist() == [
        [list("abcde"), ["f", "", "", "", ""], ["a", "b", "", "", ""]],
        [list("abcde"), [""] * 5, ["b", "a", "", "", ""]],
    ]
    assert [line.replace(f"{one.parent}/", "") for line in lines] == [
        "one.csv: 1 rows name an animal twice: the first mention counts",
        "one.csv: 2 rows have fewer than five names",
        "two.csv: 1 lists as Python prints them",
        "two.csv: 1 rows have more than five names: five count",
        "two.csv: 2 rows have fewer than five names",
        "two.csv: 1 photographs are missing: no vote there",
        "two.csv: 1 photographs are not among the queries: left out",
    ]
    assert lists.encode(["f", "nobody", "a"]).tolist() == [lists.names.tolist().index("f"), -1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x,a", "x,b", "y,a"], "row 3: x is listed more than once (1 such)"),
        (["x,a", "y,"], "row 3"),
        (["x,a", "y,[]"], "row 3: no name in the list"),
        (["q,a", "r,b"], "has 0 of 3 photographs"),
        (["q,a", "x,b"], "has 1 of 3 photographs"),
    ],
)
def test_read_ranked_lists_of_what_nobody_can_mend_is_refused_with_its_row(files, rows, message):
    good = files("good.csv", "x,a", "y,b", "z,c")
    with pytest.raises(UserError, match=r"bad\.csv") as error:
        read_ranked_lists([good, files("bad.csv", *rows)])
    assert message in str(error.value)


def test_read_ranked_lists_with_a_catalogue_leaves_out_unknown_names(files):
    good, odd = files("good.csv", "x,a b", "y,b q"), files("odd.csv", "x,q r", "y,s a")
    lists, lines = read_ranked_lists([good], known={"a", "b"})
    assert lists.decode(lists.codes[0, 1]).tolist() == ["b", "", "", "", ""]
    assert any("1 names that are not in the catalogue" in line for line in lines)
    half, _ = read_ranked_lists([files("half.csv", "x,q a", "y,r b")], known={"a", "b"})
    assert half.decode(half.codes[0, :, 0]).tolist() == ["a", "b"]
    with pytest.raises(UserError, match="3 names are not in the catalogue, those for x first"):
        read_ranked_lists([odd], known={"a", "b"})


def test_read_ranked_lists_of_no_or_of_broken_files_is_refused(files):
    with pytest.raises(UserError, match="no prediction files"):
        read_ranked_lists([])
    with pytest.raises(UserError, match="no column 'predictions'"):
        read_ranked_lists([files("wrong.csv", "x,1", header="image,label")])
    with pytest.raises(UserError, match="has a header but no rows"):
        read_ranked_lists([files("empty.csv")])
    with pytest.raises(UserError, match=r"absent\.csv is missing"):
        read_ranked_lists([files("good.csv", "x,a").with_name("absent.csv")])


def test_read_ranked_lists_of_a_models_folds_takes_their_rows_together(files):
    one, two = files("fold0.csv", "x,a b", "y,b"), files("fold1.csv", "z,c a a")
    lists, lines = read_ranked_lists({"net": [one, two], "other": one}, images=["z", "x", "y"])
    assert lists.models.tolist() == ["net", "other"] and lists.images.tolist() == ["z", "x", "y"]
    assert lists.decode(lists.codes[:, :, 0]).tolist() == [["c", "a", "b"], ["", "a", "b"]]
    assert f"{one} and 1 others: 1 rows name an animal twice: the first mention counts" in lines
    with pytest.raises(UserError, match="have the same photograph more than once"):
        read_ranked_lists({"net": [one, files("again.csv", "y,a")]})


def test_read_ranked_lists_of_files_of_one_name_tells_them_apart_by_their_folders(tmp_path):
    paths = [tmp_path / model / "fold0" / "oof.csv" for model in "ab"]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("image,predictions\nx,a\n")
    assert read_ranked_lists(paths)[0].models.tolist() == ["a/fold0/oof", "b/fold0/oof"]
    assert read_ranked_lists([paths[0]] * 2)[0].models.tolist() == ["oof#1", "oof#2"]


WORDS = st.text(
    st.characters(exclude_categories=["Cs", "Z", "C"], exclude_characters="[]'\",\\"), min_size=1, max_size=6
)
IMAGES = [f"{i}.jpg" for i in range(6)]


@st.composite
def answer_file(draw, names):
    """Rows of one file: `(image, list of names, how it is written)`; lists are short, long, or name one twice."""
    images = draw(st.lists(st.sampled_from(IMAGES), min_size=1, max_size=6, unique=True))
    lists = st.lists(st.sampled_from(names), min_size=1, max_size=8)
    return [(image, draw(lists), draw(st.sampled_from(["plain", "printed", "loose"]))) for image in images]


def write_answers(path, rows):
    """The file of such rows: with blanks between, as Python prints lists, or with more blanks than needed."""
    written = {"plain": " ".join, "printed": str, "loose": lambda names: f" {'  '.join(names)}\t"}
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "predictions"), *((i, written[how](row)) for i, row, how in rows)])
    return path


def plain_reading(rows, asked, known):
    """What one file says of the photographs asked about, and how often what was repaired; None if it is refused."""
    cut = {image: list(dict.fromkeys(row))[:5] for image, row, _ in rows}
    odd = sum(name not in known for row in cut.values() for name in row)
    missing = [image for image in asked if image not in cut]
    if 2 * len(missing) > len(asked) or 2 * odd > sum(map(len, cut.values())):
        return None
    counted = {
        "lists as Python prints them": sum(how == "printed" for *_, how in rows),
        "rows name an animal twice: the first mention counts": sum(len(set(row)) < len(row) for _, row, _ in rows),
        "rows have more than five names: five count": sum(len(row) > 5 for _, row, _ in rows),
        "rows have fewer than five names": sum(len(row) < 5 for _, row, _ in rows),
        "names that are not in the catalogue are left out": odd,
        "photographs are missing: no vote there": len(missing),
        "photographs are not among the queries: left out": len(set(cut) - set(asked)),
    }
    lists = [[name for name in cut.get(image, []) if name in known] for image in asked]
    return [row + [""] * (5 - len(row)) for row in lists], {what: n for what, n in counted.items() if n}


@quick
@given(st.data())
def test_read_ranked_lists_of_any_files_repairs_them_as_a_plain_reader(tmp_path, data):
    names = data.draw(st.lists(WORDS, min_size=3, max_size=9, unique=True))
    known = set(data.draw(st.lists(st.sampled_from(names), min_size=2, unique=True)))
    sent = data.draw(st.lists(answer_file(names), min_size=1, max_size=3))
    paths = [write_answers(tmp_path / f"{j}.csv", rows) for j, rows in enumerate(sent)]
    asked = [image for image, *_ in sent[0]]
    expected = [plain_reading(rows, asked, known) for rows in sent]
    if None in expected:
        with pytest.raises(UserError, match=rf"{expected.index(None)}\.csv"):
            read_ranked_lists(paths, known=known)
        return
    lists, lines = read_ranked_lists(paths, known=known)
    assert lists.images.tolist() == asked
    assert lists.decode(lists.codes).tolist() == [answers for answers, _ in expected]
    counted = zip(paths, [repairs for _, repairs in expected], strict=True)
    assert lines == [f"{path}: {n} {what}" for path, repairs in counted for what, n in repairs.items()]


@quick
@given(st.lists(st.lists(st.integers(0, 9), max_size=9), min_size=1, max_size=5))
def test_first_five_of_any_rows_are_the_first_different_ones(rows):
    codes, repeated, long = first_five(
        np.array([code for row in rows for code in row], int), np.array([*map(len, rows)])
    )
    expected = [list(dict.fromkeys(row))[:5] for row in rows]
    assert codes.tolist() == [row + [-1] * (5 - len(row)) for row in expected]
    assert repeated == sum(len(set(row)) < len(row) for row in rows) and long == sum(len(row) > 5 for row in rows)


def test_read_columns_of_a_file_arrow_cannot_read_falls_back_to_the_plain_reader(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text('image,note,predictions\n"a\nb.jpg",,x y\nc.jpg,n,z\n')  # a line break inside a name
    images, predictions = read_columns(path)
    assert images.to_pylist() == ["a\nb.jpg", "c.jpg"] and predictions.to_pylist() == ["x y", "z"]
    with patch.object(ranked_lists_module, "read_table", side_effect=AssertionError("read twice")):
        path.write_text("predictions,image\n7,0012\n")
        images, predictions = read_columns(path)  # numbers stay text, and columns are found by name
    assert images.to_pylist() == ["0012"] and predictions.to_pylist() == ["7"]


SUBMISSIONS = {
    "as it should be": (["x,a b c d e", "y,new_individual"], []),
    "six names": (["x,a b", "y,a b c d e f"], ["row 3: y has more than five names (1 such)"]),
    "a name twice": (["x,a a", "y,b b"], ["row 2: x names an animal twice (2 such)"]),
    "answered again": (["x,a", "y,b", "x,c"], ["row 4: x is listed more than once (1 such)"]),
    "not asked": (["x,a", "y,a", "q,a"], ["row 4: q is not one of the photographs to be predicted (1 such)"]),
    "missing": (["y,a"], ["1 photographs have no predictions, x first"]),
    "a stranger": (["x,a", "y,g a"], ["row 3: y names an animal that is not in the catalogue (1 such)"]),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_check_submission_with_one_fault_names_it_and_its_row(files, name):
    rows, expected = SUBMISSIONS[name]
    like = files("like.csv", "x,a", "y,a")
    assert check_submission(files("sent.csv", *rows), like, known="abcdef") == expected


def test_check_submission_with_a_printed_list_says_so(files):
    like = files("like.csv", "x,a", "y,a")
    lines = check_submission(files("sent.csv", "y,a", "x,\"['a', 'b']\""), like)
    assert lines == ["row 3: x is a list as Python prints it, not names separated by blanks (1 such)"]


def test_check_submission_with_another_column_says_so(files):
    lines = check_submission(files("sent.csv", "x,a,1", header="image,predictions,score"))
    assert lines == ["columns are image, predictions, score: they have to be image, predictions"]
    assert check_submission(files("sent.csv", "x,nobody")) == []  # without a catalogue any name will do


@quick
@given(st.lists(st.tuples(st.sampled_from(IMAGES), st.lists(WORDS, min_size=1, max_size=7)), min_size=1, max_size=6))
def test_check_submission_of_any_lists_finds_nothing_if_and_only_if_they_are_clean(tmp_path, rows):
    path = write_answers(tmp_path / "sent.csv", [(image, row, "plain") for image, row in rows])
    clean = all(len(row) <= 5 and len(set(row)) == len(row) for _, row in rows)
    once = len({image for image, _ in rows}) == len(rows)
    assert (check_submission(path) == []) == (clean and once)
    if once:
        lists, lines = read_ranked_lists([path])
        assert (not [line for line in lines if "fewer than five" not in line]) == clean
        assert isinstance(lists, RankedLists)


def test_read_ranked_lists_of_real_submissions_counts_their_faults(shared):
    folder = shared / "happywhale" / "submissions"
    lists, lines = read_ranked_lists([folder / f"{name}.csv" for name in ("model_a", "model_b", "malformed_listfmt")])
    assert lists.codes.shape == (3, 27_956, 5)
    assert any(line.endswith("model_a.csv: 29 rows name an animal twice: the first mention counts") for line in lines)
    assert any("27956 lists as Python prints them" in line for line in lines)
    answers = count_votes(lists).predict([1, 1, 1])
    assert all(len(set(row)) == 5 for row in answers[::500])
    assert (rank_votes(lists)[0, :, 0] == 400).all()
    assert NEW in lists.names
