"""Boxes of another convention than the format's are refused by its name, and fitting ones never."""

import re
import warnings

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.convert import convert
from resobj_d2.data.register import evaluation_records, register_datasets

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def kinds(record):
    return {note.kind: note.count for note in record.notes}


def random_boxes(count=30, seed=0):
    """XYWH inside of a picture of 200 x 100."""
    draw = np.random.default_rng(seed)
    size = draw.uniform(5, [80, 40], size=(count, 2))
    return np.hstack([draw.uniform(0, [200, 100] - size), size])


def content_of(boxes, width=200, height=100):
    image = {"id": 1, "file_name": "1.png", "width": width, "height": height}
    return {
        "images": [image],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": list(map(float, box))}
            for i, box in enumerate(boxes, start=1)
        ],
    }


SCALE = np.array([200, 100, 200, 100.0])


def as_corners(boxes):
    return np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])


def as_centres(boxes):
    return np.hstack([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]])


CONVENTIONS = {
    "xyxy": (
        as_corners,
        "reach out of their pictures, but fit as x1, y1, x2, y2; .*box_format: xyxy",
    ),
    "cxcywh": (as_centres, "but fit as the centre, width, height; .*box_format: cxcywh"),
    "normalized_xywh": (lambda b: b / SCALE, "30 of 30 boxes lie between 0 and 1"),
    "normalized_xyxy": (lambda b: as_corners(b) / SCALE, "lie between 0 and 1.*normalized_xyxy"),
    "normalized_cxcywh": (lambda b: as_centres(b) / SCALE, "between 0 and 1.*normalized_cxcywh"),
}


@pytest.mark.parametrize("box_format", CONVENTIONS)
def test_other_conventions_are_refused_by_name_and_can_be_asked_for(write_coco, box_format):
    convert, message = CONVENTIONS[box_format]
    boxes = random_boxes()
    entry = write_coco(content_of(convert(boxes)))
    with pytest.raises(ValueError, match=message):
        register_datasets([entry])
    register_datasets([{**entry, "box_format": box_format}])
    np.testing.assert_allclose(dataset_record("pets").annotations.boxes, boxes, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_that_fit_are_never_doubted(write_coco, seed):
    register_datasets([write_coco(content_of(random_boxes(1 + seed, seed)))])
    assert dataset_record("pets").notes == ()


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda b: b[:, [1, 0, 3, 2]], "but fit as y, x, height, width"),
        (
            lambda b: as_corners(b)[:, [1, 0, 3, 2]],
            "but fit as y1, x1, y2, x2; .*exchange x and y; ",
        ),
        (
            lambda b: as_corners(b)[:, [2, 3, 0, 1]],
            "but fit as x2, y2, x1, y1; .*exchange the c",
        ),
        (lambda b: b * 3, "far out of their pictures, as if made for pictures of another size"),
    ],
)
def test_boxes_of_no_known_use_are_refused(write_coco, convert, message):
    with pytest.raises(ValueError, match=message):
        register_datasets([write_coco(content_of(convert(random_boxes())))])


def test_exchanged_sides_of_pictures_are_refused(write_coco):
    content = content_of(random_boxes(), width=100, height=200)
    with pytest.raises(ValueError, match="or are width and height of the pictures exchanged"):
        register_datasets([write_coco(content)])


def test_a_stated_format_is_not_doubted(write_coco):
    entry = write_coco(content_of(as_corners(random_boxes())))
    register_datasets([{**entry, "box_format": "xywh"}])
    assert kinds(dataset_record("pets"))["cut"] > 10
    with pytest.raises(ValueError, match="'box_format' must be xywh, xyxy, .*got 'ltrb'"):
        register_datasets([{**entry, "box_format": "ltrb"}])


def test_boxes_that_end_on_the_last_pixel_are_said(write_coco):
    boxes = [[0, y, 199, 10] for y in range(0, 50, 2)]  # 199 = 199 - 0: the whole width lacks one
    register_datasets([write_coco(content_of(boxes))])
    assert kinds(dataset_record("pets")) == {"whole_pixels": 25}


def test_boxes_in_percent_are_said(write_coco):
    boxes = np.vstack([random_boxes(30) / [2, 1, 2, 1], [[0, 0, 100, 100]]])
    register_datasets([write_coco(content_of(boxes, width=1000, height=800))])
    assert kinds(dataset_record("pets")) == {"percent": 31}


def test_other_conventions_of_detectron2s_sets_are_refused(write_coco):
    entry = write_coco(content_of(as_corners(random_boxes())))
    register_coco_instances("theirs", {}, entry["json"], entry["images"])
    with pytest.raises(ValueError, match="but fit as x1, y1, x2, y2"):
        dataset_record("theirs")


@pytest.fixture
def write_yolo(tmp_path):
    """A set of one picture of 200 x 100 with these boxes; returns its entry."""

    def write(boxes):
        Image.new("RGB", (200, 100)).save(tmp_path / "p.png")
        lines = [" ".join(f"{v:.9f}" for v in box) for box in boxes]
        (tmp_path / "p.txt").write_text("".join(f"0 {line}\n" for line in lines))
        return {"name": "pets", "format": "yolo", "images": str(tmp_path), "classes": ["cat"]}

    return write


@pytest.mark.parametrize("box_format", ["normalized_xyxy", "normalized_xywh"])
def test_parts_of_the_picture_are_never_taken_for_pixels(write_yolo, box_format):
    """In pixels every one of them would fit, as a box of less than a pixel."""
    boxes = random_boxes()
    entry = write_yolo(CONVENTIONS[box_format][0](boxes))
    with pytest.raises(ValueError, match="if they are that, set box_format: normalized") as error:
        register_datasets([entry])
        dataset_record("pets")
    assert set(re.findall(r"box_format: (\w+)", str(error.value))) == {
        box_format,
        "normalized_cxcywh",  # cuts them
    }
    stated = "xyxy" if box_format == "normalized_xyxy" else "xywh"
    register_datasets([{**entry, "name": "stated", "box_format": stated}])
    with pytest.raises(ValueError, match=f"lie between 0 and 1, .*set box_format: .*{box_format}"):
        dataset_record("stated")


def test_pixels_are_never_taken_for_parts_of_the_picture(write_yolo):
    register_datasets([{**write_yolo(random_boxes()), "box_format": "normalized_xywh"}])
    with pytest.raises(ValueError, match="but fit as x, y, width, height; .*set box_format: xywh$"):
        dataset_record("pets")


def test_a_few_yolo_boxes_that_reach_out_are_cut(write_yolo):
    """6 of 40 reach out to the right by a twentieth of the picture, which no other format mends."""
    boxes = [[0.8, 0.5, 0.2, 0.2]] * 34 + [[0.65, 0.5, 0.8, 0.9]] * 6
    register_datasets([write_yolo(boxes)])
    record = dataset_record("pets")
    assert kinds(record) == {"cut": 6, "twice": 38}
    np.testing.assert_allclose(record.annotations.boxes[-1], [50, 5, 150, 90], atol=1e-6)


def test_width_and_height_under_the_names_of_corners(tmp_path):
    """(30, 40, 20, 10) under x1 to y2: no box, unless it is read as x, y, width, height."""
    Image.new("RGB", (200, 100)).save(tmp_path / "p.png")
    rows = [(30 + i, 40, 20, 10) for i in range(9)] + [(10, 10, 30 + i, 40) for i in range(3)]
    lines = [f"p.png,{x},{y},{w},{h},cat" for x, y, w, h in rows]
    (tmp_path / "a.csv").write_text("file,x1,y1,x2,y2,class\n" + "\n".join(lines))
    entry = {"name": "pets", "format": "csv", "csv": str(tmp_path / "a.csv")}
    entry["images"] = str(tmp_path)
    message = "9 of 12 boxes have no positive size, but fit as x, y, width, height; .*set box_for"
    with pytest.raises(ValueError, match=message):
        register_datasets([entry])
    register_datasets([{**entry, "box_format": "xywh"}])
    assert dataset_record("pets").annotations.boxes.tolist() == [list(row) for row in rows]


def test_width_and_height_under_the_corners_of_voc(write_voc):
    objects = [("cat", 0, (11 + i, 6, 5, 4)) for i in range(4)]
    entry = {"name": "pets", "format": "voc", "root": str(write_voc({"a": objects}))}
    entry |= {"split": "train", "classes": ["cat"]}
    register_datasets([entry])
    with pytest.raises(ValueError, match="4 of 4 boxes have no .*set box_format: xywh"):
        dataset_record("pets")
    register_datasets([{**entry, "name": "stated", "box_format": "xywh"}])
    boxes = dataset_record("stated").annotations.boxes.tolist()
    assert boxes == [[10 + i, 5, 5, 4] for i in range(4)]  # VOC counts from 1


def test_a_set_that_loses_many_boxes_is_checked_but_not_used(write_coco, tmp_path):
    boxes = [[*box] for box in random_boxes(17)] + [[10, 20, 0, 0]] * 3
    entry = write_coco(content_of(boxes))
    register_datasets([entry])
    record = dataset_record("pets")
    assert kinds(record) == {"no_size": 3, "lossy": 3}
    with pytest.raises(ValueError, match="more than a tenth.*17 of 20 boxes stay"):
        evaluation_records(get_cfg(), "pets")
    with pytest.raises(ValueError, match="more than a tenth"):
        convert(record, to="csv", output=tmp_path / "out", pictures="none")
    register_datasets([{**entry, "name": "stated", "box_format": "xywh"}])
    assert len(evaluation_records(get_cfg(), "stated")[0]["annotations"]) == 17


def test_the_area_of_a_cut_box_follows_and_that_of_a_mask_does_not(write_coco):
    """(-10, 0, 20, 20) is cut to 10 x 20 pixels."""
    content = content_of([[-10, 0, 20, 20]] * 3 + [[50 + 9 * i, 20, 9, 9] for i in range(30)])
    corners = [0, 0, 10, 0, 10, 10, 0, 10]
    given = [{"area": 400}, {"area": 90}, {"area": 400, "segmentation": [corners]}]
    for item, values in zip(content["annotations"], given, strict=False):
        item.update(values)
    register_datasets([write_coco(content)])
    assert dataset_record("pets").annotations.areas[:3].tolist() == [200, 90, 400]


def test_boxes_beyond_all_pictures_are_cut_in_silence(write_coco):
    boxes = [[0, 0, 1e308, 1e308], [1e308, 1e308, 1e308, 1e308], [50, 20, 50, 20]] + [[5, 5, 9, 9]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_datasets([{**write_coco(content_of(boxes)), "box_format": "xywh"}])
        record = dataset_record("pets")
    assert record.annotations.boxes.tolist() == [[0, 0, 200, 100], [50, 20, 50, 20], [5, 5, 9, 9]]
