"""A stream of stages on six anchors, whose predictions are given numbers."""

import math
from dataclasses import fields, replace

import torch
from torch import nn

from resobj_d2.losses import ForegroundCount, SigmoidFocalLoss, SmoothL1Loss
from resobj_d2.matching import DeltaCoder, KeepAll, MaxIoUAssigner
from resobj_d2.modeling import DenseStream, ScoreFusion, Stage
from resobj_d2.structures import (
    GroundTruth,
    LevelMaps,
    Priors,
    StagePrediction,
    StreamOutput,
    TowerFeatures,
)

K = 2
# Ground truth of class 0, and of class 1 slightly to the right.
GT = GroundTruth.from_lists(
    [torch.tensor([[0.0, 0, 10, 8], [6, 0, 16, 10]])], [torch.tensor([0, 1])]
)
ANCHORS = torch.tensor([[0.0, 0, 10, 10]] * 3 + [[20, 20, 30, 30]] + [[0, 0, 10, 10]] * 2)
# IoU of an anchor at the origin with the two boxes: .8 and 40/160 = .25.
DELTAS = torch.tensor(
    [
        [0.5, 0, 0, 0],  # to (5, 0, 15, 10): IoU 40/140 and 90/110
        [0.0, 0, 0, 0],  # unchanged: .8 and .25
        [0.3, 0, 0, 0],  # to (3, 0, 13, 10): 56/124 and 70/130, both below .6
        [0.0, 0, 0, 0],  # no overlap
        [math.nan, 0, 0, 0],  # no box: the anchor stays
        [0.0, 0, -200, 0],  # a box without area: the anchor stays
    ]
)
REFINED = torch.tensor(
    [[5.0, 0, 15, 10], [0, 0, 10, 10], [3, 0, 13, 10], [20, 20, 30, 30]] + [[0, 0, 10, 10]] * 2
)
LABELS = [0, 0, 0, K, 0, 0]
REFINED_LABELS = [1, 0, -1, K, 0, 0]


class Fixed(nn.Module):
    """A predictor that returns given numbers (R, channels)."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def maps(self, features):
        return LevelMaps([self.values.reshape(1, -1, 1, 1)], self.values.shape[1])


class FixedPriors(nn.Module):
    def forward(self, sizes):
        return Priors(
            boxes=ANCHORS,
            anchors_per_level=[len(ANCHORS)],
            map_sizes=[(1, len(ANCHORS))],
            strides=[8],
        )


def assigner(low, high, **options):
    return MaxIoUAssigner(num_classes=K, iou_thresholds=[low, high], **options)


LOSSES = {"cls_loss": SigmoidFocalLoss(), "box_loss": SmoothL1Loss(beta=0.11)}


def first_stage(deltas=DELTAS, **options):
    torch.manual_seed(0)
    options = {"cls": Fixed(torch.randn(len(ANCHORS), K)), **LOSSES, **options}
    return Stage(
        box=Fixed(deltas),
        assigner=assigner(0.4, 0.5),
        normalizer=ForegroundCount(),
        **options,
    )


def second_stage(cls=None, box=None, **options):
    options = {**LOSSES, "own_cls_normalizer": False, **options}
    return Stage(
        cls=cls,
        box=box,
        assigner=assigner(0.5, 0.6, allow_low_quality=False),
        normalizer=ForegroundCount(),
        **options,
    )


def stream_of(*stages, coder=None, **options):
    return DenseStream(
        priors=FixedPriors(),
        coder=coder or DeltaCoder(),
        sampler=KeepAll(),
        stages=stages,
        fusion=ScoreFusion(),
        **options,
    )


def features():
    maps = [torch.zeros(1, 1, 1, 1)]
    return TowerFeatures(cls=maps, box=maps, pyramid=maps)


def boxes_of(stream, output):
    """(R, 4) box that the stream would detect at each anchor, in order thanks to falling scores."""
    falling = torch.arange(len(ANCHORS), 0, -1.0).repeat_interleave(K)
    for stage in output.stages:
        stage.cls.levels[0] = falling.view(1, -1, 1, 1)
    (found,) = stream.candidates(output, score_thresh=0.0, topk=len(falling))
    return found.boxes[::K]


def finite_deltas():
    return torch.where(torch.isfinite(DELTAS), DELTAS, 0.0)


def focal(logits, labels):
    """Focal loss with alpha .25 and gamma 2, one anchor and class at a time."""
    total = torch.zeros(())
    for row, label in zip(logits, labels, strict=True):
        for k, x in enumerate(row):
            p = torch.sigmoid(x)
            if label == k:
                total = total - 0.25 * (1 - p) ** 2 * torch.log(p)
            elif label != -1:
                total = total - 0.75 * p**2 * torch.log(1 - p)
    return total


def smooth_l1(pred, target):
    d = (pred - target).abs()
    return torch.where(d < 0.11, 0.5 * d**2 / 0.11, d - 0.055).sum()


def mapped(output, convert):
    """The output of a stream with every tensor converted."""

    def maps(found):
        return found and LevelMaps([convert(x) for x in found.levels], found.channels)

    def branch(found):
        if isinstance(found, torch.Tensor):
            return convert(found)
        return replace(found, **{f.name: convert(getattr(found, f.name)) for f in fields(found)})

    return StreamOutput(
        priors=replace(output.priors, boxes=convert(output.priors.boxes)),
        stages=[
            StagePrediction(anchors=convert(s.anchors), cls=maps(s.cls), box=maps(s.box))
            for s in output.stages
        ],
        branches={name: branch(found) for name, found in output.branches.items()},
    )
