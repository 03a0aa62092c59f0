"""Inputs are reproducible and as documented."""

import torch

from benchmarks import eager, inputs
from resobj_d2 import ops


def test_anchors_are_those_of_detectron2():
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
    from detectron2.structures import Boxes

    sizes = [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)]
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[[0.5, 1.0, 2.0]], strides=list(inputs.STRIDES), offset=0.0
    )
    maps = [torch.empty(1, 1, *size) for size in inputs.map_sizes(inputs.IMAGE)]
    expected = Boxes.cat(generator(maps)).tensor
    assert len(expected) == inputs.NUM_ANCHORS
    torch.testing.assert_close(inputs.anchors(), expected, rtol=0, atol=1e-3)


def test_ground_truth_is_inside_the_image_with_the_stated_sizes():
    boxes = inputs.gt_boxes(1000, seed=5)
    assert torch.equal(boxes, inputs.gt_boxes(1000, seed=5))
    assert not torch.equal(boxes, inputs.gt_boxes(1000, seed=6))
    assert boxes.min() >= 0
    assert (boxes[:, 2] <= 1344).all() and (boxes[:, 3] <= 800).all()
    size = boxes[:, 2:] - boxes[:, :2]
    assert size.min() > 7.9 and size.max() < 400.1
    # Log-uniform: half of them below the geometric mean of 8 and 400.
    assert 0.45 < (size < (8 * 400) ** 0.5).float().mean() < 0.55


def test_labels_have_the_stated_proportions():
    labels = inputs.class_labels(100_000, 80, seed=0)
    assert set(labels.unique().tolist()) <= set(range(-1, 81))
    share = (labels < 80).float().mean().item()
    assert 0.0025 < share < 0.0035
    kinds = inputs.objectness_labels(2, 100_000, seed=0)
    assert kinds.shape == (2, 100_000)
    assert 0.0005 < (kinds == 1).float().mean() < 0.0015
    assert 0.0015 < (kinds == -1).float().mean() < 0.0025


def test_eager_code_agrees_with_the_references():
    from resobj_d2.ops import reference

    first, second = inputs.gt_boxes(7, 0), inputs.gt_boxes(30, 1)
    torch.testing.assert_close(
        eager.pairwise_iou(first, second), reference.pairwise_box_iou(first, second)
    )
    torch.testing.assert_close(
        eager.aligned_iou(first, first.flip(0)), reference.box_iou_aligned(first, first.flip(0))
    )
    pred, target = torch.randn(20, 4), torch.randn(20, 4)
    torch.testing.assert_close(
        eager.balanced_l1(pred, target), reference.balanced_l1_loss(pred, target)
    )
    logits, residuals = torch.randn(2, 50), torch.randn(3, 2, 50)
    labels = torch.tensor([-1, 0, 0, 0, 1]).repeat(2, 10).to(torch.int8)
    expected = ops.residual_objectness_bce(logits, residuals, labels).losses
    for losses in (eager.residual_losses_masked, eager.residual_losses_indexed):
        torch.testing.assert_close(losses(logits, residuals, labels), expected)
