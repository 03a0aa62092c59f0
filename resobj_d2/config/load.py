"""From a command line to a checked, frozen configuration."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode, get_cfg

from resobj_d2.data.class_checks import check_num_classes
from resobj_d2.data.register import check_names, register_datasets
from resobj_d2.process import did_you_mean

from .defaults import add_resobj_config
from .imports import import_modules
from .run_checks import check_run, check_values
from .unused import check_unused_keys
from .values import fitted_file, fitted_overrides
from .zoo import find_config, know_zoo, load_yaml_with_base, refuse_part

__all__ = ["class_counts", "load_config"]

logger = logging.getLogger(__name__)


def load_config(
    config_file: str,
    opts: Sequence[str] = (),
    *,
    training: bool = True,
    datasets: bool = True,
    imports: Sequence[str] = (),
) -> CfgNode:
    """Read a yaml, apply ``KEY VALUE`` overrides, register and check the datasets.

    Args:
        config_file: path of a yaml or name of the zoo (:mod:`.zoo`); "" for the defaults.
        opts: alternating keys and values, as on Detectron2's command line.
        training: False where the training data are not needed, and may be missing:
            ``DATASETS.TRAIN`` is emptied, and of ``DATASETS.REGISTER`` what ``DATASETS.TEST`` names
            is registered.
        datasets: False to neither register nor check them, which then need not be there.
        imports: modules to import before the configuration is read, beside its ``IMPORTS``; their
            losses, assigners, branches, ... can then be named, and their options are keys.

    Returns:
        The frozen configuration. ``MODEL.DEVICE`` is "cpu" where "cuda" was asked for and no
        GPU can be used.

    Raises:
        FileNotFoundError: no such yaml or name, or a registered dataset's files are missing.
        ValueError: the yaml is one to build on; there is no such key, or its value is of another
            kind; a dataset is not registered, or the number of classes differs from its; a key that
            is set, but that nothing in this model reads; a batch size, learning rate or schedule
            that nothing can be trained with.
        ImportError: a module of ``IMPORTS`` cannot be imported.
    """
    if config_file:
        config_file = str(find_config(config_file))
        refuse_part(config_file)
    _check_pairs(opts)
    modules = list(dict.fromkeys([*imports_of(config_file, opts), *imports]))
    import_modules(modules)
    cfg = get_cfg()
    add_resobj_config(cfg)
    if config_file:
        merge_file(cfg, config_file)
    merge_overrides(cfg, opts)
    cfg.IMPORTS = modules  # a dumped configuration needs those of the command line, too
    asked = cfg.MODEL.DEVICE
    if _device_type(asked) == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    check_unused_keys(cfg, given=opts[::2])
    check_values(cfg)
    if training:
        check_run(cfg)
    else:
        cfg.DATASETS.TRAIN = ()
    if datasets:
        register_datasets(cfg.DATASETS.REGISTER, names=None if training else cfg.DATASETS.TEST)
        for key in ("TRAIN", "TEST"):
            check_names(cfg.DATASETS[key], f"DATASETS.{key}")
        check_num_classes(class_counts(cfg), [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    if cfg.MODEL.DEVICE != asked:  # last: a caller may try again with other datasets
        logger.warning("MODEL.DEVICE is %s but no GPU can be used: using cpu", asked)
    cfg.freeze()
    return cfg


def _check_pairs(opts: Sequence) -> None:
    late = [key for key in opts[::2] if str(key).startswith("--")]
    if late:
        raise ValueError(f"options come in front of the first KEY VALUE: put {late[0]} there")
    if len(opts) % 2:
        raise ValueError(f"overrides are pairs of KEY VALUE, got an odd number: {list(opts)}")


def merge_file(cfg: CfgNode, config_file: str) -> None:
    """Merge a yaml, and the files it is based on, into ``cfg``.

    Raises:
        FileNotFoundError, ConfigFileError: as :func:`.yaml_file.load_yaml_with_base`.
        ValueError: there is no such key, or its value is of another kind.
    """
    with explained_keys(cfg, config_file):
        content = fitted_file(load_yaml_with_base(config_file), cfg, config_file)
        cfg.__dict__["load_yaml_with_base"] = lambda *_, **__: content
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        finally:
            know_zoo(cfg)


def merge_overrides(cfg: CfgNode, opts: Sequence) -> None:
    """Merge alternating keys and values into ``cfg``; an int may stand for a float.

    Raises:
        ValueError: there is no such key, or its value is of another kind.
    """
    keys = [key for key in opts[::2] if _value(cfg, key) is not None]
    with explained_keys(cfg, "the overrides KEY VALUE"):
        cfg.merge_from_list(fitted_overrides(opts, cfg))
    empty = [key for key in keys if _value(cfg, key) is None]
    if empty:
        raise ValueError(f"the overrides KEY VALUE: {empty[0]} must have a value, got None")


def _value(cfg: CfgNode, key: str) -> object:
    """None where there is no such key."""
    value: object = cfg
    for part in str(key).split("."):
        value = value.get(part) if isinstance(value, CfgNode) else None
    return value


def imports_of(config_file: str, opts: Sequence[str]) -> list[str]:
    """``IMPORTS`` of the overrides, otherwise of the file and the files it is based on."""
    given = CfgNode({"IMPORTS": []})
    if config_file:
        raw = load_yaml_with_base(config_file)
        given.IMPORTS = raw.get("IMPORTS", [])
        if not isinstance(given.IMPORTS, (list, tuple)):
            raise ValueError(
                f"{config_file}: IMPORTS must be a list of module names, got {given.IMPORTS!r:.80}"
            )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key == "IMPORTS":
            merge_overrides(given, [key, value])
    return list(given.IMPORTS)


def _device_type(name: str) -> str:
    try:
        return torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE must be cpu, cuda or cuda:N, got {name!r}") from error


@contextlib.contextmanager
def explained_keys(cfg: CfgNode, source: str) -> Iterator[None]:
    """Say where a key that does not exist was read, and which it might have been.

    yacs raises a KeyError for a file and an AssertionError for a list.
    """
    try:
        yield
    except (RecursionError, MemoryError) as error:  # of Python's parser
        raise ValueError(f"{source}: a value is nested too deeply ({error})") from None
    except (AssertionError, KeyError) as error:
        match = re.fullmatch(r"Non-existent (?:config )?key: (\S+)", str(error.args[0]))
        if match is None:
            raise
        key = match[1]
        hint = did_you_mean(key, _keys(cfg))
        raise ValueError(f"{source}: there is no key {key}{hint}") from None


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """The full names of all keys and nodes."""
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def class_counts(cfg: CfgNode) -> dict[str, int]:
    """The keys that tell this model's number of classes, with their values."""
    by_architecture = {
        "ResObjDenseDetector": ["DENSE"],
        "RetinaNet": ["RETINANET"],
        "GeneralizedRCNN": ["ROI_HEADS"],
    }
    nodes = by_architecture.get(cfg.MODEL.META_ARCHITECTURE, [])
    return {f"MODEL.{node}.NUM_CLASSES": cfg.MODEL[node].NUM_CLASSES for node in nodes}
