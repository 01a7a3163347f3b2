"""Runs the numbered notebooks on the demo data and stores their outputs: `make gallery`.

    python docs/gallery.py [NAME ...] [--check]     # NAME: only these, such as 01_eda; --check: change nothing, report

The demo study is computed first, or as much of it as is missing or outdated. Outputs are made repeatable: without
progress bars, execution counts, widgets and absolute paths. Pictures are scaled and stored as small PNG or JPEG files.
A notebook of which nothing has changed keeps every byte. docs/results/gallery.json has a fingerprint of the code that
each notebook's outputs come from; a test compares it. Without names the pictures of the catalogue's page are taken too.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from page_pictures import page_pictures
from PIL import Image

from happywhale_nb.core.artifacts import atomic, read_json, write_json
from happywhale_nb.workflow.runner import stage_notebook, stage_values
from happywhale_nb.workflow.study import read_study, study_jobs

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 400_000  # bytes of a stored notebook
WIDTH = 800  # pixels of a stored picture, at most
SMALL_PNG = 40_000  # bytes; a larger picture is a photograph, for which JPEG is smaller
STYLE = "figure.dpi: 80\nsavefig.dpi: 80\nfont.size: 9\nfigure.max_open_warning: 0\n"
RECORD = ROOT / "docs" / "results" / "gallery.json"
PICTURES = {  # picture of the site's first page → notebook, and a text in the cell that shows it
    "gallery_eda": ("01_eda", "plot_most_photographed"),
    "gallery_augmentation": ("02_augmentation", "plot_recipes"),
    "gallery_gradcam": ("04_gradcam", "gradcam.png"),
    "gallery_robustness": ("05_robustness", "plot_losses"),
    "gallery_knn": ("06_knn", "plot_examples"),
    "gallery_plane": ("06_knn", "plot_plane"),
}
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebooks(names=()):
    """The numbered notebooks, or those named."""
    found = sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))
    if unknown := set(names) - {path.stem for path in found}:
        sys.exit(f"no numbered notebook is called {', '.join(sorted(unknown))}")
    return [path for path in found if not names or path.stem in names]


def code_fingerprint(path):
    """A fingerprint of a notebook's code cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\0".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def draw_demo_study():
    """Compute what is missing of the demo study, whose results the notebooks show."""
    program = Path(sysconfig.get_path("scripts")) / "happywhale"
    subprocess.run([program, "demo"], cwd=ROOT, check=True)


def small_picture(data):
    """Scale and compress a picture: `(MIME type, base64 text)`."""
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    drawn, photo = io.BytesIO(), io.BytesIO()
    picture.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(drawn, "PNG", optimize=True)
    picture.save(photo, "JPEG", quality=72, optimize=True)
    kind, made = ("png", drawn) if drawn.tell() < max(SMALL_PNG, photo.tell()) else ("jpeg", photo)
    return f"image/{kind}", base64.b64encode(made.getvalue()).decode()


def small_uris(html):
    """HTML whose pictures are scaled and compressed, too."""

    def smaller(found):
        kind, data = small_picture(found[1])
        return f"data:{kind};base64,{data}"

    return re.sub(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", smaller, html)


def plain(text):
    """Text without absolute paths, and without the addresses of objects in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), "."))


def stored(output):
    """An output as it is stored; None if it is not."""
    if output.output_type == "stream":
        return None if output.name == "stderr" else nbformat.v4.new_output("stream", text=plain(output.text))
    data = dict(output.data)
    if WIDGET in data and "text/html" not in data:
        return None
    data.pop(WIDGET, None)
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            name, picture = small_picture(data.pop(kind))
            data = {name: picture}
    if "text/html" in data:
        data["text/html"] = plain(small_uris(data["text/html"]))
    if "text/plain" in data:
        data["text/plain"] = plain(data["text/plain"])
    return nbformat.v4.new_output("display_data", data=data) if data else None


def study_parameters():
    """The parameters with which the demo study runs each notebook first: stem → name → value."""
    _, jobs = study_jobs(read_study(ROOT / "studies" / "demo.yaml"))
    found = {}
    for job in jobs:
        found.setdefault(stage_notebook(job.stage).stem, stage_values(job.stage, job.parameters)[0])
    return found


def run(path, style, values):
    """The notebook's text with the outputs of a run with these parameters; others keep their defaults."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    executed = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in executed.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    os.environ |= {
        "HAPPYWHALE_DATA": str(ROOT / "data" / "demo"),
        "MATPLOTLIBRC": str(style),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    NotebookClient(
        executed, timeout=900, kernel_name="python3", resources={"metadata": {"path": ROOT / "nbs"}}
    ).execute()
    for cell, done in zip(cells, (c for c in executed.cells if c.cell_type == "code"), strict=True):
        cell.outputs = [output for output in map(stored, done.outputs) if output]
    return nbformat.writes(notebook) + "\n"


def store_pictures(path):
    """Write the notebook's pictures of the site's first page into nbs/images, 600 pixels wide and at most as high."""
    cells = nbformat.read(path, as_version=4).cells
    for name, (stem, text) in PICTURES.items():
        if stem != path.stem:
            continue
        cell = next(cell for cell in cells if cell.cell_type == "code" and text in cell.source and cell.outputs)
        data = next(output.data for output in cell.outputs if output.output_type == "display_data")
        shown = next(value for kind, value in data.items() if kind.startswith("image/"))
        picture = Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB")
        picture = picture.crop((0, 0, picture.width, min(picture.height, picture.width * 3 // 4)))
        picture.thumbnail((600, 450))
        made = io.BytesIO()
        picture.save(made, "JPEG", quality=80, optimize=True)
        file = ROOT / "nbs" / "images" / f"{name}.jpg"
        if not file.is_file() or file.read_bytes() != made.getvalue():
            file.write_bytes(made.getvalue())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these notebooks")
    parser.add_argument("--check", action="store_true", help="report what would change, and change nothing")
    given = parser.parse_args()
    draw_demo_study()
    changed, parameters = [], study_parameters()
    with tempfile.TemporaryDirectory() as folder:
        style = Path(folder) / "matplotlibrc"
        style.write_text(STYLE)
        for path in notebooks(given.names):
            text = run(path, style, parameters.get(path.stem, {}))
            if (size := len(text.encode())) > LIMIT:
                sys.exit(f"{path.stem} would take {size:,} bytes, more than {LIMIT:,}: show fewer or smaller pictures")
            same = text == path.read_text(encoding="utf-8")
            print(f"{path.stem}: {size / 1000:.0f} kB, {'as it was' if same else 'changed'}", flush=True)
            if not same:
                changed.append(path.stem)
                if not given.check:
                    with atomic(path) as temporary:
                        temporary.write_text(text, encoding="utf-8")
            if not given.check:
                store_pictures(path)
                record = read_json(RECORD) if RECORD.is_file() else {}
                write_json(RECORD, dict(sorted((record | {path.stem: code_fingerprint(path)}).items())))
    if not given.names and not given.check:
        page_pictures(ROOT / "nbs" / "images")
    return 1 if given.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
