"""Mask heads with a softmax over the classes and with fully connected layers."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from resobj_d2.modeling import MLPMaskHead, SoftmaxMaskHead

K = 2
SHAPE = ShapeSpec(channels=3, height=4, width=4)


def softmax_head(logits):
    """A head whose last convolution is replaced by given logits (B, K + 1, M, M)."""
    head = SoftmaxMaskHead(SHAPE, num_classes=K + 1, conv_dims=[4])
    head.layers = lambda x: logits
    return head


def half_covered(classes):
    """RoIs of 8 x 8 pixels, of whose masks the left half is the object."""
    instances = Instances((8, 8))
    instances.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 8, 8]]).repeat(len(classes), 1))
    instances.gt_classes = torch.tensor(classes)
    mask = torch.zeros(len(classes), 8, 8, dtype=torch.bool)
    mask[:, :, :4] = True
    instances.gt_masks = BitMasks(mask)
    return instances


def test_softmax_loss_by_hand():
    """Left the object's class, right background; log-softmax written out."""
    torch.manual_seed(0)
    logits = torch.randn(3, K + 1, 8, 8)
    loss = softmax_head(logits).train()(None, [half_covered([1, 0]), half_covered([1])])
    expected = 0.0
    for x, kind in zip(logits.exp(), (1, 0, 1), strict=True):
        p = x / x.sum(dim=0)
        expected -= p[kind, :, :4].log().sum() + p[K, :, 4:].log().sum()
    assert loss["loss_mask"].item() == pytest.approx(expected.item() / (3 * 64), rel=1e-5)


def test_softmax_masks_are_the_probability_of_the_predicted_class():
    logits = torch.randn(2, K + 1, 8, 8)
    found = [Instances((8, 8), pred_classes=torch.tensor([1])) for _ in range(2)]
    found.append(Instances((8, 8), pred_classes=torch.zeros(0, dtype=torch.int64)))
    softmax_head(logits).eval()(None, found)
    for x, instances in zip(logits.exp(), found[:2], strict=True):
        torch.testing.assert_close(instances.pred_masks[0, 0], x[1] / x.sum(dim=0))
    assert found[2].pred_masks.shape == (0, 1, 8, 8)


def test_without_rois_the_loss_is_zero_and_attached():
    logits = torch.zeros(0, K + 1, 8, 8, requires_grad=True)
    loss = softmax_head(logits).train()(None, [half_covered([])])["loss_mask"]
    assert loss == 0 and loss.requires_grad


def test_mlp_head_is_two_layers_and_a_map_per_class():
    torch.manual_seed(0)
    head = MLPMaskHead(SHAPE, num_classes=K, widths=[5, 6])
    x = torch.randn(2, 3, 4, 4)
    first, second = head.hidden[0], head.hidden[2]
    hidden = (second.weight @ (first.weight @ x.flatten(1).T + first.bias[:, None]).relu()).T
    expected = (hidden + second.bias).relu() @ head.predictor.weight.T
    torch.testing.assert_close(head.layers(x), expected.view(2, K, 8, 8))
    with EventStorage():
        losses = head.train()(x, [half_covered([1, 0])])
    assert losses["loss_mask"].item() == pytest.approx(0.693, abs=0.01)  # ln 2, nearly untrained


def test_options_that_do_not_fit_are_refused(tiny_rcnn):
    cfg = tiny_rcnn("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_MASK must be False"):
        SoftmaxMaskHead(cfg, SHAPE)
    with pytest.raises(ValueError, match="NUM_CONV is 0"):
        MLPMaskHead(tiny_rcnn("MODEL.ROI_MASK_HEAD.NUM_CONV", 0), SHAPE)
