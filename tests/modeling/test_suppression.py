"""The choice of suppression: by hand, in the dense detector and in RoI heads."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances

from resobj_d2.modeling import ResObjBoxPredictor
from resobj_d2.modeling.suppression import METHODS, Suppression
from resobj_d2.modeling.test_time_augmentation import with_augmentation

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


@pytest.fixture(scope="module")
def cascade(tiny_rcnn):
    """A function: overrides to a cascade whose weights and scores are far apart."""

    def build(*opts):
        cfg = tiny_rcnn(
            "MODEL.ROI_HEADS.NAME", "ResObjCascadeROIHeads",
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True,
            "MODEL.ROI_HEADS.NUM_CLASSES", 2,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
            "TEST.DETECTIONS_PER_IMAGE", -1,
            *opts,
        )  # fmt: skip
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        for predictor in model.roi_heads.box_predictor:
            torch.nn.init.normal_(predictor.cls_score.weight, std=0.5)
        return cfg, model

    return build


@pytest.mark.parametrize("method", ["soft_linear", "soft_gaussian", "matrix"])
def test_a_cascade_suppresses_what_detectron2s_would(cascade, make_batch, method):
    """Detectron2's cascade, with an NMS that drops nothing, gives what is suppressed here."""
    batch = make_batch([(64, 96, 0), (80, 64, 0)])
    _, plain = cascade("MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0)
    _, ours = cascade("MODEL.RESOBJ_ROI.NMS", method)
    with torch.no_grad():
        every, found = plain(batch), ours(batch)
    for before, after in zip(every, found, strict=True):
        before, after = before["instances"], after["instances"]
        keep, expected = Suppression(method=method)(
            before.pred_boxes.tensor, before.scores, before.pred_classes,
            min_score=0.0, max_output=len(before),
        )  # fmt: skip
        assert len(keep) > 20 and not torch.equal(expected, before.scores[keep])
        torch.testing.assert_close(after.scores, expected)
        assert ours.roi_heads.suppression.method == method


def test_variants_are_merged_by_the_heads_suppression(cascade, make_batch):
    cfg, model = cascade(
        "MODEL.RESOBJ_ROI.NMS", "soft_gaussian",
        "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", [64], "TEST.DETECTIONS_PER_IMAGE", 3,
    )  # fmt: skip
    detector = with_augmentation(cfg, model)
    found = detector._merge_detections(BOXES, SCORES, CLASSES, (55, 100))
    assert found.scores.tolist() == pytest.approx([0.8, 0.5, 0.3])
    assert found.pred_classes.tolist() == [0, 1, 0]
    assert found.pred_boxes.tensor[2].tolist() == [50, 50, 60, 55]
    cfg.defrost()
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    found = with_augmentation(cfg, model)._merge_detections(BOXES, SCORES, CLASSES, (55, 100))
    assert found.scores[3].item() == pytest.approx(DECAYED["soft_gaussian"], rel=1e-5)
    none = detector._merge_detections(BOXES[:0], [], [], (55, 100))
    assert len(none) == 0
    with torch.no_grad():
        (output,) = detector(make_batch([(64, 96, 0)]))
    assert 0 < len(output["instances"]) <= 3
