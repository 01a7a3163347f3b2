"""Adapters: what may go into them, what comes out, and that none is used by chance."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.retrieval.adapter import KINDS, Adapter, read_adapter, write_adapter
from happywhale_nb.retrieval.adapters import (
    CHOSEN_FROM,
    choose_adapter,
    cross_scores,
    deal_photographs,
    fit_adapter,
    fit_adapters,
    fit_weights,
    shrunk_spread,
)

COMPUTED = [kind for kind in KINDS if kind != "arcface"]


def animals(seed, n=6, each=8, width=12, noise=1.0, light=0.0):
    rng, animal = np.random.default_rng(seed), np.repeat(np.arange(n), each)
    vectors = rng.normal(size=(n, width))[animal] + noise * rng.normal(size=(n * each, width))
    vectors[:, :2] += light * rng.normal(size=(n * each, 2))
    return vectors, np.char.add("w", animal.astype(str))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 6), st.integers(2, 40), st.sampled_from(COMPUTED))
def test_adapted_embeddings_have_length_one_and_do_not_depend_on_the_order_or_length(seed, n, each, width, kind):
    vectors, names = animals(seed, n, each, width)
    order = np.random.default_rng(seed).permutation(len(names))
    scaled = vectors * np.random.default_rng(seed).uniform(0.5, 2, (len(names), 1))
    one, two = fit_adapter(vectors, names, kind), fit_adapter(scaled[order], names[order], kind)
    rows = one.transform(vectors)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    cosines, others = rows @ rows.T, two.transform(vectors) @ two.transform(vectors).T
    assert np.allclose(cosines, others, atol=2e-2 if kind == "lda" else 2e-3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(2, 6), st.integers(0, 99))
def test_parts_of_an_individual_differ_in_size_by_one_at_most_and_encounters_stay_together(counts, parts, seed):
    codes = np.repeat(np.arange(len(counts)), counts)
    part = deal_photographs(codes, parts=parts, seed=seed)
    for code, count in enumerate(counts):
        sizes = np.bincount(part[codes == code], minlength=parts)
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 1
    pairs = deal_photographs(np.repeat(codes, 2), np.repeat(np.arange(len(codes)), 2), parts, seed)
    assert (pairs[::2] == pairs[1::2]).all()


def test_whitening_of_fewer_rows_than_dimensions_is_that_of_the_whole_covariance():

    rows = np.random.default_rng(0).normal(size=(7, 20)) * np.linspace(0.5, 3, 20)
    spread = shrunk_spread(rows)
    expected, _ = ledoit_wolf(rows, assume_centered=True)
    whole = (spread.axes.T * (spread.variances - spread.rest)) @ spread.axes + spread.rest * np.eye(20)
    assert np.allclose(whole, expected, atol=1e-9)
    square = spread.power(-0.5) @ spread.power(-0.5)
    assert np.allclose(square @ whole / (square @ whole)[0, 0], np.eye(20), atol=1e-8)


@pytest.mark.rest
def test_adapter_by_chance_is_used_in_few_of_many_galleries(monkeypatch):
    monkeypatch.setattr("happywhale_nb.retrieval.adapters.ROUNDS", 1)
    used = [choose_adapter(*animals(seed, n=10, noise=2.0)).used for seed in range(20)]
    assert sum(used) <= 3


def test_adapter_is_used_where_light_hides_who_is_seen():
    choice = choose_adapter(*animals(1, 10, 10, noise=0.5, light=6.0))
    assert choice.kind in CHOSEN_FROM
    assert choice.low > 0
    assert choice.p < 0.05
    assert choice.grown["high"] > 0
    json.dumps(choice.as_dict())


def test_score_of_an_adapter_never_comes_from_photographs_it_was_fitted_to():
    vectors, names = animals(0)
    part, seen = deal_photographs(np.unique(names, return_inverse=True)[1]), []

    def fit(rows, who):
        seen.append({row.tobytes() for row in rows})
        return fit_adapters(rows, who, ["centre"])

    old = np.isin(names, ["w0", "w1", "w2"])
    cross_scores(vectors, names, part, fit, old)
    for number, rows in zip(np.unique(part), seen, strict=True):
        assert rows == {row.tobytes() for row in vectors[(part != number) & old]}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "b", "c", "d"], "can be queries"),
        (["a"] * 4, "can be queries"),
    ],
)
def test_few_photographs_give_no_adapter_and_say_why(names, words):
    choice = choose_adapter(np.random.default_rng(0).normal(size=(4, 6)), names)
    assert not choice.used
    assert words in choice.sentence


def test_photographs_that_are_all_the_same_give_no_adapter():
    choice = choose_adapter(np.ones((20, 5)), np.repeat(["a", "b"], 10))
    assert not choice.used
    assert "can be queries" in choice.sentence or "No adapter" in choice.sentence


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda v, n: fit_adapter(v, n, "witen"), "did you mean 'whiten'"),
        (lambda v, n: fit_adapter(v, n, "arcface"), "train_arcface"),
        (lambda v, n: fit_adapter(v, n[:-1], "centre"), "one individual for each"),
        (lambda v, n: fit_adapter(v, ["new_individual", *n[1:]], "centre"), "is not an individual"),
        (lambda v, n: fit_adapter(v, ["", *n[1:]], "centre"), "is not an individual"),
        (lambda v, n: fit_adapter(v * np.nan, n, "centre"), "NaN"),
        (lambda v, n: fit_adapter(v[:2], ["a", "b"], "within"), "two different photographs"),
        (lambda v, n: fit_adapter(v[:4], ["a"] * 4, "lda"), "two individuals"),
        (lambda v, n: choose_adapter(v, n, kinds=["halfwhiten"]), "unknown kind of adapter"),
        (lambda v, n: choose_adapter(v, n).adapter.transform(v[:, :3]), "numbers each"),
        (lambda v, n: fit_weights([v, v[:3]], n), "the same photographs"),
        (lambda v, n: fit_weights([v[:4]], n[:4]), "weights take 10"),
        (lambda v, n: fit_weights([], n), "the same photographs"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(call, words):
    vectors, names = animals(0)
    with pytest.raises(UserError, match=words) as caught:
        call(vectors, names.tolist())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["kind", "shape", "nan", "zero", "missing", "object", "cut", "text", "none"])
def test_file_of_something_else_is_refused_in_one_line_and_never_executed(fault, tmp_path):
    path, (vectors, names) = tmp_path / "adapter.npz", animals(0)
    adapter = fit_adapter(vectors, names, "within")
    arrays = {"name": np.array("within"), "mean": adapter.mean, "matrix": adapter.matrix}
    changed = {
        "kind": {"name": np.array("magic")},
        "shape": {"mean": adapter.mean[:-1]},
        "nan": {"matrix": np.full_like(adapter.matrix, np.nan)},
        "zero": {"matrix": np.zeros_like(adapter.matrix)},
        "object": {"mean": np.array([print], dtype=object)},
    }
    arrays |= changed.get(fault, {})
    if fault == "missing":
        del arrays["matrix"]
    np.savez(path, **arrays)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif fault == "text":
        path.write_text("no zip")
    elif fault == "none":
        path.unlink()
    with pytest.raises(UserError, match=r"is not an adapter|is missing") as caught:
        read_adapter(path)
    assert "\n" not in str(caught.value)


def test_adapter_in_a_file_is_the_same_and_its_bytes_too(tmp_path):
    adapter = fit_adapter(*animals(0), "within")
    for name in ("a.npz", "b.npz"):
        write_adapter(tmp_path / name, adapter)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = read_adapter(tmp_path / "a.npz")
    assert isinstance(again, Adapter)
    assert again.fingerprint == adapter.fingerprint


def test_frames_of_one_encounter_do_not_answer_each_other():
    vectors, names = animals(0, 8, 6, noise=3.0)
    vectors = np.repeat(vectors, 2, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(96, 12))
    names, encounters = np.repeat(names, 2), np.repeat(np.arange(48), 2)
    flattered, honest = choose_adapter(vectors, names), choose_adapter(vectors, names, encounters=encounters)
    assert flattered.before > 0.9
    assert honest.before < flattered.before - 0.2


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_weights_add_up_to_one_and_copies_of_an_encoder_are_not_used(seed, count):
    vectors, names = animals(seed)
    fitted = fit_weights([vectors] * count, names)
    assert abs(sum(fitted.weights) - 1) < 1e-9
    assert not fitted.used
    assert sorted(fitted.weights)[-1] == 1
    assert fitted.sentence.startswith(f"Encoder {fitted.single + 1} is used alone")


def write_folder(folder, light):
    (folder / "train_images").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for k, colours in enumerate(rng.uniform(-40, 40, (7, 2, 3))):
        for i in range(7):
            halves = 128 + colours + light * rng.normal(size=3) + 4 * rng.normal(size=(2, 3))
            picture = np.repeat(halves.clip(0, 255)[None], 16, axis=0).repeat(8, axis=1)
            rows.append((f"{k}_{i}.png", "beluga", f"w{k}"))
            cv2.imwrite(str(folder / "train_images" / rows[-1][0]), picture.astype(np.uint8))
    pd.DataFrame(rows, columns=["image", "species", "individual_id"]).to_csv(folder / "train.csv", index=False)
    return folder


def write_encoder(folder):
    onnx = pytest.importorskip("onnx")
    from happywhale_nb.networks.encoder_card import EncoderCard, files_digest, write_card

    folder.mkdir()
    make, float_ = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        make.make_node("AveragePool", ["x"], ["halves"], kernel_shape=[16, 8], strides=[16, 8]),
        make.make_node("Flatten", ["halves"], ["embedding"]),
    ]
    given = make.make_tensor_value_info("x", float_, ["n", 3, 16, 16])
    made = make.make_tensor_value_info("embedding", float_, ["n", 6])
    graph = make.make_graph(nodes, "halves", [given], [made])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9), folder / "halves.onnx")
    facts = ("halves", "halves.onnx", files_digest([folder / "halves.onnx"]), 16, 16, "area", "rgb", "nchw")
    write_card(folder, EncoderCard(*facts, 255.0, (0.5,) * 3, (0.25,) * 3, 6, "CC0-1.0", True))
    return folder


@pytest.mark.rest
def test_adapt_command_writes_an_encoder_only_where_it_pays(tmp_path):
    from happywhale_nb.networks.encoders import open_encoder

    encoder, dim = write_encoder(tmp_path / "encoder"), write_folder(tmp_path / "dim", light=40)
    done = CliRunner().invoke(main, ["model", "adapt", str(encoder), str(dim), "--to", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "49 photographs of 7 known animals" in done.output
    adapted = open_encoder(tmp_path / "out")
    assert adapted.fingerprint != open_encoder(encoder).fingerprint
    even = write_folder(tmp_path / "even", light=0)
    done = CliRunner().invoke(main, ["model", "adapt", str(encoder), str(even), "--to", str(tmp_path / "none")])
    assert done.exit_code == 0, done.output
    assert "nothing was written" in done.output
    assert not (tmp_path / "none").exists()
    for target, words in ((dim, "is not an encoder folder"), (encoder, "is the encoder itself")):
        done = CliRunner().invoke(main, ["model", "adapt", str(encoder), str(dim), "--to", str(target)])
        assert words in done.output
        assert (dim / "train.csv").is_file()
        assert not (encoder / "adapter.npz").exists()


@pytest.mark.rest
def test_adapter_of_an_adapted_encoder_is_fitted_anew_and_not_on_top(tmp_path):
    from happywhale_nb.networks.adapting import adapt_encoder
    from happywhale_nb.networks.encoders import open_encoder

    encoder, dim = write_encoder(tmp_path / "encoder"), write_folder(tmp_path / "dim", light=40)
    for source, target in ((encoder, "once"), (tmp_path / "once", "twice")):
        assert adapt_encoder(source, dim, tmp_path / target).used
    assert open_encoder(tmp_path / "twice").fingerprint == open_encoder(tmp_path / "once").fingerprint


TRAIN = """
import numpy as np
from happywhale_nb.networks.adapter_training import train_arcface

rng, animal = np.random.default_rng(0), np.repeat(np.arange(6), 6)
vectors = rng.normal(size=(6, 8))[animal] + 0.8 * rng.normal(size=(36, 8))
one, two = (train_arcface(vectors, animal.astype(str), epochs=3) for _ in range(2))
assert one.name == "arcface" and one.fingerprint == two.fingerprint
print(" ".join(f"{value:.5f}" for value in one.transform(vectors)[:2].ravel()))
"""


@pytest.mark.soak
def test_trained_adapter_is_the_same_twice_and_by_both_backends():
    rows = []
    for backend in ("tensorflow", "jax"):
        environment = os.environ | {"KERAS_BACKEND": backend}
        done = subprocess.run([sys.executable, "-c", TRAIN], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rows.append(np.array(done.stdout.split(), float))
    assert np.allclose(*rows, atol=1e-3)
