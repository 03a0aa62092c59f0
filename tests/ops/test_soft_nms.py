"""soft_nms and matrix_nms against literals and plain Python that follows the papers."""

import math

import pytest
import torch

from resobj_d2 import ops

NAN, INF = math.nan, math.inf


def candidates(count, classes, seed, dtype=torch.float64):
    """Boxes around a few centres, with scores that all differ."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": dtype}
    centres, sizes = torch.rand(6, 2, **options) * 60, torch.rand(6, 2, **options) * 40 + 5
    which = torch.randint(6, (count,), generator=generator)
    corner = centres[which] + torch.randn(count, 2, **options) * 4
    size = sizes[which] * torch.exp(torch.randn(count, 2, **options) * 0.2)
    scores = (torch.randperm(count, generator=generator) + 1) / (count + 1)
    ids = torch.randint(classes, (count,), generator=generator)
    return torch.cat((corner, corner + size), dim=1), scores.to(dtype), ids


def plain_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def plain_soft_nms(boxes, scores, ids, method, iou_threshold, sigma, min_score):
    """Figure 2 of Bodla et al., with a list of what is left."""
    boxes, scores, ids = boxes.tolist(), scores.tolist(), ids.tolist()
    left, taken = list(range(len(boxes))), []
    while left:
        m = max(left, key=lambda i: (scores[i], -i))
        if scores[m] < min_score:
            break
        left.remove(m)
        taken.append((m, scores[m]))
        for i in left:
            if ids[i] != ids[m]:
                continue
            iou = plain_iou(boxes[m], boxes[i])
            if method == "gaussian":
                scores[i] *= math.exp(-(iou**2) / sigma)
            elif iou >= iou_threshold:
                scores[i] *= 1 - iou
    return [i for i, _ in taken], [score for _, score in taken]


def plain_matrix_nms(boxes, scores, ids, kernel, sigma):
    """Equations 4 and 5 of SOLOv2, box by box."""
    boxes, scores, ids = boxes.tolist(), scores.tolist(), ids.tolist()

    def f(iou):
        return 1 - iou if kernel == "linear" else math.exp(-(iou**2) / sigma)

    def better(j):
        rivals = (i for i in range(len(boxes)) if ids[i] == ids[j])
        return [i for i in rivals if (scores[i], -i) > (scores[j], -j)]

    def most_covered(i):
        return max((plain_iou(boxes[k], boxes[i]) for k in better(i)), default=0.0)

    f_most = [f(most_covered(i)) for i in range(len(boxes))]
    result = []
    for j in range(len(boxes)):
        decays = [f(plain_iou(boxes[i], boxes[j])) / f_most[i] for i in better(j) if f_most[i] > 0]
        result.append(scores[j] * min(decays, default=1.0))
    return result


def on(impl, tensors):
    return tuple(tensor.to(impl.device) for tensor in tensors)


def tensors(boxes, scores, ids, dtype=torch.float64):
    return torch.tensor(boxes, dtype=dtype), torch.tensor(scores, dtype=dtype), torch.tensor(ids)


def check_soft(result, keep, scores):
    assert result[0].dtype == torch.int64 and result[0].tolist() == keep
    assert result[1].tolist() == pytest.approx(scores, rel=1e-6, abs=1e-9)


# IoU 1/3 between 0 and 1, 3/5 between 0 and 2 and between 1 and 2; 3 is apart.
BOXES = [[0.0, 0, 4, 4], [2, 0, 6, 4], [1, 0, 5, 4], [9, 9, 10, 10]]
SCORES = [0.9, 0.8, 0.7, 0.05]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "ids, options, keep, scores",
    [
        # 0 decays 1 to .8 * 2/3 and 2 to .7 * 2/5; 1 then 2 to .7 * 2/5 * 2/5.
        ([0] * 4, {}, [0, 1, 2, 3], [0.9, 1.6 / 3, 0.112, 0.05]),
        ([0] * 4, {"iou_threshold": 0.5}, [0, 1, 2, 3], [0.9, 0.8, 0.112, 0.05]),
        ([0] * 4, {"iou_threshold": 0.7}, [0, 1, 2, 3], SCORES),
        ([0] * 4, {"iou_threshold": 0.0}, [0, 1, 2, 3], [0.9, 1.6 / 3, 0.112, 0.05]),
        ([0] * 4, {"min_score": 0.113}, [0, 1], [0.9, 1.6 / 3]),
        ([0] * 4, {"max_output": 3}, [0, 1, 2], [0.9, 1.6 / 3, 0.112]),
        ([0] * 4, {"max_output": 0}, [], []),
        # By class: 2 meets only 1.
        ([0, -4, -4, 0], {}, [0, 1, 2, 3], [0.9, 0.8, 0.28, 0.05]),
        # exp(-(1/9) / .5) = .8007374; 2: exp(-.36 / .5) = .4867523, twice
        (
            [0] * 4,
            {"method": "gaussian", "iou_threshold": 0.99},
            [0, 1, 2, 3],
            [0.9, 0.8 * 0.8007374, 0.7 * 0.4867523**2, 0.05],
        ),
        ([0] * 4, {"method": "gaussian", "sigma": 1e9}, [0, 1, 2, 3], SCORES),
    ],
)
def test_soft_worked_out_by_hand(impl, ids, options, keep, scores, dtype):
    result = impl.soft_nms(*on(impl, tensors(BOXES, SCORES, ids, dtype)), **options)
    assert result[1].dtype == dtype
    check_soft(result, keep, scores)


def test_soft_decay_changes_the_order(impl):
    scores = [0.9, 0.4, 0.8, 0.6]  # 2 falls to .32 behind 3; 1 to .4 * 2/3 = .2667, then * 2/5
    result = impl.soft_nms(*on(impl, tensors(BOXES, scores, [0] * 4)))
    check_soft(result, [0, 3, 2, 1], [0.9, 0.6, 0.32, 0.4 * 2 / 3 * 2 / 5])


@pytest.mark.parametrize("method", ops.nms.SOFT_METHODS)
# 300 boxes of a class are more than the threads of a block.
@pytest.mark.parametrize("count, classes", [(1, 1), (2, 1), (60, 1), (300, 1), (250, 4), (700, 30)])
def test_soft_agrees_with_plain_python(impl, method, count, classes):
    inputs = candidates(count, classes, 0)
    for rule in ((0.3, 0.5, 0.001), (0.6, 0.1, 0.2)):
        keep, scores = plain_soft_nms(*inputs, method, *rule)
        threshold, sigma, min_score = rule
        options = {"iou_threshold": threshold, "sigma": sigma, "min_score": min_score}
        result = impl.soft_nms(*on(impl, inputs), method=method, **options)
        check_soft(result, keep, scores)
        cut = impl.soft_nms(*on(impl, inputs), method=method, max_output=20, **options)
        check_soft(cut, keep[:20], scores[:20])


def test_soft_of_equal_scores_the_first_is_taken(impl):
    apart = [[9.0 * i, 0, 9 * i + 1, 1] for i in range(5)]
    result = impl.soft_nms(*on(impl, tensors(apart, [0.5, 0.7, 0.5, 0.7, 0.5], [0, 0, 1, 1, 0])))
    check_soft(result, [1, 3, 0, 2, 4], [0.7, 0.7, 0.5, 0.5, 0.5])
    # Equal after decay too: 1 and 2 fall alike.
    boxes = [[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 2, 4]]
    result = impl.soft_nms(*on(impl, tensors(boxes, [0.9, 0.6, 0.6], [0] * 3)))
    check_soft(result, [0, 1, 2], [0.9, 0.3, 0.3 * (1 - 1 / 3)])


@pytest.mark.parametrize("method", ops.nms.SOFT_METHODS)
def test_soft_without_a_floor_takes_every_box_once(impl, method):
    boxes = [[0.0, 0, 4, 4]] * 40
    scores = [1 - 0.01 * i for i in range(40)]
    inputs = on(impl, tensors(boxes, scores, [0] * 40))
    keep, new_scores = impl.soft_nms(*inputs, method=method, sigma=1e-3, min_score=0.0)
    assert keep.tolist() == list(range(40))
    assert new_scores[0] == 1 and (new_scores[1:] == 0).all()


@pytest.mark.parametrize("method", ops.nms.SOFT_METHODS)
def test_soft_odd_input(impl, method):
    boxes = [[0.0, 0, 4, 4], [0, NAN, 4, 4], [4, 4, 0, 0], [0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 1, 1]]
    scores = [NAN, 0.9, 0.8, INF, -1.0, 0.7]
    result = impl.soft_nms(*on(impl, tensors(boxes, scores, [0] * 6)), method=method, min_score=0.0)
    check_soft(result, [1, 2, 5], [0.9, 0.8, 0.7])


@pytest.mark.parametrize("limit", [-1, 0, 5, 200])
def test_soft_padded(impl, limit):
    inputs = on(impl, candidates(90, 3, 1))
    keep, scores = impl.soft_nms(*inputs, min_score=0.1, max_output=limit)
    padded, padded_scores, count = impl.soft_nms_padded(*inputs, min_score=0.1, max_output=limit)
    assert padded.shape == padded_scores.shape == (90 if limit == -1 else limit,)
    assert count == len(keep) and count.shape == () and count.dtype == torch.int64
    assert torch.equal(padded[:count], keep) and (padded[count:] == -1).all()
    assert torch.equal(padded_scores[:count], scores) and (padded_scores[count:] == 0).all()


# Highest IoU with a better box: 0; 1/3 (of 1 with 0); 3/5 (of 2 with both); 0.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "scores, ids, kernel, factors",
    [
        # 2: the least of (2/5) / 1 from 0 and (2/5) / (2/3) from 1.
        (SCORES, [0] * 4, "linear", [1, 2 / 3, 2 / 5, 1]),
        # The order 2, 0, 1: 0 is covered by 3/5, so it decays 1 by (2/3) / (2/5) > 1.
        ([0.8, 0.7, 0.9, 0.1], [0] * 4, "linear", [2 / 5, 2 / 5, 1, 1]),
        (SCORES, [0, 1, 0, 1], "linear", [1, 1, 2 / 5, 1]),
        # exp(-(1/9) / .5), exp(-.36 / .5)
        (SCORES, [0] * 4, "gaussian", [1, 0.8007374, 0.4867523, 1]),
    ],
)
def test_matrix_worked_out_by_hand(impl, scores, ids, kernel, factors, dtype):
    result = impl.matrix_nms(*on(impl, tensors(BOXES, scores, ids, dtype)), kernel=kernel)
    expected = [score * factor for score, factor in zip(scores, factors, strict=True)]
    assert result.dtype == dtype and result.tolist() == pytest.approx(expected, rel=1e-6)


def test_matrix_compensates_by_what_covers_the_better_box(impl):
    # In a row: 0 covers 1 by 3/5, 1 covers 2 by 3/5, 0 covers 2 by 1/3.
    boxes = [[0.0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 6, 4]]
    inputs = on(impl, tensors(boxes, [0.9, 0.8, 0.7], [0] * 3))
    # 2: the least of (2/3) / 1 from 0 and (2/5) / (2/5) from 1.
    result = impl.matrix_nms(*inputs, kernel="linear")
    assert result.tolist() == pytest.approx([0.9, 0.8 * 2 / 5, 0.7 * 2 / 3])
    # exp(-(1/9) / 2) from 0, exp(-(.36 - .36) / 2) from 1.
    result = impl.matrix_nms(*inputs, kernel="gaussian", sigma=2.0)
    assert result[2].item() == pytest.approx(0.7 * math.exp(-1 / 18), rel=1e-6)


@pytest.mark.parametrize("kernel", ops.nms.MATRIX_KERNELS)
@pytest.mark.parametrize("count, classes", [(1, 1), (17, 1), (300, 1), (200, 9)])
def test_matrix_agrees_with_plain_python(impl, kernel, count, classes):
    inputs = candidates(count, classes, 2)
    result = impl.matrix_nms(*on(impl, inputs), kernel=kernel, sigma=0.3)
    expected = plain_matrix_nms(*inputs, kernel, 0.3)
    assert result.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_matrix_duplicates_and_ties(impl):
    # 1 and 2 are covered by 0 fully: gone, so they decay nothing, not even each other.
    boxes = [[0.0, 0, 4, 4]] * 3 + [[0, 0, 4, 2]]
    inputs = on(impl, tensors(boxes, [0.5] * 4, [0] * 4))
    assert impl.matrix_nms(*inputs, kernel="linear").tolist() == [0.5, 0, 0, 0.25]


@pytest.mark.parametrize("kernel", ops.nms.MATRIX_KERNELS)
def test_matrix_odd_input(impl, kernel):
    boxes = [[0.0, 0, 4, 4], [0, NAN, 4, 4], [4, 4, 0, 0], [0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 1, 1]]
    scores = [NAN, 0.9, 0.8, INF, 0.6, 0.7]
    result = impl.matrix_nms(*on(impl, tensors(boxes, scores, [0] * 6)), kernel=kernel)
    assert result.tolist() == [0, 0.9, 0.8, 0, 0.6, 0.7]


def test_empty(impl):
    nothing = on(impl, (torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64)))
    assert [tensor.shape for tensor in impl.soft_nms(*nothing)] == [(0,), (0,)]
    padded, scores, count = impl.soft_nms_padded(*nothing, max_output=2)
    assert (padded.tolist(), scores.tolist(), count.item()) == ([-1, -1], [0, 0], 0)
    assert impl.matrix_nms(*nothing).shape == (0,)


def test_not_contiguous_and_half_precision():
    boxes, scores, ids = candidates(60, 2, 3, torch.bfloat16)
    wide = torch.cat((boxes, boxes), dim=1)[::2, :4]
    strided = wide, scores[::2], ids[::2]
    whole = wide.float().contiguous(), scores[::2].float(), ids[::2].clone()
    for op in (ops.soft_nms, ops.soft_nms_padded, ops.matrix_nms):
        for a, b in zip(op(*strided), op(*whole), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        result = torch.ops.resobj_d2.matrix_nms(*strided, "linear", 0.5)
    assert torch.equal(result, ops.matrix_nms(*whole, kernel="linear"))


GOOD = torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "hard"}, "method must be linear or gaussian, got 'hard'"),
        ({"iou_threshold": -1.0}, "iou_threshold must be 0 or more, got -1.0"),
        ({"sigma": 0.0}, "sigma must be above 0, got 0.0"),
        ({"sigma": NAN}, "sigma must be above 0, got nan"),
        ({"min_score": -0.5}, "min_score must be 0 or more, got -0.5"),
        ({"min_score": NAN}, "min_score must be 0 or more, got nan"),
        ({"max_output": -3}, "max_output must be -1 .* or more, got -3"),
    ],
)
def test_soft_errors_name_the_argument(options, message):
    for op in (ops.soft_nms, ops.soft_nms_padded):
        with pytest.raises(ValueError, match=f"{op.__name__}: {message}"):
            op(*GOOD, **options)
        with pytest.raises(ValueError, match=f"{op.__name__}: scores must have shape"):
            op(GOOD[0], GOOD[1][:1], GOOD[2])


def test_matrix_errors_name_the_argument():
    with pytest.raises(ValueError, match="matrix_nms: kernel must be linear or gaussian, got 'f'"):
        ops.matrix_nms(*GOOD, kernel="f")
    with pytest.raises(ValueError, match="matrix_nms: sigma must be above 0, got -1"):
        ops.matrix_nms(*GOOD, sigma=-1)
    with pytest.raises(TypeError, match="matrix_nms: idxs must be a tensor of integers"):
        ops.matrix_nms(GOOD[0], GOOD[1], GOOD[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("hard", 0.3, 0.5, 0.1), "unknown method hard"),
        (("linear", -1.0, 0.5, 0.1), "iou_threshold must be 0 or more"),
        (("linear", 0.3, 0.0, 0.1), "sigma must be above 0"),
        (("linear", 0.3, 0.5, -0.1), "min_score must be 0 or more"),
        (("linear", 0.3, 0.5, 0.1, -2), "max_output must be -1 or more"),
    ],
)
def test_soft_kernels_refuse_what_the_wrapper_would(native_device, arguments, message):
    inputs = tuple(tensor.to(native_device) for tensor in GOOD)
    for op in (torch.ops.resobj_d2.soft_nms, torch.ops.resobj_d2.soft_nms_padded):
        with pytest.raises(RuntimeError, match=message):
            op(*inputs, *arguments)


def test_matrix_kernels_refuse_what_the_wrapper_would(native_device):
    inputs = tuple(tensor.to(native_device) for tensor in GOOD)
    for arguments, message in (
        (("f", 0.5), "unknown kernel f"),
        (("linear", 0.0), "sigma must be above 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.resobj_d2.matrix_nms(*inputs, *arguments)


def test_compile_without_a_graph_break():
    inputs = candidates(40, 2, 5)

    def best(boxes, scores, ids):
        keep, new_scores = ops.soft_nms(boxes, scores, ids, method="gaussian")
        padded = ops.soft_nms_padded(boxes, scores, ids, max_output=9)
        return boxes[keep], new_scores, *padded, ops.matrix_nms(boxes, scores, ids)

    compiled = torch.compile(best, fullgraph=True, backend="aot_eager")
    for expected, result in zip(best(*inputs), compiled(*inputs), strict=True):
        assert torch.equal(result, expected)
