"""Which ground truth an anchor belongs to, where each ground truth names at most one anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from resobj_d2.structures import GroundTruth

__all__ = ["anchor_owners"]


def anchor_owners(
    anchor_of: Tensor, ground_truth: GroundTruth, num_anchors: int
) -> tuple[Tensor, Tensor]:
    """Of ground truths that name the same anchor the last one has it.

    Args:
        anchor_of: (sum M_i,) int64, the anchor that each ground truth names; R for none.
        num_anchors: R.

    Returns:
        (N, R) the owner's row within its image, -1 for an anchor without one, and (N, R) its row
        among all boxes of the batch, one past the last for an anchor without one.
    """
    owners, rows = [], []
    parts = zip(anchor_of.split(ground_truth.counts), ground_truth.offsets, strict=False)
    for index, first in parts:
        # One more entry takes those that name none. Of several rows the largest stays.
        empty = torch.full((num_anchors + 1,), -1, dtype=torch.int64, device=index.device)
        numbers = torch.arange(len(index), device=index.device)
        owner = empty.scatter_reduce(0, index, numbers, "amax")[:-1]
        owners.append(owner)
        # A Python number, not a tensor of it: that copy would make a GPU's host wait.
        rows.append(torch.where(owner >= 0, owner + first, len(ground_truth.boxes)))
    return torch.stack(owners), torch.stack(rows)
