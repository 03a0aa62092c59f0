"""soft_nms against literals and a plain Python version of the paper."""

import math

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops.nms import SOFT_METHODS
from tests.ops.nms_inputs import BOXES, GOOD, INF, NAN, SCORES, candidates, on, plain_iou, tensors


def plain_soft_nms(boxes, scores, ids, method, iou_threshold, sigma, min_score):
    """Figure 2 of Bodla et al., with a list of the remaining boxes."""
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


def check_soft(result, keep, scores):
    assert result[0].dtype == torch.int64 and result[0].tolist() == keep
    assert result[1].tolist() == pytest.approx(scores, rel=1e-6, abs=1e-9)


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
        # Per class: 2 meets only 1.
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
def test_by_hand(impl, ids, options, keep, scores, dtype):
    result = impl.soft_nms(*on(impl, tensors(BOXES, SCORES, ids, dtype)), **options)
    assert result[1].dtype == dtype
    check_soft(result, keep, scores)


def test_decay_changes_the_order(impl):
    scores = [0.9, 0.4, 0.8, 0.6]  # 2 falls to .32 behind 3; 1 to .4 * 2/3 = .2667, then * 2/5
    result = impl.soft_nms(*on(impl, tensors(BOXES, scores, [0] * 4)))
    check_soft(result, [0, 3, 2, 1], [0.9, 0.6, 0.32, 0.4 * 2 / 3 * 2 / 5])


@pytest.mark.parametrize("method", SOFT_METHODS)
# 300 boxes of a class are more than a block has threads.
@pytest.mark.parametrize("count, classes", [(1, 1), (2, 1), (60, 1), (300, 1), (250, 4), (700, 30)])
def test_agrees_with_plain_python(impl, method, count, classes):
    inputs = candidates(count, classes, 0)
    for rule in ((0.3, 0.5, 0.001), (0.6, 0.1, 0.2)):
        keep, scores = plain_soft_nms(*inputs, method, *rule)
        threshold, sigma, min_score = rule
        options = {"iou_threshold": threshold, "sigma": sigma, "min_score": min_score}
        result = impl.soft_nms(*on(impl, inputs), method=method, **options)
        check_soft(result, keep, scores)
        cut = impl.soft_nms(*on(impl, inputs), method=method, max_output=20, **options)
        check_soft(cut, keep[:20], scores[:20])


def test_ties_in_score_go_to_the_first_box(impl):
    apart = [[9.0 * i, 0, 9 * i + 1, 1] for i in range(5)]
    result = impl.soft_nms(*on(impl, tensors(apart, [0.5, 0.7, 0.5, 0.7, 0.5], [0, 0, 1, 1, 0])))
    check_soft(result, [1, 3, 0, 2, 4], [0.7, 0.7, 0.5, 0.5, 0.5])
    # Still equal after decay: 1 and 2 decay alike.
    boxes = [[0.0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 2, 4]]
    result = impl.soft_nms(*on(impl, tensors(boxes, [0.9, 0.6, 0.6], [0] * 3)))
    check_soft(result, [0, 1, 2], [0.9, 0.3, 0.3 * (1 - 1 / 3)])


@pytest.mark.parametrize("method", SOFT_METHODS)
def test_without_a_minimum_score_every_box_is_taken_once(impl, method):
    boxes = [[0.0, 0, 4, 4]] * 40
    scores = [1 - 0.01 * i for i in range(40)]
    inputs = on(impl, tensors(boxes, scores, [0] * 40))
    keep, new_scores = impl.soft_nms(*inputs, method=method, sigma=1e-3, min_score=0.0)
    assert keep.tolist() == list(range(40))
    assert new_scores[0] == 1 and (new_scores[1:] == 0).all()


@pytest.mark.parametrize("method", SOFT_METHODS)
def test_odd_input(impl, method):
    boxes = [[0.0, 0, 4, 4], [0, NAN, 4, 4], [4, 4, 0, 0], [0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 1, 1]]
    scores = [NAN, 0.9, 0.8, INF, -1.0, 0.7]
    result = impl.soft_nms(*on(impl, tensors(boxes, scores, [0] * 6)), method=method, min_score=0.0)
    check_soft(result, [1, 2, 5], [0.9, 0.8, 0.7])


@pytest.mark.parametrize("limit", [-1, 0, 5, 200])
def test_padded(impl, limit):
    inputs = on(impl, candidates(90, 3, 1))
    keep, scores = impl.soft_nms(*inputs, min_score=0.1, max_output=limit)
    padded, padded_scores, count = impl.soft_nms_padded(*inputs, min_score=0.1, max_output=limit)
    assert padded.shape == padded_scores.shape == (90 if limit == -1 else limit,)
    assert count == len(keep) and count.shape == () and count.dtype == torch.int64
    assert torch.equal(padded[:count], keep) and (padded[count:] == -1).all()
    assert torch.equal(padded_scores[:count], scores) and (padded_scores[count:] == 0).all()


def test_empty(impl):
    nothing = on(impl, (torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64)))
    assert [tensor.shape for tensor in impl.soft_nms(*nothing)] == [(0,), (0,)]
    padded, scores, count = impl.soft_nms_padded(*nothing, max_output=2)
    assert (padded.tolist(), scores.tolist(), count.item()) == ([-1, -1], [0, 0], 0)


def test_not_contiguous_and_half_precision():
    boxes, scores, ids = candidates(60, 2, 3, torch.bfloat16)
    wide = torch.cat((boxes, boxes), dim=1)[::2, :4]
    strided = wide, scores[::2], ids[::2]
    whole = wide.float().contiguous(), scores[::2].float(), ids[::2].clone()
    for op in (ops.soft_nms, ops.soft_nms_padded):
        for a, b in zip(op(*strided), op(*whole), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "hard"}, "method must be linear or gaussian, got 'hard'"),
        ({"iou_threshold": -1.0}, "iou_threshold must be 0 or more, got -1.0"),
        ({"sigma": 0.0}, "sigma must be positive, got 0.0"),
        ({"sigma": NAN}, "sigma must be positive, got nan"),
        ({"min_score": -0.5}, "min_score must be 0 or more, got -0.5"),
        ({"min_score": NAN}, "min_score must be 0 or more, got nan"),
        ({"max_output": -3}, "max_output must be -1 .* or more, got -3"),
    ],
)
def test_errors_name_the_argument(options, message):
    for op in (ops.soft_nms, ops.soft_nms_padded):
        with pytest.raises(ValueError, match=f"{op.__name__}: {message}"):
            op(*GOOD, **options)
        with pytest.raises(ValueError, match=f"{op.__name__}: scores must have shape"):
            op(GOOD[0], GOOD[1][:1], GOOD[2])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("hard", 0.3, 0.5, 0.1), "unknown method hard"),
        (("linear", -1.0, 0.5, 0.1), "iou_threshold must be 0 or more"),
        (("linear", 0.3, 0.0, 0.1), "sigma must be positive"),
        (("linear", 0.3, 0.5, -0.1), "min_score must be 0 or more"),
        (("linear", 0.3, 0.5, 0.1, -2), "max_output must be -1 or more"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(native_device, arguments, message):
    inputs = tuple(tensor.to(native_device) for tensor in GOOD)
    for op in (torch.ops.resobj_d2.soft_nms, torch.ops.resobj_d2.soft_nms_padded):
        with pytest.raises(RuntimeError, match=message):
            op(*inputs, *arguments)


def test_compile_without_a_graph_break():
    inputs = candidates(40, 2, 5)

    def best(boxes, scores, ids):
        keep, new_scores = ops.soft_nms(boxes, scores, ids, method="gaussian")
        padded = ops.soft_nms_padded(boxes, scores, ids, max_output=9)
        return boxes[keep], new_scores, *padded

    compiled = torch.compile(best, fullgraph=True, backend="aot_eager")
    for expected, result in zip(best(*inputs), compiled(*inputs), strict=True):
        assert torch.equal(result, expected)
