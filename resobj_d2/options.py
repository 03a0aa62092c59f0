"""Options declared by their owner: an annotated constructor argument is a configuration key.

    class SigmoidFocalLoss(ClassLoss):
        def __init__(
            self,
            *,
            alpha: Annotated[float, Option("weight of the foreground", key="FOCAL_ALPHA")] = 0.25,
        ) -> None: ...

Type, default and meaning are written once, here. Configuration nodes, the docs' table of keys and
the rejection of keys without effect are all derived from :func:`options_of`, and :func:`build`
creates an owner from its node.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["Declared", "Option", "Part", "arguments_from", "build", "options_of"]

T = TypeVar("T")
NO_DEFAULT = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """The meaning of a configuration key; type and default come from the annotated argument.

    Attributes:
        meaning: one line, lower case, no full stop.
        key: its name in the owner's node or in a sub-node ("CLS_LOSS.WEIGHT"); by default
            the argument's name in capitals.
        source: paper and equation or section, if any.
        none: the value of the key that stands for None.
        only: arguments and their values for which the owner reads this key at all.
        follows: the key's default is that of another owner of the slot; the argument's own default
            is for building the owner without a configuration.
    """

    meaning: str
    key: str = ""
    source: str = ""
    none: Any = None
    only: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    follows: bool = False


@dataclass(frozen=True)
class Part:
    """Marks an argument that itself owns options and is built from the same node."""


@dataclass(frozen=True)
class Declared:
    """One key, as declared by its owner.

    Attributes:
        key: name, relative to the owner's node.
        argument: name in the owner's constructor.
        type: a readable type, such as "float".
        default: of the key; :data:`NO_DEFAULT` if it ``follows`` another owner's.
        only: keys (not arguments) and their values for which this one is read.
    """

    key: str
    argument: str
    type: str
    default: Any
    option: Option
    only: Mapping[str, Sequence[Any]]

    @property
    def meaning(self) -> str:
        """Meaning of the option."""
        return self.option.meaning

    @property
    def source(self) -> str:
        """Source of the option."""
        return self.option.source


@functools.cache
def _annotated_arguments(owner: Any) -> tuple[tuple[str, Any, Any, Option | Part], ...]:
    """(name, type, default, marker) of the annotated arguments of a class or function.

    A class whose constructor passes on ``**kwargs`` also has those of the class above it.
    """
    if not inspect.isclass(owner):
        return _annotated_arguments_of(owner, owner)
    found: dict[str, tuple] = {}
    for above in owner.__mro__:
        constructor = vars(above).get("__init__")
        if constructor is None or above is object:
            continue
        own = _annotated_arguments_of(constructor, above)
        found = {argument[0]: argument for argument in own} | found
        parameters = inspect.signature(constructor).parameters.values()
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return tuple(found.values())


def _annotated_arguments_of(
    function: Callable, owner: Any
) -> tuple[tuple[str, Any, Any, Option | Part], ...]:
    hints = get_type_hints(owner if is_dataclass(owner) else function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name)
        if get_origin(hint) is not Annotated:
            continue
        type_, *markers = get_args(hint)
        marker = next((m for m in markers if isinstance(m, (Option, Part))), None)
        if marker is not None:
            found.append((name, type_, parameter.default, marker))
    return tuple(found)


def options_of(owner: Callable) -> tuple[Declared, ...]:
    """The keys that a class or function declares, including those of its parts, in order."""
    return _options_of(owner)


@functools.cache
def _options_of(owner: Any) -> tuple[Declared, ...]:
    keys = {
        name: marker.key or name.upper()
        for name, _, _, marker in _annotated_arguments(owner)
        if isinstance(marker, Option)
    }
    declared: list[Declared] = []
    for name, type_, default, marker in _annotated_arguments(owner):
        if isinstance(marker, Part):
            declared += options_of(type_)
            continue
        declared.append(
            Declared(
                key=keys[name],
                argument=name,
                type=_readable(type_),
                default=_key_default(default, marker),
                option=marker,
                only={keys[argument]: values for argument, values in marker.only.items()},
            )
        )
    return tuple(declared)


def arguments_from(owner: Callable, node: Any) -> dict[str, Any]:
    """The annotated arguments of ``owner``, read from its configuration node.

    Those that it would ignore (:attr:`Option.only`) keep their defaults.
    """
    keys = {declared.argument: declared for declared in options_of(owner)}
    arguments = {}
    for name, type_, default, marker in _annotated_arguments(owner):
        if isinstance(marker, Part):
            arguments[name] = build(type_, node)
        elif all(_value(node, key) in values for key, values in keys[name].only.items()):
            value = _value(node, keys[name].key)
            arguments[name] = None if default is None and value == marker.none else value
    return arguments


def build(owner: Callable[..., T], node: Any, **context: Any) -> T:
    """Builds ``owner`` with the options of its node.

    Args:
        owner: a class or function with annotated arguments.
        node: the configuration node that holds its keys.
        context: its other arguments, which do not come from the configuration.
    """
    return owner(**arguments_from(owner, node), **context)


def _value(node: Any, key: str) -> Any:
    return functools.reduce(lambda below, name: below[name], key.split("."), node)


def _key_default(default: Any, option: Option) -> Any:
    """The default in the form a yaml would have it."""
    if option.follows:
        return NO_DEFAULT
    if default is None:
        return option.none
    return list(default) if isinstance(default, tuple) else default


def _readable(type_: Any) -> str:
    name = getattr(type_, "__name__", str(type_)) if isinstance(type_, type) else str(type_)
    for prefix in ("typing.", "collections.abc."):
        name = name.replace(prefix, "")
    return name.replace("Sequence", "list").replace(" | None", "")
