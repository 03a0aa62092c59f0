"""Registries of slots, which know their names and check their entries."""

from __future__ import annotations

import inspect
from typing import Any, Generic, TypeVar

import fvcore.common.registry

from .options import NO_DEFAULT, options_of

__all__ = ["Registry"]

Base = TypeVar("Base")


class Registry(fvcore.common.registry.Registry, Generic[Base]):
    """fvcore's registry, for the classes of one slot.

    Args:
        name: name of the slot, for messages.
        base: the base class that every entry must inherit from.
    """

    def __init__(self, name: str, *, base: type[Base]) -> None:
        super().__init__(name)
        self.base = base

    def get(self, name: str) -> type[Base]:
        """The entry with that name.

        Raises:
            KeyError: there is none; the message lists the known names.
        """
        if name not in self:
            known = ", ".join(sorted(known for known, _ in self))
            raise KeyError(f"there is no {self._name} {name!r}; choose one of {known}")
        return super().get(name)

    def _do_register(self, name: str, obj: Any) -> None:
        """
        Raises:
            TypeError: the entry does not inherit from the base class.
            ValueError: the name is taken, or another entry gives an option a different default.
        """
        if not (inspect.isclass(obj) and issubclass(obj, self.base)):
            raise TypeError(f"{self._name} {name} must be a subclass of {self.base.__name__}")
        if name in self:
            raise ValueError(f"there already is a {self._name} {name}: choose another name")
        defaults = {
            option.key: (option.default, other)
            for other, entry in self
            for option in options_of(entry)
            if option.default is not NO_DEFAULT
        }
        for option in options_of(obj):
            if option.key in ("NAME", "ENABLED"):
                raise ValueError(f"{self._name} {name}: the option key {option.key} is reserved")
            default, other = defaults.get(option.key, (option.default, name))
            if option.default is not NO_DEFAULT and option.default != default:
                raise ValueError(
                    f"{self._name} {name}: the option {option.key} has the default "
                    f"{option.default!r}, but {default!r} in {other}. Entries of a slot share "
                    "their keys: omit the default, or choose another key"
                )
        super()._do_register(name, obj)
