"""The configurations that come with the package: where they are, and what they are called.

A configuration's name is its path below ``configs/``, for instance
``COCO-Detection/retinanet_resobj_t2_R_50_FPN_600_1x.yaml``. The folder may be left out where the
file's name is unique, and so may ``.yaml``. Wherever a yaml is expected, a file that exists wins,
and a name is looked up otherwise. ``resobj_d2://NAME`` always means the zoo; this is also how a
yaml of your own builds on one, from any folder::

    _BASE_: ["resobj_d2://Base-Dense.yaml", "resobj_d2://schedules/600_1x.yaml", "mine.yaml"]

Finding and listing need neither torch nor Detectron2.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from resobj_d2.process import similar_names

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = [
    "SCHEME",
    "Figure",
    "ZooEntry",
    "find_config",
    "get_config",
    "know_zoo",
    "load_yaml_with_base",
    "override_list",
    "refuse_part",
    "zoo_entries",
    "zoo_folder",
    "zoo_names",
]

SCHEME = "resobj_d2://"
# Folders of what is not complete in itself.
_PARTS = {"methods/": "method", "schedules/": "schedule"}
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Figure:
    """A figure that a paper prints for a configuration (``figures.csv``).

    Attributes:
        ap: as printed.
        metric: "box AP", "mask AP", "keypoint AP", or "AP50, 11 points" of VOC.
        split: the images it was measured on.
        source: paper and table.
        checked: where it was read: "paper", or what quotes it; empty if nobody confirmed it.
        note: how what it was measured with differs from the configuration; empty if it does not.
    """

    ap: str
    metric: str
    split: str
    source: str
    checked: str = ""
    note: str = ""

    def __str__(self) -> str:
        return self.ap if self.metric == "box AP" else f"{self.ap} {self.metric}"


@dataclass(frozen=True)
class ZooEntry:
    """A configuration to train.

    Attributes:
        name: path below ``configs/``.
        method: what it is, in a few words.
        figures: what papers print for it; empty where none has such a row.
    """

    name: str
    method: str
    figures: tuple[Figure, ...]


def zoo_folder() -> Path:
    """Folder of the configurations: inside an installed package, beside it in a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "Base-Dense.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"the configurations of resobj_d2 are missing: neither {_PACKAGE / 'configs'} nor "
        f"{_PACKAGE.parent / 'configs'} has them. Install the package again"
    )


@functools.cache
def zoo_names() -> tuple[str, ...]:
    """The names of all yamls: bases, methods and schedules too."""
    folder = zoo_folder()
    return tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.yaml")))


def zoo_entries() -> list[ZooEntry]:
    """Every configuration that can be trained (``zoo.csv``), with the papers' figures.

    Raises:
        ValueError: ``figures.csv`` has a figure of a configuration that ``zoo.csv`` does not list.
    """
    methods = {row["config"]: row["method"] for row in _rows("zoo.csv")}
    figures: dict[str, list[Figure]] = {name: [] for name in methods}
    for row in _rows("figures.csv"):
        name = row.pop("config")
        if name not in figures:
            raise ValueError(f"figures.csv has a figure of {name}, which zoo.csv does not list")
        figures[name].append(Figure(**row))
    return [ZooEntry(name, method, tuple(figures[name])) for name, method in methods.items()]


def _rows(table: str) -> list[dict[str, str]]:
    with (zoo_folder() / table).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def find_config(name: str | os.PathLike) -> Path:
    """The yaml that a path or a name means.

    Args:
        name: a file; or a name of the zoo, with or without ``resobj_d2://``, ``configs/``, folder
            and ``.yaml``. A file that exists wins over the zoo.

    Raises:
        FileNotFoundError: there is neither; the message has similar names.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise FileNotFoundError(f"config file not found: {path.absolute()} is a folder")
    # "./name" is a path that is missing.
    matches = [] if text.startswith(".") else _matches(text.removeprefix(SCHEME))
    if len(matches) == 1:
        return zoo_folder() / matches[0]
    if matches:
        raise FileNotFoundError(f"{text} can mean {' or '.join(matches)}: write one of these")
    where = text if text.startswith(SCHEME) else path.absolute()
    raise FileNotFoundError(f"config file not found: {where}{_suggestion(text)}")


def _matches(name: str) -> list[str]:
    wanted = name.removeprefix("configs/")
    if not wanted.endswith(".yaml"):
        wanted += ".yaml"
    if wanted in zoo_names():
        return [wanted]
    return [known for known in zoo_names() if "/" not in wanted and Path(known).name == wanted]


def refuse_part(path: str) -> None:
    """Refuse a yaml of the zoo's methods and schedules, which is not complete in itself.

    Raises:
        ValueError: the message says how to build on it, and which configurations do.
    """
    folder, file = zoo_folder().resolve(), Path(path).resolve()
    name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else ""
    if not name.startswith(tuple(_PARTS)):
        return
    wholes = [entry.name for entry in zoo_entries() if name in _bases(folder / entry.name)]
    whole = min(wholes, key=len, default="")
    raise ValueError(
        f"{name} is a {_PARTS[name.split('/')[0] + '/']} to build on, not a complete "
        f'configuration: name it in the _BASE_ of a yaml, as "{SCHEME}{name}"'
        + (f", or take one that does: {whole}" if whole else "")
    )


def _bases(file: Path) -> set[str]:
    """Names of the yamls of the zoo that one names in its ``_BASE_``."""
    from resobj_d2.process.yaml_text import parse_yaml

    content = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    bases = content.get("_BASE_", []) if isinstance(content, dict) else []
    found = [file.parent / base for base in ([bases] if isinstance(bases, str) else bases)]
    return {os.path.relpath(path, zoo_folder()) for path in found}


def _suggestion(text: str) -> str:
    by_stem = {Path(name).stem: name for name in zoo_names()}
    wanted = Path(text).stem
    # Whole ones whose name goes on, the plainest first, before those that are merely similar.
    longer = sorted(
        (x for x in by_stem if x.startswith(wanted) and not by_stem[x].startswith(tuple(_PARTS))),
        key=lambda stem: (len(stem), stem),
    )
    similar = longer[:3] or similar_names(wanted, by_stem)
    if not similar:
        return ". `resobj-d2 configs` lists those that come with the package"
    return f". Did you mean {' or '.join(by_stem[stem] for stem in similar)}?"


def get_config(name: str | os.PathLike, *, training: bool = True, **overrides: object) -> CfgNode:
    """A configuration by path or name, checked and not frozen.

    Args:
        name: as in :func:`find_config`; "" for the defaults.
        training: False where the training data are not needed.
        overrides: keys with ``__`` for each dot, for instance ``SOLVER__MAX_ITER=100`` or
            ``DATASETS__TRAIN=("mine",)``.

    Returns:
        What :func:`resobj_d2.config.load_config` returns, with its datasets registered, but open to
        changes. Changes made later are not checked.

    Raises:
        FileNotFoundError, ValueError: as :func:`resobj_d2.config.load_config`.
    """
    from .load import load_config  # not at the top: a list of the zoo needs no torch

    cfg = load_config(os.fspath(name), override_list(overrides), training=training)
    cfg.defrost()
    return cfg


def override_list(overrides: Mapping[str, object]) -> list:
    """``{"A__B": 1}`` as ``["A.B", 1]``."""
    pairs = [(key.replace("__", "."), value) for key, value in overrides.items()]
    return [item for pair in pairs for item in pair]


def know_zoo(cfg: CfgNode) -> None:
    """Let ``cfg.merge_from_file`` read ``resobj_d2://``, as the file and in its ``_BASE_``."""
    _register_scheme()
    # On this object alone: yacs keeps keys elsewhere, and Detectron2's class stays as it is.
    cfg.__dict__["load_yaml_with_base"] = load_yaml_with_base


def load_yaml_with_base(filename: str, allow_unsafe: bool = False) -> dict:
    """A yaml, or a name as ``resobj_d2://NAME``, merged into those of its ``_BASE_``.

    Never unsafe, whatever Detectron2 asks for: a yaml must not run code (:mod:`.yaml_file`).
    """
    from . import yaml_file

    path = find_config(filename) if filename.startswith(SCHEME) else filename
    return yaml_file.load_yaml_with_base(path)


@functools.cache
def _register_scheme() -> None:
    """Tell Detectron2's ``PathManager`` what ``resobj_d2://`` is."""
    from detectron2.utils.file_io import PathHandler, PathManager

    class ZooHandler(PathHandler):
        def _get_supported_prefixes(self) -> list[str]:
            return [SCHEME]

        def _get_local_path(self, path: str, **kwargs: object) -> str:
            return str(find_config(path))

        def _isfile(self, path: str, **kwargs: object) -> bool:
            self._get_local_path(path)  # its error names what there is
            return True

        _exists = _isfile

        def _open(self, path: str, mode: str = "r", **kwargs: object) -> IO:
            return open(self._get_local_path(path), mode, encoding="utf-8")

    PathManager.register_handler(ZooHandler(), allow_override=True)
