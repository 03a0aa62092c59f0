"""k-means of box shapes, as for YOLO's priors."""

from __future__ import annotations

import numpy as np

__all__ = ["cluster_shapes", "shape_ious"]

_ROUNDS = 100
_STARTS = 5


def shape_ious(sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, k) IoU of boxes with one common centre.

    Args:
        sizes: (N, 2) width and height.
        centres: (k, 2) the same.
    """
    shared = np.minimum(sizes[:, None], centres).prod(axis=2)
    return shared / (sizes.prod(axis=1)[:, None] + centres.prod(axis=1) - shared)


def cluster_shapes(
    sizes: np.ndarray, number: int, *, weights: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """(k, 2) widths and heights, ascending by area, with a high mean best IoU with the sizes.

    k-means with the distance 1 - IoU (Redmon and Farhadi, "YOLO9000", section 2), whose centres
    are means; started several times with k-means++.

    Args:
        sizes: (N, 2) positive widths and heights.
        number: k; fewer are returned where there are fewer different sizes.
        weights: (N,) how much each counts; None for all the same.
        seed: of the random starts.
    """
    different = np.unique(sizes, axis=0)
    if len(different) <= number:
        return different[np.argsort(different.prod(axis=1), kind="stable")]
    random = np.random.default_rng(seed)
    weights = np.ones(len(sizes)) if weights is None else weights
    runs = [_run(sizes, weights, _start(different, number, random)) for _ in range(_STARTS)]
    centres, _ = max(runs, key=lambda run: run[1])
    return centres[np.argsort(centres.prod(axis=1), kind="stable")]


def _start(sizes: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    chosen = [int(random.integers(len(sizes)))]
    distance = 1 - shape_ious(sizes, sizes[chosen])[:, 0]
    while len(chosen) < number:
        weights = np.maximum(distance, 0) ** 2
        chosen.append(int(random.choice(len(sizes), p=weights / weights.sum())))
        distance = np.minimum(distance, 1 - shape_ious(sizes, sizes[chosen[-1:]])[:, 0])
    return sizes[chosen]


def _run(sizes: np.ndarray, weights: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Centres and weighted mean best IoU."""
    owners = None
    for _ in range(_ROUNDS):
        ious = shape_ious(sizes, centres)
        nearest = ious.argmax(axis=1)
        if owners is not None and (nearest == owners).all():
            break
        owners = nearest
        count = np.bincount(owners, weights, minlength=len(centres))
        sums = [np.bincount(owners, weights * sizes[:, axis], len(centres)) for axis in (0, 1)]
        used = count > 0  # a centre that lost all of its boxes stays where it is
        centres = centres.copy()
        centres[used] = np.stack(sums, axis=1)[used] / count[used, None]
    return centres, float(np.average(shape_ious(sizes, centres).max(axis=1), weights=weights))
