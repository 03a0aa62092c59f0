"""PAA's split of losses against expectation maximisation in numpy, and its assignment."""

import math

import numpy as np
import pytest
import torch

from resobj_d2.matching import OctaveAnchors, PAAAssigner
from resobj_d2.matching.paa_assigner import EM_STEPS, low_component
from resobj_d2.structures import GroundTruth, LevelMaps, StagePrediction

K = 2


def gaussians_in_numpy(values):
    """Which of a list are in the lower of two Gaussians, up to the likeliest; one at a time."""
    x = np.sort(np.array(values, dtype=np.float64))
    means, variances, weights = np.array([x[0], x[-1]]), np.ones(2), np.full(2, 0.5)

    def density(value):
        gauss = np.exp(-((value - means) ** 2) / (2 * variances))
        return weights * gauss / np.sqrt(2 * math.pi * variances)

    for _ in range(EM_STEPS):
        share = np.array([density(v) / density(v).sum() for v in x])
        total = share.sum(axis=0)
        means = (share * x[:, None]).sum(axis=0) / total
        variances = (share * (x[:, None] - means) ** 2).sum(axis=0) / total + 1e-6
        weights = total / len(x)
    low = [v for v in x if density(v)[0] >= density(v)[1]]
    limit = max(low, key=lambda v: density(v).sum())
    return sorted(v for v in low if v <= limit)


def test_the_lower_component_by_hand():
    losses = torch.tensor([[2.1, 0.2, 2.0, 0.1, 2.2, 0.3]]).T
    assert low_component(losses)[:, 0].tolist() == [False, True, False, True, False, False]


@pytest.mark.parametrize("seed", range(4))
def test_the_lower_component_equals_numpys(seed):
    g = np.random.default_rng(seed)
    columns = [
        np.concatenate((g.normal(0.5, 0.2, 7), g.normal(2.0, 0.5, 12))),
        np.concatenate((g.normal(1.0, 0.1, 3), g.normal(1.5, 0.1, 5))),
    ]
    losses = torch.full((25, 3), torch.inf)
    for i, column in enumerate(columns):
        order = g.permutation(25)[: len(column)]
        losses[order, i] = torch.tensor(column, dtype=torch.float32)
    chosen = low_component(losses)
    assert not chosen[:, 2].any()  # nothing is there
    for i, column in enumerate(columns):
        found = sorted(losses[chosen[:, i], i].tolist())
        assert found == pytest.approx(gaussians_in_numpy(column), rel=1e-5)


def test_a_single_candidate_is_trained():
    losses = torch.tensor([[torch.inf], [0.7], [torch.inf]])
    assert low_component(losses)[:, 0].tolist() == [False, True, False]


def test_assignment():
    """Nine anchors overlap the object; those that predict it well are trained."""
    grid = OctaveAnchors(
        strides=[8], scale=4.0, scales_per_octave=1, aspect_ratios=[1.0], offset=0.5
    )
    priors = grid([(8, 8)])
    box = torch.tensor([[20.0, 20.0, 44.0, 44.0]])
    centre = [row * 8 + column for row in (3, 4) for column in (3, 4)]
    boxes = priors.boxes.clone()
    boxes[centre] = box + 0.5
    logits = torch.full((1, K, 8, 8), -3.0)
    for row in centre:
        logits[0, 1, row // 8, row % 8] = 2.0
    prediction = StagePrediction(
        anchors=priors.boxes,
        cls=LevelMaps([logits.repeat(2, 1, 1, 1)], K),
        box=None,
        boxes=boxes[None].repeat(2, 1, 1),
    )
    truth = GroundTruth.from_lists([box, torch.zeros(0, 4)], [torch.tensor([1]), torch.zeros(0)])
    targets = PAAAssigner(num_classes=K)(priors, priors.boxes, truth, prediction)
    found = torch.nonzero(targets.labels[0] == 1).flatten().tolist()
    assert found and set(found) <= set(centre)
    assert (targets.labels[0] == K).sum() == 64 - len(found)
    assert (targets.labels[1] == K).all()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="CANDIDATE_IOU"):
        PAAAssigner(num_classes=K, candidate_iou=0.0)
