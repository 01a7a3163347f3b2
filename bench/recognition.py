"""What pretrained weights bring: zero training, adapter, fine-tuned and from scratch, on real photographs, same folds.

Each set becomes a data folder, and each model is trained or used by the study's own stage, so this is what users get.
Photographs of individuals that are nowhere else in a set are its test photographs: how well the best cosine tells them
from known animals is the AUROC of new. "others" trains on half of the individuals and asks among the other half.
Intervals are 95 % bootstraps over individuals, of all folds together. Configurations were chosen on folds 0 and 1; the
mean of the other folds alone is given as well.

    python bench/recognition.py [--quick] [--set NAME ...] [--model NAME ...] [--fold K ...] [--others] [--work FOLDER]
    python bench/recognition.py --ablation [--work FOLDER]

"--ablation" changes one thing of the fine-tuned preset at a time, on folds 0 and 1 of happywhale_photos. It goes on
where it was stopped. Core-seconds are the time that cores worked: half of it passes where two of them are free.
"""

import argparse
import os
import shutil
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from happywhale_nb.core.artifacts import read_json, versions, write_json
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.splits import gallery_and_queries, open_set_truth
from happywhale_nb.demo.dataset import draw_demo
from happywhale_nb.networks.presets import configure
from happywhale_nb.retrieval.embeddings import read_embeddings
from happywhale_nb.retrieval.knn import KNNHead
from happywhale_nb.retrieval.metrics import auroc_new, average_precision, bootstrap_interval
from happywhale_nb.retrieval.vectors import unit_rows
from happywhale_nb.stages.frozen import encode_stage
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.stages.train import train_stage

HERE = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HAPPYWHALE_SHARED", HERE.parent / "shared" / "data"))
CHOICE_FOLDS = (0, 1)
CORNERS = ["xmin", "ymin", "xmax", "ymax"]


# Data folders


def made(root, make):
    """A data folder, which `make` writes unless it is there; it has its name when all of it is written."""
    if not root.is_dir():
        part = root.with_name(f"{root.name}-part")
        shutil.rmtree(part, ignore_errors=True)
        make(part)
        part.rename(root)
    return root


def data_folder(root, rows, photos):
    """A data folder of `rows` (image, individual_id, species, fold, rare) and their files; "" as individual: a test."""
    named = rows["individual_id"] != ""
    for part, part_rows in (("train", rows[named]), ("test", rows[~named])):
        (root / f"{part}_images").mkdir(parents=True)
        for name in part_rows["image"]:
            shutil.copyfile(photos / name, root / f"{part}_images" / name)
    rows.loc[named, ["image", "species", "individual_id"]].to_csv(root / "train.csv", index=False)
    rows.loc[named, ["image", "fold"]].to_csv(root / "folds.csv", index=False)
    rows[["image", "fold"]].to_csv(root / "all_folds.csv", index=False)
    return root


def happywhale_photos(root, photos="crops224"):
    source = SHARED / "happywhale_photos"
    rows = pd.read_csv(source / "train.csv", dtype=str).assign(fold=0)
    for k, (_, queries) in enumerate(
        StratifiedKFold(3, shuffle=True, random_state=0).split(rows, rows["individual_id"])
    ):
        rows.loc[queries, "fold"] = k
    return data_folder(root, rows, source / photos)


def happywhale_boxed(root):
    """The same photographs and folds, not cut, with the boxes of two detectors."""
    given = pd.read_csv(SHARED / "happywhale_photos" / "boxes.csv")
    (root / "boxes").mkdir(parents=True)
    for name, column in {"yolo": "yolo_fullbody_achilleess", "detic": "detic_full"}.items():
        corners = given[column].str.split(expand=True).astype(float).set_axis(CORNERS, axis=1)
        table = pd.concat([given[["image"]], corners, given[["W", "H"]]], axis=1).dropna()
        table.to_csv(root / "boxes" / f"{name}.csv", index=False)
    return happywhale_photos(root, "images")


def of_folds(name, apart, species):
    """A function that makes the data folder of a set with a table of folds; `apart`: its column of test photographs."""

    def make(root):
        rows = pd.read_csv(SHARED / name / "folds.csv", dtype={"individual_id": str}).fillna({"individual_id": ""})
        rows.loc[rows[apart] == 1, "individual_id"] = ""
        return data_folder(root, rows.assign(species=species), SHARED / name / "images")

    return make


FEW = partial(draw_demo, individuals=8, train_photos=40, test_photos=8, progress=False)


def drawn(root):
    draw_demo(root, progress=False)
    rows = pd.read_csv(root / "train.csv", dtype=str)
    codes = rows.groupby("individual_id").cumcount() % 3
    rows.assign(fold=codes)[["image", "fold"]].to_csv(root / "folds.csv", index=False)
    return root


# Models


UNTRAINED = {
    "zero training": {"encoder": "efficientnet_lite0", "adapter": "none"},
    "adapter": {"encoder": "efficientnet_lite0", "adapter": "auto"},
}
DRAWN = "detic:.34 yolo:.33 whole:.33"
DRAWN_AND_AVERAGED = {
    **{"preset": "efficientnet_lite0_arcface", "overrides": "epochs=30"},
    **{"sources": DRAWN, "averaged": DRAWN},
}
SETS = {  # name: how its folder is made, and its models: name → preset and overrides, or encoder and adapter; crops
    "demo": (
        drawn,
        {
            "from scratch": {"preset": "small_resnet_arcface"},
            **UNTRAINED,
            "fine-tuned": {"preset": "efficientnet_lite0_arcface"},
        },
    ),
    "happywhale_photos": (
        happywhale_photos,
        {
            "from scratch": {"preset": "small_resnet_arcface", "overrides": "image_size=96 epochs=60"},
            **UNTRAINED,
            "fine-tuned": {"preset": "efficientnet_lite0_arcface"},
        },
    ),
    "happywhale_boxed": (
        happywhale_boxed,
        {
            **{name: model | {"sources": "yolo"} for name, model in UNTRAINED.items()},
            "adapter of averaged crops": UNTRAINED["adapter"] | {"sources": "yolo", "averaged": DRAWN},
            "one crop": {"preset": "efficientnet_lite0_arcface", "overrides": "epochs=30", "sources": "yolo"},
            "crops drawn": {"preset": "efficientnet_lite0_arcface", "overrides": "epochs=30", "sources": DRAWN},
            "crops drawn and averaged": DRAWN_AND_AVERAGED,
            "crops drawn and averaged, two trainings": DRAWN_AND_AVERAGED | {"seeds": [0, 1]},
        },
    ),
    "humpback": (
        of_folds("humpback", "new", "humpback_whale"),
        {
            "from scratch": {"preset": "small_resnet_arcface", "overrides": "image_size=96 epochs=40"},
            **UNTRAINED,
            "fine-tuned": {"preset": "efficientnet_lite0_flukes", "overrides": "tta_zoom=0.05"},
        },
    ),
    "rightwhale80": (
        of_folds("rightwhale80", "rare", "right_whale"),
        {
            "from scratch": {"preset": "small_resnet_aligned"},
            **UNTRAINED,
            "fine-tuned": {"preset": "efficientnet_lite0_aligned"},
        },
    ),
}


def run_fold(dataset, folds, fold, name, model, study):
    """The folders of a model on a fold, trained or embedded now unless they are there, and core-seconds, if known.

    With `seeds` there are several trainings, whose embeddings count side by side.
    """
    runs = [
        run_seed(dataset, folds, fold, name + f"-seed{k}" * (k > 0), model, study, k) for k in model.get("seeds", [0])
    ]
    places, seconds = zip(*runs, strict=True)
    return places, None if None in seconds else round(sum(seconds), 1)


def run_seed(dataset, folds, fold, name, model, study, seed):
    """The folder of one training, or of an encoder, and its core-seconds."""
    place, kept, began = study / name / f"fold{fold}", study / f"{name}-{fold}.json", time.process_time()
    done, resumed = kept.is_file() and (place / "config.json").is_file(), place.is_dir()
    crops, averaged = model.get("sources", "auto"), model.get("averaged", "")
    if "encoder" in model:
        encode_stage(dataset, folds, fold, name, model["encoder"], study, model["adapter"], crops, averaged)
    else:
        config = configure(model["preset"], overrides=model.get("overrides", ""))
        train_stage(dataset, folds, fold, name, config, study, crops, averaged, seed)
    if not done:  # of a training that was stopped meanwhile, only the rest was timed
        write_json(kept, {"core_seconds": None if resumed else round(time.process_time() - began, 1)})
    return place, read_json(kept)["core_seconds"]


def measure_fold(dataset, folds, fold, places):
    """Average precision of a fold's known queries and their individuals, and the AUROC of new animals, if there are."""
    gallery, query = gallery_and_queries(folds, fold)
    who, stored = folds["individual_id"].to_numpy(str), [read_embeddings(p / "embeddings.parquet") for p in places]
    together = lambda part, images: unit_rows(np.hstack([each.of(part, images) for each in stored]))  # noqa: E731
    vectors = together("train", folds["image"])
    truth = open_set_truth(who[query], who[gallery])
    known = truth != "new_individual"
    head = KNNHead().fit(vectors[gallery], who[gallery])
    ids, scores = head.rank(vectors[query][known])
    result = {"precision": average_precision(truth[known], ids), "individuals": truth[known]}
    table = dataset.root / "all_folds.csv"  # with the new animals among the test photographs
    fold_of = pd.read_csv(table).set_index("image")["fold"] if table.is_file() else {}
    new = [image for image in dataset.test["image"] if fold_of.get(image, -1) == fold]
    if new:
        asked = head.rank(together("test", new))[1][:, 0]
        labels = np.r_[np.full(len(scores), "known"), np.full(len(asked), "new_individual")]
        result["auroc_new"] = auroc_new(labels, np.r_[np.asarray(scores)[:, 0], asked])
    return result


def measure_others(dataset, name, model, study):
    """MAP@5 among half of the individuals, by a model trained on, or fitted to, the other half; both halves."""
    folds, rows = study_folds(dataset, study, 2, 0, "disjoint"), []
    for fold in (0, 1):
        (place, *_), seconds = run_fold(dataset, folds, fold, name, model, study)
        score = read_json(place / "config.json")["result"]["map5_within"]
        rows.append({"fold": fold, "map5": score, "core_seconds": seconds})
    return rows


# The table


def summary(folds, scores):
    """Mean and interval of all folds, and the mean of those on which nothing was chosen."""
    means = [row["map5"] for row in folds]
    precision = np.concatenate([each["precision"] for each in scores])
    low, high = bootstrap_interval(precision, np.concatenate([each["individuals"] for each in scores]))
    result = {"map5": float(np.mean(means)), "low": low, "high": high, "queries": len(precision)}
    held = [row["map5"] for row in folds if row["fold"] not in CHOICE_FOLDS]
    news = [row["auroc_new"] for row in folds if "auroc_new" in row]
    return (
        result
        | ({"other_folds": float(np.mean(held))} if held else {})
        | ({"auroc_new": float(np.mean(news))} if news else {})
    )


def measure(name, model_name, model, dataset, work, chosen, others):
    """All that is known of a model on a set, a dict for the file."""
    study, rows, scores = work / f"{name}-study", [], []
    slug = model_name.partition(",")[0].replace(" ", "_")  # what stands behind a comma is made of the same trainings
    folds = study_folds(dataset, study)
    for fold in sorted(set(folds["fold"])):
        if chosen and fold not in chosen:
            continue
        places, seconds = run_fold(dataset, folds, fold, slug, model, study)
        score = measure_fold(dataset, folds, fold, places)
        row = {"fold": int(fold), "map5": float(np.mean(score["precision"])), "core_seconds": seconds}
        rows.append(row | ({"auroc_new": float(score["auroc_new"])} if "auroc_new" in score else {}))
        scores.append(score)
        print(f"| {name} | {model_name} | fold {fold} | {row['map5']:.3f} | {shown_seconds([row])} s |", flush=True)
    result = {"set": name, "model": model_name, **model, "folds": rows, **summary(rows, scores)}
    if others and "seeds" not in model:
        result["others"] = measure_others(dataset, slug, model, work / f"{name}-others")
    return result


# What each choice brings


ABLATION = {  # what is changed: the overrides, or the photographs
    "the preset": "",
    "crops of 224 pixels": "image_size=224",
    "mean instead of GeM": "pool=gap",
    "an embedding for each of 16 parts": "pool=parts embedding=1024",
    "BatchNorm learns": "freeze_bn=false",
    "the head as slow as the backbone": "head_lr_multiplier=1",
    "whole photographs": "",
}
ABLATION_HEAD = "| changed | MAP@5 of folds 0 and 1 | difference | core-seconds a fold |\n|---|--:|--:|--:|"


def ablation(work, keep):
    """The ablation's rows: fold by fold on `happywhale_photos`, the whole photographs beside the crops.

    The preset itself is the set's fine-tuned model. `keep` is given all rows so far, after each.
    """
    rows = []
    for changed, overrides in ABLATION.items():
        photos = "images" if changed == "whole photographs" else "crops224"
        root = work / ("happywhale_photos" + "-images" * (photos == "images"))
        made(root, partial(happywhale_photos, photos=photos))
        model = {"preset": "efficientnet_lite0_arcface", "overrides": overrides}
        study = work / f"{root.name}-study"
        slug = "fine-tuned" if changed == "the preset" else changed.replace(" ", "_")
        dataset = read_dataset(root)
        folds, scores, seconds = study_folds(dataset, study), [], []
        for fold in CHOICE_FOLDS:
            places, spent = run_fold(dataset, folds, fold, slug, model, study)
            scores.append(float(np.mean(measure_fold(dataset, folds, fold, places)["precision"])))
            seconds.append(spent)
        row = {"changed": changed, "overrides": overrides, "photographs": photos, "map5": scores}
        rows.append(
            row | {"gain": float(np.mean(scores) - np.mean((rows or [row])[0]["map5"])), "core_seconds": seconds}
        )
        print(ablation_line(rows[-1]), flush=True)
        keep(rows)
    return rows


def ablation_line(row):
    """A row of the ablation's table."""
    scores = f"{np.mean(row['map5']):.3f} ({row['map5'][0]:.3f}, {row['map5'][1]:.3f})"
    seconds = shown_seconds([{"core_seconds": each} for each in row["core_seconds"]])
    return f"| {row['changed']} | {scores} | {row['gain']:+.3f} | {seconds} |"


def shown_seconds(rows):
    """The median of the core-seconds that are known."""
    known = [row["core_seconds"] for row in rows if row["core_seconds"] is not None]
    return f"{np.median(known):.0f}" if known else "–"


def line(result):
    """A row of the table."""
    spread = f"{result['map5']:.3f} ({result['low']:.3f} to {result['high']:.3f})"
    new = f"{result['auroc_new']:.3f}" if "auroc_new" in result else "–"
    others = "–"
    if "others" in result:
        others = f"{np.mean([row['map5'] for row in result['others']]):.3f}"
    held = f"{result['other_folds']:.3f}" if "other_folds" in result else "–"
    seconds = shown_seconds(result["folds"])
    return f"| {result['set']} | {result['model']} | {spread} | {held} | {new} | {others} | {seconds} |"


def written(path):
    """What a file of results holds; {} if there is none."""
    return read_json(path) if path.is_file() else {}


def keep(path, result):
    """Write a result into the file, in place of that of the same set and model."""
    file, of = written(path), lambda row: (row["set"], row["model"])
    others = [row for row in file.get("results", []) if of(row) != of(result)]
    facts = {"name": "recognition", "versions": versions("numpy", "keras", "tensorflow")}
    write_json(path, file | facts | {"results": [*others, result]})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few drawn photographs, two epochs; nothing is written")
    parser.add_argument("--set", choices=SETS, action="append", help="only these; the file keeps what else it has")
    parser.add_argument("--model", action="append", help="only these models of the sets")
    parser.add_argument("--fold", type=int, action="append", help="only these folds")
    parser.add_argument("--others", action="store_true", help="also among individuals that were not trained on")
    parser.add_argument("--ablation", action="store_true", help="what each choice of the fine-tuned preset brings")
    parser.add_argument("--overrides", default="", help="of the presets, for a try; nothing is written")
    parser.add_argument("--work", type=Path, help="a folder in which data folders and studies are kept")
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "recognition.json")
    given = parser.parse_args()
    work = (given.work or Path(tempfile.mkdtemp())).absolute()
    if given.ablation:
        file = {"name": "recognition", "results": [], **written(given.to)}
        rows = ablation(work, lambda rows: write_json(given.to, file | {"ablation": rows}))
        print(f"\n{ABLATION_HEAD}\n" + "\n".join(map(ablation_line, rows)))
        return
    head = "| set | model | MAP@5 of known | other folds | AUROC of new | others | core-seconds a fold |"
    shown = []
    for name in given.set or (["demo"] if given.quick or not SHARED.is_dir() else SETS):
        make, models = SETS[name]
        if given.quick:
            make = FEW
        dataset = read_dataset(made(work / name, make))
        for model_name, model in models.items():
            if given.model and model_name not in given.model:
                continue
            if "preset" in model and (given.quick or given.overrides):
                words = f"{model.get('overrides', '')} {given.overrides}" + " epochs=2 image_size=48" * given.quick
                model = model | {"overrides": words.strip()}
            result = measure(name, model_name, model, dataset, work, given.fold, given.others)
            result["date"] = datetime.now(UTC).isoformat(timespec="seconds")
            shown.append(line(result))
            if not (given.quick or given.overrides or given.fold):
                keep(given.to, result)
    print(f"\n{head}\n|---|---|--:|--:|--:|--:|--:|\n" + "\n".join(shown))


if __name__ == "__main__":
    main()
