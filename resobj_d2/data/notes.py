"""What reading a dataset changes or finds remarkable: counted, and said once for each kind."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["KINDS", "Kind", "Note", "Notes", "refuse_lossy"]

logger = logging.getLogger(__name__)

_SHOWN = 3  # examples in a message


@dataclass(frozen=True)
class Kind:
    """A kind of note.

    Attributes:
        text: what there is, in the plural; the count follows it in the message.
        mended: whether something was changed or left out.
        needed_for: "" where it concerns every use; "masks" or "keypoints" where it matters only to
            those who use them, and is said to them.
    """

    text: str
    mended: bool = True
    needed_for: str = ""


KINDS = {
    "text_number": Kind(
        "numbers are written as text, or whole ones as fractions like 3.0; they are read as numbers"
    ),
    "flag": Kind(
        "values of iscrowd, ignore or difficult are text, null or no flag; they are read as 0 or "
        "1"
    ),
    "backslash": Kind("file names have backslashes, which are read as /"),
    "same_file": Kind("file names stand for more than one image", mended=False),
    "twin_category": Kind(
        "categories without annotations have the name of another category and are left out"
    ),
    "category_keypoints": Kind(
        "categories have a list of keypoints or a skeleton that is none; it is left out",
        needed_for="keypoints",
    ),
    "no_size": Kind(
        "boxes have no positive finite size and are left out of training and evaluation"
    ),
    "outside": Kind("boxes lie outside their picture and are left out of training and evaluation"),
    "cut": Kind(
        "boxes reach out of their picture and are cut at its edge, for training and evaluation"
    ),
    "area": Kind("areas are no positive finite numbers; the area of the box is taken"),
    "ignored": Kind(
        "annotations are marked 'ignore': like crowd regions they are not trained on, and the "
        "evaluation counts them neither as found nor as missed"
    ),
    "mask": Kind(
        "segmentations are no masks (polygons of at least three points, or RLE of the picture's "
        "size); their boxes stay, without a mask",
        needed_for="masks",
    ),
    "mask_part": Kind(
        "segmentations have parts that are no polygons of at least three points; those are left "
        "out of their masks",
        needed_for="masks",
    ),
    "keypoints": Kind(
        "lists of keypoints do not fit their category (x, y and 0, 1 or 2 for each); their boxes "
        "stay, without keypoints",
        needed_for="keypoints",
    ),
    "twice": Kind(
        "annotations repeat another one of the same image, class and box; all of them are used",
        mended=False,
    ),
    "whole_pixels": Kind(
        "boxes end on the last pixel (x + width = the picture's width - 1) and none on the edge: "
        "they seem to lack a pixel in width and height, as boxes with inclusive ends do",
        mended=False,
    ),
    "percent": Kind("boxes end at 100 or before it, as if in percent of the picture", mended=False),
    "lossy": Kind(
        "boxes are left out, more than a tenth of all; training, evaluation and conversion refuse "
        "that until they are mended, or box_format in the entry of DATASETS.REGISTER says that "
        "they are read as they should be"
    ),
    "convention": Kind(
        "boxes look like another convention than the one that they are read in", mended=False
    ),
    "other_class": Kind(
        "annotations are of classes that 'classes' does not list; they are left out"
    ),
    "absent_class": Kind("classes of 'classes' occur nowhere; is a name misspelt?", mended=False),
    "listed_twice": Kind("images are listed twice and read once"),
    "first_pixel": Kind(
        "boxes start at 0, where VOC counts pixels from 1: give first_pixel: 0 where all do",
        mended=False,
    ),
    "size_from_picture": Kind("pictures have no usable size in the annotations; theirs is taken"),
    "doubtful_polygon": Kind(
        "polygons look like a box with keypoints or scores after it; they are read as polygons",
        mended=False,
    ),
    "boxes_and_polygons": Kind(
        "lines are boxes where others are polygons, which other readers of YOLO's format may not "
        "take",
        mended=False,
    ),
    "no_label_file": Kind("pictures have no label file and count as empty", mended=False),
}  # fmt: skip
"""Every kind of note by its name; docs/datasets.md has a row for each."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """How often something was found.

    Attributes:
        kind: of :data:`KINDS`.
        count: how often.
        examples: the first ones.
        message: all of it in a sentence.
    """

    kind: str
    count: int
    examples: tuple[str, ...]
    message: str


class Notes:
    """Collects what is found while a dataset is read.

    Args:
        where: the dataset and its source, at the beginning of every message.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str, *, count: int = 1) -> None:
        """Count one more of a kind; the first examples are kept."""
        self._counts[kind] = self._counts.get(kind, 0) + count
        examples = self._examples.setdefault(kind, [])
        if len(examples) < _SHOWN:
            examples.append(example)

    def found(self) -> tuple[Note, ...]:
        """A note for each kind that was found."""
        notes = []
        for kind, count in self._counts.items():
            examples = tuple(self._examples[kind])
            shown = "; ".join(examples)
            message = f"{self.where}: {KINDS[kind].text} ({count} in all), for instance {shown}"
            notes.append(Note(kind=kind, count=count, examples=examples, message=message))
        return tuple(notes)

    def log(self) -> None:
        """Warn of everything that concerns every use."""
        for note in self.found():
            if not KINDS[note.kind].needed_for:
                logger.warning(note.message)


def refuse_lossy(notes: Iterable[Note]) -> None:
    """Refuse to use what is left of a dataset that has lost more than a tenth of its boxes.

    Raises:
        ValueError: there is a note of that kind.
    """
    for note in notes:
        if note.kind == "lossy":
            raise ValueError(note.message)
