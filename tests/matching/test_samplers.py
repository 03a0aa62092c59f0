"""Which anchors each sampler keeps."""

import pytest
import torch
from torchvision.ops import nms

from resobj_d2.matching import (
    HardExampleSampler,
    HardNegativeRatio,
    IoUBalancedSampler,
    KeepAll,
    OHEMSampler,
    RandomSampler,
    background_range,
)
from resobj_d2.structures import Targets

K = 2


def make_targets(labels, ious=None, background_ious=None):
    labels = torch.as_tensor(labels)
    shape = labels.shape
    return Targets(
        labels=labels,
        matched_gt_boxes=torch.zeros(*shape, 4),
        matched_ious=torch.zeros(shape) if ious is None else torch.as_tensor(ious),
        gt_index=torch.zeros(shape, dtype=torch.int64),
        num_classes=K,
        background_ious=background_ious,
    )


def boxes_apart(count):
    """(R, 4) boxes without any overlap."""
    x = 10.0 * torch.arange(count)
    return torch.stack((x, torch.zeros(count), x + 5, torch.full((count,), 5.0)), dim=1)


def rows(mask):
    return [torch.nonzero(x).flatten().tolist() for x in mask]


def random_labels(images=3, anchors=400, foreground=0.1, seed=0):
    torch.manual_seed(seed)
    draw = torch.rand(images, anchors)
    labels = torch.where(draw < foreground, 1, K)
    return torch.where(draw > 0.9, -1, labels)


def test_keep_all_keeps_every_labelled_anchor():
    targets = make_targets([[0, -1, K, 1]])
    assert rows(KeepAll()(targets, anchors=boxes_apart(4))) == [[0, 2, 3]]


def test_random_sampler_counts():
    labels = random_labels()
    labels[1] = torch.where(labels[1] == 1, K, labels[1])  # an image without foreground
    labels[2, 3:] = torch.where(labels[2, 3:] == K, -1, labels[2, 3:])  # very little background
    targets = make_targets(labels)
    sampler = RandomSampler(size=40, positive_fraction=0.25)
    mask = sampler(targets, anchors=boxes_apart(400))
    assert not (mask & ~targets.valid).any()
    found = (mask & targets.foreground).sum(1).tolist(), (mask & targets.background).sum(1).tolist()
    few = targets.background[2].sum().item()
    assert found == ([10, 0, 10], [30, 40, few]) and few < 30


def test_random_sampler_is_uniform_and_follows_the_seed():
    targets = make_targets([[K] * 20])
    sampler = RandomSampler(size=5)
    torch.manual_seed(3)
    first = sampler(targets, anchors=boxes_apart(20))
    torch.manual_seed(3)
    assert torch.equal(sampler(targets, anchors=boxes_apart(20)), first)
    hits = sum(sampler(targets, anchors=boxes_apart(20)).float() for _ in range(800))
    # 200 hits are expected of each; 5 standard deviations are 61.
    assert (hits - 200).abs().max() < 61


def test_iou_balanced_sampler_by_hand():
    """Bins [0, .1), [.1, .2), [.2, .3): 60, 3 and 20 negatives; 8 of each, 5 more from the rest."""
    ious = torch.tensor([[0.05] * 60 + [0.15] * 3 + [0.25] * 20 + [0.9]])
    labels = torch.tensor([[K] * 83 + [0]])
    sampler = IoUBalancedSampler(size=25, positive_fraction=0.5, num_bins=3)
    for seed in range(5):
        torch.manual_seed(seed)
        mask = sampler(make_targets(labels, ious, (0.0, 0.3)), anchors=boxes_apart(84))[0]
        low, middle, high = mask[:60].sum(), mask[60:63].sum(), mask[63:83].sum()
        assert mask[83] and middle == 3 and low >= 8 and high >= 8 and low + middle + high == 24


def test_iou_balanced_sampler_takes_all_if_there_are_few():
    targets = make_targets([[K, K, -1, K, 0]], [[0.0, 0.39, 0.1, 0.2, 0.8]], (0.0, 0.4))
    mask = IoUBalancedSampler(size=64)(targets, anchors=boxes_apart(5))
    assert rows(mask) == [[0, 1, 3, 4]]


def test_background_above_the_bins_counts_in_the_last_one():
    """10 of 20 from each bin; the last one has nothing but 10 anchors beyond its end."""
    # A low-quality match of the first stage may become background of the second above its range.
    ious = torch.tensor([[0.1] * 100 + [0.9] * 10])
    sampler = IoUBalancedSampler(size=20, num_bins=2)
    mask = sampler(make_targets([[K] * 110], ious, (0.0, 0.4)), anchors=boxes_apart(110))[0]
    assert mask[100:].all() and mask[:100].sum() == 10


def test_bins_start_where_background_does():
    """Fast R-CNN's background, [.1, .5): 60, 3 and 20 negatives in its thirds, 8 of each wanted."""
    ious = torch.tensor([[0.12] * 60 + [0.3] * 3 + [0.45] * 20])
    targets = make_targets([[K] * 83], ious, (0.1, 0.5))
    sampler = IoUBalancedSampler(size=24, num_bins=3)
    for seed in range(5):
        torch.manual_seed(seed)
        mask = sampler(targets, anchors=boxes_apart(83))[0]
        assert mask[60:63].all() and mask.sum() == 24
        assert mask[:60].sum() >= 8 and mask[63:].sum() >= 8


def test_targets_without_a_range_of_background_are_refused():
    with pytest.raises(ValueError, match="needs targets with background_ious"):
        IoUBalancedSampler()(make_targets([[K]]), anchors=boxes_apart(1))


@pytest.mark.parametrize(
    "thresholds, labels, expected",
    [
        ([0.4, 0.5], [0, -1, 1], (0.0, 0.4)),
        ([0.1, 0.5], [-1, 0, 1], (0.1, 0.5)),
        ([0.3, 0.7], [0, 0, 1], (0.0, 0.7)),
        ([0.5], [0, 0], (0.0, 1.0)),
        ([0.5], [-1, 1], None),
    ],
)
def test_range_of_background(thresholds, labels, expected):
    assert background_range(thresholds, labels) == expected


def test_hard_negative_ratio_by_hand():
    labels = [[0, K, K, K, K, K, -1], [K, K, K, K, K, K, K], [1, 0, K, K, -1, -1, -1]]
    difficulty = torch.tensor([[0.0, 5, 1, 4, 2, 3, 9]] * 3)
    mask = HardNegativeRatio(negative_ratio=3.0)(
        make_targets(labels), anchors=boxes_apart(7), difficulty=difficulty
    )
    assert rows(mask) == [[0, 1, 3, 5], [], [0, 1, 2, 3]]


def test_ohem_ranks_by_loss_after_nms():
    anchors = torch.tensor(
        [[0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [70, 0, 80, 10], [90, 0, 99, 10]]
    ).float()  # the first two overlap by 9 / 11
    targets = make_targets([[K, K, 0, K, -1], [K, K, 0, K, K]])
    difficulty = torch.tensor([[2.0, 3.0, 1.0, 0.5, 9.0], [2.0, 1.0, 0.1, 0.2, 0.3]])
    mask = OHEMSampler(size=3, nms_thresh=0.5)(targets, anchors=anchors, difficulty=difficulty)
    assert rows(mask) == [[1, 2, 3], [0, 3, 4]]
    loose = OHEMSampler(size=3, nms_thresh=0.9)(targets, anchors=anchors, difficulty=difficulty)
    assert rows(loose)[0] == [0, 1, 2]


@pytest.mark.parametrize("size, thresh", [(16, 0.5), (16, 0.7), (1000, 0.5)])
def test_ohem_equals_a_loop_over_torchvisions_nms(size, thresh):
    torch.manual_seed(1)
    corner = 100 * torch.rand(300, 2)
    anchors = torch.cat((corner, corner + 10 + 40 * torch.rand(300, 2)), dim=1)
    labels = random_labels(images=2, anchors=300)
    difficulty = torch.rand(2, 300)
    sampler = OHEMSampler(size=size, nms_thresh=thresh)
    mask = sampler(make_targets(labels), anchors=anchors, difficulty=difficulty)
    for i in range(2):
        valid = torch.nonzero(labels[i] != -1).flatten()
        keep = nms(anchors[valid], difficulty[i, valid], thresh)[:size]
        assert rows(mask)[i] == sorted(valid[keep].tolist())


@pytest.mark.parametrize("positives, negatives", [(0, 0), (1, 3), (2, 6), (3, 9), (4, 9)])
def test_ohem_one_to_three_follows_the_number_of_positives(positives, negatives):
    """Size 12 has room for 3 and 9; with fewer positives, their number decides."""
    labels = [[1] * positives + [K] * 20]
    difficulty = torch.arange(positives + 20.0)[None]
    anchors = boxes_apart(positives + 20)
    sampler = OHEMSampler(size=12, nms_thresh=0.5, positive_fraction=0.25)
    targets = make_targets(labels)
    (kept,) = rows(sampler(targets, anchors=anchors, difficulty=difficulty))
    hardest = list(range(positives + 20))[positives + 20 - negatives :]
    assert kept == [*range(max(0, positives - 3), positives), *hardest]


def test_ohem_one_to_three_counts_positives_after_nms():
    labels, anchors = [[1, 1] + [K] * 9], boxes_apart(11)
    anchors[1] = anchors[0] + 0.1  # the same object twice: one of them remains
    sampler = OHEMSampler(size=12, nms_thresh=0.5, positive_fraction=0.25)
    mask = sampler(make_targets(labels), anchors=anchors, difficulty=torch.arange(11.0)[None])
    assert rows(mask) == [[1, 8, 9, 10]]


def test_ohem_one_to_three_of_a_size_below_four_has_room_for_one_positive():
    targets = make_targets([[1, 1, K, K, K, K]])
    sampler = OHEMSampler(size=3, positive_fraction=0.25)
    mask = sampler(targets, anchors=boxes_apart(6), difficulty=torch.arange(6.0)[None])
    assert rows(mask) == [[1, 4, 5]]


def test_ohem_uses_each_images_refined_anchors():
    shared = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10]]).float()
    anchors = torch.stack((shared, boxes_apart(2)))
    targets = make_targets([[K, K], [K, K]])
    mask = OHEMSampler(size=2)(targets, anchors=anchors, difficulty=torch.ones(2, 2))
    assert rows(mask) == [[0], [0, 1]]


@pytest.mark.parametrize(
    "sampler",
    [
        HardExampleSampler(),
        HardNegativeRatio(),
        IoUBalancedSampler(),
        OHEMSampler(),
        RandomSampler(),
        RandomSampler(instance_balanced=True),
    ],
)
def test_without_labels_nothing_is_sampled(sampler):
    targets = make_targets([[-1] * 6], background_ious=(0.0, 0.4))
    mask = sampler(targets, anchors=boxes_apart(6), difficulty=torch.ones(1, 6))
    assert mask.dtype == torch.bool and mask.shape == (1, 6) and not mask.any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RandomSampler(size=0), "SIZE"),
        (lambda: OHEMSampler(size=0), "SIZE"),
        (lambda: RandomSampler(positive_fraction=1.5), "POSITIVE_FRACTION"),
        (lambda: IoUBalancedSampler(num_bins=0), "NUM_BINS"),
        (lambda: HardNegativeRatio(negative_ratio=0.0), "NEGATIVE_RATIO"),
        (lambda: OHEMSampler(nms_thresh=1.5), "NMS_THRESH"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def with_objects(labels, objects):
    targets = make_targets(labels, background_ious=(0.0, 0.4))
    targets.gt_index = torch.as_tensor(objects)
    return targets


@pytest.mark.parametrize("kind", [RandomSampler, IoUBalancedSampler])
def test_instance_balanced_foreground_by_hand(kind):
    """50 anchors on object 0, 3 on object 1, 7 on object 2, for 12 places: at most 5 of each."""
    objects = [[2] * 7 + [0] * 50 + [1] * 3 + [0] * 20]
    labels = [[1] * 60 + [K] * 20]
    sampler = kind(size=24, positive_fraction=0.5, instance_balanced=True)
    for seed in range(10):
        torch.manual_seed(seed)
        mask = sampler(with_objects(labels, objects), anchors=boxes_apart(80))[0]
        counts = mask[7:57].sum().item(), mask[57:60].sum().item(), mask[:7].sum().item()
        # 5 + 3 + 5 are within their objects' share, which is one too many.
        assert sum(counts) == 12 and mask[60:].sum() == 12
        assert counts[0] in (4, 5) and counts[1] in (2, 3) and counts[2] in (4, 5)


def test_instance_balanced_foreground_fills_the_quota_and_follows_the_seed():
    """30 anchors on object 0, 1 on object 1: object 0's share is 6, and 3 more fill the quota."""
    targets = with_objects([[0] * 31], [[0] * 30 + [1]])
    sampler = RandomSampler(size=10, positive_fraction=1.0, instance_balanced=True)
    torch.manual_seed(3)
    first = sampler(targets, anchors=boxes_apart(31))
    assert first[0, 30] and first.sum() == 10
    torch.manual_seed(3)
    assert torch.equal(sampler(targets, anchors=boxes_apart(31)), first)
    few = with_objects([[0, K, -1, 1]], [[0, 0, 0, 1]])
    assert rows(sampler(few, anchors=boxes_apart(4))) == [[0, 1, 3]]


def test_share_of_an_object_is_rounded():
    """11 places for 4 objects are 2.75, thus 3, and one more: 4, 4, 4 and 1 compete for them."""
    targets = with_objects([[0] * 61], [[0] * 20 + [1] * 20 + [2] * 20 + [3]])
    sampler = RandomSampler(size=11, positive_fraction=1.0, instance_balanced=True)
    counts = set()
    for seed in range(50):
        torch.manual_seed(seed)
        mask = sampler(targets, anchors=boxes_apart(61))[0]
        assert mask.sum() == 11
        counts |= set(mask[:60].view(3, 20).sum(dim=1).tolist())
    assert counts == {2, 3, 4}


def test_instance_balanced_choice_within_an_object_is_uniform():
    targets = with_objects([[0] * 8 + [1] * 2], [[0] * 8 + [1] * 2])
    sampler = RandomSampler(size=4, positive_fraction=1.0, instance_balanced=True)
    torch.manual_seed(0)
    hits = sum(sampler(targets, anchors=boxes_apart(10))[0].float() for _ in range(1500))
    # 3 of 8 and 2 of 2 are within their share; 4 of these 5 are chosen: .3 and .8.
    expected = torch.tensor([0.3] * 8 + [0.8] * 2) * 1500
    assert (hits - expected).abs().max() < 5 * (1500 * 0.25) ** 0.5


def test_hard_examples_by_hand():
    labels = [[0, 1, 0, K, K, K, K, K, -1], [K] * 9, [0] * 9]
    difficulty = torch.tensor([[1.0, 3, 2, 1, 5, 3, 4, 2, 9]] * 3)
    sampler = HardExampleSampler(size=4, positive_fraction=0.5)
    mask = sampler(make_targets(labels), anchors=boxes_apart(9), difficulty=difficulty)
    assert rows(mask) == [[1, 2, 4, 6], [4, 5, 6, 8], [4, 8]]
