"""From photographs to batches of 380 pixels: decoding, the folder of crops, augmentation; all over all cores.

1. Originals decoded by three libraries, and the folder of crops, which has been filled before.
2. Batches of 16 from the folder of crops: as they are, and with the paper's recipe (flip, hue, saturation, contrast,
   brightness, grey) by this project, by `keras.layers.Random*` and by `tf.image` a photograph at a time.
3. The recipe alone, on crops in memory.
4. What a longer epoch costs in memory.

The photographs are 24 of Happywhale's in full resolution, if HAPPYWHALE_SHARED names a folder that holds
happywhale_photos/fullres; otherwise as many of 12 megapixels are drawn.
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from harness import main
from PIL import Image

from happywhale_nb.data.boxes import BOX
from happywhale_nb.imaging import crops as crops_module
from happywhale_nb.imaging.augmentation import augment
from happywhale_nb.imaging.augmentation_recipes import RECIPES
from happywhale_nb.imaging.crops import load_crop, load_crops

HERE = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HAPPYWHALE_SHARED", HERE.parent / "shared" / "data"))
SIDE, BATCH = 380, 16


def photos(quick):
    """Paths of 24 photographs (`quick`: 6) in full resolution."""
    found = sorted((SHARED / "happywhale_photos" / "fullres").glob("*.jpg"))
    if not found:
        folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
        for i in range(24):
            coarse = rng.integers(0, 255, (75, 100, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((4000, 3000), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
        found = sorted(folder.glob("*.jpg"))
    return found[: 6 if quick else 24]


def with_threads(read):
    def prepare(quick):
        paths = photos(quick)

        def run():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return f"{sum(1 for _ in pool.map(read, paths))} photographs"

        return run

    return prepare


def opencv(path):
    pixels = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_4)
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def pillow(path):
    return load_crop(path, SIDE)


def tensorflow(quick):
    import tensorflow as tf

    paths = [str(p) for p in photos(quick)]

    def read(path):
        return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), (SIDE, SIDE))

    data = tf.data.Dataset.from_tensor_slices(paths).map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
    return lambda: f"{sum(1 for _ in data)} photographs"


def folder_of_crops(quick):
    """`Crops` of 380 pixels, read from files: as for a set that is too large for memory."""
    crops_module.IN_MEMORY = 0
    paths = photos(quick)
    chosen = pd.DataFrame({name: [np.nan] * len(paths) for name in [*BOX, "W", "H"]})
    return load_crops(paths, chosen, SIDE, tempfile.mkdtemp())


def kept(quick):
    crops = folder_of_crops(quick)
    rows = np.arange(len(crops))
    return lambda: f"{len(crops[rows])} photographs"


def decoder(quick):
    """The limit: the JPEG decoder alone, on the bytes of the same crops in memory."""
    crops = folder_of_crops(quick)
    bodies = [np.frombuffer(crops.path(i).read_bytes()[:-20], np.uint8) for i in range(len(crops))]

    def run():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return f"{sum(1 for _ in pool.map(lambda b: cv2.imdecode(b, cv2.IMREAD_COLOR), bodies))} photographs"

    return run


def batches(recipe, after=None, epochs=1):
    """A `prepare` that reads `epochs` epochs of batches of 16 with a recipe, then `after` (made by a function)."""

    def prepare(quick):
        from happywhale_nb.networks.batches import epoch_orders, training_batches
        from happywhale_nb.networks.targets import Targets

        crops, n = folder_of_crops(quick), 64 if quick else 384
        rows = np.arange(n) % len(crops)
        orders, targets = epoch_orders(n, epochs, BATCH, seed=0), Targets(rows, np.zeros(len(crops), np.float32))
        data = training_batches(crops, rows, targets, RECIPES[recipe], orders, BATCH, seed=0)
        data = data.map(lambda inputs, labels, weights: (inputs["pixels"], labels["cosines"]))
        if after:
            data = after()(data)

        def run():
            for images, _ in data:
                last = images
            return f"{n * epochs} photographs, {last.dtype.name}"

        return run

    return prepare


def keras_layers():
    """The paper's recipe as Keras' own layers."""
    from keras import layers

    chain = [
        layers.RandomFlip("horizontal", seed=1),
        layers.RandomHue(0.01, seed=2),
        layers.RandomSaturation((0.35, 0.65), seed=3),
        layers.RandomContrast(0.2, value_range=(0, 255), seed=4),
        layers.RandomBrightness(0.1, seed=5),
        layers.RandomGrayscale(0.1, seed=6),
    ]

    def vary(images, labels):
        for layer in chain:
            images = layer(images, training=True)
        return images, labels

    return lambda data: data.map(vary, num_parallel_calls=os.cpu_count()).prefetch(2)


def tf_image_chain(image):
    """The paper's recipe on one photograph, as notebooks of the competition write it."""
    import tensorflow as tf

    image = tf.image.random_flip_left_right(tf.cast(image, tf.float32) / 255)
    image = tf.image.random_hue(image, 0.01)
    image = tf.image.random_saturation(image, 0.7, 1.3)
    image = tf.image.random_contrast(image, 0.8, 1.2)
    image = tf.image.random_brightness(image, 0.1)
    if tf.random.uniform([]) < 0.1:
        image = tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])
    return tf.clip_by_value(image, 0, 1) * 255


def tf_image():
    def back(data):
        data = data.unbatch().map(
            lambda image, label: (tf_image_chain(image), label), num_parallel_calls=os.cpu_count()
        )
        return data.batch(BATCH).prefetch(2)

    return back


def memory_crops(quick):
    crops = folder_of_crops(quick)
    return np.resize(crops[np.arange(len(crops))], (2 if quick else 12, BATCH, SIDE, SIDE, 3))


def recipe_by_tf_image(quick):
    import tensorflow as tf

    stacks = memory_crops(quick)
    flat = tf.data.Dataset.from_tensor_slices(stacks.reshape(-1, SIDE, SIDE, 3))
    data = flat.map(tf_image_chain, num_parallel_calls=os.cpu_count()).batch(BATCH).prefetch(2)
    return lambda: f"{sum(len(images) for images in data)} photographs"


def recipe_by_keras(quick):
    import tensorflow as tf

    stacks = memory_crops(quick)
    data = keras_layers()(tf.data.Dataset.from_tensor_slices((stacks, np.zeros(len(stacks)))))
    return lambda: f"{sum(len(images) for images, _ in data)} photographs"


def recipe_by_augment(quick):
    stacks = memory_crops(quick)
    return lambda: f"{sum(len(augment(stack, RECIPES['paper'], i)) for i, stack in enumerate(stacks))} photographs"


CASES = {
    "full resolution to 380 px": {
        "TensorFlow, decode and resize": tensorflow,
        "OpenCV, a quarter's decode": with_threads(opencv),
        "Pillow, draft mode (load_crop)": with_threads(pillow),
        "folder of crops": kept,
        "JPEG decoder alone": decoder,
    },
    "folder of crops to batches": {
        "as they are": batches("none"),
        "paper's recipe, training_batches": batches("paper"),
        "recommended recipe, training_batches": batches("recommended"),
        "paper's recipe, keras.layers.Random*": batches("none", keras_layers),
        "paper's recipe, tf.image": batches("none", tf_image),
    },
    "paper's recipe alone": {
        "tf.image, a photograph at a time": recipe_by_tf_image,
        "keras.layers.Random*": recipe_by_keras,
        "augment": recipe_by_augment,
    },
    "memory": {
        "one epoch": batches("paper"),
        "three epochs": batches("paper", epochs=3),
        "six epochs": batches("paper", epochs=6),
    },
}

if __name__ == "__main__":
    main(CASES)
