"""Detection in overlapping tiles, merged."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from resobj_d2.inference import Predictor, tiling
from resobj_d2.inference.predict_options import parser
from resobj_d2.inference.tiling import Tiling, suppress_contained


def sahi_windows(height, width, size, overlap):
    """The loop of SAHI's ``get_slice_bboxes``."""
    repeated, found, y_max, y_min = int(overlap * size), [], 0, 0
    while y_max < height:
        x_min = x_max = 0
        y_max = y_min + size
        while x_max < width:
            x_max = x_min + size
            right, bottom = min(width, x_max), min(height, y_max)
            found.append((max(0, right - size), max(0, bottom - size), right, bottom))
            x_min = x_max - repeated
        y_min = y_max - repeated
    return found


@pytest.mark.parametrize(
    "height, width, size, overlap",
    [(100, 250, 100, 0.2), (250, 101, 100, 0.25), (64, 64, 64, 0.5), (300, 300, 64, 0.0)],
)
def test_windows_are_sahis_and_the_whole(height, width, size, overlap):
    *tiles, whole = Tiling(size, overlap).windows(height, width)
    assert whole == (0, 0, width, height)
    assert (tiles or [whole]) == sahi_windows(height, width, size, overlap)


def test_a_small_picture_is_one_window():
    assert Tiling(640).windows(480, 640) == [(0, 0, 640, 480)]
    assert Tiling(100, 0.2).windows(100, 170) == [
        (0, 0, 100, 100), (70, 0, 170, 100), (0, 0, 170, 100)
    ]  # fmt: skip


def test_what_lies_inside_a_better_box_of_its_class_is_dropped_by_hand():
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],  # half of the best one, which contains all of it
            [0.0, 0, 20, 10],
            [15.0, 0, 35, 10],  # a quarter of it in the best one
            [0.0, 0, 10, 10],  # another class
            [10.0, 0, 30, 10],  # half of it in the best one
        ]
    )
    scores = torch.tensor([0.5, 0.9, 0.8, 0.4, 0.3])
    classes = torch.tensor([0, 0, 0, 1, 0])
    assert suppress_contained(boxes, scores, classes).tolist() == [1, 2, 3]
    assert suppress_contained(boxes[:0], scores[:0], classes[:0]).tolist() == []


class Dots(nn.Module):
    """Finds white pixels of an image that is not resized, and at most one of each image."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, batch):
        self.batches.append(len(batch))
        return [{"instances": self.find(x)} for x in batch]

    @staticmethod
    def find(inputs):
        places = torch.nonzero(inputs["image"][0] == 255)[:1]
        y, x = places.float().unbind(dim=1)
        found = Instances((inputs["height"], inputs["width"]))
        found.pred_boxes = Boxes(torch.stack((x, y, x + 1, y + 1), dim=1))
        found.scores = 0.5 + x / 1000
        found.pred_classes = torch.zeros(len(x), dtype=torch.int64)
        found.pred_masks = torch.zeros(len(x), *found.image_size, dtype=torch.bool)
        for mask, (row, column) in zip(found.pred_masks, places.tolist(), strict=True):
            mask[row, column] = True
        found.pred_keypoints = torch.stack((x, y, torch.ones_like(x)), dim=1)[:, None]
        return found


@pytest.fixture
def cfg(tiny_cfg):
    opts = ["INPUT.MIN_SIZE_TEST", 0, "DATASETS.TEST", "()", "PREDICT.TILE", 40]
    return tiny_cfg(*opts, "PREDICT.TILE_OVERLAP", 0.25)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_boxes_masks_and_points_are_moved_to_their_place(cfg, batch_size):
    model = Dots()
    predictor = Predictor(cfg, model, batch_size=batch_size)
    dots = [(5, 3), (35, 12), (70, 50)]  # x, y; the second one is in two tiles
    rgb = np.zeros((60, 80, 3), np.uint8)
    for x, y in dots:
        rgb[y, x] = 255
    found = predictor(rgb, channels="RGB")
    assert found.image_size == (60, 80)
    corners = sorted(tuple(box[:2]) for box in found.pred_boxes.tensor.tolist())
    assert corners == sorted((float(x), float(y)) for x, y in dots)
    # 40 pixels every 30: columns at 0, 30, 40 and rows at 0, 20, and the whole picture.
    assert sum(model.batches) == 7 and max(model.batches) == batch_size
    for box, mask, point in zip(
        found.pred_boxes.tensor.tolist(), found.pred_masks, found.pred_keypoints, strict=True
    ):
        assert torch.nonzero(mask).tolist() == [[int(box[1]), int(box[0])]]
        assert point[0, :2].tolist() == box[:2]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_masks_of_the_whole_picture_are_made_for_what_is_kept_alone(monkeypatch):
    """Of the same object in two tiles, and another."""
    parts = []
    for score, boxes in ((0.5, [[10.0, 0.0, 20.0, 10.0]]), (0.9, [[0.0, 0.0, 10.0, 10.0]] * 2)):
        boxes = torch.tensor(boxes)
        boxes[1:, 1::2] += 20
        masks = torch.zeros(len(boxes), 40, 40, dtype=torch.bool)
        masks[:, 1, 2] = True
        scores = torch.full((len(boxes),), score) - torch.arange(len(boxes)) * 0.7
        part = Instances((40, 40), pred_boxes=Boxes(boxes), scores=scores, pred_masks=masks)
        part.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
        parts.append(part)
    made, pad = [], tiling.F.pad
    monkeypatch.setattr(tiling.F, "pad", lambda x, sides: made.append(len(x)) or pad(x, sides))
    windows = [(0, 0, 40, 40), (10, 0, 50, 40)]
    found = Tiling(40, 0.75).merge(parts, windows, height=40, width=50)
    assert sum(made) == 2 and found.pred_masks.shape == (2, 40, 50)
    assert found.scores.tolist() == pytest.approx([0.9, 0.2])
    assert found.pred_boxes.tensor.tolist() == [[10, 0, 20, 10], [10, 20, 20, 30]]
    assert torch.nonzero(found.pred_masks)[:, 1:].tolist() == [[1, 12], [1, 12]]


def test_bad_options_are_refused(cfg):
    for key, value in (("TILE", -5), ("TILE_OVERLAP", 1.0)):
        changed = cfg.clone()
        changed.PREDICT[key] = value
        with pytest.raises(ValueError, match="PREDICT.TILE must be positive"):
            Predictor(changed, Dots())


def test_an_overlap_without_tiles_is_refused(cfg):
    changed = cfg.clone()
    changed.PREDICT.TILE = 0
    with pytest.raises(ValueError, match="TILE_OVERLAP has no effect without PREDICT.TILE"):
        Predictor(changed, Dots())


def test_options_of_the_command_stand_for_keys():
    needed = ["--config-file", "x.yaml", "--input", "a.jpg", "--output", "out"]
    options = parser().parse_args([*needed, "--tile", "640", "--overlap", ".3", "A.B", "1"])
    assert options.overrides == ["PREDICT.TILE", "640", "PREDICT.TILE_OVERLAP", "0.3", "A.B", "1"]
    assert parser().parse_args([*needed, "A.B", "1"]).overrides == ["A.B", "1"]
