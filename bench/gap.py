"""What makes the gap between the paper's second and third network: a factorial of table 4's four factors, in small.

The fourteen runs are those of studies/gap.yaml, on fold 0 of each set (on flukes twelve: not those about rare animals).
Eight are half of all combinations of the factors. Five take one thing away from the run with all of them: resolution,
grey pictures, augmentation, pretraining, weights of rare animals; and one draws rare animals more often instead, which
is compared with doing nothing. Effects and their intervals are those of
`happywhale_nb.evaluation.factorial`. Flukes have no boxes and all have the same crops, so that the other three factors
have all their combinations there.

    python bench/gap.py [--quick] [--set NAME ...] [--run NAME ...] [--work FOLDER]

It takes about fifty minutes of one core for the photographs, and goes on where it was stopped if `--work` names a
folder. --run trains some of the runs alone, and writes nothing.
"""

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from recognition import FEW, HERE, SETS, made, measure_fold, run_fold, shown_seconds

from happywhale_nb.core.artifacts import read_json, versions, write_json
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.evaluation.factorial import half_fraction, measure_effects, plot_effects
from happywhale_nb.retrieval.metrics import mean_gain
from happywhale_nb.stages.robustness import robustness_stage
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.workflow.study import read_study

FACTORS = ["backbone", "loss", "crops", "weights"]
RARE = ("all_high_without_weights", "all_high_oversampled")  # what is done for rare animals
MODELS = read_study(HERE / "studies" / "gap.yaml")["models"]
LIKE = {  # set → overrides of every run, the factors that it can tell, and runs that are left out
    "demo": ("epochs=2 image_size=48 backbone=small_resnet weights= freeze_bn=false frozen_stride=0", FACTORS, ()),
    "happywhale_boxed": ("", FACTORS, ()),
    "humpback": ("aspect=2 epochs=12 resize=area sources=whole", ["backbone", "loss", "weights"], RARE),
}


def name_of(levels):
    """The run in which these factors are high."""
    high = [name for name in FACTORS if levels[name] == 1]
    return {0: "all_low", 4: "all_high"}.get(len(high), "_".join(high))


def as_model(name, more):
    """A run of the study file, as `recognition.run_fold` takes it; `more`: overrides of all runs."""
    values = MODELS[name]
    size = f"image_size={values['image_size']}"
    words = f"{size} {values['overrides']} {more}".split()
    return {"preset": values["preset"], "overrides": " ".join(dict((w.partition("=")[0], w) for w in words).values())}


def measure(set_name, dataset, study, runs):
    """Precisions and seconds of the runs on fold 0, and the individuals of its queries."""
    folds, found = study_folds(dataset, study), {}
    more = LIKE[set_name][0]
    for name in runs:
        places, seconds = run_fold(dataset, folds, 0, name, as_model(name, more), study)
        found[name] = measure_fold(dataset, folds, 0, places) | {"core_seconds": seconds}
        told = shown_seconds([found[name]])
        print(f"| {set_name} | {name} | {found[name]['precision'].mean():.3f} | {told} s |", flush=True)
    return found


def analyse(set_name, found):
    """What a set's runs show: effects, the gap, and what each thing that was taken away costs."""
    design = half_fraction(FACTORS)
    precision = np.stack([found[name_of(row)]["precision"] for _, row in design.iterrows()])
    individuals = found["all_high"]["individuals"]
    effects = measure_effects(design[LIKE[set_name][1]], precision, individuals)
    whole = found["all_high"]["precision"]
    gone = {
        name.removeprefix("all_high_without_"): mean_gain(whole - each["precision"], individuals)
        for name, each in found.items()
        if "_without_" in name
    }
    runs = {name: {"map5": float(each["precision"].mean())} for name, each in found.items()}
    for name, each in found.items():
        runs[name]["core_seconds"] = each["core_seconds"]
    table = effects.table.reset_index().astype(object).where(lambda t: t.notna(), None)
    facts = {"set": set_name, "queries": len(individuals), "runs": runs, "gap": effects.gap, "without": gone}
    if set(RARE) <= set(found):
        without, drawn = (found[name]["precision"] for name in RARE)
        facts["oversampling"] = mean_gain(drawn - without, individuals)
    return effects, facts | {"effects": table.to_dict("records")}


def in_the_dark(dataset, study, photos=120):
    """What pictures at six tenths of their brightness cost the runs with grey pictures and without (section 4.3).

    On at most so many photographs, because all other degradations are measured along with it.
    """
    found, folds = {}, study_folds(dataset, study)
    for name in ("all_high", "all_high_without_grey"):
        grid = robustness_stage(dataset, study, name, folds, 0, photos)["grid"]
        found[name] = next(row for row in grid if (row["sigma"], row["brightness"]) == (0.0, 0.6))
    return found


def show(set_name, effects, facts):
    print(f"\n{set_name}, {facts['queries']} queries of fold 0\n{effects.table.round(3).to_string()}")
    print(f"all together {facts['gap']['gain']:+.3f} ({facts['gap']['low']:+.3f} to {facts['gap']['high']:+.3f})")
    gained = facts["without"] | ({"oversampling": facts["oversampling"]} if "oversampling" in facts else {})
    print(pd.DataFrame(facts["dark"]).rename_axis("at .6 of the brightness").round(3).to_string())
    print(pd.DataFrame(gained).T.rename_axis("what it gains").round(3).to_string())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few drawn photographs, two epochs; nothing is written")
    parser.add_argument("--set", choices=["happywhale_boxed", "humpback"], action="append", help="only these")
    parser.add_argument("--run", choices=MODELS, action="append", help="only these runs")
    parser.add_argument("--work", type=Path, help="a folder in which data folders and studies are kept")
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "gap.json")
    given = parser.parse_args()
    work = (given.work or Path(tempfile.mkdtemp())).absolute()
    for name in ["demo"] if given.quick else given.set or ["happywhale_boxed", "humpback"]:
        root = made(work / name, FEW if given.quick else SETS[name][0])
        runs = given.run or [run for run in MODELS if run not in LIKE[name][2]]
        found = measure(name, read_dataset(root), work / f"{name}-gap", runs)
        if given.run:
            continue
        effects, facts = analyse(name, found)
        facts["dark"] = in_the_dark(read_dataset(root), work / f"{name}-gap")
        show(name, effects, facts)
        if given.quick:
            continue
        file = read_json(given.to) if given.to.is_file() else {}
        others = [row for row in file.get("results", []) if row["set"] != name]
        when = {"name": "gap", "date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions("keras")}
        write_json(given.to, when | {"results": [*others, facts]})
        with matplotlib.rc_context({"svg.hashsalt": "gap"}):
            figure = plot_effects(effects, f"{name}, fold 0")
            figure.savefig(HERE / "nbs" / "images" / f"gap_{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
