"""matrix_nms against literals and a plain Python version of the paper."""

import math

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops.nms import MATRIX_KERNELS
from tests.ops.nms_inputs import BOXES, GOOD, INF, NAN, SCORES, candidates, on, plain_iou, tensors


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


# Highest IoU with a better box: 0; 1/3 (1 with 0); 3/5 (2 with both); 0.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "scores, ids, kernel, factors",
    [
        # 2: the minimum of (2/5) / 1 from 0 and (2/5) / (2/3) from 1.
        (SCORES, [0] * 4, "linear", [1, 2 / 3, 2 / 5, 1]),
        # In the order 2, 0, 1: 0 is covered by 3/5, so it decays 1 by (2/3) / (2/5) > 1.
        ([0.8, 0.7, 0.9, 0.1], [0] * 4, "linear", [2 / 5, 2 / 5, 1, 1]),
        (SCORES, [0, 1, 0, 1], "linear", [1, 1, 2 / 5, 1]),
        # exp(-(1/9) / .5), exp(-.36 / .5)
        (SCORES, [0] * 4, "gaussian", [1, 0.8007374, 0.4867523, 1]),
    ],
)
def test_by_hand(impl, scores, ids, kernel, factors, dtype):
    result = impl.matrix_nms(*on(impl, tensors(BOXES, scores, ids, dtype)), kernel=kernel)
    expected = [score * factor for score, factor in zip(scores, factors, strict=True)]
    assert result.dtype == dtype and result.tolist() == pytest.approx(expected, rel=1e-6)


def test_decay_is_compensated_by_the_overlap_of_the_better_box(impl):
    # A row of boxes: 0 covers 1 by 3/5, 1 covers 2 by 3/5, 0 covers 2 by 1/3.
    boxes = [[0.0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 6, 4]]
    inputs = on(impl, tensors(boxes, [0.9, 0.8, 0.7], [0] * 3))
    # 2: the minimum of (2/3) / 1 from 0 and (2/5) / (2/5) from 1.
    result = impl.matrix_nms(*inputs, kernel="linear")
    assert result.tolist() == pytest.approx([0.9, 0.8 * 2 / 5, 0.7 * 2 / 3])
    # exp(-(1/9) / 2) from 0, exp(-(.36 - .36) / 2) from 1.
    result = impl.matrix_nms(*inputs, kernel="gaussian", sigma=2.0)
    assert result[2].item() == pytest.approx(0.7 * math.exp(-1 / 18), rel=1e-6)


@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
@pytest.mark.parametrize("count, classes", [(1, 1), (17, 1), (300, 1), (200, 9)])
def test_agrees_with_plain_python(impl, kernel, count, classes):
    inputs = candidates(count, classes, 2)
    result = impl.matrix_nms(*on(impl, inputs), kernel=kernel, sigma=0.3)
    expected = plain_matrix_nms(*inputs, kernel, 0.3)
    assert result.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_duplicates_and_ties(impl):
    # 0 fully covers 1 and 2, so they are suppressed and decay nothing, not even each other.
    boxes = [[0.0, 0, 4, 4]] * 3 + [[0, 0, 4, 2]]
    inputs = on(impl, tensors(boxes, [0.5] * 4, [0] * 4))
    assert impl.matrix_nms(*inputs, kernel="linear").tolist() == [0.5, 0, 0, 0.25]


@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
def test_odd_input(impl, kernel):
    boxes = [[0.0, 0, 4, 4], [0, NAN, 4, 4], [4, 4, 0, 0], [0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 1, 1]]
    scores = [NAN, 0.9, 0.8, INF, 0.6, 0.7]
    result = impl.matrix_nms(*on(impl, tensors(boxes, scores, [0] * 6)), kernel=kernel)
    assert result.tolist() == [0, 0.9, 0.8, 0, 0.6, 0.7]


def test_empty(impl):
    nothing = on(impl, (torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64)))
    assert impl.matrix_nms(*nothing).shape == (0,)


def test_not_contiguous_and_half_precision():
    boxes, scores, ids = candidates(60, 2, 3, torch.bfloat16)
    wide = torch.cat((boxes, boxes), dim=1)[::2, :4]
    strided = wide, scores[::2], ids[::2]
    whole = wide.float().contiguous(), scores[::2].float(), ids[::2].clone()
    result, expected = ops.matrix_nms(*strided), ops.matrix_nms(*whole)
    assert result.dtype == expected.dtype and torch.equal(result, expected)
    with torch.autocast("cpu", torch.bfloat16):
        result = torch.ops.resobj_d2.matrix_nms(*strided, "linear", 0.5)
    assert torch.equal(result, ops.matrix_nms(*whole, kernel="linear"))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="matrix_nms: kernel must be linear or gaussian, got 'f'"):
        ops.matrix_nms(*GOOD, kernel="f")
    with pytest.raises(ValueError, match="matrix_nms: sigma must be positive, got -1"):
        ops.matrix_nms(*GOOD, sigma=-1)
    with pytest.raises(TypeError, match="matrix_nms: idxs must be a tensor of integers"):
        ops.matrix_nms(GOOD[0], GOOD[1], GOOD[1])


def test_kernels_reject_what_the_wrapper_rejects(native_device):
    inputs = tuple(tensor.to(native_device) for tensor in GOOD)
    for arguments, message in (
        (("f", 0.5), "unknown kernel f"),
        (("linear", 0.0), "sigma must be positive"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.resobj_d2.matrix_nms(*inputs, *arguments)


def test_compile_without_a_graph_break():
    inputs = candidates(40, 2, 5)
    compiled = torch.compile(ops.matrix_nms, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), ops.matrix_nms(*inputs))
