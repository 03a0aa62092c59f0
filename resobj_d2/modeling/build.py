"""Registries of the network slots."""

from __future__ import annotations

from fvcore.common.registry import Registry

__all__ = ["BRANCH_REGISTRY", "TOWER_REGISTRY"]

TOWER_REGISTRY = Registry("TOWER")
TOWER_REGISTRY.__doc__ = """
Towers: modules built as ``Entry.from_config(node, in_channels, tasks=("cls", "box"))`` from
``MODEL.DENSE.TOWER`` with the channels of each level. ``tower(features) -> TowerFeatures``;
``tower.run(task, features)`` gives the maps of one task, on an input of its own (stages with their
own tower have only the ``tasks`` they need); ``out_channels`` lists the channels of each level.
"""

BRANCH_REGISTRY = Registry("BRANCH")
BRANCH_REGISTRY.__doc__ = """
Score branches: modules that predict one more probability per anchor; see
:class:`resobj_d2.modeling.branches.ScoreBranch`. An entry is built as
``Entry.from_config(node, num_classes=, in_channels=, num_anchors=)`` with the node of its stream
(``MODEL.DENSE`` or ``MODEL.DENSE.ANCHOR_FREE``), or skipped where that returns None.
"""
