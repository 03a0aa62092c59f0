import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

from resobj_d2.matching import AnchorGrid, MaxIoUAssigner, octave_anchors
from resobj_d2.structures import GroundTruth, Priors

K = 5


def as_priors(boxes):
    return Priors(
        boxes=boxes, anchors_per_level=[len(boxes)], map_sizes=[(1, len(boxes))], strides=[1]
    )


def assign(assigner, anchors, *images):
    truth = GroundTruth.from_lists([b for b, _ in images], [c for _, c in images])
    return assigner(as_priors(anchors), anchors, truth)


def test_by_hand():
    """Anchors of 10x10 against one 10x10 box: IoU 1, 0.6/1.4, 0.5/1.5 and 0."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [5, 0, 15, 10], [50, 50, 60, 60]])
    gt = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    targets = assign(MaxIoUAssigner(num_classes=K), anchors, (gt, torch.tensor([2])))
    assert targets.labels.tolist() == [[2, -1, K, K]]
    assert targets.binary_labels.tolist() == [[1, -1, 0, 0]]
    torch.testing.assert_close(targets.matched_ious[0], torch.tensor([1, 0.6 / 1.4, 0.5 / 1.5, 0]))
    assert torch.equal(targets.matched_gt_boxes[0], torch.stack((gt[0], *anchors[1:])))


def test_low_quality_matches_include_ties():
    # Both anchors have an IoU of 1/4 with the box, below .4, yet they are its best.
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [30, 0, 40, 10]])
    image = (torch.tensor([[6.0, 0, 14, 10]]), torch.tensor([1]))
    kept = assign(MaxIoUAssigner(num_classes=K), anchors, image)
    assert kept.labels.tolist() == [[1, 1, K]]
    plain = assign(MaxIoUAssigner(num_classes=K, allow_low_quality=False), anchors, image)
    assert plain.labels.tolist() == [[K, K, K]]


def test_ground_truth_outside_every_anchor_gets_no_anchor():
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    outside = (torch.tensor([[100.0, 100, 110, 110]]), torch.tensor([0]))
    targets = assign(MaxIoUAssigner(num_classes=K), anchors, outside)
    assert targets.labels.tolist() == [[K, K]]


def test_zero_area_ground_truth_is_never_matched():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    targets = assign(
        MaxIoUAssigner(num_classes=K), anchors, (torch.tensor([[3.0, 3, 3, 8]]), torch.tensor([0]))
    )
    assert targets.labels.tolist() == [[K]]
    assert torch.equal(targets.matched_gt_boxes[0], anchors)


def test_image_without_boxes_is_background():
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    empty = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    other = (torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([3]))
    targets = assign(MaxIoUAssigner(num_classes=K), anchors, empty, other)
    assert targets.labels.tolist() == [[K], [3]]
    assert targets.gt_index.tolist() == [[-1], [0]]
    assert torch.equal(targets.matched_gt_boxes[0], anchors)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("low_quality", [True, False])
def test_equals_detectron2_matcher(seed, low_quality):
    g = torch.Generator().manual_seed(seed)
    strides = [8, 16, 32]
    shapes = octave_anchors(
        strides=strides, scale=4.0, scales_per_octave=2, aspect_ratios=[0.5, 1.0, 2.0]
    )
    anchors = AnchorGrid(shapes=shapes, strides=strides)([(16, 20), (8, 10), (4, 5)]).boxes
    # Integer coordinates make ties between anchors and between boxes common.
    corner = torch.randint(0, 100, (12, 2), generator=g).float()
    gt = torch.cat((corner, corner + torch.randint(8, 60, (12, 2), generator=g)), 1)
    gt = torch.cat((gt, gt[:2]))  # duplicate boxes
    classes = torch.randint(K, (14,), generator=g)

    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=low_quality)
    index, kind = matcher(pairwise_iou(Boxes(gt), Boxes(anchors)))
    expected = classes[index]
    expected[kind == 0] = K
    expected[kind == -1] = -1

    targets = assign(
        MaxIoUAssigner(num_classes=K, allow_low_quality=low_quality), anchors, (gt, classes)
    )
    assert torch.equal(targets.labels[0], expected)
    foreground = targets.foreground[0]
    assert foreground.any()
    assert torch.equal(targets.gt_index[0], index)
    assert torch.equal(targets.matched_gt_boxes[0, foreground], gt[index[foreground]])


def test_refined_anchors_differ_per_image():
    anchors = torch.tensor([[[0.0, 0, 10, 10]], [[50.0, 50, 60, 60]]])
    gt = (torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([1]))
    truth = GroundTruth.from_lists([gt[0], gt[0]], [gt[1], gt[1]])
    targets = MaxIoUAssigner(num_classes=K)(as_priors(anchors[0]), anchors, truth)
    assert targets.labels.tolist() == [[1], [K]]


def test_batch_of_refined_anchors_equals_its_images_one_by_one():
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(3, 40, 2, generator=g) * 50
    anchors = torch.cat((corner, corner + 5 + torch.rand(3, 40, 2, generator=g) * 30), dim=-1)
    images = [(anchors[i, : 4 * i] + 1, torch.arange(4 * i) % K) for i in (2, 0, 1)]
    truth = GroundTruth.from_lists([b for b, _ in images], [c for _, c in images])
    assigner = MaxIoUAssigner(num_classes=K)
    batch = assigner(as_priors(anchors[0]), anchors, truth)
    assert batch.foreground.any(dim=1).tolist() == [True, False, True]
    for i, image in enumerate(images):
        alone = assign(assigner, anchors[i], image)
        for name in ("labels", "matched_gt_boxes", "matched_ious", "gt_index"):
            assert torch.equal(getattr(batch, name)[i], getattr(alone, name)[0]), name


@pytest.mark.parametrize(
    "options",
    [
        {"iou_thresholds": [0.5, 0.4]},
        {"iou_thresholds": []},
        {"iou_thresholds": [0.0, 0.5]},
        {"iou_labels": [0, 1]},
        {"iou_labels": [0, 2, 1]},
        {"iou_labels": [1, 0, 1]},
    ],
)
def test_impossible_thresholds_are_refused(options):
    with pytest.raises(ValueError, match="IOU_"):
        MaxIoUAssigner(num_classes=K, **options)
