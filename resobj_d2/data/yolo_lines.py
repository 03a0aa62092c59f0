"""A line of a YOLO label file: a box, a box with keypoints, or a polygon."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .assemble import Rows
from .notes import Notes
from .values import number_of, whole_number_of

__all__ = ["LineReader", "looks_like_box"]

_FROM_1 = ". Do the files count classes from 1? YOLO counts from 0"


class LineReader:
    """Reads the lines of a set, and remembers which polygons may be something else.

    Args:
        names: of the classes, by number.
        keypoints: number of keypoints and of values for each, or (0, 0).
        box_format: of the boxes, in which those of polygons are given too.
    """

    def __init__(
        self,
        names: Sequence[str],
        keypoints: tuple[int, int],
        box_format: str = "normalized_cxcywh",
    ) -> None:
        self.names = names
        self.box_format = box_format.removeprefix("normalized_")
        self.keypoints = keypoints
        self.boxes = 0
        self.polygons = 0
        self.doubtful: list[str] = []
        self.has_zero = False

    def add(self, rows: Rows, row: int, line: str, scale: tuple[int, int], place: str) -> None:
        """Read a line into ``rows``.

        Args:
            row: of the image.
            line: not empty.
            scale: from the file's numbers to pixels.
            place: of the line, for messages.

        Raises:
            ValueError: it is no line of a label file.
        """
        tokens = line.split()
        if len(tokens) < 5 and len(re.split(r"[,;]\s*", line.strip())) >= 5:
            raise ValueError(
                f"{place}: the numbers must be separated by blanks, got {line.strip()!r:.80}"
            )
        category = whole_number_of(tokens[0])
        if category is None or not 0 <= category < len(self.names):
            raise ValueError(
                f"{place}: the class must be a number from 0 to {len(self.names) - 1}, got "
                f"{tokens[0]!r}"
                + (_FROM_1 if category == len(self.names) and not self.has_zero else "")
            )
        self.has_zero |= category == 0
        values = [number_of(token) for token in tokens[1:]]
        if None in values:
            raise ValueError(f"{place}: {tokens[1 + values.index(None)]!r} is no number")
        count, width = self.keypoints
        mask = keypoints = None
        if len(values) == 4 or (count and len(values) == 4 + count * width):
            box = values[:4]
            self.boxes += 1
            if count and len(values) > 4:
                keypoints = _keypoints_of(np.array(values[4:]).reshape(count, width), scale)
        elif not count and len(values) >= 6 and len(values) % 2 == 0:
            self.polygons += 1
            if looks_like_box(values, normalized=scale != (1, 1)):
                self.doubtful.append(place)
            points = np.array(values, dtype=np.float64).reshape(-1, 2)
            low, high = points.min(axis=0), points.max(axis=0)
            box = self._box_of(low, high)
            mask = [(points * scale).ravel()]
        else:
            expected = f" and {count * width} of keypoints" if count else ", or a polygon"
            raise ValueError(
                f"{place}: {len(values)} {_follow(len(values))} the class, "
                f"4 of a box{expected} were expected"
                + (". Is it a file of predictions with scores?" if len(values) == 5 else "")
            )
        rows.add(
            image=row, category=category, box=box, mask=mask, keypoints=keypoints, identity=place
        )

    def _box_of(self, low: np.ndarray, high: np.ndarray) -> list[float]:
        """From the corners."""
        if self.box_format == "xyxy":
            return [*low, *high]
        return [*(low if self.box_format == "xywh" else (low + high) / 2), *(high - low)]

    def check(self, notes: Notes) -> None:
        """Note doubtful lines.

        Raises:
            ValueError: most polygons are doubtful.
        """
        if 2 * len(self.doubtful) > self.polygons:
            raise ValueError(
                f"{notes.where}: {len(self.doubtful)} of {self.polygons} lines of more than 4 "
                "numbers are no polygons but a box with keypoints or scores after it, for instance "
                f"{self.doubtful[0]}. Keypoints need 'kpt_shape: [keypoints, 2 or 3]' in the yaml; "
                "take other numbers out"
            )
        for place in self.doubtful:
            notes.add("doubtful_polygon", place)
        if self.boxes and self.polygons:
            notes.add("boxes_and_polygons", f"{self.polygons} polygons", count=self.boxes)


def looks_like_box(values: Sequence[float], normalized: bool) -> bool:
    """Whether the numbers of a polygon are rather a box and what lies in it, as keypoints do.

    The second corner of a polygon lies near the first; width and height do not.
    """
    first, rest = np.array(values[:4]), np.array(values[4:])
    if normalized and (np.abs(rest - 0.5) > 1).any():  # visibility 2, the number of a track
        return True
    low, high = first[:2] - first[2:] / 2, first[:2] + first[2:] / 2
    if ((first[2:] >= low) & (first[2:] <= high)).all():
        return False
    if len(rest) == 2 and 0 <= rest[0] <= 1 and float(rest[1]).is_integer():
        return True  # a score and the number of a track
    candidates = [rest.reshape(-1, 2)]
    if len(rest) % 3 == 0 and np.isin(rest[2::3], (0, 1, 2)).all():
        points = rest.reshape(-1, 3)
        candidates.append(points[points[:, 2] > 0, :2])
    return any(bool(((p >= low) & (p <= high)).all()) for p in candidates)


def _follow(count: int) -> str:
    return "number follows" if count == 1 else "numbers follow"


def _keypoints_of(points: np.ndarray, scale: tuple[int, int]) -> np.ndarray:
    """(K, 3) pixel indices; two values for each leave visibility out: 0, 0 is then no keypoint."""
    visible = points[:, 2] if points.shape[1] == 3 else 2.0 * (points != 0).any(axis=1)
    places = points[:, :2] * scale - 0.5
    return np.column_stack([np.where(visible[:, None] > 0, places, 0.0), visible])
