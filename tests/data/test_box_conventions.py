"""Boxes of another convention than the format's are refused by its name, and fitting ones never."""

import numpy as np
import pytest
from detectron2.data.datasets import register_coco_instances

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.register import register_datasets

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
        (lambda b: as_corners(b)[:, [1, 0, 3, 2]], "but fit as y1, x1, y2, x2$"),
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
