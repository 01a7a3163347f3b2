"""What each command does, at a quarter, a half and the whole of a size: processor time must grow with the photographs.

Commands of the same kinds as a person gives them draw their inputs themselves: small pictures of noise, four tables of
boxes, dates, encounters. The exponent says how time grows: 1 with the photographs, 2 with each pair of them. `make
soak` keeps the table in `docs/results/soak_scaling.json`; nothing is asserted about time, which is another machine's.
"""

import math
import time

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from faults import keep_result
from PIL import Image
from test_soak_size import planted, trained_fold

from happywhale_nb.catalogue.example import ColourEmbedder
from happywhale_nb.catalogue.exports.formats import export_sightings
from happywhale_nb.catalogue.ingest import ingest_dataset, re_embed, recalibrate, update_metadata
from happywhale_nb.catalogue.listings import facets, list_encounters, list_individuals, sightings
from happywhale_nb.catalogue.matching import Matcher, match_encounter
from happywhale_nb.catalogue.photo_files import missing_photos, plan_relink, write_relink
from happywhale_nb.catalogue.store import create_catalogue
from happywhale_nb.cli.main import main
from happywhale_nb.data.boxes import read_boxes
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.stages.blending import blend_stage
from happywhale_nb.stages.eda import eda_stage
from happywhale_nb.stages.knn import knn_stage
from happywhale_nb.stages.study_split import study_folds

WHOLE, FEW = 16_000, 240


class Other(ColourEmbedder):
    """A second model, to change over to."""

    fingerprint = "07e4" * 4


class Clock:
    """Processor seconds of each part."""

    def __init__(self):
        self.parts, self.last = {}, time.process_time()

    def lap(self, name):
        """Write down the time since the last lap."""
        now = time.process_time()
        self.parts[name], self.last = now - self.last, now

    def start(self):
        """Leave out what came since the last lap."""
        self.last = time.process_time()


def draw_photos(root, photos):
    """Folders of animals with pictures of noise, twenty of each, a fifth of all without a name."""
    rng = np.random.default_rng(0)
    for i in range(photos):
        folder = root / ("unidentified" if i % 5 == 0 else f"HB-{i // 20:05d}")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        pixels.resize((160, 120)).save(folder / f"P{i:06d}.jpg")


def write_tables(data, rng):
    """Boxes of four sources for each photograph, and when and where it was taken."""
    dataset = read_dataset(data)
    images = [*dataset.train["image"], *dataset.test["image"]]
    (data / "boxes").mkdir()
    for source in ("fullbody", "fullbody_charm", "backfin", "detic"):
        corners = np.column_stack([rng.integers(0, 40, (len(images), 2)), rng.integers(80, 120, (len(images), 2))])
        table = pd.DataFrame(corners, columns=["xmin", "ymin", "xmax", "ymax"])
        table.assign(image=images, W=160, H=120).to_csv(data / "boxes" / f"{source}.csv", index=False)
    days = pd.Timestamp("2015-01-01") + pd.to_timedelta(rng.integers(0, 3000, len(images)), unit="D")
    known = pd.DataFrame({"image": images, "date": days.strftime("%Y-%m-%d"), "place": "Ness", "side": "left"})
    known.to_csv(data / "encounters.csv", index=False)


def run_commands(photos, folder):
    """Processor seconds of each command for so many photographs."""
    source, data = folder / "source", folder / "data"
    draw_photos(source, photos)
    clock = Clock()
    commands = {
        "data import": [source, "--to", data, "--species", "fin_whale"],
        "data check": [data],
        "data check --deep": [data, "--deep"],
    }
    for name, words in commands.items():
        result = CliRunner().invoke(main, ["data", name.split()[1], *map(str, words)])
        assert result.exit_code in (0, 1), result.output  # 1: pictures of noise resemble each other
        clock.lap(name)
    write_tables(data, np.random.default_rng(1))
    clock.start()
    dataset, _ = read_dataset(data), read_boxes(data)
    clock.lap("read the data folder and its boxes")
    study_of(dataset, folder / "study", clock)
    made, embedder = create_catalogue(folder / "catalogue", data), ColourEmbedder()
    clock.start()
    assert ingest_dataset(made, embedder, dataset, "colours") == photos
    clock.lap("catalogue build: take in")
    assert update_metadata(made, dataset, "Ann") == []
    clock.lap("catalogue build: compare tables")
    made.choose_model(embedder.fingerprint)
    recalibrate(made)
    clock.lap("catalogue build: calibrate")
    assert ingest_dataset(made, embedder, dataset, "colours") == 0
    update_metadata(made, dataset, "Ann")
    clock.lap("catalogue build again")
    assert re_embed(made, Other(), "other") == photos
    clock.lap("catalogue re-embed")
    return clock.parts | look_at(made, photos, clock)


def study_of(dataset, folder, clock):
    """Processor seconds of the stages of a study that need no network; the embeddings are planted."""
    clock.start()
    eda_stage(dataset, folder)
    clock.lap("eda")
    folds = study_folds(dataset, folder, k=2)
    clock.lap("folds")
    truth = dataset.train["individual_id"].to_numpy(str)[: len(dataset.test)]
    for k in range(2):
        embeddings = planted(np.random.default_rng(k), dataset, truth, 64, 1.4)
        trained_fold(folder / "model" / f"fold{k}", embeddings)
    clock.start()
    knn_stage(dataset, folder, "model", folds, KNNHead())
    clock.lap("knn")
    blend_stage(dataset, folder)
    clock.lap("blend")


def look_at(made, photos, clock):
    """Processor seconds of what a page, an export and a relink take."""
    clock.start()
    matcher = Matcher(made)
    clock.lap("serve: read the gallery")
    with made.reading() as session:
        found = list_encounters(session, matcher.model.settings, state="undecided")["encounters"]
        facets(session), list_individuals(session)
        clock.lap("serve: first page")
    match_encounter(matcher, "Ann", found[0]["id"])
    clock.lap("serve: one answer")
    with made.reading() as session:
        table = sightings(session)
    for kind in ("csv", "wildbook", "camtrap-dp", "mark", "rmark"):
        export_sightings(table, kind, "fin_whale", "year", "ann")
    clock.lap("catalogue export: all five")
    assert missing_photos(made) == []
    clock.lap("catalogue status")
    made.data.rename(made.data.with_name("moved"))
    assert write_relink(made, plan_relink(made, made.folder.parent)) == photos
    clock.lap("catalogue relink")
    made.close()
    return clock.parts


def exponents(sizes, seconds):
    """How time grows with size, by part: the slope of its logarithm on that of the size."""
    logs, grown = [math.log(size) for size in sizes], {}
    for name in seconds[0]:
        grown[name] = float(np.polyfit(logs, [math.log(max(each[name], 1e-4)) for each in seconds], 1)[0])
    return grown


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_scaling_of_each_command_is_written_down(tmp_path):
    began, sizes, seconds = time.monotonic(), [WHOLE // 4, WHOLE // 2, WHOLE], []
    for size in sizes:
        seconds.append(run_commands(size, tmp_path / str(size)))
    grown = exponents(sizes, seconds)
    rows = [
        {"command": name, "exponent": round(grown[name], 2)}
        | {f"{size} photographs": round(each[name], 2) for size, each in zip(sizes, seconds, strict=True)}
        for name in seconds[0]
    ]
    print(pd.DataFrame(rows).to_string())
    keep_result("scaling", rows, time.monotonic() - began)


@pytest.mark.slow
def test_scaling_of_a_few_photographs_does_what_the_commands_do(tmp_path):
    assert len(run_commands(FEW, tmp_path)) == 19
