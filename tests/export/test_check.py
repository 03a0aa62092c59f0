"""What a file's boxes and scores may differ by."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances

from resobj_d2.export.check import compare

BOXES = torch.tensor([[10.0, 20, 60, 40], [100.0, 50, 300, 450]])  # sides up to 50 and 400 px
SCORES = torch.tensor([0.9, 0.8])


def parity_of(boxes, scores=SCORES, *, raw=False):
    """Of a file that answers ``boxes`` and ``scores``, and a model that answers those above."""
    count, classes = torch.tensor([2]), torch.zeros(1, 2, dtype=torch.int64)
    limits = {"score_threshold": 0.5, "max_detections": 100}
    found = Instances((500, 500), pred_boxes=Boxes(BOXES), scores=SCORES, pred_classes=classes[0])

    class Detector(SimpleNamespace):
        def __call__(self, *inputs):
            return SCORES[None, :, None], BOXES[None]

    detector = Detector(size_divisibility=1, device="cpu", raw=raw, limits=limits)
    answer = (scores[None, :, None], boxes[None])
    if not raw:
        answer = (boxes[None], scores[None], classes, count)
    inputs = [{"image": torch.zeros(3, 5, 5), "height": 500, "width": 500}]
    (parity,) = compare(
        lambda _: [{"instances": found}], lambda *_: answer, inputs, detector=detector
    )
    return parity


@pytest.mark.parametrize("raw", [False, True])
def test_large_boxes_may_differ_in_proportion_to_the_side_of_the_coordinate(raw):
    def moved(by, index, coordinate=0):
        boxes = BOXES.clone()
        boxes[index, coordinate] += by
        return parity_of(boxes, raw=raw)

    assert moved(0.0008, 0).holds and not moved(0.0012, 0).holds
    # The second is 200 px wide and 400 px high.
    assert moved(0.0015, 1, 0).holds and not moved(0.0025, 1, 2).holds
    assert moved(0.0035, 1, 1).holds and not moved(0.0045, 1, 3).holds
    parity = moved(0.003, 1, 1)
    assert parity.box == pytest.approx(0.003, rel=0.01)
    assert parity.box_share == pytest.approx(0.003 / 0.004, rel=0.01)


@pytest.mark.parametrize("raw", [False, True])
def test_scores_and_what_is_no_number(raw):
    assert parity_of(BOXES, SCORES + 5e-5, raw=raw).holds
    assert not parity_of(BOXES, SCORES + 2e-4, raw=raw).holds
    nothing = BOXES.clone()
    nothing[1, 2] = torch.nan
    assert not parity_of(nothing, raw=raw).holds
