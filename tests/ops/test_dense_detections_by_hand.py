"""dense_detections on a few cells, against literals."""

import math

import pytest
import torch

NAN, INF = math.nan, math.inf
OPTIONS = {"score_thresh": 0.1, "topk": 100, "nms_thresh": 0.5, "max_detections": 5}


def logit(*probabilities, like=None):
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.log(p / (1 - p)).to(like if like is not None else torch.float32)


def two_cells(device, dtype=torch.float32):
    """One level, 1 x 2 cells, 2 anchors per cell, 2 classes; no anchor overlaps another."""
    # Channels: anchor 0 class 0, anchor 0 class 1, anchor 1 class 0, anchor 1 class 1.
    cls = logit(0.9, 0.05, 0.2, 0.3, 0.05, 0.05, 0.6, 0.5, like=dtype).view(1, 4, 1, 2)
    anchors = torch.tensor([[0, 0, 8, 8], [10, 0, 14, 4], [20, 0, 28, 8], [30, 0, 34, 4]])
    return {
        "cls_logits": [cls.to(device)],
        "deltas": [torch.zeros(1, 8, 1, 2, dtype=dtype, device=device)],
        "anchors": [anchors.to(device, dtype)],
        "num_classes": 2,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_hand(impl, dtype):
    head = two_cells(impl.device, dtype)
    head["deltas"][0][0, 4, 0, 0] = 0.5  # dx of row 1: half its width
    head["deltas"][0][0, 2, 0, 1] = math.log(2)  # dw of row 2: twice as wide
    detections = impl.dense_detections(**head, **OPTIONS | {"max_detections": 6})
    assert detections.counts.tolist() == [5]
    assert detections.rows.tolist() == [[0, 1, 3, 2, 0, -1]]
    assert detections.classes.tolist() == [[0, 1, 1, 1, 1, -1]]
    scores = torch.tensor([[0.9, 0.6, 0.5, 0.3, 0.2, 0]], dtype=dtype)
    torch.testing.assert_close(detections.scores.cpu(), scores)
    torch.testing.assert_close(detections.factors.cpu(), scores[..., None])
    first, second = [0, 0, 8, 8], [12, 0, 16, 4]
    boxes = [[first, second, [30, 0, 34, 4], [16, 0, 32, 8], first, [0, 0, 0, 0]]]
    torch.testing.assert_close(detections.boxes.cpu(), torch.tensor(boxes, dtype=dtype))
    assert (
        detections.rows.dtype == detections.classes.dtype == detections.counts.dtype == torch.int64
    )


def test_factors_exponents_and_floors_by_hand(impl):
    head = two_cells(impl.device)
    # In the order of rows 0..3; in the maps the cells of an anchor are adjacent.
    objectness = logit(0.8, 0.4, 0.5, 0.26).view(1, 2, 1, 2).transpose(1, 3).to(impl.device)
    head["factor_logits"] = [[objectness]]
    product = impl.dense_detections(**head, **OPTIONS)
    assert product.counts.tolist() == [5]
    assert product.rows[0].tolist() == [0, 1, 0, 2, 3]
    expected = torch.tensor([0.72, 0.24, 0.16, 0.15, 0.13])
    torch.testing.assert_close(product.scores[0].cpu(), expected)
    pairs = [[0.9, 0.8], [0.6, 0.4], [0.2, 0.8], [0.3, 0.5], [0.5, 0.26]]
    torch.testing.assert_close(product.factors[0].cpu(), torch.tensor(pairs))
    rule = {"exponents": [0.5, 2.0], "floors": [0.25, 0.45]}
    detections = impl.dense_detections(**head, **rule, **OPTIONS)
    assert detections.rows[0].tolist() == [0, 2, -1, -1, -1]
    torch.testing.assert_close(
        detections.scores[0, :2].cpu(), torch.tensor([0.9**0.5 * 0.64, 0.3**0.5 * 0.25])
    )


@pytest.mark.parametrize("exponents", [[0.0, 1.0], [1.0, 0.0], [0.01, 0.01], [3.0, 8.0]])
def test_no_candidate_above_the_threshold_is_missed(impl, exponents):
    # Class and factor sweep all of (0, 1), far denser around the threshold than float32 rounding.
    g = torch.Generator().manual_seed(1)
    p = torch.rand(2, 64, 64, generator=g, dtype=torch.float64)
    score = p[0] ** exponents[0] * p[1] ** exponents[1]
    thresh = score.median().item()
    maps = torch.log(p / (1 - p)).float().view(2, 1, 1, 64, 64).to(impl.device)
    boxes = torch.tensor([0.0, 0, 1, 1]) + 2 * torch.arange(64 * 64)[:, None]
    detections = impl.dense_detections(
        [maps[0]], None, [boxes.to(impl.device)], num_classes=1, factor_logits=[[maps[1]]],
        exponents=exponents, score_thresh=thresh, topk=4096, nms_thresh=0.5, max_detections=4096,
    )  # fmt: skip
    rows = set(detections.rows[0, : detections.counts[0]].tolist())
    sure = set(torch.nonzero(score.flatten() > thresh * (1 + 1e-6))[:, 0].tolist())
    never = set(torch.nonzero(score.flatten() < thresh * (1 - 1e-6))[:, 0].tolist())
    assert len(sure) > 1500 and sure <= rows and not rows & never


def test_equal_scores_are_ordered_by_level_row_and_class(impl):
    # Saturated logits: every score is exactly 1, so only the order decides what top-k selects.
    cls = [torch.full((1, 6, 2, 2), 100.0), torch.full((1, 6, 1, 1), 100.0)]
    head = {
        "cls_logits": [x.to(impl.device) for x in cls],
        "deltas": None,
        "anchors": [
            (torch.tensor([0.0, 0, 1, 1]) + 2 * torch.arange(first, last)[:, None]).to(impl.device)
            for first, last in ((0, 8), (8, 10))
        ],
        "num_classes": 3,
    }
    options = OPTIONS | {"topk": 5, "max_detections": 12}
    detections = impl.dense_detections(**head, **options)
    assert detections.counts.tolist() == [10]
    assert detections.rows[0, :10].tolist() == [0, 0, 0, 1, 1, 8, 8, 8, 9, 9]
    assert detections.classes[0, :10].tolist() == [0, 1, 2, 0, 1] * 2
    last = [x.to(memory_format=torch.channels_last) for x in head["cls_logits"]]
    other = impl.dense_detections(**head | {"cls_logits": last}, **options)
    assert all(torch.equal(a, b) for a, b in zip(other, detections, strict=True))


def test_suppression_is_per_class_and_strict(impl):
    cls = logit(0.9, 0.1, 0.8, 0.1, 0.7, 0.6).view(1, 2, 1, 3)
    cls = torch.stack((cls[0, :, 0].flatten()[::2], cls[0, :, 0].flatten()[1::2]))
    head = {
        "cls_logits": [cls.view(1, 2, 1, 3).to(impl.device)],  # rows: (.9, .1), (.8, .1), (.7, .6)
        "deltas": None,
        # The IoU of the first two is exactly 1/2; the third equals the first.
        "anchors": [torch.tensor([[0.0, 0, 8, 8], [0, 0, 4, 8], [0, 0, 8, 8]], device=impl.device)],
        "num_classes": 2,
    }
    detections = impl.dense_detections(**head, **OPTIONS)
    assert detections.rows[0].tolist() == [0, 1, 2, -1, -1]
    assert detections.classes[0].tolist() == [0, 0, 1, -1, -1]
    stricter = impl.dense_detections(**head, **OPTIONS | {"nms_thresh": 0.49})
    assert stricter.rows[0].tolist() == [0, 2, -1, -1, -1]
    assert impl.dense_detections(**head, **OPTIONS | {"max_detections": 1}).rows.tolist() == [[0]]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_non_finite_inputs(impl, bad):
    head = two_cells(impl.device)
    head["factor_logits"] = [[torch.zeros(1, 2, 1, 2, device=impl.device)]]
    options = OPTIONS | {"exponents": [1.0, 0.0]}
    everything = [(0, 0), (1, 1), (3, 1), (2, 1), (0, 1)]

    def pairs(detections):
        n = detections.counts[0]
        return list(
            zip(detections.rows[0, :n].tolist(), detections.classes[0, :n].tolist(), strict=True)
        )

    assert pairs(impl.dense_detections(**head, **options)) == everything
    head["deltas"][0][0, 5, 0, 0] = bad  # dy of row 1
    assert pairs(impl.dense_detections(**head, **options)) == everything[:1] + everything[2:]
    head["deltas"][0].zero_()
    head["cls_logits"][0][0, 0, 0, 0] = bad  # row 0, class 0: a score of 1, 0 or none
    first = everything if bad == INF else everything[1:]
    assert pairs(impl.dense_detections(**head, **options)) == first
    head["factor_logits"][0][0][0, 0, 0, 1] = bad  # row 2; its exponent is 0
    without = [pair for pair in first if pair != (2, 1)]
    assert pairs(impl.dense_detections(**head, **options)) == (without if bad != bad else first)


def test_deltas_are_scaled_and_clamped(impl):
    head = two_cells(impl.device)
    head["deltas"][0][0, :4, 0, 0] = torch.tensor([1.0, -2.0, 10.0, 0.0])
    options = OPTIONS | {"weights": [4.0, 8.0, 2.0, 1.0], "scale_clamp": math.log(3)}
    detections = impl.dense_detections(**head, **options)
    # Row 0, an 8 x 8 box at (4, 4): moved by (2, -2), three times as wide.
    torch.testing.assert_close(detections.boxes[0, 0].cpu(), torch.tensor([-6.0, -2, 18, 6]))
    clipped = impl.dense_detections(**head, **options, image_sizes=[(5, 12)])
    torch.testing.assert_close(clipped.boxes[0, 0].cpu(), torch.tensor([0.0, 0, 12, 5]))
    assert torch.equal(clipped.rows, detections.rows)
