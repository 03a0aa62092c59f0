"""YOLOv3's responsible anchors, on two levels small enough to work out by hand."""

import pytest
import torch

from resobj_d2.matching import YOLOAnchors, YOLOAssigner
from resobj_d2.structures import GroundTruth, LevelMaps, StagePrediction

K = 3
SHAPES = [[(8, 8), (16, 8)], [(32, 32)]]


@pytest.fixture
def priors():
    """An input of 32 x 64: 2 x 4 cells of 16 pixels with two priors, 1 x 2 of 32 with one."""
    return YOLOAnchors(sizes=SHAPES, strides=[16, 32], offset=0.5)([(2, 4), (1, 2)])


def assign(priors, boxes, classes, predicted=None, **options):
    """Targets for one list of boxes and one of classes per image."""
    truth = GroundTruth.from_lists(
        [torch.tensor(b, dtype=torch.float32).reshape(-1, 4) for b in boxes],
        [torch.tensor(c) for c in classes],
    )
    if predicted is None:
        predicted = torch.zeros(len(boxes), len(priors.boxes), 4)
    prediction = StagePrediction(
        anchors=priors.boxes, cls=LevelMaps([], K), box=None, boxes=predicted
    )
    return YOLOAssigner(num_classes=K, **options)(priors, priors.boxes, truth, prediction)


def test_best_shape_in_the_cell_of_the_centre(priors):
    # 14 x 8 is most similar to 16 x 8 (IoU 7/8; with 8 x 8 8/14). Its centre (39, 20) lies in
    # column 2, row 1 of the fine level: anchor (1 * 4 + 2) * 2 + 1 = 13.
    # 30 x 20 is most similar to 32 x 32 (600/1024; with 16 x 8 128/600). Centre (35, 10): column 1
    # of the coarse level, whose anchors start at 16.
    boxes = [[32.0, 16.0, 46.0, 24.0], [20.0, 0.0, 50.0, 20.0]]
    found = assign(priors, [boxes], [[2, 1]])
    expected = torch.full((1, 18), K)
    expected[0, 13], expected[0, 17] = 2, 1
    assert found.labels.tolist() == expected.tolist()
    assert found.matched_gt_boxes[0, [13, 17]].tolist() == boxes
    assert found.gt_index[0, [13, 17]].tolist() == [0, 1]
    # Elsewhere the anchors themselves, so that encoding is finite.
    rest = [i for i in range(18) if i not in (13, 17)]
    assert torch.equal(found.matched_gt_boxes[0, rest], priors.boxes[rest])
    # 2 - w h / (W H) on 64 x 32 pixels.
    assert found.box_weights[0, [13, 17]].tolist() == pytest.approx(
        [2 - 14 * 8 / 2048, 2 - 30 * 20 / 2048]
    )


def test_weight_of_a_box_larger_than_the_input_stays_positive(priors):
    found = assign(priors, [[[-150.0, -150.0, 200.0, 170.0]]], [[0]])
    # Centre (25, 10): column 0 of the coarse level. A negative weight would train away from it.
    assert found.labels[0, 16] == 0
    assert found.box_weights[0, 16] == 1


def test_weights_can_be_disabled(priors):
    found = assign(priors, [[[32.0, 16.0, 46.0, 24.0]]], [[2]], weighs_boxes=False)
    assert found.labels[0, 13] == 2 and found.box_weights is None


def test_the_first_of_equally_good_shapes_is_taken(priors):
    twins = YOLOAnchors(sizes=[[(8, 16), (16, 8)], [(32, 32)]], strides=[16, 32], offset=0.5)
    found = assign(twins([(2, 4), (1, 2)]), [[[0.0, 0.0, 16.0, 16.0]]], [[0]])
    # 16 x 16 has IoU 1/2 with both; its centre (8, 8) is in the first cell.
    assert found.foreground[0].nonzero().flatten().tolist() == [0]


def test_prediction_that_overlaps_enough_is_ignored_unless_responsible(priors):
    box = [0.0, 0.0, 8.0, 8.0]  # anchor 0 is responsible
    predicted = torch.zeros(1, 18, 4)
    predicted[0, 0] = torch.tensor([0.0, 0.0, 8.0, 8.0])  # IoU 1
    predicted[0, 5] = torch.tensor([0.0, 0.0, 8.0, 6.0])  # 3/4
    predicted[0, 6] = torch.tensor([0.0, 0.0, 8.0, 5.0])  # 5/8
    predicted[0, 16] = torch.tensor([0.0, 0.0, 10.0, 8.0])  # 4/5
    found = assign(priors, [[box]], [[1]], predicted)
    assert found.labels[0, [0, 5, 6, 16]].tolist() == [1, -1, K, -1]
    assert found.matched_ious[0, [0, 5, 6, 7]].tolist() == pytest.approx([1.0, 0.75, 0.625, 0.0])
    at_bound = assign(priors, [[box]], [[1]], predicted, ignore_iou=0.75)
    assert at_bound.labels[0, [5, 16]].tolist() == [K, -1]  # above, not equal to, the bound


def test_the_later_of_two_boxes_with_the_same_anchor_wins(priors):
    boxes = [[0.0, 0.0, 8.0, 8.0], [1.0, 1.0, 9.0, 9.0], [33.0, 1.0, 41.0, 9.0]]
    found = assign(priors, [boxes], [[0, 1, 2]])
    assert found.foreground.sum() == 2
    assert found.labels[0, 0] == 1
    assert found.matched_gt_boxes[0, 0].tolist() == boxes[1]


def test_images_do_not_mix_and_empty_ones_are_background(priors):
    one, two = [0.0, 0.0, 8.0, 8.0], [50.0, 18.0, 58.0, 26.0]
    found = assign(priors, [[one], [], [two]], [[0], [], [2]])
    assert found.labels[0, 0] == 0
    assert (found.labels[1] == K).all()
    # Centre (54, 22): column 3, row 1.
    assert found.labels[2, (1 * 4 + 3) * 2] == 2
    assert found.foreground.sum(dim=1).tolist() == [1, 0, 1]
    none = assign(priors, [[], []], [[], []])
    assert (none.labels == K).all()
    assert torch.isfinite(none.box_weights).all()


@pytest.mark.parametrize(
    "box",
    [
        [5.0, 5.0, 5.0, 9.0],
        [9.0, 9.0, 5.0, 5.0],
        [70.0, 2.0, 78.0, 10.0],
        [-20.0, 0.0, -12.0, 8.0],
        [0.0, 28.0, 8.0, 40.0],
        [float("nan"), 0.0, 8.0, 8.0],
        [0.0, 0.0, float("inf"), 8.0],
    ],
)
def test_box_without_area_or_with_its_centre_outside_has_no_anchor(priors, box):
    good = [33.0, 1.0, 41.0, 9.0]
    found = assign(priors, [[box, good]], [[0, 1]])
    assert found.foreground[0].nonzero().flatten().tolist() == [4]
    assert torch.isfinite(found.matched_gt_boxes).all()


def test_bad_option_is_refused():
    with pytest.raises(ValueError, match="IGNORE_IOU"):
        YOLOAssigner(num_classes=K, ignore_iou=0.0)
