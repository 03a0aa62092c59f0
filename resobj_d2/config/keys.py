"""Configuration keys: where they stand, what they mean, and who reads them when."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fvcore.common.config import CfgNode

from resobj_d2.options import NO_DEFAULT, options_of
from resobj_d2.registry import Registry

__all__ = ["Condition", "Key", "Keys", "Reader", "owner_keys", "slot_keys", "value_of"]


def value_of(cfg: CfgNode, path: str) -> Any:
    """``cfg.A.B`` for "A.B"."""
    for name in path.split("."):
        cfg = cfg[name]
    return cfg


@dataclass(frozen=True)
class Condition:
    """Something that has to hold for a key to be read: one other key has one of some values.

    Attributes:
        path: the other key.
        values: of which it must have one.
        test: instead of ``values``, what must hold of the whole configuration.
        text: with ``test``, the condition in words.
    """

    path: str = ""
    values: tuple = ()
    test: Callable[[CfgNode], bool] | None = None
    text: str = ""

    def holds(self, cfg: CfgNode) -> bool:
        """Whether a configuration meets it."""
        if self.test is not None:
            return self.test(cfg)
        return value_of(cfg, self.path) in self.values

    def __str__(self) -> str:
        if self.test is not None:
            return self.text
        return f"{self.path} {' or '.join(str(value) for value in self.values)}"


@dataclass(frozen=True)
class Reader:
    """Who reads a key, and when: all conditions hold."""

    name: str
    when: tuple[Condition, ...] = ()

    def missing(self, cfg: CfgNode) -> list[Condition]:
        """The conditions that a configuration does not meet."""
        return [condition for condition in self.when if not condition.holds(cfg)]


@dataclass(frozen=True)
class Key:
    """One key of the configuration.

    Attributes:
        path: "MODEL.DENSE.CLS_LOSS.FOCAL_ALPHA".
        default: as in a yaml.
        type: a readable type.
        meaning: one line.
        source: paper and place.
        readers: all who read it.
        registry: of which its value names an entry.
    """

    path: str
    default: Any
    type: str
    meaning: str
    source: str = ""
    readers: tuple[Reader, ...] = field(default_factory=tuple)
    registry: Registry | None = None


class Keys:
    """Keys by path; a key that several owners declare has several readers."""

    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.values())

    def add(self, keys: Iterable[Key]) -> None:
        """Take in keys; one that is there already gets their readers too."""
        for key in keys:
            known = self._keys.get(key.path)
            if known is None:
                self._keys[key.path] = key
                continue
            first = key if known.default is NO_DEFAULT else known
            self._keys[key.path] = Key(
                path=first.path,
                default=first.default,
                type=first.type,
                meaning=first.meaning,
                source=first.source,
                readers=known.readers + key.readers,
                registry=first.registry,
            )

    def add_to(self, cfg: CfgNode) -> None:
        """Put the nodes and defaults into a configuration."""
        for key in self:
            if key.default is NO_DEFAULT:
                raise ValueError(f"{key.path}: no owner declares a default")
            *nodes, name = key.path.split(".")
            node = cfg
            for part in nodes:
                if part not in node:
                    node[part] = type(cfg)()
                node = node[part]
            node[name] = copy.deepcopy(key.default)


def owner_keys(
    path: str,
    owner: Callable,
    *,
    reader: str | None = None,
    when: Sequence[Condition] = (),
    defaults: Mapping[str, Any] | None = None,
    omit: Sequence[str] = (),
) -> list[Key]:
    """The keys that a class or function declares, as keys below ``path``.

    Args:
        reader: the name of the reader; by default the owner's.
        when: what must hold for the owner to be there.
        defaults: by key below ``path``, where they differ from the owner's.
        omit: keys below ``path`` that this node does not have.
    """
    keys = []
    for option in options_of(owner):
        if option.key in omit:
            continue
        only = [Condition(f"{path}.{key}", tuple(values)) for key, values in option.only.items()]
        keys.append(
            Key(
                path=f"{path}.{option.key}",
                default=(defaults or {}).get(option.key, option.default),
                type=option.type,
                meaning=option.meaning,
                source=option.source,
                readers=(Reader(reader or owner.__name__, (*when, *only)),),
            )
        )
    return keys


def slot_keys(
    path: str,
    registry: Registry,
    *,
    name: str,
    reader: str,
    when: Sequence[Condition] = (),
    defaults: Mapping[str, Any] | None = None,
    omit: Sequence[str] = (),
) -> list[Key]:
    """``NAME`` of a slot, and the options of all entries that can stand there.

    Args:
        name: the default entry; "" where the slot may be empty.
        reader: who builds the entry.
    """
    entries = sorted(known for known, _ in registry)
    choices = ", ".join(entries)
    meaning = f"{choices}; empty for Detectron2's own" if not name else choices
    readers = (Reader(reader, tuple(when)),)
    keys = [Key(f"{path}.NAME", name, "str", meaning, readers=readers, registry=registry)]
    for known, entry in registry:
        chosen = Condition(f"{path}.NAME", (known,))
        keys += owner_keys(path, entry, when=(*when, chosen), defaults=defaults, omit=omit)
    return keys
