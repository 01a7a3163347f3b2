"""Photographs a second from file to embedding, EfficientNet-Lite0 at 224 pixels, on all cores: which runtime?

1. The encoder alone: crops in memory.
2. From the files of photographs 512 pixels wide: decoded, cropped, embedded. Decoding and network overlap.

    python bench/encoders.py [--quick] [--case alone|photographs] [--rounds 3]
        [--torch PYTHON] [--nncf PYTHON] [--to docs/results/encoders_speed.json]

PyTorch with timm (the same network, its weights random), and nncf, which makes the int8 network, stand in environments
of their own: name their Python, or set HAPPYWHALE_TORCH_PYTHON and HAPPYWHALE_NNCF_PYTHON. Without them their rows are
missing. The photographs are those of happywhale_photos in HAPPYWHALE_SHARED, else drawn ones; with the former, MAP@5 of
three folds without any training shows what shorter numbers cost. Alternatives take turns, each in a process of its own.
Of a machine that does something else besides, believe the core-milliseconds: the time that cores worked for a
photograph, which is twice the time that passes where two of them are free.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import processor

HERE = Path(__file__).resolve()
SHARED = Path(os.environ.get("HAPPYWHALE_SHARED", HERE.parents[2] / "shared" / "data")) / "happywhale_photos"
SIDE, CORES = 224, os.cpu_count() or 1
CASES = {"alone": "the encoder alone, crops in memory", "photographs": "from the photographs' files"}


# --- what runs where PyTorch or nncf is: nothing of this project is imported ---------------------------------------


def timm_network(bfloat16):
    """timm's network as a function from uint8 crops `[n, s, s, 3]` to features, with PyTorch's best layout for CPUs."""
    import timm
    import torch

    torch.set_num_threads(CORES)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval().to(memory_format=torch.channels_last)

    def run(crops):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            pixels = torch.as_tensor(crops).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            return network(pixels.contiguous(memory_format=torch.channels_last)).float().numpy()

    return run


def torch_photographs(paths, run):
    """Embed photographs as PyTorch's users do: a DataLoader, a process a core, Pillow and torchvision."""
    import torch
    from PIL import Image

    class Photographs(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            small = Image.open(paths[i]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(small))

    loader = torch.utils.data.DataLoader(Photographs(), batch_size=32, num_workers=CORES)
    return np.concatenate([run(batch) for batch in loader])


def quantize(model, crops, target):
    """Write an int8 copy of a network for OpenVINO, calibrated on crops."""
    import nncf
    import openvino

    data = nncf.Dataset([crop[None].astype(np.float32) for crop in np.load(crops)])
    small = nncf.quantize(openvino.Core().read_model(model), data, subset_size=128)
    openvino.save_model(small, target, compress_to_fp16=False)


# --- what runs here -------------------------------------------------------------------------------------------------


def write_network(folder):
    """Lite0 with GeM, ImageNet's weights, as an ONNX file."""
    import keras

    from happywhale_nb.networks.efficientnet_lite import efficientnet_lite
    from happywhale_nb.networks.heads import GeM

    pixels = keras.Input((SIDE, SIDE, 3), name="pixels")
    network = keras.Model(pixels, GeM(name="embedding")(efficientnet_lite(pixels, weights="imagenet")[-1]))
    network(np.zeros((1, SIDE, SIDE, 3), np.float32))
    network.export(folder / "lite0.onnx", format="onnx", verbose=False)


def write_photographs(folder, quick):
    """The paths of the photographs, and their crops as the network takes them."""
    from happywhale_nb.demo.dataset import draw_demo
    from happywhale_nb.imaging.crops import load_crop

    paths = sorted((SHARED / "images").glob("*.jpg"))
    if not paths:
        draw_demo(folder / "data", individuals=4, train_photos=24, test_photos=2, size=(512, 512), progress=False)
        paths = sorted((folder / "data").glob("*_images/*.jpg"))
    paths = paths[:24] if quick else paths
    boxed = [SHARED / "crops224" / path.name for path in paths]
    sources = boxed if all(path.is_file() for path in boxed) else paths
    np.save(folder / "crops.npy", np.stack([load_crop(path, SIDE) for path in sources]))
    (folder / "paths.json").write_text(json.dumps([str(path) for path in paths]))


def keras_network(folder):
    from happywhale_nb.networks.card_encoder import CardEncoder
    from happywhale_nb.networks.keras_encoders import lite_card, lite_file, lite_function

    card = lite_card("efficientnet_lite0")
    encoder = CardEncoder(card, lite_function(lite_file(card.name), card, "keras"))
    return lambda crops: encoder.embed(crops)


def onnx_network(folder):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "lite0.onnx", providers=["CPUExecutionProvider"])
    return lambda crops: session.run(None, {"pixels": crops.astype(np.float32)})[0]


def openvino_network(folder, precision="f32", file="lite0.onnx"):
    """One crop at a time in as many streams as OpenVINO thinks best."""
    import openvino

    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(core.read_model(folder / file), "CPU", hints)
    requests = openvino.AsyncInferQueue(compiled)

    def run(crops):
        vectors = [None] * len(crops)
        requests.set_callback(lambda request, i: vectors.__setitem__(i, request.get_output_tensor(0).data[0].copy()))
        for i, crop in enumerate(crops):
            requests.start_async({0: crop[None].astype(np.float32)}, i)
        requests.wait_all()
        return np.stack(vectors)

    return run


def photographs(paths, run, size=32):
    """Embed photographs: the crops of the next batch are cut while the network computes."""
    from concurrent.futures import ThreadPoolExecutor

    from happywhale_nb.imaging.crops import load_crop

    with ThreadPoolExecutor(CORES) as pool:
        batches = [paths[i : i + size] for i in range(0, len(paths), size)]
        coming = [pool.submit(load_crop, path, SIDE) for path in batches[0]]
        vectors = []
        for after in [*batches[1:], []]:
            crops = np.stack([each.result() for each in coming])
            coming = [pool.submit(load_crop, path, SIDE) for path in after]
            vectors.append(run(crops))
    return np.concatenate(vectors)


def embedder_photographs(paths):
    """The project's own way, `happywhale model embed`, with the runtime that it chooses: pictures as in a study."""
    from happywhale_nb.networks.embedder import Embedder

    embedder = Embedder("efficientnet_lite0")
    return lambda: embedder.embed(paths)


NETWORKS = {
    "timm, PyTorch": lambda folder: timm_network(False),
    "timm, PyTorch, bfloat16": lambda folder: timm_network(True),
    "Keras": keras_network,
    "ONNX Runtime": onnx_network,
    "OpenVINO": openvino_network,
    "OpenVINO, bfloat16": lambda folder: openvino_network(folder, "bf16"),
    "OpenVINO, int8": lambda folder: openvino_network(folder, file="int8.xml"),
}
OWN = "happywhale model embed"


def job(who, case, folder):
    """What is timed: a function without arguments that returns the vectors."""
    crops = np.load(folder / "crops.npy")
    paths = json.loads((folder / "paths.json").read_text())
    if who == OWN:
        return embedder_photographs(paths)
    run = NETWORKS[who](folder)
    if case == "alone":
        return lambda: run(crops)
    way = torch_photographs if "PyTorch" in who else photographs
    return lambda: way(paths, run)


def work(who, case, folder, quick):
    """Time an alternative in this process: photographs a second, milliseconds of cores a photograph."""
    run = job(who, case, folder)
    vectors = run()
    rates, milliseconds, began = [], [], time.perf_counter()
    while not rates or (not quick and len(rates) < 5 and time.perf_counter() - began < 20):
        wall, cores = time.perf_counter(), os.times()
        run()
        used = os.times()
        wall = time.perf_counter() - wall
        cores = sum(used[:4]) - sum(cores[:4])  # this process and those it started
        rates.append(len(vectors) / wall)
        milliseconds.append(1000 * cores / len(vectors))
    if case == "alone" and "PyTorch" not in who:
        np.save(folder / f"{who}.npy", vectors)
    return {"rate": statistics.median(rates), "core_ms": statistics.median(milliseconds)}


# --- the table ------------------------------------------------------------------------------------------------------


def own_map5(vectors):
    """MAP@5 of happywhale_photos by the best photograph of each individual, three stratified folds; None without."""
    if not (SHARED / "train.csv").is_file():
        return None
    import pandas as pd
    from sklearn.model_selection import StratifiedKFold

    from happywhale_nb.retrieval.metrics import map_at_5

    table = pd.read_csv(SHARED / "train.csv", dtype=str).set_index("image")
    who = table.loc[[path.name for path in sorted((SHARED / "images").glob("*.jpg"))], "individual_id"].to_numpy()
    if len(who) != len(vectors):
        return None
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = []
    for known, asked in StratifiedKFold(3, shuffle=True, random_state=0).split(vectors, who):
        names = np.unique(who[known])
        cosines = vectors[asked] @ vectors[known].T
        best = np.stack([cosines[:, who[known] == name].max(1) for name in names], 1)
        scores.append(map_at_5(who[asked], names[np.argsort(-best, 1)[:, :5]]))
    return float(np.mean(scores))


def child(python, *words):
    command = [str(python), str(HERE), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    last = (done.stdout.splitlines() or [""])[-1]
    return json.loads(last) if last.startswith("{") else None


def alternatives(case, torch, int8):
    """Who takes part, and by which Python."""
    names = [who for who in NETWORKS if (torch or "PyTorch" not in who) and (int8 or "int8" not in who)]
    pythons = {who: torch if "PyTorch" in who else sys.executable for who in names}
    return {**pythons, OWN: sys.executable} if case == "photographs" else pythons


def measure(case, folder, given, int8):
    """The rows of a case."""
    who, rounds = alternatives(case, given.torch, int8), []
    for _ in range(1 if given.quick else given.rounds):
        options = ["--folder", folder, "--case", case, *["--quick"] * given.quick]
        rounds.append({name: child(python, "--who", name, *options) for name, python in who.items()})
    rows, compared = [], "timm, PyTorch" if given.torch else "Keras"
    for name in who:
        numbers = {key: statistics.median(each[name][key] for each in rounds) for key in ("rate", "core_ms")}
        first = {key: statistics.median(each[compared][key] for each in rounds) for key in ("rate", "core_ms")}
        times = {"times": numbers["rate"] / first["rate"], "times by cores": first["core_ms"] / numbers["core_ms"]}
        rows.append({"case": case, "who": name, **numbers, **times, **likeness(name, case, folder)})
    return rows, compared


def likeness(who, case, folder):
    """Smallest cosine with Keras, and MAP@5, of what was embedded."""
    mine, keras = folder / f"{who}.npy", folder / "Keras.npy"
    if case != "alone" or not mine.is_file():
        return {}
    unit = [np.load(path) / np.linalg.norm(np.load(path), axis=1, keepdims=True) for path in (mine, keras)]
    return {"cosine": float((unit[0] * unit[1]).sum(1).min()), "map5": own_map5(unit[0])}


def print_rows(rows, case, compared):
    print(f"\n{CASES[case]}; times: against {compared}\n")
    print("| case | who | photographs/s | times | core-ms | times, by cores | cosine | MAP@5 |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        cosine, score = row.get("cosine"), row.get("map5")
        likeness = f"{'' if cosine is None else f'{cosine:.4f}'} | {'' if score is None else f'{score:.3f}'}"
        numbers = f"{row['rate']:.1f} | {row['times']:.2f} | {row['core_ms']:.1f} | {row['times by cores']:.2f}"
        print(f"| {case} | {row['who']} | {numbers} | {likeness} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="24 photographs, one round: to see that it works")
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--rounds", type=int, default=3, help="how often the alternatives take turns")
    parser.add_argument(
        "--torch", default=os.environ.get("HAPPYWHALE_TORCH_PYTHON"), help="a Python with torch and timm"
    )
    parser.add_argument("--nncf", default=os.environ.get("HAPPYWHALE_NNCF_PYTHON"), help="a Python with nncf")
    parser.add_argument("--to", type=Path, help="a JSON file")
    for name in ("--who", "--folder", "--quantize", "--prepare"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.who:
        print(json.dumps(work(given.who, given.case, Path(given.folder), given.quick)))
    elif given.quantize:
        folder = Path(given.quantize)
        quantize(folder / "lite0.onnx", folder / "crops.npy", folder / "int8.xml")
    elif given.prepare:
        write_network(Path(given.prepare))
        write_photographs(Path(given.prepare), given.quick)
    else:
        compare(given)


def compare(given):
    load, result = os.getloadavg() if hasattr(os, "getloadavg") else (None,), []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        child(sys.executable, "--prepare", folder, *["--quick"] * given.quick)
        if given.nncf:
            child(given.nncf, "--quantize", folder)
        for case in [given.case] if given.case else CASES:
            rows, compared = measure(case, folder, given, bool(given.nncf))
            print_rows(rows, case, compared)
            result += rows
    if given.to:
        from happywhale_nb.core.artifacts import versions, write_json

        facts = {"processor": processor(), "cores": CORES, "load before": load[0], "quick": given.quick}
        facts |= {"photographs": "happywhale_photos" if SHARED.is_dir() else "drawn", "side": SIDE}
        used = versions("tensorflow", "keras", "onnxruntime", "openvino", "numpy")
        write_json(given.to, {**facts, "versions": used, "rows": result})


if __name__ == "__main__":
    main()
