"""``VIS_PERIOD``: pictures of a training, in Detectron2's event storage."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from resobj_d2.modeling import SoftmaxMaskHead


def pictures_of(model, batch, iterations=(0,)):
    """(name, pixels, iteration) of what reaches the writer of TensorBoard."""
    found = []
    for iteration in iterations:
        with EventStorage(iteration) as storage:
            model(batch)
        found += storage._vis_data
    return found


@pytest.mark.parametrize("method", ["everything_fsaf", "yolov3"])
def test_a_dense_detector_draws_the_first_image_of_a_batch(method_cfg, make_batch, method):
    model = build_model(method_cfg(method, opts=["VIS_PERIOD", 5]))
    batch = make_batch([(96, 128, 3), (64, 64, 0)])
    first, second = pictures_of(model, batch, (4, 5, 6, 10))
    assert [first[2], second[2]] == [5, 10]
    assert first[1].dtype == np.uint8 and first[1].shape == (3, 2 * 96, 128)
    upper, lower = np.split(first[1].astype(int), 2, axis=1)
    seen = batch[0]["image"].flip(0) if model.input_format == "BGR" else batch[0]["image"]
    clear = np.abs(upper - seen.numpy()).max(axis=0) < 3  # noise, but for edges of boxes
    assert 0.3 < clear.mean() < 0.99 and model.training
    model.vis_period = 0
    assert not pictures_of(model, batch)


def test_parts_of_a_two_stage_detector_leave_its_picture_as_it_was(tiny_rcnn, make_batch):
    model = build_model(
        tiny_rcnn(
            "VIS_PERIOD", 2, "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", True,
            "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll",
            "MODEL.ROI_HEADS.NAME", "ResObjROIHeads",
            "MODEL.RESOBJ_ROI.SAMPLER.NAME", "HardExampleSampler",
        )
    )  # fmt: skip
    (found,) = pictures_of(model, make_batch([(96, 128, 3)]), (1, 2))
    assert found[0] == "Left: GT bounding boxes;  Right: Predicted proposals"


def test_the_softmax_mask_head_draws_masks_beside_the_true_ones():
    head = SoftmaxMaskHead(
        ShapeSpec(channels=3, height=4, width=4), num_classes=3, conv_dims=[4], vis_period=3
    )
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 8)
    head.layers = lambda x: logits
    instances = Instances((8, 8), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 8, 8]] * 2)))
    instances.gt_classes = torch.tensor([1, 0])
    true = torch.zeros(2, 8, 8, dtype=torch.bool)
    true[:, :, :4] = True
    instances.gt_masks = BitMasks(true)
    found = []
    for iteration in (2, 3):
        with EventStorage(iteration) as storage:
            head.train()(None, [instances])
        found += storage._vis_data
    assert [name[-4:] for name, *_ in found] == [" (0)", " (1)"]
    for k, (_, pixels, iteration) in enumerate(found):
        exponents = logits[k].exp()
        expected = exponents[[1, 0][k]] / exponents.sum(dim=0)
        assert iteration == 3 and pixels.shape == (3, 8, 16)
        torch.testing.assert_close(pixels[1], torch.cat((expected, true[k].float()), dim=1))
