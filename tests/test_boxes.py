"""Boxes in every spelling, clipped to their pictures, and mixes of sources against a plain choice."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.boxes import BOX, BOX_COLUMNS, LEAST, CropMix, clean_boxes, iou, read_box_tables, read_boxes
from happywhale_nb.data.dataset import read_dataset, read_sizes, read_skips

quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAN = float("nan")


def table(rows, source="detic", frame=(100, 80)):
    """Boxes `[image, x0, y0, x1, y1]` of one source, measured in pictures of one size."""
    boxes = pd.DataFrame(rows, columns=["image", *BOX]).assign(source=source, confidence=1.0)
    return boxes.assign(W=float(frame[0]), H=float(frame[1]))


def test_clean_boxes_clips_drops_and_counts_them():
    rows = [
        ["a", 10, 10, 20, 20],
        ["b", -5, 10, 120, 90],
        ["c", 30, 30, 30, 50],
        ["d", 200, 10, 220, 20],
        ["e", NAN, NAN, NAN, NAN],
        ["f", 50, 40, 20, 60],
    ]
    clean, report = clean_boxes(table(rows))
    assert report.loc["detic"].to_dict() == {"rows": 6, "without": 1, "degenerate": 3, "clipped": 1, "kept": 2}
    assert clean[BOX].to_numpy().tolist() == [[10, 10, 20, 20], [0, 10, 100, 80]]


def test_clean_boxes_counts_a_box_as_clipped_from_half_a_pixel_on():
    clean, report = clean_boxes(table([["a", -0.4, 0, 50, 80.4], ["b", 1, 1, 100.5, 9], ["c", 1, -0.5, 9, 9]]))
    assert report.loc["detic", "clipped"] == 2 and report.loc["detic", "kept"] == 3
    assert clean[BOX].to_numpy().tolist() == [[0, 0, 50, 80], [1, 1, 100, 9], [1, 0, 9, 9]]


def test_clean_boxes_without_a_frame_clips_at_the_upper_left_edge_alone():
    clean, _ = clean_boxes(table([["a", -5, 3, 4000, 5000], ["b", -9, -9, -1, 5]], frame=(NAN, NAN)))
    assert clean[BOX].to_numpy().tolist() == [[0, 3, 4000, 5000]]


NUMBERS = st.integers(-40, 140) | st.floats(-40, 140).map(lambda x: round(x, 2)) | st.just(NAN)
SIDES = st.integers(1, 100)


@st.composite
def some_boxes(draw):
    """Rows as a person or a program may leave them: outside, turned round, empty, without a frame."""
    corners = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
    frames = st.tuples(SIDES, SIDES) | st.just((NAN, NAN))
    rows = draw(st.lists(st.tuples(st.sampled_from(["one", "two"]), corners, frames), min_size=1, max_size=6))
    boxes = pd.DataFrame([corners for _, corners, _ in rows], columns=BOX, dtype=float)
    boxes[["W", "H"]] = np.array([frame for *_, frame in rows], float)
    return boxes.assign(image=[f"{i}.jpg" for i in range(len(rows))], source=[s for s, *_ in rows], confidence=1.0)


def plain_box(row):
    """What becomes of one row: `without`, `degenerate`, or its box inside the picture."""
    if any(math.isnan(row[name]) for name in BOX):
        return "without"
    right, bottom = (math.inf if math.isnan(row[side]) else row[side] for side in "WH")
    box = [min(max(row[name], 0), edge) for name, edge in zip(BOX, (right, bottom, right, bottom), strict=True)]
    least = [min(LEAST, edge) for edge in (right, bottom)]
    return box if box[2] - box[0] >= least[0] and box[3] - box[1] >= least[1] else "degenerate"


@quick
@given(some_boxes())
def test_clean_boxes_of_any_rows_keeps_what_a_plain_reader_keeps(boxes):
    """Kept boxes are ordered, inside and never larger, and cleaning them again changes nothing."""
    clean, report = clean_boxes(boxes)
    expected = [plain_box(row) for row in boxes.to_dict("records")]
    kept, found = [isinstance(box, list) for box in expected], clean[BOX].to_numpy()
    assert found.tolist() == [box for box in expected if isinstance(box, list)]
    assert clean["image"].tolist() == boxes["image"][kept].tolist()
    for source in set(boxes["source"]):
        own = [box for box, of in zip(expected, boxes["source"], strict=True) if of == source]
        counts = {"rows": len(own), "without": own.count("without"), "degenerate": own.count("degenerate")}
        counts["kept"] = sum(isinstance(box, list) for box in own)
        assert {name: report.loc[source, name] for name in counts} == counts
    before, frame = boxes[BOX].to_numpy()[kept], clean[["W", "H"]].fillna(np.inf).to_numpy()
    assert (found[:, :2] < found[:, 2:]).all() and (found[:, :2] >= 0).all() and (found[:, 2:] <= frame).all()
    assert (found[:, :2] >= before[:, :2]).all() and (found[:, 2:] <= before[:, 2:]).all()
    again, report = clean_boxes(clean)
    assert again.equals(clean) and not report[["without", "degenerate", "clipped"]].to_numpy().any()


SPELLINGS = {
    "brackets": "image,bbox,conf\na.jpg,[[1 2 31 22]],[[0.5]]\n",
    "bare": "image,box\na.jpg,1 2 31 22\n",
    "corners": "image,xmin,ymin,xmax,ymax,confidence\na.jpg,1.0,2.0,31.0,22.0,0.5\n",
    "by hand": "filename,x,y,w,h\na.jpg,1,2,30,20\n",
    "several sources": "image,one,two\na.jpg,1 2 31 22,1 2 31 22\n",
    "commas": 'image,box\nb.jpg,\na.jpg,"[1, 2, 31, 22]"\n',
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_read_boxes_in_every_spelling_gives_the_same_box(name, tmp_path):
    (tmp_path / "boxes.csv").write_text(SPELLINGS[name])
    boxes = read_boxes(tmp_path)
    assert (boxes[BOX].to_numpy() == [1, 2, 31, 22]).all() and len(boxes) == (2 if name == "several sources" else 1)
    assert set(boxes["image"]) == {"a.jpg"}
    assert set(boxes["confidence"]) == ({0.5} if "conf" in SPELLINGS[name] else {1.0})
    assert set(boxes["source"]) == ({"one", "two"} if name == "several sources" else {"boxes"})


def test_read_boxes_with_confidences_reads_commas_and_gaps_and_refuses_what_is_none(tmp_path):
    def write(*confidences):
        rows = [f'{i}.jpg,1 2 31 22,"{text}"' for i, text in enumerate(confidences)]
        (tmp_path / "boxes.csv").write_text("\n".join(["image,box,conf", *rows]) + "\n")

    write("0,85", "", "nan", "[0.5]", "1.0000001")
    assert read_boxes(tmp_path)["confidence"].tolist() == [0.85, 1, 1, 0.5, 1]
    for wrong in ("high", "85%", "85", "-0.1"):
        write("0.5", wrong)
        with pytest.raises(UserError, match=f"row 3: conf '{wrong}' is not a (confidence|number)"):
            read_boxes(tmp_path)


# numbers are read with a digit before the point: ".5" is taken for 5
WRITTEN = st.integers(0, 9999).map(lambda n: f"{n / 10:g}") | st.integers(0, 9999).map(lambda n: f"{n}.0")

SURE = st.integers(0, 1000).map(lambda n: f"{n / 1000:g}")


@settings(quick, max_examples=15)
@given(st.lists(st.tuples(WRITTEN, WRITTEN, WRITTEN, WRITTEN, SURE), min_size=1, max_size=4))
def test_read_box_tables_of_any_numbers_gives_them_in_every_spelling(tmp_path, rows):
    (tmp_path / "boxes").mkdir(exist_ok=True)
    lines = {
        "brackets_train": ["image,bbox,conf"],
        "bare_test": ["image,box,conf"],
        "corners": ["image,xmin,ymin,xmax,ymax,conf"],
    }
    for i, (*box, conf) in enumerate(rows):
        lines["brackets_train"].append(f"{i}.jpg,[[{'  '.join(box)}]],[{conf}]")
        lines["bare_test"].append(f"{i}.jpg,{' '.join(box)},{conf}")
        lines["corners"].append(f"{i}.jpg,{','.join(box)},{conf}")
    for name, text in lines.items():
        (tmp_path / "boxes" / f"{name}.csv").write_text("\n".join(text) + "\n")
    boxes = read_box_tables(tmp_path)
    for source in ("brackets", "bare", "corners"):
        own = boxes[boxes["source"] == source]
        assert own[[*BOX, "confidence"]].to_numpy().tolist() == [[float(number) for number in row] for row in rows]
        assert own["image"].tolist() == [f"{i}.jpg" for i in range(len(rows))]


def test_read_box_tables_takes_the_frame_from_the_table_or_else_from_the_sizes(tmp_path):
    (tmp_path / "image_sizes_train.csv").write_text('image,shapes\na.jpg,"(804, 671)"\nb.jpg,"(30, 20)"\n')
    (tmp_path / "image_sizes_test.csv").write_text('image,shapes\na.jpg,"(1, 1)"\n')
    (tmp_path / "boxes.csv").write_text("image,W,H,box\na.jpg,,,0 0 9 9\nb.jpg,50,40,0 0 9 9\nc.jpg,,,0 0 9 9\n")
    boxes = read_box_tables(tmp_path)
    assert boxes[["W", "H"]].iloc[1].tolist() == [50, 40] and boxes[["W", "H"]].iloc[2].isna().all()
    assert boxes[["W", "H"]].iloc[0].tolist() == [1, 1]  # the first of image_sizes_test, image_sizes_train
    (tmp_path / "boxes.csv").unlink()
    assert list(read_box_tables(tmp_path)) == [*BOX_COLUMNS, "part"] and read_boxes(tmp_path).empty


def test_read_boxes_of_a_table_without_boxes_says_what_was_found_and_what_is_read(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,left,right\na.jpg,one,two\n")
    with pytest.raises(UserError, match=r"found: image, left, right; a box is .* xmin, ymin, xmax, ymax"):
        read_boxes(tmp_path)
    (tmp_path / "boxes.csv").write_text("photo,box\na.jpg,1 2 3 4\n")
    with pytest.raises(UserError, match=r"no column 'image' \(found: photo, box\)"):
        read_boxes(tmp_path)


WHOLE = st.integers(0, 6)
PIXELS = st.tuples(WHOLE, WHOLE, WHOLE, WHOLE)


def pixels_of(box):
    """The unit squares inside a box of whole numbers."""
    x0, y0, x1, y1 = box
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@quick
@given(st.lists(st.tuples(PIXELS, PIXELS), min_size=1, max_size=8))
def test_iou_of_any_boxes_counts_their_common_pixels(pairs):
    one, two = zip(*pairs, strict=True)
    expected = []
    for a, b in pairs:
        union = len(pixels_of(a) | pixels_of(b))
        expected.append(len(pixels_of(a) & pixels_of(b)) / union if union else 0)
    assert iou(one, two).tolist() == pytest.approx(expected)
    assert iou(two, one).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["nobody", "detic:.5 whole:.2", "detic:half whole:.5", "detic:-1 whole:2", "detic:.98"]
)
def test_parse_of_a_mix_that_makes_no_sense_is_refused(text):
    with pytest.raises(UserError, match="crops"):
        CropMix.parse(text, ["detic", "fullbody"])


def test_parse_of_shares_divides_them_by_their_sum():
    assert CropMix.parse("detic:.4 whole:.595", ["detic"]).probabilities == pytest.approx((0.4 / 0.995, 0.595 / 0.995))
    mix = CropMix.parse("fullbody detic:1", ["detic", "fullbody"], min_confidence=0.2)
    assert (mix.sources, mix.probabilities, mix.min_confidence) == (("fullbody", "detic"), (0, 1), 0.2)
    auto = CropMix.parse("auto", ["detic", "backfin", "fullbody_x", "detic"])
    assert (auto.sources, auto.probabilities) == (("fullbody_x", "backfin", "detic"), ())
    assert CropMix.parse("auto", []).sources == () and CropMix.parse("", ["detic"]).sources == ()


def test_prefer_falls_back_from_missing_and_from_weak_boxes():
    boxes = pd.concat([table([["a", 0, 0, 9, 9], ["b", 0, 0, 9, 9]]), table([["c", 1, 1, 9, 9]], "backfin")])
    boxes["confidence"] = [0.9, 0.05, 0.9]
    mix = CropMix.parse("detic:.6 backfin:.4", boxes["source"], min_confidence=0.1)
    assert mix.prefer(list("abcd"), boxes)["source"].tolist() == ["detic", "whole", "backfin", "whole"]
    shares = {share: chosen["source"].tolist() for share, chosen in mix.variants(list("abcd"), boxes)}
    assert shares[0.4] == ["detic", "whole", "backfin", "whole"]
    assert CropMix.parse("detic backfin", boxes["source"]).variants(list("ab"), boxes) == []
    drawn = CropMix.parse("detic:1 backfin:0", boxes["source"]).variants(list("ab"), boxes)
    assert [share for share, _ in drawn] == [1]


def plain_choice(image, boxes, order, least):
    """The source and the left edge of the box that is taken: the surest of the first source that has one."""
    for source in order:
        if source == "whole":
            break
        own = [row for row in boxes if row["image"] == image and row["source"] == source and row["confidence"] >= least]
        if own:
            best = max(own, key=lambda row: row["confidence"])  # the first of equals
            return source, best["x0"]
    return "whole", NAN


@settings(quick, max_examples=40)
@given(st.data())
def test_prefer_of_any_boxes_takes_the_surest_of_the_first_source(data):
    sources, sure = ["detic", "backfin", "fullbody"], st.sampled_from([0.0, 0.2, 0.5, 0.9])
    rows = data.draw(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(sources), sure), max_size=9))
    boxes = pd.DataFrame(rows, columns=["image", "source", "confidence"]).astype({"confidence": float})
    boxes = boxes.assign(x0=np.arange(len(rows), dtype=float), y0=0.0, x1=99.0, y1=9.0, W=NAN, H=NAN)
    boxes.index = range(5, 5 + len(rows))  # as after a selection
    mix = CropMix(tuple(data.draw(st.permutations([*sources, "whole"]))), (), data.draw(sure))
    first = data.draw(st.none() | st.sampled_from(sources))
    order = [*([first] if first else []), *[s for s in mix.sources if s != first]]
    expected = [plain_choice(image, boxes.to_dict("records"), order, mix.min_confidence) for image in "cabd"]
    chosen = mix.prefer(list("cabd"), boxes, first)
    assert chosen["image"].tolist() == list("cabd") and chosen["source"].tolist() == [source for source, _ in expected]
    assert np.array_equal(chosen["x0"].to_numpy(float), [x0 for _, x0 in expected], equal_nan=True)
    assert "rank" not in chosen and set(boxes) <= set(chosen)


@pytest.fixture(scope="module")
def real_boxes(shared):
    """All boxes of the real tables, clean, and how many of which kind there were."""
    return clean_boxes(read_box_tables(shared / "happywhale"))


def test_clean_boxes_of_the_real_tables_counts_every_row(real_boxes, shared):
    clean, report = real_boxes
    assert report.loc["detic", "rows"] == 51033 + 27956 and len(clean) == report["kept"].sum()
    assert (report["rows"] == report["without"] + report["degenerate"] + report["kept"]).all()
    inside = clean["W"].isna() | ((clean["x1"] <= clean["W"]) & (clean["y1"] <= clean["H"]))
    assert inside.all() and (clean[["x0", "y0"]] >= 0).all().all()
    train = read_dataset(shared / "happywhale", need_photos=False).train["image"]
    mix = CropMix.parse("fullbody:.6 backfin:.25 detic:.1 whole:.05", clean["source"], min_confidence=0.1)
    chosen = mix.prefer(train, clean)
    assert chosen["image"].tolist() == train.tolist()
    assert (chosen["source"] == "fullbody").mean() > 0.97


def test_read_boxes_of_the_real_tables_finds_every_source(real_boxes, shared):
    boxes, _ = real_boxes
    known = set(pd.read_csv(shared / "happywhale" / "train.csv", dtype=str)["image"])
    assert boxes.loc[boxes["source"] == "detic", "image"].isin(known).sum() == 51033 - 15362
    assert (boxes["source"] == "yolov5").sum() == 34576
    assert (boxes["source"] == "fullbody_annotations_xywh").sum() > 3000
    photos = read_boxes(shared / "happywhale_photos")
    assert photos["W"].notna().all() and photos["image"].nunique() <= 286


def test_read_boxes_of_fractions_gives_pixels_of_the_known_size_or_of_a_frame(tmp_path):
    (tmp_path / "image_sizes.csv").write_text("image,width,height\na.jpg,400,200\n")
    (tmp_path / "boxes.csv").write_text("image,x,y,w,h\na.jpg,.25,0.5,0.5,5e-1\nb.jpg,0,0,1,1\n")
    boxes = read_boxes(tmp_path)
    assert boxes[[*BOX, "W", "H"]].to_numpy().tolist() == [[100, 100, 300, 200, 400, 200], [0, 0, *[10_000] * 4]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("x,y,w,h\na.jpg,.9,.5,.6,.4\n", r"row 2: the numbers are fractions .* are the first two its centre"),
        ("bbox\na.jpg,10 10 60 50\nb.jpg,.1 .2 .6 .7\n", r"row 3: the box has one pixel, others have many"),
        ("bbox\na.jpg,10 10 60 50\nb.jpg,10 10 60\n", r"row 3: bbox '10 10 60': a box is four numbers"),
        ("bbox\na.jpg,10 10 60 50\nb.jpg,[[1 2 3 4] [5 6 7 8]]\n", r"row 3: bbox .* another box in a row of its own"),
        ("xmin,ymin,xmax,ymax\na.jpg,10,10,60,5o\n", r"row 2: ymax '5o' is not a number"),
        ("bbox,W,H\na.jpg,10 10 60 50,wide1,80\n", r"row 2: W 'wide1' is not a number"),
        ("bbox,W,H\na.jpg,300 200 900 700,400,300\n", r"1 of 1 end beyond their pictures, .* columns W and H"),
    ],
)
def test_read_boxes_that_would_be_boxes_of_something_else_names_the_row(rows, message, tmp_path):
    (tmp_path / "boxes.csv").write_text(f"image,{rows}")
    with pytest.raises(UserError, match=message):
        read_boxes(tmp_path)


def test_read_boxes_with_the_first_cells_empty_or_not_a_number_finds_the_others(tmp_path):
    rows = "a.jpg,[nan nan nan nan]\nb.jpg,None\nc.jpg,[[1 2 30 20]]\nd.jpg,\n"
    (tmp_path / "boxes.csv").write_text(f"image,bbox\n{rows}")
    assert read_boxes(tmp_path)["image"].tolist() == ["c.jpg"]


def folder_of_twins(root):
    """A data folder in which a.jpg is a known photograph and another that is to be identified."""
    for part in ("train", "test"):
        (root / f"{part}_images").mkdir(parents=True)
        Image.new("RGB", (100, 80), "red" if part == "train" else "blue").save(root / f"{part}_images" / "a.jpg")
    (root / "train.csv").write_text("image,species,individual_id\na.jpg,beluga,Ann\n")
    (root / "boxes").mkdir()
    return root


@pytest.mark.parametrize(
    "tables",
    [
        {"own_train.csv": "image,bbox\na.jpg,1 1 9 9\n", "own_test.csv": "image,bbox\na.jpg,2 2 8 8\n"},
        {"own.csv": "image,part,bbox\na.jpg,train,1 1 9 9\na.jpg,Test,2 2 8 8\n"},
        {"own.csv": "image,bbox\ntrain_images/a.jpg,1 1 9 9\ntest_images\\a.jpg,2 2 8 8\n"},
    ],
    ids=["names of tables", "column", "paths"],
)
def test_prefer_of_one_name_in_both_parts_gives_each_its_own_box(tables, tmp_path):
    root = folder_of_twins(tmp_path / "data")
    for name, text in tables.items():
        (root / "boxes" / name).write_text(text)
    boxes = read_boxes(root)
    mix = CropMix.parse("auto", boxes["source"])
    assert [mix.prefer(["a.jpg"], boxes, part=part)["x0"].tolist() for part in ("train", "test")] == [[1], [2]]


def test_tables_with_a_name_of_both_parts_and_no_part_are_refused_with_the_remedy(tmp_path):
    root = folder_of_twins(tmp_path / "data")
    remedy = r"row 2: a\.jpg is in train_images and in test_images: write train_images/a\.jpg or .* column part"
    (root / "boxes" / "own.csv").write_text("image,bbox\na.jpg,1 1 9 9\n")
    (root / "skip.csv").write_text("image,reason\na.jpg,blurred\n")
    (root / "image_sizes.csv").write_text("image,width,height\na.jpg,100,80\n")
    for read in (read_boxes, read_skips, read_sizes, read_dataset):
        with pytest.raises(UserError, match=remedy):
            read(root)
    (root / "skip.csv").write_text("image,reason,part\na.jpg,blurred,test\n")
    assert read_dataset(root).test.empty and len(read_dataset(root).train) == 1
