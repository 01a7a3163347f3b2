"""How readable the project's text is, by wing: notebooks' prose and docstrings, and pages.

    python docs/readability.py [--root FOLDER] [--keep NAME] [--long N] [PATH ...]

It shows sentences, the share of those with more than 25 words, and Flesch's reading ease (1948; higher is easier, 60 to
70 is plain English). --root measures another checkout, --keep writes the table into docs/results/readability.json under
a name, --long shows the N longest sentences. Code, tables, headings and addresses do not count.
"""

import argparse
import ast
import json
import re
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from happywhale_nb.core.artifacts import read_json, write_json

HERE = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md")
LONG = 25


def texts(root):
    """(wing, file, text) of all prose."""
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        place = path.relative_to(root / "nbs")
        wing = place.parts[1] if place.parts[0] == "lib" else "numbered notebooks"
        if ".ipynb_checkpoints" in place.parts or path.stem in ("paper_map", "index"):
            continue
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                yield wing, path, source
            elif source.startswith("#| export"):
                yield from ((wing, path, text) for text in docstrings(source))
    for pattern in PAGES:
        for path in sorted(root.glob(pattern)):
            yield "pages", path, path.read_text()


def docstrings(source):
    """The docstrings of a cell, without the names of sections and arguments."""
    try:
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.M))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node)
        ):
            text = re.sub(r"^(Args|Returns|Raises|Yields|Attributes|Example):$", "", text, flags=re.M)
            yield re.sub(r"^( {4})[\w.`*]+: ", r"\n", text, flags=re.M)


def sentences(text):
    """The sentences of a text in Markdown, as lists of words."""
    text = re.sub(r"```.*?```|<[^>]+>", " ", text, flags=re.S)
    text = re.sub(r"^\s*(\||#).*$", "", text, flags=re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:[-*>]|\d+\.) ", text):
        paragraph = re.sub(r"`[^`]*`", "code", paragraph).replace("\n", " ")
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z“\"(*])", paragraph):
            words = re.findall(r"[A-Za-z][A-Za-z'’-]*", sentence)
            if len(words) > 2:
                yield words


def syllables(word):
    """Groups of vowels, without a silent e: good to about one word in ten."""
    word = word.lower()
    return max(1, len(re.findall(r"[aeiouy]+", word)) - (word.endswith("e") and not word.endswith("le")))


def measure(root, only=()):
    """Wing → figures, and the sentences with their files."""
    counts, found = defaultdict(lambda: {"sentences": 0, "long": 0, "words": 0, "syllables": 0}), []
    for wing, path, text in texts(root):
        if only and not any(path.resolve().is_relative_to(place.resolve()) for place in only):
            continue
        for words in sentences(text):
            row = counts[wing]
            row["sentences"] += 1
            row["long"] += len(words) > LONG
            row["words"] += len(words)
            row["syllables"] += sum(map(syllables, words))
            found.append((len(words), path.relative_to(root).as_posix(), " ".join(words)))
    names = ("sentences", "long", "words", "syllables")
    counts["all"] = {name: sum(row[name] for row in counts.values()) for name in names}
    return {wing: figures(row) for wing, row in counts.items()}, sorted(found, reverse=True)


def figures(row):
    """Sentences, the share of long ones and Flesch's reading ease of counts."""
    words, said = max(row["words"], 1), max(row["sentences"], 1)
    ease = 206.835 - 1.015 * words / said - 84.6 * row["syllables"] / words
    return {"sentences": row["sentences"], "long": round(row["long"] / said, 3), "flesch": round(ease, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="only what is in these files and folders")
    parser.add_argument("--root", type=Path, default=HERE, help="a checkout")
    parser.add_argument("--keep", help="the name under which the table is kept")
    parser.add_argument("--long", type=int, default=0, help="show so many of the longest sentences")
    given = parser.parse_args()
    table, found = measure(given.root.resolve(), given.paths)
    print(f"| wing | sentences | over {LONG} words | reading ease |\n|---|--:|--:|--:|")
    for wing, row in table.items():
        print(f"| {wing} | {row['sentences']} | {row['long']:.1%} | {row['flesch']} |")
    for words, path, sentence in found[: given.long]:
        print(f"\n{words} words, {path}\n    {sentence}")
    if given.keep:
        to = HERE / "docs" / "results" / "readability.json"
        file = read_json(to) if to.is_file() else {"name": "readability"}
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(to, file | {given.keep: {"date": when, "wings": table}})


if __name__ == "__main__":
    main()
