"""FSAF's regions and level selection, on pyramids small enough to work out by hand."""

import math

import pytest
import torch

from resobj_d2.matching import FSAFAssigner, LTRBCoder, OctaveAnchors
from resobj_d2.structures import GroundTruth, LevelMaps, StagePrediction

K = 3
# 64x64 pixels: points at 0, 8, .. 56 on level 0 (rows 0..63), 0, 16, .. 48 on level 1 (64..79),
# 0, 32 on level 2 (80..83) and 0 on level 3 (84).
STRIDES = [8, 16, 32, 64]
GRIDS = [(8, 8), (4, 4), (2, 2), (1, 1)]
START = [0, 64, 80, 84]
# Centre (32, 32): effective within 3.2 pixels of it, ignoring within 8. Levels 0 to 2 have a point
# there, level 3 has none.
BOX = [16.0, 16.0, 48.0, 48.0]
HALF = [16.0, 16.0, 32.0, 48.0]  # IoU .5


def point(level, x, y):
    """Row of the point at pixel (x, y)."""
    return START[level] + y // STRIDES[level] * GRIDS[level][1] + x // STRIDES[level]


def level_maps(values):
    """(N, R, channels) as the maps that a predictor would have returned."""
    parts = values.split([h * w for h, w in GRIDS], dim=1)
    maps = [x.transpose(1, 2).unflatten(2, grid) for x, grid in zip(parts, GRIDS, strict=True)]
    return LevelMaps(levels=maps, channels=values.shape[-1])


def make(images, *, logits=None, boxes=None):
    """Priors, ground truth and predictions for lists of (box, class) per image."""
    priors = OctaveAnchors(strides=STRIDES, scales_per_octave=1, aspect_ratios=[1.0])(GRIDS)
    truth = GroundTruth.from_lists(
        [torch.tensor([b for b, _ in image]).reshape(-1, 4) for image in images],
        [torch.tensor([c for _, c in image], dtype=torch.int64) for image in images],
    )
    shape = (len(images), len(priors.boxes))
    prediction = StagePrediction(
        anchors=priors.boxes,
        cls=level_maps(torch.zeros(*shape, K) if logits is None else logits),
        box=level_maps(torch.zeros(*shape, 4)),
        boxes=priors.boxes.expand(*shape, 4).clone() if boxes is None else boxes,
    )
    return priors, truth, prediction


def assign(images, assigner, **kwargs):
    priors, truth, prediction = make(images, **kwargs)
    return assigner(priors, priors.boxes, truth, prediction)


def boxes_fitting_on(level_row, box, others):
    """Predicted boxes (1, R, 4): ``box`` itself at one point, ``others`` everywhere else."""
    priors = OctaveAnchors(strides=STRIDES, scales_per_octave=1, aspect_ratios=[1.0])(GRIDS)
    boxes = torch.tensor(others).expand(1, len(priors.boxes), 4).clone()
    boxes[0, level_row] = torch.tensor(box)
    return boxes


def rows(mask):
    return sorted(torch.nonzero(mask).flatten().tolist())


RING0 = sorted(point(0, x, y) for x in (24, 32, 40) for y in (24, 32, 40) if (x, y) != (32, 32))


def test_online_selection_takes_the_level_with_the_smaller_loss():
    fits = boxes_fitting_on(point(1, 32, 32), BOX, HALF)
    targets = assign([[(BOX, 1)]], FSAFAssigner(num_classes=K), boxes=fits)
    labels = targets.labels[0]
    assert rows(labels == 1) == [point(1, 32, 32)]
    assert rows(labels == -1) == RING0  # levels 1 and 2 have no further point within 8 pixels
    assert rows(labels == K) == sorted(set(range(85)) - {point(1, 32, 32), *RING0})
    assert targets.matched_gt_boxes[0, point(1, 32, 32)].tolist() == BOX
    # The square around (32, 32) is [0, 0, 64, 64]: 32^2 / 64^2.
    assert targets.matched_ious[0, point(1, 32, 32)].item() == 0.25
    assert targets.matched_ious[0].count_nonzero() == 1
    # On the levels not chosen, the box's points are negatives for all other classes.
    assert rows(targets.excluded_class[0] == 1) == [point(0, 32, 32), point(2, 32, 32)]
    assert (targets.excluded_class[0] == -1).sum() == 85 - 2


def test_class_loss_affects_the_selection():
    logits = torch.zeros(1, 85, K)
    logits[0, point(2, 32, 32)] = torch.tensor([-6.0, 6.0, -6.0])
    boxes = torch.tensor(HALF).expand(1, 85, 4)
    targets = assign([[(BOX, 1)]], FSAFAssigner(num_classes=K), logits=logits, boxes=boxes)
    assert rows(targets.foreground[0]) == [point(2, 32, 32)]


@pytest.mark.parametrize("logit, chosen", [(8.0, 1), (12.0, 0)])
def test_a_box_without_overlap_counts_as_an_iou_of_a_millionth(logit, chosen):
    """``-ln IoU`` is clamped to 13.8: 2.3 more than at an IoU of 1e-5; class losses outweigh that.

    A logit that is ``logit`` off has a focal loss of a quarter of that.
    """
    apart, touching = [100.0, 100.0, 110.0, 110.0], [16.0, 16.0, 16.1024, 16.1]
    boxes = boxes_fitting_on(point(1, 32, 32), touching, apart)
    priors = make([[]])[0]
    (x1, y1, x2, y2), side = touching, BOX[2] - BOX[0]
    assert (x2 - x1) * (y2 - y1) / side**2 == pytest.approx(1e-5, rel=1e-3)
    logits = torch.full((1, len(priors.boxes), K), -20.0)  # a loss of 5: no other level is chosen
    logits[0, point(0, 32, 32), 1] = 20.0
    logits[0, point(1, 32, 32), 1] = -logit
    targets = assign([[(BOX, 1)]], FSAFAssigner(num_classes=K), boxes=boxes, logits=logits)
    expected = (point(0, 32, 32), point(1, 32, 32))[chosen]
    assert rows(targets.foreground[0]) == [expected]


@pytest.mark.parametrize("gamma, chosen", [(2.0, 1), (1.0, 0)])
def test_focal_loss_takes_part_with_its_exponent(gamma, chosen):
    """Losses of .176 and .130 with an exponent of 2, of .240 and .260 with 1; 5 elsewhere.

    The class itself one below 0 has a sigmoid of .731 and ``.25 * .731^gamma * 1.313``; another
    class at 0 ``.75 * .5^gamma * .693``.
    """
    logits = torch.full((1, 85, K), -20.0)
    logits[0, point(0, 32, 32), 1] = -1.0
    logits[0, point(1, 32, 32)] = torch.tensor([0.0, 20.0, -20.0])
    assigner = FSAFAssigner(num_classes=K, focal_gamma=gamma)
    boxes = torch.tensor(BOX).expand(1, 85, 4)
    targets = assign([[(BOX, 1)]], assigner, logits=logits, boxes=boxes)
    expected = (point(0, 32, 32), point(1, 32, 32))[chosen]
    assert rows(targets.foreground[0]) == [expected]


def test_each_image_has_its_own_predictions():
    fitting = [point(1, 32, 32), point(0, 32, 32)]
    boxes = [boxes_fitting_on(row, BOX, HALF) for row in fitting]
    targets = assign([[(BOX, 1)]] * 2, FSAFAssigner(num_classes=K), boxes=torch.cat(boxes))
    assert [rows(x) for x in targets.foreground] == [[row] for row in fitting]


def test_points_on_the_border_of_the_regions_belong_to_them():
    """Half of the box's side of 32: within 8 pixels of (32, 32) and including those."""
    assigner = FSAFAssigner(num_classes=K, selection="heuristic", effective_scale=0.5)
    foreground = rows(assign([[(BOX, 1)]], assigner).foreground[0])
    assert foreground == sorted([point(0, 32, 32), *RING0])


def test_point_of_one_box_in_the_ring_of_another_is_trained():
    other = [22.0, 22.0, 26.0, 26.0]  # its point (24, 24) is in the first box's ring
    assigner = FSAFAssigner(num_classes=K, selection="heuristic")
    labels = assign([[(BOX, 1), (other, 2)]], assigner).labels[0]
    assert labels[point(0, 24, 24)] == 2 and labels[point(0, 32, 32)] == 1
    assert rows(labels == -1)[0] == min(RING0[1:])


def test_selection_compares_means_not_sums():
    """Level 0 has many effective points, level 2 one; a slightly better mean wins."""
    big = [0.0, 0.0, 62.0, 62.0]  # effective within 18.6 of 31
    assigner = FSAFAssigner(num_classes=K, effective_scale=0.6, ignore_scale=0.6)
    boxes = torch.tensor([0.0, 0.0, 31.0, 62.0]).expand(1, 85, 4).clone()  # IoU .5
    inside = [point(0, x, y) for x in range(16, 56, 8) for y in range(16, 56, 8)]
    boxes[0, inside] = torch.tensor([0.0, 0.0, 40.0, 62.0])  # IoU .645 at each of 25 points
    targets = assign([[(big, 0)]], assigner, boxes=boxes)
    assert rows(targets.foreground[0]) == sorted(inside)


@pytest.mark.parametrize("side, level", [(20, 0), (111, 0), (120, 0), (223, 0), (225, 1), (900, 1)])
def test_a_box_between_levels_that_exist_takes_the_finer_one(side, level):
    """Strides 8 and 32 are levels 3 and 5, and 112 to 224 pixels are level 4."""
    priors = OctaveAnchors(strides=[8, 32], scales_per_octave=1, aspect_ratios=[1.0])(
        [(8, 8), (2, 2)]
    )
    box = torch.tensor([[32.0 - side / 2, 32 - side / 2, 32 + side / 2, 32 + side / 2]])
    truth = GroundTruth.from_lists([box], [torch.tensor([1])])
    assigner = FSAFAssigner(num_classes=K, selection="heuristic")
    foreground = assigner(priors, priors.boxes, truth).foreground[0]
    assert foreground[:64].any() == (level == 0) and foreground[64:].any() == (level == 1)


def test_rings_far_from_the_chosen_level_are_background():
    fits = boxes_fitting_on(point(2, 32, 32), BOX, HALF)
    labels = assign([[(BOX, 1)]], FSAFAssigner(num_classes=K), boxes=fits).labels[0]
    assert rows(labels == 1) == [point(2, 32, 32)]
    # Of level 1, only the effective point is within 8 pixels of the centre.
    assert rows(labels == -1) == []


@pytest.mark.parametrize("unselected, label, excluded", [("background", K, -1), ("ignore", -1, -1)])
def test_choices_for_unselected_levels(unselected, label, excluded):
    fits = boxes_fitting_on(point(1, 32, 32), BOX, HALF)
    assigner = FSAFAssigner(num_classes=K, unselected=unselected)
    targets = assign([[(BOX, 1)]], assigner, boxes=fits)
    for row in (point(0, 32, 32), point(2, 32, 32)):
        assert targets.labels[0, row] == label
        assert targets.excluded_class[0, row] == excluded


def test_shared_points_belong_to_the_smaller_box():
    small = [24.0, 24.0, 40.0, 40.0]  # the same centre
    targets = assign([[(BOX, 1), (small, 2)]], FSAFAssigner(num_classes=K, selection="heuristic"))
    # By size both belong on the finest level, where both contain (32, 32): the small one wins.
    assert rows(targets.foreground[0]) == [point(0, 32, 32)]
    assert targets.labels[0, point(0, 32, 32)] == 2
    assert targets.gt_index[0, point(0, 32, 32)] == 1


@pytest.mark.parametrize("selection", ["online", "heuristic"])
def test_a_tiny_box_takes_no_point_of_a_level_on_which_it_is_not_trained(selection):
    """A box of 450 pixels and one of 12 at the same centre, which is a point of levels 0 to 2."""
    large, tiny = [-193.0, -193.0, 257.0, 257.0], [26.0, 26.0, 38.0, 38.0]
    boxes = torch.tensor(tiny).expand(1, 85, 4).clone()
    boxes[0, START[2] :] = torch.tensor(large)  # online: the large one fits on levels 2 and 3
    logits = torch.zeros(1, 85, K)
    logits[0, START[3] :] = 4.0  # and has the smaller class loss on level 2
    assigner = FSAFAssigner(num_classes=K, selection=selection)
    targets = assign([[(large, 1), (tiny, 2)]], assigner, boxes=boxes, logits=logits)
    # By size the large one is on level 3, stride 64: floor(5 + log2(450 / 224)) = 6.
    expected = {"online": rows(targets.labels[0] == 1), "heuristic": [point(3, 0, 0)]}[selection]
    assert rows(targets.labels[0] == 1) == expected and expected[0] >= START[2]
    assert rows(targets.labels[0] == 2) == [point(0, 32, 32)]


@pytest.mark.parametrize("selection", ["online", "heuristic"])
def test_the_nearest_point_serves_only_a_box_without_an_effective_one(selection):
    """A box of 12 pixels between the points of every level, beside the large one."""
    tiny = [6.0, 6.0, 14.0, 14.0]  # (8, 8) of level 0 is 2 pixels away, beyond .8
    fits = boxes_fitting_on(point(0, 8, 8), tiny, [100.0, 100.0, 110.0, 110.0])
    fits[0, START[1] :] = torch.tensor(BOX)
    assigner = FSAFAssigner(num_classes=K, selection=selection)
    targets = assign([[(BOX, 1), (tiny, 2)]], assigner, boxes=fits)
    assert rows(targets.labels[0] == 2) == [point(0, 8, 8)]
    # The large box has points at its centre; nearer or not, no other level offers one.
    assert set(rows(targets.labels[0] == 1)) <= {point(level, 32, 32) for level in (0, 1, 2)}
    assert (targets.labels[0] == 1).any()
    # What is merely nearest on the other levels is plain background.
    assert (targets.excluded_class[0] != 2).all()


@pytest.mark.parametrize(
    "side, level", [(10.0, 0), (27.9, 0), (55.9, 0), (56.1, 0), (112.1, 1), (224.1, 2), (9e3, 3)]
)
def test_heuristic_level_by_size(side, level):
    """floor(5 + log2(side / 224)) is 3 from 56, 4 from 112, 5 from 224; strides 8..64 are 3..6."""
    box = [24 - side / 2, 24 - side / 2, 24 + side / 2, 24 + side / 2]
    assigner = FSAFAssigner(
        num_classes=K, selection="heuristic", effective_scale=1e-9, ignore_scale=1e-9
    )
    targets = assign([[(box, 0)]], assigner)
    (row,) = rows(targets.foreground[0])
    assert sum(row >= s for s in START) - 1 == level


def test_images_are_independent():
    a = assign([[(BOX, 1)], []], FSAFAssigner(num_classes=K))
    b = assign([[(BOX, 1)]], FSAFAssigner(num_classes=K))
    assert torch.equal(a.labels[0], b.labels[0])
    assert (a.labels[1] == K).all() and (a.gt_index[1] == -1).all()
    assert torch.equal(a.matched_gt_boxes[1], make([[]])[0].boxes)


def test_box_without_area_and_bad_predictions_stay_finite():
    boxes = torch.full((1, 85, 4), 5.0)  # degenerate predictions overlap nothing
    targets = assign(
        [[([20.0, 20.0, 20.0, 20.0], 0), (BOX, 1)]], FSAFAssigner(num_classes=K), boxes=boxes
    )
    assert targets.foreground.sum() >= 1
    assert torch.isfinite(targets.matched_ious).all()


def test_box_owning_no_point_is_not_trained():
    """A small box in the middle of the big one, trained on the same level, owns all its points."""
    small = [28.0, 28.0, 36.0, 36.0]
    targets = assign(
        [[(BOX, 1), (small, 2)]],
        FSAFAssigner(num_classes=K, effective_scale=0.2, ignore_scale=0.2),
    )
    assert (targets.labels[0] != 1).all()
    assert (targets.labels[0] == 2).sum() >= 1


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"selection": "best"}, "SELECTION"),
        ({"unselected": "keep"}, "UNSELECTED"),
        ({"effective_scale": 0.6}, "EFFECTIVE_SCALE"),
        ({"effective_scale": 0.0}, "EFFECTIVE_SCALE"),
    ],
)
def test_bad_options_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FSAFAssigner(num_classes=K, **kwargs)


def test_ltrb_coder_by_hand():
    anchors = torch.tensor([[8.0, 8.0, 40.0, 40.0]])  # centre 24, side 32 = 4 * stride 8
    boxes = torch.tensor([[16.0, 20.0, 56.0, 24.0]])
    deltas = torch.tensor([[8 / 32, 4 / 32, 32 / 32, 0.0]])
    torch.testing.assert_close(LTRBCoder().encode(anchors, boxes), deltas)
    torch.testing.assert_close(LTRBCoder().decode(anchors, deltas), boxes)
    # A negative output is clamped by the ReLU: that side passes through the point.
    negative = torch.tensor([[-1.0, 4 / 32, 1.0, 0.0]])
    torch.testing.assert_close(
        LTRBCoder().decode(anchors, negative), torch.tensor([[24.0, 20.0, 56.0, 24.0]])
    )
    # Of a point in an oblong anchor, 32 x 64 around (24, 40), the unit is the side along the axis.
    oblong = torch.tensor([[8.0, 8.0, 40.0, 72.0]])
    deltas = torch.tensor([[8 / 32, 20 / 64, 1.0, -16 / 64]])
    torch.testing.assert_close(LTRBCoder().encode(oblong, boxes), deltas)
    torch.testing.assert_close(
        LTRBCoder().decode(oblong, deltas.abs()), torch.tensor([[16.0, 20.0, 56.0, 56.0]])
    )
    assert math.isclose(LTRBCoder.initial_delta, 0.1)
    same = torch.full((1, 4), LTRBCoder.identity_delta)
    torch.testing.assert_close(LTRBCoder().decode(boxes, same), boxes)
