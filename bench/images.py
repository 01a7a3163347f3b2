"""From photographs to crops of 380 pixels, two cores: decoding originals by three libraries, and the folder of crops.

The photographs are 24 of Happywhale's in full resolution, if HAPPYWHALE_SHARED names a folder that holds
happywhale_photos/fullres; otherwise as many of 12 megapixels are drawn. Every alternative gives the same number of
photographs as uint8 RGB, all in a row and over all cores; the folder of crops has been filled before.
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

from happywhale_nb import crops as crops_module
from happywhale_nb.boxes import BOX
from happywhale_nb.crops import load_crop, load_crops

HERE = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("HAPPYWHALE_SHARED", HERE.parent / "shared" / "data"))
SIDE = 380


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


def kept(quick):
    crops_module.IN_MEMORY = 0  # as for a set that is too large for memory: every crop is read from its file
    paths = photos(quick)
    chosen = pd.DataFrame({name: [np.nan] * len(paths) for name in [*BOX, "W", "H"]})
    crops = load_crops(paths, chosen, SIDE, tempfile.mkdtemp())
    rows = np.arange(len(paths))
    return lambda: f"{len(crops[rows])} photographs"


def decoder(quick):
    """The limit: the JPEG decoder alone, on the bytes of the same crops in memory."""
    crops_module.IN_MEMORY = 0
    paths = photos(quick)
    chosen = pd.DataFrame({name: [np.nan] * len(paths) for name in [*BOX, "W", "H"]})
    crops = load_crops(paths, chosen, SIDE, tempfile.mkdtemp())
    bodies = [np.frombuffer(crops.path(i).read_bytes()[:-20], np.uint8) for i in range(len(paths))]

    def run():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return f"{sum(1 for _ in pool.map(lambda b: cv2.imdecode(b, cv2.IMREAD_COLOR), bodies))} photographs"

    return run


CASES = {
    "full resolution to 380 px": {
        "TensorFlow, decode and resize": tensorflow,
        "OpenCV, a quarter's decode": with_threads(opencv),
        "Pillow, draft mode (load_crop)": with_threads(pillow),
        "folder of crops": kept,
        "JPEG decoder alone": decoder,
    },
}

if __name__ == "__main__":
    main(CASES)
