"""Reading a COCO json into a record, with messages that say what is wrong and where.

Needs no Detectron2. The file is read item by item: of a million annotations what is kept are
columns of numbers.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .assemble import Rows, assemble, image_table
from .coco_categories import read_categories
from .json_stream import read_object
from .masks import mended_mask
from .notes import Notes
from .record import Category, ImageTable, Record
from .values import FLAGS, is_number, number_of, whole_number_of

__all__ = ["read_coco_content", "read_coco_json"]

_SHOWN = 3  # examples in a message
_LARGEST = 1e300  # area; whole numbers in json may be beyond float64
_LISTS = ("images", "annotations", "categories")


def read_coco_json(
    json_file: Path,
    dataset_name: str,
    image_root: str | os.PathLike = "",
    *,
    box_format: str | None = None,
    ours: bool = True,
    refuse: bool | None = None,
) -> Record:
    """Read a COCO json and check everything that would fail later or, worse, would not fail.

    Args:
        json_file: the file.
        dataset_name: for messages and the record.
        image_root: what file names are relative to.
        box_format: one of :data:`.box_checks.BOX_FORMATS`; None for x, y, width, height, which are
            then compared with the pictures.
        ours: False for a file that other code registered: images then need no file name, categories
            no name, annotations no id of their own.
        refuse: whether boxes of another convention are refused, or just noted; by default ``ours``.

    Raises:
        FileNotFoundError: there is no such file; the message has its absolute path.
        ValueError: the json is broken or inconsistent; the message names the dataset, the file and
            the first entries at fault by id.
    """
    where = f"dataset '{dataset_name}' ({json_file.absolute()})"
    if not json_file.is_file():
        raise FileNotFoundError(f"{where}: there is no such json file")
    reader = _Reader(where, ours)
    try:
        found = read_object(json_file, reader.sinks())
    except TypeError as error:
        raise ValueError(
            f"{where}: a COCO dataset is one object with the lists 'images', 'annotations' and "
            f"'categories', this file holds a {error}. Is it a results file?"
        ) from None
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: not valid json: {error}") from None
    reader.refuse = ours if refuse is None else refuse
    return reader.record(found, dataset_name, str(json_file), os.fspath(image_root), box_format)


def read_coco_content(content: Mapping, dataset_name: str = "the dataset") -> Record:
    """The record of a COCO json that is in memory already, as lenient as with ``ours=False``."""
    reader = _Reader(f"dataset '{dataset_name}'", ours=False)
    found = {}
    for key, value in content.items():
        found[key] = type(value).__name__
        if key in _LISTS and isinstance(value, list):
            for position, item in enumerate(value):
                reader.sinks()[key](item, position)
    return reader.record(found, dataset_name, "", "", None)


class _Reader:
    """Collects the items of the three lists, which may come in any order, then connects them."""

    def __init__(self, where: str, ours: bool) -> None:
        self.where = where
        self.ours = ours
        self.refuse = False
        self.notes = Notes(where)
        self.images: list[dict] = []
        self.categories: list[dict] = []
        self.rows = Rows()
        self.encoded: dict[int, dict] = {}
        self.keypoints: dict[int, object] = {}

    def sinks(self) -> dict:
        return {
            "images": self.add_image,
            "annotations": self.add_annotation,
            "categories": self.add_category,
        }

    def add_image(self, item: object, position: int) -> None:
        image = self._item(item, "images", position)
        kept = ("id", "file_name", "width", "height")
        self.images.append({key: image[key] for key in kept if key in image})

    def add_category(self, item: object, position: int) -> None:
        self.categories.append(self._item(item, "categories", position))

    def _item(self, item: object, key: str, position: int) -> dict:
        if not isinstance(item, dict) or "id" not in item:
            shown = reprlib.repr(item)
            raise ValueError(
                f"{self.where}: {key}[{position}] must be an object with 'id', got {shown}"
            )
        identity = item["id"]
        if type(identity) is float and identity.is_integer():
            item["id"] = identity = int(identity)
            self.notes.add("text_number", f"{key}[{position}]: id {identity}.0")
        if type(identity) not in (int, str):
            raise ValueError(
                f"{self.where}: {key}[{position}]: 'id' must be a whole number or a string, got "
                f"{identity!r}"
            )
        return item

    def add_annotation(self, item: object, position: int) -> None:
        # The common case without a detour, since there may be millions.
        if not (isinstance(item, dict) and type(item.get("id")) is int):
            if isinstance(item, dict) and not self.ours:
                item = {"id": position + 1, **item}
            item = self._item(item, "annotations", position)
        rows, row = self.rows, len(self.rows.ids)
        box = item.get("bbox")
        if not (type(box) is list and len(box) == 4 and all(map(is_number, box))):
            box = self._mended_box(box, item)
        try:
            rows.boxes.extend(box)
        except OverflowError:
            raise ValueError(
                f"{self._label(item)}: 'bbox' has a number beyond all limits"
            ) from None
        area = item.get("area", math.nan)
        if not (is_number(area) and (0 < area < _LARGEST or "area" not in item)):
            area = self._mended_area(area, item)
        rows.areas.append(area)
        crowd = item.get("iscrowd", 0)
        if not (type(crowd) is int and 0 <= crowd <= 1):
            crowd = self._mended_flag("iscrowd", item)
        ignore = self._mended_flag("ignore", item) if "ignore" in item else 0
        if ignore and not crowd:
            self.notes.add("ignored", self._short(item))
        rows.crowd.append(crowd | ignore)
        rows.difficult.append(self._mended_flag("difficult", item) if "difficult" in item else 0)
        rows.ids.append(item["id"])
        rows.images.append(item.get("image_id"))
        rows.classes.append(item.get("category_id"))
        rows.masks.append(
            self._mask(item["segmentation"], row, item) if "segmentation" in item else None
        )
        if item.get("keypoints"):
            self.keypoints[row] = item["keypoints"]

    def _mask(self, segmentation: object, row: int, item: dict) -> list[np.ndarray] | None:
        """Polygons; run-length masks wait for the size of their picture."""
        if segmentation is None or segmentation == []:
            return None
        if isinstance(segmentation, dict):
            self.encoded[row] = segmentation
            return None
        return self._read_mask(segmentation, None, self._short(item))  # type: ignore[return-value]

    def _read_mask(
        self, segmentation: object, size: tuple[int, int] | None, label: str
    ) -> list[np.ndarray] | dict | None:
        mask, kind, what = mended_mask(segmentation, size)
        if kind:
            self.notes.add(kind, f"{label}: {what}")
        return mask

    def _short(self, item: dict) -> str:
        return f"annotation {item['id']} of image {item.get('image_id')}"

    def _label(self, item: dict) -> str:
        return f"{self.where}: annotation {item['id']!r} on image {item.get('image_id')!r}"

    def _mended_box(self, box: object, item: dict) -> list[float]:
        numbers = [number_of(v) for v in box] if isinstance(box, list) else []
        if len(numbers) != 4 or None in numbers:
            raise ValueError(
                f"{self._label(item)} needs a 'bbox' of four numbers (x, y, width, height), got "
                f"{reprlib.repr(box)}"
            )
        self.notes.add("text_number", f"{self._short(item)}: bbox {box}")
        return numbers

    def _mended_area(self, area: object, item: dict) -> float:
        number = number_of(area)
        if number is not None and 0 < number < _LARGEST:
            self.notes.add("text_number", f"{self._short(item)}: area {area!r}")
            return number
        self.notes.add("area", f"{self._short(item)}: {reprlib.repr(area)}")
        return math.nan

    def _mended_flag(self, key: str, item: dict) -> int:
        value = item[key]
        if type(value) is int and 0 <= value <= 1:
            return value
        flag = FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
        if value is None or value is False:
            flag = 0
        elif value is True or (type(value) is float and value in (0.0, 1.0)):
            flag = int(value)
        if flag is None:
            raise ValueError(f"{self._label(item)}: '{key}' must be 0 or 1, got {value!r}")
        if type(value) is not bool:
            self.notes.add("flag", f"{self._short(item)}: {key} {value!r}")
        return flag

    def record(
        self, found: dict, name: str, source: str, image_root: str, box_format: str | None
    ) -> Record:
        """Check the lists against each other, and assemble."""
        annotated = "annotations" in found
        has_categories = bool(self.rows.ids) or "categories" in found
        needed = {"images": True, "annotations": annotated, "categories": has_categories}
        for key in (key for key, is_needed in needed.items() if is_needed):
            if found.get(key) != "list":
                present = ", ".join(map(repr, found)) or "nothing"
                raise ValueError(
                    f"{self.where}: the list '{key}' is missing; the file has {present}"
                )
        if not self.images:
            raise ValueError(f"{self.where}: 'images' is empty")
        self._refuse_repeated("images", [image["id"] for image in self.images])
        if self.ours:  # minival of COCO 2014 repeats some
            self._refuse_repeated("annotations", self.rows.ids)
        self._refuse_repeated("categories", [category["id"] for category in self.categories])
        images = self._image_table(image_root)
        categories = self._resolve(images)
        self._read_shapes(images)
        return assemble(
            name=name,
            source=source,
            categories=categories,
            images=images,
            rows=self.rows,
            notes=self.notes,
            box_format=box_format or "xywh",
            stated=box_format is not None,
            refuse=self.refuse,
            annotated=annotated,
        )

    def _refuse_repeated(self, key: str, ids: list) -> None:
        if len(set(ids)) == len(ids):
            return
        repeated = [identity for identity, n in Counter(ids).items() if n > 1]
        shown = ", ".join(map(repr, repeated[:_SHOWN]))
        raise ValueError(
            f"{self.where}: {len(repeated)} ids occur twice in '{key}', for instance {shown}"
        )

    def _image_table(self, image_root: str) -> ImageTable:
        # As Detectron2 orders them: reproducible, however the json was written.
        self.images.sort(key=lambda image: (isinstance(image["id"], str), image["id"]))
        files, sizes = [], []
        for image in self.images:
            keys = ("file_name", "width", "height") if self.ours else ("width", "height")
            missing = [key for key in keys if key not in image]
            if missing:
                raise ValueError(
                    f"{self.where}: image {image['id']!r} has no {' and no '.join(missing)}"
                )
            files.append(os.path.join(image_root, self._file_name(image)))
            sizes.append((self._side(image, "width"), self._side(image, "height")))
        return image_table([image["id"] for image in self.images], files, sizes)

    def _file_name(self, image: dict) -> str:
        name = image.get("file_name", "")
        if not isinstance(name, str) or "\0" in name or (self.ours and not name.strip()):
            raise ValueError(
                f"{self.where}: image {image['id']!r}: 'file_name' must be a non-empty string, got "
                f"{name!r}"
            )
        if "\\" in name:
            self.notes.add("backslash", f"image {image['id']}: {name}")
            name = name.replace("\\", "/")
        return name

    def _side(self, image: dict, key: str) -> int:
        value = image[key]
        number = value if type(value) is int else whole_number_of(value)
        if number is None or not 0 < number < 2**31:
            raise ValueError(
                f"{self.where}: image {image['id']!r}: '{key}' must be a whole number of pixels, "
                f"at least 1, got {reprlib.repr(value)}"
            )
        if type(value) is not int:
            self.notes.add("text_number", f"image {image['id']}: {key} {value!r}")
        return number

    def _resolve(self, images: ImageTable) -> tuple[Category, ...]:
        """Replace ids of images and categories by rows and class numbers."""
        rows = self.rows
        image_rows = {identity: row for row, identity in enumerate(images.ids)}
        rows.images = self._references(
            "image_id", rows.images, image_rows, lambda i: f"{i!r}, which is not in 'images'"
        )
        used = {whole_number_of(value) for value in _distinct(rows.classes)}
        categories = read_categories(
            self.categories, used, self.where, self.notes, need_names=self.ours
        )
        numbers = {category.id: number for number, category in enumerate(categories)}
        known = ", ".join(f"{c['id']}={c.get('name')}" for c in self.categories[:10])
        known += ", ..." if len(self.categories) > 10 else ""
        rows.classes = self._references(
            "category_id",
            rows.classes,
            numbers,
            lambda i: f"{i!r}, which is not in 'categories' ({known})",
        )
        return categories

    def _references(self, key: str, values: list, known: dict, complaint) -> list[int]:
        try:
            found = [known.get(value, -1) for value in values]
        except TypeError:  # not hashable
            found = [known.get(v, -1) if type(v) in (int, float, str) else -1 for v in values]
        booleans = {row for row, value in enumerate(values) if value is True or value is False}
        if -1 not in found and not booleans:
            return found
        by_text = {str(identity): row for identity, row in known.items()}
        for row, value in enumerate(values):
            if found[row] >= 0 and row not in booleans:
                continue
            text = str(whole_number_of(value)) if type(value) is float else value
            match = by_text.get(text, -1) if isinstance(text, str) else by_text.get(str(value), -1)
            label = f"annotation {self.rows.ids[row]!r}"
            if match < 0 or row in booleans:
                raise ValueError(self._reference_error(key, row, complaint(value)))
            self.notes.add("text_number", f"{label}: {key} {value!r}")
            found[row] = match
        return found

    def _reference_error(self, key: str, row: int, complaint: str) -> str:
        label = f"{self.where}: annotation {self.rows.ids[row]!r}"
        if key == "image_id":
            return f"{label} is on image {complaint}"
        image = self.images[self.rows.images[row]]
        label = f"{label} on image {image['id']!r} ('{image.get('file_name')}')"
        return f"{label} has category_id {complaint}"

    def _read_shapes(self, images: ImageTable) -> None:
        """Run-length masks, which need the picture's size, and keypoints."""
        rows = self.rows
        rows.keypoints = [None] * len(rows.ids)
        for row, segmentation in self.encoded.items():
            image = rows.images[row]
            size = (int(images.widths[image]), int(images.heights[image]))
            label = f"annotation {rows.ids[row]} of image {images.ids[image]}"
            rows.masks[row] = self._read_mask(segmentation, size, label)
        for row, values in self.keypoints.items():
            rows.keypoints[row] = _read_keypoints(values)
            if rows.keypoints[row] is None:
                shown = reprlib.repr(values)
                self.notes.add("keypoints", f"annotation {rows.ids[row]}: {shown}")


def _distinct(values: list) -> set:
    try:
        return set(values)
    except TypeError:
        return {value for value in values if type(value) in (int, float, str)}


def _read_keypoints(values: object) -> np.ndarray | None:
    """(keypoints, 3), or None where they are no such list."""
    if not isinstance(values, list) or len(values) % 3 or not all(map(is_number, values)):
        return None
    try:
        return np.array(values, dtype=np.float64).reshape(-1, 3)
    except OverflowError:
        return None
