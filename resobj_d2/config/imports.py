"""Modules of the user's own, imported before a configuration is read."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

__all__ = ["import_modules"]


def import_modules(names: Sequence[str]) -> None:
    """Import modules for what they register: losses, assigners, samplers, branches, backbones.

    Raises:
        ImportError: a module is not there, or fails; the message names ``IMPORTS``.
        ValueError: ``names`` is not a list of module names.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"IMPORTS must be a list of module names, got {names!r}")
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(
                f"IMPORTS: {name!r:.80} is not the name of a module, as package.module"
            )
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if name != missing and not name.startswith(f"{missing}."):
                raise ImportError(f"IMPORTS: {name} cannot be imported: {error}") from error
            raise ImportError(
                f"IMPORTS: there is no module {name}. Install its package, or put the folder that "
                "holds it on PYTHONPATH"
            ) from error
