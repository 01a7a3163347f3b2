"""Training keeps its promises: on several devices, on a full disk, stopped early, and with wrong input."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from happywhale_nb.boxes import read_boxes
from happywhale_nb.dataset import read_dataset
from happywhale_nb.embeddings import read_embeddings
from happywhale_nb.paths import UserError, fold_dir
from happywhale_nb.presets import configure
from happywhale_nb.splits import study_folds

SPREAD = """
import json, sys, tempfile
import numpy as np
from happywhale_nb.devices import device_line
from happywhale_nb.fitting import train
from happywhale_nb.presets import configure
import keras

class Losses(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.found = []
    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()
    def on_train_batch_end(self, batch, logs=None):
        self.found.append(float(logs["loss"]))
    def over(self, history): return False
    def finish(self): pass

devices, losses = int(sys.argv[1]), Losses()
changes = f"batch_size={16 // devices} dropout=0 learning_rate=.0002"  # at 10 × the rate rounding errors grow large
config = configure("small_resnet_arcface", epochs=2, image_size=32, changes=changes)
crops = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3)).astype("uint8")
with tempfile.TemporaryDirectory() as tmp:
    train(config, crops, np.arange(80), np.arange(80) % 8, 8, tmp, "stamp", 0, callbacks=[lambda model: losses],
          devices=devices, inside=True)
print("RESULT" + json.dumps({"losses": losses.found, "line": device_line(devices)}))
"""


def spread(devices):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", SPREAD, str(devices)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


def test_eight_devices_train_as_one_does():
    one, eight = spread(1), spread(8)
    assert "8 × cpu" in eight["line"] and "×" not in one["line"]
    assert len(one["losses"]) == len(eight["losses"]) == 10
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)


@pytest.fixture(scope="module")
def crops():
    """Forty-eight crops of eight animals, each animal a colour of its own."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(0, 255, (8, 1, 1, 3))
    return (colours[np.arange(48) % 8] + rng.normal(0, 20, (48, 32, 32, 3))).clip(0, 255).astype(np.uint8)


def fit(crops, folder, epochs=3, changes="", labels=None, **how):
    from happywhale_nb.fitting import train

    labels = np.arange(len(crops)) % 8 if labels is None else labels
    config = configure(
        "small_resnet_arcface", epochs=epochs, image_size=32, changes=f"batch_size=8 backbone=basic_cnn {changes}"
    )
    how = {"save_every": 0.0} | how
    return train(config, crops, np.arange(len(crops)), labels, labels.max() + 1, folder, "stamp", **how)


def test_stopping_early_goes_back_to_the_best_epoch_and_stays_stopped(crops, tmp_path):
    from happywhale_nb.callbacks import EarlyStop

    weights, scores = [], iter([0.2, 0.5, 0.4, 0.3, 0.9, 0.9])

    def score(model):
        weights.append(model.get_weights()[0])
        return next(scores)

    made = [lambda model: EarlyStop(model, tmp_path, score, patience=2)]
    model, history = fit(crops, tmp_path, 6, callbacks=made)
    assert [row["map5"] for row in history] == [0.2, 0.5, 0.4, 0.3]
    assert (model.get_weights()[0] == weights[1]).all() and not list(tmp_path.glob("best*"))
    _, again = fit(crops, tmp_path, 6, callbacks=made)
    assert len(again) == 4 and next(scores) == 0.9, "a stopped training is not taken up again"


def test_snapshots_keep_the_weights_of_their_epoch(crops, tmp_path):
    from happywhale_nb.callbacks import Snapshots

    model, _ = fit(crops, tmp_path, 3, callbacks=[lambda model: Snapshots(model, tmp_path, [2, 3])])
    last = model.get_weights()
    assert sorted(p.name for p in tmp_path.glob("snapshot*")) == ["snapshot2.weights.h5", "snapshot3.weights.h5"]
    model.load_weights(tmp_path / "snapshot2.weights.h5")
    assert any((a != b).any() for a, b in zip(model.get_weights(), last, strict=True))
    model.load_weights(tmp_path / "snapshot3.weights.h5")
    assert all((a == b).all() for a, b in zip(model.get_weights(), last, strict=True))


def test_tensorboard_shows_the_history(crops, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from happywhale_nb.callbacks import TensorBoard

    _, history = fit(crops, tmp_path, 3, callbacks=[lambda model: TensorBoard(tmp_path / "tensorboard")])
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    assert {"loss", "accuracy", "top5", "learning rate"} <= set(events.Tags()["tensors"])
    for name in ("loss", "top5"):
        shown = [(e.step, float(e.tensor_proto.float_val[0])) for e in events.Tensors(name)]
        assert shown == [(row["epoch"], pytest.approx(row[name], abs=1e-6)) for row in history]


def test_a_full_disk_is_said_and_the_last_state_kept(crops, tmp_path):
    fit(crops, tmp_path, 2)
    before = json.loads((tmp_path / "resume.json").read_text())
    from happywhale_nb.callbacks import TrainingState

    model, history = fit(crops, tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"(?s)cannot write .*resume3.*free some space"):
            TrainingState(tmp_path, "stamp").save(model, [*history, {"epoch": 3}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads((tmp_path / "resume.json").read_text()) == before
    assert (tmp_path / before["weights"]).is_file() and not list(tmp_path.glob("*3.weights*"))


def test_an_interrupted_training_of_other_parameters_is_not_overwritten(crops, tmp_path):
    from happywhale_nb.callbacks import TrainingState

    fit(crops, tmp_path, 2)
    with pytest.raises(UserError, match=r"interrupted after epoch 2.*-p name NAME"):
        TrainingState(tmp_path, "another stamp").load(None)


def test_a_photograph_that_vanishes_in_mid_epoch_is_named(crops, tmp_path):
    from happywhale_nb.crops import Crops

    def make(i):
        raise UserError(f"photograph {i} is missing")

    keys = [f"{i:016d}" for i in range(len(crops))]
    with pytest.raises(UserError, match=r"^photograph \d+ is missing$"):
        fit(Crops(tmp_path / "crops", keys, make, 32), tmp_path, 1)


def test_weights_are_taken_from_a_model_of_the_same_backbone_only(crops, tmp_path):
    model, _ = fit(crops, tmp_path / "first", 1, "backbone=small_resnet")
    model.save(tmp_path / "first.keras")
    from happywhale_nb.fitting import build_network

    fresh = configure("small_resnet_arcface", image_size=32, changes=f"weights={tmp_path / 'first.keras'}")
    network = build_network(fresh, classes=5)
    for name in ("stem_conv", "stage4_2_bn"):
        there, here = model.get_layer(name).get_weights(), network.get_layer(name).get_weights()
        assert all((a == b).all() for a, b in zip(there, here, strict=True))
    assert network.get_layer("cosines").table.shape == (5, 512)
    for wrong, message in (
        (f"weights={tmp_path / 'first.keras'} backbone=small_efficientnet", "another backbone"),
        (f"weights={tmp_path / 'none.keras'}", "cannot be read"),
        ("weights=imagenet", "no weights 'imagenet' for small_resnet"),
        (f"weights={tmp_path / 'none.h5'} backbone=efficientnet_b0", "no such file"),
        ("backbone=resnet5", "did you mean 'resnet50'"),
    ):
        with pytest.raises(UserError, match=message):
            build_network(configure("small_resnet_arcface", image_size=32, changes=wrong), classes=5)


def test_imagenet_weights_without_a_network_say_where_to_get_them(monkeypatch):
    import keras

    from happywhale_nb.fitting import build_network

    def refuse(*args, **kwargs):
        raise Exception("URL fetch failure on https://example.org/efficientnetb0_notop.h5: None -- no network")

    monkeypatch.setattr(keras.applications, "EfficientNetB0", refuse)
    with pytest.raises(UserError, match=r"efficientnetb0_notop\.h5.*give its path as weights.*Kaggle"):
        build_network(configure("recommended", image_size=64, changes="backbone=efficientnet_b0"), classes=5)


@pytest.mark.parametrize(
    "changes", ["balance=sampler centres=2 head_rate=10", "balance=weights margin_spread=.05 pool=gem", "sample=9"]
)
def test_every_option_trains(crops, tmp_path, changes):
    labels = np.arange(48) % (8 if "sample" not in changes else 16)
    _, history = fit(crops, tmp_path, 3, changes, labels)
    assert history[2]["loss"] < history[0]["loss"]


def test_the_same_seed_gives_the_same_training(crops, tmp_path):
    (one, _), (same, _), (other, _) = (
        fit(crops, tmp_path / name, 1, seed=int(name[-1])) for name in ("a1", "b1", "c2")
    )
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(one.get_weights(), same.get_weights(), strict=True))
    assert not np.allclose(one.get_weights()[0], other.get_weights()[0], atol=1e-3)


def test_two_individuals_are_the_least(tmp_path):
    import pandas as pd

    from happywhale_nb.train import training_rows

    folds = pd.DataFrame(
        {"image": ["a", "b", "c"], "individual_id": ["x", "x", "y"], "species": ["beluga", "beluga", "orca"]}
    )
    rows, labels, species = training_rows(folds, np.ones(3, bool), configure("small_resnet_arcface"))
    assert rows.tolist() == [0, 1, 2] and labels.tolist() == [0, 0, 1] and species.tolist() == [0, 0, 1]
    with pytest.raises(UserError, match=r"1 individuals of the species 'beluga'.*at least two"):
        training_rows(folds, np.ones(3, bool), configure("beluga_specialist"))


def test_an_embedding_averages_the_crops_of_several_sources(tiny, tmp_path):
    from happywhale_nb.train import train_stage

    dataset = read_dataset(tiny)
    folds = study_folds(dataset, tmp_path, 2, 0)
    config = configure("small_resnet_arcface", quick=True, changes="backbone=basic_cnn", epochs=1)
    mix = f"{read_boxes(tiny)['source'].iloc[0]}:.75 whole:.25"
    one = train_stage(dataset, folds, 0, "one", config, tmp_path)
    two = train_stage(dataset, folds, 0, "two", config, tmp_path, views=mix)
    assert one["parameters"]["views"] == "" and two["parameters"]["views"] == mix
    vectors = [read_embeddings(fold_dir(tmp_path, name, 0) / "embeddings.parquet").vectors for name in ("one", "two")]
    whole = train_stage(dataset, folds, 0, "whole", config, tmp_path, views="whole:1")
    assert whole["result"]["boxes"] == one["result"]["boxes"]  # what was trained on
    vectors.append(read_embeddings(fold_dir(tmp_path, "whole", 0) / "embeddings.parquet").vectors)
    mean = 0.75 * vectors[0] + 0.25 * vectors[2]  # training was the same but for rounding
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert (vectors[1] * mean).sum(1).min() > 0.999 > (vectors[0] * vectors[2]).sum(1).min()
    with pytest.raises(UserError, match="a share for each source"):
        train_stage(dataset, folds, 0, "none", config, tmp_path, views="whole")
