"""Outlines of the object classes and of the distractors of the generated scenes, and their masks.

An outline is a list of ``(points, fill)``: ``points`` is a float array (P, 2) of xy coordinates in
a frame where the shape's circumscribed circle has radius about 1, ``fill`` is 1 for solid and 0 for
a hole. Later entries are drawn over earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Outline = list[tuple[np.ndarray, int]]


def _circle(
    radius: float, centre: tuple[float, float] = (0.0, 0.0), points: int = 36
) -> np.ndarray:
    angle = np.linspace(0.0, 2.0 * math.pi, points, endpoint=False)
    return np.stack(
        (centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)), axis=1
    )


def _spokes(radii: np.ndarray) -> np.ndarray:
    """Polygon whose corners lie at evenly spaced angles, at the given radii (P,)."""
    angle = np.linspace(0.0, 2.0 * math.pi, len(radii), endpoint=False) - math.pi / 2
    return np.stack((radii * np.cos(angle), radii * np.sin(angle)), axis=1)


def _disc(rng: np.random.Generator) -> Outline:
    return [(_circle(0.9), 1)]


def _ring(rng: np.random.Generator) -> Outline:
    return [(_circle(0.9), 1), (_circle(rng.uniform(0.4, 0.62)), 0)]


def _square(rng: np.random.Generator) -> Outline:
    return [(_spokes(np.full(4, 1.0)), 1)]


def _triangle(rng: np.random.Generator) -> Outline:
    return [(_spokes(np.full(3, 1.0)), 1)]


def _star(rng: np.random.Generator) -> Outline:
    tips = int(rng.integers(5, 7))
    radii = np.ones(2 * tips)
    radii[1::2] = rng.uniform(0.4, 0.55)
    return [(_spokes(radii), 1)]


def _cross(rng: np.random.Generator) -> Outline:
    half, tip = rng.uniform(0.2, 0.34), 0.92
    corners = [(-half, -tip), (half, -tip), (half, -half), (tip, -half), (tip, half), (half, half)]
    return [(np.array(corners + [(-x, -y) for x, y in corners]), 1)]


def _crescent(rng: np.random.Generator) -> Outline:
    offset = rng.uniform(0.35, 0.55)
    return [(_circle(0.9), 1), (_circle(0.78, (offset, 0.0)), 0)]


def heart_outline(rng: np.random.Generator) -> Outline:
    """A heart, upright."""
    t = np.linspace(0.0, 2.0 * math.pi, 40, endpoint=False)
    x = 16.0 * np.sin(t) ** 3
    y = -(13.0 * np.cos(t) - 5.0 * np.cos(2 * t) - 2.0 * np.cos(3 * t) - np.cos(4 * t))
    return [(np.stack((x, y - 2.0), axis=1) / 17.0, 1)]


OBJECT_OUTLINES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "heart": heart_outline,
}
CLASS_NAMES: tuple[str, ...] = tuple(OBJECT_OUTLINES)


def blob_outline(rng: np.random.Generator) -> Outline:
    """A smooth irregular closed curve: a few low harmonics around a circle."""
    angle = np.linspace(0.0, 2.0 * math.pi, 40, endpoint=False)
    radius = np.ones_like(angle)
    for harmonic in (2, 3, 4, 5):
        phase = rng.uniform(0.0, 2.0 * math.pi)
        radius += rng.uniform(0.05, 0.32) * np.cos(harmonic * angle + phase)
    radius = np.clip(radius / radius.max(), 0.15, 1.0)
    return [(np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1), 1)]


def sliver_outline(rng: np.random.Generator) -> Outline:
    """A long crooked quadrilateral, too thin to be a square."""
    half = rng.uniform(0.08, 0.3)
    corners = np.array([(-1.0, -half), (1.0, -half), (1.0, half), (-1.0, half)])
    return [(corners + rng.uniform(-0.12, 0.12, size=(4, 2)), 1)]


def panel_outline(rng: np.random.Generator) -> Outline:
    """A large oblong quadrilateral for backgrounds, at least 1.6 times as long as wide."""
    half = rng.uniform(0.2, 0.5)
    corners = np.array([(-1.0, -half), (1.0, -half), (1.0, half), (-1.0, half)])
    return [(corners + rng.uniform(-0.1, 0.1, size=(4, 2)), 1)]


def angle_outline(rng: np.random.Generator) -> Outline:
    """An L: what a square, a cross or a triangle leaves when half of it is hidden."""
    arm, width = rng.uniform(0.7, 1.0), rng.uniform(0.2, 0.45)
    corners = [(-arm, -1), (width - arm, -1), (width - arm, 1 - width), (1, 1 - width), (1, 1)]
    return [(np.array(corners + [(-arm, 1)]), 1)]


def arc_outline(rng: np.random.Generator) -> Outline:
    """An open thin arc: near a ring or a crescent, but neither."""
    span, inner = rng.uniform(0.5, 1.3) * math.pi, rng.uniform(0.7, 0.85)
    angle = np.linspace(0.0, span, 24)
    edge = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return [(np.concatenate((edge, inner * edge[::-1])), 1)]


DISTRACTOR_OUTLINES = (blob_outline, sliver_outline, angle_outline, arc_outline)


def draw_mask(outline: Outline, transform: np.ndarray) -> np.ndarray:
    """Rasterise an outline.

    Args:
        outline: see the module's description.
        transform: (2, 2) matrix from the outline's frame to pixels (rotation and scale).

    Returns:
        Coverage in [0, 1], float32 (h, w), antialiased; the outline's origin is at the array's
        centre, and the array just holds the shape.
    """
    placed = [(points @ transform.T, fill) for points, fill in outline]
    reach = max(float(np.abs(points).max()) for points, _ in placed)
    half = int(math.ceil(reach)) + 1
    scale = 4 if half <= 16 else 2  # small shapes need finer antialiasing and cost little
    canvas = Image.new("L", (2 * half * scale, 2 * half * scale), 0)
    draw = ImageDraw.Draw(canvas)
    for points, fill in placed:
        # Pillow's pixel centres lie on integers, ours half a (fine) pixel further.
        corners = (points + half) * scale - 0.5
        draw.polygon([tuple(corner) for corner in corners.tolist()], fill=255 * fill)
    coverage = np.asarray(canvas.reduce(scale), dtype=np.float32) / 255.0
    return coverage
