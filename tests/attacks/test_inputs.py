"""Photographs and tables that change under a study: the same name and size, another content."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.data.replaced import REPLACED, read_replaced, revision, write_replaced
from happywhale_nb.data.seen_photos import SEEN, check_seen, keep_seen
from happywhale_nb.imaging.crops import load_crops
from happywhale_nb.workflow.study import study_jobs


@pytest.fixture
def seen(tiny_copy, tmp_path):
    """A data folder whose photographs a study has seen, and the folder of the study."""
    folder = tmp_path / "study"
    look(tiny_copy, folder)
    return tiny_copy, folder


def look(root, folder):
    """What a run does at its start. Returns the names of the photographs that were replaced."""
    dataset = read_dataset(root, need_photos=False)
    result = check_seen(dataset, folder)
    keep_seen(result, dataset, folder)
    return list(result.changed)


def replace_photo(path, other, later=True):
    """Give a photograph the content of another one, filled up or cut to the same size: JPEGs end where they end."""
    size, times = path.stat().st_size, path.stat()
    path.write_bytes(other.read_bytes()[:size].ljust(size, b"\0"))
    if later:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))


def two_photos(root):
    """Two training photographs, the second not larger than the first."""
    paths = sorted((root / "train_images").iterdir(), key=lambda path: -path.stat().st_size)
    return paths[0], paths[-1]


def crops(path, folder):
    chosen = pd.DataFrame({name: [np.nan] for name in ("x0", "y0", "x1", "y1", "W", "H")})
    return load_crops([path], chosen, 32, folder)


def test_a_replaced_photograph_of_the_same_size_changes_fingerprint_and_crop(seen, tmp_path):
    root, folder = seen
    photo, other = two_photos(root)
    before, crop, original = read_dataset(root).fingerprint, crops(photo, tmp_path), photo.read_bytes()
    assert look(root, folder) == [] and not (root / REPLACED).exists()
    replace_photo(photo, other)
    assert read_dataset(root).fingerprint == before, "its size is the same"
    assert look(root, folder) == [photo.name] and look(root, folder) == []
    assert read_dataset(root).fingerprint != before
    assert (crops(photo, tmp_path) != crop).any() and (crops(photo, tmp_path) == crops(other, tmp_path)).all()
    assert revision(photo) and not revision(other)
    photo.write_bytes(original)
    os.utime(photo, ns=(10**18, 10**18))
    assert look(root, folder) == [photo.name] and not (root / REPLACED).exists(), "it is the first one again"
    assert read_dataset(root).fingerprint == before and (crops(photo, tmp_path) == crop).all()


def test_all_jobs_of_a_study_are_others_after_a_photograph_was_replaced(seen, checkout, monkeypatch):
    root, folder = seen
    monkeypatch.chdir(checkout)
    content = {"data_dir": str(root), "study": "replaced", "folds": 2, "models": {"basic_cnn": {}}}
    before = [job.done_file for job in study_jobs(content)[1]]
    replace_photo(*two_photos(root))
    look(root, folder)
    assert not set(before) & {job.done_file for job in study_jobs(content)[1]}


def test_copied_data_are_hashed_once_and_nothing_has_changed(seen, tmp_path):
    root, folder = seen
    before = read_dataset(root).fingerprint
    for path in (root / "train_images").iterdir():
        os.utime(path)
    dataset = read_dataset(root)
    assert check_seen(dataset, folder).is_new and look(root, folder) == [] and not check_seen(dataset, folder).is_new
    copy = Path(shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile))
    assert look(copy, folder) == [] and read_dataset(copy).fingerprint == before


def test_a_second_study_and_a_copy_of_the_data_know_of_the_replacement(seen, tmp_path):
    root, folder = seen
    photo, other = two_photos(root)
    second = tmp_path / "second"
    look(root, second)
    replace_photo(photo, other)
    assert look(root, folder) == [photo.name]
    now = read_dataset(root).fingerprint
    assert look(root, second) == [photo.name] and read_dataset(root).fingerprint == now
    assert look(root, tmp_path / "third") == [] and read_dataset(root).fingerprint == now
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    assert read_dataset(copy).fingerprint == now


def test_a_photograph_of_another_size_leaves_the_table(seen):
    root, folder = seen
    photo, other = two_photos(root)
    replace_photo(photo, other)
    look(root, folder)
    assert read_replaced(root)
    photo.write_bytes(other.read_bytes())
    assert look(root, folder) == [] and not read_replaced(root)


def test_photographs_that_come_and_go_are_no_replacements(seen):
    root, folder = seen
    table = pd.read_csv(root / "train.csv", dtype=str)
    gone = root / "train_images" / table["image"][0]
    table.iloc[1:].to_csv(root / "train.csv", index=False)
    assert look(root, folder) == [] and len(pd.read_parquet(folder / SEEN)) == len(table) - 1 + 10
    table.to_csv(root / "train.csv", index=False)
    assert look(root, folder) == [] and gone.is_file()


@pytest.mark.parametrize("spoilt", [b"", b"PAR1", b"not a table"])
def test_a_damaged_table_of_seen_photographs_is_made_anew(seen, spoilt):
    root, folder = seen
    (folder / SEEN).write_bytes(spoilt)
    assert look(root, folder) == [] and len(pd.read_parquet(folder / SEEN)) == 58


def test_a_damaged_table_of_replaced_photographs_is_one_line(tiny_copy):
    (tiny_copy / REPLACED).write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"replaced\.csv is not a table of part, image, first, sha256"):
        read_dataset(tiny_copy)
    write_replaced(tiny_copy, {("train", 'a "b", ü.jpg'): ("0", "1")})
    assert read_replaced(tiny_copy) == {("train", 'a "b", ü.jpg'): ("0", "1")}


@pytest.mark.soak
@pytest.mark.slow
def test_fifty_thousand_photographs_are_compared_in_seconds(tmp_path):
    root = tmp_path / "data"
    (root / "train_images").mkdir(parents=True)
    names = [f"{i:05}.jpg" for i in range(50_000)]
    for name in names:
        (root / "train_images" / name).write_bytes(name.encode() * 100)
    table = pd.DataFrame(
        {"image": names, "species": "beluga", "individual_id": [f"w{i % 5000}" for i in range(50_000)]}
    )
    table.to_csv(root / "train.csv", index=False)
    dataset, times = read_dataset(root), []
    for _ in range(2):
        began = time.monotonic()
        keep_seen(check_seen(dataset, tmp_path / "study"), dataset, tmp_path / "study")
        times.append(time.monotonic() - began)
    print(f"first {times[0]:.1f} s, then {times[1]:.1f} s")
    assert times[0] < 60 and times[1] < 10
