"""SSD's matching: thresholds, and one best anchor for every ground truth."""

import pytest
import torch
from torchvision.ops import box_iou

from resobj_d2.matching import AnchorGrid
from resobj_d2.matching.best_anchor_assigner import BestAnchorAssigner
from resobj_d2.structures import GroundTruth, Priors

K = 5


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def assign(anchors, *images, **options):
    truth = GroundTruth.from_lists(
        [b for b, _ in images], [torch.as_tensor(c, dtype=torch.int64) for _, c in images]
    )
    first = anchors if anchors.dim() == 2 else anchors[0]
    priors = Priors(
        boxes=first, anchors_per_level=[len(first)], map_sizes=[(1, len(first))], strides=[1]
    )
    return BestAnchorAssigner(num_classes=K, **options)(priors, anchors, truth)


def test_threshold_and_background():
    """IoU with the box: 1, 2/3, 1/3 and 0."""
    anchors = boxes([0, 0, 10, 10], [2, 0, 12, 10], [5, 0, 15, 10], [50, 50, 60, 60])
    targets = assign(anchors, (boxes([0, 0, 10, 10]), [2]))
    assert targets.labels.tolist() == [[2, 2, K, K]]
    assert torch.equal(targets.matched_gt_boxes[0, 1], torch.tensor([0.0, 0, 10, 10]))
    assert torch.equal(targets.matched_gt_boxes[0, 2:], anchors[2:])


def test_only_the_first_of_equally_good_anchors_is_taken():
    # Both have an IoU of 1/4 with the box, below the threshold.
    anchors = boxes([30, 0, 40, 10], [0, 0, 10, 10], [10, 0, 20, 10])
    targets = assign(anchors, (boxes([6, 0, 14, 10]), [1]))
    assert targets.labels.tolist() == [[K, 1, K]]


def test_best_anchor_goes_to_its_box_even_if_it_overlaps_another_more():
    # The anchor equals box 0, but box 1 has no better one.
    anchors = boxes([0, 0, 10, 10], [0, 0, 10, 9])
    image = (boxes([0, 0, 10, 10], [0, 9.5, 10, 20]), [3, 4])
    targets = assign(anchors, image)
    # Box 1 takes the first anchor; box 0 keeps the second by the threshold.
    assert targets.labels.tolist() == [[4, 3]]
    assert targets.gt_index.tolist() == [[1, 0]]
    assert torch.equal(targets.matched_gt_boxes[0], boxes([0, 9.5, 10, 20], [0, 0, 10, 10]))


def test_the_later_of_two_boxes_with_the_same_best_anchor_wins():
    anchors = boxes([0, 0, 10, 10], [30, 0, 40, 10])
    targets = assign(anchors, (boxes([0, 0, 10, 4], [0, 0, 10, 3], [90, 90, 95, 95]), [1, 2, 3]))
    assert targets.labels.tolist() == [[2, K]]
    assert targets.gt_index[0, 0] == 1


def test_box_without_overlap_or_area_gets_no_anchor():
    anchors = boxes([0, 0, 10, 10], [20, 0, 30, 10])
    targets = assign(anchors, (boxes([100, 100, 110, 110], [3, 3, 3, 8]), [0, 1]))
    assert targets.labels.tolist() == [[K, K]]
    assert torch.equal(targets.matched_gt_boxes[0], anchors)


def test_images_without_boxes():
    anchors = boxes([0, 0, 10, 10], [50, 50, 60, 60])
    targets = assign(anchors, (boxes(), []), (boxes([52, 50, 60, 53]), [3]), (boxes(), []))
    assert targets.labels.tolist() == [[K, K], [K, 3], [K, K]]
    assert targets.gt_index.tolist() == [[-1, -1], [0, 0], [-1, -1]]
    assert assign(anchors, (boxes(), [])).labels.tolist() == [[K, K]]


def by_rule(anchors, gt, classes):
    """The rule, box by box, on the full IoU matrix."""
    ious = box_iou(gt, anchors)
    best, index = ious.max(dim=0)
    index = torch.where(best >= 0.5, index, -1)
    for row, overlaps in enumerate(ious):
        if overlaps.max() > 0:
            index[overlaps.argmax()] = row
    return torch.where(index >= 0, classes[index], K), index


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_rule_on_the_full_matrix(seed):
    g = torch.Generator().manual_seed(seed)
    grid = AnchorGrid(shapes=[[(16, 16), (24, 12)], [(40, 40)]], strides=[8, 16], offset=0.5)
    anchors = grid([(16, 16), (8, 8)]).boxes
    images = []
    for count in (12, 0, 5):
        # Integer coordinates make ties common.
        corner = torch.randint(0, 100, (count, 2), generator=g).float()
        gt = torch.cat((corner, corner + torch.randint(4, 60, (count, 2), generator=g)), 1)
        images.append((gt, torch.randint(K, (count,), generator=g)))
    shared = assign(anchors, *images)
    refined = assign(anchors.expand(3, -1, -1), *images)
    for i in (0, 2):
        labels, index = by_rule(anchors, *images[i])
        assert torch.equal(shared.labels[i], labels)
        owned = index >= 0
        assert owned.sum() >= 4
        assert torch.equal(shared.matched_gt_boxes[i, owned], images[i][0][index[owned]])
    for name in ("labels", "matched_gt_boxes", "matched_ious", "gt_index"):
        assert torch.equal(getattr(shared, name), getattr(refined, name)), name


def test_refined_anchors_differ_per_image():
    anchors = torch.stack(
        (boxes([0, 0, 10, 10], [5, 0, 15, 10]), boxes([50, 0, 60, 9], [0, 0, 4, 3]))
    )
    truth = (boxes([0, 0, 10, 10]), [1])
    assert assign(anchors, truth, truth).labels.tolist() == [[1, K], [K, 1]]
