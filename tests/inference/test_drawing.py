"""Drawing: colours where the boxes are, labels that do not hide each other."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from resobj_d2.inference import drawing
from resobj_d2.inference.drawing import (
    CROWD_COLOR,
    BoxStyle,
    class_color,
    draw_annotations,
    draw_boxes,
    draw_detections,
    grid,
)

GRAY = np.full((60, 80, 3), 128, dtype=np.uint8)


def detections(boxes, scores, classes):
    result = Instances((60, 80))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores)
    result.pred_classes = torch.tensor(classes)
    return result


def has_color(picture, color, region=None):
    pixels = np.asarray(picture.crop(region) if region else picture)
    return bool((pixels == color).all(axis=2).any())


def test_small_image_is_enlarged_and_boxes_with_it():
    found = detections([[20, 30, 60, 50]], [0.9], [1])
    picture = draw_detections(GRAY, found, ["cat", "dog"])
    assert picture.size == (640, 480)  # 8 times
    color = class_color(1)
    for x, y in ((160, 300), (480, 300), (320, 240), (320, 400)):  # middle of each side
        assert has_color(picture, color, (x - 4, y - 4, x + 4, y + 4))
    assert not has_color(picture, color, (180, 260, 460, 380))  # nothing inside


def test_large_image_keeps_its_size():
    image = np.zeros((700, 1000, 3), dtype=np.uint8)
    assert draw_boxes(image, np.zeros((0, 4)), []).size == (1000, 700)
    assert draw_boxes(image, np.zeros((0, 4)), [], side=500).size == (500, 350)


@pytest.mark.parametrize(
    "options, drawn",
    [
        ({}, {0, 1}),
        ({"confidence_threshold": 0.05}, {0, 1, 2}),
        ({"confidence_threshold": 0.9}, {1}),
        ({"confidence_threshold": 0.95}, set()),
        ({"draw_limit": 1}, {1}),
    ],
)
def test_threshold_and_limit(options, drawn):
    boxes = [[2, 10, 20, 30], [30, 10, 50, 30], [60, 10, 78, 30]]
    found = detections(boxes, [0.5, 0.9, 0.1], [0, 1, 2])
    picture = draw_detections(GRAY, found, ["a", "b", "c"], **options)
    assert {c for c in range(3) if has_color(picture, class_color(c))} == drawn


def test_class_without_a_name_is_drawn():
    picture = draw_detections(GRAY, detections([[5, 20, 40, 50]], [0.5], [2]), [])
    assert has_color(picture, class_color(2))


def test_annotations_and_crowd():
    annotations = [
        {"bbox": [4, 20, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
        {"bbox": [40, 20, 70, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 1},
    ]
    picture = draw_annotations(GRAY, annotations, ["cat", "dog"], side=80)
    assert has_color(picture, class_color(0), (2, 30, 6, 40))  # left side at x = 4
    assert has_color(picture, class_color(0), (22, 30, 26, 40))  # right side at 4 + 20
    assert has_color(picture, CROWD_COLOR, (38, 30, 42, 40))
    assert not has_color(picture, class_color(1))
    assert has_color(draw_annotations(GRAY, [], []), (128, 128, 128))


def test_labels_of_equal_boxes_do_not_hide_each_other():
    # The outlines coincide; each label's ground must still show, at its opacity over gray.
    styles = [BoxStyle(name, class_color(i)) for i, name in enumerate(("one", "two", "three"))]
    picture = draw_boxes(GRAY, np.tile([[20, 20, 60, 50]], (3, 1)), styles)
    pixels = np.asarray(picture).astype(int)
    areas = []
    for style in styles:
        ground = (215 * np.array(style.color) + 40 * 128) / 255
        areas.append(int((np.abs(pixels - ground) <= 1).all(axis=2).sum()))
    assert min(areas) > 250, areas


def test_box_outside_the_image_is_cut():
    found = detections([[-100, -100, 1000, 1000], [200, 200, 300, 300]], [0.9, 0.8], [0, 1])
    picture = draw_detections(GRAY, found, ["a", "b"])
    assert has_color(picture, class_color(0), (0, 200, 2, 300))


def test_one_pixel_image():
    found = detections([[0, 0, 1, 1]], [0.9], [0])
    image = np.zeros((1, 300, 3), dtype=np.uint8)
    assert draw_detections(image, found, ["a"]).size == (640, 2)


def test_grid_places_pictures_and_titles():
    red, blue = Image.new("RGB", (100, 50), "red"), Image.new("RGB", (60, 80), "blue")
    sheet = grid([[red, blue], [blue]])
    assert sheet.size == (8 + 100 + 8 + 60 + 8, 8 + 80 + 8 + 80 + 8)
    assert sheet.getpixel((8, 8 + 15)) == (255, 0, 0)  # in the middle of a cell 80 high
    assert sheet.getpixel((8, 8 + 14)) == (255, 255, 255)
    assert sheet.getpixel((8 + 20, 96)) == (0, 0, 255)  # in the middle of a cell 100 wide
    titled = grid([[red, blue], [blue]], ["left", "right"])
    assert titled.width == sheet.width and titled.height > sheet.height
    header = titled.crop((0, 0, titled.width, titled.height - sheet.height + 8))
    assert (np.asarray(header).min(axis=2) < 100).any()  # dark letters


def test_a_large_picture_is_drawn_smaller_and_its_boxes_with_it(monkeypatch):
    monkeypatch.setattr(drawing, "MAX_PIXELS", 1000 * 1000)
    image = np.zeros((500, 8000, 3), dtype=np.uint8)
    picture = drawing.draw_boxes(
        image, np.array([[4000.0, 0, 8000, 500]]), [drawing.BoxStyle("", (255, 0, 0))]
    )
    assert picture.size == (4000, 250)
    columns = np.nonzero((np.asarray(picture) == (255, 0, 0)).all(axis=2).any(axis=0))[0]
    assert columns.min() == 2000 and columns.max() == 3999
