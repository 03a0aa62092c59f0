"""Twenty classes in eight families: of a family all wear one colour, and only the outline tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from .shapes import Outline, heart_outline

__all__ = ["LOOK_ALIKES"]

OutlineOf = Callable[[np.random.Generator], Outline]


def _circle(radius: float, x: float = 0.0, *, flat: float = 1.0) -> np.ndarray:
    angle = np.linspace(0.0, 2.0 * math.pi, 36, endpoint=False)
    return np.stack((x + radius * np.cos(angle), flat * radius * np.sin(angle)), axis=1)


def _regular(corners: int, rng: np.random.Generator, *, wide: float = 1.0) -> Outline:
    angle = np.linspace(0.0, 2.0 * math.pi, corners, endpoint=False) - math.pi / 2
    return [(np.stack((wide * np.cos(angle), np.sin(angle)), axis=1), 1)]


def _star(tips: int, rng: np.random.Generator) -> Outline:
    angle = np.linspace(0.0, 2.0 * math.pi, 2 * tips, endpoint=False) - math.pi / 2
    radii = np.where(np.arange(2 * tips) % 2, 0.45, 1.0)
    return [(np.stack((radii * np.cos(angle), radii * np.sin(angle)), axis=1), 1)]


def _ellipse(flat: float, rng: np.random.Generator) -> Outline:
    return [(_circle(0.9, flat=flat), 1)]


def _half_disc(rng: np.random.Generator) -> Outline:
    angle = np.linspace(0.0, math.pi, 20)
    return [(np.stack((0.9 * np.cos(angle), 0.9 * np.sin(angle) - 0.4), axis=1), 1)]


def _ring(hole: float, rng: np.random.Generator) -> Outline:
    return [(_circle(0.9), 1), (_circle(hole), 0)]


def _cross(half: float, rng: np.random.Generator) -> Outline:
    tip = 0.92
    corners = [(-half, -tip), (half, -tip), (half, -half), (tip, -half), (tip, half), (half, half)]
    return [(np.array(corners + [(-x, -y) for x, y in corners]), 1)]


def _crescent(offset: float, rng: np.random.Generator) -> Outline:
    return [(_circle(0.9), 1), (_circle(0.78, offset), 0)]


def _drop(rng: np.random.Generator) -> Outline:
    t = np.linspace(0.0, 2.0 * math.pi, 40, endpoint=False)
    return [(np.stack((0.9 * np.sin(t) * np.sin(t / 2), 0.95 * np.cos(t)), axis=1), 1)]


# Name to family, which is the class of ``shapes`` whose colour is worn, and outline.
LOOK_ALIKES: dict[str, tuple[str, OutlineOf]] = {
    "disc": ("disc", partial(_ellipse, 1.0)),
    "ellipse": ("disc", partial(_ellipse, 0.55)),
    "half disc": ("disc", _half_disc),
    "ring": ("ring", partial(_ring, 0.45)),
    "thin ring": ("ring", partial(_ring, 0.7)),
    "triangle": ("triangle", partial(_regular, 3)),
    "square": ("square", partial(_regular, 4)),
    "diamond": ("square", partial(_regular, 4, wide=0.5)),
    "pentagon": ("square", partial(_regular, 5)),
    "hexagon": ("square", partial(_regular, 6)),
    "star of 4": ("star", partial(_star, 4)),
    "star of 5": ("star", partial(_star, 5)),
    "star of 6": ("star", partial(_star, 6)),
    "star of 8": ("star", partial(_star, 8)),
    "cross": ("cross", partial(_cross, 0.32)),
    "thin cross": ("cross", partial(_cross, 0.16)),
    "crescent": ("crescent", partial(_crescent, 0.55)),
    "thin crescent": ("crescent", partial(_crescent, 0.3)),
    "heart": ("heart", heart_outline),
    "drop": ("heart", _drop),
}
