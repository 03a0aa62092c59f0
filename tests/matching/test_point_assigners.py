"""FCOS's, ATSS's and TOOD's label assignments, by hand and against loops over the papers' text."""

import math

import pytest
import torch

from resobj_d2.matching import (
    ATSSAssigner,
    DistributionCoder,
    FCOSAssigner,
    OctaveAnchors,
    TaskAlignedAssigner,
)
from resobj_d2.structures import GroundTruth, LevelMaps, StagePrediction

K = 3
STRIDES = [8, 16, 32]
GRIDS = [(8, 8), (4, 4), (2, 2)]
START = [0, 64, 80]


def priors_of(scale):
    grid = OctaveAnchors(
        strides=STRIDES, scale=scale, scales_per_octave=1, aspect_ratios=[1.0], offset=0.5
    )
    return grid(GRIDS)


def truth_of(*images):
    return GroundTruth.from_lists(
        [torch.tensor([b for b, _ in image]).reshape(-1, 4) for image in images],
        [torch.tensor([c for _, c in image], dtype=torch.int64) for image in images],
    )


def cell(level, column, row):
    return START[level] + row * GRIDS[level][1] + column


def rows(mask):
    return sorted(torch.nonzero(mask).flatten().tolist())


def random_truth(seed, count):
    g = torch.Generator().manual_seed(seed)
    corner = 40 * torch.rand(count, 2, generator=g)
    boxes = torch.cat((corner, corner + 4 + 50 * torch.rand(count, 2, generator=g)), dim=1)
    return boxes.tolist(), torch.randint(K, (count,), generator=g).tolist()


# FCOS.


def test_fcos_by_hand():
    """Points at 4, 12, 20, ... on level 0, whose distances go up to 64."""
    box = [0.0, 0.0, 32.0, 24.0]  # centre (16, 12)
    targets = FCOSAssigner(num_classes=K)(
        priors_of(1.0), priors_of(1.0).boxes, truth_of([(box, 1)])
    )
    # Less than 12 from the centre along both axes.
    expected = [cell(0, x, y) for y in (0, 1, 2) for x in (1, 2)]
    assert rows(targets.labels[0] == 1) == sorted(expected)
    assert rows(targets.labels[0] == K) == sorted(set(range(84)) - set(expected))
    assert (targets.gt_index[0, expected] == 0).all() and (targets.gt_index < 0).sum() == 84 - 6
    assert targets.matched_gt_boxes[0, expected[0]].tolist() == box


def test_fcos_without_centre_sampling_takes_every_point_inside():
    box = [1.0, 1.0, 31.0, 23.0]
    assigner = FCOSAssigner(num_classes=K, radius=0.0)
    targets = assigner(priors_of(1.0), priors_of(1.0).boxes, truth_of([(box, 1)]))
    assert rows(targets.labels[0] == 1) == sorted(cell(0, x, y) for x in range(4) for y in range(3))


@pytest.mark.parametrize("furthest, level", [(31.9, 0), (63.9, 0), (64.1, 1), (127.9, 1), (129, 2)])
def test_fcos_level_follows_the_largest_distance(furthest, level):
    """Of the point (40, 40), (24, 24) or (16, 16): below 64, from 64 to 128, above."""
    x = {0: 36.0, 1: 24.0, 2: 16.0}[level]
    box = [x - furthest, x - 1.0, x + furthest, x + 1.0]
    assigner = FCOSAssigner(num_classes=K)
    labels = assigner(priors_of(1.0), priors_of(1.0).boxes, truth_of([(box, 0)])).labels[0]
    found = rows(labels == 0)
    assert found and all(START[level] <= row < [*START, 84][level + 1] for row in found)


def test_fcos_against_a_loop_over_points_and_boxes():
    boxes, classes = random_truth(0, 12)
    priors = priors_of(1.0)
    assigner = FCOSAssigner(num_classes=K, size_of_interest=2.0)
    targets = assigner(priors, priors.boxes, truth_of(list(zip(boxes, classes, strict=True)), []))
    for row, (x1, y1, x2, y2) in enumerate(priors.boxes.tolist()):
        x, y, level = (x1 + x2) / 2, (y1 + y2) / 2, sum(row >= s for s in START) - 1
        best = None
        for i, (left, top, right, bottom) in enumerate(boxes):
            sides = [x - left, y - top, right - x, bottom - y]
            low = STRIDES[level] if level else 0
            high = 2 * STRIDES[level] if level < 2 else math.inf
            near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
            fits = min(sides) > 0 and low < max(sides) < high and near < 1.5 * STRIDES[level]
            area = (right - left) * (bottom - top)
            if fits and (best is None or area < best[0]):
                best = area, i
        assert targets.gt_index[0, row] == (-1 if best is None else best[1])
        assert targets.labels[0, row] == (K if best is None else classes[best[1]])
    assert (targets.labels[0] < K).sum() > 5
    assert (targets.labels[1] == K).all()


@pytest.mark.parametrize("furthest, level", [(63.9, 0), (64.1, 1), (127.9, 1), (200, 1)])
def test_fcos_has_a_level_for_every_size_where_strides_do_not_double(furthest, level):
    grid = OctaveAnchors(
        strides=[8, 32], scale=1.0, scales_per_octave=1, aspect_ratios=[1.0], offset=0.5
    )
    priors = grid([(16, 16), (4, 4)])
    middle, row = [(68.0, 8 * 16 + 8), (80.0, 256 + 2 * 4 + 2)][level]  # a point of the level
    box = [middle - 8, middle - 8, middle + 8, middle + furthest]
    targets = FCOSAssigner(num_classes=K, radius=0.0)(priors, priors.boxes, truth_of([(box, 1)]))
    assert targets.labels[0, row] == 1


# ATSS.


def test_atss_leaves_no_object_between_two_levels_without_an_anchor():
    """One candidate per level, with IoUs a and b: mean plus deviation is above both.

    (a + b) / 2 + |a - b| / sqrt(2) is the mean plus the sample deviation.
    """
    grid = OctaveAnchors(
        strides=[8, 16], scale=2.0, scales_per_octave=1, aspect_ratios=[1.0], offset=0.5
    )
    priors = grid([(4, 4), (2, 2)])
    box = [0.0, 0.0, 20.0, 20.0]  # of anchors (4, 4, 20, 20) .64 and (-8, -8, 24, 24) .39
    assigner = ATSSAssigner(num_classes=K, candidates=1)
    targets = assigner(priors, priors.boxes, truth_of([(box, 2)]))
    assert rows(targets.foreground[0]) == [5] and targets.labels[0, 5] == 2


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("candidates", [3, 9])
def test_atss_against_algorithm_1_written_out(candidates):
    boxes, classes = random_truth(1, 6)
    priors = priors_of(2.0)
    anchors = priors.boxes.tolist()
    owner = [(0.0, -1)] * len(anchors)
    for i, box in enumerate(boxes):
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        chosen = []
        for level, start in enumerate(START):
            members = range(start, [*START, 84][level + 1])

            def distance(row, centre=centre):
                a = anchors[row]
                return math.dist(centre, ((a[0] + a[2]) / 2, (a[1] + a[3]) / 2))

            chosen += sorted(members, key=distance)[:candidates]
        ious = [iou(anchors[row], box) for row in chosen]
        mean = sum(ious) / len(ious)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in ious) / (len(ious) - 1))
        for row, value in zip(chosen, ious, strict=True):
            x, y = (anchors[row][0] + anchors[row][2]) / 2, (anchors[row][1] + anchors[row][3]) / 2
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if value >= mean + deviation and inside and value > owner[row][0]:
                owner[row] = value, i
    truth = truth_of(list(zip(boxes, classes, strict=True)), [])
    targets = ATSSAssigner(num_classes=K, candidates=candidates)(priors, priors.boxes, truth)
    assert targets.gt_index[0].tolist() == [i for _, i in owner]
    expected = [K if i < 0 else classes[i] for _, i in owner]
    assert targets.labels[0].tolist() == expected and (targets.labels[1] == K).all()
    assert sum(i >= 0 for _, i in owner) >= 4


# TOOD.


def predicted(priors, logits, boxes):
    maps = [
        x.transpose(0, 1).reshape(1, K, *grid)
        for x, grid in zip(logits.split([h * w for h, w in GRIDS]), GRIDS, strict=True)
    ]
    return StagePrediction(
        anchors=priors.boxes, cls=LevelMaps(maps, K), box=None, boxes=boxes[None]
    )


def test_task_alignment_by_hand():
    """Three of the points in an object, with t = s u^2, of which the best two are chosen."""
    priors = priors_of(1.0)
    box = [0.0, 0.0, 30.0, 10.0]  # (4, 4), (12, 4), (20, 4), (28, 4) and (8, 8), (24, 8) are inside
    boxes = torch.zeros(84, 4)
    logits = torch.full((84, K), -9.0)
    # IoUs of .9, .6 and .5, scores of .5, .5 and .9: t is .405, .18 and .225.
    for x, width, logit in ((0, 27.0, 0.0), (1, 18.0, 0.0), (2, 15.0, math.log(9))):
        boxes[cell(0, x, 0)] = torch.tensor([0.0, 0.0, width, 10.0])
        logits[cell(0, x, 0), 1] = logit
    boxes[cell(0, 5, 5)] = torch.tensor(box)  # its point is outside
    logits[cell(0, 5, 5), 1] = 9.0
    assigner = TaskAlignedAssigner(num_classes=K, size=2, beta=2.0)
    truth = truth_of([(box, 1)])
    targets = assigner(priors, priors.boxes, truth, predicted(priors, logits, boxes))
    chosen = [cell(0, 0, 0), cell(0, 2, 0)]
    assert rows(targets.foreground[0]) == chosen
    # The best of t becomes the best IoU.
    expected = torch.tensor([0.9, 0.225 / 0.405 * 0.9])
    torch.testing.assert_close(targets.quality[0, chosen], expected)
    assert targets.quality.count_nonzero() == 2
    assert targets.box_weights is targets.quality


def test_an_anchor_of_two_objects_belongs_to_the_one_its_box_overlaps_most():
    priors = priors_of(1.0)
    wide, narrow = [0.0, 0.0, 30.0, 10.0], [0.0, 0.0, 20.0, 10.0]
    boxes = torch.tensor([0.0, 0.0, 21.0, 10.0]).repeat(84, 1)
    truth = truth_of([(wide, 1), (narrow, 2)], [])
    shown = predicted(priors, torch.zeros(84, K), boxes)
    shown = StagePrediction(
        anchors=shown.anchors,
        cls=LevelMaps([x.repeat(2, 1, 1, 1) for x in shown.cls.levels], K),
        box=None,
        boxes=boxes.repeat(2, 1, 1),
    )
    labels = TaskAlignedAssigner(num_classes=K)(priors, priors.boxes, truth, shown).labels
    assert labels[0, [cell(0, 0, 0), cell(0, 1, 0)]].tolist() == [2, 2]
    assert labels[0, cell(0, 3, 0)] == 1  # (28, 4) is in the wide one alone
    assert (labels[1] == K).all()


def test_task_aligned_qualities_of_diverged_boxes_are_nan():
    """Otherwise an object would lose its anchors, and the losses would stay finite."""
    priors = priors_of(1.0)
    truth = truth_of([([0.0, 0.0, 30.0, 10.0], 1)])
    shown = predicted(priors, torch.zeros(84, K), torch.full((84, 4), torch.nan))
    targets = TaskAlignedAssigner(num_classes=K)(priors, priors.boxes, truth, shown)
    assert targets.labels.eq(1).any() and targets.quality[targets.labels == 1].isnan().all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FCOSAssigner(num_classes=K, radius=-1.0), "CENTER_RADIUS"),
        (lambda: FCOSAssigner(num_classes=K, size_of_interest=0.0), "SIZE_OF_INTEREST"),
        (lambda: ATSSAssigner(num_classes=K, candidates=0), "CANDIDATES"),
        (lambda: TaskAlignedAssigner(num_classes=K, size=0), "TOPK"),
        (lambda: DistributionCoder(largest=0), "LARGEST"),
        (lambda: DistributionCoder(weight=-1.0), "DFL_WEIGHT"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Distances as distributions.


def test_distribution_coder_by_hand():
    coder = DistributionCoder(largest=2)
    anchors, strides = (
        torch.tensor([[8.0, 8.0, 24.0, 40.0]]),
        torch.tensor([[8.0]]),
    )  # centre (16, 24)
    logits = torch.zeros(1, 12)
    logits[0, :3] = torch.tensor([0.0, math.log(2), 0.0])  # 1/4, 1/2, 1/4: mean 1
    logits[0, 3:6] = torch.tensor([0.0, 0.0, math.log(6)])  # 1/8, 1/8, 6/8: mean 13/8
    boxes = coder.decode(anchors, logits, strides)
    torch.testing.assert_close(boxes, torch.tensor([[8.0, 24 - 13.0, 24.0, 32.0]]))
    assert coder.channels == 12
    distances = coder.encode(anchors, torch.tensor([[10.0, 24.0, 99.0, 20.0]]), strides)
    assert distances.tolist() == [[0.75, 0.0, 2.0, 0.0]]  # clamped to 0 and 2


def test_distribution_focal_loss_by_hand():
    coder = DistributionCoder(largest=2)
    logits = torch.tensor([[0.0, math.log(2), 0.0] * 4, [math.nan] * 12]).requires_grad_()
    target = torch.tensor([[0.75, 0.0, 2.0, 1.5], [0.5] * 4])
    mask = torch.tensor([True, False])
    loss = coder.loss(logits, target, mask)
    quarter, half = math.log(4), math.log(2)
    sides = [0.25 * quarter + 0.75 * half, quarter, quarter, 0.5 * half + 0.5 * quarter]
    assert loss.item() == pytest.approx(sum(sides) / 4, rel=1e-6)
    loss.backward()
    assert torch.isfinite(logits.grad).all() and not logits.grad[1].any()
    weighted = coder.loss(logits, target, mask, torch.tensor([0.5, 7.0]))
    assert weighted.item() == pytest.approx(sum(sides) / 4 / 2, rel=1e-6)
