"""Boxes shared by the tests of soft_nms and matrix_nms."""

import math

import torch

NAN, INF = math.nan, math.inf

# IoU 1/3 between 0 and 1, 3/5 between 0 and 2 and between 1 and 2; 3 does not overlap.
BOXES = [[0.0, 0, 4, 4], [2, 0, 6, 4], [1, 0, 5, 4], [9, 9, 10, 10]]
SCORES = [0.9, 0.8, 0.7, 0.05]

# Accepted by both; the error tests replace one argument.
GOOD = torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, dtype=torch.int64)


def candidates(count, classes, seed, dtype=torch.float64):
    """Boxes around a few centres, with scores that all differ."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": dtype}
    centres, sizes = torch.rand(6, 2, **options) * 60, torch.rand(6, 2, **options) * 40 + 5
    which = torch.randint(6, (count,), generator=generator)
    corner = centres[which] + torch.randn(count, 2, **options) * 4
    size = sizes[which] * torch.exp(torch.randn(count, 2, **options) * 0.2)
    scores = (torch.randperm(count, generator=generator) + 1) / (count + 1)
    ids = torch.randint(classes, (count,), generator=generator)
    return torch.cat((corner, corner + size), dim=1), scores.to(dtype), ids


def plain_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def on(impl, tensors):
    return tuple(tensor.to(impl.device) for tensor in tensors)


def tensors(boxes, scores, ids, dtype=torch.float64):
    return torch.tensor(boxes, dtype=dtype), torch.tensor(scores, dtype=dtype), torch.tensor(ids)
