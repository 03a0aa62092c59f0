"""What the cases accept as the same result."""

import pytest
import torch

from benchmarks.cases import losses


def test_a_focal_gradient_that_is_wrong_where_it_is_small_is_found():
    logits, labels = losses.make_focal(500)(torch.device("cpu"), 0)
    ours, peer = (bind(logits, labels)() for bind in (losses.ours_focal, losses.torchvision_focal))
    losses.verify(ours, peer)
    loss, gradient = ours
    without_small = torch.where(gradient.abs() < 1e-5, 0.0, gradient)
    assert (without_small == 0).float().mean() > 0.4
    with pytest.raises(AssertionError, match="not close"):
        losses.verify((loss, without_small), peer)
