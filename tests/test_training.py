"""Training on crops of 16 pixels: what a preset asks for is built and learnt, the same seed gives the same network, and
what cannot be done is said."""

import json
import os
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.core.paths import fold_dir
from happywhale_nb.data.dataset import TABLES, read_dataset
from happywhale_nb.imaging.crops import Crops
from happywhale_nb.networks.backbones import BACKBONES
from happywhale_nb.networks.batches import BatchReader
from happywhale_nb.networks.callbacks import Deadline, TrainingCallback, Unfinished
from happywhale_nb.networks.embedder import embed_folder
from happywhale_nb.networks.heads import CosineClassifier
from happywhale_nb.networks.model import (
    build_encoder,
    build_network,
    build_optimizer,
    class_centres,
    compile_trainer,
    embed,
    inference_model,
    mirror_axis,
    resized,
)
from happywhale_nb.networks.presets import configure
from happywhale_nb.networks.schedules import RATE_PER_PHOTO, WarmupCosine, WarmupExponential
from happywhale_nb.networks.targets import SPECIES_MARGIN, class_margins
from happywhale_nb.networks.training import Samples, TrainingOptions, build_targets, train
from happywhale_nb.retrieval.embeddings import read_embeddings
from happywhale_nb.stages import fold_training as training
from happywhale_nb.stages.fold_callbacks import build_callbacks
from happywhale_nb.stages.study_split import study_folds
from happywhale_nb.stages.train import train_stage

SMALL = "backbone=two_layers embedding=16 batch_size=8 learning_rate=0.01"


def two_layers(pixels, momentum=0.9):
    """A backbone of some hundred numbers: maps of a quarter and an eighth of the side."""
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(pixels)
    first = keras.layers.Conv2D(6, 4, 4, activation="relu", name="first")(scaled)
    return [first, keras.layers.Conv2D(8, 2, 2, activation="relu", name="second")(first)]


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    """Presets find `two_layers` by its name."""
    monkeypatch.setitem(BACKBONES, "two_layers", two_layers)
    monkeypatch.setitem(BACKBONES, "with_norms", with_norms)


def small(overrides="", epochs=3):
    """A preset whose training takes a second."""
    return replace(configure("small_resnet_arcface", epochs=epochs, overrides=f"{SMALL} {overrides}"), image_size=16)


def with_norms(pixels, momentum=0.9):
    """`two_layers` and a BatchNorm."""
    first, second = two_layers(pixels, momentum)
    return [first, keras.layers.BatchNormalization(momentum=momentum, name="norm")(second)]


def photographs(n=48, animals=8):
    """Crops of animals, each animal a colour of its own."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(0, 255, (animals, 1, 1, 3))
    return (colours[np.arange(n) % animals] + rng.normal(0, 20, (n, 16, 16, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def crops():
    """Forty-eight crops of eight animals."""
    return photographs()


def fit(crops, folder, config, classes=8, **options):
    """`train` on all crops, every `classes`-th of one animal, every second of one species."""
    rows = np.arange(len(crops))
    return train(config, Samples(crops, rows, rows % classes, classes, rows % 2), folder, "stamp", **options)


def test_train_with_the_same_seed_gives_the_same_weights_and_with_another_others(crops, tmp_path):
    (one, _), (same, _), (other, _) = (
        fit(crops, tmp_path / name, small(epochs=1), seed=int(name[-1])) for name in ("a1", "b1", "c2")
    )
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(one.get_weights(), same.get_weights(), strict=True))
    assert not np.allclose(one.get_weights()[0], other.get_weights()[0], atol=1e-3)


@pytest.mark.parametrize("overrides", ["", "species_loss_weight=.5", "pool=parts parts=2 sampled_classes=9"])
def test_train_traces_its_step_once(crops, tmp_path, monkeypatch, overrides):
    traced, step = [], keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda self, data: traced.append(self) or step(self, data))
    fit(crops, tmp_path, small(overrides, epochs=1), 16)
    assert len(traced) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        "balance=sampler centres=2 head_lr_multiplier=10",
        "balance=weights margin_spread=.05 pool=gem",
        "sampled_classes=9",
        "pool=gem2 centres=2 species_loss_weight=.5 margin_spread=.02 margin_ramp=1",
        "pool=parts parts=2 mirror_as_classes=true species_loss_weight=.5",
    ],
)
def test_train_with_options_lowers_the_loss_and_saves_the_same_network(crops, tmp_path, overrides):
    classes, options = 16 if "sample" in overrides else 8, TrainingOptions(inside="pool" in overrides)
    model, history = fit(crops, tmp_path, small(overrides), classes, options=options)
    losses = [row["loss"] for row in history]
    assert np.isfinite(losses).all() and losses[2] < losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    one, two = (keras.Model(m.input, [m.get_layer("embedding").output, m.output]) for m in (model, again))
    for here, there in zip(one(crops.astype("float32")), two(crops.astype("float32")), strict=True):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (here, there)), atol=1e-5)


def test_train_of_a_photograph_that_vanishes_names_it(tmp_path):
    def make(i):
        raise UserError(f"photograph {i} is missing")

    vanished = Crops(tmp_path / "crops", [f"{i:016d}" for i in range(48)], make, 16)
    with pytest.raises(UserError, match=r"^photograph \d+ is missing$"):
        fit(vanished, tmp_path, small(epochs=1))


# --- fine-tuning


class Sizes(TrainingCallback):
    """Notes the height of the crops of each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        """Note that of this epoch."""
        self.seen.append(self.model.input["pixels"].shape[1])


def growing():
    """A preset with two epochs on crops of 8 pixels and one on 16; its BatchNorm stays, its backbone waits."""
    config = small("backbone=with_norms recipe=small frozen_epochs=.5")
    return replace(config, early_size=8, late_epochs=1, freeze_bn=True)


@pytest.mark.soak
@pytest.mark.trains
@pytest.mark.parametrize("inside", [pytest.param(False, marks=pytest.mark.soak), True])
def test_train_on_growing_crops_stopped_after_each_epoch_ends_with_the_weights_of_a_whole_training(
    crops, tmp_path, inside
):
    options, sizes, stopped = TrainingOptions(save_every=0, inside=inside), Sizes(), Sizes()
    whole, history = fit(crops, tmp_path / "whole", growing(), callbacks=[lambda model: sizes], options=options)
    for epoch in (1, 2):
        with pytest.raises(Unfinished, match=f"after epoch {epoch} of 3"):
            made = [lambda model: Deadline(1e-9), lambda model: stopped]
            fit(crops, tmp_path / "parts", growing(), callbacks=made, options=options)
        assert (tmp_path / "parts" / f"resume{epoch}.weights.h5").is_file()
    model, again = fit(crops, tmp_path / "parts", growing(), callbacks=[lambda model: stopped], options=options)
    assert sizes.seen == stopped.seen == [8, 8, 16]
    assert [row["epoch"] for row in again] == [1, 2, 3]
    np.testing.assert_allclose([row["loss"] for row in again], [row["loss"] for row in history], rtol=1e-4)
    for one, two in zip(whole.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_train_in_its_frozen_epochs_changes_nothing_before_the_embedding(crops, tmp_path):
    config = small("frozen_epochs=1 weight_decay=.1", epochs=2)
    keras.utils.set_random_seed(0)
    start = build_network(config, classes=8)
    model, _ = fit(crops, tmp_path / "one", replace(config, epochs=1))
    for name, same in (("first", True), ("second", True), ("embedding", False), ("cosines", False)):
        before, after = start.get_layer(name).get_weights()[0], model.get_layer(name).get_weights()[0]
        assert (before == after).all() == same, name
    model, _ = fit(crops, tmp_path / "two", config)
    assert not (start.get_layer("first").get_weights()[0] == model.get_layer("first").get_weights()[0]).any()


@pytest.mark.parametrize(("stride", "moved"), [(0, ["first", "second"]), (4, ["second"])])
def test_train_with_a_frozen_stride_changes_the_layers_behind_it_only(crops, tmp_path, stride, moved):
    config = small(f"weight_decay=.1 frozen_stride={stride} weights=mine.keras", epochs=1)
    config = replace(config, weights="")  # from the same random weights
    keras.utils.set_random_seed(0)
    start = build_network(config, classes=8)
    model, _ = fit(crops, tmp_path, config)
    kernels = {name: [each.get_layer(name).get_weights()[0] for each in (start, model)] for name in ("first", "second")}
    assert [name for name, (before, after) in kernels.items() if not (before == after).all()] == moved


@pytest.mark.trains
def test_train_with_frozen_norms_changes_none_of_their_numbers_and_stores_them_frozen(crops, tmp_path):
    config = small("backbone=with_norms", epochs=1)
    learnt, _ = fit(crops, tmp_path / "free", config)
    frozen, _ = fit(crops, tmp_path / "frozen", replace(config, freeze_bn=True))
    norms = [model.get_layer("norm").get_weights() for model in (learnt, frozen)]
    assert [np.unique(numbers).tolist() for numbers in norms[1]] == [[1], [0], [0], [1]]
    assert not any(np.allclose(*pair, atol=1e-4) for pair in zip(*norms, strict=True))
    assert frozen.get_layer("neck_bn").trainable and frozen.get_layer("neck_bn").get_weights()[2].any()
    frozen.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert not again.get_layer("norm").trainable
    np.testing.assert_allclose(again.predict(crops, verbose=0), frozen.predict(crops, verbose=0), atol=1e-5)


@pytest.mark.parametrize(("word", "axis"), [("top", 1), ("side", 2)])
def test_mirror_as_classes_makes_the_images_mirrored_along_its_axis_another_class(word, axis):
    crops, rows = np.random.default_rng(0).integers(0, 256, (10, 6, 8, 3)).astype(np.uint8), np.arange(10)
    config = small(f"recipe=none mirror_as_classes={word}")
    targets = build_targets(config, rows, 10)
    reader = BatchReader([(1.0, crops)], rows, targets, (), seed=5)
    batch = dict(zip(reader.arrays(), reader.read(rows, 0), strict=True))
    mirrored = batch["cosines"][:, 0] >= 10
    assert 0 < mirrored.sum() < 10 and mirror_axis(config) == axis
    np.testing.assert_array_equal(batch["pixels"][mirrored], np.flip(crops, axis)[mirrored])
    np.testing.assert_array_equal(batch["pixels"][~mirrored], crops[~mirrored])


def test_resized_of_a_network_for_one_size_says_so():
    network = build_network(configure("small_resnet_arcface", overrides="backbone=vit_s"), classes=3)
    with pytest.raises(UserError, match=r"vit_s takes crops of one size only, \(64, 64\): give early_size=0"):
        resized(network, (32, 32))


# --- what a preset's fields become


def test_build_targets_of_a_preset_have_its_margins_ramp_twins_and_weights():
    labels, species = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 0, 0, 1, 1])
    fields = "margin=.2 margin_power=.5 margin_floor=.1 margin_spread=.03 margin_ramp=1.5"
    fields += " mirror_as_classes=true balance=weights"
    found = build_targets(small(f"{fields} sampled_classes=9"), labels, 4, species, steps=7, seed=3)
    margins = class_margins(np.array([3, 1, 2, 0]), 0.2, 0.5, 0.1)
    np.testing.assert_array_equal(found.margins, np.r_[margins, margins])
    np.testing.assert_array_equal(found.species_margins, class_margins(np.array([4, 2]), **SPECIES_MARGIN))
    assert (found.ramp, found.spread, found.twins, found.sample, found.seed) == (10, 0.03, 4, 9, 3)
    assert found.weights.argmax() == 3 and found.species.tolist() == species.tolist()
    plain = build_targets(small(), labels, 4)
    assert (plain.weights, plain.species, plain.twins, plain.ramp, len(plain.margins)) == (None, None, 0, 0, 4)


def test_build_optimizer_gives_the_head_its_rate_and_bounds_the_warm_up():
    config = small("head_lr_multiplier=10 weight_decay=.01 warmup=2", epochs=4)
    network = build_network(config, classes=5)
    optimizer = build_optimizer(config, network, steps=6, size=8)
    body = {variable.path for name in ("first", "second") for variable in network.get_layer(name).variables}
    assert optimizer.head == {variable.path for variable in network.trainable_variables} - body and len(body) == 4
    assert (optimizer.head_lr_multiplier, optimizer.weight_decay) == (10, 0.01)
    rates = optimizer._learning_rate
    assert type(rates) is WarmupCosine and (rates.peak, rates.total, rates.warmup) == (0.01, 24, 6)  # a quarter at most
    paper = build_optimizer(small("schedule=paper learning_rate=0 warmup=2", epochs=20), network, 6, 32)._learning_rate
    assert type(paper) is WarmupExponential
    assert (paper.peak, paper.total, paper.warmup, paper.hold) == (RATE_PER_PHOTO * 32, 120, 12, 6)


def test_compile_trainer_shares_the_loss_between_individuals_and_species(crops):
    config = small("species_loss_weight=.25 arcface_scale=7 label_smoothing=.1")
    network = build_network(config, classes=8, species=2)
    compile_trainer(network, config, build_optimizer(config, network, 6, 8))
    asked = {"cosines": np.tile(np.float32([1, 0.3]), (8, 1)), "species": np.tile(np.float32([0, 0.2]), (8, 1))}
    cosines = network({"pixels": crops[:8].astype("float32")})
    each = {name: float(network.loss[name](asked[name], cosines[name])) for name in asked}
    assert {name: loss.scale for name, loss in network.loss.items()} == {"cosines": 7, "species": 33.14}
    assert {loss.label_smoothing for loss in network.loss.values()} == {0.1}
    total = float(network.compute_loss(None, asked, cosines, None))
    assert total == pytest.approx(0.75 * each["cosines"] + 0.25 * each["species"], rel=1e-4)


def test_mirror_axis_is_the_one_along_which_training_mirrors():
    assert mirror_axis(small("recipe=small")) == 2 and mirror_axis(small("recipe=aligned")) is None
    assert mirror_axis(small("recipe=aligned mirror_as_classes=true")) == 1


@pytest.mark.parametrize("axis", [1, 2])
def test_build_encoder_with_a_mirror_axis_gives_a_crop_and_its_mirror_image_the_same_embedding(crops, axis):
    network = build_encoder(inference_model(build_network(small(), classes=8)), mirror=axis)
    one, two, other = (
        keras.ops.convert_to_numpy(network(pixels.astype("float32")))
        for pixels in (crops, np.flip(crops, axis), np.flip(crops, 3 - axis))
    )
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert not np.allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)


def test_inference_model_of_parts_gives_the_mean_of_the_parts_cosines(crops):
    network = build_network(small("pool=parts parts=2"), classes=8)
    pixels = crops.astype("float32")
    parts = keras.ops.convert_to_numpy(network({"pixels": pixels})["cosines"])
    assert parts.shape == (48, 4, 8)
    np.testing.assert_allclose(inference_model(network)(pixels), parts.mean(axis=1), atol=1e-5)


# --- weights to start from


def test_build_network_takes_weights_of_a_model_of_the_same_backbone_only(tmp_path):
    keras.utils.set_random_seed(1)
    config = configure("small_resnet_arcface", overrides="backbone=tiny_resnet")
    model = inference_model(build_network(config, classes=8))
    model.set_weights([weight + np.random.default_rng(0).uniform(0.1, 1) for weight in model.get_weights()])
    model.save(tmp_path / "first.keras")
    start = f"backbone=tiny_resnet weights={tmp_path / 'first.keras'}"
    network = build_network(configure("small_resnet_arcface", image_size=32, overrides=start), classes=5)
    for name in ("stem_conv", "stage4_2_bn"):
        there, here = model.get_layer(name).get_weights(), network.get_layer(name).get_weights()
        assert all((a == b).all() for a, b in zip(there, here, strict=True))
    assert network.get_layer("cosines").table.shape == (5, 512)
    assert (network.get_layer("embedding").get_weights()[1] == 0).all()  # the neck begins anew
    for wrong, message in (
        (f"weights={tmp_path / 'first.keras'} backbone=basic_cnn", "another backbone"),
        (f"weights={tmp_path / 'first.keras'} backbone=small_resnet", "another backbone: its layer 'stem_conv'"),
        (f"weights={tmp_path / 'none.keras'}", "cannot be read"),
        ("weights=imagenet", "no weights 'imagenet' for small_resnet"),
        (f"weights={tmp_path / 'none.h5'} backbone=efficientnet_b0", "no such file"),
        ("backbone=resnet5", "did you mean 'resnet50'"),
    ):
        with pytest.raises(UserError, match=message):
            build_network(configure("small_resnet_arcface", image_size=32, overrides=wrong), classes=5)


def test_build_network_with_imagenet_weights_and_no_internet_says_where_to_get_them(monkeypatch):
    def refuse(*args, **kwargs):
        raise Exception("URL fetch failure on https://example.org/efficientnetb0_notop.h5: None -- no network")

    monkeypatch.setattr(keras.applications, "EfficientNetB0", refuse)
    with pytest.raises(UserError, match=r"efficientnetb0_notop\.h5.*give its path as weights.*Kaggle"):
        build_network(configure("recommended", image_size=64, overrides="backbone=efficientnet_b0"), classes=5)


# --- the stage


def test_training_rows_of_fewer_than_two_individuals_are_refused():
    folds = pd.DataFrame(
        {"image": ["a", "b", "c"], "individual_id": ["x", "x", "y"], "species": ["beluga", "beluga", "orca"]}
    )
    rows, labels, species = training.training_rows(folds, np.ones(3, bool), configure("small_resnet_arcface"))
    assert rows.tolist() == [0, 1, 2] and labels.tolist() == [0, 0, 1] and species.tolist() == [0, 0, 1]
    with pytest.raises(UserError, match=r"1 individuals of the species 'beluga'.*at least two"):
        training.training_rows(folds, np.ones(3, bool), configure("beluga_specialist"))


def test_build_callbacks_of_impossible_snapshots_or_in_several_processes_are_refused(tmp_path, monkeypatch):
    for wrong, message in (
        ("x", "numbers of epochs"),
        ("0", "from 1 to 5, the last"),
        ("2 6", "from 1 to 5"),
        ("2 2", "each epoch once"),
    ):
        with pytest.raises(UserError, match=message):
            build_callbacks(tmp_path, None, 5, TrainingOptions(snapshots=wrong))
    some = TrainingOptions(snapshots="1 5", patience=2)
    made, epochs = build_callbacks(tmp_path, None, 5, some, Deadline(1))
    assert len(made) == 3 and epochs == [1, 5] and type(made[0](None)) is Deadline
    monkeypatch.setitem(os.environ, "KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="patience works with one process only"):
        build_callbacks(tmp_path, None, 5, TrainingOptions(patience=2))
    with pytest.raises(UserError, match="max_hours works with one process only"):
        build_callbacks(tmp_path, None, 5, TrainingOptions(), Deadline(1))


@pytest.fixture
def asked(monkeypatch):
    """`train_stage` builds its network and does not train it; returns the list of what it was to train on."""
    calls = []

    def build(config, samples, folder, stamp, seed, *rest):
        calls.append((samples.crops, samples.rows, samples.labels))
        keras.utils.set_random_seed(seed)
        return inference_model(build_network(config, samples.classes)), [{"epoch": 1, "loss": 1.0, "seconds": 0.0}]

    monkeypatch.setattr(training, "train", build)
    return calls


@pytest.mark.soak
def test_train_stage_with_views_averages_the_embeddings_of_the_crops_and_trains_on_the_same(tiny, tmp_path, asked):
    dataset, config = read_dataset(tiny), small(epochs=1)
    folds, records, vectors = study_folds(dataset, tmp_path, 2, 0), {}, {}
    for name, views in (("one", ""), ("whole", "whole:1"), ("both", "fullbody:.75 whole:.25")):
        records[name] = train_stage(dataset, folds, 0, name, config, tmp_path, tta_sources=views)
        vectors[name] = read_embeddings(fold_dir(tmp_path, name, 0) / "embeddings.parquet").vectors
        assert records[name]["parameters"]["tta_sources"] == views
        assert records[name]["result"]["boxes"] == {"fullbody": 48}  # of what it is trained on
    for other in asked[1:]:
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(asked[0], other, strict=True))
    mean = 0.75 * vectors["one"] + 0.25 * vectors["whole"]
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors["both"], mean, atol=1e-5)
    assert (vectors["one"] * vectors["whole"]).sum(1).min() < 0.999
    with pytest.raises(UserError, match="a fraction for each source"):
        train_stage(dataset, folds, 0, "none", config, tmp_path, tta_sources="whole")


def test_train_stage_keeps_the_last_weights_with_other_crops_as_models_of_their_own(tiny, tmp_path, asked):
    dataset, config, vectors = read_dataset(tiny), small(epochs=1), {}
    folds, options = study_folds(dataset, tmp_path, 2, 0), TrainingOptions(other_crops="fullbody whole")
    train_stage(dataset, folds, 0, "one", config, tmp_path, options=options)
    train_stage(dataset, folds, 0, "whole", config, tmp_path, crops="whole")
    for name in ("one", "one@fullbody", "one@whole", "whole"):
        place = fold_dir(tmp_path, name, 0)
        vectors[name] = read_embeddings(place / "embeddings.parquet").vectors
        assert {path.name for path in place.iterdir()} >= {"config.json", "model.keras", "centres.parquet"}
    np.testing.assert_allclose(vectors["one@fullbody"], vectors["one"], atol=1e-6)  # what "auto" prefers
    np.testing.assert_allclose(vectors["one@whole"], vectors["whole"], atol=1e-6)
    result = json.loads((fold_dir(tmp_path, "one@whole", 0) / "config.json").read_text())["result"]
    assert (result["crops"], result["boxes"]) == ("whole", {"whole": 48})
    asked.clear()
    train_stage(dataset, folds, 0, "one", config, tmp_path, options=options)
    assert not asked, "done before"
    with pytest.raises(UserError, match="unknown source of crops 'fin'"):
        train_stage(dataset, folds, 0, "new", config, tmp_path, options=TrainingOptions(other_crops="fin"))


def test_train_stage_embeds_a_training_and_a_test_photograph_of_one_name_each(tiny_copy, tmp_path, asked):
    dataset, name = read_dataset(tiny_copy), "same.jpg"
    for part, images in (("train", dataset.train_images), ("test", dataset.test_images)):
        table = tiny_copy / TABLES[part]
        old = pd.read_csv(table)["image"][0]
        (images / old).rename(images / name)
        table.write_text(table.read_text().replace(old, name))
    dataset = read_dataset(tiny_copy)
    folds = study_folds(dataset, tmp_path, 2, 0)
    train_stage(dataset, folds, 0, "small", small(epochs=1), tmp_path)
    place = fold_dir(tmp_path, "small", 0)
    stored = read_embeddings(place / "embeddings.parquet")
    assert (stored.paths == name).sum() == 2 and len(stored.paths) == 58
    own = [stored.of(part, [name])[0] for part in ("train", "test")]
    assert own[0] @ own[1] < 0.999
    embedded = embed_folder(place / "model.keras", tiny_copy, tmp_path / "all.parquet")
    assert embedded.of("train", [name])[0] == pytest.approx(own[0], abs=1e-4)
    assert embedded.of("test", [name])[0] == pytest.approx(own[1], abs=1e-4)


@pytest.mark.soak
def test_train_stage_out_of_time_counts_as_not_trained_and_goes_on_when_run_again(tiny, tmp_path):
    dataset, config = read_dataset(tiny), small(epochs=2)
    folds, place = study_folds(dataset, tmp_path, 2, 0), fold_dir(tmp_path, "limited", 0)
    limit = TrainingOptions(max_hours=1e-9)
    record = train_stage(dataset, folds, 0, "limited", config, tmp_path, options=limit)
    assert "limited, fold 0: stopped after epoch 1 of 2" in record["unfinished"]
    assert record["result"] == {"epochs": 1, "of": 2} and [row["epoch"] for row in record["history"]] == [1]
    assert (place / "resume.json").is_file() and not (place / "config.json").exists()
    record = train_stage(dataset, folds, 0, "limited", config, tmp_path, options=limit)
    assert "unfinished" not in record and record["result"]["map5_known"] > 0
    assert pd.read_csv(place / "history.csv")["epoch"].tolist() == [1, 2] and not list(place.glob("resume*"))


@pytest.mark.soak
@pytest.mark.trains
def test_train_stage_stopped_while_its_models_are_written_goes_on_with_the_weights_that_were_chosen(
    tiny, tmp_path, monkeypatch
):
    dataset, config, vectors = read_dataset(tiny), small(epochs=3), {}
    folds, options = study_folds(dataset, tmp_path, 2, 0), TrainingOptions(snapshots="1", patience=1, save_every=0.0)
    scores = iter([0.5, 0.2] * 2)  # of the epochs: the first one is the best
    monkeypatch.setattr(training, "_score", lambda *_, **__: next(scores, 0.5))
    write, calls = training.write_fold, []

    def stopped(folder, *rest):
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(folder, *rest)

    train_stage(dataset, folds, 0, "whole", config, tmp_path, options=options)
    scores = iter([0.5, 0.2])
    monkeypatch.setattr(training, "write_fold", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_stage(dataset, folds, 0, "parts", config, tmp_path, options=options)
    train_stage(dataset, folds, 0, "parts", config, tmp_path, options=options)
    for name in ("whole", "whole@1", "parts", "parts@1"):
        place = fold_dir(tmp_path, name, 0)
        vectors[name] = read_embeddings(place / "embeddings.parquet").vectors
        assert not list(place.glob("*.weights.h5")) and not (place / "resume.json").exists()
    assert len(calls) == 4
    np.testing.assert_allclose(vectors["parts"], vectors["whole"], atol=1e-5)
    np.testing.assert_allclose(vectors["parts"], vectors["parts@1"], atol=1e-5)  # the best epoch was the first


def test_embed_gives_the_same_embeddings_whatever_the_batch(crops):
    model = inference_model(build_network(small(), classes=8))
    expected = build_encoder(model)(crops.astype("float32"))
    for size in (7, 48):
        np.testing.assert_allclose(embed(model, crops, batch_size=size, quiet=True), expected, atol=1e-5)
    assert embed(model, crops[:0], quiet=True).shape == (0, 16)


def test_class_centres_are_the_classifier_s_of_length_1_under_each_individual_s_name():
    pixels = keras.Input((2, 2, 3))
    vector = keras.layers.GlobalAveragePooling2D(name="embedding")(pixels)
    model = keras.Model(pixels, CosineClassifier(4, centres=2, name="cosines")(vector))
    table = np.random.default_rng(0).normal(size=(4, 6))
    model.get_layer("cosines").table.assign(table)
    found = class_centres(model, np.array(["ann", "bob", "cid"]))
    assert found.individual_ids.tolist() == ["ann", "ann", "bob", "bob", "cid", "cid"]  # the fourth is a twin
    expected = table[:3].reshape(6, 3)
    np.testing.assert_allclose(found.vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
