"""The RoI predictor's box losses and IoU output against values computed by hand."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from resobj_d2.losses import (
    BalancedL1Loss,
    GHMRLoss,
    GIoULoss,
    IoULoss,
    NegativeLogIoULoss,
    QualityLoss,
    SmoothL1Loss,
)
from resobj_d2.modeling import ResObjBoxPredictor
from resobj_d2.modeling.suppression import Suppression


def predictor(num_classes=2, channels=4, weights=(10.0, 10.0, 5.0, 5.0), **options):
    return ResObjBoxPredictor(
        ShapeSpec(channels=channels),
        box2box_transform=Box2BoxTransform(weights=weights),
        num_classes=num_classes,
        **options,
    )


# Two RoIs of classes 0 and 1 and two of background; all are (0, 0, 10, 10).
ROIS = torch.tensor([[0.0, 0, 10, 10]] * 4)
CLASSES = torch.tensor([0, 1, 2, 2])
# Object 0 is the upper half; object 1 does not overlap; background boxes are irrelevant.
OBJECTS = torch.tensor([[0.0, 0, 10, 5], [20, 0, 30, 10], [0, 0, 0, 0], [5, 5, 9, 9]])
BALANCED_AT_1 = 1.5 * (math.exp(3) / (math.exp(3) - 1)) - 0.5


@pytest.mark.parametrize(
    "loss, expected",
    [
        (IoULoss(), 0.5 + 1.0),
        (NegativeLogIoULoss(), math.log(2) - math.log(1e-6)),
        (GIoULoss(), 0.5 + 4 / 3),  # the hull of the second pair is 300, the union 200
        # Deltas 0: (dy, dh) = (-2.5, 5 ln .5) and dx = 20.
        (SmoothL1Loss(beta=1.0), 2.5 - 0.5 + 5 * math.log(2) - 0.5 + 20 - 0.5),
        (BalancedL1Loss(), 3 * BALANCED_AT_1 + 1.5 * (1.5 + 5 * math.log(2) - 1 + 19)),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("agnostic", [False, True])
def test_box_loss_by_hand(loss, expected, agnostic):
    model = predictor(box_loss=loss, cls_agnostic_bbox_reg=agnostic)
    deltas = torch.zeros(4, 4)
    if not agnostic:  # deltas of other classes must have no effect
        deltas = torch.full((4, 2, 4), torch.nan)
        deltas[0, 0] = deltas[1, 1] = 0.0
        deltas = deltas.view(4, 8)
    deltas.requires_grad_()
    total = model.box_reg_loss(ROIS, OBJECTS, deltas, CLASSES)
    assert total.item() == pytest.approx(expected / 4, rel=1e-5)
    total.backward()
    grad = deltas.grad.view(4, -1, 4)
    assert torch.isfinite(grad).all() and grad[0, 0].any() and not grad[2:].any()


def test_box_loss_has_detectron2s_weight_and_divisor():
    model = predictor(box_loss=IoULoss(), loss_weight={"loss_box_reg": 10.0})
    deltas = torch.zeros(4, 8)
    proposals = []
    for rows in (slice(0, 3), slice(3, 4)):  # the second image has no objects
        x = Instances((40, 40))
        x.proposal_boxes, x.gt_classes = Boxes(ROIS[rows]), CLASSES[rows]
        if rows.start == 0:
            x.gt_boxes = Boxes(OBJECTS[rows])
        proposals.append(x)
    with EventStorage():
        losses = model.losses((torch.zeros(4, 3), deltas), proposals)
    assert losses["loss_box_reg"].item() == pytest.approx(10 * 1.5 / 4)
    assert losses["loss_cls"].item() == pytest.approx(math.log(3))


def test_smooth_l1_entry_is_detectron2s_loss():
    torch.manual_seed(0)
    rois = 50 * torch.rand(30, 2)
    rois = torch.cat((rois, rois + 5 + 30 * torch.rand(30, 2)), dim=1)
    deltas, classes = torch.randn(30, 12), torch.randint(4, (30,))
    ours = predictor(3, box_loss=SmoothL1Loss(beta=0.5))
    theirs = predictor(3, smooth_l1_beta=0.5)
    a, b = (m.box_reg_loss(rois, rois.flip(0), deltas, classes) for m in (ours, theirs))
    torch.testing.assert_close(a, b)


def test_self_normalized_loss_is_not_divided():
    loss = GHMRLoss(mu=0.02, bins=10, momentum=0.0)
    deltas = torch.zeros(4, 8)
    a = predictor(box_loss=loss).box_reg_loss(ROIS, OBJECTS, deltas, CLASSES)
    targets = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)).get_deltas(ROIS[:2], OBJECTS[:2])
    b = GHMRLoss(mu=0.02, bins=10, momentum=0.0)(
        torch.zeros(2, 4), targets, torch.ones(2, dtype=torch.bool)
    )
    torch.testing.assert_close(a, b)


def images(boxes):
    """Proposals with these boxes in images of 40 px."""
    found = [Instances((40, 40)) for _ in boxes]
    for x, y in zip(found, boxes, strict=True):
        x.proposal_boxes = Boxes(y)
    return found


def quality_inputs():
    """Logits ln 3 for four RoIs, whose deltas are zero."""
    x = Instances((40, 40))
    x.proposal_boxes, x.gt_classes, x.gt_boxes = Boxes(ROIS), CLASSES, Boxes(OBJECTS)
    deltas = torch.zeros(4, 8, requires_grad=True)
    logits = torch.full((4,), math.log(3), requires_grad=True)
    return (torch.zeros(4, 3), deltas, logits), [x]


@pytest.mark.parametrize(
    "loss, expected",
    [
        # The sigmoid is 3/4, the IoUs are 1/2 and 0: BCE ln 4 - y ln 3.
        (QualityLoss(kind="ce"), 2 * math.log(4) - 0.5 * math.log(3)),
        (QualityLoss(kind="l1"), 0.25 + 0.75),
        (
            QualityLoss(kind="ce_w", negative_weight=0.1),
            2 * math.log(4) - 0.5 * math.log(3) + 0.1 * 2 * math.log(4),
        ),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_quality_loss_by_hand(loss, expected):
    model = predictor(quality_loss=loss, quality_weight=3.0)
    predictions, proposals = quality_inputs()
    with EventStorage() as storage:
        losses = model.losses(predictions, proposals)
    assert losses["loss_quality"].item() == pytest.approx(3 * expected / 2, rel=1e-5)
    assert storage.latest()["fast_rcnn/box_iou"][0] == pytest.approx(0.25)
    losses["loss_quality"].backward()
    assert predictions[1].grad is None or not predictions[1].grad.any()


def test_quality_starts_at_one_half():
    torch.manual_seed(0)
    layer = predictor(channels=4096, quality_loss=QualityLoss()).quality_score
    assert 0.009 < layer.weight.std().item() < 0.011 and not layer.bias.any()


def test_quality_loss_may_move_the_boxes():
    model = predictor(quality_loss=QualityLoss(), quality_detach_target=False)
    predictions, proposals = quality_inputs()
    with EventStorage():
        model.losses(predictions, proposals)["loss_quality"].backward()
    grad = predictions[1].grad.view(4, 2, 4)
    # The first box is twice as high as its object, and a larger IoU lowers the loss.
    assert grad[0, 0, 3] > 0 and not grad[0, 1].any() and not grad[2:].any()


def test_scores_are_fused_by_hand():
    model = predictor(quality_loss=QualityLoss(), quality_alpha=0.25)
    logits = torch.tensor([[0.0, math.log(2), 0.0]] * 3)  # probabilities 1/4, 1/2, 1/4
    quality = torch.tensor([0.0, math.log(3), -math.log(3)])
    proposals = images([ROIS[:1], ROIS[:2]])
    first, second = model.predict_probs((logits, torch.zeros(3, 8), quality), proposals)
    assert len(first) == 1 and len(second) == 2
    for row, q in zip(torch.cat((first, second)).tolist(), (0.5, 0.75, 0.25), strict=True):
        expected = [0.25**0.75 * q**0.25, 0.5**0.75 * q**0.25, 0.25]
        assert row == pytest.approx(expected, rel=1e-5)


def test_fused_scores_rank_and_suppress():
    """Of two overlapping boxes, the one with the lower class score fits better and is kept."""
    model = predictor(1, quality_loss=QualityLoss(), quality_alpha=0.5, test_nms_thresh=0.5)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    proposals = images([boxes])
    predictions = (torch.tensor([[1.0, 0.0], [0.5, 0.0]]), torch.zeros(2, 4),
                   torch.tensor([-2.0, 2.0]))  # fmt: skip
    (found,), _ = model.inference(predictions, proposals)
    assert found.pred_boxes.tensor.tolist() == boxes[1:].tolist()
    p, q = torch.tensor(0.5).sigmoid(), torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(found.scores, (p * q).sqrt()[None])


APART = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]])


def detect(deltas, probabilities, **options):
    """Rows, classes and scores of what is detected in APART, whose boxes suppress nothing."""
    model = predictor(suppression=Suppression(method="soft_gaussian"), **options)
    model.predict_probs = lambda predictions, proposals: [probabilities]
    (found,), (rows,) = model.inference((torch.zeros(3, 3), deltas), images([APART]))
    return rows.tolist(), found.pred_classes.tolist(), found.scores.tolist()


@pytest.mark.parametrize("limit, expected", [(-1, [1, 2, 0]), (2, [1, 2]), (0, [])])
def test_limit_and_threshold_of_detections_with_another_suppression(limit, expected):
    """A score has to be above the threshold of 1/4; -1 is no limit, as in Detectron2."""
    probabilities = torch.tensor([[0.375, 0.25, 0.375], [0.25, 0.75, 0.0], [0.5, 0.125, 0.375]])
    options = {"test_score_thresh": 0.25, "test_topk_per_image": limit}
    rows, classes, scores = detect(torch.zeros(3, 8), probabilities, **options)
    assert rows == expected
    assert classes == [1, 0, 0][: len(expected)] and scores == [0.75, 0.5, 0.375][: len(expected)]


def test_a_proposal_with_anything_not_finite_is_not_detected_by_another_suppression():
    """One coordinate of the other class, or the score of the other class, is not a number."""
    deltas, probabilities = torch.zeros(3, 8), torch.full((3, 3), 0.5)
    deltas[0, 5] = math.nan
    probabilities[1, 1] = math.nan
    assert detect(deltas, probabilities) == ([2, 2], [0, 1], [0.5, 0.5])
