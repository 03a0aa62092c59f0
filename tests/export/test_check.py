"""When a file counts as the same as the model."""

import math

import pytest

from resobj_d2.export.check import Parity


@pytest.mark.parametrize(
    "side, box, holds",
    [
        (640, 0.001, True),
        (640, 0.0011, False),  # not less than 0.001 in small pictures
        (1800, 0.0018, True),
        (1800, 0.0019, False),
        (1800, math.nan, False),
    ],
)
def test_boxes_may_differ_in_proportion_to_a_large_picture(side, box, holds):
    assert Parity(found=3, unmatched=0, box=box, score=0.0, side=side).holds is holds


@pytest.mark.parametrize("unmatched, score", [(1, 0.0), (0, 1.1e-4), (0, math.nan)])
def test_detections_without_counterpart_and_other_scores_are_differences(unmatched, score):
    assert not Parity(found=3, unmatched=unmatched, box=0.0, score=score).holds
