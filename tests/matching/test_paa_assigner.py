"""PAA's split of losses against expectation maximisation in numpy, and its assignment."""

import math

import numpy as np
import pytest
import torch

from resobj_d2.matching import OctaveAnchors, PAAAssigner
from resobj_d2.matching.paa_assigner import low_component
from resobj_d2.structures import GroundTruth, LevelMaps, StagePrediction

K = 2


def gaussians_in_numpy(values):
    """Which of a list are in the lower of two Gaussians, up to the likeliest; one at a time."""
    x = np.sort(np.array(values, dtype=np.float64))
    means, variances, weights = np.array([x[0], x[-1]]), np.ones(2), np.full(2, 0.5)

    def density(value):
        gauss = np.exp(-((value - means) ** 2) / (2 * variances))
        return weights * gauss / np.sqrt(2 * math.pi * variances)

    fit = -math.inf
    for _ in range(100):
        earlier, fit = fit, np.mean([math.log(density(v).sum()) for v in x])
        share = np.array([density(v) / density(v).sum() for v in x])
        total = share.sum(axis=0)
        means = (share * x[:, None]).sum(axis=0) / total
        variances = (share * (x[:, None] - means) ** 2).sum(axis=0) / total + 1e-6
        weights = total / len(x)
        if abs(fit - earlier) < 1e-3:
            break
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


@pytest.mark.parametrize(
    "losses, count",
    [
        ([1.06, 1.3, 1.55, 1.7, 1.85, 2.01, 2.38], 4),
        ([0.65, 1.47, 2.21, 2.27, 3.28], 2),
        ([0.56, 0.68, 0.69, 1.42, 1.43, 1.51, 2.36, 2.96, 3.15], 3),
    ],
)
def test_as_many_are_lower_as_scikit_learn_finds(losses, count):
    """The authors' ``GaussianMixture(2, weights_init, means_init, precisions_init)``, version 1.9.

    It stops where the likelihood hardly changes; more steps would find 3, 1 and 4.
    """
    chosen = low_component(torch.tensor(losses)[:, None])[:, 0]
    assert chosen.tolist() == [i < count for i in range(len(losses))]


def test_two_candidates_alone_in_the_lower_gaussian_are_equally_likely():
    losses = torch.tensor([[1.01, 4.0, 1.15, 4.1, 4.2, 4.3]]).T
    assert low_component(losses)[:, 0].tolist() == [True, False, True, False, False, False]


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
