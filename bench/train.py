"""Training and embedding on this machine: this project's way against Keras' defaults, TensorFlow's and other runtimes.

1. Training steps of the CPU preset: `fit` as Keras is by default (XLA where it can), and as this project compiles it.
2. Training steps with 20,000 and 200,000 classes, all scored or 512 of them sampled: look at the memory.
3. Embedding of 256 crops: a TensorFlow SavedModel, `networks.model.embed`, and the exported encoders.
4. Embedding of one crop, as for a photograph that has just come in.
5. Training steps and embedding of presets at their own size, against the same backbone of timm in PyTorch where both
   are installed (they are no dependency of this project), eager as timm is used. In bfloat16 too, which pays on
   processors with instructions for it (AMX), though not for depthwise convolutions.
"""

import importlib.util
import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from harness import main

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PRESET, SIDE, BATCH = "small_resnet_arcface", 96, 32


def training(defaults=False, classes=100, overrides=""):
    """A `prepare` that fits some steps of the CPU preset, compiled as Keras does by default or as this project does."""

    def prepare(quick):
        from happywhale_nb.networks.heads import ArcFaceLoss, accuracy, top5
        from happywhale_nb.networks.model import build_network, build_optimizer, compile_trainer
        from happywhale_nb.networks.presets import configure
        from happywhale_nb.networks.targets import Targets, class_margins

        steps = 4 if quick else 20
        config = configure(PRESET, image_size=SIDE, overrides=overrides)
        network = build_network(config, classes)
        trainer = compile_trainer(network, config, build_optimizer(config, network, steps, BATCH))
        if defaults:
            loss, metrics = ArcFaceLoss(config.arcface_scale), {"cosines": [accuracy, top5]}
            trainer.compile(trainer.optimizer, {"cosines": loss}, metrics=metrics)
        rng, labels = np.random.default_rng(0), np.arange(BATCH * steps) % classes
        targets = Targets(labels, class_margins(np.ones(classes), 0.3), sample=config.sampled_classes)
        pixels = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3)).astype(np.uint8)

        def batches():
            for step in range(steps):
                made = targets.batch(np.arange(BATCH) + step * BATCH, np.zeros(BATCH, int), step)
                inputs = {"pixels": pixels} | ({"chosen": made["chosen"]} if config.sampled_classes else {})
                yield inputs, {"cosines": made["cosines"]}

        def run():
            for inputs, wanted in batches():
                trainer.train_on_batch(inputs, wanted)
            return f"{steps * BATCH} photographs"

        run()  # tracing and compiling are paid once in a training
        return run

    return prepare


# preset: (name in timm, photographs a batch here); a batch has to fit into memory
PRESETS = {
    "small_resnet_arcface": ("", 32),
    "small_efficientnet_elastic": ("", 32),
    "basic_cnn": ("", 32),
    "resnet50_arcmargin": ("resnet50", 16),
    "efficientnet_b3_arcface": ("tf_efficientnet_b3", 4),
    "efficientnet_b5_arcface": ("tf_efficientnet_b5", 4),
}
HAVE_TIMM = bool(importlib.util.find_spec("torch") and importlib.util.find_spec("timm"))


def preset_training(preset, classes=1000, precision="float32"):
    """A `prepare` that takes one training step of a preset at its own size."""

    def prepare(quick):
        from happywhale_nb.networks import devices
        from happywhale_nb.networks.model import build_network, build_optimizer, compile_trainer
        from happywhale_nb.networks.presets import configure

        devices.prepare(precision).__enter__()  # for the whole process, which times this alone
        batch = 2 if quick else PRESETS[preset][1]
        config = configure(preset, overrides="weights=")
        network = build_network(config, classes)
        trainer = compile_trainer(network, config, build_optimizer(config, network, 100, batch))
        pixels = np.random.default_rng(0).integers(0, 256, (batch, *network.input["pixels"].shape[1:])).astype(np.uint8)
        wanted = {"cosines": np.stack([np.arange(batch), np.full(batch, 0.3)], 1).astype(np.float32)}

        def run():
            trainer.train_on_batch({"pixels": pixels}, wanted)
            return f"{batch} photographs of {config.image_size}²"

        run()
        return run

    return prepare


def preset_embedding(preset):
    """A `prepare` that embeds one batch with a preset's network at its own size."""

    def prepare(quick):
        from happywhale_nb.networks.model import build_network, embed, inference_model
        from happywhale_nb.networks.presets import configure

        batch, config = 2 if quick else PRESETS[preset][1], configure(preset, overrides="weights=")
        model, side = inference_model(build_network(config, 10)), config.image_size
        photos = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3)).astype(np.uint8)

        def run():
            return f"{len(embed(model, photos, batch_size=batch, quiet=True))} photographs of {side}²"

        run()
        return run

    return prepare


def timm_network(preset, classes):
    """timm's backbone with the preset's neck and head in PyTorch: from pixels to cosines."""
    import timm
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model(PRESETS[preset][0], num_classes=0)
            wide = self.body.num_features
            neck = (torch.nn.BatchNorm1d(wide), torch.nn.Dropout(0.2), torch.nn.Linear(wide, 512))
            self.neck, self.table = torch.nn.Sequential(*neck), torch.nn.Parameter(torch.randn(classes, 512))

        def embed(self, pixels):
            return torch.nn.functional.normalize(self.neck(self.body(pixels / 127.5 - 1)))

        def forward(self, pixels):
            return (self.embed(pixels) @ torch.nn.functional.normalize(self.table).T).clamp(-1 + 1e-7, 1 - 1e-7)

    return Network().to(memory_format=torch.channels_last)


def timm_photos(preset, batch):
    import torch

    from happywhale_nb.networks.presets import configure

    side = configure(preset).image_size
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, 3, side, side)).astype(np.float32))
    return pixels.contiguous(memory_format=torch.channels_last), side


def timm_training(preset, classes=1000):
    """As `preset_training`, in PyTorch."""

    def prepare(quick):
        import torch

        network = timm_network(preset, classes)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
        pixels, side = timm_photos(preset, 2 if quick else PRESETS[preset][1])
        wanted = torch.arange(len(pixels))

        def run():
            cosines = network(pixels)
            asked = torch.nn.functional.one_hot(wanted, classes).bool()
            logits = 30 * torch.where(asked, torch.cos(torch.acos(cosines) + 0.3), cosines)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, wanted).backward()
            optimizer.step()
            return f"{len(pixels)} photographs of {side}²"

        run()
        return run

    return prepare


def timm_embedding(preset):
    """As `preset_embedding`, in PyTorch."""

    def prepare(quick):
        import torch

        network = timm_network(preset, 10).eval()
        pixels, side = timm_photos(preset, 2 if quick else PRESETS[preset][1])

        def run():
            with torch.inference_mode():
                return f"{len(network.embed(pixels).numpy())} photographs of {side}²"

        run()
        return run

    return prepare


def preset_cases():
    """A case for training and one for embedding of each of `PRESETS`."""
    cases = {}
    for preset, (theirs, _) in PRESETS.items():
        cases[f"{preset}: training"] = {
            "this project": preset_training(preset),
            "this project, bfloat16": preset_training(preset, precision="mixed_bfloat16"),
        }
        cases[f"{preset}: embedding"] = {"this project": preset_embedding(preset)}
        if theirs and HAVE_TIMM:
            cases[f"{preset}: training"] = {"timm": timm_training(preset)} | cases[f"{preset}: training"]
            cases[f"{preset}: embedding"] = {"timm": timm_embedding(preset)} | cases[f"{preset}: embedding"]
    return cases


LARGE = "efficientnet_b5_arcface"


def crops(quick, n=256, side=SIDE):
    return np.random.default_rng(0).integers(0, 256, (32 if quick and n > 32 else n, side, side, 3)).astype(np.uint8)


def stored(preset=PRESET):
    """A model of the CPU preset on crops of `SIDE`, or of another preset at its own size, kept in a file."""
    from happywhale_nb.networks.model import build_network, inference_model
    from happywhale_nb.networks.presets import configure

    config = configure(preset, image_size=SIDE if preset == PRESET else 0, overrides="weights=")
    model = inference_model(build_network(config, classes=100))
    path = Path(tempfile.mkdtemp()) / "model.keras"
    model.save(path)
    used = asdict(replace(config, recipe="none")) | {"crops": "auto", "tta_sources": ""}  # no mirror images
    path.with_name("config.json").write_text(json.dumps({"parameters": used}))
    return model, path


def saved_model(n=256, preset=PRESET):
    def prepare(quick):
        import tensorflow as tf

        from happywhale_nb.networks.model import build_encoder

        model, path = stored(preset)
        build_encoder(model).export(path.parent / "saved", format="tf_saved_model", verbose=False)
        loaded, photos = tf.saved_model.load(path.parent / "saved"), crops(quick, n, model.input_shape[1])

        def run():
            for start in range(0, len(photos), BATCH):
                vectors = loaded.serve(tf.constant(photos[start : start + BATCH], tf.float32)).numpy()
            return f"{len(photos)} crops, {vectors.shape[1]}-d"

        run()
        return run

    return prepare


def exported(kind, n=256, preset=PRESET):
    def prepare(quick):
        from happywhale_nb.networks.encoders import open_encoder
        from happywhale_nb.networks.export import export_encoder

        model, path = stored(preset)
        photos = crops(quick, n, model.input_shape[1])
        target = path.parent / ("encoder.onnx" if kind == "onnx" else "encoder")
        worst = export_encoder(path, target, kind)
        encoder = open_encoder(target)
        encoder.embed(photos[:BATCH], BATCH)
        return lambda: f"{len(encoder.embed(photos, BATCH))} crops, smallest cosine {worst:.6f}"

    return prepare


def keras_embed(n=256):
    def prepare(quick):
        from happywhale_nb.networks.model import embed

        model, photos = stored()[0], crops(quick, n)
        embed(model, photos, batch_size=BATCH, quiet=True)
        return lambda: f"{len(embed(model, photos, batch_size=BATCH, quiet=True))} crops"

    return prepare


CASES = {
    "training steps": {"Keras' defaults": training(defaults=True), "this project": training()},
    "training steps, 20,000 classes": {
        "all scored": training(classes=20_000),
        "512 sampled": training(classes=20_000, overrides="sampled_classes=512"),
    },
    "training steps, 200,000 classes": {
        "all scored": training(classes=200_000),
        "512 sampled": training(classes=200_000, overrides="sampled_classes=512"),
    },
    "embedding": {
        "TensorFlow SavedModel": saved_model(),
        "networks.model.embed": keras_embed(),
        "OpenVINO": exported("openvino"),
        "ONNX Runtime": exported("onnx"),
    },
    "embedding one crop": {
        "TensorFlow SavedModel": saved_model(1),
        "OpenVINO": exported("openvino", 1),
        "ONNX Runtime": exported("onnx", 1),
    },
    "embedding one crop with EfficientNet-B5": {
        "TensorFlow SavedModel": saved_model(1, LARGE),
        "OpenVINO": exported("openvino", 1, LARGE),
    },
    **preset_cases(),
}

if __name__ == "__main__":
    if not HAVE_TIMM:
        print("PyTorch and timm are not installed: no comparison with them", file=sys.stderr)
    main(CASES)
