"""One generated scene: a cluttered background, objects in front of each other, and their boxes.

Objects are placed from front to back. What is placed later can never cover what is already there,
so visibility is known at once: an object of which less than ``MIN_VISIBLE`` would show is not drawn
at all, and no object stands in a picture without its label.

Boxes enclose the *visible* part, as COCO's annotators draw them: the hidden extent cannot be read
off the picture, and asking for it would put a floor of noise under the metrics at high IoU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .shapes import DISTRACTOR_OUTLINES, draw_mask, panel_outline
from .style import SceneStyle
from .textures import random_texture

MIN_VISIBLE = 0.3  # of the object's full area
MIN_SIDE = 5  # pixels, of the visible box
MIN_DIAMETER = 8.0  # pixels
MAX_DIAMETER = 0.66  # of the picture's side; most outlines span about nine tenths of it
EMPTY_SHARE = 0.05
CROWDED_SHARE = 0.1
LOW_CONTRAST_SHARE = 0.08
BACKGROUND_CONTRAST, OBJECT_CONTRAST = 0.3, 0.5  # of the two colours of a texture
TYPICAL_SHARE = 0.75  # of objects in the typical colour of their class
# As tomatoes are mostly red. A hint and no more, since distractors wear these colours too.
_TYPICAL_COLOURS = np.array(
    [
        (225, 110, 30),  # disc
        (240, 215, 60),  # ring
        (60, 110, 220),  # square
        (70, 175, 75),  # triangle
        (245, 240, 225),  # star
        (60, 45, 60),  # cross
        (150, 75, 190),  # crescent
        (215, 40, 75),  # heart
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class SceneObject:
    """A visible object.

    Attributes:
        category: index into the style's class names.
        box: left, top, width, height of the visible part, whole pixels.
        area: number of visible pixels.
    """

    category: int
    box: tuple[int, int, int, int]
    area: int


@dataclass(frozen=True)
class Scene:
    """A picture, uint8 RGB (size, size, 3), and its objects (possibly none)."""

    image: np.ndarray
    objects: list[SceneObject]


@dataclass(frozen=True)
class _Overlap:
    """The part of a mask that falls on the picture: the same window in both frames."""

    on_canvas: tuple[slice, slice]
    on_mask: tuple[slice, slice]
    left: int
    top: int


def _overlap(size: int, mask: np.ndarray, centre: np.ndarray) -> _Overlap | None:
    """Where a mask (h, w) centred at ``centre`` (x, y) meets the picture; None if nowhere."""
    height, width = mask.shape
    left, top = int(round(centre[0] - width / 2)), int(round(centre[1] - height / 2))
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, size), min(top + height, size)
    if x1 <= x0 or y1 <= y0:
        return None
    on_mask = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    return _Overlap((slice(y0, y1), slice(x0, x1)), on_mask, x0, y0)


class _Foreground:
    """Layers composed from front to back, to be laid over a background at the end."""

    def __init__(self, size: int):
        self.colour = np.zeros((size, size, 3), dtype=np.float32)  # times opacity
        self.cover = np.zeros((size, size), dtype=np.float32)  # opacity so far

    def add_behind(self, window: tuple[slice, slice], shown: np.ndarray, patch: np.ndarray) -> None:
        """Add colours (h, w, 3), with ``shown`` (h, w) of the opacity that is still free."""
        self.colour[window] += shown[..., None] * patch
        self.cover[window] += shown


def _random_colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(15.0, 240.0, size=3).astype(np.float32)


def _muted_colour(rng: np.random.Generator) -> np.ndarray:
    """A greyish colour, for backgrounds."""
    colour = _random_colour(rng)
    return colour.mean() + np.float32(rng.uniform(0.1, 0.4)) * (colour - colour.mean())


def _typical_colour(category: int, rng: np.random.Generator) -> np.ndarray:
    colour = _TYPICAL_COLOURS[category] + rng.normal(0.0, 14.0, size=3)
    return np.clip(colour, 0.0, 255.0).astype(np.float32)


def _second_colour(first: np.ndarray, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """A shade of the first colour, darker or lighter by up to ``contrast`` times itself."""
    shade = rng.uniform(0.4, 1.0) * contrast * rng.choice((-1.0, 1.0))
    return np.clip(first * np.float32(1.0 + shade), 0.0, 255.0)


def _random_transform(diameter: float, rng: np.random.Generator) -> np.ndarray:
    """Stretch by up to a sixth and rotate: (2, 2), from the outline's frame to pixels."""
    angle = rng.uniform(0.0, 2.0 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    stretch = math.sqrt(rng.uniform(0.85, 1.18))
    rotation = np.array([[cos, -sin], [sin, cos]])
    return rotation @ np.diag([diameter / 2.0 * stretch, diameter / 2.0 / stretch])


def _patch(
    shape: tuple[int, int], colour: np.ndarray, contrast: float, rng: np.random.Generator
) -> np.ndarray:
    """A textured, slightly shaded piece of surface (h, w, 3) around a main colour."""
    height, width = shape
    patch = random_texture(height, width, colour, _second_colour(colour, contrast, rng), rng)
    slope_x, slope_y = rng.uniform(-0.2, 0.2, size=2)
    light_x = np.linspace(1.0 - slope_x, 1.0 + slope_x, width, dtype=np.float32)
    light_y = np.linspace(1.0 - slope_y, 1.0 + slope_y, height, dtype=np.float32)
    return patch * (light_y[:, None] * light_x[None, :])[..., None]


def _paint(background: np.ndarray, mask: np.ndarray, centre, colour, rng) -> None:
    """Lay a textured piece over the background, in place."""
    overlap = _overlap(background.shape[0], mask, centre)
    if overlap is None:
        return
    opacity = mask[overlap.on_mask][..., None]
    below = background[overlap.on_canvas]
    below += opacity * (_patch(opacity.shape[:2], colour, BACKGROUND_CONTRAST, rng) - below)


def _draw_lines(background: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw crooked lines over the background and return the picture as float32."""
    size = background.shape[0]
    picture = Image.fromarray(np.clip(background, 0.0, 255.0).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(count):
        corners = rng.uniform(-0.1 * size, 1.1 * size, size=(int(rng.integers(2, 5)), 2))
        colour = tuple(int(value) for value in _muted_colour(rng))
        points = [tuple(corner) for corner in corners.tolist()]
        draw.line(points, fill=colour, width=int(rng.integers(1, 4)), joint="curve")
    return np.asarray(picture, dtype=np.float32)


def _render_background(size: int, style: SceneStyle, rng: np.random.Generator) -> np.ndarray:
    """Texture, patches, lines and distractors that belong to no class: float32 (size, size, 3)."""
    background = _patch((size, size), _muted_colour(rng), BACKGROUND_CONTRAST, rng)
    for _ in range(int(rng.integers(0, 4))):
        mask = draw_mask(panel_outline(rng), _random_transform(size * rng.uniform(0.5, 1.3), rng))
        _paint(background, mask, rng.uniform(0, size, size=2), _muted_colour(rng), rng)
    background = _draw_lines(background, int(rng.integers(0, 4)), rng)
    for _ in range(int(rng.integers(0, style.distractors + 1))):
        outline = DISTRACTOR_OUTLINES[int(rng.integers(len(DISTRACTOR_OUTLINES)))](rng)
        largest = style.max_diameter or 0.35 * size
        diameter = MIN_DIAMETER * (largest / MIN_DIAMETER) ** rng.random()
        mask = draw_mask(outline, _random_transform(diameter, rng))
        alike = rng.random() < 0.5
        category = style.family(int(rng.integers(len(style.class_names))))
        colour = _typical_colour(category, rng) if alike else _muted_colour(rng)
        _paint(background, mask, rng.uniform(0, size, size=2), colour, rng)
    return background


def _object_colour(
    family: int, background: np.ndarray, overlap: _Overlap, rng: np.random.Generator
) -> np.ndarray:
    """Main colour: that of the class, or unlike what is behind, or hardly different from it."""
    behind = background[overlap.on_canvas].mean(axis=(0, 1))
    kind = rng.random()
    if kind < TYPICAL_SHARE:
        return _typical_colour(family, rng)
    if kind < TYPICAL_SHARE + LOW_CONTRAST_SHARE:
        direction = rng.standard_normal(3)
        direction /= max(float(np.linalg.norm(direction)), 1e-6)
        return np.clip(behind + rng.uniform(40.0, 70.0) * direction, 0, 255).astype(np.float32)
    colour = _random_colour(rng)
    while np.abs(colour - behind).sum() < 120.0:
        colour = _random_colour(rng)
    return colour


def _place_object(
    foreground: _Foreground,
    background: np.ndarray,
    style: SceneStyle,
    diameter: float,
    centre: np.ndarray,
    rng: np.random.Generator,
) -> SceneObject | None:
    """Put one object behind all earlier ones, or return None when too little of it would show."""
    category = int(rng.integers(len(style.class_names)))
    outline = style.outline(category, rng)
    mask = draw_mask(outline, _random_transform(diameter, rng))
    overlap = _overlap(background.shape[0], mask, centre)
    if overlap is None:
        return None
    shown = mask[overlap.on_mask] * (1.0 - foreground.cover[overlap.on_canvas])
    visible = shown > 0.5
    area = int(visible.sum())
    if area < MIN_VISIBLE * int((mask > 0.5).sum()) or area == 0:
        return None
    columns, rows = np.flatnonzero(visible.any(axis=0)), np.flatnonzero(visible.any(axis=1))
    width, height = int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1
    if min(width, height) < MIN_SIDE:
        return None
    colour = _object_colour(style.family(category), background, overlap, rng)
    foreground.add_behind(
        overlap.on_canvas, shown, _patch(shown.shape, colour, OBJECT_CONTRAST, rng)
    )
    box = (overlap.left + int(columns[0]), overlap.top + int(rows[0]), width, height)
    return SceneObject(category=category, box=box, area=area)


def _wanted(size: int, style: SceneStyle, rng: np.random.Generator) -> tuple[int, float]:
    """How many objects there are to be, and the largest diameter in pixels."""
    if style.max_objects:
        wanted = int(rng.integers(0, style.max_objects + 1))
        return wanted, style.max_diameter or MAX_DIAMETER * size
    kind = rng.random()
    if kind < EMPTY_SHARE:
        return 0, 0.0
    crowded = kind < EMPTY_SHARE + CROWDED_SHARE
    wanted = int(rng.integers(32, 46)) if crowded else 1 + min(int(rng.geometric(0.2)), 14)
    return wanted, style.max_diameter or (0.22 if crowded else MAX_DIAMETER) * size


def _place_objects(
    foreground: _Foreground, background: np.ndarray, style: SceneStyle, rng: np.random.Generator
) -> list[SceneObject]:
    """Choose how many objects there are, how large and where, and place them."""
    size = background.shape[0]
    wanted, largest = _wanted(size, style, rng)
    if not wanted:
        return []
    # A third of the pictures gathers their objects around a point, so that they hide each other.
    gathered = rng.random() < 0.35
    focus = rng.uniform(0.25 * size, 0.75 * size, size=2)
    objects = []
    for _ in range(4 * wanted):  # attempts; some fail because the place is taken
        diameter = MIN_DIAMETER * (largest / MIN_DIAMETER) ** (rng.random() ** 0.45)
        centre = rng.uniform(0.0, size, size=2)
        if gathered:
            centre = np.clip(rng.normal(focus, 0.22 * size), 0.0, size)
        placed = _place_object(foreground, background, style, diameter, centre, rng)
        if placed is not None:
            objects.append(placed)
        if len(objects) == wanted:
            break
    return objects


def _expose(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The camera: uneven light, faded colours, at times a little blur, sensor noise; uint8."""
    size = picture.shape[0]
    light = rng.uniform(0.8, 1.1, size=4).astype(np.float32)
    ramp = np.linspace(0.0, 1.0, size, dtype=np.float32)
    upper = light[0] + (light[1] - light[0]) * ramp
    lower = light[2] + (light[3] - light[2]) * ramp
    picture = picture * (upper + ramp[:, None] * (lower - upper))[..., None]
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + np.float32(rng.uniform(0.6, 1.1)) * (picture - grey)
    noise_level = rng.uniform(0.0, 7.0)
    if rng.random() < 0.25:
        blurred = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        radius = float(rng.uniform(0.4, 0.9))
        picture = np.asarray(blurred.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    if noise_level > 1.0:
        grain = rng.standard_normal(picture.shape, dtype=np.float32)
        picture = picture + np.float32(noise_level) * grain
    return np.clip(picture, 0.0, 255.0).astype(np.uint8)


def render_scene(size: int, rng: np.random.Generator, style: SceneStyle | None = None) -> Scene:
    """Draw one scene.

    Args:
        size: side of the square picture in pixels, at least 64.
        rng: source of all randomness.
        style: None for the usual one.
    """
    style = SceneStyle() if style is None else style
    background = _render_background(size, style, rng)
    foreground = _Foreground(size)
    objects = _place_objects(foreground, background, style, rng)
    picture = foreground.colour + (1.0 - foreground.cover)[..., None] * background
    return Scene(image=_expose(picture, rng), objects=objects)
