"""The library's inner loops against what others would use: search, decoding, augmentation, and runtimes of one encoder.

1. The fifty nearest of 20,000 queries among 50,000 vectors of 512 numbers: `nearest`, `argpartition` in blocks, faiss,
   scikit-learn.
2. Photographs decoded and resized to 224 pixels, in one thread: of 512 pixels, and in full resolution.
3. The paper's recipe on 64 crops of 224 pixels: `augment`, and Albumentations where it is installed.
4. 256 crops embedded by EfficientNet-Lite0: Keras, OpenVINO, ONNX Runtime.

Alternatives that are not installed are left out. The photographs are Happywhale's in full resolution if
HAPPYWHALE_SHARED names a folder that holds happywhale_photos/fullres; otherwise some of 12 megapixels are drawn.
"""

import importlib.util
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
from harness import main
from images import photos
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from happywhale_nb.imaging.augmentation import augment
from happywhale_nb.imaging.augmentation_recipes import RECIPES
from happywhale_nb.imaging.crops import load_crop
from happywhale_nb.retrieval.search import nearest

WIDTH, NEIGHBOURS, SIDE = 512, 50, 224


def has(name):
    return importlib.util.find_spec(name) is not None


def vectors(quick):
    rng, found = np.random.default_rng(0), []
    for count in (1_000, 2_500) if quick else (20_000, 50_000):
        rows = rng.standard_normal((count, WIDTH), dtype=np.float32)
        found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return found


def by_argpartition(quick):
    queries, gallery = vectors(quick)

    def run():
        found = []
        for start in range(0, len(queries), 1024):
            cosines = queries[start : start + 1024] @ gallery.T
            near = np.argpartition(-cosines, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
            order = np.argsort(-np.take_along_axis(cosines, near, axis=1), axis=1)
            found.append(np.take_along_axis(near, order, axis=1))
        return f"{np.concatenate(found)[:, 0].sum():,}"

    return run


def by_nearest(quick):
    queries, gallery = vectors(quick)
    return lambda: f"{nearest(queries, gallery, NEIGHBOURS)[1][:, 0].sum():,}"


def by_faiss(quick):
    import faiss

    queries, gallery = vectors(quick)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(gallery)
    return lambda: f"{index.search(queries, NEIGHBOURS)[1][:, 0].sum():,}"


def by_sklearn(quick):
    queries, gallery = vectors(quick)
    near = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine", algorithm="brute", n_jobs=-1).fit(gallery)
    return lambda: f"{near.kneighbors(queries, return_distance=False)[:, 0].sum():,}"


def of_512(quick):
    """The photographs with their longer side at 512 pixels, as files."""
    folder, made = Path(tempfile.mkdtemp()), []
    for path in photos(quick):
        with Image.open(path) as photo:
            photo.thumbnail((512, 512))
            photo.convert("RGB").save(folder / path.name, quality=90)
        made.append(folder / path.name)
    return made


def decoded(paths, read):
    def prepare(quick):
        cv2.setNumThreads(1)
        files = [str(path) for path in paths(quick)]
        return lambda: f"{sum(read(path).shape[0] == SIDE for path in files)} photographs"

    return prepare


def opencv(path, flags=cv2.IMREAD_COLOR):
    pixels = cv2.resize(cv2.imread(path, flags), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def batch(quick):
    return np.random.default_rng(0).integers(0, 256, (16 if quick else 64, SIDE, SIDE, 3), dtype=np.uint8)


def by_augment(quick):
    crops = batch(quick)
    return lambda: f"{len(augment(crops, RECIPES['paper'], 1))} crops"


def by_albumentations(quick):
    import albumentations as album

    crops = batch(quick)
    colour = album.ColorJitter(brightness=0.1, contrast=0.2, saturation=0.3, hue=0.01, p=1)
    recipe = album.Compose([album.HorizontalFlip(p=0.5), colour, album.ToGray(p=0.1)])
    return lambda: f"{len([recipe(image=crop)['image'] for crop in crops])} crops"


def embedded(runtime):
    def prepare(quick):
        os.environ["HAPPYWHALE_RUNTIME"] = "onnxruntime"  # so that the network itself is run by Keras
        from happywhale_nb.networks.encoders import open_encoder
        from happywhale_nb.networks.export import export_encoder

        path = "efficientnet_lite0"
        if runtime != "keras":
            path = Path(tempfile.mkdtemp()) / "lite0.onnx"
            export_encoder("efficientnet_lite0", path, "onnx")
            os.environ["HAPPYWHALE_RUNTIME"] = runtime
        encoder, crops = open_encoder(path), batch(quick).repeat(1 if quick else 4, axis=0)
        return lambda: f"{encoder.embed(crops).shape}"

    return prepare


CASES = {
    "20,000 queries, 50,000 known": {
        "argpartition in blocks": by_argpartition,
        "nearest": by_nearest,
        **({"faiss, flat": by_faiss} if has("faiss") else {}),
        "sklearn NearestNeighbors": by_sklearn,
    },
    "photographs of 512 px to 224": {
        "OpenCV": decoded(of_512, opencv),
        "load_crop": decoded(of_512, lambda path: load_crop(path, SIDE)),
    },
    "photographs in full resolution to 224": {
        "OpenCV": decoded(photos, opencv),
        "OpenCV, a quarter's decode": decoded(photos, lambda path: opencv(path, cv2.IMREAD_REDUCED_COLOR_4)),
        "load_crop": decoded(photos, lambda path: load_crop(path, SIDE)),
    },
    "paper's recipe, 64 crops of 224 px": {
        **({"Albumentations": by_albumentations} if has("albumentations") else {}),
        "augment": by_augment,
    },
    "256 crops, EfficientNet-Lite0": {
        "Keras": embedded("keras"),
        **({"OpenVINO": embedded("openvino")} if has("openvino") else {}),
        **({"ONNX Runtime": embedded("onnxruntime")} if has("onnxruntime") else {}),
    },
}

if __name__ == "__main__":
    main(CASES)
