"""Reproducible inputs: real anchors, with ground truth and scores from a seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resobj_d2.matching import DeltaCoder, OctaveAnchors

STRIDES = (8, 16, 32, 64, 128)
# (height, width) of a padded COCO image at RetinaNet's default size, and its number of anchors.
IMAGE = (800, 1344)
NUM_ANCHORS = 201_600
# An image with about 1.2 million anchors.
LARGE_IMAGE = (2000, 3200)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def map_sizes(image: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of P3 to P7."""
    return [(math.ceil(image[0] / s), math.ceil(image[1] / s)) for s in STRIDES]


def anchors(image: tuple[int, int] = IMAGE) -> Tensor:
    """(R, 4): nine per cell on P3 to P7, as from Detectron2's generator."""
    return OctaveAnchors(strides=STRIDES)(map_sizes(image)).boxes


def gt_boxes(count: int, seed: int, image: tuple[int, int] = IMAGE) -> Tensor:
    """(count, 4) inside the image, width and height log-uniform from 8 to 400 pixels."""
    g = generator(seed)
    height, width = image
    size = 8 * (400 / 8) ** torch.rand(count, 2, generator=g)
    corner = torch.rand(count, 2, generator=g) * (torch.tensor([width, height]) - size)
    return torch.cat((corner, corner + size), dim=1)


def deltas(count: int, seed: int) -> Tensor:
    """(count, 4), as large as the predictions of a half-trained box head."""
    return 0.1 * torch.randn(count, 4, generator=generator(seed))


def refined(base: Tensor, seed: int) -> Tensor:
    """Anchors moved slightly, as the second stage of a cascade sees them."""
    return DeltaCoder().decode(base, deltas(len(base), seed))


def objectness_labels(images: int, count: int, seed: int) -> Tensor:
    """(images, count) int8: 0.1 % foreground, 0.2 % ignored, else background."""
    chance = torch.rand(images, count, generator=generator(seed))
    return (chance < 0.001).to(torch.int8) - ((chance >= 0.001) & (chance < 0.003)).to(torch.int8)


def class_labels(count: int, num_classes: int, seed: int) -> Tensor:
    """(count,) int64: 0.1 % with a class, 0.2 % ignored (-1), else background (num_classes)."""
    g = generator(seed)
    chance = torch.rand(count, generator=g)
    labels = torch.randint(num_classes, (count,), generator=g)
    labels = torch.where(chance < 0.001, labels, num_classes)
    return torch.where((chance >= 0.001) & (chance < 0.003), -1, labels)


def box_pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two (count, 4): predictions that overlap their targets by about two thirds."""
    target = gt_boxes(count, seed)
    return refined(target, seed + 1), target
