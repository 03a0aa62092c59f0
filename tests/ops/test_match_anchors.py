"""match_anchors against literals and Detectron2's pairwise_iou + Matcher."""

import math
from pathlib import Path

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import reference

NAN = math.nan
RULE = {"thresholds": [0.4, 0.5], "labels": [0, -1, 1]}


def grid_anchors(height, width, stride=8, sizes=(20, 32, 50), dtype=torch.float32):
    """Anchors of a few sizes and shapes at every cell, as on one pyramid level."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.stack((x, y), dim=-1).reshape(-1, 1, 2).to(dtype) * stride
    half = [torch.tensor([s * r, s / r]) / 2 for s in sizes for r in (0.75, 1.0, 1.5)]
    half = torch.stack(half).to(dtype)
    return torch.cat((centre - half, centre + half), dim=-1).reshape(-1, 4)


def random_boxes(count, seed, extent=200.0, whole=False, dtype=torch.float32):
    """Boxes of very different sizes; integer coordinates make ties common."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * extent
    size = torch.exp(torch.rand(count, 2, generator=generator, dtype=dtype) * 4 + 1)
    if whole:
        corner, size = corner.round(), size.round()
    return torch.cat((corner, corner + size), dim=1)


def random_batch(seed, sizes=(7, 0, 30, 1, 3), whole=True, dtype=torch.float32):
    boxes = random_boxes(sum(sizes), seed, whole=whole, dtype=dtype)
    if whole and len(boxes) > 20:
        boxes[20:23] = boxes[10]  # the same box repeated in one image
    return boxes, list(sizes)


def to_cpu(matches):
    return ops.AnchorMatches(*(value.cpu() for value in matches))


def assert_same(result, expected):
    for name, a, b in zip(result._fields, result, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()), name


# IoU with the first box 1, .6/1.4, .5/1.5, 0; the second box overlaps the last anchor by 2/102.
ANCHORS = [[0, 0, 10, 10], [4, 0, 14, 10], [5, 0, 15, 10], [50, 50, 60, 60]]
BOXES = [[0, 0, 10, 10], [59, 50, 61, 52]]
IOUS = [1, 0.6 / 1.4, 0.5 / 1.5, 2 / 102]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_hand(impl, dtype):
    anchors = torch.tensor(ANCHORS, dtype=dtype, device=impl.device)
    boxes = torch.tensor(BOXES, dtype=dtype, device=impl.device)
    plain = impl.match_anchors(anchors, boxes, [2], **RULE, allow_low_quality=False)
    assert plain.gt_index.tolist() == [[0, 0, 0, 1]]
    assert plain.label.tolist() == [[1, -1, 0, 0]]
    torch.testing.assert_close(plain.ious.cpu(), torch.tensor([IOUS], dtype=dtype))
    assert [value.dtype for value in plain] == [torch.int64, dtype, torch.int8]
    assert impl.match_anchors(anchors, boxes, [2], **RULE).label.tolist() == [[1, -1, 0, 1]]


def test_anchors_match_the_boxes_of_their_own_image(impl):
    anchors = torch.tensor(ANCHORS[:2], dtype=torch.float32, device=impl.device)
    boxes = torch.tensor([[0, 0, 4, 4], [4, 0, 14, 10], [0, 0, 10, 10]]).to(anchors)
    result = impl.match_anchors(anchors, boxes, [0, 2, 0, 1], **RULE)
    assert result.gt_index.tolist() == [[-1, -1], [1, 1], [-1, -1], [0, 0]]
    assert result.label.tolist() == [[0, 0], [1, 1], [0, 0], [1, -1]]
    assert (result.ious[::2] == 0).all()


def test_thresholds_are_half_open_and_in_the_precision_of_the_ious(impl):
    # IoUs of exactly 1/2 and 4/10; in float32 both .4 and 4/10 round to the same number.
    anchors = torch.tensor([[0.0, 0, 1, 2], [0, 0, 4, 1]], device=impl.device)
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 10, 1]], device=impl.device)
    options = {"thresholds": [0.4, 0.5, 0.6], "labels": [0, -1, 1, 0], "allow_low_quality": False}
    result = impl.match_anchors(anchors, boxes, [2], **options)
    assert result.ious.tolist() == [[0.5, torch.tensor(0.4).item()]]
    assert result.label.tolist() == [[1, -1]]


@pytest.mark.parametrize("double", range(3))
def test_the_most_precise_boxes_decide_the_precision(double):
    boxes = [torch.tensor([[0.0, 0, 4, 4]]) for _ in range(3)]
    boxes[double] = boxes[double].double()
    anchors, gt_boxes, ignore_boxes = boxes
    result = ops.match_anchors(
        anchors, gt_boxes, [1], **RULE, ignore_boxes=ignore_boxes, ignore_sizes=[1]
    )
    assert result.ious.dtype == torch.float64


def test_as_many_thresholds_as_are_allowed(impl):
    """The IoU of .5 reaches the last of 1/32, 2/32, ..., 16/32; that of .25 does not."""
    anchors = torch.tensor([[0.0, 0, 1, 2], [0, 0, 1, 4]], device=impl.device)
    boxes = torch.tensor([[0.0, 0, 1, 1]], device=impl.device)
    rule = {"thresholds": [i / 32 for i in range(1, 17)], "labels": [0] * 16 + [1]}
    result = impl.match_anchors(anchors, boxes, [1], **rule, allow_low_quality=False)
    assert result.label.tolist() == [[1, 0]]


def test_low_quality_matches_include_ties_and_keep_the_best_box(impl):
    # The first box lies between the first two anchors, with IoU .25 with both. The second box is
    # the best of anchor 1, so that is its row, yet it is foreground because of the first box.
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [15, 0, 25, 10]], device=impl.device)
    boxes = torch.tensor([[6.0, 0, 14, 10], [13, 0, 23, 10]], device=impl.device)
    result = impl.match_anchors(anchors, boxes, [2], thresholds=[0.9], labels=[0, 1])
    assert result.gt_index.tolist() == [[0, 1, 1]]
    assert result.label.tolist() == [[1, 1, 1]]


def test_box_without_overlap(impl):
    anchors = torch.tensor(ANCHORS[:3], dtype=torch.float32, device=impl.device)
    boxes = torch.tensor([[0.0, 0, 10, 10], [90, 90, 95, 95]], device=impl.device)
    assert impl.match_anchors(anchors, boxes, [2], **RULE).label.tolist() == [[1, -1, 0]]
    flooded = impl.match_anchors(anchors, boxes, [2], **RULE, d2_compat=True)
    # Detectron2 makes all anchors foreground whose IoU with that box is 0, i.e. every one.
    assert flooded.label.tolist() == [[1, 1, 1]]
    assert flooded.gt_index.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    "odd", [[NAN, 0, 10, 10], [0, 0, NAN, 10], [0, 3, 10, 3], [5, 5, 5, 5], [10, 10, 0, 0]]
)
def test_odd_boxes_overlap_nothing(impl, odd):
    good = torch.tensor(ANCHORS, dtype=torch.float32, device=impl.device)
    odd = torch.tensor([odd], dtype=torch.float32, device=impl.device)
    as_box = impl.match_anchors(good, torch.cat((odd, good[:1])), [2], **RULE)
    assert as_box.gt_index.tolist() == [[1, 1, 1, 0]]
    assert as_box.label.tolist() == [[1, -1, 0, 0]]
    as_anchor = impl.match_anchors(torch.cat((odd, good)), good[:1], [1], **RULE)
    assert as_anchor.label.tolist() == [[0, 1, -1, 0, 0]]
    assert as_anchor.ious[0, 0] == 0


def test_ignore_regions(impl):
    # Fractions of the anchors inside the region: 1, .6, .5, 0; the first is foreground and stays.
    anchors = torch.tensor(ANCHORS, dtype=torch.float32, device=impl.device)
    boxes = anchors[:1].repeat(2, 1)
    regions = torch.tensor([[90.0, 0, 99, 9], [-5, -5, 10, 20]], device=impl.device)
    options = {"ignore_boxes": regions, "ignore_sizes": [0, 2], "thresholds": [0.5]}
    result = impl.match_anchors(anchors, boxes, [1, 1], labels=[0, 1], **options)
    assert result.label.tolist() == [[1, 0, 0, 0], [1, -1, -1, 0]]
    result = impl.match_anchors(anchors, boxes, [1, 1], labels=[0, 1], **options, ignore_iof=0.55)
    assert result.label.tolist() == [[1, 0, 0, 0], [1, -1, 0, 0]]
    # Also without ground truth and without low-quality matches.
    result = impl.match_anchors(
        anchors, boxes[:0], [0, 0], labels=[0, 1], **options, allow_low_quality=False
    )
    assert result.label.tolist() == [[0, 0, 0, 0], [-1, -1, -1, 0]]


def detectron2_matches(anchors, boxes, low_quality):
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes, pairwise_iou

    ious = pairwise_iou(Boxes(boxes), Boxes(anchors))
    matcher = Matcher(**RULE, allow_low_quality_matches=low_quality)
    return *matcher(ious), ious.max(dim=0).values


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("refined", [True, False])
def test_is_bit_identical_to_detectron2(impl, refined, low_quality, whole):
    pytest.importorskip("detectron2")
    # More anchors than one task of the kernel handles, in rows that do not fill its blocks.
    anchors = grid_anchors(25, 41)
    boxes, sizes = random_batch(seed=4, sizes=(40, 1, 12, 3, 70), whole=whole)
    boxes[0] = torch.tensor([500.0, 500, 510, 510])  # overlaps nothing
    if refined:
        shift = torch.randn(5, len(anchors), 4, generator=torch.Generator().manual_seed(1))
        anchors = anchors + (shift.round() if whole else shift)
    result = to_cpu(
        impl.match_anchors(
            anchors.to(impl.device),
            boxes.to(impl.device),
            sizes,
            **RULE,
            allow_low_quality=low_quality,
            d2_compat=True,
        )
    )
    for i, own in enumerate(boxes.split(sizes)):
        own_anchors = anchors[i] if refined else anchors
        index, kind, ious = detectron2_matches(own_anchors, own, low_quality)
        assert torch.equal(result.gt_index[i], index)
        assert torch.equal(result.label[i], kind)
        assert torch.equal(result.ious[i], ious)
    assert result.label.unique().tolist() == [-1, 0, 1]


@pytest.mark.parametrize("whole", [True, False])
def test_ties_between_many_equal_anchors(impl, whole):
    pytest.importorskip("detectron2")
    few = random_boxes(40, seed=8, extent=60, whole=whole)
    anchors = few.repeat(300, 1)  # every IoU occurs 300 times, in all tasks of the kernel
    boxes = torch.cat((few[:5] + 1, few[:5] + 1))
    expected = detectron2_matches(anchors, boxes, low_quality=True)
    result = to_cpu(
        impl.match_anchors(anchors.to(impl.device), boxes.to(impl.device), [10], **RULE)
    )
    for value, peer in zip((result.gt_index, result.label, result.ious), expected, strict=True):
        assert torch.equal(value[0], peer)
    assert (result.label == 1).sum() >= 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 5, 127, 129, 4096, 4097, 9000])
def test_kernel_is_bit_identical_to_the_reference(native_device, count, dtype):
    generator = torch.Generator().manual_seed(count)
    anchors = grid_anchors(25, 41, dtype=dtype)[:count]
    anchors = anchors + torch.randn(5, *anchors.shape, generator=generator).round()
    anchors[0, 0, 1], anchors[2, -1] = NAN, 7
    boxes, sizes = random_batch(seed=count, dtype=dtype)
    boxes[1, 0], boxes[9, 2:] = NAN, boxes[9, :2]
    regions = random_boxes(6, seed=3, dtype=dtype)
    regions[5, 3] = NAN
    options = (sizes, [0.1, 0.4, 0.5], [-1, 0, -1, 1])
    for low_quality, compat in ((True, False), (True, True), (False, False)):
        ignore = (regions, [1, 3, 0, 2, 0], 0.6)
        for extra in ((), ignore):
            arguments = (*options, low_quality, compat, *extra)
            expected = reference.match_anchors(anchors, boxes, *arguments)
            arguments = [
                value.to(native_device) if isinstance(value, torch.Tensor) else value
                for value in (anchors, boxes, *arguments)
            ]
            result = torch.ops.resobj_d2.match_anchors(*arguments)
            assert_same(ops.AnchorMatches(*result), expected)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (6, 4)])
def test_empty(impl, shape):
    anchors, boxes = torch.zeros(shape, device=impl.device), torch.ones(2, 4, device=impl.device)
    for number, sizes in ((2, [0, 2, 0]), (0, [0, 0, 0])):
        result = impl.match_anchors(anchors, boxes[:number], sizes, **RULE)
        assert [value.shape for value in result] == [(3, shape[-2])] * 3
        assert (result.label == 0).all()
    if len(shape) == 2:
        assert impl.match_anchors(anchors, boxes[:0], [], **RULE).label.shape == (0, shape[0])


def test_more_images_than_fit_into_one_launch(impl):
    anchors = torch.tensor(ANCHORS, dtype=torch.float32, device=impl.device)
    boxes = anchors[[0, 3]].repeat(75, 1)
    ignore = {"ignore_boxes": boxes, "ignore_sizes": [1, 0, 0] * 150, "ignore_iof": 0.7}
    result = impl.match_anchors(anchors, boxes, [0, 1, 0] * 150, **RULE, **ignore)
    rows = [[-1, 0, 0, 0], [1, -1, 0, 0], [0] * 4, [0, 0, 0, -1], [0, 0, 0, 1], [0] * 4]
    assert result.label.tolist() == rows * 75


def test_not_contiguous(impl):
    anchors = grid_anchors(6, 7).to(impl.device)
    boxes, sizes = random_batch(seed=2)
    boxes = boxes.to(impl.device)
    expected = impl.match_anchors(anchors[::2].clone(), boxes, sizes, **RULE)
    padded = torch.cat((anchors, anchors), dim=1)[::2, :4]
    assert_same(impl.match_anchors(padded, boxes.t().contiguous().t(), sizes, **RULE), expected)
    shared = anchors[::2].expand(len(sizes), -1, -1)
    assert_same(impl.match_anchors(shared, boxes, sizes, **RULE), expected)


def peak_memory(function):
    """Bytes by which the peak resident memory of this process rose during the call."""

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except OSError as error:
        pytest.skip(f"the peak memory cannot be reset here: {error}")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def test_does_not_allocate_the_iou_matrix():
    if ops.native_status()["cpu"] != "native":
        pytest.skip("cpu kernels are not built; the reference needs part of the matrix")
    anchors, boxes = grid_anchors(80, 80), random_boxes(1000, seed=7, extent=640)
    matrix = len(anchors) * len(boxes) * 4
    peak = peak_memory(lambda: ops.match_anchors(anchors, boxes, [1000], **RULE))
    assert peak < matrix / 20


def test_compiles_without_a_graph_break():
    anchors, (boxes, sizes) = grid_anchors(3, 3), random_batch(seed=1)

    def match(anchors, boxes):
        return ops.match_anchors(anchors + 1, boxes, sizes, **RULE)

    compiled = torch.compile(match, fullgraph=True, backend="aot_eager")
    assert_same(ops.AnchorMatches(*compiled(anchors, boxes)), match(anchors, boxes))


GOOD = torch.zeros(3, 4)
BAD_ARGUMENTS = [
    ({"anchors": GOOD.long()}, TypeError, "anchors must be a floating-point tensor, got torch.i"),
    ({"anchors": torch.zeros(4)}, ValueError, r"anchors must have shape \(number, 4\) or \(imag"),
    ({"anchors": torch.zeros(3, 9, 4)}, ValueError, "anchors has 3 images, but gt_sizes has 2"),
    ({"gt_boxes": [[0, 0, 1, 1]]}, TypeError, "gt_boxes must be a floating-point .* got list"),
    ({"gt_boxes": torch.zeros(3, 5)}, ValueError, r"gt_boxes must have shape .* got \(3, 5\)"),
    ({"gt_boxes": GOOD.to("meta")}, ValueError, "gt_boxes is on meta, but anchors is on cpu"),
    (
        {"gt_sizes": [1, 1]},
        ValueError,
        "gt_sizes must be non-negative and sum to the 3 rows of gt_",
    ),
    ({"gt_sizes": [4, -1]}, ValueError, r"gt_sizes must be non-negative .* got \[4, -1\]"),
    ({"thresholds": [0.5, 0.4]}, ValueError, r"thresholds must be .* ascending order"),
    ({"thresholds": []}, ValueError, "thresholds must be 1 to 16 positive numbers"),
    ({"thresholds": [0.0, 0.5]}, ValueError, "thresholds must be 1 to 16 positive numbers"),
    ({"labels": [0, 1]}, ValueError, "labels must be 3 values of -1, 0, 1"),
    ({"labels": [0, 2, 1]}, ValueError, "labels must be 3 values of -1, 0, 1"),
    ({"labels": [1, 0, 1]}, ValueError, "the first not 1"),
    ({"ignore_boxes": GOOD}, ValueError, "ignore_sizes must be non-negative and sum to the 3 rows"),
    ({"ignore_boxes": GOOD, "ignore_sizes": [3]}, ValueError, "one size per image .* 1 for 2 imag"),
    ({"ignore_sizes": [0, 0]}, ValueError, "none without, got 2 for 2 images"),
    ({"ignore_iof": 0.0}, ValueError, "ignore_iof must be above 0"),
]


@pytest.mark.parametrize("change, error, message", BAD_ARGUMENTS)
def test_errors_name_the_argument(change, error, message):
    arguments = {"anchors": GOOD, "gt_boxes": GOOD, "gt_sizes": [1, 2], **RULE, **change}
    with pytest.raises(error, match=message):
        ops.match_anchors(**arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"anchors": GOOD.half(), "gt_boxes": GOOD.half()}, "anchors must be float32 or float64"),
        ({"gt_boxes": GOOD.double()}, "gt_boxes must have the dtype of anchors"),
        ({"gt_boxes": torch.zeros(3, 3)}, "gt_boxes must have shape"),
        ({"anchors": torch.zeros(3, 9, 4)}, "anchors must have shape"),
        ({"gt_sizes": [1, 1]}, "gt_sizes do not sum to the rows of gt_boxes"),
        ({"gt_sizes": [4, -1]}, "gt_sizes has a negative size"),
        ({"labels": [0, 1]}, "labels must be one more than thresholds"),
        ({"thresholds": [0.1] * 17, "labels": [0] * 18}, "at most 16 thresholds"),
        ({"thresholds": [0.0, 0.5]}, "thresholds must be positive"),
        ({"thresholds": [NAN, 0.5]}, "thresholds must be positive"),
        ({"labels": [0, 257, 1]}, "labels must be -1, 0 or 1"),
        ({"labels": [1, -1, 1]}, "the first of labels must not be 1"),
        ({"ignore_iof": 0.0}, "ignore_iof must be above 0"),
        ({"ignore_boxes": GOOD, "ignore_sizes": [3]}, "ignore_sizes must have one size per image"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(native_device, change, message):
    arguments = {"anchors": GOOD, "gt_boxes": GOOD, "gt_sizes": [1, 2], **RULE, **change}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            arguments[name] = value.to(native_device)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resobj_d2.match_anchors(**arguments)
