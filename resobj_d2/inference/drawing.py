"""Drawing boxes on images, and images side by side.

Detectron2's ``Visualizer`` is made for large photographs: on small or crowded pictures its labels
hide each other and the objects. Here small pictures are enlarged first, a label goes where it
covers the fewest others, and a class always has the same colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from detectron2.structures import BoxMode, Instances
from PIL import Image, ImageDraw, ImageFont

from resobj_d2.process import replacing

__all__ = [
    "BoxStyle",
    "captioned",
    "draw_annotations",
    "draw_boxes",
    "draw_detections",
    "grid",
    "save_picture",
    "step_title",
]

MAX_PIXELS = 2**25  # a larger picture is drawn smaller
MIN_SIDE = 640  # the longer side of a picture in pixels; what is smaller is enlarged
CROWD_COLOR = (160, 160, 160)
_COLORS = (
    (255, 214, 0), (0, 176, 255), (255, 82, 82), (0, 230, 118), (224, 64, 251), (255, 145, 0),
    (29, 233, 182), (245, 128, 176), (124, 140, 255), (198, 255, 0), (188, 143, 103),
    (129, 212, 250),
)  # fmt: skip
_CAPTION_WIDTH = 160  # pixels at least
_GAP = 8  # pixels between the pictures of a grid
_LABEL_OPACITY = 215


@dataclass(frozen=True)
class BoxStyle:
    """How one box looks.

    Attributes:
        text: label; "" for none.
        color: RGB of the outline and of the label's background.
    """

    text: str
    color: tuple[int, int, int]


def class_color(number: int) -> tuple[int, int, int]:
    """The colour of a class, RGB."""
    return _COLORS[number % len(_COLORS)]


def step_title(step: int) -> str:
    """What step t of Residual Objectness is called in pictures."""
    return f"step {step} (base)" if step == 0 else f"step {step}"


def draw_detections(
    image: np.ndarray,
    detections: Instances,
    class_names: Sequence[str],
    *,
    confidence_threshold: float = 0.3,
    draw_limit: int = 100,
    side: int | None = None,
) -> Image.Image:
    """Draw the best detections with class and score.

    Args:
        image: (H, W, 3) uint8, RGB.
        detections: with ``pred_boxes`` in pixels of ``image``, ``scores`` and ``pred_classes``.
        class_names: of classes 0..K-1; further classes are shown by their number.
        confidence_threshold: lowest score that is drawn.
        draw_limit: most boxes that are drawn.
        side: longer side of the picture; None keeps the image's, but at least ``MIN_SIDE``, and
            not more than ``MAX_PIXELS`` in all.
    """
    scores = detections.scores.cpu().numpy()
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= confidence_threshold][:draw_limit]
    boxes = detections.pred_boxes.tensor.detach().cpu().numpy()[order]
    classes = detections.pred_classes.cpu().numpy()[order]
    styles = [
        BoxStyle(f"{_class_name(class_names, c)} {scores[i]:.2f}", class_color(c))
        for i, c in zip(order.tolist(), classes.tolist(), strict=True)
    ]
    return draw_boxes(image, boxes, styles, side=side)


def draw_annotations(
    image: np.ndarray,
    annotations: Sequence[dict],
    class_names: Sequence[str],
    *,
    side: int | None = None,
) -> Image.Image:
    """Draw ground truth; crowd regions are grey.

    Args:
        image: (H, W, 3) uint8, RGB.
        annotations: of a record in Detectron2's standard form.
        class_names, side: as in :func:`draw_detections`.
    """
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    styles = [
        BoxStyle("crowd", CROWD_COLOR)
        if a.get("iscrowd")
        else BoxStyle(_class_name(class_names, a["category_id"]), class_color(a["category_id"]))
        for a in annotations
    ]
    return draw_boxes(image, np.array(boxes, dtype=float).reshape(-1, 4), styles, side=side)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    styles: Sequence[BoxStyle],
    *,
    side: int | None = None,
) -> Image.Image:
    """Draw boxes, the first on top of the others.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (n, 4) XYXY in pixels of ``image``.
        styles: one for each box.
        side: as in :func:`draw_detections`.
    """
    canvas = _resize(image, side)
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    boxes = boxes * (np.array(canvas.size * 2) / np.array([image.shape[1], image.shape[0]] * 2))
    boxes = boxes.clip(0, np.array(canvas.size * 2) - 1).round()
    overlay = Image.new("RGBA", canvas.size)
    draw = ImageDraw.Draw(overlay)
    width = max(2, round(max(canvas.size) / 320))
    for box, style in reversed(list(zip(boxes.tolist(), styles, strict=True))):
        left, top, right, bottom = box
        # A dark rim, so that light colours show on light images.
        rim = (left - 1, top - 1, right + 1, bottom + 1)
        draw.rectangle(rim, outline=(0, 0, 0, 130), width=width + 2)
        draw.rectangle(box, outline=style.color, width=width)
    _draw_labels(draw, canvas.size, boxes.tolist(), styles)
    return Image.alpha_composite(canvas.convert("RGBA"), overlay).convert("RGB")


def grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str] = ()) -> Image.Image:
    """Pictures in rows and columns on white, each in the middle of its cell.

    Args:
        rows: not empty; rows may differ in length.
        titles: of the columns.
    """
    columns = max(map(len, rows))
    widths = [max(row[c].width for row in rows if c < len(row)) for c in range(columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    font = _font(max(14, round(min(widths) / 22)))
    header = round(1.9 * font.size) if titles else 0
    lefts = np.cumsum([_GAP, *(w + _GAP for w in widths)]).tolist()
    tops = np.cumsum([header or _GAP, *(h + _GAP for h in heights)]).tolist()
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for left, width, title in zip(lefts, widths, titles, strict=False):
        draw.text((left + width / 2, header / 2), title, fill="black", font=font, anchor="mm")
    for top, height, row in zip(tops, heights, rows, strict=False):
        for left, width, picture in zip(lefts, widths, row, strict=False):
            corner = (left + (width - picture.width) // 2, top + (height - picture.height) // 2)
            sheet.paste(picture, corner)
    return sheet


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """A picture with a line of text below it, whose beginning is left out where it is too long."""
    font = _font(13)
    width = max(picture.width, _CAPTION_WIDTH)
    shown = text
    while len(shown) > 2 and font.getlength(shown) > width:
        shown = f"…{shown[2:]}"
    sheet = Image.new("RGB", (width, picture.height + round(1.5 * font.size)), "white")
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    place = (width / 2, (picture.height + sheet.height) / 2)
    ImageDraw.Draw(sheet).text(place, shown, fill="black", font=font, anchor="mm")
    return sheet


def _class_name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else f"class {number}"


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib brings this font along; Pillow's own is a bitmap in some builds.
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def _resize(image: np.ndarray, side: int | None) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(image))
    longer = max(picture.size)
    factor = (side or max(longer, MIN_SIDE)) / longer
    area = picture.width * picture.height
    if side is None and area > MAX_PIXELS:
        factor = (MAX_PIXELS / area) ** 0.5
    if factor == 1:
        return picture
    size = [max(1, round(factor * length)) for length in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS)


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    limit: tuple[int, int],
    boxes: Sequence[Sequence[float]],
    styles: Sequence[BoxStyle],
) -> None:
    """Labels on half-transparent grounds, each where it covers the fewest others."""
    font = _font(max(12, round(max(limit) / 48)))
    placed = np.zeros((0, 4))
    for box, style in zip(boxes, styles, strict=True):
        if not style.text:
            continue
        size = (font.getlength(style.text) + 4, font.size * 1.2)
        label = _place(box, size, limit, placed)
        placed = np.concatenate((placed, label[None]))
        draw.rectangle(label.tolist(), fill=(*style.color, _LABEL_OPACITY))
        center = ((label[:2] + label[2:]) / 2).tolist()
        draw.text(center, style.text, fill=_text_color(style.color), font=font, anchor="mm")


def _place(
    box: Sequence[float],
    size: tuple[float, float],
    limit: tuple[int, int],
    placed: np.ndarray,
) -> np.ndarray:
    """XYXY of a label of ``size`` (width, height) beside or in its box, within the picture.

    Args:
        placed: (n, 4) the labels that are there already.
    """
    left, top, right, bottom = box
    width, height = size
    corners = np.array(
        [  # in order of preference
            (left, top - height),
            (right - width, top - height),
            (left, top),
            (left, bottom),
            (right - width, bottom),
            (left, bottom - height),
            (right, top),
            (left - width, top),
        ]
    )
    hiding = np.array([0, 0, 1, 0, 0, 1, 0, 0]) * width * height  # pixels of its own object
    hiding /= max((right - left) * (bottom - top), 1.0)
    inside = corners.clip(0, np.maximum(np.array(limit) - size, 0))
    moved = np.abs(inside - corners).sum(axis=1) / height
    labels = np.concatenate((inside, inside + size), axis=1)
    overlap = np.minimum(labels[:, None, 2:], placed[None, :, 2:]) - np.maximum(
        labels[:, None, :2], placed[None, :, :2]
    )
    covered = overlap.clip(0).prod(axis=2).sum(axis=1) / (width * height)
    preference = 0.02 * np.arange(len(corners))
    return labels[np.argmin(covered + 0.5 * (moved + hiding) + preference)]


def _text_color(ground: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = ground
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else (255, 255, 255)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all, in the format of the path's ending.

    Raises:
        ValueError: no format has this ending.
        OSError: it cannot be written.
    """
    formats = Image.registered_extensions()
    ending = path.suffix.lower()
    if ending not in formats:
        raise ValueError(f"{path}: no format of pictures ends in {ending!r}; call it .png")
    with replacing(path, binary=True) as file:
        picture.save(file, formats[ending])
