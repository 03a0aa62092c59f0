"""The choice of suppression: by hand, in the dense detector and in RoI heads."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances

from resobj_d2.modeling import ResObjBoxPredictor
from resobj_d2.modeling.suppression import METHODS, Suppression

# Class 0: two boxes with an IoU of .9 and one apart; class 1: one equal to the first.
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 10]])
SCORES = torch.tensor([0.8, 0.6, 0.3, 0.5])
CLASSES = torch.tensor([0, 0, 0, 1])
DECAYED = {
    "soft_linear": 0.6 * (1 - 0.9),
    "soft_gaussian": 0.6 * math.exp(-(0.9**2) / 0.5),
    "matrix": 0.6 * math.exp(-(0.9**2) / 0.5),
}


def suppress(method, *, min_score=0.0, max_output=10, **options):
    rule = Suppression(method=method, **options)
    keep, scores = rule(BOXES, SCORES, CLASSES, min_score=min_score, max_output=max_output)
    return keep.tolist(), scores.tolist()


def test_greedy_drops_the_second_box():
    keep, scores = suppress("greedy")
    assert keep == [0, 3, 2] and scores == pytest.approx([0.8, 0.5, 0.3])


@pytest.mark.parametrize("method", DECAYED)
def test_the_other_methods_lower_its_score(method):
    keep, scores = suppress(method)
    assert keep == [0, 3, 2, 1]
    assert scores == pytest.approx([0.8, 0.5, 0.3, DECAYED[method]], rel=1e-5)
    keep, _ = suppress(method, min_score=DECAYED[method] + 1e-4)
    assert keep == [0, 3, 2]
    # A score has to be above the limit; a negative limit is none.
    assert suppress(method, min_score=SCORES[2].item())[0] == [0, 3]
    assert suppress(method, min_score=-1.0)[0] == [0, 3, 2, 1]
    assert suppress(method, max_output=2)[0] == [0, 3]


def test_sigma_and_threshold():
    for method in ("soft_gaussian", "matrix"):
        _, scores = suppress(method, sigma=2.0)
        assert scores[2] == pytest.approx(0.6 * math.exp(-(0.9**2) / 2), rel=1e-5)
    keep, scores = suppress("soft_linear", threshold=0.95)
    assert keep == [0, 1, 3, 2] and scores[1] == pytest.approx(0.6)


@pytest.mark.parametrize("options", [{"method": "hard"}, {"sigma": 0.0}, {"sigma": math.nan}])
def test_invalid_options_are_refused(options):
    with pytest.raises(ValueError, match="NMS"):
        Suppression(**options)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_dense_detections_are_the_candidates_after_suppression(tiny_cfg, make_batch, method, free):
    torch.manual_seed(0)
    cfg = tiny_cfg(
        "MODEL.DENSE.POSTPROCESS.NMS", method,
        "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", 0.0101,
        "MODEL.DENSE.POSTPROCESS.TOPK", 40,
        "MODEL.DENSE.ANCHOR_FREE.ENABLED", free,
        "TEST.DETECTIONS_PER_IMAGE", 25,
    )  # fmt: skip
    model = build_model(cfg).eval()
    batch = make_batch([(64, 96, 0), (80, 64, 0)])
    with torch.no_grad():
        outputs = model.predict(ImageList.from_tensors([x["image"] for x in batch], 128))
        found = model.postprocess(
            [(stream, outputs[name]) for name, stream in model.streams.items()]
        )
        parts = [
            stream.candidates(outputs[name], score_thresh=0.0101, topk=40)
            for name, stream in model.streams.items()
        ]
    for i, result in enumerate(found):
        boxes = torch.cat([part[i].boxes for part in parts])
        scores = torch.cat([part[i].scores for part in parts])
        classes = torch.cat([part[i].classes for part in parts])
        _, expected = Suppression(method=method)(
            boxes, scores, classes, min_score=0.0101, max_output=25
        )
        assert 0 < len(expected) <= 25
        torch.testing.assert_close(result.scores, expected)


def test_roi_heads_decay_scores_by_class(tiny_rcnn):
    cfg = tiny_rcnn(
        "MODEL.ROI_HEADS.NAME", "ResObjROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES", 2,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05,
        "MODEL.RESOBJ_ROI.NMS", "soft_gaussian",
        "MODEL.RESOBJ_ROI.NMS_SIGMA", 0.5,
    )  # fmt: skip
    predictor = build_model(cfg).roi_heads.box_predictor
    assert isinstance(predictor, ResObjBoxPredictor)
    proposals = Instances((55, 100))
    proposals.proposal_boxes = Boxes(BOXES[:3])
    # Three RoIs; the third extends beyond an image of 55 x 100 and has both classes.
    probabilities = torch.tensor([[0.8, 0.01, 0.19], [0.6, 0.01, 0.39], [0.3, 0.4, 0.3]])
    predictions = (probabilities.log(), torch.zeros(3, 8))
    (found,), (rows,) = predictor.inference(predictions, [proposals])
    assert rows.tolist() == [0, 2, 2, 1]
    assert found.pred_classes.tolist() == [0, 1, 0, 0]
    expected = [0.8, 0.4, 0.3, DECAYED["soft_gaussian"]]
    assert found.scores.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.pred_boxes.tensor[1].tolist() == [50, 50, 60, 55]


@pytest.mark.parametrize("threshold, score", [(0.85, DECAYED["soft_linear"]), (0.95, 0.6)])
def test_threshold_of_roi_heads_is_detectron2s(tiny_rcnn, threshold, score):
    """Two boxes with an IoU of .9."""
    cfg = tiny_rcnn(
        "MODEL.ROI_HEADS.NAME", "ResObjROIHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES", 1,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST", threshold,
        "MODEL.RESOBJ_ROI.NMS", "soft_linear",
    )  # fmt: skip
    proposals = Instances((55, 100))
    proposals.proposal_boxes = Boxes(BOXES[:2])
    predictions = (torch.tensor([[0.8, 0.2], [0.6, 0.4]]).log(), torch.zeros(2, 4))
    (found,), _ = build_model(cfg).roi_heads.box_predictor.inference(predictions, [proposals])
    assert found.scores.tolist() == pytest.approx([0.8, score], rel=1e-5)
