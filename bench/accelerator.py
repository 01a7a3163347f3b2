"""Training steps of EfficientNet-B5 at 380 × 380 in bfloat16 on one accelerator: this project against timm in PyTorch.

Forward, backward and optimizer, with ArcFace for Happywhale's 15,587 individuals, on drawn batches that already lie on
the device: no file is read, nothing is augmented. Neither side has weights; both drop blocks as in their training.

* this project: Keras on JAX, the backbone, neck, classifier, loss and optimizer of the preset efficientnet_b5_arcface,
  in the step that `fit` compiles.
* timm: tf_efficientnet_b5 in PyTorch with channels_last, autocast, torch.compile and fused AdamW; neck and head alike.

    python bench/accelerator.py [--quick] [--batch 128 256 64 32] [--rounds 1] [--minutes 7.5]
        [--torch PYTHON] [--to docs/results/accelerator.json]

Besides the standard library it needs keras, jax and numpy alone (no TensorFlow, no OpenCV, no installation of the
project); torch and timm where `--torch`, or HAPPYWHALE_TORCH_PYTHON, says, else here, if they are installed here. The
alternatives take turns, each batch size in a process of its own, so that memory is its own and a size that does not fit
costs its row only. What `--minutes` does not allow is named and left out: sizes are measured in the order given.

The share of the card's peak is counted: multiply-adds of one photograph, layer by layer, times two, times three for
forward and backward, against the dense bfloat16 figure that the card's maker publishes; a card that `PEAKS` does not
name has none. Hours are those of the paper's 30 epochs on 51,033 photographs at that rate, with nothing but steps.

NOT MEASURED YET: no such card was at hand. Only `--quick` was tried, which runs tiny networks on a CPU.
"""

import argparse
import importlib.util
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
INDIVIDUALS, PHOTOGRAPHS, EPOCHS = 15_587, 51_033, 30  # Happywhale's, and the paper's epochs
SIDE, EMBEDDING, SCALE, MARGIN, SPREAD, DROPOUT = 380, 512, 30.0, 0.3, 0.025, 0.2  # the preset efficientnet_b5_arcface
OWN, THEIRS = "this project, Keras on JAX", "timm, PyTorch"
NO_CARD = "no accelerator was found: nothing to measure (--quick shows on a CPU that it works)"
PEAKS = {  # words of a card's name: dense bfloat16 TFLOP/s as NVIDIA publishes them; the first that fits
    "H200 NVL": 835,
    "H200": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
}


def sizes(quick):
    """Side, individuals, our backbone and timm's; the quick ones are small and not the same network."""
    if quick:
        return 32, 100, "small_resnet", "test_efficientnet"
    return SIDE, INDIVIDUALS, "efficientnet_b5", "tf_efficientnet_b5"


def drawn(batch, quick, number=4):
    """Some batches: pixels `[b, s, s, 3]` uint8, classes `[b]`, margins `[b]` in radians."""
    rng, (side, individuals, *_) = np.random.default_rng(0), sizes(quick)
    for _ in range(number):
        pixels = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        yield pixels, rng.integers(0, individuals, batch), MARGIN + SPREAD * rng.normal(size=batch)


# --- this project: whatever is imported here needs keras, jax and numpy alone ----------------------------------------


def own_network(quick):
    """The network of the preset, as `networks.model.build_network` builds it."""
    import keras

    from happywhale_nb.networks.backbones import feature_maps
    from happywhale_nb.networks.heads import CosineClassifier, neck

    side, individuals, backbone, _ = sizes(quick)
    pixels = keras.Input((side, side, 3), name="pixels")
    before, last = feature_maps(backbone, pixels, 0.99, "")
    last = keras.layers.Activation("linear", dtype="float32", name="features")(last)
    embedding = neck([before, last], "gap", EMBEDDING, DROPOUT, 0.99)
    cosines = CosineClassifier(individuals, name="cosines")(embedding)
    return keras.Model({"pixels": pixels}, {"cosines": cosines}, name=backbone)


def own_trainer(quick):
    """The compiled network, as `networks.model.compile_trainer` compiles it."""
    from happywhale_nb.networks.heads import ArcFaceLoss, accuracy, top5
    from happywhale_nb.networks.schedules import TwoRateAdamW, WarmupExponential

    network = own_network(quick)
    optimizer = TwoRateAdamW(WarmupExponential(8e-5, 30_000, 6_000, 1_000), weight_decay=0.0)
    network.compile(optimizer, {"cosines": ArcFaceLoss(SCALE)}, metrics={"cosines": [accuracy, top5]})
    optimizer.build(network.trainable_variables)
    return network


def own_training(batch, quick):
    """`(step, facts)`: a function that takes steps of a training and waits for them, and what is known of it."""
    import jax
    import keras

    from happywhale_nb.networks.backbones import cost

    device = jax.devices()[0]
    if device.platform == "cpu" and not quick:
        sys.exit(NO_CARD)
    keras.config.set_dtype_policy("mixed_bfloat16")
    trainer = own_trainer(quick)
    batches = [
        ({"pixels": pixels}, {"cosines": np.column_stack([classes, margins]).astype(np.float32)}, None)
        for pixels, classes, margins in drawn(batch, quick)
    ]
    trainer.train_on_batch(*batches[0])  # builds, traces and compiles what `fit` does
    batches = jax.device_put(batches)  # to no device by name: else the step would be compiled again
    groups = (trainer.trainable_variables, trainer.non_trainable_variables)
    groups += (trainer.optimizer.variables, trainer.metrics_variables)
    state = tuple([variable.value for variable in group] for group in groups)

    def steps(number):
        nonlocal state
        for i in range(number):
            logs, state = trainer.train_function(state, iter([batches[i % len(batches)]]))
        return float(jax.block_until_ready(logs)["loss"])

    def memory():
        return (device.memory_stats() or {}).get("peak_bytes_in_use")

    card = device.device_kind if device.platform != "cpu" else ""
    versions = f"keras {keras.__version__}, jax {jax.__version__}"
    return steps, memory, {"card": card, "versions": versions, "multiply-adds": cost(trainer)["multiply-adds"]}


# --- timm: nothing of this project is imported -----------------------------------------------------------------------


def timm_network(quick):
    """From uint8 pixels `[b, 3, s, s]`, classes and margins to the loss."""
    import timm
    import torch
    from torch.nn import functional

    _, individuals, _, name = sizes(quick)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model(name, num_classes=0, drop_path_rate=0.2)
            wide = self.body.num_features
            neck = (torch.nn.BatchNorm1d(wide), torch.nn.Dropout(DROPOUT), torch.nn.Linear(wide, EMBEDDING))
            self.neck, self.table = torch.nn.Sequential(*neck), torch.nn.Parameter(torch.randn(individuals, EMBEDDING))

        def forward(self, pixels, classes, margins):
            with torch.autocast(pixels.device.type, torch.bfloat16):
                embedding = self.neck(self.body(pixels / 127.5 - 1))
            cosines = functional.normalize(embedding.float()) @ functional.normalize(self.table).T
            cosines = cosines.clamp(-1, 1)
            true = cosines.gather(1, classes[:, None])[:, 0]
            sine = (1 - true.square()).clamp_min(1e-7).sqrt()
            shifted = true * margins.cos() - sine * margins.sin()
            shifted = torch.where(true > -margins.cos(), shifted, true - margins * margins.sin())
            logits = cosines.scatter(1, classes[:, None], shifted[:, None])
            return functional.cross_entropy(SCALE * logits, classes)

    return Network()


def timm_training(batch, quick):
    """As `own_training`."""
    import timm
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not quick:
        sys.exit(NO_CARD)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32 in the head, JAX's default too
    network = timm_network(quick).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 8e-5, weight_decay=0.0, fused=device.type == "cuda")
    loss_of = torch.compile(network, backend="inductor" if device.type == "cuda" else "aot_eager")
    batches = []
    for pixels, classes, margins in drawn(batch, quick):
        pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device, memory_format=torch.channels_last)
        margins = torch.from_numpy(margins.astype(np.float32))
        batches.append((pixels, torch.from_numpy(classes).to(device), margins.to(device)))

    def steps(number):
        for i in range(number):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(*batches[i % len(batches)])
            loss.backward()
            optimizer.step()
        return float(loss)  # waits for all of it

    def memory():
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else None

    card = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return steps, memory, {"card": card, "versions": f"timm {timm.__version__}, torch {torch.__version__}"}


# --- a process -------------------------------------------------------------------------------------------------------


def work(who, batch, quick):
    """Time an alternative in this process: photographs a second, the median of some blocks of steps."""
    began = time.perf_counter()
    steps, memory, facts = (own_training if who == OWN else timm_training)(batch, quick)
    steps(1 if quick else 8)
    ready, rates = time.perf_counter() - began, []
    each = 2 if quick else 10
    began = time.perf_counter()
    while not rates or (not quick and time.perf_counter() - began < 5):
        block = time.perf_counter()
        loss = steps(each)
        rates.append(batch * each / (time.perf_counter() - block))
    if not np.isfinite(loss):
        sys.exit(f"the loss is {loss}")
    peak = memory() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rate": statistics.median(rates), "bytes": peak, "ready": ready, **facts}


def child(python, who, batch, quick, seconds):
    """`work` in a new process of a Python: its dict, or a text that says why there is none."""
    words = [str(python), str(HERE), "--who", who, "--batch", str(batch), *["--quick"] * quick]
    own = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".92", "TF_CPP_MIN_LOG_LEVEL": "3"}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        environment = {**os.environ, **own, "PYTHONPATH": paths}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        return "out of time"
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode or not last.startswith("{"):
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["failed"]
        told = [line for line in lines if re.search(r"out of memory|RESOURCE_EXHAUSTED", line, re.IGNORECASE)]
        return "does not fit into the card's memory" if told else lines[-1].strip()[:200]
    return json.loads(last)


# --- the table -------------------------------------------------------------------------------------------------------


def peak_of(card):
    """Dense bfloat16 FLOP/s of a card by its name; None for an unknown one."""
    found = (peak for words, peak in PEAKS.items() if all(re.search(rf"\b{word}\b", card) for word in words.split()))
    return next((1e12 * peak for peak in found), None)


def alternatives(torch):
    """Who takes part, and by which Python."""
    if not torch and importlib.util.find_spec("torch") and importlib.util.find_spec("timm"):
        torch = sys.executable
    return {OWN: sys.executable} | ({THEIRS: torch} if torch else {})


def measure(given):
    """`(rows, left_out)`: what was measured, and sentences on what was not."""
    end, found, left = time.perf_counter() + 60 * given.minutes, {}, []
    for turn in range(given.rounds):
        for batch in given.batch:
            for who, python in alternatives(given.torch).items():
                result = child(python, who, batch, given.quick, end - time.perf_counter())
                if result == NO_CARD and who == OWN:
                    sys.exit(print(NO_CARD))
                if isinstance(result, str):
                    left.append(f"round {turn + 1}, {batch} photographs a batch, {who}: {result}")
                else:
                    found.setdefault((batch, who), []).append(result)
    return [row_of(batch, who, found) for batch, who in found], left


def row_of(batch, who, found):
    """A row of the table; numbers are medians over the rounds."""
    rounds = found[batch, who]
    numbers = {key: statistics.median(each[key] for each in rounds) for key in ("rate", "bytes", "ready")}
    theirs = [each["rate"] for each in found.get((batch, THEIRS), [])]
    adds = next((each["multiply-adds"] for all_ in found.values() for each in all_ if "multiply-adds" in each), None)
    card = rounds[0]["card"]
    peak = peak_of(card)
    return {
        **{"batch": batch, "who": who, "card": card, "versions": rounds[0]["versions"], **numbers},
        "steps": numbers["rate"] / batch,
        "times": numbers["rate"] / statistics.median(theirs) if theirs else None,
        "share": 6 * adds * numbers["rate"] / peak if peak and adds else None,
        "hours": EPOCHS * PHOTOGRAPHS / numbers["rate"] / 3600,
    }


def print_rows(rows, left, quick):
    side, individuals, own, theirs = sizes(quick)
    print(f"{own} and {theirs}, {side} × {side}, {individuals:,} individuals, bfloat16")
    print(f"{', '.join(sorted({row['card'] for row in rows} - {''})) or 'no accelerator'}; times: against {THEIRS}\n")
    print("| batch | who | photographs/s | times | steps/s | share of peak | peak memory | 30 epochs | until ready |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in sorted(rows, key=lambda row: row["batch"]):
        times = "" if row["times"] is None else f"{row['times']:.2f}"
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        speed = f"{row['rate']:.4g} | {times} | {row['steps']:.3g} | {share}"
        print(f"| {row['batch']} | {row['who']} | {speed} | {row['bytes'] / 1e9:.1f} GB ", end="")
        print(f"| {'' if quick else format(row['hours'], '.1f') + ' h'} | {row['ready']:.0f} s |")
    for sentence in left:
        print(f"not measured: {sentence}")
    if quick:
        print("\n--quick measures nothing: two tiny networks, not the same one, to see that both sides run")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny networks and one size: to see that it works")
    parser.add_argument("--batch", type=int, nargs="+", help="photographs a batch, in the order of importance")
    parser.add_argument("--rounds", type=int, default=1, help="how often the alternatives take turns")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it; what does not fit is left out")
    parser.add_argument(
        "--torch", default=os.environ.get("HAPPYWHALE_TORCH_PYTHON"), help="a Python with torch and timm"
    )
    parser.add_argument("--to", type=Path, help="a JSON file")
    parser.add_argument("--who", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.batch = given.batch or ([8] if given.quick else [128, 256, 64, 32])
    if given.who:
        print(json.dumps(work(given.who, given.batch[0], given.quick)))
        return
    rows, left = measure(given)
    print_rows(rows, left, given.quick)
    if not rows:
        sys.exit("nothing was measured")
    if given.to and not given.quick:
        facts = {"flops": "counted: 2 × 3 × multiply-adds", "peak": "published, dense bfloat16"}
        given.to.write_text(json.dumps({"name": "accelerator", **facts, "rows": rows, "left out": left}, indent=1))


if __name__ == "__main__":
    main()
