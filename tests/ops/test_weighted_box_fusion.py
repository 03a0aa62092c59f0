"""weighted_box_fusion by hand, and against a plain loop written from the paper."""

import math

import pytest
import torch

from resobj_d2 import ops
from tests.ops.nms_inputs import candidates, plain_iou

NAN, INF = math.nan, math.inf
MODES = ["mean", "sum", "max"]


def plain_fusion(boxes, scores, ids, models, weights, threshold, mode):
    """Steps 1 to 7 of Section 3, with lists of clusters L and of fused boxes F."""
    boxes, ids, models = boxes.tolist(), ids.tolist(), models.tolist()
    scores = [score * weights[model] for score, model in zip(scores.tolist(), models, strict=True)]
    clusters, fused = [], []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        same = [k for k, cluster in enumerate(clusters) if ids[cluster[0]] == ids[i]]
        best = max(same, key=lambda k: (plain_iou(fused[k], boxes[i]), -k), default=None)
        if best is None or plain_iou(fused[best], boxes[i]) <= threshold:
            clusters.append([])
            fused.append(None)
            best = len(fused) - 1
        clusters[best].append(i)
        total = sum(scores[j] for j in clusters[best])
        fused[best] = [
            sum(scores[j] * boxes[j][x] for j in clusters[best]) / total for x in range(4)
        ]
    results = []
    for cluster, box in zip(clusters, fused, strict=True):
        own = [scores[j] for j in cluster]
        n, t = len(weights), len(cluster)
        mean = sum(own) / t
        confidence = {
            "mean": mean * min(t, n) / sum(weights),
            "sum": mean * t / sum(weights),
            "max": max(own) / max(weights),
        }[mode]
        results.append((confidence, box, ids[cluster[0]]))
    return sorted(results, key=lambda result: -result[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [2.0, 0.5, 1.0]])
def test_agrees_with_a_plain_loop(impl, weights, mode):
    boxes, scores, ids = candidates(60, 3, 1)
    scores = scores.sqrt()  # so that no two means are equal
    models = torch.arange(60) % len(weights)
    expected = plain_fusion(boxes, scores, ids, models, weights, 0.55, mode)
    assert len(weights) == 1 or 3 < len(expected) < 50
    inputs = (x.to(impl.device) for x in (boxes, scores, ids, models))
    fused = impl.weighted_box_fusion(*inputs, model_weights=weights, confidence=mode)
    found_boxes, found_scores, found_ids = (x.cpu() for x in fused)
    torch.testing.assert_close(found_scores, scores.new_tensor([c for c, _, _ in expected]))
    torch.testing.assert_close(found_boxes, boxes.new_tensor([box for _, box, _ in expected]))
    assert found_ids.tolist() == [idx for _, _, idx in expected]


# Two models find one object; the second alone finds another, and one of another class.
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [20, 20, 30, 30], [0, 0, 10, 10]])
SCORES = torch.tensor([0.6, 0.3, 0.8, 0.5])
IDS, MODELS = torch.tensor([1, 1, 1, 7]), torch.tensor([0, 1, 1, 1])


@pytest.mark.parametrize(
    "weights, mode, expected",
    [
        ([1.0, 1.0], "mean", {0: 0.45, 1: 0.4, 2: 0.25}),
        ([1.0, 1.0], "max", {0: 0.6, 1: 0.8, 2: 0.5}),
        # The scores are 1.2, .3, .8 and .5; their clusters .75, .8 and .5; the weights' sum is 3.
        ([2.0, 1.0], "mean", {0: 0.75 * 2 / 3, 1: 0.8 / 3, 2: 0.5 / 3}),
        ([2.0, 1.0], "max", {0: 0.6, 1: 0.4, 2: 0.25}),
    ],
)
def test_by_hand(impl, weights, mode, expected):
    inputs = (x.to(impl.device) for x in (BOXES, SCORES, IDS, MODELS))
    boxes, scores, ids = (
        x.cpu() for x in impl.weighted_box_fusion(*inputs, model_weights=weights, confidence=mode)
    )
    order = sorted(expected, key=lambda k: -expected[k])
    assert scores.tolist() == pytest.approx([expected[k] for k in order])
    assert ids.tolist() == [{0: 1, 1: 1, 2: 7}[k] for k in order]
    # The mean of y2 = 10 and 12, weighted by the scores.
    share = 0.3 / (0.6 * weights[0] + 0.3)
    assert boxes[order.index(0)].tolist() == pytest.approx([0, 0, 10, 10 + 2 * share])
    assert boxes[order.index(1)].tolist() == BOXES[2].tolist()  # alone: not a bit is changed


def test_three_boxes_of_a_model_count_as_one_model_in_the_mean_only():
    boxes, scores = BOXES[:1].expand(3, 4), torch.tensor([0.9, 0.6, 0.3])
    zeros = torch.zeros(3, dtype=torch.int64)

    def score(mode, weights):
        fused = ops.weighted_box_fusion(
            boxes, scores, zeros, zeros, model_weights=weights, confidence=mode
        )
        assert fused.boxes.tolist() == BOXES[:1].tolist()
        return fused.scores.item()

    assert score("mean", [1.0]) == pytest.approx(0.6)
    assert score("sum", [1.0]) == pytest.approx(1.8)
    assert score("max", [1.0]) == pytest.approx(0.9)
    assert score("mean", [1.0, 1.0]) == pytest.approx(0.6)  # three boxes, two models


def test_odd_boxes_stay_alone_and_odd_scores_are_dropped():
    odd = [[0, NAN, 4, 4], [4, 4, 0, 0], [1, 1, 1, 1]]
    boxes = torch.tensor([*odd, [0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, NAN, INF, 0.0])
    ids = torch.zeros(7, dtype=torch.int32)
    fused = ops.weighted_box_fusion(boxes, scores, ids, ids, model_weights=[1.0], iou_threshold=0)
    torch.testing.assert_close(fused.boxes, boxes[:4], equal_nan=True, rtol=0, atol=0)
    assert torch.equal(fused.scores, scores[:4])
    scores = torch.tensor([-0.5, NAN, 0.0, -INF, NAN, INF, 0.0])
    fused = ops.weighted_box_fusion(boxes, scores, ids, ids, model_weights=[1.0])
    assert [x.shape for x in fused] == [(0, 4), (0,), (0,)]


def test_a_compiled_function_has_one_graph():
    def fuse(boxes, scores):
        return ops.weighted_box_fusion(boxes, scores, IDS, MODELS, model_weights=[1.0, 1.0]).boxes

    compiled = torch.compile(fuse, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(BOXES, SCORES), fuse(BOXES, SCORES))


GOOD = {"boxes": BOXES, "scores": SCORES, "idxs": IDS, "models": MODELS, "model_weights": [1.0, 1]}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"boxes": BOXES[:, :3]}, ValueError, r"boxes must have shape \(number, 4\), got \(4, 3\)"),
        ({"scores": SCORES[:2]}, ValueError, r"scores must have shape \(4,\), one for each box"),
        ({"models": MODELS[None]}, ValueError, r"models must have shape \(4,\), one for each box"),
        ({"models": MODELS.bool()}, TypeError, "models must be a tensor of integers, got torch.b"),
        ({"models": MODELS + 1}, ValueError, "models must be from 0 to 1, one for each of model_w"),
        ({"models": MODELS - 1}, ValueError, "models must be from 0 to 1, .* got -1 to 0"),
        ({"model_weights": []}, ValueError, "model_weights must have one weight for each model"),
        ({"model_weights": [1.0, 0.0]}, ValueError, r"model_weights\[1\] must be positive, got 0"),
        ({"model_weights": [1.0, NAN]}, ValueError, r"model_weights\[1\] must be positive, got na"),
        ({"iou_threshold": -0.1}, ValueError, "iou_threshold must be 0 or more, got -0.1"),
        ({"iou_threshold": NAN}, ValueError, "iou_threshold must be 0 or more, got nan"),
        ({"confidence": "avg"}, ValueError, "confidence must be one of mean, sum, max, got 'avg'"),
    ],
)
def test_errors_name_the_argument(wrong, error, message):
    with pytest.raises(error, match="^weighted_box_fusion: " + message):
        ops.weighted_box_fusion(**{**GOOD, **wrong})
