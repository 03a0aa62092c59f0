"""Registries of the network slots.

An entry declares its options on its constructor's arguments (:mod:`resobj_d2.options`).
"""

from __future__ import annotations

from resobj_d2.registry import Registry

from .contracts import Predictor, ScoreBranch, Tower

__all__ = ["BRANCH_REGISTRY", "PREDICTOR_REGISTRY", "TOWER_REGISTRY"]

TOWER_REGISTRY: Registry[Tower] = Registry("TOWER", base=Tower)
"""Entries of ``TOWER.NAME``: subclasses of :class:`Tower`."""
PREDICTOR_REGISTRY: Registry[Predictor] = Registry("PREDICTOR", base=Predictor)
"""Entries of ``PREDICTOR.NAME``: subclasses of :class:`Predictor`."""
BRANCH_REGISTRY: Registry[ScoreBranch] = Registry("BRANCH", base=ScoreBranch)
"""Subclasses of :class:`ScoreBranch`, each enabled by ``ENABLED`` in its own node.

An entry takes ``num_classes`` and ``parts`` (:class:`.heads.HeadParts`) besides its options.
"""
