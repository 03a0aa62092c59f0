"""pairwise_box_iou against literals, torchvision and Detectron2."""

import math

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import reference

KINDS = ("iou", "giou", "iof")
NAN, INF = math.nan, math.inf


def random_boxes(count, seed, dtype=torch.float32, grid=None):
    """Boxes of very different sizes; on a coarse grid many coordinates are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 100
    size = torch.exp(torch.rand(count, 2, generator=generator, dtype=dtype) * 5 - 1)
    if grid:
        corner, size = (corner / grid).round() * grid, (size / grid).round() * grid
    return torch.cat((corner, corner + size), dim=1)


# a, b, IoU, GIoU, IoF = fraction of b inside a
PAIRS = [
    ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9, 1 / 4),
    ((0, 0, 4, 4), (1, 1, 3, 2), 2 / 16, 2 / 16, 1.0),
    ((1, 1, 3, 2), (0, 0, 4, 4), 2 / 16, 2 / 16, 2 / 16),
    ((0, 0, 1, 1), (2, 0, 3, 1), 0.0, -1 / 3, 0.0),
    ((0, 0, 1, 1), (1, 0, 2, 1), 0.0, 0.0, 0.0),  # touching: no intersection, hull filled
    ((5, 5, 9, 9), (5, 5, 9, 9), 1.0, 1.0, 1.0),
    ((-3, -3, -1, -1), (-2, -2, 0, 0), 1 / 7, 1 / 7 - 2 / 9, 1 / 4),
    # Without area: a union of 0 gives 0, and with a hull of 0 the GIoU is the IoU.
    ((1, 1, 1, 1), (1, 1, 1, 1), 0.0, 0.0, 0.0),
    ((0, 0, 2, 0), (1, 0, 3, 0), 0.0, 0.0, 0.0),
    ((0, 0, 0, 0), (3, 4, 3, 4), 0.0, -1.0, 0.0),  # hull 12, union 0
    ((0, 0, 2, 2), (1, 1, 1, 1), 0.0, 0.0, 0.0),
    # Boxes with swapped corners overlap nothing.
    ((2, 2, 0, 0), (0, 0, 2, 2), 0.0, None, 0.0),
    # A NaN coordinate, in either box and any position, gives the worst value of each kind.
    ((NAN, 0, 2, 2), (1, 1, 3, 3), 0.0, -1.0, 0.0),
    ((0, NAN, 2, 2), (1, 1, 3, 3), 0.0, -1.0, 0.0),
    ((0, 0, NAN, 2), (1, 1, 3, 3), 0.0, -1.0, 0.0),
    ((0, 0, 2, NAN), (1, 1, 3, 3), 0.0, -1.0, 0.0),
    ((0, 0, 2, 2), (NAN, 1, 3, 3), 0.0, -1.0, 0.0),
    ((0, 0, 2, 2), (1, 1, 3, NAN), 0.0, -1.0, 0.0),
    ((0, 0, 0, NAN), (0, 0, 0, 0), 0.0, -1.0, 0.0),
    # An unbounded ignore region contains every anchor.
    ((-INF, -INF, INF, INF), (1, 1, 3, 2), 0.0, None, 1.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_by_hand(impl, kind, dtype):
    first = torch.tensor([pair[0] for pair in PAIRS], dtype=dtype, device=impl.device)
    second = torch.tensor([pair[1] for pair in PAIRS], dtype=dtype, device=impl.device)
    result = impl.pairwise_box_iou(first, second, kind)
    assert result.shape == (len(PAIRS), len(PAIRS)) and result.dtype == dtype
    for i, pair in enumerate(PAIRS):
        expected = pair[2 + KINDS.index(kind)]
        if expected is not None:
            assert result[i, i].item() == pytest.approx(expected, abs=1e-6), (i, pair)


@pytest.mark.parametrize("kind", KINDS)
def test_never_nan_and_within_bounds(impl, kind):
    odd = torch.tensor([NAN, INF, -INF, 0.0, 1.0, 1e30, -1e30, 5.0, 1e-30])
    boxes = torch.cartesian_prod(odd, odd[:5], odd, odd[:5]).to(impl.device)[::7]
    assert not impl.pairwise_box_iou(boxes, boxes, kind).isnan().any()
    corners = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    boxes = torch.cat(corners, dim=1)
    result = impl.pairwise_box_iou(boxes, boxes, kind)
    assert result.max() == 1 and result.min() == (-1 if kind == "giou" else 0)


@pytest.mark.parametrize("rows, columns", [(7, 3001), (3001, 7), (1, 1), (5, 1024), (40, 1025)])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_is_bit_identical_to_the_reference(native_device, kind, rows, columns):
    for seed, grid in ((0, None), (1, 4.0)):
        first, second = random_boxes(rows, seed, grid=grid), random_boxes(columns, 9, grid=grid)
        first[0, 1] = NAN
        expected = reference.pairwise_box_iou(first, second, kind)
        result = ops.pairwise_box_iou(first.to(native_device), second.to(native_device), kind)
        assert torch.equal(result.cpu(), expected)


def test_iou_is_bit_identical_to_detectron2(impl):
    structures = pytest.importorskip("detectron2.structures")
    for grid in (None, 2.0):
        first, second = random_boxes(60, 3, grid=grid), random_boxes(2500, 4, grid=grid)
        second[7], second[8, 2] = torch.zeros(4), NAN
        expected = structures.pairwise_iou(structures.Boxes(first), structures.Boxes(second))
        result = impl.pairwise_box_iou(first.to(impl.device), second.to(impl.device))
        assert torch.equal(result.cpu(), expected)


def test_iou_and_giou_agree_with_torchvision(impl):
    boxes = pytest.importorskip("torchvision.ops")
    first, second = random_boxes(50, 5, torch.float64), random_boxes(70, 6, torch.float64)
    for kind, peer in (("iou", boxes.box_iou), ("giou", boxes.generalized_box_iou)):
        result = impl.pairwise_box_iou(first.to(impl.device), second.to(impl.device), kind).cpu()
        torch.testing.assert_close(result, peer(first, second), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows, columns", [(0, 5), (5, 0), (0, 0)])
def test_empty(impl, rows, columns):
    empty = torch.empty(rows, 4, device=impl.device), torch.empty(columns, 4, device=impl.device)
    assert impl.pairwise_box_iou(*empty).shape == (rows, columns)


def test_not_contiguous(impl):
    wide = random_boxes(20, 7).to(impl.device)
    padded = torch.cat((wide, wide), dim=1)[:, :4]
    transposed = wide.t().contiguous().t()
    expected = impl.pairwise_box_iou(wide[::2].clone(), wide)
    assert torch.equal(impl.pairwise_box_iou(padded[::2], transposed), expected)


GOOD = torch.zeros(2, 4)
BAD_ARGUMENTS = [
    (
        (GOOD, GOOD, "eiou"),
        ValueError,
        "kind must be one of iou, giou, diou, ciou, iof, got 'eiou'",
    ),
    ((GOOD.long(), GOOD), TypeError, "boxes1 must be a floating-point tensor, got torch.int64"),
    ((GOOD, [[0, 0, 1, 1]]), TypeError, "boxes2 must be a floating-point tensor, got list"),
    ((GOOD, torch.zeros(4)), ValueError, r"boxes2 must have shape \(number, 4\), got \(4,\)"),
    ((torch.zeros(2, 5), GOOD), ValueError, r"boxes1 must have shape .* got \(2, 5\)"),
    ((GOOD, GOOD.to("meta")), ValueError, "boxes2 is on meta, but boxes1 is on cpu"),
]


@pytest.mark.parametrize("arguments, error, message", BAD_ARGUMENTS)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.pairwise_box_iou(*arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_out_is_written_and_returned(native_device, kind, dtype):
    first, second = (random_boxes(n, n, dtype).to(native_device) for n in (3, 2000))
    expected = ops.pairwise_box_iou(first, second, kind)
    out = torch.full((3, 2000), NAN, dtype=dtype, device=native_device)
    assert ops.pairwise_box_iou(first.requires_grad_(), second, kind, out=out) is out
    assert torch.equal(out, expected) and not out.requires_grad


def test_out_with_other_strides(native_device):
    first, second = (random_boxes(n, n).to(native_device) for n in (3, 50))
    wide = torch.full((50, 7), NAN, device=native_device)
    out = wide.t()[2:5]
    assert ops.pairwise_box_iou(first, second, out=out) is out
    assert torch.equal(out, ops.pairwise_box_iou(first, second))
    assert wide[:, :2].isnan().all() and wide[:, 5:].isnan().all()


def test_out_of_half_precision_boxes_is_float32(native_device):
    boxes = random_boxes(4, 1).to(native_device).half()
    out = torch.empty(4, 4, device=native_device)
    assert torch.equal(
        ops.pairwise_box_iou(boxes, boxes, out=out), ops.pairwise_box_iou(boxes, boxes)
    )


def test_out_in_a_compiled_function():
    boxes, out = random_boxes(4, 1), torch.zeros(4, 4)
    compiled = torch.compile(
        lambda boxes, out: ops.pairwise_box_iou(boxes, boxes, out=out) + 1,
        fullgraph=True,
        backend="aot_eager",
    )
    expected = ops.pairwise_box_iou(boxes, boxes)
    assert torch.equal(compiled(boxes, out), expected + 1) and torch.equal(out, expected)


@pytest.mark.parametrize(
    "out, error, message",
    [
        (torch.zeros(2, 3), ValueError, r"out must have shape \(2, 2\), got \(2, 3\)"),
        (torch.zeros(2, 2).double(), TypeError, "out must be a tensor of torch.float32"),
        (torch.zeros(2, 2, device="meta"), ValueError, "out is on meta, but boxes1 is on cpu"),
        (torch.zeros(2, 2, requires_grad=True), ValueError, "out must not require a gradient"),
    ],
)
def test_errors_about_out(out, error, message):
    with pytest.raises(error, match=message):
        ops.pairwise_box_iou(GOOD, GOOD, out=out)


@pytest.mark.parametrize(
    "out, message",
    [
        (torch.zeros(2, 3), "out must be contiguous, with a row for each"),
        (torch.zeros(4, 2)[::2], "out must be contiguous, with a row for each"),
        (torch.zeros(2, 2).double(), "out must have the dtype of boxes1"),
    ],
)
def test_kernels_reject_a_bad_out_like_the_wrapper(native_device, out, message):
    boxes = GOOD.to(native_device)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resobj_d2._pairwise_box_iou_out(boxes, boxes, "iou", out.to(native_device))


@pytest.mark.parametrize(
    "first, second, kind, message",
    [
        (GOOD.half(), GOOD.half(), "iou", "boxes1 must be float32 or float64"),
        (GOOD, GOOD.double(), "iou", "boxes2 must have the dtype of boxes1"),
        (GOOD, torch.zeros(2, 3), "iou", "boxes2 must have shape"),
        (GOOD, GOOD, "diou", "unknown kind diou"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(native_device, first, second, kind, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resobj_d2.pairwise_box_iou(
            first.to(native_device), second.to(native_device), kind
        )


def test_a_result_beyond_the_cache_has_the_rows_of_small_ones(native_device):
    """Its long rows are stored in another way, whatever their alignment."""
    few, many = random_boxes(9, 1), random_boxes(1_000_003, 2)
    few, many = few.to(native_device), many.to(native_device)
    overlaps = ops.pairwise_box_iou(few, many)
    for i in (0, 4, 8):
        assert torch.equal(overlaps[i : i + 1], ops.pairwise_box_iou(few[i : i + 1], many))
