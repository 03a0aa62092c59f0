"""Owner of each anchor, given at most one anchor per ground truth."""

from __future__ import annotations

import torch
from torch import Tensor

from resobj_d2.structures import GroundTruth

__all__ = ["anchor_owners"]


def anchor_owners(
    anchor_of: Tensor, ground_truth: GroundTruth, num_anchors: int
) -> tuple[Tensor, Tensor]:
    """If several ground truths name the same anchor, the last one owns it.

    Args:
        anchor_of: (sum M_i,) int64, the anchor named by each ground truth; R for none.
        num_anchors: R.

    Returns:
        (N, R) the owner's row within its image, -1 if none, and (N, R) its row among all boxes of
        the batch, one past the last if none.
    """
    owners, rows = [], []
    parts = zip(anchor_of.split(ground_truth.counts), ground_truth.offsets, strict=False)
    for index, first in parts:
        # An extra entry collects the boxes that name none. If rows collide, the largest wins.
        empty = torch.full((num_anchors + 1,), -1, dtype=torch.int64, device=index.device)
        numbers = torch.arange(len(index), device=index.device)
        owner = empty.scatter_reduce(0, index, numbers, "amax")[:-1]
        owners.append(owner)
        # A Python number rather than a tensor, whose copy would make the host wait for the GPU.
        rows.append(torch.where(owner >= 0, owner + first, len(ground_truth.boxes)))
    return torch.stack(owners), torch.stack(rows)
