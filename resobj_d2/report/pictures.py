"""The pictures of a report: which, how large, and the boxes on them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from resobj_d2.analysis.errors import KINDS, ErrorAnalysis
from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.analysis.thresholds import floor_score
from resobj_d2.data.pictures import ImageError, read_picture

from .judge import Judgement

__all__ = ["Picture", "choose_images", "load_pictures", "with_boxes"]

RIGHT, IGNORED = len(KINDS), len(KINDS) + 1
"""Numbers of a detection that is right, or neither right nor wrong; below are the errors'."""

_SIDES = (960, 800, 640, 512, 384, 256, 128)  # the longer side in pixels, the largest that fits
_QUALITY = 82
_LIMITS = (100, 60, 35, 20, 10, 5, 2)  # wrong detections of one picture, run and step
_OBJECTS_PER_LIMIT = 5


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture with everything that can be drawn on it.

    Attributes:
        name: of the file, with the id of the image.
        path: of the file.
        width, height: of the whole picture in pixels, in which boxes are.
        source: of the scaled picture, as a data URL; "" where it cannot be read.
        problem: why.
        boxes: what the page's script draws; see :func:`with_boxes`.
    """

    name: str
    path: str
    width: int
    height: int
    source: str
    problem: str
    boxes: dict


def choose_images(judgements: Sequence[Judgement], number: int) -> list[int]:
    """Rows of the images to show: first those that cost most AP, then some of the others.

    The costs of an image's errors are added over all runs. A quarter of the images is spread
    evenly over what is left.
    """
    cost = np.zeros(len(judgements[0].data.image_ids))
    for one in judgements:
        np.add.at(cost, one.data.detections.images, one.costs.detections)
        np.add.at(cost, one.data.objects.images, one.costs.objects)
    order = np.argsort(-cost, kind="stable")
    number = min(number, len(order))
    worst = number - number // 4
    rest = np.sort(order[worst:])
    places = np.linspace(0, len(rest) - 1, number - worst).round().astype(int)
    return [*order[:worst].tolist(), *rest[places].tolist()]


def load_pictures(
    judgements: Sequence[Judgement], images: Sequence[int], *, max_bytes: int
) -> list[Picture]:
    """The chosen pictures without boxes, scaled so that all of them stay below a size.

    Args:
        judgements: of the runs, on the same images.
        images: rows.
        max_bytes: of all pictures as they stand in the page.
    """
    data = judgements[0].data
    sources, problems = _encoded([data.files[row] for row in images], max_bytes)
    pictures = []
    for row, source, problem in zip(images, sources, problems, strict=True):
        width, height = (int(x) for x in data.sizes[row])
        pictures.append(
            Picture(
                name=_name(data.files[row], data.image_ids[row]),
                path=data.files[row],
                width=width,
                height=height,
                source=source,
                problem=problem,
                boxes={},
            )
        )
    return pictures


def _name(file: str, identity: int | str) -> str:
    """A picture's file with its id in the dataset, which other tables have."""
    path = Path(file)
    known = {path.name, path.stem, path.stem.lstrip("0")}
    return path.name if str(identity) in known else f"{path.name} ({identity})"


def with_boxes(
    judgements: Sequence[Judgement],
    images: Sequence[int],
    pictures: Sequence[Picture],
    *,
    max_bytes: int,
) -> tuple[list[Picture], str]:
    """The pictures with their objects and detections, as many as a size allows.

    Detections that are right stay with their objects; of the others the best stay.

    Args:
        judgements: of the runs, on the same images.
        images: rows, one for each picture.
        pictures: of :func:`load_pictures`.
        max_bytes: of all boxes as they stand in the page. The fewest that are tried are kept,
            whatever their size.

    Returns:
        The pictures, and a sentence on what is not drawn; "" if everything is.
    """
    data = judgements[0].data
    whole = [
        (_objects(data, row), [[_detections(x, row) for x in one.errors] for one in judgements])
        for row in images
    ]
    boxes: list[dict] = []
    for limit in _LIMITS:
        parts = [_trimmed(objects, runs, limit) for objects, runs in whole]
        boxes = [
            {"name": p.name, "width": p.width, "height": p.height, "objects": objects, "runs": runs}
            for p, (objects, runs, _) in zip(pictures, parts, strict=True)
        ]
        if sum(len(json.dumps(x, separators=(",", ":"))) for x in boxes) <= max_bytes:
            break
    left_out = sum(rest for _, _, rest in parts)
    text = ""
    if left_out:
        text = (
            f"Not drawn, for the size of this file: {left_out} boxes beyond the first "
            f"{_OBJECTS_PER_LIMIT * limit} objects and the best {limit} wrong detections of a "
            "picture. All figures count them."
        )
    return [replace(p, boxes=b) for p, b in zip(pictures, boxes, strict=True)], text


def _trimmed(
    objects: list[list], runs: list[list[list]], limit: int
) -> tuple[list[list], list[list[list]], int]:
    """The first objects, and detections of each run and step; and how many boxes are not there."""
    most = _OBJECTS_PER_LIMIT * limit
    left_out = max(0, len(objects) - most)
    kept_runs = []
    for steps in runs:
        kept_steps = []
        for found in steps:
            kept, others = [], 0
            for item in found:  # best first
                others += item[-1] < 0
                if item[-1] < most and (item[-1] >= 0 or others <= limit):
                    kept.append(item)
            left_out += len(found) - len(kept)
            kept_steps.append(kept)
        kept_runs.append(kept_steps)
    return objects[:most], kept_runs, left_out


def _objects(data: EvaluationSet, row: int) -> list[list]:
    """x, y, width, height, class, whether it need not be found."""
    rows = np.flatnonzero(data.objects.images == row)
    table = data.objects
    return [[*_rounded(table.boxes[i]), int(table.classes[i]), int(table.ignored[i])] for i in rows]


def _detections(errors: ErrorAnalysis, row: int) -> list[list]:
    """x, y, width, height, class, score, kind, position of the object that it finds or -1."""
    found = errors.data.detections
    rows = np.flatnonzero(found.images == row)
    own = np.flatnonzero(errors.data.objects.images == row)
    position = {int(i): k for k, i in enumerate(own)}
    matches = errors.matches
    items = []
    for i in rows:
        kind = int(errors.kinds[i])
        if matches.correct[i]:
            kind = RIGHT
        elif matches.ignored[i]:
            kind = IGNORED
        target = position.get(int(matches.objects[i]), -1) if kind == RIGHT else -1
        score = floor_score(float(found.scores[i]))
        items.append([*_rounded(found.boxes[i]), int(found.classes[i]), score, kind, target])
    return items


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(x), 1) for x in box]


def _encoded(files: Sequence[str], max_bytes: int) -> tuple[list[str], list[str]]:
    """Data URLs and problems, at the largest size at which all URLs together are small enough."""
    pictures: list[Image.Image | None] = []
    problems = []
    for file in files:
        picture, problem = None, ""
        try:
            picture = Image.fromarray(read_picture(file))
            picture.thumbnail((_SIDES[0], _SIDES[0]), Image.Resampling.LANCZOS)
        except (ImageError, MemoryError) as error:
            problem = str(error).removeprefix(f"{file}: ") or "it does not fit into memory"
        pictures.append(picture)
        problems.append(problem)
    urls: list[str] = []
    for side in _SIDES:
        urls = ["" if picture is None else _url(picture, side) for picture in pictures]
        if sum(map(len, urls)) <= max_bytes:
            break
    return urls, problems


def _url(picture: Image.Image, side: int) -> str:
    scaled = picture.copy()
    scaled.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    scaled.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
