"""Reading a folder of Pascal VOC annotations.

The layout is VOC's: ``Annotations/<id>.xml``, ``JPEGImages/<id>.jpg`` (also .jpeg and .png) and
``ImageSets/Main/<split>.txt`` with one image id per line.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from detectron2.structures import BoxMode

logger = logging.getLogger(__name__)

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_split(root: Path, split: str, dataset_name: str) -> list[str]:
    """The image ids of a split.

    Raises:
        FileNotFoundError: the folder, one of its three parts or the split's list is missing.
        ValueError: the list is empty.
    """
    where = f"dataset '{dataset_name}'"
    list_file = root / "ImageSets" / "Main" / f"{split}.txt"
    for folder in (root, root / "Annotations", root / "JPEGImages"):
        if not folder.is_dir():
            raise FileNotFoundError(f"{where}: there is no folder {folder.absolute()}")
    if not list_file.is_file():
        raise FileNotFoundError(f"{where}: there is no list of images {list_file.absolute()}")
    # VOC's per-class lists have a second column.
    identities = [line.split()[0] for line in list_file.read_text().splitlines() if line.strip()]
    if not identities:
        raise ValueError(f"{where}: {list_file.absolute()} lists no image")
    return identities


def image_path(root: Path, identity: str) -> Path:
    """Path of an image, whichever of the known endings it has; .jpg when there is none."""
    candidates = [root / "JPEGImages" / f"{identity}{ending}" for ending in _IMAGE_ENDINGS]
    return next((path for path in candidates if path.is_file()), candidates[0])


def load_voc(root: Path, split: str, classes: Sequence[str], dataset_name: str) -> list[dict]:
    """Records in Detectron2's standard form, XYXY boxes in absolute pixels from 0.

    As in Detectron2, objects marked *difficult* are trained on; they carry ``"difficult": 1`` so
    that the evaluation can ignore them.

    Raises:
        FileNotFoundError: an XML file is missing.
        ValueError: an XML file is broken or has a class that is not in ``classes``.
    """
    class_numbers = {name: number for number, name in enumerate(classes)}
    records, dropped = [], []
    for identity in read_split(root, split, dataset_name):
        xml_file = root / "Annotations" / f"{identity}.xml"
        where = f"dataset '{dataset_name}' ({xml_file.absolute()})"
        tree = _parse(xml_file, where)
        annotations = []
        for item in tree.findall("object"):
            annotation = _read_object(item, class_numbers, where)
            x0, y0, x1, y1 = annotation["bbox"]
            if x1 > x0 and y1 > y0:
                annotations.append(annotation)
            else:
                dropped.append(f"{xml_file.name}: {annotation['bbox']}")
        records.append(
            {
                "file_name": str(image_path(root, identity)),
                "image_id": identity,
                "height": int(_number(tree, "size/height", where)),
                "width": int(_number(tree, "size/width", where)),
                "annotations": annotations,
                "dataset_name": dataset_name,
            }
        )
    if dropped:
        logger.warning(
            f"dataset '{dataset_name}': {len(dropped)} boxes have no positive size and are left "
            f"out, for instance {'; '.join(dropped[:3])}"
        )
    return records


def voc_metric_obstacle(root: Path, split: str, dataset_name: str) -> str | None:
    """Why Detectron2's VOC evaluator could not read these XML files, or None if it can.

    It wants whole pixels, and the tags pose, truncated and difficult, in every object.
    """
    for identity in read_split(root, split, dataset_name):
        xml_file = root / "Annotations" / f"{identity}.xml"
        for item in _parse(xml_file, f"dataset '{dataset_name}' ({xml_file})").findall("object"):
            whole = ["truncated", "difficult", *(f"bndbox/{corner}" for corner in _CORNERS)]
            texts = {tag: item.findtext(tag) for tag in ["pose", *whole]}
            for tag, text in texts.items():
                if text is None or (tag != "pose" and not _is_whole(text)):
                    return f"<{tag}> of an object in {xml_file.name} is {text!r}"
    return None


def _is_whole(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _parse(xml_file: Path, where: str) -> ElementTree.ElementTree:
    if not xml_file.is_file():
        raise FileNotFoundError(f"{where}: there is no such file")
    try:
        return ElementTree.parse(xml_file)
    except ElementTree.ParseError as error:
        raise ValueError(f"{where}: not valid XML: {error}") from None


def _number(element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    try:
        return float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: <{tag}> must be a number, got {text!r}") from None


def _read_object(item: ElementTree.Element, class_numbers: dict[str, int], where: str) -> dict:
    name = (item.findtext("name") or "").strip()
    if name not in class_numbers:
        raise ValueError(
            f"{where}: class '{name}' is not among the classes of this dataset "
            f"({', '.join(class_numbers)}); list all classes in the key 'classes' of its "
            "DATASETS.REGISTER entry"
        )
    box = [_number(item, f"bndbox/{corner}", where) for corner in _CORNERS]
    # VOC counts pixels from 1 and includes both ends: in coordinates from 0, (1, 1, W, H) is the
    # whole picture (0, 0, W, H).
    box[0] -= 1.0
    box[1] -= 1.0
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": class_numbers[name],
        "difficult": int(float(item.findtext("difficult") or 0)),
    }
