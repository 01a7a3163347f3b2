"""What is stored and generated: outputs of the numbered notebooks, tables of measurements, the front page."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import gallery
import measured

NBS = ROOT / "nbs"
NUMBERED = sorted(NBS.glob("[0-9][0-9]_*.ipynb"))
LIBRARY = [path for path in NBS.glob("lib/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts]


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_numbered_notebook_stores_outputs_of_its_present_code_and_nothing_that_changes(path):
    """`make gallery` writes them; a name can be given to `python docs/gallery.py`."""
    cells, record = code_cells(path), json.loads(gallery.RECORD.read_text())
    assert record[path.stem] == gallery.code_fingerprint(path), f"run `python docs/gallery.py {path.stem}`"
    outputs = [output for cell in cells for output in cell["outputs"]]
    pictures = sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs)
    pictures += sum("data:image/" in "".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert pictures >= 2, "a numbered notebook shows pictures"
    text = path.read_text()
    assert len(text.encode()) <= gallery.LIMIT
    assert str(ROOT) not in text and "/tmp/" not in json.dumps(outputs)
    assert not any(cell["execution_count"] for cell in cells)
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}


def test_notebooks_of_the_library_are_stored_without_outputs():
    assert len(LIBRARY) > 100
    assert [path.stem for path in LIBRARY if any(cell["outputs"] for cell in code_cells(path))] == []


def test_gallery_stores_neither_paths_nor_addresses_nor_large_pictures():
    import base64
    import io

    import nbformat
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (900, 1800, 3), np.uint8)
    made = io.BytesIO()
    Image.fromarray(noise).save(made, "PNG")
    data = {"image/png": base64.b64encode(made.getvalue()).decode(), "text/plain": "<Figure at 0x7f3a>"}
    kept = gallery.stored(nbformat.v4.new_output("display_data", data))
    (kind,) = [name for name in kept.data if name.startswith("image/")]
    assert Image.open(io.BytesIO(base64.b64decode(kept.data[kind]))).width == gallery.WIDTH
    printed = nbformat.v4.new_output("stream", text=f"{ROOT}/outputs/demo <Model at 0x7f3a>\n")
    assert gallery.stored(printed).text == "outputs/demo <Model>\n"
    assert gallery.stored(nbformat.v4.new_output("stream", name="stderr", text="a bar")) is None
    assert gallery.stored(nbformat.v4.new_output("display_data", {gallery.WIDGET: {}})) is None


def test_tables_of_measurements_are_what_their_results_give():
    done = subprocess.run([sys.executable, ROOT / "docs" / "measured.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + "run `make results`"


def test_tables_of_measurements_follow_their_results(monkeypatch):
    rows = [
        {"individuals": 7, "set": "humpback", "most": None, "known": 9, "map5": {"adapter": 0.5, "fine-tuned": 1.0}}
    ]
    rows[0] |= {"gain": 0.5, "low": -0.25, "high": 0.75}
    monkeypatch.setattr(measured, "result", lambda name: {"results": rows})
    text = measured.filled("before\n<!-- table: subsets -->\nold\n<!-- end -->\nafter\n")
    assert "| 7 flukes | 9 | .500 | 1.000 | .500 (-.250 to .750) |" in text
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert measured.filled(text) == text


def test_readme_is_a_front_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert re.findall(r'src="(nbs/images/[^"]+)"', text)[0] == "nbs/images/page.jpg"
    for name in re.findall(r'src="([^"]+)"', text):
        assert (ROOT / name).is_file(), name
    assert all(word in text for word in ("make demo", "make test", "identify(", "MAP@5", "CITATION.cff", "LICENSE"))


def test_citation_names_the_version_of_the_package():
    import yaml

    settings = dict(re.findall(r"^(\w+) = (.+)$", (ROOT / "settings.ini").read_text(), re.M))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == settings["version"] and citation["license"] == "Apache-2.0"
