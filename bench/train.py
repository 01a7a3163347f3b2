"""Training and embedding on this machine: this project's way against Keras' defaults, TensorFlow's and other runtimes.

1. Training steps of the CPU preset: `fit` as Keras is by default (XLA where it can), and as this project compiles it.
2. Training steps with 20,000 and 200,000 classes, all scored or 512 of them sampled: look at the memory.
3. Embedding of 256 crops: a TensorFlow SavedModel, `fitting.embed`, and the exported encoders.
4. Embedding of one crop, as for a photograph that has just come in.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from harness import main

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PRESET, SIDE, BATCH = "small_resnet_arcface", 96, 32


def training(defaults=False, classes=100, changes=""):
    """A `prepare` that fits some steps of the CPU preset, compiled as Keras does by default or as this project does."""

    def prepare(quick):
        from happywhale_nb.fitting import build_network, build_optimizer, compile_trainer
        from happywhale_nb.heads import ArcFaceLoss, accuracy, top5
        from happywhale_nb.presets import configure
        from happywhale_nb.targets import Targets, class_margins

        steps = 4 if quick else 20
        config = configure(PRESET, image_size=SIDE, changes=changes)
        network = build_network(config, classes)
        trainer = compile_trainer(network, config, build_optimizer(config, network, steps, BATCH))
        if defaults:
            loss, metrics = ArcFaceLoss(config.scale), {"cosines": [accuracy, top5]}
            trainer.compile(trainer.optimizer, {"cosines": loss}, metrics=metrics)
        rng, labels = np.random.default_rng(0), np.arange(BATCH * steps) % classes
        targets = Targets(labels, class_margins(np.ones(classes), 0.3), sample=config.sample)
        pixels = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3)).astype(np.uint8)

        def batches():
            for step in range(steps):
                made = targets.batch(np.arange(BATCH) + step * BATCH, np.zeros(BATCH, int), step)
                inputs = {"pixels": pixels} | ({"chosen": made["chosen"]} if config.sample else {})
                yield inputs, {"cosines": made["cosines"]}

        def run():
            for inputs, wanted in batches():
                trainer.train_on_batch(inputs, wanted)
            return f"{steps * BATCH} photographs"

        run()  # tracing and compiling are paid once in a training
        return run

    return prepare


def crops(quick, n=256):
    return np.random.default_rng(0).integers(0, 256, (32 if quick and n > 32 else n, SIDE, SIDE, 3)).astype(np.uint8)


def stored():
    """A model of the CPU preset, kept in a file."""
    from happywhale_nb.fitting import build_network, identifier
    from happywhale_nb.presets import configure

    model = identifier(build_network(configure(PRESET, image_size=SIDE), classes=100))
    path = Path(tempfile.mkdtemp()) / "model.keras"
    model.save(path)
    return model, path


def saved_model(n=256):
    def prepare(quick):
        import tensorflow as tf

        from happywhale_nb.export import encoder

        model, path = stored()
        encoder(model).export(path.parent / "saved", format="tf_saved_model", verbose=False)
        loaded, photos = tf.saved_model.load(path.parent / "saved"), crops(quick, n)

        def run():
            for start in range(0, len(photos), BATCH):
                vectors = loaded.serve(tf.constant(photos[start : start + BATCH], tf.float32)).numpy()
            return f"{len(photos)} crops, {vectors.shape[1]}-d"

        run()
        return run

    return prepare


def exported(kind, n=256):
    def prepare(quick):
        from happywhale_nb.export import Encoder, export_encoder

        _, path = stored()
        photos = crops(quick, n)
        worst = export_encoder(path, path.parent / kind, kind)
        run = Encoder(path.parent / kind)
        run(photos[:BATCH])
        return lambda: f"{len(run(photos))} crops, smallest cosine {worst:.6f}"

    return prepare


def keras_embed(n=256):
    def prepare(quick):
        from happywhale_nb.fitting import embed

        model, photos = stored()[0], crops(quick, n)
        embed(model, photos, batch_size=BATCH, quiet=True)
        return lambda: f"{len(embed(model, photos, batch_size=BATCH, quiet=True))} crops"

    return prepare


CASES = {
    "training steps": {"Keras' defaults": training(defaults=True), "this project": training()},
    "training steps, 20,000 classes": {
        "all scored": training(classes=20_000),
        "512 sampled": training(classes=20_000, changes="sample=512"),
    },
    "training steps, 200,000 classes": {
        "all scored": training(classes=200_000),
        "512 sampled": training(classes=200_000, changes="sample=512"),
    },
    "embedding": {
        "TensorFlow SavedModel": saved_model(),
        "fitting.embed": keras_embed(),
        "OpenVINO": exported("openvino"),
        "ONNX Runtime": exported("onnx"),
    },
    "embedding one crop": {
        "TensorFlow SavedModel": saved_model(1),
        "OpenVINO": exported("openvino", 1),
        "ONNX Runtime": exported("onnx", 1),
    },
}

if __name__ == "__main__":
    main(CASES)
