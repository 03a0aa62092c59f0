"""Writing a dump; :mod:`.dump_file` reads it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from resobj_d2.data.record import Record
from resobj_d2.process import counted, told_as

from .column_files import ColumnWriter
from .dump_file import CORNERS, FACTOR, KIND, VERSION, read_about

__all__ = ["DumpWriter", "box_columns", "check_output", "factor_columns", "write_dump"]


def box_columns(boxes: np.ndarray, prefix: str = "") -> dict[str, np.ndarray]:
    """(n, 4) as four columns."""
    return {prefix + corner: boxes[:, k] for k, corner in enumerate(CORNERS)}


def factor_columns(factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Factors under the names that they have in a file."""
    return {FACTOR + name: column for name, column in factors.items()}


def check_output(path: str | os.PathLike) -> None:
    """Refuse, before a long pass, a folder that :func:`write_dump` would refuse.

    Raises:
        ValueError: there is something that is no dump.
    """
    path = Path(path)
    if path.is_dir():
        with contextlib.suppress(OSError, ValueError):
            if not any(path.iterdir()) or read_about(path):
                return
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} is there and is no dump: name another --output")


class DumpWriter:
    """Takes the rows of a pass, image by image, in the order of the record."""

    def __init__(self, folder: Path, record: Record) -> None:
        self._record = record
        self._rows = record.rows_by_image()
        self._anchor_ious = np.full(len(record.annotations), np.nan)
        self._folder = folder
        self._detections: dict[int, dict[str, np.ndarray]] = {}
        self._candidates = ColumnWriter(folder, "candidates")
        self._steps = ColumnWriter(folder, "steps")

    def objects_of(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, 4) corners of an image's objects, and (n,) bool, whether they are crowd regions."""
        rows = self._rows[image]
        table = self._record.annotations
        return _corners(table.boxes[rows]), table.crowd[rows]

    def add_anchor_ious(self, image: int, ious: np.ndarray) -> None:
        """The best IoU of each object of :meth:`objects_of` with a prior."""
        self._anchor_ious[self._rows[image]] = ious

    def add_detections(
        self,
        image: int,
        *,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        factors: Mapping[str, np.ndarray],
        step: int | None = None,
    ) -> None:
        """The detections of an image in any order.

        Args:
            image: row of the record's images.
            boxes, scores, classes, factors: (n, 4) corners, and (n,) each.
            step: an earlier refinement that they were scored with; None for the detector's own.

        Raises:
            ValueError: a class number is not the dataset's.
        """
        known = len(self._record.categories)
        if len(classes) and not (0 <= classes.min() and classes.max() < known):
            raise ValueError(
                f"a prediction has class {int(classes.max())}, but dataset '{self._record.name}' "
                f"has {counted(known, 'class')}: the model was made for other classes"
            )
        order = np.argsort(-scores, kind="stable")
        columns = {
            "image": np.full(len(scores), image, dtype=np.int64),
            "class": classes.astype(np.int64),
            "score": scores.astype(np.float64),
            **box_columns(boxes.astype(np.float64)),
            **{name: c.astype(np.float64) for name, c in factor_columns(factors).items()},
        }
        columns = {name: column[order] for name, column in columns.items()}
        if step is None:
            self._detections[image] = columns
        else:
            self._steps.write({"step": np.full(len(scores), step, dtype=np.int8), **columns})

    def add_candidates(self, columns: Mapping[str, np.ndarray]) -> None:
        """Rows of the table of candidates as its file has them."""
        self._candidates.write(columns)

    def close(self) -> None:
        """Write what is not written yet."""
        self._candidates.close()
        self._steps.close()
        self._write("images", _image_columns(self._record))
        self._write("objects", self._object_columns())
        self._write("detections", self._detection_columns())

    def _write(self, name: str, columns: Mapping[str, np.ndarray]) -> None:
        writer = ColumnWriter(self._folder, name)
        writer.write(columns)
        writer.close()

    def _object_columns(self) -> dict[str, np.ndarray]:
        table = self._record.annotations
        order = np.concatenate([np.empty(0, dtype=np.int64), *self._rows])
        columns = {
            "image": table.images,
            "class": table.classes,
            **box_columns(_corners(table.boxes)),
            "area": table.areas,
            "crowd": table.crowd,
            "ignore": table.crowd | table.difficult,
            "anchor_iou": self._anchor_ious,
        }
        return {name: column[order] for name, column in columns.items()}

    def _detection_columns(self) -> dict[str, np.ndarray]:
        parts = [self._detections[image] for image in sorted(self._detections)]
        empty = np.empty(0)
        if not parts:
            whole = empty.astype(np.int64)
            parts = [
                {"image": whole, "class": whole, "score": empty, **box_columns(np.empty((0, 4)))}
            ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _image_columns(record: Record) -> dict[str, np.ndarray]:
    images = record.images
    whole = all(isinstance(one, int) and abs(one) < 2**63 for one in images.ids)
    # Names that are no UTF-8 are shown with their bytes; nothing else can stand in a column.
    files = [
        os.fsencode(os.path.abspath(x)).decode("utf-8", "backslashreplace") for x in images.files
    ]
    return {
        "id": np.array(images.ids, np.int64)
        if whole
        else np.array(list(map(str, images.ids)), str),
        "path": np.array(files, dtype=str),
        "width": images.widths,
        "height": images.heights,
    }


def _corners(boxes: np.ndarray) -> np.ndarray:
    """x, y, width, height to corners."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


@contextlib.contextmanager
def write_dump(
    path: str | os.PathLike,
    record: Record,
    about: Mapping[str, object],
    *,
    sources: Sequence[str] = (),
) -> Iterator[DumpWriter]:
    """A dump that is there, whole, when the block has ended well; an old one stays until then.

    Args:
        path: the folder to make.
        record: of the dataset.
        about: what to remember of the pass; see :class:`Dump`.
        sources: what predicts the candidates.

    Raises:
        ValueError: as :func:`check_output`.
    """
    path = Path(path)
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with told_as(path, temporary):
        temporary.mkdir()
    try:
        writer = DumpWriter(temporary, record)
        yield writer
        writer.close()
        content = {
            "kind": KIND,
            "version": VERSION,
            "dataset": record.name,
            "source": record.source,
            "class_names": record.class_names,
            "annotated": record.annotated,
            "sources": list(sources),
            **about,
        }
        (temporary / "about.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        _put_in_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(written: Path, path: Path) -> None:
    old = path.with_name(f"{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(written, path)
    shutil.rmtree(old, ignore_errors=True)
