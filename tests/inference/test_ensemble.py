"""Detections of several models as one set."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from resobj_d2.inference.ensemble import fuse_detections


def detections(*found, size=(40, 50)):
    boxes, scores, classes = zip(*found, strict=True) if found else ((), (), ())
    result = Instances(size)
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return result


BOTH = detections(([0, 0, 10, 10], 0.6, 1), ([20, 20, 30, 30], 0.8, 0))
ONE = detections(([0, 0, 10, 12], 0.3, 1))


def test_boxes_that_both_models_find_are_averaged_by_hand():
    fused = fuse_detections([BOTH, ONE])
    assert fused.image_size == (40, 50)
    # The mean of .6 and .3 by both models; .8 / 2 by one of the two.
    assert fused.scores.tolist() == pytest.approx([0.45, 0.4])
    expected = torch.tensor([[0, 0, 10, 10 + 2 / 3], [20, 20, 30, 30]])
    torch.testing.assert_close(fused.pred_boxes.tensor, expected)
    assert fused.pred_classes.tolist() == [1, 0]


def test_weights_limits_and_modes_are_passed_on():
    fused = fuse_detections([BOTH, ONE], weights=[1.0, 3.0], confidence="max", max_detections=1)
    assert fused.scores.tolist() == pytest.approx([0.3]) and len(fused) == 1
    assert len(fuse_detections([BOTH, ONE], iou_threshold=0.9)) == 3


def test_a_model_without_detections_counts_as_a_model():
    fused = fuse_detections([BOTH, detections()])
    assert fused.scores.tolist() == pytest.approx([0.4, 0.3])
    assert len(fuse_detections([detections(), detections()])) == 0


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ([], {}, "needs the detections of at least one model"),
        ([BOTH, detections(size=(50, 40))], {}, "in the same image, got sizes"),
        ([BOTH, ONE], {"weights": [1.0]}, "needs one weight for each of 2 models, got 1"),
        ([BOTH], {"max_detections": 0}, "max_detections must be at least 1, got 0"),
        ([BOTH], {"weights": [0.0]}, r"weighted_box_fusion: model_weights\[0\] must be positive"),
    ],
)
def test_what_cannot_be_fused_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        fuse_detections(arguments, **options)
