"""Stand-ins for the stages' notebooks: the same parameters cell, and a cell that writes the stage's files in no time.

They are for tests of what is around a notebook (the runner, locks, Slurm, Kaggle's folder): whatever a network would
add there is time. A stand-in for a training does what those tests need of one: it begins with a state (`resume.json`),
goes on from one that it finds, keeps results that are there, and holds in the middle while the file
`$HAPPYWHALE_HOLD` is there.
"""

from copy import deepcopy
from pathlib import Path

import nbformat

HEAD = """
import os
import time
from pathlib import Path

import numpy as np

from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.core.errors import UserError
from happywhale_nb.core.artifacts import atomic
from happywhale_nb.core.paths import find_data, fold_dir, study_dir
from happywhale_nb.retrieval.predictions import read_predictions, write_predictions
from happywhale_nb.core.artifacts import read_json, write_json
from happywhale_nb.data.splits import fold_numbers, gallery_and_queries
from happywhale_nb.stages.encoder_input import model_name
from happywhale_nb.stages.study_split import study_folds

dataset, folder = read_dataset(find_data(data_dir), need_photos=False), study_dir(study, data_dir, quick)


def drawn(images, names, *seed):
    rng = np.random.default_rng([*map(ord, "".join(map(str, seed)))])
    return [["new_individual", *rng.choice(names, 4, replace=False)] for _ in images]
"""

TRAIN = """
table = study_folds(dataset, folder, folds, seed, split)
model = model_name({"name": name, "preset": preset, "encoder": encoder})
place = fold_dir(folder, model, fold)
gallery_and_queries(table, fold)
if force or not (place / "config.json").is_file():
    state = place / "resume.json"
    begun = read_json(state)["epoch"] if state.is_file() else 0
    for epoch in range(begun + 1, 3):
        write_json(state, {"epoch": epoch})
        end = time.monotonic() + 60
        while (hold := os.environ.get("HAPPYWHALE_HOLD")) and Path(hold).exists():
            if time.monotonic() > end:
                raise TimeoutError("held for a minute")
            time.sleep(0.02)
    for kept in [model, *(f"{model}@{number}" for number in snapshots.split())]:
        place = fold_dir(folder, kept, fold)
        place.mkdir(parents=True, exist_ok=True)
        with atomic(place / "model.keras") as part:
            part.write_bytes(np.random.default_rng([seed, fold]).bytes(500_000))
        (place / "history.csv").write_text("epoch,loss\\n1,2.0\\n2,1.0\\n")
        write_json(place / "config.json", {"parameters": {"fold": fold, "preset": preset}, "result": {"epochs": begun}})
    state.unlink()
"""

KNN = """
table, names = study_folds(dataset, folder, folds, seed), dataset.train["individual_id"].unique()
done = [k for k in fold_numbers(table) if (fold_dir(folder, model, k) / "config.json").is_file()]
for k in done:
    place = fold_dir(folder, model, k)
    weights = (place / "model.keras").read_bytes()[:8]
    queries = table["image"][table["fold"] == k]
    for part, images in (("oof", queries), ("test", dataset.test["image"])):
        write_predictions(place / f"{part}.csv", images, drawn(images, names, part, k, alpha, weights))
oof = {"map5": 0.5, "map5_known": 0.5, "n": len(table), "fraction_new": 0.1}
result = {"oof": oof, "for_test": {"threshold": 0.5, "prior_new": None}, "folds": done, "made": [alpha, neighbors]}
write_json(folder / model / "knn.json", result)
"""

BLEND = """
files, record = sorted(folder.glob("*/fold*/test.csv")), folder / "blend.json"
lists = [path.read_text() for path in files]
if force or not record.is_file() or read_json(record)["lists"] != lists:
    images, answers = read_predictions(files[0], dataset.test["image"])
    write_predictions(folder / "submission.csv", images, answers)
    result = {"fit": None, "weighting": weighting, "photos": len(images), "tested": True}
    write_json(record, result | {"lists": lists})
"""

REPORT = """
models = {path.parent.name: read_json(path) for path in folder.glob("*/knn.json")}
test = {"map5": 0.5, "map5_known": 0.5, "n": len(dataset.test)}
write_json(folder / "report.json", {"models": models, "test": test, "examples": examples})
"""

CELLS = {
    "01_eda": 'write_json(folder / "eda.json", {"photos": len(dataset.train)})',
    "03_train": TRAIN,
    "04_gradcam": 'write_json(fold_dir(folder, model, fold) / "gradcam.json", {"examples": examples})',
    "05_robustness": 'write_json(folder / model / "robustness.json", {"photos": photos})',
    "06_knn": KNN,
    "07_blending": BLEND,
    "08_report": REPORT,
}


def write_standins(notebooks):
    """Put a stand-in in the place of each stage's notebook in the folder `notebooks`."""
    for stage, code in CELLS.items():
        path = notebooks / f"{stage}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        cells = [
            notebook.cells[0],
            *map(deepcopy, tagged),
            *map(nbformat.v4.new_code_cell, (HEAD.strip(), code.strip())),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata), path)


def nvidia_smi(folder, does):
    """Write a stand-in for NVIDIA's program into a folder; `does`: "answers" for two cards, "fails", or "hangs"."""
    rows = {
        "answers": 'case "$1" in\n-L) echo "GPU 0: NVIDIA L4 (UUID: GPU-0)"; echo "GPU 1: NVIDIA L4 (UUID: GPU-1)";;\n'
        '*) echo "NVIDIA L4, 550.54.15"; echo "NVIDIA L4, 550.54.15";;\nesac\n',
        "fails": 'echo "has failed because it could not communicate with the NVIDIA driver"\nexit 9\n',
        "hangs": "exec sleep 60\n",
    }
    program = Path(folder) / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{rows[does]}", encoding="utf-8")
    program.chmod(0o755)
