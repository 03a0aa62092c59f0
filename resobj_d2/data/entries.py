"""The entries of ``DATASETS.REGISTER``: a dataclass for each format, and their parsing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from resobj_d2.process import did_you_mean, similar_names

from .box_checks import BOX_FORMATS
from .voc_xml import VOC_CLASSES

__all__ = [
    "CocoEntry",
    "CsvEntry",
    "Entry",
    "ScenesEntry",
    "VocEntry",
    "YoloEntry",
    "parse_entry",
]


@dataclass(frozen=True)
class CocoEntry:
    """A COCO json and the folder its file names are relative to.

    ``classes`` picks classes by name, in the order of the class numbers; None takes all by id.
    ``box_format`` says how boxes are written; None takes COCO's and compares with the pictures.
    """

    name: str
    json: str
    images: str
    classes: tuple[str, ...] | None = None
    box_format: str | None = None


@dataclass(frozen=True)
class VocEntry:
    """A folder in Pascal VOC's layout; ``year`` 2007 selects the 11-point AP of that challenge.

    ``classes`` picks classes by name; None stands for VOC's, and another one is then an error.
    ``first_pixel`` is 0 where coordinates start at 0, against VOC's rule. ``box_format`` as for
    ``coco``: some write other numbers under ``xmin`` to ``ymax``.
    """

    name: str
    root: str
    split: str = ""
    classes: tuple[str, ...] | None = None
    year: int = 2012
    first_pixel: int = 1
    box_format: str | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class number."""
        return VOC_CLASSES if self.classes is None else self.classes


@dataclass(frozen=True)
class YoloEntry:
    """YOLO's text files: the split of a ``data.yaml``, or a folder of pictures.

    Without ``labels`` the label files are found as YOLO does: ``labels`` in place of ``images``.
    ``classes`` picks from the names of the yaml or ``classes.txt``; without either it is them.
    ``box_format`` as for ``coco``.
    """

    name: str
    yaml: str | None = None
    split: str = "train"
    images: str | None = None
    labels: str | None = None
    classes: tuple[str, ...] | None = None
    box_format: str | None = None


@dataclass(frozen=True)
class CsvEntry:
    """A CSV file with a box on every line, and the folder its file names are relative to.

    ``classes`` and ``box_format`` as for ``coco``; without them classes are in alphabetical order,
    and the names of the columns tell how boxes are written.
    """

    name: str
    csv: str
    images: str
    classes: tuple[str, ...] | None = None
    box_format: str | None = None


@dataclass(frozen=True)
class ScenesEntry:
    """A split of the generated scenes, generated where missing when they are first needed.

    ``root`` is the folder of datasets (default: ``DETECTRON2_DATASETS``, else ``datasets``),
    ``folder`` the set's folder in it; the others are those of :func:`.scenes.ensure_scenes` and
    :class:`.scenes.style.SceneStyle`.
    """

    name: str
    split: str
    root: str | None = None
    folder: str = "scenes"
    image_size: int = 160
    num_train: int = 1200
    num_val: int = 200
    seed: int = 0
    max_objects: int = 0
    max_diameter: int = 0
    look_alikes: bool = False
    distractors: int = 8


Entry = CocoEntry | VocEntry | YoloEntry | CsvEntry | ScenesEntry
FORMATS: dict[str, type[Entry]] = {
    "coco": CocoEntry,
    "voc": VocEntry,
    "yolo": YoloEntry,
    "csv": CsvEntry,
    "scenes": ScenesEntry,
}


def parse_entry(raw: object, where: str) -> Entry:
    """An entry as its dataclass.

    Raises:
        ValueError: a key or value is wrong; the message says which and begins with ``where``.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be a dict, got {raw!r}")
    where = f"{where} ('{raw['name']}')" if "name" in raw else where
    name_of_format = raw.get("format", "coco")
    if not isinstance(name_of_format, str) or name_of_format not in FORMATS:
        raise ValueError(
            f"{where}: unknown format {name_of_format!r}; known are {', '.join(FORMATS)}"
            f"{did_you_mean(str(name_of_format), FORMATS, most=1)}"
        )
    kind = FORMATS[name_of_format]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given = {key: value for key, value in raw.items() if key != "format"}
    for key in given:
        if key not in fields:
            similar = similar_names(str(key), fields, most=1)
            raise ValueError(
                f"{where}: unknown key {key!r}; the keys of format '{name_of_format}' are "
                f"{', '.join(fields)}" + (f". Did you mean '{similar[0]}'?" if similar else "")
            )
    for key, field in fields.items():
        if key not in given and field.default is dataclasses.MISSING:
            raise ValueError(f"{where}: format '{name_of_format}' needs the key '{key}'")
    _check_values(given, where)
    if kind is YoloEntry and ("yaml" in given) == ("images" in given):
        raise ValueError(f"{where}: format 'yolo' needs either the key 'yaml' or the key 'images'")
    if given.get("classes") is not None:
        given["classes"] = tuple(given["classes"])
    return kind(**given)


def _check_values(given: dict, where: str) -> None:
    for key in ("name", "json", "csv", "yaml", "images", "labels", "root", "split", "folder"):
        value = given.get(key, "unset")
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: '{key}' must be a non-empty string, got {value!r}")
    classes = given.get("classes", ["unset"])
    if (
        not isinstance(classes, (list, tuple))
        or not classes
        or not all(isinstance(name, str) for name in classes)
        or len(set(classes)) < len(classes)
    ):
        raise ValueError(f"{where}: 'classes' must be a list of distinct strings, got {classes!r}")
    choices = {"year": (2007, 2012), "first_pixel": (0, 1), "box_format": tuple(BOX_FORMATS)}
    for key, allowed in choices.items():
        value = given.get(key, allowed[0])
        if isinstance(value, bool) or value not in allowed:  # True is 1 to Python
            words = ", ".join(map(str, allowed[:-1]))
            raise ValueError(
                f"{where}: '{key}' must be {words} or {allowed[-1]}, got {given[key]!r}"
            )
