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
from happywhale_nb.heads import ArcFaceLoss, CosineClassifier, GeM, Parts, accuracy, add_angular_margin, top5
from happywhale_nb.presets import configure
from happywhale_nb.fitting import embed, train
from keras import ops

given = {name: np.array(value) for name, value in json.load(sys.stdin).items()}
out = {"backend": keras.backend.backend(), "losses": {}, "edges": []}
cosines, labels = given["cosines"].astype("float32"), given["labels"]
for name in ("fixed", "each"):
    target = np.column_stack([labels, given[name]]).astype("float32")
    for smoothing in (0.0, 0.1):
        losses = ArcFaceLoss(30, smoothing, reduction=None)(target, cosines)
        out["losses"][f"{name} {smoothing}"] = ops.convert_to_numpy(losses).tolist()
half = ArcFaceLoss(30, reduction=None)(target, ops.cast(cosines, "float16"))
out["half"] = ops.convert_to_numpy(half).tolist()
for margin in (0.0, 0.3, 0.5):
    out["edges"].append(ops.convert_to_numpy(add_angular_margin(np.array([-1, 1], "float32"), margin)).tolist())
out["first"], out["five"] = (ops.convert_to_numpy(f(target, cosines)).tolist() for f in (accuracy, top5))

layer, vectors = CosineClassifier(6, centres=2), given["vectors"].astype("float32")
layer(vectors)
layer.table.assign(given["centres"].reshape(6, 32).astype("float32"))
out["products"] = ops.convert_to_numpy(layer(vectors)).tolist()
out["some"] = ops.convert_to_numpy(layer(vectors, given["chosen"])).tolist()
parted = CosineClassifier(6, centres=2, parts=4)
parted(vectors)
parted.table.assign(layer.table)
out["parted"] = ops.convert_to_numpy(parted(vectors)).tolist()
target = np.array([[1, 0.3], [0, 0.3], [5, 0.2], [2, 0], [3, 0.5]], "float32")
out["parted_losses"] = ops.convert_to_numpy(ArcFaceLoss(30, 0.1, reduction=None)(target, parted(vectors))).tolist()
out["parted_first"] = ops.convert_to_numpy(accuracy(target, parted(vectors))).tolist()
out["cells"] = ops.convert_to_numpy(Parts(2)(given["maps"].astype("float32"))).tolist()
out["means"] = ops.convert_to_numpy(GeM(3.0)(given["maps"].astype("float32"))).tolist()

crops = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3)).astype("uint8")
changes = "batch_size=8 species_share=.5 margin_spread=.02 margin_ramp=1"
out["history"], out["same"] = [], []
for more in ("", " pool=parts"):
    config = configure("small_recommended", epochs=2, image_size=32, changes=changes + more)
    with tempfile.TemporaryDirectory() as tmp:
        many = (np.arange(24), np.arange(24) % 4, 4, tmp, "stamp", 0, np.arange(24) % 2)
        model, history = train(config, crops, *many, inside=True)
        model.save(tmp + "/model.keras")
        again = keras.saving.load_model(tmp + "/model.keras")
    out["history"] += [row["loss"] for row in history]
    out["same"] += [bool(np.allclose(*(embed(m, crops, batch_size=8) for m in (model, again)), atol=1e-5))]
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


def arcface(cosines, labels, scale, margins, smoothing=0.0):
    """ArcFace by its definition, sample by sample: the angle is taken, the margin added to it."""
    losses = []
    for row, label, margin in zip(np.asarray(cosines, np.float64), labels, margins, strict=True):
        angle = np.arccos(row[label])
        logits = scale * row
        logits[label] = scale * (
            np.cos(angle + margin) if angle + margin <= np.pi else row[label] - margin * np.sin(margin)
        )
        surprise = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits
        losses.append((1 - smoothing) * surprise[label] + smoothing * surprise.mean())
    return losses


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_head_agrees_with_its_formulas_and_trains_on_both_backends(backend):
    rng = np.random.default_rng(1)
    cosines = np.clip(rng.uniform(-1.05, 1.05, (40, 6)), -1, 1)
    labels = rng.integers(0, 6, 40)
    cosines[0, labels[0]], cosines[1, labels[1]] = 1, -1
    given = {"cosines": cosines, "labels": labels, "fixed": np.full(40, 0.3), "each": rng.uniform(0, 0.6, 40)}
    given |= {
        "vectors": rng.normal(size=(5, 16)),
        "centres": rng.normal(size=(6, 2, 16)),
        "chosen": np.array([4, 1, 2]),
    }
    given |= {"maps": rng.uniform(0, 4, (2, 5, 5, 3))}
    found = evaluate(backend, {name: value.tolist() for name, value in given.items()})
    assert found["backend"] == backend
    for name in ("fixed", "each"):
        for smoothing in (0.0, 0.1):
            # the guard at cos = ±1 shifts the cosine by at most sqrt(1e-7) · sin(margin)
            expected = arcface(cosines, labels, 30, given[name], smoothing)
            np.testing.assert_allclose(found["losses"][f"{name} {smoothing}"], expected, rtol=2e-4, atol=30 * 4e-4)
    half = arcface(cosines.astype(np.float16), labels, 30, given["each"])
    np.testing.assert_allclose(found["half"], half, rtol=1e-3, atol=0.02)  # computed in float32 from 16-bit cosines
    assert np.isfinite(found["edges"]).all()
    assert found["first"] == (cosines.argmax(1) == labels).tolist()
    assert np.mean(found["five"]) == np.mean([labels[i] in np.argsort(-row)[:5] for i, row in enumerate(cosines)])
    unit, centres = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (given["vectors"], given["centres"]))
    products = np.einsum("nd,ckd->nck", unit, centres).max(-1)
    np.testing.assert_allclose(found["products"], products, atol=1e-5)
    np.testing.assert_allclose(found["some"], products[:, [4, 1, 2]], atol=1e-5)
    np.testing.assert_allclose(found["means"], (given["maps"] ** 3).mean((1, 2)) ** (1 / 3), rtol=1e-4)
    assert found["same"] == [True, True] and len(found["history"]) == 4 and np.isfinite(found["history"]).all()
    unit, centres = (v.reshape(*v.shape[:-1], 4, 4) for v in (given["vectors"], given["centres"]))
    unit, centres = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (unit, centres))
    parted = np.einsum("npd,ckpd->npck", unit, centres).max(-1)
    np.testing.assert_allclose(found["parted"], parted, atol=1e-5)
    classes, margins = [1, 0, 5, 2, 3], [0.3, 0.3, 0.2, 0, 0.5]
    expected = [arcface(parted[:, part], classes, 30, margins, 0.1) for part in range(4)]
    np.testing.assert_allclose(found["parted_losses"], np.mean(expected, axis=0), rtol=2e-4, atol=1e-3)
    assert found["parted_first"] == (parted.mean(1).argmax(1) == classes).tolist()
    cells = [given["maps"][:, y : y + 3, x : x + 3].mean((1, 2)) for y in (0, 2) for x in (0, 2)]
    np.testing.assert_allclose(found["cells"], np.stack(cells, 1), rtol=1e-4)


def test_the_margin_has_finite_slopes_everywhere():
    import tensorflow as tf

    from happywhale_nb.heads import ArcFaceLoss

    cosines = tf.Variable(np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0]], np.float32))
    with tf.GradientTape() as tape:
        loss = ArcFaceLoss(30)(np.array([[0, 0.5], [0, 0.5], [2, 0.5]], np.float32), cosines)
    assert np.isfinite(tape.gradient(loss, cosines).numpy()).all()


@pytest.mark.parametrize("name", ["basic_cnn", "small_resnet", "small_efficientnet", "resnet50", "efficientnet_b0"])
def test_input_is_0_to_255(name):
    """Backbones scale for themselves, to a spread near 1: a second scaling outside would pass unnoticed and cost half
    the accuracy."""
    import keras

    from happywhale_nb.backbones import BACKBONES

    pixels = keras.Input((32, 32, 3))
    model = keras.Model(pixels, BACKBONES[name](pixels))
    scaling = [
        layer for layer in model.layers if type(layer).__name__ in ("Rescaling", "CaffeScaling", "Normalization")
    ]
    ends = np.array([[[[0.0, 0, 0], [255, 255, 255]]]], np.float32)
    for layer in scaling:
        ends = np.asarray(layer(ends))
    width = np.ptp(ends, axis=2)
    assert (width == 255).all() if name == "resnet50" else ((width > 0.9) & (width < 5)).all()
