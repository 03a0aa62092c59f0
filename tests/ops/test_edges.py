"""Numbers that overflow, vanish in float32 or mean nothing: refused, or one result everywhere."""

import math

import pytest
import torch
from torch import func

from resobj_d2 import ops
from resobj_d2.ops import reference
from tests.ops.operator_cases import arguments_of, change_all, floating_to
from tests.ops.test_transforms import call_registered

NAN, INF = math.nan, math.inf
TINY = 1e-60  # 0 in float32


def both(name, change, dtype=torch.float32):
    """The wrapper and the kernel as functions without arguments, with changed arguments."""
    arguments = change_all({**arguments_of(name, 6), **change}, floating_to(dtype))
    flat = {**arguments}
    if name == "dense_detections" and "image_sizes" in change:
        flat["image_sizes"] = [x for size in change["image_sizes"] for x in size]
    return lambda: getattr(ops, name)(**arguments), lambda: call_registered(name)(**flat)


SIZES = {"gt_boxes": torch.zeros(0, 4), "ignore_boxes": None, "ignore_sizes": []}
REFUSED = [
    # Sums that overflow to the number of rows.
    ("match_anchors", {**SIZES, "gt_sizes": [2**62] * 4}, "gt_sizes"),
    ("match_anchors", {**SIZES, "gt_sizes": [2**63 - 1, 2**63 - 1, 2]}, "gt_sizes"),
    ("match_anchors", {"ignore_sizes": [2**62, 2**62 + 3]}, "ignore_sizes"),
    (
        "residual_objectness_bce",
        {"min_scope": "level", "anchors_per_level": [2**62, 2**62, 2**62, 2**62 + 6]},
        "anchors_per_level",
    ),
    # 0 in float32.
    ("match_anchors", {"thresholds": [TINY, 0.5]}, "thresholds"),
    ("match_anchors", {"ignore_iof": TINY}, "ignore_iof"),
    ("reassign_anchors", {"thresholds": [TINY, 0.5]}, "thresholds"),
    ("reassign_anchors", {"weights": [1.0, 1.0, TINY, 1.0]}, "weights"),
    ("dense_detections", {"weights": [1.0, 1.0, TINY, 1.0]}, "weights"),
    ("soft_nms", {"sigma": TINY, "method": "gaussian"}, "sigma"),
    ("soft_nms_padded", {"sigma": TINY, "method": "gaussian"}, "sigma"),
    ("matrix_nms", {"sigma": TINY}, "sigma"),
    ("balanced_l1_loss", {"beta": TINY}, "beta"),
    ("balanced_l1_loss", {"alpha": 1e4, "gamma": 1.0}, "gamma"),
    # Infinite or no number.
    ("reassign_anchors", {"scale_clamp": NAN}, "scale_clamp"),
    ("dense_detections", {"scale_clamp": NAN}, "scale_clamp"),
    ("reassign_anchors", {"weights": [1.0, INF, 1.0, 1.0]}, "weights"),
    ("balanced_l1_loss", {"beta": 1e60}, "beta"),
    ("sigmoid_focal_loss", {"gamma": INF}, "gamma"),
    ("sigmoid_focal_loss", {"gamma": NAN}, "gamma"),
    ("dense_detections", {"exponents": [INF]}, "exponents"),
    # A score below the floor is 0, which would pass.
    ("dense_detections", {"floors": [0.2], "score_thresh": -0.5}, "score_thresh"),
    ("dense_detections", {"image_sizes": [(9, 9), (9, -1)]}, "image_sizes"),
    ("dense_detections", {"image_sizes": [(9, 9), (2**40, 9)]}, "image_sizes"),
    ("dense_detections", {"max_detections": 2**62}, "max_detections"),
    ("batched_nms", {"max_output": 2**62}, "max_output"),
    ("batched_nms_padded", {"max_output": 2**62}, "max_output"),
    ("soft_nms", {"max_output": 2**62}, "max_output"),
    ("soft_nms_padded", {"max_output": 2**62}, "max_output"),
]


@pytest.mark.parametrize("name, change, argument", REFUSED)
def test_is_refused(name, change, argument):
    wrapper, kernel = both(name, change)
    with pytest.raises(ValueError, match=rf"^{name}: .*\b{argument}\b") as refusal:
        wrapper()
    assert "\n" not in str(refusal.value)
    if ops.native_status()["cpu"] == "native":
        with pytest.raises(RuntimeError, match=rf"\b{argument}\b"):
            kernel()


@pytest.mark.parametrize(
    "name, change", [(name, change) for name, change, _ in REFUSED if str(TINY) in str(change)]
)
def test_what_vanishes_in_float32_only_works_in_float64(name, change):
    wrapper, kernel = both(name, change, torch.float64)
    for result in (wrapper(), kernel()):
        for tensor in result if isinstance(result, tuple) else (result,):
            assert not tensor.isnan().any()


CROSSED, BOX = (5.0, 5.0, 1.0, 1.0), (0.0, 0.0, 3.0, 3.0)
# Of (1, 1, 5, 5) and BOX: intersection 4, union 16 + 9 - 4, hull 25.
GIOU = 4 / 21 - 4 / 25


@pytest.mark.parametrize("first, second", [(CROSSED, BOX), (BOX, CROSSED)])
def test_giou_sorts_the_corners(impl, first, second):
    a, b = (torch.tensor([box], device=impl.device, dtype=torch.float64) for box in (first, second))
    assert impl.pairwise_box_iou(a, b, "giou").item() == pytest.approx(GIOU)
    assert impl.box_iou_aligned(a, b, "giou").item() == pytest.approx(GIOU)
    assert impl.giou_loss(a, b).item() == pytest.approx(1 - GIOU, abs=1e-6)
    for kind in ("iou", "iof"):
        assert impl.pairwise_box_iou(a, b, kind).item() == 0
    assert impl.box_iou_aligned(a, b, "iou").item() == 0


def test_giou_of_any_boxes_is_within_bounds(impl):
    values = torch.arange(-2.0, 3, device=impl.device)
    boxes = torch.cartesian_prod(values, values, values, values)
    result = impl.pairwise_box_iou(boxes, boxes[::7], "giou")
    assert result.min() >= -1 and result.max() <= 1
    index = torch.arange(len(boxes[::7]), device=impl.device)
    aligned = impl.box_iou_aligned(boxes[::7], boxes[: len(index)], "giou")
    assert torch.equal(aligned, result[index, index])


def test_each_coordinate_of_a_crossed_box_gets_the_gradient_of_its_sorted_position(native_device):
    sorted_box = torch.tensor([[1.0, 1, 5, 5]], device=native_device, requires_grad=True)
    crossed = sorted_box.detach()[:, [2, 1, 0, 3]].requires_grad_()
    other = torch.tensor([BOX], device=native_device)
    for first in (True, False):
        gradients = [
            torch.autograd.grad(
                ops.box_iou_aligned(*((box, other) if first else (other, box)), "giou"), box
            )[0]
            for box in (sorted_box, crossed)
        ]
        assert gradients[0].all() and torch.equal(gradients[0][:, [2, 1, 0, 3]], gradients[1])


def test_nan_and_infinite_differences_in_balanced_l1(native_device):
    """By hand: slope 1.5 beyond beta, 0 at 0, NaN for NaN."""
    pred = torch.tensor([NAN, INF, -INF, 9.0, 0.0], device=native_device, dtype=torch.float64)
    expected = torch.tensor([NAN, 1.5, -1.5, 1.5, 0.0], device=native_device, dtype=torch.float64)
    zeros = torch.zeros_like(pred)
    leaf = pred.clone().requires_grad_()
    loss = ops.balanced_l1_loss(leaf, zeros)
    assert loss.isnan() and reference.balanced_l1_loss(pred, zeros).isnan()
    one = torch.ones((), device=native_device, dtype=torch.float64)
    for gradient in (
        torch.autograd.grad(loss, leaf)[0],
        reference.balanced_l1_loss_backward(one, pred, zeros, 0.5, 1.5, 1.0),
        func.grad(lambda x: ops.balanced_l1_loss(x, zeros))(pred),
    ):
        torch.testing.assert_close(gradient, expected, equal_nan=True)


def test_any_topk_is_as_many_as_there_are(native_device):
    arguments = arguments_of("dense_detections", 6, native_device)
    expected = ops.dense_detections(**{**arguments, "topk": 1000})
    result = ops.dense_detections(**{**arguments, "topk": 2**63 - 1})
    assert expected.counts.any()
    for a, b in zip(result, expected, strict=True):
        assert torch.equal(a, b)


def test_maps_without_channels_allow_any_number_of_classes(native_device):
    maps = [torch.zeros(2, 0, 3, 3, device=native_device)]
    anchors = [torch.zeros(0, 4, device=native_device)]
    result = ops.dense_detections(
        maps, None, anchors, num_classes=2**62, score_thresh=0.1, topk=9, nms_thresh=0.5,
        max_detections=2,
    )  # fmt: skip
    assert result.counts.tolist() == [0, 0] and (result.rows == -1).all()
