"""What the words of the command mean: a registered name, a configuration, a file or a folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog

from resobj_d2.config import load_config
from resobj_d2.config.zoo import find_config
from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.coco_json import read_coco_json
from resobj_d2.data.convert import parse_source
from resobj_d2.data.record import Record
from resobj_d2.data.register import check_available, register_datasets
from resobj_d2.data.voc_xml import VOC_CLASSES, named_classes
from resobj_d2.data.yolo_txt import read_yaml

__all__ = ["Target", "find_target"]

# What splits are called, and what they are for.
_SPLITS = {"train": "train", "trainval": "train", "val": "test", "valid": "test", "test": "test"}
_SOURCES = (
    "a registered data set, a configuration (a yaml, or a name of `resobj-d2 configs`), a COCO "
    "json, a csv, YOLO's data.yaml, a folder of VOC or YOLO, or format=... KEY=VALUE ... as in "
    "DATASETS.REGISTER"
)
_NOT_NEAR = ": the folder that its file names are relative to is not near it: give --images"
_YAML_BYTES = 2**20  # of a yaml that may be YOLO's
_SAMPLED = 100  # pictures that a folder is judged by


@dataclass(frozen=True, kw_only=True)
class Target:
    """Data sets to check.

    Attributes:
        records: by name.
        roles: name to "train", "test", "train and test" or "".
        cfg: the configuration, where that was named.
    """

    records: dict[str, Record]
    roles: dict[str, str]
    cfg: object = None


def find_target(
    words: Sequence[str], *, images: str | None = None, imports: Sequence[str] = ()
) -> Target:
    """Find and register what is to be checked.

    Args:
        words: the name, configuration, file or folder, for a configuration followed by KEY VALUE
            overrides; or KEY=VALUE of an entry of ``DATASETS.REGISTER``.
        images: folder of the pictures of a json or csv; None to look for it near the file.
        imports: modules to import first.

    Raises:
        ValueError, FileNotFoundError: there is no such thing, or it cannot be registered.
    """
    if re.match(r"\w+=", words[0]):
        entry = parse_source(words)
        assert isinstance(entry, dict)
        return _registered([{"name": _name_of(entry), **entry}], {})
    word, overrides = words[0], list(words[1:])
    path = Path(word).expanduser()
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file() and _is_yolo(path):
        target = _yolo(path)
    elif path.suffix.lower() == ".json" and path.is_file():
        target = _json(path, images)
    elif path.suffix.lower() == ".csv" and path.is_file():
        target = _csv(path, images)
    elif path.is_dir():
        target = _folder(path)
    elif word in DatasetCatalog:
        target = _named({word: ""}, "the command line")
    else:
        return _configuration(word, overrides, imports)
    if overrides:
        raise ValueError(f"KEY VALUE overrides belong to a configuration, and {word} is none")
    return target


def _configuration(word: str, overrides: list[str], imports: Sequence[str]) -> Target:
    try:
        find_config(word)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. What can be checked: {_SOURCES}") from None
    cfg = load_config(word, overrides, imports=imports)
    roles: dict[str, str] = dict.fromkeys(cfg.DATASETS.TRAIN, "train")
    for name in cfg.DATASETS.TEST:
        roles[name] = "train and test" if name in roles else "test"
    return _named(roles, "DATASETS.TRAIN and TEST", cfg)


def _named(roles: dict[str, str], where: str, cfg: object = None) -> Target:
    check_available(roles, where)
    records = {name: dataset_record(name) for name in roles}
    return Target(records=records, roles=roles, cfg=cfg)


def _name_of(entry: Mapping) -> str:
    """What a data set is called whose entry has no name: as its split, its file or its folder."""
    if entry.get("split"):
        return str(entry["split"])
    if entry.get("format") == "yolo" and "yaml" in entry:
        return "train"  # the default
    for key in ("json", "csv", "root", "images"):
        if entry.get(key):
            return Path(str(entry[key])).expanduser().absolute().stem
    return "data"


def _registered(entries: Sequence[dict], roles: dict[str, str]) -> Target:
    register_datasets(entries, "the command line")
    names = [str(entry["name"]) for entry in entries]
    return _named({name: roles.get(name, "") for name in names}, "the command line")


def _is_yolo(path: Path) -> bool:
    """Whether a yaml lists classes, as no configuration does."""
    if path.stat().st_size > _YAML_BYTES:
        return False
    try:
        content = read_yaml(path, str(path))
    except ValueError:  # which is told as a configuration's
        return False
    return isinstance(content, dict) and "names" in content and "MODEL" not in content


def _yolo(path: Path) -> Target:
    content = read_yaml(path, str(path))
    # "test:" with nothing after it is what templates of this file have.
    splits = [
        split
        for split in ("train", "val", "test")
        if isinstance(content, dict) and content.get(split)
    ]
    entries = [
        {"name": split, "format": "yolo", "yaml": str(path), "split": split}
        for split in splits or ["train"]  # whose message says what is missing
    ]
    return _registered(entries, _SPLITS)


def _json(path: Path, images: str | None) -> Target:
    """A COCO json, with pictures that need not all be there: missing ones are a finding."""
    record = read_coco_json(path, path.stem, "")
    files = record.images.files
    if images is None:
        some = files[:: max(1, len(files) // _SAMPLED)]
        present = {
            folder: sum((folder / file).is_file() for file in some) for folder in _near(path)
        }
        folder = max(present, key=lambda folder: present[folder])
        if not present[folder]:
            raise FileNotFoundError(f"{path}{_NOT_NEAR}")
    else:
        folder = Path(images).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"--images: there is no folder {folder.absolute()}")
    table = dataclasses.replace(record.images, files=[str(folder / file) for file in files])
    record = dataclasses.replace(record, images=table)
    return Target(records={record.name: record}, roles={record.name: ""})


def _csv(path: Path, images: str | None) -> Target:
    entry = {"name": path.stem, "format": "csv", "csv": str(path)}
    if images is not None:
        return _registered([{**entry, "images": images}], {})
    for folder in _near(path):
        try:
            return _registered([{**entry, "images": str(folder)}], {})
        except FileNotFoundError:
            continue
    raise FileNotFoundError(f"{path}{_NOT_NEAR}")


def _near(path: Path) -> list[Path]:
    """Folders in which the pictures of an annotation file may be."""
    beside = path.absolute().parent
    short = re.sub(r"^(instances|person_keypoints)_", "", path.stem)
    names = ("images", path.stem, short, "JPEGImages", ".")
    folders = [base / name for base in (beside, beside.parent) for name in names]
    return [folder for folder in folders if folder.is_dir()]


def _folder(path: Path) -> Target:
    annotation_files = sorted(path.glob("*.json"))
    if (path / "data.yaml").is_file():
        return _yolo(path / "data.yaml")
    if len(annotation_files) == 1:
        return _json(annotation_files[0], None)
    if any(path.rglob("*.xml")):
        return _voc(path)
    return _registered([{"name": path.absolute().name, "format": "yolo", "images": str(path)}], {})


def _voc(path: Path) -> Target:
    """A folder of VOC with the splits that it has, and the classes that its files name."""
    if (path / "ImageSets" / "Main").is_dir():
        lists = {file.stem for file in (path / "ImageSets" / "Main").glob("*.txt")}
        splits = [split for split in _SPLITS if split in lists]
        if "train" in splits and "trainval" in splits:
            splits.remove("trainval")
    else:
        splits = [split for split in _SPLITS if (path / split).is_dir()]
    names: set[str] = set()
    for split in splits or [""]:
        names.update(named_classes(path, split, path.name))
    entries = []
    for split in splits or [""]:
        entry = {"name": split or path.absolute().name, "format": "voc", "root": str(path)}
        entry |= {"split": split} if split else {}
        # VOC's own order where the classes are VOC's.
        known = names <= set(VOC_CLASSES)
        entries.append(entry if known else {**entry, "classes": sorted(names)})
    return _registered(entries, _SPLITS)
