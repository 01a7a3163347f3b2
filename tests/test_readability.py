"""The measure of how readable the text is: what counts as a sentence, and what does not."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("readability", Path(__file__).parents[1] / "docs" / "readability.py")
readability = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(readability)


def test_sentences_are_those_of_prose_without_code_tables_and_headings():
    prose = "One two three. Four [five six](x.md) `code`."
    text = f"# A heading of words\n\n{prose}\n\n| a | b | c |\n\n```sh\nrun it all now\n```\n"
    assert [" ".join(words) for words in readability.sentences(text)] == ["One two three", "Four five six code"]


def test_docstrings_count_without_the_names_of_arguments():
    (text,) = readability.docstrings(
        'def f(a):\n    """Do it well.\n\n    Args:\n        a: the first number.\n    """\n'
    )
    assert [" ".join(words) for words in readability.sentences(text)] == ["Do it well", "the first number"]


def test_long_sentences_lower_the_reading_ease():
    short, long = (readability.figures({"sentences": n, "long": 2 - n, "words": 40, "syllables": 60}) for n in (2, 1))
    assert short["flesch"] > long["flesch"] and (short["long"], long["long"]) == (0, 1)
