"""The head against its formula in float64, on both Keras backends, and batches against their promises."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

CASES = """
import json, sys, tempfile
from dataclasses import replace
import numpy as np
import keras
from happywhale_nb.heads import ArcFaceLoss, CosineClassifier, add_angular_margin
from happywhale_nb.presets import configure
from happywhale_nb.fitting import embed, train
from keras import ops

given = json.load(sys.stdin)
cosines, labels = np.array(given["cosines"], "float32"), np.array(given["labels"])
out = {"backend": keras.backend.backend(), "losses": [], "edges": []}
for margin in given["margins"]:
    losses = ArcFaceLoss(30, margin, reduction=None)(labels, cosines)
    out["losses"].append(ops.convert_to_numpy(losses).tolist())
    out["edges"].append(ops.convert_to_numpy(add_angular_margin(np.array([-1, 1], "float32"), margin)).tolist())

layer = CosineClassifier(6)
vectors = np.array(given["vectors"], "float32")
layer.build(vectors.shape)
layer.centres.assign(np.array(given["centres"], "float32"))
out["products"] = ops.convert_to_numpy(layer(vectors)).tolist()

config = replace(configure("small_resnet_arcface", epochs=2, image_size=32), batch_size=8)
crops = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3)).astype("uint8")
with tempfile.TemporaryDirectory() as tmp:
    model, history = train(config, crops, np.arange(24), np.arange(24) % 4, 4, tmp, "stamp")
    model.save(tmp + "/model.keras")
    again = keras.saving.load_model(tmp + "/model.keras")
out["history"] = [row["loss"] for row in history]
out["same"] = bool(np.allclose(embed(model, crops, batch_size=8), embed(again, crops, batch_size=8), atol=1e-5))
print("RESULT" + json.dumps(out))
"""


def evaluate(backend, given):
    done = subprocess.run(
        [sys.executable, "-c", CASES],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


def arcface(cosines, labels, scale, margin):
    """ArcFace by its definition, sample by sample: the angle is taken, the margin added to it."""
    losses = []
    for row, label in zip(np.asarray(cosines, np.float64), labels, strict=True):
        angle = np.arccos(row[label])
        logits = scale * row
        logits[label] = scale * (
            np.cos(angle + margin) if angle + margin <= np.pi else row[label] - margin * np.sin(margin)
        )
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
    return losses


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_head_agrees_with_its_formula_and_trains_on_both_backends(backend):
    rng = np.random.default_rng(1)
    cosines = np.clip(rng.uniform(-1.05, 1.05, (40, 6)), -1, 1)
    labels = rng.integers(0, 6, 40)
    cosines[0, labels[0]], cosines[1, labels[1]] = 1, -1
    vectors, centres = rng.normal(size=(5, 16)), rng.normal(size=(16, 6))
    margins = [0.0, 0.3, 0.5]
    given = {"cosines": cosines, "labels": labels, "vectors": vectors, "centres": centres}
    found = evaluate(backend, {name: value.tolist() for name, value in given.items()} | {"margins": margins})
    assert found["backend"] == backend
    for margin, losses, edges in zip(margins, found["losses"], found["edges"], strict=True):
        # the guard at cos = ±1 shifts the cosine by at most sqrt(1e-7) · sin(margin)
        np.testing.assert_allclose(losses, arcface(cosines, labels, 30, margin), rtol=2e-4, atol=30 * 4e-4)
        assert np.isfinite(edges).all()
    expected = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ (centres / np.linalg.norm(centres, axis=0))
    np.testing.assert_allclose(found["products"], expected, atol=1e-5)
    assert found["same"] and len(found["history"]) == 2 and np.isfinite(found["history"]).all()


def test_the_margin_has_finite_slopes_everywhere():
    import tensorflow as tf

    from happywhale_nb.heads import ArcFaceLoss

    cosines = tf.Variable(np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]], np.float32))
    with tf.GradientTape() as tape:
        loss = ArcFaceLoss(30, 0.5)(np.array([0, 0, 2]), cosines)
    assert np.isfinite(tape.gradient(loss, cosines).numpy()).all()


def test_input_stays_in_0_to_255():
    """Backbones scale for themselves: a second scaling outside would pass unnoticed and cost half the accuracy."""
    from happywhale_nb.fitting import build_model
    from happywhale_nb.presets import configure

    model = build_model(configure("small_resnet_arcface", image_size=32), 3)
    scaled = model.get_layer("rescale")(np.array([[[[0.0, 127.5, 255.0]]]], np.float32))
    np.testing.assert_allclose(np.asarray(scaled).ravel(), [-1, 0, 1], atol=1e-6)
