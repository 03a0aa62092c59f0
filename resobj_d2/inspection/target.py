"""What the words of the command mean: a registered name, a configuration, a file or a folder."""

from __future__ import annotations

import dataclasses
import logging
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
from resobj_d2.data.voc_xml import named_classes, voc_lists
from resobj_d2.data.yolo_txt import read_yaml, yolo_splits

__all__ = ["Target", "find_target", "picture_folder"]

logger = logging.getLogger(__name__)

# What splits of these names are for.
_ROLES = {"train": "train", "trainval": "train", "val": "test", "valid": "test", "test": "test"}
_SOURCES = (
    "a registered dataset, a configuration (a yaml, or a name of `resobj-d2 configs`), a COCO "
    "json, a csv, YOLO's data.yaml, a folder of VOC or YOLO, or format=... KEY=VALUE ... as in "
    "DATASETS.REGISTER"
)
_YAML_BYTES = 2**20  # of a yaml that may be YOLO's
_SAMPLED = 100  # pictures that a folder is judged by


@dataclass(frozen=True, kw_only=True)
class Target:
    """Datasets to check.

    Attributes:
        records: by name.
        roles: name to "train", "test", "train and test" or "".
        cfg: the configuration, where that was named.
    """

    records: dict[str, Record]
    roles: dict[str, str]
    cfg: object = None


def find_target(
    words: Sequence[str],
    *,
    images: str | None = None,
    imports: Sequence[str] = (),
    split: str | None = None,
) -> Target:
    """Find and register what is to be checked.

    Args:
        words: the name, configuration, file or folder, for a configuration followed by KEY VALUE
            overrides; or KEY=VALUE of an entry of ``DATASETS.REGISTER``.
        images: folder of the pictures of a json or csv; None to look for it near the file.
        imports: modules to import first.
        split: of a source that has it, the only one to read.

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
        target = _yolo(path, split)
    elif path.suffix.lower() == ".json" and path.is_file():
        target = _json(path, images)
    elif path.suffix.lower() == ".csv" and path.is_file():
        target = _csv(path, images)
    elif path.is_dir():
        target = _folder(path, split)
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
        text = str(error)
        if "/" in word or Path(word).suffix.lower() in (".json", ".csv", ".yaml", ".yml"):
            text = f"there is no file or folder {Path(word).absolute()}"
        raise FileNotFoundError(f"{text}. What can be checked: {_SOURCES}") from None
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
    """What a dataset is called whose entry has no name: as its split, its file or its folder."""
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


def _yolo(path: Path, wanted: str | None) -> Target:
    """The splits of a yaml that are there, or the one that is wanted."""
    listed = yolo_splits(path)
    if wanted in listed:
        splits = [wanted]
    else:
        splits = [split for split, missing in listed.items() if not missing]
        for split, missing in listed.items() if splits else ():
            if missing:
                logger.warning("%s: '%s' is left out: %s", path, split, missing)
    # Where there is none, the message of the first says what is missing.
    splits = splits or [*listed, "train"][:1]
    entries = [
        {"name": split, "format": "yolo", "yaml": str(path), "split": split} for split in splits
    ]
    return _registered(entries, _ROLES)


def _json(path: Path, images: str | None) -> Target:
    """A COCO json, with pictures that need not all be there: missing ones are a finding."""
    record = read_coco_json(path, path.stem, "")
    files = record.images.files
    if images is None:
        folder = picture_folder(path, files)
        if folder is None:
            raise _not_near(path)
    else:
        folder = Path(images).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"--images: there is no folder {folder.absolute()}")
    table = dataclasses.replace(record.images, files=[str(folder / file) for file in files])
    record = dataclasses.replace(record, images=table)
    return Target(records={record.name: record}, roles={record.name: ""})


def picture_folder(path: Path, files: Sequence[str]) -> Path | None:
    """The folder near an annotation file in which most of its pictures are; None for no picture.

    Args:
        path: of the annotation file.
        files: names of the pictures, as they stand in it.
    """
    some = files[:: max(1, len(files) // _SAMPLED)]
    present = {folder: sum((folder / file).is_file() for file in some) for folder in _near(path)}
    folder = max(present, key=lambda folder: present[folder])
    return folder if present[folder] else None


def _csv(path: Path, images: str | None) -> Target:
    entry = {"name": path.stem, "format": "csv", "csv": str(path)}
    if images is not None:
        return _registered([{**entry, "images": images}], {})
    for folder in _near(path):
        try:
            return _registered([{**entry, "images": str(folder)}], {})
        except FileNotFoundError:
            continue
    raise _not_near(path)


def _not_near(path: Path) -> FileNotFoundError:
    tried = ", ".join(map(str, _near(path)))
    return FileNotFoundError(
        f"{path}: none of its pictures is in {tried}: the folder that its file names are relative "
        "to is not near it: give --images"
    )


def _near(path: Path) -> list[Path]:
    """Folders in which the pictures of an annotation file may be."""
    beside = path.absolute().parent
    short = re.sub(r"^(instances|person_keypoints)_", "", path.stem)
    names = ("images", *dict.fromkeys((path.stem, short)), "JPEGImages", ".")
    folders = [base / name for base in (beside, beside.parent) for name in names]
    return [folder for folder in folders if folder.is_dir()]


def _folder(path: Path, wanted: str | None) -> Target:
    if (path / "data.yaml").is_file():
        return _yolo(path / "data.yaml", wanted)
    files = sorted(path.glob("*.json"))
    if not files and not any(path.rglob("*.xml")):
        files = sorted(path.glob("*.csv"))
    if len(files) == 1:
        return _json(files[0], None) if files[0].suffix == ".json" else _csv(files[0], None)
    if any(path.rglob("*.xml")):
        return _voc(path, wanted)
    if files and not any(path.rglob("*.txt")):
        names = ", ".join(file.name for file in files[:3])
        raise ValueError(f"{path} has several annotation files, {names}: name one")
    return _registered([{"name": path.absolute().name, "format": "yolo", "images": str(path)}], {})


def _voc(path: Path, wanted: str | None) -> Target:
    """A folder of VOC with the splits that it has, and the classes that its files name."""
    lists = voc_lists(path)
    splits = [split for split in _ROLES if split in lists or (path / split).is_dir()]
    if lists:
        splits = [split for split in _ROLES if split in lists]
        splits += [split for split in lists if split not in splits]
    if wanted in splits:
        splits = [wanted]
    elif "train" in splits and "trainval" in splits:
        splits.remove("trainval")
    names: set[str] = set()
    for split in splits or [""]:
        names.update(named_classes(path, split, path.name))
    entries = []
    for split in splits or [""]:
        entry = {"name": split or path.absolute().name, "format": "voc", "root": str(path)}
        entry |= {"split": split} if split else {}
        # In alphabetical order, as VOC's own are.
        entries.append({**entry, "classes": sorted(names)} if names else entry)
    return _registered(entries, _ROLES)
