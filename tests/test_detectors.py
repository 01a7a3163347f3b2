"""Detectors of others: letterboxes, heads, cards, and what of a data folder they box.

All graphs are made by `onnx.helper`, so that the right answer is known."""

import json
from dataclasses import asdict, replace

import numpy as np
import onnx
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from happywhale_nb.cli.main import main
from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import BOX, CropMix, read_boxes
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.imaging.letterbox import FITS, fit_photo, letterbox
from happywhale_nb.networks.detector_card import (
    DetectorCard,
    make_detector_card,
    read_detector_card,
    write_detector_card,
)
from happywhale_nb.networks.detector_draft import draft_detector_card
from happywhale_nb.networks.detector_heads import Candidates, check_head, keep_best, read_candidates
from happywhale_nb.networks.detectors import (
    OnnxDetector,
    best_boxes,
    copy_detector,
    detector_pixels,
    file_sha256,
    kept_detector,
    open_detector,
)
from happywhale_nb.networks.folder_boxes import FoundBoxes, box_folder

SIDE = 64
CLASSES = ("animal", "person", "vehicle")
CARD = DetectorCard(
    "mega", "mega.onnx", "0" * 64, SIDE, SIDE, "yolov8", CLASSES, ("animal",), "pixels", "probabilities", "centre",
    "linear", "nchw", "rgb", 255.0, 0.2, 0.45, "MIT", True,
)  # fmt: skip
# centre and size in pixels of the input, objectness, and scores of the three classes
ROWS = np.array(
    [
        [20, 30, 20, 10, 0.9, 0.9, 0.1, 0.0],
        [21, 30, 20, 10, 0.8, 0.8, 0.0, 0.1],  # the same animal
        [21, 30, 20, 10, 0.8, 0.0, 0.9, 0.0],  # a person in front of it
        [50, 50, 10, 20, 1.0, 0.4, 0.1, 0.0],  # another animal
        [40, 10, 10, 10, 0.2, 0.1, 0.1, 0.1],  # nothing
    ]
)


def graph(path, outputs, shape=("n", 3, SIDE, SIDE), names=("pixels",), kind=TensorProto.FLOAT, about=None):
    """Write a file that gives the same arrays for each photo, whatever it shows."""
    nodes = [
        helper.make_node("Cast", [names[0]], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["as_float"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    constants = [numpy_helper.from_array(np.float32(0), "zero")]
    for i, output in enumerate(outputs):
        axes = np.arange(1, np.ndim(output) + 1)
        constants += [numpy_helper.from_array(axes, f"axes{i}")]
        constants += [numpy_helper.from_array(np.asarray(output, np.float32)[None], f"table{i}")]
        nodes += [helper.make_node("Unsqueeze", ["nothing", f"axes{i}"], [f"nothing{i}"])]
        nodes += [helper.make_node("Add", [f"table{i}", f"nothing{i}"], [f"out{i}"])]
    given = [helper.make_tensor_value_info(name, kind, shape) for name in names]
    out = [helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, None) for i in range(len(outputs))]
    model = helper.make_model(helper.make_graph(nodes, "g", given, out, constants), ir_version=8)
    model.opset_import[0].version = 17
    for key, value in (about or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def bright_graph(path):
    """Write a file of the head yolov10 that boxes what is bright."""
    ramp = np.arange(SIDE, dtype=np.float32)
    constants = {"limit": np.float32(0.8), "from0": ramp[None], "from1": SIDE - ramp[None], "side": np.float32(SIDE)}
    constants |= {"one": np.float32(1), "sure": np.float32([[0.9, 0.0]]), "axis": np.array([1]), "zero": np.float32(0)}
    nodes = [
        helper.make_node("Greater", ["pixels", "limit"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["bright"], to=TensorProto.FLOAT),
    ]
    for name, axes in (("x", [1, 2]), ("y", [1, 3])):
        nodes += [
            helper.make_node("ReduceMax", ["bright"], [name], axes=axes, keepdims=0),
            helper.make_node("Mul", [name, "from1"], [name + "a"]),
            helper.make_node("ReduceMax", [name + "a"], [name + "b"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["side", name + "b"], [name + "low"]),
            helper.make_node("Mul", [name, "from0"], [name + "c"]),
            helper.make_node("ReduceMax", [name + "c"], [name + "d"], axes=[1], keepdims=1),
            helper.make_node("Add", [name + "d", "one"], [name + "high"]),
        ]
    nodes += [
        helper.make_node("Mul", ["xlow", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "sure"], ["score"]),
        helper.make_node("Concat", ["xlow", "ylow", "xhigh", "yhigh", "score"], ["row"], axis=1),
        helper.make_node("Unsqueeze", ["row", "axis"], ["out"]),
    ]
    given = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])]
    out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", given, out, arrays), ir_version=8)
    model.opset_import[0].version = 17
    onnx.save(model, path)
    return path


def outputs_of(head, rows=ROWS):
    """What a head gives for `rows`."""
    box, sure, scores = rows[:, :4], rows[:, 4:5], rows[:, 5:]
    corners = np.hstack([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2])
    best = scores.argmax(axis=1)[:, None]
    return {
        "yolov5": [np.hstack([box, sure, scores])],
        "yolov8": [np.hstack([box, scores]).T],
        "rtdetr": [np.hstack([box / SIDE, scores])],
        "rtdetr, two outputs": [scores, box / SIDE],
        "yolov10": [np.hstack([corners, scores.max(axis=1, keepdims=True), best])],
    }[head]


@pytest.fixture
def photo(tmp_path):
    """A dull photo of 180 × 90 pixels: in the input its scale is 64/180, below and above are bars of 16 rows."""
    Image.new("RGB", (180, 90), (90, 90, 90)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def stored(path, card=CARD, **change):
    """Write a card of a file beside it."""
    card = replace(card, **{"file": path.name, "sha256": file_sha256(path)} | change)
    write_detector_card(path, card)
    return card


# --- letterboxes


SIDES = st.integers(1, 6000)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.tuples(SIDES, SIDES), st.tuples(st.integers(8, 1400), st.integers(8, 1400)), st.sampled_from(FITS), st.data())
@example((10_000, 3), (640, 640), "centre", None)
@example((1, 4999), (640, 384), "corner", None)
def test_letterbox_of_any_photo_brings_boxes_back_within_half_a_pixel(photo, size, fit, data):
    place = fit_photo(photo, size, fit)
    whole = place.to_input([[0, 0, *photo]])[0]
    assert (whole >= 0).all() and (whole[2:] <= np.add(size, 1e-6)).all() and min(place.inside) >= 1
    assert place.to_photo([whole]) == pytest.approx(np.array([[0, 0, *photo]]))
    if fit != "stretch":  # one side is filled, the other is that of the photo's shape to a pixel
        scale = min(size[0] / photo[0], size[1] / photo[1])
        assert place.inside[0] == size[0] or place.inside[1] == size[1]
        assert all(abs(a - max(b * scale, 1)) <= 0.5 + 1e-9 for a, b in zip(place.inside, photo, strict=True))
    if data is None:
        return
    low = [data.draw(st.floats(0, side)) for side in photo]
    high = [data.draw(st.floats(a, side)) for a, side in zip(low, photo, strict=True)]
    assert np.abs(place.to_photo(place.to_input([[*low, *high]])) - [[*low, *high]]).max() < 0.5


def test_letterbox_by_hand_has_its_odd_pixel_below():
    place = fit_photo((100, 49), (64, 64))  # 64 × 31.36, so 31 rows, and bars of 16 and 17
    assert (place.inside, place.offset) == ((64, 31), (0, 16))
    pixels = letterbox(np.full((49, 100, 3), 9, np.uint8), place, pad=114)
    assert (pixels[:16] == 114).all() and (pixels[16:47] == 9).all() and (pixels[47:] == 114).all()
    assert fit_photo((100, 49), (64, 64), "corner").offset == (0, 0)
    assert fit_photo((49, 100), (64, 64)).to_input([[0, 0, 49, 100]]).tolist() == [[16, 0, 47, 64]]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_detect_in_a_photo_that_was_turned_boxes_what_is_shown(tmp_path, fit, orientation):
    upright = np.full((211, 333, 3), 20, np.uint8)
    upright[50:120, 200:290] = 255
    turned = {1: upright, 6: np.rot90(upright), 3: np.rot90(upright, 2)}[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "a.png", exif=exif)
    detector = OnnxDetector(bright_graph(tmp_path / "b.onnx"), replace(CARD, head="yolov10", fit=fit))
    found = detector.detect([tmp_path / "a.png"])
    assert found[["W", "H"]].to_numpy().tolist() == [[333, 211]]
    scale = np.tile(np.divide((333, 211), fit_photo((333, 211), (SIDE, SIDE), fit).inside), 2)
    assert (np.abs(found[BOX].to_numpy(float)[0] - [200, 50, 290, 120]) <= scale).all()  # a pixel of the input


# --- heads


@pytest.mark.parametrize("head", ["yolov5", "yolov8", "rtdetr", "rtdetr, two outputs", "yolov10"])
def test_boxes_of_each_head_are_those_in_its_output(photo, tmp_path, head):
    kind = head.partition(",")[0]
    card = replace(CARD, head=kind, coordinates="fractions" if kind == "rtdetr" else "pixels")
    path = graph(tmp_path / "mega.onnx", outputs_of(head))
    if head == "rtdetr, two outputs":
        model = onnx.load(path)
        model.graph.node[-1].output[0], model.graph.output[1].name = "pred_boxes", "pred_boxes"
        onnx.save(model, path)
    found = OnnxDetector(path, card).detect([photo])
    sure = ROWS[[0, 2, 3], 4] if kind == "yolov5" else 1
    scores = np.array([0.9, 0.9, 0.4]) * sure
    order = np.argsort(-scores, kind="stable")
    assert found["class"].tolist() == [("animal", "person", "animal")[i] for i in order]
    assert found["confidence"].tolist() == pytest.approx(scores[order], abs=1e-4)
    by_hand = np.array([[10, 25, 30, 35], [11, 25, 31, 35], [45, 40, 55, 60]])[order] - [0, 16, 0, 16]
    by_hand = (by_hand * 180 / 64).clip(0, [180, 90, 180, 90])
    assert np.abs(found[BOX].to_numpy(float) - by_hand).max() <= 0.051
    assert best_boxes(found, card)["confidence"].tolist() == [pytest.approx(scores[0], abs=1e-4)]


def test_boxes_of_photos_in_batches_of_any_size_are_the_same(photo, tmp_path):
    for name, count in (("open", "n"), ("one", 1), ("four", 4)):
        graph(tmp_path / f"{name}.onnx", outputs_of("yolov8"), shape=(count, 3, SIDE, SIDE))
    tables = [OnnxDetector(tmp_path / f"{name}.onnx", CARD).detect([photo] * 11) for name in ("open", "one", "four")]
    assert len(tables[0]) == 33 and all(table.equals(tables[0]) for table in tables)
    assert OnnxDetector(tmp_path / "one.onnx", CARD).detect([]).empty


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.UINT8])
def test_inputs_of_half_precision_and_of_whole_numbers_are_fed(photo, tmp_path, kind):
    path = graph(tmp_path / "x.onnx", outputs_of("yolov8"), shape=(1, SIDE, SIDE, 3), kind=kind)
    card = replace(CARD, layout="nhwc", scale=1.0)
    assert len(OnnxDetector(path, card).detect([photo])) == 3
    if kind == TensorProto.UINT8:
        with pytest.raises(UserError, match="must say scale 1"):
            OnnxDetector(path, replace(card, scale=255.0))


boxes_drawn = st.lists(
    st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(1, 30)] * 2, st.floats(0, 1), st.integers(0, 2)), max_size=25
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(boxes_drawn, st.floats(0.1, 0.9))
def test_keep_best_leaves_no_two_boxes_of_a_class_that_overlap_and_loses_no_animal(drawn, overlap):
    from happywhale_nb.data.boxes import iou

    table = np.array(drawn, float).reshape(-1, 6)
    corners = np.hstack([table[:, :2], table[:, :2] + table[:, 2:4]])
    kept = keep_best(Candidates(corners, table[:, 4], table[:, 5].astype(int)), replace(CARD, max_overlap=overlap))
    assert (np.diff(kept.confidence) <= 0).all() and (kept.confidence >= CARD.min_confidence).all()
    for i, box in enumerate(kept.corners):
        same = (kept.classes[:i] == kept.classes[i]).nonzero()[0]
        assert not (iou(kept.corners[same], np.tile(box, (len(same), 1))) > overlap + 1e-6).any()
    for box, sure, kind in zip(corners, table[:, 4], table[:, 5], strict=True):
        if sure >= CARD.min_confidence:
            near = kept.corners[kept.classes == kind]
            assert (iou(near, np.tile(box, (len(near), 1))) >= min(overlap, 1) - 1e-6).any()


def test_an_old_yolov5_export_with_feature_maps_beside_its_boxes_is_read(photo, tmp_path):
    path = graph(tmp_path / "x.onnx", [*outputs_of("yolov5"), np.zeros((3, 4, 4, 8)), np.zeros((3, 2, 2, 8))])
    assert len(OnnxDetector(path, replace(CARD, head="yolov5")).detect([photo])) == 3


# --- cards that are wrong


def refusal(make, *arguments, **named):
    """The one line by which something is refused."""
    with pytest.raises(UserError) as caught:
        make(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_open_detector_of_what_is_none_says_what_it_is(tmp_path):
    stored(graph(tmp_path / "text.onnx", outputs_of("yolov8")))
    (tmp_path / "text.onnx").write_text("no ONNX")
    assert "ONNX file" in refusal(open_detector, tmp_path / "text.onnx")
    two = graph(tmp_path / "two.onnx", outputs_of("yolov8"), names=("images", "orig_target_sizes"))
    stored(two)
    assert "takes 2 inputs (images, orig_target_sizes)" in refusal(open_detector, two)
    flat = graph(tmp_path / "flat.onnx", outputs_of("yolov8"), kind=TensorProto.INT64)
    stored(flat)
    assert "is not a picture" in refusal(open_detector, flat)
    assert "has no card (none.json)" in refusal(open_detector, graph(tmp_path / "none.onnx", outputs_of("yolov8")))
    assert "there is no detector" in refusal(open_detector, tmp_path / "gone.onnx")
    (tmp_path / "model.pt").write_bytes(b"PK")
    assert "is not a detector" in refusal(open_detector, tmp_path / "model.pt")


def test_open_detector_of_another_file_than_its_cards_is_refused(tmp_path):
    path = graph(tmp_path / "x.onnx", outputs_of("yolov8"))
    stored(path)
    graph(path, outputs_of("yolov8", ROWS[:2]))
    assert "is not the file that its card is about" in refusal(open_detector, path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"head": "yolov5"}, "not the head yolov5 of its card"),
        ({"classes": ("animal",)}, "3 scores a box, but its card names 1 classes"),
        ({"classes": tuple("abcdefghi"), "wanted": ("a",)}, "3 scores a box, but its card names 9 classes"),
        ({"layout": "nhwc"}, "its card says layout nhwc"),
        ({"width": 96}, "its card says 96 x 64"),
        ({"coordinates": "fractions"}, "they are pixels, and the card says fractions"),
    ],
)
def test_a_card_that_does_not_fit_its_file_is_named(tmp_path, change, part):
    rows = np.repeat(ROWS, 3, axis=0)  # more boxes than scores, as always
    path = graph(tmp_path / "x.onnx", outputs_of("yolov8", rows))
    stored(path, **change)
    assert part in refusal(open_detector, path)


def test_scores_that_are_logits_and_boxes_that_are_fractions_are_seen_without_a_probe(tmp_path):
    logits = np.hstack([ROWS[:, :4], np.full((5, 1), 0.9), 8 * ROWS[:, 5:] - 4])
    path = graph(tmp_path / "x.onnx", outputs_of("yolov8", logits))
    assert "are they logits?" in refusal(OnnxDetector, path, CARD)
    assert OnnxDetector(path, replace(CARD, scores="logits")) is not None
    path = graph(tmp_path / "y.onnx", [np.vstack([outputs_of("yolov8")[0][:4] / SIDE, outputs_of("yolov8")[0][4:]])])
    assert "they are fractions, and the card says pixels" in refusal(OnnxDetector, path, CARD)
    path = graph(tmp_path / "z.onnx", [outputs_of("yolov8")[0] * np.nan])
    assert "NaN or infinite numbers" in refusal(OnnxDetector, path, CARD)


def test_probe_names_the_field_that_is_wrong(photo, tmp_path):
    path = graph(tmp_path / "mega.onnx", outputs_of("yolov8"))
    found = OnnxDetector(path, CARD).detect([photo])
    boxes = tuple(tuple(row) for row in found[[*BOX, "confidence", "class"]].itertuples(index=False))
    right = stored(path, probe=photo.name, probe_boxes=boxes)
    assert len(open_detector(path).detect([photo])) == 3
    for change, part in (
        ({"fit": "stretch"}, "the boxes are right with fit 'centre'"),
        ({"fit": "corner"}, "the boxes are right with fit 'centre'"),
        ({"classes": ("person", "animal", "vehicle")}, "is called person: are the classes in the order of the scores?"),
    ):
        stored(path, right, **change)
        assert part in refusal(open_detector, path)
    stored(path, right)
    photo.unlink()
    assert "names the probe photo.png, which does not exist" in refusal(open_detector, path)


def test_card_without_a_field_or_with_an_impossible_one_is_refused_by_it(tmp_path):
    whole = json.loads(json.dumps(asdict(CARD)))
    for name in ("licence", "commercial", "fit", "colours", "min_confidence"):
        values = {key: value for key, value in whole.items() if key != name}
        assert f"x.json lacks {name}:" in refusal(make_detector_card, values, "x.json")
    for name, value in {
        "width": 640.5, "height": True, "file": "../x.onnx", "name": "own", "classes": ["a", "a"], "std": [1, 1, 0],
        "min_confidence": 1.5, "probe_boxes": [[1, 2, 3]], "wanted": ["whale"], "scale": float("nan"), "pad": -1,
    }.items():  # fmt: skip
        assert f"x.json: {name}" in refusal(make_detector_card, whole | {name: value}, "x.json")
    told = refusal(make_detector_card, whole | {"letterbox": True}, "x.json")
    assert "unknown field of the detector card x.json 'letterbox'" in told
    assert "is not a valid detector card" in refusal(make_detector_card, [1], "x.json")
    (tmp_path / "x.json").write_text("{")
    assert "is not valid JSON" in refusal(read_detector_card, tmp_path / "x.onnx")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(asdict(CARD))), JSON)
def test_card_with_any_value_is_a_card_or_one_clear_line(name, value):
    try:
        made = make_detector_card(asdict(CARD) | {name: value}, "x.json")
    except UserError as error:
        assert str(error).startswith("x.json") and name in str(error)
    else:
        assert make_detector_card(json.loads(json.dumps(asdict(made))), "x.json") == made


def test_detector_card_command_takes_what_the_file_tells_and_checks_the_box_that_is_expected(photo, tmp_path):
    names = "{0: 'animal', 1: 'person', 2: 'vehicle'}"
    rows = np.repeat(ROWS, 3, axis=0)
    path = graph(tmp_path / "mdv 5.onnx", outputs_of("yolov8", rows), ("n", 3, "h", "w"), about={"names": names})
    base = ["detector", "card", str(path), "--licence", "MIT", "--commercial", "--probe", str(photo)]
    unsized = CliRunner().invoke(main, base)
    assert unsized.exit_code == 2 and "takes pictures of any size" in unsized.stderr
    wrong = CliRunner().invoke(main, [*base, "--size", "64", "--fit", "stretch", "--expect", "28 25 84 53"])
    assert wrong.exit_code == 2 and "found with fit 'centre'" in wrong.stderr and not path.with_suffix(".json").exists()
    done = CliRunner().invoke(main, [*base, "--size", "64", "--expect", "28 25 84 53"])
    assert done.exit_code == 0, done.output
    card = read_detector_card(path)
    assert (card.name, card.head, card.classes, card.wanted) == ("mdv-5", "yolov8", CLASSES, ("animal",))
    assert "person (not cropped)" in done.output and len(card.probe_boxes) == 3
    assert "cannot distinguish the card from one with" in done.output  # it never looks at colours
    again = CliRunner().invoke(main, [*base, "--size", "64"])
    assert again.exit_code == 2 and "--replace" in again.stderr
    elsewhere = CliRunner().invoke(main, [*base, "--size", "64", "--expect", "150 70 170 80"])
    assert elsewhere.exit_code == 2 and "no single change of the card finds it" in elsewhere.stderr


def test_draft_of_a_file_that_may_be_several_heads_asks(tmp_path):
    known = {"licence": "MIT", "commercial": True}
    path = graph(tmp_path / "x.onnx", [np.zeros((9, 6))])
    assert "may be yolov10 or yolov5" in refusal(draft_detector_card, path, known | {"classes": ["whale"]})
    path = graph(tmp_path / "y.onnx", [np.zeros((84, 8400))])
    assert "gives 80 scores a box: name its classes" in refusal(draft_detector_card, path, known | {"head": "yolov8"})
    path = graph(tmp_path / "z.onnx", [np.zeros((7, 7, 7))])
    assert "fits no head" in refusal(draft_detector_card, path, known)


def test_names_of_classes_in_a_file_are_read_and_never_run(tmp_path):
    rows = np.repeat(ROWS, 3, axis=0)
    path = graph(tmp_path / "x.onnx", outputs_of("yolov8", rows), about={"names": "__import__('os').abort()"})
    known = {"licence": "MIT", "commercial": True, "head": "yolov8"}
    assert "gives 3 scores a box: name its classes" in refusal(draft_detector_card, path, known)


# --- a data folder, and a catalogue


@pytest.fixture
def bright_folder(tiny_copy, tmp_path):
    """A data folder without boxes whose first photo has a bright patch, and a detector of bright patches."""
    for path in (tiny_copy / "boxes").glob("*.csv"):
        path.unlink()
    dataset = read_dataset(tiny_copy)
    for path in [*dataset.train_paths(), *dataset.test_paths()]:
        pixels = np.full((40, 60, 3), 10, np.uint8)
        pixels[10:30, 20:50] = 255 if path == dataset.train_paths()[0] else 10
        Image.fromarray(pixels).save(path)
    path = bright_graph(tmp_path / "bright.onnx")
    stored(path, head="yolov10", name="bright", fit="stretch")
    return dataset, path


def test_detector_apply_keeps_all_boxes_names_photos_without_and_goes_on(bright_folder, monkeypatch, tmp_path):
    dataset, path = bright_folder
    (tmp_path / "settings.ini").touch(), (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["detector", "apply", str(dataset.root), "--detector", str(path)]
    photos = len(dataset.train_paths()) + len(dataset.test_paths())
    seen, run = [], OnnxDetector.run

    def stopped(self, pixels):
        seen.append(len(pixels))
        if sum(seen) > 22:
            raise KeyboardInterrupt
        return run(self, pixels)

    monkeypatch.setattr(OnnxDetector, "run", stopped)
    assert CliRunner().invoke(main, words).exit_code != 0
    assert not (dataset.root / "boxes" / "bright.csv").exists()
    monkeypatch.setattr(OnnxDetector, "run", run)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert (
        f"{photos} photographs, 1 boxes of animals" in done.output
        and "16 of the photographs were processed" in done.output
    )
    assert f"{photos - 1} photographs without an animal: train: {dataset.train_paths()[1].name}" in done.output
    boxes = read_boxes(dataset.root)
    assert boxes["source"].tolist() == ["bright"] and boxes["image"].tolist() == [dataset.train_paths()[0].name]
    assert np.abs(boxes[BOX].to_numpy(float)[0] - [20, 10, 50, 30]).max() < 1
    table = pd.read_csv(dataset.root / "boxes" / "bright.csv")
    assert list(table.columns[:10]) == [
        *["image", "part", "xmin", "ymin", "xmax", "ymax", "confidence", "class", "W", "H"]
    ]


def test_box_folder_overwrites_no_boxes_that_it_has_not_written(bright_folder, tmp_path):
    dataset, path = bright_folder
    theirs = dataset.root / "boxes" / "bright_train.csv"
    theirs.write_text("image,xmin,ymin,xmax,ymax\na.jpg,1,2,30,40\n")
    assert "give the card another name" in refusal(box_folder, dataset, open_detector(path), tmp_path / "found")
    theirs.rename(dataset.root / "boxes" / "bright.csv")
    assert "give the card another name" in refusal(box_folder, dataset, open_detector(path), tmp_path / "found")


def test_found_boxes_pass_over_a_torn_line_and_a_photo_that_was_replaced(bright_folder, tmp_path):
    dataset, path = bright_folder
    detector, paths = open_detector(path), dataset.train_paths()[:3]
    FoundBoxes(tmp_path / "f.jsonl").add(paths, detector.detect(paths))
    text = (tmp_path / "f.jsonl").read_text()
    (tmp_path / "f.jsonl").write_text(text[:-9])
    known = FoundBoxes(tmp_path / "f.jsonl")
    assert [known.get(photo) is not None for photo in paths] == [True, True, False]
    known.add(paths[2:], detector.detect(paths[2:]))
    Image.new("RGB", (9, 9)).save(paths[0])
    assert [FoundBoxes(tmp_path / "f.jsonl").get(photo) is not None for photo in paths] == [False, True, True]


def test_a_person_is_never_cropped_however_sure_the_detector_is(photo, tiny_copy, tmp_path):
    for path in (tiny_copy / "boxes").glob("*.csv"):
        path.unlink()
    dataset = read_dataset(tiny_copy)
    rows = np.array([[20, 30, 20, 10, 1, 0.3, 0.9, 0], [50, 30, 10, 20, 1, 0.5, 0, 0], [20, 30, 20, 10, 1, 0, 0, 0.8]])
    path = graph(tmp_path / "mega.onnx", outputs_of("yolov8", rows))
    stored(path)
    boxed = box_folder(dataset, open_detector(path), tmp_path / "found", quiet=True)
    photos = len(dataset.train_paths()) + len(dataset.test_paths())
    assert boxed.others == {"person": photos, "vehicle": photos} and boxed.animals == photos and not boxed.without
    boxes = read_boxes(tiny_copy)
    assert len(boxes) == photos and set(boxes["confidence"]) == {0.5}
    chosen = CropMix.parse("auto", boxes["source"]).prefer(dataset.train["image"], boxes)
    assert set(chosen["source"]) == {"mega"} and set(chosen["confidence"]) == {0.5}


def test_copy_detector_takes_all_its_files_and_the_place_of_another(photo, tmp_path):
    path = graph(tmp_path / "mega.onnx", outputs_of("yolov8"))
    weights = keep_elsewhere(path, "mega.onnx.data").read_bytes()
    found = OnnxDetector(path, CARD).detect([photo])
    boxes = tuple(tuple(row) for row in found[[*BOX, "confidence", "class"]].itertuples(index=False))
    stored(path, probe=photo.name, probe_boxes=boxes)
    (tmp_path / "model").mkdir(), (tmp_path / "own.keras").write_bytes(b"ours")
    assert kept_detector(tmp_path / "model") is None
    assert copy_detector(tmp_path / "own.keras", tmp_path / "model") == kept_detector(tmp_path / "model")
    for _ in range(2):
        copied = copy_detector(path, tmp_path / "model")
        assert kept_detector(tmp_path / "model") == copied and not (tmp_path / "model" / "detector.keras").exists()
    assert open_detector(copied).fingerprint == open_detector(path).fingerprint
    assert (copied / "mega.onnx.data").read_bytes() == weights
    copy_detector(tmp_path / "own.keras", tmp_path / "model")
    assert [each.name for each in (tmp_path / "model").iterdir()] == ["detector.keras"]
    photo.unlink()
    assert "photo.png is missing" in refusal(copy_detector, path, tmp_path / "model")


def keep_elsewhere(path, name):
    """Move the weights of an ONNX file into another file."""
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=name, size_threshold=64)
    return path.with_name(name)


@pytest.mark.parametrize("name", ["det_weights.bin", "det.onnx.data"])
def test_weights_in_a_file_of_any_name_have_a_checksum_and_are_copied(photo, tmp_path, name):
    path = graph(tmp_path / "det.onnx", outputs_of("yolov8"))
    before = OnnxDetector(path, CARD).detect([photo])
    weights = keep_elsewhere(path, name)
    words = ["detector", "card", str(path), "--licence", "MIT", "--commercial", "--head", "yolov8"]
    done = CliRunner().invoke(main, [*words, "--classes", ",".join(CLASSES)])
    assert done.exit_code == 0, done.output
    card = read_detector_card(path)
    assert card.data == (name,)
    write_detector_card(path, replace(card, wanted=("animal",), min_confidence=0.2))
    (tmp_path / "model").mkdir()
    copied = copy_detector(path, tmp_path / "model")
    assert sorted(each.name for each in copied.iterdir()) == sorted(["detector.json", "det.onnx", name])
    pd.testing.assert_frame_equal(
        open_detector(copied).detect([photo]).drop(columns="source"), before.drop(columns="source")
    )
    write_detector_card(path, replace(read_detector_card(path), data=()))  # as cards were before
    assert open_detector(path).fingerprint == open_detector(copied).fingerprint
    assert len(copy_detector(path, tmp_path / "model").parent.joinpath("detector", name).read_bytes())
    write_detector_card(path, replace(read_detector_card(path), data=("other.bin",)))
    assert "its card list different weights files" in refusal(open_detector, path)
    write_detector_card(path, replace(read_detector_card(path), data=(name,)))
    weights.write_bytes(bytes(weights.stat().st_size))
    assert "is not the file that its card is about" in refusal(open_detector, path)
    weights.unlink()
    assert f"{name} is missing" in refusal(open_detector, path)
    assert f"{name} is missing" in refusal(copy_detector, path, tmp_path / "model")


def test_detector_that_is_not_for_commercial_use_is_used_once_it_is_accepted(bright_folder, monkeypatch, tmp_path):
    dataset, path = bright_folder
    (tmp_path / "settings.ini").touch(), (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path)
    stored(path, read_detector_card(path), commercial=False, licence="CC-BY-NC-4.0")
    words = ["detector", "apply", str(dataset.root), "--detector", str(path)]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2 and "give --accept-licence" in refused.stderr
    assert CliRunner().invoke(main, [*words, "--accept-licence"]).exit_code == 0


def test_photo_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff no photo")
    for card in (CARD, replace(CARD, fit="stretch", resize="area")):
        assert "half.jpg cannot be decoded" in refusal(detector_pixels, tmp_path / "half.jpg", card)
    assert "gone.jpg is missing" in refusal(detector_pixels, tmp_path / "gone.jpg", CARD)


# --- our own, exported


def by_hand(*heads):
    """Cases that take seconds each and differ little, for `make soak`."""
    return [pytest.param(head, marks=pytest.mark.soak) for head in heads]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", ["yolov8", "ours", *by_hand("yolov5", "rtdetr", "yolov10")])
def test_own_detector_exported_to_a_head_boxes_as_it_does(tiny, tmp_path, head):
    from happywhale_nb.demo.season import demo_model

    photos = read_dataset(tiny).train_paths()[:5]
    words = ["--to", str(tmp_path / "ours.onnx"), "--head", head, "--probe", str(photos[0])]
    done = CliRunner().invoke(main, ["detector", "export", str(demo_model("detector.keras")), *words])
    assert done.exit_code == 0, done.output
    exported = open_detector(tmp_path / "ours.onnx").detect(photos)
    ours = open_detector(demo_model("detector.keras")).detect(photos)
    assert np.abs(exported[BOX].to_numpy(float) - ours[BOX].to_numpy(float)).max() <= 0.11
    assert np.abs(exported["confidence"] - ours["confidence"]).max() < 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_embedder_with_an_onnx_detector_takes_the_best_animal(photo, tmp_path):
    from happywhale_nb.demo.season import demo_model
    from happywhale_nb.networks.embedder import Embedder

    path = graph(tmp_path / "mega.onnx", outputs_of("yolov8"))
    stored(path)
    plain, boxed = Embedder(demo_model()), Embedder(demo_model(), path)
    try:
        found = boxed.detect([photo])
        assert plain.fingerprint == boxed.fingerprint  # boxes are told by the catalogue, not by the fingerprint
        assert found["source"].tolist() == ["detector"] and found["confidence"].tolist() == [0.9]
        assert boxed.crop_boxes([photo], found)[0][0] == "detector" and boxed.detect([]).empty
    finally:
        plain.close(), boxed.close()


def test_check_head_lets_each_head_pass_with_its_own_shapes():
    for head in ("yolov5", "yolov8", "rtdetr", "rtdetr, two outputs", "yolov10"):
        card = replace(CARD, head=head.partition(",")[0])
        check_head([output.shape for output in outputs_of(head)], card, "x.onnx")
        assert len(read_candidates(outputs_of(head)[::-1], card).classes) == 5
