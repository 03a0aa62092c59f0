"""What holds for every label assignment."""

from dataclasses import fields

import pytest
import torch

from resobj_d2.matching import ASSIGNER_REGISTRY, OctaveAnchors
from resobj_d2.structures import GroundTruth, LevelMaps, StagePrediction

K = 3


@pytest.mark.parametrize("name", sorted(name for name, _ in ASSIGNER_REGISTRY))
def test_targets_carry_no_gradient(name):
    grids = [(4, 4), (2, 2)]
    grid = OctaveAnchors(strides=[8, 16], scales_per_octave=1, aspect_ratios=[1.0], offset=0.5)
    priors = grid(grids)
    anchors = priors.boxes.clone().requires_grad_()
    prediction = StagePrediction(
        anchors=anchors,
        cls=LevelMaps([torch.zeros(1, K, *size, requires_grad=True) for size in grids], K),
        box=None,
        boxes=(anchors + 1)[None],
    )
    truth = GroundTruth.from_lists([torch.tensor([[0.0, 0.0, 30.0, 28.0]])], [torch.tensor([1])])
    targets = ASSIGNER_REGISTRY.get(name)(num_classes=K)(priors, anchors, truth, prediction)
    assert targets.foreground.any()
    tensors = [getattr(targets, field.name) for field in fields(targets)]
    assert not any(torch.is_tensor(x) and x.requires_grad for x in tensors)
