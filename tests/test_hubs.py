"""`happywhale model fetch` against folders and servers that stand in for the hubs: what arrives, what is refused."""

import hashlib
import http.server
import json
import os
import pickle
import shutil
import sys
import threading
import zipfile
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from happywhale_nb.cli import fetch as command
from happywhale_nb.core.errors import UserError
from happywhale_nb.networks import hub_models
from happywhale_nb.networks.checkpoints import read_checkpoint
from happywhale_nb.networks.encoder_card import read_card
from happywhale_nb.networks.encoders import open_encoder
from happywhale_nb.networks.hub_models import fetch_encoder, read_tensors
from happywhale_nb.networks.hubs import (
    COMMERCIAL,
    HubSource,
    card_licence,
    explain_hub_error,
    fetch_file,
    find_weights,
    is_commercial,
    local_repository,
    parse_source,
    remote_repository,
)
from happywhale_nb.networks.ready_cards import parse_ready_card, ready_cards

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
CARD = {"name": "Our fins", "width": 16, "height": 16, "resize": "cubic-antialias", "colours": "rgb", "layout": "nchw"}
CARD |= {"scale": 255.0, "mean": [0.5] * 3, "std": [0.2] * 3, "dimension": 3, "licence": "MIT", "commercial": True}


def colour_graph(path):
    """An encoder: the mean colour of pictures of 16 pixels."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"], axis=1),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 16, 16])
    colour = helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "colours", [pixels], [colour])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


class Site(http.server.BaseHTTPRequestHandler):
    """Serves the bytes of `server.files` by path; a number instead of bytes is a status."""

    def do_GET(self):
        found = self.server.files.get(self.path, 404)
        body, promised = (found, len(found)) if isinstance(found, bytes) else (b"", 0)
        if self.path == "/short.onnx":
            promised += 100
        self.send_response(found if isinstance(found, int) else 200)
        if self.path == "/chunked.onnx":
            self.send_header("Transfer-Encoding", "chunked")
            body = b"FF\r\n" + body[:20]
        else:
            self.send_header("Content-Length", "many" if self.path == "/odd.onnx" else str(promised))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server; `site.files` is what it serves."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    graph = colour_graph(tmp_path_factory.mktemp("site") / "fins.onnx").read_bytes()
    server.files = {"/fins.onnx": graph, "/short.onnx": graph, "/private": 401, "/gated": 403, "/broken": 500}
    server.files |= {"/chunked.onnx": graph, "/odd.onnx": graph, "/large": bytes(1 << 16)}
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}", graph=graph, files=server.files)
    server.shutdown()
    server.server_close()


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "fins.json"
    path.write_text(json.dumps(CARD))
    return path


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """No time is spent on drawing the probe."""
    monkeypatch.setattr(command, "_draw_probe", lambda: PICTURE)


def fetch(*words):
    """The command: `(error or None, what it printed)`."""
    done = CliRunner().invoke(command.fetch, [*map(str, words)], standalone_mode=False)
    return done.exception, done.output


def refused(*words):
    """The one line by which the command refuses."""
    error, _ = fetch(*words)
    assert isinstance(error, UserError), error
    assert "\n" not in str(error)
    return str(error)


@settings(max_examples=40)
@given(st.text(max_size=30), st.sampled_from(["", "hf:", "timm:", "hf-hub:", "https://huggingface.co/"]))
def test_any_text_is_a_source_without_ways_out_of_its_folder_or_one_line(text, scheme):
    try:
        source = parse_source(scheme + text)
    except UserError as error:
        assert "\n" not in str(error)
        return
    if source.kind == "hub":
        assert len(source.place.split("/")) == 2 and ".." not in source.place and "\\" not in source.place


@settings(max_examples=40)
@given(st.sampled_from(["mit", "cc-by-nc-4.0", "other", "", "apache-2.0", "dinov3-license"]), st.text(max_size=40))
def test_licence_of_a_model_card_is_what_its_head_says_whatever_follows(licence, text):
    read = card_licence(f"---\ntags:\n- whales\nlicense: {licence}\nlicense_name: own\n---\n{text}")
    assert read == {"other": "own", "": "none published"}.get(licence, licence)
    assert is_commercial(read) == (read in COMMERCIAL)


def test_licence_of_which_one_part_forbids_it_is_not_for_commercial_use():
    assert is_commercial(card_licence("---\nlicense: [mit, apache-2.0]\n---\n"))
    assert not is_commercial(card_licence("---\nlicense: [mit, cc-by-nc-4.0]\n---\n"))


HubError = namedtuple("HubError", "kinds status message says")


@pytest.mark.parametrize(
    "case",
    [
        HubError(["GatedRepoError", "RepositoryNotFoundError"], 403, "gated", "requires its licence to be accepted"),
        HubError(["RepositoryNotFoundError"], 401, "401", "check the name"),
        HubError(["RevisionNotFoundError"], 404, "no", "check the name"),
        HubError(["RevisionNotFoundError"], None, "no", "has no revision 'v9'"),
        HubError(["LocalEntryNotFoundError", "OSError"], None, "offline\nretry", "cannot be reached (offline)"),
        HubError(["HfHubHTTPError"], 503, "busy", "cannot be reached"),
        HubError(["OSError"], None, "Consistency check failed: 5 of 9", "wrong size"),
        HubError(["ValueError"], None, "", "cannot be fetched"),
    ],
    ids=lambda case: f"{case.kinds[0]}-{case.status}",
)
def test_each_error_of_the_hubs_client_has_its_own_line(case):
    kind = Exception
    for name in reversed(case.kinds):
        kind = type(name, (kind,), {})
    error = kind(case.message)
    if case.status:
        error.response = SimpleNamespace(status_code=case.status)
    line = str(explain_hub_error(error, HubSource("hub", "lab/fins", "v9")))
    assert case.says in line and "\n" not in line and "lab/fins" in line


def test_hubs_client_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"happywhale_nb\[hubs\]"):
        remote_repository(HubSource("hub", "lab/fins"))


@pytest.mark.parametrize(
    ("path", "says"),
    [("/private", "a login"), ("/gated", "a licence"), ("/nothing", "no such file"), ("/broken", "answers 500")],
)
def test_address_that_gives_nothing_says_why_and_leaves_nothing(site, card, tmp_path, path, says):
    target = tmp_path / "out"
    assert says in refused(site.address + path, "--card", card, "--to", target)
    assert not target.exists() and [found.name for found in tmp_path.iterdir()] == ["fins.json"]


def test_server_that_is_not_there_a_short_file_and_a_full_disk_say_so(site, card, tmp_path, monkeypatch):
    target = ("--card", card, "--to", tmp_path / "out")
    assert "cannot be reached" in refused("http://127.0.0.1:9/fins.onnx", *target)
    assert "run this again" in refused(site.address + "/short.onnx", *target)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    assert "MB free" in refused(site.address + "/fins.onnx", *target)
    assert not (tmp_path / "out").exists()


def test_address_that_is_none_and_an_answer_that_breaks_off_are_refused_in_one_line(site, card, tmp_path):
    target = ("--card", card, "--to", tmp_path / "out")
    assert "cannot be reached" in refused("https://127.0.0.1/my model.onnx", *target)
    assert "cannot be reached" in refused("http://127.0.0.1:port/m.onnx", *target)
    assert "the connection broke" in refused(site.address + "/chunked.onnx", *target)
    assert fetch_file(site.address + "/odd.onnx", tmp_path / "a") == hashlib.sha256(site.graph).hexdigest()
    if os.path.exists("/dev/full"):
        with pytest.raises(UserError, match="cannot be stored"):
            fetch_file(site.address + "/large", "/dev/full")


def test_onnx_file_at_an_address_becomes_an_encoder_whose_card_pins_it(site, card, tmp_path):
    digest = hashlib.sha256(site.graph).hexdigest()
    words = (site.address + "/fins.onnx", "--card", card, "--to", tmp_path / "out")
    error, printed = fetch(*words, "--sha256", digest.upper())
    assert error is None and digest in printed
    assert "not converted, so there is no original to compare with" in printed and "cosine" not in printed
    written = read_card(tmp_path / "out")
    assert written.sha256 == digest and digest in written.source and written.source.startswith(site.address)
    assert sorted(os.listdir(tmp_path / "out")) == ["encoder.json", "encoder.onnx", "probe.png"]
    vectors = open_encoder(tmp_path / "out").embed(PICTURE[None, :16, :16])
    assert vectors.shape == (1, 3) and abs((vectors**2).sum() - 1) < 1e-5
    assert "already exists" in refused(*words)


def test_another_file_than_asked_for_is_refused(site, card, tmp_path):
    line = refused(site.address + "/fins.onnx", "--card", card, "--to", tmp_path / "out", "--sha256", "0" * 64)
    assert hashlib.sha256(site.graph).hexdigest() in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dimension": 4}, "3 numbers"),
        ({"width": 32}, "pictures"),
        ({"architecture": "x"}, "unknown field"),
        ({"mean": [0.5]}, "three numbers"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_card_that_is_not_the_files_is_refused_and_nothing_is_written(card, tmp_path, change, says):
    card.write_text(json.dumps({**CARD, **change}))
    assert says in refused(colour_graph(tmp_path / "fins.onnx"), "--card", card, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_that_is_no_graph_and_a_file_without_a_card_are_refused(card, tmp_path):
    file = tmp_path / "fins.onnx"
    file.write_bytes(b"no graph")
    assert "cannot be read" in refused(file, "--card", card, "--to", tmp_path / "out")
    assert "--card" in refused(file, "--to", tmp_path / "out")
    assert "not a source" in refused(tmp_path / "none.onnx")
    assert not (tmp_path / "out").exists()


def test_licence_that_excludes_commercial_use_is_accepted_by_a_flag_before_anything_is_fetched(card, tmp_path):
    card.write_text(json.dumps({**CARD, "licence": "CC-BY-NC-4.0", "commercial": False}))
    file = colour_graph(tmp_path / "fins.onnx")
    words = (file, "--card", card, "--to", tmp_path / "out")
    assert "--accept-licence" in refused(*words) and not (tmp_path / "out").exists()
    assert fetch(*words, "--accept-licence")[0] is None
    assert read_card(tmp_path / "out").commercial is False
    assert "none published" in refused("miewid-msv3", "--hub", tmp_path, "--to", tmp_path / "miewid")


def repository(hub, name, **files):
    """A repository in a folder laid out like the hub."""
    folder = hub / name
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_repository_with_an_onnx_file_is_fetched_from_a_folder_laid_out_like_the_hub(card, tmp_path):
    graph = colour_graph(tmp_path / "fins.onnx").read_bytes()
    repository(tmp_path / "hub" / "models--lab--fins" / "snapshots", "abc12", model__onnx=graph, config__json="{}")
    (tmp_path / "hub" / "models--lab--fins" / "refs").mkdir()
    (tmp_path / "hub" / "models--lab--fins" / "refs" / "main").write_text("abc12\n")
    words = ("hf:lab/fins", "--card", card, "--hub", tmp_path / "hub", "--to", tmp_path / "out")
    assert fetch(*words)[0] is None
    assert read_card(tmp_path / "out").source.startswith("hf:lab/fins@abc12 model.onnx sha256:")


def far_graph(folder, name="model.onnx"):
    """An encoder of colours that keeps its weights in `model.onnx_data`: both files' bytes."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "W"], ["colour"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 16, 16])
    colour = helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["n", 3])
    matrix = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32), "W")
    graph = helper.make_graph(nodes, "colours", [pixels], [colour], [matrix])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    folder.mkdir()
    onnx.save(model, folder / name, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    return (folder / name).read_bytes(), (folder / "model.onnx_data").read_bytes()


@pytest.mark.parametrize("source", ["hub", "hub, in onnx", "address", "file"])
def test_onnx_file_is_fetched_with_the_weights_that_it_keeps_elsewhere(site, card, tmp_path, source):
    graph, weights = far_graph(tmp_path / "made")
    site.files |= {"/far/model.onnx": graph, "/far/model.onnx_data": weights}
    inner = "onnx" if source == "hub, in onnx" else "."
    folder = repository(tmp_path / "hub", "lab/fins", config__json="{}") / inner
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(graph), (folder / "model.onnx_data").write_bytes(weights)
    words = {"address": [site.address + "/far/model.onnx"], "file": [folder / "model.onnx"]}
    words = [*words.get(source, ["hf:lab/fins", "--hub", tmp_path / "hub"]), "--card", card, "--to", tmp_path / "out"]
    digest = hashlib.sha256(graph + weights).hexdigest()
    assert "is not the expected file" in refused(*words, "--sha256", hashlib.sha256(graph).hexdigest())
    error, printed = fetch(*words, "--sha256", digest)
    assert error is None and digest in printed, error
    assert read_card(tmp_path / "out").data == ("model.onnx_data",) and read_card(tmp_path / "out").sha256 == digest
    assert open_encoder(tmp_path / "out").embed(PICTURE[None, :16, :16]).shape == (1, 3)
    del site.files["/far/model.onnx_data"]
    (folder / "model.onnx_data").unlink()
    line = refused(*words[:-1], tmp_path / "again")
    assert "model.onnx_data" in line and ("has no model.onnx_data" in line or "has no such file" in line)
    assert not (tmp_path / "again").exists()


def test_hub_that_cannot_be_reached_is_not_taken_for_files_that_are_missing(tmp_path, monkeypatch):
    """With the client's switch for no network, and nothing, or some files, in its cache."""
    gone = type("LocalEntryNotFoundError", (OSError,), {})

    def download(repository, name, revision=None):
        raise gone("outgoing traffic has been disabled")

    constants = SimpleNamespace(HF_HUB_OFFLINE=True, HF_HUB_CACHE=str(tmp_path))
    client = SimpleNamespace(constants=constants, hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    with pytest.raises(UserError, match=r"hf:lab/fins cannot be reached \(outgoing traffic"):
        remote_repository(HubSource("hub", "lab/fins"))
    (tmp_path / "models--lab--fins" / "snapshots" / "abc12").mkdir(parents=True)
    (tmp_path / "models--lab--fins" / "snapshots" / "abc12" / "config.json").write_text("{}")
    assert remote_repository(HubSource("hub", "lab/fins")).find("README.md") is None


def test_repository_or_revision_that_a_folder_has_not_is_named(tmp_path):
    repository(tmp_path, "lab/fins", config__json="{}")
    assert local_repository(HubSource("hub", "lab/fins"), tmp_path).find("README.md") is None
    with pytest.raises(UserError, match="has no hf:lab/tails"):
        local_repository(HubSource("hub", "lab/tails"), tmp_path)
    (tmp_path / "models--lab--fins" / "snapshots").mkdir(parents=True)
    with pytest.raises(UserError, match="in revision v2"):
        local_repository(HubSource("hub", "lab/fins", "v2"), tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [('{"auto_map": {}, "model_type": "fins"}', "never run"), ("{}", "--card"), ("[1]", "not a JSON object")],
    ids=["code", "nothing", "list"],
)
def test_repository_that_needs_code_or_says_nothing_is_refused_before_weights_are_fetched(tmp_path, config, says):
    repository(tmp_path / "hub", "lab/fins", config__json=config, README__md="---\nlicense: mit\n---\n")
    assert says in refused("hf:lab/fins", "--hub", tmp_path / "hub", "--to", tmp_path / "out")


def test_weights_in_several_files_and_no_weights_are_told_apart(tmp_path):
    repository(tmp_path, "lab/large", **{"model.safetensors.index.json": "{}"})
    repository(tmp_path, "lab/empty", config__json="{}")
    for name, says in (("large", "several files"), ("empty", "none of them")):
        with pytest.raises(UserError, match=says):
            find_weights(local_repository(HubSource("hub", f"lab/{name}"), tmp_path))


class Harmful:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.mark.parametrize("zipped", [False, True])
def test_weights_with_code_are_refused_without_running_it(tmp_path, zipped):
    code = pickle.dumps({"a": Harmful()}, protocol=2)
    if zipped:
        with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
            archive.writestr("weights/data.pkl", code)
    else:
        stream = b"".join(pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
        (tmp_path / "pytorch_model.bin").write_bytes(stream + code)
    with pytest.raises(UserError, match="never run"):
        read_tensors(tmp_path / "pytorch_model.bin")


def a_string(text):
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def a_tensor(kind, key, size):
    """A tensor of one dimension, as PyTorch pickles it."""
    storage = b"(" + a_string("storage") + f"ctorch\n{kind}\n".encode() + a_string(key) + a_string("cpu")
    places = b"K" + bytes([size]) + b"tQK\0K" + bytes([size]) + b"\x85K\1\x85\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + places


def a_checkpoint(path, tensors, storages):
    """A zip as PyTorch writes it, without PyTorch."""
    pairs = b"".join(a_string(name) + tensor for name, tensor in tensors.items())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", b"\x80\2}(" + pairs + b"u.")
        for key, data in storages.items():
            archive.writestr(f"weights/data/{key}", data)
    return path


def test_numbers_of_few_bits_and_parameters_are_read_and_others_are_said_to_be_of_another_kind(tmp_path):
    half = np.array([1.5, -2.0, 3.140625], np.float32)
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + a_tensor("FloatStorage", "0", 3)
    parameter += b"\x88ccollections\nOrderedDict\n)RtR"
    kinds = {"half": "BFloat16Storage", "yes": "BoolStorage", "bytes": "ByteStorage", "short": "ShortStorage"}
    tensors = {name: a_tensor(kind, name, 3) for name, kind in kinds.items()}
    storages = {"half": (half.view("<u4") >> 16).astype("<u2").tobytes(), "yes": b"\0\1\2", "bytes": b"\0\1\xff"}
    storages |= {"short": np.array([1, -2, 3], "<i2").tobytes(), "0": half.tobytes()}
    read = read_checkpoint(a_checkpoint(tmp_path / "a.pth", tensors | {"parameter": parameter}, storages))
    assert read["half"].tolist() == half.tolist() == read["parameter"].tolist() and read["half"].dtype == np.float32
    assert read["yes"].tolist() == [False, True, True] and read["bytes"].tolist() == [0, 1, 255]
    assert read["short"].tolist() == [1, -2, 3]
    strange = b"ctorch._utils\n_rebuild_qtensor\n(tR"
    for tensor in (a_tensor("QInt8Storage", "0", 3), a_tensor("ComplexFloatStorage", "0", 3), strange):
        with pytest.raises(UserError, match="of an unsupported type"):
            read_checkpoint(a_checkpoint(tmp_path / "b.pth", {"a": tensor}, {"0": bytes(24)}))


def test_without_pytorch_the_extra_is_named_and_its_size(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    repository(tmp_path / "hub", "BVRA/MegaDescriptor-T-224", config__json='{"architecture": "x"}')
    line = refused("megadescriptor-t-224", "--accept-licence", "--hub", tmp_path / "hub", "--to", tmp_path / "out")
    assert "happywhale_nb[hubs]" in line and "5.5 GB" in line


def test_converted_file_that_differs_from_the_original_is_not_written(tmp_path, monkeypatch):
    def convert(network, card, path):
        colour_graph(path)

    turned = np.array([[0.6, 0.0, 0.8], [0.6, 0.0, 0.8]], np.float32)
    monkeypatch.setattr(hub_models, "write_onnx", convert)
    monkeypatch.setattr(hub_models, "original_embeddings", lambda *_: turned)
    ready = parse_ready_card(CARD)
    with pytest.raises(UserError, match="differs from the original"):
        hub_models._converted(None, ready.card, PICTURE, tmp_path / "out", "")
    assert not list(tmp_path.iterdir())


def test_ready_cards_say_where_each_was_read_and_what_their_licences_permit():
    cards = ready_cards()
    assert len(cards) == 12
    for name, ready in cards.items():
        where = set(ready.read.values())
        assert where and all(each.startswith(("https://", "timm ")) for each in where), name
        assert any("licence" in what for what in ready.read), name
        permitted = ready.card.licence.lower() in COMMERCIAL | {"dinov3 license"}
        assert ready.card.commercial == permitted, name
        assert parse_source(name).place == ready.repository
    assert {ready.card.licence for ready in cards.values() if "mega" in ready.name} == {"CC-BY-NC-4.0"}


def test_download_is_counted_and_summed(site, tmp_path):
    assert fetch_file(site.address + "/fins.onnx", tmp_path / "a") == hashlib.sha256(site.graph).hexdigest()
    with pytest.raises(UserError, match="of "):
        fetch_file(site.address + "/short.onnx", tmp_path / "b")


def test_unknown_kind_of_network_in_a_card_is_refused():
    with pytest.raises(UserError, match="unknown network"):
        parse_ready_card({"card": CARD, "network": "magic"})


def test_size_is_refused_where_it_cannot_be_chosen(tmp_path):
    graph, ready = colour_graph(tmp_path / "fins.onnx"), parse_ready_card(CARD)
    with pytest.raises(UserError):
        fetch_encoder(str(graph), tmp_path / "out", PICTURE, ready, size=32)
    assert not (tmp_path / "out").exists()
