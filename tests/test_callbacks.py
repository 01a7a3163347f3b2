"""Between the epochs of a training, on a network of 35 numbers: states, snapshots, early stop, deadline, bars."""

import json
import resource
from contextlib import nullcontext
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.networks.callbacks import (
    Checkpoint,
    Deadline,
    DropoutSeeds,
    EarlyStop,
    ProgressBar,
    Snapshots,
    TensorBoard,
    TrainingState,
    Unfinished,
)
from happywhale_nb.networks.heads import CosineClassifier
from happywhale_nb.networks.presets import configure
from happywhale_nb.networks.training import TrainingData, TrainingOptions, build_targets, epoch_orders, fit_network

ROWS = np.arange(32)


@pytest.fixture
def network():
    """A compiled network of ten numbers that nobody trains."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    return model


def fit(folder, epochs=3, make=(), stamp="stamp"):
    """Train a small network, drop-out included, on 32 crops of four animals; callbacks are made for it by `make`."""
    keras.utils.set_random_seed(0)
    crops = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 3)).astype("uint8")
    pixels = keras.Input((4, 4, 3), name="pixels")
    means = keras.layers.GlobalAveragePooling2D(name="features")(keras.layers.Rescaling(1 / 128, -1)(pixels))
    vector = keras.layers.Dense(5, name="embedding")(keras.layers.Dropout(0.3)(means))
    model = keras.Model({"pixels": pixels}, {"cosines": CosineClassifier(3, name="cosines")(vector)})
    config = configure("small_resnet_arcface", epochs=epochs, overrides="batch_size=8 recipe=none learning_rate=.05")
    targets, orders = build_targets(config, ROWS % 3, 3), epoch_orders(32, epochs, 8, 0)
    folder.mkdir(exist_ok=True)
    made = [one(model) for one in make]
    history = fit_network(
        model,
        config,
        TrainingData(crops, ROWS, targets, orders, 8),
        TrainingState(folder, stamp),
        made,
        TrainingOptions(save_every=0.0),
    )
    return model, history


def equal(one, two, **how):
    """Whether two lists of weights are the same."""
    return all(np.allclose(a, b, **how) for a, b in zip(one, two, strict=True))


# --- states to go on from


def test_fit_network_interrupted_by_a_deadline_goes_on_and_ends_with_the_weights_of_a_whole_training(tmp_path):
    def score(model):
        return float(np.abs(model.get_weights()[0]).sum())

    def stop(folder):
        return lambda model: EarlyStop(model, folder, score, patience=9)

    whole, history = fit(tmp_path / "whole", make=[stop(tmp_path / "whole")])
    parts = tmp_path / "parts"
    for epoch in (1, 2):
        with pytest.raises(Unfinished, match=f"after epoch {epoch} of 3"):
            fit(parts, make=[lambda model: Deadline(1e-9), stop(parts)])
        assert (parts / "best.weights.h5").is_file() and (parts / f"resume{epoch}.weights.h5").is_file()
    model, again = fit(parts, make=[lambda model: Deadline(1), stop(parts)])
    assert [row["epoch"] for row in again] == [1, 2, 3] and (parts / "best.weights.h5").is_file()
    TrainingState(parts, "stamp").clear()
    assert not (parts / "best.weights.h5").exists()
    for a, b in zip(history, again, strict=True):
        assert (a["loss"], a["map5"]) == pytest.approx((b["loss"], b["map5"]), rel=1e-5)
    assert equal(whole.get_weights(), model.get_weights(), atol=1e-6)


def test_TrainingState_on_a_full_disk_says_so_and_keeps_the_last_state(tmp_path):
    state, history = TrainingState(tmp_path, "stamp"), [{"epoch": 1}, {"epoch": 2}]
    network = keras.Sequential([keras.Input((300,)), keras.layers.Dense(200)])  # HDF5 itself fails on smaller files
    network.compile("sgd", "mse")
    state.save(network, history)
    before, weights = json.loads((tmp_path / "resume.json").read_text()), network.get_weights()
    network.set_weights([weight + 1 for weight in weights])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"(?s)cannot write .*resume3.*free some space"):
            state.save(network, [*history, {"epoch": 3}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads((tmp_path / "resume.json").read_text()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resume.json", "resume2.weights.h5"]
    assert state.load(network) == history and equal(network.get_weights(), weights)


def test_TrainingState_of_other_parameters_is_not_taken_up_nor_overwritten(network, tmp_path):
    TrainingState(tmp_path, "stamp").save(network, [{"epoch": 1}, {"epoch": 2}])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"interrupted after epoch 2.*-p name NAME"):
        fit(tmp_path, 4, stamp="another stamp")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_TrainingState_keeps_the_last_weights_only_and_clears_its_own_files_only(network, tmp_path):
    (tmp_path / "model.weights.h5").touch()
    state = TrainingState(tmp_path, "stamp")
    assert state.load(network) == []
    for epochs in (1, 2, 3):
        state.save(network, [{"epoch": n + 1} for n in range(epochs)])
    left = ["model.weights.h5", "resume.json", "resume3.weights.h5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    state.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["model.weights.h5"]


class States:
    """In place of a `TrainingState`: how many epochs each state has."""

    def __init__(self):
        self.saved = []

    def save(self, model, history):
        """Note the number of epochs."""
        self.saved.append(len(history))


@pytest.fixture
def clock(monkeypatch):
    """A clock that callbacks read and tests set, `clock.now` in seconds."""
    clock = SimpleNamespace(now=100.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr("happywhale_nb.networks.callbacks.time", clock)
    return clock


def test_Checkpoint_saves_after_so_many_seconds_and_when_told_to_stop(network, clock):
    keeper = Checkpoint(States(), every=30.0)
    keeper.set_model(network)
    keeper.on_train_begin()
    for epoch, seconds in enumerate((10, 19, 1, 20, 5)):  # 30 are over after the third epoch
        keeper.on_epoch_begin(epoch)
        clock.now += seconds
        network.stop_training = epoch == 4
        keeper.on_epoch_end(epoch, {"loss": 1.5, "cosines_top5": 0.5})
    assert keeper.state.saved == [3, 5]
    assert keeper.history[1] == {"epoch": 2, "loss": 1.5, "top5": 0.5, "seconds": 19}


def test_Checkpoint_of_a_loss_that_is_no_number_names_the_epoch_and_saves_nothing(network):
    keeper = Checkpoint(States(), every=0.0)
    keeper.set_model(network)
    keeper.on_train_begin()
    keeper.on_epoch_begin(1)
    with pytest.raises(UserError, match=r"the loss is nan in epoch 2: lower the preset's learning rate"):
        keeper.on_epoch_end(1, {"loss": float("nan")})
    assert keeper.state.saved == []


def test_DropoutSeeds_seeds_drop_out_by_seed_and_epoch_also_in_models_within_the_model():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5)])
    pixels = keras.Input((4,))
    model = keras.Model(pixels, keras.layers.Dropout(0.5)(inner(pixels)))
    keeper = DropoutSeeds(seed=7)
    keeper.set_model(model)
    keeper.on_epoch_begin(3)
    states = [layer.seed_generator.state for layer in (inner.layers[-1], model.layers[-1])]
    assert [keras.ops.convert_to_numpy(state).tolist() for state in states] == [[7, 3], [7, 3]]


# --- watchers


def test_EarlyStop_goes_back_to_the_best_epoch_and_stays_stopped(tmp_path):
    weights, scores = [], iter([0.2, 0.5, 0.4, 0.5, 0.9, 0.9])

    def score(model):
        weights.append(model.get_weights()[0])
        return next(scores)

    made = [lambda model: EarlyStop(model, tmp_path, score, patience=2)]
    model, history = fit(tmp_path, 6, made)
    assert [row["map5"] for row in history] == [0.2, 0.5, 0.4, 0.5]  # as good as the best is not better
    assert (model.get_weights()[0] == weights[1]).all() and not (weights[1] == weights[3]).all()
    assert (tmp_path / "best.weights.h5").is_file(), "for a stop before the results are written"
    _, again = fit(tmp_path, 6, made)
    assert len(again) == 4 and next(scores) == 0.9, "a stopped training is not taken up again"


def test_EarlyStop_waits_again_after_a_better_epoch(network, tmp_path):
    scores = iter([0.1, 0.0, 0.3, 0.2, 0.1, 0.9])
    stop = EarlyStop(network, tmp_path, lambda model: next(scores), patience=2)
    stop.set_model(network)
    stopped = []
    for epoch in range(5):
        stop.on_epoch_end(epoch, {"loss": 1.0})
        stopped.append(network.stop_training)
    assert stopped == [False, False, False, False, True] and stop.patience.best == 0.3


def test_EarlyStop_without_a_score_is_refused_and_without_a_loss_does_not_look(network, tmp_path):
    stop = EarlyStop(network, tmp_path, lambda model: float("nan"), patience=2)
    stop.set_model(network)
    stop.on_epoch_end(0, {"loss": float("inf")})  # `Checkpoint` raises the error
    with pytest.raises(UserError, match="patience needs photographs of known individuals in the fold"):
        stop.on_epoch_end(0, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_Snapshots_keep_the_weights_of_their_epochs(network, tmp_path):
    keeper = Snapshots(network, tmp_path, [2, 3])
    keeper.set_model(network)
    seen = {}
    for epoch in range(4):
        network.set_weights([np.full_like(weight, epoch + 1) for weight in network.get_weights()])
        seen[epoch + 1] = network.get_weights()
        keeper.on_epoch_end(epoch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot2.weights.h5", "snapshot3.weights.h5"]
    for epoch in (2, 3):
        network.load_weights(keeper.path(epoch))
        assert equal(network.get_weights(), seen[epoch], atol=0)


def test_TensorBoard_shows_the_history(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = [
        lambda model: EarlyStop(model, tmp_path, lambda model: 0.25, patience=9),
        lambda model: TensorBoard(tmp_path / "tensorboard"),
    ]
    _, history = fit(tmp_path, make=made)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    assert set(events.Tags()["tensors"]) == {"loss", "accuracy", "top5", "map5", "learning rate"}
    for name in ("loss", "accuracy", "top5", "map5"):
        shown = [(e.step, float(e.tensor_proto.float_val[0])) for e in events.Tensors(name)]
        assert shown == [(row["epoch"], pytest.approx(row[name], abs=1e-6)) for row in history]
    assert len(events.Tensors("learning rate")) == 3


def test_TensorBoard_without_a_folder_writes_nothing(network, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    watcher = TensorBoard(None)
    watcher.set_model(network)
    watcher.on_epoch_end(0, {"loss": 1.0})
    watcher.on_train_end()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("hours", "epochs"), [(1.0, 4), (0.99, 3), (0.8, 2), (1e-9, 1), (2.0, 5)])
def test_Deadline_stops_where_no_other_epoch_as_long_as_the_longest_would_fit(network, clock, hours, epochs):
    limit, seconds = Deadline(hours), [600, 1200, 600, 600, 600]
    limit.set_model(network)
    limit.set_params({"epochs": 5})
    limit.on_train_begin()
    done = 0
    while done < 5 and not network.stop_training:
        clock.now += seconds[done]
        limit.on_epoch_end(done)
        done += 1
    assert done == epochs and network.stop_training == (epochs < 5)
    expected = pytest.raises(Unfinished, match=f"after epoch {epochs} of 5, before the limit of {hours:g} hours")
    with expected if epochs < 5 else nullcontext():
        limit.finish()


def test_Deadline_of_crops_that_grow_leaves_time_for_the_larger_ones(network, clock):
    limit = Deadline(1.0, [0.25, 0.25, 0.25, 1.0])
    limit.set_model(network)
    limit.set_params({"epochs": 4})
    limit.on_train_begin()
    stopped = []
    for epoch in range(3):
        clock.now += 700  # 2100 seconds are over, and one of 2800 would not fit into the rest of the hour
        limit.on_epoch_end(epoch)
        stopped.append(network.stop_training)
    assert stopped == [False, False, True]


def test_Deadline_after_the_last_epoch_has_nothing_to_stop_and_before_the_first_is_refused(network, clock):
    limit = Deadline(1e-9)
    limit.set_model(network)
    limit.set_params({"epochs": 1})
    limit.on_train_begin()
    clock.now += 600
    limit.on_epoch_end(0)
    limit.finish()
    assert not network.stop_training
    with pytest.raises(UserError, match="max_hours=-1: a number above 0"):
        Deadline(-1)


def test_ProgressBar_where_nobody_looks_writes_a_line_an_epoch(network, clock, capsys, monkeypatch):
    monkeypatch.setattr("happywhale_nb.networks.callbacks.is_interactive", lambda: False)
    shown = ProgressBar(epochs=5, steps=30, done=2)
    shown.set_model(network)
    for epoch in (2, 3):
        clock.now += 60
        shown.on_epoch_end(epoch, {"loss": 1.234, "cosines_top5": 0.5, "map5": 0.25})
    shown.on_train_end()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "epoch 3/5, loss 1.23, top-5 0.50, MAP@5 0.250, 0.5 steps/s, 2 min left",
        "epoch 4/5, loss 1.23, top-5 0.50, MAP@5 0.250, 0.5 steps/s, 1 min left",
    ]
    shown = ProgressBar(epochs=5, steps=30, costs=[0.25, 0.25, 0.25, 1, 1])
    shown.set_model(network)
    clock.now += 60
    shown.on_epoch_end(0, {"loss": 1.234, "cosines_top5": 0.5})
    assert capsys.readouterr().err.endswith("0.5 steps/s, 10 min left\n")
