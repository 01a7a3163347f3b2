"""Writes the measured results of docs/results into the tables and pictures of pages and notebooks: `make results`.

    python docs/measured.py [--check]     # --check: exit 1 if a table is not what this would write

A table stands in a page between `<!-- table: NAME -->` and `<!-- end -->`; this script replaces what is between them.
So no figure is typed by hand. Each result was written into docs/results by the command that its page names.
"""

import argparse
import json
import re
import sys
import textwrap
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from happywhale_nb.core.artifacts import atomic

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = ("docs/**/*.md", "nbs/index.ipynb", "nbs/lib/**/*.ipynb")
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(\n?<!-- end -->)", re.S)
SETS = {
    "happywhale_photos": "286 Happywhale photographs, cropped, 14 individuals",
    "humpback": "1,673 humpback flukes, 240 individuals",
    "rightwhale80": "1,024 aligned heads of right whales, 80 individuals",
    "demo": "570 drawn photographs, 90 individuals",
}
MODELS = {
    "from scratch": "trained from random weights",
    "zero training": "ImageNet's features, no training",
    "adapter": "the same and an adapter",
    "fine-tuned": "fine-tuned from ImageNet's weights",
}
CROPS = {
    "zero training": "zero training, one crop",
    "adapter": "an adapter, one crop",
    "adapter of averaged crops": "an adapter, crops averaged",
    "one crop": "fine-tuned, one crop",
    "crops drawn": "fine-tuned on random crops, one fixed crop embedded",
    "crops drawn and averaged": "fine-tuned on random crops, embeddings of all crops averaged",
    "crops drawn and averaged, two trainings": "two such trainings combined",
}
BOXES = {
    "own, animals held out": "own detector, trained on other animals",
    "own, drawn animals": "own detector, trained on drawn animals",
    "yolo_fullbody_achilleess": "given full-body boxes",
    "detic_full": "given Detic boxes on 218 photographs, the other 68 whole",
    "backfin_KingOF": "given dorsal fins",
}
NETWORKS = {
    "efficientnet_lite0, untrained": "EfficientNet-Lite0, not trained further",
    "the demo's network": "the demo's small network",
    "fine-tuned": "fine-tuned on the other folds, 224 pixels",
}
CASES = {"alone": "photographs a second, from crops", "photographs": "from files of 512 pixels"}


def result(name):
    """A file of docs/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def number(value, digits=3):
    """A fraction as this project writes it: .904, and -.036."""
    return (
        ""
        if value is None
        else f"{value:.{digits}f}".replace("0.", ".", 1)
        if abs(value) < 1
        else f"{value:.{digits}f}"
    )


def interval(row, key="map5", digits=3):
    """A value and its interval: .904 (.888 to .918)."""
    return f"{number(row[key], digits)} ({number(row['low'], digits)} to {number(row['high'], digits)})"


def table(head, rows, left=1):
    """A Markdown table whose first `left` columns hold text."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, rule, *rows))


def once(rows):
    """The rows, with a first cell only where it differs from the row above."""
    return [
        ["" if above and above[0] == row[0] else row[0], *row[1:]]
        for above, row in zip([None, *rows], rows, strict=False)
    ]


def recognition_row(set_name, model):
    rows = result("recognition")["results"]
    return next((row for row in rows if (row["set"], row["model"]) == (set_name, model)), None)


def core_seconds(row):
    """Median core-seconds of a fold's training, or embedding where nothing is trained."""
    seconds = sorted(fold["core_seconds"] for fold in row["folds"] if fold.get("core_seconds") is not None)
    return f"{seconds[len(seconds) // 2]:,.0f}" if seconds else ""


def recognition():
    """Every set's four models, with intervals."""
    rows = []
    for model, name in MODELS.items():
        found = [recognition_row(s, model) for s in SETS]
        cells = [interval(row) if row else "" for row in found]
        cells.insert(2, number(found[1].get("auroc_new")) if found[1] else "")
        rows.append([name, *cells])
    names = list(SETS.values())
    return table(["", names[0], names[1], "AUROC of new", *names[2:]], rows)


def measured():
    """The README's table: data, model, protocol, MAP@5 of known individuals and time."""
    rows = []
    chosen = [(s, m) for s in ("happywhale_photos", "humpback", "rightwhale80") for m in MODELS]
    for set_name, model in chosen:
        row = recognition_row(set_name, model)
        name = " ".join([row.get("preset") or row["encoder"], *row.get("overrides", "").split()])
        rows.append([SETS[set_name], f"{MODELS[model]}: `{name}`", interval(row), core_seconds(row)])
    best = recognition_row("happywhale_boxed", "crops drawn and averaged")
    how = "fine-tuned on a random crop of each photograph, embeddings averaged over all its crops"
    name = f"{how}: `{best['preset']} {best['overrides']}`"
    rows.insert(4, ["286 Happywhale photographs, uncropped, with boxes", name, interval(best), ""])  # another machine
    return table(["data", "model", "MAP@5, known individuals", "core-seconds a fold"], once(rows), left=2)


def crops():
    """Crops drawn and averaged, on photographs with boxes."""
    rows = []
    for model, name in CROPS.items():
        row = recognition_row("happywhale_boxed", model)
        folds = ", ".join(number(fold["map5"]) for fold in row["folds"])
        rows.append([name, interval(row), folds, core_seconds(row)])
    return table(["", "MAP@5 of known individuals", "folds", "core-seconds a fold"], rows)


def ablation():
    """One choice of the fine-tuned preset changed at a time."""
    rows = []
    for row in result("recognition")["ablation"]:
        mean, folds = sum(row["map5"]) / len(row["map5"]), ", ".join(map(number, row["map5"]))
        seconds = f"{sum(row['core_seconds']) / len(row['core_seconds']):,.0f}"
        gain = number(row["gain"]) if row["gain"] else ""
        rows.append([row["changed"], number(mean), folds, gain, seconds])
    return table(["changed", "MAP@5", "folds 0, 1", "difference", "core-seconds"], rows)


def subsets():
    """From how many photographs a training pays."""
    rows = []
    for row in result("encoders_subsets")["results"]:
        what = f"{row['individuals']} {'flukes' if row['set'] == 'humpback' else 'dolphins and whales'}"
        most = f", at most {row['most']} photographs each" if row["most"] else ""
        values = [number(row["map5"][name]) for name in ("adapter", "fine-tuned")]
        rows.append([what + most, row["known"], *values, interval(row, "gain")])
    return table(["", "photographs to fit or train on", "adapter", "fine-tuned", "gain"], rows)


def detectors():
    """What boxes are worth, by detector and network."""
    rows, content = [], result("detectors")
    encoders = list(dict.fromkeys(row["encoder"] for row in content["identification"]))
    for name in dict.fromkeys(row["crops"] for row in content["identification"]):
        cells = []
        for encoder in encoders:
            row = next((r for r in content["identification"] if (r["crops"], r["encoder"]) == (name, encoder)), None)
            cells.append(interval(row, "MAP@5") if row else "")
        rows.append([BOXES.get(name, name), *cells])
    return table(["crops", *(NETWORKS[name] for name in encoders)], rows)


def speed():
    """Photographs a second that encoders embed, against timm."""
    rows, content = [], result("encoders_speed")["rows"]
    for who in dict.fromkeys(row["who"] for row in content):
        cases = {row["case"]: row for row in content if row["who"] == who}
        cells = [f"{cases[case]['rate']:.0f}" if case in cases else "" for case in CASES]
        rows.append([who, *cells, f"{cases['photographs']['times']:.1f}"])
    return table(["EfficientNet-Lite0, 224 pixels", *CASES.values(), "times timm, from files"], rows)


def effect_name(row):
    """A factor, or the interactions that cannot be told apart from each other."""
    names = {"backbone": "backbone and resolution"}
    return ", or ".join([names.get(row["effect"], row["effect"]), *filter(None, [row["aliases"]])])


def gap():
    """What each factor of the paper's Table 4 is worth."""
    rows = []
    for found in result("gap")["results"]:
        name = SETS.get(found["set"], "286 Happywhale photographs, uncropped, with boxes")
        gained = [(effect_name(row), row) for row in found["effects"] if row.get("low") is not None]
        gained += [(f"{key} (removed)", row) for key, row in found["without"].items()]
        gained += [("all four factors together", found["gap"])]
        shown = {True: "yes", False: "no"}
        rows += [
            [name, effect, interval(row, "gain"), shown[row["low"] > 0 or row["high"] < 0]] for effect, row in gained
        ]
    return table(["data", "factor", "gain of MAP@5", "shown"], once(rows), left=2)


def species():
    """How often the species of a new individual is predicted."""
    rows = []
    for row in result("species")["results"]:
        what = f"{row['photographs']}, {row['individuals']}, {row['species']}"
        name = {"happywhale_photos": "Happywhale photographs", "demo": "demo"}[row["set"]]
        rows.append([name, what, interval(row, "accuracy"), number(row["confidence"]), number(row["ece"])])
    return table(
        ["data", "photographs, individuals, species", "accuracy", "confidence", "calibration error"], rows, left=2
    )


def leaderboard():
    """How far the private score is from the public one, in draws of the public part."""
    rows, percent = [], lambda value: "" if value is None else f"{value:.0%}"
    for row in result("leaderboard")["results"]:
        told = [number(row[key], 4) for key in ("drop", "sd of the drop", "by the formula")]
        told += [percent(row["held"]), percent(row["held with it"])]
        rows.append([row["answers"], row["weights"], *told])
    head = ["predictions", "weights", "public minus private", "standard deviation", "by the formula", "coverage"]
    return table([*head, "with optimism"], rows, left=2)


def adapters():
    """What each kind of adapter gains, on photographs and two sets of aligned crops."""
    shown = ("Lite0 224 × 224", "Lite0 256 × 128", "Lite0 384 × 192", "Lite0 128 × 128")
    photographs, *others = [row for row in result("adapters")["results"] if row["encoder"] in shown]
    rows = []
    for kind in [k for k in photographs["known"] if k != "auto"] + ["auto"]:
        known, grown = photographs["known"][kind], photographs["grown"].get(kind, {})
        cells = [number(known["map5"]), "" if kind == "none" else interval(known["gain"], "gain")]
        cells += [number(grown.get("map5")), number(grown.get("old"))]
        cells += [number(photographs["others"].get(kind, {}).get("map5"))]
        cells += [number(row["known"].get(kind, {}).get("map5")) for row in others]
        rows.append([{"auto": "as chosen"}.get(kind, kind), *cells])
    sets = [f"`{row['set']}` {row['encoder'].removeprefix('Lite0 ')}" for row in others]
    return table(["kind", "`happywhale_photos`", "gain", "grown", "its old animals", "others", *sets], rows)


SMALL = {
    "basic_cnn": "basic CNN",
    "small_paper_arcmargin": "the same shape as ResNet50 + ArcMargin: EfficientNet-Lite0, fixed margin",
    "small_paper_arcface": "the same shape as EfficientNetB5 + ArcFace: larger and random crops, random margins, "
    "class weights, other augmentation",
}


def paper_small():
    """The paper's study in small: its three networks and the blend, and what it took."""
    rows, content = [], result("paper_small")
    for name in ("happywhale_boxed", "humpback", "demo"):
        if found := content.get(name):
            data = SETS.get(name, "286 Happywhale photographs, uncropped, with boxes")
            for model, told in SMALL.items():
                row = found["models"][model]
                rows.append([data, told, interval(row, "map5_known"), ", ".join(map(number, row["by_fold"]))])
            blend = found["blend"]
            value = f"{number(blend['fitted'])}; {number(blend['expected'])} with weights fitted on the other folds"
            rows.append([data, f"the blend of all {blend['lists']} models, weights fitted on all folds", value, ""])
            if taken := found.get("plan", {}).get("all"):
                minutes = f"{taken['planned']:.0f} minutes planned, {taken['taken']:.0f} taken"
                rows.append([data, f"sum over all notebooks, of which two run at the same time: {minutes}", "", ""])
    return table(["data", "network", "MAP@5 of known individuals", "folds"], once(rows), left=2)


SIGNALS = {
    ("demo", "drawn"): ("direction", "distance", "length", "stability", "detector", "all five"),
    ("EfficientNet-Lite0", "happywhale_photos"): ("direction", "distance", "length", "all five"),
    ("demo", "happywhale_photos"): ("direction", "detector", "all five"),
}


def no_animal():
    """How well each signal detects a picture without an animal."""
    rows, found = [], {(row["network"], row["photographs"]): row for row in result("no_animal")["results"]}
    for key, signals in SIGNALS.items():
        network = "the demo's" if key[0] == "demo" else key[0]
        photographs = "drawn" if key[1] == "drawn" else f"{found[key]['pictures']['boxed']} Happywhale photographs"
        for row in found[key]["rows"]:
            if row["signals"] in signals:
                boxed, sent, *pieces = (number(row[k]["flagged"]) for k in ("boxed", "sent", "piece", "plain", "drawn"))
                told = "all but the detector" if row["signals"] == "all five" and "Lite0" in network else row["signals"]
                rows.append([f"{network}, {photographs}", told, f"{boxed}, {sent}", *pieces])
    head = ["network, photographs", "signal", "false positives: boxed, sent", "detected: pieces", "plain colours"]
    return table([*head, "drawn seas"], once(rows), left=2)


def coverage():
    """Predicted and measured coverage, with photographs or whole encounters held out."""
    rows = []
    for held_out, when in (("photographs", "before"), ("encounters", "after")):
        row = result("coverage")["drawn season in bursts"][when]
        predicted = row["asked"] if when == "before" else row["measured when built"]
        cells = [number(predicted, 2), interval(row["later"], "rate", 2), f"{row['names in a list']:.1f}"]
        rows.append([held_out, *cells])
    return table(["held out", "predicted coverage", "measured coverage later", "names in a list"], rows)


def duration(seconds):
    """Seconds in the unit that people use: 1.0 ms, 5.4 s."""
    unit, factor = next((u, f) for u, f in (("s", 1), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9)) if seconds * f >= 1)
    return f"{seconds * factor:.3g} {unit}"


def benchmark(name, memory=True):
    """The table of a script of bench/ that uses bench/harness.py: alternatives of a case, side by side.

    Without `memory` for a script whose work is done by another process."""
    rows = []
    for row in result(f"bench_{name}")["results"]:
        times = f"{row['ratio']:.3g}" if row["ratio"] < 100 else f"{row['ratio']:,.0f}"
        peak = [f"{row['peak']:,} MB"] if memory else []
        rows.append([row["case"], row["who"], row["result"], duration(row["seconds"]), times, *peak])
    head = ["case", "", "result", "time", "times the first", *["peak memory"] * memory]
    return table(head, once(rows), left=3)


INSTALLED = {
    "": "work with vectors, tables, metrics, splits, photographs, drawn animals",
    "[serve]": "keep a lab's catalogue, with an ONNX encoder",
    "[serve,train]": "start a catalogue of photographs without an encoder's file, or train networks",
    "[serve,train,study]": "run the study: notebooks by papermill, folds by Snakemake",
    "[all]": "have everything, with JupyterLab and nbdev",
}


def installation():
    """What each set of extras installs, under the oldest Python."""
    steps = result("soak_pythons")["table"][0]["steps"]
    rows = []
    for step in steps:
        name = f"'happywhale_nb{step['extras']}'" if step["extras"] else "happywhale_nb"
        cells = [INSTALLED[step["extras"]], f"`pip install {name}`", step["packages"], f"{step['gigabytes']:.1f} GB"]
        rows.append([*cells, f"{step['seconds']:.0f} s"])
    return table(["you want to", "line", "packages", "on disk", "more time"], rows, left=2)


WRITERS = (recognition, measured, crops, ablation, subsets, detectors, speed, gap, species, leaderboard)
WRITERS += (paper_small, adapters, no_animal, coverage, installation)
TABLES = {writer.__name__: writer for writer in WRITERS}
TABLES |= {f"bench_{name}": partial(benchmark, name) for name in ("blend", "knn")}
TABLES["bench_serve"] = partial(benchmark, "serve", memory=False)


def filled(text):
    """A page's text with its tables written anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n<!-- end -->", text)


def filled_page(path):
    """A page's or notebook's new text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md" or "<!-- table: " not in text:
        return filled(text)
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = filled("".join(cell["source"])).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def plot_recognition(path):
    """MAP@5 of the four models on each real set, with intervals over individuals."""
    names = [s for s in SETS if s != "demo"]
    style = {"svg.hashsalt": "measured", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure, axes = plt.subplots(1, len(names), figsize=(9.5, 2.5), sharex=True, sharey=True, layout="constrained")
        for ax, set_name in zip(axes, names, strict=True):
            for i, (model, colour) in enumerate(zip(MODELS, ("#9aa5ad", "#7fb2c6", "#2a7f9e", "#0b4f6c"), strict=True)):
                row = recognition_row(set_name, model)
                ax.plot([row["low"], row["high"]], [i, i], color=colour, lw=2)
                ax.plot(row["map5"], i, "o", color=colour, ms=7)
                ax.annotate(number(row["map5"]), (row["map5"], i), (0, 6), textcoords="offset points", ha="center")
            ax.set(xlim=(0.2, 1), ylim=(3.6, -0.6), xlabel="MAP@5", title=textwrap.fill(SETS[set_name], 30))
            ax.grid(axis="x", color="0.9")
        axes[0].set_yticks(range(len(MODELS)), list(MODELS.values()))
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is outdated")
    check = parser.parse_args().check
    paths = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern)) if ".ipynb_checkpoints" not in path.parts]
    changed = {path: text for path in paths if (text := filled_page(path)) != path.read_text(encoding="utf-8")}
    if not check:
        for path, text in changed.items():
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        plot_recognition(ROOT / "nbs" / "images" / "recognition.svg")
    for path in changed:
        print(f"{'outdated' if check else 'written'}: {path.relative_to(ROOT)}")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
