"""What must happen with each input of `reports/README.md`, and how it is tried.

The modules beside this one hold a table `CASES`: the key of a row, and what must happen, one `Case` a command:

    CASES = {
        "tables/dates": [
            Case("import R/tables/dates/t.csv --to OUT/d", exit_code=1, words=["row 4", "07/08/2019"]),
            Case("import R/tables/dates/t.csv --to OUT/d --dates dmy", known={"W0": 3}, left_out=["p13.jpg"]),
        ],
        "data/formats": page_shows_all_formats,  # a function of (reports, out), where commands do not say it
    }

A key is the folder or file that the row's first column names (`tables/dates`, `photos/lab.tif`, `study_007.yaml`), or
its first words where it names none (a row of "On the server"). R and OUT stand for the folders of the reports and of
the test, `import`, `check` and the like for `happywhale data import` and so on.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from happywhale_nb.cli.main import main
from happywhale_nb.data.dataset import read_dataset

DATA_COMMANDS = ("import", "check", "relink")
LINE = re.compile(r"^\|(?P<cells>.+)\|\s*$")


@dataclass(frozen=True)
class Case:
    """One command and what must come of it.

    Attributes:
        command: the command's words; R, OUT and M are replaced in them.
        exit_code: the status that it must end with.
        words: each must be in what it prints.
        never: none of these may be in what it prints; a traceback never may.
        known: photographs of each individual in the data folder that `--to` names, by the name in train.csv;
            None: no data folder may be there.
        unidentified: how many photographs are to be identified there.
        left_out: names that must be in its `left_out.csv`; nothing else may be there.
        check: a function of the data folder (or of OUT), for whatever else must hold.
    """

    command: str
    exit_code: int = 0
    words: Sequence[str] = ()
    never: Sequence[str] = ()
    known: dict[str, int] | None = None
    unidentified: int = 0
    left_out: Sequence[str] = ()
    check: Callable[[Path], None] | None = field(default=None, repr=False)

    def __call__(self, reports: Path, out: Path, model: Path | None = None) -> None:
        """Run the command and compare."""
        places = {"R": reports, "OUT": out, "M": model}
        parts = [re.sub(r"^(R|OUT|M)(?=/|$)", lambda m: str(places[m[1]]), word) for word in shlex.split(self.command)]
        arguments = ["data", *parts] if parts[0] in DATA_COMMANDS else parts
        result = CliRunner().invoke(main, arguments)
        printed = result.output + getattr(result, "stderr", "")
        told = " ".join(printed.split())
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert result.exit_code == self.exit_code, printed
        assert "Traceback" not in printed
        assert [word for word in self.words if word not in told] == [], printed
        assert [word for word in self.never if word in told] == [], printed
        target = Path(parts[parts.index("--to") + 1]) if "--to" in parts else None
        if arguments[:2] == ["data", "import"]:
            self._compare_folder(target, printed)
        if self.check:
            self.check(target or out)

    def _compare_folder(self, target, printed):
        assert self.words, "a case says what the message must tell"
        if self.known is None:
            assert not target.exists(), f"{target} was written though nothing should be"
            return
        data = read_dataset(target)
        names = data.train["individual_name" if "individual_name" in data.train else "individual_id"]
        assert dict(Counter(names)) == self.known, printed
        assert len(data.test) == self.unidentified, printed
        table = target / "left_out.csv"
        text = table.read_text(encoding="utf-8") if table.is_file() else ""
        assert len(text.splitlines()[1:]) == len(self.left_out), text
        assert [name for name in self.left_out if name not in text] == [], text


def rows_of(readme: str) -> list[tuple[str, str]]:
    """Find the rows of the reports' tables.

    Args:
        readme: text of README.md.

    Returns:
        Pairs of a heading and the first cell of a row, in the order of the file.
    """
    rows, heading = [], ""
    for line in readme.splitlines():
        if line.startswith("## "):
            heading = line[3:].strip()
        elif (match := LINE.match(line)) and not set(match["cells"]) <= set("-| "):
            cell = re.split(r"(?<!\\)\|", match["cells"])[0].strip()
            if cell not in ("file", "what"):
                rows.append((heading, cell))
    return rows


def keys_of(cell: str) -> list[str]:
    """Find the keys of a row: the places that its first cell names, else its first words.

    Args:
        cell: the first cell.

    Returns:
        Such as `["tables/cp1252", "tables/utf16"]`; `_cp1252` after `data/encounters_semicolon` is another ending.
    """
    keys = []
    for text in re.findall(r"`([^`]+)`", cell):
        if match := re.match(r"(?:tables|coco|folders|data)/[^/\s]+|photos/\S+|\S+\.yaml$", text):
            keys.append(match[0].rstrip("/"))
        elif text.startswith("_") and keys:
            keys.append(re.sub(r"_[^_]+$", text, keys[0]))
    return list(dict.fromkeys(key for key in keys if "{" not in key)) or [" ".join(cell.replace("`", "").split()[:6])]
