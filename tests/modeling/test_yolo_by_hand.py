"""YOLOv3's training signal against Darknet's rule, written as loops over cells and objects."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

K = 3
SIZES = [[[10, 13], [16, 30]], [[30, 61], [62, 45]], [[59, 119], [116, 90]]]
STRIDES = (8, 16, 32)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def iou(a, b):
    """IoU of two boxes (x, y, w, h) given by their centres."""
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)
        - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2)
        for i in (0, 1)
    ]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def predicted(values, prior, stride, row, column):
    return (
        (column + sigmoid(values[0])) * stride,
        (row + sigmoid(values[1])) * stride,
        prior[0] * math.exp(values[2]),
        prior[1] * math.exp(values[3]),
    )


def darknet_deltas(levels, truths, width, height, ignore):
    """What Darknet's yolo layers return for one image: the negative gradients of their input.

    Args:
        levels: per level (A, 5 + K, H, W) raw outputs: x, y, w, h, objectness, classes.
        truths: (x, y, w, h, class) of each object, in pixels.
    """
    shapes = [(i, a, w, h) for i, level in enumerate(SIZES) for a, (w, h) in enumerate(level)]
    deltas = [np.zeros_like(x) for x in levels]
    ignored = 0
    for x, delta, stride, priors in zip(levels, deltas, STRIDES, SIZES, strict=True):
        for a, row, column in np.ndindex(len(priors), *x.shape[2:]):
            values = x[a, :, row, column]
            box = predicted(values, priors[a], stride, row, column)
            best = max((iou(box, truth) for truth in truths), default=0.0)
            ignored += best > ignore
            delta[a, 4, row, column] = 0.0 if best > ignore else -sigmoid(values[4])
    for tx, ty, tw, th, label in truths:
        overlaps = [iou((0, 0, tw, th), (0, 0, w, h)) for _, _, w, h in shapes]
        level, a, prior_w, prior_h = shapes[overlaps.index(max(overlaps))]
        stride = STRIDES[level]
        row, column = int(ty / stride), int(tx / stride)
        values = levels[level][a, :, row, column]
        delta = deltas[level][a, :, row, column]
        scale = 2 - tw * th / (width * height)
        delta[0] = scale * (tx / stride - column - sigmoid(values[0]))
        delta[1] = scale * (ty / stride - row - sigmoid(values[1]))
        delta[2] = scale * (math.log(tw / prior_w) - values[2])
        delta[3] = scale * (math.log(th / prior_h) - values[3])
        delta[4] = 1 - sigmoid(values[4])
        for k in range(K):
            delta[5 + k] = (k == label) - sigmoid(values[5 + k])
    return deltas, ignored


@pytest.fixture
def model(yolo_cfg):
    torch.manual_seed(3)
    cfg = yolo_cfg(
        "MODEL.DENSE.PRIORS.SIZES", SIZES,
        "MODEL.DENSE.ASSIGNER.IGNORE_IOU", 0.3,  # .7 would initially ignore nothing
    )  # fmt: skip
    return build_model(cfg)


def test_gradients_are_minus_darknets_deltas(model, make_batch, observe):
    batch = make_batch([(96, 128, 4), (96, 128, 0), (96, 128, 3)])
    seen = observe(model, batch)
    output = seen.outputs["anchors"]
    stage, objectness = output.stages[0], output.branches["objectness"].logits
    maps = [*stage.box.levels, *stage.cls.levels, objectness]
    total = sum(seen.result.values())
    gradients = torch.autograd.grad(total, maps)

    def per_level(values):
        """(N, A, 5 + K, H, W) per level, the output of Darknet's single predictor."""
        flat = stage.box.view_per_anchor(values[6])
        return [
            torch.cat(
                (
                    box.unflatten(1, (2, 4)),
                    own[:, :, None],
                    cls.unflatten(1, (2, K)),
                ),
                dim=2,
            ).detach().double().numpy()
            for box, cls, own in zip(values[:3], values[3:6], flat, strict=True)
        ]  # fmt: skip

    raw, found = per_level(maps), per_level(gradients)
    counts = []
    for i, inputs in enumerate(batch):
        boxes = inputs["instances"].gt_boxes.tensor.double()
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        classes = inputs["instances"].gt_classes[:, None]
        truths = torch.cat((centre, size, classes), dim=1).tolist()
        deltas, ignored = darknet_deltas([x[i] for x in raw], truths, 128, 96, 0.3)
        counts.append(ignored)
        for delta, gradient in zip(deltas, found, strict=True):
            np.testing.assert_allclose(gradient[i], -delta / len(batch), atol=2e-6)
    assert counts[0] > 0 and counts[1] == 0
