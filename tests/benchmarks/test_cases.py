"""Which differences the cases tolerate."""

import pytest
import torch

from benchmarks.cases import losses


def test_a_wrong_small_focal_gradient_is_detected():
    logits, labels = losses.make_focal(500)(torch.device("cpu"), 0)
    ours, peer = (bind(logits, labels)() for bind in (losses.ours_focal, losses.torchvision_focal))
    losses.verify(ours, peer)
    loss, gradient = ours
    without_small = torch.where(gradient.abs() < 1e-5, 0.0, gradient)
    assert (without_small == 0).float().mean() > 0.4
    with pytest.raises(AssertionError, match="not close"):
        losses.verify((loss, without_small), peer)
