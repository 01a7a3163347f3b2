"""The files of answers: what is written is read again, and faulty ones are refused by row."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import NEW
from happywhale_nb.retrieval.predictions import (
    read_predictions,
    read_scores,
    write_candidate_sets,
    write_predictions,
    write_scores,
)

NAMES = ["a", "b", "c", "d", "e", "f", NEW]
laws = settings(max_examples=25, deadline=None, derandomize=True)
lists_of_names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True)


@laws
@given(st.lists(lists_of_names, min_size=1, max_size=8), st.data())
def test_read_predictions_of_any_written_answers_brings_them_back_in_any_order(tmp_path_factory, answers, data):
    path = tmp_path_factory.mktemp("answers") / "oof.csv"
    images = [f"{i}.jpg" for i in range(len(answers))]
    write_predictions(path, images, [[*row, ""] for row in answers])
    full = [row + [""] * (5 - len(row)) for row in answers]
    found, read = read_predictions(path)
    assert found.tolist() == images and read.tolist() == full
    some = data.draw(st.permutations(range(len(images))))[: 1 + len(images) // 2]
    found, read = read_predictions(path, [images[i] for i in some])
    assert found.tolist() == [images[i] for i in some] and read.tolist() == [full[i] for i in some]


def test_write_predictions_of_more_than_five_names_keeps_the_first_five(tmp_path):
    write_predictions(tmp_path / "oof.csv", ["x.jpg"], [list("abcdeff")])
    assert (tmp_path / "oof.csv").read_text() == "image,predictions\nx.jpg,a b c d e\n"


@pytest.mark.parametrize("row", [["", ""], ["a", "b", "a"], [NEW, NEW]])
def test_write_predictions_of_an_empty_or_repeated_answer_is_refused_and_writes_nothing(row, tmp_path):
    with pytest.raises(ValueError, match=r"predictions for y\.jpg are empty or repeat"):
        write_predictions(tmp_path / "oof.csv", ["x.jpg", "y.jpg"], [["a"], row])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("row", ["a b c d e f", "a b a", "['a', 'b']"])
def test_read_predictions_of_a_faulty_list_names_its_row(row, tmp_path):
    (tmp_path / "oof.csv").write_text(f'image,predictions\nx.jpg,a b c d e\ny.jpg,"{row}"\n')
    with pytest.raises(UserError, match=r"oof\.csv, row 3: .* is not a list of at most five distinct"):
        read_predictions(tmp_path / "oof.csv")


def test_read_predictions_without_an_image_asked_for_is_refused(tmp_path):
    write_predictions(tmp_path / "oof.csv", ["x.jpg"], [["a"]])
    with pytest.raises(UserError, match=r"no predictions for y\.jpg \(2 are missing\)"):
        read_predictions(tmp_path / "oof.csv", ["x.jpg", "y.jpg", "z.jpg"])


def test_read_scores_of_a_missing_damaged_or_incomplete_file_is_refused(tmp_path):
    path = tmp_path / "oof_scores.parquet"
    with pytest.raises(UserError, match="is missing: run 06_knn again"):
        read_scores(path, ["x.jpg"])
    write_scores(path, ["w.jpg", "x.jpg"], [["a", "b"], ["c", ""]], [[0.9, 0.5], [0.8, -np.inf]])
    assert read_scores(path, ["x.jpg"])[0].tolist() == [["c", ""]]
    with pytest.raises(UserError, match=r"no candidates for y\.jpg"):
        read_scores(path, ["w.jpg", "y.jpg"])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="cannot be read as candidates"):
        read_scores(path, ["x.jpg"])
    pd.DataFrame({"image": ["x.jpg"], "ids": [["a"]]}).to_parquet(path)
    with pytest.raises(UserError, match="cannot be read as candidates"):
        read_scores(path, ["x.jpg"])


def test_write_lists_of_any_lists_counts_their_names(tmp_path):
    write_candidate_sets(
        tmp_path / "oof_lists.csv", ["x.jpg", "y.jpg"], [0.123456, 1], np.array([["a", "b", ""], ["", "", ""]])
    )
    lines = (tmp_path / "oof_lists.csv").read_text().splitlines()
    assert lines == ["image,confidence,n,candidates", "x.jpg,0.1235,2,a b", "y.jpg,1.0,0,"]
