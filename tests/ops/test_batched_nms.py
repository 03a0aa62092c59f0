"""batched_nms against literals, plain Python and torchvision."""

import math

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import reference

NAN, INF = math.nan, math.inf


def candidates(count, classes, seed, *, dtype=torch.float32, grid=None):
    """Boxes around a few centres, with scores that all differ."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": dtype}
    centres, sizes = torch.rand(8, 2, **options) * 100, torch.rand(8, 2, **options) * 40 + 5
    which = torch.randint(8, (count,), generator=generator)
    corner = centres[which] + torch.randn(count, 2, **options) * 4
    size = sizes[which] * torch.exp(torch.randn(count, 2, **options) * 0.2)
    if grid:
        corner, size = (corner / grid).round() * grid, (size / grid).round() * grid
    scores = (torch.randperm(count, generator=generator) + 1) / (count + 1)
    ids = torch.randint(classes, (count,), generator=generator)
    return torch.cat((corner, corner + size), dim=1), scores.to(dtype), ids


def plain_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def plain_nms(boxes, scores, ids, threshold):
    """The definition, in plain Python."""
    boxes, scores, ids = boxes.tolist(), scores.tolist(), ids.tolist()
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = (j for j in kept if ids[j] == ids[i])
        if all(plain_iou(boxes[j], boxes[i]) <= threshold for j in rivals):
            kept.append(i)
    return kept


def on(impl, tensors):
    return tuple(tensor.to(impl.device) for tensor in tensors)


def keep(impl, boxes, scores, ids, *args):
    arguments = torch.tensor(boxes), torch.tensor(scores), torch.tensor(ids)
    return impl.batched_nms(*on(impl, arguments), *args).tolist()


# IoU with the first: 1/3 for the second, 3/5 for the third, 0 for the fourth.
BOXES = [[0.0, 0, 4, 4], [2, 0, 6, 4], [1, 0, 5, 4], [9, 9, 10, 10]]


@pytest.mark.parametrize(
    "scores, ids, threshold, expected",
    [
        ([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0], 0.5, [0, 1, 3]),
        ([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0], 0.3, [0, 3]),
        ([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0], 0.0, [0, 3]),
        ([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0], 1.0, [0, 1, 2, 3]),
        # Suppressed boxes suppress nothing: 2 is suppressed before it meets 1.
        ([0.9, 0.1, 0.7, 0.6], [0, 0, 0, 0], 0.5, [0, 3, 1]),
        ([0.7, 0.1, 0.9, 0.6], [0, 0, 0, 0], 0.5, [2, 3]),
        # Per class, with the result ordered by score over all classes.
        ([0.6, 0.7, 0.8, 0.9], [5, 5, -3, 5], 0.3, [3, 2, 1]),
        ([0.6, 0.7, 0.8, 0.9], [2**62, -(2**62), 0, 0], 0.0, [3, 2, 1, 0]),
    ],
)
def test_by_hand(impl, scores, ids, threshold, expected):
    assert keep(impl, BOXES, scores, ids, threshold) == expected


def test_iou_equal_to_the_threshold_does_not_suppress(impl):
    halves = [[0.0, 0, 4, 4], [0, 0, 4, 2]]  # IoU 1/2, which float32 has exactly
    assert keep(impl, halves, [0.9, 0.8], [0, 0], 0.5) == [0, 1]
    assert keep(impl, halves, [0.9, 0.8], [0, 0], math.nextafter(0.5, 0)) == [0]


def test_equal_scores_are_ordered_by_index(impl):
    assert keep(impl, BOXES, [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0], 0.3) == [0, 3]
    assert keep(impl, BOXES, [0.0, 0.5, -0.0, 0.5], [0, 1, 2, 3], 0.3) == [1, 3, 0, 2]
    count = 700  # covers both sorting algorithms of the CPU kernel
    boxes = torch.arange(count)[:, None] * torch.tensor([9.0, 0, 9, 0]) + torch.tensor([0, 0, 1, 1])
    scores = (torch.arange(count) % 3).float()
    expected = scores.sort(descending=True, stable=True)[1]
    arguments = on(impl, (boxes, scores, torch.zeros(count, dtype=torch.int64)))
    assert torch.equal(impl.batched_nms(*arguments, 0.5).cpu(), expected)


def test_only_nan_scores_are_dropped(impl):
    apart = [[9.0 * i, 0, 9 * i + 1, 1] for i in range(6)]
    assert keep(impl, apart, [-2.0, NAN, INF, -INF, 0.0, 3.0], [0] * 6, 0.5) == [2, 5, 4, 0, 3]
    same = [[0.0, 0, 4, 4]] * 3
    assert keep(impl, same, [NAN, 0.2, 0.1], [0] * 3, 0.5) == [1]
    assert keep(impl, same, [NAN, NAN, NAN], [0] * 3, 0.5) == []


@pytest.mark.parametrize(
    "odd",
    [[NAN, 0, 4, 4], [0, 0, NAN, 4], [4, 4, 0, 0], [4, 0, 0, 4], [2, 0, 2, 4], [1, 1, 1, 1]],
)
def test_boxes_that_overlap_nothing_are_kept_and_suppress_nothing(impl, odd):
    boxes = [[float(value) for value in odd], [0.0, 0, 4, 4], [float(value) for value in odd]]
    assert keep(impl, boxes, [0.9, 0.8, 0.7], [0, 0, 0], 0.0) == [0, 1, 2]


@pytest.mark.parametrize("count, classes", [(1, 1), (30, 2), (400, 1), (1000, 7)])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.7])
def test_agrees_with_plain_python(impl, count, classes, threshold):
    for seed, grid in ((0, None), (1, 4.0)):
        inputs = candidates(count, classes, seed, dtype=torch.float64, grid=grid)
        result = impl.batched_nms(*on(impl, inputs), threshold)
        assert result.tolist() == plain_nms(*inputs, threshold)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
def test_agrees_with_torchvision(impl, threshold):
    peer = pytest.importorskip("torchvision.ops.boxes")._batched_nms_vanilla
    # On the grid many IoUs are fractions like 3/5, which float32 rounds up or down.
    for count, classes, grid in ((50, 1, None), (600, 5, 8.0), (1500, 80, None), (300, 1, 16.0)):
        boxes, scores, ids = candidates(count, classes, 3, grid=grid)
        boxes[::50, 2] = boxes[::50, 0] - 1
        boxes[1::50, 1] = NAN
        expected = peer(boxes, scores, ids, threshold)
        assert torch.equal(
            impl.batched_nms(*on(impl, (boxes, scores, ids)), threshold).cpu(), expected
        )


@pytest.mark.parametrize("limit", [0, 1, 17, 64, 65, 200, 5000])
def test_max_output_cuts_the_result(impl, limit):
    inputs = on(impl, candidates(800, 9, 4))
    everything = impl.batched_nms(*inputs, 0.6)
    assert 200 < len(everything) < 800
    assert torch.equal(impl.batched_nms(*inputs, 0.6, limit), everything[:limit])


@pytest.mark.parametrize("limit", [-1, 0, 3, 50, 900])
def test_padded(impl, limit):
    inputs = on(impl, candidates(300, 3, 5))
    expected = impl.batched_nms(*inputs, 0.5, limit)
    result, count = impl.batched_nms_padded(*inputs, 0.5, limit)
    assert result.shape == (300 if limit == -1 else limit,) and count.shape == ()
    assert count.dtype == result.dtype == torch.int64 and count == len(expected)
    assert torch.equal(result[: len(expected)], expected)
    assert (result[len(expected) :] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty(impl, dtype):
    boxes, scores, ids = on(impl, candidates(1, 1, 0, dtype=dtype))
    nothing = boxes[:0], scores[:0], ids[:0], 0.5
    result = impl.batched_nms(*nothing)
    assert result.shape == (0,) and result.dtype == torch.int64
    padded, count = impl.batched_nms_padded(*nothing, 2)
    assert padded.tolist() == [-1, -1] and count == 0


def test_many_kept_boxes_of_one_class(impl):
    # The cells of a grid, each twice: more than fits into one block of kept boxes.
    x, y = torch.meshgrid(torch.arange(30.0), torch.arange(30.0), indexing="ij")
    cells = torch.stack((x, y, x + 1, y + 1), dim=-1).reshape(-1, 4)
    boxes = torch.cat((cells, cells))
    scores = torch.linspace(1, 0, 1800)
    arguments = on(impl, (boxes, scores, torch.zeros(1800, dtype=torch.int64)))
    assert torch.equal(impl.batched_nms(*arguments, 0.0).cpu(), torch.arange(900))


def test_scores_that_are_already_sorted(impl):
    boxes, scores, ids = candidates(500, 3, 6)
    order = scores.argsort(descending=True)
    expected = torch.empty_like(order)
    expected[order] = torch.arange(500)
    result = impl.batched_nms(*on(impl, (boxes[order], scores[order], ids[order])), 0.5).cpu()
    unsorted = impl.batched_nms(*on(impl, (boxes, scores, ids)), 0.5).cpu()
    assert torch.equal(result, expected[unsorted])


def test_not_contiguous(impl):
    boxes, scores, ids = on(impl, candidates(60, 2, 7))
    expected = impl.batched_nms(boxes[::2].clone(), scores[::2].clone(), ids[::2].clone(), 0.5)
    wide = torch.cat((boxes, boxes), dim=1)[::2, :4]
    assert torch.equal(impl.batched_nms(wide, scores[::2], ids[::2], 0.5), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1, 10**12])
def test_kernel_agrees_with_the_reference_on_odd_input(native_device, dtype, spread):
    boxes, scores, ids = candidates(900, 6, 8, dtype=dtype, grid=4.0)
    scores[::7], scores[::31], scores[5:40] = scores[3].item(), NAN, -1
    boxes[::11, 3] = NAN
    ids = (ids - 3) * spread
    for threshold, limit in ((0.0, -1), (0.5, -1), (0.5, 40), (0.8, -1)):
        inputs = (tensor.to(native_device) for tensor in (boxes, scores, ids))
        expected = reference.batched_nms(boxes, scores, ids, threshold, limit)
        assert torch.equal(ops.batched_nms(*inputs, threshold, limit).cpu(), expected)


def test_half_precision_and_narrow_integers(impl):
    boxes, scores, ids = candidates(40, 2, 9)
    half = boxes.bfloat16(), scores.bfloat16(), ids
    expected = ops.batched_nms(half[0].float(), half[1].float(), ids, 0.5)
    assert torch.equal(ops.batched_nms(*half, 0.5), expected)
    assert torch.equal(ops.batched_nms(half[0], half[1], ids.to(torch.uint8), 0.5), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.ops.resobj_d2.batched_nms(*half, 0.5), expected)


def test_compiles_without_a_graph_break():
    boxes, scores, ids = candidates(60, 2, 10)

    def best(boxes, scores, ids):
        keep = ops.batched_nms(boxes, scores, ids, 0.5)
        padded, count = ops.batched_nms_padded(boxes, scores, ids, 0.5, 9)
        return boxes[keep], padded, count

    compiled = torch.compile(best, fullgraph=True, backend="aot_eager")
    for expected, result in zip(
        best(boxes, scores, ids), compiled(boxes, scores, ids), strict=True
    ):
        assert torch.equal(result, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_padded_is_captured_in_a_cuda_graph():
    inputs = tuple(tensor.cuda() for tensor in candidates(3000, 20, 11))
    expected, _ = ops.batched_nms_padded(*inputs, 0.5, 100)  # also warms up
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result, _ = ops.batched_nms_padded(*inputs, 0.5, 100)
    graph.replay()
    assert torch.equal(result, expected)


def test_boxes_and_scores_of_two_precisions_are_compared_in_the_higher_one():
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6]])
    scores = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)
    assert ops.batched_nms(boxes, scores, torch.zeros(2, dtype=torch.int64), 0.5).tolist() == [1, 0]


GOOD = torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, dtype=torch.int64), 0.5
BAD_ARGUMENTS = [
    (0, GOOD[0].long(), TypeError, "boxes must be a floating-point tensor, got torch.int64"),
    (0, torch.zeros(2, 5), ValueError, r"boxes must have shape \(number, 4\), got \(2, 5\)"),
    (1, [0.1, 0.2], TypeError, "scores must be a floating-point tensor, got list"),
    (1, torch.zeros(3), ValueError, r"scores must have shape \(2,\), .* got \(3,\)"),
    (2, GOOD[2].float(), TypeError, "idxs must be a tensor of integers, got torch.float32"),
    (2, GOOD[2] == 0, TypeError, "idxs must be a tensor of integers, got torch.bool"),
    (2, GOOD[2][:, None], ValueError, r"idxs must have shape \(2,\), .* got \(2, 1\)"),
    (2, GOOD[2].to("meta"), ValueError, "idxs is on meta, but boxes is on cpu"),
    (3, -0.1, ValueError, "iou_threshold must be 0 or more, got -0.1"),
    (3, NAN, ValueError, "iou_threshold must be 0 or more, got nan"),
    (4, -2, ValueError, r"max_output must be -1 \(no limit\) or more, got -2"),
]


@pytest.mark.parametrize("op", [ops.batched_nms, ops.batched_nms_padded])
@pytest.mark.parametrize("position, value, error, message", BAD_ARGUMENTS)
def test_errors_name_the_argument(op, position, value, error, message):
    arguments = [*GOOD, -1]
    arguments[position] = value
    with pytest.raises(error, match=f"{op.__name__}: {message}"):
        op(*arguments)


@pytest.mark.parametrize(
    "position, value, message",
    [
        (0, GOOD[0].half(), "boxes must be float32 or float64"),
        (0, torch.zeros(2, 3), "boxes must have shape"),
        (1, torch.zeros(2, dtype=torch.float64), "scores must have the dtype of boxes"),
        (1, torch.zeros(3), "scores must have the shape of boxes without the last dimension"),
        (2, GOOD[2].int(), "idxs must be int64"),
        (2, torch.zeros(1, dtype=torch.int64), "idxs must have the shape of boxes"),
        (3, -0.1, "iou_threshold must be 0 or more"),
        (4, -2, "max_output must be -1 or more"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(native_device, position, value, message):
    arguments = [*GOOD, -1]
    arguments[position] = value
    moved = [a.to(native_device) if isinstance(a, torch.Tensor) else a for a in arguments]
    for op in (torch.ops.resobj_d2.batched_nms, torch.ops.resobj_d2.batched_nms_padded):
        with pytest.raises(RuntimeError, match=message):
            op(*moved)


def test_nms_is_batched_nms_of_one_class(impl):
    boxes, scores, _ = (tensor.to(impl.device) for tensor in candidates(80, 1, 3))
    for threshold, limit in ((0.3, -1), (0.6, 7)):
        expected = plain_nms(boxes, scores, torch.zeros(80), threshold)
        expected = expected if limit < 0 else expected[:limit]
        assert impl.nms(boxes, scores, threshold, limit).tolist() == expected
        keep, count = impl.nms_padded(boxes, scores, threshold, limit)
        assert keep[: len(expected)].tolist() == expected and count == len(expected)
        assert len(keep) == (80 if limit < 0 else limit) and (keep[count:] == -1).all()


def test_nms_agrees_with_torchvision():
    peer = pytest.importorskip("torchvision.ops").nms
    boxes, scores, _ = candidates(200, 1, 4)
    assert torch.equal(ops.nms(boxes, scores, 0.5), peer(boxes, scores, 0.5))
    assert ops.nms(boxes[:0], scores[:0], 0.5).shape == (0,)


@pytest.mark.parametrize("op", [ops.nms, ops.nms_padded])
def test_errors_of_nms_name_it_and_the_argument(op):
    boxes, scores = torch.zeros(2, 4), torch.zeros(2)
    name = f"^{op.__name__}: "
    with pytest.raises(ValueError, match=name + r"scores must have shape \(2,\), one for each box"):
        op(boxes, scores[:1], 0.5)
    with pytest.raises(ValueError, match=name + r"scores must have shape \(2,\), one for each box"):
        op(boxes, torch.zeros(2, 2), 0.5)
    with pytest.raises(ValueError, match=name + r"boxes must have shape \(number, 4\)"):
        op(boxes[:, :3], scores, 0.5)
    with pytest.raises(TypeError, match=name + "boxes must be a floating-point tensor"):
        op(boxes.long(), scores, 0.5)
    with pytest.raises(ValueError, match=name + "iou_threshold must be 0 or more"):
        op(boxes, scores, -1.0)
    with pytest.raises(ValueError, match=name + "max_output must be -1"):
        op(boxes, scores, 0.5, -2)
