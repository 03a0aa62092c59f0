"""reassign_anchors against literals, Detectron2's functions, and match_anchors on its boxes."""

import math

import pytest
import torch

from resobj_d2 import ops

RULE = {"thresholds": [0.5, 0.6], "labels": [0, -1, 1]}
NAN = math.nan


def make(impl, *values, dtype=torch.float32):
    return [torch.tensor(x, dtype=dtype, device=impl.device) for x in values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_hand(impl, dtype):
    """A shift by half a width, a doubled width, no change; one box, at [5, 0, 15, 10]."""
    anchors, deltas, gts = make(
        impl,
        [[0.0, 0, 10, 10], [5, 2, 10, 8], [40, 40, 50, 50]],
        [[[0.5, 0.0, 0.0, 0.0], [0.5, 0.0, math.log(2), math.log(10 / 6)], [0.0, 0, 0, 0]]],
        [[5.0, 0, 15, 10]],
        dtype=dtype,
    )
    reassigned = impl.reassign_anchors(anchors, deltas, gts, [1], **RULE)
    expected = torch.tensor([[[5.0, 0, 15, 10], [5, 0, 15, 10], [40, 40, 50, 50]]], dtype=dtype)
    torch.testing.assert_close(reassigned.boxes.cpu(), expected)
    assert reassigned.label.tolist() == [[1, 1, 0]]
    assert reassigned.gt_index.tolist() == [[0, 0, 0]]
    torch.testing.assert_close(reassigned.ious.cpu(), torch.tensor([[1.0, 1, 0]], dtype=dtype))
    torch.testing.assert_close(reassigned.targets.cpu(), torch.zeros(1, 3, 4, dtype=dtype))


def test_targets_by_hand(impl):
    """The refined anchor [0, 0, 10, 20] and its box [1, 2, 13, 18]: IoU 144 / 248 = .58."""
    anchors, deltas, gts = make(impl, [[0.0, 0, 10, 20]], [[[0.0, 0, 0, 0]]], [[1.0, 2, 13, 18]])
    rule = {"thresholds": [0.3, 0.5], "labels": [0, -1, 1]}
    reassigned = impl.reassign_anchors(anchors, deltas, gts, [1], **rule, weights=[10.0, 10, 5, 5])
    expected = [10 * 2 / 10, 0.0, 5 * math.log(1.2), 5 * math.log(0.8)]
    torch.testing.assert_close(reassigned.targets[0, 0].cpu(), torch.tensor(expected))


def test_weights_and_clamp_of_the_deltas(impl):
    anchors, deltas, gts = make(impl, [[0.0, 0, 8, 8]], [[[5.0, 0, 40.0, 0]]], [[0.0, 0, 1, 1]])
    reassigned = impl.reassign_anchors(
        anchors, deltas, gts, [1], **RULE, weights=[10.0, 10, 5, 5], scale_clamp=math.log(4)
    )
    # The centre moves by .5 * 8; the exponent 8 is clamped to log 4.
    expected = torch.tensor([[[8 - 16.0, 0, 8 + 16, 8]]])
    torch.testing.assert_close(reassigned.boxes.cpu(), expected)


def test_anchors_with_an_invalid_refined_box_stay(impl):
    anchors, deltas, gts = make(
        impl,
        [[0.0, 0, 8, 8]] * 5,
        [[[NAN, 0, 0, 0], [0, math.inf, 0, 0], [0, 0, -200, 0], [0, 0, 0, NAN], [0, 0, 0, 0]]],
        [[0.0, 0, 8, 8]],
    )
    reassigned = impl.reassign_anchors(anchors, deltas, gts, [1], **RULE)
    assert torch.equal(reassigned.boxes.cpu(), torch.tensor([[[0.0, 0, 8, 8]] * 5]))
    assert reassigned.label.tolist() == [[1] * 5]


def test_deltas_decide_the_precision_too():
    box = torch.tensor([[0.0, 0, 4, 4]])
    deltas = torch.zeros(1, 1, 4, dtype=torch.float64)
    result = ops.reassign_anchors(box, deltas, box, [1], thresholds=[0.5], labels=[0, 1])
    assert result.boxes.dtype == result.targets.dtype == torch.float64


@pytest.mark.parametrize(
    "box, target", [([20.0, 20, 30, 30], [2.0, 2, 0, 0]), ([20.0, 20, 20, 30], [0.0] * 4)]
)
def test_foreground_without_an_area_has_no_target(impl, box, target):
    """As in Detectron2, all anchors are foreground for a box that overlaps none of them."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [3, 3, 3, 8]], device=impl.device)
    result = impl.reassign_anchors(
        anchors,
        torch.zeros(1, 2, 4, device=impl.device),
        torch.tensor([box], device=impl.device),
        [1],
        thresholds=[0.5],
        labels=[0, 1],
        allow_low_quality=True,
        d2_compat=True,
    )
    assert result.label.tolist() == [[1, 1]]
    assert result.targets.tolist() == [[target, [0.0] * 4]]


def test_each_image_has_its_own_boxes_and_anchors(impl):
    anchors, deltas, gts = make(
        impl,
        [[[0.0, 0, 10, 10]], [[20, 20, 30, 30]], [[0, 0, 5, 5]]],
        [[[0.0, 0, 0, 0]]] * 3,
        [[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]],
    )
    reassigned = impl.reassign_anchors(anchors, deltas, gts, [1, 2, 0], **RULE)
    assert reassigned.label.tolist() == [[1], [1], [0]]
    assert reassigned.gt_index.tolist() == [[0], [1], [-1]]
    assert reassigned.targets.count_nonzero() == 0


def test_low_quality_and_ignored_regions(impl):
    anchors, deltas, gts, crowd = make(
        impl,
        [[0.0, 0, 10, 10], [40, 40, 50, 50]],
        [[[0.0, 0, 0, 0], [0, 0, 0, 0]]],
        [[0.0, 0, 4, 10]],
        [[38.0, 38, 60, 60]],
    )
    reassigned = impl.reassign_anchors(
        anchors, deltas, gts, [1], **RULE, allow_low_quality=True, ignore_boxes=crowd,
        ignore_sizes=[1],
    )  # fmt: skip
    assert reassigned.label.tolist() == [[1, -1]]
    expected = torch.tensor([-0.3, 0.0, math.log(0.4), 0.0])
    torch.testing.assert_close(reassigned.targets[0, 0].cpu(), expected)


def random_batch(seed, count=3000, sizes=(20, 0, 5)):
    generator = torch.Generator().manual_seed(seed)

    def boxes(number, low, high):
        corner = torch.rand(number, 2, generator=generator) * 200
        size = low + torch.rand(number, 2, generator=generator) * (high - low)
        return torch.cat((corner, corner + size), dim=1)

    deltas = 0.3 * torch.randn(len(sizes), count, 4, generator=generator)
    return boxes(count, 10, 60), deltas, boxes(sum(sizes), 5, 80), list(sizes)


def test_matches_are_those_of_match_anchors_on_its_boxes(impl):
    anchors, deltas, gts, sizes = random_batch(0)
    anchors, deltas, gts = (x.to(impl.device) for x in (anchors, deltas, gts))
    reassigned = impl.reassign_anchors(anchors, deltas, gts, sizes, **RULE)
    match = impl.match_anchors(reassigned.boxes, gts, sizes, **RULE, allow_low_quality=False)
    for name in ("gt_index", "ious", "label"):
        assert torch.equal(getattr(reassigned, name), getattr(match, name))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_agrees_with_detectron2(impl, weights):
    pytest.importorskip("detectron2")
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes, pairwise_iou

    anchors, deltas, gts, sizes = random_batch(1)
    deltas = deltas * torch.tensor(weights)
    reassigned = impl.reassign_anchors(
        *(x.to(impl.device) for x in (anchors, deltas, gts)), sizes, **RULE, weights=weights
    )
    coder = Box2BoxTransform(weights=weights)
    matcher = Matcher(*RULE.values(), allow_low_quality_matches=False)
    compared = 0
    for i, own in enumerate(gts.split(sizes)):
        boxes = coder.apply_deltas(deltas[i], anchors)
        torch.testing.assert_close(reassigned.boxes[i].cpu(), boxes, rtol=1e-5, atol=1e-4)
        index, label = matcher(pairwise_iou(Boxes(own), Boxes(boxes)))
        # Two exponentials may differ in the last bit, with a threshold in between.
        assert (reassigned.label[i].cpu() != label).float().mean() < 1e-3
        same = (reassigned.label[i].cpu() == 1) & (label == 1)
        targets = coder.get_deltas(reassigned.boxes[i].cpu()[same], own[index[same]])
        torch.testing.assert_close(reassigned.targets[i].cpu()[same], targets, rtol=1e-4, atol=1e-4)
        compared += int(same.sum())
    assert compared > 10


def test_no_images_and_no_anchors(impl):
    for shape, sizes in (((0, 4), [2]), ((3, 4), [])):
        anchors = torch.zeros(shape, device=impl.device)
        deltas = torch.zeros(len(sizes), shape[0], 4, device=impl.device)
        gts = torch.zeros(sum(sizes), 4, device=impl.device)
        reassigned = impl.reassign_anchors(anchors, deltas, gts, sizes, **RULE)
        assert reassigned.boxes.shape == reassigned.targets.shape == (len(sizes), shape[0], 4)
        assert reassigned.label.shape == (len(sizes), shape[0])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"deltas": torch.zeros(2, 3, 4)}, ValueError, "deltas must have shape"),
        ({"deltas": torch.zeros(1, 2, 4)}, ValueError, "deltas must have shape"),
        ({"deltas": torch.zeros(1, 3, 4, dtype=torch.int64)}, TypeError, "deltas"),
        ({"weights": [1.0, 1.0, 0.0, 1.0]}, ValueError, "weights"),
        ({"weights": [1.0]}, ValueError, "weights"),
        ({"thresholds": [0.6, 0.5]}, ValueError, "reassign_anchors: thresholds"),
        ({"gt_sizes": [3]}, ValueError, "gt_sizes"),
        ({"anchors": torch.zeros(3, 5)}, ValueError, "anchors"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "anchors": torch.zeros(3, 4),
        "deltas": torch.zeros(1, 3, 4),
        "gt_boxes": torch.zeros(2, 4),
        "gt_sizes": [2],
        **RULE,
        **change,
    }
    with pytest.raises(error, match=message):
        ops.reassign_anchors(**arguments)


def test_kernels_reject_a_foreground_first_label(native_device):
    """Otherwise a foreground anchor of an image without boxes would read the row before."""
    anchors, deltas, gts = (
        torch.zeros(shape, device=native_device) for shape in ((3, 4), (2, 3, 4), (1, 4))
    )
    with pytest.raises(RuntimeError, match="the first of labels must not be 1"):
        torch.ops.resobj_d2.reassign_anchors(
            anchors, deltas, gts, [1, 0], [1.0] * 4, 4.0, [0.5], [1, 0]
        )
