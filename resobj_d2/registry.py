"""Registries that say what they hold when a name is not among it."""

from __future__ import annotations

import fvcore.common.registry

__all__ = ["Registry"]


class Registry(fvcore.common.registry.Registry):
    """fvcore's registry with the known names in its error message."""

    def get(self, name: str):
        """The entry of that name.

        Raises:
            KeyError: there is none; the message lists the names that there are.
        """
        if name not in self:
            known = ", ".join(sorted(known for known, _ in self))
            raise KeyError(f"there is no {self._name} '{name}'; choose one of {known}")
        return super().get(name)
