"""What boxes are weighed by, what divides their loss, and what refined boxes cannot be trained on,
by hand on six anchors of which three are foreground."""

import math

import pytest
import torch

from resobj_d2.losses import ForegroundCount, GIoULoss, IoULoss, NegativeLogIoULoss
from resobj_d2.losses import QualityFocalLoss as QFL
from resobj_d2.matching import Assigner, DistributionCoder, LTRBCoder
from resobj_d2.modeling import Stage
from resobj_d2.structures import Targets
from tests.modeling.stage_inputs import ANCHORS, GT, Fixed, K, features, stream_of

FOREGROUND = [0, 1, 2]
# Of the anchors at [0, 0, 10, 10], all inside them: IoU and GIoU .8, .6 and .5.
MATCHED = torch.tensor([[0.0, 0, 10, 8], [4, 0, 10, 10], [0, 0, 10, 5]])
LOSSES = torch.tensor([0.2, 0.4, 0.5])
# Sides from the centre (5, 5): (5, 5, 5, 3), (1, 5, 5, 5) and (5, 5, 5, 0).
CENTERNESS = [math.sqrt(3 / 5), math.sqrt(1 / 5), 0.0]
SCORES = [0.5, 0.75, 0.2]  # the highest class scores
QUALITY = [0.5, 0.8, 0.2]  # of an assigner with its own targets


class Given(Assigner):
    """Says what is written above."""

    def __init__(self, *, weighs=False, quality=False):
        self.weighs_boxes = weighs
        self.quality = quality

    def __call__(self, priors, anchors, ground_truth, prediction=None):
        labels = torch.full((1, len(ANCHORS)), K)
        labels[0, FOREGROUND] = torch.tensor([0, 1, 0])
        matched = ANCHORS.clone()
        matched[FOREGROUND] = MATCHED
        given = torch.full((1, len(ANCHORS)), math.nan)  # which nobody may read
        given[0, FOREGROUND] = torch.tensor(QUALITY)
        return Targets(
            labels=labels,
            matched_gt_boxes=matched[None],
            matched_ious=torch.zeros_like(labels, dtype=torch.float32),
            gt_index=torch.zeros_like(labels),
            num_classes=K,
            box_weights=given if self.weighs_boxes else None,
            quality=given if self.quality else None,
        )


def logits():
    own = torch.tensor(SCORES)
    values = torch.full((len(ANCHORS), K), -9.0)
    values[FOREGROUND, [1, 1, 0]] = torch.logit(own)  # of any class, not only the object's
    return values


def losses_of(
    weighed_by="none", loss=None, coder=None, channels=4, scores=None, delta=0.0, **given
):
    stage = Stage(
        cls=Fixed(logits() if scores is None else scores),
        box=Fixed(torch.full((len(ANCHORS), channels), delta)),
        assigner=Given(**given),
        normalizer=ForegroundCount(),
        cls_loss=QFL(),
        box_loss=loss or GIoULoss(),
    )
    stream = stream_of(stage, coder=coder, box_weighed_by=weighed_by)
    return stream.losses(stream(features()), GT)[0]


def mean(weights):
    weights = torch.tensor(weights)
    return ((weights * LOSSES).sum() / weights.sum()).item()


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("none", 1.1 / 3),
        ("score", (0.5 * 0.2 + 0.75 * 0.4 + 0.2 * 0.5) / 1.45),
        ("iou", (0.8 * 0.2 + 0.6 * 0.4 + 0.5 * 0.5) / 1.9),
        ("centerness", mean(CENTERNESS)),
    ],
)
def test_weighed_boxes_are_averaged(kind, expected):
    assert losses_of(kind)["loss_box_reg"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [IoULoss(), NegativeLogIoULoss()])
def test_every_overlap_loss_takes_weights(loss):
    each = LOSSES if isinstance(loss, IoULoss) else -torch.log(1 - LOSSES)
    weights = torch.tensor([0.8, 0.6, 0.5])
    expected = (weights * each).sum().item() / 1.9
    assert losses_of("iou", loss=loss)["loss_box_reg"].item() == pytest.approx(expected, rel=1e-5)


def test_the_divisor_is_at_least_one():
    """As when no box overlaps its object yet: 3 weights of .2 divide by 1, not by .6."""
    scores = torch.full((len(ANCHORS), K), -math.log(4))
    found = losses_of("score", scores=scores)["loss_box_reg"]
    assert found.item() == pytest.approx(0.2 * 1.1, rel=1e-5)


def test_the_assigners_targets_divide_class_and_box_loss():
    """TOOD: the sum of the targets, 1.5, stands for the number of objects."""
    alone, weighed = losses_of(quality=True), losses_of(quality=True, weighs=True)
    labels = Given()(None, None, None).labels
    quality = torch.zeros(1, len(ANCHORS))
    quality[0, FOREGROUND] = torch.tensor(QUALITY)
    total = QFL()(logits()[None], labels, torch.ones_like(labels, dtype=torch.bool), quality)
    for losses in (alone, weighed):
        assert losses["loss_cls"].item() == pytest.approx(total.item() / 1.5, rel=1e-5)
    assert alone["loss_box_reg"].item() == pytest.approx(1.1 / 3, rel=1e-5)
    expected = (0.5 * 0.2 + 0.8 * 0.4 + 0.2 * 0.5) / 1.5
    assert weighed["loss_box_reg"].item() == pytest.approx(expected, rel=1e-5)


def test_without_its_own_targets_the_positives_divide_the_class_loss():
    """GFL: the targets are the IoUs of the boxes, and the number of positives divides."""
    labels = Given()(None, None, None).labels
    ious = torch.tensor([[0.8, 0.6, 0.5, 0, 0, 0]])
    total = QFL()(logits()[None], labels, torch.ones_like(labels, dtype=torch.bool), ious)
    assert losses_of("score")["loss_cls"].item() == pytest.approx(total.item() / 3, rel=1e-5)


def test_the_coders_loss_is_averaged_like_the_boxes():
    coder = DistributionCoder(largest=2, weight=0.25)
    found = losses_of("centerness", coder=coder, channels=12)
    # Even distributions: ln 3 on each side, whatever the target.
    assert found["loss_box_coder"].item() == pytest.approx(0.25 * math.log(3), rel=1e-5)
    plain = losses_of(coder=coder, channels=12)
    assert plain["loss_box_coder"].item() == pytest.approx(0.25 * math.log(3), rel=1e-5)
    small = torch.full((len(ANCHORS), K), -math.log(4))
    rare = losses_of("score", coder=coder, channels=12, scores=small)["loss_box_coder"]
    assert rare.item() == pytest.approx(0.25 * math.log(3) * 0.6, rel=1e-5)


def refined(coder, branches=(), **options):
    """Of two stages."""
    first = Stage(
        cls=Fixed(logits()),
        box=Fixed(torch.zeros(len(ANCHORS), coder.channels)),
        assigner=Given(),
        normalizer=ForegroundCount(),
        cls_loss=QFL(),
        box_loss=GIoULoss(),
    )
    box = options.pop("box", Fixed(torch.zeros(len(ANCHORS), coder.channels)))
    later = Stage(
        cls=None,
        box=box,
        assigner=Given(),
        normalizer=ForegroundCount(),
        cls_loss=QFL(),
        box_loss=GIoULoss() if box else None,
    )
    return stream_of(first, later, coder=coder, branches=branches, **options)


def test_what_refined_boxes_cannot_be_trained_on_is_refused():
    with pytest.raises(ValueError, match="DistributionCoder measures boxes from a point"):
        refined(DistributionCoder(largest=2))
    with pytest.raises(ValueError, match="WEIGHED_BY centerness is nearly 1 for the refined"):
        refined(LTRBCoder(), box_weighed_by="centerness")
    refined(DistributionCoder(largest=2), box=None)  # the second stage leaves the boxes alone
    refined(LTRBCoder(), box_weighed_by="iou")
    with pytest.raises(ValueError, match="must be one of none, score, iou, centerness, got 'size'"):
        refined(LTRBCoder(), box_weighed_by="size")
