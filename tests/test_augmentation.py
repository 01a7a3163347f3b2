"""Augmented photographs stay in 0 to 255, and are the same on both Keras backends and from any number of workers."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import happywhale_nb
from happywhale_nb.core.errors import UserError
from happywhale_nb.imaging.augmentation import augment
from happywhale_nb.imaging.augmentation_plan import plan, recipe_passes
from happywhale_nb.imaging.augmentation_recipes import RECIPES, STEPS, recipe_from_data

EXTREME = {"Rotation": 180, "Affine": 60, "HorizonTilt": 90, "Noise": 200, "Jpeg": 200, "Spray": 0.5, "Blur": 0.2}
CASES = RECIPES | {name: (step(EXTREME.get(name, 0.8), 1.0),) for name, step in STEPS.items()}


def give_all(photos):
    """What the layer gives for each recipe, and for each step alone on photographs nearly twice as wide as high."""
    from keras import ops

    from happywhale_nb.networks.batches import Augmenter

    given = {name: photos if name in RECIPES else photos[:, 8:28] for name in CASES}
    drawn = {name: plan(CASES[name], 6, [1, 2], each.shape[2] / each.shape[1]) for name, each in given.items()}
    return {
        name: ops.convert_to_numpy(Augmenter(recipe)([given[name], drawn[name]], training=True))
        for name, recipe in CASES.items()
    }


ON_JAX = """
import sys
import numpy as np
from test_augmentation import give_all
np.savez(sys.argv[2], **give_all(np.load(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def photos():
    """Six crops of 36 pixels (no multiple of JPEG's 8): smooth ones, noise, black and white."""
    rng = np.random.default_rng(0)
    smooth = 127 + 120 * np.sin(np.linspace(0, 9, 36)[:, None, None] * rng.uniform(0.3, 1, (3, 1, 36, 3)))
    return np.concatenate(
        [smooth, rng.uniform(0, 255, (1, 36, 36, 3)), np.zeros((1, 36, 36, 3)), np.full((1, 36, 36, 3), 255)]
    ).astype(np.uint8)


@pytest.fixture(scope="module")
def inside(photos, tmp_path_factory):
    """What the layer gives on each backend: here on TensorFlow, and meanwhile on JAX in a process of its own."""
    folder = tmp_path_factory.mktemp("inside")
    np.save(folder / "photos.npy", photos)
    variables = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", ON_JAX, str(folder / "photos.npy"), str(folder / "jax.npz")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables) as jax:
        here = give_all(photos)
        try:
            _, messages = jax.communicate(timeout=240)
        finally:
            jax.kill()
    assert jax.returncode == 0, messages[-3000:]
    return {"tensorflow": here, "jax": dict(np.load(folder / "jax.npz"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECIPES, *STEPS])
def test_augmenter_on_both_backends_agrees_and_stays_in_0_to_255(inside, name):
    one, other = inside["tensorflow"][name], inside["jax"][name]
    assert one.dtype == other.dtype == np.float32 and np.isfinite(one).all()
    assert min(one.min(), other.min()) >= 0 and max(one.max(), other.max()) <= 255
    if any(type(step).__name__ == "Jpeg" for step in RECIPES.get(name, ())) or name == "Jpeg":
        # a wave half-way between two steps of JPEG's table may be rounded either way
        assert (np.abs(one - other) > 0.05).mean() < 0.02
    else:
        np.testing.assert_allclose(one, other, atol=0.05)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_augment_by_one_step_changes_photographs_with_its_probability_alone(photos, name):
    strong, never = STEPS[name](EXTREME.get(name, 0.8), 1.0), STEPS[name](EXTREME.get(name, 0.8), 0.0)
    changed = augment(photos, (strong,), 5)
    assert changed.dtype == np.uint8 and changed.shape == photos.shape
    assert (changed[:4] != photos[:4]).any(axis=(1, 2, 3)).all(), "textured photographs all change"
    assert (augment(photos, (never,), 5) == photos).all()
    many = plan((STEPS[name](0.5, 0.3),), 4000, 1)
    calm = plan((STEPS[name](0.5, 0.0),), 1, 1)
    kind = recipe_passes((strong,))[0][0]
    touched = many[:, 0] > 0 if kind in ("paint", "flip") else (many != calm).any(axis=1)
    assert 0.27 < touched.mean() < 0.33


def test_sections_of_steps_of_one_kind_are_one_pass():
    kinds = {name: [kind for kind, _, _ in recipe_passes(recipe)] for name, recipe in RECIPES.items()}
    assert kinds["paper"] == ["flip", "colour"] and kinds["basic_cnn"] == ["geometry"] and kinds["none"] == []


def test_augment_beside_other_batches_depends_on_its_seed_alone(photos):
    alone = [augment(photos, RECIPES["recommended"], [3, number]) for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        beside = list(pool.map(lambda number: augment(photos, RECIPES["recommended"], [3, number]), range(12)))
    assert all((a == b).all() for a, b in zip(alone, beside, strict=True))
    assert any((alone[0] != later).any() for later in alone[1:])


@pytest.mark.parametrize("inside", [False, True])
def test_training_batches_from_any_number_of_workers_are_the_same(photos, inside):
    from happywhale_nb.networks.batches import epoch_orders, training_batches
    from happywhale_nb.networks.targets import Targets

    crops, rows = np.tile(photos, (4, 1, 1, 1)), np.arange(24)
    given = (
        crops,
        rows,
        Targets(rows, np.full(24, 0.3, np.float32), spread=0.1),
        RECIPES["recommended"],
        epoch_orders(24, 2, 4, seed=1),
        4,
        9,
    )

    def read(private_threads):
        import tensorflow as tf

        options = tf.data.Options()
        options.threading.private_threadpool_size = private_threads
        return [tf.nest.flatten(batch) for batch in training_batches(*given, inside=inside).with_options(options)]

    for one, other in zip(read(1), read(8), strict=True):
        assert all((a.numpy() == b.numpy()).all() for a, b in zip(one, other, strict=True))


def test_augment_is_called_where_training_batches_are_made_alone():
    """`augment` and `Augmenter` are called where training batches are made or shown, and nowhere else."""
    package = Path(happywhale_nb.__file__).parent
    text = {f"{path.parent.name}.{path.stem}": path.read_text() for path in package.glob("*/*.py")}
    for shown in ("imaging.augmentation", "imaging.augmentation_plots"):
        del text[shown]
    assert {name for name in text if "augment(" in text[name]} == {"networks.batches", "networks.detector"}
    assert {name for name in text if "augmented(" in text[name]} == {"networks.batches", "networks.training"}
    assert {name for name in text if "Augmenter(" in text[name]} == {"networks.batches"}


def test_import_of_augmentation_starts_no_threads_and_leaves_the_setting_of_opencv():
    code = "import cv2, threading; before = cv2.getNumThreads(); import happywhale_nb.imaging.augmentation; "
    code += "print(cv2.getNumThreads() == before, threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "1"], done.stderr


def test_recipe_from_data_of_an_unknown_step_names_the_known_ones():
    with pytest.raises(UserError, match=r"'Wave'.*Rotation"):
        recipe_from_data([{"step": "Wave", "strength": 1, "probability": 1}])


@pytest.mark.parametrize(("strength", "probability"), [(0.1, 1.5), (0.1, -0.1), (-0.1, 0.5)])
def test_step_with_a_probability_or_strength_out_of_range_is_refused(strength, probability):
    assert STEPS["Blur"](0, 0) and STEPS["Blur"](0.1, 1)
    with pytest.raises(ValueError, match="probability"):
        STEPS["Blur"](strength, probability)
