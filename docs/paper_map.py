"""Writes nbs/paper_map.ipynb from docs/paper.yaml and the measured results in docs/results.

python docs/paper_map.py [--check]     # --check: exit 1 if the notebook is not what this would write
"""

import argparse
import json
import re
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
NOTEBOOK, RESULTS = HERE.parent / "nbs" / "paper_map.ipynb", HERE / "results"
UNMEASURED = ("gap", "paper_small")  # results that may not be there yet
SETS = ("happywhale_boxed", "demo", "humpback")  # whose results stand by their names
HEAD = "| the paper | what it says | measured | here |\n|---|---|---|---|"
READINGS = "| the paper | here | the reading taken |\n|---|---|---|"


def find(value, path):
    """The part of a result at a path such as `results[set=demo,model=adapter].map5`; None if it is not there."""
    for name, chosen in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path):
        if name:
            value = value.get(name) if isinstance(value, dict) else None
        else:
            wanted = dict(pair.split("=") for pair in chosen.split(","))
            rows = [row for row in value if all(str(row.get(key)) == text for key, text in wanted.items())]
            value = rows[0] if rows else None
        if value is None:
            return None
    return value


def read(place):
    """What a text `FILE:PATH` names; None if the file, or its part for that set, was not measured yet.

    Whatever else cannot be found is a fault of docs/paper.yaml, and ends the script.
    """
    name, _, path = place.partition(":")
    file = RESULTS / f"{name}.json"
    if not file.is_file() and name in UNMEASURED:
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    asked = re.match(r"results\[(set=[^,\]]+)", path) or re.match(rf"({'|'.join(SETS)})\.", path)
    if asked and find(content, f"results[{asked[1]}]" if "=" in asked[1] else asked[1]) is None:
        return None
    value = find(content, path)
    if value is None:
        sys.exit(f"docs/paper.yaml: {place} is not in {file.name}")
    return value


def measured(row):
    """The text of a row's measured value; "–" if it is not measured yet, "" if there is nothing to measure."""
    if "ours" not in row:
        return ""
    places = row["from"]
    values = {name: read(place) for name, place in places.items()} if isinstance(places, dict) else read(places)
    if values is None or None in (values.values() if isinstance(places, dict) else ()):
        return "–"
    text = re.sub(r"(?<![\d.])0\.(\d)(?![\d.]*%)", r".\1", row["ours"].format(**values))
    return re.sub(r"(\d)%", r"\1 %", text)


def reference(row):
    """The notebook and the names of a row, and its words."""
    notebook, *names = row["here"]
    parts = [f"[{notebook}]({notebook}.ipynb)" + ": " * bool(names) + ", ".join(f"`{name}`" for name in names)]
    return "; ".join(parts + ([row["words"]] if "words" in row else []))


def table(part):
    """The Markdown of a part's table."""
    if not any(row["says"] for row in part["rows"]):
        lines = [f"| {row['paper']} | {reference({'here': row['here']})} | {row['words']} |" for row in part["rows"]]
        return f"## {part['title']}\n\n{READINGS}\n" + "\n".join(lines)
    lines = []
    for row in part["rows"]:
        ours = measured(row)
        data = f" ({row['data']})" if "data" in row and ours not in ("", "–") else ""
        lines.append(f"| {row['paper']} | {row['says']} | {ours}{data} | {reference(row)} |")
    return f"## {part['title']}\n\n{HEAD}\n" + "\n".join(lines)


def table_1():
    """The thirty rows of table 1, if they were counted."""
    rows = read("counts:species")
    if not rows:
        return []
    text = "## Table 1, row by row\n\nThree spellings of Happywhale's stand corrected in the paper; two of them are "
    text += "beside the right ones, so that their species stand there twice.\n\n"
    lines = [f"| {row['species']} | {row['paper']:,} | {row['ours']:,} | {row['spelled']} |" for row in rows]
    return [text + "| species | the paper | here | as Happywhale spells it |\n|---|--:|--:|---|\n" + "\n".join(lines)]


def notebook():
    """The text of the notebook's file."""
    content = yaml.safe_load((HERE / "paper.yaml").read_text(encoding="utf-8"))
    texts = [content["introduction"].strip(), *map(table, content["parts"]), *table_1()]
    cells = [
        {"cell_type": "markdown", "id": f"paper-map-{n:02d}", "metadata": {}, "source": text.splitlines(keepends=True)}
        for n, text in enumerate(texts)
    ]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the notebook differs")
    given, text = parser.parse_args(), notebook()
    if given.check:
        sys.exit(text != NOTEBOOK.read_text(encoding="utf-8") and "nbs/paper_map.ipynb: run python docs/paper_map.py")
    NOTEBOOK.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
