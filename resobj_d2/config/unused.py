"""Refusal of names of nothing, and of keys that are set but that nothing reads."""

from __future__ import annotations

from collections.abc import Container, Iterator

from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY
from fvcore.common.config import CfgNode
from fvcore.common.registry import Registry

from resobj_d2.process import did_you_mean

from .backbones import backbone_names
from .defaults import all_keys
from .detectron2_keys import ARCHITECTURES, DETECTRON2_READERS, MODES, NAMES
from .keys import Condition, Reader, value_of

__all__ = ["check_unused_keys", "unused_keys"]


def check_unused_keys(cfg: CfgNode, *, given: Container[str] = ()) -> None:
    """Refuse names of nothing, and keys that differ from their default and that nothing reads.

    Args:
        given: keys of the command line. There even those are refused that a configuration file
            may leave behind, such as ``SOLVER.STEPS`` with a schedule that has none.

    Raises:
        ValueError: there is no backbone, loss, ... of that name; or one line that names the key,
            who would read it, and under which condition.
    """
    _check_names(cfg)
    problems = list(unused_keys(cfg, given=given).values())
    if problems:
        more = f" (and {len(problems) - 1} more such keys)" if len(problems) > 1 else ""
        raise ValueError(problems[0] + more)


def _check_names(cfg: CfgNode) -> None:
    """Every name that is read is in its registry. An empty one means that there is no such part."""
    for path, name, registry in _names(cfg):
        if name and name not in registry:
            known = sorted(known for known, _ in registry)
            hint = did_you_mean(name, known) or f". Choose one of {', '.join(known)}"
            raise ValueError(f"{path} is {name!r}, which does not exist{hint}")


def _names(cfg: CfgNode) -> Iterator[tuple[str, str, Registry]]:
    path, registry, _ = NAMES[0]
    yield path, value_of(cfg, path), registry
    for path, name in backbone_names(cfg).items():
        yield path, name, BACKBONE_REGISTRY
    if cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES:
        return
    for path, registry, conditions in NAMES[1:]:
        # Detectron2 itself knows this one.
        if value_of(cfg, path) != "PrecomputedProposals" and _holds(conditions, cfg):
            yield path, value_of(cfg, path), registry
    for key in all_keys():
        if key.registry and any(_holds(reader.when, cfg) for reader in key.readers):
            yield key.path, value_of(cfg, key.path), key.registry


def _holds(conditions: tuple[Condition, ...], cfg: CfgNode) -> bool:
    return all(condition.holds(cfg) for condition in conditions)


def unused_keys(cfg: CfgNode, *, given: Container[str] = ()) -> dict[str, str]:
    """Keys that differ from their default and that nothing reads, and why, by their path.

    Empty for an architecture that neither Detectron2 nor this package has: it may read any key.

    Args:
        given: see :func:`check_unused_keys`.
    """
    if cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES:
        return {}
    readers = [(key.path, key.default, key.readers) for key in all_keys()]
    defaults = get_cfg()
    for path in _leaves(defaults):
        tables = [DETECTRON2_READERS, MODES] if path in given else [DETECTRON2_READERS]
        for table in tables:
            prefix = max((p for p in table if path.startswith(p)), key=len, default=None)
            if prefix is not None:
                readers.append((path, value_of(defaults, path), table[prefix]))
    problems = {path: _problem(cfg, path, default, known) for path, default, known in readers}
    return {path: problem for path, problem in problems.items() if problem}


def _problem(cfg: CfgNode, path: str, default: object, readers: tuple[Reader, ...]) -> str:
    value = value_of(cfg, path)
    if _plain(value) == _plain(default):
        return ""
    missing = [reader.missing(cfg) for reader in readers]
    if not all(missing):
        return ""
    # The reader that is nearest to being there explains most.
    reader, conditions = min(zip(readers, missing, strict=True), key=lambda pair: len(pair[1]))
    return (
        f"{path} is {value!r}, but nothing in this model reads it: {reader.name} would, with "
        f"{_both(conditions, cfg)}. Its default is {default!r}"
    )


def _both(conditions: list[Condition], cfg: CfgNode) -> str:
    """The conditions in words, each with what is there instead."""
    texts = []
    for condition in conditions:
        text = str(condition)
        if condition.path:
            text += f" (it is {value_of(cfg, condition.path)})"
        texts.append(text)
    return " and ".join(texts)


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _plain(value):
    """Lists and tuples are the same to a yaml."""
    return [_plain(x) for x in value] if isinstance(value, (list, tuple)) else value
