"""The paper's study in small, on photographs, flukes and the demo: does its order come out?

Each set becomes a data folder (those of bench/recognition.py), and `happywhale plan` and `happywhale run` do the rest:
studies/paper_small.yaml, studies/paper_demo.yaml or studies/paper_flukes.yaml. What the study's records say is gathered
here, and what the run took beside what was planned.

    python bench/paper_small.py [--quick] [--set NAME ...] [--busy] --work FOLDER

Half an hour of two cores for the photographs or the demo, an hour for flukes; it goes on where it was stopped.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from recognition import HERE, SETS, SHARED, made

from happywhale_nb.core.artifacts import read_json, versions, write_json
from happywhale_nb.core.paths import project_root, study_dir
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.demo.dataset import draw_demo
from happywhale_nb.ensemble.voting import count_votes
from happywhale_nb.ensemble.weights import PRINTED_PENALTY, printed_weights
from happywhale_nb.evaluation.statistics import paper_falls
from happywhale_nb.retrieval.metrics import average_precision
from happywhale_nb.stages.blend_inputs import out_of_fold
from happywhale_nb.stages.blend_record import blended_models
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.workflow.planning import read_plan, taken
from happywhale_nb.workflow.study import override, read_study, study_jobs

STUDIES = {"happywhale_boxed": "paper_small", "demo": "paper_demo", "humpback": "paper_flukes"}
MAIN = "small_paper_arcface"


def command(*words):
    """Run `happywhale` with these words; what it says is shown."""
    program = Path(sysconfig.get_path("scripts")) / "happywhale"
    subprocess.run([program, *map(str, words)], check=True, cwd=project_root(), env=os.environ)


def answers(folder, names):
    """MAP@5 of each model: of all photographs, of known animals, with its interval over animals."""
    found = {}
    for name in names:
        record = read_json(folder / name / "knn.json")
        row = {part: record["oof"][part] for part in ("map5", "map5_known")}
        low, high = record["open_set"]["intervals"]["map5_known"]
        found[name] = row | {"low": low, "high": high, "by_fold": [f["map5_known"] for f in record["folds"].values()]}
    return found


def blended(folder, dataset, models):
    """What the blend is worth: equal, printed and fitted weights, and the best model that takes part."""
    record = read_json(folder / "blend.json")
    names = blended_models(record)
    best_first = sorted(names, key=lambda name: -models[name]["map5"])
    lists, queries = out_of_fold(folder, names, study_folds(dataset, folder, save=False))
    weights = dict(zip(best_first, printed_weights(len(names)), strict=True))
    counts = dataset.train["individual_id"].value_counts().to_dict()
    votes = count_votes(lists, "paper", counts, penalised=True)
    ids = votes.predict([*(float(weights[name]) for name in lists.models), PRINTED_PENALTY])
    printed = float(np.mean(average_precision(queries["truth"].to_numpy(str), ids)))
    fit = {name: record["fit"][name] for name in ("equal", "fitted", "expected")}
    return {"lists": len(names), "best": models[best_first[0]]["map5"], "printed": printed, **fit}


def gather(folder, dataset, content):
    """All that the map and the report of this bench need of a finished study."""
    report = read_json(folder / "report.json")
    models = answers(folder, report["sections"]["models"])
    rows = {row["index"]: row for row in report["sections"]["models"][MAIN]["statistics"]}
    falls = paper_falls(read_json(folder / MAIN / "robustness.json"))
    lost = dict(zip(("blur_1", "blur_2", "dark", "both"), falls["ours"].tolist(), strict=True))
    untouched = float((falls["ours"] + falls["lost"]).iloc[0])
    compared = taken(read_plan(folder), study_jobs(content)[1])
    return {
        "models": models,
        "blend": blended(folder, dataset, models),
        "statistics": {name: rows[name] for name in ("accuracy", "macro_f1", "map5")},
        "separability": report["sections"]["separability"],
        "falls": {"untouched": untouched, **lost},
        "plan": {name: {"planned": row["planned"], "taken": row["taken"]} for name, row in compared.iterrows()},
    }


def show(name, found):
    print(f"\n{name}\n| model | MAP@5 of known | of all |\n|---|--:|--:|")
    for model, row in found["models"].items():
        print(f"| {model} | {row['map5_known']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | {row['map5']:.3f} |")
    blend = found["blend"]
    print(f"blend of {blend['lists']}: " + ", ".join(f"{k} {v:.3f}" for k, v in blend.items() if k != "lists"))
    if "plan" in found:
        total = found["plan"]["all"]
        print(f"planned {total['planned']:.0f} minutes of notebooks, taken {total['taken']:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few drawn photographs, two epochs; nothing is written")
    parser.add_argument("--set", choices=STUDIES, action="append", help="only these")
    parser.add_argument("--busy", action="store_true", help="other work is running: minutes are not kept")
    parser.add_argument("--work", type=Path, help="a folder in which data folders are kept; studies are in outputs/")
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "paper_small.json")
    given = parser.parse_args()
    work = (given.work or Path(tempfile.mkdtemp())).absolute()
    for name in ["demo"] if given.quick else given.set or (STUDIES if SHARED.is_dir() else ["demo"]):
        few = partial(draw_demo, individuals=8, train_photos=48, test_photos=8, progress=False)
        root, study = made(work / name, few if given.quick else SETS[name][0]), f"{STUDIES[name]}.yaml"
        words = {"data_dir": str(root), "study": f"paper_small_{name}", "quick": str(given.quick).lower()}
        if given.quick:
            words["snapshots"] = "1"
        content = override(read_study(HERE / "studies" / study), words)
        if given.quick:
            del content["blend"]["min_map5"]
        folder = study_dir(words["study"], root, given.quick)
        own = folder / "asked.yaml"
        write_json(own, content)  # JSON is YAML
        if not (folder / "plan.json").is_file():
            command("plan", own)
        command("run", own)
        found = gather(folder, read_dataset(root), content)
        if given.busy:
            del found["plan"]
        show(name, found)
        if not given.quick:
            file = read_json(given.to) if given.to.is_file() else {"name": "paper_small"}
            facts = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": versions("keras", "tensorflow"),
            }
            write_json(given.to, file | {name: facts | found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
