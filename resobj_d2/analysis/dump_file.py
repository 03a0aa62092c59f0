"""What a detector did on a dataset, in columns: made by one pass, read by every analysis.

::

    from resobj_d2.analysis.dump_file import load_dump

    dump = load_dump("output/RUN/dump")
    dump.detections.scores[dump.detections.image_index == 0]

docs/analysis.md lists the columns of the files.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .column_files import read_columns

__all__ = [
    "CandidateTable",
    "DetectionTable",
    "Dump",
    "ImageRows",
    "ObjectTable",
    "load_dump",
    "read_about",
]

KIND, VERSION = "resobj_d2 dump", 1
CORNERS = ("x0", "y0", "x1", "y1")
FACTOR = "p_"
_MOST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """M images, a row each; other tables refer to rows.

    Attributes:
        ids: the dataset's own, whole numbers or strings.
        files: paths of the pictures.
        widths, heights: (M,) int64, of the picture turned upright.
    """

    ids: list[int] | list[str]
    files: list[str]
    widths: np.ndarray
    heights: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class ObjectTable:
    """The ground truth, sorted by image.

    Attributes:
        image_index: (G,) int64.
        classes: (G,) int64, 0..K-1.
        boxes: (G, 4) float64, x0, y0, x1, y1 in pixels of the picture.
        areas: (G,) float64 in square pixels, of the mask where the dataset has one.
        crowd: (G,) bool, regions in which any number of detections is ignored.
        ignore: (G,) bool, what a detection may or may not find: crowd regions and objects that are
            difficult.
        anchor_ious: (G,) float64, the best IoU of any prior of the detector, NaN where it is not
            known.
    """

    image_index: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray
    anchor_ious: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, kw_only=True)
class DetectionTable:
    """What the detector returned, sorted by image, then by falling score.

    Attributes:
        image_index: (D,) int64.
        classes: (D,) int64, 0..K-1.
        boxes: (D, 4) float64, x0, y0, x1, y1 in pixels of the picture.
        scores: (D,) float64.
        factors: the probabilities that the score was made of, by name, each (D,) float64; empty
            where it is the class's alone. ``objectness_step<t>`` are those after t residuals.
    """

    image_index: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    factors: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, kw_only=True)
class CandidateTable:
    """Scored boxes before NMS, sorted by image, then by source, then by falling score.

    Attributes:
        image_index: (C,) int32.
        sources: (C,) int8, which of ``Dump.sources`` predicted it.
        levels: (C,) int8, the pyramid level of its prior, -1 for RoIs.
        classes: (C,) int32, 0..K-1; -1 for proposals.
        scores: (C,) float32.
        boxes: (C, 4) float32 in pixels of the picture, not clipped to it.
        priors: (C, 4) float32, what the first stage started from: anchors, or proposals for RoIs.
        stages: the boxes after each stage, (C, 4) float32; the last is ``boxes``. A box of a source
            with fewer stages is NaN in front.
        prior_ious: (C,) float32, best IoU of the prior with an object of any class, 0 without any.
        factors: as in :class:`DetectionTable`, float32; NaN where a source has no such factor.
    """

    image_index: np.ndarray
    sources: np.ndarray
    levels: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    priors: np.ndarray
    stages: list[np.ndarray]
    prior_ious: np.ndarray
    factors: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, kw_only=True)
class Dump:
    """A detector's pass over a dataset.

    Attributes:
        path: the folder.
        about: what was run: ``dataset``, ``class_names``, ``weights``, ``config`` (its yaml),
            ``num_steps``, ``sources``, ``max_candidates`` (the bound per image and source).
        images, objects, detections: see there.
    """

    path: Path
    about: dict
    images: ImageRows
    objects: ObjectTable
    detections: DetectionTable

    @property
    def class_names(self) -> list[str]:
        """By class number."""
        return self.about["class_names"]

    @property
    def sources(self) -> list[str]:
        """What predicted candidates: streams of a dense detector, or "rpn" and "roi"."""
        return self.about["sources"]

    @functools.cached_property
    def candidates(self) -> CandidateTable | None:
        """Read when it is first asked for; None where only detections are known.

        Raises:
            ValueError, ImportError: as :func:`load_dump`.
        """
        columns = read_columns(self.path, "candidates")
        if columns is None:
            return None
        table = _Columns(self.path / "candidates", columns)
        boxes = table.boxes("", np.float32)
        count = sum(name.startswith("stage") and name.endswith("_x0") for name in columns)
        return CandidateTable(
            image_index=table.rows("image", len(self.images), np.int32),
            sources=table.rows("source", len(self.sources), np.int8),
            levels=table.number("level", np.int8),
            classes=table.rows("class", len(self.class_names), np.int32, lowest=-1),
            scores=table.number("score", np.float32),
            boxes=boxes,
            priors=table.boxes("prior_", np.float32),
            stages=[table.boxes(f"stage{i + 1}_", np.float32) for i in range(count)] + [boxes],
            prior_ious=table.number("prior_iou", np.float32),
            factors=table.factors(np.float32),
        )

    @functools.cached_property
    def steps(self) -> list[DetectionTable]:
        """The detections at steps 0..T of Residual Objectness; the last are ``detections``.

        Without refinements these are the only ones.

        Raises:
            ValueError, ImportError: as :func:`load_dump`.
        """
        columns = read_columns(self.path, "steps")
        if columns is None:
            return [self.detections]
        number = _Columns(self.path / "steps", columns).number("step", np.int64)
        tables = []
        for step in range(self.about["num_steps"]):
            own = {name: column[number == step] for name, column in columns.items()}
            tables.append(
                _detections_from(
                    _Columns(self.path / "steps", own),
                    num_images=len(self.images),
                    num_classes=len(self.class_names),
                )
            )
        return [*tables, self.detections]


class _Columns:
    """The columns of one file, checked as they are taken."""

    def __init__(self, path: Path, columns: Mapping[str, np.ndarray]) -> None:
        self._path = path
        self._columns = columns

    def values(self, name: str) -> list:
        return self._column(name).tolist()

    def number(self, name: str, dtype: type) -> np.ndarray:
        column = self._column(name)
        if column.dtype.kind not in "biuf":
            raise ValueError(f"{self._path}: the column {name!r} has no numbers")
        return column.astype(dtype, copy=False)

    def rows(self, name: str, count: int, dtype: type, *, lowest: int = 0) -> np.ndarray:
        """Row numbers of another table."""
        column = self.number(name, dtype)
        if len(column) and not (lowest <= column.min() and column.max() < count):
            raise ValueError(f"{self._path}: the column {name!r} must be in {lowest}..{count - 1}")
        return column

    def boxes(self, prefix: str, dtype: type) -> np.ndarray:
        return np.stack([self.number(prefix + corner, dtype) for corner in CORNERS], axis=1)

    def factors(self, dtype: type) -> dict[str, np.ndarray]:
        names = [name for name in self._columns if name.startswith(FACTOR)]
        return {name.removeprefix(FACTOR): self.number(name, dtype) for name in names}

    def _column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise ValueError(f"{self._path}: there is no column {name!r}")
        return self._columns[name]


def load_dump(path: str | os.PathLike) -> Dump:
    """Read a dump; its candidates are read when they are first asked for.

    Args:
        path: the folder that ``resobj-d2 analyze dump`` wrote, or the run's folder that has it as
            ``dump``.

    Raises:
        FileNotFoundError: there is no dump.
        ValueError: it is damaged, or of a later version of this package.
        ImportError: it is Parquet, and pyarrow is not installed.
    """
    folder = Path(path).expanduser()
    if not (folder / "about.json").is_file() and (folder / "dump" / "about.json").is_file():
        folder = folder / "dump"
    about = read_about(folder)
    tables = {}
    for name in ("images", "objects", "detections"):
        columns = read_columns(folder, name)
        if columns is None:
            raise FileNotFoundError(f"{folder}: the table '{name}' is missing")
        tables[name] = _Columns(folder / name, columns)
    images = _images_from(tables["images"])
    shape = {"num_images": len(images), "num_classes": len(about["class_names"])}
    return Dump(
        path=folder,
        about=about,
        images=images,
        objects=_objects_from(tables["objects"], **shape),
        detections=_detections_from(tables["detections"], **shape),
    )


def read_about(folder: Path) -> dict:
    """What a dump says about itself.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_dump`.
    """
    path = folder / "about.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no dump: it has no about.json; `resobj-d2 analyze dump` makes one"
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise ValueError(f"{path} is not of a dump")
    if about.get("version") != VERSION:
        raise ValueError(
            f"{folder} is a dump of version {about.get('version')!r}, and this package reads "
            f"{VERSION}: update the package, or make the dump again"
        )
    steps = about.get("num_steps")
    if not isinstance(steps, int) or not 0 <= steps <= _MOST_STEPS:
        raise ValueError(f"{path}: num_steps must be in 0..{_MOST_STEPS}")
    for key in ("class_names", "sources"):
        names = about.get(key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: {key} must be a list of names")
    return about


def _images_from(table: _Columns) -> ImageRows:
    return ImageRows(
        ids=table.values("id"),
        files=[str(file) for file in table.values("path")],
        widths=table.number("width", np.int64),
        heights=table.number("height", np.int64),
    )


def _objects_from(table: _Columns, *, num_images: int, num_classes: int) -> ObjectTable:
    return ObjectTable(
        image_index=table.rows("image", num_images, np.int64),
        classes=table.rows("class", num_classes, np.int64),
        boxes=table.boxes("", np.float64),
        areas=table.number("area", np.float64),
        crowd=table.number("crowd", bool),
        ignore=table.number("ignore", bool),
        anchor_ious=table.number("anchor_iou", np.float64),
    )


def _detections_from(table: _Columns, *, num_images: int, num_classes: int) -> DetectionTable:
    return DetectionTable(
        image_index=table.rows("image", num_images, np.int64),
        classes=table.rows("class", num_classes, np.int64),
        boxes=table.boxes("", np.float64),
        scores=table.number("score", np.float64),
        factors=table.factors(np.float64),
    )
