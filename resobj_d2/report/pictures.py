"""The pictures of a report: which, how large, and the boxes on them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from resobj_d2.analysis.errors import KINDS, ErrorAnalysis
from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.data.pictures import ImageError, read_picture

from .judge import Judgement

__all__ = ["Picture", "choose_images", "load_pictures"]

RIGHT, IGNORED = len(KINDS), len(KINDS) + 1
"""Numbers of a detection that is right, or neither right nor wrong; below are the errors'."""

_SIDES = (960, 800, 640, 512, 384, 256, 128)  # the longer side in pixels, the largest that fits
_QUALITY = 82
_MOST_BOXES = 100  # of one picture, run and step
_LEAST_SCORE = 0.01


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture with everything that can be drawn on it.

    Attributes:
        name, path: of the file.
        width, height: of the whole picture in pixels, in which boxes are.
        source: of the scaled picture, as a data URL; "" where it cannot be read.
        problem: why.
        boxes: what the page's script draws.
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
    """The chosen pictures, scaled so that all of them stay below a size.

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
        name = Path(data.files[row]).name
        runs = [[_detections(errors, row) for errors in one.errors] for one in judgements]
        pictures.append(
            Picture(
                name=name,
                path=data.files[row],
                width=width,
                height=height,
                source=source,
                problem=problem,
                boxes={
                    "name": name,
                    "width": width,
                    "height": height,
                    "objects": _objects(data, row),
                    "runs": runs,
                },
            )
        )
    return pictures


def _objects(data: EvaluationSet, row: int) -> list[list]:
    """x, y, width, height, class, whether it need not be found."""
    rows = np.flatnonzero(data.objects.images == row)
    table = data.objects
    return [[*_rounded(table.boxes[i]), int(table.classes[i]), int(table.ignored[i])] for i in rows]


def _detections(errors: ErrorAnalysis, row: int) -> list[list]:
    """x, y, width, height, class, score, kind, position of the object that it finds or -1."""
    found = errors.data.detections
    rows = np.flatnonzero((found.images == row) & (found.scores >= _LEAST_SCORE))[:_MOST_BOXES]
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
        score = round(float(found.scores[i]), 4)
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
