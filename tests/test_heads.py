"""Pooling, classifier and loss against their formulas in float64, on Keras' backend: tests of test_devices.py run this
file again on JAX."""

import re

import keras
import numpy as np
import pytest
from keras import ops

from happywhale_nb.networks.heads import (
    ArcFaceLoss,
    CosineClassifier,
    GeM,
    Parts,
    SoftmaxLoss,
    accuracy,
    add_angular_margin,
    neck,
    top5,
)


def numbers(value):
    """A tensor of any backend as an array."""
    return ops.convert_to_numpy(value)


def unit(vectors):
    """Vectors of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def targets(labels, margins):
    """Classes and margins as the loss takes them."""
    return np.column_stack([labels, margins]).astype("float32")


def slope(function, value):
    """The gradient of a scalar function of an array, by whatever computes."""
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(function)(value))
    import tensorflow as tf

    with tf.GradientTape() as tape:
        variable = tf.Variable(value)
        result = function(variable)
    return tape.gradient(result, variable).numpy()


def arcface(cosines, labels, scale, margins, smoothing=0.0):
    """ArcFace by its definition, sample by sample: the angle is taken, the margin added to it."""
    losses = []
    for row, label, margin in zip(np.asarray(cosines, np.float64), labels, margins, strict=True):
        angle = np.arccos(row[label])
        logits = scale * row
        logits[label] = scale * (
            np.cos(angle + margin) if angle + margin < np.pi else row[label] - margin * np.sin(margin)
        )
        surprise = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits
        losses.append((1 - smoothing) * surprise[label] + smoothing * surprise.mean())
    return losses


@pytest.fixture(scope="module")
def given():
    """Forty rows of six cosines, some of them 1 and -1, with the class and a margin of each."""
    rng = np.random.default_rng(1)
    cosines = np.clip(rng.uniform(-1.05, 1.05, (40, 6)), -1, 1)
    labels = rng.integers(0, 6, 40)
    cosines[0, labels[0]], cosines[1, labels[1]] = 1, -1
    return cosines, labels, rng.uniform(0, 0.6, 40)


@pytest.fixture(scope="module")
def centres():
    """Five embeddings of sixteen numbers, and two centres for each of six classes."""
    rng = np.random.default_rng(2)
    return rng.normal(size=(5, 16)), rng.normal(size=(6, 2, 16))


def classifier(centres, parts=1):
    """A `CosineClassifier` with these centres, and the embeddings in float32."""
    vectors, table = centres
    vectors, layer = vectors.astype("float32"), CosineClassifier(6, centres=2, parts=parts)
    layer(vectors)
    layer.table.assign(table.reshape(6, 32).astype("float32"))
    return layer, vectors


def parted_cosines(centres, parts):
    """The largest cosine with a class's centres, part by part, `[n, parts, classes]`."""
    vectors, table = (unit(value.reshape(*value.shape[:-1], parts, -1)) for value in centres)
    return np.einsum("npd,ckpd->npck", vectors, table).max(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ArcFaceLoss_with_a_margin_for_each_sample_is_its_formula(given, smoothing):
    cosines, labels, margins = given
    losses = ArcFaceLoss(30, smoothing, reduction=None)(targets(labels, margins), cosines.astype("float32"))
    # the guard at cos = ±1 shifts the cosine by at most sqrt(1e-7) · sin(margin)
    expected = arcface(cosines, labels, 30, margins, smoothing)
    np.testing.assert_allclose(numbers(losses), expected, rtol=2e-4, atol=30 * 4e-4)


def test_ArcFaceLoss_of_16_bit_cosines_is_computed_in_32_bits(given):
    cosines, labels, margins = given
    losses = ArcFaceLoss(30, reduction=None)(targets(labels, margins), ops.cast(cosines, "float16"))
    expected = arcface(cosines.astype(np.float16), labels, 30, margins)
    np.testing.assert_allclose(numbers(losses), expected, rtol=1e-3, atol=0.02)


def test_ArcFaceLoss_of_parts_is_the_mean_of_the_losses_of_the_parts(centres):
    labels, margins = [1, 0, 5, 2, 3], [0.3, 0.3, 0.2, 0, 0.5]
    cosines = parted_cosines(centres, 4)
    losses = ArcFaceLoss(30, 0.1, reduction=None)(targets(labels, margins), cosines.astype("float32"))
    expected = [arcface(cosines[:, part], labels, 30, margins, 0.1) for part in range(4)]
    np.testing.assert_allclose(numbers(losses), np.mean(expected, axis=0), rtol=2e-4, atol=1e-3)


def test_ArcFaceLoss_has_finite_gradients_where_cosines_are_1_and_minus_1():
    cosines = np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 0], [1, 0.9, 0.95]], np.float32)  # the last is not sure at all
    found = slope(lambda value: ArcFaceLoss(30)(targets([0, 0, 2, 0], [0.5] * 4), value), cosines)
    assert np.isfinite(found).all() and found[2, 2] < 0 < found[2, 0] and found[3, 0] < 0 < found[3, 2]


@pytest.mark.parametrize("how", [(0.0, 0.0), (-30.0, 0.0), (30.0, 1.0), (30.0, -0.1)])
def test_ArcFaceLoss_with_an_impossible_scale_or_smoothing_is_refused(how):
    with pytest.raises(ValueError, match=r"(scale|label_smoothing)=.*: give a number"):
        ArcFaceLoss(*how)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5])
def test_add_angular_margin_at_the_ends_and_at_the_bound_is_its_formula(margin):
    bound = numbers(-ops.cos(ops.convert_to_tensor(margin, "float32")))  # the angle π - margin, to the last bit
    found = numbers(add_angular_margin(np.array([1, bound, -1], "float32"), margin))
    lowered = margin * np.sin(margin)  # from the bound on
    np.testing.assert_allclose(found, [np.cos(margin), bound - lowered, -1 - lowered], atol=2e-4)


def test_accuracy_and_top5_count_the_true_class_among_the_largest_cosines(given):
    cosines, labels, margins = given
    first, five = (numbers(f(targets(labels, margins), cosines.astype("float32"))) for f in (accuracy, top5))
    order = np.argsort(-cosines, axis=1)
    assert first.tolist() == (order[:, 0] == labels).tolist()
    assert five.tolist() == (order[:, :5] == labels[:, None]).any(axis=1).tolist() and not five.all()


def test_accuracy_and_top5_of_parts_are_those_of_the_mean_cosine(centres):
    cosines, labels = parted_cosines(centres, 4), [1, 0, 5, 2, 3]
    first, five = (numbers(f(targets(labels, [0.3] * 5), cosines.astype("float32"))) for f in (accuracy, top5))
    order = np.argsort(-cosines.mean(axis=1), axis=1)
    assert first.tolist() == (order[:, 0] == labels).tolist()
    assert five.tolist() == [label in row for label, row in zip(labels, order[:, :5], strict=True)]


def test_CosineClassifier_gives_the_largest_cosine_with_a_class_s_centres(centres):
    layer, vectors = classifier(centres)
    expected = parted_cosines(centres, 1)[:, 0]
    np.testing.assert_allclose(numbers(layer(vectors)), expected, atol=1e-5)
    np.testing.assert_allclose(numbers(layer(vectors, np.array([4, 1, 2]))), expected[:, [4, 1, 2]], atol=1e-5)


def test_CosineClassifier_with_parts_gives_the_largest_cosine_of_each_part(centres):
    layer, vectors = classifier(centres, parts=4)
    expected = parted_cosines(centres, 4)
    np.testing.assert_allclose(numbers(layer(vectors)), expected, atol=1e-5)
    np.testing.assert_allclose(numbers(layer(vectors, np.array([4, 1, 2]))), expected[..., [4, 1, 2]], atol=1e-5)


def test_CosineClassifier_never_leaves_minus_1_to_1():
    layer, vectors = CosineClassifier(200), np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    layer(vectors)
    layer.table.assign(np.concatenate([vectors[:100], -vectors[100:]]))
    found = numbers(layer(vectors))
    assert found.max() == 1 and found.min() == -1


def test_GeM_of_values_below_a_millionth_is_that_of_a_millionth_with_a_finite_gradient():
    maps = np.random.default_rng(3).normal(size=(2, 5, 5, 3)).astype("float32")
    layer = GeM(3.0)
    expected = (np.maximum(maps.astype(float), 1e-6) ** 3).mean((1, 2)) ** (1 / 3)
    np.testing.assert_allclose(numbers(layer(maps)), expected, rtol=1e-4)
    assert np.isfinite(slope(lambda value: ops.sum(layer(value)), np.zeros_like(maps))).all()


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (2, 6)])
def test_Parts_are_the_means_of_all_places_that_a_cell_touches(shape):
    maps = np.random.default_rng(4).uniform(0, 4, (2, *shape, 3)).astype("float32")
    rows, columns = ([(k * n // 2, -(-(k + 1) * n // 2)) for k in (0, 1)] for n in shape)
    expected = [maps[:, y0:y1, x0:x1].mean((1, 2)) for y0, y1 in rows for x0, x1 in columns]
    np.testing.assert_allclose(numbers(Parts(2)(maps)), np.stack(expected, 1), rtol=1e-4)


REMEMBERED = [
    (GeM(2.5), ["power"]),
    (Parts(3), ["side"]),
    (CosineClassifier(5, centres=2, parts=4), ["classes", "centres", "parts"]),
    (ArcFaceLoss(7.0, 0.2), ["scale", "label_smoothing"]),
]


@pytest.mark.parametrize(("layer", "names"), REMEMBERED, ids=lambda value: type(value).__name__)
def test_layers_and_loss_read_from_their_configuration_are_the_same(layer, names):
    again = type(layer).from_config(layer.get_config())
    assert [getattr(again, name) for name in names] == [getattr(layer, name) for name in names]


def necks(pool, **how):
    """The neck over feature maps of 4 and 2 places a side, as a model without drop-out's chance."""
    maps = [keras.Input((4, 4, 3)), keras.Input((2, 2, 6))]
    return keras.Model(maps, neck(maps, pool, **how))


@pytest.mark.parametrize(("pool", "pooled"), [("gap", 6), ("gem", 6), ("gem2", 9), ("parts", 24)])
def test_neck_gives_the_embedding_s_numbers_from_what_its_pooling_sees(pool, pooled):
    model = necks(pool, dim=8, parts=2, momentum=0.7, dropout=0.25)
    norm = model.get_layer("neck_bn")
    assert model.layers[-1].name == "embedding" and model.output.shape == (None, 8)
    assert norm.gamma.shape == (pooled,) and norm.momentum == 0.7 and model.get_layer("neck_dropout").rate == 0.25
    rng = np.random.default_rng(5)
    maps = [rng.uniform(0.5, 1, (3, 4, 4, 3)), rng.uniform(0.5, 1, (3, 2, 2, 6))]
    found = numbers(model(maps))
    assert found.dtype == np.float32 and found.shape == (3, 8)
    assert np.allclose(numbers(model([maps[0] + 1, maps[1]])), found) == (pool != "gem2")
    assert not np.allclose(numbers(model([maps[0], maps[1] + 1])), found)


def test_neck_of_parts_gives_each_cell_its_own_numbers_of_length_1():
    model = necks("parts", dim=8, parts=2)
    maps = [np.zeros((3, 4, 4, 3)), np.random.default_rng(6).uniform(0, 1, (3, 2, 2, 6))]
    found = numbers(model(maps)).reshape(3, 4, 2)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)
    maps[1][:, 1, 0] += np.arange(6)  # the third cell, row by row
    changed = np.abs(numbers(model(maps)).reshape(3, 4, 2) - found).max(axis=-1) > 1e-6
    assert changed[:, 2].all() and not changed[:, [0, 1, 3]].any()


def test_losses_take_integer_labels_and_refuse_those_that_are_no_classes():
    cosines = np.tanh(np.random.default_rng(0).normal(size=(4, 6))).astype("float32")
    labels = np.array([0, 5, 2, 2])
    pairs = np.column_stack([labels, np.full(4, 0.3)]).astype("float32")
    loss = ArcFaceLoss(margin=0.3)
    for given in (labels, labels[:, None], labels.astype("uint8")):
        assert float(loss(given, cosines)) == pytest.approx(float(loss(pairs, cosines)))
        assert ops.convert_to_numpy(accuracy(given, cosines)).tolist() == (cosines.argmax(axis=1) == labels).tolist()
    for kind in (loss, SoftmaxLoss()):
        for wrong, said in (([0, 6, 1, 1], "labels from 0 to 6"), ([0, -1, 1, 1], "labels from -1 to 1")):
            with pytest.raises(ValueError, match=said):
                kind(np.array(wrong), cosines)
        with pytest.raises(ValueError, match=r"give integer classes \[b\]"):
            kind(np.eye(4, 6), cosines)
    again = ArcFaceLoss.from_config(loss.get_config())
    assert again.margin == 0.3


def test_a_label_out_of_range_stops_a_compiled_training_or_makes_its_loss_nan():
    pixels = keras.Input((4,))
    model = keras.Model(pixels, CosineClassifier(3)(pixels))
    data = np.ones((4, 4), "float32"), np.array([0, 1, 2, 3])
    model.compile("sgd", ArcFaceLoss(), jit_compile=False)
    try:
        loss = model.fit(*data, verbose=0).history["loss"][0]
    except Exception as error:  # each backend has its own
        assert re.search("a label is not a class from 0 to 2|classes go from 0 to 2", str(error))
    else:
        assert np.isnan(loss)


@pytest.mark.parametrize("power", [1.0, 3.0, 60.0, 1000.0])
def test_gem_of_any_power_is_finite_and_between_mean_and_maximum(power):
    maps = np.random.default_rng(1).uniform(0, 50, (2, 5, 5, 3)).astype("float32")
    pooled = ops.convert_to_numpy(GeM(power)(maps))
    assert np.isfinite(pooled).all()
    assert (pooled >= maps.mean(axis=(1, 2)) - 1e-3).all() and (pooled <= maps.max(axis=(1, 2)) + 1e-3).all()
