"""Surface patterns of the generated scenes: a scalar pattern in [0, 1] blends two colours."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image


def _rotated_grid(height: int, width: int, rng: np.random.Generator) -> tuple:
    """Pixel coordinates (height, width) in a randomly turned and shifted frame."""
    angle = rng.uniform(0.0, math.pi)
    y, x = np.ogrid[:height, :width]
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    across = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
    return along + np.float32(rng.uniform(0, 50)), across + np.float32(rng.uniform(0, 50))


def _period(height: int, width: int, rng: np.random.Generator) -> float:
    """Length of one repeat in pixels: at least 3, so that it survives on the pixel grid."""
    return max(3.0, rng.uniform(0.12, 0.5) * min(height, width, 60))


def flat(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    return np.zeros((height, width), dtype=np.float32)


def stripes(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    along, _ = _rotated_grid(height, width, rng)
    duty = rng.uniform(0.3, 0.7)
    return ((along / _period(height, width, rng)) % 1.0 < duty).astype(np.float32)


def waves(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    along, across = _rotated_grid(height, width, rng)
    period = 1.5 * _period(height, width, rng)
    bend = np.sin(across * np.float32(2 * math.pi / (2.5 * period)))
    return 0.5 + 0.5 * np.sin(along * np.float32(2 * math.pi / period) + 1.5 * bend)


def checks(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    along, across = _rotated_grid(height, width, rng)
    period = _period(height, width, rng)
    return ((np.floor(along / period) + np.floor(across / period)) % 2.0).astype(np.float32)


def dots(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    along, across = _rotated_grid(height, width, rng)
    period = 1.4 * _period(height, width, rng)
    dx, dy = (along / period) % 1.0 - 0.5, (across / period) % 1.0 - 0.5
    return (dx * dx + dy * dy < rng.uniform(0.06, 0.14)).astype(np.float32)


def gradient(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    along, _ = _rotated_grid(height, width, rng)
    low, high = along.min(), along.max()
    return ((along - low) / max(float(high - low), 1.0)).astype(np.float32)


def noise(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random clouds: coarse random values, enlarged."""
    cell = max(3.0, _period(height, width, rng))
    coarse_shape = (int(height / cell) + 2, int(width / cell) + 2)
    coarse = Image.fromarray(rng.integers(0, 256, size=coarse_shape, dtype=np.uint8))
    fine = coarse.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float32) / 255.0


PATTERNS = (stripes, waves, checks, dots, gradient, noise)


def random_texture(
    height: int, width: int, first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Plain or patterned, from colour ``first`` (3,) to ``second`` (3,), RGB in 0..255.

    Returns:
        float32 (height, width, 3).
    """
    plain = rng.random() < 0.35
    pattern = (flat if plain else PATTERNS[int(rng.integers(len(PATTERNS)))])(height, width, rng)
    return first + pattern[..., None].astype(np.float32) * (second - first)
