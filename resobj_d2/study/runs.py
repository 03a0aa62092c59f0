"""From a plan to its runs: the configuration of each, and the key of all that decides it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import detectron2
import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from resobj_d2 import __version__
from resobj_d2.command import explain, is_users_mistake
from resobj_d2.config import add_resobj_config, load_config
from resobj_d2.config.difference import difference, plain_values
from resobj_d2.config.zoo import SCHEME, find_config, zoo_folder
from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.register import check_available
from resobj_d2.engine.best import check_metric
from resobj_d2.evaluation import result_names

from .fingerprint import (
    NOT_CHECKED,
    data_checksum,
    has_source,
    key_of,
    module_checksum,
    plain_register,
    source_checksum,
)
from .plan import Part, Plan, StudyError

__all__ = ["Run", "resolve", "revision"]

# Where things are does not decide a run. The seed has a place of its own.
_PLACES = ("OUTPUT_DIR", "SEED")
_FILES = (
    "MODEL.WEIGHTS",
    "MODEL.TIMM.WEIGHTS",
    "DATASETS.PROPOSAL_FILES_TRAIN",
    "DATASETS.PROPOSAL_FILES_TEST",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training with its evaluation.

    Attributes:
        dataset, method, seed: its place in the study.
        cfg: resolved; ``SEED`` and ``OUTPUT_DIR`` are set when it is written for the training.
        metric: path of the result that it is judged by, as "bbox/AP"; "" for the AP of a dataset
            that was not looked at.
        decides: config, seed, versions and checksums: what its result depends on.
    """

    dataset: str
    method: str
    seed: int
    cfg: CfgNode
    metric: str
    decides: Mapping[str, object]

    @property
    def key(self) -> str:
        """Of what decides it."""
        return key_of(self.decides)

    @property
    def folder(self) -> str:
        """Name of its ``OUTPUT_DIR``: another configuration has another one."""
        return f"{self.dataset}-{self.method}-seed{self.seed}-{self.key[:8]}"

    @property
    def iterations(self) -> int:
        """Length of the training."""
        return int(self.cfg.SOLVER.MAX_ITER)

    def __str__(self) -> str:
        return f"{self.dataset}, {self.method}, seed {self.seed}"


def resolve(plan: Plan, *, data: bool = True) -> list[Run]:
    """All runs of a plan, seed by seed, so that early results cover all methods.

    Args:
        plan: of the study.
        data: read datasets for their checksums, and generate scenes; False leaves that open
            (:data:`.fingerprint.NOT_CHECKED`).

    Raises:
        StudyError: a configuration cannot be used, or two methods have the same one.
        FileNotFoundError: a configuration or the data are missing.
    """
    cells: list[tuple[Run, tuple[int, ...]]] = []
    checksums: dict[str, str] | None = {} if data else None
    for dataset in plan.datasets:
        seen: dict[str, str] = {}
        for method in plan.methods:
            run = _cell(plan, dataset, method, checksums)
            if run.key in seen:
                raise StudyError(
                    f"{plan.file}: methods {seen[run.key]} and {method.name} have the same "
                    f"configuration on {dataset.name}"
                )
            seen[run.key] = method.name
            cells.append((run, method.seeds or plan.seeds))
    return [
        dataclasses.replace(run, seed=seed, decides={**run.decides, "seed": seed})
        for seed in plan.seeds
        for run, seeds in cells
        if seed in seeds
    ]


def _cell(plan: Plan, dataset: Part, method: Part, checksums: dict[str, str] | None) -> Run:
    where = f"{plan.file}: {method.name} on {dataset.name}"
    metric = "" if plan.metric == "AP" else plan.metric
    try:
        cfg = _load(plan, dataset, method, datasets=checksums is not None)
        if checksums is not None:
            check_available([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST], "DATASETS")
            metric = _metric(cfg, plan.metric)
        decides = _decides(cfg, checksums)
    except Exception as error:
        if not is_users_mistake(error):
            raise
        raise StudyError(f"{where}: {explain(error)}") from error
    return Run(
        dataset=dataset.name, method=method.name, seed=-1, cfg=cfg, metric=metric, decides=decides
    )


def _load(plan: Plan, dataset: Part, method: Part, *, datasets: bool) -> CfgNode:
    parts = (plan.common, dataset, method)
    names = [name for part in parts for name in part.configs]
    if not names:
        raise StudyError("there is no config: name a yaml, of all, of the dataset or the method")
    content: dict = {"_BASE_": [_config_file(name, plan.file.parent) for name in names]}
    for part in parts:
        for key, value in part.options.items():
            _put(content, key, value)
    with tempfile.TemporaryDirectory() as folder, _without_warnings():
        path = os.path.join(folder, "options.yaml")
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(content, file)
        try:
            cfg = load_config(path, datasets=datasets)
        except (ValueError, OSError) as error:
            if path not in str(error):
                raise
            raise StudyError(explain(error).replace(path, "its options")) from error
    cfg.defrost()
    return cfg


def _config_file(name: str, folder: Path) -> str:
    """A file beside the study, else as every command finds it."""
    beside = folder / Path(name).expanduser()
    if not name.startswith(SCHEME) and beside.is_file():
        return str(beside.absolute())
    found = find_config(name).absolute()
    if found.is_relative_to(zoo_folder()):
        return SCHEME + found.relative_to(zoo_folder()).as_posix()
    return str(found)


def _put(content: dict, key: str, value: object) -> None:
    *nodes, last = key.split(".")
    for name in nodes:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise StudyError(f"option {key}: {name} is a value, not a node")
    content[last] = value


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Each configuration would say again that there is no GPU."""
    logger = logging.getLogger("resobj_d2.config.load")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _metric(cfg: CfgNode, metric: str) -> str:
    if not cfg.DATASETS.TEST:
        raise StudyError("DATASETS.TEST is empty, so there is nothing to compare")
    cfg = cfg.clone()
    cfg.TEST.BEST_METRIC = metric
    try:
        check_metric(cfg)
    except ValueError as error:
        raise StudyError(str(error).replace("TEST.BEST_METRIC", "metric")) from error
    if metric != "AP":
        return metric
    first = cfg.DATASETS.TEST[0]
    names = [name for name in result_names(cfg, first) if name.endswith("/AP")]
    if not names:
        raise StudyError(f"the evaluation of {first} has no AP: set metric")
    return f"{first}/{names[0]}" if len(cfg.DATASETS.TEST) > 1 else names[0]


def _decides(cfg: CfgNode, checksums: dict[str, str] | None) -> dict:
    defaults = get_cfg()
    add_resobj_config(defaults)
    config = difference(plain_values(cfg), plain_values(defaults))
    for key in _PLACES:
        config.pop(key, None)
    if "REGISTER" in config.get("DATASETS", {}):
        config["DATASETS"]["REGISTER"] = plain_register(config["DATASETS"]["REGISTER"])
    files = {name: module_checksum(name) for name in cfg.IMPORTS}
    for key in _FILES:
        *nodes, last = key.split(".")
        node = config
        for name in nodes:
            node = node.get(name, {})
        if node.get(last):
            value = node.pop(last)
            paths = value if isinstance(value, list) else [value]
            if checksums is None and not all(map(has_source, paths)):
                files[key] = NOT_CHECKED
            else:
                files[key] = ", ".join(map(source_checksum, paths))
    names = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    if checksums is None:
        checksums = dict.fromkeys(names, NOT_CHECKED)
    for name in names:
        if name not in checksums:
            checksums[name] = data_checksum(dataset_record(name))
    return {
        "config": config,
        "seed": -1,
        "versions": {
            "resobj_d2": __version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
        },
        "data": {name: checksums[name] for name in names},
        "files": files,
    }


def revision() -> str:
    """The commit of a checkout, with ``+`` where it has changes; "" of an installed package.

    It is told with a result and decides nothing: most commits change no run.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=10", "--dirty=+"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
