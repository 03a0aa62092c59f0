"""Reading YOLO's datasets: a text file of normalised boxes beside or parallel to every picture."""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resobj_d2.process import counted
from resobj_d2.process.yaml_text import parse_yaml

from .assemble import Rows, assemble, image_table
from .notes import Notes
from .picture_files import PICTURE_ENDINGS, picture_size
from .record import Category, Record
from .text_files import read_text
from .values import whole_number_of
from .yolo_lines import LineReader

__all__ = [
    "YoloFolder",
    "label_of",
    "read_yaml",
    "read_yolo",
    "yolo_folder",
    "yolo_splits",
    "yolo_yaml",
]

_SPLITS = ("train", "val", "test")
_NO_SPLITS = (*_SPLITS, "path", "names")
_LONGEST_YAML = 1_000_000  # characters


@dataclass(frozen=True, kw_only=True)
class YoloFolder:
    """Where the pictures and label files of a split are.

    Attributes:
        names: of the classes, by number.
        pictures: image id to picture.
        labels: image id to label file, which may be missing.
        source: what the user named, for messages.
        keypoints: number of keypoints and of values for each, or (0, 0).
    """

    names: tuple[str, ...]
    pictures: dict[str, Path]
    labels: dict[str, Path]
    source: Path
    keypoints: tuple[int, int] = (0, 0)


def yolo_folder(
    images: Path, labels: Path | None, names: Sequence[str] | None, dataset_name: str
) -> YoloFolder:
    """Pictures of a folder and its subfolders.

    Args:
        images: the pictures.
        labels: the label files, in the same subfolders; None for ``labels`` in place of ``images``
            in the path, else beside the pictures.
        names: of the classes by number; None for ``classes.txt`` among the label files.

    Raises:
        FileNotFoundError: a folder or the names are missing.
        ValueError: there is no picture.
    """
    where = f"dataset '{dataset_name}'"
    for folder in filter(None, (images, labels)):
        if not folder.is_dir():
            raise FileNotFoundError(f"{where}: there is no folder {folder}")
    pictures = _named(_pictures_below(images), images)
    if not pictures:
        raise ValueError(f"{where}: there is no picture in {images}")
    if labels is None:
        label_files = {identity: label_of(path) for identity, path in pictures.items()}
        label_root = next(iter(label_files.values())).parent
    else:
        label_files = {
            identity: labels / path.relative_to(images).with_suffix(".txt")
            for identity, path in pictures.items()
        }
        label_root = labels
    if names is None:
        lists = [folder / "classes.txt" for folder in (label_root, label_root.parent, images)]
        found = next((path for path in lists if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"{where}: the names of the classes are missing: give 'yaml' or 'classes', or put "
                f"them into {lists[0]}, one on a line"
            )
        names = [line.strip() for line in read_text(found, where).splitlines() if line.strip()]
    return YoloFolder(
        names=_checked_names(list(names), where),
        pictures=pictures,
        labels=label_files,
        source=images,
    )


def yolo_yaml(yaml_file: Path, split: str, dataset_name: str) -> YoloFolder:
    """The split of a ``data.yaml``: ``path``, ``train``, ``val``, ``test``, ``names``.

    A split is a folder of pictures, a text file that lists them, or several of these.

    Raises:
        FileNotFoundError: the yaml, a folder or a listed picture is missing.
        ValueError: the yaml lacks something; the message says what.
    """
    where = f"dataset '{dataset_name}' ({yaml_file})"
    if not yaml_file.is_file():
        raise FileNotFoundError(f"{where}: there is no such yaml file")
    content = read_yaml(yaml_file, where)
    if not isinstance(content, dict) or "names" not in content:
        raise ValueError(f"{where}: a YOLO dataset needs 'names', the list of its classes")
    given = content.get(split)
    entries = [given] if isinstance(given, str) else given
    if not entries or not isinstance(entries, list) or not all(isinstance(e, str) for e in entries):
        splits = ", ".join(yolo_splits(yaml_file)) or "none: 'train: FOLDER' would be one"
        raise ValueError(f"{where}: there is no split '{split}'; it has {splits}")
    names = _names_of(yaml_file, content["names"], where)
    if "nc" in content and whole_number_of(content["nc"]) != len(names):
        counted = f"{len(names)} name{'' if len(names) == 1 else 's'}"
        raise ValueError(f"{where}: 'nc' is {content['nc']!r}, but 'names' has {counted}")
    root = _root(yaml_file, content.get("path"))
    files: list[Path] = []
    for entry in entries:
        files += _pictures_of(_existing(root, entry, where), root, where)
    pictures = _named(dict.fromkeys(files), root)
    if not pictures:
        raise ValueError(f"{where}: split '{split}' has no picture")
    return YoloFolder(
        names=names,
        pictures=pictures,
        labels={identity: label_of(path) for identity, path in pictures.items()},
        source=yaml_file,
        keypoints=_keypoint_shape(content.get("kpt_shape"), where),
    )


def yolo_splits(yaml_file: Path) -> dict[str, str]:
    """The splits that a ``data.yaml`` lists, and for each what is missing of it, or "".

    Those called train, val and test; then other keys that name a folder or list that is there.

    Raises:
        ValueError: it is no yaml.
    """
    content = read_yaml(yaml_file, str(yaml_file))
    if not isinstance(content, dict):
        return {}
    root = _root(yaml_file, content.get("path"))
    splits = {}
    others = [key for key in content if isinstance(key, str) and key not in _NO_SPLITS]
    for key in (*_SPLITS, *others):
        value = content.get(key)
        # "test:" with nothing after it is what templates of this file have.
        entries = [value] if isinstance(value, str) else value
        if not entries or not isinstance(entries, list):
            continue
        missing = [e for e in entries if not isinstance(e, str) or not _find(root, e)]
        is_list = isinstance(entries[0], str) and entries[0].endswith(".txt")
        if key in _SPLITS or not (missing or os.path.isfile(root / entries[0]) and not is_list):
            splits[key] = f"there is no folder or list {missing[0]}" if missing else ""
    return splits


def read_yaml(yaml_file: Path, where: str, *, strings: bool = False) -> object:
    """The content of a ``data.yaml``, within the limits of :mod:`resobj_d2.process.yaml_text`."""
    text = read_text(yaml_file, where)
    if len(text) > _LONGEST_YAML:
        raise ValueError(f"{where}: a yaml of {len(text)} characters is no list of classes")
    return parse_yaml(text, where, max_nodes=_LONGEST_YAML, aliases=False, strings=strings)


def _names_of(yaml_file: Path, given: object, where: str) -> tuple[str, ...]:
    """The names as they are written: a class may be called ``yes`` or ``1.0``."""
    values = _names_by_number(given, where)
    content = read_yaml(yaml_file, where, strings=True)
    assert isinstance(content, dict)
    names = _names_by_number(content["names"], where)
    pairs = zip(values, names, strict=True)
    return _checked_names(["" if value is None else name for value, name in pairs], where)


def _root(yaml_file: Path, given: object) -> Path:
    beside = yaml_file.absolute().parent
    if not isinstance(given, str) or not given:
        return beside
    path = Path(given).expanduser()
    # Where a set was moved, its yaml may still name the old place.
    candidates = [path] if path.is_absolute() else [beside / path, path.absolute()]
    return next((candidate for candidate in candidates if candidate.is_dir()), beside)


def _find(root: Path, entry: str) -> Path | None:
    # Some exporters write ../train/images for what lies beside the yaml.
    candidates = [root / entry, root / entry.removeprefix("../")]
    return next((path for path in candidates if os.path.exists(path)), None)


def _existing(root: Path, entry: str, where: str) -> Path:
    found = _find(root, entry)
    if found is None:
        raise FileNotFoundError(f"{where}: there is no folder or list {root / entry}")
    return found


def _pictures_of(path: Path, root: Path, where: str) -> list[Path]:
    if path.is_dir():
        return _pictures_below(path)
    pictures = []
    for line in filter(None, map(str.strip, read_text(path, where).splitlines())):
        candidates = [path.parent / line, root / line]
        found = next((p for p in candidates if p.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{where}: {path} lists {line}, which does not exist")
        pictures.append(found)
    return pictures


def _pictures_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_ENDINGS and path.is_file()
    )


def _named(files, root: Path) -> dict[str, Path]:
    """By path below the folder without its ending; with it, where two pictures differ in that."""
    named: dict[str, Path] = {}
    for path in files:
        name = path.relative_to(root) if path.is_relative_to(root) else path
        identity = name.with_suffix("").as_posix()
        named[name.as_posix() if identity in named else identity] = path
    return named


def label_of(picture: Path) -> Path:
    """Where a picture's label file is: ``labels`` in place of the path's last folder ``images``,
    else beside it."""
    parts = list(picture.parent.parts)
    for position in range(len(parts) - 1, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            return Path(*parts) / f"{picture.stem}.txt"
    return picture.with_suffix(".txt")


def _names_by_number(names: object, where: str) -> list:
    if isinstance(names, dict):
        numbers = [whole_number_of(key) for key in names]
        if sorted(n for n in numbers if n is not None) != list(range(len(names))):
            raise ValueError(
                f"{where}: the numbers of 'names' must be 0 to {len(names) - 1}, got {list(names)}"
            )
        return [name for _, name in sorted(zip(numbers, names.values(), strict=True))]
    if not isinstance(names, list):
        raise ValueError(f"{where}: 'names' must be a list or a dict, got {reprlib.repr(names)}")
    return names


def _checked_names(names: list, where: str) -> tuple[str, ...]:
    stripped = [name.strip() if isinstance(name, str) else "" for name in names]
    if not stripped or not all(stripped):
        shown = reprlib.repr(names)
        raise ValueError(f"{where}: the names of the classes must be strings, got {shown}")
    twice = [name for name, count in Counter(stripped).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: two classes are called {twice[0]!r}")
    return tuple(stripped)


def _keypoint_shape(shape: object, where: str) -> tuple[int, int]:
    if shape is None:
        return 0, 0
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and n > 0 for n in shape)
        or shape[1] not in (2, 3)
    ):
        raise ValueError(f"{where}: 'kpt_shape' must be [keypoints, 2 or 3], got {shape!r}")
    return shape[0], shape[1]


def read_yolo(folder: YoloFolder, dataset_name: str, *, box_format: str | None = None) -> Record:
    """Read the label files of a split.

    Each line is a class number and a box (centre, width, height as parts of the picture), followed
    by keypoints where the yaml has ``kpt_shape``; or a class number and a polygon, whose box is
    taken and which is the mask. A picture without a label file, or with an empty one, is empty.

    Args:
        folder: of :func:`yolo_yaml` or :func:`yolo_folder`.
        box_format: where boxes are written otherwise; one of :data:`.box_checks.BOX_FORMATS`.

    Raises:
        ValueError: a line cannot be read, or there is no label file at all.
    """
    where = f"dataset '{dataset_name}' ({folder.source})"
    notes = Notes(where)
    stated, box_format = box_format is not None, box_format or "normalized_cxcywh"
    lines = LineReader(folder.names, folder.keypoints, box_format)
    rows, sizes = Rows(), []
    normalized = box_format.startswith("normalized")
    found = 0
    for row, (identity, picture) in enumerate(folder.pictures.items()):
        sizes.append(picture_size(picture))
        label_file = folder.labels[identity]
        if not label_file.is_file():
            notes.add("no_label_file", str(label_file))
            continue
        found += 1
        scale = sizes[-1] if normalized else (1, 1)
        for number, line in enumerate(read_text(label_file, where).splitlines(), start=1):
            if line.strip():
                place = f"{label_file}, line {number}"
                lines.add(rows, row, line, scale, place)
    if not found:
        example = next(iter(folder.labels.values()))
        raise ValueError(
            f"{where}: {counted(len(folder.pictures), 'picture')} and no label file; for "
            f"instance {example} is missing"
        )
    lines.check(notes)
    names = tuple(f"keypoint {i}" for i in range(folder.keypoints[0]))
    return assemble(
        name=dataset_name,
        source=str(folder.source),
        categories=[
            Category(id=i, name=name, keypoints=names) for i, name in enumerate(folder.names)
        ],
        images=image_table(
            list(folder.pictures), [str(path) for path in folder.pictures.values()], sizes
        ),
        rows=rows,
        notes=notes,
        box_format=box_format,
        stated=stated,
    )
