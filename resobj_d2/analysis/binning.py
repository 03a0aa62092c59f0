"""Equally wide bins from 0 to 1."""

from __future__ import annotations

import numpy as np

__all__ = ["bin_of"]


def bin_of(values: np.ndarray, bins: int) -> np.ndarray:
    """(n,) the bin of each value, from 0; one on a border belongs to the higher bin.

    Bin i begins at i / bins as numbers of the values' type have it: 0.29 times 100 is less than 29.

    Args:
        values: (n,) floats; what is outside of 0..1 belongs to the first or last bin.
        bins: their number.

    Raises:
        ValueError: a value is NaN.
    """
    if np.isnan(values).any():
        raise ValueError(
            "there are NaN among the values to sort into bins: has the model diverged?"
        )
    begins = (np.arange(bins) / bins).astype(values.dtype)
    return (np.searchsorted(begins, values, side="right") - 1).clip(0)
