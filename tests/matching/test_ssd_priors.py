"""SSD's default boxes against values computed by hand."""

import math

import pytest
import torch

from resobj_d2.matching.ssd_priors import SSDAnchors, ssd_anchors

# SSD512 on COCO.
MIN_SIZES = [20, 51, 133, 215, 296, 378, 460, 542]
RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
STRIDES = [8, 16, 32, 64, 128, 256, 512]


def anchors_of(strides=STRIDES):
    return SSDAnchors(min_sizes=MIN_SIZES, aspect_ratios=RATIOS, strides=strides, offset=0.5)


def test_ssd512_has_the_published_number_of_boxes():
    anchors = anchors_of()
    assert anchors.num_anchors == [4, 6, 6, 6, 6, 4, 4]
    priors = anchors([(512 // s, 512 // s) for s in STRIDES])
    assert len(priors.boxes) == 24564


def test_first_cell_by_hand():
    """Size 20, next 51: centre (4, 4); sqrt(20 * 51) = 31.937, 20 * sqrt(2) = 28.284."""
    anchors = anchors_of()
    boxes = anchors([(512 // s, 512 // s) for s in STRIDES]).boxes
    centre, between, longer, shorter = 4.0, math.sqrt(1020), 20 * 2**0.5, 20 / 2**0.5
    sizes = [(20, 20), (between, between), (longer, shorter), (shorter, longer)]
    expected = [[centre - w / 2, centre - h / 2, centre + w / 2, centre + h / 2] for w, h in sizes]
    torch.testing.assert_close(boxes[:4], torch.tensor(expected))
    # The next cell is one stride to the right.
    torch.testing.assert_close(boxes[4:8], boxes[:4] + torch.tensor([8.0, 0, 8, 0]))


def test_order_of_the_ratios_and_the_last_size():
    shapes = ssd_anchors(min_sizes=[16, 36, 49], aspect_ratios=[[4, 9], []])
    # Square, square of the geometric mean 24, then wide and tall of 4 and of 9.
    first = [(16, 16), (24, 24), (32, 8), (8, 32), (48, 16 / 3), (16 / 3, 48)]
    assert shapes[0] == [pytest.approx(shape) for shape in first]
    assert shapes[1] == [(36, 36), (42, 42)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"min_sizes": [16]}, "MIN_SIZES"),
        ({"min_sizes": [16, 16, 40]}, "MIN_SIZES"),
        ({"min_sizes": [0, 16, 40]}, "MIN_SIZES"),
        ({"aspect_ratios": [[2]]}, "ASPECT_RATIOS"),
        ({"aspect_ratios": [2, 3]}, "ASPECT_RATIOS"),
        ({"aspect_ratios": [[2], [1]]}, "ASPECT_RATIOS"),
    ],
)
def test_bad_lists_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ssd_anchors(**{"min_sizes": [16, 32, 64], "aspect_ratios": [[2], [2]], **options})


def test_wrong_number_of_levels_is_refused():
    with pytest.raises(ValueError, match="for 7 levels, but there are 5"):
        anchors_of(STRIDES[:5])
