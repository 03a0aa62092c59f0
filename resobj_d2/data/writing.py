"""What the writers of all formats share: names of pictures, placing them, refusing to overwrite."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .record import ImageTable, Record

__all__ = [
    "PICTURES",
    "check_names",
    "join_images_of_a_file",
    "new_file",
    "picture_names",
    "picture_root",
    "place_pictures",
    "refuse_equal",
    "say_lost",
]

logger = logging.getLogger(__name__)

PICTURES = ("link", "copy", "none")
# Control characters, ends of lines, and what XML does not allow.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def new_file(path: Path) -> Path:
    """The path, with its folder made.

    Raises:
        FileExistsError: it is there already.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already: choose another folder or split")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def join_images_of_a_file(record: Record) -> Record:
    """One image for each file, with the annotations of all images that the file stands for.

    For formats that know a picture by its file alone.
    """
    images = record.images
    first: dict[str, int] = {}
    rows = [first.setdefault(os.path.abspath(file), row) for row, file in enumerate(images.files)]
    kept = list(first.values())
    if len(kept) == len(images):
        return record
    logger.warning(
        "dataset '%s': images of a file that another image has are joined with it (%d in all)",
        *(record.name, len(images) - len(kept)),
    )
    position = np.zeros(len(images), dtype=np.int64)
    position[kept] = np.arange(len(kept))
    table = record.annotations
    return dataclasses.replace(
        record,
        images=ImageTable(
            ids=[images.ids[row] for row in kept],
            files=[images.files[row] for row in kept],
            widths=images.widths[kept],
            heights=images.heights[kept],
        ),
        annotations=dataclasses.replace(
            table, images=position[np.asarray(rows, dtype=np.int64)[table.images]]
        ),
    )


def picture_names(record: Record) -> list[str]:
    """Paths of the pictures below the folder that they have in common."""
    base = _base(record)
    return [
        os.path.relpath(os.path.abspath(file), base).replace(os.sep, "/")
        for file in record.images.files
    ]


def _base(record: Record) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in record.images.files])


def picture_root(record: Record, folder: Path, pictures: str) -> str:
    """What file names will be relative to."""
    return _base(record) if pictures == "none" else str(folder / "images")


def refuse_equal(record: Record, keys: Sequence[object], kind: str) -> None:
    """Refuse pictures that a format cannot tell apart.

    Args:
        keys: of each picture.
        kind: what they must differ in, for the message.

    Raises:
        ValueError: two are equal; the message names the pictures.
    """
    seen: dict[object, str] = {}
    for key, file in zip(keys, record.images.files, strict=True):
        if key in seen:
            raise ValueError(
                f"dataset '{record.name}': {seen[key]} and {file} do not differ in {kind}, by "
                "which this format knows them: rename one, or convert to coco"
            )
        seen[key] = file


def check_names(record: Record, names: Iterable[str], kind: str) -> None:
    """Refuse names that text files would give back changed.

    Args:
        kind: of name, for the message.

    Raises:
        ValueError: a name begins or ends with white space, or has a control character.
    """
    for name in names:
        if name != name.strip() or _UNSAFE.search(name):
            raise ValueError(
                f"dataset '{record.name}': the {kind} {name!r} would be read back as another one: "
                "rename it, or convert to coco"
            )


def place_pictures(record: Record, targets: Sequence[Path], pictures: str) -> None:
    """Link or copy the pictures to where they belong; those that are there stay.

    Raises:
        FileExistsError: another picture is there.
        FileNotFoundError: a picture is missing.
    """
    if pictures == "none":
        return
    for source, target in zip(record.images.files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if not os.path.samefile(source, target) and not _equal(source, target):
                raise FileExistsError(f"{target} is another picture than {source}")
        elif not os.path.isfile(source):
            raise FileNotFoundError(f"dataset '{record.name}': there is no picture {source}")
        elif pictures == "link":
            target.symlink_to(os.path.abspath(source))
        else:
            shutil.copyfile(source, target)


def _equal(first: str, second: Path) -> bool:
    if not os.path.isfile(first) or not second.is_file():  # a pipe has no end
        return False
    if os.path.getsize(first) != os.path.getsize(second):
        return False
    return Path(first).read_bytes() == second.read_bytes()


def say_lost(record: Record, name: str, **kinds: bool) -> None:
    """Say what the format cannot hold."""
    table = record.annotations
    counts = {
        "crowd regions": int(table.crowd.sum()) if kinds.get("crowd") else 0,
        "marks of difficult objects": int(table.difficult.sum()) if kinds.get("difficult") else 0,
        "masks": sum(m is not None for m in table.masks) if kinds.get("masks") else 0,
        "sets of keypoints": (
            sum(k is not None for k in table.keypoints) if kinds.get("keypoints") else 0
        ),
    }
    lost = ", ".join(f"{kind} ({count})" for kind, count in counts.items() if count)
    if lost:
        logger.warning("dataset '%s': %s stay out, which %s does not hold", record.name, lost, name)
