"""Reading folders of Pascal VOC annotations, and what labelImg and others write in their form."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .assemble import Rows, assemble, image_table
from .notes import Notes
from .picture_files import PictureFolder, picture_size
from .record import Category, Record
from .text_files import read_text
from .values import FLAGS, number_of, whole_number_of

__all__ = [
    "VOC_CLASSES",
    "VocFolder",
    "foreign_class",
    "named_classes",
    "read_voc",
    "voc_folder",
    "voc_lists",
]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MARK = re.compile(r"\s+(-1|0|1)$")  # of a per-class list: the image has the class or not


@dataclass(frozen=True)
class VocFolder:
    """Where the annotations and pictures of a split are.

    Attributes:
        xml_files: by image id, in the order of the list.
        pictures: finds the picture of an image id.
        repeated: image ids that the list has more than once.
    """

    xml_files: dict[str, Path]
    pictures: PictureFolder
    repeated: list[str]

    def picture_of(self, identity: str) -> Path:
        """The picture of an image id, or where it should be."""
        picture = self.pictures.find(identity)
        if picture.is_file() or not self.xml_files[identity].is_file():
            return picture
        tree = parse_xml(self.xml_files[identity], str(self.xml_files[identity]))
        return self.pictures.find(identity, _named_picture(tree))


def _named_picture(tree: ElementTree.Element) -> str:
    return (tree.findtext("filename") or "").strip()


def voc_folder(root: Path, split: str, dataset_name: str) -> VocFolder:
    """Find the files of a split.

    VOC's layout is ``Annotations/<id>.xml``, ``JPEGImages/<id>.<ending>`` and the list
    ``ImageSets/Main/<split>.txt``. Without ``ImageSets`` every xml counts; a folder named as the
    split is then looked into. Xml files and pictures may lie in one folder, as labelImg saves them.

    Raises:
        FileNotFoundError: a folder or the split's list is missing, or there is no xml file.
        ValueError: the list is empty.
    """
    where = f"dataset '{dataset_name}'"
    if not root.is_dir():
        raise FileNotFoundError(f"{where}: there is no folder {root.absolute()}")
    lists = root / "ImageSets" / "Main"
    if any(lists.glob("*.txt")):
        return _listed(root, lists, split, where)
    if split and not (root / split).is_dir():
        raise FileNotFoundError(
            f"{where}: there is neither a list {(lists / split).absolute()}.txt nor a folder "
            f"{(root / split).absolute()}; without 'split' all xml files of {root.absolute()} are "
            "taken"
        )
    base = root / split if split else root
    folder = _first_folder(base, ("Annotations", "annotations", "xmls", "labels")) or base
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml")
    if not files:
        raise FileNotFoundError(f"{where}: there is no xml file in {folder.absolute()}")
    pictures = _first_folder(base, ("JPEGImages", "images", "Images", "imgs")) or base
    return VocFolder({path.stem: path for path in files}, PictureFolder(pictures), [])


def _first_folder(base: Path, names: Iterable[str]) -> Path | None:
    return next((base / name for name in names if (base / name).is_dir()), None)


def _listed(root: Path, lists: Path, split: str, where: str) -> VocFolder:
    for folder in (root / "Annotations", root / "JPEGImages"):
        if not folder.is_dir():
            raise FileNotFoundError(f"{where}: there is no folder {folder.absolute()}")
    list_file = lists / f"{split}.txt"
    if not split or not list_file.is_file():
        known = ", ".join(voc_lists(root)[:10])
        missing = f"there is no list of images {list_file.absolute()}; there are {known}"
        if not split:
            missing = f"'split' must be one of the lists of {lists.absolute()}: {known}"
        raise FileNotFoundError(f"{where}: {missing}")
    xml_files: dict[str, Path] = {}
    repeated = []
    for line in filter(None, map(str.strip, read_text(list_file, where).splitlines())):
        path = root / "Annotations" / f"{line}.xml"
        if not path.is_file():
            line = _MARK.sub("", line)
            path = root / "Annotations" / f"{line}.xml"
        if line in xml_files:
            repeated.append(line)
        xml_files[line] = path
    if not xml_files:
        raise ValueError(f"{where}: {list_file.absolute()} lists no image")
    return VocFolder(xml_files, PictureFolder(root / "JPEGImages"), repeated)


def voc_lists(root: Path) -> list[str]:
    """The lists of ``ImageSets/Main``, without those of a class, as ``cat_train``."""
    files = {path.stem: path for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
    names = []
    for name, path in files.items():
        if "_" in name and name.rpartition("_")[2] in files:
            first = read_text(path, str(path)).lstrip().partition("\n")[0].strip()
            if _MARK.search(first):
                continue
        names.append(name)
    return names


def named_classes(root: Path, split: str, dataset_name: str) -> list[str]:
    """The names that the objects of a split have, in alphabetical order.

    Raises:
        ValueError, FileNotFoundError: as :func:`voc_folder` and :func:`parse_xml`.
    """
    names: set[str] = set()
    for file in voc_folder(root, split, dataset_name).xml_files.values():
        tree = parse_xml(file, f"dataset '{dataset_name}' ({file.absolute()})")
        names.update(_name_of(item) for item in tree.iter("object"))
    return sorted(names - {""})


def foreign_class(name: str, present: Sequence[str]) -> str:
    """What is told where a name is none of VOC's, and no classes were given.

    Args:
        present: names that the files have.
    """
    shown = f"[{', '.join(present)}]" if len(present) <= 100 else "[...]"
    return (
        f"class '{name}' is not among VOC's 20: list the classes of its files in its entry of "
        f"DATASETS.REGISTER, classes: {shown}, and set the number of classes to {len(present)}"
    )


def _name_of(item: ElementTree.Element) -> str:
    return (item.findtext("name") or "").strip()


def read_voc(
    root: Path,
    split: str,
    dataset_name: str,
    *,
    classes: Sequence[str] = VOC_CLASSES,
    subset: bool = False,
    first_pixel: int = 1,
    box_format: str | None = None,
) -> Record:
    """Read the annotations of a split.

    Objects marked *difficult* are trained on, as in Detectron2, and the evaluation ignores them.

    Args:
        root, split: see :func:`voc_folder`.
        dataset_name: for messages and the record.
        classes: names; their order gives the class numbers.
        subset: leave objects of other classes out; otherwise they are an error.
        first_pixel: 1 where pixels are counted from 1 as in VOC: (1, 1, W, H) is then the whole
            picture; 0 where coordinates start at 0. It is what positions in pixels start at in
            every ``box_format``: centres then lie half a pixel further on, since the first pixel's
            is called 1 and is at 0.5.
        box_format: of the four numbers; one of :data:`.box_checks.BOX_FORMATS`. None for the two
            corners that their names promise.

    Raises:
        FileNotFoundError: an XML file is missing.
        ValueError: an XML file is broken or has a class that is not in ``classes``.
    """
    folder = voc_folder(root, split, dataset_name)
    source = str(root)
    notes = Notes(f"dataset '{dataset_name}' ({root.absolute()})")
    for identity in folder.repeated:
        notes.add("listed_twice", identity)
    if box_format is not None and box_format.startswith("normalized"):
        first_pixel = 0
    centres = box_format == "cxcywh"
    reader = _Reader(dataset_name, classes, subset, first_pixel, centres, notes)
    files, sizes = [], []
    for row, (identity, xml_file) in enumerate(folder.xml_files.items()):
        file, size = reader.read(row, identity, xml_file, folder.pictures)
        files.append(file)
        sizes.append(size)
    if subset:
        for number, name in enumerate(classes):
            if number not in reader.present:
                notes.add("absent_class", name)
    return assemble(
        name=dataset_name,
        source=source,
        categories=[Category(id=number, name=name) for number, name in enumerate(classes)],
        images=image_table(list(folder.xml_files), files, sizes),
        rows=reader.rows,
        notes=notes,
        box_format=box_format or "xyxy",
        stated=box_format is not None,
    )


class _Reader:
    def __init__(
        self,
        dataset_name: str,
        classes: Sequence[str],
        subset: bool,
        first_pixel: int,
        centres: bool,
        notes: Notes,
    ) -> None:
        self.dataset_name = dataset_name
        self.numbers = {name: number for number, name in enumerate(classes)}
        self.subset = subset
        self.first_pixel = first_pixel
        self.centres = centres
        self.notes = notes
        self.rows = Rows()
        self.present: set[int] = set()

    def read(
        self, row: int, identity: str, xml_file: Path, pictures: PictureFolder
    ) -> tuple[str, tuple[int, int]]:
        """Collect the objects of a file; returns the picture and its size."""
        where = f"dataset '{self.dataset_name}' ({xml_file.absolute()})"
        tree = parse_xml(xml_file, where)
        for position, item in enumerate(tree.iter("object"), start=1):
            self._add(row, f"{xml_file.name} object {position}", item, where)
        file = pictures.find(identity, _named_picture(tree))
        return str(file), self._size(tree, xml_file, file, where)

    def _size(
        self, tree: ElementTree.Element, xml_file: Path, file: Path, where: str
    ) -> tuple[int, int]:
        texts = [tree.findtext(f"size/{side}") for side in ("width", "height")]
        sides = [whole_number_of(text) for text in texts]
        if all(side is not None and 0 < side < 2**31 for side in sides):
            return sides[0], sides[1]  # type: ignore[return-value]
        if not file.is_file():
            raise ValueError(
                f"{where}: <size> must have a <width> and a <height>, got {texts[0]!r} and "
                f"{texts[1]!r}, and there is no picture {file} to ask"
            )
        self.notes.add("size_from_picture", xml_file.name)
        return picture_size(file)

    def _add(self, row: int, label: str, item: ElementTree.Element, where: str) -> None:
        for tag in ("name", "bndbox", *(f"bndbox/{corner}" for corner in _CORNERS)):
            if len(item.findall(tag)) > 1:
                raise ValueError(f"{where}: an object has more than one <{tag}>")
        name = _name_of(item)
        number = self.numbers.get(name)
        if number is None:
            if self.subset and name:
                self.notes.add("other_class", name)
                return
            raise ValueError(
                f"{where}: class '{name}' is not among the classes of this dataset "
                f"({', '.join(self.numbers)}); list the classes to use in the key 'classes' of its "
                "DATASETS.REGISTER entry"
            )
        if item.find("bndbox") is None:
            kind = "rotated boxes are not supported" if item.find("robndbox") is not None else ""
            raise ValueError(f"{where}: an object has no <bndbox>" + (f": {kind}" if kind else ""))
        written = [_number(item, f"bndbox/{corner}", where) for corner in _CORNERS]
        offset = self.first_pixel / 2 if self.centres else self.first_pixel
        box = [written[0] - offset, written[1] - offset, *written[2:]]
        start = [box[i] - (box[i + 2] / 2 if self.centres else 0) for i in range(2)]
        if self.first_pixel and min(start) < 0:
            self.notes.add("first_pixel", f"{label}: {[float(f'{v:g}') for v in written]}")
        self.present.add(number)
        self.rows.add(
            image=row,
            category=number,
            box=box,
            difficult=self._difficult(item, label),
            identity=label,
        )

    def _difficult(self, item: ElementTree.Element, label: str) -> int:
        text = (item.findtext("difficult") or "0").strip()
        flag = FLAGS.get(text.lower())
        if flag is None:
            number = number_of(text)
            flag = int(number) if number in (0, 1) else 0
            self.notes.add("flag", f"{label}: difficult {text!r}")
        return flag


def _number(element: ElementTree.Element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    number = None if text is None else number_of(text.strip())
    if number is None:
        raise ValueError(f"{where}: <{tag}> must be a number, got {text!r}")
    return number


def parse_xml(xml_file: Path, where: str) -> ElementTree.Element:
    """The root of an XML file in any usual encoding; entities, which may expand, are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no XML.
    """
    if not xml_file.is_file():
        raise FileNotFoundError(f"{where}: there is no such file")
    text = read_text(xml_file, where, declared=True)
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise ValueError(f"{where}: annotations have no document type and define no entities")
    try:
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text, count=1))
    except ElementTree.ParseError as error:
        raise ValueError(f"{where}: not valid XML: {error}") from None
    except RecursionError:
        raise ValueError(f"{where}: not valid XML: nested too deeply") from None
